//! Damage to packs, the files that small partitions share: told with file, place and offsets, under
//! a running node and at a start; each partition loses its own records alone, and merging packs
//! never removes the only other copy of what it could not verify.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::asks::{Ask, fetched, produce_many, written};
use crate::damage::{FOREVER, KAFKA_STORAGE_ERROR, SMALL, all_but, flip, mend, stop};
use crate::frames::{Bytes, Peer, produced, request};
use crate::full::delete_topic;
use crate::segments::{await_that, create, write};
use crate::world::{Broker, corelog, fresh};

const PARTITIONS: i32 = 8;
/// Of each partition.
const RECORDS: i64 = 5;
const VALUE_BYTES: usize = 3000;
/// Of a batch of one record.
const BATCH_BYTES: u64 = 3070;

/// What a pack's directory says, by topic number and partition: first offset, position, bytes.
pub type Pieces = BTreeMap<(u64, i32), (i64, u64, u64)>;

/// The packs that are whole, with their pieces.
pub fn packs(broker: &Broker) -> BTreeMap<PathBuf, Pieces> {
    let Ok(entries) = fs::read_dir(broker.data().join("core-0/segments/packs")) else {
        return BTreeMap::new();
    };
    let mut found = BTreeMap::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        let (_, said) = corelog(&["inspect", "--json", path.to_str().expect("UTF-8")]);
        let mut pieces = Pieces::new();
        for line in said.lines().filter(|line| line.starts_with('{')) {
            let value: Value = serde_json::from_str(line).expect("JSON");
            let number = |name: &str| value[name].as_u64();
            if let (Some(topic), Some(partition)) = (number("topic"), number("partition")) {
                let base = value["base"].as_i64().expect("an offset");
                let place = (number("position").expect("a place"), number("bytes").expect("bytes"));
                let partition = i32::try_from(partition).expect("few");
                pieces.insert((topic, partition), (base, place.0, place.1));
            }
        }
        found.insert(path, pieces);
    }
    found.retain(|_, pieces| !pieces.is_empty());
    found
}

pub fn create_with(peer: &mut Peer, topic: &str, partitions: i32) {
    let (name, value) = FOREVER;
    let body = Bytes::default().i32(1).string(topic).i32(partitions).i16(1).i32(0).i32(1);
    let answer = peer.ask(&request(19, 2, body.string(name).string(value).i32(10_000).i8(0)));
    let at = 4 + 4 + 2 + topic.len();
    assert_eq!(answer[at..at + 2], [0, 0], "{topic} is made");
}

/// One record more in each partition.
pub fn write_each(peer: &mut Peer, topic: &str, partitions: i32, value_bytes: usize, offset: i64) {
    let parts: Vec<(i32, usize)> = (0..partitions).map(|index| (index, value_bytes)).collect();
    let answer = written(&peer.ask(&produce_many(topic, &parts)));
    let wanted: Vec<_> = (0..partitions).map(|index| (index, 0, offset)).collect();
    assert_eq!(answer, wanted);
}

/// The offsets of a partition that can be read, and those at which a read fails.
pub fn readable(peer: &mut Peer, topic: &str, partition: i32, end: i64) -> (Vec<i64>, Vec<i64>) {
    let (mut found, mut failed) = (Vec::new(), Vec::new());
    let mut next = 0;
    while next < end {
        let parts = [(partition, next, 1 << 20)];
        let ask = Ask { topic, parts: &parts, wait_ms: 0, bytes_min: 0, bytes_max: 1 << 20 };
        let part = fetched(&peer.ask(&ask.encode())).remove(0);
        if part.error == 0 {
            assert!(!part.bases.is_empty(), "there is something at {next} of {partition}");
            assert!(part.bases[0] <= next, "no offset is passed over: {next}, {:?}", part.bases);
            found.extend(part.bases.iter().filter(|base| **base >= next));
            next = (part.bases.last().expect("a batch") + 1).max(next + 1);
        } else {
            assert_eq!(part.error, KAFKA_STORAGE_ERROR);
            failed.push(next);
            next += 1;
        }
    }
    (found, failed)
}

