//! The schedule: when each record of a producer is meant to be sent, whatever the broker does.
//!
//! Pure. Times are nanoseconds on the cores' clock.
//!
//! Invariants
//!   A1  Record `n` of producer `p` among `N` is meant for `start + (n N + p) / rate`, to the
//!       nanosecond below: no drift, however long the run and however late the calls.
//!   A2  A record that is taken late keeps its intended time, so that a stalled broker makes
//!       latency, not silence (no coordinated omission).

use super::options::Rate;

/// One producer's schedule.
#[derive(Clone, Debug)]
pub enum Pacer {
    Closed,
    Open(Steps),
}

/// An exact sequence of times, by whole and fractional nanoseconds.
#[derive(Clone, Debug)]
pub struct Steps {
    next: u64,
    /// The fraction of a nanosecond that `next` is late by, in `divisor`ths.
    part: u64,
    whole: u64,
    rest: u64,
    divisor: u64,
}

/// Rates are held in thousandths of a record per second.
const MILLI: f64 = 1e3;
/// Nanoseconds per second times `MILLI`.
const SCALE: u128 = 1_000_000_000_000;

impl Pacer {
    /// The schedule of one of `count` producers that share `rate` evenly.
    pub fn new(rate: Rate, index: u32, count: u32, start: u64) -> Pacer {
        let Rate::PerSecond(rate) = rate else { return Pacer::Closed };
        // Between 1 and 10^12 for every rate that the options allow.
        let divisor = (rate * MILLI).round().clamp(1.0, 1e12) as u64;
        let step = SCALE * u128::from(count);
        let first = SCALE * u128::from(index);
        let split = |ticks: u128| {
            let whole = u64::try_from(ticks / u128::from(divisor)).unwrap_or(u64::MAX);
            let rest = u64::try_from(ticks % u128::from(divisor)).unwrap_or(0);
            (whole, rest)
        };
        let (whole, rest) = split(step);
        let (offset, part) = split(first);
        Pacer::Open(Steps { next: start.saturating_add(offset), part, whole, rest, divisor })
    }

    /// The intended time of the next record: `now` in a closed loop.
    pub fn due(&self, now: u64) -> Option<u64> {
        match self {
            Pacer::Closed => Some(now),
            Pacer::Open(steps) => (steps.next <= now).then_some(steps.next),
        }
    }

    /// When the next record is meant to be sent; `None` in a closed loop.
    pub fn next(&self) -> Option<u64> {
        match self {
            Pacer::Closed => None,
            Pacer::Open(steps) => Some(steps.next),
        }
    }

    /// Takes the next record.
    pub fn advance(&mut self) {
        let Pacer::Open(steps) = self else { return };
        steps.next = steps.next.saturating_add(steps.whole);
        steps.part += steps.rest;
        if steps.part >= steps.divisor {
            steps.part -= steps.divisor;
            steps.next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// All intended times up to `until`, looked at every `every` nanoseconds.
    fn times(pacer: &mut Pacer, until: u64, every: u64) -> Vec<u64> {
        let mut times = Vec::new();
        let mut now = 0;
        loop {
            while let Some(at) = pacer.due(now) {
                times.push(at);
                pacer.advance();
            }
            if now == until {
                return times;
            }
            now = (now + every).min(until);
        }
    }

    #[test]
    fn the_schedule_is_exact_and_does_not_drift() {
        for rate in [3.0, 7.7, 1000.0, 33_333.0, 50_000.0] {
            let mut pacer = Pacer::new(Rate::PerSecond(rate), 0, 1, 0);
            let found = times(&mut pacer, 100 * SECOND, 700_000);
            let ticks = (rate * 1e3) as u128;
            for (index, at) in found.iter().enumerate() {
                let exact = index as u128 * 1_000_000_000_000 / ticks;
                assert_eq!(u128::from(*at), exact, "record {index} at {rate}/s");
            }
            let expected = (100.0 * rate) as usize;
            assert!((expected..=expected + 1).contains(&found.len()), "{rate}: {}", found.len());
        }
    }

    #[test]
    fn producers_share_the_rate_without_meeting() {
        let mut all = Vec::new();
        for index in 0..3 {
            let mut pacer = Pacer::new(Rate::PerSecond(3000.0), index, 3, 0);
            all.extend(times(&mut pacer, SECOND - 1, 1_000_000));
        }
        all.sort_unstable();
        assert_eq!(all.len(), 3000);
        assert!(all.windows(2).all(|pair| (333_333..=333_334).contains(&(pair[1] - pair[0]))));
    }

    /// The oracle: a broker that answers in 1 ms, but is silent from 1 s to 2 s. Of the requests
    /// meant for the silence, each waits until its end, so half of all latencies are spread evenly
    /// up to 1 s. A closed loop sees one slow request.
    #[test]
    fn a_stalled_broker_is_seen_by_every_record_that_was_meant_for_the_stall() {
        let answer = |at: u64| {
            if (SECOND..2 * SECOND).contains(&at) { 2 * SECOND } else { at }.max(at) + 1_000_000
        };
        let mut pacer = Pacer::new(Rate::PerSecond(1000.0), 0, 1, 0);
        let (mut now, mut open, mut naive) = (0, Vec::new(), Vec::new());
        while now < 2 * SECOND {
            while let Some(meant) = pacer.due(now).filter(|at| *at < 2 * SECOND) {
                pacer.advance();
                // One request in flight: the next one leaves when the last is answered.
                let done = answer(now);
                open.push(done - meant);
                naive.push(done - now);
                now = done;
            }
            now = pacer.next().unwrap_or(now).max(now);
        }
        open.sort_unstable();
        naive.sort_unstable();
        assert_eq!(open.len(), 2000, "every record that was meant is sent");
        assert!(open[1500] > SECOND / 3, "p75 tells of the stall: {}", open[1500]);
        assert!(naive[1990] <= 1_000_000, "from the send alone, the stall is one request");
    }
}
