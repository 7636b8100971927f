//! Repair
//!
//! Mending what can be mended in one file without guessing, and taking that back. What the disk reads as never changes,
//! no data is dropped and no parent guessed.

use std::ffi::{c_char, c_int};

use super::callback::take_issues;
use super::guard::{guard, optional_path, path, Out, Output};
use super::io::Need;
use super::ops::avhdx_issue_cb;
use super::opts::{avhdx_opts, choose};
use crate::ops::{self, Finding};
use crate::schema::Kind;

/// What avhdx_repair did. Since 1.0.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct avhdx_repair {
    /// Set by AVHDX_REPAIR_INIT.
    pub struct_size: u32,
    /// 1 when the file was changed, and so has an undo file; else 0.
    pub changed: u32,
    /// Findings mended; with "dry-run", those that can be.
    pub repaired: u64,
    /// Broken rules that are left.
    pub errors: u64,
    /// What is left that other programs may refuse.
    pub warnings: u64,
    /// What is left that is legal and worth knowing.
    pub notes: u64,
}
// SAFETY: begins with a u32 and holds integers only.
unsafe impl Output for avhdx_repair {}

/// Mends the file at path: a log that holds updates, a bad copy of the header or of the region table, entries that must
/// be 0, a last block that is cut, paths that no longer lead to the parent; with "clear-log" a log without a valid entry,
/// with "cut-tail" what is behind the last structure. Before the first byte changes, what will be overwritten is saved in
/// the undo file, "undo", or path with ".undo" behind it, which must not exist. Where nothing can be mended nothing is
/// written at all. With "dry-run" nothing is ever written.
///
/// Returns 0 when all was done that can be, whatever is left: look at repair->errors. Each finding goes to callback after
/// the work is done, marked as repaired or not. A cut or failed repair leaves a file that can be repaired again, with
/// another undo file, or taken back. Durable on return.
///
/// Keys: those of "repair" and of "open". Errors: NOT_VHDX, ARGUMENT (the undo file exists), LOCKED, NO_SPACE, IO.
/// path, repair: not NULL; opts, callback: may be NULL. Any thread. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described.
#[no_mangle]
pub unsafe extern "C" fn avhdx_repair(
    path: *const c_char,
    opts: *const avhdx_opts,
    repair: *mut avhdx_repair,
    callback: *const avhdx_issue_cb,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `take_issues`.
        let issues = unsafe { take_issues(callback) }?;
        // SAFETY: the caller's promise is that of `path`.
        let path = unsafe { self::path(path, "path") }?;
        // SAFETY: the caller's promise is that of `Out::new`.
        let out = unsafe { Out::new(repair, "repair") }?;
        // SAFETY: the caller's promise is that of `choose`.
        let chosen = unsafe { choose(opts, &[Kind::Repair, Kind::Open]) }?;
        let options = &chosen.settings.repair;
        if !options.dry_run {
            chosen.check_io("repair", &[Need::Write, Need::Create, Need::Rename, Need::SyncDir])?;
        }
        let mut report = |finding: &Finding| {
            if let Some(issues) = &issues {
                issues.report(finding);
            }
        };
        let done = ops::repair(&path, &chosen.settings.open, options, &mut report)?;
        out.set(avhdx_repair {
            struct_size: 0,
            changed: u32::from(done.undo.is_some()),
            repaired: done.check.repaired,
            errors: done.check.errors,
            warnings: done.check.warnings,
            notes: done.check.notes,
        });
        Ok(0)
    })
}

/// Takes a repair of the file at path back: it is what it was before, bit for bit. undo is the undo file of that repair,
/// or NULL for path with ".undo" behind it; it is kept. A file that was changed since is refused (ARGUMENT) and not
/// touched. If it is cut or fails it is run again; the file is not to be used before. Durable on return.
///
/// Keys: those of "open". Errors: ARGUMENT; CHECKSUM (the undo file is damaged), UNSUPPORTED (of a later version); LOCKED,
/// IO. path: not NULL; undo, opts: may be NULL. Any thread. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described.
#[no_mangle]
pub unsafe extern "C" fn avhdx_repair_undo(path: *const c_char, undo: *const c_char, opts: *const avhdx_opts) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `path`.
        let path = unsafe { self::path(path, "path") }?;
        // SAFETY: the caller's promise is that of `optional_path`.
        let undo = unsafe { optional_path(undo, "undo") }?;
        // SAFETY: the caller's promise is that of `choose`.
        let chosen = unsafe { choose(opts, &[Kind::Open]) }?;
        chosen.check_io("repair_undo", &[Need::Write])?;
        ops::undo(&path, undo.as_deref(), &chosen.settings.open)?;
        Ok(0)
    })
}
