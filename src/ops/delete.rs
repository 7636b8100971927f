//! Deleting a checkpoint, with what depends on it kept or removed (docs/durability.md "Delete").

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::layers::{self, check_sectors, claim_for_removal, open_writable, readable, remove};
use super::merge::family::{Family, Relative};
use super::merge::merge_held;
use super::pace::Pace;
use super::rebase::{Filler, AGAIN};
use crate::chain::locate::directory;
use crate::chain::Chain;
use crate::error::{Error, ErrorKind, Result};
use crate::image::Image;
use crate::options::{DeleteInto, DeleteOptions, MergeOptions, ProgressFn};
use crate::storage::{LockMode, Order};

/// What a deletion did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct DeleteReport {
    /// Bytes copied.
    pub bytes: u64,
    /// The content went into the children. False: into the parent.
    pub into_children: bool,
    /// Files that have another parent now.
    #[serde(serialize_with = "crate::json::paths")]
    pub relinked: Vec<PathBuf>,
    /// Files removed.
    #[serde(serialize_with = "crate::json::paths")]
    pub removed: Vec<PathBuf>,
}

/// Deletes the file of `layer`, which is neither the leaf nor the base. What every disk made on it reads as stays: its
/// content goes into its parent or, where other disks depend on the parent, into each of its children; they get its
/// parent as theirs, those in the chain and those found in the directories of the files. The disk may be read and
/// written meanwhile.
///
/// After the first, the parent's file holds what the layer held, and the parent's own state is gone (see
/// [`super::merge`]); after the second the layer's state is gone. [`DeleteOptions::into`] chooses. Durable on return.
/// A failure or cancellation leaves disks that read the same; running it again finishes it.
pub fn delete_layer(
    chain: &Chain,
    layer: usize,
    options: &DeleteOptions,
    progress: ProgressFn<'_>,
) -> Result<DeleteReport> {
    let _control = chain.control.lock();
    chain.check_writable()?;
    let count = chain.layer_count();
    let refuse = |why: String, hint: &'static str| Err(Error::new(ErrorKind::Argument, why).with_hint(hint));
    match layer {
        0 => {
            return refuse(
                "the leaf is what the disk writes to now".into(),
                "merge it to keep its content, or revert to a checkpoint with unlink=on to drop it",
            )
        }
        _ if layer >= count => {
            return refuse(
                format!("there is no layer {layer}: the chain has {count}"),
                "0 is the leaf, the base has the largest number",
            )
        }
        _ if layer + 1 == count => {
            return refuse(
                "the base has no parent that could take its content".into(),
                "merge its child into it, or detach what depends on it",
            )
        }
        _ => {}
    }
    if options.into != DeleteInto::Children {
        let merge = MergeOptions {
            mode: options.mode,
            rate: options.rate,
            verify: options.verify,
            ..MergeOptions::default()
        };
        match merge_held(chain, layer, layer + 1, &merge, progress) {
            Err(error) if error.kind() == ErrorKind::HasChildren && options.into == DeleteInto::Auto => {}
            done => {
                return done.map(|merged| DeleteReport {
                    bytes: merged.bytes,
                    into_children: false,
                    relinked: merged.relinked,
                    removed: merged.removed,
                })
            }
        }
    }
    let mut fold = Fold::prepare(chain, layer)?;
    let result = fold.run(options, progress);
    if result.is_err() {
        fold.give_up();
    }
    result
}

/// Deleting a layer into its children.
struct Fold<'a> {
    chain: &'a Chain,
    layer: usize,
    /// Those outside the chain.
    others: Vec<Arc<Image>>,
}

impl<'a> Fold<'a> {
    /// Opens and locks everything, and refuses. Nothing is changed, except that dirty logs of children are replayed.
    fn prepare(chain: &'a Chain, layer: usize) -> Result<Self> {
        let layers = chain.current().layers.clone();
        let deleted = &layers[layer];
        let family = Family::find(chain, &layers[layer - 1..=layer + 1])?;
        let parent = layers[layer + 1].data_write_guid();
        let mut fold = Fold {
            chain,
            layer,
            others: Vec::new(),
        };
        let opened = (|| {
            for relative in family.dependents_of(deleted.data_write_guid(), Some(parent)) {
                let child = open_writable(chain, relative.path())?;
                check_sectors(&child, deleted)?;
                fold.others.push(child);
            }
            if layer > 1 {
                layers::promote(chain, layer - 1)?;
            }
            // A child that was not found may have it open.
            claim_for_removal(chain.options(), deleted)
                .map_err(|e| e.with_hint("close what uses the checkpoint; name other directories with search=DIR"))
        })();
        if opened.is_err() {
            fold.give_up();
        }
        opened.map(|()| fold)
    }

