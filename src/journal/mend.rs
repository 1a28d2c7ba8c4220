//! Mending a damaged journal that no node uses: finds the groups that were one behind the other,
//! and what is broken between them, and makes the changes with which recovery goes through again.
//!
//!     | group 1 | group 2 | damaged ... | group 5 |        group 5 names group 4: two are lost
//!                         | filler 4     |        ► new    what is lost is told in a new group
//!
//! A filler has the number of the last lost group and holds what of the lost ones is sound. Where
//! groups are lost in several files, each of these gets a filler.
//! Blocking, for `corelog repair`.
//!
//! Invariants
//!   M1  Sound groups are not touched, and neither is a journal in which nothing was surely durable
//!       behind the first bad place: that is a torn write, which recovery drops by itself.
//!   M2  What is planned is what is written, and it is planned before anything is written.
//!   M3  Nothing of lost groups is left behind a filler: to recovery it would prove another loss.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::inspect::{Met, walk_in};
use super::layout::{self, Entry, Flaw, GroupHeader, HEADER_BYTES};
use super::range::{self, Said};
use super::{Location, Replayed, files};
use crate::base::ids::Offset;
use crate::io::BLOCK_BYTES;
use crate::io::around::Around;
use crate::wire::records;

/// Sequence numbers left out before the new group, as at a start.
const SEQUENCE_GAP: u64 = 1 << 16;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// A place in which something that was durable is missing.
#[derive(Debug)]
pub struct Break {
    pub file: PathBuf,
    pub position: u64,
    pub flaw: String,
    /// What the directories of lost groups name, and one past the last offset, where it is known.
    pub named: Vec<(Entry, Option<Offset>)>,
    /// Of those, what is sound, by the number of its file.
    kept: BTreeMap<u64, Vec<(Entry, Vec<u8>)>>,
    /// The groups before and behind, by their place in the chain.
    before: Option<usize>,
    behind: usize,
}

#[derive(Clone, Copy, Debug)]
struct Group {
    header: GroupHeader,
    is_sound: bool,
}

/// Bytes to be written at a place in a file.
#[derive(Debug)]
pub struct Patch {
    pub file: PathBuf,
    pub position: u64,
    pub bytes: Vec<u8>,
}

/// What a journal's files hold.
pub struct Survey {
    directory: PathBuf,
    journal_id: u64,
    file_bytes: u64,
    first: u64,
    /// Sound groups, each behind the one before it but for the breaks.
    chain: Vec<Group>,
    pub breaks: Vec<Break>,
    /// Files that were made behind the last one that is there.
    pub missing_tail: Vec<PathBuf>,
    newest: u64,
}

