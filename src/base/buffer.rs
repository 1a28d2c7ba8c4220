//! Aligned memory for direct I/O: an arena of mapped pages per core, handed out as counted buffers.
//!
//!     | chunk of 2 MiB: buddies of 4 KiB, 8 KiB, ... 2 MiB | chunk | ... |   and what is larger,
//!                                                                            mapped by itself
//!
//! A chunk is one huge page if the system gives one: copies and pinned pages then cost much less
//! (a fifth of the CPU that a gigabyte of records takes). The first touch of a huge page clears
//! 2 MiB, up to 10 ms where a virtual machine's host has yet to find that memory; so a thread
//! beside the cores (`prepare`) touches chunks before they are asked for, and a core that finds
//! none takes one of small pages.
//!
//! Lives on: every core, one arena. A buffer (or the `Bytes` it became) may be dropped on any
//! core: its memory goes back to the arena it came from.
//!
//! Invariants
//!   B1  A buffer's memory is aligned to 4096 bytes and its capacity is a power of two from 4096.
//!   B2  Memory is either free in one chunk or owned by exactly one buffer.
//!   B3  `taken` never exceeds the arena's budget; a request beyond it is refused, not queued.
//!   B4  Every byte below `capacity` is initialised (fresh mappings are zero).
//!   B5  What is mapped exceeds the budget by a quarter and `FREE_BYTES_MAX` at most, however the
//!       buffers lie in their chunks.

use std::collections::BTreeSet;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::thread::Thread;

use bytes::Bytes;
use crossbeam_queue::ArrayQueue;
use slab::Slab;

use super::buddies::{Buddies, LEAVES, WHOLE};

/// Alignment of every buffer, and the smallest one.
pub const ALIGNMENT: usize = 4096;
/// The largest buffer, 1 GiB: nothing in the system asks for more in one piece.
pub const BUFFER_BYTES_MAX: usize = 1 << 30;
/// What is mapped at a time for buffers up to this size: a huge page of x86-64 and of AArch64.
const CHUNK_BYTES: usize = LEAVES * ALIGNMENT;
/// Free memory kept for reuse; what exceeds it goes back to the system.
const FREE_BYTES_MAX: usize = 32 << 20;
/// Chunks that are ready before a core asks.
const PREPARED_MAX: usize = 4;

/// Chunks that were touched beside the cores, for all arenas.
static PREPARED: LazyLock<ArrayQueue<Mapping>> = LazyLock::new(|| ArrayQueue::new(PREPARED_MAX));
/// Who prepares them.
static PREPARER: OnceLock<Thread> = OnceLock::new();

/// Touches chunks of huge pages until enough are ready. The calling thread, which does nothing
/// else, is unparked when one was taken.
pub fn prepare() {
    PREPARER.get_or_init(std::thread::current);
    while !PREPARED.is_full() {
        let Some(chunk) = Mapping::of_huge_page() else { return };
        // Whoever else prepares was faster: this one is unmapped.
        drop(PREPARED.push(chunk));
    }
}

/// One core's aligned memory. Cloning shares it.
#[derive(Clone)]
pub struct Arena {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    budget: usize,
    taken: usize,
    /// Bytes of `chunks`, and of buffers that are larger than a chunk.
    mapped: usize,
    chunks: Slab<Chunk>,
    /// Keys of chunks by the order of the largest part that is free in them.
    open: [BTreeSet<usize>; WHOLE as usize + 1],
}

struct Chunk {
    mapping: Mapping,
    parts: Buddies,
}

