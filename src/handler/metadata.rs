//! Metadata: the node, the topics and their partitions; creates topics that a client asks for.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use super::{Handlers, Request, operations};
use crate::base::ids::CoreId;
use crate::connection::Closed;
use crate::io::Io;
use crate::metadata::{Image, OFFSETS_TOPIC, Topic};
use crate::partition::{NewTopic, check_name};
use crate::wire::api::metadata::{
    MetadataRequestTopic, MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
    Request as Asked, Response,
};
use crate::wire::error::ErrorCode;
use crate::wire::primitive::Uuid;

/// The version from which topics may be asked for by id (KIP-516); the field is older.
const IDS_FROM: i16 = 12;

pub async fn handle<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    let mut asked: Asked<'_> = request.decode()?;
    let refusal = choose(&mut asked, request.version());
    let all = match &asked.topics {
        None => true,
        Some(topics) => topics.is_empty() && request.version() == 0,
    };
    if !all && refusal.is_none() && may_create(handlers, request.version(), &asked) {
        create_missing(handlers, asked.topics.as_deref().unwrap_or_default()).await;
    }
    let image = handlers.image();
    let mut topics: Vec<MetadataResponseTopic<'_>> = match &asked.topics {
        Some(topics) if !all => {
            let describe = |topic| match refusal {
                Some(error) => refused(topic, error),
                None => describe_asked(handlers, &image, topic),
            };
            topics.iter().map(describe).collect()
        }
        _ => image.topics().map(|topic| describe(handlers, topic, image.leader_epoch())).collect(),
    };
    let wants_topics = asked.include_topic_authorized_operations;
    for topic in topics.iter_mut().filter(|topic| topic.error_code == 0) {
        topic.topic_authorized_operations = operations::told(wants_topics, operations::TOPIC);
    }
    let identity = &handlers.identity;
    let brokers = identity.brokers().map(|broker| MetadataResponseBroker {
        node_id: broker.id,
        host: &identity.host,
        port: broker.port,
        rack: identity.rack.as_deref(),
    });
    let response = Response {
        brokers: brokers.collect(),
        cluster_id: Some(&image.cluster_id),
        controller_id: identity.controller().id,
        topics,
        cluster_authorized_operations: operations::told(
            asked.include_cluster_authorized_operations,
            operations::CLUSTER,
        ),
        ..Response::default()
    };
    Ok(request.answer(&response))
}

/// Leaves each topic once. Where any has an id, the names are not looked at, as in Kafka. `Some`
/// if the topics cannot be told in this version.
fn choose(asked: &mut Asked<'_>, version: i16) -> Option<ErrorCode> {
    let topics = asked.topics.as_mut()?;
    let has_ids = topics.iter().any(|topic| !topic.topic_id.is_zero());
    let is_nothing =
        |topic: &MetadataRequestTopic<'_>| topic.name.is_none() && topic.topic_id.is_zero();
    let may_have_ids = version >= IDS_FROM;
    if (has_ids && !may_have_ids) || (!has_ids && topics.iter().any(is_nothing)) {
        return Some(ErrorCode::INVALID_REQUEST);
    }
    topics.retain(|topic| !has_ids || !topic.topic_id.is_zero());
    let mut seen = BTreeSet::new();
    topics.retain(|topic| seen.insert((topic.topic_id.0, topic.name.filter(|_| !has_ids))));
    None
}

fn may_create<I: Io>(handlers: &Handlers<I>, version: i16, asked: &Asked<'_>) -> bool {
    let allowed = version < 4 || asked.allow_auto_topic_creation;
    allowed && handlers.dispatch.shared().config().bool("auto.create.topics.enable")
}

async fn create_missing<I: Io>(handlers: &Rc<Handlers<I>>, asked: &[MetadataRequestTopic<'_>]) {
    let image = handlers.image();
    let missing = asked.iter().filter(|topic| topic.topic_id.is_zero()).filter_map(|t| t.name);
    let missing = missing.filter(|name| image.topic(name).is_none() && check_name(name).is_ok());
    let wanted: Vec<NewTopic> = missing.map(|name| new_topic(handlers, name)).collect();
    if wanted.is_empty() {
        return;
    }
    let created = handlers.dispatch.call(CoreId::FIRST, |owner| async move {
        // Another connection may be faster: then the topic is there, which is as good.
        owner.create_topics(wanted, false).await
    });
    if created.await.is_err() {
        tracing::warn!("topics cannot be created: core 0 has stopped");
    }
}

fn new_topic<I: Io>(handlers: &Handlers<I>, name: &str) -> NewTopic {
    if name == OFFSETS_TOPIC {
        return handlers.offsets_topic();
    }
    NewTopic { name: name.into(), partitions: -1, replication_factor: -1, configs: Vec::new() }
}

fn describe_asked<'a, I: Io>(
    handlers: &Handlers<I>,
    image: &'a Image,
    asked: &MetadataRequestTopic<'a>,
) -> MetadataResponseTopic<'a> {
    let name = asked.name.unwrap_or("");
    let by_id = !asked.topic_id.is_zero();
    let found = if by_id { image.topic_by_id(&asked.topic_id.0) } else { image.topic(name) };
    if let Some(topic) = found {
        return describe(handlers, topic, image.leader_epoch());
    }
    let error = if by_id {
        ErrorCode::UNKNOWN_TOPIC_ID
    } else {
        check_name(name)
            .err()
            .map_or(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION, |refused| refused.error)
    };
    MetadataResponseTopic {
        error_code: error.0,
        name: if by_id { None } else { Some(name) },
        topic_id: asked.topic_id,
        ..MetadataResponseTopic::default()
    }
}

fn refused<'a>(asked: &MetadataRequestTopic<'a>, error: ErrorCode) -> MetadataResponseTopic<'a> {
    MetadataResponseTopic {
        error_code: error.0,
        name: Some(asked.name.unwrap_or("")),
        topic_id: asked.topic_id,
        ..MetadataResponseTopic::default()
    }
}

fn describe<'a, I: Io>(
    handlers: &Handlers<I>,
    topic: &'a Arc<Topic>,
    leader_epoch: i32,
) -> MetadataResponseTopic<'a> {
    let partitions = (0..topic.partitions).map(|index| {
        let replica = handlers.replica_of(topic, index);
        MetadataResponsePartition {
            error_code: replica.error().0,
            partition_index: index.cast_signed(),
            leader_id: replica.leader(),
            leader_epoch,
            replica_nodes: vec![replica.broker],
            isr_nodes: vec![replica.broker],
            offline_replicas: replica.offline(),
        }
    });
    MetadataResponseTopic {
        error_code: 0,
        name: Some(&topic.name),
        topic_id: Uuid(topic.id),
        is_internal: topic.is_internal(),
        partitions: partitions.collect(),
        ..MetadataResponseTopic::default()
    }
}
