//! Aligned memory for direct I/O: an arena of mapped pages per core, handed out as counted buffers.
//!
//!     | 4 KiB class | 8 KiB class | ... | BUFFER_BYTES_MAX class |   free lists by power of two
//!
//! Lives on: every core, one arena. A buffer (or the `Bytes` it became) may be dropped on any
//! core: its memory goes back to the arena it came from.
//!
//! Invariants
//!   B1  A buffer's memory is aligned to 4096 bytes and its capacity is a power of two from 4096.
//!   B2  Memory is either in exactly one free list or owned by exactly one buffer.
//!   B3  `taken` never exceeds the arena's budget; a request beyond it is refused, not queued.
//!   B4  Every byte below `capacity` is initialised (fresh mappings are zero).

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Alignment of every buffer, and the smallest one.
pub const ALIGNMENT: usize = 4096;
/// The largest buffer, 1 GiB: nothing in the system asks for more in one piece.
pub const BUFFER_BYTES_MAX: usize = 1 << 30;
/// Free memory kept for reuse per size class; what exceeds it goes back to the system.
const FREE_BYTES_MAX: usize = 32 << 20;

const CLASSES: usize = (BUFFER_BYTES_MAX / ALIGNMENT).ilog2() as usize + 1;

/// One core's aligned memory. Cloning shares it.
#[derive(Clone)]
pub struct Arena {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    budget: usize,
    taken: usize,
    free: [Vec<Memory>; CLASSES],
}

/// One mapped piece, zeroed when it came from the system.
struct Memory {
    start: NonNull<u8>,
    capacity: usize,
}

// SAFETY: a `Memory` is the only owner of its bytes; nothing about them is bound to a thread.
unsafe impl Send for Memory {}
// SAFETY: shared references to a `Memory` give only reads of plain bytes.
unsafe impl Sync for Memory {}

impl Memory {
    fn map(capacity: usize) -> Option<Memory> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: an anonymous private mapping touches no memory of ours; failure is checked.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), capacity, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return None;
        }
        Some(Memory { start: NonNull::new(start.cast())?, capacity })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `start` and `capacity` are those of one mapping of our own, unmapped once.
        let outcome = unsafe { libc::munmap(self.start.as_ptr().cast(), self.capacity) };
        debug_assert_eq!(outcome, 0, "unmapping our own memory succeeds");
    }
}

impl Arena {
    /// An arena that hands out at most `budget` bytes at a time.
    pub fn new(budget: usize) -> Arena {
        let shared = Shared { budget, taken: 0, free: [const { Vec::new() }; CLASSES] };
        Arena { shared: Arc::new(Mutex::new(shared)) }
    }

    /// A buffer of at least `length` bytes, with length `length` and unspecified (but initialised)
    /// content. `None` when the budget is spent or the length is beyond `BUFFER_BYTES_MAX`.
    pub fn take(&self, length: usize) -> Option<AlignedBuffer> {
        if length > BUFFER_BYTES_MAX {
            return None;
        }
        let capacity = length.max(ALIGNMENT).next_power_of_two();
        let memory = {
            let mut shared = self.lock();
            if shared.taken.saturating_add(capacity) > shared.budget {
                return None;
            }
            shared.taken += capacity;
            shared.free[class(capacity)].pop()
        };
        let memory = memory.or_else(|| Memory::map(capacity));
        match memory {
            Some(memory) => {
                Some(AlignedBuffer { memory: Some(memory), length, arena: self.clone() })
            }
            None => {
                self.lock().taken -= capacity;
                None
            }
        }
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
        let class = class(memory.capacity);
        let surplus = {
            let mut shared = self.lock();
            shared.taken -= memory.capacity;
            let free = &mut shared.free[class];
            if (free.len() + 1) * memory.capacity <= FREE_BYTES_MAX {
                free.push(memory);
                None
            } else {
                Some(memory)
            }
        };
        drop(surplus); // unmapped outside the lock
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        // The lists are consistent between any two statements above, so a poisoned lock is usable.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn class(capacity: usize) -> usize {
    (capacity / ALIGNMENT).ilog2() as usize
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
}
