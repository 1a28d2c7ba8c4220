//! One partition's state in memory: its offsets, where its batches lie, its producers, and who
//! waits for more.
//!
//!     log start                          high watermark        next offset
//!        |            settled, served         |  not settled yet   |
//!        |=== segment ===|=== segment ===|= extent =|= extent =|== extent ==|
//!              cold: in files              hot: in the journal, one extent an appended entry
//!
//! Lives on: the partition's core. A partition that was never written to has none of this.
//!
//! Invariants
//!   L1  log start <= high watermark <= next offset.
//!   L2  Extents are dense: each begins where the one before it ends, the last ends at the next
//!       offset; only those wholly below the log start, or in the segments, are dropped.
//!   L3  The high watermark is always the end of an extent or the log start, and never moves back.
//!   L4  Epochs never go back, and each begins at or after the one before it.
//!   L5  Segments ascend, and end at or before the first extent; those below the log start are kept
//!       until their files are removed.

use std::collections::VecDeque;

use super::checkpoint::Checkpoint;
use super::watch::Watcher;
use crate::base::ids::{Epoch, Offset, PartitionId};
use crate::journal::Location;
use crate::producer::Producers;
use crate::segment::Segment;

/// Where one appended entry lies: whole batches, back to back, in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub base: Offset,
    /// One past the last record's offset.
    pub next: Offset,
    pub location: Location,
    /// The greatest timestamp of its batches, in Unix milliseconds.
    pub max_timestamp: i64,
}

/// The first offset that a leader epoch wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochStart {
    pub epoch: Epoch,
    pub start: Offset,
}

/// The epoch that wrote `offset`, as far back as that is known.
pub fn epoch_at(epochs: &[EpochStart], offset: Offset) -> Option<Epoch> {
    let after = epochs.partition_point(|epoch| epoch.start <= offset);
    Some(epochs.get(after.checked_sub(1)?)?.epoch)
}

/// Where settled records lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Cold(Segment),
    Hot(Extent),
}

impl Place {
    /// One past its last record's offset.
    pub fn next(self) -> Offset {
        match self {
            Place::Cold(segment) => segment.next,
            Place::Hot(extent) => extent.next,
        }
    }

    pub fn max_timestamp(self) -> i64 {
        match self {
            Place::Cold(segment) => segment.max_timestamp,
            Place::Hot(extent) => extent.max_timestamp,
        }
    }
}

/// What recovery found of a partition.
#[derive(Default)]
pub struct Found {
    /// The last checkpoint and its address in the journal.
    pub checkpoint: Option<(u64, Checkpoint)>,
    pub log_start: Offset,
    /// In the order of their offsets, not overlapping.
    pub extents: VecDeque<Extent>,
    pub epochs: Vec<EpochStart>,
    pub producers: Producers,
}

/// See the module's documentation.
pub struct PartitionLog {
    id: PartitionId,
    log_start: Offset,
    /// The log start that the journal was given, which is not durable yet where it is greater.
    asked_start: Offset,
    high_watermark: Offset,
    next: Offset,
    /// Of the extents.
    bytes: u64,
    segments: Vec<Segment>,
    /// Compaction has been through everything before.
    cleaned: Offset,
    extents: VecDeque<Extent>,
    /// Whether they lie in the journal in the order of their offsets; entries that an older version
    /// has carried on do not.
    in_order: bool,
    epochs: Vec<EpochStart>,
    /// That of the last of them, which each append compares; -1 before the first.
    newest_epoch: Epoch,
    /// The journal address of the last checkpoint.
    checkpointed: Option<u64>,
    /// See `is_first_in`.
    round: u64,
    /// How often something was moved or removed: whoever reads meanwhile looks again.
    moves: u64,
    watches: Vec<Watcher>,
    pub producers: Producers,
}

