//! Draining: the records of the oldest journal files move into segments until nothing in the files
//! is needed and they are used again.
//!
//!     | file 7: a a b c a ... | file 8: a c ... | ... | file 12: head ► |
//!           │ │ │ └──────────────── b and c are small: one piece each of a pack (`pack`)
//!           └─┴─┴── a's segment, synced ──────────► checkpoints of a, then of b and c
//!
//! Several files are drained at a time, a batch, because what a small partition costs (a place in
//! the pack, a checkpoint) is paid once for all of them.
//!
//! Lives on: every core, one task.  Talks to: `journal`, `segment`.
//!
//! Invariants
//!   D1  A file is released only when everything in it that counts is durable elsewhere: records in
//!       a synced segment that a durable checkpoint names; a newer checkpoint of every partition
//!       named in it; the metadata as a whole.
//!   D2  A segment takes a partition's records in the order of their offsets, settled ones only.
//!   D3  What is deleted or expired by then is not written again.
//!   D4  Memory is bounded by one stretch of the file and one run of small partitions' records.
//!   D5  One drain, clean-up, compaction or merge of packs at a time changes a core's segments.
//!   D6  A checkpoint holds everything that was appended before it, and every change of segments
//!       that was recorded before it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use rustc_hash::FxBuildHasher;

use super::checkpoint::Checkpoint;
use super::pack::Small;
use super::{Extent, Log, Owner, PartitionLog};
use crate::base::ids::{CoreId, Offset, PartitionId};
use crate::config::TopicConfig;
use crate::io::Io;
use crate::journal::{
    Appended, Entry, EntryKind, Journal, Location, Mentioned, NO_PARTITION, Position, Refusal,
    Reread, Rereading,
};
use crate::metadata::{self, Image};
use crate::segment::{Home, Segment, SegmentId};

/// Bytes of records that are moved at a time: the most, and the share of the core's memory. Each
/// partition's file is flushed as often.
pub(super) const STRETCH_BYTES_MAX: usize = 32 << 20;
const STRETCH_SHARE: usize = 16;
/// Bytes of a file that are looked at before others have their turn.
const LOOK_BYTES: u64 = 64 << 10;
/// The most that a batch drains, as a share of the journal, and in bytes.
const BATCH_SHARE: u64 = 4;
const BATCH_BYTES_MAX: u64 = 512 << 20;
/// A partition with less than this in a batch gets no file of its own: at most this, and at most
/// this share of the batch.
pub(super) const SMALL_BYTES_MAX: u64 = 1 << 20;
pub(super) const SMALL_SHARE: u64 = 64;
/// After a failure.
pub(super) const RETRY: Duration = Duration::from_secs(1);
/// How often it is looked whether appended records have settled.
const SETTLE_PAUSE: Duration = Duration::from_millis(1);
/// Checkpoints that are written before others have their turn.
pub(super) const CHECKPOINTS_PER_TURN: u32 = 64;
/// Extents that are gathered before others have their turn.
const EXTENTS_PER_TURN: u32 = 1024;
/// Topics in one entry of the metadata's copy.
pub(super) const COMMANDS_MAX: usize = 500;
/// The largest relative offset that readers of segments take.
pub(super) const SPAN_MAX: Offset = i32::MAX as Offset;

/// One partition's share of a stretch: the entries found in it, by base offset.
pub(super) type Share = BTreeMap<Offset, (Location, Bytes)>;

/// Files that are drained together.
struct Batch {
    begin: u64,
    /// Everything from here on is left for the next batch.
    limit: u64,
    /// What was drained ends here.
    end: u64,
    /// The partitions that the files mention.
    met: Meetings,
    holds_metadata: bool,
    /// Some of the files' groups are damaged.
    is_damaged: bool,
    large: BTreeMap<PartitionId, Share>,
    large_bytes: usize,
    /// See `Reread::memory`.
    kept_last: usize,
    small: Small,
}

