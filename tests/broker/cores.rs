//! Another number of cores than before: the partitions move at the start, with all that is known
//! of them.

use std::collections::BTreeSet;

use crate::asks::{produce_many, written};
use crate::compaction;
use crate::frames::{Batch, Peer, produce, produced};
use crate::full::{delete_topic, read_all};
use crate::librdkafka::create_topic;
use crate::segments::{await_that, create, segment_files};
use crate::shards::{GROUPS, PARTITIONS, all_are_read, assert_committed, share};
use crate::world::{Broker, fresh};

const OUT_OF_ORDER_SEQUENCE_NUMBER: i16 = 45;
const PRODUCER: i64 = 1_000_000;

/// The folders of cores that are there.
fn folders(broker: &Broker) -> BTreeSet<String> {
    let entries = std::fs::read_dir(broker.data()).expect("there").flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("core-")).collect()
}

/// An idempotent producer's record of this number, to partition 0.
fn send(peer: &mut Peer, topic: &str, sequence: i32) -> (i16, i64) {
    let batch = Batch { producer: (PRODUCER, sequence), ..Batch::default() };
    produced(&peer.ask(&produce(topic, &batch.encode())), topic)
}

fn write_large(peer: &mut Peer, topic: &str, offsets: std::ops::Range<i64>) {
    let large = Batch { value_bytes: 1_000_000, ..Batch::default() }.encode();
    for offset in offsets {
        assert_eq!(produced(&peer.ask(&produce(topic, &large)), topic), (0, offset));
    }
}

#[test]
fn partitions_move_to_other_cores_with_all_that_is_known_of_them() {
    let settings = [
        ("cores", "0"),
        ("shards", "1"),
        ("journal.bytes.max", "67108864"),
        ("journal.file.bytes", "4194304"),
    ];
    let mut broker = Broker::start(&settings);
    let [spread, one, two, keyed, gone] = ["spread", "one", "two", "keyed", "gone"].map(fresh);
    create_topic(&broker.bootstrap(), &spread, PARTITIONS);
    let mut peer = Peer::connect(broker.address());
    for topic in [&one, &two, &gone] {
        create(&mut peer, topic, &[("retention.ms", "-1"), ("segment.bytes", "16777216")]);
    }
    create(&mut peer, &keyed, &[("cleanup.policy", "compact")]);
    let order: Vec<i32> = (0..PARTITIONS).collect();
    let parts: Vec<_> = order.iter().map(|partition| (*partition, 100)).collect();
    let mut next = 0;
    let mut write = |peer: &mut Peer| {
        let wanted: Vec<_> = order.iter().map(|partition| (*partition, 0, next)).collect();
        assert_eq!(written(&peer.ask(&produce_many(&spread, &parts))), wanted);
        next += 1;
    };
    (0..6).for_each(|_| write(&mut peer));
    let mut kept = compaction::Model::new();
    compaction::write(&broker.bootstrap(), &keyed, "none", 2, &mut kept);
    write_large(&mut peer, &one, 0..50);
    write_large(&mut peer, &two, 0..3);
    write_large(&mut peer, &gone, 0..1);
    assert!(!segment_files(&broker).is_empty(), "some are in files of their own");
    (0..GROUPS).for_each(|number| drop(share(&mut peer, &spread, number)));

    let mut sent = 0;
    for (generation, shards) in [2, 3, 1, 2].into_iter().enumerate() {
        for sequence in sent..sent + 3 {
            assert_eq!(send(&mut peer, &two, sequence), (0, 3 + i64::from(sequence)));
        }
        sent += 3;
        broker.set("shards", &shards.to_string());
        if generation < 3 {
            broker.restart();
        } else {
            broker.kill();
            broker.launch();
        }
        broker.await_log(&format!("to {shards} shards in "));
        peer = Peer::connect(broker.address());
        let again = send(&mut peer, &two, sent - 1);
        assert_eq!(again, (0, 2 + i64::from(sent)), "one that is there already");
        assert_eq!(send(&mut peer, &two, sent + 1).0, OUT_OF_ORDER_SEQUENCE_NUMBER);
        all_are_read(&mut peer, &spread, &order);
        assert_eq!(read_all(&mut peer, &one, 0), 50 + i64::try_from(generation).expect("few"));
        assert_eq!(read_all(&mut peer, &two, 0), 3 + i64::from(sent));
        (0..GROUPS).for_each(|number| assert_committed(&mut peer, &spread, number));
        let (found, _) = compaction::read(&broker.bootstrap(), &keyed);
        compaction::assert_same(&found, &kept);
        compaction::write(&broker.bootstrap(), &keyed, "lz4", 1, &mut kept);
        write(&mut peer);
        let offset = 50 + i64::try_from(generation).expect("few");
        write_large(&mut peer, &one, offset..offset + 1);
        let wanted: BTreeSet<String> =
            (0..shards).map(|core| format!("core-{core}.{}", generation + 1)).collect();
        await_that("the old folders are gone", || folders(&broker) == wanted);
    }
    assert_eq!(delete_topic(&mut peer, &gone), 0);
    // The same number as before: nothing moves.
    let before = folders(&broker);
    broker.restart();
    assert_eq!(folders(&broker), before);
    assert_eq!(broker.log().matches("moved ").count(), 4, "{}", broker.log());
    all_are_read(&mut Peer::connect(broker.address()), &spread, &order);
}

/// Leftovers of a move that came to no end do not count, and go.
#[test]
fn folders_that_node_toml_does_not_name_are_removed() {
    let mut broker = Broker::start(&[("cores", "0"), ("shards", "1")]);
    let topic = fresh("kept");
    create_topic(&broker.bootstrap(), &topic, 1);
    let mut peer = Peer::connect(broker.address());
    write_large(&mut peer, &topic, 0..2);
    let left = broker.data().join("core-0.1/segments/topic-7/3");
    std::fs::create_dir_all(&left).expect("made");
    std::fs::write(left.join("00000000000000000000.log"), "left over").expect("written");
    broker.restart();
    let wanted = BTreeSet::from(["core-0".to_string()]);
    await_that("they are gone", || folders(&broker) == wanted);
    // And before a move, which needs the names.
    std::fs::create_dir_all(&left).expect("made");
    broker.set("shards", "2");
    broker.restart();
    let wanted = ["core-0.1", "core-1.1"].map(str::to_string);
    await_that("they are gone", || folders(&broker) == wanted.clone().into());
    assert!(!left.exists());
    assert_eq!(read_all(&mut Peer::connect(broker.address()), &topic, 0), 2);
}
