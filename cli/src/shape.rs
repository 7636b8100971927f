//! Verbs that change the shape of a disk: compact, resize, min-size, meta, set.

use std::io::{Read, Write};
use std::path::PathBuf;

use avhdx::ops::{self, Obstacle};
use avhdx::options::{CompactMode, CompactOptions, ResizeOptions};
use avhdx::{Chain, Guid};
use clap::{Args, Subcommand, ValueEnum};

use crate::args::{size, Open};
use crate::bar::Bar;
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct Compact {
    /// The disk; of a chain, the last file
    pub(crate) path: PathBuf,
    /// full reads every block and moves them together, quick reads none, prezeroed moves none
    #[arg(long, value_enum, default_value = "full")]
    pub(crate) mode: Mode,
    /// Bytes per second at most
    #[arg(long, value_parser = size)]
    rate: Option<u64>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) open: Open,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Mode {
    Full,
    Quick,
    Prezeroed,
}

impl From<Mode> for CompactMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Full => CompactMode::Full,
            Mode::Quick => CompactMode::Quick,
            Mode::Prezeroed => CompactMode::Prezeroed,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Resize {
    /// The disk; of a chain, the last file
    path: PathBuf,
    /// The new virtual size: bytes, or with K, M, G or T; "min" for what min-size prints
    #[arg(value_parser = new_size)]
    size: NewSize,
    /// Cut off what is behind the new end, partitions too
    #[arg(long)]
    r#unsafe: bool,
    #[command(flatten)]
    open: Open,
}

#[derive(Debug, Clone, Copy)]
enum NewSize {
    Least,
    Bytes(u64),
}

fn new_size(text: &str) -> Result<NewSize, String> {
    match text {
        "min" => Ok(NewSize::Least),
        _ => size(text).map(NewSize::Bytes),
    }
}

#[derive(Debug, Args)]
pub(crate) struct MinSize {
    /// The disk; of a chain, the last file
    path: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    open: Open,
}

#[derive(Debug, Args)]
pub(crate) struct SetSectorSize {
    /// The disk; of a chain, the last file
    path: PathBuf,
    /// 512 or 4096
    #[arg(value_parser = size)]
    size: u64,
    #[command(flatten)]
    open: Open,
}

#[derive(Debug, Args)]
pub(crate) struct ResetId {
    /// The disk; of a chain, the last file
    path: PathBuf,
    /// This identity instead of a random one
    #[arg(long, value_parser = guid)]
    id: Option<Guid>,
    #[command(flatten)]
    open: Open,
}

#[derive(Debug, Args)]
pub(crate) struct Meta {
    #[command(subcommand)]
    verb: MetaVerb,
}

#[derive(Debug, Subcommand)]
enum MetaVerb {
    /// List the items
    List {
        /// The disk
        path: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        open: Open,
    },
    /// Write an item to standard output
    Get {
        /// The disk
        path: PathBuf,
        /// The item
        #[arg(value_parser = guid)]
        id: Guid,
        #[command(flatten)]
        open: Open,
    },
    /// Make standard input an item, or replace one
    Set {
        /// The disk
        path: PathBuf,
        /// The item
        #[arg(value_parser = guid)]
        id: Guid,
        /// This text instead of standard input
        #[arg(long)]
        value: Option<String>,
        /// The item belongs to the virtual disk: checkpoints inherit it
        #[arg(long)]
        of_disk: bool,
        #[command(flatten)]
        open: Open,
    },
    /// Remove an item
    Delete {
        /// The disk
        path: PathBuf,
        /// The item
        #[arg(value_parser = guid)]
        id: Guid,
        #[command(flatten)]
        open: Open,
    },
}

fn guid(text: &str) -> Result<Guid, String> {
    Guid::parse(text).ok_or_else(|| "not a GUID such as 12345678-9abc-def0-1234-56789abcdef0".into())
}

/// The disk open for writing while `work` runs, closed cleanly also when that fails.
fn with<T>(path: &std::path::Path, open: &Open, work: impl FnOnce(&Chain) -> avhdx::Result<T>) -> Result<T, Failure> {
    let chain = Chain::open(path, &open.writing())?;
    match work(&chain) {
        Ok(result) => {
            chain.close()?;
            Ok(result)
        }
        Err(error) => {
            // The first failure is the one to tell; closing cleanly is only tidiness.
            let _ = chain.close();
            Err(error.into())
        }
    }
}

