//! Bytes of the legacy VHD format to checked values and back; pure. All integers are big-endian, a sector is 512 bytes.
//!
//! ```text
//!   fixed            data | footer
//!   dynamic,         footer copy | dynamic header | [parent paths] | BAT | blocks | footer
//!   differencing     a block is its sector bitmap, in whole sectors, then its data
//! ```

use crate::error::{Defect, Rule};
use crate::guid::Guid;
use crate::options::DiskType;
use crate::units::align_up;

/// Bytes of a sector and of a footer.
pub const SECTOR: u64 = 512;
/// Bytes of the dynamic header.
pub const HEADER_LEN: u64 = 1024;
/// A BAT entry of a block that has no place in the file.
pub const UNALLOCATED: u32 = u32::MAX;
/// Largest virtual disk: 2040 GiB.
pub const MAX_SIZE: u64 = 0xFF00_0000 * SECTOR;
/// Locator entries in the dynamic header.
const LOCATORS: usize = 8;

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut value = [0; N];
    if let Some(field) = at.checked_add(N).and_then(|end| bytes.get(at..end)) {
        value.copy_from_slice(field);
    }
    value
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    if let Some(place) = at.checked_add(field.len()).and_then(|end| bytes.get_mut(at..end)) {
        place.copy_from_slice(field);
    } else {
        debug_assert!(false, "a field outside its structure");
    }
}

/// One's complement of the sum of all bytes, those of the checksum itself left out.
fn checksum(bytes: &[u8], field: usize) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().fold(0u32, |sum, &byte| sum.wrapping_add(u32::from(byte)));
    !sum(bytes).wrapping_sub(sum(bytes.get(field..field + 4).unwrap_or_default()))
}

/// The footer: what the disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// Where the dynamic header is; all ones in a fixed disk.
    pub data_offset: u64,
    /// Seconds since 2000-01-01 00:00 UTC.
    pub timestamp: u32,
    /// The program that wrote it, four bytes of ASCII, and its version.
    pub creator: [u8; 4],
    /// Version of the creator.
    pub creator_version: u32,
    /// Virtual size in bytes.
    pub current_size: u64,
    /// Type.
    pub disk_type: DiskType,
    /// Identity, which children record.
    pub unique_id: Guid,
    /// The virtual machine was saved while the disk was in use.
    pub saved_state: bool,
}

const COOKIE: &[u8; 8] = b"conectix";
const DYNAMIC_COOKIE: &[u8; 8] = b"cxsparse";
const VERSION: u32 = 0x0001_0000;

impl Footer {
    /// Whether the bytes begin like a footer.
    pub fn is(bytes: &[u8]) -> bool {
        bytes.starts_with(COOKIE)
    }

    /// Checks a footer read at file `offset`; a missing last byte is taken as zero (files of early Virtual PC end with
    /// 511 bytes).
    pub fn parse(bytes: &[u8], offset: u64) -> Result<Footer, Defect> {
        let defect = |rule, field: &'static str, found: String, wanted: &'static str| {
            Defect::new(rule, format!("VHD footer, {field}"), offset, found, wanted)
        };
        if !Footer::is(bytes) {
            let found = format!("{:02x?}", bytes.get(..8).unwrap_or_default());
            return Err(defect(Rule::Signature, "cookie", found, "\"conectix\""));
        }
        let (found, wanted) = (u32_at(bytes, 64), checksum(bytes, 64));
        if found != wanted {
            let found = format!("{found:#010x}, computed {wanted:#010x}");
            return Err(defect(Rule::Checksum, "checksum", found, "the computed one"));
        }
        let version = u32_at(bytes, 12);
        if version >> 16 != VERSION >> 16 {
            return Err(defect(Rule::Version, "version", format!("{version:#x}"), "0x10000"));
        }
        let disk_type = match u32_at(bytes, 60) {
            2 => DiskType::Fixed,
            3 => DiskType::Dynamic,
            4 => DiskType::Differencing,
            other => {
                return Err(defect(
                    Rule::FileParameters,
                    "disk type",
                    other.to_string(),
                    "2, 3 or 4",
                ))
            }
        };
        let current_size = u64_at(bytes, 48);
        if current_size == 0 || current_size % SECTOR != 0 || current_size > MAX_SIZE {
            return Err(defect(
                Rule::DiskSize,
                "current size",
                current_size.to_string(),
                "a multiple of 512, at most 2040 GiB, not 0",
            ));
        }
        Ok(Footer {
            data_offset: u64_at(bytes, 16),
            timestamp: u32_at(bytes, 24),
            creator: array(bytes, 28),
            creator_version: u32_at(bytes, 32),
            current_size,
            disk_type,
            unique_id: Guid::from_stored(array(bytes, 68)),
            saved_state: bytes.get(84).is_some_and(|&byte| byte != 0),
        })
    }

