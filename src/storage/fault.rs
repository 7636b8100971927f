//! Storage that fails on request: the N-th call, or that and every later one.

use std::any::Any;
use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Access, Barrier, CopyMethod, EntryKind, FileId, FileSystem, LockMode, Storage};

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultMode {
    /// This call only.
    Once,
    /// This call and every later one that changes something: the device is gone.
    FromHere,
    /// A write leaves its first half; other calls as with [`FaultMode::Once`].
    Short,
    /// Only flushes are counted. This one fails, and what the file was changed since the last is gone, as when the kernel
    /// drops the pages that it could not write. The next flush succeeds.
    FlushLoses,
}

#[derive(Debug)]
struct Plan {
    at: u64,
    errno: i32,
    mode: FaultMode,
}

/// What a range of a file was before a change.
#[derive(Debug)]
struct Before {
    len: u64,
    at: u64,
    bytes: Vec<u8>,
}

#[derive(Debug, Default)]
struct State {
    calls: AtomicU64,
    flushes: AtomicU64,
    plan: Mutex<Option<Plan>>,
    /// With [`FaultMode::FlushLoses`]: the changes of each file since its last flush.
    unflushed: Mutex<HashMap<FileId, Vec<Before>>>,
}

enum Verdict {
    Go,
    Fail(io::Error),
    Half(io::Error),
}

impl State {
    fn counter(&self, mode: FaultMode) -> &AtomicU64 {
        match mode {
            FaultMode::FlushLoses => &self.flushes,
            _ => &self.calls,
        }
    }

    fn judge(&self, changes: bool) -> Verdict {
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let plan = self.plan.lock();
        let Some(plan) = &*plan else { return Verdict::Go };
        let error = io::Error::from_raw_os_error(plan.errno);
        match plan.mode {
            FaultMode::FlushLoses => Verdict::Go,
            FaultMode::Short if call == plan.at => Verdict::Half(error),
            FaultMode::FromHere if call > plan.at && changes => Verdict::Fail(error),
            _ if call == plan.at => Verdict::Fail(error),
            _ => Verdict::Go,
        }
    }

    fn check(&self, changes: bool) -> io::Result<()> {
        match self.judge(changes) {
            Verdict::Go => Ok(()),
            Verdict::Fail(error) | Verdict::Half(error) => Err(error),
        }
    }
}

/// A file system whose calls are counted and fail on request. Not counted: release_range, next_data, available_space,
/// allocated, lock and id, whose failures are not failures of a request.
#[derive(Debug, Clone)]
pub struct FaultFileSystem {
    inner: Arc<dyn FileSystem>,
    state: Arc<State>,
}

impl FaultFileSystem {
    /// Wraps `inner`; nothing fails yet.
    pub fn new(inner: Arc<dyn FileSystem>) -> Self {
        FaultFileSystem {
            inner,
            state: Arc::default(),
        }
    }

    /// Calls counted so far.
    pub fn calls(&self) -> u64 {
        self.state.calls.load(Ordering::Relaxed)
    }

    /// Those of them that were flushes.
    pub fn flushes(&self) -> u64 {
        self.state.flushes.load(Ordering::Relaxed)
    }

    /// Makes the call after `n - 1` more ones fail with `errno`.
    pub fn fail_in(&self, n: u64, errno: i32, mode: FaultMode) {
        let at = self.state.counter(mode).load(Ordering::Relaxed) + n;
        *self.state.plan.lock() = Some(Plan { at, errno, mode });
    }

    /// Nothing fails any more. Whether the planned call was reached.
    pub fn disarm(&self) -> bool {
        let plan = self.state.plan.lock().take();
        plan.is_some_and(|plan| self.state.counter(plan.mode).load(Ordering::Relaxed) >= plan.at)
    }

    fn wrap(&self, inner: Arc<dyn Storage>) -> Arc<dyn Storage> {
        Arc::new(FaultStorage {
            inner,
            state: self.state.clone(),
        })
    }
}

#[derive(Debug)]
struct FaultStorage {
    inner: Arc<dyn Storage>,
    state: Arc<State>,
}

impl FaultStorage {
    /// Notes what a range is before it changes.
    fn note(&self, at: u64, len: u64) -> io::Result<()> {
        let loses = matches!(&*self.state.plan.lock(), Some(plan) if plan.mode == FaultMode::FlushLoses);
        let (true, Some(id)) = (loses, self.inner.id()) else {
            return Ok(());
        };
        let before = self.inner.len()?;
        let mut bytes = vec![0; at.saturating_add(len).min(before).saturating_sub(at) as usize];
        if !bytes.is_empty() {
            self.inner.read_at(&mut bytes, at)?;
        }
        let change = Before { len: before, at, bytes };
        self.state.unflushed.lock().entry(id).or_default().push(change);
        Ok(())
    }

