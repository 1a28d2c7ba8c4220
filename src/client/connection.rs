//! A blocking connection to one broker: versions negotiated at the start, one request at a time,
//! every wait bounded.
//!
//! Invariants
//!   N1  A request is sent in a version that both sides know.
//!   N2  An answer is at most `ANSWER_BYTES_MAX` long, and memory grows with what arrived.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use bytes::BytesMut;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use super::failure::{Failure, in_words};
use super::sasl::{Credentials, Sasl};
use super::security::{Security, nonce};
use crate::wire::api::{ApiKey, api_versions};
use crate::wire::error::ErrorCode;
use crate::wire::header::{RequestHeader, decode_body, read_response_header};
use crate::wire::primitive::{Reader, Wire};

const CONNECT_TIME: Duration = Duration::from_secs(5);
/// Longer than any request asks a broker to wait.
const ANSWER_TIME: Duration = Duration::from_secs(45);
const ANSWER_BYTES_MAX: u32 = 512 << 20;
const CLIENT_ID: &str = "corelog";
/// Stands for "our highest version".
pub const NEWEST: i16 = i16::MAX;

/// How connections are made: without security unless told otherwise.
#[derive(Clone, Debug)]
pub struct Manner {
    /// No answer may take longer.
    pub answer_time: Duration,
    pub security: Security,
}

impl Default for Manner {
    fn default() -> Manner {
        Manner { answer_time: ANSWER_TIME, security: Security::default() }
    }
}

/// An open connection.
pub struct Connection {
    address: String,
    stream: Socket,
    correlation: i32,
    /// What the broker serves: lowest and highest version by API key.
    served: BTreeMap<i16, (i16, i16)>,
}

/// An answer's frame, to be decoded in place.
pub struct Answer {
    api: ApiKey,
    version: i16,
    address: String,
    frame: Vec<u8>,
    body_at: usize,
}

impl Answer {
    /// The message inside.
    pub fn decode<'a, T: Wire<'a>>(&'a self) -> Result<T, Failure> {
        let body = self.frame.get(self.body_at..).unwrap_or_default();
        decode_body(body, self.api, self.version).map_err(|error| {
            let (address, api) = (&self.address, self.api.name());
            Failure::Failed(format!("{address} answered {api} with a malformed message: {error}"))
        })
    }

    /// The version that request and answer have.
    pub fn version(&self) -> i16 {
        self.version
    }
}

impl Connection {
    /// Connects to `HOST:PORT`, learns the versions that are served there, and shows who we are.
    pub fn open(address: &str, manner: &Manner) -> Result<Connection, Failure> {
        let answer_time = manner.answer_time;
        let stream = dial(address)?;
        let prepared = stream
            .set_nodelay(true)
            .and_then(|()| stream.set_read_timeout(Some(answer_time)))
            .and_then(|()| stream.set_write_timeout(Some(answer_time)));
        prepared.map_err(|error| lost(address, &in_words(&error)))?;
        let stream = Socket::new(stream, address, &manner.security)?;
        let address = address.to_string();
        let mut connection =
            Connection { address, stream, correlation: 0, served: BTreeMap::new() };
        connection.negotiate()?;
        if let Some(credentials) = &manner.security.credentials {
            connection.authenticate(credentials)?;
        }
        Ok(connection)
    }

