//! The wire: bytes to values and back, by tables, bounded and borrowed.
//!
//! `api` has a table per API; `produce` and `fetch` read and write the two hot ones in place;
//! `records` reads and builds record batches.

pub mod api;
pub mod error;
pub mod fetch;
pub mod header;
pub(crate) mod message;
#[cfg(test)]
pub(crate) mod oracle;
pub mod pieces;
pub mod primitive;
pub mod produce;
pub mod records;
mod respond;
