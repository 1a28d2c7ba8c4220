//! Draining small partitions: their records are sorted by partition, in runs that fit in memory,
//! and become one pack, in which each has one piece.
//!
//!     journal files ─► run, sorted ─► file ┐
//!                      run, sorted ─► file ├─► pack, synced ─► checkpoints ─► journal files go
//!                      run, sorted ────────┘
//!
//! Invariants
//!   P1  A piece is recorded only where it goes on from what the partition's segments hold: records
//!       that something else has moved or deleted meanwhile are not named twice.
//!   P2  Runs are never named by anything; a crash leaves them to the next start, which removes
//!       them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;

use rustc_hash::FxBuildHasher;

use super::drain::CHECKPOINTS_PER_TURN;
use super::{Extent, Log, Owner};
use crate::base::buffer::Arena;
use crate::base::ids::{Offset, PartitionId};
use crate::io::Io;
use crate::journal::{Location, Reread};
use crate::segment::{Damage, Pack, PackWriter, Piece, Segment, Store, Unpacking};

/// Bytes of records that are sorted in memory: the most, and the share of the core's memory.
const RUN_BYTES_MAX: usize = 64 << 20;
const RUN_SHARE: usize = 16;
const CHUNK_BYTES: usize = 1 << 20;
/// Whoever looks for something in the middle of a piece reads it from its beginning.
const PIECE_BYTES_MAX: u64 = 4 << 20;

/// Partitions that are written before others have their turn.
const SLICE: usize = 64;

/// Small partitions' records of a batch.
#[derive(Default)]
pub(super) struct Small {
    /// The entries of each partition that are in `bodies`, in the order of their addresses.
    found: HashMap<PartitionId, Vec<Found>, FxBuildHasher>,
    bodies: Bodies,
    runs: Vec<Pack>,
    /// Where the runs' records of each partition end.
    ends: BTreeMap<PartitionId, Offset>,
    /// Packs that were begun.
    begun: Vec<u32>,
    /// Partitions whose records were damaged in the journal, and are moved as they are.
    damaged: BTreeSet<PartitionId>,
}

/// Bytes in chunks: one that grows would be copied as a whole, with the core waiting.
#[derive(Default)]
struct Bodies {
    chunks: Vec<Vec<u8>>,
    /// Empty ones for the next run: memory that is new costs the core's time at its first use.
    spare: Vec<Vec<u8>>,
    bytes: usize,
}

/// An entry whose body is in memory.
struct Found {
    base: Offset,
    /// In the journal.
    location: Location,
    place: Place,
}

/// A chunk's index, and a place in it.
type Place = (usize, usize);

/// A partition with a piece of a pack, not yet recorded.
struct Named {
    log: Log,
    segments: Vec<Segment>,
    hot_start: Offset,
}

impl Small {
    pub(super) fn is_empty(&self) -> bool {
        self.bodies.bytes == 0 && self.runs.is_empty()
    }

    pub(super) fn take(&mut self, entry: &Reread<'_>) {
        let place = self.bodies.add(entry.body);
        let found = Found { base: entry.entry.base_offset, location: entry.location, place };
        self.found.entry(entry.entry.partition).or_default().push(found);
    }

    /// Whether there is enough for a run.
    pub(super) fn is_run(&self, arena: &Arena) -> bool {
        self.bodies.bytes >= RUN_BYTES_MAX.min(arena.budget() / RUN_SHARE)
    }

    /// The body of an extent, if it is here.
    fn body<'a>(&'a self, found: &[Found], extent: &Extent) -> Option<&'a [u8]> {
        let address = extent.location.address;
        let at = found.binary_search_by_key(&address, |found| found.location.address).ok()?;
        let found = found.get(at).filter(|found| found.location == extent.location)?;
        self.bodies.get(found.place, extent.location.length as usize)
    }

    /// The partitions that are here.
    fn partitions(&self) -> Vec<PartitionId> {
        let here = self.found.iter().filter(|(_, found)| !found.is_empty());
        let mut partitions: Vec<PartitionId> = here.map(|(id, _)| *id).collect();
        partitions.sort_unstable();
        partitions
    }

    /// What was begun is removed, unless something names it.
    pub(super) fn give_up<I: Io>(&self, store: &Store<I>) {
        self.begun.iter().for_each(|number| store.pack_done(*number));
    }
}

