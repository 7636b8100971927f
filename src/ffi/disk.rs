//! Opening, closing, information.

use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, CString};
use std::fs::File;
use std::os::fd::FromRawFd;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::args::{c_path, c_string, clear, give, null, path, put_struct, required};
use super::opts::{allocate, avhdx_opts, settings};
use super::{bug, guard, status};
use crate::chain::{Chain, LayerInfo};
use crate::error::{Error, ErrorKind, Result};
use crate::guid::Guid;
use crate::options::DiskType;
use crate::storage::{FileStorage, Storage};

/// An open disk: a file and its parents. Any number of threads may use one at once; close comes last.
pub struct avhdx_disk {
    pub(super) chain: Chain,
    /// A defect of ours was caught; only closing is left.
    broken: AtomicBool,
    /// Strings handed out, which live as long as this.
    paths: Mutex<BTreeMap<PathBuf, CString>>,
}

/// What avhdx_probe() tells.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct avhdx_probe {
    /// Bytes of this struct: AVHDX_PROBE_INIT.
    pub struct_size: u32,
    /// One of AVHDX_TYPE_*.
    pub disk_type: u32,
    /// Bytes of the disk.
    pub virtual_size: u64,
    /// Bytes of a payload block.
    pub block_size: u32,
    /// 512 or 4096.
    pub logical_sector_size: u32,
    /// 512 or 4096.
    pub physical_sector_size: u32,
    /// AVHDX_INFO_DIRTY.
    pub flags: u32,
    /// SCSI identifier, in the order of its text.
    pub virtual_disk_id: [u8; 16],
    /// Identity of the content.
    pub data_write_guid: [u8; 16],
    /// Identity its parent must have; zero if it has none.
    pub parent_linkage: [u8; 16],
}

/// What is efficient.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct avhdx_limits {
    /// Bytes of this struct: AVHDX_LIMITS_INIT.
    pub struct_size: u32,
    /// 512 or 4096: writes of whole sectors need no reading.
    pub logical_sector_size: u32,
    /// 512 or 4096.
    pub physical_sector_size: u32,
    /// Bytes of a payload block of the leaf.
    pub block_size: u32,
    /// Preferred alignment and size of requests, in bytes.
    pub preferred: u32,
    /// Discards of less, or not aligned to this, leave the ends alone.
    pub discard_granularity: u32,
}

/// A chain.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct avhdx_info {
    /// Bytes of this struct: AVHDX_INFO_INIT.
    pub struct_size: u32,
    /// Number of files.
    pub layer_count: u32,
    /// Bytes of the disk.
    pub virtual_size: u64,
    /// Bytes of a payload block of the leaf.
    pub block_size: u32,
    /// 512 or 4096.
    pub logical_sector_size: u32,
    /// 512 or 4096.
    pub physical_sector_size: u32,
    /// AVHDX_INFO_READ_ONLY, AVHDX_INFO_PENDING_MERGE, AVHDX_INFO_DIRTY.
    pub flags: u32,
    /// Type of the leaf: one of AVHDX_TYPE_*.
    pub disk_type: u32,
    /// 0.
    pub reserved: u32,
    /// SCSI identifier, in the order of its text.
    pub virtual_disk_id: [u8; 16],
}

/// One file of a chain.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct avhdx_layer_info {
    /// Bytes of this struct: AVHDX_LAYER_INFO_INIT.
    pub struct_size: u32,
    /// One of AVHDX_TYPE_*.
    pub disk_type: u32,
    /// Bytes of the disk as of this layer.
    pub virtual_size: u64,
    /// Bytes of the file.
    pub file_size: u64,
    /// Bytes the file takes on its file system; 0 if not known.
    pub actual_size: u64,
    /// Bytes of a payload block.
    pub block_size: u32,
    /// 512 or 4096.
    pub logical_sector_size: u32,
    /// 512 or 4096.
    pub physical_sector_size: u32,
    /// AVHDX_INFO_DIRTY.
    pub flags: u32,
    /// Bytes of log.
    pub log_size: u32,
    /// 0.
    pub reserved: u32,
    /// SCSI identifier, in the order of its text.
    pub virtual_disk_id: [u8; 16],
    /// Changes with every open that writes.
    pub file_write_guid: [u8; 16],
    /// Identity of the content.
    pub data_write_guid: [u8; 16],
    /// Identity its parent must have; zero if it has none.
    pub parent_linkage: [u8; 16],
    /// The other one, during a merge; zero if there is none.
    pub parent_linkage2: [u8; 16],
}

