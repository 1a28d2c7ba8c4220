//! Taking over another store's segments that have files of their own: by a second name, or by a
//! copy where the file system gives none.
//!
//! What is copied is not verified: damage stays the damage that it was, for reads and the scrubber
//! to tell, and a name for it stays in its place.
//!
//! Invariants
//!   T1  A file is never written to through a name that another store may still go by: what is
//!       recorded of it stays, whichever store goes on.

use std::io;

use bytes::Bytes;

use super::read::read_range;
use super::write::WRITE_BYTES;
use super::{Segment, SegmentId, Store, tolerate_absent};
use crate::base::ids::PartitionId;
use crate::io::{File, Io};

impl<I: Io> Store<I> {
    /// Takes over a segment of another store; returns the bytes that had to be copied for it. A
    /// file that is not there stays missing: whoever reads it is told.
    pub async fn adopt(
        &self,
        from: &Store<I>,
        partition: PartitionId,
        segment: &Segment,
    ) -> io::Result<u64> {
        let id = segment.id(partition);
        self.make_partition_directory(partition).await?;
        match self.io.link(&from.path(id), &self.path(id)).await {
            Ok(()) => {
                // They can be made anew.
                let marks = self.io.link(&from.marks_path(id), &self.marks_path(id)).await;
                tolerate_absent(marks)?;
                Ok(0)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                tracing::error!("{} is missing: its records are lost", from.path(id).display());
                Ok(0)
            }
            Err(error) if is_refusal(&error) => self.copy(from, id, segment).await,
            Err(error) => Err(error),
        }
    }

    /// Copies what is recorded of a segment, durably.
    async fn copy(&self, from: &Store<I>, id: SegmentId, segment: &Segment) -> io::Result<u64> {
        let file = from.file(id).await?;
        let mut at = 0;
        let end = segment.bytes.min(file.len());
        while at < end {
            let piece: Bytes = read_range(&*file, at, WRITE_BYTES, end).await?;
            at = self.append(id, at, &[piece]).await?;
        }
        if id.is_sparse() {
            self.copy_seals(from, id).await?;
        }
        self.sync(id).await?;
        Ok(at)
    }

    /// Copies the marks of a sparse segment as they are: what was copied of the file may be
    /// damaged, and vouches for nothing.
    async fn copy_seals(&self, from: &Store<I>, id: SegmentId) -> io::Result<()> {
        self.growing.borrow_mut().remove(&id);
        match from.marks_file(id).await {
            Ok(marks) => self.write_marks(id, &marks).await,
            Err(error) => tolerate_absent(Err(error)),
        }
    }
}

/// Whether it is the file system that gives no second name.
fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{CrossesDevices, PermissionDenied, TooManyLinks, Unsupported};
    matches!(error.kind(), CrossesDevices | PermissionDenied | TooManyLinks | Unsupported)
}
