//! Trees of files
//!
//! Who is whose parent among the files of whole directories, by identity, wherever they lie. The front of each file is
//! read and nothing else; no lock is taken and nothing written, so files in use are fine. A tree is a picture of one
//! moment and does not change; any number of threads may look at it.

use std::ffi::{c_char, c_int, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use super::error::c_string;
use super::guard::{argument, borrow, borrow_mut, guard, null, out_handle, path, Out, Output};
use super::info::{AVHDX_INFO_DIRTY_LOG, AVHDX_INFO_HAS_PARENT};
use super::io::{check_io, IoFileSystem, Need};
use super::opts::{avhdx_opts, choose};
use super::owned_string;
use crate::error::{Error, ErrorKind, Result};
use crate::guid::Guid;
use crate::ops::tree::{self, ProblemKind, Role, Tree, TreeNode};
use crate::options::{DiskType, OpenOptions};
use crate::schema::Kind;

/// No node: the parent of one without parent.
pub const AVHDX_NO_NODE: u32 = 0xffffffff;

/// Role: neither parent nor children.
pub const AVHDX_ROLE_DISK: u32 = 1;
/// Role: no parent, but children.
pub const AVHDX_ROLE_BASE: u32 = 2;
/// Role: a parent and children.
pub const AVHDX_ROLE_CHECKPOINT: u32 = 3;
/// Role: a parent and no children.
pub const AVHDX_ROLE_LEAF: u32 = 4;
/// Role: a differencing disk whose parent is missing.
pub const AVHDX_ROLE_ORPHAN: u32 = 5;
/// Role: a VHD Set (.vhds), told by its name and not looked into.
pub const AVHDX_ROLE_SET: u32 = 6;
/// Role: cannot be read as what it says it is.
pub const AVHDX_ROLE_BROKEN: u32 = 7;

/// Problem: no file has the identity recorded of the parent.
pub const AVHDX_PROBLEM_MISSING_PARENT: u32 = 0x1;
/// Problem: the file where the parent should be is another disk or was modified.
pub const AVHDX_PROBLEM_PARENT_MODIFIED: u32 = 0x2;
/// Problem: a merge into the parent was cut short; avhdx_resume finishes it.
pub const AVHDX_PROBLEM_INTERRUPTED_MERGE: u32 = 0x4;
/// Problem: the paths recorded do not lead to the parent; avhdx_tree_fix records others.
pub const AVHDX_PROBLEM_STALE_PATH: u32 = 0x8;
/// Problem: another file has the same identity.
pub const AVHDX_PROBLEM_DUPLICATE: u32 = 0x10;
/// Problem: the file cannot be read as a VHDX.
pub const AVHDX_PROBLEM_BROKEN: u32 = 0x20;
/// Problem: the parents of the file lead back to it.
pub const AVHDX_PROBLEM_LOOP: u32 = 0x40;

/// A file of a tree. Since 1.0.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct avhdx_tree_node {
    /// Set by AVHDX_TREE_NODE_INIT.
    pub struct_size: u32,
    /// AVHDX_ROLE_...
    pub role: u32,
    /// AVHDX_TYPE_..., 0 when it could not be read.
    pub r#type: u32,
    /// AVHDX_INFO_DIRTY_LOG, AVHDX_INFO_HAS_PARENT.
    pub flags: u32,
    /// AVHDX_PROBLEM_... of the file, any number of them.
    pub problems: u32,
    /// Its parent; AVHDX_NO_NODE without one, or when that is missing.
    pub parent: u32,
    /// Number of its children.
    pub child_count: u32,
    /// Number of files it consists of: 1 and its parents.
    pub depth: u32,
    /// Bytes of the virtual disk.
    pub virtual_size: u64,
    /// Length of the file in bytes.
    pub file_size: u64,
    /// Bytes it takes on its file system; as file_size where that does not tell.
    pub actual_size: u64,
    /// When it was last written, in seconds since 1970; 0 where that is not known.
    pub modified: u64,
    /// SCSI page 83 identity, the same through a chain.
    pub virtual_disk_id: [u8; 16],
    /// Identity of the content: what a child records of its parent.
    pub data_write_guid: [u8; 16],
    /// The data write GUID its parent must have; zeros without a parent.
    pub parent_linkage: [u8; 16],
}
// SAFETY: begins with a u32 and holds integers only.
unsafe impl Output for avhdx_tree_node {}