    /// The 512 bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; SECTOR as usize];
        put(&mut bytes, 0, COOKIE);
        put(&mut bytes, 8, &2u32.to_be_bytes());
        put(&mut bytes, 12, &VERSION.to_be_bytes());
        put(&mut bytes, 16, &self.data_offset.to_be_bytes());
        put(&mut bytes, 24, &self.timestamp.to_be_bytes());
        put(&mut bytes, 28, &self.creator);
        put(&mut bytes, 32, &self.creator_version.to_be_bytes());
        put(&mut bytes, 36, b"Wi2k");
        put(&mut bytes, 40, &self.current_size.to_be_bytes());
        put(&mut bytes, 48, &self.current_size.to_be_bytes());
        let (cylinders, heads, sectors) = chs(self.current_size / SECTOR);
        put(&mut bytes, 56, &cylinders.to_be_bytes());
        put(&mut bytes, 58, &[heads, sectors]);
        let disk_type: u32 = match self.disk_type {
            DiskType::Fixed => 2,
            DiskType::Dynamic => 3,
            DiskType::Differencing => 4,
        };
        put(&mut bytes, 60, &disk_type.to_be_bytes());
        put(&mut bytes, 68, &self.unique_id.to_stored());
        put(&mut bytes, 84, &[u8::from(self.saved_state)]);
        let sum = checksum(&bytes, 64);
        put(&mut bytes, 64, &sum.to_be_bytes());
        bytes
    }

    /// The creator, for people.
    pub fn creator_text(&self) -> String {
        let name: String = self
            .creator
            .iter()
            .map(|&b| char::from(b))
            .filter(|c| c.is_ascii_graphic())
            .collect();
        format!(
            "{name} {}.{}",
            self.creator_version >> 16,
            self.creator_version & 0xFFFF
        )
    }
}

/// The geometry for a number of sectors, as the appendix of the VHD specification computes it: cylinders, heads,
/// sectors.
pub fn chs(sectors: u64) -> (u16, u8, u8) {
    let total = sectors.min(65535 * 16 * 255);
    if total >= 65535 * 16 * 63 {
        return ((total / 255 / 16) as u16, 16, 255);
    }
    let mut per_track = 17;
    let mut by_heads = total / per_track;
    let mut heads = by_heads.div_ceil(1024).max(4);
    if by_heads >= heads * 1024 || heads > 16 {
        (per_track, heads) = (31, 16);
        by_heads = total / per_track;
    }
    if by_heads >= heads * 1024 {
        (per_track, heads) = (63, 16);
        by_heads = total / per_track;
    }
    ((by_heads / heads) as u16, heads as u8, per_track as u8)
}

/// One parent locator: which kind of path, and where its text is in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocatorEntry {
    /// "W2ru", "W2ku" ...
    pub code: [u8; 4],
    /// Bytes of text.
    pub length: u32,
    /// Where in the file.
    pub offset: u64,
}

