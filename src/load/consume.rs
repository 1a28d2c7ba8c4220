//! A consumer's hands: a fetch after the other on each lane, connected again when it breaks.
//!
//! Lives on: a core of the generator; one task per consumer, and one per lane that it reads from.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;

use super::channel::Channel;
use super::consumer::{Consumer, Outcome};
use super::core::{ATTENTION, Core, READY_PAUSE};
use super::link::{Bell, await_frame, consume, frame, until};
use super::member::Member;
use super::membership;
use super::options::{Mode, Start};
use crate::base::time::Instant;
use crate::io::{Io, Stream};

const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
const ERROR_PAUSE: Duration = Duration::from_millis(20);
/// A broker holds an empty answer back for so long.
const WAIT_MS: i32 = 500;
/// The same, when all that is left to learn is that nothing follows.
const LAST_WAIT_MS: i32 = 50;
/// A broker that answers nothing for so long is hung up on (Kafka's request.timeout.ms).
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// What the tasks of one consumer share.
pub struct Hands<I: Io> {
    pub core: Rc<Core<I>>,
    pub mind: RefCell<Consumer>,
    links: RefCell<Vec<Link<I>>>,
    /// Tasks that run beside the consumer's own.
    tasks: Cell<usize>,
    /// The consumer has its partitions; always so where it is in no group.
    is_settled: Cell<bool>,
    /// It has told the others of its group that it is at rest.
    is_resting: Cell<bool>,
    bell: Bell,
}

/// A lane's connection while no task has it.
struct Link<I: Io> {
    stream: Option<Channel<I::Stream>>,
    is_running: bool,
    /// After all producers ended, the lane's broker had nothing more.
    is_drained: bool,
}

impl<I: Io> Default for Link<I> {
    fn default() -> Link<I> {
        Link { stream: None, is_running: false, is_drained: false }
    }
}

/// Runs until the time is over or everything is read; as a member of a group, if there is one,
/// which it joins before the run begins.
pub async fn run<I: Io>(
    core: Rc<Core<I>>,
    mind: Consumer,
    member: Option<Member>,
    streams: Vec<Channel<I::Stream>>,
) {
    let link = |stream| Link { stream: Some(stream), ..Link::default() };
    let hands = Rc::new(Hands {
        core: core.clone(),
        mind: RefCell::new(mind),
        links: RefCell::new(streams.into_iter().map(link).collect()),
        tasks: Cell::new(0),
        is_settled: Cell::new(member.is_none()),
        is_resting: Cell::new(false),
        bell: Bell::default(),
    });
    if let Some(member) = member {
        hands.tasks.set(1);
        core.io.spawn("membership", membership::run(hands.clone(), member));
    }
    while !core.has_begun() && !hands.is_over() {
        hands.look_at_the_board();
        core.io.sleep(READY_PAUSE).await;
    }
    hands.mind.borrow_mut().begin(core.epoch());
    while !hands.is_over() {
        hands.look_at_the_board();
        hands.put_lanes_to_work();
        until(hands.bell.rung(), core.io.sleep(ATTENTION)).await;
    }
    while hands.tasks.get() > 0 {
        hands.bell.rung().await;
    }
    core.client_ended();
}

/// Reads from a lane as long as it has partitions.
async fn fetch<I: Io>(hands: Rc<Hands<I>>, lane: usize) {
    while !hands.is_over() && hands.mind.borrow().is_used(lane) {
        let kept = hands.links.borrow_mut().get_mut(lane).and_then(|link| link.stream.take());
        let stream = match kept {
            Some(stream) => stream,
            None => match hands.reconnect(lane).await {
                Some(stream) => stream,
                None => continue,
            },
        };
        let outcome = converse(&hands, lane, &stream).await;
        let name = match outcome.map_err(|error| error.kind()) {
            Ok(Ended::Idle) => {
                if let Some(link) = hands.links.borrow_mut().get_mut(lane) {
                    link.stream = Some(stream);
                }
                continue;
            }
            Ok(Ended::Over) => break,
            Err(io::ErrorKind::InvalidData) => "STRANGE_ANSWER",
            Err(_) => "CONNECTION_LOST",
        };
        stream.shutdown();
        hands.core.recorder.borrow_mut().error(name);
        hands.mind.borrow_mut().lost(lane);
        hands.core.io.sleep(RECONNECT_PAUSE).await;
    }
    if let Some(link) = hands.links.borrow_mut().get_mut(lane) {
        link.is_running = false;
    }
    hands.task_ended();
}

/// Why a conversation ended in good order.
enum Ended {
    /// The lane has no partitions any more; the connection can be used again.
    Idle,
    /// The consumer has come to its end, perhaps with a request in flight.
    Over,
}

/// Request after request.
async fn converse<I: Io>(
    hands: &Hands<I>,
    lane: usize,
    stream: &Channel<I::Stream>,
) -> io::Result<Ended> {
    let core = &hands.core;
    let mut received = BytesMut::new();
    loop {
        if !hands.mind.borrow().is_used(lane) {
            return Ok(Ended::Idle);
        }
        let is_last = core.control.have_producers_ended();
        let wait_ms = if is_last { LAST_WAIT_MS } else { WAIT_MS };
        let request = hands.mind.borrow_mut().request(lane, wait_ms);
        stream.write(vec![request]).await?;
        let Some(length) = hands.await_answer(stream, &mut received).await? else {
            return Ok(Ended::Over);
        };
        let outcome = {
            let answer = frame(&received, length);
            let recorder = &mut core.recorder.borrow_mut();
            let ledger = &mut core.ledger.borrow_mut();
            let mind = &mut hands.mind.borrow_mut();
            mind.answer(lane, answer, core.now(), recorder, ledger)
        };
        let outcome = outcome.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        consume(&mut received, length);
        hands.note(lane, outcome, is_last);
        if hands.is_over() {
            return Ok(Ended::Over);
        }
        if outcome.is_wrong {
            hands.look_at_the_board();
            core.io.sleep(ERROR_PAUSE).await;
        }
    }
}

