//! The costs of the codec and of the minds on the hot path, without I/O: decode and encode, batch
//! checks, a journal group, index and cache of segments, a mailbox, a consumer group. Where the
//! `kafka-protocol` crate does the same work, it stands beside ours.
//!
//! `cargo bench --bench codec [filter]`; without `--bench`, as in `cargo test --bench codec`, each
//! runs once. The simulated disk copies what it is given: that is part of the journal's figure.

mod bodies;

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use corelog::base::buffer::Arena;
use corelog::base::few::Few;
use corelog::base::ids::{PartitionId, TopicNumber};
use corelog::base::time::{Instant, UnixMillis};
use corelog::group::{Answer, Effect, Groups, Heartbeat, Input, Join, Now, Request, Ticket};
use corelog::io::mailbox::mailbox;
use corelog::io::sim::World;
use corelog::journal::{Entry, EntryKind, Flush, Journal, Replayed, Settings};
use corelog::wire::api::{ApiKey, metadata, produce as table};
use corelog::wire::error::ErrorCode;
use corelog::wire::fetch::{FetchWriter, FetchedHead};
use corelog::wire::header::decode_body;
use corelog::wire::pieces::Pieces;
use corelog::wire::primitive::{Uuid, Wire};
use corelog::wire::produce;
use corelog::wire::records::{BatchHeader, HEADER_BYTES, Records, validate};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kafka_protocol::messages::{MetadataResponse, ProduceRequest};
use kafka_protocol::protocol::{Decodable, Encodable};

use bodies::{Count, batch, produce_body};

const PRODUCE_VERSION: i16 = 9;
const FETCH_VERSION: i16 = 12;
const METADATA_VERSION: i16 = 12;
const PARTITIONS: i32 = 10;
const RECORD_BYTES: usize = 1024;

criterion_group!(
    benches,
    produce_requests,
    fetch_responses,
    metadata_responses,
    record_batches,
    journal_groups,
    segments,
    mailboxes,
    consumer_groups
);
criterion_main!(benches);

fn produce_requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("produce request, 10 partitions of 1 KiB");
    let body = produce_body(&batch(1));
    group.bench_function("decode in place", |bencher| {
        bencher.iter(|| {
            let mut count = Count::default();
            let head = produce::read(black_box(&body), PRODUCE_VERSION, &mut count);
            (head.expect("sound").acks, count.0)
        });
    });
    group.bench_function("decode by the table", |bencher| {
        bencher.iter(|| {
            decode_body::<table::Request>(black_box(&body), ApiKey::Produce, PRODUCE_VERSION)
                .expect("sound")
                .topic_data
                .len()
        });
    });
    group.bench_function("decode, kafka-protocol", |bencher| {
        bencher.iter(|| {
            let mut body = black_box(&body).clone();
            let request = ProduceRequest::decode(&mut body, PRODUCE_VERSION).expect("sound");
            request.topic_data.len()
        });
    });
    let ours = decode_body::<table::Request>(&body, ApiKey::Produce, PRODUCE_VERSION);
    let ours = ours.expect("sound");
    let mut out = BytesMut::with_capacity(body.len());
    group.bench_function("encode by the table", |bencher| {
        bencher.iter(|| {
            out.clear();
            black_box(&ours).encode(&mut out, ApiKey::Produce.context(PRODUCE_VERSION));
            out.len()
        });
    });
    let theirs = ProduceRequest::decode(&mut body.clone(), PRODUCE_VERSION).expect("sound");
    group.bench_function("encode, kafka-protocol", |bencher| {
        bencher.iter(|| {
            out.clear();
            black_box(&theirs).encode(&mut out, PRODUCE_VERSION).expect("encodable");
            out.len()
        });
    });
}

