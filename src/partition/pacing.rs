//! How fast the journal is drained: whatever a drain writes, appenders wait for, and appenders wait
//! for the drain where the journal is full.
//!
//!     | 1/2 of the journal | as fast as it grows, and half as much again | 5/8: twice that |
//!     | 3/4: as fast as may be | 7/8: no larger batch |
//!
//! Lives on: every core.

use std::time::Duration;

use super::Owner;
use crate::base::time::Instant;
use crate::io::Io;

/// A journal filled to more than this many eighths waits for no larger batch.
const PRESSING_EIGHTHS: u64 = 7;
/// A journal filled to more than this many eighths is drained as fast as may be.
const HASTE_EIGHTHS: u64 = 6;
/// Otherwise a drain writes as many times the bytes that the journal takes meanwhile, twice as many
/// from so many eighths on (small partitions' are written twice), and so many bytes a second more.
const PACE_FACTOR: f64 = 1.5;
const TWICE_EIGHTHS: u64 = 5;
const PACE_BYTES: f64 = 4e6;
/// How often the pace is set.
const PACE_INTERVAL: Duration = Duration::from_millis(500);

/// How fast the journal grows, to drain it as fast.
pub(super) struct Growth {
    at: Instant,
    head: u64,
}

impl Growth {
    pub(super) fn new(at: Instant, head: u64) -> Growth {
        Growth { at, head }
    }
}

impl<I: Io> Owner<I> {
    /// Has the drain take as much time as there is: whatever it writes, others wait for.
    pub(super) fn set_pace(&self) {
        let (used, most) = self.journal.fill();
        if self.is_hasty() {
            return self.store.set_pace(None);
        }
        let mut growth = self.growth.borrow_mut();
        let (now, head) = (self.io.now(), self.journal.head());
        let elapsed = now - growth.at;
        if elapsed < PACE_INTERVAL {
            return;
        }
        let times = if used * 8 > most * TWICE_EIGHTHS { 2.0 } else { 1.0 };
        let grown = (head - growth.head) as f64 / elapsed.as_secs_f64();
        *growth = Growth { at: now, head };
        self.store.set_pace(Some(grown * PACE_FACTOR * times + PACE_BYTES));
    }

    /// Whether the journal is to be drained as fast as may be.
    fn is_hasty(&self) -> bool {
        let (used, most) = self.journal.fill();
        used * 8 > most * HASTE_EIGHTHS
    }

    /// Whether appenders will soon wait for the batch to end.
    pub(super) fn is_pressed(&self) -> bool {
        let (used, most) = self.journal.fill();
        used * 8 > most * PRESSING_EIGHTHS
    }
}
