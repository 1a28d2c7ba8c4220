//! Consumers: readers of one partition after the other while the run lasts, and the last reader.

use std::rc::Rc;
use std::time::Duration;

use super::client::{Client, Lost};
use super::history::Mark;
use super::producer::value_to_mark;
use super::{Stage, TOPIC};
use crate::io::Io;
use crate::io::sim::SimIo;
use crate::wire::api::{ApiKey, fetch};
use crate::wire::error::ErrorCode;
use crate::wire::records::{HEADER_BYTES, Records, batches, decompress, validate};

const VERSION: i16 = 12;
const PAUSE: Duration = Duration::from_millis(10);
const RECORDS_BYTES_MAX: usize = 4 << 20;

/// What a fetch of one partition brought.
struct Found {
    start: i64,
    end: i64,
    records: Vec<(i64, Mark)>,
}

/// The bytes that a fetch of one partition brought.
pub struct Fetched {
    pub start: i64,
    pub end: i64,
    pub records: Vec<u8>,
}

pub struct Reader {
    pub io: SimIo,
    pub client: Client,
}

impl Reader {
    /// Reads from `offset` on; `Err` where the node does not answer or refuses for a reason that
    /// passes. `Ok(Err(()))` says that the log begins elsewhere.
    async fn fetch(&mut self, index: i32, offset: i64) -> Result<Result<Found, ()>, Lost> {
        let Ok(found) = self.fetch_from(TOPIC, index, offset).await? else { return Ok(Err(())) };
        let records = records_of(&found.records, offset);
        Ok(Ok(Found { start: found.start, end: found.end, records }))
    }

    /// As `fetch`, from any topic, and without a look into what came.
    pub async fn fetch_from(
        &mut self,
        topic: &str,
        index: i32,
        offset: i64,
    ) -> Result<Result<Fetched, ()>, Lost> {
        let partition = fetch::FetchPartition {
            partition: index,
            fetch_offset: offset,
            partition_max_bytes: i32::try_from(1 + self.io.random() % 100_000).expect("small"),
            ..Default::default()
        };
        let topic = fetch::FetchTopic { topic, partitions: vec![partition], ..Default::default() };
        let request = fetch::Request {
            max_wait_ms: i32::try_from(self.io.random() % 50).expect("small"),
            min_bytes: 1,
            max_bytes: 1 << 20,
            topics: vec![topic],
            ..Default::default()
        };
        let answer = self.client.call(ApiKey::Fetch, VERSION, &request).await?;
        let answer: fetch::Response<'_> = answer.decode();
        assert_eq!(answer.error_code, 0, "a sessionless fetch is answered");
        let Some(found) = answer.responses.first().and_then(|topic| topic.partitions.first())
        else {
            panic!("the answer leaves out what was asked");
        };
        match ErrorCode(found.error_code) {
            ErrorCode::NONE => {}
            ErrorCode::OFFSET_OUT_OF_RANGE => return Ok(Err(())),
            ErrorCode::UNKNOWN_TOPIC_OR_PARTITION | ErrorCode::KAFKA_STORAGE_ERROR => {
                return Err(Lost);
            }
            code => panic!("partition {index} is answered with {code}"),
        }
        let records = found.records.unwrap_or_default().to_vec();
        Ok(Ok(Fetched { start: found.log_start_offset, end: found.high_watermark, records }))
    }
}

/// The records at and after `from`; the batches must be whole and valid, except the last one.
fn records_of(bytes: &[u8], from: i64) -> Vec<(i64, Mark)> {
    let mut found = Vec::new();
    for (header, batch) in batches(bytes) {
        validate(batch).unwrap_or_else(|invalid| panic!("a batch is served damaged: {invalid}"));
        let codec = header.codec().expect("valid");
        let inside = decompress(codec, &batch[HEADER_BYTES..], RECORDS_BYTES_MAX);
        let inside = inside.expect("what was compressed");
        for record in Records::new(&header, &inside) {
            let record = record.expect("valid");
            if record.offset >= from {
                found.push((record.offset, value_to_mark(record.value.expect("a value"))));
            }
        }
    }
    found
}

/// Reads the partitions one after the other, from the start, until the run is over.
pub async fn run(io: SimIo, stage: Rc<Stage>) {
    let mut reader = Reader { io: io.clone(), client: stage.client(&io) };
    let mut places = vec![0; usize::try_from(stage.plan.partitions).expect("few")];
    while !stage.is_over() {
        let at = usize::try_from(io.random()).unwrap_or(usize::MAX) % places.len();
        let index = i32::try_from(at).expect("few");
        let known = stage.history().bounds(index);
        match reader.fetch(index, places[at]).await {
            Err(Lost) => io.sleep(PAUSE).await,
            Ok(Err(())) => places[at] = first_readable(&stage, index, places[at]),
            Ok(Ok(found)) => {
                let mut history = stage.history();
                history.saw_bounds(index, (found.start, found.end), known);
                for (offset, mark) in found.records {
                    assert_eq!(offset, places[at], "partition {index} has a hole");
                    assert!(offset < found.end, "offset {offset} is served beyond the end");
                    history.saw(index, offset, mark);
                    places[at] += 1;
                }
            }
        }
        if io.random().is_multiple_of(32) {
            places[at] = 0;
        }
    }
}

/// Only a deleted prefix makes an offset that was once there unreadable.
fn first_readable(stage: &Stage, index: i32, place: i64) -> i64 {
    let asked = stage.history().delete_asked_up_to(index);
    assert!(place < asked, "offset {place} of partition {index} is not readable any more");
    place + 1
}

/// Reads everything and has it judged; the node is up and nobody else is at work.
pub async fn judge(io: SimIo, stage: Rc<Stage>) {
    let mut reader = Reader { io: io.clone(), client: stage.client(&io) };
    for index in 0..stage.plan.partitions {
        let mut place = 0;
        let mut all = Vec::new();
        let start = loop {
            match reader.fetch(index, place).await {
                Err(Lost) => io.sleep(PAUSE).await,
                Ok(Err(())) => place = first_readable(&stage, index, place),
                Ok(Ok(found)) if place == found.end => break found.start,
                Ok(Ok(found)) => {
                    place = found.records.last().map_or(place, |(offset, _)| offset + 1);
                    all.extend(found.records);
                }
            }
        };
        let start = if all.is_empty() { place } else { start };
        stage.history().judge(index, start, &all);
    }
}
