//! The cluster as a client sees it: brokers, topics and their leaders, one connection per broker,
//! and attempts that are repeated a bounded number of times.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::Duration;

use super::connection::{Answer, Connection, Manner, NEWEST};
use super::failure::Failure;
use crate::wire::api::{ApiKey, find_coordinator, init_producer_id, list_offsets, metadata};
use crate::wire::error::ErrorCode;
use crate::wire::primitive::{Uuid, Wire};

/// Attempts that fail one after the other until a command gives up.
pub const ATTEMPTS_MAX: u32 = 12;
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How long a broker may take for what a request asks.
pub const REQUEST_TIME_MS: i32 = 30_000;
/// The time of a ListOffsets request that stands for the end of a partition.
pub const LATEST: i64 = -1;
/// The time of a ListOffsets request that stands for the start of a partition.
pub const EARLIEST: i64 = -2;

/// What a coordinator coordinates, as FindCoordinator has it.
const KEY_TYPE_GROUP: i8 = 0;
pub const KEY_TYPE_TRANSACTION: i8 = 1;

/// Which broker a request goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    Any,
    Node(i32),
}

/// A topic as the brokers describe it.
#[derive(Clone, Debug)]
pub struct Topic {
    pub name: String,
    /// Zero where the broker is too old for topic ids.
    pub id: Uuid,
    pub error: ErrorCode,
    pub is_internal: bool,
    pub partitions: Vec<Partition>,
}

/// A partition and its leader; -1 while it has none.
#[derive(Clone, Debug)]
pub struct Partition {
    pub index: i32,
    pub leader: i32,
    pub replicas: Vec<i32>,
    pub in_sync: Vec<i32>,
}

/// How one attempt went.
pub enum Attempt<T> {
    Done(T),
    /// For this reason, another one may succeed.
    Again(String),
}

/// Repeats an attempt, with growing pauses, as long as it may succeed, at most `ATTEMPTS_MAX`
/// times.
pub fn persist<T>(mut attempt: impl FnMut() -> Result<Attempt<T>, Failure>) -> Result<T, Failure> {
    let mut last = String::new();
    for count in 1..=ATTEMPTS_MAX {
        last = match attempt() {
            Ok(Attempt::Done(value)) => return Ok(value),
            Ok(Attempt::Again(why)) | Err(Failure::Lost(why)) => why,
            Err(failure) => return Err(failure),
        };
        pause(count);
    }
    Err(Failure::Failed(format!("gave up after {ATTEMPTS_MAX} attempts: {last}")))
}

/// Waits after so many failed attempts, longer after each.
pub fn pause(failed: u32) {
    thread::sleep((PAUSE_FIRST * failed.min(20).pow(2)).min(PAUSE_MAX));
}

/// What an error code of an answer means for the attempt.
pub fn judge(code: ErrorCode, what: &str, message: Option<&str>) -> Result<Attempt<()>, Failure> {
    let detail =
        message.filter(|text| !text.is_empty()).map_or(String::new(), |m| format!(": {m}"));
    let sentence = format!("{what}: {code}{detail}");
    match code {
        ErrorCode::NONE => Ok(Attempt::Done(())),
        code if code.is_retriable() => Ok(Attempt::Again(sentence)),
        _ => Err(Failure::Failed(sentence)),
    }
}

/// The way to the brokers.
pub struct Cluster {
    bootstrap: String,
    brokers: BTreeMap<i32, String>,
    connections: BTreeMap<String, Connection>,
    manner: Manner,
}

impl Cluster {
    /// Connects to the first of the addresses (`HOST:PORT`, separated by commas) that answers.
    pub fn reach(bootstrap: &str) -> Result<Cluster, Failure> {
        Cluster::reach_in(bootstrap, Manner::default())
    }

