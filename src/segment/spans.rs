//! What was read of segments lately, verified, for the next one who wants it.
//!
//!     read ─► first time: on trial, forgotten in turn ─► again: kept, forgotten if unused longest
//!
//! A scan reads everything once, so it only ever pushes out what is on trial. Readers of one
//! segment wait for each other's reads, and take what those have brought if it is what they want.
//!
//! Invariants
//!   N1  At most `bytes_max` are held, a quarter of them by what is on trial.
//!   N2  Only whole batches whose CRCs were verified are given out. The beginning of a batch that
//!       a read cut off is held with those before it, so that it need not be read again.
//!   N3  Of one segment one read is under way at a time.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;

use super::SegmentId;
use crate::base::ids::Offset;
use crate::base::line::{Line, Place};
use crate::wire::records;
use bytes::Bytes;

/// The share of the whole that is for what was read once.
const TRIAL_SHARE: usize = 4;
/// Segments in whose line nobody stands are forgotten from so many on.
const LINES_KEPT: usize = 64;

/// A segment, and an offset of it.
type Key = (SegmentId, Offset);

/// What one read of a segment has brought.
pub(super) struct Stretch {
    /// Whole batches, verified.
    pub batches: Bytes,
    /// One past the last record's offset.
    pub next: Offset,
    /// What was read behind them: the beginning of a batch, of which nothing is verified.
    pub rest: Bytes,
    /// Memory that it keeps, which may be more than its length.
    pub bytes: usize,
}

struct Held {
    stretch: Stretch,
    is_kept: bool,
    used: u64,
}

/// See the module's documentation.
pub(super) struct Spans {
    bytes_max: usize,
    /// By the offset from which they were asked for.
    held: BTreeMap<Key, Held>,
    on_trial: VecDeque<Key>,
    trial_bytes: usize,
    kept_bytes: usize,
    uses: u64,
    lines: HashMap<SegmentId, Rc<Line>>,
}

impl Spans {
    pub(super) fn new(bytes_max: usize) -> Spans {
        Spans {
            bytes_max,
            held: BTreeMap::new(),
            on_trial: VecDeque::new(),
            trial_bytes: 0,
            kept_bytes: 0,
            uses: 0,
            lines: HashMap::new(),
        }
    }

    /// Batches from the one that holds `from` on, at most `bytes_max` but one in any case, and the
    /// offset after them.
    pub(super) fn find(
        &mut self,
        id: SegmentId,
        from: Offset,
        bytes_max: usize,
    ) -> Option<(Bytes, Offset)> {
        let (key, held) = self.held.range_mut(..=(id, from)).next_back()?;
        if key.0 != id || held.stretch.next <= from {
            return None;
        }
        let key = *key;
        self.uses += 1;
        held.used = self.uses;
        let found = cut(&held.stretch, from, bytes_max)?;
        // Going on inside a stretch is still the first reading of it.
        if !held.is_kept && key.1 == from {
            self.keep(key);
        }
        Some(found)
    }

    /// What was read behind the stretch that ends before `next`.
    pub(super) fn rest(&self, id: SegmentId, next: Offset) -> Option<Bytes> {
        let (key, held) = self.held.range(..(id, next)).next_back()?;
        let is_before = key.0 == id && held.stretch.next == next;
        Some(held.stretch.rest.clone()).filter(|rest| is_before && !rest.is_empty())
    }

    /// A place in the line of those who read a segment.
    pub(super) fn stand(&mut self, id: SegmentId) -> Place {
        if self.lines.len() >= LINES_KEPT && !self.lines.contains_key(&id) {
            self.lines.retain(|_, line| !line.is_empty());
        }
        self.lines.entry(id).or_default().stand()
    }

    /// Holds what was read of a segment from an offset on.
    pub(super) fn hold(&mut self, key: Key, stretch: Stretch) {
        let (bytes, most) = (stretch.bytes, self.bytes_max / TRIAL_SHARE);
        if bytes > most || self.held.contains_key(&key) {
            return;
        }
        self.held.insert(key, Held { stretch, is_kept: false, used: self.uses });
        self.on_trial.push_back(key);
        self.trial_bytes += bytes;
        while self.trial_bytes > most {
            let Some(first) = self.on_trial.front().copied() else { break };
            self.drop_held(first);
        }
    }

    /// Gives all memory back.
    pub(super) fn clear(&mut self) {
        self.held.clear();
        self.on_trial.clear();
        (self.trial_bytes, self.kept_bytes) = (0, 0);
    }

    /// Forgets what is held of the segments that `is_one` means.
    pub(super) fn forget(&mut self, is_one: impl Fn(&SegmentId) -> bool) {
        let keys = self.held.keys().filter(|(id, _)| is_one(id));
        for key in keys.copied().collect::<Vec<_>>() {
            self.drop_held(key);
        }
    }

