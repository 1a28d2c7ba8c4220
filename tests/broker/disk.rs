//! A full disk: a small file system of the test's own, filled by producers and from outside. Writes
//! are refused and resume by themselves, everything else goes on, and nothing that was acknowledged
//! is lost.

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use tempfile::TempDir;

use crate::asks::{fetched, poll};
use crate::frames::{Batch, Bytes, Peer, produce, produced, request};
use crate::full::{delete_records, delete_topic, produce_in_words, read_all};
use crate::librdkafka::config;
use crate::segments::{await_that, create};
use crate::world::{Broker, end_of, free_address, fresh, serve};

const KAFKA_STORAGE_ERROR: i16 = 56;
/// Writes are really refused once none was taken for so long.
const REFUSED_FOR: Duration = Duration::from_millis(2500);
const OUT_OF_RANGE: i16 = 1;
const FOREVER: (&str, &str) = ("retention.ms", "-1");
const SMALL_SEGMENTS: (&str, &str) = ("segment.bytes", "4194304");

/// A file system in a file, mounted as long as this lives.
pub struct Disk {
    folder: TempDir,
}

/// The ioctl by which ext4 fails everything from here on, and its argument: not even what is under
/// way reaches the disk (`EXT4_IOC_SHUTDOWN`, `EXT4_GOING_FLAGS_NOLOGFLUSH`).
const SHUTDOWN: libc::Ioctl = 0x8004_587d;
const AT_ONCE: u32 = 2;
/// Those by which a file system keeps writers waiting, and lets them go on (`FIFREEZE`, `FITHAW`).
const FREEZE: libc::Ioctl = 0xc004_5877_u32 as libc::Ioctl;
const THAW: libc::Ioctl = 0xc004_5878_u32 as libc::Ioctl;

impl Disk {
    /// `None`, and a word why, where it cannot be mounted.
    pub fn of(mebibytes: u64, block_bytes: u32) -> Option<Disk> {
        // SAFETY: no pointers, and it never fails.
        if unsafe { libc::geteuid() } != 0 {
            println!("skipped: only root may mount a file system");
            return None;
        }
        let folder = tempfile::Builder::new().prefix("corelog-disk-").tempdir();
        let disk = Disk { folder: folder.expect("a temporary folder") };
        let image = disk.folder.path().join("image");
        let file = fs::File::create(&image).expect("writable");
        file.set_len(mebibytes << 20).expect("a sparse file");
        fs::create_dir(disk.path()).expect("made");
        let block = block_bytes.to_string();
        let make = ["-q", "-F", "-m", "0", "-b", &block];
        let made = Command::new("mkfs.ext4").args(make).arg(&image).status();
        if !works(made) || !disk.mount() {
            println!("skipped: this machine mounts no file of ext4");
            return None;
        }
        Some(disk)
    }

    fn mount(&self) -> bool {
        let image = self.folder.path().join("image");
        works(Command::new("mount").args(["-o", "loop"]).arg(image).arg(self.path()).status())
    }

    /// Every read and write fails from here on, as those of a disk that is gone.
    pub fn fail(&self) {
        self.control(SHUTDOWN, AT_ONCE).expect("it fails");
    }

