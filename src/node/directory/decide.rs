//! What is to become of a node with the directories that were named: which of its own they are,
//! which are new to it, and whether it can start.
//!
//! Invariants Z1 to Z3 of the directories are kept here.

use std::path::Path;

use super::super::BootFailed;
use super::super::layout::{Layout, NODE_FILE, Place};
use super::DataDirectories;
use super::look::{Found, How, Named, look_at};
use super::mark::{MARK_FILE, mark_new, new_id, write_node};
use crate::journal;

/// Each shard keeps its data in one directory.
pub(super) fn check_count(directories: usize, shards: u16) -> Result<(), BootFailed> {
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
pub(super) fn take_new(named: Vec<Named>, shards: u16) -> Result<DataDirectories, BootFailed> {
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
    let locks = named.into_iter().filter_map(|one| one.found.ok()?.lock).collect();
    let left = Vec::new();
    Ok(DataDirectories { layout, broken, wanted: None, left, node, _locks: locks })
}

/// A node that was here before, and what is named of it now.
pub(super) struct Taking {
    pub named: Vec<Named>,
    /// As `node.toml` has it.
    pub recorded: Layout,
    /// With the directories where they are.
    pub layout: Layout,
    pub node: String,
    /// By place of the layout, which of the named directories it is.
    known: Vec<Option<usize>>,
}

impl Taking {
    /// Finds the node's directories among those named.
    pub(super) fn of(named: Vec<Named>) -> Result<Taking, BootFailed> {
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

    pub(super) fn missing_numbers(&self) -> Vec<usize> {
        let known = self.known.iter().enumerate();
        known.filter(|(_, known)| known.is_none()).map(|(number, _)| number).collect()
    }

    pub(super) fn missing(&self) -> Vec<Place> {
        let places = self.layout.places.iter().zip(&self.known);
        places.filter(|(_, known)| known.is_none()).map(|(place, _)| place.clone()).collect()
    }

    /// The core whose lost folder `path` is.
    pub(super) fn lost_core(&self, path: &Path) -> Option<u16> {
        let absolute = std::path::absolute(path).ok()?;
        let path = absolute.parent()?.canonicalize().ok()?.join(absolute.file_name()?);
        let is_lost = |core: &u16| {
            let folder = self.layout.core(*core);
            folder == path && journal::is_prepared(&folder).is_ok_and(|is_there| !is_there)
        };
        (0..self.layout.shards).filter(|_| self.layout.has_folders).find(is_lost)
    }

    /// Looks for directories that are not named where they were last.
    pub(super) fn find_elsewhere(&mut self, how: How) {
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
            if let Ok(found) = look_at(&place.path, how)
                && is_it(&found)
            {
                *known = Some(self.named.len());
                self.named.push(Named { path: place.path.clone(), found: Ok(found) });
            }
        }
    }

    /// What becomes of the node with the directories that were named.
    pub(super) fn decide(mut self) -> Result<DataDirectories, BootFailed> {
        let named = self.named.len();
        if self.missing().is_empty() {
            return self.add(named);
        }
        let broken = self.stand_ins();
        if broken.len() == self.missing().len() {
            return self.start_without(broken);
        }
        // Those that are not named are to be left, for which they must be there.
        self.find_elsewhere(How::Existing);
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

    pub(super) fn taken(
        self,
        broken: Vec<Option<String>>,
        wanted: Option<Vec<Place>>,
    ) -> DataDirectories {
        let count = self.layout.places.len();
        let broken = if broken.is_empty() { vec![None; count] } else { broken };
        let found = self.named.into_iter().filter_map(|one| one.found.ok());
        let locks = found.filter_map(|found| found.lock).collect();
        let (layout, node, left) = (self.layout, self.node, Vec::new());
        DataDirectories { layout, broken, wanted, left, node, _locks: locks }
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
