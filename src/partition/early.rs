//! Draining early: what is taken in fast goes from memory into segments, before the journal fills
//! with it.
//!
//!     | ... older part of the tail ... | ... newer part ... | head ►
//!       ├── a's records, which are many ──► its segment ┐
//!       └── b's, c's ... which are few ───► a pack      ┴─ synced ──► checkpoints
//!
//! A journal that fills within seconds is drained all the time, and what was written before is read
//! back from the device for that: a third of all its work, and more where small partitions' records
//! have to be sorted in runs. Here the bytes are still in memory. The files in which nothing is
//! left are then free without being read (`Rereading::mentioned`).
//!
//! Lives on: every core, one task.  Talks to: `journal`, `segment`.
//!
//! Invariants
//!   V1  Only what is wholly in memory is moved early; a partition that lags behind is left to
//!       `drain`, as is everything while the journal fills slowly.
//!   V2  The newer part of the memory stays where it is: readers at the end of the log find it.
//!   V3  A partition gets a file of its own for as much as it gets one for in `drain`, and a pack
//!       is made only of so much that its partitions' checkpoints are little beside it.
//!   V4  What is being moved stays in memory until it has been: appenders wait for that.
//!   V5  A partition with records in the journal that were appended since it began to fill fast is
//!       listed, once.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::drain::{RETRY, STRETCH_BYTES_MAX, Share};
use super::{Log, Owner, PartitionLog};
use crate::base::ids::{Offset, PartitionId};
use crate::base::time::Instant;
use crate::config::TopicConfig;
use crate::io::Io;

/// A journal that would be half full within this time is one that fills fast.
const SOON: Duration = Duration::from_secs(15);
/// It counts as one for so long.
pub(super) const FAST_FOR: Duration = Duration::from_secs(5);
/// It is looked whenever the journal has grown by this much, and by this share of the tail.
const LOOK_BYTES_MAX: u64 = 32 << 20;
const LOOK_SHARE: u64 = 8;
/// What is kept for less than this, in milliseconds, may be gone before the journal is full.
const SHORT_MS: i64 = 60_000;

/// The least that a pack is made of, in sixteenths of the tail, and of bytes for each partition.
const PACK_SIXTEENTHS: u64 = 3;
const PIECE_BYTES_MIN: u64 = 4 << 10;
/// Partitions that are looked at before others have their turn.
const SLICE: usize = 256;

/// Who takes in what.
pub(super) struct Early {
    /// See V5.
    listed: RefCell<Vec<PartitionId>>,
    /// A partition that was last asked in this round is listed.
    round: Cell<u64>,
    /// When a look has last found the journal to fill fast.
    seen_fast: Cell<Option<Instant>>,
}

impl Default for Early {
    fn default() -> Early {
        Early { listed: RefCell::default(), round: Cell::new(1), seen_fast: Cell::new(None) }
    }
}

impl Early {
    /// Something was appended to `log`.
    pub(super) fn appended(&self, log: &mut PartitionLog) {
        if log.is_first_in(self.round.get()) {
            self.listed.borrow_mut().push(log.id());
        }
    }

    /// Whether the journal fills fast at `now`. There are no looks while nothing is written.
    pub(super) fn is_active(&self, now: Instant) -> bool {
        self.seen_fast.get().is_some_and(|seen| now - seen < FAST_FOR)
    }

    fn forget(&self) {
        self.round.set(self.round.get() + 1);
        self.listed.borrow_mut().clear();
    }
}

/// Drains early until the journal ends.
pub async fn run<I: Io>(owner: Rc<Owner<I>>) {
    let (capacity, tail) = owner.journal.capacity();
    let look_bytes = LOOK_BYTES_MAX.min(tail as u64 / LOOK_SHARE);
    let mut seen = (owner.io.now(), owner.journal.head());
    while let Some(head) = owner.journal.written_to(seen.1 + look_bytes).await {
        let is_fast = is_soon_full(seen, (owner.io.now(), head), capacity);
        seen = (owner.io.now(), head);
        owner.early.seen_fast.set(is_fast.then_some(seen.0));
        if !is_fast {
            owner.early.forget();
            continue;
        }
        let outcome = loop {
            match owner.drain_early().await {
                // While that went on there was more.
                Ok(true) => {}
                outcome => break outcome,
            }
        };
        if let Err(error) = outcome
            && !owner.is_ending()
        {
            owner.doubt_directory(&error).await;
            tracing::debug!("nothing is drained early for now: {error}");
            owner.io.sleep(RETRY).await;
        }
    }
}

