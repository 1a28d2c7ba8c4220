//! The `corelog` program.

fn main() -> std::process::ExitCode {
    let mut config = corelog::config::BrokerConfig::default();
    for pair in std::env::args().skip(1) {
        if let Some((name, value)) = pair.split_once('=') {
            config.set(name, value, corelog::config::Source::Flag).unwrap();
        }
    }
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    match corelog::node::serve(config) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("corelog: {failed}");
            std::process::ExitCode::FAILURE
        }
    }
}
