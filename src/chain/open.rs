//! Opening: the leaf, then parent after parent.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::locate::{self, Located, Wanted};
use crate::error::{Error, ErrorKind, IoContext, PathContext, Result};
use crate::image::{locked, Image, Shared};
use crate::options::{LogPolicy, OpenOptions};
use crate::storage::{Access, FileId, LockMode, Storage};
use crate::trace;

/// Layers, leaf first, and whether an interrupted merge shows.
pub(crate) struct Opened {
    pub(crate) layers: Vec<Arc<Image>>,
    pub(crate) pending_merge: bool,
}

/// Opens the file at `path` through the options' file system.
pub(crate) fn storage(path: &Path, access: Access, options: &OpenOptions) -> Result<Arc<dyn Storage>> {
    options.file_system.open(path, access).map_err(|cause| {
        let errno = cause.raw_os_error();
        if matches!(errno, Some(libc::EINVAL | libc::EISDIR)) {
            return Error::new(ErrorKind::Argument, "this is not a file that can hold a disk")
                .with_source(cause)
                .with_path(path)
                .with_hint("a disk image is a regular file or a block device");
        }
        let hint = match errno {
            Some(libc::ENOENT) => Some("check the path"),
            Some(libc::EACCES | libc::EROFS | libc::EPERM) if access == Access::Write => {
                Some("open it read-only, or check its permissions")
            }
            Some(libc::EACCES | libc::EPERM) => Some("check its permissions"),
            _ => None,
        };
        let error = Error::io("open the file", cause).with_path(path);
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    })
}

/// Takes a lock, waiting for it as long as the options say.
pub(crate) fn lock(storage: &dyn Storage, mode: LockMode, options: &OpenOptions) -> Result<()> {
    if !options.lock {
        return Ok(());
    }
    let start = Instant::now();
    loop {
        match storage.lock(mode) {
            Ok(()) => return Ok(()),
            Err(cause) if cause.raw_os_error() == Some(libc::EAGAIN) && start.elapsed() < options.lock_timeout => {
                std::thread::sleep(Duration::from_millis(10).min(options.lock_timeout));
            }
            Err(cause) => return Err(locked(cause)),
        }
    }
}

/// How the leaf is opened.
pub(crate) fn leaf_access(options: &OpenOptions) -> Access {
    match (options.read_only, options.log) {
        (_, LogPolicy::Replay) => Access::Write,
        (_, LogPolicy::Memory) | (true, _) => Access::Read,
        (false, _) => Access::Write,
    }
}

/// The leaf of a chain, locked.
pub(crate) fn leaf(storage: Arc<dyn Storage>, path: &Path, options: &OpenOptions, shared: &Shared) -> Result<Image> {
    let access = leaf_access(options);
    let mode = match access {
        Access::Read => LockMode::Read,
        Access::Write => LockMode::Write,
    };
    lock(&*storage, mode, options).at(path)?;
    let image = match access {
        Access::Read => Image::open_read(storage, path, options.log, shared),
        Access::Write => Image::open_write(storage, path, options.log, shared),
    };
    image.at(path).map_err(|e| e.with_layer(0))
}

/// Opens the parents of `leaf`, as its locator and theirs name them.
pub(crate) fn parents(leaf: Arc<Image>, options: &OpenOptions, shared: &Shared) -> Result<Opened> {
    let mut opened = Opened {
        layers: vec![leaf],
        pending_merge: false,
    };
    loop {
        let child = &opened.layers[opened.layers.len() - 1];
        let Some((linkage, linkage2)) = child.linkage().filter(|_| options.parents) else {
            break;
        };
        let items = child.items();
        let Some(locator) = &items.locator else { break };
        check_depth(opened.layers.len(), child.name(), options)?;
        let wanted = Wanted {
            child: child.name(),
            locator,
            linkage,
            linkage2,
        };
        let Located { path, storage } =
            locate::locate(&wanted, options).map_err(|e| e.with_layer(opened.layers.len() - 1))?;
        check_new(&opened.layers, &*storage, &path)?;
        let parent = parent(storage, &path, options, shared, opened.layers.len())?;
        if !wanted.accepts(parent.data_write_guid()) {
            let message = "the parent changed while it was being opened";
            return Err(Error::new(ErrorKind::ParentIdMismatch, message).with_path(&path));
        }
        opened.pending_merge |= child.shows_merge_into(parent.data_write_guid());
        check_pair(&opened.layers, &parent)?;
        opened.layers.push(Arc::new(parent));
    }
    if opened.pending_merge {
        let leaf = opened.layers[0].name();
        trace::warn(|| format!("{leaf:?}: an interrupted merge; resume it"));
    }
    Ok(opened)
}

