//! Building a batch: for the command line's producer and for the broker's own topics.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::codec::{Codec, CodecError, compress};
use super::{HEADER_BYTES, LENGTH_END, TRANSACTIONAL_BIT, set_crc};

/// A record to write. Headers are key and value.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewRecord<'a> {
    pub timestamp: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: &'a [(&'a str, Option<&'a [u8]>)],
}

/// An idempotent producer's mark on a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerStamp {
    pub id: i64,
    pub epoch: i16,
    pub sequence: i32,
}

/// Collects records and writes them as one batch of magic 2. The records stand behind room for the
/// batch's header from the start, so that an uncompressed batch is never copied.
#[derive(Debug)]
pub struct BatchBuilder {
    /// What was there before, `HEADER_BYTES` of room, then the records.
    memory: BytesMut,
    /// Where the batch begins.
    start: usize,
    count: i32,
    base_timestamp: i64,
    max_timestamp: i64,
    producer: Option<ProducerStamp>,
    is_transactional: bool,
}

impl Default for BatchBuilder {
    fn default() -> BatchBuilder {
        BatchBuilder::behind(BytesMut::new())
    }
}

impl BatchBuilder {
    pub fn new() -> BatchBuilder {
        BatchBuilder::default()
    }

    /// Builds behind what `memory` holds.
    pub fn behind(mut memory: BytesMut) -> BatchBuilder {
        let start = memory.len();
        memory.put_bytes(0, HEADER_BYTES);
        BatchBuilder {
            memory,
            start,
            count: 0,
            base_timestamp: 0,
            max_timestamp: 0,
            producer: None,
            is_transactional: false,
        }
    }

    pub fn producer(mut self, stamp: ProducerStamp) -> BatchBuilder {
        self.producer = Some(stamp);
        self
    }

    /// The batch is part of its producer's transaction.
    pub fn transactional(mut self) -> BatchBuilder {
        self.is_transactional = true;
        self
    }

    pub fn count(&self) -> i32 {
        self.count
    }

    /// Bytes of the records so far, uncompressed.
    pub fn bytes(&self) -> usize {
        self.memory.len() - self.start - HEADER_BYTES
    }

    pub fn push(&mut self, record: &NewRecord<'_>) {
        let headers: usize = record
            .headers
            .iter()
            .map(|(k, v)| bytes_length(Some(k.len())) + bytes_length(v.map(<[u8]>::len)))
            .sum();
        let count = i64::try_from(record.headers.len()).unwrap_or(0);
        let value = record.value.map(<[u8]>::len);
        self.begin(record.timestamp, record.key, value, varlong_length(count) + headers);
        self.memory.put_slice(record.value.unwrap_or_default());
        put_varlong(&mut self.memory, count);
        for (key, value) in record.headers {
            put_bytes(&mut self.memory, Some(key.as_bytes()));
            put_bytes(&mut self.memory, *value);
        }
    }

    /// A record without headers whose value is the pieces one behind the other.
    pub fn push_pieces(&mut self, timestamp: i64, key: Option<&[u8]>, value: [&[u8]; 2]) {
        let length = value[0].len() + value[1].len();
        self.begin(timestamp, key, Some(length), 1);
        self.memory.put_slice(value[0]);
        self.memory.put_slice(value[1]);
        self.memory.put_u8(0);
    }

    /// Everything of a record before its value's bytes; `rest` bytes follow those.
    fn begin(&mut self, timestamp: i64, key: Option<&[u8]>, value: Option<usize>, rest: usize) {
        if self.count == 0 {
            self.base_timestamp = timestamp;
            self.max_timestamp = timestamp;
        }
        self.max_timestamp = self.max_timestamp.max(timestamp);
        let (time, place) = (timestamp - self.base_timestamp, i64::from(self.count));
        let length = length_of(time, place, key.map(<[u8]>::len), value, rest);
        self.memory.reserve(length + VARLONG_BYTES_MAX);
        put_varlong(&mut self.memory, i64::try_from(length).unwrap_or(i64::MAX));
        self.memory.put_u8(0);
        put_varlong(&mut self.memory, time);
        put_varlong(&mut self.memory, place);
        put_bytes(&mut self.memory, key);
        put_varlong(&mut self.memory, value.map_or(-1, |value| i64::try_from(value).unwrap_or(0)));
        self.count += 1;
    }

    /// The batch, with base offset 0 and no leader epoch: a broker stamps both.
    pub fn build(self, codec: Codec) -> Result<Bytes, CodecError> {
        let start = self.start;
        let mut whole = self.finish(codec)?.freeze();
        whole.advance(start);
        Ok(whole)
    }

