//! Log compaction, the pure part: what is dirty, which records of which batches survive.
//!
//!     log start      cleaned                     end
//!        |== clean ====|======== dirty ===========|== lag ==|= active, journal =|
//!        |             |    1. newest offset of each key    |
//!        |   2. group by group, records with a newer one go |
//!
//! As Apache Kafka's `LogCleaner` does it. Where Kafka knows which transactions were aborted, this
//! knows nothing of them: batches of transactions and control batches are kept as they are.
//!
//! Invariants
//!   C1  The newest record of each key stays, unless it is a tombstone whose horizon has passed.
//!   C2  A tombstone goes only when every older record of its key has gone before or goes with it.
//!   C3  Batches of transactions, control batches and batches that cannot be looked into stay as
//!       they are, and so does every tombstone behind one: what it deletes may be inside.
//!   C4  The last batch of each producer stays, if need be without records.
//!   C5  Offsets stay with their records; nothing beyond what was mapped is touched.
//!   C6  Memory is the map's, whatever the number of keys: what does not fit is for another pass.

mod filter;
mod map;
mod plan;
#[cfg(test)]
mod tests;

pub use filter::{Fate, Filter, note};
pub use map::OffsetMap;
pub use plan::{Dirty, Policy, groups, look};
