//! Bad bytes, bad manners: each gets the protocol's error or a closed connection, memory stays
//! inside its bound, and another client notices nothing.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::frames::{
    Batch, Bytes, Came, Peer, api_versions, fetch, metadata, produce, produced, request,
};
use crate::librdkafka::create_topic;
use crate::world::{Broker, fresh};

const SOON: Duration = Duration::from_secs(10);

const CORRUPT_MESSAGE: i16 = 2;
const INVALID_TOPIC: i16 = 17;
const INVALID_TIMESTAMP: i16 = 32;
const UNSUPPORTED_VERSION: i16 = 35;
const INVALID_CONFIG: i16 = 40;
const UNSUPPORTED_FOR_MESSAGE_FORMAT: i16 = 43;
const INVALID_RECORD: i16 = 87;

/// What each core may hold.
const BOUNDED: (&str, &str) = ("core.memory.bytes", "67108864");

/// What the process may hold: both its cores, and its own code and tables beside them.
const RESIDENT_MAX: u64 = (2 * 64 + 128) << 20;

/// Another client is served, and the broker keeps to its memory.
fn assert_well(broker: &mut Broker) {
    broker.assert_alive();
    let answer = Peer::connect(broker.address()).ask(&api_versions());
    assert_eq!(answer[..2], [0, 0], "ApiVersions without error");
    let resident = broker.resident_bytes();
    assert!(resident < RESIDENT_MAX, "{} MiB resident", resident >> 20);
}

#[test]
fn lengths_that_cannot_be_close_the_connection() {
    let mut broker = Broker::start(&[BOUNDED]);
    for length in [-1, i32::MIN, i32::MAX, 200 << 20] {
        let mut peer = Peer::connect(broker.address());
        peer.send_raw(&Bytes::default().i32(length).i16(18).i16(0).0);
        assert_eq!(peer.receive(SOON), Came::Closed, "length {length}");
    }
    let mut peer = Peer::connect(broker.address());
    peer.send_raw(&[0; 4]);
    assert_eq!(peer.receive(SOON), Came::Closed, "an empty frame");
    assert_well(&mut broker);
}

#[test]
fn other_protocols_are_turned_away_with_one_line_each() {
    let mut broker = Broker::start(&[BOUNDED]);
    let hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    for greeting in [&b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..], &hello] {
        let before = broker.log().lines().count();
        let mut peer = Peer::connect(broker.address());
        peer.send_raw(greeting);
        assert_eq!(peer.receive(SOON), Came::Closed, "{greeting:?}");
        let until = Instant::now() + SOON;
        while broker.log().lines().count() == before && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(broker.log().lines().count(), before + 1, "{}", broker.log());
    }
    assert_well(&mut broker);
}

#[test]
fn half_a_frame_holds_up_nobody_else() {
    let mut broker = Broker::start(&[BOUNDED]);
    let whole = api_versions();
    let length = u32::try_from(whole.len()).expect("small").to_be_bytes();
    let mut waiting = Vec::new();
    for cut in 0..whole.len() {
        let mut peer = Peer::connect(broker.address());
        peer.send_raw(&length);
        peer.send_raw(&whole[..cut]);
        waiting.push((peer, cut));
    }
    assert_well(&mut broker);
    for (mut peer, cut) in waiting {
        peer.send_raw(&whole[cut..]);
        assert!(matches!(peer.receive(SOON), Came::Answer(_)), "cut at {cut}");
    }
}

#[test]
fn unknown_apis_and_versions() {
    let mut broker = Broker::start(&[BOUNDED]);
    let mut peer = Peer::connect(broker.address());
    let answer = peer.ask(&request(18, 99, Bytes::default()));
    assert_eq!(answer[..2], UNSUPPORTED_VERSION.to_be_bytes(), "ApiVersions in its version 0");
    assert_eq!(peer.ask(&api_versions())[..2], [0, 0], "and the connection goes on");
    for (api, version) in [(9999, 0), (-1, 0), (3, 99), (0, -1), (1, 0), (18, -1)] {
        let mut peer = Peer::connect(broker.address());
        peer.send(&request(api, version, Bytes::default().i32(0)));
        let came = peer.receive(SOON);
        let refused = match &came {
            Came::Closed => true,
            Came::Answer(answer) => answer.get(4..6) == Some(&UNSUPPORTED_VERSION.to_be_bytes()),
            Came::Nothing => false,
        };
        assert!(refused, "api {api} version {version}: {came:?}");
    }
    assert_well(&mut broker);
}

