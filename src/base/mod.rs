//! Values that every layer shares: ids, limits, time, aligned buffers, lines.

mod buddies;
pub mod buffer;
pub mod few;
pub mod ids;
pub mod limits;
pub mod line;
pub mod time;
