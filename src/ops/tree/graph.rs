//! From files to edges.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use super::scan;
use super::{ProblemKind, Role, Tree, TreeNode, TreeOptions};
use crate::chain::locate::directory;
use crate::chain::paths;
use crate::format::locator::{ABSOLUTE_WIN32_PATH, RELATIVE_PATH, VOLUME_PATH};
use crate::guid::Guid;
use crate::limits;
use crate::options::OpenOptions;
use crate::storage::{Access, FileId};

/// Nodes by what edges are found with.
#[derive(Default)]
struct Index {
    identities: HashMap<Guid, Vec<usize>>,
    files: HashMap<FileId, usize>,
}

impl Index {
    fn add(&mut self, i: usize, node: &TreeNode) {
        if let Some(id) = node.id {
            self.files.insert(id, i);
        }
        if !node.data_write_guid.is_zero() {
            self.identities.entry(node.data_write_guid).or_default().push(i);
        }
    }
}

/// Finds the parent of every node, and what is wrong.
pub(super) fn connect(tree: &mut Tree, open: &OpenOptions, options: &TreeOptions) {
    let mut index = Index::default();
    for (i, node) in tree.nodes.iter().enumerate() {
        index.add(i, node);
    }
    let mut i = 0;
    // Parents found outside are added at the end and get their turn.
    while i < tree.nodes.len() {
        find_parent(tree, &mut index, i, open, options);
        i += 1;
    }
    cut_loops(tree);
    for i in 0..tree.nodes.len() {
        if let Some(parent) = tree.nodes[i].parent {
            tree.nodes[parent].children.push(i);
        }
    }
    note_duplicates(tree, &index);
    for node in &mut tree.nodes {
        if node.role == Role::Disk {
            node.role = match (node.parent_linkage, node.parent, node.children.is_empty()) {
                (None, _, true) => Role::Disk,
                (None, _, false) => Role::Base,
                (Some(_), None, _) => Role::Orphan,
                (Some(_), Some(_), true) => Role::Leaf,
                (Some(_), Some(_), false) => Role::Checkpoint,
            };
        }
    }
}

fn find_parent(tree: &mut Tree, index: &mut Index, i: usize, open: &OpenOptions, options: &TreeOptions) {
    let node = &tree.nodes[i];
    let Some(linkage) = node.parent_linkage else { return };
    let places = recorded(node, open);
    // The first linkage is asked first: the second only counts while a merge is unfinished.
    let wanted = [Some(linkage), node.parent_linkage2];
    let of = |index: &Index, guid: Option<Guid>| -> Vec<usize> {
        let all = guid.and_then(|guid| index.identities.get(&guid));
        all.into_iter().flatten().copied().filter(|&other| other != i).collect()
    };
    let mut candidates = wanted
        .iter()
        .map(|&guid| of(index, guid))
        .find(|found| !found.is_empty());
    let mut modified = None;
    if candidates.is_none() {
        for place in &places {
            match look_outside(tree, index, place, open, options) {
                Some(other) if other == i => {}
                Some(other) if wanted.contains(&Some(tree.nodes[other].data_write_guid)) => {
                    candidates = Some(vec![other]);
                    break;
                }
                Some(other) => modified = Some(other),
                None => {}
            }
        }
    }
    let Some(candidates) = candidates else {
        let (kind, text) = missing(tree, i, linkage, modified);
        tree.nodes[i].note(kind, text);
        return;
    };
    let leads = |other: &&usize| {
        let absolute = &tree.nodes[**other].absolute;
        places.iter().any(|place| leads_to(place, absolute, open))
    };
    let recorded = candidates.iter().find(leads).copied();
    let beside = |other: &&usize| directory(&tree.nodes[**other].absolute) == directory(&tree.nodes[i].absolute);
    let parent = recorded.or_else(|| candidates.iter().find(beside).or(candidates.first()).copied());
    let Some(parent) = parent else { return };
    let (interrupted, name) = (
        tree.nodes[parent].data_write_guid != linkage || tree.nodes[i].merging,
        tree.nodes[parent].filename.clone(),
    );
    let node = &mut tree.nodes[i];
    node.parent = Some(parent);
    if interrupted {
        let text = format!("a merge into {name:?} was interrupted; resume it");
        node.note(ProblemKind::InterruptedMerge, text);
    }
    if recorded.is_none() {
        node.note(
            ProblemKind::StalePath,
            format!("the paths recorded do not lead to its parent, {name:?}"),
        );
    }
}

