//! Looking into the directories that were named: they are locked, and what they say of themselves
//! is read. Nothing is decided, and nothing but the lock is written, or not even that (`How`).

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::super::BootFailed;
use super::super::layout::{Layout, NODE_FILE, generation_of};
use super::mark::{MARK_FILE, Mark};
use super::refused_by_system;

/// What a look may change.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// Directories that are not there are made.
    Making,
    /// They must be there: one that is not may be the place of a disk that is to be mounted.
    Existing,
    /// Nothing is changed: a directory without the file of its lock belongs to nobody, and one that
    /// is not there is empty.
    Unchanged,
}

/// A directory that was named.
pub(super) struct Named {
    /// As it was named, made absolute.
    pub path: PathBuf,
    pub found: Result<Found, BootFailed>,
}

/// What is in a directory that can be used.
#[derive(Default)]
pub(super) struct Found {
    pub lock: Option<File>,
    pub mark: Option<Mark>,
    pub layout: Option<Layout>,
    /// The oldest generation of which it holds a core's folder.
    pub oldest: Option<u32>,
}

impl Found {
    pub(super) fn has_cores(&self) -> bool {
        self.oldest.is_some()
    }
}

/// Looks into every directory. One that is in use or named twice ends it, others may be unusable.
pub(super) fn look_at_all(paths: &[PathBuf], how: How) -> Result<Vec<Named>, BootFailed> {
    let mut named: Vec<Named> = Vec::new();
    for given in paths {
        let absolute = std::path::absolute(given).unwrap_or_else(|_| given.clone());
        let made = if how == How::Making { fs::create_dir_all(&absolute) } else { Ok(()) };
        let is_there = made
            .map_err(|error| refused_by_system("create the data directory", given, &error))
            .and_then(|()| {
                absolute
                    .canonicalize()
                    .map_err(|error| refused_by_system("find the data directory", given, &error))
            });
        let path = is_there.as_ref().unwrap_or(&absolute).clone();
        if named.iter().any(|one| one.path == path) {
            return Err(BootFailed(format!(
                "the data directory {} is named twice",
                path.display()
            )));
        }
        let is_yet_to_be = how == How::Unchanged && !absolute.exists();
        let looked = is_there.map(|path| look_at(&path, how));
        let found = match looked {
            Err(_) if is_yet_to_be => Ok(Found::default()),
            Ok(Err(Unusable { why, is_final: true })) => return Err(why),
            Ok(Err(Unusable { why, .. })) | Err(why) => Err(why),
            Ok(Ok(found)) => Ok(found),
        };
        named.push(Named { path, found });
    }
    Ok(named)
}

/// Why a directory is not used.
pub(super) struct Unusable {
    pub why: BootFailed,
    /// The node cannot start without it either: it is there, and must not be passed over.
    is_final: bool,
}

impl Unusable {
    fn by_system(what: &str, path: &Path, error: &io::Error) -> Unusable {
        Unusable { why: refused_by_system(what, path, error), is_final: false }
    }

    fn finally(why: BootFailed) -> Unusable {
        Unusable { why, is_final: true }
    }
}

pub(super) fn look_at(path: &Path, how: How) -> Result<Found, Unusable> {
    let lock = lock(path, how)?;
    let mark = match read_text(&path.join(MARK_FILE))? {
        Some(text) => Some(Mark::read(&text, path).map_err(Unusable::finally)?),
        None => None,
    };
    let file = path.join(NODE_FILE);
    let layout = match read_text(&file)? {
        Some(text) => Some(Layout::read(&text, &file).map_err(Unusable::finally)?),
        None => None,
    };
    let entries = fs::read_dir(path)
        .map_err(|error| Unusable::by_system("read the data directory", path, &error))?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let oldest = names.filter_map(|name| generation_of(&name)).min();
    Ok(Found { lock, mark, layout, oldest })
}

fn read_text(file: &Path) -> Result<Option<String>, Unusable> {
    match fs::read(file) {
        // What is no text in it makes it one that says nothing.
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Unusable::by_system("read", file, &error)),
    }
}

fn lock(path: &Path, how: How) -> Result<Option<File>, Unusable> {
    let failed = |error: io::Error| Unusable::by_system("lock the data directory", path, &error);
    let file = path.join("lock");
    let opened = match how {
        How::Unchanged => File::open(file),
        How::Making | How::Existing => {
            OpenOptions::new().create(true).truncate(false).write(true).open(file)
        }
    };
    let lock = match opened {
        Err(error) if how == How::Unchanged && error.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        opened => opened.map_err(failed)?,
    };
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Err(Unusable::finally(BootFailed(format!(
            "the data directory {} belongs to a running Corelog: stop it or choose another \
             --data-dir",
            path.display()
        )))),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}
