//! ListOffsets: earliest, latest, by timestamp, of the greatest timestamp.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;

use super::{Handlers, Request};
use crate::connection::Closed;
use crate::io::Io;
use crate::metadata::Image;
use crate::partition::{FoundOffset, OffsetAt};
use crate::wire::api::list_offsets::{
    ListOffsetsPartition, ListOffsetsPartitionResponse, ListOffsetsTopicResponse, Request as Asked,
    Response,
};
use crate::wire::error::ErrorCode;

/// The versions from which these special timestamps are understood.
const MAX_TIMESTAMP_FROM: i16 = 7;
const EARLIEST_LOCAL_FROM: i16 = 8;
const LATEST_TIERED_FROM: i16 = 9;

pub async fn handle<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    let asked: Asked<'_> = request.decode()?;
    let image = handlers.image();
    let mut topics = Vec::with_capacity(asked.topics.len());
    for topic in &asked.topics {
        let mut mentions: BTreeMap<i32, (usize, &ListOffsetsPartition)> = BTreeMap::new();
        for partition in &topic.partitions {
            mentions.entry(partition.partition_index).or_insert((0, partition)).0 += 1;
        }
        let lookups = mentions.values().map(|(mentioned, partition)| async {
            if *mentioned > 1 {
                return Err(ErrorCode::INVALID_REQUEST);
            }
            find(handlers, &image, (topic.name, partition), request.version()).await
        });
        let found = super::in_turns(lookups).await;
        let partitions = mentions.keys().zip(found).map(|(partition_index, found)| {
            let none = FoundOffset { offset: -1, timestamp: -1, epoch: -1 };
            let FoundOffset { offset, timestamp, epoch } = found.unwrap_or(none);
            ListOffsetsPartitionResponse {
                partition_index: *partition_index,
                error_code: found.err().unwrap_or(ErrorCode::NONE).0,
                timestamp,
                offset,
                leader_epoch: epoch,
            }
        });
        topics
            .push(ListOffsetsTopicResponse { name: topic.name, partitions: partitions.collect() });
    }
    Ok(request.answer(&Response { topics, ..Response::default() }))
}

async fn find<I: Io>(
    handlers: &Handlers<I>,
    image: &Image,
    (topic, partition): (&str, &ListOffsetsPartition),
    version: i16,
) -> Result<FoundOffset, ErrorCode> {
    let known = image.topic(topic).and_then(|topic| topic.partition(partition.partition_index));
    let id = known.ok_or(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION)?;
    let needed = match partition.timestamp {
        -3 => MAX_TIMESTAMP_FROM,
        -4 => EARLIEST_LOCAL_FROM,
        -5 => LATEST_TIERED_FROM,
        _ => 0,
    };
    if version < needed {
        return Err(ErrorCode::UNSUPPORTED_VERSION);
    }
    let at = OffsetAt::from_wire(partition.timestamp).ok_or(ErrorCode::UNSUPPORTED_VERSION)?;
    let leader_epoch = partition.current_leader_epoch;
    let core = handlers.dispatch.owner_of(id);
    handlers
        .dispatch
        .call(core, move |owner| async move { owner.find_offset(id, at, leader_epoch).await })
        .await
        .unwrap_or(Err(ErrorCode::KAFKA_STORAGE_ERROR))
}
