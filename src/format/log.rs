//! Log entries (MS-VHDX 2.3.1).

use super::{crc, wire};
use crate::error::{Defect, Rule};
use crate::guid::Guid;
use crate::units::KIB;

/// Unit of the log and of every update, in bytes.
pub const SECTOR: u64 = 4096;

const SECTOR_USIZE: usize = 4096;
const HEADER: usize = 64;
const DESCRIPTOR: usize = 32;
const SIGNATURE: &[u8; 4] = b"loge";
const DATA_DESCRIPTOR: &[u8; 4] = b"desc";
const ZERO_DESCRIPTOR: &[u8; 4] = b"zero";
const DATA_SECTOR: &[u8; 4] = b"data";
/// The first byte an update may touch: the region tables. Identifier and headers never change through the log.
const FIRST_TARGET: u64 = 192 * KIB;

/// Entry header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryHeader {
    /// CRC-32C of the entry.
    pub checksum: u32,
    /// Bytes.
    pub entry_length: u32,
    /// Offset in the log of the oldest entry still needed.
    pub tail: u32,
    /// One more than the entry before.
    pub sequence_number: u64,
    /// Number of descriptors.
    pub descriptor_count: u32,
    /// The header's LogGuid when this was written.
    pub log_guid: Guid,
    /// A file length known durable when this was written.
    pub flushed_file_offset: u64,
    /// A file length that contains everything the entry refers to.
    pub last_file_offset: u64,
}

/// What an entry changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// This range becomes zero.
    Zero {
        /// Where.
        file_offset: u64,
        /// Bytes.
        length: u64,
    },
    /// This sector becomes `page`.
    Data {
        /// Where.
        file_offset: u64,
        /// Content.
        page: Box<[u8; SECTOR_USIZE]>,
    },
}

/// A valid entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its header.
    pub header: EntryHeader,
    /// In the order to apply.
    pub updates: Vec<Update>,
}

/// Sectors taken by the header and `descriptors` descriptors.
fn descriptor_sectors(descriptors: usize) -> usize {
    descriptors
        .saturating_mul(DESCRIPTOR)
        .saturating_add(HEADER)
        .div_ceil(SECTOR_USIZE)
}

/// Bytes of an entry.
pub fn entry_len(zero_descriptors: usize, data_descriptors: usize) -> u64 {
    let sectors =
        descriptor_sectors(zero_descriptors.saturating_add(data_descriptors)).saturating_add(data_descriptors);
    u64::try_from(sectors).unwrap_or(u64::MAX).saturating_mul(SECTOR)
}

impl EntryHeader {
    /// The header in the first sector of an entry, if the fields are possible in a log of `log_length` bytes whose
    /// header names `guid`.
    pub fn parse(sector: &[u8], guid: Guid, log_length: u32) -> Option<EntryHeader> {
        if !sector.starts_with(SIGNATURE) || sector.len() < HEADER {
            return None;
        }
        let header = EntryHeader {
            checksum: wire::u32(sector, 4),
            entry_length: wire::u32(sector, 8),
            tail: wire::u32(sector, 12),
            sequence_number: wire::u64(sector, 16),
            descriptor_count: wire::u32(sector, 24),
            log_guid: wire::guid(sector, 32),
            flushed_file_offset: wire::u64(sector, 48),
            last_file_offset: wire::u64(sector, 56),
        };
        let aligned = |value: u32| u64::from(value) % SECTOR == 0;
        let possible = header.log_guid == guid
            && !guid.is_zero()
            && aligned(header.entry_length)
            && header.entry_length != 0
            && header.entry_length <= log_length
            && aligned(header.tail)
            && header.tail < log_length
            && header.sequence_number != 0
            && wire::u32(sector, 28) == 0
            && u64::from(header.descriptor_count) <= u64::from(header.entry_length).saturating_sub(64) / 32;
        possible.then_some(header)
    }
}

impl Entry {
    /// Parses an entry from its bytes in ring order; says why it is not valid. Structure first, checksum last: what is
    /// not an entry costs little.
    pub fn parse(bytes: &[u8], guid: Guid, log_length: u32) -> Result<Entry, &'static str> {
        let header = EntryHeader::parse(bytes, guid, log_length).ok_or("an impossible entry header")?;
        if u64::try_from(bytes.len()) != Ok(u64::from(header.entry_length)) {
            return Err("an entry of another length");
        }
        let count = usize::try_from(header.descriptor_count).map_err(|_| "too many descriptors")?;
        let mut data = bytes.chunks_exact(SECTOR_USIZE).skip(descriptor_sectors(count));
        let mut updates = Vec::with_capacity(count);
        let descriptors = bytes.get(HEADER..).unwrap_or_default().chunks_exact(DESCRIPTOR);
        for descriptor in descriptors.take(count) {
            if wire::u64(descriptor, 24) != header.sequence_number {
                return Err("a descriptor of another entry");
            }
            // Targets, aligned or not, are for check_target: a valid entry with a wrong one must not pass for no entry.
            let file_offset = wire::u64(descriptor, 16);
            if descriptor.starts_with(ZERO_DESCRIPTOR) {
                let length = wire::u64(descriptor, 8);
                updates.push(Update::Zero { file_offset, length });
            } else if descriptor.starts_with(DATA_DESCRIPTOR) {
                let sector = data.next().ok_or("fewer data sectors than descriptors")?;
                let page =
                    rebuild(descriptor, sector, header.sequence_number).ok_or("a data sector of another entry")?;
                updates.push(Update::Data { file_offset, page });
            } else {
                return Err("an unknown descriptor");
            }
        }
        if updates.len() != count || data.next().is_some() {
            return Err("more data sectors than descriptors");
        }
        if header.checksum != crc::crc32c_with_zeroed_checksum(bytes) {
            return Err("a wrong checksum");
        }
        Ok(Entry { header, updates })
    }
}

