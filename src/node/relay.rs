//! Laying the data directory out anew, for another number of cores.
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
use std::path::{Path, PathBuf};

use super::BootFailed;
use super::directory::{Layout, NEW_NODE_FILE, NODE_FILE};
use crate::base::buffer::Arena;
use crate::config::BrokerConfig;
use crate::io::{BLOCK_BYTES, Durability, File, Io, OpenHow};
use crate::journal;
use crate::partition::{Moved, Resharding, reshard};

/// What is laid out anew, and how.
pub struct Relay<'a> {
    pub path: &'a Path,
    pub from: Layout,
    pub shards: u16,
    pub config: &'a BrokerConfig,
    pub memory_bytes: usize,
    /// A core's journal, in a layout.
    pub journal: &'a dyn Fn(Layout, u16) -> journal::Settings,
}

/// Moves all partitions to their owners among `shards` cores.
pub async fn relay<I: Io>(io: &I, relay: Relay<'_>) -> Result<(Layout, Moved), BootFailed> {
    let Relay { path, from, shards, config, memory_bytes, journal } = relay;
    let to = from.followed_by(shards)?;
    let failed = |why: String| {
        BootFailed(format!(
            "{} cannot be laid out for {shards} shards: {why}; mend that, or start with --shards \
             {} as before",
            path.display(),
            from.shards
        ))
    };
    for name in io.list(path).map_err(|error| failed(error.to_string()))? {
        if from.is_stale(&name) {
            let removed = remove_tree(io, path.join(&name)).await;
            removed.map_err(|error| failed(format!("{name} is left over: {error}")))?;
        }
    }
    let arena = Arena::new(memory_bytes.saturating_mul(usize::from(from.shards.max(shards))) / 2);
    let settings = |layout: Layout| (0..layout.shards).map(|core| journal(layout, core)).collect();
    let folders = Resharding { from: settings(from), to: settings(to) };
    let moved = reshard(io, &arena, config, folders).await;
    let moved = moved.map_err(failed)?;
    let named = name(io, path, to).await;
    named.map_err(|error| failed(format!("{NODE_FILE} cannot be written: {error}")))?;
    Ok((to, moved))
}

/// Has `node.toml` name a layout, durably.
pub async fn name<I: Io>(io: &I, path: &Path, layout: Layout) -> io::Result<()> {
    let text = layout.text()?;
    let new = path.join(NEW_NODE_FILE);
    let file = match io.open(&new, OpenHow::CreateNew).await {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            io.open(&new, OpenHow::Existing).await?
        }
        outcome => outcome?,
    };
    let refused = || io::Error::from(io::ErrorKind::OutOfMemory);
    let mut block = Arena::new(BLOCK_BYTES).take(BLOCK_BYTES).ok_or_else(refused)?;
    block.fill(0);
    let place = block.get_mut(..text.len()).ok_or_else(refused)?;
    place.copy_from_slice(text.as_bytes());
    file.write_at(0, block.freeze(), Durability::Written).await?;
    file.truncate(text.len() as u64).await?;
    file.sync().await?;
    io.rename(&new, &path.join(NODE_FILE)).await
}

/// Removes what a change of the layout has left.
pub async fn remove_stale<I: Io>(io: I, folders: Vec<PathBuf>) {
    for folder in folders {
        if let Err(error) = remove_tree(&io, folder.clone()).await {
            tracing::warn!(
                "{} is left over and cannot be removed: {error}; the next start tries again",
                folder.display()
            );
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
