//! `corelog produce`: lines in, records out.
//!
//!     stdin ─► reader thread ─► bounded queue ─► batches by partition ─► a request per leader
//!
//! Invariants
//!   P1  With acks=all a batch is repeated under its sequence number, so it is stored once.
//!   P2  Lines that wait are bounded; a line waits at most `LINGER` for company.
//!   P3  Records of one partition are stored in the order of their lines.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::json;

use super::Client;
use crate::client::cluster::{
    Attempt, Cluster, REQUEST_TIME_MS, To, Topic, judge, no_partition, persist,
};
use crate::client::failure::{Failure, in_words};
use crate::client::partitioner;
use crate::wire::api::{ApiKey, produce};
use crate::wire::error::ErrorCode;
use crate::wire::records::{BatchBuilder, Codec, NewRecord, ProducerStamp};

const LINES_WAITING_MAX: usize = 1024;
const LINE_BYTES_MAX: u64 = 64 << 20;
const LINGER: Duration = Duration::from_millis(20);
/// While nothing is collected there is nothing to do but to wait for a line.
const IDLE: Duration = Duration::from_secs(3600);
/// A batch that reaches this size is sent; below Kafka's default max.message.bytes.
const BATCH_BYTES: usize = 512 << 10;
/// Batches of all partitions together are sent at this size.
const REQUEST_BYTES: usize = 4 << 20;
/// Produce names topics by name up to this version.
const PRODUCE_WITH_NAMES: i16 = 12;

#[derive(clap::Args)]
pub struct Arguments {
    #[arg(short, long)]
    topic: String,
    /// The partition; without it keys are spread as Kafka's Java producer does it.
    #[arg(short, long, value_name = "NUMBER")]
    partition: Option<i32>,
    /// What stands between key and value in a line.
    #[arg(short = 'K', long, value_name = "TEXT")]
    key_delimiter: Option<String>,
    /// Compress batches.
    #[arg(short = 'z', long, value_name = "CODEC", default_value = "none",
        value_parser = ["none", "gzip", "snappy", "lz4", "zstd"])]
    codec: String,
    /// A header of every record; may be repeated.
    #[arg(short = 'H', long, value_name = "NAME=VALUE")]
    header: Vec<String>,
    /// Whose acknowledgement to wait for.
    #[arg(long, default_value = "all", value_parser = ["all", "1", "0"])]
    acks: String,
    /// Write an empty value as null, which deletes the key in a compacted topic.
    #[arg(short = 'Z', long)]
    empty_as_null: bool,
    #[command(flatten)]
    client: Client,
}

type Line = Result<Vec<u8>, Failure>;

impl Arguments {
    pub fn run(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let mut producer = Producer::new(self)?;
        let lines = read_lines();
        let mut flush_at = None;
        loop {
            let wait =
                flush_at.map_or(IDLE, |at: Instant| at.saturating_duration_since(Instant::now()));
            let pushed = match lines.recv_timeout(wait) {
                Ok(line) => line.and_then(|line| producer.push(&self.record(&line)?)),
                Err(RecvTimeoutError::Timeout) => producer.flush(),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if let Err(failure) = pushed {
                // What stands before a bad line is written nevertheless.
                producer.flush()?;
                return Err(failure);
            }
            flush_at =
                producer.waits().then(|| flush_at.unwrap_or_else(|| Instant::now() + LINGER));
        }
        producer.flush()?;
        if self.client.json {
            producer.report(out)?;
        }
        Ok(())
    }

    fn record<'a>(&self, line: &'a [u8]) -> Result<Content<'a>, Failure> {
        let (key, value) = match &self.key_delimiter {
            None => (None, line),
            Some(delimiter) => {
                let place = find(line, delimiter.as_bytes()).ok_or_else(|| {
                    let text = String::from_utf8_lossy(&line[..line.len().min(60)]).into_owned();
                    Failure::Failed(format!("the line `{text}` has no key: no `{delimiter}` in it"))
                })?;
                (Some(&line[..place]), &line[place + delimiter.len()..])
            }
        };
        let value = (!self.empty_as_null || !value.is_empty()).then_some(value);
        Ok(Content { key, value })
    }
}

/// A line's record.
struct Content<'a> {
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    if wanted.is_empty() {
        return None;
    }
    text.windows(wanted.len()).position(|window| window == wanted)
}

/// Reads lines in a thread of its own, so that a slow input does not hold back what came before.
fn read_lines() -> Receiver<Line> {
    let (lines, receiver) = sync_channel(LINES_WAITING_MAX);
    thread::spawn(move || {
        let mut input = io::stdin().lock();
        loop {
            let line = read_line(&mut input);
            let Some(line) = line.transpose() else { break };
            let last = line.is_err();
            if lines.send(line).is_err() || last {
                break;
            }
        }
    });
    receiver
}

