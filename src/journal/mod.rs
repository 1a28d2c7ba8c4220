//! The journal: one append-only sequence of commit groups per core, shared by all partitions the
//! core owns.
//!
//!     | group | group | ... | group |        block-aligned, checksummed, numbered
//!       ^ oldest kept         ^ head         written once, never in place
//!
//!     append ─► filling group ─► sealed ─► one write, flushed ─► durable, in the tail
//!
//! An address is a byte position in the whole journal: file number times file size, plus the place
//! in the file. It is known when an entry is appended, since a group never spans files.
//!
//! Lives on: every core, one instance, never shared.  Talks to: `io::File`.  Used by: `partition`.
//!
//! Invariants
//!   J1  A position is durable only after the flush that covers it returned.
//!   J2  Groups become durable in the order of their sequence, one in flight at a time.
//!   J3  A failed write or flush poisons the journal; nothing is durable afterwards, and reads of
//!       what was durable go on.
//!   J4  Recovery accepts a prefix: a group that was surely durable and is bad is an error that
//!       names it; only a group that was still in flight is dropped.
//!   J5  Bytes in memory that wait for the disk are bounded; `room` makes appenders wait in turn.
//!   J6  An entry is accepted only into space that is allocated: a full disk refuses, it does not
//!       poison.
//!   J7  A closed journal takes nothing: what is appended before `close` is durable after it.
//!   J8  `kept_bytes` and the end of the last file before them are kept from records: a full
//!       journal still takes the entries by which the node starts, deletes topics and records, and
//!       drains old files. While somebody drains, appenders wait for a full journal.

mod files;
mod group;
pub mod inspect;
mod layout;
pub mod mend;
mod mentions;
mod open_error;
mod range;
mod recover;
mod reread;
mod space;
mod tail;
mod window;
mod writer;

use std::cell::{OnceCell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::io as std_io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;

use crate::base::buffer::Arena;
use crate::base::time::Instant;
use crate::io::Io;
use crate::io::writes::Writes;

pub use layout::{Entry, EntryKind, NO_PARTITION};
pub use mentions::Mentioned;
pub use open_error::{Damage, OpenError};
pub use range::{is_prepared, prepare_folder};
pub use recover::Replayed;
pub use reread::{Reread, Rereading};

use files::Files;
use group::Filling;
use space::{Purpose, Space};
use tail::Tail;

/// How a journal is laid out and when it counts a group as durable.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The core's own directory.
    pub directory: PathBuf,
    /// Bytes of each file, a multiple of the block size.
    pub file_bytes: u64,
    /// Bytes of all files together.
    pub bytes_max: u64,
    /// Of these, what records leave to the entries by which old files are drained.
    pub kept_bytes: u64,
    /// A group is sealed at this size; a single larger entry makes a larger group.
    pub group_bytes_max: usize,
    /// Bytes that may wait for the disk.
    pub pending_bytes_max: usize,
    /// Memory for recent groups, from which tail reads are served.
    pub tail_bytes_max: usize,
    pub flush: Flush,
}

/// Files that a journal needs which is drained: one filling, one ready, one to give back, one kept.
pub const FILES_MIN: u64 = 4;

impl Settings {
    /// Files that records may fill.
    fn record_files(&self) -> u64 {
        (self.bytes_max.saturating_sub(self.kept_bytes) / self.file_bytes).max(1)
    }

    /// A journal that is there may have files too large for its limit: nothing could be drained,
    /// and appenders would wait for ever.
    fn leave_room_to_drain(&mut self) {
        if self.kept_bytes == 0 {
            return;
        }
        self.kept_bytes = self.kept_bytes.max(self.file_bytes);
        let least = FILES_MIN * self.file_bytes;
        if self.bytes_max < least {
            tracing::warn!(
                "the journal in {} has files of {} bytes and takes {least} bytes instead of {}: \
                 its file size is that of its making",
                self.directory.display(),
                self.file_bytes,
                self.bytes_max
            );
            self.bytes_max = least;
        }
    }
}

/// What "durable" means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Flushed with every group (mode `fsync`).
    EveryGroup,
    /// Written to the device; flushed in the background within this time (mode `replicated`).
    Within(Duration),
}

