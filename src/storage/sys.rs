//! The system calls that std has no safe form of: one call per function, errno kept, interrupted calls retried.
//!
//! Everything takes a borrowed descriptor, so that none can be closed (and its number reused) during a call. Policy -
//! fallbacks, what an errno means - is the callers'; see `file`.

#![expect(
    unsafe_code,
    reason = "the only place in storage that talks to the kernel without std"
)]

use std::ffi::CString;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

// Offsets go to the kernel as off_t. With 32-bit ones files would end at 2 GiB.
const _: () = assert!(size_of::<libc::off_t>() == 8, "a 64-bit off_t is needed");

/// Signed offset of the kernel's interface; `EINVAL` beyond 2^63 - 1, as the kernel would say.
fn offset(value: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Repeats `call` until it is not interrupted. `call` returns -1 and sets errno on failure.
fn retry(mut call: impl FnMut() -> i64) -> io::Result<i64> {
    loop {
        let result = call();
        if result != -1 {
            return Ok(result);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// What [`fallocate`] does to a range. None of them changes the length of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fallocate {
    /// Gives the space back; the range reads as zeros.
    PunchHole,
    /// The range reads as zeros and keeps (or gains) its space.
    ZeroRange,
}

pub(super) fn fallocate(fd: BorrowedFd<'_>, what: Fallocate, start: u64, len: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_KEEP_SIZE
        | match what {
            Fallocate::PunchHole => libc::FALLOC_FL_PUNCH_HOLE,
            Fallocate::ZeroRange => libc::FALLOC_FL_ZERO_RANGE,
        };
    let (start, len) = (offset(start)?, offset(len)?);
    // SAFETY: no pointers; the descriptor is open while borrowed.
    retry(|| i64::from(unsafe { libc::fallocate(fd.as_raw_fd(), mode, start, len) })).map(drop)
}

/// FICLONERANGE. A `len` of 0 means "to the end of the source" to the kernel.
pub(super) fn clone_range(
    source: BorrowedFd<'_>,
    source_start: u64,
    destination: BorrowedFd<'_>,
    destination_start: u64,
    len: u64,
) -> io::Result<()> {
    let range = libc::file_clone_range {
        src_fd: i64::from(source.as_raw_fd()),
        src_offset: source_start,
        src_length: len,
        dest_offset: destination_start,
    };
    // SAFETY: FICLONERANGE reads one `file_clone_range`, which outlives the call; both descriptors are open while
    // borrowed.
    retry(|| i64::from(unsafe { libc::ioctl(destination.as_raw_fd(), libc::FICLONERANGE, &range) })).map(drop)
}

/// copy_file_range; returns the bytes copied, possibly fewer than `len`, 0 at the end of the source.
pub(super) fn copy_file_range(
    source: BorrowedFd<'_>,
    source_start: u64,
    destination: BorrowedFd<'_>,
    destination_start: u64,
    len: usize,
) -> io::Result<u64> {
    let (source_start, destination_start) = (offset(source_start)?, offset(destination_start)?);
    let copied = retry(|| {
        let (mut from, mut to) = (source_start, destination_start);
        // SAFETY: the kernel reads and writes the two offsets, locals that outlive the call; both descriptors are open
        // while borrowed.
        let copied =
            unsafe { libc::copy_file_range(source.as_raw_fd(), &mut from, destination.as_raw_fd(), &mut to, len, 0) };
        copied as i64
    })?;
    Ok(copied as u64)
}

/// What [`seek`] looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seek {
    Data,
    Hole,
}

/// lseek with SEEK_DATA or SEEK_HOLE. Moves the file's cursor, which nothing in this library uses.
pub(super) fn seek(fd: BorrowedFd<'_>, what: Seek, start: u64) -> io::Result<u64> {
    let whence = match what {
        Seek::Data => libc::SEEK_DATA,
        Seek::Hole => libc::SEEK_HOLE,
    };
    let start = offset(start)?;
    // SAFETY: no pointers; the descriptor is open while borrowed.
    retry(|| unsafe { libc::lseek(fd.as_raw_fd(), start, whence) }).map(|at| at as u64)
}

/// sync_file_range with SYNC_FILE_RANGE_WRITE: begins to write pages that are dirty, and does not wait for it. A hint.
pub(super) fn start_writeback(fd: BorrowedFd<'_>, start: u64, len: u64) {
    if let (Ok(start), Ok(len)) = (offset(start), offset(len)) {
        // SAFETY: no pointers; the descriptor is open while borrowed.
        unsafe { libc::sync_file_range(fd.as_raw_fd(), start, len, libc::SYNC_FILE_RANGE_WRITE) };
    }
}

/// statx with STATX_DIOALIGN: what requests with O_DIRECT must be multiples of, in memory and in the file; zeros where the
/// file has no such requests, `None` where the kernel does not say (before Linux 6.1).
pub(super) fn direct_alignment(fd: BorrowedFd<'_>) -> io::Result<Option<(u32, u32)>> {
    let mut info = MaybeUninit::<libc::statx>::zeroed();
    let flags = libc::AT_EMPTY_PATH;
    // SAFETY: the kernel reads an empty string and writes one `statx`; both outlive the call; the descriptor is open
    // while borrowed.
    retry(|| {
        i64::from(unsafe {
            libc::statx(
                fd.as_raw_fd(),
                c"".as_ptr(),
                flags,
                libc::STATX_DIOALIGN,
                info.as_mut_ptr(),
            )
        })
    })?;
    // SAFETY: integers, of which all are written: by the kernel, or zeros before.
    let info = unsafe { info.assume_init() };
    let known = info.stx_mask & libc::STATX_DIOALIGN != 0;
    Ok(known.then_some((info.stx_dio_mem_align, info.stx_dio_offset_align)))
}

/// preadv; returns the bytes read, possibly fewer than there is room for, 0 at the end of the file.
pub(super) fn read_vectored(fd: BorrowedFd<'_>, bufs: &mut [IoSliceMut<'_>], start: u64) -> io::Result<u64> {
    // More are refused.
    let count = bufs.len().min(libc::UIO_MAXIOV as usize) as libc::c_int;
    let start = offset(start)?;
    // SAFETY: an `IoSliceMut` is an `iovec` by its documentation; the kernel writes into `count` of them, which are
    // borrowed for the call; the descriptor is open while borrowed.
    retry(|| unsafe { libc::preadv(fd.as_raw_fd(), bufs.as_mut_ptr().cast(), count, start) } as i64)
        .map(|len| len as u64)
}

/// State of one byte's open file description lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ByteLock {
    Unlocked,
    Read,
}

