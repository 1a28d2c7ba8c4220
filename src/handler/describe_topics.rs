//! DescribeTopicPartitions (KIP-966): topics in the order of their names, page by page.

use bytes::Bytes;

use super::{Handlers, Request, operations};
use crate::connection::Closed;
use crate::io::Io;
use crate::metadata::Topic;
use crate::partition::check_name;
use crate::wire::api::describe_topic_partitions::{
    CursorResponse, DescribeTopicPartitionsResponsePartition, DescribeTopicPartitionsResponseTopic,
    Request as Asked, Response,
};
use crate::wire::error::ErrorCode;
use crate::wire::primitive::Uuid;

/// Partitions of one page, whatever the client asks for.
const PAGE_MAX: i32 = 2000;

pub fn handle<I: Io>(handlers: &Handlers<I>, request: &Request<'_>) -> Result<Vec<Bytes>, Closed> {
    let asked: Asked<'_> = request.decode()?;
    let image = handlers.image();
    let mut names: Vec<&str> = asked.topics.iter().map(|topic| topic.name).collect();
    if names.is_empty() {
        names = image.topics().map(|topic| &*topic.name).collect();
    }
    names.sort_unstable();
    names.dedup();
    if let Some(cursor) = &asked.cursor {
        // Where topics are named, the page goes on with one of them.
        let is_named = asked.topics.is_empty() || names.binary_search(&cursor.topic_name).is_ok();
        if cursor.partition_index < 0 || !is_named {
            return Ok(request.answer(&refused(&names)));
        }
    }
    let (from_name, from_partition) = match &asked.cursor {
        Some(cursor) => (cursor.topic_name, cursor.partition_index.max(0)),
        None => ("", 0),
    };
    let mut left = asked.response_partition_limit.clamp(1, PAGE_MAX).cast_unsigned();
    let mut response = Response::default();
    for name in names.into_iter().filter(|name| *name >= from_name) {
        let start = if name == from_name { from_partition.cast_unsigned() } else { 0 };
        let Some(topic) = image.topic(name) else {
            let refused = check_name(name).err().map(|refused| refused.error);
            response.topics.push(DescribeTopicPartitionsResponseTopic {
                error_code: refused.unwrap_or(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION).0,
                name: Some(name),
                ..DescribeTopicPartitionsResponseTopic::default()
            });
            continue;
        };
        if left == 0 {
            response.next_cursor = Some(cursor(name, 0));
            break;
        }
        let end = topic.partitions.min(start.saturating_add(left));
        left -= end.saturating_sub(start);
        response.topics.push(describe(handlers, topic, start..end, image.leader_epoch()));
        if end < topic.partitions {
            response.next_cursor = Some(cursor(name, end));
            break;
        }
    }
    Ok(request.answer(&response))
}

fn refused<'a>(names: &[&'a str]) -> Response<'a> {
    let topics = names.iter().map(|name| DescribeTopicPartitionsResponseTopic {
        error_code: ErrorCode::INVALID_REQUEST.0,
        name: Some(name),
        ..DescribeTopicPartitionsResponseTopic::default()
    });
    Response { topics: topics.collect(), ..Response::default() }
}

fn cursor(topic_name: &str, index: u32) -> CursorResponse<'_> {
    CursorResponse { topic_name, partition_index: index.cast_signed() }
}

fn describe<'a, I: Io>(
    handlers: &Handlers<I>,
    topic: &'a Topic,
    indexes: std::ops::Range<u32>,
    leader_epoch: i32,
) -> DescribeTopicPartitionsResponseTopic<'a> {
    let partitions = indexes.map(|index| {
        let replica = handlers.replica_of(topic, index);
        DescribeTopicPartitionsResponsePartition {
            error_code: replica.error().0,
            partition_index: index.cast_signed(),
            leader_id: replica.leader(),
            leader_epoch,
            replica_nodes: vec![replica.broker],
            isr_nodes: vec![replica.broker],
            eligible_leader_replicas: Some(Vec::new()),
            last_known_elr: Some(Vec::new()),
            offline_replicas: replica.offline(),
        }
    });
    DescribeTopicPartitionsResponseTopic {
        error_code: 0,
        name: Some(&topic.name),
        topic_id: Uuid(topic.id),
        is_internal: topic.is_internal(),
        partitions: partitions.collect(),
        topic_authorized_operations: operations::TOPIC,
    }
}
