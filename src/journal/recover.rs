//! Recovery: reads the files in order, gives every entry of the valid prefix to the owner, and
//! tells a group that was in flight at a crash from one that was damaged later.
//!
//!     | group | group | bad ... | group that says "flushed >= bad" |   -> damage, refuse
//!     | group | group | bad ... | nothing, or groups not flushed    |   -> torn, dropped
//!
//! Invariants
//!   R1  Replay is exactly a prefix, in order, every checksum verified.
//!   R2  The sequence goes on above every group that was ever seen, so that a dropped one can never
//!       come back behind a new one.
//!   R3  Memory is bounded by the largest group plus one window.

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::layout::{Entry, Flaw, GroupHeader, HEADER_BYTES};
use super::{Location, Settings, files};
use crate::base::buffer::AlignedBuffer;
use crate::base::ids::PartitionId;
use crate::io::{BLOCK_BYTES, File, Io, OpenHow};
use crate::journal::files::Files;
use crate::journal::space::Space;

/// Bytes read at a time.
const WINDOW_BYTES: usize = 1 << 20;
/// What a new journal's first file is given before the first write.
const FIRST_FILE_BYTES: u64 = 1 << 20;

/// An entry found in the journal.
#[derive(Clone, Copy, Debug)]
pub struct Replayed<'a> {
    pub entry: Entry,
    pub location: Location,
    pub body: &'a [u8],
}

/// Why a journal cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    Io {
        what: String,
        error: io::Error,
    },
    /// A group that was durable is damaged.
    Damaged(Damage),
    /// A file between two others is missing.
    Missing {
        file: PathBuf,
    },
    /// The group belongs to another journal.
    Foreign {
        file: PathBuf,
        position: u64,
    },
    NewerVersion {
        file: PathBuf,
        version: u16,
    },
}

/// What is damaged, as exactly as the bytes tell.
#[derive(Debug)]
pub struct Damage {
    pub file: PathBuf,
    pub position: u64,
    pub flaw: String,
    /// Partitions with entries in the group, if its directory is readable.
    pub partitions: Vec<PartitionId>,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Io { what, error } => write!(f, "cannot {what}: {error}"),
            OpenError::Damaged(damage) => {
                let Damage { file, position, flaw, partitions } = damage;
                write!(f, "{} is damaged at byte {position}: {flaw}", file.display())?;
                for partition in partitions {
                    write!(f, "; it holds records of {partition}")?;
                }
                write!(
                    f,
                    ". Acknowledged records are in it or behind it: restore the file from a copy; \
                     `corelog inspect {}` shows what is readable",
                    file.display()
                )
            }
            OpenError::Missing { file } => write!(
                f,
                "{} is missing, but a later journal file is there: restore it",
                file.display()
            ),
            OpenError::Foreign { file, position } => write!(
                f,
                "{} holds a group of another journal at byte {position}: it was copied here from \
                 another data directory; remove it or restore the right one",
                file.display()
            ),
            OpenError::NewerVersion { file, version } => write!(
                f,
                "{} has format {version}, which a newer Corelog wrote: start that one",
                file.display()
            ),
        }
    }
}

impl std::error::Error for OpenError {}

/// What recovery found.
pub struct Recovered<I: Io> {
    pub journal_id: u64,
    pub last_sequence: u64,
    pub files: Files<I::File>,
    pub space: Space,
}

pub async fn recover<I: Io>(
    io: &I,
    settings: &Settings,
    replay: &mut dyn FnMut(Replayed<'_>),
) -> Result<Recovered<I>, OpenError> {
    let directory = &settings.directory;
    let failed = |what: String| move |error| OpenError::Io { what, error };
    io.create_directory(directory)
        .map_err(failed(format!("create the directory {}", directory.display())))?;
    let names = io
        .list(directory)
        .map_err(failed(format!("list the directory {}", directory.display())))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| files::number(name)).collect();
    numbers.sort_unstable();
    let mut files = Files::new();
    for number in &numbers {
        let path = files::path(directory, *number);
        let file = io.open(&path, OpenHow::Existing).await;
        let file = file.map_err(failed(format!("open {}", path.display())))?;
        files.insert(*number, file);
    }
    for pair in numbers.windows(2) {
        if let [one, two] = pair
            && one + 1 != *two
        {
            return Err(OpenError::Missing { file: files::path(directory, one + 1) });
        }
    }
    let first = numbers.first().copied().unwrap_or(0);
    let last = numbers.last().copied();
    let mut scan = Scan { settings, files: &files, journal_id: None, sequence: 0, highest: 0 };
    let head = scan.run(first, last, replay).await?;
    let Scan { journal_id, highest, .. } = scan;
    let journal_id = journal_id.unwrap_or_else(|| io.random());
    prepare_head(io, settings, &mut files, head).await?;
    // Files behind the head's hold nothing that counts; the next one is prepared again from them.
    let space = space_at(settings, &files, head);
    Ok(Recovered { journal_id, last_sequence: highest, files, space })
}

