//! JoinGroup (API key 11): the request's and the response's fields by version.

use crate::wire::message::messages;

messages! {
    JoinGroupRequestProtocol<'a> {
        name: &'a str = "", 0..;
        metadata: &'a [u8] = &[], 0..;
    }

    Request<'a> {
        group_id: &'a str = "", 0..;
        session_timeout_ms: i32 = 0, 0..;
        rebalance_timeout_ms: i32 = -1, 1..;
        member_id: &'a str = "", 0..;
        group_instance_id: Option<&'a str> = None, 5.., null 5..;
        protocol_type: &'a str = "", 0..;
        protocols: Vec<JoinGroupRequestProtocol<'a>> = Vec::new(), 0..;
        reason: Option<&'a str> = None, 8.., null 8..;
    }

    JoinGroupResponseMember<'a> {
        member_id: &'a str = "", 0..;
        group_instance_id: Option<&'a str> = None, 5.., null 5..;
        metadata: &'a [u8] = &[], 0..;
    }

    Response<'a> {
        throttle_time_ms: i32 = 0, 2..;
        error_code: i16 = 0, 0..;
        generation_id: i32 = -1, 0..;
        protocol_type: Option<&'a str> = None, 7.., null 7..;
        protocol_name: Option<&'a str> = Some(""), 0.., null 7..;
        leader: &'a str = "", 0..;
        skip_assignment: bool = false, 9..;
        member_id: &'a str = "", 0..;
        members: Vec<JoinGroupResponseMember<'a>> = Vec::new(), 0..;
    }
}