const READ_ONLY: u32 = 1;
const PENDING_MERGE: u32 = 2;
const DIRTY: u32 = 4;

pub(super) fn disk_type(kind: DiskType) -> u32 {
    match kind {
        DiskType::Fixed => 2,
        DiskType::Dynamic => 3,
        DiskType::Differencing => 4,
    }
}

fn guid_text_order(guid: Guid) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h, rest @ ..] = guid.to_stored();
    let mut out = [d, c, b, a, f, e, h, g, 0, 0, 0, 0, 0, 0, 0, 0];
    out[8..].copy_from_slice(&rest);
    out
}

/// Runs a function of a disk. A defect caught here leaves a disk that can only be closed.
pub(super) fn with_disk(d: *const avhdx_disk, body: impl FnOnce(&Chain) -> Result<i64>) -> i64 {
    guard(|| {
        let disk = required(d, "d")?;
        if disk.broken.load(Ordering::Acquire) {
            return Err(Error::new(
                ErrorKind::Bug,
                "the disk cannot be used since a defect of libavhdx was caught",
            )
            .with_hint("close it with avhdx_abort() and open it again"));
        }
        catch_unwind(AssertUnwindSafe(|| body(&disk.chain))).unwrap_or_else(|panic| {
            disk.broken.store(true, Ordering::Release);
            Err(bug(&*panic))
        })
    })
}

fn open(d: *mut *mut avhdx_disk, open: impl FnOnce() -> Result<Chain>) -> c_int {
    status(|| {
        clear(d, "d")?;
        let chain = open()?;
        give(
            d,
            avhdx_disk {
                chain,
                broken: AtomicBool::new(false),
                paths: Mutex::default(),
            },
        );
        Ok(())
    })
}

/// Tells what one file says about itself. Takes no lock, opens no parent, writes nothing, reads little.
/// Errors: NOT_VHDX, CORRUPT and its kin, IO. Any thread.
#[no_mangle]
pub unsafe extern "C" fn avhdx_probe(file: *const c_char, out: *mut avhdx_probe) -> c_int {
    status(|| {
        let probe = Chain::probe(&path(file, "file")?, &settings(std::ptr::null()).open)?;
        let value = avhdx_probe {
            struct_size: 0,
            disk_type: disk_type(probe.disk_type),
            virtual_size: probe.virtual_size,
            block_size: probe.block_size,
            logical_sector_size: probe.logical_sector_size,
            physical_sector_size: probe.physical_sector_size,
            flags: if probe.dirty_flag { DIRTY } else { 0 },
            virtual_disk_id: guid_text_order(probe.virtual_disk_id),
            data_write_guid: guid_text_order(probe.data_write_guid),
            parent_linkage: guid_text_order(probe.parent_linkage.unwrap_or(Guid::ZERO)),
        };
        put_struct(out, value, "out")
    })
}

/// Opens a file and its parents. Unless read-only is set, the file is locked against other programs and its log, if
/// dirty, replayed; nothing else is written before the first change. Parents are opened for reading only.
/// Errors: NOT_VHDX, CORRUPT and its kin, PARENT_*, CHAIN_LOOP, LOCKED, IO. *d is NULL after a failure. Any thread.
#[no_mangle]
pub unsafe extern "C" fn avhdx_open(d: *mut *mut avhdx_disk, file: *const c_char, o: *const avhdx_opts) -> c_int {
    open(d, || Chain::open(&path(file, "file")?, &settings(o).open))
}

/// Opens exactly these n files, leaf first. Each must be the parent of the one before it; ignore-id-mismatch lifts that.
#[no_mangle]
pub unsafe extern "C" fn avhdx_open_chain(
    d: *mut *mut avhdx_disk,
    files: *const *const c_char,
    n: usize,
    o: *const avhdx_opts,
) -> c_int {
    open(d, || {
        if files.is_null() {
            return Err(null("files"));
        }
        if n > crate::limits::MAX_CHAIN_DEPTH {
            return Err(Error::new(
                ErrorKind::ChainLoop,
                format!("a chain of {n} files; at most 256"),
            ));
        }
        // SAFETY: not NULL, a bounded count; the header asks for n strings.
        let files = unsafe { std::slice::from_raw_parts(files, n) };
        let paths = files
            .iter()
            .map(|&file| path(file, "files[]"))
            .collect::<Result<Vec<_>>>()?;
        Chain::open_layers(&paths, &settings(o).open)
    })
}

