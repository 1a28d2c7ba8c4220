//! The journal in the simulator: crashes at any step, failing and full disks, many seeds.

use std::rc::Rc;

use super::*;
use crate::io::sim::{Crash, Fault, Node, SimIo, World};

const SEEDS: u64 = 400;
const LIVES: u32 = 6;
const APPENDERS: u16 = 3;

fn small(flush: Flush) -> Settings {
    Settings {
        directory: "/data/core-0".into(),
        file_bytes: 256 << 10,
        bytes_max: 1 << 20,
        kept_bytes: 0,
        group_bytes_max: 32 << 10,
        pending_bytes_max: 64 << 10,
        tail_bytes_max: 32 << 10,
        flush,
    }
}

/// What the journal must hold, whatever happened.
#[derive(Default)]
struct Model {
    /// Entries in the order in which they were accepted: number and address.
    accepted: Vec<(u32, u64)>,
    next: u32,
    /// So many from the front were acknowledged ...
    acknowledged: usize,
    /// ... so many were there at a recovery ...
    recovered: usize,
    /// ... and so many were released: they may be gone.
    released: usize,
    /// Whether the journal was poisoned in this life.
    poisoned: bool,
    seen: Seen,
}

/// What a run has met, so that a test which meets nothing fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    replayed: usize,
    dropped: usize,
    reused: usize,
    refused: usize,
    poisoned: usize,
    failed_opens: usize,
}

impl Model {
    /// A crash that loses what is not flushed, in a mode that flushes later.
    fn lose_unflushed(&mut self) {
        self.acknowledged = self.acknowledged.min(self.recovered);
    }

    /// Compares a replay with what was accepted: a run of it without a hole, from something
    /// released to something beyond all that was acknowledged.
    fn check(&mut self, replayed: &[(u32, Vec<u8>)]) {
        for (number, found) in replayed {
            assert!(*found == body(*number), "the bytes of entry {number} are others");
        }
        let Some((first, _)) = replayed.first() else {
            assert!(self.acknowledged <= self.released, "everything is gone");
            self.take(0, 0);
            return;
        };
        let start = self.accepted.iter().position(|(number, _)| number == first);
        let start = start.unwrap_or_else(|| panic!("entry {first} was dropped before"));
        assert!(start <= self.released, "entry {} is gone", self.accepted[self.released].0);
        let end = start + replayed.len();
        assert!(end <= self.accepted.len(), "more came back than was accepted");
        let numbers = self.accepted[start..end].iter().map(|(number, _)| number);
        assert!(numbers.eq(replayed.iter().map(|(number, _)| number)), "the order is another");
        assert!(end >= self.acknowledged, "{} of {} came back", end, self.acknowledged);
        self.take(start, end);
    }

    fn take(&mut self, start: usize, end: usize) {
        self.seen.replayed += end - start;
        self.seen.reused += usize::from(start > 0);
        self.seen.dropped += self.accepted.len() - end;
        self.accepted = self.accepted[start..end].to_vec();
        self.released = self.released.saturating_sub(start).min(self.accepted.len());
        self.acknowledged = self.accepted.len();
        self.recovered = self.accepted.len();
        self.poisoned = false;
    }

    /// Notes an accepted entry; returns how many there are with it.
    fn accept(&mut self, address: u64) -> usize {
        self.accepted.push((self.next, address));
        self.next += 1;
        self.accepted.len()
    }
}

type Shared = Rc<RefCell<Model>>;

async fn open(
    io: SimIo,
    settings: Settings,
) -> Result<(Journal<SimIo>, Vec<(u32, Vec<u8>)>), OpenError> {
    let mut replayed = Vec::new();
    let mut keep = |found: Replayed<'_>| {
        replayed.push((found.entry.partition.index, found.body.to_vec()));
    };
    let journal = Journal::open(io, Arena::new(ARENA_BYTES), settings, &mut keep).await?;
    Ok((journal, replayed))
}

/// One life of a core: opens, checks what came back, and appends until it is ended.
async fn live(io: SimIo, settings: Settings, model: Shared) {
    let (journal, replayed) = match open(io.clone(), settings).await {
        Ok(opened) => opened,
        Err(OpenError::Io { .. }) => {
            model.borrow_mut().seen.failed_opens += 1;
            return;
        }
        Err(error) => panic!("{error}"),
    };
    model.borrow_mut().check(&replayed);
    for _ in 0..APPENDERS {
        io.spawn("appender", append(io.clone(), journal.clone(), model.clone()));
    }
}

