//! A blocking client of any Kafka-protocol broker: for the command line, and for what the load
//! generator settles before it starts its cores.

pub mod cluster;
pub mod connection;
pub mod failure;
pub mod partitioner;
pub mod sasl;
pub mod security;
