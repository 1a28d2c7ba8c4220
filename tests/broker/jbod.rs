//! Several data directories: each core has one; one that fails takes its own partitions with it and
//! no others, and what is in it is there again with the disk.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::asks::{Ask, Walk, fetched, produce_many, written};
use crate::disk::Disk;
use crate::frames::{Bytes, Came, Peer, request};
use crate::full::read_all;
use crate::librdkafka::create_topic;
use crate::segments::await_that;
use crate::shards::{GROUPS, PARTITIONS, all_are_read, assert_committed, share};
use crate::world::{Broker, corelog, end_of, fresh};

const LEADER_NOT_AVAILABLE: i16 = 5;
const COORDINATOR_NOT_AVAILABLE: i16 = 15;
const KAFKA_STORAGE_ERROR: i16 = 56;
const TWO_SHARDS: [(&str, &str); 3] =
    [("cores", "0"), ("shards", "2"), ("journal.file.bytes", "4194304")];

/// What DescribeLogDirs of version 4 says of a directory.
#[derive(Debug)]
struct LogDir {
    error: i16,
    path: String,
    partitions: BTreeSet<(String, i32)>,
    total: i64,
    usable: i64,
}

/// A number of variable length (KIP-482).
fn varint(walk: &mut Walk<'_>) -> usize {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = usize::from(walk.skip(1)[0]);
        value |= (byte & 127) << shift;
        if byte < 128 {
            return value;
        }
    }
    unreachable!("the loop has no end")
}

fn compact_string(walk: &mut Walk<'_>) -> String {
    let length = varint(walk) - 1;
    String::from_utf8(walk.skip(length).to_vec()).expect("UTF-8")
}

fn log_dirs(peer: &mut Peer) -> Vec<LogDir> {
    // No tags in the header, all topics, no tags.
    let answer = peer.ask(&request(35, 4, Bytes::default().i8(0).i8(0).i8(0)));
    let mut walk = Walk(&answer);
    walk.skip(1 + 4);
    assert_eq!(walk.i16(), 0, "the error of the whole");
    let mut found = Vec::new();
    for _ in 1..varint(&mut walk) {
        let (error, path) = (walk.i16(), compact_string(&mut walk));
        let mut partitions = BTreeSet::new();
        for _ in 1..varint(&mut walk) {
            let topic = compact_string(&mut walk);
            for _ in 1..varint(&mut walk) {
                partitions.insert((topic.clone(), walk.i32()));
                walk.skip(8 + 8 + 1 + 1);
            }
            walk.skip(1);
        }
        let (total, usable) = (walk.i64(), walk.i64());
        walk.skip(1);
        found.push(LogDir { error, path, partitions, total, usable });
    }
    found
}

/// Metadata of version 5: the error code, the leader and the number of offline replicas of each
/// partition.
fn leaders(peer: &mut Peer, topic: &str) -> Vec<(i16, i32, i32)> {
    let answer = peer.ask(&request(3, 5, Bytes::default().i32(1).string(topic).i8(0)));
    let mut walk = Walk(&answer);
    walk.i32();
    for _ in 0..walk.i32() {
        walk.i32();
        walk.string();
        walk.i32();
        walk.string();
    }
    walk.string();
    walk.i32();
    assert_eq!((walk.i32(), walk.i16()), (1, 0));
    walk.string();
    walk.skip(1);
    let mut found = Vec::new();
    for _ in 0..walk.i32() {
        let (error, index, leader) = (walk.i16(), walk.i32(), walk.i32());
        let [replicas, in_sync, offline] = [(); 3].map(|()| {
            let count = walk.i32();
            walk.skip(count as usize * 4);
            count
        });
        assert_eq!((replicas, in_sync), (1, 1));
        found.push((index, (error, leader, offline)));
    }
    found.sort_unstable();
    found.into_iter().map(|(_, told)| told).collect()
}

/// ListOffsets of version 1: the error code of the end of a partition.
fn end_code(peer: &mut Peer, topic: &str, partition: i32) -> i16 {
    let body = Bytes::default().i32(-1).i32(1).string(topic).i32(1).i32(partition).i64(-1);
    let answer = peer.ask(&request(2, 1, body));
    let mut walk = Walk(&answer);
    walk.i32();
    walk.string();
    walk.skip(8);
    walk.i16()
}

