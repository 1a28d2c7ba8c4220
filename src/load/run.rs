//! One run: boots the cores, gathers what they measure, and watches the processes meanwhile.
//!
//! Lives on: the main thread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use super::core::{Control, Message, run_core};
use super::keys::{Keys, Random};
use super::ledger::Ledger;
use super::live::Live;
use super::machine::{Process, Usage, usage};
use super::options::{Mode, Plan, Rate};
use super::payload::Pool;
use super::producer::Shape;
use super::recorder::{Interval, Phase};
use super::scout::{self, Board};
use super::summary::{Row, Summary};
use super::target::{Target, forget_groups};
use crate::client::failure::Failure;
use crate::io::ring::{self, RingIo, signals};

/// How soon the main thread notices a signal.
const ATTENTION: Duration = Duration::from_millis(50);
/// Direct reads need memory; the generator does none.
const ARENA_BYTES: usize = 1 << 20;

/// Whether the user wants the end.
#[derive(Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Listens to SIGINT and SIGTERM: the first asks for the end and its table, the second ends
    /// the process. Called before any other thread exists.
    pub fn on_signal() -> Result<Stop, Failure> {
        let failed = |error: std::io::Error| Failure::Failed(format!("signals: {error}"));
        signals::block().map_err(failed)?;
        let stop = Stop::default();
        let asked = stop.clone();
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                while signals::wait().is_ok() {
                    if asked.0.swap(true, Ordering::Relaxed) {
                        std::process::exit(130);
                    }
                }
            })
            .map_err(failed)?;
        Ok(stop)
    }

    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Runs the plan once at a rate.
pub fn run(
    plan: &Plan,
    target: &Target,
    rate: Rate,
    broker: Option<&Process>,
    live: &mut Live,
    stop: &Stop,
) -> Result<Summary, Failure> {
    let cores = plan.cpus.len();
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = seed.map_or(0, |since| since.as_nanos() as u64);
    let shape = Arc::new(Shape {
        plan: plan.clone(),
        target: target.clone(),
        rate,
        pool: Pool::new(plan.sizes.max, plan.batch_bytes, plan.compressibility, seed),
        keys: Keys::new(plan.keys),
        run: (Random::new(seed).bits() >> 32) as u32,
    });
    let producers = usize::try_from(plan.producers).unwrap_or(usize::MAX);
    let board = Arc::new(Board::new(target.route.clone()));
    scout::start(board.clone(), plan, &target.places)
        .map_err(|error| Failure::Failed(format!("cannot start a thread: {error}")))?;
    let members = if plan.is_grouped { plan.consumers } else { 0 };
    let members = usize::try_from(members).unwrap_or(usize::MAX);
    let control = Arc::new(Control::new(cores, producers, members, board.clone()));
    let (out, messages) = channel();
    let (on_core, its_control) = (shape.clone(), control.clone());
    let executors = ring::boot(&plan.cpus, ARENA_BYTES, move |io: RingIo| {
        run_core(io, on_core.clone(), its_control.clone(), out.clone())
    })
    .map_err(|error| Failure::Failed(format!("cannot start the generator's cores: {error}")))?;
    let mut gather = Gather {
        summary: Summary::new(rate, cores),
        ledger: Ledger::new(plan.groups),
        waiting: BTreeMap::new(),
        watch: Watch::new(broker.map(|process| process.pid)),
        cores,
        start: None,
        live,
    };
    let outcome = gather.all(&messages, &control, stop);
    control.interrupt();
    board.end();
    for executor in executors {
        executor.join().map_err(|error| Failure::Failed(format!("a core failed: {error}")))?;
    }
    outcome?;
    if plan.is_grouped && plan.group.is_none() {
        let groups: Vec<String> = (0..plan.groups).map(|group| shape.group_id(group)).collect();
        forget_groups(plan, &groups);
    }
    let Gather { mut summary, ledger, watch, .. } = gather;
    summary.verdict = (plan.mode == Mode::Verify).then(|| ledger.verdict());
    summary.was_interrupted = stop.is_asked();
    watch.conclude(&mut summary);
    Ok(summary)
}

