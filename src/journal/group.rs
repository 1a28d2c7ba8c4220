//! Filling and sealing groups.
//!
//! Invariants
//!   G1  A filling group with its directory and padding always fits the space it was given.
//!   G2  Addresses of groups are dense within a file.

use bytes::Bytes;

use super::layout::{DIRECTORY_ENTRY_BYTES, Entry, GroupHeader, HEADER_BYTES, put_entry};
use super::tail::Tail;
use super::{Appended, Inner, Location, Position, Refusal, State};
use crate::base::buffer::{AlignedBuffer, Arena};
use crate::io::{BLOCK_BYTES, Io};

/// The smallest buffer a group begins with.
const FIRST_BYTES: usize = 16 << 10;

/// The group that takes entries.
pub struct Filling {
    sequence: u64,
    /// The sequence of the group before it.
    previous: u64,
    address: u64,
    buffer: AlignedBuffer,
    directory: Vec<u8>,
    entries: u32,
}

/// A group as it is written.
pub struct Sealed {
    pub sequence: u64,
    pub address: u64,
    pub bytes: Bytes,
    /// Bytes of the arena that `bytes` holds.
    pub memory: usize,
}

impl Filling {
    /// `directory` is empty, its memory that of a group before.
    fn new(
        (sequence, previous): (u64, u64),
        address: u64,
        mut buffer: AlignedBuffer,
        directory: Vec<u8>,
    ) -> Filling {
        buffer.set_len(HEADER_BYTES);
        Filling { sequence, previous, address, buffer, directory, entries: 0 }
    }

    /// Bytes of the group if an entry of `body` bytes is added.
    pub fn bytes_with(&self, body: usize) -> usize {
        group_bytes(self.buffer.len() - HEADER_BYTES + body, self.entries as usize + 1)
    }

    pub fn bytes(&self) -> usize {
        group_bytes(self.buffer.len() - HEADER_BYTES, self.entries as usize)
    }

    /// Makes the buffer large enough for an entry of `body` bytes and for sealing after it.
    fn grow(&mut self, body: usize, arena: &Arena, tail: &mut Tail) -> Result<(), Refusal> {
        let needed = self.bytes_with(body);
        if needed <= self.buffer.capacity() {
            return Ok(());
        }
        let mut larger = take(arena, tail, needed)?;
        larger.set_len(0);
        let copied = larger.extend(&self.buffer);
        assert!(copied, "the larger buffer holds what the smaller one held");
        self.buffer = larger;
        Ok(())
    }

    fn push(&mut self, entry: &Entry, body: &[u8], stamp: impl FnOnce(&mut [u8])) -> Location {
        let start = self.buffer.len();
        let copied = self.buffer.extend(body);
        assert!(copied, "grown before");
        stamp(&mut self.buffer[start..]);
        put_entry(&mut self.directory, entry, &self.buffer[start..]);
        self.entries += 1;
        Location {
            address: self.address + start as u64,
            length: u32::try_from(body.len()).unwrap_or(u32::MAX),
        }
    }

    /// Header, directory and padding. It names the last group that is flushed at this moment, which
    /// must be the moment at which the write begins: a later one that says less would let
    /// recovery take a damaged group for a torn one.
    pub fn seal<I: Io>(mut self, state: &mut State<I>, file_bytes: u64) -> Sealed {
        let directory_at = self.buffer.len();
        let length = self.bytes();
        self.buffer.set_len(length);
        let header = GroupHeader {
            journal_id: state.journal_id,
            sequence: self.sequence,
            address: self.address,
            length: u32::try_from(length).unwrap_or(u32::MAX),
            directory_at: u32::try_from(directory_at).unwrap_or(u32::MAX),
            entries: self.entries,
            flushed: state.flushed.sequence,
            previous: self.previous,
            file_bytes,
        };
        header.seal(&mut self.buffer, &self.directory);
        self.directory.clear();
        state.spare_directory = self.directory;
        let memory = self.buffer.capacity();
        let bytes = self.buffer.freeze();
        Sealed { sequence: self.sequence, address: self.address, bytes, memory }
    }
}

