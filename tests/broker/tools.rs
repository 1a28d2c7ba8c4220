//! Apache Kafka's own tools, as they come, each run for real.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use crate::librdkafka;
use crate::program::{finish, java};
use crate::world::{Broker, fresh};

const TOOL_MAX: Duration = Duration::from_secs(120);

/// Runs a tool to its end; None if Kafka's jars are not installed.
pub fn tool(main: &str, arguments: &[&str]) -> Option<String> {
    Some(finish(main, java(main, arguments)?, TOOL_MAX))
}

#[test]
fn topics_and_configs() -> Result<(), String> {
    let broker = Broker::for_clients();
    let (bootstrap, topic) = (broker.bootstrap(), fresh("administered"));
    let topics = |arguments: &[&str]| {
        let all = [&["--bootstrap-server", &bootstrap], arguments].concat();
        tool("org.apache.kafka.tools.TopicCommand", &all)
    };
    let configs = |arguments: &[&str]| {
        let whole = ["--bootstrap-server", &bootstrap, "--entity-type", "topics"];
        let all = [&whole[..], &["--entity-name", &topic], arguments].concat();
        tool("org.apache.kafka.tools.ConfigCommand", &all)
    };
    let kept = "retention.ms=60000";
    let Some(made) =
        topics(&["--create", "--topic", &topic, "--partitions", "2", "--config", kept])
    else {
        return Ok(());
    };
    assert!(made.contains(&format!("Created topic {topic}")), "{made}");
    let all = topics(&["--list"]).ok_or("java is gone")?;
    assert!(all.lines().any(|line| line == topic), "{all}");
    topics(&["--alter", "--topic", &topic, "--partitions", "5"]).ok_or("java is gone")?;
    let told = topics(&["--describe", "--topic", &topic]).ok_or("java is gone")?;
    assert!(told.contains("PartitionCount: 5") && told.contains(kept), "{told}");
    let changed = configs(&["--alter", "--add-config", "max.message.bytes=5000"]);
    changed.ok_or("java is gone")?;
    let told = configs(&["--describe"]).ok_or("java is gone")?;
    assert!(told.contains("max.message.bytes=5000") && told.contains(kept), "{told}");
    configs(&["--alter", "--delete-config", "max.message.bytes"]).ok_or("java is gone")?;
    let told = configs(&["--describe"]).ok_or("java is gone")?;
    assert!(!told.contains("max.message.bytes=5000"), "{told}");
    topics(&["--delete", "--topic", &topic]).ok_or("java is gone")?;
    let all = topics(&["--list"]).ok_or("java is gone")?;
    assert!(!all.lines().any(|line| line == topic), "{all}");
    Ok(())
}

#[test]
fn console_producer_and_consumer_and_groups() {
    let broker = Broker::for_clients();
    let (bootstrap, topic, group) = (broker.bootstrap(), fresh("console"), fresh("console-group"));
    librdkafka::create_topic(&bootstrap, &topic, 1);
    let arguments = ["--bootstrap-server", &bootstrap, "--topic", &topic];
    let Some(mut producer) = java("org.apache.kafka.tools.ConsoleProducer", &arguments) else {
        return;
    };
    let mut running = producer.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("java");
    let mut input = running.stdin.take().expect("piped");
    input.write_all(b"first\nsecond\nthird\n").expect("it reads its input");
    drop(input);
    assert!(running.wait().expect("it ends").success());

    let more = ["--group", &group, "--from-beginning", "--max-messages", "3"];
    let all = [&arguments[..], &more].concat();
    let read = tool("org.apache.kafka.tools.consumer.ConsoleConsumer", &all);
    assert_eq!(read.as_deref(), Some("first\nsecond\nthird\n"));

    let main = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
    let groups = |arguments: &[&str]| {
        tool(main, &[&["--bootstrap-server", &bootstrap], arguments].concat()).expect("java")
    };
    let told = groups(&["--describe", "--group", &group]);
    let line = told.lines().find(|line| line.contains(&topic)).expect("a line of the topic");
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[..6], [group.as_str(), &topic, "0", "3", "3", "0"], "{told}");
    assert!(groups(&["--list"]).lines().any(|line| line.trim() == group));
    let to_start = ["--reset-offsets", "--to-earliest", "--execute", "--topic", &topic];
    groups(&[&["--group", group.as_str()], &to_start[..]].concat());
    assert_eq!(librdkafka::lag(&bootstrap, &topic, &group), 3);
    groups(&["--delete", "--group", &group]);
    assert!(!groups(&["--list"]).lines().any(|line| line.trim() == group));
}

