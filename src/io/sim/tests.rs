//! The simulator keeps its own promises.

mod disk;
mod network;
mod whole;
mod world;
