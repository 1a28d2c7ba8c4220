//! What a run comes to: totals over the measured span, and a row per interval.

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::ledger::Verdict;
use super::machine::Usage;
use super::options::Rate;
use super::recorder::{Count, Interval, Phase, Tally};

/// The percentiles that are reported, with their names.
pub const PERCENTILES: [(&str, f64); 7] = [
    ("p50", 50.0),
    ("p75", 75.0),
    ("p90", 90.0),
    ("p95", 95.0),
    ("p99", 99.0),
    ("p99.9", 99.9),
    ("p99.99", 99.99),
];
const NANOS_PER_MICRO: f64 = 1e3;
/// From this share of its CPUs on, the generator may be what limits the figures.
const SATURATED: f64 = 0.9;

/// One run at one rate.
#[derive(Clone, Debug)]
pub struct Summary {
    pub rate: Rate,
    /// Measured and drained intervals together.
    pub total: Interval,
    /// Seconds of the measured intervals alone.
    pub seconds: f64,
    pub acknowledged: Count,
    pub received: Count,
    pub rows: Vec<Row>,
    pub verdict: Option<Verdict>,
    /// CPUs that the generator was given, and its CPU time while measuring.
    pub cores: usize,
    pub own_cpu_seconds: f64,
    /// What the broker's process used while measuring.
    pub broker: Option<Usage>,
    pub was_interrupted: bool,
}

/// One interval as it is drawn and printed.
#[derive(Clone, Debug)]
pub struct Row {
    pub interval: Interval,
    /// Seconds from the start of the run to the interval's end.
    pub at: f64,
    /// CPUs in use by the broker, and its memory.
    pub broker_cpu: Option<f64>,
    pub broker_resident: Option<u64>,
}

impl Summary {
    pub fn new(rate: Rate, cores: usize) -> Summary {
        Summary {
            rate,
            total: Interval::new(0, Phase::Measured, u64::MAX),
            seconds: 0.0,
            acknowledged: Count::default(),
            received: Count::default(),
            rows: Vec::new(),
            verdict: None,
            cores,
            own_cpu_seconds: 0.0,
            broker: None,
            was_interrupted: false,
        }
    }

    /// Takes an interval of all cores into account.
    pub fn add(&mut self, row: Row) {
        let interval = &row.interval;
        if interval.phase != Phase::WarmUp {
            self.total.merge(interval);
        }
        if interval.phase == Phase::Measured {
            self.seconds += interval.seconds();
            self.acknowledged.add(interval.acknowledged);
            self.received.add(interval.received);
        }
        self.rows.push(row);
    }

    /// The latency that the mode is about: to receipt where records are received, otherwise to
    /// acknowledgement.
    pub fn latency(&self) -> &Histogram<u64> {
        if self.total.delivery.is_empty() { &self.total.latency } else { &self.total.delivery }
    }

    /// Whether p99 is at most `bound_ms`, with what never got through counted as slower.
    pub fn is_within(&self, bound_ms: f64) -> bool {
        let latency = self.latency();
        let meant = match self.rate {
            Rate::Max => 0.0,
            Rate::PerSecond(rate) => rate * self.seconds,
        };
        let within = latency.count_between(0, (bound_ms * 1e6) as u64) as f64;
        !latency.is_empty() && within >= 0.99 * meant.max(latency.len() as f64)
    }

    /// Whether all that was meant to be sent was, at the rate that was meant, within two percent.
    pub fn kept_up(&self) -> bool {
        match self.rate {
            Rate::Max => true,
            Rate::PerSecond(rate) => self.acknowledged.records as f64 >= 0.98 * rate * self.seconds,
        }
    }

    /// Records that were there and not read when the run ended.
    pub fn lag(&self) -> u64 {
        self.rows.last().map_or(0, |row| row.interval.lag)
    }

    pub fn is_saturated(&self) -> bool {
        self.own_share() >= SATURATED
    }

    /// The part of its CPUs that the generator used.
    pub fn own_share(&self) -> f64 {
        self.own_cpu_seconds / (self.seconds * self.cores.max(1) as f64).max(1e-9)
    }

