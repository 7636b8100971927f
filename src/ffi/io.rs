//! Custom I/O
//!
//! Files that are not the host's: a table of functions through which the library reaches every file of a disk. Give
//! it to options with avhdx_opts_set_io. Paths are names in the caller's own name space; the library passes them
//! absolute, with "." and ".." resolved, and takes a relative one to be in "/". Functions return 0 or a negative
//! errno (get_size: the size or a negative errno), transfer the whole range or fail, may be called from every thread
//! that uses the disk, at the same time, and must not call the library with the same disk.

use std::ffi::{c_char, c_int, c_void, CStr, OsStr};
use std::io;
use std::mem::offset_of;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::callback::User;
use super::error::c_string;
use super::guard::{argument, catch, null};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::callbacks::{CallbackFileSystem, Callbacks};
use crate::storage::{Access, LockMode};

/// open: for reading and writing; without it for reading only.
pub const AVHDX_IO_WRITE: u32 = 0x1;
/// zero: only if it gives the space of the range back; otherwise fail with -ENOTSUP.
pub const AVHDX_IO_RELEASE: u32 = 0x1;
/// lock: nothing is held any more.
pub const AVHDX_IO_UNLOCKED: u32 = 0;
/// lock: other readers are welcome, writers are not.
pub const AVHDX_IO_LOCK_READ: u32 = 1;
/// lock: nobody else is welcome.
pub const AVHDX_IO_LOCK_WRITE: u32 = 2;

/// The functions of avhdx_opts_set_io. Set struct_size with AVHDX_IO_OPS_INIT. Members marked "optional" may be NULL;
/// an operation that needs one which is missing fails with AVHDX_ERR_UNSUPPORTED and names it. ctx is the pointer
/// given to avhdx_opts_set_io, file what open or create made. Since 1.0.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct avhdx_io_ops {
    /// Size of this structure in the caller's program.
    pub struct_size: u32,
    /// Must be 0.
    pub flags: u32,
    /// Optional. Called once with ctx when neither options nor disks use it any more, also when avhdx_opts_set_io
    /// fails.
    pub free: Option<unsafe extern "C" fn(ctx: *mut c_void)>,
    /// Opens an existing file: flags is 0 or AVHDX_IO_WRITE. -ENOENT when there is none.
    pub open: Option<
        unsafe extern "C" fn(ctx: *mut c_void, path: *const c_char, flags: u32, file: *mut *mut c_void) -> c_int,
    >,
    /// Optional. Closes a file; called once for each success of open and create.
    pub close: Option<unsafe extern "C" fn(ctx: *mut c_void, file: *mut c_void)>,
    /// Reads count bytes at offset; the library asks for nothing past the size.
    pub pread: Option<
        unsafe extern "C" fn(ctx: *mut c_void, file: *mut c_void, buf: *mut c_void, count: usize, offset: u64) -> c_int,
    >,
    /// Writes count bytes at offset, growing the file when needed; a gap reads as zeros. Optional for reading.
    pub pwrite: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            file: *mut c_void,
            buf: *const c_void,
            count: usize,
            offset: u64,
        ) -> c_int,
    >,
    /// Makes everything written, and the size, survive power loss. Optional for reading.
    pub flush: Option<unsafe extern "C" fn(ctx: *mut c_void, file: *mut c_void) -> c_int>,
    /// The size in bytes.
    pub get_size: Option<unsafe extern "C" fn(ctx: *mut c_void, file: *mut c_void) -> i64>,
    /// Sets the size; new bytes read as zeros. Optional for reading.
    pub set_size: Option<unsafe extern "C" fn(ctx: *mut c_void, file: *mut c_void, size: u64) -> c_int>,
    /// Optional. Makes a range inside the file read as zeros; flags is 0 or AVHDX_IO_RELEASE. Zeros are written
    /// instead when it is missing or returns -ENOTSUP.
    pub zero:
        Option<unsafe extern "C" fn(ctx: *mut c_void, file: *mut c_void, offset: u64, len: u64, flags: u32) -> c_int>,
    /// Optional. Changes what the file holds to mode, AVHDX_IO_UNLOCKED, _LOCK_READ or _LOCK_WRITE, without waiting;
    /// -EAGAIN when another open file stands against it. Without it files are not locked.
    pub lock: Option<unsafe extern "C" fn(ctx: *mut c_void, file: *mut c_void, mode: u32) -> c_int>,
    /// Optional. Creates a file for reading and writing; -EEXIST if there is one. Needed by create and checkpoint.
    pub create: Option<unsafe extern "C" fn(ctx: *mut c_void, path: *const c_char, file: *mut *mut c_void) -> c_int>,
    /// Optional. Renames without replacing (-EEXIST). Needed by create and checkpoint.
    pub rename: Option<unsafe extern "C" fn(ctx: *mut c_void, from: *const c_char, to: *const c_char) -> c_int>,
    /// Optional. Removes a name. Needed by merge, unless unlink=off.
    pub unlink: Option<unsafe extern "C" fn(ctx: *mut c_void, path: *const c_char) -> c_int>,
    /// Optional. Makes what create, rename and unlink did in a directory survive power loss. Needed by create,
    /// checkpoint and merge, unless unlink=off.
    pub sync_dir: Option<unsafe extern "C" fn(ctx: *mut c_void, dir: *const c_char) -> c_int>,
    /// Optional. Calls found with arg and each name (without directories) in dir, until found returns other than 0.
    /// Needed by merge, unless relink=off, and to find parents by identity.
    pub list: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            dir: *const c_char,
            found: Option<unsafe extern "C" fn(arg: *mut c_void, name: *const c_char) -> c_int>,
            arg: *mut c_void,
        ) -> c_int,
    >,
}

