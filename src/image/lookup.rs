//! What a range of the disk is in this file (MS-VHDX 2.5).

use std::sync::Arc;

use super::paged::{Page, PAGE_BYTES, PAGE_WORDS};
use super::{Image, BITMAP_PAGES};
use crate::error::{Defect, IoContext, Result, Rule};
use crate::format::bat::{self, BitmapEntry, PayloadEntry, PayloadState};
use crate::format::bitmap;
use crate::units::{BatIndex, BatSlot, BlockIndex, ChunkIndex, MIB, SECTORS_PER_CHUNK};

/// Words of sector bitmap per chunk.
const BITMAP_WORDS: u64 = SECTORS_PER_CHUNK / 64;

/// Where a range gets its content from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// Bytes in this file, in sequence from here.
    Data {
        /// Offset in the file.
        file_offset: u64,
    },
    /// Zeros, in this state.
    Zero(PayloadState),
    /// The parent. In a disk without parent: nothing, which reads as zeros.
    Transparent,
}

/// A range with one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lookup {
    /// Bytes, from the offset asked for.
    pub(crate) len: u64,
    pub(crate) source: Source,
}

impl Image {
    /// The source of the bytes at `offset` and of as many after it as share it, at most `max` and never beyond the
    /// block. The range is inside the disk and not empty. No lock and no I/O once the pages needed are resident.
    #[inline(always)]
    pub(crate) fn lookup(&self, offset: u64, max: u64) -> Result<Lookup> {
        let geometry = self.geometry();
        let block = geometry.block_of(offset);
        let in_block = geometry.in_block(offset);
        let len = max.min(geometry.block_size() - in_block);
        let entry = self.payload(block)?;
        let source = match entry.state {
            PayloadState::FullyPresent => Source::Data {
                file_offset: entry.file_offset + in_block,
            },
            PayloadState::PartiallyPresent => return self.lookup_bits(entry, block, offset, len),
            PayloadState::NotPresent => Source::Transparent,
            state => Source::Zero(state),
        };
        Ok(Lookup { len, source })
    }

    /// How many bytes from the start of a block on, at most `max`, are in blocks that are not present. Where the BAT is a
    /// hole of the file, that takes one question; elsewhere its pages come in.
    pub(crate) fn absent(&self, offset: u64, max: u64) -> Result<u64> {
        let geometry = self.geometry();
        let bat = self.regions.bat().offset;
        let (mut at, end) = (offset, offset + max);
        while at < end {
            let block = geometry.block_of(at);
            let index = geometry.payload_index(block);
            if index.0 % PAGE_WORDS == 0 {
                // Pages in memory may be newer than the file; the others are what it says.
                let (first, last) = (index.0 / PAGE_WORDS, geometry.bat_entries() / PAGE_WORDS);
                let there = self.bat.next_resident(first, last) * PAGE_BYTES as u64;
                let from = first * PAGE_BYTES as u64;
                let data = match from < there {
                    true => self.view.next_data(bat + from, bat + there),
                    false => Ok(Some(bat + from..bat + from)),
                };
                let hole = data.context(|| "look for data in the BAT".into())?;
                let known = hole.map_or(there, |data| data.start.saturating_sub(bat)) / 8;
                if known > index.0 {
                    let next = match geometry.slot(BatIndex(known)) {
                        BatSlot::Payload(block) => block,
                        BatSlot::Bitmap(chunk) => BlockIndex((chunk.0 + 1) * geometry.chunk_ratio()),
                    };
                    at = geometry.block_start(next).min(end);
                    continue;
                }
            }
            if self.payload(block)?.state != PayloadState::NotPresent {
                break;
            }
            at = (geometry.block_start(block) + geometry.block_size()).min(end);
        }
        Ok(at - offset)
    }

    fn lookup_bits(&self, entry: PayloadEntry, block: BlockIndex, offset: u64, max: u64) -> Result<Lookup> {
        let geometry = self.geometry();
        let chunk = geometry.chunk_of(block);
        let (first, last) = (geometry.bit_of(offset), geometry.bit_of(offset + max - 1));
        let (present, bits) = bitmap::run_length(|word| self.bitmap_word(chunk, word), first, last + 1)?;
        let sector = geometry.sector_size();
        let len = max.min(bits * sector - offset % sector);
        let source = if present {
            Source::Data {
                file_offset: entry.file_offset + (offset - geometry.block_start(block)),
            }
        } else {
            Source::Transparent
        };
        Ok(Lookup { len, source })
    }