/// Everything can be read but for these offsets of these partitions.
fn assert_readable(broker: &Broker, topic: &str, lost: &BTreeMap<i32, Vec<i64>>) {
    let mut peer = Peer::connect(broker.address());
    for partition in 0..PARTITIONS {
        let lost = lost.get(&partition).cloned().unwrap_or_default();
        let wanted = (all_but(&lost, RECORDS), lost);
        assert_eq!(readable(&mut peer, topic, partition, RECORDS), wanted, "of {partition}");
    }
}

/// A broker with a small topic in a pack, and what the pack holds of it by partition.
struct Packed {
    broker: Broker,
    topic: String,
    filler: String,
    filled: i64,
    pack: PathBuf,
    pieces: BTreeMap<i32, (i64, u64, u64)>,
}

impl Packed {
    /// With another topic's partitions of so many bytes each in the pack.
    fn with(beside: Option<(&str, i32, usize)>) -> Packed {
        let broker = Broker::start(SMALL);
        let (topic, filler) = (fresh("small"), fresh("filler"));
        let mut peer = Peer::connect(broker.address());
        create_with(&mut peer, &topic, PARTITIONS);
        if let Some((name, partitions, bytes)) = beside {
            create_with(&mut peer, name, partitions);
            write_each(&mut peer, name, partitions, bytes, 0);
        }
        create(&mut peer, &filler, &[FOREVER]);
        for offset in 0..RECORDS {
            write_each(&mut peer, &topic, PARTITIONS, VALUE_BYTES, offset);
        }
        let (pack, pieces) = (PathBuf::new(), BTreeMap::new());
        let mut packed = Packed { broker, topic, filler, filled: 0, pack, pieces };
        packed.fill(50);
        let is_whole = |pieces: &Pieces| pieces.len() >= PARTITIONS.unsigned_abs() as usize;
        await_that("there is a pack", || packs(&packed.broker).values().any(is_whole));
        let (pack, pieces) = packs(&packed.broker).pop_first().expect("a pack");
        let of_topic = pieces.first_key_value().expect("a piece").0.0;
        let pieces = pieces.into_iter().filter(|((topic, _), _)| *topic == of_topic);
        packed.pieces = pieces.map(|((_, partition), piece)| (partition, piece)).collect();
        assert_eq!(packed.pieces.len(), PARTITIONS.unsigned_abs() as usize);
        assert!(packed.pieces.values().all(|(_, _, bytes)| bytes % BATCH_BYTES == 0));
        packed.pack = pack;
        packed
    }

    fn new() -> Packed {
        Packed::with(None)
    }

    /// Writes so many megabytes to the other topic.
    fn fill(&mut self, megabytes: i64) {
        let mut peer = Peer::connect(self.broker.address());
        write(&mut peer, &self.filler, self.filled..self.filled + megabytes);
        self.filled += megabytes;
    }

    /// Where the batch at an offset of a partition begins in the pack.
    fn place(&self, partition: i32, offset: u64) -> u64 {
        self.pieces[&partition].1 + offset * BATCH_BYTES
    }

    fn name(&self, partition: i32) -> String {
        format!("topic {} partition {partition}", self.topic)
    }

    fn inspect(&self) -> (Option<i32>, String) {
        corelog(&["inspect", self.pack.to_str().expect("UTF-8")])
    }

    fn mend(&mut self, words: &[&str]) {
        mend(&self.broker, words);
        self.broker.launch();
        let mut peer = Peer::connect(self.broker.address());
        for partition in 0..PARTITIONS {
            // One batch without records may stand for several lost ones.
            let (found, failed) = readable(&mut peer, &self.topic, partition, RECORDS);
            assert!(!found.is_empty() && failed.is_empty(), "of {partition}: {failed:?}");
        }
        write_each(&mut peer, &self.topic, PARTITIONS, VALUE_BYTES, RECORDS);
        self.fill(1);
    }
}

