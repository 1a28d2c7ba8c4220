//! A byte flips anywhere in a stopped node's data: it starts and serves each record that is not in
//! the damaged place as it was, and tells of the damage; or it refuses with the file and the remedy,
//! and `corelog repair` costs what its dry run has said. Never a wrong or a missing record in
//! silence, a panic, or a hang.
//!
//! `FLIPS=500 FIRST_FLIP=1000` makes other flips than the usual ones; a failure names
//! its number.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::asks::{Ask, Walk, batches_of, produce_to, written};
use crate::damage::{FOREVER, KAFKA_STORAGE_ERROR, SMALL, repair, stop};
use crate::damaged_packs::create_with;
use crate::frames::{Batch, Peer};
use crate::segments::{await_that, create, segment_files, write};
use crate::world::{Broker, fresh};

const FLIPS: u64 = 14;
const BLOCK: u64 = 4096;
/// With which a group of a journal begins.
const GROUP: &[u8] = b"1GLC";

/// Numbers that look random, the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 33) % most.max(1)
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[usize::try_from(self.below(all.len() as u64)).expect("small")]
    }
}

/// Of each partition, its batches as they are served; each is one record.
type Served = BTreeMap<(String, i32), Vec<Vec<u8>>>;

/// Offsets of partitions.
type Places = Vec<(String, i32, i64)>;

/// A stopped node, its files as they were, and what it serves.
struct Node {
    broker: Broker,
    good: PathBuf,
    stamps: BTreeMap<PathBuf, (SystemTime, u64)>,
    served: Served,
}

/// All files below a folder, by their paths inside it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![folder.to_owned()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(&next).expect("readable").flatten() {
            match entry.file_type().expect("a type").is_dir() {
                true => left.push(entry.path()),
                false => found.push(entry.path().strip_prefix(folder).expect("inside").to_owned()),
            }
        }
    }
    found.sort();
    found
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// Reads one partition from an offset: the error, and the batches.
pub fn read(peer: &mut Peer, (topic, partition): (&str, i32), from: i64) -> (i16, Vec<u8>) {
    let parts = [(partition, from, 1 << 20)];
    let ask = Ask { topic, parts: &parts, wait_ms: 0, bytes_min: 0, bytes_max: 1 << 20 };
    let answer = peer.ask(&ask.encode());
    let mut walk = Walk(&answer);
    walk.skip(4 + 2 + 4 + 4);
    walk.string();
    walk.skip(4 + 4);
    let error = walk.i16();
    walk.skip(8 + 16 + 4 + 4);
    (error, walk.bytes().to_vec())
}

/// Reads everything: what each offset gives, and where a read fails.
fn read_all(broker: &Broker, ends: &BTreeMap<(String, i32), i64>) -> (Served, Places) {
    let mut peer = Peer::connect(broker.address());
    let (mut served, mut failed) = (Served::new(), Places::new());
    for ((topic, partition), end) in ends {
        let batches = served.entry((topic.clone(), *partition)).or_default();
        let mut next = 0;
        while next < *end {
            let (error, found) = read(&mut peer, (topic, *partition), next);
            if error != 0 {
                assert_eq!(error, KAFKA_STORAGE_ERROR, "{topic} {partition} at {next}");
                failed.push((topic.clone(), *partition, next));
                batches.push(Vec::new());
                next += 1;
                continue;
            }
            assert!(!found.is_empty(), "nothing is at {next} of {topic} {partition}");
            for (base, end, batch) in batches_of(&found) {
                assert_eq!(base, next, "of {topic} {partition}");
                // One that stands for several lost ones.
                for _ in base..end {
                    batches.push(batch.clone());
                    next += 1;
                }
            }
        }
    }
    (served, failed)
}