/// Every field of a request turned to every extreme, and the request cut at every byte.
#[test]
fn lies_in_every_field() {
    let mut broker = Broker::start(&[BOUNDED]);
    let topic = fresh("lies");
    create_topic(&broker.bootstrap(), &topic, 1);
    let requests = [
        metadata(&topic),
        produce(&topic, &Batch::default().encode()),
        fetch(&topic, 1000),
        request(2, 1, Bytes::default().i32(-1).i32(1).string(&topic).i32(1).i32(0).i64(-1)),
        request(9, 1, Bytes::default().string("g").i32(1).string(&topic).i32(1).i32(0)),
        request(10, 1, Bytes::default().string("g").i8(0)),
        request(12, 1, Bytes::default().string("g").i32(1).string("m")),
        request(15, 1, Bytes::default().i32(1).string("g")),
        request(
            19,
            2,
            Bytes::default().i32(1).string("t").i32(1).i16(1).i32(0).i32(0).i32(9).i8(1),
        ),
    ];
    let extremes = [i32::MAX, i32::MIN, -1, 0x7fff_0000, 1_000_000];
    for whole in &requests {
        for at in 8..whole.len() {
            throw(&broker, &whole[..at]);
            for extreme in extremes {
                let mut lie = whole.clone();
                let end = lie.len().min(at + 4);
                lie[at..end].copy_from_slice(&extreme.to_be_bytes()[..end - at]);
                throw(&broker, &lie);
            }
        }
        assert_well(&mut broker);
    }
}

/// Sends a request and goes away, as soon as anything came back or a moment has passed.
fn throw(broker: &Broker, request: &[u8]) {
    let mut peer = Peer::connect(broker.address());
    peer.send(request);
    peer.end();
    peer.receive(Duration::from_millis(50));
}

#[test]
fn batches_that_lie_are_refused_and_leave_no_trace() {
    let mut broker = Broker::start(&[BOUNDED]);
    let topic = fresh("batches");
    create_topic(&broker.bootstrap(), &topic, 1);
    let mut peer = Peer::connect(broker.address());
    let lies: [(&str, Batch, &[i16]); 7] = [
        ("checksum", Batch { crc_error: 1, ..Batch::default() }, &[CORRUPT_MESSAGE]),
        (
            "magic 1",
            Batch { magic: 1, ..Batch::default() },
            &[CORRUPT_MESSAGE, UNSUPPORTED_FOR_MESSAGE_FORMAT, INVALID_RECORD],
        ),
        (
            "magic 9",
            Batch { magic: 9, ..Batch::default() },
            &[CORRUPT_MESSAGE, UNSUPPORTED_FOR_MESSAGE_FORMAT, INVALID_RECORD],
        ),
        ("count", Batch { count: 1000, ..Batch::default() }, &[CORRUPT_MESSAGE, INVALID_RECORD]),
        ("no count", Batch { count: -1, ..Batch::default() }, &[CORRUPT_MESSAGE, INVALID_RECORD]),
        (
            "last offset",
            Batch { last_offset_delta: 7, ..Batch::default() },
            &[CORRUPT_MESSAGE, INVALID_RECORD],
        ),
        (
            "length",
            Batch { length_error: 100, ..Batch::default() },
            &[CORRUPT_MESSAGE, INVALID_RECORD],
        ),
    ];
    for (what, lie, codes) in lies {
        let (code, _) = produced(&peer.ask(&produce(&topic, &lie.encode())), &topic);
        assert!(codes.contains(&code), "{what}: error code {code}, not one of {codes:?}");
    }
    let good = produce(&topic, &Batch::default().encode());
    assert_eq!(produced(&peer.ask(&good), &topic), (0, 0), "the first record that is stored");
    assert_well(&mut broker);
}

