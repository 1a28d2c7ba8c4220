//! The node: boots a core on every executor, in the order that recovery needs, and stops them.
//!
//!     core 0:  recover ─► publish image ─► open a leader epoch ─► listen ─┐ address
//!     core n:  recover ───────────────────────────────────────────────────┴► listen
//!
//! Invariants
//!   K1  No core serves before core 0 has published the recovered metadata and made the new leader
//!       epoch durable.
//!   K2  A core that stops first takes no more requests, then answers what it has, then closes its
//!       journal: not before the other cores have answered what they have, for which they need it.
//!   K3  A core whose data directory cannot be used serves all the same what is on the others,
//!       unless it is the first directory, which holds the metadata.

mod directory;
mod layout;
mod relay;
mod serve;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use crate::base::buffer::Arena;
use crate::base::ids::CoreId;
use crate::base::limits;
use crate::connection::{Bounds, Connections};
use crate::dispatch::{Dispatch, Lanes, LanesEnd, lanes};
use crate::handler::{Handlers, Identity, port_offset};
use crate::io::mailbox::{Sender, oneshot};
use crate::io::{Io, Listener};
use crate::journal::{self, OpenError};
use crate::metadata::Command;
use crate::partition::{Owner, Recovered, Shared, recover};
use crate::wire::error::ErrorCode;
use crate::wire::primitive::Uuid;

pub use directory::{DataDirectories, LostPart};
#[cfg(test)]
pub use layout::{Layout, NODE_FILE, Place};
#[cfg(test)]
pub use relay::{Relay, name, relay};
pub use serve::serve;

/// How often a stopping core looks whether its connections are gone.
const DRAIN_PAUSE: Duration = Duration::from_millis(2);

/// Why a core does not serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootFailed(pub String);

impl fmt::Display for BootFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a core tells of its start.
#[derive(Clone, Debug)]
pub struct Report {
    pub core: CoreId,
    /// The address listened on, or why the core does not serve.
    pub outcome: Result<SocketAddr, BootFailed>,
}

/// Everything a core is given before it runs; made on the starting thread.
pub struct CoreSetup<I: Io> {
    pub shared: Arc<Shared>,
    pub lanes: Vec<Lanes<I>>,
    pub inbox: LanesEnd<I>,
    pub journal: journal::Settings,
    /// Folders that are left over, for core 0 to remove.
    pub stale: Vec<PathBuf>,
    pub memory_bytes: usize,
    pub identity: Identity,
    pub listen: SocketAddr,
    pub connection_count: Arc<AtomicUsize>,
    /// Connections of the node, where the settings allow more.
    pub connections_max: usize,
    /// Core 0 tells the others where to listen, once they may.
    pub go: Go,
    pub stop: oneshot::Receiver<()>,
    pub report: Sender<Report>,
}

/// The start signal's ends.
pub enum Go {
    Give(Vec<oneshot::Sender<SocketAddr>>),
    Await(oneshot::Receiver<SocketAddr>),
}

/// The lanes between `shards` cores and the start signals: for each core its share.
pub fn wire_up<I: Io>(shards: u16) -> Vec<(Vec<Lanes<I>>, LanesEnd<I>, Go)> {
    let (ins, ends): (Vec<_>, Vec<_>) = (0..shards).map(|_| lanes::<I>()).unzip();
    let mut signals = Vec::new();
    let mut gos = Vec::new();
    for _ in 1..shards {
        let (give, wait) = oneshot::channel();
        signals.push(give);
        gos.push(Go::Await(wait));
    }
    gos.insert(0, Go::Give(signals));
    ends.into_iter().zip(gos).map(|(end, go)| (ins.clone(), end, go)).collect()
}

/// One core's life, from recovery to the closed journal.
pub async fn run_core<I: Io>(io: I, mut setup: CoreSetup<I>) {
    let report = setup.report.clone();
    let core = io.core();
    // The others wait until core 0 has told why it does not start: theirs is no reason.
    let mut go = std::mem::replace(&mut setup.go, Go::Give(Vec::new()));
    if let Err(failed) = boot_and_serve(io, setup, &mut go).await {
        // A full or closed mailbox means that the starter has given up already.
        drop(report.try_send(Report { core, outcome: Err(failed) }));
    }
}

