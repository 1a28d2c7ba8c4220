//! A long poll: one fetch that waits for bytes in any of its partitions, on any core.
//!
//! Lives on: shared between the connection's core, which waits, and the owner cores, which add.
//!
//! Invariants
//!   W1  A watch that has seen at least the bytes it needs, or was fired, wakes its waiter.
//!   W2  A watch whose waiter is gone is done; partitions forget it at their next chance.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;

use atomic_waker::AtomicWaker;

/// See the module's documentation.
#[derive(Debug)]
pub struct FetchWatch {
    missing: AtomicU64,
    seen: AtomicU64,
    fired: AtomicBool,
    done: AtomicBool,
    waker: AtomicWaker,
}

/// The waiting side; dropping it ends the watch.
#[derive(Debug)]
pub struct FetchWait {
    watch: Arc<FetchWatch>,
}

impl FetchWatch {
    /// A watch that fires once `missing` bytes have settled.
    pub fn new(missing: u64) -> (Arc<FetchWatch>, FetchWait) {
        let watch = Arc::new(FetchWatch {
            missing: AtomicU64::new(missing),
            seen: AtomicU64::new(0),
            fired: AtomicBool::new(false),
            done: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        });
        (watch.clone(), FetchWait { watch })
    }

    /// `bytes` more have settled; false when nobody waits any more.
    pub fn add(&self, bytes: u32) -> bool {
        if self.is_done() {
            return false;
        }
        let bytes = u64::from(bytes);
        let seen = self.seen.fetch_add(bytes, Ordering::AcqRel).saturating_add(bytes);
        if seen >= self.missing.load(Ordering::Acquire) {
            self.fire();
        }
        true
    }

    /// Ends the wait whatever was seen.
    pub fn fire(&self) {
        self.fired.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
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
}

impl Drop for FetchWait {
    fn drop(&mut self) {
        self.watch.done.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_watch_fires_when_the_missing_bytes_have_come_from_anywhere() {
        let (watch, wait) = FetchWatch::new(100);
        assert!(watch.add(60));
        assert_eq!(wait.fired().now_or_never(), None);
        assert!(watch.add(40));
        assert_eq!(wait.fired().now_or_never(), Some(()));
    }

    #[test]
    fn a_watch_without_a_waiter_is_forgotten() {
        let (watch, wait) = FetchWatch::new(1);
        drop(wait);
        assert!(!watch.add(1));
    }
}
