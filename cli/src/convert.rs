//! Verbs that write the content of a disk as something else.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use avhdx::options::{ConvertOptions, CopyMode, DiskType, ImageFormat, MigrateOptions, OpenOptions};
use avhdx::vhd::{VhdChain, VhdInfo};
use avhdx::{ops, Chain, ErrorKind};
use clap::{Args, ValueEnum};

use crate::args::{size, Open};
use crate::bar::Bar;
use crate::report::{human, safe};
use crate::work::small;
use crate::{Failure, Outcome};

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Raw,
    Vhdx,
    Vhd,
}

impl From<Format> for ImageFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Raw => ImageFormat::Raw,
            Format::Vhdx => ImageFormat::Vhdx,
            Format::Vhd => ImageFormat::Vhd,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Type {
    Dynamic,
    Fixed,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mode {
    Auto,
    Copy,
    Reflink,
}

impl From<Mode> for CopyMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Auto => CopyMode::Auto,
            Mode::Copy => CopyMode::Copy,
            Mode::Reflink => CopyMode::Reflink,
        }
    }
}

/// What the new file is to be.
#[derive(Debug, Args)]
struct New {
    /// Type of the new disk
    #[arg(long = "type", value_enum)]
    kind: Option<Type>,
    /// Block size of the new disk: a power of two from 1M (VHD: 512K) to 256M
    #[arg(long, value_parser = size)]
    block_size: Option<u64>,
    /// How the bytes get there: copy leaves zeros out, reflink shares extents, auto does that where it can
    #[arg(long, value_enum, default_value = "auto")]
    mode: Mode,
    /// Bytes read per second at most
    #[arg(long, value_parser = size)]
    rate: Option<u64>,
    /// Threads that read, at most 64
    #[arg(long, value_parser = clap::value_parser!(u8).range(..=64))]
    threads: Option<u8>,
}

