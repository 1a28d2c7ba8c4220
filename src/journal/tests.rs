//! The journal on the real seam: what was acknowledged comes back, what is damaged is named.

use std::cell::RefCell;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc;

use futures_util::FutureExt;

use super::*;
use crate::base::ids::{PartitionId, TopicNumber};
use crate::io::ring::{RingIo, boot};

const ARENA_BYTES: usize = 64 << 20;

fn settings(directory: &Path) -> Settings {
    Settings {
        directory: directory.join("core-0"),
        file_bytes: 4 << 20,
        bytes_max: 16 << 20,
        kept_bytes: 0,
        group_bytes_max: 256 << 10,
        pending_bytes_max: 1 << 20,
        tail_bytes_max: 1 << 20,
        flush: Flush::EveryGroup,
    }
}

fn entry(index: u32) -> Entry {
    let partition = PartitionId { topic: TopicNumber(7), index };
    Entry { kind: EntryKind::LogStart, partition, base_offset: i64::from(index), epoch: 1 }
}

/// Opens the journal on one executor, runs `work` with it and with what was replayed.
fn with_journal<T, W, F>(settings: Settings, work: W) -> T
where
    T: Send + 'static,
    W: Fn(RingIo, Result<Journal<RingIo>, OpenError>, Vec<(u32, Vec<u8>)>) -> F
        + Clone
        + Send
        + 'static,
    F: Future<Output = T> + 'static,
{
    let (send, receive) = mpsc::channel();
    let executors = boot(&[0], ARENA_BYTES, move |io| {
        let (settings, work, send) = (settings.clone(), work.clone(), send.clone());
        async move {
            let replayed = RefCell::new(Vec::new());
            let mut keep = |found: Replayed<'_>| {
                replayed.borrow_mut().push((found.entry.partition.index, found.body.to_vec()));
            };
            let arena = Arena::new(ARENA_BYTES);
            let journal = Journal::open(io.clone(), arena, settings, &mut keep).await;
            drop(send.send(work(io, journal, replayed.take()).await));
        }
    });
    for executor in executors.expect("bootable") {
        executor.join().expect("a clean end");
    }
    receive.recv().expect("an outcome")
}

fn body(index: u32) -> Vec<u8> {
    vec![index.to_le_bytes()[0]; 100 + (index as usize * 7919) % 9000]
}

/// Appends entries `from..to`, waiting for each twentieth.
async fn append_all(journal: &Journal<RingIo>, from: u32, to: u32) {
    for index in from..to {
        let body = body(index);
        journal.room(body.len()).await.expect("room");
        let appended = journal.append(entry(index), &body, |_| {}).expect("accepted");
        if index % 20 == 0 {
            journal.wait_durable(appended.position).await.expect("durable");
            let read = journal.read(appended.location, usize::MAX).await.expect("readable");
            assert_eq!(read[..], body[..]);
        }
    }
}

#[test]
fn entries_come_back_in_order_across_rolls_and_reopenings() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let settings = settings(directory.path());
    for round in 0..3_u32 {
        with_journal(settings.clone(), move |_, journal, replayed| async move {
            let journal = journal.expect("opened");
            assert_eq!(replayed.len(), round as usize * 500);
            for (expected, (index, found)) in replayed.into_iter().enumerate() {
                assert_eq!((index as usize, found), (expected, body(index)));
            }
            append_all(&journal, round * 500, (round + 1) * 500).await;
            journal.close().await;
        });
    }
    let files = std::fs::read_dir(&settings.directory).expect("readable").count();
    assert!(files >= 2, "the journal rolled: {files} files");
}

#[test]
fn appenders_wait_rather_than_push_out_of_memory_what_is_held() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    with_journal(settings(directory.path()), |_, journal, _| async move {
        let journal = journal.expect("opened");
        let body = vec![1; 100_000];
        let append = async || {
            let appended = journal.append(entry(1), &body, |_| {}).expect("accepted");
            journal.wait_durable(appended.position).await.expect("durable");
            appended.location
        };
        let first = append().await;
        let held = journal.hold(first.address);
        let mut appended = 0;
        while journal.room(body.len()).now_or_never().is_some() {
            append().await;
            appended += 1;
            assert!(journal.tail(first).is_some(), "pushed out after {appended}");
        }
        assert!((2..10).contains(&appended), "{appended} had room in the memory of 1 MiB");
        let managing = journal.room_to_manage(body.len()).now_or_never();
        assert_eq!(managing, Some(Ok(())), "S6");
        let waiting = journal.room(body.len());
        drop(held);
        waiting.await.expect("nothing is held");
        for _ in 0..12 {
            journal.room(body.len()).await.expect("room");
            append().await;
        }
        assert!(journal.tail(first).is_none(), "the memory is used again");
        journal.close().await;
    });
}

