//! Open and close
//!
//! A disk is a leaf and its parents, open as one. Layers have numbers: 0 is the leaf, the last is the base.

use std::cell::RefCell;
use std::ffi::{c_char, c_int, CString};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use parking_lot::Mutex;

use super::guard::{argument, borrow, catch, guard, null, out_handle, path};
use super::io::{check_io, IoFileSystem, Need};
use super::opts::{avhdx_opts, choose};
use crate::chain::Chain;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::{Job, JobControl};
use crate::options::{LogPolicy, OpenOptions, ProgressFn};
use crate::schema::Kind;
use crate::storage::FileStorage;

/// An open disk. Made by avhdx_open, avhdx_open_chain or avhdx_open_fd, released by avhdx_close or avhdx_abort.
#[derive(Debug)]
pub struct avhdx_disk {
    pub(super) chain: Arc<Chain>,
    /// A panic was caught: what is inside may be half changed.
    dead: Arc<AtomicBool>,
    /// The last job made of it.
    job: Mutex<Option<Arc<JobControl>>>,
    /// Layer paths given out, which live with the handle.
    pub(super) names: Mutex<Vec<CString>>,
    io: Option<Arc<IoFileSystem>>,
}

impl avhdx_disk {
    /// Refuses an operation that the disk's I/O callbacks cannot do.
    pub(super) fn check_io(&self, operation: &str, needs: &[Need]) -> Result<()> {
        check_io(self.io.as_deref(), operation, needs)
    }

    /// Makes a job of an operation. It does not keep the disk from being closed, which ends it.
    pub(super) fn start_job(
        &self,
        operation: impl FnOnce(&Chain, ProgressFn<'_>) -> Result<()> + Send + 'static,
    ) -> Result<Job> {
        let mut slot = self.job.lock();
        let chain = Arc::downgrade(&self.chain);
        let dead = self.dead.clone();
        let job = Job::new(move |progress| {
            let chain = chain.upgrade().ok_or_else(|| argument("the disk was closed"))?;
            catch(|| operation(&chain, progress)).unwrap_or_else(|bug| {
                dead.store(true, Ordering::Relaxed);
                Err(bug)
            })
        });
        *slot = Some(job.control().clone());
        Ok(job)
    }

    fn check_no_job(&self) -> Result<()> {
        match &*self.job.lock() {
            Some(job) if !job.is_over() => {
                let error = Error::new(ErrorKind::PendingOperation, "the disk has a job that is not over");
                Err(error.with_hint("step the job to its end, or free it"))
            }
            _ => Ok(()),
        }
    }

    /// Ends what a job is doing.
    fn end_job(&self) {
        if let Some(job) = self.job.lock().take() {
            job.cancel_and_wait();
        }
    }
}

fn dead() -> Error {
    Error::new(
        ErrorKind::Bug,
        "an earlier call on this disk hit a defect of the library",
    )
    .with_hint("close it and open it again; the files are as after a power cut")
}

/// Runs a call on a disk. A panic in it is the last thing that happens to the disk.
///
/// # Safety
/// `disk` is NULL or an open disk that is not closed before the call ends.
#[inline]
pub(super) unsafe fn on_disk<T>(disk: *const avhdx_disk, body: impl FnOnce(&avhdx_disk) -> Result<T>) -> Result<T> {
    // SAFETY: the caller's promise is that of `borrow`; all changes behind it are by shared mutability.
    let disk = unsafe { borrow(disk, "disk") }?;
    if disk.dead.load(Ordering::Relaxed) {
        return Err(dead());
    }
    // Dropped by a panic alone, on its way to the guard around every call.
    let unless_done = Dies(&disk.dead);
    let result = body(disk);
    std::mem::forget(unless_done);
    result
}

/// Marks a disk as dead when dropped.
struct Dies<'a>(&'a AtomicBool);

impl Drop for Dies<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

thread_local! {
    /// Disks with an operation running on this thread: a callback of it must not start another or close the disk.
    static BUSY: RefCell<Vec<*const avhdx_disk>> = const { RefCell::new(Vec::new()) };
}