    /// The same, with connections made in this manner.
    pub fn reach_in(bootstrap: &str, manner: Manner) -> Result<Cluster, Failure> {
        let mut outcome = Err(Failure::Usage("--bootstrap names no HOST:PORT".to_string()));
        for address in bootstrap.split(',').map(str::trim).filter(|address| !address.is_empty()) {
            let host_and_port = address.rsplit_once(':');
            if host_and_port.is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
                return Err(Failure::Usage(format!("--bootstrap {address}: give HOST:PORT")));
            }
            outcome = Connection::open(address, &manner).map(|connection| Cluster {
                bootstrap: address.to_string(),
                brokers: BTreeMap::new(),
                connections: BTreeMap::from([(address.to_string(), connection)]),
                manner: manner.clone(),
            });
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    /// A producer id and epoch for an idempotent producer.
    pub fn new_producer(&mut self) -> Result<(i64, i16), Failure> {
        persist(|| {
            let request = init_producer_id::Request {
                transactional_id: None,
                transaction_timeout_ms: i32::MAX,
                ..Default::default()
            };
            let answer = self.call(To::Any, ApiKey::InitProducerId, NEWEST, &request)?;
            let answer: init_producer_id::Response = answer.decode()?;
            Ok(match judge(ErrorCode(answer.error_code), "a producer id", None)? {
                Attempt::Done(()) => Attempt::Done((answer.producer_id, answer.producer_epoch)),
                Attempt::Again(why) => Attempt::Again(why),
            })
        })
    }

    /// A producer id and epoch under a transactional id, and the broker that coordinates it. An
    /// earlier producer of the same id is fenced, and its transaction aborted.
    pub fn new_transactional_producer(
        &mut self,
        id: &str,
        timeout_ms: i32,
    ) -> Result<((i64, i16), i32), Failure> {
        persist(|| {
            let node = self.find_coordinator(KEY_TYPE_TRANSACTION, id)?;
            let request = init_producer_id::Request {
                transactional_id: Some(id),
                transaction_timeout_ms: timeout_ms,
                ..Default::default()
            };
            let answer = self.call(To::Node(node), ApiKey::InitProducerId, NEWEST, &request)?;
            let answer: init_producer_id::Response = answer.decode()?;
            let what = format!("a producer id for transactional id `{id}`");
            Ok(match judge(ErrorCode(answer.error_code), &what, None)? {
                Attempt::Done(()) => {
                    Attempt::Done(((answer.producer_id, answer.producer_epoch), node))
                }
                Attempt::Again(why) => Attempt::Again(why),
            })
        })
    }

    /// Sends a request and waits for its answer.
    pub fn call<'q>(
        &mut self,
        to: To,
        api: ApiKey,
        highest: i16,
        request: &impl Wire<'q>,
    ) -> Result<Answer, Failure> {
        self.with(to, |connection| connection.call(api, highest, request))
    }

    /// Does something with the connection to a broker; a broken one is not used again.
    pub fn with<T>(
        &mut self,
        to: To,
        act: impl FnOnce(&mut Connection) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let address = match to {
            To::Any => self.bootstrap.clone(),
            To::Node(id) => self.brokers.get(&id).cloned().ok_or_else(|| {
                Failure::Lost(format!("broker {id} is named as a leader and not known"))
            })?,
        };
        let mut connection = match self.connections.remove(&address) {
            Some(connection) => connection,
            None => Connection::open(&address, &self.manner)?,
        };
        let outcome = act(&mut connection);
        if !matches!(outcome, Err(Failure::Lost(_))) {
            self.connections.insert(address, connection);
        }
        outcome
    }

    /// Where a broker listens, as the last metadata named it.
    pub fn address(&self, id: i32) -> Option<&str> {
        self.brokers.get(&id).map(String::as_str)
    }

    /// Ids of the brokers, as the last metadata named them.
    pub fn brokers(&self) -> impl Iterator<Item = i32> + use<> {
        self.brokers.keys().copied().collect::<Vec<_>>().into_iter()
    }

    /// Some topics, or with `None` all; `create` lets the broker create those that are missing.
    pub fn topics(&mut self, names: Option<&[&str]>, create: bool) -> Result<Vec<Topic>, Failure> {
        let topic =
            |name| metadata::MetadataRequestTopic { name: Some(name), ..Default::default() };
        let request = metadata::Request {
            topics: names.map(|names| names.iter().copied().map(topic).collect()),
            allow_auto_topic_creation: create,
            ..Default::default()
        };
        let answer = self.call(To::Any, ApiKey::Metadata, NEWEST, &request)?;
        let answer: metadata::Response<'_> = answer.decode()?;
        for broker in &answer.brokers {
            let host = if broker.host.contains(':') {
                format!("[{}]", broker.host)
            } else {
                broker.host.to_string()
            };
            self.brokers.insert(broker.node_id, format!("{host}:{}", broker.port));
        }
        Ok(answer.topics.iter().map(Topic::read).collect())
    }

