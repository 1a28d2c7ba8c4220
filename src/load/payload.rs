//! Values: a stamp in front, then bytes cut out of a pool that is made once.
//!
//!     | intended i64 | run u32 | producer u32 | place u32 | sequence u64 | crc u32 | filler ... |
//!
//! `intended` is in nanoseconds since 1970, `place` the partition's number within the run, and the
//! sequence counts the producer's records in that partition. The CRC-32C covers everything but
//! itself, and is 0 unless the run verifies. Values shorter than a stamp are filler alone.
//! All numbers are big-endian.

use super::keys::{Random, below};

pub const STAMP_BYTES: usize = 32;
const CRC_AT: usize = 28;
/// The pool is so many batches long: a codec finds next to nothing twice in a batch, and the pool
/// stays in a core's cache, as copying out of it is the largest part of making a record.
const POOL_BATCHES: usize = 32;
const POOL_BYTES_MIN: usize = 256 << 10;
const POOL_BYTES_MAX: usize = 4 << 20;
/// Each so many bytes of the pool, a part is random and the rest constant.
const GRAIN_BYTES: usize = 128;
/// Fillers begin at multiples of this, so that copying from the pool stays aligned.
const ALIGN_BYTES: u64 = 64;

/// Lengths of values: uniform from min to max.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub min: usize,
    pub max: usize,
}

impl Sizes {
    pub fn draw(self, random: &mut Random) -> usize {
        if self.min == self.max {
            return self.min;
        }
        let span = u64::try_from(self.max - self.min).unwrap_or(u64::MAX - 1) + 1;
        self.min + usize::try_from(below(random.bits(), span)).unwrap_or(0)
    }
}

/// The bytes that values are cut out of.
#[derive(Debug)]
pub struct Pool {
    bytes: Vec<u8>,
    /// Fillers begin below this.
    starts: u64,
}

impl Pool {
    /// A pool for values up to `longest` in batches of `batch_bytes`, of which a codec can remove
    /// the part `compressibility`.
    pub fn new(longest: usize, batch_bytes: usize, compressibility: f64, seed: u64) -> Pool {
        let mut random = Random::new(seed);
        let length = batch_bytes.saturating_mul(POOL_BATCHES);
        let length = length.clamp(POOL_BYTES_MIN, POOL_BYTES_MAX);
        let constant = (GRAIN_BYTES as f64 * compressibility.clamp(0.0, 1.0)).round() as usize;
        let mut bytes = vec![b'.'; length + longest];
        for grain in bytes.chunks_mut(GRAIN_BYTES) {
            let end = grain.len().min(GRAIN_BYTES - constant);
            for word in grain[..end].chunks_mut(8) {
                word.copy_from_slice(&random.bits().to_le_bytes()[..word.len()]);
            }
        }
        Pool { bytes, starts: length as u64 / ALIGN_BYTES }
    }

    /// A random place to cut from.
    pub fn draw(&self, random: &mut Random) -> u32 {
        u32::try_from(below(random.bits(), self.starts)).unwrap_or(0)
    }

    /// `length` bytes from a place that was drawn.
    pub fn cut(&self, place: u32, length: usize) -> &[u8] {
        let start = usize::try_from(u64::from(place) * ALIGN_BYTES).unwrap_or(0);
        self.bytes.get(start..start + length).unwrap_or_default()
    }
}

/// What a value tells about its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub intended: i64,
    pub run: u32,
    pub producer: u32,
    pub place: u32,
    pub sequence: u64,
}

impl Stamp {
    /// The stamp's bytes, with a checksum of them and `filler` if asked.
    pub fn write(&self, filler: &[u8], with_crc: bool) -> [u8; STAMP_BYTES] {
        let mut bytes = [0; STAMP_BYTES];
        bytes[..8].copy_from_slice(&self.intended.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.run.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.producer.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.place.to_be_bytes());
        bytes[20..28].copy_from_slice(&self.sequence.to_be_bytes());
        if with_crc {
            let crc = checksum(&bytes[..CRC_AT], filler);
            bytes[CRC_AT..].copy_from_slice(&crc.to_be_bytes());
        }
        bytes
    }

    /// The stamp of a value; `None` if it is too short for one.
    pub fn read(value: &[u8]) -> Option<Stamp> {
        let stamp: &[u8; STAMP_BYTES] = value.first_chunk()?;
        let word = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&stamp[at..at + 4]);
            u32::from_be_bytes(word)
        };
        let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
        Some(Stamp {
            intended: long(0).cast_signed(),
            run: word(8),
            producer: word(12),
            place: word(16),
            sequence: long(20),
        })
    }

    /// Whether a value's checksum is right.
    pub fn is_sound(value: &[u8]) -> bool {
        let Some((stamp, filler)) = value.split_first_chunk::<STAMP_BYTES>() else { return false };
        stamp[CRC_AT..] == checksum(&stamp[..CRC_AT], filler).to_be_bytes()
    }
}

fn checksum(stamp: &[u8], filler: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(stamp);
    digest.update(filler);
    u32::try_from(digest.finalize()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_reads_back_and_a_flipped_bit_is_noticed() {
        let stamp = Stamp { intended: -5, run: 6, producer: 7, place: 8, sequence: 1 << 40 };
        let mut value = stamp.write(b"filler", true).to_vec();
        value.extend_from_slice(b"filler");
        assert_eq!(Stamp::read(&value), Some(stamp));
        assert!(Stamp::is_sound(&value));
        for at in 0..value.len() {
            let mut damaged = value.clone();
            damaged[at] ^= 4;
            assert!(!Stamp::is_sound(&damaged), "byte {at}");
        }
        assert_eq!(Stamp::read(&value[..31]), None);
    }

    #[test]
    fn compressibility_is_what_a_codec_can_remove() {
        for wanted in [0.0, 0.5, 0.9, 1.0] {
            let pool = Pool::new(100, 1 << 20, wanted, 3);
            let zipped = zstd::stream::encode_all(&pool.bytes[..1 << 20], 1).expect("memory");
            let removed = 1.0 - zipped.len() as f64 / f64::from(1 << 20);
            assert!((removed - wanted).abs() < 0.06, "{wanted}: {removed}");
        }
    }

    #[test]
    fn cuts_are_as_long_as_asked_and_differ() {
        let (pool, mut random) = (Pool::new(1000, 16_384, 0.0, 3), Random::new(1));
        let one = pool.cut(pool.draw(&mut random), 1000);
        assert_eq!(one.len(), 1000);
        assert_ne!(one, pool.cut(pool.draw(&mut random), 1000));
        let sizes = Sizes { min: 3, max: 5 };
        let drawn: std::collections::BTreeSet<usize> =
            (0..100).map(|_| sizes.draw(&mut random)).collect();
        assert_eq!(drawn, [3, 4, 5].into());
    }
}
