//! Files in memory: for tests, and for callers that have an image in memory anyway.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::{Access, Barrier, CopyMethod, EntryKind, FileId, FileSystem, LockMode, Storage};

/// Bytes of a page; what was never written takes no memory.
pub(crate) const PAGE: u64 = 4096;
pub(crate) type Page = [u8; PAGE as usize];

/// The bytes of a file. Clones share pages until one of them writes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Content {
    pub(crate) len: u64,
    pages: BTreeMap<u64, Arc<Page>>,
}

impl Content {
    pub(crate) fn read(&self, mut buf: &mut [u8], mut at: u64) -> io::Result<()> {
        if at.checked_add(buf.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while !buf.is_empty() {
            let within = (at % PAGE) as usize;
            let len = buf.len().min(PAGE as usize - within);
            let (part, rest) = buf.split_at_mut(len);
            match self.pages.get(&(at / PAGE)) {
                Some(page) => part.copy_from_slice(&page[within..within + len]),
                None => part.fill(0),
            }
            (buf, at) = (rest, at + len as u64);
        }
        Ok(())
    }

    pub(crate) fn write(&mut self, mut buf: &[u8], mut at: u64) {
        self.len = self.len.max(at + buf.len() as u64);
        // Equal pages in sequence are kept once.
        let mut last: Option<Arc<Page>> = None;
        while !buf.is_empty() {
            let within = (at % PAGE) as usize;
            let len = buf.len().min(PAGE as usize - within);
            let (part, rest) = buf.split_at(len);
            match last.as_ref().filter(|page| page[..] == *part) {
                Some(page) => drop(self.pages.insert(at / PAGE, page.clone())),
                None => {
                    let page = self
                        .pages
                        .entry(at / PAGE)
                        .or_insert_with(|| Arc::new([0; PAGE as usize]));
                    Arc::make_mut(page)[within..within + len].copy_from_slice(part);
                    last = Some(page.clone());
                }
            }
            (buf, at) = (rest, at + len as u64);
        }
    }

    /// Writes what `source` has in `[from, to)`; whole pages are shared.
    #[cfg_attr(not(feature = "test-support"), allow(dead_code))] // for crash enumeration
    pub(crate) fn copy(&mut self, source: &Content, from: u64, to: u64) {
        self.len = self.len.max(to);
        let mut at = from;
        while at < to {
            let end = ((at / PAGE + 1) * PAGE).min(to);
            match source.pages.get(&(at / PAGE)) {
                Some(page) if end - at == PAGE => drop(self.pages.insert(at / PAGE, page.clone())),
                Some(page) => self.write(&page[(at % PAGE) as usize..][..(end - at) as usize], at),
                None => self.zero(at, end - at),
            }
            at = end;
        }
    }

    fn shares(&self, other: &Content) -> bool {
        let mut pairs = self.pages.iter().zip(&other.pages);
        self.len == other.len
            && self.pages.len() == other.pages.len()
            && pairs.all(|(a, b)| a.0 == b.0 && Arc::ptr_eq(a.1, b.1))
    }

    /// Bytes of new pages that writing the range takes.
    fn missing(&self, at: u64, len: u64) -> u64 {
        let (first, end) = (at / PAGE, (at + len).div_ceil(PAGE));
        (end - first - self.pages.range(first..end).count() as u64) * PAGE
    }

    /// Zeros a range, which may reach behind the end without growing the file.
    pub(crate) fn zero(&mut self, at: u64, len: u64) {
        let end = at.saturating_add(len);
        let (first_whole, end_whole) = (at.div_ceil(PAGE), end / PAGE);
        if first_whole < end_whole {
            let whole: Vec<u64> = self.pages.range(first_whole..end_whole).map(|(&n, _)| n).collect();
            for page in whole {
                self.pages.remove(&page);
            }
        }
        for (from, to) in [(at, end.min(first_whole * PAGE)), (at.max(end_whole * PAGE), end)] {
            if from < to {
                if let Some(page) = self.pages.get_mut(&(from / PAGE)) {
                    let start = (from % PAGE) as usize;
                    Arc::make_mut(page)[start..start + (to - from) as usize].fill(0);
                }
            }
        }
    }

    /// Zeros a range, keeping its pages.
    fn overwrite(&mut self, at: u64, len: u64) {
        let pages: Vec<u64> = self
            .pages
            .range(at / PAGE..(at + len).div_ceil(PAGE))
            .map(|(&n, _)| n)
            .collect();
        for page in pages {
            let start = at.max(page * PAGE);
            let end = (at + len).min((page + 1) * PAGE);
            self.write(&[0; PAGE as usize][..(end - start) as usize], start);
        }
    }

    pub(crate) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.zero(len, self.len - len);
        }
        self.len = len;
    }

    fn next_data(&self, at: u64, end: u64) -> Option<Range<u64>> {
        let (&first, _) = self.pages.range(at / PAGE..end.div_ceil(PAGE)).next()?;
        let mut last = first;
        while self.pages.contains_key(&(last + 1)) {
            last += 1;
        }
        let range = (first * PAGE).max(at)..((last + 1) * PAGE).min(end);
        (!range.is_empty()).then_some(range)
    }

    fn allocated(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }
}

