//! Compaction on the owner core: a partition's closed segments become new files without the records
//! that `crate::compaction` lets go.
//!
//!     00000.log 04711.log | 09000.log (active), journal
//!          └─ read, judged ─► 00000.1.log, synced ─► checkpoint names it, durable ─► old files go
//!
//! Lives on: every core, one task, one partition at a time.  Talks to: `segment`, `journal`.
//!
//! What is only in the journal and what is in the active segment, the last one, is not compacted.
//! Both are bounded: records go into segments as their journal file is drained; the active segment
//! is closed at `segment.bytes`, or when it is older than `segment.ms` or `max.compaction.lag.ms`.
//! So `__consumer_offsets` keeps, for each partition, one segment, what is in the journal, and its
//! compacted records. Once records are as old as that they leave the journal by themselves, even
//! few of them where segments are short, and are compacted within about as much time again.
//!
//! Invariants
//!   Y1  A segment that a durable checkpoint names is never changed; its successor is a file of
//!       another generation, recorded only after it was synced whole.
//!   Y2  Readers see a successor only after the checkpoint that names it is durable: what a crash
//!       takes back was never seen. The file before it goes once that checkpoint is flushed.
//!   Y3  The last records of a partition stay: something settled always stands behind what is
//!       compacted.
//!   Y4  A group's records are dropped only after those of the groups before it were.
//!   Y5  Memory is bounded by the map of keys, a read, and the largest batch; between two batches
//!       others have their turn. Nobody waits for more than the recording of a finished file.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::drain::SMALL_BYTES_MAX;
use super::{Log, Owner};
use crate::base::ids::{Offset, PartitionId};
use crate::base::time::Instant;
use crate::compaction::{Dirty, Fate, Filter, OffsetMap, Policy, groups, look, note};
use crate::config::TopicConfig;
use crate::io::Io;
use crate::segment::{Home, Segment, SegmentId, Span};
use crate::wire::records::{self, BatchHeader, Codec};

/// Bytes that are read at a time, and that are collected before they are written.
const STEP_BYTES: usize = 512 << 10;
/// Bytes of plain batches that are judged before others have their turn.
const SLICE_BYTES: usize = 64 << 10;
/// Partitions that are looked at before others have their turn.
const SLICE: u32 = 256;
/// A partition that could not be compacted is left alone for so long.
const RETRY: Duration = Duration::from_secs(60);
/// Bytes of a partition that leave the journal at a time because they are late.
const LATE_BYTES: u64 = 4 << 20;
/// Where segments last as long as this, a partition with less than `SMALL_BYTES_MAX` in the journal
/// gets no file of its own for being late: there may be very many of them.
const SEGMENT_MS_LONG: i64 = 24 * 60 * 60 * 1000;
/// More than most checkpoints take.
const CHECKPOINT_BYTES: usize = 64 << 10;
/// How often the journal is asked for room before a finished file is given up.
const ROOM_TRIES: u32 = 3;

/// What is to be done, and where.
struct Work {
    log: Log,
    partition: PartitionId,
    segments: Vec<Segment>,
    dirty: Dirty,
    policy: Policy,
    delete_retention_ms: i64,
    /// Records have been dirty for longer than the topic allows.
    is_late: bool,
}

/// The new file of a group of segments.
struct Output {
    segment: Segment,
    /// Batches that are not written yet.
    pieces: Vec<Bytes>,
    bytes: usize,
    /// Something of the group is left out or written anew.
    is_changed: bool,
}

