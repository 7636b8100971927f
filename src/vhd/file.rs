//! One VHD file, open for reading. Everything that says where bytes are is checked here, once, before any of them is
//! used: sizes, places inside the file, no place used twice. Memory is bounded by the BAT, at most 16 MiB.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::codec::{self, DynamicHeader, Footer, HEADER_LEN, SECTOR, UNALLOCATED};
use crate::error::{Defect, Error, ErrorKind, IoContext, Result, Rule};
use crate::guid::Guid;
use crate::limits;
use crate::options::DiskType;
use crate::storage::Storage;
use crate::trace;

/// Codes of parent locators with Windows paths: relative, absolute.
pub(super) const RELATIVE: [u8; 4] = *b"W2ru";
pub(super) const ABSOLUTE: [u8; 4] = *b"W2ku";

/// What a range of the disk is in one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// Bytes in this file, in sequence from here.
    Data(u64),
    /// Zeros.
    Zero,
    /// The parent.
    Transparent,
}

/// Blocks, for the types that have them.
#[derive(Debug)]
struct Blocks {
    header: DynamicHeader,
    bat: Vec<u32>,
    /// The sector bitmap used last.
    bitmap: Mutex<Option<(usize, Arc<[u8]>)>>,
}

/// An open file.
#[derive(Debug)]
pub(crate) struct VhdFile {
    name: PathBuf,
    storage: Arc<dyn Storage>,
    footer: Footer,
    blocks: Option<Blocks>,
    /// Parent paths by code.
    paths: Vec<([u8; 4], String)>,
}

fn read(storage: &dyn Storage, offset: u64, len: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len as usize];
    storage
        .read_at(&mut bytes, offset)
        .context(|| format!("read {len} bytes at file offset {offset:#x}"))?;
    Ok(bytes)
}

fn file_len(storage: &dyn Storage) -> Result<u64> {
    storage.len().context(|| "get the file length".into())
}

/// Whether the file looks like a VHD.
pub(crate) fn is_vhd(storage: &dyn Storage) -> bool {
    find_footer(storage).is_ok()
}

/// The unique ID of a file.
pub(super) fn identity(storage: Arc<dyn Storage>) -> Result<Guid> {
    Ok(find_footer(&*storage)?.0.unique_id)
}

/// The footer, and where the data ends. The one at the end counts; the copy at the start stands in for it where there is
/// one, which a disk that was being written when the power went needs.
fn find_footer(storage: &dyn Storage) -> Result<(Footer, u64)> {
    let len = file_len(storage)?;
    if len < SECTOR {
        return Err(not_vhd(None));
    }
    let copy = read(storage, 0, SECTOR)?;
    let copy = Footer::parse(&copy, 0);
    let mut first: Option<Defect> = None;
    // COMPAT: early Virtual PC wrote footers of 511 bytes.
    for footer_len in [SECTOR, SECTOR - 1] {
        let at = len - footer_len;
        let bytes = read(storage, at, footer_len)?;
        match Footer::parse(&bytes, at) {
            Ok(footer) => {
                check_copy(&footer, at, &copy)?;
                return Ok((footer, at));
            }
            Err(defect) if Footer::is(&bytes) => first = first.or(Some(defect)),
            Err(_) => {}
        }
    }
    match (copy, first) {
        (Ok(copy), _) if copy.disk_type != DiskType::Fixed => {
            trace::warn(|| "the VHD footer at the end of the file is damaged: its copy at the start is used".into());
            Ok((copy, len))
        }
        (_, first) => Err(not_vhd(first)),
    }
}

/// A footer with blocks has a copy at the start, and both must name the same disk: the last sectors of a file that lost
/// its footer hold what the guest put there.
fn check_copy(footer: &Footer, at: u64, copy: &Result<Footer, Defect>) -> Result<()> {
    let differs = |copy: &Footer| {
        (footer.unique_id, footer.disk_type, footer.data_offset) != (copy.unique_id, copy.disk_type, copy.data_offset)
    };
    match copy {
        Ok(copy) if footer.disk_type != DiskType::Fixed && differs(copy) => {
            let found = format!("{} {:?}", copy.unique_id, copy.disk_type);
            let wanted = format!(
                "{} {:?}, as in the footer at {at:#x}",
                footer.unique_id, footer.disk_type
            );
            Err(Defect::new(Rule::FileParameters, "VHD footer copy", 0, found, wanted).into())
        }
        _ => Ok(()),
    }
}

