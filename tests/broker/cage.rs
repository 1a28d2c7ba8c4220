//! What a machine may lack, taken from a broker before it starts.

use std::ffi::CString;
use std::io::{Error, Result};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

#[derive(Clone, Copy, Debug)]
pub enum Lack {
    /// `io_uring_setup` fails with this error, as under a seccomp profile.
    Ring(i32),
    /// Bytes that may be locked, for good.
    LockedMemory(u64),
    /// Files that may be open, for good.
    Descriptors(u64),
    /// Everything that makes root special.
    Privileges,
}

/// Takes `lacks` from the process that `command` starts.
pub fn lacking<'c>(command: &'c mut Command, lacks: &'static [Lack]) -> &'c mut Command {
    // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
    unsafe { command.pre_exec(move || lacks.iter().try_for_each(Lack::take)) }
}

/// Gives the process a file system of its own on `folder`, one that refuses O_DIRECT and is gone
/// with the process. Only root may.
pub fn on_ramfs<'c>(command: &'c mut Command, folder: &Path) -> &'c mut Command {
    let folder = CString::new(folder.as_os_str().as_bytes()).expect("a path");
    let mount = move || {
        let (none, ramfs) = (std::ptr::null(), c"ramfs".as_ptr());
        let alone = libc::MS_REC | libc::MS_PRIVATE;
        // SAFETY: no pointers.
        check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
        // SAFETY: the paths are C strings that live across the calls, the rest is null.
        check(unsafe { libc::mount(none, c"/".as_ptr(), none, alone, none.cast()) })?;
        // SAFETY: as above.
        check(unsafe { libc::mount(ramfs, folder.as_ptr(), ramfs, 0, none.cast()) })
    };
    // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
    unsafe { command.pre_exec(mount) }
}

/// Sets how many files a running process may have open; what is open stays so.
pub fn limit_descriptors_of(pid: u32, count: u64) {
    let pid = libc::pid_t::try_from(pid).expect("a process id");
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call writes one `rlimit`.
    let known = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &mut limit) };
    check(known).expect("the process is our own");
    limit.rlim_cur = count.min(limit.rlim_max);
    // SAFETY: the call reads one `rlimit`.
    let set = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &limit, std::ptr::null_mut()) };
    check(set).expect("it is within the hard limit");
}

impl Lack {
    fn take(&self) -> Result<()> {
        match *self {
            Lack::Ring(error) => refuse_rings(error),
            Lack::LockedMemory(bytes) => limit(libc::RLIMIT_MEMLOCK, bytes),
            Lack::Descriptors(count) => limit(libc::RLIMIT_NOFILE, count),
            Lack::Privileges => {
                for capability in 0..64 {
                    // SAFETY: no pointers. It fails for numbers that are none, and for a process
                    // without privileges, which has nothing to lose.
                    unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
                }
                Ok(())
            }
        }
    }
}

fn limit(resource: libc::__rlimit_resource_t, most: u64) -> Result<()> {
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: the call reads one `rlimit`.
    check(unsafe { libc::setrlimit(resource, &limit) })
}

fn refuse_rings(error: i32) -> Result<()> {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let refusal = libc::SECCOMP_RET_ERRNO | error as u32;
    let mut program = [
        // The number of the system call stands first.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_io_uring_setup as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, refusal),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    // SAFETY: the program lives across the call, which copies it.
    let filtered =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    check(filtered)
}

fn check(outcome: i32) -> Result<()> {
    if outcome == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}
