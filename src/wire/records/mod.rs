//! Record batches of magic 2, read in place: the header, the checks on what a producer sends, and
//! the two fields that a broker stamps.
//!
//!     | base offset i64 | length i32 | leader epoch i32 | magic i8 | crc u32 |
//!     | attributes i16 | last offset delta i32 | base timestamp i64 | max timestamp i64 |
//!     | producer id i64 | producer epoch i16 | base sequence i32 | count i32 | records ... |
//!
//! The CRC-32C covers everything from the attributes on; base offset and leader epoch lie before
//! it, so that a broker sets them without touching it.
//! Source: the Kafka documentation, "Record Batch".
//!
//! Invariants
//!   R1  `validate` accepts only whole batches with a sound header and a true checksum, and
//!       allocates nothing. The records of an uncompressed one every consumer can read; a
//!       compressed one is not opened: what is in it is its producer's word, and may be nothing
//!       that anybody can read.
//!   R2  An accepted batch takes the offsets base .. base + count; the records of an uncompressed
//!       one have just these, without holes.

mod build;
mod codec;
mod record;
mod retain;
mod validate;

pub use build::{BatchBuilder, NewRecord, ProducerStamp, record_bytes};
pub use codec::{Codec, CodecError, Packer, STEP_BYTES, Unpacker, decompress};
pub use record::{Header, Record, RecordError, Records, get_varint, get_varlong};
pub use retain::{empty, retain};
pub use validate::{Invalid, Summary, validate};

/// Bytes of a batch before its records.
pub const HEADER_BYTES: usize = 61;
/// Bytes before those that the length field counts.
pub const LENGTH_END: usize = 12;
/// Where the bytes that the CRC covers begin.
const CRC_END: usize = 21;

const CODEC_MASK: i16 = 0x07;
const TIMESTAMP_TYPE_BIT: i16 = 0x08;
const TRANSACTIONAL_BIT: i16 = 0x10;
const CONTROL_BIT: i16 = 0x20;
const DELETE_HORIZON_BIT: i16 = 0x40;

/// A batch's header as values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    pub base_offset: i64,
    /// Bytes after the length field.
    pub length: i32,
    pub leader_epoch: i32,
    pub magic: i8,
    pub crc: u32,
    pub attributes: i16,
    pub last_offset_delta: i32,
    pub base_timestamp: i64,
    pub max_timestamp: i64,
    pub producer_id: i64,
    pub producer_epoch: i16,
    pub base_sequence: i32,
    pub count: i32,
}

impl BatchHeader {
    /// The header at the start of `bytes`; `None` when they are shorter than one.
    pub fn read(bytes: &[u8]) -> Option<BatchHeader> {
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        Some(BatchHeader {
            base_offset: i64::from_be_bytes(part(header, 0)),
            length: i32::from_be_bytes(part(header, 8)),
            leader_epoch: i32::from_be_bytes(part(header, 12)),
            magic: i8::from_be_bytes(part(header, 16)),
            crc: u32::from_be_bytes(part(header, 17)),
            attributes: i16::from_be_bytes(part(header, 21)),
            last_offset_delta: i32::from_be_bytes(part(header, 23)),
            base_timestamp: i64::from_be_bytes(part(header, 27)),
            max_timestamp: i64::from_be_bytes(part(header, 35)),
            producer_id: i64::from_be_bytes(part(header, 43)),
            producer_epoch: i16::from_be_bytes(part(header, 51)),
            base_sequence: i32::from_be_bytes(part(header, 53)),
            count: i32::from_be_bytes(part(header, 57)),
        })
    }

    /// The whole batch's bytes; `None` when its length field cannot be one.
    pub fn total_bytes(&self) -> Option<usize> {
        let total = usize::try_from(self.length).ok()?.checked_add(LENGTH_END)?;
        (total >= HEADER_BYTES).then_some(total)
    }

    /// One past the last record's offset.
    pub fn next_offset(&self) -> i64 {
        self.base_offset.saturating_add(i64::from(self.last_offset_delta)).saturating_add(1)
    }

