//! One core of the generator: connects its clients, starts them together with all other cores, cuts
//! what they measure into intervals, and ends when they do.
//!
//! Lives on: every core of the generator.  Talks to: the broker, and the reporter on the main
//! thread through a channel.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::channel::{Channel, secure};
use super::consumer::Consumer;
use super::ledger::Ledger;
use super::link::{Bell, until};
use super::member::Member;
use super::producer::{Producer, Shape};
use super::recorder::{Interval, Recorder};
use super::route::Route;
use super::scout::Board;
use super::{consume, produce};
use crate::base::time::Instant;
use crate::client::failure::in_words;
use crate::client::security::Security;
use crate::io::Io;

/// How long a broker may take to accept a connection.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// Between two attempts before the run begins.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);
/// From "all are ready" to the first intended time.
const START_AFTER: Duration = Duration::from_millis(20);
pub const READY_PAUSE: Duration = Duration::from_millis(1);
/// How long groups may take until all members have their partitions.
const SETTLE_TIME: Duration = Duration::from_secs(60);
/// How soon a request to stop is noticed.
pub const ATTENTION: Duration = Duration::from_millis(50);
/// After the last intended time, what is in flight gets this long.
const DRAIN_TIME: Duration = Duration::from_secs(15);
/// Memories of requests that are kept for others.
const MEMORIES_MAX: usize = 16;

/// What the cores and the main thread agree on.
pub struct Control {
    pub cores: usize,
    ready: AtomicUsize,
    /// The first intended time on the cores' clock; 0 until all are ready.
    start: AtomicU64,
    /// Nanoseconds since 1970 at the clock's zero.
    epoch: AtomicI64,
    /// Producers that still have records to send or to be acknowledged.
    producers: AtomicUsize,
    interrupted: AtomicBool,
    /// When records were received last, on the cores' clock.
    received_at: AtomicU64,
    /// Members of groups, those of them that have their partitions, and those that have read all.
    members: usize,
    settled: AtomicUsize,
    resting: AtomicUsize,
    /// All of them had read all at one moment.
    are_done: AtomicBool,
    /// Where newer metadata appears.
    pub board: Arc<Board>,
}

impl Control {
    pub fn new(cores: usize, producers: usize, members: usize, board: Arc<Board>) -> Control {
        Control {
            cores,
            ready: AtomicUsize::new(0),
            start: AtomicU64::new(0),
            epoch: AtomicI64::new(0),
            producers: AtomicUsize::new(producers),
            interrupted: AtomicBool::new(false),
            received_at: AtomicU64::new(0),
            members,
            settled: AtomicUsize::new(0),
            resting: AtomicUsize::new(0),
            are_done: AtomicBool::new(false),
            board,
        }
    }

    pub fn member_settled(&self, is_settled: bool) {
        step(&self.settled, is_settled);
    }

    pub fn have_all_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire) == self.members
    }

    pub fn member_rests(&self, is_resting: bool) {
        step(&self.resting, is_resting);
        if self.resting.load(Ordering::Acquire) == self.members {
            self.are_done.store(true, Ordering::Release);
        }
    }

    /// Whether all members had read all at one moment, whatever came after it.
    pub fn have_all_come_to_rest(&self) -> bool {
        self.are_done.load(Ordering::Acquire)
    }

    /// Asks all cores to end now.
    pub fn interrupt(&self) {
        self.interrupted.store(true, Ordering::Relaxed);
    }

    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    pub fn producer_ended(&self) {
        self.producers.fetch_sub(1, Ordering::AcqRel);
    }

    pub fn have_producers_ended(&self) -> bool {
        self.producers.load(Ordering::Acquire) == 0
    }
}

