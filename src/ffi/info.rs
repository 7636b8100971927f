//! Information
//!
//! Structures the library fills begin with struct_size: initialise them with the macro that follows each. The library
//! writes no more than that many bytes and zeros what it does not know. GUIDs are 16 bytes as stored in the file.

use std::ffi::{c_char, c_int};
use std::os::unix::ffi::OsStrExt;

use super::disk::{avhdx_disk, on_disk};
use super::error::c_string;
use super::guard::{guard, path, Out, Output};
use crate::chain::{Chain, LayerInfo};
use crate::error::{Error, ErrorKind, Result};
use crate::guid::Guid;
use crate::options::{DiskType, OpenOptions};

/// Type: every block has its place in the file from the start.
pub const AVHDX_TYPE_FIXED: u32 = 1;
/// Type: blocks are allocated when first written.
pub const AVHDX_TYPE_DYNAMIC: u32 = 2;
/// Type: holds what changed since its parent.
pub const AVHDX_TYPE_DIFFERENCING: u32 = 3;

/// Flag of information: the log holds updates that are not in place yet.
pub const AVHDX_INFO_DIRTY_LOG: u32 = 0x1;
/// Flag of information: writes are refused.
pub const AVHDX_INFO_READ_ONLY: u32 = 0x2;
/// Flag of information: an interrupted merge was found; avhdx_resume finishes it.
pub const AVHDX_INFO_PENDING_MERGE: u32 = 0x4;
/// Flag of information: the file has a parent; parent_linkage is set.
pub const AVHDX_INFO_HAS_PARENT: u32 = 0x8;

/// What one file says about itself. Since 1.0.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct avhdx_probe {
    /// Set by AVHDX_PROBE_INIT.
    pub struct_size: u32,
    /// AVHDX_TYPE_...
    pub r#type: u32,
    /// Bytes of the virtual disk.
    pub virtual_size: u64,
    /// Bytes of a payload block.
    pub block_size: u32,
    /// 512 or 4096.
    pub logical_sector_size: u32,
    /// 512 or 4096.
    pub physical_sector_size: u32,
    /// AVHDX_INFO_DIRTY_LOG, AVHDX_INFO_HAS_PARENT.
    pub flags: u32,
    /// SCSI page 83 identity, the same through a chain.
    pub virtual_disk_id: [u8; 16],
    /// Identity of the content: what a child records of its parent.
    pub data_write_guid: [u8; 16],
    /// The data write GUID its parent must have; zeros without a parent.
    pub parent_linkage: [u8; 16],
    /// Another one that its parent may have, after a merge was cut short; else zeros.
    pub parent_linkage2: [u8; 16],
}
// SAFETY: begins with a u32 and holds integers only.
unsafe impl Output for avhdx_probe {}

/// What is efficient. Since 1.0.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct avhdx_limits {
    /// Set by AVHDX_LIMITS_INIT.
    pub struct_size: u32,
    /// 512 or 4096: what a guest should see. Requests of any alignment work.
    pub logical_sector_size: u32,
    /// 512 or 4096.
    pub physical_sector_size: u32,
    /// Bytes of a payload block of the leaf.
    pub block_size: u32,
    /// Requests aligned to this many bytes are the cheapest.
    pub preferred: u32,
    /// Discards give back space in units of this many bytes.
    pub discard_granularity: u32,
}
// SAFETY: begins with a u32 and holds integers only.
unsafe impl Output for avhdx_limits {}

