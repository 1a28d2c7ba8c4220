//! Files on the second ring: direct, aligned, positioned.

use std::cell::Cell;
use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use io_uring::{opcode, types};

use super::driver::{Keep, fd, own};
use super::{RingIo, beside};
use crate::base::buffer::{ALIGNMENT, AlignedBuffer};
use crate::io::{BLOCK_BYTES, Durability, File, OpenHow};

/// Zeros written at a time when a file is allocated.
const ALLOCATE_CHUNK_BYTES: usize = 1 << 20;
const MODE: libc::mode_t = 0o640;
const DIRECTORY_MODE: libc::mode_t = 0o750;

/// The kernel's ring cuts no files: it learned that with Linux 6.9.
static IS_TRUNCATED_BESIDE: AtomicBool = AtomicBool::new(false);

/// An open file.
pub struct RingFile {
    io: RingIo,
    descriptor: Rc<OwnedFd>,
    path: PathBuf,
    direct: bool,
    length: Cell<u64>,
}

pub async fn open(io: &RingIo, path: &Path, how: OpenHow) -> io::Result<RingFile> {
    let create = match how {
        OpenHow::Existing => 0,
        OpenHow::CreateNew | OpenHow::CreateUnsynced => libc::O_CREAT | libc::O_EXCL,
    };
    let flags = libc::O_RDWR | libc::O_CLOEXEC | create;
    let parent = match how {
        OpenHow::CreateNew => Some(open_parent(io, path).await?),
        OpenHow::Existing | OpenHow::CreateUnsynced => None,
    };
    let (descriptor, direct) = match open_at(io, path, flags | libc::O_DIRECT).await {
        Ok(descriptor) => (descriptor, true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            // A file system without O_DIRECT may have created the file before it refused.
            let again = flags & !libc::O_EXCL;
            (open_at(io, path, again).await?, false)
        }
        Err(error) => return Err(error),
    };
    if let Some(parent) = parent {
        sync_whole(io, &parent).await?;
    }
    let opened = std::fs::File::from(descriptor);
    let length = opened.metadata()?.len();
    let descriptor = Rc::new(OwnedFd::from(opened));
    Ok(RingFile {
        io: io.clone(),
        descriptor,
        path: path.to_owned(),
        direct,
        length: Cell::new(length),
    })
}

async fn open_at(io: &RingIo, path: &Path, flags: i32) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let entry = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr())
        .flags(flags)
        .mode(MODE)
        .build();
    let keep = Keep { paths: vec![path], yields_descriptor: true, ..Keep::default() };
    // SAFETY: the path's bytes are on the heap, owned by `keep`.
    let (result, _) = unsafe { io.driver().submit(entry, keep) }.await;
    result.map(|descriptor| own(descriptor.cast_signed())).map_err(in_kind)
}

/// An error of opening as its readers know it: that no descriptor is left says as little of the
/// disk as that no memory is, and passes as connections end.
pub fn in_kind(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => {
            let what = format!("{error}: raise the limit of open files with `ulimit -n 65536`");
            io::Error::new(io::ErrorKind::OutOfMemory, what)
        }
        _ => error,
    }
}

pub async fn rename(io: &RingIo, from: &Path, to: &Path) -> io::Result<()> {
    let parent = open_parent(io, to).await?;
    let paths = vec![c_path(from)?, c_path(to)?];
    let here = types::Fd(libc::AT_FDCWD);
    let entry = opcode::RenameAt::new(here, paths[0].as_ptr(), here, paths[1].as_ptr()).build();
    // SAFETY: both paths' bytes are on the heap, owned by the keep.
    let operation = unsafe { io.driver().submit(entry, Keep { paths, ..Keep::default() }) };
    operation.await.0?;
    sync_whole(io, &parent).await
}

pub async fn link(io: &RingIo, from: &Path, to: &Path) -> io::Result<()> {
    let parent = open_parent(io, to).await?;
    let paths = vec![c_path(from)?, c_path(to)?];
    let here = types::Fd(libc::AT_FDCWD);
    let entry = opcode::LinkAt::new(here, paths[0].as_ptr(), here, paths[1].as_ptr()).build();
    // SAFETY: both paths' bytes are on the heap, owned by the keep.
    let operation = unsafe { io.driver().submit(entry, Keep { paths, ..Keep::default() }) };
    operation.await.0?;
    sync_whole(io, &parent).await
}

