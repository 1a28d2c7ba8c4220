//! What goes wrong: power losses, kills, failing and full disks, clean stops, clocks set back, at
//! any time.

use std::rc::Rc;
use std::time::Duration;

use super::Stage;
use super::server::Server;
use crate::io::sim::{Crash, Fault, World};

/// Starts that may fail in a row: each uses up a fault of the disk.
const STARTS_MAX: u32 = 20;

/// What lives may have where their number differs.
const SHARDS: [u16; 5] = [1, 2, 3, 5, 16];

/// Ruins `Plan::lives` lives of the node and leaves it running and healthy.
pub fn run(world: &World, server: &Server, stage: &Rc<Stage>) {
    for _ in 0..stage.plan.lives {
        server.disk().set_space(None);
        if world.below(3) == 0 {
            fault(world, server, stage);
        }
        server.set_clock_skew(i64::try_from(world.below(4_000)).expect("small") - 2_000);
        if stage.plan.is_resharded && world.below(2) == 0 {
            server.set_shards(SHARDS[world.below(SHARDS.len() as u64) as usize]);
        }
        server.start();
        // Now and then the end comes while the cores boot.
        if world.below(6) > 0 && server.await_ready(world).is_err() {
            stage.history().met.failed_starts += 1;
        }
        let micros = world.below(100) * (1 << world.below(12));
        world.run_for(Duration::from_micros(micros)).unwrap_or_else(|stuck| panic!("{stuck}"));
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
