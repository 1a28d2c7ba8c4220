//! Appending to a segment.
//!
//! Invariants
//!   A1  An append writes from the last recorded byte on, whatever stands there: an attempt that
//!       failed half-way is simply made again.
//!   A2  After an append the file ends with its last batch: other programs read it too.
//!   A3  The seals of a sparse segment are made of what was appended, and durable before anything
//!       names the segment.

use std::collections::BTreeSet;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{try_join, try_join_all};

use super::marks::Marks;
use super::{SegmentId, Store};
use crate::base::buffer::AlignedBuffer;
use crate::base::ids::PartitionId;
use crate::io::{BLOCK_BYTES, Durability, File, Io, OpenHow};
use crate::wire::records;

/// Bytes of one write, and of one where others are not to wait for it.
pub(super) const WRITE_BYTES: usize = 1 << 20;
const WRITE_BYTES_PACED: usize = 64 << 10;
/// Writes of a file that are under way together where there is no pace: one at a time takes less
/// than its share of a device that others write to as well.
const WRITES_AT_ONCE: usize = 4;
/// A file that grows by so much gets its room first (`File::reserve`).
const RESERVE_BYTES: u64 = 2 << 20;
/// Files that are flushed together; each has a thread of the kernel wait for it.
const SYNCS_AT_ONCE: usize = 32;

impl<I: Io> Store<I> {
    /// Writes whole batches behind the `recorded` bytes of a segment, which is made if none are.
    /// Returns its bytes after that; they count once `sync` has returned and they are recorded.
    pub async fn append(&self, id: SegmentId, recorded: u64, pieces: &[Bytes]) -> io::Result<u64> {
        let file = self.file_to_append(id, recorded).await?;
        match self.write_behind(&*file, recorded, pieces).await {
            Ok(end) => {
                self.mark(id, recorded, pieces);
                Ok(end)
            }
            Err(error) => {
                // Others need the space more, if that is what lacks.
                drop(file.truncate(recorded).await);
                let what = format!("cannot write {}: {error}", self.path(id).display());
                Err(io::Error::new(error.kind(), what))
            }
        }
    }

    /// Writes behind the `recorded` bytes of a file, and cuts it there.
    async fn write_behind(
        &self,
        file: &I::File,
        recorded: u64,
        pieces: &[Bytes],
    ) -> io::Result<u64> {
        let block = BLOCK_BYTES as u64;
        let mut at = recorded / block * block;
        let added: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        if self.pace.get().is_none() && added >= RESERVE_BYTES {
            file.reserve((recorded + added).next_multiple_of(block)).await?;
        }
        let mut full = Vec::new();
        let mut chunk = self.take()?;
        if at < recorded {
            let before = file.read_at(at, BLOCK_BYTES).await?;
            let kept = usize::try_from(recorded - at).unwrap_or(0);
            fill(&mut chunk, before.get(..kept).unwrap_or_default());
        }
        for piece in pieces {
            let mut left = &piece[..];
            while !left.is_empty() {
                left = fill(&mut chunk, left);
                if chunk.len() == chunk.capacity() {
                    full.push(std::mem::replace(&mut chunk, self.take()?));
                    if full.len() >= self.writes_at_once() {
                        at += self.write_chunks(file, at, &mut full).await?;
                    }
                }
            }
        }
        at += self.write_chunks(file, at, &mut full).await?;
        let end = at + chunk.len() as u64;
        if !chunk.is_empty() {
            let used = chunk.len();
            chunk.set_len(used.next_multiple_of(BLOCK_BYTES));
            chunk[used..].fill(0);
            file.write_at(at, chunk.freeze(), Durability::Written).await?;
        }
        file.truncate(end).await?;
        Ok(end)
    }

    /// Makes what was appended durable.
    pub async fn sync(&self, id: SegmentId) -> io::Result<()> {
        let is_unnamed = self.unnamed.borrow().contains(&id);
        let name = async {
            if is_unnamed {
                self.sync_names(id.partition).await?;
                self.unnamed.borrow_mut().remove(&id);
            }
            Ok(())
        };
        let bytes = async { self.file(id).await?.sync().await };
        try_join(bytes, name).await.map(drop)
    }

