//! A whole node in a simulated world: real cores, real frames, a disk that loses and tears what
//! was not flushed, crashes at any moment, and a judge that knows what must be true.
//!
//! ```text
//!     producers ┐                    ┌ core 0 ─ journal ┐
//!     consumers ├─ simulated TCP ────┤ core 1 ─ journal ├─ simulated disk, or several
//!     committers│                    └ ...              ┘        ▲
//!     admin     │
//!     keyed     ┘──► History (what was sent, answered, seen)     │ power, kill, faults
//!                        ▲                                    nemesis
//!                        └── the last reader compares
//! ```
//!
//! A run follows from its seed. `CORELOG_SEEDS=5000 CORELOG_FIRST_SEED=77 cargo test --lib sim::`
//! runs others than the usual ones, `ci/check` some thousands; a failure names its seed.
//!
//! Lives on: tests, one thread.  Runs: `node` and everything below it, unchanged.

mod admin;
mod client;
mod committer;
mod consumer;
mod history;
mod keyed;
mod member;
mod nemesis;
mod others;
mod producer;
mod server;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use crate::io::Io;
use crate::io::sim::{SimIo, World};

use client::Client;
use history::History;
use server::Server;

/// Seeds of a usual run.
const SEEDS: u64 = 200;
/// How long the world may take to come to rest at the end, virtual time.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long the actors go on with the node that has survived everything.
const RECOVERY: Duration = Duration::from_millis(100);
const TOPIC: &str = "records";

/// What a run is made of; follows from the seed.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Of the first life.
    shards: u16,
    directories: usize,
    /// Later lives have other numbers of them.
    is_resharded: bool,
    partitions: i32,
    producers: u32,
    consumers: u32,
    /// Whether acknowledged means flushed; the machine's power may fail then.
    flushed: bool,
    lives: u32,
    /// The map of keys does not take all keys at a time.
    is_map_small: bool,
    /// Whether dead segments are looked for all the time.
    cleans_often: bool,
    /// Tombstones outlive the run.
    tombstones_stay: bool,
    /// Of the compacted topic.
    compression: &'static str,
    timestamp_type: &'static str,
    max_lag_ms: &'static str,
    /// Four of them are a core's journal.
    journal_file_bytes: u64,
    /// The most bytes of nearly all records.
    record_bytes: u64,
}

impl Plan {
    fn of(seed: u64, world: &World) -> Plan {
        let shards = [1, 2, 2, 3, 16][usize::try_from(seed % 5).unwrap_or(0)];
        Plan {
            shards,
            directories: 1 + usize::from(u16::try_from(seed % 3).unwrap_or(0).min(shards - 1)),
            is_resharded: seed % 8 < 5,
            partitions: 1 + i32::try_from(world.below(6)).unwrap_or(0),
            producers: 1 + u32::try_from(world.below(4)).unwrap_or(0),
            consumers: 1 + u32::try_from(world.below(2)).unwrap_or(0),
            flushed: seed % 4 != 3,
            lives: 2 + u32::try_from(world.below(5)).unwrap_or(0),
            is_map_small: seed.is_multiple_of(3),
            cleans_often: seed % 5 < 4,
            tombstones_stay: seed.is_multiple_of(2),
            compression: match seed % 14 {
                1 => "uncompressed",
                3 => "gzip",
                5 => "snappy",
                7 => "lz4",
                9 => "zstd",
                _ => "producer",
            },
            max_lag_ms: if seed % 4 == 1 { "20" } else { "9223372036854775807" },
            // Of a larger journal, and with larger records, more counts as little: several
            // partitions' records are packed from memory.
            journal_file_bytes: match seed % 6 {
                2 => 64 << 10,
                4 => 1 << 20,
                _ => 256 << 10,
            },
            record_bytes: if seed % 6 == 4 { 1200 } else { 300 },
            timestamp_type: if seed % 7 < 5 { "CreateTime" } else { "LogAppendTime" },
        }
    }
}

/// What the actors of a run share.
struct Stage {
    plan: Plan,
    address: SocketAddr,
    history: RefCell<History>,
    keyed: RefCell<keyed::History>,
    /// The actors end when they see it.
    over: Cell<bool>,
    /// The topic is there. A first batch that is refused since it is not lets the second one in:
    /// a producer that a partition does not know may begin with any sequence, as with Kafka.
    is_made: Cell<bool>,
    actors: Cell<u32>,
}

impl Stage {
    fn is_over(&self) -> bool {
        self.over.get()
    }

    fn client(&self, io: &SimIo) -> Client {
        Client::new(io.clone(), self.address)
    }

    fn history(&self) -> std::cell::RefMut<'_, History> {
        self.history.borrow_mut()
    }
}

