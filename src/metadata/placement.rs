//! Placement: which core owns a partition, and on which core a new topic begins.
//!
//!     owner = (topic's number + index) modulo cores     topic 7 of 4 partitions, 3 cores: 1 2 0 1
//!
//! The numbers of topics ascend, but not every number is given: a new topic gets the one of the
//! next few by which its partitions are on the cores that have the least to do: the fewest
//! partitions, and, where records come in fast, the least of those. So nothing but the number need
//! be remembered, whoever looks for an owner looks nothing up, and on another number of cores the
//! topics are spread as evenly as before.
//!
//! Invariants
//!   P1  The same partition has the same owner on any node of so many cores.
//!   P2  Fewer numbers are left out for a topic than there are cores.

use super::Image;
use crate::base::ids::{CoreId, PartitionId};

/// From here on no number is left out: there must be one for every topic.
const SPARING_FROM: u32 = 1 << 31;

/// Less than these bytes of records a second, on all cores, are no reason to go elsewhere.
const TRAFFIC_MIN: u64 = 1_000_000;

/// More partitions than a node has.
const AVOIDED: u64 = 1 << 40;

/// The core that owns `id`: neighbours in a topic are on neighbouring cores.
pub fn owner(id: PartitionId, cores: u16) -> CoreId {
    let spread = u64::from(id.topic.0) + u64::from(id.index);
    CoreId(u16::try_from(spread % u64::from(cores.max(1))).unwrap_or(0))
}

/// How much each core has to do, in partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loads {
    /// What every core has.
    each: u64,
    /// And beside it.
    cores: Vec<u64>,
    total: u64,
}

impl Loads {
    /// Those of a node of so many cores.
    pub fn of(image: &Image, cores: u16) -> Loads {
        let mut loads = Loads { each: 0, cores: vec![0; usize::from(cores.max(1))], total: 0 };
        for topic in image.topics() {
            loads.add(topic.number.0, topic.partitions);
        }
        loads
    }

    /// Has new topics go elsewhere as long as there is room elsewhere.
    pub fn avoid(&mut self, core: CoreId) {
        if let Some(load) = self.cores.get_mut(core.index()) {
            *load += AVOIDED;
        }
    }

    /// Takes into account how many bytes of records a second each core takes in: the whole of them
    /// weighs as much as all partitions.
    pub fn weigh(&mut self, rates: &[u64]) {
        let all = rates.iter().sum::<u64>().max(TRAFFIC_MIN);
        for (load, rate) in self.cores.iter_mut().zip(rates) {
            let weight = u128::from(self.total) * u128::from(*rate) / u128::from(all);
            *load += u64::try_from(weight).unwrap_or(0);
        }
    }

    /// Takes a topic into account.
    pub fn add(&mut self, number: u32, partitions: u32) {
        self.total += u64::from(partitions);
        let count = self.cores.len();
        self.each += u64::from(partitions) / count as u64;
        let first = number as usize % count;
        for at in 0..partitions as usize % count {
            if let Some(load) = self.cores.get_mut((first + at) % count) {
                *load += 1;
            }
        }
    }

    /// Partitions of all cores.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The partitions of one core.
    pub fn load(&self, core: CoreId) -> u64 {
        self.each + self.cores.get(core.index()).copied().unwrap_or(0)
    }

    /// The number for a new topic, `next` or one of those behind it.
    pub fn choose(&self, next: u32, partitions: u32) -> u32 {
        let count = self.cores.len();
        let left = partitions as usize % count;
        if left == 0 || next >= SPARING_FROM {
            return next;
        }
        let load = |at: usize| self.cores.get(at % count).copied().unwrap_or(0);
        let first = next as usize % count;
        let mut sum: u64 = (first..first + left).map(load).sum();
        let (mut best, mut least) = (0, sum);
        for skipped in 1..count {
            sum += load(first + skipped + left - 1);
            sum -= load(first + skipped - 1);
            if sum < least {
                (best, least) = (skipped, sum);
            }
        }
        next + u32::try_from(best).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::TopicNumber;
    use crate::metadata::Command;
    use proptest::prelude::*;

    fn created(number: u32, partitions: u32) -> Command {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&number.to_be_bytes());
        Command::TopicCreated {
            name: format!("t{number}"),
            id,
            number,
            partitions,
            configs: vec![],
        }
    }

