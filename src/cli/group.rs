//! `corelog group`: list and describe consumer groups.

use std::collections::BTreeMap;
use std::io::Write;

use serde_json::json;

use super::Client;
use super::table::Table;
use crate::client::cluster::{Attempt, Cluster, LATEST, To, judge, persist};
use crate::client::connection::NEWEST;
use crate::client::failure::Failure;
use crate::wire::api::{ApiKey, describe_groups, list_groups, offset_fetch};
use crate::wire::error::ErrorCode;
use crate::wire::primitive::{Context, DecodeError, Reader, Wire};

/// OffsetFetch names topics by name up to this version.
const OFFSET_FETCH_WITH_NAMES: i16 = 9;
/// OffsetFetch asks for several groups at once from this version on.
const OFFSET_FETCH_WITH_GROUPS: i16 = 8;

#[derive(clap::Subcommand)]
pub enum Command {
    /// List the groups.
    List(List),
    /// Tell members, committed offsets and lag of groups.
    Describe(Describe),
}

#[derive(clap::Args)]
pub struct List {
    #[command(flatten)]
    client: Client,
}

#[derive(clap::Args)]
pub struct Describe {
    #[arg(required = true)]
    groups: Vec<String>,
    #[command(flatten)]
    client: Client,
}

impl Command {
    pub fn run(&self, out: &mut dyn Write) -> Result<(), Failure> {
        match self {
            Command::List(list) => list.run(out),
            Command::Describe(describe) => describe.run(out),
        }
    }
}

impl List {
    fn run(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let mut cluster = Cluster::reach(&self.client.bootstrap)?;
        cluster.topics(Some(&[]), false)?;
        let mut groups = Vec::new();
        for broker in cluster.brokers() {
            groups.extend(persist(|| groups_at(&mut cluster, broker))?);
        }
        groups.sort();
        let mut table = Table::new(&["GROUP", "STATE", "PROTOCOL"]);
        for [group, state, protocol] in groups {
            if self.client.json {
                let row = json!({ "group": group, "state": state, "protocol": protocol });
                writeln!(out, "{row}")?;
            } else {
                table.row([group, state, protocol]);
            }
        }
        if !self.client.json {
            table.write(out)?;
        }
        Ok(())
    }
}

/// Name, state and protocol type of the groups that a broker coordinates.
fn groups_at(cluster: &mut Cluster, broker: i32) -> Result<Attempt<Vec<[String; 3]>>, Failure> {
    let request = list_groups::Request::default();
    let answer = cluster.call(To::Node(broker), ApiKey::ListGroups, NEWEST, &request)?;
    let answer: list_groups::Response<'_> = answer.decode()?;
    let what = format!("the groups of broker {broker}");
    if let Attempt::Again(why) = judge(ErrorCode(answer.error_code), &what, None)? {
        return Ok(Attempt::Again(why));
    }
    let row = |group: &list_groups::ListedGroup<'_>| {
        [group.group_id, group.group_state, group.protocol_type].map(str::to_string)
    };
    Ok(Attempt::Done(answer.groups.iter().map(row).collect()))
}

/// A group as its coordinator describes it.
struct Group {
    name: String,
    state: String,
    assignor: String,
    members: Vec<Member>,
}

struct Member {
    id: String,
    instance: Option<String>,
    client: String,
    host: String,
    /// Topics and their partitions.
    assigned: Vec<(String, Vec<i32>)>,
}

/// A partition with a committed offset, or a member, or both.
struct Line {
    topic: String,
    partition: i32,
    committed: Option<i64>,
    end: Option<i64>,
    member: Option<usize>,
}

impl Line {
    fn lag(&self) -> Option<i64> {
        Some((self.end? - self.committed?).max(0))
    }
}

impl Describe {
    fn run(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let mut cluster = Cluster::reach(&self.client.bootstrap)?;
        for (index, name) in self.groups.iter().enumerate() {
            let group = persist(|| describe(&mut cluster, name))?;
            let committed = persist(|| committed(&mut cluster, name))?;
            let lines = lines(&mut cluster, &group, committed)?;
            if self.client.json {
                writeln!(out, "{}", json_group(&group, &lines))?;
            } else {
                if index > 0 {
                    writeln!(out)?;
                }
                write_group(out, &group, &lines)?;
            }
        }
        Ok(())
    }
}

