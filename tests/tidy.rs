//! The tree is tested: layers, headers, names and sizes of every source file.
//!
//! A failure names the place and the remedy. Exceptions stand in the lists below; an exception
//! that nothing needs any more fails as well, so that the lists only shrink.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// What a top folder (or file) of `src/` is: its rank, and what it may not name.
struct Module {
    name: &'static str,
    /// A module imports only from modules of a lower rank.
    rank: u8,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// A pure state machine: no clock, no I/O, no chance, no order that depends on a hash.
    Mind,
    /// The only place that names the kernel's interfaces.
    Seam,
    Other,
}

const fn module(name: &'static str, rank: u8, kind: Kind) -> Module {
    Module { name, rank, kind }
}

const MODULES: &[Module] = &[
    module("base", 0, Kind::Other),
    module("config", 1, Kind::Other),
    module("wire", 10, Kind::Other),
    module("io", 10, Kind::Seam),
    module("producer", 20, Kind::Mind),
    module("group", 20, Kind::Mind),
    module("metadata", 20, Kind::Mind),
    module("journal", 20, Kind::Other),
    module("segment", 20, Kind::Other),
    module("compaction", 21, Kind::Mind),
    module("partition", 30, Kind::Other),
    module("dispatch", 31, Kind::Other),
    module("handler", 40, Kind::Other),
    module("connection", 41, Kind::Other),
    module("node", 50, Kind::Other),
    module("client", 58, Kind::Other),
    module("load", 59, Kind::Other),
    module("sim", 60, Kind::Other),
    module("cli", 60, Kind::Other),
    module("lib", 70, Kind::Other),
    module("main", 70, Kind::Other),
];

/// Edges that point up, as `from -> to`.
const UPWARD_EDGES: &[&str] = &["handler -> connection"];

/// Functions above `FUNCTION_LINES_MAX`, as `file: name`.
const LONG_FUNCTIONS: &[&str] = &["src/node/serve.rs: serve"];

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;
const COLUMNS_MAX: usize = 100;

const TOP_LEVEL: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "LICENSE",
    "README.md",
    "rustfmt.toml",
    "src",
    "benches",
    "perf",
    "tests",
    "ci",
    ".ci",
];

const JUNK_DRAWERS: &[&str] = &["common", "util", "utils", "helpers", "helper", "manager", "misc"];

/// Words that no source file may hold, with the remedy.
const UNFINISHED: &[(&str, &str)] = &[
    ("todo!", "write it, or leave it out"),
    ("unimplemented!", "write it, or answer with an error"),
    ("dbg!", "use tracing"),
    ("#[ignore", "a test runs or does not exist"),
    ("allow(dead_code)", "remove what nothing uses"),
];

/// Words that a mind may not hold, with the remedy.
const IMPURE: &[(&str, &str)] = &[
    ("async", "a mind is driven: it returns effects, its driver awaits"),
    ("std::time::Instant", "take `now: base::time::Instant` as an argument"),
    ("SystemTime", "take the wall clock as an argument"),
    ("rand::", "take random bits as an argument"),
    ("HashMap", "use BTreeMap: its order is the same in every run"),
    ("HashSet", "use BTreeSet: its order is the same in every run"),
    ("std::fs", "return an effect, the driver does I/O"),
    ("std::net", "return an effect, the driver does I/O"),
    ("crate::io", "a mind does no I/O: return an effect"),
];

/// One source file, ready to be judged.
struct Source {
    /// From the root of the repository: `src/wire/mod.rs`.
    path: String,
    text: String,
    /// The same length and lines, with comments, strings and characters blanked.
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Source {
        let code = without_tests(&blanked(text));
        Source { path: path.to_owned(), text: text.to_owned(), code }
    }

    /// The folder or file directly under `src/`, without `.rs`.
    fn top(&self) -> &str {
        let below = self.path.strip_prefix("src/").unwrap_or(&self.path);
        below.split('/').next().unwrap_or(below).trim_end_matches(".rs")
    }

