//! Create, checkpoint, merge, check.

use std::ffi::{c_char, c_int};

use super::args::{c_string, path, put_struct, required};
use super::callbacks::{avhdx_issue, avhdx_issue_cb, avhdx_progress_cb, User};
use super::disk::{avhdx_disk, with_disk};
use super::opts::{avhdx_opts, settings};
use super::status;
use crate::error::Result;
use crate::ops::{self, Severity};
use crate::options::Progress;

/// What avhdx_check() saw.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct avhdx_check {
    /// Bytes of this struct: AVHDX_CHECK_INIT.
    pub struct_size: u32,
    /// 0.
    pub reserved: u32,
    /// Broken rules.
    pub errors: u64,
    /// What other programs may refuse.
    pub warnings: u64,
    /// What is legal and worth knowing.
    pub notes: u64,
    /// Payload blocks with space in the file.
    pub allocated_blocks: u64,
    /// Payload blocks in all.
    pub total_blocks: u64,
    /// Bytes of file no structure owns.
    pub leaked_bytes: u64,
}

/// The caller's progress function as a closure; none goes on for ever.
struct Reporter {
    callback: Option<(avhdx_progress_cb, User)>,
}

impl Reporter {
    fn new(p: *const avhdx_progress_cb) -> Self {
        // SAFETY: the header asks for a callback, or NULL.
        let callback = unsafe { p.as_ref() }.map(|cb| (*cb, User::new(cb.user, cb.free)));
        Reporter { callback }
    }

    fn go_on(&self, progress: Progress) -> bool {
        match &self.callback {
            Some((
                avhdx_progress_cb {
                    r#fn: Some(function), ..
                },
                user,
            )) => {
                // SAFETY: the caller's function with the caller's pointer, as the header describes.
                unsafe { function(user.pointer, progress.done, progress.total) == 0 }
            }
            _ => true,
        }
    }
}

/// Creates a disk: keys type, size, block-size, logical-sector-size, physical-sector-size, log-size, parent, id. Written
/// under a temporary name and renamed; an existing file is never replaced (-EEXIST). Durable on return. Any thread.
#[no_mangle]
pub unsafe extern "C" fn avhdx_create(file: *const c_char, o: *const avhdx_opts) -> c_int {
    status(|| ops::create(&path(file, "file")?, &settings(o).create_options()))
}

/// Seals the leaf and continues on a new differencing child at new_leaf, which must not exist. Reads go on meanwhile,
/// writes wait for a few flushes. Keys: block-size. After a failure the disk goes on as before. Concurrent with the data
/// plane; control functions wait for one another.
#[no_mangle]
pub unsafe extern "C" fn avhdx_checkpoint(d: *mut avhdx_disk, new_leaf: *const c_char, o: *const avhdx_opts) -> c_int {
    with_disk(d, |chain| {
        let new_leaf = path(new_leaf, "new_leaf")?;
        ops::checkpoint(chain, &new_leaf, &settings(o).checkpoint_options()).map(|()| 0)
    }) as c_int
}

/// Folds layers top to base-1 into layer base (0 = leaf): in one pass, with reads and writes going on. Keys: mode, rate,
/// unlink, relink, siblings, verify. Durable on return, when the chain continues without the merged layers. A failure or
/// cancellation leaves a chain that reads the same; merging again finishes it.
/// Errors: HAS_CHILDREN and NO_SPACE before anything is changed, CANCELLED, READ_ONLY, LOCKED, IO.
#[no_mangle]
pub unsafe extern "C" fn avhdx_merge(
    d: *mut avhdx_disk,
    top: u32,
    base: u32,
    o: *const avhdx_opts,
    p: *const avhdx_progress_cb,
) -> c_int {
    let reporter = Reporter::new(p);
    with_disk(d, |chain| {
        let options = settings(o).merge;
        let progress = &mut |p| reporter.go_on(p);
        ops::merge(chain, top as usize, base as usize, &options, progress).map(|_| 0)
    }) as c_int
}

/// Opens child, merges it into its parent, or into the ancestor dest if that is not NULL, and closes. The shape of
/// Merge-VHD; otherwise as avhdx_merge(). Any thread.
#[no_mangle]
pub unsafe extern "C" fn avhdx_merge_path(
    child: *const c_char,
    dest: *const c_char,
    o: *const avhdx_opts,
    p: *const avhdx_progress_cb,
) -> c_int {
    let reporter = Reporter::new(p);
    status(|| {
        let child = path(child, "child")?;
        let dest = if dest.is_null() {
            None
        } else {
            Some(path(dest, "dest")?)
        };
        let settings = settings(o);
        let progress = &mut |p| reporter.go_on(p);
        ops::merge_path(&child, dest.as_deref(), &settings.open, &settings.merge, progress).map(drop)
    })
}

/// Checks one file against every rule of the format; writes nothing. Keys: windows. Each thing found goes to cb, which
/// may be NULL, the counts to out. 0 also when rules are broken: see out->errors. Any thread.
#[no_mangle]
pub unsafe extern "C" fn avhdx_check(
    file: *const c_char,
    o: *const avhdx_opts,
    out: *mut avhdx_check,
    cb: *const avhdx_issue_cb,
) -> c_int {
    // SAFETY: the header asks for a callback, or NULL.
    let callback = unsafe { cb.as_ref() }.map(|cb| (cb.r#fn, User::new(cb.user, cb.free)));
    status(|| {
        required(out.cast::<u32>().cast_const(), "out")?;
        let settings = settings(o);
        let mut tell = |finding: &ops::Finding| {
            let Some((Some(function), user)) = &callback else {
                return;
            };
            let (rule, structure) = (format!("{:?}", finding.defect.rule), &finding.defect.structure);
            let (rule, structure) = (c_string(&rule), c_string(structure));
            let (found, wanted) = (c_string(&finding.defect.found), c_string(&finding.defect.wanted));
            let issue = avhdx_issue {
                struct_size: size_of::<avhdx_issue>() as u32,
                severity: match finding.severity {
                    Severity::Note => 1,
                    Severity::Warning => 2,
                    Severity::Error => 3,
                },
                offset: finding.defect.offset,
                rule: rule.as_ptr(),
                structure: structure.as_ptr(),
                found: found.as_ptr(),
                wanted: wanted.as_ptr(),
            };
            // SAFETY: the caller's function; the struct and its strings live through the call.
            unsafe { function(user.pointer, &raw const issue) };
        };
        let report = ops::check(&path(file, "file")?, &settings.open, &settings.check, &mut tell)?;
        put_report(out, &report)
    })
}

fn put_report(out: *mut avhdx_check, report: &ops::CheckReport) -> Result<()> {
    let value = avhdx_check {
        struct_size: 0,
        reserved: 0,
        errors: report.errors,
        warnings: report.warnings,
        notes: report.notes,
        allocated_blocks: report.allocated_blocks,
        total_blocks: report.total_blocks,
        leaked_bytes: report.leaked_bytes,
    };
    put_struct(out, value, "out")
}