impl Survey {
    /// Looks at all files of a core's journal; `None` if there is none.
    pub fn of(directory: &Path) -> Result<Option<Survey>, String> {
        let Some((numbers, first, missing_tail)) = look(directory)? else { return Ok(None) };
        let Some((journal_id, file_bytes)) = identify(directory, &numbers, first)? else {
            return Err(format!(
                "no file in {} begins with a sound group: the journal cannot be told from other \
                 bytes; restore it from a copy",
                directory.display()
            ));
        };
        let mut groups: BTreeMap<u64, Group> = BTreeMap::new();
        for number in numbers.iter().filter(|number| **number >= first) {
            let path = files::path(directory, *number);
            let start = number * file_bytes;
            let (mut newest, mut hidden) = (None, None);
            let mut note = |met: Met<'_>| match met {
                Met::Group { position, header } => {
                    let is_ours = header.journal_id == journal_id;
                    newest = (is_ours && header.address == start + position).then_some(header);
                    if let Some(header) = newest {
                        let before =
                            groups.insert(header.sequence, Group { header, is_sound: true });
                        hidden = before.filter(|group| group.is_sound);
                    }
                }
                Met::Damage { position, .. } => {
                    if let Some(header) = newest.filter(|h| h.address == start + position)
                        && let Some(group) = groups.get_mut(&header.sequence)
                        && group.header.address == header.address
                    {
                        group.is_sound = false;
                        // A filler with the number of a lost group that is left behind it.
                        *group = hidden.take().unwrap_or(*group);
                    }
                }
                Met::Entry { .. } | Met::Gap { .. } => {}
            };
            let walked = Around::open(&path).and_then(|mut file| {
                let length = file.length();
                walk_in(&mut file, length, &mut note)
            });
            walked.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        }
        let newest = groups.keys().next_back().copied().unwrap_or(0);
        let directory = directory.to_owned();
        let (chain, breaks) = (Vec::new(), Vec::new());
        let mut survey = Survey {
            directory,
            journal_id,
            file_bytes,
            first,
            chain,
            breaks,
            missing_tail,
            newest,
        };
        survey.link(&groups)?;
        Ok(Some(survey))
    }

    /// Follows the groups from the newest one to the oldest, and says where one is missing.
    fn link(&mut self, groups: &BTreeMap<u64, Group>) -> Result<(), String> {
        let first_address = self.first * self.file_bytes;
        let mut sound = groups.values().filter(|group| group.is_sound);
        let Some(mut current) = sound.next_back().copied() else { return Ok(()) };
        let mut chain = vec![current];
        let mut holes = Vec::new();
        while current.header.address != first_address {
            let end = current.header.address;
            let fits =
                |g: &&Group| g.is_sound && g.header.address + u64::from(g.header.length) <= end;
            if let Some(before) = groups.get(&current.header.previous).filter(|g| fits(g)) {
                current = *before;
            } else {
                holes.push(chain.len());
                let older = groups.range(..current.header.sequence).rev().map(|(_, group)| group);
                let Some(before) = older.into_iter().find(|g| fits(g)) else { break };
                current = *before;
            }
            chain.push(current);
        }
        let count = chain.len();
        chain.reverse();
        self.chain = chain;
        for hole in holes.into_iter().rev() {
            let behind = count - hole;
            let last = behind.checked_sub(1).and_then(|at| self.chain.get(at));
            let reached = last.map_or(0, |group| group.header.sequence);
            let proven = self.chain.iter().skip(behind).any(|g| g.header.flushed > reached);
            if !proven {
                // A torn write and what came behind it (M1).
                self.chain.truncate(behind);
                break;
            }
            let found = self.describe(groups, behind)?;
            self.breaks.push(found);
        }
        Ok(())
    }

    fn describe(&self, groups: &BTreeMap<u64, Group>, behind: usize) -> Result<Break, String> {
        let before = behind.checked_sub(1);
        let last = before.and_then(|at| self.chain.get(at)).map(|group| group.header);
        let next = self.chain.get(behind).ok_or("a break is in front of a group")?.header;
        let from = last.map_or(self.first * self.file_bytes, |l| l.address + u64::from(l.length));
        let number = from / self.file_bytes;
        // A file that was left ends well; then the damage is at the beginning of the next one.
        let in_next = next.address / self.file_bytes != number
            && next.address % self.file_bytes != 0
            && last.is_some_and(|last| next.previous == last.sequence + 1);
        // In front of everything, nothing says that this file was left.
        let from_number = if last.is_some() { number + 1 } else { number };
        let missing = (from_number..next.address / self.file_bytes)
            .find(|number| !files::path(&self.directory, *number).exists());
        let place = match missing {
            Some(missing) => missing * self.file_bytes,
            None if in_next => (number + 1) * self.file_bytes,
            None => from,
        };
        let file = files::path(&self.directory, place / self.file_bytes);
        let position = place % self.file_bytes;
        let mut named = Vec::new();
        let mut kept: BTreeMap<u64, Vec<_>> = BTreeMap::new();
        let reached = last.map_or(0, |last| last.sequence);
        let lost = groups.range(reached + 1..next.sequence).filter(|(_, group)| {
            (from..next.address).contains(&group.header.address) && !group.is_sound
        });
        for (_, group) in lost {
            let bytes = self.read(&group.header)?;
            named.extend(group.header.named(&bytes));
            let sound = group.header.entries(&bytes).flatten();
            let sound = sound.map(|(entry, _, body)| (entry, body.to_vec()));
            kept.entry(group.header.address / self.file_bytes).or_default().extend(sound);
        }
        let flaw = flaw_at(&file, position);
        Ok(Break { file, position, flaw, named, kept, before, behind })
    }

    fn read(&self, header: &GroupHeader) -> Result<Vec<u8>, String> {
        let path = files::path(&self.directory, header.address / self.file_bytes);
        let told = |error: io::Error| format!("cannot read {}: {error}", path.display());
        let mut file = Around::open(&path).map_err(told)?;
        let mut bytes = vec![0; header.length as usize];
        file.read_exact_at(&mut bytes, header.address % self.file_bytes).map_err(told)?;
        Ok(bytes)
    }

    /// Everything that is sound, in order.
    pub fn replay(&self, visit: &mut dyn FnMut(Replayed<'_>)) -> Result<(), String> {
        for (at, group) in self.chain.iter().enumerate() {
            for broken in self.breaks.iter().filter(|broken| broken.behind == at) {
                for (entry, body) in broken.kept.values().flatten() {
                    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
                    let location = Location { address: group.header.address, length };
                    visit(Replayed { entry: *entry, location, body });
                }
            }
            let bytes = self.read(&group.header)?;
            for (entry, place, body) in group.header.entries(&bytes).flatten() {
                let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
                let address = group.header.address + u64::from(place);
                visit(Replayed { entry, location: Location { address, length }, body });
            }
        }
        Ok(())
    }

    /// Whether something is missing that was durable.
    pub fn is_damaged(&self) -> bool {
        !self.breaks.is_empty() || !self.missing_tail.is_empty()
    }

    /// The changes with which recovery goes through, and replays `entries` last.
    pub fn plan(&self, entries: &[(Entry, Vec<u8>)]) -> Result<Vec<Patch>, String> {
        let mut patches = Vec::new();
        // Without a group in them, they are as they were made.
        for file in &self.missing_tail {
            let bytes = vec![0; BLOCK_BYTES];
            patches.push(Patch { file: file.clone(), position: 0, bytes });
        }
        for broken in &self.breaks {
            patches.extend(self.fill(broken)?);
        }
        if !entries.is_empty() {
            patches.push(self.append(entries)?);
        }
        Ok(patches)
    }

    /// Groups in the place of the lost ones.
    fn fill(&self, broken: &Break) -> Result<Vec<Patch>, String> {
        let last = broken.before.and_then(|at| self.chain.get(at)).map(|group| group.header);
        let next = self.chain.get(broken.behind).ok_or("a break is in front of a group")?.header;
        let places = self.places(last, next)?;
        let count = places.len();
        let in_front = next.previous.saturating_sub(count as u64);
        let mut previous = last.map_or(in_front, |last| last.sequence);
        let flushed = last.map_or(0, |last| last.flushed);
        let mut patches = Vec::new();
        for (at, (address, limit)) in places.into_iter().enumerate() {
            let is_last = at + 1 == count;
            let sequence = if is_last { next.previous } else { previous + 1 };
            let kept = broken.kept.get(&(address / self.file_bytes));
            let kept = kept.map(Vec::as_slice).unwrap_or_default();
            let reaches = address / self.file_bytes == next.address / self.file_bytes;
            let length = if reaches { limit - address } else { bytes_of(kept) };
            if sequence <= previous || bytes_of(kept) > length || address + length > limit {
                return Err(self.hopeless(&broken.file));
            }
            let ids = (sequence, previous, flushed);
            let mut patch = self.group(address, length, ids, kept)?;
            let end = self.left_until(address + length, limit)?;
            let bytes = usize::try_from(end - address).map_err(|_| self.hopeless(&broken.file))?;
            patch.bytes.resize(bytes, 0);
            patches.push(patch);
            previous = sequence;
        }
        Ok(patches)
    }

    /// Where fillers between two groups begin, one in each file, and how far each may reach.
    fn places(
        &self,
        last: Option<GroupHeader>,
        next: GroupHeader,
    ) -> Result<Vec<(u64, u64)>, String> {
        let from = last.map_or(self.first * self.file_bytes, |l| l.address + u64::from(l.length));
        let first = from / self.file_bytes;
        let end_of_file = ((first + 1) * self.file_bytes).min(next.address);
        let starts = (first + 1..).map(|number| number * self.file_bytes);
        let mut places: Vec<(u64, u64)> = starts
            .take_while(|start| *start < next.address)
            .map(|start| (start, next.address.min(start + self.file_bytes)))
            .collect();
        // A file that ended well lacks nothing, and may leave no number for a filler.
        let lost = last.map_or(u64::MAX, |last| next.previous.saturating_sub(last.sequence));
        let is_one_more = lost > places.len() as u64;
        let lacks = places.is_empty()
            || last.is_none()
            || (is_one_more && self.left_until(from, end_of_file)? > from);
        if lacks {
            places.insert(0, (from, end_of_file));
        }
        Ok(places)
    }

    /// Where the last block between two places of a file ends with which a group of this journal
    /// seems to begin, or which cannot be read.
    fn left_until(&self, from: u64, limit: u64) -> Result<u64, String> {
        if from >= limit {
            return Ok(from);
        }
        let path = files::path(&self.directory, from / self.file_bytes);
        let told = |error: io::Error| format!("cannot read {}: {error}", path.display());
        let mut file = match Around::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(from),
            opened => opened.map_err(told)?,
        };
        let start = from - from % self.file_bytes;
        let (mut left, mut at) = (from, from);
        let mut block = vec![0; BLOCK_BYTES];
        while at + BLOCK <= limit.min(start + file.length()) {
            let position = at - start;
            file.read_exact_at(&mut block, position).map_err(told)?;
            // As recovery looks at it; what the file held before it was used again is no group.
            let is_group = GroupHeader::journal_of(&block) == Some(self.journal_id)
                && match GroupHeader::read(&block) {
                    Ok(header) => header.address == at,
                    Err(flaw) => matches!(flaw, Flaw::NewerVersion(_)),
                };
            at += BLOCK;
            if is_group || file.is_unread(position, position + BLOCK) {
                left = at;
            }
        }
        Ok(left)
    }

    /// A new group behind the last one.
    fn append(&self, entries: &[(Entry, Vec<u8>)]) -> Result<Patch, String> {
        let last = self.chain.last().ok_or_else(|| self.hopeless(&self.directory))?.header;
        let length = bytes_of(entries);
        let mut address = last.address + u64::from(last.length);
        let end_of_file = (last.address / self.file_bytes + 1) * self.file_bytes;
        if address + length > end_of_file {
            address = end_of_file;
        }
        if length > self.file_bytes {
            return Err(self.hopeless(&self.directory));
        }
        let ids = (self.newest + SEQUENCE_GAP, last.sequence, last.sequence);
        self.group(address, length, ids, entries)
    }

    fn group(
        &self,
        address: u64,
        length: u64,
        (sequence, previous, flushed): (u64, u64, u64),
        entries: &[(Entry, Vec<u8>)],
    ) -> Result<Patch, String> {
        let file = files::path(&self.directory, address / self.file_bytes);
        let number = |value: usize| u32::try_from(value).map_err(|_| self.hopeless(&file));
        let mut bytes = vec![0; HEADER_BYTES];
        let mut directory = Vec::new();
        for (entry, body) in entries {
            bytes.extend_from_slice(body);
            layout::put_entry(&mut directory, entry, body);
        }
        let directory_at = number(bytes.len())?;
        bytes.resize(usize::try_from(length).map_err(|_| self.hopeless(&file))?, 0);
        let header = GroupHeader {
            journal_id: self.journal_id,
            sequence,
            address,
            length: number(bytes.len())?,
            directory_at,
            entries: number(entries.len())?,
            flushed,
            previous,
            file_bytes: self.file_bytes,
        };
        header.seal(&mut bytes, &directory);
        Ok(Patch { file, position: address % self.file_bytes, bytes })
    }

    fn hopeless(&self, place: &Path) -> String {
        format!(
            "the journal in {} is too damaged at {} to be mended: restore it from a copy",
            self.directory.display(),
            place.display()
        )
    }
}

