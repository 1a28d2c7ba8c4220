//! Connections: frames in, answers out, in order, within bounds.
//!
//!     socket ─► reader: frame ─► handler ─► queue of answers ─► writer ─► socket
//!
//! A Produce request may begin while earlier Produce requests of the connection wait for the disk;
//! any other request begins when everything before it is answered.
//!
//! Lives on: the core that accepted.  Talks to: `handler`, which sits beside it.
//!
//! Invariants
//!   N1  Answers leave in the order of the requests.
//!   N2  A frame is charged to the core's budget as it comes, and until its answer is written; what
//!       is not granted is not read.
//!   N3  A connection that stalls inside a frame, or takes none of its answers, or is idle for too
//!       long, is closed; its tasks return by themselves.
//!   N4  Whatever a client sends, the worst outcome is its own connection closed with one line in
//!       the log.
//!   N5  A connection is open until its reader and its writer have ended: what was received is
//!       answered although the client sends no more.

mod answers;
mod budget;
mod frames;
mod serve;
mod sweep;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use slab::Slab;

use crate::base::time::Instant;
use crate::config::BrokerConfig;
use crate::handler::Handlers;
use crate::io::{Io, Listener, Stream};

pub use answers::Answer;
pub use budget::{Budget, Charge};
pub use frames::{Frame, FrameEnd, Frames};
pub use serve::Closed;

/// How long to wait when the system has no descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The bounds that every connection keeps.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub request_bytes_max: usize,
    pub inflight_bytes_max: usize,
    pub idle_max: Duration,
    pub stall_max: Duration,
    pub connections_max: usize,
}

impl Bounds {
    pub fn new(config: &BrokerConfig) -> Bounds {
        let millis =
            |name: &str| Duration::from_millis(u64::try_from(config.int(name)).unwrap_or(u64::MAX));
        Bounds {
            request_bytes_max: config.size("socket.request.max.bytes"),
            inflight_bytes_max: config.size("connection.inflight.bytes.max"),
            idle_max: millis("connections.max.idle.ms"),
            stall_max: millis("slow.reader.timeout.ms"),
            connections_max: config.size("max.connections"),
        }
    }
}

/// One core's connections.
pub struct Connections<I: Io> {
    io: I,
    handlers: Rc<Handlers<I>>,
    bounds: Bounds,
    budget: Budget,
    open: RefCell<Slab<Rc<Connection<I>>>>,
    /// Of all cores together.
    count: Arc<AtomicUsize>,
    closing: Cell<bool>,
    sweeping: Cell<bool>,
}

/// What reader, writer and sweeper of a connection share.
pub struct Connection<I: Io> {
    stream: I::Stream,
    answers: answers::Answers,
    /// Since when the connection waits for its client, and for what.
    waits: Cell<(Waits, Instant)>,
    writes_since: Cell<Option<Instant>>,
    /// Of reader and writer, those that have not ended (N5).
    halves: Cell<u8>,
}

/// What a connection's reader waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    /// The next request.
    Request,
    /// The rest of a frame.
    Frame,
    /// Nothing of its client's: a request is being handled.
    Nothing,
}

impl<I: Io> Connection<I> {
    /// A connection that was just accepted.
    pub fn new(stream: I::Stream, now: Instant) -> Connection<I> {
        Connection {
            stream,
            answers: answers::Answers::new(),
            waits: Cell::new((Waits::Request, now)),
            writes_since: Cell::new(None),
            halves: Cell::new(2),
        }
    }
}

impl<I: Io> Connections<I> {
    pub fn new(
        io: I,
        handlers: Rc<Handlers<I>>,
        bounds: Bounds,
        budget_bytes: usize,
        count: Arc<AtomicUsize>,
    ) -> Rc<Connections<I>> {
        // One whole request may always be read beside the budget; both together are the memory.
        let request_bytes_max = bounds.request_bytes_max.min(budget_bytes / 2);
        Rc::new(Connections {
            io,
            handlers,
            bounds: Bounds { request_bytes_max, ..bounds },
            budget: Budget::new(budget_bytes - request_bytes_max),
            open: RefCell::new(Slab::new()),
            count,
            closing: Cell::new(false),
            sweeping: Cell::new(false),
        })
    }

    /// Accepts until the listener is closed.
    pub async fn accept(self: Rc<Self>, listener: Rc<I::Listener>) {
        let mut failing = false;
        loop {
            match listener.accept().await {
                Ok(stream) => {
                    failing = false;
                    self.admit(stream);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return,
                Err(error) => {
                    if !failing {
                        tracing::warn!("cannot accept connections: {error}");
                    }
                    failing = true;
                    self.io.sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    fn admit(self: &Rc<Self>, stream: I::Stream) {
        if self.count.fetch_add(1, Ordering::Relaxed) >= self.bounds.connections_max {
            self.count.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!("{} is refused: max.connections is reached", stream.peer());
            stream.shutdown();
            return;
        }
        let connection = Rc::new(Connection::new(stream, self.io.now()));
        let key = self.open.borrow_mut().insert(connection.clone());
        let (connections, written) = (self.clone(), connection.clone());
        self.io.spawn("connection writer", async move {
            answers::write(&connections.io, &written).await;
            connections.leave(key, &written);
        });
        let connections = self.clone();
        self.io.spawn("connection reader", async move {
            serve::run(&connections, &connection).await;
            connections.leave(key, &connection);
        });
        self.start_sweeping();
    }

    fn leave(&self, key: usize, connection: &Connection<I>) {
        connection.halves.set(connection.halves.get() - 1);
        if connection.halves.get() == 0 {
            self.open.borrow_mut().remove(key);
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Connections of this core.
    pub fn len(&self) -> usize {
        self.open.borrow().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Connections of all cores together.
    pub fn on_node(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Takes no more requests; what was received is still answered, a long poll with what is there.
    pub fn drain(&self) {
        self.closing.set(true);
        self.handlers.dispatch.end_waits();
        for (_, connection) in self.open.borrow().iter() {
            connection.stream.shutdown_read();
        }
    }
}
