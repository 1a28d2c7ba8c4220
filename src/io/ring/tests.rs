//! The real seam against the real kernel: every trap that a test can show.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::*;
use crate::io::mailbox::mailbox;
use crate::io::{BLOCK_BYTES, Durability, File, Listener, Stream};

const ARENA_BYTES: usize = 64 << 20;

const ENGINES: [Engine; 2] = [Engine::Own, Engine::Glommio];

/// Runs `main` on one executor of each engine and returns what the last sends.
fn on_a_core<T, M, F>(main: M) -> T
where
    T: Send + 'static,
    M: Fn(RingIo) -> F + Clone + Send + 'static,
    F: Future<Output = T> + 'static,
{
    let outcomes = ENGINES.map(|engine| on_a_core_of(engine, main.clone()));
    outcomes.into_iter().next_back().expect("two")
}

fn on_a_core_of<T, M, F>(engine: Engine, main: M) -> T
where
    T: Send + 'static,
    M: Fn(RingIo) -> F + Clone + Send + 'static,
    F: Future<Output = T> + 'static,
{
    let (send, receive) = mpsc::channel();
    let executors = boot_on(engine, &[0], ARENA_BYTES, move |io| {
        let (main, send) = (main.clone(), send.clone());
        async move { drop(send.send(main(io).await)) }
    });
    for executor in executors.expect("bootable") {
        executor.join().expect("a clean end");
    }
    receive.recv().expect("an outcome")
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

#[test]
fn a_file_keeps_what_was_written_and_flushed() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let path = directory.path().join("journal");
    let outcome = on_a_core(move |io| {
        let path = path.clone();
        async move {
            let file = io.open(&path, OpenHow::CreateNew).await?;
            file.allocate(8 * BLOCK_BYTES as u64).await?;
            let mut block = io.arena().take(BLOCK_BYTES).expect("within the budget");
            block.fill(7);
            file.write_at(4096, block.freeze(), Durability::Flushed).await?;
            file.sync().await?;
            let read = file.read_at(0, 3 * BLOCK_BYTES).await?;
            assert!(read[..4096].iter().all(|byte| *byte == 0));
            assert!(read[4096..8192].iter().all(|byte| *byte == 7));
            for (blocks, step) in [(3, 1), (3, 2), (5, 2)] {
                let stepped =
                    file.read_in_steps(0, blocks * BLOCK_BYTES, step * BLOCK_BYTES).await?;
                assert_eq!(stepped.len(), blocks * BLOCK_BYTES);
                assert_eq!(stepped[..read.len()], read[..]);
            }
            assert_eq!(file.len(), 8 * BLOCK_BYTES as u64);
            let beyond = file.read_at(7 * 4096, 2 * 4096).await.map(|_| ());
            assert_eq!(beyond.map_err(|e| e.kind()), Err(io::ErrorKind::UnexpectedEof));
            let unaligned = file.read_at(1, 4096).await.map(|_| ());
            assert_eq!(unaligned.map_err(|e| e.kind()), Err(io::ErrorKind::InvalidInput));
            let renamed = path.with_extension("old");
            io.rename(&path, &renamed).await?;
            assert!(io.open(&path, OpenHow::Existing).await.is_err());
            assert!(io.open(&renamed, OpenHow::CreateNew).await.is_err());
            io.link(&renamed, &path).await?;
            let twice = io.link(&renamed, &path).await.map_err(|e| e.kind());
            assert_eq!(twice, Err(io::ErrorKind::AlreadyExists));
            io.remove(&renamed).await?;
            let other = io.open(&path, OpenHow::Existing).await?;
            assert!(other.read_at(4096, 4096).await?.iter().all(|byte| *byte == 7));
            io.remove(&path).await?;
            io::Result::Ok(io.list(path.parent().expect("a parent"))?.len())
        }
    });
    assert_eq!(outcome.expect("no error"), 0);
}

/// On kernels before 6.9 the core's own thread waited for the disk.
#[test]
fn a_file_is_cut_by_a_thread_beside_the_core() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let path = directory.path().join("segment");
    std::fs::write(&path, [7; 10_000]).expect("written");
    on_a_core(move |io| {
        let path = path.clone();
        async move {
            let file = std::fs::File::options().write(true).open(&path).expect("there");
            let descriptor = std::os::fd::OwnedFd::from(file);
            for length in [9_000, 20_000, 5] {
                beside::truncate(&io, &descriptor, length).await.expect("it can be cut");
                assert_eq!(std::fs::metadata(&path).expect("there").len(), length);
            }
            let refused = beside::truncate(&io, &descriptor, u64::MAX).await;
            assert!(refused.is_err(), "no file is so long");
        }
    });
}

