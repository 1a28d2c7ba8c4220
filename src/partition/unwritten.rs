//! Bytes of records that fetches were answered with and that are not written yet: they hold the
//! memory which reads, drains and the journal itself need, and a client may take them as slowly as
//! it likes.
//!
//!     | references, as many as are asked for | copies, little at a time |  nothing  |
//!     0                                    share                 COPIED_SHARES    bytes held
//!
//! Lives on: every core, counted where the records are; given back on the core of the connection.
//!
//! Invariants
//!   U1  Answers hold no more of a core's memory than its share and one batch.
//!   U2  Beyond the share an answer is small, and a copy: who takes it gets on, who does not holds
//!       none of the core's own memory.
//!   U3  What is held beside that memory is bounded as well.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::FetchedPart;
use crate::base::few::Few;

/// What an answer gets beyond the share, or one batch.
const SMALL_BYTES: usize = 128 << 10;
/// Where answers end, in shares.
const COPIED_SHARES: usize = 4;

/// See the module's documentation.
pub(super) struct Unwritten {
    bytes: Arc<AtomicUsize>,
    share: usize,
}

/// What an answer may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// So many bytes, by reference.
    Shared(usize),
    /// So many bytes, copied.
    Copied(usize),
    Nothing,
}

/// Bytes that count until this is dropped.
#[derive(Debug)]
pub struct Held {
    /// As `FetchedPart` says.
    pub gives_way: bool,
    bytes: usize,
    of: Arc<AtomicUsize>,
}

impl Unwritten {
    pub(super) fn new(share: usize) -> Unwritten {
        Unwritten { bytes: Arc::default(), share }
    }

    pub(super) fn room(&self) -> Room {
        let held = self.bytes.load(Ordering::Relaxed);
        match self.share.saturating_sub(held) {
            left if left >= SMALL_BYTES => Room::Shared(left),
            _ if held < self.share.saturating_mul(COPIED_SHARES) => Room::Copied(SMALL_BYTES),
            _ => Room::Nothing,
        }
    }

    /// Counts an answer, and takes its records out of the core's memory where that must be.
    pub(super) fn hold(&self, answer: &mut FetchedPart, room: Room) {
        let bytes = answer.bytes();
        if bytes == 0 {
            return;
        }
        if matches!(room, Room::Copied(_)) {
            let copies = answer.records.iter().map(|piece| Bytes::copy_from_slice(piece));
            answer.records = copies.collect::<Few<Bytes>>();
        }
        answer.held = Some(Held::new(bytes, self.bytes.clone(), answer.gives_way));
    }
}

impl Room {
    pub(super) fn bytes(self) -> usize {
        match self {
            Room::Shared(bytes) | Room::Copied(bytes) => bytes,
            Room::Nothing => 0,
        }
    }
}

impl Held {
    fn new(bytes: usize, of: Arc<AtomicUsize>, gives_way: bool) -> Held {
        of.fetch_add(bytes, Ordering::Relaxed);
        Held { gives_way, bytes, of }
    }
}

impl Clone for Held {
    fn clone(&self) -> Held {
        Held::new(self.bytes, self.of.clone(), self.gives_way)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_are_not_taken_become_small_copies_and_then_none() {
        const SHARE: usize = 1 << 20;
        let unwritten = Unwritten::new(SHARE);
        let answer = |room: Room| {
            let records = Few::from_elem(Bytes::from(vec![7; room.bytes()]), 1);
            let mut part = FetchedPart { records, ..FetchedPart::owner_gone() };
            let before = part.records.first().map(|piece| piece.as_ptr());
            unwritten.hold(&mut part, room);
            (part.records.first().map(|piece| piece.as_ptr()) == before, part)
        };
        assert_eq!(unwritten.room(), Room::Shared(SHARE));
        let (is_shared, first) = answer(Room::Shared(SHARE - 1));
        assert!(is_shared);
        assert_eq!(unwritten.room(), Room::Copied(SMALL_BYTES));
        let mut others = Vec::new();
        while unwritten.room() != Room::Nothing {
            let (is_shared, part) = answer(unwritten.room());
            assert!(!is_shared, "it holds no memory of the core");
            others.push(part);
        }
        assert!(others.len() >= (COPIED_SHARES - 1) * SHARE / SMALL_BYTES);
        let other = first.clone();
        drop(first);
        assert_eq!(unwritten.room(), Room::Nothing, "the other one is not taken");
        drop((other, others));
        assert_eq!(unwritten.room(), Room::Shared(SHARE), "all are taken");
    }
}
