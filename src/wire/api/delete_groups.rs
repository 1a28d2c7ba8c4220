//! DeleteGroups (API key 42): the request's and the response's fields by version.

use crate::wire::message::messages;

messages! {
    Request<'a> {
        groups_names: Vec<&'a str> = Vec::new(), 0..;
    }

    DeletableGroupResult<'a> {
        group_id: &'a str = "", 0..;
        error_code: i16 = 0, 0..;
    }

    Response<'a> {
        throttle_time_ms: i32 = 0, 0..;
        results: Vec<DeletableGroupResult<'a>> = Vec::new(), 0..;
    }
}
