//! Going on where the read before ended, in the midst of a batch: its beginning is in memory.
//!
//!     read     | batch | batch | begin|
//!     behind                          |ning | batch | batch | beg|
//!     given    | batch | batch |   batch    | batch | batch |
//!
//! One batch is copied, so that all of what is read is of use: where pieces are not much larger
//! than batches, most would otherwise be read twice.
//!
//! Invariants
//!   M1  A joined batch is given only if it is the one that is due and its CRC is right; otherwise
//!       it is read from its beginning, and what is wrong is found there. So it is where there is
//!       no memory to join it in, which recent records may hold all of.

use std::io;

use bytes::Bytes;

use super::read::{Due, Span, within};
use super::spans::Stretch;
use super::write::fill;
use super::{Segment, SegmentId, Store};
use crate::base::ids::Offset;
use crate::io::Io;
use crate::wire::records::{BatchHeader, HEADER_BYTES};

impl<I: Io> Store<I> {
    /// The batch at `from`, of which the read before has brought the beginning; the whole ones
    /// behind it are held for the next read. `None` if it has not, or if they are no sound batch.
    pub(super) async fn read_behind(
        &self,
        id: SegmentId,
        segment: &Segment,
        from: Offset,
        bytes_max: usize,
    ) -> io::Result<Option<Span>> {
        let rest = self.spans.borrow().rest(id, from);
        let position = self.cache.borrow().hinted(id, from);
        let Some(begun) = position.zip(rest) else { return Ok(None) };
        self.read_rest(id, segment, (from, from), begun, bytes_max).await
    }

    /// The batch that holds `from`, of offset `base`, of which so much from a position on has been
    /// found. `None` if that is another one, or if it must be read whole.
    pub(super) async fn read_cut(
        &self,
        id: SegmentId,
        segment: &Segment,
        ((from, base), (position, found)): ((Offset, Offset), (u64, Bytes)),
        bytes_max: usize,
    ) -> io::Result<Option<Span>> {
        let header = BatchHeader::read(&found);
        // What seals vouch for is read from mark to mark.
        if segment.is_sparse() || header.is_none_or(|header| header.next_offset() <= from) {
            return Ok(None);
        }
        self.read_rest(id, segment, (from, base), (position, found), bytes_max).await
    }

    /// As `read_behind` for the batch that holds `from`, of offset `base`, of which so much from a
    /// position on has been read.
    async fn read_rest(
        &self,
        id: SegmentId,
        segment: &Segment,
        (from, base): (Offset, Offset),
        (position, rest): (u64, Bytes),
        bytes_max: usize,
    ) -> io::Result<Option<Span>> {
        let (file, end) = self.file_with(id, segment.bytes).await?;
        let behind = position + rest.len() as u64;
        if behind >= end {
            return Ok(None);
        }
        let mut due = Due::new(segment, base);
        let left = (end - position).min(self.batch_bytes_max());
        let whole = match rest.len() {
            ..HEADER_BYTES => HEADER_BYTES,
            _ => due.whole_batch(&rest, left).unwrap_or(0),
        };
        let missing = whole.saturating_sub(rest.len());
        if missing == 0 {
            return Ok(None);
        }
        let start = segment.start();
        let length = within(start + behind, self.window_bytes(bytes_max)).max(missing);
        let window = self.read_paced(&file, start + behind, length, start + end).await?;
        let Some(batch) = self.join(&due, (&rest, &window), left) else { return Ok(None) };
        let Ok((bytes, next)) = due.take_verified(&batch) else { return Ok(None) };
        let others = window.slice(bytes - rest.len()..);
        let (mut spans, mut cache) = (self.spans.borrow_mut(), self.cache.borrow_mut());
        let position = position + bytes as u64;
        cache.hint(id, next, position);
        let (memory, behind) = (bytes.next_power_of_two(), window.len());
        let one = |rest, bytes| Stretch { batches: batch.clone(), next, rest, bytes };
        match due.take_verified(&others) {
            Ok((length, end)) => {
                cache.hint(id, end, position + length as u64);
                let (batches, rest) = (others.slice(..length), others.slice(length..));
                spans.hold((id, from), one(Bytes::new(), memory));
                spans.hold((id, next), Stretch { batches, next: end, rest, bytes: behind });
            }
            Err(_) => spans.hold((id, from), one(others, memory + behind)),
        }
        Ok(Some(Span { batches: batch, next, misplaced: Vec::new() }))
    }

    /// The batch that is due, of which the first part is the beginning and the second one holds the
    /// end; `None` if it does not, or if there is no memory.
    fn join(&self, due: &Due, (beginning, window): (&Bytes, &Bytes), left: u64) -> Option<Bytes> {
        let both = beginning.iter().chain(window.iter());
        let header: Vec<u8> = both.take(HEADER_BYTES).copied().collect();
        let bytes = due.whole_batch(&header, left).unwrap_or(0);
        let end = bytes.checked_sub(beginning.len()).and_then(|missing| window.get(..missing));
        let end = end?;
        let mut joined = self.arena.take(bytes)?;
        joined.set_len(0);
        for part in [&beginning[..], end] {
            fill(&mut joined, part);
        }
        Some(joined.freeze())
    }
}
