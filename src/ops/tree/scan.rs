//! From directories to files. Bounded in depth, in number, and in what is read of each file.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{ProblemKind, Role, Tree, TreeNode, TreeOptions, Unreadable};
use crate::chain::disk_type;
use crate::chain::locate::is_vhdx;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::format::locator::MERGE;
use crate::guid::Guid;
use crate::image::front::Front;
use crate::image::headers;
use crate::limits;
use crate::options::{LogPolicy, OpenOptions};
use crate::storage::{Access, EntryKind, FileId, Storage};

/// Times that a file which changes under the reader is read.
const ATTEMPTS: u32 = 3;

pub(super) struct Scan<'a> {
    open: &'a OpenOptions,
    options: &'a TreeOptions,
    tree: Tree,
    seen: HashSet<FileId>,
    entries: usize,
}

impl<'a> Scan<'a> {
    pub(super) fn new(open: &'a OpenOptions, options: &'a TreeOptions) -> Self {
        Scan {
            open,
            options,
            tree: Tree::default(),
            seen: HashSet::new(),
            entries: 0,
        }
    }

    /// Everything at and below a path that the caller named; links in that path itself are followed.
    pub(super) fn root(&mut self, path: &Path) -> Result<()> {
        let fs = &self.open.file_system;
        let failed = |cause: io::Error| {
            let missing = cause.kind() == io::ErrorKind::NotFound;
            let error = Error::io("look into the directory", cause);
            match missing {
                true => error.with_hint("check the path"),
                false => error.with_hint("check its permissions"),
            }
        };
        let absolute = fs.absolute(path).map_err(failed)?;
        match fs.kind(&absolute).map_err(failed)? {
            EntryKind::Directory => {}
            _ => {
                if self.file(path, &absolute) {
                    return Ok(());
                }
                return self.walk(path, absolute).map_err(failed);
            }
        }
        self.walk(path, absolute).map_err(failed)
    }

    fn walk(&mut self, path: &Path, absolute: PathBuf) -> io::Result<()> {
        let mut pending = vec![(path.to_path_buf(), absolute, 0)];
        while let Some((dir, absolute, depth)) = pending.pop() {
            let room = limits::MAX_SCANNED_ENTRIES.saturating_sub(self.entries);
            let mut listed = match self.open.file_system.list(&absolute, room.saturating_add(1)) {
                Ok(listed) => listed,
                Err(cause) if depth == 0 => return Err(cause),
                Err(cause) => {
                    self.unreadable(dir, cause);
                    continue;
                }
            };
            if listed.len() > room {
                listed.truncate(room);
                self.tree.truncated = true;
            }
            self.entries += listed.len();
            listed.sort();
            let mut below = Vec::new();
            for entry in listed {
                let Some(name) = entry.file_name() else { continue };
                let shown = dir.join(name);
                match self.open.file_system.kind(&entry) {
                    Ok(EntryKind::Directory) if !self.options.recurse => {}
                    Ok(EntryKind::Directory) if depth >= limits::MAX_SCANNED_DEPTH => self.tree.truncated = true,
                    Ok(EntryKind::Directory) => below.push((shown, entry, depth + 1)),
                    Ok(EntryKind::File) => drop(self.file(&shown, &entry)),
                    Ok(EntryKind::Other) => {}
                    // Gone since it was listed.
                    Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
                    Err(cause) => self.unreadable(shown, cause),
                }
            }
            pending.extend(below.into_iter().rev());
        }
        Ok(())
    }

    fn unreadable(&mut self, filename: PathBuf, cause: io::Error) {
        self.tree.unreadable.push(Unreadable {
            filename,
            why: cause.to_string(),
        });
    }

