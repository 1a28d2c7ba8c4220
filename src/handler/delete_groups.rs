//! DeleteGroups: empty groups with all their offsets.

use std::rc::Rc;

use bytes::Bytes;

use super::groups::unexpected;
use super::{Handlers, Request};
use crate::connection::Closed;
use crate::group::{Answer, Request as GroupRequest};
use crate::io::Io;
use crate::wire::api::delete_groups::{DeletableGroupResult, Request as Asked, Response};

pub async fn handle<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    let asked: Asked<'_> = request.decode()?;
    let mut results = Vec::with_capacity(asked.groups_names.len());
    for group_id in &asked.groups_names {
        let error = match handlers.ask_group(group_id, GroupRequest::DeleteGroup).await {
            Ok(Answer::DeleteGroup(error)) | Err(error) => error,
            Ok(other) => unexpected(&other),
        };
        results.push(DeletableGroupResult { group_id, error_code: error.0 });
    }
    Ok(request.answer(&Response { results, ..Response::default() }))
}
