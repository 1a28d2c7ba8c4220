//! What is settled with the broker before the cores start: topics, leaders, offsets, producer ids,
//! versions. Blocking, on the main thread.

use std::collections::{BTreeMap, BTreeSet};
use std::net::ToSocketAddrs;
use std::sync::Arc;

use super::options::{Plan, Start};
use super::route::Route;
use super::scout::{addresses, hosts};
use super::transaction::Transactions;
use crate::client::cluster::{
    Attempt, Cluster, EARLIEST, LATEST, REQUEST_TIME_MS, To, Topic, judge, persist,
};
use crate::client::connection::{Manner, NEWEST};
use crate::client::failure::{Failure, in_words};
use crate::wire::api::{ApiKey, create_topics, delete_groups, describe_configs};
use crate::wire::error::ErrorCode;

/// The newest versions of Produce and Fetch that name topics by name.
const VERSION_WITH_NAMES: i16 = 12;
/// What members of groups use, in versions that name topics by name.
const GROUP_APIS: [(ApiKey, i16); 7] = [
    (ApiKey::FindCoordinator, NEWEST),
    (ApiKey::JoinGroup, NEWEST),
    (ApiKey::SyncGroup, NEWEST),
    (ApiKey::Heartbeat, NEWEST),
    (ApiKey::LeaveGroup, NEWEST),
    (ApiKey::OffsetCommit, 9),
    (ApiKey::OffsetFetch, 9),
];
/// What transactional producers use, in the newest versions that clients speak and in which the
/// epoch stays from one transaction to the next.
const TRANSACTION_APIS: [(ApiKey, i16); 4] = [
    (ApiKey::FindCoordinator, NEWEST),
    (ApiKey::InitProducerId, NEWEST),
    (ApiKey::AddPartitionsToTxn, 3),
    (ApiKey::EndTxn, 4),
];
/// The newest version of Produce that does not add partitions to transactions by itself (KIP-890).
const VERSION_WITHOUT_ADDING: i16 = 11;
/// Kafka's number for brokers in requests about settings.
const RESOURCE_BROKER: i8 = 4;
/// Settings that say when a write is durable, of Corelog and of Apache Kafka.
const DURABILITY_SETTINGS: [&str; 3] =
    ["durability", "log.flush.interval.messages", "log.flush.interval.ms"];

/// One partition of one topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index into `Target::topics`.
    pub topic: usize,
    pub partition: i32,
    /// Where consumers begin.
    pub start: i64,
    /// Where the partition ended before the run.
    pub end: i64,
}

/// What the run is about.
#[derive(Clone, Debug, Default)]
pub struct Target {
    pub topics: Vec<String>,
    /// In the order of topics, then partitions.
    pub places: Vec<Place>,
    /// Who leads them when the run begins.
    pub route: Arc<Route>,
    pub produce_version: i16,
    pub fetch_version: i16,
    /// Of all other APIs that the cores use.
    pub versions: BTreeMap<ApiKey, i16>,
    /// Producer id and epoch of each producer, if they are idempotent.
    pub identities: Vec<(i64, i16)>,
    /// The broker that coordinates each producer's transactions, if they have any.
    pub coordinators: Vec<i32>,
    /// The broker's settings about durability, as far as it tells them.
    pub durability: BTreeMap<String, String>,
}

impl Target {
    /// The version in which an API is used.
    pub fn version(&self, api: ApiKey) -> i16 {
        self.versions.get(&api).copied().unwrap_or(0)
    }
}

/// Creates what is missing and asks for everything the cores need. A broker that is not there is
/// told at once; connections that break later are made again.
pub fn settle(plan: &Plan) -> Result<Target, Failure> {
    let mut cluster = Cluster::reach_in(&plan.bootstrap, manner(plan))?;
    persist(|| settle_in(&mut cluster, plan).map(Attempt::Done))
}

