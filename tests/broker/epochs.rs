//! Leader epochs from outside: where each ended, for consumers that look whether a log was cut.

use corelog::wire::api::{self, ApiKey};

use crate::answers::{ask, read};
use crate::frames::{Batch, Peer, produce, produced};
use crate::full::delete_records;
use crate::librdkafka::create_topic;
use crate::world::{Broker, fresh};

/// The epoch in which the broker leads partition 0.
fn current(broker: &Broker, topic: &str) -> i32 {
    use api::metadata::{MetadataRequestTopic, Request, Response};
    let topic = MetadataRequestTopic { name: Some(topic), ..MetadataRequestTopic::default() };
    let request = Request { topics: Some(vec![topic]), ..Request::default() };
    let body = ask(broker, ApiKey::Metadata, 9, &request);
    let answer: Response<'_> = read(&body, ApiKey::Metadata, 9);
    answer.topics[0].partitions[0].leader_epoch
}

/// The epoch and end offset that OffsetForLeaderEpoch tells of an epoch of partition 0.
fn end_of(broker: &Broker, topic: &str, leader_epoch: i32) -> (i32, i64) {
    use api::offset_for_leader_epoch::{
        OffsetForLeaderPartition, OffsetForLeaderTopic, Request, Response,
    };
    let partition =
        OffsetForLeaderPartition { partition: 0, current_leader_epoch: -1, leader_epoch };
    let topics = vec![OffsetForLeaderTopic { topic, partitions: vec![partition] }];
    let request = Request { topics, ..Request::default() };
    let body = ask(broker, ApiKey::OffsetForLeaderEpoch, 4, &request);
    let answer: Response<'_> = read(&body, ApiKey::OffsetForLeaderEpoch, 4);
    let found = &answer.topics[0].partitions[0];
    assert_eq!(found.error_code, 0);
    (found.leader_epoch, found.end_offset)
}

/// It was unknown once, which Java's consumer takes for a log that was cut.
#[test]
fn an_epoch_whose_records_are_deleted_ended_where_the_log_begins() {
    let mut broker = Broker::start(&[]);
    let (topic, empty) = (fresh("epochs"), fresh("empty"));
    for topic in [&topic, &empty] {
        create_topic(&broker.bootstrap(), topic, 1);
    }
    let write = |broker: &Broker| {
        let batch = Batch::default().encode();
        let answer = Peer::connect(broker.address()).ask(&produce(&topic, &batch));
        produced(&answer, &topic)
    };
    let first = current(&broker, &topic);
    assert_eq!([write(&broker), write(&broker)], [(0, 0), (0, 1)]);
    broker.restart();
    let second = current(&broker, &topic);
    assert!(second > first, "{first}, then {second}");
    assert_eq!(write(&broker), (0, 2));
    assert_eq!(end_of(&broker, &topic, first), (first, 2));
    assert_eq!(end_of(&broker, &topic, second), (second, 3));
    assert_eq!(end_of(&broker, &empty, first), (first, 0), "nothing was ever written");

    assert_eq!(delete_records(&mut Peer::connect(broker.address()), &topic, 2), (2, 0));
    for _ in 0..2 {
        assert_eq!(end_of(&broker, &topic, first), (first, 2));
        assert_eq!(end_of(&broker, &topic, second).1, 3);
        broker.restart();
    }
}
