//! The data plane.

use std::io::IoSliceMut;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use super::snapshot::Snapshot;
use super::Chain;
use crate::error::{seldom, Error, ErrorKind, Result};
use crate::image::payload::Payload;
use crate::image::Image;
use crate::options::{CacheMode, ZeroFlags};
use crate::units::{align_down, align_up, Geometry};

/// Reads that find space reused under them before writers are asked to stand still for one.
const OPTIMISTIC_READS: u32 = 4;

/// Blocks of the leaf written since somebody began to watch: one bit each, set after the write and before it returns.
#[derive(Debug)]
pub(crate) struct Watch {
    words: Box<[AtomicU64]>,
    geometry: Geometry,
}

impl Watch {
    pub(crate) fn new(geometry: &Geometry) -> Self {
        let words = geometry.block_count().div_ceil(64);
        Watch {
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            geometry: *geometry,
        }
    }

    fn mark(&self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let (first, last) = (
            self.geometry.block_of(offset).0,
            self.geometry.block_of(offset + len - 1).0,
        );
        for block in first..=last {
            self.words[(block / 64) as usize].fetch_or(1 << (block % 64), Ordering::AcqRel);
        }
    }

    /// Whether the block was written since it was last taken.
    pub(crate) fn is_marked(&self, block: u64) -> bool {
        self.words[(block / 64) as usize].load(Ordering::Acquire) & (1 << (block % 64)) != 0
    }

    /// Forgets the mark of a block and returns it.
    pub(crate) fn take(&self, block: u64) -> bool {
        let bit = 1 << (block % 64);
        self.words[(block / 64) as usize].fetch_and(!bit, Ordering::AcqRel) & bit != 0
    }

    /// The first marked block at or after `block`.
    pub(crate) fn next(&self, block: u64) -> Option<u64> {
        let mut word = block / 64;
        let mut skip = block % 64;
        while let Some(bits) = self.words.get(word as usize) {
            let bits = bits.load(Ordering::Acquire) >> skip << skip;
            if bits != 0 {
                return Some(word * 64 + u64::from(bits.trailing_zeros()));
            }
            (word, skip) = (word + 1, 0);
        }
        None
    }
}

