//! Reads of a backlog beside writes that somebody waits for: a device does one thing at a time, and
//! a core's readers could keep its commits waiting without end.
//!
//!     alone        | 1 MiB || 1 MiB || 1 MiB |
//!     among writes | 64 KiB |········ rest ········| 64 KiB |········ rest ········|
//!
//! Lives on: every core; the counts of writes are shared by the cores that use one directory.
//!
//! Invariants
//!   P1  One paced read at a time on a core, in the order in which they were asked for. Beside
//!       writes a core reads at `BESIDE_WRITES`, at `CATCH_UP_TIMES` what it takes in, or at what
//!       the operator allows, whichever is most, as far as the device gives it.
//!   P2  Where nothing was written for `QUIET`, reads do not rest.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::Io;
use crate::base::line::Line;
use crate::base::time::Instant;

/// What is read at a time among writes, and otherwise.
const PIECE_BYTES_BESIDE: usize = 64 << 10;
const PIECE_BYTES: usize = 1 << 20;
/// Writes that come less often than this meet a read of `PIECE_BYTES` now and then.
const QUIET: Duration = Duration::from_millis(100);
/// A read costs as much as one of so many bytes, however short it is.
const COST_BYTES: usize = 16 << 10;
/// Bytes a second of a core.
const BESIDE_WRITES: f64 = 16e6;
/// Four times what all cores wrote, blocks and all, let a reader take 190 MB/s beside 10 MB/s of
/// records. `perf/run --scenario isolation` tells what a reader moves.
const CATCH_UP_TIMES: f64 = 2.0;
/// How often it is looked how fast records come in.
const LOOK: Duration = Duration::from_millis(100);

/// Writes to a device that somebody waits for, of all cores that use it.
#[derive(Debug, Default)]
pub struct Writes {
    begun: AtomicU64,
    under_way: AtomicU32,
}

