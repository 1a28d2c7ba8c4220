//! What no checksum covers in stored batches: their leader epochs and offsets. But the partition
//! knows which epoch wrote which offsets, and where compaction has left some out, seals know the
//! right ones. One that has changed on the disk is told and given out as it should be; the records
//! are not touched by it.
//!
//! Invariants
//!   E1  No batch from a file is given out with another epoch than the partition's history says.

use bytes::{Bytes, BytesMut};

use super::log::{EpochStart, epoch_at};
use super::{Log, Owner};
use crate::io::Io;
use crate::segment::{Misplaced, Segment, Span};
use crate::wire::records::{self, BatchHeader};

/// What the history says against a batch's epoch.
pub fn wrong_epoch(epochs: &[EpochStart], header: &BatchHeader) -> Option<i32> {
    let due = epoch_at(epochs, header.base_offset)?;
    (due != header.leader_epoch).then_some(due)
}

impl<I: Io> Owner<I> {
    /// What was read of a segment, with the offsets and epochs that it should have.
    pub(super) fn with_true_headers(&self, log: &Log, segment: &Segment, span: Span) -> Bytes {
        for misplaced in &span.misplaced {
            self.tell_misplaced(log, segment, misplaced);
        }
        self.with_true_epochs(log, span.batches)
    }

    /// Tells of a batch with a wrong offset, once for each.
    pub(super) fn tell_misplaced(&self, log: &Log, segment: &Segment, misplaced: &Misplaced) {
        let id = log.borrow().id();
        let path = self.store.path(segment.id(id));
        let Misplaced { position, found, due, next } = misplaced;
        self.tell_damage(&format!(
            "{} is damaged at byte {position}: a record batch says that it begins with offset \
             {found}, but it holds offsets {due} to before {next} of {}; nothing is lost, and the \
             records are served with the right ones",
            path.display(),
            self.name_of(id)
        ));
    }

    /// Whole batches from a file, with the epochs that they should have.
    pub(super) fn with_true_epochs(&self, log: &Log, batches: Bytes) -> Bytes {
        let is_wrong = |(header, _): (BatchHeader, &[u8])| {
            wrong_epoch(log.borrow().epochs(), &header).is_some()
        };
        if !records::batches(&batches).any(is_wrong) {
            return batches;
        }
        let mut mended = BytesMut::from(&batches[..]);
        let mut at = 0;
        for (header, batch) in records::batches(&batches) {
            let end = at + batch.len();
            let due = wrong_epoch(log.borrow().epochs(), &header);
            if let (Some(due), Some(copy)) = (due, mended.get_mut(at..end)) {
                records::stamp(copy, header.base_offset, due);
                self.tell_wrong_epoch(log, &header, due);
            }
            at = end;
        }
        mended.freeze()
    }

    /// Tells of a batch with a wrong epoch, once for each.
    pub(super) fn tell_wrong_epoch(&self, log: &Log, header: &BatchHeader, due: i32) {
        let (from, before) = (header.base_offset, header.next_offset());
        let id = log.borrow().id();
        let segment = log.borrow().segment_from(from);
        let path = match segment {
            Some(segment) => self.store.path(segment.id(id)),
            None => self.journal.directory().to_owned(),
        };
        let what = format!(
            "{} is damaged: the leader epoch of offsets {from} to before {before} of {} is {} \
             where {due} belongs; nothing is lost, and the records are served with the right one",
            path.display(),
            self.name_of(id),
            header.leader_epoch
        );
        self.tell_damage(&what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_belongs_to_the_epoch_that_began_last_before_it() {
        let epochs = [EpochStart { epoch: 3, start: 10 }, EpochStart { epoch: 5, start: 20 }];
        let due = [(9, None), (10, Some(3)), (19, Some(3)), (20, Some(5)), (1000, Some(5))];
        for (offset, epoch) in due {
            assert_eq!(epoch_at(&epochs, offset), epoch, "{offset}");
        }
    }
}
