//! DeleteRecords (API key 21): the request's and the response's fields by version.

use crate::wire::message::messages;

messages! {
    DeleteRecordsPartition {
        partition_index: i32 = 0, 0..;
        offset: i64 = 0, 0..;
    }

    DeleteRecordsTopic<'a> {
        name: &'a str = "", 0..;
        partitions: Vec<DeleteRecordsPartition> = Vec::new(), 0..;
    }

    Request<'a> {
        topics: Vec<DeleteRecordsTopic<'a>> = Vec::new(), 0..;
        timeout_ms: i32 = 0, 0..;
    }

    DeleteRecordsPartitionResult {
        partition_index: i32 = 0, 0..;
        low_watermark: i64 = 0, 0..;
        error_code: i16 = 0, 0..;
    }

    DeleteRecordsTopicResult<'a> {
        name: &'a str = "", 0..;
        partitions: Vec<DeleteRecordsPartitionResult> = Vec::new(), 0..;
    }

    Response<'a> {
        throttle_time_ms: i32 = 0, 0..;
        topics: Vec<DeleteRecordsTopicResult<'a>> = Vec::new(), 0..;
    }
}
