//! What no longer fits the journal: in segments that Kafka's own tool reads, deleted by age, size
//! and request, there again after a stop and after a kill, and gone with its topic.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::asks::{fetched, poll};
use crate::damaged_packs::{create_with, packs, readable, write_each};
use crate::frames::{Batch, Bytes, Peer, produce, produced, request};
use crate::full::{delete_records, delete_topic, read_all};
use crate::stored::alter;
use crate::tools::tool;
use crate::world::{Broker, fresh};

const SOON: Duration = Duration::from_secs(20);
const OUT_OF_RANGE: i16 = 1;
/// One core, and the smallest journal.
const SMALL_JOURNAL: &[(&str, &str)] = &[
    ("cores", "0"),
    ("shards", "1"),
    ("journal.bytes.max", "67108864"),
    ("log.retention.check.interval.ms", "100"),
];

/// One core whose journal has four files of 32 MiB, and of whose memory little is for recent groups.
const FOUR_FILES: &[(&str, &str)] = &[
    ("cores", "0"),
    ("shards", "1"),
    ("journal.bytes.max", "134217728"),
    ("core.memory.bytes", "67108864"),
    ("log.retention.check.interval.ms", "100"),
];

/// The segment files of all topics, sorted.
pub fn segment_files(broker: &Broker) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![broker.data().join("core-0/segments")];
    while let Some(folder) = left.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|extension| extension == "log") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