/// A disk: the chain as one. Since 1.0.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct avhdx_info {
    /// Set by AVHDX_INFO_INIT.
    pub struct_size: u32,
    /// AVHDX_TYPE_... of the leaf.
    pub r#type: u32,
    /// Bytes of the virtual disk.
    pub virtual_size: u64,
    /// Lengths of all files together, in bytes.
    pub file_size: u64,
    /// Bytes all files take on their file systems; as file_size for those that do not tell.
    pub actual_size: u64,
    /// Number of layers.
    pub layer_count: u32,
    /// Bytes of a payload block of the leaf.
    pub block_size: u32,
    /// 512 or 4096.
    pub logical_sector_size: u32,
    /// 512 or 4096.
    pub physical_sector_size: u32,
    /// AVHDX_INFO_...
    pub flags: u32,
    /// 0.
    pub reserved: u32,
    /// SCSI page 83 identity.
    pub virtual_disk_id: [u8; 16],
}
// SAFETY: begins with a u32 and holds integers only.
unsafe impl Output for avhdx_info {}

/// One file of a chain. Since 1.0.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct avhdx_layer_info {
    /// Set by AVHDX_LAYER_INFO_INIT.
    pub struct_size: u32,
    /// AVHDX_TYPE_...
    pub r#type: u32,
    /// Bytes of the virtual disk as of this layer.
    pub virtual_size: u64,
    /// Length of the file in bytes.
    pub file_size: u64,
    /// Bytes it takes on its file system; as file_size where that does not tell.
    pub actual_size: u64,
    /// Bytes of a payload block.
    pub block_size: u32,
    /// 512 or 4096.
    pub logical_sector_size: u32,
    /// 512 or 4096.
    pub physical_sector_size: u32,
    /// Bytes of log.
    pub log_size: u32,
    /// AVHDX_INFO_DIRTY_LOG, AVHDX_INFO_HAS_PARENT.
    pub flags: u32,
    /// 0.
    pub reserved: u32,
    /// SCSI page 83 identity.
    pub virtual_disk_id: [u8; 16],
    /// Changes with every session that writes.
    pub file_write_guid: [u8; 16],
    /// Identity of the content.
    pub data_write_guid: [u8; 16],
    /// The data write GUID its parent must have; zeros without a parent.
    pub parent_linkage: [u8; 16],
    /// The other one accepted while a merge runs; else zeros.
    pub parent_linkage2: [u8; 16],
}
// SAFETY: begins with a u32 and holds integers only.
unsafe impl Output for avhdx_layer_info {}

fn type_number(disk_type: DiskType) -> u32 {
    match disk_type {
        DiskType::Fixed => AVHDX_TYPE_FIXED,
        DiskType::Dynamic => AVHDX_TYPE_DYNAMIC,
        DiskType::Differencing => AVHDX_TYPE_DIFFERENCING,
    }
}

fn stored(guid: Option<Guid>) -> [u8; 16] {
    guid.unwrap_or(Guid::ZERO).to_stored()
}

fn flag(is_set: bool, bit: u32) -> u32 {
    match is_set {
        true => bit,
        false => 0,
    }
}

/// Tells what the file at path is. Reads less than 1 MiB and the log if that is dirty, opens no parent, takes no lock,
/// writes nothing. Errors: NOT_VHDX, UNSUPPORTED, CORRUPT, CHECKSUM, TRUNCATED, IO.
/// path, probe: not NULL. Any thread. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described.
#[no_mangle]
pub unsafe extern "C" fn avhdx_probe(path: *const c_char, probe: *mut avhdx_probe) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `path`.
        let path = unsafe { self::path(path, "path") }?;
        // SAFETY: the caller's promise is that of `Out::new`.
        let out = unsafe { Out::new(probe, "probe") }?;
        let found = Chain::probe(&path, &OpenOptions::read_only())?;
        out.set(avhdx_probe {
            struct_size: 0,
            r#type: type_number(found.disk_type),
            virtual_size: found.virtual_size,
            block_size: found.block_size,
            logical_sector_size: found.logical_sector_size,
            physical_sector_size: found.physical_sector_size,
            flags: flag(found.dirty_flag, AVHDX_INFO_DIRTY_LOG)
                | flag(found.parent_linkage.is_some(), AVHDX_INFO_HAS_PARENT),
            virtual_disk_id: found.virtual_disk_id.to_stored(),
            data_write_guid: found.data_write_guid.to_stored(),
            parent_linkage: stored(found.parent_linkage),
            parent_linkage2: stored(found.parent_linkage2),
        });
        Ok(0)
    })
}

