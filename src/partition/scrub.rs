//! Scrubbing: cold data is read through now and then, slowly, so that damage is found while there
//! may still be a copy elsewhere, and told once for each place.
//!
//! Lives on: every core, one task.  Talks to: `segment`.
//!
//! Invariants
//!   B1  At most `storage.scrub.bytes.per.second` are read, and a small part of that while records
//!       are written or cold ones read.
//!   B2  A segment that is changed or removed meanwhile is never told to be damaged.
//!   B3  What is remembered of damage is bounded.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::{Log, Owner, wrong_epoch};
use crate::base::ids::PartitionId;
use crate::io::{BLOCK_BYTES, Io};
use crate::segment::{Damage, Marks, Misplaced, Seen, Segment, SegmentId};
use crate::wire::records::BatchHeader;

/// How much longer a step takes while there is traffic.
const TRAFFIC_FACTOR: u32 = 8;
/// When the core's memory is in use.
const PATIENCE: Duration = Duration::from_secs(1);
/// Places that are remembered; of others it is told again with each pass.
const PLACES_MAX: usize = 4096;

/// What a core knows of damage, and of the traffic that scrubbing gives way to.
#[derive(Default)]
pub(super) struct Scrubbing {
    told: RefCell<BTreeSet<String>>,
    /// Reads from files so far.
    reads: Cell<u64>,
}

impl Scrubbing {
    /// Whether this is told for the first time.
    fn is_news(&self, place: &str) -> bool {
        let mut told = self.told.borrow_mut();
        let is_new = !told.contains(place);
        if is_new && told.len() < PLACES_MAX {
            told.insert(place.to_string());
        }
        is_new
    }

    pub(super) fn note_read(&self) {
        self.reads.set(self.reads.get() + 1);
    }
}

/// Goes through all segments each `storage.scrub.interval.ms`.
pub(super) async fn run<I: Io>(owner: Rc<Owner<I>>) {
    let number = |name: &str| u64::try_from(owner.shared.config().int(name)).unwrap_or(0);
    let rate = number("storage.scrub.bytes.per.second");
    let interval = Duration::from_millis(number("storage.scrub.interval.ms"));
    if rate == 0 {
        return;
    }
    while !owner.is_ending() {
        let due = owner.io.now() + interval;
        owner.scrub_all(rate).await;
        owner.io.sleep_until(due.max(owner.io.now() + Duration::from_millis(1))).await;
    }
}

impl<I: Io> Owner<I> {
    async fn scrub_all(&self, rate: u64) {
        let mut ids: Vec<PartitionId> = {
            let logs = self.logs.borrow();
            let cold = logs.iter().filter(|(_, log)| !log.borrow().segments().is_empty());
            cold.map(|(id, _)| *id).collect()
        };
        ids.sort_unstable();
        let mut packs: BTreeSet<u32> = BTreeSet::new();
        for id in ids {
            let Some(log) = self.log(id) else { continue };
            let segments = log.borrow().segments().to_vec();
            packs.extend(segments.iter().filter_map(Segment::pack));
            for segment in segments {
                if self.is_ending() {
                    return;
                }
                if !is_current(&log, &segment) {
                    continue;
                }
                if let Err(error) = self.scrub(&log, &segment, rate).await
                    && is_current(&log, &segment)
                {
                    let path = self.store.path(segment.id(id));
                    self.tell_damage(&format!(
                        "{} cannot be read ({error}): offsets {} to before {} of {} are lost \
                         unless it comes back",
                        path.display(),
                        segment.base,
                        segment.next,
                        self.name_of(id),
                    ));
                }
            }
        }
        self.scrub_directories(&packs, rate).await;
    }

    /// Looks at the directories of packs, which only people and `corelog inspect` go by.
    async fn scrub_directories(&self, packs: &BTreeSet<u32>, rate: u64) {
        for number in packs {
            if self.is_ending() {
                return;
            }
            let rest = async |bytes| self.rest(bytes, rate, self.traffic()).await;
            // One that cannot be read was told with its pieces, or is gone for good reason.
            let Ok(Some(flaw)) = self.store.check_directory(*number, rest).await else { continue };
            let path = self.store.pack_path(*number);
            let is_there = self.store.packs().contains(number);
            if is_there && self.scrubbing.is_news(&path.display().to_string()) {
                tracing::error!(
                    "{} is damaged: {flaw}; nothing is lost with that, and everything in the file \
                     that is not told as damaged is served. Stop the node and run `corelog \
                     repair`, which makes the directory anew",
                    path.display()
                );
            }
        }
    }

