//! Heartbeat (API key 12): the request's and the response's fields by version.

use crate::wire::message::messages;

messages! {
    Request<'a> {
        group_id: &'a str = "", 0..;
        generation_id: i32 = 0, 0..;
        member_id: &'a str = "", 0..;
        group_instance_id: Option<&'a str> = None, 3.., null 3..;
    }

    Response {
        throttle_time_ms: i32 = 0, 1..;
        error_code: i16 = 0, 0..;
    }
}
