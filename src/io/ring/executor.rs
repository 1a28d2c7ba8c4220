//! An executor around one ring: tasks, timers and completions in one loop, one system call a lap.
//!
//!     wakes on this thread ──► ready ──► run each once ──► alarms due ──► round, or park if idle
//!     wakes on others ──► woken ──┘                                          │
//!            └── a message to the ring, if parked ───────────────────────────┘
//!
//! glommio passes through three rings of its own in every lap and issues a barrier to all cores
//! whenever it parks: at 10,000 small writes a second that were 17 `io_uring_enter` and 1.2
//! `membarrier` a request. Here submitting, waiting and the timeout are one `io_uring_enter`.
//!
//! Lives on: every core, one instance.  Talks to: `driver`.
//!
//! Invariants
//!   X1  A task runs on the thread that spawned it; a wake elsewhere only queues it.
//!   X2  No wake is lost: whoever queues from another thread looks at `is_parked` after that, and
//!       the loop looks at the queue after it has set `is_parked`, both in one total order.
//!   X3  A lap runs each task that was ready at its start once, then looks at alarms, and at
//!       completions once `ROUND_WITHIN` has passed: tasks that wake themselves starve nobody.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use async_task::Runnable;
use crossbeam_queue::SegQueue;
use io_uring::opcode;

use super::Clock;
use super::driver::{Driver, Keep, Peer, fd};
use super::slow;
use crate::base::time::Instant;

/// What was queued goes to the kernel within this time and a lap: several laps share a system call.
const ROUND_WITHIN: Duration = Duration::from_micros(20);

thread_local! {
    /// The executor of this thread.
    static HERE: RefCell<Option<Rc<Executor>>> = const { RefCell::new(None) };
}

/// See the module's documentation.
pub struct Executor {
    ready: RefCell<VecDeque<Runnable>>,
    alarms: RefCell<BTreeMap<(Instant, u64), Waker>>,
    /// Numbers alarms of the same instant.
    next_alarm: Cell<u64>,
    remote: Arc<Remote>,
    driver: Rc<Driver>,
    clock: Clock,
    /// The log wants to know what holds the core for long.
    is_watched: bool,
}

/// What other threads see.
struct Remote {
    /// At most one entry a task: a task that is queued already is not queued again.
    woken: SegQueue<Runnable>,
    is_parked: AtomicBool,
    peer: Arc<Peer>,
}

impl Remote {
    /// `here` is the executor of this thread, if it has one.
    fn wake(&self, runnable: Runnable, here: Option<&Executor>) {
        self.woken.push(runnable);
        fence(Ordering::SeqCst);
        if self.is_parked.load(Ordering::Relaxed) && self.is_parked.swap(false, Ordering::SeqCst) {
            let is_told = here.is_some_and(|here| here.driver.poke(&self.peer));
            if !is_told {
                self.peer.wake();
            }
        }
    }
}

/// Runs the task that `main` makes on a thread of its own, pinned to `cpu`, until it returns.
/// `clock` is what the task reads and deadlines are given in.
pub fn start<M, F>(
    index: usize,
    cpu: usize,
    clock: Clock,
    main: M,
) -> io::Result<JoinHandle<io::Result<()>>>
where
    M: FnOnce(Rc<Executor>, Rc<Driver>) -> F + Send + 'static,
    F: Future<Output = ()> + 'static,
{
    std::thread::Builder::new().name(format!("core-{index}")).spawn(move || {
        pin_to(cpu)?;
        let executor = Executor::new(clock)?;
        HERE.set(Some(executor.clone()));
        let is_over = Rc::new(Cell::new(false));
        let over = is_over.clone();
        let work = main(executor.clone(), executor.driver.clone());
        executor.spawn(async move {
            work.await;
            over.set(true);
        });
        executor.spawn(executor.clone().hear());
        executor.run(&is_over);
        HERE.set(None);
        Ok(())
    })
}

fn pin_to(cpu: usize) -> io::Result<()> {
    // SAFETY: a zeroed set is a valid empty one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    if cpu >= usize::try_from(libc::CPU_SETSIZE).unwrap_or(0) {
        return Err(io::Error::other(format!("CPU {cpu} is beyond what can be pinned to")));
    }
    // SAFETY: `cpu` is below CPU_SETSIZE.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the call reads one set of the size given.
    let outcome = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A counter that a reader waits on.
pub fn new_event() -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers; the descriptor is checked and owned at once.
    let event = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if event < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `event` is a fresh descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(event) })
}

