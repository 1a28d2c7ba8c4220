//! DescribeLogDirs (API key 35): the request's and the response's fields by version.

use crate::wire::message::messages;

messages! {
    DescribableLogDirTopic<'a> {
        topic: &'a str = "", 0..;
        partitions: Vec<i32> = Vec::new(), 0..;
    }

    Request<'a> {
        topics: Option<Vec<DescribableLogDirTopic<'a>>> = Some(Vec::new()), 0.., null 0..;
    }

    DescribeLogDirsPartition {
        partition_index: i32 = 0, 0..;
        partition_size: i64 = 0, 0..;
        offset_lag: i64 = 0, 0..;
        is_future_key: bool = false, 0..;
    }

    DescribeLogDirsTopic<'a> {
        name: &'a str = "", 0..;
        partitions: Vec<DescribeLogDirsPartition> = Vec::new(), 0..;
    }

    DescribeLogDirsResult<'a> {
        error_code: i16 = 0, 0..;
        log_dir: &'a str = "", 0..;
        topics: Vec<DescribeLogDirsTopic<'a>> = Vec::new(), 0..;
        total_bytes: i64 = -1, 4..;
        usable_bytes: i64 = -1, 4..;
    }

    Response<'a> {
        throttle_time_ms: i32 = 0, 0..;
        error_code: i16 = 0, 3..;
        results: Vec<DescribeLogDirsResult<'a>> = Vec::new(), 0..;
    }
}
