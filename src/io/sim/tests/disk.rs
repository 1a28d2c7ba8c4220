//! What the disk keeps, loses, tears and refuses.

use std::collections::BTreeSet;
use std::future::Future;
use std::io::ErrorKind;
use std::path::Path;

use bytes::Bytes;

use crate::base::buffer::Arena;
use crate::io::sim::{Crash, Fault, Node, SimFile, SimIo, World};
use crate::io::{BLOCK_BYTES, Durability, File, Io, OpenHow};

const PATH: &str = "/data/file";
const BLOCK: u64 = BLOCK_BYTES as u64;

/// Aligned bytes, all of one value.
fn filled(blocks: usize, value: u8) -> Bytes {
    let mut buffer = Arena::new(1 << 20).take(blocks * BLOCK_BYTES).expect("memory");
    buffer.fill(value);
    buffer.freeze()
}

async fn create(io: &SimIo) -> SimFile {
    io.create_directory(Path::new("/data")).expect("a directory");
    io.open(Path::new(PATH), OpenHow::CreateNew).await.expect("created")
}

/// A node with an empty file in a world of its own.
fn with_file(seed: u64) -> (World, Node, SimFile) {
    let world = World::new(seed);
    let node = world.node();
    let file = world.block_on(create(&node.core(0)));
    (world, node, file)
}

/// Starts an operation and leaves it under way.
fn start(world: &World, operation: impl Future + 'static) {
    world.spawn("operation", async move {
        operation.await;
    });
    world.run_turns(1).expect("it starts");
}

fn content(node: &Node) -> Vec<u8> {
    node.disk().read(Path::new(PATH)).expect("there")
}

/// What a crash made of a write of ones over zeros.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Lost,
    Kept,
    Torn,
}

fn outcome(node: &Node) -> Outcome {
    let content = content(node);
    for sector in content.chunks(512) {
        assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector was torn");
    }
    match content.iter().filter(|byte| **byte == 1).count() {
        0 => Outcome::Lost,
        ones if ones == content.len() => Outcome::Kept,
        _ => Outcome::Torn,
    }
}

/// The outcomes that `prepare` has over many seeds, the node crashing after it.
fn outcomes(how: Crash, prepare: impl Fn(&World, SimFile)) -> BTreeSet<Outcome> {
    let run = |seed| {
        let (world, node, file) = with_file(seed);
        world.block_on(file.allocate(4 * BLOCK)).expect("allocated");
        prepare(&world, file);
        node.crash(how);
        outcome(&node)
    };
    (0..100).map(run).collect()
}

fn all() -> BTreeSet<Outcome> {
    [Outcome::Lost, Outcome::Kept, Outcome::Torn].into()
}

#[test]
fn what_is_not_synced_is_lost_or_kept_or_torn_at_a_power_loss() {
    let write = |world: &World, file: SimFile| {
        world.block_on(file.write_at(0, filled(4, 1), Durability::Written)).expect("written");
    };
    assert_eq!(outcomes(Crash::Power, write), all());
    assert_eq!(outcomes(Crash::Kill, write), [Outcome::Kept].into(), "the kernel has it");
}

#[test]
fn what_is_synced_or_flushed_is_never_lost() {
    let sync = |world: &World, file: SimFile| {
        world.block_on(file.write_at(0, filled(4, 1), Durability::Written)).expect("written");
        world.block_on(file.sync()).expect("synced");
    };
    assert_eq!(outcomes(Crash::Power, sync), [Outcome::Kept].into());
    let flush = |world: &World, file: SimFile| {
        world.block_on(file.write_at(0, filled(4, 1), Durability::Flushed)).expect("written");
    };
    assert_eq!(outcomes(Crash::Power, flush), [Outcome::Kept].into());
}

#[test]
fn a_write_under_way_is_lost_or_kept_or_torn_at_any_crash() {
    for how in [Crash::Power, Crash::Kill] {
        for durability in [Durability::Written, Durability::Flushed] {
            let write = |world: &World, file: SimFile| {
                start(world, async move { file.write_at(0, filled(4, 1), durability).await });
            };
            assert_eq!(outcomes(how, write), all(), "{how:?} {durability:?}");
        }
    }
}

