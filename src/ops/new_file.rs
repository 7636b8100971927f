//! Files that appear under their names only when they are whole (docs/durability.md "Create", "Convert, migrate").

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::chain::locate::directory;
use crate::error::{Error, IoContext, PathContext, Result};
use crate::guid::Guid;
use crate::storage::{Access, FileSystem, Order, Storage};

/// A file being made under a temporary name in the directory it is for. Dropped before it is published, it is removed.
pub(super) struct NewFile<'a> {
    fs: &'a dyn FileSystem,
    path: PathBuf,
    /// The name it has now, until it is published.
    name: Option<PathBuf>,
    storage: Arc<dyn Storage>,
}

impl<'a> NewFile<'a> {
    /// An empty file that is to be `path`, where nothing may be.
    pub(super) fn begin(fs: &'a dyn FileSystem, path: &Path) -> Result<NewFile<'a>> {
        if fs.open(path, Access::Read).is_ok() {
            return Err(exists(path));
        }
        let temporary = temporary_name(path);
        let storage = fs
            .create_new(&temporary)
            .map_err(|cause| creation_failed(cause, path))?;
        Ok(NewFile {
            fs,
            path: path.to_path_buf(),
            name: Some(temporary),
            storage,
        })
    }

    pub(super) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = self.fs.remove(name);
        }
    }
}

/// Gives files, whose content is durable and which are all for one directory, their names, in this order. Either all
/// have them, durably, or none has.
pub(super) fn publish(files: &mut [NewFile<'_>]) -> Result<()> {
    let sync = |file: &NewFile<'_>| {
        file.fs
            .sync_dir(&directory(&file.path))
            .context(|| "make the new name durable".into())
            .at(&file.path)
    };
    // ORDER: the content is durable; now the names, durably, the one that depends on the others last: a directory that
    // is not synced may keep the later name and lose the earlier.
    for i in 0..files.len() {
        if i > 0 && !Order::ParentsNamedFirst.is_forgotten() {
            sync(&files[i - 1])?;
        }
        let file = &mut files[i];
        if let Some(temporary) = &file.name {
            file.fs
                .rename_new(temporary, &file.path)
                .map_err(|cause| match cause.raw_os_error() {
                    Some(libc::EEXIST) => exists(&file.path),
                    _ => Error::io("rename the new file to its name", cause).with_path(&file.path),
                })?;
            // Until all are there: reported as not created, it must not be there, in the way of another attempt.
            file.name = Some(file.path.clone());
        }
    }
    if let Some(file) = files.last() {
        sync(file)?;
    }
    for file in files {
        file.name = None;
    }
    Ok(())
}

/// Makes one file: `write` fills it and makes it durable. Returns the file, open.
pub(super) fn new_file(
    fs: &dyn FileSystem,
    path: &Path,
    write: impl FnOnce(&Arc<dyn Storage>) -> Result<()>,
) -> Result<Arc<dyn Storage>> {
    let mut file = NewFile::begin(fs, path)?;
    write(file.storage()).at(path)?;
    publish(std::slice::from_mut(&mut file))?;
    Ok(file.storage().clone())
}

/// A file of this name is in the way.
pub(super) fn exists(path: &Path) -> Error {
    Error::io("create the file", std::io::Error::from_raw_os_error(libc::EEXIST))
        .with_path(path)
        .with_hint("choose another name: existing files are never replaced")
}

fn creation_failed(cause: std::io::Error, path: &Path) -> Error {
    let missing = cause.raw_os_error() == Some(libc::ENOENT);
    let error = Error::io("create the file", cause).with_path(path);
    match missing {
        true => error.with_hint("create the directory first"),
        false => error.with_hint("check the permissions of the directory"),
    }
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.tmp", Guid::random()));
    directory(path).join(name)
}
