//! Heartbeat: a member says that it lives, and hears whether its group rebalances.

use std::rc::Rc;

use bytes::Bytes;

use super::groups::unexpected;
use super::{Handlers, Request};
use crate::connection::Closed;
use crate::group::{Answer, Heartbeat, Request as GroupRequest};
use crate::io::Io;
use crate::wire::api::heartbeat::{Request as Asked, Response};

pub async fn handle<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    let asked: Asked<'_> = request.decode()?;
    let heartbeat = Heartbeat {
        generation: asked.generation_id,
        member_id: asked.member_id.to_string(),
        instance_id: asked.group_instance_id.map(str::to_string),
    };
    let asked_group = handlers.ask_group(asked.group_id, GroupRequest::Heartbeat(heartbeat));
    let error = match asked_group.await {
        Ok(Answer::Heartbeat(error)) | Err(error) => error,
        Ok(other) => unexpected(&other),
    };
    Ok(request.answer(&Response { error_code: error.0, ..Response::default() }))
}
