//! Compaction against a trivial oracle: a map from key to the newest record, replayed from all that
//! was ever written.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::base::ids::Offset;
use crate::wire::records::{
    self, BatchBuilder, BatchHeader, Codec, HEADER_BYTES, NewRecord, ProducerStamp, Records,
    decompress,
};

const RETENTION_MS: i64 = 100;
const CODECS: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];

/// A record in words.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    offset: Offset,
    timestamp: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    is_opaque: bool,
}

/// A batch to write: keys and kinds of its records, and what kind of batch it is.
#[derive(Clone, Debug)]
struct Wanted {
    records: Vec<(u8, u8)>,
    codec: usize,
    producer: Option<i64>,
    is_transactional: bool,
}

fn wanted() -> impl Strategy<Value = Wanted> {
    let records = prop::collection::vec((0_u8..24, 0_u8..8), 1..6);
    (records, 0_usize..5, prop::option::of(0_i64..3), 0_u8..40).prop_map(
        |(records, codec, producer, dice)| Wanted {
            records,
            codec,
            producer,
            is_transactional: dice == 0,
        },
    )
}

/// The log as it was written: batches at dense offsets.
fn write(wanted: &[Wanted]) -> Vec<Vec<u8>> {
    let mut next = 0;
    let mut sequences = BTreeMap::new();
    let mut log = Vec::new();
    for (at, batch) in wanted.iter().enumerate() {
        let mut builder = BatchBuilder::new();
        if let Some(id) = batch.producer {
            let sequence = sequences.entry(id).or_insert(0);
            builder = builder.producer(ProducerStamp { id, epoch: 0, sequence: *sequence });
            *sequence += i32::try_from(batch.records.len()).expect("few");
        }
        for (key, kind) in &batch.records {
            let timestamp = i64::try_from(at).expect("few") + i64::from(*kind);
            let (key, value) = ([*key], [b'v'; 40]);
            builder.push(&NewRecord {
                timestamp,
                key: (*kind != 7).then_some(&key[..]),
                value: (*kind > 2).then_some(&value[..]),
                headers: &[("h", Some(b"1"))],
            });
        }
        let mut bytes = builder.build(CODECS[batch.codec]).expect("compressible").to_vec();
        if batch.is_transactional {
            bytes[22] |= 0x10;
            let crc = records::crc(&bytes);
            bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        }
        records::stamp(&mut bytes, next, 1);
        next += i64::try_from(batch.records.len()).expect("few");
        log.push(bytes);
    }
    log
}

fn header_of(batch: &[u8]) -> BatchHeader {
    BatchHeader::read(batch).expect("whole")
}

fn read(log: &[Vec<u8>]) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut next = 0;
    for batch in log {
        let header = header_of(batch);
        assert_eq!((header.total_bytes(), header.crc), (Some(batch.len()), records::crc(batch)));
        assert!(header.base_offset >= next, "offsets ascend");
        next = header.next_offset();
        let codec = header.codec().expect("known");
        let inside = decompress(codec, &batch[HEADER_BYTES..], 1 << 20).expect("readable");
        let found: Vec<_> = Records::new(&header, &inside).map(|r| r.expect("sound")).collect();
        assert_eq!(found.len(), usize::try_from(header.count).expect("not negative"));
        seen.extend(found.iter().map(|record| Seen {
            offset: record.offset,
            timestamp: record.timestamp,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            is_opaque: header.is_transactional(),
        }));
        assert!(found.iter().all(|record| record.offset < next), "records lie in their batch");
    }
    seen
}

/// The newest record of each key.
fn newest(seen: &[Seen]) -> BTreeMap<Vec<u8>, Seen> {
    let keyed = seen.iter().filter_map(|record| Some((record.key.clone()?, record.clone())));
    keyed.collect()
}

/// What must be true of a log at any moment, given all that was ever written to it.
fn check(log: &[Vec<u8>], written: &[Seen], producers: &BTreeMap<i64, Offset>) {
    let held = read(log);
    let all: BTreeMap<Offset, &Seen> =
        written.iter().map(|record| (record.offset, record)).collect();
    for record in &held {
        assert_eq!(all.get(&record.offset), Some(&record), "C5");
    }
    let now = newest(&held);
    for (key, newest) in newest(written) {
        let found = now.get(&key);
        let may_be_gone = newest.value.is_none();
        assert!(found == Some(&newest) || (found.is_none() && may_be_gone), "C1, C2: {found:?}");
    }
    let opaque = |records: &[Seen]| -> Vec<Seen> {
        records.iter().filter(|record| record.is_opaque).cloned().collect()
    };
    assert_eq!(opaque(&held), opaque(written), "C3");
    for (id, base) in producers {
        let last = log.iter().map(|batch| header_of(batch));
        let mut last = last.filter(|header| header.producer_id == *id);
        assert!(last.any(|header| header.base_offset == *base), "C4: {id}");
    }
}