    fn module(&self) -> Option<&'static Module> {
        MODULES.iter().find(|module| module.name == self.top())
    }

    /// Files that hold nothing but tests are no part of the body that is measured.
    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    /// How many `super` lead to the root of the crate.
    fn depth(&self) -> usize {
        let below = self.path.strip_prefix("src/").unwrap_or(&self.path);
        let parts = below.split('/').count();
        if below.ends_with("mod.rs") || below == "lib.rs" || below == "main.rs" {
            parts - 1
        } else {
            parts
        }
    }
}

/// One thing that is wrong, with its place and the remedy.
type Finding = String;

#[test]
fn the_tree_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = read_sources(root);
    assert!(sources.len() > 30, "only {} files found under src/", sources.len());
    let mut findings = judge(&sources);
    findings.extend(exceptions_not_needed(&sources));
    findings.extend(top_level(&tracked(root)));
    assert!(findings.is_empty(), "the tree is not tidy:\n  {}\n", findings.join("\n  "));
}

fn judge(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources {
        findings.extend(header(source));
        findings.extend(widths(source));
        findings.extend(names(source));
        findings.extend(words(source));
        findings.extend(size(source));
        findings.extend(
            edges(source)
                .into_iter()
                .filter(|edge| !UPWARD_EDGES.contains(&edge.name.as_str()))
                .map(|edge| edge.finding),
        );
        findings.extend(
            long_functions(source)
                .into_iter()
                .filter(|(name, _)| !LONG_FUNCTIONS.contains(&name.as_str()))
                .map(|(_, finding)| finding),
        );
    }
    findings
}

fn exceptions_not_needed(sources: &[Source]) -> Vec<Finding> {
    let edges: BTreeSet<String> = sources.iter().flat_map(edges).map(|edge| edge.name).collect();
    let long: BTreeSet<String> =
        sources.iter().flat_map(long_functions).map(|(name, _)| name).collect();
    let unneeded = |list: &[&str], needed: &BTreeSet<String>, title: &str| -> Vec<Finding> {
        let gone = list.iter().filter(|name| !needed.contains(**name));
        gone.map(|name| format!("tests/tidy.rs: {title} lists `{name}` in vain: strike it"))
            .collect()
    };
    let mut findings = unneeded(UPWARD_EDGES, &edges, "UPWARD_EDGES");
    findings.extend(unneeded(LONG_FUNCTIONS, &long, "LONG_FUNCTIONS"));
    findings
}

fn header(source: &Source) -> Option<Finding> {
    let opens = source.text.lines().next().is_some_and(|line| line.starts_with("//! "));
    let says = "opens without `//! ` and a sentence that says what it is for";
    (!opens).then(|| format!("{}:1: {says}", source.path))
}

fn widths(source: &Source) -> Vec<Finding> {
    let wide = |(at, line): (usize, &str)| {
        let columns = line.chars().count();
        (columns > COLUMNS_MAX).then(|| {
            format!("{}:{}: {columns} columns, at most {COLUMNS_MAX}", source.path, at + 1)
        })
    };
    source.text.lines().enumerate().filter_map(wide).collect()
}

fn names(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for part in source.path.split('/') {
        if JUNK_DRAWERS.contains(&part.trim_end_matches(".rs")) {
            let path = &source.path;
            findings.push(format!("{path}:1: `{part}` says nothing: name it by what it is for"));
        }
    }
    if source.module().is_none() {
        let top = source.top();
        let path = &source.path;
        findings.push(format!("{path}:1: `{top}` has no layer: give it one in tests/tidy.rs"));
    }
    findings
}

fn words(source: &Source) -> Vec<Finding> {
    let kind = source.module().map_or(Kind::Other, |module| module.kind);
    let mut findings = Vec::new();
    let mut forbid = |text: &str, word: &str, remedy: &str| {
        for (at, line) in text.lines().enumerate() {
            if has_word(line, word) {
                let place = format!("{}:{}", source.path, at + 1);
                findings.push(format!("{place}: `{word}` is not for here: {remedy}"));
            }
        }
    };
    for (word, remedy) in UNFINISHED {
        forbid(&source.code, word, remedy);
    }
    forbid(&source.text, concat!("FIX", "ME"), "mend it");
    if kind == Kind::Mind {
        for (word, remedy) in IMPURE {
            forbid(&source.code, word, remedy);
        }
    }
    if kind != Kind::Seam {
        for word in ["glommio", "io_uring"] {
            forbid(&source.code, word, "only src/io/ knows it; extend the trait `Io`");
        }
        if source.path != "src/base/buffer.rs" {
            forbid(&source.code, "unsafe", "only src/io/ and src/base/buffer.rs may hold it");
        }
    }
    findings
}