/// A group's sequence number: everything in it becomes durable at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

/// Where bytes lie in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    pub address: u64,
    pub length: u32,
}

/// An accepted entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    pub position: Position,
    pub location: Location,
}

/// Why an entry is not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    Poisoned(Poisoned),
    /// `journal.bytes.max` is reached.
    Full {
        bytes_max: u64,
    },
    /// The file system gave no more space.
    NoSpace(String),
    /// The system, or the core, lacks what the journal's files need: memory, or a descriptor.
    Lacks(String),
    /// The core's memory is in use; it comes back as requests end.
    NoMemory {
        bytes: usize,
    },
    /// The journal was closed.
    Closed,
    /// The entry is larger than a journal file.
    TooLarge {
        bytes: usize,
        bytes_max: u64,
    },
}

/// The journal takes nothing any more, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Poisoned(pub Rc<str>);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Poisoned(poisoned) => poisoned.fmt(f),
            Refusal::Full { bytes_max } => write!(
                f,
                "the journal is full: journal.bytes.max leaves this core {bytes_max} bytes, and \
                 its old files cannot be drained; reads go on, and writes resume by themselves \
                 once that is mended (the log says why)"
            ),
            Refusal::NoSpace(why) => write!(
                f,
                "the disk gave no space for the journal ({why}): free some; writes resume by \
                 themselves"
            ),
            Refusal::Lacks(why) => write!(
                f,
                "the journal gets no further file for the moment ({why}); writes resume by \
                 themselves"
            ),
            Refusal::NoMemory { bytes } => write!(
                f,
                "the core has no memory left for a group of {bytes} bytes: try again, or raise \
                 the node's memory"
            ),
            Refusal::Closed => f.write_str(CLOSED),
            Refusal::TooLarge { bytes, bytes_max } => {
                write!(f, "an entry of {bytes} bytes does not fit a journal file of {bytes_max}")
            }
        }
    }
}

impl Poisoned {
    /// What has happened, without what to do.
    pub fn cause(&self) -> &str {
        self.0.strip_suffix(REMEDY).unwrap_or(&self.0)
    }
}

impl fmt::Display for Poisoned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// See the module's documentation. Cloning shares it within its core.
pub struct Journal<I: Io> {
    inner: Rc<Inner<I>>,
}

impl<I: Io> Clone for Journal<I> {
    fn clone(&self) -> Self {
        Journal { inner: self.inner.clone() }
    }
}

/// See `Journal::hold`.
pub struct Held<I: Io>(Rc<Inner<I>>);

impl<I: Io> Drop for Held<I> {
    fn drop(&mut self) {
        let mut state = self.0.state.borrow_mut();
        state.held = None;
        state.wake_first_in_room();
    }
}

struct Inner<I: Io> {
    io: I,
    arena: Arena,
    settings: Settings,
    state: RefCell<State<I>>,
    /// Where commits are counted.
    writes: OnceCell<Arc<Writes>>,
}

struct State<I: Io> {
    journal_id: u64,
    next_sequence: u64,
    /// The sequence of the group that was begun last.
    newest_sequence: u64,
    filling: Option<Filling>,
    /// An empty directory of a group that is written, to be filled again.
    spare_directory: Vec<u8>,
    /// Bytes of the group that was sealed last.
    sealed_bytes: usize,
    /// Groups that take no more entries and wait for the disk.
    waiting: VecDeque<Filling>,
    /// Bytes filling, waiting or in flight.
    pending_bytes: usize,
    durable: Position,
    /// The last group that the journal was opened with, and the last whose write has returned.
    reached: Mark,
    written: Mark,
    /// The last group that survives a power loss; behind `written` in mode `replicated`.
    flushed: Mark,
    /// Since when a group's write, a flush beside it, and a step of the files' task have not
    /// returned.
    write_since: Option<Instant>,
    flush_since: Option<Instant>,
    prepare_since: Option<Instant>,
    /// Nobody waits for them any more.
    is_abandoned: bool,
    poisoned: Option<Poisoned>,
    flush_failed: bool,
    closing: bool,
    /// The writer's task has ended.
    closed: bool,
    /// The files' task is at work on a file.
    preparing: bool,
    /// Old files are being made free.
    draining: bool,
    /// Memory of the durable groups from that on that is held (`Journal::hold`).
    held: Option<usize>,
    /// The file system is short of space.
    short: bool,
    /// Files below this number are to be drained, however much room there is.
    drain_before: u64,
    /// `drain_before` has moved, and nobody has looked.
    is_drain_due: bool,
    space: Space,
    files: Files<I::File>,
    tail: Tail,
    /// Woken when `durable`, `poisoned` or the state of the space changes.
    watchers: Vec<Waker>,
    /// The writer's task, when it has nothing to do.
    writer: Option<Waker>,
    /// The task that prepares files, when it has nothing to do.
    preparer: Option<Waker>,
    /// Appenders that wait for room, in turn.
    room_queue: VecDeque<(u64, Waker)>,
    next_ticket: u64,
}