/// Whether a journal of `capacity` bytes that grew like this would be half full `SOON`.
fn is_soon_full(before: (Instant, u64), now: (Instant, u64), capacity: u64) -> bool {
    let grown = now.1.saturating_sub(before.1) as f64;
    let elapsed = (now.0 - before.0).as_secs_f64();
    grown * SOON.as_secs_f64() > elapsed * (capacity / 2) as f64
}

/// Whether a topic's records may be deleted about as soon as they would be drained otherwise.
fn is_short_lived(config: &TopicConfig, capacity: u64) -> bool {
    let is_short = (0..SHORT_MS).contains(&config.retention_ms);
    let is_small = u64::try_from(config.retention_bytes).is_ok_and(|bytes| bytes <= capacity);
    config.is_deleted && (is_short || is_small)
}

impl<I: Io> Owner<I> {
    /// Moves what the listed partitions have in the older part of the memory, a piece of each;
    /// false if that is too little.
    async fn drain_early(&self) -> io::Result<bool> {
        let Some(before) = self.journal.older_part_of_tail() else { return Ok(false) };
        let listed = self.early.listed.take();
        self.store.set_pace(None);
        let outcome = self.move_early(&listed, before).await;
        for id in listed {
            let Some(log) = self.log(id) else { continue };
            if log.borrow().first_extent().is_some() {
                self.early.listed.borrow_mut().push(id);
            } else {
                log.borrow_mut().leave_round();
            }
        }
        outcome
    }

    async fn move_early(&self, listed: &[PartitionId], before: u64) -> io::Result<bool> {
        let (_, tail) = self.journal.capacity();
        let large_bytes = self.small_bytes();
        let (mut large, mut small, mut small_bytes) = (Vec::new(), Vec::new(), 0);
        let mut first = u64::MAX;
        for slice in listed.chunks(SLICE) {
            for id in slice {
                let Some(log) = self.log(*id) else { continue };
                let Some((through, bytes)) = self.early_through(&log, before) else { continue };
                let begin = log.borrow().first_extent().map_or(first, |it| it.location.address);
                first = first.min(begin);
                if bytes >= large_bytes {
                    large.push((log, through));
                } else {
                    small.push((*id, through));
                    small_bytes += bytes;
                }
            }
            self.io.cede().await;
        }
        let is_pack = small_bytes >= tail as u64 / 16 * PACK_SIXTEENTHS
            && small_bytes >= small.len() as u64 * PIECE_BYTES_MIN;
        if large.is_empty() && !is_pack {
            return Ok(false);
        }
        let _held = self.journal.hold(first);
        let has_large = self.move_large(large).await?;
        if !is_pack {
            return Ok(has_large);
        }
        small.sort_unstable();
        tracing::debug!("{} partitions are drained early, into a pack", small.len());
        self.pack_early(&small, small_bytes).await.map(|()| true)
    }

    /// Moves partitions' records up to an entry of each into segments of their own.
    async fn move_large(&self, partitions: Vec<(Log, Offset)>) -> io::Result<bool> {
        let _turn = self.storage_turn.turn().await;
        let (mut moved, mut files) = (Vec::new(), BTreeSet::new());
        for (log, through) in partitions {
            if self.is_ending() {
                return Err(io::Error::other("the node is stopping"));
            }
            moved.extend(self.fill_segments(&log, through, Share::new(), &mut files).await?);
        }
        if moved.is_empty() {
            return Ok(false);
        }
        tracing::debug!("{} partitions are drained early", moved.len());
        self.record(moved, files).await.map(|()| true)
    }

    /// The entry up to which a partition is drained early, if it is, and the bytes up to there.
    fn early_through(&self, log: &Log, before: u64) -> Option<(Offset, u64)> {
        let log = log.borrow();
        let image = self.image();
        let config = self.topic_config(image.topic_by_number(log.id().topic)?);
        let is_in_memory = self.journal.tail(log.first_extent()?.location).is_some();
        if !is_in_memory || is_short_lived(&config, self.journal.capacity().0) {
            return None;
        }
        log.piece_below(before, STRETCH_BYTES_MAX as u64)
    }
}
