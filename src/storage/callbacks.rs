//! Files that are somewhere else: a [`FileSystem`] made of a caller's functions.
//!
//! A caller supplies the few operations of [`Callbacks`]; what it lacks is made up for here where that is possible
//! (zeros are written, locks are its own business) and is `EOPNOTSUPP` where not. Paths are names in the caller's own
//! name space: they reach it absolute, with `.` and `..` resolved in the text; a relative one counts from `/`.

use std::any::Any;
use std::collections::HashMap;
use std::fmt::Debug;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Access, Barrier, FileId, FileSystem, LockMode, Storage};

/// First half of the identity of every file here: no device of a Linux host has this number.
const DEVICE: u64 = u64::MAX - 1;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// What a caller supplies. All of it may be called from many threads at once. Failures carry an errno.
pub trait Callbacks: Send + Sync + Debug + 'static {
    /// An open file; dropping it closes it.
    type File: Send + Sync + Debug + 'static;

    /// Opens an existing file.
    fn open(&self, path: &Path, access: Access) -> io::Result<Self::File>;
    /// Creates a file that must not exist.
    fn create(&self, path: &Path) -> io::Result<Self::File>;
    /// Renames without replacing.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a name.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes changes of names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// The names in a directory.
    fn list(&self, dir: &Path, limit: usize) -> io::Result<Vec<PathBuf>>;

    /// Reads the whole range, which lies inside the file.
    fn read(&self, file: &Self::File, buf: &mut [u8], file_offset: u64) -> io::Result<()>;
    /// Writes all of `buf`, growing the file when needed.
    fn write(&self, file: &Self::File, buf: &[u8], file_offset: u64) -> io::Result<()>;
    /// Makes everything written durable.
    fn flush(&self, file: &Self::File) -> io::Result<()>;
    /// The length.
    fn len(&self, file: &Self::File) -> io::Result<u64>;
    /// Sets the length; new bytes are zeros.
    fn set_len(&self, file: &Self::File, len: u64) -> io::Result<()>;
    /// Makes a range zeros; with `release`, only if that gives its space back. `EOPNOTSUPP` when it cannot.
    fn zero(&self, file: &Self::File, file_offset: u64, len: u64, release: bool) -> io::Result<()>;
    /// Changes what is locked. Never waits.
    fn lock(&self, file: &Self::File, mode: LockMode) -> io::Result<()>;
}

/// See the module.
#[derive(Debug)]
pub struct CallbackFileSystem<C: Callbacks> {
    callbacks: Arc<C>,
    ids: Mutex<HashMap<PathBuf, u64>>,
    next_id: AtomicU64,
}

impl<C: Callbacks> CallbackFileSystem<C> {
    /// A file system on these callbacks.
    pub fn new(callbacks: C) -> Self {
        CallbackFileSystem {
            callbacks: Arc::new(callbacks),
            ids: Mutex::default(),
            next_id: AtomicU64::new(1),
        }
    }

    /// The callbacks.
    pub fn callbacks(&self) -> &C {
        &self.callbacks
    }

    /// An open file; the name stands for its identity until it is renamed or removed.
    fn storage(&self, file: C::File, path: PathBuf) -> Arc<dyn Storage> {
        let fresh = || self.next_id.fetch_add(1, Ordering::Relaxed);
        let id = *self.ids.lock().entry(path).or_insert_with(fresh);
        Arc::new(CallbackStorage {
            callbacks: self.callbacks.clone(),
            file,
            id,
        })
    }
}

