//! Creating, growing and deleting topics: decided on core 0, against the newest image.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use super::Owner;
use crate::base::ids::CoreId;
use crate::base::limits;
use crate::config;
use crate::io::Io;
use crate::metadata::{Command, ConfigChange, Image, Loads, Topic};
use crate::wire::error::ErrorCode;

/// A topic that somebody wants.
#[derive(Clone, Debug)]
pub struct NewTopic {
    pub name: String,
    /// -1 for the node's default.
    pub partitions: i32,
    /// -1 for the node's default.
    pub replication_factor: i16,
    /// Settings by name, in the order given.
    pub configs: Vec<(String, String)>,
}

/// A refusal: the code and one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicRefused {
    pub error: ErrorCode,
    pub message: String,
}

/// The outcome for one topic, in the order asked.
pub type TopicOutcome = Result<Arc<Topic>, TopicRefused>;

fn refused(error: ErrorCode, message: impl Into<String>) -> TopicRefused {
    TopicRefused { error, message: message.into() }
}

impl<I: Io> Owner<I> {
    /// Creates topics, each on its own terms; with `validate_only` nothing changes.
    pub async fn create_topics(
        self: &Rc<Self>,
        wanted: Vec<NewTopic>,
        validate_only: bool,
    ) -> Vec<TopicOutcome> {
        let count = wanted.len();
        let ids: Vec<[u8; 16]> = wanted.iter().map(|_| self.new_topic_id()).collect();
        let config = self.shared().config().clone();
        let default_partitions = i32::try_from(config.int("num.partitions")).unwrap_or(1);
        let shared = self.shared().clone();
        let shards = shared.shards();
        let rates = shared.traffic().rates(self.io().now());
        let changed = self.change_metadata(move |image| {
            let mut commands = Vec::new();
            let mut outcomes = Vec::with_capacity(wanted.len());
            let mut scratch = image.clone();
            let mut loads = Loads::of(image, shards);
            loads.weigh(&rates);
            let offline = |core: &CoreId| shared.directories().is_offline(*core);
            (0..shards).map(CoreId).filter(offline).for_each(|core| loads.avoid(core));
            for (topic, id) in wanted.iter().zip(ids) {
                let decided = decide_creation(&scratch, &loads, topic, id, default_partitions);
                outcomes.push(decided.map(|command| {
                    if let Command::TopicCreated { number, partitions, .. } = &command {
                        loads.add(*number, *partitions);
                    }
                    scratch.apply(&command);
                    commands.push(command);
                    scratch.topic(&topic.name).cloned().unwrap_or_else(|| unreachable!("applied"))
                }));
            }
            (if validate_only { Vec::new() } else { commands }, outcomes)
        });
        changed.await.unwrap_or_else(|error| {
            vec![Err(refused(error, "the metadata journal takes no writes")); count]
        })
    }

    /// Deletes a topic.
    pub async fn delete_topic(self: &Rc<Self>, topic: &Topic) -> Result<(), ErrorCode> {
        let number = topic.number;
        let existed = self
            .change_metadata(move |image| match image.topic_by_number(number) {
                Some(_) => (vec![Command::TopicDeleted { number: number.0 }], true),
                None => (Vec::new(), false),
            })
            .await?;
        // Its files go next; power loss must not bring back a topic without them.
        let flushed = self.journal().wait_flushed(self.journal().durable()).await;
        flushed.map_err(|_| ErrorCode::KAFKA_STORAGE_ERROR)?;
        if existed { Ok(()) } else { Err(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION) }
    }

    /// Raises a topic's number of partitions to `wanted`.
    pub async fn add_partitions(
        self: &Rc<Self>,
        name: String,
        wanted: i32,
        validate_only: bool,
    ) -> Result<(), TopicRefused> {
        let outcome = self
            .change_metadata(move |image| match decide_growth(image, &name, wanted) {
                Ok(command) if !validate_only => (vec![command], Ok(())),
                Ok(_) => (Vec::new(), Ok(())),
                Err(refused) => (Vec::new(), Err(refused)),
            })
            .await;
        outcome.unwrap_or_else(|error| Err(refused(error, "the metadata journal takes no writes")))
    }

    /// Changes a topic's settings; values were checked.
    pub async fn change_topic_configs(
        self: &Rc<Self>,
        name: String,
        changes: Vec<ConfigChange>,
    ) -> Result<(), ErrorCode> {
        let outcome = self
            .change_metadata(move |image| match image.topic(&name) {
                Some(topic) => {
                    let number = topic.number.0;
                    (vec![Command::TopicConfigChanged { number, changes }], Ok(()))
                }
                None => (Vec::new(), Err(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION)),
            })
            .await;
        outcome.unwrap_or_else(Err)
    }

