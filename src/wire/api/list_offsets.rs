//! ListOffsets (API key 2): the request's and the response's fields by version.

use crate::wire::message::messages;

messages! {
    ListOffsetsPartition {
        partition_index: i32 = 0, 0..;
        current_leader_epoch: i32 = -1, 4..;
        timestamp: i64 = 0, 0..;
    }

    ListOffsetsTopic<'a> {
        name: &'a str = "", 0..;
        partitions: Vec<ListOffsetsPartition> = Vec::new(), 0..;
    }

    Request<'a> {
        replica_id: i32 = 0, 0..;
        isolation_level: i8 = 0, 2..;
        topics: Vec<ListOffsetsTopic<'a>> = Vec::new(), 0..;
        timeout_ms: i32 = 0, 10..;
    }

    ListOffsetsPartitionResponse {
        partition_index: i32 = 0, 0..;
        error_code: i16 = 0, 0..;
        timestamp: i64 = -1, 1..;
        offset: i64 = -1, 1..;
        leader_epoch: i32 = -1, 4..;
    }

    ListOffsetsTopicResponse<'a> {
        name: &'a str = "", 0..;
        partitions: Vec<ListOffsetsPartitionResponse> = Vec::new(), 0..;
    }

    Response<'a> {
        throttle_time_ms: i32 = 0, 2..;
        topics: Vec<ListOffsetsTopicResponse<'a>> = Vec::new(), 0..;
    }
}