#[test]
fn a_sync_covers_only_what_was_written_before_it_began() {
    let write = |world: &World, file: SimFile| {
        let file = std::rc::Rc::new(file);
        let syncing = file.clone();
        let mut sync = Box::pin(async move { syncing.sync().await });
        world.block_on(async {
            assert!(futures_util::poll!(&mut sync).is_pending());
            file.write_at(0, filled(4, 1), Durability::Written).await.expect("written");
            sync.await.expect("synced");
        });
    };
    assert_eq!(outcomes(Crash::Power, write), all());
}

#[test]
fn what_a_failed_sync_did_not_cover_is_not_covered_by_the_next() {
    let outcomes = (0..100).map(|seed| {
        let (world, node, file) = with_file(seed);
        world.block_on(file.allocate(4 * BLOCK)).expect("allocated");
        world.block_on(file.write_at(0, filled(4, 1), Durability::Written)).expect("written");
        node.disk().fail(Fault::Sync, 0);
        assert!(world.block_on(file.sync()).is_err());
        world.block_on(file.sync()).expect("this one goes well");
        assert_eq!(outcome(&node), Outcome::Kept, "reads give what was written");
        node.crash(Crash::Power);
        outcome(&node)
    });
    assert_eq!(outcomes.collect::<BTreeSet<_>>(), all());
}

#[test]
fn an_older_write_never_replaces_a_durable_one() {
    for seed in 0..100 {
        let (world, node, file) = with_file(seed);
        world.block_on(file.write_at(0, filled(2, 7), Durability::Written)).expect("written");
        world.block_on(file.write_at(0, filled(2, 1), Durability::Flushed)).expect("written");
        node.crash(Crash::Power);
        assert_eq!(outcome(&node), Outcome::Kept, "seed {seed}");
    }
}

#[test]
fn of_two_writes_over_each_other_any_sectors_are_left() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let (world, node, file) = with_file(seed);
        world.block_on(file.allocate(BLOCK)).expect("allocated");
        for value in [1, 2] {
            let write = file.write_at(0, filled(1, value), Durability::Written);
            world.block_on(write).expect("written");
        }
        node.crash(Crash::Power);
        seen.insert(content(&node).iter().copied().collect::<BTreeSet<u8>>());
    }
    assert_eq!(seen.len(), 7, "each mixture of old, first and second: {seen:?}");
}

#[test]
fn a_dropped_write_goes_on_and_gives_its_memory_back() {
    let (world, node, file) = with_file(3);
    let io = node.core(0);
    world.block_on(async {
        let mut write = Box::pin(file.write_at(0, filled(1, 1), Durability::Flushed));
        assert!(futures_util::poll!(&mut write).is_pending());
    });
    world.run_until_idle().expect("it ends");
    assert_eq!(content(&node), [1; BLOCK_BYTES]);
    world.block_on(async {
        let mut read = Box::pin(file.read_at(0, BLOCK_BYTES));
        assert!(futures_util::poll!(&mut read).is_pending());
    });
    assert_eq!(io.arena().taken(), BLOCK_BYTES, "the device may still write to it");
    world.run_until_idle().expect("it ends");
    assert_eq!((io.arena().taken(), node.disk().underway()), (0, 0));
    let mut read = Box::pin(async move { file.read_at(0, BLOCK_BYTES).await.map(drop) });
    world.block_on(async { assert!(futures_util::poll!(&mut read).is_pending()) });
    node.crash(Crash::Power);
    assert_eq!((io.arena().taken(), node.disk().underway()), (0, 0), "a crash gives it back too");
}

#[test]
fn names_under_way_at_a_crash_are_old_or_new_and_those_done_are_new() {
    let moved = Path::new("/data/moved");
    let mut seen = BTreeSet::new();
    for seed in 0..50 {
        let (world, node, _) = with_file(seed);
        let io = node.core(0);
        start(&world, async move { io.rename(Path::new(PATH), moved).await });
        node.crash(Crash::Power);
        let files = node.disk().files();
        assert_eq!(files.len(), 1);
        seen.insert(files);
        node.restart();
        let io = node.core(0);
        let done = node.disk().files().remove(0);
        world.block_on(io.remove(&done)).expect("removed");
        node.crash(Crash::Power);
        assert!(node.disk().files().is_empty());
    }
    assert_eq!(seen.len(), 2);
}

