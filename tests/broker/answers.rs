//! Answers that Apache Kafka 4.1.1 gives to the same request: each case was found by sending it to
//! both and comparing.

use std::time::Duration;

use bytes::BytesMut;
use corelog::wire::api::{self, ApiKey};
use corelog::wire::error::ErrorCode;
use corelog::wire::header::{RequestHeader, decode_body, read_response_header};
use corelog::wire::primitive::{Reader, Uuid, Wire};

use crate::frames::{Batch, Came, Peer, metadata};
use crate::librdkafka::create_topic;
use crate::world::{Broker, fresh};

/// All operations on a topic, as bits by Kafka's numbers.
const TOPIC_OPERATIONS: i32 = 3576;

/// An answer's body; `None` if the connection was closed instead.
pub fn ask<'q>(
    broker: &Broker,
    api: ApiKey,
    version: i16,
    request: &impl Wire<'q>,
) -> Option<Vec<u8>> {
    ask_on(&mut Peer::connect(broker.address()), api, version, request)
}

/// As `ask`, on a connection that is there.
pub fn ask_on<'q>(
    peer: &mut Peer,
    api: ApiKey,
    version: i16,
    request: &impl Wire<'q>,
) -> Option<Vec<u8>> {
    let mut frame = BytesMut::new();
    RequestHeader { api, version, correlation: 5, client_id: Some("answers") }.encode(&mut frame);
    request.encode(&mut frame, api.context(version));
    peer.send(&frame);
    match peer.receive(Duration::from_secs(20)) {
        Came::Answer(answer) => {
            let mut reader = Reader::new(&answer);
            assert_eq!(read_response_header(&mut reader, api, version), Ok(5));
            Some(reader.rest().to_vec())
        }
        Came::Closed => None,
        Came::Nothing => panic!("no answer to {} version {version}", api.name()),
    }
}

pub fn read<'a, T: Wire<'a>>(body: &'a Option<Vec<u8>>, api: ApiKey, version: i16) -> T {
    let body = body.as_ref().expect("an answer");
    decode_body(body, api, version).expect("an answer of the version")
}

fn topic_id(broker: &Broker, name: &str) -> Uuid {
    use api::metadata::{MetadataRequestTopic, Request, Response};
    let topic = MetadataRequestTopic { topic_id: Uuid::ZERO, name: Some(name) };
    let request = Request { topics: Some(vec![topic]), ..Request::default() };
    let body = ask(broker, ApiKey::Metadata, 12, &request);
    read::<Response<'_>>(&body, ApiKey::Metadata, 12).topics[0].topic_id
}

#[test]
fn metadata_tells_each_topic_once_and_what_is_allowed() {
    use api::metadata::{MetadataRequestTopic, Request, Response};
    let broker = Broker::start(&[]);
    let name = fresh("told");
    create_topic(&broker.bootstrap(), &name, 1);
    let id = topic_id(&broker, &name);
    let by_name = MetadataRequestTopic { topic_id: Uuid::ZERO, name: Some(&name) };
    let by_id = MetadataRequestTopic { topic_id: id, name: None };
    let request = Request {
        topics: Some(vec![by_name.clone(), by_name]),
        include_topic_authorized_operations: true,
        ..Request::default()
    };
    let body = ask(&broker, ApiKey::Metadata, 12, &request);
    let answer: Response<'_> = read(&body, ApiKey::Metadata, 12);
    assert_eq!(answer.topics.len(), 1);
    assert_eq!(answer.topics[0].topic_authorized_operations, TOPIC_OPERATIONS);
    for (version, error) in [(10, ErrorCode::INVALID_REQUEST), (12, ErrorCode::NONE)] {
        let request = Request { topics: Some(vec![by_id.clone()]), ..Request::default() };
        let body = ask(&broker, ApiKey::Metadata, version, &request);
        let answer: Response<'_> = read(&body, ApiKey::Metadata, version);
        assert_eq!(answer.topics[0].error_code, error.0, "by id in version {version}");
    }
}

