//! The layers of a chain at one moment, and reading through them.

use std::io::{self, IoSliceMut};
use std::sync::Arc;

use super::map::{Below, CompositeMap};
use crate::error::{seldom, IoContext, PathContext, Result};
use crate::format::bat::PayloadState;
use crate::image::lookup::Source;
use crate::image::{Image, Shared};
use crate::storage::Storage;
use crate::units::MIB;

/// An immutable list of layers, leaf first, and what is known about the ones below the leaf. Replaced as a whole when
/// layers change; requests in flight finish on the one they began with.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) layers: Vec<Arc<Image>>,
    pub(crate) map: CompositeMap,
}

/// The layer that decides a range, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Walk {
    pub(crate) len: u64,
    pub(crate) layer: usize,
    pub(crate) source: Source,
}

impl Snapshot {
    pub(crate) fn new(layers: Vec<Arc<Image>>, shared: &Shared) -> Self {
        let size = layers.first().map_or(0, |leaf| leaf.virtual_size());
        let below = layers.get(1..).unwrap_or_default();
        let map = CompositeMap::new(size, below, shared.pool.clone());
        Snapshot { layers, map }
    }

    pub(crate) fn leaf(&self) -> &Arc<Image> {
        &self.layers[0]
    }

    /// Where the first bytes of a range come from, and how many of them share it.
    #[inline(always)]
    fn resolve(&self, offset: u64, len: u64) -> Result<(u64, Below)> {
        let leaf = self.leaf();
        let found = leaf.lookup(offset, len).at(leaf.name())?;
        match found.source {
            Source::Data { file_offset } => Ok((found.len, Below::Data { layer: 0, file_offset })),
            Source::Transparent if self.layers.len() > 1 => self.map.lookup(&self.layers, offset, found.len),
            _ => Ok((found.len, Below::Zero)),
        }
    }

