//! What all cores of a node share: the published metadata, the configuration, who owns what.
//!
//! Invariants
//!   H1  The image is replaced as a whole; a reader keeps the one it took.
//!   H2  A partition's owner depends on its id and the number of shards only; the data directory
//!       says for how many it was laid out, and partitions move (`reshard`) before that changes.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::directories::Directories;
use super::traffic::Traffic;
use crate::base::ids::{CoreId, PartitionId};
use crate::config::BrokerConfig;
use crate::group::Settings;
use crate::metadata::{self, Image};

/// See the module's documentation.
pub struct Shared {
    image: ArcSwap<Image>,
    config: Arc<BrokerConfig>,
    shards: u16,
    directories: Directories,
    traffic: Traffic,
}

impl Shared {
    pub fn new(config: Arc<BrokerConfig>, shards: u16, directories: Directories) -> Shared {
        assert!(shards > 0, "a node has at least one core");
        let image = ArcSwap::from_pointee(Image::default());
        Shared { image, config, shards, directories, traffic: Traffic::new(shards) }
    }

    /// The metadata as last published.
    pub fn image(&self) -> Arc<Image> {
        self.image.load_full()
    }

    /// Makes `image` the one that every core reads from here on.
    pub fn publish(&self, image: Image) {
        self.image.store(Arc::new(image));
    }

    pub fn config(&self) -> &Arc<BrokerConfig> {
        &self.config
    }

    pub fn shards(&self) -> u16 {
        self.shards
    }

    pub fn directories(&self) -> &Directories {
        &self.directories
    }

    /// What each core takes in.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// The core that owns `id`.
    pub fn owner_of(&self, id: PartitionId) -> CoreId {
        metadata::owner(id, self.shards)
    }

    /// Whether nothing of a partition is served, since the directory that it is in has failed.
    pub fn is_offline(&self, id: PartitionId) -> bool {
        self.directories.is_offline(self.owner_of(id))
    }

    /// The bounds of groups, from the configuration.
    pub(super) fn group_settings(&self) -> Settings {
        let millis =
            |name: &str| Duration::from_millis(u64::try_from(self.config.int(name)).unwrap_or(0));
        let minutes = u64::try_from(self.config.int("offsets.retention.minutes")).unwrap_or(0);
        Settings {
            session_timeout_min: millis("group.min.session.timeout.ms"),
            session_timeout_max: millis("group.max.session.timeout.ms"),
            initial_rebalance_delay: millis("group.initial.rebalance.delay.ms"),
            members_max: self.config.size("group.max.size"),
            offset_metadata_bytes_max: self.config.size("offset.metadata.max.bytes"),
            offsets_retention: Duration::from_secs(minutes * 60),
            expiry_interval: millis("offsets.retention.check.interval.ms"),
            ..Settings::default()
        }
    }
}
