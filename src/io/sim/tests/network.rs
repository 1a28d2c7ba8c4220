//! What the network promises, and what it does not.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::join;

use crate::base::time::Instant;
use crate::io::sim::{Crash, Node, SimIo, SimListener, SimStream, World};
use crate::io::{Io, Listener, Stream};

const PORT: u16 = 9092;

fn listen(node: &Node, core: u16) -> SimListener {
    let any = SocketAddr::new([0, 0, 0, 0].into(), PORT);
    node.core(core).listen(any).expect("an address")
}

fn address(node: &Node) -> SocketAddr {
    SocketAddr::new(node.ip(), PORT)
}

/// A connection between two nodes: the client's end, then the server's.
async fn connected(client: &Node, server: &Node) -> (SimStream, SimStream) {
    let (listener, io) = (listen(server, 0), client.core(0));
    let (client, server) = join(io.connect(address(server)), listener.accept()).await;
    (client.expect("connected"), server.expect("accepted"))
}

async fn read_all(stream: &SimStream) -> (BytesMut, std::io::Result<usize>) {
    let mut buffer = BytesMut::new();
    loop {
        match stream.read(&mut buffer, 10_000).await {
            Ok(1..) => {}
            end => return (buffer, end),
        }
    }
}

fn kind<T>(outcome: std::io::Result<T>) -> Option<ErrorKind> {
    outcome.err().map(|error| error.kind())
}

/// Two nodes in a world.
fn pair(seed: u64) -> (World, Node, Node) {
    let world = World::new(seed);
    let (one, two) = (world.node(), world.node());
    (world, one, two)
}

#[test]
fn bytes_arrive_in_order_in_pieces_and_then_the_end() {
    let pattern: Vec<u8> = (0..50_000_u32).map(|number| (number % 251) as u8).collect();
    let mut reads = BTreeSet::new();
    for seed in 0..30 {
        let (world, one, two) = pair(seed);
        let sent = Bytes::from(pattern.clone());
        let (received, counts) = world.block_on(async {
            let (client, server) = connected(&one, &two).await;
            assert_eq!(client.peer(), address(&two));
            assert_eq!(server.peer().ip(), one.ip());
            let send = async {
                let pieces = vec![sent.slice(..7), Bytes::new(), sent.slice(7..)];
                client.write(pieces).await.expect("written");
                client.shutdown_write();
                // The other direction is still open.
                assert_eq!(read_all(&client).await.0[..], *b"thanks");
            };
            let receive = async {
                let (mut buffer, mut counts) = (BytesMut::new(), Vec::new());
                loop {
                    let count = server.read(&mut buffer, 3000).await.expect("readable");
                    assert!(count <= 3000);
                    counts.push(count);
                    if count == 0 {
                        break;
                    }
                }
                server.write(vec![Bytes::from_static(b"thanks")]).await.expect("written");
                drop(server);
                (buffer, counts)
            };
            join(send, receive).await.1
        });
        assert_eq!(received[..], pattern[..], "seed {seed}");
        reads.insert(counts);
        world.run_until_idle().expect("it ends");
        assert_eq!(world.live_connections(), 0);
    }
    assert!(reads.len() > 25, "the cuts differ by seed: {}", reads.len());
}

#[test]
fn a_writer_waits_for_the_reader() {
    for seed in 0..30 {
        let (world, one, two) = pair(seed);
        let (client, server) = world.block_on(connected(&one, &two));
        let done = Rc::new(Cell::new(false));
        let (telling, sent) = (done.clone(), 1 << 20);
        world.spawn("writer", async move {
            let large = Bytes::from(vec![1; sent]);
            client.write(vec![large]).await.expect("written");
            telling.set(true);
        });
        world.run_until_idle().expect("the buffer is full");
        assert!(!done.get(), "seed {seed}: a megabyte fits no buffer");
        let received = world.block_on(read_all(&server)).0;
        assert_eq!((received.len(), done.get()), (sent, true));
    }
}

