//! Mending a file, and taking that back.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use avhdx::ops::{self, RepairOptions, Severity};
use clap::Args;
use serde_json::json;

use crate::args::Open;
use crate::report::safe;
use crate::Outcome;

/// What to mend.
#[derive(Debug, Args)]
pub(crate) struct Mending {
    /// Only tell what would be done
    #[arg(long)]
    dry_run: bool,
    /// Where the undo file goes; FILE.undo if left out
    #[arg(long, value_name = "FILE")]
    undo: Option<PathBuf>,
    /// Empty a log without a valid entry; updates that were only in it are lost
    #[arg(long)]
    clear_log: bool,
    /// Cut the file behind its last structure
    #[arg(long)]
    cut_tail: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn repair(path: &Path, mending: &Mending, open: &Open) -> Outcome {
    let mut options = RepairOptions::default();
    options.dry_run = mending.dry_run;
    options.undo = mending.undo.clone();
    options.clear_log = mending.clear_log;
    options.cut_tail = mending.cut_tail;
    let mut findings = Vec::new();
    let report = ops::repair(path, &open.writing(), &options, &mut |finding| {
        findings.push(finding.clone())
    })?;
    let mut out = io::stdout().lock();
    let status = if report.check.errors > 0 { 3 } else { 0 };
    if mending.json {
        let list: Vec<_> = findings
            .iter()
            .map(|f| {
                json!({
                    "severity": f.severity,
                    "repaired": f.repaired,
                    "rule": f.defect.rule,
                    "structure": f.defect.structure,
                    "offset": f.defect.offset,
                    "found": f.defect.found,
                    "wanted": f.defect.wanted,
                })
            })
            .collect();
        let value = json!({
            "filename": path, "dry-run": mending.dry_run, "report": report.check, "undo": report.undo, "findings": list,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&value).unwrap_or_default())?;
        return Ok(status);
    }
    for finding in &findings {
        let what = match (finding.repaired, mending.dry_run, finding.severity) {
            (true, false, _) => "repaired",
            (true, true, _) => "can be repaired",
            (false, _, Severity::Error) => "error",
            (false, _, Severity::Warning) => "warning",
            (false, _, Severity::Note) => "note",
        };
        writeln!(out, "{what}: {}", safe(&finding.defect.to_string()))?;
    }
    let left = report.check.errors + report.check.warnings;
    let verb = if mending.dry_run { "can be repaired" } else { "repaired" };
    writeln!(out, "{} {verb}, {left} left", report.check.repaired)?;
    if let Some(undo) = &report.undo {
        writeln!(
            out,
            "what was overwritten is in {}; avhdx undo takes the repair back",
            undo.display()
        )?;
    }
    Ok(status)
}

pub(crate) fn undo(path: &Path, undo: Option<&Path>, open: &Open) -> Outcome {
    ops::undo(path, undo, &open.writing())?;
    println!("{} is what it was before the repair", path.display());
    Ok(0)
}
