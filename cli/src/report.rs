//! Verbs that tell.

use std::io::{self, Write};
use std::path::Path;

use avhdx::ops::{self, CheckOptions, Severity};
use avhdx::{Chain, LayerInfo, Scope};
use serde_json::json;

use crate::args::Open;
use crate::Outcome;

/// Extents asked for at once.
const EXTENTS: usize = 4096;

pub(crate) fn human(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    match unit {
        "B" => format!("{bytes} B"),
        _ => format!("{value:.4} {unit} ({bytes} bytes)").replace(".0000", ""),
    }
}

/// Text from a file, safe for a terminal.
pub(crate) fn safe(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().collect::<Vec<_>>()
            } else {
                vec![c]
            }
        })
        .collect()
}

pub(crate) fn info(path: &Path, open: &Open, json: bool, whole_chain: bool) -> Outcome {
    let mut options = open.reading();
    // Telling what one file is does not need its parents.
    options.parents &= whole_chain;
    let chain = match Chain::open(path, &options) {
        Err(error) if error.kind() == avhdx::ErrorKind::NotVhdx && avhdx::vhd::is_vhd(path, &options)? => {
            return crate::convert::vhd_info(path, &options, json);
        }
        opened => opened?,
    };
    let info = chain.info()?;
    let mut out = io::stdout().lock();
    if json {
        let value = match whole_chain {
            true => serde_json::to_value(&info),
            false => serde_json::to_value(&info.layers[0]),
        };
        let text = value
            .and_then(|value| serde_json::to_string_pretty(&value))
            .unwrap_or_default();
        writeln!(out, "{text}")?;
        return Ok(0);
    }
    for (i, layer) in info.layers.iter().enumerate() {
        if i > 0 {
            writeln!(out)?;
        }
        print_layer(&mut out, i, info.layers.len(), layer)?;
    }
    if info.pending_merge {
        writeln!(out, "\nAn interrupted merge was found: avhdx resume finishes it.")?;
    }
    Ok(0)
}

fn print_layer(out: &mut impl Write, index: usize, count: usize, layer: &LayerInfo) -> io::Result<()> {
    let mut line = |name: &str, value: String| writeln!(out, "{:<22}{value}", format!("{name}:"));
    line("file", safe(&layer.filename.to_string_lossy()))?;
    if count > 1 {
        line(
            "layer",
            format!("{index} of {count}{}", if index == 0 { ", the leaf" } else { "" }),
        )?;
    }
    line("type", format!("{:?}", layer.disk_type).to_lowercase())?;
    line("virtual size", human(layer.virtual_size))?;
    line("file size", human(layer.file_size))?;
    if let Some(actual) = layer.actual_size {
        line("on disk", human(actual))?;
    }
    line("block size", human(u64::from(layer.block_size)))?;
    line(
        "sector size",
        format!(
            "{} logical, {} physical",
            layer.logical_sector_size, layer.physical_sector_size
        ),
    )?;
    line("creator", safe(&layer.creator))?;
    line("virtual disk id", layer.virtual_disk_id.to_string())?;
    line("data write guid", layer.data_write_guid.to_string())?;
    line(
        "log",
        if layer.dirty_flag {
            "holds updates".into()
        } else {
            "empty".into()
        },
    )?;
    if let Some(linkage) = layer.parent_linkage {
        line("parent linkage", linkage.to_string())?;
    }
    for (key, value) in &layer.parent_paths {
        line(&safe(key), safe(value))?;
    }
    match &layer.full_backing_filename {
        Some(parent) => line("parent", safe(&parent.to_string_lossy())),
        None => Ok(()),
    }
}

pub(crate) fn map(path: &Path, open: &Open, json: bool) -> Outcome {
    let chain = Chain::open(path, &open.reading())?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let (mut at, mut first) = (0, true);
    let mut extents = Vec::new();
    if json {
        write!(out, "[")?;
    } else {
        writeln!(
            out,
            "{:<18}{:<18}{:<11}{:<7}File offset",
            "Offset", "Length", "State", "Layer"
        )?;
    }
    while at < chain.size() {
        extents.clear();
        at += chain.block_status(at, chain.size() - at, Scope::Chain, EXTENTS, &mut extents)?;
        for extent in &extents {
            if json {
                let value = json!({
                    "start": extent.offset,
                    "length": extent.length,
                    "state": extent.state,
                    "depth": extent.layer,
                    "zero": extent.file_offset.is_none(),
                    "data": extent.file_offset.is_some(),
                    "offset": extent.file_offset,
                });
                write!(out, "{}{value}", if first { "\n" } else { ",\n" })?;
            } else {
                let state = format!("{:?}", extent.state).to_lowercase();
                let place = extent.file_offset.map_or("-".to_string(), |o| format!("{o:#x}"));
                let (offset, length) = (format!("{:#x}", extent.offset), format!("{:#x}", extent.length));
                writeln!(out, "{offset:<18}{length:<18}{state:<11}{:<7}{place}", extent.layer)?;
            }
            first = false;
        }
    }
    if json {
        writeln!(out, "\n]")?;
    }
    out.flush()?;
    Ok(0)
}

pub(crate) fn check(path: &Path, open: &Open, json: bool, windows: bool) -> Outcome {
    let mut options = CheckOptions::default();
    options.windows = windows;
    let mut findings = Vec::new();
    let report = ops::check(path, &open.reading(), &options, &mut |finding| {
        findings.push(finding.clone())
    })?;
    let mut out = io::stdout().lock();
    if json {
        let list: Vec<_> = findings
            .iter()
            .map(|f| {
                json!({
                    "severity": f.severity,
                    "rule": f.defect.rule,
                    "structure": f.defect.structure,
                    "offset": f.defect.offset,
                    "found": f.defect.found,
                    "wanted": f.defect.wanted,
                })
            })
            .collect();
        let value = json!({ "filename": path, "report": report, "findings": list });
        writeln!(out, "{}", serde_json::to_string_pretty(&value).unwrap_or_default())?;
    } else {
        for finding in &findings {
            let severity = match finding.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
                Severity::Note => "note",
            };
            writeln!(out, "{severity}: {}", safe(&finding.defect.to_string()))?;
        }
        writeln!(
            out,
            "{} errors, {} warnings, {} notes; {} of {} blocks allocated, {} not in use",
            report.errors,
            report.warnings,
            report.notes,
            report.allocated_blocks,
            report.total_blocks,
            human(report.leaked_bytes)
        )?;
    }
    Ok(if report.errors > 0 { 3 } else { 0 })
}
