//! The data directories: whose they are, which of them are there, and what is to become of them.
//!
//!     DIRECTORY/lock             held by the running node
//!     DIRECTORY/directory.toml   which node it belongs to, and its id, where a node has several
//!     FIRST/node.toml            the layout, with the ids of all directories (`layout`)
//!
//! A directory is known by its id, so it may be mounted elsewhere, and named in any order.
//!
//! Invariants
//!   Z1  A directory that `node.toml` names and that is not there is never taken for an empty one:
//!       the node starts without it, or not at all.
//!   Z2  Nothing is written to a directory of another node.
//!   Z3  Directories come and go only while all that hold something are there.
//!   Z4  The same holds for a core's folder (Y3 of `layout`): without it, its directory is not
//!       used.

mod decide;
mod look;
mod mark;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::BootFailed;
use super::layout::{Layout, Place};
use crate::journal;
use decide::{Taking, check_count, take_new};
use look::{Found, How, look_at_all};
use mark::{MARK_FILE, mark_new, write_node};

/// The data directories that this process owns.
pub struct DataDirectories {
    layout: Layout,
    /// Why a directory of the layout is not used, in its order.
    broken: Vec<Option<String>>,
    /// Those that the node is to have, if these are others.
    wanted: Option<Vec<Place>>,
    /// Directories that the node has left.
    left: Vec<PathBuf>,
    /// The node's id, if it has several.
    node: String,
    /// Released with the process.
    _locks: Vec<File>,
}

impl DataDirectories {
    /// Takes the directories, making those that are not there. `shards` holds for a new node; an
    /// older one is laid out as it was.
    pub fn take(paths: &[PathBuf], shards: u16) -> Result<DataDirectories, BootFailed> {
        check_count(paths.len(), shards)?;
        let named = look_at_all(paths, How::Making)?;
        let layouts = named.iter().filter_map(|one| one.found.as_ref().ok()?.layout.as_ref());
        if layouts.count() == 0 {
            return take_new(named, shards);
        }
        let taking = Taking::of(named)?;
        let recorded = taking.recorded.clone();
        let mut taken = taking.decide()?;
        taken.look_for_folders()?;
        if taken.wanted.is_none() && taken.layout.text().ok() != recorded.text().ok() {
            write_node(&taken.layout)?;
        }
        Ok(taken)
    }

    /// Takes the directories of a stopped node, all of which must be there; the first leads to the
    /// others. A dry look makes no file for a lock either.
    pub fn take_existing(paths: &[PathBuf], is_dry: bool) -> Result<DataDirectories, BootFailed> {
        let how = if is_dry { How::Unchanged } else { How::Existing };
        for path in paths {
            path.canonicalize()
                .map_err(|error| refused_by_system("read the data directory", path, &error))?;
        }
        let named = look_at_all(paths, how)?;
        let mut taking = Taking::of(named)?;
        taking.find_elsewhere(how);
        match taking.missing().first() {
            None => Ok(taking.taken(Vec::new(), None)),
            Some(place) => Err(BootFailed(format!(
                "the data directory {} of this node is not there: mount it, or name it with \
                 --data-dir where it is now",
                place.path.display()
            ))),
        }
    }

    /// Has `empty` take the place of what is lost for good: one of `paths` that of a directory, or
    /// the folder of a core its own. Nothing is written yet but a lock, by a dry look not even
    /// that; and no other directory is made, which may be the place of a disk.
    pub fn replace_lost(
        paths: &[PathBuf],
        empty: &Path,
        is_dry: bool,
    ) -> Result<(DataDirectories, LostPart), BootFailed> {
        let how = if is_dry { How::Unchanged } else { How::Existing };
        let refused = |error| refused_by_system("read the data directory", empty, &error);
        if !is_dry && paths.iter().any(|path| path == empty) {
            fs::create_dir_all(empty).map_err(refused)?;
        }
        let mut taking = Taking::of(look_at_all(paths, how)?)?;
        taking.find_elsewhere(how);
        if let Some(core) = taking.lost_core(empty) {
            if core == 0 {
                return Err(BootFailed(lost_folder(&taking.layout, core)));
            }
            return Ok((taking.taken(Vec::new(), None), LostPart::Core(core)));
        }
        let place = empty.display();
        let path = if is_dry && !empty.exists() {
            std::path::absolute(empty)
        } else {
            empty.canonicalize()
        };
        let path = path.map_err(refused)?;
        let missing = taking.missing_numbers();
        let is_meant = |number: &&usize| {
            let last = taking.layout.places.get(**number).map(|place| &*place.path);
            missing.len() == 1 || last == Some(&*path)
        };
        let Some(lost) = missing.iter().find(is_meant).copied() else {
            return Err(BootFailed(format!(
                "no data directory of this node is lost whose place {place} could take"
            )));
        };
        // A mark may be that of a replacement that was cut short.
        let is_empty = |found: &Found| {
            let is_ours = found.mark.as_ref().is_none_or(|mark| {
                let is_it = |place: &Place| place.id == mark.directory;
                mark.node == taking.node && !taking.layout.places.iter().any(is_it)
            });
            is_ours && !found.has_cores()
        };
        let named = taking.named.iter().find(|one| one.path == path);
        if !named.is_some_and(|one| one.found.as_ref().is_ok_and(is_empty)) {
            return Err(BootFailed(format!(
                "{place} is not an empty directory, or not named with --data-dir"
            )));
        }
        taking.layout.places[lost].path = path;
        taking.layout.places[lost].id.clear();
        Ok((taking.taken(Vec::new(), None), LostPart::Directory(lost)))
    }

