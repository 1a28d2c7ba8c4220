//! Starting: what the node says of itself, and every refusal with its remedy and without harm.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::asks::{fetched, poll};
use crate::cage::{Lack, lacking};
use crate::frames::{Batch, Peer, metadata, produce, produced};
use crate::librdkafka::create_topic;
use crate::world::{Broker, end_of, free_address, fresh, serve};

/// Runs a command that must be refused: its exit code and its words.
fn refusal(command: &mut Command) -> (Option<i32>, String) {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    let status = end_of(&mut child).expect("it is refused");
    let mut said = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut said).expect("text");
    child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    (status.code(), said)
}

pub fn assert_refused(command: &mut Command, code: i32, words: &[&str]) {
    let (found, said) = refusal(command);
    assert_eq!(found, Some(code), "{words:?}: {said}");
    for word in words {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
    let refusals = said.lines().filter(|line| line.starts_with("corelog: "));
    assert_eq!(refusals.count(), 1, "one sentence: {said}");
}

/// Every file below `folder` with its bytes.
pub fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).expect("readable"));
        }
    }
    found
}

/// A stopped broker with a topic that holds `count` records, each in a group of its own.
fn stopped_with_records(topic: &str, count: i64) -> Broker {
    let mut broker = Broker::start(&[]);
    create_topic(&broker.bootstrap(), topic, 1);
    let mut peer = Peer::connect(broker.address());
    for offset in 0..count {
        let size = 1000 + usize::try_from(offset).expect("small");
        let batch = Batch { value_bytes: size, ..Batch::default() }.encode();
        assert_eq!(produced(&peer.ask(&produce(topic, &batch)), topic), (0, offset));
    }
    broker.signal("TERM");
    assert!(broker.ended().success(), "{}", broker.log());
    broker
}

/// Starts it again and finds `count` records.
fn assert_holds(broker: &mut Broker, topic: &str, count: i64) {
    broker.launch();
    let found = fetched(&Peer::connect(broker.address()).ask(&poll(topic, 0, 0, 0)));
    assert_eq!((found[0].error, found[0].high_watermark), (0, count), "{}", broker.log());
}

#[test]
fn a_start_says_what_it_runs_on_in_a_few_lines() {
    let began = Instant::now();
    let mut broker = Broker::start_with_defaults();
    broker.await_log("ready in");
    let lines: Vec<String> = broker.log().lines().map(str::to_string).collect();
    let said = lines.join("\n");
    assert!(lines.len() <= 6, "{said}");
    let version = format!("Corelog {}", env!("CARGO_PKG_VERSION"));
    let data = broker.data().canonicalize().expect("there").display().to_string();
    let bootstrap = broker.bootstrap();
    for word in [
        &version,
        "Linux ",
        "on CPUs [",
        "MiB of memory",
        &data,
        " writes",
        "durability fsync: acks=all is answered after one flush",
        &format!("listening on {bootstrap}, clients connect to {bootstrap}"),
    ] {
        assert!(said.contains(word), "no `{word}` in:\n{said}");
    }
    let place = format!("data in {data} (");
    let device = said.split(&place).nth(1).and_then(|rest| rest.split(')').next());
    let (kind, device) = device.and_then(|d| d.split_once(" on ")).expect("file system, device");
    assert!(!kind.is_empty() && kind != "unknown" && device != "unknown", "{said}");

    // A node as it comes: the first write from nothing, and what it costs to do nothing.
    let topic = fresh("first");
    let mut peer = Peer::connect(broker.address());
    let mut answer = (-1, -1);
    while answer != (0, 0) {
        assert!(began.elapsed() < Duration::from_secs(20), "{answer:?}");
        peer.ask(&metadata(&topic));
        answer = produced(&peer.ask(&produce(&topic, &Batch::default().encode())), &topic);
    }
    println!("the first write was acknowledged {} ms after the start", began.elapsed().as_millis());
    std::thread::sleep(Duration::from_millis(500));
    let (busy, since) = (broker.cpu_time(), Instant::now());
    std::thread::sleep(Duration::from_secs(3));
    let share = (broker.cpu_time() - busy).as_secs_f64() / since.elapsed().as_secs_f64();
    let resident = broker.resident_bytes() >> 20;
    println!("idle: {:.2} % of one core, {resident} MiB resident", share * 100.0);
    assert!(share < 0.2, "idle it uses {share} of a core");
    assert!(resident < 96, "{resident} MiB resident, idle");
    broker.assert_alive();
}

#[test]
fn replicated_durability_says_what_it_risks() {
    let broker = Broker::start(&[("durability", "replicated"), ("flush.interval.ms", "70")]);
    broker.await_log("durability replicated: acks=all is answered when written, flushed within 70");
    broker.await_log("a power loss can take the last of it");
}