#[test]
fn timestamps_that_lie_are_refused_or_put_right() {
    let mut broker = Broker::start(&[BOUNDED]);
    let topic = fresh("times");
    create_topic(&broker.bootstrap(), &topic, 1);
    let mut peer = Peer::connect(broker.address());
    let far = 4_102_444_800_000;
    let lies = [
        ("the year 2100", Batch { timestamp: far, max_timestamp: far, ..Batch::default() }),
        ("2100 behind a sound header", Batch { timestamp: far, ..Batch::default() }),
        ("the end of time", Batch { timestamp: i64::MAX, ..Batch::default() }),
        ("the broker's own kind", Batch { attributes: 8, ..Batch::default() }),
    ];
    for (what, lie) in lies {
        let (code, _) = produced(&peer.ask(&produce(&topic, &lie.encode())), &topic);
        assert_eq!(code, INVALID_TIMESTAMP, "{what}");
    }
    let old = fresh("recent");
    let recent = Some(("message.timestamp.before.max.ms", "60000"));
    assert_eq!(create(&mut peer, &old, recent), 0);
    let (code, _) = produced(&peer.ask(&produce(&old, &Batch::default().encode())), &old);
    assert_eq!(code, INVALID_TIMESTAMP, "older than the topic allows");

    let none = Batch { timestamp: -1, max_timestamp: -1, ..Batch::default() };
    let untrue = Batch { max_timestamp: far, ..Batch::default() };
    for (at, fine) in [&none, &untrue].into_iter().enumerate() {
        let (code, offset) = produced(&peer.ask(&produce(&topic, &fine.encode())), &topic);
        assert_eq!((code, offset), (0, at as i64));
    }
    // A consumer gets what the record says, under a checksum that holds.
    let answer = peer.ask(&fetch(&topic, 1 << 20));
    let mut wanted = Batch::default().encode();
    wanted[..8].copy_from_slice(&1_i64.to_be_bytes());
    let got = &answer[answer.len() - wanted.len()..];
    let leader_epoch = 12..16;
    wanted[leader_epoch.clone()].copy_from_slice(&got[leader_epoch]);
    assert_eq!(got, wanted);
    assert_well(&mut broker);
}

#[test]
fn five_thousand_connections_opened_and_abandoned() {
    let mut broker = Broker::start(&[BOUNDED]);
    let mut opened = 0;
    while opened < 5_000 {
        // As many at once as an ordinary limit on open files allows a process.
        let wave: Vec<TcpStream> =
            (0..500).map(|_| TcpStream::connect(broker.address()).expect("accepted")).collect();
        opened += wave.len();
        assert_well(&mut broker);
    }
    assert_well(&mut broker);
}

#[test]
fn a_consumer_that_never_reads_is_dropped() {
    let mut broker = Broker::start(&[BOUNDED, ("slow.reader.timeout.ms", "1000")]);
    let topic = fresh("unread");
    create_topic(&broker.bootstrap(), &topic, 1);
    let mut writer = Peer::connect(broker.address());
    let large = Batch { value_bytes: 900_000, ..Batch::default() }.encode();
    for _ in 0..16 {
        let (code, _) = produced(&writer.ask(&produce(&topic, &large)), &topic);
        assert_eq!(code, 0);
    }
    let mut deaf = Peer::connect(broker.address());
    deaf.0.set_write_timeout(Some(Duration::from_secs(1))).expect("a timeout above zero");
    for _ in 0..200 {
        deaf.send(&fetch(&topic, 8 << 20));
    }
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        assert_well(&mut broker);
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut taken = 0;
    while let Came::Answer(_) = deaf.receive(SOON) {
        taken += 1;
    }
    assert!(taken < 200, "it got all {taken} answers, so it was never dropped");
}

#[test]
fn topic_names_and_configs_out_of_range() {
    let mut broker = Broker::start(&[BOUNDED]);
    let mut peer = Peer::connect(broker.address());
    let long = "a".repeat(250);
    for name in ["", ".", "..", "a b", "a/b", "ü", &long] {
        assert_eq!(create(&mut peer, name, None), INVALID_TOPIC, "`{name}`");
    }
    let fine = fresh("configured");
    for setting in [("no.such.setting", "1"), ("retention.ms", "soon"), ("max.message.bytes", "-1")]
    {
        assert_eq!(create(&mut peer, &fine, Some(setting)), INVALID_CONFIG, "{setting:?}");
    }
    assert_eq!(create(&mut peer, &fine, Some(("retention.ms", "60000"))), 0);
    assert_well(&mut broker);
}

/// CreateTopics of version 2 with one topic; its error code.
fn create(peer: &mut Peer, name: &str, setting: Option<(&str, &str)>) -> i16 {
    let body = Bytes::default().i32(1).string(name).i32(1).i16(1).i32(0);
    let body = match setting {
        Some((key, value)) => body.i32(1).string(key).string(value),
        None => body.i32(0),
    };
    let answer = peer.ask(&request(19, 2, body.i32(10_000).i8(0)));
    // The throttle time, one topic, its name, the code.
    let at = 4 + 4 + 2 + name.len();
    i16::from_be_bytes(answer[at..at + 2].try_into().expect("two bytes"))
}