/// The error code of FindCoordinator, version 0.
fn coordinator_code(peer: &mut Peer, number: usize) -> i16 {
    let group = format!("spread-group-{number}");
    Walk(&peer.ask(&request(10, 0, Bytes::default().string(&group)))).i16()
}

/// Writes a record to every partition of a topic; which of them refused it.
fn write_all(peer: &mut Peer, topic: &str) -> BTreeSet<i32> {
    let parts: Vec<_> = (0..PARTITIONS).map(|partition| (partition, 100)).collect();
    let outcome = written(&peer.ask(&produce_many(topic, &parts)));
    assert_eq!(outcome.len(), parts.len());
    let refused = outcome.iter().filter(|(_, code, _)| *code != 0);
    refused
        .map(|(partition, code, _)| {
            assert_eq!(*code, KAFKA_STORAGE_ERROR, "partition {partition}");
            *partition
        })
        .collect()
}

/// What is told of the partitions on the second directory while it cannot be used, and what is
/// still done on the first.
fn assert_half_is_served(broker: &Broker, topic: &str) -> BTreeSet<i32> {
    let mut peer = Peer::connect(broker.address());
    let offline = write_all(&mut peer, topic);
    assert_eq!(offline.len(), usize::try_from(PARTITIONS / 2).expect("few"), "{offline:?}");
    assert!(write_all(&mut peer, topic) == offline, "the others go on");
    let online: Vec<i32> = (0..PARTITIONS).filter(|index| !offline.contains(index)).collect();
    all_are_read(&mut peer, topic, &online);
    for (index, told) in (0..).zip(leaders(&mut peer, topic)) {
        let wanted =
            if offline.contains(&index) { (LEADER_NOT_AVAILABLE, -1, 1) } else { (0, 1, 0) };
        assert_eq!(told, wanted, "partition {index}");
        let code = if offline.contains(&index) { KAFKA_STORAGE_ERROR } else { 0 };
        assert_eq!(end_code(&mut peer, topic, index), code, "partition {index}");
    }
    let parts: Vec<_> = offline.iter().map(|index| (*index, 0, 1 << 20)).collect();
    let ask = Ask { topic, parts: &parts, wait_ms: 60_000, bytes_min: 1, bytes_max: 50 << 20 };
    let read = fetched(&peer.ask(&ask.encode()));
    assert!(read.iter().all(|part| part.error == KAFKA_STORAGE_ERROR && part.bytes == 0));
    let [first, second] = &log_dirs(&mut peer)[..] else { panic!("two directories") };
    assert_eq!((first.error, second.error), (0, KAFKA_STORAGE_ERROR));
    assert!(first.path.ends_with("/data") && first.path.starts_with('/'), "{first:?}");
    let of_topic = |found: &LogDir| {
        let own = found.partitions.iter().filter(|(name, _)| name == topic);
        own.map(|(_, index)| *index).collect::<BTreeSet<i32>>()
    };
    assert_eq!(of_topic(first), online.iter().copied().collect());
    assert_eq!(of_topic(second), offline);
    assert!(first.total > 100 << 20 && (1..first.total).contains(&first.usable), "{first:?}");
    assert_eq!((second.total, second.usable), (-1, -1));
    // Groups: either all is well, or there is no coordinator for now.
    let codes: Vec<i16> = (0..GROUPS).map(|number| coordinator_code(&mut peer, number)).collect();
    for (number, code) in codes.iter().enumerate() {
        match *code {
            0 => assert_committed(&mut peer, topic, number),
            code => assert_eq!(code, COORDINATOR_NOT_AVAILABLE),
        }
    }
    assert!(codes.contains(&0) && codes.contains(&COORDINATOR_NOT_AVAILABLE), "{codes:?}");
    // Our own client needs no leader but that of what it asks for.
    let bootstrap = broker.bootstrap();
    let (code, said) = corelog(&["topic", "describe", topic, "--bootstrap", &bootstrap]);
    assert_eq!((code, said.matches(" none ").count()), (Some(0), offline.len()), "{said}");
    let one = online[0].to_string();
    let read = ["consume", "-t", topic, "-p", &one, "-o", "beginning", "-e"];
    let (code, said) = corelog(&[&read[..], &["--bootstrap", &bootstrap]].concat());
    assert!(code == Some(0) && said.lines().count() >= 5, "{said}");
    // A new topic goes where it is served.
    for _ in 0..3 {
        create_topic(&broker.bootstrap(), &fresh("new"), 1);
    }
    offline
}

