//! DescribeCluster (KIP-700): the nodes, and which of them leads the metadata.

use bytes::Bytes;

use super::{Handlers, Request, operations};
use crate::connection::Closed;
use crate::io::Io;
use crate::wire::api::describe_cluster::{DescribeClusterBroker, Request as Asked, Response};
use crate::wire::error::ErrorCode;

/// What a request may ask for (KIP-919): brokers or controllers.
const BROKERS: i8 = 1;
const CONTROLLERS: i8 = 2;

pub fn handle<I: Io>(handlers: &Handlers<I>, request: &Request<'_>) -> Result<Vec<Bytes>, Closed> {
    let asked: Asked = request.decode()?;
    if request.version() >= 1 && asked.endpoint_type != BROKERS {
        let (error, why) = if asked.endpoint_type == CONTROLLERS {
            let why = "this port answers for brokers, not for controllers";
            (ErrorCode::MISMATCHED_ENDPOINT_TYPE, why)
        } else {
            (ErrorCode::UNSUPPORTED_ENDPOINT_TYPE, "there is no such type of endpoint")
        };
        let response = Response {
            error_code: error.0,
            error_message: Some(why),
            endpoint_type: BROKERS,
            ..Response::default()
        };
        return Ok(request.answer(&response));
    }
    let image = handlers.image();
    let identity = &handlers.identity;
    let brokers = identity.brokers().map(|broker| DescribeClusterBroker {
        broker_id: broker.id,
        host: &identity.host,
        port: broker.port,
        rack: identity.rack.as_deref(),
        is_fenced: false,
    });
    let response = Response {
        endpoint_type: BROKERS,
        cluster_id: &image.cluster_id,
        controller_id: identity.controller().id,
        brokers: brokers.collect(),
        cluster_authorized_operations: operations::told(
            asked.include_cluster_authorized_operations,
            operations::CLUSTER,
        ),
        ..Response::default()
    };
    Ok(request.answer(&response))
}
