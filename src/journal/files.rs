//! The journal's files: made of written zeros ahead of the head, used again when released.
//!
//! Invariants
//!   F1  Zeros are written only beyond what was ever placed: a step is published as allocated
//!       after it is durable, and no group is placed into it before.
//!       Where there is time for it, they are written in small pieces with pauses, and flushed
//!       seldom: each flush of a growing file commits the file system's own journal, which a
//!       group's write may have to wait for.
//!   F2  Files are used again lowest number first, so that the numbers in use have no hole.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;

use super::layout::Entry;
use super::mentions::{Mentioned, Mentions};
use super::range::{self, Named};
use super::{Handle, Inner, Location, Refusal, State, is_no_space};
use crate::io::{BLOCK_BYTES, Durability, File, Io, OpenHow};

/// Zeros are kept this far ahead of the head, and, once so much was written, a whole file: a write
/// that makes a file longer keeps all others to that file waiting, so a busy head finds its file
/// whole ...
const AHEAD_BYTES: u64 = 32 << 20;
/// ... and written in steps of this size while there is time, that is this much ahead ...
const CALM_STEP_BYTES: u64 = 32 << 20;
const CALM_BYTES: u64 = 8 << 20;
const CALM_CHUNK_BYTES: usize = 128 << 10;
/// ... resting this many times as long as each piece took; ...
const CALM_REST: u32 = 3;
/// ... otherwise of this size, the first being small so that a start is quick.
const STEP_BYTES: u64 = 4 << 20;
const FIRST_STEP_BYTES: u64 = 1 << 20;
/// A full disk is tried again after this long.
const RETRY: Duration = Duration::from_secs(1);

/// The path of file `number`.
pub fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("journal-{number:012}"))
}

/// The number in a file's name, if it is one of ours.
pub fn number(name: &str) -> Option<u64> {
    name.strip_prefix("journal-")?.parse().ok()
}

/// The open files by number; those released are used again.
pub struct Files<F> {
    open: BTreeMap<u64, Handle<F>>,
    /// Files below this number are used again.
    first_needed: u64,
    /// The owner needs nothing below this address ...
    released: u64,
    /// ... and, once the group of this sequence is flushed, nothing below that: what stands in
    /// the place of what is released may still be in the device's cache.
    releasing: VecDeque<(u64, u64)>,
    /// Where the last group of each file ends, of those that the head has left.
    ends: BTreeMap<u64, u64>,
    mentions: Mentions,
    /// What says which files must be there.
    pub named: Option<Named<F>>,
}

impl<F> Files<F> {
    pub fn new() -> Files<F> {
        Files {
            open: BTreeMap::new(),
            first_needed: 0,
            released: 0,
            releasing: VecDeque::new(),
            ends: BTreeMap::new(),
            mentions: Mentions::default(),
            named: None,
        }
    }

    pub fn insert(&mut self, number: u64, file: F) {
        self.open.insert(number, Rc::new(file));
    }

    pub fn get(&self, number: u64) -> Option<Handle<F>> {
        self.open.get(&number).cloned()
    }

    /// The head has left file `number`, whose last group ends at the address `end`.
    pub fn left(&mut self, number: u64, end: u64) {
        self.ends.insert(number, end);
    }

    /// No group was ever written.
    pub fn begin_anew(&mut self) {
        self.mentions.begin_anew();
    }

    /// `entry` is placed in file `number`, which is that of the entry before or a newer one.
    pub fn mention(&mut self, number: u64, entry: &Entry) {
        self.mentions.mention(number, entry);
    }

    /// What the entries of a file mention, if that is known of all of them.
    pub fn mentioned(&self, number: u64) -> Option<Mentioned> {
        self.mentions.of(number)
    }

    /// Everything below this address is released, or will be once it is flushed.
    pub fn released_to(&self) -> u64 {
        self.releasing.back().map_or(self.released, |(_, address)| self.released.max(*address))
    }

