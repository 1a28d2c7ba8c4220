//! CreateTopics (API key 19): the request's and the response's fields by version.

use crate::wire::message::messages;
use crate::wire::primitive::Uuid;

messages! {
    CreatableReplicaAssignment {
        partition_index: i32 = 0, 0..;
        broker_ids: Vec<i32> = Vec::new(), 0..;
    }

    CreatableTopicConfig<'a> {
        name: &'a str = "", 0..;
        value: Option<&'a str> = Some(""), 0.., null 0..;
    }

    CreatableTopic<'a> {
        name: &'a str = "", 0..;
        num_partitions: i32 = 0, 0..;
        replication_factor: i16 = 0, 0..;
        assignments: Vec<CreatableReplicaAssignment> = Vec::new(), 0..;
        configs: Vec<CreatableTopicConfig<'a>> = Vec::new(), 0..;
    }

    Request<'a> {
        topics: Vec<CreatableTopic<'a>> = Vec::new(), 0..;
        timeout_ms: i32 = 60000, 0..;
        validate_only: bool = false, 1..;
    }

    CreatableTopicConfigs<'a> {
        name: &'a str = "", 5..;
        value: Option<&'a str> = Some(""), 5.., null 5..;
        read_only: bool = false, 5..;
        config_source: i8 = -1, 5..;
        is_sensitive: bool = false, 5..;
    }

    CreatableTopicResult<'a> {
        name: &'a str = "", 0..;
        topic_id: Uuid = Uuid::ZERO, 7..;
        error_code: i16 = 0, 0..;
        error_message: Option<&'a str> = Some(""), 1.., null 0..;
        topic_config_error_code: i16 = 0, 5.., tag 0 in 5..;
        num_partitions: i32 = -1, 5..;
        replication_factor: i16 = -1, 5..;
        configs: Option<Vec<CreatableTopicConfigs<'a>>> = Some(Vec::new()), 5.., null 5..;
    }

    Response<'a> {
        throttle_time_ms: i32 = 0, 2..;
        topics: Vec<CreatableTopicResult<'a>> = Vec::new(), 0..;
    }
}
