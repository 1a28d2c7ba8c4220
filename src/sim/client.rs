//! A client of the node: frames over a simulated stream, every wait bounded, no retries of its own.

use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::{Either, select};

use crate::io::sim::{SimIo, SimStream};
use crate::io::{Io, Stream};
use crate::wire::api::ApiKey;
use crate::wire::header::{RequestHeader, decode_body, read_response_header};
use crate::wire::primitive::{Reader, Wire};

const ANSWER_TIME: Duration = Duration::from_secs(20);
const ANSWER_BYTES_MAX: usize = 64 << 20;
const READ_BYTES: usize = 64 << 10;

/// The connection broke, or no answer came: whether the request was served is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

pub struct Client {
    io: SimIo,
    address: SocketAddr,
    stream: Option<SimStream>,
    received: BytesMut,
    correlation: i32,
}

/// An answer's frame, to be decoded in place.
pub struct Answer {
    api: ApiKey,
    version: i16,
    frame: Bytes,
    body_at: usize,
}

impl Answer {
    /// The message inside; a malformed one is the node's fault, so it ends the run.
    pub fn decode<'a, T: Wire<'a>>(&'a self) -> T {
        decode_body(&self.frame[self.body_at..], self.api, self.version)
            .unwrap_or_else(|error| panic!("{:?} {}: {error}", self.api, self.version))
    }
}

impl Client {
    pub fn new(io: SimIo, address: SocketAddr) -> Client {
        Client { io, address, stream: None, received: BytesMut::new(), correlation: 0 }
    }

    /// Drops the connection; the next request opens another one.
    pub fn hang_up(&mut self) {
        self.stream = None;
        self.received.clear();
    }

    pub async fn call<'q>(
        &mut self,
        api: ApiKey,
        version: i16,
        request: &impl Wire<'q>,
    ) -> Result<Answer, Lost> {
        let correlation = self.send(api, version, request).await?;
        self.receive(api, version, correlation).await
    }

    /// Sends a request without waiting for its answer; returns its correlation id.
    pub async fn send<'q>(
        &mut self,
        api: ApiKey,
        version: i16,
        request: &impl Wire<'q>,
    ) -> Result<i32, Lost> {
        self.correlation += 1;
        let correlation = self.correlation;
        let mut frame = BytesMut::zeroed(4);
        RequestHeader { api, version, correlation, client_id: Some("sim") }.encode(&mut frame);
        request.encode(&mut frame, api.context(version));
        let length = u32::try_from(frame.len() - 4).expect("small");
        frame[..4].copy_from_slice(&length.to_be_bytes());
        let sent = self.within(Self::write, frame.freeze()).await;
        if sent.is_err() {
            self.hang_up();
        }
        sent.map(|()| correlation)
    }

    /// The answer to the oldest request that is not answered yet.
    pub async fn receive(
        &mut self,
        api: ApiKey,
        version: i16,
        correlation: i32,
    ) -> Result<Answer, Lost> {
        let Ok(frame) = self.within(Self::read, ()).await else {
            self.hang_up();
            return Err(Lost);
        };
        let mut reader = Reader::new(&frame);
        let found = read_response_header(&mut reader, api, version);
        assert_eq!(found, Ok(correlation), "answers come in the order of their requests");
        let body_at = frame.len() - reader.remaining();
        Ok(Answer { api, version, frame, body_at })
    }

    async fn within<A, T>(
        &mut self,
        step: impl AsyncFnOnce(&mut Client, A) -> Result<T, Lost>,
        argument: A,
    ) -> Result<T, Lost> {
        let late = self.io.sleep(ANSWER_TIME);
        let step = pin!(step(self, argument));
        match select(step, pin!(late)).await {
            Either::Left((outcome, _)) => outcome,
            Either::Right(_) => Err(Lost),
        }
    }

    async fn write(&mut self, frame: Bytes) -> Result<(), Lost> {
        if self.stream.is_none() {
            self.received.clear();
            self.stream = Some(self.io.connect(self.address).await.map_err(|_| Lost)?);
        }
        let stream = self.stream.as_ref().ok_or(Lost)?;
        stream.write(vec![frame]).await.map_err(|_| Lost)
    }

    async fn read(&mut self, (): ()) -> Result<Bytes, Lost> {
        let stream = self.stream.as_ref().ok_or(Lost)?;
        loop {
            if let Some(length) = self.received.first_chunk() {
                let length = usize::try_from(u32::from_be_bytes(*length)).expect("64-bit");
                assert!(length <= ANSWER_BYTES_MAX, "an answer has a sane length: {length}");
                if self.received.len() >= 4 + length {
                    let mut frame = self.received.split_to(4 + length).freeze();
                    return Ok(frame.split_off(4));
                }
            }
            match stream.read(&mut self.received, READ_BYTES).await {
                Ok(0) | Err(_) => return Err(Lost),
                Ok(_) => {}
            }
        }
    }
}