/// An absolute path without dots.
fn plain(path: &Path) -> PathBuf {
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

impl<C: Callbacks> FileSystem for CallbackFileSystem<C> {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        let path = plain(path);
        Ok(self.storage(self.callbacks.open(&path, access)?, path))
    }

    fn open_beneath(&self, root: &Path, path: &Path) -> io::Result<Arc<dyn Storage>> {
        match plain(path).starts_with(plain(root)) {
            true => self.open(path, Access::Read),
            false => Err(io::Error::from_raw_os_error(libc::EXDEV)),
        }
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        let path = plain(path);
        let file = self.callbacks.create(&path)?;
        self.ids.lock().remove(&path);
        Ok(self.storage(file, path))
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (plain(from), plain(to));
        self.callbacks.rename(&from, &to)?;
        let mut ids = self.ids.lock();
        if let Some(id) = ids.remove(&from) {
            ids.insert(to, id);
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let path = plain(path);
        self.callbacks.remove(&path)?;
        self.ids.lock().remove(&path);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.callbacks.sync_dir(&plain(dir))
    }

    fn list(&self, dir: &Path, limit: usize) -> io::Result<Vec<PathBuf>> {
        let dir = plain(dir);
        let names = self.callbacks.list(&dir, limit)?;
        Ok(names.into_iter().take(limit).map(|name| dir.join(name)).collect())
    }

    fn absolute(&self, path: &Path) -> io::Result<PathBuf> {
        Ok(plain(path))
    }
}

#[derive(Debug)]
struct CallbackStorage<C: Callbacks> {
    callbacks: Arc<C>,
    file: C::File,
    id: u64,
}

impl<C: Callbacks> Storage for CallbackStorage<C> {
    fn read_at(&self, buf: &mut [u8], file_offset: u64) -> io::Result<()> {
        let end = file_offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| self.len().is_ok_and(|len| end > len)) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.callbacks.read(&self.file, buf, file_offset)
    }

    fn write_at(&self, buf: &[u8], file_offset: u64) -> io::Result<()> {
        self.callbacks.write(&self.file, buf, file_offset)
    }

    fn len(&self) -> io::Result<u64> {
        self.callbacks.len(&self.file)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.callbacks.set_len(&self.file, len)
    }

    fn flush(&self, _: Barrier) -> io::Result<()> {
        self.callbacks.flush(&self.file)
    }

    fn zero_range(&self, file_offset: u64, len: u64) -> io::Result<()> {
        match self.callbacks.zero(&self.file, file_offset, len, false) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            done => return done,
        }
        let (mut at, end) = (file_offset, file_offset.saturating_add(len));
        while at < end {
            let piece = &ZEROS[..(end - at).min(ZEROS.len() as u64) as usize];
            self.write_at(piece, at)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn release_range(&self, file_offset: u64, len: u64) -> io::Result<()> {
        self.callbacks.zero(&self.file, file_offset, len, true)
    }

    fn lock(&self, mode: LockMode) -> io::Result<()> {
        self.callbacks.lock(&self.file, mode)
    }

    fn id(&self) -> Option<FileId> {
        Some(FileId(DEVICE, self.id))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryFileSystem;

    /// The callbacks of a caller that has files in memory and cannot zero.
    #[derive(Debug, Default)]
    struct Memory(MemoryFileSystem);

    impl Callbacks for Memory {
        type File = Arc<dyn Storage>;
        fn open(&self, path: &Path, access: Access) -> io::Result<Self::File> {
            assert!(path.is_absolute());
            self.0.open(path, access)
        }
        fn create(&self, path: &Path) -> io::Result<Self::File> {
            self.0.create_new(path)
        }
        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            self.0.rename_new(from, to)
        }
        fn remove(&self, path: &Path) -> io::Result<()> {
            self.0.remove(path)
        }
        fn sync_dir(&self, dir: &Path) -> io::Result<()> {
            self.0.sync_dir(dir)
        }
        fn list(&self, dir: &Path, limit: usize) -> io::Result<Vec<PathBuf>> {
            self.0.list(dir, limit)
        }
        fn read(&self, file: &Self::File, buf: &mut [u8], file_offset: u64) -> io::Result<()> {
            file.read_at(buf, file_offset)
        }
        fn write(&self, file: &Self::File, buf: &[u8], file_offset: u64) -> io::Result<()> {
            file.write_at(buf, file_offset)
        }
        fn flush(&self, file: &Self::File) -> io::Result<()> {
            file.flush(Barrier::Payload)
        }
        fn len(&self, file: &Self::File) -> io::Result<u64> {
            file.len()
        }
        fn set_len(&self, file: &Self::File, len: u64) -> io::Result<()> {
            file.set_len(len)
        }
        fn zero(&self, _: &Self::File, _: u64, _: u64, _: bool) -> io::Result<()> {
            Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
        }
        fn lock(&self, file: &Self::File, mode: LockMode) -> io::Result<()> {
            file.lock(mode)
        }
    }

    #[test]
    fn zeros_are_written_where_the_caller_cannot_zero() {
        let fs = CallbackFileSystem::new(Memory::default());
        let file = fs.create_new(Path::new("a")).unwrap();
        file.write_at(&[7; 200_000], 0).unwrap();
        file.zero_range(1000, 150_000).unwrap();
        let mut bytes = vec![1; 200_000];
        file.read_at(&mut bytes, 0).unwrap();
        assert!(bytes[..1000].iter().chain(&bytes[151_000..]).all(|&b| b == 7));
        assert!(bytes[1000..151_000].iter().all(|&b| b == 0));
        assert!(file.release_range(0, 10).is_err());
    }

    #[test]
    fn identity_follows_a_file_through_renames() {
        let fs = CallbackFileSystem::new(Memory::default());
        let made = fs.create_new(Path::new("dir/../tmp")).unwrap();
        fs.rename_new(Path::new("./tmp"), Path::new("/a")).unwrap();
        let again = fs.open(Path::new("a"), Access::Read).unwrap();
        assert_eq!(made.id(), again.id());
        fs.remove(Path::new("/a")).unwrap();
        assert_ne!(fs.create_new(Path::new("a")).unwrap().id(), made.id());
    }

    #[test]
    fn reads_past_the_end_never_reach_the_caller() {
        let fs = CallbackFileSystem::new(Memory::default());
        let file = fs.create_new(Path::new("a")).unwrap();
        file.write_at(&[1; 10], 0).unwrap();
        let error = file.read_at(&mut [0; 8], 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn beneath_is_judged_after_dots_are_resolved() {
        let fs = CallbackFileSystem::new(Memory::default());
        drop(fs.create_new(Path::new("/a/x")).unwrap());
        assert!(fs.open_beneath(Path::new("/a"), Path::new("/a/b/../x")).is_ok());
        let outside = fs.open_beneath(Path::new("/a/b"), Path::new("/a/b/../x")).unwrap_err();
        assert_eq!(outside.raw_os_error(), Some(libc::EXDEV));
    }
}
