//! OffsetCommit: a group's positions, durable before they are answered.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;

use super::groups::unexpected;
use super::{Handlers, Request};
use crate::connection::Closed;
use crate::group::{Answer, Commit, CommitPartition, Request as GroupRequest};
use crate::io::Io;
use crate::metadata::Image;
use crate::wire::api::offset_commit::{
    OffsetCommitRequestTopic, OffsetCommitResponsePartition, OffsetCommitResponseTopic,
    Request as Asked, Response,
};
use crate::wire::error::ErrorCode;

/// The version from which topics are named by id (KIP-848).
const IDS_FROM: i16 = 10;

pub async fn handle<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    let asked: Asked<'_> = request.decode()?;
    let by_id = request.version() >= IDS_FROM;
    let image = handlers.image();
    let mut offsets: Vec<(String, Vec<CommitPartition>)> = Vec::new();
    for topic in &asked.topics {
        let Ok(name) = name_of(&image, topic, by_id) else { continue };
        let partitions = topic.partitions.iter().filter(|partition| {
            image.topic(name).is_some_and(|t| t.partition(partition.partition_index).is_some())
        });
        let partitions = partitions.map(|partition| CommitPartition {
            partition: partition.partition_index,
            offset: partition.committed_offset,
            leader_epoch: partition.committed_leader_epoch,
            metadata: partition.committed_metadata.unwrap_or("").to_string(),
        });
        offsets.push((name.to_string(), partitions.collect()));
    }
    let commit = Commit {
        generation: asked.generation_id_or_member_epoch,
        member_id: asked.member_id.to_string(),
        instance_id: asked.group_instance_id.map(str::to_string),
        retention_ms: asked.retention_time_ms,
        offsets,
    };
    let outcome = match handlers.ask_group(asked.group_id, GroupRequest::Commit(commit)).await {
        Ok(Answer::Commit(outcome)) => Ok(outcome),
        Ok(other) => Err(unexpected(&other)),
        Err(error) => Err(error),
    };
    let errors = Errors::new(outcome);
    let topics = asked.topics.iter().map(|topic| {
        let name = name_of(&image, topic, by_id);
        let partitions = topic.partitions.iter().map(|partition| OffsetCommitResponsePartition {
            partition_index: partition.partition_index,
            error_code: name
                .map_or_else(|error| error, |name| errors.of(name, partition.partition_index))
                .0,
        });
        OffsetCommitResponseTopic {
            name: topic.name,
            topic_id: topic.topic_id,
            partitions: partitions.collect(),
        }
    });
    Ok(request.answer(&Response { topics: topics.collect(), ..Response::default() }))
}

fn name_of<'a>(
    image: &'a Image,
    topic: &OffsetCommitRequestTopic<'a>,
    by_id: bool,
) -> Result<&'a str, ErrorCode> {
    if !by_id {
        return Ok(topic.name);
    }
    let found = image.topic_by_id(&topic.topic_id.0);
    found.map(|topic| &*topic.name).ok_or(ErrorCode::UNKNOWN_TOPIC_ID)
}

/// The coordinator's answer: topics with their partitions' errors.
type Outcomes = Vec<(String, Vec<(i32, ErrorCode)>)>;

/// The coordinator's answer, looked up by topic and partition.
struct Errors {
    whole: Option<ErrorCode>,
    parts: BTreeMap<(String, i32), ErrorCode>,
}

impl Errors {
    fn new(outcome: Result<Outcomes, ErrorCode>) -> Errors {
        let whole = outcome.as_ref().err().copied();
        let mut parts = BTreeMap::new();
        for (topic, partitions) in outcome.unwrap_or_default() {
            for (partition, error) in partitions {
                parts.insert((topic.clone(), partition), error);
            }
        }
        Errors { whole, parts }
    }

    fn of(&self, topic: &str, partition: i32) -> ErrorCode {
        let unknown = ErrorCode::UNKNOWN_TOPIC_OR_PARTITION;
        let part = self.parts.get(&(topic.to_string(), partition)).copied();
        self.whole.or(part).unwrap_or(unknown)
    }
}
