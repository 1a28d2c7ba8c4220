//! Group commit against the bare device: 1 KiB entries, each waited for, at depth 1, 8 and 64, next
//! to one 4 KiB block at a time into a file of written zeros, in turns. The bare file is opened with
//! O_DIRECT and O_DSYNC: every write then goes the way of one with `RWF_DSYNC`.
//!
//! `cargo bench --bench journal [seconds a run] [folder]`; the folder decides which disk is meant.
//! Without `--bench`, as in `cargo test --bench journal`, everything runs for a moment only.

use std::cell::{Cell, RefCell};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use corelog::base::buffer::Arena;
use corelog::base::ids::{PartitionId, TopicNumber};
use corelog::io::Io;
use corelog::io::mailbox::oneshot;
use corelog::io::ring::{RingIo, boot};
use corelog::journal::{Entry, EntryKind, Flush, Journal, Settings};

const ENTRY_BYTES: usize = 1024;
const BLOCK_BYTES: usize = 4096;
const RAW_FILE_BYTES: u64 = 64 << 20;
/// A run's seconds: when measuring, and otherwise.
const SECONDS: (f64, f64) = (0.2, 0.01);
const ARENA_BYTES: usize = 256 << 20;

fn main() {
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let (default, rounds) = if is_bench { (SECONDS.0, 3) } else { (SECONDS.1, 1) };
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    let seconds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(default);
    let folder = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let run = Duration::from_secs_f64(seconds);
    println!(
        "{:<22} {:>9} {:>8} {:>8} {:>8}",
        "1 KiB, waited for", "writes/s", "p50 us", "p99 us", "max us"
    );
    for round in 1..=rounds {
        println!("round {round}");
        report("raw O_DIRECT|O_DSYNC", raw(&folder, run), run);
        for depth in [1, 8, 64] {
            report(&format!("journal, depth {depth}"), journal(&folder, depth, run), run);
        }
    }
}

fn report(what: &str, mut latencies: Vec<Duration>, run: Duration) {
    latencies.sort_unstable();
    let at = |part: f64| {
        let index = (latencies.len() as f64 * part) as usize;
        latencies.get(index.min(latencies.len().saturating_sub(1))).map_or(0, Duration::as_micros)
    };
    let rate = latencies.len() as f64 / run.as_secs_f64();
    println!("{what:<22} {rate:>9.0} {:>8} {:>8} {:>8}", at(0.5), at(0.99), at(1.0));
}

/// One block after the other, durable with its write, from one thread.
fn raw(folder: &Path, run: Duration) -> Vec<Duration> {
    let directory = tempfile::tempdir_in(folder).expect("a temporary folder");
    let path = directory.path().join("raw");
    let zeros = vec![0; 1 << 20];
    let file = File::create(&path).expect("created");
    for at in (0..RAW_FILE_BYTES).step_by(zeros.len()) {
        file.write_all_at(&zeros, at).expect("written");
    }
    file.sync_all().expect("flushed");
    let file =
        OpenOptions::new().write(true).custom_flags(libc::O_DIRECT | libc::O_DSYNC).open(&path);
    let file = file.expect("opened for direct writes");
    let arena = Arena::new(1 << 20);
    let block = arena.take(BLOCK_BYTES).expect("memory");
    let mut latencies = Vec::new();
    let start = Instant::now();
    let mut at = 0;
    while start.elapsed() < run {
        let before = Instant::now();
        file.write_all_at(&block, at).expect("written");
        latencies.push(before.elapsed());
        at = (at + BLOCK_BYTES as u64) % RAW_FILE_BYTES;
    }
    latencies
}

/// `depth` tasks on one core, each appending an entry and waiting until it is durable.
fn journal(folder: &Path, depth: usize, run: Duration) -> Vec<Duration> {
    let directory = tempfile::tempdir_in(folder).expect("a temporary folder");
    let settings = Settings {
        directory: directory.path().join("core-0"),
        file_bytes: 256 << 20,
        bytes_max: 2 << 30,
        kept_bytes: 0,
        group_bytes_max: 1 << 20,
        pending_bytes_max: 4 << 20,
        tail_bytes_max: 16 << 20,
        flush: Flush::EveryGroup,
    };
    let (send, receive) = mpsc::channel();
    let executors = boot(&[0], ARENA_BYTES, move |io| {
        let (settings, send) = (settings.clone(), send.clone());
        async move {
            let arena = Arena::new(ARENA_BYTES);
            let journal = Journal::open(io.clone(), arena, settings, &mut |_| {}).await;
            let journal = journal.expect("opened");
            // The files' task gets ahead first: the figure is that of a journal at work.
            io.sleep(Duration::from_millis(300)).await;
            let latencies = Rc::new(RefCell::new(Vec::new()));
            appenders(&io, &journal, depth, run, &latencies).await;
            journal.close().await;
            drop(send.send(latencies.take()));
        }
    });
    for executor in executors.expect("bootable") {
        executor.join().expect("a clean end");
    }
    receive.recv().expect("an outcome")
}

async fn appenders(
    io: &RingIo,
    journal: &Journal<RingIo>,
    depth: usize,
    run: Duration,
    latencies: &Rc<RefCell<Vec<Duration>>>,
) {
    let (send, receive) = oneshot::channel();
    let send = Rc::new(Cell::new(Some(send)));
    let left = Rc::new(Cell::new(depth));
    for _ in 0..depth {
        let (journal, latencies) = (journal.clone(), latencies.clone());
        let (send, left) = (send.clone(), left.clone());
        io.spawn("appender", async move {
            append(&journal, run, &latencies).await;
            left.set(left.get() - 1);
            if left.get() == 0
                && let Some(send) = send.take()
            {
                assert!(send.send(()).is_ok(), "somebody waits");
            }
        });
    }
    receive.await.expect("all appenders end");
}

async fn append(journal: &Journal<RingIo>, run: Duration, latencies: &RefCell<Vec<Duration>>) {
    let partition = PartitionId { topic: TopicNumber(1), index: 0 };
    let entry = Entry { kind: EntryKind::LogStart, partition, base_offset: 0, epoch: 0 };
    let body = [7; ENTRY_BYTES];
    let start = Instant::now();
    while start.elapsed() < run {
        let before = Instant::now();
        journal.room(body.len()).await.expect("room");
        let appended = journal.append(entry, &body, |_| {}).expect("accepted");
        journal.wait_durable(appended.position).await.expect("durable");
        latencies.borrow_mut().push(before.elapsed());
    }
}
