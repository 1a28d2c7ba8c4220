//! Metadata (API key 3): the request's and the response's fields by version.

use crate::wire::message::messages;
use crate::wire::primitive::Uuid;

messages! {
    MetadataRequestTopic<'a> {
        topic_id: Uuid = Uuid::ZERO, 10..;
        name: Option<&'a str> = Some(""), 0.., null 10..;
    }

    Request<'a> {
        topics: Option<Vec<MetadataRequestTopic<'a>>> = Some(Vec::new()), 0.., null 1..;
        allow_auto_topic_creation: bool = true, 4..;
        include_cluster_authorized_operations: bool = false, 8..=10;
        include_topic_authorized_operations: bool = false, 8..;
    }

    MetadataResponseBroker<'a> {
        node_id: i32 = 0, 0..;
        host: &'a str = "", 0..;
        port: i32 = 0, 0..;
        rack: Option<&'a str> = None, 1.., null 1..;
    }

    MetadataResponsePartition {
        error_code: i16 = 0, 0..;
        partition_index: i32 = 0, 0..;
        leader_id: i32 = 0, 0..;
        leader_epoch: i32 = -1, 7..;
        replica_nodes: Vec<i32> = Vec::new(), 0..;
        isr_nodes: Vec<i32> = Vec::new(), 0..;
        offline_replicas: Vec<i32> = Vec::new(), 5..;
    }

    MetadataResponseTopic<'a> {
        error_code: i16 = 0, 0..;
        name: Option<&'a str> = Some(""), 0.., null 12..;
        topic_id: Uuid = Uuid::ZERO, 10..;
        is_internal: bool = false, 1..;
        partitions: Vec<MetadataResponsePartition> = Vec::new(), 0..;
        topic_authorized_operations: i32 = -2147483648, 8..;
    }

    Response<'a> {
        throttle_time_ms: i32 = 0, 3..;
        brokers: Vec<MetadataResponseBroker<'a>> = Vec::new(), 0..;
        cluster_id: Option<&'a str> = None, 2.., null 2..;
        controller_id: i32 = -1, 1..;
        topics: Vec<MetadataResponseTopic<'a>> = Vec::new(), 0..;
        cluster_authorized_operations: i32 = -2147483648, 8..=10;
        error_code: i16 = 0, 13..;
    }
}
