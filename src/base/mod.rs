//! Values that every layer shares: ids, limits, time, aligned buffers, checksums.

pub mod ids;
pub mod time;
