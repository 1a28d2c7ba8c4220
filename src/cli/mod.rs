//! The command line: the node, and the client commands that need nothing but a broker's address.
//!
//! Data goes to the standard output, one sentence about a failure to the standard error; the exit
//! code is 0 for success, 1 for a refusal, 2 for a wrong command line or setting.
//!
//! Invariants
//!   L1  Every wait for a broker is bounded, and so is the number of attempts.
//!   L2  With `--json` every line of output is one JSON value.

mod consume;
mod format;
mod group;
mod inspect;
mod produce;
mod repair;
mod settings;
mod table;
mod topic;

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::client::failure::Failure;
use crate::config::BrokerConfig;

/// A streaming broker that speaks the Apache Kafka protocol.
#[derive(Parser)]
#[command(name = "corelog", version, about, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a node.
    Serve(settings::Arguments),
    /// Create, list, describe and delete topics.
    #[command(subcommand)]
    Topic(topic::Command),
    /// List and describe consumer groups.
    #[command(subcommand)]
    Group(group::Command),
    /// Write lines from the standard input to a topic.
    Produce(produce::Arguments),
    /// Write a topic's records to the standard output, one a line.
    Consume(consume::Arguments),
    /// List every setting with its value, where the value comes from, and what it does.
    Config(settings::ListArguments),
    /// Put load on a broker, and measure latency and throughput.
    Load(Box<crate::load::Arguments>),
    /// Check a journal or segment file and tell what is in it.
    Inspect(inspect::Arguments),
    /// Tell what is damaged in a stopped node's data directory and what is lost, and mend it.
    Repair(repair::Arguments),
}

/// What every client command takes.
#[derive(clap::Args)]
struct Client {
    /// A broker's HOST:PORT; several, separated by commas, are tried in turn.
    #[arg(short, long, value_name = "HOST:PORT", default_value = "127.0.0.1:9092")]
    bootstrap: String,
    /// Write JSON, one value a line.
    #[arg(long)]
    json: bool,
}

/// Runs the command line of the process; `serve` runs a node until it is told to stop.
pub fn run(serve: impl FnOnce(BrokerConfig) -> Result<(), String>) -> ExitCode {
    let outcome = execute(Arguments::parse().command, serve);
    let Err(failure) = outcome else { return ExitCode::SUCCESS };
    if failure != Failure::OutputClosed {
        // Where it cannot be said, the exit code says it.
        drop(writeln!(io::stderr(), "corelog: {failure}"));
    }
    ExitCode::from(failure.exit_code())
}

fn execute(
    command: Command,
    serve: impl FnOnce(BrokerConfig) -> Result<(), String>,
) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    match command {
        Command::Serve(arguments) => {
            drop(out);
            return serve(arguments.configuration()?).map_err(Failure::Failed);
        }
        Command::Topic(command) => command.run(&mut out)?,
        Command::Group(command) => command.run(&mut out)?,
        Command::Produce(arguments) => arguments.run(&mut out)?,
        Command::Consume(arguments) => arguments.run(&mut out)?,
        Command::Config(arguments) => arguments.run(&mut out)?,
        Command::Load(arguments) => {
            drop(out);
            return arguments.run();
        }
        Command::Inspect(arguments) => arguments.run(&mut out)?,
        Command::Repair(arguments) => arguments.run(&mut out)?,
    }
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn commands_are_read_as_the_documentation_writes_them() {
        for line in [
            "serve --data-dir d --listen 127.0.0.1:0 --advertise h:1 --cores 0-3 --shards 4",
            "serve --config f --set num.partitions=3 --set node.id=2",
            "serve --data-dir one --data-dir two,three",
            "repair --data-dir one --data-dir two --replace-lost two --dry-run",
            "topic create orders --partitions 3 --config retention.ms=1 --if-not-exists",
            "topic list --bootstrap h:1 --json",
            "topic describe orders",
            "topic delete orders more",
            "group list",
            "group describe readers --json",
            "produce -t orders -p 0 -K : -z zstd -H a=b",
            "consume -t orders -p 0 -o -10 -c 5 -e -f %s",
            "consume -t orders -o beginning --json",
            "config --json --set num.partitions=3",
            "load e2e --rate 50000 --producers 4 --json -",
            "inspect journal-file --json",
        ] {
            let words = std::iter::once("corelog").chain(line.split(' '));
            assert!(Arguments::try_parse_from(words).is_ok(), "{line}");
        }
        for line in ["", "topic", "produce", "consume -t a -c x", "inspect", "help"] {
            let words = std::iter::once("corelog").chain(line.split(' '));
            assert!(Arguments::try_parse_from(words).is_err(), "{line}");
        }
    }
}
