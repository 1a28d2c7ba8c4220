//! Partitions and groups behave the same however many cores they are spread over.

use std::time::{Duration, Instant};

use crate::asks::{Ask, Walk, fetched, produce_many, written};
use crate::frames::{Bytes, Came, Peer, request};
use crate::librdkafka::create_topic;
use crate::world::{Broker, fresh};

const SOON: Duration = Duration::from_secs(20);
pub const PARTITIONS: i32 = 32;
pub const GROUPS: usize = 8;

#[test]
fn one_shard() {
    behaves_the_same("1");
}

#[test]
fn two_shards() {
    behaves_the_same("2");
}

#[test]
fn sixteen_shards() {
    behaves_the_same("16");
}

fn behaves_the_same(shards: &str) {
    let settings = [("cores", "0"), ("shards", shards), ("journal.file.bytes", "4194304")];
    let mut broker = Broker::start(&settings);
    broker.await_log(&format!("{shards} shard"));
    let topic = fresh("spread");
    create_topic(&broker.bootstrap(), &topic, PARTITIONS);
    // Neither in order nor by owner.
    let order: Vec<i32> = (0..PARTITIONS).map(|number| number * 11 % PARTITIONS).collect();
    let mut peer = Peer::connect(broker.address());
    for offset in 0..5 {
        let parts: Vec<_> =
            order.iter().map(|p| (*p, 50 + usize::try_from(*p).expect("small"))).collect();
        let wanted: Vec<_> = order.iter().map(|p| (*p, 0, offset)).collect();
        assert_eq!(written(&peer.ask(&produce_many(&topic, &parts))), wanted);
    }
    let unknown = [(0, 9), (PARTITIONS, 9), (1, 9)];
    let outcome = written(&peer.ask(&produce_many(&topic, &unknown)));
    assert_eq!(outcome, [(0, 0, 5), (PARTITIONS, 3, -1), (1, 0, 5)], "each on its own terms");
    all_are_read(&mut peer, &topic, &order);
    a_poll_over_all_is_woken_by_each(&broker, &topic, &order);
    let members: Vec<String> = (0..GROUPS).map(|number| share(&mut peer, &topic, number)).collect();
    assert!(members.iter().all(|member| !member.is_empty()));

    broker.restart();
    let mut peer = Peer::connect(broker.address());
    all_are_read(&mut peer, &topic, &order);
    (0..GROUPS).for_each(|number| assert_committed(&mut peer, &topic, number));
    let again = written(&peer.ask(&produce_many(&topic, &[(7, 9)])));
    assert_eq!(again, [(7, 0, 6)]);
}

pub fn all_are_read(peer: &mut Peer, topic: &str, order: &[i32]) {
    let parts: Vec<(i32, i64, i32)> = order.iter().map(|p| (*p, 0, 1 << 20)).collect();
    let ask = Ask { topic, parts: &parts, wait_ms: 0, bytes_min: 0, bytes_max: 50 << 20 };
    let found = fetched(&peer.ask(&ask.encode()));
    assert_eq!(found.iter().map(|part| part.partition).collect::<Vec<_>>(), order);
    for part in found {
        assert_eq!(part.error, 0, "{part:?}");
        assert_eq!(part.bases, (0..part.high_watermark).collect::<Vec<_>>(), "{part:?}");
        assert!(part.high_watermark >= 5, "{part:?}");
    }
}

