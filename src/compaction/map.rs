//! The newest offset of each key, in bounded memory: 16 bytes of hash and 8 of offset a key.
//!
//! Two keys of the same 128 bits would be taken for one. The hash is SipHash behind a secret that
//! is new for every map, so that nobody can look for such keys.

use std::hash::{DefaultHasher, Hasher};

use crate::base::ids::Offset;

/// Bytes of a slot.
const SLOT_BYTES: u64 = 24;
/// Slots that may be taken, in tenths: beyond that, looking takes too long.
const LOAD_TENTHS: usize = 9;
const SLOTS_MIN: u64 = 16;

/// See the module's documentation.
pub struct OffsetMap {
    /// Two words of hash, and the offset plus one; 0 for a free slot.
    slots: Vec<[u64; 3]>,
    taken: usize,
    secret: [u64; 2],
    latest: Option<Offset>,
}

impl OffsetMap {
    /// A map of at most `bytes_max` for at most `keys` keys.
    pub fn new(bytes_max: u64, keys: u64, secret: [u64; 2]) -> OffsetMap {
        let wanted = keys.saturating_add(keys / 8).saturating_add(2);
        let slots = (bytes_max / SLOT_BYTES).min(wanted).max(SLOTS_MIN);
        let slots = usize::try_from(slots).unwrap_or(usize::MAX);
        OffsetMap { slots: vec![[0; 3]; slots], taken: 0, secret, latest: None }
    }

    /// Takes a record, newest last; false if there is no room for its key.
    pub fn put(&mut self, key: &[u8], offset: Offset) -> bool {
        let hash = self.hash(key);
        let at = self.find(hash);
        let is_full = (self.taken + 1) * 10 > self.slots.len() * LOAD_TENTHS;
        let Some(slot) = self.slots.get_mut(at) else { return false };
        if slot[2] == 0 {
            if is_full {
                return false;
            }
            self.taken += 1;
        }
        *slot = [hash[0], hash[1], offset.cast_unsigned().wrapping_add(1)];
        self.latest = Some(offset);
        true
    }

    /// The newest offset of a key, if it was taken.
    pub fn newest(&self, key: &[u8]) -> Option<Offset> {
        let slot = self.slots.get(self.find(self.hash(key)))?;
        slot[2].checked_sub(1).map(u64::cast_signed)
    }

    /// Everything up to here was taken, whether it has a key or not.
    pub fn went_through(&mut self, offset: Offset) {
        self.latest = self.latest.max(Some(offset));
    }

    /// The last offset that was taken.
    pub fn latest(&self) -> Option<Offset> {
        self.latest
    }

    /// The slot of a hash: its own, or the free one where it belongs.
    fn find(&self, hash: [u64; 2]) -> usize {
        let count = self.slots.len();
        let start = (u128::from(hash[0]) * count as u128) >> 64;
        let mut at = usize::try_from(start).unwrap_or(0);
        // There is always a free one (`LOAD_TENTHS`).
        while let Some(slot) = self.slots.get(at) {
            if slot[2] == 0 || (slot[0] == hash[0] && slot[1] == hash[1]) {
                break;
            }
            at = (at + 1) % count;
        }
        at
    }

    fn hash(&self, key: &[u8]) -> [u64; 2] {
        self.secret.map(|secret| {
            let mut hasher = DefaultHasher::new();
            hasher.write_u64(secret);
            hasher.write(key);
            hasher.finish()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_knows_the_newest_and_says_when_it_is_full() {
        for (bytes, keys, fits) in [(1 << 20, 1000, 1000), (24 * 100, 1000, 90)] {
            let mut map = OffsetMap::new(bytes, keys, [1, 2]);
            let mut taken = 0;
            for number in 0..1000_i64 {
                taken += usize::from(map.put(&number.to_be_bytes(), number));
            }
            assert_eq!(taken, fits);
            for number in 0..1000_i64 {
                let known = usize::try_from(number).is_ok_and(|number| number < fits);
                assert_eq!(map.newest(&number.to_be_bytes()), known.then_some(number));
            }
            assert!(map.put(&3_i64.to_be_bytes(), 5000), "a key that is there has room");
            assert_eq!(map.newest(&3_i64.to_be_bytes()), Some(5000));
            assert_eq!(map.latest(), Some(5000));
        }
    }
}
