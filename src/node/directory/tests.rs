//! Directories that come, go, and are not there.

use std::fs;
use std::path::PathBuf;

use super::super::BootFailed;
use super::super::layout::{Layout, NODE_FILE, Place};
use super::mark::write_node;
use super::{DataDirectories, LostPart};

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
        let name =
            |place: &Place| place.path.file_name().expect("a name").to_string_lossy().into_owned();
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
    let found = DataDirectories::take_existing(&ground.paths(&["a"]), false).expect("all there");
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
    let try_to = |names: &[&str], empty: &str, is_dry: bool| {
        let empty = ground.0.path().join(empty);
        DataDirectories::replace_lost(&ground.paths(names), &empty, is_dry)
    };
    let replace = |names: &[&str], empty: &str| try_to(names, empty, false);
    assert!(replace(&["a", "b"], "b").is_err(), "nothing is lost");
    fs::rename(ground.0.path().join("b"), ground.0.path().join("lost")).expect("renamed");
    assert!(replace(&["a", "lost"], "lost").is_err(), "it is there");
    fs::create_dir_all(ground.0.path().join("c/core-7")).expect("made");
    assert!(replace(&["a", "c"], "c").is_err(), "it is not empty");
    let lock = ground.0.path().join("a/lock");
    fs::remove_file(&lock).expect("removed");
    let (taken, lost) = try_to(&["a", "b", "elsewhere"], "b", true).expect("a trial");
    assert_eq!(lost, LostPart::Directory(1));
    for place in [&lock, &ground.0.path().join("b"), &ground.0.path().join("elsewhere")] {
        assert!(!place.exists(), "a trial makes nothing: {}", place.display());
    }
    drop(taken);
    assert!(replace(&["a", "b", "elsewhere"], "a").is_err(), "it is there");
    assert!(!ground.0.path().join("elsewhere").exists(), "it may be the place of a disk");
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
    let replace = |name: &str| {
        DataDirectories::replace_lost(&ground.paths(&["a", "b"]), &folder(name), false)
    };
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
