//! Metadata table and items (MS-VHDX 2.6).

use super::locator::Locator;
use super::wire;
use crate::error::{Defect, Error, Rule};
use crate::guid::Guid;
use crate::limits;
use crate::units::{Geometry, MIB};

/// Block size and type.
pub const FILE_PARAMETERS: Guid = Guid::from_u128(0xCAA16737_FA36_4D43_B3B6_33F0AA44E76B);
/// Bytes of the disk.
pub const VIRTUAL_DISK_SIZE: Guid = Guid::from_u128(0x2FA54224_CD1B_4876_B211_5DBED83BF4B8);
/// SCSI VPD page 0x83.
pub const VIRTUAL_DISK_ID: Guid = Guid::from_u128(0xBECA12AB_B2E6_4523_93EF_C309E000C746);
/// Logical sector size.
pub const LOGICAL_SECTOR_SIZE: Guid = Guid::from_u128(0x8141BF1D_A96F_4709_BA47_F233A8FAAB5F);
/// Physical sector size.
pub const PHYSICAL_SECTOR_SIZE: Guid = Guid::from_u128(0xCDA348C7_445D_4471_9CC9_E9885251C556);
/// Parent locator.
pub const PARENT_LOCATOR: Guid = Guid::from_u128(0xA8D35F2D_B30B_454D_ABF7_D3D84834AB0C);
/// Marks a file whose creation was not finished (undocumented; written by Windows).
pub const INCOMPLETE: Guid = Guid::from_u128(0x71CC85F0_1B69_4E28_9558_C3BF83AE75D3);
/// CHS geometry (undocumented), preserved.
pub const CHS: Guid = Guid::from_u128(0xDA02D7BC_3D3A_423C_AC88_2A36AB21479B);
/// NVDIMM labels (undocumented), preserved.
pub const PMEM: Guid = Guid::from_u128(0x10E1AE8A_4B7E_4169_A40F_CD70DE928393);

/// Bytes of the table, at the start of the region; items follow.
pub const TABLE_SIZE: usize = 64 << 10;

const SIGNATURE: &[u8; 8] = b"metadata";
const MAX_ENTRIES: u16 = 2047;
const HEADER: usize = 32;
const ENTRY: usize = 32;
const MAX_ITEM: u32 = 1 << 20;

/// Where an item is and what it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// Kind.
    pub id: Guid,
    /// From the start of the region, in bytes; 0 for an empty item.
    pub offset: u32,
    /// Bytes.
    pub length: u32,
    /// Defined by a user, not by the system.
    pub is_user: bool,
    /// Belongs to the virtual disk, not to the file: children inherit it.
    pub is_virtual_disk: bool,
    /// Whoever does not know it must not open the file.
    pub is_required: bool,
}

/// The table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataTable {
    /// Items in table order.
    pub items: Vec<Item>,
}

/// Block size and type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileParameters {
    /// Bytes of a payload block.
    pub block_size: u32,
    /// Fixed: blocks keep their place.
    pub leave_block_allocated: bool,
    /// Differencing.
    pub has_parent: bool,
}

/// The known items.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskItems {
    /// Block size and type.
    pub parameters: FileParameters,
    /// Bytes.
    pub virtual_size: u64,
    /// 512 or 4096.
    pub logical_sector_size: u32,
    /// 512 or 4096.
    pub physical_sector_size: u32,
    /// SCSI VPD page 0x83.
    pub virtual_disk_id: Guid,
    /// Who the parent is.
    pub locator: Option<Locator>,
}

impl Item {
    fn end(&self) -> u64 {
        u64::from(self.offset).saturating_add(u64::from(self.length))
    }

    fn overlaps(&self, offset: u32, length: u32) -> bool {
        let (offset, length) = (u64::from(offset), u64::from(length));
        self.length != 0 && wire::overlap(u64::from(self.offset), u64::from(self.length), offset, length)
    }
}

