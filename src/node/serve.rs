//! `corelog serve` on Linux: checks the machine, takes the data directory, starts the executors,
//! says what it found, and waits for a signal.

use std::io::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::directory::{DataDirectories, refused_by_system};
use super::layout::Layout;
use super::relay::{Relay, relay};
use super::{BootFailed, CoreSetup, Report, run_core, wire_up};
use crate::base::ids::CoreId;
use crate::config::{self, BrokerConfig, Durability};
use crate::handler::{Identity, port_offset};
use crate::io::mailbox::{Receiver, mailbox, oneshot};
use crate::io::ring::signals::Signal;
use crate::io::ring::{self, Engine, Executor, RingIo, probe, signals};
use crate::journal::{self, Flush};
use crate::partition::{Directories, Shared, cores_in_words};
use crate::segment;

/// A core that says nothing for this long has not started. Recovery reads at device speed.
const BOOT_PATIENCE: Duration = Duration::from_secs(600);
/// How long a port may take to become free.
const PORT_PATIENCE: Duration = Duration::from_secs(2);
const BOOT_PAUSE: Duration = Duration::from_micros(500);
/// The share of the journal that records leave to draining.
const KEPT_SHARE: u64 = 8;
const GROUP_BYTES_MAX: usize = 1 << 20;
/// Unless its size is given, the journal takes no larger share of the file system ...
const DISK_SHARE: u64 = 4;
/// ... but for what a core can live with.
const CORE_JOURNAL_BYTES_MIN: u64 = 16 << 20;

/// Descriptors of a core beside connections, segments and journal files: rings, listeners, and what
/// is open while something is moved.
const CORE_DESCRIPTORS: u64 = 64;
/// Files are kept no more than one in so many of all descriptors.
const FILES_SHARE_MAX: u64 = 2;

/// A line to the standard output. It may go to a file on a full disk: the node goes on without it.
macro_rules! say {
    ($($words:tt)*) => {
        drop(writeln!(std::io::stdout(), $($words)*))
    };
}

/// Runs the node until SIGTERM or SIGINT; an error is one sentence for the operator.
pub fn serve(config: BrokerConfig) -> Result<(), BootFailed> {
    let started = Instant::now();
    let failed = |error: std::io::Error| BootFailed(error.to_string());
    die_of_panics();
    signals::block().map_err(failed)?;
    let is_ready = Arc::new(AtomicBool::new(false));
    let asked = hear_signals(is_ready.clone()).map_err(failed)?;
    probe::machine().map_err(|unfit| BootFailed(unfit.to_string()))?;
    let cpus = chosen_cpus(&config)?;
    let wanted = match config.int("shards") {
        0 => cpus.len(),
        shards => usize::try_from(shards).unwrap_or(1),
    };
    let wanted = u16::try_from(wanted).unwrap_or(u16::MAX);
    let listen = resolve(config.text("listeners"))?;
    check_free(listen)?;
    let mut identity = identity_of(&config, listen)?;
    let config = Arc::new(config);
    let mut taken = DataDirectories::take(&config.data_directories(), wanted)?;
    if taken.layout().shards != wanted || taken.wanted().is_some() {
        lay_out_anew(&config, &mut taken, wanted, &cpus)?;
    }
    taken.make_folders()?;
    let shards = wanted;
    if config.bool("per.core.listeners") {
        identity.cores = Some(shards);
        check_core_ports(listen, shards)?;
    }
    let shard_cpus: Vec<usize> = cpus.iter().copied().cycle().take(usize::from(shards)).collect();
    let directories = directories_of(&taken);
    announce(&config, &directories, taken.layout(), &cpus)?;
    let connections_max = bound_connections(&config, taken.layout(), probe::descriptors());

    let shared = Arc::new(Shared::new(config, shards, directories));
    let (report, mut reports) = mailbox(usize::from(shards) * 2);
    let count = Arc::new(AtomicUsize::new(0));
    let mut stops = Vec::new();
    let mut setups = Vec::new();
    for (core, (lanes, inbox, go)) in (0..shards).zip(wire_up::<RingIo>(shards)) {
        let (stop, stopped) = oneshot::channel();
        stops.push(stop);
        setups.push(Some(CoreSetup {
            shared: shared.clone(),
            lanes,
            inbox,
            journal: journal_settings(shared.config(), taken.layout(), core),
            stale: if core == 0 { taken.stale() } else { Vec::new() },
            memory_bytes: shared.config().size("core.memory.bytes"),
            identity: identity.clone(),
            listen,
            connection_count: count.clone(),
            connections_max,
            go,
            stop: stopped,
            report: report.clone(),
        }));
    }
    let setups = Arc::new(Mutex::new(setups));
    let read_bytes = shared.config().size("core.memory.bytes") / 4;
    let mut executors =
        ring::boot_on(engine(shared.config()), &shard_cpus, read_bytes, move |io: RingIo| {
            let index = crate::io::Io::core(&io).index();
            let setup = setups
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_mut(index)
                .and_then(Option::take);
            async move {
                if let Some(setup) = setup {
                    run_core(io, setup).await;
                }
            }
        })
        .map_err(failed)?;
    let address = await_cores(&mut reports, &mut executors)?;
    is_ready.store(true, Ordering::Release);
    if identity.port == 0 {
        identity.port = i32::from(address.port());
    }
    say!(
        "ready in {} ms: listening on {address}, clients connect to {}:{}",
        started.elapsed().as_millis(),
        identity.host,
        identity.port
    );
    for broker in identity.brokers().filter(|_| identity.cores.is_some()) {
        say!("broker {} is a core of its own: {}:{}", broker.id, identity.host, broker.port);
    }
    let signal =
        asked.recv().map_err(|ended| BootFailed(format!("no signal is heard: {ended}")))?;
    say!("stopping on {signal:?}: answering what is in flight, flushing");
    drop(asked);
    drop(stops);
    for executor in executors {
        executor.join().map_err(failed)?;
    }
    say!("stopped");
    Ok(())
}

