//! DeleteTopics: by name, from version 6 also by id.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use super::{Handlers, Request, topic_of};
use crate::base::ids::{CoreId, TopicNumber};
use crate::connection::Closed;
use crate::io::Io;
use crate::metadata::{Image, Topic};
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
    let mut mentions: BTreeMap<Meant<'_>, usize> = BTreeMap::new();
    for state in &wanted {
        *mentions.entry(meant(&image, state)).or_default() += 1;
    }
    for state in &wanted {
        // A topic that is named twice is refused once.
        let Some(mentioned) = mentions.remove(&meant(&image, state)) else { continue };
        let found = topic_of(&image, state.name.unwrap_or(""), state.topic_id);
        let is_sound = mentioned == 1 && state.name.is_some() == state.topic_id.is_zero();
        let error = match found {
            _ if !is_sound => ErrorCode::INVALID_REQUEST,
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

/// What a request means by one of its topics: a topic that is there, or what it says.
type Meant<'a> = (Option<TopicNumber>, Option<&'a str>, Uuid);

fn meant<'a>(image: &Image, state: &DeleteTopicState<'a>) -> Meant<'a> {
    match topic_of(image, state.name.unwrap_or(""), state.topic_id) {
        Some(topic) => (Some(topic.number), None, Uuid::ZERO),
        None => (None, state.name, state.topic_id),
    }
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
