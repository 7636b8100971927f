//! Merging layers into the one below them (MS-VHDX note 12; docs/durability.md "Merge").
//!
//! ```text
//!   1  everything is opened, locked, counted: refusals happen here
//!   2  child.linkage2 := G2                         the child accepts the target before and after 3
//!   3  target.DataWriteGuid := G2                   the target alone may now change
//!   4  target grows, if the merged disk is larger
//!   5  copy                                         only sectors that the merged layers hide
//!   6  target: commit, log emptied
//!   7  target's virtual disk items := the top's     the target alone now reads as the top did
//!   8  the top's children: linkage := G2, paths := target
//!   9  switch, unlink
//! ```
//!
//! The view through the top never changes: a cut anywhere leaves a chain that opens and reads the same, and running the
//! merge again finishes it.

mod copy;
mod crew;
pub(super) mod family;
mod pending;
pub(super) mod record;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::layers;
use crate::chain::{open, Chain};
use crate::error::{Error, ErrorKind, PathContext, Result};
use crate::guid::Guid;
use crate::image::{Image, WriteMode};
use crate::options::{MergeOptions, OpenOptions, ProgressFn};
use crate::storage::{Access, Order};

use copy::Copier;
use family::Family;
use layers::open_writable;
pub use pending::{pending, resume, Pending, PendingStage};
use record::{Record, Stage};

/// What a merge did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct MergeReport {
    /// Bytes moved to the target.
    pub bytes: u64,
    /// Of these, bytes shared by reflink.
    pub reflinked: u64,
    /// Files whose locator now names the target.
    #[serde(serialize_with = "crate::json::paths")]
    pub relinked: Vec<PathBuf>,
    /// Files removed.
    #[serde(serialize_with = "crate::json::paths")]
    pub removed: Vec<PathBuf>,
    /// Where the data is now.
    #[serde(serialize_with = "crate::json::path")]
    pub target: PathBuf,
}

/// Folds layers `top..base` into layer `base` (0 = leaf) in one pass; each sector moves at most once. The disk may be
/// read and written meanwhile. On return everything is durable, the chain continues without the merged layers, and,
/// with `unlink`, their files are gone.
///
/// A failure or cancellation leaves a chain that reads the same; running the merge again finishes it. Refuses, before
/// the first byte, when other disks depend on the target or on a layer between it and `top` (`HasChildren`), and when
/// there is no room (`NoSpace`, mode `Copy`).
pub fn merge(
    chain: &Chain,
    top: usize,
    base: usize,
    options: &MergeOptions,
    progress: ProgressFn<'_>,
) -> Result<MergeReport> {
    let _control = chain.control.lock();
    chain.check_writable()?;
    merge_held(chain, top, base, options, progress)
}

/// [`merge`] for an operation that holds `control` already.
pub(super) fn merge_held(
    chain: &Chain,
    top: usize,
    base: usize,
    options: &MergeOptions,
    progress: ProgressFn<'_>,
) -> Result<MergeReport> {
    let count = chain.layer_count();
    if top >= base || base >= count {
        return Err(Error::new(
            ErrorKind::Argument,
            format!("cannot merge layers {top} to {base} of a chain of {count}"),
        )
        .with_hint("the layer merged into is below the one merged: 0 is the leaf, the base has the largest number"));
    }
    let mut merge = Merge::prepare(chain, top, base, options)?;
    let result = merge.run(options, progress);
    chain.unwatch();
    if result.is_err() {
        merge.give_up();
    }
    result
}

/// Opens `child`, merges it and what is between into the ancestor at `into`, or into its parent, and closes: the shape
/// of Merge-VHD. See [`merge`].
pub fn merge_path(
    child: &Path,
    into: Option<&Path>,
    open: &OpenOptions,
    options: &MergeOptions,
    progress: ProgressFn<'_>,
) -> Result<MergeReport> {
    let chain = Chain::open(child, open)?;
    let base = match into {
        None => 1,
        Some(into) => layer_at(&chain, into)?,
    };
    if chain.layer_count() < 2 {
        return Err(Error::new(ErrorKind::Argument, "the disk has no parent to merge into").with_path(child));
    }
    let report = merge(&chain, 0, base, options, progress);
    match report {
        Ok(report) => chain.close().map(|()| report),
        Err(error) => {
            // The first failure is the one to tell; closing cleanly is only tidiness.
            let _ = chain.close();
            Err(error)
        }
    }
}

