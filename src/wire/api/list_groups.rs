//! ListGroups (API key 16): the request's and the response's fields by version.

use crate::wire::message::messages;

messages! {
    Request<'a> {
        states_filter: Vec<&'a str> = Vec::new(), 4..;
        types_filter: Vec<&'a str> = Vec::new(), 5..;
    }

    ListedGroup<'a> {
        group_id: &'a str = "", 0..;
        protocol_type: &'a str = "", 0..;
        group_state: &'a str = "", 4..;
        group_type: &'a str = "", 5..;
    }

    Response<'a> {
        throttle_time_ms: i32 = 0, 1..;
        error_code: i16 = 0, 0..;
        groups: Vec<ListedGroup<'a>> = Vec::new(), 0..;
    }
}
