//! DescribeConfigs, AlterConfigs, IncrementalAlterConfigs: the table's rows, for topics and the
//! node.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;

use super::create_topics::{DEFAULT, DYNAMIC_TOPIC, STATIC_BROKER};
use super::{Handlers, Request};
use crate::base::ids::CoreId;
use crate::config::{self, BROKER, BrokerConfig, Kind, Setting, Source, TOPIC};
use crate::connection::Closed;
use crate::io::Io;
use crate::metadata::{ConfigChange, Topic};
use crate::partition::check_name;
use crate::wire::api::{alter_configs, describe_configs, incremental_alter_configs};
use crate::wire::error::ErrorCode;

use describe_configs::{
    DescribeConfigsResource, DescribeConfigsResourceResult, DescribeConfigsResult,
    DescribeConfigsSynonym,
};

/// Kafka's numbers of resource types.
const RESOURCE_TOPIC: i8 = 2;
const RESOURCE_BROKER: i8 = 4;

/// A refusal: the code and one sentence.
type Refusal = (ErrorCode, String);

/// What a client wants to be told of each setting beside its value.
#[derive(Clone, Copy)]
struct Wanted {
    docs: bool,
    synonyms: bool,
}

pub fn describe<I: Io>(
    handlers: &Handlers<I>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    let asked: describe_configs::Request<'_> = request.decode()?;
    let image = handlers.image();
    let shared = handlers.dispatch.shared().clone();
    let with = Wanted { docs: asked.include_documentation, synonyms: asked.include_synonyms };
    let resources = each_once(&asked.resources);
    let results = resources.iter().map(|(resource_type, name, settings)| {
        let (resource_type, name) = (*resource_type, *name);
        let wanted =
            |setting: &str| settings.as_ref().is_none_or(|settings| settings.contains(setting));
        let described = match resource_type {
            RESOURCE_TOPIC => image
                .topic(name)
                .map(|topic| describe_topic(topic, shared.config(), &wanted, with))
                .ok_or_else(|| no_topic(name).0),
            RESOURCE_BROKER if name.is_empty() => Ok(Vec::new()),
            RESOURCE_BROKER if name.parse().is_ok_and(|id| handlers.identity.is_me(id)) => {
                Ok(shared
                    .config()
                    .rows()
                    .filter(|(setting, ..)| wanted(setting.name))
                    .map(|(setting, value, source)| describe_broker(setting, value, source, with))
                    .collect())
            }
            _ => Err(ErrorCode::INVALID_REQUEST),
        };
        let error = described.as_ref().err().copied().unwrap_or(ErrorCode::NONE);
        DescribeConfigsResult {
            error_code: error.0,
            error_message: error.name().filter(|_| error.is_error()),
            resource_type,
            resource_name: name,
            configs: described.unwrap_or_default(),
        }
    });
    let response = describe_configs::Response { results: results.collect(), ..Default::default() };
    Ok(request.answer(&response))
}

/// A resource by its type and name, and the settings that are asked for; `None` for all.
type Mentioned<'a> = (i8, &'a str, Option<BTreeSet<&'a str>>);

/// Each resource once, with all that any mention of it asks for (H3).
fn each_once<'a>(resources: &[DescribeConfigsResource<'a>]) -> Vec<Mentioned<'a>> {
    let mut places = BTreeMap::new();
    let mut found: Vec<Mentioned<'a>> = Vec::new();
    for resource in resources {
        let (kind, name) = (resource.resource_type, resource.resource_name);
        let place = *places.entry((kind, name)).or_insert(found.len());
        if place == found.len() {
            found.push((kind, name, Some(BTreeSet::new())));
        }
        let Some((.., settings)) = found.get_mut(place) else { continue };
        // No names ask for all, as null does.
        let names = resource.configuration_keys.as_deref().unwrap_or_default();
        match settings {
            Some(settings) if !names.is_empty() => settings.extend(names),
            _ => *settings = None,
        }
    }
    found
}

fn describe_topic<'a>(
    topic: &'a Topic,
    broker: &'a BrokerConfig,
    wanted: &impl Fn(&str) -> bool,
    with: Wanted,
) -> Vec<DescribeConfigsResourceResult<'a>> {
    let rows = TOPIC.iter().filter(|setting| wanted(setting.name));
    rows.map(|setting| {
        let own = topic.configs.get(setting.name).map(String::as_str);
        let node = config::node_default(setting.name);
        let inherited = broker.inherited(setting.name);
        let (value, source) = match (own, inherited) {
            (Some(own), _) => (own, DYNAMIC_TOPIC),
            (None, Some((_, value))) => (value, STATIC_BROKER),
            (None, None) => (setting.default, DEFAULT),
        };
        let mut synonyms = Vec::new();
        if let Some(value) = own {
            synonyms.push((setting.name, value, DYNAMIC_TOPIC));
        }
        synonyms.extend(inherited.map(|(name, value)| (name, value, STATIC_BROKER)));
        synonyms.push((node.unwrap_or(setting.name), setting.default, DEFAULT));
        row(setting, (value, source), synonyms, with)
    })
    .collect()
}