fn size(source: &Source) -> Option<Finding> {
    let lines = source.code.lines().filter(|line| !line.trim().is_empty()).count();
    let long = lines > FILE_LINES_MAX && !source.is_test();
    let path = &source.path;
    long.then(|| format!("{path}:1: {lines} lines of code, at most {FILE_LINES_MAX}: split it"))
}

/// An import that points up or sideways.
struct Edge {
    /// `from -> to`, as it would stand in `UPWARD_EDGES`.
    name: String,
    finding: Finding,
}

fn edges(source: &Source) -> Vec<Edge> {
    let Some(from) = source.module() else { return Vec::new() };
    let mut found = Vec::new();
    for (line, to) in imports(&source.code) {
        let place = format!("{}:{line}", source.path);
        let Some(target) = MODULES.iter().find(|module| module.name == to) else { continue };
        if target.name != from.name && target.rank >= from.rank {
            let name = format!("{} -> {}", from.name, target.name);
            let remedy = "imports point down only: move what is shared to a lower layer";
            found.push(Edge { finding: format!("{place}: {name}: {remedy}"), name });
        }
    }
    let escape = vec!["super"; source.depth()].join("::");
    for (at, line) in source.code.lines().enumerate() {
        if source.depth() > 0 && has_word(line, &format!("{escape}::")) {
            let name = format!("{} -> super", from.name);
            let place = format!("{}:{}", source.path, at + 1);
            let remedy = "climbs to the root of the crate: write crate::...";
            found.push(Edge { finding: format!("{place}: {escape} {remedy}"), name });
        }
    }
    found
}

/// Every `crate::x`, also inside `crate::{x, y::z}`, as (line, x).
fn imports(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = code[from..].find("crate::").map(|at| at + from) {
        from = at + "crate::".len();
        let line = code[..at].matches('\n').count() + 1;
        if ends_in_word(&code[..at]) {
            continue;
        }
        let rest = &code[from..];
        let names =
            if rest.starts_with('{') { group_heads(rest) } else { vec![leading_word(rest)] };
        found.extend(names.into_iter().map(|name| (line, name)));
    }
    found
}

/// The first word of each member of `{a::b, c::{d, e}}`: a, c.
fn group_heads(group: &str) -> Vec<String> {
    let (mut depth, mut heads, mut start) = (0, Vec::new(), true);
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 1 => break,
            '}' => depth -= 1,
            ',' if depth == 1 => start = true,
            _ if depth == 1 && start && !character.is_whitespace() => {
                heads.push(leading_word(&group[at..]));
                start = false;
            }
            _ => {}
        }
    }
    heads
}

