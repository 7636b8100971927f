//! Verbs that change what a chain is made of: revert, delete, reparent, rebase, detach.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use avhdx::options::{DeleteInto, DeleteOptions, RebaseOptions, ReparentOptions, RevertOptions};
use avhdx::{ops, Chain};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use crate::args::{size, Mode, Open};
use crate::bar::Bar;
use crate::{Failure, Outcome};

#[derive(Debug, Subcommand)]
pub(crate) enum Surgery {
    /// Go back to a checkpoint, on a new differencing child of it
    Revert {
        /// The disk written to now
        leaf: PathBuf,
        /// The file of its chain to go back to, by path or layer number; 1 is the parent
        checkpoint: PathBuf,
        /// The new file, written to from now on
        new: PathBuf,
        /// Remove the files of the state left behind that no other disk depends on
        #[arg(long)]
        unlink: bool,
        /// Size of a payload block of the new file
        #[arg(long, value_parser = size)]
        block_size: Option<u64>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        open: Open,
    },
    /// Delete a checkpoint; what was made on it keeps its content
    Delete(Delete),
    /// Tell a disk where its parent is now
    Reparent {
        /// The differencing disk
        child: PathBuf,
        /// Its parent
        parent: PathBuf,
        /// Accept a parent that is not the recorded one; wrong content makes the disk garbage
        #[arg(long)]
        ignore_id_mismatch: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        open: Open,
    },
    /// Put a disk on another parent, keeping its content
    Rebase(Rebase),
    /// Make a disk independent of its parents, in its own file
    Detach(Detach),
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The disk written to now
    pub(crate) leaf: PathBuf,
    /// The file to delete: of its chain, by path or layer number; with --subtree of another branch
    pub(crate) file: PathBuf,
    /// Delete a branch beside the chain: the file and every disk that descends from it
    #[arg(long, conflicts_with_all = ["into", "mode", "rate", "verify"])]
    pub(crate) subtree: bool,
    /// Where its content goes
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) into: Into,
    /// How the bytes travel into the parent
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) mode: Mode,
    /// Read the parent back and compare before the file is removed
    #[arg(long)]
    pub(crate) verify: bool,
    /// Bytes per second at most
    #[arg(long, value_parser = size)]
    pub(crate) rate: Option<u64>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) open: Open,
}

#[derive(Debug, Args)]
pub(crate) struct Rebase {
    /// The disk
    pub(crate) leaf: PathBuf,
    /// The new parent
    pub(crate) parent: PathBuf,
    /// Bytes per second at most
    #[arg(long, value_parser = size)]
    pub(crate) rate: Option<u64>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) open: Open,
}

#[derive(Debug, Args)]
pub(crate) struct Detach {
    /// The disk
    pub(crate) leaf: PathBuf,
    /// Bytes per second at most
    #[arg(long, value_parser = size)]
    pub(crate) rate: Option<u64>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) open: Open,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Into {
    /// The parent, unless other disks depend on it
    Auto,
    /// The parent, whose own state is then gone
    Parent,
    /// Each child
    Children,
}

impl From<Into> for DeleteInto {
    fn from(into: Into) -> Self {
        match into {
            Into::Auto => DeleteInto::Auto,
            Into::Parent => DeleteInto::Parent,
            Into::Children => DeleteInto::Children,
        }
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn texts(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| text(path)).collect()
}

/// The layer that a path, or a number where no such file exists, means.
pub(crate) fn layer_of(chain: &Chain, what: &Path) -> Result<usize, Failure> {
    let Ok(wanted) = std::fs::metadata(what) else {
        let number = what.to_str().and_then(|text| text.parse().ok());
        return number.filter(|&layer| layer < chain.layer_count()).ok_or_else(|| {
            Failure::Other(
                format!("{}: no such file, and no layer of this number", what.display()),
                "avhdx info --chain lists the files".into(),
            )
        });
    };
    for layer in 0..chain.layer_count() {
        let found = std::fs::metadata(chain.layer_path(layer)?)?;
        if (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()) {
            return Ok(layer);
        }
    }
    Err(Failure::Other(
        format!("{} is not in the chain", what.display()),
        "avhdx info --chain lists the files; delete --subtree takes those of other branches".into(),
    ))
}

/// Closes after an operation; the first failure is the one to tell.
fn close<T>(chain: Chain, result: avhdx::Result<T>) -> avhdx::Result<T> {
    match result {
        Ok(done) => chain.close().map(|()| done),
        Err(error) => {
            let _ = chain.close();
            Err(error)
        }
    }
}

fn told(json: bool, value: serde_json::Value, lines: &[String]) -> Outcome {
    match json {
        true => println!("{value:#}"),
        false => lines.iter().for_each(|line| println!("{line}")),
    }
    Ok(0)
}

fn removed(paths: &[PathBuf]) -> impl Iterator<Item = String> + '_ {
    paths.iter().map(|path| format!("removed {}", path.display()))
}

