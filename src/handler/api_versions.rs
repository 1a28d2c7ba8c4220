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
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
        text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(legal)
    };
    // From version 3 on the client says who it is, and must do so in letters and digits.
    let is_named = request.version() < 3
        || (named(asked.client_software_name) && named(asked.client_software_version));
    let error = if is_named { ErrorCode::NONE } else { ErrorCode::INVALID_REQUEST };
    Ok(request.answer(&response(error)))
}

/// The answer to a version that is not served: in version 0, which every client reads.
pub fn unsupported_api_versions(correlation: i32) -> Vec<Bytes> {
    frame(ApiKey::ApiVersions, 0, correlation, &response(ErrorCode::UNSUPPORTED_VERSION))
}

fn response(error: ErrorCode) -> Response<'static> {
    let api_keys = ApiKey::ALL.iter().map(|api| {
        let (min_version, max_version) = api.advertised().into_inner();
        ApiVersion { api_key: *api as i16, min_version, max_version }
    });
    Response { error_code: error.0, api_keys: api_keys.collect(), ..Response::default() }
}