/// What the files have in common.
#[derive(Debug)]
struct Volume {
    capacity: Option<u64>,
    holes: bool,
    used: AtomicU64,
}

impl Volume {
    fn free(&self) -> Option<u64> {
        let used = self.used.load(Ordering::Relaxed);
        self.capacity.map(|capacity| capacity.saturating_sub(used))
    }

    fn take(&self, bytes: u64) -> bool {
        let fits = |used: u64| {
            let used = used + bytes;
            self.capacity.is_none_or(|capacity| used <= capacity).then_some(used)
        };
        bytes == 0
            || self
                .used
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
                .is_ok()
    }
}

#[derive(Debug)]
struct MemoryFile {
    volume: Arc<Volume>,
    id: u64,
    content: RwLock<Content>,
    /// What each open handle holds.
    locks: Mutex<HashMap<u64, LockMode>>,
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        let bytes = self.content.get_mut().allocated();
        self.volume.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Tree {
    files: BTreeMap<PathBuf, Arc<MemoryFile>>,
}

/// A file system in memory. Clones are the same one; [`MemoryFileSystem::snapshot`] makes an independent copy.
/// Directories need not be created. Locks work between handles as on the host.
#[derive(Debug, Clone)]
pub struct MemoryFileSystem {
    tree: Arc<RwLock<Tree>>,
    volume: Arc<Volume>,
}

impl Default for MemoryFileSystem {
    fn default() -> Self {
        Self::new()
    }
}

static NEXT: AtomicU64 = AtomicU64::new(1);

fn next() -> u64 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// An absolute path without dots.
pub(crate) fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::ParentDir => drop(plain.pop()),
            Component::Normal(name) => plain.push(name),
            _ => {}
        }
    }
    plain
}

fn error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

impl MemoryFileSystem {
    /// An empty one.
    pub fn new() -> Self {
        Self::on(None, true)
    }

    /// An empty one, whose files together take at most this many bytes: pages written, not lengths.
    pub fn with_capacity(bytes: u64) -> Self {
        Self::on(Some(bytes), true)
    }

    /// The same, and what a file took stays taken until the file goes.
    pub fn without_holes(bytes: u64) -> Self {
        Self::on(Some(bytes), false)
    }

    fn on(capacity: Option<u64>, holes: bool) -> Self {
        let used = AtomicU64::new(0);
        MemoryFileSystem {
            tree: Arc::default(),
            volume: Arc::new(Volume { capacity, holes, used }),
        }
    }

    /// Puts a file at `path`, replacing what is there.
    pub fn insert(&self, path: impl AsRef<Path>, bytes: &[u8]) {
        let mut content = Content::default();
        content.write(bytes, 0);
        self.insert_content(path.as_ref(), content);
    }

    pub(crate) fn insert_content(&self, path: &Path, content: Content) {
        self.volume.used.fetch_add(content.allocated(), Ordering::Relaxed);
        let file = Arc::new(MemoryFile {
            volume: self.volume.clone(),
            id: next(),
            content: RwLock::new(content),
            locks: Mutex::default(),
        });
        self.tree.write().files.insert(plain(path), file);
    }

