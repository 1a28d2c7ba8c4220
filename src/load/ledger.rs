//! The ledger of a run that verifies: what was acknowledged, what arrived, and what that says.
//!
//! Pure. A stream is what one producer wrote to one partition; its records are numbered from 0 in
//! the order they were sent.
//!
//! Invariants
//!   D1  A number below a stream's `next` is either received or in `missing`, never both.
//!   D2  Lost is what was acknowledged and not received; a record that was never acknowledged may
//!       be there or not.
//!   D3  What is forbidden, since its transaction is aborted, must not be received.

use std::collections::BTreeMap;
use std::ops::Range;

/// A producer's records in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stream {
    pub producer: u32,
    pub place: u32,
}

/// What one group of consumers received of a stream.
#[derive(Clone, Debug, Default)]
struct Received {
    /// One past the highest number.
    next: u64,
    /// Ranges below `next` that did not arrive, by their starts.
    missing: BTreeMap<u64, u64>,
}

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Ranges, in order, that do not touch each other as long as they are acknowledged in order.
    acknowledged: BTreeMap<Stream, Vec<Range<u64>>>,
    received: BTreeMap<(u32, Stream), Received>,
    forbidden: BTreeMap<Stream, Vec<Range<u64>>>,
    /// Groups that read everything.
    groups: u32,
    counts: Verdict,
}

/// The outcome of a run that verifies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub acknowledged: u64,
    pub received: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub reordered: u64,
    pub corrupted: u64,
    /// Received though their transaction was aborted.
    pub aborted: u64,
    /// Records of other runs, which are not judged.
    pub foreign: u64,
}

impl Verdict {
    pub fn is_clean(&self) -> bool {
        self.lost + self.duplicated + self.reordered + self.corrupted + self.aborted == 0
    }
}

impl Ledger {
    pub fn new(groups: u32) -> Ledger {
        Ledger { groups, ..Ledger::default() }
    }

    /// The broker acknowledged `count` records from `first` on.
    pub fn acknowledge(&mut self, stream: Stream, first: u64, count: u64) {
        let range = first..first + count;
        self.counts.acknowledged += count;
        let ranges = self.acknowledged.entry(stream).or_default();
        match ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => ranges.push(range),
        }
    }

    /// No consumer may receive these any more.
    pub fn forbid(&mut self, stream: Stream, range: Range<u64>) {
        self.forbidden.entry(stream).or_default().push(range);
    }

    /// A record arrived at a consumer of `group`.
    pub fn receive(&mut self, group: u32, stream: Stream, sequence: u64) {
        self.counts.received += 1;
        let received = self.received.entry((group, stream)).or_default();
        if sequence >= received.next {
            if sequence > received.next {
                received.missing.insert(received.next, sequence);
            }
            received.next = sequence + 1;
        } else if received.fill(sequence) {
            self.counts.reordered += 1;
        } else {
            self.counts.duplicated += 1;
        }
    }

    /// So many records arrived whose bytes are not those that were sent.
    pub fn corrupt(&mut self, records: u64) {
        self.counts.corrupted += records;
    }

    /// A record arrived that another run wrote.
    pub fn foreign(&mut self) {
        self.counts.foreign += 1;
    }

    /// Takes over what another core noted. A stream is written on one core; after a rebalance
    /// another one may go on reading it.
    pub fn merge(&mut self, other: Ledger) {
        self.groups = self.groups.max(other.groups);
        for (stream, ranges) in other.acknowledged {
            self.acknowledged.entry(stream).or_default().extend(ranges);
        }
        for (stream, ranges) in other.forbidden {
            self.forbidden.entry(stream).or_default().extend(ranges);
        }
        for (key, theirs) in other.received {
            let mine = self.received.entry(key).or_default();
            self.counts.duplicated += mine.union(&theirs);
        }
        let (sum, more) = (&mut self.counts, other.counts);
        sum.acknowledged += more.acknowledged;
        sum.received += more.received;
        sum.duplicated += more.duplicated;
        sum.reordered += more.reordered;
        sum.corrupted += more.corrupted;
        sum.foreign += more.foreign;
    }

    /// What it all says, once nothing more will arrive.
    pub fn verdict(&self) -> Verdict {
        let (mut lost, mut aborted) = (0, 0);
        for group in 0..self.groups {
            for (stream, ranges) in &self.acknowledged {
                lost += ranges.iter().map(|range| self.absent(group, *stream, range)).sum::<u64>();
            }
            for (stream, ranges) in &self.forbidden {
                let seen = |range: &Range<u64>| {
                    range.end - range.start - self.absent(group, *stream, range)
                };
                aborted += ranges.iter().map(seen).sum::<u64>();
            }
        }
        Verdict { lost, aborted, ..self.counts }
    }

    /// How many numbers of `range` did not arrive at a group.
    fn absent(&self, group: u32, stream: Stream, range: &Range<u64>) -> u64 {
        let received = self.received.get(&(group, stream));
        received.map_or(range.end - range.start, |received| received.absent(range))
    }
}

