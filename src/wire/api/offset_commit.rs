//! OffsetCommit (API key 8): the request's and the response's fields by version.

use crate::wire::message::messages;
use crate::wire::primitive::Uuid;

messages! {
    OffsetCommitRequestPartition<'a> {
        partition_index: i32 = 0, 0..;
        committed_offset: i64 = 0, 0..;
        committed_leader_epoch: i32 = -1, 6..;
        committed_metadata: Option<&'a str> = Some(""), 0.., null 0..;
    }

    OffsetCommitRequestTopic<'a> {
        name: &'a str = "", 0..=9;
        topic_id: Uuid = Uuid::ZERO, 10..;
        partitions: Vec<OffsetCommitRequestPartition<'a>> = Vec::new(), 0..;
    }

    Request<'a> {
        group_id: &'a str = "", 0..;
        generation_id_or_member_epoch: i32 = -1, 1..;
        member_id: &'a str = "", 1..;
        group_instance_id: Option<&'a str> = None, 7.., null 7..;
        retention_time_ms: i64 = -1, 2..=4;
        topics: Vec<OffsetCommitRequestTopic<'a>> = Vec::new(), 0..;
    }

    OffsetCommitResponsePartition {
        partition_index: i32 = 0, 0..;
        error_code: i16 = 0, 0..;
    }

    OffsetCommitResponseTopic<'a> {
        name: &'a str = "", 0..=9;
        topic_id: Uuid = Uuid::ZERO, 10..;
        partitions: Vec<OffsetCommitResponsePartition> = Vec::new(), 0..;
    }

    Response<'a> {
        throttle_time_ms: i32 = 0, 3..;
        topics: Vec<OffsetCommitResponseTopic<'a>> = Vec::new(), 0..;
    }
}
