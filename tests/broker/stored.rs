//! What the broker makes of a batch: the topic's codec, the time of appending, and a refusal of
//! times that the topic does not take.

use std::time::{SystemTime, UNIX_EPOCH};

use corelog::wire::api::{self, ApiKey};
use corelog::wire::error::ErrorCode;
use corelog::wire::records::{self, BatchBuilder, BatchHeader, Codec, NewRecord};

use crate::answers::{ask, ask_on, read};
use crate::clients::{CODECS, verify};
use crate::frames::{Batch, Peer, produce, produced};
use crate::full::delete_records;
use crate::librdkafka;
use crate::segments::{create, offset_at};
use crate::world::{Broker, fresh};

/// The batches of partition 0 of a topic.
fn batches(broker: &Broker, topic: &str) -> Vec<BatchHeader> {
    use api::fetch::{FetchPartition, FetchTopic, Request, Response};
    let mut found: Vec<BatchHeader> = Vec::new();
    loop {
        let offset = found.last().map_or(0, BatchHeader::next_offset);
        let partition = FetchPartition {
            fetch_offset: offset,
            partition_max_bytes: 1 << 20,
            ..FetchPartition::default()
        };
        let topics =
            vec![FetchTopic { topic, partitions: vec![partition], ..FetchTopic::default() }];
        let request = Request { max_bytes: 1 << 20, topics, ..Request::default() };
        let body = ask(broker, ApiKey::Fetch, 12, &request);
        let answer: Response<'_> = read(&body, ApiKey::Fetch, 12);
        let partition = &answer.responses[0].partitions[0];
        assert_eq!(partition.error_code, 0);
        for (header, batch) in records::batches(partition.records.unwrap_or_default()) {
            assert_eq!(header.crc, records::crc(batch));
            found.push(header);
        }
        if found.last().map_or(0, BatchHeader::next_offset) == partition.high_watermark {
            return found;
        }
    }
}

pub fn alter(broker: &Broker, topic: &str, name: &str, value: &str) {
    use api::incremental_alter_configs::{
        AlterConfigsResource, AlterableConfig, Request, Response,
    };
    let config = AlterableConfig { name, config_operation: 0, value: Some(value) };
    let resource =
        AlterConfigsResource { resource_type: 2, resource_name: topic, configs: vec![config] };
    let request = Request { resources: vec![resource], ..Request::default() };
    let body = ask(broker, ApiKey::IncrementalAlterConfigs, 1, &request);
    let answer: Response<'_> = read(&body, ApiKey::IncrementalAlterConfigs, 1);
    assert_eq!(answer.responses[0].error_code, 0, "{name}={value}");
}

/// A setting of a topic as DescribeConfigs tells it: its value, source and type.
fn told(broker: &Broker, topic: &str, name: &str) -> (String, i8, i8) {
    use api::describe_configs::{DescribeConfigsResource, Request, Response};
    let resource = DescribeConfigsResource {
        resource_type: 2,
        resource_name: topic,
        configuration_keys: Some(vec![name]),
    };
    let request = Request { resources: vec![resource], ..Request::default() };
    let body = ask(broker, ApiKey::DescribeConfigs, 4, &request);
    let answer: Response<'_> = read(&body, ApiKey::DescribeConfigs, 4);
    let config = &answer.results[0].configs[0];
    assert_eq!(config.name, name);
    (config.value.unwrap_or_default().to_string(), config.config_source, config.config_type)
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_millis()).expect("not so late")
}

/// A batch of two records with these times.
fn two(codec: Codec, times: [i64; 2], value: &[u8]) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    for timestamp in times {
        builder.push(&NewRecord { timestamp, value: Some(value), ..NewRecord::default() });
    }
    builder.build(codec).expect("compressible").to_vec()
}