    /// Reads the disk. The range is inside it. One read per run that is contiguous in a file; no allocation.
    #[inline]
    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let (len, below) = self.resolve(offset, buf.len() as u64)?;
        match len == buf.len() as u64 {
            true => self.read_run(buf, below),
            false => self.read_runs(buf, offset, |offset, len| self.resolve(offset, len)),
        }
    }

    /// Reads the disk as of `layer`. Bytes behind the end of that layer are the caller's to exclude.
    pub(crate) fn read_layer(&self, layer: usize, buf: &mut [u8], offset: u64) -> Result<()> {
        if layer == 0 {
            return self.read(buf, offset);
        }
        self.read_runs(buf, offset, |offset, len| {
            let found = walk(&self.layers, layer, offset, len)?;
            Ok((
                found.len,
                match found.source {
                    Source::Data { file_offset } => Below::Data {
                        layer: found.layer,
                        file_offset,
                    },
                    _ => Below::Zero,
                },
            ))
        })
    }

    /// Reads what lies in sequence.
    #[inline]
    fn read_run(&self, buf: &mut [u8], below: Below) -> Result<()> {
        match below {
            Below::Zero => buf.fill(0),
            Below::Data { layer, file_offset } => {
                let len = buf.len();
                self.read_file(layer, file_offset, len as u64, |file| file.read_at(buf, file_offset))?;
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn read_file(
        &self,
        layer: usize,
        file_offset: u64,
        len: u64,
        read: impl FnOnce(&dyn Storage) -> io::Result<()>,
    ) -> Result<()> {
        let image = &self.layers[layer];
        read(image.view())
            .context(|| format!("read {len} bytes at file offset {file_offset:#x}"))
            .at(image.name())
            .map_err(|e| seldom(|| e.with_layer(layer)))
    }

    fn read_runs(
        &self,
        mut buf: &mut [u8],
        offset: u64,
        resolve: impl Fn(u64, u64) -> Result<(u64, Below)>,
    ) -> Result<()> {
        for_each_run(offset, buf.len() as u64, resolve, |len, below| {
            let (part, rest) = std::mem::take(&mut buf).split_at_mut(len as usize);
            buf = rest;
            self.read_run(part, below)
        })
    }

    /// Reads the disk into several buffers of `len` bytes together, one after another.
    pub(crate) fn read_vectored(&self, bufs: &mut [IoSliceMut<'_>], len: u64, offset: u64) -> Result<()> {
        // The buffer that the next bytes go to, and how many it has.
        let (mut index, mut filled) = (0, 0);
        let resolve = |offset, len| self.resolve(offset, len);
        for_each_run(offset, len, resolve, |mut len, mut below| {
            while len > 0 {
                let mut whole = index;
                let mut part = 0;
                while filled == 0 && whole < bufs.len() && part + bufs[whole].len() as u64 <= len {
                    part += bufs[whole].len() as u64;
                    whole += 1;
                }
                if whole > index {
                    self.read_run_vectored(&mut bufs[index..whole], part, below)?;
                    index = whole;
                } else {
                    let buf = &mut bufs[index][filled..];
                    part = len.min(buf.len() as u64);
                    self.read_run(&mut buf[..part as usize], below)?;
                    filled += part as usize;
                    if filled == bufs[index].len() {
                        (index, filled) = (index + 1, 0);
                    }
                }
                len -= part;
                below = below.skip(part);
            }
            Ok(())
        })
    }

    fn read_run_vectored(&self, bufs: &mut [IoSliceMut<'_>], len: u64, below: Below) -> Result<()> {
        match below {
            Below::Zero => bufs.iter_mut().for_each(|buf| buf.fill(0)),
            Below::Data { layer, file_offset } => {
                self.read_file(layer, file_offset, len, |file| file.read_vectored_at(bufs, file_offset))?;
            }
        }
        Ok(())
    }
}

/// Calls `each` for the runs of a range: what is one sequence in the same file, whatever the blocks.
fn for_each_run(
    offset: u64,
    len: u64,
    resolve: impl Fn(u64, u64) -> Result<(u64, Below)>,
    mut each: impl FnMut(u64, Below) -> Result<()>,
) -> Result<()> {
    let (mut at, end) = (offset, offset + len);
    let mut next = match len {
        0 => None,
        _ => Some(resolve(at, len)?),
    };
    while let Some((mut len, below)) = next.take() {
        while at + len < end {
            let (more, after) = resolve(at + len, end - at - len)?;
            if below.skip(len) != after {
                next = Some((more, after));
                break;
            }
            len += more;
        }
        each(len, below)?;
        at += len;
    }
    Ok(())
}

/// Asks `layers[from..]` in turn who decides the first bytes of a range. A layer that ends before `offset` hides what
/// is below it: a parent shorter than its child reads as zeros there.
pub(crate) fn walk(layers: &[Arc<Image>], from: usize, offset: u64, max: u64) -> Result<Walk> {
    let mut len = max;
    let last = layers.len() - 1;
    for (layer, image) in layers.iter().enumerate().skip(from) {
        let size = image.virtual_size();
        if offset >= size {
            let source = Source::Zero(PayloadState::NotPresent);
            return Ok(Walk { len, layer, source });
        }
        let found = image
            .lookup(offset, len.min(size - offset))
            .at(image.name())
            .map_err(|e| e.with_layer(layer))?;
        len = found.len;
        if found.source != Source::Transparent {
            return Ok(Walk {
                len,
                layer,
                source: found.source,
            });
        }
    }
    // Nobody has it: most disks are mostly that, so as much of it at once as is known at little cost. What is looked at
    // ahead doubles, so that it is in proportion to what comes of it.
    let mut ahead = MIB << 6;
    while len < max {
        let (at, most) = (offset + len, ahead.min(max - len));
        let absent = layers
            .iter()
            .enumerate()
            .skip(from)
            .rev()
            .try_fold(most, |most, (layer, image)| {
                let inside = most.min(image.virtual_size().saturating_sub(at));
                match image.geometry().in_block(at) {
                    0 => image
                        .absent(at, inside)
                        .at(image.name())
                        .map_err(|e| e.with_layer(layer)),
                    _ => Ok(0),
                }
            })?;
        len += absent;
        if absent < most {
            break;
        }
        ahead *= 2;
    }
    Ok(Walk {
        len,
        layer: last,
        source: Source::Transparent,
    })
}
