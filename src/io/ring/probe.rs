//! What the machine offers and what it lacks, found before anything else starts; each lack comes
//! with its remedy.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use io_uring::IoUring;
use socket2::{Domain, Socket, Type};

use crate::io::Space;

/// `DEFER_TASKRUN` came with 6.1.
const KERNEL_MIN: (u32, u32) = (6, 1);
/// Descriptors that the node wants at least, for connections and files.
const DESCRIPTORS_MIN: u64 = 1024;
/// glommio starts no executor below this limit, whoever runs it.
const LOCKED_BYTES_MIN: u64 = 512 << 10;

/// Why the node cannot run here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    KernelTooOld(String),
    RingDisabled,
    RingBlocked(String),
    Descriptors(u64),
    LockedMemory {
        limit: u64,
        needed: u64,
    },
    /// Processes of the same user hold all that the limit allows.
    LockedMemorySpent {
        limit: u64,
    },
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfit::KernelTooOld(release) => write!(
                f,
                "kernel {release} is too old: Corelog needs Linux {}.{} or newer",
                KERNEL_MIN.0, KERNEL_MIN.1
            ),
            Unfit::RingDisabled => write!(
                f,
                "io_uring is disabled on this machine: run `sysctl -w kernel.io_uring_disabled=0`"
            ),
            Unfit::RingBlocked(why) => write!(
                f,
                "io_uring is blocked ({why}): in a container, allow the io_uring system calls in \
                 its seccomp profile (docker run --security-opt seccomp=unconfined)"
            ),
            Unfit::Descriptors(limit) => write!(
                f,
                "the limit of open files is {limit}: raise it with `ulimit -n 65536` or \
                 LimitNOFILE=65536 in the unit file"
            ),
            Unfit::LockedMemory { limit, needed } => write!(
                f,
                "the limit of locked memory is {limit} bytes and {needed} are needed: raise it \
                 with `ulimit -l unlimited` or LimitMEMLOCK=infinity in the unit file"
            ),
            Unfit::LockedMemorySpent { limit } => write!(
                f,
                "no memory is left for io_uring: raise the limit of locked memory, {limit} bytes \
                 for all processes of this user, with `ulimit -l unlimited` or \
                 LimitMEMLOCK=infinity in the unit file"
            ),
        }
    }
}

impl std::error::Error for Unfit {}

/// Checks the kernel, io_uring and the limits; raises the limits as far as allowed.
pub fn machine() -> Result<(), Unfit> {
    let release = kernel_release();
    if version_of(&release).is_some_and(|version| version < KERNEL_MIN) {
        return Err(Unfit::KernelTooOld(release));
    }
    let locked = raise(libc::RLIMIT_MEMLOCK, LOCKED_BYTES_MIN);
    if locked < LOCKED_BYTES_MIN {
        return Err(Unfit::LockedMemory { limit: locked, needed: LOCKED_BYTES_MIN });
    }
    let probe: io::Result<IoUring> =
        IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(8);
    if let Err(error) = probe {
        let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
        return Err(ring_refusal(&error, &release, &disabled.unwrap_or_default(), locked));
    }
    let descriptors = raise(libc::RLIMIT_NOFILE, libc::rlim_t::MAX);
    if descriptors < DESCRIPTORS_MIN {
        return Err(Unfit::Descriptors(descriptors));
    }
    Ok(())
}

/// Why no ring could be made; `disabled` is what the kernel's switch says, `locked` the limit of
/// locked memory in bytes, which kernels count for the user and not for the process.
fn ring_refusal(error: &io::Error, release: &str, disabled: &str, locked: u64) -> Unfit {
    if matches!(disabled.trim(), "1" | "2") {
        return Unfit::RingDisabled;
    }
    match error.raw_os_error() {
        Some(libc::EINVAL) => Unfit::KernelTooOld(release.to_string()),
        Some(libc::ENOMEM) => Unfit::LockedMemorySpent { limit: locked },
        _ => Unfit::RingBlocked(error.to_string()),
    }
}

/// The running kernel's release, as `uname -r` prints it.
pub fn kernel_release() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_string()
}

fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn limit_of(resource: libc::__rlimit_resource_t) -> libc::rlimit {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one `rlimit`; on failure it stays zero.
    unsafe { libc::getrlimit(resource, &mut limit) };
    limit
}

/// Descriptors that this process may have.
pub fn descriptors() -> u64 {
    limit_of(libc::RLIMIT_NOFILE).rlim_cur
}

/// Raises a soft limit to `wanted`, or to the hard limit if that is lower; returns what holds.
fn raise(resource: libc::__rlimit_resource_t, wanted: u64) -> u64 {
    let limit = limit_of(resource);
    let soft = wanted.min(limit.rlim_max);
    if limit.rlim_cur >= soft {
        return limit.rlim_cur;
    }
    let raised = libc::rlimit { rlim_cur: soft, ..limit };
    // SAFETY: the call reads one `rlimit`.
    let outcome = unsafe { libc::setrlimit(resource, &raised) };
    if outcome == 0 { soft } else { limit.rlim_cur }
}

/// Whether the kernel counts this process's rings as locked memory: it spares those that may lock
/// without limit (`CAP_IPC_LOCK`, capabilities(7)).
pub fn locked_memory_is_counted() -> bool {
    const CAP_IPC_LOCK: u64 = 1 << 14;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = held.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    held.is_none_or(|mask| mask & CAP_IPC_LOCK == 0)
}

/// CPUs that this process may run on.
pub fn cpus() -> Vec<usize> {
    // SAFETY: a zeroed set is a valid empty one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most the size given into `set`.
    let outcome = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) };
    if outcome != 0 {
        return vec![0];
    }
    let bits = usize::try_from(libc::CPU_SETSIZE).unwrap_or(0);
    // SAFETY: `cpu` is below CPU_SETSIZE.
    (0..bits).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect()
}

/// Total memory in bytes, 0 if unknown.
pub fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// A directory's file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// `ext4`, `xfs`, `tmpfs`, ...
    pub kind: String,
    /// The device it is mounted from.
    pub device: String,
    /// Whether a file in it can be opened with O_DIRECT.
    pub direct: bool,
    /// Whether it is mounted with `lazytime`: that a file has been written to is noted on the
    /// device when the file changes otherwise, and not at each tick of the clock (mount(8)).
    pub lazy_times: bool,
}

/// The file system of an existing directory.
pub fn file_system(directory: &Path) -> io::Result<FileSystem> {
    let directory = directory.canonicalize()?;
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    Ok(FileSystem { direct: takes_direct(&directory)?, ..mounted(&mounts, &directory) })
}

/// What `/proc/self/mounts` says of a directory's file system (proc_pid_mounts(5)).
fn mounted(mounts: &str, directory: &Path) -> FileSystem {
    let mut best = ("unknown", "", "unknown", "");
    for line in mounts.lines() {
        let mut fields = line.split(' ');
        let mut next = || fields.next().unwrap_or_default();
        let (device, point, kind, options) = (next(), next(), next(), next());
        let is_under = !point.is_empty() && directory.starts_with(point);
        if is_under && point.len() >= best.1.len() {
            best = (device, point, kind, options);
        }
    }
    let (device, _, kind, options) = best;
    FileSystem {
        kind: kind.to_string(),
        device: device.to_string(),
        direct: false,
        lazy_times: options.split(',').any(|option| option == "lazytime"),
    }
}

/// What the file system of an existing `path` has.
pub fn space(path: &Path) -> io::Result<Space> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all-zero is a valid `statvfs`.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is a C string that lives across the call, which writes one `statvfs`.
    if unsafe { libc::statvfs(path.as_ptr(), &mut found) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(Space { free: bytes(found.f_bavail), total: bytes(found.f_blocks) })
}

