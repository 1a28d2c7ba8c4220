//! The second ring: operations go in by tick, completions come out by one task per executor.
//!
//!     op future ── push SQE, mark dirty, wake ──► driver task ── enter ──► kernel
//!         ▲                                          │  ▲
//!         └────────────── wake on CQE ───────────────┘  └── eventfd, read through glommio's ring
//!
//! The driver parks on a blocking-mode eventfd that the kernel signals when completions wait; it
//! is read through glommio's main ring, so the executor sleeps and wakes as for its own I/O.
//!
//! Lives on: every core, one instance; the ring belongs to the thread that made it.
//!
//! Invariants
//!   V1  A slot is freed by its completion only: memory that the kernel may write to outlives the
//!       future that asked for it.
//!   V2  A dropped future's operation is cancelled; a descriptor that it yields all the same is
//!       closed.
//!   V3  The driver waits on the eventfd only after it has looked, with notifications enabled, and
//!       seen neither completions nor deferred work.

use std::cell::{Cell, RefCell};
use std::ffi::CString;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use glommio::io::BufferedFile;
use io_uring::{IoUring, opcode, squeue, types};
use slab::Slab;

use crate::base::buffer::AlignedBuffer;

/// Submission queue entries; a full queue is submitted at once, so this bounds a batch only.
const ENTRIES: u32 = 512;
/// Completions that fit before the kernel has to keep the rest for later.
const COMPLETIONS: u32 = 8192;
/// The driver lets glommio's own reactor run at least this often.
const CEDE_AFTER: Duration = Duration::from_micros(200);
/// Marks completions that nobody waits for.
const NOBODY: u64 = u64::MAX;

/// What an operation needs to stay alive until it completes.
#[derive(Default)]
#[expect(dead_code, reason = "most fields are held for their drop alone")]
pub struct Keep {
    pub descriptor: Option<Rc<OwnedFd>>,
    pub bytes: Option<Bytes>,
    pub buffer: Option<AlignedBuffer>,
    pub paths: Vec<CString>,
    pub address: Option<Box<socket2::SockAddr>>,
    /// The result is a new descriptor, to be closed if nobody takes it.
    pub yields_descriptor: bool,
}

enum Slot {
    Waiting { waker: Option<Waker>, keep: Keep },
    Orphan { keep: Keep },
    Done { result: i32, keep: Keep },
}

/// See the module's documentation.
pub struct Driver {
    ring: RefCell<IoUring>,
    slots: RefCell<Slab<Slot>>,
    dirty: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    event: BufferedFile,
    zero: BufferedFile,
}

