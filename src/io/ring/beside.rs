//! Calls that the kernel's ring does not know, made by a thread beside the core's own: they may
//! wait for the disk, and everything else on the core would wait with them.
//!
//! Lives on: every core that needs it, one thread, begun with the first call. A disk that hangs
//! holds up the calls of its own cores alone.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Sender, channel};

use super::RingIo;
use super::file::in_kind;
use crate::io::mailbox::oneshot;

/// A file to cut, and whom to tell.
pub struct Call {
    file: File,
    length: u64,
    done: oneshot::Sender<io::Result<()>>,
}

/// Cuts a file, or makes it longer by a hole.
pub async fn truncate(io: &RingIo, descriptor: &OwnedFd, length: u64) -> io::Result<()> {
    let file = File::from(descriptor.try_clone().map_err(in_kind)?);
    let (done, told) = oneshot::channel();
    let calls = match io.inner.calls.get() {
        Some(calls) => calls,
        None => {
            let begun = begin()?;
            io.inner.calls.get_or_init(|| begun)
        }
    };
    let ended = || io::Error::other("the thread beside the core has ended");
    calls.send(Call { file, length, done }).map_err(|_| ended())?;
    told.await.unwrap_or_else(|_| Err(ended()))
}

/// The thread ends with the last sender.
fn begin() -> io::Result<Sender<Call>> {
    let (calls, waiting) = channel::<Call>();
    let work = move || {
        for Call { file, length, done } in waiting {
            // Nobody may wait for it any more.
            drop(done.send(file.set_len(length)));
        }
    };
    std::thread::Builder::new().name("beside".into()).spawn(work)?;
    Ok(calls)
}
