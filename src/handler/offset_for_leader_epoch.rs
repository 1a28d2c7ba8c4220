//! OffsetForLeaderEpoch (KIP-101, KIP-320): where a leader epoch ended.

use std::rc::Rc;

use bytes::Bytes;

use super::{Handlers, Request};
use crate::connection::Closed;
use crate::io::Io;
use crate::metadata::Image;
use crate::partition::EpochEnd;
use crate::wire::api::offset_for_leader_epoch::{
    EpochEndOffset, OffsetForLeaderPartition, OffsetForLeaderTopicResult, Request as Asked,
    Response,
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
        let lookups = topic.partitions.iter().map(|p| find(handlers, &image, topic.topic, p));
        let found = super::in_turns(lookups).await;
        let partitions = topic.partitions.iter().zip(found).map(|(partition, found)| {
            let EpochEnd { epoch, end } = found.unwrap_or(EpochEnd { epoch: -1, end: -1 });
            EpochEndOffset {
                error_code: found.err().unwrap_or(ErrorCode::NONE).0,
                partition: partition.partition,
                leader_epoch: epoch,
                end_offset: end,
            }
        });
        let partitions = partitions.collect();
        topics.push(OffsetForLeaderTopicResult { topic: topic.topic, partitions });
    }
    Ok(request.answer(&Response { topics, ..Response::default() }))
}

async fn find<I: Io>(
    handlers: &Handlers<I>,
    image: &Image,
    topic: &str,
    asked: &OffsetForLeaderPartition,
) -> Result<EpochEnd, ErrorCode> {
    let known = image.topic(topic).and_then(|topic| topic.partition(asked.partition));
    let id = known.ok_or(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION)?;
    let (epoch, current) = (asked.leader_epoch, asked.current_leader_epoch);
    let core = handlers.dispatch.owner_of(id);
    handlers
        .dispatch
        .call(core, move |owner| async move { owner.epoch_end(id, epoch, current) })
        .await
        .unwrap_or(Err(ErrorCode::KAFKA_STORAGE_ERROR))
}
