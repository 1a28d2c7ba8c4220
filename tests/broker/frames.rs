//! Requests built byte by byte, so that they can lie; answers taken as raw frames.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

pub const PRODUCE: i16 = 0;
pub const FETCH: i16 = 1;
pub const METADATA: i16 = 3;
pub const API_VERSIONS: i16 = 18;

/// The correlation id of every request.
const CORRELATION: i32 = 77;

/// Bytes in the protocol's plain (not flexible) encoding.
#[derive(Clone, Default)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    pub fn i8(mut self, value: i8) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub fn i16(mut self, value: i16) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub fn i32(mut self, value: i32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub fn i64(mut self, value: i64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub fn string(self, value: &str) -> Self {
        let mut out = self.i16(i16::try_from(value.len()).expect("a short string"));
        out.0.extend(value.as_bytes());
        out
    }

    pub fn bytes(self, value: &[u8]) -> Self {
        let mut out = self.i32(i32::try_from(value.len()).expect("few bytes"));
        out.0.extend(value);
        out
    }
}

/// A request without its length.
pub fn request(api: i16, version: i16, body: Bytes) -> Vec<u8> {
    let mut out = Bytes::default().i16(api).i16(version).i32(CORRELATION).string("hostile").0;
    out.extend(body.0);
    out
}

pub fn api_versions() -> Vec<u8> {
    request(API_VERSIONS, 0, Bytes::default())
}

pub fn metadata(topic: &str) -> Vec<u8> {
    request(METADATA, 4, Bytes::default().i32(1).string(topic).i8(1))
}

pub fn produce(topic: &str, records: &[u8]) -> Vec<u8> {
    let head = Bytes::default().i16(-1).i16(-1).i32(10_000);
    request(PRODUCE, 7, head.i32(1).string(topic).i32(1).i32(0).bytes(records))
}

/// Asks for partition 0 from its beginning, up to `bytes_max`, without waiting.
pub fn fetch(topic: &str, bytes_max: i32) -> Vec<u8> {
    let head = Bytes::default().i32(-1).i32(0).i32(1).i32(bytes_max).i8(0).i32(0).i32(-1);
    let partition = head.i32(1).string(topic).i32(1).i32(0).i32(-1).i64(0).i64(-1).i32(bytes_max);
    request(FETCH, 11, partition.i32(0).string(""))
}

/// The fields of a record batch that a test may falsify.
pub struct Batch {
    pub magic: i8,
    pub last_offset_delta: i32,
    pub count: i32,
    /// Added to the true length, and to the true checksum.
    pub length_error: i32,
    pub crc_error: u32,
    /// The length that the first record claims, beside its true one.
    pub record_length_error: u8,
    pub value_bytes: usize,
    pub attributes: i16,
    /// Of the record, and what the header says of it.
    pub timestamp: i64,
    pub max_timestamp: i64,
    /// The producer's id, -1 for none, and the sequence of the record.
    pub producer: (i64, i32),
}

/// What a record says that lies in the past.
const SOME_TIME: i64 = 1_700_000_000_000;

impl Default for Batch {
    fn default() -> Self {
        Batch {
            magic: 2,
            last_offset_delta: 0,
            count: 1,
            length_error: 0,
            crc_error: 0,
            record_length_error: 0,
            value_bytes: 5,
            attributes: 0,
            timestamp: SOME_TIME,
            max_timestamp: SOME_TIME,
            producer: (-1, -1),
        }
    }
}

impl Batch {
    /// One uncompressed record without a key.
    pub fn encode(&self) -> Vec<u8> {
        let value = vec![b'v'; self.value_bytes];
        // Attributes, timestamp delta, offset delta, a null key, the value, no headers.
        let mut record = vec![0, 0, 0, 1];
        record.extend(zigzag(value.len()));
        record.extend(value);
        record.push(0);
        let mut records = zigzag(record.len());
        records[0] = records[0].wrapping_add(self.record_length_error * 2);
        records.extend(record);

        let summed = Bytes::default().i16(self.attributes).i32(self.last_offset_delta);
        let summed = summed.i64(self.timestamp).i64(self.max_timestamp);
        let (id, sequence) = self.producer;
        let epoch = if id < 0 { -1 } else { 0 };
        let mut summed = summed.i64(id).i16(epoch).i32(sequence).i32(self.count).0;
        summed.extend(records);
        let length = i32::try_from(summed.len() + 9).expect("a small batch") + self.length_error;
        let mut out = Bytes::default().i64(0).i32(length).i32(-1).i8(self.magic).0;
        out.extend((crc32c(&summed).wrapping_add(self.crc_error)).to_be_bytes());
        out.extend(summed);
        out
    }
}

fn zigzag(value: usize) -> Vec<u8> {
    let mut left = value * 2;
    let mut out = Vec::new();
    while left >= 128 {
        out.push((left % 128) as u8 | 128);
        left /= 128;
    }
    out.push(left as u8);
    out
}

/// CRC-32C bit by bit: slow, and independent of the broker's.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

/// What came back from the broker.
#[derive(Debug, PartialEq)]
pub enum Came {
    Answer(Vec<u8>),
    Closed,
    Nothing,
}

/// One connection.
pub struct Peer(pub TcpStream);

impl Peer {
    pub fn connect(address: SocketAddr) -> Peer {
        let stream = TcpStream::connect(address).expect("the broker accepts");
        Peer(stream)
    }

    /// Sends a request with its true length. A broker that has hung up is not an error here.
    pub fn send(&mut self, request: &[u8]) {
        let length = u32::try_from(request.len()).expect("a small request");
        let _ = self.0.write_all(&[&length.to_be_bytes()[..], request].concat());
    }

    pub fn send_raw(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    pub fn end(&mut self) {
        let _ = self.0.shutdown(Shutdown::Write);
    }

    /// The next answer, the end of the connection, or nothing within `most`.
    pub fn receive(&mut self, most: Duration) -> Came {
        self.0.set_read_timeout(Some(most)).expect("a timeout above zero");
        let mut length = [0; 4];
        if let Err(error) = self.0.read_exact(&mut length) {
            let late = matches!(
                error.kind(),
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
            );
            return if late { Came::Nothing } else { Came::Closed };
        }
        let mut answer = vec![0; u32::from_be_bytes(length) as usize];
        match self.0.read_exact(&mut answer) {
            Ok(()) => Came::Answer(answer),
            Err(_) => Came::Closed,
        }
    }

    /// Sends and takes the answer, without its correlation id, which must be ours.
    pub fn ask(&mut self, request: &[u8]) -> Vec<u8> {
        self.send(request);
        match self.receive(Duration::from_secs(20)) {
            Came::Answer(answer) => {
                assert_eq!(answer[..4], CORRELATION.to_be_bytes(), "the correlation id");
                answer[4..].to_vec()
            }
            other => panic!("no answer, but {other:?}"),
        }
    }
}

/// The error code and base offset in the answer to `produce`.
pub fn produced(answer: &[u8], topic: &str) -> (i16, i64) {
    // One topic: its name; one partition: its index; then the code and the offset.
    let at = 4 + 2 + topic.len() + 4 + 4;
    let code = i16::from_be_bytes(answer[at..at + 2].try_into().expect("two bytes"));
    let offset = i64::from_be_bytes(answer[at + 2..at + 10].try_into().expect("eight bytes"));
    (code, offset)
}
