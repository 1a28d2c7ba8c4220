//! What a damaged journal still says of a core's partitions, what is missing between its entries,
//! and the entries that close the gaps: for `corelog repair`.
//!
//! Invariants
//!   P1  Offsets that were lost are told as lost, and never given again: a batch without records
//!       stands in their place.
//!   P2  Nothing that is sound is given up.

use std::collections::{BTreeMap, BTreeSet};

use super::checkpoint::Checkpoint;
use super::drain::COMMANDS_MAX;
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
    /// Topics whose deletion was replayed.
    deleted: BTreeSet<TopicNumber>,
    /// Of the topics below, all that are not deleted were named at once.
    all_named_below: u32,
}

/// What is there of topics of which the metadata does not say so: partitions by topic.
#[derive(Debug, Default)]
pub struct Unnamed {
    /// Topics that get a name.
    pub topics: BTreeMap<TopicNumber, u32>,
    /// Topics with fewer partitions than there are.
    pub grown: BTreeMap<TopicNumber, u32>,
}

impl Account {
    /// `now` in Unix milliseconds.
    pub fn new(now: i64) -> Account {
        let replay = Replay { now, ..Replay::default() };
        let (deleted, all_named_below) = (BTreeSet::new(), 0);
        Account { replay, epoch: 0, producer_id: -1, deleted, all_named_below }
    }

    pub fn take(&mut self, found: &Replayed<'_>) {
        self.epoch = self.epoch.max(found.entry.epoch);
        if matches!(found.entry.kind, EntryKind::Batches | EntryKind::Carried) {
            let ids = records::batches(found.body).map(|(header, _)| header.producer_id);
            self.producer_id = ids.fold(self.producer_id, i64::max);
        }
        if found.entry.kind == EntryKind::Metadata {
            self.note_commands(found.body);
        }
        self.replay.take(found);
    }

    fn note_commands(&mut self, body: &[u8]) {
        // What cannot be decoded, the replay tells.
        let commands = metadata::decode(body).unwrap_or_default();
        for command in &commands {
            match command {
                Command::TopicDeleted { number } => {
                    self.deleted.insert(TopicNumber(*number));
                }
                // Of a copy of the whole in several entries, one may be lost.
                Command::TopicNumbersGiven { next } if commands.len() < COMMANDS_MAX => {
                    self.all_named_below = self.all_named_below.max(*next);
                }
                _ => {}
            }
        }
    }

    /// Whether the topic is known to be deleted, or to have been.
    pub fn is_deleted(&self, number: TopicNumber) -> bool {
        let is_known = self.image().topic_by_number(number).is_some();
        !is_known && (number.0 < self.all_named_below || self.deleted.contains(&number))
    }

    /// What cannot be mended: entries of a newer program, or such that contradict each other.
    pub fn contradiction(&self) -> Option<String> {
        self.replay.failed.clone()
    }

    /// Partitions of which sound entries contradict each other, and how.
    pub fn broken(&self) -> &BTreeMap<PartitionId, String> {
        &self.replay.broken
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

    /// The epoch that wrote from `start` on, as a segment says that nothing has named: it counts
    /// where it lies between those that are known.
    pub fn learn(&mut self, id: PartitionId, learned: EpochStart) {
        let EpochStart { epoch, start } = learned;
        let epochs = &mut self.replay.found.entry(id).or_default().epochs;
        let at = epochs.partition_point(|known| known.start <= start);
        let before = at.checked_sub(1).and_then(|at| epochs.get(at)).map(|known| known.epoch);
        if before.is_some_and(|before| before >= epoch) || epoch > self.epoch {
            return;
        }
        match epochs.get_mut(at) {
            Some(behind) if behind.epoch == epoch => behind.start = start,
            Some(behind) if behind.epoch < epoch => {}
            _ => epochs.insert(at, learned),
        }
    }

    /// The segments that count, by partition: those with something that is not deleted.
    pub fn segments(&self, id: PartitionId) -> Vec<Segment> {
        let Some(found) = self.replay.found.get(&id) else { return Vec::new() };
        let Some((_, checkpoint)) = &found.checkpoint else { return Vec::new() };
        let start = self.log_start(id);
        checkpoint.segments().into_iter().filter(|segment| segment.next > start).collect()
    }

    pub fn log_start(&self, id: PartitionId) -> Offset {
        let Some(found) = self.replay.found.get(&id) else { return 0 };
        let checkpoint = found.checkpoint.as_ref();
        found.log_start.max(checkpoint.map_or(0, |(_, checkpoint)| checkpoint.log_start))
    }

    /// The offset that comes next, after what is known of a partition.
    pub fn next(&self, id: PartitionId) -> Offset {
        self.replay.found.get(&id).map_or(0, |found| gaps(id, found, &mut Vec::new()))
    }

    /// The gaps between entries, and what `named` says of lost ones behind the last.
    pub fn lost(&self, named: &[(Entry, Option<Offset>)]) -> Vec<Lost> {
        let mut tails: BTreeMap<PartitionId, Offset> = BTreeMap::new();
        for (entry, next) in named {
            let next = match entry.kind {
                EntryKind::Batches | EntryKind::Carried => {
                    next.unwrap_or(entry.base_offset.saturating_add(1))
                }
                // What is before, was in segments.
                EntryKind::Checkpoint => entry.base_offset,
                EntryKind::LogStart | EntryKind::Metadata => continue,
            };
            let known = tails.entry(entry.partition).or_default();
            *known = next.max(*known);
        }
        let mut lost = Vec::new();
        for (partition, found) in &self.replay.found {
            let end = gaps(*partition, found, &mut lost);
            let before = tails.remove(partition).unwrap_or(0);
            if before > end {
                lost.push(Lost { partition: *partition, from: end, before, is_tail: true });
            }
        }
        let alone = tails.into_iter().filter(|(_, before)| *before > 0);
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
    /// records and no name, its partitions for each that has too few, and numbers that were given
    /// out stay given out.
    pub fn metadata(
        &self,
        unnamed: &Unnamed,
        epoch: Epoch,
        producer_id: i64,
    ) -> Result<(Entry, Vec<u8>), String> {
        let block = limits::PRODUCER_ID_BLOCK;
        let next = self.image().next_producer_id().max(producer_id.saturating_add(1) + block);
        let mut commands =
            vec![Command::LeaderEpochOpened { epoch }, Command::ProducerIdsReserved { next }];
        commands.extend(unnamed.grown.iter().map(|(number, partitions)| {
            Command::PartitionsAdded { number: number.0, partitions: *partitions }
        }));
        commands.extend(unnamed.topics.iter().map(|(number, partitions)| Command::TopicCreated {
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
