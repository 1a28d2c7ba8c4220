//! The load generator: `corelog load`, for any broker that speaks the Kafka protocol.
//!
//!     minds:  pace (when)   keys, payload (what)   producer, consumer, member (who says what)
//!             transaction (what is committed)
//!             recorder (how long)   ledger (what was lost)   summary   route (who leads)
//!     hands:  core ─► produce, consume, membership, commit ─► channel ─► io::Stream ─► broker
//!     main:   options ─► target ─► run ─► live, report, html
//!     beside: scout, which looks at the metadata again when a core doubts it
//!
//! Lives on: CPUs of its own choice, a thread each, over the same seam as the broker. It knows the
//! protocol and nothing of Corelog's inside.
//!
//! Invariants
//!   O1  In an open loop each record has an intended time, and its latency counts from there.
//!   O2  Nothing that a broker answers ends the generator; errors are counted by their names.

mod assign;
mod channel;
mod chart;
mod commit;
mod consume;
mod consumer;
mod core;
mod floor;
mod html;
mod keys;
mod ledger;
mod line;
mod link;
mod live;
mod machine;
mod member;
mod membership;
mod options;
mod pace;
mod payload;
mod produce;
mod producer;
mod recorder;
mod report;
mod request;
mod route;
mod run;
mod scout;
mod summary;
mod target;
#[cfg(test)]
mod tests;
mod transaction;

use std::time::SystemTime;

use crate::client::failure::Failure;
use crate::io::ring::probe;

pub use options::Arguments;

use live::Live;
use machine::Machine;
use options::Mode;
use report::Report;
use run::Stop;

impl Arguments {
    /// Runs what the options ask for, and reports it.
    pub fn run(&self) -> Result<(), Failure> {
        let plan = self.plan()?;
        let rates = self.rates()?;
        probe::machine().map_err(|unfit| Failure::Failed(unfit.to_string()))?;
        let mut live = Live::new(self.json.as_deref() != Some("-"));
        if plan.mode == Mode::Floor {
            return floor::run(self, &plan, rates.first().copied(), &mut live);
        }
        let stop = Stop::on_signal()?;
        let mut target = target::settle(&plan)?;
        let address = target.route.broker(0);
        let broker = address.and_then(machine::listener);
        let mut report = Report {
            machine: Machine::this(),
            began: SystemTime::now(),
            is_local: address.is_some_and(|address| machine::is_local(address.ip())),
            durability: target.durability.clone(),
            p99_max_ms: (rates.len() > 1).then_some(self.p99_max),
            runs: Vec::new(),
            broker,
            plan,
        };
        for line in report.heading() {
            live.say(&line)?;
        }
        for (index, rate) in rates.iter().enumerate() {
            if index > 0 {
                live.say(&format!("next rate: {}", rate.text()))?;
                // Offsets and producer ids have moved on.
                target = target::settle(&report.plan)?;
            }
            live.begin(report.plan.warm_up + report.plan.duration);
            let broker = report.broker.as_ref();
            let summary = run::run(&report.plan, &target, *rate, broker, &mut live, &stop)?;
            let is_beyond = !summary.is_within(self.p99_max) || !summary.kept_up();
            report.runs.push(summary);
            if stop.is_asked() || (self.ramp.is_some() && is_beyond) {
                break;
            }
        }
        live.end();
        for line in report.lines() {
            live.say(&line)?;
        }
        report.write_files(self)?;
        if report.is_clean() {
            return Ok(());
        }
        let what = "records were lost, duplicated, reordered, corrupted, or seen though aborted";
        Err(Failure::Failed(what.to_string()))
    }
}