#[test]
fn a_failed_directory_takes_only_its_own_partitions_offline() {
    let (Some(one), Some(two)) = (Disk::of(200, 4096), Disk::of(200, 4096)) else { return };
    let directories = [one.path().join("data"), two.path().join("data")];
    let mut broker = Broker::start_across(&directories, &TWO_SHARDS);
    for (core, directory) in directories.iter().enumerate() {
        let place = directory.display();
        broker.await_log(&format!("data in {place} (ext4 on /dev/loop"));
        broker.await_log(&format!("direct writes, core {core}\n"));
    }
    let topic = fresh("spread");
    create_topic(&broker.bootstrap(), &topic, PARTITIONS);
    let mut peer = Peer::connect(broker.address());
    for _ in 0..5 {
        assert_eq!(write_all(&mut peer, &topic), BTreeSet::new());
    }
    (0..GROUPS).for_each(|number| drop(share(&mut peer, &topic, number)));
    // Waits at the end of all partitions.
    let mut waiting = Peer::connect(broker.address());
    let ends: Vec<_> = (0..PARTITIONS).map(|index| (index, 5, 1 << 20)).collect();
    let ask = Ask {
        topic: &topic,
        parts: &ends,
        wait_ms: 60_000,
        bytes_min: 9 << 20,
        bytes_max: 9 << 20,
    };
    waiting.send(&ask.encode());
    assert_eq!(waiting.receive(Duration::from_millis(50)), Came::Nothing);

    two.fail();
    let offline = assert_half_is_served(&broker, &topic);
    let Came::Answer(answer) = waiting.receive(Duration::from_secs(20)) else {
        panic!("a fetch sleeps on although its partitions are offline")
    };
    let told = fetched(&answer[4..]).into_iter().filter(|part| part.error == KAFKA_STORAGE_ERROR);
    assert_eq!(told.map(|part| part.partition).collect::<BTreeSet<_>>(), offline);
    let place = directories[1].display();
    broker.await_log(&format!("the data directory {place} has failed (the journal's write failed"));
    broker.await_log("the partitions of core 1 are offline");

    // Still failing at the next start.
    broker.restart();
    broker.await_log(&format!("the data directory {place} is not used: cannot lock"));
    assert_eq!(assert_half_is_served(&broker, &topic), offline);
    broker.kill();

    // Away altogether: the empty folder that it was mounted on is not taken for it.
    two.unmount();
    broker.launch();
    broker.await_log(&format!("the data directory {place} is not used: it is empty"));
    assert_eq!(assert_half_is_served(&broker, &topic), offline);
    assert!(!directories[1].join("core-1").exists(), "nothing is put there");
    broker.kill();

    two.mount_again();
    broker.launch();
    let mut peer = Peer::connect(broker.address());
    let order: Vec<i32> = (0..PARTITIONS).collect();
    all_are_read(&mut peer, &topic, &order);
    (0..GROUPS).for_each(|number| assert_committed(&mut peer, &topic, number));
    assert_eq!(write_all(&mut peer, &topic), BTreeSet::new());
    assert!(log_dirs(&mut peer).iter().all(|found| found.error == 0 && found.usable > 0));
    broker.restart();
    all_are_read(&mut Peer::connect(broker.address()), &topic, &order);
    broker.kill();
}

