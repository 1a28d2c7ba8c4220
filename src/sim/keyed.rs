//! A compacted topic: one writer for each partition, who overwrites and deletes keys, a reader, and
//! what must be true of it.
//!
//! Invariants, for a node that keeps its promise
//!   K1  A key's newest acknowledged record, or a newer one, is there; if that is a tombstone it
//!       may be gone, but not before its time.
//!   K2  What was found gone stays gone.
//!   K3  A record stands where it was answered and seen, whole; the last one is always there.
//!   K4  The records of a key stand in the order in which they were sent.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use super::Stage;
use super::admin::create;
use super::client::{Client, Lost};
use super::consumer::{Fetched, Reader};
use crate::io::Io;
use crate::io::sim::SimIo;
use crate::wire::api::{ApiKey, init_producer_id, produce};
use crate::wire::error::ErrorCode;
use crate::wire::records::{
    BatchBuilder, Codec, HEADER_BYTES, NewRecord, ProducerStamp, Records, batches, crc, decompress,
};

pub const PARTITIONS: i32 = 2;
const TOPIC: &str = "keyed";
const KEYS: u64 = 40;
const PAUSE: Duration = Duration::from_millis(5);
const TRIES_MAX: u32 = 20_000;
const RECORDS_BYTES_MAX: usize = 4 << 20;
const CODECS: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];

/// A record in words: its key, the how many-th of its partition it is, and whether it deletes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Put {
    key: u8,
    number: u32,
    is_tombstone: bool,
}

#[derive(Default)]
struct Partition {
    sent: BTreeSet<Put>,
    /// By offset, as answered or seen.
    known: BTreeMap<i64, Put>,
    acknowledged: BTreeMap<u8, Put>,
    gone: BTreeSet<i64>,
    end_seen: i64,
}

/// See the module's documentation.
#[derive(Default)]
pub struct History {
    partitions: BTreeMap<i32, Partition>,
}

impl Partition {
    fn know(&mut self, offset: i64, put: Put) {
        assert!(self.sent.contains(&put), "{put:?} was never sent");
        let before = self.known.insert(offset, put);
        assert!(before.is_none_or(|before| before == put), "offset {offset}: {before:?}, {put:?}");
        assert!(!self.gone.contains(&offset), "{put:?} at offset {offset} was gone and is back");
        self.end_seen = self.end_seen.max(offset + 1);
    }

    fn judge(&self, found: &BTreeMap<i64, Put>, end: i64, tombstones_stay: bool) -> u64 {
        assert!(end >= self.end_seen, "the end {} is lost", self.end_seen);
        assert_eq!(found.keys().next_back().copied(), (end > 0).then_some(end - 1), "K3");
        let mut newest: BTreeMap<u8, Put> = BTreeMap::new();
        for put in found.values() {
            let before = newest.insert(put.key, *put);
            assert!(
                before.is_none_or(|before| before.number < put.number),
                "K4: {before:?}, {put:?}"
            );
        }
        let mut gone = 0;
        for (key, acknowledged) in &self.acknowledged {
            match newest.get(key) {
                Some(found) => assert!(found.number >= acknowledged.number, "K1: {acknowledged:?}"),
                None => {
                    let deletes = |put: &&Put| put.key == *key && put.is_tombstone;
                    let mut later = self.sent.iter().filter(deletes);
                    let is_deleted = later.any(|put| put.number >= acknowledged.number);
                    assert!(is_deleted && !tombstones_stay, "K1: {acknowledged:?} is gone");
                    gone += 1;
                }
            }
        }
        gone
    }
}