/// Puts together what the cores tell.
struct Gather<'a> {
    summary: Summary,
    ledger: Ledger,
    /// Intervals that not all cores have told of.
    waiting: BTreeMap<u32, (usize, Interval)>,
    watch: Watch,
    cores: usize,
    start: Option<u64>,
    live: &'a mut Live,
}

impl Gather<'_> {
    /// Until each core has ended.
    fn all(
        &mut self,
        messages: &Receiver<Message>,
        control: &Control,
        stop: &Stop,
    ) -> Result<(), Failure> {
        let mut ended = 0;
        let mut failed = None;
        while ended < self.cores {
            if stop.is_asked() {
                control.interrupt();
            }
            match messages.recv_timeout(ATTENTION) {
                Ok(Message::Interval(interval)) => self.interval(*interval)?,
                Ok(Message::Ledger(ledger)) => self.ledger.merge(ledger),
                Ok(Message::Failed(why)) => failed = failed.or(Some(why)),
                Ok(Message::Ended) => ended += 1,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        while let Some((_, (_, interval))) = self.waiting.pop_first() {
            self.row(interval)?;
        }
        match failed {
            Some(why) => Err(Failure::Lost(why)),
            None => Ok(()),
        }
    }

    fn interval(&mut self, interval: Interval) -> Result<(), Failure> {
        let index = interval.index;
        match self.waiting.get_mut(&index) {
            Some((count, sum)) => {
                *count += 1;
                sum.merge(&interval);
            }
            None => drop(self.waiting.insert(index, (1, interval))),
        }
        if self.waiting.get(&index).is_some_and(|(count, _)| *count == self.cores)
            && let Some((_, interval)) = self.waiting.remove(&index)
        {
            self.row(interval)?;
        }
        Ok(())
    }

    fn row(&mut self, interval: Interval) -> Result<(), Failure> {
        let start = *self.start.get_or_insert(interval.span.start);
        let (broker_cpu, broker_resident) = self.watch.look(&interval);
        let at = interval.span.end.saturating_sub(start) as f64 / 1e9;
        let row = Row { interval, at, broker_cpu, broker_resident };
        self.live.show(&row)?;
        self.summary.add(row);
        Ok(())
    }
}

/// Reads what the processes use, at the end of each interval.
struct Watch {
    broker: Option<u32>,
    last: Option<Usage>,
    /// At the end of the warm-up, and at the end of what is measured: the broker, and ourselves.
    first: Option<(Option<Usage>, Usage)>,
    latest: Option<(Option<Usage>, Usage)>,
}

impl Watch {
    fn new(broker: Option<u32>) -> Watch {
        let mut watch = Watch { broker, last: None, first: None, latest: None };
        watch.first = watch.both();
        watch.last = watch.first.and_then(|(broker, _)| broker);
        watch
    }

    fn both(&self) -> Option<(Option<Usage>, Usage)> {
        Some((self.broker.and_then(usage), usage(std::process::id())?))
    }

    /// CPUs in use by the broker over the interval, and its memory.
    fn look(&mut self, interval: &Interval) -> (Option<f64>, Option<u64>) {
        let both = self.both();
        match interval.phase {
            Phase::WarmUp => self.first = both,
            Phase::Measured => self.latest = both,
            Phase::Drain => {}
        }
        let broker = both.and_then(|(broker, _)| broker);
        let spent = broker.zip(self.last).map(|(now, last)| now.cpu_seconds - last.cpu_seconds);
        self.last = broker;
        let cpus = spent.map(|spent| spent / interval.seconds().max(1e-3));
        (cpus, broker.map(|usage| usage.resident_bytes))
    }

    fn conclude(&self, summary: &mut Summary) {
        let (Some((broker_first, own_first)), Some((broker_last, own_last))) =
            (self.first, self.latest)
        else {
            return;
        };
        summary.own_cpu_seconds = own_last.cpu_seconds - own_first.cpu_seconds;
        summary.broker = broker_first.zip(broker_last).map(|(first, last)| Usage {
            cpu_seconds: last.cpu_seconds - first.cpu_seconds,
            resident_bytes: last.resident_bytes,
            written_bytes: last.written_bytes.saturating_sub(first.written_bytes),
            context_switches: last.context_switches.saturating_sub(first.context_switches),
        });
    }
}