/// Goes behind all tasks that are ready.
pub async fn yield_once() {
    let mut yielded = false;
    poll_fn(|context| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Executor {
    fn new(clock: Clock) -> io::Result<Rc<Executor>> {
        let driver = Driver::new()?;
        let peer = Arc::new(driver.as_peer(new_event()?));
        Ok(Rc::new(Executor {
            ready: RefCell::default(),
            alarms: RefCell::default(),
            next_alarm: Cell::new(0),
            remote: Arc::new(Remote {
                woken: SegQueue::new(),
                is_parked: AtomicBool::new(false),
                peer,
            }),
            driver,
            clock,
            is_watched: slow::is_watched(),
        }))
    }

    /// Queues `task`; it runs until it returns.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let remote = self.remote.clone();
        let (runnable, task) = async_task::spawn_local(task, move |runnable: Runnable| {
            schedule(&remote, runnable);
        });
        task.detach();
        runnable.schedule();
    }

    /// Returns at `deadline`, read on `clock`, or soon after.
    pub fn sleep_until(self: &Rc<Self>, deadline: Instant) -> Alarm {
        Alarm { executor: self.clone(), deadline, number: None }
    }

    fn run(self: &Rc<Self>, is_over: &Cell<bool>) {
        let mut entered = self.clock.now();
        while !is_over.get() {
            self.lap();
            if !self.ready.borrow().is_empty() {
                let now = self.clock.now();
                if now - entered >= ROUND_WITHIN {
                    self.in_ring(|driver| driver.round_if_due());
                    entered = now;
                }
                continue;
            }
            self.remote.is_parked.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if self.remote.woken.is_empty() && !is_over.get() {
                let next = self.alarms.borrow().keys().next().map(|(deadline, _)| *deadline);
                let timeout = next.map(|deadline| deadline - self.clock.now());
                self.in_ring(|driver| driver.park(timeout));
            }
            self.remote.is_parked.store(false, Ordering::Relaxed);
            entered = self.clock.now();
        }
        // Others may sleep until what was queued for them is known.
        self.driver.round();
    }

    fn in_ring(&self, enter: impl FnOnce(&Driver)) {
        if self.is_watched {
            slow::watch("the ring", || enter(&self.driver))
        } else {
            enter(&self.driver)
        }
    }

    /// Runs what is ready (X3).
    fn lap(&self) {
        while let Some(runnable) = self.remote.woken.pop() {
            self.ready.borrow_mut().push_back(runnable);
        }
        self.sound_alarms();
        let ready = self.ready.borrow().len();
        for _ in 0..ready {
            let Some(runnable) = self.ready.borrow_mut().pop_front() else { return };
            runnable.run();
            self.driver.tend_pokes();
        }
    }

    fn sound_alarms(&self) {
        if self.alarms.borrow().is_empty() {
            return;
        }
        let now = self.clock.now();
        loop {
            let mut alarms = self.alarms.borrow_mut();
            let Some(first) = alarms.first_entry().filter(|first| first.key().0 <= now) else {
                return;
            };
            let waker = first.remove();
            drop(alarms);
            waker.wake();
        }
    }

    /// Reads the counter that other threads raise, so that a parked ring has a completion.
    async fn hear(self: Rc<Self>) {
        let mut counter = Box::new([0_u8; 8]);
        loop {
            let length = u32::try_from(counter.len()).unwrap_or(0);
            let event = fd(self.remote.peer.event());
            let entry = opcode::Read::new(event, counter.as_mut_ptr(), length).build();
            let keep = Keep { counter: Some(counter), ..Keep::default() };
            // SAFETY: the counter is boxed, owned by `keep`; the event lives as long as the ring.
            let (read, keep) = unsafe { self.driver.submit(entry, keep) }.await;
            if let Err(error) = read
                && !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
            {
                // A core that others cannot wake would stand still without a word.
                panic!("the eventfd of a core cannot be read: {error}");
            }
            counter = keep.counter.unwrap_or_default();
        }
    }
}

/// Queues a task that was woken, from whichever thread.
fn schedule(remote: &Arc<Remote>, runnable: Runnable) {
    let mut held = Some(runnable);
    // The variable is gone while the thread ends: nothing runs here any more.
    let _ = HERE.try_with(|here| {
        if let Some(here) = &*here.borrow()
            && let Some(runnable) = held.take()
        {
            if Arc::ptr_eq(&here.remote, remote) {
                here.ready.borrow_mut().push_back(runnable);
            } else {
                remote.wake(runnable, Some(here));
            }
        }
    });
    if let Some(runnable) = held {
        remote.wake(runnable, None);
    }
}

/// A task's wait for a time.
pub struct Alarm {
    executor: Rc<Executor>,
    deadline: Instant,
    /// Set while it is among the executor's alarms.
    number: Option<u64>,
}

impl Future for Alarm {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.deadline <= self.executor.clock.now() {
            return Poll::Ready(());
        }
        let number = self.number.unwrap_or_else(|| {
            let number = self.executor.next_alarm.get();
            self.executor.next_alarm.set(number + 1);
            number
        });
        self.number = Some(number);
        let waker = context.waker().clone();
        self.executor.alarms.borrow_mut().insert((self.deadline, number), waker);
        Poll::Pending
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.executor.alarms.borrow_mut().remove(&(self.deadline, number));
        }
    }
}