/// Overwrites and deletes keys of one partition until the run is over, a batch at a time, each sent
/// until it is acknowledged.
pub async fn write(io: SimIo, stage: Rc<Stage>, index: i32) {
    let mut client = stage.client(&io);
    let stay = if stage.plan.tombstones_stay { "3600000" } else { "0" };
    let settings = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "1"),
        ("min.cleanable.dirty.ratio", "0.1"),
        ("delete.retention.ms", stay),
        ("max.compaction.lag.ms", stage.plan.max_lag_ms),
        ("compression.type", stage.plan.compression),
        ("message.timestamp.type", stage.plan.timestamp_type),
    ];
    while create(&mut client, TOPIC, PARTITIONS, &settings).await.is_err() {
        io.sleep(PAUSE).await;
    }
    let (id, epoch) = loop {
        let request = init_producer_id::Request { transactional_id: None, ..Default::default() };
        if let Ok(answer) = client.call(ApiKey::InitProducerId, 4, &request).await {
            let answer: init_producer_id::Response = answer.decode();
            if answer.error_code == 0 {
                break (answer.producer_id, answer.producer_epoch);
            }
        }
        io.sleep(PAUSE).await;
    };
    let mut number = 0;
    while !stage.is_over() {
        let first = number;
        number += 1 + u32::try_from(io.random() % 8).expect("small");
        let puts: Vec<Put> = (first..number).map(|number| draw(&io, number)).collect();
        with(&stage, index, |partition| partition.sent.extend(&puts));
        let sequence = i32::try_from(first).expect("few");
        let batch = build(&io, &puts, ProducerStamp { id, epoch, sequence });
        let offset = send(&io, &mut client, index, &batch).await;
        with(&stage, index, |partition| {
            for (offset, put) in (offset..).zip(&puts) {
                // It may be compacted away by the time of its answer.
                if !partition.gone.contains(&offset) {
                    partition.know(offset, *put);
                }
                partition.acknowledged.insert(put.key, *put);
            }
        });
        if io.random().is_multiple_of(16) {
            io.sleep(PAUSE).await;
        }
    }
}

fn with<R>(stage: &Stage, index: i32, act: impl FnOnce(&mut Partition) -> R) -> R {
    act(stage.keyed.borrow_mut().partitions.entry(index).or_default())
}

fn draw(io: &SimIo, number: u32) -> Put {
    let key = u8::try_from(io.random() % KEYS).expect("small");
    Put { key, number, is_tombstone: io.random().is_multiple_of(4) }
}

fn build(io: &SimIo, puts: &[Put], stamp: ProducerStamp) -> Vec<u8> {
    let mut builder = BatchBuilder::new().producer(stamp);
    for put in puts {
        let value = vec![put.key; usize::try_from(io.random() % 2_000).expect("small")];
        builder.push(&NewRecord {
            timestamp: io.wall().0,
            key: Some(&[put.key]),
            value: (!put.is_tombstone).then_some(&value),
            headers: &[("number", Some(&put.number.to_be_bytes()))],
        });
    }
    // Mostly plain, so that there is much to drain.
    let codec = CODECS[usize::try_from(io.random() % 20).expect("small").saturating_sub(15)];
    builder.build(codec).expect("compressible").to_vec()
}

/// Sends a batch until it is acknowledged; returns its offset.
async fn send(io: &SimIo, client: &mut Client, index: i32, batch: &[u8]) -> i64 {
    for _ in 0..TRIES_MAX {
        let data = produce::PartitionProduceData { index, records: Some(batch) };
        let topic = produce::TopicProduceData {
            name: TOPIC,
            partition_data: vec![data],
            ..Default::default()
        };
        let request = produce::Request {
            acks: -1,
            timeout_ms: 10_000,
            topic_data: vec![topic],
            ..Default::default()
        };
        if let Ok(answer) = client.call(ApiKey::Produce, 12, &request).await {
            let answer: produce::Response<'_> = answer.decode();
            let answer = &answer.responses[0].partition_responses[0];
            match ErrorCode(answer.error_code) {
                ErrorCode::NONE => return answer.base_offset,
                ErrorCode::KAFKA_STORAGE_ERROR
                | ErrorCode::UNKNOWN_TOPIC_OR_PARTITION
                | ErrorCode::REQUEST_TIMED_OUT => {}
                code => panic!("partition {index} of the compacted topic answers {code}"),
            }
        }
        io.sleep(PAUSE).await;
    }
    panic!("a batch is never taken");
}

