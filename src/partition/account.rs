//! What a damaged journal still says of a core's partitions, what is missing between its entries,
//! and the entries that close the gaps: for `corelog repair`.
//!
//! Invariants
//!   P1  Offsets that were lost are told as lost, and never given again: a batch without records
//!       stands in their place.
//!   P2  Nothing that is sound is given up.

use std::collections::BTreeMap;

use super::checkpoint::Checkpoint;
use super::log::{EpochStart, Found, epoch_at};
use super::recover::Replay;
use crate::base::ids::{Epoch, Offset, PartitionId, TopicNumber};
use crate::base::limits;
use crate::journal::{Entry, EntryKind, NO_PARTITION, Replayed};
use crate::metadata::{self, Command, Image};
use crate::segment::Segment;
use crate::wire::records;

/// Offsets of a partition that nothing holds any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    pub partition: PartitionId,
    pub from: Offset,
    pub before: Offset,
    /// Nothing comes behind it: there may have been more.
    pub is_tail: bool,
}

/// See the module's documentation.
pub struct Account {
    replay: Replay,
    epoch: Epoch,
    producer_id: i64,
}

impl Account {
    /// `now` in Unix milliseconds.
    pub fn new(now: i64) -> Account {
        let replay = Replay { now, ..Replay::default() };
        Account { replay, epoch: 0, producer_id: -1 }
    }

    pub fn take(&mut self, found: &Replayed<'_>) {
        self.epoch = self.epoch.max(found.entry.epoch);
        if matches!(found.entry.kind, EntryKind::Batches | EntryKind::Carried) {
            let ids = records::batches(found.body).map(|(header, _)| header.producer_id);
            self.producer_id = ids.fold(self.producer_id, i64::max);
        }
        self.replay.take(found);
    }

    /// What cannot be mended: entries of a newer program, or such that contradict each other.
    pub fn contradiction(&self) -> Option<String> {
        self.replay.failed.clone()
    }