    /// Makes what was appended to each of `ids` durable. The file system makes one commit of those
    /// that it is asked for together, and appenders wait for one instead of for each.
    pub async fn sync_all(&self, ids: &BTreeSet<SegmentId>) -> io::Result<()> {
        let ids: Vec<SegmentId> = ids.iter().copied().collect();
        for some in ids.chunks(SYNCS_AT_ONCE) {
            try_join_all(some.iter().map(|id| self.sync(*id))).await?;
        }
        Ok(())
    }

    /// Keeps the marks of a segment that takes no more, if they are known: durably, after `sync`,
    /// those of a sparse one.
    pub async fn close(&self, id: SegmentId, bytes: u64) -> io::Result<()> {
        let sealed = self.growing.borrow_mut().remove(&id).map(Rc::new);
        let known = || self.cache.borrow().marks(id);
        let marks = sealed.or_else(known).filter(|marks| marks.covered() == bytes);
        let Some(marks) = marks else { return Ok(()) };
        self.write_marks(id, &marks.encode()).await?;
        self.cache.borrow_mut().hold_marks(id, marks);
        Ok(())
    }

    /// Writes a segment's marks.
    pub(super) async fn write_marks(&self, id: SegmentId, encoded: &[u8]) -> io::Result<()> {
        let refused = || io::Error::from(io::ErrorKind::OutOfMemory);
        let length = encoded.len().next_multiple_of(BLOCK_BYTES);
        let mut buffer = self.arena.take(length).ok_or_else(refused)?;
        buffer.set_len(0);
        fill(&mut buffer, encoded);
        buffer.set_len(length);
        buffer[encoded.len()..].fill(0);
        let path = self.marks_path(id);
        // Others than seals are made anew if power loss takes the name.
        let file = match self.io.open(&path, OpenHow::CreateUnsynced).await {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.io.open(&path, OpenHow::Existing).await?
            }
            outcome => outcome?,
        };
        let durability = if id.is_sparse() { Durability::Flushed } else { Durability::Written };
        file.write_at(0, buffer.freeze(), durability).await
    }

    async fn file_to_append(&self, id: SegmentId, recorded: u64) -> io::Result<Rc<I::File>> {
        if recorded == 0 {
            // One that is there is left over from an attempt, perhaps of a process that was killed.
            self.unnamed.borrow_mut().insert(id);
        }
        let file = match self.file(id).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound && recorded == 0 => {
                self.create(id).await?
            }
            outcome => outcome?,
        };
        if file.len() >= recorded {
            return Ok(file);
        }
        // A reader may have opened it while it was shorter.
        self.cache.borrow_mut().forget(id);
        let file = self.file(id).await?;
        if file.len() < recorded {
            let what = format!("{} ends before its {recorded} bytes", self.path(id).display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(file)
    }

    async fn create(&self, id: SegmentId) -> io::Result<Rc<I::File>> {
        let path = self.path(id);
        let file = match self.io.open(&path, OpenHow::CreateUnsynced).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make_partition_directory(id.partition).await?;
                self.io.open(&path, OpenHow::CreateUnsynced).await?
            }
            outcome => outcome?,
        };
        let file = Rc::new(file);
        self.cache.borrow_mut().hold(id, file.clone());
        Ok(file)
    }

    /// Has appends and packs take their time: so many bytes a second. `None` for as fast as may be.
    pub fn set_pace(&self, bytes_per_second: Option<f64>) {
        self.pace.set(bytes_per_second);
    }

    /// Writes a whole chunk; then others have their turn, as long as the pace asks for. Returns its
    /// bytes.
    pub(super) async fn write_chunk(
        &self,
        file: &I::File,
        at: u64,
        chunk: AlignedBuffer,
    ) -> io::Result<u64> {
        let began = self.io.now();
        let bytes = chunk.len() as u64;
        file.write_at(at, chunk.freeze(), Durability::Written).await?;
        match self.pace.get() {
            Some(pace) => {
                let due = began + Duration::from_secs_f64(bytes as f64 / pace.max(1.0));
                self.io.sleep_until(due).await;
            }
            None => self.io.cede().await,
        }
        Ok(bytes)
    }

    /// Writes whole chunks one behind the other, together unless there is a pace. Returns their
    /// bytes.
    pub(super) async fn write_chunks(
        &self,
        file: &I::File,
        at: u64,
        chunks: &mut Vec<AlignedBuffer>,
    ) -> io::Result<u64> {
        let mut end = at;
        let writes = chunks.drain(..).map(|chunk| {
            let at = end;
            end += chunk.len() as u64;
            self.write_chunk(file, at, chunk)
        });
        let writes: Vec<_> = writes.collect();
        if self.pace.get().is_some() {
            for write in writes {
                write.await?;
            }
        } else {
            try_join_all(writes).await?;
        }
        Ok(end - at)
    }

    /// Whole chunks that are written together.
    pub(super) fn writes_at_once(&self) -> usize {
        if self.pace.get().is_some() { 1 } else { WRITES_AT_ONCE }
    }

    pub(super) async fn make_partition_directory(&self, id: PartitionId) -> io::Result<()> {
        self.io.make_directory(&self.directory).await?;
        self.io.make_directory(&self.topic_directory(id.topic)).await?;
        self.io.make_directory(&self.partition_directory(id)).await
    }

    /// An empty chunk.
    pub(super) fn take(&self) -> io::Result<AlignedBuffer> {
        let refused = || io::Error::new(io::ErrorKind::OutOfMemory, "the core's memory is in use");
        let bytes = if self.pace.get().is_some() { WRITE_BYTES_PACED } else { WRITE_BYTES };
        let mut buffer = self.arena.take(bytes).ok_or_else(refused)?;
        buffer.set_len(0);
        Ok(buffer)
    }

    /// Goes on with the marks, where they are known up to here.
    fn mark(&self, id: SegmentId, recorded: u64, pieces: &[Bytes]) {
        if id.is_sparse() {
            return self.seal(id, recorded, pieces);
        }
        let mut cache = self.cache.borrow_mut();
        let known = if recorded == 0 { Some(Rc::default()) } else { cache.take_marks(id) };
        let Some(mut marks) = known.filter(|marks: &Rc<Marks>| marks.covered() == recorded) else {
            return;
        };
        let grown = Rc::make_mut(&mut marks);
        for piece in pieces {
            let before = grown.covered();
            records::batches(piece).for_each(|(header, batch)| grown.add(&header, batch.len()));
            if grown.covered() - before != piece.len() as u64 {
                return; // it holds damage, which only a look at the file passes
            }
        }
        cache.hold_marks(id, marks);
    }

    /// As `mark`, for a sparse segment: nothing else can make these, so they are kept until it is
    /// closed.
    fn seal(&self, id: SegmentId, recorded: u64, pieces: &[Bytes]) {
        let mut growing = self.growing.borrow_mut();
        if recorded == 0 {
            growing.insert(id, Marks::sealed());
        }
        if let Some(marks) = growing.get_mut(&id).filter(|marks| marks.covered() == recorded) {
            for (header, batch) in pieces.iter().flat_map(|piece| records::batches(piece)) {
                marks.add(&header, batch.len());
            }
        }
    }
}

/// Appends what fits; returns the rest.
pub(super) fn fill<'a>(buffer: &mut AlignedBuffer, bytes: &'a [u8]) -> &'a [u8] {
    let room = buffer.capacity().saturating_sub(buffer.len());
    let (now, rest) = bytes.split_at(room.min(bytes.len()));
    let copied = buffer.extend(now);
    debug_assert!(copied, "there is room");
    rest
}
