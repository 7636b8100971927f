//! Changing what the disk reads as: in place, allocating, zero, discard (MS-VHDX 2.5.1; docs/durability.md
//! "Allocating write", "Discard").
//!
//! A change of metadata happens in memory, under the lock of [`Meta`], after the payload it makes reachable was
//! written; [`super::commit`] makes it durable. Readers see it at once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::claims::Claims;
use super::commit::CommitState;
use super::front::Front;
use super::paged::{Page, PagedTable, PAGE_BYTES, PAGE_WORDS};
use super::space::{Allocation, Space};
use super::{Image, WriteMode, BITMAP_PAGES};
use crate::error::{Error, ErrorKind, IoContext, PathContext, Result};
use crate::format::bat::{BitmapEntry, PayloadEntry, PayloadState};
use crate::format::bitmap;
use crate::log::ring::{PageBytes, Ring};
use crate::storage::{CopyMethod, Storage};
use crate::units::{align_down, align_up, BatSlot, BlockIndex, ChunkIndex, LOG_SECTOR, MIB};

/// A metadata page that is newer in memory than in the file.
#[derive(Debug, Clone)]
pub(crate) enum DirtyPage {
    /// Of the BAT or a sector bitmap: its content when the entry is composed counts.
    Table(Arc<Page>),
    /// Of the region tables or the metadata region.
    Raw(Arc<PageBytes>),
}

/// Metadata on its way to the file, by file offset. A page may be in all three maps with different content.
#[derive(Debug, Default)]
pub(crate) struct Meta {
    /// Changed since the last entry was composed.
    pub(crate) dirty: BTreeMap<u64, DirtyPage>,
    /// In the entry being written.
    pub(crate) in_flight: BTreeMap<u64, Arc<PageBytes>>,
    /// In a durable entry, not at its place.
    pub(crate) unapplied: BTreeMap<u64, Arc<PageBytes>>,
    /// Pages that changes in preparation may make dirty.
    reserved: usize,
    /// Payload space that the changes in `dirty` took from its owner.
    pub(crate) freed: Vec<(u64, u64)>,
}

/// The writing half of an image.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) claims: Claims,
    pub(crate) meta: Mutex<Meta>,
    /// A reservation was given back.
    unreserved: Condvar,
    pub(crate) space: Mutex<Option<Space>>,
    pub(crate) commit: Mutex<CommitState>,
    /// Number of changes completed, and of those known durable.
    pub(crate) completed: AtomicU64,
    pub(crate) durable: AtomicU64,
    poison: OnceLock<Error>,
    sealed: AtomicBool,
    max_pages: usize,
    pub(crate) region_copies_agree: AtomicBool,
}

/// What to write.
#[derive(Clone, Copy)]
pub(crate) enum Payload<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// Zeros, this many.
    Zeros(u64),
    /// Bytes of another file.
    Copy {
        /// The file.
        source: &'a dyn Storage,
        /// The same file for kernel copies, when what it reads as is what is in it.
        raw: Option<&'a dyn Storage>,
        /// Where in it.
        file_offset: u64,
        /// How many bytes.
        len: u64,
        /// Ways to try, in order, before reading and writing.
        methods: &'a [CopyMethod],
        /// Counts the bytes shared by reflink.
        reflinked: &'a AtomicU64,
    },
}

impl<'a> Payload<'a> {
    fn len(&self) -> u64 {
        match self {
            Payload::Bytes(bytes) => bytes.len() as u64,
            Payload::Zeros(len) | Payload::Copy { len, .. } => *len,
        }
    }

    /// The first `at` bytes and the rest.
    fn split(self, at: u64) -> (Payload<'a>, Payload<'a>) {
        match self {
            Payload::Bytes(bytes) => {
                let (a, b) = bytes.split_at(at as usize);
                (Payload::Bytes(a), Payload::Bytes(b))
            }
            Payload::Zeros(len) => (Payload::Zeros(at), Payload::Zeros(len - at)),
            Payload::Copy {
                source,
                raw,
                file_offset,
                len,
                methods,
                reflinked,
            } => {
                let part = |from: u64, len: u64| Payload::Copy {
                    source,
                    raw,
                    file_offset: file_offset + from,
                    len,
                    methods,
                    reflinked,
                };
                (part(0, at), part(at, len - at))
            }
        }
    }

