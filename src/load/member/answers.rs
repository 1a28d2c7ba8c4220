//! What a member makes of the coordinator's answers. Pure.

use std::collections::BTreeMap;

use super::{HEARTBEAT, Member, Stage, YIELD_ATTEMPTS_MAX, later};
use crate::load::assign::{assigned, range, subscribed};
use crate::load::consumer::Consumer;
use crate::load::producer::Strange;
use crate::load::recorder::Recorder;
use crate::wire::api::{
    ApiKey, find_coordinator, heartbeat, join_group, leave_group, offset_commit, offset_fetch,
    sync_group,
};
use crate::wire::error::ErrorCode;
use crate::wire::header::{decode_body, read_response_header};
use crate::wire::primitive::{Reader, Wire};

impl Member {
    /// The answer to the last request: `frame` is what follows its length.
    pub fn answer(
        &mut self,
        frame: &[u8],
        now: u64,
        consumer: &mut Consumer,
        recorder: &mut Recorder,
    ) -> Result<(), Strange> {
        let api = self.asked.take().ok_or(Strange)?;
        let mut reader = Reader::new(frame);
        let version = self.shape.target.version(api);
        let correlation = read_response_header(&mut reader, api, version);
        if correlation != Ok(self.correlation) {
            return Err(Strange);
        }
        let body = Body { bytes: reader.rest(), api, version };
        let code = match api {
            ApiKey::FindCoordinator => self.found(&body.read()?, version),
            ApiKey::JoinGroup => self.joined(&body.read()?),
            ApiKey::SyncGroup => self.divided(&body.read()?, now, recorder),
            ApiKey::OffsetFetch => self.resumed(&body.read()?, version, now, consumer),
            ApiKey::OffsetCommit => self.was_committed(&body.read()?, recorder),
            ApiKey::LeaveGroup => {
                body.read::<leave_group::Response<'_>>()?;
                self.stage = Stage::Gone;
                ErrorCode::NONE
            }
            _ => ErrorCode(body.read::<heartbeat::Response>()?.error_code),
        };
        self.judge(code, now, consumer, recorder);
        if self.is_leaving && matches!(self.stage, Stage::Out | Stage::Dividing(_)) {
            self.part();
        } else if self.is_leaving && matches!(self.stage, Stage::Resuming(_) | Stage::Settled) {
            self.give_back(consumer);
        }
        Ok(())
    }

    fn found(&mut self, answer: &find_coordinator::Response<'_>, version: i16) -> ErrorCode {
        let (node, code) = match answer.coordinators.first() {
            Some(found) if version >= 4 => (found.node_id, found.error_code),
            _ => (answer.node_id, answer.error_code),
        };
        let code = ErrorCode(code);
        self.coordinator = code.is_none().then_some(node);
        code
    }

    fn joined(&mut self, answer: &join_group::Response<'_>) -> ErrorCode {
        let code = ErrorCode(answer.error_code);
        if code.is_none() || code == ErrorCode::MEMBER_ID_REQUIRED {
            self.id = answer.member_id.to_string();
        }
        if code == ErrorCode::MEMBER_ID_REQUIRED {
            // The first half of joining, and no error (KIP-394).
            return ErrorCode::NONE;
        }
        if code.is_none() {
            self.generation = answer.generation_id;
            let is_leader = answer.leader == self.id && !answer.skip_assignment;
            let members = answer.members.iter().filter(|_| is_leader);
            let members = members.map(|m| (m.member_id, subscribed(m.metadata))).collect();
            self.stage = Stage::Dividing(range(&members, &self.counts()));
        }
        code
    }

    /// How many partitions the topics have. Topics of other members that this run does not know
    /// stay without reader as long as one of its members leads.
    fn counts(&self) -> BTreeMap<&str, i32> {
        let target = &self.shape.target;
        let mut counts = BTreeMap::new();
        for place in &target.places {
            let Some(topic) = target.topics.get(place.topic) else { continue };
            *counts.entry(topic.as_str()).or_insert(0) += 1;
        }
        counts
    }

    fn divided(
        &mut self,
        answer: &sync_group::Response<'_>,
        now: u64,
        recorder: &mut Recorder,
    ) -> ErrorCode {
        let code = ErrorCode(answer.error_code);
        if code.is_error() {
            return code;
        }
        let Some(share) = assigned(answer.assignment) else {
            recorder.error("UNREADABLE_ASSIGNMENT");
            self.stage = Stage::Out;
            return ErrorCode::NONE;
        };
        let target = &self.shape.target;
        let places = target.places.iter().enumerate().filter(|(_, place)| {
            let topic = target.topics.get(place.topic).map_or("", String::as_str);
            share.iter().any(|(name, of)| *name == topic && of.contains(&place.partition))
        });
        self.stage = Stage::Resuming(places.map(|(index, _)| index).collect());
        self.heartbeat_at = later(now, HEARTBEAT);
        recorder.assigned();
        ErrorCode::NONE
    }