/// The dynamic header: where the blocks are and who the parent is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DynamicHeader {
    /// Where the BAT is.
    pub table_offset: u64,
    /// Entries it has room for.
    pub max_entries: u32,
    /// Bytes of data in a block.
    pub block_size: u32,
    /// The parent's unique ID.
    pub parent_id: Guid,
    /// The parent's timestamp when the child was made; 0 where the writer left it out.
    pub parent_timestamp: u32,
    /// The parent's name, as stored.
    pub parent_name: String,
    /// Where else its name is.
    pub locators: Vec<LocatorEntry>,
}

impl DynamicHeader {
    /// Checks a header read at file `offset` for a disk of `size` bytes in a file of `file_len` bytes.
    pub fn parse(bytes: &[u8], offset: u64, size: u64, file_len: u64) -> Result<DynamicHeader, Defect> {
        let defect = |rule, field: &'static str, found: String, wanted: String| {
            Defect::new(rule, format!("VHD dynamic header, {field}"), offset, found, wanted)
        };
        if !bytes.starts_with(DYNAMIC_COOKIE) {
            let found = format!("{:02x?}", bytes.get(..8).unwrap_or_default());
            return Err(defect(Rule::FileParameters, "cookie", found, "\"cxsparse\"".into()));
        }
        let (found, wanted) = (u32_at(bytes, 36), checksum(bytes, 36));
        if found != wanted {
            let found = format!("{found:#010x}");
            return Err(defect(Rule::Checksum, "checksum", found, format!("{wanted:#010x}")));
        }
        let version = u32_at(bytes, 24);
        if version >> 16 != VERSION >> 16 {
            return Err(defect(
                Rule::Version,
                "version",
                format!("{version:#x}"),
                "0x10000".into(),
            ));
        }
        let block_size = u32_at(bytes, 32);
        if !block_size.is_power_of_two() || u64::from(block_size) < SECTOR || block_size > 256 << 20 {
            let wanted = "a power of two from 512 bytes to 256 MiB".into();
            return Err(defect(
                Rule::FileParameters,
                "block size",
                block_size.to_string(),
                wanted,
            ));
        }
        let max_entries = u32_at(bytes, 28);
        let needed = size.div_ceil(u64::from(block_size));
        if u64::from(max_entries) < needed {
            let wanted = format!("at least {needed}");
            return Err(defect(Rule::BatTooSmall, "entries", max_entries.to_string(), wanted));
        }
        let table_offset = u64_at(bytes, 16);
        let end = needed.checked_mul(4).and_then(|len| table_offset.checked_add(len));
        if table_offset < SECTOR || end.is_none_or(|end| end > file_len) {
            let found = format!("{table_offset:#x}, {needed} entries");
            let wanted = format!("inside the file of {file_len} bytes");
            return Err(defect(Rule::BeyondEof, "BAT offset", found, wanted));
        }
        let name: Vec<u16> = (0..256)
            .map(|i| u16::from_be_bytes(array(bytes, 64 + i * 2)))
            .take_while(|&unit| unit != 0)
            .collect();
        let locators = (0..LOCATORS)
            .map(|i| {
                let at = 576 + i * 24;
                LocatorEntry {
                    code: array(bytes, at),
                    length: u32_at(bytes, at + 8),
                    offset: u64_at(bytes, at + 16),
                }
            })
            .filter(|entry| entry.code != [0; 4])
            .collect();
        Ok(DynamicHeader {
            table_offset,
            max_entries,
            block_size,
            parent_id: Guid::from_stored(array(bytes, 40)),
            parent_timestamp: u32_at(bytes, 56),
            parent_name: String::from_utf16_lossy(&name),
            locators,
        })
    }

    /// The 1024 bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_LEN as usize];
        put(&mut bytes, 0, DYNAMIC_COOKIE);
        put(&mut bytes, 8, &u64::MAX.to_be_bytes());
        put(&mut bytes, 16, &self.table_offset.to_be_bytes());
        put(&mut bytes, 24, &VERSION.to_be_bytes());
        put(&mut bytes, 28, &self.max_entries.to_be_bytes());
        put(&mut bytes, 32, &self.block_size.to_be_bytes());
        put(&mut bytes, 40, &self.parent_id.to_stored());
        put(&mut bytes, 56, &self.parent_timestamp.to_be_bytes());
        for (i, unit) in self.parent_name.encode_utf16().take(255).enumerate() {
            put(&mut bytes, 64 + i * 2, &unit.to_be_bytes());
        }
        for (i, entry) in self.locators.iter().take(LOCATORS).enumerate() {
            let at = 576 + i * 24;
            put(&mut bytes, at, &entry.code);
            // COMPAT: specified in sectors; Windows stores bytes, and readers use the length.
            let space = align_up(u64::from(entry.length), SECTOR).unwrap_or(0) as u32;
            put(&mut bytes, at + 4, &space.to_be_bytes());
            put(&mut bytes, at + 8, &entry.length.to_be_bytes());
            put(&mut bytes, at + 16, &entry.offset.to_be_bytes());
        }
        let sum = checksum(&bytes, 36);
        put(&mut bytes, 36, &sum.to_be_bytes());
        bytes
    }
}

