//! Groups and the topic that keeps them, from outside: who makes it, what goes with it, and who
//! tells of which group.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

use corelog::wire::api::{self, ApiKey};

use crate::answers::{ask, ask_on, read};
use crate::frames::Peer;
use crate::full::delete_topic;
use crate::librdkafka::create_topic;
use crate::stored::alter;
use crate::world::{Broker, fresh};

const OFFSETS_TOPIC: &str = "__consumer_offsets";
const NOT_COORDINATOR: i16 = 16;
const SOON: Duration = Duration::from_secs(20);

/// OffsetCommit of version 4 by nobody's member: offset 1000 of partition 0, 1001 of 1, and so on.
pub fn commit(broker: &Broker, group: &str, topic: &str, partitions: &[i32]) {
    commit_for(-1, broker, (group, topic, partitions));
}

/// As `commit`, for so many milliseconds.
fn commit_for(
    retention_time_ms: i64,
    broker: &Broker,
    (group, topic, partitions): (&str, &str, &[i32]),
) {
    use api::offset_commit::{
        OffsetCommitRequestPartition, OffsetCommitRequestTopic, Request, Response,
    };
    let partitions = partitions.iter().map(|partition| OffsetCommitRequestPartition {
        partition_index: *partition,
        committed_offset: i64::from(1000 + partition),
        ..OffsetCommitRequestPartition::default()
    });
    let topic = OffsetCommitRequestTopic {
        name: topic,
        partitions: partitions.collect(),
        ..OffsetCommitRequestTopic::default()
    };
    let request =
        Request { group_id: group, retention_time_ms, topics: vec![topic], ..Request::default() };
    let body = ask(broker, ApiKey::OffsetCommit, 4, &request);
    let answer: Response<'_> = read(&body, ApiKey::OffsetCommit, 4);
    assert!(answer.topics[0].partitions.iter().all(|one| one.error_code == 0), "{answer:?}");
}

/// How many offsets the group has committed.
fn committed(broker: &Broker, group: &str) -> usize {
    use api::offset_fetch::{Request, Response};
    let request = Request { group_id: group, topics: None, ..Request::default() };
    let body = ask(broker, ApiKey::OffsetFetch, 7, &request);
    let answer: Response<'_> = read(&body, ApiKey::OffsetFetch, 7);
    answer.topics.iter().map(|topic| topic.partitions.len()).sum()
}

/// The groups that ListGroups tells of on a connection.
fn listed(peer: &mut Peer) -> Vec<String> {
    use api::list_groups::{Request, Response};
    let body = ask_on(peer, ApiKey::ListGroups, 4, &Request::default());
    let answer: Response<'_> = read(&body, ApiKey::ListGroups, 4);
    answer.groups.iter().map(|group| group.group_id.to_string()).collect()
}

fn await_that(what: &str, broker: &Broker, done: impl Fn() -> bool) {
    let until = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < until, "not {what}:\n{}", broker.log());
        sleep(Duration::from_millis(20));
    }
}

/// JoinGroup of version 3.
fn join<'a>(group: &'a str, member_id: &'a str) -> api::join_group::Request<'a> {
    let protocol = api::join_group::JoinGroupRequestProtocol { name: "range", metadata: b"" };
    api::join_group::Request {
        group_id: group,
        session_timeout_ms: 30_000,
        rebalance_timeout_ms: 30_000,
        member_id,
        protocol_type: "consumer",
        protocols: vec![protocol],
        ..Default::default()
    }
}

/// Nobody could say how often is looked, and what a client said of its offsets was passed over.
#[test]
fn offsets_go_when_their_client_has_said_so() {
    let broker = Broker::start(&[("offsets.retention.check.interval.ms", "50")]);
    let (topic, brief, long) = (fresh("topic"), fresh("brief"), fresh("long"));
    create_topic(&broker.bootstrap(), &topic, 2);
    commit_for(3_600_000, &broker, (&long, &topic, &[0, 1]));
    commit_for(1, &broker, (&brief, &topic, &[0, 1]));
    await_that("expired", &broker, || committed(&broker, &brief) == 0);
    assert_eq!(committed(&broker, &long), 2);
}