#[test]
fn a_topic_stores_batches_with_its_own_codec() {
    let broker = Broker::start(&[]);
    let mut peer = Peer::connect(broker.address());
    let all = [
        ("uncompressed", Codec::None),
        ("gzip", Codec::Gzip),
        ("snappy", Codec::Snappy),
        ("lz4", Codec::Lz4),
        ("zstd", Codec::Zstd),
    ];
    for (name, codec) in all {
        let topic = fresh(name);
        create(&mut peer, &topic, &[]);
        assert_eq!(told(&broker, &topic, "compression.type"), ("producer".into(), 5, 2));
        alter(&broker, &topic, "compression.type", name);
        assert_eq!(told(&broker, &topic, "compression.type"), (name.into(), 1, 2));
        librdkafka::produce(&broker.bootstrap(), &topic, "librdkafka", CODECS, 50);
        let found = librdkafka::consume(&broker.bootstrap(), &topic, CODECS.len() * 50);
        verify("librdkafka", &["librdkafka"], &found);
        let stored = batches(&broker, &topic);
        assert!(!stored.is_empty() && stored.iter().all(|header| header.codec() == Some(codec)));
    }
}

#[test]
fn a_batch_that_would_grow_without_bound_is_refused() {
    let broker = Broker::start(&[]);
    let topic = fresh("bomb");
    let mut peer = Peer::connect(broker.address());
    create(&mut peer, &topic, &[("compression.type", "lz4")]);
    let zeros = vec![0; 40 << 20];
    let large = ErrorCode::MESSAGE_TOO_LARGE.0;
    for codec in [Codec::Gzip, Codec::Zstd] {
        let bomb = two(codec, [now(), now()], &zeros);
        assert!(bomb.len() < 1 << 20);
        assert_eq!(produced(&peer.ask(&produce(&topic, &bomb)), &topic), (large, -1));
    }
    // One that grows beyond what the topic takes.
    alter(&broker, &topic, "compression.type", "uncompressed");
    let grown = two(Codec::Gzip, [now(), now()], &zeros[..4 << 20]);
    assert_eq!(produced(&peer.ask(&produce(&topic, &grown)), &topic), (large, -1));
    let fits = two(Codec::Gzip, [now(), now()], &zeros[..1 << 10]);
    assert_eq!(produced(&peer.ask(&produce(&topic, &fits)), &topic), (0, 0));
    // Stored as it came it is none of the broker's business, and only a lookup meets it: answered
    // with its beginning, where Kafka looks into it.
    let plain = fresh("plain-bomb");
    create(&mut peer, &plain, &[]);
    let time = now() - 5000;
    let bomb = two(Codec::Zstd, [time, time + 10], &zeros);
    assert_eq!(produced(&peer.ask(&produce(&plain, &bomb)), &plain), (0, 0));
    assert_eq!(produced(&peer.ask(&produce(&plain, &fits)), &plain), (0, 2));
    let found = [time, time + 5, time + 11].map(|at| offset_at(&mut peer, &plain, at));
    assert_eq!(found, [0, 0, 2]);
    // Nothing overtakes a batch that is made anew.
    alter(&broker, &topic, "compression.type", "zstd");
    alter(&broker, &topic, "max.message.bytes", "20000000");
    let slow = produce(&topic, &two(Codec::Gzip, [now(), now()], &zeros[..8 << 20]));
    let quick = produce(&topic, &two(Codec::Zstd, [now(), now()], b"quick"));
    peer.send(&slow);
    peer.send(&quick);
    let mut answer = || match peer.receive(std::time::Duration::from_secs(20)) {
        crate::frames::Came::Answer(answer) => produced(&answer[4..], &topic),
        other => panic!("{other:?}"),
    };
    assert_eq!([answer(), answer()], [(0, 2), (0, 4)]);
}

