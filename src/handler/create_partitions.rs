//! CreatePartitions: raises a topic's number of partitions.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;

use super::{Handlers, Request};
use crate::base::ids::CoreId;
use crate::connection::Closed;
use crate::io::Io;
use crate::partition::TopicRefused;
use crate::wire::api::create_partitions::{
    CreatePartitionsTopic, CreatePartitionsTopicResult, Request as Asked, Response,
};
use crate::wire::error::ErrorCode;

pub async fn handle<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    let asked: Asked<'_> = request.decode()?;
    let mut mentions: BTreeMap<&str, (usize, &CreatePartitionsTopic<'_>)> = BTreeMap::new();
    for topic in &asked.topics {
        mentions.entry(topic.name).or_insert((0, topic)).0 += 1;
    }
    let mut outcomes = Vec::with_capacity(mentions.len());
    for (name, (mentioned, topic)) in mentions {
        let outcome = if mentioned == 1 {
            grow(handlers, topic, asked.validate_only).await
        } else {
            let message = "the topic is named twice in the request".to_string();
            Err(TopicRefused { error: ErrorCode::INVALID_REQUEST, message })
        };
        outcomes.push((name, outcome));
    }
    let results = outcomes.iter().map(|(name, outcome)| {
        let refused = outcome.as_ref().err();
        CreatePartitionsTopicResult {
            name,
            error_code: refused.map_or(ErrorCode::NONE, |refused| refused.error).0,
            error_message: refused.map(|refused| refused.message.as_str()),
        }
    });
    Ok(request.answer(&Response { results: results.collect(), ..Response::default() }))
}

async fn grow<I: Io>(
    handlers: &Rc<Handlers<I>>,
    topic: &CreatePartitionsTopic<'_>,
    validate_only: bool,
) -> Result<(), TopicRefused> {
    let assignments = topic.assignments.as_deref().unwrap_or_default();
    let image = handlers.image();
    let current = image.topic(topic.name).and_then(|topic| i32::try_from(topic.partitions).ok());
    // Growth that is none is refused for itself, below.
    let added = current.and_then(|current| topic.count.checked_sub(current)).filter(|n| *n > 0);
    if topic.assignments.is_some()
        && let Some(added) = added
        && i32::try_from(assignments.len()) != Ok(added)
    {
        let message = format!("{added} partitions are added, {} assigned", assignments.len());
        return Err(TopicRefused { error: ErrorCode::INVALID_REPLICA_ASSIGNMENT, message });
    }
    if assignments.iter().any(|assigned| !handlers.identity.takes_assignment(&assigned.broker_ids))
    {
        let message = super::identity::ASSIGNMENT_REFUSED.to_string();
        return Err(TopicRefused { error: ErrorCode::INVALID_REPLICA_ASSIGNMENT, message });
    }
    let (name, count) = (topic.name.to_string(), topic.count);
    let outcome = handlers.dispatch.call(CoreId::FIRST, move |owner| async move {
        owner.add_partitions(name, count, validate_only).await
    });
    outcome.await.unwrap_or_else(|_| {
        let message = "core 0 has stopped".to_string();
        Err(TopicRefused { error: ErrorCode::UNKNOWN_SERVER_ERROR, message })
    })
}
