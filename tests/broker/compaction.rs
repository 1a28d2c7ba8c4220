//! Compacted topics, written and read by librdkafka: the newest of each key stays, also through a
//! kill, and Kafka's own tool reads what compaction has written.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use corelog::wire::api::ApiKey;
use corelog::wire::error::ErrorCode;
use corelog::wire::records::{BatchBuilder, Codec, NewRecord};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use crate::answers::{ask_on, read as read_answer};
use crate::frames::{Peer, produce, produced};
use crate::full::delete_records;
use crate::librdkafka::{Deliveries, config, create_topic};
use crate::segments::{await_that, create, offset_at, segment_files};
use crate::stored::alter;
use crate::tools::tool;
use crate::world::{Broker, fresh};

const CALL_MAX: Duration = Duration::from_secs(60);
const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];
const KEYS: usize = 300;
const VALUE_BYTES: usize = 8_000;

/// The newest value of each key, `None` where it was deleted.
pub type Model = BTreeMap<String, Option<Vec<u8>>>;

/// Bytes that no codec makes much smaller.
fn noise(seed: usize) -> Vec<u8> {
    let mut state = seed as u64 + 1;
    let bytes = (0..VALUE_BYTES).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    });
    bytes.collect()
}

/// Writes `rounds` values of every key with one codec; every seventh key is deleted at the end.
pub fn write(bootstrap: &str, topic: &str, codec: &str, rounds: usize, model: &mut Model) {
    let told = Deliveries::default();
    let producer: ThreadedProducer<Deliveries> = config(bootstrap)
        .set("compression.type", codec)
        .set("enable.idempotence", "true")
        .set("linger.ms", "5")
        .create_with_context(told.clone())
        .expect("a producer");
    for at in 0..rounds * KEYS {
        let key = format!("{}-{}", at % KEYS, if at % 3 == 0 { codec } else { "all" });
        let is_deleted = at % 7 == 0 && at / KEYS + 1 == rounds;
        let value = (!is_deleted).then(|| noise(at));
        let record = BaseRecord::to(topic).key(&key);
        let record = match &value {
            Some(value) => record.payload(value),
            None => record,
        };
        let mut record = Some(record);
        while let Some(next) = record.take() {
            if let Err((error, back)) = producer.send(next) {
                let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
                assert_eq!(error, full);
                std::thread::sleep(Duration::from_millis(5));
                record = Some(back);
            }
        }
        model.insert(key, value);
    }
    producer.flush(CALL_MAX).expect("all is answered");
    let failed = told.failed.lock().expect("no panic inside");
    assert!(failed.is_empty(), "{codec}: {failed:?}");
}

/// Reads partition 0 to its end: what each key holds, and how many records there are.
pub fn read(bootstrap: &str, topic: &str) -> (Model, usize) {
    let consumer: BaseConsumer = config(bootstrap)
        .set("group.id", "not-joined")
        .set("enable.partition.eof", "true")
        .create()
        .expect("a consumer");
    let mut all = TopicPartitionList::new();
    all.add_partition_offset(topic, 0, Offset::Beginning).expect("a valid offset");
    consumer.assign(&all).expect("assigned");
    let until = Instant::now() + CALL_MAX;
    let (mut found, mut count, mut last) = (Model::new(), 0, -1);
    loop {
        assert!(Instant::now() < until, "{count} records in {CALL_MAX:?}");
        let message = match consumer.poll(Duration::from_millis(100)) {
            None => continue,
            Some(Err(KafkaError::PartitionEOF(_))) => return (found, count),
            Some(message) => message.expect("a record"),
        };
        assert!(message.offset() > last, "offsets ascend");
        last = message.offset();
        count += 1;
        let key = String::from_utf8(message.key().expect("a key").to_vec()).expect("UTF-8");
        found.insert(key, message.payload().map(<[u8]>::to_vec));
    }
}

/// A deleted key may still show its tombstone.
pub fn assert_same(found: &Model, wanted: &Model) {
    for (key, value) in wanted {
        let read = found.get(key).cloned().flatten();
        assert!(read == *value, "{key}: {:?} bytes", read.map(|value| value.len()));
    }
    assert!(found.keys().all(|key| wanted.contains_key(key)));
}

/// The files that compaction has written, with a generation in their names.
fn compacted_files(broker: &Broker) -> Vec<PathBuf> {
    let mut files = segment_files(broker);
    files.retain(|file| {
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned());
        name.is_some_and(|name| name.matches('.').count() == 2)
    });
    files
}