/// Files and how they hang together. Made by avhdx_tree_scan, freed by avhdx_tree_free.
#[derive(Debug)]
pub struct avhdx_tree {
    tree: Tree,
    names: Vec<CString>,
    open: OpenOptions,
    io: Option<Arc<IoFileSystem>>,
}

impl avhdx_tree {
    fn node(&self, index: u32) -> Result<&TreeNode> {
        self.tree
            .nodes
            .get(index as usize)
            .ok_or_else(|| no_node(index, self.tree.nodes.len()))
    }
}

fn no_node(index: u32, count: usize) -> Error {
    argument(format!("there is no node {index}: the tree has {count}"))
}

/// Scans count directories, and the directories in them; files may be named too. Links inside them are not followed. A
/// parent elsewhere is found when a recorded path leads to it. A file that cannot be read is a node, not an error.
///
/// Keys: those of "tree", and of "open" for drive-map and parent-root. Errors: ARGUMENT; IO when one of dirs itself
/// cannot be read. tree: not NULL, *tree is NULL after a failure; dirs: not NULL, nor any of its members; opts: may be
/// NULL. Any thread. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `dirs` has `count` members.
#[no_mangle]
pub unsafe extern "C" fn avhdx_tree_scan(
    tree: *mut *mut avhdx_tree,
    dirs: *const *const c_char,
    count: usize,
    opts: *const avhdx_opts,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `out_handle`.
        let out = unsafe { out_handle(tree, "tree") }?;
        if dirs.is_null() {
            return Err(null("dirs"));
        }
        let most = crate::limits::MAX_SCANNED_ENTRIES;
        if count == 0 || count > most {
            return Err(argument(format!("{count} directories")).with_hint(format!("1 to {most} paths")));
        }
        // SAFETY: not NULL, and `count` members by the caller's promise.
        let dirs = unsafe { std::slice::from_raw_parts(dirs, count) };
        let dirs: Vec<PathBuf> = dirs
            .iter()
            .enumerate()
            // SAFETY: the caller's promise for each member is that of `path`.
            .map(|(i, &text)| unsafe { path(text, &format!("dirs[{i}]")) })
            .collect::<Result<_>>()?;
        // SAFETY: the caller's promise is that of `choose`.
        let chosen = unsafe { choose(opts, &[Kind::Tree, Kind::Open]) }?;
        chosen.check_io("tree_scan", &[Need::List])?;
        let open = chosen.settings.open;
        let tree = Tree::scan(&dirs, &open, &chosen.settings.tree)?;
        let name = |node: &TreeNode| c_string(node.filename.as_os_str().as_bytes());
        let names = tree.nodes.iter().map(name).collect();
        let io = chosen.io;
        *out = Box::into_raw(Box::new(avhdx_tree { tree, names, open, io }));
        Ok(0)
    })
}

/// The number of files in the tree. Their numbers are 0 to that less 1, in the order of their paths. tree: not NULL. Any
/// thread. Since 1.0.
///
/// # Safety
/// `tree` is NULL or from `avhdx_tree_scan` and not freed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_tree_count(tree: *const avhdx_tree) -> i64 {
    guard(|| {
        // SAFETY: the caller's promise is that of `borrow`.
        let tree = unsafe { borrow(tree, "tree") }?;
        i64::try_from(tree.tree.nodes.len()).map_err(|_| Error::new(ErrorKind::Bug, "more nodes than numbers"))
    })
}

