//! Classic consumer groups: who is a member, which generation it is, what is assigned, and which
//! offsets are committed (KIP-62, 134, 211, 345, 394, 429, 559, 800).
//!
//!     Empty --join--> PreparingRebalance --all joined--> CompletingRebalance --leader synced--> Stable
//!       ^                 |    ^  ^                              |                               |
//!       +---none joined---+    |  +------ member lost -----------+                               |
//!                              +------------- join, leave, silence ------------------------------+
//!
//! Lives on: the core that owns the group's partition of `__consumer_offsets`. `Groups` is the way
//! in; a group is a `Group`. The broker does not look into what the members' protocol says, but for
//! the topics of a subscription.
//!
//! Invariants
//!   G1  Every ticket is answered exactly once.
//!   G2  A generation of a group never goes back while the group exists.
//!   G3  A leader is a member; a completing or stable group has a leader and a protocol.
//!   G4  An instance id belongs to at most one member, and that member has it.
//!   G5  An Empty or Dead group has no members; nobody waits in it.
//!   G6  A member waits for a join only in PreparingRebalance, or in Stable for the record of its
//!       static rejoin; it waits for a sync only in CompletingRebalance.
//!   G7  An answer that promises durability follows its `Input::Written`: the assignment of a
//!       generation, a committed offset, a deletion, a replaced static member.
//!   G8  Each open write belongs to exactly one group that knows what it is for.
//!   G9  Reads show what is durable, never what is on its way.

mod coordinator;
mod describe;
mod expire;
mod join;
mod leave;
mod member;
mod message;
mod offsets;
mod rebalance;
mod records;
mod replay;
mod state;
mod statics;
mod subscription;
mod sync;
#[cfg(test)]
mod tests;
mod write;

pub use coordinator::{Groups, offsets_partition};
pub use describe::{Described, DescribedMember, Listed};
pub use message::{
    Answer, Commit, CommitPartition, Effect, Heartbeat, Input, Join, JoinAnswer, JoinedMember,
    Leaver, Now, PartitionCodes, Request, Settings, Sync, SyncAnswer, Ticket, Timer, WriteId,
};
pub use offsets::Committed;
pub use records::Record;
pub use replay::ReplayError;
