//! Produce in place: a request read in one bounded walk that yields each partition's records as a
//! range of the frame, so that they are never copied, and a response written without a tree of it.

use std::ops::Range;

use bytes::BufMut;

use super::api::ApiKey;
use super::api::produce::PartitionProduceResponse;
use super::pieces::Pieces;
use super::primitive::{Context, DecodeError, Reader, Reason, Uuid, Wire};
use super::respond::Responding;

/// How a request names a topic: by name up to version 12, by id from 13.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicRef<'a> {
    Name(&'a str),
    Id(Uuid),
}

impl<'a> TopicRef<'a> {
    /// Empty and zero where the request does not say.
    pub fn name_and_id(self) -> (&'a str, Uuid) {
        match self {
            TopicRef::Name(name) => (name, Uuid::ZERO),
            TopicRef::Id(id) => ("", id),
        }
    }
}

/// The request's own fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProduceHead<'a> {
    pub transactional_id: Option<&'a str>,
    pub acks: i16,
    pub timeout_ms: i32,
}

/// What the walk meets, in the order of the request.
pub trait ProduceSink<'a> {
    fn topic(&mut self, topic: TopicRef<'a>);

    /// `records` is a range of the body given to `read`; `None` where the request has null.
    fn partition(&mut self, index: i32, records: Option<Range<usize>>);
}

/// Reads `body` of `version`, telling `sink` of each topic and partition.
pub fn read<'a>(
    body: &'a [u8],
    version: i16,
    sink: &mut impl ProduceSink<'a>,
) -> Result<ProduceHead<'a>, DecodeError> {
    let context = ApiKey::Produce.context(version);
    let reader = &mut Reader::new(body);
    let at = |field| move |error: DecodeError| error.within(field);
    let transactional_id = reader.string(context).map_err(at("transactional_id"))?;
    let acks = reader.i16().map_err(at("acks"))?;
    let timeout_ms = reader.i32().map_err(at("timeout_ms"))?;
    let topics = read_count(reader, context).map_err(at("topic_data"))?;
    for _ in 0..topics {
        let topic = read_topic(reader, context).map_err(at("topic_data"))?;
        sink.topic(topic);
        let partitions = read_count(reader, context).map_err(at("partition_data"))?;
        for _ in 0..partitions {
            let index = reader.i32().map_err(at("index"))?;
            let records = reader.bytes(context).map_err(at("records"))?;
            let end = body.len() - reader.remaining();
            sink.partition(index, records.map(|records| end - records.len()..end));
            reader.skip_tags(context).map_err(at("partition tags"))?;
        }
        reader.skip_tags(context).map_err(at("topic tags"))?;
    }
    reader.skip_tags(context).map_err(at("tags"))?;
    reader.end()?;
    Ok(ProduceHead { transactional_id, acks, timeout_ms })
}

/// A list is never null here.
pub(super) fn read_count(reader: &mut Reader<'_>, context: Context) -> Result<usize, DecodeError> {
    reader.count(context)?.ok_or(Reason::Null.at(""))
}

pub(super) fn read_topic<'a>(
    reader: &mut Reader<'a>,
    context: Context,
) -> Result<TopicRef<'a>, DecodeError> {
    if context.version >= 13 {
        return Ok(TopicRef::Id(Uuid::decode(reader, context)?));
    }
    Ok(TopicRef::Name(<&str>::decode(reader, context)?))
}

/// Builds a Produce response, topic by topic.
pub struct ProduceWriter<'a>(Responding<'a>);

impl ProduceWriter<'_> {
    /// Begins a response of `topics` topics.
    pub fn new(out: &mut Pieces, ids: (i16, i32), topics: usize) -> ProduceWriter<'_> {
        let mut responding = Responding::begin(out, ApiKey::Produce, ids);
        responding.topics(topics);
        ProduceWriter(responding)
    }

    /// Begins a topic of `count` partitions.
    pub fn topic(&mut self, name: &str, id: Uuid, count: usize) {
        self.0.topic(name, id, count);
    }

    /// One partition of the topic begun last.
    pub fn partition(&mut self, partition: &PartitionProduceResponse<'_>) {
        partition.encode(self.0.out.head(), self.0.context);
    }

    /// Ends the topic begun last.
    pub fn end_topic(&mut self) {
        self.0.end_structure();
    }

    /// Ends the response.
    pub fn finish(self) {
        if self.0.context.version >= 1 {
            self.0.out.head().put_i32(0); // throttle time
        }
        self.0.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;

    impl ProduceSink<'_> for Nobody {
        fn topic(&mut self, _: TopicRef<'_>) {}

        fn partition(&mut self, _: i32, _: Option<Range<usize>>) {}
    }

    /// Found by fuzzing: they were taken for empty ones.
    #[test]
    fn null_lists_are_refused_as_the_table_refuses_them() {
        let topics = b"\0\0\x01\0\0\x01\0\0\0";
        let partitions = b"\0\0\x01\0\0\x01\0\x02\x02t\0\0\0";
        for (body, field) in [(&topics[..], "topic_data"), (&partitions[..], "partition_data")] {
            let refused = read(body, 9, &mut Nobody);
            assert_eq!(refused, Err(Reason::Null.at(field)));
        }
    }
}