fn missing(tree: &Tree, i: usize, linkage: Guid, modified: Option<usize>) -> (ProblemKind, String) {
    if let Some(other) = modified {
        let other = &tree.nodes[other];
        let text = format!(
            "its parent was modified or is another disk: {:?} has DataWriteGuid {}, wanted {linkage}",
            other.filename, other.data_write_guid
        );
        return (ProblemKind::ParentModified, text);
    }
    let paths: Vec<String> = tree.nodes[i]
        .parent_paths
        .iter()
        .map(|(_, text)| format!("{text:?}"))
        .collect();
    let text = format!(
        "its parent (DataWriteGuid {linkage}) was not found; recorded as {}",
        paths.join(", ")
    );
    (ProblemKind::MissingParent, text)
}

/// Where the recorded paths point on this host, in the order in which they are tried.
fn recorded(node: &TreeNode, open: &OpenOptions) -> Vec<PathBuf> {
    let dir = directory(&node.absolute);
    let host = |key: &str| {
        let (_, text) = node.parent_paths.iter().find(|(name, _)| name == key)?;
        match key {
            RELATIVE_PATH => paths::relative_to_host(text, &dir).ok(),
            _ => paths::absolute_to_host(text, &open.drive_map).ok(),
        }
    };
    [RELATIVE_PATH, VOLUME_PATH, ABSOLUTE_WIN32_PATH]
        .into_iter()
        .filter_map(host)
        .collect()
}

/// Whether a recorded path is that of the file at `absolute`. Windows does not tell cases apart.
fn leads_to(place: &Path, absolute: &Path, open: &OpenOptions) -> bool {
    if open.file_system.absolute(place).is_ok_and(|place| place == absolute) {
        return true;
    }
    let mut plain = PathBuf::new();
    for component in place.components() {
        match component {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    match (plain.to_str(), absolute.to_str()) {
        (Some(plain), Some(absolute)) => plain.to_lowercase() == absolute.to_lowercase(),
        _ => false,
    }
}

/// The file at a recorded path: one that is known, or a new node.
fn look_outside(
    tree: &mut Tree,
    index: &mut Index,
    place: &Path,
    open: &OpenOptions,
    options: &TreeOptions,
) -> Option<usize> {
    let fs = &open.file_system;
    let storage = match &open.parent_root {
        Some(root) => fs.open_beneath(root, place),
        None => fs.open(place, Access::Read),
    };
    let storage = storage.ok()?;
    if let Some(&known) = storage.id().and_then(|id| index.files.get(&id)) {
        return Some(known);
    }
    if !options.outside || tree.nodes.len() >= limits::MAX_SCANNED_ENTRIES {
        return None;
    }
    let absolute = fs.absolute(place).ok()?;
    let mut node = scan::node(storage, &absolute, &absolute);
    // Not a disk: nobody's parent.
    node.disk_type?;
    node.outside = true;
    let i = tree.nodes.len();
    index.add(i, &node);
    tree.nodes.push(node);
    Some(i)
}

/// Takes one edge out of every loop.
fn cut_loops(tree: &mut Tree) {
    const NEW: usize = usize::MAX;
    let mut seen_from = vec![NEW; tree.nodes.len()];
    for start in 0..tree.nodes.len() {
        let mut at = start;
        while seen_from[at] == NEW {
            seen_from[at] = start;
            let Some(parent) = tree.nodes[at].parent else { break };
            if seen_from[parent] == start {
                let text = format!("its parents lead back to it, through {:?}", tree.nodes[parent].filename);
                let node = &mut tree.nodes[at];
                node.parent = None;
                node.note(ProblemKind::Loop, text);
                break;
            }
            at = parent;
        }
    }
}

fn note_duplicates(tree: &mut Tree, index: &Index) {
    for same in index.identities.values().filter(|same| same.len() > 1) {
        for &i in same {
            let Some(&other) = same.iter().find(|&&other| other != i) else {
                continue;
            };
            let text = format!(
                "has the identity of {:?}: one is a copy of the other",
                tree.nodes[other].filename
            );
            tree.nodes[i].note(ProblemKind::Duplicate, text);
        }
    }
}
