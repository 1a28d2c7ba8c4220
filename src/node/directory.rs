//! The data directory: who owns it, and how it is laid out.
//!
//!     DIR/lock            held by the running node
//!     DIR/node.toml       format, shards, generation
//!     DIR/core-N/         journal and segments of core N, in generation 0
//!     DIR/core-N.G/       the same in generation G
//!
//! Each change of the number of shards begins a generation: a whole set of folders, which count
//! once `node.toml` names it. Folders of any other one are left over from such a change.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::BootFailed;

/// The directory's format that this program makes and reads. One that was never laid out anew has
/// the first, so that an older program still opens it.
const FORMAT: u32 = 2;
const FORMAT_FIRST: u32 = 1;
pub const NODE_FILE: &str = "node.toml";
/// What becomes it.
pub const NEW_NODE_FILE: &str = "node.toml.new";

/// Which folders the node goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub shards: u16,
    pub generation: u32,
}

/// A data directory that this process owns.
pub struct Directory {
    path: PathBuf,
    layout: Layout,
    /// Released with the process.
    _lock: File,
}

#[derive(Serialize, Deserialize)]
struct Node {
    format: u32,
    shards: u16,
    #[serde(default, skip_serializing_if = "is_first")]
    generation: u32,
    /// The CRC-32 of the others: a digit that flips would name other folders, and the right ones
    /// would be taken for leftovers. Older programs neither write nor mind it.
    check: Option<u32>,
}

impl Node {
    fn sum(&self) -> u32 {
        let Node { format, shards, generation, check: _ } = self;
        crc32fast::hash(format!("{format} {shards} {generation}").as_bytes())
    }
}

fn is_first(generation: &u32) -> bool {
    *generation == 0
}

impl Layout {
    /// That of a new directory.
    pub fn new(shards: u16) -> Layout {
        Layout { shards, generation: 0 }
    }

    /// The next one, with another number of shards.
    pub fn followed_by(self, shards: u16) -> Result<Layout, BootFailed> {
        let generation = self.generation.checked_add(1);
        let generation = generation.ok_or_else(|| BootFailed("no generation is left".into()))?;
        Ok(Layout { shards, generation })
    }

    /// The folder of one core.
    pub fn core(self, directory: &Path, core: u16) -> PathBuf {
        match self.generation {
            0 => directory.join(format!("core-{core}")),
            generation => directory.join(format!("core-{core}.{generation}")),
        }
    }

    /// Whether a name is that of a core's folder which does not count.
    pub fn is_stale(self, name: &str) -> bool {
        let Some(rest) = name.strip_prefix("core-") else { return false };
        let (core, generation) = rest.split_once('.').unwrap_or((rest, "0"));
        match (core.parse::<u16>(), generation.parse::<u32>()) {
            (Ok(core), Ok(generation)) => generation != self.generation || core >= self.shards,
            _ => false,
        }
    }

    /// The layout that the text of a `node.toml` tells.
    pub fn read(text: &str, file: &Path) -> Result<Layout, BootFailed> {
        // A file whose end was not yet cut off when the power failed.
        let text = text.trim_end_matches('\0');
        let node: Node = toml::from_str(text).map_err(|error| {
            BootFailed(format!("{} is damaged ({}): restore it", file.display(), error.message()))
        })?;
        let is_sound = node.check.is_none_or(|check| check == node.sum());
        if node.format > FORMAT {
            return Err(BootFailed(format!(
                "{} has format {}, this program knows up to {FORMAT}: start the newer Corelog \
                 that wrote it",
                file.display(),
                node.format
            )));
        }
        if node.shards == 0 {
            return Err(BootFailed(format!("{} names 0 shards: restore it", file.display())));
        }
        if !is_sound {
            return Err(BootFailed(format!(
                "{} is damaged (its check is not that of what it says): restore it",
                file.display()
            )));
        }
        Ok(Layout { shards: node.shards, generation: node.generation })
    }

    /// The text of its `node.toml`.
    pub fn text(self) -> io::Result<String> {
        let Layout { shards, generation } = self;
        let format = if generation == 0 { FORMAT_FIRST } else { FORMAT };
        let mut node = Node { format, shards, generation, check: None };
        node.check = Some(node.sum());
        toml::to_string(&node).map_err(io::Error::other)
    }
}

