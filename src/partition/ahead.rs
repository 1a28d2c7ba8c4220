//! Read-ahead: a client that reads a backlog in order finds its next answer ready, so that reading
//! the device and checking one answer go on while the last one is sent and worked on.
//!
//!     read from files ─► begins where the last one ended ─► task: gather the stretch behind it
//!     next read       ─► takes it, or waits for it ─► task: the one behind that
//!
//! Several clients that go through the same backlog side by side share what is gathered.
//!
//! Lives on: every core.
//!
//! Invariants
//!   H1  At most `STRETCHES_MAX` stretches are held, each of at most `STRETCH_BYTES_MAX` but for
//!       one larger batch, and none longer than `HELD_FOR` after it was gathered. What was read
//!       already is given up first.
//!   H2  A stretch is served only while the partition's records lie where they lay before it was
//!       gathered.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, Shared};

use super::{Log, Owner};
use crate::base::few::Few;
use crate::base::ids::{Offset, PartitionId};
use crate::io::Io;
use crate::wire::records;

const STRETCHES_MAX: usize = 8;
const STRETCH_BYTES_MAX: usize = 1 << 20;
/// A reader that does not come back for this long has gone elsewhere.
const HELD_FOR: Duration = Duration::from_secs(1);
/// Readers of backlogs whose place is remembered.
const ENDS_MAX: usize = 64;

/// Records that are on their way; `None` if they could not be read, which the reader then finds
/// out for itself.
type Gathering = Shared<LocalBoxFuture<'static, Option<Few<Bytes>>>>;

struct Stretch {
    partition: PartitionId,
    from: Offset,
    /// The log's `moves` before it was gathered.
    moves: u64,
    gathering: Gathering,
    was_read: bool,
}

/// What a core has read ahead.
#[derive(Default)]
pub(super) struct Ahead {
    stretches: RefCell<Vec<Stretch>>,
    /// Where the last reads from files ended, the newest last.
    ends: RefCell<VecDeque<(PartitionId, Offset)>>,
}

impl Ahead {
    /// The stretch that begins at `from`.
    fn find(&self, partition: PartitionId, from: Offset, moves: u64) -> Option<Gathering> {
        let mut stretches = self.stretches.borrow_mut();
        stretches.retain(|stretch| stretch.partition != partition || stretch.moves == moves);
        let mut same = stretches.iter_mut();
        let found = same.find(|stretch| stretch.partition == partition && stretch.from == from)?;
        found.was_read = true;
        Some(found.gathering.clone())
    }

    /// Whether a read that ended here went before; remembers where this one ends.
    fn goes_on(&self, partition: PartitionId, from: Offset, end: Offset) -> bool {
        let mut ends = self.ends.borrow_mut();
        let known = ends.iter().position(|known| *known == (partition, from));
        if let Some(known) = known {
            ends.remove(known);
        }
        if ends.len() >= ENDS_MAX {
            ends.pop_front();
        }
        ends.push_back((partition, end));
        known.is_some()
    }

    fn holds(&self, partition: PartitionId, from: Offset) -> bool {
        let stretches = self.stretches.borrow();
        stretches.iter().any(|stretch| stretch.partition == partition && stretch.from == from)
    }

    fn hold(&self, stretch: Stretch) {
        let mut stretches = self.stretches.borrow_mut();
        if stretches.len() >= STRETCHES_MAX {
            let first_read = stretches.iter().position(|stretch| stretch.was_read);
            stretches.remove(first_read.unwrap_or(0));
        }
        stretches.push(stretch);
    }

    fn give_up(&self, partition: PartitionId, from: Offset) {
        self.stretches
            .borrow_mut()
            .retain(|stretch| stretch.partition != partition || stretch.from != from);
    }

    /// Gives all memory back.
    pub(super) fn clear(&self) {
        self.stretches.borrow_mut().clear();
    }
}

impl<I: Io> Owner<I> {
    /// Records from `from` on, as `gather` gives them, or what was gathered ahead of the request,
    /// and whether sending them gives way to others.
    pub(super) async fn read_on(
        self: &Rc<Self>,
        log: &Log,
        from: Offset,
        (bytes_max, at_least_one): (usize, bool),
    ) -> std::io::Result<(Few<Bytes>, bool)> {
        if !self.is_cold(log, from) {
            return Ok((self.gather(log, from, (bytes_max, at_least_one)).await?, false));
        }
        self.scrubbing.note_read();
        // Whoever reads at the end of other partitions in the same request is not kept waiting.
        let bytes_max = bytes_max.min(self.read_pace.answer_bytes());
        let (partition, moves) = (log.borrow().id(), log.borrow().moves());
        let ahead = match self.ahead.find(partition, from, moves) {
            Some(gathering) => gathering.await,
            None => None,
        };
        let is_current = log.borrow().moves() == moves && log.borrow().log_start() <= from;
        let records = match ahead.filter(|_| is_current) {
            Some(pieces) => super::read::cut_pieces(pieces, bytes_max, at_least_one),
            None => self.gather(log, from, (bytes_max, at_least_one)).await?,
        };
        if let Some(end) = end_of(&records)
            && self.ahead.goes_on(partition, from, end)
        {
            self.read_ahead(log, end, bytes_max.min(STRETCH_BYTES_MAX));
        }
        Ok((records, self.read_pace.is_beside_writes()))
    }

