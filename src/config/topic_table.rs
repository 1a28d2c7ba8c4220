//! The settings of topics, and which of the node's is the default of each.
//!
//! Kafka's names and defaults where Kafka has the setting. The rows are in the order of the names.

use super::setting::{Effect, Kind, Scope, Setting};
use super::table::{I32, I64, row};

use Effect::{Honoured, Only, Stored};
use Kind::{Bool, Choice, Double, Int, List, Text};
use Scope::Topic;

/// Settings of a topic; dynamic.
pub const TOPIC: &[Setting] = &[
    row(
        Topic,
        "cleanup.policy",
        List(&["compact", "delete"]),
        "delete",
        Honoured,
        "delete: records go by age and size. compact: the newest of each key stays.",
    ),
    row(
        Topic,
        "compression.gzip.level",
        Int(-1, 9),
        "-1",
        Honoured,
        "Where compression.type is gzip; -1 for its own default.",
    ),
    row(
        Topic,
        "compression.lz4.level",
        Int(1, 17),
        "9",
        Stored,
        "Kept and reported; there is one level.",
    ),
    row(
        Topic,
        "compression.type",
        Choice(&["producer", "uncompressed", "gzip", "snappy", "lz4", "zstd"]),
        "producer",
        Honoured,
        "The codec that record batches are stored with; producer for the one that they come with.",
    ),
    row(
        Topic,
        "compression.zstd.level",
        Int(-131_072, 22),
        "3",
        Honoured,
        "Where compression.type is zstd.",
    ),
    row(
        Topic,
        "delete.retention.ms",
        Int(0, I64),
        "86400000",
        Honoured,
        "A tombstone stays for this long once compaction has met it.",
    ),
    row(Topic, "file.delete.delay.ms", Int(0, I64), "60000", Stored, "Kept and reported."),
    row(
        Topic,
        "flush.messages",
        Int(1, I64),
        "9223372036854775807",
        Stored,
        "Mode fsync flushes before every acknowledgement, which is stricter.",
    ),
    row(
        Topic,
        "flush.ms",
        Int(0, I64),
        "9223372036854775807",
        Stored,
        "Mode fsync flushes before every acknowledgement, which is stricter.",
    ),
    row(Topic, "follower.replication.throttled.replicas", Text, "", Stored, "Kept and reported."),
    row(Topic, "index.interval.bytes", Int(0, I32), "4096", Stored, "Kept and reported."),
    row(Topic, "leader.replication.throttled.replicas", Text, "", Stored, "Kept and reported."),
    row(Topic, "local.retention.bytes", Int(-2, I64), "-2", Stored, "Kept and reported."),
    row(Topic, "local.retention.ms", Int(-2, I64), "-2", Stored, "Kept and reported."),
    row(
        Topic,
        "max.compaction.lag.ms",
        Int(1, I64),
        "9223372036854775807",
        Honoured,
        "Records dirty for this long are compacted in any case, within about as much time again.",
    ),
    row(
        Topic,
        "max.message.bytes",
        Int(0, I32),
        "1048588",
        Honoured,
        "The most bytes of a record batch.",
    ),
    row(
        Topic,
        "message.timestamp.after.max.ms",
        Int(0, I64),
        "3600000",
        Honoured,
        "A record may be this far in the future.",
    ),
    row(
        Topic,
        "message.timestamp.before.max.ms",
        Int(0, I64),
        "9223372036854775807",
        Honoured,
        "A record may be this old.",
    ),
    row(
        Topic,
        "message.timestamp.type",
        Choice(&["CreateTime", "LogAppendTime"]),
        "CreateTime",
        Honoured,
        "Whether records carry their producer's time, or that of their appending.",
    ),
    row(
        Topic,
        "min.cleanable.dirty.ratio",
        Double(0, 1),
        "0.5",
        Honoured,
        "Compaction waits for more than this share of dirty bytes.",
    ),
    row(
        Topic,
        "min.compaction.lag.ms",
        Int(0, I64),
        "0",
        Honoured,
        "A younger record is not compacted away.",
    ),
    row(
        Topic,
        "min.insync.replicas",
        Int(1, I32),
        "1",
        Stored,
        "A single node is always in sync with itself.",
    ),
    row(Topic, "preallocate", Bool, "false", Stored, "The journal is always preallocated."),
    row(Topic, "remote.log.copy.disable", Bool, "false", Stored, "Kept and reported."),
    row(Topic, "remote.log.delete.on.disable", Bool, "false", Stored, "Kept and reported."),
    row(Topic, "remote.storage.enable", Bool, "false", Only, "Records stay on the node."),
    row(
        Topic,
        "retention.bytes",
        Int(-1, I64),
        "-1",
        Honoured,
        "The bytes that a partition keeps at least; older records go. -1 for any size.",
    ),
    row(
        Topic,
        "retention.ms",
        Int(-1, I64),
        "604800000",
        Honoured,
        "Records older than this go. -1 for ever.",
    ),
    row(
        Topic,
        "segment.bytes",
        Int(1_048_576, I32),
        "1073741824",
        Honoured,
        "The most bytes of a segment file.",
    ),
    row(Topic, "segment.index.bytes", Int(4, I32), "10485760", Stored, "Kept and reported."),
    row(Topic, "segment.jitter.ms", Int(0, I64), "0", Stored, "Kept and reported."),
    row(
        Topic,
        "segment.ms",
        Int(1, I64),
        "604800000",
        Honoured,
        "A segment takes records for this long.",
    ),
    row(
        Topic,
        "unclean.leader.election.enable",
        Bool,
        "false",
        Stored,
        "A single node elects nobody.",
    ),
];

/// The node's setting that is the default of a topic's setting, where there is one.
pub fn node_default(topic_setting: &str) -> Option<&'static str> {
    let found = NODE_DEFAULTS.iter().find(|(name, _)| *name == topic_setting);
    found.map(|(_, node)| *node)
}

const NODE_DEFAULTS: &[(&str, &str)] = &[
    ("cleanup.policy", "log.cleanup.policy"),
    ("compression.gzip.level", "compression.gzip.level"),
    ("compression.lz4.level", "compression.lz4.level"),
    ("compression.type", "compression.type"),
    ("compression.zstd.level", "compression.zstd.level"),
    ("delete.retention.ms", "log.cleaner.delete.retention.ms"),
    ("max.compaction.lag.ms", "log.cleaner.max.compaction.lag.ms"),
    ("max.message.bytes", "message.max.bytes"),
    ("message.timestamp.after.max.ms", "log.message.timestamp.after.max.ms"),
    ("message.timestamp.before.max.ms", "log.message.timestamp.before.max.ms"),
    ("message.timestamp.type", "log.message.timestamp.type"),
    ("min.cleanable.dirty.ratio", "log.cleaner.min.cleanable.ratio"),
    ("min.compaction.lag.ms", "log.cleaner.min.compaction.lag.ms"),
    ("retention.bytes", "log.retention.bytes"),
    ("retention.ms", "log.retention.ms"),
    ("segment.bytes", "log.segment.bytes"),
    ("segment.ms", "log.roll.ms"),
];