    /// The oldest file from `number` on that holds something needed, and the address at which its
    /// groups end; none while that is the one being written.
    pub fn oldest_left(&self, number: u64) -> Option<(u64, u64)> {
        let (number, _) = self.open.range(self.first_needed.max(number)..).next()?;
        self.ends.get(number).map(|end| (*number, *end))
    }

    /// The numbers of all files, in ascending order.
    pub fn numbers(&self) -> impl Iterator<Item = u64> {
        self.open.keys().copied()
    }

    /// The address at which a file's groups end, if the head has left it.
    pub fn end_of(&self, number: u64) -> Option<u64> {
        self.ends.get(&number).copied()
    }

    /// Files that hold something needed.
    #[cfg(test)]
    pub fn in_use(&self) -> u64 {
        self.open.range(self.first_needed..).count() as u64
    }

    /// Files below `number` are to be used again.
    pub fn need_from(&mut self, number: u64) {
        self.first_needed = self.first_needed.max(number);
        self.ends = self.ends.split_off(&self.first_needed);
        self.mentions.forget_below(self.first_needed);
    }

    /// The number of the oldest file that is not to be used again.
    pub fn first_needed(&self) -> u64 {
        let first = self.open.keys().next().copied().unwrap_or(self.first_needed);
        first.max(self.first_needed)
    }

    /// Whether they take more than `bytes_max`.
    pub fn exceed(&self, bytes_max: u64, file_bytes: u64) -> bool {
        self.open.len() as u64 * file_bytes > bytes_max
    }

    fn reusable(&self) -> Option<u64> {
        self.open.keys().next().copied().filter(|number| *number < self.first_needed)
    }
}

/// What the preparing task does next.
enum Step {
    /// Write zeros in the current file up to this place in it.
    Extend {
        number: u64,
        to: u64,
    },
    /// The same, with pauses, and only as long as there is time.
    ExtendCalmly {
        number: u64,
        to: u64,
    },
    /// Make the next file.
    Create {
        number: u64,
        to: u64,
    },
    /// Use a released file as the next one.
    Reuse {
        old: u64,
        number: u64,
    },
    /// Note which files are needed.
    Name,
    /// Give a released file back to a file system that is short of space.
    Discard {
        old: u64,
    },
    /// Nothing can be done before something is released or deleted.
    Full,
    Wait,
    End,
}

/// Keeps allocated space ahead of the head until the journal closes.
pub async fn prepare<I: Io>(inner: Rc<Inner<I>>) {
    loop {
        let step = plan(&inner);
        {
            let mut state = inner.state.borrow_mut();
            state.preparing = !matches!(step, Step::Full | Step::Wait | Step::End);
            state.prepare_since = state.preparing.then(|| inner.io.now());
        }
        let outcome = match step {
            Step::End => return,
            Step::Wait => {
                wait(&inner).await;
                Ok(())
            }
            Step::Full => {
                let bytes_max = inner.settings.bytes_max;
                refuse(&inner, Refusal::Full { bytes_max });
                wait(&inner).await;
                Ok(())
            }
            Step::Extend { number, to } => extend(&inner, number, to).await,
            Step::ExtendCalmly { number, to } => extend_calmly(&inner, number, to).await,
            Step::Create { number, to } => create(&inner, number, to).await,
            Step::Reuse { old, number } => reuse(&inner, old, number).await,
            Step::Name => name(&inner).await,
            Step::Discard { old } => {
                discard(&inner, old).await;
                Ok(())
            }
        };
        inner.state.borrow_mut().prepared();
        match outcome {
            Ok(()) => {}
            Err(error) if is_no_space(&error) => {
                refuse(&inner, Refusal::NoSpace(error.to_string()));
                inner.io.sleep(RETRY).await;
            }
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => {
                refuse(&inner, Refusal::Lacks(error.to_string()));
                inner.io.sleep(RETRY).await;
            }
            Err(error) => {
                inner.state.borrow_mut().poison("file preparation", &error);
                return;
            }
        }
    }
}