impl Bodies {
    fn add(&mut self, body: &[u8]) -> Place {
        let has_room = |chunk: &&mut Vec<u8>| chunk.capacity() - chunk.len() >= body.len();
        if self.chunks.last_mut().filter(has_room).is_none() {
            let spare = self.spare.pop().filter(|spare| spare.capacity() >= body.len());
            let new = || Vec::with_capacity(CHUNK_BYTES.max(body.len()));
            self.chunks.push(spare.unwrap_or_else(new));
        }
        self.bytes += body.len();
        let index = self.chunks.len() - 1;
        let at = self.chunks.last().map_or(0, Vec::len);
        self.chunks.last_mut().into_iter().for_each(|chunk| chunk.extend_from_slice(body));
        (index, at)
    }

    fn clear(&mut self) {
        self.chunks.iter_mut().for_each(Vec::clear);
        self.spare.append(&mut self.chunks);
        self.bytes = 0;
    }

    fn get(&self, (index, at): Place, length: usize) -> Option<&[u8]> {
        self.chunks.get(index)?.get(at..at + length)
    }
}

impl<I: Io> Owner<I> {
    /// Writes what is in memory as a run.
    pub(super) async fn write_run(&self, small: &mut Small) -> io::Result<()> {
        let mut writer = self.store.begin_pack().await?;
        small.begun.push(writer.number());
        self.write_shares(small, &mut writer).await?;
        small.runs.push(writer.finish_run().await?);
        Ok(())
    }

    /// Writes what is in memory, sorted by partition.
    async fn write_shares(
        &self,
        small: &mut Small,
        writer: &mut PackWriter<'_, I>,
    ) -> io::Result<()> {
        for id in small.partitions() {
            let mut found = small.found.get_mut(&id).map(std::mem::take).unwrap_or_default();
            self.write_share(small, (id, &found), writer).await?;
            // Its memory is for the next run.
            found.clear();
            small.found.insert(id, found);
        }
        small.bodies.clear();
        Ok(())
    }

    /// Writes what a partition has up to the last of what was found.
    async fn write_share(
        &self,
        small: &mut Small,
        (id, found): (PartitionId, &[Found]),
        writer: &mut PackWriter<'_, I>,
    ) -> io::Result<()> {
        let Some(log) = self.log(id) else { return Ok(()) };
        let Some(through) = found.iter().map(|found| found.base).max() else { return Ok(()) };
        let end = small.ends.get(&id).copied().unwrap_or(0);
        let extents = log.borrow().extents_between(end, through);
        let (Some(first), Some(last)) = (extents.first(), extents.last()) else { return Ok(()) };
        self.settled(&log, last.next).await?;
        self.set_pace();
        small.ends.insert(id, last.next);
        writer.begin(id, first.base);
        for extent in &extents {
            match small.body(found, extent) {
                Some(body) => writer.put(body, extent.next, extent.max_timestamp).await?,
                None => {
                    let (body, is_sound) = self.read_to_move(&log, extent).await?;
                    if !is_sound {
                        small.damaged.insert(id);
                    }
                    writer.put(&body, extent.next, extent.max_timestamp).await?;
                }
            }
        }
        Ok(())
    }

    /// Makes the small partitions' pack, and has them read from there once that is durable.
    pub(super) async fn record_small(&self, small: &mut Small) -> io::Result<()> {
        if small.is_empty() {
            return Ok(());
        }
        if !small.runs.is_empty() && small.bodies.bytes > 0 {
            self.write_run(small).await?;
        }
        let mut writer = self.store.begin_pack().await?;
        small.begun.push(writer.number());
        if small.runs.is_empty() {
            self.write_shares(small, &mut writer).await?;
        } else {
            self.merge_runs(small, &mut writer).await?;
        }
        let pack = writer.finish().await?;
        self.record_pack(&pack).await
    }

    /// Makes a pack, of about so many bytes, of what these partitions have in the journal up to an
    /// entry of each, and has them read from there once that is durable.
    pub(super) async fn pack_early(
        &self,
        partitions: &[(PartitionId, Offset)],
        bytes: u64,
    ) -> io::Result<()> {
        let mut writer = self.store.begin_pack().await?;
        let number = writer.number();
        let packed = async {
            writer.reserve(bytes).await?;
            for slice in partitions.chunks(SLICE) {
                if self.is_ending() {
                    return Err(io::Error::other("the node is stopping"));
                }
                for (id, through) in slice {
                    self.write_from_memory(*id, *through, &mut writer).await?;
                }
                self.io.cede().await;
            }
            self.record_pack(&writer.finish().await?).await
        };
        let outcome = packed.await;
        self.store.pack_done(number);
        self.tend.wake();
        outcome
    }

