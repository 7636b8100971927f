//! Changing the size of a disk (docs/durability.md "Grow", "Shrink").

use super::merge::family::Family;
use super::partitions;
use crate::chain::snapshot::{walk, Snapshot};
use crate::chain::Chain;
use crate::error::{Error, ErrorKind, Result};
use crate::image::compact::is_zero;
use crate::image::lookup::Source;
use crate::image::Image;
use crate::options::ResizeOptions;
use crate::units::{align_up, Geometry, MAX_VIRTUAL_SIZE, MIB};

/// Changes the size of the disk to `size` bytes, a multiple of the logical sector size, while it is open. What a grown
/// disk gains reads as zeros. Writes wait meanwhile. Durable on return.
///
/// A disk is not cut below [`min_size`] (`ShrinkUnsafe`) unless the options say so. On a GPT disk the copy of the table
/// at the old end is gone then; the guest writes it anew at the new end, as after Resize-VHD. Refuses when other disks
/// depend on the leaf (`HasChildren`): they would no longer be its children.
pub fn resize(chain: &Chain, size: u64, options: &ResizeOptions) -> Result<()> {
    let _control = chain.control.lock();
    chain.check_writable()?;
    let leaf = chain.layer(0)?;
    let sector = leaf.geometry().sector_size();
    if size == 0 || size % sector != 0 || size > MAX_VIRTUAL_SIZE {
        return Err(Error::new(
            ErrorKind::Argument,
            format!("a disk of {size} bytes is not possible with sectors of {sector}"),
        )
        .with_hint("a size is a multiple of the logical sector size, at most 64T, not 0"));
    }
    if size == leaf.virtual_size() {
        return Ok(());
    }
    refuse_children(chain, &leaf, "resize")?;
    let _no_writes = chain.gate().write();
    let leaf = chain.layer(0)?;
    if size > leaf.virtual_size() {
        return reshape(chain, |leaf| leaf.grow(size));
    }
    if !options.allow_loss {
        let least = least_size(&chain.current(), leaf.geometry())?;
        if size < least.bytes {
            return Err(Error::new(
                ErrorKind::ShrinkUnsafe,
                format!("{size} bytes would cut {}, up to {} bytes", least.what, least.bytes),
            )
            .with_path(leaf.name())
            .with_hint("shrink or move that inside the guest first; unsafe=on cuts it off"));
        }
    }
    reshape(chain, |leaf| leaf.shrink(size))
}

/// The smallest size that [`resize`] accepts, in bytes: the end of the last partition and, of a GPT, room for the copy of
/// the table. A disk without partitions ends behind its last byte that is not zero. A partition table that cannot be
/// understood is `ShrinkUnsafe`.
pub fn min_size(chain: &Chain) -> Result<u64> {
    let _control = chain.control.lock();
    // Writers wait, so that nothing moves under the reads.
    let _no_writes = chain.gate().write();
    let snapshot = chain.current();
    let least = least_size(&snapshot, snapshot.leaf().geometry())?;
    Ok(least.bytes)
}

struct Least {
    bytes: u64,
    what: &'static str,
}

fn least_size(snapshot: &Snapshot, geometry: &Geometry) -> Result<Least> {
    let (size, sector) = (geometry.virtual_size(), geometry.sector_size());
    let found = partitions::find(size, sector, &mut |buf, at| snapshot.read(buf, at))?;
    let (bytes, what) = match found {
        Some(found) if found.backup > 0 => (
            found.end.saturating_add(found.backup),
            "the last partition, or the room for the copy of the partition table",
        ),
        Some(found) => (found.end, "the last partition"),
        None => (last_data(snapshot, size)?, "data of a disk without partitions"),
    };
    let bytes = align_up(bytes, sector).unwrap_or(size).clamp(sector, size);
    Ok(Least { bytes, what })
}

/// End of the last byte that is not zero.
fn last_data(snapshot: &Snapshot, size: u64) -> Result<u64> {
    const WINDOW: u64 = 1 << 30;
    let mut end = size;
    while end > 0 {
        let start = (end - 1) / WINDOW * WINDOW;
        let mut runs = Vec::new();
        let mut at = start;
        while at < end {
            let found = walk(&snapshot.layers, 0, at, end - at)?;
            if matches!(found.source, Source::Data { .. }) {
                runs.push(at..at + found.len);
            }
            at += found.len;
        }
        for run in runs.into_iter().rev() {
            let mut stop = run.end;
            while stop > run.start {
                let from = stop.saturating_sub(MIB).max(run.start);
                let mut buf = vec![0; (stop - from) as usize];
                snapshot.read(&mut buf, from)?;
                if !is_zero(&buf) {
                    let last = buf.iter().rposition(|&byte| byte != 0).unwrap_or(0);
                    return Ok(from + last as u64 + 1);
                }
                stop = from;
            }
        }
        end = start;
    }
    Ok(0)
}

/// Refuses to give the leaf another identity while disks outside the chain depend on it.
pub(super) fn refuse_children(chain: &Chain, leaf: &std::sync::Arc<Image>, operation: &str) -> Result<()> {
    Family::find(chain, std::slice::from_ref(leaf))?.refuse_children_of(leaf, operation)
}

/// Changes the leaf's shape and continues with the file as it then is. The caller keeps writers out.
pub(super) fn reshape(chain: &Chain, change: impl FnOnce(&Image) -> Result<()>) -> Result<()> {
    let leaf = chain.layer(0)?;
    change(&leaf)?;
    let next = leaf.reopen().and_then(|next| {
        next.trim()?;
        Ok(next)
    });
    match next {
        Ok(next) => {
            chain.replace(0, next);
            Ok(())
        }
        // The file is no longer what this handle takes it for.
        Err(error) => Err(leaf.poison(error)),
    }
}
