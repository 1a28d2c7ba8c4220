//! What is written into data directories: whose one is, and the node's layout.
//!
//! Each file is there whole or not at all.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::super::BootFailed;
use super::super::layout::{Layout, NEW_NODE_FILE, NODE_FILE, check_format, parse};
use super::refused_by_system;

/// The format of the file below that this program makes and reads.
const FORMAT: u32 = 1;
pub(super) const MARK_FILE: &str = "directory.toml";
const NEW_MARK_FILE: &str = "directory.toml.new";

/// What a directory says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    format: u32,
    pub node: String,
    pub directory: String,
    /// Whether it is the node's first one.
    #[serde(default)]
    pub is_first: bool,
}

impl Mark {
    pub(super) fn read(text: &str, directory: &Path) -> Result<Mark, BootFailed> {
        let file = directory.join(MARK_FILE);
        let mark: Mark = parse(text, &file)?;
        check_format(mark.format, FORMAT, &file)?;
        Ok(mark)
    }
}

pub(super) fn write_node(layout: &Layout) -> Result<(), BootFailed> {
    let directory = layout.first();
    let failed = |error| refused_by_system("write to the data directory", directory, &error);
    let text = layout.text().map_err(failed)?;
    write_whole(directory, [NEW_NODE_FILE, NODE_FILE], &text).map_err(failed)
}

/// Marks a directory as one of `node`; returns the id that it is given.
pub(super) fn mark_new(directory: &Path, node: &str, is_first: bool) -> Result<String, BootFailed> {
    let failed = |error| refused_by_system("write to the data directory", directory, &error);
    let mark = Mark { format: FORMAT, node: node.to_string(), directory: new_id()?, is_first };
    let text = toml::to_string(&mark).map_err(io::Error::other).map_err(failed)?;
    write_whole(directory, [NEW_MARK_FILE, MARK_FILE], &text).map_err(failed)?;
    Ok(mark.directory)
}

/// Writes a file that is there whole or not at all.
fn write_whole(directory: &Path, [new, name]: [&str; 2], text: &str) -> io::Result<()> {
    let new = directory.join(new);
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, directory.join(name))?;
    File::open(directory)?.sync_all()
}

/// A random id of version 4 (RFC 9562).
pub(super) fn new_id() -> Result<String, BootFailed> {
    let source = Path::new("/dev/urandom");
    let mut bytes = [0; 16];
    File::open(source)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| refused_by_system("read", source, &error))?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid().to_string())
}
