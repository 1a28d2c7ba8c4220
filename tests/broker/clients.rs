//! Every client writes with every codec; every client reads what all of them wrote.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::Value;

use crate::librdkafka;
use crate::program::{Program, installed};
use crate::world::{Broker, fresh};

pub const CODECS: &[&str] = &["none", "gzip", "snappy", "lz4", "zstd"];

/// Records of one writer with one codec.
const COUNT: usize = 50;

/// The name under which librdkafka writes.
const LIBRDKAFKA: &str = "librdkafka";

/// A record as a client gave it to us.
pub struct Read {
    pub partition: i64,
    pub offset: i64,
    pub key: String,
    pub value: String,
    pub headers: BTreeMap<String, String>,
}

/// The value of the `i`th record.
pub fn value(writer: &str, codec: &str, i: usize) -> String {
    format!("{writer}/{codec}/{i}/{}", "v".repeat(i * 37 % 400))
}

#[test]
fn every_client_reads_what_every_client_wrote_with_every_codec() {
    let broker = Broker::for_clients();
    let (bootstrap, topic) = (broker.bootstrap(), fresh("matrix"));
    librdkafka::create_topic(&bootstrap, &topic, 4);
    let programs = installed();
    let mut writers: Vec<&str> = programs.iter().map(|program| program.name).collect();
    writers.push(LIBRDKAFKA);
    librdkafka::produce(&bootstrap, &topic, LIBRDKAFKA, CODECS, COUNT);
    for program in &programs {
        produce(program, &bootstrap, &topic);
    }
    let count = writers.len() * CODECS.len() * COUNT;
    verify(LIBRDKAFKA, &writers, &librdkafka::consume(&bootstrap, &topic, count));
    for program in &programs {
        verify(program.name, &writers, &consume(program, &bootstrap, &topic, count));
    }
}

/// librdkafka leaves three bytes behind its request for all topics, which Kafka does not read; it
/// was hung up on.
#[test]
fn librdkafka_lists_all_topics() {
    let broker = Broker::for_clients();
    let topics = [fresh("listed"), fresh("listed")];
    topics.iter().for_each(|topic| librdkafka::create_topic(&broker.bootstrap(), topic, 1));
    let client: BaseConsumer = librdkafka::config(&broker.bootstrap()).create().expect("a client");
    let seen = client.fetch_metadata(None, Duration::from_secs(30)).expect("metadata");
    for topic in &topics {
        assert!(seen.topics().iter().any(|seen| seen.name() == topic), "{topic}");
    }
}

#[test]
fn a_producer_creates_its_topic_by_naming_it() {
    let broker = Broker::for_clients();
    let bootstrap = broker.bootstrap();
    for program in installed() {
        let topic = fresh("created");
        let options = [
            ("bootstrap", bootstrap.as_str()),
            ("topic", &topic),
            ("writer", "w"),
            ("codecs", "none"),
            ("count", "10"),
        ];
        // franz-go asks for creation only when it is told to.
        if program.name != "franz-go" {
            program.run("produce", &options);
            assert_eq!(librdkafka::consume(&bootstrap, &topic, 10).len(), 10, "{}", program.name);
        }
    }
}

fn produce(program: &Program, bootstrap: &str, topic: &str) {
    let (codecs, count) = (CODECS.join(","), COUNT.to_string());
    program.run(
        "produce",
        &[
            ("bootstrap", bootstrap),
            ("topic", topic),
            ("writer", program.name),
            ("codecs", &codecs),
            ("count", &count),
        ],
    );
}

fn consume(program: &Program, bootstrap: &str, topic: &str, count: usize) -> Vec<Read> {
    let count = count.to_string();
    let options = [("bootstrap", bootstrap), ("topic", topic), ("count", &count)];
    program.run("consume", &options).iter().map(read).collect()
}

fn read(line: &Value) -> Read {
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let headers = line["h"].as_object().expect("headers");
    Read {
        partition: line["p"].as_i64().expect("a partition"),
        offset: line["o"].as_i64().expect("an offset"),
        key: text(&line["k"]),
        value: text(&line["v"]),
        headers: headers.iter().map(|(name, value)| (name.clone(), text(value))).collect(),
    }
}

/// Offsets are dense per partition; each writer's records are all there, once, unchanged, and in
/// the writer's order within a partition.
pub fn verify(reader: &str, writers: &[&str], found: &[Read]) {
    let mut next_offset: BTreeMap<i64, i64> = BTreeMap::new();
    let mut last: BTreeMap<(String, String, i64), usize> = BTreeMap::new();
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    for record in found {
        let offset = next_offset.entry(record.partition).or_default();
        assert_eq!(record.offset, *offset, "{reader}: partition {}", record.partition);
        *offset += 1;
        let parts: Vec<&str> = record.value.split('/').collect();
        let (writer, codec) = (parts[0].to_owned(), parts[1].to_owned());
        let i: usize = parts[2].parse().expect("a number");
        assert_eq!(record.value, value(&writer, &codec, i), "{reader}");
        assert_eq!(record.key, format!("{writer}-{}", i % 7), "{reader}");
        assert_eq!(record.headers.get("writer"), Some(&writer), "{reader}");
        assert_eq!(record.headers.get("codec"), Some(&codec), "{reader}");
        let before = last.insert((writer.clone(), codec.clone(), record.partition), i);
        assert!(before < Some(i), "{reader}: {writer}/{codec}: {i} comes after {before:?}");
        *counts.entry((writer, codec)).or_default() += 1;
    }
    for writer in writers {
        for codec in CODECS {
            let count = counts.get(&(writer.to_string(), codec.to_string()));
            assert_eq!(count, Some(&COUNT), "{reader}: records of {writer}/{codec}");
        }
    }
}
