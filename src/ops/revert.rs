//! Going back to a checkpoint (docs/durability.md "Revert").

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::checkpoint::new_child;
use super::layers::{claim_for_removal, remove, settle_pending};
use super::merge::family::{Family, Relative};
use crate::chain::Chain;
use crate::error::{Error, ErrorKind, Result};
use crate::image::Image;
use crate::options::{CheckpointOptions, RevertOptions};

/// What a revert did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RevertReport {
    /// Files of the state left behind that were removed.
    pub removed: Vec<PathBuf>,
    /// Those that are still there: it was not asked for, or something needs them.
    pub kept: Vec<PathBuf>,
}

/// Goes back to the disk as of `layer` (1 is the parent of the leaf): continues on a new differencing child of it at
/// `new_leaf`, which must not exist. Reads and writes go on; those that come after the return see the old state, also
/// its size. The layers above `layer` are left behind, complete: their last one can be opened as a disk of its own.
///
/// With `unlink` they are removed, from the old leaf downwards, as far as no other disk depends on them; others are
/// looked for in the directories of the files involved. The new leaf is durable before anything is removed. After a
/// failure before that the disk goes on as before.
pub fn revert(chain: &Chain, layer: usize, new_leaf: &Path, options: &RevertOptions) -> Result<RevertReport> {
    let _control = chain.control.lock();
    chain.check_writable()?;
    let count = chain.layer_count();
    if layer == 0 || layer >= count {
        let message = format!("cannot revert to layer {layer} of a chain of {count}");
        return Err(Error::new(ErrorKind::Argument, message)
            .with_hint("0 is the leaf, which is the present; 1 is its parent, the last checkpoint"));
    }
    let checkpoint = CheckpointOptions {
        block_size: options.block_size,
    };
    super::checkpoint::check_options(&checkpoint)?;
    let left = {
        let _no_writes = chain.gate().write();
        let layers = chain.current().layers.clone();
        // ORDER: what is left behind is whole before the disk goes on without it.
        layers[0].clean()?;
        let child = new_child(chain, &layers[layer], new_leaf, &checkpoint)?;
        layers[0].seal();
        let mut remaining = vec![Arc::new(child)];
        remaining.extend(layers[layer..].iter().cloned());
        chain.switch(remaining);
        settle_pending(chain);
        layers[..layer].to_vec()
    };
    let mut report = RevertReport::default();
    let needless = match options.unlink {
        true => nobody_needs(chain, &left),
        false => 0,
    };
    report.kept = left[needless..]
        .iter()
        .map(|image| image.name().to_path_buf())
        .collect();
    // ORDER: the new leaf is durable under its name, in a synced directory, before the old one goes; a child goes
    // before its parent, so that what a cut leaves can be opened.
    remove(chain.options(), &left[..needless], &mut report.removed)?;
    Ok(report)
}

/// How many of `left`, leaf first, can go: up to the first that another disk depends on or another program uses.
fn nobody_needs(chain: &Chain, left: &[Arc<Image>]) -> usize {
    // Not known: everything stays.
    let Ok(family) = Family::find(chain, left) else {
        return 0;
    };
    let needed = |image: &Image| {
        let identity = image.data_write_guid();
        // The layer above is among those that go, and is no reason to stay.
        let others = family
            .dependents_of(identity, None)
            .any(|relative| !left.iter().any(|l| is(l, relative)));
        others || claim_for_removal(chain.options(), image).is_err()
    };
    left.iter().position(|image| needed(image)).unwrap_or(left.len())
}

fn is(image: &Image, relative: &Relative) -> bool {
    match (image.storage().id(), relative.id()) {
        (Some(a), Some(b)) => a == b,
        _ => image.name() == relative.path(),
    }
}
