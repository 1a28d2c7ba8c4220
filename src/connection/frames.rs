//! Frames: a length of four bytes, then that many bytes of request.

use bytes::{Buf, Bytes, BytesMut};

use super::{Bounds, Budget, Charge, Connection, Waits};
use crate::base::limits;
use crate::base::time::Instant;
use crate::io::{Io, Stream};

/// The least that is asked of the socket at a time.
const READ_BYTES: usize = 64 << 10;
/// What a frame is charged before anything of it has come.
const FIRST_BYTES: usize = 4 << 10;
/// What a frame's buffer holds without growing.
const EAGER_BYTES: usize = 1 << 20;
/// A buffer that one large frame has grown is not kept.
const KEEP_BYTES_MAX: usize = 256 << 10;

/// A whole request and what it was charged.
pub struct Frame {
    pub bytes: Bytes,
    pub charge: Charge,
}

/// Why there is no further frame.
#[derive(Debug)]
pub enum FrameEnd {
    /// The client has closed, between two frames.
    Closed,
    /// The client has closed inside a frame, or the connection broke.
    Broken(String),
    /// The first four bytes are no length that is taken.
    Length(String),
}

/// Reads frames from one connection.
#[derive(Default)]
pub struct Frames {
    buffer: BytesMut,
}

impl Frames {
    pub fn new() -> Frames {
        Frames { buffer: BytesMut::new() }
    }

    /// The next frame, once the budget has room for it.
    pub async fn next<I: Io>(
        &mut self,
        connection: &Connection<I>,
        (bounds, budget): (&Bounds, &Budget),
        now: impl Fn() -> Instant,
    ) -> Result<Frame, FrameEnd> {
        connection.waits.set((Waits::Request, now()));
        while self.buffer.len() < 4 {
            if !self.buffer.is_empty() {
                connection.waits.set((Waits::Frame, now()));
            }
            self.read(connection, READ_BYTES, self.buffer.is_empty()).await?;
        }
        let length = check_length(self.buffer.get_i32(), bounds)?;
        connection.waits.set((Waits::Nothing, now()));
        let mut charge = budget.charge(length.min(FIRST_BYTES)).await;
        // Progress is counted from here: a trickle is no better than a stall.
        let mut from = None;
        while self.buffer.len() < length {
            while self.buffer.len() >= charge.bytes() {
                // A larger frame's memory grows with what arrives, at most doubling.
                let more = (length - charge.bytes()).min(charge.bytes());
                connection.waits.set((Waits::Nothing, now()));
                charge.grow(more).await;
                from = None;
            }
            if from.is_none_or(|from| self.buffer.len() >= from + READ_BYTES) {
                connection.waits.set((Waits::Frame, now()));
                from = Some(self.buffer.len());
            }
            // Pages that nothing arrives for are not resident, so an ordinary frame gets its
            // memory at once and is never moved.
            let room = charge.bytes().max(length.min(EAGER_BYTES)) - self.buffer.len();
            self.buffer.reserve(room);
            let charged = charge.bytes() - self.buffer.len();
            let missing = length - self.buffer.len();
            self.read(connection, charged.max(READ_BYTES).min(missing), false).await?;
        }
        connection.waits.set((Waits::Nothing, now()));
        // The last read may have brought more than was charged; that waits for nobody.
        charge.take(length.saturating_sub(charge.bytes()));
        let bytes = self.buffer.split_to(length).freeze();
        if self.buffer.is_empty() && self.buffer.capacity() > KEEP_BYTES_MAX {
            self.buffer = BytesMut::new();
        }
        Ok(Frame { bytes, charge })
    }

    /// `is_between`: nothing of a frame is there yet.
    async fn read<I: Io>(
        &mut self,
        connection: &Connection<I>,
        limit: usize,
        is_between: bool,
    ) -> Result<(), FrameEnd> {
        match connection.stream.read(&mut self.buffer, limit).await {
            Ok(0) if is_between => Err(FrameEnd::Closed),
            Ok(0) => Err(FrameEnd::Broken("the client closed inside a request".into())),
            Ok(_) => Ok(()),
            Err(_) if is_between => Err(FrameEnd::Closed),
            Err(error) => Err(FrameEnd::Broken(error.to_string())),
        }
    }
}

fn check_length(length: i32, bounds: &Bounds) -> Result<usize, FrameEnd> {
    let bytes = usize::try_from(length).unwrap_or(usize::MAX);
    if (limits::REQUEST_BYTES_MIN..=bounds.request_bytes_max).contains(&bytes) {
        return Ok(bytes);
    }
    let what = match &length.to_be_bytes() {
        b"GET " | b"POST" | b"HEAD" | b"PUT " | b"OPTI" => {
            "this is HTTP; the port speaks the Kafka protocol".to_string()
        }
        [0x16, 0x03, ..] => "this is TLS; the port speaks the Kafka protocol in plain text \
             (security.protocol=PLAINTEXT)"
            .to_string(),
        _ => format!(
            "a request of {length} bytes; {} to {} are taken (socket.request.max.bytes, and an \
             eighth of core.memory.bytes)",
            limits::REQUEST_BYTES_MIN,
            bounds.request_bytes_max
        ),
    };
    Err(FrameEnd::Length(what))
}
