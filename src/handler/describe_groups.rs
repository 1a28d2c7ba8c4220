//! DescribeGroups: state and members of groups.

use std::rc::Rc;

use bytes::Bytes;

use super::{Handlers, Request, operations};
use crate::connection::Closed;
use crate::group::Described;
use crate::io::Io;
use crate::wire::api::describe_groups::{
    DescribedGroup, DescribedGroupMember, Request as Asked, Response,
};
use crate::wire::error::ErrorCode;

/// The version from which an unknown group is an error rather than a dead group (KIP-1043).
const NOT_FOUND_FROM: i16 = 6;

pub async fn handle<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    let mut asked: Asked<'_> = request.decode()?;
    super::keep_first_mentions(&mut asked.groups);
    let lookups = asked.groups.iter().map(|group_id| describe(handlers, group_id));
    let found = super::in_turns(lookups).await;
    let groups = asked.groups.iter().zip(&found).map(|(group_id, found)| match found {
        Ok(Some(described)) => {
            let asked = asked.include_authorized_operations;
            let authorized_operations = operations::told(asked, operations::GROUP);
            DescribedGroup { authorized_operations, ..group(described) }
        }
        Ok(None) => unknown(group_id, request.version()),
        Err(error) => DescribedGroup { error_code: error.0, group_id, ..DescribedGroup::default() },
    });
    Ok(request.answer(&Response { groups: groups.collect(), ..Response::default() }))
}

async fn describe<I: Io>(
    handlers: &Rc<Handlers<I>>,
    group_id: &str,
) -> Result<Option<Described>, ErrorCode> {
    let core = handlers.dispatch.owner_of(handlers.coordinator_of(group_id).await?);
    let group_id = group_id.to_string();
    handlers
        .dispatch
        .call(
            core,
            move |owner| async move { owner.with_groups(|groups| groups.describe(&group_id)) },
        )
        .await
        .map_err(|_| ErrorCode::COORDINATOR_NOT_AVAILABLE)
}

fn unknown(group_id: &str, version: i16) -> DescribedGroup<'_> {
    let is_error = version >= NOT_FOUND_FROM;
    DescribedGroup {
        error_code: if is_error { ErrorCode::GROUP_ID_NOT_FOUND.0 } else { 0 },
        error_message: is_error.then_some("there is no such group"),
        group_id,
        group_state: "Dead",
        ..DescribedGroup::default()
    }
}

fn group(described: &Described) -> DescribedGroup<'_> {
    let members = described.members.iter().map(|member| DescribedGroupMember {
        member_id: &member.member_id,
        group_instance_id: member.instance_id.as_deref(),
        client_id: &member.client_id,
        client_host: &member.client_host,
        member_metadata: &member.metadata,
        member_assignment: &member.assignment,
    });
    DescribedGroup {
        group_id: &described.group_id,
        group_state: described.state,
        protocol_type: &described.protocol_type,
        protocol_data: &described.protocol,
        members: members.collect(),
        ..DescribedGroup::default()
    }
}
