//! Lost checkpoints: what they named is still in files, and `corelog repair` finds it there.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::asks::{produce_to, written};
use crate::damage::{FOREVER, SMALL, all_but, first_needed, flip, mend, places, repair, stop};
use crate::damaged_packs::{create_with, packs, readable, write_each};
use crate::frames::{Batch, Bytes, Peer, request};
use crate::segments::{await_that, create, segment_files, write};
use crate::world::{Broker, corelog, fresh};

/// The journal files that are needed.
fn journals(broker: &Broker) -> Vec<PathBuf> {
    let core = broker.data().join("core-0");
    let files = (first_needed(&core)..).map(|number| core.join(format!("journal-{number:012}")));
    files.take_while(|file| file.exists()).collect()
}

/// Where things lie in the needed journal files.
#[derive(Default)]
struct Found {
    /// Of a topic: file, its group's place and its own.
    checkpoints: Vec<(PathBuf, u64, u64)>,
    /// Of the same topic: file, place and offset.
    batches: Vec<(PathBuf, u64, i64)>,
}

fn found(broker: &Broker, topic_number: u64) -> Found {
    let (mut found, mut last) = (Found::default(), None);
    for file in journals(broker) {
        let (_, said) = corelog(&["inspect", "--json", file.to_str().expect("UTF-8")]);
        let mut group = 0;
        for line in said.lines().filter(|line| line.starts_with('{')) {
            let value: Value = serde_json::from_str(line).expect("JSON");
            let position = value["position"].as_u64().unwrap_or(0);
            if let Some(sequence) = value["group"].as_u64() {
                if last.is_some_and(|last| sequence <= last) {
                    // A file that is to be used again still holds what it held before.
                    break;
                }
                (last, group) = (Some(sequence), position);
            }
            if value["topic_number"].as_u64() != Some(topic_number) {
                continue;
            }
            for content in value["contents"].as_array().expect("contents") {
                if content["hot_start"].is_i64() {
                    found.checkpoints.push((file.clone(), group, position));
                }
                if let Some(first) = content["first"].as_i64() {
                    found.batches.push((file.clone(), position, first));
                }
            }
        }
    }
    found
}

/// The number of the topic that was created first.
fn first_topic(broker: &Broker) -> u64 {
    let created = journals(broker).iter().flat_map(|file| places(file).created).collect::<Vec<_>>();
    created.iter().map(|(_, (number, _))| *number).min().expect("a topic")
}

/// The second gap begins behind what lies before it.
#[test]
fn a_lost_checkpoint_and_lost_records_behind_it_cost_those_records_alone() {
    let mut broker = Broker::start(SMALL);
    let topic = fresh("both");
    let mut peer = Peer::connect(broker.address());
    create(&mut peer, &topic, &[FOREVER, ("segment.bytes", "8388608")]);
    write(&mut peer, &topic, 0..150);
    await_that("much is in segments", || segment_files(&broker).len() > 6);
    broker.restart();
    stop(&mut broker);
    let number = first_topic(&broker);
    let Found { checkpoints, batches } = found(&broker, number);
    checkpoints.iter().for_each(|(file, _, position)| flip(file, position + 5));
    // It is in no segment yet, and another one comes behind it.
    let lost = 148;
    let (file, position, _) =
        batches.iter().find(|(_, _, first)| *first == lost).expect("it is in the journal");
    flip(file, position + 5000);

    let name = format!("topic {topic} partition 0");
    let told = format!("lost: {name}, offsets {lost} to before {}\n", lost + 1);
    mend(&broker, &[&told, &format!("found: {name}, offsets 0 to before")]);
    broker.launch();
    let mut peer = Peer::connect(broker.address());
    assert_eq!(readable(&mut peer, &topic, 0, 150), (all_but(&[], 150), vec![]));
    write(&mut peer, &topic, 150..151);
}

