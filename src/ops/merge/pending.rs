//! Merges that were cut short: finding them by what they noted, and finishing them (docs/durability.md "Merge").

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::family::Family;
use super::record::Record;
use super::{merge, merge_path, MergeReport};
use crate::chain::Chain;
use crate::error::Result;
use crate::guid::Guid;
use crate::image::Image;
use crate::ops::layers;
use crate::options::{MergeOptions, OpenOptions, ProgressFn};

/// How far an interrupted merge got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PendingStage {
    /// The merged layers are still in the chain.
    Merging,
    /// The chain goes on without them; files are left behind.
    Tidying,
}

/// An interrupted merge. Layers are numbers in the chain that was looked at, 0 = leaf.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Pending {
    /// How far it is.
    pub stage: PendingStage,
    /// The uppermost layer merged; when tidying, the layer that stays above the target.
    pub top: usize,
    /// The layer merged into.
    pub base: usize,
    /// The file merged into.
    pub target: PathBuf,
    /// The merged files are to stay.
    pub keep: bool,
}

/// The lowest interrupted merge of the chain whose leaf is at `path`. Nothing is written.
///
/// Who began it may have been another program: then only the layer directly above the target is known to have been
/// meant, and only that is reported.
pub fn pending(path: &Path, open: &OpenOptions) -> Result<Option<Pending>> {
    let mut reading = open.clone();
    reading.read_only = true;
    find(&Chain::open(path, &reading)?)
}

/// Finishes every interrupted merge of the chain whose leaf is at `path`, as they were asked for, and closes. The disk
/// reads the same throughout. `None`: there was none. When the leaf itself is merged, the disk continues at the
/// report's target. Errors are those of [`merge`]; run it again after any of them.
pub fn resume(
    path: &Path,
    open: &OpenOptions,
    options: &MergeOptions,
    progress: ProgressFn<'_>,
) -> Result<Option<MergeReport>> {
    let mut leaf = path.to_path_buf();
    let mut all: Option<MergeReport> = None;
    loop {
        let chain = Chain::open(&leaf, open)?;
        let Some(found) = find(&chain)? else {
            chain.close()?;
            return Ok(all);
        };
        let mut options = options.clone();
        options.unlink &= !found.keep;
        let report = match found.stage {
            PendingStage::Merging => {
                let report = merge(&chain, found.top, found.base, &options, progress);
                let closed = chain.close();
                report.and_then(|report| closed.map(|()| report))?
            }
            PendingStage::Tidying => tidy(chain, &found, &options, progress)?,
        };
        if found.stage == PendingStage::Merging && found.top == 0 {
            leaf.clone_from(&found.target);
        }
        let all = all.get_or_insert_with(MergeReport::default);
        all.bytes += report.bytes;
        all.reflinked += report.reflinked;
        all.relinked.extend(report.relinked);
        all.removed.extend(report.removed);
        all.target = found.target;
    }
}

fn find(chain: &Chain) -> Result<Option<Pending>> {
    let layers = &chain.current().layers;
    for base in (1..layers.len()).rev() {
        let (child, target) = (&layers[base - 1], &layers[base]);
        if !child.shows_merge_into(target.data_write_guid()) {
            continue;
        }
        let record = Record::of(child);
        let tidying = record.is_some_and(|record| record.layers == 0);
        return Ok(Some(Pending {
            stage: match tidying {
                true => PendingStage::Tidying,
                false => PendingStage::Merging,
            },
            top: record
                .and_then(|record| top_of(record, layers, base))
                .unwrap_or(base - 1),
            base,
            target: target.name().to_path_buf(),
            keep: record.is_some_and(|record| record.keep),
        }));
    }
    Ok(None)
}

/// The layer that was to be merged with all below it, if the chain still is what it was then.
fn top_of(record: Record, layers: &[Arc<Image>], base: usize) -> Option<usize> {
    let top = base.checked_sub(record.layers.max(1))?;
    let same = match record.top.is_zero() {
        true => top == 0,
        false => record.layers > 0 && layers[top].data_write_guid() == record.top,
    };
    same.then_some(top)
}

/// The content is where it belongs and a child says so. What is left of the merged layers has no other use.
fn tidy(chain: Chain, found: &Pending, options: &MergeOptions, progress: ProgressFn<'_>) -> Result<MergeReport> {
    let layers = chain.current().layers.clone();
    let child = layers[found.top].clone();
    let merged = child.linkage().and_then(|(_, linkage2)| linkage2);
    let family = Family::find(&chain, &layers[found.top..=found.base])?;
    match merged.map(|merged| family.only(merged)).transpose()?.flatten() {
        // Its chain leads to the target too: merging it again only does what is left to do.
        Some(merged) => {
            let merged = merged.path().to_path_buf();
            let open = chain.options().clone();
            // The merge opens the child as another disk; whoever still holds it keeps it locked.
            drop((layers, child));
            chain.close()?;
            merge_path(&merged, Some(&found.target), &open, options, progress)
        }
        None => {
            let linkage = child.linkage().map(|(linkage, _)| linkage);
            let child = layers::promote(&chain, found.top)?;
            let mut locator = layers::locator_of(&child)?;
            locator.set_linkage(linkage.unwrap_or(Guid::ZERO), None);
            Record::note(None, &mut locator);
            child.set_locator(&locator)?;
            if found.top > 0 {
                layers::demote(&chain, &child)?;
            }
            chain.close().map(|()| MergeReport::default())
        }
    }
}
