//! What the benches measure, each as a closure that does the work once: criterion takes their time,
//! `count` their instructions and allocations.

use std::hint::black_box;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use corelog::base::buffer::Arena;
use corelog::base::few::Few;
use corelog::base::ids::{PartitionId, TopicNumber};
use corelog::base::time::{Instant, UnixMillis};
use corelog::group::{Effect, Ticket};
use corelog::group::{Groups, Heartbeat, Input, Join, Now, Request, Settings as GroupSettings};
use corelog::io::mailbox::mailbox;
use corelog::io::sim::World;
use corelog::journal::{Entry, EntryKind, Flush, Journal, Replayed, Settings};
use corelog::segment::cache::Cache;
use corelog::segment::marks::Marks;
use corelog::segment::{Home, SegmentId};
use corelog::wire::api::{ApiKey, produce as table};
use corelog::wire::error::ErrorCode;
use corelog::wire::fetch::{FetchWriter, FetchedHead};
use corelog::wire::header::decode_body;
use corelog::wire::pieces::Pieces;
use corelog::wire::primitive::{Uuid, Wire};
use corelog::wire::produce::{self, ProduceSink, TopicRef};
use corelog::wire::records::{BatchBuilder, BatchHeader, Codec, NewRecord, validate};

const PRODUCE_VERSION: i16 = 9;
const FETCH_VERSION: i16 = 12;
const PARTITIONS: i32 = 10;
const RECORD_BYTES: usize = 1024;
/// A segment of 1 GiB in batches of 16 KiB.
const SEGMENT_BATCHES: i64 = 65_536;
const BATCH_BYTES: usize = 16 << 10;

/// The work, done once; what it returns keeps the compiler from leaving it out.
pub type Body = Box<dyn FnMut() -> usize>;

