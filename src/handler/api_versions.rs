//! ApiVersions (KIP-35, KIP-511): what is served, also to clients of versions that are not.

use bytes::Bytes;

use super::{Request, frame};
use crate::connection::Closed;
use crate::wire::api::ApiKey;
use crate::wire::api::api_versions::{ApiVersion, Response};
use crate::wire::error::ErrorCode;

pub fn handle(request: &Request<'_>) -> Result<Vec<Bytes>, Closed> {
    let asked = request.decode::<crate::wire::api::api_versions::Request<'_>>()?;
    let named = |text: &str| {
        let is_plain = |c: char| c.is_ascii_alphanumeric();
        let is_legal = |c: char| is_plain(c) || matches!(c, '.' | '-');
        text.starts_with(is_plain) && text.ends_with(is_plain) && text.chars().all(is_legal)
    };
    // From version 3 on the client says who it is, and must do so in letters and digits.
    let is_named = request.version() < 3
        || (named(asked.client_software_name) && named(asked.client_software_version));
    if !is_named {
        let error_code = ErrorCode::INVALID_REQUEST.0;
        return Ok(request.answer(&Response { error_code, ..Response::default() }));
    }
    Ok(request.answer(&response(ErrorCode::NONE)))
}

/// The answer to a version that is not served: in version 0, which every client reads.
pub fn unsupported_api_versions(correlation: i32) -> Vec<Bytes> {
    frame(ApiKey::ApiVersions, 0, correlation, &response(ErrorCode::UNSUPPORTED_VERSION))
}

fn response(error: ErrorCode) -> Response<'static> {
    let api_keys = ApiKey::ALL.iter().filter(|api| api.is_served()).map(|api| {
        let (min_version, max_version) = api.advertised().into_inner();
        ApiVersion { api_key: *api as i16, min_version, max_version }
    });
    Response { error_code: error.0, api_keys: api_keys.collect(), ..Response::default() }
}