    /// The entry of `block`, valid for this disk and this file.
    #[inline(always)]
    pub(crate) fn payload(&self, block: BlockIndex) -> Result<PayloadEntry> {
        let index = self.geometry().payload_index(block);
        match self.bat.peek_checked(index.0) {
            Some((raw, true)) => Ok(PayloadEntry::decode_valid(raw)),
            _ => self.first_payload(block, index),
        }
    }

    /// The same for an entry that was not looked at since its page came in.
    #[cold]
    fn first_payload(&self, block: BlockIndex, index: BatIndex) -> Result<PayloadEntry> {
        let raw = self.bat_word(index)?;
        let entry = self.check_payload(block, raw)?;
        self.bat.set_checked(index.0, raw);
        Ok(entry)
    }

    /// Decodes and checks a payload entry.
    pub(crate) fn check_payload(&self, block: BlockIndex, raw: u64) -> Result<PayloadEntry> {
        let index = self.geometry().payload_index(block);
        let bat_offset = self.regions.bat().offset;
        let entry = PayloadEntry::decode(raw, self.geometry().is_differencing())
            .map_err(|(rule, wanted)| bat::defect(rule, wanted, index, bat_offset, raw))?;
        if entry.has_space() {
            // The last block of some files is cut where the disk ends.
            let least = match block.0 + 1 == self.geometry().block_count() {
                true => self.geometry().block_len(block),
                false => self.geometry().block_size(),
            };
            self.check_place(index, raw, entry.file_offset, least)?;
        }
        Ok(entry)
    }

    /// The sector bitmap block of `chunk`.
    pub(crate) fn bitmap_block(&self, chunk: ChunkIndex) -> Result<BitmapEntry> {
        let index = self.geometry().bitmap_index(chunk);
        let raw = self.bat_word(index)?;
        self.check_bitmap(chunk, raw)
    }

    /// Decodes and checks a sector bitmap entry.
    pub(crate) fn check_bitmap(&self, chunk: ChunkIndex, raw: u64) -> Result<BitmapEntry> {
        let index = self.geometry().bitmap_index(chunk);
        let bat_offset = self.regions.bat().offset;
        let entry =
            BitmapEntry::decode(raw).map_err(|(rule, wanted)| bat::defect(rule, wanted, index, bat_offset, raw))?;
        if entry.present {
            self.check_place(index, raw, entry.file_offset, MIB)?;
        }
        Ok(entry)
    }

    /// That a block lies inside the file and on none of its structures. Overlap with other blocks is looked for before
    /// the first allocation, and by check.
    fn check_place(&self, index: BatIndex, raw: u64, file_offset: u64, len: u64) -> Result<()> {
        let bat_offset = self.regions.bat().offset;
        let end = file_offset.saturating_add(len);
        if end > self.file_len() {
            let wanted = "a block inside the file";
            return Err(bat::defect(Rule::BeyondEof, wanted, index, bat_offset, raw).into());
        }
        let meets = |start: u64, length: u32| file_offset < start + u64::from(length) && start < end;
        let (log_offset, log_length) = self.log_place();
        if file_offset < MIB
            || meets(log_offset, log_length)
            || self.regions.regions.iter().any(|r| meets(r.offset, r.length))
        {
            let wanted = "a place clear of headers, log and regions";
            return Err(bat::defect(Rule::Overlap, wanted, index, bat_offset, raw).into());
        }
        Ok(())
    }

    /// A word of the BAT.
    #[inline]
    pub(crate) fn bat_word(&self, index: BatIndex) -> Result<u64> {
        if let Some(word) = self.bat.peek(index.0) {
            return Ok(word);
        }
        let page = self.bat_page(index.0 / PAGE_WORDS)?;
        Ok(page.word(index.0).load(std::sync::atomic::Ordering::Acquire))
    }

    /// A page of the BAT.
    pub(crate) fn bat_page(&self, page: u64) -> Result<Arc<Page>> {
        let found = self.bat.page(page, |into| {
            self.read_page(into, self.regions.bat().offset + page * PAGE_BYTES as u64)
        });
        self.relieve();
        found
    }

