//! Producers: idempotent ones keep batches in flight and send them again until they are answered;
//! plain ones send each batch once.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::client::{Client, Lost};
use super::history::Mark;
use super::{Stage, TOPIC};
use crate::io::Io;
use crate::io::sim::SimIo;
use crate::wire::api::{ApiKey, init_producer_id, produce};
use crate::wire::error::ErrorCode;
use crate::wire::records::{BatchBuilder, Codec, NewRecord, ProducerStamp};

pub const VERSION: i16 = 12;
const IN_FLIGHT_MAX: usize = 5;
const PAUSE: Duration = Duration::from_millis(5);
/// A batch that is still not taken after so many tries is a fault of the node.
const TRIES_MAX: u32 = 20_000;

struct Batch {
    partition: i32,
    marks: Vec<Mark>,
    bytes: Bytes,
    acks: i16,
    tries: u32,
}

struct Producer {
    io: SimIo,
    stage: Rc<Stage>,
    client: Client,
    number: u32,
    next: u32,
    /// The producer id and epoch, and the next sequence by partition.
    identity: Option<(i64, i16)>,
    sequences: Vec<i32>,
    window: VecDeque<Batch>,
}

/// Whole batches of records until the run is over; an idempotent producer then finishes its window.
pub async fn run(io: SimIo, stage: Rc<Stage>, number: u32) {
    let client = stage.client(&io);
    let partitions = usize::try_from(stage.plan.partitions).expect("few");
    let mut producer = Producer {
        io,
        client,
        number,
        next: 0,
        identity: None,
        sequences: vec![0; partitions],
        window: VecDeque::new(),
        stage,
    };
    let idempotent = number.is_multiple_of(2);
    while !producer.stage.is_made.get() {
        producer.io.sleep(PAUSE).await;
    }
    while !producer.stage.is_over() {
        if idempotent && producer.identity.is_none() {
            producer.identify().await;
            continue;
        }
        producer.fill();
        producer.round().await;
        if producer.below(8) == 0 {
            producer.io.sleep(PAUSE).await;
        }
        if producer.below(64) == 0 {
            producer.client.hang_up();
        }
    }
    while idempotent && !producer.window.is_empty() {
        producer.round().await;
    }
}

impl Producer {
    fn below(&self, bound: u64) -> u64 {
        self.io.random() % bound
    }

    async fn identify(&mut self) {
        let request = init_producer_id::Request { transactional_id: None, ..Default::default() };
        let Ok(answer) = self.client.call(ApiKey::InitProducerId, 4, &request).await else {
            self.io.sleep(PAUSE).await;
            return;
        };
        let answer: init_producer_id::Response = answer.decode();
        if answer.error_code == 0 {
            self.stage.history().producer_id(self.number, answer.producer_id);
            self.identity = Some((answer.producer_id, answer.producer_epoch));
        }
    }

    /// Adds a few batches to the window.
    fn fill(&mut self) {
        let wanted = 1 + self.below(u64::try_from(IN_FLIGHT_MAX).expect("small"));
        while self.window.len() < usize::try_from(wanted).expect("small") {
            let batch = self.batch();
            self.stage.history().sending(batch.partition, &batch.marks);
            self.window.push_back(batch);
        }
    }

    fn batch(&mut self) -> Batch {
        let index = usize::try_from(self.below(self.sequences.len() as u64)).expect("small");
        let count = 1 + u32::try_from(self.below(4)).expect("small");
        let mut builder = BatchBuilder::new();
        if let Some((id, epoch)) = self.identity {
            let sequence = self.sequences[index];
            self.sequences[index] += i32::try_from(count).expect("small");
            builder = builder.producer(ProducerStamp { id, epoch, sequence });
        }
        let marks: Vec<Mark> = (self.next..self.next + count)
            .map(|number| Mark { producer: self.number, number })
            .collect();
        self.next += count;
        for mark in &marks {
            let most = if self.below(40) == 0 { 30_000 } else { self.stage.plan.record_bytes };
            let padding = usize::try_from(self.below(most)).expect("small");
            let value = mark_to_value(*mark, padding);
            let timestamp = self.io.wall().0;
            builder.push(&NewRecord { timestamp, value: Some(&value), ..NewRecord::default() });
        }
        let codec = [Codec::None, Codec::None, Codec::Lz4][(self.next % 3) as usize];
        let bytes = builder.build(codec).expect("compressible");
        let acks = match (self.identity, self.below(8)) {
            (None, 0) => 0,
            (None, 1) => 1,
            _ => -1,
        };
        Batch { partition: i32::try_from(index).expect("small"), marks, bytes, acks, tries: 0 }
    }