    /// Reserves producer ids; returns the first of `limits::PRODUCER_ID_BLOCK`.
    pub async fn reserve_producer_ids(self: &Rc<Self>) -> Result<i64, ErrorCode> {
        self.change_metadata(|image| {
            let first = image.next_producer_id();
            let next = first.saturating_add(limits::PRODUCER_ID_BLOCK);
            (vec![Command::ProducerIdsReserved { next }], first)
        })
        .await
    }

    /// A random id of version 4 (RFC 9562).
    fn new_topic_id(&self) -> [u8; 16] {
        let high = u128::from(self.io().random());
        let low = u128::from(self.io().random());
        let random = (high << 64 | low).to_be_bytes();
        uuid::Builder::from_random_bytes(random).into_uuid().into_bytes()
    }
}

fn decide_creation(
    image: &Image,
    loads: &Loads,
    wanted: &NewTopic,
    id: [u8; 16],
    default_partitions: i32,
) -> Result<Command, TopicRefused> {
    check_name(&wanted.name)?;
    if image.topic(&wanted.name).is_some() {
        let message = format!("topic '{}' already exists", wanted.name);
        return Err(refused(ErrorCode::TOPIC_ALREADY_EXISTS, message));
    }
    if let Some(other) = colliding_name(image, &wanted.name) {
        let message = format!(
            "topic '{}' collides with '{other}': '.' and '_' count as the same in metric names",
            wanted.name
        );
        return Err(refused(ErrorCode::INVALID_TOPIC_EXCEPTION, message));
    }
    let partitions = if wanted.partitions == -1 { default_partitions } else { wanted.partitions };
    let partitions = check_partitions(partitions)?;
    check_total(loads.total(), partitions)?;
    if !matches!(wanted.replication_factor, -1 | 1) {
        let message = format!(
            "replication factor {} is not possible on a cluster of one node",
            wanted.replication_factor
        );
        return Err(refused(ErrorCode::INVALID_REPLICATION_FACTOR, message));
    }
    Ok(Command::TopicCreated {
        name: wanted.name.clone(),
        id,
        number: loads.choose(image.next_topic_number(), partitions),
        partitions,
        configs: check_configs(&wanted.configs)?,
    })
}

fn decide_growth(image: &Image, name: &str, wanted: i32) -> Result<Command, TopicRefused> {
    let topic = image.topic(name).ok_or_else(|| {
        refused(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION, format!("there is no topic '{name}'"))
    })?;
    let partitions = check_partitions(wanted)?;
    if partitions <= topic.partitions {
        let message = format!(
            "topic '{name}' has {} partitions already; the number can only grow",
            topic.partitions
        );
        return Err(refused(ErrorCode::INVALID_PARTITIONS, message));
    }
    let held = image.topics().map(|topic| u64::from(topic.partitions)).sum();
    check_total(held, partitions - topic.partitions)?;
    Ok(Command::PartitionsAdded { number: topic.number.0, partitions })
}

fn check_partitions(wanted: i32) -> Result<u32, TopicRefused> {
    let wanted_or_zero = u32::try_from(wanted).unwrap_or(0);
    if wanted_or_zero == 0 || wanted > limits::PARTITIONS_PER_TOPIC_MAX {
        let message = format!(
            "{wanted} partitions are not possible: give 1 to {}",
            limits::PARTITIONS_PER_TOPIC_MAX
        );
        return Err(refused(ErrorCode::INVALID_PARTITIONS, message));
    }
    Ok(wanted_or_zero)
}

/// Whether the node can hold `added` partitions beside the `held` ones.
fn check_total(held: u64, added: u32) -> Result<(), TopicRefused> {
    if held + u64::from(added) <= limits::PARTITIONS_MAX {
        return Ok(());
    }
    let message = format!(
        "{added} partitions beside the {held} there are would be more than the {} of a node",
        limits::PARTITIONS_MAX
    );
    Err(refused(ErrorCode::POLICY_VIOLATION, message))
}

/// Whether `name` may be a topic's: Kafka's rule.
pub fn check_name(name: &str) -> Result<(), TopicRefused> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let why = if name.is_empty() || name == "." || name == ".." {
        "it is empty or consists of dots"
    } else if name.len() > limits::TOPIC_NAME_BYTES_MAX {
        "it is longer than 249 characters"
    } else if !name.chars().all(legal) {
        "only ASCII letters, digits, '.', '_' and '-' are allowed"
    } else {
        return Ok(());
    };
    let shown: String = name.chars().take(60).collect();
    Err(refused(ErrorCode::INVALID_TOPIC_EXCEPTION, format!("'{shown}' is no topic name: {why}")))
}

fn colliding_name(image: &Image, name: &str) -> Option<Arc<str>> {
    if !name.contains(['.', '_']) {
        return None;
    }
    let unified = name.replace('.', "_");
    // A colliding name agrees up to the first dot or underscore, so the search begins there.
    let prefix = name.split(['.', '_']).next().unwrap_or("");
    image
        .topics_from(prefix)
        .take_while(|topic| topic.name.starts_with(prefix))
        .find(|topic| topic.name.replace('.', "_") == unified)
        .map(|topic| topic.name.clone())
}

