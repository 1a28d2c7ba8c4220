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

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::write::fill;
use super::{Home, Segment, Store, pack_key, tolerate_absent};
use crate::base::buffer::AlignedBuffer;
use crate::base::ids::{Offset, PartitionId, TopicNumber};
use crate::io::{BLOCK_BYTES, File, Io, OpenHow};

const FOLDER: &str = "packs";
const MAGIC: u32 = 0x434c_5031; // "CLP1"
const VERSION: u16 = 1;
pub(super) const HEADER_BYTES: usize = 16;
const PIECE_BYTES: usize = 48;
/// Where the directory's checksum ends, and what it covers begins.
pub(super) const CRC_END: usize = 12;
pub(super) const TRAILER_BYTES: usize = 16;

/// The folder of the packs in a store's directory.
pub(super) fn folder(directory: &Path) -> PathBuf {
    directory.join(FOLDER)
}

/// The file of a pack in a store's directory.
pub(super) fn path(directory: &Path, number: u32) -> PathBuf {
    folder(directory).join(format!("{number:010}.pack"))
}

/// The number of the pack that a file's name means.
pub(super) fn number(name: &str) -> Option<u32> {
    name.strip_suffix(".pack")?.parse().ok()
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

/// What is wrong with a pack's directory. The node itself does without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectoryFlaw {
    /// Nothing at the file's end says where it is.
    NoTrailer,
    Damaged,
    Newer(u16),
}

impl fmt::Display for DirectoryFlaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DirectoryFlaw::NoTrailer => f.write_str("its end does not say where its directory is"),
            DirectoryFlaw::Damaged => f.write_str("its directory is damaged"),
            DirectoryFlaw::Newer(version) => write!(
                f,
                "its directory has format {version}, this program knows up to {VERSION}: a newer \
                 Corelog wrote it, or it is damaged"
            ),
        }
    }
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
    pub(super) store: &'a Store<I>,
    file: Rc<I::File>,
    number: u32,
    /// Where the first of `full` will stand, or `chunk` if there is none.
    at: u64,
    /// Chunks that are to be written together.
    full: Vec<AlignedBuffer>,
    chunk: AlignedBuffer,
    pieces: Vec<Piece>,
}

impl<I: Io> Store<I> {
    /// The packs that are there. Blocking; for start-up.
    pub(super) fn find_packs(&self) {
        let mut packs = self.packs.borrow_mut();
        for name in self.names_in(&folder(&self.directory)) {
            if let Some(number) = number(&name) {
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
        let (full, pieces) = (Vec::new(), Vec::new());
        Ok(PackWriter { store: self, file, number, at: 0, full, chunk, pieces })
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
        let trailer =
            super::read::read_range(&*file, trailer_at, TRAILER_BYTES, file.len()).await?;
        let at = directory_of(&trailer).filter(|at| *at < trailer_at);
        let at = at.ok_or_else(|| damaged("no directory is named at the end"))?;
        let length = usize::try_from(trailer_at - at).map_err(io::Error::other)?;
        let directory = super::read::read_range(&*file, at, length, trailer_at).await?;
        decode(&directory).map_err(|flaw| damaged(&format!("at byte {at}: {flaw}")))
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
        let full: usize = self.full.iter().map(|chunk| chunk.len()).sum();
        self.at + (full + self.chunk.len()) as u64
    }

    /// Gives the file room for so many bytes, which makes writes that go on together faster.
    pub async fn reserve(&mut self, bytes: u64) -> io::Result<()> {
        self.file.reserve(bytes.next_multiple_of(BLOCK_BYTES as u64)).await
    }

    /// The segment that the piece begun last is.
    pub fn segment(&self, begun: i64) -> Option<Segment> {
        self.pieces.last().map(|piece| piece.segment(self.number, begun))
    }

    /// The piece begun last, as it is so far.
    pub(super) fn piece(&self) -> Option<Piece> {
        self.pieces.last().copied()
    }

    /// Takes back what was put to the piece begun last since it was like this. The bytes stay,
    /// named by nothing.
    pub(super) fn take_back(&mut self, to: Option<Piece>) {
        if let (Some(last), Some(to)) = (self.pieces.last_mut(), to) {
            *last = to;
        }
        self.pieces.pop_if(|last| last.bytes == 0);
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
                self.pass_on(self.store.writes_at_once()).await?;
            }
        }
        Ok(())
    }

    /// Is done with the chunk, padded to a block, and writes those that are full if there are as
    /// many as that.
    async fn pass_on(&mut self, at_once: usize) -> io::Result<()> {
        let used = self.chunk.len();
        if used > 0 {
            let mut full = std::mem::replace(&mut self.chunk, self.store.take()?);
            full.set_len(used.next_multiple_of(BLOCK_BYTES));
            full[used..].fill(0);
            self.full.push(full);
        }
        if self.full.len() >= at_once {
            self.at += self.store.write_chunks(&*self.file, self.at, &mut self.full).await?;
        }
        Ok(())
    }

