//! Produce (API key 0): the request's and the response's fields by version.

use crate::wire::message::messages;
use crate::wire::primitive::Uuid;

messages! {
    PartitionProduceData<'a> {
        index: i32 = 0, 0..;
        records: Option<&'a [u8]> = None, 0.., null 0..;
    }

    TopicProduceData<'a> {
        name: &'a str = "", 0..=12;
        topic_id: Uuid = Uuid::ZERO, 13..;
        partition_data: Vec<PartitionProduceData<'a>> = Vec::new(), 0..;
    }

    Request<'a> {
        transactional_id: Option<&'a str> = None, 3.., null 3..;
        acks: i16 = 0, 0..;
        timeout_ms: i32 = 0, 0..;
        topic_data: Vec<TopicProduceData<'a>> = Vec::new(), 0..;
    }

    BatchIndexAndErrorMessage<'a> {
        batch_index: i32 = 0, 8..;
        batch_index_error_message: Option<&'a str> = None, 8.., null 8..;
    }

    LeaderIdAndEpoch {
        leader_id: i32 = -1, 10..;
        leader_epoch: i32 = -1, 10..;
    }

    PartitionProduceResponse<'a> {
        index: i32 = 0, 0..;
        error_code: i16 = 0, 0..;
        base_offset: i64 = 0, 0..;
        log_append_time_ms: i64 = -1, 2..;
        log_start_offset: i64 = -1, 5..;
        record_errors: Vec<BatchIndexAndErrorMessage<'a>> = Vec::new(), 8..;
        error_message: Option<&'a str> = None, 8.., null 8..;
        current_leader: LeaderIdAndEpoch = Default::default(), 10.., tag 0 in 10..;
    }

    TopicProduceResponse<'a> {
        name: &'a str = "", 0..=12;
        topic_id: Uuid = Uuid::ZERO, 13..;
        partition_responses: Vec<PartitionProduceResponse<'a>> = Vec::new(), 0..;
    }

    NodeEndpoint<'a> {
        node_id: i32 = 0, 10..;
        host: &'a str = "", 10..;
        port: i32 = 0, 10..;
        rack: Option<&'a str> = None, 10.., null 10..;
    }

    Response<'a> {
        responses: Vec<TopicProduceResponse<'a>> = Vec::new(), 0..;
        throttle_time_ms: i32 = 0, 1..;
        node_endpoints: Vec<NodeEndpoint<'a>> = Vec::new(), 10.., tag 0 in 10..;
    }
}
