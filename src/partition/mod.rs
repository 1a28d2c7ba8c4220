//! The owner: one core's partitions, and everything that may happen to them.
//!
//!     produce ─► admit (check, stamp, journal) ─► settle (flushed) ─► answer, wake the fetches
//!     fetch   ─► plan ─► journal's memory, journal's files or segments ─► bytes by reference
//!     drain   ─► the oldest journal files' records ─► segments, small ones into packs
//!     early   ─► what is taken in fast ─► segments, from memory
//!     tend    ─► small packs ─► larger ones; packs that nothing names go
//!     cleanup ─► what retention and deletion leave behind
//!     reshard ─► another number of cores, before they start
//!     compact ─► closed segments without the records that newer ones replace
//!     scrub   ─► segments read through, to find damage in time
//!     offline ─► all of it ends, when the data directory has failed and the node has others
//!
//! Lives on: every core, one instance, never shared; other cores reach it through `dispatch`.
//! Talks to: `journal`, the minds `producer`, `group` and `metadata`.
//!
//! Invariants
//!   O1  A record is served, and a write with acks=all answered, only after its journal group has
//!       settled.
//!   O2  What settles does so in journal order; a partition's answers leave in the order of its
//!       offsets.
//!   O3  Nothing is acknowledged after the journal is poisoned.
//!   O4  An entry of a topic that the image does not know is never replayed, served or counted.
//!   O5  A core appends only to partitions that it owns: nobody would look elsewhere for a record.

mod account;
mod ahead;
mod append;
mod checkpoint;
mod cleanup;
mod compact;
mod controller;
mod coordinator;
mod directories;
mod drain;
mod early;
mod epochs;
mod log;
mod offline;
mod offsets;
mod pacing;
mod pack;
mod prepare;
mod read;
mod recover;
mod reject;
mod remember;
mod reserve;
mod reshard;
mod salvage;
mod scrub;
mod settle;
mod shared;
mod shortage;
mod tend;
#[cfg(test)]
mod tests;
mod topics;
mod traffic;
mod turns;
mod unwritten;
mod watch;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

use rustc_hash::FxBuildHasher;

use crate::base::buffer::Arena;
use crate::base::ids::{CoreId, Epoch, PartitionId, TopicNumber};
use crate::base::line::Line;
use crate::base::time::Instant;
use crate::config::TopicConfig;
use crate::io::Io;
use crate::io::pace::ReadPace;
use crate::io::reply::Replies;
use crate::journal::Journal;
use crate::metadata::{Image, Topic};
use crate::segment::Store;

pub use account::{Account, Lost, Unnamed, recovered_name};
pub use append::{Acks, ProduceAnswer, ProduceAnswers, ProducePart, ProduceReply};
pub use checkpoint::Checkpoint;
pub use controller::Controller;
pub use directories::{Directories, cores_in_words, directory_of};
pub use epochs::wrong_epoch;
pub use log::{EpochStart, Extent, PartitionLog, epoch_at};
pub use offsets::{EpochEnd, FoundOffset, OffsetAt};
pub use read::{FetchPart, FetchedPart};
pub use recover::{Recovered, recover};
pub use reshard::{Moved, Resharding, reshard};
pub use shared::Shared;
pub use topics::{NewTopic, TopicOutcome, TopicRefused, check_name};
pub use unwritten::Held;
pub use watch::{CoreSet, FetchWait, FetchWatch, Watches};

/// A partition's state, shared between the tasks of its core.
type Log = Rc<RefCell<PartitionLog>>;

/// A core's partitions. They are gone through in an order that their history alone decides, so that
/// a simulated node takes the same course again.
type Logs = HashMap<PartitionId, Log, FxBuildHasher>;

/// The share of a core's memory for commit groups that answers which are not taken may hold.
const UNWRITTEN_SHARE: usize = 4;

