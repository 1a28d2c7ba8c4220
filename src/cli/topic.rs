//! `corelog topic`: create, list, describe, delete.

use std::io::Write;

use serde_json::json;

use super::Client;
use super::table::Table;
use crate::client::cluster::{
    Attempt, Cluster, EARLIEST, LATEST, REQUEST_TIME_MS, To, Topic, judge, no_topic, persist,
};
use crate::client::connection::NEWEST;
use crate::client::failure::Failure;
use crate::wire::api::{ApiKey, create_topics, delete_topics, describe_configs};
use crate::wire::error::ErrorCode;

/// Kafka's number for topics in requests about settings.
const RESOURCE_TOPIC: i8 = 2;
/// Kafka's number for values that were set for the topic itself.
const SOURCE_TOPIC: i8 = 1;
/// Stands for the broker's own default in CreateTopics.
const BROKERS_DEFAULT: i32 = -1;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Create a topic.
    Create(Create),
    /// List the topics.
    List(List),
    /// Tell partitions, offsets and settings of some topics, or of all.
    Describe(Describe),
    /// Delete topics with all their records.
    Delete(Delete),
}

#[derive(clap::Args)]
pub struct Create {
    name: String,
    /// How many partitions; the broker's num.partitions unless given.
    #[arg(short, long, value_name = "NUMBER", value_parser = clap::value_parser!(i32).range(1..))]
    partitions: Option<i32>,
    /// How many replicas; the broker's default.replication.factor unless given.
    #[arg(short, long, value_name = "NUMBER", value_parser = clap::value_parser!(i16).range(1..))]
    replicas: Option<i16>,
    /// A setting of the topic; may be repeated.
    #[arg(short, long, value_name = "NAME=VALUE")]
    config: Vec<String>,
    /// Succeed when the topic is there already.
    #[arg(long)]
    if_not_exists: bool,
    #[command(flatten)]
    client: Client,
}

#[derive(clap::Args)]
pub struct List {
    /// List the broker's own topics, too.
    #[arg(long)]
    internal: bool,
    #[command(flatten)]
    client: Client,
}

#[derive(clap::Args)]
pub struct Describe {
    names: Vec<String>,
    #[command(flatten)]
    client: Client,
}

#[derive(clap::Args)]
pub struct Delete {
    #[arg(required = true)]
    names: Vec<String>,
    #[command(flatten)]
    client: Client,
}

impl Command {
    pub fn run(&self, out: &mut dyn Write) -> Result<(), Failure> {
        match self {
            Command::Create(create) => create.run(out),
            Command::List(list) => list.run(out),
            Command::Describe(describe) => describe.run(out),
            Command::Delete(delete) => delete.run(out),
        }
    }
}

impl Create {
    fn run(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let mut configs = Vec::new();
        for pair in &self.config {
            let (name, value) = pair.split_once('=').ok_or_else(|| {
                Failure::Usage(format!("--config {pair}: give a setting as NAME=VALUE"))
            })?;
            configs.push(create_topics::CreatableTopicConfig { name, value: Some(value) });
        }
        let request = create_topics::Request {
            topics: vec![create_topics::CreatableTopic {
                name: &self.name,
                num_partitions: self.partitions.unwrap_or(BROKERS_DEFAULT),
                replication_factor: self.replicas.unwrap_or(-1),
                assignments: Vec::new(),
                configs,
            }],
            timeout_ms: REQUEST_TIME_MS,
            validate_only: false,
        };
        let mut cluster = Cluster::reach(&self.client.bootstrap)?;
        let created = persist(|| self.attempt(&mut cluster, &request))?;
        let name = &self.name;
        if self.client.json {
            writeln!(out, "{}", json!({ "topic": name, "created": created }))?;
        } else if created {
            writeln!(out, "created topic {name}")?;
        } else {
            writeln!(out, "topic {name} is there already")?;
        }
        Ok(())
    }

    /// Whether the topic was created; `false` when it was there and that is fine.
    fn attempt(
        &self,
        cluster: &mut Cluster,
        request: &create_topics::Request<'_>,
    ) -> Result<Attempt<bool>, Failure> {
        let answer = cluster.call(To::Any, ApiKey::CreateTopics, NEWEST, request)?;
        let answer: create_topics::Response<'_> = answer.decode()?;
        let what = format!("topic `{}`", self.name);
        let Some(topic) = answer.topics.first() else {
            return Err(Failure::Failed(format!("{what}: the broker's answer is empty")));
        };
        let code = ErrorCode(topic.error_code);
        if code == ErrorCode::TOPIC_ALREADY_EXISTS && self.if_not_exists {
            return Ok(Attempt::Done(false));
        }
        Ok(match judge(code, &what, topic.error_message)? {
            Attempt::Done(()) => Attempt::Done(true),
            Attempt::Again(why) => Attempt::Again(why),
        })
    }
}

impl List {
    fn run(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let mut topics = Cluster::reach(&self.client.bootstrap)?.topics(None, false)?;
        topics.retain(|topic| self.internal || !topic.is_internal);
        topics.sort_by(|one, two| one.name.cmp(&two.name));
        let mut table = Table::new(&["TOPIC", "PARTITIONS", "REPLICAS", "ID"]);
        for Topic { name, id, partitions, is_internal, .. } in &topics {
            let replicas = partitions.iter().map(|p| p.replicas.len()).max().unwrap_or(0);
            if self.client.json {
                let row = json!({
                    "topic": name,
                    "id": id.to_string(),
                    "partitions": partitions.len(),
                    "replicas": replicas,
                    "internal": is_internal,
                });
                writeln!(out, "{row}")?;
            } else {
                let count = partitions.len().to_string();
                table.row([name.clone(), count, replicas.to_string(), id.to_string()]);
            }
        }
        if !self.client.json {
            table.write(out)?;
        }
        Ok(())
    }
}

