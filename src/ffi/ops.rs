//! Create, checkpoint, merge, check
//!
//! Operations on one disk wait for each other; reading and writing go on meanwhile, from other threads. Each is
//! durable when it returns 0. Cut short anywhere, by failure, cancellation or power loss, it leaves files that open
//! and read the same, and running it again finishes it.

use std::ffi::{c_char, c_int, c_void};

use super::callback::{avhdx_progress_cb, take_issues, take_progress, IssueFn, Taken};
use super::disk::{avhdx_disk, on_disk_alone};
use super::error::c_string;
use super::guard::{guard, optional_path, path, Out, Output};
use super::io::Need;
use super::opts::{avhdx_opts, choose};
use crate::ops::{self, Finding, Severity};
use crate::options::MergeOptions;
use crate::schema::Kind;

/// Severity: legal and worth knowing.
pub const AVHDX_SEVERITY_NOTE: u32 = 1;
/// Severity: other programs may refuse the file.
pub const AVHDX_SEVERITY_WARNING: u32 = 2;
/// Severity: a rule of the format is broken.
pub const AVHDX_SEVERITY_ERROR: u32 = 3;

/// What avhdx_check saw. Since 1.0.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct avhdx_check {
    /// Set by AVHDX_CHECK_INIT.
    pub struct_size: u32,
    /// 0.
    pub reserved: u32,
    /// Broken rules.
    pub errors: u64,
    /// What other programs may refuse.
    pub warnings: u64,
    /// What is legal and worth knowing.
    pub notes: u64,
    /// Payload blocks that have space in the file.
    pub allocated_blocks: u64,
    /// Payload blocks of the disk.
    pub total_blocks: u64,
    /// Bytes of the file that nothing owns.
    pub leaked_bytes: u64,
}
// SAFETY: begins with a u32 and holds integers only.
unsafe impl Output for avhdx_check {}

/// One finding of avhdx_check or avhdx_repair. Strings are UTF-8 and live for the call of the callback. Since 1.0.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct avhdx_issue {
    /// Bytes of this structure that the library filled.
    pub struct_size: u32,
    /// AVHDX_SEVERITY_...
    pub severity: u32,
    /// Where in the file, in bytes.
    pub offset: u64,
    /// The rule's name, one word: "BatOffset".
    pub rule: *const c_char,
    /// The structure, in the words of the specification: "BAT entry 17".
    pub structure: *const c_char,
    /// What the file holds.
    pub found: *const c_char,
    /// What the rule asks for.
    pub wanted: *const c_char,
    /// All of it in one line.
    pub message: *const c_char,
    /// 1 when avhdx_repair mended it or, with "dry-run", can; else 0.
    pub repaired: u32,
    /// 0.
    pub reserved: u32,
}

/// Receives findings as they are made. Since 1.0.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct avhdx_issue_cb {
    /// Not NULL.
    pub r#fn: Option<unsafe extern "C" fn(user: *mut c_void, issue: *const avhdx_issue)>,
    /// Passed to fn.
    pub user: *mut c_void,
    /// Called once with user; may be NULL.
    pub free: Option<unsafe extern "C" fn(user: *mut c_void)>,
}

/// Creates a virtual disk at path: "type" dynamic, fixed or differencing, "size", "parent" and so on. It is made
/// under a temporary name in the same directory and renamed when complete, so a file of this name is either absent or
/// whole; an existing file is never replaced (-EEXIST). Durable on return.
///
/// Keys: those of "create", and of "open" for how a parent is opened. Errors: ARGUMENT, NO_SPACE, IO, and those of
/// avhdx_open for the parent. path: not NULL; opts: may be NULL, but "size" or "parent" is needed. Any thread. Since
/// 1.0.
///
/// # Safety
/// Each pointer is NULL or as described.
#[no_mangle]
pub unsafe extern "C" fn avhdx_create(path: *const c_char, opts: *const avhdx_opts) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `path`.
        let path = unsafe { self::path(path, "path") }?;
        // SAFETY: the caller's promise is that of `choose`.
        let chosen = unsafe { choose(opts, &[Kind::Create, Kind::Open]) }?;
        chosen.check_io("create", &[Need::Write, Need::Create, Need::Rename, Need::SyncDir])?;
        ops::create(&path, &chosen.settings.create)?;
        Ok(0)
    })
}