#[test]
fn names_that_are_not_synced_are_old_or_new_after_a_power_loss_and_new_after_a_kill() {
    let path = Path::new("/data/second");
    let after = |how: Crash, is_synced: bool| -> BTreeSet<(bool, bool)> {
        let seeds = 0..32;
        let left = seeds.map(|seed| {
            let (world, node, _file) = with_file(seed);
            let io = node.core(0);
            world.block_on(async {
                io.open(path, OpenHow::CreateUnsynced).await.expect("created");
                io.remove_unsynced(Path::new(PATH)).await.expect("there");
                if is_synced {
                    io.sync_directory(Path::new("/data")).await.expect("a directory");
                }
            });
            node.crash(how);
            let is_there = |path| node.disk().read(path).is_some();
            (is_there(Path::new(PATH)), is_there(path))
        });
        left.collect()
    };
    let each = [(false, false), (false, true), (true, false), (true, true)];
    assert_eq!(after(Crash::Power, false), each.into());
    assert_eq!(after(Crash::Power, true), [(false, true)].into());
    assert_eq!(after(Crash::Kill, false), [(false, true)].into());
}

#[test]
fn names_answer_as_a_file_system_does() {
    let (world, node, file) = with_file(1);
    let io = node.core(0);
    world.block_on(async {
        let kind = |outcome: std::io::Result<SimFile>| outcome.err().map(|error| error.kind());
        let path = Path::new(PATH);
        let again = io.open(path, OpenHow::CreateNew).await;
        assert_eq!(kind(again), Some(ErrorKind::AlreadyExists));
        for missing in ["/data/none", "/nowhere/none"] {
            for how in [OpenHow::Existing, OpenHow::CreateNew] {
                if missing.starts_with("/data") && how == OpenHow::CreateNew {
                    continue;
                }
                let outcome = io.open(Path::new(missing), how).await;
                assert_eq!(kind(outcome), Some(ErrorKind::NotFound), "{missing} {how:?}");
            }
        }
        io.create_directory(Path::new("/data/sub")).expect("created");
        io.open(Path::new("/data/a"), OpenHow::CreateNew).await.expect("created");
        assert_eq!(io.list(Path::new("/data")).expect("there"), ["a", "file", "sub"]);
        assert!(io.list(Path::new("/none")).is_err());
        let elsewhere = io.rename(path, Path::new("/data/sub/file")).await;
        assert_eq!(elsewhere.map_err(|error| error.kind()), Err(ErrorKind::InvalidInput));
        let second = Path::new("/data/sub/second");
        let used = node.disk().used();
        io.link(path, second).await.expect("a second name");
        assert_eq!(node.disk().used(), used, "it takes no space");
        let twice = io.link(path, second).await.map_err(|error| error.kind());
        assert_eq!(twice, Err(ErrorKind::AlreadyExists));
        io.create_directory(Path::new("/other")).expect("created");
        let far = io.link(path, Path::new("/other/file")).await.map_err(|error| error.kind());
        assert_eq!(far, Err(ErrorKind::CrossesDevices));
        io.remove(path).await.expect("removed");
        assert!(io.remove(path).await.is_err());
        io.open(second, OpenHow::Existing).await.expect("it has that name still");
        file.write_at(0, filled(1, 5), Durability::Flushed).await.expect("an open file lives on");
    });
}

#[test]
fn what_is_not_aligned_is_refused() {
    let (world, _node, file) = with_file(1);
    world.block_on(async {
        let invalid = Err(ErrorKind::InvalidInput);
        let kind = |outcome: std::io::Result<()>| outcome.map_err(|error| error.kind());
        let whole = filled(2, 1);
        for (offset, data) in [
            (512, whole.slice(..BLOCK_BYTES)),
            (0, whole.slice(..512)),
            (0, whole.slice(512..512 + BLOCK_BYTES)),
        ] {
            assert_eq!(kind(file.write_at(offset, data, Durability::Written).await), invalid);
        }
        assert_eq!(kind(file.read_at(512, BLOCK_BYTES).await.map(drop)), invalid);
        assert_eq!(kind(file.read_at(0, 512).await.map(drop)), invalid);
        let beyond = file.read_at(0, BLOCK_BYTES).await.map(drop);
        assert_eq!(kind(beyond), Err(ErrorKind::UnexpectedEof));
    });
}

