//! The network between nodes: listeners and byte streams, delivered in pieces and with delay.
//!
//! ```text
//!     write ─► flying (segments with arrival times) ─► received ─► read
//!              └──────── at most `capacity` bytes ───────────┘
//! ```
//!
//! Invariants
//!   N1  Bytes of one direction arrive in order, each once; how they are cut is up to chance.
//!   N2  A direction holds at most its capacity; a writer beyond it waits for the reader.
//!   N3  Nothing crosses a cut link; what was under way arrives after it heals, or the connection
//!       is reset.
//!   N4  A connection is forgotten when both ends are closed or crashed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::task::{Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};

use super::Inner;
use super::chance::Chance;

/// Connections that wait for `accept` at one listener.
const BACKLOG: usize = 4096;
const FIRST_PORT: u16 = 32_768;
/// After this, a connection attempt or a connection to a silent peer is given up, nanoseconds.
const SILENCE: (u64, u64) = (1_000_000_000, 30_000_000_000);

/// One end of a connection: which, and which side of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndId {
    pub connection: u64,
    pub side: usize,
}

impl EndId {
    fn other(self) -> EndId {
        EndId { connection: self.connection, side: 1 - self.side }
    }
}

enum Flight {
    Data(Bytes),
    /// The end of the direction.
    Fin,
}

/// How far an end is on its way to being gone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Open,
    /// Its handle was dropped.
    Closed,
    /// Its node crashed: it answers nothing.
    Crashed,
}

/// What arrives at one end, and how that end stands.
struct End {
    node: usize,
    address: SocketAddr,
    capacity: usize,
    flying: VecDeque<(u64, Flight)>,
    flying_bytes: usize,
    last_arrival: u64,
    received: VecDeque<Bytes>,
    received_bytes: usize,
    /// The peer has sent its last byte, and all is received.
    ended: bool,
    read_shut: bool,
    write_shut: bool,
    /// When a reset arrives.
    reset_at: Option<u64>,
    reset: bool,
    life: Life,
    /// The outcome of connecting; the accepted side has it from the start.
    connected: Option<Result<(), ErrorKind>>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

struct Connection {
    ends: [End; 2],
    /// No segment is larger.
    segment_max: usize,
}

struct Listening {
    node: usize,
    address: SocketAddr,
    queue: VecDeque<u64>,
    waker: Option<Waker>,
}

#[derive(Default)]
pub struct Network {
    connections: BTreeMap<u64, Connection>,
    listening: BTreeMap<u64, Listening>,
    cuts: BTreeSet<(usize, usize)>,
    made: u64,
}

impl End {
    fn new(node: usize, address: SocketAddr, capacity: usize) -> End {
        End {
            node,
            address,
            capacity,
            flying: VecDeque::new(),
            flying_bytes: 0,
            last_arrival: 0,
            received: VecDeque::new(),
            received_bytes: 0,
            ended: false,
            read_shut: false,
            write_shut: false,
            reset_at: None,
            reset: false,
            life: Life::Open,
            connected: None,
            reader: None,
            writer: None,
        }
    }

    fn room(&self) -> usize {
        self.capacity.saturating_sub(self.flying_bytes + self.received_bytes)
    }

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    /// Moves what has arrived by `now`; says whether bytes came to an end that is closed.
    fn receive(&mut self, now: u64) -> bool {
        let mut unwanted = false;
        while self.flying.front().is_some_and(|(at, _)| *at <= now) {
            match self.flying.pop_front() {
                Some((_, Flight::Data(data))) => {
                    self.flying_bytes -= data.len();
                    if self.life == Life::Closed {
                        unwanted = true;
                    } else {
                        self.received_bytes += data.len();
                        self.received.push_back(data);
                    }
                }
                Some((_, Flight::Fin)) => self.ended = true,
                None => {}
            }
        }
        if self.reset_at.is_some_and(|at| at <= now) {
            self.reset = true;
            self.flying.clear();
            self.flying_bytes = 0;
            self.connected.get_or_insert(Err(ErrorKind::ConnectionReset));
        }
        unwanted
    }

