//! A connection on which one request at a time waits for its answer, as coordinators are spoken to.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::channel::Channel;
use super::core::{ATTENTION, Core};
use super::link::{await_frame, consume, frame, until};
use super::route::Route;
use crate::base::time::Instant;
use crate::io::{Io, Stream};

/// See the module's documentation.
pub struct Line<I: Io> {
    pub address: SocketAddr,
    stream: Channel<I::Stream>,
    received: BytesMut,
}

impl<I: Io> Line<I> {
    pub async fn open(core: &Core<I>, route: &Route, address: SocketAddr) -> io::Result<Line<I>> {
        let stream = core.connect(route, address).await?;
        Ok(Line { address, stream, received: BytesMut::new() })
    }

    /// Sends a request and waits for its answer, for so long at most and until `is_over`; returns
    /// the answer's length. After an error the line is of no use any more.
    pub async fn ask(
        &mut self,
        core: &Core<I>,
        request: Bytes,
        silence: Duration,
        is_over: impl Fn() -> bool,
    ) -> io::Result<usize> {
        self.stream.write(vec![request]).await?;
        let silence = Instant(core.now()) + silence;
        loop {
            let answer = await_frame(&self.stream, &mut self.received);
            if let Some(outcome) = until(answer, core.io.sleep(ATTENTION)).await {
                return outcome;
            }
            if is_over() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            if core.io.now() >= silence {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// The answer of this length.
    pub fn answer(&self, length: usize) -> &[u8] {
        frame(&self.received, length)
    }

    /// Goes past the answer of this length.
    pub fn consume(&mut self, length: usize) {
        consume(&mut self.received, length);
    }

    pub fn close(self) {
        self.stream.shutdown();
    }
}