impl New {
    fn options(&self) -> Result<ConvertOptions, Failure> {
        let mut options = ConvertOptions::default();
        options.disk_type = match self.kind {
            Some(Type::Fixed) => DiskType::Fixed,
            Some(Type::Dynamic) | None => DiskType::Dynamic,
        };
        options.block_size = small(self.block_size, "--block-size")?;
        options.mode = self.mode.into();
        options.rate = self.rate.unwrap_or(0);
        options.threads = self.threads.map_or(0, usize::from);
        Ok(options)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Convert {
    /// The disk; of a chain, the last file
    pub(crate) leaf: PathBuf,
    /// The new file; an existing one is never replaced. "-" writes raw to standard output
    pub(crate) out: PathBuf,
    /// Format; by default by the suffix of the new file, raw for others
    #[arg(long, value_enum)]
    to: Option<Format>,
    #[command(flatten)]
    new: New,
    /// 512 or 4096
    #[arg(long, value_parser = size)]
    logical_sector_size: Option<u64>,
    /// The disk as of this layer; 0 is the leaf
    #[arg(long, default_value = "0")]
    layer: usize,
    /// Make a differencing VHDX on this disk that holds only what differs from it
    #[arg(long, value_name = "FILE")]
    parent: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) open: Open,
}

#[derive(Debug, Args)]
pub(crate) struct Migrate {
    /// The VHD or AVHD; of a chain, the last file
    old: PathBuf,
    /// The new VHDX; an existing file is never replaced
    new: PathBuf,
    /// Keep the chain: the parents become files beside the new one, named as they are with .vhdx or .avhdx
    #[arg(long)]
    chain: bool,
    #[command(flatten)]
    what: New,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    open: Open,
}

impl Convert {
    pub(crate) fn options(&self) -> Result<ConvertOptions, Failure> {
        let mut options = self.new.options()?;
        options.to = self.to.map(ImageFormat::from);
        options.logical_sector_size = small(self.logical_sector_size, "--logical-sector-size")?;
        options.layer = self.layer;
        options.parent = self.parent.clone();
        Ok(options)
    }
}

pub(crate) fn convert(args: &Convert) -> Outcome {
    let options = args.options()?;
    let opening = args.open.reading();
    let chain = match Chain::open(&args.leaf, &opening) {
        Err(error) if error.kind() == ErrorKind::NotVhdx && avhdx::vhd::is_vhd(&args.leaf, &opening)? => {
            return Err(Failure::Other(
                format!("{}: a VHD", args.leaf.display()),
                "use avhdx migrate, which reads VHD".into(),
            ));
        }
        opened => opened?,
    };
    let mut bar = Bar::new("converting");
    if args.out.as_os_str() == "-" {
        if io::stdout().is_terminal() {
            return Err(Failure::Usage(
                "standard output is a terminal: send it to a file or program".into(),
            ));
        }
        let mut out = io::stdout().lock();
        ops::convert_to_stream(&chain, &mut out, &options, &mut |p| bar.show(p.done, p.total)).map_err(broken_pipe)?;
        return Ok(0);
    }
    let report = ops::convert(&chain, &args.out, &options, &mut |p| bar.show(p.done, p.total))?;
    bar.finish();
    if args.json {
        let format = match report.format {
            ImageFormat::Vhdx => "vhdx",
            ImageFormat::Vhd => "vhd",
            _ => "raw",
        };
        let value = serde_json::json!({
            "filename": args.out.to_string_lossy(),
            "format": format,
            "virtual-size": report.virtual_size,
            "file-size": report.file_size,
            "reflinked": report.reflinked,
        });
        println!("{value:#}");
    }
    Ok(0)
}

/// A reader that has what it wanted is no failure, here as elsewhere.
fn broken_pipe(error: avhdx::Error) -> Failure {
    match error.errno() == 32 && error.path().is_none() {
        true => Failure::Stream(io::ErrorKind::BrokenPipe.into()),
        false => Failure::Disk(error),
    }
}

pub(crate) fn migrate(args: &Migrate) -> Outcome {
    let mut options = MigrateOptions::default();
    options.chain = args.chain;
    options.convert = args.what.options()?;
    let mut bar = Bar::new("migrating");
    let files = ops::migrate(&args.old, &args.new, &options, &args.open.reading(), &mut |p| {
        bar.show(p.done, p.total)
    })?;
    bar.finish();
    if args.json {
        let files: Vec<_> = files.iter().map(|file| file.to_string_lossy()).collect();
        println!("{:#}", serde_json::json!({ "files": files }));
        return Ok(0);
    }
    for file in &files {
        println!("made {}", safe(&file.to_string_lossy()));
    }
    Ok(0)
}

/// What `info` says of a VHD.
pub(crate) fn vhd_info(path: &Path, options: &OpenOptions, json: bool) -> Outcome {
    let infos = VhdChain::open(path, options)?.info()?;
    let mut out = io::stdout().lock();
    if json {
        let value = match (options.parents, infos.first()) {
            (false, Some(info)) => serde_json::to_string_pretty(info),
            _ => serde_json::to_string_pretty(&infos),
        };
        writeln!(out, "{}", value.unwrap_or_default())?;
        return Ok(0);
    }
    for (i, info) in infos.iter().enumerate() {
        if i > 0 {
            writeln!(out)?;
        }
        print(&mut out, info)?;
    }
    writeln!(out, "\nA VHD is only read: avhdx migrate makes a VHDX of it.")?;
    Ok(0)
}

fn print(out: &mut impl Write, info: &VhdInfo) -> io::Result<()> {
    let mut line = |name: &str, value: String| writeln!(out, "{:<22}{value}", format!("{name}:"));
    line("file", safe(&info.filename))?;
    line("format", "VHD".into())?;
    line("type", format!("{:?}", info.disk_type).to_lowercase())?;
    line("virtual size", human(info.virtual_size))?;
    line("file size", human(info.file_size))?;
    if let Some(block_size) = info.block_size {
        line("block size", human(block_size.into()))?;
        line("blocks in the file", info.allocated_blocks.to_string())?;
    }
    line("written by", safe(&info.creator))?;
    line("unique ID", info.unique_id.to_string())?;
    if let Some(id) = info.parent_unique_id {
        line("parent's unique ID", id.to_string())?;
    }
    for (key, text) in &info.parent_paths {
        line(key, safe(text))?;
    }
    Ok(())
}
