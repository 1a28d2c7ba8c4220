//! DescribeConfigs, AlterConfigs, IncrementalAlterConfigs: the table's rows, for topics and the
//! node.

use std::rc::Rc;

use bytes::Bytes;

use super::create_topics::{DEFAULT, DYNAMIC_TOPIC, STATIC_BROKER};
use super::{Handlers, Request};
use crate::base::ids::CoreId;
use crate::config::{self, BROKER, Kind, Setting, Source, TOPIC};
use crate::connection::Closed;
use crate::io::Io;
use crate::metadata::{ConfigChange, Topic};
use crate::wire::api::{alter_configs, describe_configs, incremental_alter_configs};
use crate::wire::error::ErrorCode;

use describe_configs::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};

/// Kafka's numbers of resource types.
const RESOURCE_TOPIC: i8 = 2;
const RESOURCE_BROKER: i8 = 4;

/// A refusal: the code and one sentence.
type Refusal = (ErrorCode, String);

pub fn describe<I: Io>(
    handlers: &Handlers<I>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    let asked: describe_configs::Request<'_> = request.decode()?;
    let image = handlers.image();
    let shared = handlers.dispatch.shared().clone();
    let with_docs = asked.include_documentation;
    let results = asked.resources.iter().map(|resource| {
        let name = resource.resource_name;
        let wanted = |setting: &str| {
            resource.configuration_keys.as_ref().is_none_or(|keys| keys.contains(&setting))
        };
        let described = match resource.resource_type {
            RESOURCE_TOPIC => image
                .topic(name)
                .map(|topic| describe_topic(topic, &wanted, with_docs))
                .ok_or(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION),
            RESOURCE_BROKER if name.is_empty() => Ok(Vec::new()),
            RESOURCE_BROKER if name.parse().is_ok_and(|id| handlers.identity.is_me(id)) => {
                Ok(shared
                    .config()
                    .rows()
                    .filter(|(setting, ..)| wanted(setting.name))
                    .map(|(setting, value, source)| {
                        describe_broker(setting, value, source, with_docs)
                    })
                    .collect())
            }
            _ => Err(ErrorCode::INVALID_REQUEST),
        };
        let error = described.as_ref().err().copied().unwrap_or(ErrorCode::NONE);
        DescribeConfigsResult {
            error_code: error.0,
            error_message: error.name().filter(|_| error.is_error()),
            resource_type: resource.resource_type,
            resource_name: name,
            configs: described.unwrap_or_default(),
        }
    });
    let response = describe_configs::Response { results: results.collect(), ..Default::default() };
    Ok(request.answer(&response))
}

fn describe_topic<'a>(
    topic: &'a Topic,
    wanted: &impl Fn(&str) -> bool,
    with_docs: bool,
) -> Vec<DescribeConfigsResourceResult<'a>> {
    let rows = TOPIC.iter().filter(|setting| wanted(setting.name));
    rows.map(|setting| {
        let own = topic.configs.get(setting.name);
        let value = config::topic_value(own, setting.name);
        let source = if own.is_some() { DYNAMIC_TOPIC } else { DEFAULT };
        row(setting, value, source, with_docs)
    })
    .collect()
}

fn describe_broker<'a>(
    setting: &'static Setting,
    value: &'a str,
    source: Source,
    with_docs: bool,
) -> DescribeConfigsResourceResult<'a> {
    let source = if source == Source::Default { DEFAULT } else { STATIC_BROKER };
    let row = row(setting, value, source, with_docs);
    DescribeConfigsResourceResult { read_only: true, ..row }
}

fn row<'a>(
    setting: &'static Setting,
    value: &'a str,
    source: i8,
    with_docs: bool,
) -> DescribeConfigsResourceResult<'a> {
    let mut synonyms = Vec::new();
    if source != DEFAULT {
        synonyms.push(DescribeConfigsSynonym { name: setting.name, value: Some(value), source });
    }
    synonyms.push(DescribeConfigsSynonym {
        name: setting.name,
        value: Some(setting.default),
        source: DEFAULT,
    });
    DescribeConfigsResourceResult {
        name: setting.name,
        value: Some(value),
        read_only: false,
        config_source: source,
        is_sensitive: false,
        synonyms,
        config_type: type_number(setting.kind),
        documentation: with_docs.then_some(setting.doc),
    }
}

/// Kafka's numbers of config types.
fn type_number(kind: Kind) -> i8 {
    match kind {
        Kind::Bool => 1,
        Kind::Text | Kind::Choice(_) => 2,
        Kind::Int(_, high) if high <= i64::from(i32::MAX) => 3,
        Kind::Int(..) => 5,
        Kind::List(_) => 7,
    }
}

pub async fn alter<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    use alter_configs::{AlterConfigsResourceResponse, Request as Asked, Response};
    let asked: Asked<'_> = request.decode()?;
    let mut outcomes = Vec::with_capacity(asked.resources.len());
    for resource in &asked.resources {
        let given = resource.configs.iter().map(|config| (config.name, config.value));
        let changes = replace_all(handlers, resource.resource_name, given.collect());
        let target = (resource.resource_type, resource.resource_name);
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
    use incremental_alter_configs::{AlterConfigsResourceResponse, Request as Asked, Response};
    let asked: Asked<'_> = request.decode()?;
    let mut outcomes = Vec::with_capacity(asked.resources.len());
    for resource in &asked.resources {
        let image = handlers.image();
        let topic = image.topic(resource.resource_name);
        let changes = resource.configs.iter().map(|config| {
            let own = topic.and_then(|topic| topic.configs.get(config.name));
            operate(config.config_operation, config.name, config.value, own)
        });
        let changes: Result<Vec<ConfigChange>, Refusal> = changes.collect();
        let target = (resource.resource_type, resource.resource_name);
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
        changes.push(operate(SET, name, value, None)?);
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
    name: &str,
    value: Option<&str>,
    own: Option<&String>,
) -> Result<ConfigChange, Refusal> {
    let invalid = |message: String| (ErrorCode::INVALID_CONFIG, message);
    let setting = config::find(TOPIC, name).map_err(|error| invalid(error.to_string()))?;
    if operation == DELETE {
        return Ok(ConfigChange { name: name.to_string(), value: None });
    }
    let value = value.ok_or_else(|| invalid(format!("`{name}` is given no value")))?;
    let combined = match (operation, setting.kind) {
        (SET, _) => value.to_string(),
        (APPEND | SUBTRACT, Kind::List(_)) => {
            let current = config::topic_value(own, name);
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
    let unknown = || {
        let message = format!("there is no topic '{resource_name}'");
        (ErrorCode::UNKNOWN_TOPIC_OR_PARTITION, message)
    };
    handlers.image().topic(resource_name).ok_or_else(unknown)?;
    let changes = changes?;
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
