//! Files and block devices of the host.

use std::any::Any;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLockReadGuard};

use super::direct::{Alignment, Direct};
use super::sys::{self, ByteLock, Fallocate, Seek};
use super::{Access, Barrier, CopyMethod, EntryKind, FileId, FileSystem, LockMode, Storage};

/// An open regular file or block device.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    kind: Kind,
    id: FileId,
    lock: Mutex<LockMode>,
    /// When the page cache is bypassed.
    direct: OnceLock<Direct>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Regular,
    BlockDevice,
}

fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

/// Whether the kernel or the file system lacks the operation, so that another way may work.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENODEV)
    )
}

impl FileStorage {
    /// Takes over an open file, for whatever it was opened for. Anything but a regular file or a block device is
    /// `EINVAL`.
    pub fn from_file(file: File) -> io::Result<Arc<FileStorage>> {
        let metadata = file.metadata()?;
        let (kind, id) = if metadata.is_file() {
            (Kind::Regular, FileId(metadata.dev(), metadata.ino()))
        } else if metadata.file_type().is_block_device() {
            // One device may have many nodes. No file system has this inode number.
            (Kind::BlockDevice, FileId(metadata.rdev(), u64::MAX))
        } else {
            return Err(errno(libc::EINVAL));
        };
        Ok(Arc::new(FileStorage {
            file,
            kind,
            id,
            lock: Mutex::new(LockMode::None),
            direct: OnceLock::new(),
        }))
    }

    /// Finishes what was opened with `O_NONBLOCK`. The flag is taken back, since io_uring, for one, fails requests on
    /// such files with `EAGAIN` where it would else wait.
    fn from_nonblocking(file: File) -> io::Result<Arc<dyn Storage>> {
        let storage = Self::from_file(file)?;
        let fd = storage.file.as_fd();
        sys::set_status_flags(fd, sys::status_flags(fd)? & !libc::O_NONBLOCK)?;
        Ok(storage)
    }

    /// Reading that was interrupted, came short or failed, from the start.
    #[cold]
    fn read_patiently(&self, buf: &mut [u8], file_offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, file_offset)
    }

    #[cold]
    fn write_patiently(&self, buf: &[u8], file_offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, file_offset)
    }

    fn write_zeros(&self, mut start: u64, mut len: u64) -> io::Result<()> {
        let zeros = vec![0u8; len.min(1 << 20) as usize];
        while len > 0 {
            let part = len.min(zeros.len() as u64);
            self.write_at(&zeros[..part as usize], start)?;
            start += part;
            len -= part;
        }
        Ok(())
    }

    /// Held during changes that are not writes.
    fn changing(&self) -> Option<RwLockReadGuard<'_, ()>> {
        self.direct.get().map(Direct::changing)
    }
}

impl Drop for FileStorage {
    /// Closing the last descriptor unlocks, but it need not be ours: a child between fork and exec has them all, and
    /// would make the file look locked for that moment.
    fn drop(&mut self) {
        let held = *self.lock.get_mut();
        let _ = qemu_locks::change(&self.file, held, LockMode::None);
    }
}

