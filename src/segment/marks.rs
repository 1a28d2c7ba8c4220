//! The marks of a segment: every so many bytes, the offset of a batch, where it begins, and the
//! greatest timestamp of all batches before the next mark. (An older version wrote that of those
//! from there to the next mark, from which the other follows.)
//!
//!     | magic u32 | version u16 | 0 u16 | crc u32 | count u32 | bytes u64 |
//!     | offset i64, position u64, greatest timestamp i64 | ...                 | 0 ... |
//!
//! The file is little-endian and padded to a block; the CRC-32 covers everything from the count on.
//!
//! Invariants
//!   K1  Marks ascend in offset and position; the first is the segment's first batch.
//!   K2  Marks say nothing of bytes at or beyond `covered`.
//!   K3  Their greatest timestamps never go back, so that a time is found without looking at all.

use crate::base::ids::Offset;
use crate::wire::records::BatchHeader;

/// Bytes between two marks.
const INTERVAL_BYTES: u64 = 64 << 10;
const MAGIC: u32 = 0x434c_4d31; // "CLM1"
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 24;
const MARK_BYTES: usize = 24;

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
}

impl Marks {
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
            _ => self.marks.push(Mark { offset: header.base_offset, position, max_timestamp }),
        }
        self.covered += bytes as u64;
    }

    /// Behind damage: the next sound batch begins at this place, with this offset, or there is none
    /// before `end`.
    pub fn pass(&mut self, sound: Option<(u64, Offset)>, end: u64) {
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
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 6]);
        bytes.extend_from_slice(&u32::try_from(self.marks.len()).unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(&self.covered.to_le_bytes());
        for mark in &self.marks {
            bytes.extend_from_slice(&mark.offset.to_le_bytes());
            bytes.extend_from_slice(&mark.position.to_le_bytes());
            bytes.extend_from_slice(&mark.max_timestamp.to_le_bytes());
        }
        let crc = crc32fast::hash(bytes.get(12..).unwrap_or_default());
        if let Some(place) = bytes.get_mut(8..12) {
            place.copy_from_slice(&crc.to_le_bytes());
        }
        bytes
    }

    /// What `encode` gave, padding behind it; `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Marks> {
        let number = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let long = |at: usize| Some(i64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let version = u16::from_le_bytes(*bytes.get(4..)?.first_chunk()?);
        if number(0)? != MAGIC || version != VERSION {
            return None;
        }
        let count = usize::try_from(number(12)?).ok()?;
        let end = count.checked_mul(MARK_BYTES)?.checked_add(HEADER_BYTES)?;
        if crc32fast::hash(bytes.get(12..end)?) != number(8)? {
            return None;
        }
        let mut newest = -1;
        let mut mark = |at: usize| {
            let position = long(at + 8)?.cast_unsigned();
            newest = long(at + 16)?.max(newest);
            Some(Mark { offset: long(at)?, position, max_timestamp: newest })
        };
        let marks = (0..count).map(|index| mark(HEADER_BYTES + index * MARK_BYTES));
        Some(Marks { marks: marks.collect::<Option<_>>()?, covered: long(16)?.cast_unsigned() })
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

    #[test]
    fn marks_survive_their_file_and_damage_is_noticed() {
        let marks = marks(300, 1000);
        let mut bytes = marks.encode();
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        assert_eq!(Marks::decode(&bytes), Some(marks.clone()));
        let end = HEADER_BYTES + marks.len() * MARK_BYTES;
        for at in (0..end).filter(|at| !(6..8).contains(at)) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert_eq!(Marks::decode(&damaged), None, "byte {at}");
            assert_eq!(Marks::decode(&bytes[..at]), None, "cut at {at}");
        }
    }
}
