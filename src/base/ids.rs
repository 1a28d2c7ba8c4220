//! Ids as types of their own, so that a core is never taken for a partition.

use std::fmt;

/// A core's shard of the node: its ring, its journal, its partitions. Dense from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreId(pub u16);

impl CoreId {
    /// The core that keeps the metadata and answers for the whole node.
    pub const FIRST: CoreId = CoreId(0);

    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for CoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "core {}", self.0)
    }
}

/// A topic's number within its cluster: given at creation, counted up, never given again.
/// Journal entries name topics by it, so a recreated topic never sees its predecessor's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicNumber(pub u32);

/// One partition of one topic, as the journal and the owner core name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId {
    pub topic: TopicNumber,
    pub index: u32,
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "topic number {} partition {}", self.topic.0, self.index)
    }
}

/// A record's place in its partition (Kafka's `int64` offset, never negative here).
pub type Offset = i64;

/// A leader's term of office in a partition (Kafka's `int32` leader epoch).
pub type Epoch = i32;