/// How far something has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    sequence: u64,
    /// The address after the group.
    end: u64,
}

const REMEDY: &str = ": restart after mending the disk";
const CLOSED: &str = "the journal is closed: the node is stopping";

impl<I: Io> Journal<I> {
    /// Opens the journal in `settings.directory`, creating it if it is empty, and gives `replay`
    /// every entry of the valid prefix in order. A journal that is there keeps the file size that
    /// it was made with.
    pub async fn open(
        io: I,
        arena: Arena,
        mut settings: Settings,
        replay: &mut dyn FnMut(Replayed<'_>),
    ) -> Result<Journal<I>, OpenError> {
        let recovered = recover::recover(&io, &arena, &mut settings, replay).await?;
        settings.leave_room_to_drain();
        let inner = Rc::new(Inner::new(io.clone(), arena, settings, recovered));
        let journal = Journal { inner };
        io.spawn("journal writer", writer::run(journal.inner.clone()));
        io.spawn("journal files", files::prepare(journal.inner.clone()));
        Ok(journal)
    }

    /// A journal that takes and holds nothing, where `settings.directory` cannot be used.
    pub fn unusable(io: I, arena: Arena, settings: Settings, why: &str) -> Journal<I> {
        let inner = Inner::new(io, arena, settings.clone(), recover::Recovered::none(&settings));
        {
            let mut state = inner.state.borrow_mut();
            state.poisoned = Some(Poisoned(why.into()));
            state.closing = true;
            state.closed = true;
        }
        Journal { inner: Rc::new(inner) }
    }

    /// Has the journal take nothing any more: its disk cannot be relied on.
    pub fn fail(&self, why: &str) {
        self.inner.state.borrow_mut().end_by(why);
    }

    /// Has commits counted in `writes` from here on.
    pub fn count_in(&self, writes: Arc<Writes>) {
        // A journal has one owner, who says it once.
        let _ = self.inner.writes.set(writes);
    }

    /// Since when the disk has not answered a write or a flush.
    pub fn waits_since(&self) -> Option<Instant> {
        let state = self.inner.state.borrow();
        [state.write_since, state.flush_since, state.prepare_since].into_iter().flatten().min()
    }

    /// Whether appenders of records wait in `room`.
    pub fn has_appenders_waiting(&self) -> bool {
        !self.inner.state.borrow().room_queue.is_empty()
    }

    /// As `fail`, where the disk does not even answer: `close` does not wait for it either.
    pub fn abandon(&self, why: &str) {
        let mut state = self.inner.state.borrow_mut();
        state.is_abandoned = true;
        state.end_by(why);
    }

    /// Waits, first come first served, until an entry of `bytes` can be appended.
    pub async fn room(&self, bytes: usize) -> Result<(), Refusal> {
        space::room(&self.inner, bytes, Purpose::Records).await
    }

    /// As `room`, for an entry without which a full journal could not be emptied: it may use what
    /// is kept back from records (J8).
    pub async fn room_to_manage(&self, bytes: usize) -> Result<(), Refusal> {
        space::room(&self.inner, bytes, Purpose::Draining).await
    }

    /// As `room`, for an entry without which the node could not start again, or delete anything:
    /// it may use whatever is left.
    pub async fn room_to_decide(&self, bytes: usize) -> Result<(), Refusal> {
        space::room(&self.inner, bytes, Purpose::Decisions).await
    }

    /// Has appenders of records wait rather than push what lies at `address` and behind it out of
    /// the memory, until `Held` is dropped: it is being moved from there. One holds at a time.
    pub fn hold(&self, address: u64) -> Held<I> {
        let mut state = self.inner.state.borrow_mut();
        state.held = Some(state.tail.memory_from(address));
        Held(self.inner.clone())
    }

    /// Says whether the file system is short of space. While it is, the journal takes no more of it
    /// than it must, gives released files back, and has what it holds drained once, so that what
    /// is deleted is gone from the disk.
    pub fn set_short(&self, short: bool) {
        let mut state = self.inner.state.borrow_mut();
        if short && !state.short {
            state.drain_all();
        }
        state.short = short;
        state.wake_preparer();
    }

    /// Copies `body` into the filling group; `stamp` may change bytes of the copy. Directly after
    /// `room` this accepts; without it, it may refuse.
    pub fn append(
        &self,
        entry: Entry,
        body: &[u8],
        stamp: impl FnOnce(&mut [u8]),
    ) -> Result<Appended, Refusal> {
        group::append(&self.inner, entry, body, stamp)
    }

    /// Everything up to here is durable.
    pub fn durable(&self) -> Position {
        self.inner.state.borrow().durable
    }

    /// Returns the durable position once it is beyond `than`.
    pub async fn durable_after(&self, than: Position) -> Result<Position, Poisoned> {
        self.once(|state| (state.durable > than).then_some(state.durable)).await
    }

    /// Returns what `look` finds as soon as it finds something.
    async fn once<T>(&self, look: impl Fn(&State<I>) -> Option<T>) -> Result<T, Poisoned> {
        poll_fn(|context| {
            let mut state = self.inner.state.borrow_mut();
            if let Some(found) = look(&state) {
                return Poll::Ready(Ok(found));
            }
            if let Some(poisoned) = &state.poisoned {
                return Poll::Ready(Err(poisoned.clone()));
            }
            if state.closed {
                return Poll::Ready(Err(Poisoned(CLOSED.into())));
            }
            state.watch(context.waker());
            Poll::Pending
        })
        .await
    }

    /// Returns when `position` is durable.
    pub async fn wait_durable(&self, position: Position) -> Result<(), Poisoned> {
        match position.0.checked_sub(1) {
            Some(before) => self.durable_after(Position(before)).await.map(|_| ()),
            None => Ok(()),
        }
    }

    /// Returns when `position` survives a power loss: after it is durable in mode `replicated`.
    pub async fn wait_flushed(&self, position: Position) -> Result<(), Poisoned> {
        self.once(|state| (state.flushed.sequence >= position.0).then_some(())).await
    }

    /// Whether `close` has run to its end; `durable_after` then fails without a failed disk.
    pub fn is_closed(&self) -> bool {
        let state = self.inner.state.borrow();
        state.closed && state.poisoned.is_none()
    }

    /// Whether nothing is under way any more that `close` would wait for.
    pub fn has_ended(&self) -> bool {
        self.inner.state.borrow().has_ended()
    }

    /// Why the journal takes nothing any more, if a write or a flush has failed.
    pub fn poisoned(&self) -> Option<Poisoned> {
        self.inner.state.borrow().poisoned.clone()
    }

    /// Durable bytes that are still in memory.
    pub fn tail(&self, location: Location) -> Option<Bytes> {
        self.inner.state.borrow().tail.get(location)
    }

    /// What lies before this address leaves the memory next, and has been there for a while.
    pub fn older_part_of_tail(&self) -> Option<u64> {
        self.inner.state.borrow().tail.newer_part()
    }

    /// Has the oldest groups leave the memory until they have given up `bytes`; false if none was
    /// there.
    pub fn shorten_tail(&self, bytes: usize) -> bool {
        self.inner.state.borrow_mut().tail.shorten(bytes)
    }

    /// Durable bytes of any range within one file, from memory or in steps of so many bytes.
    pub async fn read(&self, location: Location, step: usize) -> std_io::Result<Bytes> {
        if let Some(bytes) = self.tail(location) {
            return Ok(bytes);
        }
        files::read(&self.inner, location, step).await
    }

    /// The file in which an address lies, for messages.
    pub fn file_of(&self, address: u64) -> (PathBuf, u64) {
        let settings = &self.inner.settings;
        let path = files::path(&settings.directory, address / settings.file_bytes);
        (path, address % settings.file_bytes)
    }

    /// The core's own directory.
    pub fn directory(&self) -> &Path {
        &self.inner.settings.directory
    }

    /// Bytes of a journal file: no range that is read may cross a multiple of it.
    pub fn file_bytes(&self) -> u64 {
        self.inner.settings.file_bytes
    }

    /// Bytes of records that the journal takes before it is full, and those of recent groups in
    /// memory.
    pub fn capacity(&self) -> (u64, usize) {
        let settings = &self.inner.settings;
        (settings.record_files() * settings.file_bytes, settings.tail_bytes_max)
    }

    /// The address that the next group gets at the earliest.
    pub fn head(&self) -> u64 {
        self.inner.state.borrow().space.head
    }

    /// Files wholly below `address` hold nothing that anybody needs, given what is durable by now:
    /// they are used again, once that and everything in them is flushed.
    pub fn release(&self, address: u64) {
        files::release(&self.inner, address);
    }

    /// The oldest file that holds something needed and is not released, to be read again; none
    /// while that is the one being written.
    pub fn oldest(&self) -> Option<Rereading<I>> {
        reread::left_from(&self.inner, 0)
    }

    /// As `oldest`, of the files that begin at or above `address`.
    pub fn left_from(&self, address: u64) -> Option<Rereading<I>> {
        reread::left_from(&self.inner, address)
    }

    /// Everything in a journal that takes nothing any more, file by file.
    pub fn whole(&self) -> Vec<Rereading<I>> {
        reread::whole(&self.inner)
    }

    /// Says whether old files are being made free: appenders then wait for a full journal instead
    /// of being refused.
    pub fn set_draining(&self, draining: bool) {
        let mut state = self.inner.state.borrow_mut();
        state.draining = draining;
        state.wake_watchers();
    }

    /// Files from the oldest needed one to the head's, and how many records may fill (J8): no more
    /// than there are, as long as those that were there when the disk became short are not drained.
    pub fn fill(&self) -> (u64, u64) {
        let state = self.inner.state.borrow();
        let (used, most) = (state.used_files(), self.inner.settings.record_files());
        let is_to_drain = state.files.first_needed() < state.drain_before;
        (used, if is_to_drain { most.min(used) } else { most })
    }

    /// Returns when `fill` may have changed: another file is begun, the disk has become short, or
    /// the journal has ended, which is false.
    pub async fn next_file(&self, than: u64) -> bool {
        poll_fn(|context| {
            let mut state = self.inner.state.borrow_mut();
            if state.closing || state.poisoned.is_some() {
                return Poll::Ready(false);
            }
            if state.space.file_number() > than || std::mem::take(&mut state.is_drain_due) {
                return Poll::Ready(true);
            }
            state.watch(context.waker());
            Poll::Pending
        })
        .await
    }

    /// Returns the address after the last durable group, once that is at or behind `address`;
    /// `None` at the journal's end.
    pub async fn written_to(&self, address: u64) -> Option<u64> {
        poll_fn(|context| {
            let mut state = self.inner.state.borrow_mut();
            if state.closing || state.poisoned.is_some() {
                return Poll::Ready(None);
            }
            if state.written.end >= address {
                return Poll::Ready(Some(state.written.end));
            }
            state.watch(context.waker());
            Poll::Pending
        })
        .await
    }

    /// The number of the file being written.
    pub fn file_number(&self) -> u64 {
        self.inner.state.borrow().space.file_number()
    }

    /// Bytes of files that hold something, and the limit.
    #[cfg(test)]
    pub fn usage(&self) -> (u64, u64) {
        let state = self.inner.state.borrow();
        (state.files.in_use() * self.inner.settings.file_bytes, self.inner.settings.bytes_max)
    }

    /// Makes what is appended durable, flushes, and ends the journal's tasks, unless it was
    /// abandoned.
    pub async fn close(&self) {
        self.inner.state.borrow_mut().close();
        poll_fn(|context| {
            let mut state = self.inner.state.borrow_mut();
            if state.has_ended() {
                return Poll::Ready(());
            }
            state.watch(context.waker());
            Poll::Pending
        })
        .await;
    }
}

impl<I: Io> Inner<I> {
    fn new(io: I, arena: Arena, settings: Settings, mut recovered: recover::Recovered<I>) -> Self {
        if recovered.accepted_sequence == 0 {
            recovered.files.begin_anew();
        }
        let tail = Tail::new(settings.tail_bytes_max);
        let reached = Mark { sequence: recovered.accepted_sequence, end: recovered.space.head };
        let state = State {
            journal_id: recovered.journal_id,
            next_sequence: recovered.next_sequence,
            newest_sequence: recovered.accepted_sequence,
            filling: None,
            spare_directory: Vec::new(),
            sealed_bytes: 0,
            waiting: VecDeque::new(),
            pending_bytes: 0,
            durable: Position(recovered.next_sequence - 1),
            reached,
            written: reached,
            flushed: reached,
            write_since: None,
            flush_since: None,
            prepare_since: None,
            is_abandoned: false,
            poisoned: None,
            flush_failed: false,
            closing: false,
            closed: false,
            preparing: false,
            draining: false,
            held: None,
            short: false,
            drain_before: 0,
            is_drain_due: false,
            space: recovered.space,
            files: recovered.files,
            tail,
            watchers: Vec::new(),
            writer: None,
            preparer: None,
            room_queue: VecDeque::new(),
            next_ticket: 0,
        };
        Inner { io, arena, settings, state: RefCell::new(state), writes: OnceCell::new() }
    }
}

impl<I: Io> State<I> {
    fn watch(&mut self, waker: &Waker) {
        if !self.watchers.iter().any(|known| known.will_wake(waker)) {
            self.watchers.push(waker.clone());
        }
    }

