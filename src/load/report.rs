//! The report of a whole command: a table for people, JSON, and the log format of HdrHistogram.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use serde_json::{Value, json};

use super::live::{micros, percentiles};
use super::machine::{Machine, Process};
use super::options::{Arguments, Plan, Rate};
use super::recorder::Phase;
use super::summary::Summary;
use super::transaction::Transactions;
use crate::client::failure::{Failure, in_words};
use crate::client::security::Security;

/// Everything that a command found out.
pub struct Report {
    pub plan: Plan,
    pub machine: Machine,
    pub began: SystemTime,
    /// Whether the broker runs on this machine.
    pub is_local: bool,
    pub broker: Option<Process>,
    pub durability: BTreeMap<String, String>,
    pub runs: Vec<Summary>,
    /// The bound of p99, where there are several rates.
    pub p99_max_ms: Option<f64>,
}

impl Report {
    /// The highest rate that was kept up with a p99 below the bound.
    pub fn best(&self) -> Option<f64> {
        let bound = self.p99_max_ms?;
        let good = self.runs.iter().filter(|run| run.kept_up() && run.is_within(bound));
        good.filter_map(|run| match run.rate {
            Rate::PerSecond(rate) => Some(rate),
            Rate::Max => None,
        })
        .max_by(f64::total_cmp)
    }

    /// Whether every run did what its mode asks for.
    pub fn is_clean(&self) -> bool {
        self.runs.iter().all(|run| run.verdict.is_none_or(|verdict| verdict.is_clean()))
    }

    /// What stands above the figures.
    pub fn heading(&self) -> Vec<String> {
        let plan = &self.plan;
        let place = match (&self.broker, self.is_local) {
            (Some(process), _) => format!("local, process {}: {}", process.pid, process.command),
            (None, true) => "local, its process cannot be looked at".to_string(),
            (None, false) => "on another machine".to_string(),
        };
        let told = self.durability.iter().map(|(name, value)| format!("{name}={value}"));
        let told: Vec<String> = told.collect();
        let durability =
            if told.is_empty() { "not told by the broker".to_string() } else { told.join(" ") };
        let sizes = plan.sizes;
        let size = if sizes.min == sizes.max {
            sizes.min.to_string()
        } else {
            format!("{}-{}", sizes.min, sizes.max)
        };
        let acks = if plan.acks == -1 { "all".to_string() } else { plan.acks.to_string() };
        vec![
            format!("machine     {}", self.machine.text()),
            format!("broker      {}, {place}, {}", plan.bootstrap, secured(&plan.security)),
            format!("durability  {durability}"),
            format!(
                "load        {}: {} producers, {} consumers{}, {} topics of {} partitions, on CPUs \
                 {:?}",
                plan.mode.name(),
                plan.producers,
                plan.consumers,
                if plan.is_grouped { format!(" in {} groups", plan.groups) } else { String::new() },
                plan.topics.len(),
                plan.partitions,
                plan.cpus,
            ),
            format!(
                "records     {size} bytes, keys {}, codec {}, acks {acks}{}{}, linger {:?}, \
                 batches of {} bytes, {} in flight, {}",
                plan.keys.text(),
                plan.codec.name(),
                if plan.idempotent { ", idempotent" } else { "" },
                plan.transactions.as_ref().map_or(String::new(), |t| format!(", {}", t.text())),
                plan.linger,
                plan.batch_bytes,
                plan.in_flight,
                plan.isolation.name(),
            ),
        ]
    }

