//! The data directory: who owns it, which format it has, how many shards it was made with.
//!
//!     DIR/lock            held by the running node
//!     DIR/node.toml       format and shards
//!     DIR/core-N/         the journal of core N

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::BootFailed;

/// The directory's format that this program makes and reads.
const FORMAT: u32 = 1;

/// A data directory that this process owns.
pub struct Directory {
    path: PathBuf,
    shards: u16,
    /// Released with the process.
    _lock: File,
}

#[derive(Serialize, Deserialize)]
struct Node {
    format: u32,
    shards: u16,
}

impl Directory {
    /// Takes the directory, making it if it is not there. `shards` holds for a new one; an older
    /// one keeps its own number.
    pub fn take(path: &Path, shards: u16) -> Result<Directory, BootFailed> {
        let failed = |what: &str, error: io::Error| {
            refused_by_system(&format!("{what} the data directory"), path, &error)
        };
        std::fs::create_dir_all(path).map_err(|error| failed("create", error))?;
        let path = path.canonicalize().map_err(|error| failed("find", error))?;
        let lock = lock(&path)?;
        let file = path.join("node.toml");
        let shards = match std::fs::read_to_string(&file) {
            Ok(text) => read_node(&text, &file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                check_unused(&path)?;
                write_node(&path, shards).map_err(|error| failed("write to", error))?;
                shards
            }
            Err(error) => return Err(failed("read", error)),
        };
        Ok(Directory { path, shards, _lock: lock })
    }

    /// Takes the directory of a stopped node.
    pub fn take_existing(path: &Path) -> Result<Directory, BootFailed> {
        let failed = |error| refused_by_system("read the data directory", path, &error);
        let path = path.canonicalize().map_err(failed)?;
        let file = path.join("node.toml");
        let text = std::fs::read_to_string(&file)
            .map_err(|error| refused_by_system("read", &file, &error))?;
        let lock = lock(&path)?;
        let shards = read_node(&text, &file)?;
        Ok(Directory { path, shards, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of shards that it was made with.
    pub fn shards(&self) -> u16 {
        self.shards
    }

    /// The folder of one core.
    pub fn core(&self, core: u16) -> PathBuf {
        self.path.join(format!("core-{core}"))
    }
}

/// The system refused to do something with a path; the remedy where it is known.
pub fn refused_by_system(what: &str, path: &Path, error: &io::Error) -> BootFailed {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; give the user that runs Corelog read and write access to it"
        }
        io::ErrorKind::ReadOnlyFilesystem => "; mount it for writing or choose another --data-dir",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free some space",
        _ => "",
    };
    BootFailed(format!("cannot {what} {}: {error}{remedy}", path.display()))
}

fn lock(path: &Path) -> Result<File, BootFailed> {
    let file = path.join("lock");
    let failed = |error: io::Error| refused_by_system("lock the data directory", path, &error);
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&file);
    let lock = opened.map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(BootFailed(format!(
            "the data directory {} belongs to a running Corelog: stop it or choose another \
             --data-dir",
            path.display()
        ))),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn read_node(text: &str, file: &Path) -> Result<u16, BootFailed> {
    let node: Node = toml::from_str(text).map_err(|error| {
        BootFailed(format!("{} is damaged ({}): restore it", file.display(), error.message()))
    })?;
    if node.format > FORMAT {
        return Err(BootFailed(format!(
            "{} has format {}, this program knows up to {FORMAT}: start the newer Corelog that \
             wrote it",
            file.display(),
            node.format
        )));
    }
    if node.shards == 0 {
        return Err(BootFailed(format!("{} names 0 shards: restore it", file.display())));
    }
    Ok(node.shards)
}

/// A directory without `node.toml` must hold no journals: they would be taken for none.
fn check_unused(path: &Path) -> Result<(), BootFailed> {
    if path.join("core-0").exists() {
        return Err(BootFailed(format!(
            "{} holds journals but no node.toml: restore that file",
            path.display()
        )));
    }
    Ok(())
}

fn write_node(path: &Path, shards: u16) -> io::Result<()> {
    let text = toml::to_string(&Node { format: FORMAT, shards }).map_err(io::Error::other)?;
    let new = path.join("node.toml.new");
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path.join("node.toml"))?;
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_its_shards_and_has_one_owner() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("data");
        let first = Directory::take(&path, 3).expect("new");
        let second = Directory::take(&path, 3).err().expect("taken");
        assert!(second.0.contains("--data-dir"), "{second}");
        drop(first);
        assert_eq!(Directory::take(&path, 9).expect("free again").shards(), 3);
    }

    #[test]
    fn other_formats_and_damage_are_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let refusal = |text: &str| {
            std::fs::write(folder.path().join("node.toml"), text).expect("writable");
            Directory::take(folder.path(), 1).err().map(|failed| failed.0).unwrap_or_default()
        };
        assert!(refusal("format = 2\nshards = 1").contains("newer Corelog"));
        assert!(refusal("format = 1\nshards = 0").contains("0 shards"));
        assert!(refusal("what").contains("damaged"));
    }
}