fn not_vhd(defect: Option<Defect>) -> Error {
    match defect {
        Some(defect) => defect.into(),
        None => Error::new(
            ErrorKind::NotVhdx,
            "not a VHD file: there is no footer at its end, and no copy of one",
        )
        .with_hint("check the path; a file cut short has lost its footer: copy it again from its source"),
    }
}

impl VhdFile {
    pub(crate) fn open(storage: Arc<dyn Storage>, name: &Path) -> Result<VhdFile> {
        let (footer, data_end) = find_footer(&*storage)?;
        if footer.saved_state {
            trace::warn(|| format!("{name:?}: the virtual machine was saved while it used this disk"));
        }
        let mut file = VhdFile {
            name: name.to_path_buf(),
            storage,
            footer,
            blocks: None,
            paths: Vec::new(),
        };
        match file.footer.disk_type {
            DiskType::Fixed if file.footer.current_size > data_end => Err(Defect::new(
                Rule::FileTruncated,
                "VHD data",
                0,
                format!("{data_end} bytes before the footer"),
                format!("{} bytes", file.footer.current_size),
            )
            .into()),
            DiskType::Fixed => Ok(file),
            _ => {
                file.open_blocks(data_end)?;
                Ok(file)
            }
        }
    }

    fn open_blocks(&mut self, data_end: u64) -> Result<()> {
        let footer = &self.footer;
        if footer.disk_type == DiskType::Differencing && &footer.creator == b"tap\0" && footer.creator_version == 1 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the first XenServer releases wrote sector bitmaps in another bit order",
            )
            .with_hint("coalesce the chain with the program that wrote it"));
        }
        let at = footer.data_offset;
        if at < SECTOR || at.checked_add(HEADER_LEN).is_none_or(|end| end > data_end) {
            let wanted = format!("inside the file, which has {data_end} bytes of data");
            return Err(Defect::new(
                Rule::BeyondEof,
                "VHD footer, data offset",
                0,
                format!("{at:#x}"),
                wanted,
            )
            .into());
        }
        let header = DynamicHeader::parse(
            &read(&*self.storage, at, HEADER_LEN)?,
            at,
            footer.current_size,
            data_end,
        )?;
        let entries = footer.current_size.div_ceil(u64::from(header.block_size));
        if entries > limits::MAX_VHD_BLOCKS {
            let message = format!("a VHD of {entries} blocks, of {} bytes each", header.block_size);
            return Err(Error::new(ErrorKind::Unsupported, message).with_hint("rewrite it with blocks of 2 MiB"));
        }
        let bat: Vec<u32> = read(&*self.storage, header.table_offset, entries * 4)?
            .chunks_exact(4)
            .map(|bytes| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            .collect();
        self.check_places(&header, &bat, at, data_end)?;
        if footer.disk_type == DiskType::Differencing {
            self.paths = self.read_paths(&header, data_end)?;
        }
        self.blocks = Some(Blocks {
            header,
            bat,
            bitmap: Mutex::new(None),
        });
        Ok(())
    }

    /// Every block lies inside the file, on nothing else and on no other block.
    fn check_places(&self, header: &DynamicHeader, bat: &[u32], header_at: u64, data_end: u64) -> Result<()> {
        let bitmap = codec::bitmap_len(header.block_size);
        let block_size = u64::from(header.block_size);
        let mut used = vec![
            (0, SECTOR),
            (header_at, HEADER_LEN),
            (header.table_offset, bat.len() as u64 * 4),
        ];
        used.extend(header.locators.iter().map(|l| (l.offset, u64::from(l.length))));
        let entry_at = |index: usize| header.table_offset + index as u64 * 4;
        let structure = |index: usize| format!("VHD BAT entry {index}");
        let mut places: Vec<(u64, u32)> = Vec::new();
        for (index, &entry) in bat.iter().enumerate().filter(|(_, &entry)| entry != UNALLOCATED) {
            let start = u64::from(entry) * SECTOR;
            // Some writers end the file with the last sector of the disk, not of the block.
            let on_disk = block_size.min(self.footer.current_size - index as u64 * block_size);
            if start + bitmap + on_disk > data_end {
                let wanted = format!("a block that ends by {data_end:#x}");
                let found = format!("sector {entry}");
                return Err(Defect::new(Rule::BeyondEof, structure(index), entry_at(index), found, wanted).into());
            }
            if let Some((at, len)) = used
                .iter()
                .find(|(at, len)| start < at.saturating_add(*len) && *at < start + bitmap + on_disk)
            {
                let wanted = format!("a block clear of the {len} bytes at {at:#x}");
                let found = format!("sector {entry}");
                return Err(Defect::new(Rule::Overlap, structure(index), entry_at(index), found, wanted).into());
            }
            places.push((start, index as u32));
        }
        places.sort_unstable();
        for pair in places.windows(2) {
            if let [(a, first), (b, second)] = *pair {
                if b - a < bitmap + block_size {
                    let wanted = format!("a block clear of block {first}, at {a:#x}");
                    let index = second as usize;
                    let found = format!("sector {}", b / SECTOR);
                    return Err(Defect::new(Rule::Overlap, structure(index), entry_at(index), found, wanted).into());
                }
            }
        }
        Ok(())
    }

    fn read_paths(&self, header: &DynamicHeader, data_end: u64) -> Result<Vec<([u8; 4], String)>> {
        let mut paths = Vec::new();
        for entry in header
            .locators
            .iter()
            .filter(|l| [RELATIVE, ABSOLUTE].contains(&l.code))
        {
            let end = entry.offset.checked_add(u64::from(entry.length));
            let most = limits::MAX_PATH_UNITS as u32 * 2;
            if entry.length > most || end.is_none_or(|end| end > data_end) {
                let structure = format!("VHD parent locator {:?}", String::from_utf8_lossy(&entry.code));
                let found = format!("{} bytes at {:#x}", entry.length, entry.offset);
                let wanted = format!("at most {most} bytes inside the file");
                return Err(Defect::new(Rule::Locator, structure, self.footer.data_offset, found, wanted).into());
            }
            let units: Vec<u16> = read(&*self.storage, entry.offset, u64::from(entry.length))?
                .chunks_exact(2)
                .map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
                .take_while(|&unit| unit != 0)
                .collect();
            paths.push((entry.code, String::from_utf16_lossy(&units)));
        }
        Ok(paths)
    }

    pub(crate) fn name(&self) -> &Path {
        &self.name
    }

    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    pub(crate) fn footer(&self) -> &Footer {
        &self.footer
    }

    pub(crate) fn size(&self) -> u64 {
        self.footer.current_size
    }

    pub(crate) fn header(&self) -> Option<&DynamicHeader> {
        self.blocks.as_ref().map(|blocks| &blocks.header)
    }

    pub(crate) fn allocated_blocks(&self) -> u64 {
        let bat = self.blocks.as_ref().map_or(&[][..], |blocks| &blocks.bat);
        bat.iter().filter(|&&entry| entry != UNALLOCATED).count() as u64
    }

    pub(super) fn path(&self, code: [u8; 4]) -> Option<&str> {
        self.paths
            .iter()
            .find(|(known, _)| *known == code)
            .map(|(_, text)| text.as_str())
    }

    /// Whether absent data is the parent's.
    pub(crate) fn is_differencing(&self) -> bool {
        self.footer.disk_type == DiskType::Differencing
    }

    /// The source of the bytes at `offset`, a multiple of 512 inside the disk, and how many of `max` share it.
    pub(crate) fn lookup(&self, offset: u64, max: u64) -> Result<(u64, Source)> {
        let max = max.min(self.size() - offset);
        let Some(blocks) = &self.blocks else {
            return Ok((max, Source::Data(offset)));
        };
        let block_size = u64::from(blocks.header.block_size);
        let block = (offset / block_size) as usize;
        let in_block = offset % block_size;
        let len = max.min(block_size - in_block);
        let absent = match self.is_differencing() {
            true => Source::Transparent,
            false => Source::Zero,
        };
        let entry = match blocks.bat.get(block) {
            Some(&entry) if entry != UNALLOCATED => u64::from(entry) * SECTOR,
            _ => return Ok((len, absent)),
        };
        let bitmap_len = codec::bitmap_len(blocks.header.block_size);
        let data = Source::Data(entry + bitmap_len + in_block);
        if !self.is_differencing() {
            // COMPAT: a dynamic disk's bitmap tells never-written sectors apart, which are zeros in the file too. Not
            // every writer keeps it, and QEMU ignores it.
            return Ok((len, data));
        }
        let bitmap = self.bitmap(blocks, block, entry, bitmap_len)?;
        let (set, sectors) = codec::run_length(&bitmap, in_block / SECTOR, len / SECTOR);
        let source = if set { data } else { absent };
        Ok((sectors * SECTOR, source))
    }

    fn bitmap(&self, blocks: &Blocks, block: usize, at: u64, len: u64) -> Result<Arc<[u8]>> {
        let mut last = blocks.bitmap.lock();
        if let Some((known, bitmap)) = &*last {
            if *known == block {
                return Ok(bitmap.clone());
            }
        }
        let bitmap: Arc<[u8]> = read(&*self.storage, at, len)?.into();
        *last = Some((block, bitmap.clone()));
        Ok(bitmap)
    }
}
