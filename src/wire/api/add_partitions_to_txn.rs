//! AddPartitionsToTxn (API key 24): the request's and the response's fields by version. From
//! version 4 on it is spoken between brokers only (KIP-890).

use crate::wire::message::messages;

messages! {
    AddPartitionsToTxnTopic<'a> {
        name: &'a str = "", 0..;
        partitions: Vec<i32> = Vec::new(), 0..;
    }

    AddPartitionsToTxnTransaction<'a> {
        transactional_id: &'a str = "", 4..;
        producer_id: i64 = 0, 4..;
        producer_epoch: i16 = 0, 4..;
        verify_only: bool = false, 4..;
        topics: Vec<AddPartitionsToTxnTopic<'a>> = Vec::new(), 4..;
    }

    Request<'a> {
        transactions: Vec<AddPartitionsToTxnTransaction<'a>> = Vec::new(), 4..;
        transactional_id: &'a str = "", 0..=3;
        producer_id: i64 = 0, 0..=3;
        producer_epoch: i16 = 0, 0..=3;
        topics: Vec<AddPartitionsToTxnTopic<'a>> = Vec::new(), 0..=3;
    }

    AddPartitionsToTxnPartitionResult {
        partition_index: i32 = 0, 0..;
        partition_error_code: i16 = 0, 0..;
    }

    AddPartitionsToTxnTopicResult<'a> {
        name: &'a str = "", 0..;
        partitions: Vec<AddPartitionsToTxnPartitionResult> = Vec::new(), 0..;
    }

    AddPartitionsToTxnResult<'a> {
        transactional_id: &'a str = "", 4..;
        topics: Vec<AddPartitionsToTxnTopicResult<'a>> = Vec::new(), 4..;
    }

    Response<'a> {
        throttle_time_ms: i32 = 0, 0..;
        error_code: i16 = 0, 4..;
        transactions: Vec<AddPartitionsToTxnResult<'a>> = Vec::new(), 4..;
        topics: Vec<AddPartitionsToTxnTopicResult<'a>> = Vec::new(), 0..=3;
    }
}
