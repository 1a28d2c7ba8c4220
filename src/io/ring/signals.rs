//! SIGTERM and SIGINT, taken by one thread that waits for them.

use std::io;

/// A request to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Terminate,
    Interrupt,
}

fn both() -> libc::sigset_t {
    // SAFETY: a zeroed set is a valid argument of `sigemptyset`, which initialises it.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` lives across the calls, and both numbers are signals.
    unsafe {
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::sigaddset(&mut set, libc::SIGINT);
    }
    set
}

/// Keeps the signals from interrupting this thread and those it starts; called before any other
/// thread exists.
pub fn block() -> io::Result<()> {
    let set = both();
    // SAFETY: the set lives across the call; the old mask is not asked for.
    let outcome = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(outcome)) }
}

/// Waits for the next of them.
pub fn wait() -> io::Result<Signal> {
    let set = both();
    let mut number = 0;
    // SAFETY: both pointers live across the call.
    match unsafe { libc::sigwait(&set, &mut number) } {
        0 if number == libc::SIGINT => Ok(Signal::Interrupt),
        0 => Ok(Signal::Terminate),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