pub async fn make_directory(io: &RingIo, path: &Path) -> io::Result<()> {
    let parent = open_parent(io, path).await?;
    let paths = vec![c_path(path)?];
    let here = types::Fd(libc::AT_FDCWD);
    let entry = opcode::MkDirAt::new(here, paths[0].as_ptr()).mode(DIRECTORY_MODE).build();
    // SAFETY: the path's bytes are on the heap, owned by the keep.
    let operation = unsafe { io.driver().submit(entry, Keep { paths, ..Keep::default() }) };
    match operation.await.0 {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        outcome => outcome.map(|_| ()),
    }?;
    sync_whole(io, &parent).await
}

pub async fn remove_directory(io: &RingIo, path: &Path) -> io::Result<()> {
    let parent = open_parent(io, path).await?;
    unlink(io, path, libc::AT_REMOVEDIR).await?;
    sync_whole(io, &parent).await
}

pub async fn remove(io: &RingIo, path: &Path) -> io::Result<()> {
    let parent = open_parent(io, path).await?;
    unlink(io, path, 0).await?;
    sync_whole(io, &parent).await
}

pub async fn remove_unsynced(io: &RingIo, path: &Path) -> io::Result<()> {
    unlink(io, path, 0).await
}

async fn unlink(io: &RingIo, path: &Path, flags: i32) -> io::Result<()> {
    let paths = vec![c_path(path)?];
    let here = types::Fd(libc::AT_FDCWD);
    let entry = opcode::UnlinkAt::new(here, paths[0].as_ptr()).flags(flags).build();
    // SAFETY: the path's bytes are on the heap, owned by the keep.
    let operation = unsafe { io.driver().submit(entry, Keep { paths, ..Keep::default() }) };
    operation.await.0.map(drop)
}

/// The directory of `path`. It is opened before anything is done in it: where no descriptor is left
/// nothing is done that could not be made durable.
async fn open_parent(io: &RingIo, path: &Path) -> io::Result<Rc<OwnedFd>> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    open_directory(io, parent).await
}

async fn open_directory(io: &RingIo, path: &Path) -> io::Result<Rc<OwnedFd>> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    open_at(io, path, flags).await.map(Rc::new)
}

pub async fn sync_directory(io: &RingIo, path: &Path) -> io::Result<()> {
    sync_whole(io, &open_directory(io, path).await?).await
}

async fn sync_whole(io: &RingIo, descriptor: &Rc<OwnedFd>) -> io::Result<()> {
    sync(io, descriptor, types::FsyncFlags::empty()).await
}

async fn sync(io: &RingIo, descriptor: &Rc<OwnedFd>, flags: types::FsyncFlags) -> io::Result<()> {
    let entry = opcode::Fsync::new(fd(descriptor)).flags(flags).build();
    let keep = Keep { descriptor: Some(descriptor.clone()), ..Keep::default() };
    // SAFETY: the entry holds no pointers.
    unsafe { io.driver().submit(entry, keep) }.await.0?;
    Ok(())
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a path holds a zero byte"))
}

fn check_aligned(offset: u64, length: usize) -> io::Result<()> {
    if offset.is_multiple_of(BLOCK_BYTES as u64) && length.is_multiple_of(BLOCK_BYTES) {
        return Ok(());
    }
    let what = format!("{length} bytes at {offset} are not aligned to {BLOCK_BYTES}");
    Err(io::Error::new(io::ErrorKind::InvalidInput, what))
}

/// The bytes to ask for next of so many, in steps: a request costs as much as a good part of a
/// step, so that what little would be left at the end goes with the last one.
fn next_step(left: usize, step: usize) -> usize {
    if left < step.saturating_add(step / 2) { left } else { step }
}

impl RingFile {
    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    async fn write_piece(&self, offset: u64, data: Bytes, dsync: bool) -> io::Result<usize> {
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let flags = if dsync { libc::RWF_DSYNC } else { 0 };
        let entry = opcode::Write::new(fd(&self.descriptor), data.as_ptr(), length)
            .offset(offset)
            .rw_flags(flags)
            .build();
        let descriptor = Some(self.descriptor.clone());
        let keep = Keep { descriptor, bytes: Some(data), ..Keep::default() };
        // SAFETY: `data` is counted memory that `keep` holds.
        let (result, _) = unsafe { self.io.driver().submit(entry, keep) }.await;
        Ok(result? as usize)
    }
}

impl File for RingFile {
    fn len(&self) -> u64 {
        self.length.get()
    }

    fn is_direct(&self) -> bool {
        self.direct
    }

