//! A request that names one thing many times is told of it once: else a few bytes asked for as
//! many megabytes as somebody liked.

use corelog::wire::api::{self, ApiKey};

use crate::answers::{ask, read};
use crate::coordinators::commit;
use crate::librdkafka::create_topic;
use crate::world::{Broker, fresh};

/// How often a thing is named.
const TIMES: usize = 1000;

#[test]
fn a_resource_that_is_named_again_is_described_once_with_all_that_is_asked_for() {
    use api::describe_configs::{DescribeConfigsResource, Request, Response};
    let broker = Broker::start(&[]);
    let topic = fresh("resource");
    create_topic(&broker.bootstrap(), &topic, 1);
    let resource = |resource_type, resource_name, keys: Option<&[&'static str]>| {
        let configuration_keys = keys.map(<[&str]>::to_vec);
        DescribeConfigsResource { resource_type, resource_name, configuration_keys }
    };
    let mut resources = vec![resource(4, "1", None); TIMES];
    for keys in [["retention.ms"], ["segment.bytes"], ["retention.ms"]] {
        resources.push(resource(2, &topic, Some(&keys)));
    }
    let request = Request { resources, ..Request::default() };
    let body = ask(&broker, ApiKey::DescribeConfigs, 4, &request);
    let answer: Response<'_> = read(&body, ApiKey::DescribeConfigs, 4);
    let found: Vec<_> =
        answer.results.iter().map(|one| (one.resource_type, one.error_code)).collect();
    assert_eq!(found, [(4, 0), (2, 0)]);
    let mut names: Vec<_> = answer.results[1].configs.iter().map(|config| config.name).collect();
    names.sort_unstable();
    assert_eq!(names, ["retention.ms", "segment.bytes"]);
}

#[test]
fn a_group_that_is_named_again_is_told_of_once() {
    let broker = Broker::start(&[]);
    let (topic, group) = (fresh("topic"), fresh("group"));
    create_topic(&broker.bootstrap(), &topic, 2);
    commit(&broker, &group, &topic, &[0, 1]);
    let groups = vec![group.as_str(); TIMES];

    let request = api::describe_groups::Request { groups: groups.clone(), ..Default::default() };
    let body = ask(&broker, ApiKey::DescribeGroups, 5, &request);
    let answer: api::describe_groups::Response<'_> = read(&body, ApiKey::DescribeGroups, 5);
    assert_eq!(answer.groups.len(), 1);

    let request = api::find_coordinator::Request { coordinator_keys: groups, ..Default::default() };
    let body = ask(&broker, ApiKey::FindCoordinator, 4, &request);
    let answer: api::find_coordinator::Response<'_> = read(&body, ApiKey::FindCoordinator, 4);
    assert_eq!(answer.coordinators.len(), 1);
}

#[test]
fn a_position_that_is_asked_for_again_is_told_once() {
    use api::offset_fetch::{
        OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics, Request,
        Response,
    };
    let broker = Broker::start(&[]);
    let (topic, group, all) = (fresh("topic"), fresh("group"), fresh("all"));
    create_topic(&broker.bootstrap(), &topic, 2);
    for group in [&group, &all] {
        commit(&broker, group, &topic, &[0, 1]);
    }
    let mention = |partition: i32| OffsetFetchRequestTopics {
        name: &topic,
        partition_indexes: vec![partition; 3],
        ..Default::default()
    };
    let ask_of = |group_id, topics| OffsetFetchRequestGroup {
        group_id,
        topics,
        ..OffsetFetchRequestGroup::default()
    };
    let mut groups = vec![ask_of(&group, Some(vec![mention(1), mention(0)])); TIMES];
    groups.push(ask_of(&group, Some(vec![mention(7)])));
    groups.extend(vec![ask_of(&all, Some(vec![mention(0)])), ask_of(&all, None)]);
    let request = Request { groups, ..Request::default() };
    let body = ask(&broker, ApiKey::OffsetFetch, 8, &request);
    let answer: Response<'_> = read(&body, ApiKey::OffsetFetch, 8);
    let told = answer.groups.iter().map(|group| {
        let partitions = group.topics.iter().flat_map(|topic| topic.partitions.iter());
        let told = partitions.map(|one| (one.partition_index, one.committed_offset));
        (group.group_id, told.collect::<Vec<_>>())
    });
    let expected = [
        (group.as_str(), vec![(1, 1001), (0, 1000), (7, -1)]),
        (all.as_str(), vec![(0, 1000), (1, 1001)]),
    ];
    assert!(told.eq(expected), "{:?}", answer.groups);

    let mention = OffsetFetchRequestTopic { name: &topic, partition_indexes: vec![1; TIMES] };
    let topics = Some(vec![mention; 3]);
    let request = Request { group_id: &group, topics, ..Request::default() };
    let body = ask(&broker, ApiKey::OffsetFetch, 7, &request);
    let answer: Response<'_> = read(&body, ApiKey::OffsetFetch, 7);
    assert_eq!(answer.topics.len(), 1);
    assert_eq!(answer.topics[0].partitions.len(), 1);
}
