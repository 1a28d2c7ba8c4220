//! Produce: admitted in the order of the requests, answered when the disk has it.

use std::rc::Rc;

use bytes::Bytes;

use super::{Handlers, Request};
use crate::connection::{Answer, Closed};
use crate::dispatch::ProduceTicket;
use crate::io::Io;
use crate::metadata::Image;
use crate::partition::{Acks, ProduceAnswer, ProducePart};
use crate::wire::api::ApiKey;
use crate::wire::api::produce::{PartitionProduceResponse, Response, TopicProduceResponse};
use crate::wire::error::ErrorCode;
use crate::wire::primitive::Uuid;
use crate::wire::produce::{self, ProduceSink, TopicRef};

/// Admits the request; the answer follows by itself.
pub async fn admit<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Answer, Closed> {
    let version = request.version();
    let image = handlers.image();
    let mut plan = Plan { image: &image, request, topics: Vec::new(), parts: Vec::new() };
    let head = produce::read(request.body, version, &mut plan).map_err(|error| {
        Closed(format!("a Produce request (version {version}) is malformed: {error}"))
    })?;
    let Plan { mut topics, mut parts, .. } = plan;
    if let Some(refusal) = refuse_all(head.acks, head.transactional_id.is_some()) {
        parts.clear();
        for partition in topics.iter_mut().flat_map(|topic| topic.partitions.iter_mut()) {
            partition.refusal = Some(refusal);
        }
    }
    let acks = if head.acks == -1 { Acks::Committed } else { Acks::Ordered };
    let ticket = handlers.dispatch.produce(parts, acks).await;
    let correlation = request.header.correlation;
    if head.acks == 0 {
        return Ok(Box::pin(silence(topics, ticket)));
    }
    Ok(Box::pin(async move { Ok(answer(topics, ticket, version, correlation).await) }))
}

/// A client that wants no answer hears of a refusal by the end of its connection, as from Kafka:
/// it asks for the metadata again.
async fn silence(topics: Vec<TopicShape>, ticket: ProduceTicket) -> Result<Vec<Bytes>, Closed> {
    let answers = ticket.answers().await;
    let shapes = topics.iter().flat_map(|topic| &topic.partitions);
    let refused = shapes.map(|shape| partition_response(shape, &answers).error_code);
    match refused.map(ErrorCode).find(|error| error.is_error()) {
        Some(error) => Err(Closed(format!("a Produce request with acks=0 is refused: {error}"))),
        None => Ok(Vec::new()),
    }
}

/// Refusals of the whole request.
fn refuse_all(acks: i16, is_transactional: bool) -> Option<ErrorCode> {
    if !(-1..=1).contains(&acks) {
        return Some(ErrorCode::INVALID_REQUIRED_ACKS);
    }
    // No transaction can be open: InitProducerId opens none.
    is_transactional.then_some(ErrorCode::INVALID_TXN_STATE)
}

/// The answer's shape, kept while the records are on their way.
struct TopicShape {
    name: String,
    id: Uuid,
    partitions: Vec<PartitionShape>,
}

struct PartitionShape {
    index: i32,
    refusal: Option<ErrorCode>,
    slot: usize,
}

/// Sorts the walk over the request into what goes to owners and what is refused at once.
struct Plan<'a, 'r> {
    image: &'a Image,
    request: &'a Request<'r>,
    topics: Vec<TopicShape>,
    parts: Vec<(usize, ProducePart)>,
}

impl<'r> ProduceSink<'r> for Plan<'_, 'r> {
    fn topic(&mut self, topic: TopicRef<'r>) {
        let (name, id) = match topic {
            TopicRef::Name(name) => (name.to_string(), Uuid::ZERO),
            TopicRef::Id(id) => (String::new(), id),
        };
        self.topics.push(TopicShape { name, id, partitions: Vec::new() });
    }

    fn partition(&mut self, index: i32, records: Option<std::ops::Range<usize>>) {
        let Some(shape) = self.topics.last_mut() else { return };
        let topic = super::topic_of(self.image, &shape.name, shape.id);
        let found = topic
            .ok_or_else(|| super::unknown_topic(&shape.name, shape.id))
            // What the broker keeps there is its own to write.
            .and_then(|topic| match topic.is_internal() {
                true => Err(ErrorCode::INVALID_TOPIC_EXCEPTION),
                false => Ok(topic),
            })
            .and_then(|topic| topic.partition(index).ok_or(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION));
        let slot = self.parts.len();
        let refusal = match (found, records) {
            (Ok(partition), Some(range)) => {
                let at = self.request.body_at;
                let records = self.request.frame.slice(at + range.start..at + range.end);
                self.parts.push((slot, ProducePart { partition, records }));
                None
            }
            (Ok(_), None) => Some(ErrorCode::INVALID_RECORD),
            (Err(error), _) => Some(error),
        };
        shape.partitions.push(PartitionShape { index, refusal, slot });
    }
}

async fn answer(
    topics: Vec<TopicShape>,
    ticket: ProduceTicket,
    version: i16,
    correlation: i32,
) -> Vec<Bytes> {
    let answers = ticket.answers().await;
    let responses = topics.iter().map(|topic| TopicProduceResponse {
        name: &topic.name,
        topic_id: topic.id,
        partition_responses: topic
            .partitions
            .iter()
            .map(|shape| partition_response(shape, &answers))
            .collect(),
    });
    let response = Response { responses: responses.collect(), ..Response::default() };
    super::frame(ApiKey::Produce, version, correlation, &response)
}

fn partition_response<'a>(
    shape: &PartitionShape,
    answers: &'a [Option<ProduceAnswer>],
) -> PartitionProduceResponse<'a> {
    let refused = |error: ErrorCode| PartitionProduceResponse {
        index: shape.index,
        error_code: error.0,
        base_offset: -1,
        log_start_offset: -1,
        ..PartitionProduceResponse::default()
    };
    if let Some(error) = shape.refusal {
        return refused(error);
    }
    let Some(Some(answer)) = answers.get(shape.slot) else {
        return refused(ErrorCode::UNKNOWN_SERVER_ERROR);
    };
    PartitionProduceResponse {
        index: shape.index,
        error_code: answer.error.0,
        base_offset: answer.base_offset,
        log_append_time_ms: answer.log_append_time,
        log_start_offset: answer.log_start,
        error_message: answer.message.as_deref(),
        ..PartitionProduceResponse::default()
    }
}
