//! Everything that a core does at once - timers, sockets that come and go, flushed writes, messages
//! between cores - for a while: no task may stand still, and nothing may pile up.
//!
//! `CORELOG_SOAK_SECONDS` lengthens it from a few seconds to as long as wanted.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use corelog::base::buffer::Arena;
use corelog::io::mailbox::{Receiver, Refused, Sender, mailbox};
use corelog::io::ring::{Engine, RingIo, boot_on, probe};
use corelog::io::{BLOCK_BYTES, Durability, File, Io, Listener, OpenHow, Stream};

/// What each core does, each with its own count of steps.
const ACTIVITIES: [&str; 5] = ["timer", "echo", "churn", "flushed write", "message"];
const CLIENTS_PER_CORE: u64 = 8;
const FILE_BLOCKS: u64 = 256;
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A lost wake-up lasts for ever; a machine that is busy with other work makes long pauses too, so
/// the patience is well above those. The longest pause is printed.
const PATIENCE: Duration = Duration::from_secs(20);
const RESIDENT_GROWTH_MAX: u64 = 32 << 20;

type Ends = (Sender<u64>, Receiver<u64>);

struct World {
    counts: Vec<[AtomicU64; ACTIVITIES.len()]>,
    stopping: AtomicBool,
    ends: Mutex<Vec<Option<Ends>>>,
    directory: PathBuf,
}

impl World {
    fn step(&self, io: &RingIo, activity: usize) -> bool {
        self.counts[io.core().index()][activity].fetch_add(1, Ordering::Relaxed);
        !self.stopping.load(Ordering::Relaxed)
    }
}

#[test]
fn nothing_stalls_or_piles_up_on_two_executors() {
    soak(Engine::Own, 2);
}

#[test]
fn nothing_stalls_or_piles_up_on_four_executors_that_share_cpus() {
    soak(Engine::Own, 4);
}

#[test]
fn nothing_stalls_or_piles_up_on_two_executors_of_glommio() {
    soak(Engine::Glommio, 2);
}

#[test]
fn nothing_stalls_or_piles_up_on_four_executors_of_glommio_that_share_cpus() {
    soak(Engine::Glommio, 4);
}

fn soak(engine: Engine, cores: usize) {
    let seconds = std::env::var("CORELOG_SOAK_SECONDS").ok();
    let seconds = seconds.and_then(|text| text.parse().ok()).unwrap_or(4);
    let directory = tempfile::tempdir().expect("a temporary folder");
    let world = Arc::new(World {
        counts: (0..cores).map(|_| Default::default()).collect(),
        stopping: AtomicBool::new(false),
        ends: Mutex::new(circle(cores)),
        directory: directory.path().to_owned(),
    });
    let cpus: Vec<usize> = probe::cpus().into_iter().cycle().take(cores).collect();
    let inside = world.clone();
    let executors =
        boot_on(engine, &cpus, 4 << 20, move |io| run(io, inside.clone())).expect("bootable");
    watch(&world, seconds);
    world.stopping.store(true, Ordering::Relaxed);
    for executor in executors {
        executor.join().expect("a clean end");
    }
    println!("{cores} executors ({engine:?}), {seconds} s:{}", told(&world));
}

/// A mailbox from each core to the next.
fn circle(cores: usize) -> Vec<Option<Ends>> {
    let (senders, mut receivers): (Vec<_>, Vec<_>) = (0..cores).map(|_| mailbox(4)).unzip();
    receivers.rotate_right(1);
    senders.into_iter().zip(receivers).map(Some).collect()
}

/// Looks at every count again and again, and at the process's descriptors and memory.
fn watch(world: &World, seconds: u64) {
    std::thread::sleep(Duration::from_secs(1));
    let (descriptors, resident) = (open_descriptors(), resident_bytes());
    let began = Instant::now();
    let mut last = vec![[(0, began); ACTIVITIES.len()]; world.counts.len()];
    let mut longest = (Duration::ZERO, 0, "");
    while began.elapsed() < Duration::from_secs(seconds) {
        std::thread::sleep(LOOK_EVERY);
        for (core, counts) in world.counts.iter().enumerate() {
            for (activity, count) in counts.iter().enumerate() {
                let seen = count.load(Ordering::Relaxed);
                let (before, since) = &mut last[core][activity];
                let (paused, name) = (since.elapsed(), ACTIVITIES[activity]);
                assert!(paused < PATIENCE, "core {core} stands still: {name}{}", told(world));
                if seen > *before {
                    longest = longest.max((paused, core, name));
                    (*before, *since) = (seen, Instant::now());
                }
            }
        }
    }
    println!("longest pause: {longest:?}");
    // The tests of this file run side by side, each with sockets that come and go.
    let few = descriptors + 200;
    assert!(open_descriptors() < few, "{descriptors}, then {}", open_descriptors());
    let grown = resident_bytes().saturating_sub(resident);
    assert!(grown < RESIDENT_GROWTH_MAX, "{grown} bytes more than at the start");
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("a kernel that tells");
    let pages = text.split(' ').nth(1).and_then(|field| field.parse::<u64>().ok());
    pages.expect("a number") * 4096
}

