//! Every client shares a topic in a group: two members, a rebalance when one joins and when one
//! leaves, no record missed, and everything committed at the end.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::librdkafka;
use crate::program::{Member, Program, installed};
use crate::world::{Broker, fresh};

const PARTITIONS: i64 = 4;
const WAIT_MAX: Duration = Duration::from_secs(60);

#[test]
fn every_client_shares_a_topic_in_a_group() {
    let broker = Broker::for_clients();
    for program in installed() {
        share(program, &broker.bootstrap());
    }
}

fn share(program: &Program, bootstrap: &str) {
    let (topic, group) = (fresh("shared"), fresh("group"));
    librdkafka::create_topic(bootstrap, &topic, 4);
    librdkafka::produce(bootstrap, &topic, "before", &["none"], 100);

    let mut first = program.join(bootstrap, &topic, &group);
    await_that(program, "the first reads all", &mut [&mut first], |members| {
        members[0].assigned.len() == 4 && read(members).len() == 100
    });
    let mut second = program.join(bootstrap, &topic, &group);
    await_that(program, "both share", &mut [&mut first, &mut second], |members| {
        let all: BTreeSet<i64> =
            members.iter().flat_map(|member| member.assigned.iter().copied()).collect();
        let even = members.iter().all(|member| member.assigned.len() == 2);
        even && all.into_iter().eq(0..PARTITIONS)
    });
    librdkafka::produce(bootstrap, &topic, "during", &["none"], 100);
    await_that(program, "both read on", &mut [&mut first, &mut second], |members| {
        read(members).len() == 200
    });
    first.leave();
    await_that(program, "the second takes over", &mut [&mut second], |members| {
        members[0].assigned.len() == 4
    });
    librdkafka::produce(bootstrap, &topic, "after", &["none"], 100);
    await_that(program, "the second reads on", &mut [&mut second, &mut first], |members| {
        read(members).len() == 300
    });
    second.leave();
    assert_eq!(librdkafka::lag(bootstrap, &topic, &group), 0, "{}: all committed", program.name);
}

/// The places of the records that the members read, each once.
fn read(members: &[&mut Member]) -> BTreeSet<(i64, i64)> {
    members.iter().flat_map(|member| member.read.iter().copied()).collect()
}

fn await_that(
    program: &Program,
    what: &str,
    members: &mut [&mut Member],
    done: impl Fn(&[&mut Member]) -> bool,
) {
    let until = Instant::now() + WAIT_MAX;
    loop {
        members.iter_mut().for_each(|member| member.listen());
        if done(members) {
            return;
        }
        if Instant::now() > until {
            let given: Vec<_> = members.iter().map(|member| member.assigned.clone()).collect();
            let count = read(members).len();
            panic!("{}: not {what}: assigned {given:?}, {count} records", program.name);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
