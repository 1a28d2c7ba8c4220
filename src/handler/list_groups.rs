//! ListGroups: the groups of all cores, filtered by state and type.

use std::rc::Rc;

use bytes::Bytes;

use super::{Handlers, Request};
use crate::connection::Closed;
use crate::group::Listed;
use crate::io::Io;
use crate::wire::api::list_groups::{ListedGroup, Request as Asked, Response};

/// The only type of group that is served.
const CLASSIC: &str = "classic";

pub async fn handle<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    let asked: Asked<'_> = request.decode()?;
    let found = handlers
        .dispatch
        .call_all(|owner| async move { owner.with_groups(|groups| groups.list().collect()) })
        .await;
    let mut found: Vec<Listed> = found.into_iter().flat_map(|listed: Vec<Listed>| listed).collect();
    found.sort_by(|one, two| one.group_id.cmp(&two.group_id));
    let any = |filter: &[&str], value: &str| {
        filter.is_empty() || filter.iter().any(|wanted| wanted.eq_ignore_ascii_case(value))
    };
    let groups = found
        .iter()
        .filter(|listed| any(&asked.states_filter, listed.state))
        .filter(|_| any(&asked.types_filter, CLASSIC))
        .map(|listed| ListedGroup {
            group_id: &listed.group_id,
            protocol_type: &listed.protocol_type,
            group_state: listed.state,
            group_type: CLASSIC,
        });
    Ok(request.answer(&Response { groups: groups.collect(), ..Response::default() }))
}