#[test]
fn a_topic_named_twice_is_neither_deleted_nor_grown() {
    let broker = Broker::start(&[]);
    let name = fresh("twice");
    create_topic(&broker.bootstrap(), &name, 1);
    let id = topic_id(&broker, &name);
    let delete = |states: Vec<api::delete_topics::DeleteTopicState<'_>>| {
        use api::delete_topics::{Request, Response};
        let request = Request { topics: states, timeout_ms: 1000, ..Request::default() };
        let body = ask(&broker, ApiKey::DeleteTopics, 6, &request);
        let answer: Response<'_> = read(&body, ApiKey::DeleteTopics, 6);
        answer.responses.iter().map(|response| response.error_code).collect::<Vec<_>>()
    };
    let state = |name, topic_id| api::delete_topics::DeleteTopicState { name, topic_id };
    let invalid = ErrorCode::INVALID_REQUEST.0;
    let by_name = || state(Some(name.as_str()), Uuid::ZERO);
    assert_eq!(delete(vec![by_name(), by_name()]), [invalid]);
    assert_eq!(delete(vec![by_name(), state(None, id)]), [invalid]);
    assert_eq!(delete(vec![state(Some(&name), id)]), [invalid], "name and id");
    assert_eq!(delete(vec![state(None, Uuid::ZERO)]), [invalid], "neither");

    use api::create_partitions::{
        CreatePartitionsAssignment, CreatePartitionsTopic, Request, Response,
    };
    let grow = |counts: &[(i32, Option<usize>)]| {
        let topics = counts.iter().map(|(count, assigned)| CreatePartitionsTopic {
            name: &name,
            count: *count,
            assignments: assigned.map(|n| {
                (0..n).map(|_| CreatePartitionsAssignment { broker_ids: vec![1] }).collect()
            }),
        });
        let request = Request { topics: topics.collect(), ..Request::default() };
        let body = ask(&broker, ApiKey::CreatePartitions, 3, &request);
        let answer: Response<'_> = read(&body, ApiKey::CreatePartitions, 3);
        answer.results.iter().map(|result| ErrorCode(result.error_code)).collect::<Vec<_>>()
    };
    assert_eq!(grow(&[(2, None), (3, None)]), [ErrorCode::INVALID_REQUEST]);
    assert_eq!(grow(&[(3, Some(1))]), [ErrorCode::INVALID_REPLICA_ASSIGNMENT]);
    assert_eq!(grow(&[(3, Some(2))]), [ErrorCode::NONE]);
    assert_eq!(delete(vec![by_name()]), [0]);
}

#[test]
fn offsets_of_what_is_not_yet_are_unknown() {
    let broker = Broker::start(&[]);
    let name = fresh("epochs");
    create_topic(&broker.bootstrap(), &name, 1);
    use api::list_offsets::{ListOffsetsPartition, ListOffsetsTopic};
    let list = |timestamps: &[i64]| {
        let partitions = timestamps.iter().map(|timestamp| ListOffsetsPartition {
            partition_index: 0,
            current_leader_epoch: -1,
            timestamp: *timestamp,
        });
        let topics = vec![ListOffsetsTopic { name: &name, partitions: partitions.collect() }];
        let request = api::list_offsets::Request { topics, ..Default::default() };
        let body = ask(&broker, ApiKey::ListOffsets, 7, &request);
        let answer: api::list_offsets::Response<'_> = read(&body, ApiKey::ListOffsets, 7);
        let partitions = answer.topics[0].partitions.iter();
        partitions.map(|partition| ErrorCode(partition.error_code)).collect::<Vec<_>>()
    };
    assert_eq!(list(&[-9]), [ErrorCode::UNSUPPORTED_VERSION]);
    assert_eq!(list(&[-1, -2]), [ErrorCode::INVALID_REQUEST], "one partition twice");
    assert_eq!(list(&[-1]), [ErrorCode::NONE]);

    use api::offset_for_leader_epoch::{
        OffsetForLeaderPartition, OffsetForLeaderTopic, Request, Response,
    };
    let partition =
        OffsetForLeaderPartition { partition: 0, current_leader_epoch: -1, leader_epoch: 99 };
    let topics = vec![OffsetForLeaderTopic { topic: &name, partitions: vec![partition] }];
    let request = Request { topics, ..Request::default() };
    let body = ask(&broker, ApiKey::OffsetForLeaderEpoch, 4, &request);
    let answer: Response<'_> = read(&body, ApiKey::OffsetForLeaderEpoch, 4);
    let found = &answer.topics[0].partitions[0];
    assert_eq!((found.error_code, found.leader_epoch, found.end_offset), (0, -1, -1));
}

