//! Fixed bounds: what no setting changes.

use std::time::Duration;

/// Messages that may wait in a lane into a core.
pub const LANE_MESSAGES_MAX: usize = 4096;
/// Messages that a lane takes out before other tasks get their turn.
pub const MESSAGES_PER_TURN: u32 = 64;
/// A topic's name (Kafka's bound).
pub const TOPIC_NAME_BYTES_MAX: usize = 249;
/// Partitions of one topic: one CreateTopics cannot ask for more than a node may hold.
pub const PARTITIONS_PER_TOPIC_MAX: i32 = 1_000_000;
/// Partitions of all topics: what one answer can still tell.
pub const PARTITIONS_MAX: u64 = 2_000_000;
/// Requests of one connection that are being answered at a time.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 256;
/// Bytes of a request other than Produce.
pub const CONTROL_REQUEST_BYTES_MAX: usize = 16 << 20;
/// The smallest request: key, version, correlation id, and a null client id.
pub const REQUEST_BYTES_MIN: usize = 10;
/// Decompressed records that a timestamp lookup looks at.
pub const LOOKUP_BYTES_MAX: usize = 64 << 20;
/// Records of a refused batch that its producer is told of one by one.
pub const REJECTED_RECORDS_MAX: usize = 1000;
/// Fetch sessions of one core.
pub const FETCH_SESSIONS_MAX: usize = 1000;
/// Partitions of all fetch sessions of one core.
pub const FETCH_SESSION_PARTITIONS_MAX: usize = 200_000;
/// Look-ups of one request that are under way at a time.
pub const LOOKUPS_MAX: usize = 64;
/// Producer ids that are reserved with one journal entry.
pub const PRODUCER_ID_BLOCK: i64 = 1000;
/// Once signalled, open connections get this long to take their answers.
pub const DRAIN_TIME: Duration = Duration::from_millis(600);
/// Answers that the closing journal sets free get this long to leave.
pub const DRAIN_REST_TIME: Duration = Duration::from_millis(100);

const _: () = {
    assert!(REQUEST_BYTES_MIN < CONTROL_REQUEST_BYTES_MAX);
    assert!(MESSAGES_PER_TURN as usize <= LANE_MESSAGES_MAX);
};