#[test]
fn a_full_journal_refuses_and_takes_again_what_is_released() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    with_journal(settings(directory.path()), |_, journal, _| async move {
        let journal = journal.expect("opened");
        let large = vec![1; 1 << 20];
        let mut last = Position(0);
        let refusal = loop {
            match journal.room(large.len()).await {
                Ok(()) => {
                    let appended = journal.append(entry(1), &large, |_| {}).expect("accepted");
                    last = appended.position;
                }
                Err(refusal) => break refusal,
            }
        };
        assert_eq!(refusal, Refusal::Full { bytes_max: 16 << 20 });
        for _ in 0..100 {
            journal.room_to_manage(100).await.expect("a full journal can be emptied");
            last = journal.append(entry(3), &[3; 100], |_| {}).expect("accepted").position;
        }
        assert_eq!(journal.room(large.len()).await, Err(Refusal::Full { bytes_max: 16 << 20 }));
        journal.wait_durable(last).await.expect("what was accepted is durable");
        journal.release(8 << 20);
        for _ in 0..4 {
            journal.room(large.len()).await.expect("room again");
            journal.append(entry(2), &large, |_| {}).expect("accepted");
        }
        let refused = journal.room(5 << 20).await;
        assert!(matches!(refused, Err(Refusal::TooLarge { .. })), "{refused:?}");
        journal.close().await;
    });
    with_journal(settings(directory.path()), |_, journal, replayed| async move {
        journal.expect("a recycled file is no obstacle").close().await;
        assert!(replayed.iter().filter(|(index, _)| *index == 2).count() == 4);
    });
}

/// Simulator seed 4862: many starts in a row, each of which decides something and is killed before
/// anything is drained, used up what was left to draining, and the next one waited for ever.
#[test]
fn a_full_journal_is_emptied_with_one_file_more() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let settings = settings(directory.path());
    let path = settings.directory.clone();
    with_journal(settings, move |io, journal, _| {
        let path = path.clone();
        let files = move || std::fs::read_dir(&path).expect("readable").count();
        use_up_and_empty(io, journal, files)
    });
}

async fn use_up_and_empty(
    io: RingIo,
    journal: Result<Journal<RingIo>, OpenError>,
    files: impl Fn() -> usize,
) {
    let journal = journal.expect("opened");
    let large = vec![1; 1 << 20];
    while journal.room(large.len()).await.is_ok() {
        journal.append(entry(1), &large, |_| {}).expect("accepted");
    }
    let full = files();
    let mut decided = 0;
    let refusal = loop {
        match journal.room_to_decide(100).await {
            Ok(()) => {
                let appended = journal.append(entry(3), &[3; 100], |_| {}).expect("accepted");
                journal.wait_durable(appended.position).await.expect("durable");
                decided += 1;
            }
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal, Refusal::Full { bytes_max: 16 << 20 }, "after {decided}");
    assert!(decided > (4 << 20) / 4096, "{decided} decisions");
    assert_eq!(files(), full + 1);
    assert_eq!(journal.room(100).await, Err(Refusal::Full { bytes_max: 16 << 20 }));
    journal.release(12 << 20);
    journal.room(100).await.expect("room again");
    while files() > full {
        io.sleep(Duration::from_millis(1)).await;
    }
    journal.close().await;
}

#[test]
fn a_flipped_bit_before_the_last_group_is_damage_and_named() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let settings = settings(directory.path());
    with_journal(settings.clone(), |_, journal, _| async move {
        let journal = journal.expect("opened");
        for index in 0..10 {
            append_all(&journal, index * 20, index * 20 + 1).await;
        }
        journal.close().await;
    });
    let path = files::path(&settings.directory, 0);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).expect("a file");
    for position in [0, 20, 44, 64, 70, 4096 + 33] {
        let mut byte = [0];
        file.read_exact_at(&mut byte, position).expect("readable");
        file.write_all_at(&[byte[0] ^ 4], position).expect("writable");
        let message = with_journal(settings.clone(), |_, journal, _| async move {
            journal.err().map(|error| error.to_string())
        });
        let message = message.unwrap_or_else(|| panic!("byte {position} went unnoticed"));
        assert!(message.contains("journal-000000000000"), "{message}");
        file.write_all_at(&byte, position).expect("writable");
    }
    with_journal(settings, |_, journal, replayed| async move {
        journal.expect("sound again").close().await;
        assert_eq!(replayed.len(), 10);
    });
}