#[test]
fn settings_said_twice_are_refused_and_no_names_ask_for_all() {
    let broker = Broker::start(&[]);
    let name = fresh("settings");
    create_topic(&broker.bootstrap(), &name, 1);
    use api::incremental_alter_configs::{AlterConfigsResource, AlterableConfig};
    let alter = |topic: &str, configs: &[(&str, Option<&str>)]| {
        let configs = configs.iter().map(|(name, value)| AlterableConfig {
            name,
            config_operation: 0,
            value: *value,
        });
        let resource = AlterConfigsResource {
            resource_type: 2,
            resource_name: topic,
            configs: configs.collect(),
        };
        let request = api::incremental_alter_configs::Request {
            resources: vec![resource],
            validate_only: false,
        };
        let body = ask(&broker, ApiKey::IncrementalAlterConfigs, 1, &request);
        let answer: api::incremental_alter_configs::Response<'_> =
            read(&body, ApiKey::IncrementalAlterConfigs, 1);
        ErrorCode(answer.responses[0].error_code)
    };
    let (one, two) = (("retention.ms", Some("1")), ("retention.ms", Some("2")));
    assert_eq!(alter(&name, &[one, two]), ErrorCode::INVALID_REQUEST);
    assert_eq!(alter(&name, &[("retention.ms", None)]), ErrorCode::INVALID_REQUEST);
    assert_eq!(alter("", &[one]), ErrorCode::INVALID_REQUEST);
    assert_eq!(alter("a b", &[one]), ErrorCode::INVALID_TOPIC_EXCEPTION);
    assert_eq!(alter(&name, &[one]), ErrorCode::NONE);

    use api::describe_configs::{DescribeConfigsResource, Request, Response};
    let resource = DescribeConfigsResource {
        resource_type: 2,
        resource_name: &name,
        configuration_keys: Some(Vec::new()),
    };
    let request = Request { resources: vec![resource], ..Request::default() };
    let body = ask(&broker, ApiKey::DescribeConfigs, 4, &request);
    let answer: Response<'_> = read(&body, ApiKey::DescribeConfigs, 4);
    let configs = &answer.results[0].configs;
    assert!(configs.len() > 10, "{} settings", configs.len());
    assert!(configs.iter().all(|config| config.synonyms.is_empty()), "nobody asked for synonyms");
}

/// Produces to partition 0 and gives the error; `None` if the connection was closed.
fn produce(broker: &Broker, topic: &str, acks: i16, records: &[u8]) -> Option<ErrorCode> {
    use api::produce::{PartitionProduceData, Request, Response, TopicProduceData};
    let partition = PartitionProduceData { index: 0, records: Some(records) };
    let topic_data =
        TopicProduceData { name: topic, partition_data: vec![partition], ..Default::default() };
    let request =
        Request { acks, timeout_ms: 1000, topic_data: vec![topic_data], ..Default::default() };
    let body = ask(broker, ApiKey::Produce, 9, &request);
    body.as_ref()?;
    let answer: Response<'_> = read(&body, ApiKey::Produce, 9);
    Some(ErrorCode(answer.responses[0].partition_responses[0].error_code))
}