    /// Sends the window, reads its answers, and keeps what is to be sent again.
    async fn round(&mut self) {
        let mut sent = VecDeque::new();
        for at in 0..self.window.len() {
            let Ok(correlation) = self.send(at).await else { break };
            sent.push_back(correlation);
        }
        // Whoever leaves before the answers meets his own batches on their way to the disk.
        if self.below(32) == 0 {
            self.client.hang_up();
            sent.clear();
        }
        let batches: Vec<Batch> = self.window.drain(..).collect();
        let mut broken = vec![false; self.sequences.len()];
        let mut lost = false;
        for mut batch in batches {
            let correlation = if lost { None } else { sent.pop_front() };
            let outcome = match correlation {
                None => Err(Lost),
                Some(_) if batch.acks == 0 => continue,
                Some(correlation) => self.answer(correlation, &batch).await,
            };
            lost |= outcome.is_err();
            let partition = &mut broken[usize::try_from(batch.partition).expect("small")];
            let taken = self.settle(&batch, outcome);
            // P4 follows from it: nothing is taken behind a batch that was refused.
            assert!(!(taken && *partition), "{:?} overtook a refused batch", batch.marks);
            *partition |= !taken && outcome.is_ok() && self.identity.is_some();
            if !taken && self.identity.is_some() {
                batch.tries += 1;
                assert!(batch.tries < TRIES_MAX, "{:?} is never taken", batch.marks);
                self.window.push_back(batch);
            }
        }
        if lost && self.below(4) > 0 {
            self.io.sleep(PAUSE).await;
        }
    }

    async fn send(&mut self, at: usize) -> Result<i32, Lost> {
        let batch = &self.window[at];
        let partition =
            produce::PartitionProduceData { index: batch.partition, records: Some(&batch.bytes) };
        let topic = produce::TopicProduceData {
            name: TOPIC,
            partition_data: vec![partition],
            ..Default::default()
        };
        let request = produce::Request {
            acks: batch.acks,
            timeout_ms: 10_000,
            topic_data: vec![topic],
            ..Default::default()
        };
        self.client.send(ApiKey::Produce, VERSION, &request).await
    }

    /// The code and the offset that a batch is answered with.
    async fn answer(&mut self, correlation: i32, batch: &Batch) -> Result<(ErrorCode, i64), Lost> {
        let answer = self.client.receive(ApiKey::Produce, VERSION, correlation).await?;
        let answer: produce::Response<'_> = answer.decode();
        let partition = &answer.responses[0].partition_responses[0];
        assert_eq!(partition.index, batch.partition, "the answer is for another partition");
        Ok((ErrorCode(partition.error_code), partition.base_offset))
    }

    /// Notes what became of a batch; returns whether the node has it for sure.
    fn settle(&self, batch: &Batch, outcome: Result<(ErrorCode, i64), Lost>) -> bool {
        let mut history = self.stage.history();
        match outcome {
            Err(Lost) => {
                history.met.unanswered += 1;
                false
            }
            Ok((ErrorCode::NONE, offset)) => {
                history.met.duplicates += u64::from(batch.tries > 0);
                if batch.acks == -1 {
                    history.acknowledged(batch.partition, offset, &batch.marks);
                }
                true
            }
            Ok((code, _)) => {
                history.met.refused += 1;
                assert!(EXPECTED.contains(&code), "{:?} is refused with {code}", batch.marks);
                false
            }
        }
    }
}

/// What a batch may be refused with while disks fail and earlier batches are refused.
const EXPECTED: &[ErrorCode] = &[
    ErrorCode::KAFKA_STORAGE_ERROR,
    ErrorCode::UNKNOWN_TOPIC_OR_PARTITION,
    ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER,
    ErrorCode::REQUEST_TIMED_OUT,
    ErrorCode::NOT_ENOUGH_REPLICAS,
];

pub fn mark_to_value(mark: Mark, padding: usize) -> Vec<u8> {
    let mut value = Vec::with_capacity(8 + padding);
    value.extend(mark.producer.to_be_bytes());
    value.extend(mark.number.to_be_bytes());
    value.resize(8 + padding, u8::try_from(mark.number % 251).expect("small"));
    value
}

/// What `mark_to_value` wrote; panics if a byte of it is another.
pub fn value_to_mark(value: &[u8]) -> Mark {
    let (producer, rest) = value.split_first_chunk().expect("a producer");
    let (number, padding) = rest.split_first_chunk().expect("a number");
    let number = u32::from_be_bytes(*number);
    let filler = u8::try_from(number % 251).expect("small");
    assert!(padding.iter().all(|byte| *byte == filler), "record {number} is damaged");
    Mark { producer: u32::from_be_bytes(*producer), number }
}
