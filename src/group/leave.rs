//! Leaving a group, one member or several at once, by member id or by instance id.

use super::message::{Answer, Leaver, Ticket};
use super::state::{Group, Step};
use crate::wire::error::ErrorCode;

impl Group {
    pub(super) fn leave(&mut self, ticket: Ticket, leavers: Vec<Leaver>, step: &mut Step<'_>) {
        let members_before = self.members.len();
        let code_of = |leaver: Leaver, group: &mut Group, step: &mut Step<'_>| {
            let code = group.let_go(&leaver, step);
            (leaver, code)
        };
        let members = leavers.into_iter().map(|leaver| code_of(leaver, self, step)).collect();
        step.answer(ticket, Answer::Leave { error: ErrorCode::NONE, members });
        if self.members.len() != members_before {
            self.rebalance(step);
        } else {
            // Perhaps an id was given back that the rebalance waited for.
            self.complete_if_all_joined(step);
        }
    }

    fn let_go(&mut self, leaver: &Leaver, step: &mut Step<'_>) -> ErrorCode {
        let member_id = match &leaver.instance_id {
            None if self.pending_joins.remove(&leaver.member_id).is_some() => {
                return ErrorCode::NONE;
            }
            None => &leaver.member_id,
            Some(instance_id) => match self.statics.get(instance_id) {
                None => return ErrorCode::UNKNOWN_MEMBER_ID,
                // An administrator names the instance only.
                Some(current) if leaver.member_id.is_empty() => current,
                Some(current) if *current != leaver.member_id => {
                    return ErrorCode::FENCED_INSTANCE_ID;
                }
                Some(current) => current,
            },
        };
        if !self.members.contains_key(member_id) {
            return ErrorCode::UNKNOWN_MEMBER_ID;
        }
        let member_id = member_id.clone();
        self.remove_member(&member_id, ErrorCode::UNKNOWN_MEMBER_ID, step);
        ErrorCode::NONE
    }
}
