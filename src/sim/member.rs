//! Members of a consumer group: they join, the leader assigns, everybody heartbeats, some leave.
//!
//! A generation is on disk with its assignment and not before, as in Kafka: one that nobody got an
//! assignment in may be opened again after a crash, by other members.
//!
//! Invariants
//!   B1  A member gets what the leader of its generation gave it.
//!   B2  A generation in which a member got its assignment has one leader for ever, and none before
//!       it is opened again, whatever happens to the node in between.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::Stage;
use super::client::{Client, Lost};
use crate::io::Io;
use crate::io::sim::SimIo;
use crate::wire::api::{ApiKey, heartbeat, join_group, leave_group, sync_group};
use crate::wire::error::ErrorCode;

const GROUP: &str = "together";
const PAUSE: Duration = Duration::from_millis(10);
const SESSION_MS: i32 = 200;
const REBALANCE_MS: i32 = 100;

/// Generations of the group, as the members learned of them.
#[derive(Default)]
pub struct Generations {
    /// By generation and leader: what the leader gave to whom.
    given: BTreeMap<(i32, String), BTreeMap<String, Vec<u8>>>,
    /// The leaders of generations in which a member got its assignment.
    assigned: BTreeMap<i32, String>,
}

struct Joined {
    generation: i32,
    leader: String,
    others: Vec<String>,
}

struct Member {
    io: SimIo,
    stage: Rc<Stage>,
    client: Client,
    id: String,
}

/// What ends a step early.
enum Break {
    /// No answer, or a code that passes.
    Wait,
    /// The member id is not known (any more).
    Forgotten,
}

impl From<Lost> for Break {
    fn from(_: Lost) -> Break {
        Break::Wait
    }
}

pub async fn run(io: SimIo, stage: Rc<Stage>) {
    let client = stage.client(&io);
    let mut member = Member { io, stage, client, id: String::new() };
    while !member.stage.is_over() {
        match member.take_part().await {
            Ok(()) => {}
            Err(Break::Wait) => member.io.sleep(PAUSE).await,
            Err(Break::Forgotten) => member.id.clear(),
        }
    }
}

fn check(code: i16) -> Result<(), Break> {
    match ErrorCode(code) {
        ErrorCode::NONE => Ok(()),
        ErrorCode::UNKNOWN_MEMBER_ID => Err(Break::Forgotten),
        ErrorCode::REBALANCE_IN_PROGRESS
        | ErrorCode::ILLEGAL_GENERATION
        | ErrorCode::COORDINATOR_LOAD_IN_PROGRESS
        | ErrorCode::COORDINATOR_NOT_AVAILABLE
        | ErrorCode::NOT_COORDINATOR
        | ErrorCode::KAFKA_STORAGE_ERROR
        | ErrorCode::UNKNOWN_SERVER_ERROR => Err(Break::Wait),
        code => panic!("a member is answered with {code}"),
    }
}

impl Member {
    /// From joining to the next rebalance.
    async fn take_part(&mut self) -> Result<(), Break> {
        let joined = self.join().await?;
        self.sync(&joined).await?;
        self.stage.history().met.rebalances += 1;
        loop {
            if self.io.random().is_multiple_of(40) || self.stage.is_over() {
                return self.leave().await;
            }
            self.heartbeat(joined.generation).await?;
            self.io.sleep(PAUSE).await;
        }
    }

    async fn join(&mut self) -> Result<Joined, Break> {
        let id = self.id.clone();
        let newest = self.stage.history().generations.newest();
        let protocol =
            join_group::JoinGroupRequestProtocol { name: "range", metadata: b"subscription" };
        let request = join_group::Request {
            group_id: GROUP,
            session_timeout_ms: SESSION_MS,
            rebalance_timeout_ms: REBALANCE_MS,
            member_id: &id,
            protocol_type: "consumer",
            protocols: vec![protocol],
            ..Default::default()
        };
        let answer = self.client.call(ApiKey::JoinGroup, 9, &request).await?;
        let answer: join_group::Response<'_> = answer.decode();
        if ErrorCode(answer.error_code) == ErrorCode::MEMBER_ID_REQUIRED {
            self.id = answer.member_id.to_string();
            return Err(Break::Wait);
        }
        check(answer.error_code)?;
        self.id = answer.member_id.to_string();
        let others = answer.members.iter().map(|member| member.member_id.to_string()).collect();
        let joined =
            Joined { generation: answer.generation_id, leader: answer.leader.into(), others };
        assert!(joined.generation >= newest, "{} after {newest}", joined.generation);
        self.stage.history().generations.check_leader(&joined);
        Ok(joined)
    }

    async fn sync(&mut self, joined: &Joined) -> Result<(), Break> {
        let id = self.id.clone();
        let mut given = BTreeMap::new();
        for other in &joined.others {
            given.insert(other.clone(), format!("{other} in {}", joined.generation).into_bytes());
        }
        let assignments: Vec<_> = given
            .iter()
            .map(|(member_id, assignment)| sync_group::SyncGroupRequestAssignment {
                member_id,
                assignment,
            })
            .collect();
        let request = sync_group::Request {
            group_id: GROUP,
            generation_id: joined.generation,
            member_id: &id,
            protocol_type: Some("consumer"),
            protocol_name: Some("range"),
            assignments,
            ..Default::default()
        };
        if joined.leader == id {
            self.stage.history().generations.give(joined, given.clone());
        }
        let answer = self.client.call(ApiKey::SyncGroup, 5, &request).await?;
        let answer: sync_group::Response<'_> = answer.decode();
        check(answer.error_code)?;
        self.stage.history().generations.got(joined, &id, answer.assignment);
        Ok(())
    }

    async fn heartbeat(&mut self, generation_id: i32) -> Result<(), Break> {
        let id = self.id.clone();
        let request = heartbeat::Request {
            group_id: GROUP,
            generation_id,
            member_id: &id,
            group_instance_id: None,
        };
        let answer = self.client.call(ApiKey::Heartbeat, 4, &request).await?;
        let answer: heartbeat::Response = answer.decode();
        check(answer.error_code)
    }

    async fn leave(&mut self) -> Result<(), Break> {
        let id = std::mem::take(&mut self.id);
        let member =
            leave_group::MemberIdentity { member_id: &id, group_instance_id: None, reason: None };
        let request =
            leave_group::Request { group_id: GROUP, members: vec![member], ..Default::default() };
        let answer = self.client.call(ApiKey::LeaveGroup, 5, &request).await?;
        let answer: leave_group::Response<'_> = answer.decode();
        check(answer.error_code)
    }
}

impl Generations {
    /// The last generation in which a member got its assignment.
    fn newest(&self) -> i32 {
        self.assigned.last_key_value().map_or(0, |(generation, _)| *generation)
    }

    fn check_leader(&self, joined: &Joined) {
        let known = self.assigned.get(&joined.generation);
        assert!(
            known.is_none_or(|known| *known == joined.leader),
            "generation {} is led by {} and was led by {known:?}",
            joined.generation,
            joined.leader
        );
    }

    fn give(&mut self, joined: &Joined, given: BTreeMap<String, Vec<u8>>) {
        self.given.insert((joined.generation, joined.leader.clone()), given);
    }

    fn got(&mut self, joined: &Joined, member: &str, assignment: &[u8]) {
        self.check_leader(joined);
        let given = self.given.get(&(joined.generation, joined.leader.clone()));
        assert_eq!(
            given.and_then(|given| given.get(member)).map(Vec::as_slice),
            Some(assignment),
            "member {member} has another assignment in generation {}",
            joined.generation
        );
        self.assigned.insert(joined.generation, joined.leader.clone());
    }
}