    /// Word `word` (of 64 sectors) of the sector bitmap of `chunk`.
    #[inline]
    pub(crate) fn bitmap_word(&self, chunk: ChunkIndex, word: u64) -> Result<u64> {
        let index = chunk.0 * BITMAP_WORDS + word;
        if let Some(word) = self.bitmaps.peek(index) {
            return Ok(word);
        }
        let page = self.bitmap_page(index / PAGE_WORDS)?;
        Ok(page.word(index).load(std::sync::atomic::Ordering::Acquire))
    }

    /// A page of sector bitmap, counted over all chunks.
    pub(crate) fn bitmap_page(&self, page: u64) -> Result<Arc<Page>> {
        let found = self
            .bitmaps
            .page(page, |into| self.read_page(into, self.bitmap_page_offset(page)?));
        self.relieve();
        found
    }

    /// Where a page of sector bitmap is in the file.
    pub(crate) fn bitmap_page_offset(&self, page: u64) -> Result<u64> {
        let chunk = ChunkIndex(page / BITMAP_PAGES);
        let entry = self.bitmap_block(chunk)?;
        if !entry.present {
            let index = self.geometry().bitmap_index(chunk);
            return Err(Defect::new(
                Rule::MissingSb,
                format!("BAT entry {}", index.0),
                self.regions.bat().offset + index.0 * 8,
                "no sector bitmap block",
                "one, because a block of the chunk is partially present",
            )
            .into());
        }
        Ok(entry.file_offset + page % BITMAP_PAGES * PAGE_BYTES as u64)
    }

    fn read_page(&self, page: &Page, file_offset: u64) -> Result<()> {
        let mut bytes = [0; PAGE_BYTES];
        self.view
            .read_at(&mut bytes, file_offset)
            .context(|| format!("read metadata at file offset {file_offset:#x}"))?;
        page.fill(&bytes);
        Ok(())
    }

    /// Lets go of pages when the chain holds more than it may.
    fn relieve(&self) {
        for (table, is_bat) in [(&self.bat, true), (&self.bitmaps, false)] {
            if !table.wants_eviction() {
                continue;
            }
            match &self.writer {
                None => table.evict(|_| false),
                Some(writer) => writer.evict(table, |page| match is_bat {
                    true => Some(self.regions.bat().offset + page * PAGE_BYTES as u64),
                    false => self.resident_bitmap_offset(page),
                }),
            }
        }
    }

    /// [`Image::bitmap_page_offset`] without I/O, for use under the lock that I/O must not be done under; `None` when
    /// that takes I/O.
    pub(super) fn resident_bitmap_offset(&self, page: u64) -> Option<u64> {
        let index = self.geometry().bitmap_index(ChunkIndex(page / BITMAP_PAGES));
        let entry = BitmapEntry::decode(self.bat.peek(index.0)?).ok()?;
        Some(entry.file_offset + page % BITMAP_PAGES * PAGE_BYTES as u64)
    }

    /// The log's offset and length in the file.
    pub(crate) fn log_place(&self) -> (u64, u32) {
        use std::sync::atomic::Ordering::Relaxed;
        (self.log_place.0.load(Relaxed), self.log_place.1.load(Relaxed) as u32)
    }

    /// Calls `visit` with every nonzero entry of the BAT, read from the file in large pieces, holes skipped.
    pub(crate) fn for_each_bat_entry(&self, mut visit: impl FnMut(BatIndex, BatSlot, u64) -> Result<()>) -> Result<()> {
        let (start, entries) = (self.regions.bat().offset, self.geometry().bat_entries());
        let end = start + entries * 8;
        let mut buf = vec![0; (end - start).min(MIB) as usize];
        let mut at = start;
        while at < end {
            let Some(data) = self
                .view
                .next_data(at, end)
                .context(|| "look for data in the BAT".into())?
            else {
                break;
            };
            // Whole entries, and progress whatever the storage answers.
            at = (data.start.max(at) - start) / 8 * 8 + start;
            let stop = data.end.clamp(at + 8, end);
            while at < stop {
                let len = (stop - at).next_multiple_of(8).min(MIB).min(end - at) as usize;
                self.view
                    .read_at(&mut buf[..len], at)
                    .context(|| format!("read the BAT at file offset {at:#x}"))?;
                for (i, raw) in buf[..len].chunks_exact(8).enumerate() {
                    let raw = raw.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
                    if raw != 0 {
                        let index = BatIndex((at - start) / 8 + i as u64);
                        visit(index, self.geometry().slot(index), raw)?;
                    }
                }
                at += len as u64;
            }
        }
        Ok(())
    }
}
