//! Changing what the disk reads as: in place, allocating, zero, discard (MS-VHDX 2.5.1; docs/durability.md
//! "Allocating write", "Discard").
//!
//! A change of metadata happens in memory, under the lock of [`Meta`], after the payload it makes reachable was
//! written; [`super::commit`] makes it durable. Readers see it at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::OnceLock;

use parking_lot::{Condvar, Mutex};

use super::change::{Bits, Held, Meta};
use super::claims::Claims;
use super::commit::CommitState;
use super::front::Front;
use super::paged::PagedTable;
use super::payload::Payload;
use super::space::{Allocation, Space};
use super::turns::Turns;
use super::{Image, WriteMode};
use crate::error::{seldom, Error, ErrorKind, PathContext, Result};
use crate::format::bat::{BitmapEntry, PayloadEntry, PayloadState};
use crate::format::bitmap;
use crate::log::ring::Ring;
use crate::units::{BlockIndex, ChunkIndex, MIB};

/// The writing half of an image.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) claims: Claims,
    pub(crate) meta: Mutex<Meta>,
    /// A reservation was given back.
    pub(super) unreserved: Condvar,
    pub(crate) space: Mutex<Option<Space>>,
    pub(crate) commit: Turns<CommitState>,
    poison: OnceLock<Error>,
    sealed: AtomicBool,
    /// Most pages one log entry may carry.
    pub(super) max_pages: usize,
    pub(crate) region_copies_agree: AtomicBool,
}

impl Writer {
    pub(crate) fn new(front: &Front) -> Self {
        let log_length = match front.current.header.log_length {
            0 => MIB as u32,
            length => length,
        };
        Writer {
            claims: Claims::new(),
            meta: Mutex::default(),
            unreserved: Condvar::new(),
            space: Mutex::new(None),
            commit: Turns::new(CommitState::new(front.file_len)),
            poison: OnceLock::new(),
            sealed: AtomicBool::new(false),
            max_pages: Ring::max_pages(log_length),
            region_copies_agree: AtomicBool::new(front.region_copies_agree),
        }
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    pub(crate) fn set_sealed(&self) {
        self.sealed.store(true, Ordering::Release);
    }

    /// Remembers the first failure after which memory and file may differ, and returns it.
    pub(crate) fn poison(&self, error: Error) -> Error {
        let _ = self.poison.set(error.clone());
        error
    }

    pub(crate) fn check_poison(&self) -> Result<()> {
        match self.poison.get() {
            Some(first) => Err(seldom(|| Error::poisoned(first))),
            None => Ok(()),
        }
    }

    /// Drops clean pages. `offset_of` gives a page's place in the file.
    pub(crate) fn evict(&self, table: &PagedTable, offset_of: impl Fn(u64) -> Option<u64>) {
        let meta = self.meta.lock();
        table.evict(|page| {
            offset_of(page).is_none_or(|at| {
                meta.dirty.contains_key(&at) || meta.in_flight.contains_key(&at) || meta.unapplied.contains_key(&at)
            })
        });
    }
}

impl Image {
    /// Checks that writing is possible and announces it in the headers.
    pub(super) fn begin(&self, mode: WriteMode) -> Result<&Writer> {
        let writer = self.writer()?;
        if writer.is_sealed() {
            let message = "the layer has a child and takes no more writes";
            return Err(seldom(|| Error::new(ErrorKind::ReadOnly, message)));
        }
        writer.check_poison()?;
        self.ensure_mode(mode)?;
        Ok(writer)
    }

    pub(super) fn completed(&self, writer: &Writer) {
        writer.commit.complete();
    }

    /// Writes `payload` at `offset`. Both ends are multiples of the sector size; the range is inside the disk.
    pub(crate) fn write(&self, mut offset: u64, mut payload: Payload<'_>) -> Result<()> {
        let writer = self.begin(WriteMode::Data).at(self.name())?;
        while payload.len() > 0 {
            let block = self.geometry().block_of(offset);
            let rest_of_block = self.geometry().block_start(block) + self.geometry().block_len(block) - offset;
            let (now, later) = payload.split(payload.len().min(rest_of_block));
            self.write_block(writer, block, offset, now).at(self.name())?;
            offset += now.len();
            payload = later;
        }
        Ok(())
    }

