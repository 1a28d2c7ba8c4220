//! The seam without a machine: nodes, their cores, disks and network in one thread, from one seed.
//!
//! ```text
//!     World ─ Node 1 ─ core 0, core 1 ...    tasks of all cores in one run queue
//!           │        └ disk                  loses and tears what was not made durable
//!           ├ Node 2 ...
//!           └ stage (node 0)                 the test's own tasks; it never crashes
//! ```
//!
//! Time is virtual: it moves a little with every step of a task, and jumps to the next timer or
//! completion when no task is ready.
//!
//! Lives on: tests, one thread.  Runs: anything that is generic over `Io`.
//!
//! Invariants
//!   V1  The same seed and the same program give the same run: every choice comes from `Chance`,
//!       nothing from a clock, an address or the iteration of a hash map. `World::fingerprint`
//!       tells two runs apart.
//!   V2  A crash takes a node's tasks, sockets, operations and memory at once; a handle from
//!       before it can do nothing any more.
//!   V3  A run ends: a world in which nothing can happen, and one that takes too many steps, are
//!       reported with the seed.
//!   V4  Dropping the world drops every task, stream, file and buffer in it.

mod agenda;
mod chance;
mod core;
mod disk;
mod executor;
mod image;
mod network;
mod node;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::base::time::Instant;

pub use core::{SimFile, SimIo, SimListener, SimStream};
pub use disk::{Crash, Fault};
pub use node::{DiskControl, Node};

use agenda::{Agenda, Event};
use chance::{Chance, mix};
use executor::{Executor, Turn};
use network::Network;
use node::NodeState;

/// What the wall clocks show at the start, milliseconds since the Unix epoch.
pub const WALL_START: i64 = 1_700_000_000_000;
/// A task's step takes so many nanoseconds of virtual time.
const STEP_NANOS: (u64, u64) = (100, 1_000);
/// Tasks that a report of a stuck world names.
const TASKS_NAMED: usize = 16;

/// How a world behaves; ranges are nanoseconds, both ends included.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A run of more steps is reported as endless.
    pub steps_max: u64,
    pub disk: Latencies,
    pub network: NetworkSettings,
}

/// How long a disk takes.
#[derive(Clone, Debug)]
pub struct Latencies {
    pub usual: (u64, u64),
    pub slow: (u64, u64),
    /// One operation in so many is slow; 0 for none.
    pub slow_one_in: u64,
    /// The whole disk stands still for so long ...
    pub stall: (u64, u64),
    /// ... at one operation in so many; 0 for none.
    pub stall_one_in: u64,
}

/// How long packets take, and what sockets hold.
#[derive(Clone, Debug)]
pub struct NetworkSettings {
    /// Within a node.
    pub near: (u64, u64),
    /// Between nodes.
    pub far: (u64, u64),
    pub slow: (u64, u64),
    /// One packet in so many is slow; 0 for none.
    pub slow_one_in: u64,
    /// A socket's buffer, bytes.
    pub buffers: (u64, u64),
}

impl Default for Settings {
    fn default() -> Settings {
        let disk = Latencies {
            usual: (50_000, 500_000),
            slow: (5_000_000, 20_000_000),
            slow_one_in: 200,
            stall: (1_000_000, 50_000_000),
            stall_one_in: 1_000,
        };
        let network = NetworkSettings {
            near: (5_000, 100_000),
            far: (50_000, 500_000),
            slow: (1_000_000, 20_000_000),
            slow_one_in: 200,
            buffers: (512, 256 << 10),
        };
        Settings { steps_max: 10_000_000, disk, network }
    }
}

/// The state that all handles share.
pub struct Inner {
    seed: u64,
    settings: Settings,
    chance: Chance,
    agenda: Agenda,
    executor: Executor,
    nodes: RefCell<Vec<NodeState>>,
    network: RefCell<Network>,
    steps: Cell<u64>,
    trace: Cell<u64>,
}

impl Inner {
    /// Adds something that happened to the fingerprint.
    fn note(&self, what: u64) {
        self.trace.set(mix(self.trace.get() ^ what).wrapping_add(self.agenda.now()));
    }