/// Starts an actor on a machine of its own.
fn act<F>(world: &World, stage: &Rc<Stage>, name: &'static str, actor: impl Fn(SimIo) -> F)
where
    F: Future<Output = ()> + 'static,
{
    let io = world.node().core(0);
    let acting = actor(io.clone());
    let stage = stage.clone();
    stage.actors.set(stage.actors.get() + 1);
    io.spawn(name, async move {
        acting.await;
        stage.actors.set(stage.actors.get() - 1);
    });
}

fn cast(world: &World, stage: &Rc<Stage>) {
    let plan = stage.plan;
    for number in 0..plan.producers {
        let stage_of = stage.clone();
        act(world, stage, "producer", move |io| producer::run(io, stage_of.clone(), number));
    }
    for _ in 0..plan.consumers {
        let stage_of = stage.clone();
        act(world, stage, "consumer", move |io| consumer::run(io, stage_of.clone()));
    }
    for index in 0..keyed::PARTITIONS {
        let stage_of = stage.clone();
        act(world, stage, "keyed writer", move |io| keyed::write(io, stage_of.clone(), index));
    }
    let stage_of = stage.clone();
    act(world, stage, "keyed reader", move |io| keyed::read(io, stage_of.clone()));
    for _ in 0..2 {
        let stage_of = stage.clone();
        act(world, stage, "member", move |io| member::run(io, stage_of.clone()));
    }
    let stage_of = stage.clone();
    act(world, stage, "committer", move |io| committer::run(io, stage_of.clone()));
    let stage_of = stage.clone();
    act(world, stage, "admin", move |io| admin::run(io, stage_of.clone()));
}

/// What a run leaves: how much happened, and the world's fingerprint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Outcome {
    met: history::Met,
    fingerprint: u64,
}

fn run(seed: u64) -> Outcome {
    run_with(seed, |_| {})
}

/// A run on a machine that was prepared before the first start.
fn run_with(seed: u64, prepare: impl FnOnce(&Server)) -> Outcome {
    let world = World::new(seed);
    let plan = Plan::of(seed, &world);
    let server = Server::new(&world, plan);
    prepare(&server);
    let stage = Rc::new(Stage {
        plan,
        address: server.address(),
        history: RefCell::new(History::new(plan.partitions)),
        keyed: RefCell::default(),
        over: Cell::new(false),
        is_made: Cell::new(false),
        actors: Cell::new(0),
    });
    cast(&world, &stage);
    nemesis::run(&world, &server, &stage);
    world.run_for(RECOVERY).unwrap_or_else(|stuck| panic!("{stuck}"));
    stage.over.set(true);
    let deadline = world.now() + PATIENCE;
    world
        .run_until(deadline, || stage.actors.get() == 0)
        .unwrap_or_else(|stuck| panic!("the actors do not end: {stuck}"));
    let io = world.node().core(0);
    let judged = async {
        consumer::judge(io.clone(), stage.clone()).await;
        keyed::judge(io, stage.clone()).await;
    };
    world
        .try_block_on(judged, world.now() + PATIENCE)
        .unwrap_or_else(|stuck| panic!("the last reader does not end: {stuck}"));
    server.stop(&world);
    let (segments, reused) = server.files_met();
    stage.history().met.segments += segments;
    stage.history().met.reused += reused;
    let (packs, merged) = server.packs_met();
    stage.history().met.packs += packs;
    stage.history().met.merged += merged;
    let (moves, cut_moves) = server.moves_met();
    stage.history().met.moves += moves;
    stage.history().met.cut_moves += cut_moves;
    stage.history().met.compacted += server.compacted_met();
    assert_eq!(world.live_connections(), 0, "seed {seed}: connections outlive the node");
    let met = stage.history().met;
    Outcome { met, fingerprint: world.fingerprint() }
}

fn from_environment(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

#[test]
fn nothing_acknowledged_is_lost_doubled_or_moved_whatever_happens_to_the_node() {
    let first = from_environment("CORELOG_FIRST_SEED", 0);
    let seeds = first..first + from_environment("CORELOG_SEEDS", SEEDS);
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).init();
    }
    let mut met = history::Met::default();
    for seed in seeds.clone() {
        met.add(&run(seed).met);
    }
    println!("seeds {seeds:?}: {met:?}");
    if let Some(missing) = met.missing() {
        panic!("the runs never met {missing}: {met:?}");
    }
}

#[test]
fn a_disk_that_lies_about_its_flushes_is_caught() {
    let is_caught = |seed| {
        let lying = || run_with(seed, |server| server.disk().lie_about_flushes());
        std::panic::catch_unwind(lying).is_err()
    };
    assert!((0..20).any(is_caught), "no run noticed that nothing was durable");
}

#[test]
fn a_node_takes_the_same_course_for_the_same_seed() {
    for seed in 0..5 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}