/// Functions longer than the limit, as (`file: name`, finding).
fn long_functions(source: &Source) -> Vec<(String, Finding)> {
    if source.is_test() {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (at, _) in source.code.match_indices("fn ") {
        let before = &source.code[..at];
        let name = leading_word(&source.code[at + 3..]);
        if ends_in_word(before) || name.is_empty() {
            continue;
        }
        let first = before.matches('\n').count() + 1;
        let Some(length) = body_lines(&source.code[at..]) else { continue };
        if length > FUNCTION_LINES_MAX {
            let key = format!("{}: {name}", source.path);
            let place = format!("{}:{first}", source.path);
            let remedy = format!("at most {FUNCTION_LINES_MAX}: split it by what it decides");
            found.push((key, format!("{place}: fn {name} has {length} lines, {remedy}")));
        }
    }
    found
}

/// The lines from `fn` to its closing brace; None for one without a body.
fn body_lines(code: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, character) in code.char_indices() {
        match character {
            ';' if depth == 0 && !inside_brackets(&code[..at]) => return None,
            '{' => depth += 1,
            '}' if depth == 1 => return Some(code[..at].matches('\n').count() + 1),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Whether the end of `code` lies inside `[..]` or `(..)`, as in `fn f(key: [u8; 4])`.
fn inside_brackets(code: &str) -> bool {
    code.matches(['[', '(']).count() > code.matches([']', ')']).count()
}

fn top_level(tracked: &[String]) -> Vec<Finding> {
    let tops: BTreeSet<&str> = tracked.iter().filter_map(|path| path.split('/').next()).collect();
    let stray = tops.into_iter().filter(|top| {
        let dotfile = top.starts_with('.') && tracked.iter().any(|path| path == top);
        !TOP_LEVEL.contains(top) && !dotfile
    });
    stray.map(|top| format!("{top}: not for the top level: {}", TOP_LEVEL.join(" "))).collect()
}

/// `text` with the insides of comments, strings and characters turned to spaces, line by line.
fn blanked(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = opaque_length(rest, ends_in_word(&out));
        let taken = length.unwrap_or(first.len_utf8());
        match length {
            None => out.push(first),
            Some(_) => {
                let blank = |character| if character == '\n' { '\n' } else { ' ' };
                out.extend(rest[..taken].chars().map(blank));
            }
        }
        rest = &rest[taken..];
    }
    out
}

/// The length of the comment, string or character that `text` starts with, if it does.
fn opaque_length(text: &str, in_word: bool) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if text.starts_with("/*") {
        return Some(text.find("*/").map_or(text.len(), |end| end + 2));
    }
    if !in_word {
        let prefix = text.len() - text.trim_start_matches(['b', 'c', 'r']).len();
        let hashes = text[prefix..].len() - text[prefix..].trim_start_matches('#').len();
        let raw = prefix > 0 && text[..prefix].contains('r');
        if raw && text[prefix + hashes..].starts_with('"') {
            let close = format!("\"{}", "#".repeat(hashes));
            let inside = prefix + hashes + 1;
            let end = text[inside..].find(&close).map(|end| inside + end + close.len());
            return Some(end.unwrap_or(text.len()));
        }
    }
    if text.starts_with('"') {
        return Some(quoted_length(text, '"'));
    }
    // A quote opens a character only if it is closed after one; otherwise it is a lifetime.
    let after = text.strip_prefix('\'')?;
    let one = after.chars().next()?;
    let closed = one == '\\' || after[one.len_utf8()..].starts_with('\'');
    closed.then(|| quoted_length(text, '\''))
}

fn quoted_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// `code` with every `#[cfg(test)] mod name { .. }` turned to empty lines.
fn without_tests(code: &str) -> String {
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        let item = &rest[at..];
        let is_module = item["#[cfg(test)]".len()..].trim_start().starts_with("mod ");
        let lines = if is_module { body_lines(item) } else { None };
        out.push_str(&rest[..at]);
        let taken = match lines {
            Some(lines) => {
                out.push_str(&"\n".repeat(lines - 1));
                item.split_inclusive('\n').take(lines).map(str::len).sum::<usize>()
            }
            None => "#[cfg(test)]".len(),
        };
        if lines.is_some() {
            out.push('\n');
        }
        rest = &item[taken..];
    }
    out.push_str(rest);
    out
}

/// `word` in `line`, not as a part of a longer word.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let after = &line[at + word.len()..];
        let open_end = word.ends_with(|last: char| !is_word(last));
        !ends_in_word(&line[..at]) && (open_end || !after.starts_with(is_word))
    })
}

fn leading_word(text: &str) -> String {
    text.chars().take_while(|character| is_word(*character)).collect()
}