/// Tells what a node is. Errors: ARGUMENT when there is no such node. tree, node: not NULL. Any thread. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `tree` is not freed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_tree_node(tree: *const avhdx_tree, index: u32, node: *mut avhdx_tree_node) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `borrow`.
        let tree = unsafe { borrow(tree, "tree") }?;
        // SAFETY: the caller's promise is that of `Out::new`.
        let out = unsafe { Out::new(node, "node") }?;
        let node = tree.node(index)?;
        let stored = |guid: Option<Guid>| guid.unwrap_or(Guid::ZERO).to_stored();
        let flag = |is_set: bool, bit: u32| if is_set { bit } else { 0 };
        let since = node.modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        out.set(avhdx_tree_node {
            struct_size: 0,
            role: role_number(node.role),
            r#type: match node.disk_type {
                None => 0,
                Some(DiskType::Fixed) => super::info::AVHDX_TYPE_FIXED,
                Some(DiskType::Dynamic) => super::info::AVHDX_TYPE_DYNAMIC,
                Some(DiskType::Differencing) => super::info::AVHDX_TYPE_DIFFERENCING,
            },
            flags: flag(node.dirty_flag, AVHDX_INFO_DIRTY_LOG)
                | flag(node.parent_linkage.is_some(), AVHDX_INFO_HAS_PARENT),
            problems: node
                .problems
                .iter()
                .fold(0, |bits, problem| bits | problem_bit(problem.kind)),
            parent: node.parent.map_or(AVHDX_NO_NODE, |parent| parent as u32),
            child_count: node.children.len() as u32,
            depth: tree.tree.depth(index as usize) as u32,
            virtual_size: node.virtual_size,
            file_size: node.file_size,
            actual_size: node.actual_size.unwrap_or(node.file_size),
            modified: since.map_or(0, |since| since.as_secs()),
            virtual_disk_id: node.virtual_disk_id.to_stored(),
            data_write_guid: node.data_write_guid.to_stored(),
            parent_linkage: stored(node.parent_linkage),
        });
        Ok(0)
    })
}

fn role_number(role: Role) -> u32 {
    match role {
        Role::Disk => AVHDX_ROLE_DISK,
        Role::Base => AVHDX_ROLE_BASE,
        Role::Checkpoint => AVHDX_ROLE_CHECKPOINT,
        Role::Leaf => AVHDX_ROLE_LEAF,
        Role::Orphan => AVHDX_ROLE_ORPHAN,
        Role::Set => AVHDX_ROLE_SET,
        Role::Broken => AVHDX_ROLE_BROKEN,
    }
}

fn problem_bit(kind: ProblemKind) -> u32 {
    match kind {
        ProblemKind::MissingParent => AVHDX_PROBLEM_MISSING_PARENT,
        ProblemKind::ParentModified => AVHDX_PROBLEM_PARENT_MODIFIED,
        ProblemKind::InterruptedMerge => AVHDX_PROBLEM_INTERRUPTED_MERGE,
        ProblemKind::StalePath => AVHDX_PROBLEM_STALE_PATH,
        ProblemKind::Duplicate => AVHDX_PROBLEM_DUPLICATE,
        ProblemKind::Broken => AVHDX_PROBLEM_BROKEN,
        ProblemKind::Loop => AVHDX_PROBLEM_LOOP,
    }
}

/// The path of a node's file, bytes; it lives with the tree. NULL when there is no such node. tree: not NULL. Any thread.
/// Since 1.0.
///
/// # Safety
/// `tree` is NULL or from `avhdx_tree_scan` and not freed while the path is used.
#[no_mangle]
pub unsafe extern "C" fn avhdx_tree_path(tree: *const avhdx_tree, index: u32) -> *const c_char {
    guard(|| {
        // SAFETY: the caller's promise is that of `borrow`.
        let tree = unsafe { borrow(tree, "tree") }?;
        let name = tree.names.get(index as usize);
        name.map(|name| name.as_ptr())
            .ok_or_else(|| no_node(index, tree.names.len()))
    })
}

