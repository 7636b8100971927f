//! Changes of a file's shape: metadata items, the parent locator, the virtual size (docs/durability.md "Metadata
//! items", "Grow", "Shrink"). The caller is the only user of the image meanwhile, except for [`Image::set_locator`].

use std::collections::BTreeMap;
use std::sync::Arc;

use super::change::DirtyPage;
use super::commit::pages_of;
use super::front::Front;
use super::paged::{PAGE_BYTES, PAGE_WORDS};
use super::{Image, WriteMode};
use crate::error::{Error, ErrorKind, IoContext, PathContext, Result};
use crate::format::bat::{PayloadEntry, PayloadState};
use crate::format::locator::Locator;
use crate::format::metadata::{self, Item, MetadataTable};
use crate::format::region::{self, RegionTable};
use crate::guid::Guid;
use crate::limits;
use crate::log::ring::PageBytes;
use crate::options::LogPolicy;
use crate::storage::Order;
use crate::units::{align_down, BatIndex, BatSlot, Geometry, LOG_SECTOR, MIB};

/// A new state of the metadata region in preparation.
struct Edit {
    table: MetadataTable,
    region_length: u32,
    writes: Vec<(Key, Vec<u8>)>,
    /// An item found no room: its offset is not right, and the region must move.
    full: bool,
}

/// What tells items apart.
type Key = (Guid, bool);

fn key(item: &Item) -> Key {
    (item.id, item.is_user)
}

/// Whether the metadata region may move for want of room. The image must be opened anew if it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    InPlace,
    MayMove,
}

impl Edit {
    /// Replaces or adds an item. Where it is, if it fits there.
    fn put(&mut self, item: Item, bytes: Vec<u8>) -> Result<()> {
        let length = u32::try_from(bytes.len())
            .ok()
            .filter(|&length| u64::from(length) <= MIB)
            .ok_or_else(|| Error::new(ErrorKind::Argument, "a metadata item is larger than 1 MiB"))?;
        let known = self.table.items.iter().position(|i| key(i) == key(&item));
        let offset = match known.map(|at| self.table.items.remove(at)) {
            Some(old) if length <= old.length => old.offset,
            _ => self.table.free_range(length, self.region_length).unwrap_or_else(|| {
                self.full = true;
                0
            }),
        };
        self.table.items.push(Item {
            offset: if length == 0 { 0 } else { offset },
            length,
            ..item
        });
        if length != 0 {
            self.writes.push((key(&item), bytes));
        }
        Ok(())
    }
}

/// The blocks that a growing disk gains.
struct Added {
    geometry: Geometry,
    first: u64,
    /// Where they are, one after the other, in a fixed disk.
    place: Option<u64>,
}

impl Added {
    /// What an entry of the grown BAT is at first. In a differencing disk zero: a parent may reach further than this
    /// disk did.
    fn initial_entry(&self, index: u64) -> u64 {
        let BatSlot::Payload(block) = self.geometry.slot(BatIndex(index)) else {
            return 0;
        };
        if block.0 < self.first || block.0 >= self.geometry.block_count() {
            return 0;
        }
        let (state, file_offset) = match self.place {
            Some(place) => (
                PayloadState::FullyPresent,
                place + (block.0 - self.first) * self.geometry.block_size(),
            ),
            None if self.geometry.is_differencing() => (PayloadState::Zero, 0),
            None => return 0,
        };
        PayloadEntry { state, file_offset }.encode()
    }
}

fn mode_for(of_disk: bool) -> WriteMode {
    match of_disk {
        true => WriteMode::Data,
        false => WriteMode::File,
    }
}

fn no_room() -> Error {
    Error::new(
        ErrorKind::NoSpace,
        "the metadata region has no room for an item of this size",
    )
}

