//! The load generator from outside: each mode, small, against a node started by `corelog serve`.

mod kafka;
mod node;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use kafka::Kafka;
use node::{Node, PROGRAM};
use serde_json::Value;

/// What this file does with a node.
trait Loaded {
    fn command(&self, line: &str) -> Command;
    fn measures(&self, line: &str) -> Value;
    fn path(&self, name: &str) -> PathBuf;
    fn start_again(&mut self);
}

impl Loaded for Node {
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("load").args(line.split(' ')).args(["--bootstrap", &self.address]);
        command
    }

    /// The only run's JSON of a command that must succeed.
    fn measures(&self, line: &str) -> Value {
        let output = self.command(line).args(["--json", "-"]).output().expect("started");
        let report = json(&output, line);
        assert_eq!(report["broker"]["process"]["pid"], self.child.id(), "{line}: {report}");
        assert_eq!(report["broker"]["durability"]["durability"], "fsync");
        report["runs"][0].clone()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// Starts a node that was killed on the same data.
    fn start_again(&mut self) {
        let mut command = Command::new(PROGRAM);
        command.args(["serve", "--listen", &self.address, "--shards", "1", "--data-dir"]);
        command.arg(self.path("data")).args(["--set", "journal.file.bytes=4194304"]);
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        self.child = command.spawn().expect("started");
    }
}

