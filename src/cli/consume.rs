//! `corelog consume`: a topic's records to the standard output.
//!
//! Partitions are read by themselves, without a group; nothing is committed.
//!
//! Invariants
//!   F1  Records of one partition are written in the order of their offsets, each once.
//!   F2  A batch is written only when its CRC is right.

use std::collections::BTreeMap;
use std::io::Write;

use super::Client;
use super::format::{Format, Origin, json_record};
use crate::client::cluster::{
    ATTEMPTS_MAX, Attempt, Cluster, EARLIEST, LATEST, To, Topic, judge, no_partition, pause,
};
use crate::client::failure::Failure;
use crate::wire::api::{ApiKey, fetch};
use crate::wire::error::ErrorCode;
use crate::wire::records::{BatchHeader, HEADER_BYTES, Record, Records, batches, crc, decompress};

/// How long a broker may wait for new records, when it leads all the partitions.
const WAIT_MS: i32 = 500;
/// The same when several brokers are asked in turn.
const WAIT_OF_MANY_MS: i32 = 50;
const FETCH_BYTES_MAX: i32 = 32 << 20;
const PARTITION_BYTES_MAX: i32 = 4 << 20;
const DECOMPRESSED_BYTES_MAX: usize = 512 << 20;
/// Fetch names topics by name up to this version.
const FETCH_WITH_NAMES: i16 = 12;
/// Outside a fetch session (KIP-227).
const NO_SESSION_EPOCH: i32 = -1;

#[derive(clap::Args)]
pub struct Arguments {
    #[arg(short, long)]
    topic: String,
    /// The partition; all of them unless given.
    #[arg(short, long, value_name = "NUMBER")]
    partition: Option<i32>,
    /// Where to begin: beginning, end, an offset, or -N for N records before the end.
    #[arg(short, long, value_name = "PLACE", default_value = "beginning",
        allow_hyphen_values = true, value_parser = parse_start)]
    offset: Start,
    /// Stop after this many records.
    #[arg(short, long, value_name = "NUMBER")]
    count: Option<u64>,
    /// Stop at the end, as it is when the command starts.
    #[arg(short, long)]
    exit: bool,
    /// How to write a record: %t topic, %p partition, %o offset, %T timestamp, %h headers, %k key,
    /// %s value, %K and %S their lengths.
    #[arg(short, long, value_name = "PATTERN", conflicts_with = "json")]
    format: Option<String>,
    /// Write the key before the value, and this between them.
    #[arg(short = 'K', long, value_name = "TEXT", conflicts_with_all = ["format", "json"])]
    key_delimiter: Option<String>,
    #[command(flatten)]
    client: Client,
}

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    Beginning,
    End,
    At(i64),
    BeforeEnd(i64),
}

fn parse_start(text: &str) -> Result<Start, String> {
    match text {
        "beginning" => return Ok(Start::Beginning),
        "end" => return Ok(Start::End),
        _ => {}
    }
    let number = text.parse::<i64>().ok().filter(|number| *number > i64::MIN);
    match number {
        Some(number) if text.starts_with('-') => Ok(Start::BeforeEnd(-number)),
        Some(number) => Ok(Start::At(number)),
        None => Err("give beginning, end, an offset, or -N".to_string()),
    }
}

impl Arguments {
    pub fn run(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let format = match &self.format {
            Some(pattern) => Format::parse(pattern)?,
            None => Format::line(self.key_delimiter.as_deref()),
        };
        let format = (!self.client.json).then_some(format);
        let mut cluster = Cluster::reach(&self.client.bootstrap)?;
        let is_needed = |index| self.partition.is_none_or(|wanted| wanted == index);
        let mut topic = cluster.topic_led(&self.topic, false, is_needed)?;
        if let Some(wanted) = self.partition {
            if !topic.partitions.iter().any(|partition| partition.index == wanted) {
                return Err(no_partition(&topic, wanted));
            }
            topic.partitions.retain(|partition| partition.index == wanted);
        }
        let mut consumer = Consumer {
            places: self.places(&mut cluster, &topic)?,
            topic,
            cluster,
            format,
            left: self.count.unwrap_or(u64::MAX),
        };
        consumer.run(out)
    }