/// At the ends of all partitions; one record in any of them is enough.
fn a_poll_over_all_is_woken_by_each(broker: &Broker, topic: &str, order: &[i32]) {
    let mut writer = Peer::connect(broker.address());
    let mut ends: Vec<(i32, i64, i32)> =
        order.iter().map(|p| (*p, if *p < 2 { 6 } else { 5 }, 1 << 20)).collect();
    for target in [2, 7, 13, 31] {
        let mut peer = Peer::connect(broker.address());
        let ask = Ask { topic, parts: &ends, wait_ms: 120_000, bytes_min: 1, bytes_max: 50 << 20 };
        peer.send(&ask.encode());
        assert_eq!(peer.receive(Duration::from_millis(30)), Came::Nothing);
        assert_eq!(written(&writer.ask(&produce_many(topic, &[(target, 9)]))), [(target, 0, 5)]);
        let Came::Answer(answer) = peer.receive(SOON) else { panic!("the poll sleeps on") };
        let found = fetched(&answer[4..]).into_iter().find(|part| !part.bases.is_empty());
        assert_eq!(found.map(|part| (part.partition, part.bases)), Some((target, vec![5])));
        ends.iter_mut().filter(|end| end.0 == target).for_each(|end| end.1 = 6);
    }
}

fn group(number: usize) -> String {
    format!("spread-group-{number}")
}

/// One member's whole life up to a commit; its id.
pub fn share(peer: &mut Peer, topic: &str, number: usize) -> String {
    let group = group(number);
    let until = Instant::now() + SOON;
    while Walk(&peer.ask(&request(10, 0, Bytes::default().string(&group)))).i16() != 0 {
        assert!(Instant::now() < until, "no coordinator of {group}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let join = Bytes::default().string(&group).i32(10_000).i32(10_000).string("");
    let join = join.string("consumer").i32(1).string("range").bytes(&[1, 2, 3]);
    let mut answer = Vec::new();
    while answer.is_empty() || answer[4..6] == 14_i16.to_be_bytes() {
        answer = peer.ask(&request(11, 2, join.clone()));
        assert!(Instant::now() < until, "{group} loads for ever");
    }
    let mut walk = Walk(&answer);
    walk.i32();
    assert_eq!(walk.i16(), 0, "join {group}");
    let (generation, protocol, leader) = (walk.i32(), walk.string(), walk.string());
    let member = walk.string();
    assert_eq!((protocol.as_str(), &leader), ("range", &member));

    let mine = Bytes::default().string(&group).i32(generation).string(&member);
    let sync = mine.clone().i32(1).string(&member).bytes(b"all of it");
    let answer = peer.ask(&request(14, 1, sync));
    let mut walk = Walk(&answer);
    walk.i32();
    assert_eq!((walk.i16(), walk.bytes()), (0, &b"all of it"[..]));
    let beat = peer.ask(&request(12, 1, mine.clone()));
    assert_eq!(beat[4..6], [0, 0], "heartbeat of {group}");

    let mut commit = mine.i64(-1).i32(1).string(topic).i32(PARTITIONS);
    for partition in 0..PARTITIONS {
        commit = commit.i32(partition).i64(committed(partition, number)).string("m");
    }
    let answer = peer.ask(&request(8, 2, commit));
    let mut walk = Walk(&answer);
    assert_eq!((walk.i32(), walk.string(), walk.i32()), (1, topic.to_string(), PARTITIONS));
    for partition in 0..PARTITIONS {
        assert_eq!((walk.i32(), walk.i16()), (partition, 0));
    }
    assert_committed(peer, topic, number);
    member
}

fn committed(partition: i32, number: usize) -> i64 {
    i64::from(partition) + 100 * i64::try_from(number).expect("small")
}

pub fn assert_committed(peer: &mut Peer, topic: &str, number: usize) {
    let mut asked = Bytes::default().string(&group(number)).i32(1).string(topic).i32(PARTITIONS);
    for partition in 0..PARTITIONS {
        asked = asked.i32(partition);
    }
    let answer = peer.ask(&request(9, 1, asked));
    let mut walk = Walk(&answer);
    assert_eq!((walk.i32(), walk.string(), walk.i32()), (1, topic.to_string(), PARTITIONS));
    for partition in 0..PARTITIONS {
        let found = (walk.i32(), walk.i64(), walk.string(), walk.i16());
        assert_eq!(found, (partition, committed(partition, number), "m".to_string(), 0));
    }
}