fn takes_direct(directory: &Path) -> io::Result<bool> {
    let probe = directory.join(format!(".direct-{}", std::process::id()));
    let path = std::ffi::CString::new(probe.as_os_str().as_bytes())?;
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_DIRECT | libc::O_CLOEXEC;
    // SAFETY: `path` is a C string that lives across the call; the result is checked.
    let descriptor = unsafe { libc::open(path.as_ptr(), flags, 0o600) };
    let error = io::Error::last_os_error();
    if descriptor >= 0 {
        drop(super::driver::own(descriptor));
    }
    // Where O_DIRECT is refused the file is there all the same.
    drop(std::fs::remove_file(&probe));
    match error.raw_os_error() {
        _ if descriptor >= 0 => Ok(true),
        Some(libc::EINVAL) => Ok(false),
        _ => Err(error),
    }
}

/// Tries whether an address can be listened at, without listening: a client that came at that
/// moment would be hung up on.
pub fn try_address(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// A node that tried its port by listening took clients' connections and dropped them.
    #[test]
    fn an_address_is_tried_without_taking_connections() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = taken.local_addr().expect("bound");
        let refused = try_address(address).expect_err("somebody listens");
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        drop(taken);
        let is_over = AtomicBool::new(false);
        let connected = std::thread::scope(|scope| {
            let clients = scope.spawn(|| {
                // A connection to itself, which Linux makes now and then, is none.
                let is_real = |stream: TcpStream| stream.local_addr().is_ok_and(|a| a != address);
                let attempts = std::iter::from_fn(|| {
                    (!is_over.load(Ordering::Relaxed)).then(|| TcpStream::connect(address))
                });
                attempts.flatten().any(is_real)
            });
            // What the clients do may take the address for a moment.
            let free = (0..3000).filter(|_| try_address(address).is_ok()).count();
            is_over.store(true, Ordering::Relaxed);
            assert!(free > 0, "it is free");
            clients.join().expect("no panic")
        });
        assert!(!connected, "nobody listens");
    }

    #[test]
    fn this_machine_is_fit_and_described() {
        assert_eq!(machine(), Ok(()));
        assert!(!cpus().is_empty());
        assert!(memory_bytes() > 0);
        let directory = tempfile::tempdir().expect("a temporary folder");
        let found = file_system(directory.path()).expect("a file system");
        assert_ne!(found.kind, "unknown");
        assert_eq!(std::fs::read_dir(directory.path()).expect("readable").count(), 0);
    }

    #[test]
    fn what_a_directory_is_mounted_from_and_how_is_read() {
        let mounts = "/dev/vda / ext4 rw,relatime 0 0\n\
                      /dev/vdb /data ext4 rw,nolazytime,relatime 0 0\n\
                      /dev/vdc /data/new xfs rw,lazytime,noatime 0 0\nnonsense\n";
        for (directory, device, kind, lazy_times) in [
            ("/home", "/dev/vda", "ext4", false),
            ("/data", "/dev/vdb", "ext4", false),
            ("/data/newer", "/dev/vdb", "ext4", false),
            ("/data/new/one", "/dev/vdc", "xfs", true),
        ] {
            let (device, kind) = (device.to_string(), kind.to_string());
            let expected = FileSystem { kind, device, direct: false, lazy_times };
            assert_eq!(mounted(mounts, Path::new(directory)), expected, "{directory}");
        }
        assert_eq!(mounted("", Path::new("/data")).kind, "unknown");
    }

    #[test]
    fn the_reason_for_no_ring_is_told() {
        let refusal = |code, disabled| {
            let error = io::Error::from_raw_os_error(code);
            ring_refusal(&error, "6.1.0", disabled, 4096).to_string()
        };
        let switched_off = refusal(libc::EPERM, "2\n");
        assert!(switched_off.contains("sysctl -w kernel.io_uring_disabled=0"), "{switched_off}");
        assert!(refusal(libc::EPERM, "0\n").contains("seccomp"));
        assert!(refusal(libc::ENOSYS, "").contains("seccomp"));
        assert!(refusal(libc::EINVAL, "0\n").contains("needs Linux 6.1"));
        assert!(refusal(libc::ENOMEM, "0\n").contains("ulimit -l unlimited"));
    }

    #[test]
    fn kernel_releases_are_read() {
        assert_eq!(version_of("6.18.44-fc"), Some((6, 18)));
        assert_eq!(version_of("5.10"), Some((5, 10)));
        assert_eq!(version_of(""), None);
    }
}
