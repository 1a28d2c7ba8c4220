//! Open files and marks of the segments used lately.
//!
//! Invariants
//!   C1  At most `FILES_MAX` files are open and `MARKS_MAX` marks held, apart from those of the
//!       segment used last; the ones used longest ago go first. At most `HINTS_MAX` places are
//!       remembered.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::SegmentId;
use super::marks::Marks;
use crate::base::ids::{Offset, PartitionId, TopicNumber};

pub const FILES_MAX: usize = 128;
/// 24 bytes each.
const MARKS_MAX: usize = 1 << 18;
const HINTS_MAX: usize = 4096;

pub struct Cache<F> {
    /// By `file_key`.
    held: HashMap<SegmentId, Held<F>>,
    /// An offset in a segment and where it stands: a scan goes on there.
    hints: BTreeMap<(SegmentId, Offset), u64>,
    uses: u64,
    marks: usize,
}

struct Held<F> {
    file: Rc<F>,
    marks: Option<Rc<Marks>>,
    used: u64,
}

impl<F> Default for Cache<F> {
    fn default() -> Self {
        Cache { held: HashMap::new(), hints: BTreeMap::new(), uses: 0, marks: 0 }
    }
}

impl<F> Cache<F> {
    pub fn file(&mut self, id: SegmentId) -> Option<Rc<F>> {
        self.uses += 1;
        let held = self.held.get_mut(&id.file_key())?;
        held.used = self.uses;
        Some(held.file.clone())
    }

    pub fn marks(&self, id: SegmentId) -> Option<Rc<Marks>> {
        self.held.get(&id)?.marks.clone()
    }

    /// As `marks`, and leaves none behind, so that they can grow in place.
    pub fn take_marks(&mut self, id: SegmentId) -> Option<Rc<Marks>> {
        let marks = self.held.get_mut(&id)?.marks.take()?;
        self.marks -= marks.len();
        Some(marks)
    }

    pub fn hold(&mut self, id: SegmentId, file: Rc<F>) {
        self.uses += 1;
        let id = id.file_key();
        self.forget(id);
        self.held.insert(id, Held { file, marks: None, used: self.uses });
        self.shrink(id);
    }

    /// Keeps the marks of a segment whose file is open.
    pub fn hold_marks(&mut self, id: SegmentId, marks: Rc<Marks>) {
        if let Some(held) = self.held.get_mut(&id) {
            self.marks += marks.len();
            self.marks -= held.marks.replace(marks).map_or(0, |old| old.len());
        }
        self.shrink(id);
    }

    /// Remembers that the batch at `offset`, or the first behind it, begins at `position`.
    pub fn hint(&mut self, id: SegmentId, offset: Offset, position: u64) {
        if self.hints.len() >= HINTS_MAX {
            self.hints.clear();
        }
        self.hints.insert((id, offset), position);
    }

    pub fn hinted(&self, id: SegmentId, offset: Offset) -> Option<u64> {
        self.hints.get(&(id, offset)).copied()
    }

    pub fn forget(&mut self, id: SegmentId) {
        let hints = self.hints.range((id, Offset::MIN)..=(id, Offset::MAX));
        for hint in hints.map(|(hint, _)| *hint).collect::<Vec<_>>() {
            self.hints.remove(&hint);
        }
        if let Some(held) = self.held.remove(&id) {
            self.marks -= held.marks.map_or(0, |marks| marks.len());
        }
    }

    pub fn forget_topic(&mut self, topic: TopicNumber) {
        self.forget_those(|id| id.partition.topic == topic);
    }

    pub fn forget_partition(&mut self, partition: PartitionId) {
        self.forget_those(|id| id.partition == partition);
    }

    fn forget_those(&mut self, is_one: impl Fn(&SegmentId) -> bool) {
        let ids = self.held.keys().filter(|id| is_one(id));
        for id in ids.copied().collect::<Vec<_>>() {
            self.forget(id);
        }
        self.hints.retain(|(id, _), _| !is_one(id));
    }

    fn shrink(&mut self, keep: SegmentId) {
        while self.held.len() > FILES_MAX || self.marks > MARKS_MAX {
            let others = self.held.iter().filter(|(id, _)| **id != keep);
            let Some(oldest) = others.min_by_key(|(_, held)| held.used).map(|(id, _)| *id) else {
                return;
            };
            self.forget(oldest);
        }
    }
}
