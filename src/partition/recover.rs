//! Start of a core: the journal's entries become partitions again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::append::claim_of;
use super::{Extent, Log, PartitionLog};
use crate::base::buffer::Arena;
use crate::base::ids::PartitionId;
use crate::io::Io;
use crate::journal::{EntryKind, Journal, OpenError, Replayed, Settings};
use crate::metadata::{self, Command, Image};
use crate::wire::records;

/// What a core's journal held.
pub struct Recovered<I: Io> {
    pub journal: Journal<I>,
    /// Partitions with what was ever written to them, also those of topics that are gone.
    pub logs: HashMap<PartitionId, Log>,
    /// The metadata, in the journal of core 0.
    pub image: Image,
    /// Why sound groups make no state, if they do not: a newer program's metadata, or entries that
    /// contradict each other.
    pub contradiction: Option<String>,
}

impl<I: Io> Recovered<I> {
    /// Forgets the partitions of topics that `image` does not know.
    pub fn forget_unknown(&mut self, image: &Image) {
        self.logs.retain(|id, _| image.topic_by_number(id.topic).is_some());
    }
}

/// Opens the journal and replays it.
pub async fn recover<I: Io>(
    io: I,
    arena: Arena,
    settings: Settings,
) -> Result<Recovered<I>, OpenError> {
    let now = io.wall().0;
    let mut replay = Replay { logs: HashMap::new(), image: Image::default(), failed: None, now };
    let journal = Journal::open(io, arena, settings, &mut |found| replay.take(&found)).await?;
    let logs = replay.logs.into_iter().map(|(id, mut log)| {
        // Whatever recovery accepts is durable.
        log.settled(log.next(), 0);
        (id, Rc::new(RefCell::new(log)))
    });
    let logs = logs.collect();
    Ok(Recovered { journal, logs, image: replay.image, contradiction: replay.failed })
}

struct Replay {
    logs: HashMap<PartitionId, PartitionLog>,
    image: Image,
    failed: Option<String>,
    now: i64,
}

impl Replay {
    fn take(&mut self, found: &Replayed<'_>) {
        if self.failed.is_some() {
            return;
        }
        let id = found.entry.partition;
        match found.entry.kind {
            EntryKind::Batches => self.take_batches(found),
            EntryKind::Metadata => match metadata::decode(found.body) {
                Ok(commands) => self.take_commands(&commands),
                Err(error) => self.failed = Some(error.to_string()),
            },
            EntryKind::LogStart => {
                let log = self.logs.entry(id).or_insert_with(|| PartitionLog::new(id));
                log.restore_log_start(found.entry.base_offset);
            }
        }
    }

    fn take_commands(&mut self, commands: &[Command]) {
        for command in commands {
            self.image.apply(command);
        }
    }

    fn take_batches(&mut self, found: &Replayed<'_>) {
        let id = found.entry.partition;
        let log = self.logs.entry(id).or_insert_with(|| PartitionLog::new(id));
        let base = found.entry.base_offset;
        let mut next = base;
        let mut max_timestamp = -1;
        let expected = log.next();
        for (header, _) in records::batches(found.body) {
            if header.has_producer() {
                log.producers.record(&claim_of(&header), header.base_offset, self.now);
            }
            next = header.next_offset();
            max_timestamp = max_timestamp.max(header.max_timestamp);
        }
        if base != expected || next <= base {
            let address = found.location.address;
            self.failed = Some(format!(
                "the journal contradicts itself at address {address}: an entry holds the offsets \
                 from {base} to before {next} of {id}, where {expected} comes next"
            ));
            return;
        }
        let extent = Extent { base, next, location: found.location, max_timestamp };
        log.appended(extent, found.entry.epoch);
    }
}