fn is_busy(disk: *const avhdx_disk) -> bool {
    BUSY.try_with(|busy| busy.borrow().contains(&disk)).unwrap_or(false)
}

struct Busy(*const avhdx_disk);

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = BUSY.try_with(|busy| busy.borrow_mut().retain(|&disk| disk != self.0));
    }
}

/// Runs a call that changes layers. From a callback of such a call on the same disk it is an error: it would wait for
/// itself.
///
/// # Safety
/// As for [`on_disk`].
pub(super) unsafe fn on_disk_alone<T>(
    disk: *const avhdx_disk,
    body: impl FnOnce(&avhdx_disk) -> Result<T>,
) -> Result<T> {
    if is_busy(disk) {
        return Err(called_back());
    }
    let _busy = Busy(disk);
    let _ = BUSY.try_with(|busy| busy.borrow_mut().push(disk));
    // SAFETY: this function's contract is that of `on_disk`.
    unsafe {
        on_disk(disk, |disk| {
            disk.check_no_job()?;
            body(disk)
        })
    }
}

fn called_back() -> Error {
    argument("called from a callback of an operation that is running on the same disk")
        .with_hint("return from the callback first; a result other than 0 cancels the operation")
}

fn give(chain: Chain, io: Option<Arc<IoFileSystem>>) -> *mut avhdx_disk {
    Box::into_raw(Box::new(avhdx_disk {
        chain: Arc::new(chain),
        dead: Arc::default(),
        job: Mutex::default(),
        names: Mutex::default(),
        io,
    }))
}

/// Opens the file at path and its parents, by default for reading and writing, the leaf locked against every other
/// program and the parents against writers. Parents are found by the leaf's parent locator, then by name and identity
/// in its directory and in "search"; a file that is not the parent recorded is never used.
///
/// Keys: those of avhdx_schema_json("open"). Errors: NOT_VHDX, UNSUPPORTED, CORRUPT, CHECKSUM, TRUNCATED,
/// LOG_REPLAY_REQUIRED, PARENT_..., CHAIN_LOOP, LOCKED, ARGUMENT, IO.
/// disk: not NULL, *disk is NULL after a failure; path: not NULL, bytes; opts: may be NULL. Any thread. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described.
#[no_mangle]
pub unsafe extern "C" fn avhdx_open(disk: *mut *mut avhdx_disk, path: *const c_char, opts: *const avhdx_opts) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `out_handle`.
        let out = unsafe { out_handle(disk, "disk") }?;
        // SAFETY: the caller's promise is that of `path`.
        let path = unsafe { self::path(path, "path") }?;
        // SAFETY: the caller's promise is that of `choose`.
        let chosen = unsafe { choose(opts, &[Kind::Open]) }?;
        let chain = Chain::open(&path, &chosen.settings.open)?;
        *out = give(chain, chosen.io);
        Ok(0)
    })
}

/// Opens exactly these count files, leaf first, base last. Each must still be the parent of the one before it; with
/// "ignore-id-mismatch" the caller vouches for that instead. Otherwise as avhdx_open.
/// disk: not NULL, *disk is NULL after a failure; paths: not NULL, nor any of its members; opts: may be NULL.
/// Any thread. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `paths` has `count` members.
#[no_mangle]
pub unsafe extern "C" fn avhdx_open_chain(
    disk: *mut *mut avhdx_disk,
    paths: *const *const c_char,
    count: usize,
    opts: *const avhdx_opts,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `out_handle`.
        let out = unsafe { out_handle(disk, "disk") }?;
        if paths.is_null() {
            return Err(null("paths"));
        }
        let most = crate::limits::MAX_CHAIN_DEPTH;
        if count == 0 || count > most {
            return Err(argument(format!("a chain of {count} files")).with_hint(format!("1 to {most} paths")));
        }
        // SAFETY: not NULL, and `count` members by the caller's promise.
        let paths = unsafe { std::slice::from_raw_parts(paths, count) };
        let paths: Vec<PathBuf> = paths
            .iter()
            .enumerate()
            // SAFETY: the caller's promise for each member is that of `path`.
            .map(|(i, &text)| unsafe { self::path(text, &format!("paths[{i}]")) })
            .collect::<Result<_>>()?;
        // SAFETY: the caller's promise is that of `choose`.
        let chosen = unsafe { choose(opts, &[Kind::Open]) }?;
        let chain = Chain::open_layers(&paths, &chosen.settings.open)?;
        *out = give(chain, chosen.io);
        Ok(0)
    })
}

