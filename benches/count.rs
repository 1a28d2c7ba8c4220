//! What each body of `bodies` costs in instructions and allocations, and what a request costs the
//! whole broker in allocations, which must stay as few as they are.
//!
//! `cargo bench --bench count`: every body runs in a process of its own under valgrind's callgrind,
//! once to set up and once to work `TIMES`; the difference is the work's. Such counts hardly vary
//! between runs, so that a change of one percent shows. valgrind has no AVX-512: checksums take
//! more instructions there than on the machine. Without valgrind the column is empty. Without
//! `--bench`, as in `cargo test --bench count`, everything runs a few times only, and instructions
//! are counted of the first body.

mod bodies;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{BufMut, BytesMut};
use corelog::config::{BrokerConfig, Source};
use corelog::wire::api::{ApiKey, create_topics, fetch, produce};
use corelog::wire::header::RequestHeader;
use corelog::wire::primitive::Wire;
use corelog::wire::records::{BatchBuilder, Codec, NewRecord};

/// How often the work is done under callgrind, and uncounted.
const TIMES: u64 = 1000;
const TIMES_TINY: u64 = 3;
/// What a steady request may allocate, of one partition on its own core. A durable group is one
/// counted buffer; beyond that a queue or a table grows now and then, and tasks of the background
/// have their turns.
const PRODUCE_CEILING: f64 = 1.3;
const FETCH_CEILING: f64 = 0.3;
/// Requests to the broker before the counted ones, and those.
const REQUESTS: (u64, u64) = (2000, 5000);
const REQUESTS_TINY: (u64, u64) = (200, 200);
const PRODUCE_VERSION: i16 = 9;
const FETCH_VERSION: i16 = 11;

/// The system's allocator; what all threads but the client's ask for is counted.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_CLIENT: Cell<bool> = const { Cell::new(false) };
}

fn count(bytes: usize) {
    // A thread that ends has no flag any more.
    if !IS_CLIENT.try_with(Cell::get).unwrap_or(true) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator unchanged; the counters allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, number, times] = &arguments[..]
        && mode == "--body"
    {
        let (_, make) = bodies::ALL[number.parse::<usize>().expect("a number")];
        work(&mut make(), times.parse().expect("a number"));
        return;
    }
    let is_bench = arguments.iter().any(|argument| argument == "--bench");
    let times = if is_bench { TIMES } else { TIMES_TINY };
    let has_valgrind = Command::new("valgrind").arg("--version").output().is_ok();
    if !has_valgrind {
        println!("no instructions are counted: valgrind is not installed");
    }
    println!("| per operation | instructions | allocations | bytes allocated |");
    println!("| --- | --- | --- | --- |");
    for (number, (name, make)) in bodies::ALL.iter().enumerate() {
        let (allocations, bytes) = allocated(&mut make(), times);
        // Otherwise one shows that counting works.
        let instructions = match has_valgrind && (is_bench || number == 0) {
            true => instructions(number, times).to_string(),
            false => String::new(),
        };
        println!("| {name} | {instructions} | {allocations} | {bytes} |");
    }
    through_the_broker(if is_bench { REQUESTS } else { REQUESTS_TINY });
}

fn work(body: &mut bodies::Body, times: u64) {
    let sum: usize = (0..times).map(|_| body()).sum();
    std::hint::black_box(sum);
}

/// Allocations and their bytes per operation, to two digits, once memory is there to be used again.
fn allocated(body: &mut bodies::Body, times: u64) -> (String, String) {
    work(body, times);
    let before = counters();
    work(body, times);
    per_operation(before, times)
}

fn counters() -> (u64, u64) {
    (ALLOCATIONS.load(Ordering::Relaxed), BYTES.load(Ordering::Relaxed))
}

fn per_operation(before: (u64, u64), times: u64) -> (String, String) {
    let (allocations, bytes) = counters();
    let each = |amount: u64| format!("{:.2}", amount as f64 / times as f64);
    (each(allocations - before.0), each(bytes - before.1))
}

/// Instructions per operation, by callgrind.
fn instructions(number: usize, times: u64) -> u64 {
    let (idle, busy) = (collected(number, 0), collected(number, times));
    (busy - idle) / times
}

fn collected(number: usize, times: u64) -> u64 {
    let program = std::env::current_exe().expect("this program");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["--body", &number.to_string(), &times.to_string()])
        .output()
        .expect("valgrind starts");
    let said = String::from_utf8_lossy(&output.stderr);
    let count =
        said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    count.unwrap_or_else(|| panic!("callgrind collected nothing: {said}"))
}

