//! Start of a core: the journal's entries become partitions again.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use super::append::claim_of;
use super::checkpoint::Checkpoint;
use super::log::{EpochStart, Found};
use super::{Extent, Logs, PartitionLog};
use crate::base::buffer::Arena;
use crate::base::ids::{Offset, PartitionId};
use crate::io::Io;
use crate::journal::{EntryKind, Journal, OpenError, Replayed, Settings};
use crate::metadata::{self, Command, Image};
use crate::wire::records;

/// What a core's journal held.
pub struct Recovered<I: Io> {
    pub journal: Journal<I>,
    /// Partitions with what was ever written to them, also those of topics that are gone.
    pub logs: Logs,
    /// Idempotent producers that all of them know.
    pub producers: usize,
    /// The metadata, in the journal of core 0.
    pub image: Image,
    /// Why sound groups make no state, if they do not: a newer program's metadata.
    pub contradiction: Option<String>,
    /// Partitions of which entries contradict each other, and how. Those of deleted topics do: old
    /// files are used again without a word of them.
    pub broken: BTreeMap<PartitionId, String>,
}

impl<I: Io> Recovered<I> {
    /// What a core begins with whose directory cannot be used.
    pub fn nothing(io: I, arena: Arena, settings: Settings, why: &str) -> Recovered<I> {
        Recovered {
            journal: Journal::unusable(io, arena, settings, why),
            logs: Logs::default(),
            producers: 0,
            image: Image::default(),
            contradiction: None,
            broken: BTreeMap::new(),
        }
    }

    /// Forgets the partitions of topics that `image` does not know. The error is what contradicts
    /// itself in another one.
    pub fn forget_unknown(&mut self, image: &Image) -> Result<(), String> {
        let is_known = |id: &PartitionId| image.topic_by_number(id.topic).is_some();
        let producers = &mut self.producers;
        self.logs.retain(|id, log| {
            let is_kept = is_known(id);
            if !is_kept {
                *producers -= log.borrow().producers.len();
            }
            is_kept
        });
        let broken = std::mem::take(&mut self.broken);
        broken.into_iter().find(|(id, _)| is_known(id)).map_or(Ok(()), |(_, why)| Err(why))
    }
}

/// Opens the journal and replays it.
pub async fn recover<I: Io>(
    io: I,
    arena: Arena,
    settings: Settings,
) -> Result<Recovered<I>, OpenError> {
    let now = io.wall().0;
    let mut replay = Replay { now, ..Replay::default() };
    let journal = Journal::open(io, arena, settings, &mut |found| replay.take(&found)).await?;
    let Replay { found, image, failed, mut broken, .. } = replay;
    let mut logs = Logs::with_capacity_and_hasher(found.len(), Default::default());
    let mut producers = 0;
    for (id, found) in found {
        match PartitionLog::restore(id, found) {
            Ok(log) => {
                producers += log.producers.len();
                logs.insert(id, Rc::new(RefCell::new(log)));
            }
            Err(why) => drop(broken.entry(id).or_insert(why)),
        }
    }
    Ok(Recovered { journal, logs, producers, image, contradiction: failed, broken })
}

/// What the entries replayed so far make.
#[derive(Default)]
pub(super) struct Replay {
    pub found: BTreeMap<PartitionId, Found>,
    pub image: Image,
    pub failed: Option<String>,
    pub broken: BTreeMap<PartitionId, String>,
    pub now: i64,
    /// The latest time that the journal has named so far, not beyond `now`. What comes behind it
    /// was written then or later, also where its own records are older.
    pub told: Option<i64>,
}

impl Replay {
    pub fn take(&mut self, found: &Replayed<'_>) {
        if self.failed.is_some() {
            return;
        }
        let id = found.entry.partition;
        match found.entry.kind {
            EntryKind::Batches | EntryKind::Carried => self.take_batches(found),
            EntryKind::Metadata => match metadata::decode(found.body) {
                Ok(commands) => self.take_commands(&commands),
                Err(error) => self.failed = Some(error.to_string()),
            },
            EntryKind::LogStart => {
                let log = self.found.entry(id).or_default();
                log.log_start = log.log_start.max(found.entry.base_offset);
            }
            EntryKind::Checkpoint => match Checkpoint::decode(found.body) {
                Ok(checkpoint) => {
                    let log = self.found.entry(id).or_default();
                    log.epochs = checkpoint.epochs();
                    log.producers = checkpoint.producers();
                    let heard = log.producers.last_heard().map(|heard| heard.min(self.now));
                    self.told = self.told.max(heard);
                    log.checkpoint = Some((found.location.address, checkpoint));
                }
                Err(error) => self.failed = Some(format!("{error} ({id})")),
            },
        }
    }