fn plan<I: Io>(inner: &Rc<Inner<I>>) -> Step {
    let state = inner.state.borrow();
    if state.closing {
        return Step::End;
    }
    if let Some(old) = to_discard(&state, inner.settings.bytes_max) {
        return Step::Discard { old };
    }
    let space = &state.space;
    let wanted = space.wanted as u64;
    let filling = state.filling.as_ref().map_or(0, |filling| filling.bytes() as u64);
    let head = space.head + filling;
    let (number, end) = (space.file_number(), space.file_end());
    let start = end - space.file_bytes;
    let target = match state.short {
        true => FIRST_STEP_BYTES,
        false => AHEAD_BYTES.max((head - space.began).min(space.file_bytes)),
    };
    if space.allocated < end && space.allocated.saturating_sub(head) < target.max(wanted) {
        let ahead = space.allocated.saturating_sub(head);
        return extension(number, space.allocated - start, ahead, wanted, space.file_bytes);
    }
    match space.next_allocated {
        None if space.allocated == end && end.saturating_sub(head) < target.max(wanted) => {
            let to = FIRST_STEP_BYTES.max(wanted).min(space.file_bytes);
            let create =
                Step::Create { number: number + 1, to: to.next_multiple_of(BLOCK_BYTES as u64) };
            if state.files.open.contains_key(&(number + 1)) {
                return create;
            }
            if let Some(old) = state.files.reusable() {
                return Step::Reuse { old, number: number + 1 };
            }
            let files = state.files.open.len() as u64 + u64::from(!space.is_beyond_wanted);
            if files * space.file_bytes > inner.settings.bytes_max {
                return if space.refusal.is_some() { Step::Wait } else { Step::Full };
            }
            create
        }
        Some(allocated)
            if allocated < end + space.file_bytes
                && (allocated.saturating_sub(head) < target || allocated - end < wanted) =>
        {
            let ahead = allocated.saturating_sub(head);
            extension(number + 1, allocated - end, ahead, wanted, space.file_bytes)
        }
        // A file that is used again notes it as well.
        _ if range::names_too_many(&state) => Step::Name,
        _ => Step::Wait,
    }
}

/// A released file that a full disk needs more than the journal does, or that is beyond the limit
/// (S5): it would become the next one, where the current one cannot even grow, or the next one is
/// there.
fn to_discard<I: Io>(state: &State<I>, bytes_max: u64) -> Option<u64> {
    let space = &state.space;
    let is_next_wanted = space.allocated == space.file_end() && space.next_allocated.is_none();
    let is_short = state.short || space.refusal.as_ref().is_some_and(is_lack);
    let is_beyond = state.files.exceed(bytes_max, space.file_bytes);
    state.files.reusable().filter(|_| (is_short || is_beyond) && !is_next_wanted)
}

/// The step that adds to the `allocated` bytes of a file, when `ahead` bytes are ready and somebody
/// waits for room for `wanted`.
fn extension(number: u64, allocated: u64, ahead: u64, wanted: u64, file_bytes: u64) -> Step {
    let is_calm = wanted == 0 && ahead >= CALM_BYTES;
    let step = if is_calm { CALM_STEP_BYTES } else { STEP_BYTES.max(wanted) };
    let to = (allocated + step).min(file_bytes).next_multiple_of(BLOCK_BYTES as u64);
    if is_calm { Step::ExtendCalmly { number, to } } else { Step::Extend { number, to } }
}

async fn wait<I: Io>(inner: &Rc<Inner<I>>) {
    let mut waited = false;
    poll_fn(|context| {
        if waited {
            return Poll::Ready(());
        }
        waited = true;
        inner.state.borrow_mut().preparer = Some(context.waker().clone());
        Poll::Pending
    })
    .await;
}

/// Whether what is released helps.
fn is_lack(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::NoSpace(_) | Refusal::Lacks(_))
}

fn refuse<I: Io>(inner: &Rc<Inner<I>>, refusal: Refusal) {
    let mut state = inner.state.borrow_mut();
    if state.space.refusal.is_none() {
        tracing::warn!("{}", refusal);
        if is_lack(&refusal) {
            state.drain_all();
        }
    }
    state.space.refusal = Some(refusal);
    state.wake_watchers();
}

