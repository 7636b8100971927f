//! Convert, migrate
//!
//! Both write new files, under temporary names that become the real ones when all is complete and durable: a file of
//! the name asked for is either absent or whole. Existing files are never replaced, and sources never changed. After a
//! failure or a cancellation nothing is left of it. What nobody stores is not read.
//!
//! With mode=copy all that is stored is read, and zeros are not stored. With mode=auto extents are shared instead where the
//! file system can, at next to no cost in time and space, zeros that are stored among them. Copied are: of each 4 MiB of
//! the disk, pieces of less than 64 KiB; what does not lie at whole pages; files whose log is applied in memory alone;
//! fixed disks; and the leaf of a disk that is open for writing, which would go to new places when it is written: open it
//! read-only, or take a checkpoint and convert layer 1. With mode=reflink fixed disks are shared, too, and what else cannot
//! be shared, but for such pieces, is a failure. With "threads" the reading is theirs, with 4 MiB of memory for each and
//! for two more, twice that with "parent".

use std::ffi::{c_char, c_int};

use super::callback::{avhdx_progress_cb, take_progress};
use super::disk::{avhdx_disk, on_disk_alone};
use super::guard::{guard, path};
use super::io::Need;
use super::opts::{avhdx_opts, choose};
use crate::ops;
use crate::schema::Kind;

/// What writing new files needs of I/O callbacks.
pub(super) const NEEDS: &[Need] = &[Need::Write, Need::Create, Need::Rename, Need::SyncDir];

/// Writes what the disk reads as to a new file at dst: "to" raw, vhdx or vhd, "type" dynamic or fixed. With "layer" it
/// is the disk as of that layer, and with "parent" a differencing disk on another one, holding only the sectors that
/// differ. The new disk has the size, the virtual disk ID and (VHDX) the sector sizes and metadata items of this one;
/// with "parent" the parent's ID. Writes to the disk during the call may or may not be in the result. Durable on
/// return.
///
/// Keys: those of "convert". Errors: ARGUMENT (what does not go together; a VHD holds at most 2040 GiB), IO with EEXIST,
/// NO_SPACE, CANCELLED, PARENT_MISMATCH (sectors of another size), UNSUPPORTED (mode=reflink where sharing is not possible),
/// and those of avhdx_open for "parent".
/// disk, dst: not NULL; opts, progress: may be NULL. Waits for other operations on the disk. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_convert(
    disk: *mut avhdx_disk,
    dst: *const c_char,
    opts: *const avhdx_opts,
    progress: *const avhdx_progress_cb,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `take_progress`.
        let mut report = unsafe { take_progress(progress) }?;
        // SAFETY: the caller's promise is that of `path`.
        let dst = unsafe { path(dst, "dst") }?;
        // SAFETY: the caller's promise is that of `choose`.
        let chosen = unsafe { choose(opts, &[Kind::Convert]) }?;
        let run = |disk: &avhdx_disk| {
            disk.check_io("convert", NEEDS)?;
            ops::convert(&disk.chain, &dst, &chosen.settings.convert, &mut report)
        };
        // SAFETY: the caller's promise is that of `on_disk_alone`.
        unsafe { on_disk_alone(disk, run) }?;
        Ok(0)
    })
}

/// Writes the VHD or AVHD at src, and its parents, as a new VHDX at dst that holds everything; or, with "chain", one
/// VHDX for each file, dst for the leaf, and beside it one for each parent, with the parent's name and the suffix
/// .vhdx, .avhdx where it has a parent itself. Parents are found as avhdx_open finds those of a VHDX: the files' own
/// paths, "drive-map", "search", beneath "parent-root", and taken when their unique ID is right. The virtual disk ID
/// is the unique ID of the base. Sectors are of 512 bytes. A VHD whose last sector is damaged is read by the copy of
/// it. Durable on return.
///
/// Keys: those of "migrate", of "convert" (not "layer" and "parent"), and of "open". Errors: NOT_VHDX (it is no VHD
/// either), CORRUPT, CHECKSUM, TRUNCATED, UNSUPPORTED, those of avhdx_open for parents, and those of avhdx_convert.
/// src, dst: not NULL; opts, progress: may be NULL. Any thread. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described.
#[no_mangle]
pub unsafe extern "C" fn avhdx_migrate(
    src: *const c_char,
    dst: *const c_char,
    opts: *const avhdx_opts,
    progress: *const avhdx_progress_cb,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `take_progress`.
        let mut report = unsafe { take_progress(progress) }?;
        // SAFETY: the caller's promise is that of `path`.
        let src = unsafe { path(src, "src") }?;
        // SAFETY: the caller's promise is that of `path`.
        let dst = unsafe { path(dst, "dst") }?;
        // SAFETY: the caller's promise is that of `choose`.
        let chosen = unsafe { choose(opts, &[Kind::Migrate, Kind::Convert, Kind::Open]) }?;
        chosen.check_io("migrate", NEEDS)?;
        let settings = &chosen.settings;
        ops::migrate(&src, &dst, &settings.migrate, &settings.open, &mut report)?;
        Ok(0)
    })
}
