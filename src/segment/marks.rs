//! The marks of a segment: every so many bytes, the offset of a batch, where it begins, and the
//! greatest timestamp of all batches before the next mark. (An older version wrote that of those
//! from there to the next mark, from which the other follows.)
//!
//!     | magic u32 | version u16 | 0 u16 | crc u32 | count u32 | bytes u64 |
//!     | offset i64, position u64, greatest timestamp i64 | ...                 | 0 ... |
//!
//! Those of a compacted segment have version 2: in each mark two more numbers, its seal's xor u64
//! and chain u64 (`seal`). Made anew from the file, they have none.
//!
//! The file is little-endian and padded to a block; the CRC-32 covers everything from the count on.
//!
//! Invariants
//!   K1  Marks ascend in offset and position; the first is the segment's first batch.
//!   K2  Marks say nothing of bytes at or beyond `covered`.
//!   K3  Their greatest timestamps never go back, so that a time is found without looking at all.
//!   K4  There are seals for all marks or for none.

use std::fmt;

use super::seal::Seal;
use crate::base::ids::Offset;
use crate::wire::records::BatchHeader;

/// Bytes between two marks.
const INTERVAL_BYTES: u64 = 64 << 10;
const MAGIC: u32 = 0x434c_4d31; // "CLM1"
const VERSION_PLAIN: u16 = 1;
const VERSION: u16 = 2;
const HEADER_BYTES: usize = 24;
const MARK_BYTES_PLAIN: usize = 24;
const MARK_BYTES: usize = 40;

/// A place where reading may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub offset: Offset,
    pub position: u64,
    /// Of all batches before the next mark.
    pub max_timestamp: i64,
}

/// See the module's documentation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    marks: Vec<Mark>,
    covered: u64,
    seals: Option<Vec<Seal>>,
}

/// Why a file holds no marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarksFlaw {
    Missing,
    Damaged,
    Newer(u16),
    /// They are of fewer or more bytes than the segment has.
    Other,
}

impl fmt::Display for MarksFlaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MarksFlaw::Missing => f.write_str("it is missing"),
            MarksFlaw::Damaged => f.write_str("it is damaged"),
            MarksFlaw::Newer(version) => write!(
                f,
                "it has format {version}, this program knows up to {VERSION}: a newer Corelog \
                 wrote it, or it is damaged"
            ),
            MarksFlaw::Other => f.write_str("it is not of this segment"),
        }
    }
}

impl Marks {
    /// None yet, of a file that is being written and gets seals.
    pub fn sealed() -> Marks {
        Marks { seals: Some(Vec::new()), ..Marks::default() }
    }

    pub fn is_sealed(&self) -> bool {
        self.seals.is_some()
    }

