//! Damage to what no checksum covers in a compacted topic, where offsets are left out: wrong offsets
//! and leader epochs are told, and served as they were written.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use corelog::wire::records::{BatchBuilder, Codec, NewRecord};

use crate::asks::batches_of;
use crate::damage::{FOREVER, KAFKA_STORAGE_ERROR, SMALL, mend, repair, stop};
use crate::flips::read;
use crate::frames::{Peer, produce, produced};
use crate::segments::{await_that, create, segment_files, write};
use crate::world::{Broker, corelog, fresh};

const RECORDS: i64 = 3000;
const VALUE_BYTES: usize = 2500;
/// Bytes that lie between two marks, at least.
const STRETCH: u64 = 64 << 10;

/// A batch as it is served: its first offset, the one after its last, and its bytes.
type Served = (i64, i64, Vec<u8>);

/// A stopped broker whose topic is compacted, one of its compacted files, and what it serves.
struct Compacted {
    broker: Broker,
    topic: String,
    file: PathBuf,
    good: Vec<u8>,
    served: Vec<Served>,
}

impl Compacted {
    fn new() -> Compacted {
        let cleaner: &[(&str, &str)] = &[("log.cleaner.backoff.ms", "50")];
        let mut broker = Broker::start(&[SMALL, cleaner].concat());
        let (topic, filler) = (fresh("compacted"), fresh("filler"));
        let mut peer = Peer::connect(broker.address());
        let settings = [
            ("cleanup.policy", "compact"),
            ("segment.bytes", "3145728"),
            ("min.cleanable.dirty.ratio", "0.01"),
        ];
        create(&mut peer, &topic, &settings);
        create(&mut peer, &filler, &[FOREVER]);
        for offset in 0..RECORDS {
            let key = if offset % 5 == 0 { offset } else { offset % 10 };
            let value = vec![u8::try_from(offset % 251).expect("small"); VALUE_BYTES];
            let mut builder = BatchBuilder::new();
            let (key, value) = (format!("key-{key}"), Some(&value[..]));
            builder.push(&NewRecord { key: Some(key.as_bytes()), value, ..NewRecord::default() });
            let batch = builder.build(Codec::None).expect("nothing to compress");
            assert_eq!(produced(&peer.ask(&produce(&topic, &batch)), &topic), (0, offset));
            if offset == RECORDS / 2 {
                // Another leader epoch.
                broker.restart();
                peer = Peer::connect(broker.address());
            }
        }
        write(&mut peer, &filler, 0..60);
        let mut compacted =
            Compacted { broker, topic, file: PathBuf::new(), good: Vec::new(), served: Vec::new() };
        await_that("the topic is compacted", || compacted.bytes() < 4_500_000);
        // One that a stop cuts short leaves a file that nothing is read from.
        let mut before = Vec::new();
        await_that("there is nothing more to compact", || {
            std::thread::sleep(Duration::from_millis(300));
            let files = segment_files(&compacted.broker);
            let sizes = files.iter().map(|file| file.metadata().map_or(0, |file| file.len()));
            let now: Vec<(PathBuf, u64)> = files.iter().cloned().zip(sizes).collect();
            let rests = now == before;
            before = now;
            rests
        });
        stop(&mut compacted.broker);
        // The files stay as they are from here on.
        compacted.broker.set("log.cleaner.enable", "false");
        compacted.broker.launch();
        let (served, failed) = compacted.read_all();
        assert_eq!(failed, Vec::<i64>::new());
        compacted.served = served;
        stop(&mut compacted.broker);
        compacted.file = compacted.largest();
        compacted.good = fs::read(&compacted.file).expect("readable");
        assert!(compacted.good.len() as u64 > 6 * STRETCH, "{}", compacted.good.len());
        compacted
    }

    fn compacted_files(&self) -> Vec<PathBuf> {
        let mut files = segment_files(&self.broker);
        files.retain(|file| {
            let name = file.file_name().expect("a name").to_string_lossy();
            name.matches('.').count() == 2
        });
        files
    }

