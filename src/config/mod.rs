//! The configuration: one table, from which the file, the environment, the flags, the listing and
//! the DescribeConfigs answers all come.
//!
//! Precedence: flag, then environment, then file, then default.
//!
//! Invariants
//!   C1  Every default is a valid value of its row, and rows are in the order of their names.
//!   C2  A value that is taken has passed its row's check; an unknown name is refused.

mod setting;
mod table;
mod topic_table;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use setting::{Effect, Kind, Refused, Scope, Setting, find};
pub use table::BROKER;
use table::COARSER;
pub use topic_table::{TOPIC, node_default};

/// Where a value comes from, strongest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    Default,
    File,
    Environment,
    Flag,
}

/// Prefix of environment variables: `num.partitions` is `CORELOG_NUM_PARTITIONS`.
pub const ENVIRONMENT_PREFIX: &str = "CORELOG_";

/// When a write counts as durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    Fsync,
    Replicated,
}

/// The node's settings: every row with its value and source, and the values as types.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    values: BTreeMap<&'static str, (String, Source)>,
    /// What those of minutes and hours are in milliseconds, where they are given.
    millis: BTreeMap<&'static str, String>,
}

/// The codec that a topic stores batches with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressionType {
    /// The one that they come with.
    Producer,
    Uncompressed,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

/// A topic's settings that the data path looks at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TopicConfig {
    pub max_message_bytes: usize,
    pub timestamp_before_max_ms: i64,
    pub timestamp_after_max_ms: i64,
    /// Records carry the time at which they were appended.
    pub is_append_time: bool,
    pub compression: CompressionType,
    pub gzip_level: i32,
    pub zstd_level: i32,
    /// Records are kept by key, so that each needs one.
    pub is_compacted: bool,
    /// Records are deleted by age and size.
    pub is_deleted: bool,
    /// -1 for ever.
    pub retention_ms: i64,
    /// -1 for any size.
    pub retention_bytes: i64,
    pub segment_bytes: u64,
    pub segment_ms: i64,
    /// How long a tombstone stays once compaction has met it.
    pub delete_retention_ms: i64,
    /// A younger record is not compacted away.
    pub min_compaction_lag_ms: i64,
    /// A record that is dirty for longer is compacted in any case.
    pub max_compaction_lag_ms: i64,
    /// The share of dirty bytes that compaction waits for.
    pub dirty_ratio: f64,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        let values = BROKER
            .iter()
            .map(|setting| (setting.name, (setting.default.to_string(), Source::Default)));
        BrokerConfig { values: values.collect(), millis: BTreeMap::new() }
    }
}

