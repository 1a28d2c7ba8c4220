//! What was sent, answered and seen in a run, and what must therefore be true of the log.
//!
//! Invariants, for a node that keeps its promise
//!   P1  An acknowledged batch stands at the offset that was answered, whole and once.
//!   P2  Offsets have no hole, and nothing stands in the log that was not sent to it.
//!   P3  A record that a consumer saw stays where it was seen; the end of the log never moves back.
//!   P4  An idempotent producer's records stand in the order in which they were sent, each once.
//!   P5  A committed group offset is the last one acknowledged, or one sent after it.
//!   P6  A deleted prefix stays deleted; a deleted topic stays gone, its successor is empty.
//!   P7  No producer id is given twice.

use std::collections::{BTreeMap, BTreeSet};

use super::member::Generations;

/// A record's value in words: who wrote it, and the how many-th of that producer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    pub producer: u32,
    pub number: u32,
}

macro_rules! met {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What runs have met, so that runs which meet nothing fail.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Met {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Met {
            pub fn add(&mut self, other: &Met) {
                $(self.$name += other.$name;)*
            }

            /// Something that never happened.
            pub fn missing(&self) -> Option<&'static str> {
                $(if self.$name == 0 { return Some(stringify!($name)); })*
                None
            }
        }
    };
}

met! {
    acknowledged,
    /// Batches whose answer never came.
    unanswered,
    /// Batches sent again that were in the log already.
    duplicates,
    /// Batches sent, not acknowledged, and not in the log at the end.
    vanished,
    refused,
    seen,
    power_losses,
    kills,
    clean_stops,
    faults,
    /// Lives on a disk that may become full.
    scarce_disks,
    /// Lives in which a data directory failed for good, and checks meanwhile that the others went
    /// on.
    dead_directories,
    hung_directories,
    others_checked,
    /// Starts that a fault of the disk prevented.
    failed_starts,
    commits,
    /// Moves to another number of shards that came to their end, and those that did not.
    moves,
    cut_moves,
    topics_deleted,
    prefixes_deleted,
    rebalances,
    /// Segment files that are there at the end, and journal files that were used again.
    segments,
    reused,
    packs,
    merged,
    /// Segment files that compaction wrote and that are there at the end, and offsets that it has
    /// made empty before readers' eyes.
    compacted,
    emptied,
    /// Tombstones that are gone themselves.
    tombstones_gone,
}

#[derive(Default)]
struct Partition {
    /// Where each record was seen.
    seen: BTreeMap<i64, Mark>,
    /// Sent to this partition.
    sent: BTreeSet<Mark>,
    /// Acknowledged: the records and the first one's offset.
    acknowledged: Vec<(i64, Vec<Mark>)>,
    end_seen: i64,
    /// A prefix whose deletion was asked for, and one whose deletion was confirmed.
    delete_asked: i64,
    deleted: i64,
}

/// The first and the next offset of a partition, as far as they are known: neither moves back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub start: i64,
    pub end: i64,
}

pub struct History {
    partitions: Vec<Partition>,
    idempotent: BTreeSet<u32>,
    producer_ids: BTreeSet<i64>,
    pub generations: Generations,
    pub met: Met,
    checks: u64,
}

impl History {
    pub fn new(partitions: i32) -> History {
        History {
            partitions: (0..partitions).map(|_| Partition::default()).collect(),
            idempotent: BTreeSet::new(),
            producer_ids: BTreeSet::new(),
            generations: Generations::default(),
            met: Met::default(),
            checks: 0,
        }
    }

    fn at(&mut self, index: i32) -> &mut Partition {
        let index = usize::try_from(index).expect("an index");
        &mut self.partitions[index]
    }

    pub fn producer_id(&mut self, producer: u32, id: i64) {
        self.idempotent.insert(producer);
        assert!(self.producer_ids.insert(id), "producer id {id} was given twice");
    }

    /// A number for a record of a check.
    pub fn next_check(&mut self) -> u64 {
        self.checks += 1;
        self.checks
    }

    pub fn sending(&mut self, index: i32, marks: &[Mark]) {
        self.at(index).sent.extend(marks);
    }

    pub fn acknowledged(&mut self, index: i32, offset: i64, marks: &[Mark]) {
        self.met.acknowledged += 1;
        let partition = self.at(index);
        partition.acknowledged.push((offset, marks.to_vec()));
        let next = offset + i64::try_from(marks.len()).expect("few");
        partition.end_seen = partition.end_seen.max(next);
    }

    /// A consumer got a record.
    pub fn saw(&mut self, index: i32, offset: i64, mark: Mark) {
        self.met.seen += 1;
        let partition = self.at(index);
        assert!(partition.sent.contains(&mark), "{mark:?} was never sent to partition {index}");
        let before = partition.seen.insert(offset, mark);
        assert!(
            before.is_none_or(|before| before == mark),
            "offset {offset} of partition {index} held {before:?} and holds {mark:?}"
        );
        partition.end_seen = partition.end_seen.max(offset + 1);
    }

    /// A consumer learned the bounds of what is readable; `known` is what was known when it asked.
    pub fn saw_bounds(&mut self, index: i32, (start, end): (i64, i64), known: Bounds) {
        assert!(end >= known.end, "partition {index} ends at {end}, it ended at {}", known.end);
        assert!(
            start >= known.start,
            "partition {index} starts at {start} and was deleted up to {}",
            known.start
        );
        let partition = self.at(index);
        assert!(start <= partition.delete_asked, "partition {index} starts at {start} by itself");
        partition.end_seen = partition.end_seen.max(end);
    }

