//! Who the node says it is: one broker, or one broker per core.
//!
//!     one broker        id             host:port        any core accepts
//!     per core          id + core      host:port+1+core that core accepts, and leads what it owns
//!
//! With a broker per core a client's ordinary routing, partition leader by partition leader, brings
//! every request to the core that owns its partition, and nothing hops between cores. The shared
//! port stays for the first connection.
//!
//! Lives on: every core, the same value.
//!
//! Invariants
//!   H1  Every partition's leader is one of `brokers`.

use crate::base::ids::CoreId;

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Identity {
    pub node_id: i32,
    pub host: String,
    /// The advertised port that all cores share.
    pub port: i32,
    pub rack: Option<String>,
    /// How many cores are brokers of their own; `None` for one broker.
    pub cores: Option<u16>,
}

/// One broker as clients see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broker {
    pub id: i32,
    pub port: i32,
}

impl Identity {
    /// What clients are told of the node.
    pub fn brokers(&self) -> impl Iterator<Item = Broker> + '_ {
        (0..self.cores.unwrap_or(1)).map(|core| self.broker_of(CoreId(core)))
    }

    /// The broker that leads what `core` owns.
    pub fn broker_of(&self, core: CoreId) -> Broker {
        let CoreId(core) = core;
        match self.cores {
            None => Broker { id: self.node_id, port: self.port },
            Some(_) => Broker {
                id: self.node_id.saturating_add(i32::from(core)),
                port: self.port.saturating_add(i32::from(port_offset(core))),
            },
        }
    }

    /// The broker that leads the metadata.
    pub fn controller(&self) -> Broker {
        self.broker_of(CoreId::FIRST)
    }

    /// Whether a partition's replicas may be assigned to `brokers`: a node with a broker per core
    /// chooses the core by itself.
    pub fn takes_assignment(&self, brokers: &[i32]) -> bool {
        self.cores.is_none() && brokers == [self.node_id]
    }

    /// Whether `id` is one of this node's brokers.
    pub fn is_me(&self, id: i32) -> bool {
        self.brokers().any(|broker| broker.id == id)
    }
}

/// Why an assignment of replicas is refused.
pub const ASSIGNMENT_REFUSED: &str =
    "assignments must name this node, the only one, and it must be one broker, not one per core";

/// How far a core's own port lies above the shared one.
pub const fn port_offset(core: u16) -> u16 {
    core.saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(cores: Option<u16>) -> Identity {
        Identity { node_id: 7, host: "host".into(), port: 9092, rack: None, cores }
    }

    #[test]
    fn a_node_is_one_broker() {
        let one = identity(None);
        assert_eq!(one.brokers().collect::<Vec<_>>(), [Broker { id: 7, port: 9092 }]);
        assert_eq!(one.broker_of(CoreId(3)), one.controller());
        assert!(one.is_me(7) && !one.is_me(8));
        assert!(one.takes_assignment(&[7]) && !one.takes_assignment(&[7, 7]));
    }

    #[test]
    fn or_every_core_is_one() {
        let many = identity(Some(2));
        let brokers = [Broker { id: 7, port: 9093 }, Broker { id: 8, port: 9094 }];
        assert_eq!(many.brokers().collect::<Vec<_>>(), brokers);
        assert_eq!(many.broker_of(CoreId(1)), brokers[1]);
        assert!(many.is_me(8) && !many.is_me(9) && !many.takes_assignment(&[7]));
    }
}
