//! A producer's hands: carries out what its mind wants, and brings the answers.
//!
//! Lives on: a core of the generator; one task per producer and one per connection, and another
//! for the coordinator of its transactions (`commit`).

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;

use super::channel::Channel;
use super::commit;
use super::core::{ATTENTION, Core};
use super::link::{Bell, await_frame, consume, frame, until};
use super::producer::Producer;
use crate::base::time::Instant;
use crate::io::{Io, Stream};

/// Other tasks get their turn at least this often.
const TURN_NANOS: u64 = 200_000;
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// A broker that answers nothing for so long is hung up on (Kafka's request.timeout.ms).
const SILENCE_NANOS_MAX: u64 = 30_000_000_000;

/// What the tasks of one producer share.
pub struct Hands<I: Io> {
    pub core: Rc<Core<I>>,
    pub mind: RefCell<Producer>,
    links: RefCell<Vec<Link<I>>>,
    pub bell: Bell,
    /// There may be something to tell the coordinator.
    pub coordinator_bell: Bell,
}

/// A lane's connection.
struct Link<I: Io> {
    stream: Option<Rc<Channel<I::Stream>>>,
    /// When another attempt to connect is made; never while one is under way.
    again_at: u64,
    heard: Rc<Cell<u64>>,
}

impl<I: Io> Default for Link<I> {
    fn default() -> Link<I> {
        Link { stream: None, again_at: 0, heard: Rc::default() }
    }
}

/// Runs until all records have come to their end.
pub async fn run<I: Io>(core: Rc<Core<I>>, mind: Producer, streams: Vec<Channel<I::Stream>>) {
    let hands = Rc::new(Hands {
        mind: RefCell::new(mind),
        links: RefCell::new(Vec::new()),
        bell: Bell::default(),
        coordinator_bell: Bell::default(),
        core,
    });
    hands.links.borrow_mut().resize_with(streams.len(), Link::default);
    for (lane, stream) in streams.into_iter().enumerate() {
        hands.attach(lane, stream);
    }
    if hands.mind.borrow().is_transactional() {
        hands.core.io.spawn("commits", commit::run(hands.clone()));
    }
    let mut turn = hands.core.now();
    while !hands.is_over() {
        hands.look_at_the_board();
        let lanes = hands.links.borrow().len();
        for lane in 0..lanes {
            hands.drive(lane).await;
        }
        if hands.mind.borrow().has_coordinator_request(hands.core.now()) {
            hands.coordinator_bell.ring();
        }
        let now = hands.core.now();
        if now >= turn + TURN_NANOS {
            hands.core.io.cede().await;
            turn = hands.core.now();
        }
        hands.rest(now).await;
    }
    for link in hands.links.borrow_mut().iter_mut() {
        if let Some(stream) = link.stream.take() {
            stream.shutdown();
        }
    }
    hands.mind.borrow_mut().abandon(&mut hands.core.recorder.borrow_mut());
    hands.core.control.producer_ended();
    hands.core.client_ended();
}

impl<I: Io> Hands<I> {
    /// Whether there is nothing more to do, or no more patience.
    pub fn is_over(&self) -> bool {
        let now = self.core.now();
        self.mind.borrow_mut().stop_at(self.core.until.get());
        self.mind.borrow().is_done(now) || now >= self.core.patience()
    }

    /// Takes up what is due and sends what is ready on one lane.
    async fn drive(self: &Rc<Self>, lane: usize) {
        let began = self.core.now();
        loop {
            let now = self.core.now();
            if now >= began + TURN_NANOS {
                // Without acknowledgements there may be room in the socket for ever.
                return self.bell.ring();
            }
            self.mind.borrow_mut().fill(now, &mut self.core.recorder.borrow_mut());
            let Some(stream) = self.stream(lane) else { return };
            if !self.mind.borrow_mut().take(lane, now) {
                return;
            }
            let mut memory = self.core.memory();
            self.mind.borrow().write(lane, &mut memory);
            let frame = memory.freeze();
            // A broker that takes nothing any more must not hold up the end of the run.
            let patience = self.core.patience().min(now.saturating_add(SILENCE_NANOS_MAX));
            let patience = self.core.io.sleep_until(Instant(patience));
            let outcome = until(stream.write(vec![frame.clone()]), patience).await;
            self.core.keep(frame);
            match outcome {
                Some(Ok(())) => {
                    let now = self.core.now();
                    self.mind.borrow_mut().sent(lane, now, &mut self.core.recorder.borrow_mut());
                }
                _ => return self.lost(lane, &stream),
            }
        }
    }

    /// Tells the scout of doubts, and the mind of newer metadata.
    fn look_at_the_board(&self) {
        let (mind, board) = (&mut self.mind.borrow_mut(), &self.core.control.board);
        if mind.doubts() {
            board.ask(mind.route());
        }
        if let Some(route) = board.newer(mind.route()) {
            mind.follow(route, self.core.now());
            self.links.borrow_mut().resize_with(mind.lanes(), Link::default);
        }
    }

