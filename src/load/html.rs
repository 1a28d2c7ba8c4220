//! The report as one HTML file: no script, no outside resource, drawings as inline SVG.

use super::report::Report;

/// The page.
pub fn page(report: &Report) -> String {
    format!("<!doctype html><title>corelog load</title><pre>{}</pre>", report.heading().join("\n"))
}
