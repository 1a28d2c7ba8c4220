//! A world for groups: a clock that is set, a log that keeps what is durable, and clients that ask.
//!
//! Stories follow the KIPs; `walk` takes random steps and checks every invariant after each.

mod golden;
mod offsets;
mod restart;
mod statics;
mod stories;
mod walk;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::base::time::{Instant, UnixMillis};
use crate::wire::error::ErrorCode;

struct World {
    groups: Groups,
    settings: Settings,
    now: Now,
    last_ticket: u64,
    answers: BTreeMap<Ticket, Answer>,
    /// Writes that were asked for and not reported.
    open: Vec<(WriteId, Vec<Record>)>,
    /// What is durable.
    log: Vec<Record>,
    /// Writes are durable at once.
    is_prompt: bool,
}

impl World {
    fn new() -> World {
        World::with(Settings::default())
    }

    fn with(settings: Settings) -> World {
        let now = Now { monotonic: Instant(1_000_000_000), wall: UnixMillis(1_700_000_000_000) };
        World {
            groups: Groups::new(settings.clone()),
            settings,
            now,
            last_ticket: 0,
            answers: BTreeMap::new(),
            open: Vec::new(),
            log: Vec::new(),
            is_prompt: true,
        }
    }

    /// A world whose groups do not wait for more members to come.
    fn hasty() -> World {
        World::with(Settings { initial_rebalance_delay: Duration::ZERO, ..Settings::default() })
    }

    fn handle(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.groups.handle(self.now, input, &mut effects);
        self.groups.check();
        for effect in effects {
            match effect {
                Effect::Answer { ticket, answer } => {
                    let earlier = self.answers.insert(ticket, answer);
                    assert_eq!(earlier, None, "G1: {ticket:?} is answered twice");
                }
                Effect::Write { write, records, .. } => self.open.push((write, records)),
            }
        }
        if self.is_prompt {
            self.settle(ErrorCode::NONE);
        }
    }

    fn ask(&mut self, request: Request) -> Ticket {
        self.ask_of("g", request)
    }

    fn ask_of(&mut self, group_id: &str, request: Request) -> Ticket {
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        self.handle(Input::Request { ticket, group_id: group_id.to_owned(), request });
        ticket
    }

    /// Reports every open write.
    fn settle(&mut self, error: ErrorCode) {
        while !self.open.is_empty() {
            let (write, records) = self.open.remove(0);
            if error.is_none() {
                self.log.extend(records);
            }
            self.handle(Input::Written { write, error });
        }
    }

    /// Lets time pass, with every timeout where it belongs.
    fn advance(&mut self, millis: u64) {
        let end = self.now.monotonic + Duration::from_millis(millis);
        for _ in 0..10_000 {
            match self.groups.next_timeout().filter(|(at, _)| *at <= end) {
                Some((at, _)) => self.set_clock(at.max(self.now.monotonic)),
                None => {
                    self.set_clock(end);
                    return;
                }
            }
            self.handle(Input::Timeout);
        }
        panic!("the timeouts never end");
    }

    fn set_clock(&mut self, to: Instant) {
        let passed = to.saturating_since(self.now.monotonic);
        let millis = i64::try_from(passed.as_millis()).expect("a test is short");
        self.now = Now { monotonic: to, wall: UnixMillis(self.now.wall.0 + millis) };
    }

    fn restart(&mut self) {
        let mut groups = Groups::new(self.settings.clone());
        for record in &self.log {
            groups.replay(&record.key, record.value.as_deref()).expect("our own record");
        }
        groups.loaded(self.now);
        groups.check();
        self.groups = groups;
        self.open.clear();
    }

    fn joined(&mut self, ticket: Ticket) -> JoinAnswer {
        match self.answers.remove(&ticket) {
            Some(Answer::Join(answer)) => answer,
            other => panic!("{ticket:?} has no answer to a join, but {other:?}"),
        }
    }

    fn synced(&mut self, ticket: Ticket) -> SyncAnswer {
        match self.answers.remove(&ticket) {
            Some(Answer::Sync(answer)) => answer,
            other => panic!("{ticket:?} has no answer to a sync, but {other:?}"),
        }
    }

