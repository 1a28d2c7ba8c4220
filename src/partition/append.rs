//! Produce on the owner core: check the batches, give them offsets, hand them to the journal.
//!
//! Invariants
//!   A1  Everything that is checked of an entry is so before its first byte is journaled: what
//!       `records::validate` does, and the records of a compressed batch where the topic asks for
//!       that (`prepare`); others are stored as they came.
//!   A2  Admission is synchronous once the journal has room: two entries of one producer are
//!       admitted in the order in which they came.
//!   A3  A duplicate is answered with the original's offset, and not before the original settled.

use std::hint::black_box;
use std::rc::Rc;

use bytes::Bytes;

use super::reject::{Inspection, RejectedRecord};
use super::settle::TOUCHED;
use super::{Extent, Log, Owner};
use crate::base::few::Few;
use crate::base::ids::{Epoch, Offset, PartitionId};
use crate::base::limits;
use crate::base::line::Place;
use crate::config::TopicConfig;
use crate::io::Io;
use crate::io::reply::{Replies, Reply};
use crate::journal::{Entry, EntryKind, Position};
use crate::producer::{Claim, Verdict};
use crate::wire::error::ErrorCode;
use crate::wire::records::{self, BatchHeader, Codec, HEADER_BYTES, Records, Summary};

/// When a write is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acks {
    /// Not at all (acks=0) or as soon as the leader has ordered it (acks=1).
    Ordered,
    /// When it is committed (acks=all).
    Committed,
}

/// One partition's share of a produce request.
#[derive(Debug)]
pub struct ProducePart {
    pub partition: PartitionId,
    /// One record batch, as it came.
    pub records: Bytes,
}

/// The outcome for one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProduceAnswer {
    pub error: ErrorCode,
    /// One plain sentence where the error's name does not say it all.
    pub message: Option<String>,
    pub base_offset: Offset,
    pub log_start: Offset,
    /// When it was appended, where the topic's records carry that; -1 elsewhere.
    pub log_append_time: i64,
    /// Those that a batch was refused for.
    pub rejected: Vec<RejectedRecord>,
}

/// The answers of one core's share, in the order of its parts.
pub type ProduceAnswers = Few<ProduceAnswer>;

/// Where they go.
pub type ProduceReply = Reply<ProduceAnswers>;

impl ProduceAnswer {
    pub fn refused(error: ErrorCode, message: impl Into<Option<String>>) -> ProduceAnswer {
        ProduceAnswer {
            error,
            message: message.into(),
            base_offset: -1,
            log_start: -1,
            log_append_time: -1,
            rejected: Vec::new(),
        }
    }

    /// The write was admitted but never became durable.
    pub(super) fn fail_storage(&mut self) {
        if self.error == ErrorCode::NONE {
            let why = "the journal failed before the record was durable";
            *self = ProduceAnswer::refused(ErrorCode::KAFKA_STORAGE_ERROR, why.to_string());
        }
    }
}

/// A part that was checked.
pub(super) struct Ready {
    pub partition: PartitionId,
    pub records: Bytes,
    pub summary: Summary,
    pub config: TopicConfig,
}

/// An admitted entry: its answer, and the journal position that the answer waits for.
pub(super) struct Admitted {
    answer: ProduceAnswer,
    position: Position,
}

/// What has become of the parts of a request.
pub(super) struct Outcomes {
    answers: ProduceAnswers,
    /// The newest position that one of them waits for.
    last: Option<Position>,
}

impl Outcomes {
    pub(super) fn of(parts: usize) -> Outcomes {
        Outcomes { answers: Few::with_capacity(parts), last: None }
    }

    pub(super) fn push(&mut self, outcome: Result<Admitted, ProduceAnswer>) {
        let answer = outcome.map(|admitted| {
            self.last = self.last.max(Some(admitted.position));
            admitted.answer
        });
        self.answers.push(answer.unwrap_or_else(|refused| refused));
    }
}

impl<I: Io> Owner<I> {
    /// For the answers to `produce`, on any core.
    pub fn produce_replies(&self) -> &Replies<ProduceAnswers> {
        &self.produce_replies
    }