    /// Sends a request in the highest common version up to `highest` and waits for its answer.
    pub fn call<'q>(
        &mut self,
        api: ApiKey,
        highest: i16,
        request: &impl Wire<'q>,
    ) -> Result<Answer, Failure> {
        let version = self.version(api, highest)?;
        self.send(api, version, request)?;
        self.receive(api, version)
    }

    /// Sends a request that has no answer (Produce with acks 0).
    pub fn tell<'q>(
        &mut self,
        api: ApiKey,
        highest: i16,
        request: &impl Wire<'q>,
    ) -> Result<(), Failure> {
        let version = self.version(api, highest)?;
        self.send(api, version, request)
    }

    /// The highest version up to `highest` that both sides know.
    pub fn version(&self, api: ApiKey, highest: i16) -> Result<i16, Failure> {
        let ours = api.versions();
        let served = self.served.get(&(api as i16)).copied();
        let common = served.and_then(|(low, high)| {
            let version = high.min(*ours.end()).min(highest);
            (version >= low.max(*ours.start())).then_some(version)
        });
        common.ok_or_else(|| {
            let Connection { address, .. } = self;
            let theirs = served.map_or("not at all".to_string(), |(low, high)| {
                format!("in versions {low} to {high}")
            });
            Failure::Failed(format!(
                "{address} serves {} {theirs}, this program needs {} to {}: use a program of the \
                 broker's age",
                api.name(),
                ours.start(),
                ours.end(),
            ))
        })
    }

    /// Asks in our newest version; a broker that does not know it answers in version 0 and says
    /// which ones it knows (KIP-511).
    fn negotiate(&mut self) -> Result<(), Failure> {
        let request = api_versions::Request {
            client_software_name: CLIENT_ID,
            client_software_version: env!("CARGO_PKG_VERSION"),
        };
        let newest = *ApiKey::ApiVersions.versions().end();
        self.send(ApiKey::ApiVersions, newest, &request)?;
        let mut answer = self.receive(ApiKey::ApiVersions, newest)?;
        let code = answer.frame.get(answer.body_at..).and_then(<[u8]>::first_chunk);
        if code.map(|code| ErrorCode(i16::from_be_bytes(*code)))
            == Some(ErrorCode::UNSUPPORTED_VERSION)
        {
            self.send(ApiKey::ApiVersions, 0, &request)?;
            answer = self.receive(ApiKey::ApiVersions, 0)?;
        }
        let versions: api_versions::Response<'_> = answer.decode()?;
        let code = ErrorCode(versions.error_code);
        if code.is_error() {
            return Err(Failure::Failed(format!(
                "{} answered ApiVersions with {code}",
                self.address
            )));
        }
        let served = versions.api_keys.iter();
        self.served = served.map(|api| (api.api_key, (api.min_version, api.max_version))).collect();
        Ok(())
    }

    fn authenticate(&mut self, credentials: &Credentials) -> Result<(), Failure> {
        let mut sasl = Sasl::new(credentials, nonce());
        while !sasl.is_done() {
            let request = sasl.request();
            let sent = self.stream.write_all(&request).and_then(|()| self.stream.flush());
            sent.map_err(|error| lost(&self.address, &in_words(&error)))?;
            let frame = self.frame()?;
            let refused = |why| Failure::Failed(format!("{}: {why}", self.address));
            sasl.answer(&frame).map_err(refused)?;
        }
        Ok(())
    }

    fn send<'q>(
        &mut self,
        api: ApiKey,
        version: i16,
        request: &impl Wire<'q>,
    ) -> Result<(), Failure> {
        self.correlation = self.correlation.wrapping_add(1);
        let correlation = self.correlation;
        let mut frame = BytesMut::zeroed(4);
        RequestHeader { api, version, correlation, client_id: Some(CLIENT_ID) }.encode(&mut frame);
        request.encode(&mut frame, api.context(version));
        let length = u32::try_from(frame.len() - 4)
            .map_err(|_| Failure::Failed("a request is larger than 4 GiB".to_string()))?;
        frame[..4].copy_from_slice(&length.to_be_bytes());
        let sent = self.stream.write_all(&frame).and_then(|()| self.stream.flush());
        sent.map_err(|error| lost(&self.address, &in_words(&error)))
    }

    fn receive(&mut self, api: ApiKey, version: i16) -> Result<Answer, Failure> {
        let address = self.address.clone();
        let frame = self.frame()?;
        let mut reader = Reader::new(&frame);
        let correlation = read_response_header(&mut reader, api, version);
        if correlation != Ok(self.correlation) {
            return Err(strange(&address));
        }
        let body_at = frame.len() - reader.remaining();
        Ok(Answer { api, version, address, frame, body_at })
    }

    /// What follows the length of the next frame.
    fn frame(&mut self) -> Result<Vec<u8>, Failure> {
        let address = self.address.clone();
        let broken = |error: std::io::Error| lost(&address, &in_words(&error));
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).map_err(broken)?;
        let length = u32::from_be_bytes(length);
        if length > ANSWER_BYTES_MAX {
            return Err(strange(&address));
        }
        let mut frame = Vec::new();
        let read = (&mut self.stream).take(u64::from(length)).read_to_end(&mut frame);
        if read.map_err(broken)? < usize::try_from(length).unwrap_or(usize::MAX) {
            return Err(lost(&address, "the connection was closed inside an answer"));
        }
        Ok(frame)
    }
}