impl Patch {
    /// Writes it, durably.
    pub fn apply(&self) -> io::Result<()> {
        let file = fs::File::options().create(true).truncate(false).write(true).open(&self.file)?;
        file.write_all_at(&self.bytes, self.position)?;
        file.sync_all()
    }
}

/// The numbers of the files that are there, the first that there should be, and the paths of those
/// that there should be behind the last; `None` if there is nothing.
type Look = Option<(Vec<u64>, u64, Vec<PathBuf>)>;

fn look(directory: &Path) -> Result<Look, String> {
    let told = |error: io::Error| format!("cannot read {}: {error}", directory.display());
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory).map_err(told)? {
        let name = entry.map_err(told)?.file_name();
        numbers.extend(name.to_str().and_then(files::number));
    }
    numbers.sort_unstable();
    let named = match range::of(directory).map_err(told)? {
        Said::Range(range, _) => range.first..range.end,
        Said::Nothing | Said::Damaged => 0..0,
        Said::Newer(version) => return Err(newer(&range::path(directory), version)),
    };
    let Some(first) = numbers.first().copied() else {
        if named.is_empty() {
            return Ok(None);
        }
        let file = files::path(directory, named.start);
        return Err(format!("{} is missing, and so are all others: restore them", file.display()));
    };
    let last = numbers.last().copied().unwrap_or(first);
    let missing_tail =
        ((last + 1).max(named.start)..named.end).map(|number| files::path(directory, number));
    let missing_tail: Vec<PathBuf> = missing_tail.collect();
    // What is before them, nobody needs.
    let first = if named.is_empty() { first } else { named.start };
    Ok(Some((numbers, first, missing_tail)))
}