impl PartitionLog {
    pub fn new(id: PartitionId) -> PartitionLog {
        PartitionLog {
            id,
            log_start: 0,
            asked_start: 0,
            high_watermark: 0,
            next: 0,
            bytes: 0,
            segments: Vec::new(),
            cleaned: 0,
            extents: VecDeque::new(),
            in_order: true,
            epochs: Vec::new(),
            newest_epoch: -1,
            checkpointed: None,
            round: 0,
            moves: 0,
            watches: Vec::new(),
            producers: Producers::default(),
        }
    }

    pub fn id(&self) -> PartitionId {
        self.id
    }

    pub fn log_start(&self) -> Offset {
        self.log_start
    }

    pub fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// The offset that the next record gets.
    pub fn next(&self) -> Offset {
        self.next
    }

    /// Bytes of all batches that are not trimmed.
    pub fn bytes(&self) -> u64 {
        self.bytes + self.live_segments().map(|segment| segment.bytes).sum::<u64>()
    }

    /// Bytes of what is in the journal.
    pub fn hot_bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether this is the first time that it is asked in this round.
    pub fn is_first_in(&mut self, round: u64) -> bool {
        std::mem::replace(&mut self.round, round) != round
    }

    /// It is asked as if for the first time again.
    pub fn leave_round(&mut self) {
        self.round = 0;
    }

    /// The oldest entry in the journal.
    pub fn first_extent(&self) -> Option<&Extent> {
        self.extents.front()
    }

    /// The settled entry up to which not many more than `most` bytes are in the journal below
    /// `address`, and how many these are.
    pub fn piece_below(&self, address: u64, most: u64) -> Option<(Offset, u64)> {
        let settled = self.high_watermark;
        let mut bytes = 0;
        let within = self.extents_below(address).take_while(|extent| {
            let takes = bytes < most && extent.next <= settled;
            bytes += u64::from(extent.location.length) * u64::from(takes);
            takes
        });
        within.last().map(|last| last.base).map(|through| (through, bytes))
    }

    /// Those of them that are in the journal below `address`.
    pub fn hot_bytes_below(&self, address: u64) -> u64 {
        self.extents_below(address).map(|extent| u64::from(extent.location.length)).sum()
    }

    /// Where the last entry begins that is in the journal below `address`.
    pub fn last_below(&self, address: u64) -> Option<Offset> {
        self.extents_below(address).next_back().map(|extent| extent.base)
    }

    fn extents_below(&self, address: u64) -> impl DoubleEndedIterator<Item = &Extent> {
        let is_below = move |extent: &&Extent| extent.location.address < address;
        let end = match self.in_order {
            true => self.extents.partition_point(|extent| is_below(&extent)),
            false => self.extents.len(),
        };
        self.extents.range(..end).filter(is_below)
    }

    /// The records from here on are in the journal.
    pub fn hot_start(&self) -> Offset {
        self.extents.front().map_or(self.next, |first| first.base)
    }

    /// All files, also those whose records are trimmed.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Those of them that hold something which is not trimmed.
    pub fn live_segments(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(|segment| segment.next > self.log_start)
    }

    /// The first file that holds `offset` or something behind it; `None` if that is in the journal.
    pub fn segment_from(&self, offset: Offset) -> Option<Segment> {
        let after = self.segments.partition_point(|segment| segment.next <= offset);
        self.segments.get(after).copied()
    }

    pub fn moves(&self) -> u64 {
        self.moves
    }

    /// Takes an entry that the journal has accepted.
    pub fn appended(&mut self, extent: Extent, epoch: Epoch) {
        assert_eq!(extent.base, self.next, "offsets are dense in {}", self.id);
        assert!(extent.next > extent.base, "an entry holds at least one record");
        if self.newest_epoch < epoch {
            self.newest_epoch = epoch;
            self.epochs.push(EpochStart { epoch, start: extent.base });
        }
        self.next = extent.next;
        self.bytes += u64::from(extent.location.length);
        debug_assert!(
            self.extents.back().is_none_or(|last| last.location.address <= extent.location.address),
            "the journal goes on"
        );
        self.extents.push_back(extent);
    }

