//! One core of the generator: connects its clients, starts them together with all other cores, cuts
//! what they measure into intervals, and ends when they do.
//!
//! Lives on: every core of the generator.  Talks to: the broker, and the reporter on the main
//! thread through a channel.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::consumer::Consumer;
use super::ledger::Ledger;
use super::link::{Bell, until};
use super::producer::{Producer, Shape};
use super::recorder::{Interval, Recorder};
use super::{consume, produce};
use crate::base::time::Instant;
use crate::client::failure::in_words;
use crate::io::Io;

/// How long a broker may take to accept a connection.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// From "all are ready" to the first intended time.
const START_AFTER: Duration = Duration::from_millis(20);
const READY_PAUSE: Duration = Duration::from_millis(1);
/// How soon a request to stop is noticed.
pub const ATTENTION: Duration = Duration::from_millis(50);
/// After the last intended time, what is in flight gets this long.
const DRAIN_TIME: Duration = Duration::from_secs(15);

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
}

impl Control {
    pub fn new(cores: usize, producers: usize) -> Control {
        Control {
            cores,
            ready: AtomicUsize::new(0),
            start: AtomicU64::new(0),
            epoch: AtomicI64::new(0),
            producers: AtomicUsize::new(producers),
            interrupted: AtomicBool::new(false),
        }
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
    /// The span that is measured, on the clock.
    pub until: Cell<u64>,
    running: Cell<usize>,
    ended: Bell,
}

impl<I: Io> Core<I> {
    pub fn now(&self) -> u64 {
        self.io.now().0
    }

    /// Whether the end has been brought forward.
    pub fn is_over(&self) -> bool {
        self.control.is_interrupted() || self.now() >= self.until.get()
    }

    /// When what is in flight is given up.
    pub fn patience(&self) -> u64 {
        (Instant(self.until.get()) + DRAIN_TIME).0
    }

    pub fn client_ended(&self) {
        self.running.set(self.running.get() - 1);
        self.ended.ring();
    }
}

/// Connects within `CONNECT_TIME`.
pub async fn connect<I: Io>(io: &I, address: SocketAddr) -> std::io::Result<I::Stream> {
    match until(io.connect(address), io.sleep(CONNECT_TIME)).await {
        Some(outcome) => outcome,
        None => Err(std::io::ErrorKind::TimedOut.into()),
    }
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
        for address in &shape.target.brokers {
            let stream = connect(&io, *address).await;
            let stream =
                stream.map_err(|e| format!("cannot connect to {address}: {}", in_words(&e)))?;
            links.push(stream);
        }
        streams.push(links);
    }
    let start = start_together(&io, control).await.ok_or("stopped before the start")?;
    let measured_from = (Instant(start) + shape.plan.warm_up).0;
    let measured_until = (Instant(measured_from) + shape.plan.duration).0;
    let epoch = control.epoch.load(Ordering::Acquire);
    let core = Rc::new(Core {
        recorder: RefCell::new(Recorder::new(start, measured_from..measured_until)),
        ledger: RefCell::new(Ledger::new(shape.plan.groups)),
        until: Cell::new(measured_until),
        running: Cell::new(producers.len() + consumers.len()),
        ended: Bell::default(),
        control: control.clone(),
        shape: shape.clone(),
        io: io.clone(),
    });
    let mut streams = streams.into_iter();
    for id in producers {
        let mind = Producer::new(id, shape.clone(), epoch, start, measured_until);
        let links = streams.next().unwrap_or_default();
        io.spawn("producer", produce::run(core.clone(), mind, links));
    }
    for id in consumers {
        let places = share(&shape, id);
        let mind = Consumer::new(id, id % shape.plan.groups, shape.clone(), epoch, &places);
        let links = streams.next().unwrap_or_default();
        io.spawn("consumer", consume::run(core.clone(), mind, links));
    }
    cut_until_the_end(&core, measured_from, tell).await;
    Ok(core)
}

/// The places that a consumer reads: its part of what its group shares evenly.
fn share(shape: &Shape, consumer: u32) -> Vec<usize> {
    let groups = shape.plan.groups;
    let (group, member) = (consumer % groups, consumer / groups);
    let members = (shape.plan.consumers - group).div_ceil(groups).max(1);
    let (member, members) = (usize::try_from(member), usize::try_from(members));
    let (Ok(member), Ok(members)) = (member, members) else { return Vec::new() };
    (0..shape.target.places.len()).filter(|place| place % members == member).collect()
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
        let interval = core.recorder.borrow_mut().cut(at);
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

    #[test]
    fn there_are_enough_intervals_to_draw() {
        assert_eq!(interval(Duration::from_secs(60)), Duration::from_secs(1));
        assert_eq!(interval(Duration::from_secs(3)), Duration::from_millis(300));
        assert_eq!(interval(Duration::from_millis(10)), Duration::from_millis(100));
    }
}
