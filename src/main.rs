//! The `corelog` program.

use std::process::ExitCode;

use corelog::config::BrokerConfig;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// The system's allocator took 30 % of the time of 100 keyed producers over 10,000 partitions.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    corelog::cli::run(serve)
}

/// Runs a node; its log goes to the standard error, RUST_LOG says how much of it.
fn serve(config: BrokerConfig) -> Result<(), String> {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into());
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        // Told by a panic where the log goes to a full disk.
        .log_internal_errors(false)
        .with_env_filter(filter.from_env_lossy())
        .init();
    corelog::node::serve(config).map_err(|failed| failed.to_string())
}