    async fn write_from_memory(
        &self,
        id: PartitionId,
        through: Offset,
        writer: &mut PackWriter<'_, I>,
    ) -> io::Result<()> {
        let Some(log) = self.log(id) else { return Ok(()) };
        let extents = log.borrow().extents_through(through);
        let Some(first) = extents.first() else { return Ok(()) };
        if self.journal.tail(first.location).is_none() {
            return Ok(());
        }
        writer.begin(id, first.base);
        for extent in &extents {
            // What has left the memory although it was held (the core needed it for something
            // else) is left to `drain`: single records are not read from all over the files.
            let Some(body) = self.journal.tail(extent.location) else { break };
            writer.put(&body, extent.next, extent.max_timestamp).await?;
        }
        Ok(())
    }

    async fn merge_runs(&self, small: &Small, writer: &mut PackWriter<'_, I>) -> io::Result<()> {
        let begun = self.io.wall().0;
        let mut by_partition: BTreeMap<PartitionId, Vec<Segment>> = BTreeMap::new();
        for run in &small.runs {
            for piece in &run.pieces {
                let pieces = by_partition.entry(piece.partition).or_default();
                pieces.push(run.segment(piece, begun));
            }
        }
        let mut from = Unpacking::default();
        for (id, segments) in &by_partition {
            if self.is_ending() {
                return Err(io::Error::other("the node is stopping"));
            }
            self.set_pace();
            let damaged = self.write_pieces(*id, segments, writer, &mut from).await?;
            for (run, damage) in damaged {
                if !small.damaged.contains(id) {
                    // The journal still has it: the next attempt takes it from there.
                    let what = format!("a run of records of {id} went bad: {}", damage.flaw);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                }
                writer.begin(*id, run.base);
                writer.copy_as_it_is(&self.store, &mut from, &run).await?;
            }
        }
        Ok(())
    }

    /// Copies a partition's segments, in one piece where they follow one another. Those that are
    /// damaged are left out and returned.
    pub(super) async fn write_pieces(
        &self,
        id: PartitionId,
        segments: &[Segment],
        writer: &mut PackWriter<'_, I>,
        from: &mut Unpacking,
    ) -> io::Result<Vec<(Segment, Damage)>> {
        let mut damaged = Vec::new();
        let mut next = None;
        let mut bytes = 0;
        for segment in segments {
            bytes += segment.bytes;
            if next != Some(segment.base) || bytes > PIECE_BYTES_MAX {
                writer.begin(id, segment.base);
                bytes = segment.bytes;
            }
            next = match writer.copy(from, segment).await? {
                None => Some(segment.next),
                Some(damage) => {
                    damaged.push((*segment, damage));
                    None
                }
            };
        }
        Ok(damaged)
    }

    /// Journals which partitions have what of the pack.
    pub(super) async fn record_pack(&self, pack: &Pack) -> io::Result<()> {
        let _turn = self.storage_turn.turn().await;
        let begun = self.io.wall().0;
        let mut last = None;
        let mut recorded: Vec<Named> = Vec::new();
        let mut outcome = Ok(());
        for (pieces, count) in pack.pieces.chunk_by(same_partition).zip(1_u32..) {
            let Some(named) = self.name(pack, pieces, begun) else { continue };
            let of = |log: &super::PartitionLog| log.checkpoint(&named.segments, named.hot_start);
            match self.append_checkpoint(&named.log, of).await {
                Ok(position) => {
                    last = last.max(Some(position));
                    recorded.push(named);
                }
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
            if count.is_multiple_of(CHECKPOINTS_PER_TURN) {
                self.io.cede().await;
            }
        }
        // What is journaled counts, whatever becomes of the rest.
        self.await_durable(last).await?;
        for Named { log, segments, hot_start } in recorded {
            log.borrow_mut().drained(segments, hot_start);
        }
        self.store.pack_done(pack.number);
        outcome
    }

    /// The partition's segments with those of its pieces that go on from them; `None` if none does.
    fn name(&self, pack: &Pack, pieces: &[Piece], begun: i64) -> Option<Named> {
        let log = self.log(pieces.first()?.partition)?;
        let (mut segments, mut hot_start, log_start) = {
            let log = log.borrow();
            (log.segments().to_vec(), log.hot_start(), log.log_start())
        };
        let before = segments.len();
        for piece in pieces {
            let end = segments.last().map_or(0, |last| last.next);
            // What is missing of a piece was deleted, or is in another segment.
            let goes_on = piece.base == hot_start
                || (piece.base < hot_start && hot_start <= log_start && end <= piece.base);
            if goes_on && piece.next > hot_start {
                segments.push(pack.segment(piece, begun));
                hot_start = piece.next;
            }
        }
        (segments.len() > before).then_some(Named { log, segments, hot_start })
    }
}

fn same_partition(one: &Piece, two: &Piece) -> bool {
    one.partition == two.partition
}
