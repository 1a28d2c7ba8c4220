//! SyncGroup: hands out the leader's assignment.

use std::rc::Rc;

use bytes::Bytes;

use super::groups::unexpected;
use super::{Handlers, Request};
use crate::connection::Closed;
use crate::group::{Answer, Request as GroupRequest, Sync, SyncAnswer};
use crate::io::Io;
use crate::wire::api::sync_group::{Request as Asked, Response};
use crate::wire::error::ErrorCode;

/// The version from which a member must say by which protocol it was assigned (KIP-559).
const PROTOCOL_FROM: i16 = 5;

pub async fn handle<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    let asked: Asked<'_> = request.decode()?;
    let assignments = asked.assignments.iter().map(|assigned| {
        (assigned.member_id.to_string(), Bytes::copy_from_slice(assigned.assignment))
    });
    let sync = Sync {
        generation: asked.generation_id,
        member_id: asked.member_id.to_string(),
        instance_id: asked.group_instance_id.map(str::to_string),
        protocol_type: asked.protocol_type.map(str::to_string),
        protocol_name: asked.protocol_name.map(str::to_string),
        assignments: assignments.collect(),
    };
    let is_whole = sync.protocol_type.is_some() && sync.protocol_name.is_some();
    let outcome = if request.version() >= PROTOCOL_FROM && !is_whole {
        Err(ErrorCode::INCONSISTENT_GROUP_PROTOCOL)
    } else {
        handlers.ask_group(asked.group_id, GroupRequest::Sync(sync)).await
    };
    let answer = match outcome {
        Ok(Answer::Sync(answer)) => answer,
        Ok(other) => refused(unexpected(&other)),
        Err(error) => refused(error),
    };
    let response = Response {
        error_code: answer.error.0,
        protocol_type: answer.protocol_type.as_deref(),
        protocol_name: answer.protocol_name.as_deref(),
        assignment: &answer.assignment,
        ..Response::default()
    };
    Ok(request.answer(&response))
}

fn refused(error: ErrorCode) -> SyncAnswer {
    SyncAnswer { error, protocol_type: None, protocol_name: None, assignment: Bytes::new() }
}