/// Pages of our own, zeroed when they came from the system.
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a `Mapping` is the only owner of its pages; nothing about them is bound to a thread.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(bytes: usize) -> Option<Mapping> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: an anonymous private mapping touches no memory of ours; failure is checked.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return None;
        }
        Some(Mapping { start: NonNull::new(start.cast())?, bytes })
    }

    /// A chunk whose memory is there, in one huge page if the system has one to give.
    fn of_huge_page() -> Option<Mapping> {
        let wide = Mapping::new(2 * CHUNK_BYTES)?;
        let before = wide.start.as_ptr().align_offset(CHUNK_BYTES);
        let (_, aligned) = wide.split(before);
        let (chunk, _) = aligned.split(CHUNK_BYTES);
        let start = chunk.start.as_ptr();
        // SAFETY: the call is about the chunk's own pages and changes none of their bytes. It fails
        // where the kernel does not know it, and then the pages are small.
        unsafe { libc::madvise(start.cast(), CHUNK_BYTES, libc::MADV_HUGEPAGE) };
        for leaf in 0..LEAVES {
            // SAFETY: the leaf is within the chunk, which nobody else has, and holds zeros.
            // Unlike `MADV_POPULATE_WRITE` this holds up nobody who maps memory meanwhile.
            unsafe { start.add(leaf * ALIGNMENT).write_volatile(0) };
        }
        Some(chunk)
    }

    /// The first `bytes` and the rest, each with its own end; an empty one is nothing.
    fn split(self, bytes: usize) -> (Mapping, Mapping) {
        let whole = std::mem::ManuallyDrop::new(self);
        assert!(bytes <= whole.bytes, "a part of the mapping");
        // SAFETY: `bytes` is within the mapping.
        let rest = unsafe { whole.start.add(bytes) };
        let first = Mapping { start: whole.start, bytes };
        (first, Mapping { start: rest, bytes: whole.bytes - bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: `start` and `bytes` are pages of our own, unmapped once.
            let outcome = unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
            debug_assert_eq!(outcome, 0, "unmapping our own memory succeeds");
        }
    }
}

/// The memory of one buffer.
struct Memory {
    start: NonNull<u8>,
    capacity: usize,
    home: Home,
}

/// Where memory is from.
enum Home {
    /// The chunk of this key, from this leaf on.
    Chunk(usize, usize),
    /// A mapping that is the buffer's alone.
    Alone(#[expect(dead_code, reason = "held for its drop")] Mapping),
}

// SAFETY: a `Memory` is the only owner of its bytes; nothing about them is bound to a thread.
unsafe impl Send for Memory {}
// SAFETY: shared references to a `Memory` give only reads of plain bytes.
unsafe impl Sync for Memory {}

impl Arena {
    /// An arena that hands out at most `budget` bytes at a time.
    pub fn new(budget: usize) -> Arena {
        let open = [const { BTreeSet::new() }; WHOLE as usize + 1];
        let shared = Shared { budget, taken: 0, mapped: 0, chunks: Slab::new(), open };
        Arena { shared: Arc::new(Mutex::new(shared)) }
    }

    /// A buffer of at least `length` bytes, with length `length` and unspecified (but initialised)
    /// content. `None` when the budget is spent or the length is beyond `BUFFER_BYTES_MAX`.
    pub fn take(&self, length: usize) -> Option<AlignedBuffer> {
        if length > BUFFER_BYTES_MAX {
            return None;
        }
        let capacity = length.max(ALIGNMENT).next_power_of_two();
        let memory = self.lock().take(capacity)?;
        Some(AlignedBuffer { memory: Some(memory), length, arena: self.clone() })
    }

    /// Bytes handed out and not yet returned.
    pub fn taken(&self) -> usize {
        self.lock().taken
    }

    /// The most that may be handed out at a time.
    pub fn budget(&self) -> usize {
        self.lock().budget
    }

    fn give_back(&self, memory: Memory) {
        let surplus = self.lock().give_back(&memory);
        drop((surplus, memory)); // unmapped outside the lock
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        // What is listed is consistent between any two statements that may panic.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn take(&mut self, capacity: usize) -> Option<Memory> {
        if self.taken.saturating_add(capacity) > self.budget {
            return None;
        }
        let memory = if capacity <= CHUNK_BYTES {
            self.part(order(capacity))?
        } else {
            self.map(capacity, Mapping::new).map(|own| Memory {
                start: own.start,
                capacity,
                home: Home::Alone(own),
            })?
        };
        self.taken += capacity;
        Some(memory)
    }