#[test]
fn a_flipped_byte_in_a_pack_costs_its_own_batch_alone() {
    let mut packed = Packed::new();
    // Inside a record, in a length, in an offset, in the number of offsets, in a leader epoch.
    let places = [(1, 1, 2000), (2, 2, 10), (3, 0, 5), (4, 3, 26), (5, 4, 13), (6, 1, 7)];
    let mut lost = BTreeMap::new();
    for (partition, offset, at) in places {
        flip(&packed.pack, packed.place(partition, offset) + at);
        if at != 13 {
            lost.insert(partition, vec![i64::try_from(offset).expect("few")]);
        }
    }
    let mut told = Vec::new();
    for (partition, lost) in &lost {
        let (from, before) = (lost[0], lost[0] + 1);
        told.push(format!("offsets {from} to before {before} of {}", packed.name(*partition)));
    }
    told.push(format!("the leader epoch of offsets 4 to before 5 of {}", packed.name(5)));
    for words in &told {
        packed.broker.await_log(words);
    }
    assert!(packed.broker.log().contains(&packed.pack.display().to_string()));
    assert_readable(&packed.broker, &packed.topic, &lost);
    packed.broker.restart();
    assert_readable(&packed.broker, &packed.topic, &lost);
    stop(&mut packed.broker);
    let (code, said) = packed.inspect();
    assert!(code == Some(1) && said.matches("DAMAGED").count() == lost.len(), "{said}");
    let mut words: Vec<String> = Vec::new();
    for (partition, lost) in &lost {
        let name = packed.name(*partition);
        words.push(format!("lost: {name}, offsets {} to before {}", lost[0], lost[0] + 1));
    }
    words.push(format!("nothing is lost: {}, offsets 4 to before 5", packed.name(5)));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    packed.mend(&words);
}

#[test]
fn a_damaged_directory_of_a_pack_costs_nothing() {
    let mut packed = Packed::new();
    let good = fs::read(&packed.pack).expect("readable");
    let end = good.len() - 16;
    let directory = u64::from_le_bytes(good[end..end + 8].try_into().expect("eight bytes"));
    let end = u64::try_from(end).expect("small");
    let flaws = [
        (directory + 30, 0x20, "its directory is damaged", false),
        (end + 9, 0x20, "its end does not say where its directory is", true),
        (end + 1, 0x20, "its directory is damaged", false),
        (directory + 4, 0x03, "its directory has format 2", false),
    ];
    for (at, bits, words, is_found) in flaws {
        let mut damaged = good.clone();
        damaged[usize::try_from(at).expect("small")] ^= bits;
        fs::write(&packed.pack, damaged).expect("writable");
        if words.contains("format") {
            packed.broker.restart();
        }
        let place = format!("{} is damaged: {words}", packed.pack.display());
        if at == directory + 30 {
            packed.broker.await_log(&place);
        }
        assert_readable(&packed.broker, &packed.topic, &BTreeMap::new());
        let (code, said) = packed.inspect();
        assert!(code == Some(1) && said.contains(words), "{said}");
        assert_eq!(said.contains("piece of topic number"), is_found, "{said}");
        stop(&mut packed.broker);
        mend(&packed.broker, &[&place, "nothing is lost with that"]);
        let (code, said) = packed.inspect();
        assert!(code == Some(0) && said.contains("piece of topic number"), "{said}");
        packed.broker.launch();
        assert_readable(&packed.broker, &packed.topic, &BTreeMap::new());
        let kept = fs::read_dir(packed.broker.data()).expect("readable").flatten();
        for kept in kept.filter(|e| e.file_name().to_string_lossy().starts_with("damaged-")) {
            fs::remove_dir_all(kept.path()).expect("removable");
        }
    }
}

/// Cuts the pack inside the batch at offset 2 of a partition; what is lost with it.
fn cut(packed: &Packed, partition: i32) -> BTreeMap<i32, Vec<i64>> {
    let at = packed.place(partition, 2) + 700;
    let file = fs::File::options().write(true).open(&packed.pack).expect("there");
    file.set_len(at).expect("cut");
    let behind = packed.pieces.iter().filter(|(_, (_, position, _))| *position >= at);
    let mut lost: BTreeMap<i32, Vec<i64>> =
        behind.map(|(partition, _)| (*partition, (0..RECORDS).collect())).collect();
    lost.insert(partition, (2..RECORDS).collect());
    lost
}

