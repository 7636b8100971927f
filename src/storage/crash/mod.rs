//! Storage that remembers every change and flush, and can show any state a power cut may leave.
//!
//! The model: of each file, everything up to its last flush is there. Of what came later any subset is, and of each
//! write any subset of its 4 KiB pages (or 512-byte sectors); a change of length is a change like any other. Of the
//! changes to a directory (create, rename, remove) since it was last synced any subset is there, each wholly or not at
//! all; flushing a file says nothing about its name.

mod enumerate;

pub use enumerate::{CrashOptions, CrashPoint, CrashStats};

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::memory::{plain, Content};
use super::{Access, Barrier, CopyMethod, EntryKind, FileId, FileSystem, LockMode, MemoryFileSystem, Storage};

/// A change to the bytes of a file.
#[derive(Debug, Clone)]
enum Change {
    Write { at: u64, len: u64, pages: Content },
    SetLen(u64),
    Zero { at: u64, len: u64 },
}

/// A change to the names in a directory.
#[derive(Debug, Clone)]
enum Naming {
    Create { path: PathBuf, file: u64 },
    Rename { to: PathBuf, file: u64 },
    Remove { path: PathBuf },
}

#[derive(Debug, Clone)]
enum Event {
    Data { file: u64, change: Change },
    Flush { file: u64, barrier: Barrier },
    Name { dir: PathBuf, naming: Naming },
    SyncDir { dir: PathBuf },
    Mark(u64),
}

#[derive(Debug, Default)]
struct Journal {
    /// Files by number and name when recording began; all of it durable.
    contents: BTreeMap<u64, Content>,
    names: BTreeMap<PathBuf, u64>,
    events: Vec<Event>,
}

/// A file system in memory that records. Clones are the same one.
#[derive(Debug, Clone)]
pub struct CrashFileSystem {
    live: MemoryFileSystem,
    journal: Arc<Mutex<Journal>>,
}

impl CrashFileSystem {
    /// Begins with the files of `initial`, durable. `initial` itself does not change.
    pub fn new(initial: &MemoryFileSystem) -> Self {
        let live = initial.snapshot();
        let mut journal = Journal::default();
        for path in live.paths() {
            let id = live.open(&path, Access::Read).ok().and_then(|storage| storage.id());
            if let (Some(FileId(_, file)), Some(content)) = (id, live.content(&path)) {
                journal.contents.insert(file, content);
                journal.names.insert(path, file);
            }
        }
        CrashFileSystem {
            live,
            journal: Arc::new(Mutex::new(journal)),
        }
    }

    /// Notes that the caller has reached a point; [`CrashPoint::marks`] tells which were before a crash.
    pub fn mark(&self, value: u64) {
        self.journal.lock().events.push(Event::Mark(value));
    }

    /// Events so far.
    pub fn journal_len(&self) -> usize {
        self.journal.lock().events.len()
    }

    /// The files as they are now.
    pub fn live(&self) -> &MemoryFileSystem {
        &self.live
    }

    fn wrap(&self, inner: Arc<dyn Storage>) -> Arc<dyn Storage> {
        let FileId(_, file) = inner.id().unwrap_or(FileId(0, 0));
        Arc::new(CrashStorage {
            inner,
            file,
            journal: self.journal.clone(),
        })
    }

    fn name(&self, path: &Path, naming: Naming) {
        let dir = plain(path.parent().unwrap_or(path));
        self.journal.lock().events.push(Event::Name { dir, naming });
    }
}

#[derive(Debug)]
struct CrashStorage {
    inner: Arc<dyn Storage>,
    file: u64,
    journal: Arc<Mutex<Journal>>,
}

impl CrashStorage {
    /// Applies and records, in one order for all threads.
    fn record(&self, change: Change, apply: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut journal = self.journal.lock();
        apply()?;
        let file = self.file;
        journal.events.push(Event::Data { file, change });
        Ok(())
    }
}