    fn take(&mut self, into: &mut BytesMut, limit: usize) -> usize {
        let mut taken = 0;
        while taken < limit {
            let Some(front) = self.received.front_mut() else { break };
            let length = front.len().min(limit - taken);
            into.extend_from_slice(&front[..length]);
            front.advance(length);
            taken += length;
            if front.is_empty() {
                self.received.pop_front();
            }
        }
        self.received_bytes -= taken;
        taken
    }
}

impl Connection {
    fn is_over(&self) -> bool {
        self.ends.iter().all(|end| end.life != Life::Open)
    }

    /// The side that sends, and the end that it sends to.
    fn pair(&mut self, side: usize) -> (&mut End, &mut End) {
        let [first, second] = &mut self.ends;
        if side == 0 { (first, second) } else { (second, first) }
    }
}

impl Network {
    fn number(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    fn is_cut(&self, one: usize, two: usize) -> bool {
        self.cuts.contains(&(one.min(two), one.max(two)))
    }

    fn end(&mut self, id: EndId) -> Option<&mut End> {
        self.connections.get_mut(&id.connection).map(|connection| &mut connection.ends[id.side])
    }

    /// Connections that are not forgotten.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }
}

/// The address that stands for a node.
pub fn ip(node: usize) -> IpAddr {
    let [.., high, low] = (node + 1).to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(10, 0, high, low))
}

/// The nanoseconds that a packet takes.
fn delay(inner: &Inner, from: usize, to: usize) -> u64 {
    let network = &inner.settings.network;
    if from == to {
        return inner.chance.between(network.near);
    }
    let slow = inner.chance.one_in(network.slow_one_in);
    inner.chance.between(if slow { network.slow } else { network.far })
}

fn capacity(chance: &Chance, (low, high): (u64, u64)) -> usize {
    // Small buffers are as likely as large ones.
    let power = chance.between((u64::from(low.max(1).ilog2()), u64::from(high.max(1).ilog2())));
    let most = (2_u64 << power).min(high.max(low));
    usize::try_from(chance.between((low, most))).unwrap_or(usize::MAX)
}

/// Starts to listen; returns the listener's number and its address.
pub fn listen(inner: &Inner, node: usize, address: SocketAddr) -> io::Result<(u64, SocketAddr)> {
    let own =
        address.ip().is_loopback() || address.ip().is_unspecified() || address.ip() == ip(node);
    if !own {
        return Err(ErrorKind::AddrNotAvailable.into());
    }
    let mut network = inner.network.borrow_mut();
    let number = network.number();
    let port = if address.port() == 0 { port(number) } else { address.port() };
    let address = SocketAddr::new(address.ip(), port);
    let listening = Listening { node, address, queue: VecDeque::new(), waker: None };
    network.listening.insert(number, listening);
    Ok((number, address))
}

/// A port for a connection or a listener; numbers far apart share one.
fn port(number: u64) -> u16 {
    let offset = number % u64::from(u16::MAX - FIRST_PORT);
    FIRST_PORT + u16::try_from(offset).unwrap_or(0)
}

/// Ends a listener; what it did not accept is reset.
pub fn unlisten(inner: &Inner, number: u64) {
    let listening = inner.network.borrow_mut().listening.remove(&number);
    let Some(listening) = listening else { return };
    for connection in listening.queue {
        close(inner, EndId { connection, side: 1 }, true);
    }
    if let Some(waker) = listening.waker {
        waker.wake();
    }
}

/// The next connection of a listener, with the peer's address.
pub fn poll_accept(
    inner: &Inner,
    number: u64,
    waker: &Waker,
) -> Poll<io::Result<(EndId, SocketAddr)>> {
    let mut network = inner.network.borrow_mut();
    loop {
        let Some(listening) = network.listening.get_mut(&number) else {
            return Poll::Ready(Err(ErrorKind::Interrupted.into()));
        };
        let Some(connection) = listening.queue.pop_front() else {
            listening.waker = Some(waker.clone());
            return Poll::Pending;
        };
        if let Some(peer) = network.end(EndId { connection, side: 0 }).map(|end| end.address) {
            return Poll::Ready(Ok((EndId { connection, side: 1 }, peer)));
        }
    }
}

/// Starts to connect; `poll_connected` tells the outcome.
pub fn connect(inner: &Inner, node: usize, address: SocketAddr) -> EndId {
    let buffers = inner.settings.network.buffers;
    let mut network = inner.network.borrow_mut();
    let connection = network.number();
    let target = target(inner, node, address);
    let here = if target == Some(node) { address.ip() } else { ip(node) };
    let local = SocketAddr::new(here, port(connection));
    let ends = [
        End::new(node, local, capacity(&inner.chance, buffers)),
        End::new(target.unwrap_or(usize::MAX), address, capacity(&inner.chance, buffers)),
    ];
    let segment_max = match inner.chance.below(8) {
        0 => 64,
        1..=4 => 1460,
        _ => 64 << 10,
    };
    network.connections.insert(connection, Connection { ends, segment_max });
    let delay = delay(inner, node, target.unwrap_or(usize::MAX));
    inner.agenda.after(delay, move |inner| knock(inner, connection, address));
    EndId { connection, side: 0 }
}

/// The node that an address leads to.
fn target(inner: &Inner, from: usize, address: SocketAddr) -> Option<usize> {
    if address.ip().is_loopback() || address.ip().is_unspecified() {
        return Some(from);
    }
    (0..inner.node_count()).find(|node| ip(*node) == address.ip())
}

/// A connection attempt arrives.
fn knock(inner: &Rc<Inner>, connection: u64, address: SocketAddr) {
    let mut network = inner.network.borrow_mut();
    let Some(known) = network.connections.get(&connection) else { return };
    let (client, server) = (known.ends[0].node, known.ends[1].node);
    let is_silent = network.is_cut(client, server) || (!inner.is_up(server) && inner.chance.coin());
    if is_silent {
        let wait = inner.chance.between(SILENCE);
        drop(network);
        inner
            .agenda
            .after(wait, move |inner| conclude(inner, connection, Err(ErrorKind::TimedOut)));
        return;
    }
    let fits = |listening: &Listening| {
        let ip = listening.address.ip();
        let reaches = ip.is_unspecified() || ip == address.ip();
        listening.node == server && listening.address.port() == address.port() && reaches
    };
    let listeners: Vec<u64> = network
        .listening
        .iter()
        .filter(|(_, listening)| fits(listening) && listening.queue.len() < BACKLOG)
        .map(|(number, _)| *number)
        .collect();
    let outcome = if listeners.is_empty() { Err(ErrorKind::ConnectionRefused) } else { Ok(()) };
    if outcome.is_ok() {
        let chosen = listeners[inner.chance.index(listeners.len())];
        if let Some(listening) = network.listening.get_mut(&chosen) {
            listening.queue.push_back(connection);
            if let Some(waker) = listening.waker.take() {
                waker.wake();
            }
        }
        if let Some(end) = network.end(EndId { connection, side: 1 }) {
            end.connected = Some(Ok(()));
        }
    }
    drop(network);
    let delay = delay(inner, server, client);
    inner.agenda.after(delay, move |inner| conclude(inner, connection, outcome));
}

/// The answer to a connection attempt arrives.
fn conclude(inner: &Rc<Inner>, connection: u64, outcome: Result<(), ErrorKind>) {
    inner.note(connection ^ u64::from(outcome.is_ok()));
    let mut network = inner.network.borrow_mut();
    let Some(known) = network.connections.get_mut(&connection) else { return };
    known.ends[0].connected.get_or_insert(outcome);
    known.ends[0].wake();
    if outcome.is_err() {
        // It reached no listener, so nobody holds the other end.
        known.ends[1].life = Life::Closed;
    }
    if known.is_over() {
        network.connections.remove(&connection);
    }
}

pub fn poll_connected(inner: &Inner, id: EndId, waker: &Waker) -> Poll<io::Result<()>> {
    let mut network = inner.network.borrow_mut();
    let Some(end) = network.end(id) else { return Poll::Ready(Err(gone())) };
    if let Some(outcome) = end.connected {
        return Poll::Ready(outcome.map_err(io::Error::from));
    }
    end.reader = Some(waker.clone());
    Poll::Pending
}

/// Sends the first bytes of `data`, as many as there is room for.
pub fn poll_send(inner: &Inner, id: EndId, data: &Bytes, waker: &Waker) -> Poll<io::Result<usize>> {
    let mut network = inner.network.borrow_mut();
    let Some(connection) = network.connections.get_mut(&id.connection) else {
        return Poll::Ready(Err(gone()));
    };
    let segment_max = connection.segment_max;
    let (from, to) = connection.pair(id.side);
    if from.reset || from.life == Life::Crashed {
        return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
    }
    if from.write_shut {
        return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
    }
    let taken = data.len().min(to.room());
    if taken == 0 {
        from.writer = Some(waker.clone());
        return Poll::Pending;
    }
    let mut left = Bytes::copy_from_slice(&data[..taken]);
    while !left.is_empty() {
        let most = left.len().min(segment_max);
        let cut = if inner.chance.coin() { most } else { 1 + inner.chance.index(most) };
        let segment = left.split_to(cut);
        to.flying_bytes += segment.len();
        launch(inner, id.other(), (from.node, to), Flight::Data(segment));
    }
    Poll::Ready(Ok(taken))
}

/// Puts something on its way to an end.
fn launch(inner: &Inner, id: EndId, (from, to): (usize, &mut End), flight: Flight) {
    let arrival = inner.agenda.now() + delay(inner, from, to.node);
    to.last_arrival = to.last_arrival.max(arrival);
    to.flying.push_back((to.last_arrival, flight));
    let wait = to.last_arrival - inner.agenda.now();
    inner.agenda.after(wait, move |inner| deliver(inner, id));
}

/// Something arrives at an end.
fn deliver(inner: &Rc<Inner>, id: EndId) {
    let now = inner.agenda.now();
    let mut network = inner.network.borrow_mut();
    let Some(connection) = network.connections.get(&id.connection) else { return };
    let [first, second] = [connection.ends[0].node, connection.ends[1].node];
    if network.is_cut(first, second) {
        return;
    }
    let Some(connection) = network.connections.get_mut(&id.connection) else { return };
    let (end, peer) = connection.pair(id.side);
    if end.life == Life::Crashed {
        return;
    }
    let unwanted = end.receive(now);
    inner.note(id.connection ^ (end.received_bytes as u64).rotate_left(40));
    end.wake();
    if unwanted && peer.reset_at.is_none() {
        reset_after(inner, id.other(), peer, delay(inner, second, first));
    }
}

/// Lets a reset arrive at an end.
fn reset_after(inner: &Inner, id: EndId, end: &mut End, delay: u64) {
    end.reset_at = Some(inner.agenda.now() + delay);
    inner.agenda.after(delay, move |inner| deliver(inner, id));
}

/// Appends received bytes to `into`.
pub fn poll_receive(
    inner: &Inner,
    id: EndId,
    (into, limit): (&mut BytesMut, usize),
    waker: &Waker,
) -> Poll<io::Result<usize>> {
    let mut network = inner.network.borrow_mut();
    let Some(connection) = network.connections.get_mut(&id.connection) else {
        return Poll::Ready(Err(gone()));
    };
    let (end, peer) = connection.pair(id.side);
    if end.received_bytes > 0 {
        let taken = end.take(into, limit);
        if let Some(waker) = peer.writer.take() {
            waker.wake();
        }
        return Poll::Ready(Ok(taken));
    }
    if end.reset || end.life == Life::Crashed {
        return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
    }
    if end.ended || end.read_shut {
        return Poll::Ready(Ok(0));
    }
    end.reader = Some(waker.clone());
    Poll::Pending
}

/// Ends the writing half: the peer reads what was written, then the end.
pub fn shut_write(inner: &Inner, id: EndId) {
    let mut network = inner.network.borrow_mut();
    let Some(connection) = network.connections.get_mut(&id.connection) else { return };
    let (from, to) = connection.pair(id.side);
    if from.write_shut || from.life == Life::Crashed {
        return;
    }
    from.write_shut = true;
    if let Some(waker) = from.writer.take() {
        waker.wake();
    }
    launch(inner, id.other(), (from.node, to), Flight::Fin);
}

/// Ends the reading half at this end; the peer does not learn of it.
pub fn shut_read(inner: &Inner, id: EndId) {
    let mut network = inner.network.borrow_mut();
    if let Some(end) = network.end(id) {
        end.read_shut = true;
        end.wake();
    }
}

/// Closes an end: in order, or with a reset if that is asked for or bytes are left unread.
pub fn close(inner: &Inner, id: EndId, abort: bool) {
    let mut network = inner.network.borrow_mut();
    let Some(connection) = network.connections.get_mut(&id.connection) else { return };
    let (end, peer) = connection.pair(id.side);
    if end.life != Life::Open {
        return;
    }
    end.life = Life::Closed;
    (end.reader, end.writer) = (None, None);
    if abort || end.received_bytes > 0 {
        let delay = delay(inner, end.node, peer.node);
        reset_after(inner, id.other(), peer, delay);
    } else if !end.write_shut {
        end.write_shut = true;
        launch(inner, id.other(), (end.node, peer), Flight::Fin);
    }
    (end.received_bytes, end.received) = (0, VecDeque::new());
    if connection.is_over() {
        network.connections.remove(&id.connection);
    }
}

/// A node is gone: its listeners with it; its peers get a reset, soon or after a silence.
pub fn crash(inner: &Inner, node: usize) {
    let mut network = inner.network.borrow_mut();
    network.listening.retain(|_, listening| listening.node != node);
    for (number, connection) in &mut network.connections {
        for side in 0..2 {
            let (end, peer) = connection.pair(side);
            let is_asked = side == 1 && end.connected.is_none(); // the attempt has not arrived
            if end.node != node || end.life == Life::Crashed || is_asked {
                continue;
            }
            end.life = Life::Crashed;
            (end.reader, end.writer) = (None, None);
            if peer.node != node && peer.life == Life::Open {
                let near = delay(inner, node, peer.node);
                let wait = if inner.chance.coin() { near } else { inner.chance.between(SILENCE) };
                reset_after(inner, EndId { connection: *number, side: 1 - side }, peer, wait);
            }
        }
    }
    network.connections.retain(|_, connection| !connection.is_over());
}

/// Cuts the link between two nodes.
pub fn cut(inner: &Inner, one: usize, two: usize) {
    inner.network.borrow_mut().cuts.insert((one.min(two), one.max(two)));
}

/// Mends the link; connections over it go on, or are found to be dead.
pub fn heal(inner: &Inner, one: usize, two: usize) {
    let mut network = inner.network.borrow_mut();
    network.cuts.remove(&(one.min(two), one.max(two)));
    for (number, connection) in &mut network.connections {
        let [first, second] = [connection.ends[0].node, connection.ends[1].node];
        if (first, second) != (one, two) && (first, second) != (two, one) {
            continue;
        }
        let is_dead = inner.chance.one_in(4);
        for (side, end) in connection.ends.iter_mut().enumerate() {
            let id = EndId { connection: *number, side };
            let delay = delay(inner, first, second);
            if is_dead {
                reset_after(inner, id, end, delay);
            } else {
                let wait = delay.max(end.last_arrival.saturating_sub(inner.agenda.now()));
                inner.agenda.after(wait, move |inner| deliver(inner, id));
            }
        }
    }
}

fn gone() -> io::Error {
    io::Error::new(ErrorKind::NotConnected, "the connection is gone")
}
