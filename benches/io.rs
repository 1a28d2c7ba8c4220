//! What the seam costs: flushed writes and echoes through `io::ring` on both engines, in turns with
//! the plain calls of a blocking thread on the same core.
//!
//! `cargo bench --bench io`; a first argument that is a path names the folder to write in. Without
//! `--bench`, as in `cargo test --bench io`, everything runs for a moment only.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use corelog::base::buffer::Arena;
use corelog::io::ring::{Engine, RingIo, boot_on, probe};
use corelog::io::{Durability, File, Io, Listener, OpenHow, Stream};

const ENGINES: [Engine; 2] = [Engine::Own, Engine::Glommio];
const FILE_BYTES: u64 = 64 << 20;
const CLIENTS: usize = 32;
const REQUEST_BYTES: usize = 128;

/// How much is measured.
#[derive(Clone, Copy)]
struct Scale {
    rounds: usize,
    writes: u64,
    echo_time: Duration,
}

const WHOLE: Scale = Scale { rounds: 3, writes: 1000, echo_time: Duration::from_secs(2) };
const TINY: Scale = Scale { rounds: 1, writes: 10, echo_time: Duration::from_millis(50) };

fn main() {
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let scale = if is_bench { WHOLE } else { TINY };
    let named = std::env::args().nth(1).filter(|argument| !argument.starts_with('-'));
    let folder = tempfile::tempdir_in(named.unwrap_or_else(|| ".".into())).expect("a folder");
    let cpus = probe::cpus();
    let pair = [cpus[0], cpus.get(1).copied().unwrap_or(cpus[0])];
    for engine in ENGINES {
        let path = folder.path().join(format!("{engine:?}"));
        run_on(engine, &pair[..1], move |io| {
            let path = path.clone();
            async move { compare_writes(&io, engine, &path, scale).await }
        });
    }
    let address = free_address();
    for round in 1..=scale.rounds {
        println!("round {round}: echo of {REQUEST_BYTES} bytes, {CLIENTS} connections");
        for engine in ENGINES {
            run_on(engine, &pair, move |io| echo(io, scale, Some(engine), address));
        }
        run_on(Engine::Own, &pair, move |io| echo(io, scale, None, address));
    }
}

/// One that nobody listens at; both servers use it in turns.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("it is bound")
}

fn run_on<F>(engine: Engine, cpus: &[usize], main: impl Fn(RingIo) -> F + Clone + Send + 'static)
where
    F: Future<Output = ()> + 'static,
{
    for executor in boot_on(engine, cpus, 64 << 20, main).expect("bootable") {
        executor.join().expect("a clean end");
    }
}

async fn compare_writes(io: &RingIo, engine: Engine, path: &Path, scale: Scale) {
    let file = io.open(path, OpenHow::CreateNew).await.expect("creatable");
    file.allocate(FILE_BYTES).await.expect("room");
    let raw = std::fs::OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DIRECT | libc::O_DSYNC)
        .open(path)
        .expect("takes O_DIRECT");
    let arena = Arena::new(4 << 20);
    for size in [4 << 10, 64 << 10] {
        let mut data = arena.take(size).expect("within the budget");
        data.fill(7);
        let data = data.freeze();
        let at = |number: u64| number * size as u64 % FILE_BYTES;
        for round in 1..=scale.rounds {
            let mut ring = Vec::new();
            for number in 0..scale.writes {
                let began = Instant::now();
                let write = file.write_at(at(number), data.clone(), Durability::Flushed);
                write.await.expect("written");
                ring.push(began.elapsed());
            }
            let mut plain = Vec::new();
            for number in 0..scale.writes {
                let began = Instant::now();
                raw.write_all_at(&data, at(number)).expect("written");
                plain.push(began.elapsed());
            }
            println!(
                "round {round}: flushed write of {size} bytes: {engine:?} {}, plain {}",
                quantiles(ring),
                quantiles(plain)
            );
        }
    }
}

fn quantiles(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |share: usize| times[times.len() * share / 100].as_micros();
    format!("p50 {} us, p99 {} us", at(50), at(99))
}

/// Core 0 serves, by tasks or by plain threads that inherit its affinity; core 1 asks, on the same
/// engine (on our own if the server has none).
async fn echo(io: RingIo, scale: Scale, server: Option<Engine>, address: SocketAddr) {
    if io.core().0 == 1 {
        ask_for_a_while(&io, server, address, scale.echo_time).await;
    } else if server.is_some() {
        serve_by_ring(&io, address).await;
    } else {
        serve_by_threads(&io, address).await;
    }
}

async fn serve_by_ring(io: &RingIo, address: SocketAddr) {
    let listener = io.listen(address).expect("a free port");
    let open = Rc::new(());
    for _ in 0..CLIENTS {
        let stream = listener.accept().await.expect("a client");
        let open = open.clone();
        io.spawn("echo", async move {
            let mut buffer = BytesMut::new();
            while stream.read(&mut buffer, 4096).await.is_ok_and(|count| count > 0) {
                stream.write(vec![buffer.split().freeze()]).await.expect("writable");
            }
            drop(open);
        });
    }
    while Rc::strong_count(&open) > 1 {
        io.sleep(Duration::from_millis(10)).await;
    }
}

async fn serve_by_threads(io: &RingIo, address: SocketAddr) {
    let accept = std::thread::spawn(move || {
        let listener = TcpListener::bind(address).expect("a free port");
        let serve = |_| {
            let (mut stream, _) = listener.accept().expect("a client");
            stream.set_nodelay(true).expect("a socket");
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    stream.write_all(&buffer[..count]).expect("writable");
                }
            })
        };
        let threads: Vec<_> = (0..CLIENTS).map(serve).collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    });
    while !accept.is_finished() {
        io.sleep(Duration::from_millis(10)).await;
    }
}

async fn ask_for_a_while(io: &RingIo, server: Option<Engine>, address: SocketAddr, time: Duration) {
    io.sleep(Duration::from_millis(200)).await;
    let results = Rc::new(std::cell::RefCell::new(Vec::new()));
    for _ in 0..CLIENTS {
        let stream = io.connect(address).await.expect("connected");
        let results = results.clone();
        io.spawn("client", async move {
            let request = Bytes::from_static(&[7; REQUEST_BYTES]);
            let mut buffer = BytesMut::new();
            let (began, mut count) = (Instant::now(), 0_u64);
            while began.elapsed() < time {
                stream.write(vec![request.clone()]).await.expect("writable");
                buffer.clear();
                while buffer.len() < REQUEST_BYTES {
                    assert!(stream.read(&mut buffer, 4096).await.expect("readable") > 0);
                }
                count += 1;
            }
            results.borrow_mut().push(count);
        });
    }
    while results.borrow().len() < CLIENTS {
        io.sleep(Duration::from_millis(10)).await;
    }
    let total: u64 = results.borrow().iter().sum();
    let who = server.map_or_else(|| "plain threads".into(), |engine| format!("{engine:?}"));
    println!("  {who}: {} requests a second", (total as f64 / time.as_secs_f64()) as u64);
}
