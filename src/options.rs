//! What callers can choose. Every struct has defaults that are right for a person at a prompt; [`crate::schema`] lists the
//! string keys under which the C ABI, the nbdkit plugin and the command line offer the same choices.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::guid::Guid;
use crate::storage::{FileSystem, OsFileSystem};

/// What to do with a log that holds updates not yet applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogPolicy {
    /// Replay into the file when it is opened for writing, in memory when for reading.
    #[default]
    Auto,
    /// Replay in memory; the disk is read-only.
    Memory,
    /// Replay into the file, also when the disk is then only read.
    Replay,
    /// Fail with `LogReplayRequired`.
    Refuse,
}

/// When a write becomes durable, and whether the host caches the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheMode {
    /// On flush, or on a write with FUA.
    #[default]
    Writeback,
    /// Before the write returns.
    Writethrough,
    /// As with `Writeback`, and reads and writes go around the host's page cache (O_DIRECT), in all files of the chain.
    /// Quickest for requests of whole sectors from aligned memory.
    None,
    /// Whenever the operating system likes: flushes do nothing. For scratch data only.
    Unsafe,
}

/// What a [`Resolver`] is asked: which file is the parent of this one?
#[derive(Debug, Clone)]
pub struct ParentQuery {
    /// The child's path.
    pub child: PathBuf,
    /// The data write GUID the parent must have.
    pub linkage: Guid,
    /// The parent locator's entries, decoded for display.
    pub entries: Vec<(String, String)>,
}

/// Answers where a parent is before the library looks for it; `None` leaves it to the library.
pub type Resolver = Arc<dyn Fn(&ParentQuery) -> Option<PathBuf> + Send + Sync>;

/// How to open a disk and its parents.
#[derive(Clone)]
#[non_exhaustive]
pub struct OpenOptions {
    /// Open the leaf for reading only. Nothing is ever written to any file.
    pub read_only: bool,
    /// Look for parents. Without them absent data reads as zeros, and the disk is read-only.
    pub parents: bool,
    /// Directories searched for parents by name and then by identity.
    pub search: Vec<PathBuf>,
    /// Parents must lie beneath this directory.
    pub parent_root: Option<PathBuf>,
    /// Windows prefixes ("C:", "\\\\server\\share") and the host directories that stand for them.
    pub drive_map: Vec<(String, PathBuf)>,
    /// Accept parents whose data write GUID does not match. Only with an explicit list of layers.
    pub ignore_id_mismatch: bool,
    /// Most layers in a chain, at most 256.
    pub max_depth: usize,
    /// What to do with a dirty log.
    pub log: LogPolicy,
    /// Lock the files against other programs.
    pub lock: bool,
    /// How long to wait for a lock.
    pub lock_timeout: Duration,
    /// When writes become durable.
    pub cache: CacheMode,
    /// Bytes of BAT, bitmap and map pages kept in memory for each chain; pages beyond it are dropped and read again.
    pub meta_cache_size: u64,
    /// Asked first where each parent is.
    pub resolver: Option<Resolver>,
    /// Where files are.
    pub file_system: Arc<dyn FileSystem>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions {
            read_only: false,
            parents: true,
            search: Vec::new(),
            parent_root: None,
            drive_map: Vec::new(),
            ignore_id_mismatch: false,
            max_depth: crate::limits::MAX_CHAIN_DEPTH,
            log: LogPolicy::Auto,
            lock: true,
            lock_timeout: Duration::ZERO,
            cache: CacheMode::Writeback,
            meta_cache_size: crate::limits::DEFAULT_META_CACHE,
            resolver: None,
            file_system: Arc::new(OsFileSystem),
        }
    }
}

impl OpenOptions {
    /// Defaults: read and write, parents found by the locator, locked.
    pub fn new() -> Self {
        Self::default()
    }

    /// Defaults, for reading only.
    pub fn read_only() -> Self {
        OpenOptions {
            read_only: true,
            ..Self::default()
        }
    }

    /// The same with another [`FileSystem`].
    pub fn on(mut self, file_system: Arc<dyn FileSystem>) -> Self {
        self.file_system = file_system;
        self
    }
}

impl std::fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenOptions")
            .field("read_only", &self.read_only)
            .field("parents", &self.parents)
            .field("log", &self.log)
            .field("cache", &self.cache)
            .field("file_system", &self.file_system)
            .finish_non_exhaustive()
    }
}