#[test]
fn a_reset_and_a_close_with_bytes_unread_break_the_peer() {
    for seed in 0..30 {
        let (world, one, two) = pair(seed);
        world.block_on(async {
            let (client, server) = connected(&one, &two).await;
            client.reset();
            assert_eq!(kind(read_all(&server).await.1), Some(ErrorKind::ConnectionReset));
            let write = server.write(vec![Bytes::from_static(b"x")]).await;
            assert_eq!(kind(write), Some(ErrorKind::ConnectionReset));
            drop(server);
            let (client, server) = connected(&one, &two).await;
            client.write(vec![Bytes::from(vec![0; 100])]).await.expect("written");
            server.read(&mut BytesMut::new(), 1).await.expect("readable");
            drop(server);
            assert_eq!(kind(read_all(&client).await.1), Some(ErrorKind::ConnectionReset));
        });
    }
}

#[test]
fn writing_to_a_closed_peer_ends_in_a_reset() {
    let (world, one, two) = pair(5);
    world.block_on(async {
        let (client, server) = connected(&one, &two).await;
        drop(server);
        let large = Bytes::from(vec![1; 1 << 20]);
        assert_eq!(kind(client.write(vec![large]).await), Some(ErrorKind::ConnectionReset));
    });
}

#[test]
fn shutting_down_wakes_what_waits() {
    let (world, one, two) = pair(6);
    world.block_on(async {
        let (client, server) = connected(&one, &two).await;
        let (read, ()) = join(read_all(&client), async {
            one.core(0).cede().await;
            client.shutdown_read();
        })
        .await;
        assert_eq!(read.1.ok(), Some(0));
        client.write(vec![Bytes::from_static(b"on")]).await.expect("writes go on");
        let large = vec![Bytes::from(vec![1; 1 << 20])];
        let (write, ()) = join(client.write(large), async {
            one.core(0).sleep(Duration::from_secs(1)).await;
            client.shutdown();
        })
        .await;
        assert_eq!(kind(write), Some(ErrorKind::BrokenPipe));
        let (received, end) = read_all(&server).await;
        assert_eq!((&received[..2], end.ok()), (&b"on"[..], Some(0)));
    });
}

#[test]
fn several_cores_accept_on_one_address() {
    let mut spreads = BTreeSet::new();
    for seed in 0..10 {
        let (world, server, client) = pair(seed);
        let accepted = Rc::new(RefCell::new([0; 3]));
        for core in 0..3 {
            let (listener, accepted) = (listen(&server, core), accepted.clone());
            server.core(core).spawn("accepts", async move {
                while listener.accept().await.is_ok() {
                    accepted.borrow_mut()[usize::from(core)] += 1;
                }
            });
        }
        world.block_on(async {
            for _ in 0..60 {
                client.core(0).connect(address(&server)).await.expect("connected");
            }
        });
        world.run_until_idle().expect("all accepted");
        let accepted = *accepted.borrow();
        assert_eq!(accepted.iter().sum::<u32>(), 60);
        assert!(accepted.iter().all(|count| *count > 0), "{accepted:?}");
        spreads.insert(accepted);
    }
    assert!(spreads.len() > 1, "the seed decides");
}

#[test]
fn a_closed_listener_refuses_and_its_acceptor_ends() {
    let (world, server, client) = pair(1);
    let listener = Rc::new(listen(&server, 0));
    assert_eq!(listener.address().port(), PORT);
    let (waiting, ended) = (listener.clone(), Rc::new(Cell::new(None)));
    let telling = ended.clone();
    server.core(0).spawn("accepts", async move {
        telling.set(kind(waiting.accept().await));
    });
    world.run_until_idle().expect("it waits");
    listener.close();
    world.run_until_idle().expect("it ends");
    assert_eq!(ended.get(), Some(ErrorKind::Interrupted));
    let refused = world.block_on(client.core(0).connect(address(&server)));
    assert_eq!(kind(refused), Some(ErrorKind::ConnectionRefused));
    let foreign = server.core(0).listen(address(&client));
    assert_eq!(kind(foreign), Some(ErrorKind::AddrNotAvailable));
    assert_eq!(world.live_connections(), 0);
}

#[test]
fn loopback_is_the_nodes_own_and_port_zero_is_chosen() {
    let (world, one, two) = pair(1);
    let local: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let listener = one.core(0).listen(local).expect("an address");
    let address = listener.address();
    assert_ne!(address.port(), 0);
    assert!(world.block_on(one.core(1).connect(address)).is_ok());
    assert_eq!(
        kind(world.block_on(two.core(0).connect(address))),
        Some(ErrorKind::ConnectionRefused)
    );
}