fn describe(cluster: &mut Cluster, name: &str) -> Result<Attempt<Group>, Failure> {
    let to = cluster.coordinator(name)?;
    let request = describe_groups::Request { groups: vec![name], ..Default::default() };
    let answer = cluster.call(to, ApiKey::DescribeGroups, NEWEST, &request)?;
    let answer: describe_groups::Response<'_> = answer.decode()?;
    let what = format!("group `{name}`");
    let absent = || {
        let remedy = "`corelog group list` shows those there are";
        Failure::Failed(format!("there is no group `{name}`: {remedy}"))
    };
    let group = answer.groups.first().ok_or_else(absent)?;
    let code = ErrorCode(group.error_code);
    // Before version 6 a group that is not there is described as dead.
    if code == ErrorCode::GROUP_ID_NOT_FOUND || (code.is_none() && group.group_state == "Dead") {
        return Err(absent());
    }
    if let Attempt::Again(why) = judge(code, &what, group.error_message)? {
        return Ok(Attempt::Again(why));
    }
    let member = |member: &describe_groups::DescribedGroupMember<'_>| Member {
        id: member.member_id.to_string(),
        instance: member.group_instance_id.map(str::to_string),
        client: member.client_id.to_string(),
        host: member.client_host.to_string(),
        assigned: assignment(member.member_assignment).unwrap_or_default(),
    };
    Ok(Attempt::Done(Group {
        name: name.to_string(),
        state: group.group_state.to_string(),
        assignor: group.protocol_data.to_string(),
        members: group.members.iter().map(member).collect(),
    }))
}

/// Topics and partitions of a consumer's assignment (Kafka's ConsumerProtocolAssignment).
fn assignment(bytes: &[u8]) -> Result<Vec<(String, Vec<i32>)>, DecodeError> {
    let context = Context { version: 0, flexible: false };
    let mut reader = Reader::new(bytes);
    let mut topics = Vec::new();
    if reader.remaining() == 0 {
        return Ok(topics);
    }
    reader.i16()?;
    for _ in 0..reader.count(context)?.unwrap_or(0) {
        let topic = <&str>::decode(&mut reader, context)?.to_string();
        topics.push((topic, Vec::<i32>::decode(&mut reader, context)?));
    }
    Ok(topics)
}

type Committed = BTreeMap<(String, i32), i64>;

/// All offsets that a group has committed.
fn committed(cluster: &mut Cluster, name: &str) -> Result<Attempt<Committed>, Failure> {
    let to = cluster.coordinator(name)?;
    let request = offset_fetch::Request {
        group_id: name,
        topics: None,
        groups: vec![offset_fetch::OffsetFetchRequestGroup {
            group_id: name,
            topics: None,
            ..Default::default()
        }],
        require_stable: false,
    };
    let answer = cluster.call(to, ApiKey::OffsetFetch, OFFSET_FETCH_WITH_NAMES, &request)?;
    let by_group = answer.version() >= OFFSET_FETCH_WITH_GROUPS;
    let answer: offset_fetch::Response<'_> = answer.decode()?;
    let mut committed = Committed::new();
    let mut code = ErrorCode(answer.error_code);
    if by_group {
        for group in &answer.groups {
            code = ErrorCode(group.error_code);
            for topic in &group.topics {
                for p in &topic.partitions {
                    let place = (topic.name.to_string(), p.partition_index);
                    committed.insert(place, p.committed_offset);
                }
            }
        }
    }
    for topic in &answer.topics {
        for p in &topic.partitions {
            committed.insert((topic.name.to_string(), p.partition_index), p.committed_offset);
        }
    }
    committed.retain(|_, offset| *offset >= 0);
    Ok(match judge(code, &format!("offsets of group `{name}`"), None)? {
        Attempt::Done(()) => Attempt::Done(committed),
        Attempt::Again(why) => Attempt::Again(why),
    })
}

