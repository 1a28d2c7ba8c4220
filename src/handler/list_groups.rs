//! ListGroups: the groups that the asked broker coordinates, filtered by state and type.

use std::rc::Rc;

use bytes::Bytes;

use super::{Handlers, Request};
use crate::connection::Closed;
use crate::group::{Groups, Listed};
use crate::io::Io;
use crate::wire::api::list_groups::{ListedGroup, Request as Asked, Response};

/// The only type of group that is served.
const CLASSIC: &str = "classic";

pub async fn handle<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    let asked: Asked<'_> = request.decode()?;
    let dispatch = &handlers.dispatch;
    let found: Vec<Vec<Listed>> = if handlers.identity.cores.is_some() {
        // A core that is a broker of its own answers for itself: clients ask every broker.
        vec![dispatch.local().with_groups(|groups| groups.list().collect())]
    } else {
        let list = |groups: &Groups| groups.list().collect();
        dispatch.call_all(move |owner| async move { owner.with_groups(list) }).await
    };
    let mut found: Vec<Listed> = found.into_iter().flatten().collect();
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