impl Image {
    /// Replaces the parent locator, durably. What the disk reads as does not change, nor does its DataWriteGuid.
    pub(crate) fn set_locator(&self, locator: &Locator) -> Result<()> {
        let item = Item {
            id: metadata::PARENT_LOCATOR,
            offset: 0,
            length: 0,
            is_user: false,
            is_virtual_disk: false,
            is_required: true,
        };
        let mut edit = self.edit();
        edit.put(item, locator.encode())?;
        self.stage_edit(edit, Vec::new(), WriteMode::File, Room::InPlace)
            .at(self.name())?;
        self.metadata.lock().items.locator = Some(locator.clone());
        self.commit()
    }

    /// Makes the disk one without parent, durably. No block is partly present. The image must be opened anew afterwards
    /// ([`Image::reopen`]).
    pub(crate) fn remove_parent(&self) -> Result<()> {
        let mut parameters = self.metadata.lock().items.parameters;
        parameters.has_parent = false;
        // It means nothing in a differencing disk, and would make this one a fixed disk.
        parameters.leave_block_allocated = false;
        let mut edit = self.edit();
        edit.table
            .items
            .retain(|item| item.id != metadata::PARENT_LOCATOR || item.is_user);
        let item = edit.table.find(metadata::FILE_PARAMETERS).copied();
        let item = item.ok_or_else(|| Error::new(ErrorKind::Bug, "an open disk has no parameters"))?;
        edit.put(item, parameters.encode().to_vec())?;
        self.stage_edit(edit, Vec::new(), WriteMode::File, Room::InPlace)
            .at(self.name())?;
        self.commit()
    }

    /// Every metadata item, as the table has it.
    pub(crate) fn metadata_items(&self) -> Vec<Item> {
        self.metadata.lock().table.items.clone()
    }

    /// The content of an item of [`Image::metadata_items`].
    pub(crate) fn item_bytes(&self, item: &Item) -> Result<Vec<u8>> {
        let mut bytes = vec![0; item.length as usize];
        if item.length != 0 {
            self.read_metadata(&mut bytes, self.regions.metadata().offset + u64::from(item.offset))?;
        }
        Ok(bytes)
    }

    /// The items that belong to the virtual disk and not to the file, with their content.
    pub(crate) fn virtual_disk_items(&self) -> Result<Vec<(Item, Vec<u8>)>> {
        self.metadata_items()
            .into_iter()
            .filter(|item| item.is_virtual_disk)
            .map(|item| Ok((item, self.item_bytes(&item)?)))
            .collect()
    }

    /// Makes the virtual disk items those of another image: size, identity, sector size and what users attached, in
    /// one log entry. The size does not grow by this (see [`Image::grow`]). The image must be opened anew afterwards.
    pub(crate) fn replace_virtual_disk_items(&self, items: Vec<(Item, Vec<u8>)>) -> Result<()> {
        let mut edit = self.edit();
        edit.table
            .items
            .retain(|old| !old.is_virtual_disk || items.iter().any(|(new, _)| key(new) == key(old)));
        for (item, bytes) in items {
            edit.put(item, bytes)?;
        }
        self.stage_edit(edit, Vec::new(), WriteMode::Data, Room::MayMove)
            .at(self.name())?;
        self.commit()
    }

    /// Adds or replaces one item, durably. The image must be opened anew afterwards.
    pub(crate) fn put_item(&self, item: Item, bytes: Vec<u8>) -> Result<()> {
        let was_of_disk = self
            .metadata_items()
            .iter()
            .any(|old| key(old) == key(&item) && old.is_virtual_disk);
        let mut edit = self.edit();
        edit.put(item, bytes)?;
        self.stage_edit(
            edit,
            Vec::new(),
            mode_for(item.is_virtual_disk || was_of_disk),
            Room::MayMove,
        )
        .at(self.name())?;
        self.commit()
    }

    /// Removes one item, durably. The image must be opened anew afterwards.
    pub(crate) fn remove_item(&self, item: &Item) -> Result<()> {
        let mut edit = self.edit();
        edit.table.items.retain(|old| key(old) != key(item));
        self.stage_edit(edit, Vec::new(), mode_for(item.is_virtual_disk), Room::InPlace)
            .at(self.name())?;
        self.commit()
    }

