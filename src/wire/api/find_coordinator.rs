//! FindCoordinator (API key 10): the request's and the response's fields by version.

use crate::wire::message::messages;

messages! {
    Request<'a> {
        key: &'a str = "", 0..=3;
        key_type: i8 = 0, 1..;
        coordinator_keys: Vec<&'a str> = Vec::new(), 4..;
    }

    Coordinator<'a> {
        key: &'a str = "", 4..;
        node_id: i32 = 0, 4..;
        host: &'a str = "", 4..;
        port: i32 = 0, 4..;
        error_code: i16 = 0, 4..;
        error_message: Option<&'a str> = Some(""), 4.., null 4..;
    }

    Response<'a> {
        throttle_time_ms: i32 = 0, 1..;
        error_code: i16 = 0, 0..=3;
        error_message: Option<&'a str> = Some(""), 1..=3, null 1..=3;
        node_id: i32 = 0, 0..=3;
        host: &'a str = "", 0..=3;
        port: i32 = 0, 0..=3;
        coordinators: Vec<Coordinator<'a>> = Vec::new(), 4..;
    }
}
