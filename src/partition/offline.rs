//! A core whose data directory has failed: it takes nothing and serves nothing of what it stores,
//! while the cores on other directories go on.
//!
//!     a write or flush fails ─► the journal is poisoned ─┐         ┌► journals of its other cores
//!     a read fails, and so does a write that tries it ───┴► failed ┴► waiting fetches: an answer
//!
//! Lives on: every core, one task, which sleeps until then, and one that looks now and then.
//!
//! Invariants
//!   X1  A failed directory's journals are all poisoned: what holds for one whose write has failed
//!       holds for every core of the directory, whoever noticed it.
//!   X2  One bad place is not a bad disk: a read that fails takes a directory out of use only if
//!       nothing can be written to it either.
//!   X3  A disk that does not answer is as bad as one that fails, after a time: a directory in
//!       which the journal, or a reader of a backlog, waits longer is taken out of use. Where there
//!       is no other, that is told, and what waits goes on waiting.
//!   X4  Appenders that wait while the journal has nothing to write wait for whoever makes room. A
//!       drain's or a compaction's writes may take long, so a trial tells whether the disk answers.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use super::Owner;
use crate::base::buffer::Arena;
use crate::base::time::Instant;
use crate::io::{BLOCK_BYTES, Durability, File, Io, OpenHow};
use crate::wire::error::ErrorCode;

/// What is written to see whether anything can be, in a core's folder.
const TRIAL: &str = "trial";

/// How often it is looked whether the disk answers, in the time that it is given.
const LOOKS: u32 = 8;

/// A trial that may be given up while it waits.
struct Trial<'a>(&'a Cell<Option<Instant>>);

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

/// Waits for the failure of the core's directory.
pub(super) async fn run<I: Io>(owner: Rc<Owner<I>>) {
    let directories = owner.shared.directories();
    let core = owner.core();
    let why = poll_fn(|context| directories.poll_failure(core, context.waker())).await;
    owner.journal.fail(why);
    for log in owner.logs.borrow().values() {
        log.borrow_mut().close();
    }
}

/// Looks whether the disk answers (X3).
pub(super) async fn watch<I: Io>(owner: Rc<Owner<I>>) {
    let limit = owner.shared.config().int("storage.hang.timeout.ms");
    let limit = Duration::from_millis(u64::try_from(limit).unwrap_or(u64::MAX));
    let is_alone = owner.shared.directories().count() == 1;
    let (mut waits, mut looks) = (None, 0);
    // A journal that has failed, or is being closed, is waited for as well.
    while !owner.journal.has_ended() {
        owner.io.sleep(limit / LOOKS).await;
        let since = owner.waits_since();
        if since.is_none() && owner.journal.has_appenders_waiting() {
            owner.try_disk();
        }
        if since != waits && looks >= LOOKS && is_alone {
            tracing::info!("the disk of {} answers again", owner.journal.directory().display());
        }
        // Each look counts once: a node that stood still itself has seen nothing meanwhile.
        looks = if since.is_some() && since == waits { looks + 1 } else { 0 };
        waits = since;
        if looks != LOOKS {
            continue;
        }
        let why = format!("its disk has not answered for {limit:?}");
        if is_alone {
            tracing::error!(
                "nothing goes on in {}: {why}; what was written waits for it and is not \
                 acknowledged. See to the disk; the node goes on by itself if it answers",
                owner.journal.directory().display()
            );
        } else {
            owner.give_up_directory(&why);
            owner.journal.abandon(&why);
        }
    }
}

impl<I: Io> Owner<I> {
    /// Since when the disk has not answered.
    fn waits_since(&self) -> Option<Instant> {
        let read = self.read_pace.waits_since();
        let others = read.into_iter().chain(self.trial_since.get());
        self.journal.waits_since().into_iter().chain(others).min()
    }

    /// Begins a trial, whose end nobody waits for (X4).
    fn try_disk(self: &Rc<Self>) {
        let owner = self.clone();
        // What fails is found out by those who have something to write.
        self.io.spawn("trial", async move { drop(owner.try_write().await) });
    }

    /// Whether the core's directory has failed.
    pub fn is_offline(&self) -> bool {
        self.shared.directories().is_offline(self.core())
    }

    /// What a partition of this core is answered with while its directory has failed.
    pub(super) fn check_online(&self) -> Result<(), ErrorCode> {
        if self.is_offline() { Err(ErrorCode::KAFKA_STORAGE_ERROR) } else { Ok(()) }
    }

    /// Why nothing is written to the core's partitions, if its directory has failed.
    pub(super) fn offline_in_words(&self) -> Option<String> {
        let directories = self.shared.directories();
        let why = directories.failure(self.core())?;
        let (path, _) = directories.iter().nth(directories.of(self.core()))?;
        Some(format!(
            "the data directory {} has failed ({why}): the partition is offline until the disk is \
             mended and the node started again",
            path.display()
        ))
    }

    /// Takes the core's directory out of use, if the node has others.
    pub(super) fn give_up_directory(&self, why: &str) {
        self.shared.directories().give_up(self.core(), why);
    }

    /// Looks after a failed read whether the directory can be used at all (X2).
    pub(super) async fn doubt_directory(&self, error: &io::Error) {
        let is_of_device = error.raw_os_error().is_some() || !is_own(error);
        let is_alone = self.shared.directories().count() == 1;
        if is_alone || !is_of_device || self.is_offline() {
            return;
        }
        match self.try_write().await {
            Err(failed) if !is_passing(&failed) => {
                self.give_up_directory(&format!("a read failed ({error}), and a write ({failed})"));
            }
            _ => {}
        }
    }

    /// Writes something and removes it again, unless somebody does that already.
    async fn try_write(&self) -> io::Result<()> {
        if self.trial_since.get().is_some() {
            return Ok(());
        }
        self.trial_since.set(Some(self.io.now()));
        let _under_way = Trial(&self.trial_since);
        self.write_trial(self.journal.directory().join(TRIAL)).await
    }

    async fn write_trial(&self, path: PathBuf) -> io::Result<()> {
        let file = match self.io.open(&path, OpenHow::CreateNew).await {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.io.open(&path, OpenHow::Existing).await?
            }
            outcome => outcome?,
        };
        let block = Arena::new(BLOCK_BYTES).take(BLOCK_BYTES);
        let mut block = block.ok_or(io::ErrorKind::OutOfMemory)?;
        block.fill(0);
        file.write_at(0, block.freeze(), Durability::Flushed).await?;
        self.io.remove(&path).await
    }
}

/// Whether it is this program that has found something wrong. The device's errors may have been put
/// into words on the way, which hides their number, but not their kind: of a drain that could not
/// open a segment on a dead directory, for one, after which records were refused but the partitions
/// had a leader all the same.
fn is_own(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, Other, OutOfMemory, UnexpectedEof};
    matches!(error.kind(), InvalidData | InvalidInput | Other | OutOfMemory | UnexpectedEof)
}

/// Whether a failed write says nothing of the disk's health.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{OutOfMemory, QuotaExceeded, StorageFull};
    matches!(error.kind(), OutOfMemory | StorageFull | QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_device_is_known_in_words_too() {
        let device = io::Error::from_raw_os_error(5);
        let told = io::Error::new(device.kind(), format!("cannot open x.log: {device}"));
        assert!(told.raw_os_error().is_none() && !is_own(&told));
        assert!(!is_own(&io::ErrorKind::NotFound.into()));
        assert!(is_own(&io::Error::new(io::ErrorKind::InvalidData, "a batch is damaged")));
        assert!(is_own(&io::Error::other("the node is stopping")));
    }
}
