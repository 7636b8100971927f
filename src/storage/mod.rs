//! Where bytes are kept: positional, thread-safe I/O on one file, and the few directory operations chains need.
//!
//! Knows nothing of VHDX. [`FileSystem`] is the only way this library reaches a file, so that a caller (or a test) can
//! put every layer somewhere else. Requests are whole or an error; interrupted calls are retried by the back end;
//! everything else is reported once with its errno kept.

pub mod callbacks;
#[cfg(feature = "test-support")]
pub mod crash;
mod direct;
pub(crate) mod draft;
#[cfg(feature = "test-support")]
pub mod fault;
mod file;
mod memory;
mod order;
pub(crate) mod rehearsal;
mod sys;

pub use file::{FileStorage, OsFileSystem};
pub use memory::MemoryFileSystem;
#[cfg(feature = "test-support")]
pub use order::Order;
#[cfg(not(feature = "test-support"))]
pub(crate) use order::Order;

use std::any::Any;
use std::fmt::Debug;
use std::io::{self, IoSliceMut};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};

/// Why a flush is made: one name for each place in docs/durability.md where something must be stable before the next
/// step. Real storage ignores it; the crash tests take each away in turn and must then fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Barrier {
    /// The first header copy of an update, before the second is overwritten.
    HeaderFirst,
    /// The second header copy of an update, before anything the header announces.
    HeaderSecond,
    /// The empty entry that starts a log sequence, before the header names it.
    LogStart,
    /// Payload (and applied metadata) before the log entry that makes it reachable.
    BeforeLogEntry,
    /// The log entry itself: the commit point.
    LogEntry,
    /// Logged metadata at its final place, before the header denies the log.
    BeforeLogClear,
    /// Replayed metadata at its final place, before the header denies the log.
    Replayed,
    /// In-place payload on a caller's flush, when no metadata is dirty.
    Payload,
    /// A new file, before it gets its name.
    NewFile,
}

impl Barrier {
    /// Every barrier.
    pub const ALL: &'static [Barrier] = &[
        Barrier::HeaderFirst,
        Barrier::HeaderSecond,
        Barrier::LogStart,
        Barrier::BeforeLogEntry,
        Barrier::LogEntry,
        Barrier::BeforeLogClear,
        Barrier::Replayed,
        Barrier::Payload,
        Barrier::NewFile,
    ];
}

/// How [`Storage::copy_range_from`] may move the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyMethod {
    /// Share the extents (FICLONERANGE); fails with `EOPNOTSUPP`, `EXDEV` or `EINVAL` where the file system cannot.
    Reflink,
    /// Let the kernel copy (copy_file_range); fails likewise where it cannot.
    Offload,
}

/// What others may do with a file while it is open here. The byte ranges locked are QEMU's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Nothing held.
    None,
    /// Consistent read: readers are welcome, writers are not.
    Read,
    /// Read, write and resize: other consistent readers and writers are refused.
    Write,
}

/// Identity of an open file, equal exactly when two paths lead to the same file: its volume, and the file on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId(pub u64, pub u64);

/// One open file. All methods may be called from many threads at once.
#[allow(clippy::len_without_is_empty)] // an empty disk image is nothing anybody asks for
pub trait Storage: Send + Sync + Debug {
    /// Reads exactly `buf.len()` bytes at `file_offset`; a range past the end is `UnexpectedEof`.
    fn read_at(&self, buf: &mut [u8], file_offset: u64) -> io::Result<()>;

