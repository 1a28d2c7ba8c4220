//! The node under test: its cores on a simulated machine, started, stopped and crashed.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use super::Plan;
use crate::base::ids::CoreId;
use crate::config::{BrokerConfig, Source};
use crate::handler::Identity;
use crate::io::Io;
use crate::io::mailbox::{Receiver, Sender, mailbox, oneshot};
use crate::io::sim::{Crash, DiskControl, Node, SimIo, World};
use crate::journal::{self, Flush};
use crate::node::{
    BootFailed, CoreSetup, Layout, NODE_FILE, Place, Relay, Report, name, relay, run_core, wire_up,
};
use crate::partition::{Directories, Shared};

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
    ("storage.hang.timeout.ms", "1000"),
];
const STOP_TIME: Duration = Duration::from_secs(5);

/// The data directories, each on a file system of its own.
const DATA: [&str; 3] = ["/data", "/more", "/most"];

pub struct Server {
    node: Node,
    plan: Plan,
    /// Of the next start.
    shards: Cell<u16>,
    directories: Cell<usize>,
    moves: Rc<Moves>,
    life: RefCell<Option<Life>>,
}

/// How often partitions were to be moved to another number of shards, and were.
#[derive(Default)]
struct Moves {
    begun: Cell<u64>,
    done: Cell<u64>,
}

/// One start of the node.
struct Life {
    shards: u16,
    stops: Vec<oneshot::Sender<()>>,
    reports: Receiver<Report>,
    running: Rc<Cell<u16>>,
    ready: u16,
    failed: Option<BootFailed>,
    /// Once its cores were started.
    shared: Rc<OnceCell<Arc<Shared>>>,
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
        let (shards, directories) = (Cell::new(plan.shards), Cell::new(plan.directories));
        let (node, moves) = (world.node(), Rc::default());
        Server { node, plan, shards, directories, moves, life: RefCell::new(None) }
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

    /// Moves to another number of shards that came to their end, and those that did not.
    pub fn moves_met(&self) -> (u64, u64) {
        let done = self.moves.done.get();
        (done, self.moves.begun.get() - done)
    }

    /// From the next start on; no more directories than shards.
    pub fn set_layout(&self, shards: u16, directories: usize) {
        self.shards.set(shards);
        self.directories.set(directories.min(usize::from(shards)));
    }

    /// Of the life that runs, or ran last.
    pub fn layout(&self) -> Layout {
        self.recorded().expect("it was laid out")
    }

    /// Has a data directory fail for good, or be whole again.
    pub fn set_dead(&self, directory: usize, is_dead: bool) {
        self.disk().set_dead(Path::new(DATA[directory]), is_dead);
    }

    /// Has a data directory hang, or answer again.
    pub fn set_hung(&self, directory: usize, is_hung: bool) {
        self.disk().set_hung(Path::new(DATA[directory]), is_hung);
    }

    pub fn set_clock_skew(&self, millis: i64) {
        self.node.set_skew_millis(millis);
    }

    /// Starts the node; its cores boot as the world turns.
    pub fn start(&self) {
        let shards = self.shards.get();
        if !self.node.is_up() {
            self.node.restart();
        }
        let (report, reports) = mailbox(usize::from(shards) * 2);
        let running = Rc::new(Cell::new(shards));
        let (stops, stopped) = (0..shards).map(|_| oneshot::channel()).unzip();
        let shared = Rc::<OnceCell<Arc<Shared>>>::default();
        let boot = Boot {
            node: self.node.clone(),
            plan: self.plan,
            shards,
            places: places(self.directories.get()),
            layout: self.recorded(),
            moves: self.moves.clone(),
            running: running.clone(),
            shared: shared.clone(),
            report,
            stopped,
        };
        self.node.core(0).spawn("boot", boot.run());
        *self.life.borrow_mut() =
            Some(Life { shards, stops, reports, running, ready: 0, failed: None, shared });
    }

    /// What `node.toml` says, if it is there.
    fn recorded(&self) -> Option<Layout> {
        let file = Path::new(DATA[0]).join(NODE_FILE);
        let text = String::from_utf8(self.disk().read(&file)?).expect("text");
        Some(Layout::read(&text, &file).expect("it is whole at every moment"))
    }