    /// Where each partition begins and, with `--exit`, ends.
    fn places(
        &self,
        cluster: &mut Cluster,
        topic: &Topic,
    ) -> Result<BTreeMap<i32, Place>, Failure> {
        let earliest = cluster.offsets(topic, EARLIEST)?;
        let latest = cluster.offsets(topic, LATEST)?;
        let mut places = BTreeMap::new();
        for (partition, start) in earliest {
            let end = latest.get(&partition).copied().unwrap_or(start);
            let next = match self.offset {
                Start::Beginning => start,
                Start::End => end,
                Start::BeforeEnd(count) => end.saturating_sub(count).max(start),
                Start::At(offset) if offset >= start && offset <= end => offset,
                Start::At(offset) => {
                    return Err(Failure::Failed(format!(
                        "partition {partition} of `{}` has no offset {offset}: it holds {start} \
                         to {end}",
                        topic.name
                    )));
                }
            };
            let stop = if self.exit { end } else { i64::MAX };
            places.insert(partition, Place { next, stop });
        }
        Ok(places)
    }
}

/// How far a partition was read, and where reading ends.
#[derive(Clone, Copy, Debug)]
struct Place {
    next: i64,
    stop: i64,
}

struct Consumer {
    cluster: Cluster,
    topic: Topic,
    places: BTreeMap<i32, Place>,
    /// `None` writes JSON.
    format: Option<Format>,
    /// Records that are still wanted.
    left: u64,
}

impl Consumer {
    fn run(&mut self, out: &mut dyn Write) -> Result<(), Failure> {
        let mut failures = 0;
        loop {
            self.places.retain(|_, place| place.next < place.stop);
            if self.left == 0 || self.places.is_empty() {
                return Ok(());
            }
            match self.round(out) {
                Ok(Attempt::Done(())) => failures = 0,
                Ok(Attempt::Again(why)) | Err(Failure::Lost(why)) => {
                    failures += 1;
                    if failures >= ATTEMPTS_MAX {
                        let text = format!("gave up after {failures} attempts: {why}");
                        return Err(Failure::Failed(text));
                    }
                    pause(failures);
                    self.find_leaders()?;
                }
                Err(failure) => return Err(failure),
            }
            out.flush()?;
        }
    }

    /// Learns the leaders again; while no broker answers, the old ones stand.
    fn find_leaders(&mut self) -> Result<(), Failure> {
        let is_needed = |index| self.places.contains_key(&index);
        match self.cluster.topic_led(&self.topic.name, false, is_needed) {
            Ok(topic) => self.topic = topic,
            Err(Failure::Lost(_)) => {}
            Err(failure) => return Err(failure),
        }
        Ok(())
    }

    /// One fetch from each leader.
    fn round(&mut self, out: &mut dyn Write) -> Result<Attempt<()>, Failure> {
        let mut again = None;
        let mut leaders = self.topic.by_leader();
        for partitions in leaders.values_mut() {
            partitions.retain(|partition| self.places.contains_key(partition));
        }
        leaders.retain(|_, partitions| !partitions.is_empty());
        let wait = if leaders.len() > 1 { WAIT_OF_MANY_MS } else { WAIT_MS };
        for (leader, partitions) in leaders {
            let highest = self.topic.newest(FETCH_WITH_NAMES);
            let request = request(&self.topic, &self.places, &partitions, wait);
            let answer = self.cluster.call(To::Node(leader), ApiKey::Fetch, highest, &request)?;
            let answer: fetch::Response<'_> = answer.decode()?;
            let what = format!("reading `{}` from broker {leader}", self.topic.name);
            if let Attempt::Again(why) = judge(ErrorCode(answer.error_code), &what, None)? {
                return Ok(Attempt::Again(why));
            }
            for partition in answer.responses.iter().flat_map(|topic| &topic.partitions) {
                if let Attempt::Again(why) = self.take(partition, out)? {
                    again = Some(why);
                }
            }
        }
        Ok(again.map_or(Attempt::Done(()), Attempt::Again))
    }