/// Bytes of sector bitmap before the data of a block.
pub fn bitmap_len(block_size: u32) -> u64 {
    let bytes = (u64::from(block_size) / SECTOR).div_ceil(8);
    bytes.div_ceil(SECTOR) * SECTOR
}

/// The bit of `sector` (most significant first, the reverse of VHDX), and the number of sectors, at most `max`, that
/// share it.
pub fn run_length(bitmap: &[u8], sector: u64, max: u64) -> (bool, u64) {
    let bit = |sector: u64| {
        let byte = usize::try_from(sector / 8).ok().and_then(|at| bitmap.get(at));
        byte.is_some_and(|byte| byte & (0x80 >> (sector % 8)) != 0)
    };
    let first = bit(sector);
    let mut len = 1;
    while len < max && bit(sector + len) == first {
        len += 1;
    }
    (first, len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footer() -> Footer {
        Footer {
            data_offset: 512,
            timestamp: 7,
            creator: *b"win ",
            creator_version: 0xA0000,
            current_size: 10_485_760,
            disk_type: DiskType::Dynamic,
            unique_id: Guid::from_stored([9; 16]),
            saved_state: false,
        }
    }

    #[test]
    fn footers_and_headers_come_back() {
        let bytes = footer().encode();
        assert_eq!(Footer::parse(&bytes, 0).unwrap(), footer());
        assert_eq!(Footer::parse(&bytes[..511], 0).unwrap(), footer());
        let header = DynamicHeader {
            table_offset: 0x600,
            max_entries: 5,
            block_size: 2 << 20,
            parent_id: Guid::from_stored([3; 16]),
            parent_timestamp: 77,
            parent_name: "C:\\é.vhd".into(),
            locators: vec![LocatorEntry {
                code: *b"W2ru",
                length: 32,
                offset: 4096,
            }],
        };
        let parse = |bytes: &[u8], len| DynamicHeader::parse(bytes, 512, 10_485_760, len);
        assert_eq!(parse(&header.encode(), 1 << 20).unwrap(), header);
        assert_eq!(parse(&header.encode(), 0x600).unwrap_err().rule, Rule::BeyondEof);
        for at in 0..512 {
            let mut broken = bytes.clone();
            broken[at] ^= 0x10;
            assert!(Footer::parse(&broken, 0).is_err(), "{at}");
        }
    }

    #[test]
    fn geometry_is_that_of_windows() {
        assert_eq!(chs(10_485_760 / 512), (301, 4, 17));
        assert_eq!(chs(136_365_211_648 / 512), (65278, 16, 255));
    }

    #[test]
    fn bits_run_from_the_most_significant() {
        assert_eq!(run_length(&[0b1100_0000, 0], 0, 16), (true, 2));
        assert_eq!(run_length(&[0b1100_0000, 0], 2, 14), (false, 14));
        assert_eq!(run_length(&[0xFF, 0xFF], 3, 5), (true, 5));
        assert_eq!(
            (bitmap_len(2 << 20), bitmap_len(512), bitmap_len(4 << 20)),
            (512, 512, 1024)
        );
    }
}
