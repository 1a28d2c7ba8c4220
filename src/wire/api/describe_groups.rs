//! DescribeGroups (API key 15): the request's and the response's fields by version.

use crate::wire::message::messages;

messages! {
    Request<'a> {
        groups: Vec<&'a str> = Vec::new(), 0..;
        include_authorized_operations: bool = false, 3..;
    }

    DescribedGroupMember<'a> {
        member_id: &'a str = "", 0..;
        group_instance_id: Option<&'a str> = None, 4.., null 4..;
        client_id: &'a str = "", 0..;
        client_host: &'a str = "", 0..;
        member_metadata: &'a [u8] = &[], 0..;
        member_assignment: &'a [u8] = &[], 0..;
    }

    DescribedGroup<'a> {
        error_code: i16 = 0, 0..;
        error_message: Option<&'a str> = None, 6.., null 6..;
        group_id: &'a str = "", 0..;
        group_state: &'a str = "", 0..;
        protocol_type: &'a str = "", 0..;
        protocol_data: &'a str = "", 0..;
        members: Vec<DescribedGroupMember<'a>> = Vec::new(), 0..;
        authorized_operations: i32 = -2147483648, 3..;
    }

    Response<'a> {
        throttle_time_ms: i32 = 0, 1..;
        groups: Vec<DescribedGroup<'a>> = Vec::new(), 0..;
    }
}