fn layer_at(chain: &Chain, path: &Path) -> Result<usize> {
    let wanted = open::storage(path, Access::Read, chain.options())?.id();
    let layers = &chain.current().layers;
    layers
        .iter()
        .position(|l| wanted.is_some() && l.storage().id() == wanted)
        .filter(|&layer| layer > 0)
        .ok_or_else(|| {
            let names: Vec<String> = layers.iter().skip(1).map(|l| format!("{:?}", l.name())).collect();
            Error::new(
                ErrorKind::Argument,
                format!("not an ancestor; those are: {}", names.join(", ")),
            )
            .with_path(path)
        })
}

/// A child of the top outside the chain, open for writing.
struct Child {
    image: Arc<Image>,
}

struct Merge<'a> {
    chain: &'a Chain,
    top: usize,
    base: usize,
    target: Arc<Image>,
    /// Children of the top that are not in the chain.
    children: Vec<Child>,
    /// An earlier run got as far as step 8.
    copied_before: bool,
}

impl<'a> Merge<'a> {
    /// Step 1. Nothing is changed, except that dirty logs of the files to be written are replayed.
    fn prepare(chain: &'a Chain, top: usize, base: usize, options: &MergeOptions) -> Result<Self> {
        let layers = chain.current().layers.clone();
        let merged = layers[top].data_write_guid();
        let target = &layers[base];
        let family = match options.relink {
            true => Family::find(chain, &layers[top..=base])?,
            false => Family::default(),
        };
        let copied_before = Record::of(&layers[base - 1]).is_some_and(|record| record.is_copied(base - top, merged));
        if !options.orphan_siblings {
            family.check(target, &layers[top + 1..base], merged, copied_before)?;
        }
        let mut merge = Merge {
            chain,
            top,
            base,
            target: target.clone(),
            children: Vec::new(),
            copied_before,
        };
        let opened = (|| {
            for child in family.children_of(merged) {
                let image = open_writable(chain, child.path())?;
                merge.children.push(Child { image });
            }
            let taken_over = family.taken_over(target.data_write_guid(), merged);
            for child in taken_over.filter(|_| copied_before) {
                let image = open_writable(chain, child.path())?;
                merge.children.push(Child { image });
            }
            merge.target = merge.promote(base)?;
            for layer in (top..base).filter(|&layer| layer > 0) {
                merge.promote(layer)?;
            }
            match top {
                0 if options.unlink => layers::is_in_place(chain.options(), &layers[0]),
                0 | 1 => Ok(()),
                _ => merge.promote(top - 1).map(drop),
            }
        })();
        if opened.is_err() {
            merge.give_up();
        }
        opened.map(|()| merge)
    }

    fn promote(&self, layer: usize) -> Result<Arc<Image>> {
        layers::promote(self.chain, layer)
    }

    fn demote(&self, image: &Image) -> Result<()> {
        layers::demote(self.chain, image)
    }

    /// After a failure: what is written is consistent; leave the files as tidy as they will have it.
    fn give_up(&self) {
        let layers = self.chain.current().layers.clone();
        for image in layers.iter().skip(1).filter(|image| image.is_writable()) {
            let _ = self.demote(image);
        }
        for child in &self.children {
            let _ = child.image.clean();
        }
    }

    fn run(&mut self, options: &MergeOptions, progress: ProgressFn<'_>) -> Result<MergeReport> {
        let mut report = MergeReport {
            target: self.target.name().to_path_buf(),
            ..MergeReport::default()
        };
        self.sweep(options, &mut report)?;
        if self.copied_before {
            let _no_writes = (self.top == 0).then(|| self.chain.gate().write());
            self.finish(options, &mut report)?;
            return Ok(report);
        }
        let mut copier = Copier::new(self.chain, self.top, self.base, options, progress)?;
        copier.settle_mode()?;
        self.announce(!options.unlink)?;
        self.grow()?;
        copier.route.target = self.target.clone();
        if Order::CopiedBeforeRelink.is_forgotten() {
            let top = self.chain.layer(self.top)?.data_write_guid();
            for child in self.children.iter().map(|child| child.image.clone()) {
                self.point_to_target(&child, Some(top), None)?;
            }
        }
        copier.route.merged = self.chain.current().layers[self.top..self.base].to_vec();
        copier.watch = (self.top == 0).then(|| self.chain.start_watch());
        copier.run()?;
        // From here on nobody writes to a leaf that is being merged away.
        let _no_writes = (self.top == 0).then(|| self.chain.gate().write());
        copier.finish()?;
        if options.verify {
            copier.verify()?;
        }
        report.bytes = copier.copied;
        report.reflinked = copier.reflinked();
        drop(copier);
        self.take_identity(!options.unlink)?;
        self.finish(options, &mut report)?;
        Ok(report)
    }

