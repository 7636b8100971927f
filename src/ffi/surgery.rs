//! Chain surgery
//!
//! Going back to a checkpoint, deleting one, and changing what a disk depends on. What every disk that is kept reads as
//! stays the same, and so do the identities of the files: disks made on them remain valid. Durable when they return 0.
//! Cut short anywhere, by failure, cancellation or power loss, they leave disks that open and read the same, and running
//! them again finishes.

use std::ffi::{c_char, c_int};

use super::callback::{avhdx_progress_cb, take_progress};
use super::disk::{avhdx_disk, on_disk_alone};
use super::guard::{guard, path};
use super::io::Need;
use super::opts::{avhdx_opts, choose};
use crate::ops;
use crate::schema::Kind;

/// What deleting a layer needs of I/O callbacks.
pub(super) const DELETE_NEEDS: &[Need] = &[Need::Write, Need::Unlink, Need::SyncDir, Need::List];

/// Goes back to the disk as of layer (1 is the parent of the leaf): continues on a new differencing child of it at
/// new_leaf, which must not exist. What was written since is left behind in the old leaf, a complete file that can be
/// opened as a disk of its own; with "unlink" on it is removed, and the layers between, as far as no other disk depends
/// on them and no other program uses them. Reads and writes may go on: after the return they see the old state, and the
/// size the disk had then. The new leaf is layer 0, and layer becomes layer 1. After a failure before the switch the disk
/// goes on as before.
///
/// Keys: those of "revert". Errors: ARGUMENT, READ_ONLY, NO_SPACE, IO, POISONED.
/// disk, new_leaf: not NULL; opts: may be NULL. Waits for other operations on the disk. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_revert(
    disk: *mut avhdx_disk,
    layer: u32,
    new_leaf: *const c_char,
    opts: *const avhdx_opts,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `path`.
        let new_leaf = unsafe { path(new_leaf, "new_leaf") }?;
        // SAFETY: the caller's promise is that of `choose`.
        let chosen = unsafe { choose(opts, &[Kind::Revert]) }?;
        let options = &chosen.settings.revert;
        let run = |disk: &avhdx_disk| {
            let mut needs = vec![Need::Write, Need::Create, Need::Rename, Need::SyncDir];
            if options.unlink {
                needs.extend([Need::Unlink, Need::List]);
            }
            disk.check_io("revert", &needs)?;
            ops::revert(&disk.chain, layer as usize, &new_leaf, options)
        };
        // SAFETY: the caller's promise is that of `on_disk_alone`.
        unsafe { on_disk_alone(disk, run) }?;
        Ok(0)
    })
}

/// Deletes the file of a layer, neither the leaf (0) nor the base. Its content goes into its parent or, where other disks
/// depend on the parent, into each of its children, and these get its parent as theirs: those in the chain, and those
/// found in the directories of the files and in "search". All of them read the same before, during and after; the disk
/// may be read and written meanwhile. "into" chooses: with "parent", the parent's file then holds what the layer held,
/// and its own state is gone; with "children" the parent is not touched, and the layer's state is gone.
///
/// Keys: those of "delete". Errors: ARGUMENT, READ_ONLY; HAS_CHILDREN (into=parent), LOCKED and NO_SPACE, all before the
/// first byte is written; CANCELLED, IO, POISONED; after any of them the disk can be used and the deletion run again.
/// disk: not NULL; opts, progress: may be NULL. Waits for other operations on the disk. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_delete_layer(
    disk: *mut avhdx_disk,
    layer: u32,
    opts: *const avhdx_opts,
    progress: *const avhdx_progress_cb,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `take_progress`.
        let mut report = unsafe { take_progress(progress) }?;
        // SAFETY: the caller's promise is that of `choose`.
        let chosen = unsafe { choose(opts, &[Kind::Delete]) }?;
        let options = &chosen.settings.delete;
        let run = |disk: &avhdx_disk| {
            disk.check_io("delete", DELETE_NEEDS)?;
            ops::delete_layer(&disk.chain, layer as usize, options, &mut report)
        };
        // SAFETY: the caller's promise is that of `on_disk_alone`.
        unsafe { on_disk_alone(disk, run) }?;
        Ok(0)
    })
}

/// Deletes a branch beside the open chain: the differencing disk at root and every disk that descends from it, found in
/// its directory, those of the chain and "search". Their content is gone. Refused before the first removal when the open
/// disk is among them or depends on them (HAS_CHILDREN), when another program uses one of them (LOCKED), and when a copy
/// of one makes it unclear whose child a disk is (HAS_CHILDREN). A cut leaves a smaller branch that can be opened.
///
/// Errors: besides those, ARGUMENT (root has no parent), READ_ONLY, IO. disk, root: not NULL. Waits for other operations
/// on the disk. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_delete_branch(disk: *mut avhdx_disk, root: *const c_char) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `path`.
        let root = unsafe { path(root, "root") }?;
        let run = |disk: &avhdx_disk| {
            disk.check_io("delete", &[Need::Unlink, Need::SyncDir, Need::List])?;
            ops::delete_branch(&disk.chain, &root)
        };
        // SAFETY: the caller's promise is that of `on_disk_alone`.
        unsafe { on_disk_alone(disk, run) }?;
        Ok(0)
    })
}