#[test]
fn no_descriptor_is_no_fault_of_the_disk() {
    for code in [libc::EMFILE, libc::ENFILE, libc::ENOMEM] {
        let told = file::in_kind(io::Error::from_raw_os_error(code));
        assert_eq!(told.kind(), io::ErrorKind::OutOfMemory, "{told}");
    }
    assert_eq!(file::in_kind(io::Error::from_raw_os_error(5)).raw_os_error(), Some(5));
}

#[test]
fn a_megabyte_is_echoed_through_a_slow_reader_and_both_ends_close() {
    on_a_core(|io| async move {
        let listener = io.listen(any_port()).expect("a free port");
        let address = listener.address();
        let server = io.clone();
        io.spawn("server", async move {
            let stream = listener.accept().await.expect("a client");
            let mut received = BytesMut::new();
            while stream.read(&mut received, 1 << 20).await.expect("readable") > 0 {}
            server.sleep(Duration::from_millis(20)).await;
            let pieces = received.freeze();
            let pieces = pieces.chunks(1000).map(Bytes::copy_from_slice).collect();
            stream.write(pieces).await.expect("writable");
        });
        let client = io.connect(address).await.expect("connected");
        let sent: Vec<u8> = (0..4_000_000_u32).map(|i| i.to_le_bytes()[1]).collect();
        client.write(vec![Bytes::from(sent.clone())]).await.expect("writable");
        client.shutdown_write();
        let mut back = BytesMut::new();
        while client.read(&mut back, 64 << 10).await.expect("readable") > 0 {}
        assert!(back == sent);
    });
}