    fn wake_watchers(&mut self) {
        for waker in self.watchers.drain(..) {
            waker.wake();
        }
        self.wake_first_in_room();
    }

    /// Why nothing is appended any more.
    fn ended(&self) -> Option<Refusal> {
        let poisoned = self.poisoned.clone().map(Refusal::Poisoned);
        poisoned.or_else(|| self.closing.then_some(Refusal::Closed))
    }

    /// Files from the oldest needed one to the head's.
    fn used_files(&self) -> u64 {
        (self.space.file_number() + 1).saturating_sub(self.files.first_needed())
    }

    /// Has everything drained that the head has left.
    fn drain_all(&mut self) {
        self.drain_before = self.space.file_number();
        self.is_drain_due = true;
        self.wake_watchers();
    }

    fn wake_writer(&mut self) {
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }

    fn wake_preparer(&mut self) {
        if let Some(waker) = self.preparer.take() {
            waker.wake();
        }
    }

    fn poison(&mut self, stage: &str, error: &std_io::Error) {
        let why = format!("the journal's {stage} failed ({error}){REMEDY}");
        tracing::error!("{why}");
        self.end_by(&why);
    }

    fn end_by(&mut self, why: &str) {
        self.poisoned.get_or_insert(Poisoned(why.into()));
        self.closing = true;
        self.wake_watchers();
        self.wake_writer();
        self.wake_preparer();
    }

    fn has_ended(&self) -> bool {
        self.is_abandoned || (self.closed && !self.preparing)
    }

    fn close(&mut self) {
        self.closing = true;
        self.wake_first_in_room();
        self.wake_writer();
        self.wake_preparer();
    }
}

/// A file of this seam, as the journal holds it.
type Handle<F> = Rc<F>;

fn is_no_space(error: &std_io::Error) -> bool {
    matches!(error.kind(), std_io::ErrorKind::StorageFull | std_io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests;
