//! A file system on which operations are rehearsed: nothing below it changes, and what would have is known afterwards.
//!
//! Structures of files are kept in memory; bytes of disks are counted and forgotten, and copies cost nothing.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::draft::Draft;
use super::file::or_here;
use super::{Access, Barrier, CopyMethod, EntryKind, FileId, FileSystem, LockMode, Storage};

/// A file before and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// Where it is after.
    pub(crate) path: PathBuf,
    /// Its length before; `None`: it did not exist.
    pub(crate) before: Option<u64>,
    /// Its length after; `None`: it was removed.
    pub(crate) after: Option<u64>,
}

/// The rehearsal.
#[derive(Debug)]
pub(crate) struct Rehearsal {
    below: Arc<dyn FileSystem>,
    /// What is different from below, by absolute path; `None`: removed.
    files: Mutex<BTreeMap<PathBuf, Option<Arc<Rehearsed>>>>,
    payload: Arc<Mutex<u64>>,
}

#[derive(Debug)]
struct Rehearsed {
    below: Option<Arc<dyn Storage>>,
    before: Option<u64>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    draft: Draft,
    changed: bool,
}

impl Rehearsal {
    pub(crate) fn new(below: Arc<dyn FileSystem>) -> Rehearsal {
        Rehearsal {
            below,
            files: Mutex::default(),
            payload: Arc::default(),
        }
    }

    /// A file that is open already, and may not be found by its path.
    pub(crate) fn adopt(&self, path: &Path, storage: Arc<dyn Storage>) -> io::Result<()> {
        let file = Rehearsed::new(Some(storage))?;
        self.files.lock().insert(self.key(path), Some(Arc::new(file)));
        Ok(())
    }

    /// Bytes of disks written or copied.
    pub(crate) fn payload(&self) -> u64 {
        *self.payload.lock()
    }

    /// What became of the files, by path.
    pub(crate) fn changes(&self) -> Vec<Change> {
        let files = self.files.lock();
        let changes = files.iter().filter_map(|(path, file)| {
            let (before, after) = match file {
                Some(file) => {
                    let state = file.state.lock();
                    (file.before, state.changed.then(|| state.draft.len()))
                }
                None => return self.removed(path),
            };
            after.map(|after| Change {
                path: path.clone(),
                before,
                after: Some(after),
            })
        });
        changes.collect()
    }

    fn removed(&self, path: &Path) -> Option<Change> {
        let before = self.below.open(path, Access::Read).and_then(|file| file.len()).ok()?;
        Some(Change {
            path: path.to_path_buf(),
            before: Some(before),
            after: None,
        })
    }

    /// A path that two names of one file share.
    fn key(&self, path: &Path) -> PathBuf {
        self.below.absolute(path).unwrap_or_else(|_| path.to_path_buf())
    }

    fn handle(&self, file: Arc<Rehearsed>) -> Arc<dyn Storage> {
        Arc::new(Handle {
            file,
            payload: self.payload.clone(),
        })
    }

    fn found(&self, path: &Path, open: impl FnOnce() -> io::Result<Arc<dyn Storage>>) -> io::Result<Arc<dyn Storage>> {
        let key = self.key(path);
        let mut files = self.files.lock();
        let file = match files.get(&key) {
            Some(Some(file)) => file.clone(),
            Some(None) => return Err(io::Error::from_raw_os_error(libc::ENOENT)),
            None => {
                let file = Arc::new(Rehearsed::new(Some(open()?))?);
                files.insert(key, Some(file.clone()));
                file
            }
        };
        Ok(self.handle(file))
    }
}

impl Rehearsed {
    fn new(below: Option<Arc<dyn Storage>>) -> io::Result<Rehearsed> {
        let draft = Draft::new(below.clone())?;
        Ok(Rehearsed {
            before: below.as_ref().map(|_| draft.len()),
            state: Mutex::new(State {
                changed: below.is_none(),
                draft,
            }),
            below,
        })
    }
}