    /// The sequence number of the last record; wraps from the largest `i32` to 0.
    pub fn last_sequence(&self) -> i32 {
        let last = i64::from(self.base_sequence) + i64::from(self.last_offset_delta);
        i32::try_from(last % (i64::from(i32::MAX) + 1)).unwrap_or(0)
    }

    /// How the records are compressed; `None` for a number without meaning.
    pub fn codec(&self) -> Option<Codec> {
        Codec::from_bits(self.attributes & CODEC_MASK)
    }

    pub fn is_log_append_time(&self) -> bool {
        self.attributes & TIMESTAMP_TYPE_BIT != 0
    }

    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL_BIT != 0
    }

    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL_BIT != 0
    }

    /// From when on, in Unix milliseconds, its tombstones may go (KIP-534).
    pub fn delete_horizon(&self) -> Option<i64> {
        (self.attributes & DELETE_HORIZON_BIT != 0).then_some(self.base_timestamp)
    }

    pub fn has_producer(&self) -> bool {
        self.producer_id >= 0
    }
}

/// Copies `N` bytes out of a header; positions are constants below `HEADER_BYTES - N`.
fn part<const N: usize>(header: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&header[at..at + N]);
    part
}

/// Sets the two fields that belong to the broker. `batch` has a whole header.
pub fn stamp(batch: &mut [u8], base_offset: i64, leader_epoch: i32) {
    batch[..8].copy_from_slice(&base_offset.to_be_bytes());
    batch[12..16].copy_from_slice(&leader_epoch.to_be_bytes());
}

/// Sets the greatest timestamp, and the CRC, which covers it. `batch` has a whole header.
pub fn set_max_timestamp(batch: &mut [u8], timestamp: i64) {
    batch[35..43].copy_from_slice(&timestamp.to_be_bytes());
    set_crc(batch);
}

/// Gives all records of a batch the time at which it is appended. `batch` has a whole header.
pub fn set_append_time(batch: &mut [u8], timestamp: i64) {
    let attributes = i16::from_be_bytes([batch[21], batch[22]]) | TIMESTAMP_TYPE_BIT;
    batch[21..23].copy_from_slice(&attributes.to_be_bytes());
    set_max_timestamp(batch, timestamp);
}

/// The batch with its records in another codec: `packed` are they.
pub fn repacked(batch: &[u8], codec: Codec, packed: &[u8]) -> Result<Vec<u8>, CodecError> {
    let short = || CodecError::Malformed("a batch is shorter than its header".into());
    let header = BatchHeader::read(batch).ok_or_else(short)?;
    let length = i32::try_from(HEADER_BYTES - LENGTH_END + packed.len())
        .map_err(|_| CodecError::TooLarge { limit: i32::MAX as usize })?;
    let attributes = header.attributes & !CODEC_MASK | codec as i16;
    let mut out = Vec::with_capacity(HEADER_BYTES + packed.len());
    out.extend_from_slice(batch.get(..HEADER_BYTES).ok_or_else(short)?);
    out.extend_from_slice(packed);
    out[8..12].copy_from_slice(&length.to_be_bytes());
    out[21..23].copy_from_slice(&attributes.to_be_bytes());
    set_crc(&mut out);
    Ok(out)
}

fn set_crc(batch: &mut [u8]) {
    let crc = crc(batch);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
}

/// The CRC-32C of a whole batch's covered bytes.
pub fn crc(batch: &[u8]) -> u32 {
    let covered = batch.get(CRC_END..).unwrap_or_default();
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, covered);
    u32::try_from(crc).unwrap_or(0)
}

/// The batches of `bytes`, back to back; stops before the first that is not whole.
pub fn batches(bytes: &[u8]) -> impl Iterator<Item = (BatchHeader, &[u8])> {
    let mut left = bytes;
    std::iter::from_fn(move || {
        let header = BatchHeader::read(left)?;
        let (batch, rest) = left.split_at_checked(header.total_bytes()?)?;
        left = rest;
        Some((header, batch))
    })
}
