//! Reading a journal file in stretches, for recovery and for drains.
//!
//! Invariants
//!   V1  Memory is bounded by the larger of one window and one group, and what `held` was given to.

use std::io;

use bytes::Bytes;

use crate::io::{BLOCK_BYTES, File};

/// A stretch of a file in memory.
pub struct Window {
    /// Bytes read at a time.
    least: usize,
    number: u64,
    start: u64,
    buffer: Bytes,
}

impl Window {
    pub fn new(least: usize) -> Window {
        Window { least, number: 0, start: 0, buffer: Bytes::new() }
    }

    /// `length` bytes at the block-aligned `position` of a file.
    pub async fn bytes<F: File>(
        &mut self,
        file: &F,
        number: u64,
        position: u64,
        length: usize,
    ) -> io::Result<&[u8]> {
        let held = self.buffer.len() as u64;
        let inside = self.number == number
            && position >= self.start
            && position + length as u64 <= self.start + held;
        if !inside {
            self.buffer = Bytes::new();
            let left =
                file.len().saturating_sub(position) / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
            let wanted = length.next_multiple_of(BLOCK_BYTES).max(self.least);
            let wanted = wanted.min(usize::try_from(left).unwrap_or(usize::MAX));
            self.buffer = file.read_at(position, wanted).await?.freeze();
            self.number = number;
            self.start = position;
        }
        let skip = usize::try_from(position - self.start).map_err(io::Error::other)?;
        self.buffer.get(skip..skip + length).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// What was read last, as a whole.
    pub fn held(&self) -> Bytes {
        self.buffer.clone()
    }
}
