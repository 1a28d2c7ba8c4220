//! TCP on the second ring: readiness from the ring, bytes by plain non-blocking calls.
//!
//! An idle connection holds one poll entry and no buffer. `recv` and `sendmsg` copy straight
//! between the socket and the caller's memory.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use bytes::{BufMut, Bytes, BytesMut};
use io_uring::opcode;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::RingIo;
use super::driver::{Keep, fd, own};
use crate::io::{Io, Listener, Stream};

/// Connections that wait for `accept`.
const BACKLOG: i32 = 4096;
/// The least room a read is given, so that small requests need one call.
const READ_BYTES_MIN: usize = 16 << 10;
/// Pieces that go out in one call.
const PIECES_MAX: usize = 64;
/// Reads or sends in a row that succeed at once; then one goes through the ring, so that a
/// connection whose data is always ready gives the core's other tasks their turn.
const BURST_MAX: u32 = 16;
/// What goes out in one call. On loopback a call does the receiver's part too, and the answer to a
/// reader of several backlogs, of a megabyte, kept the core from commits that were done; other
/// tasks have their turn between two calls.
const SEND_BYTES_MAX: usize = 128 << 10;

/// Accepts connections; one per core on the same address.
pub struct RingListener {
    io: RingIo,
    descriptor: Rc<OwnedFd>,
    address: SocketAddr,
    closed: Cell<bool>,
}

/// A connected socket.
pub struct RingStream {
    io: RingIo,
    descriptor: Rc<OwnedFd>,
    peer: SocketAddr,
    /// The last read left bytes behind, so the next one need not wait.
    readable: Cell<bool>,
    /// Reads in a row that did not wait.
    burst: Cell<u32>,
}

pub fn listen(io: &RingIo, address: SocketAddr) -> io::Result<RingListener> {
    let socket = new_socket(address)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let address = socket.local_addr()?.as_socket().unwrap_or(address);
    let descriptor = Rc::new(OwnedFd::from(socket));
    Ok(RingListener { io: io.clone(), descriptor, address, closed: Cell::new(false) })
}

pub async fn connect(io: &RingIo, address: SocketAddr) -> io::Result<RingStream> {
    let socket = new_socket(address)?;
    socket.set_tcp_nodelay(true)?;
    let descriptor = Rc::new(OwnedFd::from(socket));
    let target = Box::new(socket2::SockAddr::from(address));
    let entry = opcode::Connect::new(fd(&descriptor), target.as_ptr().cast(), target.len()).build();
    let keep =
        Keep { descriptor: Some(descriptor.clone()), address: Some(target), ..Keep::default() };
    // SAFETY: the address is boxed, owned by `keep`.
    unsafe { io.driver().submit(entry, keep) }.await.0?;
    let own = SockRef::from(&descriptor).local_addr()?.as_socket();
    // Linux connects a socket to itself if the port it picked is the one asked for.
    if own == Some(address) {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(RingStream::new(io, descriptor, address))
}

/// Blocking mode, so that the ring's connect and accept wait; data calls say `MSG_DONTWAIT`.
fn new_socket(address: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))
}

impl Listener for RingListener {
    type Stream = RingStream;

    fn address(&self) -> SocketAddr {
        self.address
    }

    async fn accept(&self) -> io::Result<RingStream> {
        loop {
            let descriptor = match self.accept_one().await {
                // The client was gone before its turn: nothing is wrong with this end.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                outcome => outcome?,
            };
            let Ok(peer) = SockRef::from(&descriptor).peer_addr() else { continue };
            let peer = peer.as_socket().ok_or(io::ErrorKind::Unsupported)?;
            return Ok(RingStream::new(&self.io, Rc::new(descriptor), peer));
        }
    }

    fn close(&self) {
        self.closed.set(true);
        // Wakes the accept in flight; an error means that there is nothing to wake.
        drop(SockRef::from(&*self.descriptor).shutdown(std::net::Shutdown::Read));
    }
}

impl RingListener {
    async fn accept_one(&self) -> io::Result<OwnedFd> {
        let null = std::ptr::null_mut();
        let entry = opcode::Accept::new(fd(&self.descriptor), null, null.cast())
            .flags(libc::SOCK_CLOEXEC)
            .build();
        let keep = Keep {
            descriptor: Some(self.descriptor.clone()),
            yields_descriptor: true,
            ..Keep::default()
        };
        // SAFETY: both pointers are null, which asks for no address.
        let (result, _) = unsafe { self.io.driver().submit(entry, keep) }.await;
        if self.closed.get() {
            drop(result.map(|descriptor| own(descriptor.cast_signed())));
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok(own(result?.cast_signed()))
    }
}

impl RingStream {
    fn new(io: &RingIo, descriptor: Rc<OwnedFd>, peer: SocketAddr) -> RingStream {
        let (readable, burst) = (Cell::new(false), Cell::new(0));
        RingStream { io: io.clone(), descriptor, peer, readable, burst }
    }

