//! One immutable version of the metadata; a change makes a new one that shares what is unchanged.

use std::ops::Bound;
use std::sync::Arc;

use imbl::OrdMap;

use super::command::{Command, ConfigChange};
use crate::base::ids::{Epoch, PartitionId, TopicNumber};

/// A topic as every core sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    pub name: Arc<str>,
    /// The topic id of KIP-516.
    pub id: [u8; 16],
    pub number: TopicNumber,
    pub partitions: u32,
    /// Dynamic settings, by name.
    pub configs: OrdMap<String, String>,
}

/// The topic that holds committed offsets and groups.
pub const OFFSETS_TOPIC: &str = "__consumer_offsets";

impl Topic {
    /// Whether the topic is the broker's own.
    pub fn is_internal(&self) -> bool {
        &*self.name == OFFSETS_TOPIC
    }

    /// The partition with this wire index, if the topic has it.
    pub fn partition(&self, index: i32) -> Option<PartitionId> {
        let index = u32::try_from(index).ok()?;
        (index < self.partitions).then_some(PartitionId { topic: self.number, index })
    }
}

/// The whole metadata at one moment. Cloning is cheap: the maps share their nodes.
#[derive(Clone, Debug, Default)]
pub struct Image {
    pub cluster_id: Arc<str>,
    /// Dynamic settings of the broker, by name.
    pub broker_configs: OrdMap<String, String>,
    topics: OrdMap<Arc<str>, Arc<Topic>>,
    names_by_id: OrdMap<[u8; 16], Arc<str>>,
    names_by_number: OrdMap<TopicNumber, Arc<str>>,
    next_topic_number: u32,
    next_producer_id: i64,
    leader_epoch: Epoch,
}

impl Image {
    pub fn topic(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topics.get(name)
    }

    pub fn topic_by_id(&self, id: &[u8; 16]) -> Option<&Arc<Topic>> {
        self.topics.get(self.names_by_id.get(id)?)
    }

    pub fn topic_by_number(&self, number: TopicNumber) -> Option<&Arc<Topic>> {
        self.topics.get(self.names_by_number.get(&number)?)
    }

