//! The seam: everything that a core does to the world outside it, as one trait.
//!
//! A core's code is generic over `Io` and runs unchanged on `ring` (glommio and a second io_uring)
//! and in `sim` (a deterministic executor with virtual time and a disk that can lose writes).
//!
//! What it costs is measured by `benches/io.rs` against plain calls of a blocking thread: a flushed
//! write the same to within the noise, an echo under 32 connections 0.6 of the time. The trait
//! itself is resolved at compile time.
//!
//! Lives on: every core, one handle, cloned freely within the core, never sent to another.
//!
//! Invariants
//!   S1  A future of this trait may be dropped at any await: nothing leaks, no buffer is freed
//!       while the kernel may still write to it.
//!   S2  A write or sync that returned `Ok` is durable as its `Durability` says; one that failed
//!       says nothing about what reached the disk.
//!   S3  Nothing here blocks the core's thread, except the file-system calls named as blocking,
//!       which are meant for start-up.
//!   S4  Direct reads and writes have offset, length and memory aligned to `BLOCK_BYTES`; an
//!       implementor refuses others with `InvalidInput`.

pub mod around;
pub mod mailbox;
pub mod pace;
pub mod reply;
pub mod ring;
pub mod sim;
pub mod writes;

use std::future::Future;
use std::io::Result;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::base::buffer::AlignedBuffer;
use crate::base::ids::CoreId;
use crate::base::time::{Instant, UnixMillis};

/// The unit of alignment of direct I/O: offset, length and memory. 4096 is the physical sector of
/// today's devices, and a multiple of every logical one.
pub const BLOCK_BYTES: usize = 4096;

/// Disk, network, clock, spawning and timers of one core.
pub trait Io: Clone + 'static {
    type File: File;
    type Listener: Listener<Stream = Self::Stream>;
    type Stream: Stream;

    /// The core this handle belongs to.
    fn core(&self) -> CoreId;

    /// The core's monotonic clock.
    fn now(&self) -> Instant;

    /// The wall clock, for record timestamps and expiry.
    fn wall(&self) -> UnixMillis;

    /// 64 random bits; from the seed in the simulator.
    fn random(&self) -> u64;

    /// Runs `task` on this core until it returns. Tasks are never cancelled: they are told to end
    /// and return. `name` appears in the log if the task panics.
    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + 'static);

    /// Returns at `deadline` or soon after; at once if it has passed.
    fn sleep_until(&self, deadline: Instant) -> impl Future<Output = ()> + 'static;

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        self.sleep_until(self.now() + duration)
    }

    /// Lets other tasks and completed I/O have their turn. Long loops call it every
    /// `limits::CEDE_AFTER` or so: a ready task is not pre-empted.
    fn cede(&self) -> impl Future<Output = ()> + 'static;

    /// Opens (or creates) a file for direct reads and writes; buffered where the file system
    /// refuses O_DIRECT, which `File::is_direct` then tells.
    fn open(&self, path: &Path, how: OpenHow) -> impl Future<Output = Result<Self::File>>;

    /// The file names in a directory, sorted. Blocking.
    fn list(&self, directory: &Path) -> Result<Vec<String>>;

    /// What the file system that holds an existing `path` has. Blocking, for microseconds.
    fn space(&self, path: &Path) -> Result<Space>;

    /// Creates a directory and its parents and makes them durable. Blocking.
    fn create_directory(&self, directory: &Path) -> Result<()>;

    /// Creates one directory in one that is there, durably; one that exists is fine.
    fn make_directory(&self, directory: &Path) -> impl Future<Output = Result<()>>;

    /// Makes durable which names are in a directory.
    fn sync_directory(&self, directory: &Path) -> impl Future<Output = Result<()>>;

    /// Removes an empty directory, durably.
    fn remove_directory(&self, directory: &Path) -> impl Future<Output = Result<()>>;

    /// Renames a file within one directory, durably.
    fn rename(&self, from: &Path, to: &Path) -> impl Future<Output = Result<()>>;

    /// Gives a file a second name, durably. File systems that have none refuse, and so does a name
    /// on another one.
    fn link(&self, from: &Path, to: &Path) -> impl Future<Output = Result<()>>;

    /// Removes a file, durably.
    fn remove(&self, path: &Path) -> impl Future<Output = Result<()>>;

    /// Removes a file; power loss may bring it back until its directory is synced.
    fn remove_unsynced(&self, path: &Path) -> impl Future<Output = Result<()>>;

    /// Listens with `SO_REUSEPORT`, so that every core accepts on the same address.
    fn listen(&self, address: SocketAddr) -> Result<Self::Listener>;

    /// Connects to a peer.
    fn connect(&self, address: SocketAddr) -> impl Future<Output = Result<Self::Stream>>;
}