/// The sector to write: the stored one with its first 8 and last 4 bytes from the descriptor.
fn rebuild(descriptor: &[u8], sector: &[u8], sequence_number: u64) -> Option<Box<[u8; SECTOR_USIZE]>> {
    let number = u64::from(wire::u32(sector, 4)) << 32 | u64::from(wire::u32(sector, 4092));
    if !sector.starts_with(DATA_SECTOR) || number != sequence_number {
        return None;
    }
    let mut page = Box::new([0; SECTOR_USIZE]);
    page.copy_from_slice(sector);
    wire::put(&mut *page, 0, descriptor.get(8..16)?);
    wire::put(&mut *page, 4092, descriptor.get(4..8)?);
    Some(page)
}

/// That an update stays where updates may go: behind the headers, outside the log, below `max_end`.
pub fn check_target(update: &Update, log_offset: u64, log_length: u32, max_end: u64) -> Result<(), Defect> {
    let (file_offset, length) = match update {
        Update::Zero { file_offset, length } => (*file_offset, *length),
        Update::Data { file_offset, .. } => (*file_offset, SECTOR),
    };
    let end = file_offset.checked_add(length);
    let allowed = file_offset % SECTOR == 0
        && length % SECTOR == 0
        && file_offset >= FIRST_TARGET
        && end.is_some_and(|end| end <= max_end)
        && !wire::overlap(file_offset, length, log_offset, u64::from(log_length));
    match allowed {
        true => Ok(()),
        false => Err(Defect::new(
            Rule::LogTarget,
            "log entry",
            log_offset,
            format!("an update of {length:#x} bytes at {file_offset:#x}"),
            format!("a target in 4 KiB units, behind the headers, outside the log and below {max_end:#x}"),
        )),
    }
}