fn step(count: &AtomicUsize, up: bool) {
    if up {
        count.fetch_add(1, Ordering::AcqRel);
    } else {
        count.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a core tells the reporter.
pub enum Message {
    /// Boxed, as it is much larger than the others.
    Interval(Box<Interval>),
    Ledger(Ledger),
    /// The core cannot take part, for this reason.
    Failed(String),
    /// The core's last message.
    Ended,
}

/// One core's part of the run.
pub struct Core<I: Io> {
    pub io: I,
    pub shape: Arc<Shape>,
    pub control: Arc<Control>,
    pub recorder: RefCell<Recorder>,
    pub ledger: RefCell<Ledger>,
    /// Memory for requests: what was used last is in a cache.
    memories: RefCell<Vec<BytesMut>>,
    /// The span that is measured, on the clock.
    pub until: Cell<u64>,
    has_begun: Cell<bool>,
    running: Cell<usize>,
    ended: Bell,
}

impl<I: Io> Core<I> {
    pub fn now(&self) -> u64 {
        self.io.now().0
    }

    /// Whether the first intended time has come.
    pub fn has_begun(&self) -> bool {
        self.has_begun.get()
    }

    /// Nanoseconds since 1970 at the clock's zero.
    pub fn epoch(&self) -> i64 {
        self.control.epoch.load(Ordering::Acquire)
    }

    /// Whether the end has been brought forward.
    pub fn is_over(&self) -> bool {
        self.control.is_interrupted() || self.now() >= self.until.get()
    }

    /// When what is in flight is given up.
    pub fn patience(&self) -> u64 {
        (Instant(self.until.get()) + DRAIN_TIME).0
    }

    /// When consumers give up what has not arrived.
    pub fn readers_patience(&self) -> u64 {
        let start = self.control.start.load(Ordering::Acquire);
        readers_patience(start..self.until.get(), self.control.received_at.load(Ordering::Relaxed))
    }

    /// Records were received.
    pub fn note_received(&self) {
        self.control.received_at.fetch_max(self.now(), Ordering::Relaxed);
    }

    /// Connects to a broker of the route.
    pub async fn connect(
        &self,
        route: &Route,
        address: SocketAddr,
    ) -> std::io::Result<Channel<I::Stream>> {
        let host = route.host(address);
        connect(&self.io, &self.shape.plan.security, &host, address).await
    }

    /// Empty memory for a request.
    pub fn memory(&self) -> BytesMut {
        self.memories.borrow_mut().pop().unwrap_or_default()
    }

    /// Keeps the memory of a request that is written.
    pub fn keep(&self, frame: Bytes) {
        let memories = &mut self.memories.borrow_mut();
        if let Ok(mut memory) = frame.try_into_mut()
            && memories.len() < MEMORIES_MAX
        {
            memory.clear();
            memories.push(memory);
        }
    }

    pub fn client_ended(&self) {
        self.running.set(self.running.get() - 1);
        self.ended.ring();
    }
}

/// As long as records arrive consumers go on, for as long again as the run has lasted at most:
/// other clients may write to the topic without end.
fn readers_patience(run: Range<u64>, received_at: u64) -> u64 {
    let least = (Instant(run.end) + DRAIN_TIME).0;
    let most = least.saturating_add(run.end.saturating_sub(run.start));
    (Instant(received_at) + DRAIN_TIME).0.clamp(least, most)
}

/// Connects within `CONNECT_TIME`, in the manner that the plan asks for.
async fn connect<I: Io>(
    io: &I,
    security: &Security,
    host: &str,
    address: SocketAddr,
) -> std::io::Result<Channel<I::Stream>> {
    let work = async { secure(io.connect(address).await?, security, host).await };
    match until(work, io.sleep(CONNECT_TIME)).await {
        Some(outcome) => outcome,
        None => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

/// The same for a broker that has just been there: one that refuses or breaks the connection gets
/// other attempts within that time.
async fn first_connection<I: Io>(
    io: &I,
    security: &Security,
    host: &str,
    address: SocketAddr,
) -> std::io::Result<Channel<I::Stream>> {
    let deadline = io.now() + CONNECT_TIME;
    loop {
        match connect(io, security, host, address).await {
            Err(error) if io.now() < deadline && is_passing(&error) => {
                io.sleep(CONNECT_PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

/// Whether another attempt may find the broker in another mood.
fn is_passing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as Kind;
    matches!(error.kind(), Kind::ConnectionRefused | Kind::ConnectionReset | Kind::UnexpectedEof)
}

/// Runs a core's share of the clients.
pub async fn run_core<I: Io>(
    io: I,
    shape: Arc<Shape>,
    control: Arc<Control>,
    out: Sender<Message>,
) {
    // The reporter is there as long as a core is: it waits for `Ended`.
    let tell = |message| drop(out.send(message));
    match take_part(io, shape, &control, &tell).await {
        Ok(core) => tell(Message::Ledger(core.ledger.take())),
        Err(why) => {
            control.interrupt();
            tell(Message::Failed(why));
        }
    }
    tell(Message::Ended);
}

async fn take_part<I: Io>(
    io: I,
    shape: Arc<Shape>,
    control: &Arc<Control>,
    tell: &impl Fn(Message),
) -> Result<Rc<Core<I>>, String> {
    let mine = |count: u32| {
        let (core, cores) = (io.core().index(), control.cores);
        (0..count).filter(move |id| usize::try_from(*id).unwrap_or(0) % cores == core)
    };
    let producers: Vec<u32> = mine(shape.plan.producers).collect();
    let consumers: Vec<u32> = mine(shape.plan.consumers).collect();
    let mut streams = Vec::new();
    for _ in producers.iter().chain(&consumers) {
        let mut links = Vec::new();
        for address in shape.target.route.brokers() {
            let host = shape.target.route.host(*address);
            let stream = first_connection(&io, &shape.plan.security, &host, *address).await;
            links.push(
                stream.map_err(|e| format!("cannot connect to {address}: {}", in_words(&e)))?,
            );
        }
        streams.push(links);
    }
    let core = Rc::new(Core {
        // Nothing is measured before the start is known.
        recorder: RefCell::new(Recorder::new(0, 0..0)),
        ledger: RefCell::new(Ledger::new(shape.plan.groups)),
        memories: RefCell::default(),
        until: Cell::new(u64::MAX),
        has_begun: Cell::new(false),
        running: Cell::new(producers.len() + consumers.len()),
        ended: Bell::default(),
        control: control.clone(),
        shape: shape.clone(),
        io: io.clone(),
    });
    let producer_streams = streams.drain(..producers.len()).collect::<Vec<_>>();
    for (id, links) in consumers.into_iter().zip(streams) {
        io.spawn(
            "consumer",
            consume::run(core.clone(), consumer(&shape, id), member(&shape, id), links),
        );
    }
    settle_groups(&io, control).await?;
    let start = start_together(&io, control).await.ok_or("stopped before the start")?;
    let measured_from = (Instant(start) + shape.plan.warm_up).0;
    let measured_until = (Instant(measured_from) + shape.plan.duration).0;
    // What it took to join the groups is no part of the run.
    core.recorder.replace(Recorder::new(start, measured_from..measured_until));
    core.until.set(measured_until);
    core.has_begun.set(true);
    for (id, links) in producers.into_iter().zip(producer_streams) {
        let mind = Producer::new(id, shape.clone(), core.epoch(), start, measured_until);
        io.spawn("producer", produce::run(core.clone(), mind, links));
    }
    cut_until_the_end(&core, measured_from, tell).await;
    Ok(core)
}

/// A consumer; in a group it is told its partitions later.
fn consumer(shape: &Arc<Shape>, id: u32) -> Consumer {
    let mut mind = Consumer::new(id, id % shape.plan.groups, shape.clone());
    if !shape.plan.is_grouped {
        mind.assign(&share(shape, id));
    }
    mind
}

fn member(shape: &Arc<Shape>, id: u32) -> Option<Member> {
    let group = shape.group_id(id % shape.plan.groups);
    shape.plan.is_grouped.then(|| Member::new(group, shape.clone()))
}

/// Waits until all members of all groups have their partitions, so that no record waits for that.
async fn settle_groups<I: Io>(io: &I, control: &Control) -> Result<(), String> {
    let deadline = io.now() + SETTLE_TIME;
    while !control.have_all_settled() {
        if control.is_interrupted() {
            return Err("stopped before the start".to_string());
        }
        if io.now() >= deadline {
            return Err(format!("the groups have not settled within {SETTLE_TIME:?}"));
        }
        io.sleep(READY_PAUSE).await;
    }
    Ok(())
}

/// The places that a consumer reads, and from where: its part of what its group shares evenly.
fn share(shape: &Shape, consumer: u32) -> Vec<(usize, i64)> {
    let groups = shape.plan.groups;
    let (group, member) = (consumer % groups, consumer / groups);
    let members = (shape.plan.consumers - group).div_ceil(groups).max(1);
    let (member, members) = (usize::try_from(member), usize::try_from(members));
    let (Ok(member), Ok(members)) = (member, members) else { return Vec::new() };
    let places = shape.target.places.iter().enumerate();
    let mine = places.filter(|(place, _)| place % members == member);
    mine.map(|(index, place)| (index, place.start)).collect()
}

/// Waits for all cores; the last one that is ready sets the time. `None` if the run was stopped.
async fn start_together<I: Io>(io: &I, control: &Control) -> Option<u64> {
    if control.ready.fetch_add(1, Ordering::AcqRel) + 1 == control.cores {
        let now = io.now();
        let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let wall = wall.unwrap_or_default().as_nanos();
        let epoch = i64::try_from(wall).unwrap_or(0).saturating_sub_unsigned(now.0);
        control.epoch.store(epoch, Ordering::Release);
        control.start.store((now + START_AFTER).0, Ordering::Release);
    }
    loop {
        let start = control.start.load(Ordering::Acquire);
        if control.is_interrupted() {
            return None;
        }
        if start > 0 {
            io.sleep_until(Instant(start)).await;
            return Some(start);
        }
        io.sleep(READY_PAUSE).await;
    }
}

/// Ends each interval when it is time, until all clients have ended.
async fn cut_until_the_end<I: Io>(core: &Core<I>, from: u64, tell: &impl Fn(Message)) {
    let every = interval(core.shape.plan.duration);
    let cut = |at: u64| {
        let recorder = &mut core.recorder.borrow_mut();
        for _ in 0..core.control.board.failures() {
            recorder.error("METADATA_FAILED");
        }
        let interval = recorder.cut(at);
        tell(Message::Interval(Box::new(interval)));
    };
    let mut next = boundary_after(core.now(), from, every);
    while core.running.get() > 0 {
        let end = core.until.get();
        let now = core.now();
        let next_now = if now < end { next.min(end) } else { next };
        let wake = next_now.min((Instant(now) + ATTENTION).0);
        until(core.ended.rung(), core.io.sleep_until(Instant(wake))).await;
        let now = core.now();
        let is_stopped = core.control.is_interrupted() && now < core.until.get();
        if is_stopped {
            core.until.set(now);
            core.recorder.borrow_mut().stop_at(now);
        }
        if is_stopped || now >= next_now {
            cut(now);
            next = boundary_after(now, from, every);
        }
    }
    cut(core.now());
}

/// The boundaries of all cores are the same ones: so many intervals before or after `from`.
fn boundary_after(now: u64, from: u64, every: Duration) -> u64 {
    let every = u64::try_from(every.as_nanos()).unwrap_or(u64::MAX).max(1);
    if now >= from {
        return from.saturating_add(((now - from) / every + 1).saturating_mul(every));
    }
    from - (from - now - 1) / every * every
}

/// How long an interval is: there are at least ten, of a second at most.
pub fn interval(duration: Duration) -> Duration {
    (duration / 10).clamp(Duration::from_millis(100), Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_lie_on_one_grid() {
        let every = Duration::from_nanos(10);
        for (now, next) in [(100, 110), (109, 110), (110, 120), (99, 100), (90, 100), (89, 90)] {
            assert_eq!(boundary_after(now, 100, every), next, "after {now}");
        }
    }

    /// What consumers have no time to read is not lost.
    #[test]
    fn consumers_go_on_while_records_arrive_but_not_for_ever() {
        let seconds = |count: u64| count * 1_000_000_000;
        let drain = DRAIN_TIME.as_secs();
        let patience = |received| readers_patience(seconds(10)..seconds(70), seconds(received));
        assert_eq!(patience(0), seconds(70 + drain), "nothing ever came");
        assert_eq!(patience(75), seconds(75 + drain));
        assert_eq!(patience(500), seconds(70 + drain + 60));
    }

    #[test]
    fn there_are_enough_intervals_to_draw() {
        assert_eq!(interval(Duration::from_secs(60)), Duration::from_secs(1));
        assert_eq!(interval(Duration::from_secs(3)), Duration::from_millis(300));
        assert_eq!(interval(Duration::from_millis(10)), Duration::from_millis(100));
    }
}