/// What was in the first version: a caller cannot have less.
const SMALLEST: usize = offset_of!(avhdx_io_ops, zero);

/// Larger than any version of the structure.
const LARGEST: usize = 4096;

/// A file system of the caller.
pub(super) type IoFileSystem = CallbackFileSystem<Table>;

/// The caller's functions and pointer.
#[derive(Debug)]
struct Inner {
    ops: avhdx_io_ops,
    ctx: User,
}

impl std::fmt::Debug for avhdx_io_ops {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("avhdx_io_ops").finish_non_exhaustive()
    }
}

/// See [`IoFileSystem`].
#[derive(Debug, Clone)]
pub(super) struct Table(Arc<Inner>);

/// A file the caller opened; dropping it closes it.
#[derive(Debug)]
pub(super) struct IoFile {
    table: Table,
    file: *mut c_void,
}

// SAFETY: the pointer is only handed back to the caller's functions, which the header says are called from any thread.
unsafe impl Send for IoFile {}
// SAFETY: likewise, at the same time from several.
unsafe impl Sync for IoFile {}

impl Drop for IoFile {
    fn drop(&mut self) {
        if let Some(close) = self.table.0.ops.close {
            // SAFETY: `file` came from open or create of the same table, and an IoFile is dropped once.
            unsafe { close(self.table.ctx(), self.file) };
        }
    }
}

/// What operations may ask for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Need {
    Create,
    Rename,
    Unlink,
    SyncDir,
    List,
    Write,
}

/// Refuses an operation that these I/O callbacks cannot do; the host's files can do all.
pub(super) fn check_io(io: Option<&IoFileSystem>, operation: &str, needs: &[Need]) -> Result<()> {
    io.map_or(Ok(()), |io| io.callbacks().check(operation, needs))
}

/// Takes over the caller's table.
///
/// # Safety
/// `ops` is NULL or leads to as many readable bytes as its first four say; its functions may be called with `ctx`
/// until `free` is.
pub(super) unsafe fn take_io(ops: *const avhdx_io_ops, ctx: *mut c_void) -> Result<Option<Arc<IoFileSystem>>> {
    if ops.is_null() {
        return Ok(None);
    }
    // SAFETY: not NULL, so its first four bytes can be read.
    let size = unsafe { ops.cast::<u32>().read() } as usize;
    if !(offset_of!(avhdx_io_ops, open)..=LARGEST).contains(&size) {
        // Too small to hold `free`, so nothing can be called.
        return Err(argument(format!("ops->struct_size is {size}"))
            .with_hint("initialise the structure with AVHDX_IO_OPS_INIT"));
    }
    // SAFETY: all-zero is 0 for the integers and None for the functions.
    let mut known: avhdx_io_ops = unsafe { std::mem::zeroed() };
    let len = size.min(size_of::<avhdx_io_ops>());
    // SAFETY: the caller's structure has `size` bytes and ours at least `len`; ours is a local, so they do not overlap.
    unsafe { std::ptr::copy_nonoverlapping(ops.cast::<u8>(), (&raw mut known).cast::<u8>(), len) };
    // From here on failing runs free.
    let inner = Inner {
        ops: known,
        ctx: User {
            pointer: ctx,
            free: known.free,
        },
    };
    // SAFETY: `len..size` lies inside the caller's structure.
    let rest = unsafe { std::slice::from_raw_parts(ops.cast::<u8>().add(len), size - len) };
    if rest.iter().any(|&byte| byte != 0) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "the I/O callbacks have members this version of the library does not know",
        )
        .with_hint("use a newer library, or set only members of its version"));
    }
    if size < SMALLEST {
        return Err(argument(format!(
            "ops->struct_size is {size}, wanted at least {SMALLEST}"
        )));
    }
    if known.flags != 0 {
        return Err(argument(format!("unknown flag bits {:#x} in ops->flags", known.flags)));
    }
    for (is_missing, name) in [
        (known.open.is_none(), "ops->open"),
        (known.pread.is_none(), "ops->pread"),
        (known.get_size.is_none(), "ops->get_size"),
    ] {
        if is_missing {
            return Err(null(name));
        }
    }
    Ok(Some(Arc::new(CallbackFileSystem::new(Table(Arc::new(inner))))))
}