impl<I: Io> Hands<I> {
    /// Starts a task for each lane that has partitions and none.
    fn put_lanes_to_work(self: &Rc<Self>) {
        let lanes = self.mind.borrow().lanes();
        for lane in 0..lanes {
            // A task may run at once: nothing is borrowed while it begins.
            if self.puts_to_work(lane) {
                self.tasks.set(self.tasks.get() + 1);
                self.core.io.spawn("fetches", fetch(self.clone(), lane));
            }
        }
    }

    /// Whether the lane needs a task; if so, it has one from here on.
    fn puts_to_work(&self, lane: usize) -> bool {
        let mut links = self.links.borrow_mut();
        if links.len() <= lane {
            links.resize_with(lane + 1, Link::default);
        }
        let is_used = self.mind.borrow().is_used(lane);
        let Some(link) = links.get_mut(lane).filter(|link| is_used && !link.is_running) else {
            return false;
        };
        (link.is_running, link.is_drained) = (true, false);
        true
    }

    /// Tells the scout of doubts, and the mind of newer metadata.
    fn look_at_the_board(&self) {
        let (mind, board) = (&mut self.mind.borrow_mut(), &self.core.control.board);
        if mind.doubts() {
            board.ask(mind.route());
        }
        if let Some(route) = board.newer(mind.route()) {
            mind.follow(route);
        }
    }

    async fn reconnect(&self, lane: usize) -> Option<Channel<I::Stream>> {
        let route = self.mind.borrow().route().clone();
        let Ok(stream) = self.core.connect(&route, route.broker(lane)?).await else {
            self.core.recorder.borrow_mut().error("CONNECT_FAILED");
            self.mind.borrow_mut().unreached();
            self.core.io.sleep(RECONNECT_PAUSE).await;
            return None;
        };
        Some(stream)
    }

    /// Notes what an answer says about the end; `is_last` if it was asked for after all producers
    /// had ended.
    fn note(&self, lane: usize, outcome: Outcome, is_last: bool) {
        if let Some(link) = self.links.borrow_mut().get_mut(lane) {
            let is_quiet = outcome.is_empty && !outcome.is_wrong;
            link.is_drained = is_quiet && (is_last || link.is_drained);
        }
        if !outcome.is_empty {
            self.core.note_received();
        }
        if self.is_over() {
            self.bell.ring();
        }
    }

    pub fn task_ended(&self) {
        self.tasks.set(self.tasks.get() - 1);
        self.bell.ring();
    }

    /// Notes whether the consumer has its partitions; after an assignment there may be others.
    pub fn settle(&self, is_settled: bool) {
        if self.is_settled.replace(is_settled) == is_settled {
            return;
        }
        self.core.control.member_settled(is_settled);
        for link in self.links.borrow_mut().iter_mut() {
            link.is_drained = false;
        }
        self.bell.ring();
    }

    /// Whether everything is read that this run is about.
    fn is_at_rest(&self) -> bool {
        if !self.is_settled.get() || !self.core.has_begun() {
            return false;
        }
        let (mind, plan) = (self.mind.borrow(), &self.core.shape.plan);
        match plan.mode {
            Mode::Consume => plan.from == Start::Beginning && mind.has_reached_the_end(),
            Mode::E2e | Mode::Verify => {
                let links = self.links.borrow();
                let mut used = (0..mind.lanes()).filter(|lane| mind.is_used(*lane));
                let is_drained = |lane: usize| links.get(lane).is_some_and(|link| link.is_drained);
                self.core.is_over() && !mind.has_strays() && used.all(is_drained)
            }
            _ => false,
        }
    }

    /// Whether to stop. Members of groups stop together: whoever left before would make the others
    /// rebalance.
    pub fn is_over(&self) -> bool {
        let control = &self.core.control;
        if !self.core.has_begun() {
            return control.is_interrupted();
        }
        let is_at_rest = self.is_at_rest();
        if !self.core.shape.plan.is_grouped {
            if is_at_rest {
                return true;
            }
        } else {
            if self.is_resting.replace(is_at_rest) != is_at_rest {
                control.member_rests(is_at_rest);
            }
            if control.have_all_come_to_rest() {
                return true;
            }
        }
        let is_late = match self.core.shape.plan.mode {
            Mode::E2e | Mode::Verify => self.core.now() >= self.core.readers_patience(),
            _ => true,
        };
        self.core.is_over() && is_late
    }

    /// The next answer's length; `None` if the run is over before it is there.
    async fn await_answer(
        &self,
        stream: &Channel<I::Stream>,
        received: &mut BytesMut,
    ) -> io::Result<Option<usize>> {
        let deadline = Instant(self.core.now()) + SILENCE_MAX;
        loop {
            let io = &self.core.io;
            // A read that is given up half-way has left what it got in `received`.
            let answer = await_frame(stream, received);
            if let Some(outcome) = until(answer, io.sleep(ATTENTION)).await {
                return outcome.map(Some);
            }
            if self.is_over() {
                return Ok(None);
            }
            if io.now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}