impl Storage for FileStorage {
    fn read_at(&self, buf: &mut [u8], file_offset: u64) -> io::Result<()> {
        if let Some(direct) = self.direct.get() {
            return direct.read(&self.file, buf, file_offset);
        }
        match self.file.read_at(buf, file_offset) {
            Ok(len) if len == buf.len() => Ok(()),
            _ => self.read_patiently(buf, file_offset),
        }
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], file_offset: u64) -> io::Result<()> {
        let all: u64 = bufs.iter().map(|buf| buf.len() as u64).sum();
        let done = match self.direct.get() {
            None => sys::read_vectored(self.file.as_fd(), bufs, file_offset)?,
            Some(_) => 0,
        };
        if done == all {
            return Ok(());
        }
        // Came short, or more buffers than the kernel takes, or each is to be looked at by itself.
        let mut at = 0;
        for buf in bufs {
            let end = at + buf.len() as u64;
            if end > done {
                self.read_at(buf, file_offset + at)?;
            }
            at = end;
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], file_offset: u64) -> io::Result<()> {
        if let Some(direct) = self.direct.get() {
            return direct.write(&self.file, buf, file_offset);
        }
        match self.file.write_at(buf, file_offset) {
            Ok(len) if len == buf.len() => Ok(()),
            Ok(len) if len > 0 => self.write_patiently(&buf[len..], file_offset + len as u64),
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => self.write_patiently(buf, file_offset),
        }
    }

    fn write_behind(&self, file_offset: u64, len: u64) {
        sys::start_writeback(self.file.as_fd(), file_offset, len);
    }

    fn bypass_cache(&self) -> io::Result<()> {
        let fd = self.file.as_fd();
        let alignment = match sys::direct_alignment(fd)? {
            Some((memory, offset)) => Alignment { memory, offset },
            None => Alignment::USUAL,
        };
        if !alignment.is_usable() {
            return Err(errno(libc::EOPNOTSUPP));
        }
        // What was written before is in the page cache: the kernel brings it to the device before it reads around it.
        sys::set_status_flags(fd, sys::status_flags(fd)? | libc::O_DIRECT)?;
        self.direct.get_or_init(|| Direct::new(alignment));
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        match self.kind {
            Kind::Regular => Ok(self.file.metadata()?.len()),
            Kind::BlockDevice => sys::block_device_len(self.file.as_fd()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let _changing = self.changing();
        match self.kind {
            Kind::Regular => self.file.set_len(len),
            // A device has its length: less is a wish it ignores, more is space it does not have.
            Kind::BlockDevice if len <= self.len()? => Ok(()),
            Kind::BlockDevice => Err(errno(libc::ENOSPC)),
        }
    }

    fn flush(&self, _: Barrier) -> io::Result<()> {
        // fdatasync covers the length too: it leaves out only metadata that is not needed to read the data back.
        self.file.sync_data()
    }

    fn zero_range(&self, file_offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        for what in [Fallocate::ZeroRange, Fallocate::PunchHole] {
            let _changing = self.changing();
            match sys::fallocate(self.file.as_fd(), what, file_offset, len) {
                // ZERO_RANGE allocates where there was a hole, which a full file system cannot; a hole does as well.
                Err(e) if is_unsupported(&e) || e.raw_os_error() == Some(libc::ENOSPC) => {}
                other => return other,
            }
        }
        self.write_zeros(file_offset, len)
    }

    fn release_range(&self, file_offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let _changing = self.changing();
        sys::fallocate(self.file.as_fd(), Fallocate::PunchHole, file_offset, len)
    }

    fn can_release(&self) -> bool {
        // Behind the end there is nothing to release: this asks the file system and changes nothing.
        let behind = self.len().map(|len| len.next_multiple_of(4096));
        !behind
            .and_then(|at| sys::fallocate(self.file.as_fd(), Fallocate::PunchHole, at, 4096))
            .is_err_and(|e| matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)))
    }

    fn copy_range_from(
        &self,
        source: &dyn Storage,
        source_offset: u64,
        file_offset: u64,
        len: u64,
        method: CopyMethod,
    ) -> io::Result<()> {
        let source = source
            .as_any()
            .downcast_ref::<FileStorage>()
            .ok_or_else(|| errno(libc::EOPNOTSUPP))?;
        if len == 0 {
            return Ok(());
        }
        let _changing = self.changing();
        let (from, to) = (source.file.as_fd(), self.file.as_fd());
        if method == CopyMethod::Reflink {
            return sys::clone_range(from, source_offset, to, file_offset, len);
        }
        let mut done = 0;
        while done < len {
            let part = (len - done).min(1 << 30) as usize;
            match sys::copy_file_range(from, source_offset + done, to, file_offset + done, part)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                copied => done += copied,
            }
        }
        Ok(())
    }

    fn can_share(&self, source: &dyn Storage) -> bool {
        let Some(source) = source.as_any().downcast_ref::<FileStorage>() else {
            return false;
        };
        // One byte, behind the end of any file and no multiple of anything: an invalid argument where extents are shared,
        // whatever becomes of the files meanwhile. Elsewhere the kernel says something else before it looks at that.
        const NOWHERE: u64 = (1 << 62) | 1;
        self.kind == Kind::Regular
            && source.kind == Kind::Regular
            && sys::clone_range(source.file.as_fd(), NOWHERE, self.file.as_fd(), 0, 1)
                .is_err_and(|cause| cause.raw_os_error() == Some(libc::EINVAL))
    }

    fn next_data(&self, file_offset: u64, end: u64) -> io::Result<Option<Range<u64>>> {
        if file_offset >= end {
            return Ok(None);
        }
        let start = match sys::seek(self.file.as_fd(), Seek::Data, file_offset) {
            Ok(start) => start,
            // No data from here to the end of the file.
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
            Err(e) if is_unsupported(&e) => return Ok(Some(file_offset..end)),
            Err(e) => return Err(e),
        };
        if start >= end {
            return Ok(None);
        }
        match sys::seek(self.file.as_fd(), Seek::Hole, start) {
            Ok(stop) if stop > start => Ok(Some(start..stop.min(end))),
            // The data just found was released meanwhile. Saying "data" of a hole is never wrong.
            Ok(_) => Ok(Some(start..end)),
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Ok(Some(start..end)),
            Err(e) => Err(e),
        }
    }

    fn grows_with_zeros(&self) -> bool {
        self.kind == Kind::Regular
    }

    fn available_space(&self) -> io::Result<Option<u64>> {
        match self.kind {
            Kind::Regular => sys::available_space(self.file.as_fd()).map(Some),
            Kind::BlockDevice => Ok(Some(0)),
        }
    }

    fn allocated(&self) -> Option<u64> {
        let metadata = self.file.metadata().ok().filter(|_| self.kind == Kind::Regular)?;
        Some(metadata.blocks().saturating_mul(512))
    }

    fn modified(&self) -> Option<std::time::SystemTime> {
        self.file.metadata().ok()?.modified().ok()
    }

    fn lock(&self, mode: LockMode) -> io::Result<()> {
        let mut held = self.lock.lock();
        qemu_locks::change(&self.file, *held, mode)?;
        *held = mode;
        Ok(())
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

/// QEMU's protocol for image locking (block/file-posix.c), so that its programs and this library exclude each other.
///
/// There is one byte for each permission someone can use, and one for each that someone can refuse to share. Using or
/// refusing is a *read* lock of the byte, which any number can hold; whoever wants the opposite asks whether a write
/// lock would succeed, and backs off when not. Both sides mark first and ask second, so that of two that come at once
/// at least one notices.
mod qemu_locks {
    use super::*;

    const CONSISTENT_READ: u8 = 0x01;
    const WRITE: u8 = 0x02;
    const RESIZE: u8 = 0x08;

    /// First byte of the permissions in use; the byte of bit n is n further.
    const USED_BASE: u64 = 100;
    /// First byte of the permissions not shared.
    const REFUSED_BASE: u64 = 200;

    /// The permissions used and refused in a mode.
    fn masks(mode: LockMode) -> (u8, u8) {
        match mode {
            LockMode::None => (0, 0),
            LockMode::Read => (CONSISTENT_READ, WRITE | RESIZE),
            LockMode::Write => (CONSISTENT_READ | WRITE | RESIZE, CONSISTENT_READ | WRITE | RESIZE),
        }
    }

    fn bits(mask: u8) -> impl Iterator<Item = u64> {
        (0..8u64).filter(move |bit| mask & (1 << bit) != 0)
    }

    /// The bytes marked in a mode.
    fn bytes(mode: LockMode) -> Vec<u64> {
        let (used, refused) = masks(mode);
        bits(used)
            .map(|b| USED_BASE + b)
            .chain(bits(refused).map(|b| REFUSED_BASE + b))
            .collect()
    }

    /// Goes from `from` to `to`; on failure everything is as in `from`.
    pub(super) fn change(file: &File, from: LockMode, to: LockMode) -> io::Result<()> {
        let (before, after) = (bytes(from), bytes(to));
        let added: Vec<u64> = after.iter().copied().filter(|b| !before.contains(b)).collect();
        if let Err(e) = acquire(file, &added, to) {
            for &byte in &added {
                // Unlocking what is not locked does nothing; a failure leaves too much locked, never too little.
                let _ = sys::set_lock(file.as_fd(), byte, ByteLock::Unlocked);
            }
            // POSIX lets a kernel say either.
            let conflict = e.raw_os_error() == Some(libc::EACCES);
            return Err(if conflict { errno(libc::EAGAIN) } else { e });
        }
        for byte in before.into_iter().filter(|b| !after.contains(b)) {
            sys::set_lock(file.as_fd(), byte, ByteLock::Unlocked)?;
        }
        Ok(())
    }

    fn acquire(file: &File, added: &[u64], to: LockMode) -> io::Result<()> {
        for &byte in added {
            sys::set_lock(file.as_fd(), byte, ByteLock::Read)?;
        }
        let (used, refused) = masks(to);
        let stands_against = bits(refused)
            .map(|b| USED_BASE + b)
            .chain(bits(used).map(|b| REFUSED_BASE + b));
        for byte in stands_against {
            if sys::is_locked_by_another(file.as_fd(), byte)? {
                return Err(errno(libc::EAGAIN));
            }
        }
        Ok(())
    }
}

/// The host's file systems.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsFileSystem;

/// `Path::parent` of a bare file name is empty where the kernel wants ".".
pub(super) fn or_here(dir: &Path) -> &Path {
    if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    }
}