impl Storage for CrashStorage {
    fn read_at(&self, buf: &mut [u8], file_offset: u64) -> io::Result<()> {
        self.inner.read_at(buf, file_offset)
    }

    fn write_at(&self, buf: &[u8], file_offset: u64) -> io::Result<()> {
        let mut pages = Content::default();
        pages.write(buf, file_offset);
        let change = Change::Write {
            at: file_offset,
            len: buf.len() as u64,
            pages,
        };
        self.record(change, || self.inner.write_at(buf, file_offset))
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.record(Change::SetLen(len), || self.inner.set_len(len))
    }

    fn flush(&self, barrier: Barrier) -> io::Result<()> {
        let file = self.file;
        self.journal.lock().events.push(Event::Flush { file, barrier });
        Ok(())
    }

    fn zero_range(&self, file_offset: u64, len: u64) -> io::Result<()> {
        let change = Change::Zero { at: file_offset, len };
        self.record(change, || self.inner.zero_range(file_offset, len))
    }

    fn release_range(&self, file_offset: u64, len: u64) -> io::Result<()> {
        self.zero_range(file_offset, len)
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
        _: CopyMethod,
    ) -> io::Result<()> {
        let mut bytes = vec![0; len as usize];
        source.read_at(&mut bytes, source_offset)?;
        self.write_at(&bytes, file_offset)
    }

    fn can_share(&self, _: &dyn Storage) -> bool {
        true
    }