#[test]
fn records_carry_the_time_of_their_appending_where_the_topic_says_so() {
    let mut broker = Broker::start(&[("log.message.timestamp.type", "LogAppendTime")]);
    let topic = fresh("appended");
    let mut peer = Peer::connect(broker.address());
    create(&mut peer, &topic, &[]);
    let name = "message.timestamp.type";
    assert_eq!(told(&broker, &topic, name), ("LogAppendTime".into(), 4, 2));
    let old = Batch::default().encode();
    let before = now();
    let answer = peer.ask(&produce(&topic, &old));
    assert_eq!(produced(&answer, &topic), (0, 0));
    let at = 4 + 2 + topic.len() + 4 + 4 + 2 + 8;
    let time = i64::from_be_bytes(answer[at..at + 8].try_into().expect("eight bytes"));
    assert!((before..=now()).contains(&time), "{time} is the time of appending");
    for _ in 0..2 {
        let stored = batches(&broker, &topic);
        assert!(stored[0].is_log_append_time());
        assert_eq!(stored[0].max_timestamp, time);
        let mut peer = Peer::connect(broker.address());
        assert_eq!(offset_at(&mut peer, &topic, time), 0);
        assert_eq!(offset_at(&mut peer, &topic, time + 1), -1);
        broker.restart();
    }
    // One that is sent again is told the same.
    let mut peer = Peer::connect(broker.address());
    let again = fresh("appended-again");
    create(&mut peer, &again, &[]);
    let numbered = Batch { producer: (7, 0), ..Batch::default() }.encode();
    let times = [(); 2].map(|()| {
        std::thread::sleep(std::time::Duration::from_millis(3));
        let answer = peer.ask(&produce(&again, &numbered));
        assert_eq!(produced(&answer, &again), (0, 0));
        let at = at + again.len() - topic.len();
        i64::from_be_bytes(answer[at..at + 8].try_into().expect("eight bytes"))
    });
    assert!(times[0] > 0 && times[0] == times[1], "{times:?}");
    alter(&broker, &topic, name, "CreateTime");
    let mut peer = Peer::connect(broker.address());
    let answer = peer.ask(&produce(&topic, &old));
    assert_eq!(produced(&answer, &topic), (0, 1));
    assert_eq!(answer[at..at + 8], (-1_i64).to_be_bytes());
    assert!(!batches(&broker, &topic)[1].is_log_append_time());
    assert_eq!(told(&broker, &topic, "min.cleanable.dirty.ratio"), ("0.5".into(), 5, 6));
}

#[test]
fn times_that_a_topic_does_not_take_are_refused_in_any_codec() {
    let broker = Broker::start(&[]);
    let topic = fresh("times");
    let mut peer = Peer::connect(broker.address());
    let settings =
        [("message.timestamp.before.max.ms", "60000"), ("message.timestamp.after.max.ms", "60000")];
    create(&mut peer, &topic, &settings);
    let mut next = 0;
    for codec in [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
        let mut put =
            |times| produced(&peer.ask(&produce(&topic, &two(codec, times, b"v"))), &topic);
        let refused = (ErrorCode::INVALID_TIMESTAMP.0, -1);
        assert_eq!(put([now() - 100_000, now()]), refused, "{codec:?}: one is too old");
        assert_eq!(put([now(), now() + 100_000]), refused, "{codec:?}: one is too young");
        assert_eq!(put([now() - 10_000, now() + 10_000]), (0, next), "{codec:?}");
        next += 2;
    }
}

/// The record with the greatest timestamp: ListOffsets of version 7.
fn greatest(peer: &mut Peer, topic: &str) -> (i64, i64) {
    use api::list_offsets::{ListOffsetsPartition, ListOffsetsTopic, Request, Response};
    let partition =
        ListOffsetsPartition { partition_index: 0, current_leader_epoch: -1, timestamp: -3 };
    let topics = vec![ListOffsetsTopic { name: topic, partitions: vec![partition] }];
    let request = Request { replica_id: -1, topics, ..Request::default() };
    let body = ask_on(peer, ApiKey::ListOffsets, 7, &request);
    let answer: Response<'_> = read(&body, ApiKey::ListOffsets, 7);
    let found = &answer.topics[0].partitions[0];
    assert_eq!(found.error_code, 0);
    (found.offset, found.timestamp)
}

