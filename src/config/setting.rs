//! What a setting is: name, type, default, bounds; and the check of a value against them.

use std::fmt;

/// Whose setting it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Broker,
    Topic,
}

/// A setting's type and bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bool,
    /// A whole number between two bounds, both allowed.
    Int(i64, i64),
    /// A number, perhaps a fraction, between two bounds, both allowed; no upper one if that is the
    /// largest integer.
    Double(i64, i64),
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Some of these words, separated by commas.
    List(&'static [&'static str]),
}

/// What a value does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Honoured,
    /// Kept and reported, harmless without effect.
    Stored,
    /// Only the default is taken: another value would promise what is not kept.
    Only,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub scope: Scope,
    pub name: &'static str,
    pub kind: Kind,
    pub default: &'static str,
    pub effect: Effect,
    pub doc: &'static str,
}

/// Why a setting is refused, in one sentence with the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    Unknown { name: String, nearest: Option<&'static str> },
    Value { name: &'static str, value: String, wanted: String },
    OnlyDefault { name: &'static str, value: String, default: &'static str, why: &'static str },
    Source { place: String, why: String },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Unknown { name, nearest } => {
                write!(f, "there is no setting `{name}`")?;
                match nearest {
                    Some(nearest) => write!(f, "; did you mean `{nearest}`?"),
                    None => write!(f, "; `corelog config` lists all of them"),
                }
            }
            Refused::Value { name, value, wanted } => {
                write!(f, "`{value}` is no value for `{name}`: give {wanted}")
            }
            Refused::OnlyDefault { name, value, default, why } => {
                write!(f, "`{name}={value}` is not served: leave it at `{default}`. {why}")
            }
            Refused::Source { place, why } => write!(f, "{place}: {why}"),
        }
    }
}

impl std::error::Error for Refused {}

impl Setting {
    /// Checks a value; returns it in its canonical form.
    pub fn check(&self, value: &str) -> Result<String, Refused> {
        let value = value.trim();
        let refused = || Refused::Value {
            name: self.name,
            value: value.to_string(),
            wanted: self.kind.to_string(),
        };
        let canonical = match self.kind {
            Kind::Bool => value.to_lowercase().parse::<bool>().map(|v| v.to_string()).ok(),
            Kind::Int(low, high) => {
                let number = value.parse::<i64>().ok();
                number.filter(|number| (low..=high).contains(number)).map(|v| v.to_string())
            }
            Kind::Double(low, high) => {
                let number = value.parse::<f64>().ok();
                let is_in = |number: &f64| {
                    *number >= low as f64 && (high == i64::MAX || *number <= high as f64)
                };
                number.filter(is_in).map(|_| value.to_string())
            }
            Kind::Text => Some(value.to_string()),
            Kind::Choice(words) => words.contains(&value).then(|| value.to_string()),
            Kind::List(_) if value.is_empty() => Some(String::new()),
            Kind::List(words) => {
                let given: Vec<&str> = value.split(',').map(str::trim).collect();
                let known = given.iter().all(|word| words.contains(word));
                known.then(|| given.join(","))
            }
        };
        let canonical = canonical.ok_or_else(refused)?;
        if self.effect == Effect::Only && canonical != self.default {
            return Err(Refused::OnlyDefault {
                name: self.name,
                value: canonical,
                default: self.default,
                why: self.doc,
            });
        }
        Ok(canonical)
    }
}

impl fmt::Display for Kind {
    /// What to give, in words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Bool => write!(f, "true or false"),
            Kind::Int(low, high) if *high == i64::MAX => {
                write!(f, "a whole number of at least {low}")
            }
            Kind::Int(low, high) => write!(f, "a whole number from {low} to {high}"),
            Kind::Double(low, high) if *high == i64::MAX => write!(f, "a number of at least {low}"),
            Kind::Double(low, high) => write!(f, "a number from {low} to {high}"),
            Kind::Text => write!(f, "text"),
            Kind::Choice(words) => write!(f, "one of {}", words.join(", ")),
            Kind::List(words) => {
                write!(f, "some or none of {}, separated by commas", words.join(", "))
            }
        }
    }
}

/// The row named `name`, or the refusal that names the nearest one.
pub fn find(table: &'static [Setting], name: &str) -> Result<&'static Setting, Refused> {
    if let Some(setting) = table.iter().find(|setting| setting.name == name) {
        return Ok(setting);
    }
    let nearest = table.iter().map(|setting| (distance(setting.name, name), setting.name)).min();
    let nearest = nearest.filter(|(distance, _)| *distance <= 1 + name.len() / 3);
    Err(Refused::Unknown { name: name.to_string(), nearest: nearest.map(|(_, name)| name) })
}

/// Edits (insertions, deletions, replacements) between two names.
fn distance(one: &str, two: &str) -> usize {
    let two: Vec<char> = two.chars().collect();
    let mut row: Vec<usize> = (0..=two.len()).collect();
    for (index, left) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], index + 1);
        for (column, right) in two.iter().enumerate() {
            let replaced = diagonal + usize::from(left != *right);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[two.len()]
}
