//! A batch written anew with some of its records, as compaction does: offsets, sequences and codec
//! stay, so that gaps appear where records were.
//!
//! Source: Kafka's `MemoryRecords.filterTo`; KIP-534 for the delete horizon, which takes the place
//! of the base timestamp.
//!
//! Invariants
//!   W1  Base offset, last offset delta, leader epoch, producer and sequence are the original's.
//!   W2  A record that is kept has its offset, timestamp, key, value and headers.

use bytes::{BufMut, BytesMut};

use super::build::{put_varlong, varlong_length};
use super::codec::{Codec, CodecError, compress};
use super::record::{Record, Records};
use super::{BatchHeader, CODEC_MASK, DELETE_HORIZON_BIT, HEADER_BYTES, LENGTH_END, crc, set_crc};

/// The batch with those of its records that `keep` says. `inside` are all of them, decompressed,
/// and well-formed. With `horizon` the batch says from when on its tombstones may go.
pub fn retain(
    batch: &[u8],
    inside: &[u8],
    horizon: Option<i64>,
    mut keep: impl FnMut(&Record<'_>) -> bool,
) -> Result<Vec<u8>, CodecError> {
    let short = || CodecError::Malformed("a batch is shorter than its header".into());
    let header = BatchHeader::read(batch).ok_or_else(short)?;
    let base_timestamp = horizon.unwrap_or(header.base_timestamp);
    let mut records = BytesMut::new();
    let mut count = 0;
    let mut max_timestamp = -1;
    for record in Records::new(&header, inside).flatten().filter(|record| keep(record)) {
        put(&mut records, &record, header.base_timestamp.wrapping_sub(base_timestamp));
        count += 1;
        max_timestamp = max_timestamp.max(record.timestamp);
    }
    let mut out = batch.get(..HEADER_BYTES).ok_or_else(short)?.to_vec();
    if count == 0 {
        // As Kafka keeps the state of a producer whose records are all gone.
        let bits = header.attributes & !(CODEC_MASK | DELETE_HORIZON_BIT);
        finish(&mut out, bits, (-1, header.max_timestamp), count);
        return Ok(out);
    }
    let codec = header.codec().unwrap_or(Codec::None);
    out.extend_from_slice(&compress(codec, &records)?);
    let bit = if horizon.is_some() { DELETE_HORIZON_BIT } else { 0 };
    // The time of appending is the whole batch's.
    let max = if header.is_log_append_time() { header.max_timestamp } else { max_timestamp };
    finish(&mut out, header.attributes | bit, (base_timestamp, max), count);
    Ok(out)
}

/// A batch without records that stands for the offsets from `base` to before `next`, at most
/// `i32::MAX` of them: readers go on behind it, as behind one that compaction has emptied.
pub fn empty(base: i64, next: i64, leader_epoch: i32, timestamp: i64) -> Vec<u8> {
    let last_delta = i32::try_from(next - base - 1).unwrap_or(i32::MAX);
    let mut batch = vec![0; HEADER_BYTES];
    batch[16] = 2;
    batch[23..27].copy_from_slice(&last_delta.to_be_bytes());
    batch[43..57].fill(0xff); // no producer
    super::stamp(&mut batch, base, leader_epoch);
    finish(&mut batch, 0, (timestamp, timestamp), 0);
    batch
}

/// Appends a record whose timestamp delta grows by `shift`.
fn put(out: &mut BytesMut, record: &Record<'_>, shift: i64) {
    let delta = record.timestamp_delta.wrapping_add(shift);
    let length = 1 + varlong_length(delta) + record.rest.len();
    put_varlong(out, i64::try_from(length).unwrap_or(i64::MAX));
    out.put_i8(record.attributes);
    put_varlong(out, delta);
    out.put_slice(record.rest);
}

fn finish(batch: &mut [u8], attributes: i16, (base, max): (i64, i64), count: i32) {
    let length = i32::try_from(batch.len() - LENGTH_END).unwrap_or(i32::MAX);
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    batch[21..23].copy_from_slice(&attributes.to_be_bytes());
    batch[27..35].copy_from_slice(&base.to_be_bytes());
    batch[35..43].copy_from_slice(&max.to_be_bytes());
    batch[57..61].copy_from_slice(&count.to_be_bytes());
    set_crc(batch);
    debug_assert_eq!(BatchHeader::read(batch).map(|header| header.crc), Some(crc(batch)));
}

#[cfg(test)]
mod tests {
    use super::super::{BatchBuilder, NewRecord, ProducerStamp, decompress, stamp};
    use super::*;

    const CODECS: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];

    /// Ten records at the offsets from 100 on, every third without a value.
    fn batch(codec: Codec) -> Vec<u8> {
        let stamp_of = ProducerStamp { id: 7, epoch: 2, sequence: 40 };
        let mut builder = BatchBuilder::new().producer(stamp_of);
        for number in 0..10_i64 {
            let key = format!("key-{number}");
            builder.push(&NewRecord {
                timestamp: 5_000 - number * 70,
                key: Some(key.as_bytes()),
                value: (number % 3 != 0).then_some(b"value"),
                headers: &[("h", Some(b"1")), ("empty", None)],
            });
        }
        let mut batch = builder.build(codec).expect("compressible").to_vec();
        stamp(&mut batch, 100, 4);
        batch
    }

    fn filtered(codec: Codec, horizon: Option<i64>, keep: fn(i64) -> bool) -> Vec<u8> {
        let batch = batch(codec);
        let inside = decompress(codec, &batch[HEADER_BYTES..], 1 << 20).expect("readable");
        retain(&batch, &inside, horizon, |record| keep(record.offset)).expect("compressible")
    }

    #[test]
    fn what_is_kept_is_what_it_was_with_every_codec() {
        for codec in CODECS {
            for horizon in [None, Some(9_000_000), Some(-3)] {
                let kept = filtered(codec, horizon, |offset| offset % 4 == 1);
                let before = BatchHeader::read(&batch(codec)).expect("whole");
                let header = BatchHeader::read(&kept).expect("whole");
                assert_eq!(header.crc, crc(&kept));
                assert_eq!(header.total_bytes(), Some(kept.len()));
                assert_eq!(header.delete_horizon(), horizon);
                assert_eq!((header.count, header.max_timestamp), (3, 4_930));
                let told = |header: &BatchHeader| {
                    let BatchHeader { base_offset, leader_epoch, producer_id, .. } = *header;
                    let last = (header.last_offset_delta, header.last_sequence());
                    (base_offset, leader_epoch, producer_id, last, header.codec())
                };
                assert_eq!(told(&header), told(&before), "W1");
                let inside = decompress(codec, &kept[HEADER_BYTES..], 1 << 20).expect("readable");
                let records: Vec<_> = Records::new(&header, &inside).flatten().collect();
                let places: Vec<_> = records.iter().map(|r| (r.offset, r.timestamp)).collect();
                assert_eq!(places, [(101, 4_930), (105, 4_650), (109, 4_370)], "W2");
                assert_eq!(records[0].key, Some(&b"key-1"[..]));
                assert_eq!((records[1].value, records[2].value), (Some(&b"value"[..]), None));
                assert_eq!(records[1].headers().count(), 2);
            }
        }
    }

    #[test]
    fn a_batch_without_records_keeps_its_place_and_its_producer() {
        for codec in CODECS {
            let empty = filtered(codec, Some(77), |_| false);
            let header = BatchHeader::read(&empty).expect("whole");
            assert_eq!((empty.len(), header.crc), (HEADER_BYTES, crc(&empty)));
            assert_eq!((header.count, header.next_offset()), (0, 110));
            assert_eq!((header.producer_id, header.last_sequence()), (7, 49));
            assert_eq!((header.codec(), header.delete_horizon()), (Some(Codec::None), None));
        }
    }
}
