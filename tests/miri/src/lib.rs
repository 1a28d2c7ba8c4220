//! The program's own sources, compiled alone for Miri.

#[path = "../../../src/base/buffer.rs"]
pub mod buffer;
#[path = "../../../src/io/mailbox.rs"]
pub mod mailbox;
