//! The producer's and the consumer's minds against a broker in memory, in virtual time.

mod failover;
mod groups;
mod transactions;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::consumer::Consumer;
use super::keys::{KeyShape, Keys};
use super::ledger::{Ledger, Verdict};
use super::options::{Isolation, Mode, Plan, Rate, Start};
use super::payload::{Pool, Sizes};
use super::producer::{Producer, Shape, Strange};
use super::recorder::{Interval, Recorder};
use super::route::Route;
use super::target::{Place, Target};
use crate::wire::api::{ApiKey, fetch, produce};
use crate::wire::error::ErrorCode;
use crate::wire::header::{RequestHeader, RequestStart, decode_body, put_response_header};
use crate::wire::primitive::{Reader, Wire};
use crate::wire::records::{BatchHeader, crc, stamp, validate};

const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MILLI;
const VERSION: i16 = 9;

fn shape(rate: f64, places: usize, in_flight: usize) -> Arc<Shape> {
    Arc::new(owned_shape(rate, places, in_flight))
}

fn owned_shape(rate: f64, places: usize, in_flight: usize) -> Shape {
    let plan = Plan {
        mode: Mode::Verify,
        bootstrap: String::new(),
        security: Default::default(),
        producers: 1,
        consumers: 1,
        groups: 1,
        is_grouped: false,
        group: None,
        commit_interval: Duration::from_secs(5),
        topics: vec!["t".to_string()],
        partitions: 1,
        replication: 1,
        sizes: Sizes { min: 40, max: 90 },
        keys: KeyShape::Uniform(20),
        compressibility: 0.0,
        acks: -1,
        idempotent: true,
        transactions: None,
        isolation: Isolation::ReadUncommitted,
        codec: crate::wire::records::Codec::None,
        linger: Duration::ZERO,
        batch_bytes: 16_384,
        in_flight,
        fetch_bytes: 1 << 20,
        from: Start::End,
        warm_up: Duration::ZERO,
        duration: Duration::from_secs(3),
        cpus: vec![0],
    };
    let place = |partition| Place { topic: 0, partition, start: 0, end: 0 };
    let target = Target {
        topics: plan.topics.clone(),
        places: (0..i32::try_from(places).expect("few")).map(place).collect(),
        route: Arc::new(Route::default().next(&vec![1; places], &brokers())),
        produce_version: VERSION,
        fetch_version: VERSION,
        identities: vec![(7, 0)],
        versions: BTreeMap::from([(ApiKey::ListOffsets, 5)]),
        ..Target::default()
    };
    let (pool, keys) = (Pool::new(90, plan.batch_bytes, 0.0, 1), Keys::new(plan.keys));
    Shape { plan, target, rate: Rate::PerSecond(rate), pool, keys, run: 99 }
}

/// Brokers 1 and 2.
fn brokers() -> BTreeMap<i32, SocketAddr> {
    [1, 2].map(|id: u16| (i32::from(id), SocketAddr::from(([127, 0, 0, 1], id)))).into()
}

/// A broker that keeps batches by partition and insists on their sequence.
#[derive(Default)]
struct Broker {
    logs: Vec<Vec<Bytes>>,
    next_sequence: Vec<i32>,
    epochs: Vec<i16>,
    ends: Vec<i64>,
    /// The code that each partition answers with instead of storing.
    refusals: Vec<ErrorCode>,
    /// A producer that is not known begins with any number, as at Kafka's brokers.
    is_lenient: bool,
    requests: usize,
}

impl Broker {
    fn new(partitions: usize) -> Broker {
        Broker {
            logs: vec![Vec::new(); partitions],
            next_sequence: vec![0; partitions],
            epochs: vec![0; partitions],
            refusals: vec![ErrorCode::NONE; partitions],
            ends: vec![0; partitions],
            is_lenient: false,
            requests: 0,
        }
    }

