//! What goes wrong: power losses, kills, failing and full disks, clean stops, clocks set back, at
//! any time.

use std::rc::Rc;
use std::time::Duration;

use super::server::Server;
use super::{Stage, others};
use crate::io::sim::{Crash, Fault, World};

/// Starts that may fail in a row: each uses up a fault of the disk.
const STARTS_MAX: u32 = 20;

/// What lives may have where their number differs.
const SHARDS: [u16; 5] = [1, 2, 3, 5, 16];

/// Ruins `Plan::lives` lives of the node and leaves it running and healthy.
pub fn run(world: &World, server: &Server, stage: &Rc<Stage>) {
    // Somebody must have laid the node out before a directory of it is lost.
    let mut is_before = false;
    for _ in 0..stage.plan.lives {
        server.disk().set_space(None);
        server.set_clock_skew(i64::try_from(world.below(4_000)).expect("small") - 2_000);
        if is_before && stage.plan.directories > 1 && stage.plan.flushed && world.below(3) == 0 {
            lose_directory(world, server, stage);
            continue;
        }
        if world.below(3) == 0 {
            fault(world, server, stage);
        }
        if stage.plan.is_resharded && world.below(2) == 0 {
            let shards = SHARDS[world.below(SHARDS.len() as u64) as usize];
            let directories = match stage.plan.directories {
                1 => 1,
                _ => 1 + usize::try_from(world.below(3)).expect("small"),
            };
            server.set_layout(shards, directories);
        }
        server.start();
        // Now and then the end comes while the cores boot.
        if world.below(6) > 0 {
            match server.await_ready(world) {
                Ok(()) => is_before = true,
                Err(_) => stage.history().met.failed_starts += 1,
            }
        }
        rest(world);
        end(world, server, stage);
    }
    server.disk().set_space(None);
    for _ in 0..STARTS_MAX {
        server.start();
        match server.await_ready(world) {
            Ok(()) => return,
            Err(why) => {
                println!("the start fails: {why}");
                server.crash(Crash::Kill);
            }
        }
    }
    panic!("the node does not start although nothing is wrong with it");
}

fn rest(world: &World) {
    let micros = world.below(100) * (1 << world.below(12));
    world.run_for(Duration::from_micros(micros)).unwrap_or_else(|stuck| panic!("{stuck}"));
}

/// A life in which a data directory fails for good: before the node starts, unless it is the first,
/// or while it runs, when it may also just not answer any more. The others go on, and the next life
/// finds it whole again.
fn lose_directory(world: &World, server: &Server, stage: &Rc<Stage>) {
    let layout = server.layout();
    server.set_layout(layout.shards, layout.places.len());
    let lost = usize::try_from(world.below(layout.places.len() as u64)).expect("few");
    let is_early = lost > 0 && world.below(2) == 0;
    server.set_dead(lost, is_early);
    server.start();
    let started = server.await_ready(world);
    started.unwrap_or_else(|why| panic!("the node does not start without directory {lost}: {why}"));
    rest(world);
    let hangs = !is_early && world.below(2) == 0;
    if hangs {
        server.set_hung(lost, true);
        stage.history().met.hung_directories += 1;
    } else {
        server.set_dead(lost, true);
        stage.history().met.dead_directories += 1;
    }
    rest(world);
    if layout.places.len() > 1 {
        others::check(world, stage, &layout, lost);
    } else {
        // Everything waits for the only one, also the node's end.
        server.set_hung(lost, false);
    }
    rest(world);
    end(world, server, stage);
    server.set_dead(lost, false);
    server.set_hung(lost, false);
}

fn fault(world: &World, server: &Server, stage: &Rc<Stage>) {
    let disk = server.disk();
    let (kind, every) = match world.below(6) {
        0 => (Fault::Write, 200),
        1 => (Fault::Allocate, 6),
        2 => (Fault::Read, 100),
        3 => (Fault::Name, 10),
        // Where a flush comes after the answer, its failure may take what was acknowledged.
        4 if stage.plan.flushed => (Fault::Sync, 10),
        4 => (Fault::Write, 200),
        _ => {
            disk.set_space(Some(disk.used() + world.below(4 << 20)));
            stage.history().met.scarce_disks += 1;
            return;
        }
    };
    disk.fail(kind, u32::try_from(world.below(every)).expect("small"));
    stage.history().met.faults += 1;
}

fn end(world: &World, server: &Server, stage: &Rc<Stage>) {
    let mut history = stage.history();
    let (how, met) = match world.below(8) {
        0 => {
            history.met.clean_stops += 1;
            drop(history);
            server.stop(world);
            return;
        }
        1..4 => (Crash::Kill, &mut history.met.kills),
        _ if stage.plan.flushed => (Crash::Power, &mut history.met.power_losses),
        _ => (Crash::Kill, &mut history.met.kills),
    };
    *met += 1;
    server.crash(how);
}
