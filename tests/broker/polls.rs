//! Fetch: how long it waits, how much it gives, and what waiting costs.

use std::time::{Duration, Instant};

use crate::asks::{Ask, fetched, poll, produce_many, written};
use crate::frames::{Came, Peer};
use crate::librdkafka::create_topic;
use crate::world::{Broker, fresh};

const SOON: Duration = Duration::from_secs(20);

/// A broker with a topic of four partitions, and a connection to it.
fn with_topic() -> (Broker, String, Peer) {
    let broker = Broker::start(&[]);
    let topic = fresh("polled");
    create_topic(&broker.bootstrap(), &topic, 4);
    let peer = Peer::connect(broker.address());
    (broker, topic, peer)
}

fn write(peer: &mut Peer, topic: &str, parts: &[(i32, usize)]) {
    let outcome = written(&peer.ask(&produce_many(topic, parts)));
    assert!(outcome.iter().all(|(_, error, _)| *error == 0), "{outcome:?}");
}

#[test]
fn a_poll_waits_for_max_wait_and_gives_what_there_is() {
    let (_broker, topic, mut peer) = with_topic();
    for (written, bases) in [(false, vec![]), (true, vec![0])] {
        if written {
            write(&mut peer, &topic, &[(0, 100)]);
        }
        let since = Instant::now();
        let found = fetched(&peer.ask(&poll(&topic, 0, 300, 100_000)));
        assert!(since.elapsed() >= Duration::from_millis(300), "{:?}", since.elapsed());
        assert_eq!(found[0].bases, bases);
        assert_eq!(fetched(&peer.ask(&poll(&topic, 0, 60_000, 0)))[0].bases, bases, "no minimum");
    }
    assert_eq!(fetched(&peer.ask(&poll(&topic, 0, 60_000, 1)))[0].bases, [0], "it is there");
    assert_eq!(fetched(&peer.ask(&poll(&topic, 99, 60_000, 1)))[0].error, 1, "an error at once");
}

#[test]
fn a_poll_ends_when_min_bytes_have_come_from_anywhere() {
    let (broker, topic, mut writer) = with_topic();
    let mut peer = Peer::connect(broker.address());
    let parts: Vec<(i32, i64, i32)> = (0..4).map(|partition| (partition, 0, 1 << 20)).collect();
    let ask =
        Ask { topic: &topic, parts: &parts, wait_ms: 120_000, bytes_min: 8000, bytes_max: 1 << 20 };
    peer.send(&ask.encode());
    for partition in 0..3 {
        write(&mut writer, &topic, &[(partition, 2000)]);
        assert_eq!(peer.receive(Duration::from_millis(100)), Came::Nothing);
    }
    write(&mut writer, &topic, &[(3, 2000)]);
    let Came::Answer(answer) = peer.receive(SOON) else { panic!("min.bytes are there") };
    let found = fetched(&answer[4..]);
    assert!(found.iter().all(|part| part.bases == [0] && part.bytes > 2000), "{found:?}");
}

#[test]
fn max_bytes_hold_for_the_whole_and_for_each_partition() {
    let (_broker, topic, mut peer) = with_topic();
    for _ in 0..10 {
        write(&mut peer, &topic, &[(0, 1000), (1, 1000), (2, 1000), (3, 1000)]);
    }
    let mut ask = |each: i32, whole: i32| {
        let parts: Vec<(i32, i64, i32)> = (0..4).map(|partition| (partition, 0, each)).collect();
        let ask = Ask { topic: &topic, parts: &parts, wait_ms: 0, bytes_min: 0, bytes_max: whole };
        fetched(&peer.ask(&ask.encode())).iter().map(|part| part.bytes).collect::<Vec<usize>>()
    };
    let all = ask(1 << 20, 1 << 20);
    assert!(all.iter().all(|bytes| *bytes > 10_000 && *bytes == all[0]), "{all:?}");
    let batch = all[0] / 10;
    assert_eq!(ask(i32::try_from(3 * batch).expect("small"), 1 << 20), [3 * batch; 4]);
    assert_eq!(ask(i32::try_from(4 * batch - 1).expect("small"), 1 << 20), [3 * batch; 4]);
    let whole: usize = ask(1 << 20, i32::try_from(16 * batch + 1).expect("small")).iter().sum();
    assert!(whole <= 16 * batch && whole >= 8 * batch, "{whole} of at most {}", 16 * batch + 1);
    // Since KIP-74 a batch larger than every limit is given all the same, one in an answer.
    for (each, whole) in [(1, 1 << 20), (1, 1), (1 << 20, 1), (0, 0)] {
        let found = ask(each, whole);
        assert_eq!(found[0], batch, "limits {each} and {whole}: {found:?}");
        assert_eq!(found[1..], [0; 3], "limits {each} and {whole}");
    }
}

/// Waits until the broker has read what was sent to it and has nothing to do.
fn until_quiet(broker: &Broker) {
    let until = Instant::now() + SOON;
    while Instant::now() < until {
        let busy = broker.cpu_time();
        std::thread::sleep(Duration::from_millis(500));
        if broker.cpu_time() - busy < Duration::from_millis(15) {
            return;
        }
    }
}

#[test]
fn two_hundred_open_polls_cost_nothing_and_all_wake() {
    let (mut broker, topic, mut writer) = with_topic();
    let mut polls: Vec<Peer> = (0..200).map(|_| Peer::connect(broker.address())).collect();
    let parts: Vec<(i32, i64, i32)> = (0..4).map(|partition| (partition, 0, 1 << 20)).collect();
    let ask =
        Ask { topic: &topic, parts: &parts, wait_ms: 120_000, bytes_min: 1, bytes_max: 1 << 20 };
    polls.iter_mut().for_each(|peer| peer.send(&ask.encode()));
    std::thread::sleep(Duration::from_millis(700));
    let (busy, since) = (broker.cpu_time(), Instant::now());
    std::thread::sleep(Duration::from_secs(2));
    let share = (broker.cpu_time() - busy).as_secs_f64() / since.elapsed().as_secs_f64();
    println!("200 open polls: {:.2} % of one core", share * 100.0);
    assert!(share < 0.2, "{share} of a core");
    write(&mut writer, &topic, &[(2, 100)]);
    for peer in &mut polls {
        let Came::Answer(answer) = peer.receive(SOON) else { panic!("a poll sleeps on") };
        assert_eq!(fetched(&answer[4..])[2].bases, [0]);
    }
    // And again with all of them open at the end.
    polls.iter_mut().for_each(|peer| peer.send(&poll(&topic, 0, 120_000, 1)));
    until_quiet(&broker);
    broker.signal("TERM");
    assert!(broker.ended().success(), "{}", broker.log());
    for peer in &mut polls {
        assert!(matches!(peer.receive(SOON), Came::Answer(_)));
    }
}
