//! What the entries of each file mention: a file of which everything has moved need not be read
//! again to know that.
//!
//! Invariants
//!   N1  A file's mentions are given only if they are all there is in it: those of the file that
//!       was being written when the journal was opened are not known, unless it was empty, nor are
//!       those of one that mentions more than `PARTITIONS_MAX`.

use std::collections::{BTreeMap, HashSet};

use rustc_hash::FxBuildHasher;

use super::layout::{Entry, EntryKind};
use crate::base::ids::PartitionId;

/// Of a file that mentions more it is not kept which.
const PARTITIONS_MAX: usize = 1 << 16;

/// Everything that a file's entries are about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mentioned {
    pub partitions: Vec<PartitionId>,
    pub has_metadata: bool,
}

/// See the module's documentation.
#[derive(Default)]
pub struct Mentions {
    /// The file being written, what is known of it, and whether that is all.
    current: Option<(u64, Seen)>,
    /// Nothing is in the journal but what is mentioned.
    is_new: bool,
    left: BTreeMap<u64, Mentioned>,
}

#[derive(Default)]
struct Seen {
    partitions: HashSet<PartitionId, FxBuildHasher>,
    last: Option<PartitionId>,
    has_metadata: bool,
    is_all: bool,
}

impl Mentions {
    /// The journal is empty.
    pub fn begin_anew(&mut self) {
        self.is_new = true;
    }

    /// An entry is placed in file `number`.
    pub fn mention(&mut self, number: u64, entry: &Entry) {
        if self.current.as_ref().is_none_or(|(current, _)| *current != number) {
            // Nothing is in a file that is begun after another one.
            let is_all = self.is_new || self.current.is_some();
            let seen = Seen { is_all, ..Seen::default() };
            if let Some((left, seen)) = self.current.replace((number, seen))
                && let Some(mentioned) = seen.all()
            {
                self.left.insert(left, mentioned);
            }
        }
        let Some((_, seen)) = &mut self.current else { return };
        if entry.kind == EntryKind::Metadata {
            seen.has_metadata = true;
        } else if seen.is_all && seen.last != Some(entry.partition) {
            seen.last = Some(entry.partition);
            seen.partitions.insert(entry.partition);
            if seen.partitions.len() > PARTITIONS_MAX {
                *seen = Seen::default();
            }
        }
    }

    /// What a file that the head has left mentions, if that is known.
    pub fn of(&self, number: u64) -> Option<Mentioned> {
        self.left.get(&number).cloned()
    }

    /// Files below `number` are used again.
    pub fn forget_below(&mut self, number: u64) {
        self.left = self.left.split_off(&number);
    }
}

impl Seen {
    fn all(self) -> Option<Mentioned> {
        let Seen { partitions, has_metadata, is_all, .. } = self;
        let mut partitions: Vec<PartitionId> = partitions.into_iter().collect();
        partitions.sort_unstable();
        is_all.then_some(Mentioned { partitions, has_metadata })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::TopicNumber;
    use crate::journal::NO_PARTITION;

    fn partition(index: u32) -> PartitionId {
        PartitionId { topic: TopicNumber(1), index }
    }

    fn entry(kind: EntryKind, partition: PartitionId) -> Entry {
        Entry { kind, partition, base_offset: 0, epoch: 0 }
    }

    fn after(entries: &[(u64, EntryKind, PartitionId)]) -> Mentions {
        let mut mentions = Mentions::default();
        for (number, kind, partition) in entries {
            mentions.mention(*number, &entry(*kind, *partition));
        }
        mentions
    }

    #[test]
    fn a_file_that_was_begun_and_left_is_known() {
        use EntryKind::{Batches, Checkpoint, Metadata};
        let mentions = after(&[
            (7, Batches, partition(0)),
            (8, Batches, partition(2)),
            (8, Checkpoint, partition(1)),
            (8, Batches, partition(2)),
            (9, Metadata, NO_PARTITION),
            (10, Batches, partition(3)),
        ]);
        assert_eq!(mentions.of(7), None, "it may hold what was there at the start");
        let partitions = vec![partition(1), partition(2)];
        assert_eq!(mentions.of(8), Some(Mentioned { partitions, has_metadata: false }));
        assert_eq!(mentions.of(9), Some(Mentioned { partitions: vec![], has_metadata: true }));
        assert_eq!(mentions.of(10), None, "it is being written");
    }

    #[test]
    fn the_first_file_of_a_new_journal_is_known() {
        let mut mentions = Mentions::default();
        mentions.begin_anew();
        for number in [0, 1] {
            mentions.mention(number, &entry(EntryKind::Batches, partition(4)));
        }
        assert_eq!(mentions.of(0).map(|known| known.partitions), Some(vec![partition(4)]));
    }

    #[test]
    fn a_file_of_too_many_partitions_is_not_known() {
        let mut mentions = after(&[(1, EntryKind::Metadata, NO_PARTITION)]);
        let most = u32::try_from(PARTITIONS_MAX).expect("small");
        for (number, partitions) in [(2, most), (3, most + 1), (4, most + 5), (5, 1)] {
            for index in 0..partitions {
                mentions.mention(number, &entry(EntryKind::Batches, partition(index)));
            }
        }
        let known = |number| mentions.of(number).map(|known| known.partitions.len());
        assert_eq!([2, 3, 4].map(known), [Some(PARTITIONS_MAX), None, None]);
    }

    #[test]
    fn files_used_again_are_forgotten() {
        let mut mentions = after(&[1, 2, 3, 4].map(|n| (n, EntryKind::Batches, partition(0))));
        mentions.forget_below(3);
        assert_eq!((mentions.of(2), mentions.of(3).is_some()), (None, true));
    }
}
