//! Laying out a new file as Windows does (MS-VHDX 2; docs/format-notes.md "Creating").

use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::format::bat::{PayloadEntry, PayloadState};
use crate::format::header::{self, Header};
use crate::format::identifier::Identifier;
use crate::format::metadata::{self, DiskItems, Item};
use crate::format::region::{self, Region, RegionTable};
use crate::guid::Guid;
use crate::limits;
use crate::storage::{Barrier, Storage};
use crate::units::{align_up, BlockIndex, Geometry, MIB};

/// Who wrote the file, for people; never read by programs (MS-VHDX 2.1).
const CREATOR: &str = concat!("libavhdx ", env!("CARGO_PKG_VERSION"));

/// What a new file is to be.
#[derive(Debug)]
pub(crate) struct NewImage {
    pub(crate) items: DiskItems,
    /// Virtual disk items of the parent besides the known ones, and their content.
    pub(crate) extra: Vec<(Item, Vec<u8>)>,
    pub(crate) log_length: u32,
}

/// Writes the file, which is empty, and makes it durable. It has no name that matters yet: a crash leaves nothing that
/// could be mistaken for a disk.
pub(crate) fn write(storage: &dyn Storage, new: &NewImage) -> Result<()> {
    let items = &new.items;
    let parameters = items.parameters;
    let geometry = Geometry::new(
        items.virtual_size,
        parameters.block_size,
        items.logical_sector_size,
        parameters.has_parent,
        0,
    )?;
    let (table, contents) = metadata::standard_items(items, &new.extra)?;
    let metadata_end = contents
        .iter()
        .map(|(offset, bytes)| u64::from(*offset) + bytes.len() as u64)
        .fold(MIB, u64::max);
    let metadata_length = align_up(metadata_end, MIB).unwrap_or(metadata_end);
    let metadata_offset = MIB + u64::from(new.log_length);
    let bat_offset = metadata_offset + metadata_length;
    let blocks_offset = bat_offset + geometry.bat_region_len();
    let fixed = parameters.leave_block_allocated && !parameters.has_parent;
    let len = match fixed {
        true => blocks_offset + geometry.block_count() * geometry.block_size(),
        false => blocks_offset,
    };
    if len > limits::MAX_FILE_LEN {
        return Err(Error::new(ErrorKind::Argument, "the file would be larger than 256 TiB"));
    }
    storage
        .set_len(len)
        .context(|| format!("extend the file to {len} bytes"))?;
    let put = |bytes: &[u8], at: u64| {
        storage
            .write_at(bytes, at)
            .context(|| format!("write at file offset {at:#x}"))
    };
    let region = |guid, offset, length: u64| {
        u32::try_from(length)
            .map(|length| Region {
                guid,
                offset,
                length,
                required: true,
            })
            .map_err(|_| Error::new(ErrorKind::Argument, "a region would be larger than 4 GiB"))
    };
    put(&Identifier::encode(CREATOR), 0)?;
    let mut header = Header {
        sequence_number: 1,
        file_write_guid: Guid::random(),
        data_write_guid: Guid::random(),
        log_guid: Guid::ZERO,
        log_version: 0,
        version: 1,
        log_length: new.log_length,
        log_offset: MIB,
    };
    for at in header::OFFSETS {
        put(&header.encode(), at)?;
        header.sequence_number += 1;
    }
    let regions = RegionTable::new(vec![
        region(region::BAT, bat_offset, geometry.bat_region_len())?,
        region(region::METADATA, metadata_offset, metadata_length)?,
    ]);
    for at in region::OFFSETS {
        put(&regions.encode(), at)?;
    }
    put(&table.encode(), metadata_offset)?;
    for (offset, bytes) in &contents {
        put(bytes, metadata_offset + u64::from(*offset))?;
    }
    if fixed {
        write_fixed_bat(storage, &geometry, bat_offset, blocks_offset)?;
    }
    // ORDER: all of it is durable before the file gets its name.
    storage
        .flush(Barrier::NewFile)
        .context(|| "make the new file durable".into())
}

/// Every block at its place, in order (MS-VHDX 2.2: fixed).
fn write_fixed_bat(storage: &dyn Storage, geometry: &Geometry, bat_offset: u64, blocks_offset: u64) -> Result<()> {
    const PIECE: u64 = MIB / 8;
    let mut first = 0;
    while first < geometry.bat_entries() {
        let count = PIECE.min(geometry.bat_entries() - first);
        let mut bytes = Vec::with_capacity(count as usize * 8);
        for index in first..first + count {
            let raw = match geometry.slot(crate::units::BatIndex(index)) {
                crate::units::BatSlot::Payload(BlockIndex(block)) => PayloadEntry {
                    state: PayloadState::FullyPresent,
                    file_offset: blocks_offset + block * geometry.block_size(),
                }
                .encode(),
                crate::units::BatSlot::Bitmap(_) => 0,
            };
            bytes.extend_from_slice(&raw.to_le_bytes());
        }
        let at = bat_offset + first * 8;
        storage
            .write_at(&bytes, at)
            .context(|| format!("write the BAT at file offset {at:#x}"))?;
        first += count;
    }
    Ok(())
}