/// The bytes of an entry. `entry_length`, `descriptor_count` and `checksum` of `header` are filled in.
pub fn encode_entry(header: &EntryHeader, zero: &[(u64, u64)], data: &[(u64, &[u8; SECTOR_USIZE])]) -> Vec<u8> {
    let length = entry_len(zero.len(), data.len());
    let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
    let count = zero.len().saturating_add(data.len());
    wire::put(&mut bytes, 0, SIGNATURE);
    wire::put(&mut bytes, 8, &u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    wire::put(&mut bytes, 12, &header.tail.to_le_bytes());
    wire::put(&mut bytes, 16, &header.sequence_number.to_le_bytes());
    wire::put(&mut bytes, 24, &u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
    wire::put(&mut bytes, 32, &header.log_guid.to_stored());
    wire::put(&mut bytes, 48, &header.flushed_file_offset.to_le_bytes());
    wire::put(&mut bytes, 56, &header.last_file_offset.to_le_bytes());
    let number = header.sequence_number.to_le_bytes();
    let (low, high) = number.split_at(4);
    let (descriptors, sectors) = bytes.split_at_mut(descriptor_sectors(count).saturating_mul(SECTOR_USIZE));
    let mut places = descriptors
        .get_mut(HEADER..)
        .unwrap_or_default()
        .chunks_exact_mut(DESCRIPTOR);
    for ((file_offset, length), place) in zero.iter().zip(places.by_ref()) {
        wire::put(place, 0, ZERO_DESCRIPTOR);
        wire::put(place, 8, &length.to_le_bytes());
        wire::put(place, 16, &file_offset.to_le_bytes());
        wire::put(place, 24, &number);
    }
    for (((file_offset, page), place), sector) in data.iter().zip(places).zip(sectors.chunks_exact_mut(SECTOR_USIZE)) {
        wire::put(place, 0, DATA_DESCRIPTOR);
        wire::put(place, 4, page.get(4092..).unwrap_or_default());
        wire::put(place, 8, page.get(..8).unwrap_or_default());
        wire::put(place, 16, &file_offset.to_le_bytes());
        wire::put(place, 24, &number);
        sector.copy_from_slice(&page[..]);
        wire::put(sector, 0, DATA_SECTOR);
        wire::put(sector, 4, high);
        wire::put(sector, 4092, low);
    }
    let checksum = crc::crc32c_with_zeroed_checksum(&bytes);
    wire::put(&mut bytes, 4, &checksum.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LOG: u32 = 1 << 20;

    fn header() -> EntryHeader {
        EntryHeader {
            checksum: 0,
            entry_length: 0,
            tail: 4096,
            sequence_number: 0x1122_3344_5566_7788,
            descriptor_count: 0,
            log_guid: Guid::from_u128(42),
            flushed_file_offset: 4 << 20,
            last_file_offset: 8 << 20,
        }
    }

    fn fix_checksum(bytes: &mut [u8]) {
        let crc = crc::crc32c_with_zeroed_checksum(bytes);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    }

    #[test]
    fn lengths() {
        for (zero, data, sectors) in [
            (0, 0, 1),
            (0, 1, 2),
            (0, 126, 127),
            (0, 127, 129),
            (126, 0, 1),
            (127, 0, 2),
        ] {
            assert_eq!(entry_len(zero, data), sectors * SECTOR, "{zero} {data}");
        }
    }

    #[test]
    fn round_trip_with_more_than_one_descriptor_sector() {
        let pages: Vec<[u8; 4096]> = (0..130).map(|i| [i as u8 + 1; 4096]).collect();
        let data: Vec<(u64, &[u8; 4096])> = pages
            .iter()
            .enumerate()
            .map(|(i, p)| ((i as u64 + 300) * 4096, p))
            .collect();
        let bytes = encode_entry(&header(), &[(2 << 20, 1 << 20)], &data);
        let entry = Entry::parse(&bytes, Guid::from_u128(42), LOG).unwrap();
        assert_eq!(entry.updates.len(), 131);
        assert_eq!(
            entry.updates[0],
            Update::Zero {
                file_offset: 2 << 20,
                length: 1 << 20
            }
        );
        for (update, (file_offset, page)) in entry.updates[1..].iter().zip(&data) {
            let expected = Update::Data {
                file_offset: *file_offset,
                page: Box::new(**page),
            };
            assert_eq!(*update, expected);
        }
        assert_eq!(entry.header.tail, 4096);
    }

    #[test]
    fn any_flipped_byte_makes_an_entry_invalid() {
        let bytes = encode_entry(&header(), &[], &[(1 << 20, &[9; 4096])]);
        for at in (0..bytes.len()).step_by(7) {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert!(Entry::parse(&bad, Guid::from_u128(42), LOG).is_err(), "{at}");
        }
        assert!(Entry::parse(&bytes, Guid::from_u128(43), LOG).is_err());
        assert!(Entry::parse(&bytes[..4096], Guid::from_u128(42), LOG).is_err());
    }

    #[test]
    fn structure_is_checked_besides_the_checksum() {
        let good = encode_entry(&header(), &[], &[(1 << 20, &[9; 4096])]);
        for (at, value) in [
            (8, 0u32),
            (8, 4096),
            (8, 12288),
            (8, u32::MAX),
            (12, 17),
            (12, LOG),
            (24, 2),
            (24, u32::MAX),
            (28, 1),
            (64, 0),
            (88, 0),
            (4096, 0),
            (4100, 0),
            (8188, 0),
        ] {
            let mut bad = good.clone();
            bad[at..at + 4].copy_from_slice(&value.to_le_bytes());
            fix_checksum(&mut bad);
            assert!(Entry::parse(&bad, Guid::from_u128(42), LOG).is_err(), "{at} {value}");
        }
    }

    #[test]
    fn targets_are_bounded() {
        let zero = |file_offset, length| check_target(&Update::Zero { file_offset, length }, 1 << 20, LOG, 8 << 20);
        assert!(zero(192 << 10, 4096).is_ok());
        assert!(zero(7 << 20, 1 << 20).is_ok());
        for (offset, length) in [
            (0, 4096),
            (128 << 10, 128 << 10),
            (1 << 20, 4096),
            (0x30000, 1 << 20),
            (8 << 20, 4096),
        ] {
            assert_eq!(
                zero(offset, length).unwrap_err().rule,
                Rule::LogTarget,
                "{offset} {length}"
            );
        }
        assert!(zero(0x30000 + 512, 4096).is_err() && zero(0x30000, 512).is_err());
        assert!(zero(u64::MAX - 4095, 8192).is_err());
        assert!(zero(2 << 20, u64::MAX - 4095).is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(patches in proptest::collection::vec((0usize..8192, any::<u8>()), 0..20), cut in 0usize..8192) {
            let mut bytes = encode_entry(&header(), &[(1 << 20, 4096)], &[(1 << 20, &[9; 4096])]);
            for (at, value) in patches {
                bytes[at] = value;
            }
            fix_checksum(&mut bytes);
            let _ = Entry::parse(&bytes, Guid::from_u128(42), LOG);
            let _ = Entry::parse(&bytes[..cut], Guid::from_u128(42), LOG);
        }
    }
}