    /// Puts the bytes into `target`.
    fn put(&self, target: &dyn Storage, file_offset: u64) -> Result<()> {
        let writing = |at: u64| move || format!("write at file offset {at:#x}");
        match *self {
            Payload::Bytes(bytes) => target.write_at(bytes, file_offset).context(writing(file_offset)),
            Payload::Zeros(len) => target.zero_range(file_offset, len).context(writing(file_offset)),
            Payload::Copy {
                source,
                raw,
                file_offset: from,
                len,
                methods,
                reflinked,
            } => {
                if let Some(raw) = raw {
                    if kernel_copy(target, raw, from, file_offset, len, methods, reflinked)? {
                        return Ok(());
                    }
                }
                plain_copy(target, source, from, file_offset, len)
            }
        }
    }
}

/// Tries the ways of copying that the kernel offers; false when none works. Extents are shared in 4 KiB units: what
/// sticks out at the ends is left to the other ways.
fn kernel_copy(
    target: &dyn Storage,
    raw: &dyn Storage,
    from: u64,
    to: u64,
    len: u64,
    methods: &[CopyMethod],
    reflinked: &AtomicU64,
) -> Result<bool> {
    for &method in methods {
        if method != CopyMethod::Reflink {
            if target.copy_range_from(raw, from, to, len, method).is_ok() {
                return Ok(true);
            }
            continue;
        }
        let head = (align_up(to, LOG_SECTOR).unwrap_or(to) - to).min(len);
        let middle = align_down(len - head, LOG_SECTOR);
        let shareable = from % LOG_SECTOR == to % LOG_SECTOR && middle > 0;
        if shareable {
            match target.copy_range_from(raw, from + head, to + head, middle, method) {
                Ok(()) => {
                    reflinked.fetch_add(middle, Ordering::Relaxed);
                    for (skip, part) in [(0, head), (head + middle, len - head - middle)] {
                        plain_copy(target, raw, from + skip, to + skip, part)?;
                    }
                    return Ok(true);
                }
                Err(_) if methods.len() > 1 => {}
                Err(cause) => {
                    let message = "the file system cannot share extents between the two files";
                    return Err(Error::new(ErrorKind::Unsupported, message)
                        .with_hint("use mode=auto or mode=copy")
                        .with_source(cause));
                }
            }
        }
    }
    Ok(false)
}

/// Reads and writes.
fn plain_copy(target: &dyn Storage, source: &dyn Storage, from: u64, to: u64, len: u64) -> Result<()> {
    let mut buf = vec![0; len.min(MIB) as usize];
    let mut done = 0;
    while done < len {
        let piece = &mut buf[..(len - done).min(MIB) as usize];
        let at = from + done;
        source
            .read_at(piece, at)
            .context(|| format!("read at file offset {at:#x}"))?;
        let at = to + done;
        target
            .write_at(piece, at)
            .context(|| format!("write at file offset {at:#x}"))?;
        done += piece.len() as u64;
    }
    Ok(())
}

