//! Taking a checkpoint of a disk in use (docs/durability.md "Checkpoint").

use std::path::Path;
use std::sync::Arc;

use super::create::{child_of, publish};
use super::layers::is_in_place;
use crate::chain::{open, Chain};
use crate::error::{Error, ErrorKind, PathContext, Result};
use crate::image::Image;
use crate::options::{CheckpointOptions, LogPolicy};
use crate::storage::{Access, LockMode, Order};

/// Seals the leaf and continues on a new differencing child at `new_leaf`, which must not exist. Reads go on; writes
/// wait for the few flushes it takes, whatever the size of the disk. On return the child is durable under its name, and
/// the old leaf is as if it had been closed. After a failure the chain goes on as before.
pub fn checkpoint(chain: &Chain, new_leaf: &Path, options: &CheckpointOptions) -> Result<()> {
    let _control = chain.control.lock();
    chain.check_writable()?;
    check_options(options)?;
    let _no_writes = chain.gate().write();
    let snapshot = chain.current();
    let old = snapshot.leaf();
    if chain.layer_count() >= chain.options().max_depth {
        return Err(Error::new(
            ErrorKind::ChainLoop,
            format!("the chain already has {} layers", chain.layer_count()),
        )
        .with_hint("merge layers, or raise max-depth"));
    }
    // ORDER: the old leaf is clean and durable before a child can refer to its DataWriteGuid.
    if !Order::CheckpointedWhole.is_forgotten() {
        old.clean()?;
    }
    let child = match new_child(chain, old, new_leaf, options) {
        Ok(child) => child,
        Err(error) => {
            // Nothing was written to the old leaf since it was cleaned: the next write announces itself anew.
            return Err(error);
        }
    };
    old.seal();
    if chain.options().lock {
        // Others may read the old leaf now. That this cannot fail for want of a conflict is QEMU's protocol.
        let _ = old.lock(LockMode::Read);
    }
    let mut layers = vec![Arc::new(child)];
    layers.extend(snapshot.layers.iter().cloned());
    chain.switch(layers);
    Ok(())
}

/// Refuses what no file can have.
pub(super) fn check_options(options: &CheckpointOptions) -> Result<()> {
    if options.block_size != 0 && !options.block_size.is_power_of_two() {
        return Err(
            Error::new(ErrorKind::Argument, format!("a block size of {}", options.block_size))
                .with_hint("it is a power of two from 1 MiB to 256 MiB"),
        );
    }
    Ok(())
}

/// A child of `old` at `path`, durable, open for writing.
pub(super) fn new_child(chain: &Chain, old: &Image, path: &Path, options: &CheckpointOptions) -> Result<Image> {
    let open_options = chain.options();
    is_in_place(open_options, old)?;
    let mut new = child_of(old, path, open_options)?;
    if options.block_size != 0 {
        new.items.parameters.block_size = options.block_size;
    }
    drop(publish(&*open_options.file_system, path, &new)?);
    let opened = (|| {
        let storage = open::storage(path, Access::Write, open_options)?;
        open::lock(&*storage, LockMode::Write, open_options).at(path)?;
        Image::open_write(storage, path, LogPolicy::Auto, chain.shared()).at(path)
    })();
    if opened.is_err() {
        // Unused, and in the way of another attempt.
        let _ = open_options.file_system.remove(path);
    }
    opened
}
