//! CreatePartitions (API key 37): the request's and the response's fields by version.

use crate::wire::message::messages;

messages! {
    CreatePartitionsAssignment {
        broker_ids: Vec<i32> = Vec::new(), 0..;
    }

    CreatePartitionsTopic<'a> {
        name: &'a str = "", 0..;
        count: i32 = 0, 0..;
        assignments: Option<Vec<CreatePartitionsAssignment>> = Some(Vec::new()), 0.., null 0..;
    }

    Request<'a> {
        topics: Vec<CreatePartitionsTopic<'a>> = Vec::new(), 0..;
        timeout_ms: i32 = 0, 0..;
        validate_only: bool = false, 0..;
    }

    CreatePartitionsTopicResult<'a> {
        name: &'a str = "", 0..;
        error_code: i16 = 0, 0..;
        error_message: Option<&'a str> = None, 0.., null 0..;
    }

    Response<'a> {
        throttle_time_ms: i32 = 0, 0..;
        results: Vec<CreatePartitionsTopicResult<'a>> = Vec::new(), 0..;
    }
}
