//! A whole core runs here: a server that answers what it appended to a log and made durable.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use crate::base::buffer::Arena;
use crate::base::time::Instant;
use crate::io::sim::{Crash, Node, SimIo, World};
use crate::io::{BLOCK_BYTES, Durability, File, Io, Listener, OpenHow, Stream};

const LOG: &str = "/data/log";
const PORT: u16 = 9092;
const NUMBER_BYTES: usize = 8;

/// One block per number, written once, flushed.
struct Log<F> {
    file: F,
    blocks: u64,
    arena: Arena,
}

impl<F: File> Log<F> {
    async fn open<I: Io<File = F>>(io: &I) -> Log<F> {
        io.create_directory(Path::new("/data")).expect("a directory");
        let file = match io.open(Path::new(LOG), OpenHow::Existing).await {
            Ok(file) => file,
            Err(_) => io.open(Path::new(LOG), OpenHow::CreateNew).await.expect("a new file"),
        };
        let mut blocks = 0;
        while (blocks + 1) * BLOCK_BYTES as u64 <= file.len() {
            let block = file.read_at(blocks * BLOCK_BYTES as u64, BLOCK_BYTES).await;
            let block = block.expect("readable");
            if block[..NUMBER_BYTES] != block[BLOCK_BYTES - NUMBER_BYTES..] || block[0] == 0 {
                break; // torn, or never written
            }
            blocks += 1;
        }
        Log { file, blocks, arena: Arena::new(1 << 20) }
    }

    /// Writes `number` at both ends of a block, so that a torn one shows.
    async fn append(&mut self, number: [u8; NUMBER_BYTES]) {
        let mut block = self.arena.take(BLOCK_BYTES).expect("memory");
        block.fill(0);
        block[..NUMBER_BYTES].copy_from_slice(&number);
        block[BLOCK_BYTES - NUMBER_BYTES..].copy_from_slice(&number);
        let at = self.blocks * BLOCK_BYTES as u64;
        self.file.write_at(at, block.freeze(), Durability::Flushed).await.expect("written");
        self.blocks += 1;
    }
}

async fn serve<I: Io>(io: I) {
    let mut log = Log::open(&io).await;
    let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), PORT);
    let listener = io.listen(any).expect("an address");
    while let Ok(stream) = listener.accept().await {
        let mut buffer = BytesMut::new();
        while let Ok(1..) = stream.read(&mut buffer, 4096).await {
            while buffer.len() >= NUMBER_BYTES {
                let number = buffer.split_to(NUMBER_BYTES).freeze();
                log.append(number[..].try_into().expect("eight bytes")).await;
                if stream.write(vec![number]).await.is_err() {
                    break;
                }
            }
        }
    }
}

async fn client(io: SimIo, server: SocketAddr, first: u64, acknowledged: Rc<RefCell<Vec<u64>>>) {
    let mut next = first;
    loop {
        let Ok(stream) = io.connect(server).await else {
            io.sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        let mut buffer = BytesMut::new();
        'connected: loop {
            next += 1;
            if stream.write(vec![Bytes::copy_from_slice(&next.to_le_bytes())]).await.is_err() {
                break;
            }
            while buffer.len() < NUMBER_BYTES {
                if !matches!(stream.read(&mut buffer, 64).await, Ok(1..)) {
                    break 'connected;
                }
            }
            let answer = buffer.split_to(NUMBER_BYTES);
            assert_eq!(answer[..], next.to_le_bytes());
            acknowledged.borrow_mut().push(next);
        }
    }
}

fn logged(server: &Node) -> Vec<u64> {
    let content = server.disk().read(Path::new(LOG)).unwrap_or_default();
    let number = |block: &[u8]| u64::from_le_bytes(block[..8].try_into().expect("eight bytes"));
    content.chunks(BLOCK_BYTES).map(number).collect()
}

/// Runs a server through some crashes; returns the number of acknowledged writes, and the
/// fingerprint.
fn run(seed: u64) -> (usize, u64) {
    let world = World::new(seed);
    let server = world.node();
    let address = SocketAddr::new(server.ip(), PORT);
    let acknowledged = Rc::new(RefCell::new(Vec::new()));
    world.spawn("client", client(world.node().core(0), address, 0, acknowledged.clone()));
    for _ in 0..4 {
        let io = server.core(0);
        io.spawn("server", serve(io.clone()));
        let wanted = acknowledged.borrow().len() + 10;
        world
            .run_until(Instant::NEVER, || acknowledged.borrow().len() >= wanted)
            .unwrap_or_else(|stuck| panic!("{stuck}"));
        world.run_turns(world.below(20)).expect("it goes on");
        server.crash(if seed.is_multiple_of(3) { Crash::Kill } else { Crash::Power });
        let logged = logged(&server);
        for number in acknowledged.borrow().iter() {
            assert!(logged.contains(number), "seed {seed}: {number} was lost");
        }
        server.restart();
    }
    let count = acknowledged.borrow().len();
    (count, world.fingerprint())
}

#[test]
fn a_server_with_a_log_keeps_what_it_acknowledged_through_crashes() {
    for seed in 0..200 {
        assert!(run(seed).0 >= 40);
    }
}

#[test]
fn one_seed_gives_one_run_and_another_seed_another() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let (first, second) = (run(seed), run(seed));
        assert_eq!(first, second, "seed {seed} gave two runs");
        assert!(seen.insert(first.1), "seed {seed} gave another seed's run");
    }
}
