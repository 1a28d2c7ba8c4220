//! `Io` for one simulated core.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};

use super::agenda::Sleep;
use super::disk::{Answer, Disk, Operation, SharedInode, perform};
use super::executor::Owner;
use super::network::{self, EndId};
use super::{Inner, WALL_START};
use crate::base::buffer::{ALIGNMENT, AlignedBuffer, Arena};
use crate::base::ids::CoreId;
use crate::base::time::{Instant, UnixMillis};
use crate::io::{BLOCK_BYTES, Durability, File, Io, Listener, OpenHow, Space, Stream};

/// One core of one node, from a start of that node to its crash; refused afterwards.
#[derive(Clone)]
pub struct SimIo {
    core: Rc<Core>,
}

struct Core {
    inner: Rc<Inner>,
    owner: Owner,
    /// Which start of the node this belongs to.
    start: u64,
    arena: Arena,
    disk: Rc<RefCell<Disk>>,
}

impl SimIo {
    pub(super) fn new(
        inner: Rc<Inner>,
        owner: Owner,
        start: u64,
        (arena, disk): (Arena, Rc<RefCell<Disk>>),
    ) -> SimIo {
        SimIo { core: Rc::new(Core { inner, owner, start, arena, disk }) }
    }

    /// The core's aligned memory, from which reads are served.
    pub fn arena(&self) -> &Arena {
        &self.core.arena
    }

    fn inner(&self) -> &Rc<Inner> {
        &self.core.inner
    }

    fn is_current(&self) -> bool {
        self.core.inner.start_of(self.core.owner.node) == Some(self.core.start)
    }

    fn check_current(&self) -> io::Result<()> {
        if self.is_current() {
            return Ok(());
        }
        Err(io::Error::other(format!("node {} has crashed", self.core.owner.node)))
    }

    async fn perform(&self, operation: Operation) -> io::Result<Answer> {
        self.check_current()?;
        perform(self.inner(), &self.core.disk, operation).await
    }

    async fn perform_done(&self, operation: Operation) -> io::Result<()> {
        self.perform(operation).await.map(drop)
    }
}

impl Io for SimIo {
    type File = SimFile;
    type Listener = SimListener;
    type Stream = SimStream;

    fn core(&self) -> CoreId {
        self.core.owner.core
    }

    fn now(&self) -> Instant {
        Instant(self.inner().agenda.now())
    }

    fn wall(&self) -> UnixMillis {
        let since = Duration::from_nanos(self.inner().agenda.now()).as_millis();
        let skew = self.inner().skew_of(self.core.owner.node);
        UnixMillis(WALL_START + i64::try_from(since).unwrap_or(i64::MAX) + skew)
    }

    fn random(&self) -> u64 {
        self.inner().chance.bits()
    }

    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + 'static) {
        if self.is_current() {
            self.inner().executor.spawn(self.core.owner, name, Box::pin(task));
        }
    }

    fn sleep_until(&self, deadline: Instant) -> impl Future<Output = ()> + 'static {
        Sleep::new(self.inner().clone(), deadline)
    }

    fn cede(&self) -> impl Future<Output = ()> + 'static {
        let mut ceded = false;
        poll_fn(move |context| {
            if std::mem::replace(&mut ceded, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
    }

    async fn open(&self, path: &Path, how: OpenHow) -> io::Result<SimFile> {
        match self.perform(Operation::Open { path: path.to_owned(), how }).await? {
            Answer::Opened(inode) => {
                let length = Cell::new(inode.borrow().length());
                Ok(SimFile { io: self.clone(), inode, length })
            }
            _ => unreachable!("an open answers with a file"),
        }
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        self.check_current()?;
        let disk = self.core.disk.borrow();
        disk.check_alive(directory)?;
        disk.list(directory)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        self.check_current()?;
        let disk = self.core.disk.borrow();
        disk.check_alive(path)?;
        Ok(disk.space())
    }

    fn create_directory(&self, directory: &Path) -> io::Result<()> {
        self.check_current()?;
        let mut disk = self.core.disk.borrow_mut();
        disk.check_alive(directory)?;
        disk.create_directory(directory)
    }

    async fn make_directory(&self, directory: &Path) -> io::Result<()> {
        self.perform_done(Operation::MakeDirectory { path: directory.to_owned() }).await
    }

    async fn remove_directory(&self, directory: &Path) -> io::Result<()> {
        self.perform_done(Operation::RemoveDirectory { path: directory.to_owned() }).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let [from, to]: [PathBuf; 2] = [from.to_owned(), to.to_owned()];
        self.perform_done(Operation::Rename { from, to }).await
    }

    async fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let [from, to]: [PathBuf; 2] = [from.to_owned(), to.to_owned()];
        self.perform_done(Operation::Link { from, to }).await
    }

    async fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.perform_done(Operation::SyncDirectory { path: directory.to_owned() }).await
    }

    async fn remove_unsynced(&self, path: &Path) -> io::Result<()> {
        self.perform_done(Operation::RemoveUnsynced { path: path.to_owned() }).await
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        self.perform_done(Operation::Remove { path: path.to_owned() }).await
    }

    fn listen(&self, address: SocketAddr) -> io::Result<SimListener> {
        self.check_current()?;
        let (number, address) = network::listen(self.inner(), self.core.owner.node, address)?;
        Ok(SimListener { inner: self.inner().clone(), number, address })
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<SimStream> {
        self.check_current()?;
        let inner = self.inner().clone();
        let id = network::connect(&inner, self.core.owner.node, address);
        let stream = SimStream { inner, id, peer: address };
        poll_fn(|context| network::poll_connected(&stream.inner, id, context.waker())).await?;
        Ok(stream)
    }
}

