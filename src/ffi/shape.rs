//! Compact, resize, metadata items
//!
//! Changes of the leaf's file. Each is durable when it returns, and whole or not there at all after a power cut. Reading
//! goes on meanwhile; operations on one disk wait for each other.

use std::ffi::{c_char, c_int, c_void};

use super::callback::{avhdx_progress_cb, take_progress};
use super::disk::{avhdx_disk, on_disk_alone};
use super::guard::{argument, check_flags, guard, null};
use super::io::Need;
use super::opts::{avhdx_opts, choose};
use super::owned_string;
use crate::error::Result;
use crate::guid::Guid;
use crate::ops;
use crate::schema::Kind;

/// avhdx_meta_set: the item belongs to the virtual disk, so checkpoints inherit it; without it, to the one file.
pub const AVHDX_META_DISK: u32 = 1;

/// Makes the leaf's file as short as it can be; the disk reads the same, before, during and after, and may be read and
/// written meanwhile. Blocks that read as zeros, and space of trimmed blocks, are given up; blocks move from the end of
/// the file into the holes; the file is cut. Files that depend on it stay valid. It takes no more space than the log.
///
/// Keys: those of "compact". Errors: READ_ONLY, UNSUPPORTED (a fixed disk), CANCELLED, IO, POISONED; after any of them
/// the disk reads the same, and running it again goes on. disk: not NULL; opts, progress: may be NULL. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_compact(
    disk: *mut avhdx_disk,
    opts: *const avhdx_opts,
    progress: *const avhdx_progress_cb,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `take_progress`.
        let mut report = unsafe { take_progress(progress) }?;
        // SAFETY: the caller's promise is that of `choose`.
        let chosen = unsafe { choose(opts, &[Kind::Compact]) }?;
        let run = |disk: &avhdx_disk| {
            disk.check_io("compact", &[Need::Write])?;
            ops::compact(&disk.chain, &chosen.settings.compact, &mut report)
        };
        // SAFETY: the caller's promise is that of `on_disk_alone`.
        unsafe { on_disk_alone(disk, run) }?;
        Ok(0)
    })
}

/// Changes the size of the disk to size bytes, a multiple of the logical sector size, at most 64 TiB. What it gains
/// reads as zeros. It is not cut below avhdx_min_size unless unsafe=on. The copy of a GPT at the old end is gone after
/// shrinking; the guest writes it anew, as after Resize-VHD. Writes wait meanwhile.
///
/// Keys: those of "resize". Errors: ARGUMENT, READ_ONLY, SHRINK_UNSAFE, HAS_CHILDREN (other files depend on the leaf),
/// NO_SPACE, IO, POISONED. disk: not NULL; opts: may be NULL. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_resize(disk: *mut avhdx_disk, size: u64, opts: *const avhdx_opts) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `choose`.
        let chosen = unsafe { choose(opts, &[Kind::Resize]) }?;
        let run = |disk: &avhdx_disk| {
            disk.check_io("resize", &[Need::Write, Need::List])?;
            ops::resize(&disk.chain, size, &chosen.settings.resize)
        };
        // SAFETY: the caller's promise is that of `on_disk_alone`.
        unsafe { on_disk_alone(disk, run) }?;
        Ok(0)
    })
}

/// Finds the smallest size in bytes that avhdx_resize accepts: the end of the last partition (MBR, GPT) and, of a GPT,
/// room for its copy; of a disk without partitions, the end of the last byte that is not zero. Writes wait meanwhile.
/// Errors: SHRINK_UNSAFE (a partition table that cannot be understood), IO. disk, size: not NULL. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_min_size(disk: *mut avhdx_disk, size: *mut u64) -> c_int {
    guard(|| {
        if size.is_null() {
            return Err(null("size"));
        }
        // SAFETY: the caller's promise is that of `on_disk_alone`.
        let least = unsafe { on_disk_alone(disk, |disk| ops::min_size(&disk.chain)) }?;
        // SAFETY: not NULL, so it leads to a writable u64 by this function's contract.
        unsafe { size.write(least) };
        Ok(0)
    })
}

/// Sets the physical sector size that the disk reports: 512 or 4096. Errors: ARGUMENT, READ_ONLY, HAS_CHILDREN, IO,
/// POISONED. disk: not NULL. Writes wait meanwhile. Since 1.0.
///
/// # Safety
/// `disk` is NULL or open, and not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_set_physical_sector_size(disk: *mut avhdx_disk, size: u32) -> c_int {
    guard(|| {
        let run = |disk: &avhdx_disk| {
            disk.check_io("set_physical_sector_size", &[Need::Write, Need::List])?;
            ops::set_physical_sector_size(&disk.chain, size)
        };
        // SAFETY: the caller's promise is that of `on_disk_alone`.
        unsafe { on_disk_alone(disk, run) }?;
        Ok(0)
    })
}

