//! Record batches as a producer sends them, and records as a reader unpacks them.

use corelog::wire::records::{
    BatchHeader, Codec, HEADER_BYTES, Record, Records, batches as whole_batches, crc, decompress,
    stamp, validate,
};

/// What a reader unpacks at most.
const UNPACKED_BYTES_MAX: usize = 1 << 20;

/// A flag, then batches back to back; with an odd flag their CRCs are made right, for no mutation
/// gets beyond a CRC by chance.
pub fn batches(data: &[u8]) {
    let Some((flag, batches)) = data.split_first() else { return };
    let mut bytes = batches.to_vec();
    if flag & 1 == 1 {
        correct_crcs(&mut bytes);
    }
    let Ok(summary) = validate(&bytes) else { return };
    stamp(&mut bytes, 1 << 40, 7);
    assert_eq!(validate(&bytes), Ok(summary), "a stamp changes nothing that is checked");
    let (mut records, mut count) = (0, 0);
    for (header, batch) in whole_batches(&bytes) {
        count += 1;
        records += i64::from(header.count);
        assert_eq!(header.last_offset_delta, header.count - 1, "R2");
        let codec = header.codec().expect("validated");
        if codec == Codec::None {
            // R1: what is accepted uncompressed is readable to the last record.
            let read = read_all(&header, &batch[HEADER_BYTES..]);
            assert_eq!(read, Ok(header.count));
        }
    }
    assert_eq!((summary.batches, summary.records), (count, records));
}

fn correct_crcs(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(total) = BatchHeader::read(&bytes[at..]).and_then(|header| header.total_bytes())
    {
        let Some(batch) = bytes.get_mut(at..at + total) else { return };
        let right = crc(batch);
        batch[17..21].copy_from_slice(&right.to_be_bytes());
        at += total;
    }
}

/// A codec, a count of records, then their compressed bytes.
pub fn records(data: &[u8]) {
    let Some(([codec, count], bytes)) = data.split_first_chunk() else { return };
    let Some(codec) = Codec::from_bits(i16::from(codec % 5)) else { return };
    let Ok(inside) = decompress(codec, bytes, UNPACKED_BYTES_MAX) else { return };
    assert!(inside.len() <= UNPACKED_BYTES_MAX || codec == Codec::None);
    let mut header = BatchHeader::read(&[0; HEADER_BYTES]).expect("a whole header");
    header.base_offset = i64::MAX - 7;
    header.base_timestamp = i64::MIN + 7;
    header.count = i32::from(*count);
    let _ = read_all(&header, &inside);
}

/// Reads every record and its headers; the count of those that are whole before the first that is
/// not.
fn read_all(header: &BatchHeader, bytes: &[u8]) -> Result<i32, i32> {
    let mut count = 0;
    for record in Records::new(header, bytes) {
        let Ok(record) = record else { return Err(count) };
        let Record { key, value, .. } = record;
        let held = key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len);
        let headers = record.headers().map(|h| h.key.len() + h.value.map_or(0, <[u8]>::len));
        assert!(held + headers.sum::<usize>() <= bytes.len());
        count += 1;
    }
    Ok(count)
}
