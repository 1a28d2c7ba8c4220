//! librdkafka through the `rdkafka` crate, in the test's own process, with its defaults.

use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{DeliveryResult, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};

use crate::clients::{Read, value};

const CALL_MAX: Duration = Duration::from_secs(30);

pub fn config(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    config
}

/// Where a record was put, (partition, offset), and its value.
pub type Delivered = (i32, i64, Vec<u8>);

/// What the broker said of each record: its place, or why not.
#[derive(Clone, Default)]
pub struct Deliveries {
    pub done: Arc<Mutex<Vec<Delivered>>>,
    pub failed: Arc<Mutex<Vec<String>>>,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _: ()) {
        match result {
            Ok(message) => {
                let value = message.payload().unwrap_or_default().to_vec();
                let place = (message.partition(), message.offset(), value);
                self.done.lock().expect("no panic inside").push(place);
            }
            Err((error, _)) => {
                self.failed.lock().expect("no panic inside").push(error.to_string());
            }
        }
    }
}

/// Creates a topic and waits until its partitions have leaders.
pub fn create_topic(bootstrap: &str, topic: &str, partitions: i32) {
    let admin: AdminClient<DefaultClientContext> = config(bootstrap).create().expect("an admin");
    let wanted = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    let options = AdminOptions::new().operation_timeout(Some(CALL_MAX));
    let made = block_on(admin.create_topics([&wanted], &options)).expect("an answer");
    for outcome in made {
        outcome.unwrap_or_else(|(name, code)| panic!("creating {name}: {code}"));
    }
    let until = Instant::now() + CALL_MAX;
    loop {
        let seen = admin.inner().fetch_metadata(Some(topic), CALL_MAX).expect("metadata");
        let all = seen.topics()[0].partitions();
        if all.len() == partitions as usize && all.iter().all(|one| one.leader() >= 0) {
            return;
        }
        assert!(Instant::now() < until, "{topic} gets no leaders");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The verb `produce` of `tests/clients/README.md`.
pub fn produce(bootstrap: &str, topic: &str, writer: &str, codecs: &[&str], count: usize) {
    for codec in codecs {
        let told = Deliveries::default();
        let producer: ThreadedProducer<Deliveries> = config(bootstrap)
            .set("compression.type", *codec)
            .create_with_context(told.clone())
            .expect("a producer");
        for i in 0..count {
            let (key, value) = (format!("{writer}-{}", i % 7), value(writer, codec, i));
            let headers = OwnedHeaders::new()
                .insert(Header { key: "writer", value: Some(writer) })
                .insert(Header { key: "codec", value: Some(*codec) });
            let record = BaseRecord::to(topic).key(&key).payload(&value).headers(headers);
            producer.send(record).map_err(|(error, _)| error).expect("room in the queue");
        }
        producer.flush(CALL_MAX).expect("all is answered");
        let failed = told.failed.lock().expect("no panic inside");
        assert!(failed.is_empty(), "{codec}: {failed:?}");
    }
}

/// The verb `consume` of `tests/clients/README.md`.
pub fn consume(bootstrap: &str, topic: &str, count: usize) -> Vec<Read> {
    let consumer: BaseConsumer =
        config(bootstrap).set("group.id", "not-joined").create().expect("a consumer");
    let mut all = TopicPartitionList::new();
    for partition in partitions(&consumer, topic) {
        all.add_partition_offset(topic, partition, Offset::Beginning).expect("a valid offset");
    }
    consumer.assign(&all).expect("assigned");
    let until = Instant::now() + CALL_MAX;
    let mut found = Vec::new();
    while found.len() < count {
        assert!(Instant::now() < until, "{} of {count} records in {CALL_MAX:?}", found.len());
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = message.expect("a record");
        let text = |bytes: Option<&[u8]>| {
            String::from_utf8(bytes.unwrap_or_default().to_vec()).expect("UTF-8")
        };
        let headers = message.headers().expect("headers").iter();
        found.push(Read {
            partition: i64::from(message.partition()),
            offset: message.offset(),
            key: text(message.key()),
            value: text(message.payload()),
            headers: headers.map(|one| (one.key.to_owned(), text(one.value))).collect(),
        });
    }
    found
}

fn partitions(consumer: &BaseConsumer, topic: &str) -> Vec<i32> {
    let seen = consumer.fetch_metadata(Some(topic), CALL_MAX).expect("metadata");
    seen.topics()[0].partitions().iter().map(|partition| partition.id()).collect()
}

/// The records of a topic that no committed offset of the group covers, over all partitions.
pub fn lag(bootstrap: &str, topic: &str, group: &str) -> i64 {
    let consumer: BaseConsumer =
        config(bootstrap).set("group.id", group).create().expect("a consumer");
    let mut asked = TopicPartitionList::new();
    for partition in partitions(&consumer, topic) {
        asked.add_partition(topic, partition);
    }
    let committed = consumer.committed_offsets(asked, CALL_MAX).expect("committed offsets");
    let behind = committed.elements().into_iter().map(|one| {
        let (low, high) =
            consumer.fetch_watermarks(topic, one.partition(), CALL_MAX).expect("watermarks");
        high - one.offset().to_raw().filter(|offset| *offset >= 0).unwrap_or(low)
    });
    behind.sum()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}