/// A disk that answers nothing, not even with an error, counts as failed after a time.
#[test]
fn a_directory_whose_disk_hangs_is_taken_out_of_use() {
    let (Some(one), Some(two)) = (Disk::of(200, 4096), Disk::of(200, 4096)) else { return };
    let directories = [one.path().join("data"), two.path().join("data")];
    let settings = [&TWO_SHARDS[..], &[("storage.hang.timeout.ms", "1000")]].concat();
    let mut broker = Broker::start_across(&directories, &settings);
    let topic = fresh("spread");
    create_topic(&broker.bootstrap(), &topic, PARTITIONS);
    let mut peer = Peer::connect(broker.address());
    (0..5).for_each(|_| assert_eq!(write_all(&mut peer, &topic), BTreeSet::new()));
    (0..GROUPS).for_each(|number| drop(share(&mut peer, &topic, number)));
    let hanging = two.hang();
    // The first write waits as long as the disk is given, and is answered.
    let offline = write_all(&mut peer, &topic);
    let place = directories[1].display();
    broker.await_log(&format!("{place} has failed (its disk has not answered for 1s)"));
    assert_eq!(assert_half_is_served(&broker, &topic), offline);
    // The node waits for it no longer at its end; the kernel does, for what it was asked to write.
    broker.signal("TERM");
    await_that("core 0 has ended", || !threads(broker.pid()).contains("core-0"));
    drop(hanging);
    assert!(broker.ended().success());
    broker.launch();
    let mut peer = Peer::connect(broker.address());
    let order: Vec<i32> = (0..PARTITIONS).collect();
    all_are_read(&mut peer, &topic, &order);
    (0..GROUPS).for_each(|number| assert_committed(&mut peer, &topic, number));
    assert_eq!(write_all(&mut peer, &topic), BTreeSet::new());
    broker.kill();
}

/// The names of a process's threads.
fn threads(pid: u32) -> BTreeSet<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.map(|name| name.trim().to_string()).collect()
}

/// One that has no other directory says so, and goes on by itself.
#[test]
fn the_only_disk_may_hang_for_a_while() {
    let Some(disk) = Disk::of(200, 4096) else { return };
    let settings = [&TWO_SHARDS[..], &[("storage.hang.timeout.ms", "1000")]].concat();
    let mut broker = Broker::start_across(&[disk.path().join("data")], &settings);
    let topic = fresh("spread");
    create_topic(&broker.bootstrap(), &topic, PARTITIONS);
    let mut peer = Peer::connect(broker.address());
    assert_eq!(write_all(&mut peer, &topic), BTreeSet::new());
    let hanging = disk.hang();
    let parts: Vec<_> = (0..PARTITIONS).map(|partition| (partition, 100)).collect();
    peer.send(&produce_many(&topic, &parts));
    broker.await_log("its disk has not answered for 1s");
    assert_eq!(peer.receive(Duration::from_millis(500)), Came::Nothing);
    drop(hanging);
    let Came::Answer(answer) = peer.receive(Duration::from_secs(20)) else {
        panic!("what waited for the disk is not answered")
    };
    assert!(written(&answer[4..]).iter().all(|(_, code, _)| *code == 0));
    broker.await_log("answers again");
    broker.kill();
}

/// Nobody writes: reads alone find out, and one bad file does not.
#[test]
fn reads_find_out_that_a_disk_is_gone() {
    let (Some(one), Some(two)) = (Disk::of(200, 4096), Disk::of(200, 4096)) else { return };
    let directories = [one.path().join("data"), two.path().join("data")];
    let mut broker = Broker::start_across(&directories, &TWO_SHARDS);
    let topic = fresh("spread");
    create_topic(&broker.bootstrap(), &topic, PARTITIONS);
    let mut peer = Peer::connect(broker.address());
    (0..5).for_each(|_| assert_eq!(write_all(&mut peer, &topic), BTreeSet::new()));
    // What was written before the start is in no memory.
    broker.restart();
    let mut peer = Peer::connect(broker.address());
    two.fail();
    let parts: Vec<_> = (0..PARTITIONS).map(|index| (index, 0, 1 << 20)).collect();
    let ask = Ask { topic: &topic, parts: &parts, wait_ms: 0, bytes_min: 0, bytes_max: 50 << 20 };
    let read = fetched(&peer.ask(&ask.encode()));
    let failed = read.iter().filter(|part| part.error == KAFKA_STORAGE_ERROR).count();
    assert_eq!(failed, parts.len() / 2);
    broker.await_log("has failed (a read failed (");
    let told = leaders(&mut peer, &topic);
    let count = told.iter().filter(|(error, ..)| *error == LEADER_NOT_AVAILABLE).count();
    assert_eq!(count, parts.len() / 2);
    broker.kill();
}

