//! Single records inside a batch, read in place.
//!
//!     | length varint | attributes i8 | timestamp delta varlong | offset delta varint |
//!     | key length varint, key | value length varint, value | header count varint, headers ... |

use super::BatchHeader;

/// One record; borrowed from its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub offset: i64,
    pub offset_delta: i64,
    pub timestamp: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub(super) attributes: i8,
    pub(super) timestamp_delta: i64,
    /// Everything from the offset delta on, as it stands.
    pub(super) rest: &'a [u8],
    headers: &'a [u8],
    header_count: usize,
}

/// A record's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// Text by the protocol, but nobody keeps a producer from sending other bytes: Kafka takes
    /// them, and a log may hold them.
    pub key: &'a [u8],
    pub value: Option<&'a [u8]>,
}

/// What is wrong with a record, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordError(pub &'static str);

/// The records of one (uncompressed or decompressed) batch; ends after the first error.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    header: BatchHeader,
    left: &'a [u8],
    to_come: i32,
}

impl<'a> Records<'a> {
    /// `bytes` are the batch's records after its header, decompressed.
    pub fn new(header: &BatchHeader, bytes: &'a [u8]) -> Records<'a> {
        Records { header: *header, left: bytes, to_come: header.count.max(0) }
    }

    /// Bytes that were not read.
    pub fn remaining(&self) -> usize {
        self.left.len()
    }

    fn read(&mut self) -> Result<Record<'a>, RecordError> {
        let mut cursor = self.left;
        let length = get_length(&mut cursor)?;
        let (mut body, left) =
            cursor.split_at_checked(length).ok_or(RecordError("a record goes beyond its batch"))?;
        self.left = left;
        self.read_body(&mut body)
    }

    fn read_body(&self, body: &mut &'a [u8]) -> Result<Record<'a>, RecordError> {
        let [attributes] = get_array(body)?;
        let timestamp_delta = get_varlong(body)?;
        let rest = *body;
        let offset_delta = i64::from(get_varint(body)?);
        let key = get_bytes(body)?;
        let value = get_bytes(body)?;
        let header_count = get_varint(body)?;
        let header_count = usize::try_from(header_count)
            .map_err(|_| RecordError("its header count is negative"))?;
        let headers = *body;
        for _ in 0..header_count {
            get_header(body)?;
        }
        if !body.is_empty() {
            return Err(RecordError("bytes follow its last header"));
        }
        let timestamp = if self.header.is_log_append_time() {
            self.header.max_timestamp
        } else {
            self.header.base_timestamp.wrapping_add(timestamp_delta)
        };
        let offset = self.header.base_offset.wrapping_add(offset_delta);
        let attributes = i8::from_be_bytes([attributes]);
        Ok(Record {
            offset,
            offset_delta,
            timestamp,
            key,
            value,
            attributes,
            timestamp_delta,
            rest,
            headers,
            header_count,
        })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.to_come == 0 {
            return None;
        }
        self.to_come -= 1;
        let record = self.read();
        if record.is_err() {
            self.to_come = 0;
        }
        Some(record)
    }
}

impl<'a> Record<'a> {
    /// The record's headers, in order.
    pub fn headers(&self) -> impl Iterator<Item = Header<'a>> + use<'a> {
        let mut left = self.headers;
        (0..self.header_count).map_while(move |_| get_header(&mut left).ok())
    }
}

fn get_header<'a>(bytes: &mut &'a [u8]) -> Result<Header<'a>, RecordError> {
    let key = get_bytes(bytes)?.ok_or(RecordError("a header's key is null"))?;
    Ok(Header { key, value: get_bytes(bytes)? })
}

fn get_bytes<'a>(bytes: &mut &'a [u8]) -> Result<Option<&'a [u8]>, RecordError> {
    let length = get_varint(bytes)?;
    if length == -1 {
        return Ok(None);
    }
    let length = usize::try_from(length).map_err(|_| RecordError("a length is negative"))?;
    let (taken, left) =
        bytes.split_at_checked(length).ok_or(RecordError("a field goes beyond its record"))?;
    *bytes = left;
    Ok(Some(taken))
}

fn get_length(bytes: &mut &[u8]) -> Result<usize, RecordError> {
    usize::try_from(get_varint(bytes)?).map_err(|_| RecordError("its length is negative"))
}

fn get_array<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], RecordError> {
    let (taken, left) = bytes.split_first_chunk().ok_or(RecordError("it ends inside a field"))?;
    *bytes = left;
    Ok(*taken)
}

/// A zigzag varint of 32 bits.
pub fn get_varint(bytes: &mut &[u8]) -> Result<i32, RecordError> {
    let value = get_unsigned(bytes, 5)?;
    let value = u32::try_from(value).map_err(|_| RecordError("a varint is too long"))?;
    Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
}

/// A zigzag varint of 64 bits.
pub fn get_varlong(bytes: &mut &[u8]) -> Result<i64, RecordError> {
    let value = get_unsigned(bytes, 10)?;
    Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
}

fn get_unsigned(bytes: &mut &[u8], bytes_max: u32) -> Result<u64, RecordError> {
    let mut value = 0_u64;
    for index in 0..bytes_max {
        let [byte] = get_array(bytes)?;
        let bits = u64::from(byte & 0x7f);
        if index == 9 && bits > 1 {
            break;
        }
        value |= bits << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(RecordError("a varint is too long"))
}