    /// Removes what an earlier run left of layers that were between the target and the one above it.
    fn sweep(&self, options: &MergeOptions, report: &mut MergeReport) -> Result<()> {
        let child = self.chain.layer(self.base - 1)?;
        let (Some(record), Some((linkage, Some(next)))) = (Record::of(&child), child.linkage()) else {
            return Ok(());
        };
        if record.abandoned == 0 || !options.relink {
            return Ok(());
        }
        let family = Family::find(self.chain, &[child.clone(), self.target.clone()])?;
        let mut images = Vec::new();
        for file in family.abandoned(next, record.abandoned, child.data_write_guid())? {
            let image = layers::readable(file.path(), self.chain.options(), self.chain.shared())?;
            layers::claim_for_removal(self.chain.options(), &image)?;
            images.push(Arc::new(image));
        }
        layers::remove(self.chain.options(), &images, &mut report.removed)?;
        // ORDER: the files are gone durably before the way to them is.
        let swept = Record { abandoned: 0, ..record };
        layers::note(&child, (linkage, None), Some(swept))
    }

    /// Steps 2 and 3.
    fn announce(&mut self, keep: bool) -> Result<()> {
        let before = self.target.data_write_guid();
        let after = Guid::random();
        let child = self.chain.layer(self.base - 1)?;
        if Order::AcceptedBeforeTaken.is_forgotten() {
            self.target
                .update_header(WriteMode::Data, |header| header.data_write_guid = after)?;
        }
        let record = self.record(Stage::Copying, keep)?;
        self.note(&child, (before, Some(after)), Some(record))?;
        // ORDER: the child accepts both identities, durably, before the target takes the new one.
        self.target
            .update_header(WriteMode::Data, |header| header.data_write_guid = after)
            .at(self.target.name())
    }

    /// For the child of the target.
    fn record(&self, stage: Stage, keep: bool) -> Result<Record> {
        Ok(Record {
            stage,
            layers: self.base - self.top,
            top: self.chain.layer(self.top)?.data_write_guid(),
            leaf: self.top == 0,
            keep,
            abandoned: 0,
        })
    }

    /// Step 4.
    fn grow(&mut self) -> Result<()> {
        let size = self.chain.layer(self.top)?.virtual_size();
        if size > self.target.virtual_size() {
            self.target.grow(size)?;
            self.reopen_target()?;
        }
        Ok(())
    }

    fn reopen_target(&mut self) -> Result<()> {
        self.target = self.target.reopen()?;
        self.chain.replace(self.base, self.target.clone());
        Ok(())
    }

    /// Steps 6 and 7.
    fn take_identity(&mut self, keep: bool) -> Result<()> {
        // ORDER: all copied data is durable and in place before the target claims to be the merged disk.
        self.target.clean_keeping_mode()?;
        let items = self.chain.layer(self.top)?.virtual_disk_items()?;
        self.target.replace_virtual_disk_items(items)?;
        self.reopen_target()?;
        // ORDER: the target is complete before its child says so, and that before another child is on the target: then
        // the target must keep its identity.
        let child = self.chain.layer(self.base - 1)?;
        let record = self.record(Stage::Copied, keep)?;
        self.note(&child, layers::linkage_of(&child)?, Some(record))
    }

