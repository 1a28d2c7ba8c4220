//! The command line from outside: a node started by `corelog serve`, and every client command
//! against it.

mod node;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use node::{Node, PROGRAM};
use serde_json::Value;

/// What this file does with a node.
trait Commanded {
    fn run(&self, line: &str, input: &str) -> Output;
    fn says(&self, line: &str, input: &str) -> String;
    fn refuses(&self, line: &str) -> String;
    fn stop(&mut self);
}

impl Commanded for Node {
    /// Runs a client command with `input`.
    fn run(&self, line: &str, input: &str) -> Output {
        let mut command = Command::new(PROGRAM);
        command.args(line.split(' ')).args(["--bootstrap", &self.address]);
        finish(command, input)
    }

    /// The output of a client command that must succeed.
    fn says(&self, line: &str, input: &str) -> String {
        let output = self.run(line, input);
        assert!(output.status.success(), "{line}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// The sentence of a client command that must be refused.
    fn refuses(&self, line: &str) -> String {
        let output = self.run(line, "");
        assert_eq!(output.status.code(), Some(1), "{line}: {}", text(&output.stdout));
        text(&output.stderr)
    }

    /// Asks the node to stop.
    fn stop(&mut self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").arg(&id).status().expect("a kill command").success());
        assert!(self.child.wait().expect("a child").success(), "SIGTERM ends the node with 0");
    }
}

fn finish(mut command: Command, input: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("started");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.as_bytes().to_vec();
    let writer = std::thread::spawn(move || {
        // A command that is refused reads nothing and closes the pipe.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().expect("ended");
    writer.join().expect("no panic");
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn topics_are_created_listed_described_and_deleted() {
    let node = Node::start();
    let created = node.says("topic create orders -p 3 --config retention.ms=60000", "");
    assert_eq!(created, "created topic orders\n");
    assert!(node.refuses("topic create orders").contains("TOPIC_ALREADY_EXISTS"));
    let again = node.says("topic create orders --if-not-exists --json", "");
    assert_eq!(json_lines(&again)[0]["created"], false);
    let refusal = node.refuses("topic create other --config retention.m=1");
    assert!(refusal.contains("did you mean `retention.ms`"), "{refusal}");
    let listed = json_lines(&node.says("topic list --json", ""));
    assert_eq!(listed.len(), 1);
    assert_eq!((&listed[0]["topic"], &listed[0]["partitions"]), (&"orders".into(), &3.into()));
    let described = json_lines(&node.says("topic describe --json", ""));
    assert_eq!(described[0]["partitions"].as_array().map(Vec::len), Some(3));
    assert_eq!(node.says("topic delete orders", ""), "deleted topic orders\n");
    assert_eq!(node.says("topic list --json", ""), "");
    for line in ["topic delete orders", "topic describe orders", "consume -t orders"] {
        assert!(node.refuses(line).contains("there is no topic `orders`"), "{line}");
    }
}

#[test]
fn lines_go_in_and_come_out_the_same_with_every_codec() {
    let node = Node::start();
    let lines: String = (0..20_000).map(|number| format!("line {number}\n")).collect();
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        node.says(&format!("topic create {codec}"), "");
        let produced = node.says(&format!("produce -t {codec} -z {codec} --json"), &lines);
        assert_eq!(json_lines(&produced)[0]["last"], 19_999, "{codec}");
        assert_eq!(node.says(&format!("consume -t {codec} -e"), ""), lines, "{codec}");
    }
    assert_eq!(node.says("consume -t zstd -o -2 -e", ""), "line 19998\nline 19999\n");
    assert_eq!(node.says("consume -t zstd -o 7 -c 1", ""), "line 7\n");
    let outside = node.refuses("consume -t zstd -o 20001");
    assert!(outside.contains("has no offset 20001: it holds 0 to 20000"), "{outside}");
    assert!(node.refuses("consume -t zstd -p 1").contains("has no partition 1: it has 1"));
    assert!(node.refuses("produce -t zstd -p 1").contains("has no partition 1: it has 1"));
}

#[test]
fn keys_headers_and_nulls_keep_their_place() {
    let node = Node::start();
    node.says("topic create keyed -p 4", "");
    let lines: String = (0..100).map(|number| format!("k{}:v{number}\n", number % 10)).collect();
    node.says("produce -t keyed -K : -H a=1 -H b=", &lines);
    let format = "consume -t keyed -e -f %p/%k=%s(%h)\\n";
    let mut places = std::collections::BTreeMap::new();
    let mut next = std::collections::BTreeMap::<String, u32>::new();
    for line in node.says(format, "").lines() {
        let (partition, rest) = line.split_once('/').expect("a partition");
        let (key, value) = rest.split_once("=v").expect("a key");
        let place = places.entry(key.to_string()).or_insert_with(|| partition.to_string());
        assert_eq!(place, partition, "{key} stays in its partition");
        let number = value.strip_suffix("(a=1,b=)").expect("headers").parse::<u32>();
        let wanted = next.entry(key.to_string()).or_insert_with(|| key[1..].parse().expect("one"));
        assert_eq!(number.as_ref(), Ok(&*wanted), "{key} in order");
        *wanted += 10;
    }
    assert!(next.values().all(|next| *next >= 100) && next.len() == 10, "{next:?}");
    let bad = node.run("produce -t keyed -p 0 -K =", "good=1\nno key\nlost=1\n");
    assert_eq!(bad.status.code(), Some(1));
    assert!(text(&bad.stderr).contains("the line `no key` has no key"));
    node.says("produce -t keyed -p 0 -K = -Z", "gone=\n");
    let last = json_lines(&node.says("consume -t keyed -p 0 -o -2 -e --json", ""));
    assert_eq!((&last[0]["key"], &last[0]["value"]), (&"good".into(), &"1".into()));
    assert_eq!((&last[1]["key"], &last[1]["value"]), (&"gone".into(), &Value::Null));
}

#[test]
fn a_line_is_sent_before_the_input_ends_and_a_reader_may_go_away() {
    let node = Node::start();
    node.says("topic create slow", "");
    let mut command = Command::new(PROGRAM);
    command.args(["produce", "-t", "slow", "--bootstrap", &node.address]).stdin(Stdio::piped());
    let mut producer = command.spawn().expect("started");
    let mut stdin = producer.stdin.take().expect("piped");
    stdin.write_all(b"first\n").expect("a reader");
    assert_eq!(node.says("consume -t slow -c 1", ""), "first\n");
    drop(stdin);
    assert!(producer.wait().expect("a child").success());

    let lines: String = (0..50_000).map(|number| format!("a longer line {number}\n")).collect();
    node.says("produce -t slow", &lines);
    let mut command = Command::new(PROGRAM);
    command.args(["consume", "-t", "slow", "-e", "--bootstrap", &node.address]);
    let mut consumer =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    let mut first = [0; 6];
    consumer.stdout.take().expect("piped").read_exact(&mut first).expect("a record");
    let output = consumer.wait_with_output().expect("ended");
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}

#[test]
fn a_stopped_nodes_journal_is_inspected_and_damage_is_found() {
    let mut node = Node::start();
    node.says("topic create orders", "");
    node.says("produce -t orders", "one\ntwo\n");
    node.stop();
    let journal = node.folder().join("data/core-0/journal-000000000000");
    let words = inspect(&journal, 0, &[]);
    assert!(words.contains("topic orders is created"), "{words}");
    assert!(words.contains("offsets 0 to 1, records 2, codec none"), "{words}");
    let summary = json_lines(&inspect(&journal, 0, &["--json"])).pop().expect("a summary");
    assert_eq!((&summary["records"], &summary["damaged"]), (&2.into(), &0.into()));

    let mut bytes = fs::read(&journal).expect("a journal");
    let place = bytes.windows(3).position(|window| window == b"two").expect("the record");
    bytes[place] ^= 1;
    fs::write(&journal, &bytes).expect("writable");
    assert!(inspect(&journal, 1, &[]).contains("DAMAGED: the checksum of entry 0 is wrong"));
    inspect(&node.folder().join("nowhere"), 1, &[]);
}

fn inspect(file: &Path, code: i32, flags: &[&str]) -> String {
    let mut command = Command::new(PROGRAM);
    command.arg("inspect").arg(file).args(flags);
    let output = finish(command, "");
    assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn settings_are_listed_with_their_source_and_wrong_ones_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("corelog.toml");
    fs::write(&file, "num.partitions = 3\nnode.id = 4\n").expect("writable");
    let config = |flags: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.arg("config").arg("--config").arg(&file).args(flags).env("CORELOG_NODE_ID", "5");
        finish(command, "")
    };
    let output = config(&["--json", "--listen", "127.0.0.1:1"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let rows = json_lines(&text(&output.stdout));
    let row = |name: &str| {
        let row = rows.iter().find(|row| row["name"] == name).expect("a row");
        [row["value"].clone(), row["source"].clone()].map(|v| v.as_str().unwrap_or("").to_string())
    };
    assert_eq!(row("num.partitions"), ["3", "file"]);
    assert_eq!(row("node.id"), ["5", "environment"]);
    assert_eq!(row("listeners"), ["127.0.0.1:1", "flag"]);
    assert_eq!(row("durability"), ["fsync", "default"]);
    for (flags, sentence) in [
        (["--set", "num.partition=1"], "did you mean `num.partitions`?"),
        (["--set", "num.partitions=0"], "give a whole number from 1"),
        (["--set", "num.partitions"], "give a setting as NAME=VALUE"),
        (["--config", "/nowhere"], "cannot be used multiple times"),
    ] {
        let output = config(&flags);
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
        assert!(text(&output.stderr).contains(sentence), "{}", text(&output.stderr));
    }
}

#[test]
fn a_broker_that_is_not_there_is_named_with_the_remedy() {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let address = port.expect("a free port").to_string();
    let mut command = Command::new(PROGRAM);
    command.args(["topic", "list", "--bootstrap", &address]);
    let output = finish(command, "");
    assert_eq!(output.status.code(), Some(1));
    let sentence = format!(
        "corelog: cannot reach {address}: connection refused; is `corelog serve` running there?\n"
    );
    assert_eq!(text(&output.stderr), sentence);
}
