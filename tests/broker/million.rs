//! A million partitions on one node: made, some written to past the journal's budget, there again
//! after a stop and a kill; an idle one costs next to nothing.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use crate::asks::{Ask, fetched, produce_many, written};
use crate::frames::{Bytes, Peer, metadata, request};
use crate::world::{Broker, corelog, fresh};

const TOPICS: usize = 100;
const PARTITIONS: i32 = 10_000;
/// Requests of a hundred partitions each.
const WRITES: usize = 300;
const VALUE_BYTES: usize = 2_000;
/// Of an idle partition, by the mission.
const BYTES_MAX: u64 = 2_048;
const DESCRIPTORS_MAX: usize = 200;
const SETTINGS: &[(&str, &str)] = &[("shards", "2"), ("journal.bytes.max", "67108864")];

/// Numbers that look random, the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % most
    }
}

/// All topics, some in a request.
fn create_all(peer: &mut Peer, names: &[String]) {
    for some in names.chunks(20) {
        let mut body = Bytes::default().i32(i32::try_from(some.len()).expect("few"));
        for name in some {
            body = body.string(name).i32(PARTITIONS).i16(1).i32(0).i32(0);
        }
        let answer = peer.ask(&request(19, 2, body.i32(60_000).i8(0)));
        let mut at = 8;
        for name in some {
            at += 2 + name.len();
            assert_eq!(answer[at..at + 2], [0, 0], "{name} is made");
            at += 4;
        }
    }
}

/// Every partition that was written to has what was written, from its first record to its last.
fn check(peer: &mut Peer, names: &[String], counts: &BTreeMap<(usize, i32), i64>, dice: &mut Dice) {
    for _ in 0..20 {
        let topic = usize::try_from(dice.below(TOPICS as u64)).expect("small");
        let of_topic = counts.range((topic, 0)..(topic + 1, 0)).take(200);
        let parts: Vec<(i32, i64, i32)> =
            of_topic.clone().map(|((_, partition), _)| (*partition, 0, 1 << 20)).collect();
        let ask = Ask {
            topic: &names[topic],
            parts: &parts,
            wait_ms: 0,
            bytes_min: 0,
            bytes_max: 50 << 20,
        };
        let found = fetched(&peer.ask(&ask.encode()));
        assert_eq!(found.len(), parts.len());
        for (part, ((_, partition), count)) in found.iter().zip(of_topic) {
            assert_eq!((part.partition, part.error, part.high_watermark), (*partition, 0, *count));
            assert_eq!(part.bases, (0..*count).collect::<Vec<_>>());
        }
    }
}

fn descriptors(broker: &Broker) -> usize {
    fs::read_dir(format!("/proc/{}/fd", broker.pid())).expect("readable").count()
}

/// `corelog inspect` goes through a pack, and finds a flipped byte in it.
fn inspect(broker: &mut Broker) {
    broker.signal("TERM");
    assert!(broker.ended().success(), "{}", broker.log());
    let folder = broker.data().join("core-0/segments/packs");
    let pack = fs::read_dir(folder).expect("there").flatten().next().expect("a pack").path();
    let copy = broker.data().join("copy.pack");
    let mut bytes = fs::read(&pack).expect("readable");
    let (code, said) = corelog(&["inspect", pack.to_str().expect("UTF-8")]);
    assert!(code == Some(0) && said.contains("piece of topic number"), "{said}");
    bytes[100] ^= 1;
    fs::write(&copy, bytes).expect("writable");
    let (code, said) = corelog(&["inspect", copy.to_str().expect("UTF-8")]);
    assert!(code == Some(1) && said.contains("DAMAGED"), "{said}");
    fs::remove_file(&copy).expect("there");
    broker.launch();
}

#[test]
fn a_million_partitions_stand_on_one_node() {
    let mut broker = Broker::start(SETTINGS);
    let mut peer = Peer::connect(broker.address());
    let names: Vec<String> = (0..TOPICS).map(|_| fresh("many")).collect();
    let before = broker.resident_bytes();
    let began = Instant::now();
    create_all(&mut peer, &names);
    let each =
        (broker.resident_bytes() - before) / (TOPICS as u64 * PARTITIONS.unsigned_abs() as u64);
    println!("made in {:?}, {each} bytes each", began.elapsed());
    assert!(each < BYTES_MAX, "{each} bytes for an idle partition");

    let mut dice = Dice(1);
    let mut counts: BTreeMap<(usize, i32), i64> = BTreeMap::new();
    for _ in 0..WRITES {
        let topic = usize::try_from(dice.below(TOPICS as u64)).expect("small");
        let mut parts = BTreeMap::new();
        while parts.len() < 100 {
            // Some more often than others.
            let most = if dice.below(2) == 0 { 100 } else { PARTITIONS.unsigned_abs().into() };
            parts.insert(i32::try_from(dice.below(most)).expect("small"), VALUE_BYTES);
        }
        let parts: Vec<(i32, usize)> = parts.into_iter().collect();
        for (partition, code, offset) in written(&peer.ask(&produce_many(&names[topic], &parts))) {
            let count = counts.entry((topic, partition)).or_default();
            assert_eq!((code, offset), (0, *count));
            *count += 1;
        }
    }
    check(&mut peer, &names, &counts, &mut dice);
    let packs = |core: u16| {
        fs::read_dir(broker.data().join(format!("core-{core}/segments/packs"))).map(Iterator::count)
    };
    assert!(packs(0).is_ok_and(|count| count > 0), "small partitions share files");

    inspect(&mut broker);

    for is_killed in [false, true] {
        let began = Instant::now();
        if is_killed {
            broker.kill();
            broker.launch();
        } else {
            broker.restart();
        }
        let mut peer = Peer::connect(broker.address());
        let answer = peer.ask(&metadata(&names[7]));
        println!("there again after {:?}, {} bytes of metadata", began.elapsed(), answer.len());
        check(&mut peer, &names, &counts, &mut dice);
        assert!(descriptors(&broker) < DESCRIPTORS_MAX, "{} descriptors", descriptors(&broker));
    }
}
