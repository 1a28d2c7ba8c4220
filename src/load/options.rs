//! The options of `corelog load`, read and judged before anything is connected.

use std::path::PathBuf;
use std::time::Duration;

use super::keys::KeyShape;
use super::payload::{STAMP_BYTES, Sizes};
use super::transaction::{Size, Transactions};
use crate::client::failure::Failure;
use crate::client::security::{Security, SecurityArguments, nonce};
use crate::config::parse_cpus;
use crate::io::ring::probe;
use crate::wire::records::Codec;

/// Batches and records above this are refused: a Produce request holds them in one piece.
const BATCH_BYTES_MAX: usize = 256 << 20;
const RECORD_BYTES_MAX: usize = 64 << 20;
/// Keys are numbered up to here, because zipf holds a table of them.
const KEYS_MAX: u64 = 10_000_000;
const CLIENTS_MAX: u32 = 100_000;
const IN_FLIGHT_MAX: usize = 1_000;
const RATES_MAX: usize = 1_000;
const WARM_UP: Duration = Duration::from_secs(1);

/// What is done to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Write at a rate, or as fast as it goes.
    Produce,
    /// Read as fast as it goes.
    Consume,
    /// Write and read at the same time; measure from the intended time of sending to receipt.
    E2e,
    /// Write, and read what is there from the beginning, at the same time.
    Mixed,
    /// Write records with checksums, read them back; report lost, duplicated, reordered, corrupted.
    Verify,
    /// The machine's own limits: loopback, disk, memory, checksum. Needs no broker.
    Floor,
}

impl Mode {
    pub fn produces(self) -> bool {
        !matches!(self, Mode::Consume | Mode::Floor)
    }

    pub fn consumes(self) -> bool {
        !matches!(self, Mode::Produce | Mode::Floor)
    }

    pub fn name(self) -> &'static str {
        match self {
            Mode::Produce => "produce",
            Mode::Consume => "consume",
            Mode::E2e => "e2e",
            Mode::Mixed => "mixed",
            Mode::Verify => "verify",
            Mode::Floor => "floor",
        }
    }
}

/// Where consumers begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Start {
    Beginning,
    End,
}

/// Which records consumers are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Isolation {
    /// Those of transactions that are committed, and those outside of transactions.
    ReadCommitted,
    /// All.
    ReadUncommitted,
}

impl Isolation {
    pub fn name(self) -> &'static str {
        match self {
            Isolation::ReadCommitted => "read_committed",
            Isolation::ReadUncommitted => "read_uncommitted",
        }
    }

    /// Kafka's number for it in requests.
    pub fn level(self) -> i8 {
        i8::from(self == Isolation::ReadCommitted)
    }
}

