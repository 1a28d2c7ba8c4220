//! Records that their topic refuses: a batch with one of them is refused whole, and its producer is
//! told of each (KIP-467).
//!
//! Source: Kafka's `LogValidator`. Invariants
//!   V1  One record is enough; the answer is INVALID_TIMESTAMP if any of them is about a timestamp,
//!       INVALID_RECORD otherwise.
//!   V2  At most `REJECTED_RECORDS_MAX` of them are told of.

use std::ops::RangeInclusive;

use super::append::ProduceAnswer;
use crate::base::limits;
use crate::config::TopicConfig;
use crate::wire::error::ErrorCode;
use crate::wire::records::Record;

/// A record that is refused: its place in the batch, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedRecord {
    pub index: i32,
    pub message: String,
}

/// Looks at a batch's records one by one.
pub(super) struct Inspection {
    needs_keys: bool,
    /// `None` where the producer's times are not kept.
    times: Option<RangeInclusive<i64>>,
    now: i64,
    has_wrong_time: bool,
    rejected: Vec<RejectedRecord>,
}

impl Inspection {
    /// Of what a topic takes when the clock says `now`.
    pub(super) fn new(config: &TopicConfig, now: i64) -> Inspection {
        let oldest = now.saturating_sub(config.timestamp_before_max_ms);
        let newest = now.saturating_add(config.timestamp_after_max_ms);
        Inspection {
            needs_keys: config.is_compacted,
            times: (!config.is_append_time).then_some(oldest..=newest),
            now,
            has_wrong_time: false,
            rejected: Vec::new(),
        }
    }

    /// Whether the topic takes records of this time; -1 is a producer's that gives none.
    pub(super) fn takes(&self, timestamp: i64) -> bool {
        timestamp == -1 || self.times.as_ref().is_none_or(|times| times.contains(&timestamp))
    }

    /// The next record; not to be asked of one whose offset deltas are wrong.
    pub(super) fn look(&mut self, record: &Record<'_>) {
        let message = if self.needs_keys && record.key.is_none() {
            // Compaction keeps the newest record of each key: one without has no place.
            format!("record {} has no key: the topic is compacted", record.offset_delta)
        } else if !self.takes(record.timestamp) {
            self.has_wrong_time = true;
            format!(
                "the timestamp of record {}, {}, is not within message.timestamp.before.max.ms and \
                 message.timestamp.after.max.ms of the broker's clock, which says {}",
                record.offset_delta, record.timestamp, self.now
            )
        } else {
            return;
        };
        if self.rejected.len() < limits::REJECTED_RECORDS_MAX {
            let index = i32::try_from(record.offset_delta).unwrap_or(i32::MAX);
            self.rejected.push(RejectedRecord { index, message });
        }
    }

    /// Refuses the batch if one of its records is.
    pub(super) fn end(self) -> Result<(), ProduceAnswer> {
        let Some(first) = self.rejected.first() else { return Ok(()) };
        let error = match self.has_wrong_time {
            true => ErrorCode::INVALID_TIMESTAMP,
            false => ErrorCode::INVALID_RECORD,
        };
        let message = match self.rejected.len() {
            1 => first.message.clone(),
            more => format!("{}; {more} records of the batch are refused", first.message),
        };
        Err(ProduceAnswer { rejected: self.rejected, ..ProduceAnswer::refused(error, message) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BrokerConfig;
    use crate::wire::records::{
        BatchBuilder, BatchHeader, Codec, HEADER_BYTES, NewRecord, Records,
    };

    #[test]
    fn no_more_than_so_many_are_told_of_and_a_wrong_time_among_the_rest_counts() {
        let compacted = String::from("compact");
        let own = |name: &str| (name == "cleanup.policy").then_some(&compacted);
        let config = TopicConfig::new(own, &BrokerConfig::default());
        let count = limits::REJECTED_RECORDS_MAX + 5;
        let rejected = |last_timestamp| {
            let mut builder = BatchBuilder::new();
            (0..count).for_each(|_| builder.push(&NewRecord::default()));
            builder.push(&NewRecord {
                timestamp: last_timestamp,
                key: Some(b"key"),
                ..NewRecord::default()
            });
            let batch = builder.build(Codec::None).expect("not compressed");
            let header = BatchHeader::read(&batch).expect("whole");
            let mut inspection = Inspection::new(&config, 0);
            let records = Records::new(&header, &batch[HEADER_BYTES..]).flatten();
            records.for_each(|record| inspection.look(&record));
            let refused = inspection.end().expect_err("without keys");
            (refused.error, refused.rejected.len())
        };
        let most = limits::REJECTED_RECORDS_MAX;
        assert_eq!(rejected(0), (ErrorCode::INVALID_RECORD, most));
        assert_eq!(rejected(3_600_000), (ErrorCode::INVALID_RECORD, most), "at the bound");
        assert_eq!(rejected(3_600_001), (ErrorCode::INVALID_TIMESTAMP, most));
    }
}
