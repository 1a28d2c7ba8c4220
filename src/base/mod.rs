//! Values that every layer shares: ids, limits, time, aligned buffers, checksums.

pub mod buffer;
pub mod few;
pub mod ids;
pub mod limits;
pub mod time;