    /// What must at least be true of a partition from here on.
    pub fn bounds(&mut self, index: i32) -> Bounds {
        let partition = self.at(index);
        Bounds { start: partition.deleted, end: partition.end_seen }
    }

    pub fn delete_asked_up_to(&mut self, index: i32) -> i64 {
        self.at(index).delete_asked
    }

    pub fn delete_asked(&mut self, index: i32, offset: i64) {
        let partition = self.at(index);
        partition.delete_asked = partition.delete_asked.max(offset);
    }

    pub fn prefix_deleted(&mut self, index: i32, offset: i64) {
        self.met.prefixes_deleted += 1;
        let partition = self.at(index);
        partition.deleted = partition.deleted.max(offset);
    }

    /// Compares a whole partition as the last reader found it with all that is known.
    pub fn judge(&mut self, index: i32, start: i64, found: &[(i64, Mark)]) {
        let idempotent = self.idempotent.clone();
        let partition = self.at(index);
        assert!(start >= partition.deleted && start <= partition.delete_asked);
        let offsets = found.iter().map(|(offset, _)| *offset);
        assert!(offsets.eq((start..).take(found.len())), "partition {index} has holes: {found:?}");
        let marks: BTreeSet<Mark> = found.iter().map(|(_, mark)| *mark).collect();
        assert_eq!(marks.len(), found.len(), "partition {index} holds a record twice");
        let foreign = marks.difference(&partition.sent).next();
        assert_eq!(foreign, None, "partition {index} holds what was not sent to it");
        let end = start + i64::try_from(found.len()).expect("few");
        assert!(end >= partition.end_seen, "partition {index} lost its end {}", partition.end_seen);
        let held: BTreeMap<i64, Mark> = found.iter().copied().collect();
        for (offset, marks) in &partition.acknowledged {
            for (at, mark) in (*offset..).zip(marks).filter(|(at, _)| *at >= start) {
                let found = held.get(&at);
                assert_eq!(found, Some(mark), "offset {at} of partition {index}");
            }
        }
        for (at, mark) in partition.seen.range(start..) {
            assert_eq!(held.get(at), Some(mark), "offset {at} of partition {index} was seen");
        }
        let mut last = BTreeMap::new();
        for (_, mark) in found.iter().filter(|(_, mark)| idempotent.contains(&mark.producer)) {
            let before = last.insert(mark.producer, mark.number);
            assert!(before < Some(mark.number), "{mark:?} stands after {before:?}");
        }
        let deleted = start > 0;
        let vanished = if deleted { 0 } else { partition.sent.difference(&marks).count() };
        self.met.vanished += u64::try_from(vanished).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(number: u32) -> Mark {
        Mark { producer: 0, number }
    }

    /// An idempotent producer sent records 0 to 5 in batches of two to the one partition; the first
    /// two batches were acknowledged, a consumer saw one record of the last.
    fn history() -> History {
        let mut history = History::new(1);
        history.producer_id(0, 7);
        for first in [0, 2, 4] {
            history.sending(0, &[mark(first), mark(first + 1)]);
        }
        history.acknowledged(0, 0, &[mark(0), mark(1)]);
        history.acknowledged(0, 2, &[mark(2), mark(3)]);
        history.saw(0, 4, mark(4));
        history
    }

    fn is_refused(judge: impl FnOnce(&mut History) + std::panic::UnwindSafe) -> bool {
        std::panic::catch_unwind(|| judge(&mut history())).is_err()
    }

    #[test]
    fn the_judge_takes_what_was_promised_and_nothing_else() {
        let cases: &[(&[u32], bool, &str)] = &[
            (&[0, 1, 2, 3, 4, 5], true, "everything"),
            (&[0, 1, 2, 3, 4], true, "all that is known, and not the rest"),
            (&[0, 1, 2, 3], false, "without what was seen"),
            (&[0, 1], false, "without an acknowledged end"),
            (&[0, 1, 4, 5], false, "without an acknowledged middle"),
            (&[0, 1, 2, 3, 4, 5, 5], false, "with one twice"),
            (&[0, 1, 2, 3, 4, 2], false, "with one again"),
            (&[2, 3, 0, 1, 4, 5], false, "in another order"),
            (&[0, 1, 2, 3, 4, 9], false, "with one that nobody sent"),
        ];
        for (numbers, good, what) in cases {
            let found: Vec<_> = (0..).zip(numbers.iter().copied().map(mark)).collect();
            assert_eq!(is_refused(|history| history.judge(0, 0, &found)), !good, "{what}");
        }
        let behind_a_hole: Vec<_> = (0..5).map(|at| (i64::from(at) * 2, mark(at))).collect();
        assert!(is_refused(|history| history.judge(0, 0, &behind_a_hole)));
        let cut: Vec<_> = (2..5).map(|at| (i64::from(at), mark(at))).collect();
        assert!(is_refused(|history| history.judge(0, 2, &cut)), "nobody asked for it");
    }

    #[test]
    fn nothing_moves_comes_back_or_is_given_twice() {
        assert!(is_refused(|history| history.saw(0, 4, mark(5))));
        assert!(is_refused(|history| history.producer_id(2, 7)));
        let known = Bounds { start: 2, end: 5 };
        assert!(is_refused(|history| history.saw_bounds(0, (2, 4), known)));
        assert!(is_refused(|history| history.saw_bounds(0, (0, 5), known)));
        let mut history = history();
        history.delete_asked(0, 2);
        history.saw_bounds(0, (2, 5), known);
        assert!(is_refused(move |history| history.saw_bounds(0, (2, 5), known)));
    }
}