    /// A part of the chunk in which a smaller hole than others is large enough.
    fn part(&mut self, order: u8) -> Option<Memory> {
        let found = self.open[usize::from(order)..].iter().find_map(BTreeSet::first).copied();
        let key = match found {
            Some(key) => key,
            None => self.add_chunk()?,
        };
        let (start, leaf) = self.change(key, |chunk| {
            let leaf = chunk.parts.take(order)?;
            // SAFETY: the leaf is within the chunk.
            Some((unsafe { chunk.mapping.start.add(leaf * ALIGNMENT) }, leaf))
        })?;
        Some(Memory { start, capacity: ALIGNMENT << order, home: Home::Chunk(key, leaf) })
    }

    fn add_chunk(&mut self) -> Option<usize> {
        // An arena that hardly holds anything is given the small pages that it touches.
        let is_first = self.chunks.is_empty();
        let mapping = self.map(CHUNK_BYTES, |bytes| {
            let prepared = if is_first { None } else { PREPARED.pop() };
            if prepared.is_some() {
                PREPARER.get().inspect(|preparer| preparer.unpark());
            }
            prepared.or_else(|| Mapping::new(bytes))
        })?;
        let key = self.chunks.insert(Chunk { mapping, parts: Buddies::new() });
        self.open[usize::from(WHOLE)].insert(key);
        Some(key)
    }

    /// `make` is asked for so many bytes if they may be mapped (B5).
    fn map(&mut self, bytes: usize, make: impl Fn(usize) -> Option<Mapping>) -> Option<Mapping> {
        let mapped_max = self.budget.saturating_add(self.budget / 4 + FREE_BYTES_MAX);
        while self.mapped + bytes > mapped_max {
            // What is free and whole makes room for what is larger than a chunk.
            let whole = self.open[usize::from(WHOLE)].pop_first()?;
            drop(self.chunks.remove(whole));
            self.mapped -= CHUNK_BYTES;
        }
        let mapping = make(bytes)?;
        self.mapped += bytes;
        Some(mapping)
    }

    /// Changes what is free in a chunk, and lists it where that belongs.
    fn change<T>(&mut self, key: usize, how: impl FnOnce(&mut Chunk) -> T) -> T {
        let chunk = &mut self.chunks[key];
        let before = chunk.parts.largest();
        let outcome = how(chunk);
        let after = chunk.parts.largest();
        if before != after {
            before.map(|order| self.open[usize::from(order)].remove(&key));
            after.map(|order| self.open[usize::from(order)].insert(key));
        }
        outcome
    }

    /// The chunk that is to be unmapped, if more are free than are kept.
    fn give_back(&mut self, memory: &Memory) -> Option<Chunk> {
        self.taken -= memory.capacity;
        let Home::Chunk(key, leaf) = memory.home else {
            self.mapped -= memory.capacity;
            return None;
        };
        self.change(key, |chunk| chunk.parts.give_back(leaf, order(memory.capacity)));
        let whole = &mut self.open[usize::from(WHOLE)];
        if whole.len() * CHUNK_BYTES <= FREE_BYTES_MAX {
            return None;
        }
        self.mapped -= CHUNK_BYTES;
        whole.pop_last().map(|key| self.chunks.remove(key))
    }
}

/// The order of buddies of `capacity` bytes.
fn order(capacity: usize) -> u8 {
    u8::try_from((capacity / ALIGNMENT).ilog2()).unwrap_or(u8::MAX)
}

/// A piece of an arena's memory with one owner; `freeze` makes it shared and read-only.
pub struct AlignedBuffer {
    memory: Option<Memory>,
    length: usize,
    arena: Arena,
}

impl AlignedBuffer {
    /// Bytes that fit without asking the arena again.
    pub fn capacity(&self) -> usize {
        self.memory.as_ref().map_or(0, |memory| memory.capacity)
    }

    /// Sets the length, at most to the capacity; bytes that appear keep what they held before.
    pub fn set_len(&mut self, length: usize) {
        assert!(length <= self.capacity(), "a buffer's length is within its capacity");
        self.length = length;
    }