/// Opens a file that is already open. The descriptor belongs to the library from here on, also after a failure. name
/// is its path, for messages and for finding its parents.
#[no_mangle]
pub unsafe extern "C" fn avhdx_open_fd(
    d: *mut *mut avhdx_disk,
    fd: c_int,
    name: *const c_char,
    o: *const avhdx_opts,
) -> c_int {
    if fd < 0 {
        return open(d, || Err(Error::new(ErrorKind::Argument, format!("fd is {fd}"))));
    }
    // SAFETY: the header says that the descriptor is open and given away.
    let file = unsafe { File::from_raw_fd(fd) };
    open(d, || {
        let storage = FileStorage::from_file(file).map_err(|e| {
            Error::io("use the descriptor", e).with_hint("a disk image is a regular file or a block device")
        })?;
        Chain::open_storage(
            storage as std::sync::Arc<dyn Storage>,
            &path(name, "name")?,
            &settings(o).open,
        )
    })
}

/// Makes durable everything that was completed before the call, by any thread: it survives a power cut.
/// Errors: IO and NO_SPACE from the storage, after which the disk is POISONED: writes fail, reads go on, and opening the
/// file again finds everything that was flushed before. Concurrent.
#[no_mangle]
pub unsafe extern "C" fn avhdx_flush(d: *mut avhdx_disk) -> c_int {
    with_disk(d, |chain| chain.flush().map(|()| 0)) as c_int
}

/// Makes everything durable, empties the log, gives locks back, and frees the disk, also when it reports a failure: the
/// file is then as after a power cut. NULL is allowed. Nobody else may use the disk at that time or later.
#[no_mangle]
pub unsafe extern "C" fn avhdx_close(d: *mut avhdx_disk) -> c_int {
    status(|| {
        if d.is_null() {
            return Ok(());
        }
        // SAFETY: not NULL; the header asks for a disk of this library, closed once.
        let disk = unsafe { Box::from_raw(d) };
        match disk.broken.load(Ordering::Acquire) {
            true => Err(Error::new(
                ErrorKind::Bug,
                "the disk was closed without writing anything more",
            )),
            false => disk.chain.close(),
        }
    })
}

/// Frees the disk writing nothing more, as in a power cut: what was not flushed may be lost. NULL is allowed.
#[no_mangle]
pub unsafe extern "C" fn avhdx_abort(d: *mut avhdx_disk) {
    status(|| {
        if !d.is_null() {
            // SAFETY: not NULL; the header asks for a disk of this library, closed once.
            drop(unsafe { Box::from_raw(d) });
        }
        Ok(())
    });
}

/// Bytes of the disk, or a negative errno. Concurrent.
#[no_mangle]
pub unsafe extern "C" fn avhdx_get_size(d: *const avhdx_disk) -> i64 {
    with_disk(d, |chain| Ok(chain.size() as i64))
}

/// Tells what is efficient. Concurrent.
#[no_mangle]
pub unsafe extern "C" fn avhdx_get_limits(d: *const avhdx_disk, out: *mut avhdx_limits) -> c_int {
    with_disk(d, |chain| {
        let limits = chain.limits();
        let value = avhdx_limits {
            struct_size: 0,
            logical_sector_size: limits.logical_sector_size,
            physical_sector_size: limits.physical_sector_size,
            block_size: limits.block_size,
            preferred: limits.preferred,
            discard_granularity: limits.discard_granularity,
        };
        put_struct(out, value, "out").map(|()| 0)
    }) as c_int
}