#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pub security: SecurityArguments,
    /// What is done.
    #[arg(value_enum)]
    pub mode: Mode,
    /// A broker's HOST:PORT; several, separated by commas, are tried in turn.
    #[arg(short, long, value_name = "HOST:PORT", default_value = "127.0.0.1:9092")]
    pub bootstrap: String,
    /// Producers, each with a connection of its own to each leader.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub producers: u32,
    /// Consumers, each with a connection of its own to each leader.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub consumers: u32,
    /// Consumer groups that the consumers are members of, spread evenly; each reads all partitions.
    /// Unless given, the consumers share the partitions among them and join no group.
    #[arg(long, value_name = "NUMBER")]
    pub groups: Option<u32>,
    /// The group's id, or with several the start of their ids: reading goes on where it was
    /// committed last. Unless given, groups are new ones, deleted after the run.
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,
    /// How often the members of groups commit what they have read; at the end they always do.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_time)]
    pub commit_interval: Duration,
    /// Number of topics, named as --topic with -0, -1, ... behind it.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub topics: u32,
    /// The topic; created where it is missing.
    #[arg(short, long, value_name = "NAME", default_value = "load")]
    pub topic: String,
    /// Partitions of a topic that is created, and the least that one which is there must have.
    #[arg(short, long, value_name = "NUMBER", default_value_t = 1)]
    pub partitions: u32,
    /// Replicas of a topic that is created.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub replication: u16,
    /// Records per second of all producers together, open loop; `max`: as fast as it goes, closed
    /// loop.
    #[arg(short, long, value_name = "NUMBER", default_value = "max")]
    pub rate: String,
    /// Bytes of a record's value: N, or MIN-MAX uniformly.
    #[arg(short = 's', long, value_name = "BYTES", default_value = "1024")]
    pub record_size: String,
    /// Keys: none, uniform:N or zipf:N among N different ones.
    #[arg(long, value_name = "SHAPE", default_value = "none")]
    pub keys: String,
    /// The part of each value that compresses to nothing, from 0 to 1.
    #[arg(long, value_name = "PART", default_value_t = 0.0)]
    pub compressibility: f64,
    /// Whose acknowledgement to wait for.
    #[arg(long, default_value = "all", value_parser = ["0", "1", "all"])]
    pub acks: String,
    /// Number the batches, so that a repeated one is stored once; needs --acks all.
    #[arg(long)]
    pub idempotent: bool,
    /// Write in transactions of so many records, or, as 500ms or 2s, of so much time; each producer
    /// has one at a time. Implies --idempotent.
    #[arg(long, value_name = "RECORDS|TIME")]
    pub transactions: Option<String>,
    /// The part of the transactions that is aborted instead of committed, from 0 to 1.
    #[arg(long, value_name = "PART", default_value_t = 0.0, requires = "transactions")]
    pub abort_share: f64,
    /// The start of the producers' transactional ids; unless given, they are new ones.
    #[arg(long, value_name = "NAME", requires = "transactions")]
    pub transactional_id: Option<String>,
    /// Which records consumers are given; with --transactions those that are committed, unless told
    /// otherwise, and without it all.
    #[arg(long, value_enum)]
    pub isolation: Option<Isolation>,
    /// Compress batches.
    #[arg(short = 'z', long, default_value = "none",
        value_parser = ["none", "gzip", "snappy", "lz4", "zstd"])]
    pub codec: String,
    /// Milliseconds that a batch waits for company; fractions count.
    #[arg(long, value_name = "MS", default_value_t = 0.0)]
    pub linger: f64,
    /// A batch is closed when it reaches so many bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 16_384)]
    pub batch_bytes: usize,
    /// Requests of a connection that wait for their answers at a time.
    #[arg(long, value_name = "NUMBER", default_value_t = 5)]
    pub in_flight: usize,
    /// Bytes of one partition that a fetch asks for.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20)]
    pub fetch_bytes: u32,
    /// Where consumers begin; `consume` and `mixed` read from the beginning unless told otherwise.
    #[arg(long, value_enum)]
    pub from: Option<Start>,
    /// Seconds (or 500ms, 2m) that are not measured; 1s unless given, for `consume` none.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub warm_up: Option<Duration>,
    /// Seconds (or 500ms, 2m) that are measured. `consume` ends earlier when everything is read.
    #[arg(short, long, value_name = "TIME", default_value = "10s", value_parser = parse_time)]
    pub duration: Duration,
    /// Rates to try one after the other: A,B,C.
    #[arg(long, value_name = "RATES", conflicts_with_all = ["rate", "ramp"])]
    pub sweep: Option<String>,
    /// Rates that grow, FROM:TO:STEP, until p99 passes --p99-max.
    #[arg(long, value_name = "FROM:TO:STEP", conflicts_with = "rate")]
    pub ramp: Option<String>,
    /// Milliseconds of p99 that the highest rate of a sweep or ramp must keep.
    #[arg(long, value_name = "MS", default_value_t = 10.0)]
    pub p99_max: f64,
    /// CPUs to run on, a thread each, as 0-3 or 0,2; unless given, the last one.
    #[arg(long, value_name = "CPUS", default_value = "")]
    pub cores: String,
    /// The directory whose device `floor` measures.
    #[arg(long, value_name = "DIRECTORY", default_value = ".")]
    pub data_dir: PathBuf,
    /// Write everything that was measured as JSON; `-` is the standard output.
    #[arg(long, value_name = "FILE")]
    pub json: Option<String>,
    /// Write the latencies of each second in the log format of HdrHistogram.
    #[arg(long, value_name = "FILE")]
    pub hdr_log: Option<PathBuf>,
    /// Write a report as one HTML file.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// How fast producers go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// Closed loop: the next record when there is room for it.
    Max,
    /// Open loop: so many records per second, each at its intended time, whatever the broker does.
    PerSecond(f64),
}

impl Rate {
    pub fn text(self) -> String {
        match self {
            Rate::Max => "max, closed loop".to_string(),
            Rate::PerSecond(rate) => format!("{rate} records/s, open loop"),
        }
    }
}