/// Compacts what is dirty enough, the dirtiest first, and looks again after
/// `log.cleaner.backoff.ms`.
pub async fn run<I: Io>(owner: Rc<Owner<I>>) {
    // A compaction may have been cut short before that was turned off.
    owner.remove_strays().await;
    let config = owner.shared.config().clone();
    if !config.bool("log.cleaner.enable") {
        return;
    }
    let millis = u64::try_from(config.int("log.cleaner.backoff.ms")).unwrap_or(u64::MAX);
    let mut avoided: BTreeMap<PartitionId, Instant> = BTreeMap::new();
    while !owner.is_ending() {
        let now = owner.io.now();
        avoided.retain(|_, until| *until > now);
        let Some(work) = owner.dirtiest(&avoided).await else {
            owner.io.sleep(Duration::from_millis(millis)).await;
            continue;
        };
        if let Err(error) = owner.compact(&work).await {
            if owner.is_ending() {
                return;
            }
            avoided.insert(work.partition, owner.io.now() + RETRY);
            if error.kind() != io::ErrorKind::Interrupted {
                tracing::warn!(
                    "{} is not compacted: {error}; it is tried again in a minute",
                    work.partition
                );
            }
        }
        owner.io.cede().await;
    }
}

impl<I: Io> Owner<I> {
    /// Removes the files that a crash has left of a compaction, or of the segments before it.
    async fn remove_strays(&self) {
        let ids: Vec<PartitionId> = self.logs.borrow().keys().copied().collect();
        for (id, count) in ids.into_iter().zip(1_u32..) {
            if count.is_multiple_of(SLICE) {
                self.io.cede().await;
            }
            let Some(log) = self.log(id).filter(|log| self.may_have_strays(log)) else { continue };
            let _turn = self.storage_turn.turn().await;
            if self.is_ending() {
                return;
            }
            let named = log.borrow().segments().to_vec();
            if let Err(error) = self.store.remove_strays(id, &named).await {
                tracing::warn!("files of {id} that nothing names are not removed: {error}");
            }
        }
    }

    fn may_have_strays(&self, log: &Log) -> bool {
        let log = log.borrow();
        let image = self.image();
        let Some(topic) = image.topic_by_number(log.id().topic) else { return false };
        let was_compacted = log.segments().iter().any(|segment| segment.generation() > 0);
        was_compacted || self.topic_config(topic).is_compacted
    }

    /// The partition that is most in need of compaction.
    async fn dirtiest(&self, avoided: &BTreeMap<PartitionId, Instant>) -> Option<Work> {
        let image = self.image();
        let mut best: Option<Work> = None;
        for topic in image.topics() {
            let config = self.topic_config(topic);
            if !config.is_compacted {
                continue;
            }
            for index in 0..topic.partitions {
                if index % SLICE == SLICE - 1 {
                    self.io.cede().await;
                }
                let id = PartitionId { topic: topic.number, index };
                let Some(log) = self.log(id).filter(|_| !avoided.contains_key(&id)) else {
                    continue;
                };
                let Some(work) = self.work_of(log, &config).await else { continue };
                let need = |work: &Work| (work.is_late, work.dirty.ratio);
                if best.as_ref().is_none_or(|best| need(&work) > need(best)) {
                    best = Some(work);
                }
            }
        }
        best
    }

    /// What of a partition is due.
    async fn work_of(&self, log: Log, config: &TopicConfig) -> Option<Work> {
        let now = self.io.wall().0;
        let has_bound = config.max_compaction_lag_ms < i64::MAX;
        let is_short = has_bound || config.segment_ms < SEGMENT_MS_LONG;
        if is_short || log.borrow().hot_bytes() >= SMALL_BYTES_MAX {
            self.drain_late(&log, now.saturating_sub(config.segment_ms)).await;
        }
        let policy = Policy {
            min_lag_ms: config.min_compaction_lag_ms,
            dirty_ratio: config.dirty_ratio,
            segment_bytes: config.segment_bytes,
        };
        let (partition, cleaned, segments) = {
            let log = log.borrow();
            (log.id(), log.cleaned(), log.closed_segments(now, config.segment_ms))
        };
        let dirty = look(&segments, cleaned, &policy, now)?;
        let delete_retention_ms = config.delete_retention_ms;
        let is_late = false;
        let mut work =
            Work { log, partition, segments, dirty, policy, delete_retention_ms, is_late };
        if has_bound {
            // A place that cannot be read is told of by the compaction that it prevents.
            let first = self.first_timestamp(&work).await.unwrap_or(0);
            work.is_late = now.saturating_sub(first) > config.max_compaction_lag_ms;
        }
        (work.is_late || dirty.ratio > policy.dirty_ratio).then_some(work)
    }

