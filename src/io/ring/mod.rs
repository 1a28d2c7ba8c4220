//! The seam on Linux: glommio runs the tasks and the timers; a second io_uring per executor does
//! the disk and the network.
//!
//! glommio's own stream and file types cost twice the CPU per request and have no way to flush
//! with the write, so they stay unused (`driver` explains how the two rings live together).
//!
//! Lives on: every core.  Talks to: the kernel (6.1 or newer).

mod boot;
mod driver;
mod file;
mod net;
pub mod probe;
pub mod signals;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use glommio::timer::Timer;

use super::{Io, OpenHow};
use crate::base::buffer::Arena;
use crate::base::ids::CoreId;
use crate::base::time::{Instant, UnixMillis};

pub use boot::{Executor, boot};
pub use file::RingFile;
pub use net::{RingListener, RingStream};

use driver::Driver;

/// One core's handle on the kernel.
#[derive(Clone)]
pub struct RingIo {
    inner: Rc<Inner>,
}

struct Inner {
    core: CoreId,
    arena: Arena,
    driver: Rc<Driver>,
    clock: quanta::Clock,
    /// The clock's reading that counts as zero, the same for all cores.
    origin: u64,
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
        let clock = &self.inner.clock;
        Instant(clock.delta_as_nanos(self.inner.origin, clock.raw()))
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

    fn spawn(&self, _name: &'static str, task: impl Future<Output = ()> + 'static) {
        glommio::spawn_local(task).detach();
    }

    fn sleep_until(&self, deadline: Instant) -> impl Future<Output = ()> + 'static {
        let left = deadline - self.now();
        async move {
            if !left.is_zero() {
                Timer::new(left).await;
            }
        }
    }

    fn cede(&self) -> impl Future<Output = ()> + 'static {
        let driver = self.driver().clone();
        async move { driver.cede().await }
    }

    async fn open(&self, path: &Path, how: OpenHow) -> io::Result<RingFile> {
        file::open(self, path, how).await
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            names.extend(entry?.file_name().into_string());
        }
        names.sort();
        Ok(names)
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
