//! The machine's limits.

use super::live::Live;
use super::options::{Arguments, Plan, Rate};
use crate::client::failure::Failure;

pub fn run(_: &Arguments, _: &Plan, _: Option<Rate>, _: &mut Live) -> Result<(), Failure> {
    Ok(())
}
