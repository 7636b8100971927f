//! What operations on files of a chain share: taking a layer for writing and back, naming another parent, removing a
//! file that nobody needs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::create::locator_to;
use super::merge::record::Record;
use crate::chain::locate::{self, directory, Located, Wanted};
use crate::chain::{open, Chain};
use crate::error::{Error, ErrorKind, IoContext, PathContext, Result};
use crate::format::locator::{Locator, VOLUME_PATH};
use crate::guid::Guid;
use crate::image::{Image, Shared};
use crate::options::{LogPolicy, OpenOptions};
use crate::storage::{Access, LockMode, Order, Storage};

/// Opens a layer for writing and continues with that. The leaf is writable already.
pub(super) fn promote(chain: &Chain, layer: usize) -> Result<Arc<Image>> {
    let image = chain.layer(layer)?;
    if image.is_writable() {
        return Ok(image);
    }
    let storage = open::storage(image.name(), Access::Write, chain.options())?;
    if storage.id() != image.storage().id() {
        return Err(replaced(&image));
    }
    if chain.options().lock {
        // One handle must give way to the other of the same file.
        image.lock(LockMode::None)?;
        if let Err(error) = open::lock(&*storage, LockMode::Write, chain.options()) {
            let _ = image.lock(LockMode::Read);
            return Err(error.with_path(image.name()).with_layer(layer));
        }
    }
    let writable = Image::open_write(storage, image.name(), LogPolicy::Auto, chain.shared()).at(image.name())?;
    if writable.data_write_guid() != image.data_write_guid() {
        return Err(
            Error::new(ErrorKind::ParentIdMismatch, "the layer changed while it was open")
                .with_path(image.name())
                .with_layer(layer),
        );
    }
    let writable = Arc::new(writable);
    chain.replace(layer, writable.clone());
    Ok(writable)
}

/// Makes a layer a parent again: clean, for reading.
pub(super) fn demote(chain: &Chain, image: &Image) -> Result<()> {
    image.clean()?;
    image.seal();
    match chain.options().lock {
        true => image.lock(LockMode::Read),
        false => Ok(()),
    }
}

/// A file outside the chain, locked and open for writing.
pub(super) fn open_writable(chain: &Chain, path: &Path) -> Result<Arc<Image>> {
    writable(path, chain.options(), chain.shared()).map(Arc::new)
}

/// The same without a chain.
pub(super) fn writable(path: &Path, options: &OpenOptions, shared: &Shared) -> Result<Image> {
    let storage = open::storage(path, Access::Write, options)?;
    open::lock(&*storage, LockMode::Write, options).at(path)?;
    Image::open_write(storage, path, LogPolicy::Auto, shared).at(path)
}

/// A file to be a parent, locked and open for reading. Its log is never replayed into it.
pub(super) fn readable(path: &Path, options: &OpenOptions, shared: &Shared) -> Result<Image> {
    let storage = open::storage(path, Access::Read, options)?;
    open::lock(&*storage, LockMode::Read, options).at(path)?;
    Image::open_read(storage, path, LogPolicy::Memory, shared).at(path)
}

fn locator_of(image: &Image) -> Result<Locator> {
    image
        .items()
        .locator
        .ok_or_else(|| Error::new(ErrorKind::Bug, "a differencing layer has no locator").with_path(image.name()))
}

/// Names the file at `parent` as the parent of `child`, durably and in one log entry: its paths, and the two
/// DataWriteGuids it may have. DataWriteGuid of the child stays. What a merge noted stays with the linkage it is about.
pub(super) fn relink(
    options: &OpenOptions,
    child: &Image,
    parent: &Path,
    linkages: (Guid, Option<Guid>),
) -> Result<()> {
    let record = Record::of(child).filter(|_| child.linkage() == Some(linkages));
    relink_noting(options, child, parent, linkages, record)
}

/// The same for a merge, which notes how far it is.
pub(super) fn relink_noting(
    options: &OpenOptions,
    child: &Image,
    parent: &Path,
    (linkage, linkage2): (Guid, Option<Guid>),
    record: Option<Record>,
) -> Result<()> {
    let mut locator = locator_of(child)?;
    let fresh = locator_to(&*options.file_system, child.name(), parent, linkage, options)?;
    for (key, value) in fresh.entries() {
        locator.set(&key, &value);
    }
    // No volume of Windows is known here: an old one would be asked before the absolute path.
    locator.remove(VOLUME_PATH);
    set_linkage(child, locator, (linkage, linkage2), record)
}

/// Changes what `child` accepts as its parent and what a merge notes in it, durably and in one log entry; the paths stay.
pub(super) fn note(child: &Image, linkages: (Guid, Option<Guid>), record: Option<Record>) -> Result<()> {
    set_linkage(child, locator_of(child)?, linkages, record)
}

fn set_linkage(
    child: &Image,
    mut locator: Locator,
    (linkage, linkage2): (Guid, Option<Guid>),
    record: Option<Record>,
) -> Result<()> {
    locator.set_linkage(linkage, linkage2);
    Record::note(record, &mut locator);
    child.set_locator(&locator)
}

/// The DataWriteGuids that the parent of a differencing layer may have.
pub(super) fn linkage_of(image: &Image) -> Result<(Guid, Option<Guid>)> {
    image
        .linkage()
        .ok_or_else(|| Error::new(ErrorKind::Bug, "a differencing layer without linkage").with_path(image.name()))
}

