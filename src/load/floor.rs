//! The floor: what this machine could do at best, so that a broker's figures have a measure.
//!
//!     loopback   a record to another core over TCP, and its acknowledgement back
//!     flush      a record written directly and flushed, one after the other
//!     paced      both at once at --rate: a broker without protocol, which writes and flushes all
//!                that has arrived as one group and then acknowledges it; latency from the
//!                intended time, as in the other modes
//!     memory     copying, and CRC-32C, on one core
//!
//! Lives on: two cores, over the same seam as broker and generator.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::link::{Bell, await_frame, consume, frame, until};
use super::live::{Live, percentiles};
use super::machine::Machine;
use super::options::{Arguments, Plan, Rate};
use super::pace::Pacer;
use super::recorder::histogram;
use super::report::write_json;
use super::summary::latency_json;
use crate::base::time::Instant;
use crate::client::failure::Failure;
use crate::io::ring::{self, RingIo, probe};
use crate::io::{BLOCK_BYTES, Durability, File, Io, Listener, OpenHow, Stream};

/// The measured file; writes go round in it.
const FILE_BYTES: u64 = 64 << 20;
/// The largest group, as the broker's own.
const GROUP_BYTES_MAX: usize = 1 << 20;
const ARENA_BYTES: usize = 64 << 20;
/// Larger than the caches of today's servers.
const COPY_BYTES: usize = 256 << 20;
const CRC_BYTES: usize = 1 << 20;
const START_PAUSE: Duration = Duration::from_millis(1);
/// Sections that share the duration.
const SECTIONS: u32 = 3;
/// The first part of a section is not measured.
const WARM_UP_PART: u32 = 10;
/// What the other core is asked to do with a message.
const ECHO: u8 = 0;
const STORE: u8 = 1;

/// What both cores know.
#[derive(Clone)]
struct Setup {
    bytes: usize,
    section: Duration,
    rate: Option<Rate>,
    in_flight: usize,
    path: PathBuf,
    address: Arc<OnceLock<SocketAddr>>,
}

