//! CreateTopics: each topic on its own terms, all in one journal entry.

use std::rc::Rc;

use bytes::Bytes;

use super::identity::ASSIGNMENT_REFUSED;
use super::{Handlers, Identity, Request};
use crate::base::ids::CoreId;
use crate::config::{self, TOPIC};
use crate::connection::Closed;
use crate::io::Io;
use crate::metadata::Topic;
use crate::partition::{NewTopic, TopicOutcome, TopicRefused};
use crate::wire::api::create_topics::{
    CreatableTopic, CreatableTopicConfigs, CreatableTopicResult, Request as Asked, Response,
};
use crate::wire::error::ErrorCode;
use crate::wire::primitive::Uuid;

pub async fn handle<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    let asked: Asked<'_> = request.decode()?;
    let mut outcomes: Vec<Option<TopicOutcome>> =
        asked.topics.iter().map(|t| check(&asked, t, &handlers.identity).err().map(Err)).collect();
    let wanted: Vec<NewTopic> = asked
        .topics
        .iter()
        .zip(&outcomes)
        .filter(|(_, outcome)| outcome.is_none())
        .map(|(topic, _)| new_topic(topic))
        .collect();
    let validate_only = asked.validate_only;
    let created = handlers.dispatch.call(CoreId::FIRST, move |owner| async move {
        owner.create_topics(wanted, validate_only).await
    });
    let mut created = created.await.unwrap_or_default().into_iter();
    for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_none()) {
        *outcome = Some(created.next().unwrap_or_else(|| {
            let message = "core 0 has stopped".to_string();
            Err(TopicRefused { error: ErrorCode::UNKNOWN_SERVER_ERROR, message })
        }));
    }
    let outcomes: Vec<TopicOutcome> = outcomes.into_iter().flatten().collect();
    let topics = asked.topics.iter().zip(&outcomes).map(|(topic, outcome)| match outcome {
        Ok(created) => describe(created),
        Err(refused) => CreatableTopicResult {
            name: topic.name,
            error_code: refused.error.0,
            error_message: Some(&refused.message),
            ..CreatableTopicResult::default()
        },
    });
    Ok(request.answer(&Response { topics: topics.collect(), ..Response::default() }))
}

/// What concerns the request rather than the topic.
fn check(
    asked: &Asked<'_>,
    topic: &CreatableTopic<'_>,
    identity: &Identity,
) -> Result<(), TopicRefused> {
    let refuse = |error, message: &str| Err(TopicRefused { error, message: message.into() });
    if asked.topics.iter().filter(|other| other.name == topic.name).count() > 1 {
        return refuse(ErrorCode::INVALID_REQUEST, "the topic is named twice in the request");
    }
    if topic.assignments.is_empty() {
        return Ok(());
    }
    if topic.num_partitions != -1 || topic.replication_factor != -1 {
        let why = "give either assignments or numbers of partitions and replicas, not both";
        return refuse(ErrorCode::INVALID_REQUEST, why);
    }
    let mut indexes: Vec<i32> = topic.assignments.iter().map(|a| a.partition_index).collect();
    indexes.sort_unstable();
    let dense = indexes.iter().zip(0..).all(|(index, expected)| *index == expected);
    if !dense {
        let why = "assignments must count partitions from 0";
        return refuse(ErrorCode::INVALID_REPLICA_ASSIGNMENT, why);
    }
    if !topic.assignments.iter().all(|assigned| identity.takes_assignment(&assigned.broker_ids)) {
        return refuse(ErrorCode::INVALID_REPLICA_ASSIGNMENT, ASSIGNMENT_REFUSED);
    }
    Ok(())
}

fn new_topic(topic: &CreatableTopic<'_>) -> NewTopic {
    let partitions = match i32::try_from(topic.assignments.len()) {
        Ok(0) | Err(_) => topic.num_partitions,
        Ok(assigned) => assigned,
    };
    let configs = topic.configs.iter().map(|config| {
        // A null value asks for the default.
        let default = || config::find(TOPIC, config.name).map_or("", |setting| setting.default);
        (config.name.to_string(), config.value.unwrap_or_else(default).to_string())
    });
    NewTopic {
        name: topic.name.to_string(),
        partitions,
        replication_factor: topic.replication_factor,
        configs: configs.collect(),
    }
}

fn describe(topic: &Topic) -> CreatableTopicResult<'_> {
    let configs = TOPIC.iter().map(|setting| {
        let own = topic.configs.get(setting.name);
        CreatableTopicConfigs {
            name: setting.name,
            value: Some(config::topic_value(own, setting.name)),
            read_only: false,
            config_source: if own.is_some() { DYNAMIC_TOPIC } else { DEFAULT },
            is_sensitive: false,
        }
    });
    CreatableTopicResult {
        name: &topic.name,
        topic_id: Uuid(topic.id),
        num_partitions: i32::try_from(topic.partitions).unwrap_or(i32::MAX),
        replication_factor: 1,
        configs: Some(configs.collect()),
        ..CreatableTopicResult::default()
    }
}

/// Kafka's numbers for where a setting comes from.
pub const DYNAMIC_TOPIC: i8 = 1;
pub const STATIC_BROKER: i8 = 4;
pub const DEFAULT: i8 = 5;
