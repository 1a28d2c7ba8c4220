//! Too few descriptors: connections leave the files theirs, and a lack of them passes.

use std::time::{Duration, Instant};

use crate::asks::{produce_many, written};
use crate::cage::{Lack, limit_descriptors_of};
use crate::frames::{Came, Peer, api_versions};
use crate::librdkafka::create_topic;
use crate::world::{Broker, fresh};

const SOON: Duration = Duration::from_secs(20);
const TWO_SHARDS: [(&str, &str); 3] =
    [("cores", "0"), ("shards", "2"), ("journal.file.bytes", "4194304")];

/// Whether a batch for each of both partitions is stored.
fn is_stored(peer: &mut Peer, topic: &str) -> bool {
    let parts = [(0, 900_000), (1, 900_000)];
    written(&peer.ask(&produce_many(topic, &parts))).iter().all(|(_, error, _)| *error == 0)
}

/// A journal that could not open its next file took nothing more until the node was started again,
/// and a healthy disk was taken out of use.
#[test]
fn a_lack_of_descriptors_passes() {
    for count in [1, 2] {
        let folders: Vec<_> = (0..count).map(|_| tempfile::tempdir().expect("a folder")).collect();
        let paths: Vec<_> = folders.iter().map(|folder| folder.path().join("data")).collect();
        paths.iter().for_each(|path| std::fs::create_dir(path).expect("a folder"));
        let mut broker = Broker::start_across(&paths, &TWO_SHARDS);
        let topic = fresh("few");
        create_topic(&broker.bootstrap(), &topic, 2);
        let mut peer = Peer::connect(broker.address());
        assert!(is_stored(&mut peer, &topic));
        limit_descriptors_of(broker.pid(), 3);
        let refused = (0..100).find(|_| !is_stored(&mut peer, &topic));
        assert!(refused.is_some(), "the journals go on without a new file");
        std::thread::sleep(Duration::from_millis(500));
        broker.await_log("raise the limit of open files");
        limit_descriptors_of(broker.pid(), u64::MAX);
        let until = Instant::now() + SOON;
        while !is_stored(&mut peer, &topic) {
            assert!(Instant::now() < until, "writes do not resume");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!((0..20).all(|_| is_stored(&mut peer, &topic)), "it has passed");
        broker.restart();
    }
}

#[test]
fn connections_leave_descriptors_to_files() {
    let mut broker = Broker::start_lacking(&[Lack::Descriptors(1024)], &TWO_SHARDS);
    broker.await_log("max.connections is 20000, but the limit of open files, 1024, leaves room");
    let topic = fresh("crowded");
    create_topic(&broker.bootstrap(), &topic, 2);
    let mut writer = Peer::connect(broker.address());
    let mut peers: Vec<Peer> = (0..1000).map(|_| Peer::connect(broker.address())).collect();
    peers.iter_mut().for_each(|peer| peer.send(&api_versions()));
    let answered = |peer: &mut Peer| matches!(peer.receive(SOON), Came::Answer(_));
    let taken = peers.iter_mut().filter_map(|peer| answered(peer).then_some(())).count();
    assert!((500..1000).contains(&taken), "{taken} are taken");
    broker.await_log("is refused: max.connections is reached");
    assert!((0..30).all(|_| is_stored(&mut writer, &topic)), "many files are begun");
    broker.assert_alive();
}
