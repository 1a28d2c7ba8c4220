//! EndTxn (API key 26): the request's and the response's fields by version. From version 5 on the
//! producer goes on with another epoch after each transaction (KIP-890).

use crate::wire::message::messages;

messages! {
    Request<'a> {
        transactional_id: &'a str = "", 0..;
        producer_id: i64 = 0, 0..;
        producer_epoch: i16 = 0, 0..;
        committed: bool = false, 0..;
    }

    Response {
        throttle_time_ms: i32 = 0, 0..;
        error_code: i16 = 0, 0..;
        producer_id: i64 = -1, 5..;
        producer_epoch: i16 = -1, 5..;
    }
}