    /// Writes part of one sector: `read` gives the sector's present content, from this file or its parents.
    pub(crate) fn write_in_sector(
        &self,
        offset: u64,
        bytes: &[u8],
        read: impl FnOnce(&mut [u8], u64) -> Result<()>,
    ) -> Result<()> {
        let writer = self.begin(WriteMode::Data).at(self.name())?;
        let size = self.geometry().sector_size();
        let start = offset - offset % size;
        let block = self.geometry().block_of(offset);
        let _claim = writer.claims.exclusive(block);
        let mut sector = vec![0; size as usize];
        read(&mut sector, start)?;
        let within = (offset - start) as usize;
        sector[within..within + bytes.len()].copy_from_slice(bytes);
        self.write_claimed(writer, block, start, Payload::Bytes(&sector))
            .at(self.name())
    }

    fn write_block(&self, writer: &Writer, block: BlockIndex, offset: u64, payload: Payload<'_>) -> Result<()> {
        {
            let _claim = writer.claims.shared(block);
            let entry = self.payload(block)?;
            if entry.state.is_present() {
                return self.write_present(writer, block, entry, offset, payload);
            }
        }
        let _claim = writer.claims.exclusive(block);
        self.write_claimed(writer, block, offset, payload)
    }

    /// With the block claimed exclusively.
    pub(super) fn write_claimed(
        &self,
        writer: &Writer,
        block: BlockIndex,
        offset: u64,
        payload: Payload<'_>,
    ) -> Result<()> {
        let entry = self.payload(block)?;
        match entry.state.is_present() {
            true => self.write_present(writer, block, entry, offset, payload),
            false => self.write_allocating(writer, block, entry, offset, payload),
        }
    }

    /// The block has its place: payload first, then, in a partially present block, the bits that were not set.
    fn write_present(
        &self,
        writer: &Writer,
        block: BlockIndex,
        entry: PayloadEntry,
        offset: u64,
        payload: Payload<'_>,
    ) -> Result<()> {
        let in_block = offset - self.geometry().block_start(block);
        let at = entry.file_offset + in_block;
        if entry.state == PayloadState::FullyPresent {
            payload.put(&*self.storage, at)?;
            self.completed(writer);
            return Ok(());
        }
        let bits = self.bits_of(offset, payload.len());
        let whole = payload.len() == self.geometry().block_len(block);
        let Bits { chunk, first, count } = bits;
        let known = bitmap::run_length(|word| self.bitmap_word(chunk, word), first, first + count)?;
        if known == (true, count) {
            payload.put(&*self.storage, at)?;
            self.completed(writer);
            return Ok(());
        }
        let held = Held::default().block(self, block)?.bits(self, chunk, first, count)?;
        let _room = self.reserve(writer, held.len())?;
        payload.put(&*self.storage, at)?;
        // ORDER: the data is written before its bits are set; the commit flushes it before it logs them (I3, I9).
        let mut change = self.change(writer, held)?;
        let full = PayloadEntry {
            state: PayloadState::FullyPresent,
            ..entry
        };
        if whole {
            change.set_payload(block, full);
        } else {
            change.set_bits(bits)?;
            if self.all_bits_set(block) {
                change.set_payload(block, full);
            }
        }
        drop(change);
        self.completed(writer);
        Ok(())
    }

    /// The block has no place: takes one, fills it and publishes it. The block is claimed exclusively.
    fn write_allocating(
        &self,
        writer: &Writer,
        block: BlockIndex,
        before: PayloadEntry,
        offset: u64,
        payload: Payload<'_>,
    ) -> Result<()> {
        let geometry = self.geometry();
        let written = self.bits_of(offset, payload.len());
        let whole = payload.len() == geometry.block_len(block);
        let partial = geometry.is_differencing() && before.state == PayloadState::NotPresent && !whole;
        let all = self.bits_of(geometry.block_start(block), geometry.block_len(block));
        self.ensure_space(writer)?;
        let mut held = Held::default().block(self, block)?;
        if partial {
            self.ensure_bitmap_block(writer, all.chunk)?;
            held = held.bits(self, all.chunk, all.first, all.count)?;
        }
        let _room = self.reserve(writer, held.len())?;
        let place = self.take_space(writer, geometry.block_size())?;
        let in_block = offset - geometry.block_start(block);
        let ready = self
            .fill_block(place, in_block, payload, partial)
            .and_then(|()| self.change(writer, held));
        let mut change = match ready {
            Ok(change) => change,
            Err(error) => {
                self.give_back(writer, &place);
                return Err(error);
            }
        };
        // ORDER: the block's content is written before it is published; the commit flushes it before it logs the BAT
        // entry, and the bitmap bits go into the same log entry (I3, I9).
        let mut state = PayloadState::FullyPresent;
        if partial {
            // All bits of the block are rewritten: they may be left from an earlier life.
            change.clear_bits(all)?;
            change.set_bits(written)?;
            state = PayloadState::PartiallyPresent;
        }
        let file_offset = place.file_offset;
        change.set_payload(block, PayloadEntry { state, file_offset });
        if before.has_space() {
            change.free(before.file_offset, geometry.block_size());
        }
        drop(change);
        self.completed(writer);
        Ok(())
    }

