//! One node's disk: names, files, and operations under way.
//!
//! An operation that was submitted goes on whether or not its future lives, as in a kernel; its
//! effect happens at once, when it completes. What a crash makes of one under way is up to chance.
//!
//! Invariants
//!   K1  An operation takes effect at most once: at its completion or at a crash.
//!   K2  The files' lengths together never grow beyond the space.
//!   K3  On a dead file system every operation fails; what a write leaves there is up to chance. On
//!       one that hangs none completes before it answers again.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::future::poll_fn;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::task::{Poll, Waker};

use bytes::Bytes;

use super::chance::Chance;
use super::image::{Fate, Inode, PAGE_BYTES};
use super::{Inner, Latencies};
use crate::base::buffer::AlignedBuffer;
use crate::io::{OpenHow, Space};

pub type SharedInode = Rc<RefCell<Inode>>;

/// What is asked of the disk.
pub enum Operation {
    Read { file: SharedInode, offset: u64, buffer: AlignedBuffer },
    Write { file: SharedInode, offset: u64, data: Bytes, flushed: bool },
    Sync { file: SharedInode, through: u64 },
    Allocate { file: SharedInode, length: u64 },
    Open { path: PathBuf, how: OpenHow },
    Rename { from: PathBuf, to: PathBuf },
    Link { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
    RemoveUnsynced { path: PathBuf },
    SyncDirectory { path: PathBuf },
    Truncate { file: SharedInode, length: u64 },
    MakeDirectory { path: PathBuf },
    RemoveDirectory { path: PathBuf },
}

/// What the disk answers.
pub enum Answer {
    Done,
    Read(AlignedBuffer),
    Opened(SharedInode),
}

/// Kinds of operations that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Read,
    Write,
    Sync,
    Allocate,
    /// Open, rename, link, remove and sync of a directory.
    Name,
}

/// How a node ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The machine loses power: writes that are not durable are lost, kept or torn.
    Power,
    /// The process is killed: what was completed stays, if not yet durable.
    Kill,
}

/// Where an operation's answer arrives.
#[derive(Default)]
pub struct Slot {
    answer: Option<io::Result<Answer>>,
    waker: Option<Waker>,
}

struct Underway {
    operation: Operation,
    slot: Rc<RefCell<Slot>>,
}

#[derive(Default)]
pub struct Disk {
    files: BTreeMap<PathBuf, SharedInode>,
    directories: BTreeSet<PathBuf>,
    /// Names since the last sync of their directories: what they meant at it, if they were there.
    unsynced: BTreeMap<PathBuf, Option<SharedInode>>,
    underway: BTreeMap<u64, Underway>,
    submitted: u64,
    /// No operation completes before.
    stalled_until: u64,
    /// Per kind, how many go well before one fails.
    faults: Vec<(Fault, u32)>,
    space: Option<u64>,
    /// File systems that have died, by their top folders.
    dead: BTreeSet<OsString>,
    /// Those that hang.
    hung: BTreeSet<OsString>,
    /// Says that it has flushed, and has not.
    lies: bool,
}

/// How often an operation looks whether its file system answers again, in nanoseconds.
const HUNG_PAUSE: u64 = 5_000_000;

/// Submits an operation and returns its answer.
pub async fn perform(
    inner: &Rc<Inner>,
    disk: &Rc<RefCell<Disk>>,
    operation: Operation,
) -> io::Result<Answer> {
    let slot = Rc::new(RefCell::new(Slot::default()));
    let (number, delay) = {
        let mut disk = disk.borrow_mut();
        let delay = disk.delay(&inner.chance, inner.agenda.now(), &inner.settings.disk, &operation);
        disk.submitted += 1;
        let number = disk.submitted;
        disk.underway.insert(number, Underway { operation, slot: slot.clone() });
        (number, delay)
    };
    let disk = disk.clone();
    inner.agenda.after(delay, move |inner| complete(inner, &disk, number));
    poll_fn(|context| {
        let mut slot = slot.borrow_mut();
        if let Some(answer) = slot.answer.take() {
            return Poll::Ready(answer);
        }
        slot.waker = Some(context.waker().clone());
        Poll::Pending
    })
    .await
}