fn done(status: c_int) -> io::Result<()> {
    match status {
        0 => Ok(()),
        1.. => Err(io::Error::from_raw_os_error(libc::EIO)),
        failed => Err(io::Error::from_raw_os_error(failed.checked_neg().unwrap_or(libc::EIO))),
    }
}

fn missing() -> io::Error {
    io::Error::from_raw_os_error(libc::EOPNOTSUPP)
}

fn name(path: &Path) -> std::ffi::CString {
    c_string(path.as_os_str().as_bytes())
}

impl Table {
    fn ctx(&self) -> *mut c_void {
        self.0.ctx.pointer
    }

    fn can_write(&self) -> bool {
        let ops = &self.0.ops;
        ops.pwrite.is_some() && ops.flush.is_some() && ops.set_size.is_some()
    }

    /// Refuses an operation whose functions are missing, before it begins.
    pub(super) fn check(&self, operation: &str, needs: &[Need]) -> Result<()> {
        let ops = &self.0.ops;
        for need in needs {
            let (is_there, name) = match need {
                Need::Create => (ops.create.is_some(), "create"),
                Need::Rename => (ops.rename.is_some(), "rename"),
                Need::Unlink => (ops.unlink.is_some(), "unlink"),
                Need::SyncDir => (ops.sync_dir.is_some(), "sync_dir"),
                Need::List => (ops.list.is_some(), "list"),
                Need::Write => (self.can_write(), "pwrite, flush and set_size"),
            };
            if !is_there {
                let message = format!("{operation} needs the I/O callback {name}, which is missing");
                let error = Error::new(ErrorKind::Unsupported, message);
                return Err(error.with_hint(match need {
                    Need::Unlink => "supply it, or set unlink=off",
                    Need::List => "supply it, or set relink=off if no other disk depends on these files",
                    _ => "supply it in struct avhdx_io_ops",
                }));
            }
        }
        Ok(())
    }

    fn file(&self, file: *mut c_void) -> IoFile {
        IoFile {
            table: self.clone(),
            file,
        }
    }
}

/// Receives the names of `list`.
struct Names {
    names: Vec<PathBuf>,
    limit: usize,
}

unsafe extern "C" fn found(arg: *mut c_void, name: *const c_char) -> c_int {
    let add = || {
        if arg.is_null() || name.is_null() {
            return 1;
        }
        // SAFETY: `arg` is what `list` below passed: a Names that nobody else touches during the call.
        let names = unsafe { &mut *arg.cast::<Names>() };
        // SAFETY: the header asks for a string that ends in a NUL byte.
        let name = unsafe { CStr::from_ptr(name) };
        names.names.push(PathBuf::from(OsStr::from_bytes(name.to_bytes())));
        c_int::from(names.names.len() >= names.limit)
    };
    catch(add).unwrap_or(1)
}

// In each method below: the function may be called with ctx until free (promise of the caller of avhdx_opts_set_io),
// and self keeps free from running; strings and buffers are locals or borrowed and outlive the call.
impl Callbacks for Table {
    type File = IoFile;

    fn open(&self, path: &Path, access: Access) -> io::Result<IoFile> {
        let open = self.0.ops.open.ok_or_else(missing)?;
        let flags = match access {
            Access::Read => 0,
            Access::Write if self.can_write() => AVHDX_IO_WRITE,
            Access::Write => return Err(io::Error::from_raw_os_error(libc::EROFS)),
        };
        let mut file = std::ptr::null_mut();
        // SAFETY: see above the impl.
        done(unsafe { open(self.ctx(), name(path).as_ptr(), flags, &raw mut file) })?;
        Ok(self.file(file))
    }

