//! Joining a group: newcomers, known members, and who is refused.

use super::member::{Member, Waiting, millis};
use super::message::{Answer, Join, JoinAnswer, JoinedMember, Ticket};
use super::records::NAME_BYTES_MAX;
use super::state::{Group, State, Step};
use crate::wire::error::ErrorCode;

/// Member ids that may be handed out and not yet used.
const PENDING_JOINS_MAX: usize = 10_000;

/// A refused join: the member id to be told, and why.
pub(super) type Refusal = (String, ErrorCode);

impl Group {
    pub(super) fn join(&mut self, ticket: Ticket, join: Join, step: &mut Step<'_>) {
        if let Err((member_id, error)) = self.admit(ticket, join, step) {
            step.answer(ticket, JoinAnswer::refused(&member_id, error));
        }
    }

    fn admit(&mut self, ticket: Ticket, join: Join, step: &mut Step<'_>) -> Result<(), Refusal> {
        if let Err(error) = validate(&join, step) {
            return Err((join.member_id, error));
        }
        if !self.has_room_for(&join.member_id, step.settings.members_max) {
            return Err((String::new(), ErrorCode::GROUP_MAX_SIZE_REACHED));
        }
        if !self.supports(&join) {
            return Err((join.member_id, ErrorCode::INCONSISTENT_GROUP_PROTOCOL));
        }
        if join.member_id.is_empty() {
            self.join_newcomer(ticket, join, step)
        } else {
            self.join_known(ticket, join, step)
        }
    }

    fn join_newcomer(
        &mut self,
        ticket: Ticket,
        join: Join,
        step: &mut Step<'_>,
    ) -> Result<(), Refusal> {
        let name = join.instance_id.as_deref().unwrap_or(&join.client_id);
        let uuid = uuid::Builder::from_random_bytes(join.random.to_be_bytes()).into_uuid();
        let member_id = format!("{name}-{uuid}");
        let of_instance = join.instance_id.as_ref().and_then(|id| self.statics.get(id));
        if let Some(old_id) = of_instance.cloned() {
            self.rejoin_static(ticket, join, (old_id, member_id), step);
        } else if join.require_member_id && join.instance_id.is_none() {
            if self.pending_joins.len() >= PENDING_JOINS_MAX {
                return Err((String::new(), ErrorCode::GROUP_MAX_SIZE_REACHED));
            }
            let lapses = step.now.monotonic + millis(join.session_timeout_ms);
            self.pending_joins.insert(member_id.clone(), lapses);
            return Err((member_id, ErrorCode::MEMBER_ID_REQUIRED));
        } else {
            self.add_member(ticket, member_id, join, step);
        }
        Ok(())
    }

    fn join_known(
        &mut self,
        ticket: Ticket,
        join: Join,
        step: &mut Step<'_>,
    ) -> Result<(), Refusal> {
        let member_id = join.member_id.clone();
        if join.instance_id.is_none() && self.pending_joins.remove(&member_id).is_some() {
            self.add_member(ticket, member_id, join, step);
            return Ok(());
        }
        if let Err(error) = self.validate_member(&member_id, join.instance_id.as_ref()) {
            return Err((member_id, error));
        }
        let says_the_same =
            self.members.get(&member_id).is_some_and(|member| member.protocols == join.protocols);
        let is_settled = match self.state {
            // The answer was lost on its way: it is given again.
            State::CompletingRebalance => says_the_same,
            // A leader joins again when it sees a reason to assign anew.
            State::Stable => says_the_same && !self.is_leader(&member_id),
            _ => false,
        };
        if is_settled {
            self.heard_of(&member_id, step);
            let answer = self.joined(&member_id);
            step.answer(ticket, answer);
        } else {
            self.update_member(&member_id, ticket, join, step);
            self.rebalance(step);
        }
        Ok(())
    }

