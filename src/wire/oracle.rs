//! The proof of the tables: random messages of every API and version, byte for byte against the
//! `kafka-protocol` crate, and damaged ones that must be refused without a panic.

use bytes::{Bytes, BytesMut};
use kafka_protocol::protocol::{Decodable, Encodable, Message};

use super::api::{self, ApiKey};
use super::header::decode_body;
use super::primitive::{Uuid, Wire};

/// Messages tried of every API, side and version.
const ROUNDS: u64 = 40;

/// Random values; borrowed ones come out of a pool that outlives the messages.
pub struct Source<'a> {
    state: u64,
    version: i16,
    pool: &'a Pool,
}

/// Strings and byte strings to borrow.
pub struct Pool {
    strings: Vec<String>,
    bytes: Vec<Vec<u8>>,
}

impl Pool {
    fn new() -> Pool {
        let strings = ["", "a", "topic", "grüße", "x-y_z.9"].map(String::from).to_vec();
        let mut strings = strings;
        strings.push("long".repeat(60));
        let bytes = vec![vec![], vec![0], vec![0xff; 3], (0..200).collect()];
        Pool { strings, bytes }
    }
}

impl Source<'_> {
    /// A step of splitmix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next()).expect("64-bit") % bound
    }

    pub fn version(&self) -> i16 {
        self.version
    }
}

/// A type that random values can be made of.
pub trait Arbitrary<'a>: Sized {
    fn arbitrary(source: &mut Source<'a>) -> Self;
}

pub fn arbitrary_option<'a, T: Arbitrary<'a>>(
    source: &mut Source<'a>,
    nullable: bool,
) -> Option<T> {
    if nullable && source.below(3) == 0 { None } else { Some(T::arbitrary(source)) }
}

macro_rules! arbitrary_integer {
    ($($type:ty)*) => {$(
        impl<'a> Arbitrary<'a> for $type {
            fn arbitrary(source: &mut Source<'a>) -> Self {
                match source.below(4) {
                    0 => 0,
                    1 => <$type>::MAX,
                    _ => source.next() as $type,
                }
            }
        }
    )*};
}

arbitrary_integer!(i8 i16 u16 i32 u32 i64);

impl<'a> Arbitrary<'a> for bool {
    fn arbitrary(source: &mut Source<'a>) -> Self {
        source.below(2) == 1
    }
}

impl<'a> Arbitrary<'a> for Uuid {
    fn arbitrary(source: &mut Source<'a>) -> Self {
        let half = source.next().to_be_bytes();
        let mut uuid = [0; 16];
        uuid[..8].copy_from_slice(&half);
        Uuid(uuid)
    }
}

impl<'a> Arbitrary<'a> for &'a str {
    fn arbitrary(source: &mut Source<'a>) -> Self {
        let index = source.below(source.pool.strings.len());
        &source.pool.strings[index]
    }
}

impl<'a> Arbitrary<'a> for &'a [u8] {
    fn arbitrary(source: &mut Source<'a>) -> Self {
        let index = source.below(source.pool.bytes.len());
        &source.pool.bytes[index]
    }
}

impl<'a, T: Arbitrary<'a>> Arbitrary<'a> for Vec<T> {
    fn arbitrary(source: &mut Source<'a>) -> Self {
        (0..source.below(4)).map(|_| T::arbitrary(source)).collect()
    }
}

impl<'a, T: Arbitrary<'a>> Arbitrary<'a> for Option<T> {
    fn arbitrary(source: &mut Source<'a>) -> Self {
        arbitrary_option(source, true)
    }
}

/// Tries one side of one API in all of our versions; the oracle does not know those in `beyond`.
macro_rules! against_the_oracle {
    ($api:expr, $ours:ty, $oracle:ty, $beyond:expr) => {
        let pool = Pool::new();
        for version in $api.versions() {
            let known = <$oracle as Message>::VERSIONS;
            let within = version >= known.min && version <= known.max;
            let beyond: &[i16] = &$beyond;
            assert_eq!(!within, beyond.contains(&version), "{} {version}", $api.name());
            for round in 0..ROUNDS {
                let seed = round << 16 | u64::from(version.cast_unsigned());
                let mut source = Source { state: seed, version, pool: &pool };
                let message = <$ours as Arbitrary>::arbitrary(&mut source);
                let label = format!("{} {} seed {seed}", stringify!($oracle), version);
                let mut bytes = BytesMut::new();
                message.encode(&mut bytes, $api.context(version));
                let ours = decode_body::<$ours>(&bytes, $api, version);
                assert_eq!(ours.as_ref(), Ok(&message), "{label}");
                if within {
                    let mut input = Bytes::copy_from_slice(&bytes);
                    let theirs = <$oracle as Decodable>::decode(&mut input, version);
                    let theirs = theirs.unwrap_or_else(|error| panic!("{label}: {error}"));
                    assert!(input.is_empty(), "{label}");
                    let mut back = BytesMut::new();
                    theirs.encode(&mut back, version).expect("encodable");
                    assert_eq!(back, bytes, "{label}");
                }
                damage(&mut source, &bytes, |damaged| {
                    drop(decode_body::<$ours>(damaged, $api, version));
                });
            }
        }
    };
}

