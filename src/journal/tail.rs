//! The recent groups in memory: what consumers at the end of the log read.
//!
//! Invariants
//!   T1  Groups are in the order of their addresses; only durable ones are here.
//!   T2  The memory of all of them together stays within the bound, except for one larger group.

use std::collections::VecDeque;

use bytes::Bytes;

use super::Location;

pub struct Tail {
    groups: VecDeque<(u64, Bytes)>,
    bytes: usize,
    bytes_max: usize,
}

impl Tail {
    pub fn new(bytes_max: usize) -> Tail {
        Tail { groups: VecDeque::new(), bytes: 0, bytes_max }
    }

    /// Adds the newest durable group.
    pub fn push(&mut self, address: u64, group: Bytes) {
        debug_assert!(self.groups.back().is_none_or(|(last, _)| *last < address), "T1");
        self.bytes += memory_of(&group);
        self.groups.push_back((address, group));
        while self.bytes > self.bytes_max && self.groups.len() > 1 {
            self.forget_oldest();
        }
    }

    /// Drops the oldest group; false if there is none. Its memory is free once no reader holds it.
    pub fn forget_oldest(&mut self) -> bool {
        let oldest = self.groups.pop_front();
        self.bytes -= oldest.as_ref().map_or(0, |(_, group)| memory_of(group));
        oldest.is_some()
    }

    /// The bytes at `location`, if one group here holds them all.
    pub fn get(&self, location: Location) -> Option<Bytes> {
        let after = self.groups.partition_point(|(address, _)| *address <= location.address);
        let (address, group) = self.groups.get(after.checked_sub(1)?)?;
        let start = usize::try_from(location.address - address).ok()?;
        let end = start.checked_add(location.length as usize)?;
        (end <= group.len()).then(|| group.slice(start..end))
    }
}

/// What a group costs: its buffer came from the arena in a power of two.
fn memory_of(group: &Bytes) -> usize {
    group.len().next_power_of_two()
}