/// Opens the files the caller lists, leaf first. Identities are still verified, unless the caller knows better.
pub(crate) fn listed(leaf: Arc<Image>, parents: &[PathBuf], options: &OpenOptions, shared: &Shared) -> Result<Opened> {
    let mut opened = Opened {
        layers: vec![leaf],
        pending_merge: false,
    };
    for path in parents {
        let child = &opened.layers[opened.layers.len() - 1];
        check_depth(opened.layers.len(), child.name(), options)?;
        let Some((linkage, linkage2)) = child.linkage() else {
            let message = format!("{:?} has no parent, but the list goes on", child.name());
            return Err(Error::new(ErrorKind::Argument, message).with_path(path));
        };
        let storage = storage(path, Access::Read, options)?;
        check_new(&opened.layers, &*storage, path)?;
        let parent = parent(storage, path, options, shared, opened.layers.len())?;
        let identity = parent.data_write_guid();
        if identity != linkage && linkage2 != Some(identity) && !options.ignore_id_mismatch {
            return Err(Error::new(
                ErrorKind::ParentIdMismatch,
                format!(
                    "the parent was modified or is another disk: its DataWriteGuid is {identity}, wanted {linkage}"
                ),
            )
            .with_path(path)
            .with_hint("list the right file, or set ignore-id-mismatch if you know that its content is right"));
        }
        opened.pending_merge |= child.shows_merge_into(identity);
        check_pair(&opened.layers, &parent)?;
        opened.layers.push(Arc::new(parent));
    }
    if let Some(base) = opened
        .layers
        .last()
        .filter(|base| base.linkage().is_some() && options.parents)
    {
        let message = "the last file listed has a parent";
        return Err(Error::new(ErrorKind::ParentNotFound, message)
            .with_path(base.name())
            .with_hint("list the whole chain, leaf first; parents=off reads absent data as zeros"));
    }
    Ok(opened)
}

fn parent(
    storage: Arc<dyn Storage>,
    path: &Path,
    options: &OpenOptions,
    shared: &Shared,
    layer: usize,
) -> Result<Image> {
    lock(&*storage, LockMode::Read, options)
        .at(path)
        .map_err(|e| e.with_layer(layer))?;
    // Never replayed into the file: a child must not be able to name a file to be written.
    let log = match options.log {
        LogPolicy::Refuse => LogPolicy::Refuse,
        _ => LogPolicy::Memory,
    };
    Image::open_read(storage, path, log, shared)
        .at(path)
        .map_err(|e| e.with_layer(layer))
}

fn check_depth(depth: usize, child: &Path, options: &OpenOptions) -> Result<()> {
    if depth >= options.max_depth.clamp(1, crate::limits::MAX_CHAIN_DEPTH) {
        let message = format!("the chain is deeper than {depth} files");
        return Err(Error::new(ErrorKind::ChainLoop, message)
            .with_path(child)
            .with_hint("raise max-depth (at most 256), or merge layers"));
    }
    Ok(())
}

/// That no file is in the chain twice. Before it is locked: a second lock of the same file would be refused as another
/// program's.
fn check_new(layers: &[Arc<Image>], parent: &dyn Storage, path: &Path) -> Result<()> {
    let id: Option<FileId> = parent.id();
    match layers.iter().find(|l| id.is_some() && l.storage().id() == id) {
        None => Ok(()),
        Some(same) => {
            let message = format!("the chain returns to {:?}", same.name());
            Err(Error::new(ErrorKind::ChainLoop, message).with_path(path).with_hint(
                "a file names itself, or a child of its own, as its parent; restore the locator from a backup",
            ))
        }
    }
}

/// What must hold between a layer and its child.
fn check_pair(layers: &[Arc<Image>], parent: &Image) -> Result<()> {
    let child = &layers[layers.len() - 1];
    let (wanted, found) = (child.geometry().sector_size(), parent.geometry().sector_size());
    if wanted != found {
        let message = format!("the parent has logical sectors of {found} bytes, its child of {wanted}");
        return Err(Error::new(ErrorKind::ParentMismatch, message)
            .with_path(parent.name())
            .with_hint("only a disk with the same logical sector size can be the parent"));
    }
    Ok(())
}

/// The length of a file, for reports.
pub(crate) fn file_size(image: &Image) -> Result<u64> {
    image
        .storage()
        .len()
        .context(|| "get the file length".into())
        .at(image.name())
}