/// Makes sure that the head's file is there with room for a first group.
async fn prepare_head<I: Io>(
    io: &I,
    settings: &Settings,
    files: &mut Files<I::File>,
    head: u64,
) -> Result<(), OpenError> {
    let number = head.saturating_sub(u64::from(head > 0)) / settings.file_bytes;
    let path = files::path(&settings.directory, number);
    let failed = |error| OpenError::Io { what: format!("prepare {}", path.display()), error };
    if files.get(number).is_none() {
        let file = io.open(&path, OpenHow::CreateNew).await.map_err(failed)?;
        files.insert(number, file);
    }
    let file = files.get(number).unwrap_or_else(|| unreachable!("inserted above"));
    let wanted = FIRST_FILE_BYTES.min(settings.file_bytes);
    if file.len() < wanted {
        file.allocate(wanted).await.map_err(failed)?;
    }
    Ok(())
}

fn space_at<F: File>(settings: &Settings, files: &Files<F>, head: u64) -> Space {
    let file_bytes = settings.file_bytes;
    let number = head.saturating_sub(u64::from(head > 0)) / file_bytes;
    let allocated = |number: u64| {
        let length = files.get(number).map(|file| file.len().min(file_bytes));
        length.map(|length| number * file_bytes + length / BLOCK_BYTES as u64 * BLOCK_BYTES as u64)
    };
    Space {
        file_bytes,
        head,
        allocated: allocated(number).unwrap_or(head),
        next_allocated: allocated(number + 1),
        wanted: 0,
        refusal: None,
    }
}

/// The walk over the files.
struct Scan<'a, F> {
    settings: &'a Settings,
    files: &'a Files<F>,
    journal_id: Option<u64>,
    /// The last valid group's.
    sequence: u64,
    /// The greatest sequence seen in any group of this journal.
    highest: u64,
}

/// What stands at an address.
enum Found {
    Group(GroupHeader),
    Bad(Flaw),
    EndOfFile,
}

