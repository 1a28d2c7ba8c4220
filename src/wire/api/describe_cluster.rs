//! DescribeCluster (API key 60): the request's and the response's fields by version.

use crate::wire::message::messages;

messages! {
    Request {
        include_cluster_authorized_operations: bool = false, 0..;
        endpoint_type: i8 = 1, 1..;
        include_fenced_brokers: bool = false, 2..;
    }

    DescribeClusterBroker<'a> {
        broker_id: i32 = 0, 0..;
        host: &'a str = "", 0..;
        port: i32 = 0, 0..;
        rack: Option<&'a str> = None, 0.., null 0..;
        is_fenced: bool = false, 2..;
    }

    Response<'a> {
        throttle_time_ms: i32 = 0, 0..;
        error_code: i16 = 0, 0..;
        error_message: Option<&'a str> = None, 0.., null 0..;
        endpoint_type: i8 = 1, 1..;
        cluster_id: &'a str = "", 0..;
        controller_id: i32 = -1, 0..;
        brokers: Vec<DescribeClusterBroker<'a>> = Vec::new(), 0..;
        cluster_authorized_operations: i32 = -2147483648, 0..;
    }
}
