//! A commit group's bytes.
//!
//!     0          64                          directory        padding to 4096
//!     | header   | body | body | ... | body  | entry | entry | 0 ... |
//!
//! The directory stands behind the bodies, because its size is known only when the group is
//! sealed, and the group is one contiguous write that is never copied again.
//!
//! Invariants
//!   Y1  The header's CRC-32 covers header and directory; a body is covered by its own checksum
//!       (a record batch's CRC-32C, or the directory entry's CRC-32 for every other kind).
//!   Y2  What the batch's own CRC does not cover (base offset, length, epoch, magic) is compared
//!       with the directory.
//!   Y3  A group knows its journal, its address and the group before it: one left over in a
//!       recycled file, or one whose predecessor was lost, is no group.

use std::fmt;

use crate::base::ids::{Epoch, Offset, PartitionId, TopicNumber};
use crate::io::BLOCK_BYTES;
use crate::wire::records;

/// Bytes of a group's header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of a directory entry.
pub const DIRECTORY_ENTRY_BYTES: usize = 32;
/// The format that this program writes.
pub const VERSION: u16 = 1;

const MAGIC: u32 = 0x434c_4731; // "CLG1"
const CRC_AT: usize = 44;

/// What an entry is. Numbers are on disk for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryKind {
    /// Record batches of one partition, back to back.
    Batches = 1,
    /// Metadata commands; of no partition.
    Metadata = 2,
    /// The partition's log begins at the entry's base offset (DeleteRecords).
    LogStart = 3,
    /// A partition's state apart from its records: what stands here replaces what was before.
    Checkpoint = 4,
    /// Record batches that were in the journal before, moved ahead so that an old file is free.
    Carried = 5,
}

impl EntryKind {
    fn from_u8(number: u8) -> Option<EntryKind> {
        use EntryKind::{Batches, Carried, Checkpoint, LogStart, Metadata};
        let all = [Batches, Metadata, LogStart, Checkpoint, Carried];
        all.into_iter().find(|kind| *kind as u8 == number)
    }

    pub fn name(self) -> &'static str {
        match self {
            EntryKind::Batches => "record batches",
            EntryKind::Metadata => "metadata",
            EntryKind::LogStart => "log start",
            EntryKind::Checkpoint => "checkpoint",
            EntryKind::Carried => "record batches carried on",
        }
    }

    /// Whether the body is record batches, which carry their own checksums.
    /// Whether its body is record batches.
    pub fn is_records(self) -> bool {
        matches!(self, EntryKind::Batches | EntryKind::Carried)
    }
}

/// The partition that entries of no partition carry.
pub const NO_PARTITION: PartitionId = PartitionId { topic: TopicNumber(u32::MAX), index: u32::MAX };

/// What the directory says of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub kind: EntryKind,
    pub partition: PartitionId,
    pub base_offset: Offset,
    pub epoch: Epoch,
}

/// A group's header as values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupHeader {
    pub journal_id: u64,
    pub sequence: u64,
    pub address: u64,
    /// The whole group with its padding.
    pub length: u32,
    pub directory_at: u32,
    pub entries: u32,
    /// The last group that was surely durable when the write of this one began.
    pub flushed: u64,
    /// The sequence of the group before this one.
    pub previous: u64,
    /// Bytes of each file of the journal: without it no address can be told from another.
    pub file_bytes: u64,
}

/// Why bytes are not the group that should be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// No group begins here: zeros, or something left over.
    NoGroup,
    /// A newer program wrote it.
    NewerVersion(u16),
    /// A length points outside the group.
    Lengths,
    HeaderCrc,
    UnknownKind(u8),
    /// The body at this index of the directory is not what the directory says.
    Body(u32),
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Flaw::NoGroup => write!(f, "no group begins here"),
            Flaw::NewerVersion(version) => {
                write!(f, "the group has format {version}, this program knows up to {VERSION}")
            }
            Flaw::Lengths => write!(f, "the group's lengths contradict each other"),
            Flaw::HeaderCrc => write!(f, "the checksum of header and directory is wrong"),
            Flaw::UnknownKind(kind) => write!(f, "an entry has the unknown kind {kind}"),
            Flaw::Body(index) => write!(f, "the checksum of entry {index} is wrong"),
        }
    }
}