/// A value of a TOML file as a setting is written elsewhere.
fn in_words(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

impl BrokerConfig {
    /// Takes one value unless a stronger source gave it before.
    pub fn set(&mut self, name: &str, value: &str, source: Source) -> Result<(), Refused> {
        let setting = find(BROKER, name)?;
        let value = setting.check(value)?;
        if let Some(held) = self.values.get_mut(setting.name)
            && held.1 <= source
        {
            if let Some((_, unit, _)) = COARSER.iter().find(|(name, ..)| *name == setting.name) {
                let units = value.parse().unwrap_or(-1_i64);
                let millis = if units < 0 { -1 } else { units.saturating_mul(*unit) };
                self.millis.insert(setting.name, millis.to_string());
            }
            *held = (value, source);
        }
        Ok(())
    }

    /// Takes a TOML file's text: `"num.partitions" = 3`, or nested tables, which are the same. An
    /// array is what its elements are with commas between them.
    pub fn read_file(&mut self, text: &str, place: &str) -> Result<(), Refused> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            Refused::Source { place: place.to_string(), why: error.message().to_string() }
        })?;
        self.read_table(&table, "", place)
    }

    fn read_table(
        &mut self,
        table: &toml::Table,
        prefix: &str,
        place: &str,
    ) -> Result<(), Refused> {
        for (key, value) in table {
            let name = format!("{prefix}{key}");
            let at = |refused: Refused| Refused::Source {
                place: place.to_string(),
                why: refused.to_string(),
            };
            match value {
                toml::Value::Table(inner) => self.read_table(inner, &format!("{name}."), place)?,
                toml::Value::Array(all) => {
                    let all: Vec<String> = all.iter().map(in_words).collect();
                    self.set(&name, &all.join(","), Source::File).map_err(at)?;
                }
                other => self.set(&name, &in_words(other), Source::File).map_err(at)?,
            }
        }
        Ok(())
    }

    /// Takes the variables that begin with `CORELOG_`, but for those that Kubernetes sets for a
    /// service of that name.
    pub fn read_environment(
        &mut self,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<(), Refused> {
        for (variable, value) in variables {
            let Some(name) = variable.strip_prefix(ENVIRONMENT_PREFIX) else { continue };
            if ["SERVICE_", "PORT_"].iter().any(|of| name.starts_with(of)) || name == "PORT" {
                continue;
            }
            let name = name.to_lowercase().replace('_', ".");
            self.set(&name, &value, Source::Environment).map_err(|refused| Refused::Source {
                place: format!("environment variable {variable}"),
                why: refused.to_string(),
            })?;
        }
        Ok(())
    }

    /// Every row with its value, in the order of the names.
    pub fn rows(&self) -> impl Iterator<Item = (&'static Setting, &str, Source)> {
        BROKER.iter().map(|setting| {
            let (value, source) = self.value(setting.name);
            (setting, value, source)
        })
    }

    fn value(&self, name: &str) -> (&str, Source) {
        self.values.get(name).map_or(("", Source::Default), |(value, source)| (value, *source))
    }

    /// A row's text.
    pub fn text(&self, name: &str) -> &str {
        debug_assert!(find(BROKER, name).is_ok(), "{name} is in the table");
        self.value(name).0
    }

    /// A row's number, which its check has bounded.
    pub fn int(&self, name: &str) -> i64 {
        self.text(name).parse().unwrap_or(0)
    }

    /// A row's number as a size.
    pub fn size(&self, name: &str) -> usize {
        usize::try_from(self.int(name)).unwrap_or(usize::MAX)
    }

    /// A row's number that may be a fraction.
    pub fn double(&self, name: &str) -> f64 {
        self.text(name).parse().unwrap_or(0.0)
    }

    /// What a setting of all topics was given here, and by which name.
    pub fn inherited(&self, topic_setting: &str) -> Option<(&'static str, &str)> {
        let name = node_default(topic_setting)?;
        if let Some(value) = self.given(name) {
            return Some((name, value));
        }
        let mut coarser = COARSER.iter().filter(|(.., fine)| *fine == name);
        coarser.find_map(|(coarse, ..)| {
            self.given(coarse)?;
            Some((*coarse, self.millis.get(coarse)?.as_str()))
        })
    }

    /// A row's text, if it is not the default.
    pub fn given(&self, name: &str) -> Option<&str> {
        let (value, source) = self.value(name);
        (source != Source::Default).then_some(value)
    }

    pub fn bool(&self, name: &str) -> bool {
        self.text(name) == "true"
    }

    pub fn durability(&self) -> Durability {
        match self.text("durability") {
            "replicated" => Durability::Replicated,
            _ => Durability::Fsync,
        }
    }

    /// The data directories: those of `log.dirs`, or the one of `log.dir`, as in Kafka.
    pub fn data_directories(&self) -> Vec<PathBuf> {
        let listed = list_directories(self.text("log.dirs"));
        if listed.is_empty() { list_directories(self.text("log.dir")) } else { listed }
    }
}

/// The directories that a list separated by commas names.
pub fn list_directories(text: &str) -> Vec<PathBuf> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    names.map(PathBuf::from).collect()
}

/// Checks one topic setting; returns its canonical value.
pub fn check_topic_setting(name: &str, value: &str) -> Result<String, Refused> {
    find(TOPIC, name)?.check(value)
}

/// Checks a topic's settings against each other; `own` looks its own ones up by name.
pub fn check_together<'a>(own: impl Fn(&str) -> Option<&'a str>) -> Result<(), String> {
    let [least, most] = ["min.compaction.lag.ms", "max.compaction.lag.ms"].map(|name| {
        let default = find(TOPIC, name).map_or("", |setting| setting.default);
        own(name).unwrap_or(default).parse::<i64>().unwrap_or(0)
    });
    if least <= most {
        return Ok(());
    }
    Err(format!("min.compaction.lag.ms, {least}, is more than max.compaction.lag.ms, {most}"))
}

/// A topic setting's value: the topic's own, the one that the node was given for all topics, or the
/// default.
pub fn topic_value<'a>(own: Option<&'a String>, broker: &'a BrokerConfig, name: &str) -> &'a str {
    let default = || find(TOPIC, name).map_or("", |setting| setting.default);
    let inherited = || broker.inherited(name).map(|(_, value)| value);
    own.map(String::as_str).or_else(inherited).unwrap_or_else(default)
}