/// The smallest group that holds an entry of `body` bytes.
pub fn bytes_alone(body: usize) -> usize {
    group_bytes(body, 1)
}

/// Bytes of a group with `bodies` bytes in `entries` entries.
fn group_bytes(bodies: usize, entries: usize) -> usize {
    (HEADER_BYTES + bodies + entries * DIRECTORY_ENTRY_BYTES).next_multiple_of(BLOCK_BYTES)
}

/// Memory for a group; recent groups make room for new ones.
fn take(arena: &Arena, tail: &mut Tail, bytes: usize) -> Result<AlignedBuffer, Refusal> {
    loop {
        if let Some(buffer) = arena.take(bytes) {
            return Ok(buffer);
        }
        if !tail.forget_oldest() {
            return Err(Refusal::NoMemory { bytes });
        }
    }
}

/// Appends one entry; see `Journal::append`.
pub fn append<I: Io>(
    inner: &Inner<I>,
    entry: Entry,
    body: &[u8],
    stamp: impl FnOnce(&mut [u8]),
) -> Result<Appended, Refusal> {
    let mut state = inner.state.borrow_mut();
    if let Some(refusal) = state.ended() {
        return Err(refusal);
    }
    let group_bytes_max = inner.settings.group_bytes_max;
    let fits = state.filling.as_ref().is_some_and(|filling| {
        let bytes = filling.bytes_with(body.len());
        bytes <= group_bytes_max && state.space.holds_in_file(filling.address, bytes)
    });
    if !fits {
        state.seal_filling();
        state.start_group(inner, body.len())?;
    }
    let State { filling, pending_bytes, tail, files, space, .. } = &mut *state;
    let Some(filling) = filling.as_mut() else { unreachable!("started above") };
    filling.grow(body.len(), &inner.arena, tail)?;
    let before = if filling.entries == 0 { 0 } else { filling.bytes() };
    let location = filling.push(&entry, body, stamp);
    let position = Position(filling.sequence);
    files.mention(location.address / space.file_bytes, &entry);
    *pending_bytes += filling.bytes() - before;
    state.wake_writer();
    Ok(Appended { position, location })
}

impl<I: Io> State<I> {
    /// Moves the filling group to those that wait for the disk.
    pub(super) fn seal_filling(&mut self) {
        if let Some(filling) = self.filling.take() {
            assert!(filling.entries > 0, "a group is started for an entry");
            self.space.head = filling.address + filling.bytes() as u64;
            self.sealed_bytes = filling.bytes();
            self.waiting.push_back(filling);
            self.wake_preparer();
        }
    }

    /// A group without entries, where there is room that nobody else may need.
    pub(super) fn closing_group(&mut self, inner: &Inner<I>) -> Option<Filling> {
        if !self.has_room_to_spare(0, &inner.settings) {
            return None;
        }
        self.start_group(inner, 0).ok()?;
        let group = self.filling.take()?;
        self.space.head = group.address + group.bytes() as u64;
        self.pending_bytes += group.bytes();
        Some(group)
    }

    fn start_group(&mut self, inner: &Inner<I>, body: usize) -> Result<(), Refusal> {
        let bytes = group_bytes(body, 1);
        // Under load a group grows as large as the one before it, and growing copies.
        let expected =
            self.sealed_bytes.clamp(FIRST_BYTES, inner.settings.group_bytes_max.max(FIRST_BYTES));
        let buffer = match take(&inner.arena, &mut self.tail, bytes.max(expected)) {
            Err(_) if bytes < expected => take(&inner.arena, &mut self.tail, bytes)?,
            taken => taken?,
        };
        let (left, end) = (self.space.file_number(), self.space.head);
        let address = self.space.place(bytes)?;
        if self.space.file_number() != left {
            self.files.left(left, end);
        }
        let (sequence, previous) = (self.next_sequence, self.newest_sequence);
        let directory = std::mem::take(&mut self.spare_directory);
        self.filling = Some(Filling::new((sequence, previous), address, buffer, directory));
        self.newest_sequence = sequence;
        self.next_sequence += 1;
        Ok(())
    }
}
