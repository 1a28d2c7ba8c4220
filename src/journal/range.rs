//! Which of a journal's files must be there: without it one that is missing at either end could not
//! be told from one that was never made or is needed no more.
//!
//!     journal.range   | slot: 4096 bytes | the same once more |
//!     slot            | magic u32 | version u16 | 0 u16 | crc u32 | 0 u32 | first u64 | end u64 |
//!
//! It is little-endian; the CRC-32 covers first and end. Both slots are written, one after the
//! other, so that one of them is whole whenever the power fails, or when the other one goes bad.
//!
//! Invariants
//!   N1  The files from `first` to before `end` are there: one is made durable before it is named,
//!       and is no longer named before it gets another name or goes.
//!   N2  No group is placed in a file that is not named.
//!   N3  `first` and `end` never go back, so the slot that is further on is the newer one.
//!   N4  Nothing before `first` is needed, and that is known to last: recovery begins there.

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::open_error::OpenError;
use super::{Handle, Inner, State, files, is_no_space};
use crate::base::buffer::{AlignedBuffer, Arena};
use crate::io::{BLOCK_BYTES, Durability, File, Io, OpenHow};

const NAME: &str = "journal.range";
const MAGIC: u32 = 0x434c_5231; // "CLR1"
const VERSION: u16 = 1;
const CRC_AT: usize = 8;
const CRC_END: usize = 16;
const SLOT_BYTES: usize = 32;
const FILE_BYTES: usize = 2 * BLOCK_BYTES;

/// Files by number, from `first` to before `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    pub first: u64,
    pub end: u64,
}

impl Range {
    /// Without the files before `needed`.
    fn needed_from(self, needed: u64) -> Range {
        Range { first: self.first.max(needed.min(self.end - 1)), end: self.end }
    }
}

/// The range in its file.
pub struct Named<F> {
    file: Handle<F>,
    range: Range,
}

/// What a range's file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// It was never written.
    Nothing,
    /// And whether both slots are whole and the same.
    Range(Range, bool),
    Damaged,
    Newer(u16),
}

impl Said {
    /// Files below this number are not needed.
    pub fn first_needed(self) -> u64 {
        match self {
            Said::Range(range, _) => range.first,
            Said::Nothing | Said::Damaged | Said::Newer(_) => 0,
        }
    }
}

/// The file in a core's directory.
pub fn path(directory: &Path) -> PathBuf {
    directory.join(NAME)
}

/// What the file's bytes say.
pub fn read(bytes: &[u8]) -> Said {
    if bytes.iter().all(|byte| *byte == 0) {
        return Said::Nothing;
    }
    let slots = bytes.chunks(BLOCK_BYTES).map(decode);
    let known: Vec<Result<Range, Option<u16>>> = slots.collect();
    match known.iter().flatten().max() {
        Some(range) => Said::Range(*range, known[..] == [Ok(*range), Ok(*range)]),
        None => known.iter().find_map(|one| one.err()?).map_or(Said::Damaged, Said::Newer),
    }
}