impl TopicConfig {
    /// The values in force; `own` looks a setting of the topic up by name.
    pub fn new<'a>(
        own: impl Fn(&str) -> Option<&'a String>,
        broker: &'a BrokerConfig,
    ) -> TopicConfig {
        let text = |name: &str| topic_value(own(name), broker, name);
        let int = |name: &str| text(name).parse::<i64>().unwrap_or(i64::MAX);
        let policy = text("cleanup.policy");
        let is_compacted = policy.contains("compact");
        let max_compaction_lag_ms = int("max.compaction.lag.ms");
        // A segment must be closed before it is compacted.
        let closed_ms = if is_compacted { max_compaction_lag_ms } else { i64::MAX };
        TopicConfig {
            max_message_bytes: usize::try_from(int("max.message.bytes")).unwrap_or(usize::MAX),
            timestamp_before_max_ms: int("message.timestamp.before.max.ms"),
            timestamp_after_max_ms: int("message.timestamp.after.max.ms"),
            is_append_time: text("message.timestamp.type") == "LogAppendTime",
            compression: compression_type(text("compression.type")),
            gzip_level: text("compression.gzip.level").parse().unwrap_or(-1),
            zstd_level: text("compression.zstd.level").parse().unwrap_or(3),
            is_compacted,
            is_deleted: policy.contains("delete"),
            retention_ms: int("retention.ms"),
            retention_bytes: int("retention.bytes"),
            segment_bytes: u64::try_from(int("segment.bytes")).unwrap_or(u64::MAX),
            segment_ms: int("segment.ms").min(closed_ms),
            delete_retention_ms: int("delete.retention.ms"),
            min_compaction_lag_ms: int("min.compaction.lag.ms"),
            max_compaction_lag_ms,
            dirty_ratio: text("min.cleanable.dirty.ratio").parse().unwrap_or(0.5),
        }
    }
}

fn compression_type(name: &str) -> CompressionType {
    match name {
        "uncompressed" => CompressionType::Uncompressed,
        "gzip" => CompressionType::Gzip,
        "snappy" => CompressionType::Snappy,
        "lz4" => CompressionType::Lz4,
        "zstd" => CompressionType::Zstd,
        _ => CompressionType::Producer,
    }
}

