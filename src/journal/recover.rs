//! Recovery: reads the files in order, gives every entry of the valid prefix to the owner, and
//! tells a group that was in flight at a crash from one that was damaged later.
//!
//!     | group | group | bad ... | group that says "flushed >= bad" |   -> damage, refuse
//!     | group | group | bad ... | nothing, or groups not flushed    |   -> torn, dropped
//!
//! Behind the last group lies whatever the file held before: parts of older groups, which may be
//! any bytes that a client sent. Nothing there counts unless it names this journal, whose random id
//! no client knows.
//!
//! Invariants
//!   R1  Replay is exactly a prefix, in order, every checksum verified, every group naming the one
//!       before it.
//!   R2  The sequence goes on far above every group that was ever seen, so that a dropped one can
//!       never come back behind a new one, not even one whose header could not be read.
//!   R3  What is accepted is flushed before anybody learns of it: a killed process may have left a
//!       group in the device's cache only. Groups that no later one proves to be durable are
//!       written once more, the same bytes: a flush after a failed one may succeed without them.
//!   R4  Memory is bounded by the largest group plus one window.
//!   R5  It begins with the first file that `range` says is needed. What is wrong with the files
//!       before, which wait to be used again, is told, and nothing else depends on them.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::layout::{Entry, Flaw, GroupHeader, HEADER_BYTES};
use super::open_error::{Damage, OpenError};
use super::range::{self, Said};
use super::window::Window;
use super::{Handle, Location, Settings, files, is_no_space};
use crate::base::buffer::Arena;
use crate::base::ids::PartitionId;
use crate::io::{BLOCK_BYTES, Durability, File, Io, OpenHow};
use crate::journal::files::Files;
use crate::journal::space::Space;

/// Bytes read at a time.
const WINDOW_BYTES: usize = 1 << 20;

/// What a new journal's first file is given before the first write.
const FIRST_FILE_BYTES: u64 = 1 << 20;
/// Sequence numbers left out at each start (R2).
const SEQUENCE_GAP: u64 = 1 << 16;
/// Nothing that this journal has written lies further behind the last accepted group.
const SEQUENCE_STEP_MAX: u64 = u32::MAX as u64 - SEQUENCE_GAP - 1;

/// An entry found in the journal.
#[derive(Clone, Copy, Debug)]
pub struct Replayed<'a> {
    pub entry: Entry,
    pub location: Location,
    pub body: &'a [u8],
}

/// What recovery found.
pub struct Recovered<I: Io> {
    pub journal_id: u64,
    /// The last group that was accepted.
    pub accepted_sequence: u64,
    pub next_sequence: u64,
    pub files: Files<I::File>,
    pub space: Space,
}

impl<I: Io> Recovered<I> {
    /// A journal without a file.
    pub fn none(settings: &Settings) -> Recovered<I> {
        let files = Files::new();
        let space = space_at(settings, &files, &Head { number: 0, address: 0 });
        Recovered { journal_id: 0, accepted_sequence: 0, next_sequence: 1, files, space }
    }
}

/// The file of the journal's range, and what it says.
type Names<I> = (Option<Handle<<I as Io>::File>>, Said);