    fn run(&mut self, options: &DeleteOptions, progress: ProgressFn<'_>) -> Result<DeleteReport> {
        let (chain, layer) = (self.chain, self.layer);
        let layers = chain.current().layers.clone();
        let mut report = DeleteReport {
            into_children: true,
            ..DeleteReport::default()
        };
        // ORDER: the child in the chain comes last: until then the layer is in the chain, and another run finishes.
        let mut children: Vec<&Arc<Image>> = self.others.iter().chain([&layers[layer - 1]]).collect();
        if Order::ChainChildLast.is_forgotten() {
            children.reverse();
        }
        let images: Vec<&Image> = children.iter().map(|child| &***child).collect();
        let (old, new) = (&layers[layer..], &layers[layer + 1..]);
        let pace = Pace::new("the deletion", AGAIN, options.rate, progress);
        let mut filler = Filler::new(chain.options(), old, new, false, pace);
        filler.prepare(&images)?;
        let parent = (new[0].name().to_path_buf(), new[0].data_write_guid());
        if Order::ChildrenBeforeRemoval.is_forgotten() {
            remove(chain.options(), &[layers[layer].clone()], &mut Vec::new())?;
        }
        for child in children {
            if Order::FilledBeforeFold.is_forgotten() {
                layers::relink(chain.options(), child, &parent.0, (parent.1, None))?;
            }
            filler.fill(child)?;
            // ORDER: what the child gained is durable before it names another parent.
            child.commit()?;
            layers::relink(chain.options(), child, &parent.0, (parent.1, None))?;
            report.relinked.push(child.name().to_path_buf());
            // The live leaf stays in use: its log makes this durable.
            if !Arc::ptr_eq(child, &layers[0]) {
                child.clean()?;
            }
        }
        report.bytes = filler.copied();
        let deleted = layers[layer].clone();
        let mut remaining = layers.clone();
        remaining.remove(layer);
        chain.switch(remaining);
        layers::settle_pending(chain);
        self.others.clear();
        if layer > 1 {
            layers::demote(chain, &layers[layer - 1])?;
        }
        // ORDER: every child is durably on the other parent before the file goes.
        if !Order::ChildrenBeforeRemoval.is_forgotten() {
            remove(chain.options(), &[deleted], &mut report.removed)?;
        }
        Ok(report)
    }

    /// After a failure: what is written is consistent; leave the files as tidy as they will have it.
    fn give_up(&self) {
        for image in self.chain.current().layers.iter().skip(1) {
            if image.is_writable() {
                let _ = layers::demote(self.chain, image);
            } else if self.chain.options().lock {
                let _ = image.lock(LockMode::Read);
            }
        }
        for child in &self.others {
            let _ = child.clean();
        }
    }
}

/// Deletes a branch: the differencing disk at `root` and every disk that descends from it, found in its directory and in
/// those of the chain. The open chain must not be among them. Refuses, before the first removal, when one of them is in
/// use, and when it cannot be told whose child one of them is. A cut leaves a smaller branch that can still be opened.
pub fn delete_branch(chain: &Chain, root: &Path) -> Result<DeleteReport> {
    let _control = chain.control.lock();
    chain.check_writable()?;
    let options = chain.options();
    let layers = chain.current().layers.clone();
    let top = Arc::new(readable(root, options, chain.shared()).map_err(|e| match e.kind() {
        ErrorKind::Locked => e.with_hint("it is open somewhere: if as the leaf of this chain, it cannot be deleted"),
        _ => e,
    })?);
    let file = |image: &'_ Image| (image.storage().clone(), image.name().to_path_buf());
    let is_layer = layers.iter().any(|layer| {
        let (a, b) = (file(layer), file(&top));
        layers::same_file(options, (&*a.0, &a.1), (&*b.0, &b.1))
    });
    if is_layer {
        return Err(
            Error::new(ErrorKind::HasChildren, "the open disk depends on it, or is it")
                .with_path(root)
                .with_hint("delete the layer alone, or open another branch first"),
        );
    }
    if top.linkage().is_none() {
        return Err(Error::new(ErrorKind::Argument, "a disk without parent is not a branch")
            .with_path(root)
            .with_hint("remove the file by hand if nothing needs it"));
    }
    let named = layers.iter().map(|layer| layer.name()).chain([root]);
    let family = Family::find_in(chain, named.map(directory))?;
    let branch = branch_of(&family, &top, &layers)?;
    let mut images = Vec::with_capacity(branch.len());
    for relative in branch {
        images.push(Arc::new(readable(relative.path(), options, chain.shared())?));
    }
    images.push(top);
    for image in &images {
        claim_for_removal(options, image)?;
    }
    let mut report = DeleteReport::default();
    // ORDER: a child goes before its parent, so that what a cut leaves can be opened.
    remove(options, &images, &mut report.removed)?;
    Ok(report)
}

/// The descendants of `top`, each before its parent.
fn branch_of<'a>(family: &'a Family, top: &Image, layers: &[Arc<Image>]) -> Result<Vec<&'a Relative>> {
    let id = top.storage().id();
    let others = || {
        let relatives = family.relatives().iter();
        relatives.filter(move |r| !(r.id() == id && id.is_some()) && r.path() != top.name())
    };
    let mut identities = vec![top.data_write_guid()];
    let mut branch: Vec<&Relative> = Vec::new();
    let mut next = 0;
    while let Some(&identity) = identities.get(next) {
        let twins = layers.iter().map(|layer| (layer.name(), layer.data_write_guid()));
        let twins = twins.chain(others().map(|r| (r.path(), r.identity())));
        let twins = twins.filter(|(path, found)| *found == identity && branch.iter().all(|b| b.path() != *path));
        if let Some((twin, _)) = twins.into_iter().next() {
            let message =
                format!("{twin:?} has the same DataWriteGuid {identity}: whose children are whose is not known");
            return Err(Error::new(ErrorKind::HasChildren, message)
                .with_path(top.name())
                .with_hint("remove the copy first"));
        }
        for child in others().filter(|r| r.accepts(identity)) {
            if branch.iter().all(|b| b.path() != child.path()) {
                branch.push(child);
                identities.push(child.identity());
            }
        }
        next += 1;
    }
    branch.reverse();
    Ok(branch)
}
