//! The administrator: makes the topic of the run, deletes prefixes of it, and makes and deletes
//! other topics.

use std::rc::Rc;
use std::time::Duration;

use super::client::{Client, Lost};
use super::{Stage, TOPIC};
use crate::io::Io;
use crate::io::sim::SimIo;
use crate::wire::api::{
    ApiKey, create_topics, delete_records, delete_topics, list_offsets, metadata, produce,
};
use crate::wire::error::ErrorCode;
use crate::wire::primitive::Uuid;
use crate::wire::records::{BatchBuilder, Codec, NewRecord};

const PAUSE: Duration = Duration::from_millis(20);
/// A name that is used again and again.
const REUSED: &str = "reused";
const LATEST: i64 = -1;

/// What is known of the topic `REUSED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reused {
    Gone,
    There(Uuid),
    /// A request to make or delete it was not answered.
    Unknown,
}

pub async fn run(io: SimIo, stage: Rc<Stage>) {
    let mut client = stage.client(&io);
    while create(&mut client, TOPIC, stage.plan.partitions, &[]).await.is_err() {
        io.sleep(PAUSE).await;
    }
    stage.is_made.set(true);
    let mut reused = Reused::Unknown;
    while !stage.is_over() {
        let done = match io.random() % 4 {
            0 => delete_prefix(&io, &stage, &mut client).await,
            _ => churn(&io, &stage, &mut client, &mut reused).await,
        };
        if done.is_err() {
            io.sleep(PAUSE).await;
        }
    }
}

/// A code that passes is as good as no answer.
fn passing(code: i16) -> Result<(), Lost> {
    match ErrorCode(code) {
        ErrorCode::NONE => Ok(()),
        ErrorCode::KAFKA_STORAGE_ERROR
        | ErrorCode::REQUEST_TIMED_OUT
        | ErrorCode::UNKNOWN_TOPIC_OR_PARTITION
        | ErrorCode::NOT_CONTROLLER
        | ErrorCode::UNKNOWN_SERVER_ERROR => Err(Lost),
        code => panic!("the administrator is answered with {code}"),
    }
}

/// Makes a topic; one that exists is as good.
pub async fn create(
    client: &mut Client,
    name: &str,
    partitions: i32,
    settings: &[(&str, &str)],
) -> Result<(), Lost> {
    let topic = create_topics::CreatableTopic {
        name,
        num_partitions: partitions,
        replication_factor: 1,
        configs: settings
            .iter()
            .map(|&(name, value)| create_topics::CreatableTopicConfig { name, value: Some(value) })
            .collect(),
        ..Default::default()
    };
    let request = create_topics::Request { topics: vec![topic], ..Default::default() };
    let answer = client.call(ApiKey::CreateTopics, 7, &request).await?;
    let answer: create_topics::Response<'_> = answer.decode();
    match ErrorCode(answer.topics[0].error_code) {
        ErrorCode::TOPIC_ALREADY_EXISTS => Ok(()),
        ErrorCode(code) => passing(code),
    }
}

/// The id of a topic, if it exists.
async fn look(client: &mut Client, name: &str) -> Result<Option<Uuid>, Lost> {
    let topic = metadata::MetadataRequestTopic { topic_id: Uuid::ZERO, name: Some(name) };
    let request = metadata::Request {
        topics: Some(vec![topic]),
        allow_auto_topic_creation: false,
        ..Default::default()
    };
    let answer = client.call(ApiKey::Metadata, 12, &request).await?;
    let answer: metadata::Response<'_> = answer.decode();
    let found = &answer.topics[0];
    match ErrorCode(found.error_code) {
        ErrorCode::NONE => Ok(Some(found.topic_id)),
        ErrorCode::UNKNOWN_TOPIC_OR_PARTITION => Ok(None),
        code => panic!("Metadata answers {code}"),
    }
}