    /// The table at the end.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for run in &self.runs {
            lines.extend(run_lines(run, self.plan.acks));
        }
        if let Some(bound) = self.p99_max_ms {
            lines.push(match self.best() {
                Some(rate) => format!("highest rate with p99 below {bound} ms: {rate} records/s"),
                None => format!("no rate keeps p99 below {bound} ms"),
            });
        }
        lines
    }

    pub fn json(&self) -> Value {
        let plan = &self.plan;
        let began = self.began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        json!({
            "tool": format!("corelog load {}", env!("CARGO_PKG_VERSION")),
            "mode": plan.mode.name(),
            "began_ms": u64::try_from(began.as_millis()).unwrap_or(0),
            "machine": self.machine.json(),
            "broker": {
                "bootstrap": plan.bootstrap,
                "local": self.is_local,
                "security": secured(&plan.security),
                "process": self.broker.as_ref().map(Process::json),
                "durability": self.durability,
            },
            "options": {
                "producers": plan.producers,
                "consumers": plan.consumers,
                "groups": if plan.is_grouped { plan.groups } else { 0 },
                "commit_interval_seconds": plan.commit_interval.as_secs_f64(),
                "topics": plan.topics.len(),
                "partitions": plan.partitions,
                "record_bytes_min": plan.sizes.min,
                "record_bytes_max": plan.sizes.max,
                "keys": plan.keys.text(),
                "compressibility": plan.compressibility,
                "acks": plan.acks,
                "idempotent": plan.idempotent,
                "transactions": plan.transactions.as_ref().map(Transactions::text),
                "isolation": plan.isolation.name(),
                "codec": plan.codec.name(),
                "linger_ms": plan.linger.as_secs_f64() * 1e3,
                "batch_bytes": plan.batch_bytes,
                "in_flight": plan.in_flight,
                "fetch_bytes": plan.fetch_bytes,
                "warm_up_seconds": plan.warm_up.as_secs_f64(),
                "duration_seconds": plan.duration.as_secs_f64(),
                "cpus": plan.cpus,
            },
            "runs": self.runs.iter().map(Summary::json).collect::<Vec<_>>(),
            "p99_max_ms": self.p99_max_ms,
            "best_rate": self.best(),
        })
    }

    /// Writes the files that were asked for.
    pub fn write_files(&self, arguments: &Arguments) -> Result<(), Failure> {
        write_json(arguments, &self.json())?;
        if let Some(path) = &arguments.hdr_log {
            self.write_hdr_log(path).map_err(|why| cannot_write(path, &why))?;
        }
        if let Some(path) = &arguments.html {
            let page = super::html::page(self);
            std::fs::write(path, page).map_err(|error| cannot_write(path, &in_words(&error)))?;
        }
        Ok(())
    }

    fn write_hdr_log(&self, path: &Path) -> Result<(), String> {
        let file = File::create(path).map_err(|error| in_words(&error))?;
        let mut file = BufWriter::new(file);
        let mut serializer = V2DeflateSerializer::new();
        let mut log = IntervalLogWriterBuilder::new()
            .add_comment(&format!("corelog load {}", self.plan.mode.name()))
            .with_start_time(self.began)
            .with_max_value_divisor(1e6)
            .begin_log_with(&mut file, &mut serializer)
            .map_err(|error| error.to_string())?;
        for row in self.runs.iter().flat_map(|run| &run.rows) {
            let interval = &row.interval;
            let length = Duration::from_secs_f64(interval.seconds());
            let start = Duration::from_secs_f64((row.at - interval.seconds()).max(0.0));
            let phase = if interval.phase == Phase::WarmUp { "warm-up-" } else { "" };
            for (name, histogram) in [("ack", &interval.latency), ("delivery", &interval.delivery)]
            {
                if !histogram.is_empty() {
                    let tag = format!("{phase}{name}");
                    log.write_histogram(histogram, start, length, Tag::new(&tag))
                        .map_err(|error| format!("{error:?}"))?;
                }
            }
        }
        file.flush().map_err(|error| in_words(&error))
    }
}

/// Writes JSON where it is wanted.
pub fn write_json(arguments: &Arguments, value: &Value) -> Result<(), Failure> {
    match arguments.json.as_deref() {
        None => Ok(()),
        Some("-") => Ok(writeln!(std::io::stdout(), "{value}")?),
        Some(path) => {
            let text = format!("{value:#}\n");
            let written = std::fs::write(path, text);
            written.map_err(|error| cannot_write(Path::new(path), &in_words(&error)))
        }
    }
}

fn cannot_write(path: &Path, why: &str) -> Failure {
    Failure::Failed(format!("cannot write {}: {why}", path.display()))
}

