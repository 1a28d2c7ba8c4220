//! The metadata: which topics exist, how many partitions they have, their settings, and what has
//! been given out by number. Commands change it; an `Image` is one immutable version of it.
//!
//! Lives on: core 0, which decides and journals commands; every core reads the published image.
//!
//! Invariants
//!   M1  `apply` is total and deterministic: the same commands give the same image on any node.
//!   M2  A topic's number and id are never given twice, also not after deletion.
//!   M3  A name, an id and a number of a topic lead to the same topic or to none.
//!   M4  A partition count never shrinks.

mod command;
mod image;
mod placement;

pub use command::{Command, CommandError, ConfigChange, decode, encode};
pub use image::{Image, OFFSETS_TOPIC, Topic};
pub use placement::{Loads, owner};
