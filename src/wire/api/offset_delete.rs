//! OffsetDelete (API key 47): the request's and the response's fields by version.

use crate::wire::message::messages;

messages! {
    OffsetDeleteRequestPartition {
        partition_index: i32 = 0, 0..;
    }

    OffsetDeleteRequestTopic<'a> {
        name: &'a str = "", 0..;
        partitions: Vec<OffsetDeleteRequestPartition> = Vec::new(), 0..;
    }

    Request<'a> {
        group_id: &'a str = "", 0..;
        topics: Vec<OffsetDeleteRequestTopic<'a>> = Vec::new(), 0..;
    }

    OffsetDeleteResponsePartition {
        partition_index: i32 = 0, 0..;
        error_code: i16 = 0, 0..;
    }

    OffsetDeleteResponseTopic<'a> {
        name: &'a str = "", 0..;
        partitions: Vec<OffsetDeleteResponsePartition> = Vec::new(), 0..;
    }

    Response<'a> {
        error_code: i16 = 0, 0..;
        throttle_time_ms: i32 = 0, 0..;
        topics: Vec<OffsetDeleteResponseTopic<'a>> = Vec::new(), 0..;
    }
}