type Meetings = HashMap<PartitionId, Met, FxBuildHasher>;

/// What is known of a partition for the length of a batch.
struct Met {
    log: Option<Log>,
    /// Once any of its records were met.
    is_small: Option<bool>,
}

impl Batch {
    fn take_large(&mut self) -> BTreeMap<PartitionId, Share> {
        (self.large_bytes, self.kept_last) = (0, 0);
        std::mem::take(&mut self.large)
    }
}

/// A partition whose records are in segments, not yet recorded.
pub(super) struct Moved {
    log: Log,
    segments: Vec<Segment>,
    hot_start: Offset,
}

/// Drains whenever half of the journal is in use, until the journal ends.
pub async fn run<I: Io>(owner: Rc<Owner<I>>) {
    let mut failing = false;
    owner.journal.set_draining(true);
    loop {
        let seen = owner.journal.file_number();
        while owner.is_filling() || owner.is_oldest_moved() {
            match owner.drain_in_room().await {
                Ok(true) => {
                    if std::mem::take(&mut failing) {
                        tracing::info!("old journal files are drained again");
                        owner.journal.set_draining(true);
                    }
                }
                Ok(false) if owner.is_ending() => return,
                // The last groups of a file that the head has left are still on their way to the
                // disk, and a journal that is full meanwhile begins no other.
                Ok(false) if owner.journal.fill().0 > 1 => owner.io.sleep(SETTLE_PAUSE).await,
                Ok(false) => break,
                Err(_) if owner.is_ending() => return,
                Err(error) => {
                    owner.doubt_directory(&error).await;
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!(
                            "an old journal file cannot be drained: {error}; it is tried again \
                             every second, and writes are refused once the journal is full"
                        );
                        owner.journal.set_draining(false);
                    }
                    owner.io.sleep(RETRY).await;
                }
            }
        }
        if !owner.journal.next_file(seen).await {
            return;
        }
    }
}

impl Batch {
    /// A batch that begins with the file that ends at `first_end`, and drains so many bytes.
    fn of(first_end: u64, bytes: u64, file_bytes: u64) -> Batch {
        let begin = first_end - file_bytes;
        Batch {
            begin,
            limit: begin + bytes,
            end: first_end,
            met: HashMap::default(),
            holds_metadata: false,
            is_damaged: false,
            large: BTreeMap::new(),
            large_bytes: 0,
            kept_last: 0,
            small: Small::default(),
        }
    }
}

impl<I: Io> Owner<I> {
    pub(super) fn is_ending(&self) -> bool {
        // A failed directory's journal is poisoned.
        self.stopping.get() || self.journal.is_closed() || self.journal.poisoned().is_some()
    }

    fn is_filling(&self) -> bool {
        let (used, most) = self.journal.fill();
        used * 2 > most
    }

    /// Whether the oldest file is free for the asking, since all of it was moved early. The fewer
    /// files are in use, the less is written to parts of the device that were never written to.
    fn is_oldest_moved(&self) -> bool {
        let is_active = self.early.is_active(self.io.now());
        let Some(oldest) = self.journal.oldest().filter(|_| is_active) else {
            return false;
        };
        oldest.mentioned().is_some_and(|known| !self.is_left(&known, oldest.file_end()))
    }