impl GroupHeader {
    /// Writes header and directory into a sealed group, whose bodies and padding are in place.
    pub fn seal(&self, group: &mut [u8], directory: &[u8]) {
        let at = self.directory_at as usize;
        group[at..at + directory.len()].copy_from_slice(directory);
        group[at + directory.len()..].fill(0);
        let header = &mut group[..HEADER_BYTES];
        header.fill(0);
        header[..4].copy_from_slice(&MAGIC.to_le_bytes());
        header[4..6].copy_from_slice(&VERSION.to_le_bytes());
        header[8..16].copy_from_slice(&self.journal_id.to_le_bytes());
        header[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        header[24..32].copy_from_slice(&self.address.to_le_bytes());
        header[32..36].copy_from_slice(&self.length.to_le_bytes());
        header[36..40].copy_from_slice(&self.directory_at.to_le_bytes());
        header[40..44].copy_from_slice(&self.entries.to_le_bytes());
        header[48..56].copy_from_slice(&self.flushed.to_le_bytes());
        let file_blocks = u32::try_from(self.file_bytes / BLOCK_BYTES as u64).unwrap_or(u32::MAX);
        header[56..60].copy_from_slice(&file_blocks.to_le_bytes());
        let step = u32::try_from(self.sequence - self.previous).unwrap_or(u32::MAX);
        header[60..64].copy_from_slice(&step.to_le_bytes());
        let crc = header_crc(header, directory);
        group[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    }

    /// The header at the start of `bytes`, its lengths checked but not its CRC.
    pub fn read(bytes: &[u8]) -> Result<GroupHeader, Flaw> {
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(Flaw::NoGroup)?;
        if u32::from_le_bytes(part(header, 0)) != MAGIC {
            return Err(Flaw::NoGroup);
        }
        let version = u16::from_le_bytes(part(header, 4));
        if version > VERSION {
            return Err(Flaw::NewerVersion(version));
        }
        let sequence = u64::from_le_bytes(part(header, 16));
        let step = u64::from(u32::from_le_bytes(part(header, 60)));
        let file_blocks = u64::from(u32::from_le_bytes(part(header, 56)));
        let header = GroupHeader {
            journal_id: u64::from_le_bytes(part(header, 8)),
            sequence,
            address: u64::from_le_bytes(part(header, 24)),
            length: u32::from_le_bytes(part(header, 32)),
            directory_at: u32::from_le_bytes(part(header, 36)),
            entries: u32::from_le_bytes(part(header, 40)),
            flushed: u64::from_le_bytes(part(header, 48)),
            // The greatest step stands for all that are greater: nothing came before the group.
            previous: if step == u64::from(u32::MAX) { 0 } else { sequence.saturating_sub(step) },
            file_bytes: file_blocks * BLOCK_BYTES as u64,
        };
        let end = u64::from(header.entries) * DIRECTORY_ENTRY_BYTES as u64
            + u64::from(header.directory_at);
        let sound = (header.length as usize).is_multiple_of(BLOCK_BYTES)
            && header.directory_at as usize >= HEADER_BYTES
            && end <= u64::from(header.length)
            && header.file_bytes > 0
            && (1..=sequence).contains(&step);
        if sound { Ok(header) } else { Err(Flaw::Lengths) }
    }

    /// Checks the CRC of header and directory; `group` is the whole group.
    pub fn check(&self, group: &[u8]) -> Result<(), Flaw> {
        let mut header: [u8; HEADER_BYTES] = *group.first_chunk().ok_or(Flaw::Lengths)?;
        let found = u32::from_le_bytes(part(&header, CRC_AT));
        header[CRC_AT..CRC_AT + 4].fill(0);
        let directory = self.directory(group).ok_or(Flaw::Lengths)?;
        if header_crc(&header, directory) == found { Ok(()) } else { Err(Flaw::HeaderCrc) }
    }

    fn directory<'a>(&self, group: &'a [u8]) -> Option<&'a [u8]> {
        let at = self.directory_at as usize;
        group.get(at..at + self.entries as usize * DIRECTORY_ENTRY_BYTES)
    }

    /// The journal that bytes with a group's beginning name, whatever their version: the place of
    /// magic, version and journal id is the same in every format.
    pub fn journal_of(bytes: &[u8]) -> Option<u64> {
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        Some(u64::from_le_bytes(part(header, 8)))
    }

    /// A kind that this program does not know, in a group whose directory is sound.
    pub fn unknown_kind(&self, group: &[u8]) -> Option<u8> {
        let directory = self.directory(group).unwrap_or_default();
        let mut kinds = directory.chunks_exact(DIRECTORY_ENTRY_BYTES).filter_map(|e| e.first());
        kinds.find(|kind| EntryKind::from_u8(**kind).is_none()).copied()
    }