/// Publishes that `number` is allocated up to `to`.
fn publish<I: Io>(inner: &Rc<Inner<I>>, number: u64, to: u64) {
    let mut state = inner.state.borrow_mut();
    let end = number * inner.settings.file_bytes + to;
    if state.space.file_number() == number {
        state.space.allocated = state.space.allocated.max(end);
    } else {
        state.space.next_allocated = Some(end);
    }
    if state.space.refusal.take().is_some() {
        tracing::info!("the journal has space again and takes writes");
    }
    state.space.wanted = 0;
    state.space.is_beyond_wanted = false;
    state.wake_watchers();
}

async fn extend<I: Io>(inner: &Rc<Inner<I>>, number: u64, to: u64) -> io::Result<()> {
    let file = inner.state.borrow().files.get(number);
    let file = file.ok_or_else(|| io::Error::other("the journal's current file is not open"))?;
    file.allocate(to).await?;
    publish(inner, number, file.len().min(inner.settings.file_bytes));
    Ok(())
}

async fn extend_calmly<I: Io>(inner: &Rc<Inner<I>>, number: u64, to: u64) -> io::Result<()> {
    let file = inner.state.borrow().files.get(number);
    let file = file.ok_or_else(|| io::Error::other("the journal's current file is not open"))?;
    let mut at = file.len() / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
    if let Some(mut zeros) = inner.arena.take(CALM_CHUNK_BYTES) {
        zeros.fill(0);
        let zeros = zeros.freeze();
        while at < to && inner.state.borrow().is_calm() {
            let chunk = usize::try_from(to - at).unwrap_or(usize::MAX).min(CALM_CHUNK_BYTES);
            let began = inner.io.now();
            inner.state.borrow_mut().prepare_since = Some(began);
            file.write_at(at, zeros.slice(..chunk), Durability::Written).await?;
            at += chunk as u64;
            inner.io.sleep((inner.io.now() - began) * CALM_REST).await;
        }
        file.sync().await?;
    } else {
        // The core's memory is in use: what is smaller finds some.
        inner.io.sleep(RETRY / 100).await;
    }
    publish(inner, number, file.len().min(inner.settings.file_bytes));
    Ok(())
}

async fn create<I: Io>(inner: &Rc<Inner<I>>, number: u64, to: u64) -> io::Result<()> {
    let path = path(&inner.settings.directory, number);
    let known = inner.state.borrow().files.get(number);
    let file = match known {
        Some(file) => file,
        None => {
            let file = match inner.io.open(&path, OpenHow::CreateNew).await {
                // An earlier attempt failed after the file was there; nothing was placed in it.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let file = inner.io.open(&path, OpenHow::Existing).await?;
                    inner.io.sync_directory(&inner.settings.directory).await?;
                    file
                }
                outcome => outcome?,
            };
            inner.state.borrow_mut().files.insert(number, file);
            inner.state.borrow().files.get(number).unwrap_or_else(|| unreachable!("inserted"))
        }
    };
    file.allocate(to).await?;
    range::name_through(inner, number + 1).await?;
    publish(inner, number, file.len().min(inner.settings.file_bytes));
    Ok(())
}

async fn reuse<I: Io>(inner: &Rc<Inner<I>>, old: u64, number: u64) -> io::Result<()> {
    let directory = &inner.settings.directory;
    range::name_needed(inner).await?;
    inner.io.rename(&path(directory, old), &path(directory, number)).await?;
    let file = {
        let mut state = inner.state.borrow_mut();
        let file = state.files.open.remove(&old);
        let file = file.ok_or_else(|| io::Error::other("a released file is not open"))?;
        state.files.open.insert(number, file.clone());
        file
    };
    range::name_through(inner, number + 1).await?;
    publish(inner, number, file.len().min(inner.settings.file_bytes));
    Ok(())
}

