//! Writes to a device that somebody waits for, and whether they bear the reads beside them.
//!
//!     reads   |####|.echo.|                      |##|.echo.|
//!     writes  |--d--| |d|    |u|  |u|  |u|  |u|  |d| |-d-|     d: disturbed, u: usual
//!
//! A device that does one request after another has writes wait for reads. That of a tenth of a
//! millisecond is felt by nobody; one that the device's own cache does not have may take ten, and
//! twenty commits wait for it. Which of both comes is known when it has come.
//!
//! Lives on: every core; the cores that use one directory share its counts, which are told apart
//! by nothing but time and may each miss an addition.
//!
//! Invariants
//!   B1  Writes bear reads as long as one in `BORNE` met a read and took longer than `LONG_TIMES`
//!       what 99 of 100 of the others take. A write counts as much as appends came while it was
//!       under way, which waited for it. What was is forgotten: neither credit nor debt is more
//!       than `CREDIT_MAX`.
//!   B2  What is usual comes from writes that met no read alone, and follows the device as it
//!       changes, within some thousands of writes. Whoever takes long meets a read sooner or later:
//!       a write has met one that was under way, or about to be sent, when it began, or that began
//!       before it had taken as long as half of all do.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64};
use std::time::Duration;

use crate::base::time::Instant;

/// The begins of so many reads are remembered.
const BEGINS: usize = 8;
/// What a read brought is on its way to the reader for about so long, which takes the CPU.
const ECHO: Duration = Duration::from_millis(2);
/// A disturbed write has taken long, in hundredths of what is usual.
const LONG_TIMES: u64 = 115;
/// Of so many appends one may wait for a disturbed write that took long, and of so many that wait
/// for a disturbed one another, as it would have without a read.
const BORNE: i64 = 500;
const LONG_ANYWAY: i64 = 250;
/// In appends that waited long.
const CREDIT_MAX: i64 = 40;
/// A write counts as much as so many appends at most.
const WEIGHT_MAX: u64 = 100;
/// What is usual rises by one part in so many with a write that took longer, and falls by one in 99
/// times as many with one that did not: at the 99th percentile both are even. So does the median,
/// by the same both ways.
const USUAL_STEP: u64 = 50;

/// See the module's documentation.
#[derive(Debug)]
pub struct Writes {
    under_way: AtomicU32,
    /// Appends of records.
    appends: AtomicU64,
    reads_under_way: AtomicU32,
    reads_begun: AtomicU64,
    /// When the last of them began, by their numbers, in nanoseconds of the clock.
    begins: [AtomicU64; BEGINS],
    /// When the last read will have been sent, in nanoseconds of the clock.
    echoes_until: AtomicU64,
    /// The 99th percentile of the writes that met no read, in nanoseconds; 0 before the first.
    usual: AtomicU64,
    /// Their median, likewise.
    middle: AtomicU64,
    /// In parts of `BORNE` of an append that waited long.
    credit: AtomicI64,
}

/// A write that is under way.
#[derive(Debug)]
#[must_use = "its end is to be told"]
pub struct Write {
    began: Instant,
    appends: u64,
    reads_begun: u64,
    is_disturbed: bool,
}

impl Default for Writes {
    fn default() -> Self {
        Writes {
            under_way: AtomicU32::new(0),
            appends: AtomicU64::new(0),
            reads_under_way: AtomicU32::new(0),
            reads_begun: AtomicU64::new(0),
            begins: [const { AtomicU64::new(0) }; BEGINS],
            echoes_until: AtomicU64::new(0),
            usual: AtomicU64::new(0),
            middle: AtomicU64::new(0),
            credit: AtomicI64::new(CREDIT_MAX * BORNE),
        }
    }
}

impl Writes {
    pub fn begin(&self, now: Instant) -> Write {
        self.under_way.fetch_add(1, Relaxed);
        let echoes = now.0 < self.echoes_until.load(Relaxed);
        let is_disturbed = echoes || self.reads_under_way.load(Relaxed) > 0;
        let (appends, reads_begun) = (self.appends(), self.reads_begun.load(Relaxed));
        Write { began: now, appends, reads_begun, is_disturbed }
    }

    pub fn end(&self, write: Write, now: Instant) {
        self.under_way.fetch_sub(1, Relaxed);
        let took = u64::try_from((now - write.began).as_nanos()).unwrap_or(u64::MAX);
        let weight = (1 + self.appends() - write.appends).min(WEIGHT_MAX);
        let (mut usual, mut middle) = (self.usual.load(Relaxed), self.middle.load(Relaxed));
        let mut earned = 1;
        if write.is_disturbed || self.read_began_early(&write, middle) {
            let is_long = usual > 0 && took > usual.saturating_mul(LONG_TIMES) / 100;
            earned += BORNE / LONG_ANYWAY - if is_long { BORNE } else { 0 };
        } else {
            for _ in 0..weight {
                usual = follow(usual, took, 99);
                middle = follow(middle, took, 1);
            }
            self.usual.store(usual, Relaxed);
            self.middle.store(middle, Relaxed);
        }
        let credit = self.credit.load(Relaxed) + earned * weight.cast_signed();
        self.credit.store(credit.clamp(-CREDIT_MAX * BORNE, CREDIT_MAX * BORNE), Relaxed);
    }

    /// Whether the first read after the begin of `write` came within `middle` of it.
    fn read_began_early(&self, write: &Write, middle: u64) -> bool {
        let begun = self.reads_begun.load(Relaxed) - write.reads_begun;
        let slot = write.reads_begun % BEGINS as u64;
        let began = usize::try_from(slot).ok().and_then(|slot| self.begins.get(slot));
        let after = began.map_or(0, |began| began.load(Relaxed).saturating_sub(write.began.0));
        begun > 0 && after < middle.max(1)
    }

