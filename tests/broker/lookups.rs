//! Offsets by timestamp where batches lie: what is compressed is taken without a look inside, and
//! only a lookup meets what is in it.

use std::time::Duration;

use corelog::wire::records::{
    self, BatchBuilder, Codec, HEADER_BYTES, NewRecord, Packer, set_max_timestamp,
};

use crate::frames::{Came, Peer, produce, produced};
use crate::segments::{create, offset_at};
use crate::world::{Broker, fresh};

/// What records say that lie in the past.
const TIME: i64 = 1_700_000_000_000;

/// An uncompressed batch of records with these times.
fn plain(times: &[i64], value: &[u8]) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    for timestamp in times {
        let value = Some(value);
        builder.push(&NewRecord { timestamp: *timestamp, value, ..NewRecord::default() });
    }
    builder.build(Codec::None).expect("no codec").to_vec()
}

/// The batch with `inside` in the place of its records.
fn filled(batch: &[u8], inside: &[u8]) -> Vec<u8> {
    let mut packer = Packer::new(Codec::Zstd, None).expect("a codec");
    packer.push(inside).expect("compressible");
    let packed = packer.finish().expect("compressible");
    records::repacked(batch, Codec::Zstd, &packed).expect("small")
}

/// The answer was the next batch's offset, as if the broken records were not there, or an error for
/// ever, and a line in the log each time.
#[test]
fn a_batch_that_cannot_be_read_is_found_where_it_begins_to_be_so() {
    let broker = Broker::start(&[]);
    let topic = fresh("broken");
    let mut peer = Peer::connect(broker.address());
    create(&mut peer, &topic, &[]);
    let three = plain(&[TIME, TIME + 10, TIME + 20], b"value");
    let cut = filled(&three, &three[HEADER_BYTES..three.len() - 4]);
    let malformed = records::repacked(&three, Codec::Zstd, b"no zstd at all").expect("small");
    // A record that says of itself to be the fiftieth behind the first.
    let stray = filled(&plain(&[TIME + 30], b""), &[12, 0, 0, 100, 1, 0, 0]);
    let good = plain(&[TIME + 40], b"value");
    let mut write = |batch: &[u8]| produced(&peer.ask(&produce(&topic, batch)), &topic);
    assert_eq!(write(&cut), (0, 0));
    assert_eq!(write(&stray), (0, 3));
    assert_eq!(write(&good), (0, 4));
    let times = [0, 10, 11, 20, 21, 30, 31, 40, 41];
    let found = times.map(|time| offset_at(&mut peer, &topic, TIME + time));
    assert_eq!(found, [0, 1, 2, 2, 3, 3, 4, 4, -1]);

    let topic = fresh("malformed");
    create(&mut peer, &topic, &[]);
    let mut write = |batch: &[u8]| produced(&peer.ask(&produce(&topic, batch)), &topic);
    assert_eq!(write(&malformed), (0, 0));
    assert_eq!(write(&good), (0, 3));
    let found = [0, 20, 21].map(|time| offset_at(&mut peer, &topic, TIME + time));
    assert_eq!(found, [0, 0, 3]);
    assert!(!broker.log().contains("cannot look into"), "{}", broker.log());
}

/// Each batch that claimed a late enough time was unpacked without others having a turn.
#[test]
fn a_lookup_through_batches_that_grow_large_lets_others_have_their_turn() {
    let broker = Broker::start(&[]);
    let topic = fresh("grows");
    let mut peer = Peer::connect(broker.address());
    create(&mut peer, &topic, &[]);
    let early = plain(&[TIME], &vec![0; 48 << 20]);
    let mut lies = filled(&early, &early[HEADER_BYTES..]);
    set_max_timestamp(&mut lies, TIME + 1000);
    assert!(lies.len() < 64 << 10, "{} bytes", lies.len());
    let lies = produce(&topic, &lies);
    for offset in 0..30 {
        assert_eq!(produced(&peer.ask(&lies), &topic), (0, offset));
    }
    let mut looking = Peer::connect(broker.address());
    let body = crate::frames::Bytes::default().i32(-1).i32(1).string(&topic).i32(1).i32(0);
    looking.send(&crate::frames::request(2, 1, body.i64(TIME + 500)));
    let mut turns = 0;
    let answer = loop {
        match looking.receive(Duration::from_millis(1)) {
            Came::Answer(answer) => break answer,
            Came::Nothing => {}
            Came::Closed => panic!("the broker hung up"),
        }
        assert_eq!(offset_at(&mut peer, &topic, -1), 30);
        turns += 1;
    };
    assert_eq!(answer[answer.len() - 8..], (-1_i64).to_be_bytes(), "nothing is so late");
    // It was one; looking for the answer takes some milliseconds each time.
    assert!(turns > 10, "others had {turns} turns meanwhile");
}