/// A node of one core in this process, and a client that waits for each answer.
fn through_the_broker((warm_up, requests): (u64, u64)) {
    IS_CLIENT.set(true);
    let folder = tempfile::tempdir_in(std::env::temp_dir()).expect("a folder");
    let address = free_address();
    let mut config = BrokerConfig::default();
    let data = folder.path().join("data").display().to_string();
    let listen = address.to_string();
    for (name, value) in [("listeners", listen.as_str()), ("log.dirs", &data), ("shards", "1")] {
        config.set(name, value, Source::Flag).expect("a setting");
    }
    // It ends with the process.
    std::thread::spawn(move || corelog::node::serve(config).expect("it serves"));
    let mut client = Client::connect(address);
    client.create_topic();
    let mut other = Client::connect(address);
    let produce = client.produce_frame();
    let fetch = client.fetch_frame(0);
    let steady = |name: &str, ceiling: f64, work: &mut dyn FnMut(u64)| {
        (0..warm_up).for_each(&mut *work);
        let before = counters();
        (warm_up..warm_up + requests).for_each(work);
        let (allocations, bytes) = per_operation(before, requests);
        println!("| broker: {name} of one batch of 1 KiB, durable | | {allocations} | {bytes} |");
        let counted: f64 = allocations.parse().expect("a number");
        assert!(counted <= ceiling, "{name}: {counted} allocations, where {ceiling} were reached");
    };
    steady("Produce", PRODUCE_CEILING, &mut |_| client.ask(&produce));
    steady("Fetch", FETCH_CEILING, &mut |_| client.ask(&fetch));
    let before = warm_up + requests;
    steady("Fetch that waits, and Produce,", PRODUCE_CEILING + FETCH_CEILING, &mut |number| {
        other.send(&client.fetch_frame(before + number));
        client.ask(&produce);
        other.receive();
    });
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("it is bound")
}

struct Client {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Client {
    fn connect(address: SocketAddr) -> Client {
        let patience = Instant::now() + Duration::from_secs(60);
        loop {
            match TcpStream::connect(address) {
                Ok(stream) => {
                    stream.set_nodelay(true).expect("a socket");
                    return Client { stream, answer: Vec::new() };
                }
                Err(error) => assert!(Instant::now() < patience, "no node: {error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn ask(&mut self, frame: &[u8]) {
        self.send(frame);
        self.receive();
    }

    fn send(&mut self, frame: &[u8]) {
        self.stream.write_all(frame).expect("writable");
    }

    fn receive(&mut self) {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).expect("an answer");
        self.answer.resize(usize::try_from(u32::from_be_bytes(length)).expect("small"), 0);
        self.stream.read_exact(&mut self.answer).expect("an answer");
    }

    fn create_topic(&mut self) {
        let topic = create_topics::CreatableTopic {
            name: "counted",
            num_partitions: 1,
            replication_factor: 1,
            ..Default::default()
        };
        let request = create_topics::Request {
            topics: vec![topic],
            timeout_ms: 30_000,
            ..Default::default()
        };
        self.ask(&framed(ApiKey::CreateTopics, 2, &request));
    }

    fn produce_frame(&self) -> BytesMut {
        let mut builder = BatchBuilder::new();
        let value = [7; 1024];
        builder.push(&NewRecord { timestamp: 1, value: Some(&value), ..NewRecord::default() });
        let batch = builder.build(Codec::None).expect("small");
        let data = produce::PartitionProduceData { index: 0, records: Some(&batch) };
        let topic = produce::TopicProduceData {
            name: "counted",
            partition_data: vec![data],
            ..Default::default()
        };
        let request = produce::Request {
            acks: -1,
            timeout_ms: 30_000,
            topic_data: vec![topic],
            ..Default::default()
        };
        framed(ApiKey::Produce, PRODUCE_VERSION, &request)
    }

    fn fetch_frame(&self, offset: u64) -> BytesMut {
        let part = fetch::FetchPartition {
            fetch_offset: i64::try_from(offset).expect("small"),
            partition_max_bytes: 1024,
            ..Default::default()
        };
        let topic =
            fetch::FetchTopic { topic: "counted", partitions: vec![part], ..Default::default() };
        let request = fetch::Request {
            max_wait_ms: 10_000,
            min_bytes: 1,
            topics: vec![topic],
            ..Default::default()
        };
        framed(ApiKey::Fetch, FETCH_VERSION, &request)
    }
}

fn framed<'a>(api: ApiKey, version: i16, request: &impl Wire<'a>) -> BytesMut {
    let mut frame = BytesMut::zeroed(4);
    let header = RequestHeader { api, version, correlation: 1, client_id: Some("count") };
    header.encode(&mut frame);
    request.encode(&mut frame, api.context(version));
    let length = u32::try_from(frame.len() - 4).expect("small");
    (&mut frame[..4]).put_u32(length);
    frame
}
