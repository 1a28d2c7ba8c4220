//! The ring: operations go in by lap, completions come out and wake whoever waits.
//!
//!     op future ── push SQE, ring the bell ──► round or park ── enter ──► kernel
//!         ▲                                         │
//!         └────────────── wake on CQE ──────────────┘
//!
//! Who calls `round` is the executor's affair: `executor` does it in its loop, `guest` in a task of
//! a glommio executor.
//!
//! Lives on: every core, one instance; the ring belongs to the thread that made it.
//!
//! Invariants
//!   V1  A slot is freed by its completion only: memory that the kernel may write to outlives the
//!       future that asked for it.
//!   V2  A dropped future's operation is cancelled; a descriptor that it yields all the same is
//!       closed.
//!   V3  A poke wakes its peer, by the ring or, if that fails, by the counter.

use std::cell::{Cell, RefCell};
use std::ffi::CString;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use io_uring::{IoUring, opcode, squeue, types};
use slab::Slab;

use crate::base::buffer::AlignedBuffer;

/// Submission queue entries; a full queue is submitted at once, so this bounds a batch only.
const ENTRIES: u32 = 512;
/// Completions that fit before the kernel has to keep the rest for later.
const COMPLETIONS: u32 = 8192;
/// Marks completions that nobody waits for.
const NOBODY: u64 = u64::MAX;
/// Marks what is said of a poke, beside the peer's number.
const POKE: u64 = 1 << 63;
/// Pokes wait for so many tasks of this core at most: they wake a core that sleeps.
const POKE_TASKS_MAX: u32 = 4;

/// What an operation needs to stay alive until it completes.
#[derive(Default)]
#[expect(dead_code, reason = "most fields are held for their drop alone")]
pub struct Keep {
    pub descriptor: Option<Rc<OwnedFd>>,
    pub bytes: Option<Bytes>,
    pub buffer: Option<AlignedBuffer>,
    pub paths: Vec<CString>,
    pub address: Option<Box<socket2::SockAddr>>,
    pub counter: Option<Box<[u8; 8]>>,
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
    /// Woken when an operation is queued; unused where the executor looks by itself.
    bell: RefCell<Option<Waker>>,
    /// Those whose rings were poked, in the order of the first time.
    peers: RefCell<Vec<Arc<Peer>>>,
    /// Tasks that ran since a poke was queued, if one is.
    poked: Cell<Option<u32>>,
}

/// How other threads wake the one that sleeps in a ring.
pub struct Peer {
    /// The ring, a number only: who is gone has closed it.
    ring: RawFd,
    /// A counter that the ring reads.
    event: OwnedFd,
}

impl Peer {
    /// From any thread.
    pub fn wake(&self) {
        let one = 1_u64.to_ne_bytes();
        // SAFETY: the call reads 8 bytes. It fails only if the counter is full, and then the one
        // who reads it is awake.
        unsafe { libc::write(self.event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    pub fn event(&self) -> &OwnedFd {
        &self.event
    }
}

impl Driver {
    /// Makes the ring on the calling thread, which alone may use it.
    pub fn new() -> io::Result<Rc<Driver>> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(COMPLETIONS)
            .build(ENTRIES)?;
        Ok(Rc::new(Driver {
            ring: RefCell::new(ring),
            slots: RefCell::new(Slab::new()),
            dirty: Cell::new(false),
            bell: RefCell::new(None),
            peers: RefCell::default(),
            poked: Cell::new(None),
        }))
    }

    /// What wakes this ring's thread, by way of `event` where it must be.
    pub fn as_peer(&self, event: OwnedFd) -> Peer {
        Peer { ring: self.ring.borrow().as_raw_fd(), event }
    }

    /// Wakes a ring's thread with the next submission, which `tend_pokes` or the next round is: it
    /// costs neither of them a system call of its own. False if that cannot be said here.
    pub fn poke(&self, peer: &Arc<Peer>) -> bool {
        let Ok(mut ring) = self.ring.try_borrow_mut() else { return false };
        let mut peers = self.peers.borrow_mut();
        let known = peers.iter().position(|known| Arc::ptr_eq(known, peer));
        let number = known.unwrap_or_else(|| {
            peers.push(peer.clone());
            peers.len() - 1
        });
        let entry = opcode::MsgRingData::new(types::Fd(peer.ring), 0, NOBODY, None)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(POKE | number as u64);
        // SAFETY: the entry holds no pointers.
        if unsafe { ring.submission().push(&entry) }.is_err() {
            return false;
        }
        drop((ring, peers));
        self.poked.set(self.poked.get().or(Some(0)));
        self.mark_dirty();
        true
    }

    /// A task has run: pokes that have waited for several go out.
    pub fn tend_pokes(&self) {
        let Some(tasks) = self.poked.get() else { return };
        self.poked.set(Some(tasks + 1));
        if tasks + 1 >= POKE_TASKS_MAX {
            self.poked.set(None);
            let mut ring = self.ring.borrow_mut();
            // What is not taken now goes with the next round.
            drop(ring.submit());
            self.dirty.set(!ring.submission().is_empty());
        }
    }

    /// Lets the kernel signal `event` whenever a completion waits.
    pub fn signal(&self, event: &impl AsRawFd) -> io::Result<()> {
        self.ring.borrow().submitter().register_eventfd(event.as_raw_fd())
    }

    /// Who is woken when an operation is queued.
    pub fn set_bell(&self, waker: &Waker) {
        *self.bell.borrow_mut() = Some(waker.clone());
    }

    /// Whether operations are queued and not submitted.
    pub fn is_dirty(&self) -> bool {
        self.dirty.get()
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
            && let Some(waker) = self.bell.borrow().as_ref()
        {
            waker.wake_by_ref();
        }
    }

    /// Enables the signal and looks once more: false promises that a later completion signals.
    pub fn is_something_ready(&self) -> bool {
        let mut ring = self.ring.borrow_mut();
        ring.completion().enable_eventfd();
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        has_work(&mut ring)
    }

    /// Submits what is queued, lets the kernel run its deferred work, and wakes whoever waited.
    pub fn round(&self) {
        let mut ring = self.ring.borrow_mut();
        ring.completion().disable_eventfd();
        self.dirty.set(false);
        self.poked.set(None);
        let queued = u32::try_from(ring.submission().len()).unwrap_or(0);
        // SAFETY: entering with GETEVENTS passes no pointers.
        let entered = unsafe {
            ring.submitter().enter::<libc::sigset_t>(queued, 0, IORING_ENTER_GETEVENTS, None)
        };
        self.reap(&mut ring, entered);
    }

    /// As `round`, but only enters the kernel if there is something to do there.
    pub fn round_if_due(&self) {
        if self.dirty.get() || has_work(&mut self.ring.borrow_mut()) {
            self.round();
        }
    }

    /// Submits what is queued and sleeps until a completion or, if given, for `timeout`; then wakes
    /// whoever waited.
    pub fn park(&self, timeout: Option<Duration>) {
        let mut ring = self.ring.borrow_mut();
        self.dirty.set(false);
        self.poked.set(None);
        let entered = match timeout {
            None => ring.submitter().submit_and_wait(1),
            Some(timeout) => {
                let timespec = types::Timespec::from(timeout);
                ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&timespec))
            }
        };
        self.reap(&mut ring, entered);
    }