/// See the module's documentation.
pub struct Owner<I: Io> {
    io: I,
    arena: Arena,
    shared: Arc<Shared>,
    journal: Journal<I>,
    logs: RefCell<Logs>,
    settling: settle::Settling,
    produce_replies: Replies<ProduceAnswers>,
    controller: Controller,
    coordinator: coordinator::Coordinator,
    store: Store<I>,
    /// Taken by whoever changes the segments.
    storage_turn: Rc<Line>,
    read_pace: Rc<ReadPace<I>>,
    ahead: ahead::Ahead,
    shortage: shortage::Shortage,
    unwritten: unwritten::Unwritten,
    reserve: reserve::Reserve,
    scrubbing: scrub::Scrubbing,
    /// Since when somebody tries whether the directory can be used at all.
    trial_since: Cell<Option<Instant>>,
    /// Nothing more is drained or cleaned up.
    stopping: Cell<bool>,
    growth: RefCell<pacing::Growth>,
    early: early::Early,
    /// The task that looks after packs.
    tend: tend::Tend,
    /// Deleted topics whose files are to be removed, and the task that does it.
    doomed: RefCell<Vec<TopicNumber>>,
    cleaner: RefCell<Option<Waker>>,
    /// For `ticket`.
    next_ticket: Cell<u64>,
    /// Of the appends that wait for room. Without it those of other cores, which all come through
    /// one lane, had one place where each connection of this core has one: with fifty connections
    /// a core, one core's clients got a thirtieth of what the other's did.
    line: Rc<Line>,
    /// Of the appends that are prepared in the background.
    turns: Rc<turns::Turns>,
    /// Taken by whoever has a batch open.
    opening: Rc<Line>,
    remembering: remember::Remembering,
    /// Topics' settings as values, each with the topic that they were read from.
    topic_configs: RefCell<HashMap<TopicNumber, (Arc<Topic>, TopicConfig), FxBuildHasher>>,
}

impl<I: Io> Owner<I> {
    /// Takes over what recovery found and starts the task that settles what is flushed.
    pub fn start(io: I, arena: Arena, shared: Arc<Shared>, recovered: Recovered<I>) -> Rc<Self> {
        let group_settings = shared.group_settings();
        let directory = recovered.journal.directory().join("segments");
        let store = Store::new(io.clone(), arena.clone(), directory);
        let writes = shared.directories().writes(io.core());
        recovered.journal.count_in(writes.clone());
        let least = u64::try_from(shared.config().int("storage.backlog.bytes.per.second"));
        let read_pace = Rc::new(ReadPace::new(io.clone(), writes, least.unwrap_or(0)));
        store.set_read_pace(read_pace.clone());
        let growth = pacing::Growth::new(io.now(), recovered.journal.head());
        let unwritten = unwritten::Unwritten::new(arena.budget() / UNWRITTEN_SHARE);
        let reserve = reserve::Reserve::new(shared.config(), shared.shards());
        let bounds = remember::Bounds::new(shared.config(), &recovered.journal);
        let remembering = remember::Remembering::new(bounds, recovered.producers, io.now());
        let owner = Rc::new(Owner {
            io: io.clone(),
            arena,
            shared,
            journal: recovered.journal,
            logs: RefCell::new(recovered.logs),
            settling: settle::Settling::new(),
            produce_replies: Replies::new(),
            controller: Controller::default(),
            coordinator: coordinator::Coordinator::new(group_settings),
            store,
            storage_turn: Rc::default(),
            read_pace,
            ahead: ahead::Ahead::default(),
            shortage: shortage::Shortage::default(),
            unwritten,
            reserve,
            scrubbing: scrub::Scrubbing::default(),
            trial_since: Cell::new(None),
            stopping: Cell::new(false),
            growth: RefCell::new(growth),
            early: early::Early::default(),
            tend: tend::Tend::default(),
            doomed: RefCell::default(),
            cleaner: RefCell::default(),
            next_ticket: Cell::new(1),
            line: Rc::default(),
            turns: Rc::default(),
            opening: Rc::default(),
            remembering,
            topic_configs: RefCell::default(),
        });
        if owner.shared.directories().count() > 1 {
            io.spawn("directory", offline::run(owner.clone()));
        }
        io.spawn("disk watch", offline::watch(owner.clone()));
        owner.look_at_space();
        io.spawn("settle", settle::run(owner.clone()));
        io.spawn("reserve", reserve::run(owner.clone()));
        io.spawn("drain", drain::run(owner.clone()));
        io.spawn("early", early::run(owner.clone()));
        io.spawn("cleanup", cleanup::run(owner.clone()));
        io.spawn("compact", compact::run(owner.clone()));
        io.spawn("tend", tend::run(owner.clone()));
        io.spawn("scrub", scrub::run(owner.clone()));
        owner
    }

