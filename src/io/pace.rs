//! Reads of a backlog beside writes that somebody waits for: a device does one thing at a time, and
//! a core's readers could keep its commits waiting without end.
//!
//!     alone        | 1 MiB || 1 MiB || 1 MiB |
//!     among writes | 64 | 64 | 64 | 64 KiB |········· rest ·········| 64 | 64 | 64 | 64 KiB |····
//!     that feel it | 256 KiB |················· rest ·················| 256 KiB |·············
//!
//! Lives on: every core; the counts of writes are shared by the cores that use one directory.
//!
//! Invariants
//!   P1  One paced read at a time on a core, in the order in which they were asked for. Beside
//!       writes one rests `REST_TIMES` as long as it took, but a core reads `BESIDE_WRITES`,
//!       `CATCH_UP_TIMES` what it takes in, or what the operator allows, whichever is most, as far
//!       as the device gives it. Whoever comes late makes up for `LATE_MAX` of it. The device is
//!       asked for `STEP_BYTES_BESIDE` at a time, so that no write waits for a whole piece.
//!       Nor does the core work on what was read for long without a `BREATH`.
//!   P2  Reads do not rest where no core of the directory has taken in records for `QUIET`, but for
//!       those that meet another write: readers that note offsets do not slow themselves down.
//!   P3  Where the directory's writes do not bear the reads (B1 of io/writes.rs), a core reads no
//!       more than `BESIDE_HARMED` and what else is said above, pieces whole, and however short a
//!       read was: the next one may be long. No reader waits for much longer than `WAIT_MAX`.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Io;
use super::writes::Writes;
use crate::base::line::Line;
use crate::base::time::Instant;

/// What is read at a time among writes, and otherwise: each piece wakes the core and has a batch
/// joined that was cut at its end.
const PIECE_BYTES_BESIDE: usize = 256 << 10;
const PIECE_BYTES: usize = 1 << 20;
/// What the device is asked for at a time among writes. A write stands behind a step for as long as
/// it takes, and p99 feels the whole of it: reads of 25 MB/s moved that of 2,000 flushed writes a
/// second 1.8 times in steps of 256 KiB, 1.4 times of 128, 1.07 of 64 and 1.01 of 32 (`fio`).
const STEP_BYTES_BESIDE: usize = 64 << 10;
/// Records that come less often than this meet a read of `PIECE_BYTES` now and then.
const QUIET: Duration = Duration::from_millis(20);
/// A fast device is busy with a core's reads for one part in 121 of the time: of the writes not
/// many more than the hundredth that p99 leaves out meet one.
const REST_TIMES: u32 = 120;
/// A read costs as much as one of so many bytes, however short it is.
const COST_BYTES: usize = 16 << 10;
/// Bytes a second of a core, however slow the device is, beside writes that do not feel it, and
/// beside others: whoever is behind gets on in any case. It is to be more than comes in: with a
/// quarter of a megabyte p99 moved 1.09 times (0.97 to 1.29) on a cold disk, and a consumer behind,
/// beside a load, did not get through within a minute (`tests/broker/kill.rs`). No way of
/// reading saves it all: plain reads of 4 MB/s moved p99 3.1 times in pieces of 256 KiB, 1.8 times
/// in pieces of 64 that were evenly spread, 1.7 of 16.
const BESIDE_WRITES: f64 = 5e6;
const BESIDE_HARMED: f64 = 2e6;
/// However many readers there are, each has its turn within about so long.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// Four times what all cores wrote, blocks and all, let a reader take 190 MB/s beside 10 MB/s of
/// records. `perf/run --scenario isolation` tells what a reader moves.
const CATCH_UP_TIMES: f64 = 2.0;
/// Readers come late by a client's round trip, a timer, or a device that stood still, most of them
/// by less than this.
const LATE_MAX: Duration = Duration::from_millis(5);
/// How long a core sleeps between two pieces of work for a reader of a backlog, where somebody
/// writes. A commit is finished by threads of the kernel, and it may be this core's CPU that they
/// want: one that does not sleep keeps them waiting until its slice is over, and where the kernel
/// is not preemptible until its call is. One answer in a row kept them waiting for half a
/// millisecond.
pub const BREATH: Duration = Duration::from_micros(60);
/// How often it is looked how fast records come in.
const LOOK: Duration = Duration::from_millis(100);

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
    /// Appends up to when it was looked last, and when they were more than before.
    appends: Cell<u64>,
    appended: Cell<Option<Instant>>,
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
struct UnderWay<'a, I: Io>(&'a ReadPace<I>);

