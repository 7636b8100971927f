//! Jobs
//!
//! A long operation in steps, for an event loop, a rate limit or a cancel button. A job does nothing between steps; the
//! disk can be read and written meanwhile, and a power cut then loses as little as at any other moment. While a job is
//! neither done nor freed, other operations on its disk are refused (PENDING_OPERATION).
//!
//! The operation has a thread of its own, which runs only while a step waits for it: I/O callbacks are called there.
//! With the key threads there are more, which finish what they have begun when a step returns.

use std::ffi::{c_char, c_int};
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use super::disk::{avhdx_disk, on_disk_alone};
use super::guard::{argument, borrow, guard, out_handle, text, Out, Output};
use super::operation::Operation;
use super::opts::{avhdx_opts, choose};
use super::owned_string;
use crate::ops::Job;
use crate::options::Progress;
use crate::schema::Kind;

/// An operation in steps. Made by avhdx_job_new, released by avhdx_job_free.
#[derive(Debug)]
pub struct avhdx_job {
    job: Job,
    report: Arc<OnceLock<Value>>,
}

/// How far a job is. Since 1.0.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct avhdx_progress {
    /// Set by AVHDX_PROGRESS_INIT.
    pub struct_size: u32,
    /// 0.
    pub reserved: u32,
    /// Bytes dealt with.
    pub done: u64,
    /// Bytes to deal with, as far as known; never shrinks below done.
    pub total: u64,
}
// SAFETY: begins with a u32 and holds integers only.
unsafe impl Output for avhdx_progress {}

/// Prepares an operation on a disk; nothing happens before the first step. operation is one of these, each with the keys
/// of its function, and those of "job" named here for what its function takes as arguments:
///
/// "merge" (avhdx_merge): "top" and "base"; "delete" (avhdx_delete_layer): "top", the layer deleted; "rebase"
/// (avhdx_rebase): "onto", the new parent; "detach" (avhdx_detach); "convert" (avhdx_convert): "out", the new file;
/// "compact" (avhdx_compact); "digest" (avhdx_digest): "top", the layer, and "algorithm".
///
/// Keys: those of the operation and of "job". Errors: ARGUMENT; PENDING_OPERATION when the disk has a job that is not
/// over. job: not NULL, *job is NULL after a failure; disk, operation: not NULL; opts: may be NULL where the operation
/// needs no key. The job must be over or freed before the disk is closed; avhdx_close cancels it otherwise. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_job_new(
    job: *mut *mut avhdx_job,
    disk: *mut avhdx_disk,
    operation: *const c_char,
    opts: *const avhdx_opts,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `out_handle`.
        let out = unsafe { out_handle(job, "job") }?;
        // SAFETY: the caller's promise is that of `text`.
        let operation = Operation::find(unsafe { text(operation, "operation") }?)?;
        // SAFETY: the caller's promise is that of `choose`.
        let settings = unsafe { choose(opts, &[operation.kind, Kind::Job]) }?.settings;
        operation.check_keys(&settings.job)?;
        let report = Arc::new(OnceLock::new());
        let reported = report.clone();
        let make = |disk: &avhdx_disk| {
            disk.check_io(operation.kind.name(), &(operation.needs)(&settings))?;
            disk.start_job(move |chain, progress| {
                let report = (operation.run)(chain, &settings, progress)?;
                reported.get_or_init(|| report);
                Ok(())
            })
        };
        // SAFETY: the caller's promise is that of `on_disk_alone`.
        let job = unsafe { on_disk_alone(disk, make) }?;
        *out = Box::into_raw(Box::new(avhdx_job { job, report }));
        Ok(0)
    })
}

/// Goes on for about max_bytes, at least up to the next moment at which the operation can stand still. Returns 1 when
/// there is more to do and 0 when it is done and durable. A failure of the operation is returned by the step in which
/// it happens and by each later one; CANCELLED after avhdx_job_cancel.
/// job: not NULL; progress: may be NULL. Steps from several threads take turns. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `job` is not freed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_job_step(job: *mut avhdx_job, max_bytes: u64, progress: *mut avhdx_progress) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `borrow`; all changes behind it are by shared mutability.
        let job = &unsafe { borrow(job, "job") }?.job;
        let out = match progress.is_null() {
            true => None,
            // SAFETY: the caller's promise is that of `Out::new`.
            false => Some(unsafe { Out::new(progress, "progress") }?),
        };
        let more = job.step(max_bytes)?;
        if let Some(out) = out {
            out.set(shape(job.control().progress()));
        }
        Ok(c_int::from(more))
    })
}

/// Tells how far a job is, also while another thread steps it. job, progress: not NULL. Any thread. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `job` is not freed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_job_progress(job: *mut avhdx_job, progress: *mut avhdx_progress) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `borrow`.
        let job = &unsafe { borrow(job, "job") }?.job;
        // SAFETY: the caller's promise is that of `Out::new`.
        unsafe { Out::new(progress, "progress") }?.set(shape(job.control().progress()));
        Ok(0)
    })
}

/// What a job that is done reports, as a JSON object: "merge" bytes, reflinked, relinked, removed and target; "delete" bytes,
/// into-children, relinked and removed; "rebase" and "detach" bytes; "convert" format, virtual-size, file-size and reflinked;
/// "compact" what avhdx_compact counts; "digest" algorithm and digest, in hexadecimal. Free it with avhdx_free. NULL for a
/// failure: ARGUMENT when it is not done. job: not NULL. Any thread. Since 1.0.
///
/// # Safety
/// `job` is NULL or as described, and not freed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_job_report_json(job: *mut avhdx_job) -> *mut c_char {
    guard(|| {
        // SAFETY: the caller's promise is that of `borrow`.
        let report = unsafe { borrow(job, "job") }?.report.get();
        let report = report.ok_or_else(|| argument("the job is not done").with_hint("step it until it returns 0"))?;
        owned_string(&report.to_string())
    })
}

/// Asks a job to end: the step that runs, or the next one, returns CANCELLED, unless it was done before. The disk reads
/// the same, and the operation run again goes on. job: not NULL. Any thread. Since 1.0.
///
/// # Safety
/// `job` is NULL or as described, and not freed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_job_cancel(job: *mut avhdx_job) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `borrow`.
        unsafe { borrow(job, "job") }?.job.control().cancel();
        Ok(0)
    })
}

/// Cancels a job that is not over, waits until it holds nothing any more, and frees it. No other call on the job may
/// be running, or begin. job: may be NULL. Since 1.0.
///
/// # Safety
/// `job` is NULL or from `avhdx_job_new`, not yet freed, and no thread uses it.
#[no_mangle]
pub unsafe extern "C" fn avhdx_job_free(job: *mut avhdx_job) {
    guard(|| {
        if !job.is_null() {
            // SAFETY: made by Box::into_raw in `avhdx_job_new`, and freed once, by this function's contract.
            drop(unsafe { Box::from_raw(job) });
        }
        Ok(())
    });
}

fn shape(progress: Progress) -> avhdx_progress {
    avhdx_progress {
        struct_size: 0,
        reserved: 0,
        done: progress.done,
        total: progress.total,
    }
}