    fn is_waiting(&self, ticket: Ticket) -> bool {
        !self.answers.contains_key(&ticket)
    }

    fn beat(&mut self, member_id: &str, generation: i32) -> ErrorCode {
        let member_id = member_id.to_owned();
        let beat = Heartbeat { generation, member_id, instance_id: None };
        let ticket = self.ask(Request::Heartbeat(beat));
        match self.answers.remove(&ticket) {
            Some(Answer::Heartbeat(code)) => code,
            other => panic!("a heartbeat is answered at once, not {other:?}"),
        }
    }

    fn leave(&mut self, leavers: &[(&str, Option<&str>)]) -> Vec<ErrorCode> {
        let leavers = leavers.iter().map(|(member_id, instance_id)| Leaver {
            member_id: (*member_id).to_owned(),
            instance_id: instance_id.map(str::to_owned),
        });
        let ticket = self.ask(Request::Leave(leavers.collect()));
        match self.answers.remove(&ticket) {
            Some(Answer::Leave { members, .. }) => members.iter().map(|(_, code)| *code).collect(),
            other => panic!("a leave is answered at once, not {other:?}"),
        }
    }

    fn sync(&mut self, member_id: &str, generation: i32, assignments: &[(&str, &str)]) -> Ticket {
        let assignments = assignments.iter().map(|(member_id, assignment)| {
            ((*member_id).to_owned(), Bytes::copy_from_slice(assignment.as_bytes()))
        });
        self.ask(Request::Sync(Sync {
            generation,
            member_id: member_id.to_owned(),
            instance_id: None,
            protocol_type: None,
            protocol_name: None,
            assignments: assignments.collect(),
        }))
    }

    fn state(&self) -> &'static str {
        self.groups.describe("g").map_or("none", |described| described.state)
    }

    /// A stable group of that many members in a hasty world, the leader first.
    fn stable(&mut self, count: usize) -> (Vec<String>, i32) {
        let mut ids: Vec<String> = Vec::new();
        let mut generation = 0;
        for number in 0..count {
            let newcomer = self.ask(Request::Join(join(&format!("c{number}"))));
            let again: Vec<Ticket> =
                ids.iter().map(|id| self.ask(Request::Join(join_as(id)))).collect();
            for ticket in again {
                self.joined(ticket);
            }
            let answer = self.joined(newcomer);
            generation = answer.generation;
            ids.push(answer.member_id);
        }
        let followers: Vec<Ticket> =
            ids.iter().skip(1).map(|id| self.sync(id, generation, &[])).collect();
        let shares: Vec<(&str, &str)> = ids.iter().map(|id| (id.as_str(), id.as_str())).collect();
        let leader = self.sync(&ids[0], generation, &shares);
        assert_eq!(self.synced(leader).assignment, ids[0]);
        for (ticket, id) in followers.into_iter().zip(ids.iter().skip(1)) {
            assert_eq!(self.synced(ticket).assignment, *id);
        }
        assert_eq!(self.state(), "Stable");
        (ids, generation)
    }
}

/// Metadata of a consumer that subscribes to one topic.
fn subscription(topic: &str) -> Bytes {
    let length = u16::try_from(topic.len()).expect("a short name").to_be_bytes();
    let parts: [&[u8]; 4] = [&[0, 3, 0, 0, 0, 1], &length, topic.as_bytes(), &[255; 4]];
    parts.concat().into()
}

/// A newcomer's join; 10 s session, 60 s rebalance, topic `t`.
fn join(client_id: &str) -> Join {
    Join {
        member_id: String::new(),
        instance_id: None,
        client_id: client_id.to_owned(),
        client_host: "/127.0.0.1".to_owned(),
        session_timeout_ms: 10_000,
        rebalance_timeout_ms: 60_000,
        protocol_type: "consumer".to_owned(),
        protocols: vec![("range".to_owned(), subscription("t"))],
        reason: Some("a test".to_owned()),
        require_member_id: false,
        may_skip_assignment: true,
        random: 7,
    }
}

fn join_as(member_id: &str) -> Join {
    Join { member_id: member_id.to_owned(), ..join("c") }
}

fn static_join(instance_id: &str, random: u128) -> Join {
    Join { instance_id: Some(instance_id.to_owned()), random, ..join("c") }
}
