//! JoinGroup: enters a group and waits for its rebalance.

use std::rc::Rc;

use bytes::Bytes;

use super::groups::unexpected;
use super::{Handlers, Request};
use crate::connection::Closed;
use crate::group::{Answer, Join, JoinAnswer, Request as GroupRequest};
use crate::io::Io;
use crate::wire::api::join_group::{JoinGroupResponseMember, Request as Asked, Response};
use crate::wire::error::ErrorCode;

/// The version from which a member must come back with the id it was given (KIP-394).
const MEMBER_ID_REQUIRED_FROM: i16 = 4;
/// The version from which a leader may be told to skip the assignment (KIP-814).
const SKIP_ASSIGNMENT_FROM: i16 = 9;
/// The version from which the protocol's name may be null (KIP-559).
const NULL_PROTOCOL_FROM: i16 = 7;

pub async fn handle<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    let asked: Asked<'_> = request.decode()?;
    let join = join_of(handlers, request, &asked);
    let answer = match handlers.ask_group(asked.group_id, GroupRequest::Join(join)).await {
        Ok(Answer::Join(answer)) => answer,
        Ok(other) => refused(unexpected(&other), asked.member_id),
        Err(error) => refused(error, asked.member_id),
    };
    let members = answer.members.iter().map(|member| JoinGroupResponseMember {
        member_id: &member.member_id,
        group_instance_id: member.instance_id.as_deref(),
        metadata: &member.metadata,
    });
    let protocol_name = answer.protocol_name.as_deref();
    let response = Response {
        error_code: answer.error.0,
        generation_id: answer.generation,
        protocol_type: answer.protocol_type.as_deref(),
        protocol_name: protocol_name.or((request.version() < NULL_PROTOCOL_FROM).then_some("")),
        leader: &answer.leader,
        skip_assignment: answer.skip_assignment,
        member_id: &answer.member_id,
        members: members.collect(),
        ..Response::default()
    };
    Ok(request.answer(&response))
}

fn join_of<I: Io>(handlers: &Handlers<I>, request: &Request<'_>, asked: &Asked<'_>) -> Join {
    let random = u128::from(handlers.io().random()) << 64 | u128::from(handlers.io().random());
    let protocols = asked
        .protocols
        .iter()
        .map(|protocol| (protocol.name.to_string(), Bytes::copy_from_slice(protocol.metadata)));
    Join {
        member_id: asked.member_id.to_string(),
        instance_id: asked.group_instance_id.map(str::to_string),
        client_id: request.header.client_id.unwrap_or("").to_string(),
        client_host: format!("/{}", request.peer.ip()),
        session_timeout_ms: asked.session_timeout_ms,
        rebalance_timeout_ms: asked.rebalance_timeout_ms,
        protocol_type: asked.protocol_type.to_string(),
        protocols: protocols.collect(),
        reason: asked.reason.map(str::to_string),
        require_member_id: request.version() >= MEMBER_ID_REQUIRED_FROM,
        may_skip_assignment: request.version() >= SKIP_ASSIGNMENT_FROM,
        random,
    }
}

fn refused(error: ErrorCode, member_id: &str) -> JoinAnswer {
    JoinAnswer {
        error,
        generation: -1,
        protocol_type: None,
        protocol_name: None,
        leader: String::new(),
        skip_assignment: false,
        member_id: member_id.to_string(),
        members: Vec::new(),
    }
}
