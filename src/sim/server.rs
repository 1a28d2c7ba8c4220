//! The node under test: its cores on a simulated machine, started, stopped and crashed.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use super::Plan;
use crate::config::{BrokerConfig, Source};
use crate::handler::Identity;
use crate::io::Io;
use crate::io::mailbox::{Receiver, mailbox, oneshot};
use crate::io::sim::{Crash, DiskControl, Node, SimIo, World};
use crate::journal::{self, Flush};
use crate::node::{BootFailed, CoreSetup, Report, run_core, wire_up};
use crate::partition::Shared;

const PORT: u16 = 9092;
const MEMORY_BYTES: usize = 16 << 20;
/// Few, so that old ones are drained all the time.
const JOURNAL_FILES: u64 = 4;
const FLUSH_WITHIN: Duration = Duration::from_millis(20);
/// A core that says nothing for so long, in virtual time, has not started.
const BOOT_TIME: Duration = Duration::from_secs(60);
/// The lives of the node are short, so groups and compaction must be quick.
const SETTINGS: &[(&str, &str)] = &[
    ("group.initial.rebalance.delay.ms", "5"),
    ("group.min.session.timeout.ms", "50"),
    ("log.cleaner.backoff.ms", "5"),
];
const STOP_TIME: Duration = Duration::from_secs(5);

pub struct Server {
    node: Node,
    plan: Plan,
    life: RefCell<Option<Life>>,
}

/// One start of the node.
struct Life {
    stops: Vec<oneshot::Sender<()>>,
    reports: Receiver<Report>,
    running: Rc<Cell<u16>>,
    ready: u16,
    failed: Option<BootFailed>,
}

impl Life {
    fn hear(&mut self) {
        while let Some(report) = self.reports.try_recv() {
            match report.outcome {
                Ok(_) => self.ready += 1,
                Err(error) => self.failed = Some(error),
            }
        }
    }
}

impl Server {
    pub fn new(world: &World, plan: Plan) -> Server {
        Server { node: world.node(), plan, life: RefCell::new(None) }
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.node.ip(), PORT)
    }

    pub fn disk(&self) -> DiskControl {
        self.node.disk()
    }

    /// Segment files on the disk that compaction wrote.
    pub fn compacted_met(&self) -> u64 {
        let files = self.disk().files();
        let names = files.iter().filter_map(|path| path.file_name()?.to_str());
        names.filter(|name| name.ends_with(".log") && name.matches('.').count() == 2).count() as u64
    }

    /// Segment files on the disk, and journal files that were used before.
    pub fn files_met(&self) -> (u64, u64) {
        let files = self.disk().files();
        let segments = files.iter().filter(|path| path.extension().is_some_and(|e| e == "log"));
        let numbers = files.iter().filter_map(|path| {
            path.file_name()?.to_str()?.strip_prefix("journal-")?.parse::<u64>().ok()
        });
        (segments.count() as u64, numbers.filter(|number| *number >= JOURNAL_FILES).count() as u64)
    }

    /// Packs that were ever made, and those of them that must have been merged: a core merges
    /// eight.
    pub fn packs_met(&self) -> (u64, u64) {
        let mut newest = std::collections::BTreeMap::new();
        for path in self.disk().files() {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let number = name.strip_suffix(".pack").and_then(|stem| stem.parse::<u64>().ok());
            if let Some(number) = number {
                let known: &mut u64 =
                    newest.entry(path.parent().map(Path::to_path_buf)).or_default();
                *known = number.max(*known);
            }
        }
        let made = newest.values().sum();
        (made, newest.values().map(|number| (number - 1) / 8 * 8).sum())
    }

    pub fn set_clock_skew(&self, millis: i64) {
        self.node.set_skew_millis(millis);
    }

    /// Starts every core; they boot as the world turns.
    pub fn start(&self) {
        let Plan { shards, .. } = self.plan;
        if !self.node.is_up() {
            self.node.restart();
        }
        let shared = Arc::new(Shared::new(Arc::new(config(self.plan)), shards));
        let (report, reports) = mailbox(usize::from(shards) * 2);
        let connection_count = Arc::new(AtomicUsize::new(0));
        let running = Rc::new(Cell::new(shards));
        let mut stops = Vec::new();
        for (core, (lanes, inbox, go)) in (0..shards).zip(wire_up::<SimIo>(shards)) {
            let (stop, stopped) = oneshot::channel();
            stops.push(stop);
            let setup = CoreSetup {
                shared: shared.clone(),
                lanes,
                inbox,
                journal: self.journal(core),
                memory_bytes: MEMORY_BYTES,
                identity: self.identity(),
                listen: self.address(),
                connection_count: connection_count.clone(),
                go,
                stop: stopped,
                report: report.clone(),
            };
            let (io, running) = (self.node.core(core), running.clone());
            let life = run_core(io.clone(), setup);
            io.spawn("core", async move {
                life.await;
                running.set(running.get() - 1);
            });
        }
        *self.life.borrow_mut() = Some(Life { stops, reports, running, ready: 0, failed: None });
    }

    fn identity(&self) -> Identity {
        let host = self.node.ip().to_string();
        Identity { node_id: 1, host, port: i32::from(PORT), rack: None, cores: None }
    }

    fn journal(&self, core: u16) -> journal::Settings {
        journal::Settings {
            directory: format!("/data/core-{core}").into(),
            file_bytes: self.plan.journal_file_bytes,
            bytes_max: JOURNAL_FILES * self.plan.journal_file_bytes,
            kept_bytes: self.plan.journal_file_bytes,
            group_bytes_max: 32 << 10,
            pending_bytes_max: 256 << 10,
            tail_bytes_max: 64 << 10,
            flush: if self.plan.flushed { Flush::EveryGroup } else { Flush::Within(FLUSH_WITHIN) },
        }
    }

    /// Waits until every core serves, or one has said why it does not.
    pub fn await_ready(&self, world: &World) -> Result<(), BootFailed> {
        let mut life = self.life.borrow_mut();
        let life = life.as_mut().expect("started");
        let done = || {
            life.hear();
            life.ready == self.plan.shards || life.failed.is_some()
        };
        let ran = world.run_until(world.now() + BOOT_TIME, done);
        ran.unwrap_or_else(|stuck| panic!("the node does not start: {stuck}"));
        life.failed.clone().map_or(Ok(()), Err)
    }

    pub fn crash(&self, how: Crash) {
        self.node.crash(how);
        *self.life.borrow_mut() = None;
    }

    /// Stops the node as SIGTERM does, waits for its end, and cuts the power afterwards: what was
    /// acknowledged is safe by then in every mode, unless the node had not even come up to flush
    /// what a killed one before it had left to the device.
    pub fn stop(&self, world: &World) {
        let Some(mut life) = self.life.borrow_mut().take() else { return };
        life.stops.clear();
        world
            .run_until(world.now() + STOP_TIME, || life.running.get() == 0)
            .unwrap_or_else(|stuck| panic!("the node does not stop: {stuck}"));
        life.hear();
        let is_safe = self.plan.flushed || life.failed.is_none();
        self.node.crash(if is_safe { Crash::Power } else { Crash::Kill });
    }
}

fn config(plan: Plan) -> BrokerConfig {
    let mut config = BrokerConfig::default();
    for (name, value) in SETTINGS {
        config.set(name, value, Source::File).expect("a setting");
    }
    if plan.is_map_small {
        config.set("log.cleaner.dedupe.buffer.size", "4096", Source::File).expect("a setting");
    }
    config
}
