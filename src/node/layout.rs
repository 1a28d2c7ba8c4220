//! How a node is laid out: which core keeps its journal and segments in which folder.
//!
//!     FIRST/node.toml         format, shards, generation, and the directories if there are several
//!     DIRECTORY/core-N/       journal and segments of core N, in generation 0
//!     DIRECTORY/core-N.G/     the same in generation G
//!
//! Core N is in directory N modulo their number. Each change of shards or of directories begins a
//! generation: a whole set of folders, which count once `node.toml` names it. Folders of any other
//! one are left over from such a change.
//!
//! Invariants
//!   Y2  What a layout is stands in one file, in the first directory: a change is whole or is not.
//!   Y3  Once it says that the cores' folders are there, one that is not is lost, never new.

use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::BootFailed;
use crate::base::ids::CoreId;
use crate::partition::directory_of;

/// The format that this program makes and reads. A node of one directory has an older one, and the
/// first of all if it was never laid out anew, so that an older program still opens it.
const FORMAT: u32 = 3;
const FORMAT_ONE: u32 = 2;
const FORMAT_FIRST: u32 = 1;
pub const NODE_FILE: &str = "node.toml";
/// What becomes it.
pub const NEW_NODE_FILE: &str = "node.toml.new";
/// What the names of cores' folders begin with.
const CORE_FOLDER: &str = "core-";

/// A data directory of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// What its own `directory.toml` says, wherever it is mounted; empty where it has none, as the
    /// one directory of a node need not.
    pub id: String,
    /// Where it was when the node last started.
    pub path: PathBuf,
}

/// Which folders the node goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub shards: u16,
    pub generation: u32,
    /// The first holds `node.toml`. Never empty.
    pub places: Vec<Place>,
    /// All cores' folders were made (Y3).
    pub has_folders: bool,
}

#[derive(Serialize, Deserialize)]
struct Node {
    format: u32,
    shards: u16,
    #[serde(default, skip_serializing_if = "is_first")]
    generation: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    directories: Vec<Place>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    has_folders: bool,
    /// The CRC-32 of the others: a digit that flips would name other folders, and the right ones
    /// would be taken for leftovers. The oldest programs neither write nor mind it.
    check: Option<u32>,
}

impl Node {
    fn sum(&self) -> u32 {
        let Node { format, shards, generation, directories, has_folders, check: _ } = self;
        let mut text = format!("{format} {shards} {generation}");
        for Place { id, path } in directories {
            text += &format!("\n{id} {}", path.display());
        }
        if *has_folders {
            text += "\nhas folders";
        }
        crc32fast::hash(text.as_bytes())
    }
}

fn is_first(generation: &u32) -> bool {
    *generation == 0
}

impl Layout {
    /// That of a new node.
    pub fn new(shards: u16, places: Vec<Place>) -> Layout {
        Layout { shards, generation: 0, places, has_folders: false }
    }

    /// The next one, with another number of shards, or in other directories. It counts once its
    /// folders are there.
    pub fn followed_by(&self, shards: u16, places: Vec<Place>) -> Result<Layout, BootFailed> {
        let generation = self.generation.checked_add(1);
        let generation = generation.ok_or_else(|| BootFailed("no generation is left".into()))?;
        Ok(Layout { shards, generation, places, has_folders: true })
    }

    /// The first directory, which holds what the node knows of itself.
    pub fn first(&self) -> &Path {
        self.places.first().map_or(Path::new(""), |place| &place.path)
    }

    /// The directory of one core.
    pub fn directory(&self, core: u16) -> &Path {
        let place = self.places.get(directory_of(CoreId(core), self.places.len()));
        place.map_or(Path::new(""), |place| &place.path)
    }

    /// The cores in one directory.
    pub fn cores_in(&self, number: usize) -> impl Iterator<Item = u16> {
        let count = self.places.len();
        (0..self.shards).filter(move |core| directory_of(CoreId(*core), count) == number)
    }