#[test]
fn a_compacted_topic_keeps_the_newest_of_each_key() {
    let mut broker = Broker::start(&[
        ("cores", "0"),
        ("shards", "1"),
        ("journal.bytes.max", "67108864"),
        ("log.cleaner.backoff.ms", "50"),
    ]);
    let (bootstrap, topic) = (broker.bootstrap(), fresh("compacted"));
    let mut peer = Peer::connect(broker.address());
    let settings = [
        ("cleanup.policy", "compact"),
        ("segment.bytes", "2097152"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("delete.retention.ms", "0"),
    ];
    create(&mut peer, &topic, &settings);
    let mut model = Model::new();
    for codec in CODECS {
        write(&bootstrap, &topic, codec, 7, &mut model);
    }
    let written = CODECS.len() * 7 * KEYS;
    await_that("segments are compacted", || !compacted_files(&broker).is_empty());
    let count_of = |broker: &Broker| read(&broker.bootstrap(), &topic).1;
    await_that("old records go", || count_of(&broker) < written * 4 / 5);
    assert_same(&read(&bootstrap, &topic).0, &model);
    assert_eq!(offset_at(&mut peer, &topic, -2), 0, "the log start stays");
    assert_eq!(offset_at(&mut peer, &topic, -1), i64::try_from(written).expect("few"));

    broker.kill();
    broker.launch();
    assert_same(&read(&bootstrap, &topic).0, &model);
    write(&bootstrap, &topic, "lz4", 5, &mut model);
    assert_same(&read(&bootstrap, &topic).0, &model);

    broker.signal("TERM");
    assert!(broker.ended().success());
    let files: Vec<String> =
        compacted_files(&broker).iter().map(|file| file.to_string_lossy().into_owned()).collect();
    assert!(!files.is_empty());
    let arguments = ["--files", &files.join(","), "--deep-iteration"];
    let Some(told) = tool("org.apache.kafka.tools.DumpLogSegments", &arguments) else { return };
    assert!(told.contains("isvalid: true"), "{told}");
    assert!(!told.contains("isvalid: false") && !told.contains("invalid bytes"), "{told}");
    assert!(told.contains("deleteHorizonMs: ") || told.contains("compresscodec: lz4"), "{told}");
    broker.launch();
    assert_same(&read(&bootstrap, &topic).0, &model);
}

#[test]
fn records_that_are_dirty_for_too_long_are_compacted() {
    let broker =
        Broker::start(&[("cores", "0"), ("shards", "1"), ("log.cleaner.backoff.ms", "50")]);
    let (bootstrap, topic) = (broker.bootstrap(), fresh("late"));
    let mut peer = Peer::connect(broker.address());
    let settings = [
        ("cleanup.policy", "compact"),
        ("max.compaction.lag.ms", "300"),
        ("min.cleanable.dirty.ratio", "1"),
    ];
    create(&mut peer, &topic, &settings);
    let producer: ThreadedProducer<Deliveries> =
        config(&bootstrap).create_with_context(Deliveries::default()).expect("a producer");
    let mut model = Model::new();
    for at in 0..20 {
        let value = noise(at);
        let record = BaseRecord::to(&topic).key("key").payload(&value);
        producer.send(record).map_err(|(error, _)| error).expect("room in the queue");
        producer.flush(CALL_MAX).expect("all is answered");
        model.insert("key".into(), Some(value));
    }
    // They are few, and nothing else makes them leave the journal.
    await_that("all but the last two are gone", || read(&bootstrap, &topic).1 <= 2);
    assert_same(&read(&bootstrap, &topic).0, &model);
}

/// Found beside Apache Kafka, which compacts what is in closed segments: with the journal's usual
/// budget, the records of a topic that is seldom written to were in none.
#[test]
fn records_leave_the_journal_and_are_compacted_once_they_are_as_old_as_a_segment() {
    let mut broker =
        Broker::start(&[("cores", "0"), ("shards", "1"), ("log.cleaner.backoff.ms", "50")]);
    let (bootstrap, topic) = (broker.bootstrap(), fresh("rolled"));
    let mut peer = Peer::connect(broker.address());
    let settings = [("cleanup.policy", "compact"), ("min.cleanable.dirty.ratio", "0.01")];
    create(&mut peer, &topic, &settings);
    let producer: ThreadedProducer<Deliveries> =
        config(&bootstrap).create_with_context(Deliveries::default()).expect("a producer");
    let mut model = Model::new();
    for at in 0..40 {
        let key = format!("key-{}", at % 4);
        let value = noise(at);
        let record = BaseRecord::to(&topic).key(&key).payload(&value);
        producer.send(record).map_err(|(error, _)| error).expect("room in the queue");
        producer.flush(CALL_MAX).expect("all is answered");
        model.insert(key, Some(value));
    }
    assert!(compacted_files(&broker).is_empty() && read(&bootstrap, &topic).1 == 40);
    alter(&broker, &topic, "segment.ms", "100");
    // The last that was written stays where it is.
    await_that("only the newest are left", || read(&bootstrap, &topic).1 <= 5);
    assert_same(&read(&bootstrap, &topic).0, &model);
    broker.kill();
    broker.launch();
    assert_same(&read(&bootstrap, &topic).0, &model);
}

/// Kafka refuses it with POLICY_VIOLATION unless the topic is one whose records may be deleted.
#[test]
fn records_of_a_topic_that_is_only_compacted_are_not_deleted_by_request() {
    let broker = Broker::start(&[]);
    let topic = fresh("only-compacted");
    let mut peer = Peer::connect(broker.address());
    create(&mut peer, &topic, &[("cleanup.policy", "compact")]);
    let mut builder = BatchBuilder::new();
    let record = NewRecord { key: Some(b"key"), ..NewRecord::default() };
    (0..9).for_each(|_| builder.push(&record));
    let batch = builder.build(Codec::None).expect("not compressed");
    assert_eq!(produced(&peer.ask(&produce(&topic, &batch)), &topic), (0, 0));
    let refused = (-1, ErrorCode::POLICY_VIOLATION.0);
    assert_eq!(delete_records(&mut peer, &topic, 3), refused);
    for (policy, before) in [("compact,delete", 3), ("delete", 5), ("", 7)] {
        alter(&broker, &topic, "cleanup.policy", policy);
        assert_eq!(delete_records(&mut peer, &topic, before), (before, 0), "{policy}");
    }
    alter(&broker, &topic, "cleanup.policy", "compact");
    assert_eq!(delete_records(&mut peer, &topic, -1), refused);
}

const OFFSETS: &str = "__consumer_offsets";
const COMMITTED: i32 = 200;

/// Commits one offset for every partition of a topic, with as much text as is allowed.
fn commit(peer: &mut Peer, topic: &str, offset: i64) {
    use corelog::wire::api::offset_commit::{
        OffsetCommitRequestPartition, OffsetCommitRequestTopic, Request, Response,
    };
    let text = format!("{offset:0>4000}");
    let partition = |partition_index| OffsetCommitRequestPartition {
        partition_index,
        committed_offset: offset,
        committed_metadata: Some(&text),
        ..OffsetCommitRequestPartition::default()
    };
    let partitions = (0..COMMITTED).map(partition).collect();
    let topic = OffsetCommitRequestTopic { name: topic, partitions, ..Default::default() };
    let request = Request { group_id: "readers", topics: vec![topic], ..Request::default() };
    let body = ask_on(peer, ApiKey::OffsetCommit, 8, &request);
    let answer: Response<'_> = read_answer(&body, ApiKey::OffsetCommit, 8);
    assert!(answer.topics[0].partitions.iter().all(|partition| partition.error_code == 0));
}

/// The committed offsets, if they are all the same.
fn committed(peer: &mut Peer, topic: &str) -> Option<i64> {
    use corelog::wire::api::offset_fetch::{OffsetFetchRequestTopic, Request, Response};
    let partition_indexes = (0..COMMITTED).collect();
    let topics = Some(vec![OffsetFetchRequestTopic { name: topic, partition_indexes }]);
    let request = Request { group_id: "readers", topics, ..Request::default() };
    let body = ask_on(peer, ApiKey::OffsetFetch, 7, &request);
    let answer: Response<'_> = read_answer(&body, ApiKey::OffsetFetch, 7);
    let mut all = answer.topics[0].partitions.iter().map(|partition| partition.committed_offset);
    let first = all.next()?;
    all.all(|offset| offset == first).then_some(first)
}

#[test]
fn the_offsets_topic_does_not_grow_without_bound() {
    let mut broker = Broker::start(&[
        ("cores", "0"),
        ("shards", "1"),
        ("journal.bytes.max", "67108864"),
        ("log.cleaner.backoff.ms", "50"),
        ("offsets.topic.num.partitions", "1"),
    ]);
    let topic = fresh("committed");
    create_topic(&broker.bootstrap(), &topic, COMMITTED);
    let mut peer = Peer::connect(broker.address());
    let commits = 120_i64;
    for offset in 0..commits {
        commit(&mut peer, &topic, offset);
        if offset == 0 {
            alter(&broker, OFFSETS, "segment.bytes", "1048576");
        }
    }
    let bytes_of = |broker: &Broker| -> u64 {
        let lengths = segment_files(broker).into_iter().filter_map(|file| file.metadata().ok());
        lengths.map(|file| file.len()).sum()
    };
    let written = commits.unsigned_abs() * COMMITTED.unsigned_abs() as u64 * 4_000;
    assert!(written > 90_000_000);
    // The journal holds less than half of it.
    await_that("old commits are compacted away", || bytes_of(&broker) < 8_000_000);
    assert_eq!(committed(&mut peer, &topic), Some(commits - 1));
    broker.kill();
    broker.launch();
    let mut peer = Peer::connect(broker.address());
    assert_eq!(committed(&mut peer, &topic), Some(commits - 1));
    commit(&mut peer, &topic, commits);
    assert_eq!(committed(&mut peer, &topic), Some(commits));
}
