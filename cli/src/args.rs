//! The command line's grammar.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use avhdx::options::{DiskType, LogPolicy, MergeMode, MergeOptions, OpenOptions};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Hyper-V VHDX/AVHDX disks and their checkpoints.
#[derive(Debug, Parser)]
#[command(name = "avhdx", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Tell what a disk is, and its chain
    Info {
        /// The disk; of a chain, the last file
        path: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Every file of the chain, not only the first
        #[arg(long)]
        chain: bool,
        #[command(flatten)]
        open: Open,
    },
    /// Make a new disk
    Create {
        /// The new file; an existing one is never replaced
        path: PathBuf,
        /// Virtual size: bytes, or with K, M, G or T
        #[arg(long, value_parser = size)]
        size: Option<u64>,
        /// Type; differencing when a parent is given
        #[arg(long = "type", value_enum)]
        kind: Option<Kind>,
        /// Parent of a differencing disk
        #[arg(long)]
        parent: Option<PathBuf>,
        /// Size of a payload block: a power of two from 1M to 256M
        #[arg(long, value_parser = size)]
        block_size: Option<u64>,
        /// 512 or 4096
        #[arg(long, value_parser = size)]
        logical_sector_size: Option<u64>,
        /// 512 or 4096
        #[arg(long, value_parser = size)]
        physical_sector_size: Option<u64>,
        /// Size of the log: a multiple of 1M
        #[arg(long, value_parser = size)]
        log_size: Option<u64>,
        #[command(flatten)]
        open: Open,
    },
    /// Seal a disk and continue on a new differencing child
    Checkpoint {
        /// The disk written to now
        leaf: PathBuf,
        /// The new file, written to from now on
        new: PathBuf,
        /// Size of a payload block of the new file
        #[arg(long, value_parser = size)]
        block_size: Option<u64>,
        #[command(flatten)]
        open: Open,
    },
    /// Write a part of the disk to standard output
    Read {
        /// The disk
        path: PathBuf,
        #[command(flatten)]
        range: Range,
        #[command(flatten)]
        open: Open,
    },
    /// Write standard input, or a pattern, to the disk
    Write {
        /// The disk
        path: PathBuf,
        #[command(flatten)]
        range: Range,
        /// Fill --length bytes with this byte instead
        #[arg(long, requires = "length", value_parser = byte)]
        pattern: Option<u8>,
        #[command(flatten)]
        open: Open,
    },
    /// Make a range read as zeros
    Zero {
        /// The disk
        path: PathBuf,
        #[command(flatten)]
        range: Range,
        #[command(flatten)]
        open: Open,
    },
    /// Give back the space of the whole blocks in a range
    Discard {
        /// The disk
        path: PathBuf,
        #[command(flatten)]
        range: Range,
        #[command(flatten)]
        open: Open,
    },
    /// List what is where
    Map {
        /// The disk
        path: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        open: Open,
    },
    /// Merge a checkpoint into its parent, or into an older ancestor
    Merge(Merge),
    /// Tell whether a merge was interrupted, and which
    Pending {
        /// The disk; of a chain, the last file
        leaf: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        open: Open,
    },
    /// Finish interrupted merges, as they were asked for
    Resume {
        /// The disk; of a chain, the last file
        leaf: PathBuf,
        #[command(flatten)]
        merging: Merging,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        open: Open,
    },
    /// Tell what an operation would do, without doing it
    #[command(subcommand)]
    Plan(crate::plan::Planned),
    /// Write the content of a disk to a new file of any format
    Convert(crate::convert::Convert),
    /// Write a VHD or AVHD, and its parents, as VHDX
    Migrate(crate::convert::Migrate),
    #[command(flatten)]
    Surgery(crate::surgery::Surgery),
    /// Make a file as short as it can be; the disk reads the same
    Compact(crate::shape::Compact),
    /// Change the virtual size
    Resize(crate::shape::Resize),
    /// Print the smallest size that resize accepts
    MinSize(crate::shape::MinSize),
    /// List, read, set and delete metadata items that users attached
    Meta(crate::shape::Meta),
    /// Set the physical sector size that the disk reports
    SetPhysicalSectorSize(crate::shape::SetSectorSize),
    /// Give the disk another identity, as a guest sees it
    ResetDiskId(crate::shape::ResetId),
    /// Serve a disk over NBD, for QEMU, libvirt, libguestfs and others
    Serve {
        /// The disk; of a chain, the last file
        leaf: PathBuf,
        /// The Unix socket to serve on
        #[arg(long)]
        socket: Option<PathBuf>,
        /// Refuse writes
        #[arg(long)]
        read_only: bool,
        /// Serve while this shell command runs; $uri and $unixsocket say where
        #[arg(long, value_name = "COMMAND")]
        run: Option<String>,
        /// nbdkit-avhdx-plugin.so, where it is not found by itself
        #[arg(long, value_name = "FILE")]
        plugin: Option<PathBuf>,
        #[command(flatten)]
        open: Open,
    },
    /// Look at, checkpoint or merge a disk while it is served
    Control {
        /// The control socket of the server
        socket: PathBuf,
        /// The export, where the server has several
        #[arg(long)]
        export: Option<String>,
        #[command(subcommand)]
        verb: Control,
    },
    /// Check one file against every rule of the format; nothing is written
    Check {
        /// The file
        path: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Also report what Windows would not have written
        #[arg(long)]
        windows: bool,
        #[command(flatten)]
        open: Open,
    },
    /// List what changed between two points of a chain
    Diff(crate::contents::Diff),
    /// Tell whether two disks read the same
    Compare(crate::contents::Compare),
    /// Print the checksum of what a disk reads as
    Digest(crate::contents::Digest),
    /// Show the disks in directories and who is whose parent
    Tree(crate::tree::TreeArgs),
    /// Hold the checkpoints in directories against thresholds
    Monitor(crate::monitor::Monitor),
    /// Merge away the oldest checkpoints of a disk
    Prune(crate::prune::Prune),
    /// Mend what can be mended in a file, with an undo file
    Repair {
        /// The file
        path: PathBuf,
        #[command(flatten)]
        mending: crate::repair::Mending,
        #[command(flatten)]
        open: Open,
    },
    /// Take a repair back: the file is what it was before, bit for bit
    Undo {
        /// The file that was repaired
        path: PathBuf,
        /// The undo file, where it is not FILE.undo
        undo: Option<PathBuf>,
        #[command(flatten)]
        open: Open,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Control {
    /// Print the chain as JSON
    Info,
    /// Seal the leaf and continue on a new differencing child
    Checkpoint {
        /// The new file, written to from now on
        new: PathBuf,
        /// Size of a payload block of the new file
        #[arg(long, value_parser = size)]
        block_size: Option<u64>,
    },
    /// Merge a checkpoint into its parent, or into an older ancestor
    Merge {
        /// The layer merged away, by path or number; the leaf, 0, if left out
        child: Option<String>,
        /// The layer merged into, by path or number, instead of the parent
        #[arg(long)]
        into: Option<String>,
        #[command(flatten)]
        merging: Merging,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Merge {
    /// The file merged away
    pub(crate) child: PathBuf,
    /// The ancestor merged into, instead of the parent
    #[arg(long)]
    pub(crate) into: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) merging: Merging,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) open: Open,
}

/// How to merge.
#[derive(Debug, Args)]
pub(crate) struct Merging {
    /// How the bytes travel
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) mode: Mode,
    /// Keep the merged files
    #[arg(long)]
    pub(crate) keep: bool,
    /// Go on although other disks depend on the files merged; they become unusable
    #[arg(long)]
    pub(crate) orphan_siblings: bool,
    /// Read the result back and compare before anything is removed
    #[arg(long)]
    pub(crate) verify: bool,
    /// Bytes per second at most
    #[arg(long, value_parser = size)]
    pub(crate) rate: Option<u64>,
    /// Threads that copy, at most 64; not with --mode consume
    #[arg(long, value_parser = clap::value_parser!(u8).range(..=64))]
    pub(crate) threads: Option<u8>,
}