fn describe_broker<'a>(
    setting: &'static Setting,
    value: &'a str,
    source: Source,
    with: Wanted,
) -> DescribeConfigsResourceResult<'a> {
    let source = if source == Source::Default { DEFAULT } else { STATIC_BROKER };
    let mut synonyms = vec![(setting.name, setting.default, DEFAULT)];
    if source != DEFAULT {
        synonyms.insert(0, (setting.name, value, source));
    }
    let row = row(setting, (value, source), synonyms, with);
    DescribeConfigsResourceResult { read_only: true, ..row }
}

fn row<'a>(
    setting: &'static Setting,
    (value, source): (&'a str, i8),
    mut synonyms: Vec<(&'a str, &'a str, i8)>,
    with: Wanted,
) -> DescribeConfigsResourceResult<'a> {
    synonyms.retain(|_| with.synonyms);
    let synonyms = synonyms.into_iter();
    let synonyms = synonyms
        .map(|(name, value, source)| DescribeConfigsSynonym { name, value: Some(value), source })
        .collect();
    DescribeConfigsResourceResult {
        name: setting.name,
        value: Some(value),
        read_only: false,
        config_source: source,
        is_sensitive: false,
        synonyms,
        config_type: type_number(setting.kind),
        documentation: with.docs.then_some(setting.doc),
    }
}

/// Kafka's numbers of config types.
fn type_number(kind: Kind) -> i8 {
    match kind {
        Kind::Bool => 1,
        Kind::Text | Kind::Choice(_) => 2,
        Kind::Int(_, high) if high <= i64::from(i32::MAX) => 3,
        Kind::Int(..) => 5,
        Kind::Double(..) => 6,
        Kind::List(_) => 7,
    }
}

pub async fn alter<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    use alter_configs::{AlterConfigsResourceResponse, Request as Asked, Response};
    let asked: Asked<'_> = request.decode()?;
    let mentions = mentions(asked.resources.iter().map(|r| (r.resource_type, r.resource_name)));
    let mut outcomes = Vec::with_capacity(asked.resources.len());
    for resource in &asked.resources {
        let target = (resource.resource_type, resource.resource_name);
        let given = resource.configs.iter().map(|config| (config.name, config.value));
        let changes = once(&mentions, target, resource.configs.iter().map(|config| config.name))
            .and_then(|()| replace_all(handlers, resource.resource_name, given.collect()));
        outcomes.push(apply(handlers, target, changes, asked.validate_only).await);
    }
    let responses = asked.resources.iter().zip(&outcomes).map(|(resource, outcome)| {
        let (error_code, error_message) = parts_of(outcome);
        AlterConfigsResourceResponse {
            error_code,
            error_message,
            resource_type: resource.resource_type,
            resource_name: resource.resource_name,
        }
    });
    Ok(request.answer(&Response { responses: responses.collect(), ..Response::default() }))
}

pub async fn alter_incrementally<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    use incremental_alter_configs::{
        AlterConfigsResourceResponse, AlterableConfig, Request as Asked, Response,
    };
    let asked: Asked<'_> = request.decode()?;
    let mentions = mentions(asked.resources.iter().map(|r| (r.resource_type, r.resource_name)));
    let mut outcomes = Vec::with_capacity(asked.resources.len());
    for resource in &asked.resources {
        let image = handlers.image();
        let target = (resource.resource_type, resource.resource_name);
        let topic = image.topic(resource.resource_name);
        // As Kafka: what is not there is deleted already, whatever it is.
        let counts = |config: &&AlterableConfig<'_>| {
            config.config_operation != DELETE || config::find(TOPIC, config.name).is_ok()
        };
        let changes = resource.configs.iter().filter(counts).map(|config| {
            let own = topic.and_then(|topic| topic.configs.get(config.name));
            let given = (config.name, config.value);
            operate(config.config_operation, given, own, handlers.dispatch.shared().config())
        });
        let changes = once(&mentions, target, resource.configs.iter().map(|config| config.name))
            .and_then(|()| changes.collect::<Result<Vec<ConfigChange>, Refusal>>());
        outcomes.push(apply(handlers, target, changes, asked.validate_only).await);
    }
    let responses = asked.resources.iter().zip(&outcomes).map(|(resource, outcome)| {
        let (error_code, error_message) = parts_of(outcome);
        AlterConfigsResourceResponse {
            error_code,
            error_message,
            resource_type: resource.resource_type,
            resource_name: resource.resource_name,
        }
    });
    Ok(request.answer(&Response { responses: responses.collect(), ..Response::default() }))
}

/// How often a request names each resource.
fn mentions<'a>(resources: impl Iterator<Item = (i8, &'a str)>) -> BTreeMap<(i8, &'a str), usize> {
    let mut mentions = BTreeMap::new();
    for resource in resources {
        *mentions.entry(resource).or_default() += 1;
    }
    mentions
}