    /// Everything below `next` is settled: it may be served, and waiting fetches hear of it.
    pub fn settled(&mut self, next: Offset, bytes: u32) {
        assert!(next <= self.next, "only appended records settle");
        self.high_watermark = self.high_watermark.max(next);
        self.watches.retain(|watch| watch.add(bytes));
    }

    /// The journal has taken this log start: what is journaled from here on must not say less.
    pub fn start_asked(&mut self, log_start: Offset) {
        self.asked_start = self.asked_start.max(log_start);
    }

    /// Raises the log start (DeleteRecords) and drops what lies wholly below it.
    pub fn trim(&mut self, log_start: Offset) {
        assert!(log_start <= self.high_watermark, "only settled records are deleted");
        self.log_start = self.log_start.max(log_start);
        self.moves += 1;
        while let Some(first) = self.extents.front() {
            if first.next > self.log_start {
                break;
            }
            self.bytes -= u64::from(first.location.length);
            self.extents.pop_front();
        }
        let keep = self.epochs.partition_point(|epoch| epoch.start <= self.log_start);
        self.epochs.drain(..keep.saturating_sub(1));
    }

    /// Takes over what recovery found, or says what contradicts itself.
    pub fn restore(id: PartitionId, found: Found) -> Result<PartitionLog, String> {
        let Found { checkpoint, log_start, mut extents, epochs, producers } = found;
        let (address, checkpoint) = checkpoint.unzip();
        let checkpoint = checkpoint.unwrap_or_default();
        let log_start = log_start.max(checkpoint.log_start);
        // Of what is deleted some may be left in the journal, and some of it not.
        let mut next = checkpoint.hot_start.max(log_start);
        extents.retain(|extent| extent.next > next);
        if let Some(first) = extents.front().filter(|first| first.base < next) {
            next = first.base.max(checkpoint.hot_start);
        }
        for extent in &extents {
            if extent.base != next {
                let Extent { base, next: end, location, .. } = extent;
                return Err(format!(
                    "the journal contradicts itself at address {}: an entry holds the offsets \
                     from {base} to before {end} of {id}, where {next} comes next",
                    location.address
                ));
            }
            next = extent.next;
        }
        let mut log = PartitionLog::new(id);
        log.bytes = extents.iter().map(|extent| u64::from(extent.location.length)).sum();
        log.segments = checkpoint.segments();
        log.cleaned = checkpoint.cleaned;
        let place = |extent: &Extent| extent.location.address;
        log.in_order = extents.iter().is_sorted_by_key(place);
        log.extents = extents;
        log.newest_epoch = epochs.last().map_or(-1, |last| last.epoch);
        log.epochs = epochs;
        log.producers = producers;
        log.checkpointed = address;
        // Whatever recovery accepts is durable.
        log.next = next;
        log.high_watermark = log.next;
        log.trim(log_start);
        Ok(log)
    }

    /// The extent that begins at `base`.
    pub fn extent(&self, base: Offset) -> Option<Extent> {
        // Where each holds as many records as the others it need not be searched for.
        let first = self.extents.front()?;
        let records = usize::try_from(first.next - first.base).ok()?;
        let guess = usize::try_from(base - first.base).ok()? / records.max(1);
        let is_it = |extent: &&Extent| extent.base == base;
        let found = self.extents.get(guess).filter(is_it).or_else(|| {
            let at = self.extents.partition_point(|extent| extent.base < base);
            self.extents.get(at).filter(is_it)
        });
        found.copied()
    }

    /// Reads a little of what the next append will need. Where many partitions are appended to in
    /// turn, the processor fetches the states of several side by side like that.
    pub fn touch(&self) -> Offset {
        self.next + self.extents.back().map_or(0, |last| last.next)
    }

