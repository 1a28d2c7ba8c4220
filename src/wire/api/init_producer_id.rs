//! InitProducerId (API key 22): the request's and the response's fields by version.

use crate::wire::message::messages;

messages! {
    Request<'a> {
        transactional_id: Option<&'a str> = Some(""), 0.., null 0..;
        transaction_timeout_ms: i32 = 0, 0..;
        producer_id: i64 = -1, 3..;
        producer_epoch: i16 = -1, 3..;
        enable2_pc: bool = false, 6..;
        keep_prepared_txn: bool = false, 6..;
    }

    Response {
        throttle_time_ms: i32 = 0, 0..;
        error_code: i16 = 0, 0..;
        producer_id: i64 = -1, 0..;
        producer_epoch: i16 = 0, 0..;
        ongoing_txn_producer_id: i64 = -1, 6..;
        ongoing_txn_producer_epoch: i16 = -1, 6..;
    }
}
