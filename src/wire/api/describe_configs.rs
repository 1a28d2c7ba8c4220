//! DescribeConfigs (API key 32): the request's and the response's fields by version.

use crate::wire::message::messages;

messages! {
    DescribeConfigsResource<'a> {
        resource_type: i8 = 0, 0..;
        resource_name: &'a str = "", 0..;
        configuration_keys: Option<Vec<&'a str>> = Some(Vec::new()), 0.., null 0..;
    }

    Request<'a> {
        resources: Vec<DescribeConfigsResource<'a>> = Vec::new(), 0..;
        include_synonyms: bool = false, 1..;
        include_documentation: bool = false, 3..;
    }

    DescribeConfigsSynonym<'a> {
        name: &'a str = "", 1..;
        value: Option<&'a str> = Some(""), 1.., null 0..;
        source: i8 = 0, 1..;
    }

    DescribeConfigsResourceResult<'a> {
        name: &'a str = "", 0..;
        value: Option<&'a str> = Some(""), 0.., null 0..;
        read_only: bool = false, 0..;
        config_source: i8 = -1, 1..;
        is_sensitive: bool = false, 0..;
        synonyms: Vec<DescribeConfigsSynonym<'a>> = Vec::new(), 1..;
        config_type: i8 = 0, 3..;
        documentation: Option<&'a str> = Some(""), 3.., null 0..;
    }

    DescribeConfigsResult<'a> {
        error_code: i16 = 0, 0..;
        error_message: Option<&'a str> = Some(""), 0.., null 0..;
        resource_type: i8 = 0, 0..;
        resource_name: &'a str = "", 0..;
        configs: Vec<DescribeConfigsResourceResult<'a>> = Vec::new(), 0..;
    }

    Response<'a> {
        throttle_time_ms: i32 = 0, 0..;
        results: Vec<DescribeConfigsResult<'a>> = Vec::new(), 0..;
    }
}
