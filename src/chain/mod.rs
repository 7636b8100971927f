//! A chain of files as one disk: `base.vhdx <- a.avhdx <- b.avhdx`, writes go to the last.
//!
//! ```text
//!   open      the leaf, then parent after parent        locate    which file is the parent (search: how)
//!   snapshot  the layers at one moment, reading         map       who holds what below the leaf, resolved once
//!   data      read, write, zero, discard, flush         status    extents
//!   paths     Windows paths and the host's              types     what callers are told
//! ```
//!
//! The layers are an immutable `snapshot::Snapshot` behind an atomic pointer; operations that change them build the
//! next one and swap it. Writers hold `gate` shared; whoever must see no write in flight holds it exclusively. Readers
//! hold nothing and verify afterwards that no space they read from changed its owner.

mod data;
pub(crate) mod locate;
pub(crate) mod map;
pub(crate) mod open;
pub(crate) mod paths;
pub(crate) mod search;
pub(crate) mod snapshot;
mod status;
mod types;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};

use crate::error::{Error, ErrorKind, Result};
use crate::image::front::Front;
use crate::image::{Image, Shared};
use crate::options::{DiskType, LogPolicy, OpenOptions};
use crate::storage::{Access, Storage};

use open::Opened;
use snapshot::Snapshot;
pub use types::{ChainInfo, Extent, ExtentState, LayerInfo, Limits, Probe, Scope};

/// An open chain. All methods take `&self` and may be called from any number of threads at once.
///
/// Dropping a chain writes nothing more: what was not flushed may be lost, as in a power cut. [`Chain::close`] leaves
/// the leaf as if nobody had it open.
#[derive(Debug)]
pub struct Chain {
    snapshot: ArcSwap<Snapshot>,
    /// Shared: a write in flight. Exclusive: none. During a merge of the leaf: its blocks written meanwhile.
    gate: RwLock<Option<Arc<data::Watch>>>,
    /// One change of layers at a time.
    pub(crate) control: Mutex<()>,
    shared: Shared,
    options: OpenOptions,
    read_only: bool,
    pending_merge: AtomicBool,
}

