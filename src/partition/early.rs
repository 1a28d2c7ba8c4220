//! Draining early: what a partition takes in fast goes from memory into its segment, before the
//! journal fills with it.
//!
//!     | ... older half of the tail ... | ... newer half ... | head ►
//!       └── a's and b's records ──► their segments, synced ──► checkpoints
//!
//! A journal that fills within seconds is drained all the time, and what was written before is read
//! back from the device for that: a third of all its work. Here the bytes are still in memory. The
//! files in which nothing is left are then free without being read (`Rereading::mentioned`).
//!
//! Lives on: every core, one task.  Talks to: `journal`, `segment`.
//!
//! Invariants
//!   V1  Only what is wholly in memory is moved early; a partition that lags behind is left to
//!       `drain`, as is everything while the journal fills slowly or is nearly full.
//!   V2  The newer half of the memory stays where it is: readers at the end of the log find it.
//!   V3  A partition is moved in pieces that get a file of their own in `drain` as well.

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
/// It is looked whenever the journal has grown by this much, and by this share of the tail.
const LOOK_BYTES_MAX: u64 = 32 << 20;
const LOOK_SHARE: u64 = 8;
/// What is kept for less than this, in milliseconds, may be gone before the journal is full.
const SHORT_MS: i64 = 60_000;

/// Who takes in much.
pub(super) struct Early {
    /// Those that were appended to since the last look and have a piece to move.
    busy: RefCell<Vec<PartitionId>>,
    /// Counts the looks: a partition is in `busy` once.
    round: Cell<u64>,
    /// The last look has found the journal to fill fast.
    active: Cell<bool>,
    /// See V3; known when the task begins.
    piece_bytes: Cell<u64>,
}

impl Default for Early {
    fn default() -> Early {
        let (busy, piece_bytes) = (RefCell::default(), Cell::new(u64::MAX));
        Early { busy, round: Cell::new(1), active: Cell::new(false), piece_bytes }
    }
}

impl Early {
    /// Something was appended to `log`.
    pub(super) fn appended(&self, log: &mut PartitionLog) {
        if log.hot_bytes() >= self.piece_bytes.get() && log.is_first_in(self.round.get()) {
            self.busy.borrow_mut().push(log.id());
        }
    }

    pub(super) fn is_active(&self) -> bool {
        self.active.get()
    }

    fn take_busy(&self) -> Vec<PartitionId> {
        self.round.set(self.round.get() + 1);
        std::mem::take(&mut *self.busy.borrow_mut())
    }
}

/// Drains early until the journal ends.
pub async fn run<I: Io>(owner: Rc<Owner<I>>) {
    owner.early.piece_bytes.set(owner.small_bytes());
    let (capacity, tail) = owner.journal.capacity();
    let look_bytes = LOOK_BYTES_MAX.min(tail as u64 / LOOK_SHARE);
    let mut seen = (owner.io.now(), owner.journal.head());
    while let Some(head) = owner.journal.written_to(seen.1 + look_bytes).await {
        let busy = owner.early.take_busy();
        let is_fast = is_soon_full(seen, (owner.io.now(), head), capacity);
        seen = (owner.io.now(), head);
        owner.early.active.set(is_fast);
        if !is_fast || owner.is_hasty() {
            continue;
        }
        let outcome = loop {
            match owner.drain_early(&busy).await {
                // While that went on there was more.
                Ok(true) if !owner.is_hasty() => {}
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
    /// Moves what `busy` partitions have in the older half of the memory, a piece of each; false if
    /// there is none.
    async fn drain_early(&self, busy: &[PartitionId]) -> io::Result<bool> {
        let _turn = self.storage_turn.lock().await;
        let Some(before) = self.journal.older_half_of_tail() else { return Ok(false) };
        let (mut moved, mut files) = (Vec::new(), BTreeSet::new());
        self.store.set_pace(None);
        for id in busy {
            if self.is_ending() {
                return Err(io::Error::other("the node is stopping"));
            }
            let Some(log) = self.log(*id) else { continue };
            let Some(through) = self.early_through(&log, before) else { continue };
            moved.extend(self.fill_segments(&log, through, Share::new(), &mut files).await?);
        }
        if moved.is_empty() {
            return Ok(false);
        }
        tracing::debug!("{} partitions are drained early", moved.len());
        self.record(moved, files).await.map(|()| true)
    }

    /// The entry up to which a partition is drained early, if it is.
    fn early_through(&self, log: &Log, before: u64) -> Option<Offset> {
        let log = log.borrow();
        let image = self.image();
        let config = self.topic_config(image.topic_by_number(log.id().topic)?);
        let is_in_memory = self.journal.tail(log.first_extent()?.location).is_some();
        if !is_in_memory || is_short_lived(&config, self.journal.capacity().0) {
            return None;
        }
        log.piece_below(before, self.early.piece_bytes.get(), STRETCH_BYTES_MAX as u64)
    }
}
