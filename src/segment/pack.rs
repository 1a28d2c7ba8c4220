//! Packs: files that hold small segments of many partitions, written once, from front to back.
//!
//!     | batches of a | batches of b | ... | 0 | directory | 0 | trailer |
//!
//! A partition of a few KiB costs neither a file nor a flush of its own. The directory says what
//! is where, for people and programs that have only the file; the node itself goes by its
//! checkpoints. It is little-endian, begins at a block, and its CRC-32 covers what follows it:
//!
//!     directory  | magic u32 | version u16 | 0 u16 | crc u32 | count u32 | piece ...
//!     piece      | topic u32 | index u32 | base i64 | next i64 | position u64 | bytes u64 |
//!                | greatest timestamp i64 |
//!     trailer    | position of the directory u64 | magic u32 | 0 u32 |   the file's last bytes
//!
//! Invariants
//!   P1  A pack that is finished is never written to again. It is removed as a whole, when nothing
//!       names it any more.
//!   P2  A number is used once in the life of a node's process, and never while a file has it.
//!   P3  Who writes a pack keeps it from being removed until its pieces are recorded or given up.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bytes::Bytes;

use super::read::read_range;
use super::write::fill;
use super::{Home, Segment, Store, pack_key, tolerate_absent};
use crate::base::buffer::AlignedBuffer;
use crate::base::ids::{Offset, PartitionId, TopicNumber};
use crate::io::{BLOCK_BYTES, File, Io, OpenHow};

const FOLDER: &str = "packs";
const MAGIC: u32 = 0x434c_5031; // "CLP1"
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 16;
const PIECE_BYTES: usize = 48;
const TRAILER_BYTES: usize = 16;
/// Bytes that are read at a time to be written elsewhere.
const READ_BYTES: usize = 1 << 20;

/// The file of a pack in a store's directory.
pub(super) fn path(directory: &Path, number: u32) -> PathBuf {
    directory.join(FOLDER).join(format!("{number:010}.pack"))
}

/// A partition's share of a pack: whole batches back to back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub partition: PartitionId,
    pub base: Offset,
    /// One past the last record's offset.
    pub next: Offset,
    pub position: u64,
    pub bytes: u64,
    /// The greatest timestamp of its batches, in Unix milliseconds.
    pub max_timestamp: i64,
}

/// A finished pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pack {
    pub number: u32,
    /// In the order in which they were put.
    pub pieces: Vec<Piece>,
}

impl Pack {
    /// The segment that a piece is.
    pub fn segment(&self, piece: &Piece, begun: i64) -> Segment {
        piece.segment(self.number, begun)
    }
}

impl Piece {
    fn segment(&self, number: u32, begun: i64) -> Segment {
        let Piece { base, next, position, bytes, max_timestamp, .. } = *self;
        let home = Home::Pack { number, position };
        Segment { base, next, bytes, max_timestamp, begun, home }
    }
}

/// What a store knows of a pack.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// Bytes of the file, once somebody asked.
    bytes: Option<u64>,
    /// Its pieces are not recorded yet (P3).
    is_new: bool,
}

/// A pack that is being written.
pub struct PackWriter<'a, I: Io> {
    store: &'a Store<I>,
    file: Rc<I::File>,
    number: u32,
    /// Where `chunk` will stand.
    at: u64,
    chunk: AlignedBuffer,
    pieces: Vec<Piece>,
}

impl<I: Io> Store<I> {
    /// The packs that are there. Blocking; for start-up.
    pub(super) fn find_packs(&self) {
        let mut packs = self.packs.borrow_mut();
        for name in self.names_in(&self.directory.join(FOLDER)) {
            if let Some(number) = name.strip_suffix(".pack").and_then(|stem| stem.parse().ok()) {
                packs.insert(number, Known { bytes: None, is_new: false });
            }
        }
        self.last_pack.set(packs.keys().next_back().copied().unwrap_or(0));
    }

    /// The file of a pack.
    pub fn pack_path(&self, number: u32) -> PathBuf {
        path(&self.directory, number)
    }

    /// The packs whose pieces are recorded or given up, in ascending order.
    pub fn packs(&self) -> Vec<u32> {
        let packs = self.packs.borrow();
        packs.iter().filter(|(_, known)| !known.is_new).map(|(number, _)| *number).collect()
    }