    pub fn json(&self) -> Value {
        let broker = self.broker.map(|used| {
            json!({
                "cpu_seconds": used.cpu_seconds,
                "resident_bytes": used.resident_bytes,
                "written_bytes": used.written_bytes,
                "context_switches": used.context_switches,
            })
        });
        let rate = match self.rate {
            Rate::Max => json!("max"),
            Rate::PerSecond(rate) => json!(rate),
        };
        let total = &self.total;
        json!({
            "rate": rate,
            "loop": if self.rate == Rate::Max { "closed" } else { "open" },
            "seconds": self.seconds,
            "interrupted": self.was_interrupted,
            "kept_up": self.kept_up(),
            "produce": throughput(self.acknowledged, self.seconds),
            "consume": throughput(self.received, self.seconds),
            "latency_us": latency_json(&total.latency),
            "request_us": latency_json(&total.service),
            "delivery_us": latency_json(&total.delivery),
            "lateness_us": latency_json(&total.lateness),
            "failed_records": total.failed,
            "lag": self.lag(),
            "assignments": total.assignments,
            "commits": total.commits,
            "transactions": total.transactions.has_any().then(|| tally_json(&total.transactions)),
            "errors": total.errors,
            "notes": total.notes,
            "verify": self.verdict.map(verdict_json),
            "generator": {
                "cpu_seconds": self.own_cpu_seconds,
                "cores": self.cores,
                "share": self.own_share(),
                "saturated": self.is_saturated(),
            },
            "broker": broker,
            "intervals": self.rows.iter().map(Row::json).collect::<Vec<_>>(),
        })
    }
}

impl Row {
    fn json(&self) -> Value {
        let interval = &self.interval;
        json!({
            "at": self.at,
            "seconds": interval.seconds(),
            "phase": match interval.phase {
                Phase::WarmUp => "warm-up",
                Phase::Measured => "measured",
                Phase::Drain => "drain",
            },
            "acknowledged": interval.acknowledged.records,
            "received": interval.received.records,
            "latency_us": latency_json(&interval.latency),
            "delivery_us": latency_json(&interval.delivery),
            "lag": interval.lag,
            "errors": interval.errors.values().sum::<u64>(),
            "broker_cpus": self.broker_cpu,
            "broker_resident_bytes": self.broker_resident,
        })
    }
}

fn throughput(count: Count, seconds: f64) -> Value {
    let per_second = |amount: u64| amount as f64 / seconds.max(1e-9);
    json!({
        "records": count.records,
        "bytes": count.bytes,
        "requests": count.requests,
        "records_per_second": per_second(count.records),
        "mb_per_second": per_second(count.bytes) / 1e6,
    })
}

/// Percentiles in microseconds; null where nothing was recorded.
pub fn latency_json(histogram: &Histogram<u64>) -> Value {
    if histogram.is_empty() {
        return Value::Null;
    }
    let micros = |nanos: u64| nanos as f64 / NANOS_PER_MICRO;
    let mut object = serde_json::Map::new();
    object.insert("count".into(), json!(histogram.len()));
    object.insert("mean".into(), json!(histogram.mean() / NANOS_PER_MICRO));
    object.insert("min".into(), json!(micros(histogram.min())));
    for (name, percentile) in PERCENTILES {
        object.insert(name.into(), json!(micros(histogram.value_at_percentile(percentile))));
    }
    object.insert("max".into(), json!(micros(histogram.max())));
    Value::Object(object)
}

fn tally_json(tally: &Tally) -> Value {
    json!({
        "committed": tally.committed,
        "aborted": tally.aborted,
        "unresolved": tally.unresolved,
        "waits": tally.waits,
        "ending_us": latency_json(&tally.ending),
    })
}

fn verdict_json(verdict: Verdict) -> Value {
    json!({
        "clean": verdict.is_clean(),
        "acknowledged": verdict.acknowledged,
        "received": verdict.received,
        "lost": verdict.lost,
        "duplicated": verdict.duplicated,
        "reordered": verdict.reordered,
        "corrupted": verdict.corrupted,
        "aborted": verdict.aborted,
        "foreign": verdict.foreign,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A broker that hangs at the end is not the best of a sweep.
    #[test]
    fn what_never_got_through_is_no_fast_record() {
        let mut run = Summary::new(Rate::PerSecond(1000.0), 1);
        run.seconds = 10.0;
        for (records, is_within) in [(9_850, false), (9_950, true)] {
            run.total.latency.reset();
            run.total.latency.record_n(1_000_000, records).expect("in range");
            assert_eq!(run.latency().value_at_percentile(99.0) / 1_000_000, 1);
            assert_eq!(run.is_within(2.0), is_within, "{records} of 10,000");
            assert!(!run.is_within(0.5));
        }
        run.total.latency.record_n(1_000_000_000, 200).expect("in range");
        assert!(!run.is_within(2.0), "2 % are slow");
    }
}
