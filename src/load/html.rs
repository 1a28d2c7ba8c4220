//! The report as one HTML file: no script, no outside resource, drawings as inline SVG.

use hdrhistogram::Histogram;

use super::chart::{Chart, Line, Scale, escaped};
use super::live::micros;
use super::options::Rate;
use super::recorder::{Interval, Phase};
use super::report::Report;
use super::summary::{PERCENTILES, Row, Summary};

/// Percentiles are drawn up to here, in steps that halve what is left.
const PERCENTILE_MAX: f64 = 99.999;

const STYLE: &str = "\
:root { color-scheme: light dark; --ink: #1b1f24; --faint: #8b949e; --grid: #d8dee4; \
--paper: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --faint: #8b949e; \
--grid: #30363d; --paper: #0d1117; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); \
max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; \
overflow-x: auto; }
th, td { text-align: right; padding: .25rem .7rem; border-bottom: 1px solid var(--grid); }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.2rem 0; } svg { width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--faint); }
svg text.title { fill: var(--ink); font-weight: 600; }
.grid { stroke: var(--grid); } .line { fill: none; stroke-width: 2; }
.key::before { content: ''; display: inline-block; width: .8em; height: .8em; \
margin-right: .35em; border-radius: 2px; background: var(--c); } .key { margin-right: 1em; }
.c0 { --c: #2f81f7; } .c1 { --c: #e5534b; } .c2 { --c: #3fb950; } .c3 { --c: #d29922; } \
.c4 { --c: #a371f7; } .c5 { --c: #39c5cf; } .line { stroke: var(--c); }
.note { border-left: 4px solid #d29922; padding-left: .8rem; }
";

/// The page.
pub fn page(report: &Report) -> String {
    let title = format!("corelog load {}", report.plan.mode.name());
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n<dl>\n"
    );
    for line in report.heading() {
        let (name, text) = line.split_once(' ').unwrap_or((&line, ""));
        let text = escaped(text.trim());
        out.push_str(&format!("<dt>{name}</dt><dd>{text}</dd>\n"));
    }
    out.push_str("</dl>\n");
    out.push_str(&table(report));
    if report.runs.len() > 1 {
        out.push_str(&rates(report));
    }
    for run in &report.runs {
        out.push_str(&format!("<h2>Rate {}</h2>\n", escaped(&run.rate.text())));
        for line in super::report::warnings(run) {
            let note = escaped(line.trim());
            out.push_str(&format!("<p class=\"note\">{note}</p>\n"));
        }
        out.push_str(&by_percentile(run));
        out.push_str(&over_time(run));
    }
    out.push_str("</body></html>\n");
    out
}

/// A row for each rate and kind of latency.
fn table(report: &Report) -> String {
    let mut out =
        "<table>\n<tr><th>rate</th><th>records/s</th><th>MB/s</th><th>latency</th>".to_string();
    for (name, _) in PERCENTILES {
        out.push_str(&format!("<th>{name}</th>"));
    }
    out.push_str("<th>max</th></tr>\n");
    for run in &report.runs {
        let seconds = run.seconds.max(1e-9);
        let count = if run.acknowledged.records > 0 { run.acknowledged } else { run.received };
        let (records, mb) = (count.records as f64 / seconds, count.bytes as f64 / seconds / 1e6);
        let rate = escaped(&run.rate.text());
        let kinds = kinds(&run.total);
        if kinds.is_empty() {
            out.push_str(&format!("<tr><td>{rate}</td><td>{records:.0}</td><td>{mb:.1}</td></tr>"));
        }
        for (name, histogram) in kinds {
            out.push_str(&format!(
                "<tr><td>{rate}</td><td>{records:.0}</td><td>{mb:.1}</td><td>{name}</td>"
            ));
            for (_, percentile) in PERCENTILES {
                let value = micros(histogram.value_at_percentile(percentile));
                out.push_str(&format!("<td>{value}</td>"));
            }
            out.push_str(&format!("<td>{}</td></tr>\n", micros(histogram.max())));
        }
    }
    out.push_str("</table>\n");
    out
}

/// The latencies that were recorded, with what each counts to.
fn kinds(interval: &Interval) -> Vec<(&'static str, &Histogram<u64>)> {
    let kinds = [
        ("acknowledged", &interval.latency),
        ("received", &interval.delivery),
        ("request answered", &interval.service),
    ];
    kinds.into_iter().filter(|(_, histogram)| !histogram.is_empty()).collect()
}

/// Latency against rate.
fn rates(report: &Report) -> String {
    let lines = [("p50", 50.0), ("p99", 99.0), ("p99.9", 99.9)].map(|(name, percentile)| {
        let points = report.runs.iter().filter_map(|run| match run.rate {
            Rate::PerSecond(rate) => {
                Some((rate, run.latency().value_at_percentile(percentile) as f64 / 1e6))
            }
            Rate::Max => None,
        });
        Line { name: name.to_string(), points: points.collect() }
    });
    Chart {
        title: "Latency by rate",
        x: ("records per second", Scale::Linear),
        y: ("milliseconds", Scale::Log),
        lines: lines.into(),
    }
    .svg()
}

fn by_percentile(run: &Summary) -> String {
    let line = |(name, histogram): (&str, &Histogram<u64>)| {
        let mut points = Vec::new();
        let mut left = 100.0;
        while 100.0 - left <= PERCENTILE_MAX {
            let value = histogram.value_at_percentile(100.0 - left);
            points.push((100.0 - left, value as f64 / 1e6));
            left *= 0.8;
        }
        Line { name: name.to_string(), points }
    };
    Chart {
        title: "Latency by percentile",
        x: ("percentile", Scale::Nines),
        y: ("milliseconds", Scale::Log),
        lines: kinds(&run.total).into_iter().map(line).collect(),
    }
    .svg()
}

fn over_time(run: &Summary) -> String {
    let rows: Vec<&Row> = run.rows.iter().filter(|row| row.interval.seconds() > 1e-3).collect();
    let line = |name: &str, of: &dyn Fn(&Row) -> Option<f64>| Line {
        name: name.to_string(),
        points: rows.iter().filter_map(|row| Some((row.at, of(row)?))).collect(),
    };
    let latency = |percentile: f64| {
        move |row: &Row| {
            let interval = &row.interval;
            let kind =
                if interval.delivery.is_empty() { &interval.latency } else { &interval.delivery };
            (!kind.is_empty()).then(|| kind.value_at_percentile(percentile) as f64 / 1e6)
        }
    };
    let rate = |count: u64, row: &Row| Some(count as f64 / row.interval.seconds());
    let has = |of: &dyn Fn(&Row) -> bool| rows.iter().any(|row| of(row));
    let mut throughput = Vec::new();
    if has(&|row| row.interval.acknowledged.records > 0) {
        throughput.push(line("written", &|row| rate(row.interval.acknowledged.records, row)));
    }
    if has(&|row| row.interval.received.records > 0) {
        throughput.push(line("read", &|row| rate(row.interval.received.records, row)));
    }
    let seconds = ("seconds", Scale::Linear);
    let warm_up = rows.iter().filter(|row| row.interval.phase == Phase::WarmUp).count();
    let charts = [
        Chart {
            title: "Latency over time",
            x: seconds,
            y: ("milliseconds", Scale::Log),
            lines: vec![
                line("p50", &latency(50.0)),
                line("p99", &latency(99.0)),
                line("max", &latency(100.0)),
            ],
        },
        Chart {
            title: "Throughput over time",
            x: seconds,
            y: ("records per second", Scale::Linear),
            lines: throughput,
        },
        Chart {
            title: "CPUs in use by the broker",
            x: seconds,
            y: ("CPUs", Scale::Linear),
            lines: vec![line("CPUs", &|row| row.broker_cpu)],
        },
        Chart {
            title: "Resident memory of the broker",
            x: seconds,
            y: ("MiB", Scale::Linear),
            lines: vec![line("MiB", &|row| {
                row.broker_resident.map(|bytes| bytes as f64 / f64::from(1 << 20))
            })],
        },
    ];
    let drawn: String = charts.iter().map(Chart::svg).collect();
    let end = warm_up.checked_sub(1).and_then(|last| rows.get(last)).map_or(0.0, |row| row.at);
    format!("{drawn}<p>The first {end:.1} seconds are warm-up and in no total.</p>\n")
}
