//! Files of the host.

use std::any::Any;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{sys, Access, Barrier, CopyMethod, FileId, FileSystem, LockMode, Storage};

/// A regular file or block device of the host.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    is_device: bool,
    id: FileId,
    locked: Mutex<LockMode>,
}

fn not_a_disk() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

impl FileStorage {
    /// Takes an open file; anything but a regular file or a block device is `EINVAL`.
    pub fn from_file(file: File) -> io::Result<Arc<FileStorage>> {
        let metadata = file.metadata()?;
        let kind = metadata.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(not_a_disk());
        }
        Ok(Arc::new(FileStorage {
            is_device: kind.is_block_device(),
            id: match kind.is_block_device() {
                true => FileId(u64::MAX, metadata.rdev()),
                false => FileId(metadata.dev(), metadata.ino()),
            },
            locked: Mutex::new(LockMode::None),
            file,
        }))
    }

    fn write_zeros(&self, mut at: u64, len: u64) -> io::Result<()> {
        static ZEROS: [u8; 256 << 10] = [0; 256 << 10];
        let end = at + len;
        while at < end {
            let piece = &ZEROS[..(end - at).min(ZEROS.len() as u64) as usize];
            self.write_at(piece, at)?;
            at += piece.len() as u64;
        }
        Ok(())
    }
}

/// QEMU's protocol: a read lock on byte `PERMISSION + bit` says what the holder does, one on `SHARED + bit` what it does
/// not let others do.
mod protocol {
    pub(super) const PERMISSION: u64 = 100;
    pub(super) const SHARED: u64 = 200;
    const CONSISTENT_READ: u64 = 0;
    const WRITE: u64 = 1;
    const RESIZE: u64 = 3;
    /// What a reader does, and what it does not let others do.
    pub(super) const READER: (&[u64], &[u64]) = (&[CONSISTENT_READ], &[WRITE, RESIZE]);
    /// The same for a writer.
    pub(super) const WRITER: (&[u64], &[u64]) = (&[CONSISTENT_READ, WRITE, RESIZE], &[CONSISTENT_READ, WRITE, RESIZE]);
}

fn bits(mode: LockMode) -> (&'static [u64], &'static [u64]) {
    match mode {
        LockMode::None => (&[], &[]),
        LockMode::Read => protocol::READER,
        LockMode::Write => protocol::WRITER,
    }
}

fn bytes(mode: LockMode) -> impl Iterator<Item = u64> {
    let (does, forbids) = bits(mode);
    let does = does.iter().map(|bit| protocol::PERMISSION + bit);
    does.chain(forbids.iter().map(|bit| protocol::SHARED + bit))
}

