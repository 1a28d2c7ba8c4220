//! The recent groups in memory: what consumers at the end of the log read.
//!
//! Invariants
//!   T1  Groups are in the order of their addresses; only durable ones are here.
//!   T2  The memory of all of them together stays within the bound, except for one larger group.

use std::collections::VecDeque;

use bytes::Bytes;

use super::Location;

pub struct Tail {
    groups: VecDeque<Group>,
    bytes: usize,
    bytes_max: usize,
}

struct Group {
    address: u64,
    bytes: Bytes,
    /// Bytes of the arena that it holds.
    memory: usize,
}

impl Tail {
    pub fn new(bytes_max: usize) -> Tail {
        Tail { groups: VecDeque::new(), bytes: 0, bytes_max }
    }

    /// Adds the newest durable group, which holds `memory` bytes of the arena.
    pub fn push(&mut self, address: u64, bytes: Bytes, memory: usize) {
        debug_assert!(self.groups.back().is_none_or(|last| last.address < address), "T1");
        self.bytes += memory;
        self.groups.push_back(Group { address, bytes, memory });
        while self.bytes > self.bytes_max && self.groups.len() > 1 {
            self.forget_oldest();
        }
    }

    /// Where the newer three eighths of the memory begin, once more than half of it is in use.
    pub fn newer_part(&self) -> Option<u64> {
        let is_half_full = self.bytes * 2 > self.bytes_max;
        let first = self.groups.len() * 5 / 8;
        self.groups.get(first).filter(|_| is_half_full).map(|group| group.address)
    }

    /// Bytes of the arena that the group which holds `address` and those behind it take.
    pub fn memory_from(&self, address: u64) -> usize {
        let behind = self.groups.partition_point(|group| group.address <= address);
        let groups = self.groups.range(behind.saturating_sub(1)..);
        groups.map(|group| group.memory).sum()
    }

    /// Drops the oldest group; false if there is none. Its memory is free once no reader holds it.
    pub fn forget_oldest(&mut self) -> bool {
        let oldest = self.groups.pop_front();
        self.bytes -= oldest.as_ref().map_or(0, |group| group.memory);
        oldest.is_some()
    }

    /// Drops the oldest groups until those dropped held `bytes`; false if there was none.
    pub fn shorten(&mut self, bytes: usize) -> bool {
        let (left, count) = (self.bytes.saturating_sub(bytes), self.groups.len());
        while self.bytes > left && self.forget_oldest() {}
        self.groups.len() < count
    }

    /// The bytes at `location`, if one group here holds them all.
    pub fn get(&self, location: Location) -> Option<Bytes> {
        let after = self.groups.partition_point(|group| group.address <= location.address);
        let Group { address, bytes, .. } = self.groups.get(after.checked_sub(1)?)?;
        let start = usize::try_from(location.address - address).ok()?;
        let end = start.checked_add(location.length as usize)?;
        (end <= bytes.len()).then(|| bytes.slice(start..end))
    }
}
