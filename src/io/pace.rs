//! Reads of a backlog beside writes that somebody waits for: a device does one thing at a time, and
//! a core's readers could keep its commits waiting without end.
//!
//!     alone        | 1 MiB || 1 MiB || 1 MiB |
//!     among writes | 128 KiB |······ rest, ten times as long ······| 128 KiB |······
//!
//! Lives on: every core; the counts of writes are shared by the cores that use one directory.
//!
//! Invariants
//!   P1  One paced read at a time on a core, in the order in which they were asked for. After one
//!       that met a write it rests `REST_TIMES` as long as the read took, but never longer than
//!       `REST_MAX`, and never so long that a core's readers would be slower than `CATCH_UP_TIMES`
//!       what the core takes in, or than the operator allows.
//!   P2  Reads that meet no write do not rest.

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
const PIECE_BYTES_MET: usize = 128 << 10;
const PIECE_BYTES: usize = 1 << 20;
/// Without a rest, a reader at full speed doubled the p99 of 10,000 records a second; with this one
/// it moves it by 1.15 times, and gets 19 MB/s. Twice as long a rest moved it by 1.03 times, and
/// left the reader 11 MB/s beside 10 MB/s of records: it would hardly ever have caught up.
const REST_TIMES: u32 = 10;
const REST_MAX: Duration = Duration::from_millis(5);
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
    /// The last read met a write.
    is_met: Cell<bool>,
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
        let (next, is_met) = (Cell::new(at), Cell::new(false));
        let since = Cell::new(None);
        let (least, turn) = (least as f64, Rc::default());
        ReadPace { io, writes, least, turn, next, since, is_met, taken, growth }
    }

    /// The core has taken in so many bytes of records.
    pub fn taken_in(&self, bytes: u32) {
        self.taken.set(self.taken.get() + u64::from(bytes));
    }

    /// Since when the disk has not answered a read.
    pub fn waits_since(&self) -> Option<Instant> {
        self.since.get()
    }

    /// Whether the last read met a write: the next one may rest before.
    pub fn is_met(&self) -> bool {
        self.is_met.get()
    }

    /// The most to read at a time.
    pub fn piece_bytes(&self) -> usize {
        if self.is_met.get() { PIECE_BYTES_MET } else { PIECE_BYTES }
    }

    /// The most to answer a reader with at a time.
    pub fn answer_bytes(&self) -> usize {
        if self.is_met.get() { PIECE_BYTES_MET } else { usize::MAX }
    }

    /// Does `read`, of `bytes` at most, when its turn has come.
    pub async fn read<T>(&self, bytes: usize, read: impl Future<Output = T>) -> T {
        let _turn = self.turn.turn().await;
        if self.is_met.get() && self.next.get() > self.io.now() {
            self.io.sleep_until(self.next.get()).await;
        }
        let (before, began) = (self.begun(), self.io.now());
        let is_beside = self.writes.under_way.load(Ordering::Relaxed) > 0;
        self.since.set(Some(began));
        let under_way = UnderWay(&self.since);
        let outcome = read.await;
        drop(under_way);
        let now = self.io.now();
        self.is_met.set(is_beside || self.begun() != before);
        if self.is_met.get() {
            self.next.set(now + self.rest(bytes, now - began, now));
        }
        outcome
    }

    fn begun(&self) -> u64 {
        self.writes.begun.load(Ordering::Relaxed)
    }

    /// How long nothing is read after a read of `bytes` that took `took`.
    fn rest(&self, bytes: usize, took: Duration, now: Instant) -> Duration {
        let rate = self.least.max(CATCH_UP_TIMES * self.rate(now));
        let longest = match rate > 0.0 {
            true => Duration::from_secs_f64(bytes as f64 / rate),
            false => REST_MAX,
        };
        (took * REST_TIMES).min(REST_MAX).min(longest.saturating_sub(took))
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

    /// When each of some reads of 128 KiB began, where a write is under way throughout, of `bytes`
    /// of records to each read, where the operator allows `least` bytes a second.
    fn reads(is_beside: bool, bytes: u32, least: u64) -> Vec<Duration> {
        let world = World::new(1);
        let node = world.node();
        let (io, writes) = (node.core(0), Arc::new(Writes::default()));
        let pace: ReadPace<SimIo> = ReadPace::new(io.clone(), writes.clone(), least);
        world.block_on(async {
            let origin = io.now();
            let mut begun = Vec::new();
            for _ in 0..200 {
                writes.begin();
                if !is_beside {
                    writes.end();
                }
                let read = async {
                    begun.push(io.now() - origin);
                    io.sleep(TOOK).await;
                };
                pace.read(PIECE_BYTES_MET, read).await;
                if is_beside {
                    writes.end();
                    pace.taken_in(bytes);
                }
            }
            assert_eq!(pace.piece_bytes(), if is_beside { PIECE_BYTES_MET } else { PIECE_BYTES });
            begun
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
            let end = io.now() + TOOK * 1000;
            let readers = counts.each_ref().map(|count: &Cell<u32>| async {
                while io.now() < end {
                    pace.read(PIECE_BYTES_MET, io.sleep(TOOK)).await;
                    count.set(count.get() + 1);
                }
            });
            futures_util::future::join_all(readers).await;
        });
        let counts = counts.map(|count| count.get());
        let (least, most) = (counts.iter().min(), counts.iter().max());
        assert!(least.zip(most).is_some_and(|(least, most)| most - least <= 1), "{counts:?}");
    }

    #[test]
    fn reads_beside_writes_rest_and_others_do_not() {
        let took = |reads: &[Duration]| reads[199] - reads[0];
        assert!(took(&reads(true, 100, 0)) >= TOOK * 199 * (REST_TIMES + 1), "P1");
        assert!(took(&reads(false, 100, 0)) < TOOK * 199 * 2, "P2");
        let busy = took(&reads(true, 128 << 10, 0));
        assert!(busy < TOOK * 199 * 10, "P1: whoever is behind catches up, {busy:?}");
        let allowed = took(&reads(true, 100, 128 << 20));
        assert!(allowed < Duration::from_millis(210), "P1: as the operator allows, {allowed:?}");
    }
}