/// Seals the leaf and goes on writing to a new differencing child at new_leaf, which must not exist. Reads go on;
/// writes wait for a few flushes, whatever the size of the disk. Layer numbers grow by one: the old leaf is layer 1.
/// On return the child is durable and the old leaf is as if closed. After a failure the disk goes on as before.
///
/// Keys: those of "checkpoint". Errors: READ_ONLY, CHAIN_LOOP (too many layers), NO_SPACE, IO, POISONED.
/// disk, new_leaf: not NULL; opts: may be NULL. Waits for other operations on the disk. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_checkpoint(
    disk: *mut avhdx_disk,
    new_leaf: *const c_char,
    opts: *const avhdx_opts,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `path`.
        let new_leaf = unsafe { path(new_leaf, "new_leaf") }?;
        // SAFETY: the caller's promise is that of `choose`.
        let chosen = unsafe { choose(opts, &[Kind::Checkpoint]) }?;
        let run = |disk: &avhdx_disk| {
            disk.check_io("checkpoint", &[Need::Write, Need::Create, Need::Rename, Need::SyncDir])?;
            ops::checkpoint(&disk.chain, &new_leaf, &chosen.settings.checkpoint)
        };
        // SAFETY: the caller's promise is that of `on_disk_alone`.
        unsafe { on_disk_alone(disk, run) }?;
        Ok(0)
    })
}

/// What a merge needs of I/O callbacks.
pub(super) fn merge_needs(options: &MergeOptions) -> Vec<Need> {
    let mut needs = vec![Need::Write];
    if options.unlink {
        needs.extend([Need::Unlink, Need::SyncDir]);
    }
    if options.relink {
        needs.push(Need::List);
    }
    needs
}

/// Folds layers top to base - 1 into layer base (0 = leaf), in one pass in which each sector moves at most once. The
/// disk reads the same before, during and after. On return the chain goes on without the merged layers, and their
/// files are removed unless unlink=off. top may be 0: the disk then goes on writing to the base.
///
/// Keys: those of "merge". Errors: ARGUMENT, READ_ONLY, HAS_CHILDREN and NO_SPACE (both before the first byte is
/// written), LOCKED, CANCELLED, IO, POISONED; after any of them the disk can be used and the merge run again.
/// disk: not NULL; opts, progress: may be NULL. Waits for other operations on the disk. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_merge(
    disk: *mut avhdx_disk,
    top: u32,
    base: u32,
    opts: *const avhdx_opts,
    progress: *const avhdx_progress_cb,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `take_progress`.
        let mut report = unsafe { take_progress(progress) }?;
        // SAFETY: the caller's promise is that of `choose`.
        let chosen = unsafe { choose(opts, &[Kind::Merge]) }?;
        let options = &chosen.settings.merge;
        let run = |disk: &avhdx_disk| {
            disk.check_io("merge", &merge_needs(options))?;
            ops::merge(&disk.chain, top as usize, base as usize, options, &mut report)
        };
        // SAFETY: the caller's promise is that of `on_disk_alone`.
        unsafe { on_disk_alone(disk, run) }?;
        Ok(0)
    })
}

