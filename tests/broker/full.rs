//! The journal from outside: full, on a file system without O_DIRECT, and in both its modes.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::asks::{Ask, Walk, fetched, poll, produce_many, written};
use crate::cage::on_ramfs;
use crate::frames::{Batch, Bytes, PRODUCE, Peer, produce, produced, request};
use crate::librdkafka::create_topic;
use crate::world::{Broker, end_of, free_address, fresh, serve};

const KAFKA_STORAGE_ERROR: i16 = 56;

/// Produce of version 8, whose answer says why: code, offset, words.
pub fn produce_in_words(peer: &mut Peer, topic: &str, records: &[u8]) -> (i16, i64, String) {
    let head = Bytes::default().i16(-1).i16(-1).i32(10_000).i32(1).string(topic);
    let answer = peer.ask(&request(PRODUCE, 8, head.i32(1).i32(0).bytes(records)));
    let mut walk = Walk(&answer);
    walk.i32();
    walk.string();
    walk.skip(8);
    let (code, offset) = (walk.i16(), walk.i64());
    walk.skip(16);
    assert_eq!(walk.i32(), 0, "errors of single records");
    (code, offset, walk.string())
}

/// Reads all of partition 0 from an offset on, batch by batch.
pub fn read_all(peer: &mut Peer, topic: &str, from: i64) -> i64 {
    let mut next = from;
    loop {
        let parts = [(0, next, 4 << 20)];
        let ask = Ask { topic, parts: &parts, wait_ms: 0, bytes_min: 0, bytes_max: 4 << 20 };
        let found = fetched(&peer.ask(&ask.encode())).remove(0);
        assert_eq!(found.error, 0);
        if next == found.high_watermark {
            return next;
        }
        assert_eq!(found.bases.first(), Some(&next), "the records go on");
        next = found.bases.last().expect("a batch") + 1;
    }
}

#[test]
fn a_journal_that_cannot_be_drained_refuses_writes_and_nothing_else() {
    let limit = 64 << 20;
    let settings = [("cores", "0"), ("shards", "1"), ("journal.bytes.max", "67108864")];
    let mut broker = Broker::start(&settings);
    // Where the segments' folder should be, there is a file.
    let stone = broker.data().join("core-0/segments");
    std::fs::write(&stone, "").expect("writable");
    let (topic, other) = (fresh("full"), fresh("other"));
    create_topic(&broker.bootstrap(), &topic, 1);
    create_topic(&broker.bootstrap(), &other, 1);
    let large = Batch { value_bytes: 1_000_000, ..Batch::default() }.encode();
    let mut peer = Peer::connect(broker.address());
    // Sent again when the journal is full: what is there needs no room.
    let known = Batch { producer: (1_000_000, 0), value_bytes: 200_000, ..Batch::default() };
    let known = known.encode();
    assert_eq!(produce_in_words(&mut peer, &topic, &known).0, 0);
    let mut count = 1;
    let words = loop {
        let (code, offset, words) = produce_in_words(&mut peer, &topic, &large);
        if code != 0 {
            assert_eq!(code, KAFKA_STORAGE_ERROR, "{words}");
            break words;
        }
        assert_eq!(offset, count);
        count += 1;
    };
    assert!(words.contains("the journal is full: journal.bytes.max leaves"), "{words}");
    broker.await_log("an old journal file cannot be drained");
    assert!((limit / 2..limit * 3 / 4).contains(&(count * 1_000_000)), "{count} records");
    assert_eq!(read_all(&mut peer, &topic, 0), count, "reads go on");
    // Also the smallest record, once nothing is left; metadata and deletions go on.
    let small = Batch { value_bytes: 100_000, ..Batch::default() }.encode();
    while produce_in_words(&mut peer, &other, &small).0 == 0 {}
    let (code, offset, words) = produce_in_words(&mut peer, &topic, &known);
    assert_eq!((code, offset), (0, 0), "a batch that is there already: {words}");
    assert_eq!(delete_records(&mut peer, &topic, 5), (5, 0));
    let made = fresh("made");
    create_topic(&broker.bootstrap(), &made, 1);

    broker.restart();
    let mut peer = Peer::connect(broker.address());
    assert_eq!(fetched(&peer.ask(&poll(&topic, 4, 0, 0)))[0].error, 1, "deleted records");
    assert_eq!(read_all(&mut peer, &topic, 5), count);
    assert_eq!(produce_in_words(&mut peer, &topic, &large).0, KAFKA_STORAGE_ERROR);
    assert_eq!(delete_topic(&mut peer, &other), 0);
    assert_eq!(fetched(&peer.ask(&poll(&other, 0, 0, 0)))[0].error, 3, "a deleted topic");

    // What stands in the way is taken away: writes resume by themselves.
    std::fs::remove_file(&stone).expect("there");
    let until = Instant::now() + Duration::from_secs(20);
    let mut code = KAFKA_STORAGE_ERROR;
    while code != 0 {
        assert!(Instant::now() < until, "writes do not resume: {}", broker.log());
        std::thread::sleep(Duration::from_millis(100));
        let (found, offset, words) = produce_in_words(&mut peer, &topic, &large);
        assert!(found != 0 || offset == count, "{offset}: {words}");
        code = found;
    }
    assert_eq!(read_all(&mut peer, &topic, 5), count + 1);
}

