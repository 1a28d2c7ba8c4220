//! LeaveGroup (API key 13): the request's and the response's fields by version.

use crate::wire::message::messages;

messages! {
    MemberIdentity<'a> {
        member_id: &'a str = "", 3..;
        group_instance_id: Option<&'a str> = None, 3.., null 3..;
        reason: Option<&'a str> = None, 5.., null 5..;
    }

    Request<'a> {
        group_id: &'a str = "", 0..;
        member_id: &'a str = "", 0..=2;
        members: Vec<MemberIdentity<'a>> = Vec::new(), 3..;
    }

    MemberResponse<'a> {
        member_id: &'a str = "", 3..;
        group_instance_id: Option<&'a str> = Some(""), 3.., null 3..;
        error_code: i16 = 0, 3..;
    }

    Response<'a> {
        throttle_time_ms: i32 = 0, 1..;
        error_code: i16 = 0, 0..;
        members: Vec<MemberResponse<'a>> = Vec::new(), 3..;
    }
}