    fn edit(&self) -> Edit {
        Edit {
            table: self.metadata.lock().table.clone(),
            region_length: self.regions.metadata().length,
            writes: Vec::new(),
            full: false,
        }
    }

    /// Stages every 4 KiB page that the edit changes, with `more`, as one log entry; or, when the region or a log entry
    /// has no room for that, a region at another place.
    fn stage_edit(&self, edit: Edit, more: Vec<(u64, PageBytes)>, mode: WriteMode, room: Room) -> Result<()> {
        if !edit.full {
            let pages = self.edited_pages(&edit, more)?;
            if pages.len() <= self.writer()?.max_pages {
                self.stage(pages, mode)?;
                self.metadata.lock().table = edit.table;
                return Ok(());
            }
        }
        match room {
            Room::InPlace => Err(no_room()),
            Room::MayMove => self.move_metadata(edit, mode),
        }
    }

    fn edited_pages(&self, edit: &Edit, more: Vec<(u64, PageBytes)>) -> Result<Vec<(u64, PageBytes)>> {
        let base = self.regions.metadata().offset;
        let mut pages: BTreeMap<u64, PageBytes> = more.into_iter().collect();
        let mut patch = |mut at: u64, mut bytes: &[u8]| -> Result<()> {
            while !bytes.is_empty() {
                let page_at = align_down(at, LOG_SECTOR);
                let within = (at - page_at) as usize;
                let len = bytes.len().min(LOG_SECTOR as usize - within);
                let page = match pages.entry(page_at) {
                    std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
                    std::collections::btree_map::Entry::Vacant(new) => new.insert(self.metadata_page(page_at)?),
                };
                page[within..within + len].copy_from_slice(&bytes[..len]);
                (at, bytes) = (at + len as u64, &bytes[len..]);
            }
            Ok(())
        };
        for (written, bytes) in &edit.writes {
            if let Some(item) = edit.table.items.iter().find(|item| key(item) == *written) {
                patch(base + u64::from(item.offset), bytes)?;
            }
        }
        for (at, page) in pages_of(base, &edit.table.encode()) {
            if self.metadata_page(at)? != page {
                patch(at, &page)?;
            }
        }
        Ok(pages.into_iter().collect())
    }

    /// Writes the edited items, packed, to a new region and stages the region tables that refer to it
    /// (docs/durability.md "Metadata items").
    fn move_metadata(&self, mut edit: Edit, mode: WriteMode) -> Result<()> {
        let writer = self.begin(mode)?;
        self.ensure_space(writer)?;
        let mut contents = Vec::new();
        let mut end = metadata::TABLE_SIZE as u64;
        for item in &mut edit.table.items {
            let written = edit.writes.iter().position(|(written, _)| *written == key(item));
            let bytes = match written {
                Some(at) => std::mem::take(&mut edit.writes[at].1),
                None => self.item_bytes(item)?,
            };
            if bytes.is_empty() {
                continue;
            }
            item.offset = u32::try_from(end).map_err(|_| no_room())?;
            end = (end + bytes.len() as u64).next_multiple_of(8);
            contents.push((u64::from(item.offset), bytes));
        }
        let length = u32::try_from(end.next_multiple_of(MIB))
            .ok()
            .filter(|&length| length <= limits::MAX_METADATA_REGION_LEN)
            .ok_or_else(no_room)?;
        let place = self.take_space(writer, u64::from(length))?;
        let writing = |at: u64| move || format!("write at file offset {at:#x}");
        if !place.zeroed {
            self.storage
                .zero_range(place.file_offset, place.len)
                .context(writing(place.file_offset))?;
        }
        contents.push((0, edit.table.encode()));
        for (offset, bytes) in contents {
            let at = place.file_offset + offset;
            self.storage.write_at(&bytes, at).context(writing(at))?;
        }
        // ORDER: the new region is durable before the log entry that makes it the metadata region: the commit sees to
        // it. The old one is not reused before the image is opened anew, with an empty log (I5).
        let pages = self.region_pages(region::METADATA, place.file_offset, length)?;
        self.stage(pages, mode)?;
        self.metadata.lock().table = edit.table;
        Ok(())
    }