    fn create(&self, path: &Path) -> io::Result<IoFile> {
        let create = self.0.ops.create.filter(|_| self.can_write()).ok_or_else(missing)?;
        let mut file = std::ptr::null_mut();
        // SAFETY: see above the impl.
        done(unsafe { create(self.ctx(), name(path).as_ptr(), &raw mut file) })?;
        Ok(self.file(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let rename = self.0.ops.rename.ok_or_else(missing)?;
        // SAFETY: see above the impl.
        done(unsafe { rename(self.ctx(), name(from).as_ptr(), name(to).as_ptr()) })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let unlink = self.0.ops.unlink.ok_or_else(missing)?;
        // SAFETY: see above the impl.
        done(unsafe { unlink(self.ctx(), name(path).as_ptr()) })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let sync_dir = self.0.ops.sync_dir.ok_or_else(missing)?;
        // SAFETY: see above the impl.
        done(unsafe { sync_dir(self.ctx(), name(dir).as_ptr()) })
    }

    fn list(&self, dir: &Path, limit: usize) -> io::Result<Vec<PathBuf>> {
        let list = self.0.ops.list.ok_or_else(missing)?;
        let mut names = Names {
            names: Vec::new(),
            limit,
        };
        let arg = (&raw mut names).cast::<c_void>();
        // SAFETY: see above the impl; `arg` is what `found` takes it for, and outlives the call.
        done(unsafe { list(self.ctx(), name(dir).as_ptr(), Some(found), arg) })?;
        Ok(names.names)
    }

    fn read(&self, file: &IoFile, buf: &mut [u8], file_offset: u64) -> io::Result<()> {
        let pread = self.0.ops.pread.ok_or_else(missing)?;
        let to = buf.as_mut_ptr().cast::<c_void>();
        // SAFETY: see above the impl; `to` has buf.len() writable bytes.
        done(unsafe { pread(self.ctx(), file.file, to, buf.len(), file_offset) })
    }

    fn write(&self, file: &IoFile, buf: &[u8], file_offset: u64) -> io::Result<()> {
        let pwrite = self.0.ops.pwrite.ok_or_else(missing)?;
        let from = buf.as_ptr().cast::<c_void>();
        // SAFETY: see above the impl; `from` has buf.len() bytes.
        done(unsafe { pwrite(self.ctx(), file.file, from, buf.len(), file_offset) })
    }

    fn flush(&self, file: &IoFile) -> io::Result<()> {
        let flush = self.0.ops.flush.ok_or_else(missing)?;
        // SAFETY: see above the impl.
        done(unsafe { flush(self.ctx(), file.file) })
    }

    fn len(&self, file: &IoFile) -> io::Result<u64> {
        let get_size = self.0.ops.get_size.ok_or_else(missing)?;
        // SAFETY: see above the impl.
        let size = unsafe { get_size(self.ctx(), file.file) };
        u64::try_from(size).map_err(|_| {
            let errno = i32::try_from(size.unsigned_abs()).unwrap_or(libc::EIO);
            io::Error::from_raw_os_error(errno)
        })
    }

    fn set_len(&self, file: &IoFile, len: u64) -> io::Result<()> {
        let set_size = self.0.ops.set_size.ok_or_else(missing)?;
        // SAFETY: see above the impl.
        done(unsafe { set_size(self.ctx(), file.file, len) })
    }

    fn zero(&self, file: &IoFile, file_offset: u64, len: u64, release: bool) -> io::Result<()> {
        let zero = self.0.ops.zero.ok_or_else(missing)?;
        let flags = if release { AVHDX_IO_RELEASE } else { 0 };
        // SAFETY: see above the impl.
        done(unsafe { zero(self.ctx(), file.file, file_offset, len, flags) })
    }

    fn lock(&self, file: &IoFile, mode: LockMode) -> io::Result<()> {
        let Some(lock) = self.0.ops.lock else {
            return Ok(());
        };
        let mode = match mode {
            LockMode::None => AVHDX_IO_UNLOCKED,
            LockMode::Read => AVHDX_IO_LOCK_READ,
            LockMode::Write => AVHDX_IO_LOCK_WRITE,
        };
        // SAFETY: see above the impl.
        done(unsafe { lock(self.ctx(), file.file, mode) })
    }
}