fn json(output: &Output, line: &str) -> Value {
    if !output.status.success() {
        let [said, told] =
            [&output.stderr, &output.stdout].map(|text| String::from_utf8_lossy(text).into_owned());
        // Where only the names of failed tests are kept, the words are still there.
        let kept = std::env::temp_dir().join(format!("corelog-load-{}.txt", std::process::id()));
        let words = format!("corelog load {line}: {}\n{said}\n{told}\n", output.status);
        fs::write(&kept, &words).expect("writable");
        panic!("{words}kept in {}", kept.display());
    }
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{line}: {error}"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

#[test]
fn produce_keeps_its_rate_and_consume_reads_all_of_it() {
    let node = Node::start();
    let run = node.measures(
        "produce --rate 500 -d 1s --warm-up 0 --partitions 3 --producers 2 --record-size 50-200 \
         --keys uniform:100 --linger 2.5 --batch-bytes 4096",
    );
    assert_eq!(run["loop"], "open");
    // Every record that was meant for the second counts, however late it was acknowledged.
    assert_eq!(run["latency_us"]["count"], 500, "{run}");
    assert_eq!(run["errors"], serde_json::json!({}));
    assert_eq!(run["failed_records"], 0);
    let read = node.measures("consume --partitions 3 --consumers 2 -d 30s");
    assert_eq!(read["consume"]["records"], 500, "{read}");
    let twice = node.measures("consume --partitions 3 --consumers 3 --groups 2 -d 30s");
    assert_eq!(twice["consume"]["records"], 1000, "{twice}");
    assert_eq!((&twice["errors"], &twice["lag"]), (&serde_json::json!({}), &0.into()));
    let mut groups = Command::new(PROGRAM);
    groups.args(["group", "list", "--json", "--bootstrap", &node.address]);
    let groups = groups.output().expect("started");
    let left = String::from_utf8_lossy(&groups.stdout);
    assert!(groups.status.success() && left.is_empty(), "gone with their run: {left}");
}

#[test]
fn a_named_group_goes_on_where_it_committed() {
    let node = Node::start();
    let read = || node.measures("consume --partitions 3 --consumers 2 --group readers -d 30s");
    node.measures("produce --rate 500 -d 1s --warm-up 0 --partitions 3");
    assert_eq!(read()["consume"]["records"], 500);
    node.measures("produce --rate 200 -d 1s --warm-up 0 --partitions 3");
    let second = read();
    assert_eq!(second["consume"]["records"], 200, "{second}");
    assert_eq!(second["errors"], serde_json::json!({}));
}

#[test]
fn members_that_come_and_go_make_the_others_rebalance_and_every_record_is_read_once() {
    let node = Node::start();
    let line = "e2e --rate 500 -d 8s --warm-up 0 --partitions 4 --consumers 2 --group shared \
                --commit-interval 500ms --json -";
    let mut command = node.command(line);
    let load = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    let mut started = Command::new(PROGRAM);
    started.args(["consume", "-t", "load", "-c", "100", "--bootstrap", &node.address]);
    let patience = Instant::now() + Duration::from_secs(30);
    while !started.output().expect("started").status.success() {
        assert!(Instant::now() < patience, "no topic appears");
        std::thread::sleep(Duration::from_millis(50));
    }
    let line = "consume --partitions 4 --group shared --from end -d 2s";
    let guest = node.measures(line);
    let host = json(&load.wait_with_output().expect("it ends"), "e2e")["runs"][0].clone();
    // What came after the measured time was read all the same.
    let intervals = guest["intervals"].as_array().expect("intervals");
    let by_guest: u64 = intervals.iter().map(|interval| number(&interval["received"])).sum();
    assert!(by_guest > 0, "{guest}");
    assert_eq!(number(&host["delivery_us"]["count"]) + by_guest, 4000, "{host} {guest}");
    assert!(number(&host["assignments"]) >= 2, "there and back again: {host}");
    assert_eq!(
        (&host["errors"], &guest["errors"]),
        (&serde_json::json!({}), &serde_json::json!({}))
    );
}

#[test]
fn a_closed_loop_is_labelled_and_every_codec_and_acknowledgement_works() {
    let node = Node::start();
    for (codec, acks) in [("none", "0"), ("gzip", "1"), ("snappy", "all"), ("lz4", "all")] {
        let line = format!(
            "produce -d 300ms --warm-up 100ms --codec {codec} --acks {acks} --compressibility 0.5"
        );
        let run = node.measures(&line);
        assert_eq!((&run["loop"], &run["rate"]), (&"closed".into(), &"max".into()));
        assert!(number(&run["latency_us"]["count"]) > 0, "{line}: {run}");
        assert_eq!(run["errors"], serde_json::json!({}), "{line}");
    }
}

#[test]
fn e2e_and_mixed_measure_both_directions() {
    let node = Node::start();
    let run = node.measures("e2e --rate 400 -d 1s --warm-up 200ms --codec zstd");
    assert_eq!(run["latency_us"]["count"], 400, "{run}");
    assert_eq!(run["delivery_us"]["count"], 400, "every record arrives: {run}");
    let run = node.measures("mixed --rate 400 -d 1s --warm-up 0");
    assert!(number(&run["produce"]["records"]) > 0, "{run}");
    // What e2e wrote is read again.
    assert!(number(&run["consume"]["records"]) > 400, "{run}");
}

#[test]
fn verify_finds_a_sound_broker_clean() {
    let node = Node::start();
    let run = node.measures(
        "verify --rate 2000 -d 1s --warm-up 0 --partitions 4 --producers 3 --consumers 2 \
         --idempotent --keys zipf:50",
    );
    let verdict = &run["verify"];
    assert_eq!(verdict["clean"], true, "{verdict}");
    assert_eq!((number(&verdict["acknowledged"]), number(&verdict["received"])), (2000, 2000));
}

#[test]
fn verify_tells_of_records_that_the_broker_lost() {
    let node = Node::start();
    // Records are deleted behind the generator's back, before its consumer may read them: it is
    // started on a topic that a second process empties all the time.
    let mut verify = node.command("verify --rate 20000 -d 3s --warm-up 0 --topic leaky --json -");
    let verify = verify.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    std::thread::sleep(Duration::from_millis(1000));
    for _ in 0..40 {
        let mut delete = Command::new(PROGRAM);
        delete.args(["topic", "delete", "leaky", "--bootstrap", &node.address]);
        let deleted = delete.output().expect("started").status.success();
        let mut create = Command::new(PROGRAM);
        create.args(["topic", "create", "leaky", "--partitions", "1"]);
        create.args(["--bootstrap", &node.address]).output().expect("started");
        if deleted {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = verify.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON all the same");
    assert_eq!(report["runs"][0]["verify"]["clean"], false);
    assert!(number(&report["runs"][0]["verify"]["lost"]) > 0, "{report}");
}

#[test]
fn a_killed_broker_ends_nothing_and_is_counted() {
    let mut node = Node::start();
    let topic = "load-killed";
    let mut create = Command::new(PROGRAM);
    create.args(["topic", "create", topic, "--bootstrap", &node.address]);
    assert!(create.output().expect("started").status.success());
    let line = format!("produce --topic {topic} --rate 1000 -d 4s --warm-up 0 --json -");
    let mut command = node.command(&line);
    let load = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    // It is under way once some of its records are there.
    let mut consume = Command::new(PROGRAM);
    consume.args(["consume", "-t", topic, "-c", "100", "--bootstrap", &node.address]);
    assert!(consume.output().expect("started").status.success());
    node.child.kill().expect("it ran");
    node.child.wait().expect("it ends");
    let output = load.wait_with_output().expect("it ends");
    let run = json(&output, "produce")["runs"][0].clone();
    assert!(number(&run["errors"]["CONNECTION_LOST"]) > 0, "{run}");
    assert!(number(&run["failed_records"]) > 0, "what was never acknowledged is told: {run}");
}

#[test]
fn a_broker_that_comes_back_is_gone_on_with_and_nothing_is_lost_or_stored_twice() {
    let mut node = Node::start();
    let mut command = node.command(
        "verify --rate 1000 -d 5s --warm-up 0 --partitions 3 --producers 2 --consumers 2 \
         --idempotent --json -",
    );
    let load = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    let mut consume = Command::new(PROGRAM);
    consume.args(["consume", "-t", "load", "-c", "500", "--bootstrap", &node.address]);
    // Until the topic is there, nobody can read it.
    let patience = Instant::now() + Duration::from_secs(30);
    while !consume.output().expect("started").status.success() {
        assert!(Instant::now() < patience, "no topic appears");
        std::thread::sleep(Duration::from_millis(50));
    }
    node.child.kill().expect("it ran");
    node.child.wait().expect("it ends");
    std::thread::sleep(Duration::from_millis(500));
    node.start_again();
    let output = load.wait_with_output().expect("it ends");
    let run = json(&output, "verify")["runs"][0].clone();
    assert!(number(&run["errors"]["CONNECTION_LOST"]) > 0, "{run}");
    assert_eq!(run["failed_records"], 0, "{run}");
    // Records that were meant for the time without broker were sent all the same, and waited.
    assert_eq!(run["latency_us"]["count"], 5000, "{run}");
    assert!(run["latency_us"]["max"].as_f64() > Some(400_000.0), "{run}");
    assert_eq!(run["verify"]["clean"], true, "{run}");
}

#[test]
fn an_interrupt_ends_the_run_with_its_table() {
    let node = Node::start();
    let mut command = node.command("produce --rate 500 -d 1h --warm-up 0");
    let load = command.stdout(Stdio::piped()).spawn().expect("started");
    std::thread::sleep(Duration::from_millis(1500));
    let pid = load.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().expect("a command").success());
    let output = load.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("the run was interrupted") && text.contains("  ack "), "{text}");
}

#[test]
fn a_sweep_names_the_highest_rate_below_the_bound() {
    let node = Node::start();
    let (page, log) = (node.path("report.html"), node.path("load.hlog"));
    let mut command = node.command(
        "e2e --sweep 100,200 --p99-max 60000 -d 500ms --warm-up 100ms --json - --partitions 2",
    );
    command.arg("--html").arg(&page).arg("--hdr-log").arg(&log);
    let report = json(&command.output().expect("started"), "sweep");
    assert_eq!(report["runs"].as_array().map(Vec::len), Some(2));
    let runs = report["runs"].as_array().expect("runs").iter();
    let kept = runs.filter(|run| run["kept_up"] == true).filter_map(|run| run["rate"].as_f64());
    let best = kept.max_by(f64::total_cmp);
    assert_eq!(report["best_rate"].as_f64(), best, "a minute of p99 is never passed: {report}");
    check_page(&page);
    let log = fs::read_to_string(&log).expect("written");
    assert!(log.contains("#[StartTime:") && log.contains("Tag=delivery,"), "{log}");
}

/// The page stands alone, is drawn, and is well-formed enough for a browser where there is one.
fn check_page(page: &Path) {
    let text = fs::read_to_string(page).expect("written");
    for outside in ["http://", "https://", "<script", "<link", "@import", "url("] {
        assert!(!text.contains(outside), "the page names something outside: {outside}");
    }
    for title in [
        "Latency by percentile",
        "Latency over time",
        "Throughput over time",
        "Latency by rate",
        "CPUs in use by the broker",
        "Resident memory of the broker",
    ] {
        assert!(text.contains(&format!("aria-label=\"{title}\"")), "no drawing of {title}");
    }
    assert_eq!(text.matches("<svg").count(), text.matches("</svg>").count());
    assert!(!text.contains("NaN") && !text.contains("inf"), "a drawing has no number");
    let Some(browser) = ["chromium", "chromium-browser", "google-chrome"].iter().find(|name| {
        Command::new(name)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }) else {
        return;
    };
    let picture = page.with_extension("png");
    let rendered = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,3000"])
        .arg(format!("--screenshot={}", picture.display()))
        .arg(format!("--user-data-dir={}", page.with_extension("profile").display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .expect("the browser starts");
    assert!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
    let bytes = fs::metadata(&picture).expect("a picture").len();
    assert!(bytes > 20_000, "an empty page compresses to less than {bytes} bytes");
}

/// The only run's JSON of a command against Kafka that must succeed.
fn against(address: &str, line: &str, more: &[String]) -> Value {
    let mut command = Command::new(PROGRAM);
    command.arg("load").args(line.split(' ')).args(["--bootstrap", address, "--json", "-"]);
    let report = json(&command.args(more).output().expect("started"), line);
    report["runs"][0].clone()
}

/// Transactions of Apache Kafka: committed ones are read, aborted ones are not, and who is fenced
/// says so.
fn transactions_end_as_they_should(kafka: &Kafka) {
    let line = "verify --rate 2000 -d 2s --warm-up 0 --partitions 3 --producers 2 --consumers 2 \
                --transactions 50 --abort-share 0.4 --topic transacted";
    let run = against(&kafka.plain, line, &[]);
    let (tally, verdict) = (&run["transactions"], &run["verify"]);
    assert_eq!((&verdict["clean"], &run["failed_records"]), (&true.into(), &0.into()), "{run}");
    assert!(number(&tally["aborted"]) > 0, "{run}");
    assert_eq!(number(&verdict["acknowledged"]), number(&verdict["received"]), "{run}");
    assert_eq!(number(&tally["committed"]) + number(&tally["aborted"]), 80, "{run}");
    // What another run left is read too, but for what was aborted.
    let read = against(
        &kafka.plain,
        "consume --partitions 3 --topic transacted --isolation read_committed -d 30s",
        &[],
    );
    assert_eq!(read["consume"]["records"], verdict["received"], "{read}");
    let all = against(&kafka.plain, "consume --partitions 3 --topic transacted -d 30s", &[]);
    assert_eq!(all["consume"]["records"], 4000, "{all}");
    let fence = "produce --rate 500 --warm-up 0 --topic fenced --transactions 20 \
                 --transactional-id same --json -";
    let start = |duration: &str| {
        let mut command = Command::new(PROGRAM);
        command.arg("load").args(fence.split(' ')).args(["-d", duration]);
        command.args(["--bootstrap", &kafka.plain]).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("started")
    };
    let first = start("6s");
    std::thread::sleep(Duration::from_secs(3));
    let second = json(&start("1s").wait_with_output().expect("it ends"), "the second");
    assert_eq!(second["runs"][0]["failed_records"], 0, "{second}");
    let first = json(&first.wait_with_output().expect("it ends"), "the first");
    let notes = first["runs"][0]["notes"].to_string();
    assert!(notes.contains("producer 0 was fenced"), "{first}");
}

#[test]
fn apache_kafka_is_loaded_in_groups_and_transactions_and_behind_tls_and_sasl() {
    let Some(kafka) = Kafka::start() else { return };
    transactions_end_as_they_should(&kafka);
    let line = "verify --rate 1000 -d 2s --warm-up 0 --partitions 4 --producers 2 --consumers 4 \
                --groups 2 --idempotent --topic grouped";
    let run = against(&kafka.plain, line, &[]);
    assert_eq!(run["verify"]["clean"], true, "{run}");
    assert_eq!(run["verify"]["received"], 4000, "each group reads everything: {run}");
    let tls = |key: &str| {
        let file = |name: &str| kafka.file(name).display().to_string();
        let mut options = vec!["--tls".to_string(), "--tls-ca".to_string(), file("ca.pem")];
        options.extend(["--tls-cert".to_string(), file("client.pem")]);
        options.extend(["--tls-key".to_string(), file(key)]);
        options
    };
    let sasl = |mechanism: &str, password: &str| {
        let password = kafka.file(password).display().to_string();
        let options = ["--sasl-mechanism", mechanism, "--sasl-user", kafka::USER.0];
        let options = options.into_iter().map(str::to_string);
        options.chain(["--sasl-password-file".to_string(), password]).collect::<Vec<_>>()
    };
    for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let options = [tls("client.key"), sasl(mechanism, "password")].concat();
        let line = "verify --rate 500 -d 1s --warm-up 0 --record-size 100-40000 --partitions 2 \
                    --consumers 2 --group secured --topic secured";
        let run = against(&kafka.secure, line, &options);
        assert_eq!((&run["verify"]["clean"], &run["failed_records"]), (&true.into(), &0.into()));
        assert_eq!(run["verify"]["received"], 500, "{mechanism}: {run}");
    }
    let refused = |options: Vec<String>| {
        let mut command = Command::new(PROGRAM);
        command.args(["load", "produce", "--bootstrap", &kafka.secure]).args(options);
        let output = command.output().expect("started");
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = refused([tls("client.key"), sasl("SCRAM-SHA-256", "wrong")].concat());
    assert!(said.contains("user `ann` is refused: SASL_AUTHENTICATION_FAILED"), "{said}");
    let said = refused(vec!["--tls".to_string()]);
    assert!(said.contains("invalid peer certificate"), "{said}");
}

#[test]
fn a_broker_without_transactions_is_told_in_a_sentence() {
    let node = Node::start();
    let output = node.command("produce --transactions 100").output().expect("started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let wanted = "has no transactions, as it does not serve AddPartitionsToTxn: leave \
                  --transactions out";
    assert!(said.contains(wanted), "{said}");
    let run = node.measures("verify --rate 500 -d 1s --warm-up 0 --isolation read_committed");
    assert_eq!((&run["verify"]["clean"], &run["verify"]["received"]), (&true.into(), &500.into()));
}

#[test]
fn the_floor_is_measured_without_a_broker() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(PROGRAM);
    command.args(["load", "floor", "-d", "900ms", "--rate", "200", "--json", "-", "--data-dir"]);
    let report = json(&command.arg(folder.path()).output().expect("started"), "floor");
    let floor = &report["floor"];
    for name in ["loopback_us", "flush_us", "paced_us"] {
        assert!(number(&floor[name]["count"]) > 0, "{name}: {floor}");
    }
    assert!(floor["copy_gb_per_second"].as_f64() > Some(0.0), "{floor}");
    assert!(floor["crc_gb_per_second"].as_f64() > Some(0.0), "{floor}");
    assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 0, "nothing is left");
}

#[test]
fn a_wrong_line_and_an_absent_broker_are_told_in_a_sentence() {
    let says = |line: &str| {
        let mut command = Command::new(PROGRAM);
        let output = command.arg("load").args(line.split(' ')).output().expect("started");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = says("produce --rate fast");
    assert_eq!(code, Some(2));
    assert_eq!(text, "corelog: --rate fast: give records per second, or max\n");
    let (code, text) = says("produce --bootstrap 127.0.0.1:1");
    assert_eq!(code, Some(1));
    assert!(text.contains("cannot reach 127.0.0.1:1: connection refused"), "{text}");
}