    /// Bytes of the compacted topic's segments, or as good as none of them is compacted.
    fn bytes(&self) -> u64 {
        let Some(folder) =
            self.compacted_files().first().and_then(|f| f.parent().map(Path::to_owned))
        else {
            return u64::MAX;
        };
        let files = segment_files(&self.broker);
        let files = files.iter().filter(|file| file.parent() == Some(&folder));
        files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
    }

    fn largest(&self) -> PathBuf {
        let files = self.compacted_files();
        files.into_iter().max_by_key(|file| file.metadata().expect("there").len()).expect("one")
    }

    /// All batches, and the offsets at which a read fails.
    fn read_all(&self) -> (Vec<Served>, Vec<i64>) {
        let mut peer = Peer::connect(self.broker.address());
        let (mut served, mut failed, mut next) = (Vec::new(), Vec::new(), 0);
        while next < RECORDS {
            let (error, found) = read(&mut peer, (&self.topic, 0), next);
            if error != 0 {
                assert_eq!(error, KAFKA_STORAGE_ERROR, "at {next}");
                failed.push(next);
                // On to the batch behind the one that should have come.
                let behind = self.served.iter().filter(|(_, end, _)| *end > next).nth(1);
                next = behind.map_or(RECORDS, |(base, ..)| *base);
                continue;
            }
            assert!(!found.is_empty(), "something comes at {next}");
            for (base, end, batch) in batches_of(&found) {
                assert!(end > next, "nothing comes twice");
                next = end;
                served.push((base, next, batch));
            }
        }
        (served, failed)
    }

    /// Where batches begin in the file, with their offsets.
    fn places(&self) -> Vec<(u64, i64)> {
        let (mut found, mut at) = (Vec::new(), 0);
        while let Some(header) = self.good.get(at..at + 61) {
            let base = i64::from_be_bytes(header[..8].try_into().expect("eight bytes"));
            let length = i32::from_be_bytes(header[8..12].try_into().expect("four bytes"));
            found.push((at as u64, base));
            at += 12 + usize::try_from(length).expect("positive");
        }
        found
    }

    fn flip(&self, at: u64, bit: u8) {
        let file = fs::File::options().read(true).write(true).open(&self.file).expect("a file");
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("readable");
        file.write_all_at(&[byte[0] ^ (1 << bit)], at).expect("writable");
    }

    fn name(&self) -> String {
        format!("topic {} partition 0", self.topic)
    }

    fn inspect(&self) -> (Option<i32>, String) {
        corelog(&["inspect", self.file.to_str().expect("UTF-8")])
    }

    /// The broker starts, and serves everything but what is lost.
    fn assert_serves(&mut self, lost: &[i64]) {
        self.broker.launch();
        let (served, failed) = self.read_all();
        assert_eq!(failed, lost);
        let is_left = |one: &&Served| !lost.contains(&one.0);
        let wanted: Vec<&Served> = self.served.iter().filter(is_left).collect();
        assert_eq!(served.len(), wanted.len());
        for (found, wanted) in served.iter().zip(wanted) {
            assert!(found == wanted, "{} to {} is {}", wanted.0, wanted.1, found.0);
        }
    }

    fn marks(&self) -> PathBuf {
        self.file.with_extension("marks")
    }
}

/// The batches in the middle of stretches far from one another.
fn apart(places: &[(u64, i64)]) -> Vec<(u64, i64)> {
    let mut found: Vec<(u64, i64)> = Vec::new();
    for (at, base) in &places[5..] {
        if found.last().is_none_or(|(last, _)| at - last > 3 * STRETCH / 2) {
            found.push((*at, *base));
        }
    }
    found
}

