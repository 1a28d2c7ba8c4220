//! What must hold of every decoder, whatever bytes it is given.
//!
//! A target is a function of bytes that panics when a property fails. Two drivers call it: the
//! fuzzer, which looks for such bytes (`ci/fuzz`), and `tests/corpus.rs`, which replays the ones
//! that were found interesting, each with thousands of seeded changes, and counts the memory.

mod batches;
mod config;
mod frames;
mod groups;
mod journal;
mod messages;
mod metadata;

/// One decoder's property.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Memory in use at a time for no input at all ...
    pub bytes_base: usize,
    /// ... and for each byte of input (promise P6).
    pub bytes_per_byte: usize,
    /// Seeded changes of the corpus that a replay tries.
    pub changes: usize,
}

const fn target(
    name: &'static str,
    run: fn(&[u8]),
    (bytes_base, bytes_per_byte): (usize, usize),
    changes: usize,
) -> Target {
    Target { name, run, bytes_base, bytes_per_byte, changes }
}

pub const TARGETS: &[Target] = &[
    target("requests", messages::request, (16 << 10, 64), 200_000),
    target("responses", messages::response, (16 << 10, 64), 200_000),
    target("batches", batches::batches, (16 << 10, 64), 100_000),
    // lz4 and zstd keep blocks and windows whose sizes their formats bound.
    target("records", batches::records, (32 << 20, 64), 20_000),
    target("journal_file", journal::file, (64 << 10, 64), 20_000),
    target("journal_recovery", journal::recovery, (8 << 20, 4096), 3_000),
    target("metadata", metadata::commands, (64 << 10, 64), 50_000),
    target("groups", groups::replay, (64 << 10, 256), 20_000),
    target("config", config::text, (256 << 10, 256), 20_000),
    target("frames", frames::split, (1 << 20, 64), 5_000),
];