/// The journal's id and its file size, by the first sound group with which a file begins.
fn identify(
    directory: &Path,
    numbers: &[u64],
    first_needed: u64,
) -> Result<Option<(u64, u64)>, String> {
    let mut known = None;
    for number in numbers {
        let path = files::path(directory, *number);
        let told = |error: io::Error| format!("cannot read {}: {error}", path.display());
        let mut file = Around::open(&path).map_err(told)?;
        let length = file.length();
        let mut header = [0; HEADER_BYTES];
        if length < BLOCK {
            continue;
        }
        file.read_exact_at(&mut header, 0).map_err(told)?;
        let header = match GroupHeader::read(&header) {
            Ok(header) if u64::from(header.length) <= length => header,
            Err(Flaw::NewerVersion(version)) if *number >= first_needed => {
                return Err(newer(&path, version));
            }
            _ => continue,
        };
        let mut group = vec![0; header.length as usize];
        file.read_exact_at(&mut group, 0).map_err(told)?;
        if header.check(&group).is_ok() {
            known.get_or_insert((header.journal_id, header.file_bytes));
        }
    }
    Ok(known)
}

fn newer(path: &Path, version: u16) -> String {
    format!("{} has format {version}, which a newer Corelog wrote: use that one", path.display())
}

/// What is wrong at a place where a group should be.
fn flaw_at(path: &Path, position: u64) -> String {
    let look = || -> io::Result<Option<Flaw>> {
        let file = fs::File::open(path)?;
        let mut start = [0; HEADER_BYTES];
        if is_at_end(file.read_exact_at(&mut start, position))? {
            return Ok(None);
        }
        let header = match GroupHeader::read(&start) {
            Ok(header) => header,
            Err(flaw) => return Ok(Some(flaw)),
        };
        let mut group = vec![0; header.length as usize];
        if is_at_end(file.read_exact_at(&mut group, position))? {
            return Ok(Some(Flaw::Lengths));
        }
        let found = header.check(&group).err();
        Ok(found.or_else(|| header.entries(&group).find_map(Result::err)).or(Some(Flaw::NoGroup)))
    };
    match look() {
        Ok(Some(flaw)) => flaw.to_string(),
        Ok(None) => "the file ends here".into(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => "the file is missing".into(),
        Err(error) => format!("it cannot be read: {error}"),
    }
}

fn is_at_end(read: io::Result<()>) -> io::Result<bool> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(true),
        read => read.map(|()| false),
    }
}

