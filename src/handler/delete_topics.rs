//! DeleteTopics: by name, from version 6 also by id.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use super::{Handlers, Request, topic_of};
use crate::base::ids::CoreId;
use crate::connection::Closed;
use crate::io::Io;
use crate::metadata::Topic;
use crate::wire::api::delete_topics::{
    DeletableTopicResult, DeleteTopicState, Request as Asked, Response,
};
use crate::wire::error::ErrorCode;
use crate::wire::primitive::Uuid;

pub async fn handle<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    let asked: Asked<'_> = request.decode()?;
    let named = asked
        .topic_names
        .iter()
        .map(|name| DeleteTopicState { name: Some(name), topic_id: Uuid::ZERO });
    let wanted: Vec<DeleteTopicState<'_>> = asked.topics.iter().cloned().chain(named).collect();
    let image = handlers.image();
    let mut responses = Vec::with_capacity(wanted.len());
    for state in &wanted {
        let name = state.name.unwrap_or("");
        let found = topic_of(&image, name, state.topic_id);
        let error = match found {
            Some(topic) => delete(handlers, topic).await,
            None if state.topic_id.is_zero() => ErrorCode::UNKNOWN_TOPIC_OR_PARTITION,
            None => ErrorCode::UNKNOWN_TOPIC_ID,
        };
        responses.push(DeletableTopicResult {
            name: found.map(|topic| &*topic.name).or(state.name),
            topic_id: found.map_or(state.topic_id, |topic| Uuid(topic.id)),
            error_code: error.0,
            error_message: error.name().filter(|_| error.is_error()),
        });
    }
    Ok(request.answer(&Response { responses, ..Response::default() }))
}

async fn delete<I: Io>(handlers: &Rc<Handlers<I>>, topic: &Arc<Topic>) -> ErrorCode {
    if !handlers.dispatch.shared().config().bool("delete.topic.enable") {
        return ErrorCode::TOPIC_DELETION_DISABLED;
    }
    let deleted = topic.clone();
    let outcome = handlers
        .dispatch
        .call(CoreId::FIRST, move |owner| async move { owner.delete_topic(&deleted).await })
        .await;
    match outcome {
        Ok(Ok(())) => {
            let number = topic.number;
            let name = topic.name.to_string();
            let forget = handlers.dispatch.call_all(move |owner| {
                let name = name.clone();
                async move {
                    owner.forget_topic(number);
                    owner.forget_group_topics(vec![name]);
                }
            });
            forget.await;
            ErrorCode::NONE
        }
        Ok(Err(error)) => error,
        Err(_) => ErrorCode::UNKNOWN_SERVER_ERROR,
    }
}
