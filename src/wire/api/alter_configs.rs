//! AlterConfigs (API key 33): the request's and the response's fields by version.

use crate::wire::message::messages;

messages! {
    AlterableConfig<'a> {
        name: &'a str = "", 0..;
        value: Option<&'a str> = Some(""), 0.., null 0..;
    }

    AlterConfigsResource<'a> {
        resource_type: i8 = 0, 0..;
        resource_name: &'a str = "", 0..;
        configs: Vec<AlterableConfig<'a>> = Vec::new(), 0..;
    }

    Request<'a> {
        resources: Vec<AlterConfigsResource<'a>> = Vec::new(), 0..;
        validate_only: bool = false, 0..;
    }

    AlterConfigsResourceResponse<'a> {
        error_code: i16 = 0, 0..;
        error_message: Option<&'a str> = Some(""), 0.., null 0..;
        resource_type: i8 = 0, 0..;
        resource_name: &'a str = "", 0..;
    }

    Response<'a> {
        throttle_time_ms: i32 = 0, 0..;
        responses: Vec<AlterConfigsResourceResponse<'a>> = Vec::new(), 0..;
    }
}
