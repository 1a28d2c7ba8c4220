//! One partition's state in memory: its offsets, where its batches lie, its producers, and who
//! waits for more.
//!
//!     log start        high watermark        next offset
//!        | settled, served  |  not settled yet   |
//!        |==== extent ====|==== extent ====|= extent =|      one extent an appended entry
//!
//! Lives on: the partition's core. A partition that was never written to has none of this.
//!
//! Invariants
//!   L1  log start <= high watermark <= next offset.
//!   L2  Extents are dense: each begins where the one before it ends, the last ends at the next
//!       offset; only those wholly below the log start are dropped.
//!   L3  The high watermark is always the end of an extent or the log start, and never moves back.
//!   L4  Epochs never go back, and each begins at or after the one before it.

use std::collections::VecDeque;
use std::sync::Arc;

use super::watch::FetchWatch;
use crate::base::ids::{Epoch, Offset, PartitionId};
use crate::journal::Location;
use crate::producer::Producers;

/// Where one appended entry lies: whole batches, back to back, in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub base: Offset,
    /// One past the last record's offset.
    pub next: Offset,
    pub location: Location,
    /// The greatest timestamp of its batches, in Unix milliseconds.
    pub max_timestamp: i64,
}

/// The first offset that a leader epoch wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochStart {
    pub epoch: Epoch,
    pub start: Offset,
}

/// See the module's documentation.
pub struct PartitionLog {
    id: PartitionId,
    log_start: Offset,
    high_watermark: Offset,
    next: Offset,
    bytes: u64,
    extents: VecDeque<Extent>,
    epochs: Vec<EpochStart>,
    watches: Vec<Arc<FetchWatch>>,
    pub producers: Producers,
}

impl PartitionLog {
    pub fn new(id: PartitionId) -> PartitionLog {
        PartitionLog {
            id,
            log_start: 0,
            high_watermark: 0,
            next: 0,
            bytes: 0,
            extents: VecDeque::new(),
            epochs: Vec::new(),
            watches: Vec::new(),
            producers: Producers::default(),
        }
    }

    pub fn id(&self) -> PartitionId {
        self.id
    }

    pub fn log_start(&self) -> Offset {
        self.log_start
    }

    pub fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// The offset that the next record gets.
    pub fn next(&self) -> Offset {
        self.next
    }

    /// Bytes of all batches that are not trimmed.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes an entry that the journal has accepted.
    pub fn appended(&mut self, extent: Extent, epoch: Epoch) {
        assert_eq!(extent.base, self.next, "offsets are dense in {}", self.id);
        assert!(extent.next > extent.base, "an entry holds at least one record");
        if self.epochs.last().is_none_or(|last| last.epoch < epoch) {
            self.epochs.push(EpochStart { epoch, start: extent.base });
        }
        self.next = extent.next;
        self.bytes += u64::from(extent.location.length);
        self.extents.push_back(extent);
    }

    /// Everything below `next` is settled: it may be served, and waiting fetches hear of it.
    pub fn settled(&mut self, next: Offset, bytes: u32) {
        assert!(next <= self.next, "only appended records settle");
        self.high_watermark = self.high_watermark.max(next);
        self.watches.retain(|watch| watch.add(bytes));
    }

    /// Raises the log start (DeleteRecords) and drops what lies wholly below it.
    pub fn trim(&mut self, log_start: Offset) {
        assert!(log_start <= self.high_watermark, "only settled records are deleted");
        self.log_start = self.log_start.max(log_start);
        while let Some(first) = self.extents.front() {
            if first.next > self.log_start {
                break;
            }
            self.bytes -= u64::from(first.location.length);
            self.extents.pop_front();
        }
        let keep = self.epochs.partition_point(|epoch| epoch.start <= self.log_start);
        self.epochs.drain(..keep.saturating_sub(1));
    }