    /// Makes the oldest files free; false if there is none but the one being written.
    pub(super) async fn drain_oldest(&self) -> io::Result<bool> {
        let Some(mut file) = self.journal.oldest() else { return Ok(false) };
        let file_bytes = self.journal.file_bytes();
        let began = self.io.now();
        let mut batch = Batch::of(file.file_end(), file_bytes * self.batch_files(), file_bytes);
        let mut outcome = Ok(());
        loop {
            outcome = outcome.and(self.drain_file(&mut file, &mut batch).await);
            batch.end = file.file_end();
            let is_enough = batch.small.is_empty() || batch.end >= batch.limit;
            if outcome.is_err() || is_enough || self.is_pressed() {
                break;
            }
            match self.journal.left_from(batch.end) {
                Some(next) => file = next,
                None => break,
            }
        }
        let outcome = match outcome {
            Ok(()) => self.end_batch(&mut batch).await,
            outcome => outcome,
        };
        batch.small.give_up(&self.store);
        self.store.set_pace(None);
        // Packs that were given up take the space that the next attempt needs.
        self.tend.wake();
        outcome?;
        tracing::debug!(
            "{} files of the journal are free after {:?}: {} partitions had records in them, {} \
             of them went into a pack",
            (batch.end - batch.begin) / file_bytes,
            self.io.now() - began,
            batch.met.len(),
            batch.met.values().filter(|met| met.is_small == Some(true)).count()
        );
        Ok(true)
    }

    /// Files that are drained together.
    fn batch_files(&self) -> u64 {
        let (_, most) = self.journal.fill();
        let within = BATCH_BYTES_MAX / self.journal.file_bytes();
        (most / BATCH_SHARE).min(within).max(1)
    }

    /// Moves what counts in a file, or sets it aside for the pack.
    async fn drain_file(&self, file: &mut Rereading<I>, batch: &mut Batch) -> io::Result<()> {
        let mentioned = file.mentioned();
        if let Some(mentioned) = mentioned.filter(|known| !self.is_left(known, file.file_end())) {
            batch.holds_metadata |= mentioned.has_metadata;
            for id in mentioned.partitions {
                self.meet(id, &mut batch.met);
            }
            return Ok(());
        }
        let stretch = STRETCH_BYTES_MAX.min(self.arena.budget() / STRETCH_SHARE);
        let mut seen = file.address();
        while file.next(|found| self.sort(&found, batch)).await? {
            self.set_pace();
            if file.address() >= seen + LOOK_BYTES {
                seen = file.address();
                self.io.cede().await;
            }
            if batch.large_bytes >= stretch {
                self.move_stretch(batch.take_large()).await?;
            }
            if batch.small.is_run(&self.arena) {
                self.write_run(&mut batch.small).await?;
            }
        }
        batch.is_damaged |= file.is_damaged();
        self.move_stretch(batch.take_large()).await
    }

    /// Whether any records of these partitions are still in the journal below `end`.
    fn is_left(&self, mentioned: &Mentioned, end: u64) -> bool {
        let has_left = |log: Log| log.borrow().last_below(end).is_some();
        mentioned.partitions.iter().any(|id| self.log(*id).is_some_and(has_left))
    }

    /// Puts what was found in a file with its like.
    fn sort(&self, found: &Reread<'_>, batch: &mut Batch) {
        let id = found.entry.partition;
        match found.entry.kind {
            EntryKind::Metadata => batch.holds_metadata = true,
            EntryKind::LogStart | EntryKind::Checkpoint => {
                self.meet(id, &mut batch.met);
            }
            EntryKind::Batches | EntryKind::Carried => {
                let met = self.meet(id, &mut batch.met);
                let Some(log) = met.log.as_ref().filter(|log| counts(log, found)) else { return };
                // A partition with too little for a file of its own.
                let is_small = || log.borrow().hot_bytes_below(batch.limit) < self.small_bytes();
                if *met.is_small.get_or_insert_with(is_small) {
                    batch.small.take(found);
                } else {
                    batch.large_bytes += found.memory(&mut batch.kept_last);
                    let body = (found.location, found.keep());
                    batch.large.entry(id).or_default().insert(found.entry.base_offset, body);
                }
            }
        }
    }