/// The three types of virtual disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskType {
    /// Every block has its place in the file from the start.
    Fixed,
    /// Blocks are allocated when first written.
    #[default]
    Dynamic,
    /// Holds what changed since its parent.
    Differencing,
}

/// What to create. Zero and `None` mean the default.
#[derive(Clone)]
#[non_exhaustive]
pub struct CreateOptions {
    /// Type; `Differencing` needs `parent`.
    pub disk_type: DiskType,
    /// Virtual size in bytes, a multiple of the logical sector size. For a differencing disk 0 means the parent's.
    pub size: u64,
    /// Payload block size in bytes: a power of two, 1 MiB to 256 MiB. Default 32 MiB dynamic, 2 MiB others.
    pub block_size: u32,
    /// 512 or 4096; default 512, or the parent's.
    pub logical_sector_size: u32,
    /// 512 or 4096; default 4096, or the parent's.
    pub physical_sector_size: u32,
    /// Log size in bytes, a multiple of 1 MiB; default 1 MiB.
    pub log_size: u32,
    /// The parent of a differencing disk.
    pub parent: Option<PathBuf>,
    /// Virtual disk ID (SCSI page 83); default random, or the parent's.
    pub id: Option<Guid>,
    /// How the parent is opened; `file_system` is also where the new file goes.
    pub open: OpenOptions,
}

impl Default for CreateOptions {
    fn default() -> Self {
        CreateOptions {
            disk_type: DiskType::Dynamic,
            size: 0,
            block_size: 0,
            logical_sector_size: 0,
            physical_sector_size: 0,
            log_size: 0,
            parent: None,
            id: None,
            open: OpenOptions::default(),
        }
    }
}

/// How to take a checkpoint.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CheckpointOptions {
    /// Block size of the new leaf in bytes; 0 for 2 MiB.
    pub block_size: u32,
}

/// How the bytes of a merge travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MergeMode {
    /// Reflink where the file system can, else copy; consume when copying does not fit.
    #[default]
    Auto,
    /// Copy, keeping the child whole until the end.
    Copy,
    /// Share extents; fails with `Unsupported` where the file system cannot.
    Reflink,
    /// Release the child's blocks as soon as the parent's copies are durable: needs as much free space as the
    /// merged layers' largest block, and 2 MiB.
    Consume,
}

impl MergeMode {
    fn rehearsed(self) -> Self {
        match self {
            MergeMode::Copy => MergeMode::Auto,
            other => other,
        }
    }
}

/// How to merge.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MergeOptions {
    /// How the bytes travel.
    pub mode: MergeMode,
    /// Bytes per second at most; 0 for no limit.
    pub rate: u64,
    /// Threads started to copy, so that reading and writing overlap; 0: the caller's own copies. Not with
    /// [`MergeMode::Consume`].
    pub threads: usize,
    /// Remove the merged files when done.
    pub unlink: bool,
    /// Look in the directories of the files involved (and `search`) for other children, and point the children of the
    /// merged layer to the target.
    pub relink: bool,
    /// Go on although the target has other children, which become unusable.
    pub orphan_siblings: bool,
    /// Read the target back and compare before anything is removed.
    pub verify: bool,
}

impl MergeOptions {
    /// For a rehearsal ([`crate::ops::plan`]): nothing to wait for, nothing written that could be looked at, and no
    /// content that would have to pass through the process.
    pub fn rehearsed(mut self) -> Self {
        (self.rate, self.threads, self.verify) = (0, 0, false);
        self.mode = self.mode.rehearsed();
        self
    }
}

impl Default for MergeOptions {
    fn default() -> Self {
        MergeOptions {
            mode: MergeMode::Auto,
            rate: 0,
            threads: 0,
            unlink: true,
            relink: true,
            orphan_siblings: false,
            verify: false,
        }
    }
}

/// A format of disk images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ImageFormat {
    /// The bytes of the disk.
    Raw,
    /// VHDX.
    Vhdx,
    /// The format before VHDX; at most 2040 GiB.
    Vhd,
}

/// How the bytes of a new file get there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CopyMode {
    /// Share extents where the file system can, else copy. Copied are: of each 4 MiB of the disk, pieces of less than
    /// 64 KiB; what does not lie at whole pages; files whose log is applied in memory alone; a fixed disk, whose zeros are
    /// then left out; and the leaf of a chain that is open for writing, which would have to leave shared extents to be
    /// written.
    #[default]
    Auto,
    /// Copy everything that is not zero.
    Copy,
    /// Share extents, those of a fixed disk too; fails with `Unsupported` where that is not possible, but for such pieces.
    Reflink,
}

