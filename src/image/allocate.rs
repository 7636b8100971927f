//! Space of the file for blocks: the survey of who owns what, taking, giving back.

use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use super::space::{Allocation, Space};
use super::write::Writer;
use super::{Image, BITMAP_PAGES};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::format::bat::PayloadState;
use crate::units::{BatSlot, MIB};

impl Image {
    /// Finds out who owns what, before the first change of ownership. Reads the whole BAT.
    pub(crate) fn ensure_space(&self, writer: &Writer) -> Result<()> {
        let mut space = writer.space.lock();
        if space.is_none() {
            *space = Some(self.survey()?);
        }
        Ok(())
    }

    /// Finds out who owns what, so that [`Image::clean`] cuts the file behind its last structure.
    pub(crate) fn know_space(&self) -> Result<()> {
        self.ensure_space(self.writer()?)
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

    /// Gives the file this length, if it is shorter.
    pub(crate) fn extend(&self, len: u64) -> Result<()> {
        self.grow_file(len)
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
            self.shared.reuse.announce();
        }
        Ok(place)
    }

    /// Gives the places of a range back to the file system, keeping them; what they held is not wanted any more.
    pub(crate) fn hollow(&self, mut offset: u64, len: u64) -> Result<()> {
        let (geometry, end) = (self.geometry(), (offset + len).min(self.virtual_size()));
        // ORDER: counted before the content goes, so that a reader of it notices.
        self.shared.reuse.announce();
        while offset < end {
            let block = geometry.block_of(offset);
            let start = geometry.block_start(block);
            let part = (start + geometry.block_len(block)).min(end) - offset;
            let entry = self.payload(block)?;
            if entry.has_space() {
                let _ = self.storage.release_range(entry.file_offset + offset - start, part);
            }
            offset += part;
        }
        Ok(())
    }

    /// Gives back space that was never published, with what was written to it.
    pub(super) fn give_back(&self, writer: &Writer, place: &Allocation) {
        let _ = self.storage.release_range(place.file_offset, place.len);
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