    /// One topic, once each of its partitions has a leader.
    pub fn topic(&mut self, name: &str, create: bool) -> Result<Topic, Failure> {
        self.topic_led(name, create, |_| true)
    }

    /// One topic, once those of its partitions that are `needed` have leaders: others may lack
    /// one for as long as their disk is not mended.
    pub fn topic_led(
        &mut self,
        name: &str,
        create: bool,
        needed: impl Fn(i32) -> bool,
    ) -> Result<Topic, Failure> {
        persist(|| {
            let topics = self.topics(Some(&[name]), create)?;
            let Some(topic) = topics.into_iter().next() else {
                return Ok(Attempt::Again(format!("the broker does not tell of topic `{name}`")));
            };
            if topic.error == ErrorCode::UNKNOWN_TOPIC_OR_PARTITION && !create {
                return Err(no_topic(name));
            }
            if let Attempt::Again(why) = judge(topic.error, &format!("topic `{name}`"), None)? {
                return Ok(Attempt::Again(why));
            }
            let lacks = |partition: &&Partition| partition.leader < 0 && needed(partition.index);
            match topic.partitions.iter().find(lacks) {
                None => Ok(Attempt::Done(topic)),
                Some(Partition { index, .. }) => {
                    Ok(Attempt::Again(format!("partition {index} of `{name}` has no leader")))
                }
            }
        })
    }

    /// The offsets of a topic's partitions at a time, `EARLIEST` or `LATEST`.
    pub fn offsets(&mut self, topic: &Topic, time: i64) -> Result<BTreeMap<i32, i64>, Failure> {
        self.offsets_in(topic, time, 0)
    }

    /// The same at an isolation level: at 1 the end is where the first open transaction begins.
    pub fn offsets_in(
        &mut self,
        topic: &Topic,
        time: i64,
        isolation_level: i8,
    ) -> Result<BTreeMap<i32, i64>, Failure> {
        let mut offsets = BTreeMap::new();
        let mut topic = topic.clone();
        persist(|| {
            let mut again = None;
            let mut refused = BTreeSet::new();
            for (leader, partitions) in topic.by_leader() {
                let missing = partitions.into_iter().filter(|index| !offsets.contains_key(index));
                let partition = |partition_index| list_offsets::ListOffsetsPartition {
                    partition_index,
                    timestamp: time,
                    ..Default::default()
                };
                let partitions = missing.map(partition).collect();
                let found = self.offsets_at(leader, &topic.name, partitions, isolation_level)?;
                for (index, code, offset) in found {
                    let what = format!("offsets of partition {index} of `{}`", topic.name);
                    match judge(code, &what, None)? {
                        Attempt::Done(()) => drop(offsets.insert(index, offset)),
                        Attempt::Again(why) => {
                            again = Some(why);
                            refused.insert(index);
                        }
                    }
                }
            }
            let Some(why) = again else { return Ok(Attempt::Done(())) };
            topic = self.topic_led(&topic.name, false, |index| refused.contains(&index))?;
            Ok(Attempt::Again(why))
        })?;
        Ok(offsets)
    }

    fn offsets_at(
        &mut self,
        leader: i32,
        name: &str,
        partitions: Vec<list_offsets::ListOffsetsPartition>,
        isolation_level: i8,
    ) -> Result<Vec<(i32, ErrorCode, i64)>, Failure> {
        let request = list_offsets::Request {
            replica_id: -1,
            topics: vec![list_offsets::ListOffsetsTopic { name, partitions }],
            timeout_ms: REQUEST_TIME_MS,
            isolation_level,
        };
        let answer = self.call(To::Node(leader), ApiKey::ListOffsets, NEWEST, &request)?;
        let answer: list_offsets::Response<'_> = answer.decode()?;
        let partitions = answer.topics.iter().flat_map(|topic| &topic.partitions);
        let found = partitions.map(|p| (p.partition_index, ErrorCode(p.error_code), p.offset));
        Ok(found.collect())
    }

    /// The broker that coordinates a group.
    pub fn coordinator(&mut self, group: &str) -> Result<To, Failure> {
        self.find_coordinator(KEY_TYPE_GROUP, group).map(To::Node)
    }

