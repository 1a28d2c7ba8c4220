//! What a producer keeps of each partition, and the batches that no request has taken yet.
//!
//!     slots, a cache line each           stock: only what there is
//!     | place 0 | place 1 | ... |  ───►  | open | closed ─► closed | open | ...
//!
//! Pure. A producer to thousands of partitions walks the slots at random, so that most of them are
//! in no cache: a record's way to its acknowledgement touches its slot's line and no other memory
//! of its place.
//!
//! Invariants
//!   S1  A batch in the stock is the open one of its place, or in the chain of its closed ones,
//!       which is in the order they were closed in.

use slab::Slab;

use super::batch::Batch;

/// No batch.
const NONE: u32 = u32::MAX;

/// A partition's part of the producer.
#[repr(align(64))]
pub(super) struct Slot {
    pub next_sequence: u64,
    /// The sequence that is number 0 since its numbering began anew the last time.
    pub base: u64,
    /// The last request that took a batch of it.
    pub request: u64,
    /// `NOBODY` while it is adrift.
    pub lane: usize,
    pub in_flight: u32,
    open: u32,
    first_closed: u32,
    last_closed: u32,
    /// How often its numbering began anew.
    pub epoch: i16,
    /// The numbering begins anew with the next batch that is sent.
    pub is_new_epoch: bool,
    /// The broker has taken a batch of its epoch, or batches are not numbered.
    pub is_known: bool,
}

impl Slot {
    pub fn new(lane: usize, is_known: bool) -> Slot {
        Slot {
            next_sequence: 0,
            base: 0,
            request: 0,
            lane,
            in_flight: 0,
            open: NONE,
            first_closed: NONE,
            last_closed: NONE,
            epoch: 0,
            is_new_epoch: false,
            is_known,
        }
    }

    /// Whether a new batch has to wait for the answer to another (P6).
    pub fn must_wait(&self) -> bool {
        !self.is_known && self.in_flight > 0
    }

    pub fn has_closed(&self) -> bool {
        self.first_closed != NONE
    }
}

/// See the module's documentation.
pub(super) struct Places {
    slots: Vec<Slot>,
    stock: Slab<Batch>,
}

impl Places {
    pub fn new(slots: impl Iterator<Item = Slot>) -> Places {
        Places { slots: slots.collect(), stock: Slab::new() }
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn get(&self, place: usize) -> Option<&Slot> {
        self.slots.get(place)
    }

    pub fn get_mut(&mut self, place: usize) -> Option<&mut Slot> {
        self.slots.get_mut(place)
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.iter_mut()
    }

    /// Brings the slots into the cache, all at a time.
    pub fn touch(&self, places: impl Iterator<Item = usize>) {
        let opens = places.filter_map(|place| self.slots.get(place)).map(|slot| slot.open);
        std::hint::black_box(opens.fold(0, |all, open| all ^ open));
    }

    /// The open batch of a place.
    pub fn opened(&self, place: usize) -> Option<&Batch> {
        self.stock.get(index(self.slots.get(place)?.open))
    }

    pub fn opened_mut(&mut self, place: usize) -> Option<&mut Batch> {
        self.stock.get_mut(index(self.slots.get(place)?.open))
    }

    /// The batch of a place that was closed first.
    pub fn closed(&self, place: usize) -> Option<&Batch> {
        self.stock.get(index(self.slots.get(place)?.first_closed))
    }

    /// Opens a batch of a place that has none.
    pub fn open(&mut self, batch: Batch) {
        let Some(slot) = self.slots.get_mut(batch.place()) else { return };
        debug_assert_eq!(slot.open, NONE, "one is open at a time");
        slot.open = u32::try_from(self.stock.insert(batch)).unwrap_or(NONE);
    }

    /// Closes the open batch of a place. Returns whether it has no other closed one; `None` where
    /// nothing is open.
    pub fn close(&mut self, place: usize) -> Option<bool> {
        let slot = self.slots.get_mut(place)?;
        let at = std::mem::replace(&mut slot.open, NONE);
        self.stock.get_mut(index(at))?.next = NONE;
        let last = std::mem::replace(&mut slot.last_closed, at);
        match self.stock.get_mut(index(last)) {
            Some(last) => last.next = at,
            None => slot.first_closed = at,
        }
        Some(last == NONE)
    }

    pub fn take_open(&mut self, place: usize) -> Option<Batch> {
        let slot = self.slots.get_mut(place)?;
        self.stock.try_remove(index(std::mem::replace(&mut slot.open, NONE)))
    }

    /// Takes the batch of a place that was closed first.
    pub fn take_closed(&mut self, place: usize) -> Option<Batch> {
        let slot = self.slots.get_mut(place)?;
        let batch = self.stock.try_remove(index(slot.first_closed))?;
        slot.first_closed = batch.next;
        if batch.next == NONE {
            slot.last_closed = NONE;
        }
        Some(batch)
    }

    /// Takes everything.
    pub fn drain(&mut self) -> Vec<Batch> {
        let batches: Vec<Batch> = self.stock.drain().collect();
        for batch in &batches {
            if let Some(slot) = self.slots.get_mut(batch.place()) {
                (slot.open, slot.first_closed, slot.last_closed) = (NONE, NONE, NONE);
            }
        }
        batches
    }
}

/// Where in the stock; nowhere for `NONE`.
fn index(at: u32) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}