    fn add_member(&mut self, ticket: Ticket, member_id: String, join: Join, step: &mut Step<'_>) {
        if self.members.is_empty() {
            self.protocol_type = Some(join.protocol_type.clone());
        }
        if self.leader.is_none() {
            self.leader = Some(member_id.clone());
        }
        if let Some(instance_id) = &join.instance_id {
            self.statics.insert(instance_id.clone(), member_id.clone());
        }
        if let State::PreparingRebalance { initial: Some(initial), .. } = &mut self.state {
            initial.newcomer = true;
        }
        let member = Member::new(join, ticket, step.now.monotonic);
        self.members.insert(member_id, member);
        self.rebalance(step);
    }

    /// Takes what a member says of itself this time, and lets it wait.
    pub(super) fn update_member(
        &mut self,
        member_id: &str,
        ticket: Ticket,
        join: Join,
        step: &mut Step<'_>,
    ) {
        self.hold(member_id, Waiting::Join(ticket), step);
        let Some(member) = self.members.get_mut(member_id) else { return };
        member.session_timeout = millis(join.session_timeout_ms);
        member.rebalance_timeout = join.rebalance_timeout();
        member.protocols = join.protocols;
        member.client_id = join.client_id;
        member.client_host = join.client_host;
    }

    /// The answer to a member of the generation.
    pub(super) fn joined(&self, member_id: &str) -> Answer {
        let members = if self.is_leader(member_id) { self.joined_members() } else { Vec::new() };
        Answer::Join(JoinAnswer {
            error: ErrorCode::NONE,
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol_name: self.protocol.clone(),
            leader: self.leader.clone().unwrap_or_default(),
            skip_assignment: false,
            member_id: member_id.to_owned(),
            members,
        })
    }

    fn joined_members(&self) -> Vec<JoinedMember> {
        let protocol = self.protocol.as_deref().unwrap_or("");
        let members = self.members.iter();
        members
            .map(|(member_id, member)| JoinedMember {
                member_id: member_id.clone(),
                instance_id: member.instance_id.clone(),
                metadata: member.metadata(protocol).cloned().unwrap_or_default(),
            })
            .collect()
    }

    fn has_room_for(&self, member_id: &str, members_max: usize) -> bool {
        match self.state {
            State::Empty | State::Dead => true,
            State::PreparingRebalance { .. } => {
                let joining = self.members.values().filter(|member| member.is_joining());
                self.members.contains_key(member_id) || joining.count() < members_max
            }
            State::CompletingRebalance | State::Stable => {
                self.members.contains_key(member_id) || self.members.len() < members_max
            }
        }
    }

    /// Whether there is a protocol that the newcomer and all members speak.
    fn supports(&self, join: &Join) -> bool {
        if self.members.is_empty() {
            return !join.protocol_type.is_empty() && !join.protocols.is_empty();
        }
        let is_common = |name: &str| self.members.values().all(|m| m.metadata(name).is_some());
        self.protocol_type.as_ref() == Some(&join.protocol_type)
            && join.protocols.iter().any(|(name, _)| is_common(name))
    }
}

fn validate(join: &Join, step: &Step<'_>) -> Result<(), ErrorCode> {
    let bounds = step.settings.session_timeout_min..=step.settings.session_timeout_max;
    if join.session_timeout_ms < 0 || !bounds.contains(&millis(join.session_timeout_ms)) {
        return Err(ErrorCode::INVALID_SESSION_TIMEOUT);
    }
    let protocols = join.protocols.iter().map(|(name, _)| name.as_str());
    let texts = [join.client_id.as_str(), &join.client_host, &join.protocol_type];
    let instance_id = join.instance_id.as_deref().unwrap_or("-");
    let mut names = protocols.chain(texts).chain([instance_id]);
    let is_sound = names.all(|name| name.len() <= NAME_BYTES_MAX)
        && !instance_id.is_empty()
        && join.bytes() <= step.settings.member_bytes_max;
    if is_sound { Ok(()) } else { Err(ErrorCode::INVALID_REQUEST) }
}
