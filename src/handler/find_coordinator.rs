//! FindCoordinator: who keeps a group. On a single node, this node.

use std::rc::Rc;

use bytes::Bytes;

use super::{Broker, Handlers, Request};
use crate::connection::Closed;
use crate::io::Io;
use crate::wire::api::find_coordinator::{Coordinator, Request as Asked, Response};
use crate::wire::error::ErrorCode;

/// Kafka's number of the kind "group"; transactions and share groups are not served.
const GROUP: i8 = 0;
/// The version from which several keys are asked for at once.
const BATCHED_FROM: i16 = 4;

pub async fn handle<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    let asked: Asked<'_> = request.decode()?;
    let identity = handlers.identity.clone();
    let is_batched = request.version() >= BATCHED_FROM;
    let mut keys = if is_batched { asked.coordinator_keys.clone() } else { vec![asked.key] };
    super::keep_first_mentions(&mut keys);
    let mut coordinators = Vec::with_capacity(keys.len());
    for key in keys {
        let found = find(handlers, asked.key_type, key).await;
        let error = found.err().unwrap_or(ErrorCode::NONE);
        let broker = found.unwrap_or(Broker { id: -1, port: -1 });
        let is_found = !error.is_error();
        coordinators.push(Coordinator {
            key,
            node_id: broker.id,
            host: if is_found { &identity.host } else { "" },
            port: broker.port,
            error_code: error.0,
            error_message: error.name().filter(|_| error.is_error()),
        });
    }
    if is_batched {
        return Ok(request.answer(&Response { coordinators, ..Response::default() }));
    }
    let only = coordinators.into_iter().next().unwrap_or_default();
    let response = Response {
        error_code: only.error_code,
        error_message: only.error_message,
        node_id: only.node_id,
        host: only.host,
        port: only.port,
        ..Response::default()
    };
    Ok(request.answer(&response))
}

async fn find<I: Io>(handlers: &Rc<Handlers<I>>, kind: i8, key: &str) -> Result<Broker, ErrorCode> {
    if kind != GROUP {
        return Err(ErrorCode::INVALID_REQUEST);
    }
    let partition = handlers.coordinator_of(key).await?;
    Ok(handlers.identity.broker_of(handlers.dispatch.owner_of(partition)))
}
