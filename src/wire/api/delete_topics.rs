//! DeleteTopics (API key 20): the request's and the response's fields by version.

use crate::wire::message::messages;
use crate::wire::primitive::Uuid;

messages! {
    DeleteTopicState<'a> {
        name: Option<&'a str> = None, 6.., null 6..;
        topic_id: Uuid = Uuid::ZERO, 6..;
    }

    Request<'a> {
        topics: Vec<DeleteTopicState<'a>> = Vec::new(), 6..;
        topic_names: Vec<&'a str> = Vec::new(), 0..=5;
        timeout_ms: i32 = 0, 0..;
    }

    DeletableTopicResult<'a> {
        name: Option<&'a str> = Some(""), 0.., null 6..;
        topic_id: Uuid = Uuid::ZERO, 6..;
        error_code: i16 = 0, 0..;
        error_message: Option<&'a str> = None, 5.., null 5..;
    }

    Response<'a> {
        throttle_time_ms: i32 = 0, 1..;
        responses: Vec<DeletableTopicResult<'a>> = Vec::new(), 0..;
    }
}