    pub fn image(&self) -> &Image {
        &self.replay.image
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub fn producer_id(&self) -> i64 {
        self.producer_id
    }

    pub fn partitions(&self) -> impl Iterator<Item = PartitionId> {
        self.replay.found.keys().copied()
    }

    /// The first offset of each epoch that wrote to a partition.
    pub fn epochs(&self, id: PartitionId) -> &[EpochStart] {
        self.replay.found.get(&id).map_or(&[], |found| &found.epochs)
    }

    /// The segments that count, by partition: those with something that is not deleted.
    pub fn segments(&self, id: PartitionId) -> Vec<Segment> {
        let Some(found) = self.replay.found.get(&id) else { return Vec::new() };
        let Some((_, checkpoint)) = &found.checkpoint else { return Vec::new() };
        let start = found.log_start.max(checkpoint.log_start);
        checkpoint.segments().into_iter().filter(|segment| segment.next > start).collect()
    }

    /// The gaps between entries, and what `named` says of lost ones behind the last.
    pub fn lost(&self, named: &[(Entry, Option<Offset>)]) -> Vec<Lost> {
        let mut tails: BTreeMap<PartitionId, Offset> = BTreeMap::new();
        for (entry, next) in named {
            if matches!(entry.kind, EntryKind::Batches | EntryKind::Carried) {
                let next = next.unwrap_or(entry.base_offset + 1);
                let known = tails.entry(entry.partition).or_default();
                *known = next.max(*known);
            }
        }
        let mut lost = Vec::new();
        for (partition, found) in &self.replay.found {
            let end = gaps(*partition, found, &mut lost);
            let before = tails.remove(partition).unwrap_or(0);
            if before > end {
                lost.push(Lost { partition: *partition, from: end, before, is_tail: true });
            }
        }
        let alone = tails.into_iter();
        lost.extend(alone.map(|(partition, before)| Lost {
            partition,
            from: 0,
            before,
            is_tail: true,
        }));
        lost
    }

    /// Entries that stand for lost offsets.
    pub fn stand_ins(&self, lost: &[Lost]) -> Vec<(Entry, Vec<u8>)> {
        let mut entries = Vec::new();
        for Lost { partition, from, before, .. } in lost {
            let epochs = self.epochs(*partition);
            let mut base = *from;
            while base < *before {
                let epoch = epoch_at(epochs, base).unwrap_or(0);
                let next = base.saturating_add(i64::from(i32::MAX)).min(*before);
                let body = records::empty(base, next, epoch, self.replay.now);
                let kind = EntryKind::Carried;
                let entry = Entry { kind, partition: *partition, base_offset: base, epoch };
                entries.push((entry, body));
                base = next;
            }
        }
        entries
    }

    /// A checkpoint that names these segments in the place of those that were known, up to
    /// `hot_start` at least.
    pub fn checkpoint(
        &self,
        partition: PartitionId,
        segments: &[Segment],
        hot_start: Offset,
    ) -> Result<(Entry, Vec<u8>), String> {
        let none = Found::default();
        let found = self.replay.found.get(&partition).unwrap_or(&none);
        let known = found.checkpoint.as_ref().map(|(_, known)| known.clone()).unwrap_or_default();
        let places =
            (found.log_start.max(known.log_start), hot_start.max(known.hot_start), known.cleaned);
        let checkpoint = Checkpoint::new(places, segments, &found.epochs, &found.producers);
        let entry = Entry {
            kind: EntryKind::Checkpoint,
            partition,
            base_offset: checkpoint.hot_start,
            epoch: self.epoch,
        };
        Ok((entry, checkpoint.encode()?))
    }

    /// The metadata's entry that makes up for lost commands: a topic for each number that has
    /// records and no name, and numbers that were given out stay given out.
    pub fn metadata(
        &self,
        nameless: &BTreeMap<TopicNumber, u32>,
        epoch: Epoch,
        producer_id: i64,
    ) -> Result<(Entry, Vec<u8>), String> {
        let block = limits::PRODUCER_ID_BLOCK;
        let next = self.image().next_producer_id().max(producer_id.saturating_add(1) + block);
        let mut commands =
            vec![Command::LeaderEpochOpened { epoch }, Command::ProducerIdsReserved { next }];
        commands.extend(nameless.iter().map(|(number, partitions)| Command::TopicCreated {
            name: recovered_name(*number),
            id: recovered_id(*number, self.replay.now),
            number: number.0,
            partitions: *partitions,
            configs: vec![("retention.ms".into(), "-1".into())],
        }));
        let body = metadata::encode(&commands).map_err(|error| error.to_string())?;
        let kind = EntryKind::Metadata;
        Ok((Entry { kind, partition: NO_PARTITION, base_offset: 0, epoch }, body))
    }
}

/// The name of a topic whose own is lost.
pub fn recovered_name(number: TopicNumber) -> String {
    format!("recovered-{}", number.0)
}

fn recovered_id(number: TopicNumber, now: i64) -> [u8; 16] {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&now.to_be_bytes());
    id[8..12].copy_from_slice(&number.0.to_be_bytes());
    id
}

/// Adds the gaps in what counts of a partition, as `PartitionLog::restore` counts; returns the
/// offset that comes next.
fn gaps(partition: PartitionId, found: &Found, lost: &mut Vec<Lost>) -> Offset {
    let checkpoint = found.checkpoint.as_ref().map(|(_, checkpoint)| checkpoint);
    let hot_start = checkpoint.map_or(0, |checkpoint| checkpoint.hot_start);
    let log_start = found.log_start.max(checkpoint.map_or(0, |checkpoint| checkpoint.log_start));
    let mut next = hot_start.max(log_start);
    let mut counting = found.extents.iter().filter(|extent| extent.next > next).peekable();
    let begin = counting.peek().map_or(next, |first| first.base.min(next).max(hot_start));
    let counting: Vec<_> = counting.collect();
    next = begin;
    for extent in counting {
        if extent.base > next {
            lost.push(Lost { partition, from: next, before: extent.base, is_tail: false });
        }
        next = extent.next;
    }
    next
}
