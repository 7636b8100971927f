//! What a chain tells about itself.

use std::path::PathBuf;

use serde::Serialize;

use crate::guid::Guid;
use crate::options::DiskType;

/// What a range of a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExtentState {
    /// Bytes in a file.
    Data,
    /// Explicitly zero.
    Zero,
    /// Nobody provides it: reads as zeros (chain) or as the parent (one layer).
    Hole,
    /// Trimmed; reads as zeros.
    Unmapped,
    /// Undefined by the writer; reads as zeros.
    Undefined,
}

/// A range with one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// Virtual offset.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// State.
    pub state: ExtentState,
    /// The layer that decides it (0 = leaf); for a hole of the chain the base.
    pub layer: u32,
    /// Where the bytes are in that layer's file.
    pub file_offset: Option<u64>,
}

/// What a block status query is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The disk.
    Chain,
    /// One file: ranges it does not hold are `Hole`.
    Layer(usize),
}

/// What is efficient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Limits {
    /// Logical sector size.
    pub logical_sector_size: u32,
    /// Physical sector size.
    pub physical_sector_size: u32,
    /// Block size of the leaf.
    pub block_size: u32,
    /// Preferred request alignment and size.
    pub preferred: u32,
    /// Discards smaller or not aligned to this do nothing.
    pub discard_granularity: u32,
}

/// One file of a chain.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct LayerInfo {
    /// Path. In JSON, bytes that are not UTF-8 are replaced.
    #[serde(serialize_with = "crate::json::path")]
    pub filename: PathBuf,
    /// Always "vhdx".
    pub format: &'static str,
    /// Type.
    pub disk_type: DiskType,
    /// Virtual bytes.
    pub virtual_size: u64,
    /// Length of the file.
    pub file_size: u64,
    /// Bytes the file takes on its file system, where known.
    pub actual_size: Option<u64>,
    /// Block size.
    pub block_size: u32,
    /// Logical sector.
    pub logical_sector_size: u32,
    /// Physical sector.
    pub physical_sector_size: u32,
    /// Who wrote it.
    pub creator: String,
    /// SCSI page 83 identity.
    pub virtual_disk_id: Guid,
    /// Changes with every writable session.
    pub file_write_guid: Guid,
    /// Identity of the content.
    pub data_write_guid: Guid,
    /// The log holds updates that are not in place yet.
    pub dirty_flag: bool,
    /// Bytes of log.
    pub log_size: u32,
    /// The data write GUID its parent must have.
    pub parent_linkage: Option<Guid>,
    /// The other one accepted, during a merge.
    pub parent_linkage2: Option<Guid>,
    /// Locator entries other than the linkage, as stored.
    pub parent_paths: Vec<(String, String)>,
    /// The file found.
    #[serde(serialize_with = "crate::json::optional_path")]
    pub full_backing_filename: Option<PathBuf>,
}

/// A chain.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct ChainInfo {
    /// Bytes.
    pub virtual_size: u64,
    /// For reading only.
    pub read_only: bool,
    /// An interrupted merge was found.
    pub pending_merge: bool,
    /// Leaf first.
    pub layers: Vec<LayerInfo>,
}

/// What can be told from the first megabyte of one file.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Probe {
    /// Type.
    pub disk_type: DiskType,
    /// Virtual bytes.
    pub virtual_size: u64,
    /// Block size.
    pub block_size: u32,
    /// Logical sector.
    pub logical_sector_size: u32,
    /// Physical sector.
    pub physical_sector_size: u32,
    /// SCSI page 83 identity.
    pub virtual_disk_id: Guid,
    /// Identity of the content.
    pub data_write_guid: Guid,
    /// What its parent must have.
    pub parent_linkage: Option<Guid>,
    /// What else its parent may have: a merge was cut short.
    pub parent_linkage2: Option<Guid>,
    /// The log is dirty.
    pub dirty_flag: bool,
}