/// Truncated, flipped and overwritten copies; the decoder must survive each.
fn damage(source: &mut Source<'_>, bytes: &[u8], decode: impl Fn(&[u8])) {
    for _ in 0..8 {
        let mut damaged = bytes.to_vec();
        match source.below(3) {
            0 => damaged.truncate(source.below(bytes.len() + 1)),
            1 if !bytes.is_empty() => {
                let position = source.below(bytes.len());
                damaged[position] ^= 1 << source.below(8);
            }
            _ => {
                let position = source.below(bytes.len() + 1);
                let end = (position + 4).min(damaged.len());
                damaged[position..end].fill([0xff, 0x7f, 0x80][source.below(3)]);
            }
        }
        decode(&damaged);
    }
}

macro_rules! oracle_tests {
    ($($test:ident $name:ident $request:ty, $response:ty, $beyond:expr;)*) => {$(
        #[test]
        fn $test() {
            use kafka_protocol::messages as oracle;
            against_the_oracle!(ApiKey::$name, api::$test::Request, $request, $beyond);
            against_the_oracle!(ApiKey::$name, api::$test::Response, $response, []);
        }
    )*};
}

oracle_tests! {
    produce Produce oracle::ProduceRequest, oracle::ProduceResponse, [];
    fetch Fetch oracle::FetchRequest, oracle::FetchResponse, [];
    list_offsets ListOffsets oracle::ListOffsetsRequest, oracle::ListOffsetsResponse, [];
    metadata Metadata oracle::MetadataRequest, oracle::MetadataResponse, [];
    offset_commit OffsetCommit oracle::OffsetCommitRequest, oracle::OffsetCommitResponse, [10];
    offset_fetch OffsetFetch oracle::OffsetFetchRequest, oracle::OffsetFetchResponse, [10];
    find_coordinator FindCoordinator
        oracle::FindCoordinatorRequest, oracle::FindCoordinatorResponse, [];
    join_group JoinGroup oracle::JoinGroupRequest, oracle::JoinGroupResponse, [];
    heartbeat Heartbeat oracle::HeartbeatRequest, oracle::HeartbeatResponse, [];
    leave_group LeaveGroup oracle::LeaveGroupRequest, oracle::LeaveGroupResponse, [];
    sync_group SyncGroup oracle::SyncGroupRequest, oracle::SyncGroupResponse, [];
    describe_groups DescribeGroups
        oracle::DescribeGroupsRequest, oracle::DescribeGroupsResponse, [];
    list_groups ListGroups oracle::ListGroupsRequest, oracle::ListGroupsResponse, [];
    api_versions ApiVersions oracle::ApiVersionsRequest, oracle::ApiVersionsResponse, [];
    create_topics CreateTopics oracle::CreateTopicsRequest, oracle::CreateTopicsResponse, [];
    delete_topics DeleteTopics oracle::DeleteTopicsRequest, oracle::DeleteTopicsResponse, [];
    delete_records DeleteRecords oracle::DeleteRecordsRequest, oracle::DeleteRecordsResponse, [];
    init_producer_id InitProducerId
        oracle::InitProducerIdRequest, oracle::InitProducerIdResponse, [6];
    add_partitions_to_txn AddPartitionsToTxn
        oracle::AddPartitionsToTxnRequest, oracle::AddPartitionsToTxnResponse, [];
    end_txn EndTxn oracle::EndTxnRequest, oracle::EndTxnResponse, [];
    offset_for_leader_epoch OffsetForLeaderEpoch
        oracle::OffsetForLeaderEpochRequest, oracle::OffsetForLeaderEpochResponse, [];
    describe_configs DescribeConfigs
        oracle::DescribeConfigsRequest, oracle::DescribeConfigsResponse, [];
    alter_configs AlterConfigs oracle::AlterConfigsRequest, oracle::AlterConfigsResponse, [];
    describe_log_dirs DescribeLogDirs
        oracle::DescribeLogDirsRequest, oracle::DescribeLogDirsResponse, [];
    create_partitions CreatePartitions
        oracle::CreatePartitionsRequest, oracle::CreatePartitionsResponse, [];
    delete_groups DeleteGroups oracle::DeleteGroupsRequest, oracle::DeleteGroupsResponse, [];
    incremental_alter_configs IncrementalAlterConfigs
        oracle::IncrementalAlterConfigsRequest, oracle::IncrementalAlterConfigsResponse, [];
    offset_delete OffsetDelete oracle::OffsetDeleteRequest, oracle::OffsetDeleteResponse, [];
    describe_cluster DescribeCluster
        oracle::DescribeClusterRequest, oracle::DescribeClusterResponse, [];
    describe_topic_partitions DescribeTopicPartitions
        oracle::DescribeTopicPartitionsRequest, oracle::DescribeTopicPartitionsResponse, [];
}