/// Tells the children of a node, or, for AVHDX_NO_NODE, the nodes without parent. On entry *n is the room at children;
/// on success it is their number, of which as many as there was room for are written: ask with *n 0 first, or use
/// child_count. Errors: ARGUMENT when there is no such node. tree, n: not NULL; children: not NULL unless *n is 0.
/// Any thread. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `children` has room for `*n`; `tree` is not freed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_tree_children(
    tree: *const avhdx_tree,
    index: u32,
    children: *mut u32,
    n: *mut usize,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `borrow`.
        let tree = unsafe { borrow(tree, "tree") }?;
        // SAFETY: the caller's promise is that of `borrow_mut`.
        let n = unsafe { borrow_mut(n, "n") }?;
        if children.is_null() && *n > 0 {
            return Err(null("children"));
        }
        let found: Vec<usize> = match index {
            AVHDX_NO_NODE => tree.tree.roots().collect(),
            index => tree.node(index)?.children.clone(),
        };
        for (i, &child) in found.iter().take(*n).enumerate() {
            // SAFETY: not NULL as *n is not 0, and room for `*n` by the caller's promise; i < *n.
            unsafe { children.add(i).write(child as u32) };
        }
        *n = found.len();
        Ok(0)
    })
}

/// The number of the node whose file is at path, by whatever path or link that leads to it; -ENOENT when the file is none
/// of the tree. tree, path: not NULL. Any thread. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `tree` is not freed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_tree_find(tree: *const avhdx_tree, path: *const c_char) -> i64 {
    guard(|| {
        // SAFETY: the caller's promise is that of `borrow`.
        let tree = unsafe { borrow(tree, "tree") }?;
        // SAFETY: the caller's promise is that of `path`.
        let path = unsafe { self::path(path, "path") }?;
        match tree.tree.find(&path, &tree.open) {
            Some(node) => Ok(node as i64),
            None => {
                let cause = std::io::Error::from_raw_os_error(libc::ENOENT);
                let error = Error::io("find the file in the tree", cause).with_path(&path);
                Err(error.with_hint("scan the directory it is in"))
            }
        }
    })
}

/// The whole tree as JSON: nodes with their paths, roles, sizes, identities, parents, children and problems in words;
/// unreadable; other-files; truncated. Free it with avhdx_free. NULL after a failure. tree: not NULL. Any thread. Since
/// 1.0.
///
/// # Safety
/// `tree` is NULL or from `avhdx_tree_scan` and not freed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_tree_json(tree: *const avhdx_tree) -> *mut c_char {
    guard(|| {
        // SAFETY: the caller's promise is that of `borrow`.
        let tree = unsafe { borrow(tree, "tree") }?;
        let text = serde_json::to_string(&tree.tree)
            .map_err(|cause| Error::new(ErrorKind::Bug, "the tree cannot be put into JSON").with_source(cause))?;
        owned_string(&text)
    })
}

/// Records anew, in the file of a node with AVHDX_PROBLEM_STALE_PATH, where its parent is: 1 when that is done and
/// durable, 0 when its paths are good, or lead nowhere because it has no parent in the tree. Only the parent locator of
/// the file changes, and no identity. Both files are looked at again first: one that changed since the scan is left
/// alone (PARENT_ID_MISMATCH). The tree stays as it was; scan again to see. The options are those of the scan.
///
/// Errors: ARGUMENT when there is no such node; READ_ONLY (scanned with "read-only"), LOCKED, PARENT_ID_MISMATCH, NO_SPACE,
/// IO, and those of avhdx_open. tree: not NULL. Any thread. Since 1.0.
///
/// # Safety
/// `tree` is NULL or from `avhdx_tree_scan` and not freed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_tree_fix(tree: *const avhdx_tree, index: u32) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `borrow`.
        let tree = unsafe { borrow(tree, "tree") }?;
        tree.node(index)?;
        check_io(tree.io.as_deref(), "tree_fix", &[Need::Write])?;
        tree::relink_node(&tree.tree, index as usize, &tree.open).map(c_int::from)
    })
}

/// Frees a tree and the paths it gave out. tree: may be NULL. Since 1.0.
///
/// # Safety
/// `tree` is NULL or from `avhdx_tree_scan`, not yet freed, and no thread uses it.
#[no_mangle]
pub unsafe extern "C" fn avhdx_tree_free(tree: *mut avhdx_tree) {
    guard(|| {
        if !tree.is_null() {
            // SAFETY: made by Box::into_raw in avhdx_tree_scan, and freed once, by the caller's promise.
            drop(unsafe { Box::from_raw(tree) });
        }
        Ok(())
    });
}