    /// Serves a Produce request; with an error, nothing is stored.
    fn produce(&mut self, frame: &[u8], error: ErrorCode) -> Bytes {
        self.requests += 1;
        let length = u32::from_be_bytes(frame[..4].try_into().expect("four"));
        assert_eq!(usize::try_from(length), Ok(frame.len() - 4), "the length is right");
        let mut reader = Reader::new(&frame[4..]);
        let start = RequestStart::decode(&mut reader).expect("a start");
        RequestHeader::decode(start, ApiKey::Produce, &mut reader).expect("a header");
        let request: produce::Request<'_> =
            decode_body(reader.rest(), ApiKey::Produce, VERSION).expect("a request");
        let mut seen = Vec::new();
        let mut topics = Vec::new();
        for topic in &request.topic_data {
            let mut answers = Vec::new();
            for data in &topic.partition_data {
                assert!(!seen.contains(&data.index), "one batch of each partition");
                seen.push(data.index);
                let code = if error.is_error() { error } else { self.store(data) };
                answers.push(produce::PartitionProduceResponse {
                    index: data.index,
                    error_code: code.0,
                    ..Default::default()
                });
            }
            topics.push(produce::TopicProduceResponse {
                name: topic.name,
                partition_responses: answers,
                ..Default::default()
            });
        }
        let answer = produce::Response { responses: topics, ..Default::default() };
        framed(ApiKey::Produce, start.correlation, &answer)
    }

    fn store(&mut self, data: &produce::PartitionProduceData<'_>) -> ErrorCode {
        let batch = data.records.expect("records");
        let header = BatchHeader::read(batch).expect("whole");
        assert_eq!(header.crc, crc(batch), "a sound batch");
        if !header.is_transactional() {
            validate(batch).expect("a sound batch");
        }
        let at = usize::try_from(data.index).expect("a partition");
        if self.refusals[at].is_error() {
            return self.refusals[at];
        }
        if header.producer_epoch < self.epochs[at] {
            return ErrorCode::INVALID_PRODUCER_EPOCH;
        }
        let is_new = header.producer_epoch > self.epochs[at];
        let is_unknown = self.is_lenient && self.logs[at].is_empty();
        let next = if is_new { 0 } else { self.next_sequence[at] };
        let next = if is_unknown { header.base_sequence } else { next };
        if header.base_sequence + header.count <= next {
            return ErrorCode::NONE;
        }
        if header.base_sequence != next {
            return ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER;
        }
        (self.epochs[at], self.next_sequence[at]) = (header.producer_epoch, next);
        let mut batch = batch.to_vec();
        stamp(&mut batch, self.ends[at], 0);
        self.next_sequence[at] += header.count;
        self.ends[at] += i64::from(header.count);
        self.logs[at].push(batch.into());
        ErrorCode::NONE
    }

    /// Everything, as the answer to the first request of a consumer.
    fn fetch(&self) -> Bytes {
        let logs: Vec<Vec<u8>> = self.logs.iter().map(|log| log.concat()).collect();
        let part = |(at, log)| fetch::PartitionData {
            partition_index: i32::try_from(at).expect("few"),
            high_watermark: self.ends[at],
            records: Some(log),
            ..Default::default()
        };
        let partitions = logs.iter().map(Vec::as_slice).enumerate().map(part).collect();
        let topic = fetch::FetchableTopicResponse { topic: "t", partitions, ..Default::default() };
        let answer = fetch::Response { responses: vec![topic], ..Default::default() };
        framed(ApiKey::Fetch, 1, &answer)
    }
}

fn framed<'a>(api: ApiKey, correlation: i32, answer: &impl Wire<'a>) -> Bytes {
    let mut out = BytesMut::new();
    put_response_header(&mut out, api, VERSION, correlation);
    answer.encode(&mut out, api.context(VERSION));
    out.freeze()
}

/// The frame of a lane's next request.
fn taken(mind: &mut Producer, lane: usize, now: u64) -> Option<BytesMut> {
    let mut frame = BytesMut::new();
    mind.take(lane, now).then(|| mind.write(lane, &mut frame)).map(|()| frame)
}