impl Describe {
    fn run(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let mut cluster = Cluster::reach(&self.client.bootstrap)?;
        let names: Vec<String> = if self.names.is_empty() {
            let topics = cluster.topics(None, false)?.into_iter();
            let mut names: Vec<String> =
                topics.filter(|topic| !topic.is_internal).map(|topic| topic.name).collect();
            names.sort();
            names
        } else {
            self.names.clone()
        };
        for (index, name) in names.iter().enumerate() {
            let topic = cluster.topic_led(name, false, |_| false)?;
            let earliest = cluster.offsets(&topic, EARLIEST)?;
            let latest = cluster.offsets(&topic, LATEST)?;
            let settings = own_settings(&mut cluster, name)?;
            let offsets = |partition: i32| {
                let start = earliest.get(&partition).copied().unwrap_or(-1);
                (start, latest.get(&partition).copied().unwrap_or(-1))
            };
            if self.client.json {
                writeln!(out, "{}", json_topic(&topic, &settings, offsets))?;
            } else {
                if index > 0 {
                    writeln!(out)?;
                }
                write_topic(out, &topic, &settings, offsets)?;
            }
        }
        Ok(())
    }
}

fn write_topic(
    out: &mut dyn Write,
    topic: &Topic,
    settings: &[(String, String)],
    offsets: impl Fn(i32) -> (i64, i64),
) -> Result<(), Failure> {
    writeln!(out, "topic {}, id {}", topic.name, topic.id)?;
    for (name, value) in settings {
        writeln!(out, "  {name}={value}")?;
    }
    let mut table = Table::new(&["PARTITION", "LEADER", "START", "END", "REPLICAS", "IN SYNC"]);
    for partition in &topic.partitions {
        let (start, end) = offsets(partition.index);
        table.row([
            partition.index.to_string(),
            if partition.leader < 0 { "none".into() } else { partition.leader.to_string() },
            start.to_string(),
            end.to_string(),
            numbers(&partition.replicas),
            numbers(&partition.in_sync),
        ]);
    }
    Ok(table.write(out)?)
}

fn json_topic(
    topic: &Topic,
    settings: &[(String, String)],
    offsets: impl Fn(i32) -> (i64, i64),
) -> serde_json::Value {
    let partitions = topic.partitions.iter().map(|partition| {
        let (start, end) = offsets(partition.index);
        json!({
            "partition": partition.index,
            "leader": partition.leader,
            "start": start,
            "end": end,
            "replicas": partition.replicas,
            "in_sync": partition.in_sync,
        })
    });
    let settings: serde_json::Map<String, serde_json::Value> =
        settings.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    json!({
        "topic": topic.name,
        "id": topic.id.to_string(),
        "internal": topic.is_internal,
        "settings": settings,
        "partitions": partitions.collect::<Vec<_>>(),
    })
}

fn numbers(list: &[i32]) -> String {
    list.iter().map(i32::to_string).collect::<Vec<_>>().join(",")
}

/// The settings that were given to the topic itself.
fn own_settings(cluster: &mut Cluster, name: &str) -> Result<Vec<(String, String)>, Failure> {
    let request = describe_configs::Request {
        resources: vec![describe_configs::DescribeConfigsResource {
            resource_type: RESOURCE_TOPIC,
            resource_name: name,
            configuration_keys: None,
        }],
        ..Default::default()
    };
    let answer = cluster.call(To::Any, ApiKey::DescribeConfigs, NEWEST, &request)?;
    let answer: describe_configs::Response<'_> = answer.decode()?;
    let mut settings = Vec::new();
    for result in &answer.results {
        let what = format!("settings of topic `{name}`");
        judge(ErrorCode(result.error_code), &what, result.error_message)?;
        let own = result.configs.iter().filter(|config| config.config_source == SOURCE_TOPIC);
        settings.extend(own.map(|c| (c.name.to_string(), c.value.unwrap_or_default().to_string())));
    }
    settings.sort();
    Ok(settings)
}

impl Delete {
    fn run(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let mut cluster = Cluster::reach(&self.client.bootstrap)?;
        for name in &self.names {
            persist(|| delete(&mut cluster, name))?;
            if self.client.json {
                writeln!(out, "{}", json!({ "topic": name, "deleted": true }))?;
            } else {
                writeln!(out, "deleted topic {name}")?;
            }
        }
        Ok(())
    }
}

fn delete(cluster: &mut Cluster, name: &str) -> Result<Attempt<()>, Failure> {
    let request = delete_topics::Request {
        topics: vec![delete_topics::DeleteTopicState { name: Some(name), ..Default::default() }],
        topic_names: vec![name],
        timeout_ms: REQUEST_TIME_MS,
    };
    let answer = cluster.call(To::Any, ApiKey::DeleteTopics, NEWEST, &request)?;
    let answer: delete_topics::Response<'_> = answer.decode()?;
    let what = format!("topic `{name}`");
    let Some(topic) = answer.responses.first() else {
        return Err(Failure::Failed(format!("{what}: the broker's answer is empty")));
    };
    match ErrorCode(topic.error_code) {
        ErrorCode::UNKNOWN_TOPIC_OR_PARTITION => Err(no_topic(name)),
        code => judge(code, &what, topic.error_message),
    }
}