pub(crate) fn run(verb: Surgery) -> Outcome {
    match verb {
        Surgery::Revert {
            leaf,
            checkpoint,
            new,
            unlink,
            block_size,
            json,
            open,
        } => {
            let chain = Chain::open(&leaf, &open.writing())?;
            let layer = layer_of(&chain, &checkpoint)?;
            let mut options = RevertOptions::default();
            options.unlink = unlink;
            options.block_size = u32::try_from(block_size.unwrap_or(0))
                .map_err(|_| Failure::Usage("--block-size is too large".into()))?;
            let back = chain.layer_path(layer)?;
            let result = ops::revert(&chain, layer, &new, &options);
            let report = close(chain, result)?;
            let mut lines = vec![format!("the disk is now {}, on {}", new.display(), back.display())];
            lines.extend(removed(&report.removed));
            let kept = match unlink {
                true => "kept {}: other disks depend on it, or it is in use",
                false => "kept {}",
            };
            lines.extend(report.kept.iter().map(|path| kept.replace("{}", &text(path))));
            let value = json!({
                "leaf": text(&new),
                "parent": text(&back),
                "removed": texts(&report.removed),
                "kept": texts(&report.kept),
            });
            told(json, value, &lines)
        }
        Surgery::Delete(Delete {
            leaf,
            file,
            subtree,
            into,
            mode,
            verify,
            rate,
            json,
            open,
        }) => {
            let chain = Chain::open(&leaf, &open.writing())?;
            let result = if subtree {
                ops::delete_branch(&chain, &file)
            } else {
                let layer = layer_of(&chain, &file)?;
                let mut options = DeleteOptions::default();
                options.into = into.into();
                options.mode = mode.into();
                options.verify = verify;
                options.rate = rate.unwrap_or(0);
                let mut bar = Bar::new("deleting");
                let result = ops::delete_layer(&chain, layer, &options, &mut |p| bar.show(p.done, p.total));
                bar.finish();
                result
            };
            let report = close(chain, result)?;
            let mut lines = Vec::new();
            if !subtree {
                let whom = if report.into_children {
                    "its children"
                } else {
                    "its parent"
                };
                lines.push(format!("copied {} bytes into {whom}", report.bytes));
            }
            lines.extend(
                report
                    .relinked
                    .iter()
                    .map(|path| format!("{} has another parent now", path.display())),
            );
            lines.extend(removed(&report.removed));
            let value = json!({
                "bytes": report.bytes,
                "into": if subtree { "nothing" } else if report.into_children { "children" } else { "parent" },
                "relinked": texts(&report.relinked),
                "removed": texts(&report.removed),
            });
            told(json, value, &lines)
        }
        Surgery::Reparent {
            child,
            parent,
            ignore_id_mismatch,
            json,
            open,
        } => {
            let mut options = ReparentOptions::default();
            options.ignore_id_mismatch = ignore_id_mismatch;
            let report = ops::reparent(&child, &parent, &open.writing(), &options)?;
            for warning in &report.warnings {
                eprintln!("warning: {warning}");
            }
            let lines = [format!(
                "{} now has {} as its parent",
                child.display(),
                report.parent.display()
            )];
            let value = json!({
                "child": text(&child),
                "parent": text(&report.parent),
                "parent-data-write-guid": report.parent_id.to_string(),
                "recorded-data-write-guid": report.recorded.to_string(),
                "matched": report.matched,
                "warnings": report.warnings,
            });
            told(json, value, &lines)
        }
        Surgery::Rebase(Rebase {
            leaf,
            parent,
            rate,
            json,
            open,
        }) => {
            let chain = Chain::open(&leaf, &open.writing())?;
            let mut bar = Bar::new("rebasing");
            let mut options = RebaseOptions::default();
            options.rate = rate.unwrap_or(0);
            let result = ops::rebase(&chain, &parent, &options, &mut |p| bar.show(p.done, p.total));
            bar.finish();
            let report = close(chain, result)?;
            let line = format!(
                "{} is now on {}; {} bytes copied into it",
                leaf.display(),
                parent.display(),
                report.bytes
            );
            let value = json!({ "leaf": text(&leaf), "parent": text(&parent), "bytes": report.bytes });
            told(json, value, &[line])
        }
        Surgery::Detach(Detach { leaf, rate, json, open }) => {
            let chain = Chain::open(&leaf, &open.writing())?;
            let mut bar = Bar::new("detaching");
            let mut options = RebaseOptions::default();
            options.rate = rate.unwrap_or(0);
            let result = ops::detach(&chain, &options, &mut |p| bar.show(p.done, p.total));
            bar.finish();
            let report = close(chain, result)?;
            let line = format!(
                "{} needs no other file now; {} bytes copied into it",
                leaf.display(),
                report.bytes
            );
            told(json, json!({ "leaf": text(&leaf), "bytes": report.bytes }), &[line])
        }
    }
}