impl<I: Io> Drop for UnderWay<'_, I> {
    fn drop(&mut self) {
        self.0.since.set(None);
        self.0.writes.read_ends(self.0.io.now());
    }
}

impl<I: Io> ReadPace<I> {
    /// `least` is what the core's readers get beside writes at least, in bytes a second.
    pub fn new(io: I, writes: Arc<Writes>, least: u64) -> Self {
        let at = io.now();
        let (taken, growth) = (Cell::new(0), Cell::new(Growth { at, bytes: 0, rate: 0.0 }));
        let appends = Cell::new(writes.appends());
        let (next, since, appended) = (Cell::new(at), Cell::new(None), Cell::new(None));
        let (least, turn) = (least as f64, Rc::default());
        ReadPace { io, writes, least, turn, next, since, appends, appended, taken, growth }
    }

    /// The core has taken in so many bytes of records.
    pub fn taken_in(&self, bytes: u32) {
        self.writes.appended();
        self.taken.set(self.taken.get() + u64::from(bytes));
    }

    /// Since when the disk has not answered a read.
    pub fn waits_since(&self) -> Option<Instant> {
        self.since.get()
    }

    /// Whether somebody writes: reads rest between each other.
    pub fn is_beside_writes(&self) -> bool {
        let (now, appends) = (self.io.now(), self.writes.appends());
        if appends != self.appends.replace(appends) {
            self.appended.set(Some(now));
        }
        let is_recent = self.appended.get().is_some_and(|appended| now - appended < QUIET);
        is_recent || self.writes.are_under_way()
    }

    /// The most to read at a time.
    pub fn piece_bytes(&self) -> usize {
        if self.is_beside_writes() { PIECE_BYTES_BESIDE } else { PIECE_BYTES }
    }

    /// The most to ask the device for at a time, of a piece.
    pub fn step_bytes(&self) -> usize {
        // Where reads are slow, it is for each request more than for its bytes.
        let is_felt_little = self.is_beside_writes() && self.writes.bear_reads();
        if is_felt_little { STEP_BYTES_BESIDE } else { usize::MAX }
    }

    /// The most to answer a reader with at a time.
    pub fn answer_bytes(&self) -> usize {
        if self.is_beside_writes() { PIECE_BYTES_BESIDE } else { usize::MAX }
    }

    /// Lets others have the CPU for a moment, if somebody writes.
    pub async fn breathe(&self) {
        if self.is_beside_writes() {
            self.io.sleep(BREATH).await;
        }
    }