    /// Bytes of a pack's file.
    pub async fn pack_bytes(&self, number: u32) -> io::Result<u64> {
        let known = self.packs.borrow().get(&number).and_then(|known| known.bytes);
        if let Some(bytes) = known {
            return Ok(bytes);
        }
        let bytes = self.file(pack_key(number)).await?.len();
        if let Some(known) = self.packs.borrow_mut().get_mut(&number) {
            known.bytes = Some(bytes);
        }
        Ok(bytes)
    }

    /// Begins a pack. It stays until `pack_done` is called for it.
    pub async fn begin_pack(&self) -> io::Result<PackWriter<'_, I>> {
        let number = self.last_pack.get().checked_add(1);
        let number = number.ok_or_else(|| io::Error::other("no number is left for a pack"))?;
        let chunk = self.take()?;
        self.last_pack.set(number);
        let path = self.pack_path(number);
        let file = match self.io.open(&path, OpenHow::CreateNew).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.io.make_directory(&self.directory).await?;
                self.io.make_directory(&self.directory.join(FOLDER)).await?;
                self.io.open(&path, OpenHow::CreateNew).await?
            }
            outcome => outcome?,
        };
        self.packs.borrow_mut().insert(number, Known { bytes: None, is_new: true });
        let file = Rc::new(file);
        self.cache.borrow_mut().hold(pack_key(number), file.clone());
        Ok(PackWriter { store: self, file, number, at: 0, chunk, pieces: Vec::new() })
    }

    /// A pack's pieces are recorded or given up: from here on it is removed once nothing names it.
    pub fn pack_done(&self, number: u32) {
        if let Some(known) = self.packs.borrow_mut().get_mut(&number) {
            known.is_new = false;
        }
    }

    /// What a pack's directory says of it, on the simulator's disk (see `read_pack`).
    #[cfg(test)]
    pub async fn pieces(&self, number: u32) -> io::Result<Vec<Piece>> {
        let damaged = |what: &str| {
            let what = format!("{what} in {}", self.pack_path(number).display());
            io::Error::new(io::ErrorKind::InvalidData, what)
        };
        let file = self.file(pack_key(number)).await?;
        let trailer_at = file.len().saturating_sub(TRAILER_BYTES as u64);
        let trailer = read_range(&*file, trailer_at, TRAILER_BYTES, file.len()).await?;
        let at = directory_of(&trailer).filter(|at| *at < trailer_at);
        let at = at.ok_or_else(|| damaged("no directory is named at the end"))?;
        let length = usize::try_from(trailer_at - at).map_err(io::Error::other)?;
        let directory = read_range(&*file, at, length, trailer_at).await?;
        decode(&directory).ok_or_else(|| damaged(&format!("the directory at byte {at} is damaged")))
    }

    /// Removes the folders of a store that held nothing but packs, which are gone.
    pub async fn remove_folders(&self) -> io::Result<()> {
        tolerate_absent(self.io.remove_directory(&self.directory.join(FOLDER)).await)?;
        tolerate_absent(self.io.remove_directory(&self.directory).await)
    }

    /// Removes a pack.
    pub async fn remove_pack(&self, number: u32) -> io::Result<()> {
        self.cache.borrow_mut().forget(pack_key(number));
        self.spans.borrow_mut().forget(|one| one.is_in_pack(number));
        tolerate_absent(self.io.remove(&self.pack_path(number)).await)?;
        self.packs.borrow_mut().remove(&number);
        Ok(())
    }
}

