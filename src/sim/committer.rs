//! A consumer that assigns its partitions itself and commits offsets, which must be there later.

use std::rc::Rc;
use std::time::Duration;

use super::client::{Client, Lost};
use super::{Stage, TOPIC};
use crate::io::Io;
use crate::io::sim::SimIo;
use crate::wire::api::{ApiKey, offset_commit, offset_fetch};
use crate::wire::error::ErrorCode;

const GROUP: &str = "alone";
const PAUSE: Duration = Duration::from_millis(7);

/// Commits growing offsets and looks what is committed, until the run is over, and once more.
pub async fn run(io: SimIo, stage: Rc<Stage>) {
    let mut client = stage.client(&io);
    let (mut asked, mut acknowledged) = (-1, -1);
    loop {
        let last = stage.is_over();
        if io.random().is_multiple_of(4) || last {
            match committed(&mut client).await {
                Ok(found) => {
                    assert!(
                        (acknowledged..=asked).contains(&found),
                        "offset {acknowledged} was committed, {found} is found"
                    );
                    // Neither goes back to what it was before (P5).
                    acknowledged = found;
                    if last {
                        return;
                    }
                }
                Err(Lost) => io.sleep(PAUSE).await,
            }
        } else {
            asked += 1;
            match commit(&mut client, asked).await {
                Ok(()) => {
                    acknowledged = asked;
                    stage.history().met.commits += 1;
                }
                Err(Lost) => io.sleep(PAUSE).await,
            }
        }
    }
}

async fn commit(client: &mut Client, offset: i64) -> Result<(), Lost> {
    let partition = offset_commit::OffsetCommitRequestPartition {
        partition_index: 0,
        committed_offset: offset,
        committed_metadata: Some("sim"),
        ..Default::default()
    };
    let topic = offset_commit::OffsetCommitRequestTopic {
        name: TOPIC,
        partitions: vec![partition],
        ..Default::default()
    };
    let request =
        offset_commit::Request { group_id: GROUP, topics: vec![topic], ..Default::default() };
    let answer = client.call(ApiKey::OffsetCommit, 8, &request).await?;
    let answer: offset_commit::Response<'_> = answer.decode();
    passing(answer.topics[0].partitions[0].error_code)
}

async fn committed(client: &mut Client) -> Result<i64, Lost> {
    let topic = offset_fetch::OffsetFetchRequestTopic { name: TOPIC, partition_indexes: vec![0] };
    let request =
        offset_fetch::Request { group_id: GROUP, topics: Some(vec![topic]), ..Default::default() };
    let answer = client.call(ApiKey::OffsetFetch, 7, &request).await?;
    let answer: offset_fetch::Response<'_> = answer.decode();
    passing(answer.error_code)?;
    let partition = &answer.topics[0].partitions[0];
    passing(partition.error_code)?;
    Ok(partition.committed_offset)
}

/// A code that passes is as good as no answer; others end the run.
fn passing(code: i16) -> Result<(), Lost> {
    match ErrorCode(code) {
        ErrorCode::NONE => Ok(()),
        ErrorCode::COORDINATOR_LOAD_IN_PROGRESS
        | ErrorCode::COORDINATOR_NOT_AVAILABLE
        | ErrorCode::NOT_COORDINATOR
        | ErrorCode::KAFKA_STORAGE_ERROR
        | ErrorCode::UNKNOWN_SERVER_ERROR
        | ErrorCode::UNKNOWN_TOPIC_OR_PARTITION => Err(Lost),
        code => panic!("a commit is answered with {code}"),
    }
}