impl Received {
    /// Takes a number out of what is missing; whether it was.
    fn fill(&mut self, sequence: u64) -> bool {
        let found = self.missing.range(..=sequence).next_back();
        let Some((start, end)) = found.map(|(start, end)| (*start, *end)) else { return false };
        if sequence >= end {
            return false;
        }
        self.missing.remove(&start);
        if start < sequence {
            self.missing.insert(start, sequence);
        }
        if sequence + 1 < end {
            self.missing.insert(sequence + 1, end);
        }
        true
    }

    /// Adds what arrived elsewhere; returns how many numbers arrived in both places.
    fn union(&mut self, other: &Received) -> u64 {
        let size = |received: &Received| {
            received.next - received.missing.iter().map(|(start, end)| end - start).sum::<u64>()
        };
        let both = size(self) + size(other);
        let next = self.next.max(other.next);
        let holes = |received: &Received| {
            let behind = (received.next, next);
            let inside = received.missing.iter().map(|(start, end)| (*start, *end));
            inside.chain([behind]).collect::<Vec<_>>()
        };
        let (mine, theirs) = (holes(self), holes(other));
        let mut missing = BTreeMap::new();
        let (mut one, mut two) = (0, 0);
        while let (Some(a), Some(b)) = (mine.get(one), theirs.get(two)) {
            let (start, end) = (a.0.max(b.0), a.1.min(b.1));
            if start < end {
                missing.insert(start, end);
            }
            if a.1 < b.1 { one += 1 } else { two += 1 }
        }
        *self = Received { next, missing };
        both - size(self)
    }