fn encode(range: Range) -> [u8; SLOT_BYTES] {
    let mut slot = [0; SLOT_BYTES];
    slot[..4].copy_from_slice(&MAGIC.to_le_bytes());
    slot[4..6].copy_from_slice(&VERSION.to_le_bytes());
    slot[CRC_END..24].copy_from_slice(&range.first.to_le_bytes());
    slot[24..].copy_from_slice(&range.end.to_le_bytes());
    let crc = crc32fast::hash(&slot[CRC_END..]);
    slot[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    slot
}

/// The error is the version, if it is a newer one.
fn decode(slot: &[u8]) -> Result<Range, Option<u16>> {
    let slot: &[u8; SLOT_BYTES] = slot.first_chunk().ok_or(None)?;
    let long = |at: usize| slot.get(at..).and_then(|rest| rest.first_chunk());
    let long = |at: usize| long(at).map_or(0, |eight| u64::from_le_bytes(*eight));
    let range = Range { first: long(CRC_END), end: long(24) };
    let version = u16::from_le_bytes([slot[4], slot[5]]);
    if slot[..4] == MAGIC.to_le_bytes() && version > VERSION {
        return Err(Some(version));
    }
    let is_sound = *slot == encode(range) && range.first < range.end;
    if is_sound { Ok(range) } else { Err(None) }
}

/// Makes the folder of a journal that is to begin, with a file that says nothing yet. Blocking.
pub fn prepare_folder(directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let file = path(directory);
    std::fs::File::options().create(true).truncate(false).write(true).open(&file)?.sync_all()?;
    let parent = directory.parent().into_iter();
    parent.chain([directory]).try_for_each(|folder| std::fs::File::open(folder)?.sync_all())
}

/// Whether there is a folder of a journal that has begun, or is to begin. Blocking.
pub fn is_prepared(directory: &Path) -> io::Result<bool> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        if name.to_str().is_some_and(|name| name == NAME || files::number(name).is_some()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What is said of a journal that no node uses. Blocking.
pub fn of(directory: &Path) -> io::Result<Said> {
    match std::fs::read(path(directory)) {
        Ok(bytes) => Ok(read(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Said::Nothing),
        Err(error) => Err(error),
    }
}

/// The file, if there is one, and what it says.
pub async fn open<I: Io>(
    io: &I,
    directory: &Path,
) -> Result<(Option<Handle<I::File>>, Said), OpenError> {
    let path = path(directory);
    let failed = |error| OpenError::Io { what: format!("read {}", path.display()), error };
    let file = match io.open(&path, OpenHow::Existing).await {
        Ok(file) => Rc::new(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((None, Said::Nothing)),
        Err(error) => return Err(failed(error)),
    };
    let length = usize::try_from(file.len()).unwrap_or(usize::MAX).min(FILE_BYTES);
    let length = length.next_multiple_of(BLOCK_BYTES);
    let said = match length {
        0 => Said::Nothing,
        length => read(&file.read_at(0, length).await.map_err(failed)?),
    };
    match said {
        Said::Newer(version) => Err(OpenError::NewerVersion { file: path, version }),
        said => Ok((Some(file), said)),
    }
}

/// The first file that should be there and is not; `numbers` are those that are, in order.
pub fn missing(said: Said, numbers: &[u64]) -> Option<u64> {
    let Said::Range(range, _) = said else { return hole(numbers) };
    let is_there = |number: &u64| numbers.binary_search(number).is_ok();
    let needed = &numbers[numbers.partition_point(|number| *number < range.first)..];
    (range.first..range.end).find(|number| !is_there(number)).or_else(|| hole(needed))
}

/// The first number that lacks between others.
pub fn hole(numbers: &[u64]) -> Option<u64> {
    numbers.windows(2).find_map(|pair| match pair {
        [one, two] if one + 1 != *two => Some(one + 1),
        _ => None,
    })
}

/// Names the files of a journal that was just opened. On a disk that has no space for it, they stay
/// without a name.
pub async fn begin<I: Io>(
    io: &I,
    arena: &Arena,
    directory: &Path,
    (file, said): (Option<Handle<I::File>>, Said),
    files: &mut files::Files<I::File>,
) -> Result<(), OpenError> {
    let path = path(directory);
    let there = (files.numbers().next().unwrap_or(0), files.numbers().last().unwrap_or(0) + 1);
    let (first, end) = match said {
        Said::Range(range, _) => (range.first, range.end.max(there.1)),
        _ => there,
    };
    if said == Said::Damaged {
        tracing::error!(
            "{} is damaged: whether journal files are missing cannot be told; it is made anew",
            path.display()
        );
    }
    if matches!(said, Said::Range(_, false)) {
        tracing::warn!(
            "one of the two copies in {} is not whole, as after a crash, and is written anew",
            path.display()
        );
    }
    let range = Range { first, end };
    let named = async {
        let file = match file {
            Some(file) => file,
            None => Rc::new(io.open(&path, OpenHow::CreateNew).await?),
        };
        if said != Said::Range(range, true) {
            write(&*file, buffer(arena)?, range).await?;
        }
        Ok(Named { file, range })
    };
    match named.await {
        Ok(named) => files.named = Some(named),
        Err(error) if is_no_space(&error) => {
            tracing::warn!("{} gets no space: {error}", path.display());
        }
        Err(error) => {
            return Err(OpenError::Io { what: format!("write {}", path.display()), error });
        }
    }
    Ok(())
}

/// The files before `end` are there to be written to (N2).
pub async fn name_through<I: Io>(inner: &Rc<Inner<I>>, end: u64) -> io::Result<()> {
    change(inner, |range| Range { end: range.end.max(end), ..range }).await
}

/// Whether files are named that nobody needs.
pub fn names_too_many<I: Io>(state: &State<I>) -> bool {
    let needed = state.files.first_needed();
    state.files.named.as_ref().is_some_and(|named| named.range.needed_from(needed) != named.range)
}

/// Files before the first needed one are no longer named: they may go, and recovery passes them
/// over.
pub async fn name_needed<I: Io>(inner: &Rc<Inner<I>>) -> io::Result<()> {
    let needed = inner.state.borrow().files.first_needed();
    change(inner, |range| range.needed_from(needed)).await
}

/// Called by the files' task alone.
async fn change<I: Io>(inner: &Rc<Inner<I>>, to: impl Fn(Range) -> Range) -> io::Result<()> {
    let known = inner.state.borrow().files.named.as_ref().map(|n| (n.file.clone(), n.range));
    let Some((file, range)) = known else { return Ok(()) };
    if to(range) == range {
        return Ok(());
    }
    let range = to(range);
    write(&*file, buffer(&inner.arena)?, range).await?;
    if let Some(named) = &mut inner.state.borrow_mut().files.named {
        named.range = range;
    }
    Ok(())
}

fn buffer(arena: &Arena) -> io::Result<AlignedBuffer> {
    let refused = || io::Error::new(io::ErrorKind::OutOfMemory, "the core's memory is in use");
    arena.take(BLOCK_BYTES).ok_or_else(refused)
}

/// Writes both slots, durably, one after the other.
async fn write<F: File>(file: &F, mut slot: AlignedBuffer, range: Range) -> io::Result<()> {
    slot.fill(0);
    slot[..SLOT_BYTES].copy_from_slice(&encode(range));
    let slot = slot.freeze();
    file.write_at(0, slot.clone(), Durability::Flushed).await?;
    file.write_at(BLOCK_BYTES as u64, slot, Durability::Flushed).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_slot_is_enough_and_the_one_that_is_further_on_counts() {
        let (old, new) = (Range { first: 3, end: 5 }, Range { first: 4, end: 6 });
        let file = |slots: [Range; 2]| {
            let mut bytes = vec![0; FILE_BYTES];
            bytes[..SLOT_BYTES].copy_from_slice(&encode(slots[0]));
            bytes[BLOCK_BYTES..BLOCK_BYTES + SLOT_BYTES].copy_from_slice(&encode(slots[1]));
            bytes
        };
        assert_eq!(read(&file([new, new])), Said::Range(new, true));
        assert_eq!(read(&file([new, old])), Said::Range(new, false));
        assert_eq!(read(&[0; FILE_BYTES]), Said::Nothing);
        assert_eq!(read(&[]), Said::Nothing);
        assert_eq!(read(&file([new, new])[..BLOCK_BYTES]), Said::Range(new, false));
        for at in 0..SLOT_BYTES {
            let mut bytes = file([new, new]);
            bytes[at] ^= 0x40;
            assert_eq!(read(&bytes), Said::Range(new, false), "byte {at}");
            bytes[BLOCK_BYTES + at] ^= 0x40;
            let both = read(&bytes);
            assert!(matches!(both, Said::Damaged | Said::Newer(_)), "byte {at}: {both:?}");
        }
    }

    #[test]
    fn a_file_is_missed_at_either_end_and_in_the_middle() {
        let said = Said::Range(Range { first: 3, end: 6 }, true);
        assert_eq!(missing(said, &[3, 4, 5]), None);
        assert_eq!(missing(said, &[1, 2, 3, 4, 5, 6]), None, "released, and not yet named");
        for gone in [3, 4, 5] {
            let left: Vec<u64> = (3..6).filter(|number| *number != gone).collect();
            assert_eq!(missing(said, &left), Some(gone));
        }
        assert_eq!(missing(said, &[]), Some(3));
        assert_eq!(missing(said, &[0, 2, 3, 4, 5]), None, "a hole where nothing is needed");
        assert_eq!(missing(said, &[3, 4, 5, 7]), Some(6));
        assert_eq!(missing(Said::Nothing, &[7, 9]), Some(8));
        assert_eq!(missing(Said::Damaged, &[8, 9]), None);
    }
}