    /// Writes everything that is left.
    async fn flush(&mut self) -> io::Result<()> {
        self.pass_on(1).await
    }

    /// Ends a pack that is only a step on the way to another one.
    pub async fn finish_run(mut self) -> io::Result<Pack> {
        self.flush().await?;
        Ok(Pack { number: self.number, pieces: self.pieces })
    }

    /// Writes the directory and makes the pack durable.
    pub async fn finish(mut self) -> io::Result<Pack> {
        self.flush().await?;
        let end = encode_end(&self.pieces, self.at);
        self.write(&end).await?;
        self.flush().await?;
        if self.file.len() > self.at {
            self.file.truncate(self.at).await?;
        }
        self.file.sync().await?;
        Ok(Pack { number: self.number, pieces: self.pieces })
    }
}

/// The end of a pack: the directory, which stands at `at`, and the trailer.
pub(super) fn encode_end(pieces: &[Piece], at: u64) -> Vec<u8> {
    let mut bytes = encode(pieces);
    let end = (bytes.len() + TRAILER_BYTES).next_multiple_of(BLOCK_BYTES);
    bytes.resize(end - TRAILER_BYTES, 0);
    bytes.extend_from_slice(&at.to_le_bytes());
    bytes.extend_from_slice(&MAGIC.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes
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
    let crc = crc32fast::hash(bytes.get(CRC_END..).unwrap_or_default());
    if let Some(place) = bytes.get_mut(CRC_END - 4..CRC_END) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
    bytes
}

/// The position of the directory that a trailer names.
pub(super) fn directory_of(trailer: &[u8]) -> Option<u64> {
    let magic = u32::from_le_bytes(*trailer.get(8..)?.first_chunk()?);
    let at = u64::from_le_bytes(*trailer.first_chunk()?);
    (magic == MAGIC).then_some(at)
}

/// What the first bytes of a directory say: its checksum, and the bytes that this covers.
pub(super) fn directory_header(bytes: &[u8]) -> Result<(u32, u64), DirectoryFlaw> {
    let header: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(DirectoryFlaw::Damaged)?;
    let number = |at: usize| header.get(at..).and_then(|rest| rest.first_chunk());
    let number = |at: usize| number(at).map_or(0, |four| u32::from_le_bytes(*four));
    if number(0) != MAGIC {
        return Err(DirectoryFlaw::Damaged);
    }
    // The upper half is reserved.
    match number(4) {
        version if version == u32::from(VERSION) => {}
        version => {
            let newer = u16::try_from(version).ok().filter(|version| *version > VERSION);
            return Err(newer.map_or(DirectoryFlaw::Damaged, DirectoryFlaw::Newer));
        }
    }
    let pieces = u64::from(number(12)) * PIECE_BYTES as u64;
    Ok((number(8), (HEADER_BYTES - CRC_END) as u64 + pieces))
}

/// The pieces of a pack's directory.
pub(super) fn decode(bytes: &[u8]) -> Result<Vec<Piece>, DirectoryFlaw> {
    let (crc, covered) = directory_header(bytes)?;
    let covered = usize::try_from(covered).map_err(|_| DirectoryFlaw::Damaged)?;
    let covered = bytes.get(CRC_END..).and_then(|rest| rest.get(..covered));
    let covered = covered.filter(|covered| crc32fast::hash(covered) == crc);
    let pieces = covered.and_then(|covered| covered.get(HEADER_BYTES - CRC_END..));
    let pieces = pieces.ok_or(DirectoryFlaw::Damaged)?.chunks_exact(PIECE_BYTES);
    pieces.map(|piece| decode_piece(piece).ok_or(DirectoryFlaw::Damaged)).collect()
}

fn decode_piece(bytes: &[u8]) -> Option<Piece> {
    let number = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let long = |at: usize| Some(i64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    Some(Piece {
        partition: PartitionId { topic: TopicNumber(number(0)?), index: number(4)? },
        base: long(8)?,
        next: long(16)?,
        position: long(24)?.cast_unsigned(),
        bytes: long(32)?.cast_unsigned(),
        max_timestamp: long(40)?,
    })
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
        assert_eq!(decode(&bytes), Ok(pieces));
        for at in 0..end {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            let flaw = if at == 4 { DirectoryFlaw::Newer(17) } else { DirectoryFlaw::Damaged };
            let flaw = if at == 5 { DirectoryFlaw::Newer(4097) } else { flaw };
            assert_eq!(decode(&damaged), Err(flaw), "byte {at}");
            assert_eq!(decode(&bytes[..at]), Err(DirectoryFlaw::Damaged), "cut at {at}");
        }
        assert_eq!(directory_of(&[0; TRAILER_BYTES]), None);
    }
}
