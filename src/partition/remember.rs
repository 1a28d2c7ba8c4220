//! How many idempotent producers a core remembers, of all its partitions, and for how long.
//!
//! Kafka forgets a producer for its silence alone, and holds as many as there are. A client that
//! makes a new producer for every record then takes all memory, and checkpoints, which hold all of
//! them, all of the journal; here the most silent ones of its partition make room. A forgotten
//! producer may go on with any sequence, as in Kafka; all that it loses is that a batch which it
//! sends again is known.
//!
//! Lives on: every core, one instance.  Talks to: the mind `producer`.
//!
//! Invariants
//!   U1  `count` is the sum over the core's partitions.
//!   U2  A partition remembers at most `per_partition`; once the core remembers `per_core`, one
//!       that remembers `SHARE_MIN` or more remembers no more.
//!   U3  No producer is forgotten for its silence so soon after a start that it could not have sent
//!       again what the end before it has cut off.

use std::cell::Cell;
use std::time::Duration;

use crate::base::ids::Offset;
use crate::base::time::Instant;
use crate::config::BrokerConfig;
use crate::io::Io;
use crate::journal::Journal;
use crate::producer::{Claim, PRODUCERS_MAX, Producers};

use super::checkpoint;

/// The share of the core's memory that producers may take, and what their checkpoints may of the
/// journal; those of a partition of one of its files.
const SHARE: usize = 8;
/// What one takes in memory, about: its place in the map, and its window.
const MEMORY_BYTES: usize = 192;
/// Producers that a partition may remember however many there are elsewhere.
const SHARE_MIN: usize = 16;
/// Clients give up after two minutes, unless they are told otherwise.
const RETRY_TIME: Duration = Duration::from_secs(600);

const _: () = assert!(SHARE_MIN < PRODUCERS_MAX);

/// See the module's documentation.
pub(super) struct Remembering {
    count: Cell<usize>,
    bounds: Bounds,
    begun: Instant,
}

/// How many producers are remembered, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    per_core: usize,
    per_partition: usize,
    /// In milliseconds.
    silence_max: i64,
}

impl Bounds {
    pub fn new<I: Io>(config: &BrokerConfig, journal: &Journal<I>) -> Bounds {
        Bounds::of(config, journal.capacity().0, journal.file_bytes())
    }

    /// With a journal of so many bytes, and of so many in each file.
    fn of(config: &BrokerConfig, journal_bytes: u64, file_bytes: u64) -> Bounds {
        let within = |bytes: u64| {
            usize::try_from(bytes).unwrap_or(usize::MAX) / SHARE / checkpoint::PRODUCER_BYTES
        };
        let in_memory = config.size("core.memory.bytes") / SHARE / MEMORY_BYTES;
        Bounds {
            per_core: in_memory.min(within(journal_bytes)),
            per_partition: within(file_bytes).clamp(SHARE_MIN, PRODUCERS_MAX),
            silence_max: config.int("producer.id.expiration.ms"),
        }
    }
}

impl Remembering {
    /// `count` producers were recovered.
    pub fn new(bounds: Bounds, count: usize, now: Instant) -> Remembering {
        Remembering { count: Cell::new(count), bounds, begun: now }
    }

    /// A partition takes a batch that is in its log. `heard` in Unix milliseconds.
    pub fn record(&self, producers: &mut Producers, claim: &Claim, base: Offset, heard: i64) {
        self.change(producers, |producers| {
            let before = producers.len();
            producers.record(claim, base, heard);
            if producers.len() > before {
                let is_full = self.count.get() >= self.bounds.per_core;
                let most = if is_full { before.max(SHARE_MIN) } else { usize::MAX };
                producers.keep(most.min(self.bounds.per_partition), Some(claim.producer_id));
            }
        });
    }

    /// Forgets a partition's producers that said nothing for too long, and those that are too many:
    /// journal files may have been larger before. `wall` in Unix milliseconds.
    pub fn expire(&self, producers: &mut Producers, now: Instant, wall: i64) {
        if producers.is_empty() {
            return;
        }
        let Bounds { silence_max, per_partition, .. } = self.bounds;
        let grace = Duration::from_millis(u64::try_from(silence_max).unwrap_or(0)).min(RETRY_TIME);
        self.change(producers, |producers| {
            if now - self.begun >= grace {
                producers.expire(wall.saturating_sub(silence_max));
            }
            producers.keep(per_partition, None);
        });
    }