/// The options as values that fit together.
#[derive(Clone, Debug)]
pub struct Plan {
    pub mode: Mode,
    pub bootstrap: String,
    pub security: Security,
    pub producers: u32,
    pub consumers: u32,
    /// How often everything is read.
    pub groups: u32,
    /// Whether the consumers are members of groups.
    pub is_grouped: bool,
    pub group: Option<String>,
    pub commit_interval: Duration,
    pub topics: Vec<String>,
    pub partitions: u32,
    pub replication: u16,
    pub sizes: Sizes,
    pub keys: KeyShape,
    pub compressibility: f64,
    pub acks: i16,
    pub idempotent: bool,
    pub transactions: Option<Transactions>,
    pub isolation: Isolation,
    pub codec: Codec,
    pub linger: Duration,
    pub batch_bytes: usize,
    pub in_flight: usize,
    pub fetch_bytes: i32,
    pub from: Start,
    pub warm_up: Duration,
    pub duration: Duration,
    pub cpus: Vec<usize>,
}

impl Arguments {
    /// Judges the options.
    pub fn plan(&self) -> Result<Plan, Failure> {
        self.check_ranges()?;
        let sizes = parse_sizes(&self.record_size)?;
        if matches!(self.mode, Mode::E2e | Mode::Verify) && sizes.min < STAMP_BYTES {
            let name = self.mode.name();
            return usage(format!(
                "--record-size {}: `{name}` needs {STAMP_BYTES} bytes at least, for time, \
                 sequence and checksum",
                self.record_size
            ));
        }
        let acks = self.acks.parse().unwrap_or(-1);
        let transactions = self.transactions()?;
        if (self.idempotent || transactions.is_some()) && acks != -1 {
            let option = if self.idempotent { "--idempotent" } else { "--transactions" };
            return usage(format!("{option} needs --acks all"));
        }
        if self.mode == Mode::Verify && acks == 0 {
            return usage("verify needs acknowledgements: --acks 1 or all".to_string());
        }
        let topics = match self.topics {
            1 => vec![self.topic.clone()],
            count => (0..count).map(|index| format!("{}-{index}", self.topic)).collect(),
        };
        let from = match self.mode {
            Mode::Consume | Mode::Mixed => Start::Beginning,
            _ => Start::End,
        };
        let warm_up = if self.mode == Mode::Consume { Duration::ZERO } else { WARM_UP };
        Ok(Plan {
            mode: self.mode,
            bootstrap: self.bootstrap.clone(),
            security: self.security.security()?,
            producers: if self.mode.produces() { self.producers } else { 0 },
            consumers: if self.mode.consumes() { self.consumers } else { 0 },
            groups: self.groups.unwrap_or(1),
            is_grouped: self.mode.consumes() && (self.groups.is_some() || self.group.is_some()),
            group: self.group.clone(),
            commit_interval: self.commit_interval,
            topics,
            partitions: self.partitions,
            replication: self.replication,
            sizes,
            keys: parse_keys(&self.keys)?,
            compressibility: self.compressibility,
            acks,
            idempotent: self.idempotent || transactions.is_some(),
            isolation: self.isolation.unwrap_or(match transactions {
                Some(_) => Isolation::ReadCommitted,
                None => Isolation::ReadUncommitted,
            }),
            transactions,
            codec: Codec::from_name(&self.codec).unwrap_or(Codec::None),
            linger: Duration::from_secs_f64(self.linger / 1e3),
            batch_bytes: self.batch_bytes,
            in_flight: self.in_flight,
            fetch_bytes: i32::try_from(self.fetch_bytes).unwrap_or(i32::MAX),
            from: self.from.unwrap_or(from),
            warm_up: self.warm_up.unwrap_or(warm_up),
            duration: self.duration,
            cpus: chosen_cpus(&self.cores)?,
        })
    }

    fn transactions(&self) -> Result<Option<Transactions>, Failure> {
        let Some(text) = &self.transactions else { return Ok(None) };
        let is_count = text.bytes().all(|byte| byte.is_ascii_digit());
        let size = match text.parse::<u64>() {
            Ok(records @ 1..) => Some(Size::Records(records)),
            _ if is_count => None,
            _ => parse_time(text).ok().filter(|time| !time.is_zero()).map(Size::Time),
        };
        let Some(size) = size else {
            return usage(format!(
                "--transactions {text}: give a number of records, or a time as 500ms or 2s"
            ));
        };
        if !self.mode.produces() {
            return usage(format!("--transactions: `{}` writes nothing", self.mode.name()));
        }
        let id = self.transactional_id.clone();
        let [a, b, c, d, ..] = nonce();
        let mark = u32::from_be_bytes([a, b, c, d]);
        let id = id.unwrap_or_else(|| format!("corelog-load-{mark:08x}"));
        Ok(Some(Transactions { size, abort_share: self.abort_share, id }))
    }

