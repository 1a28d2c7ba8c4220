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

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::BootFailed;
use super::layout::{Layout, NEW_NODE_FILE, NODE_FILE, Place, check_format, generation_of, parse};
use crate::journal;

/// The format of the file below that this program makes and reads.
const FORMAT: u32 = 1;
const MARK_FILE: &str = "directory.toml";
const NEW_MARK_FILE: &str = "directory.toml.new";

/// What a directory says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    format: u32,
    node: String,
    directory: String,
    /// Whether it is the node's first one.
    #[serde(default)]
    is_first: bool,
}

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

/// A directory that was named.
struct Named {
    /// As it was named, made absolute.
    path: PathBuf,
    found: Result<Found, BootFailed>,
}

/// What is in a directory that can be used.
struct Found {
    lock: File,
    mark: Option<Mark>,
    layout: Option<Layout>,
    /// The oldest generation of which it holds a core's folder.
    oldest: Option<u32>,
}

impl Found {
    fn has_cores(&self) -> bool {
        self.oldest.is_some()
    }
}

impl DataDirectories {
    /// Takes the directories, making those that are not there. `shards` holds for a new node; an
    /// older one is laid out as it was.
    pub fn take(paths: &[PathBuf], shards: u16) -> Result<DataDirectories, BootFailed> {
        check_count(paths.len(), shards)?;
        let named = look_at_all(paths)?;
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
    /// others.
    pub fn take_existing(paths: &[PathBuf]) -> Result<DataDirectories, BootFailed> {
        for path in paths {
            path.canonicalize()
                .map_err(|error| refused_by_system("read the data directory", path, &error))?;
        }
        let named = look_at_all(paths)?;
        let mut taking = Taking::of(named)?;
        taking.find_elsewhere();
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
    /// the folder of a core its own. Nothing is written yet.
    pub fn replace_lost(
        paths: &[PathBuf],
        empty: &Path,
    ) -> Result<(DataDirectories, LostPart), BootFailed> {
        let mut taking = Taking::of(look_at_all(paths)?)?;
        taking.find_elsewhere();
        if let Some(core) = taking.lost_core(empty) {
            if core == 0 {
                return Err(BootFailed(lost_folder(&taking.layout, core)));
            }
            return Ok((taking.taken(Vec::new(), None), LostPart::Core(core)));
        }
        let place = empty.display();
        let missing = taking.missing_numbers();
        let is_meant = |number: &&usize| {
            let last = taking.layout.places.get(**number).map(|place| &*place.path);
            missing.len() == 1 || last == empty.canonicalize().ok().as_deref()
        };
        let Some(lost) = missing.iter().find(is_meant).copied() else {
            return Err(BootFailed(format!(
                "no data directory of this node is lost whose place {place} could take"
            )));
        };
        let path = empty
            .canonicalize()
            .map_err(|error| refused_by_system("read the data directory", empty, &error))?;
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
        stale.extend(self.left.iter().map(|path| path.join(MARK_FILE)));
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

/// A node that was here before, and what is named of it now.
struct Taking {
    named: Vec<Named>,
    /// As `node.toml` has it.
    recorded: Layout,
    /// With the directories where they are.
    layout: Layout,
    node: String,
    /// By place of the layout, which of the named directories it is.
    known: Vec<Option<usize>>,
}

impl Taking {
    /// Finds the node's directories among those named.
    fn of(named: Vec<Named>) -> Result<Taking, BootFailed> {
        let found = |one: &Named| one.found.as_ref().is_ok_and(|found| found.layout.is_some());
        let firsts: Vec<usize> = (0..named.len()).filter(|at| found(&named[*at])).collect();
        let [first] = firsts[..] else { return Err(no_single_first(&named, &firsts)) };
        let Some(Ok(Found { layout: Some(layout), mark, .. })) =
            named.get(first).map(|one| one.found.as_ref())
        else {
            unreachable!("it was found there");
        };
        let (recorded, mut layout, mark) = (layout.clone(), layout.clone(), mark.clone());
        let path = named[first].path.clone();
        let is_several = layout.places.len() > 1;
        let own = layout.places.first().map(|place| place.id.clone()).unwrap_or_default();
        let node = mark.as_ref().map(|mark| mark.node.clone()).unwrap_or_default();
        if is_several && mark.as_ref().is_none_or(|mark| mark.directory != own) {
            return Err(BootFailed(format!(
                "{} is missing or not the one that belongs to {} beside it: restore it",
                path.join(MARK_FILE).display(),
                NODE_FILE
            )));
        }
        let mut known = vec![None; layout.places.len()];
        known[0] = Some(first);
        if let Some(mark) = mark {
            layout.places[0].id = mark.directory;
        }
        layout.places[0].path = path;
        let mut taking = Taking { named, recorded, layout, node, known };
        taking.recognise(first)?;
        Ok(taking)
    }

    /// Finds the other directories by their ids, and refuses those of other nodes.
    fn recognise(&mut self, first: usize) -> Result<(), BootFailed> {
        for (at, one) in self.named.iter().enumerate().filter(|(at, _)| *at != first) {
            let Ok(found) = &one.found else { continue };
            let path = one.path.display();
            match &found.mark {
                Some(mark) if mark.node != self.node || self.node.is_empty() => {
                    return Err(BootFailed(format!(
                        "{path} belongs to another node than {}: name the right directory, or \
                         empty this one",
                        self.layout.first().display()
                    )));
                }
                None if found.has_cores() => {
                    return Err(BootFailed(format!(
                        "{path} holds journals but no {MARK_FILE}: restore that file"
                    )));
                }
                Some(mark) => {
                    let place = self.layout.places.iter_mut().zip(&mut self.known);
                    let place = place.into_iter().find(|(place, _)| place.id == mark.directory);
                    let Some((place, known)) = place else {
                        // What is newer is left over from a move here that came to no end.
                        if found.oldest.is_some_and(|oldest| oldest <= self.recorded.generation) {
                            return Err(BootFailed(format!(
                                "{path} was a data directory of this node, which has given up or \
                                 moved the partitions that are still in it: empty it, or leave it \
                                 out"
                            )));
                        }
                        continue;
                    };
                    if known.replace(at).is_some() {
                        return Err(BootFailed(format!(
                            "{path} is a copy of another directory of this node: name only one of \
                             them"
                        )));
                    }
                    place.path = one.path.clone();
                }
                None => {}
            }
        }
        Ok(())
    }

    fn missing_numbers(&self) -> Vec<usize> {
        let known = self.known.iter().enumerate();
        known.filter(|(_, known)| known.is_none()).map(|(number, _)| number).collect()
    }

    fn missing(&self) -> Vec<Place> {
        let places = self.layout.places.iter().zip(&self.known);
        places.filter(|(_, known)| known.is_none()).map(|(place, _)| place.clone()).collect()
    }

    /// The core whose lost folder `path` is.
    fn lost_core(&self, path: &Path) -> Option<u16> {
        let absolute = std::path::absolute(path).ok()?;
        let path = absolute.parent()?.canonicalize().ok()?.join(absolute.file_name()?);
        let is_lost = |core: &u16| {
            let folder = self.layout.core(*core);
            folder == path && journal::is_prepared(&folder).is_ok_and(|is_there| !is_there)
        };
        (0..self.layout.shards).filter(|_| self.layout.has_folders).find(is_lost)
    }

    /// Looks for directories that are not named where they were last.
    fn find_elsewhere(&mut self) {
        for (place, known) in self.layout.places.iter().zip(&mut self.known) {
            if known.is_some() || self.named.iter().any(|one| one.path == place.path) {
                continue;
            }
            let is_it = |found: &Found| {
                let mark = found.mark.as_ref();
                mark.is_some_and(|mark| mark.directory == place.id && mark.node == self.node)
            };
            if !place.path.join(MARK_FILE).exists() {
                continue;
            }
            if let Ok(found) = look_at(&place.path)
                && is_it(&found)
            {
                *known = Some(self.named.len());
                self.named.push(Named { path: place.path.clone(), found: Ok(found) });
            }
        }
    }

    /// What becomes of the node with the directories that were named.
    fn decide(mut self) -> Result<DataDirectories, BootFailed> {
        let named = self.named.len();
        if self.missing().is_empty() {
            return self.add(named);
        }
        let broken = self.stand_ins();
        if broken.len() == self.missing().len() {
            return self.start_without(broken);
        }
        // Those that are not named are to be left, for which they must be there.
        self.find_elsewhere();
        match self.missing().first() {
            None => self.add(named),
            Some(place) => {
                let path = place.path.display();
                Err(BootFailed(format!(
                    "the data directory {path} holds partitions of this node, and is neither named \
                     nor there: to take it out of use, mount it for as long as its partitions \
                     move; to start without them, name it with --data-dir {path} all the same"
                )))
            }
        }
    }

    /// Named directories that are not usable, or empty where one of the node's was: by place of the
    /// layout, which it is and why it is not used.
    fn stand_ins(&self) -> Vec<(usize, usize, String)> {
        let mut left: Vec<usize> = (0..self.named.len()).collect();
        left.retain(|at| !self.known.contains(&Some(*at)));
        let mut pairs = Vec::new();
        for place in self.missing_numbers() {
            let path = &self.layout.places[place].path;
            let same = left.iter().position(|at| self.named[*at].path == *path);
            // A directory that cannot be looked into may be this one, mounted elsewhere.
            let unread = || left.iter().position(|at| self.named[*at].found.is_err());
            let Some(at) = same.or_else(unread).map(|at| left.remove(at)) else { continue };
            let why = match &self.named[at].found {
                Err(why) => why.0.clone(),
                Ok(_) => format!(
                    "it is empty, and its partitions are not there: mount its disk, or give them \
                     up with `corelog repair --replace-lost {}`",
                    path.display()
                ),
            };
            pairs.push((place, at, why));
        }
        pairs
    }

    /// Starts with those that are there.
    fn start_without(
        mut self,
        broken: Vec<(usize, usize, String)>,
    ) -> Result<DataDirectories, BootFailed> {
        let count = self.layout.places.len();
        let is_new = |at: &usize| {
            !self.known.contains(&Some(*at)) && !broken.iter().any(|(_, broken, _)| broken == at)
        };
        if let Some(at) = (0..self.named.len()).find(is_new) {
            let (_, missing, why) = &broken[0];
            return Err(BootFailed(format!(
                "{} is a new data directory, and {} cannot be used ({why}): directories are added \
                 while all others are there",
                self.named[at].path.display(),
                self.named[*missing].path.display()
            )));
        }
        let mut reasons = vec![None; count];
        for (place, at, why) in broken {
            self.layout.places[place].path = self.named[at].path.clone();
            reasons[place] = Some(why);
        }
        Ok(self.taken(reasons, None))
    }

    /// Goes on with the first `named` directories, marking those that are new to the node.
    fn add(mut self, named: usize) -> Result<DataDirectories, BootFailed> {
        let is_kept = |known: &Option<usize>| known.is_some_and(|at| at < named);
        let places = self.layout.places.iter().zip(&self.known);
        let mut wanted: Vec<Place> =
            places.filter(|(_, known)| is_kept(known)).map(|(place, _)| place.clone()).collect();
        let mut node = self.node.clone();
        for at in 0..named {
            if self.known.contains(&Some(at)) {
                continue;
            }
            if node.is_empty() {
                // A node of one directory needs no mark.
                node = new_id()?;
                let id = mark_new(&wanted[0].path, &node, true)?;
                self.layout.places[0].id.clone_from(&id);
                wanted[0].id = id;
            }
            let Named { path, found } = &self.named[at];
            let found = found.as_ref().map_err(BootFailed::clone)?;
            // One that has a mark was on its way to the node when that ended.
            let id = match &found.mark {
                Some(mark) => mark.directory.clone(),
                None => mark_new(path, &node, false)?,
            };
            wanted.push(Place { id, path: path.clone() });
        }
        let is_same = wanted.len() == self.layout.places.len()
            && wanted.iter().zip(&self.layout.places).all(|(new, old)| new.id == old.id);
        Ok(self.taken(Vec::new(), (!is_same).then_some(wanted)))
    }

    fn taken(self, broken: Vec<Option<String>>, wanted: Option<Vec<Place>>) -> DataDirectories {
        let count = self.layout.places.len();
        let broken = if broken.is_empty() { vec![None; count] } else { broken };
        let found = self.named.into_iter().filter_map(|one| one.found.ok());
        let locks = found.map(|found| found.lock).collect();
        let (layout, node, left) = (self.layout, self.node, Vec::new());
        DataDirectories { layout, broken, wanted, left, node, _locks: locks }
    }
}

/// Each shard keeps its data in one directory.
fn check_count(directories: usize, shards: u16) -> Result<(), BootFailed> {
    if directories == 0 {
        return Err(BootFailed("no data directory is named: give --data-dir".into()));
    }
    if directories <= usize::from(shards) {
        return Ok(());
    }
    Err(BootFailed(format!(
        "{directories} data directories are too many for {shards} shards, each of which keeps its \
         data in one: name fewer, or run more with --shards {directories}"
    )))
}

/// Takes directories that are no node's yet.
fn take_new(named: Vec<Named>, shards: u16) -> Result<DataDirectories, BootFailed> {
    let is_several = named.len() > 1;
    if let Some((path, why)) =
        named.iter().find_map(|one| Some((&one.path, one.found.as_ref().err()?)))
    {
        let path = path.display();
        return Err(if is_several {
            BootFailed(format!(
                "{why}; no other one of the data directories named holds {NODE_FILE}, so this may \
                 be the node's first, without which it cannot start: mend {path}, or name the \
                 first one as well"
            ))
        } else {
            why.clone()
        });
    }
    let found = || named.iter().filter_map(|one| Some((&one.path, one.found.as_ref().ok()?)));
    if let Some((path, _)) = found().find(|(_, found)| found.has_cores() && found.mark.is_none()) {
        let path = path.display();
        return Err(BootFailed(format!(
            "{path} holds journals but no {NODE_FILE}: restore that file"
        )));
    }
    // A first start may have been cut short before anything was stored.
    let first = found().next().and_then(|(_, found)| found.mark.as_ref());
    let node = first.filter(|mark| mark.is_first).map(|mark| &mark.node);
    let is_part = |found: &Found| {
        found.has_cores() || found.mark.as_ref().is_some_and(|mark| Some(&mark.node) != node)
    };
    if let Some((path, _)) = found().find(|(_, found)| is_part(found)) {
        let path = path.display();
        return Err(BootFailed(format!(
            "{path} belongs to a node whose first data directory, the one with {NODE_FILE}, is not \
             among those named: mount it or name it as well"
        )));
    }
    let node = node.cloned().map_or_else(new_id, Ok)?;
    let mut places = Vec::new();
    for (path, found) in found() {
        let id = match &found.mark {
            Some(mark) => mark.directory.clone(),
            None if is_several => mark_new(path, &node, places.is_empty())?,
            None => String::new(),
        };
        places.push(Place { id, path: path.clone() });
    }
    let broken = vec![None; places.len()];
    let layout = Layout::new(shards, places);
    write_node(&layout)?;
    let locks = named.into_iter().filter_map(|one| Some(one.found.ok()?.lock)).collect();
    let left = Vec::new();
    Ok(DataDirectories { layout, broken, wanted: None, left, node, _locks: locks })
}

/// Looks into every directory. One that is in use or named twice ends it, others may be unusable.
fn look_at_all(paths: &[PathBuf]) -> Result<Vec<Named>, BootFailed> {
    let mut named: Vec<Named> = Vec::new();
    for given in paths {
        let absolute = std::path::absolute(given).unwrap_or_else(|_| given.clone());
        let is_there = fs::create_dir_all(&absolute)
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
        let found = match is_there.map(|path| look_at(&path)) {
            Ok(Err(Unusable { why, is_final: true })) => return Err(why),
            Ok(Err(Unusable { why, .. })) | Err(why) => Err(why),
            Ok(Ok(found)) => Ok(found),
        };
        named.push(Named { path, found });
    }
    Ok(named)
}

/// Why a directory is not used.
struct Unusable {
    why: BootFailed,
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

fn look_at(path: &Path) -> Result<Found, Unusable> {
    let lock = lock(path)?;
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

impl Mark {
    fn read(text: &str, directory: &Path) -> Result<Mark, BootFailed> {
        let file = directory.join(MARK_FILE);
        let mark: Mark = parse(text, &file)?;
        check_format(mark.format, FORMAT, &file)?;
        Ok(mark)
    }
}

fn no_single_first(named: &[Named], firsts: &[usize]) -> BootFailed {
    let paths: Vec<String> = firsts
        .iter()
        .filter_map(|at| named.get(*at))
        .map(|one| one.path.display().to_string())
        .collect();
    if paths.is_empty() {
        let words = |one: &Named| one.found.as_ref().err().map(|why| why.0.clone());
        let none = || {
            let first = named.first().map(|one| one.path.join(NODE_FILE)).unwrap_or_default();
            format!("{} is not there: name the node's first data directory", first.display())
        };
        return BootFailed(named.iter().find_map(words).unwrap_or_else(none));
    }
    BootFailed(format!(
        "{} are the first data directories of different nodes: name those of one node only",
        paths.join(" and ")
    ))
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

fn lock(path: &Path) -> Result<File, Unusable> {
    let failed = |error: io::Error| Unusable::by_system("lock the data directory", path, &error);
    let opened =
        OpenOptions::new().create(true).truncate(false).write(true).open(path.join("lock"));
    let lock = opened.map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(Unusable::finally(BootFailed(format!(
            "the data directory {} belongs to a running Corelog: stop it or choose another \
             --data-dir",
            path.display()
        )))),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn write_node(layout: &Layout) -> Result<(), BootFailed> {
    let directory = layout.first();
    let failed = |error| refused_by_system("write to the data directory", directory, &error);
    let text = layout.text().map_err(failed)?;
    write_whole(directory, [NEW_NODE_FILE, NODE_FILE], &text).map_err(failed)
}

/// Marks a directory as one of `node`; returns the id that it is given.
fn mark_new(directory: &Path, node: &str, is_first: bool) -> Result<String, BootFailed> {
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
fn new_id() -> Result<String, BootFailed> {
    let source = Path::new("/dev/urandom");
    let mut bytes = [0; 16];
    File::open(source)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| refused_by_system("read", source, &error))?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Ground(tempfile::TempDir);

    impl Ground {
        fn new() -> Ground {
            Ground(tempfile::tempdir().expect("a temporary folder"))
        }

        fn paths(&self, names: &[&str]) -> Vec<PathBuf> {
            names.iter().map(|name| self.0.path().join(name)).collect()
        }

        fn take(&self, names: &[&str]) -> Result<DataDirectories, BootFailed> {
            DataDirectories::take(&self.paths(names), 3)
        }

        fn refused(&self, names: &[&str], words: &str) {
            let why = self.take(names).err().map(|why| why.0).unwrap_or_default();
            assert!(why.contains(words), "{names:?}: {why}");
        }

        /// The directories that are used, by name, in the order of the layout; a broken one in
        /// brackets.
        fn used(&self, names: &[&str]) -> Vec<String> {
            let taken = self.take(names).unwrap_or_else(|why| panic!("{names:?}: {why}"));
            let name = |place: &Place| {
                place.path.file_name().expect("a name").to_string_lossy().into_owned()
            };
            let places = taken.layout().places.iter().zip(taken.broken());
            let word = |(place, why): (&Place, &Option<String>)| match why {
                None => name(place),
                Some(_) => format!("({})", name(place)),
            };
            places.map(word).collect()
        }

        fn rename(&self, from: &str, to: &str) {
            let [from, to] = [from, to].map(|name| self.0.path().join(name));
            fs::rename(from, to).expect("renamed");
        }
    }

    #[test]
    fn a_directory_keeps_its_shards_and_has_one_owner() {
        let ground = Ground::new();
        let first = ground.take(&["data"]).expect("new");
        ground.refused(&["data"], "--data-dir");
        drop(first);
        let again = DataDirectories::take(&ground.paths(&["data"]), 9).expect("free again");
        let layout = again.layout();
        assert_eq!((layout.shards, layout.generation, layout.places.len()), (3, 0, 1));
        assert!(again.wanted().is_none());
        let text = fs::read_to_string(layout.first().join(NODE_FILE)).expect("text");
        assert!(text.starts_with("format = 1\nshards = 3\n"), "as older programs know it");
    }

    #[test]
    fn several_directories_are_known_in_any_order_and_anywhere() {
        let ground = Ground::new();
        ground.refused(&["a", "b", "c", "d"], "4 data directories are too many for 3 shards");
        assert_eq!(ground.used(&["a", "b", "c"]), ["a", "b", "c"]);
        assert_eq!(ground.used(&["c", "a", "b"]), ["a", "b", "c"]);
        ground.rename("b", "d");
        assert_eq!(ground.used(&["a", "c", "d"]), ["a", "d", "c"]);
        // The new place is noted.
        let found = DataDirectories::take_existing(&ground.paths(&["a"])).expect("all there");
        assert_eq!(found.layout().places[1].path, ground.0.path().join("d"));
        drop(found);
        ground.refused(&["a", "a", "c"], "named twice");
        drop(ground.take(&["x", "y"]).expect("another node"));
        ground.refused(&["a", "y", "c"], "belongs to another node");
        ground.refused(&["a", "x", "c"], "different nodes");
        ground.refused(&["d", "c"], "is not among those named");
    }

    #[test]
    fn one_that_is_missing_is_not_taken_for_an_empty_one() {
        let ground = Ground::new();
        assert_eq!(ground.used(&["a", "b"]), ["a", "b"]);
        ground.rename("b", "away");
        assert_eq!(ground.used(&["a", "b"]), ["a", "(b)"], "an empty folder is in its place");
        ground.refused(&["a"], "is neither named nor there");
        ground.refused(&["a", "new"], "is neither named nor there");
        ground.refused(&["a", "b", "new"], "directories are added while all others are there");
        fs::remove_dir_all(ground.0.path().join("b")).expect("removed");
        ground.rename("away", "b");
        assert_eq!(ground.used(&["a", "b"]), ["a", "b"]);
        ground.rename("a", "away");
        ground.refused(&["a", "b"], "is not among those named");
    }

    #[test]
    fn an_empty_one_takes_the_place_of_one_that_is_lost_if_it_is_told_to() {
        let ground = Ground::new();
        assert_eq!(ground.used(&["a", "b"]), ["a", "b"]);
        let replace = |names: &[&str], empty: &str| {
            let empty = ground.0.path().join(empty);
            DataDirectories::replace_lost(&ground.paths(names), &empty)
        };
        assert!(replace(&["a", "b"], "b").is_err(), "nothing is lost");
        fs::rename(ground.0.path().join("b"), ground.0.path().join("lost")).expect("renamed");
        assert!(replace(&["a", "lost"], "lost").is_err(), "it is there");
        fs::create_dir_all(ground.0.path().join("c/core-7")).expect("made");
        assert!(replace(&["a", "c"], "c").is_err(), "it is not empty");
        drop(replace(&["a", "b"], "b").expect("a trial"));
        assert_eq!(ground.used(&["a", "b"]), ["a", "(b)"], "which changes nothing");
        let (taken, lost) = replace(&["a", "b"], "b").expect("it is lost");
        assert_eq!(lost, LostPart::Directory(1));
        taken.begin_anew(lost).expect("written");
        assert_eq!(ground.used(&["a", "b"]), ["a", "b"]);
        fs::create_dir(ground.0.path().join("lost/core-1")).expect("made");
        ground.refused(&["a", "lost"], "was a data directory of this node");
    }

    #[test]
    fn a_cores_folder_that_is_gone_is_not_taken_for_a_new_one() {
        let ground = Ground::new();
        let mut taken = ground.take(&["a", "b"]).expect("new");
        drop(ground.take(&["c"]).expect("one of its own"));
        assert_eq!(taken.layout().cores_in(0).collect::<Vec<_>>(), [0, 2]);
        taken.make_folders().expect("made");
        drop(taken);
        assert_eq!(ground.used(&["a", "b"]), ["a", "b"]);
        let folder = |name: &str| ground.0.path().join(name);
        let replace =
            |name: &str| DataDirectories::replace_lost(&ground.paths(&["a", "b"]), &folder(name));
        assert!(replace("b/core-1").is_err(), "it is there");
        // One that was emptied is no better than one that is gone.
        fs::remove_file(folder("b/core-1/journal.range")).expect("removed");
        assert_eq!(ground.used(&["a", "b"]), ["a", "(b)"]);
        ground.rename("b/core-1", "away");
        assert_eq!(ground.used(&["a", "b"]), ["a", "(b)"]);
        let (taken, lost) = replace("b/core-1").expect("it is lost");
        assert_eq!(lost, LostPart::Core(1));
        taken.begin_anew(lost).expect("made");
        assert_eq!(ground.used(&["a", "b"]), ["a", "b"]);
        ground.rename("a/core-2", "away-2");
        ground.refused(&["a", "b"], "--replace-lost");
        ground.rename("away-2", "a/core-2");
        ground.rename("a/core-0", "away-0");
        ground.refused(&["a", "b"], "restore it from a copy");
        assert!(replace("a/core-0").is_err(), "topics and settings are not given up");
        ground.rename("away-0", "a/core-0");
        assert_eq!(ground.used(&["a", "b"]), ["a", "b"]);
    }

    #[test]
    fn directories_come_and_go() {
        let ground = Ground::new();
        let wanted = |names: &[&str]| {
            let taken = ground.take(names).unwrap_or_else(|why| panic!("{names:?}: {why}"));
            taken.wanted().map(<[Place]>::to_vec)
        };
        assert_eq!(wanted(&["a"]), None);
        let two = wanted(&["a", "b"]).expect("one more");
        // Before anything has moved, and after that.
        assert_eq!(wanted(&["a", "b"]), Some(two.clone()), "with the same ids");
        assert_eq!(wanted(&["a"]), None, "they may be left where they are");
        let moved = Layout::new(3, two.clone()).followed_by(3, two.clone()).expect("a number");
        write_node(&Layout { has_folders: false, ..moved }).expect("written");
        assert_eq!(wanted(&["b", "a"]), None);
        assert_eq!(wanted(&["a"]), Some(two[..1].to_vec()), "one less, which is there");
        let other = wanted(&["a", "c"]).expect("another one");
        assert_eq!((&other[0], other.len()), (&two[0], 2));
    }

    #[test]
    fn a_first_start_that_was_cut_short_is_made_again() {
        let ground = Ground::new();
        assert_eq!(ground.used(&["a", "b"]), ["a", "b"]);
        let file = ground.0.path().join("a").join(NODE_FILE);
        fs::remove_file(&file).expect("removed");
        assert_eq!(ground.used(&["a", "b"]), ["a", "b"], "nothing was stored");
        fs::remove_file(&file).expect("removed");
        fs::create_dir(ground.0.path().join("b/core-1")).expect("made");
        ground.refused(&["a", "b"], "is not among those named");
    }
}
