//! Seals: what vouches for the offsets of the batches between two marks of a compacted segment.
//!
//! A batch's checksum covers everything but its offset, length and leader epoch. A wrong length
//! makes the checksum wrong, and the partition's history knows the epochs. Where no offset is left
//! out, each must go on from the one before it; where compaction has left some out, only this tells
//! a wrong one from a right one, and which it was.
//!
//!     offsets  100   103   170   171          xor    of all of them
//!     read     100   103   178   171          chain  each one mixed into what came before it
//!
//! If one is wrong, `xor` gives its flaw, and `chain` says whose flaw it is.
//!
//! Invariants
//!   E1  One wrong offset in a stretch is always noticed, and put right only where all offsets then
//!       agree with both sums.
//!   E2  A seal is made of what is written, never of what was read from the file that it is for.

use super::marks::Marks;
use crate::base::ids::Offset;
use crate::wire::records::{BatchHeader, HEADER_BYTES, LENGTH_END};

/// Odd, so that no two values are mixed into the same one.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// See the module's documentation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seal {
    pub xor: u64,
    pub chain: u64,
}

/// A batch with a wrong base offset, and which is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Misplaced {
    /// Where the batch begins in the segment.
    pub position: u64,
    pub found: Offset,
    pub due: Offset,
    /// One past its last record's offset.
    pub next: Offset,
}

/// What is wrong with a stretch between two marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    One(Misplaced),
    /// More than one offset: which ones, nobody knows.
    Several {
        position: u64,
        end: u64,
    },
}

impl Seal {
    pub fn add(&mut self, offset: Offset) {
        let offset = offset.cast_unsigned();
        self.xor ^= offset;
        self.chain = (self.chain.rotate_left(5) ^ offset).wrapping_mul(FACTOR);
    }

    /// What is wrong with the offsets of the batches in a whole stretch, which begins at
    /// `position`. Where a damaged length hides batches, nobody can tell.
    fn judge(self, position: u64, stretch: &[u8]) -> Option<Wrong> {
        let mut read = Seal::default();
        if !walk(stretch, |_, base| read.add(base)) || read == self {
            return None;
        }
        let mut bases: Vec<(usize, Offset)> = Vec::new();
        walk(stretch, |at, base| bases.push((at, base)));
        let flaw = (read.xor ^ self.xor).cast_signed();
        let mut fitting = (0..bases.len()).filter(|wrong| {
            let mut mended = Seal::default();
            for (index, (_, base)) in bases.iter().enumerate() {
                mended.add(if index == *wrong { base ^ flaw } else { *base });
            }
            mended == self
        });
        let one = fitting.next().filter(|_| flaw != 0 && fitting.next().is_none());
        let one = one.and_then(|index| {
            let (at, found) = *bases.get(index)?;
            let header = BatchHeader::read(stretch.get(at..)?)?;
            let due = found ^ flaw;
            let next = BatchHeader { base_offset: due, ..header }.next_offset();
            Some(Misplaced { position: position + at as u64, found, due, next })
        });
        let end = position + stretch.len() as u64;
        Some(one.map_or(Wrong::Several { position, end }, Wrong::One))
    }
}

impl Misplaced {
    /// Puts it right in a window that begins at `start`, if it is there.
    pub fn mend(&self, start: u64, window: &mut [u8]) {
        let at = self.position.checked_sub(start).and_then(|at| usize::try_from(at).ok());
        let place = at.and_then(|at| window.get_mut(at..)?.first_chunk_mut());
        if let Some(place) = place {
            *place = self.due.to_be_bytes();
        }
    }
}

/// Goes through batches by their lengths, with the place and the base offset of each; false if they
/// do not end with the last byte.
fn walk(batches: &[u8], mut visit: impl FnMut(usize, Offset)) -> bool {
    let mut at = 0;
    while let Some(header) = batches.get(at..).and_then(|left| left.first_chunk::<HEADER_BYTES>()) {
        let (Some(base), Some(length)) = (header.first_chunk(), header[8..].first_chunk()) else {
            return false;
        };
        let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
        if length < HEADER_BYTES - LENGTH_END {
            return false;
        }
        visit(at, Offset::from_be_bytes(*base));
        at += length + LENGTH_END;
    }
    at == batches.len()
}

impl Marks {
    /// What is wrong with the offsets of the stretches that lie wholly in a window, which begins
    /// at `start`. Without seals, nothing is.
    pub fn judge(&self, start: u64, window: &[u8]) -> Vec<Wrong> {
        let end = start + window.len() as u64;
        let within = |from: u64, to: u64| {
            let place = |at: u64| usize::try_from(at - start).ok();
            window.get(place(from)?..place(to)?)
        };
        self.stretches(start, end)
            .filter_map(|(from, to, seal)| seal.judge(from, within(from, to)?))
            .collect()
    }
}
