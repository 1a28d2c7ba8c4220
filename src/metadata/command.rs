//! Metadata commands and their journal form: one version byte, then an `rkyv` archive.
//!
//!     | version 1 | rkyv archive of a list of commands |
//!
//! A list is applied as a whole: a request that creates a thousand topics is one journal entry.
//!
//! Invariants
//!   C1  A struct of a published version is never changed; a new version is a new struct beside it.
//!   C2  Decoding validates every offset inside the archive before it is followed.

use rkyv::rancor::Error;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};

use std::fmt;

const VERSION: u8 = 1;

/// One change of the metadata, decided and not to be refused any more.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The data directory's birth: names the cluster.
    ClusterCreated { cluster_id: String },
    /// A new topic; `number` is the image's next one, or one above it.
    TopicCreated {
        name: String,
        id: [u8; 16],
        number: u32,
        partitions: u32,
        configs: Vec<(String, String)>,
    },
    /// The topic and all its records are gone.
    TopicDeleted { number: u32 },
    /// The topic has `partitions` partitions from now on.
    PartitionsAdded { number: u32, partitions: u32 },
    /// Dynamic settings of a topic.
    TopicConfigChanged { number: u32, changes: Vec<ConfigChange> },
    /// Dynamic settings of the broker.
    BrokerConfigChanged { changes: Vec<ConfigChange> },
    /// Producer ids below `next` may have been given out.
    ProducerIdsReserved { next: i64 },
    /// The node started: it leads its partitions in `epoch` from here on.
    LeaderEpochOpened { epoch: i32 },
    /// Topic numbers below `next` may have been given out.
    TopicNumbersGiven { next: u32 },
}

/// A setting set, or with `None` returned to its default.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ConfigChange {
    pub name: String,
    pub value: Option<String>,
}

/// Why a journal entry is not a list of commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandError {
    Empty,
    NewerVersion(u8),
    Malformed(String),
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CommandError::Empty => write!(f, "a metadata entry is empty"),
            CommandError::NewerVersion(version) => write!(
                f,
                "a metadata entry has version {version}, this program knows up to {VERSION}: \
                 start the newer Corelog that wrote it"
            ),
            CommandError::Malformed(why) => write!(f, "a metadata entry is malformed: {why}"),
        }
    }
}

impl std::error::Error for CommandError {}

/// The journal form of `commands`.
pub fn encode(commands: &[Command]) -> Result<Vec<u8>, CommandError> {
    let commands = commands.to_vec();
    let archive = rkyv::to_bytes::<Error>(&commands)
        .map_err(|error| CommandError::Malformed(error.to_string()))?;
    let mut bytes = Vec::with_capacity(archive.len() + 1);
    bytes.push(VERSION);
    bytes.extend_from_slice(&archive);
    Ok(bytes)
}

/// The commands in a journal entry's body.
pub fn decode(body: &[u8]) -> Result<Vec<Command>, CommandError> {
    let (version, archive) = body.split_first().ok_or(CommandError::Empty)?;
    if *version != VERSION {
        return Err(CommandError::NewerVersion(*version));
    }
    // The archive's alignment inside a journal entry is arbitrary.
    let mut aligned = AlignedVec::<16>::with_capacity(archive.len());
    aligned.extend_from_slice(archive);
    rkyv::from_bytes::<Vec<Command>, Error>(&aligned)
        .map_err(|error| CommandError::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_command() -> Vec<Command> {
        let change = ConfigChange { name: "retention.ms".into(), value: Some("1".into()) };
        let back = ConfigChange { name: "retention.ms".into(), value: None };
        vec![
            Command::ClusterCreated { cluster_id: "c".into() },
            Command::TopicCreated {
                name: "orders".into(),
                id: [7; 16],
                number: 3,
                partitions: 12,
                configs: vec![("cleanup.policy".into(), "compact".into())],
            },
            Command::TopicDeleted { number: 3 },
            Command::PartitionsAdded { number: 3, partitions: 13 },
            Command::TopicConfigChanged { number: 3, changes: vec![change.clone(), back] },
            Command::BrokerConfigChanged { changes: vec![change] },
            Command::ProducerIdsReserved { next: 1000 },
            Command::LeaderEpochOpened { epoch: 4 },
        ]
    }

    #[test]
    fn commands_survive_the_journal() {
        let body = encode(&every_command()).expect("encodable");
        assert_eq!(decode(&body), Ok(every_command()));
    }

    /// Version 1 is on users' disks: these bytes must decode for ever.
    #[test]
    fn the_bytes_of_version_one_are_frozen() {
        let body = encode(&every_command()).expect("encodable");
        assert_eq!((body.len(), crc32fast::hash(&body)), (GOLDEN_LENGTH, GOLDEN_CRC));
    }

    const GOLDEN_LENGTH: usize = 521;
    const GOLDEN_CRC: u32 = 1_272_204_140;

    #[test]
    fn damaged_entries_are_refused_or_decode_without_panic() {
        let body = encode(&every_command()).expect("encodable");
        assert_eq!(decode(&[]), Err(CommandError::Empty));
        assert_eq!(decode(&[9]), Err(CommandError::NewerVersion(9)));
        for length in 1..body.len() {
            let _ = decode(&body[..length]);
        }
        for position in 0..body.len() {
            let mut damaged = body.clone();
            damaged[position] ^= 0x55;
            let _ = decode(&damaged);
        }
    }
}
