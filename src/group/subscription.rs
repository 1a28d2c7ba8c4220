//! The one part of the consumers' own protocol that the broker reads: the topics of a subscription.
//!
//!     | version i16 | topic count i32 | (length i16, name)* | what else the version has |

use crate::wire::primitive::{Context, Reader};

const ORDINARY: Context = Context { version: 0, flexible: false };

/// The topics that a member subscribes to; `None` when the metadata is something else.
pub(super) fn topics(metadata: &[u8]) -> Option<Vec<&str>> {
    let mut reader = Reader::new(metadata);
    if reader.i16().ok()? < 0 {
        return None;
    }
    let count = reader.count(ORDINARY).ok()??;
    let mut topics = Vec::new();
    for _ in 0..count {
        topics.push(reader.string(ORDINARY).ok()??);
    }
    Some(topics)
}

#[cfg(test)]
mod tests {
    use super::topics;

    #[test]
    fn topics_are_read_and_rubbish_is_not() {
        assert_eq!(
            topics(b"\0\x03\0\0\0\x02\0\x01a\0\x02bc\xff\xff\xff\xff"),
            Some(vec!["a", "bc"])
        );
        assert_eq!(topics(b"\0\0\0\0\0\0"), Some(vec![]));
        for rubbish in
            [&b""[..], b"\xff\xff\0\0\0\0", b"\0\0\x7f\xff\xff\xff", b"\0\0\0\0\0\x01\0\x05a"]
        {
            assert_eq!(topics(rubbish), None);
        }
    }
}