pub fn await_that(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < until, "it never came about that {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A topic of one partition with these settings.
pub fn create(peer: &mut Peer, topic: &str, settings: &[(&str, &str)]) {
    let count = i32::try_from(settings.len()).expect("few");
    let mut body = Bytes::default().i32(1).string(topic).i32(1).i16(1).i32(0).i32(count);
    for (name, value) in settings {
        body = body.string(name).string(value);
    }
    let answer = peer.ask(&request(19, 2, body.i32(10_000).i8(0)));
    let at = 4 + 4 + 2 + topic.len();
    assert_eq!(answer[at..at + 2], [0, 0], "{topic} is made");
}

/// Writes batches of one record of a million bytes.
pub fn write(peer: &mut Peer, topic: &str, offsets: std::ops::Range<i64>) {
    let large = Batch { value_bytes: 1_000_000, ..Batch::default() }.encode();
    let request = produce(topic, &large);
    for offset in offsets {
        assert_eq!(produced(&peer.ask(&request), topic), (0, offset));
    }
}

/// The first offset at or after a time: ListOffsets of version 1.
pub fn offset_at(peer: &mut Peer, topic: &str, timestamp: i64) -> i64 {
    let body = Bytes::default().i32(-1).i32(1).string(topic).i32(1).i32(0).i64(timestamp);
    let answer = peer.ask(&request(2, 1, body));
    i64::from_be_bytes(answer[answer.len() - 8..].try_into().expect("eight bytes"))
}

#[test]
fn what_does_not_fit_the_journal_is_kept_in_segments() {
    let mut broker = Broker::start(SMALL_JOURNAL);
    let (topic, other) = (fresh("kept"), fresh("small"));
    let mut peer = Peer::connect(broker.address());
    let forever = ("retention.ms", "-1");
    create(&mut peer, &topic, &[forever, ("segment.bytes", "16777216")]);
    create(&mut peer, &other, &[forever]);
    let one = Batch::default().encode();
    assert_eq!(produced(&peer.ask(&produce(&other, &one)), &other), (0, 0));
    write(&mut peer, &topic, 0..150);
    assert_eq!(read_all(&mut peer, &topic, 0), 150);
    assert!(segment_files(&broker).len() > 3, "{:?}", segment_files(&broker));
    assert_eq!(offset_at(&mut peer, &topic, 0), 0);
    assert_eq!(read_all(&mut peer, &other, 0), 1, "a small partition is carried on");

    broker.restart();
    let mut peer = Peer::connect(broker.address());
    assert_eq!(read_all(&mut peer, &topic, 0), 150);
    assert_eq!(read_all(&mut peer, &other, 0), 1);
    write(&mut peer, &topic, 150..200);
    broker.kill();
    broker.launch();
    let mut peer = Peer::connect(broker.address());
    assert_eq!(read_all(&mut peer, &topic, 0), 200);
    assert_eq!(read_all(&mut peer, &other, 0), 1);

    let before = segment_files(&broker).len();
    assert_eq!(delete_records(&mut peer, &topic, 100), (100, 0));
    assert_eq!(fetched(&peer.ask(&poll(&topic, 99, 0, 0)))[0].error, OUT_OF_RANGE);
    assert_eq!(read_all(&mut peer, &topic, 100), 200);
    await_that("the files are gone", || segment_files(&broker).len() + 4 < before);
    broker.restart();
    let mut peer = Peer::connect(broker.address());
    assert_eq!(read_all(&mut peer, &topic, 100), 200);

    assert_eq!(delete_topic(&mut peer, &topic), 0);
    await_that("the topic's files are gone", || segment_files(&broker).is_empty());
    assert_eq!(read_all(&mut peer, &other, 0), 1);
}

/// Records begin the second of the four files when they are drained for want of room: what is in a
/// segment before that came there from memory.
#[test]
fn what_comes_fast_is_in_segments_before_the_journal_wants_room() {
    let mut broker = Broker::start(FOUR_FILES);
    let topic = fresh("fast");
    let mut peer = Peer::connect(broker.address());
    create(&mut peer, &topic, &[("retention.ms", "-1")]);
    let began = Instant::now();
    write(&mut peer, &topic, 0..26);
    let is_fast = began.elapsed() < Duration::from_secs(5);
    if is_fast {
        await_that("a segment is there", || !segment_files(&broker).is_empty());
    }
    let bytes = |path: &PathBuf| path.metadata().map_or(0, |file| file.len());
    let most = segment_files(&broker).iter().map(bytes).max().unwrap_or(0);
    // The memory holds eleven such groups or more.
    assert!(most < 22_000_000, "the newer half of memory stays: {most}");
    assert_eq!(read_all(&mut peer, &topic, 0), 26);
    broker.kill();
    broker.launch();
    let mut peer = Peer::connect(broker.address());
    assert_eq!(read_all(&mut peer, &topic, 0), 26);
    write(&mut peer, &topic, 26..90);
    assert_eq!(read_all(&mut peer, &topic, 0), 90);
    broker.restart();
    let mut peer = Peer::connect(broker.address());
    assert_eq!(read_all(&mut peer, &topic, 0), 90);
}

/// Nothing but draining early makes a pack of a journal that is nearly empty.
#[test]
fn what_comes_fast_for_many_partitions_is_in_a_pack_before_the_journal_wants_room() {
    const PARTITIONS: i32 = 64;
    let mut broker = Broker::start(FOUR_FILES);
    let topic = fresh("fast");
    let mut peer = Peer::connect(broker.address());
    create_with(&mut peer, &topic, PARTITIONS);
    let began = Instant::now();
    (0..8).for_each(|offset| write_each(&mut peer, &topic, PARTITIONS, 30_000, offset));
    // No 2 MiB of it took longer than a journal may take that fills fast.
    if began.elapsed() < Duration::from_millis(600) {
        await_that("a pack is there", || !packs(&broker).is_empty());
        assert!(segment_files(&broker).is_empty(), "none has a file of its own");
    }
    let assert_all = |peer: &mut Peer, end: i64| {
        for partition in 0..PARTITIONS {
            let all = ((0..end).collect(), Vec::new());
            assert_eq!(readable(peer, &topic, partition, end), all, "of {partition}");
        }
    };
    assert_all(&mut peer, 8);
    broker.kill();
    broker.launch();
    let mut peer = Peer::connect(broker.address());
    assert_all(&mut peer, 8);
    (8..40).for_each(|offset| write_each(&mut peer, &topic, PARTITIONS, 30_000, offset));
    assert_all(&mut peer, 40);
    broker.restart();
    assert_all(&mut Peer::connect(broker.address()), 40);
}

/// Such records were never deleted by age, nor was anything behind them.
#[test]
fn records_without_timestamps_are_as_old_as_their_segment() {
    let broker = Broker::start(SMALL_JOURNAL);
    let topic = fresh("timeless");
    let mut peer = Peer::connect(broker.address());
    let settings = [("segment.bytes", "4194304"), ("segment.ms", "100"), ("retention.ms", "-1")];
    create(&mut peer, &topic, &settings);
    let timeless =
        Batch { value_bytes: 1_000_000, timestamp: -1, max_timestamp: -1, ..<_>::default() };
    let request = produce(&topic, &timeless.encode());
    for offset in 0..60 {
        assert_eq!(produced(&peer.ask(&request), &topic), (0, offset));
    }
    await_that("there are segments", || segment_files(&broker).len() > 3);
    assert_eq!(offset_at(&mut peer, &topic, -2), 0);
    alter(&broker, &topic, "retention.ms", "100");
    await_that("the segments go", || segment_files(&broker).is_empty());
    let start = offset_at(&mut peer, &topic, -2);
    assert!((4..60).contains(&start), "what is in the journal stays: {start}");
}

#[test]
fn a_topic_keeps_as_much_as_its_retention_says() {
    let mut broker = Broker::start(SMALL_JOURNAL);
    let (by_size, by_age) = (fresh("size"), fresh("age"));
    let mut peer = Peer::connect(broker.address());
    let small = ("segment.bytes", "8388608");
    let size = [("retention.ms", "-1"), ("retention.bytes", "20000000"), small];
    create(&mut peer, &by_size, &size);
    create(&mut peer, &by_age, &[("retention.ms", "-1"), small]);
    write(&mut peer, &by_size, 0..60);
    write(&mut peer, &by_age, 0..60);
    let starts = |broker: &Broker, topic: &str| {
        let mut peer = Peer::connect(broker.address());
        offset_at(&mut peer, topic, -2)
    };
    // The newest twenty million bytes stay, and at most one segment before them.
    await_that("old records are deleted", || (32..=40).contains(&starts(&broker, &by_size)));
    assert_eq!(starts(&broker, &by_age), 0);
    // All of these records say that they are years old.
    let body = Bytes::default().i32(1).i8(2).string(&by_age).i32(1).string("retention.ms");
    let answer = peer.ask(&request(33, 0, body.string("3600000").i8(0)));
    assert_eq!(answer[8..10], [0, 0], "AlterConfigs");
    await_that("all are deleted", || starts(&broker, &by_age) == 60);
    let start = starts(&broker, &by_size);
    broker.restart();
    assert_eq!(starts(&broker, &by_age), 60);
    assert_eq!(starts(&broker, &by_size), start);
    let mut peer = Peer::connect(broker.address());
    assert_eq!(read_all(&mut peer, &by_size, start), 60);
    write(&mut peer, &by_age, 60..61);
}

#[test]
fn kafkas_own_tool_reads_the_segments() {
    let mut broker = Broker::start(SMALL_JOURNAL);
    let topic = fresh("dumped");
    let mut peer = Peer::connect(broker.address());
    create(&mut peer, &topic, &[("retention.ms", "-1")]);
    write(&mut peer, &topic, 0..100);
    broker.signal("TERM");
    assert!(broker.ended().success());
    let files = segment_files(&broker);
    assert!(!files.is_empty());
    for file in files {
        let file = file.to_str().expect("UTF-8");
        let Some(told) =
            tool("org.apache.kafka.tools.DumpLogSegments", &["--files", file, "--deep-iteration"])
        else {
            return;
        };
        assert!(told.contains("baseOffset: 0 lastOffset: 0 count: 1"), "{told}");
        assert!(!told.contains("isvalid: false") && !told.contains("invalid bytes"), "{told}");
    }
}