/// Tells about the chain. Concurrent.
#[no_mangle]
pub unsafe extern "C" fn avhdx_get_info(d: *const avhdx_disk, out: *mut avhdx_info) -> c_int {
    with_disk(d, |chain| {
        let info = chain.info()?;
        let leaf = info
            .layers
            .first()
            .ok_or_else(|| Error::new(ErrorKind::Bug, "a chain without layers"))?;
        let mut flags = 0;
        flags |= if info.read_only { READ_ONLY } else { 0 };
        flags |= if info.pending_merge { PENDING_MERGE } else { 0 };
        flags |= if leaf.dirty_flag { DIRTY } else { 0 };
        let value = avhdx_info {
            struct_size: 0,
            layer_count: info.layers.len() as u32,
            virtual_size: info.virtual_size,
            block_size: leaf.block_size,
            logical_sector_size: leaf.logical_sector_size,
            physical_sector_size: leaf.physical_sector_size,
            flags,
            disk_type: disk_type(leaf.disk_type),
            reserved: 0,
            virtual_disk_id: guid_text_order(leaf.virtual_disk_id),
        };
        put_struct(out, value, "out").map(|()| 0)
    }) as c_int
}

/// Number of files of the chain, or a negative errno. Concurrent.
#[no_mangle]
pub unsafe extern "C" fn avhdx_layer_count(d: *const avhdx_disk) -> c_int {
    with_disk(d, |chain| Ok(chain.layer_count() as i64)) as c_int
}

/// Tells about one file; layer 0 is the leaf. Concurrent.
#[no_mangle]
pub unsafe extern "C" fn avhdx_layer_info(d: *const avhdx_disk, layer: u32, out: *mut avhdx_layer_info) -> c_int {
    with_disk(d, |chain| {
        let info: LayerInfo = chain.layer_info(layer as usize)?;
        let value = avhdx_layer_info {
            struct_size: 0,
            disk_type: disk_type(info.disk_type),
            virtual_size: info.virtual_size,
            file_size: info.file_size,
            actual_size: info.actual_size.unwrap_or(0),
            block_size: info.block_size,
            logical_sector_size: info.logical_sector_size,
            physical_sector_size: info.physical_sector_size,
            flags: if info.dirty_flag { DIRTY } else { 0 },
            log_size: info.log_size,
            reserved: 0,
            virtual_disk_id: guid_text_order(info.virtual_disk_id),
            file_write_guid: guid_text_order(info.file_write_guid),
            data_write_guid: guid_text_order(info.data_write_guid),
            parent_linkage: guid_text_order(info.parent_linkage.unwrap_or(Guid::ZERO)),
            parent_linkage2: guid_text_order(info.parent_linkage2.unwrap_or(Guid::ZERO)),
        };
        put_struct(out, value, "out").map(|()| 0)
    }) as c_int
}

/// The path by which a layer was opened, NULL after a failure. Valid as long as the disk. Concurrent.
#[no_mangle]
pub unsafe extern "C" fn avhdx_layer_path(d: *const avhdx_disk, layer: u32) -> *const c_char {
    let mut text = std::ptr::null();
    with_disk(d, |chain| {
        let path = chain.layer_path(layer as usize)?;
        let mut paths = required(d, "d")?.paths.lock();
        // Never removed, so the string does not move: a CString is behind a pointer of its own.
        let c = paths.entry(path.clone()).or_insert_with(|| c_path(&path));
        text = c.as_ptr();
        Ok(0)
    });
    text
}

/// The descriptor of a layer's file, for callers that read by block status themselves; it belongs to the disk.
/// -ENOTSUP where there is none, or where the file must be read through the library because its log is dirty.
#[no_mangle]
pub unsafe extern "C" fn avhdx_layer_fd(d: *const avhdx_disk, layer: u32) -> c_int {
    with_disk(d, |chain| match chain.layer_fd(layer as usize)? {
        Some(fd) => Ok(i64::from(fd)),
        None => Err(Error::new(
            ErrorKind::Unsupported,
            "the layer has no descriptor that could be read directly",
        )),
    }) as c_int
}

/// Everything known of the chain as a JSON object; qemu-img's keys where they mean the same. Free with avhdx_free().
/// NULL after a failure. Concurrent.
#[no_mangle]
pub unsafe extern "C" fn avhdx_info_json(d: *const avhdx_disk) -> *mut c_char {
    let mut json = std::ptr::null_mut();
    with_disk(d, |chain| {
        let text = serde_json::to_string(&chain.info()?)
            .map_err(|e| Error::new(ErrorKind::Bug, "the information has no JSON form").with_source(e))?;
        json = allocate(&c_string(&text));
        Ok(0)
    });
    json
}