    /// Looks at one file. False if it cannot be opened and has no name of ours.
    fn file(&mut self, shown: &Path, absolute: &Path) -> bool {
        let extension = extension(shown);
        let ours = matches!(extension.as_str(), "vhdx" | "avhdx" | "vhds");
        let storage = match self.open.file_system.open(absolute, Access::Read) {
            Ok(storage) => storage,
            Err(cause) if ours && cause.kind() != io::ErrorKind::NotFound => {
                let mut node = empty(shown, absolute);
                node.note(ProblemKind::Broken, format!("cannot be opened: {cause}"));
                self.tree.nodes.push(node);
                return true;
            }
            Err(_) => {
                self.tree.other_files += 1;
                return false;
            }
        };
        // A second name of a file is not a second file.
        if storage.id().is_some_and(|id| !self.seen.insert(id)) {
            return true;
        }
        if !ours && !is_vhdx(&*storage) {
            self.tree.other_files += 1;
            return true;
        }
        self.tree.nodes.push(node(storage, shown, absolute));
        true
    }

    pub(super) fn finish(mut self) -> Tree {
        self.tree.nodes.sort_by(|a, b| a.filename.cmp(&b.filename));
        self.tree
    }
}

fn extension(path: &Path) -> String {
    path.extension()
        .unwrap_or_default()
        .to_string_lossy()
        .to_ascii_lowercase()
}

fn empty(shown: &Path, absolute: &Path) -> TreeNode {
    TreeNode {
        filename: shown.to_path_buf(),
        role: Role::Broken,
        outside: false,
        disk_type: None,
        virtual_size: 0,
        file_size: 0,
        actual_size: None,
        modified: None,
        virtual_disk_id: Guid::ZERO,
        data_write_guid: Guid::ZERO,
        parent_linkage: None,
        parent_linkage2: None,
        parent_paths: Vec::new(),
        dirty_flag: false,
        parent: None,
        children: Vec::new(),
        problems: Vec::new(),
        absolute: absolute.to_path_buf(),
        id: None,
        merging: false,
    }
}

/// What a file says about itself. The role is settled when all are known.
pub(super) fn node(storage: Arc<dyn Storage>, shown: &Path, absolute: &Path) -> TreeNode {
    let mut node = empty(shown, absolute);
    node.id = storage.id();
    node.file_size = storage.len().unwrap_or(0);
    node.actual_size = storage.allocated();
    node.modified = storage.modified();
    let is_set = extension(shown) == "vhds";
    if is_set {
        node.role = Role::Set;
        return node;
    }
    let front = match front(&storage) {
        Ok(front) => front,
        Err(error) => {
            node.note(ProblemKind::Broken, error.chain_text());
            return node;
        }
    };
    let items = &front.items;
    node.role = Role::Disk;
    node.disk_type = Some(disk_type(items));
    node.virtual_size = items.virtual_size;
    node.virtual_disk_id = items.virtual_disk_id;
    node.data_write_guid = front.current.header.data_write_guid;
    node.dirty_flag = front.dirty;
    if let Some((linkage, linkage2)) = front.linkage() {
        node.parent_linkage = Some(linkage);
        node.parent_linkage2 = linkage2;
        if let Some(locator) = &items.locator {
            node.parent_paths = locator.paths();
            node.merging = locator.get(MERGE).is_some();
        }
    }
    node
}

/// The front of a file that others may be writing to: what does not fit together may do so a moment later.
fn front(storage: &Arc<dyn Storage>) -> Result<Front> {
    check_log(&**storage)?;
    let mut attempt = 1;
    loop {
        match Front::read(storage.clone(), LogPolicy::Memory, false) {
            Err(error) if attempt < ATTEMPTS && error.kind() != ErrorKind::NotVhdx => attempt += 1,
            other => return other,
        }
    }
}

/// Refuses a log in use that would take long to read: many such files would hold up the scan.
fn check_log(storage: &dyn Storage) -> Result<()> {
    let file_len = storage.len().context(|| "get the file length".into())?;
    // What is wrong with the header is told by whoever reads all of it.
    let Ok(current) = headers::read(storage, file_len) else {
        return Ok(());
    };
    let header = &current.header;
    if !header.log_guid.is_zero() && header.log_length > limits::MAX_SCANNED_LOG {
        let message = format!(
            "its log of {} bytes is in use, and is too large to be read in a scan",
            header.log_length
        );
        return Err(Error::new(ErrorKind::LogReplayRequired, message).with_hint("open it once for writing"));
    }
    Ok(())
}
