//! Every core a broker of its own (`per.core.listeners`): an unmodified client finds each
//! partition's core by the ordinary metadata.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::metadata::MetadataTopic;

use crate::frames::{Batch, Peer};
use crate::full::{delete_topic, produce_in_words};
use crate::librdkafka::{config, consume, create_topic, produce};
use crate::segments::create;
use crate::world::{Broker, fresh};

const CALL_MAX: Duration = Duration::from_secs(30);
const PARTITIONS: i32 = 6;

#[test]
fn an_ordinary_client_is_led_to_the_core_of_each_partition() {
    let mut broker = Broker::start(&[("per.core.listeners", "true"), ("node.id", "40")]);
    let (bootstrap, topic) = (broker.bootstrap(), fresh("per-core"));
    create_topic(&bootstrap, &topic, PARTITIONS);
    let client: BaseConsumer = config(&bootstrap).create().expect("a client");
    let seen = client.fetch_metadata(Some(&topic), CALL_MAX).expect("metadata");
    let brokers: BTreeSet<(i32, i32)> =
        seen.brokers().iter().map(|found| (found.id(), found.port())).collect();
    let port = i32::from(broker.address().port());
    assert_eq!(brokers, BTreeSet::from([(40, port + 1), (41, port + 2)]));
    let leaders: BTreeSet<i32> =
        seen.topics()[0].partitions().iter().map(|partition| partition.leader()).collect();
    assert_eq!(leaders, BTreeSet::from([40, 41]), "both cores lead partitions");

    produce(&bootstrap, &topic, "librdkafka", &["none", "lz4"], 200);
    assert_eq!(consume(&bootstrap, &topic, 400).len(), 400);
    broker.assert_alive();
}

#[test]
fn a_cores_own_port_serves_what_other_cores_own() {
    let broker = Broker::start(&[("per.core.listeners", "true")]);
    let topic = fresh("per-core");
    create_topic(&broker.bootstrap(), &topic, PARTITIONS);
    for core in 1..=2 {
        let own = format!("127.0.0.1:{}", broker.address().port() + core);
        produce(&own, &topic, &format!("core-{core}"), &["none"], 60);
    }
    assert_eq!(consume(&broker.bootstrap(), &topic, 120).len(), 120);
}

/// The leader of each topic's first partition.
fn leaders(broker: &Broker) -> BTreeMap<String, i32> {
    let client: BaseConsumer = config(&broker.bootstrap()).create().expect("a client");
    let seen = client.fetch_metadata(None, CALL_MAX).expect("metadata");
    let leader = |topic: &MetadataTopic| topic.partitions()[0].leader();
    seen.topics().iter().map(|topic| (topic.name().to_string(), leader(topic))).collect()
}

#[test]
fn new_topics_keep_off_a_core_that_takes_in_much() {
    let broker = Broker::start(&[("per.core.listeners", "true"), ("node.id", "40")]);
    let mut peer = Peer::connect(broker.address());
    (0..4).for_each(|_| create(&mut peer, &fresh("idle"), &[]));
    let of = |core: i32| move |(_, leader): &(String, i32)| *leader == core;
    // As many on each core: the next one would go to the first.
    let busy: Vec<String> =
        leaders(&broker).into_iter().filter(of(40)).map(|(topic, _)| topic).collect();
    assert_eq!(busy.len(), 2);
    let large = Batch { value_bytes: 1_000_000, ..Batch::default() }.encode();
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1500) {
        assert_eq!(produce_in_words(&mut peer, &busy[0], &large).0, 0);
    }
    let next = fresh("next");
    create(&mut peer, &next, &[]);
    assert_eq!(leaders(&broker)[&next], 41);
}

#[test]
fn new_topics_go_to_the_core_that_has_the_fewest_partitions() {
    let broker = Broker::start(&[("per.core.listeners", "true"), ("node.id", "40")]);
    let leaders = || leaders(&broker);
    let counts = || {
        let led: Vec<i32> = leaders().into_values().collect();
        [40, 41].map(|core| led.iter().filter(|leader| **leader == core).count())
    };
    let mut peer = Peer::connect(broker.address());
    (0..40).for_each(|_| create(&mut peer, &fresh("spread"), &[]));
    assert_eq!(counts(), [20, 20]);
    for (topic, _) in leaders().into_iter().filter(|(_, leader)| *leader == 41) {
        assert_eq!(delete_topic(&mut peer, &topic), 0);
    }
    assert_eq!(counts(), [20, 0]);
    (0..10).for_each(|_| create(&mut peer, &fresh("more"), &[]));
    assert_eq!(counts(), [20, 10]);
    (0..20).for_each(|_| create(&mut peer, &fresh("more"), &[]));
    assert_eq!(counts(), [25, 25]);
}
