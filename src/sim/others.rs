//! What must be true while a data directory is dead: its partitions are said to be offline, and all
//! others take records and give them back.
//!
//! Invariants, for a node that keeps its promise
//!   D1  Of a topic, just the partitions that cores of the dead directory own are refused, with
//!       KAFKA_STORAGE_ERROR, and said to have no leader.
//!   D2  Every other partition takes a record within a bounded time, and gives it back.

use std::rc::Rc;
use std::time::Duration;

use super::client::{Client, Lost};
use super::consumer::Reader;
use super::history::Mark;
use super::producer::{VERSION, mark_to_value};
use super::{Stage, TOPIC};
use crate::io::Io;
use crate::io::sim::{SimIo, World};
use crate::node::Layout;
use crate::wire::api::{ApiKey, metadata, produce};
use crate::wire::error::ErrorCode;
use crate::wire::primitive::Uuid;
use crate::wire::records::{BatchBuilder, Codec, NewRecord};

const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(5);
/// The producer in the marks of what is written here; others have small numbers.
const PRODUCER: u32 = 1 << 20;

/// See the module's documentation.
pub fn check(world: &World, stage: &Rc<Stage>, layout: &Layout, dead: usize) {
    if !stage.is_made.get() {
        return;
    }
    let io = world.node().core(0);
    let look = look(io, stage.clone(), layout.clone(), dead);
    world
        .try_block_on(look, world.now() + PATIENCE)
        .unwrap_or_else(|stuck| panic!("the others do not go on without {dead}: {stuck}"));
    stage.history().met.others_checked += 1;
}

async fn look(io: SimIo, stage: Rc<Stage>, layout: Layout, dead: usize) {
    let mut client = stage.client(&io);
    let mut refused = Vec::new();
    for index in 0..stage.plan.partitions {
        refused.push(write(&io, &stage, &mut client, index).await.is_none());
    }
    let shards = usize::from(layout.shards);
    // The first partition of a topic may be on any core, the next ones are on those after it.
    let owned_from = |first: usize| {
        let owners = (0..refused.len()).map(move |index| (first + index) % shards);
        owners.map(|core| core % layout.places.len() == dead)
    };
    let fits = |first: usize| owned_from(first).eq(refused.iter().copied());
    assert!((0..shards).any(fits), "D1: {refused:?} of {layout:?} without {dead}");
    let leaderless = loop {
        match leaderless(&mut client).await {
            Ok(found) => break found,
            Err(Lost) => io.sleep(PAUSE).await,
        }
    };
    assert_eq!(leaderless, refused, "D1: Metadata says otherwise");
}

/// Writes a record to a partition and reads it again; `None` where it is offline.
async fn write(io: &SimIo, stage: &Stage, client: &mut Client, index: i32) -> Option<()> {
    let number = u32::try_from(stage.history().next_check()).expect("few");
    let mark = Mark { producer: PRODUCER, number };
    let mut builder = BatchBuilder::new();
    let value = mark_to_value(mark, 9);
    builder.push(&NewRecord {
        timestamp: io.wall().0,
        value: Some(&value),
        ..NewRecord::default()
    });
    let batch = builder.build(Codec::None).expect("nothing to compress");
    stage.history().sending(index, &[mark]);
    let offset = loop {
        match send(client, index, &batch).await {
            Ok((ErrorCode::NONE, offset)) => break offset,
            Ok((ErrorCode::KAFKA_STORAGE_ERROR, _)) => return None,
            Ok((code, _)) => panic!("partition {index} answers {code}"),
            Err(Lost) => io.sleep(PAUSE).await,
        }
    };
    stage.history().acknowledged(index, offset, &[mark]);
    let mut reader = Reader { io: io.clone(), client: stage.client(io) };
    loop {
        match reader.fetch_from(TOPIC, index, offset).await {
            Ok(Ok(found)) if !found.records.is_empty() => return Some(()),
            Ok(Ok(_)) | Err(Lost) => io.sleep(PAUSE).await,
            // Deleted meanwhile.
            Ok(Err(())) => return Some(()),
        }
    }
}

async fn send(client: &mut Client, index: i32, batch: &[u8]) -> Result<(ErrorCode, i64), Lost> {
    let data = produce::PartitionProduceData { index, records: Some(batch) };
    let topic =
        produce::TopicProduceData { name: TOPIC, partition_data: vec![data], ..Default::default() };
    let request = produce::Request {
        acks: -1,
        timeout_ms: 10_000,
        topic_data: vec![topic],
        ..Default::default()
    };
    let answer = client.call(ApiKey::Produce, VERSION, &request).await?;
    let answer: produce::Response<'_> = answer.decode();
    let answer = &answer.responses[0].partition_responses[0];
    Ok((ErrorCode(answer.error_code), answer.base_offset))
}

/// Of each partition in order, whether it is said to be offline.
async fn leaderless(client: &mut Client) -> Result<Vec<bool>, Lost> {
    let topic = metadata::MetadataRequestTopic { topic_id: Uuid::ZERO, name: Some(TOPIC) };
    let request = metadata::Request { topics: Some(vec![topic]), ..Default::default() };
    let answer = client.call(ApiKey::Metadata, 12, &request).await?;
    let answer: metadata::Response<'_> = answer.decode();
    let partitions = answer.topics[0].partitions.iter().map(|partition| {
        let is_offline = partition.leader_id == -1;
        let error = ErrorCode(partition.error_code);
        assert_eq!(error == ErrorCode::LEADER_NOT_AVAILABLE, is_offline);
        assert_eq!(partition.offline_replicas.len(), usize::from(is_offline));
        is_offline
    });
    Ok(partitions.collect())
}