/// Reads the partitions again and again until the run is over.
pub async fn read(io: SimIo, stage: Rc<Stage>) {
    let mut reader = Reader { io: io.clone(), client: stage.client(&io) };
    let mut places = [0; PARTITIONS as usize];
    while !stage.is_over() {
        let index = i32::try_from(io.random() % PARTITIONS.unsigned_abs() as u64).expect("small");
        let place = &mut places[usize::try_from(index).expect("small")];
        match reader.fetch_from(TOPIC, index, *place).await {
            Ok(Ok(found)) => *place = take(&stage, index, *place, &found, &mut BTreeMap::new()),
            Ok(Err(())) => panic!("offset {place} of partition {index} is out of range"),
            Err(Lost) => io.sleep(PAUSE).await,
        }
        if io.random().is_multiple_of(16) {
            *place = 0;
        }
    }
}

/// Notes what a fetch from `place` brought; returns where to read on.
fn take(
    stage: &Stage,
    index: i32,
    place: i64,
    found: &Fetched,
    all: &mut BTreeMap<i64, Put>,
) -> i64 {
    let mut next = place;
    let mut emptied = 0;
    with(stage, index, |partition| {
        for (header, batch) in batches(&found.records) {
            assert_eq!((header.magic, header.crc), (2, crc(batch)), "a batch is served damaged");
            let codec = header.codec().expect("valid");
            let inside = decompress(codec, &batch[HEADER_BYTES..], RECORDS_BYTES_MAX);
            let inside = inside.expect("what was compressed");
            let records: Vec<_> =
                Records::new(&header, &inside).map(|record| record.expect("valid")).collect();
            assert_eq!(records.len(), usize::try_from(header.count).expect("a count"));
            for record in records.iter().filter(|record| record.offset >= place) {
                let number = record.headers().next().and_then(|header| header.value);
                let number = number.expect("a number").try_into().expect("four bytes");
                let put = Put {
                    key: record.key.expect("a key")[0],
                    number: u32::from_be_bytes(number),
                    is_tombstone: record.value.is_none(),
                };
                let value = record.value.unwrap_or_default();
                assert!(value.iter().all(|byte| *byte == put.key), "{put:?} is damaged");
                partition.know(record.offset, put);
                emptied += lose(partition, next..record.offset);
                all.insert(record.offset, put);
                next = record.offset + 1;
            }
            emptied += lose(partition, next..header.next_offset());
            next = next.max(header.next_offset());
        }
        assert!(next <= found.end, "records are served beyond the end");
        partition.end_seen = partition.end_seen.max(found.end);
    });
    stage.history().met.emptied += emptied;
    next
}

/// Nothing stands at these offsets any more; returns how many are new.
fn lose(partition: &mut Partition, offsets: std::ops::Range<i64>) -> u64 {
    offsets.map(|offset| u64::from(partition.gone.insert(offset))).sum()
}

/// Reads everything and judges it; the node is up and nobody else is at work.
pub async fn judge(io: SimIo, stage: Rc<Stage>) {
    let mut reader = Reader { io: io.clone(), client: stage.client(&io) };
    for index in 0..PARTITIONS {
        let mut before = None;
        // Compaction may still go through the partition: a reader that it overtakes finds a key's
        // old record, and not the tombstone that came later (seed 141).
        let (all, end) = loop {
            let found = read_whole(&mut reader, &stage, index).await;
            if before.as_ref() == Some(&found) {
                break found;
            }
            before = Some(found);
        };
        let stay = stage.plan.tombstones_stay;
        let gone = with(&stage, index, |partition| partition.judge(&all, end, stay));
        stage.history().met.tombstones_gone += gone;
    }
}

/// What is in a partition, and its end.
async fn read_whole(
    reader: &mut Reader,
    stage: &Rc<Stage>,
    index: i32,
) -> (BTreeMap<i64, Put>, i64) {
    let (mut place, mut all) = (0, BTreeMap::new());
    loop {
        match reader.fetch_from(TOPIC, index, place).await {
            Ok(Ok(found)) if place == found.end => return (all, found.end),
            Ok(Ok(found)) => place = take(stage, index, place, &found, &mut all),
            Ok(Err(())) => panic!("offset {place} of partition {index} is out of range"),
            Err(Lost) => reader.io.sleep(PAUSE).await,
        }
    }
}