/// Opens a file that is already open as the descriptor fd, which from now on belongs to the library: it is closed with
/// the disk, and also when this call fails. It must be open for reading and writing, or for reading with "read-only".
/// name is its path, for messages and to find its parents, which are opened by name. Otherwise as avhdx_open.
/// disk: not NULL, *disk is NULL after a failure; name: not NULL; opts: may be NULL. Any thread. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; nobody else uses or closes `fd` from now on.
#[no_mangle]
pub unsafe extern "C" fn avhdx_open_fd(
    disk: *mut *mut avhdx_disk,
    fd: c_int,
    name: *const c_char,
    opts: *const avhdx_opts,
) -> c_int {
    guard(|| {
        if fd < 0 {
            // SAFETY: the caller's promise is that of `out_handle`.
            unsafe { out_handle(disk, "disk") }?;
            return Err(argument(format!("the descriptor {fd}")));
        }
        // SAFETY: plain query of a number; a closed descriptor is EBADF.
        let mode = unsafe { libc::fcntl(fd, libc::F_GETFL) };
        if mode < 0 {
            let cause = std::io::Error::last_os_error();
            // SAFETY: the caller's promise is that of `out_handle`.
            unsafe { out_handle(disk, "disk") }?;
            return Err(Error::io(format!("use the descriptor {fd}"), cause));
        }
        // SAFETY: it is open, and the caller gave it away, so this is its only owner.
        let file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        // SAFETY: plain call on a descriptor we own; nothing but a flag of it changes.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        // SAFETY: the caller's promise is that of `out_handle`.
        let out = unsafe { out_handle(disk, "disk") }?;
        // SAFETY: the caller's promise is that of `path`.
        let name = unsafe { path(name, "name") }?;
        // SAFETY: the caller's promise is that of `choose`.
        let chosen = unsafe { choose(opts, &[Kind::Open]) }?;
        check_mode(mode, &chosen.settings.open).map_err(|error| error.with_path(&name))?;
        let storage = FileStorage::from_file(file)
            .map_err(|cause| Error::io("use the descriptor as a disk image", cause).with_path(&name))?;
        let chain = Chain::open_storage(storage, &name, &chosen.settings.open)?;
        *out = give(chain, chosen.io);
        Ok(0)
    })
}

fn check_mode(mode: c_int, options: &OpenOptions) -> Result<()> {
    let writes = match options.log {
        LogPolicy::Memory => false,
        LogPolicy::Replay => true,
        _ => !options.read_only,
    };
    match mode & libc::O_ACCMODE {
        libc::O_WRONLY => Err(argument("the descriptor is open for writing only")),
        libc::O_RDONLY if writes => Err(
            Error::new(ErrorKind::ReadOnly, "the descriptor is open for reading only")
                .with_hint("set read-only=on, or open the file for reading and writing"),
        ),
        _ => Ok(()),
    }
}

/// Makes everything that completed before the call, by any thread, survive power loss. Costs nothing when nothing was
/// written. Errors: IO, NO_SPACE, POISONED. disk: not NULL. Concurrent on one disk. Since 1.0.
///
/// # Safety
/// `disk` is NULL or open, and not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_flush(disk: *mut avhdx_disk) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `on_disk`.
        unsafe { on_disk(disk, |disk| disk.chain.flush()) }?;
        Ok(0)
    })
}

