//! Why a command ends without success, as the one sentence that the user reads.

use std::fmt;
use std::io;

/// The sentence, and what it means for the exit code and for another attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The command line or a setting is wrong; nothing was tried. Exit code 2.
    Usage(String),
    /// The broker or the machine refused. Exit code 1.
    Failed(String),
    /// The connection was not made or broke: another attempt may succeed. Exit code 1.
    Lost(String),
    /// Whoever reads our output went away, as `head` does: no failure at all. Exit code 0.
    OutputClosed,
}

impl Failure {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::OutputClosed => 0,
            Failure::Failed(_) | Failure::Lost(_) => 1,
            Failure::Usage(_) => 2,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Usage(text) | Failure::Failed(text) | Failure::Lost(text) => f.write_str(text),
            Failure::OutputClosed => f.write_str("the output was closed"),
        }
    }
}

/// Only writing to the output converts by itself; errors of network and files say what they met.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::Failed(format!("cannot write the output: {}", in_words(&error))),
        }
    }
}

/// An I/O error without its number.
pub fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_string(),
        io::ErrorKind::ConnectionReset => "the connection was reset".to_string(),
        io::ErrorKind::UnexpectedEof => "the connection was closed".to_string(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "no answer in time".to_string(),
        io::ErrorKind::NotFound => "there is no such file".to_string(),
        io::ErrorKind::PermissionDenied => "permission denied".to_string(),
        _ => error.to_string(),
    }
}