impl MetadataTable {
    /// Parses the first 64 KiB of a region of `region_len` bytes at `region_offset`.
    pub fn parse(bytes: &[u8], region_offset: u64, region_len: u32) -> Result<Self, Defect> {
        let table =
            |rule, found: String, wanted| Err(Defect::new(rule, "metadata table", region_offset, found, wanted));
        if !bytes.starts_with(SIGNATURE) {
            let found = format!("{:?}", String::from_utf8_lossy(bytes.get(..8).unwrap_or_default()));
            return table(Rule::MetadataSignature, found, "\"metadata\"");
        }
        let count = wire::u16(bytes, 10);
        if count > MAX_ENTRIES {
            return table(Rule::MetadataCount, format!("{count} entries"), "at most 2047");
        }
        let mut items: Vec<Item> = Vec::new();
        let entries = bytes.get(HEADER..).unwrap_or_default().chunks_exact(ENTRY);
        let places = (region_offset.saturating_add(32)..).step_by(ENTRY);
        // Behind the last counted entry lie stale copies.
        for ((i, entry), at) in entries.enumerate().take(usize::from(count)).zip(places) {
            let defect = |rule, found: String, wanted: &'static str| {
                Err(Defect::new(rule, format!("metadata entry {i}"), at, found, wanted))
            };
            let flags = wire::u32(entry, 24);
            let item = Item {
                id: wire::guid(entry, 0),
                offset: wire::u32(entry, 16),
                length: wire::u32(entry, 20),
                is_user: flags & 1 != 0,
                is_virtual_disk: flags & 2 != 0,
                is_required: flags & 4 != 0,
            };
            if flags >= 8 || wire::u32(entry, 28) != 0 || (item.is_user && item.is_required) {
                return defect(
                    Rule::MetadataFlags,
                    format!("flags {flags:#x}"),
                    "known flags that go together",
                );
            }
            let inside = u64::from(item.offset) >= 65536 && item.end() <= u64::from(region_len);
            let placed = if item.length == 0 { item.offset == 0 } else { inside };
            if item.length > MAX_ITEM || !placed {
                let found = format!("{} bytes at {:#x}", item.length, item.offset);
                return defect(
                    Rule::MetadataRange,
                    found,
                    "at most 1 MiB, behind the table and inside the region; offset 0 for an empty item",
                );
            }
            if item.id.is_zero() || items.iter().any(|i| (i.id, i.is_user) == (item.id, item.is_user)) {
                return defect(
                    Rule::MetadataDuplicate,
                    item.id.to_string(),
                    "each item once, none of them zero",
                );
            }
            if item.length != 0 && items.iter().any(|i| i.overlaps(item.offset, item.length)) {
                let found = format!("{} bytes at {:#x}, in use by another item", item.length, item.offset);
                return defect(Rule::MetadataRange, found, "items apart from each other");
            }
            items.push(item);
        }
        for is_user in [false, true] {
            let of_kind = || items.iter().filter(|i| i.is_user == is_user);
            let total: u64 = of_kind().map(|i| u64::from(i.length)).fold(0, u64::saturating_add);
            let most = if is_user {
                limits::MAX_USER_ITEMS
            } else {
                usize::from(MAX_ENTRIES)
            };
            if total > limits::MAX_METADATA_CATEGORY_LEN || of_kind().count() > most {
                let found = format!("{} items of {total} bytes", of_kind().count());
                return table(
                    Rule::MetadataCount,
                    found,
                    "at most 1024 user items, 40 MiB of each kind",
                );
            }
        }
        Ok(MetadataTable { items })
    }

    /// The 64 KiB of the table.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; TABLE_SIZE];
        wire::put(&mut bytes, 0, SIGNATURE);
        let count = u16::try_from(self.items.len()).unwrap_or(MAX_ENTRIES);
        wire::put(&mut bytes, 10, &count.to_le_bytes());
        for (item, entry) in self
            .items
            .iter()
            .zip(bytes.get_mut(HEADER..).unwrap_or_default().chunks_exact_mut(ENTRY))
        {
            wire::put(entry, 0, &item.id.to_stored());
            wire::put(entry, 16, &item.offset.to_le_bytes());
            wire::put(entry, 20, &item.length.to_le_bytes());
            let flags =
                u32::from(item.is_user) | u32::from(item.is_virtual_disk) << 1 | u32::from(item.is_required) << 2;
            wire::put(entry, 24, &flags.to_le_bytes());
        }
        bytes
    }

    /// The system item with this id.
    pub fn find(&self, id: Guid) -> Option<&Item> {
        self.items.iter().find(|item| item.id == id && !item.is_user)
    }

    /// The first place in a region of `region_len` bytes where an item of `length` bytes fits.
    pub fn free_range(&self, length: u32, region_len: u32) -> Option<u32> {
        let start = u32::try_from(TABLE_SIZE).ok()?;
        let mut candidates: Vec<u32> = self.items.iter().filter_map(|i| u32::try_from(i.end()).ok()).collect();
        candidates.push(start);
        candidates.sort_unstable();
        candidates.into_iter().find(|&at| {
            at >= start
                && at.checked_add(length).is_some_and(|end| end <= region_len)
                && !self.items.iter().any(|i| i.overlaps(at, length))
        })
    }
}