/// An open file.
pub struct SimFile {
    io: SimIo,
    inode: SharedInode,
    length: Cell<u64>,
}

fn check_aligned(offset: u64, length: usize) -> io::Result<()> {
    if offset.is_multiple_of(BLOCK_BYTES as u64) && length.is_multiple_of(BLOCK_BYTES) {
        return Ok(());
    }
    let what = format!("{length} bytes at {offset} are not aligned to {BLOCK_BYTES}");
    Err(io::Error::new(io::ErrorKind::InvalidInput, what))
}

impl File for SimFile {
    fn len(&self) -> u64 {
        self.length.get()
    }

    fn is_direct(&self) -> bool {
        true
    }

    async fn read_in_steps(
        &self,
        offset: u64,
        length: usize,
        _step: usize,
    ) -> io::Result<AlignedBuffer> {
        check_aligned(offset, length)?;
        let refused = || io::Error::new(io::ErrorKind::OutOfMemory, "the core's memory is in use");
        let buffer = self.io.arena().take(length).ok_or_else(refused)?;
        let operation = Operation::Read { file: self.inode.clone(), offset, buffer };
        match self.io.perform(operation).await? {
            Answer::Read(buffer) => Ok(buffer),
            _ => unreachable!("a read answers with a buffer"),
        }
    }

    async fn write_at(&self, offset: u64, data: Bytes, durability: Durability) -> io::Result<()> {
        check_aligned(offset, data.len())?;
        if !(data.as_ptr() as usize).is_multiple_of(ALIGNMENT) {
            let what = "the memory of a direct write is not aligned";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let end = offset.saturating_add(data.len() as u64);
        // The disk keeps a copy: the arena's memory is free again when the write has returned.
        let data = Bytes::copy_from_slice(&data);
        let flushed = durability == Durability::Flushed;
        let file = self.inode.clone();
        self.io.perform_done(Operation::Write { file, offset, data, flushed }).await?;
        self.length.set(self.length.get().max(end));
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        let through = self.inode.borrow().last_write();
        self.io.perform_done(Operation::Sync { file: self.inode.clone(), through }).await
    }

    async fn allocate(&self, length: u64) -> io::Result<()> {
        let length = length.next_multiple_of(BLOCK_BYTES as u64);
        let file = self.inode.clone();
        let outcome = self.io.perform_done(Operation::Allocate { file, length }).await;
        self.length.set(self.inode.borrow().length());
        outcome
    }

    async fn reserve(&self, length: u64) -> io::Result<()> {
        let file = self.inode.clone();
        let outcome = self.io.perform_done(Operation::Allocate { file, length }).await;
        self.length.set(self.inode.borrow().length());
        outcome
    }

    async fn truncate(&self, length: u64) -> io::Result<()> {
        let file = self.inode.clone();
        self.io.perform_done(Operation::Truncate { file, length }).await?;
        self.length.set(length);
        Ok(())
    }
}

/// Accepts connections on one core.
pub struct SimListener {
    inner: Rc<Inner>,
    number: u64,
    address: SocketAddr,
}

impl Listener for SimListener {
    type Stream = SimStream;

    fn address(&self) -> SocketAddr {
        self.address
    }

    async fn accept(&self) -> io::Result<SimStream> {
        let accepted =
            poll_fn(|context| network::poll_accept(&self.inner, self.number, context.waker()));
        let (id, peer) = accepted.await?;
        Ok(SimStream { inner: self.inner.clone(), id, peer })
    }

    fn close(&self) {
        network::unlisten(&self.inner, self.number);
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        self.close();
    }
}

/// One end of a connection; dropping it closes the end.
pub struct SimStream {
    inner: Rc<Inner>,
    id: EndId,
    peer: SocketAddr,
}

impl SimStream {
    /// Ends the writing half, as a client does that has sent all its requests.
    pub fn shutdown_write(&self) {
        network::shut_write(&self.inner, self.id);
    }

    /// Breaks the connection off: the peer gets a reset.
    pub fn reset(self) {
        network::close(&self.inner, self.id, true);
    }
}

impl Stream for SimStream {
    fn peer(&self) -> SocketAddr {
        self.peer
    }

    async fn read(&self, into: &mut BytesMut, limit: usize) -> io::Result<usize> {
        poll_fn(|context| {
            network::poll_receive(&self.inner, self.id, (into, limit), context.waker())
        })
        .await
    }

    async fn write_out(&self, pieces: &mut Vec<Bytes>) -> io::Result<()> {
        for mut left in pieces.drain(..) {
            while !left.is_empty() {
                let sent = poll_fn(|context| {
                    network::poll_send(&self.inner, self.id, &left, context.waker())
                });
                left.advance(sent.await?);
            }
        }
        Ok(())
    }

    fn shutdown(&self) {
        network::shut_write(&self.inner, self.id);
        network::shut_read(&self.inner, self.id);
    }

    fn shutdown_read(&self) {
        network::shut_read(&self.inner, self.id);
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        network::close(&self.inner, self.id, false);
    }
}