    fn node_count(&self) -> usize {
        self.nodes.borrow().len()
    }

    fn is_up(&self, node: usize) -> bool {
        self.start_of(node).is_some()
    }

    /// Which start a node is on, unless it is down.
    fn start_of(&self, node: usize) -> Option<u64> {
        self.nodes.borrow().get(node).and_then(NodeState::start)
    }

    fn skew_of(&self, node: usize) -> i64 {
        self.nodes.borrow().get(node).map_or(0, NodeState::skew_millis)
    }
}

/// Why a run went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// No task is ready, no timer is set, no operation is under way.
    Deadlock,
    /// `Settings::steps_max` is reached.
    Endless,
    /// The time given to the run is over.
    Late,
}

/// A run that did not reach its end, with what is needed to see it again.
#[derive(Clone, Debug)]
pub struct Stuck {
    pub seed: u64,
    pub why: Why,
    pub at: Instant,
    pub steps: u64,
    /// Some of the tasks that had not returned.
    pub tasks: Vec<String>,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.why {
            Why::Deadlock => "nothing can happen any more",
            Why::Endless => "the limit of steps is reached",
            Why::Late => "the time is over",
        };
        let at = Duration::from_nanos(self.at.0);
        write!(f, "seed {}: {why} at {at:?} after {} steps; ", self.seed, self.steps)?;
        write!(f, "tasks that wait: {}", self.tasks.join(", "))
    }
}

impl std::error::Error for Stuck {}

/// A simulated world. See the module's documentation.
pub struct World {
    inner: Rc<Inner>,
}

/// What one turn of the run loop did.
enum Turned {
    Step,
    Main,
    /// Time jumped.
    Jump,
    /// Only what lies beyond the deadline can happen.
    Late,
    /// Nothing can happen.
    Idle,
}

impl World {
    /// A world that follows from `seed`.
    pub fn new(seed: u64) -> World {
        World::with(seed, Settings::default())
    }

    pub fn with(seed: u64, settings: Settings) -> World {
        let inner = Inner {
            seed,
            settings,
            chance: Chance::new(seed),
            agenda: Agenda::default(),
            executor: Executor::new(),
            nodes: RefCell::new(vec![NodeState::default()]),
            network: RefCell::default(),
            steps: Cell::new(0),
            trace: Cell::new(seed),
        };
        World { inner: Rc::new(inner) }
    }

    /// Adds a machine, which is up and runs nothing.
    pub fn node(&self) -> Node {
        let number = {
            let mut nodes = self.inner.nodes.borrow_mut();
            nodes.push(NodeState::default());
            nodes.len() - 1
        };
        Node::new(self.inner.clone(), number)
    }

    /// The node that never crashes, for the test's own tasks and clients.
    pub fn stage(&self) -> Node {
        Node::new(self.inner.clone(), 0)
    }

