//! Building a batch: for the command line's producer and for the broker's own topics.

use bytes::{BufMut, Bytes, BytesMut};

use super::codec::{Codec, CodecError, compress};
use super::{HEADER_BYTES, LENGTH_END, crc};

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

/// Collects records and writes them as one batch of magic 2.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    records: BytesMut,
    count: i32,
    base_timestamp: i64,
    max_timestamp: i64,
    producer: Option<ProducerStamp>,
}

impl BatchBuilder {
    pub fn new() -> BatchBuilder {
        BatchBuilder::default()
    }

    pub fn producer(mut self, stamp: ProducerStamp) -> BatchBuilder {
        self.producer = Some(stamp);
        self
    }

    pub fn count(&self) -> i32 {
        self.count
    }

    /// Bytes of the records so far, uncompressed.
    pub fn bytes(&self) -> usize {
        self.records.len()
    }

    pub fn push(&mut self, record: &NewRecord<'_>) {
        if self.count == 0 {
            self.base_timestamp = record.timestamp;
            self.max_timestamp = record.timestamp;
        }
        self.max_timestamp = self.max_timestamp.max(record.timestamp);
        let mut body = BytesMut::new();
        body.put_u8(0);
        put_varlong(&mut body, record.timestamp - self.base_timestamp);
        put_varlong(&mut body, i64::from(self.count));
        put_bytes(&mut body, record.key);
        put_bytes(&mut body, record.value);
        put_varlong(&mut body, i64::try_from(record.headers.len()).unwrap_or(0));
        for (key, value) in record.headers {
            put_bytes(&mut body, Some(key.as_bytes()));
            put_bytes(&mut body, *value);
        }
        put_varlong(&mut self.records, i64::try_from(body.len()).unwrap_or(i64::MAX));
        self.records.put_slice(&body);
        self.count += 1;
    }

    /// The batch, with base offset 0 and no leader epoch: a broker stamps both.
    pub fn build(self, codec: Codec) -> Result<Bytes, CodecError> {
        let records = compress(codec, &self.records)?;
        let total = HEADER_BYTES + records.len();
        let length = i32::try_from(total - LENGTH_END)
            .map_err(|_| CodecError::TooLarge { limit: i32::MAX as usize })?;
        let producer = self.producer.unwrap_or(ProducerStamp { id: -1, epoch: -1, sequence: -1 });
        let mut out = BytesMut::with_capacity(total);
        out.put_i64(0);
        out.put_i32(length);
        out.put_i32(-1);
        out.put_i8(2);
        out.put_u32(0);
        out.put_i16(codec as i16);
        out.put_i32(self.count - 1);
        out.put_i64(self.base_timestamp);
        out.put_i64(self.max_timestamp);
        out.put_i64(producer.id);
        out.put_i16(producer.epoch);
        out.put_i32(producer.sequence);
        out.put_i32(self.count);
        out.put_slice(&records);
        let crc = crc(&out);
        out[LENGTH_END + 5..LENGTH_END + 9].copy_from_slice(&crc.to_be_bytes());
        Ok(out.freeze())
    }
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
fn put_varlong(out: &mut BytesMut, value: i64) {
    let mut bits = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while bits >= 0x80 {
        out.put_u8(u8::try_from(bits & 0x7f).unwrap_or(0) | 0x80);
        bits >>= 7;
    }
    out.put_u8(u8::try_from(bits).unwrap_or(0));
}

#[cfg(test)]
mod tests {
    use super::super::{BatchHeader, Invalid, Records, decompress, stamp, validate};
    use super::*;

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
            assert_eq!((headers[0].key, headers[0].value), ("h", Some(&b"1"[..])));
            assert_eq!(headers[1].value, None);
            assert!(
                decompress(codec, &batch[HEADER_BYTES..], 100).is_err() || codec == Codec::None
            );
        }
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