#[test]
fn closing_a_listener_ends_its_accept() {
    on_a_core(|io| async move {
        let listener = Rc::new(io.listen(any_port()).expect("a free port"));
        let ended = Rc::new(Cell::new(false));
        let (task_listener, task_ended) = (listener.clone(), ended.clone());
        io.spawn("accept", async move {
            let outcome = task_listener.accept().await.map(|_| ());
            assert_eq!(outcome.map_err(|e| e.kind()), Err(io::ErrorKind::Interrupted));
            task_ended.set(true);
        });
        io.sleep(Duration::from_millis(5)).await;
        listener.close();
        while !ended.get() {
            io.sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn dropped_operations_leak_neither_slots_nor_descriptors() {
    let before = open_descriptors();
    on_a_core(|io| async move {
        io.sleep(Duration::from_millis(1)).await;
        // The executor itself waits to be woken.
        let idle = io.driver().in_flight();
        let listener = io.listen(any_port()).expect("a free port");
        for _ in 0..50 {
            let client = io.connect(listener.address()).await.expect("connected");
            let accept = std::pin::pin!(listener.accept());
            let timer = std::pin::pin!(io.sleep(Duration::ZERO));
            futures_util::future::select(timer, accept).await;
            let mut buffer = BytesMut::new();
            let read = std::pin::pin!(client.read(&mut buffer, 10));
            let timer = std::pin::pin!(io.sleep(Duration::from_micros(50)));
            futures_util::future::select(timer, read).await;
        }
        drop(listener);
        for _ in 0..1000 {
            if io.driver().in_flight() <= idle {
                return;
            }
            io.sleep(Duration::from_millis(1)).await;
        }
        panic!("{} operations still in flight", io.driver().in_flight());
    });
    // Other tests open descriptors at the same time; a leak of 50 sockets would still show.
    assert!(open_descriptors() < before + 45, "{} then {}", before, open_descriptors());
}

#[test]
fn many_small_operations_never_stall() {
    let outcome = on_a_core(|io| async move {
        let listener = io.listen(any_port()).expect("a free port");
        let address = listener.address();
        let server = io.clone();
        io.spawn("server", async move {
            loop {
                let Ok(stream) = listener.accept().await else { return };
                server.spawn("echo", async move {
                    let mut buffer = BytesMut::new();
                    while stream.read(&mut buffer, 4096).await.is_ok_and(|count| count > 0) {
                        let piece = buffer.split().freeze();
                        if stream.write(vec![piece]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let done = Rc::new(Cell::new(0_u32));
        for _ in 0..16 {
            let (io, done) = (io.clone(), done.clone());
            let task_io = io.clone();
            io.spawn("client", async move {
                let stream = task_io.connect(address).await.expect("connected");
                let mut buffer = BytesMut::new();
                for round in 0..2500_u32 {
                    let request = Bytes::copy_from_slice(&round.to_le_bytes());
                    stream.write(vec![request]).await.expect("writable");
                    buffer.clear();
                    while buffer.len() < 4 {
                        assert!(stream.read(&mut buffer, 64).await.expect("readable") > 0);
                    }
                    assert_eq!(buffer[..], round.to_le_bytes());
                }
                done.set(done.get() + 1);
            });
        }
        while done.get() < 16 {
            io.sleep(Duration::from_millis(5)).await;
        }
        done.get()
    });
    assert_eq!(outcome, 16);
}

#[test]
fn messages_cross_cores_and_sleeping_executors_wake() {
    for engine in ENGINES {
        cross_cores(engine);
    }
}

fn cross_cores(engine: Engine) {
    let cpus = probe::cpus();
    let second = cpus.get(1).copied().unwrap_or(cpus[0]);
    let (to_one, from_zero) = mailbox::<u32>(16);
    let (to_zero, from_one) = mailbox::<u32>(16);
    let ends = std::sync::Mutex::new((Some((to_one, from_one)), Some((to_zero, from_zero))));
    let ends = std::sync::Arc::new(ends);
    let executors = boot_on(engine, &[cpus[0], second], 1 << 20, move |io| {
        let ends = ends.clone();
        async move {
            let (sender, mut receiver) = {
                let mut ends = ends.lock().expect("no panic");
                if io.core() == CoreId(0) { ends.0.take() } else { ends.1.take() }.expect("once")
            };
            if io.core() == CoreId(0) {
                for number in 0..2000 {
                    sender.send(number).await.expect("a receiver");
                    assert_eq!(receiver.recv().await, Some(number + 1));
                }
            } else {
                while let Some(number) = receiver.recv().await {
                    if sender.send(number + 1).await.is_err() {
                        break;
                    }
                }
            }
        }
    });
    for executor in executors.expect("bootable") {
        executor.join().expect("a clean end");
    }
}

/// X3: a task that is always ready keeps neither timers nor completions from their turn.
#[test]
fn a_task_that_wakes_itself_starves_nobody() {
    on_a_core(|io| async move {
        let (done, hog) = (Rc::new(Cell::new(false)), io.clone());
        let seen = done.clone();
        io.spawn("hog", async move {
            while !seen.get() {
                hog.cede().await;
            }
        });
        let listener = io.listen(any_port()).expect("a free port");
        for _ in 0..100 {
            drop(io.connect(listener.address()).await.expect("connected"));
            io.sleep(Duration::from_micros(10)).await;
        }
        done.set(true);
    });
}

/// X2: wakes from a plain thread, against an executor that parks after each.
#[test]
fn wakes_from_other_threads_are_not_lost() {
    for engine in ENGINES {
        let (sender, receiver) = mailbox::<u32>(4);
        let (answer, answered) = mpsc::channel();
        let ends = std::sync::Arc::new(std::sync::Mutex::new(Some((receiver, answer))));
        let executors = boot_on(engine, &[0], 1 << 20, move |_| {
            let ends = ends.lock().expect("no panic").take();
            async move {
                let (mut receiver, answer) = ends.expect("once");
                while let Some(number) = receiver.recv().await {
                    answer.send(number).expect("the test waits");
                }
            }
        });
        for number in 0..20_000 {
            assert!(sender.try_send(number).is_ok());
            assert_eq!(answered.recv_timeout(Duration::from_secs(20)), Ok(number), "{engine:?}");
        }
        drop(sender);
        for executor in executors.expect("bootable") {
            executor.join().expect("a clean end");
        }
    }
}

/// An alarm that is given up leaves nothing behind, and those of one instant all sound.
#[test]
fn alarms_sound_in_order_and_can_be_given_up() {
    on_a_core(|io| async move {
        let began = io.now();
        let sounded = Rc::new(std::cell::RefCell::new(Vec::new()));
        for number in (0..20_u64).rev() {
            let (task_io, sounded) = (io.clone(), sounded.clone());
            io.spawn("alarm", async move {
                task_io.sleep_until(began + Duration::from_millis(20 + number / 2 * 4)).await;
                sounded.borrow_mut().push(number / 2);
            });
        }
        for _ in 0..100 {
            let given_up = std::pin::pin!(io.sleep(Duration::from_secs(3600)));
            futures_util::future::select(given_up, std::pin::pin!(io.cede())).await;
        }
        io.sleep_until(began + Duration::from_millis(70)).await;
        let sounded = sounded.borrow();
        assert_eq!(*sounded, (0..10).flat_map(|number| [number; 2]).collect::<Vec<_>>());
        assert!(io.now() - began >= Duration::from_millis(70));
    });
}
