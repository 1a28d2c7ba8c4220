//! Tending packs: those that nothing names are removed, and small ones become larger ones, so that
//! a partition which trickles is in few places.
//!
//!     |1|2|3|4|5|6|7|8| ─► |   9   |        eight of about a size, merged by partition
//!     |   9 (mostly deleted)   | ─► |10|    one that is half empty, written anew
//!
//! Each size is eight times the one below, so a record is copied a few times at most.
//!
//! Lives on: every core, one task.  Talks to: `segment`, `journal`.
//!
//! Invariants
//!   M1  A pack is removed when no partition has it in its segments, and what says so is flushed.
//!   M2  A merged piece takes the place of just the segments that it was copied from; where these
//!       have changed meanwhile, they stay.
//!   M3  Nobody waits for room in the journal while others wait for the turn: a drain may have to
//!       make it.
//!   M4  What is merged was verified batch by batch. A damaged piece stays where it is, with its
//!       pack, which is left alone from then on; everything else is merged.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::early::FAST_FOR;
use super::scrub::is_current;
use super::{Log, Owner};
use crate::base::ids::PartitionId;
use crate::io::Io;
use crate::segment::{Damage, Pack, Piece, Segment, Unpacking};

/// Packs of about a size that become one.
const MERGE_COUNT: usize = 8;
/// With fewer packs nothing is merged while the journal fills fast: the device is needed for that.
/// A partition has a segment in each, and all of them in its checkpoint.
const DEFERRED_MAX: usize = 64;
/// A merge makes nothing larger: it needs as much space again while it goes on.
const MERGE_BYTES_MAX: u64 = 8 << 30;
/// The smallest difference of sizes that counts.
const SIZE_BYTES_MIN: u64 = 1 << 20;
/// Partitions that are looked at before others have their turn.
const SLICE: usize = 256;
/// Bytes that are copied before there is a pause as long as copying them took.
const PACE_BYTES: u64 = 1 << 20;
/// How long one waits for memory.
const SHORT_PAUSE: Duration = Duration::from_millis(10);
/// Bytes of checkpoints that are recorded at a time.
const RECORD_BYTES: usize = 128 << 10;
/// How often it is looked without anybody's asking, and again after a failure.
const INTERVAL: Duration = Duration::from_secs(60);

/// Wakes the task.
#[derive(Default)]
pub(super) struct Tend {
    is_due: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    /// Packs in which something is damaged.
    damaged: RefCell<BTreeSet<u32>>,
}

/// What a pack holds that is not deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Live {
    pieces: u64,
    bytes: u64,
}

/// A merged piece and what it takes the place of.
struct Change {
    log: Log,
    segments: Vec<Segment>,
    checkpoint: Vec<u8>,
}