/// One step in the life of `REUSED`, checked against what is known (P6).
async fn churn(
    io: &SimIo,
    stage: &Stage,
    client: &mut Client,
    reused: &mut Reused,
) -> Result<(), Lost> {
    let found = look(client, REUSED).await?;
    let known = match found {
        Some(id) => Reused::There(id),
        None => Reused::Gone,
    };
    assert!(
        *reused == Reused::Unknown || *reused == known,
        "the topic was {reused:?} and is {known:?}"
    );
    *reused = Reused::Unknown;
    match known {
        Reused::There(id) => {
            // Some are taken out of the journal while their topic is deleted.
            for _ in 0..1 + io.random() % 4 {
                put_one(client).await?;
            }
            delete(client).await?;
            stage.history().met.topics_deleted += 1;
            let left = look(client, REUSED).await?;
            assert_ne!(left, Some(id), "a deleted topic is there");
            *reused = Reused::Gone;
        }
        _ => {
            let compacted = [("cleanup.policy", "compact"), ("segment.ms", "1")];
            let settings = if io.random().is_multiple_of(2) { &compacted[..] } else { &[] };
            create(client, REUSED, 3, settings).await?;
            let made = look(client, REUSED).await?;
            let Some(id) = made else { panic!("a topic is not there after it was made") };
            for index in 0..3 {
                let end = end_of(client, REUSED, index).await?;
                assert_eq!(end, 0, "partition {index} of a new topic is not empty");
            }
            *reused = Reused::There(id);
        }
    }
    Ok(())
}

async fn delete(client: &mut Client) -> Result<(), Lost> {
    let topic = delete_topics::DeleteTopicState { name: Some(REUSED), topic_id: Uuid::ZERO };
    let request =
        delete_topics::Request { topics: vec![topic], timeout_ms: 5_000, ..Default::default() };
    let answer = client.call(ApiKey::DeleteTopics, 6, &request).await?;
    let answer: delete_topics::Response<'_> = answer.decode();
    passing(answer.responses[0].error_code)
}

/// One record into each partition of `REUSED`.
async fn put_one(client: &mut Client) -> Result<(), Lost> {
    let mut builder = BatchBuilder::new();
    builder.push(&NewRecord { key: Some(b"key"), value: Some(b"one"), ..NewRecord::default() });
    let batch = builder.build(Codec::None).expect("nothing to compress");
    let partition_data = (0..3)
        .map(|index| produce::PartitionProduceData { index, records: Some(&batch) })
        .collect();
    let topic = produce::TopicProduceData { name: REUSED, partition_data, ..Default::default() };
    let request = produce::Request {
        acks: -1,
        timeout_ms: 5_000,
        topic_data: vec![topic],
        ..Default::default()
    };
    let answer = client.call(ApiKey::Produce, 12, &request).await?;
    let answer: produce::Response<'_> = answer.decode();
    for partition in &answer.responses[0].partition_responses {
        passing(partition.error_code)?;
    }
    Ok(())
}

async fn end_of(client: &mut Client, topic: &str, index: i32) -> Result<i64, Lost> {
    let partition = list_offsets::ListOffsetsPartition {
        partition_index: index,
        timestamp: LATEST,
        ..Default::default()
    };
    let topic = list_offsets::ListOffsetsTopic { name: topic, partitions: vec![partition] };
    let request =
        list_offsets::Request { replica_id: -1, topics: vec![topic], ..Default::default() };
    let answer = client.call(ApiKey::ListOffsets, 7, &request).await?;
    let answer: list_offsets::Response<'_> = answer.decode();
    let partition = &answer.topics[0].partitions[0];
    passing(partition.error_code)?;
    Ok(partition.offset)
}

async fn delete_prefix(io: &SimIo, stage: &Stage, client: &mut Client) -> Result<(), Lost> {
    let index = i32::try_from(io.random() % 6).expect("small") % stage.plan.partitions;
    let known = stage.history().bounds(index);
    let end = end_of(client, TOPIC, index).await?;
    assert!(end >= known.end, "partition {index} ends at {end}, it ended at {}", known.end);
    let offset = i64::try_from(io.random() % (end.unsigned_abs() + 1)).expect("small") / 4;
    stage.history().delete_asked(index, offset);
    let partition = delete_records::DeleteRecordsPartition { partition_index: index, offset };
    let topic = delete_records::DeleteRecordsTopic { name: TOPIC, partitions: vec![partition] };
    let request = delete_records::Request { topics: vec![topic], timeout_ms: 5_000 };
    let answer = client.call(ApiKey::DeleteRecords, 2, &request).await?;
    let answer: delete_records::Response<'_> = answer.decode();
    let found = &answer.topics[0].partitions[0];
    passing(found.error_code)?;
    assert!(found.low_watermark >= offset, "deleted up to {}", found.low_watermark);
    stage.history().prefix_deleted(index, offset);
    Ok(())
}