    #[cfg_attr(not(feature = "test-support"), allow(dead_code))] // for crash enumeration
    pub(crate) fn content(&self, path: &Path) -> Option<Content> {
        let tree = self.tree.read();
        let content = tree.files.get(&plain(path))?.content.read().clone();
        Some(content)
    }

    /// All bytes of the file at `path`.
    pub fn contents(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        let tree = self.tree.read();
        let content = tree.files.get(&plain(path.as_ref()))?.content.read();
        let mut bytes = vec![0; usize::try_from(content.len).ok()?];
        content.read(&mut bytes, 0).ok()?;
        Some(bytes)
    }

    /// Whether the file at `path` is the same memory in both: a copy that nobody wrote since. For tests that look at
    /// thousands of copies.
    pub fn shares(&self, other: &MemoryFileSystem, path: impl AsRef<Path>) -> bool {
        let path = plain(path.as_ref());
        let (ours, others) = (self.tree.read(), other.tree.read());
        match (ours.files.get(&path), others.files.get(&path)) {
            (Some(a), Some(b)) => a.content.read().shares(&b.content.read()),
            _ => false,
        }
    }

    /// The files there are, sorted.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.tree.read().files.keys().cloned().collect()
    }

    /// An independent copy. Cheap: bytes are shared until written. Nobody has its files open or locked.
    pub fn snapshot(&self) -> MemoryFileSystem {
        let copy = MemoryFileSystem::on(self.volume.capacity, self.volume.holes);
        for (path, file) in &self.tree.read().files {
            copy.insert_content(path, file.content.read().clone());
        }
        copy
    }

    fn handle(&self, file: Arc<MemoryFile>, access: Access) -> Arc<dyn Storage> {
        Arc::new(MemoryStorage {
            file,
            handle: next(),
            access,
        })
    }
}

/// An open file of a [`MemoryFileSystem`].
#[derive(Debug)]
struct MemoryStorage {
    file: Arc<MemoryFile>,
    handle: u64,
    access: Access,
}