    /// A page of region table or metadata as it will be once everything staged is in place.
    fn metadata_page(&self, at: u64) -> Result<PageBytes> {
        if let Some(writer) = &self.writer {
            let meta = writer.meta.lock();
            if let Some(DirtyPage::Raw(bytes)) = meta.dirty.get(&at) {
                return Ok(**bytes);
            }
            if let Some(bytes) = meta.in_flight.get(&at).or_else(|| meta.unapplied.get(&at)) {
                return Ok(**bytes);
            }
        }
        let mut page = [0; LOG_SECTOR as usize];
        self.view
            .read_at(&mut page, at)
            .context(|| format!("read metadata at file offset {at:#x}"))?;
        Ok(page)
    }

    fn read_metadata(&self, mut buf: &mut [u8], mut at: u64) -> Result<()> {
        while !buf.is_empty() {
            let page = self.metadata_page(align_down(at, LOG_SECTOR))?;
            let within = (at % LOG_SECTOR) as usize;
            let len = buf.len().min(page.len() - within);
            let (part, rest) = buf.split_at_mut(len);
            part.copy_from_slice(&page[within..within + len]);
            (buf, at) = (rest, at + len as u64);
        }
        Ok(())
    }

    /// Makes the disk `size` bytes long, the new range reading as zeros whatever a parent holds there. The image must
    /// be opened anew afterwards ([`Image::reopen`]).
    pub(crate) fn grow(&self, size: u64) -> Result<()> {
        self.grow_inner(size).at(self.name())
    }

    fn grow_inner(&self, size: u64) -> Result<()> {
        let writer = self.writer()?;
        let old = *self.geometry();
        let new = Geometry::new(
            size,
            old.block_size() as u32,
            old.sector_size() as u32,
            old.is_differencing(),
            self.regions.metadata().offset,
        )?;
        self.ensure_mode(WriteMode::Data)?;
        self.ensure_space(writer)?;
        self.zero_last_block_tail()?;
        // From here on the BAT is changed as raw pages: nothing of it may be newer in memory.
        self.clean_keeping_mode()?;
        let added = Added {
            geometry: new,
            first: old.block_count(),
            place: self.space_for_new_blocks(&old, &new)?,
        };
        let mut edit = self.edit();
        let mut pages = Vec::new();
        if new.bat_region_len() > u64::from(self.regions.bat().length) {
            pages = self.move_bat(&old, &added)?;
        } else {
            self.initialise_entries(&old, &added)?;
        }
        edit.put(self.size_item()?, size.to_le_bytes().to_vec())?;
        // ORDER: entries beyond the size mean nothing; size and, if it moved, the BAT's place change in one log entry.
        if Order::GrownInOneEntry.is_forgotten() {
            self.stage_edit(edit, Vec::new(), WriteMode::Data, Room::InPlace)?;
            self.commit()?;
            self.stage(pages, WriteMode::Data)?;
            return self.commit();
        }
        self.stage_edit(edit, pages, WriteMode::Data, Room::InPlace)?;
        self.commit()
    }

    /// Makes the disk `size` bytes long, forgetting what is behind. The image must be opened anew afterwards
    /// ([`Image::reopen`]); only then is the space of the blocks behind free.
    pub(crate) fn shrink(&self, size: u64) -> Result<()> {
        self.shrink_inner(size).at(self.name())
    }