    async fn read_in_steps(
        &self,
        offset: u64,
        length: usize,
        step: usize,
    ) -> io::Result<AlignedBuffer> {
        check_aligned(offset, length)?;
        let refused = || io::Error::new(io::ErrorKind::OutOfMemory, "the core's memory is in use");
        let mut buffer = self.io.arena().take(length).ok_or_else(refused)?;
        let mut done = 0;
        while done < length {
            let wanted = u32::try_from(next_step(length - done, step)).unwrap_or(u32::MAX);
            let start = buffer[done..].as_mut_ptr();
            let entry = opcode::Read::new(fd(&self.descriptor), start, wanted)
                .offset(offset + done as u64)
                .build();
            let descriptor = Some(self.descriptor.clone());
            let keep = Keep { descriptor, buffer: Some(buffer), ..Keep::default() };
            // SAFETY: `start` points into the buffer that `keep` holds.
            let (result, keep) = unsafe { self.io.driver().submit(entry, keep) }.await;
            buffer = keep.buffer.unwrap_or_else(|| unreachable!("it was kept above"));
            match result? as usize {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => done += read,
            }
            if done < length && !done.is_multiple_of(BLOCK_BYTES) {
                // Reads stop inside a block only at the end of the file.
                if length - done > BLOCK_BYTES {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                buffer[done..].fill(0);
                done = length;
            }
        }
        Ok(buffer)
    }

    async fn write_at(&self, offset: u64, data: Bytes, durability: Durability) -> io::Result<()> {
        check_aligned(offset, data.len())?;
        if self.direct && !(data.as_ptr() as usize).is_multiple_of(ALIGNMENT) {
            let what = "the memory of a direct write is not aligned";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let mut left = data;
        let mut at = offset;
        while !left.is_empty() {
            let flushed = durability == Durability::Flushed;
            let written = self.write_piece(at, left.clone(), flushed).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            // A full file system with blocks smaller than ours takes a part of one; it refuses
            // the rest with the reason.
            left = left.slice(written..);
            at += written as u64;
        }
        self.length.set(self.length.get().max(at));
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        sync(&self.io, &self.descriptor, types::FsyncFlags::DATASYNC).await
    }

    async fn allocate(&self, length: u64) -> io::Result<()> {
        let refused = || io::Error::new(io::ErrorKind::OutOfMemory, "the core's memory is in use");
        let mut zeros = self.io.arena().take(ALLOCATE_CHUNK_BYTES).ok_or_else(refused)?;
        zeros.fill(0);
        let zeros = zeros.freeze();
        // A block that is there in part has a hole in its rest.
        let mut at = self.length.get() / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        while at < length {
            let chunk = usize::try_from(length - at).unwrap_or(usize::MAX);
            let chunk = chunk.min(ALLOCATE_CHUNK_BYTES).next_multiple_of(BLOCK_BYTES);
            self.write_at(at, zeros.slice(..chunk), Durability::Written).await?;
            at += chunk as u64;
        }
        sync(&self.io, &self.descriptor, types::FsyncFlags::empty()).await
    }

    async fn reserve(&self, length: u64) -> io::Result<()> {
        let from = self.length.get();
        let Some(more) = length.checked_sub(from).filter(|more| *more > 0) else { return Ok(()) };
        let entry = opcode::Fallocate::new(fd(&self.descriptor), more).offset(from).build();
        let keep = Keep { descriptor: Some(self.descriptor.clone()), ..Keep::default() };
        // SAFETY: the entry holds no pointers.
        let (result, _) = unsafe { self.io.driver().submit(entry, keep) }.await;
        match result {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(()),
            outcome => drop(outcome?),
        }
        self.length.set(length);
        Ok(())
    }

    async fn truncate(&self, length: u64) -> io::Result<()> {
        if IS_TRUNCATED_BESIDE.load(Ordering::Relaxed) {
            beside::truncate(&self.io, &self.descriptor, length).await?;
        } else {
            let entry = opcode::Ftruncate::new(fd(&self.descriptor), length).build();
            let keep = Keep { descriptor: Some(self.descriptor.clone()), ..Keep::default() };
            // SAFETY: the entry holds no pointers.
            let (result, _) = unsafe { self.io.driver().submit(entry, keep) }.await;
            match result {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    beside::truncate(&self.io, &self.descriptor, length).await?;
                    IS_TRUNCATED_BESIDE.store(true, Ordering::Relaxed);
                }
                outcome => drop(outcome?),
            }
        }
        self.length.set(length);
        Ok(())
    }
}