impl Driver {
    /// Makes the ring on the calling thread, which alone may use it.
    pub async fn new() -> io::Result<Rc<Driver>> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(COMPLETIONS)
            .build(ENTRIES)?;
        // SAFETY: the call takes no pointers; the descriptor is checked and owned at once.
        let event = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if event < 0 {
            return Err(io::Error::last_os_error());
        }
        ring.submitter().register_eventfd(event)?;
        // SAFETY: `event` is a fresh descriptor that nothing else owns.
        let event = unsafe { BufferedFile::from_raw_fd(event) };
        let zero = BufferedFile::open("/dev/zero").await.map_err(io::Error::from)?;
        Ok(Rc::new(Driver {
            ring: RefCell::new(ring),
            slots: RefCell::new(Slab::new()),
            dirty: Cell::new(false),
            waker: RefCell::new(None),
            event,
            zero,
        }))
    }

    /// Queues an operation; it is submitted with all others of this tick.
    ///
    /// # Safety
    /// Every pointer in `entry` points into `keep`, or to memory that lives as long as the program.
    pub unsafe fn submit(self: &Rc<Self>, entry: squeue::Entry, keep: Keep) -> Operation {
        let key = self.slots.borrow_mut().insert(Slot::Waiting { waker: None, keep });
        let entry = entry.user_data(u64::try_from(key).unwrap_or(NOBODY));
        // SAFETY: the caller's promise; the slot keeps `keep` until the completion (V1).
        unsafe { self.push(&entry) };
        Operation { driver: self.clone(), key: Some(key) }
    }

    /// # Safety
    /// As `submit`.
    unsafe fn push(&self, entry: &squeue::Entry) {
        let mut ring = self.ring.borrow_mut();
        // SAFETY: the caller's promise.
        while unsafe { ring.submission().push(entry) }.is_err() {
            // The queue is full: hand it over. EBUSY and EINTR leave it full, so try again.
            drop(ring.submit());
        }
        drop(ring);
        self.mark_dirty();
    }

    fn mark_dirty(&self) {
        if !self.dirty.replace(true)
            && let Some(waker) = self.waker.borrow().as_ref()
        {
            waker.wake_by_ref();
        }
    }

    /// Passes through glommio's reactor once, so that its timers and wake-ups get their turn.
    pub async fn cede(&self) {
        drop(self.zero.read_at(0, 1).await);
    }

    /// Runs for the life of the executor.
    pub async fn run(self: Rc<Self>) {
        let mut ceded = Instant::now();
        let mut event: Option<Pin<Box<dyn Future<Output = ()>>>> = None;
        loop {
            if self.dirty.replace(false) || self.is_something_ready() {
                self.round();
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

    /// Enables notifications and looks once more (V3).
    fn is_something_ready(&self) -> bool {
        let mut ring = self.ring.borrow_mut();
        ring.completion().enable_eventfd();
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let deferred = ring.submission().taskrun() || ring.submission().cq_overflow();
        deferred || !ring.completion().is_empty()
    }

    async fn wait(self: &Rc<Self>, event: &mut Option<Pin<Box<dyn Future<Output = ()>>>>) {
        poll_fn(|context| {
            *self.waker.borrow_mut() = Some(context.waker().clone());
            if self.dirty.get() {
                return Poll::Ready(());
            }
            // One read stays in flight across waits: it is never dropped half-way.
            let read = event.get_or_insert_with(|| {
                let driver = self.clone();
                Box::pin(async move { drop(driver.event.read_at(0, 8).await) })
            });
            if read.as_mut().poll(context).is_ready() {
                *event = None;
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }

    /// Submits what is queued, lets the kernel run its deferred work, and wakes whoever waited.
    fn round(&self) {
        let mut ring = self.ring.borrow_mut();
        ring.completion().disable_eventfd();
        let queued = u32::try_from(ring.submission().len()).unwrap_or(0);
        // SAFETY: entering with GETEVENTS passes no pointers.
        let entered = unsafe {
            ring.submitter().enter::<libc::sigset_t>(queued, 0, IORING_ENTER_GETEVENTS, None)
        };
        if let Err(error) = entered
            && !matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EINTR | libc::EAGAIN))
        {
            // The ring itself is broken: nothing on this core can go on.
            panic!("io_uring_enter failed: {error}");
        }
        if !ring.submission().is_empty() {
            self.dirty.set(true);
        }
        let mut slots = self.slots.borrow_mut();
        for completion in ring.completion() {
            if completion.user_data() != NOBODY {
                complete(&mut slots, completion.user_data(), completion.result());
            }
        }
    }

    /// Operations in flight; for tests of leaks.
    #[cfg(test)]
    pub fn in_flight(&self) -> usize {
        self.slots.borrow().len()
    }

    fn orphan(&self, key: usize) {
        let mut slots = self.slots.borrow_mut();
        let Some(slot) = slots.get_mut(key) else { return };
        match std::mem::replace(slot, Slot::Orphan { keep: Keep::default() }) {
            Slot::Waiting { keep, .. } => {
                *slot = Slot::Orphan { keep };
                drop(slots);
                // The cancel goes out ahead of any later operation that gets the same slot, so it
                // cannot hit that one.
                let target = u64::try_from(key).unwrap_or(NOBODY);
                let entry = opcode::AsyncCancel::new(target).build().user_data(NOBODY);
                // SAFETY: the entry holds no pointers.
                unsafe { self.push(&entry) };
            }
            Slot::Done { result, keep } => {
                slots.remove(key);
                close_unwanted(&keep, result);
            }
            Slot::Orphan { .. } => {}
        }
    }
}

/// `IORING_ENTER_GETEVENTS` of `linux/io_uring.h`.
const IORING_ENTER_GETEVENTS: u32 = 1;

fn complete(slots: &mut Slab<Slot>, key: u64, result: i32) {
    let Some(slot) = usize::try_from(key).ok().and_then(|key| slots.get_mut(key)) else { return };
    match std::mem::replace(slot, Slot::Orphan { keep: Keep::default() }) {
        Slot::Waiting { waker, keep } => {
            *slot = Slot::Done { result, keep };
            if let Some(waker) = waker {
                waker.wake();
            }
        }
        Slot::Orphan { keep } => {
            close_unwanted(&keep, result);
            slots.remove(usize::try_from(key).unwrap_or(usize::MAX));
        }
        Slot::Done { .. } => unreachable!("an operation completes once"),
    }
}

fn close_unwanted(keep: &Keep, result: i32) {
    if keep.yields_descriptor && result >= 0 {
        drop(own(result));
    }
}

/// Takes ownership of a descriptor that a completion yielded.
pub fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the completion of an open or accept yields a fresh descriptor, exactly once.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

async fn yield_once() {
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

/// An operation in flight. Resolves to the kernel's result and what was kept for it.
pub struct Operation {
    driver: Rc<Driver>,
    key: Option<usize>,
}

impl Future for Operation {
    type Output = (io::Result<u32>, Keep);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let key = self.key.unwrap_or(usize::MAX);
        let driver = self.driver.clone();
        let mut slots = driver.slots.borrow_mut();
        match slots.get_mut(key) {
            Some(Slot::Waiting { waker, .. }) => {
                *waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            Some(Slot::Done { .. }) => {}
            _ => unreachable!("an operation is not polled after it resolved"),
        }
        self.key = None;
        match slots.remove(key) {
            Slot::Done { result, keep } => Poll::Ready((outcome(result), keep)),
            _ => unreachable!("looked at above"),
        }
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.driver.orphan(key);
        }
    }
}

fn outcome(result: i32) -> io::Result<u32> {
    u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

/// A raw descriptor for an entry whose `Keep` holds the owner.
pub fn fd(descriptor: &impl std::os::fd::AsRawFd) -> types::Fd {
    types::Fd(descriptor.as_raw_fd())
}