/// Gives the disk another identity as a guest sees it (SCSI page 83): the 16 bytes at id, as avhdx_info has them, or
/// random ones. Errors: ARGUMENT (all zero), READ_ONLY, HAS_CHILDREN, IO, POISONED. disk: not NULL; id: NULL for a
/// random one. Writes wait meanwhile. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_reset_disk_id(disk: *mut avhdx_disk, id: *const u8) -> c_int {
    guard(|| {
        let id = match id.is_null() {
            true => None,
            // SAFETY: the caller's promise is that of `guid`.
            false => Some(unsafe { guid(id, "id") }?),
        };
        let run = |disk: &avhdx_disk| {
            disk.check_io("reset_disk_id", &[Need::Write, Need::List])?;
            ops::reset_disk_id(&disk.chain, id)
        };
        // SAFETY: the caller's promise is that of `on_disk_alone`.
        unsafe { on_disk_alone(disk, run) }?;
        Ok(0)
    })
}

/// Lists the users' metadata items of the leaf as a JSON array of {"id": GUID, "length": bytes, "of-disk": bool}. Free
/// it with avhdx_free. NULL on failure. disk: not NULL. Since 1.0.
///
/// # Safety
/// `disk` is NULL or open, and not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_meta_list(disk: *mut avhdx_disk) -> *mut c_char {
    guard(|| {
        // SAFETY: the caller's promise is that of `on_disk_alone`.
        let items = unsafe { on_disk_alone(disk, |disk| ops::meta_list(&disk.chain)) }?;
        owned_string(&serde_json::json!(items).to_string())
    })
}

/// Copies up to len bytes of the metadata item with the 16 bytes of id, in the order of the file, to buf, and returns
/// the item's length, which may be more. Errors: ARGUMENT (no such item), IO. disk, id: not NULL; buf: not NULL unless
/// len is 0. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_meta_get(disk: *mut avhdx_disk, id: *const u8, buf: *mut c_void, len: usize) -> i64 {
    guard(|| {
        // SAFETY: the caller's promise is that of `guid`.
        let id = unsafe { guid(id, "id") }?;
        if buf.is_null() && len != 0 {
            return Err(null("buf"));
        }
        // SAFETY: the caller's promise is that of `on_disk_alone`.
        let bytes = unsafe { on_disk_alone(disk, |disk| ops::meta_get(&disk.chain, id)) }?;
        let known = len.min(bytes.len());
        if known != 0 {
            // SAFETY: buf is not NULL and leads to len writable bytes, `bytes` has at least `known`; they are apart.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), buf.cast::<u8>(), known) };
        }
        Ok(bytes.len() as i64)
    })
}

/// Adds a metadata item to the leaf, or replaces the one with this id. At most 1024 items, of at most 1 MiB each and 40
/// MiB together. flags: AVHDX_META_DISK. Errors: ARGUMENT, READ_ONLY, HAS_CHILDREN (an item of the disk, and other
/// files depend on the leaf), NO_SPACE, IO, POISONED. disk, id: not NULL; buf: not NULL unless len is 0. Writes wait
/// meanwhile. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_meta_set(
    disk: *mut avhdx_disk,
    id: *const u8,
    buf: *const c_void,
    len: usize,
    flags: u32,
) -> c_int {
    guard(|| {
        check_flags(flags, AVHDX_META_DISK)?;
        // SAFETY: the caller's promise is that of `guid`.
        let id = unsafe { guid(id, "id") }?;
        let bytes: &[u8] = match (buf.is_null(), isize::try_from(len)) {
            (_, Ok(0)) => &[],
            (_, Err(_)) => return Err(argument(format!("an item of {len} bytes"))),
            (true, _) => return Err(null("buf")),
            // SAFETY: not NULL, at most isize::MAX, and unchanged during the call by this function's contract.
            (false, _) => unsafe { std::slice::from_raw_parts(buf.cast::<u8>(), len) },
        };
        let run = |disk: &avhdx_disk| {
            disk.check_io("meta_set", &[Need::Write, Need::List])?;
            ops::meta_set(&disk.chain, id, bytes, flags & AVHDX_META_DISK != 0)
        };
        // SAFETY: the caller's promise is that of `on_disk_alone`.
        unsafe { on_disk_alone(disk, run) }?;
        Ok(0)
    })
}

/// Removes a metadata item of the leaf. Errors: ARGUMENT (no such item), READ_ONLY, HAS_CHILDREN, IO, POISONED. disk,
/// id: not NULL. Writes wait meanwhile. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_meta_delete(disk: *mut avhdx_disk, id: *const u8) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `guid`.
        let id = unsafe { guid(id, "id") }?;
        let run = |disk: &avhdx_disk| {
            disk.check_io("meta_delete", &[Need::Write, Need::List])?;
            ops::meta_delete(&disk.chain, id)
        };
        // SAFETY: the caller's promise is that of `on_disk_alone`.
        unsafe { on_disk_alone(disk, run) }?;
        Ok(0)
    })
}

/// # Safety
/// `id` is NULL or leads to 16 readable bytes.
unsafe fn guid(id: *const u8, name: &str) -> Result<Guid> {
    if id.is_null() {
        return Err(null(name));
    }
    // SAFETY: not NULL, so it leads to 16 bytes by this function's contract.
    Ok(Guid::from_stored(unsafe { id.cast::<[u8; 16]>().read() }))
}