/// Whether two open files are one.
pub(super) fn same_file(options: &OpenOptions, a: (&dyn Storage, &Path), b: (&dyn Storage, &Path)) -> bool {
    match (a.0.id(), b.0.id()) {
        (Some(a), Some(b)) => a == b,
        // Where files have no identity, their paths must do.
        _ => {
            let absolute = |path: &Path| options.file_system.absolute(path).unwrap_or(path.to_path_buf());
            absolute(a.1) == absolute(b.1)
        }
    }
}

/// Refuses `parent` as a parent of `child` when it is the child, or has it among its ancestors. Ancestors that cannot
/// be found end the search: what is not reached now is not reached by the next open either. Takes no lock.
pub(super) fn refuse_cycle(
    options: &OpenOptions,
    child: (&dyn Storage, &Path),
    parent: &Path,
    shared: &Shared,
) -> Result<()> {
    let mut path = parent.to_path_buf();
    let mut storage = open::storage(parent, Access::Read, options)?;
    for depth in 0..crate::limits::MAX_CHAIN_DEPTH {
        if same_file(options, child, (&*storage, &path)) {
            let message = match depth {
                0 => "a disk cannot be its own parent".to_string(),
                _ => format!("{parent:?} is a descendant of the disk: the chain would return to where it began"),
            };
            return Err(Error::new(ErrorKind::ChainLoop, message)
                .with_path(child.1)
                .with_hint("name a parent that does not depend on this disk"));
        }
        let image = Image::open_read(storage, &path, LogPolicy::Memory, shared).at(&path)?;
        let items = image.items();
        let (Some((linkage, linkage2)), Some(locator)) = (image.linkage(), &items.locator) else {
            return Ok(());
        };
        let wanted = Wanted {
            child: &path,
            locator,
            linkage,
            linkage2,
        };
        let Ok(Located {
            path: next,
            storage: found,
        }) = locate::locate(&wanted, options)
        else {
            return Ok(());
        };
        (path, storage) = (next, found);
    }
    let message = format!(
        "the chain of the parent is deeper than {} files",
        crate::limits::MAX_CHAIN_DEPTH
    );
    Err(Error::new(ErrorKind::ChainLoop, message)
        .with_path(parent)
        .with_hint("merge layers of the parent first"))
}

/// After layers changed: whether an interrupted merge still shows.
pub(super) fn settle_pending(chain: &Chain) {
    let layers = &chain.current().layers;
    let pending = layers
        .windows(2)
        .any(|pair| pair[0].shows_merge_into(pair[1].data_write_guid()));
    if !pending {
        chain.merge_is_done();
    }
}

/// The error for logical sectors that differ, which no option overrides.
pub(super) fn check_sectors(child: &Image, parent: &Image) -> Result<()> {
    let (wanted, found) = (child.geometry().sector_size(), parent.geometry().sector_size());
    if wanted == found {
        return Ok(());
    }
    let message = format!("the parent has logical sectors of {found} bytes, its child of {wanted}");
    Err(Error::new(ErrorKind::ParentMismatch, message)
        .with_path(parent.name())
        .with_hint("only a disk with the same logical sector size can be the parent"))
}

fn replaced(image: &Image) -> Error {
    Error::new(ErrorKind::Io, "the file was replaced while it was open")
        .with_path(image.name())
        .with_hint("put back the file that was there when the disk was opened")
}

/// Refuses a file whose name is gone or another's: a child that names it as its parent would not find it, and who removes
/// it by name would remove the other.
pub(super) fn is_in_place(options: &OpenOptions, image: &Image) -> Result<()> {
    match options.file_system.open(image.name(), Access::Read) {
        Ok(named) => match same_file(options, (&*named, image.name()), (&**image.storage(), image.name())) {
            true => Ok(()),
            false => Err(replaced(image)),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(Error::io("find the open file", e)
            .with_path(image.name())
            .with_hint("it was moved or removed while it was open: put it back")),
        // Whoever was given a descriptor need not be allowed to open the file.
        Err(_) => Ok(()),
    }
}

/// Makes sure that nobody else uses a file that is about to be removed, and keeps others from it.
pub(super) fn claim_for_removal(options: &OpenOptions, image: &Image) -> Result<()> {
    let named = open::storage(image.name(), Access::Read, options)?;
    if !same_file(options, (&*named, image.name()), (&**image.storage(), image.name())) {
        return Err(replaced(image));
    }
    match options.lock {
        true => image.lock(LockMode::Write),
        false => Ok(()),
    }
}

/// Removes files in this order, durably. The caller has seen to it that nobody needs them.
pub(super) fn remove(options: &OpenOptions, images: &[Arc<Image>], removed: &mut Vec<PathBuf>) -> Result<()> {
    let fs = &*options.file_system;
    let sync = |image: &Image| {
        let dir = directory(image.name());
        fs.sync_dir(&dir).context(|| "make the removal durable".into()).at(&dir)
    };
    for image in images {
        // Whoever took its name meanwhile keeps it.
        is_in_place(options, image)?;
        fs.remove(image.name())
            .context(|| "remove the file".into())
            .at(image.name())
            .map_err(|e| e.with_hint("everything else is done; no disk depends on the file: remove it by hand"))?;
        removed.push(image.name().to_path_buf());
        // ORDER: gone durably before the next goes: a directory that is not synced may lose the later name first.
        if !Order::RemovedInTurn.is_forgotten() {
            sync(image)?;
        }
    }
    match images.last() {
        Some(image) if Order::RemovedInTurn.is_forgotten() => sync(image),
        _ => Ok(()),
    }
}