/// How to convert. Zero and `None` mean the default.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ConvertOptions {
    /// The format; by default what the name of the new file ends in, and raw for other names.
    pub to: Option<ImageFormat>,
    /// Fixed or dynamic. With `parent` it is neither.
    pub disk_type: DiskType,
    /// Block size in bytes; default 32 MiB for dynamic VHDX, 2 MiB for others.
    pub block_size: u32,
    /// 512 or 4096, VHDX only; default that of the source.
    pub logical_sector_size: u32,
    /// The layer whose view is written, 0 = leaf.
    pub layer: usize,
    /// Make a differencing VHDX on this disk, holding only what differs from it.
    pub parent: Option<PathBuf>,
    /// How the bytes get there. With `parent`, where all is compared, they are copied.
    pub mode: CopyMode,
    /// Bytes read per second at most; 0 for no limit.
    pub rate: u64,
    /// Threads started to read, so that reading and writing overlap, with 4 MiB of memory for each and for two more, twice
    /// that with `parent`; 0: the caller's own reads.
    pub threads: usize,
}

impl ConvertOptions {
    /// See [`MergeOptions::rehearsed`]. Whether extents can be shared shows only when it is done: all are copied.
    pub fn rehearsed(mut self) -> Self {
        (self.rate, self.threads, self.mode) = (0, 0, CopyMode::Copy);
        self
    }
}

/// How to migrate from VHD.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct MigrateOptions {
    /// Keep the chain: a VHDX for each VHD, instead of one that holds everything.
    pub chain: bool,
    /// The rest; `layer` and `parent` are not used.
    pub convert: ConvertOptions,
}

/// How to name another parent.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ReparentOptions {
    /// Accept a parent whose data write GUID is not the recorded one: its content is known to be right.
    pub ignore_id_mismatch: bool,
}

/// How to go back to a checkpoint.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct RevertOptions {
    /// Remove the files of the state left behind that no other disk depends on.
    pub unlink: bool,
    /// Block size of the new leaf in bytes; 0 for 2 MiB.
    pub block_size: u32,
}

/// Where the content of a deleted layer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeleteInto {
    /// Into the parent, or, where other disks depend on that, into the children.
    #[default]
    Auto,
    /// Into the parent, whose own state is then gone.
    Parent,
    /// Into each child; the parent's state stays.
    Children,
}

/// How to delete a layer.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct DeleteOptions {
    /// Where its content goes.
    pub into: DeleteInto,
    /// How the bytes travel into the parent.
    pub mode: MergeMode,
    /// Bytes per second at most; 0 for no limit.
    pub rate: u64,
    /// Read the parent back and compare before the file is removed.
    pub verify: bool,
}

impl DeleteOptions {
    /// See [`MergeOptions::rehearsed`].
    pub fn rehearsed(mut self) -> Self {
        (self.rate, self.verify) = (0, false);
        self.mode = self.mode.rehearsed();
        self
    }
}

/// How to copy what a leaf takes from its parents into it.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct RebaseOptions {
    /// Bytes per second at most; 0 for no limit.
    pub rate: u64,
}

/// What compacting looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CompactMode {
    /// Every block is read, those that read as zeros give up their space, the others move to the front.
    #[default]
    Full,
    /// No block is read: space that trimmed blocks gave up is reclaimed.
    Quick,
    /// Every block is read and those that read as zeros give up their space, which stays in the file, as holes where
    /// the file system has them, for blocks yet to come. Nothing moves.
    Prezeroed,
}

/// How to compact.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CompactOptions {
    /// What is looked at.
    pub mode: CompactMode,
    /// Bytes per second at most; 0 for no limit.
    pub rate: u64,
}

/// How to resize.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ResizeOptions {
    /// Cut off what is there.
    pub allow_loss: bool,
}

/// How far a long operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes dealt with.
    pub done: u64,
    /// Bytes to deal with, as far as known; never shrinks below `done`.
    pub total: u64,
}

/// Called now and then by long operations; returning `false` cancels.
pub type ProgressFn<'a> = &'a mut dyn FnMut(Progress) -> bool;

/// Flags of [`crate::Chain::zero`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ZeroFlags {
    /// Space may be released.
    pub may_unmap: bool,
    /// Durable before the call returns.
    pub fua: bool,
    /// Fail with `NotFast`, having done nothing, unless changing metadata is enough.
    pub fast: bool,
}
