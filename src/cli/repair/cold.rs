//! Cold files whose checkpoint a damaged journal has lost: which of them go on where the segments
//! end that are still recorded.
//!
//!     | recorded segments | file | piece of a pack | hole | file |
//!                         ^ here the looking begins              ^ and up to here it is adopted
//!
//! Lives in: `corelog repair`.  Talks to: the files of a node that is stopped.
//!
//! Invariants
//!   C1  What is adopted follows what is recorded, and one the other. A hole between them is told
//!       as lost, and a batch without records stands in it.
//!   C2  Nothing is adopted but where the journal lacks records, and up to that place without a
//!       hole or damage: what is sound in the journal stays.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::base::ids::{Offset, PartitionId};
use crate::partition::{EpochStart, Lost};
use crate::segment::{self, Home, Seen, Segment, SegmentId};

/// What lies in a core's store, recorded or not.
pub struct ColdFiles {
    directory: PathBuf,
    /// As far as their names and the packs' directories tell, by base.
    segments: BTreeMap<PartitionId, Vec<Segment>>,
}

/// What comes in the place of a partition's recorded segments.
pub struct Adopted {
    pub segments: Vec<Segment>,
    /// What the batches say that were adopted: the first of each change.
    pub epochs: Vec<EpochStart>,
}

impl ColdFiles {
    /// Looks for all files and pieces of packs.
    pub fn of(directory: &Path) -> ColdFiles {
        let mut segments: BTreeMap<PartitionId, Vec<Segment>> = BTreeMap::new();
        for partition in segment::partitions_on_disk(directory) {
            let files = segment::on_disk(directory, partition);
            segments.entry(partition).or_default().extend(files.into_iter().map(unread));
        }
        for number in segment::packs_on_disk(directory) {
            // One that cannot be read is told where a checkpoint names it.
            let read = segment::read_pack(&segment::pack_path(directory, number));
            let Ok((pack, _)) = read else { continue };
            for piece in &pack.pieces {
                let segment = pack.segment(piece, piece.max_timestamp);
                segments.entry(piece.partition).or_default().push(segment);
            }
        }
        for all in segments.values_mut() {
            all.sort_by_key(|segment| segment.base);
        }
        ColdFiles { directory: directory.to_owned(), segments }
    }

    /// The partitions of which there is something.
    pub fn partitions(&self) -> impl Iterator<Item = PartitionId> {
        self.segments.keys().copied()
    }

    /// The recorded segments and what goes on behind them, if that reaches into the gap. Nothing
    /// before `start` is needed.
    pub fn adopt(&self, gap: &Lost, recorded: &[Segment], start: Offset) -> Option<Adopted> {
        let found = self.segments.get(&gap.partition)?;
        let mut adopted = Adopted { segments: recorded.to_vec(), epochs: Vec::new() };
        self.regrow(gap, &mut adopted);
        if adopted.segments.is_empty() {
            self.begin(gap, start, found, &mut adopted);
        }
        loop {
            let next = adopted.segments.last().map_or(start, |last| last.next);
            let behind = found.get(found.partition_point(|segment| segment.base < next)..);
            let behind = behind.unwrap_or_default();
            let mut bases: Vec<Offset> = behind.iter().map(|segment| segment.base).collect();
            bases.dedup();
            let best = bases.into_iter().find_map(|base| {
                self.best(gap, behind.iter().filter(|segment| segment.base == base))
            });
            let Some((segment, epochs)) = best else { break };
            if !self.bridge(gap, next, &segment, &mut adopted) {
                break;
            }
            adopted.segments.push(segment);
            adopted.epochs.extend(epochs);
        }
        let end = adopted.segments.last().map_or(0, |last| last.next);
        (end > gap.from).then_some(adopted)
    }

    /// The last recorded segment may have grown since.
    fn regrow(&self, gap: &Lost, adopted: &mut Adopted) {
        let Some(last) = adopted.segments.last_mut() else { return };
        if last.pack().is_some() || last.is_sparse() || last.next > gap.from {
            return;
        }
        let whole = unread(last.id(gap.partition));
        if let Some((grown, epochs)) = self.read(gap, &whole)
            && grown.next > last.next
            && grown.bytes > last.bytes
        {
            *last = Segment { begun: last.begun, ..grown };
            adopted.epochs = epochs;
        }
    }

