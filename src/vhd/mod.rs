//! Legacy VHD and AVHD, the format before VHDX: reading fixed and dynamic disks and differencing chains, to migrate
//! them, and writing fixed and dynamic ones. Nothing existing is ever changed.
//!
//! ```text
//!   codec   bytes <-> checked values, pure        file    one file: what is where, checked before it is used
//!   mod     a chain of files as one disk          write   a new fixed or dynamic disk
//! ```

#[doc(hidden)]
pub mod codec;
pub(crate) mod file;
pub(crate) mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::chain::search::{directory, Format, Located, Search};
use crate::chain::{open, paths};
use crate::error::{Error, ErrorKind, IoContext, PathContext, Result};
use crate::guid::Guid;
use crate::limits;
use crate::options::{DiskType, OpenOptions, ParentQuery};
use crate::storage::{Access, LockMode, Storage};
use crate::trace;

use file::{Source, VhdFile, ABSOLUTE, RELATIVE};

static VHD: Format = Format {
    name: "VHD",
    identity_name: "UniqueId",
    is: file::is_vhd,
    identity: file::identity,
};

/// A VHD and its parents, open for reading.
#[derive(Debug)]
pub struct VhdChain {
    layers: Vec<VhdFile>,
}

/// One file of a chain.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct VhdInfo {
    /// Path. In JSON, bytes that are not UTF-8 are replaced.
    pub filename: String,
    /// Always "vhd".
    pub format: &'static str,
    /// Type.
    pub disk_type: DiskType,
    /// Virtual bytes.
    pub virtual_size: u64,
    /// Length of the file.
    pub file_size: u64,
    /// Bytes of a block; `None` for a fixed disk.
    pub block_size: Option<u32>,
    /// Blocks that have a place in the file.
    pub allocated_blocks: u64,
    /// Who wrote it.
    pub creator: String,
    /// Identity.
    pub unique_id: Guid,
    /// The identity its parent must have.
    pub parent_unique_id: Option<Guid>,
    /// Where its parent was, as stored.
    pub parent_paths: Vec<(String, String)>,
}

/// Whether the file at `path` is a VHD.
pub fn is_vhd(path: &Path, options: &OpenOptions) -> Result<bool> {
    Ok(file::is_vhd(&*open::storage(path, Access::Read, options)?))
}

impl VhdChain {
    /// Opens the file at `path` and, unless `parents` is off, its parents; all for reading, and locked against writers.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<VhdChain> {
        let storage = open::storage(path, Access::Read, options)?;
        let mut layers = vec![one(storage, path, options, 0)?];
        while let Some(parent) = parent(&layers, options)? {
            layers.push(parent);
        }
        Ok(VhdChain { layers })
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.layers.first().map_or(0, VhdFile::size)
    }

    /// Number of files.
    pub fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// The path by which a layer was opened; 0 = leaf.
    pub fn layer_path(&self, layer: usize) -> Option<PathBuf> {
        self.layers.get(layer).map(|file| file.name().to_path_buf())
    }

    /// What is known of each file, leaf first.
    pub fn info(&self) -> Result<Vec<VhdInfo>> {
        self.layers.iter().map(info).collect()
    }

    /// Reads the disk. Any alignment; a range that leaves the disk is `Range`.
    pub fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read_layer(0, buf, offset)
    }

    /// Reads the disk as of a layer; a range that leaves that layer is `Range`.
    pub fn read_layer(&self, layer: usize, buf: &mut [u8], offset: u64) -> Result<()> {
        let size = self.layers.get(layer).map_or(0, VhdFile::size);
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= size);
        let Some(end) = end else {
            let message = format!("{} bytes at offset {offset} are not all inside the disk", buf.len());
            return Err(Error::new(ErrorKind::Range, message).with_offset(offset));
        };
        let (mut at, mut rest) = (offset, buf);
        while at < end {
            let sector = at - at % codec::SECTOR;
            let (len, place) = self.lookup(layer, sector, end - sector)?;
            let len = (len - (at - sector)).min(end - at);
            let (part, later) = rest.split_at_mut(len as usize);
            match place {
                None => part.fill(0),
                Some((layer, from)) => self.read_place(layer, part, from + (at - sector))?,
            }
            (at, rest) = (at + len, later);
        }
        Ok(())
    }

    /// The identity of the virtual disk: that of its base, since every VHD of a chain has its own.
    pub(crate) fn disk_id(&self) -> Guid {
        let id = self.layers.last().map_or(Guid::ZERO, |base| base.footer().unique_id);
        if id.is_zero() {
            Guid::random()
        } else {
            id
        }
    }

    pub(crate) fn layers(&self) -> &[VhdFile] {
        &self.layers
    }

    /// Who holds the bytes at `offset`, a multiple of 512, as seen from `layer`, and how many of `max` they are; `None`
    /// is zeros.
    pub(crate) fn lookup(&self, layer: usize, offset: u64, max: u64) -> Result<(u64, Option<(usize, u64)>)> {
        let mut len = max;
        for (index, file) in self.layers.iter().enumerate().skip(layer) {
            if offset >= file.size() {
                // A parent shorter than its child.
                return Ok((len, None));
            }
            let (found, source) = file.lookup(offset, len).at(file.name())?;
            len = found;
            match source {
                Source::Data(at) => return Ok((len, Some((index, at)))),
                Source::Zero => return Ok((len, None)),
                Source::Transparent => {}
            }
        }
        Ok((len, None))
    }

    pub(crate) fn read_place(&self, layer: usize, buf: &mut [u8], file_offset: u64) -> Result<()> {
        let Some(file) = self.layers.get(layer) else {
            return Err(Error::new(ErrorKind::Argument, format!("there is no layer {layer}")));
        };
        file.storage()
            .read_at(buf, file_offset)
            .context(|| format!("read {} bytes at file offset {file_offset:#x}", buf.len()))
            .at(file.name())
            .map_err(|e| e.with_layer(layer))
    }
}