fn settle_in(cluster: &mut Cluster, plan: &Plan) -> Result<Target, Failure> {
    let mut target = Target { topics: plan.topics.clone(), ..Target::default() };
    let mut leaders = Vec::new();
    for (index, name) in plan.topics.iter().enumerate() {
        let topic = ready_topic(cluster, plan, name)?;
        let (starts, ends) = offsets(cluster, plan, &topic)?;
        for partition in &topic.partitions {
            leaders.push(partition.leader);
            let of = |offsets: &Offsets| offsets.get(&partition.index).copied();
            target.places.push(Place {
                topic: index,
                partition: partition.index,
                start: of(&starts).unwrap_or(0),
                end: of(&ends).unwrap_or(0),
            });
        }
    }
    check_addresses(cluster, &leaders)?;
    target.route =
        Arc::new(Route::default().next(&leaders, &addresses(cluster)).with_hosts(hosts(cluster)));
    let node = leaders.iter().min().copied().unwrap_or(0);
    let mut version = |api| cluster.with(To::Any, |c| c.version(api, VERSION_WITH_NAMES));
    target.produce_version = version(ApiKey::Produce)?;
    target.fetch_version = version(ApiKey::Fetch)?;
    if plan.consumers > 0 {
        target.versions.insert(ApiKey::ListOffsets, version(ApiKey::ListOffsets)?);
    }
    for (api, newest) in GROUP_APIS.iter().filter(|_| plan.is_grouped) {
        let version = cluster.with(To::Any, |c| c.version(*api, *newest))?;
        target.versions.insert(*api, version);
    }
    if let Some(transactions) = &plan.transactions {
        settle_transactions(cluster, plan, transactions, &mut target)?;
    } else if plan.idempotent {
        for _ in 0..plan.producers {
            target.identities.push(cluster.new_producer()?);
        }
    }
    target.durability = durability(cluster, node).unwrap_or_default();
    Ok(target)
}

/// An identity and a coordinator for each producer.
fn settle_transactions(
    cluster: &mut Cluster,
    plan: &Plan,
    transactions: &Transactions,
    target: &mut Target,
) -> Result<(), Failure> {
    target.produce_version = target.produce_version.min(VERSION_WITHOUT_ADDING);
    for (api, newest) in TRANSACTION_APIS {
        let version = cluster.with(To::Any, |c| c.version(api, newest)).map_err(|_| {
            Failure::Failed(format!(
                "{} has no transactions, as it does not serve {}: leave --transactions out, or \
                 choose a broker that has them",
                plan.bootstrap,
                api.name()
            ))
        })?;
        target.versions.insert(api, version);
    }
    for producer in 0..plan.producers {
        let (id, timeout) = (transactions.id_of(producer), transactions.timeout_ms());
        let (identity, coordinator) = cluster.new_transactional_producer(&id, timeout)?;
        target.identities.push(identity);
        target.coordinators.push(coordinator);
    }
    Ok(())
}

/// Deletes groups that nobody asks for again; one that cannot be deleted is left to the broker.
pub fn forget_groups(plan: &Plan, groups: &[String]) {
    let Ok(mut cluster) = Cluster::reach_in(&plan.bootstrap, manner(plan)) else { return };
    for group in groups {
        let Ok(coordinator) = cluster.coordinator(group) else { return };
        let request = delete_groups::Request { groups_names: vec![group] };
        drop(cluster.call(coordinator, ApiKey::DeleteGroups, NEWEST, &request));
    }
}

fn manner(plan: &Plan) -> Manner {
    Manner { security: plan.security.clone(), ..Manner::default() }
}

