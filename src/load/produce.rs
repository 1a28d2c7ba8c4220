//! A producer's hands: carries out what its mind wants, and brings the answers.
//!
//! Lives on: a core of the generator; one task per producer and one per connection.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;

use super::core::{ATTENTION, Core, connect};
use super::link::{Bell, await_frame, consume, frame, until};
use super::producer::Producer;
use crate::base::time::Instant;
use crate::io::{Io, Stream};

/// Other tasks get their turn at least this often.
const TURN_NANOS: u64 = 200_000;
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// A broker that answers nothing for so long is hung up on (Kafka's request.timeout.ms).
const SILENCE_NANOS_MAX: u64 = 30_000_000_000;

struct Hands<I: Io> {
    core: Rc<Core<I>>,
    mind: RefCell<Producer>,
    links: RefCell<Vec<Link<I>>>,
    bell: Bell,
}

/// A lane's connection.
struct Link<I: Io> {
    stream: Option<Rc<I::Stream>>,
    /// When another attempt to connect is made.
    again_at: u64,
    heard: Rc<Cell<u64>>,
}

/// Runs until all records have come to their end.
pub async fn run<I: Io>(core: Rc<Core<I>>, mind: Producer, streams: Vec<I::Stream>) {
    let lanes = mind.lanes();
    let hands = Rc::new(Hands {
        mind: RefCell::new(mind),
        links: RefCell::new(Vec::new()),
        bell: Bell::default(),
        core,
    });
    for stream in streams {
        hands.links.borrow_mut().push(Link {
            stream: None,
            again_at: 0,
            heard: Rc::new(Cell::new(0)),
        });
        let lane = hands.links.borrow().len() - 1;
        hands.attach(lane, stream);
    }
    let mut turn = hands.core.now();
    while !hands.is_over() {
        for lane in 0..lanes {
            hands.drive(lane).await;
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
    fn is_over(&self) -> bool {
        let now = self.core.now();
        self.mind.borrow_mut().stop_at(self.core.until.get());
        self.mind.borrow().is_done(now) || now >= self.core.patience()
    }

    /// Takes up what is due and sends what is ready on one lane.
    async fn drive(self: &Rc<Self>, lane: usize) {
        loop {
            let now = self.core.now();
            self.mind.borrow_mut().fill(now, &mut self.core.recorder.borrow_mut());
            let Some(stream) = self.stream(lane).await else { return };
            let Some(pieces) = self.mind.borrow_mut().take(lane, now) else { return };
            match stream.write(pieces).await {
                Ok(()) => {
                    let now = self.core.now();
                    self.mind.borrow_mut().sent(lane, now, &mut self.core.recorder.borrow_mut());
                }
                Err(_) => return self.lost(lane, &stream),
            }
        }
    }

    /// The lane's connection, made again if it is gone and the time has come.
    async fn stream(self: &Rc<Self>, lane: usize) -> Option<Rc<I::Stream>> {
        let address = self.core.shape.target.brokers.get(lane).copied()?;
        {
            let mut links = self.links.borrow_mut();
            let link = links.get_mut(lane)?;
            if let Some(stream) = &link.stream {
                return Some(stream.clone());
            }
            if self.core.now() < link.again_at {
                return None;
            }
            link.again_at = (Instant(self.core.now()) + RECONNECT_PAUSE).0;
        }
        match connect(&self.core.io, address).await {
            Ok(stream) => Some(self.attach(lane, stream)),
            Err(_) => {
                self.core.recorder.borrow_mut().error("CONNECT_FAILED");
                None
            }
        }
    }

    fn attach(self: &Rc<Self>, lane: usize, stream: I::Stream) -> Rc<I::Stream> {
        let stream = Rc::new(stream);
        let mut heard = Rc::new(Cell::new(0));
        if let Some(link) = self.links.borrow_mut().get_mut(lane) {
            link.stream = Some(stream.clone());
            link.heard.set(self.core.now());
            heard = link.heard.clone();
        }
        self.core.io.spawn("answers", listen(self.clone(), lane, stream.clone(), heard));
        stream
    }

    /// Notes that a connection is gone, once.
    fn lost(&self, lane: usize, stream: &Rc<I::Stream>) {
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
        let wake = self.wake(now);
        if wake > now {
            until(self.bell.rung(), self.core.io.sleep_until(Instant(wake))).await;
        }
    }

    /// When there is something to do, unless the bell rings before.
    fn wake(&self, now: u64) -> u64 {
        let links = self.links.borrow();
        let away = links.iter().filter(|link| link.stream.is_none()).map(|link| link.again_at);
        let attention = (Instant(now) + ATTENTION).0;
        match away.min() {
            // Without a connection, what is ready to be sent is no reason to wake.
            Some(again_at) => again_at.min(attention),
            None => self.mind.borrow().next_wake(now).unwrap_or(attention).min(attention),
        }
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

/// Brings answers until the connection ends.
async fn listen<I: Io>(
    hands: Rc<Hands<I>>,
    lane: usize,
    stream: Rc<I::Stream>,
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