#[test]
fn a_torn_last_group_is_dropped_and_never_comes_back() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let settings = settings(directory.path());
    let last = with_journal(settings.clone(), |_, journal, _| async move {
        let journal = journal.expect("opened");
        append_all(&journal, 0, 1).await;
        append_all(&journal, 20, 21).await;
        let head = journal.head();
        append_all(&journal, 40, 41).await;
        // A closed one would say that this was durable.
        head
    });
    let path = files::path(&settings.directory, 0);
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("a file");
    file.write_all_at(&[0xee; 8], last + 80).expect("writable");
    let again = settings.clone();
    with_journal(settings, |_, journal, replayed| async move {
        let journal = journal.expect("a torn tail is no damage");
        assert_eq!(replayed.len(), 2);
        append_all(&journal, 60, 61).await;
        journal.close().await;
    });
    with_journal(again, |_, journal, replayed| async move {
        journal.expect("opened").close().await;
        assert_eq!(replayed.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 20, 60]);
    });
}

mod crashes;
mod damage;

#[test]
fn a_closed_journal_refuses_and_ends_those_who_wait() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    with_journal(settings(directory.path()), |io, journal, _| async move {
        let journal = journal.expect("opened");
        journal.wait_durable(Position(0)).await.expect("nothing is always durable");
        let appended = journal.append(entry(1), b"last", |_| {}).expect("accepted");
        let waiter = journal.clone();
        let (send, receive) = crate::io::mailbox::oneshot::channel();
        io.spawn("waiter", async move {
            let mut than = Position(0);
            let end = loop {
                match waiter.durable_after(than).await {
                    Ok(durable) => than = durable,
                    Err(end) => break end,
                }
            };
            drop(send.send((than, end)));
        });
        journal.close().await;
        let (than, end) = receive.await.expect("the waiter ends");
        assert!(than >= appended.position, "the closing group may have come behind it");
        assert!(end.to_string().contains("closed"), "{end}");
        assert!(journal.is_closed());
        assert_eq!(journal.append(entry(2), b"late", |_| {}), Err(Refusal::Closed));
        assert_eq!(journal.room(10).await, Err(Refusal::Closed));
        let read = journal.read(appended.location, usize::MAX).await.expect("reads go on");
        assert_eq!(read[..], b"last"[..]);
        let beyond = Location { address: journal.head(), length: 1 };
        assert!(journal.read(beyond, usize::MAX).await.is_err(), "nothing is written there");
    });
}

#[test]
fn what_is_released_while_it_waits_for_the_disk_keeps_its_file_until_then() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    with_journal(settings(directory.path()), |_, journal, _| async move {
        let journal = journal.expect("opened");
        let body = vec![3; 200 << 10];
        let mut last = Position(0);
        for _ in 0..300 {
            journal.room(body.len()).await.expect("room");
            last = journal.append(entry(3), &body, |_| {}).expect("accepted").position;
            journal.release(journal.head() + body.len() as u64);
        }
        journal.wait_durable(last).await.expect("durable");
        let (used, limit) = journal.usage();
        assert!(used <= limit);
        journal.close().await;
    });
    let names = std::fs::read_dir(directory.path().join("core-0")).expect("readable");
    assert!(names.count() <= 4, "files are used again");
}

/// Appenders would have waited for ever: two files of the old size were more than the new limit.
#[test]
fn a_limit_that_is_lowered_leaves_room_to_drain_files_of_the_old_size() {
    let folder = tempfile::tempdir().expect("a folder");
    let made = settings(folder.path());
    let work = |_, journal: Result<Journal<RingIo>, OpenError>, _| async move {
        let journal = journal.expect("opened");
        journal.room(100).await.expect("room");
        journal.append(entry(1), &body(1), |_| {}).expect("accepted");
        journal.close().await;
        journal.fill()
    };
    assert_eq!(with_journal(made.clone(), work), (1, 4));
    let lowered = Settings { bytes_max: 4 << 20, kept_bytes: 1 << 20, file_bytes: 1 << 20, ..made };
    assert_eq!(with_journal(lowered, work), (1, 3), "of four files one is kept from records");
}