fn engine(config: &BrokerConfig) -> Engine {
    match config.text("core.executor") {
        "glommio" => Engine::Glommio,
        _ => Engine::Own,
    }
}

/// The node's directories, those out of use that cannot be used.
fn directories_of(taken: &DataDirectories) -> Directories {
    let layout = taken.layout();
    let paths = layout.places.iter().map(|place| place.path.clone());
    let directories = Directories::new(paths, layout.shards);
    for (number, why) in taken.broken().iter().enumerate() {
        if let Some(why) = why {
            directories.fail(number, why.clone());
        }
    }
    directories
}

/// Moves the partitions to their owners among `shards` cores, in the directories that are wanted,
/// before any of these runs.
fn lay_out_anew(
    config: &Arc<BrokerConfig>,
    taken: &mut DataDirectories,
    shards: u16,
    cpus: &[usize],
) -> Result<(), BootFailed> {
    let began = Instant::now();
    let from = taken.layout().clone();
    let places = taken.wanted().unwrap_or(&from.places).to_vec();
    let to = from.followed_by(shards, places)?;
    let (before, after) = match from.places.len() == 1 && to.places.len() == 1 {
        true => (from.shards.to_string(), to.in_words()),
        false => (from.in_words(), to.in_words()),
    };
    if let Some((place, why)) = taken.first_broken() {
        return Err(BootFailed(format!(
            "the node is laid out for {before}, and cannot be moved to {after} while {} cannot be \
             used ({why}): mend that, or start with --shards {} as before",
            place.display(),
            from.shards
        )));
    }
    say!("the node is laid out for {}: moving it to {after}", from.in_words());
    let memory_bytes = config.size("core.memory.bytes");
    let (tell, told) = std::sync::mpsc::channel();
    let (config, next) = (config.clone(), to.clone());
    let cpu = cpus.first().copied().unwrap_or(0);
    let executors = ring::boot_on(engine(&config), &[cpu], memory_bytes, move |io: RingIo| {
        let (tell, config, from, to) = (tell.clone(), config.clone(), from.clone(), to.clone());
        async move {
            let journal = |layout: &Layout, core| journal_settings(&config, layout, core);
            let (config, journal) = (&*config, &journal);
            let task = Relay { from: &from, to: &to, config, memory_bytes, journal };
            // Nobody listens any more if the starter has given up.
            let _ = tell.send(relay(&io, task).await);
        }
    });
    let failed = |error: std::io::Error| BootFailed(error.to_string());
    let outcome = told.recv();
    for executor in executors.map_err(failed)? {
        executor.join().map_err(failed)?;
    }
    let ended = |_| BootFailed(format!("the move to {after} ended without a word"));
    let moved = outcome.map_err(ended)??;
    taken.relaid(next);
    say!(
        "moved {} partitions from {before} to {after} in {} ms: {} MiB of records written anew, \
         {} files kept",
        moved.partitions,
        began.elapsed().as_millis(),
        moved.bytes >> 20,
        moved.files,
    );
    Ok(())
}