    /// The folder of one core.
    pub fn core(&self, core: u16) -> PathBuf {
        let directory = self.directory(core);
        match self.generation {
            0 => directory.join(format!("{CORE_FOLDER}{core}")),
            generation => directory.join(format!("{CORE_FOLDER}{core}.{generation}")),
        }
    }

    /// How many shards and directories it has.
    pub fn in_words(&self) -> String {
        let shards = self.shards;
        match self.places.len() {
            1 => format!("{shards} shards"),
            directories => format!("{shards} shards in {directories} directories"),
        }
    }

    /// Whether a name in `directory` is that of a core's folder which does not count.
    pub fn is_stale(&self, directory: &Path, name: &str) -> bool {
        let is_named = |core| core < self.shards && self.core(core) == directory.join(name);
        parsed(name).is_some_and(|(core, _)| !is_named(core))
    }

    /// The layout that the text of a `node.toml` tells.
    pub fn read(text: &str, file: &Path) -> Result<Layout, BootFailed> {
        // A file whose end was not yet cut off when the power failed.
        let text = text.trim_end_matches('\0');
        let mut node: Node = parse(text, file)?;
        check_format(node.format, FORMAT, file)?;
        if node.shards == 0 {
            return Err(BootFailed(format!("{} names 0 shards: restore it", file.display())));
        }
        if node.check.is_some_and(|check| check != node.sum()) {
            return Err(BootFailed(format!(
                "{} is damaged (its check is not that of what it says): restore it",
                file.display()
            )));
        }
        let mut places = std::mem::take(&mut node.directories);
        if places.is_empty() {
            let path = file.parent().map(Path::to_path_buf).unwrap_or_default();
            places.push(Place { id: String::new(), path });
        }
        let Node { shards, generation, has_folders, .. } = node;
        Ok(Layout { shards, generation, places, has_folders })
    }

    /// The text of its `node.toml`.
    pub fn text(&self) -> io::Result<String> {
        let Layout { shards, generation, ref places, has_folders } = *self;
        let (format, directories) = match (places.len(), generation) {
            (0 | 1, 0) => (FORMAT_FIRST, Vec::new()),
            (0 | 1, _) => (FORMAT_ONE, Vec::new()),
            _ => (FORMAT, places.clone()),
        };
        let mut node = Node { format, shards, generation, directories, has_folders, check: None };
        node.check = Some(node.sum());
        toml::to_string(&node).map_err(io::Error::other)
    }
}

/// What a file of the node's layout says.
pub fn parse<T: DeserializeOwned>(text: &str, file: &Path) -> Result<T, BootFailed> {
    toml::from_str(text).map_err(|error| {
        BootFailed(format!("{} is damaged ({}): restore it", file.display(), error.message()))
    })
}

/// Refuses a file of a format beyond the newest that is `known`.
pub fn check_format(format: u32, known: u32, file: &Path) -> Result<(), BootFailed> {
    if format <= known {
        return Ok(());
    }
    Err(BootFailed(format!(
        "{} has format {format}, this program knows up to {known}: start the newer Corelog that \
         wrote it",
        file.display()
    )))
}

/// The generation of a core's folder, if the name is one of those.
pub fn generation_of(name: &str) -> Option<u32> {
    parsed(name).map(|(_, generation)| generation)
}

