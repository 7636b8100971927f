//! System calls the standard library does not offer, one function each. With `ffi`, the only unsafe code there is.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn offset(value: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn retry(mut call: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => return other,
        }
    }
}

/// fallocate(2) with `mode`.
fn fallocate(fd: RawFd, mode: libc::c_int, at: u64, len: u64) -> io::Result<()> {
    let (at, len) = (offset(at)?, offset(len)?);
    // SAFETY: plain integers; the kernel checks the descriptor.
    retry(|| check(unsafe { libc::fallocate(fd, mode, at, len) }))
}

/// Frees the range; it reads as zeros.
pub(super) fn punch_hole(fd: RawFd, at: u64, len: u64) -> io::Result<()> {
    fallocate(fd, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, at, len)
}

/// Makes the range read as zeros, space kept.
pub(super) fn zero_range(fd: RawFd, at: u64, len: u64) -> io::Result<()> {
    fallocate(fd, libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, at, len)
}

/// The next range with data at or after `from`, both ends as lseek(2) reports them; `None` if there is none.
pub(super) fn next_data(fd: RawFd, from: u64) -> io::Result<Option<Range<u64>>> {
    let seek = |at: u64, whence| {
        let at = offset(at)?;
        // SAFETY: plain integers. The file position moves, which nothing here uses: all I/O is positional.
        let found = unsafe { libc::lseek(fd, at, whence) };
        u64::try_from(found).map_err(|_| io::Error::last_os_error())
    };
    match seek(from, libc::SEEK_DATA) {
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(e) => Err(e),
        Ok(start) => Ok(Some(start..seek(start, libc::SEEK_HOLE)?)),
    }
}

/// FICLONERANGE: `len` bytes of `target` share the extents of `source`.
pub(super) fn clone_range(source: RawFd, source_at: u64, target: RawFd, target_at: u64, len: u64) -> io::Result<()> {
    #[repr(C)]
    struct Range {
        source: i64,
        source_at: u64,
        len: u64,
        target_at: u64,
    }
    // _IOW(0x94, 13, struct file_clone_range)
    const FICLONERANGE: libc::c_ulong = 0x4020_940D;
    let range = Range {
        source: i64::from(source),
        source_at,
        len,
        target_at,
    };
    // SAFETY: the request reads one struct of this layout from the pointer, which lives through the call.
    retry(|| check(unsafe { libc::ioctl(target, FICLONERANGE as _, &raw const range) }))
}

/// copy_file_range(2) until `len` bytes are copied.
pub(super) fn copy_range(source: RawFd, source_at: u64, target: RawFd, target_at: u64, len: u64) -> io::Result<()> {
    let (mut from, mut to) = (offset(source_at)?, offset(target_at)?);
    let mut left = len;
    while left > 0 {
        let piece = usize::try_from(left.min(1 << 30)).unwrap_or(1 << 30);
        // SAFETY: the two offsets are live and exclusively borrowed for the call, which updates them.
        let copied = unsafe { libc::copy_file_range(source, &raw mut from, target, &raw mut to, piece, 0) };
        match u64::try_from(copied) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(copied) => left -= copied,
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
        }
    }
    Ok(())
}

fn ofd(fd: RawFd, command: libc::c_int, kind: libc::c_int, at: u64, len: u64) -> io::Result<libc::flock> {
    // SAFETY: flock is plain data for which all zeros is valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = offset(at)?;
    lock.l_len = offset(len)?;
    // SAFETY: the struct lives through the call, which may write to it.
    retry(|| match unsafe { libc::fcntl(fd, command, &raw mut lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    })?;
    Ok(lock)
}

/// Takes a shared open-file-description lock on one byte.
pub(super) fn lock_byte(fd: RawFd, at: u64) -> io::Result<()> {
    ofd(fd, libc::F_OFD_SETLK, libc::F_RDLCK, at, 1).map(drop)
}

/// Drops the lock on one byte.
pub(super) fn unlock_byte(fd: RawFd, at: u64) -> io::Result<()> {
    ofd(fd, libc::F_OFD_SETLK, libc::F_UNLCK, at, 1).map(drop)
}

/// Whether somebody else holds a lock on the byte.
pub(super) fn is_locked(fd: RawFd, at: u64) -> io::Result<bool> {
    let lock = ofd(fd, libc::F_OFD_GETLK, libc::F_WRLCK, at, 1)?;
    Ok(libc::c_int::from(lock.l_type) != libc::F_UNLCK)
}

/// Opens `path`, relative to `root` and never leaving it, for reading.
pub(super) fn open_beneath(root: &File, path: &Path) -> io::Result<File> {
    let path = c_path(path)?;
    // SAFETY: open_how is plain data for which all zeros is valid.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY) as u64;
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: path and struct live through the call and the size is the struct's.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    };
    match RawFd::try_from(fd) {
        // SAFETY: the call returned a new descriptor that nobody else owns.
        Ok(fd) if fd >= 0 => Ok(unsafe { File::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Renames unless `to` exists.
pub(super) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    let (from_c, to_c) = (c_path(from)?, c_path(to)?);
    // SAFETY: both strings live through the call.
    let renamed = check(unsafe {
        libc::renameat2(
            libc::AT_FDCWD,
            from_c.as_ptr(),
            libc::AT_FDCWD,
            to_c.as_ptr(),
            libc::RENAME_NOREPLACE,
        )
    });
    match renamed {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {
            // A file system without the flag: a hard link does not replace either.
            std::fs::hard_link(from, to)?;
            std::fs::remove_file(from)
        }
        other => other,
    }
}

/// Bytes free to unprivileged users on the file system of an open file.
pub(super) fn free_space(fd: RawFd) -> io::Result<u64> {
    // SAFETY: statvfs is plain data for which all zeros is valid.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the struct lives through the call, which fills it.
    retry(|| check(unsafe { libc::fstatvfs(fd, &raw mut stat) }))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Bytes of a block device.
pub(super) fn device_len(fd: RawFd) -> io::Result<u64> {
    // _IOR(0x12, 114, size_t)
    const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
    let mut len = 0u64;
    // SAFETY: the request writes eight bytes to the pointer, which lives through the call.
    check(unsafe { libc::ioctl(fd, BLKGETSIZE64 as _, &raw mut len) })?;
    Ok(len)
}
