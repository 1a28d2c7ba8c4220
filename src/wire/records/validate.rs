//! The checks on what a producer sends, batch by batch, in place: the header and the checksum of
//! each, the records of those that are not compressed.

use std::fmt;

use super::record::Records;
use super::{
    BatchHeader, CONTROL_BIT, Codec, DELETE_HORIZON_BIT, HEADER_BYTES, LENGTH_END,
    TRANSACTIONAL_BIT, batches, crc,
};
use crate::wire::error::ErrorCode;

/// Every attribute bit that has a meaning.
const KNOWN_BITS: i16 = 0x7f;

/// What the checks learned of a set of batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub batches: u32,
    pub records: i64,
    pub largest_batch_bytes: usize,
    /// The records' least and greatest timestamps, -1 for none; of a compressed batch, whose
    /// records are not looked at, the greatest that its header names.
    pub min_timestamp: i64,
    pub max_timestamp: i64,
    /// Whether any batch carries a producer id.
    pub has_producer: bool,
    pub codec: Codec,
}

/// Why a set of batches is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    Empty,
    Truncated,
    OldMagic(i8),
    Magic(i8),
    Crc { expected: u32, found: u32 },
    Attributes(i16),
    Control,
    Transactional,
    Count { count: i32, last_offset_delta: i32 },
    Producer,
    TimestampType,
    Record(&'static str),
}

impl Invalid {
    /// The code that Kafka answers.
    pub fn code(self) -> ErrorCode {
        match self {
            Invalid::Truncated | Invalid::Magic(_) | Invalid::Crc { .. } => {
                ErrorCode::CORRUPT_MESSAGE
            }
            Invalid::Transactional => ErrorCode::INVALID_TXN_STATE,
            Invalid::TimestampType => ErrorCode::INVALID_TIMESTAMP,
            _ => ErrorCode::INVALID_RECORD,
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Invalid::Empty => write!(f, "the partition's records hold no record batch"),
            Invalid::Truncated => write!(f, "a record batch is shorter than its length field says"),
            Invalid::OldMagic(magic) => write!(
                f,
                "message format {magic} is not served any more: produce with format 2 \
                 (any client since Kafka 0.11)"
            ),
            Invalid::Magic(magic) => write!(f, "{magic} is no message format"),
            Invalid::Crc { expected, found } => {
                write!(f, "a record batch's CRC is {found:#010x}, its bytes give {expected:#010x}")
            }
            Invalid::Attributes(bits) => write!(f, "attributes {bits:#06x} have no meaning"),
            Invalid::Control => write!(f, "control batches are the broker's to write"),
            Invalid::Transactional => {
                write!(f, "the batch belongs to a transaction, and no transaction is open")
            }
            Invalid::Count { count, last_offset_delta } => write!(
                f,
                "a batch of {count} records cannot have the last offset delta {last_offset_delta}"
            ),
            Invalid::Producer => {
                write!(f, "a batch with a producer id needs an epoch and a sequence")
            }
            Invalid::TimestampType => {
                write!(f, "the time of appending is the broker's to write")
            }
            Invalid::Record(why) => write!(f, "a record is malformed: {why}"),
        }
    }
}

/// Checks batches back to back as a producer sends them; compressed ones are not opened.
pub fn validate(bytes: &[u8]) -> Result<Summary, Invalid> {
    let mut summary = Summary {
        batches: 0,
        records: 0,
        largest_batch_bytes: 0,
        min_timestamp: i64::MAX,
        max_timestamp: -1,
        has_producer: false,
        codec: Codec::None,
    };
    check_magic(bytes)?;
    let mut checked = 0;
    for (header, batch) in batches(bytes) {
        let times;
        (summary.codec, times) = check_batch(&header, batch)?;
        checked += batch.len();
        summary.batches += 1;
        summary.records += i64::from(header.count);
        summary.largest_batch_bytes = summary.largest_batch_bytes.max(batch.len());
        summary.min_timestamp = summary.min_timestamp.min(times.0);
        summary.max_timestamp = summary.max_timestamp.max(times.1);
        summary.has_producer |= header.has_producer();
    }
    if checked != bytes.len() {
        check_magic(&bytes[checked..])?;
        return Err(Invalid::Truncated);
    }
    Ok(summary)
}

/// Old formats have their magic at the same place, but are shorter than a batch's header.
fn check_magic(bytes: &[u8]) -> Result<(), Invalid> {
    if bytes.is_empty() {
        return Err(Invalid::Empty);
    }
    match bytes.get(LENGTH_END + 4).map(|magic| i8::from_be_bytes([*magic])) {
        Some(2) => Ok(()),
        Some(magic @ (0 | 1)) => Err(Invalid::OldMagic(magic)),
        Some(magic) => Err(Invalid::Magic(magic)),
        None => Err(Invalid::Truncated),
    }
}

/// Least and greatest.
type Times = (i64, i64);

fn check_batch(header: &BatchHeader, batch: &[u8]) -> Result<(Codec, Times), Invalid> {
    check_magic(batch)?;
    let expected = crc(batch);
    if expected != header.crc {
        return Err(Invalid::Crc { expected, found: header.crc });
    }
    if header.attributes & !KNOWN_BITS != 0 || header.attributes & DELETE_HORIZON_BIT != 0 {
        return Err(Invalid::Attributes(header.attributes));
    }
    let codec = header.codec().ok_or(Invalid::Attributes(header.attributes))?;
    if header.attributes & CONTROL_BIT != 0 {
        return Err(Invalid::Control);
    }
    if header.attributes & TRANSACTIONAL_BIT != 0 {
        return Err(Invalid::Transactional);
    }
    let BatchHeader { count, last_offset_delta, .. } = *header;
    if count <= 0 || last_offset_delta != count - 1 {
        return Err(Invalid::Count { count, last_offset_delta });
    }
    check_producer(header)?;
    if header.is_log_append_time() {
        return Err(Invalid::TimestampType);
    }
    let times = match codec {
        Codec::None => check_records(header, &batch[HEADER_BYTES..])?,
        _ => (header.max_timestamp, header.max_timestamp),
    };
    Ok((codec, times))
}

/// A batch without a producer id may say anything of epoch and sequence: kafkajs writes zeros.
fn check_producer(header: &BatchHeader) -> Result<(), Invalid> {
    let whole = header.producer_epoch >= 0 && header.base_sequence >= 0;
    if header.has_producer() && !whole { Err(Invalid::Producer) } else { Ok(()) }
}

fn check_records(header: &BatchHeader, bytes: &[u8]) -> Result<Times, Invalid> {
    let mut records = Records::new(header, bytes);
    let mut times = (i64::MAX, -1);
    for expected in 0..i64::from(header.count) {
        let record = records.next().ok_or(Invalid::Record("there are fewer than counted"))?;
        let record = record.map_err(|error| Invalid::Record(error.0))?;
        if record.offset_delta != expected {
            return Err(Invalid::Record("offset deltas do not count up by one"));
        }
        times = (times.0.min(record.timestamp), times.1.max(record.timestamp));
    }
    if records.remaining() > 0 {
        return Err(Invalid::Record("bytes follow the last record"));
    }
    Ok(times)
}