    /// Waits until every core serves, or one has said why it does not.
    pub fn await_ready(&self, world: &World) -> Result<(), BootFailed> {
        let mut life = self.life.borrow_mut();
        let life = life.as_mut().expect("started");
        let done = || {
            life.hear();
            life.ready == life.shards || life.failed.is_some()
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
    /// acknowledged is safe by then in every mode, unless a core had not even come up to flush what
    /// a killed one before it had left to the device (seed 1967).
    pub fn stop(&self, world: &World) {
        let Some(mut life) = self.life.borrow_mut().take() else { return };
        life.stops.clear();
        world
            .run_until(world.now() + STOP_TIME, || life.running.get() == 0)
            .unwrap_or_else(|stuck| panic!("the node does not stop: {stuck}"));
        life.hear();
        let shared = life.shared.get();
        let is_whole = shared.is_some_and(|shared| {
            shared.directories().iter().all(|(_, failure)| failure.is_none())
        });
        let is_safe = self.plan.flushed || (life.failed.is_none() && is_whole);
        self.node.crash(if is_safe { Crash::Power } else { Crash::Kill });
    }
}

/// A start on its way.
struct Boot {
    node: Node,
    plan: Plan,
    shards: u16,
    places: Vec<Place>,
    layout: Option<Layout>,
    moves: Rc<Moves>,
    running: Rc<Cell<u16>>,
    shared: Rc<OnceCell<Arc<Shared>>>,
    report: Sender<Report>,
    stopped: Vec<oneshot::Receiver<()>>,
}

impl Boot {
    async fn run(self) {
        match self.lay_out().await {
            Ok(layout) => self.start_cores(layout),
            Err(failed) => {
                let report = Report { core: CoreId::FIRST, outcome: Err(failed) };
                self.report.try_send(report).expect("there is room");
                self.running.set(0);
            }
        }
    }

    async fn lay_out(&self) -> Result<Layout, BootFailed> {
        let io = self.node.core(0);
        let failed = |error: std::io::Error| BootFailed(error.to_string());
        let Some(from) = &self.layout else {
            for place in &self.places {
                io.create_directory(&place.path).map_err(failed)?;
            }
            let layout = Layout::new(self.shards, self.places.clone());
            return name(&io, &layout).await.map(|()| layout).map_err(failed);
        };
        if from.shards == self.shards && from.places.len() == self.places.len() {
            return Ok(from.clone());
        }
        self.moves.begun.set(self.moves.begun.get() + 1);
        for place in &self.places {
            io.create_directory(&place.path).map_err(failed)?;
        }
        let to = from.followed_by(self.shards, self.places.clone())?;
        let config = &config(self.plan);
        let journal = &|layout: &Layout, core| self.journal(layout, core);
        let task = Relay { from, to: &to, config, memory_bytes: MEMORY_BYTES, journal };
        relay(&io, task).await?;
        self.moves.done.set(self.moves.done.get() + 1);
        Ok(to)
    }

    /// The directories of a layout, those out of use that have failed before.
    fn directories(&self, layout: &Layout) -> Directories {
        let paths = layout.places.iter().map(|place| place.path.clone());
        let directories = Directories::new(paths, layout.shards);
        let io = self.node.core(0);
        for (number, place) in layout.places.iter().enumerate() {
            if let Err(error) = io.list(&place.path) {
                directories.fail(number, error.to_string());
            }
        }
        directories
    }

    fn start_cores(self, layout: Layout) {
        let shards = self.shards;
        let directories = self.directories(&layout);
        let shared = Arc::new(Shared::new(Arc::new(config(self.plan)), shards, directories));
        drop(self.shared.set(shared.clone()));
        let connection_count = Arc::new(AtomicUsize::new(0));
        let mut stale: Vec<PathBuf> = Vec::new();
        for path in DATA.map(Path::new) {
            let names = self.node.core(0).list(path).unwrap_or_default();
            let names = names.iter().filter(|name| layout.is_stale(path, name));
            stale.extend(names.map(|name| path.join(name)));
        }
        let settings: Vec<_> = (0..shards).map(|core| self.journal(&layout, core)).collect();
        let Boot { node, running, report, stopped, .. } = self;
        let address = SocketAddr::new(node.ip(), PORT);
        let host = node.ip().to_string();
        let identity =
            Identity { node_id: 1, host, port: i32::from(PORT), rack: None, cores: None };
        let wired = wire_up::<SimIo>(shards).into_iter().zip(stopped).zip(settings);
        for (core, (((lanes, inbox, go), stop), journal)) in (0..shards).zip(wired) {
            let setup = CoreSetup {
                shared: shared.clone(),
                lanes,
                inbox,
                journal,
                stale: std::mem::take(&mut stale),
                memory_bytes: MEMORY_BYTES,
                identity: identity.clone(),
                listen: address,
                connection_count: connection_count.clone(),
                connections_max: usize::MAX,
                go,
                stop,
                report: report.clone(),
            };
            let (io, running) = (node.core(core), running.clone());
            let life = run_core(io.clone(), setup);
            io.spawn("core", async move {
                life.await;
                running.set(running.get() - 1);
            });
        }
    }

    fn journal(&self, layout: &Layout, core: u16) -> journal::Settings {
        journal::Settings {
            directory: layout.core(core),
            file_bytes: self.plan.journal_file_bytes,
            bytes_max: JOURNAL_FILES * self.plan.journal_file_bytes,
            kept_bytes: self.plan.journal_file_bytes,
            group_bytes_max: 32 << 10,
            pending_bytes_max: 256 << 10,
            tail_bytes_max: 64 << 10,
            flush: if self.plan.flushed { Flush::EveryGroup } else { Flush::Within(FLUSH_WITHIN) },
        }
    }
}

fn places(directories: usize) -> Vec<Place> {
    let place = |path: &&str| Place { id: path.to_string(), path: path.into() };
    DATA.iter().take(directories).map(place).collect()
}

fn config(plan: Plan) -> BrokerConfig {
    let mut config = BrokerConfig::default();
    for (name, value) in SETTINGS {
        config.set(name, value, Source::File).expect("a setting");
    }
    // What is below the log start goes at once, in the midst of drains, compactions and merges.
    if plan.cleans_often {
        config.set("log.retention.check.interval.ms", "1", Source::File).expect("a setting");
    }
    if plan.is_map_small {
        config.set("log.cleaner.dedupe.buffer.size", "4096", Source::File).expect("a setting");
    }
    config
}
