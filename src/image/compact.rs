//! Giving space of the file back without changing what the disk reads as (docs/durability.md "Compact").
//!
//! Each step but [`Image::settle_bitmaps`] and [`Image::trim`] runs among readers and writers: it claims its block, and
//! the caller holds the chain's gate as a writer does. FileWriteGuid changes, DataWriteGuid does not: children of the
//! file stay valid.

use std::sync::atomic::Ordering;

use super::allocate::surveyed;
use super::change::Held;
use super::{Image, WriteMode};
use crate::error::{IoContext, PathContext, Result};
use crate::format::bat::{BitmapEntry, PayloadEntry, PayloadState};
use crate::storage;
use crate::units::{BatSlot, BlockIndex, ChunkIndex, MIB};

/// Who owns the file, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// Owned by some structure: what the file would take without holes.
    pub(crate) used: u64,
    /// End of the last structure.
    pub(crate) end: u64,
}

impl Image {
    /// How the file is used.
    pub(crate) fn usage(&self) -> Result<Usage> {
        let writer = self.writer()?;
        self.ensure_space(writer).at(self.name())?;
        let mut guard = writer.space.lock();
        let space = surveyed(&mut guard)?;
        Ok(Usage {
            used: space.used_bytes(),
            end: space.used_end(),
        })
    }

    /// Calls `visit` for every block that has an entry in the file. What it has now is for the visitor to look up:
    /// others may change it meanwhile.
    pub(crate) fn for_each_block(&self, mut visit: impl FnMut(BlockIndex) -> Result<()>) -> Result<()> {
        self.for_each_bat_entry(|_, slot, _| match slot {
            BatSlot::Payload(block) if block.0 < self.geometry().block_count() => visit(block),
            _ => Ok(()),
        })
    }

    /// Takes the place from a block that is not present and still has one. Whether it had.
    pub(crate) fn drop_anchor(&self, block: BlockIndex) -> Result<bool> {
        self.give_up_block(block, |entry| {
            Ok((!entry.state.is_present() && entry.has_space()).then_some(entry.state))
        })
    }

    /// Takes the place from a present block that reads as zeros: `reads_zero` tells, with the block claimed. Whether it
    /// did.
    pub(crate) fn release_zero_block(
        &self,
        block: BlockIndex,
        reads_zero: impl FnOnce() -> Result<bool>,
    ) -> Result<bool> {
        // Zero, never absent: in a differencing disk that would be a promise about the parent.
        self.give_up_block(block, |entry| {
            Ok((entry.state.is_present() && reads_zero()?).then_some(PayloadState::Zero))
        })
    }

    fn give_up_block(
        &self,
        block: BlockIndex,
        decide: impl FnOnce(PayloadEntry) -> Result<Option<PayloadState>>,
    ) -> Result<bool> {
        let writer = self.writer()?;
        let _claim = writer.claims.exclusive(block);
        let entry = self.payload(block).at(self.name())?;
        let Some(state) = decide(entry)? else {
            return Ok(false);
        };
        self.begin(WriteMode::File).at(self.name())?;
        self.retire(writer, block, entry, state).at(self.name())?;
        Ok(true)
    }

    /// Makes a block all of whose sectors are here fully present. Whether it was such a block (MS-VHDX 2.5.1.1).
    pub(crate) fn complete_block(&self, block: BlockIndex) -> Result<bool> {
        let writer = self.writer()?;
        let _claim = writer.claims.exclusive(block);
        let entry = self.payload(block).at(self.name())?;
        if entry.state != PayloadState::PartiallyPresent {
            return Ok(false);
        }
        let geometry = self.geometry();
        let bits = self.bits_of(geometry.block_start(block), geometry.block_len(block));
        let held = Held::default()
            .block(self, block)?
            .bits(self, bits.chunk, bits.first, bits.count)?;
        if !self.all_bits_set(block) {
            return Ok(false);
        }
        self.begin(WriteMode::File).at(self.name())?;
        let _room = self.reserve(writer, held.len())?;
        // ORDER: the commit flushes the data that the bits stand for before it logs the entry (I3).
        let mut change = self.change(writer, held)?;
        let state = PayloadState::FullyPresent;
        change.set_payload(block, PayloadEntry { state, ..entry });
        drop(change);
        self.completed(writer);
        Ok(true)
    }

    /// Moves a block that ends behind `target` into the lowest hole from `from` on, if there is one below it. Where it
    /// is then; `None` if it stays.
    pub(crate) fn move_block_down(&self, block: BlockIndex, from: u64, target: u64) -> Result<Option<u64>> {
        let writer = self.writer()?;
        let len = self.geometry().block_size();
        let _claim = writer.claims.exclusive(block);
        let entry = self.payload(block).at(self.name())?;
        if !entry.state.is_present() || entry.file_offset + len <= target {
            return Ok(None);
        }
        self.begin(WriteMode::File).at(self.name())?;
        let held = Held::default().block(self, block)?;
        let _room = self.reserve(writer, held.len())?;
        let place = {
            let mut guard = writer.space.lock();
            surveyed(&mut guard)?.take_below(len, from, entry.file_offset)
        };
        let Some(place) = place else { return Ok(None) };
        // ORDER: counted before the new owner's first byte, so that a reader of the old owner notices.
        self.shared.reuse.announce();
        let ready = self
            .move_within(entry.file_offset, place.file_offset, len)
            .at(self.name())
            .and_then(|()| self.change(writer, held));
        let mut change = match ready {
            Ok(change) => change,
            Err(error) => {
                self.give_back(writer, &place);
                return Err(error);
            }
        };
        // ORDER: the copy is written before it is published, the commit flushes it before it logs the entry (I3), and
        // the old place, which stays as it is, is free when that entry is durable (I4).
        let file_offset = place.file_offset;
        change.set_payload(block, PayloadEntry { file_offset, ..entry });
        change.free(entry.file_offset, len);
        drop(change);
        self.completed(writer);
        Ok(Some(file_offset))
    }

