//! The reserve of a file system: bytes that records leave free, so that there is room to drain, to
//! compact, and to record what is deleted.
//!
//!     | used ...                    | free |  storage.free.bytes.min  |
//!                                   records ^ stop here, and go on by themselves
//!
//! Lives on: every core, one task, which looks only while something is written or space is short.
//!
//! Invariants
//!   E1  Below `storage.free.bytes.min` no client's record is admitted; the groups' records are,
//!       which are few, and without which nobody could join and read.
//!   E2  Between two looks no more is admitted than was free beyond the bound, counted twice: for
//!       the journal, and for the segments.
//!   E3  A shortage ends only with a little more than that: records do not come and go with every
//!       look.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::Owner;
use crate::base::ids::PartitionId;
use crate::config::BrokerConfig;
use crate::io::{Io, Space};
use crate::journal::Position;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// The bound that follows from the size of the file system: this share of it ...
const TOTAL_SHARE: u64 = 10;
/// ... and no more than this. Draining takes a journal file's bytes before it gives them back.
const BYTES_MAX: u64 = 1 << 30;
/// How often a record may be written before old records make room.
const COPIES: u64 = 2;
/// The share of the bound that must be free beyond it before a shortage is over.
const OVER_SHARE: u64 = 16;

/// See the module's documentation.
pub(super) struct Reserve {
    /// `storage.free.bytes.min`; negative where it follows from the file system.
    setting: i64,
    /// What is free and what should be, while that is too little.
    short: Cell<Option<Shortage>>,
    /// Bytes that may still be written before the next look: this core's share.
    credit: Cell<u64>,
    shards: u64,
    cannot_look: Cell<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shortage {
    free: u64,
    bound: u64,
}

impl Reserve {
    pub(super) fn new(config: &BrokerConfig, shards: u16) -> Reserve {
        Reserve {
            setting: config.int("storage.free.bytes.min"),
            short: Cell::new(None),
            credit: Cell::new(0),
            shards: u64::from(shards),
            cannot_look: Cell::new(false),
        }
    }

    fn bound(&self, space: Space) -> u64 {
        let follows = (space.total / TOTAL_SHARE).min(BYTES_MAX);
        u64::try_from(self.setting).unwrap_or(follows)
    }

    fn judge(&self, space: Space) -> Option<Shortage> {
        let bound = self.bound(space);
        let wanted = match self.short.get() {
            Some(_) => bound.saturating_add(bound / OVER_SHARE),
            None => bound,
        };
        self.credit.set(space.free.saturating_sub(bound) / self.shards);
        (space.free < wanted).then_some(Shortage { free: space.free, bound })
    }

    /// Whether so many bytes may be written without a look; they count as written then.
    fn spend(&self, bytes: usize) -> bool {
        let left = self.credit.get().checked_sub(COPIES * bytes as u64);
        self.credit.set(left.unwrap_or(0));
        left.is_some()
    }
}

/// Looks while something is written, and while space is short, until the core ends.
pub(super) async fn run<I: Io>(owner: Rc<Owner<I>>) {
    let mut seen = Position(0);
    while !owner.is_ending() {
        owner.look_at_space();
        if owner.reserve.short.get().is_none() {
            match owner.journal.durable_after(seen).await {
                Ok(durable) => seen = durable,
                Err(_) => return,
            }
        }
        owner.io.sleep(PAUSE).await;
    }
}

impl<I: Io> Owner<I> {
    pub(super) fn look_at_space(&self) {
        if self.is_offline() {
            return;
        }
        let directory = self.journal.directory();
        let space = match self.io.space(directory) {
            Ok(space) => space,
            Err(error) => {
                if !self.reserve.cannot_look.replace(true) {
                    let directory = directory.display();
                    tracing::warn!("the free space of {directory} is not known: {error}");
                }
                return;
            }
        };
        let found = self.reserve.judge(space);
        let before = self.reserve.short.replace(found);
        match (before, found) {
            (None, Some(shortage)) => {
                tracing::error!("no more records are taken: {}", self.words(shortage));
            }
            (Some(_), None) => tracing::info!("there is space again, and records are taken"),
            _ => {}
        }
        if before.is_some() != found.is_some() {
            self.journal.set_short(found.is_some());
        }
    }

    /// Why no record of so many bytes is taken in this partition, if none is.
    pub(super) fn short_of_space(&self, id: PartitionId, bytes: usize) -> Option<String> {
        if !self.reserve.spend(bytes) {
            self.look_at_space();
        }
        let shortage = self.reserve.short.get()?;
        let image = self.image();
        let is_internal = image.topic_by_number(id.topic).is_some_and(|topic| topic.is_internal());
        (!is_internal).then(|| self.words(shortage))
    }

    fn words(&self, Shortage { free, bound }: Shortage) -> String {
        format!(
            "the file system of {} has {free} bytes free, and storage.free.bytes.min keeps \
             {bound}: delete topics or records, or free some space; reads go on, and writes resume \
             by themselves",
            self.journal.directory().display()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reserve(setting: i64) -> Reserve {
        let config = BrokerConfig::default();
        Reserve { setting, ..Reserve::new(&config, 2) }
    }

    #[test]
    fn the_bound_follows_from_the_file_system_unless_it_is_given() {
        let total = 1 << 40;
        assert_eq!(reserve(-1).bound(Space { free: 0, total }), 1 << 30);
        assert_eq!(reserve(-1).bound(Space { free: 0, total: 200 << 20 }), 20 << 20);
        assert_eq!(reserve(77).bound(Space { free: 0, total }), 77);
        let unlimited = Space { free: u64::MAX, total: 0 };
        assert_eq!(reserve(-1).judge(unlimited), None);
        assert_eq!(reserve(0).judge(Space { free: 0, total }), None, "switched off");
    }

    #[test]
    fn a_shortage_begins_below_the_bound_and_ends_beyond_it() {
        let reserve = reserve(1600);
        let mut look = |free| {
            let found = reserve.judge(Space { free, total: 1 << 20 });
            reserve.short.set(found);
            found.is_some()
        };
        let seen = [2000, 1600, 1599, 1600, 1699, 1700, 1600].map(&mut look);
        assert_eq!(seen, [false, false, true, true, true, false, false]);
    }

    #[test]
    fn a_core_spends_its_share_of_what_is_free_beyond_the_bound() {
        let reserve = reserve(1000);
        assert_eq!(reserve.judge(Space { free: 5000, total: 1 << 20 }), None);
        assert!(reserve.spend(600) && reserve.spend(400), "2000 bytes, each written twice");
        assert!(!reserve.spend(1));
    }
}
