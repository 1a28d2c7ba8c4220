//! Fetch (API key 1): the request's and the response's fields by version.

use crate::wire::message::messages;
use crate::wire::primitive::Uuid;

messages! {
    ReplicaState {
        replica_id: i32 = -1, 15..;
        replica_epoch: i64 = -1, 15..;
    }

    FetchPartition {
        partition: i32 = 0, 0..;
        current_leader_epoch: i32 = -1, 9..;
        fetch_offset: i64 = 0, 0..;
        last_fetched_epoch: i32 = -1, 12..;
        log_start_offset: i64 = -1, 5..;
        partition_max_bytes: i32 = 0, 0..;
        replica_directory_id: Uuid = Uuid::ZERO, 17.., tag 0 in 17..;
        high_watermark: i64 = i64::MAX, 18.., tag 1 in 18..;
    }

    FetchTopic<'a> {
        topic: &'a str = "", 0..=12;
        topic_id: Uuid = Uuid::ZERO, 13..;
        partitions: Vec<FetchPartition> = Vec::new(), 0..;
    }

    ForgottenTopic<'a> {
        topic: &'a str = "", 7..=12;
        topic_id: Uuid = Uuid::ZERO, 13..;
        partitions: Vec<i32> = Vec::new(), 7..;
    }

    Request<'a> {
        cluster_id: Option<&'a str> = None, 12.., null 12.., tag 0 in 12..;
        replica_id: i32 = -1, 0..=14;
        replica_state: ReplicaState = Default::default(), 15.., tag 1 in 15..;
        max_wait_ms: i32 = 0, 0..;
        min_bytes: i32 = 0, 0..;
        max_bytes: i32 = i32::MAX, 3..;
        isolation_level: i8 = 0, 4..;
        session_id: i32 = 0, 7..;
        session_epoch: i32 = -1, 7..;
        topics: Vec<FetchTopic<'a>> = Vec::new(), 0..;
        forgotten_topics_data: Vec<ForgottenTopic<'a>> = Vec::new(), 7..;
        rack_id: &'a str = "", 11..;
    }

    EpochEndOffset {
        epoch: i32 = -1, 12..;
        end_offset: i64 = -1, 12..;
    }

    LeaderIdAndEpoch {
        leader_id: i32 = -1, 12..;
        leader_epoch: i32 = -1, 12..;
    }

    SnapshotId {
        end_offset: i64 = -1, 0..;
        epoch: i32 = -1, 0..;
    }

    AbortedTransaction {
        producer_id: i64 = 0, 4..;
        first_offset: i64 = 0, 4..;
    }

    PartitionData<'a> {
        partition_index: i32 = 0, 0..;
        error_code: i16 = 0, 0..;
        high_watermark: i64 = 0, 0..;
        last_stable_offset: i64 = -1, 4..;
        log_start_offset: i64 = -1, 5..;
        diverging_epoch: EpochEndOffset = Default::default(), 12.., tag 0 in 12..;
        current_leader: LeaderIdAndEpoch = Default::default(), 12.., tag 1 in 12..;
        snapshot_id: SnapshotId = Default::default(), 12.., tag 2 in 12..;
        aborted_transactions: Option<Vec<AbortedTransaction>> = Some(Vec::new()), 4.., null 4..;
        preferred_read_replica: i32 = -1, 11..;
        records: Option<&'a [u8]> = None, 0.., null 0..;
    }

    FetchableTopicResponse<'a> {
        topic: &'a str = "", 0..=12;
        topic_id: Uuid = Uuid::ZERO, 13..;
        partitions: Vec<PartitionData<'a>> = Vec::new(), 0..;
    }

    NodeEndpoint<'a> {
        node_id: i32 = 0, 16..;
        host: &'a str = "", 16..;
        port: i32 = 0, 16..;
        rack: Option<&'a str> = None, 16.., null 16..;
    }

    Response<'a> {
        throttle_time_ms: i32 = 0, 1..;
        error_code: i16 = 0, 7..;
        session_id: i32 = 0, 7..;
        responses: Vec<FetchableTopicResponse<'a>> = Vec::new(), 0..;
        node_endpoints: Vec<NodeEndpoint<'a>> = Vec::new(), 16.., tag 0 in 16..;
    }
}