    /// Admits `parts` in order and sends their answers through `reply` when `acks` says.
    /// Returns when everything is admitted, refused, or has its turn: what is produced later comes
    /// behind it. The answers follow by themselves.
    pub async fn produce(
        self: &Rc<Self>,
        parts: Few<ProducePart>,
        acks: Acks,
        reply: ProduceReply,
    ) {
        let place = self.line.stand();
        self.produce_at(place, parts, acks, reply).await;
    }

    /// As `produce`, for a request that came from another core: it stands in line, but what comes
    /// behind it through the same lane does not wait to stand there, too.
    pub async fn produce_from_afar(
        self: &Rc<Self>,
        parts: Few<ProducePart>,
        acks: Acks,
        reply: ProduceReply,
    ) {
        let place = self.line.stand();
        let is_long = (1..limits::LANE_MESSAGES_MAX).contains(&(self.line.len() - 1));
        if is_long {
            let owner = self.clone();
            let later = async move { owner.produce_at(place, parts, acks, reply).await };
            self.io.spawn("append from afar", later);
        } else {
            self.produce_at(place, parts, acks, reply).await;
        }
    }

    async fn produce_at(
        self: &Rc<Self>,
        place: Place,
        parts: Few<ProducePart>,
        acks: Acks,
        reply: ProduceReply,
    ) {
        place.come().await;
        if self.must_wait(&parts) {
            return self.produce_later(parts, acks, reply);
        }
        let mut outcomes = Outcomes::of(parts.len());
        let mut parts = parts.into_iter();
        while !parts.as_slice().is_empty() {
            self.touch(parts.as_slice().get(..TOUCHED).unwrap_or(parts.as_slice()));
            for part in parts.by_ref().take(TOUCHED) {
                outcomes.push(self.admit(part).await);
            }
        }
        self.answer_admitted(outcomes, acks, reply);
    }

    /// Reads a little of what admitting `parts` needs: see `PartitionLog::touch`.
    fn touch(&self, parts: &[ProducePart]) {
        if parts.len() < 2 {
            return;
        }
        let logs = self.logs.borrow();
        let touched = parts.iter().map(|part| {
            let begin = part.records.first().copied().map_or(0, Offset::from);
            let state = logs.get(&part.partition).map_or(0, |log| log.borrow().touch());
            begin.wrapping_add(state)
        });
        black_box(touched.fold(0, Offset::wrapping_add));
    }

    pub(super) fn answer_admitted(&self, outcomes: Outcomes, acks: Acks, reply: ProduceReply) {
        let Outcomes { answers, last } = outcomes;
        match (acks, last) {
            // The newest position keeps the queue in order; it is this request's own, unless
            // every part was a duplicate.
            (Acks::Committed, Some(_)) => {
                self.settling.answer(self.settling.newest(), reply, answers);
            }
            // The connection may be gone.
            _ => reply.send(answers),
        }
    }

    /// Checks one part, waits for room in the journal, and appends it.
    pub(super) async fn admit(&self, part: ProducePart) -> Result<Admitted, ProduceAnswer> {
        if let Some(why) = self.offline_in_words() {
            return Err(ProduceAnswer::refused(ErrorCode::KAFKA_STORAGE_ERROR, why));
        }
        let mut ready = self.check_records(part)?;
        if self.is_to_open(&ready.records, &ready.config) {
            if let Some(admitted) = self.known_already(&ready) {
                return Ok(admitted);
            }
            self.open(&mut ready).await?;
        }
        let room = match self.short_of_space(ready.partition, ready.records.len()) {
            Some(why) => Err(why),
            None => self.journal.room(ready.records.len()).await.map_err(|why| why.to_string()),
        };
        if let Err(why) = room {
            // What is there already needs no room, and a batch behind it may find some.
            let refused = || self.refuse_for_room(&ready, why);
            return self.known_already(&ready).ok_or_else(refused);
        }
        // The topic may have gone while this waited.
        let image = self.image();
        let log = self.log_to_write(&image, ready.partition).ok_or_else(unknown_partition)?;
        if ready.summary.has_producer
            && let Some(admitted) = self.judge_producers(&log, &ready)?
        {
            return Ok(admitted);
        }
        self.append(&log, &ready, image.leader_epoch())
    }