/// One run over the log with batches before `limit`: the map, then portion by portion, checked
/// after each. Returns one past the last offset that the run has been through.
fn run(
    log: &mut Vec<Vec<u8>>,
    (start, limit): (Offset, Offset),
    (map_bytes, now): (u64, i64),
    mut check: impl FnMut(&[Vec<u8>]),
) -> Offset {
    let producers = last_batches(log);
    let mut map = OffsetMap::new(map_bytes, 1000, [3, 4]);
    for batch in log.iter() {
        let header = header_of(batch);
        if header.next_offset() <= start {
            continue;
        }
        if header.base_offset >= limit || !note(&mut map, &header, batch, start) {
            break;
        }
    }
    let Some(latest) = map.latest() else { return start };
    let mut filter = Filter::new(&map, &producers, now, RETENTION_MS);
    let mut done = Vec::new();
    let mut left = std::mem::take(log).into_iter();
    while let Some(batch) = left.next() {
        let header = header_of(&batch);
        match filter.judge(&header, &batch) {
            Fate::Whole => done.push(batch),
            Fate::Gone => {}
            Fate::Rewritten(bytes) => done.push(bytes),
        }
        if header.base_offset % 5 == 0 {
            let half: Vec<Vec<u8>> = done.iter().cloned().chain(left.clone()).collect();
            check(&half);
        }
    }
    *log = done;
    check(log);
    latest + 1
}

fn last_batches(log: &[Vec<u8>]) -> BTreeMap<i64, Offset> {
    let headers = log.iter().map(|batch| header_of(batch)).filter(|header| header.has_producer());
    headers.map(|header| (header.producer_id, header.base_offset)).collect()
}

proptest! {
    #[test]
    fn compaction_keeps_the_newest_of_each_key_and_nothing_that_it_need_not(
        batches in prop::collection::vec(wanted(), 1..40),
        runs in prop::collection::vec((1_usize..12, 0_i64..120, prop::bool::ANY), 1..8),
    ) {
        let written = write(&batches);
        let mut log = Vec::new();
        let mut waiting = written.iter();
        let (mut cleaned, mut end, mut now) = (0, 0, 1000);
        let mut kept_until: BTreeMap<Offset, i64> = BTreeMap::new();
        for (more, passed, is_tight) in runs {
            for batch in waiting.by_ref().take(more) {
                end = header_of(batch).next_offset();
                log.push(batch.clone());
            }
            now += passed;
            let so_far = read(&written);
            let so_far: Vec<Seen> = so_far.into_iter().filter(|r| r.offset < end).collect();
            let producers: BTreeMap<i64, Offset> = last_batches(&log);
            let bytes = if is_tight { 0 } else { 1 << 20 };
            let before = cleaned;
            cleaned = run(&mut log, (cleaned, end), (bytes, now), |half| {
                check(half, &so_far, &producers);
            });
            prop_assert!(cleaned > before || before == end, "a run gets on");
            let held = read(&log);
            // A tombstone stays for its time from the run on that saw it first.
            let there: BTreeSet<Offset> = held.iter().map(|record| record.offset).collect();
            for (key, last) in newest(&so_far) {
                if last.value.is_none() {
                    let until = *kept_until.entry(last.offset).or_insert(now + RETENTION_MS);
                    let is_gone = !there.contains(&last.offset);
                    prop_assert!(!is_gone || until <= now, "{key:?} is gone too early");
                }
            }
            // Of what was gone through, no key is there twice, and nothing without one.
            let mut keys = BTreeSet::new();
            let gone_through = |record: &&Seen| record.offset < cleaned && !record.is_opaque;
            for record in held.iter().filter(gone_through) {
                prop_assert!(record.key.as_ref().is_some_and(|key| keys.insert(key.clone())));
            }
        }
    }
}