/// Opens the disk at child, merges it, and what is between, into the ancestor at dest, and closes it: the shape of
/// Merge-VHD. dest NULL is the direct parent. Otherwise as avhdx_merge with top 0.
///
/// Keys: those of "merge" and of "open". Errors: those of avhdx_open and avhdx_merge; ARGUMENT when dest is no
/// ancestor. child: not NULL; dest, opts, progress: may be NULL. Any thread. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described.
#[no_mangle]
pub unsafe extern "C" fn avhdx_merge_path(
    child: *const c_char,
    dest: *const c_char,
    opts: *const avhdx_opts,
    progress: *const avhdx_progress_cb,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `take_progress`.
        let mut report = unsafe { take_progress(progress) }?;
        // SAFETY: the caller's promise is that of `path`.
        let child = unsafe { path(child, "child") }?;
        // SAFETY: the caller's promise is that of `optional_path`.
        let dest = unsafe { optional_path(dest, "dest") }?;
        // SAFETY: the caller's promise is that of `choose`.
        let chosen = unsafe { choose(opts, &[Kind::Merge, Kind::Open]) }?;
        let (open, options) = (&chosen.settings.open, &chosen.settings.merge);
        chosen.check_io("merge", &merge_needs(options))?;
        ops::merge_path(&child, dest.as_deref(), open, options, &mut report)?;
        Ok(0)
    })
}

/// Checks every structural rule of the file at path. Parents are not opened, and nothing is ever written. Returns 0
/// when the check was done, whatever it found: look at check->errors. Each finding goes to callback as it is made.
///
/// Keys: those of "check" and of "open". Errors: NOT_VHDX, LOCKED, IO, ARGUMENT.
/// path, check: not NULL; opts, callback: may be NULL. Any thread. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described.
#[no_mangle]
pub unsafe extern "C" fn avhdx_check(
    path: *const c_char,
    opts: *const avhdx_opts,
    check: *mut avhdx_check,
    callback: *const avhdx_issue_cb,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `take_issues`.
        let issues = unsafe { take_issues(callback) }?;
        // SAFETY: the caller's promise is that of `path`.
        let path = unsafe { self::path(path, "path") }?;
        // SAFETY: the caller's promise is that of `Out::new`.
        let out = unsafe { Out::new(check, "check") }?;
        // SAFETY: the caller's promise is that of `choose`.
        let chosen = unsafe { choose(opts, &[Kind::Check, Kind::Open]) }?;
        let mut report = |finding: &Finding| {
            if let Some(issues) = &issues {
                issues.report(finding);
            }
        };
        let seen = ops::check(&path, &chosen.settings.open, &chosen.settings.check, &mut report)?;
        out.set(avhdx_check {
            struct_size: 0,
            reserved: 0,
            errors: seen.errors,
            warnings: seen.warnings,
            notes: seen.notes,
            allocated_blocks: seen.allocated_blocks,
            total_blocks: seen.total_blocks,
            leaked_bytes: seen.leaked_bytes,
        });
        Ok(0)
    })
}

impl Taken<IssueFn> {
    /// Passes a finding on.
    pub(super) fn report(&self, finding: &Finding) {
        let defect = &finding.defect;
        let [rule, structure, found, wanted, message] = [
            format!("{:?}", defect.rule),
            defect.structure.to_string(),
            defect.found.to_string(),
            defect.wanted.to_string(),
            defect.to_string(),
        ]
        .map(c_string);
        let issue = avhdx_issue {
            struct_size: size_of::<avhdx_issue>() as u32,
            severity: match finding.severity {
                Severity::Note => AVHDX_SEVERITY_NOTE,
                Severity::Warning => AVHDX_SEVERITY_WARNING,
                Severity::Error => AVHDX_SEVERITY_ERROR,
            },
            offset: defect.offset,
            rule: rule.as_ptr(),
            structure: structure.as_ptr(),
            found: found.as_ptr(),
            wanted: wanted.as_ptr(),
            message: message.as_ptr(),
            repaired: u32::from(finding.repaired),
            reserved: 0,
        };
        // SAFETY: the caller promised that fn may be called with user until free; what `issue` leads to lives until
        // after the call.
        unsafe { (self.call)(self.user.pointer, &raw const issue) };
    }
}
