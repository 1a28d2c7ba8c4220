//! What is done where the core's memory is in use. Readers have memory of their own. What is
//! drained shares the tail's, where recent records make room for it, the oldest first: they are in
//! the journal's files as well.
//!
//! Lives on: every core.
//!
//! Invariants
//!   Y1  A drain gets its memory as long as the tail has any, however that lies in the arena's
//!       chunks.
//!   Y2  A reader for whom there is none is answered after `PAUSE`, so that it does not come back
//!       at once to have the disk read for nothing, and the log tells of it every `SILENCE` at
//!       most.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use super::Owner;
use crate::base::ids::PartitionId;
use crate::base::time::Instant;
use crate::io::Io;

/// What the tail gives up at a time: some of what a drain writes in one piece.
const ROOM_BYTES: usize = 4 << 20;
const PAUSE: Duration = Duration::from_millis(20);
const SILENCE: Duration = Duration::from_secs(60);

/// When a lack of memory was told of.
#[derive(Default)]
pub(super) struct Shortage {
    told: Cell<Option<Instant>>,
}

impl<I: Io> Owner<I> {
    /// As `drain_oldest`, begun again while it finds no memory and the tail has some to give.
    pub(super) async fn drain_in_room(&self) -> io::Result<bool> {
        loop {
            match self.drain_oldest().await {
                Err(error) if is_shortage(&error) && self.journal.shorten_tail(ROOM_BYTES) => {
                    self.io.cede().await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Nothing of `partition` could be read for want of memory: readers wait, and the log tells.
    pub(super) async fn bear_shortage(&self, partition: PartitionId) {
        // What is held for readers who have not come yet.
        self.ahead.clear();
        let now = self.io.now();
        if self.shortage.told.get().is_none_or(|told| now - told >= SILENCE) {
            self.shortage.told.set(Some(now));
            tracing::warn!(
                "{} cannot be read for now: this core's memory for readers is in use; clients try \
                 it again, and a larger core.memory.bytes helps",
                self.name_of(partition)
            );
        }
        self.io.sleep(PAUSE).await;
    }
}

/// Whether it is the core's memory that an error is about.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::OutOfMemory
}
