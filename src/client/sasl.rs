//! SASL: how a connection shows who it is, before anything else but ApiVersions is asked.
//!
//!     SaslHandshake (mechanism) ─► SaslAuthenticate, once (PLAIN) or twice (SCRAM, RFC 5802)
//!
//! Pure: `request` makes the next frame, `answer` takes what came; random bits come in. Both APIs
//! are written by hand, in versions that are not flexible: the tables hold what our broker serves.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{BufMut, Bytes, BytesMut};
use ring::{digest, hmac, pbkdf2};

use crate::wire::error::ErrorCode;
use crate::wire::primitive::{Context, DecodeError, Reader, Wire};

const SASL_HANDSHAKE: (i16, i16) = (17, 1);
const SASL_AUTHENTICATE: (i16, i16) = (36, 0);
const CLIENT_ID: &str = "corelog";
const ORDINARY: Context = Context { version: 0, flexible: false };
/// What a server may ask for: its wish costs this program's time.
const ITERATIONS: std::ops::RangeInclusive<u32> = 4096..=1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mechanism {
    #[value(name = "PLAIN", alias = "plain")]
    Plain,
    #[value(name = "SCRAM-SHA-256", alias = "scram-sha-256")]
    ScramSha256,
    #[value(name = "SCRAM-SHA-512", alias = "scram-sha-512")]
    ScramSha512,
}

impl Mechanism {
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
        }
    }

    fn algorithms(self) -> (pbkdf2::Algorithm, hmac::Algorithm, &'static digest::Algorithm) {
        match self {
            Mechanism::ScramSha512 => {
                (pbkdf2::PBKDF2_HMAC_SHA512, hmac::HMAC_SHA512, &digest::SHA512)
            }
            _ => (pbkdf2::PBKDF2_HMAC_SHA256, hmac::HMAC_SHA256, &digest::SHA256),
        }
    }
}

/// Who the connections are.
#[derive(Clone)]
pub struct Credentials {
    mechanism: Mechanism,
    user: String,
    password: String,
    /// The last salted password, which all connections of a user share: salting takes milliseconds.
    salted: Arc<Mutex<Option<Salted>>>,
}

#[derive(Clone)]
struct Salted {
    salt: Vec<u8>,
    iterations: u32,
    password: Vec<u8>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Credentials { mechanism, user, .. } = self;
        f.debug_struct("Credentials").field("mechanism", mechanism).field("user", user).finish()
    }
}

impl Credentials {
    pub fn new(mechanism: Mechanism, user: String, password: String) -> Credentials {
        Credentials { mechanism, user, password, salted: Arc::default() }
    }

    /// The mechanism's name.
    pub fn mechanism(&self) -> &'static str {
        self.mechanism.name()
    }

    fn salted(&self, salt: &[u8], iterations: u32) -> Vec<u8> {
        let mut last = self.salted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*last
            && known.salt == salt
            && known.iterations == iterations
        {
            return known.password.clone();
        }
        let (algorithm, _, digest) = self.mechanism.algorithms();
        let mut password = vec![0; digest.output_len()];
        let rounds = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
        pbkdf2::derive(algorithm, rounds, salt, self.password.as_bytes(), &mut password);
        *last = Some(Salted { salt: salt.to_vec(), iterations, password: password.clone() });
        password
    }
}

/// What is to be said next.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Handshake,
    First,
    /// With the client's last message, and what proves the server.
    Final {
        message: String,
        server: Vec<u8>,
    },
    Done,
}

/// One connection's authentication.
pub struct Sasl<'c> {
    credentials: &'c Credentials,
    nonce: String,
    stage: Stage,
    correlation: i32,
}