    /// Appends `data` if it fits; says whether it did.
    #[must_use]
    pub fn extend(&mut self, data: &[u8]) -> bool {
        let end = self.length + data.len();
        if end > self.capacity() {
            return false;
        }
        let start = self.length;
        self.length = end;
        self[start..end].copy_from_slice(data);
        true
    }

    /// Turns the buffer into counted, read-only bytes; the memory returns to the arena with the
    /// last of them.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            // SAFETY: `start` owns `capacity >= length` initialised bytes (B4), borrowed with self.
            Some(memory) => unsafe {
                std::slice::from_raw_parts(memory.start.as_ptr(), self.length)
            },
            None => &[],
        }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            // SAFETY: as in `deref`, and `&mut self` makes this the only reference.
            Some(memory) => unsafe {
                std::slice::from_raw_parts_mut(memory.start.as_ptr(), self.length)
            },
            None => &mut [],
        }
    }
}

impl AsRef<[u8]> for AlignedBuffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.arena.give_back(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_counted() {
        let arena = Arena::new(64 << 10);
        let buffer = arena.take(5000).expect("within the budget");
        assert_eq!(buffer.as_ptr() as usize % ALIGNMENT, 0);
        assert_eq!((buffer.len(), buffer.capacity()), (5000, 8192));
        assert!(buffer.iter().all(|byte| *byte == 0));
        assert_eq!(arena.taken(), 8192);
        drop(buffer);
        assert_eq!(arena.taken(), 0);
    }

    #[test]
    fn the_budget_is_a_wall_that_opens_again() {
        let arena = Arena::new(8192);
        let first = arena.take(4096).expect("within the budget").freeze();
        let second = arena.take(4096).expect("within the budget");
        assert!(arena.take(1).is_none());
        let part = first.slice(10..20);
        drop(first);
        assert!(arena.take(1).is_none(), "a slice keeps the whole buffer");
        drop(part);
        assert!(arena.take(1).is_some());
        drop(second);
        assert!(arena.take(usize::MAX).is_none());
    }

    #[test]
    fn a_buffer_dropped_on_another_thread_returns_home() {
        let arena = Arena::new(1 << 20);
        let mut buffer = arena.take(0).expect("within the budget");
        assert!(buffer.extend(b"abc"));
        assert!(!buffer.extend(&[0; 4094]));
        let bytes = buffer.freeze();
        let thread = std::thread::spawn(move || bytes.len());
        assert_eq!(thread.join().ok(), Some(3));
        assert_eq!(arena.taken(), 0);
    }

    /// Every second MiB stays: no chunk is free, and each larger buffer needs another one.
    #[test]
    fn what_is_mapped_is_bounded_however_buffers_lie() {
        let budget = 256 << 20;
        let arena = Arena::new(budget);
        let all: Vec<_> = (0..256).map_while(|_| arena.take(1 << 20)).collect();
        assert_eq!(all.len(), 256);
        let kept: Vec<_> = all.into_iter().step_by(2).collect();
        let larger: Vec<_> = (0..).map_while(|_| arena.take(2 << 20)).collect();
        let mapped_max = budget + budget / 4 + FREE_BYTES_MAX;
        assert_eq!(larger.len(), (mapped_max - budget) / CHUNK_BYTES, "B5, before B3");
        assert!(arena.take(3 << 20).is_none(), "nor what is mapped by itself");
        assert_eq!(arena.lock().mapped, mapped_max);
        drop((kept, larger));
        assert_eq!((arena.taken(), arena.lock().mapped), (0, FREE_BYTES_MAX));
        assert!(arena.take(256 << 20).is_some(), "free chunks make room");
    }

    #[cfg(not(miri))]
    #[test]
    fn chunks_that_were_prepared_are_used_from_the_second_on() {
        assert!(std::thread::spawn(prepare).join().is_ok());
        let arena = Arena::new(64 << 20);
        let first = arena.take(CHUNK_BYTES).expect("within the budget");
        let second = arena.take(CHUNK_BYTES).expect("within the budget");
        assert_eq!(second.as_ptr().align_offset(CHUNK_BYTES), 0, "as huge pages are");
        assert!(first.iter().chain(second.iter()).all(|byte| *byte == 0));
    }
}
