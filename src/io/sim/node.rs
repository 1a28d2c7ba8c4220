//! A simulated machine: it runs cores, crashes, starts again with the same disk.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::core::SimIo;
use super::disk::{Crash, Disk, Fault, SharedInode};
use super::executor::Owner;
use super::{Inner, network};
use crate::base::buffer::Arena;
use crate::base::ids::CoreId;

/// Aligned memory of one core.
const ARENA_BYTES: usize = 64 << 20;

/// What the world knows of a node.
#[derive(Default)]
pub struct NodeState {
    is_down: bool,
    starts: u64,
    skew_millis: i64,
    arenas: BTreeMap<CoreId, Arena>,
    disk: Rc<RefCell<Disk>>,
}

impl NodeState {
    /// Which start it is on, unless it is down.
    pub fn start(&self) -> Option<u64> {
        (!self.is_down).then_some(self.starts)
    }

    pub fn skew_millis(&self) -> i64 {
        self.skew_millis
    }
}

/// A handle on a node; cloning shares it.
#[derive(Clone)]
pub struct Node {
    inner: Rc<Inner>,
    number: usize,
}

impl Node {
    pub(super) fn new(inner: Rc<Inner>, number: usize) -> Node {
        Node { inner, number }
    }

    /// The node's number in the world.
    pub fn number(&self) -> usize {
        self.number
    }

    /// The address by which other nodes reach it.
    pub fn ip(&self) -> IpAddr {
        network::ip(self.number)
    }

    /// One core of the node as it runs; panics while it is down.
    pub fn core(&self, core: u16) -> SimIo {
        let mut nodes = self.inner.nodes.borrow_mut();
        let state = &mut nodes[self.number];
        let core = CoreId(core);
        let start = state.start();
        let start = start.unwrap_or_else(|| panic!("node {} is down: restart it", self.number));
        let arena = state.arenas.entry(core).or_insert_with(|| Arena::new(ARENA_BYTES)).clone();
        let owner = Owner { node: self.number, core };
        SimIo::new(self.inner.clone(), owner, start, (arena, state.disk.clone()))
    }

    pub fn is_up(&self) -> bool {
        self.inner.is_up(self.number)
    }

    /// Ends the node: its tasks are dropped where they stand, its sockets are gone, its disk loses
    /// what `how` lets it lose. Nothing happens if it is down.
    pub fn crash(&self, how: Crash) {
        {
            let mut nodes = self.inner.nodes.borrow_mut();
            let state = &mut nodes[self.number];
            if state.is_down {
                return;
            }
            state.is_down = true;
            state.arenas.clear();
        }
        network::crash(&self.inner, self.number);
        drop(self.inner.executor.take_node(self.number));
        let disk = self.state_disk();
        disk.borrow_mut().crash(how, &self.inner.chance);
        self.inner.note(self.number as u64 ^ 0xdead);
    }

    /// Starts a crashed node again, with the disk it has; it runs nothing yet.
    pub fn restart(&self) {
        let mut nodes = self.inner.nodes.borrow_mut();
        let state = &mut nodes[self.number];
        assert!(state.is_down, "node {} is up: crash it first", self.number);
        state.is_down = false;
        state.starts += 1;
    }

    /// Sets the node's wall clock forward or back.
    pub fn set_skew_millis(&self, skew: i64) {
        self.inner.nodes.borrow_mut()[self.number].skew_millis = skew;
    }

    /// Cuts the link to another node.
    pub fn cut(&self, other: &Node) {
        network::cut(&self.inner, self.number, other.number);
    }

    /// Mends the link to another node.
    pub fn heal(&self, other: &Node) {
        network::heal(&self.inner, self.number, other.number);
    }

    /// The node's disk, to look at and to damage.
    pub fn disk(&self) -> DiskControl {
        DiskControl { disk: self.state_disk() }
    }

    fn state_disk(&self) -> Rc<RefCell<Disk>> {
        self.inner.nodes.borrow()[self.number].disk.clone()
    }
}

/// A test's hand on a disk; works while the node is up and while it is down.
pub struct DiskControl {
    disk: Rc<RefCell<Disk>>,
}

impl DiskControl {
    /// Fails one operation with EIO, after `after` others of its kind went well.
    pub fn fail(&self, kind: Fault, after: u32) {
        self.disk.borrow_mut().set_fault(kind, after);
    }

    /// Lets the files' lengths together grow to so many bytes only; `None` lifts the limit.
    pub fn set_space(&self, space: Option<u64>) {
        self.disk.borrow_mut().set_space(space);
    }

    /// Has every operation fail that touches the file system of `path`, or none any more.
    pub fn set_dead(&self, path: &Path, is_dead: bool) {
        self.disk.borrow_mut().set_dead(path, is_dead);
    }

    /// Has no operation that touches the file system of `path` complete, or those that begin later.
    pub fn set_hung(&self, path: &Path, is_hung: bool) {
        self.disk.borrow_mut().set_hung(path, is_hung);
    }

    /// From here on nothing is durable, whatever the disk answers.
    pub fn lie_about_flushes(&self) {
        self.disk.borrow_mut().set_lying();
    }

    /// Operations so far.
    pub fn operations(&self) -> u64 {
        self.disk.borrow().submitted()
    }

    /// Bytes of all files.
    pub fn used(&self) -> u64 {
        self.disk.borrow().used()
    }

    /// All files, sorted.
    pub fn files(&self) -> Vec<PathBuf> {
        self.disk.borrow().paths()
    }

    /// What a read of the whole file gives; `None` if there is no such file.
    pub fn read(&self, path: &Path) -> Option<Vec<u8>> {
        let file = self.disk.borrow().file(path)?;
        let file = file.borrow();
        let mut content = vec![0; usize::try_from(file.length()).unwrap_or(usize::MAX)];
        file.read(0, &mut content);
        Some(content)
    }

    /// Whether a file has writes that a power loss may take.
    pub fn has_unsynced(&self, path: &Path) -> bool {
        self.file(path).borrow().has_unsynced()
    }

    /// Flips one bit; panics if the file has no such byte.
    pub fn flip_bit(&self, path: &Path, offset: u64, bit: u8) {
        self.file(path).borrow_mut().flip_bit(offset, bit);
    }

    /// Sets one byte; panics if the file has no such byte.
    pub fn set_byte(&self, path: &Path, offset: u64, value: u8) {
        self.file(path).borrow_mut().set_byte(offset, value);
    }

    /// Cuts or extends a file.
    pub fn truncate(&self, path: &Path, length: u64) {
        self.file(path).borrow_mut().truncate(length);
    }

    /// Removes a file behind the node's back.
    pub fn remove(&self, path: &Path) {
        let removed = self.disk.borrow_mut().forget(path);
        assert!(removed.is_some(), "{} is there", path.display());
    }

    /// Operations submitted and not completed.
    pub fn underway(&self) -> usize {
        self.disk.borrow().underway()
    }

    fn file(&self, path: &Path) -> SharedInode {
        let file = self.disk.borrow().file(path);
        file.unwrap_or_else(|| panic!("{} is there", path.display()))
    }
}