    fn shrink_inner(&self, size: u64) -> Result<()> {
        let old = *self.geometry();
        let new = Geometry::new(
            size,
            old.block_size() as u32,
            old.sector_size() as u32,
            old.is_differencing(),
            self.regions.metadata().offset,
        )?;
        self.ensure_mode(WriteMode::Data)?;
        // From here on the BAT is changed as raw pages: nothing of it may be newer in memory.
        self.clean_keeping_mode()?;
        if Order::ShrunkBeforeCleared.is_forgotten() {
            self.clear_behind(&old, &new)?;
        }
        let mut edit = self.edit();
        edit.put(self.size_item()?, size.to_le_bytes().to_vec())?;
        self.stage_edit(edit, Vec::new(), WriteMode::Data, Room::InPlace)?;
        // ORDER: the size is durable before an entry behind it is cleared: until then those blocks are the disk's.
        self.commit()?;
        // The file is no longer what this image takes it for.
        self.clear_behind(&old, &new).map_err(|error| self.poison(error))
    }

    /// Clears the entries that mean nothing at the new size.
    fn clear_behind(&self, old: &Geometry, new: &Geometry) -> Result<()> {
        let first = new.payload_index(new.block_of(new.virtual_size() - 1)).0 + 1;
        for page in first / PAGE_WORDS..old.bat_entries().div_ceil(PAGE_WORDS) {
            let at = self.regions.bat().offset + page * PAGE_BYTES as u64;
            let before = self.metadata_page(at)?;
            let mut bytes = before;
            for (i, raw) in bytes.chunks_exact_mut(8).enumerate() {
                let index = page * PAGE_WORDS + i as u64;
                if index >= first && index < old.bat_entries() && Self::is_new_entry(new, index) {
                    raw.fill(0);
                }
            }
            if bytes != before {
                self.stage(vec![(at, bytes)], WriteMode::Data)?;
            }
        }
        self.commit()
    }

    fn size_item(&self) -> Result<Item> {
        let item = self.metadata.lock().table.find(metadata::VIRTUAL_DISK_SIZE).copied();
        item.ok_or_else(|| Error::new(ErrorKind::Bug, "an open disk has no size item"))
    }

    /// The bytes of the last block behind the end of the disk may hold anything; they are about to become visible.
    fn zero_last_block_tail(&self) -> Result<()> {
        let geometry = self.geometry();
        let block = geometry.block_of(geometry.virtual_size() - 1);
        let len = geometry.block_len(block);
        let tail = geometry.block_size() - len;
        if tail == 0 {
            return Ok(());
        }
        let entry = self.payload(block)?;
        match entry.state {
            PayloadState::FullyPresent => {
                let at = entry.file_offset + len;
                self.storage
                    .zero_range(at, tail)
                    .context(|| format!("write at file offset {at:#x}"))?;
                self.commit_after_payload()
            }
            PayloadState::PartiallyPresent => {
                // Bits beyond the disk mean nothing until the size changes.
                self.write_beyond_end(block, len, tail)?;
                self.commit()
            }
            PayloadState::NotPresent if geometry.is_differencing() => {
                self.write_beyond_end(block, len, tail)?;
                self.commit()
            }
            _ => Ok(()),
        }
    }

    /// Blocks of a fixed disk have their place from the start, zeroed.
    fn space_for_new_blocks(&self, old: &Geometry, new: &Geometry) -> Result<Option<u64>> {
        let count = new.block_count() - old.block_count();
        if !self.is_fixed() || count == 0 {
            return Ok(None);
        }
        let writer = self.writer()?;
        self.ensure_space(writer)?;
        let place = self.take_space(writer, count * new.block_size())?;
        if !place.zeroed {
            self.storage
                .zero_range(place.file_offset, place.len)
                .context(|| format!("write at file offset {:#x}", place.file_offset))?;
        }
        Ok(Some(place.file_offset))
    }

    /// Slots that mean nothing at the old size may hold anything. The one of the old last chunk's bitmap is kept.
    fn is_new_entry(old: &Geometry, index: u64) -> bool {
        match old.slot(BatIndex(index)) {
            BatSlot::Payload(block) => block.0 >= old.block_count(),
            BatSlot::Bitmap(chunk) => !old.is_differencing() || chunk.0 >= old.chunk_count(),
        }
    }

