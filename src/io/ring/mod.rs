//! The seam on Linux: one io_uring per core does the disk and the network (`driver`); an executor
//! runs the tasks and the timers: our own around that ring, or glommio's, in which it is a guest.
//!
//! glommio's own stream and file types cost twice the CPU per request and have no way to flush
//! with the write, so they stay unused.
//!
//! Lives on: every core.  Talks to: the kernel (6.1 or newer).

mod beside;
mod boot;
mod driver;
mod executor;
mod file;
mod guest;
mod net;
pub mod probe;
pub mod signals;
mod slow;
mod supply;

use std::cell::OnceCell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Io, OpenHow, Space};
use crate::base::buffer::Arena;
use crate::base::ids::CoreId;
use crate::base::time::{Instant, UnixMillis};

pub use boot::{Engine, Executor, boot, boot_on};
pub use file::RingFile;
pub use net::{RingListener, RingStream};

use driver::Driver;
use executor::yield_once;
use guest::Guest;

/// One core's handle on the kernel.
#[derive(Clone)]
pub struct RingIo {
    inner: Rc<Inner>,
}

struct Inner {
    core: CoreId,
    arena: Arena,
    driver: Rc<Driver>,
    clock: Clock,
    host: Host,
    /// What makes the calls that the ring does not know, once there was one.
    calls: OnceCell<std::sync::mpsc::Sender<beside::Call>>,
}

/// What runs this core's tasks.
enum Host {
    Own(Rc<executor::Executor>),
    Glommio(Rc<Guest>),
}

/// The monotonic clock of a process's cores.
#[derive(Clone)]
struct Clock {
    ticks: quanta::Clock,
    /// The reading that counts as zero.
    origin: u64,
}

impl Clock {
    fn new() -> Clock {
        let ticks = quanta::Clock::new();
        Clock { origin: ticks.raw(), ticks }
    }

    fn now(&self) -> Instant {
        Instant(self.ticks.delta_as_nanos(self.origin, self.ticks.raw()))
    }
}

impl RingIo {
    fn driver(&self) -> &Rc<Driver> {
        &self.inner.driver
    }

    fn arena(&self) -> &Arena {
        &self.inner.arena
    }
}

impl Io for RingIo {
    type File = RingFile;
    type Listener = RingListener;
    type Stream = RingStream;

    fn core(&self) -> CoreId {
        self.inner.core
    }

    fn now(&self) -> Instant {
        self.inner.clock.now()
    }

    fn wall(&self) -> UnixMillis {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    fn random(&self) -> u64 {
        let mut bytes = [0_u8; 8];
        // SAFETY: the kernel writes at most 8 bytes into `bytes`.
        let filled = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        assert_eq!(filled, 8, "getrandom gives small amounts whole");
        u64::from_ne_bytes(bytes)
    }

    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + 'static) {
        match &self.inner.host {
            Host::Own(executor) if slow::is_watched() => {
                executor.spawn(slow::Watched { name, task: Box::pin(task) });
            }
            Host::Own(executor) => executor.spawn(task),
            Host::Glommio(_) => Guest::spawn(task),
        }
    }

    fn sleep_until(&self, deadline: Instant) -> impl Future<Output = ()> + 'static {
        let inner = self.inner.clone();
        async move {
            match &inner.host {
                Host::Own(executor) => executor.sleep_until(deadline).await,
                Host::Glommio(_) => Guest::sleep(deadline - inner.clock.now()).await,
            }
        }
    }

    fn cede(&self) -> impl Future<Output = ()> + 'static {
        let inner = self.inner.clone();
        async move {
            match &inner.host {
                Host::Own(_) => yield_once().await,
                Host::Glommio(guest) => guest.cede().await,
            }
        }
    }

    async fn open(&self, path: &Path, how: OpenHow) -> io::Result<RingFile> {
        file::open(self, path, how).await
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(file::in_kind)? {
            names.extend(entry?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        probe::space(path)
    }

    fn create_directory(&self, directory: &Path) -> io::Result<()> {
        let created = directory.ancestors().take_while(|path| !path.exists()).count();
        std::fs::create_dir_all(directory)?;
        // The name of each new directory is durable once its parent is.
        for ancestor in directory.ancestors().take(created + 1) {
            let ancestor = if ancestor.as_os_str().is_empty() { Path::new(".") } else { ancestor };
            std::fs::File::open(ancestor)?.sync_all()?;
        }
        Ok(())
    }

    async fn make_directory(&self, directory: &Path) -> io::Result<()> {
        file::make_directory(self, directory).await
    }

    async fn remove_directory(&self, directory: &Path) -> io::Result<()> {
        file::remove_directory(self, directory).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        file::rename(self, from, to).await
    }

    async fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        file::link(self, from, to).await
    }

    async fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        file::sync_directory(self, directory).await
    }

    async fn remove_unsynced(&self, path: &Path) -> io::Result<()> {
        file::remove_unsynced(self, path).await
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        file::remove(self, path).await
    }

    fn listen(&self, address: SocketAddr) -> io::Result<RingListener> {
        net::listen(self, address)
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<RingStream> {
        net::connect(self, address).await
    }
}

#[cfg(test)]
mod tests;