impl Storage for FileStorage {
    fn read_at(&self, buf: &mut [u8], file_offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, file_offset)
    }

    fn write_at(&self, buf: &[u8], file_offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, file_offset)
    }

    fn len(&self) -> io::Result<u64> {
        match self.is_device {
            true => sys::device_len(self.file.as_raw_fd()),
            false => Ok(self.file.metadata()?.len()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match self.is_device {
            true if len <= self.len()? => Ok(()),
            true => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            false => self.file.set_len(len),
        }
    }

    fn flush(&self, _: Barrier) -> io::Result<()> {
        self.file.sync_data()
    }

    fn zero_range(&self, file_offset: u64, len: u64) -> io::Result<()> {
        let fd = self.file.as_raw_fd();
        sys::zero_range(fd, file_offset, len)
            .or_else(|_| sys::punch_hole(fd, file_offset, len))
            .or_else(|_| self.write_zeros(file_offset, len))
    }

    fn release_range(&self, file_offset: u64, len: u64) -> io::Result<()> {
        sys::punch_hole(self.file.as_raw_fd(), file_offset, len)
    }

    fn copy_range_from(
        &self,
        source: &dyn Storage,
        source_offset: u64,
        file_offset: u64,
        len: u64,
        method: CopyMethod,
    ) -> io::Result<()> {
        let Some(source) = source.as_any().downcast_ref::<FileStorage>() else {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        };
        let (from, to) = (source.file.as_raw_fd(), self.file.as_raw_fd());
        match method {
            CopyMethod::Reflink => sys::clone_range(from, source_offset, to, file_offset, len),
            CopyMethod::Offload => sys::copy_range(from, source_offset, to, file_offset, len),
        }
    }

    fn next_data(&self, file_offset: u64, end: u64) -> io::Result<Option<Range<u64>>> {
        if file_offset >= end {
            return Ok(None);
        }
        match sys::next_data(self.file.as_raw_fd(), file_offset) {
            Ok(None) => Ok(None),
            Ok(Some(data)) if data.start >= end => Ok(None),
            Ok(Some(data)) => Ok(Some(data.start.max(file_offset)..data.end.min(end))),
            Err(_) => Ok(Some(file_offset..end)),
        }
    }

    fn grows_with_zeros(&self) -> bool {
        !self.is_device
    }

    fn available_space(&self) -> io::Result<Option<u64>> {
        match self.is_device {
            true => Ok(None),
            false => sys::free_space(self.file.as_raw_fd()).map(Some),
        }
    }

    fn allocated(&self) -> Option<u64> {
        let metadata = self.file.metadata().ok().filter(|_| !self.is_device)?;
        Some(metadata.blocks().saturating_mul(512))
    }

    fn lock(&self, mode: LockMode) -> io::Result<()> {
        let mut locked = self.locked.lock();
        let fd = self.file.as_raw_fd();
        let held: Vec<u64> = bytes(*locked).collect();
        let wanted: Vec<u64> = bytes(mode).collect();
        let mut taken = Vec::new();
        let result = (|| {
            for &byte in wanted.iter().filter(|byte| !held.contains(byte)) {
                sys::lock_byte(fd, byte)?;
                taken.push(byte);
            }
            // Announce first, then look: two that do so at once may both give way, but never both go on.
            let (does, forbids) = bits(mode);
            let against = does.iter().map(|bit| protocol::SHARED + bit);
            for byte in against.chain(forbids.iter().map(|bit| protocol::PERMISSION + bit)) {
                if sys::is_locked(fd, byte)? {
                    return Err(io::Error::from_raw_os_error(libc::EAGAIN));
                }
            }
            Ok(())
        })();
        let surplus: Vec<u64> = match result {
            Ok(()) => held.into_iter().filter(|byte| !wanted.contains(byte)).collect(),
            Err(_) => taken,
        };
        for byte in surplus {
            let _ = sys::unlock_byte(fd, byte);
        }
        if result.is_ok() {
            *locked = mode;
        }
        result
    }

    fn id(&self) -> Option<FileId> {
        Some(self.id)
    }

    fn as_raw_fd(&self) -> Option<i32> {
        Some(self.file.as_raw_fd())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The host's file system.
#[derive(Debug, Default, Clone, Copy)]
pub struct OsFileSystem;

/// A path that can be given to the system: an empty one means the current directory.
fn dir(path: &Path) -> &Path {
    if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    }
}

impl FileSystem for OsFileSystem {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        // Without waiting: opening a FIFO or a modem would.
        let file = OpenOptions::new()
            .read(true)
            .write(access == Access::Write)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|e| match e.raw_os_error() {
                Some(libc::EISDIR | libc::ENXIO) => not_a_disk(),
                _ => e,
            })?;
        Ok(FileStorage::from_file(file)?)
    }

    fn open_beneath(&self, root: &Path, path: &Path) -> io::Result<Arc<dyn Storage>> {
        let outside = || io::Error::from_raw_os_error(libc::EXDEV);
        let root = std::path::absolute(dir(root))?;
        // Dots are resolved in the text only as far as they lead to the root; the kernel judges the rest.
        let path = std::path::absolute(path)?;
        let mut plain = PathBuf::new();
        for component in path.components() {
            match component {
                std::path::Component::ParentDir => drop(plain.pop()),
                other => plain.push(other),
            }
        }
        let relative = path
            .strip_prefix(&root)
            .or_else(|_| plain.strip_prefix(&root))
            .map_err(|_| outside())?;
        let file = sys::open_beneath(&File::open(&root)?, relative)?;
        Ok(FileStorage::from_file(file)?)
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(FileStorage::from_file(file)?)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        sys::rename_new(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(dir(path))?.sync_all()
    }

    fn list(&self, path: &Path, limit: usize) -> io::Result<Vec<PathBuf>> {
        std::fs::read_dir(dir(path))?
            .take(limit)
            .map(|entry| Ok(entry?.path()))
            .collect()
    }

    fn absolute(&self, path: &Path) -> io::Result<PathBuf> {
        std::fs::canonicalize(dir(path))
    }
}