/// How the connections are secured.
fn secured(security: &Security) -> String {
    let tls = security.tls.as_ref().map(|_| "TLS");
    let sasl = security.credentials.as_ref().map(|credentials| credentials.mechanism());
    let parts: Vec<&str> = tls.into_iter().chain(sasl).collect();
    if parts.is_empty() { "plain text".to_string() } else { parts.join(", ") }
}

fn run_lines(run: &Summary, acks: i16) -> Vec<String> {
    let mut lines = vec![String::new(), format!("rate {}", run.rate.text())];
    let seconds = run.seconds.max(1e-9);
    for (count, verb) in [(run.acknowledged, "written"), (run.received, "read")] {
        if count.records > 0 {
            lines.push(format!(
                "  {verb:9}  {} records in {:.2} s: {:.0} records/s, {:.2} MB/s, {:.1} records a \
                 request",
                count.records,
                run.seconds,
                count.records as f64 / seconds,
                count.bytes as f64 / seconds / 1e6,
                count.records as f64 / count.requests.max(1) as f64,
            ));
        }
    }
    let ack = if acks == 0 { "sent" } else { "ack" };
    for (name, histogram) in [
        (ack, &run.total.latency),
        ("request", &run.total.service),
        ("delivery", &run.total.delivery),
        ("lateness", &run.total.lateness),
    ] {
        if !histogram.is_empty() {
            lines.push(format!("  {name:9}  {}", percentiles(histogram)));
        }
    }
    if run.total.assignments > 0 || run.total.commits > 0 {
        lines.push(format!(
            "  groups     {} assignments taken, {} commits, {} records behind at the end",
            run.total.assignments,
            run.total.commits,
            run.lag(),
        ));
    }
    let tally = &run.total.transactions;
    if tally.has_any() {
        lines.push(format!(
            "  transact.  {} committed, {} aborted, {} of unknown end, {} waits for the one before",
            tally.committed, tally.aborted, tally.unresolved, tally.waits
        ));
        lines.push(format!("  ending     {}", percentiles(&tally.ending)));
    }
    if let Some(used) = run.broker {
        lines.push(format!(
            "  broker     {:.2} CPUs, {:.0} MiB resident, {:.1} MB written, {} context switches",
            used.cpu_seconds / seconds,
            used.resident_bytes as f64 / f64::from(1 << 20),
            used.written_bytes as f64 / 1e6,
            used.context_switches,
        ));
    }
    lines.push(format!(
        "  generator  {:.0} % of {} CPU{}",
        run.own_share() * 100.0,
        run.cores,
        if run.cores == 1 { "" } else { "s" },
    ));
    lines.extend(warnings(run));
    lines
}

/// What a reader of the figures must know.
pub fn warnings(run: &Summary) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, count) in &run.total.errors {
        lines.push(format!("  error      {name}: {count} times"));
    }
    lines.extend(run.total.notes.iter().map(|note| format!("  error      {note}")));
    if run.total.failed > 0 {
        lines.push(format!("  failed     {} records were given up", run.total.failed));
    }
    if !run.kept_up() && !run.was_interrupted {
        lines.push("  note       fewer records were written than the rate asks for".to_string());
    }
    if run.is_saturated() {
        lines.push(
            "  note       the generator used all of its CPUs: it may be the limit; give it more \
             with --cores"
                .to_string(),
        );
    }
    let late = run.total.lateness.value_at_percentile(99.0);
    if !run.total.latency.is_empty() && late > run.total.latency.value_at_percentile(99.0) / 2 {
        lines.push(format!(
            "  note       half of p99 is the generator's own lateness (p99 {})",
            micros(late)
        ));
    }
    if run.was_interrupted {
        lines.push("  note       the run was interrupted".to_string());
    }
    if let Some(verdict) = run.verdict {
        lines.push(format!(
            "  verify     {}: {} acknowledged, {} received, {} lost, {} duplicated, {} reordered, \
             {} corrupted, {} of aborted transactions",
            if verdict.is_clean() { "clean" } else { "NOT CLEAN" },
            verdict.acknowledged,
            verdict.received,
            verdict.lost,
            verdict.duplicated,
            verdict.reordered,
            verdict.corrupted,
            verdict.aborted,
        ));
    }
    lines
}
