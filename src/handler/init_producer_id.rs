//! InitProducerId: an id for an idempotent producer (KIP-98, KIP-360).

use std::rc::Rc;

use bytes::Bytes;

use super::{Handlers, Request};
use crate::base::ids::CoreId;
use crate::base::limits;
use crate::connection::Closed;
use crate::io::Io;
use crate::wire::api::init_producer_id::{Request as Asked, Response};
use crate::wire::error::ErrorCode;

pub async fn handle<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    let asked: Asked<'_> = request.decode()?;
    let outcome = give(handlers, &asked).await;
    let (producer_id, producer_epoch) = outcome.unwrap_or((-1, -1));
    let response = Response {
        error_code: outcome.err().unwrap_or(ErrorCode::NONE).0,
        producer_id,
        producer_epoch,
        ..Response::default()
    };
    Ok(request.answer(&response))
}

async fn give<I: Io>(
    handlers: &Rc<Handlers<I>>,
    asked: &Asked<'_>,
) -> Result<(i64, i16), ErrorCode> {
    if asked.transactional_id.is_some() {
        // Transactions are not served, which must be said before a record is written in one.
        return Err(ErrorCode::INVALID_REQUEST);
    }
    let has_id = asked.producer_id != -1;
    if has_id != (asked.producer_epoch != -1) {
        return Err(ErrorCode::INVALID_REQUEST);
    }
    // Without a transactional id nothing shows whose an id is, so a claimed one is never given out
    // again: clients raise the epoch of their own id by themselves (KIP-360).
    let (mut next, mut end) = handlers.producer_ids.get();
    if next == end {
        let reserved = handlers
            .dispatch
            .call(CoreId::FIRST, |owner| async move { owner.reserve_producer_ids().await })
            .await;
        next = reserved.unwrap_or(Err(ErrorCode::COORDINATOR_NOT_AVAILABLE))?;
        end = next + limits::PRODUCER_ID_BLOCK;
    }
    handlers.producer_ids.set((next + 1, end));
    Ok((next, 0))
}
