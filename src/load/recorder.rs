//! What a core measures: histograms and counters, cut into intervals that are sent to the reporter.
//!
//! Pure. Times are nanoseconds on the cores' clock.
//!
//! Invariants
//!   M1  A latency counts from the intended time, and only if that lies in the measured span;
//!       while warming up all are shown.
//!   M2  What is acknowledged after the span counts for latency and never for throughput.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use hdrhistogram::Histogram;

/// Longer latencies are recorded as this one.
const LATENCY_MAX_NANOS: u64 = 3_600_000_000_000;
const DIGITS: u8 = 3;
/// Notes beyond these are dropped.
const NOTES_MAX: usize = 20;

/// When a thing happened, for the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    WarmUp,
    Measured,
    /// After the last intended time: what is in flight comes to its end.
    Drain,
}

/// Requests, and the records and bytes of values and keys in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub requests: u64,
    pub records: u64,
    pub bytes: u64,
}

impl Count {
    pub fn add(&mut self, more: Count) {
        self.requests += more.requests;
        self.records += more.records;
        self.bytes += more.bytes;
    }
}

/// What became of transactions.
#[derive(Clone, Debug)]
pub struct Tally {
    pub committed: u64,
    pub aborted: u64,
    /// The coordinator refused to commit them; what became of them is not known.
    pub unresolved: u64,
    /// How often one had to wait for the markers of the one before.
    pub waits: u64,
    /// From the last acknowledgement to the coordinator's word, of each.
    pub ending: Histogram<u64>,
}

impl Tally {
    fn new() -> Tally {
        Tally { committed: 0, aborted: 0, unresolved: 0, waits: 0, ending: histogram() }
    }

    fn merge(&mut self, other: &Tally) {
        self.committed += other.committed;
        self.aborted += other.aborted;
        self.unresolved += other.unresolved;
        self.waits += other.waits;
        // Both have the same bounds, so nothing can be out of range.
        let _ = self.ending.add(&other.ending);
    }

    pub fn has_any(&self) -> bool {
        self.committed + self.aborted + self.unresolved > 0
    }
}

/// Times, from 1 ns to an hour, to three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_NANOS, DIGITS)
        .unwrap_or_else(|_| unreachable!("the bounds are constants that the crate accepts"))
}

/// One stretch of time on one core, or on all of them once merged.
#[derive(Clone, Debug)]
pub struct Interval {
    pub index: u32,
    pub phase: Phase,
    pub span: Range<u64>,
    /// From the intended time to the acknowledgement, of each record.
    pub latency: Histogram<u64>,
    /// From the sending of a request to its answer.
    pub service: Histogram<u64>,
    /// From the intended time to the receipt, of each record.
    pub delivery: Histogram<u64>,
    /// How late the generator was with taking up each record.
    pub lateness: Histogram<u64>,
    pub acknowledged: Count,
    pub received: Count,
    /// Records that were given up.
    pub failed: u64,
    pub errors: BTreeMap<String, u64>,
    /// Records between the consumers and the ends of their partitions.
    pub lag: u64,
    /// Assignments that members of groups took, and commits that were answered.
    pub assignments: u64,
    pub commits: u64,
    pub transactions: Tally,
    /// Sentences for the reader.
    pub notes: BTreeSet<String>,
}

impl Interval {
    pub fn new(index: u32, phase: Phase, start: u64) -> Interval {
        Interval {
            index,
            phase,
            span: start..start,
            latency: histogram(),
            service: histogram(),
            delivery: histogram(),
            lateness: histogram(),
            acknowledged: Count::default(),
            received: Count::default(),
            failed: 0,
            errors: BTreeMap::new(),
            lag: 0,
            assignments: 0,
            commits: 0,
            transactions: Tally::new(),
            notes: BTreeSet::new(),
        }
    }

    /// Adds what another core measured in the same stretch, or this core in another one.
    pub fn merge(&mut self, other: &Interval) {
        self.span = self.span.start.min(other.span.start)..self.span.end.max(other.span.end);
        for (mine, theirs) in [
            (&mut self.latency, &other.latency),
            (&mut self.service, &other.service),
            (&mut self.delivery, &other.delivery),
            (&mut self.lateness, &other.lateness),
        ] {
            // Both have the same bounds, so nothing can be out of range.
            let _ = mine.add(theirs);
        }
        self.acknowledged.add(other.acknowledged);
        self.received.add(other.received);
        self.failed += other.failed;
        self.lag += other.lag;
        self.assignments += other.assignments;
        self.commits += other.commits;
        self.transactions.merge(&other.transactions);
        self.notes.extend(other.notes.iter().take(NOTES_MAX).cloned());
        for (name, count) in &other.errors {
            *self.errors.entry(name.clone()).or_insert(0) += count;
        }
    }

    pub fn seconds(&self) -> f64 {
        self.span.end.saturating_sub(self.span.start) as f64 / 1e9
    }
}

/// One core's measuring.
#[derive(Debug)]
pub struct Recorder {
    current: Interval,
    /// From the end of the warm-up to the last intended time.
    measured: Range<u64>,
    /// By consumer.
    lags: BTreeMap<u32, u64>,
}

impl Recorder {
    pub fn new(start: u64, measured: Range<u64>) -> Recorder {
        let phase = if start < measured.start { Phase::WarmUp } else { Phase::Measured };
        Recorder { current: Interval::new(0, phase, start), measured, lags: BTreeMap::new() }
    }

