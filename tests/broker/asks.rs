//! Requests over many partitions, and what their answers say.

use crate::frames::{Batch, Bytes, FETCH, PRODUCE, request};

/// Where one Produce wrote: partition, error code, base offset.
pub type Written = (i32, i16, i64);

/// Produce of version 7 with `acks=all`: for each partition one batch of a record of that size.
pub fn produce_many(topic: &str, parts: &[(i32, usize)]) -> Vec<u8> {
    let head = Bytes::default().i16(-1).i16(-1).i32(10_000).i32(1).string(topic);
    let mut body = head.i32(i32::try_from(parts.len()).expect("few"));
    for (partition, value_bytes) in parts {
        let batch = Batch { value_bytes: *value_bytes, ..Batch::default() }.encode();
        body = body.i32(*partition).bytes(&batch);
    }
    request(PRODUCE, 7, body)
}

/// The same with one batch.
pub fn produce_to(topic: &str, partition: i32, batch: &[u8]) -> Vec<u8> {
    let head = Bytes::default().i16(-1).i16(-1).i32(10_000).i32(1).string(topic);
    request(PRODUCE, 7, head.i32(1).i32(partition).bytes(batch))
}

/// The answer to `produce_many`.
pub fn written(answer: &[u8]) -> Vec<Written> {
    let mut walk = Walk(answer);
    assert_eq!(walk.i32(), 1, "topics");
    walk.string();
    let count = walk.i32();
    let mut found = Vec::new();
    for _ in 0..count {
        found.push((walk.i32(), walk.i16(), walk.i64()));
        walk.skip(16);
    }
    found
}

/// A Fetch of version 11 without a session.
pub struct Ask<'a> {
    pub topic: &'a str,
    /// Partition, offset, most bytes of it.
    pub parts: &'a [(i32, i64, i32)],
    pub wait_ms: i32,
    pub bytes_min: i32,
    pub bytes_max: i32,
}

impl Ask<'_> {
    pub fn encode(&self) -> Vec<u8> {
        let head = Bytes::default().i32(-1).i32(self.wait_ms).i32(self.bytes_min);
        let head = head.i32(self.bytes_max).i8(0).i32(0).i32(-1).i32(1).string(self.topic);
        let mut body = head.i32(i32::try_from(self.parts.len()).expect("few"));
        for (partition, offset, bytes_max) in self.parts {
            body = body.i32(*partition).i32(-1).i64(*offset).i64(-1).i32(*bytes_max);
        }
        request(FETCH, 11, body.i32(0).string(""))
    }
}

/// A long poll on partition 0 from `offset` on.
pub fn poll(topic: &str, offset: i64, wait_ms: i32, bytes_min: i32) -> Vec<u8> {
    let parts = [(0, offset, 50 << 20)];
    Ask { topic, parts: &parts, wait_ms, bytes_min, bytes_max: 50 << 20 }.encode()
}

/// What a Fetch gave of one partition.
#[derive(Debug, PartialEq)]
pub struct Part {
    pub partition: i32,
    pub error: i16,
    pub high_watermark: i64,
    pub bytes: usize,
    /// Base offset of each batch.
    pub bases: Vec<i64>,
}

/// The answer to an `Ask`.
pub fn fetched(answer: &[u8]) -> Vec<Part> {
    let mut walk = Walk(answer);
    walk.i32();
    assert_eq!(walk.i16(), 0, "the error of the whole");
    walk.i32();
    let mut found = Vec::new();
    for _ in 0..walk.i32() {
        walk.string();
        for _ in 0..walk.i32() {
            let (partition, error, high_watermark) = (walk.i32(), walk.i16(), walk.i64());
            walk.skip(16);
            assert!(walk.i32() <= 0, "no aborted transactions");
            walk.i32();
            let records = walk.bytes();
            let bases = bases(records);
            found.push(Part { partition, error, high_watermark, bytes: records.len(), bases });
        }
    }
    found
}

fn bases(mut records: &[u8]) -> Vec<i64> {
    let mut found = Vec::new();
    while !records.is_empty() {
        let mut walk = Walk(records);
        found.push(walk.i64());
        let length = walk.i32() as usize;
        records = &records[12 + length..];
    }
    found
}

/// Walks over an answer in the plain encoding.
pub struct Walk<'a>(pub &'a [u8]);

impl<'a> Walk<'a> {
    pub fn skip(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    pub fn i16(&mut self) -> i16 {
        i16::from_be_bytes(self.skip(2).try_into().expect("two bytes"))
    }

    pub fn i32(&mut self) -> i32 {
        i32::from_be_bytes(self.skip(4).try_into().expect("four bytes"))
    }

    pub fn i64(&mut self) -> i64 {
        i64::from_be_bytes(self.skip(8).try_into().expect("eight bytes"))
    }

    /// A string; empty for none.
    pub fn string(&mut self) -> String {
        let length = self.i16().max(0) as usize;
        String::from_utf8(self.skip(length).to_vec()).expect("UTF-8")
    }

    /// Bytes; empty for none.
    pub fn bytes(&mut self) -> &'a [u8] {
        let length = self.i32().max(0) as usize;
        self.skip(length)
    }
}

/// The record batches in what a read has brought: base offset, one past the last offset, bytes.
pub fn batches_of(mut left: &[u8]) -> Vec<(i64, i64, Vec<u8>)> {
    let mut found = Vec::new();
    while !left.is_empty() {
        let base = i64::from_be_bytes(left[..8].try_into().expect("eight bytes"));
        let length = i32::from_be_bytes(left[8..12].try_into().expect("four bytes"));
        let delta = i32::from_be_bytes(left[23..27].try_into().expect("four bytes"));
        let (batch, rest) = left.split_at(12 + usize::try_from(length).expect("positive"));
        left = rest;
        found.push((base, base + i64::from(delta) + 1, batch.to_vec()));
    }
    found
}
