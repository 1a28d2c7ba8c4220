//! Connections: order, limits, and the ways in which clients end.

use std::time::{Duration, Instant};

use crate::asks::{Ask, fetched, poll, produce_many, written};
use crate::frames::{
    Batch, Bytes, Came, Peer, api_versions, fetch, metadata, produce, produced, request,
};
use crate::librdkafka::create_topic;
use crate::world::{Broker, fresh};

const SOON: Duration = Duration::from_secs(20);

/// The same request under another correlation id.
fn numbered(mut request: Vec<u8>, number: i32) -> Vec<u8> {
    request[4..8].copy_from_slice(&number.to_be_bytes());
    request
}

fn number_of(came: &Came) -> i32 {
    match came {
        Came::Answer(answer) => i32::from_be_bytes(answer[..4].try_into().expect("four bytes")),
        other => panic!("no answer, but {other:?}"),
    }
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let broker = Broker::start(&[]);
    let topic = fresh("ordered");
    create_topic(&broker.bootstrap(), &topic, 8);
    let mut peer = Peer::connect(broker.address());
    let parts: Vec<(i32, i64, i32)> = (0..8).map(|partition| (partition, 0, 100)).collect();
    let look = Ask { topic: &topic, parts: &parts, wait_ms: 0, bytes_min: 0, bytes_max: 1000 };
    for number in 0..400 {
        let request = match number % 8 {
            3 => metadata(&topic),
            5 => look.encode(),
            7 => api_versions(),
            // Neighbours go to partitions of different cores, and differ in size.
            _ => produce_many(&topic, &[(number * 3 % 8, 10 + (number as usize * 977) % 9000)]),
        };
        peer.send(&numbered(request, number));
    }
    for number in 0..400 {
        assert_eq!(number_of(&peer.receive(SOON)), number);
    }
}

#[test]
fn a_produce_behind_a_long_poll_waits_for_it_as_in_kafka() {
    let broker = Broker::start(&[]);
    let topic = fresh("behind");
    create_topic(&broker.bootstrap(), &topic, 1);
    let mut peer = Peer::connect(broker.address());
    peer.send(&numbered(poll(&topic, 0, 400, 1), 1));
    peer.send(&numbered(produce(&topic, &Batch::default().encode()), 2));
    peer.send(&numbered(poll(&topic, 0, 0, 0), 3));
    let first = peer.receive(SOON);
    assert_eq!(number_of(&first), 1);
    let Came::Answer(first) = first else { unreachable!("checked") };
    assert_eq!(fetched(&first[4..])[0].high_watermark, 0, "the record came after the poll");
    assert_eq!(number_of(&peer.receive(SOON)), 2);
    let Came::Answer(last) = peer.receive(SOON) else { panic!("no third answer") };
    assert_eq!(fetched(&last[4..])[0].high_watermark, 1);
}

#[test]
fn a_frame_may_be_as_large_as_the_setting_says() {
    let limit = 20_000;
    let broker = Broker::start(&[("socket.request.max.bytes", "20000")]);
    let topic = fresh("sized");
    create_topic(&broker.bootstrap(), &topic, 1);
    let overhead = produce(&topic, &Batch::default().encode()).len() - 5;
    let sized = |bytes: usize| {
        // The value's length takes two bytes more than that of five bytes, and so does the record's.
        let batch = Batch { value_bytes: bytes - overhead - 4, ..Batch::default() };
        let request = produce(&topic, &batch.encode());
        assert_eq!(request.len(), bytes);
        request
    };
    let mut peer = Peer::connect(broker.address());
    assert_eq!(produced(&peer.ask(&sized(limit)), &topic), (0, 0));
    peer.send(&sized(limit + 1));
    assert_eq!(peer.receive(SOON), Came::Closed);
    broker.await_log("a request of 20001 bytes; 10 to 20000 are taken (socket.request.max.bytes");
}

#[test]
fn connections_beyond_the_limit_are_turned_away() {
    let broker = Broker::start(&[("max.connections", "10")]);
    let ask = |peer: &mut Peer| {
        peer.send(&api_versions());
        matches!(peer.receive(SOON), Came::Answer(_))
    };
    // The one that found the broker ready has to be gone first.
    let mut open: Vec<Peer> = Vec::new();
    let until = Instant::now() + SOON;
    while open.len() < 10 {
        let mut peer = Peer::connect(broker.address());
        if ask(&mut peer) {
            open.push(peer);
        }
        assert!(Instant::now() < until, "only {} are taken", open.len());
    }
    for _ in 0..5 {
        assert!(!ask(&mut Peer::connect(broker.address())), "an eleventh");
    }
    broker.await_log("is refused: max.connections is reached");
    assert!(open.iter_mut().all(ask), "those that are in stay in");
    open.truncate(7);
    while open.len() < 10 {
        let mut peer = Peer::connect(broker.address());
        if ask(&mut peer) {
            open.push(peer);
        }
        assert!(Instant::now() < until, "no place comes free");
    }
}

