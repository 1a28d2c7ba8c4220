//! CreatePartitions: raises a topic's number of partitions.

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
    let mut outcomes = Vec::with_capacity(asked.topics.len());
    for topic in &asked.topics {
        outcomes.push(grow(handlers, topic, asked.validate_only).await);
    }
    let results = asked.topics.iter().zip(&outcomes).map(|(topic, outcome)| {
        let refused = outcome.as_ref().err();
        CreatePartitionsTopicResult {
            name: topic.name,
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
