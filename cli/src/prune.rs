//! The verb that merges away the oldest checkpoints by a policy.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use avhdx::options::MergeOptions;
use avhdx::{ops, Chain, ExtentState};
use clap::Args;

use crate::args::{size, Mode, Open};
use crate::bar::Bar;
use crate::monitor::age;
use crate::report::{human, safe};
use crate::{Failure, Outcome};

/// Ranges asked for at once.
const RANGES: usize = 4096;

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("policy").required(true).multiple(true).args(["keep", "max_age"])))]
pub(crate) struct Prune {
    /// The disk; of a chain, the last file. It stays
    leaf: PathBuf,
    /// Files left in the chain at most, base and leaf included
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..))]
    keep: Option<u64>,
    /// Merge away checkpoints older than this: seconds, or with m, h, d or w
    #[arg(long, value_name = "AGE", value_parser = age)]
    max_age: Option<Duration>,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// How the bytes travel
    #[arg(long, value_enum, default_value = "auto")]
    mode: Mode,
    /// Bytes per second at most
    #[arg(long, value_parser = size)]
    rate: Option<u64>,
    #[command(flatten)]
    open: Open,
}

/// The newest layer that is merged away: it and all between it and the base. Never the leaf.
fn top(args: &Prune, chain: &Chain) -> Result<Option<usize>, Failure> {
    let base = chain.layer_count() - 1;
    let by_count = args
        .keep
        .and_then(|keep| usize::try_from(keep).ok())
        .map(|keep| keep - 1);
    let mut by_age = None;
    if let Some(most) = args.max_age {
        let now = SystemTime::now();
        for layer in 1..base {
            let parent = chain.layer_path(layer + 1)?;
            let taken = std::fs::metadata(&parent).and_then(|metadata| metadata.modified());
            let taken = taken.map_err(|cause| {
                Failure::Other(
                    format!("cannot tell when {parent:?} was last written: {cause}"),
                    String::new(),
                )
            })?;
            if now.duration_since(taken).unwrap_or_default() > most {
                by_age = Some(layer);
                break;
            }
        }
    }
    Ok(by_count.into_iter().chain(by_age).min().filter(|&top| top < base))
}

/// Bytes that a merge of `top` into `base` moves.
fn bytes_held(chain: &Chain, top: usize, base: usize) -> Result<u64, Failure> {
    let size = chain.layer_info(top)?.virtual_size;
    let (mut at, mut bytes) = (0, 0);
    let mut ranges = Vec::new();
    while at < size {
        ranges.clear();
        at += ops::diff(chain, top, base, (at, size - at), false, RANGES, &mut ranges)?;
        let data = ranges.iter().filter(|range| range.state == ExtentState::Data);
        bytes += data.map(|range| range.length).sum::<u64>();
    }
    Ok(bytes)
}

pub(crate) fn prune(args: &Prune) -> Outcome {
    let open = match args.dry_run {
        true => args.open.reading(),
        false => args.open.writing(),
    };
    let chain = Chain::open(&args.leaf, &open)?;
    let base = chain.layer_count() - 1;
    let mut out = io::stdout().lock();
    let Some(top) = top(args, &chain)? else {
        writeln!(out, "nothing to prune: {} files, none of them due", base + 1)?;
        chain.close()?;
        return Ok(0);
    };
    let into = chain.layer_path(base)?;
    let bytes = bytes_held(&chain, top, base)?;
    let (verb, merged) = match args.dry_run {
        true => ("would merge", "would merge away"),
        false => ("merging", "merging away"),
    };
    writeln!(out, "{verb} {} into {}", human(bytes), safe(&into.to_string_lossy()))?;
    for layer in top..base {
        writeln!(out, "{merged} {}", safe(&chain.layer_path(layer)?.to_string_lossy()))?;
    }
    if args.dry_run {
        return Ok(0);
    }
    out.flush()?;
    drop(out);
    let mut options = MergeOptions::default();
    options.mode = args.mode.into();
    options.rate = args.rate.unwrap_or(0);
    let mut bar = Bar::new("pruning");
    let merged = ops::merge(&chain, top, base, &options, &mut |p| bar.show(p.done, p.total));
    bar.finish();
    // The first failure is the one to tell; closing cleanly is only tidiness.
    let closed = chain.close();
    merged?;
    closed?;
    writeln!(io::stdout(), "{} files are left", top + 1)?;
    Ok(0)
}