fn chosen_cpus(config: &BrokerConfig) -> Result<Vec<usize>, BootFailed> {
    let allowed = probe::cpus();
    let named = config::parse_cpus(config.text("cores"))
        .map_err(|refused| BootFailed(refused.to_string()))?;
    if named.is_empty() {
        return Ok(allowed);
    }
    match named.iter().find(|cpu| !allowed.contains(cpu)) {
        None => Ok(named),
        Some(cpu) => Err(BootFailed(format!(
            "CPU {cpu} is not one that this process may use ({allowed:?}): change --cores"
        ))),
    }
}

/// The first address that `HOST:PORT` means.
fn resolve(text: &str) -> Result<SocketAddr, BootFailed> {
    let text = text.strip_prefix("PLAINTEXT://").unwrap_or(text);
    let wrong = |why: String| BootFailed(format!("`{text}` is no address to listen on: {why}"));
    let mut found = text.to_socket_addrs().map_err(|error| wrong(error.to_string()))?;
    found.next().ok_or_else(|| wrong("the name has no address".into()))
}

/// Cores share their port, so a second node would share it too: look before. The kernel closes the
/// sockets of a killed process's rings a moment after the process is gone, hence the patience.
fn check_free(address: SocketAddr) -> Result<(), BootFailed> {
    if address.port() == 0 {
        return Ok(());
    }
    let deadline = Instant::now() + PORT_PATIENCE;
    loop {
        match probe::try_address(address) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            // Anything else is told by the cores, which know more.
            _ => return Ok(()),
        }
        if Instant::now() > deadline {
            return Err(BootFailed(format!(
                "{address} is taken by another process: stop it or choose another --listen"
            )));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The ports of the cores must be free as well.
fn check_core_ports(shared: SocketAddr, shards: u16) -> Result<(), BootFailed> {
    let ports = (0..shards).filter_map(|core| shared.port().checked_add(port_offset(core)));
    ports.map(|port| SocketAddr::new(shared.ip(), port)).try_for_each(check_free)
}

fn identity_of(config: &BrokerConfig, listen: SocketAddr) -> Result<Identity, BootFailed> {
    let advertised = config.text("advertised.listeners");
    let advertised = advertised.strip_prefix("PLAINTEXT://").unwrap_or(advertised);
    let (host, port) = match advertised.rsplit_once(':') {
        Some((host, port)) => {
            let wrong = || BootFailed(format!("`{advertised}` is no HOST:PORT to advertise"));
            (host.to_string(), port.parse::<u16>().map_err(|_| wrong())?)
        }
        None if !advertised.is_empty() => {
            return Err(BootFailed(format!("`{advertised}` is no HOST:PORT to advertise")));
        }
        None if listen.ip().is_unspecified() => (host_name(), listen.port()),
        None => (listen.ip().to_string(), listen.port()),
    };
    let rack = Some(config.text("rack").to_string()).filter(|rack| !rack.is_empty());
    let node_id = i32::try_from(config.int("node.id")).unwrap_or(i32::MAX);
    Ok(Identity { node_id, host, port: i32::from(port), rack, cores: None })
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "localhost".into() } else { name.into() }
}

fn journal_settings(config: &BrokerConfig, layout: &Layout, core: u16) -> journal::Settings {
    let bytes = |name: &str| u64::try_from(config.int(name)).unwrap_or(u64::MAX);
    let bytes_max = journal_bytes(config, layout, core);
    let file_bytes = bytes("journal.file.bytes").min(bytes_max / journal::FILES_MIN);
    let block = crate::io::BLOCK_BYTES as u64;
    let memory = config.size("core.memory.bytes");
    let interval = Duration::from_millis(bytes("flush.interval.ms"));
    journal::Settings {
        directory: layout.core(core),
        file_bytes: (file_bytes / block * block).max(block),
        bytes_max,
        kept_bytes: bytes_max / KEPT_SHARE,
        group_bytes_max: GROUP_BYTES_MAX,
        pending_bytes_max: memory / 16,
        tail_bytes_max: memory / 4,
        flush: match config.durability() {
            Durability::Fsync => Flush::EveryGroup,
            Durability::Replicated => Flush::Within(interval),
        },
    }
}

/// Connections that leave the files the descriptors they need, which is told where the settings
/// promise more: a journal that cannot begin its next file takes nothing from anybody.
fn bound_connections(config: &BrokerConfig, layout: &Layout, descriptors: u64) -> usize {
    let files = |core| {
        let journal = journal_settings(config, layout, core);
        journal.bytes_max / journal.file_bytes + segment::cache::FILES_MAX as u64
    };
    let files = (0..layout.shards).map(|core| files(core) + CORE_DESCRIPTORS).sum::<u64>();
    let bound = descriptors - files.min(descriptors / FILES_SHARE_MAX);
    let bound = usize::try_from(bound).unwrap_or(usize::MAX);
    let wanted = config.size("max.connections");
    if bound < wanted {
        say!(
            "max.connections is {wanted}, but the limit of open files, {descriptors}, leaves room \
             for {bound}: no more are taken; raise it with `ulimit -n {}` or LimitNOFILE={0} in \
             the unit file",
            (wanted as u64 + files).next_multiple_of(1024)
        );
    }
    bound
}

/// Bytes of a core's journal: its share of what is set, or of what a small file system can spare.
fn journal_bytes(config: &BrokerConfig, layout: &Layout, core: u16) -> u64 {
    let setting = u64::try_from(config.int("journal.bytes.max")).unwrap_or(u64::MAX);
    let setting = setting / u64::from(layout.shards);
    let directory = layout.directory(core);
    let total = probe::space(directory).map_or(0, |space| space.total);
    if total == 0 || config.given("journal.bytes.max").is_some() {
        return setting;
    }
    let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let own = device(directory);
    let sharing = (0..layout.shards).filter(|core| device(layout.directory(*core)) == own).count();
    setting.min((total / DISK_SHARE / sharing.max(1) as u64).max(CORE_JOURNAL_BYTES_MIN))
}

fn announce(
    config: &BrokerConfig,
    directories: &Directories,
    layout: &Layout,
    cpus: &[usize],
) -> Result<(), BootFailed> {
    let shards = layout.shards;
    say!(
        "Corelog {}, Linux {}, {shards} {} on CPUs {cpus:?}, {} MiB of memory",
        env!("CARGO_PKG_VERSION"),
        probe::kernel_release(),
        if shards == 1 { "shard" } else { "shards" },
        probe::memory_bytes() >> 20,
    );
    for number in 0..directories.count() {
        announce_directory(config, directories, layout, number)?;
    }
    match config.durability() {
        Durability::Fsync => {
            say!("durability fsync: acks=all is answered after one flush per core and commit group")
        }
        Durability::Replicated => say!(
            "durability replicated: acks=all is answered when written, flushed within {} ms; on a \
             single node a power loss can take the last of it",
            config.int("flush.interval.ms")
        ),
    }
    Ok(())
}

/// Says where data is, how it is written, and whose it is if there are several directories.
fn announce_directory(
    config: &BrokerConfig,
    directories: &Directories,
    layout: &Layout,
    number: usize,
) -> Result<(), BootFailed> {
    let Some((path, failure)) = directories.iter().nth(number) else { return Ok(()) };
    let cores = || directories.cores(number);
    if let Some(why) = failure {
        let (place, cores) = (path.display(), cores_in_words(cores()));
        say!(
            "the data directory {place} is not used: {why}; the partitions of {cores} are offline \
             and answered with KAFKA_STORAGE_ERROR until that is mended and the node started again"
        );
        return Ok(());
    }
    let found = probe::file_system(path)
        .map_err(|error| refused_by_system("use the data directory", path, &error))?;
    let writes = if found.direct {
        "direct writes"
    } else {
        "buffered writes (the file system refuses O_DIRECT), with the same flushes"
    };
    let whose = match directories.count() {
        1 => String::new(),
        _ => format!(", {}", cores_in_words(cores())),
    };
    say!("data in {} ({} on {}), {writes}{whose}", path.display(), found.kind, found.device);
    if matches!(found.kind.as_str(), "tmpfs" | "ramfs") {
        say!("{} is memory: a restart of the machine loses all data", found.kind);
    }
    if found.kind == "ext4" && !found.lazy_times {
        say!(
            "ext4 notes at each tick of the clock that a journal file has changed, and commits \
             wait for that: mount {} with lazytime",
            found.device
        );
    }
    let journal: u64 = cores().map(|CoreId(core)| journal_bytes(config, layout, core)).sum();
    let share = config.int("journal.bytes.max") / i64::from(layout.shards).max(1);
    let share = u64::try_from(share).unwrap_or(0) * cores().count() as u64;
    if journal < share {
        say!(
            "the file system is small: the journals take {} MiB of it, unless journal.bytes.max is \
             set",
            journal >> 20
        );
    }
    Ok(())
}

fn await_cores(
    reports: &mut Receiver<Report>,
    executors: &mut Vec<Executor>,
) -> Result<SocketAddr, BootFailed> {
    let deadline = Instant::now() + BOOT_PATIENCE;
    let mut address = None;
    let mut ready = 0;
    while ready < executors.len() {
        // Looked at first: one that ends reports why before.
        let over = executors.iter().position(Executor::is_over);
        match reports.try_recv() {
            Some(Report { core, outcome }) => {
                let found = outcome
                    .map_err(|failed| BootFailed(format!("{core} does not start: {failed}")))?;
                address = Some(found);
                ready += 1;
            }
            None if let Some(core) = over => {
                return Err(never_began(core, executors.swap_remove(core)));
            }
            None if Instant::now() > deadline => {
                return Err(BootFailed("the cores did not start in time".into()));
            }
            None => std::thread::sleep(BOOT_PAUSE),
        }
    }
    address.ok_or_else(|| BootFailed("there is no core".into()))
}

/// An executor ended without a report.
fn never_began(core: usize, executor: Executor) -> BootFailed {
    let why = executor.join().err().map_or_else(|| "it ended".to_string(), |e| e.to_string());
    // What begins an executor answers a refused ring with an error or a panic of no clear words.
    let refused = why.contains("os error 12") || why.contains("panicked");
    let remedy = if refused && probe::locked_memory_is_counted() {
        "; raise the limit of locked memory with `ulimit -l unlimited` or LimitMEMLOCK=infinity in \
         the unit file, or run fewer --shards"
    } else {
        ""
    };
    BootFailed(format!("core {core} does not start: {why}{remedy}"))
}

/// A panic on one core would leave a node that is half alive where the profile unwinds: the way
/// back to a known state is recovery, in every profile.
fn die_of_panics() {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        told(panic);
        std::process::abort();
    }));
}

/// Hears signals from the start on. One that comes before the node is ready ends the process at
/// once, however long the rest of the start would take, or hang: recovery is made for that. The
/// first after that is told, the second ends the process at once as well.
fn hear_signals(is_ready: Arc<AtomicBool>) -> std::io::Result<std::sync::mpsc::Receiver<Signal>> {
    let (tell, told) = std::sync::mpsc::channel();
    let hear = move || {
        let mut is_told = false;
        while let Ok(signal) = signals::wait() {
            if !is_ready.load(Ordering::Acquire) {
                say!("ended on {signal:?} before it was ready; the next start begins again");
                std::process::exit(0);
            }
            if std::mem::replace(&mut is_told, true) || tell.send(signal).is_err() {
                std::process::exit(1);
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(hear)?;
    Ok(told)
}
