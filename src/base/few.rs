//! A list that mostly holds one element, which then needs no memory of its own.
//!
//! Requests of clients that write or read one partition are the most frequent ones; what is kept
//! for each of their topics, partitions and pieces is kept in these.

/// See the module's documentation.
pub type Few<T> = smallvec::SmallVec<[T; 1]>;
