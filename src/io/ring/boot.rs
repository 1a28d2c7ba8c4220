//! Starting the executors: one thread per shard, pinned, under the three rules that keep
//! glommio 0.9 from going to sleep while tasks are ready.
//!
//! Rule a: the pre-emption timer never fires. A timer that lands between its arming and the check
//!         makes the executor park with a full run queue.
//! Rule b: every task queue is without latency requirements, which would arm that timer.
//! Rule c: a thread outside wakes one idle task of each executor now and then, so that an executor
//!         that parked wrongly goes on after `TICK` at the latest.

use std::future::{Future, poll_fn};
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use glommio::timer::Timer;
use glommio::{LocalExecutorBuilder, Placement, PoolPlacement};

use super::driver::Driver;
use super::{Inner, RingIo};
use crate::base::buffer::Arena;
use crate::base::ids::CoreId;

/// Rule a.
const PREEMPT_NEVER: Duration = Duration::from_secs(3600);
/// Rule c. 50 ms cost half a percent of one core for two idle executors.
const TICK: Duration = Duration::from_millis(50);
/// glommio registers this much for its own direct I/O, which nothing here uses.
const IO_MEMORY_BYTES: usize = 64 << 10;

/// A running executor.
pub struct Executor {
    thread: glommio::ExecutorJoinHandle<io::Result<()>>,
    /// Held by the thread's work.
    alive: Weak<()>,
}

impl Executor {
    /// Whether it has ended, or was never able to begin; `join` then says why.
    pub fn is_over(&self) -> bool {
        self.alive.strong_count() == 0
    }

    /// Waits for the executor's end.
    pub fn join(self) -> io::Result<()> {
        self.thread.join().map_err(|error| io::Error::other(error.to_string()))?
    }
}

/// Idle tasks to wake, one of each executor.
#[derive(Default)]
struct Ticker {
    wakers: Mutex<Vec<Option<Waker>>>,
}

/// Starts an executor on each of `cpus` (several may share one) and runs `main(io)` in it. The
/// executors end when their `main` returns.
pub fn boot<M, F>(cpus: &[usize], arena_bytes: usize, main: M) -> io::Result<Vec<Executor>>
where
    M: Fn(RingIo) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + 'static,
{
    let ticker = Arc::new(Ticker::default());
    let clock = quanta::Clock::new();
    let origin = clock.raw();
    let running = Arc::new(());
    let mut executors = Vec::new();
    for (index, cpu) in cpus.iter().enumerate() {
        let core = CoreId(u16::try_from(index).map_err(io::Error::other)?);
        let (main, ticker, clock) = (main.clone(), ticker.clone(), clock.clone());
        let (running, alive) = (running.clone(), Arc::new(()));
        let watched = Arc::downgrade(&alive);
        let thread = LocalExecutorBuilder::new(Placement::Fixed(*cpu))
            .name(&format!("core-{index}"))
            .io_memory(IO_MEMORY_BYTES)
            .preempt_timer(PREEMPT_NEVER)
            .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
            .spawn(move || async move {
                let outcome = run_core(core, arena_bytes, clock, origin, &ticker, main).await;
                drop((running, alive));
                outcome
            })
            .map_err(|error| io::Error::other(error.to_string()))?;
        executors.push(Executor { thread, alive: watched });
    }
    start_ticker(ticker, running)?;
    Ok(executors)
}

async fn run_core<M, F>(
    core: CoreId,
    arena_bytes: usize,
    clock: quanta::Clock,
    origin: u64,
    ticker: &Arc<Ticker>,
    main: M,
) -> io::Result<()>
where
    M: Fn(RingIo) -> F,
    F: Future<Output = ()> + 'static,
{
    // The first sleep of a process registers a barrier, which takes tens of milliseconds.
    glommio::spawn_local(async { Timer::new(Duration::from_micros(1)).await }).detach();
    glommio::spawn_local(be_ticked(ticker.clone(), core)).detach();
    let driver = Driver::new().await?;
    glommio::spawn_local(driver.clone().run()).detach();
    let arena = Arena::new(arena_bytes);
    let inner = Rc::new(Inner { core, arena, driver, clock, origin });
    main(RingIo { inner }).await;
    ticker.forget(core);
    Ok(())
}

/// The task that the ticker wakes; it has nothing to do but be woken.
async fn be_ticked(ticker: Arc<Ticker>, core: CoreId) {
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
    fn forget(&self, core: CoreId) {
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

fn start_ticker(ticker: Arc<Ticker>, running: Arc<()>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("ticker".into()).spawn(move || {
        // Ends with the last executor: then this thread holds the only count.
        while Arc::strong_count(&running) > 1 {
            std::thread::sleep(TICK);
            ticker.tick();
        }
    })
}