impl Sasl<'_> {
    /// `random` must not be guessable.
    pub fn new(credentials: &Credentials, random: [u8; 24]) -> Sasl<'_> {
        let nonce = BASE64.encode(random);
        Sasl { credentials, nonce, stage: Stage::Handshake, correlation: 0 }
    }

    pub fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// The next request's frame.
    pub fn request(&mut self) -> Bytes {
        let Credentials { mechanism, user, password, .. } = self.credentials;
        self.correlation += 1;
        let mut out = BytesMut::zeroed(4);
        let (key, version) =
            if self.stage == Stage::Handshake { SASL_HANDSHAKE } else { SASL_AUTHENTICATE };
        out.put_i16(key);
        out.put_i16(version);
        out.put_i32(self.correlation);
        Some(CLIENT_ID).encode(&mut out, ORDINARY);
        match &self.stage {
            Stage::Handshake => mechanism.name().encode(&mut out, ORDINARY),
            Stage::First if *mechanism == Mechanism::Plain => {
                format!("\0{user}\0{password}").as_bytes().encode(&mut out, ORDINARY);
            }
            Stage::First => format!("n,,{}", self.bare()).as_bytes().encode(&mut out, ORDINARY),
            Stage::Final { message, .. } => message.as_bytes().encode(&mut out, ORDINARY),
            Stage::Done => {}
        }
        let length = u32::try_from(out.len() - 4).unwrap_or(u32::MAX);
        out[..4].copy_from_slice(&length.to_be_bytes());
        out.freeze()
    }

    /// The answer to the last request: `frame` is what follows its length. An error is the sentence
    /// that the user reads.
    pub fn answer(&mut self, frame: &[u8]) -> Result<(), String> {
        let mut reader = Reader::new(frame);
        let (user, mechanism) = (&self.credentials.user, self.credentials.mechanism);
        let strange = |_: DecodeError| "the answer to the SASL request is malformed".to_string();
        if reader.i32().map_err(strange)? != self.correlation {
            return Err("the answer to the SASL request is malformed".to_string());
        }
        let code = ErrorCode(reader.i16().map_err(strange)?);
        if self.stage == Stage::Handshake {
            let offered = Vec::<&str>::decode(&mut reader, ORDINARY).map_err(strange)?;
            if code.is_error() {
                let (name, offered) = (mechanism.name(), offered.join(", "));
                return Err(format!("{name} is refused ({code}): the broker offers {offered}"));
            }
            self.stage = Stage::First;
            return Ok(());
        }
        let message = reader.string(ORDINARY).map_err(strange)?.unwrap_or_default();
        if code.is_error() {
            return Err(format!("user `{user}` is refused: {code}: {message}"));
        }
        let said = reader.bytes(ORDINARY).map_err(strange)?.unwrap_or_default();
        self.stage = match &self.stage {
            Stage::First if mechanism != Mechanism::Plain => self.prove(said)?,
            Stage::Final { server, .. } if attribute(said, "v=") != Some(BASE64.encode(server)) => {
                return Err("the broker does not know the password either: is it the right one?"
                    .to_string());
            }
            _ => Stage::Done,
        };
        Ok(())
    }

    /// The client's first message without its header.
    fn bare(&self) -> String {
        let user = self.credentials.user.replace('=', "=3D").replace(',', "=2C");
        format!("n={user},r={}", self.nonce)
    }

    /// The proof of the password, from the server's first message.
    fn prove(&self, said: &[u8]) -> Result<Stage, String> {
        let strange = || "the broker's SCRAM message is malformed".to_string();
        let nonce = attribute(said, "r=").ok_or_else(strange)?;
        let salt = attribute(said, "s=").and_then(|salt| BASE64.decode(salt).ok());
        let salt = salt.ok_or_else(strange)?;
        let iterations = attribute(said, "i=").and_then(|count| count.parse::<u32>().ok());
        let iterations = iterations.filter(|count| ITERATIONS.contains(count));
        let iterations = iterations.ok_or_else(strange)?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(strange());
        }
        let (_, algorithm, digest) = self.credentials.mechanism.algorithms();
        let salted = hmac::Key::new(algorithm, &self.credentials.salted(&salt, iterations));
        let unproven = format!("c=biws,r={nonce}");
        let server_first = String::from_utf8_lossy(said);
        let everything = format!("{},{server_first},{unproven}", self.bare());
        let client_key = hmac::sign(&salted, b"Client Key");
        let stored = digest::digest(digest, client_key.as_ref());
        let stored = hmac::Key::new(algorithm, stored.as_ref());
        let signature = hmac::sign(&stored, everything.as_bytes());
        let pairs = client_key.as_ref().iter().zip(signature.as_ref());
        let proof: Vec<u8> = pairs.map(|(key, sign)| key ^ sign).collect();
        let server_key = hmac::Key::new(algorithm, hmac::sign(&salted, b"Server Key").as_ref());
        let server = hmac::sign(&server_key, everything.as_bytes()).as_ref().to_vec();
        Ok(Stage::Final { message: format!("{unproven},p={}", BASE64.encode(proof)), server })
    }
}