    /// Writes what came of a partition.
    fn take(
        &mut self,
        partition: &fetch::PartitionData<'_>,
        out: &mut dyn Write,
    ) -> Result<Attempt<()>, Failure> {
        let index = partition.partition_index;
        let what = format!("partition {index} of `{}`", self.topic.name);
        if let Attempt::Again(why) = judge(ErrorCode(partition.error_code), &what, None)? {
            return Ok(Attempt::Again(why));
        }
        let records = partition.records.unwrap_or_default();
        if !records.is_empty() && batches(records).next().is_none() {
            let bytes = records.len();
            let text = format!("{what}: the broker answered {bytes} bytes without a whole batch");
            return Err(Failure::Failed(text));
        }
        for (header, batch) in batches(records) {
            let damaged = |why: &str| {
                let offset = header.base_offset;
                Failure::Failed(format!("{what}: the batch at offset {offset} is damaged: {why}"))
            };
            if header.magic != 2 {
                return Err(damaged("its format is older than Kafka 0.11"));
            }
            if header.crc != crc(batch) {
                return Err(damaged("its CRC is wrong"));
            }
            self.write_batch(index, &header, batch, out)
                .map_err(|refused| refused.unwrap_or_else(|why| damaged(&why)))?;
        }
        Ok(Attempt::Done(()))
    }

    /// Writes the records of a batch that were not written yet. Fails with a failure of the output,
    /// or with what is wrong with the batch.
    fn write_batch(
        &mut self,
        partition: i32,
        header: &BatchHeader,
        batch: &[u8],
        out: &mut dyn Write,
    ) -> Result<(), Result<Failure, String>> {
        let Some(mut place) = self.places.get(&partition).copied() else { return Ok(()) };
        if !header.is_control() {
            let codec = header.codec().ok_or(Err("its codec is unknown".to_string()))?;
            let inside = batch.get(HEADER_BYTES..).unwrap_or_default();
            let inside = decompress(codec, inside, DECOMPRESSED_BYTES_MAX)
                .map_err(|error| Err(error.to_string()))?;
            for record in Records::new(header, &inside) {
                let record = record.map_err(|error| Err(error.0.to_string()))?;
                if record.offset < place.next || record.offset >= place.stop || self.left == 0 {
                    continue;
                }
                self.write_record(partition, &record, out).map_err(|error| Ok(error.into()))?;
                self.left -= 1;
            }
        }
        place.next = place.next.max(header.next_offset());
        self.places.insert(partition, place);
        Ok(())
    }

    fn write_record(
        &self,
        partition: i32,
        record: &Record<'_>,
        out: &mut dyn Write,
    ) -> std::io::Result<()> {
        let origin = Origin { topic: &self.topic.name, partition };
        match &self.format {
            Some(format) => format.write(out, origin, record),
            None => writeln!(out, "{}", json_record(origin, record)),
        }
    }
}

fn request<'a>(
    topic: &'a Topic,
    places: &BTreeMap<i32, Place>,
    partitions: &[i32],
    max_wait_ms: i32,
) -> fetch::Request<'a> {
    let partition = |index: &i32| fetch::FetchPartition {
        partition: *index,
        fetch_offset: places.get(index).map_or(0, |place| place.next),
        partition_max_bytes: PARTITION_BYTES_MAX,
        ..Default::default()
    };
    fetch::Request {
        max_wait_ms,
        min_bytes: 1,
        max_bytes: FETCH_BYTES_MAX,
        session_epoch: NO_SESSION_EPOCH,
        topics: vec![fetch::FetchTopic {
            topic: &topic.name,
            topic_id: topic.id,
            partitions: partitions.iter().map(partition).collect(),
        }],
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_words_offsets_or_counts_from_the_end() {
        assert_eq!(parse_start("beginning"), Ok(Start::Beginning));
        assert_eq!(parse_start("end"), Ok(Start::End));
        assert_eq!(parse_start("12"), Ok(Start::At(12)));
        assert_eq!(parse_start("-12"), Ok(Start::BeforeEnd(12)));
        for wrong in ["", "-", "start", "1.5", "-9223372036854775808"] {
            assert!(parse_start(wrong).is_err(), "{wrong}");
        }
    }
}
