//! DescribeCluster (KIP-700): the nodes, and which of them leads the metadata.

use bytes::Bytes;

use super::{Handlers, Request};
use crate::connection::Closed;
use crate::io::Io;
use crate::wire::api::describe_cluster::{DescribeClusterBroker, Request as Asked, Response};
use crate::wire::error::ErrorCode;

/// What a request may ask for (KIP-919): brokers or controllers.
const BROKERS: i8 = 1;

pub fn handle<I: Io>(handlers: &Handlers<I>, request: &Request<'_>) -> Result<Vec<Bytes>, Closed> {
    let asked: Asked = request.decode()?;
    if request.version() >= 1 && asked.endpoint_type != BROKERS {
        let response = Response {
            error_code: ErrorCode::MISMATCHED_ENDPOINT_TYPE.0,
            error_message: Some("this port answers for brokers, not for controllers"),
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
        ..Response::default()
    };
    Ok(request.answer(&response))
}