/// Runs a producer for 3 s of virtual time; `serve` says when a request that arrives is answered,
/// and with which error. Returns what was measured and noted.
fn drive(
    shape: &Arc<Shape>,
    broker: &mut Broker,
    mut serve: impl FnMut(usize, u64) -> (u64, ErrorCode),
) -> (Interval, Ledger) {
    let mut mind = Producer::new(0, shape.clone(), 0, 0, 3 * SECOND);
    let mut recorder = Recorder::new(0, 0..3 * SECOND);
    let mut ledger = Ledger::new(1);
    let mut answers: Vec<(u64, Bytes)> = Vec::new();
    let mut now = 0;
    while !mind.is_done(now) {
        assert!(now < 100 * SECOND, "the producer comes to its end");
        mind.fill(now, &mut recorder);
        while let Some(frame) = taken(&mut mind, 0, now) {
            let (at, error) = serve(broker.requests, now);
            // Answers come in the order of their requests.
            let at = answers.last().map_or(at, |(last, _)| at.max(*last));
            answers.push((at, broker.produce(&frame, error)));
        }
        let next = answers.first().map(|(at, _)| *at);
        let wake = [next, mind.next_wake(now, |_| true)].into_iter().flatten().min();
        now = wake.expect("there is always something to come").max(now + 1);
        while answers.first().is_some_and(|(at, _)| *at <= now) {
            let (_, frame) = answers.remove(0);
            mind.answer(0, &frame, now, &mut recorder, &mut ledger).expect("understood");
        }
    }
    (recorder.cut(now), ledger)
}

/// The oracle: a broker that answers in 1 ms, but from 1 s to 2 s only at 2 s. A record that was
/// meant for a moment `t` of that second is acknowledged at 2.001 s, whenever it was sent: a third
/// of all records wait up to a second, and half of those more than half a second.
#[test]
fn a_stalled_broker_costs_every_record_that_was_meant_for_the_stall() {
    let shape = shape(1000.0, 1, 1);
    let (measured, _) = drive(&shape, &mut Broker::new(1), |_, now| {
        let stalled = (SECOND..2 * SECOND).contains(&now);
        (if stalled { 2 * SECOND } else { now } + MILLI, ErrorCode::NONE)
    });
    assert_eq!(measured.latency.len(), 3000, "every record that was meant is measured");
    let at = |percentile: f64| measured.latency.value_at_percentile(percentile) / MILLI;
    assert!(at(60.0) <= 3, "outside the stall: {} ms", at(60.0));
    let half = at(100.0 * (1.0 - 1.0 / 6.0));
    assert!((480..=520).contains(&half), "in the middle of the stall: {half} ms");
    assert!((990..=1010).contains(&at(100.0)), "the first one waits longest: {} ms", at(100.0));
    // What a closed loop would have seen: one slow request.
    let slow = measured.service.iter_recorded().filter(|v| v.value_iterated_to() > 100 * MILLI);
    assert_eq!(slow.map(|v| v.count_at_value()).sum::<u64>(), 1);
}

#[test]
fn repeated_batches_are_stored_once_and_in_order() {
    let shape = shape(2000.0, 3, 5);
    let mut broker = Broker::new(3);
    let (measured, mut ledger) = drive(&shape, &mut broker, |request, now| {
        let error = match request % 7 {
            3 => ErrorCode::NOT_LEADER_OR_FOLLOWER,
            _ => ErrorCode::NONE,
        };
        (now + 2 * MILLI, error)
    });
    assert!(measured.errors.contains_key("NOT_LEADER_OR_FOLLOWER"), "{:?}", measured.errors);
    assert_eq!((measured.failed, measured.acknowledged.records), (0, 6000));
    let verdict = read_all(&shape, &broker, &mut ledger);
    assert!(verdict.is_clean(), "{verdict:?}");
    assert_eq!((verdict.acknowledged, verdict.received), (6000, 6000));
}

/// Apache Kafka takes whatever number comes first from a producer that it does not know, so that a
/// second batch in flight would make it refuse the repeated first one for good.
#[test]
fn a_leader_that_is_not_ready_costs_an_idempotent_producer_nothing() {
    let shape = shape(2000.0, 3, 5);
    let mut broker = Broker { is_lenient: true, ..Broker::new(3) };
    let (measured, mut ledger) = drive(&shape, &mut broker, |_, now| {
        let error = match now {
            now if now < 10 * MILLI => ErrorCode::NOT_LEADER_OR_FOLLOWER,
            _ => ErrorCode::NONE,
        };
        (now + 7 * MILLI, error)
    });
    let errors: Vec<&String> = measured.errors.keys().collect();
    assert_eq!(errors, ["NOT_LEADER_OR_FOLLOWER"]);
    assert_eq!((measured.failed, measured.acknowledged.records), (0, 6000));
    assert!(read_all(&shape, &broker, &mut ledger).is_clean());
}

