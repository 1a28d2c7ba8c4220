//! `corelog serve`'s flags become the configuration; `corelog config` lists it.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use serde_json::json;

use super::table::Table;
use crate::client::failure::{Failure, in_words};
use crate::config::{BrokerConfig, Effect, Refused, Setting, Source, TOPIC};

/// The flags that set something; each named one is a setting of the table by a shorter name.
#[derive(clap::Args)]
pub struct Arguments {
    /// The data directory; several, each given by itself, share the cores [log.dirs].
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Vec<String>,
    /// Where to listen [listeners].
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Where clients are told to connect to [advertised.listeners].
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// CPUs to run on, as in 0-3,6 [cores].
    #[arg(long, value_name = "LIST")]
    cores: Option<String>,
    /// Executors, if not one per CPU [shards].
    #[arg(long, value_name = "NUMBER")]
    shards: Option<String>,
    /// A TOML file of settings.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any setting of `corelog config`; may be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
}

/// What `corelog config` takes: the flags of `serve`, so that their effect can be looked at.
#[derive(clap::Args)]
pub struct ListArguments {
    #[command(flatten)]
    arguments: Arguments,
    /// Write JSON, one setting a line.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// The configuration in force: flags, then environment, then file, then defaults.
    pub fn configuration(&self) -> Result<BrokerConfig, Failure> {
        let mut config = BrokerConfig::default();
        if let Some(path) = &self.config {
            let place = path.display().to_string();
            let text = fs::read_to_string(path).map_err(|error| {
                Failure::Usage(format!("cannot read {place}: {}", in_words(&error)))
            })?;
            config.read_file(&text, &place).map_err(refused)?;
        }
        config.read_environment(environment()).map_err(refused)?;
        let data_dirs = (!self.data_dir.is_empty()).then(|| self.data_dir.join(","));
        let named = [
            ("log.dirs", &data_dirs),
            ("listeners", &self.listen),
            ("advertised.listeners", &self.advertise),
            ("cores", &self.cores),
            ("shards", &self.shards),
        ];
        for (name, value) in named {
            if let Some(value) = value {
                config.set(name, value, Source::Flag).map_err(refused)?;
            }
        }
        for pair in &self.set {
            let (name, value) = pair.split_once('=').ok_or_else(|| {
                Failure::Usage(format!("--set {pair}: give a setting as NAME=VALUE"))
            })?;
            config.set(name.trim(), value, Source::Flag).map_err(refused)?;
        }
        Ok(config)
    }
}

/// The environment's variables that are text; no setting has another value.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

fn refused(refused: Refused) -> Failure {
    Failure::Usage(refused.to_string())
}

impl ListArguments {
    pub fn run(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let config = self.arguments.configuration()?;
        let topic = TOPIC.iter().map(|setting| (setting, setting.default, Source::Default));
        if self.json {
            for (scope, rows) in
                [("broker", config.rows().collect::<Vec<_>>()), ("topic", topic.collect())]
            {
                for row in rows {
                    writeln!(out, "{}", json_row(scope, row))?;
                }
            }
            return Ok(());
        }
        writeln!(out, "Settings of the node (flag, environment, file, default: the first wins)\n")?;
        write_rows(out, config.rows())?;
        writeln!(out, "\nSettings of a topic (`corelog topic create --config NAME=VALUE`)\n")?;
        write_rows(out, topic)
    }
}

type Row<'a> = (&'static Setting, &'a str, Source);

fn write_rows<'a>(out: &mut dyn Write, rows: impl Iterator<Item = Row<'a>>) -> Result<(), Failure> {
    let mut table = Table::new(&["NAME", "VALUE", "FROM", "TAKES", "EFFECT", "MEANING"]);
    for (setting, value, source) in rows {
        table.row([
            setting.name.to_string(),
            if value.is_empty() { "\"\"".to_string() } else { value.to_string() },
            source_name(source).to_string(),
            setting.kind.to_string(),
            effect_name(setting.effect).to_string(),
            setting.doc.to_string(),
        ]);
    }
    Ok(table.write(out)?)
}

fn json_row(scope: &str, (setting, value, source): Row<'_>) -> serde_json::Value {
    json!({
        "scope": scope,
        "name": setting.name,
        "value": value,
        "source": source_name(source),
        "default": setting.default,
        "takes": setting.kind.to_string(),
        "effect": effect_name(setting.effect),
        "meaning": setting.doc,
    })
}

fn source_name(source: Source) -> &'static str {
    match source {
        Source::Default => "default",
        Source::File => "file",
        Source::Environment => "environment",
        Source::Flag => "flag",
    }
}

fn effect_name(effect: Effect) -> &'static str {
    match effect {
        Effect::Honoured => "honoured",
        Effect::Stored => "stored",
        Effect::Only => "default only",
    }
}