    /// Recovery found this log start in the journal; records follow or are there already.
    pub fn restore_log_start(&mut self, log_start: Offset) {
        self.next = self.next.max(log_start);
        self.high_watermark = self.next;
        self.trim(log_start);
    }

    /// The settled extents from the one that holds `from` on, until they hold `bytes_max`; at
    /// least one if there is any.
    pub fn extents_from(&self, from: Offset, bytes_max: usize) -> Vec<Extent> {
        let first = self.extents.partition_point(|extent| extent.next <= from);
        let mut left = bytes_max;
        let mut found = Vec::new();
        for extent in self.extents.range(first..) {
            if extent.next > self.high_watermark || (left == 0 && !found.is_empty()) {
                break;
            }
            left = left.saturating_sub(extent.location.length as usize);
            found.push(*extent);
        }
        found
    }

    /// Bytes a fetch at `from` could get now, counted up to `enough`.
    pub fn bytes_available(&self, from: Offset, enough: usize) -> usize {
        self.extents_from(from, enough).iter().map(|extent| extent.location.length as usize).sum()
    }

    /// The first settled extent whose greatest timestamp is at least `timestamp`.
    pub fn extent_at_timestamp(&self, timestamp: i64) -> Option<Extent> {
        self.settled_extents().find(|extent| extent.max_timestamp >= timestamp).copied()
    }

    /// The first of the settled extents that have the greatest timestamp of all.
    pub fn extent_of_max_timestamp(&self) -> Option<Extent> {
        let mut best: Option<&Extent> = None;
        for extent in self.settled_extents() {
            if best.is_none_or(|best| extent.max_timestamp > best.max_timestamp) {
                best = Some(extent);
            }
        }
        best.copied()
    }

    fn settled_extents(&self) -> impl Iterator<Item = &Extent> {
        self.extents.iter().take_while(|extent| extent.next <= self.high_watermark)
    }

    /// The epoch of the last record, if there is one.
    pub fn last_epoch(&self) -> Option<Epoch> {
        self.epochs.last().map(|last| last.epoch)
    }

    /// The greatest epoch at or below `epoch` and the offset at which it ended (KIP-101);
    /// `current` is the epoch of the leader, whose end is the next offset. Of an epoch that has not
    /// begun nothing is known.
    pub fn epoch_end(&self, epoch: Epoch, current: Epoch) -> Option<(Epoch, Offset)> {
        if epoch == current {
            return Some((epoch, self.high_watermark));
        }
        if epoch > current {
            return None;
        }
        let after = self.epochs.partition_point(|start| start.epoch <= epoch);
        let found = self.epochs.get(after.checked_sub(1)?)?;
        let end = self.epochs.get(after).map_or(self.high_watermark, |next| next.start);
        Some((found.epoch, end))
    }

    /// Tells `watch` of everything that settles from here on.
    pub fn watch(&mut self, watch: Arc<FetchWatch>) {
        self.watches.retain(|watch| !watch.is_done());
        self.watches.push(watch);
    }

    /// Ends every wait: the partition goes away.
    pub fn close(&mut self) {
        for watch in self.watches.drain(..) {
            watch.fire();
        }
    }

    /// The lowest journal address that this partition still needs.
    pub fn lowest_address(&self) -> Option<u64> {
        self.extents.front().map(|extent| extent.location.address)
    }

    /// Panics unless L1 to L4 hold.
    pub fn check(&self) {
        assert!(self.log_start <= self.high_watermark && self.high_watermark <= self.next);
        for (one, two) in self.extents.iter().zip(self.extents.iter().skip(1)) {
            assert_eq!(one.next, two.base);
        }
        if let Some(last) = self.extents.back() {
            assert_eq!(last.next, self.next);
        }
        if let Some(first) = self.extents.front() {
            assert!(first.next > self.log_start);
        }
        for (one, two) in self.epochs.iter().zip(self.epochs.iter().skip(1)) {
            assert!(one.epoch < two.epoch && one.start <= two.start);
        }
    }
}