/// Room in the next log entry. Given back when dropped.
struct Reservation<'a> {
    writer: &'a Writer,
    pages: usize,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.writer.meta.lock().reserved -= self.pages;
        self.writer.unreserved.notify_all();
    }
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
            commit: Mutex::new(CommitState::new(front.file_len)),
            completed: AtomicU64::new(0),
            durable: AtomicU64::new(0),
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
            Some(first) => Err(Error::poisoned(first)),
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
    fn begin(&self, mode: WriteMode) -> Result<&Writer> {
        let writer = self.writer()?;
        if writer.is_sealed() {
            return Err(Error::new(
                ErrorKind::ReadOnly,
                "the layer has a child and takes no more writes",
            ));
        }
        writer.check_poison()?;
        self.ensure_mode(mode)?;
        Ok(writer)
    }

    fn completed(&self, writer: &Writer) {
        writer.completed.fetch_add(1, Ordering::Release);
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
    fn write_claimed(&self, writer: &Writer, block: BlockIndex, offset: u64, payload: Payload<'_>) -> Result<()> {
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
        let len = payload.len();
        let whole = len == self.geometry().block_len(block);
        let (first, count) = self.bits(offset, len);
        let chunk = self.geometry().chunk_of(block);
        let known = bitmap::run_length(|word| self.bitmap_word(chunk, word), first, first + count)?;
        if known == (true, count) {
            payload.put(&*self.storage, at)?;
            self.completed(writer);
            return Ok(());
        }
        let bits = self.hold_bits(chunk, first, count)?;
        let bat = self.hold_bat(block)?;
        let _room = self.reserve(writer, bits.len() + 1)?;
        payload.put(&*self.storage, at)?;
        // ORDER: the data is written before its bits are set; the commit flushes it before it logs them (I3, I9).
        let mut meta = writer.meta.lock();
        let full = PayloadEntry {
            state: PayloadState::FullyPresent,
            ..entry
        };
        if whole {
            self.store_payload(&mut meta, block, &bat, full);
        } else {
            self.store_bits(&mut meta, &bits, chunk, first, count, None);
            if self.all_bits_set(chunk, block) {
                self.store_payload(&mut meta, block, &bat, full);
            }
        }
        drop(meta);
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
        let (in_block, len) = (offset - geometry.block_start(block), payload.len());
        let whole = len == geometry.block_len(block);
        let partial = geometry.is_differencing() && before.state == PayloadState::NotPresent && !whole;
        let chunk = geometry.chunk_of(block);
        self.ensure_space(writer)?;
        let mut bits = Vec::new();
        let block_bits = self.bits(geometry.block_start(block), geometry.block_len(block));
        if partial {
            self.ensure_bitmap_block(writer, chunk)?;
            bits = self.hold_bits(chunk, block_bits.0, block_bits.1)?;
        }
        let bat = self.hold_bat(block)?;
        let _room = self.reserve(writer, bits.len() + 1)?;
        let place = self.take_space(writer, geometry.block_size())?;
        let filled = self.fill_block(place, in_block, payload, partial);
        if let Err(error) = filled {
            self.give_back(writer, &place);
            return Err(error);
        }
        // ORDER: the block's content is written before it is published; the commit flushes it before it logs the BAT
        // entry, and the bitmap bits go into the same log entry (I3, I9).
        let mut meta = writer.meta.lock();
        if partial {
            let (first, count) = self.bits(offset, len);
            // All bits of the block are rewritten: they may be left from an earlier life.
            self.store_bits(
                &mut meta,
                &bits,
                chunk,
                block_bits.0,
                block_bits.1,
                Some((first, count)),
            );
        }
        let state = if partial {
            PayloadState::PartiallyPresent
        } else {
            PayloadState::FullyPresent
        };
        let entry = PayloadEntry {
            state,
            file_offset: place.file_offset,
        };
        self.store_payload(&mut meta, block, &bat, entry);
        if before.file_offset != 0 {
            meta.freed.push((before.file_offset, geometry.block_size()));
        }
        drop(meta);
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
    fn retire(&self, writer: &Writer, block: BlockIndex, before: PayloadEntry, state: PayloadState) -> Result<()> {
        self.ensure_space(writer)?;
        let bat = self.hold_bat(block)?;
        let _room = self.reserve(writer, 1)?;
        let mut meta = writer.meta.lock();
        self.store_payload(&mut meta, block, &bat, PayloadEntry { state, file_offset: 0 });
        if before.file_offset != 0 && before.has_space() {
            // ORDER: the space is free only when the entry that takes it from this block is durable (I4).
            meta.freed.push((before.file_offset, self.geometry().block_size()));
        }
        drop(meta);
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

    // ---- metadata in memory ----

    /// First bit (in its chunk) and number of bits of a range within one block.
    fn bits(&self, offset: u64, len: u64) -> (u64, u64) {
        (self.geometry().bit_of(offset), len / self.geometry().sector_size())
    }

    fn hold_bat(&self, block: BlockIndex) -> Result<Arc<Page>> {
        self.bat_page(self.geometry().payload_index(block).0 / PAGE_WORDS)
    }

    /// The bitmap pages of a range of bits, with their numbers.
    fn hold_bits(&self, chunk: ChunkIndex, first: u64, count: u64) -> Result<Vec<(u64, u64, Arc<Page>)>> {
        let per_page = PAGE_BYTES as u64 * 8;
        (first / per_page..=(first + count - 1) / per_page)
            .map(|n| {
                let page = chunk.0 * BITMAP_PAGES + n;
                let offset = self.bitmap_page_offset(page)?;
                Ok((page, offset, self.bitmap_page(page)?))
            })
            .collect()
    }

    /// Stores a payload entry.
    fn store_payload(&self, meta: &mut Meta, block: BlockIndex, held: &Arc<Page>, entry: PayloadEntry) {
        self.store_bat_word(meta, self.geometry().payload_index(block).0, held, entry.encode());
    }

    pub(crate) fn store_bat_word(&self, meta: &mut Meta, index: u64, held: &Arc<Page>, word: u64) {
        let page = self.bat.settle(index / PAGE_WORDS, held.clone());
        page.word(index).store(word, Ordering::Release);
        let offset = self.regions.bat().offset + index / PAGE_WORDS * PAGE_BYTES as u64;
        meta.dirty.insert(offset, DirtyPage::Table(page));
    }

    /// Sets bits, or with `only` clears the range except for those bits.
    fn store_bits(
        &self,
        meta: &mut Meta,
        held: &[(u64, u64, Arc<Page>)],
        chunk: ChunkIndex,
        first: u64,
        count: u64,
        only: Option<(u64, u64)>,
    ) {
        let pages: Vec<Arc<Page>> = held
            .iter()
            .map(|(number, offset, page)| {
                let page = self.bitmaps.settle(*number, page.clone());
                meta.dirty.insert(*offset, DirtyPage::Table(page.clone()));
                page
            })
            .collect();
        let first_page = held.first().map_or(0, |(number, ..)| *number);
        let word = |word: u64| {
            let index = chunk.0 * BITMAP_PAGES * PAGE_WORDS + word;
            pages[(index / PAGE_WORDS - first_page) as usize].word(index)
        };
        match only {
            None => bitmap::for_each_word(first, count, |w, mask| {
                word(w).fetch_or(mask, Ordering::Release);
            }),
            Some((set_first, set_count)) => {
                bitmap::for_each_word(first, count, |w, mask| {
                    word(w).fetch_and(!mask, Ordering::Release);
                });
                bitmap::for_each_word(set_first, set_count, |w, mask| {
                    word(w).fetch_or(mask, Ordering::Release);
                });
            }
        }
    }

    /// Whether the block may become fully present, as far as resident pages tell (MS-VHDX 2.5.1.1).
    fn all_bits_set(&self, chunk: ChunkIndex, block: BlockIndex) -> bool {
        let geometry = self.geometry();
        let (first, count) = self.bits(geometry.block_start(block), geometry.block_len(block));
        let peek = |word: u64| self.bitmaps.peek(chunk.0 * BITMAP_PAGES * PAGE_WORDS + word).ok_or(());
        // Disks are mostly written upwards: the last bits decide soonest.
        let last = first + count - 1;
        let tail = (last - last % 64).max(first);
        bitmap::run_length(peek, tail, last + 1) == Ok((true, last + 1 - tail))
            && bitmap::run_length(peek, first, last + 1) == Ok((true, count))
    }

    /// Makes sure that the chunk has a sector bitmap block.
    fn ensure_bitmap_block(&self, writer: &Writer, chunk: ChunkIndex) -> Result<()> {
        let index = self.geometry().bitmap_index(chunk).0;
        // Only one thread at a time may take space for it; the space lock is free for that.
        if self.bitmap_block(chunk)?.present {
            return Ok(());
        }
        let held = self.bat_page(index / PAGE_WORDS)?;
        let _room = self.reserve(writer, 1)?;
        let place = self.take_space(writer, MIB)?;
        if !place.zeroed {
            if let Err(error) = Payload::Zeros(MIB).put(&*self.storage, place.file_offset) {
                self.give_back(writer, &place);
                return Err(error);
            }
        }
        // ORDER: the zeros are written before the block is published, in the same or an earlier log entry than the
        // first block that uses it.
        let mut meta = writer.meta.lock();
        let entry = BitmapEntry {
            present: true,
            file_offset: place.file_offset,
        };
        let lost_race = self.bitmap_block(chunk).is_ok_and(|e| e.present);
        if !lost_race {
            self.store_bat_word(&mut meta, index, &held, entry.encode());
        }
        drop(meta);
        if lost_race {
            self.give_back(writer, &place);
        }
        Ok(())
    }

    /// Zeros behind the end of the disk in its last block, `len` bytes from `in_block` on, as if they belonged to it.
    pub(crate) fn write_beyond_end(&self, block: BlockIndex, in_block: u64, len: u64) -> Result<()> {
        let writer = self.writer()?;
        let _claim = writer.claims.exclusive(block);
        let geometry = self.geometry();
        let chunk = geometry.chunk_of(block);
        let before = self.payload(block)?;
        self.ensure_bitmap_block(writer, chunk)?;
        let block_bits = self.bits(geometry.block_start(block), geometry.block_size());
        let tail_bits = (
            block_bits.0 + in_block / geometry.sector_size(),
            len / geometry.sector_size(),
        );
        let bits = self.hold_bits(chunk, block_bits.0, block_bits.1)?;
        let bat = self.hold_bat(block)?;
        let _room = self.reserve(writer, bits.len() + 1)?;
        let present = before.state == PayloadState::PartiallyPresent;
        let file_offset = match present {
            true => before.file_offset,
            false => self.take_space(writer, geometry.block_size())?.file_offset,
        };
        Payload::Zeros(len).put(&*self.storage, file_offset + in_block)?;
        let mut meta = writer.meta.lock();
        match present {
            true => self.store_bits(&mut meta, &bits, chunk, tail_bits.0, tail_bits.1, None),
            false => {
                self.store_bits(&mut meta, &bits, chunk, block_bits.0, block_bits.1, Some(tail_bits));
                let state = PayloadState::PartiallyPresent;
                self.store_payload(&mut meta, block, &bat, PayloadEntry { state, file_offset });
            }
        }
        drop(meta);
        self.completed(writer);
        Ok(())
    }

    /// Payload was written behind the image's back: commits it.
    pub(crate) fn commit_after_payload(&self) -> Result<()> {
        self.completed(self.writer()?);
        self.commit()
    }

    /// Waits until `pages` more pages fit into the next log entry, committing if that makes room.
    fn reserve<'a>(&self, writer: &'a Writer, pages: usize) -> Result<Reservation<'a>> {
        if pages > writer.max_pages {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!("a change of {pages} metadata pages does not fit into one entry of this file's log"),
            ));
        }
        let mut meta = writer.meta.lock();
        loop {
            writer.check_poison()?;
            if meta.dirty.len() + meta.reserved + pages <= writer.max_pages {
                meta.reserved += pages;
                return Ok(Reservation { writer, pages });
            }
            if meta.dirty.is_empty() {
                writer.unreserved.wait(&mut meta);
                continue;
            }
            drop(meta);
            self.commit()?;
            meta = writer.meta.lock();
        }
    }

    /// Makes raw pages of one consistent update part of the next log entry.
    pub(crate) fn stage(&self, pages: Vec<(u64, PageBytes)>, mode: WriteMode) -> Result<()> {
        let writer = self.begin(mode)?;
        let _room = self.reserve(writer, pages.len())?;
        let mut meta = writer.meta.lock();
        for (offset, bytes) in pages {
            meta.dirty.insert(offset, DirtyPage::Raw(Arc::new(bytes)));
        }
        drop(meta);
        self.completed(writer);
        Ok(())
    }

    // ---- space ----

    /// Finds out who owns what, before the first change of ownership. Reads the whole BAT.
    pub(crate) fn ensure_space(&self, writer: &Writer) -> Result<()> {
        let mut space = writer.space.lock();
        if space.is_none() {
            *space = Some(self.survey()?);
        }
        Ok(())
    }

    /// The owners of every MiB, from the file; any overlap is an error.
    fn survey(&self) -> Result<Space> {
        let file_len = self.file_len();
        let mut space = Space::new(file_len);
        let (log_offset, log_length) = self.log_place();
        if log_length != 0 {
            space.claim(|| "log".into(), log_offset, u64::from(log_length))?;
        }
        for region in &self.regions.regions {
            let name = || format!("region {}", region.guid);
            space.claim(name, region.offset, u64::from(region.length))?;
        }
        let mut end = 0;
        self.for_each_bat_entry(|index, slot, raw| {
            let (file_offset, len) = match slot {
                BatSlot::Payload(block) if block.0 < self.geometry().block_count() => {
                    let entry = self.check_payload(block, raw)?;
                    if entry.state == PayloadState::PartiallyPresent {
                        self.bitmap_page_offset(self.geometry().chunk_of(block).0 * BITMAP_PAGES)?;
                    }
                    match entry.has_space() {
                        true => (entry.file_offset, self.geometry().block_size()),
                        false => return Ok(()),
                    }
                }
                BatSlot::Bitmap(chunk) if self.geometry().is_differencing() => {
                    let entry = self.check_bitmap(chunk, raw)?;
                    match entry.present {
                        true => (entry.file_offset, MIB),
                        false => return Ok(()),
                    }
                }
                // SPEC: 2.5.1.2 slots that mean nothing in this disk may hold anything.
                _ => return Ok(()),
            };
            end = end.max(file_offset + len);
            Ok(space.claim(|| format!("BAT entry {}", index.0), file_offset, len)?)
        })?;
        if end > file_len {
            // A last block cut at the disk's end: give it its full length before anything is put behind it.
            self.grow_file(end)?;
        }
        space.keep_partial_tail(file_len);
        Ok(space)
    }

    fn grow_file(&self, len: u64) -> Result<()> {
        self.storage
            .set_len(len)
            .context(|| format!("extend the file to {len} bytes"))?;
        self.file_len.fetch_max(len, Ordering::AcqRel);
        Ok(())
    }

    /// Takes `len` bytes of file, growing it when there is no hole. [`Image::ensure_space`] was called.
    pub(crate) fn take_space(&self, writer: &Writer, len: u64) -> Result<Allocation> {
        let mut guard = writer.space.lock();
        let space = surveyed(&mut guard)?;
        let place = match space.take(len) {
            Some(place) => place,
            None => {
                let (generous, least) = space.growth_for(len)?;
                let grown = match self.grow_file(generous) {
                    Ok(()) => generous,
                    Err(_) => {
                        self.grow_file(least)?;
                        least
                    }
                };
                space.grown(grown, self.storage.grows_with_zeros());
                space
                    .take(len)
                    .ok_or_else(|| Error::new(ErrorKind::Bug, "a grown file has no room"))?
            }
        };
        if !place.zeroed {
            // ORDER: counted before the new owner's first byte, so that a reader of the old owner notices.
            self.shared.reuse.fetch_add(1, Ordering::SeqCst);
        }
        Ok(place)
    }

    fn give_back(&self, writer: &Writer, place: &Allocation) {
        if let Some(space) = writer.space.lock().as_mut() {
            space.release(place.file_offset, place.len);
        }
    }
}

pub(crate) fn surveyed<'a>(guard: &'a mut MutexGuard<'_, Option<Space>>) -> Result<&'a mut Space> {
    guard
        .as_mut()
        .ok_or_else(|| Error::new(ErrorKind::Bug, "space is used before it was surveyed"))
}