async fn append(io: SimIo, journal: Journal<SimIo>, model: Shared) {
    loop {
        let number = model.borrow().next;
        match journal.room(body(number).len() * 2).await {
            Ok(()) => {}
            Err(Refusal::Poisoned(_)) => {
                let mut model = model.borrow_mut();
                model.seen.poisoned += usize::from(!model.poisoned);
                model.poisoned = true;
                return;
            }
            Err(_) => {
                model.borrow_mut().seen.refused += 1;
                release(&journal, &model, io.random());
                io.sleep(Duration::from_millis(1)).await;
                continue;
            }
        }
        // Another appender may have taken the number meanwhile: this one's is known only here.
        let number = model.borrow().next;
        let body = body(number);
        let Ok(appended) = journal.append(entry(number), &body, |_| {}) else { continue };
        let count = model.borrow_mut().accept(appended.location.address);
        if io.random().is_multiple_of(4) {
            continue;
        }
        if journal.wait_durable(appended.position).await.is_ok() {
            let mut model = model.borrow_mut();
            model.acknowledged = model.acknowledged.max(count);
        }
        if io.random().is_multiple_of(16) {
            release(&journal, &model, io.random());
        }
        if io.random().is_multiple_of(8) {
            read_back(&journal, &model, io.random()).await;
        }
    }
}

/// Releases up to one of the acknowledged entries.
fn release(journal: &Journal<SimIo>, model: &Shared, random: u64) {
    let mut model = model.borrow_mut();
    let most = model.acknowledged.saturating_sub(1);
    if most > model.released {
        let part = usize::try_from(random).unwrap_or(usize::MAX) % (most - model.released + 1);
        model.released += part;
        journal.release(model.accepted[model.released].1);
    }
}

/// An acknowledged entry that is not released can be read.
async fn read_back(journal: &Journal<SimIo>, model: &Shared, random: u64) {
    let (number, address) = {
        let model = model.borrow();
        let held = model.acknowledged.saturating_sub(model.released);
        if held == 0 {
            return;
        }
        let chosen = usize::try_from(random).unwrap_or(usize::MAX) % held;
        model.accepted[model.released + chosen]
    };
    let body = body(number);
    let length = u32::try_from(body.len()).expect("small");
    let read = journal.read(Location { address, length }, usize::MAX).await;
    let is_held = model.borrow().accepted[model.borrow().released..]
        .first()
        .is_some_and(|(_, oldest)| *oldest <= address);
    if let (Ok(read), true) = (read, is_held) {
        assert!(read[..] == body[..], "entry {number} reads as something else");
    }
}

/// What goes wrong in a life besides its end.
fn trouble(world: &World, node: &Node) {
    let disk = node.disk();
    disk.set_space(None);
    let after = u32::try_from(world.below(60)).expect("small");
    match world.below(9) {
        0 => disk.fail(Fault::Write, after),
        1 => disk.fail(Fault::Allocate, after / 8),
        2 => disk.fail(Fault::Read, after / 8),
        3 => disk.fail(Fault::Sync, after / 8),
        4 | 5 => disk.set_space(Some(disk.used() + world.below(300 << 10))),
        _ => {}
    }
}

fn run(seed: u64) -> (Seen, u64) {
    let flush = match seed % 3 {
        0 => Flush::Within(Duration::from_millis(3)),
        _ => Flush::EveryGroup,
    };
    let world = World::new(seed);
    let node = world.node();
    let model = Shared::default();
    for _ in 0..LIVES {
        trouble(&world, &node);
        let io = node.core(0);
        io.spawn("core", live(io.clone(), small(flush), model.clone()));
        let turns = 1 << world.below(13);
        world.run_turns(turns + world.below(turns)).unwrap_or_else(|stuck| panic!("{stuck}"));
        let how = if world.below(3) == 0 { Crash::Kill } else { Crash::Power };
        node.crash(how);
        if flush != Flush::EveryGroup && how == Crash::Power {
            model.borrow_mut().lose_unflushed();
        }
        node.restart();
    }
    node.disk().set_space(None);
    let (journal, replayed) = world
        .block_on(open(node.core(0), small(flush)))
        .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    model.borrow_mut().check(&replayed);
    world.block_on(journal.close());
    miss_a_file(&world, &node, &model.borrow(), small(flush));
    let seen = model.borrow().seen;
    (seen, world.fingerprint())
}

