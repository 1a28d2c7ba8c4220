//! Starting the executors: one thread per shard, pinned to its CPU.

use std::cell::OnceCell;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use super::driver::Driver;
use super::executor;
use super::guest::{self, Guest, Ticker};
use super::supply;
use super::{Clock, Host, Inner, RingIo};
use crate::base::buffer::Arena;
use crate::base::ids::CoreId;

/// What runs a core's tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// The loop of `executor`, around the one ring that does all I/O.
    #[default]
    Own,
    /// A glommio executor with its three rings, in which that ring is a guest.
    Glommio,
}

/// A running executor.
pub struct Executor {
    thread: Thread,
    /// Held by the thread's work.
    alive: Weak<()>,
}

enum Thread {
    Own(JoinHandle<io::Result<()>>),
    Glommio(glommio::ExecutorJoinHandle<io::Result<()>>),
}

impl Executor {
    /// Whether it has ended, or was never able to begin; `join` then says why.
    pub fn is_over(&self) -> bool {
        self.alive.strong_count() == 0
    }

    /// Waits for the executor's end.
    pub fn join(self) -> io::Result<()> {
        match self.thread {
            Thread::Own(thread) => {
                thread.join().map_err(|_| io::Error::other("its thread panicked"))?
            }
            Thread::Glommio(thread) => {
                thread.join().map_err(|error| io::Error::other(error.to_string()))?
            }
        }
    }
}

/// Starts an executor on each of `cpus` (several may share one) and runs `main(io)` in it. The
/// executors end when their `main` returns.
pub fn boot<M, F>(cpus: &[usize], arena_bytes: usize, main: M) -> io::Result<Vec<Executor>>
where
    M: Fn(RingIo) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + 'static,
{
    boot_on(Engine::default(), cpus, arena_bytes, main)
}

/// `boot`, on the engine named.
pub fn boot_on<M, F>(
    engine: Engine,
    cpus: &[usize],
    arena_bytes: usize,
    main: M,
) -> io::Result<Vec<Executor>>
where
    M: Fn(RingIo) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + 'static,
{
    supply::start();
    let ticker = Arc::new(Ticker::default());
    let clock = Clock::new();
    let running = Arc::new(());
    let mut executors = Vec::new();
    for (index, cpu) in cpus.iter().copied().enumerate() {
        let core = CoreId(u16::try_from(index).map_err(io::Error::other)?);
        let (main, clock, running) = (main.clone(), clock.clone(), running.clone());
        let ticks = clock.clone();
        let alive = Arc::new(());
        let watched = Arc::downgrade(&alive);
        let prepared = move |host: Host, driver: Rc<Driver>| {
            let arena = Arena::new(arena_bytes);
            let calls = OnceCell::new();
            let io = RingIo { inner: Rc::new(Inner { core, arena, driver, clock, host, calls }) };
            async move {
                main(io).await;
                drop((running, alive));
            }
        };
        let thread = match engine {
            Engine::Own => {
                Thread::Own(executor::start(index, cpu, ticks, move |executor, driver| {
                    prepared(Host::Own(executor), driver)
                })?)
            }
            Engine::Glommio => {
                let ticker = ticker.clone();
                Thread::Glommio(guest::start(index, cpu, move || async move {
                    glommio::spawn_local(guest::be_ticked(ticker.clone(), core)).detach();
                    let driver = Driver::new()?;
                    let guest = Guest::settle(driver.clone()).await?;
                    prepared(Host::Glommio(guest), driver).await;
                    ticker.forget(core);
                    Ok(())
                })?)
            }
        };
        executors.push(Executor { thread, alive: watched });
    }
    if engine == Engine::Glommio {
        guest::start_ticker(ticker, running)?;
    }
    Ok(executors)
}