    /// Has the records from `from` on gathered, if there are any in files.
    fn read_ahead(self: &Rc<Self>, log: &Log, from: Offset, bytes_max: usize) {
        let (partition, moves) = (log.borrow().id(), log.borrow().moves());
        let is_wanted = from < log.borrow().high_watermark() && self.is_cold(log, from);
        if !is_wanted || self.ahead.holds(partition, from) {
            return;
        }
        let (owner, log) = (self.clone(), log.clone());
        let gathering = async move { owner.gather(&log, from, (bytes_max, true)).await.ok() };
        let gathering = gathering.boxed_local().shared();
        let stretch =
            Stretch { partition, from, moves, gathering: gathering.clone(), was_read: false };
        self.ahead.hold(stretch);
        let owner = self.clone();
        self.io.spawn("read ahead", async move {
            gathering.await;
            owner.io.sleep(HELD_FOR).await;
            owner.ahead.give_up(partition, from);
        });
    }

    /// Whether the records at `from` are in files only.
    fn is_cold(&self, log: &Log, from: Offset) -> bool {
        let log = log.borrow();
        if log.segment_from(from).is_some() {
            return true;
        }
        let first = log.extent_at(from);
        first.is_some_and(|extent| self.journal().tail(extent.location).is_none())
    }
}

/// One past the last offset of `records`.
fn end_of(records: &[Bytes]) -> Option<Offset> {
    let (header, _) = records::batches(records.last()?).last()?;
    Some(header.next_offset())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::TopicNumber;

    const ONE: PartitionId = PartitionId { topic: TopicNumber(1), index: 0 };
    const TWO: PartitionId = PartitionId { topic: TopicNumber(1), index: 1 };

    fn hold(ahead: &Ahead, partition: PartitionId, from: Offset, moves: u64) {
        let gathering = std::future::ready(Some(Few::from_iter([Bytes::from_static(b"batch")])));
        let gathering = gathering.boxed_local().shared();
        ahead.hold(Stretch { partition, from, moves, gathering, was_read: false });
    }

    #[test]
    fn only_a_read_that_begins_where_one_ended_goes_on() {
        let ahead = Ahead::default();
        assert!(!ahead.goes_on(ONE, 0, 10));
        assert!(!ahead.goes_on(ONE, 11, 20), "it skipped one");
        assert!(!ahead.goes_on(TWO, 10, 20), "another partition");
        assert!(ahead.goes_on(ONE, 10, 20));
        assert!(!ahead.goes_on(ONE, 10, 20), "a place is used once");
        for other in 0..ENDS_MAX {
            ahead.goes_on(TWO, 1000, i64::try_from(other).expect("small"));
        }
        assert!(!ahead.goes_on(ONE, 20, 30), "forgotten after many others");
        assert!(ahead.ends.borrow().len() <= ENDS_MAX);
    }

    #[test]
    fn what_was_read_is_given_up_before_what_was_not() {
        let ahead = Ahead::default();
        for number in 0..STRETCHES_MAX {
            hold(&ahead, ONE, i64::try_from(number).expect("small"), 1);
        }
        assert!(ahead.find(ONE, 3, 1).is_some());
        hold(&ahead, TWO, 0, 1);
        assert!(!ahead.holds(ONE, 3), "it was read");
        assert!(ahead.holds(ONE, 0));
        hold(&ahead, TWO, 1, 1);
        assert!(!ahead.holds(ONE, 0), "the oldest, as none was read");
        assert!(ahead.stretches.borrow().len() <= STRETCHES_MAX);
    }

    #[test]
    fn records_that_moved_are_gathered_again() {
        let ahead = Ahead::default();
        hold(&ahead, ONE, 0, 1);
        hold(&ahead, TWO, 0, 1);
        assert!(ahead.find(ONE, 0, 2).is_none());
        assert!(!ahead.holds(ONE, 0));
        assert!(ahead.find(TWO, 0, 1).is_some());
        ahead.give_up(TWO, 0);
        assert!(ahead.find(TWO, 0, 1).is_none());
    }
}