impl Node {
    fn new() -> Node {
        let mut broker = Broker::start(&[SMALL, &[("journal.file.bytes", "4194304")]].concat());
        let names = [fresh("small"), fresh("middle"), fresh("late"), fresh("filler")];
        let [small, middle, late, filler] = &names;
        let mut peer = Peer::connect(broker.address());
        create_with(&mut peer, small, 8);
        create(&mut peer, middle, &[FOREVER]);
        create(&mut peer, late, &[FOREVER]);
        create(&mut peer, filler, &[FOREVER, ("segment.bytes", "8388608")]);
        let mut time = 1_700_000_000_000;
        let mut one = |peer: &mut Peer, topic: &str, partition: i32, value_bytes: usize| {
            time += 1;
            let times = Batch { timestamp: time, max_timestamp: time, ..Batch::default() };
            let batch = Batch { value_bytes, ..times }.encode();
            let answer = written(&peer.ask(&produce_to(topic, partition, &batch)));
            assert_eq!(answer[0].1, 0);
        };
        for round in 0..2 {
            for record in 0..3 {
                (0..8).for_each(|partition| one(&mut peer, small, partition, 2000 + record));
            }
            (0..20).for_each(|record| one(&mut peer, middle, 0, 60_000 + record));
            write(&mut peer, filler, round * 27..(round + 1) * 27);
            // Another leader epoch.
            broker.restart();
            peer = Peer::connect(broker.address());
        }
        let packs = broker.data().join("core-0/segments/packs");
        let is_drained = || packs.exists() && segment_files(&broker).len() > 4;
        await_that("everything old is in segments", is_drained);
        (0..20).for_each(|record| one(&mut peer, late, 0, 3000 + record));
        let of = |topic: &String, partition, end| ((topic.clone(), partition), end);
        let mut ends: BTreeMap<_, _> = (0..8).map(|partition| of(small, partition, 6)).collect();
        ends.extend([of(middle, 0, 40), of(late, 0, 20), of(filler, 0, 54)]);
        // What is written last cannot be told from a torn write: nobody's records are.
        broker.restart();
        let (served, failed) = read_all(&broker, &ends);
        assert_eq!(failed, []);
        stop(&mut broker);
        let good = broker.data().with_file_name("good");
        let mut node = Node { broker, good, stamps: BTreeMap::new(), served };
        for file in files(&node.broker.data()) {
            let to = node.good.join(&file);
            fs::create_dir_all(to.parent().expect("a folder")).expect("makeable");
            fs::copy(node.broker.data().join(&file), to).expect("copied");
        }
        node.stamp();
        node
    }

    fn stamp(&mut self) {
        let data = self.broker.data();
        let stamps =
            files(&data).into_iter().filter_map(|f| Some((f.clone(), stamp(&data.join(f))?)));
        self.stamps = stamps.collect();
    }

    /// Puts every file that has changed back.
    fn restore(&mut self) {
        let data = self.broker.data();
        for file in files(&data) {
            if !self.stamps.contains_key(&file) {
                fs::remove_file(data.join(file)).expect("removable");
            }
        }
        for (file, known) in &self.stamps {
            let path = data.join(file);
            if stamp(&path) != Some(*known) {
                fs::create_dir_all(path.parent().expect("a folder")).expect("makeable");
                fs::copy(self.good.join(file), &path).expect("copied");
            }
        }
        self.stamp();
    }

    /// A file and a place in it.
    fn place(&self, dice: &mut Dice) -> (PathBuf, u64) {
        let all: Vec<&PathBuf> =
            self.stamps.keys().filter(|file| !file.ends_with("lock")).collect();
        let kind = *dice
            .of(&["journal-", "journal.", ".log", ".log", ".pack", ".pack", ".marks", ".toml"]);
        let named = |file: &&&PathBuf| file.to_string_lossy().contains(kind);
        let file = *dice.of(&all.iter().filter(named).copied().collect::<Vec<_>>());
        let bytes = fs::read(self.good.join(file)).expect("readable");
        let length = bytes.len() as u64;
        let begins: Vec<u64> = match kind {
            "journal-" => (0..length / BLOCK)
                .map(|block| block * BLOCK)
                .filter(|at| bytes[usize::try_from(*at).expect("small")..].starts_with(GROUP))
                .collect(),
            ".log" | ".pack" => batches(&bytes),
            _ => Vec::new(),
        };
        let at = match dice.below(3) {
            0 if kind == ".pack" => length - 1 - dice.below(BLOCK.min(length)),
            0 | 1 if !begins.is_empty() => *dice.of(&begins) + dice.below(70),
            _ => dice.below(if kind == "journal." { 2 * 32 } else { length }),
        };
        (file.clone(), at.min(length - 1))
    }