    /// Steps 8 and 9. The target is complete.
    fn finish(&mut self, options: &MergeOptions, report: &mut MergeReport) -> Result<()> {
        let layers = self.chain.current().layers.clone();
        let merged: Vec<Arc<Image>> = layers[self.top..self.base].to_vec();
        let top_identity = merged[0].data_write_guid();
        let above = (self.top > 0).then(|| layers[self.top - 1].clone());
        // ORDER: the child in the chain comes last: until then the merged layers are in it, and another run finishes.
        let others = self.children.iter().map(|child| child.image.clone());
        let children: Vec<Arc<Image>> = others.chain(above.clone()).collect();
        self.target.clean()?;
        let taken_over = self.record(Stage::Child, !options.unlink)?;
        for child in &children {
            // linkage2 says to another run that the target is complete, for as long as the top exists.
            self.point_to_target(child, Some(top_identity), Some(taken_over))?;
            report.relinked.push(child.name().to_path_buf());
        }
        let mut remaining = layers[..self.top].to_vec();
        remaining.push(self.target.clone());
        remaining.extend(layers[self.base + 1..].iter().cloned());
        if self.top > 0 {
            self.demote(&self.target)?;
        }
        self.chain.switch(remaining);
        self.chain.merge_is_done();
        self.retire(&merged, options, report)?;
        for child in &children {
            self.point_to_target(child, None, None)?;
        }
        if let Some(above) = above.filter(|_| self.top > 1) {
            self.demote(&above)?;
        }
        self.children.clear();
        Ok(())
    }

    fn point_to_target(&self, child: &Image, linkage2: Option<Guid>, record: Option<Record>) -> Result<()> {
        let linkages = (self.target.data_write_guid(), linkage2);
        layers::relink_noting(self.chain.options(), child, self.target.name(), linkages, record)?;
        self.tidy(child)
    }

    fn note(&self, child: &Image, linkages: (Guid, Option<Guid>), record: Option<Record>) -> Result<()> {
        layers::note(child, linkages, record)?;
        self.tidy(child)
    }

    /// The live leaf stays in use: its log makes a change durable.
    fn tidy(&self, child: &Image) -> Result<()> {
        match std::ptr::eq(&*self.chain.layer(0)?, child) {
            true => Ok(()),
            false => child.clean(),
        }
    }

    /// Removes the merged files, lowest first, or makes sure that nobody takes a kept one for what it is not.
    fn retire(&self, merged: &[Arc<Image>], options: &MergeOptions, report: &mut MergeReport) -> Result<()> {
        let (top, inner) = merged
            .split_first()
            .ok_or_else(|| Error::new(ErrorKind::Bug, "nothing was merged"))?;
        let retired = Record {
            stage: Stage::Retired,
            layers: 0,
            top: top.data_write_guid(),
            leaf: false,
            keep: false,
            abandoned: 0,
        };
        let retired = options.unlink.then_some(retired);
        if let (Some((lowest, between)), true) = (inner.split_last(), options.unlink) {
            for image in between {
                // ORDER: each says that it may go before the top leads to it.
                layers::note(image, layers::linkage_of(image)?, retired)?;
            }
            let next = between.first().unwrap_or(lowest);
            // Where the top is the leaf, it is the way to all that is to be removed, until it is.
            let record = Record {
                stage: Stage::Copied,
                layers: 1,
                top: top.data_write_guid(),
                leaf: true,
                keep: false,
                abandoned: inner.len(),
            };
            self.point_to_target(top, Some(next.data_write_guid()), Some(record))?;
        } else if !options.unlink {
            // The top's own parent is no longer what it was; the target stands in for it.
            self.point_to_target(top, None, None)?;
        }
        if let Some(lowest) = inner.last() {
            // ORDER: only then the lowest stops accepting the target, above which it would show what it never held; and
            // until then it says that all is copied.
            layers::note(lowest, (layers::linkage_of(lowest)?.0, None), retired)?;
        }
        for image in merged {
            image.clean()?;
        }
        if !options.unlink {
            return Ok(());
        }
        let lowest_first: Vec<Arc<Image>> = inner.iter().rev().cloned().collect();
        if Order::TopRemovedLast.is_forgotten() {
            layers::remove(self.chain.options(), std::slice::from_ref(top), &mut report.removed)?;
            return layers::remove(self.chain.options(), &lowest_first, &mut report.removed);
        }
        layers::remove(self.chain.options(), &lowest_first, &mut report.removed)?;
        // ORDER: those are gone durably before the top is, which is the way to them.
        layers::remove(self.chain.options(), std::slice::from_ref(top), &mut report.removed)
    }
}