#[test]
fn a_crash_resets_the_peers_soon_or_after_a_silence() {
    let mut waits = BTreeSet::new();
    for seed in 0..40 {
        let (world, one, two) = pair(seed);
        let (client, server) = world.block_on(connected(&one, &two));
        let serving = two.core(0);
        serving.spawn("holds", async move {
            std::future::pending::<()>().await;
            drop(server);
        });
        world.run_until_idle().expect("it holds");
        two.crash(Crash::Power);
        two.restart();
        let before = world.now();
        let end = world.block_on(read_all(&client)).1;
        assert_eq!(kind(end), Some(ErrorKind::ConnectionReset), "seed {seed}");
        waits.insert(world.now() - before > Duration::from_secs(1));
        drop(client);
        assert_eq!(world.live_connections(), 0);
    }
    assert_eq!(waits.len(), 2);
}

#[test]
fn connecting_ends_however_the_server_fares() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..200 {
        let (world, server, client) = pair(seed);
        let listener = listen(&server, 0);
        server.core(0).spawn("accepts", async move {
            while let Ok(stream) = listener.accept().await {
                drop(stream);
            }
        });
        let (io, target): (SimIo, _) = (client.core(0), address(&server));
        let outcome = Rc::new(Cell::new(None));
        let telling = outcome.clone();
        world.spawn("connects", async move {
            telling.set(Some(kind(io.connect(target).await)));
        });
        world.run_for(Duration::from_micros(world.below(600))).expect("it runs");
        server.crash(Crash::Kill);
        world.run_until_idle().expect("it ends");
        let outcome = outcome.get().unwrap_or_else(|| panic!("seed {seed}: it hangs"));
        outcomes.insert(format!("{outcome:?}"));
        assert_eq!(world.live_connections(), 0, "seed {seed}");
    }
    assert!(outcomes.len() >= 3, "{outcomes:?}");
}

#[test]
fn a_dropped_connect_leaves_nothing() {
    for seed in 0..50 {
        let (world, server, client) = pair(seed);
        let listener = listen(&server, 0);
        world.block_on(async {
            let io = client.core(0);
            let mut connect = Box::pin(io.connect(address(&server)));
            assert!(futures_util::poll!(&mut connect).is_pending());
            if seed % 2 == 0 {
                io.sleep(Duration::from_millis(30)).await;
            }
        });
        world.run_until_idle().expect("it ends");
        listener.close();
        assert_eq!(world.live_connections(), 0, "seed {seed}");
    }
}

#[test]
fn nothing_crosses_a_cut_link_and_what_was_sent_arrives_after_it_heals() {
    let mut ends = BTreeSet::new();
    for seed in 0..60 {
        let (world, one, two) = pair(seed);
        let (client, server) = world.block_on(connected(&one, &two));
        one.cut(&two);
        world.block_on(client.write(vec![Bytes::from_static(b"late")])).expect("buffered");
        let early = world.try_block_on(
            server.read(&mut BytesMut::new(), 10),
            world.now() + Duration::from_secs(60),
        );
        assert!(early.is_err(), "seed {seed}: it crossed the cut");
        let io = one.core(0);
        let refused = world.block_on(io.connect(address(&two)));
        assert_eq!(kind(refused), Some(ErrorKind::TimedOut));
        two.heal(&one);
        client.shutdown_write();
        let (received, end) = world.block_on(read_all(&server));
        assert!(end.is_err() || received[..] == *b"late", "seed {seed}");
        ends.insert(end.is_ok());
    }
    assert_eq!(ends.len(), 2, "some connections survive a cut, some do not");
}

#[test]
fn a_slow_reader_and_a_crash_leave_no_connection_behind() {
    for seed in 0..30 {
        let (world, one, two) = pair(seed);
        let (client, server) = world.block_on(connected(&one, &two));
        one.core(0).spawn("writes", async move {
            drop(client.write(vec![Bytes::from(vec![1; 1 << 20])]).await);
        });
        two.core(0).spawn("reads", async move { drop(read_all(&server).await) });
        world.run_turns(world.below(200)).expect("it runs");
        one.crash(Crash::Kill);
        world.run_until(Instant::NEVER, || world.live_tasks() == 0).expect("the reader ends");
        assert_eq!(world.live_connections(), 0, "seed {seed}");
    }
}