    /// All topics in the order of their names.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.topics.values()
    }

    /// Topics from `name` on, in the order of their names.
    pub fn topics_from(&self, name: &str) -> impl Iterator<Item = &Arc<Topic>> {
        self.topics
            .range::<_, str>((Bound::Included(name), Bound::Unbounded))
            .map(|(_, topic)| topic)
    }

    pub fn topic_count(&self) -> usize {
        self.topics.len()
    }

    /// The number the next topic gets.
    pub fn next_topic_number(&self) -> u32 {
        self.next_topic_number
    }

    /// The first producer id that was surely never given out.
    pub fn next_producer_id(&self) -> i64 {
        self.next_producer_id
    }

    /// The epoch in which the node leads its partitions: one more at each start, so that an offset
    /// lost in a crash and given again differs in its epoch.
    pub fn leader_epoch(&self) -> Epoch {
        self.leader_epoch
    }

    /// Commands that make this image of an empty one, and of any older one that lacks nothing but
    /// what they bring.
    pub fn commands(&self) -> Vec<Command> {
        let changes = |configs: &OrdMap<String, String>| -> Vec<ConfigChange> {
            let change = |(name, value): (&String, &String)| ConfigChange {
                name: name.clone(),
                value: Some(value.clone()),
            };
            configs.iter().map(change).collect()
        };
        let mut commands = vec![
            Command::ClusterCreated { cluster_id: self.cluster_id.to_string() },
            Command::BrokerConfigChanged { changes: changes(&self.broker_configs) },
            Command::ProducerIdsReserved { next: self.next_producer_id },
            Command::LeaderEpochOpened { epoch: self.leader_epoch },
            Command::TopicNumbersGiven { next: self.next_topic_number },
        ];
        commands.extend(self.topics().map(|topic| Command::TopicCreated {
            name: topic.name.to_string(),
            id: topic.id,
            number: topic.number.0,
            partitions: topic.partitions,
            configs:
                topic.configs.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        }));
        commands
    }

    /// Applies one decided command.
    pub fn apply(&mut self, command: &Command) {
        match command {
            Command::ClusterCreated { cluster_id } => self.cluster_id = cluster_id.as_str().into(),
            Command::TopicCreated { name, id, number, partitions, configs } => {
                let topic = Topic {
                    name: name.as_str().into(),
                    id: *id,
                    number: TopicNumber(*number),
                    partitions: *partitions,
                    configs: configs.iter().cloned().collect(),
                };
                self.insert(topic);
            }
            Command::TopicDeleted { number } => self.delete(TopicNumber(*number)),
            Command::PartitionsAdded { number, partitions } => {
                self.change(TopicNumber(*number), |topic| {
                    topic.partitions = topic.partitions.max(*partitions);
                });
            }
            Command::TopicConfigChanged { number, changes } => {
                self.change(TopicNumber(*number), |topic| {
                    apply_changes(&mut topic.configs, changes);
                });
            }
            Command::BrokerConfigChanged { changes } => {
                apply_changes(&mut self.broker_configs, changes);
            }
            Command::ProducerIdsReserved { next } => {
                self.next_producer_id = self.next_producer_id.max(*next);
            }
            Command::LeaderEpochOpened { epoch } => {
                self.leader_epoch = self.leader_epoch.max(*epoch);
            }
            Command::TopicNumbersGiven { next } => {
                self.next_topic_number = self.next_topic_number.max(*next);
            }
        }
    }

    /// Whatever else has the topic's name, id or number gives way, so that M3 holds whatever is
    /// applied. No topic has the greatest number: it stands for "none" in the journal.
    fn insert(&mut self, topic: Topic) {
        if topic.number.0 == u32::MAX {
            return;
        }
        let by_name = self.topics.get(&topic.name);
        let others = [by_name, self.topic_by_id(&topic.id), self.topic_by_number(topic.number)];
        let others = others.map(|other| other.map(|other| other.number));
        others.into_iter().flatten().for_each(|other| self.delete(other));
        self.next_topic_number = self.next_topic_number.max(topic.number.0.saturating_add(1));
        self.names_by_id.insert(topic.id, topic.name.clone());
        self.names_by_number.insert(topic.number, topic.name.clone());
        self.topics.insert(topic.name.clone(), Arc::new(topic));
    }

    fn delete(&mut self, number: TopicNumber) {
        let Some(name) = self.names_by_number.remove(&number) else { return };
        if let Some(topic) = self.topics.remove(&name) {
            self.names_by_id.remove(&topic.id);
        }
    }

    fn change(&mut self, number: TopicNumber, change: impl FnOnce(&mut Topic)) {
        let Some(name) = self.names_by_number.get(&number) else { return };
        if let Some(topic) = self.topics.get_mut(name) {
            change(Arc::make_mut(topic));
        }
    }

    /// Panics unless M3 holds.
    pub fn check(&self) {
        assert_eq!(self.topics.len(), self.names_by_id.len(), "an id per topic");
        assert_eq!(self.topics.len(), self.names_by_number.len(), "a number per topic");
        for (name, topic) in &self.topics {
            assert_eq!(*name, topic.name);
            assert_eq!(self.names_by_id.get(&topic.id), Some(name));
            assert_eq!(self.names_by_number.get(&topic.number), Some(name));
            assert!(topic.number.0 < self.next_topic_number);
        }
    }
}

