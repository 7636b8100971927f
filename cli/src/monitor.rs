//! The verb that watches over checkpoints: how deep, how large, how old, what hangs loose. For people, for cron, for
//! Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use avhdx::ops::tree::{ProblemKind, Role, Tree, TreeNode, TreeOptions};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::args::Open;
use crate::report::{human, safe};
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct Monitor {
    /// Directories (or files)
    #[arg(required = true)]
    dirs: Vec<PathBuf>,
    /// Most files in a chain
    #[arg(long, value_name = "N")]
    max_depth: Option<u64>,
    /// Greatest age of a checkpoint: seconds, or with m, h, d or w
    #[arg(long, value_name = "AGE", value_parser = age)]
    max_age: Option<Duration>,
    /// Most bytes that a differencing file takes on disk
    #[arg(long, value_name = "SIZE", value_parser = crate::args::size)]
    max_delta: Option<u64>,
    /// Most bytes that a differencing file may have grown since the last run
    #[arg(long, value_name = "SIZE", value_parser = crate::args::size, requires = "state")]
    max_growth: Option<u64>,
    /// Where to remember the sizes between runs
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    #[command(flatten)]
    open: Open,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
    Prometheus,
}

/// A time span: seconds, or a number with s, m, h, d or w.
pub(crate) fn age(text: &str) -> Result<Duration, String> {
    let wanted = || "not an age: seconds, or a number with m, h, d or w".to_string();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| wanted())?;
    let unit = match &text[digits..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err(wanted()),
    };
    number.checked_mul(unit).map(Duration::from_secs).ok_or_else(wanted)
}

/// A differencing file.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Delta {
    filename: String,
    /// It is the last file of its chain.
    leaf: bool,
    /// Files in the chain up to it.
    depth: u64,
    bytes: u64,
    /// Seconds since its parent was last written: since the checkpoint was taken.
    age: Option<u64>,
    /// Bytes gained since the last run.
    growth: Option<i64>,
}

#[derive(Debug, Serialize)]
struct Alert {
    check: &'static str,
    filename: String,
    text: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    ok: bool,
    files: usize,
    orphans: usize,
    broken: usize,
    interrupted_merges: usize,
    deltas: Vec<Delta>,
    alerts: Vec<Alert>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    bytes: BTreeMap<String, u64>,
}

fn on_disk(node: &TreeNode) -> u64 {
    node.actual_size.unwrap_or(node.file_size)
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

pub(crate) fn monitor(args: &Monitor) -> Outcome {
    let tree = Tree::scan(&args.dirs, &args.open.reading(), &TreeOptions::default())?;
    let before = match &args.state {
        Some(path) => load(path)?,
        None => State::default(),
    };
    let report = judge(args, &tree, &before, SystemTime::now());
    let mut out = io::stdout().lock();
    match args.format {
        Format::Text => write!(out, "{}", text(&report))?,
        Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(&report).unwrap_or_default())?,
        Format::Prometheus => write!(out, "{}", exposition(&report))?,
    }
    out.flush()?;
    if let Some(path) = &args.state {
        let bytes = report.deltas.iter().map(|d| (d.filename.clone(), d.bytes)).collect();
        save(path, &State { bytes })?;
    }
    Ok(if report.ok { 0 } else { 3 })
}

fn judge(args: &Monitor, tree: &Tree, before: &State, now: SystemTime) -> Report {
    let mut report = Report {
        ok: true,
        files: tree.nodes.len(),
        orphans: tree.nodes.iter().filter(|node| node.role == Role::Orphan).count(),
        broken: tree.count(ProblemKind::Broken),
        interrupted_merges: tree.count(ProblemKind::InterruptedMerge),
        deltas: Vec::new(),
        alerts: Vec::new(),
    };
    let mut alerts = Vec::new();
    let mut alert = |check, filename: &str, text: String| {
        alerts.push(Alert {
            check,
            filename: filename.to_string(),
            text,
        });
    };
    for (i, node) in tree.nodes.iter().enumerate() {
        let filename = shown(&node.filename);
        for problem in &node.problems {
            match problem.kind {
                ProblemKind::MissingParent | ProblemKind::ParentModified | ProblemKind::Loop => {
                    alert("orphan", &filename, problem.text.clone());
                }
                ProblemKind::Broken => alert("broken", &filename, problem.text.clone()),
                ProblemKind::InterruptedMerge => alert("merge", &filename, problem.text.clone()),
                _ => {}
            }
        }
        if node.parent_linkage.is_none() {
            continue;
        }
        let parent = node.parent.map(|parent| &tree.nodes[parent]);
        let taken = parent.and_then(|parent| parent.modified);
        let age = taken.map(|taken| now.duration_since(taken).unwrap_or_default().as_secs());
        let bytes = on_disk(node);
        let growth = before.bytes.get(&filename).map(|&old| bytes as i64 - old as i64);
        let leaf = node.children.is_empty();
        let depth = tree.depth(i) as u64;
        if let Some(most) = args.max_depth.filter(|&most| leaf && depth > most) {
            alert(
                "depth",
                &filename,
                format!("{depth} files in the chain, at most {most} wanted"),
            );
        }
        if let (Some(age), Some(most)) = (age, args.max_age.map(|most| most.as_secs())) {
            if age > most {
                let text = format!("the checkpoint is {} old, at most {} wanted", span(age), span(most));
                alert("age", &filename, text);
            }
        }
        if let Some(most) = args.max_delta.filter(|&most| bytes > most) {
            let text = format!("{} on disk, at most {} wanted", human(bytes), human(most));
            alert("delta", &filename, text);
        }
        if let (Some(growth), Some(most)) = (growth.and_then(|g| u64::try_from(g).ok()), args.max_growth) {
            if growth > most {
                let text = format!("grew by {}, at most {} wanted", human(growth), human(most));
                alert("growth", &filename, text);
            }
        }
        report.deltas.push(Delta {
            filename,
            leaf,
            depth,
            bytes,
            age,
            growth,
        });
    }
    for unreadable in &tree.unreadable {
        alert("broken", &shown(&unreadable.filename), unreadable.why.clone());
    }
    report.ok = alerts.is_empty();
    report.alerts = alerts;
    report
}

fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} seconds"),
        120..=7199 => format!("{} minutes", seconds / 60),
        7200..=172_799 => format!("{} hours", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for delta in &report.deltas {
        let _ = write!(
            text,
            "{}: {} files, {}",
            safe(&delta.filename),
            delta.depth,
            human(delta.bytes)
        );
        if let Some(age) = delta.age {
            let _ = write!(text, ", {} old", span(age));
        }
        if let Some(growth) = delta.growth {
            let _ = write!(text, ", {growth:+} bytes since the last run");
        }
        text.push('\n');
    }
    for alert in &report.alerts {
        let _ = writeln!(
            text,
            "! {}: {}: {}",
            alert.check,
            safe(&alert.filename),
            safe(&alert.text)
        );
    }
    let _ = writeln!(
        text,
        "{} files, {} orphans, {} broken, {} alerts",
        report.files,
        report.orphans,
        report.broken,
        report.alerts.len()
    );
    text
}

/// The text format of Prometheus.
fn exposition(report: &Report) -> String {
    let mut text = String::new();
    let mut metric = |name: &str, help: &str, samples: Vec<(String, String)>| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (labels, value) in samples {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    };
    let per_file = |value: &dyn Fn(&Delta) -> Option<String>| -> Vec<(String, String)> {
        let label = |delta: &Delta| format!("{{file=\"{}\"}}", escape(&delta.filename));
        report
            .deltas
            .iter()
            .filter_map(|delta| Some((label(delta), value(delta)?)))
            .collect()
    };
    let one = |value: usize| vec![(String::new(), value.to_string())];
    metric(
        "avhdx_chain_depth_files",
        "Files in the chain of a leaf.",
        per_file(&|d| d.leaf.then(|| d.depth.to_string())),
    );
    metric(
        "avhdx_delta_bytes",
        "Bytes a differencing file takes on disk.",
        per_file(&|d| Some(d.bytes.to_string())),
    );
    metric(
        "avhdx_delta_age_seconds",
        "Time since the parent of a differencing file was last written.",
        per_file(&|d| d.age.map(|age| age.to_string())),
    );
    metric(
        "avhdx_delta_growth_bytes",
        "Bytes a differencing file gained since the last run.",
        per_file(&|d| d.growth.map(|growth| growth.to_string())),
    );
    metric("avhdx_files", "Disk files found.", one(report.files));
    metric(
        "avhdx_orphans",
        "Differencing files without their parent.",
        one(report.orphans),
    );
    metric(
        "avhdx_broken_files",
        "Files that cannot be read as a VHDX.",
        one(report.broken),
    );
    metric(
        "avhdx_interrupted_merges",
        "Merges that were cut short.",
        one(report.interrupted_merges),
    );
    let mut by_check: BTreeMap<&str, usize> = BTreeMap::new();
    for check in ["depth", "age", "delta", "growth", "orphan", "broken", "merge"] {
        by_check.insert(check, report.alerts.iter().filter(|alert| alert.check == check).count());
    }
    let alerts = by_check
        .into_iter()
        .map(|(check, n)| (format!("{{check=\"{check}\"}}"), n.to_string()));
    metric(
        "avhdx_alerts",
        "Thresholds exceeded and problems, by check.",
        alerts.collect(),
    );
    text
}

/// A label value: backslash, quote and line feed are escaped.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn state_failed(path: &Path, what: &str, why: impl std::fmt::Display) -> Failure {
    let hint = "name another file with --state, or remove this one to begin anew";
    Failure::Other(format!("cannot {what} the state file {path:?}: {why}"), hint.into())
}

fn load(path: &Path) -> Result<State, Failure> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| state_failed(path, "read", e)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(State::default()),
        Err(e) => Err(state_failed(path, "read", e)),
    }
}

/// Whole or not at all.
fn save(path: &Path, state: &State) -> Result<(), Failure> {
    let mut name = path.as_os_str().to_os_string();
    name.push(".new");
    let text = serde_json::to_vec(state).unwrap_or_default();
    std::fs::write(&name, text)
        .and_then(|()| std::fs::rename(&name, path))
        .map_err(|e| state_failed(path, "write", e))
}