    fn take_commands(&mut self, commands: &[Command]) {
        for command in commands {
            self.image.apply(command);
        }
    }

    fn take_batches(&mut self, found: &Replayed<'_>) {
        let id = found.entry.partition;
        let log = self.found.entry(id).or_default();
        let base = found.entry.base_offset;
        let is_new = found.entry.kind == EntryKind::Batches;
        let mut next = base;
        let mut max_timestamp = -1;
        for (header, _) in records::batches(found.body) {
            // What was carried on is older than the checkpoint that came with it.
            if header.max_timestamp >= 0 && is_new {
                self.told = self.told.max(Some(header.max_timestamp.min(self.now)));
            }
            if header.has_producer() && is_new {
                let heard = self.told.unwrap_or(self.now);
                log.producers.record(&claim_of(&header), header.base_offset, heard);
            }
            next = header.next_offset();
            max_timestamp = max_timestamp.max(header.max_timestamp);
        }
        let epoch = found.entry.epoch;
        if is_new && log.epochs.last().is_none_or(|last| last.epoch < epoch) {
            log.epochs.push(EpochStart { epoch, start: base });
        }
        let extent = Extent { base, next, location: found.location, max_timestamp };
        if let Err(clash) = insert(&mut log.extents, extent) {
            let address = found.location.address;
            let why = format!(
                "the journal contradicts itself at address {address}: an entry holds the offsets \
                 from {base} to before {next} of {id}, where {clash} comes next"
            );
            self.broken.entry(id).or_insert(why);
        }
    }
}

/// Puts an extent in its place; one that was carried on takes the place of what it was before.
/// Where it overlaps another one, the offset that it should have begun with is the error.
fn insert(extents: &mut VecDeque<Extent>, extent: Extent) -> Result<(), Offset> {
    let at = extents.partition_point(|known| known.base < extent.base);
    let before = at.checked_sub(1).and_then(|at| extents.get(at));
    if extent.next <= extent.base || before.is_some_and(|before| before.next > extent.base) {
        return Err(before.map_or(extent.base, |before| before.next));
    }
    match extents.get_mut(at) {
        Some(known) if known.base == extent.base && known.next == extent.next => *known = extent,
        Some(known) if known.base < extent.next => {
            return Err(extents.back().map_or(0, |last| last.next));
        }
        _ => extents.insert(at, extent),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::TopicNumber;
    use crate::journal::{Entry, Location};
    use crate::wire::records::{BatchBuilder, Codec, NewRecord, ProducerStamp, stamp};

    /// When these producers were heard of last, after a restart at 1000: each wrote one batch of a
    /// record with this time.
    fn heard(times: &[i64]) -> Vec<i64> {
        let mut replay = Replay { now: 1000, ..Replay::default() };
        let partition = PartitionId { topic: TopicNumber(1), index: 0 };
        for (timestamp, id) in times.iter().zip(0_i64..) {
            let producer = ProducerStamp { id, epoch: 0, sequence: 0 };
            let mut builder = BatchBuilder::new().producer(producer);
            builder.push(&NewRecord { timestamp: *timestamp, ..NewRecord::default() });
            let mut body = builder.build(Codec::None).expect("no codec").to_vec();
            stamp(&mut body, id, 1);
            let kind = EntryKind::Batches;
            let entry = Entry { kind, partition, base_offset: id, epoch: 1 };
            let length = u32::try_from(body.len()).expect("small");
            let location = Location { address: u64::try_from(id).expect("small"), length };
            replay.take(&Replayed { entry, location, body: &body });
        }
        let found = &replay.found[&partition];
        found.producers.remembered().iter().map(|producer| producer.heard).collect()
    }

    /// Each restart began a producer's time anew, so that it was never forgotten.
    #[test]
    fn a_restart_does_not_make_a_silent_producer_younger() {
        assert_eq!(heard(&[300, 700]), [300, 700]);
        assert_eq!(heard(&[700, 300, -1]), [700, 700, 700], "the journal goes on in time");
        assert_eq!(heard(&[300, 9000, 400]), [300, 1000, 1000], "a clock that is ahead");
        assert_eq!(heard(&[-1, 400]), [1000, 400], "nothing is known");
    }
}