fn read_line(input: &mut impl BufRead) -> Result<Option<Vec<u8>>, Failure> {
    let mut line = Vec::new();
    let read = input.take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
    let length = read.map_err(|error| {
        Failure::Failed(format!("cannot read the standard input: {}", in_words(&error)))
    })?;
    if length == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if u64::try_from(length) == Ok(LINE_BYTES_MAX) {
        return Err(Failure::Failed(format!("a line is longer than {LINE_BYTES_MAX} bytes")));
    }
    Ok(Some(line))
}

/// What was acknowledged of one partition.
#[derive(Clone, Copy, Default)]
struct Written {
    records: i64,
    first: i64,
    last: i64,
}

/// Built batches by partition, and how many records each holds.
type Batches = BTreeMap<i32, (Bytes, i32)>;

/// Collects records into batches and sends them.
struct Producer<'a> {
    arguments: &'a Arguments,
    headers: Vec<(&'a str, Option<&'a [u8]>)>,
    cluster: Cluster,
    topic: Topic,
    acks: i16,
    codec: Codec,
    /// Id and epoch for repeating without duplicates; `None` unless acks=all.
    identity: Option<(i64, i16)>,
    sequences: BTreeMap<i32, i32>,
    filling: BTreeMap<i32, BatchBuilder>,
    /// Where records without key go until the batch is sent.
    keyless: usize,
    written: BTreeMap<i32, Written>,
}

impl<'a> Producer<'a> {
    fn new(arguments: &'a Arguments) -> Result<Producer<'a>, Failure> {
        let header = |pair: &'a String| {
            let (name, value) = pair.split_once('=').ok_or_else(|| {
                Failure::Usage(format!("--header {pair}: give a header as NAME=VALUE"))
            })?;
            Ok((name, Some(value.as_bytes())))
        };
        let headers = arguments.header.iter().map(header).collect::<Result<Vec<_>, Failure>>()?;
        let mut cluster = Cluster::reach(&arguments.client.bootstrap)?;
        let is_needed = |index| arguments.partition.is_none_or(|wanted| wanted == index);
        let topic = cluster.topic_led(&arguments.topic, true, is_needed)?;
        if let Some(wanted) = arguments.partition
            && !topic.partitions.iter().any(|partition| partition.index == wanted)
        {
            return Err(no_partition(&topic, wanted));
        }
        let acks = arguments.acks.parse().unwrap_or(-1);
        let identity = if acks == -1 { Some(cluster.new_producer()?) } else { None };
        Ok(Producer {
            arguments,
            headers,
            cluster,
            topic,
            acks,
            codec: Codec::from_name(&arguments.codec).unwrap_or(Codec::None),
            identity,
            sequences: BTreeMap::new(),
            filling: BTreeMap::new(),
            keyless: 0,
            written: BTreeMap::new(),
        })
    }