/// The first directory holds the metadata: it is needed at start, and while the node runs the
/// others go on without it.
#[test]
fn the_first_directory_is_needed_at_start_only() {
    let (Some(one), Some(two)) = (Disk::of(200, 4096), Disk::of(200, 4096)) else { return };
    let directories = [one.path().join("data"), two.path().join("data")];
    let mut broker = Broker::start_across(&directories, &TWO_SHARDS);
    let topic = fresh("spread");
    create_topic(&broker.bootstrap(), &topic, PARTITIONS);
    let mut peer = Peer::connect(broker.address());
    assert_eq!(write_all(&mut peer, &topic), BTreeSet::new());
    one.fail();
    let offline = write_all(&mut peer, &topic);
    assert_eq!(offline.len(), usize::try_from(PARTITIONS / 2).expect("few"));
    assert_eq!(write_all(&mut peer, &topic), offline);
    broker.signal("TERM");
    assert!(broker.ended().success());
    let said = refusal(&broker);
    assert!(said.contains("may be the node's first, without which it cannot start"), "{said}");
    one.unmount();
    let said = refusal(&broker);
    assert!(said.contains("the one with node.toml, is not among those named"), "{said}");
    one.mount_again();
    broker.launch();
    assert_eq!(write_all(&mut Peer::connect(broker.address()), &topic), BTreeSet::new());
    broker.kill();
}

/// What a start says that is refused.
fn refusal(broker: &Broker) -> String {
    let log = tempfile::NamedTempFile::new().expect("a file");
    let file = || Stdio::from(log.reopen().expect("it is there"));
    let mut child = broker.command().stdout(file()).stderr(file()).spawn().expect("it starts");
    let status = end_of(&mut child).expect("it ends by itself");
    let said = fs::read_to_string(log.path()).expect("text");
    assert!(!status.success(), "{said}");
    said
}

fn folders(parent: &Path, names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(|name| parent.join(name)).collect()
}

#[test]
fn directories_are_known_by_what_is_in_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path();
    let mut broker = Broker::start_across(&folders(place, &["a", "b"]), &TWO_SHARDS);
    let topic = fresh("spread");
    create_topic(&broker.bootstrap(), &topic, PARTITIONS);
    let order: Vec<i32> = (0..PARTITIONS).collect();
    (0..5).for_each(|_| {
        assert_eq!(write_all(&mut Peer::connect(broker.address()), &topic), BTreeSet::new());
    });
    // In another order, and elsewhere.
    broker.set_directories(&folders(place, &["b", "a"]));
    broker.restart();
    all_are_read(&mut Peer::connect(broker.address()), &topic, &order);
    broker.signal("TERM");
    assert!(broker.ended().success());
    fs::rename(place.join("b"), place.join("c")).expect("renamed");
    broker.set_directories(&folders(place, &["a", "c"]));
    broker.launch();
    all_are_read(&mut Peer::connect(broker.address()), &topic, &order);
    // The move was noted: the new place is found by itself.
    let first = place.join("a").display().to_string();
    broker.signal("TERM");
    assert!(broker.ended().success());
    let (code, said) = corelog(&["repair", "--data-dir", &first, "--dry-run"]);
    assert!(code == Some(0) && said.contains("is damaged"), "{said}");

    let refused = |broker: &mut Broker, names: &[&str], words: &str| {
        broker.set_directories(&folders(place, names));
        let said = refusal(broker);
        assert!(said.contains(words), "{names:?}: {said}");
    };
    refused(&mut broker, &["a", "a"], "is named twice");
    refused(&mut broker, &["a", "c", "d"], "3 data directories are too many for 2 shards");
    refused(&mut broker, &["c"], "is not among those named");
    let mut other = Broker::start_across(&folders(place, &["e", "f"]), &TWO_SHARDS);
    refused(&mut broker, &["a", "f"], "belongs to a running Corelog");
    other.kill();
    refused(&mut broker, &["a", "f"], "belongs to another node");
    refused(&mut broker, &["a", "e"], "are the first data directories of different nodes");
    fs::rename(place.join("c"), place.join("b")).expect("renamed");
    refused(&mut broker, &["a"], "is neither named nor there");
    refused(&mut broker, &["a", "g"], "is neither named nor there");
    fs::rename(place.join("a"), place.join("h")).expect("renamed");
    refused(&mut broker, &["a", "b"], "is not among those named");
    broker.set_directories(&folders(place, &["h", "b"]));
    broker.launch();
    all_are_read(&mut Peer::connect(broker.address()), &topic, &order);
    broker.kill();
}

