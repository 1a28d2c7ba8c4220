//! The ring as a guest in a glommio executor: a task drives it, parked on an eventfd that the
//! kernel signals when completions wait; it is read through glommio's main ring, so the executor
//! sleeps and wakes as for its own I/O. And the three rules that keep glommio 0.9 from going to
//! sleep while tasks are ready.
//!
//! Rule a: the pre-emption timer never fires. A timer that lands between its arming and the check
//!         makes the executor park with a full run queue.
//! Rule b: every task queue is without latency requirements, which would arm that timer.
//! Rule c: a thread outside wakes one idle task of each executor now and then, so that an executor
//!         that parked wrongly goes on after `TICK` at the latest.
//!
//! Invariants
//!   W1  The task waits on the eventfd only after it has looked, with notifications enabled, and
//!       seen neither completions nor deferred work.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use glommio::io::BufferedFile;
use glommio::timer::Timer;
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement, PoolPlacement};

use super::driver::Driver;
use super::executor::{new_event, yield_once};
use crate::base::ids::CoreId;

/// Rule a.
const PREEMPT_NEVER: Duration = Duration::from_secs(3600);
/// Rule c. 50 ms cost half a percent of one core for two idle executors.
const TICK: Duration = Duration::from_millis(50);
/// glommio registers this much for its own direct I/O, which nothing here uses.
const IO_MEMORY_BYTES: usize = 64 << 10;
/// glommio's own reactor gets its turn at least this often.
const CEDE_AFTER: Duration = Duration::from_micros(200);

/// The ring's place in a glommio executor.
pub struct Guest {
    driver: Rc<Driver>,
    event: BufferedFile,
    zero: BufferedFile,
}

impl Guest {
    /// On the executor's thread, of which it becomes a task.
    pub async fn settle(driver: Rc<Driver>) -> io::Result<Rc<Guest>> {
        // The first sleep of a process registers a barrier, which takes tens of milliseconds.
        glommio::spawn_local(async { Timer::new(Duration::from_micros(1)).await }).detach();
        let event = new_event()?;
        driver.signal(&event)?;
        // SAFETY: `event` gives its descriptor up, and nothing else owns it.
        let event = unsafe { BufferedFile::from_raw_fd(event.into_raw_fd()) };
        let zero = BufferedFile::open("/dev/zero").await.map_err(io::Error::from)?;
        let guest = Rc::new(Guest { driver, event, zero });
        glommio::spawn_local(guest.clone().run()).detach();
        Ok(guest)
    }

    pub fn spawn(task: impl Future<Output = ()> + 'static) {
        glommio::spawn_local(task).detach();
    }

    pub async fn sleep(duration: Duration) {
        if !duration.is_zero() {
            Timer::new(duration).await;
        }
    }

    /// Passes through glommio's reactor once, so that its timers and wake-ups get their turn.
    pub async fn cede(&self) {
        drop(self.zero.read_at(0, 1).await);
    }

    /// Runs for the life of the executor.
    async fn run(self: Rc<Self>) {
        let mut ceded = Instant::now();
        let mut event: Option<Pin<Box<dyn Future<Output = ()>>>> = None;
        loop {
            if self.driver.is_dirty() || self.driver.is_something_ready() {
                self.driver.round();
            } else {
                self.wait(&mut event).await;
            }
            if ceded.elapsed() >= CEDE_AFTER {
                self.cede().await;
                ceded = Instant::now();
            } else {
                yield_once().await;
            }
        }
    }

    async fn wait(self: &Rc<Self>, event: &mut Option<Pin<Box<dyn Future<Output = ()>>>>) {
        poll_fn(|context| {
            self.driver.set_bell(context.waker());
            if self.driver.is_dirty() {
                return Poll::Ready(());
            }
            // One read stays in flight across waits: it is never dropped half-way.
            let read = event.get_or_insert_with(|| {
                let guest = self.clone();
                Box::pin(async move { drop(guest.event.read_at(0, 8).await) })
            });
            if read.as_mut().poll(context).is_ready() {
                *event = None;
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }
}

/// Starts a glommio executor on `cpu` that runs `main` to its end.
pub fn start<M, F>(
    index: usize,
    cpu: usize,
    main: M,
) -> io::Result<ExecutorJoinHandle<io::Result<()>>>
where
    M: FnOnce() -> F + Send + 'static,
    F: Future<Output = io::Result<()>> + 'static,
{
    LocalExecutorBuilder::new(Placement::Fixed(cpu))
        .name(&format!("core-{index}"))
        .io_memory(IO_MEMORY_BYTES)
        .preempt_timer(PREEMPT_NEVER)
        .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
        .spawn(main)
        .map_err(|error| io::Error::other(error.to_string()))
}

/// Idle tasks to wake, one of each executor.
#[derive(Default)]
pub struct Ticker {
    wakers: Mutex<Vec<Option<Waker>>>,
}

/// The task that the ticker wakes; it has nothing to do but be woken.
pub async fn be_ticked(ticker: Arc<Ticker>, core: CoreId) {
    poll_fn(|context| {
        let mut wakers = ticker.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        if wakers.len() <= core.index() {
            wakers.resize(core.index() + 1, None);
        }
        if wakers[core.index()].is_none() {
            wakers[core.index()] = Some(context.waker().clone());
        }
        Poll::<()>::Pending
    })
    .await;
}

impl Ticker {
    pub fn forget(&self, core: CoreId) {
        let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waker) = wakers.get_mut(core.index()) {
            *waker = None;
        }
    }

    fn tick(&self) {
        let wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for waker in wakers.into_iter().flatten() {
            waker.wake_by_ref();
        }
    }
}

/// The thread of rule c; it ends with the last holder of `running` but itself.
pub fn start_ticker(ticker: Arc<Ticker>, running: Arc<()>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("ticker".into()).spawn(move || {
        // Ends with the last executor: then this thread holds the only count.
        while Arc::strong_count(&running) > 1 {
            std::thread::sleep(TICK);
            ticker.tick();
        }
    })
}
