//! All cores' tasks in one run queue; which ready task is next is up to chance.
//!
//! Invariants
//!   E1  A task that was woken is polled once for any number of wakes since its last poll.
//!   E2  A task that ended, or whose node crashed, is never polled again; its future is dropped
//!       outside every borrow of the world.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

use slab::Slab;

use super::chance::Chance;
use crate::base::ids::CoreId;

/// The slot of the future that `block_on` polls itself.
const MAIN: usize = usize::MAX;

pub type BoxedTask = Pin<Box<dyn Future<Output = ()>>>;

/// Whose task it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub node: usize,
    pub core: CoreId,
}

struct Task {
    serial: u64,
    owner: Owner,
    name: &'static str,
    /// Away while it is being polled.
    body: Option<Body>,
}

/// What a poll needs of a task.
pub struct Body {
    pub future: BoxedTask,
    pub waker: Waker,
}

/// The tasks that were woken.
struct Ready {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    woken: Vec<Arc<Wakeup>>,
    closed: bool,
}

/// One task's waker; as mailboxes demand, any thread may hold it.
pub struct Wakeup {
    slot: usize,
    serial: u64,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Ready {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Wakeup {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            let mut queue = self.ready.lock();
            if !queue.closed {
                queue.woken.push(self.clone());
            }
        }
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.clone().wake();
    }
}

/// The next thing to poll.
pub enum Turn {
    Task(Picked, Body),
    Main,
}

/// A task on its way through a poll.
#[derive(Clone, Copy)]
pub struct Picked {
    slot: usize,
    pub serial: u64,
}

pub struct Executor {
    tasks: RefCell<Slab<Task>>,
    ready: Arc<Ready>,
    spawned: Cell<u64>,
    closed: Cell<bool>,
}

impl Executor {
    pub fn new() -> Executor {
        Executor {
            tasks: RefCell::new(Slab::new()),
            ready: Arc::new(Ready { queue: Mutex::default() }),
            spawned: Cell::new(0),
            closed: Cell::new(false),
        }
    }

    pub fn spawn(&self, owner: Owner, name: &'static str, future: BoxedTask) {
        if self.closed.get() {
            return;
        }
        let mut tasks = self.tasks.borrow_mut();
        let entry = tasks.vacant_entry();
        let wakeup = self.wakeup(entry.key());
        let serial = wakeup.serial;
        let waker = Waker::from(wakeup);
        waker.wake_by_ref();
        entry.insert(Task { serial, owner, name, body: Some(Body { future, waker }) });
    }

    /// A waker for the future that `block_on` polls itself, woken.
    pub fn main_waker(&self) -> Waker {
        let waker = Waker::from(self.wakeup(MAIN));
        waker.wake_by_ref();
        waker
    }

    fn wakeup(&self, slot: usize) -> Arc<Wakeup> {
        let serial = self.spawned.get();
        self.spawned.set(serial + 1);
        let queued = AtomicBool::new(false);
        Arc::new(Wakeup { slot, serial, queued, ready: self.ready.clone() })
    }

    /// One of the ready tasks, chosen by chance. Its body is away until `put_back`.
    pub fn pick(&self, chance: &Chance) -> Option<Turn> {
        loop {
            let woken = {
                let mut queue = self.ready.lock();
                let length = queue.woken.len();
                match length {
                    0 => return None,
                    1 => queue.woken.pop()?,
                    _ => queue.woken.swap_remove(chance.index(length)),
                }
            };
            woken.queued.store(false, Ordering::Release);
            let (slot, serial) = (woken.slot, woken.serial);
            if slot == MAIN {
                return Some(Turn::Main);
            }
            let mut tasks = self.tasks.borrow_mut();
            let task = tasks.get_mut(slot).filter(|task| task.serial == serial);
            if let Some(body) = task.and_then(|task| task.body.take()) {
                return Some(Turn::Task(Picked { slot, serial }, body));
            }
        }
    }

    /// Gives a task back that is still pending; it is dropped if its node crashed meanwhile.
    pub fn put_back(&self, picked: Picked, body: Body) {
        let surplus = {
            let mut tasks = self.tasks.borrow_mut();
            match tasks.get_mut(picked.slot).filter(|task| task.serial == picked.serial) {
                Some(task) => task.body.replace(body),
                None => Some(body),
            }
        };
        drop(surplus); // outside the borrow (E2)
    }

    /// Forgets a task that returned.
    pub fn finish(&self, picked: Picked) {
        let mut tasks = self.tasks.borrow_mut();
        if tasks.get(picked.slot).is_some_and(|task| task.serial == picked.serial) {
            tasks.remove(picked.slot);
        }
    }

    /// Takes all tasks of one node, for the caller to drop.
    #[must_use]
    pub fn take_node(&self, node: usize) -> Vec<Body> {
        let mut tasks = self.tasks.borrow_mut();
        let slots: Vec<usize> = tasks
            .iter()
            .filter(|(_, task)| task.owner.node == node)
            .map(|(slot, _)| slot)
            .collect();
        slots.into_iter().filter_map(|slot| tasks.remove(slot).body).collect()
    }

    /// Ends everything: tasks are dropped, none is taken any more, late wakes do nothing.
    pub fn close(&self) {
        self.closed.set(true);
        let tasks = self.tasks.take();
        drop(tasks);
        let woken = {
            let mut queue = self.ready.lock();
            queue.closed = true;
            std::mem::take(&mut queue.woken)
        };
        drop(woken);
    }

    /// The number of tasks that have not returned.
    pub fn live(&self) -> usize {
        self.tasks.borrow().len()
    }

    /// The first `count` live tasks in words.
    pub fn describe(&self, count: usize) -> Vec<String> {
        let tasks = self.tasks.borrow();
        let words =
            |task: &Task| format!("{} of node {} {}", task.name, task.owner.node, task.owner.core);
        tasks.iter().take(count).map(|(_, task)| words(task)).collect()
    }
}