/// Once the record with the greatest timestamp was deleted and others of its batch were not, none
/// was found any more.
#[test]
fn the_greatest_timestamp_is_that_of_a_record_that_is_there() {
    let broker = Broker::start(&[]);
    let mut peer = Peer::connect(broker.address());
    let time = now() - 10_000;
    for codec in [Codec::None, Codec::Lz4] {
        let topic = fresh("greatest");
        create(&mut peer, &topic, &[]);
        for times in [[time + 500, time + 20], [time + 30, time + 10]] {
            produced(&peer.ask(&produce(&topic, &two(codec, times, b"v"))), &topic);
        }
        let mut after = |before| {
            assert_eq!(delete_records(&mut peer, &topic, before), (before, 0));
            greatest(&mut peer, &topic)
        };
        assert_eq!(after(0), (0, time + 500));
        assert_eq!(after(1), (2, time + 30));
        assert_eq!(after(3), (3, time + 10));
        assert_eq!(after(4), (-1, -1));
    }
}

/// What Produce of version 8 answers: the code, and each record that is refused.
fn refusals(peer: &mut Peer, topic: &str, batch: &[u8]) -> (i16, Vec<(i32, String)>) {
    use api::produce::{PartitionProduceData, Request, Response, TopicProduceData};
    let partition = PartitionProduceData { index: 0, records: Some(batch) };
    let data = TopicProduceData { name: topic, partition_data: vec![partition], ..<_>::default() };
    let request = Request { acks: -1, topic_data: vec![data], ..Request::default() };
    let body = ask_on(peer, ApiKey::Produce, 8, &request);
    let answer: Response<'_> = read(&body, ApiKey::Produce, 8);
    let partition = &answer.responses[0].partition_responses[0];
    let told = partition.record_errors.iter().map(|record| {
        let why = record.batch_index_error_message.expect("a reason");
        (record.batch_index, why.to_string())
    });
    (partition.error_code, told.collect())
}

/// Apache Kafka tells a producer which records a batch is refused for (KIP-467), and which of two
/// reasons goes first; this broker told of the first one, in words only.
#[test]
fn a_refused_batch_comes_back_with_each_record_that_it_is_refused_for() {
    let broker = Broker::start(&[]);
    let (old, young) = (now() - 100_000, now() + 100_000);
    let (invalid, wrong_time) = (ErrorCode::INVALID_RECORD.0, ErrorCode::INVALID_TIMESTAMP.0);
    let mut peer = Peer::connect(broker.address());
    for codec in [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
        let topic = fresh("refused");
        let bounds = ("message.timestamp.after.max.ms", "60000");
        create(&mut peer, &topic, &[("cleanup.policy", "compact"), bounds]);
        let mut put = |records: &[(Option<&[u8]>, i64)]| {
            let mut builder = BatchBuilder::new();
            for (key, timestamp) in records {
                builder.push(&NewRecord { timestamp: *timestamp, key: *key, ..<_>::default() });
            }
            let batch = builder.build(codec).expect("compressible");
            let (code, told) = refusals(&mut peer, &topic, &batch);
            let places: Vec<i32> = told.iter().map(|(index, _)| *index).collect();
            (code, places, told.into_iter().map(|(_, why)| why).collect::<Vec<_>>().join("; "))
        };
        let key = Some(&b"k"[..]);
        let (code, places, why) = put(&[(key, now()), (None, now()), (key, old), (None, old)]);
        assert_eq!((code, places), (invalid, vec![1, 3]), "{codec:?}");
        assert!(why.contains("record 1 has no key"), "{why}");
        let (code, places, why) = put(&[(None, now()), (key, now()), (key, young)]);
        assert_eq!((code, places), (wrong_time, vec![0, 2]), "{codec:?}");
        assert!(why.contains("the timestamp of record 2"), "{why}");
        assert_eq!(put(&[(key, now())]), (0, vec![], String::new()), "{codec:?}");
    }
    // In a topic whose batches need not be opened, the header tells that one is refused.
    let topic = fresh("plain");
    create(&mut peer, &topic, &[("message.timestamp.after.max.ms", "60000")]);
    let batch = two(Codec::Zstd, [now(), young], b"v");
    let (code, told) = refusals(&mut peer, &topic, &batch);
    assert_eq!((code, told.len(), told[0].0), (wrong_time, 1, 1));
    assert_eq!(refusals(&mut peer, &topic, &two(Codec::Zstd, [old, now()], b"v")), (0, vec![]));
}