    /// The lane's connection. One that is gone is made again beside, when the time has come and it
    /// is needed.
    fn stream(self: &Rc<Self>, lane: usize) -> Option<Rc<Channel<I::Stream>>> {
        let is_due = {
            let mut links = self.links.borrow_mut();
            let link = links.get_mut(lane)?;
            if let Some(stream) = &link.stream {
                return Some(stream.clone());
            }
            let is_due = self.core.now() >= link.again_at && self.mind.borrow().is_used(lane);
            if is_due {
                link.again_at = u64::MAX;
            }
            is_due
        };
        // The task may run at once: nothing is borrowed while it begins.
        if is_due {
            self.core.io.spawn("connects", attempt(self.clone(), lane));
        }
        None
    }

    fn attach(self: &Rc<Self>, lane: usize, stream: Channel<I::Stream>) {
        let stream = Rc::new(stream);
        let mut heard = Rc::new(Cell::new(0));
        if let Some(link) = self.links.borrow_mut().get_mut(lane) {
            link.stream = Some(stream.clone());
            link.heard.set(self.core.now());
            heard = link.heard.clone();
        }
        self.core.io.spawn("answers", listen(self.clone(), lane, stream, heard));
    }

    /// Notes that a connection is gone, once.
    fn lost(&self, lane: usize, stream: &Rc<Channel<I::Stream>>) {
        let mut links = self.links.borrow_mut();
        let Some(link) = links.get_mut(lane) else { return };
        if !link.stream.as_ref().is_some_and(|current| Rc::ptr_eq(current, stream)) {
            return;
        }
        link.stream = None;
        link.again_at = (Instant(self.core.now()) + RECONNECT_PAUSE).0;
        stream.shutdown();
        let recorder = &mut self.core.recorder.borrow_mut();
        recorder.error("CONNECTION_LOST");
        self.mind.borrow_mut().lost(lane, self.core.now(), recorder);
        self.bell.ring();
    }

    /// Waits until there is something to do.
    async fn rest(&self, now: u64) {
        self.hang_up_on_the_silent(now);
        self.mind.borrow_mut().expire(now, &mut self.core.recorder.borrow_mut());
        let wake = self.wake(now);
        if wake > now {
            until(self.bell.rung(), self.core.io.sleep_until(Instant(wake))).await;
        }
    }

    /// When there is something to do, unless the bell rings before.
    fn wake(&self, now: u64) -> u64 {
        let (links, mind) = (self.links.borrow(), self.mind.borrow());
        let is_connected =
            |lane: usize| links.get(lane).is_some_and(|link: &Link<I>| link.stream.is_some());
        let away = links.iter().enumerate().filter(|(_, link)| link.stream.is_none());
        let away = away.filter(|(lane, _)| mind.is_used(*lane)).map(|(_, link)| link.again_at);
        let attention = (Instant(now) + ATTENTION).0;
        away.chain(mind.next_wake(now, is_connected)).min().unwrap_or(attention).min(attention)
    }

    fn hang_up_on_the_silent(&self, now: u64) {
        for (lane, link) in self.links.borrow().iter().enumerate() {
            let waits_since = self.mind.borrow().waits_since(lane);
            let Some(since) = waits_since else { continue };
            let quiet_since = since.max(link.heard.get());
            if let Some(stream) = &link.stream
                && now.saturating_sub(quiet_since) > SILENCE_NANOS_MAX
            {
                // The task that listens notices, and notes it.
                stream.shutdown();
            }
        }
    }
}

/// Connects a lane again, or says when to try the next time.
async fn attempt<I: Io>(hands: Rc<Hands<I>>, lane: usize) {
    let route = hands.mind.borrow().route().clone();
    let outcome = match route.broker(lane) {
        Some(address) => hands.core.connect(&route, address).await,
        None => Err(io::ErrorKind::NotFound.into()),
    };
    match outcome {
        Ok(stream) if hands.is_over() => stream.shutdown(),
        Ok(stream) => hands.attach(lane, stream),
        Err(_) => {
            hands.core.recorder.borrow_mut().error("CONNECT_FAILED");
            hands.mind.borrow_mut().unreached();
            if let Some(link) = hands.links.borrow_mut().get_mut(lane) {
                link.again_at = (Instant(hands.core.now()) + RECONNECT_PAUSE).0;
            }
        }
    }
    hands.bell.ring();
}

/// Brings answers until the connection ends.
async fn listen<I: Io>(
    hands: Rc<Hands<I>>,
    lane: usize,
    stream: Rc<Channel<I::Stream>>,
    heard: Rc<Cell<u64>>,
) {
    let mut received = BytesMut::new();
    loop {
        let outcome = await_frame(&*stream, &mut received).await;
        let now = hands.core.now();
        heard.set(now);
        let understood = outcome.and_then(|length| {
            let answer = frame(&received, length);
            let recorder = &mut hands.core.recorder.borrow_mut();
            let ledger = &mut hands.core.ledger.borrow_mut();
            let taken = hands.mind.borrow_mut().answer(lane, answer, now, recorder, ledger);
            taken.map_err(|_| {
                recorder.error("STRANGE_ANSWER");
                io::Error::from(io::ErrorKind::InvalidData)
            })?;
            consume(&mut received, length);
            Ok(())
        });
        if understood.is_err() {
            hands.lost(lane, &stream);
            return;
        }
        hands.bell.ring();
    }
}
