//! Merges that were cut short: finding them by what they noted, and finishing them (docs/durability.md "Merge").

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::family::Family;
use super::record::{Record, Stage};
use super::{layer_at, merge, MergeReport};
use crate::chain::Chain;
use crate::error::Result;
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
    #[serde(serialize_with = "crate::json::path")]
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
        let tidying = record.is_some_and(|record| record.stage == Stage::Child);
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
    let top = base.checked_sub(record.layers).filter(|&top| top < base)?;
    let same = match record.leaf {
        true => top == 0,
        false => layers[top].data_write_guid() == record.top,
    };
    same.then_some(top)
}

/// The content is where it belongs and a child says so. What is left of the merged layers has no other use.
fn tidy(chain: Chain, found: &Pending, options: &MergeOptions, progress: ProgressFn<'_>) -> Result<MergeReport> {
    let layers = chain.current().layers.clone();
    let open = chain.options().clone();
    let path = layers[0].name().to_path_buf();
    let merged = layers[found.top].linkage().and_then(|(_, linkage2)| linkage2);
    let left = match merged {
        Some(merged) => Family::find(&chain, &layers[found.top..=found.base])?
            .only(merged)?
            .map(|left| left.path().to_path_buf()),
        None => None,
    };
    drop(layers);
    chain.close()?;
    if let Some(left) = left {
        let chain = Chain::open(&left, &open)?;
        // What a child says of another file is believed where that says so, too.
        if let Some(base) = layer_at(&chain, &found.target)
            .ok()
            .filter(|&base| is_copied(&chain, base))
        {
            let report = merge(&chain, 0, base, options, progress);
            let closed = chain.close();
            return report.and_then(|report| closed.map(|()| report));
        }
        chain.close()?;
    }
    let chain = Chain::open(&path, &open)?;
    let child = layers::promote(&chain, found.top)?;
    layers::note(&child, (layers::linkage_of(&child)?.0, None), None)?;
    if found.top > 0 {
        layers::demote(&chain, &child)?;
    }
    chain.close().map(|()| MergeReport::default())
}

/// Whether all of the chain down to `base` is in that already.
fn is_copied(chain: &Chain, base: usize) -> bool {
    let layers = &chain.current().layers;
    Record::of(&layers[base - 1]).is_some_and(|record| record.is_copied(base, layers[0].data_write_guid()))
}