    /// Takes records out of the journal once the oldest is older than a segment may be, all but the
    /// last: as often as that, a partition has something new to compact.
    async fn drain_late(&self, log: &Log, oldest: i64) {
        loop {
            let (through, hot_start) = {
                let log = log.borrow();
                (log.late_through(oldest, LATE_BYTES), log.hot_start())
            };
            let Some(through) = through.filter(|_| !self.is_ending()) else { return };
            // Nobody waits for room while others wait for the turn.
            let drained = async {
                self.journal.room(CHECKPOINT_BYTES).await.map_err(super::drain::refused)?;
                self.drain_partition(log, through).await
            };
            if let Err(error) = drained.await {
                tracing::warn!("{} stays in the journal: {error}", log.borrow().id());
                return;
            }
            if log.borrow().hot_start() == hot_start {
                return; // the topic is deleted
            }
        }
    }

    /// The timestamp of the first dirty batch.
    async fn first_timestamp(&self, work: &Work) -> io::Result<i64> {
        let start = work.dirty.start;
        for segment in work.segments.iter().filter(|segment| segment.next > start) {
            let id = segment.id(work.partition);
            let span = self.store.read(id, segment, start.max(segment.base), 1).await?;
            if let Some((header, _)) = records::batches(&span.batches).next() {
                return Ok(header.max_timestamp);
            }
        }
        Ok(self.io.wall().0)
    }

    /// One run over a partition: as far as the map of keys reaches.
    async fn compact(&self, work: &Work) -> io::Result<()> {
        let began = self.io.now();
        let (map, end) = self.map_keys(work).await?;
        let last_batches = work.log.borrow().producers.last_batches();
        let now = self.io.wall().0;
        let mut filter = Filter::new(&map, &last_batches, now, work.delete_retention_ms);
        let groups = groups(&work.segments, end, work.policy.segment_bytes);
        let (mut before, mut after) = (0, 0);
        for (at, group) in groups.iter().enumerate() {
            let output = match self.rewrite(work, group, &mut filter).await {
                Ok(output) => output,
                Err((id, error)) => {
                    // Nothing names it, and the disk may be full.
                    drop(self.store.remove(id).await);
                    return Err(error);
                }
            };
            before += group.iter().map(|segment| segment.bytes).sum::<u64>();
            after += output.segment.bytes;
            let cleaned = if at + 1 == groups.len() { end } else { 0 };
            self.replace(work, group, &output, cleaned).await?;
        }
        tracing::debug!(
            "{} is compacted up to offset {end}: {before} bytes in {} groups became {after} in \
             {:?}",
            work.partition,
            groups.len(),
            self.io.now() - began
        );
        Ok(())
    }

    /// The newest offset of each dirty key, and one past the last offset that the map has taken.
    async fn map_keys(&self, work: &Work) -> io::Result<(OffsetMap, Offset)> {
        let Dirty { start, end, .. } = work.dirty;
        let dirty = work.segments.iter().filter(|s| s.next > start && s.base < end);
        let dirty: Vec<&Segment> = dirty.collect();
        let keys: Offset = dirty.iter().map(|s| s.next - s.base.max(start)).sum();
        let config = self.shared.config();
        let bytes =
            config.size("log.cleaner.dedupe.buffer.size") / usize::from(self.shared.shards());
        let secret = [self.io.random(), self.io.random()];
        let mut map = OffsetMap::new(bytes as u64, keys.unsigned_abs(), secret);
        for segment in dirty {
            let mut from = segment.base.max(start);
            while from < segment.next {
                let span = self.read_step(work, segment, from).await?;
                for (header, batch) in records::batches(&span.batches) {
                    if !note(&mut map, &header, batch, start) {
                        let latest = map.latest().filter(|latest| *latest >= start);
                        let latest = latest.ok_or_else(|| io::Error::other("no key fits"))?;
                        return Ok((map, latest + 1));
                    }
                    self.yield_after(&header, batch).await;
                }
                from = span.next;
            }
        }
        Ok((map, end))
    }

