//! One VHDX file: open, look up, read, write, commit, close.
//!
//! ```text
//!   front        identifier, headers, log, regions, metadata: what must be right before a block is looked at
//!   paged        words of BAT and bitmaps, brought in on first touch
//!   lookup       what a byte range of the disk is in this file            (no lock, no I/O once pages are in; reuse)
//!   space        which MiB of the file is whose                           (allocate: the survey, taking, giving back)
//!   write        in place, allocating, zero, discard                      (claims, payload)
//!   change       metadata in memory: held pages, one change at a time
//!   commit       payload -> log entry -> in place                         (turns: one leader, any number of followers)
//!   headers      the two-round header update
//!   fill         content where the parent shows through   (rebase, detach, deleting a layer)
//!   create       a new file
//!   restructure  what changes the shape of an existing one: locator, size, virtual disk items
//!   compact      giving space back: zero blocks, blocks and bitmaps moved down, the file cut
//! ```
//!
//! The geometry of an [`Image`] never changes: what resizes a file closes the image and opens a new one.

mod allocate;
pub(crate) mod change;
pub(crate) mod claims;
pub(crate) mod commit;
pub(crate) mod compact;
pub(crate) mod create;
pub(crate) mod fill;
pub(crate) mod front;
pub(crate) mod headers;
pub(crate) mod lookup;
#[cfg(all(test, avhdx_loom))]
mod models;
pub(crate) mod paged;
pub(crate) mod payload;
mod pool;
pub(crate) mod restructure;
pub(crate) mod reuse;
pub(crate) mod space;
pub(crate) mod turns;
pub(crate) mod write;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicU8, Ordering};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result};
use crate::format::header::Current;
use crate::format::locator;
use crate::format::metadata::{DiskItems, MetadataTable};
use crate::format::region::RegionTable;
use crate::guid::Guid;
use crate::options::{CacheMode, LogPolicy};
use crate::storage::{LockMode, Storage};
use crate::units::Geometry;

use front::Front;
use paged::{PagedTable, Pool, PAGE_WORDS};
use reuse::Reuse;
use write::Writer;

/// What the images of one chain share.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    /// Memory for metadata pages.
    pub(crate) pool: Arc<Pool>,
    /// Space that gets another owner.
    pub(crate) reuse: Arc<Reuse>,
    /// When writes become durable.
    pub(crate) cache: CacheMode,
}

impl Shared {
    pub(crate) fn new(limit: u64, cache: CacheMode) -> Self {
        Shared {
            pool: Pool::new(limit),
            reuse: Arc::new(Reuse::new()),
            cache,
        }
    }

    /// A file that becomes one of theirs.
    fn admit(&self, storage: &dyn Storage) -> Result<()> {
        if self.cache != CacheMode::None {
            return Ok(());
        }
        storage.bypass_cache().map_err(|cause| {
            Error::io("open it around the page cache", cause)
                .with_hint("the file system has no O_DIRECT; use another value of cache than none")
        })
    }
}

/// Which announcements of change the headers of a writable image already carry (MS-VHDX 2.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum WriteMode {
    /// Nothing was written in this open.
    None,
    /// FileWriteGuid is new.
    File,
    /// DataWriteGuid too: what the disk reads as may change.
    Data,
}

/// The metadata region: which items are where, and the known ones.
#[derive(Debug)]
pub(crate) struct Metadata {
    pub(crate) table: MetadataTable,
    pub(crate) items: DiskItems,
}

/// An open file. Methods take `&self` and may be called from many threads.
#[derive(Debug)]
pub(crate) struct Image {
    name: PathBuf,
    storage: Arc<dyn Storage>,
    view: Arc<dyn Storage>,
    creator: String,
    geometry: Geometry,
    regions: RegionTable,
    /// The metadata region as last staged.
    metadata: Mutex<Metadata>,
    dirty: bool,
    file_len: AtomicU64,
    /// Offset and length of the log. A file without one is given one by its first commit.
    log_place: (AtomicU64, AtomicU64),
    /// The headers as they are on disk.
    header: Mutex<Current>,
    /// What they announce, a [`WriteMode`]. Changes with the headers locked.
    mode: AtomicU8,
    bat: PagedTable,
    bitmaps: PagedTable,
    shared: Shared,
    writer: Option<Writer>,
}

/// Pages of sector bitmap per chunk.
const BITMAP_PAGES: u64 = 256;

impl Image {
    /// Opens for reading; a dirty log is applied in memory.
    pub(crate) fn open_read(storage: Arc<dyn Storage>, name: &Path, log: LogPolicy, shared: &Shared) -> Result<Image> {
        shared.admit(&*storage)?;
        let front = Front::read(storage, log, false)?;
        Ok(Image::new(front, name, shared, false))
    }