impl Directory {
    /// Takes the directory, making it if it is not there. `shards` holds for a new one; an older
    /// one is laid out as it was.
    pub fn take(path: &Path, shards: u16) -> Result<Directory, BootFailed> {
        let failed = |what: &str, error: io::Error| {
            refused_by_system(&format!("{what} the data directory"), path, &error)
        };
        std::fs::create_dir_all(path).map_err(|error| failed("create", error))?;
        let path = path.canonicalize().map_err(|error| failed("find", error))?;
        let lock = lock(&path)?;
        let file = path.join(NODE_FILE);
        let layout = match read_text(&file) {
            Ok(text) => Layout::read(&text, &file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                check_unused(&path)?;
                let layout = Layout::new(shards);
                write_node(&path, layout).map_err(|error| failed("write to", error))?;
                layout
            }
            Err(error) => return Err(failed("read", error)),
        };
        Ok(Directory { path, layout, _lock: lock })
    }

    /// Takes the directory of a stopped node.
    pub fn take_existing(path: &Path) -> Result<Directory, BootFailed> {
        let failed = |error| refused_by_system("read the data directory", path, &error);
        let path = path.canonicalize().map_err(failed)?;
        let file = path.join(NODE_FILE);
        let text = read_text(&file).map_err(|error| refused_by_system("read", &file, &error))?;
        let lock = lock(&path)?;
        let layout = Layout::read(&text, &file)?;
        Ok(Directory { path, layout, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How it is laid out.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// It is laid out anew.
    pub fn relaid(&mut self, layout: Layout) {
        self.layout = layout;
    }

    /// Folders that do not count.
    pub fn stale(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(&self.path) else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let stale = names.filter(|name| self.layout.is_stale(name));
        stale.map(|name| self.path.join(name)).collect()
    }
}

/// A file's text; what is none in it makes it one that says nothing.
fn read_text(file: &Path) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&std::fs::read(file)?).into_owned())
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

/// A directory without `node.toml` must hold no journals: they would be taken for none.
fn check_unused(path: &Path) -> Result<(), BootFailed> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    if names.any(|name| name.starts_with("core-")) {
        return Err(BootFailed(format!(
            "{} holds journals but no node.toml: restore that file",
            path.display()
        )));
    }
    Ok(())
}

fn write_node(path: &Path, layout: Layout) -> io::Result<()> {
    let new = path.join(NEW_NODE_FILE);
    let mut file = File::create(&new)?;
    file.write_all(layout.text()?.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path.join(NODE_FILE))?;
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
        assert_eq!(Directory::take(&path, 9).expect("free again").layout(), Layout::new(3));
    }

    #[test]
    fn other_formats_and_damage_are_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let refusal = |text: &str| {
            std::fs::write(folder.path().join("node.toml"), text).expect("writable");
            Directory::take(folder.path(), 1).err().map(|failed| failed.0).unwrap_or_default()
        };
        assert!(refusal("format = 3\nshards = 1").contains("newer Corelog"));
        assert!(refusal("format = 1\nshards = 0").contains("0 shards"));
        assert!(refusal("what").contains("damaged"));
    }
    #[test]
    fn each_layout_has_folders_of_its_own() {
        let path = Path::new("/data");
        let first = Layout::new(2);
        let text = first.text().expect("text");
        assert!(text.starts_with("format = 1\nshards = 2\n"), "as older programs know it");
        assert_eq!(Layout::read("format = 1\nshards = 2\n", path), Ok(first), "written by one");
        for (at, bit) in (0..text.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1 << bit;
            let damaged = String::from_utf8_lossy(&bytes).into_owned();
            let read = Layout::read(&damaged, path);
            assert!(read.is_err() || read == Ok(first), "{damaged}");
        }
        assert_eq!(Layout::read(&text, path), Ok(first));
        let second = first.followed_by(3).expect("a number is left");
        let text = second.text().expect("text");
        assert!(text.starts_with("format = 2\n"), "older programs refuse it");
        assert_eq!(Layout::read(&format!("{text}\0\0"), path), Ok(second));
        assert_eq!(first.core(path, 1), Path::new("/data/core-1"));
        assert_eq!(second.core(path, 1), Path::new("/data/core-1.1"));
        for (name, stale) in [("core-0", false), ("core-1", false), ("core-2", true)] {
            assert_eq!(first.is_stale(name), stale, "{name}");
            assert!(second.is_stale(name), "{name}");
        }
        for (name, stale) in [("core-2.1", false), ("core-3.1", true), ("core-0.2", true)] {
            assert_eq!(second.is_stale(name), stale, "{name}");
            assert!(first.is_stale(name), "{name}");
        }
        for name in ["core-x", "core-1.y", "node.toml", "lock", "core"] {
            assert!(!first.is_stale(name) && !second.is_stale(name), "{name}");
        }
    }
}