    /// Does `read`, of `bytes` at most, when its turn has come.
    pub async fn read<T>(&self, bytes: usize, read: impl Future<Output = T>) -> T {
        let _turn = self.turn.turn().await;
        if self.is_beside_writes() && self.next.get() > self.io.now() {
            self.io.sleep_until(self.next.get()).await;
        }
        let began = self.io.now();
        self.since.set(Some(began));
        self.writes.read_begins(began);
        let under_way = UnderWay(self);
        let outcome = read.await;
        drop(under_way);
        let now = self.io.now();
        let at_least = self.least.max(CATCH_UP_TIMES * self.rate(now));
        let every = |rate: f64| Duration::from_secs_f64(bytes.max(COST_BYTES) as f64 / rate);
        let rest = match self.writes.bear_reads() {
            true => every(at_least.max(BESIDE_WRITES)).min((now - began) * (1 + REST_TIMES)),
            false => {
                let readers = u32::try_from(self.turn.len()).unwrap_or(u32::MAX).max(1);
                every(at_least.max(BESIDE_HARMED)).min(WAIT_MAX / readers)
            }
        };
        let due = self.next.get().max(began - LATE_MAX).min(began);
        self.next.set(due + rest);
        outcome
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

    /// A piece of four steps.
    const TOOK: Duration = Duration::from_micros(1200);

    /// How long a number of pieces took to read, where a write is under way throughout, of `bytes`
    /// of records to each read, where the operator allows `least` bytes a second.
    fn reads(count: u32, is_beside: bool, bytes: u32, least: u64) -> Duration {
        let world = World::new(1);
        let node = world.node();
        let (io, writes) = (node.core(0), Arc::new(Writes::default()));
        let pace: ReadPace<SimIo> = ReadPace::new(io.clone(), writes.clone(), least);
        let _write = is_beside.then(|| writes.begin(io.now()));
        world.block_on(async {
            let origin = io.now();
            for _ in 0..count {
                pace.read(PIECE_BYTES_BESIDE, async { io.sleep(TOOK).await }).await;
                if is_beside {
                    pace.taken_in(bytes);
                }
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
        let _write = writes.begin(io.now());
        let pace: ReadPace<SimIo> = ReadPace::new(io.clone(), writes, 0);
        let counts = [const { Cell::new(0) }; 5];
        world.block_on(async {
            let end = io.now() + TOOK * 2000;
            let readers = counts.each_ref().map(|count: &Cell<u32>| async {
                while io.now() < end {
                    pace.read(PIECE_BYTES_BESIDE, async { io.sleep(TOOK).await }).await;
                    count.set(count.get() + 1);
                }
            });
            futures_util::future::join_all(readers).await;
        });
        let counts = counts.map(|count| count.get());
        let (least, most) = (counts.iter().min(), counts.iter().max());
        assert!(least.zip(most).is_some_and(|(least, most)| most - least <= 1), "{counts:?}");
    }

    /// Seconds that a number of pieces take at so many bytes a second.
    fn due(count: u32, rate: f64) -> f64 {
        f64::from(count) * PIECE_BYTES_BESIDE as f64 / rate
    }

    #[test]
    fn reads_beside_writes_rest_and_others_do_not() {
        assert!(reads(200, false, 100, 0) < TOOK * 210, "P2");
        let device = PIECE_BYTES_BESIDE as f64 / TOOK.as_secs_f64();
        for (what, bytes, least, rate) in [
            ("beside writes", 100, 0, BESIDE_WRITES),
            ("whoever is behind catches up", 256 << 10, 0, device),
            ("as the operator allows", 100, 128 << 20, f64::from(128 << 20)),
        ] {
            let took = reads(10_000, true, bytes, least).as_secs_f64();
            let share = took / due(10_000, rate);
            assert!((0.5..1.2).contains(&share), "P1: {what}: {took} s, {share} of what is due");
        }
    }

    #[test]
    fn whoever_comes_late_makes_up_for_it() {
        let world = World::new(1);
        let io = world.node().core(0);
        let writes = Arc::new(Writes::default());
        let _write = writes.begin(io.now());
        let pace: ReadPace<SimIo> = ReadPace::new(io.clone(), writes, 0);
        let rest = Duration::from_secs_f64(due(1, BESIDE_WRITES));
        world.block_on(async {
            let began = io.now();
            for round in 0..500 {
                pace.read(PIECE_BYTES_BESIDE, async { io.sleep(TOOK).await }).await;
                // Now before the next read is due, and now as late as may be made up for.
                io.sleep(if round % 2 == 0 { Duration::ZERO } else { rest + LATE_MAX / 2 }).await;
            }
            let share = (io.now() - began).as_secs_f64() / due(500, BESIDE_WRITES);
            assert!((0.98..1.1).contains(&share), "P1: {share} of what is due");
            io.sleep(Duration::from_secs(1)).await;
            let began = io.now();
            for _ in 0..100 {
                pace.read(PIECE_BYTES_BESIDE, async { io.sleep(TOOK).await }).await;
            }
            let most = due(99, BESIDE_WRITES) - LATE_MAX.as_secs_f64();
            assert!((io.now() - began).as_secs_f64() > 0.99 * most, "no more than that");
        });
    }

    #[test]
    fn a_fast_device_rests_no_longer_than_it_must() {
        let world = World::new(1);
        let node = world.node();
        let (io, writes) = (node.core(0), Arc::new(Writes::default()));
        let pace: ReadPace<SimIo> = ReadPace::new(io.clone(), writes.clone(), 0);
        let _write = writes.begin(io.now());
        world.block_on(async {
            let began = io.now();
            for _ in 0..100 {
                pace.read(PIECE_BYTES_BESIDE, async { io.sleep(TOOK / 10).await }).await;
            }
            let took = io.now() - began;
            assert!(took > TOOK / 10 * (1 + REST_TIMES) * 98, "{took:?}");
            assert!(took.as_secs_f64() < due(100, BESIDE_WRITES) / 3.0, "{took:?}");
        });
    }

    /// Bytes a second that `readers` get for a minute, and the longest that one of them waited,
    /// where each read takes so long, and writes of others wait for as long if it is.
    fn beside_slow_reads(readers: usize, took: Duration, bytes: u32) -> (f64, Duration) {
        let world = World::new(1);
        let io = world.node().core(0);
        let writes = Arc::new(Writes::default());
        let pace: ReadPace<SimIo> = ReadPace::new(io.clone(), writes.clone(), 0);
        let (read, longest, until) = (Cell::new(0), Cell::new(Duration::ZERO), Cell::new(io.now()));
        world.block_on(async {
            let began = io.now();
            let end = began + Duration::from_secs(60);
            let reader = async |_: usize| {
                while io.now() < end {
                    let asked = io.now();
                    let reading = async {
                        until.set(io.now() + took);
                        io.sleep(took).await;
                    };
                    pace.read(PIECE_BYTES_BESIDE, reading).await;
                    read.set(read.get() + PIECE_BYTES_BESIDE);
                    longest.set(longest.get().max(io.now() - asked));
                }
            };
            let writer = async {
                for number in 0.. {
                    if io.now() >= end {
                        break;
                    }
                    let write = writes.begin(io.now());
                    io.sleep(Duration::from_micros(300 + number * 7919 % 300)).await;
                    io.sleep_until(until.get()).await;
                    writes.end(write, io.now());
                    pace.taken_in(bytes);
                    io.sleep(Duration::from_micros(200)).await;
                }
            };
            let all = futures_util::future::join_all((0..readers).map(reader));
            futures_util::future::join(all, writer).await;
            (read.get() as f64 / (io.now() - began).as_secs_f64(), longest.get())
        })
    }

    #[test]
    fn reads_that_writes_do_not_bear_are_few() {
        let quick = Duration::from_micros(80);
        let (rate, _) = beside_slow_reads(1, quick, 100);
        assert!(rate > 0.9 * BESIDE_WRITES, "P1: {rate}");
        let slow = Duration::from_millis(12);
        let (rate, _) = beside_slow_reads(1, slow, 100);
        assert!((0.9..2.0).contains(&(rate / BESIDE_HARMED)), "P3: {rate}");
        // Some 1,300 writes a second.
        let (rate, _) = beside_slow_reads(1, slow, 2048);
        assert!((2.0..3.2).contains(&(rate / BESIDE_HARMED)), "P3, as it comes in: {rate}");
        let (_, longest) = beside_slow_reads(60, slow, 100);
        assert!(longest < WAIT_MAX + slow * 60 + Duration::from_millis(500), "P3: {longest:?}");
    }

    #[test]
    fn reads_rest_until_no_records_came_for_a_while() {
        let world = World::new(1);
        let node = world.node();
        let (io, writes) = (node.core(0), Arc::new(Writes::default()));
        let pace = |core| ReadPace::<SimIo>::new(node.core(core), writes.clone(), 0);
        let (one, other) = (pace(0), pace(1));
        assert!(!one.is_beside_writes());
        world.block_on(async {
            for _ in 0..20 {
                other.taken_in(1);
                assert!(one.is_beside_writes(), "another core of the same directory");
                io.sleep(QUIET / 2).await;
                assert!(one.is_beside_writes(), "they may come more seldom than reads");
            }
            io.sleep(QUIET).await;
            assert!(!one.is_beside_writes(), "P2");
            let write = writes.begin(io.now());
            assert!(one.is_beside_writes(), "another write, while it is under way");
            writes.end(write, io.now());
            assert!(!one.is_beside_writes(), "P2");
        });
    }
}
