//! A new VHD, fixed or dynamic, in a file that is empty and has no name yet.

use std::time::{SystemTime, UNIX_EPOCH};

use super::codec::{bitmap_len, DynamicHeader, Footer, HEADER_LEN, MAX_SIZE, SECTOR, UNALLOCATED};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::guid::Guid;
use crate::limits;
use crate::options::DiskType;
use crate::storage::{self, Storage};
use crate::units::align_up;

/// Seconds from 1970 to 2000, where VHD timestamps begin.
const EPOCH: u64 = 946_684_800;
/// Where Windows puts the BAT of a dynamic disk.
const TABLE_OFFSET: u64 = SECTOR + HEADER_LEN;
/// The data of blocks begins on a multiple of this.
const DATA_ALIGNMENT: u64 = 4096;
pub(crate) const DEFAULT_BLOCK: u32 = 2 << 20;

/// A disk being written. What is never written reads as zeros.
#[derive(Debug)]
pub(crate) struct VhdWriter<'a> {
    storage: &'a dyn Storage,
    footer: Footer,
    /// Block size and BAT of a dynamic disk.
    blocks: Option<(u32, Vec<u32>)>,
    /// Where the next block may begin.
    end: u64,
}

impl<'a> VhdWriter<'a> {
    /// `block_size` is for dynamic disks; 0 is 2 MiB.
    pub(crate) fn new(storage: &'a dyn Storage, size: u64, id: Guid, fixed: bool, block_size: u32) -> Result<Self> {
        if size == 0 || size % SECTOR != 0 || size > MAX_SIZE {
            return Err(Error::new(ErrorKind::Argument, format!("a VHD of {size} bytes"))
                .with_hint("a VHD holds at most 2040 GiB; convert to VHDX"));
        }
        let block_size = if block_size == 0 { DEFAULT_BLOCK } else { block_size };
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_secs());
        let footer = Footer {
            data_offset: if fixed { u64::MAX } else { SECTOR },
            timestamp: seconds.saturating_sub(EPOCH) as u32,
            // COMPAT: for a creator it does not know, QEMU takes the size from the geometry, which cannot tell every
            // size; for this one it does not.
            creator: *b"win ",
            creator_version: 0x000A_0000,
            current_size: size,
            disk_type: if fixed { DiskType::Fixed } else { DiskType::Dynamic },
            unique_id: id,
            saved_state: false,
        };
        if fixed {
            set_len(storage, size)?;
            return Ok(VhdWriter {
                storage,
                footer,
                blocks: None,
                end: size,
            });
        }
        let entries = size.div_ceil(u64::from(block_size.max(1)));
        if !block_size.is_power_of_two()
            || !(512 << 10..=256 << 20).contains(&block_size)
            || entries > limits::MAX_VHD_BLOCKS
        {
            return Err(
                Error::new(ErrorKind::Argument, format!("VHD blocks of {block_size} bytes"))
                    .with_hint("the block size of a VHD is a power of two from 512K to 256M"),
            );
        }
        let end = TABLE_OFFSET + align_up(entries * 4, SECTOR).unwrap_or(entries * 4);
        set_len(storage, end)?;
        Ok(VhdWriter {
            storage,
            footer,
            blocks: Some((block_size, vec![UNALLOCATED; entries as usize])),
            end,
        })
    }

    /// Writes bytes at a virtual offset; both ends are multiples of 512 inside the disk.
    pub(crate) fn write(&mut self, mut bytes: &[u8], mut offset: u64) -> Result<()> {
        while !bytes.is_empty() {
            let (at, len) = self.place(offset, bytes.len() as u64)?;
            let (now, later) = bytes.split_at(len as usize);
            self.storage
                .write_payload_at(now, at)
                .context(|| format!("write at file offset {at:#x}"))?;
            // The device works while the next bytes are read.
            self.storage.write_behind(at, len);
            (bytes, offset) = (later, offset + len);
        }
        Ok(())
    }

    /// The same by sharing the extents that hold the bytes in `file`.
    pub(crate) fn share(&mut self, file: &dyn Storage, mut from: u64, mut rest: u64, mut offset: u64) -> Result<()> {
        while rest > 0 {
            let (at, len) = self.place(offset, rest)?;
            storage::share(self.storage, at, file, from, len)?;
            (from, rest, offset) = (from + len, rest - len, offset + len);
        }
        Ok(())
    }

    pub(crate) fn storage(&self) -> &dyn Storage {
        self.storage
    }

    /// Where in the file the first bytes of a range go, and how many of them are together there.
    fn place(&mut self, offset: u64, len: u64) -> Result<(u64, u64)> {
        let Some((block_size, bat)) = &mut self.blocks else {
            return Ok((offset, len));
        };
        let block_size = u64::from(*block_size);
        let bitmap = bitmap_len(block_size as u32);
        let in_block = offset % block_size;
        let Some(entry) = bat.get_mut((offset / block_size) as usize) else {
            return Err(Error::new(ErrorKind::Range, "a write behind the end of the disk").with_offset(offset));
        };
        if *entry == UNALLOCATED {
            let data = align_up(self.end + bitmap, DATA_ALIGNMENT).unwrap_or(self.end + bitmap);
            self.end = data + block_size;
            set_len(self.storage, self.end)?;
            put(self.storage, &vec![0xFF; bitmap as usize], data - bitmap)?;
            *entry = u32::try_from((data - bitmap) / SECTOR)
                .map_err(|_| Error::new(ErrorKind::Argument, "the VHD would be too large a file"))?;
        }
        Ok((
            u64::from(*entry) * SECTOR + bitmap + in_block,
            len.min(block_size - in_block),
        ))
    }

    /// Writes what says what the file is. Not flushed.
    pub(crate) fn finish(self) -> Result<()> {
        let footer = self.footer.encode();
        if let Some((block_size, bat)) = &self.blocks {
            put(self.storage, &footer, 0)?;
            let header = DynamicHeader {
                table_offset: TABLE_OFFSET,
                max_entries: bat.len() as u32,
                block_size: *block_size,
                parent_id: Guid::ZERO,
                parent_timestamp: 0,
                parent_name: String::new(),
                locators: Vec::new(),
            };
            put(self.storage, &header.encode(), SECTOR)?;
            let mut table: Vec<u8> = bat.iter().flat_map(|entry| entry.to_be_bytes()).collect();
            table.resize(table.len().next_multiple_of(SECTOR as usize), 0xFF);
            put(self.storage, &table, TABLE_OFFSET)?;
        }
        put(self.storage, &footer, self.end)
    }
}

fn put(storage: &dyn Storage, bytes: &[u8], at: u64) -> Result<()> {
    storage
        .write_at(bytes, at)
        .context(|| format!("write at file offset {at:#x}"))
}

fn set_len(storage: &dyn Storage, len: u64) -> Result<()> {
    storage
        .set_len(len)
        .context(|| format!("extend the file to {len} bytes"))
}
