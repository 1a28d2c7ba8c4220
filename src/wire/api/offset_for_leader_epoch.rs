//! OffsetForLeaderEpoch (API key 23): the request's and the response's fields by version.

use crate::wire::message::messages;

messages! {
    OffsetForLeaderPartition {
        partition: i32 = 0, 0..;
        current_leader_epoch: i32 = -1, 2..;
        leader_epoch: i32 = 0, 0..;
    }

    OffsetForLeaderTopic<'a> {
        topic: &'a str = "", 0..;
        partitions: Vec<OffsetForLeaderPartition> = Vec::new(), 0..;
    }

    Request<'a> {
        replica_id: i32 = -2, 3..;
        topics: Vec<OffsetForLeaderTopic<'a>> = Vec::new(), 0..;
    }

    EpochEndOffset {
        error_code: i16 = 0, 0..;
        partition: i32 = 0, 0..;
        leader_epoch: i32 = -1, 1..;
        end_offset: i64 = -1, 0..;
    }

    OffsetForLeaderTopicResult<'a> {
        topic: &'a str = "", 0..;
        partitions: Vec<EpochEndOffset> = Vec::new(), 0..;
    }

    Response<'a> {
        throttle_time_ms: i32 = 0, 2..;
        topics: Vec<OffsetForLeaderTopicResult<'a>> = Vec::new(), 0..;
    }
}
