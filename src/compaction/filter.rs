//! What becomes of a batch, given the map of the newest offsets.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::OffsetMap;
use crate::base::ids::Offset;
use crate::base::limits;
use crate::wire::records::{BatchHeader, HEADER_BYTES, Record, Records, decompress, retain};

/// What becomes of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays as it is.
    Whole,
    Gone,
    /// These bytes take its place.
    Rewritten(Vec<u8>),
}

/// Judges the batches of a run, in the order of their offsets.
pub struct Filter<'a> {
    map: &'a OffsetMap,
    /// The base offset of the last batch of each producer.
    last_batches: &'a BTreeMap<i64, Offset>,
    now: i64,
    /// What is given to tombstones that have no horizon yet.
    horizon: i64,
    /// A batch came that is kept unseen (C3).
    is_blind: bool,
}

/// Takes the keys of a batch's records from `from` on into the map; false if it has no room for
/// all of them.
pub fn note(map: &mut OffsetMap, header: &BatchHeader, batch: &[u8], from: Offset) -> bool {
    if let Some(inside) = look_inside(header, batch) {
        for record in Records::new(header, &inside).flatten() {
            let Some(key) = record.key.filter(|_| record.offset >= from) else { continue };
            if !map.put(key, record.offset) {
                return false;
            }
        }
    }
    map.went_through(header.next_offset() - 1);
    true
}

impl<'a> Filter<'a> {
    /// `now` in Unix milliseconds; a tombstone that is seen first stays for `delete_retention_ms`.
    pub fn new(
        map: &'a OffsetMap,
        last_batches: &'a BTreeMap<i64, Offset>,
        now: i64,
        delete_retention_ms: i64,
    ) -> Filter<'a> {
        let horizon = now.saturating_add(delete_retention_ms);
        Filter { map, last_batches, now, horizon, is_blind: false }
    }

    /// What becomes of the next batch.
    pub fn judge(&mut self, header: &BatchHeader, batch: &[u8]) -> Fate {
        let Some(inside) = look_inside(header, batch) else {
            self.is_blind = true;
            return Fate::Whole;
        };
        let (mut kept, mut has_tombstone) = (0, false);
        for record in Records::new(header, &inside).flatten() {
            if self.keeps(header, &record) {
                kept += 1;
                has_tombstone |= record.value.is_none();
            }
        }
        if kept == 0 {
            return self.judge_empty(header, batch);
        }
        let is_new = has_tombstone && header.delete_horizon().is_none();
        let horizon = is_new.then_some(self.horizon);
        if kept == header.count && horizon.is_none() {
            return Fate::Whole;
        }
        match retain(batch, &inside, horizon, |record| self.keeps(header, record)) {
            Ok(rewritten) => Fate::Rewritten(rewritten),
            Err(_) => {
                self.is_blind = true;
                Fate::Whole
            }
        }
    }

    /// None of the batch's records stays: it goes too, unless its producer needs it (C4).
    fn judge_empty(&self, header: &BatchHeader, batch: &[u8]) -> Fate {
        let last = self.last_batches.get(&header.producer_id);
        if !header.has_producer() || last != Some(&header.base_offset) {
            return Fate::Gone;
        }
        if header.count == 0 {
            return Fate::Whole;
        }
        retain(batch, &[], None, |_| false).map_or(Fate::Whole, Fate::Rewritten)
    }

    fn keeps(&self, header: &BatchHeader, record: &Record<'_>) -> bool {
        if Some(record.offset) > self.map.latest() {
            return true; // C5
        }
        // As Kafka: a record without a key has no place in a compacted topic.
        let Some(key) = record.key else { return false };
        if self.map.newest(key).is_some_and(|newest| newest > record.offset) {
            return false;
        }
        let is_over = |horizon: i64| horizon <= self.now && !self.is_blind;
        record.value.is_some() || !header.delete_horizon().is_some_and(is_over)
    }
}

/// A batch's records, decompressed; `None` if they are not to be looked at, or cannot be.
fn look_inside<'a>(header: &BatchHeader, batch: &'a [u8]) -> Option<Cow<'a, [u8]>> {
    if header.is_control() || header.is_transactional() {
        return None;
    }
    let packed = batch.get(HEADER_BYTES..)?;
    if header.count == 0 && packed.is_empty() {
        return Some(Cow::Borrowed(packed));
    }
    let inside = decompress(header.codec()?, packed, limits::LOOKUP_BYTES_MAX).ok()?;
    let found = Records::new(header, &inside).flatten().count();
    (usize::try_from(header.count) == Ok(found)).then_some(inside)
}