    async fn read_step(&self, work: &Work, segment: &Segment, from: Offset) -> io::Result<Span> {
        if self.is_ending() {
            return Err(interrupted("the node is stopping"));
        }
        let id = segment.id(work.partition);
        let moves = work.log.borrow().moves();
        let read = self.store.read(id, segment, from, STEP_BYTES).await;
        let span = read.map_err(|error| match work.log.borrow().moves() == moves {
            true => error,
            false => interrupted("its segments have changed"),
        })?;
        self.pace(span.batches.len()).await;
        let next = span.next;
        let batches = self.with_true_headers(&work.log, segment, span);
        Ok(Span { batches, next, misplaced: Vec::new() })
    }

    /// Sleeps as long as so many bytes may take at `log.cleaner.io.max.bytes.per.second`.
    async fn pace(&self, bytes: usize) {
        let rate = self.shared.config().double("log.cleaner.io.max.bytes.per.second");
        let seconds = bytes as f64 / rate.max(1.0);
        if seconds > 1e-6 {
            self.io.sleep(Duration::from_secs_f64(seconds)).await;
        }
    }

    async fn yield_after(&self, header: &BatchHeader, batch: &[u8]) {
        if header.codec() != Some(Codec::None) || batch.len() >= SLICE_BYTES {
            self.io.cede().await;
        }
    }

    /// Writes what stays of a group of segments into a new file, and makes it durable. The error
    /// comes with the file that it leaves.
    async fn rewrite(
        &self,
        work: &Work,
        group: &[Segment],
        filter: &mut Filter<'_>,
    ) -> Result<Output, (SegmentId, io::Error)> {
        let mut output = Output::of(group);
        let id = output.segment.id(work.partition);
        let written = async {
            for segment in group {
                self.rewrite_segment(work, segment, filter, &mut output).await?;
            }
            if !output.is_changed {
                // The group stays as it is.
                drop(self.store.remove(id).await);
            } else {
                self.write(work, &mut output).await?;
                if output.segment.bytes > 0 {
                    self.store.close(id, output.segment.bytes).await?;
                    self.store.sync(id).await?;
                }
            }
            Ok(())
        };
        let written = written.await;
        written.map(|()| output).map_err(|error| (id, error))
    }

    async fn rewrite_segment(
        &self,
        work: &Work,
        segment: &Segment,
        filter: &mut Filter<'_>,
        output: &mut Output,
    ) -> io::Result<()> {
        let mut from = segment.base;
        let mut judged = 0;
        while from < segment.next {
            let span = self.read_step(work, segment, from).await?;
            for (header, batch) in records::batches(&span.batches) {
                output
                    .take(&header, filter.judge(&header, batch), || span.batches.slice_ref(batch));
                judged += batch.len();
                if judged >= SLICE_BYTES {
                    judged = 0;
                    self.io.cede().await;
                }
                self.yield_after(&header, batch).await;
            }
            if output.bytes >= STEP_BYTES {
                self.write(work, output).await?;
            }
            from = span.next;
        }
        Ok(())
    }

    /// Appends what is collected to the new file.
    async fn write(&self, work: &Work, output: &mut Output) -> io::Result<()> {
        let pieces = std::mem::take(&mut output.pieces);
        let bytes = std::mem::take(&mut output.bytes);
        if pieces.is_empty() {
            return Ok(());
        }
        let id = output.segment.id(work.partition);
        let recorded = output.segment.bytes;
        // The file is made where no topic is removed meanwhile.
        let turn = match recorded {
            0 => Some(self.storage_turn.turn().await),
            _ => None,
        };
        self.check_wanted(work)?;
        output.segment.bytes = self.store.append(id, recorded, &pieces).await?;
        drop(turn);
        self.pace(bytes).await;
        Ok(())
    }

    /// Whether the partition is still there and the node goes on.
    fn check_wanted(&self, work: &Work) -> io::Result<()> {
        let is_there = self.log(work.partition).is_some_and(|log| Rc::ptr_eq(&log, &work.log));
        if is_there && !self.is_ending() { Ok(()) } else { Err(interrupted("nobody wants it")) }
    }

