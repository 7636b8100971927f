//! Makes edges permanent: children whose recorded paths no longer lead to their parent get paths that do
//! (docs/durability.md "Metadata items, locator").

use super::{ProblemKind, Tree, TreeNode};
use crate::chain::{locate, open};
use crate::error::{Error, ErrorKind, PathContext, Result};
use crate::image::{Image, Shared};
use crate::ops::layers;
use crate::options::{LogPolicy, OpenOptions};
use crate::storage::{Access, LockMode};

/// What became of a child.
#[derive(Debug)]
#[non_exhaustive]
pub struct Relinked {
    /// Its index.
    pub node: usize,
    /// Whether its paths lead to its parent now, durably.
    pub result: Result<()>,
}

/// Rewrites the recorded paths of every child in `tree` with a stale path. Metadata only: what the disks read as, their
/// DataWriteGuids and the linkage stay. Both files are looked at again first; one that changed since the scan, or is in
/// use, is left alone and said so, and the others go on.
pub fn relink(tree: &Tree, options: &OpenOptions) -> Vec<Relinked> {
    let outcome = |node| match relink_node(tree, node, options) {
        Ok(false) => None,
        Ok(true) => Some(Ok(())),
        Err(error) => Some(Err(error)),
    };
    (0..tree.nodes.len())
        .filter_map(|node| outcome(node).map(|result| Relinked { node, result }))
        .collect()
}

/// [`relink`] for one node: whether its paths were stale.
pub fn relink_node(tree: &Tree, node: usize, options: &OpenOptions) -> Result<bool> {
    let child = tree
        .nodes
        .get(node)
        .ok_or_else(|| Error::new(ErrorKind::Argument, format!("the tree has no node {node}")))?;
    let parent = child.parent.filter(|_| child.has(ProblemKind::StalePath));
    let Some(parent) = parent.and_then(|parent| tree.nodes.get(parent)) else {
        return Ok(false);
    };
    refresh(child, parent, options).at(&child.filename)?;
    Ok(true)
}

fn refresh(child: &TreeNode, parent: &TreeNode, options: &OpenOptions) -> Result<()> {
    if options.read_only {
        return Err(Error::new(ErrorKind::ReadOnly, "open for reading only").with_hint("leave read-only out"));
    }
    // The parent must not change while its identity is relied on.
    let parent_storage = open::storage(&parent.absolute, Access::Read, options)?;
    open::lock(&*parent_storage, LockMode::Read, options).at(&parent.filename)?;
    let identity = locate::identity(parent_storage)?;
    let storage = open::storage(&child.absolute, Access::Write, options)?;
    open::lock(&*storage, LockMode::Write, options)?;
    let shared = Shared::new(options.meta_cache_size, options.cache);
    let image = Image::open_write(storage, &child.absolute, LogPolicy::Auto, &shared)?;
    let unchanged = identity == parent.data_write_guid
        && image.data_write_guid() == child.data_write_guid
        && image.linkage() == child.parent_linkage.map(|linkage| (linkage, child.parent_linkage2));
    if !unchanged {
        return Err(Error::new(
            ErrorKind::ParentIdMismatch,
            "the file or its parent changed since the scan",
        )
        .with_hint("scan again"));
    }
    let linkages = layers::linkage_of(&image)?;
    layers::relink(options, &image, &parent.absolute, linkages)?;
    image.clean()
}
