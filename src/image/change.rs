//! Changes of metadata in memory (docs/durability.md "Commit").
//!
//! A change holds the pages it needs ([`Held`]), reserves room in the next log entry, and then makes all of itself
//! visible and due for that entry under one hold of the metadata lock ([`Change`]).

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use parking_lot::MutexGuard;

use super::paged::{Page, PagedTable, PAGE_BYTES, PAGE_WORDS};
use super::write::Writer;
use super::{Image, WriteMode, BITMAP_PAGES};
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::{BitmapEntry, PayloadEntry};
use crate::format::bitmap;
use crate::log::ring::PageBytes;
use crate::units::{BlockIndex, ChunkIndex};

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

/// Room in the next log entry. Given back when dropped.
pub(super) struct Reservation<'a> {
    writer: &'a Writer,
    pages: usize,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.writer.meta.lock().reserved -= self.pages;
        self.writer.unreserved.notify_all();
    }
}

/// A page of one of the two tables, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum PageId {
    Bat(u64),
    Bits(u64),
}

/// Pages that a change needs in memory.
#[derive(Debug, Default)]
pub(super) struct Held(BTreeMap<PageId, Arc<Page>>);

impl Held {
    /// The page with the BAT entry at `index`.
    pub(super) fn bat(mut self, image: &Image, index: u64) -> Result<Self> {
        let page = index / PAGE_WORDS;
        self.0.insert(PageId::Bat(page), image.bat_page(page)?);
        Ok(self)
    }

    /// The page with the BAT entry of `block`.
    pub(super) fn block(self, image: &Image, block: BlockIndex) -> Result<Self> {
        self.bat(image, image.geometry().payload_index(block).0)
    }

    /// The pages with these bits of the chunk's sector bitmap, and the one that says where it is.
    pub(super) fn bits(self, image: &Image, chunk: ChunkIndex, first: u64, count: u64) -> Result<Self> {
        let mut held = self.bat(image, image.geometry().bitmap_index(chunk).0)?;
        let per_page = PAGE_BYTES as u64 * 8;
        for n in first / per_page..=(first + count - 1) / per_page {
            let page = chunk.0 * BITMAP_PAGES + n;
            held.0.insert(PageId::Bits(page), image.bitmap_page(page)?);
        }
        Ok(held)
    }

    /// Number of pages.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// A change being made: nobody else changes metadata, and no page goes out of memory.
pub(super) struct Change<'a> {
    image: &'a Image,
    meta: MutexGuard<'a, Meta>,
    held: Held,
}

impl Change<'_> {
    fn page(&mut self, id: PageId, file_offset: u64) -> Option<&Arc<Page>> {
        let page = self.held.0.get(&id)?;
        self.meta.dirty.insert(file_offset, DirtyPage::Table(page.clone()));
        Some(page)
    }

    fn set_bat_word(&mut self, index: u64, word: u64) {
        let page = index / PAGE_WORDS;
        let offset = self.image.bat_offset() + page * PAGE_BYTES as u64;
        if let Some(page) = self.page(PageId::Bat(page), offset) {
            page.word(index).store(word, Ordering::Release);
        }
    }

    /// Stores a payload entry. Bits that it makes meaningful are stored before.
    pub(super) fn set_payload(&mut self, block: BlockIndex, entry: PayloadEntry) {
        self.set_bat_word(self.image.geometry().payload_index(block).0, entry.encode());
    }

    /// Stores the entry of a sector bitmap block, unless the chunk has one; whether it was stored.
    pub(super) fn add_bitmap_block(&mut self, chunk: ChunkIndex, entry: BitmapEntry) -> bool {
        let index = self.image.geometry().bitmap_index(chunk).0;
        let held = self.held.0.get(&PageId::Bat(index / PAGE_WORDS));
        let absent = held.is_some_and(|page| page.word(index).load(Ordering::Relaxed) & 7 == 0);
        if absent {
            self.set_bat_word(index, entry.encode());
        }
        absent
    }

    /// Stores the entry of a sector bitmap block that moved, or went.
    pub(super) fn set_bitmap_block(&mut self, chunk: ChunkIndex, entry: BitmapEntry) {
        let index = self.image.geometry().bitmap_index(chunk).0;
        self.set_bat_word(index, entry.encode());
    }

    /// Changes the words of a range of bits in place: `change(word, mask)`.
    fn each_word(&mut self, bits: Bits, change: impl Fn(&std::sync::atomic::AtomicU64, u64)) -> Result<()> {
        let Bits { chunk, first, count } = bits;
        let mut failed = Ok(());
        bitmap::for_each_word(first, count, |word, mask| {
            let index = chunk.0 * BITMAP_PAGES * PAGE_WORDS + word;
            let page = index / PAGE_WORDS;
            match self.image.resident_bitmap_offset(page) {
                Some(offset) => {
                    if let Some(page) = self.page(PageId::Bits(page), offset) {
                        change(page.word(index), mask);
                    }
                }
                None => failed = Err(Error::new(ErrorKind::Bug, "a held bitmap page has no place")),
            }
        });
        failed
    }

    /// Sets bits.
    pub(super) fn set_bits(&mut self, bits: Bits) -> Result<()> {
        self.each_word(bits, |word, mask| {
            word.fetch_or(mask, Ordering::Release);
        })
    }

    /// Clears bits.
    pub(super) fn clear_bits(&mut self, bits: Bits) -> Result<()> {
        self.each_word(bits, |word, mask| {
            word.fetch_and(!mask, Ordering::Release);
        })
    }

    /// Notes that space is taken from its owner by this change; it is free when the change is durable.
    pub(super) fn free(&mut self, file_offset: u64, len: u64) {
        self.meta.freed.push((file_offset, len));
    }
}