    /// The stretches between two marks that lie wholly within these places, with their seals.
    pub(super) fn stretches(
        &self,
        from: u64,
        to: u64,
    ) -> impl Iterator<Item = (u64, u64, Seal)> + '_ {
        let first = self.marks.partition_point(|mark| mark.position < from);
        let ends = self.marks.iter().skip(first + 1).map(|mark| mark.position);
        let ends = ends.chain(std::iter::once(self.covered));
        let begins = self.marks.iter().skip(first).map(|mark| mark.position);
        let seals = self.seals.iter().flatten().skip(first).copied();
        let all = begins.zip(ends).zip(seals).map(|((begin, end), seal)| (begin, end, seal));
        all.take_while(move |(_, end, _)| *end <= to)
    }

    /// Where a look of about `wanted` bytes ends, so that it ends with a stretch: behind at least
    /// `least` of them, if there are so many.
    pub fn reach(&self, position: u64, (least, wanted): (u64, u64)) -> u64 {
        let least = position.saturating_add(least.max(1));
        let most = position.saturating_add(wanted);
        if most.max(least) >= self.covered {
            return self.covered.max(position);
        }
        let after = self.marks.partition_point(|mark| mark.position <= most);
        let last = after.checked_sub(1).and_then(|at| self.marks.get(at));
        if let Some(last) = last.filter(|last| last.position >= least) {
            return last.position;
        }
        let next = self.marks.partition_point(|mark| mark.position < least);
        self.marks.get(next).map_or(self.covered, |next| next.position)
    }

    #[expect(clippy::len_without_is_empty, reason = "nobody asks that")]
    pub fn len(&self) -> usize {
        self.marks.len()
    }

    /// Bytes of the segment that were looked at.
    pub fn covered(&self) -> u64 {
        self.covered
    }

    /// Takes the batch that begins where the last one ended.
    pub fn add(&mut self, header: &BatchHeader, bytes: usize) {
        let position = self.covered;
        let max_timestamp = header.max_timestamp.max(self.max_timestamp());
        match self.marks.last_mut() {
            Some(last) if position - last.position < INTERVAL_BYTES => {
                last.max_timestamp = max_timestamp;
            }
            _ => {
                self.marks.push(Mark { offset: header.base_offset, position, max_timestamp });
                self.seals.iter_mut().for_each(|seals| seals.push(Seal::default()));
            }
        }
        if let Some(seal) = self.seals.as_mut().and_then(|seals| seals.last_mut()) {
            seal.add(header.base_offset);
        }
        self.covered += bytes as u64;
    }

    /// Behind damage: the next sound batch begins at this place, with this offset, or there is none
    /// before `end`. There are no seals any more.
    pub fn pass(&mut self, sound: Option<(u64, Offset)>, end: u64) {
        self.seals = None;
        let Some((position, offset)) = sound else {
            self.covered = end;
            return;
        };
        self.marks.push(Mark { offset, position, max_timestamp: self.max_timestamp() });
        self.covered = position;
    }

    fn max_timestamp(&self) -> i64 {
        self.marks.last().map_or(-1, |last| last.max_timestamp)
    }

    /// The first offset of the last mark.
    pub fn next(&self) -> Option<Offset> {
        self.marks.last().map(|last| last.offset)
    }

    /// The last mark at or before `offset`.
    pub fn at(&self, offset: Offset) -> Option<Mark> {
        let after = self.marks.partition_point(|mark| mark.offset <= offset);
        self.marks.get(after.checked_sub(1)?).copied()
    }

    /// The first mark from which on there is a batch with a timestamp of at least `timestamp`.
    pub fn at_timestamp(&self, timestamp: i64) -> Option<Mark> {
        let before = self.marks.partition_point(|mark| mark.max_timestamp < timestamp);
        self.marks.get(before).copied()
    }

    /// The file's bytes, without padding.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.marks.len() * MARK_BYTES);
        let version = if self.is_sealed() { VERSION } else { VERSION_PLAIN };
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        bytes.extend_from_slice(&version.to_le_bytes());
        bytes.extend_from_slice(&[0; 6]);
        bytes.extend_from_slice(&u32::try_from(self.marks.len()).unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(&self.covered.to_le_bytes());
        let mut seals = self.seals.iter().flatten();
        for mark in &self.marks {
            bytes.extend_from_slice(&mark.offset.to_le_bytes());
            bytes.extend_from_slice(&mark.position.to_le_bytes());
            bytes.extend_from_slice(&mark.max_timestamp.to_le_bytes());
            if let Some(seal) = seals.next() {
                bytes.extend_from_slice(&seal.xor.to_le_bytes());
                bytes.extend_from_slice(&seal.chain.to_le_bytes());
            }
        }
        let crc = crc32fast::hash(bytes.get(12..).unwrap_or_default());
        if let Some(place) = bytes.get_mut(8..12) {
            place.copy_from_slice(&crc.to_le_bytes());
        }
        bytes
    }

    /// What `encode` gave, padding behind it.
    pub fn decode(bytes: &[u8]) -> Result<Marks, MarksFlaw> {
        let magic = bytes.first_chunk().map(|four| u32::from_le_bytes(*four));
        // The upper half is reserved.
        let version = bytes.get(4..).and_then(|rest| rest.first_chunk());
        let version = version.map_or(0, |four| u32::from_le_bytes(*four));
        let newer = u16::try_from(version).ok().filter(|version| *version > VERSION);
        match newer.filter(|_| magic == Some(MAGIC)) {
            Some(version) => Err(MarksFlaw::Newer(version)),
            None => Marks::decode_known(bytes).ok_or(MarksFlaw::Damaged),
        }
    }

    /// As `decode`, of a segment of so many bytes.
    pub fn decode_of(bytes: &[u8], covered: u64) -> Result<Marks, MarksFlaw> {
        let marks = Marks::decode(bytes)?;
        if marks.covered == covered { Ok(marks) } else { Err(MarksFlaw::Other) }
    }

    fn decode_known(bytes: &[u8]) -> Option<Marks> {
        let number = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let long = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let mark_bytes = match (number(0)?, number(4)?) {
            (MAGIC, version) if version == u32::from(VERSION_PLAIN) => MARK_BYTES_PLAIN,
            (MAGIC, version) if version == u32::from(VERSION) => MARK_BYTES,
            _ => return None,
        };
        let count = usize::try_from(number(12)?).ok()?;
        let end = count.checked_mul(mark_bytes)?.checked_add(HEADER_BYTES)?;
        if crc32fast::hash(bytes.get(12..end)?) != number(8)? {
            return None;
        }
        let mut newest = -1;
        let mut marks = Vec::with_capacity(count);
        let mut seals = (mark_bytes == MARK_BYTES).then(|| Vec::with_capacity(count));
        for at in (HEADER_BYTES..end).step_by(mark_bytes) {
            newest = long(at + 16)?.cast_signed().max(newest);
            let (offset, position) = (long(at)?.cast_signed(), long(at + 8)?);
            marks.push(Mark { offset, position, max_timestamp: newest });
            if let Some(seals) = &mut seals {
                seals.push(Seal { xor: long(at + 24)?, chain: long(at + 32)? });
            }
        }
        Some(Marks { marks, covered: long(16)?, seals })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::records::{BatchBuilder, Codec, NewRecord};

    fn marks(batches: i64, value_bytes: usize) -> Marks {
        let mut builder = BatchBuilder::new();
        builder.push(&NewRecord { value: Some(&vec![0; value_bytes]), ..NewRecord::default() });
        let batch = builder.build(Codec::None).expect("nothing to compress");
        let header = BatchHeader::read(&batch).expect("whole");
        let mut marks = Marks::default();
        for base_offset in 0..batches {
            let max_timestamp = base_offset * 10;
            marks.add(&BatchHeader { base_offset, max_timestamp, ..header }, batch.len());
        }
        marks
    }

    #[test]
    fn marks_lead_to_the_place_at_or_before_what_is_wanted() {
        let marks = marks(1000, 1000);
        for pair in marks.marks.windows(2) {
            assert!(pair[0].offset < pair[1].offset, "K1");
            assert!(pair[1].position - pair[0].position >= INTERVAL_BYTES);
        }
        assert!(marks.marks.last().is_some_and(|last| last.position < marks.covered), "K2");
        for offset in 0..1000 {
            let mark = marks.at(offset).expect("the first is at 0");
            assert!(mark.offset <= offset && offset - mark.offset < 100);
            let by_time = marks.at_timestamp(offset * 10).expect("there is one");
            assert_eq!(by_time.offset, mark.offset);
        }
        assert_eq!(marks.at_timestamp(9_991), None);
        assert_eq!(marks.at_timestamp(i64::MIN).map(|mark| mark.offset), Some(0));
        assert_eq!(marks.at(-1), None);
    }

    #[test]
    fn a_time_is_found_where_times_go_back() {
        let mut builder = BatchBuilder::new();
        builder.push(&NewRecord { value: Some(&[0; 70_000]), ..NewRecord::default() });
        let batch = builder.build(Codec::None).expect("nothing to compress");
        let header = BatchHeader::read(&batch).expect("whole");
        let mut marks = Marks::default();
        for (base_offset, max_timestamp) in [(0, 50), (1, 10), (2, 90), (3, 20), (4, 100)] {
            marks.add(&BatchHeader { base_offset, max_timestamp, ..header }, batch.len());
        }
        // What an older version wrote of the fourth.
        marks.marks[3].max_timestamp = 20;
        let marks = Marks::decode(&marks.encode()).expect("sound");
        let found = |timestamp| marks.at_timestamp(timestamp).map(|mark| mark.offset);
        assert_eq!([5, 50, 51, 90, 91, 100].map(found), [0, 0, 2, 2, 4, 4].map(Some));
        assert_eq!(found(101), None);
    }

    /// As `marks`, with seals.
    fn sealed(plain: &Marks) -> Marks {
        let mut sealed = Marks::sealed();
        let mut builder = BatchBuilder::new();
        builder.push(&NewRecord { value: Some(&[0; 1000]), ..NewRecord::default() });
        let batch = builder.build(Codec::None).expect("nothing to compress");
        let header = BatchHeader::read(&batch).expect("whole");
        while sealed.covered < plain.covered {
            let base_offset = i64::try_from(sealed.covered / batch.len() as u64).expect("small");
            let max_timestamp = base_offset * 10;
            sealed.add(&BatchHeader { base_offset, max_timestamp, ..header }, batch.len());
        }
        sealed
    }

    #[test]
    fn marks_survive_their_file_and_damage_is_noticed() {
        let plain = marks(300, 1000);
        let sealed = sealed(&plain);
        assert_eq!(Marks { seals: None, ..sealed.clone() }, plain);
        for (marks, mark_bytes) in [(plain, MARK_BYTES_PLAIN), (sealed, MARK_BYTES)] {
            let mut bytes = marks.encode();
            bytes.resize(bytes.len().next_multiple_of(4096), 0);
            assert_eq!(Marks::decode(&bytes), Ok(marks.clone()));
            let end = HEADER_BYTES + marks.len() * mark_bytes;
            for bit in 0..end * 8 {
                let mut damaged = bytes.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(Marks::decode(&damaged).is_err(), "bit {bit}");
                assert!(Marks::decode(&bytes[..bit / 8]).is_err(), "cut at {bit} bits");
            }
            bytes[4] = 3;
            assert_eq!(Marks::decode(&bytes), Err(MarksFlaw::Newer(3)));
        }
    }

    /// Version 1 is on users' disks, and so is version 2: these bytes must decode for ever.
    #[test]
    fn the_bytes_of_both_versions_are_frozen() {
        let plain = marks(300, 1000);
        let bytes = [plain.encode(), sealed(&plain).encode()];
        let golden = bytes.map(|bytes| (bytes[4], bytes.len(), crc32fast::hash(&bytes)));
        assert_eq!(golden, [(1, 144, 3_187_330_589), (2, 224, 3_003_908_866)]);
    }

    #[test]
    fn a_look_ends_with_a_stretch() {
        let marks = sealed(&marks(1000, 1000));
        let ends: Vec<u64> = marks.marks.iter().map(|mark| mark.position).collect();
        for position in (0..marks.covered).step_by(777) {
            for wanted in [0, 1000, 70_000, 200_000, 10_000_000] {
                let end = marks.reach(position, (1, wanted));
                assert!(end > position && (end == marks.covered || ends.contains(&end)));
                let next = ends.iter().find(|end| **end > position).unwrap_or(&marks.covered);
                assert!(end == *next || end <= position + wanted, "{position} {wanted}: {end}");
                assert!(marks.stretches(position, end).all(|(from, to, _)| {
                    from >= position && to <= end && ends.contains(&from)
                }));
            }
        }
        assert_eq!(marks.stretches(0, marks.covered).count(), marks.len());
    }
}