fn lines(cluster: &mut Cluster, group: &Group, committed: Committed) -> Result<Vec<Line>, Failure> {
    let mut places: BTreeMap<(String, i32), (Option<i64>, Option<usize>)> =
        committed.into_iter().map(|(place, offset)| (place, (Some(offset), None))).collect();
    for (index, member) in group.members.iter().enumerate() {
        for (topic, partitions) in &member.assigned {
            for partition in partitions {
                places.entry((topic.clone(), *partition)).or_default().1 = Some(index);
            }
        }
    }
    let mut ends: BTreeMap<String, BTreeMap<i32, i64>> = BTreeMap::new();
    for (topic, _) in places.keys() {
        if !ends.contains_key(topic) {
            // A topic may have been deleted since; its lines stand without an end.
            let found = cluster.topic(topic, false);
            let offsets = found.and_then(|found| cluster.offsets(&found, LATEST));
            ends.insert(topic.clone(), offsets.unwrap_or_default());
        }
    }
    let line = |((topic, partition), (committed, member)): ((String, i32), _)| {
        let end = ends.get(&topic).and_then(|offsets| offsets.get(&partition)).copied();
        Line { topic, partition, committed, end, member }
    };
    Ok(places.into_iter().map(line).collect())
}

fn write_group(out: &mut dyn Write, group: &Group, lines: &[Line]) -> Result<(), Failure> {
    let Group { name, state, assignor, members } = group;
    let assignor = if assignor.is_empty() { "none" } else { assignor };
    let count = members.len();
    let plural = if count == 1 { "" } else { "s" };
    writeln!(out, "group {name}, {state}, assignor {assignor}, {count} member{plural}")?;
    let mut table =
        Table::new(&["TOPIC", "PARTITION", "COMMITTED", "END", "LAG", "MEMBER", "CLIENT", "HOST"]);
    let number = |number: Option<i64>| number.map_or("-".to_string(), |number| number.to_string());
    let member_cells = |member: Option<&Member>| match member {
        None => ["-", "-", "-"].map(str::to_string),
        Some(member) => {
            let id = member.instance.as_ref().unwrap_or(&member.id);
            [id.clone(), member.client.clone(), member.host.clone()]
        }
    };
    for line in lines {
        let member = line.member.and_then(|index| members.get(index));
        let [id, client, host] = member_cells(member);
        table.row([
            line.topic.clone(),
            line.partition.to_string(),
            number(line.committed),
            number(line.end),
            number(line.lag()),
            id,
            client,
            host,
        ]);
    }
    for member in members.iter().filter(|member| member.assigned.is_empty()) {
        let [id, client, host] = member_cells(Some(member));
        let [topic, partition, committed, end, lag] = ["-"; 5].map(str::to_string);
        table.row([topic, partition, committed, end, lag, id, client, host]);
    }
    Ok(table.write(out)?)
}

fn json_group(group: &Group, lines: &[Line]) -> serde_json::Value {
    let members = group.members.iter().map(|member| {
        let assigned = member
            .assigned
            .iter()
            .map(|(topic, partitions)| json!({ "topic": topic, "partitions": partitions }));
        json!({
            "member": member.id,
            "instance": member.instance,
            "client": member.client,
            "host": member.host,
            "assigned": assigned.collect::<Vec<_>>(),
        })
    });
    let offsets = lines.iter().map(|line| {
        let member = line.member.and_then(|index| group.members.get(index));
        json!({
            "topic": line.topic,
            "partition": line.partition,
            "committed": line.committed,
            "end": line.end,
            "lag": line.lag(),
            "member": member.map(|member| &member.id),
        })
    });
    json!({
        "group": group.name,
        "state": group.state,
        "assignor": group.assignor,
        "members": members.collect::<Vec<_>>(),
        "offsets": offsets.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_is_read_and_a_damaged_one_refused() {
        let bytes = b"\0\x01\0\0\0\x01\0\x02ab\0\0\0\x02\0\0\0\x03\0\0\0\x04\xff\xff\xff\xff";
        assert_eq!(assignment(bytes), Ok(vec![("ab".to_string(), vec![3, 4])]));
        assert_eq!(assignment(b""), Ok(Vec::new()));
        for length in 1..bytes.len() - 4 {
            assert!(assignment(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn a_lag_is_never_negative_and_needs_both_offsets() {
        let line = |committed, end| {
            Line { topic: "t".into(), partition: 0, committed, end, member: None }.lag()
        };
        assert_eq!(line(Some(3), Some(10)), Some(7));
        assert_eq!(line(Some(11), Some(10)), Some(0));
        assert_eq!((line(None, Some(1)), line(Some(1), None)), (None, None));
    }
}
