//! Out of packs: copying their pieces into others, and the look at their directories.
//!
//! Invariants
//!   U1  What `copy` and `copy_from` add to a pack was verified batch by batch: damage is never
//!       multiplied in silence, so that whoever copies may remove what was copied from.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use bytes::Bytes;

use super::check::{Damage, Flaw, Seen};
use super::pack::{CRC_END, DirectoryFlaw, HEADER_BYTES, TRAILER_BYTES};
use super::pack::{decode, directory_header, directory_of, encode_end};
use super::read::{read_range, within};
use super::{Pack, PackWriter, Piece, Segment, Store, pack_key};
use crate::io::around::Around;
use crate::io::{BLOCK_BYTES, File, Io};

/// Bytes that are read at a time to be written elsewhere.
const READ_BYTES: usize = 1 << 20;
/// Bytes of a directory that are read at a time.
const DIRECTORY_BYTES: usize = 256 << 10;
/// How far from a file's end a directory that nothing names is looked for.
const SEARCH_BYTES: u64 = 64 << 20;
const ZEROS: &[u8] = &[0; BLOCK_BYTES];

/// Reads several packs side by side, each from front to back.
#[derive(Default)]
pub struct Unpacking {
    /// Of each pack, the stretch that was read last and where it begins.
    windows: HashMap<u32, (u64, Bytes)>,
}

impl Unpacking {
    /// Bytes of a pack from `at` on, not beyond `end`: `least` of them, if there are so many.
    async fn bytes<F: File>(
        &mut self,
        number: u32,
        file: &F,
        (at, end): (u64, u64),
        least: usize,
    ) -> io::Result<Bytes> {
        let most = usize::try_from(end - at).unwrap_or(usize::MAX);
        let least = least.clamp(1, most.max(1));
        let cut = |(start, window): &(u64, Bytes)| {
            let skip = usize::try_from(at.checked_sub(*start)?).ok()?;
            let left = window.len().checked_sub(skip).filter(|left| *left >= least)?;
            Some(window.slice(skip..skip + left.min(most)))
        };
        if let Some(bytes) = self.windows.get(&number).and_then(cut) {
            return Ok(bytes);
        }
        // The old stretch goes before memory is asked for.
        self.windows.remove(&number);
        let window = read_range(file, at, within(at, READ_BYTES).max(least), file.len()).await?;
        let held = (at, window);
        let bytes = cut(&held).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.windows.insert(number, held);
        Ok(bytes)
    }
}

impl<I: Io> PackWriter<'_, I> {
    /// Adds to the piece begun last the bytes of a segment that is in another pack. Where that is
    /// damaged, nothing is added, the piece is ended, and the first damage is returned.
    pub async fn copy(
        &mut self,
        from: &mut Unpacking,
        segment: &Segment,
    ) -> io::Result<Option<Damage>> {
        self.copy_from(self.store, from, segment).await
    }

    /// As `copy`, out of another store.
    pub async fn copy_from(
        &mut self,
        store: &Store<I>,
        from: &mut Unpacking,
        segment: &Segment,
    ) -> io::Result<Option<Damage>> {
        let before = self.piece();
        let outcome = self.copy_sound(store, from, segment).await;
        if !matches!(outcome, Ok(None)) {
            self.take_back(before);
        }
        outcome
    }

    async fn copy_sound(
        &mut self,
        store: &Store<I>,
        from: &mut Unpacking,
        segment: &Segment,
    ) -> io::Result<Option<Damage>> {
        let number = number_of(segment)?;
        let file = match store.file(pack_key(number)).await {
            Ok(file) => file,
            Err(error) => return unreadable(segment, 0, error).map(Some),
        };
        let start = segment.start();
        let mut check = store.check(segment, file.len().saturating_sub(start));
        let mut damage = None;
        let mut looked_at = None;
        while let Some((position, wanted)) = check.wants().filter(|_| damage.is_none()) {
            // What is left of the last stretch may hold no whole batch.
            let least = if looked_at.replace(position) == Some(position) { wanted } else { 1 };
            let place = (start + position, start + segment.bytes);
            let window = match from.bytes(number, &*file, place, least).await {
                Ok(window) => window,
                Err(error) => return unreadable(segment, position, error).map(Some),
            };
            let mut sound = 0;
            let mut note = |seen: Seen<'_>| match seen {
                Seen::Batch { batch, .. } => sound += batch.len(),
                Seen::Damage(found) => drop(damage.get_or_insert(found)),
                // A piece leaves no offset out and has no seals.
                Seen::Misplaced(_) => {}
            };
            check.take(&window, &mut note);
            if damage.is_none() {
                let sound = window.get(..sound).unwrap_or_default();
                self.put(sound, check.next(), segment.max_timestamp).await?;
            }
        }
        if damage.is_none() {
            check.finish(&mut |seen| {
                if let Seen::Damage(found) = seen {
                    damage.get_or_insert(found);
                }
            });
        }
        Ok(damage)
    }

    /// Adds to the piece begun last the bytes of a segment of a pack whatever is wrong with them:
    /// zeros stand for what is not there, so that who reads it is told as before.
    pub async fn copy_as_it_is(
        &mut self,
        store: &Store<I>,
        from: &mut Unpacking,
        segment: &Segment,
    ) -> io::Result<()> {
        let number = number_of(segment)?;
        let file = match store.file(pack_key(number)).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            outcome => Some(outcome?),
        };
        let (mut at, end) = (segment.start(), segment.start() + segment.bytes);
        let there = file.as_ref().map_or(0, |file| file.len()).min(end);
        while at < end {
            let piece = match &file {
                Some(file) if at < there => from.bytes(number, &**file, (at, there), 1).await?,
                _ => {
                    let left = usize::try_from(end - at).unwrap_or(usize::MAX);
                    Bytes::from_static(ZEROS).slice(..left.min(ZEROS.len()))
                }
            };
            at += piece.len() as u64;
            self.put(&piece, segment.next, segment.max_timestamp).await?;
        }
        Ok(())
    }
}