fn ends_in_word(text: &str) -> bool {
    text.ends_with(is_word)
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn read_sources(root: &Path) -> Vec<Source> {
    let mut paths = Vec::new();
    walk(&root.join("src"), &mut paths);
    paths.sort();
    let read = |path: &std::path::PathBuf| {
        let text = std::fs::read_to_string(path).expect("a source file is readable UTF-8");
        let name = path.strip_prefix(root).expect("it lies under the root").to_string_lossy();
        Source::new(&name, &text)
    };
    paths.iter().map(read).collect()
}

fn walk(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the folder is readable") {
        let path = entry.expect("its entries are").path();
        if path.is_dir() {
            walk(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn tracked(root: &Path) -> Vec<String> {
    let out = Command::new("git").arg("ls-files").current_dir(root).output();
    let out = out.expect("git is installed: the check of the top level asks it");
    assert!(out.status.success(), "git ls-files: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect()
}

/// What the checker says about one planted file, besides what a clean one would give.
fn planted(path: &str, text: &str) -> String {
    judge(&[Source::new(path, text)]).join("\n")
}

#[test]
fn a_clean_file_has_no_findings() {
    let text = "//! Says what it is.\nuse crate::base::ids;\n// glommio is named in words only\n\
                const WORDS: &str = \"unsafe todo!\";\nfn short<'a>(x: &'a u8) -> char { '\"' }\n";
    assert_eq!(planted("src/wire/planted.rs", text), "");
}

#[test]
fn planted_edges_are_caught() {
    let upward = planted("src/wire/x.rs", "//! X.\nuse crate::partition::Owner;\n");
    assert!(upward.contains("src/wire/x.rs:2: wire -> partition"), "{upward}");
    let grouped = planted("src/wire/x.rs", "//! X.\nuse crate::{base::ids, node::{a, b}};\n");
    assert!(grouped.contains("src/wire/x.rs:2: wire -> node"), "{grouped}");
    let inline = planted("src/journal/x.rs", "//! X.\nfn f() { crate::producer::go() }\n");
    assert!(inline.contains("src/journal/x.rs:2: journal -> producer"), "{inline}");
    let climbing = planted("src/wire/x.rs", "//! X.\nuse super::super::node::Node;\n");
    assert!(climbing.contains("climbs to the root"), "{climbing}");
    let unknown = planted("src/stuff/x.rs", "//! X.\n");
    assert!(unknown.contains("`stuff` has no layer"), "{unknown}");
}

#[test]
fn planted_words_are_caught() {
    for (path, line) in [
        ("src/wire/x.rs", "use glommio::Task;"),
        ("src/partition/x.rs", "use io_uring::opcode;"),
        ("src/wire/x.rs", "fn f() { unsafe { g() } }"),
        ("src/group/x.rs", "async fn f() {}"),
        ("src/group/x.rs", "use std::time::Instant;"),
        ("src/metadata/x.rs", "use std::collections::HashMap;"),
        ("src/producer/x.rs", "use crate::io::Io;"),
        ("src/io/x.rs", "fn f() { todo!() }"),
        ("src/io/x.rs", concat!("// FIX", "ME: later")),
        ("src/io/x.rs", "#[ignore]"),
    ] {
        let found = planted(path, &format!("//! X.\n{line}\n"));
        assert!(found.contains(&format!("{path}:2: ")), "`{line}` in {path} gave: {found}");
    }
}

#[test]
fn planted_tests_are_no_part_of_the_body() {
    let text = "//! X.\nfn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::node::Node;\n}\n\
                fn g() { unsafe {} }\n";
    let found = planted("src/wire/x.rs", text);
    assert!(!found.contains("node"), "{found}");
    assert!(found.contains("src/wire/x.rs:7: `unsafe`"), "{found}");
}

#[test]
fn planted_sizes_are_caught() {
    let long = format!("//! X.\nfn f(key: [u8; 4]) {{\n{}}}\n", "    g();\n".repeat(69));
    assert!(planted("src/wire/x.rs", &long).contains("src/wire/x.rs:2: fn f has 71 lines"));
    let just = format!("//! X.\nfn f() {{\n{}}}\n", "    g();\n".repeat(68));
    assert_eq!(planted("src/wire/x.rs", &just), "");
    let file = format!("//! X.\n{}", "const A: u8 = 1;\n".repeat(801));
    assert!(planted("src/wire/x.rs", &file).contains("801 lines of code"));
    let wide = format!("//! X.\n// {}\n", "─".repeat(98));
    assert!(planted("src/wire/x.rs", &wide).contains("src/wire/x.rs:2: 101 columns"));
    assert!(planted("src/wire/x.rs", "fn f() {}\n").contains("src/wire/x.rs:1: opens without"));
    assert!(planted("src/wire/util.rs", "//! X.\n").contains("`util.rs` says nothing"));
}

#[test]
fn a_stray_top_level_entry_is_caught() {
    let tracked = ["src/lib.rs", "notes.md", ".gitignore", ".idea/x"].map(str::to_owned);
    let found = top_level(&tracked);
    assert_eq!(found.len(), 2, "{found:?}");
}