impl<I: Io> PackWriter<'_, I> {
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.at + self.chunk.len() as u64
    }

    /// The segment that the piece begun last is.
    pub fn segment(&self, begun: i64) -> Option<Segment> {
        self.pieces.last().map(|piece| piece.segment(self.number, begun))
    }

    /// Begins a partition's next piece.
    pub fn begin(&mut self, partition: PartitionId, base: Offset) {
        let position = self.bytes();
        let piece =
            Piece { partition, base, next: base, position, bytes: 0, max_timestamp: i64::MIN };
        self.pieces.push(piece);
    }

    /// Adds to the piece begun last; `next` is one past the last record's offset.
    pub async fn put(&mut self, bytes: &[u8], next: Offset, max_timestamp: i64) -> io::Result<()> {
        if let Some(piece) = self.pieces.last_mut() {
            piece.bytes += bytes.len() as u64;
            piece.next = next;
            piece.max_timestamp = piece.max_timestamp.max(max_timestamp);
        }
        self.write(bytes).await
    }

    async fn write(&mut self, mut left: &[u8]) -> io::Result<()> {
        while !left.is_empty() {
            left = fill(&mut self.chunk, left);
            if self.chunk.len() == self.chunk.capacity() {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Writes the chunk, padded to a block.
    async fn flush(&mut self) -> io::Result<()> {
        let used = self.chunk.len();
        if used == 0 {
            return Ok(());
        }
        let mut full = std::mem::replace(&mut self.chunk, self.store.take()?);
        full.set_len(used.next_multiple_of(BLOCK_BYTES));
        full[used..].fill(0);
        self.at += self.store.write_chunk(&*self.file, self.at, full).await?;
        Ok(())
    }

    /// Ends a pack that is only a step on the way to another one.
    pub async fn finish_run(mut self) -> io::Result<Pack> {
        self.flush().await?;
        Ok(Pack { number: self.number, pieces: self.pieces })
    }

    /// Writes the directory and makes the pack durable.
    pub async fn finish(mut self) -> io::Result<Pack> {
        self.flush().await?;
        let directory_at = self.at;
        let mut directory = encode(&self.pieces);
        let end = (directory.len() + TRAILER_BYTES).next_multiple_of(BLOCK_BYTES);
        directory.resize(end - TRAILER_BYTES, 0);
        directory.extend_from_slice(&directory_at.to_le_bytes());
        directory.extend_from_slice(&MAGIC.to_le_bytes());
        directory.extend_from_slice(&[0; 4]);
        self.write(&directory).await?;
        self.flush().await?;
        self.file.sync().await?;
        Ok(Pack { number: self.number, pieces: self.pieces })
    }

    /// Adds to the piece begun last the bytes of a segment that is in another pack.
    pub async fn copy(&mut self, from: &mut Unpacking, segment: &Segment) -> io::Result<()> {
        self.copy_from(self.store, from, segment).await
    }

    /// As `copy`, out of another store.
    pub async fn copy_from(
        &mut self,
        store: &Store<I>,
        from: &mut Unpacking,
        segment: &Segment,
    ) -> io::Result<()> {
        let Some(number) = segment.pack() else {
            return Err(io::Error::other("a segment with a file of its own goes into no pack"));
        };
        let file = store.file(pack_key(number)).await?;
        let (mut at, end) = (segment.start(), segment.start() + segment.bytes);
        while at < end {
            let piece = from.bytes(number, &*file, at, end).await?;
            at += piece.len() as u64;
            self.put(&piece, segment.next, segment.max_timestamp).await?;
        }
        Ok(())
    }
}

/// Reads several packs side by side, each from front to back.
#[derive(Default)]
pub struct Unpacking {
    /// Of each pack, the stretch that was read last and where it begins.
    windows: HashMap<u32, (u64, Bytes)>,
}

impl Unpacking {
    /// Bytes of a pack from `at` on, not beyond `end`.
    async fn bytes<F: File>(
        &mut self,
        number: u32,
        file: &F,
        at: u64,
        end: u64,
    ) -> io::Result<Bytes> {
        let cut = |(start, window): &(u64, Bytes)| {
            let skip = usize::try_from(at.checked_sub(*start)?).ok()?;
            let most = usize::try_from(end - at).unwrap_or(usize::MAX);
            let left = window.len().checked_sub(skip).filter(|left| *left > 0)?;
            Some(window.slice(skip..skip + left.min(most)))
        };
        if let Some(bytes) = self.windows.get(&number).and_then(cut) {
            return Ok(bytes);
        }
        // The old stretch goes before memory is asked for.
        self.windows.remove(&number);
        let window = read_range(file, at, READ_BYTES, file.len()).await?;
        let held = (at, window);
        let bytes = cut(&held).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.windows.insert(number, held);
        Ok(bytes)
    }
}

fn encode(pieces: &[Piece]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + pieces.len() * PIECE_BYTES + BLOCK_BYTES);
    bytes.extend_from_slice(&MAGIC.to_le_bytes());
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 6]);
    bytes.extend_from_slice(&u32::try_from(pieces.len()).unwrap_or(0).to_le_bytes());
    for piece in pieces {
        bytes.extend_from_slice(&piece.partition.topic.0.to_le_bytes());
        bytes.extend_from_slice(&piece.partition.index.to_le_bytes());
        bytes.extend_from_slice(&piece.base.to_le_bytes());
        bytes.extend_from_slice(&piece.next.to_le_bytes());
        bytes.extend_from_slice(&piece.position.to_le_bytes());
        bytes.extend_from_slice(&piece.bytes.to_le_bytes());
        bytes.extend_from_slice(&piece.max_timestamp.to_le_bytes());
    }
    let crc = crc32fast::hash(bytes.get(12..).unwrap_or_default());
    if let Some(place) = bytes.get_mut(8..12) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
    bytes
}

