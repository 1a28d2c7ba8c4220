//! One core of two, in the simulator: what is another's is left alone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::base::few::Few;
use crate::base::ids::Offset;
use crate::config::BrokerConfig;
use crate::group::{Answer, Commit, CommitPartition, Request};
use crate::io::sim::{SimIo, World};
use crate::journal::{self, Flush};
use crate::metadata::{Command, OFFSETS_TOPIC};
use crate::wire::error::ErrorCode;
use crate::wire::records::{self, BatchBuilder, Codec, NewRecord};

const ARENA_BYTES: usize = 32 << 20;

fn journal_settings() -> journal::Settings {
    journal::Settings {
        directory: PathBuf::from("/data/core-0"),
        file_bytes: 1 << 20,
        bytes_max: 8 << 20,
        kept_bytes: 1 << 20,
        group_bytes_max: 32 << 10,
        pending_bytes_max: 256 << 10,
        tail_bytes_max: 64 << 10,
        flush: Flush::EveryGroup,
    }
}

/// Core 0 of a node of two, with nothing on its disk.
async fn first_of_two(io: SimIo) -> Rc<Owner<SimIo>> {
    first_of_two_across(io, &["/data"]).await
}

async fn first_of_two_across(io: SimIo, directories: &[&str]) -> Rc<Owner<SimIo>> {
    first_of_two_with(io, directories, journal_settings()).await
}

async fn first_of_two_with(
    io: SimIo,
    directories: &[&str],
    settings: journal::Settings,
) -> Rc<Owner<SimIo>> {
    for directory in directories {
        io.create_directory(Path::new(directory)).expect("a new disk");
    }
    let directories = Directories::new(directories.iter().map(PathBuf::from), 2);
    let shared = Arc::new(Shared::new(Arc::new(BrokerConfig::default()), 2, directories));
    let arena = Arena::new(ARENA_BYTES);
    let recovered = recover(io.clone(), arena.clone(), settings).await;
    let recovered = recovered.unwrap_or_else(|error| panic!("an empty disk: {error}"));
    Owner::start(io, arena, shared, recovered)
}

fn image_with(topic: &str, number: u32, partitions: u32) -> Image {
    let mut image = Image::default();
    let (name, id, configs) = (topic.to_string(), [1; 16], Vec::new());
    image.apply(&Command::TopicCreated { name, id, number, partitions, configs });
    image
}

/// Appends a record and gives the error and the offset.
async fn append(owner: &Rc<Owner<SimIo>>, partition: PartitionId) -> (ErrorCode, Offset) {
    append_of(owner, partition, b"value").await
}

async fn append_of(
    owner: &Rc<Owner<SimIo>>,
    partition: PartitionId,
    value: &[u8],
) -> (ErrorCode, Offset) {
    let mut batch = BatchBuilder::new();
    batch.push(&NewRecord { value: Some(value), ..NewRecord::default() });
    let records: Bytes = batch.build(Codec::None).expect("small");
    let (reply, answers) = owner.produce_replies().pair();
    let parts = Few::from_iter([ProducePart { partition, records }]);
    owner.produce(parts, Acks::Committed, reply).await;
    let answers = answers.await.expect("an answer");
    answers.first().map(|answer| (answer.error, answer.base_offset)).expect("of one part")
}

/// Only a debug build refused it once, by its end.
#[test]
fn a_core_appends_only_to_what_it_owns() {
    let world = World::new(1);
    let io = world.node().core(0);
    world.block_on(async {
        let owner = first_of_two(io).await;
        owner.shared().publish(image_with("topic", 7, 4));
        for index in 0..4 {
            let id = PartitionId { topic: TopicNumber(7), index };
            let is_own = owner.shared().owner_of(id) == owner.core();
            let expected = if is_own {
                (ErrorCode::NONE, 0)
            } else {
                (ErrorCode::UNKNOWN_TOPIC_OR_PARTITION, -1)
            };
            assert_eq!(append(&owner, id).await, expected, "partition {index}");
            assert_eq!(owner.log(id).is_some(), is_own);
        }
    });
}