    /// Runs a task of the test's own.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + 'static) {
        crate::io::Io::spawn(&self.stage().core(0), name, task);
    }

    /// Runs the world until `future` is ready; panics, naming the seed, if it cannot be.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        match self.try_block_on(future, Instant::NEVER) {
            Ok(value) => value,
            Err(stuck) => panic!("{stuck}"),
        }
    }

    /// Runs the world until `future` is ready, at the latest until `deadline`.
    pub fn try_block_on<T>(
        &self,
        future: impl Future<Output = T>,
        deadline: Instant,
    ) -> Result<T, Stuck> {
        let mut future = pin!(future);
        let waker = self.inner.executor.main_waker();
        let mut context = Context::from_waker(&waker);
        loop {
            match self.turn(deadline)? {
                Turned::Main => {
                    if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                        return Ok(value);
                    }
                }
                Turned::Step | Turned::Jump => {}
                Turned::Late => return Err(self.stuck(Why::Late)),
                Turned::Idle => return Err(self.stuck(Why::Deadlock)),
            }
        }
    }

    /// Runs the world until `condition` holds after some step, at the latest until `deadline`.
    pub fn run_until(
        &self,
        deadline: Instant,
        mut condition: impl FnMut() -> bool,
    ) -> Result<(), Stuck> {
        while !condition() {
            match self.turn(deadline)? {
                Turned::Step | Turned::Jump | Turned::Main => {}
                Turned::Late => return Err(self.stuck(Why::Late)),
                Turned::Idle => return Err(self.stuck(Why::Deadlock)),
            }
        }
        Ok(())
    }

    /// Runs the world for so long.
    pub fn run_for(&self, duration: Duration) -> Result<(), Stuck> {
        let deadline = self.now() + duration;
        loop {
            match self.turn(deadline)? {
                Turned::Step | Turned::Jump | Turned::Main => {}
                Turned::Late => return Ok(()),
                Turned::Idle => {
                    self.inner.agenda.advance_to(deadline.0);
                    return Ok(());
                }
            }
        }
    }

    /// Runs the world until nothing can happen any more.
    pub fn run_until_idle(&self) -> Result<(), Stuck> {
        while !matches!(self.turn(Instant::NEVER)?, Turned::Idle) {}
        Ok(())
    }

    /// Takes so many turns, or fewer if nothing can happen: a way to stop anywhere, then crash.
    pub fn run_turns(&self, turns: u64) -> Result<(), Stuck> {
        for _ in 0..turns {
            if matches!(self.turn(Instant::NEVER)?, Turned::Idle) {
                break;
            }
        }
        Ok(())
    }

    fn turn(&self, deadline: Instant) -> Result<Turned, Stuck> {
        let inner = &self.inner;
        while let Some(event) = inner.agenda.take_due() {
            match event {
                Event::Wake(waker) => waker.wake(),
                Event::Call(call) => call(inner),
            }
        }
        if inner.agenda.now() >= deadline.0 {
            return Ok(Turned::Late);
        }
        let Some(turn) = inner.executor.pick(&inner.chance) else {
            return Ok(match inner.agenda.next() {
                None => Turned::Idle,
                Some(next) => {
                    inner.agenda.advance_to(next.min(deadline.0));
                    Turned::Jump
                }
            });
        };
        if inner.steps.get() >= inner.settings.steps_max {
            return Err(self.stuck(Why::Endless));
        }
        inner.steps.set(inner.steps.get() + 1);
        inner.agenda.advance_to(inner.agenda.now() + inner.chance.between(STEP_NANOS));
        match turn {
            Turn::Main => Ok(Turned::Main),
            Turn::Task(picked, mut body) => {
                inner.note(picked.serial);
                match body.future.as_mut().poll(&mut Context::from_waker(&body.waker)) {
                    Poll::Ready(()) => inner.executor.finish(picked),
                    Poll::Pending => inner.executor.put_back(picked, body),
                }
                Ok(Turned::Step)
            }
        }
    }

    fn stuck(&self, why: Why) -> Stuck {
        let tasks = self.inner.executor.describe(TASKS_NAMED);
        let (seed, at) = (self.inner.seed, self.now());
        Stuck { seed, why, at, steps: self.inner.steps.get(), tasks }
    }

    pub fn now(&self) -> Instant {
        Instant(self.inner.agenda.now())
    }

    /// Steps of tasks so far.
    pub fn steps(&self) -> u64 {
        self.inner.steps.get()
    }

    /// A hash of everything that happened so far, in order.
    pub fn fingerprint(&self) -> u64 {
        self.inner.trace.get()
    }

    /// Tasks that have not returned.
    pub fn live_tasks(&self) -> usize {
        self.inner.executor.live()
    }

    /// Connections with an open end, or on their way.
    pub fn live_connections(&self) -> usize {
        self.inner.network.borrow().connections()
    }

    /// A number below `bound` from the seed, for the test's own choices.
    pub fn below(&self, bound: u64) -> u64 {
        self.inner.chance.below(bound)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the simulated world had seed {}", self.inner.seed);
        }
        self.inner.executor.close();
        self.inner.agenda.clear();
        drop(self.inner.network.take());
    }
}

#[cfg(test)]
mod tests;