pub(crate) fn compact(args: &Compact) -> Outcome {
    let mut options = CompactOptions::default();
    options.mode = args.mode.into();
    options.rate = args.rate.unwrap_or(0);
    let mut bar = Bar::new("compacting");
    let report = with(&args.path, &args.open, |chain| {
        ops::compact(chain, &options, &mut |p| bar.show(p.done, p.total))
    })?;
    bar.finish();
    if args.json {
        println!("{:#}", serde_json::json!(report));
        return Ok(0);
    }
    let saved = report.size_before.saturating_sub(report.size_after);
    println!(
        "{} is {} bytes long now, {saved} less than before",
        report.filename.display(),
        report.size_after
    );
    for (count, what) in [
        (report.zero_blocks, "blocks of zeros gave up their space"),
        (report.trimmed_blocks, "trimmed blocks gave up their space"),
        (report.moved_blocks, "blocks moved"),
        (report.released_bitmaps, "sector bitmaps were not needed"),
    ] {
        if count > 0 {
            println!("{count} {what}");
        }
    }
    if let Some(obstacle) = report.obstacle {
        let why = match obstacle {
            Obstacle::NotMoved => "blocks were not to be moved",
            Obstacle::Metadata => "metadata at the end of the file stays where it is",
            _ => "the holes are smaller than a block",
        };
        println!("{} bytes inside are free: {why}", report.free_bytes);
    }
    if report.partial_blocks > 0 {
        println!(
            "{} blocks hold only some of their sectors and take the space of all",
            report.partial_blocks
        );
    }
    Ok(0)
}

pub(crate) fn resize(args: &Resize) -> Outcome {
    let mut options = ResizeOptions::default();
    options.allow_loss = args.r#unsafe;
    with(&args.path, &args.open, |chain| {
        let size = match args.size {
            NewSize::Least => ops::min_size(chain)?,
            NewSize::Bytes(size) => size,
        };
        ops::resize(chain, size, &options)
    })?;
    Ok(0)
}

pub(crate) fn min_size(args: &MinSize) -> Outcome {
    let chain = Chain::open(&args.path, &args.open.reading())?;
    let least = ops::min_size(&chain)?;
    match args.json {
        true => println!(
            "{:#}",
            serde_json::json!({ "min-size": least, "virtual-size": chain.size() })
        ),
        false => println!("{least}"),
    }
    Ok(0)
}

pub(crate) fn set_sector_size(args: &SetSectorSize) -> Outcome {
    let size = u32::try_from(args.size).map_err(|_| Failure::Usage("the sector size is too large".into()))?;
    with(&args.path, &args.open, |chain| {
        ops::set_physical_sector_size(chain, size)
    })?;
    Ok(0)
}

pub(crate) fn reset_id(args: &ResetId) -> Outcome {
    let id = with(&args.path, &args.open, |chain| ops::reset_disk_id(chain, args.id))?;
    println!("{id}");
    Ok(0)
}

pub(crate) fn meta(args: &Meta) -> Outcome {
    match &args.verb {
        MetaVerb::List { path, json, open } => {
            let items = ops::meta_list(&Chain::open(path, &open.reading())?)?;
            if *json {
                println!("{:#}", serde_json::json!(items));
                return Ok(0);
            }
            for item in items {
                let owner = if item.of_disk { "disk" } else { "file" };
                println!("{}  {owner}  {} bytes", item.id, item.length);
            }
        }
        MetaVerb::Get { path, id, open } => {
            let bytes = ops::meta_get(&Chain::open(path, &open.reading())?, *id)?;
            std::io::stdout().write_all(&bytes)?;
        }
        MetaVerb::Set {
            path,
            id,
            value,
            of_disk,
            open,
        } => {
            let bytes = match value {
                Some(text) => text.clone().into_bytes(),
                None => {
                    // One byte more than an item may have is enough to be refused.
                    let mut bytes = Vec::new();
                    std::io::stdin().take((1 << 20) + 1).read_to_end(&mut bytes)?;
                    bytes
                }
            };
            with(path, open, |chain| ops::meta_set(chain, *id, &bytes, *of_disk))?;
        }
        MetaVerb::Delete { path, id, open } => with(path, open, |chain| ops::meta_delete(chain, *id))?,
    }
    Ok(0)
}