/// Opens the files, replays them, and leaves the journal ready for the next group. The file size
/// in `settings` becomes that of the journal that is there.
pub async fn recover<I: Io>(
    io: &I,
    arena: &Arena,
    settings: &mut Settings,
    replay: &mut dyn FnMut(Replayed<'_>),
) -> Result<Recovered<I>, OpenError> {
    let (mut files, numbers, named) = open_files(io, settings).await?;
    let needed_from = named.1.first_needed();
    let journal_id = identify(settings, &files, &numbers, needed_from).await?;
    let (old, needed) = numbers.split_at(numbers.partition_point(|n| *n < needed_from));
    let passed = Scan::of(settings, &files, journal_id, old.first());
    let passed = passed.pass_over(old, needed_from).await;
    let mut scan = Scan::of(settings, &files, journal_id, needed.first());
    scan.highest = passed.map_or(0, |passed| passed.highest);
    let head = match (needed.first(), needed.last()) {
        (Some(first), Some(last)) => scan.run(*first, *last, replay).await?,
        _ => Head { number: 0, address: 0 },
    };
    scan.tell_what_lacks_before(passed);
    scan.write_unproven_again().await?;
    let Scan { journal_id, sequence, highest, ends, .. } = scan;
    files.need_from(needed_from);
    for (number, end) in ends {
        files.left(number, end);
    }
    for file in needed.iter().filter_map(|number| files.get(*number)) {
        let what = || "flush the journal's files".to_string();
        file.sync().await.map_err(|error| OpenError::Io { what: what(), error })?;
    }
    prepare_head(io, settings, &mut files, &head).await?;
    range::begin(io, arena, &settings.directory, named, &mut files).await?;
    // Files behind the head's hold nothing that counts; they are overwritten in their turn.
    let space = space_at(settings, &files, &head);
    let journal_id = journal_id.unwrap_or_else(|| io.random());
    let next_sequence = if highest == 0 { 1 } else { highest + SEQUENCE_GAP };
    Ok(Recovered { journal_id, accepted_sequence: sequence, next_sequence, files, space })
}

/// The files by number, and what says which must be there.
async fn open_files<I: Io>(
    io: &I,
    settings: &Settings,
) -> Result<(Files<I::File>, Vec<u64>, Names<I>), OpenError> {
    let directory = &settings.directory;
    let failed = |what: String| move |error| OpenError::Io { what, error };
    io.create_directory(directory)
        .map_err(failed(format!("create the directory {}", directory.display())))?;
    let names = io
        .list(directory)
        .map_err(failed(format!("list the directory {}", directory.display())))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| files::number(name)).collect();
    numbers.sort_unstable();
    let named = range::open(io, directory).await?;
    if let Some(number) = range::missing(named.1, &numbers) {
        return Err(OpenError::Missing { file: files::path(directory, number) });
    }
    let mut files = Files::new();
    for number in &numbers {
        let path = files::path(directory, *number);
        let file = io.open(&path, OpenHow::Existing).await;
        let file = file.map_err(failed(format!("open {}", path.display())));
        match file {
            Ok(file) => files.insert(*number, file),
            Err(error) if *number < named.1.first_needed() => tell_unneeded(&error),
            Err(error) => return Err(error),
        }
    }
    numbers.retain(|number| files.get(*number).is_some());
    Ok((files, numbers, named))
}

/// Tells what is wrong with files that nobody needs.
fn tell_unneeded(why: &dyn std::fmt::Display) {
    tracing::error!("{why}; nothing in that file is needed any more, so nothing is lost");
}

/// The journal's id and file size, from the groups with which its files begin: only there no
/// client's bytes can stand.
async fn identify<F: File>(
    settings: &mut Settings,
    files: &Files<F>,
    numbers: &[u64],
    needed_from: u64,
) -> Result<Option<u64>, OpenError> {
    let mut known = None;
    for number in numbers {
        let path = || files::path(&settings.directory, *number);
        let mut window = Window::new(WINDOW_BYTES);
        let Some(file) = files.get(*number) else { continue };
        let header = match read_header(&*file, *number, 0, &mut window).await {
            Ok(Ok(header)) => header,
            // What is wrong with it is told later.
            Ok(Err(_)) | Err(_) if *number < needed_from => continue,
            Ok(Err(Flaw::NewerVersion(version))) => {
                return Err(OpenError::NewerVersion { file: path(), version });
            }
            Ok(Err(_)) => continue,
            Err(error) => {
                return Err(OpenError::Io { what: format!("read {}", path().display()), error });
            }
        };
        match known {
            None => known = Some(header),
            Some(first) if first.journal_id == header.journal_id => {}
            Some(_) => return Err(OpenError::Foreign { file: path() }),
        }
    }
    if let Some(header) = known
        && header.file_bytes != settings.file_bytes
    {
        tracing::info!(
            "the journal in {} keeps its files of {} bytes",
            settings.directory.display(),
            header.file_bytes
        );
        settings.file_bytes = header.file_bytes;
    }
    Ok(known.map(|header| header.journal_id))
}

/// The header at `position`, if header and directory are sound.
async fn read_header<F: File>(
    file: &F,
    number: u64,
    position: u64,
    window: &mut Window,
) -> std::io::Result<Result<GroupHeader, Flaw>> {
    if position + BLOCK_BYTES as u64 > file.len() {
        return Ok(Err(Flaw::NoGroup));
    }
    let header = match GroupHeader::read(window.bytes(file, number, position, HEADER_BYTES).await?)
    {
        Ok(header) => header,
        Err(flaw) => return Ok(Err(flaw)),
    };
    if position + u64::from(header.length) > file.len() {
        return Ok(Err(Flaw::Lengths));
    }
    let group = window.bytes(file, number, position, header.length as usize).await?;
    Ok(header.check(group).map(|()| header))
}