/// The topic with a leader for each partition, created if it is missing.
fn ready_topic(cluster: &mut Cluster, plan: &Plan, name: &str) -> Result<Topic, Failure> {
    let known = cluster.topics(Some(&[name]), false)?.into_iter().next();
    let missing = known.is_none_or(|t| t.error == ErrorCode::UNKNOWN_TOPIC_OR_PARTITION);
    if missing {
        create(cluster, plan, name)?;
        // Another broker than the one that created it may hear of it a little later.
        let wait = || Failure::Failed(format!("topic `{name}` was created and does not appear"));
        return persist(|| match cluster.topic(name, false) {
            Ok(topic) if !topic.partitions.is_empty() => Ok(Attempt::Done(topic)),
            Ok(_) => Ok(Attempt::Again(wait().to_string())),
            Err(failure) => Ok(Attempt::Again(failure.to_string())),
        });
    }
    let topic = cluster.topic(name, false)?;
    let wanted = usize::try_from(plan.partitions).unwrap_or(usize::MAX);
    if topic.partitions.len() < wanted {
        let count = topic.partitions.len();
        return Err(Failure::Failed(format!(
            "topic `{name}` has {count} partitions, and --partitions wants {wanted}: delete it, or \
             choose another --topic"
        )));
    }
    Ok(topic)
}

fn create(cluster: &mut Cluster, plan: &Plan, name: &str) -> Result<(), Failure> {
    let request = create_topics::Request {
        topics: vec![create_topics::CreatableTopic {
            name,
            num_partitions: i32::try_from(plan.partitions).unwrap_or(i32::MAX),
            replication_factor: i16::try_from(plan.replication).unwrap_or(i16::MAX),
            ..Default::default()
        }],
        timeout_ms: REQUEST_TIME_MS,
        validate_only: false,
    };
    persist(|| {
        let answer = cluster.call(To::Any, ApiKey::CreateTopics, NEWEST, &request)?;
        let answer: create_topics::Response<'_> = answer.decode()?;
        let outcome = answer.topics.first().map(|t| (ErrorCode(t.error_code), t.error_message));
        let (code, message) = outcome.unwrap_or((ErrorCode::UNKNOWN_SERVER_ERROR, None));
        match code {
            // Another generator was faster.
            ErrorCode::TOPIC_ALREADY_EXISTS => Ok(Attempt::Done(())),
            code => judge(code, &format!("topic `{name}`"), message),
        }
    })
}

/// By partition.
type Offsets = BTreeMap<i32, i64>;

/// Where consumers start, and where the partitions end.
fn offsets(
    cluster: &mut Cluster,
    plan: &Plan,
    topic: &Topic,
) -> Result<(Offsets, Offsets), Failure> {
    if plan.consumers == 0 {
        return Ok(Default::default());
    }
    let ends = cluster.offsets_in(topic, LATEST, plan.isolation.level())?;
    let starts = match plan.from {
        Start::Beginning => cluster.offsets(topic, EARLIEST)?,
        Start::End => ends.clone(),
    };
    Ok((starts, ends))
}

/// Whether each leader can be reached by its name.
fn check_addresses(cluster: &Cluster, leaders: &[i32]) -> Result<(), Failure> {
    for id in leaders.iter().collect::<BTreeSet<_>>() {
        let text = cluster.address(*id).unwrap_or_default();
        let why = match text.to_socket_addrs().map(|mut found| found.next()) {
            Ok(Some(_)) => continue,
            Ok(None) => "the name has no address".to_string(),
            Err(error) => in_words(&error),
        };
        return Err(Failure::Failed(format!(
            "cannot find the address of broker {id}, `{text}`: {why}"
        )));
    }
    Ok(())
}

fn durability(cluster: &mut Cluster, node: i32) -> Result<BTreeMap<String, String>, Failure> {
    let node = node.to_string();
    let request = describe_configs::Request {
        resources: vec![describe_configs::DescribeConfigsResource {
            resource_type: RESOURCE_BROKER,
            resource_name: &node,
            // A broker may refuse a request that names a setting it does not have.
            configuration_keys: None,
        }],
        ..Default::default()
    };
    let answer = cluster.call(To::Any, ApiKey::DescribeConfigs, NEWEST, &request)?;
    let answer: describe_configs::Response<'_> = answer.decode()?;
    let settings = answer.results.iter().flat_map(|result| &result.configs);
    let wanted = settings.filter(|setting| DURABILITY_SETTINGS.contains(&setting.name));
    let told = wanted.filter_map(|s| Some((s.name.to_string(), s.value?.to_string())));
    Ok(told.collect())
}