fn number_of(segment: &Segment) -> io::Result<u32> {
    let own = || io::Error::other("a segment with a file of its own goes into no pack");
    segment.pack().ok_or_else(own)
}

/// The damage that a segment which cannot be read has, but for want of memory.
fn unreadable(segment: &Segment, position: u64, error: io::Error) -> io::Result<Damage> {
    let flaw = match error.kind() {
        io::ErrorKind::OutOfMemory => return Err(error),
        io::ErrorKind::NotFound => Flaw::Missing,
        io::ErrorKind::UnexpectedEof => Flaw::Ends,
        _ => Flaw::Unreadable,
    };
    let (from, before) = (segment.base, segment.next);
    Ok(Damage { position, bytes: segment.bytes - position, from, before, flaw })
}

impl<I: Io> Store<I> {
    /// Reads a pack's directory through, with a `rest` after so many bytes.
    pub async fn check_directory(
        &self,
        number: u32,
        rest: impl AsyncFn(usize),
    ) -> io::Result<Option<DirectoryFlaw>> {
        let file = self.io.open(&self.pack_path(number), crate::io::OpenHow::Existing).await?;
        let trailer_at = file.len().saturating_sub(TRAILER_BYTES as u64);
        let trailer = read_range(&file, trailer_at, TRAILER_BYTES, file.len()).await?;
        rest(BLOCK_BYTES).await;
        let Some(at) = directory_of(&trailer).filter(|at| *at < trailer_at) else {
            return Ok(Some(DirectoryFlaw::NoTrailer));
        };
        let header = read_range(&file, at, HEADER_BYTES, trailer_at).await?;
        let (crc, covered) = match directory_header(&header) {
            Ok(header) => header,
            Err(flaw) => return Ok(Some(flaw)),
        };
        let mut at = at + CRC_END as u64;
        let end = at + covered;
        if end > trailer_at {
            return Ok(Some(DirectoryFlaw::Damaged));
        }
        let mut hasher = crc32fast::Hasher::new();
        while at < end {
            let bytes = read_range(&file, at, DIRECTORY_BYTES, end).await?;
            hasher.update(&bytes);
            at += bytes.len() as u64;
            rest(bytes.len()).await;
        }
        Ok((hasher.finalize() != crc).then_some(DirectoryFlaw::Damaged))
    }
}

/// The pack in a file that no node uses, by its directory, and what is wrong with that: plain
/// blocking reads.
pub fn read_pack(path: &Path) -> io::Result<(Pack, Option<DirectoryFlaw>)> {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    let number = stem.and_then(|stem| stem.parse().ok()).unwrap_or(0);
    let mut file = Around::open(path)?;
    let bytes = file.length();
    let trailer_at = bytes.saturating_sub(TRAILER_BYTES as u64);
    let trailer = read_in(&mut file, trailer_at, bytes)?;
    let (pieces, flaw) = match directory_of(&trailer).filter(|at| *at < trailer_at) {
        Some(at) => match decode(&read_in(&mut file, at, trailer_at)?) {
            Ok(pieces) => (pieces, None),
            Err(flaw) => (Vec::new(), Some(flaw)),
        },
        None => (search(&mut file, bytes)?, Some(DirectoryFlaw::NoTrailer)),
    };
    Ok((Pack { number, pieces }, flaw))
}

/// The pieces of the last directory that nothing at the file's end names.
fn search(file: &mut Around, bytes: u64) -> io::Result<Vec<Piece>> {
    let block = BLOCK_BYTES as u64;
    let last = bytes / block * block;
    let mut at = last;
    while at > last.saturating_sub(SEARCH_BYTES) {
        at -= block;
        let header = read_in(file, at, at + HEADER_BYTES as u64)?;
        let Ok((_, covered)) = directory_header(&header) else { continue };
        let end = at + CRC_END as u64 + covered;
        if end <= bytes
            && let Ok(pieces) = decode(&read_in(file, at, end)?)
        {
            return Ok(pieces);
        }
    }
    Ok(Vec::new())
}

fn read_in(file: &mut Around, from: u64, to: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(to - from).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, from)?;
    Ok(bytes)
}

/// Writes a directory of these pieces behind the last of them, durably, and cuts the file there:
/// of a pack that no node uses.
pub fn write_directory(path: &Path, pieces: &[Piece]) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let end = pieces.iter().map(|piece| piece.position + piece.bytes).max().unwrap_or(0);
    let at = end.next_multiple_of(BLOCK_BYTES as u64);
    let bytes = encode_end(pieces, at);
    let file = fs::File::options().write(true).open(path)?;
    file.write_all_at(&bytes, at)?;
    file.set_len(at + bytes.len() as u64)?;
    file.sync_all()
}
