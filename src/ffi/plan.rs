//! Plans
//!
//! What an operation would do, without doing it. It is rehearsed with the code that does it, on files that only seem to
//! change.

use std::ffi::{c_char, c_int};

use super::disk::{avhdx_disk, on_disk_alone};
use super::guard::{guard, text, Out, Output};
use super::operation::Operation;
use super::opts::{avhdx_opts, choose};
use super::owned_string;
use crate::error::Result;
use crate::ops::{self, Plan};
use crate::schema::Kind;

/// Flag of a plan: there is room for bytes where the leaf is.
pub const AVHDX_PLAN_FITS: u32 = 1;

/// What an operation would do. Since 1.0.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct avhdx_plan {
    /// Set by AVHDX_PLAN_INIT.
    pub struct_size: u32,
    /// AVHDX_PLAN_...
    pub flags: u32,
    /// Bytes of the disk that would be written, or shared between files.
    pub bytes: u64,
    /// Bytes by which files would grow, new files included.
    pub growth: u64,
    /// Bytes that files would lose, removed files included.
    pub reclaimed: u64,
    /// Bytes free where the leaf is; AVHDX_NO_OFFSET where that is not known.
    pub free: u64,
    /// Files that would be made.
    pub created: u32,
    /// Files that would be changed.
    pub changed: u32,
    /// Files that would be removed.
    pub removed: u32,
    /// 0.
    pub reserved: u32,
}
// SAFETY: begins with a u32 and holds integers only.
unsafe impl Output for avhdx_plan {}

/// Tells what an operation would do to the disk as it is now, and whether it would be refused. Operations and keys are
/// those of avhdx_job_new; "rate" and "verify" mean nothing here. No file changes, but that the leaf's log is emptied
/// first; the disk may be open for reading only. Reads go on, writes wait. Content is read only where the operation has
/// to look at it, as "compact" and "convert" have; what these may share counts as copied, also with mode=reflink. Lengths
/// come true to the byte, once the disk is closed, if nothing is written to it meanwhile; a "convert" that shares stores
/// zeros, too, so that its file may be longer.
///
/// Errors: those of the operation, except NO_SPACE, for which look at AVHDX_PLAN_FITS, and what mode=reflink refuses.
/// disk, operation, plan: not NULL; opts: may be NULL where the operation needs no key. Waits for other operations on the
/// disk. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_plan(
    disk: *mut avhdx_disk,
    operation: *const c_char,
    opts: *const avhdx_opts,
    plan: *mut avhdx_plan,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `Out::new`.
        let out = unsafe { Out::new(plan, "plan") }?;
        // SAFETY: the caller's promise is that of `rehearse`.
        let plan = unsafe { rehearse(disk, operation, opts) }?;
        let count = |wanted: fn(bool, bool) -> bool| {
            let files = plan.files.iter();
            files
                .filter(|file| wanted(file.before.is_some(), file.after.is_some()))
                .count() as u32
        };
        out.set(avhdx_plan {
            struct_size: 0,
            flags: if plan.fits() { AVHDX_PLAN_FITS } else { 0 },
            bytes: plan.bytes,
            growth: plan.growth,
            reclaimed: plan.reclaimed,
            free: plan.free.unwrap_or(u64::MAX),
            created: count(|before, after| !before && after),
            changed: count(|before, after| before && after),
            removed: count(|before, after| before && !after),
            reserved: 0,
        });
        Ok(0)
    })
}

/// The same as JSON: an object with bytes, growth, reclaimed, free (null where not known) and files, an array of objects
/// with filename, before and after, lengths in bytes or null. Free it with avhdx_free. NULL for a failure; otherwise as
/// avhdx_plan. Since 1.0.
///
/// # Safety
/// As for `avhdx_plan`.
#[no_mangle]
pub unsafe extern "C" fn avhdx_plan_json(
    disk: *mut avhdx_disk,
    operation: *const c_char,
    opts: *const avhdx_opts,
) -> *mut c_char {
    guard(|| {
        // SAFETY: the caller's promise is that of `rehearse`.
        let plan = unsafe { rehearse(disk, operation, opts) }?;
        owned_string(&serde_json::to_string(&plan).unwrap_or_default())
    })
}

/// # Safety
/// Each pointer is NULL or as `avhdx_plan` describes; `disk` is not closed before the call ends.
unsafe fn rehearse(disk: *mut avhdx_disk, operation: *const c_char, opts: *const avhdx_opts) -> Result<Plan> {
    // SAFETY: the caller's promise is that of `text`.
    let operation = Operation::find(unsafe { text(operation, "operation") }?)?;
    // SAFETY: the caller's promise is that of `choose`.
    let mut settings = unsafe { choose(opts, &[operation.kind, Kind::Job]) }?.settings;
    operation.check_keys(&settings.job)?;
    settings.merge = settings.merge.rehearsed();
    settings.delete = settings.delete.rehearsed();
    settings.convert = settings.convert.rehearsed();
    (settings.rebase.rate, settings.compact.rate) = (0, 0);
    // SAFETY: the caller's promise is that of `on_disk_alone`.
    unsafe {
        on_disk_alone(disk, |disk| {
            ops::plan(&disk.chain, |chain| {
                (operation.run)(chain, &settings, &mut |_| true).map(drop)
            })
        })
    }
}