    fn push(&mut self, line: &Content<'_>) -> Result<(), Failure> {
        let count = self.topic.partitions.len();
        let place = line.key.map_or(self.keyless % count.max(1), |k| partitioner::of_key(k, count));
        let chosen = self.topic.partitions.get(place).map_or(0, |partition| partition.index);
        let partition = self.arguments.partition.unwrap_or(chosen);
        let size = line.key.map_or(0, <[u8]>::len) + line.value.map_or(0, <[u8]>::len);
        let filled = self.filling.get(&partition).map_or(0, BatchBuilder::bytes);
        if filled > 0 && filled + size > BATCH_BYTES {
            self.flush()?;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let record = NewRecord {
            timestamp: i64::try_from(now.as_millis()).unwrap_or(i64::MAX),
            key: line.key,
            value: line.value,
            headers: &self.headers,
        };
        self.filling.entry(partition).or_default().push(&record);
        let total: usize = self.filling.values().map(BatchBuilder::bytes).sum();
        if total >= REQUEST_BYTES { self.flush() } else { Ok(()) }
    }

    /// Whether records are collected and not sent.
    fn waits(&self) -> bool {
        !self.filling.is_empty()
    }

    /// Sends what was collected and waits for its acknowledgement.
    fn flush(&mut self) -> Result<(), Failure> {
        let mut batches = BTreeMap::new();
        for (partition, mut builder) in std::mem::take(&mut self.filling) {
            let count = builder.count();
            if let Some((id, epoch)) = self.identity {
                let next = self.sequences.entry(partition).or_insert(0);
                builder = builder.producer(ProducerStamp { id, epoch, sequence: *next });
                // Sequence numbers go on with 0 after the largest one.
                *next =
                    i32::try_from((i64::from(*next) + i64::from(count)) % (1 << 31)).unwrap_or(0);
            }
            let batch = builder.build(self.codec).map_err(|e| Failure::Failed(e.to_string()))?;
            batches.insert(partition, (batch, count));
        }
        if batches.is_empty() {
            return Ok(());
        }
        self.keyless = self.keyless.wrapping_add(1);
        if self.acks == 0 {
            return self.tell(&batches);
        }
        let mut first = true;
        persist(|| {
            if !std::mem::take(&mut first) {
                let is_needed = |index| batches.contains_key(&index);
                self.topic = self.cluster.topic_led(&self.topic.name, false, is_needed)?;
            }
            self.attempt(&mut batches)
        })
    }

    /// Sends batches without waiting for an answer (acks=0).
    fn tell(&mut self, batches: &Batches) -> Result<(), Failure> {
        for (leader, partitions) in self.topic.by_leader() {
            let request = request(&self.topic, self.acks, batches, &partitions);
            if let Some(request) = request {
                let highest = self.topic.newest(PRODUCE_WITH_NAMES);
                self.cluster.with(To::Node(leader), |connection| {
                    connection.tell(ApiKey::Produce, highest, &request)
                })?;
            }
        }
        Ok(())
    }

    /// Sends the batches to their leaders; those that are acknowledged leave the map.
    fn attempt(&mut self, batches: &mut Batches) -> Result<Attempt<()>, Failure> {
        let mut again = None;
        for (leader, partitions) in self.topic.by_leader() {
            let Some(request) = request(&self.topic, self.acks, batches, &partitions) else {
                continue;
            };
            let highest = self.topic.newest(PRODUCE_WITH_NAMES);
            let answer = self.cluster.call(To::Node(leader), ApiKey::Produce, highest, &request)?;
            let answer: produce::Response<'_> = answer.decode()?;
            for partition in answer.responses.iter().flat_map(|topic| &topic.partition_responses) {
                let Some((_, count)) = batches.get(&partition.index) else { continue };
                let code = match ErrorCode(partition.error_code) {
                    ErrorCode::DUPLICATE_SEQUENCE_NUMBER => ErrorCode::NONE,
                    code => code,
                };
                let what = format!("partition {} of `{}`", partition.index, self.topic.name);
                match judge(code, &what, partition.error_message)? {
                    Attempt::Again(why) => again = Some(why),
                    Attempt::Done(()) => {
                        self.note(partition.index, partition.base_offset, i64::from(*count));
                        batches.remove(&partition.index);
                    }
                }
            }
        }
        if batches.is_empty() {
            return Ok(Attempt::Done(()));
        }
        let silent = || "the leader did not answer for each partition".to_string();
        Ok(Attempt::Again(again.unwrap_or_else(silent)))
    }

    fn note(&mut self, partition: i32, base: i64, count: i64) {
        let written =
            self.written.entry(partition).or_insert(Written { first: base, ..Written::default() });
        written.records += count;
        written.last = base + count - 1;
    }

    fn report(&self, out: &mut dyn Write) -> Result<(), Failure> {
        for (partition, Written { records, first, last }) in &self.written {
            let row = json!({
                "topic": self.topic.name,
                "partition": partition,
                "records": records,
                "first": first,
                "last": last,
            });
            writeln!(out, "{row}")?;
        }
        Ok(())
    }
}

/// The request for those of the batches that belong to `partitions`.
fn request<'a>(
    topic: &'a Topic,
    acks: i16,
    batches: &'a Batches,
    partitions: &[i32],
) -> Option<produce::Request<'a>> {
    let mine = batches.iter().filter(|(partition, _)| partitions.contains(partition));
    let data = mine.map(|(partition, (batch, _))| produce::PartitionProduceData {
        index: *partition,
        records: Some(batch.as_ref()),
    });
    let partition_data: Vec<_> = data.collect();
    (!partition_data.is_empty()).then(|| produce::Request {
        transactional_id: None,
        acks,
        timeout_ms: REQUEST_TIME_MS,
        topic_data: vec![produce::TopicProduceData {
            name: &topic.name,
            topic_id: topic.id,
            partition_data,
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_with_and_without_a_last_newline() {
        let mut input = io::Cursor::new(b"one\n\ntwo\r\nlast".to_vec());
        let mut lines = Vec::new();
        while let Some(line) = read_line(&mut input).expect("memory") {
            lines.push(String::from_utf8(line).expect("text"));
        }
        assert_eq!(lines, ["one", "", "two\r", "last"]);
    }

    #[test]
    fn a_delimiter_is_found_at_its_first_place() {
        assert_eq!(find(b"key:a:b", b":"), Some(3));
        assert_eq!(find(b"a=>b", b"=>"), Some(1));
        assert_eq!((find(b"abc", b":"), find(b"abc", b""), find(b"", b":")), (None, None, None));
    }
}