    /// The partition goes away.
    pub fn forget_all(&self, producers: &mut Producers) {
        self.change(producers, |producers| *producers = Producers::default());
    }

    fn change(&self, producers: &mut Producers, change: impl FnOnce(&mut Producers)) {
        let others = self.count.get().saturating_sub(producers.len());
        change(producers);
        self.count.set(others + producers.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000;

    fn bounds() -> Bounds {
        Bounds::of(&BrokerConfig::default(), 1 << 30, 128 << 20)
    }

    fn begin(remembering: &Remembering, producers: &mut Producers, id: usize, heard: i64) {
        let producer_id = i64::try_from(id).expect("small");
        let claim = Claim { producer_id, epoch: 0, first_sequence: 0, last_sequence: 0 };
        remembering.record(producers, &claim, 0, heard);
    }

    fn sum(partitions: &[Producers]) -> usize {
        partitions.iter().map(Producers::len).sum()
    }

    #[test]
    fn a_silent_producer_is_forgotten_after_a_day_and_not_soon_after_a_start() {
        let now = Instant::ZERO + Duration::from_secs(1);
        let mut producers = Producers::default();
        let remembering = Remembering::new(bounds(), 0, now);
        begin(&remembering, &mut producers, 1, 0);
        begin(&remembering, &mut producers, 2, 5);
        remembering.expire(&mut producers, now + Duration::from_secs(599), DAY + 1);
        assert_eq!((producers.len(), remembering.count.get()), (2, 2));
        let later = now + RETRY_TIME;
        remembering.expire(&mut producers, later, DAY);
        assert_eq!(producers.len(), 2);
        remembering.expire(&mut producers, later, DAY + 1);
        assert_eq!((producers.len(), remembering.count.get()), (1, 1));
        remembering.forget_all(&mut producers);
        remembering.forget_all(&mut producers);
        assert_eq!((producers.len(), remembering.count.get()), (0, 0));
    }

    /// A thousand partitions with as many producers as each may have took a core's memory.
    #[test]
    fn a_core_remembers_what_its_memory_takes_and_some_of_each_partition() {
        let bounds = Bounds { per_core: 500, ..bounds() };
        let remembering = Remembering::new(bounds, 0, Instant::ZERO);
        let mut partitions = vec![Producers::default(); 100];
        for id in 0..600 {
            begin(&remembering, &mut partitions[0], id, i64::try_from(id).expect("small"));
        }
        assert!((400..=500).contains(&sum(&partitions)), "{}", sum(&partitions));
        for id in 0..1000 {
            for producers in &mut partitions[1..] {
                begin(&remembering, producers, id, i64::try_from(id).expect("small"));
            }
        }
        assert_eq!(remembering.count.get(), sum(&partitions), "U1");
        for producers in &partitions[1..] {
            let last = producers.remembered().last().map(|one| one.producer_id);
            assert_eq!(last, Some(999), "the newest are remembered");
            assert!((SHARE_MIN / 2..=100).contains(&producers.len()), "{}", producers.len());
        }
        assert!(sum(&partitions) <= 500 + 100 * SHARE_MIN);
    }

    /// A file whose checkpoints fill another one cannot be drained.
    #[test]
    fn checkpoints_leave_room_in_the_files_and_the_journal() {
        assert_eq!(bounds().per_partition, PRODUCERS_MAX);
        let tiny = Bounds::of(&BrokerConfig::default(), 4 << 20, 1 << 20);
        let bytes = |count: usize| count * checkpoint::PRODUCER_BYTES;
        assert!(bytes(tiny.per_partition) <= (1 << 20) / SHARE, "{tiny:?}");
        assert!(bytes(tiny.per_core) <= (4 << 20) / SHARE, "{tiny:?}");
        let remembering = Remembering::new(tiny, 0, Instant::ZERO);
        let mut producers = Producers::default();
        for id in 0..2 * tiny.per_partition {
            begin(&remembering, &mut producers, id, 0);
            assert!(producers.len() <= tiny.per_partition, "U2");
        }
        // Those of a time with larger files.
        let before = Remembering::new(bounds(), 0, Instant::ZERO);
        (0..PRODUCERS_MAX).for_each(|id| begin(&before, &mut producers, id, 0));
        remembering.expire(&mut producers, Instant::ZERO, 0);
        assert!(producers.len() <= tiny.per_partition, "{}", producers.len());
    }
}
