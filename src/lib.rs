//! Corelog: a streaming broker that speaks the Apache Kafka protocol, one journal per core.
//!
//! The modules stand in layer order; a module imports from the layers above it in this list only
//! (`tests/tidy.rs` checks it).

// The drawings in the modules' headers are indented blocks, as text is drawn everywhere.
#![allow(rustdoc::invalid_rust_codeblocks)]

// Layer 0, base: values everybody shares.
pub mod base;
pub mod config;

// Layer 1: bytes to values and back, and the world outside a core.
pub mod io;
pub mod wire;

// Layer 2, minds: pure state machines.
pub mod group;
pub mod metadata;
pub mod producer;

// Layer 2, hands: they await I/O.
pub mod journal;
pub mod segment;

// Layer 2, a mind on top of segments.
pub mod compaction;

// Layer 3, the owner of partitions, and the way to it.
pub mod dispatch;
pub mod partition;

// Layer 4, the edge: connections, and a handler per API.
pub mod connection;
pub mod handler;

// Layer 5, the whole: a node of many cores.
pub mod node;

// Layer 6, doors: how a person comes in.
pub mod client;
pub mod load;

pub mod cli;

// Layer 6 of the tests: a whole node in a simulated world.
#[cfg(test)]
mod sim;
