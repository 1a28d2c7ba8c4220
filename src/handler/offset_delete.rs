//! OffsetDelete (KIP-496): single offsets of a group.

use std::rc::Rc;

use bytes::Bytes;

use super::groups::unexpected;
use super::{Handlers, Request};
use crate::connection::Closed;
use crate::group::{Answer, Request as GroupRequest};
use crate::io::Io;
use crate::wire::api::offset_delete::{
    OffsetDeleteResponsePartition, OffsetDeleteResponseTopic, Request as Asked, Response,
};
use crate::wire::error::ErrorCode;

pub async fn handle<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    let asked: Asked<'_> = request.decode()?;
    let image = handlers.image();
    let offsets = asked.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| partition.partition_index);
        (topic.name.to_string(), partitions.collect())
    });
    let deletion = GroupRequest::DeleteOffsets(offsets.collect());
    let outcome = if asked.group_id.is_empty() {
        Err(ErrorCode::INVALID_GROUP_ID)
    } else {
        handlers.ask_group(asked.group_id, deletion).await
    };
    let (error, found) = match outcome {
        Ok(Answer::DeleteOffsets { error, partitions }) => (error, partitions),
        Ok(other) => (unexpected(&other), Vec::new()),
        Err(error) => (error, Vec::new()),
    };
    // Offsets of what is not there are gone, but the client may have named it wrongly.
    let is_known = |name: &str, index: i32| {
        image.topic(name).is_some_and(|topic| topic.partition(index).is_some())
    };
    let topics = found.iter().map(|(name, partitions)| OffsetDeleteResponseTopic {
        name,
        partitions: partitions
            .iter()
            .map(|(partition_index, error)| OffsetDeleteResponsePartition {
                partition_index: *partition_index,
                error_code: if is_known(name, *partition_index) {
                    error.0
                } else {
                    ErrorCode::UNKNOWN_TOPIC_OR_PARTITION.0
                },
            })
            .collect(),
    });
    let response =
        Response { error_code: error.0, topics: topics.collect(), ..Response::default() };
    Ok(request.answer(&response))
}
