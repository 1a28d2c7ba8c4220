//! Answers on their way to a socket: what is written anew stands in one buffer, and counted bytes
//! are put between by reference.
//!
//!     heads    | head of an answer .... | more of it | another answer |   one buffer, used again
//!     inserts                           ^ records    ^ records
//!
//! Lives on: every connection.
//!
//! Invariants
//!   Q1  Bytes leave in the order in which they were put.
//!   Q2  Memory that a large answer needed is not kept.

use bytes::{BufMut, Bytes, BytesMut};

/// What the buffer begins with.
const FIRST_BYTES: usize = 256;
/// The most that is kept of the buffer, and of places for counted bytes.
const KEEP_BYTES_MAX: usize = 16 << 10;
const KEEP_INSERTS_MAX: usize = 256;

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Pieces {
    heads: BytesMut,
    /// Counted bytes, each with the place in `heads` that it stands before.
    inserts: Vec<(usize, Bytes)>,
    insert_bytes: usize,
}

/// Where a frame begins: its length is filled in at its end.
#[derive(Clone, Copy, Debug)]
pub struct FrameStart {
    at: usize,
    /// Of all pieces before it.
    bytes: usize,
}

impl Pieces {
    pub fn new() -> Pieces {
        Pieces::default()
    }

    /// Bytes of all pieces.
    pub fn len(&self) -> usize {
        self.heads.len() + self.insert_bytes
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is written goes behind everything before it.
    pub fn head(&mut self) -> &mut BytesMut {
        &mut self.heads
    }

    /// Puts counted bytes behind everything before them.
    pub fn put(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        self.insert_bytes += bytes.len();
        self.inserts.push((self.heads.len(), bytes));
    }

    pub fn begin_frame(&mut self) -> FrameStart {
        let start = FrameStart { at: self.heads.len(), bytes: self.len() };
        self.heads.reserve(FIRST_BYTES);
        self.heads.put_i32(0);
        start
    }

    /// The frame is everything that was put since its start.
    pub fn end_frame(&mut self, start: FrameStart) {
        let length = self.len() - start.bytes - size_of::<i32>();
        let length = i32::try_from(length).unwrap_or(i32::MAX);
        if let Some(place) = self.heads.get_mut(start.at..start.at + size_of::<i32>()) {
            place.copy_from_slice(&length.to_be_bytes());
        }
    }

    /// Moves everything behind `out`.
    pub fn take(&mut self, out: &mut impl Extend<Bytes>) {
        let is_large = self.heads.len() > KEEP_BYTES_MAX;
        let mut taken = 0;
        for (at, bytes) in self.inserts.drain(..) {
            let head = (at > taken).then(|| self.heads.split_to(at - taken).freeze());
            taken = at;
            out.extend(head);
            out.extend(Some(bytes));
        }
        if !self.heads.is_empty() {
            out.extend(Some(self.heads.split().freeze()));
        }
        self.insert_bytes = 0;
        if is_large {
            self.heads = BytesMut::new();
        }
        self.inserts.shrink_to(KEEP_INSERTS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(pieces: &mut Pieces) -> Vec<Bytes> {
        let mut out = Vec::new();
        pieces.take(&mut out);
        out
    }

    #[test]
    fn pieces_leave_in_order_and_frames_know_their_length() {
        let mut pieces = Pieces::new();
        let records = Bytes::from_static(b"records");
        let first = pieces.begin_frame();
        pieces.head().put_slice(b"ab");
        pieces.put(records.clone());
        pieces.put(records.clone());
        pieces.head().put_slice(b"c");
        pieces.end_frame(first);
        let second = pieces.begin_frame();
        pieces.head().put_slice(b"d");
        pieces.end_frame(second);
        assert_eq!(pieces.len(), 4 + 2 + 14 + 1 + 4 + 1);
        let out = taken(&mut pieces);
        assert_eq!(out.concat(), b"\0\0\0\x11abrecordsrecordsc\0\0\0\x01d");
        assert_eq!(out[1].as_ptr(), records.as_ptr(), "by reference");
        assert_eq!(out.len(), 4);
        assert!(pieces.is_empty() && taken(&mut pieces).is_empty());
    }

    #[test]
    fn the_buffer_is_used_again_unless_it_has_grown_large() {
        let mut pieces = Pieces::new();
        let mut write = |bytes: usize| {
            let start = pieces.begin_frame();
            pieces.head().put_bytes(7, bytes);
            pieces.end_frame(start);
            taken(&mut pieces)[0].as_ptr() as usize
        };
        let places: Vec<usize> = (0..100).map(|_| write(100)).collect();
        let spread = places.iter().max().zip(places.iter().min()).map(|(max, min)| max - min);
        assert!(spread < Some(2 * FIRST_BYTES), "{spread:?} bytes between them");
        write(KEEP_BYTES_MAX);
        assert_eq!(pieces.heads.capacity(), 0);
    }
}
