//! DescribeTopicPartitions (API key 75): the request's and the response's fields by version.

use crate::wire::message::messages;
use crate::wire::primitive::Uuid;

messages! {
    TopicRequest<'a> {
        name: &'a str = "", 0..;
    }

    Cursor<'a> {
        topic_name: &'a str = "", 0..;
        partition_index: i32 = 0, 0..;
    }

    Request<'a> {
        topics: Vec<TopicRequest<'a>> = Vec::new(), 0..;
        response_partition_limit: i32 = 2000, 0..;
        cursor: Option<Cursor<'a>> = None, 0.., null 0..;
    }

    DescribeTopicPartitionsResponsePartition {
        error_code: i16 = 0, 0..;
        partition_index: i32 = 0, 0..;
        leader_id: i32 = 0, 0..;
        leader_epoch: i32 = -1, 0..;
        replica_nodes: Vec<i32> = Vec::new(), 0..;
        isr_nodes: Vec<i32> = Vec::new(), 0..;
        eligible_leader_replicas: Option<Vec<i32>> = None, 0.., null 0..;
        last_known_elr: Option<Vec<i32>> = None, 0.., null 0..;
        offline_replicas: Vec<i32> = Vec::new(), 0..;
    }

    DescribeTopicPartitionsResponseTopic<'a> {
        error_code: i16 = 0, 0..;
        name: Option<&'a str> = Some(""), 0.., null 0..;
        topic_id: Uuid = Uuid::ZERO, 0..;
        is_internal: bool = false, 0..;
        partitions: Vec<DescribeTopicPartitionsResponsePartition> = Vec::new(), 0..;
        topic_authorized_operations: i32 = -2147483648, 0..;
    }

    CursorResponse<'a> {
        topic_name: &'a str = "", 0..;
        partition_index: i32 = 0, 0..;
    }

    Response<'a> {
        throttle_time_ms: i32 = 0, 0..;
        topics: Vec<DescribeTopicPartitionsResponseTopic<'a>> = Vec::new(), 0..;
        next_cursor: Option<CursorResponse<'a>> = None, 0.., null 0..;
    }
}