fn check_configs(given: &[(String, String)]) -> Result<Vec<(String, String)>, TopicRefused> {
    let mut seen = BTreeSet::new();
    let mut checked = Vec::with_capacity(given.len());
    for (name, value) in given {
        if !seen.insert(name) {
            let message = format!("`{name}` is given twice");
            return Err(refused(ErrorCode::INVALID_CONFIG, message));
        }
        let value = config::check_topic_setting(name, value)
            .map_err(|error| refused(ErrorCode::INVALID_CONFIG, error.to_string()))?;
        checked.push((name.clone(), value));
    }
    let own = |name: &str| {
        let found = checked.iter().find(|(given, _)| given == name);
        found.map(|(_, value)| value.as_str())
    };
    config::check_together(own).map_err(|why| refused(ErrorCode::INVALID_CONFIG, why))?;
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(name: &str) -> NewTopic {
        NewTopic { name: name.into(), partitions: 2, replication_factor: 1, configs: vec![] }
    }

    fn decided(image: &Image, topic: &NewTopic, id: u8) -> Result<Command, TopicRefused> {
        decide_creation(image, &Loads::of(image, 1), topic, [id; 16], 3)
    }

    fn error_of(image: &Image, topic: &NewTopic) -> Option<ErrorCode> {
        decided(image, topic, 1).err().map(|refused| refused.error)
    }

    #[test]
    fn wrong_topics_are_refused_with_kafkas_codes() {
        let mut image = Image::default();
        let command = decided(&image, &wanted("a.b"), 1).expect("legal");
        image.apply(&command);
        assert_eq!(error_of(&image, &wanted("a.b")), Some(ErrorCode::TOPIC_ALREADY_EXISTS));
        assert_eq!(error_of(&image, &wanted("a_b")), Some(ErrorCode::INVALID_TOPIC_EXCEPTION));
        assert_eq!(error_of(&image, &wanted("a_c")), None);
        for name in ["", ".", "..", "a b", "ä", &"x".repeat(250)] {
            assert_eq!(error_of(&image, &wanted(name)), Some(ErrorCode::INVALID_TOPIC_EXCEPTION));
        }
        for partitions in [0, -2, i32::MAX] {
            let topic = NewTopic { partitions, ..wanted("p") };
            assert_eq!(error_of(&image, &topic), Some(ErrorCode::INVALID_PARTITIONS));
        }
        let topic = NewTopic { replication_factor: 3, ..wanted("r") };
        assert_eq!(error_of(&image, &topic), Some(ErrorCode::INVALID_REPLICATION_FACTOR));
        let configs = vec![("retention.mss".to_string(), "1".to_string())];
        let topic = NewTopic { configs, ..wanted("c") };
        assert_eq!(error_of(&image, &topic), Some(ErrorCode::INVALID_CONFIG));
        let lag =
            |name: &str, value: &str| (format!("{name}.compaction.lag.ms"), value.to_string());
        for (least, most, error) in [("9", "9", None), ("9", "8", Some(ErrorCode::INVALID_CONFIG))]
        {
            let configs = vec![lag("min", least), lag("max", most)];
            assert_eq!(error_of(&image, &NewTopic { configs, ..wanted("l") }), error);
        }
    }

    #[test]
    fn a_node_holds_a_bounded_number_of_partitions() {
        let mut image = Image::default();
        let most = u32::try_from(limits::PARTITIONS_MAX).expect("fits");
        let large =
            |name| NewTopic { partitions: limits::PARTITIONS_PER_TOPIC_MAX, ..wanted(name) };
        for (name, id) in [("a", 1), ("b", 2)] {
            let command = decided(&image, &large(name), id).expect("there is room");
            image.apply(&command);
        }
        assert_eq!(image.topics().map(|topic| topic.partitions).sum::<u32>(), most);
        assert_eq!(error_of(&image, &wanted("c")), Some(ErrorCode::POLICY_VIOLATION));
    }

    #[test]
    fn a_topic_only_grows() {
        let mut image = Image::default();
        let command = decided(&image, &wanted("a"), 1).expect("legal");
        image.apply(&command);
        assert!(decide_growth(&image, "a", 3).is_ok());
        for wrong in [0, 1, 2, -1] {
            let error = decide_growth(&image, "a", wrong).expect_err("not more").error;
            assert_eq!(error, ErrorCode::INVALID_PARTITIONS);
        }
        let error = decide_growth(&image, "b", 3).expect_err("unknown").error;
        assert_eq!(error, ErrorCode::UNKNOWN_TOPIC_OR_PARTITION);
    }
}