/// The value behind `name` in a message of attributes.
fn attribute(message: &[u8], name: &str) -> Option<String> {
    let text = std::str::from_utf8(message).ok()?;
    text.split(',').find_map(|part| part.strip_prefix(name)).map(str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer of SaslAuthenticate.
    fn said(correlation: i32, code: i16, bytes: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        out.put_i32(correlation);
        out.put_i16(code);
        Some("no such user").filter(|_| code != 0).encode(&mut out, ORDINARY);
        bytes.encode(&mut out, ORDINARY);
        out
    }

    fn shaken<'c>(credentials: &'c Credentials, nonce: &str) -> Sasl<'c> {
        let mut sasl = Sasl::new(credentials, [0; 24]);
        sasl.nonce = nonce.to_string();
        let frame = sasl.request();
        assert!(frame.ends_with(credentials.mechanism.name().as_bytes()));
        sasl.answer(b"\0\0\0\x01\0\0\0\0\0\x01\0\x05PLAIN").expect("accepted");
        sasl
    }

    /// The example of RFC 7677.
    #[test]
    fn scram_proves_the_password_and_wants_the_server_to_know_it() {
        let credentials = Credentials::new(Mechanism::ScramSha256, "user".into(), "pencil".into());
        let mut sasl = shaken(&credentials, "rOprNGfwEbeRWgbNEkqO");
        assert!(sasl.request().ends_with(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"));
        let first = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                      s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        sasl.answer(&said(2, 0, first)).expect("understood");
        let last = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                     p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        assert!(sasl.request().ends_with(last));
        let mut other = Sasl { stage: sasl.stage.clone(), ..shaken(&credentials, "x") };
        other.correlation = 3;
        assert!(other.answer(&said(3, 0, b"v=AAAA")).is_err(), "an impostor");
        sasl.answer(&said(3, 0, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")).expect("true");
        assert!(sasl.is_done());
    }

    #[test]
    fn what_a_server_may_not_say_is_refused() {
        let credentials = Credentials::new(Mechanism::ScramSha512, "a,b".into(), "x".into());
        for wrong in [
            &b"r=other,s=AAAA,i=4096"[..],
            b"r=mine,s=AAAA,i=4096",
            b"r=mine+,s=!,i=4096",
            b"r=mine+,s=AAAA,i=5000000",
            b"r=mine+,s=AAAA",
            b"\xff",
        ] {
            let mut sasl = shaken(&credentials, "mine");
            assert!(sasl.request().ends_with(b"n,,n=a=2Cb,r=mine"));
            assert!(sasl.answer(&said(2, 0, wrong)).is_err(), "{}", wrong.escape_ascii());
        }
    }

    #[test]
    fn plain_says_user_and_password_and_refusals_are_sentences() {
        let credentials = Credentials::new(Mechanism::Plain, "ann".into(), "secret".into());
        assert!(!format!("{credentials:?}").contains("secret"));
        let mut sasl = shaken(&credentials, "");
        assert!(sasl.request().ends_with(b"\0ann\0secret"));
        let refused = sasl.answer(&said(2, 58, b"")).expect_err("refused");
        assert_eq!(refused, "user `ann` is refused: SASL_AUTHENTICATION_FAILED: no such user");
        let mut sasl = Sasl::new(&credentials, [0; 24]);
        let _ = sasl.request();
        let refused = sasl.answer(b"\0\0\0\x01\0\x21\0\0\0\x01\0\x06GSSAPI").expect_err("refused");
        assert!(refused.ends_with("the broker offers GSSAPI"), "{refused}");
        assert!(Sasl::new(&credentials, [0; 24]).answer(b"\0").is_err());
    }
}
