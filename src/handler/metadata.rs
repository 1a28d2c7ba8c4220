//! Metadata: the node, the topics and their partitions; creates topics that a client asks for.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use super::{Handlers, Request};
use crate::base::ids::CoreId;
use crate::connection::Closed;
use crate::io::Io;
use crate::metadata::{Image, Topic};
use crate::partition::{NewTopic, check_name};
use crate::wire::api::metadata::{
    MetadataRequestTopic, MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
    Request as Asked, Response,
};
use crate::wire::error::ErrorCode;
use crate::wire::primitive::Uuid;

pub async fn handle<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    let asked: Asked<'_> = request.decode()?;
    let all = match &asked.topics {
        None => true,
        Some(topics) => topics.is_empty() && request.version() == 0,
    };
    if !all && may_create(handlers, request.version(), &asked) {
        create_missing(handlers, asked.topics.as_deref().unwrap_or_default()).await;
    }
    let image = handlers.image();
    let topics = match &asked.topics {
        Some(topics) if !all => {
            topics.iter().map(|topic| describe_asked(handlers, &image, topic)).collect()
        }
        _ => image.topics().map(|topic| describe(handlers, topic, image.leader_epoch())).collect(),
    };
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
        ..Response::default()
    };
    Ok(request.answer(&response))
}

fn may_create<I: Io>(handlers: &Handlers<I>, version: i16, asked: &Asked<'_>) -> bool {
    let allowed = version < 4 || asked.allow_auto_topic_creation;
    allowed && handlers.dispatch.shared().config().bool("auto.create.topics.enable")
}

async fn create_missing<I: Io>(handlers: &Rc<Handlers<I>>, asked: &[MetadataRequestTopic<'_>]) {
    let image = handlers.image();
    let missing = asked.iter().filter(|topic| topic.topic_id.is_zero()).filter_map(|t| t.name);
    let missing = missing.filter(|name| image.topic(name).is_none() && check_name(name).is_ok());
    let wanted: Vec<NewTopic> = missing.map(new_topic).collect();
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

fn new_topic(name: &str) -> NewTopic {
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

fn describe<'a, I: Io>(
    handlers: &Handlers<I>,
    topic: &'a Arc<Topic>,
    leader_epoch: i32,
) -> MetadataResponseTopic<'a> {
    let partitions = (0..topic.partitions).map(|index| {
        let leader = handlers.leader_of(topic, index);
        MetadataResponsePartition {
            error_code: 0,
            partition_index: index.cast_signed(),
            leader_id: leader,
            leader_epoch,
            replica_nodes: vec![leader],
            isr_nodes: vec![leader],
            offline_replicas: Vec::new(),
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