impl Merging {
    pub(crate) fn options(&self) -> MergeOptions {
        let mut options = MergeOptions::default();
        options.mode = self.mode.into();
        options.unlink = !self.keep;
        options.orphan_siblings = self.orphan_siblings;
        options.verify = self.verify;
        options.rate = self.rate.unwrap_or(0);
        options.threads = self.threads.map_or(0, usize::from);
        options
    }
}

/// A part of the disk.
#[derive(Debug, Args)]
pub(crate) struct Range {
    /// First byte: bytes, or with K, M, G or T
    #[arg(long, value_parser = size, default_value = "0")]
    pub(crate) offset: u64,
    /// Bytes; to the end of the disk, or of the input, if left out
    #[arg(long, value_parser = size)]
    pub(crate) length: Option<u64>,
}

/// How files are found and opened.
#[derive(Debug, Args)]
#[command(next_help_heading = "Opening")]
pub(crate) struct Open {
    /// Look for parents in this directory too (repeatable)
    #[arg(long, value_name = "DIR")]
    search: Vec<PathBuf>,
    /// Parents must lie beneath this directory
    #[arg(long, value_name = "DIR")]
    parent_root: Option<PathBuf>,
    /// A Windows drive or share and the directory that stands for it (repeatable)
    #[arg(long, value_name = "C:=DIR", value_parser = drive)]
    drive_map: Vec<(String, PathBuf)>,
    /// Open the file alone; what it does not hold reads as zeros
    #[arg(long)]
    no_parents: bool,
    /// What to do with a log that holds updates
    #[arg(long, value_enum, default_value = "auto")]
    log: Log,
    /// Do not lock the files against other programs
    #[arg(long)]
    no_lock: bool,
    /// Wait so long for a lock, in milliseconds
    #[arg(long, value_name = "MS", default_value = "0")]
    lock_timeout: u64,
}

