//! OffsetFetch (API key 9): the request's and the response's fields by version.

use crate::wire::message::messages;
use crate::wire::primitive::Uuid;

messages! {
    OffsetFetchRequestTopic<'a> {
        name: &'a str = "", 0..=7;
        partition_indexes: Vec<i32> = Vec::new(), 0..=7;
    }

    OffsetFetchRequestTopics<'a> {
        name: &'a str = "", 8..=9;
        topic_id: Uuid = Uuid::ZERO, 10..;
        partition_indexes: Vec<i32> = Vec::new(), 8..;
    }

    OffsetFetchRequestGroup<'a> {
        group_id: &'a str = "", 8..;
        member_id: Option<&'a str> = None, 9.., null 9..;
        member_epoch: i32 = -1, 9..;
        topics: Option<Vec<OffsetFetchRequestTopics<'a>>> = Some(Vec::new()), 8.., null 8..;
    }

    Request<'a> {
        group_id: &'a str = "", 0..=7;
        topics: Option<Vec<OffsetFetchRequestTopic<'a>>> = Some(Vec::new()), 0..=7, null 2..=7;
        groups: Vec<OffsetFetchRequestGroup<'a>> = Vec::new(), 8..;
        require_stable: bool = false, 7..;
    }

    OffsetFetchResponsePartition<'a> {
        partition_index: i32 = 0, 0..=7;
        committed_offset: i64 = 0, 0..=7;
        committed_leader_epoch: i32 = -1, 5..=7;
        metadata: Option<&'a str> = Some(""), 0..=7, null 0..=7;
        error_code: i16 = 0, 0..=7;
    }

    OffsetFetchResponseTopic<'a> {
        name: &'a str = "", 0..=7;
        partitions: Vec<OffsetFetchResponsePartition<'a>> = Vec::new(), 0..=7;
    }

    OffsetFetchResponsePartitions<'a> {
        partition_index: i32 = 0, 8..;
        committed_offset: i64 = 0, 8..;
        committed_leader_epoch: i32 = -1, 8..;
        metadata: Option<&'a str> = Some(""), 8.., null 8..;
        error_code: i16 = 0, 8..;
    }

    OffsetFetchResponseTopics<'a> {
        name: &'a str = "", 8..=9;
        topic_id: Uuid = Uuid::ZERO, 10..;
        partitions: Vec<OffsetFetchResponsePartitions<'a>> = Vec::new(), 8..;
    }

    OffsetFetchResponseGroup<'a> {
        group_id: &'a str = "", 8..;
        topics: Vec<OffsetFetchResponseTopics<'a>> = Vec::new(), 8..;
        error_code: i16 = 0, 8..;
    }

    Response<'a> {
        throttle_time_ms: i32 = 0, 3..;
        topics: Vec<OffsetFetchResponseTopic<'a>> = Vec::new(), 0..=7;
        error_code: i16 = 0, 2..=7;
        groups: Vec<OffsetFetchResponseGroup<'a>> = Vec::new(), 8..;
    }
}
