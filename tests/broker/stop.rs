//! Stopping: what is in flight is answered, what was answered is kept, and nobody holds it up.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::asks::{fetched, poll, produce_many, written};
use crate::frames::{Batch, Bytes, Came, Peer, api_versions, fetch, produce, produced, request};
use crate::librdkafka::create_topic;
use crate::world::{Broker, fresh};

const SOON: Duration = Duration::from_secs(10);

/// Asks it to stop; how long that took, which is printed and loosely bounded.
fn stop(broker: &mut Broker, signal: &str) {
    let asked = Instant::now();
    broker.signal(signal);
    let status = broker.ended();
    println!("SIG{signal}: {status} after {} ms", asked.elapsed().as_millis());
    assert_eq!(status.code(), Some(0), "{}", broker.log());
    assert!(broker.log().contains("stopped"), "{}", broker.log());
    assert!(asked.elapsed() < SOON, "somebody held it up");
}

#[test]
fn a_signal_ends_it_with_connections_of_every_kind() {
    for signal in ["TERM", "INT"] {
        let mut broker = Broker::start(&[("slow.reader.timeout.ms", "60000")]);
        let topic = fresh("stopped");
        create_topic(&broker.bootstrap(), &topic, 1);
        let mut writer = Peer::connect(broker.address());
        let large = Batch { value_bytes: 900_000, ..Batch::default() }.encode();
        for _ in 0..12 {
            assert_eq!(produced(&writer.ask(&produce(&topic, &large)), &topic).0, 0);
        }
        let mut idle: Vec<Peer> = (0..20).map(|_| Peer::connect(broker.address())).collect();
        idle.iter_mut().for_each(|peer| drop(peer.ask(&api_versions())));
        let mut half = Peer::connect(broker.address());
        half.send_raw(&[0, 0, 1]);
        let mut begun = Peer::connect(broker.address());
        begun.send_raw(&(5_i32 << 20).to_be_bytes());
        begun.send_raw(&[0; 100]);
        let mut waiting = Peer::connect(broker.address());
        waiting.send(&poll(&topic, 12, 3_600_000, 1));
        let mut group = Peer::connect(broker.address());
        group.send(&join("held"));
        std::thread::sleep(Duration::from_millis(100));
        if signal == "TERM" {
            // One that takes nothing is what the wait has its limit for.
            let mut deaf = Peer::connect(broker.address());
            (0..8).for_each(|_| deaf.send(&fetch(&topic, 12 << 20)));
            std::thread::sleep(Duration::from_millis(100));
            stop(&mut broker, signal);
            drop(deaf);
        } else {
            stop(&mut broker, signal);
        }
        let Came::Answer(answer) = waiting.receive(SOON) else { panic!("the long poll hangs up") };
        assert!(fetched(&answer[4..])[0].bases.is_empty());
        assert_eq!(waiting.receive(SOON), Came::Closed);
        for peer in &mut idle {
            assert_eq!(peer.receive(SOON), Came::Closed);
        }
    }
}

/// A start that takes long, or hangs on its disk, heard no signal until it was ready.
#[test]
fn a_signal_ends_a_start_that_hangs() {
    for signal in ["TERM", "INT"] {
        let mut broker = Broker::start(&[]);
        stop(&mut broker, "TERM");
        let node = broker.data().join("node.toml");
        let text = std::fs::read(&node).expect("there");
        std::fs::remove_file(&node).expect("removed");
        // Whoever opens it to read waits for one that writes, and then for what that writes.
        let made = Command::new("mkfifo").arg(&node).status().expect("a mkfifo command");
        assert!(made.success());
        broker.begin();
        let mut options = File::options();
        options.write(true).custom_flags(libc::O_NONBLOCK);
        let until = Instant::now() + SOON;
        let held = loop {
            match options.open(&node) {
                Ok(held) => break held,
                Err(error) => assert!(Instant::now() < until, "nobody reads it: {error}"),
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let asked = Instant::now();
        broker.signal(signal);
        assert_eq!(broker.ended().code(), Some(0), "{}", broker.log());
        assert!(asked.elapsed() < SOON);
        broker.await_log("before it was ready");
        drop(held);
        std::fs::remove_file(&node).expect("removed");
        std::fs::write(&node, text).expect("written");
        broker.launch();
    }
}

/// JoinGroup of version 2: the group waits for more members, for ten seconds.
fn join(group: &str) -> Vec<u8> {
    let body = Bytes::default().string(group).i32(10_000).i32(10_000).string("");
    request(11, 2, body.string("consumer").i32(1).string("range").bytes(&[0; 4]))
}

/// Every record that was admitted is acknowledged, every acknowledged one is there after.
#[test]
fn what_is_in_flight_at_the_signal_is_answered_and_kept() {
    for durability in ["fsync", "replicated"] {
        let settings = [("durability", durability), ("flush.interval.ms", "60000")];
        let mut broker = Broker::start(&settings);
        let topic = fresh("flight");
        create_topic(&broker.bootstrap(), &topic, 4);
        let acknowledged = Mutex::new([0_i64; 4]);
        let address = broker.address();
        std::thread::scope(|scope| {
            for partition in 0..4 {
                let (acknowledged, topic) = (&acknowledged, &topic);
                scope.spawn(move || {
                    let count = write_on(&mut Peer::connect(address), topic, partition);
                    acknowledged.lock().expect("no panic inside")[partition as usize] = count;
                });
            }
            std::thread::sleep(Duration::from_millis(400));
            stop(&mut broker, "TERM");
        });
        broker.launch();
        let mut peer = Peer::connect(broker.address());
        let found: Vec<i64> = (0..4)
            .map(|partition| {
                let parts = [(partition, 0, 1)];
                let ask = crate::asks::Ask {
                    topic: &topic,
                    parts: &parts,
                    wait_ms: 0,
                    bytes_min: 0,
                    bytes_max: 1,
                };
                fetched(&peer.ask(&ask.encode()))[0].high_watermark
            })
            .collect();
        let told = *acknowledged.lock().expect("no panic inside");
        println!("{durability}: {told:?} acknowledged");
        assert!(told.iter().all(|count| *count > 0), "there was load: {told:?}");
        assert_eq!(found, told, "{durability}: in the log, and acknowledged");
    }
}

/// Keeps some requests under way until the broker hangs up; how many were acknowledged.
fn write_on(peer: &mut Peer, topic: &str, partition: i32) -> i64 {
    let request = produce_many(topic, &[(partition, 2000)]);
    (0..8).for_each(|_| peer.send(&request));
    let mut count = 0;
    while let Came::Answer(answer) = peer.receive(Duration::from_secs(20)) {
        assert_eq!(written(&answer[4..]), [(partition, 0, count)]);
        count += 1;
        peer.send(&request);
    }
    count
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut broker = Broker::start(&[]);
    let topic = fresh("hurried");
    create_topic(&broker.bootstrap(), &topic, 1);
    // A group's member that waits for the others holds the first signal up.
    let mut group = Peer::connect(broker.address());
    group.send(&join("held"));
    group.send(&join("held"));
    std::thread::sleep(Duration::from_millis(200));
    let pid = broker.pid();
    let both = format!("kill -s TERM {pid}; kill -s INT {pid}");
    assert!(Command::new("sh").args(["-c", &both]).status().expect("a shell").success());
    let status = broker.ended();
    assert_eq!(status.code(), Some(1), "{status}\n{}", broker.log());
    assert!(!broker.log().contains("stopped"), "{}", broker.log());
    let _ = group.0.flush();
}