    fn resumed(
        &mut self,
        answer: &offset_fetch::Response<'_>,
        version: i16,
        now: u64,
        consumer: &mut Consumer,
    ) -> ErrorCode {
        let Stage::Resuming(places) = &self.stage else { return ErrorCode::NONE };
        let mut codes = vec![ErrorCode(answer.error_code)];
        let mut offsets = BTreeMap::new();
        if version >= 8 {
            for group in &answer.groups {
                codes.push(ErrorCode(group.error_code));
                for topic in &group.topics {
                    for p in &topic.partitions {
                        codes.push(ErrorCode(p.error_code));
                        offsets.insert((topic.name, p.partition_index), p.committed_offset);
                    }
                }
            }
        } else {
            for topic in &answer.topics {
                for p in &topic.partitions {
                    codes.push(ErrorCode(p.error_code));
                    offsets.insert((topic.name, p.partition_index), p.committed_offset);
                }
            }
        }
        if let Some(code) = codes.into_iter().find(|code| code.is_error()) {
            return code;
        }
        let target = &self.shape.target;
        let mut positions = Vec::new();
        self.committed.clear();
        for index in places {
            let Some(place) = target.places.get(*index) else { continue };
            let topic = target.topics.get(place.topic).map_or("", String::as_str);
            let committed = offsets.get(&(topic, place.partition)).copied().unwrap_or(-1);
            if committed >= 0 {
                self.committed.insert(*index, committed);
            }
            positions.push((*index, if committed >= 0 { committed } else { place.start }));
        }
        consumer.assign(&positions);
        self.stage = Stage::Settled;
        self.commit_at = later(now, self.shape.plan.commit_interval);
        ErrorCode::NONE
    }

    /// Notes what is committed; the first code that is none decides about the rest.
    fn was_committed(
        &mut self,
        answer: &offset_commit::Response<'_>,
        recorder: &mut Recorder,
    ) -> ErrorCode {
        let codes = answer.topics.iter().flat_map(|topic| {
            topic.partitions.iter().map(|p| ((topic.name, p.partition_index), p.error_code))
        });
        let codes: BTreeMap<(&str, i32), i16> = codes.collect();
        let target = &self.shape.target;
        let (mut left, mut worst) = (Vec::new(), ErrorCode::NONE);
        for (index, position) in std::mem::take(&mut self.committing) {
            let Some(place) = target.places.get(index) else { continue };
            let topic = target.topics.get(place.topic).map_or("", String::as_str);
            let code = codes.get(&(topic, place.partition)).copied();
            let code = code.map_or(ErrorCode::UNKNOWN_SERVER_ERROR, ErrorCode);
            if code.is_none() {
                self.committed.insert(index, position);
            } else {
                worst = code;
                left.push((index, position));
            }
        }
        recorder.committed();
        if let Stage::Yielding { positions, attempts } = &mut self.stage {
            *attempts += 1;
            let again = worst.is_retriable() && *attempts < YIELD_ATTEMPTS_MAX;
            *positions = if again { left } else { Vec::new() };
            self.yielded();
        }
        worst
    }

    /// What a code means for a member, whatever was asked.
    fn judge(
        &mut self,
        code: ErrorCode,
        now: u64,
        consumer: &mut Consumer,
        recorder: &mut Recorder,
    ) {
        match code {
            ErrorCode::NONE => {
                self.pause = std::time::Duration::ZERO;
                return;
            }
            // Not an error: somebody joined or left.
            ErrorCode::REBALANCE_IN_PROGRESS => {
                match self.stage {
                    Stage::Settled => self.give_back(consumer),
                    Stage::Dividing(_) | Stage::Resuming(_) => self.stage = Stage::Out,
                    _ => {}
                }
                return;
            }
            ErrorCode::UNKNOWN_MEMBER_ID | ErrorCode::FENCED_INSTANCE_ID => {
                self.id.clear();
                self.expelled(consumer);
            }
            ErrorCode::ILLEGAL_GENERATION => self.expelled(consumer),
            ErrorCode::NOT_COORDINATOR | ErrorCode::COORDINATOR_NOT_AVAILABLE => {
                self.coordinator = None;
            }
            _ => {}
        }
        recorder.error(&code.to_string());
        self.rest(now);
    }
}

/// The part of a frame behind its header.
struct Body<'a> {
    bytes: &'a [u8],
    api: ApiKey,
    version: i16,
}

impl<'a> Body<'a> {
    fn read<T: Wire<'a>>(&self) -> Result<T, Strange> {
        decode_body(self.bytes, self.api, self.version).map_err(|_| Strange)
    }
}