#[test]
fn a_pack_that_is_cut_short_or_gone_costs_what_was_in_it() {
    let mut packed = Packed::new();
    let lost = cut(&packed, 4);
    assert!(lost.len() > 1 && lost.len() < PARTITIONS.unsigned_abs() as usize, "{lost:?}");
    packed.broker.await_log(&format!("offsets 2 to before 5 of {}", packed.name(4)));
    assert_readable(&packed.broker, &packed.topic, &lost);
    packed.broker.restart();
    assert_readable(&packed.broker, &packed.topic, &lost);
    stop(&mut packed.broker);
    let (code, said) = packed.inspect();
    assert!(code == Some(1) && said.contains("its end does not say"), "{said}");
    let words = format!("lost: {}, offsets 2 to before 5", packed.name(4));
    packed.mend(&["the file ends here", &words]);

    let mut packed = Packed::new();
    fs::remove_file(&packed.pack).expect("there");
    let place = packed.pack.display().to_string();
    for partition in [0, 7] {
        let words = format!("offsets 0 to before 5 of {}", packed.name(partition));
        packed.broker.await_log(&words);
    }
    assert!(packed.broker.log().contains(&place));
    packed.broker.restart();
    let all = (0..PARTITIONS).map(|partition| (partition, (0..RECORDS).collect())).collect();
    assert_readable(&packed.broker, &packed.topic, &all);
    packed.fill(50);
    stop(&mut packed.broker);
    let words = format!("lost: {}, offsets 0 to before 5", packed.name(4));
    packed.mend(&["the file is missing", &words]);
}

#[test]
fn what_is_damaged_is_never_merged_and_never_removed() {
    let other = fresh("doomed");
    let mut packed = Packed::with(Some((&other, 16, 200_000)));
    flip(&packed.pack, packed.place(3, 1) + 2000);
    let lost = BTreeMap::from([(3, vec![1])]);
    let mut peer = Peer::connect(packed.broker.address());
    assert_eq!(delete_topic(&mut peer, &other), 0);
    // Most of the pack is of no use any more, so the rest of it becomes another one.
    let old = packed.pack.clone();
    let is_merged = |broker: &Broker| {
        let mut others = packs(broker).into_iter().filter(|(path, _)| *path != old);
        others.find(|(_, pieces)| pieces.len() == 7)
    };
    await_that("the pack is merged", || is_merged(&packed.broker).is_some());
    let (_, pieces) = is_merged(&packed.broker).expect("there");
    assert!(pieces.keys().all(|(_, partition)| *partition != 3), "{pieces:?}");
    assert_readable(&packed.broker, &packed.topic, &lost);
    packed.broker.await_log(&format!("offsets 1 to before 2 of {}", packed.name(3)));
    // It is left alone from then on.
    let before: Vec<PathBuf> = packs(&packed.broker).into_keys().collect();
    std::thread::sleep(Duration::from_millis(300));
    let after: Vec<PathBuf> = packs(&packed.broker).into_keys().collect();
    assert!(before == after && after.contains(&old), "{before:?}, {after:?}");
    packed.broker.restart();
    assert_readable(&packed.broker, &packed.topic, &lost);
    stop(&mut packed.broker);
    let words = format!("lost: {}, offsets 1 to before 2", packed.name(3));
    packed.mend(&[&words]);
    await_that("the old pack is gone", || !Path::new(&packed.pack).exists());
}

/// Other numbers of cores, with a damaged piece on the way: everything else moves.
#[test]
fn a_damaged_pack_moves_to_other_cores_as_it_is() {
    let mut packed = Packed::new();
    flip(&packed.pack, packed.place(2, 3) + 2000);
    let mut lost = cut(&packed, 6);
    lost.insert(2, vec![3]);
    stop(&mut packed.broker);
    packed.broker.set("shards", "3");
    packed.broker.launch();
    assert!(packed.broker.log().contains(&format!("{} is damaged", packed.pack.display())));
    assert_readable(&packed.broker, &packed.topic, &lost);
    let one = crate::frames::produce(&packed.topic, &crate::frames::Batch::default().encode());
    let answer = Peer::connect(packed.broker.address()).ask(&one);
    assert_eq!(produced(&answer, &packed.topic), (0, RECORDS));
}