/// DeleteRecords of version 0: the low watermark and the error code.
pub fn delete_records(peer: &mut Peer, topic: &str, before: i64) -> (i64, i16) {
    let body = Bytes::default().i32(1).string(topic).i32(1).i32(0).i64(before).i32(10_000);
    let answer = peer.ask(&request(21, 0, body));
    let mut walk = Walk(&answer);
    walk.skip(8);
    walk.string();
    walk.skip(8);
    (walk.i64(), walk.i16())
}

/// DeleteTopics of version 1: the error code.
pub fn delete_topic(peer: &mut Peer, topic: &str) -> i16 {
    let answer = peer.ask(&request(20, 1, Bytes::default().i32(1).string(topic).i32(10_000)));
    let mut walk = Walk(&answer);
    walk.skip(8);
    walk.string();
    walk.i16()
}

/// Writes, ends the broker in this way, and finds everything again, twice.
fn survives(mut broker: Broker, end: impl Fn(&mut Broker)) {
    let topic = fresh("kept");
    create_topic(&broker.bootstrap(), &topic, 1);
    let mut count = 0;
    for _ in 0..2 {
        let mut peer = Peer::connect(broker.address());
        for value_bytes in [10, 5000, 900_000] {
            let batch = Batch { value_bytes, ..Batch::default() }.encode();
            assert_eq!(produced(&peer.ask(&produce(&topic, &batch)), &topic), (0, count));
            count += 1;
        }
        end(&mut broker);
        broker.launch();
        assert_eq!(read_all(&mut Peer::connect(broker.address()), &topic, 0), count);
    }
}

fn terminate(broker: &mut Broker) {
    broker.signal("TERM");
    assert!(broker.ended().success(), "{}", broker.log());
}

#[test]
fn a_file_system_without_direct_writes_is_told_and_served() {
    // Only root may mount one; and tmpfs takes them since Linux 6.6.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (address, log) = (free_address(), folder.path().join("log"));
    let data = folder.path().join("data");
    std::fs::create_dir(&data).expect("made");
    let mut command = serve(&data, &address.to_string());
    command.args(["--cores", "0", "--shards", "2", "--set", "journal.file.bytes=4194304"]);
    let file = std::fs::File::create(&log).expect("writable");
    command.stdout(file.try_clone().expect("a second handle")).stderr(file);
    let mut child = match on_ramfs(&mut command, &data).spawn() {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return,
        outcome => outcome.expect("the binary starts"),
    };
    let topic = fresh("buffered");
    let outcome = std::panic::catch_unwind(|| {
        create_topic(&address.to_string(), &topic, 4);
        let mut peer = Peer::connect(address);
        for offset in 0..5 {
            let parts = [(0, 100_000), (1, 10), (2, 900_000), (3, 5000)];
            let found = written(&peer.ask(&produce_many(&topic, &parts)));
            assert_eq!(found, parts.map(|(partition, _)| (partition, 0, offset)));
        }
        assert_eq!(read_all(&mut peer, &topic, 0), 5);
    });
    let told = Command::new("kill").arg(child.id().to_string()).status();
    let status = end_of(&mut child);
    let said = std::fs::read_to_string(&log).expect("readable");
    assert!(outcome.is_ok() && told.is_ok_and(|told| told.success()), "{said}");
    assert!(status.is_some_and(|status| status.success()), "{status:?}: {said}");
    let writes = "(ramfs on ramfs), buffered writes (the file system refuses O_DIRECT), with the";
    assert!(said.contains(writes), "{said}");
    assert!(said.contains("ramfs is memory: a restart of the machine loses all data"), "{said}");
}

#[test]
fn tmpfs_is_served_and_said_to_be_memory() {
    for durability in ["fsync", "replicated"] {
        let shared_memory = Path::new("/dev/shm");
        let broker = Broker::start_in(shared_memory, &[("durability", durability)]);
        broker.await_log("(tmpfs on ");
        broker.await_log("tmpfs is memory: a restart of the machine loses all data");
        survives(broker, Broker::kill);
    }
}

#[test]
fn fsync_survives_term_and_kill() {
    survives(Broker::start(&[("durability", "fsync")]), terminate);
    survives(Broker::start(&[("durability", "fsync")]), Broker::kill);
}

#[test]
fn replicated_survives_term_and_kill() {
    // Nothing is flushed by the clock while this runs.
    let settings = [("durability", "replicated"), ("flush.interval.ms", "60000")];
    survives(Broker::start(&settings), terminate);
    survives(Broker::start(&settings), Broker::kill);
}
