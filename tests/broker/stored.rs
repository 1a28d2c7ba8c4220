//! What the broker makes of a batch: the topic's codec, the time of appending, and a refusal of
//! times that the topic does not take.

use std::time::{SystemTime, UNIX_EPOCH};

use corelog::wire::api::{self, ApiKey};
use corelog::wire::error::ErrorCode;
use corelog::wire::records::{self, BatchBuilder, BatchHeader, Codec, NewRecord};

use crate::answers::{ask, read};
use crate::clients::{CODECS, verify};
use crate::frames::{Batch, Peer, produce, produced};
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
