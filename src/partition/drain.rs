//! Draining: the oldest journal file's records move into segments, or ahead in the journal while
//! they are few, until nothing in the file is needed and it is used again.
//!
//!     | file 7: a a b c a ... | ... | file 12: head ► |
//!           │ │ │ └── c is small: carried on ────────►│ c, checkpoint of c
//!           └─┴─┴──► a's segment, b's segment, synced ►│ checkpoints of a and b
//!
//! Lives on: every core, one task.  Talks to: `journal`, `segment`.
//!
//! Invariants
//!   D1  A file is released only when everything in it that counts is durable elsewhere: records in
//!       a synced segment that a durable checkpoint names, or in a newer group; a newer checkpoint
//!       of every partition named in it; the metadata as a whole.
//!   D2  A segment takes a partition's records in the order of their offsets, settled ones only.
//!   D3  What is deleted or expired by then is not written again.
//!   D4  Memory is bounded by one stretch of the file.
//!   D5  One drain, clean-up or compaction at a time changes a core's segments.
//!   D6  A checkpoint holds everything that was appended before it, and every change of segments
//!       that was recorded before it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::checkpoint::Checkpoint;
use super::{Extent, Log, Owner, PartitionLog};
use crate::base::ids::{Offset, PartitionId};
use crate::config::TopicConfig;
use crate::io::Io;
use crate::journal::{
    Appended, Entry, EntryKind, Location, NO_PARTITION, Position, Refusal, Reread,
};
use crate::metadata;
use crate::segment::{Segment, SegmentId};

/// Bytes of records that are moved at a time.
const STRETCH_BYTES: usize = 8 << 20;
/// A partition with less than this in the journal stays there: a file of its own would cost more.
const SMALL_BYTES: u64 = 64 << 10;
/// What may be carried on altogether, as a share of the journal.
const CARRIED_SHARE: u64 = 4;
/// After a failure.
const RETRY: Duration = Duration::from_secs(1);
/// How often it is looked whether appended records have settled.
const SETTLE_PAUSE: Duration = Duration::from_millis(1);
/// Topics in one entry of the metadata's copy.
const COMMANDS_MAX: usize = 500;
/// The largest relative offset that readers of segments take.
const SPAN_MAX: Offset = i32::MAX as Offset;

/// One partition's share of a stretch: the records found in it, by base offset.
type Share = BTreeMap<Offset, Reread>;

/// A partition whose records are in segments, not yet recorded.
struct Moved {
    log: Log,
    segments: Vec<Segment>,
    hot_start: Offset,
}

/// Records that stand further ahead in the journal now.
struct Carried {
    log: Log,
    base: Offset,
    location: Location,
}

