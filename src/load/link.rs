//! The tools of the hands: frames from a stream, a bell between tasks, waiting for one of two.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::{Poll, Waker};

use bytes::BytesMut;
use futures_util::future::{Either, select};

use crate::io::Stream;

const READ_BYTES: usize = 256 << 10;
/// An answer that claims to be longer is none.
const ANSWER_BYTES_MAX: usize = 1 << 30;
const LENGTH_BYTES: usize = 4;

/// Waits until a whole frame stands at the start of `received`; returns its length, without the
/// bytes that hold the length.
pub async fn await_frame<S: Stream>(stream: &S, received: &mut BytesMut) -> io::Result<usize> {
    loop {
        let mut wanted = READ_BYTES;
        if let Some(length) = received.first_chunk() {
            let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
            if length > ANSWER_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let whole = LENGTH_BYTES + length;
            if received.len() >= whole {
                return Ok(length);
            }
            wanted = wanted.max(whole - received.len());
        }
        received.reserve(wanted);
        if stream.read(received, wanted).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// The frame at the start of `received`, whose length `await_frame` told.
pub fn frame(received: &BytesMut, length: usize) -> &[u8] {
    received.get(LENGTH_BYTES..LENGTH_BYTES + length).unwrap_or_default()
}

/// Removes that frame.
pub fn consume(received: &mut BytesMut, length: usize) {
    bytes::Buf::advance(received, (LENGTH_BYTES + length).min(received.len()));
}

/// One task rings, one waits; a ring that nobody waits for is kept.
#[derive(Default)]
pub struct Bell {
    is_rung: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Bell {
    pub fn ring(&self) {
        self.is_rung.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    pub fn rung(&self) -> impl Future<Output = ()> {
        poll_fn(|context| {
            if self.is_rung.take() {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
    }
}

/// Runs `work` until it ends or `end` does; `None` says that it was `end`.
pub async fn until<T>(work: impl Future<Output = T>, end: impl Future<Output = ()>) -> Option<T> {
    match select(pin!(work), pin!(end)).await {
        Either::Left((outcome, _)) => Some(outcome),
        Either::Right(_) => None,
    }
}
