//! Time, tasks and seeds.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use crate::base::time::Instant;
use crate::io::Io;
use crate::io::mailbox::mailbox;
use crate::io::sim::{Crash, Settings, SimIo, Why, World};

/// Counts how often it is dropped.
struct Counted(Rc<Cell<usize>>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn timers_fire_in_the_order_of_their_deadlines_and_not_before() {
    for seed in 0..50 {
        let world = World::new(seed);
        let fired = Rc::new(RefCell::new(Vec::new()));
        for wait in [30, 10, 20, 0, 40] {
            let (io, fired) = (world.stage().core(0), fired.clone());
            world.spawn("timer", async move {
                let deadline = io.now() + millis(wait);
                io.sleep_until(deadline).await;
                assert!(io.now() >= deadline);
                fired.borrow_mut().push(wait);
            });
        }
        world.run_until_idle().expect("it ends");
        assert_eq!(*fired.borrow(), [0, 10, 20, 30, 40], "seed {seed}");
        assert!(world.now() < Instant::ZERO + millis(41));
    }
}

#[test]
fn time_jumps_over_what_nobody_waits_for() {
    let world = World::new(1);
    let io = world.stage().core(0);
    let before = io.wall().0;
    world.block_on(io.sleep(Duration::from_secs(1 << 30)));
    assert!(world.steps() < 10);
    assert_eq!((io.wall().0 - before) / 1000, 1 << 30);
}

#[test]
fn a_dropped_timer_does_not_hold_time_up() {
    let world = World::new(1);
    let io = world.stage().core(0);
    world.block_on(async {
        let mut long = Box::pin(io.sleep(Duration::from_secs(3600)));
        assert!(futures_util::poll!(&mut long).is_pending());
    });
    world.run_until_idle().expect("it ends");
    assert!(world.now() < Instant::ZERO + millis(1));
}

#[test]
fn a_sleep_without_end_is_a_deadlock_and_told_with_the_seed() {
    let world = World::new(77);
    let io = world.stage().core(0);
    let never = io.sleep_until(Instant::NEVER);
    world.spawn("waits for ever", never);
    let stuck = world.try_block_on(std::future::pending::<()>(), Instant::NEVER);
    let stuck = stuck.expect_err("nothing can happen");
    assert_eq!((stuck.why, stuck.seed), (Why::Deadlock, 77));
    let words = stuck.to_string();
    assert!(words.contains("seed 77") && words.contains("waits for ever"), "{words}");
}

#[test]
fn a_run_without_end_is_told_with_the_seed() {
    let world = World::with(5, Settings { steps_max: 1000, ..Settings::default() });
    let io = world.stage().core(0);
    world.spawn("spins", {
        let io = io.clone();
        async move {
            loop {
                io.cede().await;
            }
        }
    });
    let stuck = world.run_for(Duration::from_secs(1)).expect_err("it spins");
    assert_eq!((stuck.why, stuck.seed, stuck.steps), (Why::Endless, 5, 1000));
}

#[test]
fn a_task_that_spins_does_not_keep_timers_from_firing() {
    let world = World::new(3);
    let io = world.stage().core(0);
    let spinner = io.clone();
    world.spawn("spins", async move {
        while spinner.now() < Instant::ZERO + millis(2) {
            spinner.cede().await;
        }
    });
    world.block_on(io.sleep(millis(1)));
    assert!(world.now() < Instant::ZERO + millis(2));
}

#[test]
fn a_run_stops_at_its_deadline() {
    let world = World::new(3);
    let io = world.stage().core(0);
    let late = world.try_block_on(io.sleep(millis(50)), Instant::ZERO + millis(20));
    assert_eq!(late.map_err(|stuck| stuck.why), Err(Why::Late));
    assert_eq!(world.now(), Instant::ZERO + millis(20));
    world.run_for(millis(5)).expect("time passes even when nothing happens");
    assert_eq!(world.now(), Instant::ZERO + millis(25));
    assert!(world.run_until(Instant::ZERO + millis(30), || false).is_err());
}

#[test]
fn the_order_of_ready_tasks_is_the_seeds() {
    let order = |seed| {
        let world = World::new(seed);
        let order = Rc::new(RefCell::new(Vec::new()));
        for number in 0..6 {
            let order = order.clone();
            world.spawn("task", async move { order.borrow_mut().push(number) });
        }
        world.run_until_idle().expect("it ends");
        order.take()
    };
    let orders: std::collections::BTreeSet<Vec<u32>> = (0..100).map(order).collect();
    assert!(orders.len() > 50, "{} orders", orders.len());
    assert_eq!(order(9), order(9));
}

#[test]
fn random_numbers_are_the_seeds() {
    let numbers = |seed| {
        let io = World::new(seed).stage().core(0);
        [io.random(), io.random()]
    };
    assert_eq!(numbers(1), numbers(1));
    assert_ne!(numbers(1), numbers(2));
    assert_ne!(numbers(1)[0], numbers(1)[1]);
}

#[test]
fn mailboxes_carry_between_cores_and_nodes_can_be_skewed() {
    let world = World::new(4);
    let node = world.node();
    let (sender, mut receiver) = mailbox::<u64>(4);
    let io = node.core(1);
    io.spawn("sender", {
        let io = io.clone();
        async move {
            for number in 0..100 {
                while sender.try_send(number).is_err() {
                    io.cede().await;
                }
            }
        }
    });
    let received = world.block_on(async {
        let mut received = Vec::new();
        while let Some(number) = receiver.recv().await {
            received.push(number);
        }
        received
    });
    assert_eq!(received, (0..100).collect::<Vec<_>>());
    assert_eq!((node.core(0).core().0, io.core().0), (0, 1));
    node.set_skew_millis(-5000);
    assert_eq!(io.wall().0 - world.stage().core(0).wall().0, -5000);
}

/// Waits for ever with something to drop.
fn waiting(io: &SimIo, drops: &Rc<Cell<usize>>) {
    let (held, spawner) = (Counted(drops.clone()), io.clone());
    io.spawn("waits", async move {
        spawner.sleep_until(Instant::NEVER).await;
        drop(held);
    });
}

#[test]
fn a_crash_drops_the_nodes_tasks_and_no_others_and_old_handles_refuse() {
    let world = World::new(2);
    let (one, two) = (world.node(), world.node());
    let (drops, others) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    for core in 0..3 {
        waiting(&one.core(core), &drops);
        waiting(&two.core(core), &others);
    }
    let old = one.core(0);
    world.run_until_idle().expect("all wait");
    one.crash(Crash::Power);
    assert_eq!((drops.get(), others.get(), world.live_tasks()), (3, 0, 3));
    assert!(!one.is_up());
    one.crash(Crash::Power); // has nothing more to end
    one.restart();
    old.spawn("never", async { panic!("a handle from before the crash runs nothing") });
    assert!(old.create_directory(std::path::Path::new("/old")).is_err());
    waiting(&one.core(0), &drops);
    world.run_until_idle().expect("all wait");
    assert_eq!(world.live_tasks(), 4);
}

#[test]
fn a_task_may_crash_its_own_node() {
    let world = World::new(2);
    let node = world.node();
    let (drops, victim) = (Rc::new(Cell::new(0)), node.clone());
    let (io, held) = (node.core(0), Counted(drops.clone()));
    io.spawn("ends itself", async move {
        victim.crash(Crash::Kill);
        std::future::pending::<()>().await;
        drop(held);
    });
    world.run_until_idle().expect("it ends");
    assert_eq!((drops.get(), world.live_tasks()), (1, 0));
}

#[test]
fn dropping_the_world_drops_everything_in_it() {
    let world = World::new(8);
    let inner = Rc::downgrade(&world.inner);
    let drops = Rc::new(Cell::new(0));
    {
        let node = world.node();
        let io = node.core(0);
        waiting(&io, &drops);
        let (held, server) = (Counted(drops.clone()), node.core(1));
        io.spawn("accepts", async move {
            use crate::io::{Listener, Stream};
            let listener = server.listen("0.0.0.0:1".parse().expect("an address"));
            let listener = listener.expect("free");
            let mut buffer = bytes::BytesMut::new();
            while let Ok(stream) = listener.accept().await {
                drop(stream.read(&mut buffer, 10).await);
            }
            drop(held);
        });
        let (client, address) = (world.node().core(0), (node.ip(), 1).into());
        let held = Counted(drops.clone());
        client.clone().spawn("connects", async move {
            let stream = client.connect(address).await;
            let second = client.connect(address).await; // stays in the accept queue
            client.sleep_until(Instant::NEVER).await;
            drop((stream, second, held));
        });
        world.run_until_idle().expect("all wait");
        assert_eq!(world.live_connections(), 2);
    }
    drop(world);
    assert_eq!(drops.get(), 3);
    assert!(inner.upgrade().is_none(), "something still holds the world");
}
