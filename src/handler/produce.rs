//! Produce: admitted in the order of the requests, answered when the disk has it.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::{Handlers, Request};
use crate::base::few::Few;
use crate::connection::Closed;
use crate::dispatch::ProduceTicket;
use crate::io::Io;
use crate::metadata::{Image, Topic};
use crate::partition::{Acks, ProduceAnswer, ProducePart};
use crate::wire::api::produce::{BatchIndexAndErrorMessage, PartitionProduceResponse};
use crate::wire::error::ErrorCode;
use crate::wire::pieces::Pieces;
use crate::wire::primitive::Uuid;
use crate::wire::produce::{self, ProduceSink, ProduceWriter, TopicRef};

/// An admitted request, to be answered when its tickets are.
pub struct Pending {
    topics: Few<TopicShape>,
    partitions: Few<PartitionShape>,
    ticket: ProduceTicket,
    /// acks=0: the client reads no answer.
    is_silent: bool,
    version: i16,
    correlation: i32,
}

/// Admits the request.
pub async fn admit<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Pending, Closed> {
    let version = request.version();
    let image = handlers.image();
    let mut plan = Plan::new(&image, request);
    let head = produce::read(request.body, version, &mut plan).map_err(|error| {
        Closed(format!("a Produce request (version {version}) is malformed: {error}"))
    })?;
    let Plan { topics, mut partitions, mut parts, .. } = plan;
    if let Some(refusal) = refuse_all(head.acks, head.transactional_id.is_some()) {
        parts.clear();
        for partition in &mut partitions {
            partition.refusal = Some(refusal);
        }
    }
    let acks = if head.acks == -1 { Acks::Committed } else { Acks::Ordered };
    let ticket = handlers.dispatch.produce(parts, acks).await;
    let correlation = request.header.correlation;
    let is_silent = head.acks == 0;
    Ok(Pending { topics, partitions, ticket, is_silent, version, correlation })
}

impl Pending {
    /// Puts the answer behind `out` once it is there.
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
        out: &mut Pieces,
    ) -> Poll<Result<(), Closed>> {
        let answers = ready!(self.ticket.poll(context));
        if self.is_silent {
            return Poll::Ready(self.silence(&answers));
        }
        let ids = (self.version, self.correlation);
        let mut writer = ProduceWriter::new(out, ids, self.topics.len());
        let mut partitions = self.partitions.iter();
        for topic in &self.topics {
            writer.topic(&topic.name, topic.id, topic.partitions);
            for shape in partitions.by_ref().take(topic.partitions) {
                writer.partition(&partition_response(shape, &answers));
            }
            writer.end_topic();
        }
        writer.finish();
        Poll::Ready(Ok(()))
    }

    /// A client that wants no answer hears of a refusal by the end of its connection, as from
    /// Kafka: it asks for the metadata again.
    fn silence(&self, answers: &[ProduceAnswer]) -> Result<(), Closed> {
        let codes = self.partitions.iter().map(|s| partition_response(s, answers).error_code);
        match codes.map(ErrorCode).find(|error| error.is_error()) {
            Some(error) => {
                Err(Closed(format!("a Produce request with acks=0 is refused: {error}")))
            }
            None => Ok(()),
        }
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
    name: Arc<str>,
    id: Uuid,
    /// How many of the partitions are this topic's.
    partitions: usize,
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
    /// The topic that the walk is in, or why it takes no records.
    current: Result<&'a Arc<Topic>, ErrorCode>,
    topics: Few<TopicShape>,
    partitions: Few<PartitionShape>,
    parts: Few<ProducePart>,
}

impl<'a, 'r> Plan<'a, 'r> {
    fn new(image: &'a Image, request: &'a Request<'r>) -> Plan<'a, 'r> {
        Plan {
            image,
            request,
            current: Err(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION),
            topics: Few::new(),
            partitions: Few::new(),
            parts: Few::new(),
        }
    }
}

impl<'r> ProduceSink<'r> for Plan<'_, 'r> {
    fn topic(&mut self, topic: TopicRef<'r>) {
        let (name, id) = topic.name_and_id();
        let found = super::topic_of(self.image, name, id);
        self.current = match found {
            // What the broker keeps there is its own to write.
            Some(topic) if topic.is_internal() => Err(ErrorCode::INVALID_TOPIC_EXCEPTION),
            Some(topic) => Ok(topic),
            None => Err(super::unknown_topic(name, id)),
        };
        let name = super::counted_name(name, found);
        self.topics.push(TopicShape { name, id, partitions: 0 });
    }

    fn partition(&mut self, index: i32, records: Option<std::ops::Range<usize>>) {
        let Some(shape) = self.topics.last_mut() else { return };
        shape.partitions += 1;
        let found = self
            .current
            .and_then(|topic| topic.partition(index).ok_or(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION));
        let slot = self.parts.len();
        let refusal = match (found, records) {
            (Ok(partition), Some(range)) => {
                let at = self.request.body_at;
                let records = self.request.frame.slice(at + range.start..at + range.end);
                self.parts.push(ProducePart { partition, records });
                None
            }
            (Ok(_), None) => Some(ErrorCode::INVALID_RECORD),
            (Err(error), _) => Some(error),
        };
        self.partitions.push(PartitionShape { index, refusal, slot });
    }
}

fn partition_response<'a>(
    shape: &PartitionShape,
    answers: &'a [ProduceAnswer],
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
    let Some(answer) = answers.get(shape.slot) else {
        return refused(ErrorCode::UNKNOWN_SERVER_ERROR);
    };
    PartitionProduceResponse {
        index: shape.index,
        error_code: answer.error.0,
        base_offset: answer.base_offset,
        log_append_time_ms: answer.log_append_time,
        log_start_offset: answer.log_start,
        record_errors: answer
            .rejected
            .iter()
            .map(|rejected| BatchIndexAndErrorMessage {
                batch_index: rejected.index,
                batch_index_error_message: Some(&rejected.message),
            })
            .collect(),
        error_message: answer.message.as_deref(),
        ..PartitionProduceResponse::default()
    }
}