    /// The rates to run, in their order; more than one for a sweep or ramp.
    pub fn rates(&self) -> Result<Vec<Rate>, Failure> {
        if let Some(list) = &self.sweep {
            return list.split(',').map(|rate| parse_rate("--sweep", rate)).collect();
        }
        let Some(ramp) = &self.ramp else { return Ok(vec![parse_rate("--rate", &self.rate)?]) };
        let parts = ramp.split(':').map(|part| part.parse::<f64>().ok());
        let parts: Option<Vec<f64>> = parts.collect();
        let Some(&[first, last, step]) = parts.as_deref() else {
            return usage(format!("--ramp {ramp}: give FROM:TO:STEP in records per second"));
        };
        let is_sane = first >= 1.0 && last >= first && step >= 1.0;
        if !is_sane || (last - first) / step > RATES_MAX as f64 {
            return usage(format!("--ramp {ramp}: give at most {RATES_MAX} growing rates"));
        }
        let mut rates = Vec::new();
        let mut rate = first;
        while rate <= last {
            rates.push(Rate::PerSecond(rate));
            rate += step;
        }
        Ok(rates)
    }

    fn check_ranges(&self) -> Result<(), Failure> {
        let groups = self.groups.unwrap_or(1);
        let clients = 1..=CLIENTS_MAX;
        let is_time = |ms: f64| ms.is_finite() && (0.0..=3.6e6).contains(&ms);
        for (fits, what) in [
            (clients.contains(&self.producers), "--producers: from 1 to 100000"),
            (clients.contains(&self.consumers), "--consumers: from 1 to 100000"),
            ((1..=1000).contains(&groups), "--groups: from 1 to 1000"),
            (groups <= self.consumers, "--groups: at most as many as --consumers"),
            (self.group.as_deref() != Some(""), "--group: a name"),
            (!self.commit_interval.is_zero(), "--commit-interval: above 0"),
            ((1..=10_000).contains(&self.topics), "--topics: from 1 to 10000"),
            ((1..=1_000_000).contains(&self.partitions), "--partitions: from 1 to 1000000"),
            ((1..=1000).contains(&self.replication), "--replication: from 1 to 1000"),
            ((0.0..=1.0).contains(&self.abort_share), "--abort-share: from 0 to 1"),
            (self.transactional_id.as_deref() != Some(""), "--transactional-id: a name"),
            ((0.0..=1.0).contains(&self.compressibility), "--compressibility: from 0 to 1"),
            (is_time(self.linger), "--linger: milliseconds from 0 to an hour"),
            (is_time(self.p99_max), "--p99-max: milliseconds from 0 to an hour"),
            ((1..=BATCH_BYTES_MAX).contains(&self.batch_bytes), "--batch-bytes: at most 256 MiB"),
            ((1..=IN_FLIGHT_MAX).contains(&self.in_flight), "--in-flight: from 1 to 1000"),
            ((1..=1 << 30).contains(&self.fetch_bytes), "--fetch-bytes: at most 1 GiB"),
            (!self.duration.is_zero(), "--duration: above 0"),
        ] {
            if !fits {
                return usage(what.to_string());
            }
        }
        Ok(())
    }
}