    /// What is served differs from before in these places alone, and there by a batch without
    /// records.
    fn compare(&self, served: &Served, failed: &Places, what: &str) -> Places {
        let mut lost = Places::new();
        for ((topic, partition), batches) in &self.served {
            let found = &served[&(topic.clone(), *partition)];
            for (offset, (one, two)) in (0..).zip(batches.iter().zip(found)) {
                let place = (topic.clone(), *partition, offset);
                if one == two || failed.contains(&place) {
                    continue;
                }
                let count = &two[57..61];
                assert_eq!(count, [0; 4], "{what}: another record is at {place:?}");
                lost.push(place);
            }
        }
        lost
    }

    /// The node starts with the flip, or refuses and is mended.
    fn run(&mut self, file: &Path, what: &str) {
        let path = self.broker.data().join(file);
        let ends = self.served.iter().map(|(partition, batches)| {
            (partition.clone(), i64::try_from(batches.len()).expect("few"))
        });
        let ends: BTreeMap<_, _> = ends.collect();
        let before = self.broker.log().len();
        if let Some(said) = self.broker.try_launch() {
            assert!(said.contains(&path.display().to_string()), "{what}: {said}");
            if file.ends_with("node.toml") {
                assert!(said.contains("restore") || said.contains("newer"), "{what}: {said}");
                return;
            }
            assert!(said.contains("repair --dry-run") || said.contains("newer"), "{what}: {said}");
            let (code, told) = repair(&self.broker, true);
            assert_eq!(code, Some(1), "{what}: {told}");
            if told.contains("newer Corelog") {
                return;
            }
            let (code, mended) = repair(&self.broker, false);
            assert_eq!(code, Some(0), "{what}: {mended}");
            assert_eq!(self.broker.try_launch(), None, "{what}: {told}");
            let (served, failed) = read_all(&self.broker, &ends);
            assert_eq!(failed, [], "{what}: {told}");
            for (topic, partition, offset) in self.compare(&served, &failed, what) {
                let words =
                    format!("lost: topic {topic} partition {partition}, offsets {offset} to");
                assert!(told.contains(&words), "{what}: no `{words}` in {told}");
            }
        } else {
            let (served, failed) = read_all(&self.broker, &ends);
            let lost = self.compare(&served, &failed, what);
            assert_eq!(lost, [], "{what}");
            assert!(failed.len() <= 1, "{what}: {failed:?} for one byte");
            let kind = file.extension().unwrap_or_default();
            let is_cold = kind == "log" || (kind == "pack" && !failed.is_empty());
            let is_told = || self.broker.log()[before..].contains(&path.display().to_string());
            if is_cold || !failed.is_empty() {
                await_that(&format!("{what} is told"), is_told);
            }
        }
        self.broker.assert_alive();
        stop(&mut self.broker);
        assert!(!self.broker.log()[before..].contains("panic"), "{what}: {}", self.broker.log());
    }
}

/// Where batches begin, from the beginning of the file on.
fn batches(bytes: &[u8]) -> Vec<u64> {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(header) = bytes.get(at..at + 61).filter(|header| header[16] == 2) {
        found.push(at as u64);
        let length = i32::from_be_bytes(header[8..12].try_into().expect("four bytes"));
        at += 12 + usize::try_from(length).expect("positive");
    }
    found
}

fn from_environment(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

#[test]
fn a_byte_that_flips_anywhere_is_told_and_costs_no_other_record() {
    let mut node = Node::new();
    let first = from_environment("FIRST_FLIP", 0);
    for number in first..first + from_environment("FLIPS", FLIPS) {
        let mut dice = Dice(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        dice.below(2);
        let (file, at) = node.place(&mut dice);
        let bit = 1_u8 << dice.below(8);
        let what = format!("flip {number}: bit {bit:#x} of byte {at} of {}", file.display());
        println!("{what}");
        let path = node.broker.data().join(&file);
        let open = fs::File::options().read(true).write(true).open(&path).expect("a file");
        let mut byte = [0];
        open.read_exact_at(&mut byte, at).expect("readable");
        open.write_all_at(&[byte[0] ^ bit], at).expect("writable");
        drop(open);
        node.run(&file, &what);
        node.restore();
    }
}