    /// The extents that begin at or before `base`, oldest first.
    pub fn extents_through(&self, base: Offset) -> Vec<Extent> {
        self.extents_between(Offset::MIN, base)
    }

    /// The extents that begin at or behind `from` and at or before `base`.
    pub fn extents_between(&self, from: Offset, base: Offset) -> Vec<Extent> {
        let first = self.extents.partition_point(|extent| extent.base < from);
        self.extents.range(first..).take_while(|extent| extent.base <= base).copied().collect()
    }

    /// What lies before `hot_start` is in `segments` now.
    pub fn drained(&mut self, segments: Vec<Segment>, hot_start: Offset) {
        self.segments = segments;
        self.moves += 1;
        while let Some(first) = self.extents.front().filter(|first| first.next <= hot_start) {
            self.bytes -= u64::from(first.location.length);
            self.extents.pop_front();
        }
    }

    /// The state with these segments and this beginning of what is in the journal.
    pub fn checkpoint(&self, segments: &[Segment], hot_start: Offset) -> Checkpoint {
        let hot_start = hot_start.max(self.hot_start());
        let places = (self.log_start.max(self.asked_start), hot_start, self.cleaned);
        Checkpoint::new(places, segments, &self.epochs, &self.producers)
    }

    /// As `checkpoint`, once compaction has been through everything before `cleaned`.
    pub fn cleaned_checkpoint(&self, segments: &[Segment], cleaned: Offset) -> Checkpoint {
        let cleaned = cleaned.max(self.cleaned);
        let places = (self.log_start.max(self.asked_start), self.hot_start(), cleaned);
        Checkpoint::new(places, segments, &self.epochs, &self.producers)
    }

    /// Compaction has written some segments anew.
    pub fn compacted(&mut self, segments: Vec<Segment>, cleaned: Offset) {
        self.segments = segments;
        self.cleaned = cleaned.max(self.cleaned);
        self.moves += 1;
    }

    /// The live segments that take no more records and have settled ones behind them. `now` in Unix
    /// milliseconds.
    pub fn closed_segments(&self, now: i64, segment_ms: i64) -> Vec<Segment> {
        let mut live: Vec<Segment> = self.live_segments().copied().collect();
        let has_more = self.settled_extents().next().is_some();
        let is_old = |last: &mut Segment| now.saturating_sub(last.begun) > segment_ms;
        live.pop_if(|last| !(has_more && is_old(last)));
        live
    }

    /// Where to drain to when records older than `oldest`, in Unix milliseconds, are not to be in
    /// the journal: the entry that begins there, `bytes_max` on at most. The last settled stays.
    pub fn late_through(&self, oldest: i64, bytes_max: u64) -> Option<Offset> {
        let settled = self.extents.partition_point(|extent| extent.next <= self.high_watermark);
        let mut rest = self.extents.range(..settled.saturating_sub(1)).peekable();
        rest.peek().filter(|first| first.max_timestamp < oldest)?;
        let mut bytes = 0;
        let within = rest.take_while(|extent| {
            let before = bytes;
            bytes += u64::from(extent.location.length);
            before < bytes_max
        });
        within.last().map(|last| last.base)
    }

    /// The first offset that compaction has not been through.
    pub fn cleaned(&self) -> Offset {
        self.cleaned
    }

    /// A checkpoint stands in the journal at `address`.
    pub fn checkpointed_at(&mut self, address: u64) {
        self.checkpointed = Some(address);
    }

    /// Whether the last checkpoint, if there is one, stands below `address`.
    pub fn is_checkpointed_before(&self, address: u64) -> bool {
        self.checkpointed.is_none_or(|checkpointed| checkpointed < address)
    }

    pub fn has_dead_segments(&self) -> bool {
        self.segments.first().is_some_and(|segment| segment.next <= self.log_start)
    }

