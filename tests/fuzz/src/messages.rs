//! Requests and responses of every API and version: what decodes, encodes to what decodes to the
//! same; the hot ones agree with their readers and writers in place.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use corelog::wire::api::{self, ApiKey};
use corelog::wire::error::ErrorCode;
use corelog::wire::fetch::{FetchWriter, FetchedHead};
use corelog::wire::header::{
    RequestHeader, RequestStart, decode_body, put_response_header, read_response_header,
};
use corelog::wire::primitive::{Reader, Wire};
use corelog::wire::produce::{self, ProduceSink, TopicRef};

/// Decodes a body, and what it encodes to.
macro_rules! there_and_back {
    ($message:ty, $body:expr, $api:expr, $version:expr) => {
        if let Ok(message) = decode_body::<$message>($body, $api, $version) {
            let mut bytes = BytesMut::new();
            message.encode(&mut bytes, $api.context($version));
            let again = decode_body::<$message>(&bytes, $api, $version);
            assert_eq!(again.as_ref(), Ok(&message), "{} {}", $api.name(), $version);
        }
    };
}

macro_rules! every_api {
    ($($name:ident $module:ident;)*) => {
        fn request_body(api: ApiKey, version: i16, body: &[u8]) {
            match api {
                $(ApiKey::$name => there_and_back!(api::$module::Request, body, api, version),)*
            }
        }

        fn response_body(api: ApiKey, version: i16, body: &[u8]) {
            match api {
                $(ApiKey::$name => there_and_back!(api::$module::Response, body, api, version),)*
            }
        }
    };
}

every_api! {
    Produce produce;
    Fetch fetch;
    ListOffsets list_offsets;
    Metadata metadata;
    OffsetCommit offset_commit;
    OffsetFetch offset_fetch;
    FindCoordinator find_coordinator;
    JoinGroup join_group;
    Heartbeat heartbeat;
    LeaveGroup leave_group;
    SyncGroup sync_group;
    DescribeGroups describe_groups;
    ListGroups list_groups;
    ApiVersions api_versions;
    CreateTopics create_topics;
    DeleteTopics delete_topics;
    DeleteRecords delete_records;
    InitProducerId init_producer_id;
    AddPartitionsToTxn add_partitions_to_txn;
    EndTxn end_txn;
    OffsetForLeaderEpoch offset_for_leader_epoch;
    DescribeConfigs describe_configs;
    AlterConfigs alter_configs;
    DescribeLogDirs describe_log_dirs;
    CreatePartitions create_partitions;
    DeleteGroups delete_groups;
    IncrementalAlterConfigs incremental_alter_configs;
    OffsetDelete offset_delete;
    DescribeCluster describe_cluster;
    DescribeTopicPartitions describe_topic_partitions;
}

/// A request's frame without its length.
pub fn request(data: &[u8]) {
    let reader = &mut Reader::new(data);
    let Ok(start) = RequestStart::decode(reader) else { return };
    let Some(api) = served(start.key, start.version) else { return };
    let Ok(header) = RequestHeader::decode(start, api, reader) else { return };
    let mut bytes = BytesMut::new();
    header.encode(&mut bytes);
    let again = &mut Reader::new(&bytes);
    let start = RequestStart::decode(again).expect("our own header");
    assert_eq!(RequestHeader::decode(start, api, again), Ok(header));
    assert_eq!(again.remaining(), 0);
    request_body(api, start.version, reader.rest());
    if api == ApiKey::Produce {
        produce_in_place(start.version, reader.rest());
    }
}

/// Key and version, then a response's frame without its length.
pub fn response(data: &[u8]) {
    let reader = &mut Reader::new(data);
    let (Ok(key), Ok(version)) = (reader.i16(), reader.i16()) else { return };
    let Some(api) = served(key, version) else { return };
    let Ok(correlation) = read_response_header(reader, api, version) else { return };
    let mut bytes = BytesMut::new();
    put_response_header(&mut bytes, api, version, correlation);
    let again = &mut Reader::new(&bytes);
    assert_eq!(read_response_header(again, api, version), Ok(correlation));
    response_body(api, version, reader.rest());
    if api == ApiKey::Fetch
        && let Ok(response) = decode_body::<api::fetch::Response>(reader.rest(), api, version)
    {
        fetch_in_pieces(version, correlation, &response);
    }
}