    /// As `build`, with what was there before in front.
    pub fn finish(mut self, codec: Codec) -> Result<BytesMut, CodecError> {
        if codec != Codec::None {
            let records = self.start + HEADER_BYTES;
            let packed = compress(codec, &self.memory[records..])?;
            self.memory.truncate(records);
            self.memory.extend_from_slice(&packed);
        }
        let batch = &mut self.memory[self.start..];
        let length = i32::try_from(batch.len() - LENGTH_END)
            .map_err(|_| CodecError::TooLarge { limit: i32::MAX as usize })?;
        let producer = self.producer.unwrap_or(ProducerStamp { id: -1, epoch: -1, sequence: -1 });
        let mut out = &mut batch[..HEADER_BYTES];
        out.put_i64(0);
        out.put_i32(length);
        out.put_i32(-1);
        out.put_i8(2);
        out.put_u32(0);
        out.put_i16(codec as i16 | if self.is_transactional { TRANSACTIONAL_BIT } else { 0 });
        out.put_i32(self.count - 1);
        out.put_i64(self.base_timestamp);
        out.put_i64(self.max_timestamp);
        out.put_i64(producer.id);
        out.put_i16(producer.epoch);
        out.put_i32(producer.sequence);
        out.put_i32(self.count);
        set_crc(batch);
        Ok(self.memory)
    }
}

/// Bytes of a record without headers, in a batch that is not compressed: its time is told from the
/// batch's first one, its place from 0.
pub fn record_bytes(time: i64, place: i64, key: Option<usize>, value: Option<usize>) -> usize {
    let length = length_of(time, place, key, value, 1);
    varlong_length(i64::try_from(length).unwrap_or(0)) + length
}

/// What a record's length says; `rest` bytes follow its value.
fn length_of(
    time: i64,
    place: i64,
    key: Option<usize>,
    value: Option<usize>,
    rest: usize,
) -> usize {
    let head = 1 + varlong_length(time) + varlong_length(place);
    head + bytes_length(key) + bytes_length(value) + rest
}

/// The longest varlong.
const VARLONG_BYTES_MAX: usize = 10;

/// Bytes that `put_varlong` writes.
pub(super) fn varlong_length(value: i64) -> usize {
    let bits = ((value << 1) ^ (value >> 63)).cast_unsigned();
    (64 - (bits | 1).leading_zeros() as usize).div_ceil(7)
}

/// Bytes that `put_bytes` writes for so many, or for null.
fn bytes_length(length: Option<usize>) -> usize {
    length.map_or(1, |length| varlong_length(i64::try_from(length).unwrap_or(0)) + length)
}

fn put_bytes(out: &mut BytesMut, bytes: Option<&[u8]>) {
    match bytes {
        None => put_varlong(out, -1),
        Some(bytes) => {
            put_varlong(out, i64::try_from(bytes.len()).unwrap_or(i64::MAX));
            out.put_slice(bytes);
        }
    }
}

/// A zigzag varint; 32-bit values have the same form.
pub(super) fn put_varlong(out: &mut BytesMut, value: i64) {
    let mut bits = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while bits >= 0x80 {
        out.put_u8(u8::try_from(bits & 0x7f).unwrap_or(0) | 0x80);
        bits >>= 7;
    }
    out.put_u8(u8::try_from(bits).unwrap_or(0));
}

#[cfg(test)]
mod tests {
    use super::super::{BatchHeader, Invalid, Records, crc, decompress, stamp, validate};
    use super::*;

    /// Uncompressed batches with such keys were refused once, and compressed ones not read.
    #[test]
    fn a_headers_key_may_be_any_bytes() {
        let mut builder = BatchBuilder::new();
        let headers: &[(&str, Option<&[u8]>)] = &[("key", Some(b"1"))];
        builder.push(&NewRecord { headers, ..NewRecord::default() });
        let mut batch = builder.build(Codec::None).expect("small").to_vec();
        let at = batch.windows(3).position(|window| window == b"key").expect("it is there");
        batch[at..at + 3].copy_from_slice(b"k\xff\xfe");
        set_crc(&mut batch);
        assert_eq!(validate(&batch).map(|summary| summary.records), Ok(1));
        let header = BatchHeader::read(&batch).expect("whole");
        let record = Records::new(&header, &batch[HEADER_BYTES..]).next();
        let record = record.expect("one").expect("sound");
        assert!(record.headers().map(|header| header.key).eq([&b"k\xff\xfe"[..]]));
    }

    fn three_records(codec: Codec) -> Bytes {
        let mut builder = BatchBuilder::new();
        for number in 0..3_i64 {
            let value = vec![b'v'; 1000];
            builder.push(&NewRecord {
                timestamp: 1000 - number,
                key: (number > 0).then_some(b"key"),
                value: (number != 1).then_some(&value),
                headers: &[("h", Some(b"1")), ("empty", None)],
            });
        }
        builder.build(codec).expect("compressible")
    }