    /// The segments wholly below the log start, whose files are to be removed.
    pub fn dead_segments(&self) -> Vec<Segment> {
        let dead = self.segments.iter().take_while(|segment| segment.next <= self.log_start);
        dead.copied().collect()
    }

    /// These dead segments' files are gone.
    pub fn forget_segments(&mut self, gone: &[Segment]) {
        self.segments.retain(|segment| !gone.contains(segment));
        self.moves += 1;
    }

    /// What could be deleted piece by piece, oldest first: one past its last offset, its bytes, its
    /// greatest timestamp. Where its records carry none, a segment is as old as its file, which
    /// took records for `segment_ms`; how long such records have been in the journal is not known.
    pub fn pieces(&self, segment_ms: i64) -> impl Iterator<Item = (Offset, u64, i64)> {
        let cold = self.live_segments().map(move |cold| {
            let age = match cold.max_timestamp {
                -1 => cold.begun.saturating_add(segment_ms),
                told => told,
            };
            (cold.next, cold.bytes, age)
        });
        let hot = self.settled_extents();
        cold.chain(hot.map(|hot| (hot.next, u64::from(hot.location.length), hot.max_timestamp)))
    }

    /// The settled extents from the one that holds `from` on, until they hold `bytes_max`; at
    /// least one if there is any.
    pub fn extents_from(
        &self,
        from: Offset,
        bytes_max: usize,
    ) -> impl Iterator<Item = Extent> + '_ {
        let first = self.extents.partition_point(|extent| extent.next <= from);
        let settled = self.extents.range(first..);
        let settled = settled.take_while(|extent| extent.next <= self.high_watermark);
        settled.copied().scan(Some(bytes_max), |left, extent| {
            let before = (*left)?;
            let after = before.saturating_sub(extent.location.length as usize);
            *left = (after > 0).then_some(after);
            Some(extent)
        })
    }

    /// The settled extent that holds `offset`, or the next one.
    pub fn extent_at(&self, offset: Offset) -> Option<Extent> {
        let after = self.extents.partition_point(|extent| extent.next <= offset);
        let found = self.extents.get(after).copied();
        found.filter(|extent| extent.next <= self.high_watermark)
    }

    /// Bytes a fetch at `from` could get now, counted up to `enough`.
    pub fn bytes_available(&self, from: Offset, enough: usize) -> usize {
        if self.segment_from(from).is_some() {
            return enough;
        }
        self.extents_from(from, enough).map(|extent| extent.location.length as usize).sum()
    }

    /// The first place at or behind `from` whose greatest timestamp is at least `timestamp`.
    pub fn place_at_timestamp(&self, timestamp: i64, from: Offset) -> Option<Place> {
        let is_it = |next: Offset, max: i64| next > from && max >= timestamp;
        let cold = self.live_segments().find(|cold| is_it(cold.next, cold.max_timestamp));
        let hot = || self.settled_extents().find(|hot| is_it(hot.next, hot.max_timestamp));
        cold.map(|segment| Place::Cold(*segment)).or_else(|| hot().map(|hot| Place::Hot(*hot)))
    }

    /// The first of the places that have the greatest timestamp of all.
    pub fn place_of_max_timestamp(&self) -> Option<Place> {
        let cold = self.live_segments().map(|segment| Place::Cold(*segment));
        let hot = self.settled_extents().map(|extent| Place::Hot(*extent));
        cold.chain(hot).reduce(|best, place| {
            if place.max_timestamp() > best.max_timestamp() { place } else { best }
        })
    }

    /// The greatest timestamp of the places that begin at or behind `from`.
    pub fn max_timestamp_behind(&self, from: Offset) -> Option<i64> {
        let cold = self.live_segments().filter(|cold| cold.base >= from);
        let hot = self.settled_extents().filter(|hot| hot.base >= from);
        cold.map(|cold| cold.max_timestamp).chain(hot.map(|hot| hot.max_timestamp)).max()
    }

    fn settled_extents(&self) -> impl Iterator<Item = &Extent> {
        self.extents.iter().take_while(|extent| extent.next <= self.high_watermark)
    }

    /// The first offset of each epoch, from that of the log start on.
    pub fn epochs(&self) -> &[EpochStart] {
        &self.epochs
    }

    /// The epoch of the last record, if there is one.
    pub fn last_epoch(&self) -> Option<Epoch> {
        self.epochs.last().map(|last| last.epoch)
    }

    /// The greatest epoch at or below `epoch` and the offset at which it ended (KIP-101);
    /// `current` is the epoch of the leader, whose end is the next offset. An epoch that is older
    /// than all that is kept ended where the oldest of those begins, as Kafka says it: "unknown"
    /// would be taken for a log that was cut. Of an epoch that has not begun nothing is known.
    pub fn epoch_end(&self, epoch: Epoch, current: Epoch) -> Option<(Epoch, Offset)> {
        if epoch == current {
            return Some((epoch, self.high_watermark));
        }
        if !(0..current).contains(&epoch) {
            return None;
        }
        let after = self.epochs.partition_point(|start| start.epoch <= epoch);
        let end = self.epochs.get(after).map_or(self.high_watermark, |next| next.start);
        let found = after.checked_sub(1).and_then(|at| self.epochs.get(at));
        Some((found.map_or(epoch, |found| found.epoch), end.max(self.log_start)))
    }

    /// Tells `watch` of everything that settles from here on.
    pub fn watch(&mut self, watch: Watcher) {
        self.watches.retain(|watch| !watch.is_over());
        self.watches.push(watch);
    }

    /// Ends every wait: the partition goes away.
    pub fn close(&mut self) {
        for watch in self.watches.drain(..) {
            watch.fire();
        }
    }

    /// Panics unless L1 to L5 hold.
    pub fn check(&self) {
        assert!(self.log_start <= self.high_watermark && self.high_watermark <= self.next);
        for (one, two) in self.extents.iter().zip(self.extents.iter().skip(1)) {
            assert_eq!(one.next, two.base);
        }
        if let Some(last) = self.extents.back() {
            assert_eq!(last.next, self.next);
        }
        if let Some(first) = self.extents.front() {
            assert!(first.next > self.log_start);
        }
        for (one, two) in self.segments.iter().zip(self.segments.iter().skip(1)) {
            assert!(one.next <= two.base);
        }
        assert!(self.segments.last().is_none_or(|last| last.next <= self.hot_start()));
        for (one, two) in self.epochs.iter().zip(self.epochs.iter().skip(1)) {
            assert!(one.epoch < two.epoch && one.start <= two.start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::TopicNumber;

    const ID: PartitionId = PartitionId { topic: TopicNumber(1), index: 0 };

    fn extent(base: Offset, next: Offset) -> Extent {
        Extent { base, next, location: Location { address: 7, length: 100 }, max_timestamp: 0 }
    }

    fn found(hot_start: Offset, log_start: Offset, extents: &[(Offset, Offset)]) -> Found {
        let log = PartitionLog::new(ID);
        let checkpoint = Checkpoint::new((0, hot_start, 0), &log.segments, &[], &log.producers);
        let extents = extents.iter().map(|(base, next)| extent(*base, *next)).collect();
        Found { checkpoint: Some((0, checkpoint)), log_start, extents, ..Found::default() }
    }

    fn bounds(found: Found) -> Result<(Offset, Offset, Offset), String> {
        let log = PartitionLog::restore(ID, found)?;
        log.check();
        Ok((log.log_start(), log.hot_start(), log.next()))
    }

    #[test]
    fn what_is_in_segments_is_not_taken_from_the_journal_as_well() {
        assert_eq!(bounds(found(20, 0, &[(0, 10), (10, 20), (20, 30)])), Ok((0, 20, 30)));
        assert_eq!(bounds(found(20, 0, &[(0, 10)])), Ok((0, 20, 20)));
        assert_eq!(bounds(found(20, 5, &[])), Ok((5, 20, 20)));
    }

    #[test]
    fn an_entry_is_found_by_its_base_whatever_the_others_hold() {
        for lengths in [&[1; 9][..], &[4; 9], &[1, 7, 2, 90, 1, 1, 3], &[500, 1, 1, 1], &[3]] {
            let mut log = PartitionLog::new(ID);
            let mut bases = vec![];
            for length in lengths {
                bases.push(log.next());
                log.appended(extent(log.next(), log.next() + length), 1);
            }
            log.settled(log.next(), 0);
            log.trim(lengths[0].min(log.next() - 1));
            for base in -3..log.next() + 3 {
                let is_one = bases.contains(&base) && base >= log.hot_start();
                assert_eq!(log.extent(base).is_some(), is_one, "{base} of {lengths:?}");
                assert!(log.extent(base).is_none_or(|extent| extent.base == base));
            }
        }
    }

    /// D6: what a recovery finds may be the checkpoint alone.
    #[test]
    fn a_checkpoint_behind_a_log_start_says_no_less() {
        let mut log = PartitionLog::new(ID);
        for base in [0, 10, 20] {
            log.appended(extent(base, base + 10), 1);
        }
        log.settled(30, 0);
        log.start_asked(20);
        assert_eq!((log.log_start(), log.hot_start()), (0, 0), "it is not durable yet");
        for checkpoint in [log.checkpoint(&[], 0), log.cleaned_checkpoint(&[], 0)] {
            let extents = [extent(20, 30)].into();
            let found = Found { checkpoint: Some((9, checkpoint)), extents, ..Found::default() };
            assert_eq!(bounds(found), Ok((20, 20, 30)));
        }
    }

    /// Java's consumer takes "unknown" for a log that was cut, and resets its position.
    #[test]
    fn an_epoch_older_than_all_that_is_kept_ended_where_the_oldest_begins() {
        let mut log = PartitionLog::new(ID);
        assert_eq!(
            [-1, 0, 4, 5].map(|epoch| log.epoch_end(epoch, 4)),
            [None, Some((0, 0)), Some((4, 0)), None]
        );
        for (base, epoch) in [(0, 1), (10, 3)] {
            log.appended(extent(base, base + 10), epoch);
        }
        log.settled(20, 0);
        let ends = |log: &PartitionLog| [0, 1, 2, 3, 4].map(|epoch| log.epoch_end(epoch, 4));
        let kept = [Some((1, 10)), Some((1, 10)), Some((3, 20)), Some((4, 20))];
        assert_eq!(ends(&log)[..1], [Some((0, 0))]);
        assert_eq!(ends(&log)[1..], kept);
        log.trim(15);
        let gone = [Some((0, 15)), Some((1, 15)), Some((2, 15))];
        assert_eq!(ends(&log)[..3], gone);
        assert_eq!(ends(&log)[3..], kept[2..]);
    }

    #[test]
    fn a_hole_in_what_counts_is_a_contradiction() {
        for holes in [&[(10, 20)][..], &[(0, 10), (20, 30)], &[(0, 10), (10, 20), (21, 30)]] {
            let why = bounds(found(0, 0, holes)).expect_err("a hole");
            assert!(why.contains("contradicts itself"), "{why}");
        }
    }

    /// Simulator, seed 10001 and after: a file with deleted records was used again, an older record
    /// that had been carried on was still in a newer one, and the node did not start.
    #[test]
    fn deleted_records_may_be_left_in_the_journal_with_holes() {
        assert_eq!(bounds(found(0, 68, &[(0, 47), (68, 71)])), Ok((68, 68, 71)));
        assert_eq!(bounds(found(0, 70, &[(0, 47), (68, 71), (71, 80)])), Ok((70, 68, 80)));
        assert_eq!(bounds(found(0, 68, &[(0, 47)])), Ok((68, 68, 68)));
    }
}
