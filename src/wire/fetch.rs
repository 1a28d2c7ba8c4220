//! A Fetch response written as pieces: headers of our own and record bytes by reference.
//!
//!     | length | header | ... partition header | records | partition tail | ... |
//!       '---- owned piece ------------------'   counted   '--- owned piece ---

use bytes::{BufMut, Bytes, BytesMut};

use super::api::ApiKey;
use super::error::ErrorCode;
use super::header::put_response_header;
use super::primitive::{Context, Uuid, Wire, put_bytes_length, put_count, put_unsigned_varint};

/// One partition of the answer.
#[derive(Clone, Copy, Debug)]
pub struct FetchedHead {
    pub index: i32,
    pub error: ErrorCode,
    pub high_watermark: i64,
    pub last_stable: i64,
    pub log_start: i64,
}

/// Builds a Fetch response without copying records.
pub struct FetchWriter {
    context: Context,
    /// The first one becomes the frame's length.
    pieces: Vec<Bytes>,
    open: BytesMut,
}

impl FetchWriter {
    /// Begins a response; the frame's length is filled in by `finish`.
    pub fn new(version: i16, correlation: i32, error: ErrorCode, session: i32) -> FetchWriter {
        let mut open = BytesMut::with_capacity(256);
        put_response_header(&mut open, ApiKey::Fetch, version, correlation);
        open.put_i32(0); // throttle time
        if version >= 7 {
            open.put_i16(error.0);
            open.put_i32(session);
        }
        FetchWriter { context: ApiKey::Fetch.context(version), pieces: vec![Bytes::new()], open }
    }

    /// Begins the list of `count` topics.
    pub fn topics(&mut self, count: usize) {
        put_count(&mut self.open, Some(count), self.context);
    }

    /// Begins a topic of `count` partitions.
    pub fn topic(&mut self, name: &str, id: Uuid, count: usize) {
        if self.context.version >= 13 {
            id.encode(&mut self.open, self.context);
        } else {
            name.encode(&mut self.open, self.context);
        }
        put_count(&mut self.open, Some(count), self.context);
    }

    /// One partition of the topic begun last.
    pub fn partition(&mut self, head: FetchedHead, records: Vec<Bytes>) {
        let out = &mut self.open;
        out.put_i32(head.index);
        out.put_i16(head.error.0);
        out.put_i64(head.high_watermark);
        out.put_i64(head.last_stable);
        if self.context.version >= 5 {
            out.put_i64(head.log_start);
        }
        put_count(out, None, self.context); // aborted transactions
        if self.context.version >= 11 {
            out.put_i32(-1); // preferred read replica
        }
        let length = records.iter().map(Bytes::len).sum();
        put_bytes_length(out, Some(length), self.context);
        if length > 0 {
            self.pieces.push(self.open.split().freeze());
            self.pieces.extend(records);
        }
        self.end_structure();
    }

    /// Ends the topic begun last.
    pub fn end_topic(&mut self) {
        self.end_structure();
    }

    /// The whole frame, its length in front.
    pub fn finish(mut self) -> Vec<Bytes> {
        self.end_structure();
        self.pieces.push(self.open.split().freeze());
        let length: usize = self.pieces.iter().map(Bytes::len).sum();
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        if let Some(first) = self.pieces.first_mut() {
            *first = Bytes::copy_from_slice(&length.to_be_bytes());
        }
        self.pieces
    }

    fn end_structure(&mut self) {
        if self.context.flexible {
            put_unsigned_varint(&mut self.open, 0);
        }
    }
}