    /// No write returns, as on a disk that hangs, until what this gives is dropped. A process that
    /// has writes waiting does not end before.
    pub fn hang(&self) -> Hanging<'_> {
        self.control(FREEZE, 0).expect("it hangs");
        Hanging(self)
    }

    fn control(&self, what: libc::Ioctl, argument: u32) -> std::io::Result<()> {
        let root = fs::File::open(self.path())?;
        // SAFETY: the descriptor is open, and the argument is read only.
        match unsafe { libc::ioctl(root.as_raw_fd(), what, &argument) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }

    /// Takes it away: an empty folder is left. Nobody may have a file of it open.
    pub fn unmount(&self) {
        // The kernel closes the files of a killed process's rings a moment later.
        await_that("nobody uses it", || works(Command::new("umount").arg(self.path()).status()));
    }

    /// Brings it back with what has reached it.
    pub fn mount_again(&self) {
        assert!(self.mount(), "it can be mounted");
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }

    fn free(&self) -> u64 {
        let path = CString::new(self.path().as_os_str().as_bytes()).expect("a path");
        // SAFETY: all-zero is a valid `statvfs`.
        let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: the path lives across the call, which writes one `statvfs`.
        assert_eq!(unsafe { libc::statvfs(path.as_ptr(), &mut found) }, 0);
        found.f_bavail * found.f_frsize
    }

    /// Takes everything that is left.
    fn fill_up(&self) -> PathBuf {
        let path = self.path().join("ballast");
        let mut file = fs::File::create(&path).expect("a file");
        for size in [1 << 20, 4096, 512] {
            while file.write_all(&vec![7; size]).is_ok() {}
        }
        let _ = file.sync_all();
        assert!(self.free() < 64 << 10, "{} bytes are left", self.free());
        path
    }
}

/// See `Disk::hang`.
pub struct Hanging<'a>(&'a Disk);

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        // What went wrong before is what a test that fails is to tell.
        let _ = self.0.control(THAW, 0);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Where it was never mounted this says so, and there is nothing to do.
        let _ = Command::new("umount").arg("-l").arg(self.path()).output();
    }
}

fn works(ran: std::io::Result<std::process::ExitStatus>) -> bool {
    ran.is_ok_and(|status| status.success())
}

/// Writes a million bytes at a time to these topics in turn until nothing is taken for a while,
/// draining done: how many each has taken, and why no more.
fn fill(peer: &mut Peer, topics: &mut [(&str, i64)]) -> String {
    let large = Batch { value_bytes: 1_000_000, ..Batch::default() }.encode();
    let mut refused_since = None;
    loop {
        for (topic, count) in &mut *topics {
            let (code, offset, words) = produce_in_words(peer, topic, &large);
            if code != 0 {
                assert_eq!(code, KAFKA_STORAGE_ERROR, "{words}");
                let since = *refused_since.get_or_insert_with(Instant::now);
                if since.elapsed() > REFUSED_FOR {
                    return words;
                }
                sleep(Duration::from_millis(20));
                continue;
            }
            refused_since = None;
            assert_eq!(offset, *count);
            *count += 1;
        }
    }
}

/// Writes to a topic until it is taken; the next offset.
fn await_writes(broker: &Broker, topic: &str, next: i64) -> i64 {
    let mut peer = Peer::connect(broker.address());
    let small = produce(topic, &Batch::default().encode());
    let mut found = (KAFKA_STORAGE_ERROR, -1);
    await_that("writes resume", || {
        found = produced(&peer.ask(&small), topic);
        found.0 != KAFKA_STORAGE_ERROR
    });
    assert_eq!(found, (0, next));
    next + 1
}

/// Commits an offset in a group, as a consumer does that reads while nothing can be written.
fn commit(bootstrap: &str, topic: &str) {
    let consumer: BaseConsumer = config(bootstrap)
        .set("group.id", fresh("reader"))
        .set("enable.auto.commit", "false")
        .create()
        .expect("a consumer");
    let mut place = TopicPartitionList::new();
    place.add_partition_offset(topic, 0, Offset::Offset(7)).expect("a place");
    consumer.commit(&place, CommitMode::Sync).expect("the commit is taken");
    let kept = consumer.committed_offsets(place, Duration::from_secs(20)).expect("an answer");
    assert_eq!(kept.elements()[0].offset(), Offset::Offset(7));
}

fn alter(peer: &mut Peer, topic: &str, name: &str, value: &str) {
    let body = Bytes::default().i32(1).i8(2).string(topic).i32(1).string(name);
    let answer = peer.ask(&request(33, 0, body.string(value).i8(0)));
    assert_eq!(answer[8..10], [0, 0], "AlterConfigs");
}