/// The size of the virtual disk in bytes, or a negative errno. disk: not NULL. Concurrent on one disk. Since 1.0.
///
/// # Safety
/// `disk` is NULL or open, and not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_get_size(disk: *mut avhdx_disk) -> i64 {
    guard(|| {
        // SAFETY: the caller's promise is that of `on_disk`.
        let size = unsafe { on_disk(disk, |disk| Ok(disk.chain.size())) }?;
        i64::try_from(size).map_err(|_| Error::new(ErrorKind::Bug, format!("a disk of {size} bytes")))
    })
}

/// Fills limits. disk, limits: not NULL. Concurrent on one disk. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_get_limits(disk: *mut avhdx_disk, limits: *mut avhdx_limits) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `Out::new`.
        let out = unsafe { Out::new(limits, "limits") }?;
        // SAFETY: the caller's promise is that of `on_disk`.
        let limits = unsafe { on_disk(disk, |disk| Ok(disk.chain.limits())) }?;
        out.set(avhdx_limits {
            struct_size: 0,
            logical_sector_size: limits.logical_sector_size,
            physical_sector_size: limits.physical_sector_size,
            block_size: limits.block_size,
            preferred: limits.preferred,
            discard_granularity: limits.discard_granularity,
        });
        Ok(0)
    })
}

/// Fills info. disk, info: not NULL. Concurrent on one disk. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_get_info(disk: *mut avhdx_disk, info: *mut avhdx_info) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `Out::new`.
        let out = unsafe { Out::new(info, "info") }?;
        // SAFETY: the caller's promise is that of `on_disk`.
        let chain = unsafe { on_disk(disk, |disk| disk.chain.info()) }?;
        let leaf = chain
            .layers
            .first()
            .ok_or_else(|| Error::new(ErrorKind::Bug, "a chain without layers"))?;
        let actual = |layer: &LayerInfo| layer.actual_size.unwrap_or(layer.file_size);
        out.set(avhdx_info {
            struct_size: 0,
            r#type: type_number(leaf.disk_type),
            virtual_size: chain.virtual_size,
            file_size: chain
                .layers
                .iter()
                .map(|layer| layer.file_size)
                .fold(0, u64::saturating_add),
            actual_size: chain.layers.iter().map(actual).fold(0, u64::saturating_add),
            layer_count: u32::try_from(chain.layers.len()).unwrap_or(u32::MAX),
            block_size: leaf.block_size,
            logical_sector_size: leaf.logical_sector_size,
            physical_sector_size: leaf.physical_sector_size,
            flags: flag(leaf.dirty_flag, AVHDX_INFO_DIRTY_LOG)
                | flag(chain.read_only, AVHDX_INFO_READ_ONLY)
                | flag(chain.pending_merge, AVHDX_INFO_PENDING_MERGE)
                | flag(leaf.parent_linkage.is_some(), AVHDX_INFO_HAS_PARENT),
            reserved: 0,
            virtual_disk_id: leaf.virtual_disk_id.to_stored(),
        });
        Ok(0)
    })
}

/// The number of layers, at least 1. disk: not NULL. Concurrent on one disk. Since 1.0.
///
/// # Safety
/// `disk` is NULL or open, and not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_layer_count(disk: *mut avhdx_disk) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `on_disk`.
        let count = unsafe { on_disk(disk, |disk| Ok(disk.chain.layer_count())) }?;
        c_int::try_from(count).map_err(|_| Error::new(ErrorKind::Bug, format!("a chain of {count} layers")))
    })
}