async fn name<I: Io>(inner: &Rc<Inner<I>>) -> io::Result<()> {
    match range::name_needed(inner).await {
        // It is not urgent.
        Err(error) if is_no_space(&error) || error.kind() == io::ErrorKind::OutOfMemory => {
            inner.io.sleep(RETRY / 10).await;
            Ok(())
        }
        outcome => outcome,
    }
}

/// The lowest number goes first, and nothing else goes on before it is gone: there is no hole.
async fn discard<I: Io>(inner: &Rc<Inner<I>>, old: u64) {
    let path = path(&inner.settings.directory, old);
    let removed = async {
        range::name_needed(inner).await?;
        inner.io.remove(&path).await
    };
    match removed.await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("{} is needed no more and not removed: {error}", path.display());
            inner.io.sleep(RETRY).await;
        }
        _ => drop(inner.state.borrow_mut().files.open.remove(&old)),
    }
}

/// See `Journal::release`.
pub fn release<I: Io>(inner: &Rc<Inner<I>>, address: u64) {
    let mut state = inner.state.borrow_mut();
    let after = state.written.sequence;
    state.files.releasing.push_back((after, address));
    release_flushed(&mut state, inner.settings.file_bytes);
}

/// Frees the released files in which everything is flushed: a group that still waits for the disk
/// needs its file, though nobody needs the group.
pub fn release_flushed<I: Io>(state: &mut State<I>, file_bytes: u64) {
    let flushed = state.flushed;
    while let Some((_, address)) =
        state.files.releasing.pop_front_if(|(after, _)| *after <= flushed.sequence)
    {
        state.files.released = state.files.released.max(address);
    }
    // The first needed file has a flushed group: recovery begins there (R5). The group being
    // filled lies at or behind the flushed end, and so does the head.
    let needed = state.files.released.min(flushed.end.saturating_sub(1)) / file_bytes;
    let needed = needed.min(state.space.file_number());
    if needed > state.files.first_needed {
        state.files.need_from(needed);
        // The disk may still be full, but a file that is there costs nothing.
        state.space.refusal = None;
        state.wake_preparer();
        state.wake_watchers();
    }
}

impl<I: Io> State<I> {
    /// Whether zeros may take their time.
    fn is_calm(&self) -> bool {
        let filling = self.filling.as_ref().map_or(0, |filling| filling.bytes() as u64);
        let allocated = self.space.next_allocated.unwrap_or(self.space.allocated);
        let ahead = allocated.saturating_sub(self.space.head + filling);
        !self.closing && self.space.wanted == 0 && ahead >= CALM_BYTES
    }

    /// The files' task has done a step; whoever closes the journal may wait for it.
    fn prepared(&mut self) {
        self.preparing = false;
        self.prepare_since = None;
        if self.closing {
            self.wake_watchers();
        }
    }
}

/// Reads any range within one file.
pub async fn read<I: Io>(
    inner: &Rc<Inner<I>>,
    location: Location,
    step: usize,
) -> io::Result<Bytes> {
    let file_bytes = inner.settings.file_bytes;
    let number = location.address / file_bytes;
    let (file, written) = {
        let state = inner.state.borrow();
        (state.files.get(number), state.written.end)
    };
    let gone = || io::Error::other(format!("journal file {number} is not there any more"));
    let file = file.ok_or_else(gone)?;
    let start = location.address % file_bytes;
    let end = start + u64::from(location.length);
    if end > file_bytes || location.address + u64::from(location.length) > written {
        let what = format!("{location:?} is not within one file of what is written");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    let block = BLOCK_BYTES as u64;
    let aligned = start / block * block;
    let length =
        usize::try_from(end.next_multiple_of(block) - aligned).map_err(io::Error::other)?;
    let buffer = file.read_in_steps(aligned, length, step).await?;
    let still = inner.state.borrow().files.get(number);
    if !still.is_some_and(|still| Rc::ptr_eq(&still, &file)) {
        return Err(gone()); // used again while this read was under way
    }
    let skip = usize::try_from(start - aligned).map_err(io::Error::other)?;
    Ok(buffer.freeze().slice(skip..skip + location.length as usize))
}