    /// How many numbers of `range` did not arrive.
    fn absent(&self, range: &Range<u64>) -> u64 {
        let behind = range.end.saturating_sub(self.next.max(range.start));
        let holes = self
            .missing
            .iter()
            .map(|(start, end)| (*end).min(range.end).saturating_sub((*start).max(range.start)));
        behind + holes.sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: Stream = Stream { producer: 1, place: 2 };

    /// The verdict when 100 records were acknowledged and these arrived.
    fn verdict(arrived: impl IntoIterator<Item = u64>) -> Verdict {
        let mut ledger = Ledger::new(1);
        for batch in 0..10 {
            ledger.acknowledge(STREAM, batch * 10, 10);
        }
        for sequence in arrived {
            ledger.receive(0, STREAM, sequence);
        }
        ledger.verdict()
    }

    #[test]
    fn all_in_order_is_clean() {
        let clean = verdict(0..100);
        assert!(clean.is_clean(), "{clean:?}");
        assert_eq!((clean.acknowledged, clean.received), (100, 100));
    }

    #[test]
    fn planted_loss_is_counted_in_the_middle_at_the_end_and_whole() {
        assert_eq!(verdict((0..100).filter(|n| !(40..47).contains(n))).lost, 7);
        assert_eq!(verdict(0..91).lost, 9);
        assert_eq!(verdict([]).lost, 100);
        let holes = verdict((0..99).filter(|n| n % 2 == 0));
        assert_eq!((holes.lost, holes.reordered, holes.duplicated), (50, 0, 0));
    }

    #[test]
    fn planted_duplicates_are_counted() {
        let twice = verdict((0..100).chain(30..35));
        assert_eq!((twice.duplicated, twice.lost, twice.reordered), (5, 0, 0));
        assert_eq!(verdict((0..100).chain([99])).duplicated, 1);
    }

    #[test]
    fn planted_reordering_is_counted_and_is_no_loss() {
        let swapped = verdict((0..50).chain([51, 50]).chain(52..100));
        assert_eq!((swapped.reordered, swapped.lost, swapped.duplicated), (1, 0, 0));
        let late = verdict((0..20).chain(30..100).chain(20..30).chain([25]));
        assert_eq!((late.reordered, late.lost, late.duplicated), (10, 0, 1));
    }

    #[test]
    fn unacknowledged_records_may_be_there_or_not() {
        let mut ledger = Ledger::new(1);
        ledger.acknowledge(STREAM, 10, 5);
        for sequence in 0..15 {
            ledger.receive(0, STREAM, sequence);
        }
        assert!(ledger.verdict().is_clean());
        let mut ledger = Ledger::new(1);
        ledger.acknowledge(STREAM, 10, 5);
        for sequence in 10..15 {
            ledger.receive(0, STREAM, sequence);
        }
        assert!(ledger.verdict().is_clean());
    }

    #[test]
    fn planted_records_of_an_aborted_transaction_are_counted() {
        let verdict = |arrived: Vec<u64>| {
            let (mut ledger, mut other) = (Ledger::new(1), Ledger::new(1));
            ledger.acknowledge(STREAM, 0, 10);
            ledger.acknowledge(STREAM, 20, 10);
            other.forbid(STREAM, 10..20);
            for sequence in arrived {
                other.receive(0, STREAM, sequence);
            }
            ledger.merge(other);
            ledger.verdict()
        };
        let clean = verdict((0..10).chain(20..30).collect());
        assert!(clean.is_clean(), "{clean:?}");
        let seen = verdict((0..12).chain(18..30).collect());
        assert_eq!((seen.aborted, seen.lost, seen.is_clean()), (4, 0, false));
        let late = verdict((0..30).filter(|n| *n != 5).collect());
        assert_eq!((late.aborted, late.lost), (10, 1));
    }

    #[test]
    fn a_stream_that_two_cores_read_is_put_together() {
        let read = |sequences: Vec<u64>| {
            let mut ledger = Ledger::new(1);
            for sequence in sequences {
                ledger.receive(0, STREAM, sequence);
            }
            ledger
        };
        let verdict = |one: Vec<u64>, two: Vec<u64>| {
            let mut sum = Ledger::new(1);
            sum.acknowledge(STREAM, 0, 100);
            sum.merge(read(one));
            sum.merge(read(two));
            let verdict = sum.verdict();
            (verdict.lost, verdict.duplicated, verdict.received)
        };
        let both = |one: Range<u64>, two: Range<u64>| one.chain(two).collect::<Vec<u64>>();
        let all = |range: Range<u64>| range.collect::<Vec<u64>>();
        assert_eq!(verdict(both(0..40, 70..80), both(40..70, 80..100)), (0, 0, 100));
        assert_eq!(verdict(all(0..50), all(40..100)), (0, 10, 110), "what a dead member had read");
        assert_eq!(verdict(both(0..40, 60..70), both(50..55, 90..100)), (35, 0, 65));
        assert_eq!(verdict(all(0..100), Vec::new()), (0, 0, 100));
    }

    #[test]
    fn every_group_must_receive_everything_and_cores_add_up() {
        let (mut one, mut two) = (Ledger::new(2), Ledger::new(2));
        one.acknowledge(STREAM, 0, 3);
        for sequence in 0..3 {
            one.receive(0, STREAM, sequence);
            two.receive(1, STREAM, sequence);
        }
        two.corrupt(1);
        assert_eq!(one.clone().verdict().lost, 3);
        one.merge(two);
        let verdict = one.verdict();
        assert_eq!((verdict.lost, verdict.corrupted, verdict.received), (0, 1, 6));
        assert!(!verdict.is_clean());
    }
}