    /// Records that `output` stands for `group`, and removes the group's files.
    async fn replace(
        &self,
        work: &Work,
        group: &[Segment],
        output: &Output,
        cleaned: Offset,
    ) -> io::Result<()> {
        if !output.is_changed && cleaned == 0 {
            return Ok(());
        }
        let new = output.segments(group);
        for _ in 0..ROOM_TRIES {
            // Nobody waits for room while others wait for the turn: a drain may have to make it.
            let body = work.log.borrow().cleaned_checkpoint(work.log.borrow().segments(), cleaned);
            let bytes = body.encode().map_err(io::Error::other)?.len();
            self.journal.room(bytes).await.map_err(super::drain::refused)?;
            let turn = self.storage_turn.turn().await;
            self.check_wanted(work)?;
            let segments = replaced(work.log.borrow().segments(), group, &new)
                .ok_or_else(|| interrupted("its segments have changed"))?;
            let checkpoint = work.log.borrow().cleaned_checkpoint(&segments, cleaned);
            let Ok(position) = self.append_checkpoint_now(&work.log, &checkpoint) else { continue };
            self.await_durable(Some(position)).await?;
            work.log.borrow_mut().compacted(segments, cleaned);
            drop(turn);
            let flushed = self.journal.wait_flushed(position).await;
            flushed.map_err(|poisoned| io::Error::other(poisoned.to_string()))?;
            for old in group.iter().filter(|old| !new.contains(old)) {
                self.remove_old(old.id(work.partition)).await;
            }
            return Ok(());
        }
        Err(io::Error::other("the journal has no room to record it"))
    }

    async fn remove_old(&self, id: SegmentId) {
        if let Err(error) = self.store.remove(id).await {
            let path = self.store.path(id);
            tracing::warn!("{} is not removed before the next start: {error}", path.display());
        }
    }
}

impl Output {
    /// A file in the place of `group`, which has at least one segment.
    fn of(group: &[Segment]) -> Output {
        let first = group.first().copied();
        let last = group.last().copied();
        let (base, generation) = first.map_or((0, 0), |first| (first.base, first.generation() + 1));
        let (next, begun) = last.map_or((0, 0), |last| (last.next, last.begun));
        let home = Home::File { generation };
        let segment = Segment { base, next, bytes: 0, max_timestamp: -1, begun, home };
        Output { segment, pieces: Vec::new(), bytes: 0, is_changed: group.len() > 1 }
    }

    fn take(&mut self, header: &BatchHeader, fate: Fate, whole: impl FnOnce() -> Bytes) {
        let (piece, has_records, max_timestamp) = match fate {
            Fate::Gone => {
                self.is_changed = true;
                return;
            }
            Fate::Whole => (whole(), header.count > 0, header.max_timestamp),
            Fate::Rewritten(bytes) => {
                self.is_changed = true;
                let header = BatchHeader::read(&bytes);
                let (count, max) = header.map_or((0, -1), |h| (h.count, h.max_timestamp));
                (Bytes::from(bytes), count > 0, max)
            }
        };
        if has_records {
            self.segment.max_timestamp = self.segment.max_timestamp.max(max_timestamp);
        }
        self.bytes += piece.len();
        self.pieces.push(piece);
    }

    /// What stands in the place of `group`: the new file, none, or the group as it was.
    fn segments(&self, group: &[Segment]) -> Vec<Segment> {
        match (self.is_changed, self.segment.bytes) {
            (false, _) => group.to_vec(),
            (true, 0) => Vec::new(),
            (true, _) => vec![self.segment],
        }
    }
}

/// `all` with `new` in the place of `group`; `None` if the group is not there any more.
fn replaced(all: &[Segment], group: &[Segment], new: &[Segment]) -> Option<Vec<Segment>> {
    let at = all.iter().position(|segment| group.first() == Some(segment))?;
    let end = at + group.len();
    if all.get(at..end)? != group {
        return None;
    }
    Some([&all[..at], new, &all[end..]].concat())
}

fn interrupted(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Interrupted, why)
}
