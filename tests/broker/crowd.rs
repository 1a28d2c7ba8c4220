//! Many clients at once: memory keeps its bound, and nothing is left of those that are gone.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::asks::{Ask, fetched, poll, produce_many, written};
use crate::frames::{Batch, Came, Peer, api_versions, fetch, produce};
use crate::librdkafka::create_topic;
use crate::world::{Broker, fresh};

const SOON: Duration = Duration::from_secs(20);

/// What each of two cores may hold, and what the process may hold beside it.
const BOUNDED: (&str, &str) = ("core.memory.bytes", "67108864");
const RESIDENT_MAX: u64 = (2 * 64 + 128) << 20;

#[test]
fn a_flood_of_large_requests_stays_in_its_memory_and_is_all_stored() {
    const WRITERS: usize = 24;
    const EACH: i64 = 4;
    let broker = Broker::start(&[BOUNDED]);
    let topic = fresh("flood");
    create_topic(&broker.bootstrap(), &topic, 4);
    let parts = [(0, 900_000), (1, 900_000), (2, 900_000), (3, 900_000)];
    let request = produce_many(&topic, &parts);
    let mut most = 0;
    std::thread::scope(|scope| {
        let writers: Vec<_> =
            (0..WRITERS).map(|_| scope.spawn(|| flood(broker.address(), &request, EACH))).collect();
        while !writers.iter().all(|writer| writer.is_finished()) {
            most = most.max(broker.resident_bytes());
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    println!("{} MiB resident at most", most >> 20);
    assert!(most < RESIDENT_MAX, "{} MiB resident", most >> 20);
    let ends = written(&Peer::connect(broker.address()).ask(&request));
    let count = i64::try_from(WRITERS).expect("small") * EACH;
    assert!(ends.iter().all(|(_, error, offset)| (*error, *offset) == (0, count)), "{ends:?}");
}

/// Sends all requests before it takes an answer.
fn flood(address: SocketAddr, request: &[u8], count: i64) {
    let mut peer = Peer::connect(address);
    let mut sender = Peer(peer.0.try_clone().expect("a second handle"));
    std::thread::scope(|scope| {
        scope.spawn(move || (0..count).for_each(|_| sender.send(request)));
        for _ in 0..count {
            let Came::Answer(answer) = peer.receive(Duration::from_secs(60)) else {
                panic!("a flood is slowed down, not hung up on")
            };
            assert!(written(&answer[4..]).iter().all(|(_, error, _)| *error == 0));
        }
    });
}

#[test]
fn announced_requests_that_do_not_come_take_no_memory_from_others() {
    let mut broker = Broker::start(&[BOUNDED, ("slow.reader.timeout.ms", "600000")]);
    let topic = fresh("announced");
    create_topic(&broker.bootstrap(), &topic, 4);
    let mut stalled = Vec::new();
    for number in 0..60 {
        let mut peer = Peer::connect(broker.address());
        peer.send_raw(&(7_i32 << 20).to_be_bytes());
        // Some have sent more than half.
        let sent = if number < 6 { 4 << 20 } else { 100 };
        peer.0.set_write_timeout(Some(Duration::from_millis(300))).expect("above zero");
        peer.send_raw(&vec![0; sent]);
        stalled.push(peer);
    }
    let mut peers: Vec<Peer> = (0..8).map(|_| Peer::connect(broker.address())).collect();
    for peer in &mut peers {
        assert_eq!(peer.ask(&api_versions())[..2], [0, 0]);
        let outcome = written(&peer.ask(&produce_many(&topic, &[(0, 2000), (1, 2000)])));
        assert!(outcome.iter().all(|(_, error, _)| *error == 0), "{outcome:?}");
    }
    assert!(broker.resident_bytes() < RESIDENT_MAX);
    drop(stalled);
    let large = [(0, 900_000), (1, 900_000), (2, 900_000), (3, 900_000)];
    for peer in &mut peers {
        let outcome = written(&peer.ask(&produce_many(&topic, &large)));
        assert!(outcome.iter().all(|(_, error, _)| *error == 0), "{outcome:?}");
    }
    broker.assert_alive();
}

/// Large records into two partitions, so many times.
fn write_large(writer: &mut Peer, topic: &str, count: i64) {
    let request = produce_many(topic, &[(0, 900_000), (1, 900_000)]);
    for _ in 0..count {
        let outcome = written(&writer.ask(&request));
        assert!(outcome.iter().all(|(_, error, _)| *error == 0), "{outcome:?}");
    }
}

/// A Fetch of several of them.
fn ask_much(topic: &str, partition: i32, offset: i64) -> Vec<u8> {
    let parts = &[(partition, offset, 8 << 20)];
    Ask { topic, parts, wait_ms: 0, bytes_min: 1, bytes_max: 8 << 20 }.encode()
}

#[test]
fn readers_that_take_nothing_leave_memory_to_writers() {
    let mut broker = Broker::start(&[BOUNDED]);
    let topic = fresh("untaken");
    create_topic(&broker.bootstrap(), &topic, 2);
    let mut writer = Peer::connect(broker.address());
    let mut write = |count| write_large(&mut writer, &topic, count);
    write(150);
    let ask = |partition, offset| ask_much(&topic, partition, offset);
    let mut readers = Vec::new();
    for number in 0..40 {
        for partition in [0, 1] {
            let mut reader = Peer::connect(broker.address());
            reader.send(&ask(partition, number * 3));
            readers.push(reader);
        }
    }
    std::thread::sleep(Duration::from_millis(500));
    write(20);
    assert!(broker.resident_bytes() < RESIDENT_MAX);
    // Who takes its answer gets more.
    let mut reader = Peer::connect(broker.address());
    let answer = reader.ask(&ask(0, 5));
    assert!(fetched(&answer).iter().any(|part| part.bytes > 800_000));
    broker.assert_alive();
}

/// Each held a part of the journal's own memory for as long as it liked, until the core could write,
/// drain and read nothing more.
#[test]
fn readers_of_the_newest_that_take_nothing_leave_memory_to_writers() {
    const ROUNDS: i64 = 12;
    const EACH: i64 = 8;
    let mut broker = Broker::start(&[BOUNDED]);
    let topic = fresh("newest");
    create_topic(&broker.bootstrap(), &topic, 2);
    let mut writer = Peer::connect(broker.address());
    let mut write = |count| write_large(&mut writer, &topic, count);
    let ask = |partition, offset| ask_much(&topic, partition, offset);
    let mut readers = Vec::new();
    for round in 0..ROUNDS {
        // What is in memory only, while older records are drained.
        write(EACH);
        for partition in [0, 1] {
            for _ in 0..3 {
                let mut reader = Peer::connect(broker.address());
                SockRef::from(&reader.0).set_recv_buffer_size(4096).expect("it can be small");
                reader.send(&ask(partition, round * EACH));
                readers.push(reader);
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    write(60);
    assert!(broker.resident_bytes() < RESIDENT_MAX, "{} MiB", broker.resident_bytes() >> 20);
    assert!(!broker.log().contains("cannot be drained"), "{}", broker.log());
    // Who takes its answer gets on, from the oldest to the newest.
    let mut reader = Peer::connect(broker.address());
    for offset in [0, ROUNDS * EACH, ROUNDS * EACH + 59] {
        let found = fetched(&reader.ask(&ask(1, offset)));
        assert!(found.iter().any(|part| part.bytes > 800_000), "{offset}: {found:?}");
    }
    broker.assert_alive();
    drop(readers);
    let until = Instant::now() + SOON;
    while fetched(&reader.ask(&ask(0, 0))).iter().all(|part| part.bytes < 4_000_000) {
        assert!(Instant::now() < until, "answers stay small");
    }
}

#[test]
fn nothing_is_left_of_connections_that_are_reset() {
    let mut broker = Broker::start(&[]);
    let topic = fresh("reset");
    create_topic(&broker.bootstrap(), &topic, 4);
    let large = Batch { value_bytes: 900_000, ..Batch::default() }.encode();
    let mut writer = Peer::connect(broker.address());
    for _ in 0..8 {
        writer.ask(&produce(&topic, &large));
    }
    let before = broker.sockets();
    for _ in 0..3 {
        for number in 0..160 {
            let mut peer = Peer::connect(broker.address());
            match number % 8 {
                0 => {}
                1 => peer.send_raw(&[0, 0]),
                2 => peer.send_raw(&[0, 0, 9, 0, 0, 18]),
                3 => peer.send(&api_versions()),
                4 => peer.send(&produce(&topic, &large)),
                5 => peer.send(&fetch(&topic, 8 << 20)),
                6 => peer.send(&poll(&topic, 8, 300, 1 << 20)),
                _ => (0..20).for_each(|_| peer.send(&produce_many(&topic, &[(number % 4, 10)]))),
            }
            if number % 3 == 0 {
                peer.receive(Duration::from_millis(1));
            }
            SockRef::from(&peer.0).set_linger(Some(Duration::ZERO)).expect("it can be reset");
        }
        await_sockets(&mut broker, before);
    }
    assert_eq!(writer.ask(&api_versions())[..2], [0, 0]);
}

fn await_sockets(broker: &mut Broker, wanted: usize) {
    let until = Instant::now() + SOON;
    while broker.sockets() > wanted {
        broker.assert_alive();
        let open = broker.sockets();
        assert!(Instant::now() < until, "{open} sockets, {wanted} before");
        std::thread::sleep(Duration::from_millis(20));
    }
}
