//! A connection as the generator uses it: the seam's stream, or TLS on top of it (rustls).
//!
//! Lives on: a core of the generator. One task reads, one writes.
//!
//! Invariants
//!   H1  What rustls wants to send is sent in the order it was made: only the writer sends, and
//!       what the reader causes (an update of keys) leaves with the next write.
//!   H2  A read that is given up half-way loses nothing: what the socket gave is kept.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::SocketAddr;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use super::link::{await_frame, consume, frame};
use crate::client::sasl::Sasl;
use crate::client::security::{Security, nonce};
use crate::io::Stream;

/// What is read from the socket at a time: some records of TLS, which hold 16 KiB each.
const READ_BYTES: usize = 64 << 10;
/// A piece of what is decrypted.
const PIECE_BYTES: usize = 16 << 10;

/// See the module's documentation.
pub enum Channel<S> {
    Plain(S),
    Secured(Box<Secured<S>>),
}

/// A stream with TLS on top.
pub struct Secured<S> {
    inner: S,
    tls: RefCell<ClientConnection>,
    /// Bytes from the socket that rustls has not taken yet.
    raw: RefCell<BytesMut>,
}

/// Makes a connection ready for requests: TLS with the broker of this name, then SASL.
pub async fn secure<S: Stream>(
    stream: S,
    security: &Security,
    host: &str,
) -> io::Result<Channel<S>> {
    let channel = match &security.tls {
        None => Channel::Plain(stream),
        Some(config) => {
            let name = ServerName::try_from(host.to_string()).map_err(io::Error::other)?;
            let tls = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
            Channel::Secured(Box::new(Secured::shake_hands(stream, tls).await?))
        }
    };
    if let Some(credentials) = &security.credentials {
        let (mut sasl, mut received) = (Sasl::new(credentials, nonce()), BytesMut::new());
        while !sasl.is_done() {
            channel.write(vec![sasl.request()]).await?;
            let length = await_frame(&channel, &mut received).await?;
            sasl.answer(frame(&received, length)).map_err(io::Error::other)?;
            consume(&mut received, length);
        }
    }
    Ok(channel)
}

impl<S: Stream> Secured<S> {
    async fn shake_hands(inner: S, mut tls: ClientConnection) -> io::Result<Secured<S>> {
        tls.set_buffer_limit(None);
        let secured = Secured { inner, tls: RefCell::new(tls), raw: RefCell::default() };
        while secured.tls.borrow().is_handshaking() {
            secured.flush().await?;
            if secured.tls.borrow().is_handshaking() && !secured.digest()? {
                secured.fill().await?;
            }
        }
        secured.flush().await?;
        Ok(secured)
    }

    /// Sends what rustls has ready.
    async fn flush(&self) -> io::Result<()> {
        let mut out = BytesMut::new().writer();
        while self.tls.borrow().wants_write() {
            self.tls.borrow_mut().write_tls(&mut out)?;
        }
        let out = out.into_inner();
        if out.is_empty() { Ok(()) } else { self.inner.write(vec![out.freeze()]).await }
    }

    /// Waits for bytes from the socket.
    async fn fill(&self) -> io::Result<()> {
        let mut lent = Lent { home: &self.raw, bytes: self.raw.take() };
        match self.inner.read(&mut lent.bytes, READ_BYTES).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Lets rustls work on what the socket gave; false when there was nothing.
    fn digest(&self) -> io::Result<bool> {
        let (mut raw, mut tls) = (self.raw.borrow_mut(), self.tls.borrow_mut());
        if raw.is_empty() {
            return Ok(false);
        }
        let taken = tls.read_tls(&mut &raw[..])?;
        // rustls takes what is there, at most.
        let taken = taken.min(raw.len());
        raw.advance(taken);
        tls.process_new_packets().map_err(io::Error::other)?;
        Ok(true)
    }

    /// Moves what is decrypted; 0 when there is nothing yet, `None` at the end of the stream.
    fn decrypted(&self, into: &mut BytesMut, limit: usize) -> io::Result<Option<usize>> {
        let mut tls = self.tls.borrow_mut();
        let mut piece = [0; PIECE_BYTES];
        let room = piece.get_mut(..limit.min(PIECE_BYTES)).unwrap_or_default();
        match tls.reader().read(room) {
            Ok(0) => Ok(None),
            Ok(length) => {
                into.extend_from_slice(room.get(..length).unwrap_or_default());
                Ok(Some(length))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Some(0)),
            Err(error) => Err(error),
        }
    }

    async fn read(&self, into: &mut BytesMut, limit: usize) -> io::Result<usize> {
        loop {
            match self.decrypted(into, limit)? {
                None => return Ok(0),
                Some(0) => {}
                Some(length) => return Ok(length),
            }
            if !self.digest()? {
                self.fill().await?;
            }
        }
    }

    async fn write_out(&self, pieces: &mut Vec<Bytes>) -> io::Result<()> {
        {
            let mut tls = self.tls.borrow_mut();
            let mut writer = tls.writer();
            for piece in pieces.drain(..) {
                writer.write_all(&piece)?;
            }
        }
        self.flush().await
    }
}

/// Bytes that go home even if the future that has them is dropped.
struct Lent<'h> {
    home: &'h RefCell<BytesMut>,
    bytes: BytesMut,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.home.replace(std::mem::take(&mut self.bytes));
    }
}

impl<S: Stream> Stream for Channel<S> {
    fn peer(&self) -> SocketAddr {
        self.socket().peer()
    }

    async fn read(&self, into: &mut BytesMut, limit: usize) -> io::Result<usize> {
        match self {
            Channel::Plain(stream) => stream.read(into, limit).await,
            Channel::Secured(secured) => secured.read(into, limit).await,
        }
    }

    async fn write_out(&self, pieces: &mut Vec<Bytes>) -> io::Result<()> {
        match self {
            Channel::Plain(stream) => stream.write_out(pieces).await,
            Channel::Secured(secured) => secured.write_out(pieces).await,
        }
    }

    fn shutdown(&self) {
        self.socket().shutdown();
    }

    fn shutdown_read(&self) {
        self.socket().shutdown_read();
    }
}

impl<S: Stream> Channel<S> {
    fn socket(&self) -> &S {
        match self {
            Channel::Plain(stream) => stream,
            Channel::Secured(secured) => &secured.inner,
        }
    }
}