    /// Whether this flush is the one that fails; what it should have kept is lost then.
    fn loses(&self) -> io::Result<()> {
        let flush = self.state.flushes.fetch_add(1, Ordering::Relaxed) + 1;
        let id = self.inner.id();
        let since = id
            .and_then(|id| self.state.unflushed.lock().remove(&id))
            .unwrap_or_default();
        let errno = match &*self.state.plan.lock() {
            Some(plan) if plan.mode == FaultMode::FlushLoses && plan.at == flush => plan.errno,
            _ => return Ok(()),
        };
        for before in since.iter().rev() {
            self.inner.set_len(before.len)?;
            self.inner.write_at(&before.bytes, before.at)?;
        }
        Err(io::Error::from_raw_os_error(errno))
    }
}

impl Storage for FaultStorage {
    fn read_at(&self, buf: &mut [u8], file_offset: u64) -> io::Result<()> {
        self.state.check(false)?;
        self.inner.read_at(buf, file_offset)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], file_offset: u64) -> io::Result<()> {
        self.state.check(false)?;
        self.inner.read_vectored_at(bufs, file_offset)
    }

    fn write_at(&self, buf: &[u8], file_offset: u64) -> io::Result<()> {
        self.note(file_offset, buf.len() as u64)?;
        match self.state.judge(true) {
            Verdict::Go => self.inner.write_at(buf, file_offset),
            Verdict::Fail(error) => Err(error),
            Verdict::Half(error) => {
                self.inner.write_at(&buf[..buf.len() / 2], file_offset)?;
                Err(error)
            }
        }
    }

    fn bypass_cache(&self) -> io::Result<()> {
        self.inner.bypass_cache()
    }

    fn len(&self) -> io::Result<u64> {
        self.state.check(false)?;
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.state.check(true)?;
        self.note(len, u64::MAX)?;
        self.inner.set_len(len)
    }

    fn flush(&self, barrier: Barrier) -> io::Result<()> {
        self.state.check(true)?;
        self.loses()?;
        self.inner.flush(barrier)
    }

    fn zero_range(&self, file_offset: u64, len: u64) -> io::Result<()> {
        self.state.check(true)?;
        self.note(file_offset, len)?;
        self.inner.zero_range(file_offset, len)
    }

    fn release_range(&self, file_offset: u64, len: u64) -> io::Result<()> {
        self.note(file_offset, len)?;
        self.inner.release_range(file_offset, len)
    }

    fn can_release(&self) -> bool {
        self.inner.can_release()
    }

    fn copy_range_from(
        &self,
        source: &dyn Storage,
        source_offset: u64,
        file_offset: u64,
        len: u64,
        method: CopyMethod,
    ) -> io::Result<()> {
        self.state.check(true)?;
        self.note(file_offset, len)?;
        match source.as_any().downcast_ref::<FaultStorage>() {
            Some(source) => self
                .inner
                .copy_range_from(&*source.inner, source_offset, file_offset, len, method),
            None => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
        }
    }

    fn can_share(&self, source: &dyn Storage) -> bool {
        let source = source.as_any().downcast_ref::<FaultStorage>();
        source.is_some_and(|source| self.inner.can_share(&*source.inner))
    }

    fn next_data(&self, file_offset: u64, end: u64) -> io::Result<Option<Range<u64>>> {
        self.inner.next_data(file_offset, end)
    }

    fn grows_with_zeros(&self) -> bool {
        self.inner.grows_with_zeros()
    }

    fn available_space(&self) -> io::Result<Option<u64>> {
        self.inner.available_space()
    }

    fn lock(&self, mode: LockMode) -> io::Result<()> {
        self.inner.lock(mode)
    }

    fn id(&self) -> Option<FileId> {
        self.inner.id()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl FileSystem for FaultFileSystem {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        self.state.check(false)?;
        Ok(self.wrap(self.inner.open(path, access)?))
    }

    fn open_beneath(&self, root: &Path, path: &Path) -> io::Result<Arc<dyn Storage>> {
        self.state.check(false)?;
        Ok(self.wrap(self.inner.open_beneath(root, path)?))
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        self.state.check(true)?;
        Ok(self.wrap(self.inner.create_new(path)?))
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.state.check(true)?;
        self.inner.rename_new(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.state.check(true)?;
        self.inner.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.state.check(true)?;
        self.inner.sync_dir(dir)
    }

    fn list(&self, dir: &Path, limit: usize) -> io::Result<Vec<PathBuf>> {
        self.state.check(false)?;
        self.inner.list(dir, limit)
    }

    fn kind(&self, path: &Path) -> io::Result<EntryKind> {
        self.inner.kind(path)
    }

    fn absolute(&self, path: &Path) -> io::Result<PathBuf> {
        self.inner.absolute(path)
    }
}