    proptest! {
        /// Against the plain way: count every partition, try every number.
        #[test]
        fn new_topics_go_where_the_fewest_are(
            cores in 1_u16..9,
            topics in prop::collection::vec((0_u32..30, any::<bool>()), 0..40),
        ) {
            let mut image = Image::default();
            for (partitions, is_deleted) in topics {
                let loads = Loads::of(&image, cores);
                let counted = |image: &Image| {
                    let mut counts = vec![0_u64; usize::from(cores)];
                    for topic in image.topics() {
                        for index in 0..topic.partitions {
                            let id = PartitionId { topic: topic.number, index };
                            counts[owner(id, cores).index()] += 1;
                        }
                    }
                    counts
                };
                let known: Vec<u64> = (0..cores).map(|core| loads.load(CoreId(core))).collect();
                prop_assert_eq!(&known, &counted(&image));
                prop_assert_eq!(loads.total(), known.iter().sum::<u64>());
                let next = image.next_topic_number();
                let number = loads.choose(next, partitions);
                prop_assert!((next..next + u32::from(cores)).contains(&number), "P2");
                let left = partitions % u32::from(cores);
                let weight = |number: u32| -> u64 {
                    let topic = TopicNumber(number);
                    let of = |index| owner(PartitionId { topic, index }, cores).index();
                    (0..left).map(|index| known[of(index)]).sum()
                };
                let best = (next..next + u32::from(cores)).min_by_key(|number| weight(*number));
                prop_assert_eq!(Some(number), best);
                image.apply(&created(number, partitions));
                if is_deleted {
                    image.apply(&Command::TopicDeleted { number });
                }
                image.check();
            }
        }
    }

    #[test]
    fn new_topics_keep_off_a_core_that_is_avoided() {
        let mut image = Image::default();
        for partitions in [1, 1, 1, 2, 2] {
            let mut loads = Loads::of(&image, 3);
            loads.avoid(CoreId(1));
            let number = loads.choose(image.next_topic_number(), partitions);
            let topic = TopicNumber(number);
            for index in 0..partitions {
                assert_ne!(owner(PartitionId { topic, index }, 3), CoreId(1));
            }
            image.apply(&created(number, partitions));
        }
    }

    #[test]
    fn new_topics_keep_off_a_core_that_takes_in_much() {
        let mut image = Image::default();
        (0..9).for_each(|number| image.apply(&created(number, 1)));
        let owner_with = |rates: &[u64]| {
            let mut loads = Loads::of(&image, 3);
            loads.weigh(rates);
            let topic = TopicNumber(loads.choose(image.next_topic_number(), 1));
            owner(PartitionId { topic, index: 0 }, 3)
        };
        let idle = owner_with(&[0, 0, 0]);
        assert_eq!(owner_with(&[900, 0, 0]), idle, "that is nothing");
        assert_eq!(owner_with(&[90_000_000, 50_000_000, 80_000_000]), CoreId(1));
        assert_eq!(owner_with(&[u64::MAX / 4, u64::MAX / 4, 0]), CoreId(2));
        assert_eq!(owner_with(&[0, 50_000_000, 80_000_000]), CoreId(0));
    }

    #[test]
    fn numbers_are_not_left_out_when_they_run_short() {
        let mut image = Image::default();
        image.apply(&created(0, 1));
        let loads = Loads::of(&image, 2);
        assert_eq!(loads.choose(2, 1), 3);
        assert_eq!(loads.choose(SPARING_FROM, 1), SPARING_FROM);
    }
}