#[test]
fn a_machine_that_lacks_something_is_told_the_remedy() {
    const LACKS: &[(&[Lack], &[&str])] = &[
        (&[Lack::Ring(libc::EPERM)], &["io_uring is blocked", "seccomp=unconfined"]),
        (&[Lack::Ring(libc::ENOSYS)], &["io_uring is blocked", "seccomp=unconfined"]),
        (&[Lack::Ring(libc::EINVAL)], &["too old", "needs Linux 6.1 or newer"]),
        (&[Lack::LockedMemory(64 << 10)], &["524288 are needed", "ulimit -l unlimited"]),
        (
            &[Lack::Privileges, Lack::LockedMemory(64 << 10)],
            &["524288 are needed", "LimitMEMLOCK=infinity"],
        ),
        (&[Lack::Descriptors(200)], &["limit of open files is 200", "ulimit -n 65536"]),
    ];
    let topic = fresh("kept");
    let mut broker = stopped_with_records(&topic, 3);
    let before = contents(&broker.data());
    for (lacks, words) in LACKS {
        assert_refused(lacking(&mut broker.command(), lacks), 1, words);
        assert_eq!(contents(&broker.data()), before, "{lacks:?}");
        let nothing = broker.data().with_file_name("nothing");
        assert_refused(lacking(&mut serve(&nothing, "127.0.0.1:0"), lacks), 1, words);
        assert!(!nothing.exists(), "nothing is begun");
    }
    assert_holds(&mut broker, &topic, 3);
}

#[test]
fn sixteen_shards_run_with_the_least_or_say_what_they_lack() {
    const LITTLE: &[Lack] =
        &[Lack::Privileges, Lack::LockedMemory(512 << 10), Lack::Descriptors(1024)];
    const ENOUGH: &[Lack] =
        &[Lack::Privileges, Lack::LockedMemory(8 << 20), Lack::Descriptors(1024)];
    let folder = tempfile::tempdir().expect("a temporary folder");
    let start = |lacks: &'static [Lack]| {
        let log = folder.path().join("log");
        let address = free_address();
        let mut command = serve(&folder.path().join("data"), &address.to_string());
        command.args(["--cores", "0", "--shards", "16", "--set", "journal.file.bytes=4194304"]);
        let file = fs::File::create(&log).expect("writable");
        command.stdout(file.try_clone().expect("a second handle")).stderr(file);
        let mut child = lacking(&mut command, lacks).spawn().expect("the binary starts");
        let said = || fs::read_to_string(&log).expect("readable");
        let until = Instant::now() + Duration::from_secs(20);
        let mut status = None;
        while status.is_none() && !said().contains("ready in") && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
            status = child.try_wait().expect("its status can be asked");
        }
        let _ = child.kill();
        let _ = child.wait();
        (status.and_then(|status| status.code()), said())
    };
    let (code, said) = start(LITTLE);
    // Whether the kernel counts rings as locked memory depends on its version.
    let remedy = code == Some(1) && said.contains("raise the limit of locked memory");
    assert!(remedy || said.contains("ready in"), "{code:?}: {said}");
    let (code, said) = start(ENOUGH);
    assert!(code.is_none() && said.contains("ready in"), "{code:?}: {said}");
}

#[test]
fn a_place_that_is_taken_is_named() {
    let topic = fresh("owned");
    let mut broker = Broker::start(&[]);
    create_topic(&broker.bootstrap(), &topic, 1);
    let elsewhere = broker.data().with_file_name("elsewhere");
    let taken = "is taken by another process: stop it or choose another --listen";
    let bootstrap = broker.bootstrap();
    assert_refused(&mut serve(&elsewhere, &bootstrap), 1, &[&bootstrap, taken]);
    let other = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = other.local_addr().expect("bound").to_string();
    assert_refused(&mut serve(&elsewhere, &address), 1, &[&address, taken]);
    assert!(!elsewhere.exists(), "nothing is begun");
    let words = ["belongs to a running Corelog", "choose another --data-dir"];
    let free = free_address().to_string();
    assert_refused(&mut serve(&broker.data(), &free), 1, &words);
    let nowhere = ["192.0.2.1:9092", "this machine has no such address"];
    assert_refused(&mut serve(&elsewhere, "192.0.2.1:9092"), 1, &nowhere);
    assert_refused(serve(&elsewhere, &free).args(["--cores", "4000"]), 1, &["4000", "--cores"]);
    // The owner has noticed nothing.
    let mut peer = Peer::connect(broker.address());
    let record = produce(&topic, &Batch::default().encode());
    assert_eq!(produced(&peer.ask(&record), &topic), (0, 0));
    broker.restart();
    assert_eq!(produced(&Peer::connect(broker.address()).ask(&record), &topic), (0, 1));
}