async fn boot_and_serve<I: Io>(io: I, setup: CoreSetup<I>, go: &mut Go) -> Result<(), BootFailed> {
    let CoreSetup { shared, lanes, inbox, stop, .. } = setup;
    let arena = Arena::new(setup.memory_bytes / 2);
    let recovered = recover_core(&io, &arena, &shared, setup.journal).await?;
    let start = async |mut recovered: Recovered<I>| {
        recovered.forget_unknown(&shared.image()).map_err(BootFailed)?;
        let owner = Owner::start(io.clone(), arena.clone(), shared.clone(), recovered);
        if owner.core() == CoreId::FIRST {
            open_epoch(&owner)
                .await
                .map_err(|error| BootFailed(format!("the metadata cannot be written: {error}")))?;
        }
        start_groups(&owner).await?;
        Ok(owner)
    };
    // Other cores' requests wait in the lanes until the core is whole (K1).
    let (owner, listener) = match go {
        Go::Give(others) => {
            shared.publish(recovered.image.clone());
            let owner = start(recovered).await?;
            let listener = listen(&io, setup.listen)?;
            for other in others.drain(..) {
                // A core that is gone has reported why.
                let _ = other.send(listener.address());
            }
            (owner, listener)
        }
        Go::Await(go) => {
            let stopped = |_| BootFailed("core 0 did not start".into());
            let address = go.await.map_err(stopped)?;
            (start(recovered).await?, listen(&io, address)?)
        }
    };
    let dispatch = Dispatch::start(owner, lanes, inbox);
    let mut identity = setup.identity;
    let address = listener.address();
    if identity.port == 0 {
        identity.port = i32::from(address.port());
    }
    let mut listeners = vec![Rc::new(listener)];
    if identity.cores.is_some() {
        listeners.push(Rc::new(listen(&io, own_address(address, io.core())?)?));
    }
    let mut bounds = Bounds::new(shared.config());
    bounds.connections_max = bounds.connections_max.min(setup.connections_max);
    let owner = dispatch.local().clone();
    let handlers = Handlers::new(dispatch, identity);
    let budget_bytes = setup.memory_bytes / 4;
    let connections =
        Connections::new(io.clone(), handlers, bounds, budget_bytes, setup.connection_count);
    for listener in &listeners {
        io.spawn("accept", connections.clone().accept(listener.clone()));
    }
    if !setup.stale.is_empty() {
        io.spawn("leftovers", relay::remove_stale(io.clone(), setup.stale));
    }
    drop(setup.report.try_send(Report { core: io.core(), outcome: Ok(address) }));
    // A dropped sender asks for the end as well.
    let _ = stop.await;
    listeners.iter().for_each(|listener| listener.close());
    end(&io, &connections, &owner).await;
    Ok(())
}

/// What a core's directory holds; nothing if it cannot be used, and the node has others (K3).
async fn recover_core<I: Io>(
    io: &I,
    arena: &Arena,
    shared: &Arc<Shared>,
    settings: journal::Settings,
) -> Result<Recovered<I>, BootFailed> {
    let (core, directories) = (io.core(), shared.directories());
    if !directories.is_offline(core) {
        match recover(io.clone(), arena.clone(), settings.clone()).await {
            Ok(mut recovered) => {
                let why = recovered.contradiction.take();
                return why.map_or(Ok(recovered), |why| Err(BootFailed(why)));
            }
            Err(error @ OpenError::Io { .. }) if !directories.is_needed(core) => {
                directories.give_up(core, &error.to_string());
            }
            Err(error) => return Err(BootFailed(error.to_string())),
        }
    }
    let why = directories.failure(core).unwrap_or_default();
    Ok(Recovered::nothing(io.clone(), arena.clone(), settings, why))
}

/// Loads the consumer groups of a core, if its directory can be read.
async fn start_groups<I: Io>(owner: &Rc<Owner<I>>) -> Result<(), BootFailed> {
    match owner.start_coordinator().await {
        Err(error) if !owner.is_offline() => {
            Err(BootFailed(format!("the consumer groups cannot be loaded: {error}")))
        }
        _ => Ok(()),
    }
}

/// Answers what is in flight and closes the journal (K2).
async fn end<I: Io>(io: &I, connections: &Connections<I>, owner: &Owner<I>) {
    connections.drain();
    let until_gone = async |most: Duration| {
        let deadline = io.now() + most;
        while connections.on_node() > 0 && io.now() < deadline {
            io.sleep(DRAIN_PAUSE).await;
        }
    };
    until_gone(limits::DRAIN_TIME).await;
    let stopped = std::pin::pin!(owner.stop_storage());
    let patience = std::pin::pin!(io.sleep(limits::DRAIN_REST_TIME));
    futures_util::future::select(stopped, patience).await;
    owner.journal().close().await;
    // What waited for a slow disk is durable only now.
    until_gone(limits::DRAIN_REST_TIME).await;
}

/// Where a core listens that is a broker of its own.
fn own_address(shared: SocketAddr, core: CoreId) -> Result<SocketAddr, BootFailed> {
    let CoreId(index) = core;
    match shared.port().checked_add(port_offset(index)) {
        Some(port) => Ok(SocketAddr::new(shared.ip(), port)),
        None => Err(BootFailed(format!(
            "{core} has no port: per.core.listeners takes the ports after {}; choose a lower \
             --listen",
            shared.port()
        ))),
    }
}

fn listen<I: Io>(io: &I, address: SocketAddr) -> Result<I::Listener, BootFailed> {
    io.listen(address).map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                "another process listens there: stop it or choose another --listen"
            }
            std::io::ErrorKind::AddrNotAvailable => "this machine has no such address",
            std::io::ErrorKind::PermissionDenied => "ports below 1024 need privileges",
            _ => "check --listen",
        };
        BootFailed(format!("cannot listen on {address}: {error}; {hint}"))
    })
}

/// Names the cluster at its birth, and opens the epoch in which this run of the node leads.
async fn open_epoch<I: Io>(owner: &Rc<Owner<I>>) -> Result<(), ErrorCode> {
    let mut id = [0; 16];
    for half in id.chunks_exact_mut(8) {
        half.copy_from_slice(&owner.io().random().to_be_bytes());
    }
    owner
        .change_metadata(move |image| {
            let mut commands = Vec::new();
            if image.cluster_id.is_empty() {
                commands.push(Command::ClusterCreated { cluster_id: Uuid(id).to_string() });
            }
            commands.push(Command::LeaderEpochOpened { epoch: image.leader_epoch() + 1 });
            (commands, ())
        })
        .await
}
