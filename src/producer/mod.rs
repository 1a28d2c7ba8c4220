//! Idempotent producers of one partition: which batches are already in the log (KIP-98, KIP-360).
//!
//! For each producer id the last five batches are known, as many as a client may have in flight.
//!
//! Lives on: the partition's core. A partition without idempotent producers holds an
//! empty map, which allocates nothing.
//!
//! Invariants
//!   P1  A batch that is in the window is a duplicate and is answered with its first offset.
//!   P2  A new batch continues the newest one's sequence; after the largest `i32` comes 0.
//!   P3  An epoch never goes back; a new one begins at sequence 0.
//!   P4  At most `PRODUCERS_MAX` producers are remembered; those silent for longest go first, and
//!       never the one that was just heard of.
//!   P5  A producer of which nothing is known begins with the first of its batches that was not
//!       refused for want of room: those in flight behind such a one do not overtake it.

use std::collections::BTreeMap;

use crate::base::ids::Offset;

/// Batches remembered per producer; Kafka's clients have at most five requests in flight.
pub const WINDOW: usize = 5;
/// Producers remembered per partition. Each checkpoint of the partition holds all of them, so they
/// must fit a small journal file many times; and a batch that is sent again comes within minutes,
/// while only a producer that is silent for longer than thousands of others is forgotten.
pub const PRODUCERS_MAX: usize = 4096;
/// Where one too many is remembered, this part of them is forgotten at once: looking for the most
/// silent costs a walk through all of them, which those that begin until the next one share.
const FORGOTTEN_PART: usize = 8;
/// Unknown producers whose refused beginning is remembered.
const AWAITED_MAX: usize = 1000;

/// What a batch claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    pub producer_id: i64,
    pub epoch: i16,
    pub first_sequence: i32,
    pub last_sequence: i32,
}

/// What is to be done with a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Append,
    /// It is in the log already, at this offset.
    Duplicate {
        base_offset: Offset,
    },
    /// It is in the log already, too long ago to say where.
    OldDuplicate,
    /// A batch before it is missing.
    OutOfOrder,
    /// A newer instance of the producer has taken over.
    Fenced,
}

/// A batch in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Batch {
    first_sequence: i32,
    last_sequence: i32,
    base_offset: Offset,
}

#[derive(Clone, Debug)]
struct Producer {
    epoch: i16,
    /// The oldest first; never empty.
    window: Vec<Batch>,
    /// When it was last heard of, in Unix milliseconds.
    heard: i64,
}

/// A producer's state as it is checkpointed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    pub producer_id: i64,
    pub epoch: i16,
    pub heard: i64,
    /// First sequence, last sequence, base offset; the oldest first.
    pub batches: Vec<(i32, i32, Offset)>,
}

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub struct Producers {
    known: BTreeMap<i64, Producer>,
    /// Unknown producers whose first batch found no room: its epoch and sequence. Hardly ever
    /// there, so it takes no more than a pointer.
    #[expect(clippy::box_collection, reason = "there may be a million partitions")]
    awaited: Option<Box<BTreeMap<i64, (i16, i32)>>>,
}

impl Producers {
    /// Judges a claim; changes nothing.
    pub fn judge(&self, claim: &Claim) -> Verdict {
        let Some(producer) = self.known.get(&claim.producer_id) else {
            // Nothing is known of it, perhaps because it was forgotten: whatever it sends first is
            // its beginning.
            let awaited = self.awaited.as_ref().and_then(|all| all.get(&claim.producer_id));
            let is_it = |(epoch, first): &(i16, i32)| {
                claim.epoch != *epoch || claim.first_sequence == *first
            };
            return if awaited.is_none_or(is_it) { Verdict::Append } else { Verdict::OutOfOrder };
        };
        if claim.epoch < producer.epoch {
            return Verdict::Fenced;
        }
        if claim.epoch > producer.epoch {
            return if claim.first_sequence == 0 { Verdict::Append } else { Verdict::OutOfOrder };
        }
        producer.judge(claim)
    }

