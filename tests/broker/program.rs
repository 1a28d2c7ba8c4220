//! The client programs of `tests/clients/`, driven by the verbs of its README.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long one verb may take.
const VERB_MAX: Duration = Duration::from_secs(90);

/// One client program: what is run, before the verb.
pub struct Program {
    pub name: &'static str,
    /// What must be there for the client to count as installed, under `target/clients/`.
    stamp: &'static str,
    command: &'static [&'static str],
}

/// `{P}` is `target/clients`, `{S}` is `tests/clients`.
pub const PROGRAMS: &[Program] = &[
    Program {
        name: "java",
        stamp: "java.stamp",
        command: &[
            "java",
            "-XX:TieredStopAtLevel=1",
            "-XX:+UseSerialGC",
            "-Xmx256m",
            "-cp",
            "{P}/java/lib/*:{P}/java/classes",
            "Client",
        ],
    },
    Program { name: "franz-go", stamp: "franz-go.stamp", command: &["{P}/franz-go"] },
    Program { name: "kafkajs", stamp: "kafkajs.stamp", command: &["node", "{S}/node/client.js"] },
    Program {
        name: "confluent-kafka",
        stamp: "python.stamp",
        command: &["{P}/python/bin/python", "{S}/python/confluent.py"],
    },
    Program {
        name: "aiokafka",
        stamp: "python.stamp",
        command: &["{P}/python/bin/python", "{S}/python/aio.py"],
    },
    Program { name: "kcat", stamp: "kcat.stamp", command: &["python3", "{S}/python/kcat.py"] },
];

fn place() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients")
}

/// The programs that are installed. With CI=true all must be.
pub fn installed() -> Vec<&'static Program> {
    let (there, missing): (Vec<_>, Vec<_>) =
        PROGRAMS.iter().partition(|program| place().join(program.stamp).exists());
    for program in missing {
        let name = program.name;
        assert!(!in_ci(), "client {name} is missing, and CI may skip none: run ci/clients");
        eprintln!("skipped: client {name} is not installed, see ci/clients");
    }
    there
}

pub fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true")
}

/// `java` with Kafka's jars on its class path; None if they are not installed.
pub fn java(main: &str, arguments: &[&str]) -> Option<Command> {
    let program = installed().into_iter().find(|program| program.name == "java")?;
    let mut command = program.command();
    let whole: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let mut other = Command::new(command.get_program());
    let log = format!("-Dlog4j2.configurationFile={}", source().join("java/log4j2.xml").display());
    other.arg(log).args(&whole[..whole.len() - 1]).arg(main).args(arguments);
    command = other;
    Some(command)
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

impl Program {
    fn command(&self) -> Command {
        let put = |word: &str| {
            word.replace("{P}", &place().to_string_lossy())
                .replace("{S}", &source().to_string_lossy())
        };
        let mut command = Command::new(put(self.command[0]));
        command.args(self.command[1..].iter().map(|word| put(word)));
        command.env("NODE_PATH", place().join("node/node_modules"));
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    /// Runs a verb to its end; the lines that it printed.
    pub fn run(&self, verb: &str, options: &[(&str, &str)]) -> Vec<Value> {
        let mut command = self.command();
        command.arg(verb);
        for (name, value) in options {
            command.arg(format!("--{name}")).arg(value);
        }
        let title = format!("{} {verb}", self.name);
        let out = finish(&title, command, VERB_MAX);
        out.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
    }

    /// Starts the `group` verb.
    pub fn join(&self, bootstrap: &str, topic: &str, group: &str) -> Member {
        let mut command = self.command();
        command.args(["group", "--bootstrap", bootstrap, "--topic", topic, "--group", group]);
        Member::start(self.name, command)
    }
}

/// Runs `command` to its end and gives its standard output; fails if it fails or takes longer.
pub fn finish(title: &str, mut command: Command, most: Duration) -> String {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{title}: {error}"));
    let out = reader(child.stdout.take().expect("piped"));
    let err = reader(child.stderr.take().expect("piped"));
    let until = Instant::now() + most;
    let status = loop {
        if let Some(status) = child.try_wait().expect("its status can be asked") {
            break Some(status);
        }
        if Instant::now() > until {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let (out, err) = (out.join().expect("it reads"), err.join().expect("it reads"));
    match status {
        Some(status) if status.success() => out,
        Some(status) => panic!("{title} failed, {status}:\n{err}\n{}", tail(&out)),
        None => panic!("{title} took more than {most:?}:\n{err}\n{}", tail(&out)),
    }
}

fn tail(text: &str) -> &str {
    let from = text.char_indices().rev().nth(1500).map_or(0, |(at, _)| at);
    &text[from..]
}

fn reader(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// A running member of a group.
pub struct Member {
    name: &'static str,
    child: Child,
    lines: Receiver<Value>,
    errors: Option<JoinHandle<String>>,
    /// The partitions that it was last given.
    pub assigned: Vec<i64>,
    /// (partition, offset) of the records that it was given.
    pub read: Vec<(i64, i64)>,
}

impl Member {
    fn start(name: &'static str, mut command: Command) -> Member {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        let out = BufReader::new(child.stdout.take().expect("piped"));
        let errors = Some(reader(child.stderr.take().expect("piped")));
        let (send, lines) = channel();
        spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).expect("a line is JSON");
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Member { name, child, lines, errors, assigned: Vec::new(), read: Vec::new() }
    }

    /// Takes in what the member has printed so far.
    pub fn listen(&mut self) {
        while let Ok(line) = self.lines.try_recv() {
            self.take(&line);
        }
    }

    fn take(&mut self, line: &Value) {
        let number = |value: &Value| value.as_i64().expect("a number");
        match line["assigned"].as_array() {
            Some(given) => self.assigned = given.iter().map(number).collect(),
            None => self.read.push((number(&line["p"]), number(&line["o"]))),
        }
    }

    /// Ends the member's input, so that it leaves, and waits for that.
    pub fn leave(&mut self) {
        drop(self.child.stdin.take());
        let until = Instant::now() + VERB_MAX;
        while self.child.try_wait().expect("its status can be asked").is_none() {
            assert!(Instant::now() < until, "{} does not leave", self.name);
            std::thread::sleep(Duration::from_millis(10));
        }
        while let Ok(line) = self.lines.recv() {
            self.take(&line);
        }
        let status = self.child.wait().expect("it has ended");
        let errors = self.errors.take().map(|errors| errors.join().expect("it reads"));
        assert!(status.success(), "{}: {status}\n{}", self.name, errors.unwrap_or_default());
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking()
            && let Some(errors) = self.errors.take()
        {
            eprintln!("{} said:\n{}", self.name, errors.join().unwrap_or_default());
        }
    }
}
