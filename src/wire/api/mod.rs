//! Every API that is spoken: key, name, versions, first flexible version, and its messages. Some
//! are spoken by our client alone; the broker does not serve them.
//!
//! The headers follow from it: a flexible version has request header 2 and response header 1,
//! others 1 and 0; ApiVersions always has response header 0, so that a client of any age can read
//! the refusal of its version (KIP-511).

pub mod add_partitions_to_txn;
pub mod alter_configs;
pub mod api_versions;
pub mod create_partitions;
pub mod create_topics;
pub mod delete_groups;
pub mod delete_records;
pub mod delete_topics;
pub mod describe_cluster;
pub mod describe_configs;
pub mod describe_groups;
pub mod describe_log_dirs;
pub mod describe_topic_partitions;
pub mod end_txn;
pub mod fetch;
pub mod find_coordinator;
pub mod heartbeat;
pub mod incremental_alter_configs;
pub mod init_producer_id;
pub mod join_group;
pub mod leave_group;
pub mod list_groups;
pub mod list_offsets;
pub mod metadata;
pub mod offset_commit;
pub mod offset_delete;
pub mod offset_fetch;
pub mod offset_for_leader_epoch;
pub mod produce;
pub mod sync_group;

use std::ops::RangeInclusive;

use super::primitive::Context;

macro_rules! apis {
    ($($key:literal $name:ident $versions:expr, flexible $flexible:expr;)*) => {
        /// An API by its key.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum ApiKey {
            $($name = $key,)*
        }

        impl ApiKey {
            /// All of them, by key.
            pub const ALL: &[ApiKey] = &[$(ApiKey::$name,)*];

            pub fn from_i16(key: i16) -> Option<ApiKey> {
                match key {
                    $($key => Some(ApiKey::$name),)*
                    _ => None,
                }
            }

            pub fn name(self) -> &'static str {
                match self {
                    $(ApiKey::$name => stringify!($name),)*
                }
            }

            /// The versions that are spoken.
            pub fn versions(self) -> RangeInclusive<i16> {
                match self {
                    $(ApiKey::$name => $versions,)*
                }
            }

            fn flexible_from(self) -> i16 {
                match self {
                    $(ApiKey::$name => $flexible,)*
                }
            }
        }
    };
}

/// No version of the API is flexible.
const NEVER: i16 = i16::MAX;

apis! {
    0 Produce 3..=13, flexible 9;
    1 Fetch 4..=18, flexible 12;
    2 ListOffsets 1..=10, flexible 6;
    3 Metadata 0..=13, flexible 9;
    8 OffsetCommit 2..=10, flexible 8;
    9 OffsetFetch 1..=10, flexible 6;
    10 FindCoordinator 0..=6, flexible 3;
    11 JoinGroup 0..=9, flexible 6;
    12 Heartbeat 0..=4, flexible 4;
    13 LeaveGroup 0..=5, flexible 4;
    14 SyncGroup 0..=5, flexible 4;
    15 DescribeGroups 0..=6, flexible 5;
    16 ListGroups 0..=5, flexible 3;
    18 ApiVersions 0..=4, flexible 3;
    19 CreateTopics 2..=7, flexible 5;
    20 DeleteTopics 1..=6, flexible 4;
    21 DeleteRecords 0..=2, flexible 2;
    22 InitProducerId 0..=6, flexible 2;
    23 OffsetForLeaderEpoch 2..=4, flexible 4;
    24 AddPartitionsToTxn 0..=5, flexible 3;
    26 EndTxn 0..=5, flexible 3;
    32 DescribeConfigs 1..=4, flexible 4;
    33 AlterConfigs 0..=2, flexible 2;
    35 DescribeLogDirs 1..=4, flexible 2;
    37 CreatePartitions 0..=3, flexible 2;
    42 DeleteGroups 0..=2, flexible 2;
    44 IncrementalAlterConfigs 0..=1, flexible 1;
    47 OffsetDelete 0..=0, flexible NEVER;
    60 DescribeCluster 0..=2, flexible 0;
    75 DescribeTopicPartitions 0..=0, flexible 0;
}

impl ApiKey {
    pub fn is_flexible(self, version: i16) -> bool {
        version >= self.flexible_from()
    }

    /// How the body of `version` is written.
    pub fn context(self, version: i16) -> Context {
        Context { version, flexible: self.is_flexible(version) }
    }

    /// Whether the response's header has tagged fields.
    pub fn response_header_is_flexible(self, version: i16) -> bool {
        self != ApiKey::ApiVersions && self.is_flexible(version)
    }

    /// Whether the broker serves it. Others are spoken by the load generator, to brokers that do.
    pub fn is_served(self) -> bool {
        !matches!(self, ApiKey::AddPartitionsToTxn | ApiKey::EndTxn)
    }

    /// The versions that ApiVersions answers. Produce is advertised from 0: librdkafka concludes
    /// from its lowest version that a broker is too old to compress (KAFKA-18659).
    pub fn advertised(self) -> RangeInclusive<i16> {
        match self {
            ApiKey::Produce => 0..=*self.versions().end(),
            _ => self.versions(),
        }
    }
}