    fn reap(&self, ring: &mut IoUring, entered: io::Result<usize>) {
        if let Err(error) = entered
            && !matches!(
                error.raw_os_error(),
                Some(libc::EBUSY | libc::EINTR | libc::EAGAIN | libc::ETIME)
            )
        {
            // The ring itself is broken: nothing on this core can go on.
            panic!("io_uring_enter failed: {error}");
        }
        if !ring.submission().is_empty() {
            self.dirty.set(true);
        }
        let mut slots = self.slots.borrow_mut();
        for completion in ring.completion() {
            match completion.user_data() {
                NOBODY => {}
                poke if poke & POKE != 0 => self.wake_otherwise(poke & !POKE),
                key => complete(&mut slots, key, completion.result()),
            }
        }
    }

    /// A poke has failed.
    fn wake_otherwise(&self, number: u64) {
        let peers = self.peers.borrow();
        let peer = usize::try_from(number).ok().and_then(|number| peers.get(number));
        peer.inspect(|peer| peer.wake());
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

/// Whether completions wait, or the kernel has work that it does at the next enter.
fn has_work(ring: &mut IoUring) -> bool {
    let deferred = ring.submission().taskrun() || ring.submission().cq_overflow();
    deferred || !ring.completion().is_empty()
}

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
pub fn fd(descriptor: &impl AsRawFd) -> types::Fd {
    types::Fd(descriptor.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_poke_that_the_ring_refuses_wakes_by_the_counter() {
        let driver = Driver::new().expect("a ring");
        let no_ring = std::fs::File::open("/dev/null").expect("it is there");
        // SAFETY: the call takes no pointers; its descriptor is owned at once.
        let event = own(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) });
        let peer = Arc::new(Peer { ring: no_ring.as_raw_fd(), event });
        assert!(driver.poke(&peer));
        driver.round();
        let mut counter = [0_u8; 8];
        // SAFETY: the kernel writes at most 8 bytes into the counter.
        let read = unsafe {
            libc::read(peer.event.as_raw_fd(), counter.as_mut_ptr().cast(), counter.len())
        };
        assert_eq!((read, u64::from_ne_bytes(counter)), (8, 1));
    }

    #[test]
    fn pokes_go_out_before_many_tasks_have_run() {
        let driver = Driver::new().expect("a ring");
        let sleeper = Driver::new().expect("a ring");
        // SAFETY: the call takes no pointers; its descriptor is owned at once.
        let event = own(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) });
        let peer = Arc::new(sleeper.as_peer(event));
        assert!(driver.poke(&peer));
        for _ in 1..POKE_TASKS_MAX {
            driver.tend_pokes();
            assert!(!driver.ring.borrow_mut().submission().is_empty());
        }
        driver.tend_pokes();
        assert!(driver.ring.borrow_mut().submission().is_empty());
        // Returns at once, or never.
        sleeper.park(None);
    }
}