impl FileParameters {
    /// Parses the item's 8 bytes, which are at `file_offset`.
    pub fn parse(bytes: &[u8], file_offset: u64) -> Result<Self, Defect> {
        let flags = wire::u32(bytes, 4);
        if flags >= 4 {
            return Err(Defect::new(
                Rule::FileParameters,
                "file parameters",
                file_offset,
                format!("flags {flags:#x}"),
                "only bits 0 and 1",
            ));
        }
        Ok(FileParameters {
            block_size: wire::u32(bytes, 0),
            leave_block_allocated: flags & 1 != 0,
            has_parent: flags & 2 != 0,
        })
    }

    /// The item's 8 bytes.
    pub fn encode(&self) -> [u8; 8] {
        let flags = u32::from(self.leave_block_allocated) | u32::from(self.has_parent) << 1;
        let mut bytes = [0; 8];
        wire::put(&mut bytes, 0, &self.block_size.to_le_bytes());
        wire::put(&mut bytes, 4, &flags.to_le_bytes());
        bytes
    }
}

/// Reads and checks the known items; `read(offset, length)` reads from the region.
pub fn parse_known(
    table: &MetadataTable,
    region_offset: u64,
    read: &mut dyn FnMut(u32, u32) -> Result<Vec<u8>, Error>,
) -> Result<DiskItems, Error> {
    let known = [
        FILE_PARAMETERS,
        VIRTUAL_DISK_SIZE,
        VIRTUAL_DISK_ID,
        LOGICAL_SECTOR_SIZE,
        PHYSICAL_SECTOR_SIZE,
        PARENT_LOCATOR,
        CHS,
        PMEM,
    ];
    let at = |item: &Item| region_offset.saturating_add(u64::from(item.offset));
    for item in table.items.iter().filter(|item| !item.is_user) {
        if item.id == INCOMPLETE {
            let found = "the mark of a file whose creation was not finished";
            return Err(Defect::new(
                Rule::Incomplete,
                "metadata table",
                region_offset,
                found,
                "a complete file",
            )
            .into());
        }
        if item.is_required && !known.contains(&item.id) {
            let found = format!("required item {}", item.id);
            let wanted = "only items this library knows marked as required";
            return Err(Defect::new(Rule::UnknownItem, "metadata table", region_offset, found, wanted).into());
        }
    }
    let mut get = |id: Guid, name: &'static str, rule: Rule, length: u32, virtual_disk: bool| {
        let item = table.find(id).ok_or_else(|| {
            let found = format!("no {name}");
            Defect::new(
                Rule::MissingItem,
                "metadata table",
                region_offset,
                found,
                "every mandatory item",
            )
        })?;
        if item.length != length || item.is_virtual_disk != virtual_disk {
            let found = format!("{} bytes, IsVirtualDisk {}", item.length, item.is_virtual_disk);
            let wanted = format!("{length} bytes, IsVirtualDisk {virtual_disk}");
            return Err(Error::from(Defect::new(rule, name, at(item), found, wanted)));
        }
        Ok((read(item.offset, item.length)?, at(item)))
    };
    let (bytes, offset) = get(FILE_PARAMETERS, "file parameters", Rule::FileParameters, 8, false)?;
    let parameters = FileParameters::parse(&bytes, offset)?;
    let (bytes, size_offset) = get(VIRTUAL_DISK_SIZE, "virtual disk size", Rule::DiskSize, 8, true)?;
    let virtual_size = wire::u64(&bytes, 0);
    let mut sector = |id, name| -> Result<u32, Error> {
        let (bytes, offset) = get(id, name, Rule::SectorSize, 4, true)?;
        match wire::u32(&bytes, 0) {
            size @ (512 | 4096) => Ok(size),
            other => Err(Defect::new(Rule::SectorSize, name, offset, other.to_string(), "512 or 4096").into()),
        }
    };
    let logical_sector_size = sector(LOGICAL_SECTOR_SIZE, "logical sector size")?;
    let physical_sector_size = sector(PHYSICAL_SECTOR_SIZE, "physical sector size")?;
    let (bytes, _) = get(VIRTUAL_DISK_ID, "virtual disk id", Rule::DiskId, 16, true)?;
    let virtual_disk_id = wire::guid(&bytes, 0);
    Geometry::new(
        virtual_size,
        parameters.block_size,
        logical_sector_size,
        parameters.has_parent,
        size_offset,
    )?;
    // A locator in a disk without parent means nothing and is left alone.
    let locator = match table.find(PARENT_LOCATOR).filter(|_| parameters.has_parent) {
        None => None,
        Some(item) if item.length == 0 => {
            return Err(Defect::new(Rule::Locator, "parent locator", at(item), "0 bytes", "at least 20").into())
        }
        Some(item) => Some(Locator::parse(&read(item.offset, item.length)?, at(item))?),
    };
    Ok(DiskItems {
        parameters,
        virtual_size,
        logical_sector_size,
        physical_sector_size,
        virtual_disk_id,
        locator,
    })
}

