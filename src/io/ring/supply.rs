//! Huge pages for the arenas and for nothing else, touched beside the cores.
//!
//! The first touch of a huge page clears 2 MiB while everything on that core waits: up to 10 ms in
//! a virtual machine whose host has yet to find that memory. The allocator and the stacks would be
//! given such pages at any time; the arenas are given those that a thread has touched which gives
//! way at once to whoever wants its CPU.
//!
//! Lives on: the node, one thread.  Talks to: `base::buffer`.

use std::sync::Once;

use crate::base::buffer;

/// Memory is huge pages only where it was asked for: `PR_THP_DISABLE_EXCEPT_ADVISED` of
/// `linux/prctl.h`, since Linux 6.18.
const EXCEPT_ADVISED: libc::c_ulong = 2;
/// What the system does by itself: one word of it is in brackets.
const POLICY_FILE: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
/// The lowest priority, of `setpriority`.
const LAST: libc::c_int = 19;

static STARTED: Once = Once::new();

/// Confines huge pages to the arenas and starts the thread that prepares them, once in a process.
pub fn start() {
    STARTED.call_once(|| {
        if !confine() {
            return;
        }
        let thread = std::thread::Builder::new().name("memory".into()).spawn(|| {
            stand_back();
            loop {
                buffer::prepare();
                std::thread::park();
            }
        });
        if let Err(error) = thread {
            tracing::debug!("buffers are of small pages: no thread prepares others: {error}");
        }
    });
}

/// Has the calling thread run where nothing else does. What is only of the lowest priority is not
/// interrupted before its time is up: cores waited 2.7 ms for one page.
fn stand_back() {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: the calls take numbers and a struct that outlives them; 0 is the calling thread.
    unsafe {
        if libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const param) != 0 {
            libc::setpriority(libc::PRIO_PROCESS, 0, LAST);
        }
    }
}

/// Whether huge pages are given to those who ask, and only to those. Elsewhere none are given.
fn confine() -> bool {
    if disable(EXCEPT_ADVISED) {
        return true;
    }
    let policy = std::fs::read_to_string(POLICY_FILE).unwrap_or_default();
    policy.contains("[madvise]") || {
        disable(0);
        false
    }
}

/// Whether the kernel gives no more huge pages to this process, but for the exceptions in `flags`.
fn disable(flags: libc::c_ulong) -> bool {
    let (yes, none): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: the call takes plain numbers. It fails on a kernel without huge pages, or one that
    // does not know the flags.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, yes, flags, none, none) == 0 }
}