    pub fn are_under_way(&self) -> bool {
        self.under_way.load(Relaxed) > 0
    }

    /// Records were appended, which a write will hold.
    pub fn appended(&self) {
        self.appends.fetch_add(1, Relaxed);
    }

    pub fn appends(&self) -> u64 {
        self.appends.load(Relaxed)
    }

    /// A reader's read of the same device begins.
    pub fn read_begins(&self, now: Instant) {
        self.reads_under_way.fetch_add(1, Relaxed);
        let number = self.reads_begun.fetch_add(1, Relaxed);
        let slot = usize::try_from(number % BEGINS as u64).ok();
        if let Some(began) = slot.and_then(|slot| self.begins.get(slot)) {
            began.store(now.0, Relaxed);
        }
    }

    /// It is over.
    pub fn read_ends(&self, now: Instant) {
        self.echoes_until.fetch_max((now + ECHO).0, Relaxed);
        self.reads_under_way.fetch_sub(1, Relaxed);
    }

    /// Whether the reads of late were of those that writes bear (B1).
    pub fn bear_reads(&self) -> bool {
        self.credit.load(Relaxed) > 0
    }
}

/// What `below` times as many writes stay below as go above, after one more that took so long (B2).
fn follow(known: u64, took: u64, below: u64) -> u64 {
    let step = (known / USUAL_STEP).max(below);
    match known {
        0 => took.max(1),
        _ if took > known => known + step,
        _ => known.saturating_sub(step / below).max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes one after another, each of so many microseconds, two appends to a millisecond; every
    /// eighth meets a read.
    fn run(writes: &Writes, now: &mut Instant, count: u64, took: impl Fn(u64, bool) -> u64) {
        for number in 0..count {
            let meets = number % 8 == 0;
            let write = writes.begin(*now);
            if meets {
                writes.read_begins(*now);
            }
            let took = took(number, meets);
            *now = *now + Duration::from_micros(took);
            (0..took / 500).for_each(|_| writes.appended());
            if meets {
                writes.read_ends(*now);
            }
            writes.end(write, *now);
            *now = *now + ECHO;
        }
    }

    #[test]
    fn what_is_usual_is_what_99_of_100_take() {
        for scale in [1, 30] {
            let (writes, mut now) = (Writes::default(), Instant(1));
            // From 200 to 1199, in an order that is none.
            let took = |number: u64, meets| {
                if meets { 1_000_000 } else { (200 + number * 7919 % 1000) * scale }
            };
            run(&writes, &mut now, 40_000, took);
            let usual = writes.usual.load(Relaxed) / 1000 / scale;
            assert!((1080..1300).contains(&usual), "B2: {usual}");
        }
    }

    #[test]
    fn writes_bear_reads_that_they_do_not_feel() {
        let (writes, mut now) = (Writes::default(), Instant(1));
        assert!(writes.bear_reads(), "until something else is known");
        let usual = |number: u64| 300 + number * 7919 % 300;
        run(&writes, &mut now, 20_000, |number, meets| usual(number) + u64::from(meets) * 60);
        assert!(writes.bear_reads(), "B1");
        // Now and then one waits for ten milliseconds, and twenty appends wait for it.
        let waits = |every: u64| {
            move |number: u64, meets: bool| {
                usual(number) + u64::from(meets && number.is_multiple_of(every)) * 10_000
            }
        };
        run(&writes, &mut now, 40_000, waits(20_000));
        assert!(writes.bear_reads(), "B1");
        run(&writes, &mut now, 20_000, waits(1600));
        assert!(!writes.bear_reads(), "B1");
        let debt = u64::try_from(CREDIT_MAX * BORNE).expect("positive");
        run(&writes, &mut now, debt + 100, |number, _| usual(number));
        assert!(writes.bear_reads(), "what was is forgotten");
    }

    #[test]
    fn a_device_that_is_slow_by_itself_says_nothing_against_reads() {
        let (writes, mut now) = (Writes::default(), Instant(1));
        run(&writes, &mut now, 20_000, |number, _| if number % 50 == 1 { 20_000 } else { 400 });
        assert!(writes.bear_reads(), "B1");
        run(&writes, &mut now, 20_000, |number, _| 20_000 + number % 100);
        assert!(writes.bear_reads(), "B2");
    }

    #[test]
    fn a_read_that_began_later_is_not_why_a_write_takes_long() {
        let (writes, mut now) = (Writes::default(), Instant(1));
        // One in ten takes long by itself, and any read begins while one of those is under way.
        for number in 0..20_000_u64 {
            let write = writes.begin(now);
            let is_long = number % 10 == 0;
            now = now + Duration::from_micros(300 + number * 7919 % 300);
            if is_long {
                writes.read_begins(now + Duration::from_millis(3));
                now = now + Duration::from_millis(15);
                writes.read_ends(now - Duration::from_millis(11));
            }
            writes.end(write, now);
            now = now + Duration::from_micros(200);
        }
        assert!(writes.bear_reads(), "B2");
        assert!(writes.usual.load(Relaxed) > 12_000_000, "B2");
    }

    #[test]
    fn a_write_is_disturbed_by_what_a_read_brought_as_well() {
        let writes = Writes::default();
        let at = |micros: u64| Instant(micros * 1000);
        let write = writes.begin(at(0));
        writes.end(write, at(300));
        writes.read_begins(at(300));
        writes.read_ends(at(1000));
        let write = writes.begin(at(1100));
        writes.end(write, at(9000));
        assert_eq!(writes.usual.load(Relaxed), 300_000, "B2");
        let write = writes.begin(at(9000));
        writes.end(write, at(9900));
        assert!(writes.usual.load(Relaxed) > 300_000, "B2");
    }
}
