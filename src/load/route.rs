//! The route: which broker leads each partition, as the last metadata told. Pure.
//!
//! Invariants
//!   W1  A broker keeps its index for the whole run, so that a lane stays one broker's lane; new
//!       brokers get new indexes.
//!   W2  The version grows with every look at the metadata, whether anything changed or not.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::wire::error::ErrorCode;

/// The index of a leader that is not known or not there.
pub const NOBODY: usize = usize::MAX;

/// See the module's documentation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    pub version: u64,
    /// Indexes into `brokers`, by place.
    leaders: Vec<usize>,
    brokers: Vec<SocketAddr>,
    /// The brokers' ids, and whether they lead anything, in the same order.
    nodes: Vec<i32>,
    leads: Vec<bool>,
    /// Of all brokers by their ids, whether they lead anything or not.
    addresses: BTreeMap<i32, SocketAddr>,
    hosts: BTreeMap<SocketAddr, String>,
}

impl Route {
    /// What newer metadata makes of this route: leaders' ids by place, and where brokers listen.
    pub fn next(&self, leaders: &[i32], addresses: &BTreeMap<i32, SocketAddr>) -> Route {
        let mut next = Route { version: self.version + 1, leaders: Vec::new(), ..self.clone() };
        next.addresses.extend(addresses);
        for (node, broker) in next.nodes.iter().zip(&mut next.brokers) {
            *broker = addresses.get(node).copied().unwrap_or(*broker);
        }
        let mut known: BTreeMap<i32, usize> = next.nodes.iter().copied().zip(0..).collect();
        for node in leaders {
            let index = known.get(node).copied().or_else(|| {
                next.brokers.push(*addresses.get(node)?);
                next.nodes.push(*node);
                known.insert(*node, next.nodes.len() - 1);
                Some(next.nodes.len() - 1)
            });
            next.leaders.push(index.unwrap_or(NOBODY));
        }
        next.leads = vec![false; next.nodes.len()];
        for leader in &next.leaders {
            if let Some(leads) = next.leads.get_mut(*leader) {
                *leads = true;
            }
        }
        next
    }

    /// The same, with the names of hosts besides those that are known.
    pub fn with_hosts(mut self, hosts: BTreeMap<SocketAddr, String>) -> Route {
        self.hosts.extend(hosts);
        self
    }

    /// The name of the host at an address; the address itself where none is known.
    pub fn host(&self, address: SocketAddr) -> String {
        self.hosts.get(&address).cloned().unwrap_or_else(|| address.ip().to_string())
    }

    /// All brokers that led something, as `HOST:PORT`.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.brokers.iter().map(|address| {
            let host = self.host(*address);
            let host = if host.contains(':') { format!("[{host}]") } else { host };
            format!("{host}:{}", address.port())
        })
    }

    /// The index of the broker that leads a place, or `NOBODY`.
    pub fn leader(&self, place: usize) -> usize {
        self.leaders.get(place).copied().unwrap_or(NOBODY)
    }

    /// Whether the broker leads any place.
    pub fn leads(&self, index: usize) -> bool {
        self.leads.get(index).copied().unwrap_or(false)
    }

    /// Where the broker with this id listens.
    pub fn address(&self, node: i32) -> Option<SocketAddr> {
        self.addresses.get(&node).copied()
    }

    pub fn broker(&self, index: usize) -> Option<SocketAddr> {
        self.brokers.get(index).copied()
    }

    pub fn brokers(&self) -> &[SocketAddr] {
        &self.brokers
    }
}

/// Whether a partition's code says that the metadata may be out of date.
pub fn doubts_the_leader(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::NOT_LEADER_OR_FOLLOWER
            | ErrorCode::UNKNOWN_TOPIC_OR_PARTITION
            | ErrorCode::LEADER_NOT_AVAILABLE
            | ErrorCode::REPLICA_NOT_AVAILABLE
            | ErrorCode::FENCED_LEADER_EPOCH
            | ErrorCode::UNKNOWN_LEADER_EPOCH
            | ErrorCode::KAFKA_STORAGE_ERROR
            | ErrorCode::UNKNOWN_TOPIC_ID
            | ErrorCode::INCONSISTENT_TOPIC_ID
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(ports: &[(i32, u16)]) -> BTreeMap<i32, SocketAddr> {
        ports.iter().map(|(id, port)| (*id, SocketAddr::from(([127, 0, 0, 1], *port)))).collect()
    }

    #[test]
    fn brokers_keep_their_indexes_and_leaders_without_address_are_nobody() {
        let first = Route::default().next(&[7, 3, 7, -1], &addresses(&[(3, 30), (7, 70)]));
        assert_eq!([0, 1, 2, 3, 4].map(|place| first.leader(place)), [0, 1, 0, NOBODY, NOBODY]);
        let second = first.next(&[3, 3, 9, 8], &addresses(&[(3, 31), (9, 90)]));
        assert_eq!([0, 1, 2, 3].map(|place| second.leader(place)), [1, 1, 2, NOBODY]);
        let ports: Vec<u16> = second.brokers().iter().map(SocketAddr::port).collect();
        assert_eq!(ports, [70, 31, 90], "one moved, one is not told of any more, one is new");
        assert_eq!([0, 1, 2].map(|broker| second.leads(broker)), [false, true, true]);
        assert_eq!((first.version, second.version), (1, 2));
    }
}