    fn refuse_for_room(&self, ready: &Ready, why: String) -> ProduceAnswer {
        let image = self.image();
        if ready.summary.has_producer
            && let Some(log) = self.log_to_write(&image, ready.partition)
        {
            let producers = &mut log.borrow_mut().producers;
            for (header, _) in records::batches(&ready.records).filter(|(h, _)| h.has_producer()) {
                producers.refuse(&claim_of(&header));
            }
        }
        ProduceAnswer::refused(ErrorCode::KAFKA_STORAGE_ERROR, why)
    }

    /// The answer to an idempotent batch that was appended before.
    fn known_already(&self, ready: &Ready) -> Option<Admitted> {
        if !ready.summary.has_producer {
            return None;
        }
        let log = self.log(ready.partition)?;
        self.judge_producers(&log, ready).ok()?
    }

    fn check_records(&self, part: ProducePart) -> Result<Ready, ProduceAnswer> {
        let image = self.image();
        let topic = image.topic_by_number(part.partition.topic).ok_or_else(unknown_partition)?;
        let config = self.topic_config(topic);
        let summary = records::validate(&part.records)
            .map_err(|invalid| ProduceAnswer::refused(invalid.code(), invalid.to_string()))?;
        if summary.batches > 1 {
            // Sequences are judged a batch at a time, against what was recorded before it.
            let why = format!("{} record batches for one partition: send one", summary.batches);
            return Err(ProduceAnswer::refused(ErrorCode::INVALID_RECORD, why));
        }
        check_size(summary.largest_batch_bytes, &config)?;
        if summary.codec == Codec::None {
            self.inspect(&part.records, &summary, &config)?;
        }
        Ok(Ready { partition: part.partition, records: part.records, summary, config })
    }

    /// Checks what a topic asks of an uncompressed batch's records, which were found sound. Those
    /// of a compressed one are checked when it is opened.
    fn inspect(
        &self,
        batch: &[u8],
        summary: &Summary,
        config: &TopicConfig,
    ) -> Result<(), ProduceAnswer> {
        let mut inspection = Inspection::new(config, self.io.wall().0);
        let times = [summary.min_timestamp, summary.max_timestamp];
        if !config.is_compacted && times.iter().all(|time| inspection.takes(*time)) {
            return Ok(());
        }
        let Some(header) = BatchHeader::read(batch) else { return Ok(()) };
        let inside = batch.get(HEADER_BYTES..).unwrap_or_default();
        Records::new(&header, inside).flatten().for_each(|record| inspection.look(&record));
        inspection.end()
    }

    /// Whether an idempotent producer's batches may be appended; `Some` when they are already
    /// there.
    fn judge_producers(&self, log: &Log, ready: &Ready) -> Result<Option<Admitted>, ProduceAnswer> {
        let log = log.borrow();
        for (header, _) in records::batches(&ready.records) {
            if !header.has_producer() {
                continue;
            }
            let (error, why) = match log.producers.judge(&claim_of(&header)) {
                Verdict::Append => continue,
                Verdict::Duplicate { base_offset } => {
                    // A batch that is sent again is hardly ever out of the journal already.
                    let original = log.extent(base_offset).filter(|_| ready.config.is_append_time);
                    let answer = ProduceAnswer {
                        error: ErrorCode::NONE,
                        message: None,
                        base_offset,
                        log_start: log.log_start(),
                        log_append_time: original.map_or(-1, |extent| extent.max_timestamp),
                        rejected: Vec::new(),
                    };
                    // The original may still be on its way to the disk (A3).
                    return Ok(Some(Admitted { answer, position: self.settling.newest() }));
                }
                Verdict::OldDuplicate => (
                    ErrorCode::DUPLICATE_SEQUENCE_NUMBER,
                    "the batch was written before, too long ago to say at which offset",
                ),
                Verdict::OutOfOrder => (
                    ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER,
                    "a batch of the producer before this one is missing",
                ),
                Verdict::Fenced => (
                    ErrorCode::INVALID_PRODUCER_EPOCH,
                    "a newer instance of the producer has taken over",
                ),
            };
            let refused = ProduceAnswer::refused(error, why.to_string());
            return Err(ProduceAnswer { log_start: log.log_start(), ..refused });
        }
        Ok(None)
    }