fn complete(inner: &Rc<Inner>, disk: &Rc<RefCell<Disk>>, number: u64) {
    let (answer, slot) = {
        let same = disk.clone();
        let mut disk = disk.borrow_mut();
        let Some(underway) = disk.underway.get(&number) else { return };
        if disk.hung.contains(&underway.operation.file_system()) {
            inner.agenda.after(HUNG_PAUSE, move |inner| complete(inner, &same, number));
            return;
        }
        let Some(underway) = disk.underway.remove(&number) else { return };
        inner.note(underway.operation.trace());
        (disk.execute(underway.operation, &inner.chance), underway.slot)
    };
    inner.note(u64::from(answer.is_ok()));
    let waker = {
        let mut slot = slot.borrow_mut();
        slot.answer = Some(answer);
        slot.waker.take()
    };
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl Operation {
    fn kind(&self) -> Fault {
        match self {
            Operation::Read { .. } => Fault::Read,
            Operation::Write { .. } => Fault::Write,
            Operation::Sync { .. } => Fault::Sync,
            Operation::Allocate { .. } => Fault::Allocate,
            Operation::Truncate { .. } => Fault::Allocate,
            Operation::Open { .. }
            | Operation::Rename { .. }
            | Operation::Link { .. }
            | Operation::Remove { .. }
            | Operation::RemoveUnsynced { .. }
            | Operation::SyncDirectory { .. }
            | Operation::MakeDirectory { .. }
            | Operation::RemoveDirectory { .. } => Fault::Name,
        }
    }

    /// What the operation adds to the fingerprint.
    fn trace(&self) -> u64 {
        let name = |path: &Path| u64::from(crc32fast::hash(path.as_os_str().as_encoded_bytes()));
        match self {
            Operation::Read { offset, buffer, .. } => {
                *offset ^ (buffer.len() as u64).rotate_left(32)
            }
            Operation::Write { offset, data, .. } => {
                offset.rotate_left(32) ^ u64::from(crc32fast::hash(data))
            }
            Operation::Sync { through, .. } => *through,
            Operation::Allocate { length, .. } | Operation::Truncate { length, .. } => *length,
            Operation::Open { path, .. }
            | Operation::Remove { path }
            | Operation::RemoveUnsynced { path }
            | Operation::SyncDirectory { path }
            | Operation::MakeDirectory { path }
            | Operation::RemoveDirectory { path } => name(path),
            Operation::Rename { from, to } | Operation::Link { from, to } => {
                name(from).rotate_left(32) ^ name(to)
            }
        }
    }

    fn file_system(&self) -> OsString {
        match self {
            Operation::Read { file, .. }
            | Operation::Write { file, .. }
            | Operation::Sync { file, .. }
            | Operation::Allocate { file, .. }
            | Operation::Truncate { file, .. } => file.borrow().file_system.clone(),
            Operation::Open { path, .. }
            | Operation::Remove { path }
            | Operation::RemoveUnsynced { path }
            | Operation::SyncDirectory { path }
            | Operation::MakeDirectory { path }
            | Operation::RemoveDirectory { path }
            | Operation::Rename { from: path, .. }
            | Operation::Link { from: path, .. } => file_system(path),
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Operation::Read { buffer, .. } => buffer.len() as u64,
            Operation::Write { data, .. } => data.len() as u64,
            Operation::Allocate { file, length } => length.saturating_sub(file.borrow().length()),
            _ => 0,
        }
    }
}

impl Disk {
    fn delay(
        &mut self,
        chance: &Chance,
        now: u64,
        latencies: &Latencies,
        asked: &Operation,
    ) -> u64 {
        if chance.one_in(latencies.stall_one_in) {
            self.stalled_until = self.stalled_until.max(now + chance.between(latencies.stall));
        }
        let range =
            if chance.one_in(latencies.slow_one_in) { latencies.slow } else { latencies.usual };
        let wait = self.stalled_until.saturating_sub(now);
        wait + chance.between(range) + asked.bytes() / 2 // 2 GB/s
    }

    fn execute(&mut self, operation: Operation, chance: &Chance) -> io::Result<Answer> {
        if self.is_dead(&operation.file_system()) {
            return Err(self.die(operation, chance));
        }
        if self.fails(operation.kind()) {
            return Err(self.fail(operation, chance));
        }
        match operation {
            Operation::Read { file, offset, mut buffer } => {
                let file = file.borrow();
                let end = file.length().next_multiple_of(PAGE_BYTES);
                if offset.saturating_add(buffer.len() as u64) > end {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                file.read(offset, &mut buffer);
                Ok(Answer::Read(buffer))
            }
            Operation::Write { file, offset, data, flushed } => {
                self.claim(&file, offset.saturating_add(data.len() as u64))?;
                file.borrow_mut().write(offset, &data, flushed && !self.lies);
                Ok(Answer::Done)
            }
            Operation::Sync { file, through } => {
                if !self.lies {
                    file.borrow_mut().sync(through);
                }
                Ok(Answer::Done)
            }
            Operation::Allocate { file, length } => self.allocate(&file, length),
            Operation::Open { path, how } => self.open(path, how),
            Operation::Rename { from, to } => self.rename(&from, to),
            Operation::Link { from, to } => self.link(&from, to),
            Operation::Remove { path } => {
                self.remove(&path)?;
                self.sync_parent(&path);
                Ok(Answer::Done)
            }
            Operation::RemoveUnsynced { path } => self.remove(&path),
            Operation::SyncDirectory { path } => {
                self.check_parent(&path.join("name"))?;
                self.sync_directory(&path);
                Ok(Answer::Done)
            }
            Operation::Truncate { file, length } => {
                file.borrow_mut().truncate(length);
                Ok(Answer::Done)
            }
            Operation::MakeDirectory { path } => {
                self.check_parent(&path)?;
                self.create_directory(&path).map(|()| Answer::Done)
            }
            Operation::RemoveDirectory { path } => self.remove_directory(&path),
        }
    }

    fn is_dead(&self, file_system: &OsStr) -> bool {
        self.dead.contains(file_system)
    }

    /// An operation on a dead file system (K3).
    fn die(&mut self, operation: Operation, chance: &Chance) -> io::Error {
        match operation {
            Operation::Write { file, offset, data, .. } => self.tear(&file, offset, &data, chance),
            Operation::Sync { file, through } => file.borrow_mut().fail_sync(through),
            _ => {}
        }
        io::Error::from_raw_os_error(libc::EIO)
    }

    /// Whether it is this operation's turn to fail.
    fn fails(&mut self, kind: Fault) -> bool {
        let mut fails = false;
        self.faults.retain_mut(|(failing, before)| {
            if *failing != kind || fails {
                return true;
            }
            fails = *before == 0;
            *before = before.saturating_sub(1);
            !fails
        });
        fails
    }

    /// A failed operation says nothing about what reached the disk (S2).
    fn fail(&mut self, operation: Operation, chance: &Chance) -> io::Error {
        match operation {
            Operation::Write { file, offset, data, .. } => self.tear(&file, offset, &data, chance),
            Operation::Sync { file, through } => file.borrow_mut().fail_sync(through),
            Operation::Allocate { file, length } => self.grow_partly(&file, length, chance),
            operation @ (Operation::Rename { .. }
            | Operation::Link { .. }
            | Operation::Remove { .. }
            | Operation::RemoveUnsynced { .. })
                if chance.coin() =>
            {
                drop(self.execute_unfailing(operation, chance));
            }
            _ => {}
        }
        io::Error::from_raw_os_error(libc::EIO)
    }

    /// Executes without a look at the faults.
    fn execute_unfailing(&mut self, operation: Operation, chance: &Chance) -> io::Result<Answer> {
        let faults = std::mem::take(&mut self.faults);
        let answer = self.execute(operation, chance);
        self.faults = faults;
        answer
    }

    fn tear(&mut self, file: &SharedInode, offset: u64, data: &Bytes, chance: &Chance) {
        if data.is_empty() || self.claim(file, offset + data.len() as u64).is_err() {
            return;
        }
        let fate = Fate::draw(chance, data.len() as u64 / PAGE_BYTES);
        file.borrow_mut().write_torn(offset, data, fate, chance);
    }

    fn grow_partly(&mut self, file: &SharedInode, length: u64, chance: &Chance) {
        let from = file.borrow().length();
        let pages = length.saturating_sub(from) / PAGE_BYTES;
        let to = from + chance.below(pages + 1) * PAGE_BYTES;
        if self.claim(file, to).is_ok() {
            file.borrow_mut().grow(to);
        }
    }

    /// Checks that `file` may end at `end` (K2).
    fn claim(&self, file: &SharedInode, end: u64) -> io::Result<()> {
        let grows = end.saturating_sub(file.borrow().length());
        match self.space {
            Some(space) if grows > space.saturating_sub(self.used()) => {
                Err(io::Error::from_raw_os_error(libc::ENOSPC))
            }
            _ => Ok(()),
        }
    }

    /// Bytes of all files.
    pub fn used(&self) -> u64 {
        let mut met = HashSet::new();
        let files = self.files.values().filter(|file| met.insert(Rc::as_ptr(file)));
        files.map(|file| file.borrow().length()).sum()
    }

    pub fn space(&self) -> Space {
        match self.space {
            Some(total) => Space { free: total.saturating_sub(self.used()), total },
            None => Space { free: u64::MAX, total: 0 },
        }
    }

    /// A full disk gives what it has before it refuses, as a file system does.
    fn allocate(&mut self, file: &SharedInode, length: u64) -> io::Result<Answer> {
        let claimed = self.claim(file, length);
        let end = match (&claimed, self.space) {
            (Err(_), Some(space)) => {
                let left = space.saturating_sub(self.used()) / PAGE_BYTES * PAGE_BYTES;
                file.borrow().length() + left
            }
            _ => length,
        };
        file.borrow_mut().grow(end);
        claimed.map(|()| Answer::Done)
    }

    fn open(&mut self, path: PathBuf, how: OpenHow) -> io::Result<Answer> {
        let known = self.files.get(&path).cloned();
        match (how, known) {
            (OpenHow::Existing, Some(file)) => Ok(Answer::Opened(file)),
            (OpenHow::Existing, None) => Err(not_found(&path)),
            (_, Some(_)) => Err(io::ErrorKind::AlreadyExists.into()),
            (how, None) => {
                self.check_parent(&path)?;
                let file = SharedInode::default();
                file.borrow_mut().file_system = file_system(&path);
                self.unsynced.entry(path.clone()).or_insert(None);
                self.files.insert(path.clone(), file.clone());
                if how == OpenHow::CreateNew {
                    self.sync_parent(&path);
                }
                Ok(Answer::Opened(file))
            }
        }
    }

    fn remove(&mut self, path: &Path) -> io::Result<Answer> {
        let file = self.files.remove(path).ok_or_else(|| not_found(path))?;
        self.unsynced.entry(path.to_owned()).or_insert(Some(file));
        Ok(Answer::Done)
    }

    fn sync_parent(&mut self, path: &Path) {
        if let Some(parent) = path.parent() {
            self.sync_directory(parent);
        }
    }

    fn sync_directory(&mut self, directory: &Path) {
        self.unsynced.retain(|path, _| path.parent() != Some(directory));
    }

    /// Has each name that is not durable mean now or after all what it meant before.
    fn lose_names(&mut self, chance: &Chance) {
        for (path, before) in std::mem::take(&mut self.unsynced) {
            if chance.coin() || self.check_parent(&path).is_err() {
                continue;
            }
            match before {
                Some(file) => drop(self.files.insert(path, file)),
                None => drop(self.files.remove(&path)),
            }
        }
    }

    fn rename(&mut self, from: &Path, to: PathBuf) -> io::Result<Answer> {
        if from.parent() != to.parent() {
            let what = "a rename stays within one directory";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let file = self.files.remove(from).ok_or_else(|| not_found(from))?;
        self.sync_parent(&to);
        self.files.insert(to, file);
        Ok(Answer::Done)
    }

    fn link(&mut self, from: &Path, to: PathBuf) -> io::Result<Answer> {
        let file = self.files.get(from).cloned().ok_or_else(|| not_found(from))?;
        if file_system(from) != file_system(&to) {
            return Err(io::Error::from_raw_os_error(libc::EXDEV));
        }
        self.check_parent(&to)?;
        if self.files.contains_key(&to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.sync_parent(&to);
        self.files.insert(to, file);
        Ok(Answer::Done)
    }

    fn check_parent(&self, path: &Path) -> io::Result<()> {
        match path.parent() {
            Some(parent) if self.is_directory(parent) => Ok(()),
            _ => Err(not_found(path)),
        }
    }

    fn is_directory(&self, path: &Path) -> bool {
        path.parent().is_none() || self.directories.contains(path)
    }

    pub fn create_directory(&mut self, directory: &Path) -> io::Result<()> {
        for ancestor in directory.ancestors() {
            if self.files.contains_key(ancestor) {
                return Err(io::ErrorKind::NotADirectory.into());
            }
        }
        self.directories.extend(directory.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn remove_directory(&mut self, directory: &Path) -> io::Result<Answer> {
        if !self.list(directory)?.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        self.directories.remove(directory);
        self.sync_directory(directory);
        Ok(Answer::Done)
    }

    pub fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        if !self.is_directory(directory) {
            return Err(not_found(directory));
        }
        let within = |path: &&PathBuf| path.parent() == Some(directory);
        let paths = self.files.keys().chain(&self.directories).filter(within);
        let name = |path: &PathBuf| Some(path.file_name()?.to_str()?.to_owned());
        let mut names: Vec<String> = paths.filter_map(name).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Ends everything under way as a crash would, and loses what it loses.
    pub fn crash(&mut self, how: Crash, chance: &Chance) {
        let mut underway: Vec<Underway> =
            std::mem::take(&mut self.underway).into_values().collect();
        self.faults.clear();
        self.stalled_until = 0;
        while !underway.is_empty() {
            let Underway { operation, .. } = underway.swap_remove(chance.index(underway.len()));
            match operation {
                Operation::Write { file, offset, data, .. } => {
                    self.tear(&file, offset, &data, chance)
                }
                Operation::Allocate { file, length } => self.grow_partly(&file, length, chance),
                Operation::Read { .. } | Operation::Sync { .. } => {}
                operation if chance.coin() => drop(self.execute(operation, chance)),
                _ => {}
            }
        }
        if how == Crash::Power {
            self.lose_names(chance);
            for file in self.files.values() {
                file.borrow_mut().lose_power(chance);
            }
        }
    }

    pub fn set_fault(&mut self, kind: Fault, after: u32) {
        self.faults.push((kind, after));
    }

    pub fn set_dead(&mut self, path: &Path, is_dead: bool) {
        let name = file_system(path);
        if is_dead {
            self.dead.insert(name);
        } else {
            self.dead.remove(&name);
        }
    }

    pub fn set_hung(&mut self, path: &Path, is_hung: bool) {
        let name = file_system(path);
        if is_hung {
            self.hung.insert(name);
        } else {
            self.hung.remove(&name);
        }
    }

    /// Fails where the file system of `path` is dead.
    pub fn check_alive(&self, path: &Path) -> io::Result<()> {
        let is_dead = self.is_dead(&file_system(path));
        if is_dead { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }

    pub fn set_space(&mut self, space: Option<u64>) {
        self.space = space;
    }

    pub fn set_lying(&mut self) {
        self.lies = true;
    }

    pub fn file(&self, path: &Path) -> Option<SharedInode> {
        self.files.get(path).cloned()
    }

    pub fn forget(&mut self, path: &Path) -> Option<SharedInode> {
        self.files.remove(path)
    }

    pub fn paths(&self) -> Vec<PathBuf> {
        self.files.keys().cloned().collect()
    }

    pub fn submitted(&self) -> u64 {
        self.submitted
    }

    pub fn underway(&self) -> usize {
        self.underway.len()
    }
}

/// What is below different top folders is on different file systems.
fn file_system(path: &Path) -> OsString {
    path.components().nth(1).map(|top| top.as_os_str().to_owned()).unwrap_or_default()
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} is not there", path.display()))
}