#[test]
fn a_full_disk_refuses_what_grows_and_takes_what_does_not() {
    let (world, node, file) = with_file(1);
    node.disk().set_space(Some(3 * BLOCK + 100));
    world.block_on(async {
        let full = Err(ErrorKind::StorageFull);
        let kind = |outcome: std::io::Result<()>| outcome.map_err(|error| error.kind());
        file.allocate(2 * BLOCK).await.expect("room");
        assert_eq!(kind(file.allocate(5 * BLOCK).await), full);
        assert_eq!(file.len(), 3 * BLOCK, "it took what there was");
        let write = file.write_at(3 * BLOCK, filled(1, 1), Durability::Written).await;
        assert_eq!(kind(write), full);
        file.write_at(0, filled(3, 1), Durability::Flushed).await.expect("it is there");
        node.disk().set_space(None);
        file.allocate(5 * BLOCK).await.expect("room again");
    });
    assert_eq!(node.disk().used(), 5 * BLOCK);
}

#[test]
fn an_allocation_is_durable_when_done_and_partial_when_not() {
    let mut lengths = BTreeSet::new();
    for seed in 0..100 {
        let (world, node, file) = with_file(seed);
        world.block_on(file.allocate(BLOCK)).expect("allocated");
        start(&world, async move { file.allocate(4 * BLOCK).await });
        node.crash(Crash::Power);
        let content = content(&node);
        assert!(content.iter().all(|byte| *byte == 0));
        lengths.insert(content.len() as u64 / BLOCK);
    }
    assert_eq!(lengths, (1..=4).collect());
}

#[test]
fn each_kind_of_operation_fails_when_told_and_once() {
    let (world, node, file) = with_file(1);
    let io = node.core(0);
    world.block_on(async {
        file.allocate(BLOCK).await.expect("allocated");
        let disk = node.disk();
        let eio = |outcome: std::io::Result<()>| {
            outcome.is_err_and(|error| error.raw_os_error() == Some(libc::EIO))
        };
        for kind in [Fault::Read, Fault::Write, Fault::Sync, Fault::Allocate, Fault::Name] {
            disk.fail(kind, 1);
            for fails in [false, true, false] {
                let outcome = match kind {
                    Fault::Read => file.read_at(0, BLOCK_BYTES).await.map(drop),
                    Fault::Write => file.write_at(0, filled(1, 1), Durability::Flushed).await,
                    Fault::Sync => file.sync().await,
                    Fault::Allocate => file.allocate(BLOCK).await,
                    Fault::Name => io.open(Path::new(PATH), OpenHow::Existing).await.map(drop),
                };
                assert_eq!(outcome.is_ok(), !fails, "{kind:?}");
                assert_eq!(eio(outcome), fails, "{kind:?}");
            }
        }
    });
}

#[test]
fn a_failed_write_leaves_anything_between_nothing_and_all() {
    let outcomes = (0..100).map(|seed| {
        let (world, node, file) = with_file(seed);
        world.block_on(file.allocate(4 * BLOCK)).expect("allocated");
        node.disk().fail(Fault::Write, 0);
        let write = file.write_at(0, filled(4, 1), Durability::Flushed);
        assert!(world.block_on(write).is_err());
        outcome(&node)
    });
    assert_eq!(outcomes.collect::<BTreeSet<_>>(), all());
}

#[test]
fn damage_by_hand_is_there_at_once_and_stays() {
    let (world, node, file) = with_file(1);
    let path = Path::new(PATH);
    world.block_on(file.write_at(0, filled(3, 1), Durability::Flushed)).expect("written");
    let disk = node.disk();
    disk.flip_bit(path, 5000, 3);
    disk.set_byte(path, 5001, 0xee);
    disk.truncate(path, 2 * BLOCK);
    let read = world.block_on(file.read_at(BLOCK, BLOCK_BYTES)).expect("readable");
    let within = 5000 - BLOCK_BYTES;
    assert_eq!(read[within - 1..within + 3], [1, 1 ^ 8, 0xee, 1]);
    node.crash(Crash::Power);
    assert_eq!(content(&node)[4999..5003], [1, 1 ^ 8, 0xee, 1]);
    assert_eq!(content(&node).len() as u64, 2 * BLOCK);
    assert!(!disk.has_unsynced(path));
    disk.remove(path);
    assert!(disk.read(path).is_none() && disk.files().is_empty());
}