fn served(key: i16, version: i16) -> Option<ApiKey> {
    ApiKey::from_i16(key).filter(|api| api.versions().contains(&version))
}

/// What the walk over a Produce request met, in the table's terms.
#[derive(Default)]
struct Walk<'a> {
    topics: Vec<(TopicRef<'a>, Vec<Partition>)>,
}

/// Its index, and where its records are.
type Partition = (i32, Option<Range<usize>>);

impl<'a> ProduceSink<'a> for Walk<'a> {
    fn topic(&mut self, topic: TopicRef<'a>) {
        self.topics.push((topic, Vec::new()));
    }

    fn partition(&mut self, index: i32, records: Option<Range<usize>>) {
        let (_, partitions) = self.topics.last_mut().expect("a topic comes before its partitions");
        partitions.push((index, records));
    }
}

fn produce_in_place(version: i16, body: &[u8]) {
    let mut walk = Walk::default();
    let head = produce::read(body, version, &mut walk);
    let table = decode_body::<api::produce::Request>(body, ApiKey::Produce, version);
    let (head, table) = match (head, table) {
        (Ok(head), Ok(table)) => (head, table),
        (Err(_), Err(_)) => return,
        (head, table) => panic!("in place {head:?}, by the table {table:?}"),
    };
    assert_eq!(head.transactional_id, table.transactional_id);
    assert_eq!((head.acks, head.timeout_ms), (table.acks, table.timeout_ms));
    assert_eq!(walk.topics.len(), table.topic_data.len());
    for ((topic, partitions), expected) in walk.topics.iter().zip(&table.topic_data) {
        match topic {
            TopicRef::Name(name) => assert_eq!(*name, expected.name),
            TopicRef::Id(id) => assert_eq!(*id, expected.topic_id),
        }
        let found = partitions.iter().map(|(index, range)| {
            let records = range.clone().map(|range| body.get(range).expect("within the body"));
            api::produce::PartitionProduceData { index: *index, records }
        });
        assert!(found.eq(expected.partition_data.iter().cloned()));
    }
}

/// Writes a response as the broker does, and reads it as a client does.
fn fetch_in_pieces(version: i16, correlation: i32, response: &api::fetch::Response<'_>) {
    let error = ErrorCode(response.error_code);
    let mut writer = FetchWriter::new(version, correlation, error, response.session_id);
    writer.topics(response.responses.len());
    for topic in &response.responses {
        writer.topic(topic.topic, topic.topic_id, topic.partitions.len());
        for partition in &topic.partitions {
            let head = FetchedHead {
                index: partition.partition_index,
                error: ErrorCode(partition.error_code),
                high_watermark: partition.high_watermark,
                last_stable: partition.last_stable_offset,
                log_start: partition.log_start_offset,
            };
            let (first, second) = partition
                .records
                .unwrap_or_default()
                .split_at(partition.records.map_or(0, |r| r.len() / 2));
            writer.partition(head, [first, second].map(Bytes::copy_from_slice).to_vec());
        }
        writer.end_topic();
    }
    let frame = writer.finish().concat();
    let reader = &mut Reader::new(&frame);
    assert_eq!(
        reader.i32().map(i32::cast_unsigned),
        Ok(u32::try_from(frame.len() - 4).expect("small"))
    );
    assert_eq!(read_response_header(reader, ApiKey::Fetch, version), Ok(correlation));
    let written = decode_body::<api::fetch::Response>(reader.rest(), ApiKey::Fetch, version);
    assert_eq!(written, Ok(as_written(response)));
}

/// The response with only what the broker fills in.
fn as_written<'a>(response: &api::fetch::Response<'a>) -> api::fetch::Response<'a> {
    let topics = response.responses.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| api::fetch::PartitionData {
            partition_index: partition.partition_index,
            error_code: partition.error_code,
            high_watermark: partition.high_watermark,
            last_stable_offset: partition.last_stable_offset,
            log_start_offset: partition.log_start_offset,
            aborted_transactions: None,
            records: Some(partition.records.unwrap_or_default()),
            ..api::fetch::PartitionData::default()
        });
        api::fetch::FetchableTopicResponse { partitions: partitions.collect(), ..topic.clone() }
    });
    api::fetch::Response {
        error_code: response.error_code,
        session_id: response.session_id,
        responses: topics.collect(),
        ..api::fetch::Response::default()
    }
}