    /// Makes `replace_lost` last: the cores that were there begin anew.
    pub fn begin_anew(mut self, lost: LostPart) -> Result<(), BootFailed> {
        match lost {
            LostPart::Core(core) => prepare_folder(&self.layout.core(core)),
            LostPart::Directory(number) => {
                let place = &mut self.layout.places[number];
                place.id = mark_new(&place.path, &self.node, false)?;
                for core in self.layout.cores_in(number) {
                    prepare_folder(&self.layout.core(core))?;
                }
                write_node(&self.layout)
            }
        }
    }

    /// Makes the cores' folders and notes that they are there, if that was not noted before.
    pub fn make_folders(&mut self) -> Result<(), BootFailed> {
        // What an older program has left without a note is noted when all directories are there.
        if self.layout.has_folders || self.first_broken().is_some() {
            return Ok(());
        }
        for core in 0..self.layout.shards {
            prepare_folder(&self.layout.core(core))?;
        }
        self.layout.has_folders = true;
        write_node(&self.layout)
    }

    /// Without a core's folder that was there, its directory is not used (Z4).
    fn look_for_folders(&mut self) -> Result<(), BootFailed> {
        if !self.layout.has_folders {
            return Ok(());
        }
        for (number, broken) in self.broken.iter_mut().enumerate() {
            for core in self.layout.cores_in(number) {
                if broken.is_some() {
                    break;
                }
                let folder = self.layout.core(core);
                let why = match journal::is_prepared(&folder) {
                    Ok(true) => continue,
                    Ok(false) => BootFailed(lost_folder(&self.layout, core)),
                    Err(error) => refused_by_system("read", &folder, &error),
                };
                if number == 0 {
                    return Err(why);
                }
                *broken = Some(why.0);
            }
        }
        Ok(())
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The directories that the node is to have, if these are not those that it has.
    pub fn wanted(&self) -> Option<&[Place]> {
        self.wanted.as_deref()
    }

    /// Why a directory is not used, in the order of the layout.
    pub fn broken(&self) -> &[Option<String>] {
        &self.broken
    }

    /// One that is not used, and why.
    pub fn first_broken(&self) -> Option<(&Path, &str)> {
        let mut all = self.layout.places.iter().zip(&self.broken);
        all.find_map(|(place, why)| Some((&*place.path, why.as_deref()?)))
    }

    /// They are laid out anew.
    pub fn relaid(&mut self, layout: Layout) {
        let stays = |place: &Place| layout.places.iter().any(|new| new.path == place.path);
        let before = std::mem::take(&mut self.layout.places);
        self.left = before.into_iter().filter(|old| !stays(old)).map(|old| old.path).collect();
        self.broken = vec![None; layout.places.len()];
        self.wanted = None;
        self.layout = layout;
    }

    /// Folders that do not count, and in directories that were left all that says whose they were.
    pub fn stale(&self) -> Vec<PathBuf> {
        let mut stale = Vec::new();
        let paths = self.layout.places.iter().map(|place| &place.path);
        for path in paths.chain(&self.left) {
            let Ok(entries) = fs::read_dir(path) else { continue };
            let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
            let names = names.filter(|name| self.layout.is_stale(path, name));
            stale.extend(names.map(|name| path.join(name)));
        }
        // A directory that cannot be read stays marked.
        let left = self.left.iter().filter(|path| fs::read_dir(path).is_ok());
        stale.extend(left.map(|path| path.join(MARK_FILE)));
        stale
    }
}

/// What is lost for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostPart {
    /// A data directory, by its place in the layout.
    Directory(usize),
    /// A core's folder.
    Core(u16),
}

/// What a missing folder means, and what to do.
fn lost_folder(layout: &Layout, core: u16) -> String {
    let folder = layout.core(core);
    let folder = folder.display();
    if core == 0 {
        return format!(
            "{folder} is missing or empty, and topics and settings were in it: put it back, or \
             restore it from a copy"
        );
    }
    format!(
        "{folder} is missing or empty, and the partitions of core {core} were in it: put it back, \
         or give them up with `corelog repair --data-dir {} --replace-lost {folder}`",
        layout.first().display()
    )
}

fn prepare_folder(folder: &Path) -> Result<(), BootFailed> {
    journal::prepare_folder(folder).map_err(|error| refused_by_system("make", folder, &error))
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