/// Makes everything durable, leaves the log empty, unlocks, and frees the disk, also when something fails: the first
/// failure is returned, and the file is then as after a power cut, with everything flushed in it. A job that is not
/// over is cancelled; free it, before or afterwards. No other call on the disk may be running, or begin. From a callback of an operation on the same disk it does nothing and is -EINVAL.
/// Errors: IO, NO_SPACE, POISONED. disk: may be NULL (0). Since 1.0.
///
/// # Safety
/// `disk` is NULL or open, and no thread uses it.
#[no_mangle]
pub unsafe extern "C" fn avhdx_close(disk: *mut avhdx_disk) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `take_back`.
        match unsafe { take_back(disk) }? {
            None => {}
            Some(disk) if disk.dead.load(Ordering::Relaxed) => return Err(dead()),
            // A job that was ended holds nothing of the chain any more.
            Some(disk) => match Arc::into_inner(disk.chain) {
                Some(chain) => chain.close()?,
                None => return Err(Error::new(ErrorKind::Bug, "a job outlived its end")),
            },
        }
        Ok(0)
    })
}

/// Frees the disk without writing anything more: what was not flushed may be lost, as in a power cut. No other call
/// on the disk may be running, or begin. From a callback of an operation on the same disk it does nothing. disk: may
/// be NULL. Since 1.0.
///
/// # Safety
/// `disk` is NULL or open, and no thread uses it.
#[no_mangle]
pub unsafe extern "C" fn avhdx_abort(disk: *mut avhdx_disk) {
    guard(|| {
        // SAFETY: the caller's promise is that of `take_back`.
        drop(unsafe { take_back(disk) }?);
        Ok(())
    });
}

/// # Safety
/// `disk` is NULL or from `give`, not yet taken back, and no thread uses it.
unsafe fn take_back(disk: *mut avhdx_disk) -> Result<Option<Box<avhdx_disk>>> {
    match disk.is_null() {
        true => Ok(None),
        false if is_busy(disk) => Err(called_back()),
        false => {
            // SAFETY: made by Box::into_raw in `give`, and taken back once, by this function's contract.
            let disk = unsafe { Box::from_raw(disk) };
            disk.end_job();
            Ok(Some(disk))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::CreateOptions;
    use crate::storage::MemoryFileSystem;
    use std::path::Path;

    fn disk() -> *mut avhdx_disk {
        let mut options = CreateOptions {
            size: 1 << 20,
            block_size: 1 << 20,
            ..CreateOptions::default()
        };
        options.open.file_system = Arc::new(MemoryFileSystem::new());
        crate::ops::create(Path::new("/d"), &options).unwrap();
        give(Chain::open(Path::new("/d"), &options.open).unwrap(), None)
    }

    #[test]
    fn after_a_panic_only_close_works() {
        let disk = disk();
        // SAFETY: `disk` is open until the close at the end.
        let status: c_int = guard(|| unsafe { on_disk(disk, |_| -> Result<c_int> { panic!("staged") }) });
        assert_eq!(status, -libc::ENOTRECOVERABLE);
        // SAFETY: as before.
        assert_eq!(unsafe { avhdx_flush(disk) }, -libc::ENOTRECOVERABLE);
        // SAFETY: as before; it is not used afterwards.
        assert_eq!(unsafe { avhdx_close(disk) }, -libc::ENOTRECOVERABLE);
    }

    #[test]
    fn operations_and_close_from_a_callback_are_refused() {
        let disk = disk();
        // SAFETY: `disk` is open until the close at the end.
        unsafe {
            on_disk_alone(disk, |_| {
                assert_eq!(on_disk_alone(disk, |_| Ok(())).unwrap_err().kind(), ErrorKind::Argument);
                assert_eq!(avhdx_close(disk), -libc::EINVAL);
                avhdx_abort(disk);
                on_disk(disk, |disk| disk.chain.flush())
            })
        }
        .unwrap();
        // SAFETY: as before; it is not used afterwards.
        assert_eq!(unsafe { avhdx_close(disk) }, 0);
    }
}
