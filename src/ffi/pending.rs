//! Interrupted operations
//!
//! A merge that was cut by a failure, cancellation or power loss leaves a disk that reads the same, and notes in its
//! files what was asked for. Other operations leave nothing to finish: they are run again or not.

use std::ffi::{c_char, c_int};

use super::callback::{avhdx_progress_cb, take_progress};
use super::guard::{guard, path, Out, Output};
use super::ops::merge_needs;
use super::opts::{avhdx_opts, choose};
use crate::ops::{self, PendingStage};
use crate::schema::Kind;

/// Nothing is pending.
pub const AVHDX_PENDING_NONE: u32 = 0;
/// A merge whose layers are still in the chain.
pub const AVHDX_PENDING_MERGE: u32 = 1;
/// A merge that is complete, and left files behind that nobody needs.
pub const AVHDX_PENDING_TIDYING: u32 = 2;

/// An interrupted operation. Since 1.0.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct avhdx_pending {
    /// Set by AVHDX_PENDING_INIT.
    pub struct_size: u32,
    /// AVHDX_PENDING_NONE, AVHDX_PENDING_MERGE or AVHDX_PENDING_TIDYING.
    pub stage: u32,
    /// The uppermost layer to be merged, 0 = leaf; when tidying, the layer that stays above the base.
    pub top: u32,
    /// The layer merged into.
    pub base: u32,
}
// SAFETY: begins with a u32 and holds integers only.
unsafe impl Output for avhdx_pending {}

/// Tells whether a merge in the chain whose leaf is at path was interrupted, and which; of several, the lowest. Nothing
/// is written. Where another program began it, only the layer directly above the base is known to have been meant.
///
/// Keys: those of "open". Errors: those of avhdx_open. path, pending: not NULL; opts: may be NULL. Any thread. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described.
#[no_mangle]
pub unsafe extern "C" fn avhdx_pending(
    path: *const c_char,
    opts: *const avhdx_opts,
    pending: *mut avhdx_pending,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `path`.
        let path = unsafe { self::path(path, "path") }?;
        // SAFETY: the caller's promise is that of `Out::new`.
        let out = unsafe { Out::new(pending, "pending") }?;
        // SAFETY: the caller's promise is that of `choose`.
        let chosen = unsafe { choose(opts, &[Kind::Open]) }?;
        let found = ops::pending(&path, &chosen.settings.open)?;
        out.set(avhdx_pending {
            struct_size: 0,
            stage: found.as_ref().map_or(AVHDX_PENDING_NONE, |found| match found.stage {
                PendingStage::Merging => AVHDX_PENDING_MERGE,
                PendingStage::Tidying => AVHDX_PENDING_TIDYING,
            }),
            top: found.as_ref().map_or(0, |found| found.top as u32),
            base: found.as_ref().map_or(0, |found| found.base as u32),
        });
        Ok(0)
    })
}

/// Finishes every interrupted merge of the chain whose leaf is at path, which is not open, the way it was asked for:
/// the same layers, their files removed or kept. Returns 1 when something was finished and is durable, 0 when nothing was
/// pending. Where the leaf itself was to be merged, its file is gone and the base is the disk.
///
/// Keys: those of "merge" and of "open"; "unlink" cannot remove what was to be kept. Errors: those of avhdx_open and
/// avhdx_merge; run it again after any of them. path: not NULL; opts, progress: may be NULL. Any thread. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described.
#[no_mangle]
pub unsafe extern "C" fn avhdx_resume(
    path: *const c_char,
    opts: *const avhdx_opts,
    progress: *const avhdx_progress_cb,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `take_progress`.
        let mut report = unsafe { take_progress(progress) }?;
        // SAFETY: the caller's promise is that of `path`.
        let path = unsafe { self::path(path, "path") }?;
        // SAFETY: the caller's promise is that of `choose`.
        let chosen = unsafe { choose(opts, &[Kind::Merge, Kind::Open]) }?;
        let (open, options) = (&chosen.settings.open, &chosen.settings.merge);
        chosen.check_io("resume", &merge_needs(options))?;
        let done = ops::resume(&path, open, options, &mut report)?;
        Ok(c_int::from(done.is_some()))
    })
}