    pub fn io(&self) -> &I {
        &self.io
    }

    pub fn core(&self) -> CoreId {
        self.io.core()
    }

    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub fn journal(&self) -> &Journal<I> {
        &self.journal
    }

    /// The metadata as last published.
    pub fn image(&self) -> Arc<Image> {
        self.shared.image()
    }

    fn controller(&self) -> &Controller {
        &self.controller
    }

    /// A number that this core has not given before.
    pub fn ticket(&self) -> u64 {
        let ticket = self.next_ticket.get();
        self.next_ticket.set(ticket + 1);
        ticket
    }

    /// The state of `id`, if it was ever written to.
    pub fn log(&self, id: PartitionId) -> Option<Log> {
        self.logs.borrow().get(&id).cloned()
    }

    /// The partition's state, made if this is the first write; `None` if the topic does not exist
    /// (any more), or if another core owns the partition (O5).
    fn log_to_write(&self, image: &Image, id: PartitionId) -> Option<Log> {
        let topic = image.topic_by_number(id.topic)?;
        if id.index >= topic.partitions {
            return None;
        }
        if self.shared.owner_of(id) != self.core() {
            tracing::error!("a write to {id} came to core {}, which does not own it", self.core());
            return None;
        }
        let mut logs = self.logs.borrow_mut();
        let log = logs.entry(id).or_insert_with(|| Rc::new(RefCell::new(PartitionLog::new(id))));
        Some(log.clone())
    }

    /// The settings in force for a topic.
    fn topic_config(&self, topic: &Arc<Topic>) -> TopicConfig {
        let mut known = self.topic_configs.borrow_mut();
        if let Some((read, config)) = known.get(&topic.number)
            && Arc::ptr_eq(read, topic)
        {
            return *config;
        }
        let config = TopicConfig::new(|name| topic.configs.get(name), self.shared.config());
        known.insert(topic.number, (topic.clone(), config));
        config
    }

    /// The epoch in which this node leads its partitions.
    pub fn leader_epoch(&self) -> Epoch {
        self.shared.image().leader_epoch()
    }

    /// Drops the partitions of a deleted topic, and has their files removed.
    pub fn forget_topic(&self, number: TopicNumber) {
        self.logs.borrow_mut().retain(|id, log| {
            let keep = id.topic != number;
            if !keep {
                let mut log = log.borrow_mut();
                log.close();
                self.remembering.forget_all(&mut log.producers);
            }
            keep
        });
        self.topic_configs.borrow_mut().remove(&number);
        self.follow_offsets_topic();
        self.doom(number);
    }

    /// Lets a drain or clean-up that is under way come to a whole state, and starts no other.
    pub async fn stop_storage(&self) {
        self.stopping.set(true);
        drop(self.storage_turn.turn().await);
    }

    /// Bytes per partition of this core, for DescribeLogDirs.
    pub fn sizes(&self) -> BTreeMap<PartitionId, u64> {
        self.logs.borrow().iter().map(|(id, log)| (*id, log.borrow().bytes())).collect()
    }
}