/// Makes the file at parent the parent of the differencing disk at child, which is not open: Set-VHD -ParentPath. Only the
/// child's parent locator changes, in one step. The parent must be the disk the child was made on, by its data write
/// GUID, wherever it is now; with "ignore-id-mismatch" on another one is accepted, whose content the caller knows to be
/// the same: if it is not, the disk is garbage. What that waived is logged as a warning, with both GUIDs.
///
/// Keys: those of "reparent" and of "open". Errors: PARENT_ID_MISMATCH (the message has both GUIDs), PARENT_MISMATCH
/// (logical sector size; never waived), CHAIN_LOOP (the parent depends on the child), ARGUMENT (the child has no parent),
/// LOCKED, and those of avhdx_open for both files. child, parent: not NULL; opts: may be NULL. Any thread. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described.
#[no_mangle]
pub unsafe extern "C" fn avhdx_reparent(child: *const c_char, parent: *const c_char, opts: *const avhdx_opts) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `path`.
        let child = unsafe { path(child, "child") }?;
        // SAFETY: the caller's promise is that of `path`.
        let parent = unsafe { path(parent, "parent") }?;
        // SAFETY: the caller's promise is that of `choose`.
        let chosen = unsafe { choose(opts, &[Kind::Reparent, Kind::Open]) }?;
        chosen.check_io("reparent", &[Need::Write])?;
        ops::reparent(&child, &parent, &chosen.settings.open, &chosen.settings.reparent)?;
        Ok(0)
    })
}

/// Puts the leaf on another parent, any disk with the same logical sector size, and copies into the leaf what the new
/// parent does not hold: the disk reads the same before, during and after, and may be used meanwhile. Only the leaf is
/// written. On return the layers below it are new_parent and its parents. Progress counts bytes compared.
///
/// Keys: those of "rebase". Errors: ARGUMENT (the disk has no parent), READ_ONLY, PARENT_MISMATCH (sector size),
/// CHAIN_LOOP, those of avhdx_open for the new parent; CANCELLED, NO_SPACE, IO, POISONED, after which the disk is on its
/// old parent. disk, new_parent: not NULL; opts, progress: may be NULL. Waits for other operations on the disk. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_rebase(
    disk: *mut avhdx_disk,
    new_parent: *const c_char,
    opts: *const avhdx_opts,
    progress: *const avhdx_progress_cb,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `take_progress`.
        let mut report = unsafe { take_progress(progress) }?;
        // SAFETY: the caller's promise is that of `path`.
        let new_parent = unsafe { path(new_parent, "new_parent") }?;
        // SAFETY: the caller's promise is that of `choose`.
        let chosen = unsafe { choose(opts, &[Kind::Rebase]) }?;
        let run = |disk: &avhdx_disk| {
            disk.check_io("rebase", &[Need::Write])?;
            ops::rebase(&disk.chain, &new_parent, &chosen.settings.rebase, &mut report)
        };
        // SAFETY: the caller's promise is that of `on_disk_alone`.
        unsafe { on_disk_alone(disk, run) }?;
        Ok(0)
    })
}

/// Makes the leaf a dynamic disk without parent, in its own file: copies into it what it has from its parents. The disk
/// reads the same before, during and after, and may be used meanwhile; writes wait for a moment at the end. On return it
/// has one layer; the parents are as they were.
///
/// Keys: those of "detach". Errors: ARGUMENT (it has no parent), READ_ONLY, NO_SPACE (before the first byte is written);
/// CANCELLED, IO, POISONED, after which the disk still has its parent. disk: not NULL; opts, progress: may be NULL. Waits
/// for other operations on the disk. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_detach(
    disk: *mut avhdx_disk,
    opts: *const avhdx_opts,
    progress: *const avhdx_progress_cb,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `take_progress`.
        let mut report = unsafe { take_progress(progress) }?;
        // SAFETY: the caller's promise is that of `choose`.
        let chosen = unsafe { choose(opts, &[Kind::Detach]) }?;
        let run = |disk: &avhdx_disk| {
            disk.check_io("detach", &[Need::Write])?;
            ops::detach(&disk.chain, &chosen.settings.rebase, &mut report)
        };
        // SAFETY: the caller's promise is that of `on_disk_alone`.
        unsafe { on_disk_alone(disk, run) }?;
        Ok(0)
    })
}