#[test]
fn client_compatibility() {
    let broker = Broker::for_clients();
    let (bootstrap, topic) = (broker.bootstrap(), fresh("compatibility"));
    let told = tool(
        "org.apache.kafka.tools.ClientCompatibilityTest",
        &[
            "--bootstrap-server",
            &bootstrap,
            "--topic",
            &topic,
            "--offsets-for-times-supported",
            "true",
            "--cluster-id-supported",
            "true",
            // A record above the limits of a fetch is given out all the same since KIP-74.
            "--expect-record-too-large-exception",
            "false",
            "--num-cluster-nodes",
            "1",
            "--create-topics-supported",
            "true",
            "--describe-acls-supported",
            // Kafka answers that no authorizer is configured, which the tool takes for support.
            if broker.is_ours() { "false" } else { "true" },
            "--describe-configs-supported",
            "true",
            "--idempotent-producer-supported",
            "true",
        ],
    );
    let Some(told) = told else { return };
    assert!(told.contains("SUCCESS"), "{told}");
}

#[test]
fn performance_tools() {
    let broker = Broker::for_clients();
    let (bootstrap, topic) = (broker.bootstrap(), fresh("performance"));
    librdkafka::create_topic(&bootstrap, &topic, 4);
    let server = format!("bootstrap.servers={bootstrap}");
    let produced = tool(
        "org.apache.kafka.tools.ProducerPerformance",
        &[
            "--topic",
            &topic,
            "--num-records",
            "100000",
            "--record-size",
            "100",
            "--throughput",
            "-1",
            "--command-property",
            &server,
        ],
    );
    let Some(produced) = produced else { return };
    assert!(produced.contains("100000 records sent"), "{produced}");
    let consumed = tool(
        "org.apache.kafka.tools.ConsumerPerformance",
        &[
            "--bootstrap-server",
            &bootstrap,
            "--topic",
            &topic,
            "--num-records",
            "100000",
            "--timeout",
            "60000",
        ],
    );
    let consumed = consumed.expect("java");
    let figures = consumed.lines().last().unwrap_or_default();
    let count = figures.split(',').nth(4).map(str::trim);
    assert_eq!(count, Some("100000"), "{consumed}");
}

#[test]
fn verifiable_producer_and_consumer() {
    let broker = Broker::for_clients();
    let (bootstrap, topic, group) = (broker.bootstrap(), fresh("verified"), fresh("verifiers"));
    librdkafka::create_topic(&bootstrap, &topic, 4);
    let server = ["--bootstrap-server", bootstrap.as_str(), "--topic", &topic];
    let produced = tool(
        "org.apache.kafka.tools.VerifiableProducer",
        &[&server[..], &["--max-messages", "5000", "--throughput", "-1"]].concat(),
    );
    let Some(produced) = produced else { return };
    assert!(produced.contains("\"acked\":5000"), "{produced}");
    let more = ["--group-id", group.as_str(), "--max-messages", "5000"];
    let consumed = tool(
        "org.apache.kafka.tools.VerifiableConsumer",
        &[&server[..], &more, &["--reset-policy", "earliest"]].concat(),
    );
    let consumed = consumed.expect("java");
    let mut count = 0;
    for line in consumed.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("a line is JSON");
        if line["name"] == "records_consumed" {
            count += line["count"].as_i64().expect("a count");
        }
    }
    assert_eq!(count, 5000);
}