fn fetch_responses(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fetch response, 10 partitions");
    let records = batch(1);
    let (mut out, mut pieces) = (Pieces::new(), Vec::new());
    group.bench_function("encode around the records", |bencher| {
        bencher.iter(|| {
            let mut writer = FetchWriter::new(&mut out, (FETCH_VERSION, 7), ErrorCode::NONE, 0);
            writer.topics(1);
            writer.topic("orders", Uuid::ZERO, 10);
            for index in 0..PARTITIONS {
                let (error, high_watermark) = (ErrorCode::NONE, 100);
                let (last_stable, log_start) = (100, 0);
                let head = FetchedHead { index, error, high_watermark, last_stable, log_start };
                writer.partition(head, Few::from_iter([black_box(&records).clone()]));
            }
            writer.end_topic();
            writer.finish();
            pieces.clear();
            out.take(&mut pieces);
            pieces.len()
        });
    });
}

fn metadata_responses(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("metadata response, 100 topics of 10 partitions");
    let names: Vec<String> = (0..100).map(|number| format!("topic-{number}")).collect();
    let partition = |partition_index| metadata::MetadataResponsePartition {
        partition_index,
        replica_nodes: vec![1],
        isr_nodes: vec![1],
        ..metadata::MetadataResponsePartition::default()
    };
    let topic = |name| metadata::MetadataResponseTopic {
        name: Some(name),
        partitions: (0..PARTITIONS).map(partition).collect(),
        ..metadata::MetadataResponseTopic::default()
    };
    let response = metadata::Response {
        topics: names.iter().map(|name| topic(name.as_str())).collect(),
        ..metadata::Response::default()
    };
    let context = ApiKey::Metadata.context(METADATA_VERSION);
    let mut body = BytesMut::new();
    response.encode(&mut body, context);
    let body = body.freeze();
    group.throughput(Throughput::Bytes(body.len() as u64));
    let mut out = BytesMut::with_capacity(body.len());
    group.bench_function("encode", |bencher| {
        bencher.iter(|| {
            out.clear();
            black_box(&response).encode(&mut out, context);
            out.len()
        });
    });
    group.bench_function("decode", |bencher| {
        bencher.iter(|| {
            let api = ApiKey::Metadata;
            decode_body::<metadata::Response>(black_box(&body), api, METADATA_VERSION)
                .expect("sound")
                .topics
                .len()
        });
    });
    group.bench_function("decode, kafka-protocol", |bencher| {
        bencher.iter(|| {
            let mut body = black_box(&body).clone();
            MetadataResponse::decode(&mut body, METADATA_VERSION).expect("sound").topics.len()
        });
    });
}

fn record_batches(criterion: &mut Criterion) {
    for count in [1, 100] {
        let mut group = criterion.benchmark_group(format!("batch of {count} records of 1 KiB"));
        let batch = batch(count);
        group.throughput(Throughput::Bytes(batch.len() as u64));
        group.bench_function("validate", |bencher| {
            bencher.iter(|| validate(black_box(&batch)).expect("sound").records);
        });
        group.bench_function("iterate", |bencher| {
            bencher.iter(|| {
                let header = BatchHeader::read(black_box(&batch)).expect("whole");
                let records = Records::new(&header, &batch[HEADER_BYTES..]);
                records.map(|record| record.expect("sound").offset).sum::<i64>()
            });
        });
    }
}