    /// Moves the end of the measured span, when the run is told to stop.
    pub fn stop_at(&mut self, until: u64) {
        self.measured.end = self.measured.end.min(until.max(self.measured.start));
    }

    pub fn taken_up(&mut self, intended: u64, now: u64, records: u64) {
        let lateness = now.saturating_sub(intended).max(1);
        self.current.lateness.saturating_record_n(lateness, records);
    }

    /// Records with these intended times are acknowledged. Those of one time in a row cost as much
    /// as one.
    pub fn acknowledged(&mut self, now: u64, times: impl Iterator<Item = u64>, count: Count) {
        self.current.acknowledged.add(Count { requests: 0, ..count });
        let (mut run, mut records) = (0, 0);
        for intended in times {
            if intended != run {
                self.latency(now, run, records);
                (run, records) = (intended, 0);
            }
            records += 1;
        }
        self.latency(now, run, records);
    }

    fn latency(&mut self, now: u64, intended: u64, records: u64) {
        if records > 0 && self.counts(intended) {
            let latency = now.saturating_sub(intended).max(1);
            self.current.latency.saturating_record_n(latency, records);
        }
    }

    /// A request that was sent at `sent` is answered.
    pub fn answered(&mut self, now: u64, sent: u64) {
        self.current.acknowledged.requests += 1;
        if self.counts(sent) {
            self.current.service.saturating_record(now.saturating_sub(sent).max(1));
        }
    }

    pub fn received(&mut self, count: Count) {
        self.current.received.add(count);
    }

    /// A record that was meant to be sent at `intended` has arrived.
    pub fn delivered(&mut self, now: u64, intended: u64) {
        if self.counts(intended) {
            self.current.delivery.saturating_record(now.saturating_sub(intended).max(1));
        }
    }

    pub fn failed(&mut self, records: u64) {
        self.current.failed += records;
    }

    pub fn error(&mut self, name: &str) {
        match self.current.errors.get_mut(name) {
            Some(count) => *count += 1,
            None => drop(self.current.errors.insert(name.to_string(), 1)),
        }
    }

    /// Something that a reader of the figures must know.
    pub fn note(&mut self, sentence: String) {
        if self.current.notes.len() < NOTES_MAX {
            self.current.notes.insert(sentence);
        }
    }

    pub fn transactions(&mut self) -> &mut Tally {
        &mut self.current.transactions
    }

    /// A transaction has come to its end, which took so many nanoseconds.
    pub fn transaction_ended(&mut self, is_commit: bool, nanos: u64) {
        let tally = &mut self.current.transactions;
        tally.ending.saturating_record(nanos.max(1));
        *(if is_commit { &mut tally.committed } else { &mut tally.aborted }) += 1;
    }

    /// A member of a group was told its partitions.
    pub fn assigned(&mut self) {
        self.current.assignments += 1;
    }

    /// A commit was answered.
    pub fn committed(&mut self) {
        self.current.commits += 1;
    }

    pub fn lag(&mut self, consumer: u32, records: u64) {
        self.lags.insert(consumer, records);
    }

    /// Ends the current interval and begins the next one.
    pub fn cut(&mut self, now: u64) -> Interval {
        let phase = match now {
            now if now < self.measured.start => Phase::WarmUp,
            now if now < self.measured.end => Phase::Measured,
            _ => Phase::Drain,
        };
        let next = Interval::new(self.current.index + 1, phase, now);
        let mut done = std::mem::replace(&mut self.current, next);
        done.span.end = now;
        done.lag = self.lags.values().sum();
        done
    }

    fn counts(&self, intended: u64) -> bool {
        self.current.phase == Phase::WarmUp || self.measured.contains(&intended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: u64 = 1_000_000;

    #[test]
    fn only_records_that_were_meant_for_the_measured_span_count() {
        let mut recorder = Recorder::new(0, 100 * MILLI..200 * MILLI);
        let one = Count { requests: 0, records: 1, bytes: 10 };
        recorder.acknowledged(50 * MILLI, [40 * MILLI].into_iter(), one);
        let warm = recorder.cut(100 * MILLI);
        assert_eq!((warm.phase, warm.latency.len()), (Phase::WarmUp, 1));
        // Left over from the warm-up, measured, and beyond the end.
        recorder.acknowledged(150 * MILLI, [40, 120, 120].into_iter().map(|t| t * MILLI), one);
        let measured = recorder.cut(200 * MILLI);
        assert_eq!((measured.phase, measured.latency.len()), (Phase::Measured, 2));
        recorder.acknowledged(900 * MILLI, [190, 200].into_iter().map(|t| t * MILLI), one);
        let drained = recorder.cut(1000 * MILLI);
        assert_eq!((drained.phase, drained.latency.len()), (Phase::Drain, 1));
        assert_eq!(drained.latency.max() / MILLI, 710);
    }

    #[test]
    fn cores_add_up() {
        let interval = |records, error: &str| {
            let mut recorder = Recorder::new(0, 0..10);
            recorder.received(Count { requests: 1, records, bytes: 0 });
            recorder.error(error);
            recorder.error("X");
            recorder.lag(3, 7);
            recorder.cut(5)
        };
        let mut sum = interval(1, "A");
        sum.merge(&interval(10, "X"));
        assert_eq!((sum.received.records, sum.received.requests, sum.lag), (11, 2, 14));
        assert_eq!(sum.errors, BTreeMap::from([("A".to_string(), 1), ("X".to_string(), 3)]));
        assert_eq!((sum.index, sum.span), (0, 0..5));
    }
}