/// Drains whenever half of the journal is in use, until the journal ends.
pub async fn run<I: Io>(owner: Rc<Owner<I>>) {
    let mut failing = false;
    owner.journal.set_draining(true);
    loop {
        let seen = owner.journal.file_number();
        while owner.is_filling() {
            match owner.drain_oldest().await {
                Ok(true) => {
                    if std::mem::take(&mut failing) {
                        tracing::info!("old journal files are drained again");
                        owner.journal.set_draining(true);
                    }
                }
                Ok(false) => break,
                Err(_) if owner.is_ending() => return,
                Err(error) => {
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

impl<I: Io> Owner<I> {
    pub(super) fn is_ending(&self) -> bool {
        self.stopping.get() || self.journal.is_closed() || self.journal.poisoned().is_some()
    }

    fn is_filling(&self) -> bool {
        let (used, most) = self.journal.fill();
        used * 2 > most
    }

    /// Makes the oldest file free; false if that is the one being written.
    async fn drain_oldest(&self) -> io::Result<bool> {
        let Some(mut file) = self.journal.oldest() else { return Ok(false) };
        let end = file.file_end();
        let mut touched = BTreeSet::new();
        let mut holds_metadata = false;
        let mut shares: BTreeMap<PartitionId, Share> = BTreeMap::new();
        let mut bytes = 0;
        let mut passed = 0;
        while let Some(group) = file.next().await? {
            for found in group {
                let id = found.entry.partition;
                match found.entry.kind {
                    EntryKind::Metadata => holds_metadata = true,
                    EntryKind::LogStart | EntryKind::Checkpoint => drop(touched.insert(id)),
                    EntryKind::Batches | EntryKind::Carried => {
                        touched.insert(id);
                        if found.entry.kind == EntryKind::Carried {
                            passed += found.body.len() as u64;
                        }
                        if self.counts(id, &found) {
                            bytes += found.body.len();
                            shares.entry(id).or_default().insert(found.entry.base_offset, found);
                        }
                    }
                }
            }
            if bytes >= STRETCH_BYTES {
                self.move_stretch(std::mem::take(&mut shares)).await?;
                bytes = 0;
            }
        }
        self.move_stretch(shares).await?;
        let mut last = None;
        if holds_metadata {
            last = last.max(self.copy_metadata().await?);
        }
        {
            // Whoever else changes segments records that first (D6).
            let _turn = self.storage_turn.lock().await;
            for id in touched {
                last = last.max(self.checkpoint_again(id, end).await?);
            }
        }
        self.await_durable(last).await?;
        self.journal.release(end);
        self.carried_bytes.set(self.carried_bytes.get().saturating_sub(passed));
        Ok(true)
    }

    /// Whether records found in a file are those that the partition's state means.
    fn counts(&self, id: PartitionId, found: &Reread) -> bool {
        let extent = self.log(id).and_then(|log| log.borrow().extent(found.entry.base_offset));
        extent.is_some_and(|extent| extent.location == found.location)
    }

    /// Moves the records of one stretch, and returns when they are durable in their new places.
    async fn move_stretch(&self, shares: BTreeMap<PartitionId, Share>) -> io::Result<()> {
        let _turn = self.storage_turn.lock().await;
        if self.is_ending() {
            return Err(io::Error::other("the node is stopping"));
        }
        let mut moved = Vec::new();
        let mut carried = Vec::new();
        let mut last = None;
        let mut files = BTreeSet::new();
        for (id, mut share) in shares {
            let Some(log) = self.log(id) else { continue };
            share.retain(|_, found| self.counts(id, found));
            let Some(through) = share.keys().next_back().copied() else { continue };
            let bytes: u64 = share.values().map(|found| found.body.len() as u64).sum();
            if self.is_to_carry(&log, bytes) {
                for (base, found) in share {
                    let appended = self.carry(&found).await?;
                    last = last.max(Some(appended.position));
                    carried.push(Carried { log: log.clone(), base, location: appended.location });
                }
            } else if let Some(done) = self.fill_segments(&log, through, share, &mut files).await? {
                moved.push(done);
            }
            self.io.cede().await;
        }
        self.record(moved, carried, files, last).await
    }

    /// Moves a partition's records up to the entry that begins at `through` into its segments.
    pub(super) async fn drain_partition(&self, log: &Log, through: Offset) -> io::Result<()> {
        let _turn = self.storage_turn.lock().await;
        if self.is_ending() {
            return Err(io::Error::other("the node is stopping"));
        }
        let mut files = BTreeSet::new();
        let moved = self.fill_segments(log, through, Share::new(), &mut files).await?;
        self.record(moved.into_iter().collect(), Vec::new(), files, None).await
    }

    /// Makes what was moved durable, and has the partitions read it from there.
    async fn record(
        &self,
        moved: Vec<Moved>,
        carried: Vec<Carried>,
        files: BTreeSet<SegmentId>,
        mut last: Option<Position>,
    ) -> io::Result<()> {
        for file in files {
            self.store.sync(file).await?;
        }
        // A checkpoint that is journaled counts, whatever becomes of those behind it: another
        // attempt must not write what it names once more.
        let mut recorded = Vec::new();
        let mut outcome = Ok(());
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
        for Carried { log, base, location } in carried {
            log.borrow_mut().relocate(base, location);
        }
        for Moved { log, segments, hot_start } in recorded {
            log.borrow_mut().drained(segments, hot_start);
        }
        outcome
    }

    fn is_to_carry(&self, log: &Log, bytes: u64) -> bool {
        let (_, most) = self.journal.fill();
        let carried_max = most * self.journal.file_bytes() / CARRIED_SHARE;
        log.borrow().hot_bytes() < SMALL_BYTES && self.carried_bytes.get() + bytes <= carried_max
    }

    async fn carry(&self, found: &Reread) -> io::Result<Appended> {
        let entry = Entry { kind: EntryKind::Carried, ..found.entry };
        let appended = self.append_to_journal(entry, &found.body).await?;
        self.carried_bytes.set(self.carried_bytes.get() + found.body.len() as u64);
        Ok(appended)
    }

    /// Writes the partition's records up to the entry that begins at `through` into its segments.
    async fn fill_segments(
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
        while log.borrow().high_watermark() < hot_start {
            if self.is_ending() {
                return Err(io::Error::other("the node is stopping"));
            }
            self.io.sleep(SETTLE_PAUSE).await;
        }
        let mut segments = log.borrow().segments().to_vec();
        let mut pieces: Vec<Bytes> = Vec::new();
        let first = extents.first().map_or(hot_start, |first| first.base);
        // The files of one whose records are all deleted may be gone.
        let log_start = log.borrow().log_start();
        let mut growing = match segments.pop_if(|last| last.next > log_start) {
            Some(last) => last,
            None => self.new_segment(first),
        };
        let mut recorded = growing.bytes;
        for extent in extents {
            let bytes = match share.remove(&extent.base) {
                Some(found) => found.body,
                None => self.read_extent(&extent).await?,
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

    fn new_segment(&self, base: Offset) -> Segment {
        let begun = self.io.wall().0;
        Segment { base, next: base, bytes: 0, max_timestamp: -1, begun, generation: 0 }
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
        let mut room = 0;
        loop {
            let checkpoint = of(&log.borrow());
            let body = checkpoint.encode().map_err(io::Error::other)?;
            if body.len() > room {
                room = body.len();
                self.journal.room_to_manage(room).await.map_err(refused)?;
                continue;
            }
            return self.append_checkpoint_now(log, &checkpoint);
        }
    }

    /// As `append_checkpoint`, where there was just room.
    pub(super) fn append_checkpoint_now(
        &self,
        log: &Log,
        checkpoint: &Checkpoint,
    ) -> io::Result<Position> {
        let entry = Entry {
            kind: EntryKind::Checkpoint,
            partition: log.borrow().id(),
            base_offset: checkpoint.hot_start,
            epoch: self.leader_epoch(),
        };
        let body = checkpoint.encode().map_err(io::Error::other)?;
        let appended = self.journal.append(entry, &body, |_| {}).map_err(refused)?;
        log.borrow_mut().checkpointed_at(appended.location.address);
        Ok(appended.position)
    }

    /// The whole metadata once more.
    async fn copy_metadata(&self) -> io::Result<Option<Position>> {
        let _turn = self.controller().turn().await;
        let image = self.image();
        let mut last = None;
        for commands in image.commands().chunks(COMMANDS_MAX) {
            let body = metadata::encode(commands).map_err(io::Error::other)?;
            let entry = Entry {
                kind: EntryKind::Metadata,
                partition: NO_PARTITION,
                base_offset: 0,
                epoch: image.leader_epoch(),
            };
            last = last.max(Some(self.append_to_journal(entry, &body).await?.position));
        }
        Ok(last)
    }

    async fn append_to_journal(&self, entry: Entry, body: &[u8]) -> io::Result<Appended> {
        self.journal.room_to_manage(body.len()).await.map_err(refused)?;
        self.journal.append(entry, body, |_| {}).map_err(refused)
    }

    pub(super) async fn await_durable(&self, last: Option<Position>) -> io::Result<()> {
        let Some(last) = last else { return Ok(()) };
        let durable = self.journal.wait_durable(last).await;
        durable.map_err(|poisoned| io::Error::other(poisoned.to_string()))
    }
}

pub(super) fn refused(refusal: Refusal) -> io::Error {
    io::Error::other(refusal.to_string())
}