    /// Reads one segment through.
    async fn scrub(&self, log: &Log, segment: &Segment, rate: u64) -> io::Result<()> {
        let id = segment.id(log.borrow().id());
        let reader = self.store.reader(id).await?;
        let seals = self.seals(id, segment).await?;
        let mut check = self.store.check(segment, reader.bytes()).with_seals(seals);
        let mut found: Vec<Damage> = Vec::new();
        let mut misplaced: Vec<Misplaced> = Vec::new();
        let mut wrong: Option<(BatchHeader, i32)> = None;
        let mut note = |seen: Seen<'_>| match seen {
            Seen::Damage(damage) => found.push(damage),
            Seen::Misplaced(one) => misplaced.push(one),
            Seen::Batch { header, .. } => {
                let due = wrong_epoch(log.borrow().epochs(), &header);
                wrong = wrong.or(due.map(|due| (header, due)));
            }
        };
        while let Some((position, wanted)) = check.wants() {
            if self.is_ending() || !is_current(log, segment) {
                return Ok(());
            }
            let before = self.traffic();
            let bytes = match reader.window(position, wanted, segment.bytes).await {
                Ok(window) => {
                    check.take(&window, &mut note);
                    window.len().max(BLOCK_BYTES)
                }
                Err(error) if error.kind() == io::ErrorKind::OutOfMemory => {
                    self.io.sleep(PATIENCE).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.rest(bytes, rate, before).await;
        }
        check.finish(&mut note);
        if is_current(log, segment) {
            for damage in found {
                self.tell_segment_damage(log, segment, &damage);
            }
            for one in misplaced {
                self.tell_misplaced(log, segment, &one);
            }
            if let Some((header, due)) = wrong {
                self.tell_wrong_epoch(log, &header, due);
            }
        }
        Ok(())
    }

    /// What vouches for a segment's offsets.
    async fn seals(&self, id: SegmentId, segment: &Segment) -> io::Result<Option<Rc<Marks>>> {
        loop {
            match self.store.seals(id, segment).await {
                Err(error) if error.kind() == io::ErrorKind::OutOfMemory && !self.is_ending() => {
                    self.io.sleep(PATIENCE).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// What moves with every write and every read of cold records.
    fn traffic(&self) -> (u64, u64) {
        (self.journal.head(), self.scrubbing.reads.get())
    }

    async fn rest(&self, bytes: usize, rate: u64, before: (u64, u64)) {
        let usual = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let began = self.io.now();
        self.io.sleep(usual).await;
        if self.traffic() != before {
            let slept = self.io.now() - began;
            self.io.sleep((usual * TRAFFIC_FACTOR).saturating_sub(slept)).await;
        }
    }

    pub(super) fn tell_segment_damage(&self, log: &Log, segment: &Segment, damage: &Damage) {
        let partition = log.borrow().id();
        let path = self.store.path(segment.id(partition));
        let Damage { position, bytes, from, before, flaw } = damage;
        let position = position + segment.start();
        self.tell_damage(&format!(
            "{} is damaged at byte {position}, {bytes} bytes: {flaw}; offsets {from} to before \
             {before} of {} cannot be read",
            path.display(),
            self.name_of(partition),
        ));
    }

    /// Tells of damage, each place once.
    pub(super) fn tell_damage(&self, what: &str) {
        if self.scrubbing.is_news(what) {
            tracing::error!(
                "{what}; everything else is served. Stop the node and run `corelog repair \
                 --dry-run`: it tells what is lost and what to do"
            );
        }
    }

    /// A partition in words.
    pub(super) fn name_of(&self, id: PartitionId) -> String {
        match self.image().topic_by_number(id.topic) {
            Some(topic) => format!("topic {} partition {} ({id})", topic.name, id.index),
            None => id.to_string(),
        }
    }
}

/// Whether the partition still has the segment, perhaps with more in it.
pub(super) fn is_current(log: &Log, segment: &Segment) -> bool {
    let log = log.borrow();
    let is_it = |known: &&Segment| known.base == segment.base;
    log.segments().iter().find(is_it).is_some_and(|known| {
        known.home == segment.home && known.bytes >= segment.bytes && known.next > log.log_start()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_told_once_and_what_is_remembered_is_bounded() {
        let scrubbing = Scrubbing::default();
        assert!(scrubbing.is_news("here") && !scrubbing.is_news("here"));
        for place in 0..2 * PLACES_MAX {
            assert!(scrubbing.is_news(&format!("place {place}")));
        }
        assert_eq!(scrubbing.told.borrow().len(), PLACES_MAX);
        assert!(!scrubbing.is_news("here"));
    }
}
