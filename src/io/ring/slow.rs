//! Names the tasks that hold a core for long: everything else on that core waits meanwhile.
//!
//! Costs nothing unless it is asked for, before the start: `RUST_LOG=info,corelog::io::ring::slow=
//! trace`.
//!
//! Lives on: every core.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// A run of a task is worth a line from this long on.
const LONG: Duration = Duration::from_micros(500);

/// Whether the log wants to know.
pub fn is_watched() -> bool {
    tracing::enabled!(tracing::Level::TRACE)
}

/// A task whose long runs are logged.
pub struct Watched<F> {
    pub name: &'static str,
    pub task: Pin<Box<F>>,
}

impl<F: Future<Output = ()>> Future for Watched<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let name = self.name;
        watch(name, || self.task.as_mut().poll(context))
    }
}

/// Runs `work` and logs it if it took much of the thread's own processor time; what the clock says
/// beyond that is the machine's other users, or the wait that `work` is.
pub fn watch<T>(name: &str, work: impl FnOnce() -> T) -> T {
    let (began, own) = (Instant::now(), thread_time());
    let outcome = work();
    let own = thread_time().saturating_sub(own);
    if own >= LONG {
        let (own, took) = (own.as_micros(), began.elapsed().as_micros());
        tracing::trace!("{name} held its core for {own} us, in {took} us by the clock");
    }
    outcome
}

fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec into `time`.
    let outcome = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(outcome, 0, "a thread may always read its own clock");
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanos)
}
