//! Why a journal cannot be opened, in sentences that name the file and the remedy.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::base::ids::PartitionId;

/// Why a journal cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    Io {
        what: String,
        error: io::Error,
    },
    /// A group that was durable is damaged.
    Damaged(Damage),
    /// A file that must be there is missing.
    Missing {
        file: PathBuf,
    },
    /// The file belongs to another journal.
    Foreign {
        file: PathBuf,
    },
    NewerVersion {
        file: PathBuf,
        version: u16,
    },
    /// A sound group holds an entry of a kind that this program does not know.
    NewerKind {
        file: PathBuf,
        position: u64,
        kind: u8,
    },
}

/// What is damaged, as exactly as the bytes tell.
#[derive(Debug)]
pub struct Damage {
    pub file: PathBuf,
    pub position: u64,
    pub flaw: String,
    /// Partitions with entries in the group, if its directory is readable.
    pub partitions: Vec<PartitionId>,
}

impl OpenError {
    /// What is wrong and where, without what to do, if it is something that was there.
    pub fn place(&self) -> Option<String> {
        match self {
            OpenError::Damaged(Damage { file, position, flaw, .. }) => {
                Some(format!("{} is damaged at byte {position}: {flaw}", file.display()))
            }
            OpenError::Missing { file } => Some(format!("{} is missing", file.display())),
            _ => None,
        }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Io { what, error } if error.kind() == io::ErrorKind::PermissionDenied => {
                write!(
                    f,
                    "cannot {what}: {error}; give the user that runs Corelog read and write \
                     access to it"
                )
            }
            OpenError::Io { what, error } => write!(f, "cannot {what}: {error}"),
            OpenError::Damaged(damage) => {
                let Damage { file, position, flaw, partitions } = damage;
                write!(f, "{} is damaged at byte {position}: {flaw}", file.display())?;
                for partition in partitions {
                    write!(f, "; it holds records of {partition}")?;
                }
                write!(
                    f,
                    ". Acknowledged records are in it or behind it: restore the file from a copy, \
                     or see what `corelog repair --dry-run` tells of what is lost; `corelog \
                     inspect {}` shows what is readable",
                    file.display()
                )
            }
            OpenError::Missing { file } => write!(
                f,
                "{} is missing, and acknowledged records may have been in it: restore it from a \
                 copy, or see what `corelog repair --dry-run` tells of what is lost",
                file.display()
            ),
            OpenError::Foreign { file } => write!(
                f,
                "{} belongs to another journal than the files before it: it was copied here from \
                 another data directory; restore the right one",
                file.display()
            ),
            OpenError::NewerKind { file, position, kind } => write!(
                f,
                "{} holds at byte {position} an entry of kind {kind}, which a newer Corelog \
                 wrote: start that one",
                file.display()
            ),
            OpenError::NewerVersion { file, version } => write!(
                f,
                "{} has format {version}, which a newer Corelog wrote: start that one",
                file.display()
            ),
        }
    }
}

impl std::error::Error for OpenError {}