impl Chain {
    /// Opens the file at `path` and its parents. With default options the leaf is writable and locked against other
    /// programs, parents are locked against writers, and nothing is written to any file before the first change, except
    /// that a dirty log of the leaf is replayed.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Chain> {
        let storage = open::storage(path, open::leaf_access(options), options)?;
        Chain::open_storage(storage, path, options)
    }

    /// Opens exactly these files, leaf first. Each must still be the parent of the one before it, unless
    /// `ignore_id_mismatch` is set.
    pub fn open_layers(paths: &[PathBuf], options: &OpenOptions) -> Result<Chain> {
        let Some((leaf, parents)) = paths.split_first() else {
            return Err(Error::new(ErrorKind::Argument, "the list of layers is empty"));
        };
        let storage = open::storage(leaf, open::leaf_access(options), options)?;
        let shared = Shared::new(options.meta_cache_size, options.cache);
        let leaf = Arc::new(open::leaf(storage, leaf, options, &shared)?);
        let opened = open::listed(leaf, parents, options, &shared)?;
        Ok(Chain::new(opened, options, shared))
    }

    /// Opens a file that is already open; `name` is its path, for messages and for finding its parents.
    pub fn open_storage(storage: Arc<dyn Storage>, name: &Path, options: &OpenOptions) -> Result<Chain> {
        if options.ignore_id_mismatch {
            return Err(Error::new(
                ErrorKind::Argument,
                "ignore-id-mismatch needs an explicit list of layers",
            )
            .with_hint("name every file of the chain"));
        }
        let shared = Shared::new(options.meta_cache_size, options.cache);
        let leaf = Arc::new(open::leaf(storage, name, options, &shared)?);
        let opened = open::parents(leaf, options, &shared)?;
        Ok(Chain::new(opened, options, shared))
    }

    fn new(opened: Opened, options: &OpenOptions, shared: Shared) -> Chain {
        let leaf = &opened.layers[0];
        let incomplete = !options.parents && leaf.geometry().is_differencing();
        let read_only = options.read_only || incomplete || !leaf.is_writable();
        Chain {
            snapshot: ArcSwap::from_pointee(Snapshot::new(opened.layers, &shared)),
            gate: RwLock::new(None),
            control: Mutex::new(()),
            shared,
            options: options.clone(),
            read_only,
            pending_merge: AtomicBool::new(opened.pending_merge),
        }
    }

    /// What one file says about itself. Takes no lock, opens no parent, writes nothing; a dirty log is applied in
    /// memory.
    pub fn probe(path: &Path, options: &OpenOptions) -> Result<Probe> {
        let storage = open::storage(path, Access::Read, options)?;
        let front = Front::read(storage, LogPolicy::Memory, false).map_err(|e| e.with_path(path))?;
        let items = &front.items;
        Ok(Probe {
            disk_type: disk_type(items),
            virtual_size: items.virtual_size,
            block_size: items.parameters.block_size,
            logical_sector_size: items.logical_sector_size,
            physical_sector_size: items.physical_sector_size,
            virtual_disk_id: items.virtual_disk_id,
            data_write_guid: front.current.header.data_write_guid,
            parent_linkage: front.linkage().map(|(linkage, _)| linkage),
            parent_linkage2: front.linkage().and_then(|(_, linkage2)| linkage2),
            dirty_flag: front.dirty,
        })
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.snapshot.load().leaf().virtual_size()
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// What is efficient.
    pub fn limits(&self) -> Limits {
        let snapshot = self.snapshot.load();
        let items = snapshot.leaf().items();
        Limits {
            logical_sector_size: items.logical_sector_size,
            physical_sector_size: items.physical_sector_size,
            block_size: items.parameters.block_size,
            preferred: items.physical_sector_size.max(4096),
            discard_granularity: items.parameters.block_size,
        }
    }

    /// Number of layers.
    pub fn layer_count(&self) -> usize {
        self.snapshot.load().layers.len()
    }

    /// The path by which a layer was opened.
    pub fn layer_path(&self, layer: usize) -> Result<PathBuf> {
        Ok(self.layer(layer)?.name().to_path_buf())
    }

    /// The descriptor of a layer's file; `None` where the storage has none or the file must not be read raw because its
    /// log is applied in memory. It belongs to the chain: do not close it, do not use it after the chain.
    pub fn layer_fd(&self, layer: usize) -> Result<Option<i32>> {
        let image = self.layer(layer)?;
        Ok(image.storage().as_raw_fd().filter(|_| !image.is_dirty()))
    }

    /// What is known of one file.
    pub fn layer_info(&self, layer: usize) -> Result<LayerInfo> {
        self.info_at(&self.snapshot.load_full(), layer)
    }

    /// The same at one moment: layers may come and go meanwhile.
    fn info_at(&self, snapshot: &Snapshot, layer: usize) -> Result<LayerInfo> {
        let image = layer_of(snapshot, layer)?;
        let items = image.items();
        let header = image.header();
        let locator = items.locator.as_ref().filter(|_| items.parameters.has_parent);
        Ok(LayerInfo {
            filename: image.name().to_path_buf(),
            format: "vhdx",
            disk_type: disk_type(&items),
            virtual_size: items.virtual_size,
            file_size: open::file_size(&image)?,
            actual_size: image.storage().allocated(),
            block_size: items.parameters.block_size,
            logical_sector_size: items.logical_sector_size,
            physical_sector_size: items.physical_sector_size,
            creator: image.creator().to_string(),
            virtual_disk_id: items.virtual_disk_id,
            file_write_guid: header.file_write_guid,
            data_write_guid: header.data_write_guid,
            dirty_flag: image.is_dirty(),
            log_size: header.log_length,
            parent_linkage: locator.and_then(|l| l.linkage()),
            parent_linkage2: locator.and_then(|l| l.linkage2()),
            parent_paths: locator.map(|l| l.paths()).unwrap_or_default(),
            full_backing_filename: snapshot.layers.get(layer + 1).map(|parent| parent.name().to_path_buf()),
        })
    }

    /// What is known of the chain.
    pub fn info(&self) -> Result<ChainInfo> {
        let snapshot = self.snapshot.load_full();
        Ok(ChainInfo {
            virtual_size: snapshot.leaf().virtual_size(),
            read_only: self.read_only,
            pending_merge: self.pending_merge.load(Ordering::Relaxed),
            layers: (0..snapshot.layers.len())
                .map(|layer| self.info_at(&snapshot, layer))
                .collect::<Result<_>>()?,
        })
    }

    /// Makes everything durable, empties the leaf's log, gives locks back. Reports the first failure; the file is then
    /// as after a power cut, with everything flushed in it.
    pub fn close(self) -> Result<()> {
        let _control = self.control.lock();
        let _gate = self.gate.write();
        self.snapshot.load().leaf().clean()
    }

    // ---- for operations ----

    pub(crate) fn layer(&self, layer: usize) -> Result<Arc<Image>> {
        layer_of(&self.snapshot.load(), layer)
    }

    pub(crate) fn current(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Continues on other layers. Requests in flight finish on the old ones.
    pub(crate) fn switch(&self, layers: Vec<Arc<Image>>) {
        self.snapshot.store(Arc::new(Snapshot::new(layers, &self.shared)));
    }

    /// The same layers with nothing remembered about them: they are about to change, or did. Whoever reads with what
    /// was remembered notices and reads again.
    pub(crate) fn refresh(&self) {
        self.switch(self.current().layers.clone());
        self.shared.reuse.announce();
    }

    /// Continues with another image of the same file.
    pub(crate) fn replace(&self, layer: usize, image: Arc<Image>) {
        let mut layers = self.current().layers.clone();
        layers[layer] = image;
        self.switch(layers);
    }

    pub(crate) fn gate(&self) -> &RwLock<Option<Arc<data::Watch>>> {
        &self.gate
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(crate) fn options(&self) -> &OpenOptions {
        &self.options
    }

    pub(crate) fn merge_is_done(&self) {
        self.pending_merge.store(false, Ordering::Relaxed);
    }

    /// From now until [`Chain::unwatch`], writes to the leaf are recorded.
    pub(crate) fn start_watch(&self) -> Arc<data::Watch> {
        let watch = Arc::new(data::Watch::new(self.current().leaf().geometry()));
        *self.gate.write() = Some(watch.clone());
        watch
    }

    pub(crate) fn unwatch(&self) {
        *self.gate.write() = None;
    }

    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, "the disk is open for reading only")
                .with_hint("open it without read-only, with its parents"));
        }
        Ok(())
    }
}

fn layer_of(snapshot: &Snapshot, layer: usize) -> Result<Arc<Image>> {
    snapshot.layers.get(layer).cloned().ok_or_else(|| {
        let count = snapshot.layers.len();
        let message = format!("there is no layer {layer}: the chain has {count}, 0 is the leaf");
        Error::new(ErrorKind::Argument, message)
    })
}

pub(crate) fn disk_type(items: &crate::format::metadata::DiskItems) -> DiskType {
    match (items.parameters.has_parent, items.parameters.leave_block_allocated) {
        (true, _) => DiskType::Differencing,
        (false, true) => DiskType::Fixed,
        (false, false) => DiskType::Dynamic,
    }
}

pub(crate) use data::Watch;