fn usage<T>(text: String) -> Result<T, Failure> {
    Err(Failure::Usage(text))
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("give seconds, or a number with ms, s, m or h".to_string()),
    };
    let seconds = digits.parse::<f64>().map_err(|_| "give a number of seconds".to_string())? * unit;
    if !(0.0..=1e6).contains(&seconds) {
        return Err("give a time from 0 to 1000000 seconds".to_string());
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn parse_rate(option: &str, text: &str) -> Result<Rate, Failure> {
    if text == "max" {
        return Ok(Rate::Max);
    }
    match text.trim().parse::<f64>() {
        Ok(rate) if (1e-3..=1e9).contains(&rate) => Ok(Rate::PerSecond(rate)),
        _ => usage(format!("{option} {text}: give records per second, or max")),
    }
}

fn parse_sizes(text: &str) -> Result<Sizes, Failure> {
    let (min, max) = text.split_once('-').unwrap_or((text, text));
    match (min.parse::<usize>(), max.parse::<usize>()) {
        (Ok(min), Ok(max)) if min <= max && max <= RECORD_BYTES_MAX => Ok(Sizes { min, max }),
        _ => usage(format!("--record-size {text}: give BYTES or MIN-MAX, at most 64 MiB")),
    }
}

fn parse_keys(text: &str) -> Result<KeyShape, Failure> {
    let (shape, count) = text.split_once(':').unwrap_or((text, "0"));
    let count = count.parse::<u64>().unwrap_or(0);
    match shape {
        "none" if text == "none" => Ok(KeyShape::None),
        "uniform" if (1..=KEYS_MAX).contains(&count) => Ok(KeyShape::Uniform(count)),
        "zipf" if (1..=KEYS_MAX).contains(&count) => Ok(KeyShape::Zipf(count)),
        _ => usage(format!("--keys {text}: give none, uniform:N or zipf:N, N up to {KEYS_MAX}")),
    }
}

fn chosen_cpus(text: &str) -> Result<Vec<usize>, Failure> {
    let allowed = probe::cpus();
    let named = parse_cpus(text).map_err(|refused| Failure::Usage(refused.to_string()))?;
    if named.is_empty() {
        return Ok(allowed.last().copied().into_iter().collect());
    }
    match named.iter().find(|cpu| !allowed.contains(cpu)) {
        Some(cpu) => usage(format!("--cores {text}: CPU {cpu} is not one of {allowed:?}")),
        None => Ok(named),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn read(line: &str) -> Result<(Plan, Vec<Rate>), String> {
        let words = std::iter::once("load").chain(line.split(' '));
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        let plan = line.arguments.plan().map_err(|failure| failure.to_string())?;
        Ok((plan, line.arguments.rates().map_err(|failure| failure.to_string())?))
    }

    #[test]
    fn options_become_a_plan() {
        let (plan, rates) = read(
            "e2e --rate 5e4 --record-size 100-200 --keys zipf:1000 --linger 0.5 --topics 3 \
             --acks all --idempotent --warm-up 500ms --duration 2m",
        )
        .expect("valid");
        assert_eq!(rates, [Rate::PerSecond(50_000.0)]);
        assert_eq!(plan.sizes, Sizes { min: 100, max: 200 });
        assert_eq!(plan.keys, KeyShape::Zipf(1000));
        assert_eq!(plan.linger, Duration::from_micros(500));
        assert_eq!(plan.topics, ["load-0", "load-1", "load-2"]);
        assert_eq!((plan.acks, plan.warm_up.as_millis(), plan.duration.as_secs()), (-1, 500, 120));
        assert_eq!(plan.from, Start::End);
        assert_eq!(read("consume").expect("valid").0.from, Start::Beginning);
        let transactions = |line| {
            let (plan, _) = read(line).expect("valid");
            let size = plan.transactions.map(|transactions| transactions.size);
            (size, plan.idempotent, plan.isolation)
        };
        let line = "verify --transactions 100 --abort-share 0.5";
        let committed = Isolation::ReadCommitted;
        assert_eq!(transactions(line), (Some(Size::Records(100)), true, committed));
        let line = "verify --transactions 500ms --isolation read_uncommitted";
        let half = Some(Size::Time(Duration::from_millis(500)));
        assert_eq!(transactions(line), (half, true, Isolation::ReadUncommitted));
        assert_eq!(transactions("verify"), (None, false, Isolation::ReadUncommitted));
        assert_eq!(transactions("consume --isolation read_committed").2, committed);
        let groups = |line| read(line).map(|(plan, _)| (plan.is_grouped, plan.groups));
        assert_eq!(groups("consume --consumers 4"), Ok((false, 1)));
        assert_eq!(groups("consume --consumers 4 --groups 2"), Ok((true, 2)));
        assert_eq!(groups("consume --group readers"), Ok((true, 1)));
        assert_eq!(groups("produce --group readers"), Ok((false, 1)));
        let ramp = read("produce --ramp 10:35:10").expect("valid").1;
        assert_eq!(ramp, [10.0, 20.0, 30.0].map(Rate::PerSecond));
        assert_eq!(read("produce --sweep 5,max").expect("valid").1.len(), 2);
    }

    #[test]
    fn options_that_do_not_fit_are_refused() {
        for line in [
            "produce --rate fast",
            "produce --rate 0",
            "produce --record-size 9-3",
            "produce --keys zipf",
            "produce --compressibility 2",
            "produce --idempotent --acks 1",
            "produce --transactions 0",
            "produce --transactions 0ms",
            "produce --transactions many",
            "produce --transactions 10 --abort-share 2",
            "produce --transactions 10 --acks 1",
            "produce --abort-share 0.5",
            "consume --transactions 10",
            "consume --isolation some",
            "produce --linger -1",
            "produce --cores 9999",
            "produce --ramp 1:2",
            "produce --ramp 1:1000000:1",
            "produce --sweep 1 --rate 2",
            "produce --duration 0",
            "produce --duration 5weeks",
            "e2e --record-size 8",
            "verify --acks 0",
            "consume --groups 2",
            "consume --groups 0",
            "consume --commit-interval 0",
            "produce --tls-ca x",
            "produce --sasl-mechanism PLAIN",
            "produce --sasl-mechanism NONE --sasl-user a --sasl-password-file b",
            "observe",
        ] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}
