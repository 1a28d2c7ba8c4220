//! Draining past damage: a journal file in which a group has gone bad is emptied all the same, so
//! that one damaged partition does not keep all others of its core from writing.
//!
//! What is damaged goes into the partition's segment as it is. There it is found by reads, by the
//! scrubber and by `corelog repair`, exactly as what went bad in the segment itself; nothing is
//! dropped, and nothing is passed over in silence.

use std::io;

use bytes::Bytes;

use super::{Extent, Log, Owner};
use crate::io::Io;

impl<I: Io> Owner<I> {
    /// An extent's bytes, and whether they are sound.
    pub(super) async fn read_to_move(
        &self,
        log: &Log,
        extent: &Extent,
    ) -> io::Result<(Bytes, bool)> {
        match self.read_extent(log, extent).await {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let id = log.borrow().id();
                self.tell_damage(&format!("{}: {error}", self.name_of(id)));
                Ok((self.journal().read(extent.location, usize::MAX).await?, false))
            }
            outcome => Ok((outcome?, true)),
        }
    }
}