/// Refuses what is said twice: which of the two is meant cannot be told.
fn once<'a>(
    mentions: &BTreeMap<(i8, &'a str), usize>,
    target: (i8, &'a str),
    mut names: impl Iterator<Item = &'a str>,
) -> Result<(), Refusal> {
    if mentions.get(&target).is_some_and(|count| *count > 1) {
        let message = format!("'{}' is named twice in the request", target.1);
        return Err((ErrorCode::INVALID_REQUEST, message));
    }
    let mut seen = BTreeSet::new();
    match names.find(|name| !seen.insert(*name)) {
        Some(name) => Err((ErrorCode::INVALID_REQUEST, format!("`{name}` is given twice"))),
        None => Ok(()),
    }
}

fn parts_of(outcome: &Result<(), Refusal>) -> (i16, Option<&str>) {
    match outcome {
        Ok(()) => (ErrorCode::NONE.0, None),
        Err((error, message)) => (error.0, Some(message)),
    }
}

/// AlterConfigs gives all settings; those not given return to their defaults.
fn replace_all<I: Io>(
    handlers: &Handlers<I>,
    topic: &str,
    given: Vec<(&str, Option<&str>)>,
) -> Result<Vec<ConfigChange>, Refusal> {
    let image = handlers.image();
    let own = image.topic(topic).map(|topic| topic.configs.clone()).unwrap_or_default();
    let dropped = own.keys().filter(|name| given.iter().all(|(other, _)| other != name));
    let mut changes: Vec<ConfigChange> =
        dropped.map(|name| ConfigChange { name: name.clone(), value: None }).collect();
    for (name, value) in given {
        changes.push(operate(SET, (name, value), None, handlers.dispatch.shared().config())?);
    }
    Ok(changes)
}

/// Kafka's numbers of operations (KIP-339).
const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;
const SUBTRACT: i8 = 3;

fn operate(
    operation: i8,
    (name, value): (&str, Option<&str>),
    own: Option<&String>,
    broker: &BrokerConfig,
) -> Result<ConfigChange, Refusal> {
    let invalid = |message: String| (ErrorCode::INVALID_CONFIG, message);
    let setting = config::find(TOPIC, name).map_err(|error| invalid(error.to_string()))?;
    if operation == DELETE {
        return Ok(ConfigChange { name: name.to_string(), value: None });
    }
    let no_value = || (ErrorCode::INVALID_REQUEST, format!("`{name}` is given no value"));
    let value = value.ok_or_else(no_value)?;
    let combined = match (operation, setting.kind) {
        (SET, _) => value.to_string(),
        (APPEND | SUBTRACT, Kind::List(_)) => {
            let current = config::topic_value(own, broker, name);
            let given: Vec<&str> = value.split(',').map(str::trim).collect();
            let kept = current.split(',').filter(|word| !given.contains(word));
            let added = given.iter().copied().filter(|_| operation == APPEND);
            kept.chain(added).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(",")
        }
        (APPEND | SUBTRACT, _) => {
            return Err(invalid(format!("`{name}` is no list: set it as a whole")));
        }
        _ => return Err((ErrorCode::INVALID_REQUEST, format!("operation {operation} is unknown"))),
    };
    let value = setting.check(&combined).map_err(|error| invalid(error.to_string()))?;
    Ok(ConfigChange { name: name.to_string(), value: Some(value) })
}

fn no_topic(name: &str) -> Refusal {
    match check_name(name) {
        Err(refused) => (refused.error, refused.message),
        Ok(()) => (ErrorCode::UNKNOWN_TOPIC_OR_PARTITION, format!("there is no topic '{name}'")),
    }
}

async fn apply<I: Io>(
    handlers: &Rc<Handlers<I>>,
    (resource_type, resource_name): (i8, &str),
    changes: Result<Vec<ConfigChange>, Refusal>,
    validate_only: bool,
) -> Result<(), Refusal> {
    if resource_type == RESOURCE_BROKER {
        let known = BROKER.len();
        let message = format!(
            "the node's {known} settings are read at start: change the file, environment or flags"
        );
        return Err((ErrorCode::INVALID_REQUEST, message));
    }
    if resource_type != RESOURCE_TOPIC {
        let message = format!("resource type {resource_type} has no settings here");
        return Err((ErrorCode::INVALID_REQUEST, message));
    }
    if resource_name.is_empty() {
        let message = "topics have no settings that all share: name one".to_string();
        return Err((ErrorCode::INVALID_REQUEST, message));
    }
    let image = handlers.image();
    let topic = image.topic(resource_name).ok_or_else(|| no_topic(resource_name))?;
    let changes = changes?;
    let changed = |name: &str| match changes.iter().rfind(|change| change.name == name) {
        Some(change) => change.value.as_deref(),
        None => topic.configs.get(name).map(String::as_str),
    };
    config::check_together(changed).map_err(|why| (ErrorCode::INVALID_CONFIG, why))?;
    if validate_only || changes.is_empty() {
        return Ok(());
    }
    let name = resource_name.to_string();
    let outcome = handlers.dispatch.call(CoreId::FIRST, move |owner| async move {
        owner.change_topic_configs(name, changes).await
    });
    let outcome = outcome.await.unwrap_or(Err(ErrorCode::UNKNOWN_SERVER_ERROR));
    outcome.map_err(|error| (error, format!("the change was not written: {error}")))
}
