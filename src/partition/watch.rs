//! A long poll: one fetch that waits for bytes in any of its partitions, on any core.
//!
//! Lives on: shared between the connection's core, which waits, and the owner cores, which add.
//!
//! Invariants
//!   W1  A watch that has seen at least the bytes it needs, or was fired, wakes its waiter.
//!   W2  A watch that has fired or whose waiter is gone is over; partitions forget it at their next
//!       chance.
//!   W3  A watch is used for another wait only when no partition knows it any more.
//!   W4  Whoever is woken knows of every core that made him wake that it has news.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;

use atomic_waker::AtomicWaker;

use crate::base::ids::CoreId;

/// Watches kept for other waits: more fetches than this seldom wait on a core.
const SPARE_MAX: usize = 1024;

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct FetchWatch {
    missing: AtomicU64,
    seen: AtomicU64,
    /// The cores that added bytes or fired, as `CoreSet`.
    news: AtomicU64,
    fired: AtomicBool,
    done: AtomicBool,
    waker: AtomicWaker,
}

/// Some of a node's cores; of more than 64, several share a place, and all of these are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoreSet(u64);

impl CoreSet {
    pub const ALL: CoreSet = CoreSet(u64::MAX);

    pub fn of(core: CoreId) -> CoreSet {
        CoreSet(1 << (core.0 % 64))
    }

    pub fn holds(self, core: CoreId) -> bool {
        self.0 & CoreSet::of(core).0 != 0
    }
}

/// A watch as the partitions of one core know it.
#[derive(Clone, Debug)]
pub struct Watcher {
    pub watch: Arc<FetchWatch>,
    pub core: CoreId,
}

impl Watcher {
    /// `bytes` more have settled; false when nobody waits for more.
    pub fn add(&self, bytes: u32) -> bool {
        self.watch.add(bytes, self.core)
    }

    /// Ends the wait whatever was seen.
    pub fn fire(&self) {
        self.watch.fire(self.core);
    }

    pub fn is_over(&self) -> bool {
        self.watch.is_over()
    }
}

/// The waiting side; dropping it ends the watch.
#[derive(Debug)]
pub struct FetchWait {
    watch: Arc<FetchWatch>,
    spare: Spare,
}

/// The watches of one core's waits, used again.
#[derive(Default)]
pub struct Watches {
    spare: Spare,
}

type Spare = Rc<RefCell<Vec<Arc<FetchWatch>>>>;

impl Watches {
    /// A watch that fires once `missing` bytes have settled.
    pub fn begin(&self, missing: u64) -> (Arc<FetchWatch>, FetchWait) {
        let watch = self.spare.borrow_mut().pop().unwrap_or_default();
        watch.missing.store(missing, Ordering::Release);
        (watch.clone(), FetchWait { watch, spare: self.spare.clone() })
    }
}

impl FetchWatch {
    /// `bytes` more have settled; false when nobody waits for more.
    fn add(&self, bytes: u32, core: CoreId) -> bool {
        if self.is_over() {
            return false;
        }
        let bytes = u64::from(bytes);
        if bytes > 0 {
            self.news.fetch_or(CoreSet::of(core).0, Ordering::AcqRel);
        }
        let seen = self.seen.fetch_add(bytes, Ordering::AcqRel).saturating_add(bytes);
        if seen >= self.missing.load(Ordering::Acquire) {
            self.fire(core);
            return false;
        }
        true
    }

    /// Ends the wait whatever was seen, for what is on `core`.
    pub fn fire(&self, core: CoreId) {
        self.news.fetch_or(CoreSet::of(core).0, Ordering::AcqRel);
        self.fired.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Whether so many bytes are all that the waiter needs.
    pub fn is_met_by(&self, bytes: usize) -> bool {
        bytes as u64 >= self.missing.load(Ordering::Acquire)
    }

    fn is_over(&self) -> bool {
        self.done.load(Ordering::Acquire) || self.fired.load(Ordering::Acquire)
    }
}

impl FetchWait {
    /// Returns when the watch has fired.
    pub async fn fired(&self) {
        poll_fn(|context| {
            if self.watch.fired.load(Ordering::Acquire) {
                return Poll::Ready(());
            }
            self.watch.waker.register(context.waker());
            if self.watch.fired.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// The cores on which something is new since the watch began.
    pub fn news(&self) -> CoreSet {
        CoreSet(self.watch.news.load(Ordering::Acquire))
    }
}

impl Drop for FetchWait {
    fn drop(&mut self) {
        let mut spare = self.spare.borrow_mut();
        match Arc::get_mut(&mut self.watch) {
            Some(watch) if spare.len() < SPARE_MAX => {
                *watch = FetchWatch::default();
                spare.push(self.watch.clone());
            }
            _ => self.watch.done.store(true, Ordering::Release),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const ONE: CoreId = CoreId(1);
    const OTHER: CoreId = CoreId(5);

    #[test]
    fn a_watch_fires_when_the_missing_bytes_have_come_from_anywhere() {
        let (watch, wait) = Watches::default().begin(100);
        assert!(watch.add(60, ONE));
        assert_eq!(wait.fired().now_or_never(), None);
        assert!(!watch.add(40, OTHER), "it needs no more");
        assert_eq!(wait.fired().now_or_never(), Some(()));
        let cores = [CoreId(0), ONE, OTHER].map(|core| wait.news().holds(core));
        assert_eq!(cores, [false, true, true], "W4");
    }

    #[test]
    fn a_watch_without_a_waiter_is_forgotten() {
        let (watch, wait) = Watches::default().begin(1);
        drop(wait);
        assert!(!watch.add(1, ONE));
    }

    #[test]
    fn a_watch_is_used_again_once_no_partition_knows_it() {
        let watches = Watches::default();
        let (watch, wait) = watches.begin(1);
        drop(wait);
        let (other, wait) = watches.begin(1);
        assert!(!Arc::ptr_eq(&watch, &other), "a partition knows the first one");
        assert!(!other.add(1, ONE));
        let place = Arc::as_ptr(&other);
        drop(other);
        assert_eq!(wait.fired().now_or_never(), Some(()));
        drop(wait);
        let (again, wait) = watches.begin(5);
        assert_eq!(Arc::as_ptr(&again), place);
        assert!(again.add(4, ONE));
        assert_eq!(wait.fired().now_or_never(), None, "nothing is left of the wait before");
    }
}