fn flock(kind: libc::c_int, start: u64) -> io::Result<libc::flock> {
    Ok(libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: offset(start)?,
        l_len: 1,
        // The kernel refuses anything else for open file description locks.
        l_pid: 0,
    })
}

/// F_OFD_SETLK of the byte at `start`, without waiting.
pub(super) fn set_lock(fd: BorrowedFd<'_>, start: u64, state: ByteLock) -> io::Result<()> {
    let lock = flock(
        match state {
            ByteLock::Unlocked => libc::F_UNLCK,
            ByteLock::Read => libc::F_RDLCK,
        },
        start,
    )?;
    // SAFETY: F_OFD_SETLK reads one `flock`, which outlives the call; the descriptor is open while borrowed.
    retry(|| i64::from(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &lock) })).map(drop)
}

/// F_OFD_GETLK: whether a write lock of the byte at `start` would meet another's lock.
pub(super) fn is_locked_by_another(fd: BorrowedFd<'_>, start: u64) -> io::Result<bool> {
    let mut lock = flock(libc::F_WRLCK, start)?;
    // SAFETY: F_OFD_GETLK reads and writes one `flock`, which outlives the call; the descriptor is open while borrowed.
    retry(|| i64::from(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) }))?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

/// openat2 for reading with RESOLVE_BENEATH: `path`, relative, cannot leave `root` by "..", links or mounts' magic.
/// Opened like everything else: close-on-exec, never blocking, never becoming the controlling terminal.
pub(super) fn open_beneath(root: BorrowedFd<'_>, path: &Path) -> io::Result<File> {
    let path = c_path(path)?;
    // SAFETY: `open_how` is three integers; zeros are a value of it (and what the kernel asks of fields unknown here).
    let mut how: libc::open_how = unsafe { MaybeUninit::zeroed().assume_init() };
    how.flags = (libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY) as u64;
    how.resolve = libc::RESOLVE_BENEATH;
    // SAFETY: the kernel reads the string to its NUL and `size_of(how)` bytes of `how`; both outlive the call; the
    // descriptor is open while borrowed.
    let fd = retry(|| unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &how,
            size_of_val(&how),
        )
    })?;
    // SAFETY: the call succeeded, so this is a descriptor just opened that nobody else knows.
    Ok(unsafe { File::from_raw_fd(fd as libc::c_int) })
}

/// renameat2 with RENAME_NOREPLACE, relative paths from the working directory.
pub(super) fn rename_noreplace(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (c_path(from)?, c_path(to)?);
    // SAFETY: the kernel reads both strings to their NUL; both outlive the call.
    retry(|| {
        i64::from(unsafe {
            libc::renameat2(
                libc::AT_FDCWD,
                from.as_ptr(),
                libc::AT_FDCWD,
                to.as_ptr(),
                libc::RENAME_NOREPLACE,
            )
        })
    })
    .map(drop)
}

/// Bytes an unprivileged process may still allocate in the file system of `fd`.
pub(super) fn available_space(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut info = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the kernel writes one `statvfs`, which outlives the call; the descriptor is open while borrowed.
    retry(|| i64::from(unsafe { libc::fstatvfs(fd.as_raw_fd(), info.as_mut_ptr()) }))?;
    // SAFETY: the call succeeded, so all of it is written.
    let info = unsafe { info.assume_init() };
    Ok(info.f_bavail.saturating_mul(info.f_frsize))
}

// linux/fs.h: _IOR(0x12, 114, size_t). The direction bits differ on three families of processors.
const BLKGETSIZE64: u32 = if cfg!(any(
    target_arch = "powerpc64",
    target_arch = "mips64",
    target_arch = "mips64r6",
    target_arch = "sparc64"
)) {
    0x4008_1272
} else {
    0x8008_1272
};

/// BLKGETSIZE64: bytes of a block device.
pub(super) fn block_device_len(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut len: u64 = 0;
    // SAFETY: BLKGETSIZE64 writes one 64-bit integer, which outlives the call; the descriptor is open while borrowed.
    retry(|| i64::from(unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETSIZE64 as libc::Ioctl, &mut len) }))?;
    Ok(len)
}

/// fcntl F_GETFL: access mode and status flags.
pub(super) fn status_flags(fd: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    // SAFETY: no pointers; the descriptor is open while borrowed.
    retry(|| i64::from(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })).map(|flags| flags as libc::c_int)
}

/// fcntl F_SETFL: status flags; others are ignored.
pub(super) fn set_status_flags(fd: BorrowedFd<'_>, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: no pointers; the descriptor is open while borrowed.
    retry(|| i64::from(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) })).map(drop)
}
