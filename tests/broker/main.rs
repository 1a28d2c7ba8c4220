//! The real binary, seen from outside: real clients, hostile peers, and sudden death.
//!
//! `CORELOG_BIN=PATH` tests another binary; `CORELOG_TEST_BOOTSTRAP=HOST:PORT` lets the real
//! clients talk to a broker that already runs (Apache Kafka, to know that the tests are right).

mod answers;
mod asks;
mod cage;
mod clients;
mod compaction;
mod connections;
mod coordinators;
mod cores;
mod crowd;
mod damage;
mod damaged_offsets;
mod damaged_packs;
mod descriptors;
mod disk;
mod epochs;
mod flips;
mod frames;
mod full;
mod groups;
mod hostile;
mod jbod;
mod kill;
mod librdkafka;
mod lookups;
mod lost_checkpoints;
mod million;
mod per_core;
mod polls;
mod producers;
mod program;
mod repeats;
mod segments;
mod shards;
mod start;
mod stop;
mod stored;
mod tools;
mod unreadable;
mod world;