/// A range of bits of a chunk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bits {
    pub(super) chunk: ChunkIndex,
    pub(super) first: u64,
    pub(super) count: u64,
}

impl Image {
    /// Begins a change of the pages held.
    pub(super) fn change<'a>(&'a self, writer: &'a Writer, mut held: Held) -> Result<Change<'a>> {
        loop {
            let meta = writer.meta.lock();
            let table = |id: &PageId| -> (&PagedTable, u64) {
                match *id {
                    PageId::Bat(page) => (&self.bat, page),
                    PageId::Bits(page) => (&self.bitmaps, page),
                }
            };
            // A page that went out of memory since it was held may have come back, changed, and gone again: only what
            // is in the table now, and stays there under this lock, may be changed.
            let gone: Vec<PageId> = held
                .0
                .iter()
                .filter(|(id, page)| {
                    let (table, number) = table(id);
                    !table.resident(number).is_some_and(|now| Arc::ptr_eq(&now, page))
                })
                .map(|(id, _)| *id)
                .collect();
            if gone.is_empty() {
                return Ok(Change {
                    image: self,
                    meta,
                    held,
                });
            }
            drop(meta);
            for id in gone {
                let page = match id {
                    PageId::Bat(page) => self.bat_page(page)?,
                    PageId::Bits(page) => self.bitmap_page(page)?,
                };
                held.0.insert(id, page);
            }
        }
    }

    /// A range within one block as bits of its chunk.
    pub(super) fn bits_of(&self, offset: u64, len: u64) -> Bits {
        let geometry = self.geometry();
        Bits {
            chunk: geometry.chunk_of(geometry.block_of(offset)),
            first: geometry.bit_of(offset),
            count: len / geometry.sector_size(),
        }
    }

    /// Whether the block may become fully present, as far as resident pages tell (MS-VHDX 2.5.1.1).
    pub(super) fn all_bits_set(&self, block: BlockIndex) -> bool {
        let geometry = self.geometry();
        let Bits { chunk, first, count } = self.bits_of(geometry.block_start(block), geometry.block_len(block));
        let peek = |word: u64| self.bitmaps.peek(chunk.0 * BITMAP_PAGES * PAGE_WORDS + word).ok_or(());
        // Disks are mostly written upwards: the last bits decide soonest.
        let end = first + count;
        let tail = ((end - 1) / 64 * 64).max(first);
        bitmap::run_length(peek, tail, end) == Ok((true, end - tail))
            && bitmap::run_length(peek, first, end) == Ok((true, count))
    }

    /// Waits until `pages` more pages fit into the next log entry, committing if that makes room.
    pub(super) fn reserve<'a>(&self, writer: &'a Writer, pages: usize) -> Result<Reservation<'a>> {
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
}