impl<F: File> Scan<'_, F> {
    /// Replays everything valid; returns the address at which the journal goes on.
    async fn run(
        &mut self,
        first: u64,
        last: Option<u64>,
        replay: &mut dyn FnMut(Replayed<'_>),
    ) -> Result<u64, OpenError> {
        let Some(last) = last else { return Ok(first * self.settings.file_bytes) };
        let mut head = first * self.settings.file_bytes;
        let mut number = first;
        let mut window = Window::default();
        loop {
            let found = self.at(head, number, &mut window).await?;
            let flaw = match found {
                Found::Group(header) => {
                    let group = self.group(&header, number, &mut window).await?;
                    match deliver(&header, group, replay) {
                        Ok(()) => {
                            self.journal_id = Some(header.journal_id);
                            self.sequence = header.sequence;
                            self.highest = self.highest.max(header.sequence);
                            head += u64::from(header.length);
                            continue;
                        }
                        Err(flaw) => Some(flaw),
                    }
                }
                Found::Bad(flaw) => Some(flaw),
                Found::EndOfFile => None,
            };
            self.check_nothing_lost(head, number..=number, flaw).await?;
            if number == last || !self.goes_on_in(number + 1, &mut window).await? {
                self.check_nothing_lost(head, number..=last, flaw).await?;
                return Ok(head);
            }
            number += 1;
            head = number * self.settings.file_bytes;
        }
    }

    /// Whether a file begins with the group that followed the last valid one: nothing between
    /// them was durable when it was sealed.
    async fn goes_on_in(&self, number: u64, window: &mut Window) -> Result<bool, OpenError> {
        let found = self.at(number * self.settings.file_bytes, number, window).await?;
        Ok(matches!(found, Found::Group(header) if header.flushed <= self.sequence))
    }

    /// The group that should stand at `address`, if it does.
    async fn at(&self, address: u64, number: u64, window: &mut Window) -> Result<Found, OpenError> {
        let Some(file) = self.files.get(number) else { return Ok(Found::EndOfFile) };
        let position = address - number * self.settings.file_bytes;
        let path = || files::path(&self.settings.directory, number);
        let failed = |error| OpenError::Io { what: format!("read {}", path().display()), error };
        let length = file.len().min(self.settings.file_bytes);
        if position + BLOCK_BYTES as u64 > length {
            return Ok(Found::EndOfFile);
        }
        let start = window.bytes(&*file, number, position, HEADER_BYTES).await.map_err(failed)?;
        let header = match GroupHeader::read(start) {
            Ok(header) => header,
            Err(Flaw::NewerVersion(version)) => {
                return Err(OpenError::NewerVersion { file: path(), version });
            }
            Err(flaw) => return Ok(Found::Bad(flaw)),
        };
        if header.address != address || header.sequence <= self.sequence {
            return Ok(Found::Bad(Flaw::NoGroup));
        }
        let bytes = header.length as usize;
        if position + u64::from(header.length) > length || bytes == 0 {
            return Ok(Found::Bad(Flaw::Lengths));
        }
        let group = window.bytes(&*file, number, position, bytes).await.map_err(failed)?;
        if let Err(flaw) = header.check(group) {
            return Ok(Found::Bad(flaw));
        }
        if self.journal_id.is_some_and(|id| id != header.journal_id) {
            return Err(OpenError::Foreign { file: path(), position });
        }
        Ok(Found::Group(header))
    }

    /// The bytes of a group that `at` has found.
    async fn group<'w>(
        &self,
        header: &GroupHeader,
        number: u64,
        window: &'w mut Window,
    ) -> Result<&'w [u8], OpenError> {
        let Some(file) = self.files.get(number) else { return Ok(&[]) };
        let position = header.address - number * self.settings.file_bytes;
        let path = files::path(&self.settings.directory, number);
        let failed = |error| OpenError::Io { what: format!("read {}", path.display()), error };
        window.bytes(&*file, number, position, header.length as usize).await.map_err(failed)
    }

    /// Looks behind a bad place for a group which says that what stood there was durable.
    async fn check_nothing_lost(
        &mut self,
        bad: u64,
        files: RangeInclusive<u64>,
        flaw: Option<Flaw>,
    ) -> Result<(), OpenError> {
        let number = *files.start();
        let mut window = Window::default();
        let block = BLOCK_BYTES as u64;
        let mut lost = false;
        for later in files {
            let start = later * self.settings.file_bytes;
            let length = self.files.get(later).map_or(0, |file| file.len());
            let mut address = start.max(if later == number { bad + block } else { start });
            while !lost && address + block <= start + length.min(self.settings.file_bytes) {
                let mut step = block;
                if let Found::Group(header) = self.at(address, later, &mut window).await? {
                    self.highest = self.highest.max(header.sequence);
                    lost = header.flushed > self.sequence;
                    step = u64::from(header.length);
                }
                address += step;
            }
        }
        if !lost {
            return Ok(());
        }
        let flaw = flaw.map_or_else(|| "the file ends too early".into(), |flaw| flaw.to_string());
        Err(OpenError::Damaged(Damage {
            file: files::path(&self.settings.directory, number),
            position: bad - number * self.settings.file_bytes,
            flaw,
            partitions: self.partitions_at(bad, number, &mut window).await,
        }))
    }

    /// The partitions named by the directory of a damaged group, as far as it is readable.
    async fn partitions_at(
        &self,
        address: u64,
        number: u64,
        window: &mut Window,
    ) -> Vec<PartitionId> {
        let Some(file) = self.files.get(number) else { return Vec::new() };
        let position = address - number * self.settings.file_bytes;
        let Ok(start) = window.bytes(&*file, number, position, HEADER_BYTES).await else {
            return Vec::new();
        };
        let Ok(header) = GroupHeader::read(start) else { return Vec::new() };
        let length = header.length as usize;
        let Ok(group) = window.bytes(&*file, number, position, length).await else {
            return Vec::new();
        };
        let mut partitions: Vec<PartitionId> = header.partitions(group).collect();
        partitions.sort_unstable();
        partitions.dedup();
        partitions
    }
}

/// A stretch of a file in memory.
#[derive(Default)]
struct Window {
    number: u64,
    start: u64,
    buffer: Option<AlignedBuffer>,
}

impl Window {
    /// `length` bytes at the block-aligned `position` of a file.
    async fn bytes<F: File>(
        &mut self,
        file: &F,
        number: u64,
        position: u64,
        length: usize,
    ) -> io::Result<&[u8]> {
        let held = self.buffer.as_ref().map_or(0, |buffer| buffer.len() as u64);
        let inside = self.number == number
            && position >= self.start
            && position + length as u64 <= self.start + held;
        if !inside {
            self.buffer = None;
            let left =
                file.len().saturating_sub(position) / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
            let wanted = length.next_multiple_of(BLOCK_BYTES).max(WINDOW_BYTES);
            let wanted = wanted.min(usize::try_from(left).unwrap_or(usize::MAX));
            self.buffer = Some(file.read_at(position, wanted).await?);
            self.number = number;
            self.start = position;
        }
        let skip = usize::try_from(position - self.start).map_err(io::Error::other)?;
        let buffer = self.buffer.as_deref().unwrap_or_default();
        buffer.get(skip..skip + length).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

fn deliver(
    header: &GroupHeader,
    group: &[u8],
    replay: &mut dyn FnMut(Replayed<'_>),
) -> Result<(), Flaw> {
    // All of the group or nothing: the entries are checked before the first is delivered.
    header.entries(group).try_for_each(|entry| entry.map(|_| ()))?;
    for found in header.entries(group) {
        let (entry, place, body) = found?;
        let length = u32::try_from(body.len()).map_err(|_| Flaw::Lengths)?;
        let location = Location { address: header.address + u64::from(place), length };
        replay(Replayed { entry, location, body });
    }
    Ok(())
}