/// Where the journal goes on.
#[derive(Clone, Copy)]
struct Head {
    number: u64,
    address: u64,
}

/// Makes sure that the head's file is there with room for a first group.
async fn prepare_head<I: Io>(
    io: &I,
    settings: &Settings,
    files: &mut Files<I::File>,
    head: &Head,
) -> Result<(), OpenError> {
    let path = files::path(&settings.directory, head.number);
    let failed = |error| OpenError::Io { what: format!("prepare {}", path.display()), error };
    if files.get(head.number).is_none() {
        let file = io.open(&path, OpenHow::CreateNew).await.map_err(failed)?;
        files.insert(head.number, file);
    }
    let file = files.get(head.number).unwrap_or_else(|| unreachable!("inserted above"));
    let wanted = FIRST_FILE_BYTES.min(settings.file_bytes);
    if file.len() < wanted {
        match file.allocate(wanted).await {
            // What is there may be enough to start, and to delete something.
            Err(error) if is_no_space(&error) => {
                tracing::warn!("{} gets no more space yet: {error}", path.display());
            }
            outcome => outcome.map_err(failed)?,
        }
    }
    Ok(())
}

fn space_at<F: File>(settings: &Settings, files: &Files<F>, head: &Head) -> Space {
    let file_bytes = settings.file_bytes;
    let allocated = |number: u64| {
        let length = files.get(number)?.len().min(file_bytes);
        let length = length / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        (length > 0).then_some(number * file_bytes + length)
    };
    Space {
        file_bytes,
        head: head.address,
        began: head.address,
        allocated: allocated(head.number).unwrap_or(head.address),
        next_allocated: allocated(head.number + 1),
        wanted: 0,
        is_beyond_wanted: false,
        refusal: None,
    }
}

/// What was found in files that are not needed.
#[derive(Clone, Copy)]
struct Passed {
    /// The greatest sequence seen.
    highest: u64,
    /// The last group and where it ends, if all come one behind the other.
    end: Option<(u64, Head)>,
}

/// The walk over the files.
struct Scan<'a, F> {
    settings: &'a Settings,
    files: &'a Files<F>,
    journal_id: Option<u64>,
    /// Where the oldest file begins.
    first_address: u64,
    /// The last valid group's, 0 as long as there is none.
    sequence: u64,
    /// The greatest sequence seen in any group of this journal.
    highest: u64,
    /// The group before the first accepted one, by its number.
    began_behind: u64,
    /// Accepted groups that no accepted group says to be durable.
    unproven: VecDeque<GroupHeader>,
    /// Files that were left for the next one, and where their groups end.
    ends: Vec<(u64, u64)>,
}

/// What stands at an address.
enum Found {
    Group(GroupHeader),
    Bad(Flaw),
    EndOfFile,
}

/// A place where the prefix may end.
#[derive(Clone, Copy)]
struct End {
    number: u64,
    address: u64,
    /// `None` where the file ends.
    flaw: Option<Flaw>,
}