#[test]
fn wrong_offsets_and_epochs_in_a_compacted_file_are_told_and_served_right() {
    let mut compacted = Compacted::new();
    let places = apart(&compacted.places());
    // Bytes of an offset, lowest first, so that offsets still ascend; then of a leader epoch.
    let flips = [(7, 0), (7, 1), (15, 0), (6, 7), (0, 7), (12, 3)];
    let mut told = Vec::new();
    let mut words = Vec::new();
    let name = compacted.name();
    for ((at, bit), (place, base)) in flips.into_iter().zip(&places) {
        compacted.flip(place + at, bit);
        let next = base + 1;
        words.push(format!("nothing is lost: {name}, offsets {base} to before {next}, get the r"));
        told.push(match at {
            8.. => format!("the leader epoch of offsets {base} to before {next} of {name}"),
            _ => format!("it holds offsets {base} to before {next} of {name}"),
        });
    }
    assert_eq!(told.len(), flips.len(), "{places:?}");
    let (code, said) = compacted.inspect();
    assert!(code == Some(1) && said.matches("DAMAGED").count() == 4, "{said}");
    compacted.assert_serves(&[]);
    for words in &told {
        compacted.broker.await_log(words);
        let place = compacted.broker.log().matches(words).count();
        assert_eq!(place, 1, "told once: {}", compacted.broker.log());
    }
    assert!(compacted.broker.log().contains(&compacted.file.display().to_string()));
    stop(&mut compacted.broker);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    mend(&compacted.broker, &words);
    compacted.assert_serves(&[]);
    assert!(!compacted.file.exists(), "there is another one in its place");
    stop(&mut compacted.broker);
    // That one is vouched for as well.
    compacted.file = compacted.largest();
    compacted.flip(places[2].0 + 7, 0);
    compacted.assert_serves(&[]);
    compacted.broker.await_log(&format!("it holds offsets {} to before", places[2].1));
}

#[test]
fn any_byte_of_a_header_in_a_compacted_file_may_flip() {
    let mut compacted = Compacted::new();
    let places = compacted.places();
    let mut state = 7_u64;
    let mut dice = |most: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        usize::try_from((state >> 33) % most as u64).expect("small")
    };
    for _ in 0..8 {
        let (place, base) = places[dice(places.len())];
        let at = dice(61) as u64;
        let bit = u8::try_from(dice(8)).expect("small");
        println!("bit {bit} of byte {at} of the batch at {base}");
        compacted.flip(place + at, bit);
        let is_covered = !(0..8).contains(&at) && !(12..16).contains(&at);
        let lost = if is_covered { vec![base] } else { Vec::new() };
        // The first read that fails is the one that looks for it: it may be in the gap before it.
        let before = compacted.served.iter().take_while(|one| one.0 < base).last();
        let lost: Vec<i64> = lost.iter().map(|_| before.map_or(0, |one| one.1)).collect();
        let log = compacted.broker.log().len();
        compacted.broker.launch();
        let (served, failed) = compacted.read_all();
        assert_eq!(failed, lost, "byte {at} of {base}");
        let wanted = compacted.served.iter().filter(|one| !(is_covered && one.0 == base));
        assert!(served.iter().eq(wanted), "byte {at} of {base}");
        let file = compacted.file.display().to_string();
        await_that("it is told", || compacted.broker.log()[log..].contains(&file));
        stop(&mut compacted.broker);
        fs::write(&compacted.file, &compacted.good).expect("writable");
    }
}

#[test]
fn several_wrong_offsets_close_together_are_refused_and_given_up() {
    let mut compacted = Compacted::new();
    let places = compacted.places();
    compacted.flip(places[2].0 + 7, 0);
    compacted.flip(places[4].0 + 7, 1);
    compacted.broker.launch();
    let (served, failed) = compacted.read_all();
    assert!(failed.len() > 5 && (failed.len() as u64) < STRETCH / 1000, "{failed:?}");
    assert!(failed[0] <= places[0].1);
    let last = *failed.last().expect("several");
    assert!(served.iter().all(|one| compacted.served.contains(one)), "nothing else is given");
    assert_eq!(served.len() + failed.len(), compacted.served.len());
    let file = compacted.file.display().to_string();
    let told = format!("{file} is damaged at byte 0");
    compacted.broker.await_log(&told);
    assert!(compacted.broker.log().contains("several record batches from here on have wrong"));
    stop(&mut compacted.broker);
    let (code, said) = compacted.inspect();
    assert!(code == Some(1) && said.contains("have wrong offsets"), "{said}");
    let base = compacted.file.file_name().expect("a name").to_string_lossy();
    let base: i64 = base.split('.').next().expect("digits").parse().expect("an offset");
    let lost = format!("lost: {}, offsets {base} to before", compacted.name());
    mend(&compacted.broker, &[&lost]);
    compacted.broker.launch();
    let (found, failed) = compacted.read_all();
    assert_eq!(failed, Vec::<i64>::new());
    // A batch without records stands for them.
    let left = |all: &[Served]| -> Vec<Served> {
        all.iter().filter(|one| one.0 > last).cloned().collect()
    };
    assert!(left(&found) == left(&compacted.served));
}