fn on(disk: &Disk, settings: &[(&str, &str)]) -> Broker {
    let own = [
        ("cores", "0"),
        ("shards", "1"),
        ("num.partitions", "1"),
        ("offsets.topic.num.partitions", "1"),
        ("log.retention.check.interval.ms", "100"),
    ];
    let data = disk.path().join("data");
    fs::create_dir(&data).expect("made");
    Broker::start_on(&data, &[&own, settings].concat())
}

fn assert_sound(broker: &Broker) {
    let log = broker.log();
    for word in ["restart after mending the disk", "panicked", "is damaged"] {
        assert!(!log.contains(word), "{log}");
    }
}

/// Below `storage.free.bytes.min` records are refused, and nothing else is.
#[test]
fn a_disk_that_producers_fill_keeps_its_reserve_and_takes_writes_again() {
    let Some(disk) = Disk::of(200, 4096) else { return };
    let mut broker = on(&disk, &[]);
    broker.await_log("the file system is small: the journals take");
    let (kept, doomed) = (fresh("kept"), fresh("doomed"));
    let mut peer = Peer::connect(broker.address());
    create(&mut peer, &kept, &[FOREVER, SMALL_SEGMENTS]);
    create(&mut peer, &doomed, &[FOREVER, SMALL_SEGMENTS]);
    let mut counts = [(&*kept, 0), (&*doomed, 0)];
    let words = fill(&mut peer, &mut counts);
    let [(_, count), (_, other)] = counts;
    println!("{count} and {other} batches of a million bytes, then: {words}");
    assert!(words.contains("storage.free.bytes.min keeps"), "{words}");
    assert!(count + other > 100, "{count} and {other}");
    assert!(disk.free() > 4 << 20, "the reserve is there: {}", disk.free());
    // What is not a client's record goes on.
    assert_eq!(read_all(&mut peer, &kept, 0), count);
    assert_eq!(read_all(&mut peer, &doomed, 0), other);
    assert_eq!(delete_records(&mut peer, &kept, 5), (5, 0));
    create(&mut peer, &fresh("made"), &[]);
    commit(&broker.bootstrap(), &kept);

    broker.kill();
    broker.launch();
    let mut peer = Peer::connect(broker.address());
    assert_eq!(read_all(&mut peer, &kept, 5), count);
    assert_eq!(read_all(&mut peer, &doomed, 0), other);
    let words = fill(&mut peer, &mut counts);
    assert!(words.contains("storage.free.bytes.min"), "{words}");

    // Somebody else takes the last of it.
    let [(_, count), _] = counts;
    let ballast = disk.fill_up();
    broker.kill();
    broker.launch();
    let mut peer = Peer::connect(broker.address());
    assert_eq!(read_all(&mut peer, &kept, 5), count);
    assert_eq!(delete_records(&mut peer, &kept, 6), (6, 0));
    assert_eq!(fetched(&peer.ask(&poll(&kept, 5, 0, 0)))[0].error, OUT_OF_RANGE);
    assert_eq!(delete_topic(&mut peer, &doomed), 0);
    let next = await_writes(&broker, &kept, count);
    broker.kill();
    broker.launch();
    assert_eq!(read_all(&mut Peer::connect(broker.address()), &kept, 6), next);
    fs::remove_file(ballast).expect("there");
    broker.restart();
    assert_eq!(read_all(&mut Peer::connect(broker.address()), &kept, 6), next);
    assert_sound(&broker);
}

