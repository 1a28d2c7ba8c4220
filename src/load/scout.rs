//! The scout: looks at the metadata again when a core doubts it, so that no core waits for it.
//!
//!     core ─ ask ─► board ─► scout ─ Metadata ─► any broker
//!     core ◄─ newer ─ board ◄─ publish ─┘
//!
//! Lives on: a thread of its own, asleep while nobody asks.
//!
//! Invariants
//!   V1  A core never blocks on the board: it reads a version, and locks only to ask.
//!   V2  Between two looks there is a pause, which grows while the doubts go on.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::options::Plan;
use super::route::Route;
use super::target::Place;
use crate::client::cluster::Cluster;
use crate::client::connection::{Manner, host};
use crate::client::failure::Failure;

/// Between two looks (Kafka's retry.backoff.ms and retry.backoff.max.ms).
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Doubts that come so long after the last look are new ones.
const CALM: Duration = Duration::from_secs(5);
/// A broker that does not tell its metadata within this time is not asked again for now.
const ANSWER_TIME: Duration = Duration::from_secs(3);

/// What the cores and the scout share.
#[derive(Debug)]
pub struct Board {
    route: ArcSwap<Route>,
    version: AtomicU64,
    /// Looks that told nothing.
    failures: AtomicU64,
    order: Mutex<Order>,
    bell: Condvar,
}

#[derive(Debug, Default)]
struct Order {
    is_asked: bool,
    is_over: bool,
}

impl Board {
    pub fn new(route: Arc<Route>) -> Board {
        Board {
            version: AtomicU64::new(route.version),
            route: ArcSwap::new(route),
            failures: AtomicU64::new(0),
            order: Mutex::default(),
            bell: Condvar::new(),
        }
    }

    /// A route that is newer than the one in hand.
    pub fn newer(&self, than: &Route) -> Option<Arc<Route>> {
        (self.version.load(Ordering::Acquire) > than.version).then(|| self.route.load_full())
    }

    /// Where the brokers are, as far as is known.
    pub fn route(&self) -> Arc<Route> {
        self.route.load_full()
    }

    /// Asks for a look at the metadata, unless there was one since `seen`.
    pub fn ask(&self, seen: &Route) {
        if self.version.load(Ordering::Acquire) <= seen.version {
            self.order().is_asked = true;
            self.bell.notify_one();
        }
    }

    /// Ends the scout.
    pub fn end(&self) {
        self.order().is_over = true;
        self.bell.notify_one();
    }

    /// How many looks failed since the last call.
    pub fn failures(&self) -> u64 {
        self.failures.swap(0, Ordering::Relaxed)
    }

    fn publish(&self, route: Route) {
        let version = route.version;
        self.route.store(Arc::new(route));
        self.version.store(version, Ordering::Release);
    }

    fn order(&self) -> MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for somebody who asks; false when the run is over.
    fn is_asked(&self) -> bool {
        let order = self.order();
        let waits = |order: &mut Order| !order.is_asked && !order.is_over;
        let mut order = self.bell.wait_while(order, waits).unwrap_or_else(PoisonError::into_inner);
        order.is_asked = false;
        !order.is_over
    }

    fn rest(&self, pause: Duration) {
        let (order, waits) = (self.order(), |order: &mut Order| !order.is_over);
        drop(self.bell.wait_timeout_while(order, pause, waits));
    }
}

/// Starts the scout of a run. It ends by itself after `Board::end`, at most an answer's time later.
pub fn start(board: Arc<Board>, plan: &Plan, places: &[Place]) -> std::io::Result<()> {
    let mut scout = Scout {
        bootstrap: plan.bootstrap.clone(),
        manner: Manner { answer_time: ANSWER_TIME, security: plan.security.clone() },
        topics: plan.topics.clone(),
        places: places.to_vec(),
        cluster: None,
        board,
    };
    thread::Builder::new().name("scout".into()).spawn(move || scout.run()).map(drop)
}

struct Scout {
    board: Arc<Board>,
    bootstrap: String,
    manner: Manner,
    topics: Vec<String>,
    places: Vec<Place>,
    cluster: Option<Cluster>,
}

impl Scout {
    fn run(&mut self) {
        let (mut pause, mut last) = (PAUSE_FIRST, None::<Instant>);
        while self.board.is_asked() {
            if last.is_none_or(|last| last.elapsed() > CALM) {
                pause = PAUSE_FIRST;
            }
            match self.look() {
                Ok(route) => self.board.publish(route),
                Err(_) => {
                    self.cluster = None;
                    self.board.failures.fetch_add(1, Ordering::Relaxed);
                    // Nobody may ask again who has nothing to try meanwhile.
                    self.board.order().is_asked = true;
                }
            }
            last = Some(Instant::now());
            self.board.rest(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Asks any broker that answers.
    fn look(&mut self) -> Result<Route, Failure> {
        let old = self.board.route();
        let mut cluster = match self.cluster.take() {
            Some(cluster) => cluster,
            None => {
                let known = old.names();
                let all: Vec<String> =
                    std::iter::once(self.bootstrap.clone()).chain(known).collect();
                Cluster::reach_in(&all.join(","), self.manner.clone())?
            }
        };
        let names: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        let told = cluster.topics(Some(&names), false)?;
        let mut leaders = BTreeMap::new();
        for topic in &told {
            let partitions = topic.partitions.iter();
            leaders.extend(partitions.map(|p| ((topic.name.as_str(), p.index), p.leader)));
        }
        let leader = |place: &Place| {
            let topic = self.topics.get(place.topic).map_or("", String::as_str);
            leaders.get(&(topic, place.partition)).copied().unwrap_or(-1)
        };
        let leaders: Vec<i32> = self.places.iter().map(leader).collect();
        let route = old.next(&leaders, &addresses(&cluster)).with_hosts(hosts(&cluster));
        self.cluster = Some(cluster);
        Ok(route)
    }
}

/// The brokers' addresses, of those whose names have one.
pub fn addresses(cluster: &Cluster) -> BTreeMap<i32, SocketAddr> {
    let find = |id| Some((id, cluster.address(id)?.to_socket_addrs().ok()?.next()?));
    cluster.brokers().filter_map(find).collect()
}

/// The hosts' names by address, as certificates have them.
pub fn hosts(cluster: &Cluster) -> BTreeMap<SocketAddr, String> {
    let name = |(id, address)| Some((address, host(cluster.address(id)?).to_string()));
    addresses(cluster).into_iter().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_seen_the_newest_route_is_told_of_none_and_may_ask_for_one() {
        let board = Board::new(Arc::new(Route::default()));
        let old = board.route();
        assert!(board.newer(&old).is_none());
        board.ask(&old);
        assert!(board.is_asked());
        board.publish(old.next(&[], &BTreeMap::new()));
        assert_eq!(board.newer(&old).map(|route| route.version), Some(1));
        board.ask(&old);
        assert!(!board.order().is_asked, "the answer is there already");
        board.end();
        assert!(!board.is_asked());
    }
}