#[test]
fn a_directory_that_is_lost_for_good_is_given_up_when_told_to() {
    let folder = tempfile::tempdir().expect("a folder");
    let directories = folders(folder.path(), &["a", "b"]);
    let mut broker = Broker::start_across(&directories, &TWO_SHARDS);
    let topic = fresh("spread");
    create_topic(&broker.bootstrap(), &topic, PARTITIONS);
    let mut peer = Peer::connect(broker.address());
    (0..5).for_each(|_| assert_eq!(write_all(&mut peer, &topic), BTreeSet::new()));
    broker.signal("TERM");
    assert!(broker.ended().success());
    fs::remove_dir_all(&directories[1]).expect("removed");
    broker.launch();
    broker.await_log("or give them up with `corelog repair --replace-lost");
    let lost = write_all(&mut Peer::connect(broker.address()), &topic);
    assert_eq!(lost.len(), usize::try_from(PARTITIONS / 2).expect("few"));
    broker.signal("TERM");
    assert!(broker.ended().success());

    let [a, b] = &directories[..] else { panic!("two") };
    let [a, b] = [a, b].map(|path| path.to_str().expect("text"));
    let repair = ["repair", "--data-dir", a, "--data-dir", b, "--replace-lost", b];
    let (code, said) = corelog(&[&repair[..], &["--dry-run"]].concat());
    let numbers: Vec<String> = lost.iter().map(i32::to_string).collect();
    let words = format!("lost: topic {topic}, all of partitions {}\n", numbers.join(", "));
    assert!(code == Some(0) && said.contains(&words) && said.contains("nothing was"), "{said}");
    let (code, said) = corelog(&repair);
    assert!(code == Some(0) && said.contains(&words), "{said}");
    broker.launch();
    let mut peer = Peer::connect(broker.address());
    assert_eq!(write_all(&mut peer, &topic), BTreeSet::new());
    let parts: Vec<_> = (0..PARTITIONS).map(|index| (index, 0, 1 << 20)).collect();
    let ask = Ask { topic: &topic, parts: &parts, wait_ms: 0, bytes_min: 0, bytes_max: 50 << 20 };
    for part in fetched(&peer.ask(&ask.encode())) {
        let end = if lost.contains(&part.partition) { 1 } else { 7 };
        assert_eq!((part.error, part.high_watermark), (0, end), "{part:?}");
    }
    let (code, _) = corelog(&repair);
    assert_eq!(code, Some(1), "nothing is lost any more, and the node runs");
    broker.kill();
}

/// Directories come and go, on one file system and across two, and all partitions with them.
#[test]
fn partitions_move_to_other_directories() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = Disk::of(300, 4096);
    let place = folder.path();
    let elsewhere = disk.as_ref().map_or(place.join("elsewhere"), |disk| disk.path().join("data"));
    let [a, b] = ["a", "b"].map(|name| place.join(name));
    let mut broker = Broker::start_across(std::slice::from_ref(&a), &TWO_SHARDS);
    let (topic, large) = (fresh("spread"), fresh("large"));
    create_topic(&broker.bootstrap(), &topic, PARTITIONS);
    create_topic(&broker.bootstrap(), &large, 1);
    let order: Vec<i32> = (0..PARTITIONS).collect();
    let mut peer = Peer::connect(broker.address());
    (0..5).for_each(|_| assert_eq!(write_all(&mut peer, &topic), BTreeSet::new()));
    for offset in 0..20 {
        let outcome = written(&peer.ask(&produce_many(&large, &[(0, 900_000)])));
        assert_eq!(outcome, [(0, 0, offset)]);
    }
    (0..GROUPS).for_each(|number| drop(share(&mut peer, &topic, number)));
    let layouts: [(&[&PathBuf], &str); 6] = [
        (&[&a, &b], "2"),
        (&[&a, &b, &elsewhere], "3"),
        (&[&a, &elsewhere], "3"),
        (&[&a, &elsewhere, &b], "4"),
        (&[&a, &elsewhere], "2"),
        (&[&a], "2"),
    ];
    for (generation, (directories, shards)) in (1..).zip(layouts) {
        let directories: Vec<PathBuf> = directories.iter().map(|path| (*path).clone()).collect();
        broker.set_directories(&directories);
        broker.set("shards", shards);
        broker.restart();
        let mut peer = Peer::connect(broker.address());
        all_are_read(&mut peer, &topic, &order);
        assert_eq!(read_all(&mut peer, &large, 0), 19 + generation);
        (0..GROUPS).for_each(|number| assert_committed(&mut peer, &topic, number));
        assert_eq!(write_all(&mut peer, &topic), BTreeSet::new());
        assert_eq!(written(&peer.ask(&produce_many(&large, &[(0, 900_000)])))[0].1, 0);
        let count = log_dirs(&mut peer).len();
        assert_eq!(count, directories.len());
        // Each core is in its directory, and nothing of it is left where it was.
        let is_there = |directory: &PathBuf, core: usize| {
            directory.join(format!("core-{core}.{generation}")).exists()
        };
        let shards: usize = shards.parse().expect("a number");
        for core in 0..shards {
            assert!(is_there(&directories[core % count], core), "core {core}");
        }
        await_that("what was left is gone", || {
            [&a, &b, &elsewhere].into_iter().map(|path| cores_in(path)).sum::<usize>() == shards
                && [&b, &elsewhere]
                    .into_iter()
                    .all(|path| directories.contains(path) || !path.join("directory.toml").exists())
        });
    }
    broker.kill();
}