    /// The region is large enough: the new entries are logged in as many log entries as it takes.
    fn initialise_entries(&self, old: &Geometry, added: &Added) -> Result<()> {
        let new = &added.geometry;
        let first = old.payload_index(old.block_of(old.virtual_size() - 1)).0 + 1;
        let bat_offset = self.regions.bat().offset;
        for page in first / PAGE_WORDS..new.bat_entries().div_ceil(PAGE_WORDS) {
            let at = bat_offset + page * PAGE_BYTES as u64;
            let before = self.metadata_page(at)?;
            let mut bytes = before;
            for (i, raw) in bytes.chunks_exact_mut(8).enumerate() {
                let index = page * PAGE_WORDS + i as u64;
                if index < new.bat_entries() && Self::is_new_entry(old, index) {
                    raw.copy_from_slice(&added.initial_entry(index).to_le_bytes());
                }
            }
            if bytes != before {
                self.stage(vec![(at, bytes)], WriteMode::Data)?;
            }
        }
        self.commit()
    }

    /// Writes the grown BAT to a new place and returns the region table pages that refer to it.
    fn move_bat(&self, old: &Geometry, added: &Added) -> Result<Vec<(u64, PageBytes)>> {
        let new = &added.geometry;
        let writer = self.writer()?;
        self.ensure_space(writer)?;
        let place = self.take_space(writer, new.bat_region_len())?;
        if !place.zeroed {
            self.storage
                .zero_range(place.file_offset, place.len)
                .context(|| format!("write at file offset {:#x}", place.file_offset))?;
        }
        let mut first = 0;
        while first < new.bat_entries() {
            let count = (MIB / 8).min(new.bat_entries() - first);
            let mut bytes = vec![0; count as usize * 8];
            let known = (count * 8).min(u64::from(self.regions.bat().length).saturating_sub(first * 8)) as usize;
            if known > 0 {
                let at = self.regions.bat().offset + first * 8;
                self.view
                    .read_at(&mut bytes[..known], at)
                    .context(|| format!("read the BAT at file offset {at:#x}"))?;
            }
            for (i, raw) in bytes.chunks_exact_mut(8).enumerate() {
                let index = first + i as u64;
                if index >= old.bat_entries() || Self::is_new_entry(old, index) {
                    raw.copy_from_slice(&added.initial_entry(index).to_le_bytes());
                }
            }
            if bytes.iter().any(|&b| b != 0) {
                let at = place.file_offset + first * 8;
                self.storage
                    .write_at(&bytes, at)
                    .context(|| format!("write the BAT at file offset {at:#x}"))?;
            }
            first += count;
        }
        // ORDER: the new BAT is durable before the log entry that makes it the BAT: the commit sees to it.
        self.region_pages(region::BAT, place.file_offset, place.len as u32)
    }

    /// The pages of both region tables that change when a region gets another place.
    fn region_pages(&self, guid: Guid, offset: u64, length: u32) -> Result<Vec<(u64, PageBytes)>> {
        let regions = self
            .regions
            .regions
            .iter()
            .map(|r| match r.guid == guid {
                true => region::Region { offset, length, ..*r },
                false => *r,
            })
            .collect();
        let bytes = RegionTable::new(regions).encode();
        let mut pages = Vec::new();
        for copy in region::OFFSETS {
            for (at, page) in pages_of(copy, &bytes) {
                if self.metadata_page(at)? != page {
                    pages.push((at, page));
                }
            }
        }
        Ok(pages)
    }

    /// Closes the file cleanly and opens it as it now is. Announcements already made in the headers stay made.
    pub(crate) fn reopen(self: &Arc<Image>) -> Result<Arc<Image>> {
        let mode = self.mode();
        self.clean()?;
        let front = Front::read(self.storage.clone(), LogPolicy::Auto, true).at(self.name())?;
        let image = Image::new(front, self.name(), self.shared(), true);
        image.set_mode(mode);
        Ok(Arc::new(image))
    }

    pub(crate) fn clean_keeping_mode(&self) -> Result<()> {
        let mode = self.mode();
        self.clean()?;
        self.set_mode(mode);
        Ok(())
    }
}