/// Without a reserve: the file system itself refuses, the journal and the segments alike.
#[test]
fn a_disk_without_a_reserve_is_filled_to_the_last_byte_and_harms_nothing() {
    for block_bytes in [1024, 4096] {
        let Some(disk) = Disk::of(120, block_bytes) else { return };
        let settings = [("storage.free.bytes.min", "0")];
        let mut broker = on(&disk, &settings);
        let (kept, doomed) = (fresh("kept"), fresh("doomed"));
        let mut peer = Peer::connect(broker.address());
        create(&mut peer, &kept, &[FOREVER, SMALL_SEGMENTS]);
        create(&mut peer, &doomed, &[FOREVER, SMALL_SEGMENTS]);
        let mut counts = [(&*doomed, 0), (&*kept, 0)];
        let words = fill(&mut peer, &mut counts);
        println!("{counts:?} batches of a million bytes, then: {words}");
        assert!(words.contains("the disk gave no space") || words.contains("is full"), "{words}");
        let _ballast = disk.fill_up();
        fill(&mut peer, &mut counts);
        let [(_, other), (_, count)] = counts;
        assert_eq!(read_all(&mut peer, &kept, 0), count);
        broker.kill();
        broker.launch();
        let mut peer = Peer::connect(broker.address());
        assert_eq!(read_all(&mut peer, &kept, 0), count);
        assert_eq!(read_all(&mut peer, &doomed, 0), other);
        assert_eq!(delete_records(&mut peer, &kept, 5), (5, 0));
        assert_eq!(delete_topic(&mut peer, &doomed), 0);
        let next = await_writes(&broker, &kept, count);
        assert_sound(&broker);
        broker.restart();
        assert_eq!(read_all(&mut Peer::connect(broker.address()), &kept, 5), next);
        assert_sound(&broker);
    }
}

/// Retention makes the room that was lacking.
#[test]
fn retention_goes_on_while_the_disk_is_full() {
    let Some(disk) = Disk::of(120, 4096) else { return };
    let broker = on(&disk, &[]);
    let topic = fresh("aged");
    let mut peer = Peer::connect(broker.address());
    create(&mut peer, &topic, &[FOREVER, SMALL_SEGMENTS]);
    let mut counts = [(&*topic, 0)];
    fill(&mut peer, &mut counts);
    let count = counts[0].1;
    assert_eq!(read_all(&mut peer, &topic, 0), count);
    alter(&mut peer, &topic, "retention.bytes", "10000000");
    await_writes(&broker, &topic, count);
    assert_sound(&broker);
}

/// Everything that a node says may go to a full disk as well.
#[test]
fn a_node_that_cannot_write_its_log_serves_all_the_same() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let address = free_address();
    let mut command = serve(&folder.path().join("data"), &address.to_string());
    command.args(["--cores", "0", "--set", "journal.file.bytes=4194304"]);
    command.args(["--set", "storage.free.bytes.min=9223372036854775807"]);
    let full = || fs::File::options().write(true).open("/dev/full").expect("Linux has it");
    let mut child = command.stdout(full()).stderr(full()).spawn().expect("the binary starts");
    // A connection to itself, which Linux makes now and then, is none.
    let is_real = |stream: TcpStream| stream.local_addr().is_ok_and(|own| own != address);
    await_that("it listens", || TcpStream::connect(address).is_ok_and(is_real));
    let topic = fresh("unheard");
    let mut peer = Peer::connect(address);
    create(&mut peer, &topic, &[]);
    let (code, ..) = produce_in_words(&mut peer, &topic, &Batch::default().encode());
    assert_eq!(code, KAFKA_STORAGE_ERROR, "no disk is large enough, which it cannot say");
    let told = Command::new("kill").arg(child.id().to_string()).status();
    assert!(told.is_ok_and(|told| told.success()));
    assert!(end_of(&mut child).is_some_and(|status| status.success()));
}

/// The mount point of a test is not that of another one.
#[test]
fn two_small_disks_stand_side_by_side() {
    let (Some(one), Some(two)) = (Disk::of(16, 1024), Disk::of(16, 1024)) else { return };
    let before = two.free();
    one.fill_up();
    assert_eq!(two.free(), before);
    let is_mounted = |path: &Path| {
        fs::read_to_string("/proc/self/mounts")
            .is_ok_and(|mounts| mounts.lines().any(|line| line.split(' ').nth(1) == path.to_str()))
    };
    let path = one.path();
    assert!(is_mounted(&path));
    drop(one);
    assert!(!is_mounted(&path));
}