/// P1 of `io::pace`: whoever is behind catches up, also where much is written.
#[test]
fn whoever_reads_a_backlog_beside_writes_gets_twice_what_is_written() {
    static OLD: [u8; 62_000] = [b'v'; 62_000];
    static LIVE: [u8; 16_000] = [b'v'; 16_000];
    const EVERY: Duration = Duration::from_millis(1);
    let world = World::new(1);
    let io = world.node().core(0);
    world.block_on(async {
        let owner = first_of_two(io.clone()).await;
        owner.shared().publish(image_with("topic", 7, 8));
        let ids = (0..8).map(|index| PartitionId { topic: TopicNumber(7), index });
        let own: Vec<_> = ids.filter(|id| owner.shared().owner_of(*id) == owner.core()).collect();
        let (old, live) = (own[0], own[1]);
        for _ in 0..900 {
            assert_eq!(append_of(&owner, old, &OLD).await.0, ErrorCode::NONE);
        }
        let began = io.now();
        // Until the pace knows how much is written.
        let measured = began + Duration::from_millis(200);
        let end = measured + Duration::from_millis(300);
        // So many that a write is always under way.
        let writers = [0; 4].map(|_| async {
            let (mut bytes, mut due) = (0, began);
            while io.now() < end {
                assert_eq!(append_of(&owner, live, &LIVE).await.0, ErrorCode::NONE);
                let counted = if io.now() < measured { 0 } else { LIVE.len() };
                (bytes, due) = (bytes + counted, due + EVERY);
                io.sleep_until(due).await;
            }
            bytes
        });
        let given = async {
            let (mut bytes, mut offset) = (0, 0);
            io.sleep_until(measured).await;
            while io.now() < end && offset < 900 {
                let (bytes_max, leader_epoch) = (1 << 20, -1);
                let part = FetchPart { partition: old, offset, bytes_max, leader_epoch };
                let answer = owner.read(&part, bytes_max, true).await;
                assert_eq!((answer.error, answer.gives_way), (ErrorCode::NONE, true));
                let before = offset;
                for (header, batch) in answer.records.iter().flat_map(|all| records::batches(all)) {
                    assert_eq!(header.base_offset, offset);
                    (offset, bytes) = (header.next_offset(), bytes + batch.len());
                }
                assert!(offset > before, "it gets on");
            }
            (bytes, offset)
        };
        let written = futures_util::future::join_all(writers);
        let (written, (given, offset)) = futures_util::future::join(written, given).await;
        let written: usize = written.iter().sum();
        assert!(offset < 900, "there was enough to read");
        assert!(given as f64 > 1.8 * written as f64, "{given} bytes beside {written}");
        let gives_way = async |partition| {
            let part = FetchPart { partition, offset: 0, bytes_max: 1000, leader_epoch: -1 };
            owner.read(&part, 1000, true).await.gives_way
        };
        assert_eq!(append_of(&owner, own[2], &LIVE).await.0, ErrorCode::NONE);
        assert!(!gives_way(own[2]).await, "it is in memory");
        io.sleep(Duration::from_secs(1)).await;
        assert!(!gives_way(old).await, "nobody writes");
    });
}

/// X4 of `offline`: a drain's write hung, appenders waited for the drain, and nobody noticed, since
/// the journal had nothing to write meanwhile.
#[test]
fn a_disk_that_hangs_while_appenders_wait_for_a_drain_is_taken_out_of_use() {
    static VALUE: [u8; 16_000] = [b'v'; 16_000];
    const PATIENCE: Duration = Duration::from_secs(60);
    /// So slow that nothing is drained early.
    const EVERY: Duration = Duration::from_millis(200);
    let world = World::new(1);
    let node = world.node();
    let io = node.core(0);
    let owner = world.block_on(first_of_two_across(io.clone(), &["/data", "/more"]));
    owner.shared().publish(image_with("topic", 4, 1));
    let partition = PartitionId { topic: TopicNumber(4), index: 0 };
    assert_eq!(owner.shared().owner_of(partition), owner.core());
    // As a drain does whose write hangs.
    let _held = owner.journal().hold(0);
    let answer = Rc::new(Cell::new(ErrorCode::NONE));
    let (writer, told) = (owner.clone(), answer.clone());
    io.clone().spawn("writer", async move {
        while told.get() == ErrorCode::NONE {
            io.sleep(EVERY).await;
            told.set(append_of(&writer, partition, &VALUE).await.0);
        }
    });
    let until = |what: &dyn Fn() -> bool, why: &str| {
        let ran = world.run_until(world.now() + PATIENCE, what);
        ran.unwrap_or_else(|stuck| panic!("{why}: {stuck}"));
    };
    until(&|| owner.journal().has_appenders_waiting(), "nobody waits for the drain");
    assert_eq!(owner.journal().waits_since(), None, "the journal has nothing to write");
    node.disk().set_hung(Path::new("/data"), true);
    until(&|| answer.get() != ErrorCode::NONE, "nobody tells the writer that the disk hangs");
    assert_eq!(answer.get(), ErrorCode::KAFKA_STORAGE_ERROR);
    assert!(owner.is_offline());
}