    /// The same into several buffers, one after another.
    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], file_offset: u64) -> io::Result<()> {
        let mut at = file_offset;
        for buf in bufs {
            self.read_at(buf, at)?;
            at += buf.len() as u64;
        }
        Ok(())
    }

    /// Writes all of `buf` at `file_offset`, growing the file when needed. Not durable until [`Storage::flush`].
    fn write_at(&self, buf: &[u8], file_offset: u64) -> io::Result<()>;

    /// The same for bytes of the disk, as against structures of the file: nobody who plans an operation reads them back.
    fn write_payload_at(&self, buf: &[u8], file_offset: u64) -> io::Result<()> {
        self.write_at(buf, file_offset)
    }

    /// Begins to bring a range just written to the device, so that the flush that follows many such has less to wait for.
    /// Promises nothing.
    fn write_behind(&self, file_offset: u64, len: u64) {
        let _ = (file_offset, len);
    }

    /// From here on reads and writes go around the host's cache of the file, where there is one; those of whole aligned
    /// sectors from aligned memory without a copy. Fails where the file system cannot do that.
    fn bypass_cache(&self) -> io::Result<()> {
        Ok(())
    }

    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Sets the length; new bytes read as zeros on storage where [`Storage::grows_with_zeros`] is true.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes all completed writes and the length durable. A failed flush is never retried.
    fn flush(&self, barrier: Barrier) -> io::Result<()>;

    /// Makes the range, which lies inside the file, read as zeros, by the cheapest means.
    fn zero_range(&self, file_offset: u64, len: u64) -> io::Result<()>;

    /// Gives the space of the range back if the storage can; it reads as zeros or as before. Never an error that
    /// matters: callers ignore the result.
    fn release_range(&self, file_offset: u64, len: u64) -> io::Result<()>;

    /// Whether [`Storage::release_range`] gives anything back, as far as can be told.
    fn can_release(&self) -> bool {
        true
    }

    /// Copies `len` bytes from `source` without passing them through this process. `Err` with `EOPNOTSUPP` (or what the
    /// kernel gave) when impossible; the destination may then be partly written and the caller copies it by hand.
    fn copy_range_from(
        &self,
        source: &dyn Storage,
        source_offset: u64,
        file_offset: u64,
        len: u64,
        method: CopyMethod,
    ) -> io::Result<()> {
        let _ = (source, source_offset, file_offset, len, method);
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    /// Whether this file can have extents of `source`, as far as can be told without doing it.
    fn can_share(&self, source: &dyn Storage) -> bool {
        let _ = source;
        false
    }

    /// The next range at or after `file_offset` that may hold anything but zeros, clipped to `end`; `None` when all of
    /// `[file_offset, end)` is known to be zeros. Storage that cannot tell returns the whole range.
    fn next_data(&self, file_offset: u64, end: u64) -> io::Result<Option<std::ops::Range<u64>>> {
        Ok((file_offset < end).then_some(file_offset..end))
    }

    /// Whether bytes gained by [`Storage::set_len`] or by writing past the end are zeros (false on block devices).
    fn grows_with_zeros(&self) -> bool {
        true
    }

    /// Bytes free for this file to grow into, if known.
    fn available_space(&self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    /// Bytes the file takes on its file system, if known.
    fn allocated(&self) -> Option<u64> {
        None
    }

    /// When the file was last written, if known.
    fn modified(&self) -> Option<std::time::SystemTime> {
        None
    }

    /// Changes what is locked; `EAGAIN` when another open file stands against it. Never waits.
    fn lock(&self, mode: LockMode) -> io::Result<()>;

    /// Identity of the file, `None` where the back end has none.
    fn id(&self) -> Option<FileId>;

    /// The file descriptor, for back ends that have one.
    fn as_raw_fd(&self) -> Option<i32> {
        None
    }

    /// For back ends that recognise their own kind in [`Storage::copy_range_from`].
    fn as_any(&self) -> &dyn Any;
}

/// Shares extents of `source`: both offsets and the length are multiples of the file system's blocks.
pub(crate) fn share(target: &dyn Storage, file_offset: u64, source: &dyn Storage, from: u64, len: u64) -> Result<()> {
    target
        .copy_range_from(source, from, file_offset, len, CopyMethod::Reflink)
        .map_err(|cause| match cause.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::EXDEV | libc::EINVAL | libc::ENOTTY | libc::ENOSYS) => {
                let message = "the file system cannot share extents between the two files";
                Error::new(ErrorKind::Unsupported, message)
                    .with_hint("use mode=auto or mode=copy")
                    .with_source(cause)
            }
            _ => Error::io(format!("share {len} bytes at file offset {from:#x}"), cause),
        })
}

/// What a name in a directory stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, a device, a FIFO, ...
    Other,
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// For reading only.
    Read,
    /// For reading and writing.
    Write,
}

/// Opens and names files. Paths are the host's.
pub trait FileSystem: Send + Sync + Debug {
    /// Opens an existing file. Refuses what is neither a regular file nor a block device (`EINVAL`), without blocking.
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn Storage>>;

    /// Like [`FileSystem::open`] for reading, and the file must lie beneath `root` however links lead (`EXDEV` or
    /// `ELOOP` when not).
    fn open_beneath(&self, root: &Path, path: &Path) -> io::Result<Arc<dyn Storage>>;

    /// Creates a file that must not exist (`EEXIST`), for reading and writing.
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn Storage>>;

    /// Renames without ever replacing (`EEXIST`).
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes completed creations, renames and removals in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// The names in `dir`, in no order; at most `limit` of them.
    fn list(&self, dir: &Path, limit: usize) -> io::Result<Vec<PathBuf>>;

    /// What is at `path`; a link at its end is not followed. Back ends without directories call everything a file.
    fn kind(&self, path: &Path) -> io::Result<EntryKind> {
        let _ = path;
        Ok(EntryKind::File)
    }

    /// The absolute path with links resolved, for recording in a locator and comparing directories.
    fn absolute(&self, path: &Path) -> io::Result<PathBuf>;
}