    /// Remembers a batch that would have been appended, had there been room.
    pub fn refuse(&mut self, claim: &Claim) {
        if self.known.contains_key(&claim.producer_id) || self.judge(claim) != Verdict::Append {
            return;
        }
        let awaited = self.awaited.get_or_insert_default();
        awaited.insert(claim.producer_id, (claim.epoch, claim.first_sequence));
        if awaited.len() > AWAITED_MAX {
            awaited.pop_first();
        }
    }

    /// Takes a batch that is in the log; also at recovery.
    pub fn record(&mut self, claim: &Claim, base_offset: Offset, heard: i64) {
        self.awaited.take_if(|all| {
            all.remove(&claim.producer_id);
            all.is_empty()
        });
        let batch = Batch {
            first_sequence: claim.first_sequence,
            last_sequence: claim.last_sequence,
            base_offset,
        };
        let producer = self.known.entry(claim.producer_id).or_insert_with(|| Producer {
            epoch: claim.epoch,
            window: Vec::with_capacity(WINDOW),
            heard,
        });
        if claim.epoch > producer.epoch {
            producer.epoch = claim.epoch;
            producer.window.clear();
        }
        if producer.window.len() == WINDOW {
            producer.window.remove(0);
        }
        producer.window.push(batch);
        producer.heard = producer.heard.max(heard);
        self.keep(PRODUCERS_MAX, Some(claim.producer_id));
    }

    /// Forgets the most silent producers, but not `spared`, where there are more than `most`.
    pub fn keep(&mut self, most: usize, spared: Option<i64>) {
        let excess = self.known.len().saturating_sub(most);
        if excess == 0 {
            return;
        }
        let others = self.known.iter().filter(|(id, _)| Some(**id) != spared);
        let mut others: Vec<(i64, i64)> = others.map(|(id, known)| (known.heard, *id)).collect();
        let count = excess.max(most / FORGOTTEN_PART).min(others.len());
        let Some(last) = count.checked_sub(1) else { return };
        let last = *others.select_nth_unstable(last).1;
        self.known.retain(|id, known| Some(*id) == spared || (known.heard, *id) > last);
    }