    /// Opens for writing; a dirty log is replayed into the file. Nothing else is written before the first change.
    pub(crate) fn open_write(storage: Arc<dyn Storage>, name: &Path, log: LogPolicy, shared: &Shared) -> Result<Image> {
        shared.admit(&*storage)?;
        let front = Front::read(storage, log, true)?;
        Ok(Image::new(front, name, shared, true))
    }

    /// An image with the given front.
    pub(crate) fn new(front: Front, name: &Path, shared: &Shared, writable: bool) -> Image {
        let geometry = front.geometry;
        let writer = writable.then(|| Writer::new(&front));
        let bitmap_pages = if geometry.is_differencing() {
            geometry.chunk_count() * BITMAP_PAGES
        } else {
            0
        };
        Image {
            name: name.to_path_buf(),
            storage: front.storage,
            view: front.view,
            creator: front.creator,
            geometry,
            regions: front.regions,
            metadata: Mutex::new(Metadata {
                table: front.table,
                items: front.items,
            }),
            dirty: front.dirty,
            file_len: AtomicU64::new(front.file_len),
            log_place: (
                AtomicU64::new(front.current.header.log_offset),
                AtomicU64::new(u64::from(front.current.header.log_length)),
            ),
            header: Mutex::new(front.current),
            mode: AtomicU8::new(WriteMode::None as u8),
            bat: PagedTable::new(geometry.bat_entries().div_ceil(PAGE_WORDS), shared.pool.clone()),
            bitmaps: PagedTable::new(bitmap_pages, shared.pool.clone()),
            shared: shared.clone(),
            writer,
        }
    }

    /// The path it was opened by.
    pub(crate) fn name(&self) -> &Path {
        &self.name
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub(crate) fn virtual_size(&self) -> u64 {
        self.geometry.virtual_size()
    }

    pub(crate) fn creator(&self) -> &str {
        &self.creator
    }

    pub(crate) fn items(&self) -> DiskItems {
        self.metadata.lock().items.clone()
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.writer.as_ref().is_some_and(|w| !w.is_sealed())
    }

    /// The file itself, for locks, identity and kernel copies.
    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// The file as it reads, log applied.
    pub(crate) fn view(&self) -> &dyn Storage {
        &*self.view
    }

    pub(crate) fn file_len(&self) -> u64 {
        self.file_len.load(Ordering::Acquire)
    }

    pub(crate) fn header(&self) -> crate::format::header::Header {
        self.header.lock().header
    }

    /// Identity of what the disk reads as.
    pub(crate) fn data_write_guid(&self) -> Guid {
        self.header().data_write_guid
    }

    /// The DataWriteGuids its parent may have.
    pub(crate) fn linkage(&self) -> Option<(Guid, Option<Guid>)> {
        let metadata = self.metadata.lock();
        let items = &metadata.items;
        let locator = items.locator.as_ref().filter(|_| items.parameters.has_parent)?;
        Some((locator.linkage()?, locator.linkage2()))
    }

    /// Whether a merge of this file into a parent with this identity was begun and not finished.
    pub(crate) fn shows_merge_into(&self, parent: Guid) -> bool {
        let metadata = self.metadata.lock();
        metadata.items.locator.as_ref().is_some_and(|locator| {
            let (linkage, linkage2) = (locator.linkage(), locator.linkage2());
            (linkage != Some(parent) && linkage2 == Some(parent)) || locator.get(locator::MERGE).is_some()
        })
    }

    pub(crate) fn regions(&self) -> &[crate::format::region::Region] {
        &self.regions.regions
    }

    /// Where the BAT is, in bytes.
    pub(crate) fn bat_offset(&self) -> u64 {
        self.regions.bat().offset
    }

    /// The image has a child now: no more writes. It was cleaned.
    pub(crate) fn seal(&self) {
        if let Some(writer) = &self.writer {
            writer.set_sealed();
        }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Changes what is locked.
    pub(crate) fn lock(&self, mode: LockMode) -> Result<()> {
        self.storage.lock(mode).map_err(|e| locked(e).with_path(&self.name))
    }

    /// Refuses every further write, with `error` as the reason, and returns it.
    pub(crate) fn poison(&self, error: Error) -> Error {
        match &self.writer {
            Some(writer) => writer.poison(error),
            None => error,
        }
    }

    fn writer(&self) -> Result<&Writer> {
        self.writer
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::ReadOnly, "the disk is open for reading only").with_path(&self.name))
    }
}

/// The error of a lock that could not be had.
pub(crate) fn locked(cause: std::io::Error) -> Error {
    match cause.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Error::new(ErrorKind::Locked, "another program uses the file")
            .with_hint(
                "close the program that has it open (fuser or lslocks names it), or open read-only with lock=off if \
                 you know that nobody writes to it",
            )
            .with_source(cause),
        _ => Error::io("lock the file", cause).with_hint("where the file system has no locks, open with lock=off"),
    }
}