impl MemoryStorage {
    fn change(&self, change: impl FnOnce(&mut Content)) -> io::Result<()> {
        if self.access == Access::Read {
            return Err(error(libc::EBADF));
        }
        let mut content = self.file.content.write();
        let before = content.allocated();
        change(&mut content);
        let less = before.saturating_sub(content.allocated());
        self.file.volume.used.fetch_sub(less, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for MemoryStorage {
    fn drop(&mut self) {
        self.file.locks.lock().remove(&self.handle);
    }
}

impl Storage for MemoryStorage {
    fn read_at(&self, buf: &mut [u8], file_offset: u64) -> io::Result<()> {
        self.file.content.read().read(buf, file_offset)
    }

    fn write_at(&self, buf: &[u8], file_offset: u64) -> io::Result<()> {
        let mut full = false;
        self.change(|content| {
            // As far as there is room, if not for all.
            let len = (0..=buf.len() as u64)
                .rev()
                .step_by(PAGE as usize)
                .find(|&len| self.file.volume.take(content.missing(file_offset, len)));
            let len = len.unwrap_or(0) as usize;
            content.write(&buf[..len], file_offset);
            full = len < buf.len();
        })?;
        match full {
            true => Err(error(libc::ENOSPC)),
            false => Ok(()),
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.content.read().len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|content| content.set_len(len))
    }

    fn flush(&self, _: Barrier) -> io::Result<()> {
        Ok(())
    }

    fn zero_range(&self, file_offset: u64, len: u64) -> io::Result<()> {
        self.change(|content| match self.file.volume.holes {
            true => content.zero(file_offset, len),
            false => content.overwrite(file_offset, len),
        })
    }

    fn release_range(&self, file_offset: u64, len: u64) -> io::Result<()> {
        match self.can_release() {
            true => self.zero_range(file_offset, len),
            false => Err(error(libc::EOPNOTSUPP)),
        }
    }

    fn can_release(&self) -> bool {
        self.file.volume.holes
    }

    fn available_space(&self) -> io::Result<Option<u64>> {
        Ok(self.file.volume.free())
    }

    fn copy_range_from(
        &self,
        source: &dyn Storage,
        source_offset: u64,
        file_offset: u64,
        len: u64,
        method: CopyMethod,
    ) -> io::Result<()> {
        let Some(source) = source.as_any().downcast_ref::<MemoryStorage>() else {
            return Err(error(libc::EOPNOTSUPP));
        };
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| error(libc::EFBIG))?];
        source.read_at(&mut bytes, source_offset)?;
        if method == CopyMethod::Offload {
            return self.write_at(&bytes, file_offset);
        }
        // What is shared has the holes of the other.
        self.change(|content| content.set_len(content.len.max(file_offset + len)))?;
        self.zero_range(file_offset, len)?;
        let mut at = 0;
        while let Some(data) = source.next_data(source_offset + at, source_offset + len)? {
            let (from, to) = (data.start - source_offset, data.end - source_offset);
            self.write_at(&bytes[from as usize..to as usize], file_offset + from)?;
            at = to;
        }
        Ok(())
    }

    fn can_share(&self, source: &dyn Storage) -> bool {
        source.as_any().is::<MemoryStorage>()
    }

    fn next_data(&self, file_offset: u64, end: u64) -> io::Result<Option<Range<u64>>> {
        Ok(self.file.content.read().next_data(file_offset, end))
    }

    fn allocated(&self) -> Option<u64> {
        Some(self.file.content.read().allocated())
    }

    fn lock(&self, mode: LockMode) -> io::Result<()> {
        let mut locks = self.file.locks.lock();
        let others = locks.iter().filter(|(&handle, _)| handle != self.handle);
        let refused = match mode {
            LockMode::None => false,
            LockMode::Read => others.clone().any(|(_, &held)| held == LockMode::Write),
            LockMode::Write => others.clone().any(|(_, &held)| held != LockMode::None),
        };
        if refused {
            return Err(error(libc::EAGAIN));
        }
        locks.insert(self.handle, mode);
        Ok(())
    }

    fn id(&self) -> Option<FileId> {
        Some(FileId(0, self.file.id))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl FileSystem for MemoryFileSystem {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        let tree = self.tree.read();
        let file = tree.files.get(&plain(path)).ok_or_else(|| error(libc::ENOENT))?;
        Ok(self.handle(file.clone(), access))
    }

    fn open_beneath(&self, root: &Path, path: &Path) -> io::Result<Arc<dyn Storage>> {
        match plain(path).starts_with(plain(root)) {
            true => self.open(path, Access::Read),
            false => Err(error(libc::EXDEV)),
        }
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        if self.tree.read().files.contains_key(&plain(path)) {
            return Err(error(libc::EEXIST));
        }
        self.insert_content(path, Content::default());
        self.open(path, Access::Write)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut tree = self.tree.write();
        if tree.files.contains_key(&plain(to)) {
            return Err(error(libc::EEXIST));
        }
        let file = tree.files.remove(&plain(from)).ok_or_else(|| error(libc::ENOENT))?;
        tree.files.insert(plain(to), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let removed = self.tree.write().files.remove(&plain(path));
        removed.map(drop).ok_or_else(|| error(libc::ENOENT))
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, path: &Path, limit: usize) -> io::Result<Vec<PathBuf>> {
        let dir = plain(path);
        let below: BTreeSet<PathBuf> = self
            .tree
            .read()
            .files
            .keys()
            .filter_map(|file| file.strip_prefix(&dir).ok())
            .filter_map(|rest| rest.components().next())
            .map(|name| dir.join(name))
            .collect();
        Ok(below.into_iter().take(limit).collect())
    }

    fn kind(&self, path: &Path) -> io::Result<EntryKind> {
        let path = plain(path);
        let tree = self.tree.read();
        if tree.files.contains_key(&path) {
            return Ok(EntryKind::File);
        }
        match tree.files.keys().any(|file| file.starts_with(&path)) {
            true => Ok(EntryKind::Directory),
            false => Err(error(libc::ENOENT)),
        }
    }

    fn absolute(&self, path: &Path) -> io::Result<PathBuf> {
        Ok(plain(path))
    }
}