/// Groups once lived on in the cores when the topic that kept them was deleted.
#[test]
fn groups_go_with_the_topic_that_keeps_them() {
    let mut broker = Broker::start(&[("offsets.topic.num.partitions", "3")]);
    let topic = fresh("topic");
    create_topic(&broker.bootstrap(), &topic, 1);
    let groups: Vec<String> = (0..20).map(|_| fresh("group")).collect();
    for group in &groups {
        commit(&broker, group, &topic, &[0]);
    }
    // Somebody waits for the other member of a group to join again.
    let waited = fresh("waited");
    let mut first = Peer::connect(broker.address());
    let body = ask_on(&mut first, ApiKey::JoinGroup, 3, &join(&waited, ""));
    let answer: api::join_group::Response<'_> = read(&body, ApiKey::JoinGroup, 3);
    assert_eq!(answer.error_code, 0);
    let address = broker.address();
    let group = waited.clone();
    let waits = std::thread::spawn(move || {
        let body = ask_on(&mut Peer::connect(address), ApiKey::JoinGroup, 3, &join(&group, ""));
        let answer: api::join_group::Response<'_> = read(&body, ApiKey::JoinGroup, 3);
        answer.error_code
    });
    await_that("two members", &broker, || {
        use api::describe_groups::{Request, Response};
        let request = Request { groups: vec![&waited], ..Request::default() };
        let body = ask(&broker, ApiKey::DescribeGroups, 5, &request);
        let answer: Response<'_> = read(&body, ApiKey::DescribeGroups, 5);
        answer.groups[0].members.len() == 2
    });

    let mut peer = Peer::connect(broker.address());
    assert_eq!(listed(&mut peer).len(), groups.len() + 1);
    assert_eq!(delete_topic(&mut peer, OFFSETS_TOPIC), 0);
    assert_eq!(waits.join().expect("an answer"), NOT_COORDINATOR);
    assert_eq!(listed(&mut peer), Vec::<String>::new());

    // The next one of its name begins anew, on whichever cores it is.
    assert!(groups.iter().all(|group| committed(&broker, group) == 0));
    for group in groups.iter().step_by(2) {
        commit(&broker, group, &topic, &[0]);
    }
    for _ in 0..2 {
        let found = groups.iter().map(|group| committed(&broker, group));
        assert!(found.eq([1, 0].repeat(groups.len() / 2)));
        broker.restart();
    }
    assert_eq!(listed(&mut Peer::connect(broker.address())).len(), groups.len() / 2);
}

/// An ordinary topic of one partition took its place once, and was not compacted.
#[test]
fn whoever_asks_for_the_topic_of_groups_first_it_is_the_same() {
    use api::metadata::{MetadataRequestTopic, Request, Response};
    let settings = [("offsets.topic.num.partitions", "7"), ("num.partitions", "2")];
    let broker = Broker::start(&settings);
    let names = [OFFSETS_TOPIC, "ordinary"]
        .map(|name| MetadataRequestTopic { name: Some(name), ..MetadataRequestTopic::default() });
    let request = Request {
        topics: Some(names.to_vec()),
        allow_auto_topic_creation: true,
        ..Request::default()
    };
    let body = ask(&broker, ApiKey::Metadata, 9, &request);
    let answer: Response<'_> = read(&body, ApiKey::Metadata, 9);
    let told: Vec<_> =
        answer.topics.iter().map(|topic| (topic.is_internal, topic.partitions.len())).collect();
    assert_eq!(told, [(true, 7), (false, 2)]);

    use api::describe_configs::DescribeConfigsResource;
    let resource = DescribeConfigsResource {
        resource_type: 2,
        resource_name: OFFSETS_TOPIC,
        configuration_keys: Some(vec!["cleanup.policy"]),
    };
    let request =
        api::describe_configs::Request { resources: vec![resource], ..Default::default() };
    let body = ask(&broker, ApiKey::DescribeConfigs, 4, &request);
    let answer: api::describe_configs::Response<'_> = read(&body, ApiKey::DescribeConfigs, 4);
    assert_eq!(answer.results[0].configs[0].value, Some("compact"));
}

/// One batch was written for all of them, which the topic refused: they stayed for ever.
#[test]
fn more_offsets_than_a_batch_holds_go_with_their_topic_or_group() {
    let mut broker = Broker::start(&[]);
    let (topic, kept) = (fresh("gone"), fresh("kept"));
    for topic in [&topic, &kept] {
        create_topic(&broker.bootstrap(), topic, 200);
    }
    let (loses, deleted) = (fresh("loses"), fresh("deleted"));
    let all: Vec<i32> = (0..200).collect();
    for few in all.chunks(10) {
        commit(&broker, &loses, &topic, few);
        commit(&broker, &deleted, &kept, few);
    }
    alter(&broker, OFFSETS_TOPIC, "max.message.bytes", "2000");
    assert_eq!([&loses, &deleted].map(|group| committed(&broker, group)), [200, 200]);
    assert_eq!(delete_topic(&mut Peer::connect(broker.address()), &topic), 0);
    await_that("forgotten", &broker, || committed(&broker, &loses) == 0);
    let request = api::delete_groups::Request { groups_names: vec![&deleted] };
    let body = ask(&broker, ApiKey::DeleteGroups, 1, &request);
    let answer: api::delete_groups::Response<'_> = read(&body, ApiKey::DeleteGroups, 1);
    assert_eq!(answer.results[0].error_code, 0);
    broker.restart();
    assert_eq!([&loses, &deleted].map(|group| committed(&broker, group)), [0, 0]);
}

/// Each core once told of all groups, and a client that asks every broker found each twice.
#[test]
fn a_core_that_is_a_broker_of_its_own_lists_its_own_groups() {
    let broker = Broker::start(&[("per.core.listeners", "true")]);
    let topic = fresh("topic");
    create_topic(&broker.bootstrap(), &topic, 1);
    let groups: BTreeSet<String> = (0..20).map(|_| fresh("group")).collect();
    for group in &groups {
        commit(&broker, group, &topic, &[0]);
    }
    let of_core = [1, 2].map(|core| {
        let mut address = broker.address();
        address.set_port(address.port() + core);
        listed(&mut Peer::connect(address))
    });
    assert!(of_core.iter().all(|found| !found.is_empty()), "{of_core:?}");
    assert_eq!(of_core[0].len() + of_core[1].len(), groups.len());
    assert_eq!(of_core.concat().into_iter().collect::<BTreeSet<_>>(), groups);
}