/// The pack in a file that no node uses, by its directory: plain blocking reads.
pub fn read_pack(path: &Path) -> io::Result<Pack> {
    use std::os::unix::fs::FileExt;
    let damaged = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let file = std::fs::File::open(path)?;
    let trailer_at = file.metadata()?.len().saturating_sub(TRAILER_BYTES as u64);
    let mut trailer = [0; TRAILER_BYTES];
    file.read_exact_at(&mut trailer, trailer_at)?;
    let at = directory_of(&trailer).filter(|at| *at < trailer_at);
    let at = at.ok_or_else(|| damaged("it names no directory at its end"))?;
    let mut directory = vec![0; usize::try_from(trailer_at - at).map_err(io::Error::other)?];
    file.read_exact_at(&mut directory, at)?;
    let pieces = decode(&directory).ok_or_else(|| damaged("its directory is damaged"))?;
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    let number = stem.and_then(|stem| stem.parse().ok()).unwrap_or(0);
    Ok(Pack { number, pieces })
}

/// The position of the directory that a trailer names.
fn directory_of(trailer: &[u8]) -> Option<u64> {
    let magic = u32::from_le_bytes(*trailer.get(8..)?.first_chunk()?);
    let at = u64::from_le_bytes(*trailer.first_chunk()?);
    (magic == MAGIC).then_some(at)
}

/// The pieces of a pack's directory; `None` if these bytes are none.
fn decode(bytes: &[u8]) -> Option<Vec<Piece>> {
    let number = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let long = |at: usize| Some(i64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let version = u16::from_le_bytes(*bytes.get(4..)?.first_chunk()?);
    if number(0)? != MAGIC || version != VERSION {
        return None;
    }
    let count = usize::try_from(number(12)?).ok()?;
    let end = count.checked_mul(PIECE_BYTES)?.checked_add(HEADER_BYTES)?;
    if crc32fast::hash(bytes.get(12..end)?) != number(8)? {
        return None;
    }
    let piece = |at: usize| {
        Some(Piece {
            partition: PartitionId { topic: TopicNumber(number(at)?), index: number(at + 4)? },
            base: long(at + 8)?,
            next: long(at + 16)?,
            position: long(at + 24)?.cast_unsigned(),
            bytes: long(at + 32)?.cast_unsigned(),
            max_timestamp: long(at + 40)?,
        })
    };
    (0..count).map(|index| piece(HEADER_BYTES + index * PIECE_BYTES)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_survive_their_file_and_damage_is_noticed() {
        let piece = |at: u32| Piece {
            partition: PartitionId { topic: TopicNumber(7), index: at },
            base: i64::from(at),
            next: i64::from(at) + 10,
            position: u64::from(at) * 1000,
            bytes: 1000,
            max_timestamp: 5,
        };
        let pieces: Vec<Piece> = (0..100).map(piece).collect();
        let mut bytes = encode(&pieces);
        let end = bytes.len();
        bytes.resize(end.next_multiple_of(BLOCK_BYTES), 0);
        assert_eq!(decode(&bytes), Some(pieces));
        for at in (0..end).filter(|at| !(6..8).contains(at)) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert_eq!(decode(&damaged), None, "byte {at}");
            assert_eq!(decode(&bytes[..at]), None, "cut at {at}");
        }
        assert_eq!(directory_of(&[0; TRAILER_BYTES]), None);
    }
}
