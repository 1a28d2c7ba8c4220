//! What the broker remembers of idempotent producers, and for how long.

use std::thread::sleep;
use std::time::{Duration, Instant};

use corelog::wire::error::ErrorCode;

use crate::frames::{Batch, Peer, produce, produced};
use crate::segments::create;
use crate::world::{Broker, fresh};

/// How long it may take until a producer that says nothing is forgotten.
const FORGOTTEN_MAX: Duration = Duration::from_secs(20);

/// `producer.id.expiration.ms` was taken and did nothing: each producer stayed for good.
#[test]
fn a_producer_that_says_nothing_is_forgotten_after_its_time() {
    let settings =
        [("producer.id.expiration.ms", "1500"), ("log.retention.check.interval.ms", "50")];
    let mut broker = Broker::start(&settings);
    let topic = fresh("silent");
    let mut peer = Peer::connect(broker.address());
    create(&mut peer, &topic, &[]);
    let batch =
        |sequence| produce(&topic, &Batch { producer: (7, sequence), ..Batch::default() }.encode());
    let missing = (ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER.0, -1);
    for (sequence, outcome) in [(0, (0, 0)), (5, missing), (0, (0, 0)), (1, (0, 1))] {
        assert_eq!(produced(&peer.ask(&batch(sequence)), &topic), outcome);
    }
    // Whoever is not known may begin anywhere.
    let asked = Instant::now();
    let begins = |peer: &mut Peer, sequence| {
        while asked.elapsed() < FORGOTTEN_MAX {
            match produced(&peer.ask(&batch(sequence)), &topic) {
                outcome if outcome == missing => sleep(Duration::from_millis(50)),
                outcome => return outcome,
            }
        }
        panic!("it is known for ever");
    };
    assert_eq!(begins(&mut peer, 9), (0, 2));
    assert!(asked.elapsed() > Duration::from_millis(500), "not at once");

    // What is recovered is as old as it was, and forgotten as well.
    broker.restart();
    let mut peer = Peer::connect(broker.address());
    assert_eq!(begins(&mut peer, 20), (0, 3));
}