/// The socket, with TLS on top or without.
enum Socket {
    Plain(TcpStream),
    Secured(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Socket {
    fn new(stream: TcpStream, address: &str, security: &Security) -> Result<Socket, Failure> {
        let Some(config) = &security.tls else { return Ok(Socket::Plain(stream)) };
        let failed = |why: String| Failure::Failed(format!("TLS with {address}: {why}"));
        let name = ServerName::try_from(host(address).to_string());
        let name = name.map_err(|error| failed(error.to_string()))?;
        let tls = ClientConnection::new(config.clone(), name);
        let tls = tls.map_err(|error| failed(error.to_string()))?;
        Ok(Socket::Secured(Box::new(StreamOwned::new(tls, stream))))
    }
}

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Socket::Plain(stream) => stream.read(into),
            Socket::Secured(stream) => stream.read(into),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Socket::Plain(stream) => stream.write(bytes),
            Socket::Secured(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Socket::Plain(stream) => stream.flush(),
            Socket::Secured(stream) => stream.flush(),
        }
    }
}

/// The host of `HOST:PORT`, as a certificate names it.
pub fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

fn dial(address: &str) -> Result<TcpStream, Failure> {
    let places = address.to_socket_addrs().map_err(|error| {
        Failure::Lost(format!("cannot find the address of {address}: {}", in_words(&error)))
    })?;
    let mut why = "the name has no address".to_string();
    for place in places {
        match TcpStream::connect_timeout(&place, CONNECT_TIME) {
            // Linux connects a socket to itself if the port it picked is the one asked for.
            Ok(stream) if stream.local_addr().is_ok_and(|own| own == place) => {
                why = in_words(&std::io::ErrorKind::ConnectionRefused.into());
            }
            Ok(stream) => return Ok(stream),
            Err(error) => why = in_words(&error),
        }
    }
    Err(Failure::Lost(format!("cannot reach {address}: {why}; is `corelog serve` running there?")))
}

fn lost(address: &str, why: &str) -> Failure {
    Failure::Lost(format!("the connection to {address} broke: {why}"))
}

fn strange(address: &str) -> Failure {
    Failure::Failed(format!("{address} does not speak the Kafka protocol: is the port right?"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// A listener that answers the first bytes it gets with `answer` and closes.
    fn listener(answer: &'static [u8]) -> (String, thread::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = [0; 512];
            let length = stream.read(&mut request).expect("a request");
            assert_eq!(request[4..6], [0, 18], "ApiVersions comes first, {length} bytes");
            stream.write_all(answer).expect("a reader");
        });
        (address, server)
    }

    fn says(answer: &'static [u8]) -> String {
        let (address, server) = listener(answer);
        let failure = Connection::open(&address, &Manner::default()).err().expect("refused");
        server.join().expect("no panic");
        failure.to_string().replace(&address, "ADDRESS")
    }

    #[test]
    fn a_host_is_named_without_port_and_brackets() {
        assert_eq!(
            ["a.example:1", "[::1]:9092", "10.0.0.1:2"].map(host),
            ["a.example", "::1", "10.0.0.1"]
        );
    }

    #[test]
    fn a_port_without_listener_is_told_in_a_sentence() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        drop(listener);
        let failure = Connection::open(&address, &Manner::default()).err().expect("nobody listens");
        assert_eq!(
            failure,
            Failure::Lost(format!(
                "cannot reach {address}: connection refused; is `corelog serve` running there?"
            ))
        );
    }

    #[test]
    fn other_protocols_and_broken_answers_are_told_apart() {
        let wrong = "ADDRESS does not speak the Kafka protocol: is the port right?";
        assert_eq!(says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), wrong);
        assert_eq!(says(&[0, 0, 0, 4, 9, 9, 9, 9]), wrong);
        let closed = "the connection to ADDRESS broke: the connection was closed";
        assert_eq!(says(b""), closed);
        assert_eq!(says(&[0, 0, 0, 9, 0]), format!("{closed} inside an answer"));
        let malformed = says(&[0, 0, 0, 6, 0, 0, 0, 1, 0, 0]);
        assert!(malformed.contains("answered ApiVersions with a malformed message"), "{malformed}");
        let refused = says(&[0, 0, 0, 12, 0, 0, 0, 1, 0, 42, 1, 0, 0, 0, 0, 0]);
        assert_eq!(refused, "ADDRESS answered ApiVersions with INVALID_REQUEST");
    }
}
