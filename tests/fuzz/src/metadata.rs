//! Metadata commands from a journal entry, and the image that they make.

use corelog::metadata::{Image, decode, encode};

pub fn commands(data: &[u8]) {
    let Ok(commands) = decode(data) else { return };
    let mut image = Image::default();
    for command in &commands {
        image.apply(command);
        image.check();
    }
    let bytes = encode(&commands).expect("commands are encodable");
    assert_eq!(decode(&bytes).as_ref(), Ok(&commands));
    for topic in image.topics() {
        assert_eq!(image.topic_by_number(topic.number), Some(topic));
        assert!(topic.partition(i32::MAX).is_none_or(|id| id.index < topic.partitions));
    }
}