    /// Writes `payload` and what must be zero around it.
    fn fill_block(&self, place: Allocation, in_block: u64, payload: Payload<'_>, partial: bool) -> Result<()> {
        let end = in_block + payload.len();
        if !partial && !place.zeroed {
            for (from, to) in [(0, in_block), (end, place.len)] {
                if from < to {
                    Payload::Zeros(to - from).put(&*self.storage, place.file_offset + from)?;
                }
            }
        }
        match payload {
            Payload::Zeros(_) if place.zeroed => Ok(()),
            payload => payload.put(&*self.storage, place.file_offset + in_block),
        }
    }

    /// Makes `[offset, offset + len)` read as zeros. Whole blocks give their space back if `unmap`, other ranges and
    /// fixed disks are overwritten. Both ends are multiples of the sector size.
    pub(crate) fn zero(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.begin(WriteMode::Data).at(self.name())?;
        let fixed = self.is_fixed();
        self.for_each_part(offset, len, |block, at, part, whole| {
            let writer = self.writer()?;
            let _claim = writer.claims.exclusive(block);
            let entry = self.payload(block)?;
            let present = entry.state.is_present();
            let reads_zero = match entry.state {
                PayloadState::NotPresent => !self.geometry().is_differencing(),
                _ => !present,
            };
            match () {
                _ if reads_zero && !(whole && entry.file_offset != 0) => Ok(()),
                _ if whole && !fixed && (unmap || !present) => self.retire(writer, block, entry, PayloadState::Zero),
                _ => self.write_claimed(writer, block, at, Payload::Zeros(part)),
            }
        })
        .at(self.name())
    }

    /// Gives back the space of the blocks wholly inside the range, which then read as zeros; the rest is left alone.
    pub(crate) fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let writer = self.begin(WriteMode::Data).at(self.name())?;
        if self.is_fixed() {
            return Ok(());
        }
        self.for_each_part(offset, len, |block, _, _, whole| {
            let _claim = writer.claims.exclusive(block);
            let entry = self.payload(block)?;
            match whole && entry.state.is_present() {
                true => self.retire(writer, block, entry, PayloadState::Unmapped),
                false => Ok(()),
            }
        })
        .at(self.name())
    }

    /// Whether [`Image::zero`] of the range only changes metadata.
    pub(crate) fn zero_is_fast(&self, offset: u64, len: u64, unmap: bool) -> Result<bool> {
        let mut fast = true;
        self.for_each_part(offset, len, |block, _, _, whole| {
            let entry = self.payload(block)?;
            let no_space = !entry.state.is_present();
            let zero_already =
                no_space && (entry.state != PayloadState::NotPresent || !self.geometry().is_differencing());
            fast &= zero_already || (whole && !self.is_fixed() && (unmap || no_space));
            Ok(())
        })?;
        Ok(fast)
    }

    /// Lets the parent show through a block whose content the parent now holds, durably. Not a change of what the disk
    /// reads as, so DataWriteGuid stays. `still_wanted` is asked with the block claimed.
    pub(crate) fn make_transparent(&self, block: BlockIndex, still_wanted: impl FnOnce() -> bool) -> Result<()> {
        if self.payload(block).at(self.name())?.state == PayloadState::NotPresent {
            return Ok(());
        }
        let writer = self.begin(WriteMode::File).at(self.name())?;
        let _claim = writer.claims.exclusive(block);
        let entry = self.payload(block)?;
        if entry.state == PayloadState::NotPresent || !still_wanted() {
            return Ok(());
        }
        self.retire(writer, block, entry, PayloadState::NotPresent)
            .at(self.name())
    }