fn bytes_of(entries: &[(Entry, Vec<u8>)]) -> u64 {
    let bodies: usize = entries.iter().map(|(_, body)| body.len()).sum();
    let bytes = HEADER_BYTES + bodies + entries.len() * layout::DIRECTORY_ENTRY_BYTES;
    (bytes as u64).next_multiple_of(BLOCK)
}

impl GroupHeader {
    /// What a sound directory names whose bodies need not be, and one past the last offset.
    fn named(&self, group: &[u8]) -> Vec<(Entry, Option<Offset>)> {
        let mut at = HEADER_BYTES;
        let mut named = Vec::new();
        for (entry, length) in self.directory_entries(group) {
            let body = group.get(at..at + length).unwrap_or_default();
            at += length;
            named.push((entry, end_of(&entry, body)));
        }
        named
    }
}

/// One past the last offset of an entry that may be damaged, where that is known: of what its
/// batches say, nothing counts that one flipped byte could have made up.
fn end_of(entry: &Entry, body: &[u8]) -> Option<Offset> {
    let mut next = entry.base_offset;
    for (header, batch) in records::batches(body) {
        let offsets = Offset::from(header.last_offset_delta) + 1;
        let is_sound = header.crc == records::crc(batch);
        if offsets <= 0 || !(is_sound || Offset::from(header.count) == offsets) {
            break;
        }
        next = next.saturating_add(offsets);
    }
    (next > entry.base_offset).then_some(next)
}