    fn append(&self, log: &Log, ready: &Ready, epoch: Epoch) -> Result<Admitted, ProduceAnswer> {
        let Ready { partition, records, summary, config } = ready;
        let base = log.borrow().next();
        let kind = EntryKind::Batches;
        let entry = Entry { kind, partition: *partition, base_offset: base, epoch };
        let now = self.io.wall().0;
        let append_time = config.is_append_time.then_some(now);
        let appended = self
            .journal
            .append(entry, records, |copy| {
                stamp_all(copy, base, epoch);
                match append_time {
                    Some(time) => records::set_append_time(copy, time),
                    None => correct_max_timestamp(copy, summary),
                }
            })
            .map_err(|refusal| self.refuse_for_room(ready, refusal.to_string()))?;
        let next = base + summary.records;
        let mut state = log.borrow_mut();
        if summary.has_producer {
            let mut at = base;
            for (header, _) in records::batches(records) {
                if header.has_producer() {
                    self.remembering.record(&mut state.producers, &claim_of(&header), at, now);
                }
                at += i64::from(header.count);
            }
        }
        let max_timestamp = append_time.unwrap_or(summary.max_timestamp);
        state.appended(Extent { base, next, location: appended.location, max_timestamp }, epoch);
        self.early.appended(&mut state);
        let log_start = state.log_start();
        drop(state);
        let bytes = appended.location.length;
        self.read_pace.taken_in(bytes);
        self.shared.traffic().taken_in(self.core(), bytes);
        self.settling.appended(appended.position, log.clone(), next, bytes);
        let answer = ProduceAnswer {
            error: ErrorCode::NONE,
            message: None,
            base_offset: base,
            log_start,
            log_append_time: append_time.unwrap_or(-1),
            rejected: Vec::new(),
        };
        Ok(Admitted { answer, position: appended.position })
    }
}

pub(super) fn check_size(bytes: usize, config: &TopicConfig) -> Result<(), ProduceAnswer> {
    if bytes <= config.max_message_bytes {
        return Ok(());
    }
    let why = format!(
        "a record batch of {bytes} bytes is larger than the topic's max.message.bytes, which is {}",
        config.max_message_bytes
    );
    Err(ProduceAnswer::refused(ErrorCode::MESSAGE_TOO_LARGE, why))
}

/// Gives the batches of an entry their offsets and the leader's epoch.
fn stamp_all(entry: &mut [u8], base: Offset, epoch: Epoch) {
    let mut left = entry;
    let mut next = base;
    while let Some(header) = BatchHeader::read(left) {
        let bytes = header.total_bytes().unwrap_or(left.len());
        let Some((batch, rest)) = left.split_at_mut_checked(bytes) else { return };
        records::stamp(batch, next, epoch);
        next += i64::from(header.count);
        left = rest;
    }
}

/// Some clients do not keep the header's greatest timestamp; lookups and retention go by it, so it
/// is made true, as Kafka does.
fn correct_max_timestamp(entry: &mut [u8], summary: &Summary) {
    let said = BatchHeader::read(entry).map(|header| header.max_timestamp);
    if summary.batches == 1 && said != Some(summary.max_timestamp) {
        records::set_max_timestamp(entry, summary.max_timestamp);
    }
}

/// What a batch's header claims.
pub(super) fn claim_of(header: &BatchHeader) -> Claim {
    Claim {
        producer_id: header.producer_id,
        epoch: header.producer_epoch,
        first_sequence: header.base_sequence,
        last_sequence: header.last_sequence(),
    }
}

fn unknown_partition() -> ProduceAnswer {
    ProduceAnswer::refused(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION, None)
}