#[test]
fn settings_that_are_none_are_refused_wherever_they_come_from() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = folder.path().join("data");
    let file = folder.path().join("corelog.toml");
    let start = || serve(&data, "127.0.0.1:0");
    let nearest = "did you mean `num.partitions`?";
    let bounds = "give a whole number from 1 to 1000000";
    for (name, value, words) in [("num.partition", "3", nearest), ("num.partitions", "0", bounds)] {
        let setting = format!("{name}={value}");
        assert_refused(start().args(["--set", &setting]), 2, &[words]);
        let variable = format!("CORELOG_{}", name.replace('.', "_").to_uppercase());
        assert_refused(start().env(&variable, value), 2, &[&variable, words]);
        fs::write(&file, format!("\"{name}\" = {value}\n")).expect("writable");
        let path = file.display().to_string();
        assert_refused(start().args(["--config", &path]), 2, &[&path, words]);
    }
    assert_refused(start().args(["--shards", "1025"]), 2, &["whole number from 0 to 1024"]);
    assert_refused(start().args(["--set", "durability=none"]), 2, &["fsync, replicated"]);
    assert!(!data.exists(), "nothing is begun");
}

#[test]
fn a_data_directory_of_a_newer_corelog_is_left_alone() {
    let topic = fresh("newer");
    let mut broker = stopped_with_records(&topic, 3);
    let node = broker.data().join("node.toml");
    let journal = broker.data().join("core-0/journal-000000000000");
    let newer = |path: &Path, at: usize, from: u8| {
        let mut bytes = fs::read(path).expect("readable");
        assert_eq!(bytes[at], from);
        bytes[at] = from + 3;
        fs::write(path, bytes).expect("writable");
    };
    let at = "format = 1".len() - 1;
    let words = "has format 4";
    for (path, at, from) in [(&node, at, b'1'), (&journal, 4, 1)] {
        let good = fs::read(path).expect("readable");
        newer(path, at, from);
        let before = contents(&broker.data());
        let name = path.file_name().expect("a file").to_string_lossy();
        assert_refused(&mut broker.command(), 1, &[&name, words, "newer Corelog"]);
        assert_eq!(contents(&broker.data()), before, "{name}");
        fs::write(path, good).expect("writable");
    }
    assert_holds(&mut broker, &topic, 3);
}

#[test]
fn a_damaged_journal_is_named_with_file_and_position() {
    let topic = fresh("damaged");
    let mut broker = stopped_with_records(&topic, 3);
    // The first record's value, which no other is as long as.
    let value = [&[0x0f_u8][..], &[b'v'; 1000], &[0]].concat();
    let found = contents(&broker.data()).into_iter().find_map(|(path, bytes)| {
        let at = bytes.windows(value.len()).position(|window| window == value)?;
        Some((path, at))
    });
    let (path, at) = found.expect("the record is in a journal file");
    let good = fs::read(&path).expect("readable");
    let mut bad = good.clone();
    bad[at + 500] ^= 1;
    fs::write(&path, bad).expect("writable");
    let before = contents(&broker.data());
    let place = format!("{} is damaged at byte {}", path.display(), at / 4096 * 4096);
    let words = [&place, "the checksum of entry 0 is wrong", "restore the file from a copy"];
    assert_refused(&mut broker.command(), 1, &words);
    assert_eq!(contents(&broker.data()), before);
    fs::write(&path, good).expect("writable");

    fs::rename(broker.data().join("node.toml"), broker.data().join("kept")).expect("renamed");
    assert_refused(&mut broker.command(), 1, &["no node.toml", "restore that file"]);
    fs::rename(broker.data().join("kept"), broker.data().join("node.toml")).expect("renamed");
    assert_holds(&mut broker, &topic, 3);
}

#[test]
fn a_data_directory_without_permission_is_named() {
    const PLAIN: &[Lack] = &[Lack::Privileges];
    let topic = fresh("forbidden");
    let mut broker = stopped_with_records(&topic, 3);
    let data = broker.data();
    let core = data.join("core-0");
    let journal = core.join("journal-000000000000");
    let node = data.join("node.toml");
    for (path, mode) in [(&data, 0o000), (&data, 0o500), (&node, 0), (&core, 0), (&journal, 0o400)]
    {
        let before = contents(&data);
        let kept = fs::metadata(path).expect("there").permissions();
        let forbid = |mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
        forbid(mode).expect("changed");
        let (code, said) = refusal(lacking(&mut broker.command(), PLAIN));
        forbid(kept.mode()).expect("changed back");
        assert_eq!(code, Some(1), "{path:?} {mode:o}: {said}");
        assert!(said.contains("ermission denied"), "{path:?} {mode:o}: {said}");
        let sentence = said.lines().last().expect("a sentence");
        assert!(sentence.contains(&*data.to_string_lossy()), "{path:?} {mode:o}: {said}");
        assert!(sentence.contains("read and write access"), "{path:?} {mode:o}: {said}");
        assert_eq!(contents(&data), before, "{path:?} {mode:o}");
    }
    let fresh = data.with_file_name("closed");
    fs::create_dir(&fresh).expect("made");
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o500)).expect("changed");
    let words = ["cannot lock the data directory", "ermission denied"];
    let inside = &mut serve(&fresh, "127.0.0.1:0");
    assert_refused(lacking(inside, PLAIN), 1, &words);
    let words = ["cannot create the data directory", "ermission denied"];
    let below = &mut serve(&fresh.join("data"), "127.0.0.1:0");
    assert_refused(lacking(below, PLAIN), 1, &words);
    assert_holds(&mut broker, &topic, 3);
}
