//! LeaveGroup: members leave, one before version 3, several by id or instance from there.

use std::rc::Rc;

use bytes::Bytes;

use super::groups::unexpected;
use super::{Handlers, Request};
use crate::connection::Closed;
use crate::group::{Answer, Leaver, Request as GroupRequest};
use crate::io::Io;
use crate::wire::api::leave_group::{MemberResponse, Request as Asked, Response};

/// The version from which several members may leave at once (KIP-345).
const BATCHED_FROM: i16 = 3;

pub async fn handle<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    let asked: Asked<'_> = request.decode()?;
    let is_batched = request.version() >= BATCHED_FROM;
    let leavers = if is_batched {
        let named = asked.members.iter().map(|member| Leaver {
            member_id: member.member_id.to_string(),
            instance_id: member.group_instance_id.map(str::to_string),
        });
        named.collect()
    } else {
        vec![Leaver { member_id: asked.member_id.to_string(), instance_id: None }]
    };
    let answer = handlers.ask_group(asked.group_id, GroupRequest::Leave(leavers)).await;
    let (error, members) = match answer {
        Ok(Answer::Leave { error, members }) => (error, members),
        Ok(other) => (unexpected(&other), Vec::new()),
        Err(error) => (error, Vec::new()),
    };
    // An old client knows only the request's own error.
    let only = members.first().map(|(_, error)| *error).filter(|_| !is_batched);
    let error = if error.is_error() { error } else { only.unwrap_or(error) };
    let members = members.iter().map(|(leaver, error)| MemberResponse {
        member_id: &leaver.member_id,
        group_instance_id: leaver.instance_id.as_deref(),
        error_code: error.0,
    });
    let response =
        Response { error_code: error.0, members: members.collect(), ..Response::default() };
    Ok(request.answer(&response))
}