    /// What is known of `id` in a batch.
    fn meet<'a>(&self, id: PartitionId, met: &'a mut Meetings) -> &'a mut Met {
        met.entry(id).or_insert_with(|| Met { log: self.log(id), is_small: None })
    }

    /// A partition with less in a batch gets no file of its own.
    pub(super) fn small_bytes(&self) -> u64 {
        let bytes = self.journal.file_bytes() * self.batch_files();
        SMALL_BYTES_MAX.min(bytes / SMALL_SHARE)
    }

    /// Records what the batch's pack holds, and everything else that is needed of its files; then
    /// they are free.
    async fn end_batch(&self, batch: &mut Batch) -> io::Result<()> {
        self.record_small(&mut batch.small).await?;
        if batch.is_damaged {
            // Nobody knows what the damaged groups named.
            let all: Vec<PartitionId> = self.logs.borrow().keys().copied().collect();
            for id in all {
                self.meet(id, &mut batch.met);
            }
            batch.holds_metadata |= self.core() == CoreId::FIRST;
        }
        let mut touched: Vec<PartitionId> = batch.met.keys().copied().collect();
        touched.sort_unstable();
        let mut last = None;
        for id in &touched {
            // Something else has moved a part of what the pack took.
            let left = self.log(*id).and_then(|log| {
                let through = log.borrow().last_below(batch.end)?;
                Some((log, through))
            });
            if let Some((log, through)) = left {
                self.drain_partition(&log, through).await?;
            }
        }
        if batch.holds_metadata {
            last = last.max(self.copy_metadata().await?);
        }
        {
            // Whoever else changes segments records that first (D6).
            let _turn = self.storage_turn.turn().await;
            for (id, count) in touched.iter().zip(1_u32..) {
                last = last.max(self.checkpoint_again(*id, batch.end).await?);
                if count.is_multiple_of(CHECKPOINTS_PER_TURN) {
                    self.io.cede().await;
                }
            }
        }
        self.await_durable(last).await?;
        self.journal.release(batch.end);
        Ok(())
    }

    /// Moves the records of one stretch, and returns when they are durable in their new places.
    async fn move_stretch(&self, shares: BTreeMap<PartitionId, Share>) -> io::Result<()> {
        let _turn = self.storage_turn.turn().await;
        if self.is_ending() {
            return Err(io::Error::other("the node is stopping"));
        }
        let mut moved = Vec::new();
        let mut files = BTreeSet::new();
        for (id, share) in shares {
            let Some(log) = self.log(id) else { continue };
            let is_left = |(base, (location, _)): &(&Offset, &(Location, Bytes))| {
                let extent = log.borrow().extent(**base);
                extent.is_some_and(|extent| extent.location == *location)
            };
            let last = share.iter().rev().find(is_left);
            let Some(through) = last.map(|(base, _)| *base) else { continue };
            if let Some(done) = self.fill_segments(&log, through, share, &mut files).await? {
                moved.push(done);
            }
            self.io.cede().await;
        }
        self.record(moved, files).await
    }

    /// Moves a partition's records up to the entry that begins at `through` into its segments.
    pub(super) async fn drain_partition(&self, log: &Log, through: Offset) -> io::Result<()> {
        let _turn = self.storage_turn.turn().await;
        if self.is_ending() {
            return Err(io::Error::other("the node is stopping"));
        }
        let mut files = BTreeSet::new();
        let moved = self.fill_segments(log, through, Share::new(), &mut files).await?;
        self.record(moved.into_iter().collect(), files).await
    }

    /// Makes what was moved durable, and has the partitions read it from there.
    pub(super) async fn record(
        &self,
        moved: Vec<Moved>,
        files: BTreeSet<SegmentId>,
    ) -> io::Result<()> {
        self.store.sync_all(&files).await?;
        // A checkpoint that is journaled counts, whatever becomes of those behind it: another
        // attempt must not write what it names once more.
        let mut recorded = Vec::new();
        let mut outcome = Ok(());
        let mut last = None;
        for done in moved {
            let of = |log: &PartitionLog| log.checkpoint(&done.segments, done.hot_start);
            match self.append_checkpoint(&done.log, of).await {
                Ok(position) => {
                    last = last.max(Some(position));
                    recorded.push(done);
                }
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        self.await_durable(last).await?;
        for Moved { log, segments, hot_start } in recorded {
            log.borrow_mut().drained(segments, hot_start);
        }
        outcome
    }

    /// Writes the partition's records up to the entry that begins at `through` into its segments.
    pub(super) async fn fill_segments(
        &self,
        log: &Log,
        through: Offset,
        mut share: Share,
        files: &mut BTreeSet<SegmentId>,
    ) -> io::Result<Option<Moved>> {
        let partition = log.borrow().id();
        let image = self.image();
        let Some(topic) = image.topic_by_number(partition.topic) else { return Ok(None) };
        let config = self.topic_config(topic);
        let extents = log.borrow().extents_through(through);
        let Some(hot_start) = extents.last().map(|last| last.next) else { return Ok(None) };
        self.settled(log, hot_start).await?;
        let mut segments = log.borrow().segments().to_vec();
        let mut pieces: Vec<Bytes> = Vec::new();
        let first = extents.first().map_or(hot_start, |first| first.base);
        // The files of one whose records are all deleted may be gone.
        let log_start = log.borrow().log_start();
        let may_grow = |last: &mut Segment| {
            last.pack().is_none() && !last.is_sparse() && last.next > log_start
        };
        let mut growing = match segments.pop_if(may_grow) {
            Some(last) => last,
            None => self.new_segment(first),
        };
        if !self.store.takes_more(growing.id(partition), growing.bytes).await {
            segments.push(std::mem::replace(&mut growing, self.new_segment(first)));
        }
        let mut recorded = growing.bytes;
        for (extent, count) in extents.into_iter().zip(1_u32..) {
            if count.is_multiple_of(EXTENTS_PER_TURN) {
                self.io.cede().await;
            }
            let bytes = match share.remove(&extent.base) {
                Some((location, body)) if location == extent.location => body,
                _ => self.read_to_move(log, &extent).await?.0,
            };
            if self.is_to_roll(&growing, &extent, &config) {
                let id = growing.id(partition);
                if !pieces.is_empty() {
                    self.store.append(id, recorded, &std::mem::take(&mut pieces)).await?;
                    files.insert(id);
                }
                self.store.close(id, growing.bytes).await?;
                segments.push(growing);
                growing = self.new_segment(extent.base);
                recorded = 0;
            }
            growing.next = extent.next;
            growing.bytes += bytes.len() as u64;
            growing.max_timestamp = growing.max_timestamp.max(extent.max_timestamp);
            pieces.push(bytes);
        }
        let id = growing.id(partition);
        self.store.append(id, recorded, &pieces).await?;
        files.insert(id);
        segments.push(growing);
        Ok(Some(Moved { log: log.clone(), segments, hot_start }))
    }

    /// Returns when everything before `next` has settled.
    pub(super) async fn settled(&self, log: &Log, next: Offset) -> io::Result<()> {
        while log.borrow().high_watermark() < next {
            if self.is_ending() {
                return Err(io::Error::other("the node is stopping"));
            }
            self.io.sleep(SETTLE_PAUSE).await;
        }
        Ok(())
    }

    fn new_segment(&self, base: Offset) -> Segment {
        let (begun, home) = (self.io.wall().0, Home::NEW);
        Segment { base, next: base, bytes: 0, max_timestamp: -1, begun, home }
    }

    /// Whether a segment takes no more: Kafka's rules.
    fn is_to_roll(&self, segment: &Segment, extent: &Extent, config: &TopicConfig) -> bool {
        let bytes = segment.bytes + u64::from(extent.location.length);
        segment.bytes > 0
            && (extent.base != segment.next
                || bytes > config.segment_bytes
                || self.io.wall().0.saturating_sub(segment.begun) > config.segment_ms
                || extent.next - segment.base > SPAN_MAX)
    }

    /// A new checkpoint of a partition whose last one stands below `end`.
    async fn checkpoint_again(&self, id: PartitionId, end: u64) -> io::Result<Option<Position>> {
        let Some(log) = self.log(id) else { return Ok(None) };
        if !log.borrow().is_checkpointed_before(end) {
            return Ok(None);
        }
        let of = |log: &PartitionLog| log.checkpoint(log.segments(), log.hot_start());
        self.append_checkpoint(&log, of).await.map(Some)
    }

    /// Journals what `of` gives. What is appended while this waits for room is known to it: the
    /// checkpoint stands behind that, and counts.
    pub(super) async fn append_checkpoint(
        &self,
        log: &Log,
        of: impl Fn(&PartitionLog) -> Checkpoint,
    ) -> io::Result<Position> {
        // A checkpoint holds all producers.
        self.forget_silent(log);
        let mut room = 0;
        loop {
            let checkpoint = of(&log.borrow());
            let body = checkpoint.encode().map_err(io::Error::other)?;
            if body.len() > room {
                room = body.len();
                self.journal.room_to_manage(room).await.map_err(refused)?;
                continue;
            }
            return self.append_checkpoint_body(log, &checkpoint, &body);
        }
    }

    /// As `append_checkpoint`, where there was just room.
    pub(super) fn append_checkpoint_now(
        &self,
        log: &Log,
        checkpoint: &Checkpoint,
    ) -> io::Result<Position> {
        let body = checkpoint.encode().map_err(io::Error::other)?;
        self.append_checkpoint_body(log, checkpoint, &body)
    }

    fn append_checkpoint_body(
        &self,
        log: &Log,
        checkpoint: &Checkpoint,
        body: &[u8],
    ) -> io::Result<Position> {
        let entry = Entry {
            kind: EntryKind::Checkpoint,
            partition: log.borrow().id(),
            base_offset: checkpoint.hot_start,
            epoch: self.leader_epoch(),
        };
        let appended = self.journal.append(entry, body, |_| {}).map_err(refused)?;
        log.borrow_mut().checkpointed_at(appended.location.address);
        Ok(appended.position)
    }

    /// The whole metadata once more.
    async fn copy_metadata(&self) -> io::Result<Option<Position>> {
        let _turn = self.controller().turn().await;
        copy_image(&self.journal, &self.image()).await
    }

    pub(super) async fn await_durable(&self, last: Option<Position>) -> io::Result<()> {
        let Some(last) = last else { return Ok(()) };
        let durable = self.journal.wait_durable(last).await;
        durable.map_err(|poisoned| io::Error::other(poisoned.to_string()))
    }
}

/// Whether records found in a file are those that the partition's state means.
fn counts(log: &Log, found: &Reread<'_>) -> bool {
    let extent = log.borrow().extent(found.entry.base_offset);
    extent.is_some_and(|extent| extent.location == found.location)
}

/// Journals the whole of `image`.
pub(super) async fn copy_image<I: Io>(
    journal: &Journal<I>,
    image: &Image,
) -> io::Result<Option<Position>> {
    let mut last = None;
    for commands in image.commands().chunks(COMMANDS_MAX) {
        let body = metadata::encode(commands).map_err(io::Error::other)?;
        let entry = Entry {
            kind: EntryKind::Metadata,
            partition: NO_PARTITION,
            base_offset: 0,
            epoch: image.leader_epoch(),
        };
        last = last.max(Some(append_to(journal, entry, &body).await?.position));
    }
    Ok(last)
}

/// Journals an entry by which the journal is kept in order.
pub(super) async fn append_to<I: Io>(
    journal: &Journal<I>,
    entry: Entry,
    body: &[u8],
) -> io::Result<Appended> {
    journal.room_to_manage(body.len()).await.map_err(refused)?;
    journal.append(entry, body, |_| {}).map_err(refused)
}

pub(super) fn refused(refusal: Refusal) -> io::Error {
    io::Error::other(refusal.to_string())
}