/// The core and the generation that a folder's name tells.
fn parsed(name: &str) -> Option<(u16, u32)> {
    let rest = name.strip_prefix(CORE_FOLDER)?;
    let (core, generation) = rest.split_once('.').unwrap_or((rest, "0"));
    Some((core.parse().ok()?, generation.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(paths: &[&str]) -> Vec<Place> {
        let place = |path: &&str| Place { id: format!("id of {path}"), path: path.into() };
        paths.iter().map(place).collect()
    }

    #[test]
    fn other_formats_and_damage_are_refused() {
        let refusal = |text: &str| {
            Layout::read(text, Path::new("/data/node.toml")).err().map(|failed| failed.0)
        };
        let says = |text: &str, word: &str| refusal(text).is_some_and(|why| why.contains(word));
        assert!(says("format = 4\nshards = 1", "newer Corelog"));
        assert!(says("format = 1\nshards = 0", "0 shards"));
        assert!(says("what", "damaged"));
    }

    #[test]
    fn each_layout_has_folders_of_its_own() {
        let path = Path::new("/data");
        let file = path.join(NODE_FILE);
        let only = vec![Place { id: String::new(), path: path.into() }];
        let first = Layout::new(2, only.clone());
        let text = first.text().expect("text");
        assert!(text.starts_with("format = 1\nshards = 2\n"), "as older programs know it");
        let older = Layout::read("format = 1\nshards = 2\n", &file);
        assert_eq!(older, Ok(first.clone()), "written by one");
        assert_eq!(Layout::read(&text, &file), Ok(first.clone()));
        let second = first.followed_by(3, only).expect("a number is left");
        let text = second.text().expect("text");
        assert!(text.starts_with("format = 2\n"), "the first programs refuse it");
        assert_eq!(Layout::read(&format!("{text}\0\0"), &file), Ok(second.clone()));
        assert_eq!(first.core(1), Path::new("/data/core-1"));
        assert_eq!(second.core(1), Path::new("/data/core-1.1"));
        for (name, stale) in [("core-0", false), ("core-1", false), ("core-2", true)] {
            assert_eq!(first.is_stale(path, name), stale, "{name}");
            assert!(second.is_stale(path, name), "{name}");
        }
        for (name, stale) in [("core-2.1", false), ("core-3.1", true), ("core-0.2", true)] {
            assert_eq!(second.is_stale(path, name), stale, "{name}");
            assert!(first.is_stale(path, name), "{name}");
        }
        for name in ["core-x", "core-1.y", "node.toml", "lock", "core"] {
            assert!(!first.is_stale(path, name) && !second.is_stale(path, name), "{name}");
        }
    }

    #[test]
    fn a_flipped_bit_is_no_other_layout() {
        let file = Path::new("/a/node.toml");
        let mut begun = Layout::new(2, places(&["/a"]));
        begun.has_folders = true;
        for layout in
            [begun, Layout::new(2, places(&["/a"])), Layout::new(3, places(&["/a", "/b"]))]
        {
            let text = layout.text().expect("text");
            let read = Layout::read(&text, file).expect("sound");
            for (at, bit) in (0..text.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                let damaged = String::from_utf8_lossy(&bytes).into_owned();
                let found = Layout::read(&damaged, file);
                assert!(found.is_err() || found == Ok(read.clone()), "{damaged}");
            }
        }
    }

    #[test]
    fn cores_take_turns_among_the_directories() {
        let layout = Layout::new(3, places(&["/a", "/b"]));
        let text = layout.text().expect("text");
        assert!(text.starts_with("format = 3\n"), "older programs refuse it");
        assert_eq!(Layout::read(&text, Path::new("/a/node.toml")), Ok(layout.clone()));
        let folders = [0, 1, 2].map(|core| layout.core(core));
        assert_eq!(folders, ["/a/core-0", "/b/core-1", "/a/core-2"].map(PathBuf::from));
        let next = layout.followed_by(2, places(&["/a", "/c"])).expect("a number is left");
        assert_eq!(next.core(1), Path::new("/c/core-1.1"));
        // A folder counts in its own directory only.
        for (directory, name, stale) in [
            ("/a", "core-0", false),
            ("/b", "core-0", true),
            ("/b", "core-1", false),
            ("/c", "core-1", true),
            ("/a", "core-1", true),
        ] {
            assert_eq!(layout.is_stale(Path::new(directory), name), stale, "{directory} {name}");
        }
        assert!(next.is_stale(Path::new("/b"), "core-1.1"));
    }
}