    fn next_data(&self, file_offset: u64, end: u64) -> io::Result<Option<Range<u64>>> {
        self.inner.next_data(file_offset, end)
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

impl FileSystem for CrashFileSystem {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        Ok(self.wrap(self.live.open(path, access)?))
    }

    fn open_beneath(&self, root: &Path, path: &Path) -> io::Result<Arc<dyn Storage>> {
        Ok(self.wrap(self.live.open_beneath(root, path)?))
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        let storage = self.wrap(self.live.create_new(path)?);
        let FileId(_, file) = storage.id().unwrap_or(FileId(0, 0));
        let path = plain(path);
        self.name(&path.clone(), Naming::Create { path, file });
        Ok(storage)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.live.rename_new(from, to)?;
        let to = plain(to);
        let id = self.live.open(&to, Access::Read)?.id();
        let FileId(_, file) = id.unwrap_or(FileId(0, 0));
        self.name(&to.clone(), Naming::Rename { to, file });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.live.remove(path)?;
        let path = plain(path);
        self.name(&path.clone(), Naming::Remove { path });
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let dir = plain(dir);
        self.journal.lock().events.push(Event::SyncDir { dir });
        Ok(())
    }

    fn list(&self, dir: &Path, limit: usize) -> io::Result<Vec<PathBuf>> {
        self.live.list(dir, limit)
    }

    fn kind(&self, path: &Path) -> io::Result<EntryKind> {
        self.live.kind(path)
    }

    fn absolute(&self, path: &Path) -> io::Result<PathBuf> {
        self.live.absolute(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::ops::ControlFlow;

    fn states(ignore: Option<Barrier>, tear: bool) -> (BTreeSet<(u64, Vec<u8>)>, u64) {
        let initial = MemoryFileSystem::new();
        initial.insert("/f", &[0; 8192]);
        let fs = CrashFileSystem::new(&initial);
        let file = fs.open(Path::new("/f"), Access::Write).unwrap();
        file.write_at(&[1], 0).unwrap();
        file.flush(Barrier::Payload).unwrap();
        fs.mark(1);
        file.write_at(&[2], 1).unwrap();
        file.write_at(&[3; 8000], 100).unwrap();
        let options = CrashOptions {
            ignore,
            tear,
            ..CrashOptions::default()
        };
        let mut seen = BTreeSet::new();
        let stats = fs.enumerate(&options, &mut |state, point| {
            let bytes = state.contents("/f").unwrap();
            let sample = vec![bytes[0], bytes[1], bytes[100], bytes[8099]];
            seen.insert((point.marks.last().copied().unwrap_or(0), sample));
            ControlFlow::Continue(())
        });
        (seen, stats.states)
    }

    #[test]
    fn flushed_is_there_and_the_rest_in_any_combination() {
        let (seen, states_made) = states(None, false);
        assert!(states_made >= 6);
        for sample in [[1, 0, 0, 0], [1, 2, 0, 0], [1, 0, 3, 3], [1, 2, 3, 3]] {
            assert!(seen.contains(&(1, sample.to_vec())), "{sample:?}");
        }
        assert!(seen.iter().all(|(mark, sample)| *mark == 0 || sample[0] == 1));
        assert!(seen.contains(&(0, vec![0, 0, 0, 0])));
    }

    #[test]
    fn a_flush_that_does_not_count_promises_nothing() {
        let (seen, _) = states(Some(Barrier::Payload), false);
        assert!(seen.contains(&(1, vec![0, 0, 0, 0])));
        assert!(seen.contains(&(1, vec![0, 2, 3, 3])));
    }

    #[test]
    fn writes_tear_at_pages() {
        let (seen, _) = states(None, true);
        assert!(seen.iter().any(|(_, s)| s[2] == 3 && s[3] == 0), "only the first page");
        assert!(seen.iter().any(|(_, s)| s[2] == 0 && s[3] == 3), "only the second page");
    }

    #[test]
    fn names_come_and_go_in_any_order_until_their_directory_is_synced() {
        let initial = MemoryFileSystem::new();
        initial.insert("/d/a", &[1]);
        initial.insert("/d/b", &[2]);
        let fs = CrashFileSystem::new(&initial);
        fs.create_new(Path::new("/d/t")).unwrap();
        fs.rename_new(Path::new("/d/t"), Path::new("/d/c")).unwrap();
        fs.remove(Path::new("/d/a")).unwrap();
        fs.remove(Path::new("/d/b")).unwrap();
        fs.sync_dir(Path::new("/e")).unwrap();
        fs.mark(1);
        fs.sync_dir(Path::new("/d")).unwrap();
        fs.mark(2);
        for ignore_sync_dir in [false, true] {
            let mut seen = BTreeSet::new();
            let options = CrashOptions {
                ignore_sync_dir,
                ..CrashOptions::default()
            };
            fs.enumerate(&options, &mut |state, point| {
                let names: Vec<_> = state.paths().iter().map(|p| p.display().to_string()).collect();
                seen.insert((point.marks.len(), names.join(" ")));
                ControlFlow::Continue(())
            });
            let synced: Vec<_> = seen.iter().filter(|(marks, _)| *marks == 2).collect();
            assert_eq!(synced.len() == 1, !ignore_sync_dir, "{synced:?}");
            for state in [
                "/d/a /d/b",
                "/d/a",
                "/d/b",
                "",
                "/d/c",
                "/d/a /d/c",
                "/d/b /d/t",
                "/d/a /d/b /d/c",
            ] {
                assert!(seen.contains(&(1, state.into())), "{state}: {seen:?}");
            }
        }
    }

    #[test]
    fn names_appear_when_their_directory_is_synced() {
        let fs = CrashFileSystem::new(&MemoryFileSystem::new());
        let file = fs.create_new(Path::new("/d/.tmp")).unwrap();
        file.write_at(&[7; 10], 0).unwrap();
        file.flush(Barrier::NewFile).unwrap();
        fs.rename_new(Path::new("/d/.tmp"), Path::new("/d/name")).unwrap();
        fs.sync_dir(Path::new("/d")).unwrap();
        fs.mark(1);
        let mut absent = 0;
        fs.enumerate(&CrashOptions::default(), &mut |state, point| {
            match state.contents("/d/name") {
                Some(bytes) => assert_eq!(bytes, [7; 10]),
                None => {
                    absent += 1;
                    assert!(point.marks.is_empty());
                }
            }
            ControlFlow::Continue(())
        });
        assert!(absent > 0);
    }
}
