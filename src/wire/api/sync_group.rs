//! SyncGroup (API key 14): the request's and the response's fields by version.

use crate::wire::message::messages;

messages! {
    SyncGroupRequestAssignment<'a> {
        member_id: &'a str = "", 0..;
        assignment: &'a [u8] = &[], 0..;
    }

    Request<'a> {
        group_id: &'a str = "", 0..;
        generation_id: i32 = 0, 0..;
        member_id: &'a str = "", 0..;
        group_instance_id: Option<&'a str> = None, 3.., null 3..;
        protocol_type: Option<&'a str> = None, 5.., null 5..;
        protocol_name: Option<&'a str> = None, 5.., null 5..;
        assignments: Vec<SyncGroupRequestAssignment<'a>> = Vec::new(), 0..;
    }

    Response<'a> {
        throttle_time_ms: i32 = 0, 1..;
        error_code: i16 = 0, 0..;
        protocol_type: Option<&'a str> = None, 5.., null 5..;
        protocol_name: Option<&'a str> = None, 5.., null 5..;
        assignment: &'a [u8] = &[], 0..;
    }
}