#[test]
fn lost_marks_of_a_compacted_file_are_told_and_made_anew_by_a_repair() {
    let mut compacted = Compacted::new();
    let marks = compacted.marks();
    let good = fs::read(&marks).expect("there");
    let name = marks.display();
    let newer = {
        let mut newer = good.clone();
        newer[4] = 9;
        newer
    };
    let damaged = {
        let mut damaged = good.clone();
        damaged[40] ^= 4;
        damaged
    };
    for (bytes, why) in [
        (None, "it is missing"),
        (Some(damaged), "it is damaged"),
        (Some(newer), "it has format 9, this program knows up to 2"),
        (Some(good[..100].to_vec()), "it is damaged"),
    ] {
        match bytes {
            Some(bytes) => fs::write(&marks, bytes).expect("writable"),
            None => fs::remove_file(&marks).expect("there"),
        }
        let log = compacted.broker.log().len();
        compacted.assert_serves(&[]);
        let told = format!("{name}: {why}");
        await_that("it is told", || compacted.broker.log()[log..].contains(&told));
        std::thread::sleep(std::time::Duration::from_millis(500));
        let count = compacted.broker.log()[log..].matches(&told).count();
        assert_eq!(count, 1, "{}", compacted.broker.log());
        stop(&mut compacted.broker);
        let (_, said) = compacted.inspect();
        assert!(said.contains(&told), "{said}");
        let (code, said) = repair(&compacted.broker, true);
        assert!(code == Some(1) && said.contains(&told), "{said}");
        assert!(said.contains("nothing is lost: it is made anew"), "{said}");
        let (code, said) = repair(&compacted.broker, false);
        assert_eq!(code, Some(0), "{said}");
        let anew = fs::read(&marks).expect("there");
        assert!(good.starts_with(&anew) || anew == good, "the same as before");
        let (code, said) = repair(&compacted.broker, true);
        assert_eq!(code, Some(0), "{said}");
    }
    // And it does its work.
    let (place, base) = compacted.places()[3];
    compacted.flip(place + 7, 0);
    compacted.assert_serves(&[]);
    compacted.broker.await_log(&format!("it holds offsets {base} to before {}", base + 1));
}

/// What an older version has left: marks without seals.
#[test]
fn a_compacted_file_without_seals_is_served_as_before() {
    let mut compacted = Compacted::new();
    let marks = compacted.marks();
    let good = fs::read(&marks).expect("there");
    let number = |at: usize| u32::from_le_bytes(good[at..at + 4].try_into().expect("four bytes"));
    let mut old = good[..24].to_vec();
    old[4] = 1;
    let count = usize::try_from(number(12)).expect("few");
    (0..count).for_each(|index| old.extend_from_slice(&good[24 + index * 40..][..24]));
    let crc = crc32fast::hash(&old[12..]);
    old[8..12].copy_from_slice(&crc.to_le_bytes());
    old.resize(old.len().next_multiple_of(4096), 0);
    fs::write(&marks, old).expect("writable");
    let log = compacted.broker.log().len();
    compacted.assert_serves(&[]);
    stop(&mut compacted.broker);
    assert!(!compacted.broker.log()[log..].contains("marks"), "{}", compacted.broker.log());
    let (code, said) = repair(&compacted.broker, true);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = compacted.inspect();
    assert_eq!(code, Some(0), "{said}");
}