    /// Takes a block's place from it. The block is claimed exclusively.
    pub(super) fn retire(
        &self,
        writer: &Writer,
        block: BlockIndex,
        before: PayloadEntry,
        state: PayloadState,
    ) -> Result<()> {
        self.ensure_space(writer)?;
        let held = Held::default().block(self, block)?;
        let _room = self.reserve(writer, held.len())?;
        let mut change = self.change(writer, held)?;
        change.set_payload(block, PayloadEntry { state, file_offset: 0 });
        if before.has_space() {
            // ORDER: the space is free only when the entry that takes it from this block is durable (I4).
            change.free(before.file_offset, self.geometry().block_size());
        }
        drop(change);
        self.completed(writer);
        Ok(())
    }

    /// Calls `visit(block, offset, len, whole)` for each block's part of the range.
    fn for_each_part(
        &self,
        offset: u64,
        len: u64,
        mut visit: impl FnMut(BlockIndex, u64, u64, bool) -> Result<()>,
    ) -> Result<()> {
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let block = self.geometry().block_of(at);
            let block_end = self.geometry().block_start(block) + self.geometry().block_len(block);
            let part = end.min(block_end) - at;
            visit(block, at, part, part == self.geometry().block_len(block))?;
            at += part;
        }
        Ok(())
    }

    pub(crate) fn is_fixed(&self) -> bool {
        let parameters = self.metadata.lock().items.parameters;
        parameters.leave_block_allocated && !parameters.has_parent
    }

    /// Makes sure that the chunk has a sector bitmap block.
    fn ensure_bitmap_block(&self, writer: &Writer, chunk: ChunkIndex) -> Result<()> {
        if self.bitmap_block(chunk)?.present {
            return Ok(());
        }
        let held = Held::default().bat(self, self.geometry().bitmap_index(chunk).0)?;
        let _room = self.reserve(writer, held.len())?;
        let place = self.take_space(writer, MIB)?;
        let zeroed = match place.zeroed {
            true => Ok(()),
            false => Payload::Zeros(MIB).put(&*self.storage, place.file_offset),
        };
        // ORDER: the zeros are written before the block is published, in the same or an earlier log entry than the
        // first block that uses it.
        let added = zeroed.and_then(|()| {
            let entry = BitmapEntry {
                present: true,
                file_offset: place.file_offset,
            };
            Ok(self.change(writer, held)?.add_bitmap_block(chunk, entry))
        });
        match added {
            Ok(true) => Ok(()),
            // Another thread was sooner.
            Ok(false) => {
                self.give_back(writer, &place);
                Ok(())
            }
            Err(error) => {
                self.give_back(writer, &place);
                Err(error)
            }
        }
    }

    /// Zeros behind the end of the disk in its last block, `len` bytes from `in_block` on, as if they belonged to it.
    pub(super) fn write_beyond_end(&self, block: BlockIndex, in_block: u64, len: u64) -> Result<()> {
        let writer = self.writer()?;
        let _claim = writer.claims.exclusive(block);
        let geometry = self.geometry();
        let before = self.payload(block)?;
        let all = self.bits_of(geometry.block_start(block), geometry.block_size());
        let tail = Bits {
            first: all.first + in_block / geometry.sector_size(),
            count: len / geometry.sector_size(),
            ..all
        };
        self.ensure_bitmap_block(writer, all.chunk)?;
        let held = Held::default()
            .block(self, block)?
            .bits(self, all.chunk, all.first, all.count)?;
        let _room = self.reserve(writer, held.len())?;
        let present = before.state == PayloadState::PartiallyPresent;
        let file_offset = match present {
            true => before.file_offset,
            false => self.take_space(writer, geometry.block_size())?.file_offset,
        };
        Payload::Zeros(len).put(&*self.storage, file_offset + in_block)?;
        let mut change = self.change(writer, held)?;
        if !present {
            change.clear_bits(all)?;
            let state = PayloadState::PartiallyPresent;
            change.set_payload(block, PayloadEntry { state, file_offset });
        }
        change.set_bits(tail)?;
        drop(change);
        self.completed(writer);
        Ok(())
    }

    /// Payload was written behind the image's back: commits it.
    pub(super) fn commit_after_payload(&self) -> Result<()> {
        self.completed(self.writer()?);
        self.commit()
    }
}