#[test]
fn produce_refuses_what_the_log_must_not_hold() {
    let broker = Broker::start(&[]);
    let name = fresh("kept");
    create_topic(&broker.bootstrap(), &name, 1);
    let batch = Batch::default().encode();
    assert_eq!(produce(&broker, &name, -1, &batch), Some(ErrorCode::NONE));
    let twice = batch.repeat(2);
    assert_eq!(produce(&broker, &name, -1, &twice), Some(ErrorCode::INVALID_RECORD));
    assert_eq!(produce(&broker, &name, -1, &[]), Some(ErrorCode::INVALID_RECORD));
    assert_eq!(produce(&broker, &fresh("nowhere"), 0, &batch), None, "acks=0 hears it so");

    // Any group makes the topic in which groups are kept.
    use api::find_coordinator::{Request, Response};
    let request = Request { coordinator_keys: vec![""], ..Request::default() };
    let body = ask(&broker, ApiKey::FindCoordinator, 4, &request);
    let answer: Response<'_> = read(&body, ApiKey::FindCoordinator, 4);
    assert_eq!(answer.coordinators[0].error_code, 0, "the empty group is one");
    let refused = produce(&broker, "__consumer_offsets", -1, &batch);
    assert_eq!(refused, Some(ErrorCode::INVALID_TOPIC_EXCEPTION));

    use api::create_topics::{CreatableTopic, CreatableTopicConfig};
    let compacted = fresh("compacted");
    let config = CreatableTopicConfig { name: "cleanup.policy", value: Some("compact") };
    let topic = CreatableTopic {
        name: &compacted,
        num_partitions: 1,
        replication_factor: 1,
        configs: vec![config],
        ..CreatableTopic::default()
    };
    let request = api::create_topics::Request { topics: vec![topic], ..Default::default() };
    ask(&broker, ApiKey::CreateTopics, 7, &request).expect("an answer");
    let refused = produce(&broker, &compacted, -1, &batch);
    assert_eq!(refused, Some(ErrorCode::INVALID_RECORD), "a record without a key");
}

/// One request may not cost what its length multiplied by a topic's name is.
#[test]
fn a_long_name_is_not_kept_for_every_partition() {
    use api::fetch::{FetchPartition, FetchTopic, Request, Response};
    let mut broker = Broker::start(&[]);
    let name = "x".repeat(30_000);
    let partitions =
        (0..20_000).map(|partition| FetchPartition { partition, ..Default::default() });
    let topic = FetchTopic { topic: &name, partitions: partitions.collect(), ..Default::default() };
    let request = Request { session_epoch: 0, topics: vec![topic], ..Request::default() };
    let body = ask(&broker, ApiKey::Fetch, 11, &request);
    let answer: Response<'_> = read(&body, ApiKey::Fetch, 11);
    assert_eq!(answer.session_id, 0, "no session is kept for it");
    assert_eq!(answer.responses[0].partitions.len(), 20_000);
    let resident = broker.resident_bytes();
    assert!(resident < 300 << 20, "{} MiB resident", resident >> 20);
    broker.assert_alive();
    let answer = Peer::connect(broker.address()).ask(&metadata("still"));
    assert!(!answer.is_empty());
}

/// Deleting a setting that nobody has is done already; giving one is refused.
#[test]
fn a_setting_that_does_not_exist_may_be_deleted() {
    use api::incremental_alter_configs::{
        AlterConfigsResource, AlterableConfig, Request, Response,
    };
    let broker = Broker::start(&[]);
    let topic = fresh("no-setting");
    create_topic(&broker.bootstrap(), &topic, 1);
    for (config_operation, value, wanted) in
        [(1, None, ErrorCode::NONE), (0, Some("1"), ErrorCode::INVALID_CONFIG)]
    {
        let config = AlterableConfig { name: "message.format.version", config_operation, value };
        let resource =
            AlterConfigsResource { resource_type: 2, resource_name: &topic, configs: vec![config] };
        let request = Request { resources: vec![resource], ..Request::default() };
        let body = ask(&broker, ApiKey::IncrementalAlterConfigs, 1, &request);
        let answer: Response<'_> = read(&body, ApiKey::IncrementalAlterConfigs, 1);
        assert_eq!(answer.responses[0].error_code, wanted.0);
    }
}