    fn find_coordinator(&mut self, key_type: i8, key: &str) -> Result<i32, Failure> {
        persist(|| {
            self.topics(Some(&[]), false)?;
            let request = find_coordinator::Request { key, key_type, coordinator_keys: vec![key] };
            let answer = self.call(To::Any, ApiKey::FindCoordinator, NEWEST, &request)?;
            let version = answer.version();
            let answer: find_coordinator::Response<'_> = answer.decode()?;
            let (node, code, message) = match answer.coordinators.first() {
                Some(found) if version >= 4 => {
                    (found.node_id, found.error_code, found.error_message)
                }
                _ => (answer.node_id, answer.error_code, answer.error_message),
            };
            let kind = if key_type == KEY_TYPE_GROUP { "group" } else { "transactional id" };
            let what = format!("the coordinator of {kind} `{key}`");
            Ok(match judge(ErrorCode(code), &what, message)? {
                Attempt::Done(()) => Attempt::Done(node),
                Attempt::Again(why) => Attempt::Again(why),
            })
        })
    }
}

/// The refusal of a topic that does not exist.
pub fn no_topic(name: &str) -> Failure {
    Failure::Failed(format!(
        "there is no topic `{name}`: `corelog topic list` shows those there are, `corelog topic \
         create {name}` makes it"
    ))
}

/// The refusal of a partition that does not exist.
pub fn no_partition(topic: &Topic, partition: i32) -> Failure {
    let (name, count) = (&topic.name, topic.partitions.len());
    Failure::Failed(format!("topic `{name}` has no partition {partition}: it has {count}, from 0"))
}

impl Topic {
    fn read(topic: &metadata::MetadataResponseTopic<'_>) -> Topic {
        let partition = |partition: &metadata::MetadataResponsePartition| Partition {
            index: partition.partition_index,
            leader: partition.leader_id,
            replicas: partition.replica_nodes.clone(),
            in_sync: partition.isr_nodes.clone(),
        };
        let mut partitions: Vec<Partition> = topic.partitions.iter().map(partition).collect();
        partitions.sort_by_key(|partition| partition.index);
        Topic {
            name: topic.name.unwrap_or_default().to_string(),
            id: topic.topic_id,
            error: ErrorCode(topic.error_code),
            is_internal: topic.is_internal,
            partitions,
        }
    }

    /// The partitions that each broker leads.
    pub fn by_leader(&self) -> BTreeMap<i32, Vec<i32>> {
        let mut leaders: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        for partition in self.partitions.iter().filter(|partition| partition.leader >= 0) {
            leaders.entry(partition.leader).or_default().push(partition.index);
        }
        leaders
    }

    /// The newest version of an API that names topics by name, where there is no topic id.
    pub fn newest(&self, last_with_name: i16) -> i16 {
        if self.id.is_zero() { last_with_name } else { NEWEST }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_end_with_the_first_success_or_the_first_hopeless_failure() {
        let mut count = 0;
        let value = persist(|| {
            count += 1;
            Ok(if count < 3 { Attempt::Again("not yet".into()) } else { Attempt::Done(count) })
        });
        assert_eq!(value, Ok(3));
        let hopeless = Failure::Failed("never".to_string());
        let outcome: Result<(), Failure> = persist(|| Err(hopeless.clone()));
        assert_eq!(outcome, Err(hopeless));
    }

    #[test]
    fn codes_are_success_another_attempt_or_a_sentence() {
        assert!(matches!(judge(ErrorCode::NONE, "x", None), Ok(Attempt::Done(()))));
        let again = judge(ErrorCode::NOT_COORDINATOR, "x", None);
        assert!(matches!(again, Ok(Attempt::Again(why)) if why == "x: NOT_COORDINATOR"));
        let failed = judge(ErrorCode::INVALID_CONFIG, "topic `t`", Some("why")).err();
        let sentence = "topic `t`: INVALID_CONFIG: why".to_string();
        assert_eq!(failed, Some(Failure::Failed(sentence)));
    }

    #[test]
    fn a_bootstrap_without_port_is_a_usage_error() {
        for wrong in ["localhost", "localhost:kafka", "", "host:99999"] {
            assert!(matches!(Cluster::reach(wrong), Err(Failure::Usage(_))), "{wrong}");
        }
    }
}