fn apply_changes(configs: &mut OrdMap<String, String>, changes: &[ConfigChange]) {
    for change in changes {
        match &change.value {
            Some(value) => configs.insert(change.name.clone(), value.clone()),
            None => configs.remove(&change.name),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn created(name: &str, number: u32) -> Command {
        Command::TopicCreated {
            name: name.into(),
            id: [u8::try_from(number).expect("small"); 16],
            number,
            partitions: 2,
            configs: vec![],
        }
    }

    #[test]
    fn a_topic_is_found_by_name_id_and_number_until_it_is_deleted() {
        let mut image = Image::default();
        image.apply(&created("a", 0));
        image.apply(&created("b", 1));
        image.check();
        let before = image.clone();
        image.apply(&Command::TopicDeleted { number: 0 });
        image.check();
        assert!(image.topic("a").is_none());
        assert!(image.topic_by_id(&[0; 16]).is_none());
        assert!(image.topic_by_number(TopicNumber(0)).is_none());
        assert_eq!(before.topic_count(), 2, "an older image is untouched");
        image.apply(&created("a", image.next_topic_number()));
        image.check();
        assert_eq!(image.topic("a").map(|topic| topic.number), Some(TopicNumber(2)));
    }

    /// Found by fuzzing: the second left the first's id and number behind.
    #[test]
    fn of_two_topics_with_one_name_id_or_number_the_later_one_counts() {
        let mut image = Image::default();
        for (name, id, number) in [("a", 0, 0), ("a", 1, 1), ("b", 1, 2), ("c", 3, 2)] {
            let mut command = created(name, number);
            if let Command::TopicCreated { id: of_topic, .. } = &mut command {
                *of_topic = [id; 16];
            }
            image.apply(&command);
            image.check();
            assert_eq!(image.topic_count(), 1);
            assert_eq!(image.topic(name).map(|topic| topic.number), Some(TopicNumber(number)));
        }
        let Command::TopicCreated { name, id, partitions, configs, .. } = created("z", 4) else {
            unreachable!("it is one");
        };
        let number = u32::MAX;
        image.apply(&Command::TopicCreated { name, id, number, partitions, configs });
        image.check();
        assert!(image.topic("z").is_none(), "the number of no topic");
    }

    #[test]
    fn partitions_are_only_added_and_only_within_the_topic() {
        let mut image = Image::default();
        image.apply(&created("a", 0));
        image.apply(&Command::PartitionsAdded { number: 0, partitions: 5 });
        image.apply(&Command::PartitionsAdded { number: 0, partitions: 3 });
        let topic = image.topic("a").expect("created");
        assert!(topic.partition(4).is_some());
        assert!(topic.partition(5).is_none());
        assert!(topic.partition(-1).is_none());
    }

    #[test]
    fn an_image_is_made_again_by_its_own_commands() {
        let mut image = Image::default();
        let change =
            |value: &str| vec![ConfigChange { name: "x".into(), value: Some(value.to_string()) }];
        for command in [
            Command::ClusterCreated { cluster_id: "c".into() },
            created("a", 0),
            created("b", 1),
            Command::PartitionsAdded { number: 0, partitions: 7 },
            Command::TopicConfigChanged { number: 0, changes: change("1") },
            Command::BrokerConfigChanged { changes: change("2") },
            created("c", 2),
            Command::TopicDeleted { number: 2 },
            Command::ProducerIdsReserved { next: 3000 },
            Command::LeaderEpochOpened { epoch: 4 },
        ] {
            image.apply(&command);
        }
        let mut again = Image::default();
        image.commands().iter().for_each(|command| again.apply(command));
        again.check();
        assert_eq!(again.commands(), image.commands());
        assert_eq!(again.next_topic_number(), 3, "a deleted topic's number is not given again");
        assert_eq!(again.topic("a"), image.topic("a"));
    }

    #[test]
    fn settings_come_and_go() {
        let mut image = Image::default();
        image.apply(&created("a", 0));
        let set = |value: Option<&str>| Command::TopicConfigChanged {
            number: 0,
            changes: vec![ConfigChange { name: "x".into(), value: value.map(Into::into) }],
        };
        image.apply(&set(Some("1")));
        assert_eq!(image.topic("a").and_then(|t| t.configs.get("x")), Some(&"1".to_string()));
        image.apply(&set(None));
        assert!(image.topic("a").is_some_and(|topic| topic.configs.is_empty()));
    }
}
