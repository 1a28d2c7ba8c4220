//! CreateTopics: each topic on its own terms, all in one journal entry.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;

use super::identity::ASSIGNMENT_REFUSED;
use super::{Handlers, Identity, Request};
use crate::base::ids::CoreId;
use crate::config::{self, BrokerConfig, TOPIC};
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
    let mut mentions: BTreeMap<&str, usize> = BTreeMap::new();
    for topic in &asked.topics {
        *mentions.entry(topic.name).or_default() += 1;
    }
    let refusal = |topic: &CreatableTopic<'_>| match mentions.get(topic.name) {
        Some(1) => check(topic, &handlers.identity).err().map(Err),
        _ => {
            let message = "the topic is named twice in the request".to_string();
            Some(Err(TopicRefused { error: ErrorCode::INVALID_REQUEST, message }))
        }
    };
    let mut outcomes: Vec<Option<TopicOutcome>> = asked.topics.iter().map(refusal).collect();
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
    // A topic that is named twice is answered once.
    let once = asked.topics.iter().zip(&outcomes);
    let once = once.filter(|(topic, _)| mentions.remove(topic.name).is_some());
    let broker = handlers.dispatch.shared().config().clone();
    let topics = once.map(|(topic, outcome)| match outcome {
        Ok(created) => describe(created, &broker),
        Err(refused) => CreatableTopicResult {
            name: topic.name,
            error_code: refused.error.0,
            error_message: Some(&refused.message),
            ..CreatableTopicResult::default()
        },
    });
    Ok(request.answer(&Response { topics: topics.collect(), ..Response::default() }))
}

/// What Kafka's controllers call their log.
const CLUSTER_METADATA: &str = "__cluster_metadata";

/// What concerns the request rather than the topic.
fn check(topic: &CreatableTopic<'_>, identity: &Identity) -> Result<(), TopicRefused> {
    let refuse = |error, message: &str| Err(TopicRefused { error, message: message.into() });
    if topic.name == CLUSTER_METADATA {
        return refuse(ErrorCode::INVALID_REQUEST, "the name is kept for the cluster's metadata");
    }
    if let Some(config) = topic.configs.iter().find(|config| config.value.is_none()) {
        let why = format!("`{}` is given no value", config.name);
        return refuse(ErrorCode::INVALID_CONFIG, &why);
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
    let configs = topic.configs.iter();
    let configs =
        configs.map(|config| (config.name.to_string(), config.value.unwrap_or("").to_string()));
    NewTopic {
        name: topic.name.to_string(),
        partitions,
        replication_factor: topic.replication_factor,
        configs: configs.collect(),
    }
}

fn describe<'a>(topic: &'a Topic, broker: &'a BrokerConfig) -> CreatableTopicResult<'a> {
    let configs = TOPIC.iter().map(|setting| {
        let own = topic.configs.get(setting.name);
        let given = broker.inherited(setting.name);
        CreatableTopicConfigs {
            name: setting.name,
            value: Some(config::topic_value(own, broker, setting.name)),
            read_only: false,
            config_source: match (own, given) {
                (Some(_), _) => DYNAMIC_TOPIC,
                (None, Some(_)) => STATIC_BROKER,
                (None, None) => DEFAULT,
            },
            is_sensitive: false,
        }
    });
    CreatableTopicResult {
        name: &topic.name,
        topic_id: Uuid(topic.id),
        error_message: None,
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
