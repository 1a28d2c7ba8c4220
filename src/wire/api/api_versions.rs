//! ApiVersions (API key 18): the request's and the response's fields by version.

use crate::wire::message::messages;

messages! {
    Request<'a> {
        client_software_name: &'a str = "", 3..;
        client_software_version: &'a str = "", 3..;
    }

    ApiVersion {
        api_key: i16 = 0, 0..;
        min_version: i16 = 0, 0..;
        max_version: i16 = 0, 0..;
    }

    SupportedFeatureKey<'a> {
        name: &'a str = "", 3..;
        min_version: i16 = 0, 3..;
        max_version: i16 = 0, 3..;
    }

    FinalizedFeatureKey<'a> {
        name: &'a str = "", 3..;
        max_version_level: i16 = 0, 3..;
        min_version_level: i16 = 0, 3..;
    }

    Response<'a> {
        error_code: i16 = 0, 0..;
        api_keys: Vec<ApiVersion> = Vec::new(), 0..;
        throttle_time_ms: i32 = 0, 1..;
        supported_features: Vec<SupportedFeatureKey<'a>> = Vec::new(), 3.., tag 0 in 3..;
        finalized_features_epoch: i64 = -1, 3.., tag 1 in 3..;
        finalized_features: Vec<FinalizedFeatureKey<'a>> = Vec::new(), 3.., tag 2 in 3..;
        zk_migration_ready: bool = false, 3.., tag 3 in 3..;
    }
}