    async fn ready(&self, events: libc::c_short) -> io::Result<()> {
        let mask = u32::from(events.cast_unsigned());
        let entry = opcode::PollAdd::new(fd(&self.descriptor), mask).build();
        let keep = Keep { descriptor: Some(self.descriptor.clone()), ..Keep::default() };
        // SAFETY: the entry holds no pointers.
        unsafe { self.io.driver().submit(entry, keep) }.await.0?;
        Ok(())
    }

    /// One `recv` into the room at the end of `into`; `None` when it would block.
    fn receive(&self, into: &mut BytesMut, limit: usize) -> io::Result<Option<usize>> {
        into.reserve(limit.min(READ_BYTES_MIN));
        let room = into.chunk_mut();
        let asked = room.len().min(limit);
        // SAFETY: `recv` writes at most `asked` bytes into `room`, which has that many.
        let received = unsafe {
            libc::recv(
                self.descriptor.as_raw_fd(),
                room.as_mut_ptr().cast(),
                asked,
                libc::MSG_DONTWAIT,
            )
        };
        match usize::try_from(received) {
            Ok(received) => {
                // SAFETY: the kernel has initialised that many bytes.
                unsafe { into.advance_mut(received) };
                self.readable.set(received == asked);
                Ok(Some(received))
            }
            Err(_) => would_block().map(|()| None),
        }
    }

    /// One `sendmsg` of the first pieces; 0 when it would block.
    fn send(&self, pieces: &[Bytes], skip: usize) -> io::Result<usize> {
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut vector = [empty; PIECES_MAX];
        let (mut count, mut room) = (0, SEND_BYTES_MAX);
        for (entry, piece) in vector.iter_mut().zip(pieces) {
            let piece = if count == 0 { &piece[skip..] } else { &piece[..] };
            entry.iov_base = piece.as_ptr().cast_mut().cast();
            entry.iov_len = piece.len().min(room);
            count += 1;
            room -= entry.iov_len;
            if room == 0 {
                break;
            }
        }
        // SAFETY: a zeroed header is a valid empty one.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = vector.as_mut_ptr();
        message.msg_iovlen = count;
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the vector and all pieces live across the call, which only reads them.
        let sent = unsafe { libc::sendmsg(self.descriptor.as_raw_fd(), &message, flags) };
        match usize::try_from(sent) {
            Ok(sent) => Ok(sent),
            Err(_) => would_block().map(|()| 0),
        }
    }
}

#[cfg(test)]
impl RingStream {
    /// Ends the writing half, as a client does that has sent all its requests.
    pub fn shutdown_write(&self) {
        drop(SockRef::from(&*self.descriptor).shutdown(std::net::Shutdown::Write));
    }
}

/// Ok if the last call failed only because it would have blocked.
fn would_block() -> io::Result<()> {
    let error = io::Error::last_os_error();
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(()),
        _ => Err(error),
    }
}

impl Stream for RingStream {
    fn peer(&self) -> SocketAddr {
        self.peer
    }

    async fn read(&self, into: &mut BytesMut, limit: usize) -> io::Result<usize> {
        loop {
            if !self.readable.get() || self.burst.get() >= BURST_MAX {
                self.ready(libc::POLLIN | libc::POLLRDHUP).await?;
                self.burst.set(0);
            }
            self.burst.set(self.burst.get() + 1);
            if let Some(received) = self.receive(into, limit)? {
                return Ok(received);
            }
            self.readable.set(false);
        }
    }

    async fn write_out(&self, pieces: &mut Vec<Bytes>) -> io::Result<()> {
        pieces.retain(|piece| !piece.is_empty());
        let mut first = 0;
        let mut skip = 0;
        let mut burst = 0;
        while let Some(left) = pieces.get(first..).filter(|left| !left.is_empty()) {
            let sent = self.send(left, skip)?;
            burst += 1;
            if sent == 0 || burst >= BURST_MAX {
                self.ready(libc::POLLOUT).await?;
                burst = 0;
            } else if sent >= SEND_BYTES_MAX {
                self.io.cede().await;
            }
            // Walks past the pieces that are wholly out.
            skip += sent;
            while let Some(piece) = pieces.get(first).filter(|piece| piece.len() <= skip) {
                skip -= piece.len();
                first += 1;
            }
        }
        pieces.clear();
        Ok(())
    }

    fn shutdown(&self) {
        // An error means that the peer was faster.
        drop(SockRef::from(&*self.descriptor).shutdown(std::net::Shutdown::Both));
    }

    fn shutdown_read(&self) {
        drop(SockRef::from(&*self.descriptor).shutdown(std::net::Shutdown::Read));
    }
}