/// Partitions of which the journal names nothing else began anew at offset 0, and the pack that
/// held their records was removed.
#[test]
fn partitions_whose_checkpoints_are_lost_are_found_in_packs() {
    for is_named in [true, false] {
        let mut broker = Broker::start(SMALL);
        let (topic, filler) = (fresh("small"), fresh("filler"));
        let mut peer = Peer::connect(broker.address());
        create_with(&mut peer, &topic, 4);
        create(&mut peer, &filler, &[FOREVER]);
        (0..5).for_each(|offset| write_each(&mut peer, &topic, 4, 3000, offset));
        let number = first_topic(&broker);
        write(&mut peer, &filler, 0..50);
        let is_whole = |broker: &Broker| {
            let pieces: BTreeSet<(u64, i32)> =
                packs(broker).into_values().flat_map(|pieces| pieces.into_keys()).collect();
            (0..4).all(|partition| pieces.contains(&(number, partition)))
        };
        // The pack is there before the journal's files are needed no longer.
        let mut end = 50;
        await_that("everything is in packs", || {
            write(&mut peer, &filler, end..end + 2);
            end += 2;
            is_whole(&broker) && found(&broker, number).batches.is_empty()
        });
        broker.restart();
        stop(&mut broker);
        let Found { checkpoints, batches } = found(&broker, number);
        let first = first_needed(&broker.data().join("core-0"));
        assert!(batches.is_empty(), "still needed from file {first} on: {batches:?}");
        assert!(checkpoints.len() >= 4, "{checkpoints:?}");
        // In each body, or once in the header of each group, so that nothing says what it held.
        let groups = checkpoints.iter().map(|(file, group, _)| (file.clone(), group + 17));
        let bodies = checkpoints.iter().map(|(file, _, position)| (file.clone(), position + 5));
        let all: BTreeSet<(PathBuf, u64)> =
            if is_named { bodies.collect() } else { groups.collect() };
        all.iter().for_each(|(file, at)| flip(file, *at));

        // Metadata that the same groups held is lost with them.
        let recovered = format!("recovered-{number}");
        let topic = if repair(&broker, true).1.contains(&recovered) { recovered } else { topic };
        mend(&broker, &[&format!("found: topic {topic} partition 3, offsets 0 to before 5")]);
        broker.launch();
        let mut peer = Peer::connect(broker.address());
        for partition in 0..4 {
            let found = readable(&mut peer, &topic, partition, 5);
            assert_eq!(found, (all_but(&[], 5), vec![]), "of {partition}");
        }
        write_each(&mut peer, &topic, 4, 3000, 5);
        assert!(is_whole(&broker), "the pack stays");
    }
}

/// So is what was drained into files of their own.
#[test]
fn a_partition_whose_checkpoint_is_lost_is_found_in_its_files() {
    let mut broker = Broker::start(SMALL);
    let (topic, filler) = (fresh("cold"), fresh("filler"));
    let mut peer = Peer::connect(broker.address());
    create(&mut peer, &topic, &[FOREVER, ("segment.bytes", "8388608")]);
    create(&mut peer, &filler, &[FOREVER]);
    write(&mut peer, &topic, 0..20);
    let number = first_topic(&broker);
    write(&mut peer, &filler, 0..120);
    broker.restart();
    stop(&mut broker);
    let Found { checkpoints, batches } = found(&broker, number);
    assert_eq!(batches.len(), 0, "everything is in segments");
    assert!(!checkpoints.is_empty());
    checkpoints.iter().for_each(|(file, _, position)| flip(file, position + 5));
    // One of several files is gone as well.
    let folder = broker.data().join(format!("core-0/segments/topic-{number}/0"));
    let mut files: Vec<PathBuf> = segment_files(&broker);
    files.retain(|file| file.starts_with(&folder));
    assert!(files.len() > 2, "{files:?}");
    let base = |file: &PathBuf| -> i64 {
        let stem = file.file_stem().expect("a name").to_str().expect("digits");
        stem.parse().expect("an offset")
    };
    let (from, before) = (base(&files[1]), base(&files[2]));
    fs::remove_file(&files[1]).expect("there");

    let name = format!("topic {topic} partition 0");
    let told = format!("lost: {name}, offsets {from} to before {before}");
    mend(&broker, &[&told, &format!("found: {name}, offsets 0 to before 20")]);
    broker.launch();
    let mut peer = Peer::connect(broker.address());
    let (found, failed) = readable(&mut peer, &topic, 0, 20);
    assert_eq!(failed, Vec::<i64>::new());
    let lost: Vec<i64> = (from + 1..before).collect();
    assert_eq!(found, all_but(&lost, 20), "one batch without records stands for several");
    let one = Batch::default().encode();
    assert_eq!(written(&peer.ask(&produce_to(&topic, 0, &one))), [(0, 0, 20)]);
}

/// Records in partitions of which no metadata speaks any more could be read by nobody.
#[test]
fn partitions_whose_addition_is_lost_are_added_again() {
    let mut broker = Broker::start(SMALL);
    let (topic, other) = (fresh("grown"), fresh("other"));
    let mut peer = Peer::connect(broker.address());
    create_with(&mut peer, &topic, 2);
    let body = Bytes::default().i32(1).string(&topic).i32(4).i32(-1).i32(10_000).i8(0);
    peer.ask(&request(37, 0, body));
    write_each(&mut peer, &topic, 4, 3000, 0);
    create(&mut peer, &other, &[FOREVER]);
    broker.restart();
    stop(&mut broker);
    let journal = journals(&broker).remove(0);
    let (_, said) = corelog(&["inspect", "--json", journal.to_str().expect("UTF-8")]);
    let line = said.lines().find(|line| line.contains("has 4 partitions")).expect("an entry");
    let value: Value = serde_json::from_str(line).expect("JSON");
    flip(&journal, value["position"].as_u64().expect("a place") + 20);

    mend(&broker, &[&format!("topic {topic} has 4 partitions"), "metadata may be lost"]);
    broker.launch();
    write_each(&mut Peer::connect(broker.address()), &topic, 4, 3000, 1);
}