fn told(world: &World) -> String {
    let mut text = String::new();
    for (core, counts) in world.counts.iter().enumerate() {
        for (name, count) in ACTIVITIES.iter().zip(counts) {
            let count = count.load(Ordering::Relaxed);
            write!(text, "\n  core {core}: {count} x {name}").expect("memory");
        }
    }
    let resident = resident_bytes() >> 10;
    write!(text, "\n  {} descriptors, {resident} KiB resident", open_descriptors())
        .expect("memory");
    text
}

async fn run(io: RingIo, world: Arc<World>) {
    let running = Rc::new(());
    let listener = io.listen(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
    let listener = Rc::new(listener);
    let address = listener.address();
    io.spawn("accept", accept(io.clone(), listener.clone()));
    let start = |task: std::pin::Pin<Box<dyn Future<Output = ()>>>| {
        let running = running.clone();
        io.spawn("soak", async move {
            task.await;
            drop(running);
        });
    };
    for _ in 0..CLIENTS_PER_CORE {
        start(Box::pin(echo(io.clone(), world.clone(), address)));
        start(Box::pin(timer(io.clone(), world.clone())));
    }
    start(Box::pin(churn(io.clone(), world.clone(), address)));
    start(Box::pin(write(io.clone(), world.clone())));
    start(Box::pin(pass_on(io.clone(), world.clone())));
    while Rc::strong_count(&running) > 1 {
        io.sleep(Duration::from_millis(5)).await;
    }
    listener.close();
}

async fn accept(io: RingIo, listener: Rc<<RingIo as Io>::Listener>) {
    while let Ok(stream) = listener.accept().await {
        io.spawn("serve", async move {
            let mut buffer = BytesMut::new();
            while stream.read(&mut buffer, 64 << 10).await.is_ok_and(|count| count > 0) {
                if stream.write(vec![buffer.split().freeze()]).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn timer(io: RingIo, world: Arc<World>) {
    let mut wait = 1;
    while world.step(&io, 0) {
        wait = wait * 7 % 4999;
        io.sleep(Duration::from_micros(wait)).await;
    }
}

async fn ask(stream: &impl Stream, size: usize) -> bool {
    let request = Bytes::from(vec![7; size]);
    if stream.write(vec![request.slice(..size / 2), request.slice(size / 2..)]).await.is_err() {
        return false;
    }
    let mut answer = BytesMut::new();
    while answer.len() < size {
        if !stream.read(&mut answer, size).await.is_ok_and(|count| count > 0) {
            return false;
        }
    }
    answer == request
}

async fn echo(io: RingIo, world: Arc<World>, address: SocketAddr) {
    let stream = io.connect(address).await.expect("connected");
    let mut size = 1;
    while world.step(&io, 1) {
        size = size * 31 % 40_009;
        assert!(ask(&stream, size).await, "an answer of {size} bytes");
    }
}

/// Connections that ask once, or leave in the middle of a read.
async fn churn(io: RingIo, world: Arc<World>, address: SocketAddr) {
    while world.step(&io, 2) {
        let stream = io.connect(address).await.expect("connected");
        assert!(ask(&stream, 100).await, "an answer");
        let mut nothing = BytesMut::new();
        let read = std::pin::pin!(stream.read(&mut nothing, 10));
        let pause = std::pin::pin!(io.sleep(Duration::from_micros(100)));
        drop(futures_util::future::select(read, pause).await);
        stream.shutdown();
    }
}

async fn write(io: RingIo, world: Arc<World>) {
    let path = world.directory.join(format!("core-{}", io.core().0));
    let path: &Path = &path;
    let file = io.open(path, OpenHow::CreateNew).await.expect("creatable");
    file.allocate(FILE_BLOCKS * BLOCK_BYTES as u64).await.expect("room");
    let arena = Arena::new(1 << 20);
    let mut number = 0_u64;
    while world.step(&io, 3) {
        number += 1;
        let offset = number * 7 % FILE_BLOCKS * BLOCK_BYTES as u64;
        let mut block = arena.take(BLOCK_BYTES).expect("within the budget");
        block.fill(number.to_le_bytes()[0]);
        let block = block.freeze();
        file.write_at(offset, block.clone(), Durability::Flushed).await.expect("written");
        let read = file.read_at(offset, BLOCK_BYTES).await.expect("readable");
        assert!(read[..] == block[..], "block {offset} holds what was written");
    }
}

/// Numbers run around all cores; the first core starts them and so sees them all come back.
async fn pass_on(io: RingIo, world: Arc<World>) {
    let ends = world.ends.lock().unwrap_or_else(PoisonError::into_inner)[io.core().index()].take();
    let (sender, mut receiver) = ends.expect("one pair of ends per core");
    if io.core().0 == 0 {
        assert!(sender.try_send(0).is_ok());
    }
    while let Some(number) = receiver.recv().await {
        if !world.step(&io, 4) {
            return;
        }
        match sender.try_send(number + 1) {
            Ok(()) => {}
            Err(Refused::Closed(_)) => return,
            Err(Refused::Full(_)) => panic!("one number is under way, and there is room for four"),
        }
    }
}