/// Places the items of a new file as Windows does, `extra` ones behind them: the table, and each item's offset in the
/// region and content.
#[allow(clippy::type_complexity)] // a table and what it refers to
pub fn standard_items(
    items: &DiskItems,
    extra: &[(Item, Vec<u8>)],
) -> Result<(MetadataTable, Vec<(u32, Vec<u8>)>), Defect> {
    let system = |id, is_virtual_disk, bytes: Vec<u8>| {
        let item = Item {
            id,
            offset: 0,
            length: 0,
            is_user: false,
            is_virtual_disk,
            is_required: true,
        };
        (item, bytes)
    };
    let mut all = vec![
        system(FILE_PARAMETERS, false, items.parameters.encode().to_vec()),
        system(VIRTUAL_DISK_SIZE, true, items.virtual_size.to_le_bytes().to_vec()),
        system(
            LOGICAL_SECTOR_SIZE,
            true,
            items.logical_sector_size.to_le_bytes().to_vec(),
        ),
        system(
            PHYSICAL_SECTOR_SIZE,
            true,
            items.physical_sector_size.to_le_bytes().to_vec(),
        ),
        system(VIRTUAL_DISK_ID, true, items.virtual_disk_id.to_stored().to_vec()),
    ];
    all.extend(items.locator.iter().map(|l| system(PARENT_LOCATOR, false, l.encode())));
    all.extend(extra.iter().cloned());
    let mut table = MetadataTable { items: Vec::new() };
    let mut contents = Vec::new();
    for (item, bytes) in all {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let most = limits::MAX_METADATA_REGION_LEN;
        let offset = table.free_range(length, most).filter(|_| u64::from(length) <= MIB);
        let Some(offset) = offset else {
            let found = format!("{length} bytes");
            return Err(Defect::new(
                Rule::MetadataRange,
                "metadata item",
                0,
                found,
                "at most 1 MiB",
            ));
        };
        table.items.push(Item {
            offset: if length == 0 { 0 } else { offset },
            length,
            ..item
        });
        if length != 0 {
            contents.push((offset, bytes));
        }
    }
    Ok((table, contents))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REGION: u32 = 1 << 20;

    fn disk() -> DiskItems {
        DiskItems {
            parameters: FileParameters {
                block_size: 2 << 20,
                leave_block_allocated: false,
                has_parent: true,
            },
            virtual_size: 8 << 30,
            logical_sector_size: 512,
            physical_sector_size: 4096,
            virtual_disk_id: Guid::from_u128(9),
            locator: Some(Locator::new(Guid::from_u128(7), None, Some(".\\a"), None)),
        }
    }

    fn read_back(table: &MetadataTable, contents: &[(u32, Vec<u8>)]) -> Result<DiskItems, Error> {
        let table = MetadataTable::parse(&table.encode(), 2 << 20, REGION)?;
        parse_known(&table, 2 << 20, &mut |offset, len| {
            let (_, bytes) = contents.iter().find(|(o, _)| *o == offset).unwrap();
            Ok(bytes[..len as usize].to_vec())
        })
    }

    #[test]
    fn placed_as_windows_does() {
        let (table, contents) = standard_items(&disk(), &[]).unwrap();
        let offsets: Vec<u32> = table.items.iter().map(|i| i.offset).collect();
        assert_eq!(offsets, [0x10000, 0x10008, 0x10010, 0x10014, 0x10018, 0x10028]);
        let flags: Vec<u32> = table.encode()[HEADER..]
            .chunks(ENTRY)
            .take(6)
            .map(|e| wire::u32(e, 24))
            .collect();
        assert_eq!(flags, [4, 6, 6, 6, 6, 4]);
        assert_eq!(read_back(&table, &contents).unwrap(), disk());
    }

    #[test]
    fn a_place_is_found_between_items() {
        let (mut table, _) = standard_items(&disk(), &[]).unwrap();
        assert_eq!(table.free_range(8, REGION), Some(0x10028 + table.items[5].length));
        table.items.remove(1);
        assert_eq!(table.free_range(8, REGION), Some(0x10008));
        assert_eq!(table.free_range(9, REGION), Some(0x10028 + table.items[4].length));
        assert_eq!(table.free_range(REGION, REGION), None);
    }

    fn broken(change: impl FnOnce(&mut Vec<Item>)) -> Rule {
        let (mut table, contents) = standard_items(&disk(), &[]).unwrap();
        change(&mut table.items);
        read_back(&table, &contents).unwrap_err().defect().unwrap().rule
    }

    #[test]
    fn every_rule_of_the_table_is_enforced() {
        assert_eq!(broken(|i| _ = i.remove(0)), Rule::MissingItem);
        assert_eq!(broken(|i| i[0].length = 4), Rule::FileParameters);
        assert_eq!(broken(|i| i[1].is_virtual_disk = false), Rule::DiskSize);
        assert_eq!(broken(|i| i[1].offset = 0), Rule::MetadataRange);
        assert_eq!(broken(|i| i[1].offset = u32::MAX), Rule::MetadataRange);
        assert_eq!(broken(|i| i[1].offset = REGION - 4), Rule::MetadataRange);
        assert_eq!(broken(|i| i[1].offset = i[0].offset), Rule::MetadataRange);
        assert_eq!(broken(|i| i[5].length = 2 << 20), Rule::MetadataRange);
        assert_eq!(broken(|i| i[0].is_user = true), Rule::MetadataFlags);
        assert_eq!(broken(|i| i[0].id = i[1].id), Rule::MetadataDuplicate);
        assert_eq!(broken(|i| i[0].id = Guid::ZERO), Rule::MetadataDuplicate);
        let new = |id| Item {
            id,
            offset: 0,
            length: 0,
            is_user: false,
            is_virtual_disk: false,
            is_required: true,
        };
        assert_eq!(broken(|i| i.push(new(INCOMPLETE))), Rule::Incomplete);
        assert_eq!(broken(|i| i.push(new(Guid::from_u128(3)))), Rule::UnknownItem);
        let mut bytes = standard_items(&disk(), &[]).unwrap().0.encode();
        bytes[10..12].copy_from_slice(&2048u16.to_le_bytes());
        let parse = |bytes: &[u8]| MetadataTable::parse(bytes, 0, REGION).unwrap_err().rule;
        assert_eq!(parse(&bytes), Rule::MetadataCount);
        assert_eq!(parse(&[0; 64]), Rule::MetadataSignature);
    }

    #[test]
    fn every_rule_of_the_items_is_enforced() {
        let broken = |change: fn(&mut DiskItems)| {
            let mut items = disk();
            change(&mut items);
            let (table, contents) = standard_items(&items, &[]).unwrap();
            read_back(&table, &contents).unwrap_err().defect().unwrap().rule
        };
        assert_eq!(broken(|i| i.parameters.block_size = 0), Rule::FileParameters);
        assert_eq!(broken(|i| i.parameters.block_size = 3 << 20), Rule::FileParameters);
        assert_eq!(broken(|i| i.virtual_size = 0), Rule::DiskSize);
        assert_eq!(broken(|i| i.virtual_size = 513), Rule::DiskSize);
        assert_eq!(broken(|i| i.virtual_size = !511), Rule::DiskSize);
        assert_eq!(broken(|i| i.logical_sector_size = 1024), Rule::SectorSize);
        assert_eq!(broken(|i| i.physical_sector_size = 0), Rule::SectorSize);
    }

    proptest! {
        #[test]
        fn nothing_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), count in 0u16..12) {
            if bytes.len() >= 12 {
                bytes[..8].copy_from_slice(SIGNATURE);
                bytes[10..12].copy_from_slice(&count.to_le_bytes());
            }
            let _ = MetadataTable::parse(&bytes, 0, REGION);
        }
    }
}