impl Tend {
    /// Something may have changed.
    pub(super) fn wake(&self) {
        self.is_due.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    async fn due(&self) {
        poll_fn(|context| {
            if self.is_due.get() {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Looks after the packs whenever something may have changed, until the node stops.
pub async fn run<I: Io>(owner: Rc<Owner<I>>) {
    while !owner.is_ending() {
        owner.tend.is_due.set(false);
        if let Err(error) = owner.tend_packs().await {
            if owner.is_ending() {
                return;
            }
            tracing::warn!("packs of small partitions are not merged: {error}");
        }
        let sleep = std::pin::pin!(owner.io.sleep(INTERVAL));
        futures_util::future::select(std::pin::pin!(owner.tend.due()), sleep).await;
    }
}

impl<I: Io> Owner<I> {
    async fn tend_packs(&self) -> io::Result<()> {
        while !self.is_ending() {
            let packs = self.store.packs();
            if packs.is_empty() {
                return Ok(());
            }
            self.tend.damaged.borrow_mut().retain(|pack| packs.contains(pack));
            let live = self.live_packs().await;
            self.remove_packs(packs.iter().filter(|pack| !live.contains_key(pack))).await?;
            if self.early.is_active(self.io.now()) && packs.len() < DEFERRED_MAX {
                // Nobody says when that is over.
                self.io.sleep(FAST_FOR).await;
                continue;
            }
            let Some(chosen) = self.choose(&live).await? else { return Ok(()) };
            self.merge_packs(&chosen).await?;
        }
        Ok(())
    }

    /// What the packs hold that somebody could still ask for.
    async fn live_packs(&self) -> BTreeMap<u32, Live> {
        let ids: Vec<PartitionId> = self.logs.borrow().keys().copied().collect();
        let mut live: BTreeMap<u32, Live> = BTreeMap::new();
        for slice in ids.chunks(SLICE) {
            for log in slice.iter().filter_map(|id| self.log(*id)) {
                for segment in log.borrow().segments() {
                    let Some(number) = segment.pack() else { continue };
                    let pack = live.entry(number).or_default();
                    pack.pieces += 1;
                    pack.bytes += segment.bytes;
                }
            }
            self.io.cede().await;
        }
        live
    }

    async fn remove_packs(&self, numbers: impl Iterator<Item = &u32>) -> io::Result<()> {
        let numbers: Vec<u32> = numbers.copied().collect();
        if numbers.is_empty() {
            return Ok(());
        }
        let flushed = self.journal.wait_flushed(self.journal.durable()).await;
        flushed.map_err(|poisoned| io::Error::other(poisoned.to_string()))?;
        for number in numbers {
            if self.is_ending() {
                return Ok(());
            }
            self.store.remove_pack(number).await?;
        }
        Ok(())
    }

    /// The packs that are to become one.
    async fn choose(&self, live: &BTreeMap<u32, Live>) -> io::Result<Option<Vec<u32>>> {
        let mut done = self.store.packs();
        done.retain(|number| !self.tend.damaged.borrow().contains(number));
        for number in &done {
            let Some(pack) = live.get(number) else { continue };
            let Some(all) = self.bytes_of_pack(*number).await? else { continue };
            if all > 2 * pack.bytes + SIZE_BYTES_MIN && pack.bytes <= MERGE_BYTES_MAX {
                return Ok(Some(vec![*number]));
            }
        }
        let mut sizes: BTreeMap<u32, Vec<(u32, u64)>> = BTreeMap::new();
        done.retain(|number| !self.tend.damaged.borrow().contains(number));
        for number in &done {
            let Some(pack) = live.get(number) else { continue };
            sizes.entry(size_class(pack.bytes)).or_default().push((*number, pack.bytes));
        }
        let found = sizes.into_values().find_map(|mut alike| {
            alike.truncate(MERGE_COUNT);
            let bytes: u64 = alike.iter().map(|(_, bytes)| bytes).sum();
            let is_one = alike.len() == MERGE_COUNT && bytes <= MERGE_BYTES_MAX;
            is_one.then(|| alike.into_iter().map(|(number, _)| number).collect())
        });
        Ok(found)
    }

    /// A pack's bytes; none if it is gone, which is told.
    async fn bytes_of_pack(&self, number: u32) -> io::Result<Option<u64>> {
        match self.store.pack_bytes(number).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let path = self.store.pack_path(number);
                self.tell_damage(&format!("{} is missing", path.display()));
                self.tend.damaged.borrow_mut().insert(number);
                Ok(None)
            }
            outcome => outcome.map(Some),
        }
    }

    /// Writes what is live in these packs into one.
    async fn merge_packs(&self, chosen: &[u32]) -> io::Result<()> {
        let mut writer = self.store.begin_pack().await?;
        let number = writer.number();
        let merged = async {
            let mut from = Unpacking::default();
            let mut copied = 0;
            let mut began = self.io.now();
            for (id, segments) in self.segments_in(chosen).await {
                if self.is_ending() {
                    return Err(io::Error::other("the node is stopping"));
                }
                let damaged = self.write_pieces(id, &segments, &mut writer, &mut from).await?;
                self.leave_damaged(id, &damaged);
                copied += segments.iter().map(|segment| segment.bytes).sum::<u64>();
                if copied >= PACE_BYTES {
                    self.io.sleep(self.io.now() - began).await;
                    (copied, began) = (0, self.io.now());
                }
            }
            self.record_merged(&writer.finish().await?, chosen).await
        };
        let outcome = merged.await;
        self.store.pack_done(number);
        outcome
    }

    /// Tells of damaged pieces, and leaves their packs alone (M4).
    fn leave_damaged(&self, id: PartitionId, damaged: &[(Segment, Damage)]) {
        let Some(log) = self.log(id) else { return };
        for (segment, damage) in damaged {
            self.tend.damaged.borrow_mut().extend(segment.pack());
            if is_current(&log, segment) {
                self.tell_segment_damage(&log, segment, damage);
            }
        }
    }

    /// The segments that are in these packs, by partition.
    async fn segments_in(&self, packs: &[u32]) -> BTreeMap<PartitionId, Vec<Segment>> {
        let ids: Vec<PartitionId> = self.logs.borrow().keys().copied().collect();
        let mut found = BTreeMap::new();
        for slice in ids.chunks(SLICE) {
            for (id, log) in slice.iter().filter_map(|id| Some((*id, self.log(*id)?))) {
                let mut segments = log.borrow().segments().to_vec();
                segments.retain(|one| one.pack().is_some_and(|pack| packs.contains(&pack)));
                if !segments.is_empty() {
                    found.insert(id, segments);
                }
            }
            self.io.cede().await;
        }
        found
    }

    /// Has partitions read what was merged from the new pack, some at a time.
    async fn record_merged(&self, pack: &Pack, chosen: &[u32]) -> io::Result<()> {
        let chosen: BTreeSet<u32> = chosen.iter().copied().collect();
        let partitions: Vec<&[Piece]> =
            pack.pieces.chunk_by(|one, two| one.partition == two.partition).collect();
        let mut rest = &partitions[..];
        while !rest.is_empty() {
            let mut bytes = 0;
            let mut count = 0;
            for pieces in rest {
                let change = self.change(pack, pieces, &chosen)?;
                bytes += change.map_or(0, |change| change.checkpoint.len());
                count += 1;
                if bytes >= RECORD_BYTES {
                    break;
                }
            }
            self.journal.room(bytes).await.map_err(super::drain::refused)?;
            let some = rest.get(..count).unwrap_or_default();
            let done = self.record_some(pack, some, &chosen).await?;
            if done == 0 {
                // The journal has room, so it is memory that is short; what uses it must go on.
                self.io.sleep(SHORT_PAUSE).await;
            }
            rest = rest.get(done..).unwrap_or_default();
        }
        Ok(())
    }

    /// Records these partitions' changes, those of the first ones that there is room for; how many.
    async fn record_some(
        &self,
        pack: &Pack,
        partitions: &[&[Piece]],
        chosen: &BTreeSet<u32>,
    ) -> io::Result<usize> {
        let _turn = self.storage_turn.turn().await;
        if self.is_ending() {
            return Err(io::Error::other("the node is stopping"));
        }
        let mut last = None;
        let mut done = 0;
        let mut recorded = Vec::new();
        for pieces in partitions {
            if let Some(change) = self.change(pack, pieces, chosen)? {
                let log = &change.log;
                let checkpoint =
                    log.borrow().checkpoint(&change.segments, log.borrow().hot_start());
                let Ok(position) = self.append_checkpoint_now(log, &checkpoint) else { break };
                last = last.max(Some(position));
                recorded.push(change);
            }
            done += 1;
        }
        self.await_durable(last).await?;
        for Change { log, segments, .. } in recorded {
            log.borrow_mut().compacted(segments, 0);
        }
        Ok(done)
    }

    /// The partition's segments with the merged pieces in their places; `None` if nothing changes.
    fn change(
        &self,
        pack: &Pack,
        pieces: &[Piece],
        chosen: &BTreeSet<u32>,
    ) -> io::Result<Option<Change>> {
        let Some(log) = pieces.first().and_then(|piece| self.log(piece.partition)) else {
            return Ok(None);
        };
        let mut segments = log.borrow().segments().to_vec();
        let log_start = log.borrow().log_start();
        let mut is_changed = false;
        for piece in pieces {
            let from = segments.partition_point(|one| one.base < piece.base);
            let to = segments.partition_point(|one| one.base < piece.next);
            let old = segments.get(from..to).unwrap_or_default();
            if let Some(first) = old.first().filter(|_| is_copy(piece, old, chosen, log_start)) {
                let new = pack.segment(piece, first.begun);
                segments.splice(from..to, [new]);
                is_changed = true;
            }
        }
        if !is_changed {
            return Ok(None);
        }
        let checkpoint = log.borrow().checkpoint(&segments, log.borrow().hot_start());
        let checkpoint = checkpoint.encode().map_err(io::Error::other)?;
        Ok(Some(Change { log, segments, checkpoint }))
    }
}

/// Whether a piece holds just what these segments do, apart from what was deleted before them (M2).
fn is_copy(piece: &Piece, old: &[Segment], chosen: &BTreeSet<u32>, log_start: i64) -> bool {
    let (Some(first), Some(last)) = (old.first(), old.last()) else { return false };
    let bytes: u64 = old.iter().map(|one| one.bytes).sum();
    let is_whole = first.base == piece.base && bytes == piece.bytes;
    let is_rest = first.base <= log_start && bytes < piece.bytes;
    let follow = old.iter().zip(old.iter().skip(1)).all(|(one, two)| one.next == two.base);
    let are_chosen = old.iter().all(|one| one.pack().is_some_and(|pack| chosen.contains(&pack)));
    last.next == piece.next && follow && are_chosen && (is_whole || is_rest)
}

/// Packs within a factor of eight are of one class.
fn size_class(bytes: u64) -> u32 {
    (bytes / SIZE_BYTES_MIN).max(1).ilog2() / 3
}