    /// Puts a block's content to another place: by sharing its extents where the storage can, else by copying.
    fn move_within(&self, from: u64, to: u64, len: u64) -> Result<()> {
        let storage = &*self.storage;
        if storage.can_share(storage) && storage::share(storage, to, storage, from, len).is_ok() {
            return Ok(());
        }
        self.copy_within(from, to, len, |piece, at| storage.write_payload_at(piece, at))
    }

    /// Copies between two places that do not overlap. Zeros become holes where the storage can.
    fn copy_within(
        &self,
        from: u64,
        to: u64,
        len: u64,
        write: impl Fn(&[u8], u64) -> std::io::Result<()>,
    ) -> Result<()> {
        let mut buf = vec![0; MIB as usize];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(MIB);
            let piece = &mut buf[..n as usize];
            self.storage
                .read_at(piece, from + done)
                .context(|| format!("read at file offset {:#x}", from + done))?;
            let at = to + done;
            let written = match is_zero(piece) {
                true => self.storage.zero_range(at, n),
                false => write(piece, at),
            };
            written.context(|| format!("write at file offset {at:#x}"))?;
            done += n;
        }
        Ok(())
    }

    /// Gives up sector bitmap blocks whose chunk has no partially present block, and moves down others that end behind
    /// `target`. How many it gave up and how many it moved; if any, the image must be opened anew ([`Image::reopen`]).
    /// The log is empty and nobody writes.
    pub(crate) fn settle_bitmaps(&self, target: u64) -> Result<(u64, u64)> {
        self.settle_bitmaps_inner(target).at(self.name())
    }

    fn settle_bitmaps_inner(&self, target: u64) -> Result<(u64, u64)> {
        if !self.geometry().is_differencing() {
            return Ok((0, 0));
        }
        let (mut unused, mut high) = (Vec::new(), Vec::new());
        let mut in_use: Option<ChunkIndex> = None;
        self.for_each_bat_entry(|_, slot, raw| {
            match slot {
                BatSlot::Payload(block) if block.0 < self.geometry().block_count() => {
                    if self.check_payload(block, raw)?.state == PayloadState::PartiallyPresent {
                        in_use = Some(self.geometry().chunk_of(block));
                    }
                }
                // Behind the entries of the chunk's blocks.
                BatSlot::Bitmap(chunk) => {
                    let entry = self.check_bitmap(chunk, raw)?;
                    match entry.present {
                        true if in_use != Some(chunk) => unused.push(chunk),
                        true if entry.file_offset + MIB > target => high.push((entry.file_offset, chunk)),
                        _ => {}
                    }
                }
                BatSlot::Payload(_) => {}
            }
            Ok(())
        })?;
        high.sort_unstable();
        let mut moved = 0;
        for (offset, chunk) in high.into_iter().rev() {
            let writer = self.writer()?;
            self.ensure_space(writer)?;
            let place = surveyed(&mut writer.space.lock())?.take_below(MIB, 0, offset);
            let Some(place) = place else { break };
            self.shared.reuse.announce();
            self.copy_within(offset, place.file_offset, MIB, |piece, at| {
                self.storage.write_at(piece, at)
            })?;
            let entry = BitmapEntry {
                present: true,
                file_offset: place.file_offset,
            };
            self.set_bitmap_place(chunk, entry)?;
            moved += 1;
        }
        for &chunk in &unused {
            let entry = BitmapEntry {
                present: false,
                file_offset: 0,
            };
            self.set_bitmap_place(chunk, entry)?;
        }
        Ok((unused.len() as u64, moved))
    }

    fn set_bitmap_place(&self, chunk: ChunkIndex, entry: BitmapEntry) -> Result<()> {
        let writer = self.begin(WriteMode::File)?;
        let held = Held::default().bat(self, self.geometry().bitmap_index(chunk).0)?;
        let _room = self.reserve(writer, held.len())?;
        // The old place is free when the image is opened anew. No entry of the log names it: the log was empty before,
        // and nobody changes bits meanwhile.
        self.change(writer, held)?.set_bitmap_block(chunk, entry);
        self.completed(writer);
        Ok(())
    }

    /// Cuts the file behind its last structure. The log is empty and nobody writes. A fixed disk without all of its
    /// blocks keeps the room for them.
    pub(crate) fn trim(&self) -> Result<()> {
        self.trim_inner().at(self.name())
    }

    fn trim_inner(&self) -> Result<()> {
        let writer = self.writer()?;
        *writer.space.lock() = None;
        let usage = self.usage()?;
        if usage.end >= self.file_len() {
            return Ok(());
        }
        if self.is_fixed() {
            let mut present = 0;
            self.for_each_block(|block| {
                present += u64::from(self.payload(block)?.state.is_present());
                Ok(())
            })?;
            if present < self.geometry().block_count() {
                return Ok(());
            }
        }
        self.ensure_mode(WriteMode::File)?;
        // ORDER: counted before the content goes, so that a reader of the old owner notices.
        self.shared.reuse.announce();
        self.storage
            .set_len(usage.end)
            .context(|| format!("cut the file to {} bytes", usage.end))?;
        self.file_len.store(usage.end, Ordering::Release);
        // What is free now may not be known to be zero when the file grows again; survey it anew if it is needed.
        *writer.space.lock() = None;
        Ok(())
    }
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // In chunks, which the compiler turns into wide instructions.
    bytes
        .chunks(64)
        .all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}