/// For file systems whose rename knows no flags. Between the two steps, and after a crash there, the file has both
/// names.
fn rename_by_link(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to)?;
    fs::remove_file(from)
}

/// Close-on-exec is std's default. `O_NONBLOCK`: opening a FIFO without a writer would wait for one.
fn open_flags() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    options
}

impl FileSystem for OsFileSystem {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        let file = open_flags()
            .write(access == Access::Write)
            .open(path)
            .map_err(|e| match e.raw_os_error() {
                // What the kernel says of directories opened for writing, sockets, and devices without a driver:
                // neither regular files nor block devices.
                Some(libc::EISDIR | libc::ENXIO | libc::ENODEV) => errno(libc::EINVAL),
                _ => e,
            })?;
        FileStorage::from_nonblocking(file)
    }

    fn open_beneath(&self, root: &Path, path: &Path) -> io::Result<Arc<dyn Storage>> {
        // Only lexical work on `path`: nothing outside the root may be looked at on behalf of an untrusted name. The
        // kernel then walks what is left and stops where it would leave the root.
        let path = std::path::absolute(path)?;
        let lexical = std::path::absolute(or_here(root))?;
        let rest = match path.strip_prefix(&lexical) {
            Ok(rest) => rest,
            // The path may have been resolved before, the root not.
            Err(_) => path
                .strip_prefix(fs::canonicalize(&lexical)?)
                .map_err(|_| errno(libc::EXDEV))?,
        };
        let dir = open_flags().custom_flags(libc::O_DIRECTORY).open(&lexical)?;
        let mut attempts = 0;
        let file = loop {
            match sys::open_beneath(dir.as_fd(), or_here(rest)) {
                // A rename somewhere raced with a ".." in the path.
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) && attempts < 100 => attempts += 1,
                Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => {
                    return Err(io::Error::new(
                        io::ErrorKind::Unsupported,
                        "this kernel cannot confine files to a directory (openat2 came with Linux 5.6)",
                    ));
                }
                Err(e) if e.raw_os_error() == Some(libc::ENXIO) => return Err(errno(libc::EINVAL)),
                other => break other?,
            }
        };
        FileStorage::from_nonblocking(file)
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(FileStorage::from_file(file)?)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        match sys::rename_noreplace(from, to) {
            // Also where a directory is renamed into itself, which then fails again below.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP)) => {
                rename_by_link(from, to)
            }
            other => other,
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        open_flags()
            .custom_flags(libc::O_DIRECTORY)
            .open(or_here(dir))?
            .sync_all()
    }

    fn list(&self, dir: &Path, limit: usize) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(or_here(dir))?
            .take(limit)
            .map(|entry| Ok(dir.join(entry?.file_name())))
            .collect()
    }

    fn kind(&self, path: &Path) -> io::Result<EntryKind> {
        let kind = fs::symlink_metadata(path)?.file_type();
        Ok(match (kind.is_file(), kind.is_dir()) {
            (true, _) => EntryKind::File,
            (_, true) => EntryKind::Directory,
            _ => EntryKind::Other,
        })
    }

    fn absolute(&self, path: &Path) -> io::Result<PathBuf> {
        match fs::canonicalize(path) {
            // A file about to be created has a place too - unless a link that leads nowhere has its name.
            Err(e) if e.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => {
                match (path.parent(), path.file_name()) {
                    (Some(dir), Some(name)) => Ok(fs::canonicalize(or_here(dir))?.join(name)),
                    _ => Err(e),
                }
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests;