impl Writes {
    pub fn begin(&self) {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    pub fn end(&self) {
        self.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A core's reads of backlogs.
pub struct ReadPace<I: Io> {
    io: I,
    writes: Arc<Writes>,
    /// The least that the core's readers get beside writes, in bytes a second.
    least: f64,
    turn: Rc<Line>,
    next: Cell<Instant>,
    /// When the read that is under way began.
    since: Cell<Option<Instant>>,
    /// Writes that had begun when it was looked last, and when they were more than before.
    begun: Cell<u64>,
    written: Cell<Option<Instant>>,
    /// Bytes of records that the core has taken in.
    taken: Cell<u64>,
    growth: Cell<Growth>,
}

/// How fast records come in, in bytes a second, and what that was read from.
#[derive(Clone, Copy)]
struct Growth {
    at: Instant,
    bytes: u64,
    rate: f64,
}

/// A read that may be given up while it waits.
struct UnderWay<'a>(&'a Cell<Option<Instant>>);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

impl<I: Io> ReadPace<I> {
    /// `least` is what the core's readers get beside writes at least, in bytes a second.
    pub fn new(io: I, writes: Arc<Writes>, least: u64) -> Self {
        let at = io.now();
        let (taken, growth) = (Cell::new(0), Cell::new(Growth { at, bytes: 0, rate: 0.0 }));
        let begun = Cell::new(writes.begun.load(Ordering::Relaxed));
        let (next, since, written) = (Cell::new(at), Cell::new(None), Cell::new(None));
        let (least, turn) = (least as f64, Rc::default());
        ReadPace { io, writes, least, turn, next, since, begun, written, taken, growth }
    }

    /// The core has taken in so many bytes of records.
    pub fn taken_in(&self, bytes: u32) {
        self.taken.set(self.taken.get() + u64::from(bytes));
    }

    /// Since when the disk has not answered a read.
    pub fn waits_since(&self) -> Option<Instant> {
        self.since.get()
    }

    /// Whether somebody writes: reads rest between each other.
    pub fn is_beside_writes(&self) -> bool {
        let (now, begun) = (self.io.now(), self.writes.begun.load(Ordering::Relaxed));
        if begun != self.begun.replace(begun) || self.writes.under_way.load(Ordering::Relaxed) > 0 {
            self.written.set(Some(now));
        }
        self.written.get().is_some_and(|written| now - written < QUIET)
    }

    /// The most to read at a time.
    pub fn piece_bytes(&self) -> usize {
        if self.is_beside_writes() { PIECE_BYTES_BESIDE } else { PIECE_BYTES }
    }

    /// The most to answer a reader with at a time.
    pub fn answer_bytes(&self) -> usize {
        if self.is_beside_writes() { 2 * PIECE_BYTES_BESIDE } else { usize::MAX }
    }

    /// Does `read`, of `bytes` at most, when its turn has come.
    pub async fn read<T>(&self, bytes: usize, read: impl Future<Output = T>) -> T {
        let _turn = self.turn.turn().await;
        if self.is_beside_writes() && self.next.get() > self.io.now() {
            self.io.sleep_until(self.next.get()).await;
        }
        let began = self.io.now();
        self.since.set(Some(began));
        let under_way = UnderWay(&self.since);
        let outcome = read.await;
        drop(under_way);
        let seconds = bytes.max(COST_BYTES) as f64 / self.allowed(self.io.now());
        self.next.set(began + Duration::from_secs_f64(seconds));
        outcome
    }

    /// Bytes a second that are read beside writes.
    fn allowed(&self, now: Instant) -> f64 {
        self.least.max(CATCH_UP_TIMES * self.rate(now)).max(BESIDE_WRITES)
    }

    fn rate(&self, now: Instant) -> f64 {
        let known = self.growth.get();
        let elapsed = now - known.at;
        if elapsed < LOOK {
            return known.rate;
        }
        let bytes = self.taken.get();
        let rate = (bytes - known.bytes) as f64 / elapsed.as_secs_f64();
        self.growth.set(Growth { at: now, bytes, rate });
        rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::sim::{SimIo, World};

    const TOOK: Duration = Duration::from_micros(200);

    /// How long a number of reads of 64 KiB took, where a write is under way throughout, of `bytes`
    /// of records to each read, where the operator allows `least` bytes a second.
    fn reads(count: u32, is_beside: bool, bytes: u32, least: u64) -> Duration {
        let world = World::new(1);
        let node = world.node();
        let (io, writes) = (node.core(0), Arc::new(Writes::default()));
        let pace: ReadPace<SimIo> = ReadPace::new(io.clone(), writes.clone(), least);
        if is_beside {
            writes.begin();
        }
        world.block_on(async {
            let origin = io.now();
            for _ in 0..count {
                pace.read(PIECE_BYTES_BESIDE, io.sleep(TOOK)).await;
                pace.taken_in(bytes);
            }
            let piece = if is_beside { PIECE_BYTES_BESIDE } else { PIECE_BYTES };
            assert_eq!(pace.piece_bytes(), piece);
            io.now() - origin
        })
    }

    #[test]
    fn every_reader_has_its_turn() {
        let world = World::new(1);
        let node = world.node();
        let (io, writes) = (node.core(0), Arc::new(Writes::default()));
        writes.begin();
        let pace: ReadPace<SimIo> = ReadPace::new(io.clone(), writes, 0);
        let counts = [const { Cell::new(0) }; 5];
        world.block_on(async {
            let end = io.now() + TOOK * 2000;
            let readers = counts.each_ref().map(|count: &Cell<u32>| async {
                while io.now() < end {
                    pace.read(PIECE_BYTES_BESIDE, io.sleep(TOOK)).await;
                    count.set(count.get() + 1);
                }
            });
            futures_util::future::join_all(readers).await;
        });
        let counts = counts.map(|count| count.get());
        let (least, most) = (counts.iter().min(), counts.iter().max());
        assert!(least.zip(most).is_some_and(|(least, most)| most - least <= 1), "{counts:?}");
    }

    /// Seconds that a number of reads of 64 KiB take at so many bytes a second.
    fn due(count: u32, rate: f64) -> f64 {
        f64::from(count) * PIECE_BYTES_BESIDE as f64 / rate
    }

    #[test]
    fn reads_beside_writes_rest_and_others_do_not() {
        assert!(reads(200, false, 100, 0) < TOOK * 210, "P2");
        for (what, bytes, least, rate) in [
            ("beside writes", 100, 0, BESIDE_WRITES),
            ("whoever is behind catches up", 64 << 10, 0, PIECE_BYTES_BESIDE as f64 / 3e-4),
            ("as the operator allows", 100, 128 << 20, f64::from(128 << 20)),
        ] {
            let took = reads(10_000, true, bytes, least).as_secs_f64();
            let share = took / due(10_000, rate);
            assert!((0.5..1.2).contains(&share), "P1: {what}: {took} s, {share} of what is due");
        }
    }

    #[test]
    fn reads_rest_until_nothing_was_written_for_a_while() {
        let world = World::new(1);
        let node = world.node();
        let (io, writes) = (node.core(0), Arc::new(Writes::default()));
        let pace: ReadPace<SimIo> = ReadPace::new(io.clone(), writes.clone(), 0);
        assert!(!pace.is_beside_writes());
        world.block_on(async {
            for _ in 0..20 {
                writes.begin();
                writes.end();
                assert!(pace.is_beside_writes(), "one has come and gone");
                io.sleep(QUIET / 2).await;
                assert!(pace.is_beside_writes(), "they may come more seldom than reads");
            }
            io.sleep(QUIET).await;
            assert!(!pace.is_beside_writes(), "P2");
        });
    }
}
