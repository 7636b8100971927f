//! What an operation would do, without doing it: it is rehearsed on files that only seem to change.

use std::path::PathBuf;
use std::sync::Arc;

use crate::chain::Chain;
use crate::error::{Error, Result};
use crate::storage::rehearsal::Rehearsal;

/// A file that an operation would make, change or remove.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct FileChange {
    /// The file.
    #[serde(serialize_with = "crate::json::path")]
    pub filename: PathBuf,
    /// Its length now, in bytes; `None`: there is none.
    pub before: Option<u64>,
    /// Its length afterwards, in bytes; `None`: it is removed.
    pub after: Option<u64>,
}

/// What an operation would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Plan {
    /// Bytes of the disk that would be written, or shared between files.
    pub bytes: u64,
    /// Bytes by which files would grow, new files included.
    pub growth: u64,
    /// Bytes that files would lose, removed files included.
    pub reclaimed: u64,
    /// Bytes free where the leaf is, if known.
    pub free: Option<u64>,
    /// Every file that would be made, changed or removed, by name.
    pub files: Vec<FileChange>,
}

impl Plan {
    /// Whether there is room for what would be written; what is removed only at the end makes none.
    pub fn fits(&self) -> bool {
        self.free.is_none_or(|free| self.bytes <= free)
    }
}

/// Rehearses `operation` on the disk as it is now. It is given a chain that has the same files, and may do anything with
/// it, `ops` included: no file changes, but that the leaf's log is emptied first, and no lock is taken. Reads go on meanwhile, writes wait. Content is read only
/// where the operation has to look at it, as compacting and converting have, and where it is told not to leave copying to the
/// kernel (`MergeMode::Copy`).
///
/// The lengths are those that the operation arrives at if nothing is written to the disk meanwhile, after the disk is
/// closed. Errors are those of the operation, except that it cannot run out of space.
pub fn plan(chain: &Chain, operation: impl FnOnce(&Chain) -> Result<()>) -> Result<Plan> {
    let _control = chain.control.lock();
    let _no_writes = chain.gate().write();
    let layers = chain.current().layers.clone();
    let leaf = &layers[0];
    if leaf.is_writable() {
        // What is only in memory, or only ahead, comes into the file as on closing: the rehearsal begins with that.
        leaf.clean_keeping_mode()?;
    }
    let below = chain.options().file_system.clone();
    let rehearsal = Arc::new(Rehearsal::new(below));
    for layer in &layers {
        rehearsal
            .adopt(layer.name(), layer.storage().clone())
            .map_err(|cause| Error::io("get the file length", cause).with_path(layer.name()))?;
    }
    let mut options = chain.options().clone().on(rehearsal.clone());
    options.read_only = false;
    options.lock = false;
    let paths: Vec<PathBuf> = layers.iter().map(|layer| layer.name().to_path_buf()).collect();
    let rehearsed = Chain::open_layers(&paths, &options)?;
    operation(&rehearsed)?;
    rehearsed.close()?;
    let mut plan = Plan {
        bytes: rehearsal.payload(),
        free: leaf.storage().available_space().unwrap_or(None),
        ..Plan::default()
    };
    for change in rehearsal.changes() {
        let (before, after) = (change.before.unwrap_or(0), change.after.unwrap_or(0));
        plan.growth += after.saturating_sub(before);
        plan.reclaimed += before.saturating_sub(after);
        plan.files.push(FileChange {
            filename: change.path,
            before: change.before,
            after: change.after,
        });
    }
    Ok(plan)
}