/// How many folders of cores are in a directory.
fn cores_in(path: &Path) -> usize {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("core-")).count()
}

#[test]
fn a_cores_folder_that_is_gone_is_named_and_given_up_only_when_told_to() {
    let folder = tempfile::tempdir().expect("a folder");
    let directories = folders(folder.path(), &["a", "b"]);
    let aside = folder.path().join("aside");
    let mut broker = Broker::start_across(&directories, &TWO_SHARDS);
    let topic = fresh("spread");
    create_topic(&broker.bootstrap(), &topic, PARTITIONS);
    let order: Vec<i32> = (0..PARTITIONS).collect();
    let mut peer = Peer::connect(broker.address());
    (0..5).for_each(|_| assert_eq!(write_all(&mut peer, &topic), BTreeSet::new()));
    broker.signal("TERM");
    assert!(broker.ended().success());
    let [one, two] = [directories[0].join("core-0"), directories[1].join("core-1")];
    fs::rename(&one, &aside).expect("renamed");
    let said = refusal(&broker);
    let words = format!("{} is missing or empty, and topics and settings", one.display());
    assert!(said.contains(&words), "{said}");
    fs::rename(&aside, &one).expect("renamed");
    fs::rename(&two, &aside).expect("renamed");
    broker.launch();
    broker
        .await_log(&format!("{} is missing or empty, and the partitions of core 1", two.display()));
    let lost = write_all(&mut Peer::connect(broker.address()), &topic);
    assert_eq!(lost.len(), usize::try_from(PARTITIONS / 2).expect("few"));
    assert!(!two.exists(), "nothing is put there");
    broker.signal("TERM");
    assert!(broker.ended().success());
    fs::rename(&two, &aside).expect_err("it is not there");
    fs::rename(&aside, &two).expect("renamed");
    broker.launch();
    all_are_read(&mut Peer::connect(broker.address()), &topic, &order);
    broker.signal("TERM");
    assert!(broker.ended().success());
    fs::remove_dir_all(&two).expect("removed");
    let [first, lost_folder] = [&directories[0], &two].map(|path| path.to_str().expect("text"));
    let repair = ["repair", "--data-dir", first, "--replace-lost", lost_folder];
    let numbers: Vec<String> = lost.iter().map(i32::to_string).collect();
    let words = format!("lost: topic {topic}, all of partitions {}\n", numbers.join(", "));
    let (code, said) = corelog(&[&repair[..], &["--dry-run"]].concat());
    assert!(code == Some(0) && said.contains(&words) && !two.exists(), "{said}");
    let (code, said) = corelog(&repair);
    assert!(code == Some(0) && said.contains(&words), "{said}");
    broker.launch();
    assert_eq!(write_all(&mut Peer::connect(broker.address()), &topic), BTreeSet::new());
    broker.kill();
}