impl Chain {
    /// Reads `buf.len()` bytes at `offset`; both in bytes, any alignment. The whole range or an error. A range that
    /// leaves the disk is `Range`, and `buf` is untouched.
    pub fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        match self.shared.reuse.unchanged(|| self.read_once(buf, offset)) {
            Some(result) => result,
            None => self.read_again(buf, offset),
        }
    }

    #[inline(always)]
    fn read_once(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read_from(offset, buf.len() as u64, |snapshot| snapshot.read(buf, offset))
    }

    #[inline(always)]
    fn read_from(&self, offset: u64, len: u64, read: impl FnOnce(&Snapshot) -> Result<()>) -> Result<()> {
        let snapshot = self.snapshot.load();
        check_range(offset, len, snapshot.leaf().virtual_size())?;
        read(&snapshot)?;
        if snapshot.map.is_large() {
            self.renew(&snapshot);
        }
        Ok(())
    }

    #[cold]
    fn read_again(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read_stable(|| self.read_once(buf, offset))
    }

    /// Reads into several buffers, one after another, as [`Chain::read`].
    pub fn read_vectored(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<()> {
        if let [buf] = bufs {
            return self.read(buf, offset);
        }
        let len = bufs.iter().map(|buf| buf.len() as u64).sum();
        self.read_stable(|| self.read_from(offset, len, |snapshot| snapshot.read_vectored(bufs, len, offset)))
    }

    /// Begins a fresh map where this one takes more memory than it may, unless somebody changed the layers meanwhile.
    #[cold]
    fn renew(&self, snapshot: &Arc<Snapshot>) {
        if !snapshot.map.is_full() {
            return;
        }
        let fresh = Arc::new(Snapshot::new(snapshot.layers.clone(), &self.shared));
        self.snapshot.compare_and_swap(snapshot, fresh);
    }

    /// Reads the disk as of a layer: what it was when the layer's child was made. Range as in [`Chain::read`], against
    /// the size of that layer.
    pub fn read_layer(&self, layer: usize, buf: &mut [u8], offset: u64) -> Result<()> {
        let size = self.layer(layer)?.virtual_size();
        check_range(offset, buf.len() as u64, size)?;
        self.read_stable(|| {
            let snapshot = self.snapshot.load();
            match layer < snapshot.layers.len() {
                true => snapshot.read_layer(layer, &mut *buf, offset),
                false => Err(Error::new(ErrorKind::Argument, "the layer was merged away")),
            }
        })
    }

    /// Runs a read until no space changed its owner meanwhile. See [`crate::image::reuse`].
    fn read_stable(&self, mut read: impl FnMut() -> Result<()>) -> Result<()> {
        for _ in 0..OPTIMISTIC_READS {
            if let Some(result) = self.shared.reuse.unchanged(&mut read) {
                return result;
            }
        }
        let _nobody_writes = self.gate.write();
        read()
    }

    /// Writes to the leaf. Any alignment; sectors written in part keep their other bytes. Two writes that overlap: each
    /// sector is one or the other. Durable after [`Chain::flush`], or on return with `fua` or `cache=writethrough`.
    pub fn write(&self, buf: &[u8], offset: u64, fua: bool) -> Result<()> {
        self.change(offset, buf.len() as u64, fua, |leaf| {
            let sector = leaf.geometry().sector_size();
            let (mut at, mut rest) = (offset, buf);
            while !rest.is_empty() {
                let within = at % sector;
                let len = match within == 0 && rest.len() as u64 >= sector {
                    true => align_down(rest.len() as u64, sector),
                    false => (sector - within).min(rest.len() as u64),
                };
                let (now, later) = rest.split_at(len as usize);
                match within == 0 && len >= sector {
                    true => leaf.write(at, Payload::Bytes(now))?,
                    false => self.write_in_sector(leaf, at, now)?,
                }
                (at, rest) = (at + len, later);
            }
            Ok(())
        })
    }

    fn write_in_sector(&self, leaf: &Image, offset: u64, bytes: &[u8]) -> Result<()> {
        // The caller is a writer, for whom nobody can be asked to stand still.
        leaf.write_in_sector(offset, bytes, |sector, at| loop {
            let read = || self.snapshot.load().read(sector, at);
            if let Some(result) = self.shared.reuse.unchanged(read) {
                return result;
            }
        })
    }

    /// Makes a range read as zeros, whatever parents hold there. See [`ZeroFlags`].
    pub fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        self.change(offset, len, flags.fua, |leaf| {
            let sector = leaf.geometry().sector_size();
            let end = offset + len;
            let start = align_up(offset, sector).unwrap_or(end).min(end);
            let stop = align_down(end, sector).max(start);
            if flags.fast && !(start == offset && stop == end && leaf.zero_is_fast(offset, len, flags.may_unmap)?) {
                return Err(Error::new(
                    ErrorKind::NotFast,
                    "the range cannot be made zero by changing metadata alone",
                )
                .with_hint("write zeros, or leave the fast flag out"));
            }
            let zeros = [0; 4096];
            for (from, to) in [(offset, start), (stop, end)] {
                if from < to {
                    // At most one sector, in part; or both ends in the same one.
                    let mut at = from;
                    while at < to {
                        let part = (to - at).min(sector - at % sector);
                        self.write_in_sector(leaf, at, &zeros[..part as usize])?;
                        at += part;
                    }
                }
            }
            if start < stop {
                leaf.zero(start, stop - start, flags.may_unmap)?;
            }
            Ok(())
        })
    }

    /// Gives the space of whole blocks back; they then read as zeros, never as a parent's older data. Parts of blocks,
    /// and fixed disks, are left as they are.
    pub fn discard(&self, offset: u64, len: u64, fua: bool) -> Result<()> {
        self.change(offset, len, fua, |leaf| leaf.discard(offset, len))
    }

    fn change(&self, offset: u64, len: u64, fua: bool, change: impl FnOnce(&Image) -> Result<()>) -> Result<()> {
        self.check_writable()?;
        let snapshot = {
            let watch = self.gate.read();
            let snapshot = self.snapshot.load();
            let leaf = snapshot.leaf();
            check_range(offset, len, leaf.virtual_size())?;
            if len == 0 {
                return Ok(());
            }
            let result = change(leaf);
            if let Some(watch) = &*watch {
                // Also after a failure: part of it may have been written.
                watch.mark(offset, len);
            }
            result.map_err(|e| seldom(|| e.with_layer(0)))?;
            snapshot
        };
        match fua || self.shared.cache == CacheMode::Writethrough {
            true => snapshot.leaf().commit(),
            false => Ok(()),
        }
    }

    /// Makes everything that was completed before the call, by any thread, durable. Costs nothing when nothing was
    /// written, one flush of the file when no metadata changed, two otherwise.
    pub fn flush(&self) -> Result<()> {
        let leaf: Arc<Image> = self.snapshot.load().leaf().clone();
        leaf.commit()
    }
}

fn check_range(offset: u64, len: u64, size: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(seldom(|| {
            let message = format!("{len} bytes at offset {offset} are not all inside the disk of {size} bytes");
            Error::new(ErrorKind::Range, message).with_offset(offset)
        })),
    }
}