/// A body's name, and what makes it when it is called for.
pub type Named = (&'static str, fn() -> Body);

pub const ALL: &[Named] = &[
    ("codec: decode a Produce request of 10 partitions, in place", decode_produce),
    ("codec: decode the same by the table", decode_produce_by_table),
    ("codec: encode a Fetch response of 10 partitions", encode_fetch),
    ("batch: validate 1 record of 1 KiB", || validation(1)),
    ("batch: validate 100 records of 1 KiB", || validation(100)),
    ("journal: a group of 100 entries of 1 KiB, in the simulator", journal_group),
    ("index: the mark of an offset in 1 GiB", offset_lookup),
    ("index: the mark of a timestamp in 1 GiB", timestamp_lookup),
    ("cache: file and marks of one of 128 segments", cache_hit),
    ("mailbox: send and receive", mailbox_round),
    ("group: heartbeat among 100 members", heartbeat),
    ("group: a first member joins", first_join),
];

/// A batch of `count` records of 1 KiB.
pub fn batch(count: usize) -> Bytes {
    let value = [7; RECORD_BYTES];
    let mut builder = BatchBuilder::new();
    for number in 0..count {
        let timestamp = i64::try_from(number).expect("small");
        builder.push(&NewRecord { timestamp, value: Some(&value), ..NewRecord::default() });
    }
    builder.build(Codec::None).expect("small")
}

/// Ten partitions with a batch each.
pub fn produce_body(batch: &[u8]) -> Bytes {
    let partition = |index| table::PartitionProduceData { index, records: Some(batch) };
    let topic = table::TopicProduceData {
        name: "orders",
        partition_data: (0..PARTITIONS).map(partition).collect(),
        ..table::TopicProduceData::default()
    };
    let request = table::Request {
        acks: -1,
        timeout_ms: 30_000,
        topic_data: vec![topic],
        ..table::Request::default()
    };
    let mut body = BytesMut::new();
    request.encode(&mut body, ApiKey::Produce.context(PRODUCE_VERSION));
    body.freeze()
}

/// Counts what a Produce request holds.
#[derive(Default)]
pub struct Count(pub usize);

impl<'a> ProduceSink<'a> for Count {
    fn topic(&mut self, _: TopicRef<'a>) {}

    fn partition(&mut self, _: i32, records: Option<std::ops::Range<usize>>) {
        self.0 += records.map_or(0, |range| range.len());
    }
}

fn decode_produce() -> Body {
    let body = produce_body(&batch(1));
    Box::new(move || {
        let mut count = Count::default();
        produce::read(black_box(&body), PRODUCE_VERSION, &mut count).expect("sound");
        count.0
    })
}

fn decode_produce_by_table() -> Body {
    let body = produce_body(&batch(1));
    Box::new(move || {
        decode_body::<table::Request>(black_box(&body), ApiKey::Produce, PRODUCE_VERSION)
            .expect("sound")
            .topic_data
            .len()
    })
}

fn encode_fetch() -> Body {
    let records = batch(1);
    let (mut out, mut pieces) = (Pieces::new(), Vec::new());
    Box::new(move || {
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
    })
}

fn validation(count: usize) -> Body {
    let batch = batch(count);
    Box::new(move || {
        usize::try_from(validate(black_box(&batch)).expect("sound").records).expect("few")
    })
}

fn journal_group() -> Body {
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
    Box::new(move || {
        world.block_on(async {
            journal.room(100 * 2 * RECORD_BYTES).await.expect("room");
            journal.release(journal.head());
            let append = |_| journal.append(entry, black_box(&body), |_| {}).expect("accepted");
            let positions = (0..100).map(|number| append(number).position);
            let last = positions.max().expect("a hundred");
            journal.wait_durable(last).await.expect("durable");
        });
        1
    })
}

fn marks() -> Marks {
    let bytes = batch(1);
    let mut header = BatchHeader::read(&bytes).expect("whole");
    let mut marks = Marks::default();
    for number in 0..SEGMENT_BATCHES {
        (header.base_offset, header.max_timestamp) = (number * 16, 1_700_000_000_000 + number);
        marks.add(&header, BATCH_BYTES);
    }
    marks
}

/// Offsets all over the segment.
fn scattered(step: &mut i64) -> i64 {
    *step = (*step + 40_503) % SEGMENT_BATCHES;
    *step
}

fn offset_lookup() -> Body {
    let (marks, mut step) = (marks(), 0);
    Box::new(move || {
        let mark = marks.at(black_box(scattered(&mut step) * 16)).expect("within");
        usize::try_from(mark.position).expect("small")
    })
}

fn timestamp_lookup() -> Body {
    let (marks, mut step) = (marks(), 0);
    Box::new(move || {
        let timestamp = 1_700_000_000_000 + scattered(&mut step);
        let mark = marks.at_timestamp(black_box(timestamp)).expect("within");
        usize::try_from(mark.position).expect("small")
    })
}

fn cache_hit() -> Body {
    let id = |number: u32| SegmentId {
        partition: PartitionId { topic: TopicNumber(1), index: number },
        base: 0,
        home: Home::NEW,
    };
    let (mut cache, few) = (Cache::default(), Rc::new(Marks::default()));
    for number in 0..128 {
        cache.hold(id(number), Rc::new(number));
        cache.hold_marks(id(number), few.clone());
    }
    let mut number = 0;
    Box::new(move || {
        number = (number + 37) % 128;
        let file = cache.file(black_box(id(number))).expect("held");
        let marks = cache.marks(black_box(id(number))).expect("held");
        usize::try_from(*file).expect("small") + marks.len()
    })
}

fn mailbox_round() -> Body {
    let (sender, mut receiver) = mailbox::<[usize; 4]>(1024);
    Box::new(move || {
        assert!(sender.try_send(black_box([1, 2, 3, 4])).is_ok(), "there is room");
        receiver.try_recv().map_or(0, |message| message[3])
    })
}

fn heartbeat() -> Body {
    let mut groups = Groups::new(GroupSettings {
        initial_rebalance_delay: std::time::Duration::from_secs(3600),
        ..GroupSettings::default()
    });
    for member in 1..=100 {
        ask(&mut groups, Request::Join(join(member)));
    }
    let described = groups.describe("group").expect("a group");
    let member_id = described.members[0].member_id.to_string();
    Box::new(move || {
        let member_id = black_box(&member_id).clone();
        let heartbeat = Heartbeat { generation: 0, member_id, instance_id: None };
        ask(&mut groups, Request::Heartbeat(heartbeat)).len()
    })
}

fn first_join() -> Body {
    Box::new(|| {
        let mut groups = Groups::new(GroupSettings::default());
        ask(&mut groups, Request::Join(join(1))).len() + groups.list().count()
    })
}

fn ask(groups: &mut Groups, request: Request) -> Vec<Effect> {
    let now = Now { monotonic: Instant(1_000_000_000), wall: UnixMillis(1_700_000_000_000) };
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