impl Open {
    /// For reading only: nothing is written to any file.
    pub(crate) fn reading(&self) -> OpenOptions {
        let mut options = self.writing();
        options.read_only = true;
        options
    }

    pub(crate) fn writing(&self) -> OpenOptions {
        let mut options = OpenOptions::new();
        options.search = self.search.clone();
        options.parent_root = self.parent_root.clone();
        options.drive_map = self.drive_map.clone();
        options.parents = !self.no_parents;
        options.log = match self.log {
            Log::Auto => LogPolicy::Auto,
            Log::Memory => LogPolicy::Memory,
            Log::Replay => LogPolicy::Replay,
            Log::Refuse => LogPolicy::Refuse,
        };
        options.lock = !self.no_lock;
        options.lock_timeout = Duration::from_millis(self.lock_timeout);
        options
    }

    /// The same as options of the nbdkit plugin.
    pub(crate) fn parameters(&self) -> Vec<OsString> {
        let joined = |key: &str, parts: Vec<OsString>, separator: &str| {
            let mut all = OsString::from(key);
            all.push(parts.join(OsStr::new(separator)));
            all
        };
        let mut parameters = Vec::new();
        if !self.search.is_empty() {
            let dirs = self.search.iter().map(|dir| dir.clone().into_os_string()).collect();
            parameters.push(joined("search=", dirs, ":"));
        }
        if let Some(root) = &self.parent_root {
            parameters.push(joined("parent-root=", vec![root.clone().into_os_string()], ""));
        }
        if !self.drive_map.is_empty() {
            let drives = self.drive_map.iter().map(|(prefix, dir)| {
                let mut drive = OsString::from(format!("{prefix}="));
                drive.push(dir);
                drive
            });
            parameters.push(joined("drive-map=", drives.collect(), ";"));
        }
        if self.no_parents {
            parameters.push("parents=off".into());
        }
        if let Some(log) = self.log.to_possible_value() {
            parameters.push(format!("log={}", log.get_name()).into());
        }
        if self.no_lock {
            parameters.push("lock=off".into());
        }
        parameters.push(format!("lock-timeout-ms={}", self.lock_timeout).into());
        parameters
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Log {
    Auto,
    Memory,
    Replay,
    Refuse,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Kind {
    Dynamic,
    Fixed,
    Differencing,
}

impl From<Kind> for DiskType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Dynamic => DiskType::Dynamic,
            Kind::Fixed => DiskType::Fixed,
            Kind::Differencing => DiskType::Differencing,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Mode {
    Auto,
    Copy,
    Reflink,
    Consume,
}

impl From<Mode> for MergeMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Auto => MergeMode::Auto,
            Mode::Copy => MergeMode::Copy,
            Mode::Reflink => MergeMode::Reflink,
            Mode::Consume => MergeMode::Consume,
        }
    }
}

pub(crate) fn size(text: &str) -> Result<u64, String> {
    avhdx::schema::parse_size(text).ok_or_else(|| "not a size: bytes, or a number with K, M, G or T".into())
}

fn byte(text: &str) -> Result<u8, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u8::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "not a byte: 0 to 255, or 0x00 to 0xff".into())
}

fn drive(text: &str) -> Result<(String, PathBuf), String> {
    text.split_once('=')
        .map(|(prefix, dir)| (prefix.to_string(), dir.into()))
        .ok_or_else(|| "wanted PREFIX=DIR, for example C:=/mnt/c".into())
}