    #[test]
    fn a_built_batch_is_valid_and_reads_back_with_every_codec() {
        for codec in [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
            let batch = three_records(codec);
            let summary = validate(&batch).expect("valid");
            assert_eq!((summary.records, summary.codec), (3, codec));
            assert_eq!(summary.max_timestamp, 1000);
            let header = BatchHeader::read(&batch).expect("whole");
            let inside = decompress(codec, &batch[HEADER_BYTES..], 1 << 20).expect("readable");
            let records: Vec<_> = Records::new(&header, &inside).flatten().collect();
            assert_eq!(records.len(), 3);
            assert_eq!((records[0].key, records[1].value), (None, None));
            assert_eq!((records[2].timestamp, records[2].offset), (998, 2));
            let headers: Vec<_> = records[0].headers().collect();
            assert_eq!((headers[0].key, headers[0].value), (&b"h"[..], Some(&b"1"[..])));
            assert_eq!(headers[1].value, None);
            assert!(
                decompress(codec, &batch[HEADER_BYTES..], 100).is_err() || codec == Codec::None
            );
        }
    }

    #[test]
    fn batches_stand_one_behind_the_other_and_are_as_long_as_foretold() {
        let mut memory = BytesMut::from(&b"before"[..]);
        for count in 1..=200_i64 {
            let mut builder = BatchBuilder::behind(memory);
            let mut length = HEADER_BYTES;
            for place in 0..count {
                let (value, time) =
                    (vec![b'v'; 7 * usize::try_from(place).expect("few")], 90 * place);
                builder.push_pieces(5000 + time, Some(b"key"), [&value, b"and more"]);
                length += record_bytes(time, place, Some(3), Some(value.len() + 8));
            }
            let before = builder.start;
            memory = builder.finish(Codec::None).expect("short");
            assert_eq!(memory.len() - before, length);
        }
        let whole = super::super::batches(&memory[6..]);
        let counts: Vec<i64> = whole.map(|(_, b)| validate(b).expect("valid").records).collect();
        assert_eq!((&memory[..6], counts), (&b"before"[..], (1..=200).collect()));
    }

    #[test]
    fn a_stamp_changes_offsets_and_leaves_the_crc_right() {
        let mut batch = three_records(Codec::None).to_vec();
        stamp(&mut batch, 77, 5);
        let header = BatchHeader::read(&batch).expect("whole");
        assert_eq!((header.base_offset, header.leader_epoch), (77, 5));
        assert_eq!(header.next_offset(), 80);
        assert!(validate(&batch).is_ok());
    }

    #[test]
    fn every_flipped_bit_behind_the_stamps_is_noticed() {
        let batch = three_records(Codec::None);
        for position in 16..batch.len() {
            let mut damaged = batch.to_vec();
            damaged[position] ^= 1;
            assert!(validate(&damaged).is_err(), "byte {position}");
        }
    }

    #[test]
    fn a_lying_header_is_refused_even_with_a_right_crc() {
        let change = |at: usize, bytes: &[u8]| {
            let mut batch = three_records(Codec::None).to_vec();
            batch[at..at + bytes.len()].copy_from_slice(bytes);
            let crc = crc(&batch);
            batch[17..21].copy_from_slice(&crc.to_be_bytes());
            validate(&batch)
        };
        assert!(matches!(change(57, &4_i32.to_be_bytes()), Err(Invalid::Count { .. })));
        assert!(matches!(change(57, &(-1_i32).to_be_bytes()), Err(Invalid::Count { .. })));
        assert!(matches!(change(23, &9_i32.to_be_bytes()), Err(Invalid::Count { .. })));
        assert!(matches!(change(21, &0x20_i16.to_be_bytes()), Err(Invalid::Control)));
        assert!(matches!(change(21, &0x07_i16.to_be_bytes()), Err(Invalid::Attributes(7))));
        assert!(matches!(change(43, &9_i64.to_be_bytes()), Err(Invalid::Producer)));
        assert!(change(51, &[0; 6]).is_ok(), "epoch and sequence count only with a producer id");
        assert!(matches!(change(HEADER_BYTES, &[0x7f]), Err(Invalid::Record(_))));
        assert!(matches!(change(16, &[1]), Err(Invalid::OldMagic(1))));
        assert!(matches!(change(8, &i32::MAX.to_be_bytes()), Err(Invalid::Truncated)));
        assert!(matches!(change(8, &(-5_i32).to_be_bytes()), Err(Invalid::Truncated)));
    }
}