impl FileSystem for Rehearsal {
    fn open(&self, path: &Path, _: Access) -> io::Result<Arc<dyn Storage>> {
        self.found(path, || self.below.open(path, Access::Read))
    }

    fn open_beneath(&self, root: &Path, path: &Path) -> io::Result<Arc<dyn Storage>> {
        self.found(path, || self.below.open_beneath(root, path))
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        let key = self.key(path);
        let there = match self.files.lock().get(&key) {
            Some(file) => file.is_some(),
            None => self.below.open(path, Access::Read).is_ok(),
        };
        if there {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        // A directory that is not there is told now.
        self.below.kind(or_here(path.parent().unwrap_or(path)))?;
        let file = Arc::new(Rehearsed::new(None)?);
        self.files.lock().insert(key, Some(file.clone()));
        Ok(self.handle(file))
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.open(to, Access::Read).is_ok() {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        self.open(from, Access::Read)?;
        let (from, to) = (self.key(from), self.key(to));
        let mut files = self.files.lock();
        let file = files.insert(from, None).flatten();
        files.insert(to, file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.open(path, Access::Read)?;
        self.files.lock().insert(self.key(path), None);
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path, limit: usize) -> io::Result<Vec<PathBuf>> {
        let mut paths = self.below.list(dir, limit)?;
        let files = self.files.lock();
        paths.retain(|path| !matches!(files.get(&self.key(path)), Some(None)));
        Ok(paths)
    }

    fn kind(&self, path: &Path) -> io::Result<EntryKind> {
        self.below.kind(path)
    }

    fn absolute(&self, path: &Path) -> io::Result<PathBuf> {
        Ok(self.key(path))
    }
}

/// A file of the rehearsal, open.
#[derive(Debug)]
struct Handle {
    file: Arc<Rehearsed>,
    payload: Arc<Mutex<u64>>,
}

impl Handle {
    fn change(&self, change: impl FnOnce(&mut Draft) -> io::Result<()>) -> io::Result<()> {
        let mut state = self.file.state.lock();
        state.changed = true;
        change(&mut state.draft)
    }

    /// Bytes that are not kept.
    fn count(&self, len: u64, file_offset: u64) -> io::Result<()> {
        *self.payload.lock() += len;
        self.change(|draft| {
            draft.grow(file_offset + len);
            Ok(())
        })
    }
}

impl Storage for Handle {
    fn read_at(&self, buf: &mut [u8], file_offset: u64) -> io::Result<()> {
        self.file.state.lock().draft.read(buf, file_offset)
    }

    fn write_at(&self, buf: &[u8], file_offset: u64) -> io::Result<()> {
        self.change(|draft| draft.write(buf, file_offset))
    }

    fn write_payload_at(&self, buf: &[u8], file_offset: u64) -> io::Result<()> {
        self.count(buf.len() as u64, file_offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.state.lock().draft.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|draft| {
            draft.set_len(len);
            Ok(())
        })
    }

    fn flush(&self, _: Barrier) -> io::Result<()> {
        Ok(())
    }

    fn zero_range(&self, file_offset: u64, len: u64) -> io::Result<()> {
        self.change(|draft| draft.zero(file_offset, len))
    }

    fn release_range(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn copy_range_from(&self, _: &dyn Storage, _: u64, at: u64, len: u64, _: CopyMethod) -> io::Result<()> {
        self.count(len, at)
    }

    fn can_release(&self) -> bool {
        self.file.below.as_ref().is_some_and(|below| below.can_release())
    }

    fn next_data(&self, file_offset: u64, end: u64) -> io::Result<Option<Range<u64>>> {
        self.file.state.lock().draft.next_data(file_offset, end)
    }

    fn grows_with_zeros(&self) -> bool {
        self.file.below.as_ref().is_none_or(|below| below.grows_with_zeros())
    }

    fn lock(&self, _: LockMode) -> io::Result<()> {
        // What is rehearsed is not done: nobody needs to be kept out.
        Ok(())
    }

    fn id(&self) -> Option<FileId> {
        self.file.below.as_ref().and_then(|below| below.id())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