/// Y1 of `shortage`: what was drained found no memory between the groups of the tail.
#[test]
fn a_drain_finds_memory_as_long_as_recent_records_hold_some() {
    let world = World::new(1);
    let io = world.node().core(0);
    world.block_on(async {
        let settings = journal::Settings { tail_bytes_max: 4 << 20, ..journal_settings() };
        let owner = first_of_two_with(io.clone(), &["/data"], settings).await;
        owner.shared().publish(image_with("topic", 4, 1));
        let partition = PartitionId { topic: TopicNumber(4), index: 0 };
        let mut others = Vec::new();
        for count in 0..1000 {
            let (error, offset) = append_of(&owner, partition, &[b'v'; 16_000]).await;
            assert_eq!((error, offset), (ErrorCode::NONE, count), "more than the journal holds");
            if count == 150 {
                // Somebody else has all of it but what the tail holds.
                others.extend(std::iter::from_fn(|| owner.arena.take(4096)));
            }
        }
    });
}

/// Y2 of `shortage`: it was answered empty at once, and came back at once.
#[test]
fn a_reader_for_whom_there_is_no_memory_waits_and_gets_it_later() {
    let world = World::new(1);
    let io = world.node().core(0);
    world.block_on(async {
        let owner = first_of_two(io.clone()).await;
        owner.shared().publish(image_with("topic", 4, 1));
        let partition = PartitionId { topic: TopicNumber(4), index: 0 };
        for _ in 0..50 {
            assert_eq!(append_of(&owner, partition, &[b'v'; 16_000]).await.0, ErrorCode::NONE);
        }
        let fetch = async || {
            let part = FetchPart { partition, offset: 0, bytes_max: 16_000, leader_epoch: -1 };
            let answers = owner.answer_all(&[part, part], 1 << 20).await;
            assert!(answers.iter().all(|answer| answer.error == ErrorCode::NONE));
            answers.iter().map(FetchedPart::bytes).sum::<usize>()
        };
        let others: Vec<_> = std::iter::from_fn(|| io.arena().take(4096)).collect();
        let began = io.now();
        assert_eq!(fetch().await, 0, "there is none");
        let once = Duration::from_millis(20)..Duration::from_millis(40);
        assert!(once.contains(&(io.now() - began)), "for both parts");
        drop(others);
        assert!(fetch().await > 16_000);
    });
}

fn commit() -> Request {
    let metadata = String::new();
    let partition = CommitPartition { partition: 0, offset: 5, leader_epoch: -1, metadata };
    Request::Commit(Commit {
        generation: -1,
        member_id: String::new(),
        instance_id: None,
        retention_ms: -1,
        offsets: vec![("topic".to_string(), vec![partition])],
    })
}

async fn commit_in(owner: &Rc<Owner<SimIo>>, group: &str) -> ErrorCode {
    match owner.group_request(group.to_string(), commit()).await {
        Answer::Commit(topics) => topics[0].1[0].1,
        other => panic!("a commit is answered, not {other:?}"),
    }
}

/// A core once wrote for its old groups into whatever was the next topic of the name.
#[test]
fn a_core_keeps_the_groups_of_the_topic_that_is_there_and_of_its_own_partitions() {
    let world = World::new(1);
    let io = world.node().core(0);
    world.block_on(async {
        let owner = first_of_two(io).await;
        let groups = |owner: &Owner<SimIo>| owner.with_groups(|groups| groups.list().count());
        owner.start_coordinator().await.expect("nothing to load");
        // One partition: of the even numbers it is this core's, of the odd ones the other's.
        owner.shared().publish(image_with(OFFSETS_TOPIC, 4, 1));
        assert_eq!(commit_in(&owner, "g").await, ErrorCode::NONE);
        assert_eq!(groups(&owner), 1);
        owner.shared().publish(Image::default());
        assert_eq!(groups(&owner), 0);
        assert_eq!(commit_in(&owner, "g").await, ErrorCode::NOT_COORDINATOR);
        owner.shared().publish(image_with(OFFSETS_TOPIC, 5, 1));
        assert_eq!(commit_in(&owner, "g").await, ErrorCode::NOT_COORDINATOR);
        assert_eq!(groups(&owner), 0);
        owner.shared().publish(image_with(OFFSETS_TOPIC, 6, 1));
        assert_eq!(commit_in(&owner, "g").await, ErrorCode::NONE);
        assert_eq!(groups(&owner), 1);
    });
}
