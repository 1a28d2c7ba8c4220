//! What is seen while a run goes on: one line that changes on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};

use super::recorder::Phase;
use super::summary::Row;
use crate::client::failure::Failure;

/// Plain lines come at most this often, in seconds.
const LINE_SECONDS: f64 = 1.0;

/// Where words for people go.
pub struct Live {
    out: Box<dyn Write>,
    bar: Option<ProgressBar>,
    seconds: f64,
    /// Rows since the last plain line.
    since: Option<Row>,
    gathered: f64,
}

impl Live {
    /// `to_stdout` is false where the standard output is for JSON.
    pub fn new(to_stdout: bool) -> Live {
        let out: Box<dyn Write> =
            if to_stdout { Box::new(std::io::stdout()) } else { Box::new(std::io::stderr()) };
        let is_terminal = to_stdout && std::io::stdout().is_terminal();
        let style = ProgressStyle::with_template("{bar:20} {msg}");
        let bar = is_terminal.then(|| {
            let bar = ProgressBar::new(1000);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Live { out, bar, seconds: 0.0, since: None, gathered: 0.0 }
    }

    /// A run of this length begins.
    pub fn begin(&mut self, length: Duration) {
        self.seconds = length.as_secs_f64();
        self.since = None;
        self.gathered = 0.0;
    }

    /// Writes a line that stays.
    pub fn say(&mut self, line: &str) -> Result<(), Failure> {
        match &self.bar {
            Some(bar) => bar.suspend(|| writeln!(self.out, "{line}"))?,
            None => writeln!(self.out, "{line}")?,
        }
        Ok(self.out.flush()?)
    }

    /// Shows an interval.
    pub fn show(&mut self, row: &Row) -> Result<(), Failure> {
        if let Some(bar) = &self.bar {
            bar.set_position((row.at / self.seconds.max(1e-3) * 1000.0) as u64);
            bar.set_message(line(row));
            return Ok(());
        }
        self.gathered += row.interval.seconds();
        let row = match self.since.take() {
            Some(mut since) if since.interval.phase == row.interval.phase => {
                since.interval.merge(&row.interval);
                since.interval.lag = row.interval.lag;
                Row { interval: since.interval, ..*row }
            }
            _ => row.clone(),
        };
        if self.gathered < LINE_SECONDS {
            self.since = Some(row);
            return Ok(());
        }
        self.gathered = 0.0;
        self.say(&line(&row))
    }

    /// Removes the line that changes.
    pub fn end(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn line(row: &Row) -> String {
    let interval = &row.interval;
    let seconds = interval.seconds().max(1e-3);
    let phase = match interval.phase {
        Phase::WarmUp => "warm-up ",
        Phase::Measured => "",
        Phase::Drain => "drain ",
    };
    let mut text = format!("{phase}{:6.1} s", row.at);
    for (count, verb) in [(interval.acknowledged, "written"), (interval.received, "read")] {
        if count.requests + count.records > 0 {
            let (rate, mb) = (count.records as f64 / seconds, count.bytes as f64 / seconds / 1e6);
            text.push_str(&format!("  {verb} {rate:9.0}/s {mb:7.1} MB/s"));
        }
    }
    for (histogram, name) in [(&interval.latency, "ack"), (&interval.delivery, "delivery")] {
        if !histogram.is_empty() {
            let [p50, p99, p999] =
                [50.0, 99.0, 99.9].map(|p| micros(histogram.value_at_percentile(p)));
            text.push_str(&format!("  {name} p50 {p50} p99 {p99} p99.9 {p999}"));
        }
    }
    if interval.received.requests > 0 {
        text.push_str(&format!("  lag {}", interval.lag));
    }
    let errors: u64 = interval.errors.values().sum();
    if errors > 0 {
        text.push_str(&format!("  errors {errors}"));
    }
    text
}

/// A time in the unit that suits it.
pub fn micros(nanos: u64) -> String {
    match nanos {
        0..1_000 => format!("{nanos} ns"),
        1_000..1_000_000 => format!("{:.1} us", nanos as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} ms", nanos as f64 / 1e6),
        _ => format!("{:.2} s", nanos as f64 / 1e9),
    }
}

/// The percentiles of a histogram in words.
pub fn percentiles(histogram: &Histogram<u64>) -> String {
    let named = super::summary::PERCENTILES.iter().filter(|(name, _)| *name != "p75");
    let parts = named.map(|(name, percentile)| {
        format!("{name} {}", micros(histogram.value_at_percentile(*percentile)))
    });
    let parts: Vec<String> = parts.collect();
    format!("{}  max {}", parts.join("  "), micros(histogram.max()))
}