#[test]
fn an_idle_connection_is_closed_and_one_at_work_is_not() {
    let mut broker = Broker::start(&[("connections.max.idle.ms", "1000")]);
    let topic = fresh("idle");
    create_topic(&broker.bootstrap(), &topic, 1);
    let mut idle = Peer::connect(broker.address());
    idle.ask(&api_versions());
    let mut silent = Peer::connect(broker.address());
    let mut busy = Peer::connect(broker.address());
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(2500) {
        busy.ask(&api_versions());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(idle.receive(SOON), Came::Closed);
    assert_eq!(silent.receive(SOON), Came::Closed);
    // A long poll ends by then as well: whether its client lives is seen when it is answered.
    busy.send(&poll(&topic, 0, 3_600_000, 1));
    assert!(matches!(busy.receive(SOON), Came::Answer(_)));
    broker.assert_alive();
}

#[test]
fn a_client_that_ends_its_half_still_gets_its_answers() {
    let broker = Broker::start(&[]);
    let topic = fresh("halved");
    create_topic(&broker.bootstrap(), &topic, 4);
    let mut writer = Peer::connect(broker.address());
    let large: Vec<(i32, usize)> = (0..4).map(|partition| (partition, 700_000)).collect();
    assert!(written(&writer.ask(&produce_many(&topic, &large))).iter().all(|w| w.1 == 0));
    let parts = [(0, 0, 1 << 20), (1, 0, 1 << 20), (2, 0, 1 << 20), (3, 0, 1 << 20)];
    let all = Ask { topic: &topic, parts: &parts, wait_ms: 0, bytes_min: 0, bytes_max: 9 << 20 };
    let mut peer = Peer::connect(broker.address());
    for number in 0..30 {
        let request = match number % 3 {
            0 => produce_many(&topic, &[(number % 4, 500)]),
            1 => all.encode(),
            _ => poll(&topic, 0, 50, 40 << 20),
        };
        peer.send(&numbered(request, number));
    }
    for partition in 0..4 {
        peer.send(&numbered(produce_many(&topic, &[(partition, 500)]), 30 + partition));
    }
    peer.end();
    for number in 0..34 {
        assert_eq!(number_of(&peer.receive(SOON)), number);
    }
    assert_eq!(peer.receive(SOON), Came::Closed);
}

#[test]
fn a_slow_reader_is_one_that_takes_nothing() {
    let broker = Broker::start(&[("slow.reader.timeout.ms", "1000")]);
    let topic = fresh("slow");
    create_topic(&broker.bootstrap(), &topic, 1);
    let mut writer = Peer::connect(broker.address());
    let large = Batch { value_bytes: 1_000_000, ..Batch::default() }.encode();
    for _ in 0..24 {
        assert_eq!(produced(&writer.ask(&produce(&topic, &large)), &topic).0, 0);
    }
    let mut deaf = Peer::connect(broker.address());
    (0..4).for_each(|_| deaf.send(&fetch(&topic, 30 << 20)));
    // Half-closed, so that only the sweeper can end it.
    deaf.end();
    let slow = Peer::connect(broker.address());
    let mut peer = slow;
    peer.send(&fetch(&topic, 30 << 20));
    let since = Instant::now();
    let mut length = [0; 4];
    read_slowly(&mut peer, &mut length);
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    read_slowly(&mut peer, &mut answer);
    println!("{} bytes in {} ms", answer.len(), since.elapsed().as_millis());
    assert_eq!(fetched(&answer[4..])[0].bases.len(), 24);
    broker.await_log("is closed: it does not take its answers");
    let closed = broker.log().matches("does not take its answers").count();
    assert_eq!(closed, 1, "{}", broker.log());
}

/// Takes some, pauses, takes some more.
fn read_slowly(peer: &mut Peer, into: &mut [u8]) {
    use std::io::Read;
    for piece in into.chunks_mut(512 << 10) {
        peer.0.read_exact(piece).expect("it is not hung up on");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_request_that_does_not_come_is_not_waited_for() {
    let broker = Broker::start(&[("slow.reader.timeout.ms", "500")]);
    let mut stalled = Peer::connect(broker.address());
    stalled.send_raw(&Bytes::default().i32(1000).i16(18).0);
    let mut trickling = Peer::connect(broker.address());
    trickling.send_raw(&1000_i32.to_be_bytes());
    let since = Instant::now();
    while trickling.receive(Duration::from_millis(50)) == Came::Nothing {
        trickling.send_raw(&[0]);
        assert!(since.elapsed() < SOON, "a trickle holds it for ever");
    }
    assert_eq!(stalled.receive(SOON), Came::Closed);
    broker.await_log("is closed: it stopped inside a request");
}

#[test]
fn acks_0_is_not_answered_and_keeps_its_place() {
    let broker = Broker::start(&[]);
    let topic = fresh("unanswered");
    create_topic(&broker.bootstrap(), &topic, 1);
    let head = Bytes::default().i16(-1).i16(0).i32(10_000).i32(1).string(&topic).i32(1).i32(0);
    let unanswered = request(0, 7, head.bytes(&Batch::default().encode()));
    let mut peer = Peer::connect(broker.address());
    (0..10).for_each(|_| peer.send(&unanswered));
    let came = peer.ask(&produce(&topic, &Batch::default().encode()));
    assert_eq!(produced(&came, &topic), (0, 10));
}