/// A file system's bytes, those that it keeps for its own administrator left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub free: u64,
    /// 0 where it does not say, as one in memory without a limit.
    pub total: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenHow {
    /// The file exists.
    Existing,
    /// The file does not exist; it is created empty and its name made durable.
    CreateNew,
    /// The file does not exist; it is created empty. Power loss may take it until its directory is
    /// synced: whoever makes several files has one wait for all of them.
    CreateUnsynced,
}

/// When a write counts as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The device has it, perhaps in its volatile cache.
    Written,
    /// It survives power loss: the write and its flush are one operation (`RWF_DSYNC`).
    Flushed,
}

/// A file opened for positioned, block-aligned I/O.
pub trait File: 'static {
    /// The file's length at open or after the last `allocate`, `truncate` or write beyond it.
    fn len(&self) -> u64;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether O_DIRECT is in force.
    fn is_direct(&self) -> bool;

    /// Reads exactly `length` bytes into aligned memory from the core's arena. Where the file ends
    /// inside the last block, zeros follow; an end before that block is `UnexpectedEof`.
    fn read_at(&self, offset: u64, length: usize) -> impl Future<Output = Result<AlignedBuffer>> {
        self.read_in_steps(offset, length, usize::MAX)
    }

    /// As `read_at`, with at most `step` bytes, a multiple of a block, asked of the device at a
    /// time, or up to half as many again at the end: what others ask of it meanwhile waits for one
    /// step and not for all.
    fn read_in_steps(
        &self,
        offset: u64,
        length: usize,
        step: usize,
    ) -> impl Future<Output = Result<AlignedBuffer>>;

    /// Writes the whole of `data`, which is aligned in memory, offset and length.
    fn write_at(
        &self,
        offset: u64,
        data: Bytes,
        durability: Durability,
    ) -> impl Future<Output = Result<()>>;

    /// Makes everything written before durable (`fdatasync`).
    fn sync(&self) -> impl Future<Output = Result<()>>;

    /// Grows the file to `length` bytes of *written* zeros and makes that durable, so that later
    /// writes inside it change no file-system metadata.
    fn allocate(&self, length: u64) -> impl Future<Output = Result<()>>;

    /// Makes the file at least `length` bytes long, so that writes inside it do not wait for each
    /// other (a write that makes a file longer keeps all others to it waiting). What is new reads
    /// as zeros and is durable after the next `sync`. A file system that cannot does nothing.
    fn reserve(&self, length: u64) -> impl Future<Output = Result<()>>;

    /// Cuts the file to `length` bytes, which need not be aligned; durable after the next `sync`.
    fn truncate(&self, length: u64) -> impl Future<Output = Result<()>>;
}

/// Accepts connections.
pub trait Listener: 'static {
    type Stream: Stream;

    /// The address listened on, with the port that was chosen if 0 was asked for.
    fn address(&self) -> SocketAddr;

    /// The next connection; `Err(kind = Interrupted)` after `close`. Called from one task only and
    /// never dropped half-way.
    fn accept(&self) -> impl Future<Output = Result<Self::Stream>>;

    /// Ends the accept loop; connections already accepted are not touched.
    fn close(&self);
}

/// A connected TCP stream. One task reads, one writes; both hold it by shared reference.
pub trait Stream: 'static {
    fn peer(&self) -> SocketAddr;

    /// Appends at least one byte and at most `limit` to `into`, growing it as needed; returns the
    /// count, 0 at the end of the stream. An idle connection holds no buffer of its own.
    fn read(&self, into: &mut BytesMut, limit: usize) -> impl Future<Output = Result<usize>>;

    /// Writes all pieces in order, gathered into as few sends as the kernel takes. Returns when
    /// the socket's buffer has taken everything, with `pieces` empty; an error leaves it open how
    /// much went out.
    fn write_out(&self, pieces: &mut Vec<Bytes>) -> impl Future<Output = Result<()>>;

    /// As `write_out`, for pieces in a list of their own.
    fn write(&self, mut pieces: Vec<Bytes>) -> impl Future<Output = Result<()>> {
        async move { self.write_out(&mut pieces).await }
    }

    /// Ends both directions; pending reads and writes return.
    fn shutdown(&self);

    /// Ends the reading half: a pending read returns 0, writes go on.
    fn shutdown_read(&self);
}