/// A broker that has lost what it acknowledged refuses all that follows: with another epoch the
/// producer goes on.
#[test]
fn a_batch_that_is_out_of_order_with_none_before_it_is_given_up() {
    let shape = shape(500.0, 1, 5);
    let mut broker = Broker::new(1);
    let (mut mind, mut recorder) =
        (Producer::new(0, shape.clone(), 0, 0, SECOND), Recorder::new(0, 0..SECOND));
    let mut ledger = Ledger::new(1);
    let mut now = 0;
    while !mind.is_done(now) {
        assert!(now < 10 * SECOND, "the producer comes to its end");
        mind.fill(now, &mut recorder);
        if let Some(frame) = taken(&mut mind, 0, now) {
            if now > SECOND / 2 && broker.epochs[0] == 0 {
                broker.next_sequence[0] = 1;
            }
            let answer = broker.produce(&frame, ErrorCode::NONE);
            mind.answer(0, &answer, now, &mut recorder, &mut ledger).expect("understood");
        }
        now += MILLI;
    }
    let measured = recorder.cut(now);
    assert_eq!(measured.errors, BTreeMap::from([("OUT_OF_ORDER_SEQUENCE_NUMBER".into(), 1)]));
    assert_eq!((measured.failed, broker.epochs[0]), (1, 1), "{measured:?}");
}

#[test]
fn a_byte_that_changed_under_way_and_a_batch_that_is_gone_are_found() {
    let shape = shape(500.0, 1, 5);
    let mut broker = Broker::new(1);
    let (_, ledger) = drive(&shape, &mut broker, |_, now| (now + MILLI, ErrorCode::NONE));
    let gone = BatchHeader::read(&broker.logs[0].remove(5)).expect("whole").count;
    let verdict = read_all(&shape, &broker, &mut ledger.clone());
    assert_eq!(verdict.lost, u64::from(gone.unsigned_abs()), "{verdict:?}");
    let mut damaged = broker.logs[0][9].to_vec();
    let last = damaged.len() - 5;
    damaged[last] ^= 1;
    broker.logs[0][9] = damaged.into();
    assert!(read_all(&shape, &broker, &mut ledger.clone()).corrupted > 0);
    let again = broker.logs[0][20].clone();
    let twice = u64::from(BatchHeader::read(&again).expect("whole").count.unsigned_abs());
    let mut again = again.to_vec();
    stamp(&mut again, broker.ends[0], 0);
    broker.logs[0].push(again.into());
    assert_eq!(read_all(&shape, &broker, &mut ledger.clone()).duplicated, twice);
}

fn read_all(shape: &Arc<Shape>, broker: &Broker, ledger: &mut Ledger) -> Verdict {
    let mut mind = Consumer::new(0, 0, shape.clone());
    mind.assign(&[(0, 0), (1, 0), (2, 0)]);
    let mut recorder = Recorder::new(0, 0..3 * SECOND);
    assert!(!mind.request(0, 10).is_empty());
    let answer = mind.answer(0, &broker.fetch(), 9 * SECOND, &mut recorder, ledger);
    assert!(!answer.expect("understood").is_wrong);
    ledger.verdict()
}

#[test]
fn strange_answers_are_no_answers() {
    let shape = shape(500.0, 1, 5);
    let mut mind = Producer::new(0, shape.clone(), 0, 0, SECOND);
    let (mut recorder, mut ledger) = (Recorder::new(0, 0..SECOND), Ledger::new(1));
    mind.fill(10 * MILLI, &mut recorder);
    let frame = taken(&mut mind, 0, 10 * MILLI).expect("something is due");
    let sound = Broker::new(1).produce(&frame, ErrorCode::NONE);
    let mut other = sound.to_vec();
    other[3] ^= 1;
    let mut longer = sound.to_vec();
    longer.put_u8(0);
    for strange in [&other[..], &longer[..], &sound[..sound.len() - 1], &[]] {
        let taken = mind.answer(0, strange, 11 * MILLI, &mut recorder, &mut ledger);
        assert_eq!(taken, Err(Strange));
    }
    let mut reader = Consumer::new(0, 0, shape);
    reader.assign(&[(0, 0)]);
    let _ = reader.request(0, 10);
    assert_eq!(reader.answer(0, &[0; 9], 0, &mut recorder, &mut ledger), Err(Strange));
}