fn journal_groups(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("journal");
    group.throughput(Throughput::Bytes(100 * RECORD_BYTES as u64));
    let endless = corelog::io::sim::Settings { steps_max: u64::MAX, ..Default::default() };
    let world = World::with(1, endless);
    let io = world.node().core(0);
    let settings = Settings {
        directory: "/journal".into(),
        file_bytes: 64 << 20,
        bytes_max: 1 << 30,
        kept_bytes: 0,
        group_bytes_max: 1 << 20,
        pending_bytes_max: 4 << 20,
        tail_bytes_max: 1 << 20,
        flush: Flush::EveryGroup,
    };
    let nothing = &mut |_: Replayed<'_>| {};
    let open = Journal::open(io, Arena::new(64 << 20), settings, nothing);
    let journal = world.block_on(open).expect("a new journal");
    let partition = PartitionId { topic: TopicNumber(1), index: 0 };
    let entry = Entry { kind: EntryKind::LogStart, partition, base_offset: 0, epoch: 0 };
    let body = [7; RECORD_BYTES];
    group.bench_function("a group of 100 entries of 1 KiB, durable in the simulator", |bencher| {
        bencher.iter(|| {
            world.block_on(async {
                journal.room(100 * 2 * RECORD_BYTES).await.expect("room");
                journal.release(journal.head());
                let append = |_| journal.append(entry, black_box(&body), |_| {}).expect("accepted");
                let positions = (0..100).map(|number| append(number).position);
                let last = positions.max().expect("a hundred");
                journal.wait_durable(last).await.expect("durable");
            });
        });
    });
}

/// Where reading of a segment begins, and what is kept of segments.
fn segments(criterion: &mut Criterion) {
    let of_segments = |name: &&str| name.starts_with("index: ") || name.starts_with("cache: ");
    for (name, make) in bodies::ALL.iter().filter(|(name, _)| of_segments(name)) {
        let mut body = make();
        criterion.bench_function(name, |bencher| bencher.iter(&mut body));
    }
}

fn mailboxes(criterion: &mut Criterion) {
    let (sender, mut receiver) = mailbox::<[usize; 4]>(1024);
    criterion.bench_function("mailbox/send and receive", |bencher| {
        bencher.iter(|| {
            assert!(sender.try_send(black_box([1, 2, 3, 4])).is_ok(), "there is room");
            receiver.try_recv()
        });
    });
}

fn consumer_groups(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("consumer group");
    let now = Now { monotonic: Instant(1_000_000_000), wall: UnixMillis(1_700_000_000_000) };
    group.bench_function("a first member joins", |bencher| {
        bencher.iter(|| {
            let mut groups = Groups::new(corelog::group::Settings::default());
            ask(&mut groups, now, Request::Join(join(1))).len() + groups.list().count()
        });
    });
    let mut groups = Groups::new(hasty());
    for member in 1..=100 {
        ask(&mut groups, now, Request::Join(join(member)));
    }
    let heartbeat = Heartbeat { generation: -1, member_id: "nobody".into(), instance_id: None };
    let refused = ask(&mut groups, now, Request::Heartbeat(heartbeat));
    assert!(matches!(refused[..], [Effect::Answer { answer: Answer::Heartbeat(_), .. }]));
    let described = groups.describe("group").expect("a group");
    let member_id = described.members[0].member_id.to_string();
    group.bench_function("heartbeat among 100 members", |bencher| {
        bencher.iter(|| {
            let heartbeat = Heartbeat {
                generation: 0,
                member_id: black_box(&member_id).clone(),
                instance_id: None,
            };
            ask(&mut groups, now, Request::Heartbeat(heartbeat)).len()
        });
    });
}

fn hasty() -> corelog::group::Settings {
    corelog::group::Settings {
        initial_rebalance_delay: std::time::Duration::from_secs(3600),
        ..corelog::group::Settings::default()
    }
}

fn ask(groups: &mut Groups, now: Now, request: Request) -> Vec<Effect> {
    let mut effects = Vec::new();
    let input = Input::Request { ticket: Ticket(1), group_id: "group".into(), request };
    groups.handle(now, input, &mut effects);
    effects
}

fn join(random: u128) -> Join {
    Join {
        member_id: String::new(),
        instance_id: None,
        client_id: "client".into(),
        client_host: "/127.0.0.1".into(),
        session_timeout_ms: 10_000,
        rebalance_timeout_ms: 60_000,
        protocol_type: "consumer".into(),
        protocols: vec![("range".into(), Bytes::from_static(b"\0\0\0\0\0\x01\0\x01t\0\0\0\0"))],
        reason: None,
        require_member_id: false,
        may_skip_assignment: true,
        random,
    }
}
