//! The splitter of a connection's bytes into frames, however they arrive.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use corelog::base::limits::REQUEST_BYTES_MIN;
use corelog::connection::{Bounds, Budget, Connection, FrameEnd, Frames};
use corelog::io::sim::{SimIo, World};
use corelog::io::{Io, Listener, Stream};

const PORT: u16 = 9092;
const REQUEST_BYTES_MAX: usize = 64 << 10;

/// How the splitter ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Closed,
    Broken,
    Length,
}

/// The size of the pieces that are sent, then what is sent before the client closes.
pub fn split(data: &[u8]) {
    let Some((piece, sent)) = data.split_first() else { return };
    let world = World::new(u64::from(*piece));
    let node = world.node();
    let (server, client) = (node.core(0), world.node().core(0));
    let address = SocketAddr::new(node.ip(), PORT);
    let pieces: Vec<Bytes> =
        sent.chunks(usize::from(*piece) * 7 + 1).map(Bytes::copy_from_slice).collect();
    let listener = server.listen(address).expect("an address");
    world.spawn("client", async move {
        let stream = client.connect(address).await.expect("somebody listens");
        for piece in pieces {
            if stream.write(vec![piece]).await.is_err() {
                return;
            }
        }
    });
    let found = world.block_on(async {
        let stream = listener.accept().await.expect("a client");
        read_all(&server, stream).await
    });
    assert_eq!(found, expected(sent));
}

async fn read_all(io: &SimIo, stream: <SimIo as Io>::Stream) -> (Vec<Vec<u8>>, End) {
    let forever = Duration::from_secs(3600);
    let bounds = Bounds {
        request_bytes_max: REQUEST_BYTES_MAX,
        inflight_bytes_max: REQUEST_BYTES_MAX,
        idle_max: forever,
        stall_max: forever,
        connections_max: 1,
    };
    let budget = Budget::new(REQUEST_BYTES_MAX);
    let connection: Connection<SimIo> = Connection::new(stream, io.now());
    let mut frames = Frames::new();
    let mut found = Vec::new();
    loop {
        match frames.next(&connection, (&bounds, &budget), || io.now()).await {
            Ok(frame) => found.push(frame.bytes.to_vec()),
            Err(FrameEnd::Closed) => return (found, End::Closed),
            Err(FrameEnd::Broken(_)) => return (found, End::Broken),
            Err(FrameEnd::Length(_)) => return (found, End::Length),
        }
    }
}

/// The same, of bytes that are all there.
fn expected(sent: &[u8]) -> (Vec<Vec<u8>>, End) {
    let mut found = Vec::new();
    let mut left = sent;
    loop {
        let Some((length, rest)) = left.split_first_chunk() else {
            return (found, if left.is_empty() { End::Closed } else { End::Broken });
        };
        let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if !(REQUEST_BYTES_MIN..=REQUEST_BYTES_MAX).contains(&length) {
            return (found, End::Length);
        }
        let Some((frame, rest)) = rest.split_at_checked(length) else {
            return (found, End::Broken);
        };
        found.push(frame.to_vec());
        left = rest;
    }
}