fn one(storage: Arc<dyn Storage>, path: &Path, options: &OpenOptions, layer: usize) -> Result<VhdFile> {
    open::lock(&*storage, LockMode::Read, options)
        .and_then(|()| VhdFile::open(storage, path))
        .at(path)
        .map_err(|e| e.with_layer(layer))
}

/// The parent of the last layer, if it has one.
fn parent(layers: &[VhdFile], options: &OpenOptions) -> Result<Option<VhdFile>> {
    let Some(child) = layers.last().filter(|leaf| leaf.is_differencing() && options.parents) else {
        return Ok(None);
    };
    if layers.len() >= options.max_depth.clamp(1, limits::MAX_CHAIN_DEPTH) {
        let message = format!("the chain is deeper than {} files", layers.len());
        return Err(Error::new(ErrorKind::ChainLoop, message)
            .with_path(child.name())
            .with_hint("raise max-depth (at most 256)"));
    }
    let Located { path, storage } = locate(child, options).map_err(|e| e.with_layer(layers.len() - 1))?;
    let id = storage.id();
    if let Some(same) = layers.iter().find(|l| id.is_some() && l.storage().id() == id) {
        let message = format!("the chain returns to {:?}", same.name());
        return Err(Error::new(ErrorKind::ChainLoop, message)
            .with_path(&path)
            .with_hint("a file names itself, or a child of its own, as its parent"));
    }
    let parent = one(storage, &path, options, layers.len())?;
    let stamp = child.header().map_or(0, |header| header.parent_timestamp);
    if stamp != 0 && stamp != parent.footer().timestamp {
        // UniqueId does not change when a disk is written, so this is all there is to notice it by.
        trace::warn(|| {
            format!("{path:?}: another timestamp than its child recorded: it may have been written to since")
        });
    }
    Ok(Some(parent))
}

/// The paths a file records for its parent, by the name of the field.
fn recorded(file: &VhdFile) -> Vec<(String, String)> {
    let mut paths: Vec<_> = [("W2ru", RELATIVE), ("W2ku", ABSOLUTE)]
        .into_iter()
        .filter_map(|(name, code)| file.path(code).map(|text| (name.to_string(), text.to_string())))
        .collect();
    if let Some(header) = file.header().filter(|header| !header.parent_name.is_empty()) {
        paths.push(("ParentUnicodeName".into(), header.parent_name.clone()));
    }
    paths
}

/// Finds the parent: the caller's resolver; the relative and the absolute path; then by the names of all three fields,
/// and then by identity, in the child's directory and in `search`.
fn locate(child: &VhdFile, options: &OpenOptions) -> Result<Located> {
    let wanted = child.header().map_or(Guid::ZERO, |header| header.parent_id);
    let entries = recorded(child);
    let accepts = |identity| identity == wanted && !wanted.is_zero();
    let mut search = Search::new(options, &VHD, &accepts);
    let child_dir = directory(child.name());
    if let Some(resolver) = &options.resolver {
        let query = ParentQuery {
            child: child.name().to_path_buf(),
            linkage: wanted,
            entries: entries.clone(),
        };
        if let Some(found) = resolver(&query).and_then(|path| search.try_path("resolver", &path)) {
            return Ok(found);
        }
    }
    let mut names: Vec<String> = Vec::new();
    for (key, text) in &entries {
        let host = match key.as_str() {
            "W2ru" => Some(paths::relative_to_host(text, &child_dir)),
            "W2ku" => Some(paths::absolute_to_host(text, &options.drive_map)),
            // Only a name to look for, though Windows stores a path.
            _ => {
                search.note(key, text, "looked for by its name");
                None
            }
        };
        match host {
            None => {}
            Some(Err(why)) => search.note(key, text, why),
            Some(Ok(path)) => {
                if let Some(found) = search.try_path(&format!("{key} {text:?}, that is"), &path) {
                    return Ok(found);
                }
            }
        }
        if let Some(name) = paths::file_name(text).filter(|name| !names.iter().any(|n| n == name)) {
            names.push(name.to_string());
        }
    }
    search
        .in_directories(&child_dir, &names)
        .ok_or_else(|| search.not_found(child.name(), &wanted.to_string()))
}

fn info(file: &VhdFile) -> Result<VhdInfo> {
    let footer = file.footer();
    let header = file.header();
    Ok(VhdInfo {
        filename: file.name().to_string_lossy().into_owned(),
        format: "vhd",
        disk_type: footer.disk_type,
        virtual_size: footer.current_size,
        file_size: file
            .storage()
            .len()
            .context(|| "get the file length".into())
            .at(file.name())?,
        block_size: header.map(|header| header.block_size),
        allocated_blocks: file.allocated_blocks(),
        creator: footer.creator_text(),
        unique_id: footer.unique_id,
        parent_unique_id: header.filter(|_| file.is_differencing()).map(|header| header.parent_id),
        parent_paths: recorded(file),
    })
}
