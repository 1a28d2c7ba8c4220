//! `kill -9` under load: what was acknowledged is there, in order, once, at the same offset.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};

use crate::librdkafka::{Deliveries, config, create_topic};
use crate::world::{Broker, fresh};

const KILLS: usize = 50;
const PARTITIONS: i32 = 4;
const READ_MAX: Duration = Duration::from_secs(60);

/// (partition, offset) of a record, and its value.
type Records = BTreeMap<(i32, i64), Vec<u8>>;

#[test]
fn kill_9_under_load_loses_and_repeats_nothing() {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let mut chance = Chance(u64::from(since.subsec_nanos()) | 1);
    println!("seed {}", chance.0);
    let mut broker = Broker::start(&[]);
    let (bootstrap, topic) = (broker.bootstrap(), fresh("killed"));
    create_topic(&bootstrap, &topic, PARTITIONS);

    let told = Deliveries::default();
    let producer: ThreadedProducer<Deliveries> = config(&bootstrap)
        .set("enable.idempotence", "true")
        .set("reconnect.backoff.max.ms", "100")
        .set("linger.ms", "1")
        .set("log_level", "0")
        .create_with_context(told.clone())
        .expect("a producer");
    let (producer, stop) = (Arc::new(producer), Arc::new(AtomicBool::new(false)));
    let load = {
        let (producer, topic, stop) = (producer.clone(), topic.clone(), stop.clone());
        std::thread::spawn(move || load(&producer, &topic, &stop))
    };

    let mut seen = Records::new();
    for _ in 0..KILLS {
        std::thread::sleep(Duration::from_millis(chance.below(700)));
        broker.kill();
        broker.launch();
        read_what_was_acknowledged(&bootstrap, &topic, &told, &mut seen);
    }
    stop.store(true, Ordering::Relaxed);
    let sent = load.join().expect("the load ends");
    producer.flush(READ_MAX).expect("everything is answered in the end");
    broker.assert_alive();
    assert_eq!(*told.failed.lock().expect("no panic inside"), Vec::<String>::new());

    // What was read once is still what stands there, and everything that was sent is there once.
    let mut whole = Records::new();
    read_what_was_acknowledged(&bootstrap, &topic, &told, &mut whole);
    for (place, value) in &seen {
        assert_eq!(whole.get(place), Some(value), "{place:?} changed after it was read");
    }
    in_order_and_once(&whole, sent);
    println!("{KILLS} kills, {sent} records");
}

/// Sends numbered records until told to stop; how many.
fn load(producer: &ThreadedProducer<Deliveries>, topic: &str, stop: &AtomicBool) -> usize {
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        let partition = i32::try_from(sent % 4).expect("small");
        let value = format!("{partition}/{:09}/{}", sent / 4, "v".repeat(sent * 31 % 900));
        let record = BaseRecord::<(), str>::to(topic).partition(partition).payload(&value);
        match producer.send(record) {
            Ok(()) => sent += 1,
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
        if sent % 8 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    sent
}

/// Reads on from what is in `seen` up to the last acknowledged record of each partition, and
/// compares every acknowledged one.
fn read_what_was_acknowledged(bootstrap: &str, topic: &str, told: &Deliveries, seen: &mut Records) {
    let acknowledged = told.done.lock().expect("no panic inside").clone();
    let mut ends: BTreeMap<i32, i64> = BTreeMap::new();
    for (partition, offset, _) in &acknowledged {
        let end = ends.entry(*partition).or_default();
        *end = (*end).max(offset + 1);
    }
    let mut places = TopicPartitionList::new();
    let mut next: BTreeMap<i32, i64> = BTreeMap::new();
    for partition in ends.keys() {
        let last = seen.range((*partition, 0)..(*partition + 1, 0)).next_back();
        let from = last.map_or(0, |((_, offset), _)| offset + 1);
        next.insert(*partition, from);
        places.add_partition_offset(topic, *partition, Offset::Offset(from)).expect("an offset");
    }
    let consumer: BaseConsumer = config(bootstrap)
        .set("group.id", "not-joined")
        .set("auto.offset.reset", "error")
        .create()
        .expect("a consumer");
    consumer.assign(&places).expect("assigned");
    let until = Instant::now() + READ_MAX;
    while ends.iter().any(|(partition, end)| next[partition] < *end) {
        assert!(Instant::now() < until, "acknowledged up to {ends:?}, readable to {next:?}");
        let Some(message) = consumer.poll(Duration::from_millis(50)) else { continue };
        let message = match message {
            Ok(message) => message,
            // librdkafka connects again by itself.
            Err(KafkaError::MessageConsumption(
                RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::BrokerTransportFailure,
            )) => continue,
            Err(error) => panic!("a record, not an error: {error}"),
        };
        let (partition, offset) = (message.partition(), message.offset());
        let wanted = next.get_mut(&partition).expect("an assigned partition");
        assert_eq!(offset, *wanted, "partition {partition}: offsets are dense");
        *wanted += 1;
        seen.insert((partition, offset), message.payload().unwrap_or_default().to_vec());
    }
    for (partition, offset, value) in &acknowledged {
        let found = seen.get(&(*partition, *offset));
        assert_eq!(found, Some(value), "acknowledged at {partition}/{offset}");
    }
}

fn in_order_and_once(whole: &Records, sent: usize) {
    let mut last: BTreeMap<i32, &[u8]> = BTreeMap::new();
    let mut values = BTreeSet::new();
    for ((partition, offset), value) in whole {
        let head = &value[..11.min(value.len())];
        let before = last.insert(*partition, head);
        assert!(before < Some(head), "{partition}/{offset} is out of order or a repetition");
        values.insert(value);
    }
    assert_eq!(values.len(), sent, "every record is there once");
}

/// A small generator (xorshift), so that a seed tells the whole run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