/// A section's latencies under its name.
type Named = (&'static str, Box<Histogram<u64>>);

enum Found {
    Times(&'static str, Box<Histogram<u64>>),
    Failed(String),
}

/// Measures and reports.
pub fn run(
    arguments: &Arguments,
    plan: &Plan,
    rate: Option<Rate>,
    live: &mut Live,
) -> Result<(), Failure> {
    let machine = Machine::this();
    let name = format!(".corelog-floor-{}", std::process::id());
    let setup = Setup {
        bytes: plan.sizes.max.clamp(1, GROUP_BYTES_MAX),
        section: plan.duration / SECTIONS,
        rate: rate.filter(|rate| matches!(rate, Rate::PerSecond(_))),
        in_flight: plan.in_flight,
        path: arguments.data_dir.join(name),
        address: Arc::default(),
    };
    let system = probe::file_system(&arguments.data_dir).map_err(|error| {
        Failure::Failed(format!("--data-dir {}: {error}", arguments.data_dir.display()))
    })?;
    live.say(&format!("machine     {}", machine.text()))?;
    let direct = if system.direct { "direct writes" } else { "no direct writes" };
    live.say(&format!("disk        {} on {}, {direct}", system.kind, system.device))?;
    let cpus = two_cpus(&plan.cpus);
    live.say(&format!("on CPUs {cpus:?}, {} bytes a record", setup.bytes))?;
    let found = measure(&setup, &cpus)?;
    let mut object = serde_json::Map::new();
    for (name, times) in &found {
        live.say(&format!("{name:10}  {}", percentiles(times)))?;
        object.insert(format!("{name}_us"), latency_json(times));
    }
    let (copy, crc) = (copy_rate(), crc_rate());
    live.say(&format!("memory      copies {copy:.1} GB/s, CRC-32C {crc:.1} GB/s on one core"))?;
    object.insert("copy_gb_per_second".into(), json!(copy));
    object.insert("crc_gb_per_second".into(), json!(crc));
    let rate = match setup.rate {
        Some(Rate::PerSecond(rate)) => json!(rate),
        _ => Value::Null,
    };
    let report = json!({
        "tool": format!("corelog load {}", env!("CARGO_PKG_VERSION")),
        "mode": "floor",
        "machine": machine.json(),
        "disk": { "system": system.kind, "device": system.device, "direct": system.direct },
        "record_bytes": setup.bytes,
        "rate": rate,
        "cpus": cpus,
        "floor": Value::Object(object),
    });
    write_json(arguments, &report)
}

/// The far end and the near end: two different CPUs where there are two.
fn two_cpus(chosen: &[usize]) -> Vec<usize> {
    let near = chosen.last().copied().unwrap_or(0);
    let others = chosen.iter().copied().chain(probe::cpus());
    let far = others.into_iter().find(|cpu| *cpu != near).unwrap_or(near);
    vec![far, near]
}

fn measure(setup: &Setup, cpus: &[usize]) -> Result<Vec<Named>, Failure> {
    let (out, found) = channel();
    let on_core = setup.clone();
    let executors = ring::boot(cpus, ARENA_BYTES, move |io: RingIo| {
        let (setup, out) = (on_core.clone(), out.clone());
        async move {
            let outcome = match io.core().index() {
                0 => far_end(&io, &setup, &out).await,
                _ => near_end(&io, &setup, &out).await,
            };
            if let Err(error) = outcome {
                // Without the far end the near end would wait for ever.
                let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
                let _ = setup.address.set(nowhere);
                drop(out.send(Found::Failed(format!("cannot measure the floor: {error}"))));
            }
        }
    })
    .map_err(|error| Failure::Failed(format!("cannot start two cores: {error}")))?;
    for executor in executors {
        executor.join().map_err(|error| Failure::Failed(error.to_string()))?;
    }
    let mut times = Vec::new();
    for found in found.try_iter() {
        match found {
            Found::Times(name, histogram) => times.push((name, histogram)),
            Found::Failed(why) => return Err(Failure::Failed(why)),
        }
    }
    Ok(times)
}

/// A measured stretch: its end, and where measuring begins.
fn stretch(io: &impl Io, setup: &Setup) -> (Instant, Instant) {
    let now = io.now();
    (now + setup.section / WARM_UP_PART, now + setup.section)
}

/// Measures the disk, then serves the near end.
async fn far_end<I: Io>(io: &I, setup: &Setup, out: &Sender<Found>) -> std::io::Result<()> {
    let store = Store::open(io, &setup.path).await?;
    let (from, end) = stretch(io, setup);
    let mut times = histogram();
    while io.now() < end {
        let began = io.now();
        store.write(setup.bytes).await?;
        if began >= from {
            times.saturating_record(io.now().0 - began.0);
        }
    }
    drop(out.send(Found::Times("flush", Box::new(times))));
    let listener = io.listen(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let _ = setup.address.set(listener.address());
    let stream = listener.accept().await?;
    let mut received = BytesMut::new();
    while let Ok(first) = await_frame(&stream, &mut received).await {
        let mut answered = 0_u32;
        let mut stored = 0;
        let mut length = first;
        // All that has arrived is one group.
        loop {
            if frame(&received, length).first() == Some(&STORE) {
                stored += length;
            }
            answered += 1;
            consume(&mut received, length);
            let Some(next) = whole(&received) else { break };
            length = next;
        }
        if stored > 0 {
            store.write(stored).await?;
        }
        stream.write(vec![message(&answered.to_be_bytes(), &Bytes::new())]).await?;
    }
    Ok(())
}

/// The length of the frame that is there already.
fn whole(received: &BytesMut) -> Option<usize> {
    let length = usize::try_from(u32::from_be_bytes(*received.first_chunk()?)).ok()?;
    (received.len() >= 4 + length).then_some(length)
}

/// A file that is written and flushed in blocks, round and round.
struct Store<F: File> {
    file: F,
    memory: Bytes,
    at: std::cell::Cell<u64>,
}

impl<F: File> Store<F> {
    async fn open<I: Io<File = F>>(io: &I, path: &Path) -> std::io::Result<Store<F>> {
        let file = io.open(path, OpenHow::CreateNew).await?;
        // Without a name, nothing is left behind however this ends.
        io.remove(path).await?;
        file.allocate(FILE_BYTES).await?;
        // What was just written and read back is aligned memory.
        let memory = file.read_at(0, GROUP_BYTES_MAX).await?.freeze();
        Ok(Store { file, memory, at: std::cell::Cell::new(0) })
    }

    async fn write(&self, bytes: usize) -> std::io::Result<()> {
        let mut left = bytes.next_multiple_of(BLOCK_BYTES);
        while left > 0 {
            let length = left.min(GROUP_BYTES_MAX);
            let size = u64::try_from(length).unwrap_or(0);
            let at = if self.at.get() + size > FILE_BYTES { 0 } else { self.at.get() };
            self.file.write_at(at, self.memory.slice(..length), Durability::Flushed).await?;
            self.at.set(at + size);
            left -= length;
        }
        Ok(())
    }
}

/// Length, kind, content.
fn message(kind: &[u8], content: &Bytes) -> Bytes {
    let mut message = BytesMut::with_capacity(4 + kind.len() + content.len());
    message.put_u32(u32::try_from(kind.len() + content.len()).unwrap_or(u32::MAX));
    message.put_slice(kind);
    message.put_slice(content);
    message.freeze()
}

/// Sends records and measures when they are acknowledged.
async fn near_end<I: Io>(io: &I, setup: &Setup, out: &Sender<Found>) -> std::io::Result<()> {
    let address = loop {
        match setup.address.get() {
            Some(address) => break *address,
            None => io.sleep(START_PAUSE).await,
        }
    };
    let stream = io.connect(address).await?;
    let record = Bytes::from(vec![b'.'; setup.bytes]);
    let echo = message(&[ECHO], &record);
    let mut received = BytesMut::new();
    let (from, end) = stretch(io, setup);
    let mut times = histogram();
    while io.now() < end {
        let began = io.now();
        stream.write(vec![echo.clone()]).await?;
        let length = await_frame(&stream, &mut received).await?;
        consume(&mut received, length);
        if began >= from {
            times.saturating_record(io.now().0 - began.0);
        }
    }
    drop(out.send(Found::Times("loopback", Box::new(times))));
    if let Some(rate) = setup.rate {
        let times = paced(io, setup, stream, rate, &record).await?;
        drop(out.send(Found::Times("paced", Box::new(times))));
    }
    Ok(())
}

/// Messages that wait for their acknowledgement.
#[derive(Default)]
struct Waiting {
    /// Intended times of the records of each.
    messages: RefCell<VecDeque<Vec<u64>>>,
    times: RefCell<Option<Histogram<u64>>>,
    bell: Bell,
}

async fn paced<I: Io>(
    io: &I,
    setup: &Setup,
    stream: I::Stream,
    rate: Rate,
    record: &Bytes,
) -> std::io::Result<Histogram<u64>> {
    let (stream, waiting) = (Rc::new(stream), Rc::new(Waiting::default()));
    waiting.times.replace(Some(histogram()));
    let (from, end) = stretch(io, setup);
    io.spawn("floor", listen(io.clone(), stream.clone(), waiting.clone(), from));
    let mut pacer = Pacer::new(rate, 0, 1, io.now().0);
    let room = || waiting.messages.borrow().len() < setup.in_flight;
    while io.now() < end || !waiting.messages.borrow().is_empty() {
        let now = io.now();
        let (mut content, mut times) = (BytesMut::new(), Vec::new());
        while room() && content.len() + record.len() <= GROUP_BYTES_MAX {
            let Some(intended) = pacer.due(now.0).filter(|at| *at < end.0) else { break };
            content.extend_from_slice(record);
            times.push(intended);
            pacer.advance();
        }
        if !times.is_empty() {
            waiting.messages.borrow_mut().push_back(times);
            stream.write(vec![message(&[STORE], &content.freeze())]).await?;
            continue;
        }
        if waiting.times.borrow().is_none() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        // Nothing is due at the end or later: waiting for it would be no waiting.
        let next = pacer.next().filter(|at| room() && *at < end.0);
        let next = next.map_or(Instant::NEVER, Instant);
        let wake = next.min(now + setup.section);
        until(waiting.bell.rung(), io.sleep_until(wake)).await;
    }
    stream.shutdown();
    Ok(waiting.times.take().unwrap_or_else(histogram))
}

/// Takes acknowledgements; without a histogram left behind, the connection broke.
async fn listen<I: Io>(io: I, stream: Rc<I::Stream>, waiting: Rc<Waiting>, from: Instant) {
    let mut received = BytesMut::new();
    while let Ok(length) = await_frame(&*stream, &mut received).await {
        let now = io.now().0;
        let count = frame(&received, length).first_chunk().map_or(0, |c| u32::from_be_bytes(*c));
        consume(&mut received, length);
        for _ in 0..count {
            let Some(batch) = waiting.messages.borrow_mut().pop_front() else { break };
            if let Some(times) = waiting.times.borrow_mut().as_mut() {
                let counted = batch.iter().filter(|intended| **intended >= from.0);
                counted.for_each(|intended| times.saturating_record(now - intended));
            }
        }
        waiting.bell.ring();
    }
    if !waiting.messages.borrow().is_empty() {
        waiting.times.replace(None);
    }
    waiting.bell.ring();
}

/// GB/s of copying memory that no cache holds.
fn copy_rate() -> f64 {
    let from = vec![1_u8; COPY_BYTES];
    let mut to = vec![0_u8; COPY_BYTES];
    // The first copy meets pages that are not there yet.
    to.copy_from_slice(&from);
    let began = std::time::Instant::now();
    to.copy_from_slice(std::hint::black_box(&from));
    std::hint::black_box(&to);
    COPY_BYTES as f64 / began.elapsed().as_secs_f64() / 1e9
}

/// GB/s of CRC-32C over memory in the cache.
fn crc_rate() -> f64 {
    const TIMES: usize = 256;
    let bytes = vec![1_u8; CRC_BYTES];
    let began = std::time::Instant::now();
    for _ in 0..TIMES {
        let bytes = std::hint::black_box(&bytes);
        std::hint::black_box(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes));
    }
    (CRC_BYTES * TIMES) as f64 / began.elapsed().as_secs_f64() / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ends_are_two_cpus_where_there_are_two() {
        let all = probe::cpus();
        let chosen = two_cpus(&all[all.len() - 1..]);
        assert_eq!(chosen.len(), 2);
        assert_eq!(chosen[0] == chosen[1], all.len() == 1);
        assert_eq!(two_cpus(&[4, 7]), [4, 7]);
    }

    #[test]
    fn a_frame_counts_once_it_is_whole() {
        let whole_frame = message(&[STORE], &Bytes::from_static(b"abc"));
        let mut received = BytesMut::from(&whole_frame[..]);
        assert_eq!(whole(&received), Some(4));
        assert_eq!(frame(&received, 4), b"\x01abc");
        received.truncate(7);
        assert_eq!(whole(&received), None);
    }
}