/// The CPUs that a list like `0-3,6` names.
pub fn parse_cpus(text: &str) -> Result<Vec<usize>, Refused> {
    let refused = || Refused::Value {
        name: "cores",
        value: text.to_string(),
        wanted: "CPU numbers and ranges separated by commas, as in 0-3,6".to_string(),
    };
    let mut cpus = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: usize = first.trim().parse().map_err(|_| refused())?;
        let last: usize = last.trim().parse().map_err(|_| refused())?;
        if first > last || last > 4095 {
            return Err(refused());
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_valid_and_rows_are_in_order() {
        for table in [BROKER, TOPIC] {
            for setting in table {
                assert_eq!(setting.check(setting.default).as_deref(), Ok(setting.default));
                assert!(setting.doc.ends_with('.'), "{} has a sentence", setting.name);
            }
            for pair in table.windows(2) {
                assert!(pair[0].name < pair[1].name, "{} stands too early", pair[1].name);
            }
        }
    }

    #[test]
    fn flags_beat_environment_beats_file_beats_default() {
        let mut config = BrokerConfig::default();
        assert_eq!(config.int("num.partitions"), 1);
        config.set("num.partitions", "5", Source::Flag).expect("valid");
        config.read_file("\"num.partitions\" = 2\nnode.id = 9", "file").expect("valid");
        assert_eq!((config.int("num.partitions"), config.int("node.id")), (5, 9));
        let variable = ("CORELOG_NODE_ID".to_string(), "7".to_string());
        config.read_environment([variable].into_iter()).expect("valid");
        assert_eq!(config.int("node.id"), 7);
        for name in ["PORT", "PORT_9092_TCP", "PORT_9092_TCP_ADDR", "SERVICE_HOST"] {
            let of_kubernetes = (format!("CORELOG_{name}"), "tcp://10.0.0.1:9092".to_string());
            config.read_environment([of_kubernetes].into_iter()).expect("it is none of ours");
        }
        let mistaken = ("CORELOG_PORTS".to_string(), "1".to_string());
        assert!(config.read_environment([mistaken].into_iter()).is_err());
        config.read_file("log.dirs = [\"/one\", \"/two\"]", "file").expect("valid");
        assert_eq!(config.text("log.dirs"), "/one,/two");
        config.read_file("node.id = 8", "file").expect("valid");
        assert_eq!(config.int("node.id"), 7, "the file is weaker than the environment");
    }

    #[test]
    fn data_directories_are_listed_as_kafka_lists_them() {
        let mut config = BrokerConfig::default();
        assert_eq!(config.data_directories(), [PathBuf::from("./corelog-data")]);
        config.set("log.dir", "/one", Source::File).expect("valid");
        assert_eq!(config.data_directories(), [PathBuf::from("/one")]);
        config.set("log.dirs", "/a, /b,", Source::File).expect("valid");
        assert_eq!(config.data_directories(), ["/a", "/b"].map(PathBuf::from));
    }

    #[test]
    fn a_topic_inherits_what_the_node_was_given() {
        let mut broker = BrokerConfig::default();
        for (topic, node) in TOPIC.iter().filter_map(|row| Some((row, node_default(row.name)?))) {
            let node = find(BROKER, node).expect("a row of the node");
            assert_eq!((topic.default, topic.kind), (node.default, node.kind), "{}", topic.name);
        }
        let name = "delete.retention.ms";
        assert_eq!(topic_value(None, &broker, name), "86400000");
        broker.set("log.cleaner.delete.retention.ms", "7", Source::File).expect("valid");
        assert_eq!(topic_value(None, &broker, name), "7");
        assert_eq!(topic_value(Some(&"8".to_string()), &broker, name), "8");
        assert_eq!(TopicConfig::new(|_| None, &broker).delete_retention_ms, 7);
        let retention = |broker: &BrokerConfig| TopicConfig::new(|_| None, broker).retention_ms;
        assert_eq!(retention(&broker), 604_800_000);
        broker.set("log.retention.hours", "24", Source::Flag).expect("valid");
        assert_eq!(retention(&broker), 86_400_000);
        assert_eq!(broker.inherited("retention.ms"), Some(("log.retention.hours", "86400000")));
        broker.set("log.retention.minutes", "-1", Source::File).expect("valid");
        assert_eq!(retention(&broker), -1, "minutes go before hours");
        broker.set("log.retention.ms", "5", Source::File).expect("valid");
        assert_eq!(retention(&broker), 5, "milliseconds go before both");
        broker.set("log.roll.hours", "2", Source::File).expect("valid");
        assert_eq!(TopicConfig::new(|_| None, &broker).segment_ms, 7_200_000);
        for (wrong, right) in [("1.5", "0.25"), ("-1", "1"), ("x", "0")] {
            assert!(check_topic_setting("min.cleanable.dirty.ratio", wrong).is_err());
            assert!(check_topic_setting("min.cleanable.dirty.ratio", right).is_ok());
        }
    }

    #[test]
    fn wrong_names_and_values_are_refused_with_the_remedy() {
        let mut config = BrokerConfig::default();
        let mut says = |name: &str, value: &str| {
            config.set(name, value, Source::Flag).err().map(|error| error.to_string())
        };
        let message = says("num.partition", "3").expect("refused");
        assert!(message.contains("did you mean `num.partitions`"), "{message}");
        assert!(says("zzz", "3").expect("refused").contains("corelog config"));
        assert!(says("num.partitions", "0").expect("refused").contains("1 to 1000000"));
        assert!(says("num.partitions", "many").is_some());
        assert!(says("durability", "none").expect("refused").contains("fsync, replicated"));
        assert!(says("delete.topic.enable", "TRUE").is_none());
        let topic = check_topic_setting("remote.storage.enable", "true").expect_err("not served");
        assert!(topic.to_string().contains("leave it at `false`"));
        assert_eq!(
            check_topic_setting("cleanup.policy", "compact, delete").as_deref(),
            Ok("compact,delete")
        );
        // As Kafka takes it: neither deleted nor compacted.
        assert_eq!(check_topic_setting("cleanup.policy", "").as_deref(), Ok(""));
        assert!(check_topic_setting("cleanup.policy", "delete,").is_err());
        let own = |name: &str| (name == "cleanup.policy").then_some(const { &String::new() });
        let kept = TopicConfig::new(own, &BrokerConfig::default());
        assert!(!kept.is_deleted && !kept.is_compacted);
    }

    #[test]
    fn cpu_lists_are_read() {
        assert_eq!(parse_cpus("0-2, 5,1").as_deref(), Ok(&[0, 1, 2, 5][..]));
        assert_eq!(parse_cpus("").as_deref(), Ok(&[][..]));
        for wrong in ["a", "3-1", "1-", "0-99999"] {
            assert!(parse_cpus(wrong).is_err(), "{wrong}");
        }
    }
}