    /// Where nothing is recorded, the first segment is the one that holds the log start.
    fn begin(&self, gap: &Lost, start: Offset, found: &[Segment], adopted: &mut Adopted) {
        let before = found.iter().rev().filter(|segment| segment.base < start);
        let holds = |(segment, _): &(Segment, Vec<EpochStart>)| segment.next > start;
        let first = before.filter_map(|segment| self.read(gap, segment)).find(holds);
        if let Some((segment, epochs)) = first {
            adopted.segments.push(segment);
            adopted.epochs = epochs;
        }
    }

    /// Of several that begin at one place, the one that reaches the furthest.
    fn best<'a>(
        &self,
        gap: &Lost,
        segments: impl Iterator<Item = &'a Segment>,
    ) -> Option<(Segment, Vec<EpochStart>)> {
        let read = segments.filter_map(|segment| self.read(gap, segment));
        read.max_by_key(|(segment, _)| segment.next)
    }

    /// Whether a segment may follow what ends at `next`, with what stands between them.
    fn bridge(&self, gap: &Lost, next: Offset, segment: &Segment, adopted: &mut Adopted) -> bool {
        if segment.base == next {
            return true;
        }
        let last = adopted.segments.last_mut();
        if let Some(last) = last.filter(|last| last.is_sparse()) {
            // Compaction has left out its last offsets.
            last.next = segment.base;
            return true;
        }
        if next < gap.from {
            return false; // the journal may hold it (C2)
        }
        adopted.segments.push(self.hole(gap.partition, next, segment.base));
        true
    }

    /// A segment of a file that is not there.
    fn hole(&self, partition: PartitionId, base: Offset, next: Offset) -> Segment {
        let exists = |generation: u32| {
            let id = SegmentId { partition, base, home: Home::File { generation } };
            segment::file_path(&self.directory, id).exists()
        };
        // What comes in its place has the next generation.
        let is_free = |generation: &u32| !exists(*generation) && !exists(*generation + 1);
        let generation = (0..u32::MAX).find(is_free).unwrap_or(0);
        let home = Home::File { generation };
        Segment { base, next, bytes: 0, max_timestamp: -1, begun: 0, home }
    }

    /// A segment as far as it may be adopted, and the epochs that its batches name.
    fn read(&self, gap: &Lost, segment: &Segment) -> Option<(Segment, Vec<EpochStart>)> {
        let limit = if gap.is_tail { Offset::MAX } else { gap.before };
        let path = segment::file_path(&self.directory, segment.id(gap.partition));
        let mut whole = Segment { next: segment.next.min(limit), ..*segment };
        if segment.pack().is_none() {
            whole.bytes = std::fs::metadata(&path).ok()?.len();
        }
        if whole.base >= whole.next || whole.bytes == 0 {
            return None;
        }
        let mut read = Segment { next: segment.base, bytes: 0, max_timestamp: -1, ..*segment };
        let mut epochs: Vec<EpochStart> = Vec::new();
        let mut is_over = false;
        let looked = segment::check_file(&path, &whole, &mut |seen| match seen {
            Seen::Batch { position, header, batch } if !is_over => {
                read.next = header.next_offset();
                read.bytes = position + batch.len() as u64;
                read.max_timestamp = read.max_timestamp.max(header.max_timestamp);
                let (epoch, start) = (header.leader_epoch, header.base_offset);
                if epochs.last().is_none_or(|last| last.epoch != epoch) {
                    epochs.push(EpochStart { epoch, start });
                }
            }
            // Where the journal may hold what is damaged (C2).
            Seen::Damage(damage) if damage.from < gap.from => is_over = true,
            _ => {}
        });
        read.begun = read.max_timestamp;
        (looked.is_ok() && read.bytes > 0).then_some((read, epochs))
    }
}

/// A file of which nothing but the name is known.
fn unread(id: SegmentId) -> Segment {
    let SegmentId { base, home, .. } = id;
    Segment { base, next: Offset::MAX, bytes: 0, max_timestamp: -1, begun: 0, home }
}
