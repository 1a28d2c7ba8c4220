//! What of a partition is to be compacted, and in which portions.

use crate::base::ids::Offset;
use crate::segment::Segment;

/// What a topic asks of compaction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// A younger record stays as it is.
    pub min_lag_ms: i64,
    /// The share of bytes that must be dirty.
    pub dirty_ratio: f64,
    /// The most bytes of a segment.
    pub segment_bytes: u64,
}

/// What is dirty.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dirty {
    /// The first offset that no run has been through.
    pub start: Offset,
    /// One past the last that may be compacted.
    pub end: Offset,
    /// Dirty bytes of all bytes before `end`.
    pub ratio: f64,
}

/// The largest relative offset that readers of segments take.
const SPAN_MAX: Offset = i32::MAX as Offset;

/// What is dirty in `segments`, which are a partition's own without its active one; `None` if
/// nothing is.
pub fn look(segments: &[Segment], cleaned: Offset, policy: &Policy, now: i64) -> Option<Dirty> {
    let newest = now.saturating_sub(policy.min_lag_ms);
    let start = segments.first()?.base.max(cleaned);
    let (mut clean, mut dirty) = (0, 0);
    let mut end = None;
    for segment in segments {
        if segment.next <= start {
            clean += segment.bytes;
            continue;
        }
        if policy.min_lag_ms > 0 && segment.max_timestamp > newest {
            break;
        }
        dirty += segment.bytes;
        end = Some(segment.next);
    }
    let share = |part: u64, all: u64| part as f64 / all.max(1) as f64;
    Some(Dirty { start, end: end?, ratio: share(dirty, clean + dirty) })
}

/// The segments before `end` in portions, each of which becomes one file.
pub fn groups(segments: &[Segment], end: Offset, segment_bytes: u64) -> Vec<Vec<Segment>> {
    let mut groups: Vec<Vec<Segment>> = Vec::new();
    let mut bytes = 0;
    for segment in segments.iter().filter(|segment| segment.base < end) {
        let first = groups.last().and_then(|group| group.first());
        let fits = first.is_some_and(|first| {
            bytes + segment.bytes <= segment_bytes && segment.next - first.base <= SPAN_MAX
        });
        match groups.last_mut().filter(|_| fits) {
            Some(group) => group.push(*segment),
            None => {
                groups.push(vec![*segment]);
                bytes = 0;
            }
        }
        bytes += segment.bytes;
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::Home;

    const POLICY: Policy = Policy { min_lag_ms: 0, dirty_ratio: 0.5, segment_bytes: 250 };

    /// Segments of a hundred offsets and a hundred bytes, the n-th with the timestamp n.
    fn segments(count: i64) -> Vec<Segment> {
        let segment = |at: i64| Segment {
            base: at * 100,
            next: at * 100 + 100,
            bytes: 100,
            max_timestamp: at,
            begun: 0,
            home: Home::NEW,
        };
        (0..count).map(segment).collect()
    }

    #[test]
    fn what_is_dirty_is_what_no_run_has_been_through_and_is_old_enough() {
        let all = segments(4);
        assert_eq!(look(&[], 0, &POLICY, 0), None);
        assert_eq!(look(&all, 0, &POLICY, 0), Some(Dirty { start: 0, end: 400, ratio: 1.0 }));
        assert_eq!(look(&all, 300, &POLICY, 0), Some(Dirty { start: 300, end: 400, ratio: 0.25 }));
        assert_eq!(look(&all, 400, &POLICY, 0), None);
        assert_eq!(look(&all[2..], 100, &POLICY, 0).map(|dirty| dirty.start), Some(200));
        let young = Policy { min_lag_ms: 10, ..POLICY };
        assert_eq!(
            look(&all, 100, &young, 12).map(|dirty| (dirty.start, dirty.end)),
            Some((100, 300))
        );
        assert_eq!(look(&all, 300, &young, 12), None);
    }

    #[test]
    fn groups_hold_every_segment_once_within_the_size_of_one() {
        let all = segments(7);
        let found = groups(&all, 500, 250);
        let counts: Vec<usize> = found.iter().map(Vec::len).collect();
        assert_eq!((counts, found.concat()), (vec![2, 2, 1], all[..5].to_vec()));
        assert_eq!(groups(&all, 101, 50).len(), 2, "one that is too large stands alone");
        let mut far = all[..2].to_vec();
        far[1].base += SPAN_MAX;
        far[1].next += SPAN_MAX;
        assert_eq!(groups(&far, Offset::MAX, 250).len(), 2);
    }
}
