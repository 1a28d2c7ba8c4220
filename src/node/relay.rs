//! Laying the data directories out anew, for another number of cores, or in other directories.
//!
//!     remove leftovers ─► write the new folders, flushed ─► node.toml names them ─► cores start
//!                                                                └─► the old folders go, meanwhile
//!
//! Lives on: one core, before the node's cores run; the removal on core 0, beside everything.
//!
//! Invariants
//!   Y1  `node.toml` names a whole and flushed set of folders at every moment: it is replaced at
//!       once, and nothing of a set is removed while it is named.

use std::io;
use std::path::PathBuf;

use super::BootFailed;
use super::layout::{Layout, NEW_NODE_FILE, NODE_FILE};
use crate::base::buffer::Arena;
use crate::config::BrokerConfig;
use crate::io::{BLOCK_BYTES, Durability, File, Io, OpenHow};
use crate::journal;
use crate::partition::{Moved, Resharding, reshard};

/// What is laid out anew, and how.
pub struct Relay<'a> {
    pub from: &'a Layout,
    /// The one that follows it.
    pub to: &'a Layout,
    pub config: &'a BrokerConfig,
    pub memory_bytes: usize,
    /// A core's journal, in a layout.
    pub journal: &'a dyn Fn(&Layout, u16) -> journal::Settings,
}

/// Moves all partitions to their owners in another layout.
pub async fn relay<I: Io>(io: &I, relay: Relay<'_>) -> Result<Moved, BootFailed> {
    let Relay { from, to, config, memory_bytes, journal } = relay;
    let failed = |why: String| {
        BootFailed(format!(
            "the node cannot be laid out for {}: {why}; mend that, or start with --shards {} and \
             the data directories as before",
            to.in_words(),
            from.shards
        ))
    };
    for place in from.places.iter().chain(&to.places) {
        for name in io.list(&place.path).map_err(|error| failed(error.to_string()))? {
            if from.is_stale(&place.path, &name) {
                let removed = remove_tree(io, place.path.join(&name)).await;
                removed.map_err(|error| failed(format!("{name} is left over: {error}")))?;
            }
        }
    }
    let shards = usize::from(from.shards.max(to.shards));
    let arena = Arena::new(memory_bytes.saturating_mul(shards) / 2);
    let settings = |layout: &Layout| (0..layout.shards).map(|core| journal(layout, core)).collect();
    let folders = Resharding { from: settings(from), to: settings(to) };
    let moved = reshard(io, &arena, config, folders).await;
    let moved = moved.map_err(failed)?;
    let named = name(io, to).await;
    named.map_err(|error| failed(format!("{NODE_FILE} cannot be written: {error}")))?;
    Ok(moved)
}

/// Has `node.toml` name a layout, durably.
pub async fn name<I: Io>(io: &I, layout: &Layout) -> io::Result<()> {
    let (path, text) = (layout.first(), layout.text()?);
    let new = path.join(NEW_NODE_FILE);
    let file = match io.open(&new, OpenHow::CreateNew).await {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            io.open(&new, OpenHow::Existing).await?
        }
        outcome => outcome?,
    };
    let refused = || io::Error::from(io::ErrorKind::OutOfMemory);
    let bytes = text.len().next_multiple_of(BLOCK_BYTES);
    let mut block = Arena::new(bytes).take(bytes).ok_or_else(refused)?;
    block.fill(0);
    let place = block.get_mut(..text.len()).ok_or_else(refused)?;
    place.copy_from_slice(text.as_bytes());
    file.write_at(0, block.freeze(), Durability::Written).await?;
    file.truncate(text.len() as u64).await?;
    file.sync().await?;
    io.rename(&new, &path.join(NODE_FILE)).await
}

/// Removes what a change of the layout has left: folders, and behind them the files that say whose
/// they are. These stay with what cannot be removed, which nobody takes for his own then.
pub async fn remove_stale<I: Io>(io: I, left: Vec<PathBuf>) {
    let mut kept: Vec<PathBuf> = Vec::new();
    for path in left {
        let parent = path.parent().unwrap_or(&path).to_owned();
        let removed = match io.list(&path) {
            Ok(_) => remove_tree(&io, path.clone()).await,
            Err(_) if kept.contains(&parent) => continue,
            Err(_) => tolerate_absent(io.remove(&path).await),
        };
        if let Err(error) = removed {
            tracing::warn!(
                "{} is left over and cannot be removed: {error}; nobody uses it, so remove it by \
                 hand",
                path.display()
            );
            kept.push(parent);
        }
    }
}

/// Removes a folder with everything in it.
async fn remove_tree<I: Io>(io: &I, folder: PathBuf) -> io::Result<()> {
    // Deepest last.
    let mut folders = vec![folder];
    let mut next = 0;
    while let Some(folder) = folders.get(next).cloned() {
        next += 1;
        for name in io.list(&folder)? {
            let path = folder.join(name);
            if io.list(&path).is_ok() {
                folders.push(path);
            } else {
                tolerate_absent(io.remove(&path).await)?;
            }
        }
        io.cede().await;
    }
    while let Some(folder) = folders.pop() {
        tolerate_absent(io.remove_directory(&folder).await)?;
    }
    Ok(())
}

fn tolerate_absent(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::io::sim::{Fault, World};

    /// The mark went although a core's folder did not: what was left was nobody's, and a node that
    /// was to use the directory refused it.
    #[test]
    fn a_left_directory_stays_marked_until_all_else_is_gone() {
        let world = World::new(1);
        let node = world.node();
        let io = node.core(0);
        let (folder, mark) = (PathBuf::from("/left/core-1.1"), PathBuf::from("/left/mark"));
        let other = PathBuf::from("/other/mark");
        for path in [&folder, Path::new("/other")] {
            io.create_directory(path).expect("creatable");
        }
        let left = vec![folder.clone(), other.clone(), mark.clone()];
        let names = |path: &str| io.list(Path::new(path)).expect("it is there");
        world.block_on(async {
            for path in [&folder.join("journal-0"), &mark, &other] {
                drop(io.open(path, OpenHow::CreateNew).await.expect("creatable"));
            }
            node.disk().fail(Fault::Name, 0);
            remove_stale(io.clone(), left.clone()).await;
            assert_eq!(names("/left"), ["core-1.1", "mark"]);
            assert!(names("/other").is_empty(), "nothing is left beside it");
            remove_stale(io.clone(), left.clone()).await;
            assert!(names("/left").is_empty());
        });
    }
}