/// Removes a file that holds something needed: the journal does not open as if nothing were.
fn miss_a_file(world: &World, node: &Node, model: &Model, settings: Settings) {
    let needed = &model.accepted[model.released..];
    if needed.is_empty() {
        return;
    }
    let chosen = usize::try_from(world.below(needed.len() as u64)).expect("few");
    let number = needed[chosen].1 / settings.file_bytes;
    let path = files::path(&settings.directory, number);
    node.disk().remove(&path);
    match world.block_on(open(node.core(0), settings)) {
        Err(OpenError::Missing { file }) => assert_eq!(file, path),
        Err(error) => panic!("{} is missing, not: {error}", path.display()),
        Ok(_) => panic!("{} is missing, and nobody says so", path.display()),
    }
}

#[test]
fn whatever_happens_a_prefix_with_everything_acknowledged_comes_back() {
    let mut all = Seen::default();
    for seed in 0..SEEDS {
        let (seen, _) = run(seed);
        all.replayed += seen.replayed;
        all.dropped += seen.dropped;
        all.reused += seen.reused;
        all.refused += seen.refused;
        all.poisoned += seen.poisoned;
        all.failed_opens += seen.failed_opens;
    }
    let counts =
        [all.replayed, all.dropped, all.reused, all.refused, all.poisoned, all.failed_opens];
    assert!(counts.iter().all(|count| *count > 10), "the runs met too little: {all:?}");
}

#[test]
fn what_was_acknowledged_before_a_failed_write_is_flushed_all_the_same() {
    let world = World::new(0);
    let node = world.node();
    let settings = small(Flush::Within(Duration::from_secs(60)));
    let (journal, _) = world.block_on(open(node.core(0), settings.clone())).expect("empty");
    world.block_on(async {
        let appended = journal.append(entry(1), &body(1), |_| {}).expect("accepted");
        journal.wait_durable(appended.position).await.expect("written");
        node.disk().fail(Fault::Write, 0);
        let appended = journal.append(entry(2), &body(2), |_| {}).expect("accepted");
        journal.wait_durable(appended.position).await.expect_err("poisoned");
        journal.close().await;
    });
    node.crash(Crash::Power);
    node.restart();
    let (_, replayed) = world.block_on(open(node.core(0), settings)).expect("undamaged");
    assert!(replayed.contains(&(1, body(1))), "the power took what was acknowledged");
}

#[test]
fn what_recovery_accepts_is_durable_even_after_a_flush_that_failed() {
    let world = World::new(0);
    let node = world.node();
    let settings = small(Flush::Within(Duration::from_secs(60)));
    let (journal, _) = world.block_on(open(node.core(0), settings.clone())).expect("empty");
    world.block_on(async {
        let appended = journal.append(entry(1), &body(1), |_| {}).expect("accepted");
        journal.wait_durable(appended.position).await.expect("written");
        node.disk().fail(Fault::Sync, 0);
        journal.close().await;
        assert!(journal.poisoned().is_some(), "the flush failed");
    });
    for how in [Crash::Kill, Crash::Power] {
        node.crash(how);
        node.restart();
        let (_, replayed) = world.block_on(open(node.core(0), settings.clone())).expect("whole");
        assert_eq!(replayed, [(1, body(1))], "{how:?}");
    }
}

/// In mode `replicated`, the checkpoint for which a file is released may be in the device's cache.
#[test]
fn a_file_is_used_again_only_once_what_stands_in_its_place_is_flushed() {
    let world = World::new(0);
    let node = world.node();
    let settings = small(Flush::Within(Duration::from_secs(60)));
    let (journal, _) = world.block_on(open(node.core(0), settings.clone())).expect("empty");
    world.block_on(async {
        let append = async || {
            journal.room(body(1).len()).await.expect("room");
            let appended = journal.append(entry(1), &body(1), |_| {}).expect("accepted");
            journal.wait_durable(appended.position).await.expect("written");
            appended.position
        };
        let mut last = append().await;
        while journal.file_number() < 1 {
            last = append().await;
        }
        journal.wait_flushed(last).await.expect("flushed");
        let (used, _) = journal.fill();
        let last = append().await;
        journal.release(settings.file_bytes);
        assert_eq!(journal.fill().0, used, "a power loss would take what stands in its place");
        journal.wait_flushed(last).await.expect("flushed");
        assert_eq!(journal.fill().0, used - 1);
        journal.close().await;
    });
}

#[test]
fn the_journal_takes_the_same_course_for_the_same_seed() {
    for seed in 0..10 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}
