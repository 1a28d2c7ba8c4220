//! What the responses written in place have in common: a frame that is begun and ended, topics in
//! it, and the ends of structures.

use super::api::ApiKey;
use super::header::put_response_header;
use super::pieces::{FrameStart, Pieces};
use super::primitive::{Context, Uuid, Wire, put_count, put_unsigned_varint};

/// A response that is being written.
pub(super) struct Responding<'a> {
    pub context: Context,
    pub out: &'a mut Pieces,
    start: FrameStart,
}

impl Responding<'_> {
    /// Begins the response to a request.
    pub fn begin(
        out: &mut Pieces,
        api: ApiKey,
        (version, correlation): (i16, i32),
    ) -> Responding<'_> {
        let start = out.begin_frame();
        put_response_header(out.head(), api, version, correlation);
        Responding { context: api.context(version), out, start }
    }

    /// Begins the list of `count` topics.
    pub fn topics(&mut self, count: usize) {
        put_count(self.out.head(), Some(count), self.context);
    }

    /// Begins a topic of `count` partitions, named by its id from version 13 on.
    pub fn topic(&mut self, name: &str, id: Uuid, count: usize) {
        if self.context.version >= 13 {
            id.encode(self.out.head(), self.context);
        } else {
            name.encode(self.out.head(), self.context);
        }
        put_count(self.out.head(), Some(count), self.context);
    }

    /// Ends a structure, which has no tagged fields.
    pub fn end_structure(&mut self) {
        if self.context.flexible {
            put_unsigned_varint(self.out.head(), 0);
        }
    }

    /// Ends the response.
    pub fn finish(mut self) {
        self.end_structure();
        self.out.end_frame(self.start);
    }
}
