//! Files behind the caller's functions.

use std::any::Any;
use std::ffi::{c_char, c_int, c_void};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::args::{c_path, required};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Access, Barrier, FileId, FileSystem, LockMode, Storage};

/// The caller's files. Every function returns 0 or a negative errno, may be called from any thread that uses a disk,
/// and is whole or a failure. Set struct_size to the size of this struct and leave unused members NULL.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct avhdx_io_ops {
    /// Bytes of this struct.
    pub struct_size: u32,
    /// 0.
    pub flags: u32,
    /// Opens a file. how: AVHDX_IO_READ, AVHDX_IO_WRITE or AVHDX_IO_CREATE (for writing, must not exist). Required.
    pub open:
        Option<unsafe extern "C" fn(ctx: *mut c_void, path: *const c_char, how: u32, file: *mut *mut c_void) -> c_int>,
    /// Closes a file. Called once for each opened.
    pub close: Option<unsafe extern "C" fn(ctx: *mut c_void, file: *mut c_void) -> c_int>,
    /// Reads exactly count bytes. Required.
    pub pread: Option<
        unsafe extern "C" fn(ctx: *mut c_void, file: *mut c_void, buf: *mut c_void, count: usize, offset: u64) -> c_int,
    >,
    /// Writes exactly count bytes, growing the file when needed.
    pub pwrite: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            file: *mut c_void,
            buf: *const c_void,
            count: usize,
            offset: u64,
        ) -> c_int,
    >,
    /// Makes all completed writes and the length durable.
    pub flush: Option<unsafe extern "C" fn(ctx: *mut c_void, file: *mut c_void) -> c_int>,
    /// Length in bytes. Required.
    pub get_size: Option<unsafe extern "C" fn(ctx: *mut c_void, file: *mut c_void, size: *mut u64) -> c_int>,
    /// Sets the length; new bytes read as zeros.
    pub set_size: Option<unsafe extern "C" fn(ctx: *mut c_void, file: *mut c_void, size: u64) -> c_int>,
    /// Makes a range read as zeros. NULL: zeros are written.
    pub zero: Option<unsafe extern "C" fn(ctx: *mut c_void, file: *mut c_void, offset: u64, len: u64) -> c_int>,
    /// Gives the space of a range back; it may read as anything afterwards. NULL: nothing is given back.
    pub discard: Option<unsafe extern "C" fn(ctx: *mut c_void, file: *mut c_void, offset: u64, len: u64) -> c_int>,
    /// Renames a file, never replacing one. NULL: nothing can be created.
    pub rename: Option<unsafe extern "C" fn(ctx: *mut c_void, from: *const c_char, to: *const c_char) -> c_int>,
    /// Removes a file.
    pub unlink: Option<unsafe extern "C" fn(ctx: *mut c_void, path: *const c_char) -> c_int>,
    /// Makes creations, renames and removals in a directory durable. NULL: they are at once.
    pub sync_dir: Option<unsafe extern "C" fn(ctx: *mut c_void, path: *const c_char) -> c_int>,
    /// Locks a file: mode 0 not at all, 1 against writers, 2 against everybody else. NULL: no locks.
    pub lock: Option<unsafe extern "C" fn(ctx: *mut c_void, file: *mut c_void, mode: u32) -> c_int>,
}

#[derive(Debug, Clone, Copy)]
struct Context(*mut c_void);

// SAFETY: the header says that the functions are called from any thread and that ctx must stand that.
unsafe impl Send for Context {}
// SAFETY: as above; the pointer is only handed back to the caller's functions.
unsafe impl Sync for Context {}

/// A file system of the caller's functions.
#[derive(Debug, Clone)]
pub(super) struct CallbackFileSystem {
    ops: Arc<avhdx_io_ops>,
    ctx: Context,
}

fn outcome(result: c_int) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        errno => Err(io::Error::from_raw_os_error(-errno)),
    }
}

fn unsupported<T>() -> io::Result<T> {
    Err(io::Error::from_raw_os_error(libc::ENOTSUP))
}

impl CallbackFileSystem {
    pub(super) fn new(io: *const avhdx_io_ops, ctx: *mut c_void) -> Result<Self> {
        let size = required(io.cast::<u32>(), "io")?;
        let size = *size as usize;
        if !(8..=1 << 16).contains(&size) {
            return Err(Error::new(ErrorKind::Argument, format!("io->struct_size is {size}"))
                .with_hint("set it to sizeof(struct avhdx_io_ops)"));
        }
        // SAFETY: all members of the struct are plain data for which zeros are valid.
        let mut ops: avhdx_io_ops = unsafe { std::mem::zeroed() };
        let known = size.min(size_of::<avhdx_io_ops>());
        // SAFETY: the caller vouches for `size` bytes; at most that many are read.
        unsafe { std::ptr::copy_nonoverlapping(io.cast::<u8>(), (&raw mut ops).cast::<u8>(), known) };
        let missing = [
            (ops.open.is_none(), "open"),
            (ops.pread.is_none(), "pread"),
            (ops.get_size.is_none(), "get_size"),
        ];
        if let Some((_, name)) = missing.iter().find(|(missing, _)| *missing) {
            return Err(Error::new(ErrorKind::Argument, format!("io->{name} must not be NULL")));
        }
        Ok(CallbackFileSystem {
            ops: Arc::new(ops),
            ctx: Context(ctx),
        })
    }