/// Fills info for one layer. Errors: ARGUMENT when there is no such layer. disk, info: not NULL.
/// Concurrent on one disk. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_layer_info(disk: *mut avhdx_disk, layer: u32, info: *mut avhdx_layer_info) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `Out::new`.
        let out = unsafe { Out::new(info, "info") }?;
        // SAFETY: the caller's promise is that of `on_disk`.
        let layer = unsafe { on_disk(disk, |disk| disk.chain.layer_info(layer as usize)) }?;
        out.set(avhdx_layer_info {
            struct_size: 0,
            r#type: type_number(layer.disk_type),
            virtual_size: layer.virtual_size,
            file_size: layer.file_size,
            actual_size: layer.actual_size.unwrap_or(layer.file_size),
            block_size: layer.block_size,
            logical_sector_size: layer.logical_sector_size,
            physical_sector_size: layer.physical_sector_size,
            log_size: layer.log_size,
            flags: flag(layer.dirty_flag, AVHDX_INFO_DIRTY_LOG)
                | flag(layer.parent_linkage.is_some(), AVHDX_INFO_HAS_PARENT),
            reserved: 0,
            virtual_disk_id: layer.virtual_disk_id.to_stored(),
            file_write_guid: layer.file_write_guid.to_stored(),
            data_write_guid: layer.data_write_guid.to_stored(),
            parent_linkage: stored(layer.parent_linkage),
            parent_linkage2: stored(layer.parent_linkage2),
        });
        Ok(0)
    })
}

/// The path by which a layer was opened, as bytes. It lives until the disk is closed. NULL, ARGUMENT when there is no
/// such layer. disk: not NULL. Concurrent on one disk. Since 1.0.
///
/// # Safety
/// `disk` is NULL or open, and not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_layer_path(disk: *mut avhdx_disk, layer: u32) -> *const c_char {
    guard(|| {
        let find = |disk: &avhdx_disk| {
            let path = c_string(disk.chain.layer_path(layer as usize)?.as_os_str().as_bytes());
            let mut names = disk.names.lock();
            if let Some(known) = names.iter().find(|known| **known == path) {
                return Ok(known.as_ptr());
            }
            // The bytes stay where they are when the list grows.
            let place = path.as_ptr();
            names.push(path);
            Ok(place)
        };
        // SAFETY: the caller's promise is that of `on_disk`.
        unsafe { on_disk(disk, find) }
    })
}

/// The descriptor of a layer's file, for a caller that does its own I/O at the file offsets of avhdx_block_status. It
/// belongs to the disk: do not close it, and do not use it after a merge of that layer or after avhdx_close. With
/// cache=none it has O_DIRECT, whose requests must be aligned.
/// Errors: UNSUPPORTED where there is none, or where the file must not be read by itself because its log is dirty;
/// ARGUMENT when there is no such layer. disk: not NULL. Concurrent on one disk. Since 1.0.
///
/// # Safety
/// `disk` is NULL or open, and not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_layer_fd(disk: *mut avhdx_disk, layer: u32) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `on_disk`.
        let fd = unsafe { on_disk(disk, |disk| disk.chain.layer_fd(layer as usize)) }?;
        fd.ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                format!("layer {layer} has no descriptor to give out"),
            )
            .with_hint("read through avhdx_layer_pread")
        })
    })
}

/// Everything known of the disk and its layers, as JSON; keys that qemu-img has mean the same. Paths that are not
/// UTF-8 are shown with replacement characters. Free it with avhdx_free; NULL on failure. disk: not NULL. Concurrent
/// on one disk. Since 1.0.
///
/// # Safety
/// `disk` is NULL or open, and not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_info_json(disk: *mut avhdx_disk) -> *mut c_char {
    guard(|| {
        // SAFETY: the caller's promise is that of `on_disk`.
        let json = unsafe { on_disk(disk, |disk| json(&disk.chain)) }?;
        super::owned_string(&json)
    })
}

fn json(chain: &Chain) -> Result<String> {
    serde_json::to_string(&chain.info()?)
        .map_err(|cause| Error::new(ErrorKind::Bug, "the information has no JSON form").with_source(cause))
}