impl<'a, F: File> Scan<'a, F> {
    /// A walk that begins with the file `first`.
    fn of(
        settings: &'a Settings,
        files: &'a Files<F>,
        journal_id: Option<u64>,
        first: Option<&u64>,
    ) -> Scan<'a, F> {
        Scan {
            settings,
            files,
            journal_id,
            first_address: first.map_or(0, |first| first * settings.file_bytes),
            sequence: 0,
            highest: 0,
            began_behind: 0,
            unproven: VecDeque::new(),
            ends: Vec::new(),
        }
    }

    /// Looks through files that are not needed, and tells what is wrong with them.
    async fn pass_over(mut self, numbers: &[u64], needed_from: u64) -> Option<Passed> {
        let (first, last) = (numbers.first()?, numbers.last()?);
        let lacks_last = || (last + 1 < needed_from).then_some(last + 1);
        let outcome = match range::hole(numbers).or_else(lacks_last) {
            Some(number) => Err(OpenError::Missing { file: self.path(number) }),
            None => self.run(*first, *last, &mut |_| {}).await,
        };
        if let Err(error) = &outcome {
            match error.place() {
                Some(place) => tell_unneeded(&place),
                None => tell_unneeded(error),
            }
        }
        let end = outcome.ok().map(|head| (self.sequence, head));
        Some(Passed { highest: self.highest, end })
    }

    /// Tells whether the last groups of the files that were passed over are gone: the first one
    /// behind them knows how far they went.
    fn tell_what_lacks_before(&self, passed: Option<Passed>) {
        let Some((sequence, head)) = passed.and_then(|passed| passed.end) else { return };
        if self.began_behind > sequence {
            let position = head.address % self.settings.file_bytes;
            let path = self.path(head.number);
            tell_unneeded(&format!("{} is damaged at byte {position}", path.display()));
        }
    }

    /// Replays everything valid; returns where the journal goes on.
    async fn run(
        &mut self,
        first: u64,
        last: u64,
        replay: &mut dyn FnMut(Replayed<'_>),
    ) -> Result<Head, OpenError> {
        let mut number = first;
        let mut address = self.first_address;
        let mut window = Window::new(WINDOW_BYTES);
        loop {
            let flaw = match self.at(address, number, &mut window).await? {
                Found::Group(header) if self.follows(&header) => {
                    match self.take(&header, number, &mut window, replay).await? {
                        Ok(()) => {
                            address += u64::from(header.length);
                            continue;
                        }
                        Err(flaw) => Some(flaw),
                    }
                }
                Found::Group(_) => Some(Flaw::NoGroup),
                Found::Bad(flaw) => Some(flaw),
                Found::EndOfFile => None,
            };
            let end = End { number, address, flaw };
            self.check_nothing_lost(end, number..=number).await?;
            if number == last || !self.goes_on_in(number + 1, &mut window).await? {
                self.check_nothing_lost(end, number + 1..=last).await?;
                return Ok(Head { number, address });
            }
            self.ends.push((number, address));
            number += 1;
            address = number * self.settings.file_bytes;
        }
    }

    /// Whether a sound group comes directly after the last accepted one. What lies before the
    /// first file is released and not known.
    fn follows(&self, header: &GroupHeader) -> bool {
        let is_first = self.sequence == 0 && header.address == self.first_address;
        is_first || header.previous == self.sequence
    }

    /// Whether a group of this sequence can stand behind the last accepted one: further on, no
    /// group's header could name the one before it.
    fn may_come(&self, sequence: u64) -> bool {
        let known = self.sequence > 0;
        sequence > self.sequence && !(known && sequence - self.sequence > SEQUENCE_STEP_MAX)
    }

    /// Replays a group that follows.
    async fn take(
        &mut self,
        header: &GroupHeader,
        number: u64,
        window: &mut Window,
        replay: &mut dyn FnMut(Replayed<'_>),
    ) -> Result<Result<(), Flaw>, OpenError> {
        let position = header.address - number * self.settings.file_bytes;
        let group = self.group(header, number, window).await?;
        if let Some(kind) = header.unknown_kind(group) {
            return Err(OpenError::NewerKind { file: self.path(number), position, kind });
        }
        let outcome = deliver(header, group, replay);
        if outcome.is_ok() {
            if self.sequence == 0 {
                self.began_behind = header.previous;
            }
            self.journal_id = Some(header.journal_id);
            self.sequence = header.sequence;
            self.highest = self.highest.max(header.sequence);
            let proven = self.unproven.partition_point(|group| group.sequence <= header.flushed);
            self.unproven.drain(..proven);
            self.unproven.push_back(*header);
        }
        Ok(outcome)
    }

    async fn write_unproven_again(&self) -> Result<(), OpenError> {
        for group in &self.unproven {
            let number = group.address / self.settings.file_bytes;
            let position = group.address % self.settings.file_bytes;
            let Some(file) = self.files.get(number) else { continue };
            let bytes = file.read_at(position, group.length as usize).await;
            let bytes = bytes.map_err(self.failed_to_read(number))?.freeze();
            file.write_at(position, bytes, Durability::Flushed).await.map_err(|error| {
                let what = format!("write {} once more", self.path(number).display());
                OpenError::Io { what, error }
            })?;
        }
        Ok(())
    }

    /// Whether a file begins with the group that followed the last valid one.
    async fn goes_on_in(&self, number: u64, window: &mut Window) -> Result<bool, OpenError> {
        let found = self.at(number * self.settings.file_bytes, number, window).await?;
        Ok(matches!(found, Found::Group(header) if self.follows(&header)))
    }

    /// The group that should stand at `address`, if it does.
    async fn at(&self, address: u64, number: u64, window: &mut Window) -> Result<Found, OpenError> {
        let Some(file) = self.files.get(number) else { return Ok(Found::EndOfFile) };
        let position = address - number * self.settings.file_bytes;
        let failed = self.failed_to_read(number);
        let length = file.len().min(self.settings.file_bytes);
        if position + BLOCK_BYTES as u64 > length {
            return Ok(Found::EndOfFile);
        }
        let start = window.bytes(&*file, number, position, HEADER_BYTES).await.map_err(&failed)?;
        let ours = self.journal_id.is_none() || GroupHeader::journal_of(start) == self.journal_id;
        let header = match GroupHeader::read(start) {
            _ if !ours => return Ok(Found::Bad(Flaw::NoGroup)),
            Ok(header) => header,
            Err(Flaw::NewerVersion(version)) if self.journal_id.is_some() => {
                return Err(OpenError::NewerVersion { file: self.path(number), version });
            }
            Err(flaw) => return Ok(Found::Bad(flaw)),
        };
        if header.address != address || !self.may_come(header.sequence) {
            return Ok(Found::Bad(Flaw::NoGroup));
        }
        let header = read_header(&*file, number, position, window).await.map_err(&failed)?;
        Ok(header.map_or_else(Found::Bad, Found::Group))
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
        let failed = self.failed_to_read(number);
        window.bytes(&*file, number, position, header.length as usize).await.map_err(failed)
    }

    /// Looks in `files`, from the end of the prefix on, for a group which says that what stood
    /// there was durable. Every block is looked at, also those inside dropped groups: a newer group
    /// may have been written over the middle of an older one.
    async fn check_nothing_lost(
        &mut self,
        end: End,
        files: RangeInclusive<u64>,
    ) -> Result<(), OpenError> {
        let mut window = Window::new(WINDOW_BYTES);
        for number in files {
            let start = number * self.settings.file_bytes;
            let length = self.files.get(number).map_or(0, |file| file.len());
            let mut address = if number == end.number { end.address } else { start };
            while address + BLOCK_BYTES as u64 <= start + length.min(self.settings.file_bytes) {
                if let Found::Group(header) = self.at(address, number, &mut window).await? {
                    self.highest = self.highest.max(header.sequence);
                    if header.flushed > self.sequence {
                        return Err(self.damage(end, number).await);
                    }
                }
                address += BLOCK_BYTES as u64;
            }
        }
        Ok(())
    }

    /// What is damaged, when a group in the file `proof` shows that something is.
    async fn damage(&self, end: End, proof: u64) -> OpenError {
        let mut window = Window::new(WINDOW_BYTES);
        // A file that ends well was followed by one whose beginning is bad. Where that is not, the
        // group before it is gone.
        let next = end.number + 1;
        let after = self.at(next * self.settings.file_bytes, next, &mut window).await;
        let ends_well =
            matches!(end.flaw, None | Some(Flaw::NoGroup)) && !matches!(after, Ok(Found::Group(_)));
        let (number, position, flaw) = if ends_well && proof > end.number {
            (end.number + 1, 0, self.flaw_at(end.number + 1, &mut window).await)
        } else {
            let position = end.address - end.number * self.settings.file_bytes;
            (end.number, position, end.flaw.unwrap_or(Flaw::NoGroup))
        };
        let address = number * self.settings.file_bytes + position;
        OpenError::Damaged(Damage {
            file: self.path(number),
            position,
            flaw: flaw.to_string(),
            partitions: self.partitions_at(address, number, &mut window).await,
        })
    }

    async fn flaw_at(&self, number: u64, window: &mut Window) -> Flaw {
        match self.at(number * self.settings.file_bytes, number, window).await {
            Ok(Found::Bad(flaw)) => flaw,
            _ => Flaw::NoGroup,
        }
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

    fn path(&self, number: u64) -> PathBuf {
        files::path(&self.settings.directory, number)
    }

    fn failed_to_read(&self, number: u64) -> impl Fn(std::io::Error) -> OpenError + use<F> {
        let what = format!("read {}", self.path(number).display());
        move |error| OpenError::Io { what: what.clone(), error }
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
