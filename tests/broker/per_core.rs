//! Every core a broker of its own (`per.core.listeners`): an unmodified client finds each
//! partition's core by the ordinary metadata.

use std::collections::BTreeSet;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::librdkafka::{config, consume, create_topic, produce};
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