    fn open_as(&self, path: &Path, how: u32) -> io::Result<Arc<dyn Storage>> {
        let Some(open) = self.ops.open else {
            return unsupported();
        };
        let path = c_path(path);
        let mut file = std::ptr::null_mut();
        // SAFETY: the caller's function; the string and the place for the result live through the call.
        outcome(unsafe { open(self.ctx.0, path.as_ptr(), how, &raw mut file) })?;
        Ok(Arc::new(CallbackStorage {
            fs: self.clone(),
            file: Context(file),
        }))
    }

    fn by_path(
        &self,
        call: Option<unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int>,
        path: &Path,
    ) -> Option<io::Result<()>> {
        let path = c_path(path);
        // SAFETY: the caller's function; the string lives through the call.
        Some(outcome(unsafe { call?(self.ctx.0, path.as_ptr()) }))
    }
}

#[derive(Debug)]
struct CallbackStorage {
    fs: CallbackFileSystem,
    file: Context,
}

impl Drop for CallbackStorage {
    fn drop(&mut self) {
        if let Some(close) = self.fs.ops.close {
            // SAFETY: the caller's function with the caller's file, once.
            unsafe { close(self.fs.ctx.0, self.file.0) };
        }
    }
}

impl Storage for CallbackStorage {
    fn read_at(&self, buf: &mut [u8], file_offset: u64) -> io::Result<()> {
        let Some(pread) = self.fs.ops.pread else {
            return unsupported();
        };
        // SAFETY: the caller's function; the buffer lives through the call and has this many bytes.
        outcome(unsafe {
            pread(
                self.fs.ctx.0,
                self.file.0,
                buf.as_mut_ptr().cast(),
                buf.len(),
                file_offset,
            )
        })
    }

    fn write_at(&self, buf: &[u8], file_offset: u64) -> io::Result<()> {
        let Some(pwrite) = self.fs.ops.pwrite else {
            return unsupported();
        };
        // SAFETY: as for reading; the function must not write through the pointer.
        outcome(unsafe { pwrite(self.fs.ctx.0, self.file.0, buf.as_ptr().cast(), buf.len(), file_offset) })
    }

    fn len(&self) -> io::Result<u64> {
        let Some(get_size) = self.fs.ops.get_size else {
            return unsupported();
        };
        let mut size = 0;
        // SAFETY: the caller's function; the place for the result lives through the call.
        outcome(unsafe { get_size(self.fs.ctx.0, self.file.0, &raw mut size) })?;
        Ok(size)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let Some(set_size) = self.fs.ops.set_size else {
            return unsupported();
        };
        // SAFETY: the caller's function with plain values.
        outcome(unsafe { set_size(self.fs.ctx.0, self.file.0, len) })
    }

    fn flush(&self, _: Barrier) -> io::Result<()> {
        let Some(flush) = self.fs.ops.flush else {
            return unsupported();
        };
        // SAFETY: the caller's function with the caller's pointers.
        outcome(unsafe { flush(self.fs.ctx.0, self.file.0) })
    }

    fn zero_range(&self, file_offset: u64, len: u64) -> io::Result<()> {
        if let Some(zero) = self.fs.ops.zero {
            // SAFETY: the caller's function with plain values.
            return outcome(unsafe { zero(self.fs.ctx.0, self.file.0, file_offset, len) });
        }
        let zeros = vec![0; len.min(1 << 20) as usize];
        let mut done = 0;
        while done < len {
            let piece = &zeros[..(len - done).min(1 << 20) as usize];
            self.write_at(piece, file_offset + done)?;
            done += piece.len() as u64;
        }
        Ok(())
    }

    fn release_range(&self, file_offset: u64, len: u64) -> io::Result<()> {
        match self.fs.ops.discard {
            // SAFETY: the caller's function with plain values.
            Some(discard) => outcome(unsafe { discard(self.fs.ctx.0, self.file.0, file_offset, len) }),
            None => Ok(()),
        }
    }

    fn lock(&self, mode: LockMode) -> io::Result<()> {
        let mode = match mode {
            LockMode::None => 0,
            LockMode::Read => 1,
            LockMode::Write => 2,
        };
        match self.fs.ops.lock {
            // SAFETY: the caller's function with plain values.
            Some(lock) => outcome(unsafe { lock(self.fs.ctx.0, self.file.0, mode) }),
            None => Ok(()),
        }
    }

    fn id(&self) -> Option<FileId> {
        None
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl FileSystem for CallbackFileSystem {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        self.open_as(
            path,
            match access {
                Access::Read => 0,
                Access::Write => 1,
            },
        )
    }

    fn open_beneath(&self, _: &Path, _: &Path) -> io::Result<Arc<dyn Storage>> {
        // Only the host can say where a path leads.
        unsupported()
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        self.open_as(path, 2)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        let Some(rename) = self.ops.rename else {
            return unsupported();
        };
        let (from, to) = (c_path(from), c_path(to));
        // SAFETY: the caller's function; both strings live through the call.
        outcome(unsafe { rename(self.ctx.0, from.as_ptr(), to.as_ptr()) })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.by_path(self.ops.unlink, path).unwrap_or_else(unsupported)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.by_path(self.ops.sync_dir, dir).unwrap_or(Ok(()))
    }

    fn list(&self, _: &Path, _: usize) -> io::Result<Vec<PathBuf>> {
        // Parents are found by path or resolver.
        Ok(Vec::new())
    }

    fn absolute(&self, path: &Path) -> io::Result<PathBuf> {
        Ok(Path::new("/").join(path))
    }
}
