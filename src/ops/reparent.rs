//! Telling a differencing disk where its parent is now (docs/durability.md "Re-parent"): the shape of Set-VHD -ParentPath.

use std::path::{Path, PathBuf};

use super::layers::{self, check_sectors, readable, writable};
use crate::error::{Error, ErrorKind, PathContext, Result};
use crate::guid::Guid;
use crate::image::Shared;
use crate::options::{OpenOptions, ReparentOptions};
use crate::trace;

/// What a re-parent did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReparentReport {
    /// The parent now.
    pub parent: PathBuf,
    /// DataWriteGuid of the parent.
    pub parent_id: Guid,
    /// DataWriteGuid the child had recorded.
    pub recorded: Guid,
    /// The parent is the one the child was made on. False only when that was waived.
    pub matched: bool,
    /// What the caller should know, in words.
    pub warnings: Vec<String>,
}

/// Makes the file at `parent` the parent of the differencing disk at `child`, by changing the child's locator alone, in
/// one log entry. The parent must be the disk the child was made on, by its DataWriteGuid, wherever it moved to;
/// anything else is `ParentIdMismatch` with both GUIDs, unless `ignore_id_mismatch` says that the content is right all
/// the same. Logical sector sizes must be equal. A parent that depends on the child is `ChainLoop`.
///
/// DataWriteGuid of the child stays: its own children remain valid. Durable on return; after a failure the child names
/// its old parent.
pub fn reparent(child: &Path, parent: &Path, open: &OpenOptions, options: &ReparentOptions) -> Result<ReparentReport> {
    let shared = Shared::new(open.meta_cache_size, open.cache);
    let child = writable(child, open, &shared)?;
    let Some((linkage, linkage2)) = child.linkage() else {
        return Err(Error::new(ErrorKind::Argument, "the disk has no parent")
            .with_path(child.name())
            .with_hint("only a differencing disk can get another parent; create one on the new parent instead"));
    };
    layers::refuse_cycle(open, (&**child.storage(), child.name()), parent, &shared)?;
    let parent = readable(parent, open, &shared)?;
    check_sectors(&child, &parent)?;
    let identity = parent.data_write_guid();
    let matched = identity == linkage || linkage2 == Some(identity);
    let mut warnings = Vec::new();
    // An interrupted merge may need both: what matches stays as it is.
    let mut linkages = (linkage, linkage2);
    if !matched {
        let message = format!("the disk was made on a parent with DataWriteGuid {linkage}, this one has {identity}");
        if !options.ignore_id_mismatch {
            return Err(Error::new(ErrorKind::ParentIdMismatch, message)
                .with_path(parent.name())
                .with_hint(
                    "name the right file; ignore-id-mismatch accepts this one, and is right only if nothing was written \
                     to it since the child was made",
                ));
        }
        warnings.push(message);
        let (wanted, found) = (child.virtual_size(), parent.virtual_size());
        if wanted != found {
            warnings.push(format!(
                "the parent is a disk of {found} bytes, the child of {wanted}: they may not belong together"
            ));
        }
        linkages = (identity, None);
    }
    for warning in &warnings {
        trace::warn(|| format!("{:?}: {warning}", child.name()));
    }
    layers::relink(open, &child, parent.name(), linkages).at(child.name())?;
    child.clean()?;
    Ok(ReparentReport {
        parent: parent.name().to_path_buf(),
        parent_id: identity,
        recorded: linkage,
        matched,
        warnings,
    })
}