    /// Forgets producers that were silent since before `heard_before`.
    pub fn expire(&mut self, heard_before: i64) {
        self.known.retain(|_, producer| producer.heard >= heard_before);
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Producers that are remembered.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// When the last one was heard of.
    pub fn last_heard(&self) -> Option<i64> {
        self.known.values().map(|producer| producer.heard).max()
    }

    /// The state of every producer, by id.
    pub fn remembered(&self) -> Vec<Remembered> {
        self.known
            .iter()
            .map(|(producer_id, producer)| Remembered {
                producer_id: *producer_id,
                epoch: producer.epoch,
                heard: producer.heard,
                batches: producer
                    .window
                    .iter()
                    .map(|batch| (batch.first_sequence, batch.last_sequence, batch.base_offset))
                    .collect(),
            })
            .collect()
    }

    /// The base offset of each producer's last batch, by id.
    pub fn last_batches(&self) -> BTreeMap<i64, Offset> {
        let last = self.known.iter().map(|(id, producer)| (*id, producer.window.last()));
        last.filter_map(|(id, batch)| Some((id, batch?.base_offset))).collect()
    }

    /// Takes back what `remembered` gave.
    pub fn restore(&mut self, remembered: &Remembered) {
        for (first_sequence, last_sequence, base_offset) in &remembered.batches {
            let claim = Claim {
                producer_id: remembered.producer_id,
                epoch: remembered.epoch,
                first_sequence: *first_sequence,
                last_sequence: *last_sequence,
            };
            self.record(&claim, *base_offset, remembered.heard);
        }
    }

    /// Panics unless P1 to P4 hold.
    pub fn check(&self) {
        assert!(self.known.len() <= PRODUCERS_MAX, "P4");
        for producer in self.known.values() {
            assert!((1..=WINDOW).contains(&producer.window.len()));
            for (one, two) in producer.window.iter().zip(producer.window.iter().skip(1)) {
                assert_eq!(successor(one.last_sequence), two.first_sequence, "P2");
                assert!(one.base_offset < two.base_offset);
            }
        }
    }
}

impl Producer {
    fn judge(&self, claim: &Claim) -> Verdict {
        let is_same = |batch: &&Batch| {
            batch.first_sequence == claim.first_sequence
                && batch.last_sequence == claim.last_sequence
        };
        if let Some(batch) = self.window.iter().find(is_same) {
            return Verdict::Duplicate { base_offset: batch.base_offset };
        }
        let Some(newest) = self.window.last() else { return Verdict::Append };
        if successor(newest.last_sequence) == claim.first_sequence {
            return Verdict::Append;
        }
        // Behind the newest as a whole, as distances wrap: sent long ago and kept since then.
        let is_behind = |sequence: i32| {
            let ahead = i64::from(sequence) - i64::from(newest.last_sequence);
            if ahead <= 0 { -ahead < SEQUENCES / 2 } else { ahead > SEQUENCES / 2 }
        };
        let is_kept = is_behind(claim.first_sequence) && is_behind(claim.last_sequence);
        if is_kept { Verdict::OldDuplicate } else { Verdict::OutOfOrder }
    }
}

/// Sequence numbers are the non-negative `i32`s.
const SEQUENCES: i64 = 1 << 31;

fn successor(sequence: i32) -> i32 {
    if sequence == i32::MAX { 0 } else { sequence + 1 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim(epoch: i16, first_sequence: i32, count: i32) -> Claim {
        let last = (i64::from(first_sequence) + i64::from(count) - 1) % SEQUENCES;
        let last_sequence = i32::try_from(last).expect("wrapped");
        Claim { producer_id: 9, epoch, first_sequence, last_sequence }
    }

    #[test]
    fn a_resent_batch_is_a_duplicate_until_it_leaves_the_window() {
        let mut producers = Producers::default();
        for number in 0..6 {
            let claim = claim(0, number * 10, 10);
            assert_eq!(producers.judge(&claim), Verdict::Append);
            producers.record(&claim, i64::from(number) * 10, 0);
            producers.check();
        }
        assert_eq!(producers.judge(&claim(0, 10, 10)), Verdict::Duplicate { base_offset: 10 });
        assert_eq!(producers.judge(&claim(0, 0, 10)), Verdict::OldDuplicate);
        assert_eq!(producers.judge(&claim(0, 70, 1)), Verdict::OutOfOrder);
        let half_new = claim(0, 55, 10);
        assert_eq!(producers.judge(&half_new), Verdict::OutOfOrder, "60 to 64 are not kept");
        assert_eq!(producers.judge(&claim(0, 60, 1)), Verdict::Append);
    }

    #[test]
    fn a_new_epoch_begins_at_zero_and_fences_the_old_one() {
        let mut producers = Producers::default();
        producers.record(&claim(3, 0, 5), 0, 0);
        assert_eq!(producers.judge(&claim(4, 5, 1)), Verdict::OutOfOrder);
        assert_eq!(producers.judge(&claim(4, 0, 1)), Verdict::Append);
        producers.record(&claim(4, 0, 1), 5, 0);
        assert_eq!(producers.judge(&claim(3, 5, 1)), Verdict::Fenced);
    }

    /// Seed 70468: two new producers' batches in flight, the first refused for want of space.
    #[test]
    fn what_is_in_flight_behind_a_refused_beginning_does_not_overtake_it() {
        let mut producers = Producers::default();
        producers.refuse(&claim(0, 0, 4));
        producers.refuse(&claim(0, 4, 4));
        assert_eq!(producers.judge(&claim(0, 4, 4)), Verdict::OutOfOrder);
        assert_eq!(producers.judge(&claim(1, 0, 4)), Verdict::Append, "a new epoch");
        assert_eq!(producers.judge(&claim(0, 0, 4)), Verdict::Append);
        producers.record(&claim(0, 0, 4), 0, 0);
        assert_eq!(producers.judge(&claim(0, 4, 4)), Verdict::Append);
        producers.refuse(&claim(0, 4, 4));
        assert!(producers.awaited.is_none(), "what is known needs no such memory");
    }

    #[test]
    fn sequences_wrap_around() {
        let mut producers = Producers::default();
        producers.record(&claim(0, i32::MAX - 1, 2), 0, 0);
        assert_eq!(producers.judge(&claim(0, 0, 3)), Verdict::Append);
        producers.record(&claim(0, i32::MAX, 3), 2, 0);
        assert_eq!(producers.judge(&claim(0, 2, 1)), Verdict::Append);
        assert_eq!(producers.judge(&claim(0, i32::MAX - 100, 1)), Verdict::OldDuplicate);
    }

    #[test]
    fn silent_producers_are_forgotten_and_states_come_back() {
        let mut producers = Producers::default();
        producers.record(&claim(0, 0, 1), 0, 100);
        producers.record(&claim(0, 1, 2), 1, 200);
        let mut restored = Producers::default();
        for remembered in producers.remembered() {
            restored.restore(&remembered);
        }
        assert_eq!(restored.remembered(), producers.remembered());
        assert_eq!(restored.judge(&claim(0, 1, 2)), Verdict::Duplicate { base_offset: 1 });
        producers.expire(200);
        assert!(!producers.is_empty());
        producers.expire(201);
        assert!(producers.is_empty());
    }

    /// What looks for the most silent walked through all of them for each new one.
    #[test]
    fn of_too_many_producers_the_most_silent_go_many_at_a_time() {
        let mut producers = Producers::default();
        let record = |producers: &mut Producers, producer_id: usize, heard| {
            let producer_id = i64::try_from(producer_id).expect("small");
            let claim = Claim { producer_id, ..claim(0, 0, 1) };
            producers.record(&claim, 0, heard);
        };
        for id in 0..PRODUCERS_MAX {
            // Every other one is heard of later than all of the others.
            record(&mut producers, id, if id % 2 == 0 { 7 } else { 9 });
        }
        assert_eq!(producers.len(), PRODUCERS_MAX);
        let part = PRODUCERS_MAX / FORGOTTEN_PART;
        // The clock was set back: it is the most silent, but just heard of.
        record(&mut producers, PRODUCERS_MAX, 1);
        producers.check();
        assert_eq!(producers.len(), PRODUCERS_MAX + 1 - part);
        let left: Vec<Remembered> = producers.remembered();
        assert_eq!(left.iter().filter(|one| one.heard == 9).count(), PRODUCERS_MAX / 2);
        assert_eq!(left.iter().filter(|one| one.heard == 1).count(), 1);
        // So many more begin before any is forgotten again.
        for id in 1..part {
            record(&mut producers, PRODUCERS_MAX + id, 10);
        }
        assert_eq!(producers.len(), PRODUCERS_MAX);
        producers.keep(2, None);
        assert_eq!(producers.len(), 2);
        producers.keep(0, None);
        assert!(producers.is_empty());
    }

    proptest! {
        /// Against an oracle that remembers the whole log.
        #[test]
        fn what_is_appended_is_every_sequence_once_and_in_order(
            tries in prop::collection::vec((0_i32..40, 1_i32..4), 1..200),
        ) {
            let mut producers = Producers::default();
            let mut log: Vec<i32> = Vec::new();
            for (first, count) in tries {
                let claim = claim(0, first, count);
                let next = i32::try_from(log.len()).expect("short");
                match producers.judge(&claim) {
                    Verdict::Append => {
                        prop_assert!(first == next || log.is_empty());
                        if log.is_empty() && first != 0 {
                            continue;
                        }
                        producers.record(&claim, i64::from(next), 0);
                        log.extend(first..first + count);
                    }
                    Verdict::Duplicate { base_offset } => {
                        prop_assert_eq!(base_offset, i64::from(first));
                        prop_assert!(first + count <= next);
                    }
                    Verdict::OldDuplicate => prop_assert!(first < next),
                    // A gap, or a batch of which a part is there and a part is not.
                    Verdict::OutOfOrder => prop_assert!(first > next || first + count > next),
                    Verdict::Fenced => prop_assert!(false, "there is one epoch"),
                }
                producers.check();
            }
            let length = i32::try_from(log.len()).expect("short");
            prop_assert_eq!(log, (0..length).collect::<Vec<_>>());
        }
    }
}
