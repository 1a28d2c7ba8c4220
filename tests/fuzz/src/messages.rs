//! Requests and responses of every API and version: what decodes, encodes to what decodes to the
//! same; the hot ones agree with their readers and writers in place.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use corelog::base::few::Few;
use corelog::wire::api::{self, ApiKey};
use corelog::wire::error::ErrorCode;
use corelog::wire::fetch::{self, FetchSink, FetchWriter, FetchedHead, PartitionAsked};
use corelog::wire::header::{
    RequestHeader, RequestStart, decode_body, put_response_header, read_response_header,
};
use corelog::wire::pieces::Pieces;
use corelog::wire::primitive::{Reader, Uuid, Wire};
use corelog::wire::produce::{self, ProduceSink, ProduceWriter, TopicRef};

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
    if api == ApiKey::Fetch {
        fetch_in_place(start.version, reader.rest());
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
    if api == ApiKey::Produce
        && let Ok(response) = decode_body::<api::produce::Response>(reader.rest(), api, version)
    {
        produce_by_the_writer(version, correlation, &response);
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

/// What the walk over a Fetch request met.
#[derive(Default)]
struct FetchWalk<'a> {
    topics: Vec<(TopicRef<'a>, Vec<PartitionAsked>)>,
    forgotten: Vec<(TopicRef<'a>, i32)>,
}

impl<'a> FetchSink<'a> for FetchWalk<'a> {
    fn topic(&mut self, topic: TopicRef<'a>) {
        self.topics.push((topic, Vec::new()));
    }

    fn partition(&mut self, asked: PartitionAsked) {
        let (_, partitions) = self.topics.last_mut().expect("a topic comes before its partitions");
        partitions.push(asked);
    }

    fn forgotten(&mut self, topic: TopicRef<'a>, index: i32) {
        self.forgotten.push((topic, index));
    }
}

fn fetch_in_place(version: i16, body: &[u8]) {
    let mut walk = FetchWalk::default();
    let asked = fetch::read(body, version, &mut walk);
    let table = decode_body::<api::fetch::Request>(body, ApiKey::Fetch, version);
    let (asked, table) = match (asked, table) {
        (Ok(asked), Ok(table)) => (asked, table),
        (Err(_), Err(_)) => return,
        (asked, table) => panic!("in place {asked:?}, by the table {table:?}"),
    };
    assert_eq!((asked.max_wait_ms, asked.min_bytes), (table.max_wait_ms, table.min_bytes));
    assert_eq!(asked.max_bytes, table.max_bytes);
    assert_eq!((asked.session_id, asked.session_epoch), (table.session_id, table.session_epoch));
    let asked_of = |partition: &api::fetch::FetchPartition| PartitionAsked {
        index: partition.partition,
        leader_epoch: partition.current_leader_epoch,
        offset: partition.fetch_offset,
        bytes_max: partition.partition_max_bytes,
    };
    let topics = table.topics.iter().map(|topic| {
        let partitions: Vec<_> = topic.partitions.iter().map(asked_of).collect();
        (topic_ref(version, topic.topic, topic.topic_id), partitions)
    });
    assert!(walk.topics.into_iter().eq(topics));
    let forgotten = table.forgotten_topics_data.iter().flat_map(|topic| {
        let named = topic_ref(version, topic.topic, topic.topic_id);
        topic.partitions.iter().map(move |index| (named, *index))
    });
    assert!(walk.forgotten.into_iter().eq(forgotten));
}

fn topic_ref(version: i16, name: &str, id: Uuid) -> TopicRef<'_> {
    if version >= 13 { TopicRef::Id(id) } else { TopicRef::Name(name) }
}

/// Writes a response as the broker does, and compares it with what the table writes.
fn produce_by_the_writer(version: i16, correlation: i32, response: &api::produce::Response<'_>) {
    let mut out = Pieces::new();
    let mut writer = ProduceWriter::new(&mut out, (version, correlation), response.responses.len());
    for topic in &response.responses {
        writer.topic(topic.name, topic.topic_id, topic.partition_responses.len());
        topic.partition_responses.iter().for_each(|partition| writer.partition(partition));
        writer.end_topic();
    }
    writer.finish();
    let mut frame = Vec::new();
    out.take(&mut frame);
    let mut expected = BytesMut::new();
    put_response_header(&mut expected, ApiKey::Produce, version, correlation);
    let written = api::produce::Response {
        responses: response.responses.clone(),
        ..api::produce::Response::default()
    };
    written.encode(&mut expected, ApiKey::Produce.context(version));
    let (length, rest) = frame.concat().split_first_chunk().map(|(l, r)| (*l, r.to_vec())).unzip();
    assert_eq!(length.map(u32::from_be_bytes), u32::try_from(expected.len()).ok());
    assert_eq!(rest.as_deref(), Some(&expected[..]));
}

/// Writes a response as the broker does, and reads it as a client does.
fn fetch_in_pieces(version: i16, correlation: i32, response: &api::fetch::Response<'_>) {
    let error = ErrorCode(response.error_code);
    let mut out = Pieces::new();
    let ids = (version, correlation);
    let mut writer = FetchWriter::new(&mut out, ids, error, response.session_id);
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
            writer.partition(head, Few::from_iter([first, second].map(Bytes::copy_from_slice)));
        }
        writer.end_topic();
    }
    writer.finish();
    let mut frame: Vec<Bytes> = Vec::new();
    out.take(&mut frame);
    let frame = frame.concat();
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