    fn keep(&mut self, key: Key) {
        let Some(held) = self.held.get_mut(&key) else { return };
        held.is_kept = true;
        self.trial_bytes -= held.stretch.bytes;
        self.kept_bytes += held.stretch.bytes;
        self.on_trial.retain(|other| *other != key);
        while self.kept_bytes > self.bytes_max - self.bytes_max / TRIAL_SHARE {
            let kept = self.held.iter().filter(|(_, held)| held.is_kept);
            let Some(oldest) = kept.min_by_key(|(_, held)| held.used).map(|(key, _)| *key) else {
                break;
            };
            self.drop_held(oldest);
        }
    }

    fn drop_held(&mut self, key: Key) {
        let Some(held) = self.held.remove(&key) else { return };
        if held.is_kept {
            self.kept_bytes -= held.stretch.bytes;
        } else {
            self.trial_bytes -= held.stretch.bytes;
            // What a scan pushes out is the first: the others, thousands, are not looked at.
            if self.on_trial.pop_front_if(|first| *first == key).is_none() {
                self.on_trial.retain(|other| *other != key);
            }
        }
    }
}

/// The batches of a stretch from the one that holds `from` on.
fn cut(held: &Stretch, from: Offset, bytes_max: usize) -> Option<(Bytes, Offset)> {
    let (mut start, mut end, mut next) = (0, 0, from);
    for (header, batch) in records::batches(&held.batches) {
        if header.next_offset() <= from {
            start += batch.len();
            end = start;
            continue;
        }
        if end > start && end + batch.len() - start > bytes_max {
            break;
        }
        end += batch.len();
        next = header.next_offset();
    }
    (end > start).then(|| (held.batches.slice(start..end), next))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{PartitionId, TopicNumber};
    use crate::segment::Home;
    use crate::wire::records::{BatchBuilder, Codec, NewRecord};

    const BYTES: usize = 1000;

    fn id(index: u32) -> SegmentId {
        let partition = PartitionId { topic: TopicNumber(1), index };
        SegmentId { partition, base: 0, home: Home::NEW }
    }

    /// Ten batches of one record.
    fn batches() -> Bytes {
        let mut all = Vec::new();
        for offset in 0..10 {
            let mut builder = BatchBuilder::new();
            builder.push(&NewRecord { value: Some(b"value"), ..NewRecord::default() });
            let mut batch = builder.build(Codec::None).expect("nothing to compress").to_vec();
            records::stamp(&mut batch, offset, 1);
            all.extend_from_slice(&batch);
        }
        all.into()
    }

    fn stretch() -> Stretch {
        Stretch { batches: batches(), next: 10, rest: Bytes::from_static(b"cut"), bytes: BYTES }
    }

    fn held(bytes_max: usize) -> Spans {
        let mut spans = Spans::new(bytes_max);
        spans.hold((id(0), 0), stretch());
        spans
    }

    #[test]
    fn any_offset_of_a_stretch_is_found_in_it() {
        let mut spans = held(100 * BYTES);
        let all = batches();
        let one = all.len() / 10;
        assert_eq!(spans.find(id(0), 0, usize::MAX), Some((all.clone(), 10)));
        assert_eq!(spans.find(id(0), 3, 2 * one), Some((all.slice(3 * one..5 * one), 5)));
        assert_eq!(spans.find(id(0), 9, 0), Some((all.slice(9 * one..), 10)), "one in any case");
        assert_eq!(spans.find(id(0), 10, 1000), None);
        assert_eq!(spans.find(id(1), 0, 1000), None);
        assert_eq!(spans.rest(id(0), 10), Some(Bytes::from_static(b"cut")));
        assert_eq!((spans.rest(id(0), 9), spans.rest(id(1), 10)), (None, None));
        spans.forget(|one| *one == id(0));
        assert_eq!(spans.find(id(0), 0, 1000), None);
    }

    #[test]
    fn a_scan_does_not_push_out_what_was_asked_for_twice() {
        let mut spans = held(20 * BYTES);
        assert!(spans.find(id(0), 0, 100).is_some(), "asked for again");
        spans.hold((id(1), 0), stretch());
        assert!(spans.find(id(1), 5, 100).is_some(), "it was only gone on with");
        for other in 2..100 {
            spans.hold((id(other), 0), stretch());
            assert!(spans.trial_bytes + spans.kept_bytes <= spans.bytes_max);
        }
        assert!(spans.find(id(0), 0, 100).is_some());
        assert!(spans.find(id(1), 0, 100).is_none());
        for other in 2..100 {
            spans.hold((id(other), 0), stretch());
            spans.find(id(other), 0, 100);
            assert!(spans.trial_bytes + spans.kept_bytes <= spans.bytes_max);
        }
        assert!(spans.find(id(0), 0, 100).is_none(), "unused for longest");
        spans.clear();
        assert_eq!((spans.held.len(), spans.on_trial.len()), (0, 0));
    }

    #[test]
    fn a_stretch_that_is_larger_than_what_is_on_trial_may_be_is_not_held() {
        let mut spans = held(3 * BYTES);
        assert!(spans.find(id(0), 0, 100).is_none());
    }
}