    /// The partitions that the directory names, whether or not the group is sound.
    pub fn partitions<'a>(&self, group: &'a [u8]) -> impl Iterator<Item = PartitionId> + use<'a> {
        let directory = self.directory(group).unwrap_or_default();
        let entries = directory.chunks_exact(DIRECTORY_ENTRY_BYTES).map(read_entry);
        entries.flatten().map(|(entry, ..)| entry.partition).filter(|id| *id != NO_PARTITION)
    }

    /// What the directory says of entries, with the bytes of each, whether or not they are sound.
    pub fn directory_entries<'a>(
        &self,
        group: &'a [u8],
    ) -> impl Iterator<Item = (Entry, usize)> + use<'a> {
        let directory = self.directory(group).unwrap_or_default();
        let entries = directory.chunks_exact(DIRECTORY_ENTRY_BYTES).map(read_entry);
        entries.flatten().map(|(entry, length, _)| (entry, length as usize))
    }

    /// The entries of a checked group: directory, place in the group, body.
    pub fn entries<'a>(
        &self,
        group: &'a [u8],
    ) -> impl Iterator<Item = Result<(Entry, u32, &'a [u8]), Flaw>> + use<'a> {
        let directory = self.directory(group).unwrap_or_default();
        let mut at = HEADER_BYTES;
        let end = self.directory_at as usize;
        directory.chunks_exact(DIRECTORY_ENTRY_BYTES).enumerate().map(move |(index, chunk)| {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            let (entry, length, crc) = read_entry(chunk)?;
            let body = group.get(at..at + length as usize).ok_or(Flaw::Body(index))?;
            let place = u32::try_from(at).map_err(|_| Flaw::Lengths)?;
            at += body.len();
            let sound = at <= end && body_is_sound(&entry, body, crc);
            if sound { Ok((entry, place, body)) } else { Err(Flaw::Body(index)) }
        })
    }
}

/// The directory form of an entry.
pub fn put_entry(directory: &mut Vec<u8>, entry: &Entry, body: &[u8]) {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let crc = if entry.kind.is_records() { 0 } else { crc32fast::hash(body) };
    directory.push(entry.kind as u8);
    directory.extend_from_slice(&[0; 3]);
    directory.extend_from_slice(&length.to_le_bytes());
    directory.extend_from_slice(&entry.partition.topic.0.to_le_bytes());
    directory.extend_from_slice(&entry.partition.index.to_le_bytes());
    directory.extend_from_slice(&entry.base_offset.to_le_bytes());
    directory.extend_from_slice(&entry.epoch.to_le_bytes());
    directory.extend_from_slice(&crc.to_le_bytes());
}

fn read_entry(chunk: &[u8]) -> Result<(Entry, u32, u32), Flaw> {
    let chunk: &[u8; DIRECTORY_ENTRY_BYTES] = chunk.first_chunk().ok_or(Flaw::Lengths)?;
    let kind = EntryKind::from_u8(chunk[0]).ok_or(Flaw::UnknownKind(chunk[0]))?;
    let partition = PartitionId {
        topic: TopicNumber(u32::from_le_bytes(part(chunk, 8))),
        index: u32::from_le_bytes(part(chunk, 12)),
    };
    let base_offset = i64::from_le_bytes(part(chunk, 16));
    let epoch = i32::from_le_bytes(part(chunk, 24));
    let length = u32::from_le_bytes(part(chunk, 4));
    let crc = u32::from_le_bytes(part(chunk, 28));
    Ok((Entry { kind, partition, base_offset, epoch }, length, crc))
}

fn body_is_sound(entry: &Entry, body: &[u8], crc: u32) -> bool {
    if !entry.kind.is_records() {
        return crc32fast::hash(body) == crc;
    }
    let mut next = entry.base_offset;
    let mut seen = 0;
    for (header, batch) in records::batches(body) {
        let stamped = header.base_offset == next && header.leader_epoch == entry.epoch;
        if !stamped || header.magic != 2 || header.crc != records::crc(batch) {
            return false;
        }
        next = header.next_offset();
        seen += batch.len();
    }
    seen == body.len() && seen > 0
}

fn header_crc(header: &[u8], directory: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(header);
    crc.update(directory);
    crc.finalize()
}

/// Copies `N` bytes out of a fixed structure; positions are constants inside it.
fn part<const N: usize, const M: usize>(bytes: &[u8; M], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}
