//! DeleteRecords (KIP-107): raises the log start of partitions.

use std::rc::Rc;

use bytes::Bytes;

use super::{Handlers, Request};
use crate::connection::Closed;
use crate::io::Io;
use crate::metadata::Image;
use crate::wire::api::delete_records::{
    DeleteRecordsPartition, DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
    Request as Asked, Response,
};
use crate::wire::error::ErrorCode;

pub async fn handle<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    let asked: Asked<'_> = request.decode()?;
    let image = handlers.image();
    let mut topics = Vec::with_capacity(asked.topics.len());
    for topic in &asked.topics {
        let deletions = topic.partitions.iter().map(|p| delete(handlers, &image, topic.name, p));
        let outcomes = super::in_turns(deletions).await;
        let partitions = topic.partitions.iter().zip(outcomes).map(|(partition, outcome)| {
            DeleteRecordsPartitionResult {
                partition_index: partition.partition_index,
                low_watermark: outcome.unwrap_or(-1),
                error_code: outcome.err().unwrap_or(ErrorCode::NONE).0,
            }
        });
        let partitions = partitions.collect();
        topics.push(DeleteRecordsTopicResult { name: topic.name, partitions });
    }
    Ok(request.answer(&Response { topics, ..Response::default() }))
}

async fn delete<I: Io>(
    handlers: &Handlers<I>,
    image: &Image,
    topic: &str,
    asked: &DeleteRecordsPartition,
) -> Result<i64, ErrorCode> {
    let topic = image.topic(topic).ok_or(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION)?;
    if topic.is_internal() {
        return Err(ErrorCode::INVALID_TOPIC_EXCEPTION);
    }
    let known = topic.partition(asked.partition_index);
    let id = known.ok_or(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION)?;
    let before = asked.offset;
    let core = handlers.dispatch.owner_of(id);
    handlers
        .dispatch
        .call(core, move |owner| async move { owner.delete_records(id, before).await })
        .await
        .unwrap_or(Err(ErrorCode::KAFKA_STORAGE_ERROR))
}
