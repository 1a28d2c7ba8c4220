//! Batches that are looked into before they are appended: compressed ones whose records must be
//! checked one by one, and those that the topic stores with another codec.
//!
//! The rest of a request waits behind them, other partitions do not (`Turns`).
//!
//! Invariants
//!   E1  A partition's batches are appended in the order in which they came.
//!   E2  One batch of the core is open at a time, and never more than `LOOKUP_BYTES_MAX` of it.
//!   E3  Others have their turn after each step of `STEP_BYTES`.

use std::rc::Rc;

use bytes::Bytes;

use super::Owner;
use super::append::{Acks, Outcomes, ProduceAnswer, ProducePart, ProduceReply, Ready};
use super::reject::Inspection;
use super::turns::Turn;
use crate::base::few::Few;
use crate::base::limits;
use crate::config::{CompressionType, TopicConfig};
use crate::io::Io;
use crate::wire::error::ErrorCode;
use crate::wire::records::{
    self, BatchHeader, Codec, CodecError, HEADER_BYTES, Packer, Records, STEP_BYTES, Unpacker,
};

/// The codec that the batch is to have, if that is another one.
fn target(codec: Codec, config: &TopicConfig) -> Option<Codec> {
    let wanted = match config.compression {
        CompressionType::Producer => return None,
        CompressionType::Uncompressed => Codec::None,
        CompressionType::Gzip => Codec::Gzip,
        CompressionType::Snappy => Codec::Snappy,
        CompressionType::Lz4 => Codec::Lz4,
        CompressionType::Zstd => Codec::Zstd,
    };
    (wanted != codec).then_some(wanted)
}

fn level(codec: Codec, config: &TopicConfig) -> Option<i32> {
    match codec {
        Codec::Gzip => Some(config.gzip_level),
        Codec::Zstd => Some(config.zstd_level),
        _ => None,
    }
}

impl<I: Io> Owner<I> {
    /// Whether a batch must be looked into. Its times need not be, if its header says that they are
    /// within the only bound there is.
    pub(super) fn is_to_open(&self, batch: &[u8], config: &TopicConfig) -> bool {
        let Some(header) = BatchHeader::read(batch) else { return false };
        let Some(codec) = header.codec() else { return false };
        if codec == Codec::None {
            return target(codec, config).is_some();
        }
        let has_bound = !config.is_append_time && config.timestamp_before_max_ms < i64::MAX;
        let looks_wrong =
            || !Inspection::new(config, self.io().wall().0).takes(header.max_timestamp);
        config.is_compacted || has_bound || target(codec, config).is_some() || looks_wrong()
    }

    /// Whether a request has to wait: one of its batches must be opened, or comes behind one.
    pub(super) fn must_wait(&self, parts: &[ProducePart]) -> bool {
        let image = self.image();
        parts.iter().any(|part| {
            let topic = image.topic_by_number(part.partition.topic);
            let opens = |topic| self.is_to_open(&part.records, &self.topic_config(topic));
            self.turns.is_taken(part.partition) || topic.is_some_and(opens)
        })
    }

    /// As `produce`, behind what its partitions wait for, in the background.
    pub(super) fn produce_later(
        self: &Rc<Self>,
        parts: Few<ProducePart>,
        acks: Acks,
        reply: ProduceReply,
    ) {
        let turns: Vec<Turn> = parts.iter().map(|part| self.turns.take(part.partition)).collect();
        let owner = self.clone();
        self.io().spawn("produce", async move {
            let mut outcomes = Outcomes::of(parts.len());
            for (part, turn) in parts.into_iter().zip(turns) {
                turn.come().await;
                outcomes.push(owner.admit(part).await);
            }
            owner.answer_admitted(outcomes, acks, reply);
        });
    }

    /// Checks the records inside a batch, and gives it the topic's codec.
    pub(super) async fn open(&self, ready: &mut Ready) -> Result<(), ProduceAnswer> {
        let _turn = self.opening.turn().await;
        let header = BatchHeader::read(&ready.records).ok_or_else(|| refused_codec(&short()))?;
        let codec = ready.summary.codec;
        let inside = self.unpack(codec, &ready.records).await.map_err(|e| refused_codec(&e))?;
        let times = self.check_inside(&header, &inside, &ready.config).await?;
        (ready.summary.min_timestamp, ready.summary.max_timestamp) = times;
        if let Some(target) = target(codec, &ready.config) {
            let packed = self.pack(target, level(target, &ready.config), &inside).await;
            let packed = packed.map_err(|error| refused_codec(&error))?;
            let batch = records::repacked(&ready.records, target, &packed);
            ready.records = Bytes::from(batch.map_err(|error| refused_codec(&error))?);
            super::append::check_size(ready.records.len(), &ready.config)?;
        }
        Ok(())
    }

    /// The records inside, taken out step by step. The caller has the core's turn for that.
    pub(super) async fn unpack(&self, codec: Codec, batch: &[u8]) -> Result<Vec<u8>, CodecError> {
        let packed = batch.get(HEADER_BYTES..).unwrap_or_default();
        let mut unpacker = Unpacker::new(codec, packed, limits::LOOKUP_BYTES_MAX)?;
        while unpacker.step()? {
            self.io().cede().await;
        }
        Ok(unpacker.finish())
    }

    async fn pack(
        &self,
        codec: Codec,
        level: Option<i32>,
        inside: &[u8],
    ) -> Result<Vec<u8>, CodecError> {
        let mut packer = Packer::new(codec, level)?;
        for step in inside.chunks(STEP_BYTES) {
            packer.push(step)?;
            self.io().cede().await;
        }
        packer.finish()
    }

    /// The records' least and greatest timestamps, if all of them are sound.
    async fn check_inside(
        &self,
        header: &BatchHeader,
        inside: &[u8],
        config: &TopicConfig,
    ) -> Result<(i64, i64), ProduceAnswer> {
        let invalid =
            |why: &str| ProduceAnswer::refused(ErrorCode::INVALID_RECORD, why.to_string());
        let mut inspection = Inspection::new(config, self.io().wall().0);
        let mut records = Records::new(header, inside);
        let mut times = (i64::MAX, -1);
        let mut left = inside.len();
        for expected in 0..i64::from(header.count) {
            let record = records.next().ok_or_else(|| invalid("fewer records than counted"))?;
            let record = record.map_err(|error| invalid(error.0))?;
            if record.offset_delta != expected {
                return Err(invalid("offset deltas do not count up by one"));
            }
            inspection.look(&record);
            times = (times.0.min(record.timestamp), times.1.max(record.timestamp));
            if left - records.remaining() >= STEP_BYTES {
                left = records.remaining();
                self.io().cede().await;
            }
        }
        if records.remaining() > 0 {
            return Err(invalid("bytes follow the last record"));
        }
        inspection.end()?;
        Ok(times)
    }
}

fn short() -> CodecError {
    CodecError::Malformed("a batch is shorter than its header".into())
}

/// A batch that grows too large is one that its producer may split.
fn refused_codec(error: &CodecError) -> ProduceAnswer {
    let code = match error {
        CodecError::TooLarge { .. } => ErrorCode::MESSAGE_TOO_LARGE,
        CodecError::Malformed(_) => ErrorCode::CORRUPT_MESSAGE,
    };
    ProduceAnswer::refused(code, error.to_string())
}
