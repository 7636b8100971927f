//! The two region tables (MS-VHDX 2.2.3).

use super::{crc, wire};
use crate::error::{Defect, Rule};
use crate::guid::Guid;
use crate::limits;
use crate::units::{KIB, MIB};

/// Where the copies are, in bytes.
pub const OFFSETS: [u64; 2] = [192 * KIB, 256 * KIB];
/// Bytes of a copy.
pub const SIZE: usize = 64 << 10;
/// The BAT region.
pub const BAT: Guid = Guid::from_u128(0x2DC27766_F623_4200_9D64_115E9BFD4A08);
/// The metadata region.
pub const METADATA: Guid = Guid::from_u128(0x8B7CA206_4790_4B9A_B8FE_575F050F886E);

const SIGNATURE: &[u8; 4] = b"regi";
const MAX_ENTRIES: u32 = 2047;

/// A range of the file with a purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// The purpose.
    pub guid: Guid,
    /// Bytes, a multiple of 1 MiB.
    pub offset: u64,
    /// Bytes, a multiple of 1 MiB.
    pub length: u32,
    /// Whoever does not know it must not open the file.
    pub required: bool,
}

/// A table that has a BAT and a metadata region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionTable {
    /// All regions, in table order.
    pub regions: Vec<Region>,
    bat: Region,
    metadata: Region,
}

/// The table to go by.
#[derive(Debug, Clone)]
pub struct SelectedTable {
    /// Its content.
    pub table: RegionTable,
    /// Both copies are valid and equal.
    pub copies_agree: bool,
}

impl RegionTable {
    /// A table of these regions, which include a BAT and a metadata region.
    pub fn new(regions: Vec<Region>) -> Self {
        let find = |guid| {
            regions.iter().find(|r| r.guid == guid).copied().unwrap_or(Region {
                guid,
                offset: 0,
                length: 0,
                required: true,
            })
        };
        RegionTable {
            bat: find(BAT),
            metadata: find(METADATA),
            regions,
        }
    }

    /// The BAT region.
    pub fn bat(&self) -> &Region {
        &self.bat
    }

    /// The metadata region.
    pub fn metadata(&self) -> &Region {
        &self.metadata
    }

    /// Parses a copy whose signature and checksum are right. `offset` is where it is in the file.
    fn parse(bytes: &[u8], offset: u64, file_len: u64) -> Result<Self, Defect> {
        let count = wire::u32(bytes, 8);
        if count > MAX_ENTRIES {
            return Err(Defect::new(
                Rule::RegionCount,
                "region table",
                offset,
                format!("{count} entries"),
                "at most 2047",
            ));
        }
        let mut regions: Vec<Region> = Vec::new();
        let entries = bytes.get(16..).unwrap_or_default().chunks_exact(32);
        for ((i, entry), at) in entries.enumerate().zip((offset.saturating_add(16)..).step_by(32)) {
            if u32::try_from(i).is_ok_and(|i| i >= count) {
                break;
            }
            let region = Region {
                guid: wire::guid(entry, 0),
                offset: wire::u64(entry, 16),
                length: wire::u32(entry, 24),
                required: wire::u32(entry, 28) & 1 != 0,
            };
            region.check(at, file_len)?;
            let defect = |rule, found: String, wanted| {
                Err(Defect::new(rule, format!("region table entry {i}"), at, found, wanted))
            };
            if regions.iter().any(|r| r.guid == region.guid) {
                return defect(Rule::RegionDuplicate, region.guid.to_string(), "each region once");
            }
            if let Some(other) = regions.iter().find(|r| region.overlaps(r.offset, u64::from(r.length))) {
                let found = format!("{region}, which shares space with {other}");
                return defect(Rule::Overlap, found, "regions apart from each other");
            }
            regions.push(region);
        }
        for (guid, name) in [(BAT, "BAT"), (METADATA, "metadata")] {
            if !regions.iter().any(|r| r.guid == guid) {
                let found = format!("no {name} region");
                let wanted = "a BAT and a metadata region";
                return Err(Defect::new(Rule::MissingRegion, "region table", offset, found, wanted));
            }
        }
        Ok(RegionTable::new(regions))
    }

    /// The 64 KiB of a copy, checksum included.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; SIZE];
        wire::put(&mut bytes, 0, SIGNATURE);
        let count = u32::try_from(self.regions.len()).unwrap_or(MAX_ENTRIES);
        wire::put(&mut bytes, 8, &count.to_le_bytes());
        for (region, entry) in self
            .regions
            .iter()
            .zip(bytes.get_mut(16..).unwrap_or_default().chunks_exact_mut(32))
        {
            wire::put(entry, 0, &region.guid.to_stored());
            wire::put(entry, 16, &region.offset.to_le_bytes());
            wire::put(entry, 24, &region.length.to_le_bytes());
            wire::put(entry, 28, &u32::from(region.required).to_le_bytes());
        }
        let checksum = crc::crc32c_with_zeroed_checksum(&bytes);
        wire::put(&mut bytes, 4, &checksum.to_le_bytes());
        bytes
    }

    /// That the log lies apart from every region.
    pub fn check_log(&self, log_offset: u64, log_length: u32) -> Result<(), Defect> {
        match self
            .regions
            .iter()
            .find(|r| r.overlaps(log_offset, u64::from(log_length)))
        {
            Some(region) if log_length != 0 => Err(Defect::new(
                Rule::Overlap,
                "log",
                log_offset,
                format!("{log_length:#x} bytes that share space with {region}"),
                "a log apart from the regions",
            )),
            _ => Ok(()),
        }
    }
}

impl Region {
    fn overlaps(&self, offset: u64, length: u64) -> bool {
        wire::overlap(self.offset, u64::from(self.length), offset, length)
    }

    fn check(&self, at: u64, file_len: u64) -> Result<(), Defect> {
        let defect = |rule, wanted: &'static str| Err(Defect::new(rule, "region table", at, self.to_string(), wanted));
        let known = self.guid == BAT || self.guid == METADATA;
        if !known && self.required {
            return defect(
                Rule::UnknownRegion,
                "only regions this library knows marked as required",
            );
        }
        if self.offset % MIB != 0 || self.offset < MIB || self.length == 0 || u64::from(self.length) % MIB != 0 {
            return defect(
                Rule::RegionRange,
                "offset and length in multiples of 1 MiB, behind the header area, not empty",
            );
        }
        let end = self.offset.checked_add(u64::from(self.length));
        if end.is_none_or(|end| end > limits::MAX_FILE_LEN) || (known && end.is_none_or(|end| end > file_len)) {
            return defect(Rule::RegionRange, "a region inside the file");
        }
        let most = match self.guid {
            BAT => limits::MAX_BAT_REGION_LEN,
            METADATA => limits::MAX_METADATA_REGION_LEN,
            _ => u32::MAX,
        };
        if self.length > most {
            return defect(
                Rule::RegionRange,
                "a BAT of at most 513 MiB and metadata of at most 128 MiB",
            );
        }
        Ok(())
    }
}

impl std::fmt::Display for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "region {} of {:#x} bytes at {:#x}",
            self.guid, self.length, self.offset
        )
    }
}

/// Chooses the first copy that is valid and checks it.
pub fn select(copies: [&[u8]; 2], file_len: u64) -> Result<SelectedTable, Defect> {
    let valid = |bytes: &[u8]| {
        bytes.len() == SIZE
            && bytes.starts_with(SIGNATURE)
            && wire::u32(bytes, 4) == crc::crc32c_with_zeroed_checksum(bytes)
    };
    let [first, second] = copies;
    let [first_offset, second_offset] = OFFSETS;
    let (bytes, offset) = match () {
        _ if valid(first) => (first, first_offset),
        _ if valid(second) => (second, second_offset),
        _ => {
            return Err(Defect::new(
                Rule::NoRegionTable,
                "region tables",
                first_offset,
                "no valid copy",
                "one copy with the right signature and checksum",
            ))
        }
    };
    Ok(SelectedTable {
        table: RegionTable::parse(bytes, offset, file_len)?,
        copies_agree: first == second,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(guid: Guid, mib: u64, required: bool) -> Region {
        Region {
            guid,
            offset: mib * MIB,
            length: 1 << 20,
            required,
        }
    }

    fn rule(regions: Vec<Region>) -> Rule {
        let bytes = RegionTable::new(regions).encode();
        select([&bytes, &bytes], 8 * MIB).unwrap_err().rule
    }

    #[test]
    fn checksums_of_real_tables() {
        for (table, crc) in [
            (vec![region(BAT, 3, true), region(METADATA, 2, true)], 0xC66B_8CAE),
            (vec![region(METADATA, 2, true), region(BAT, 3, true)], 0x1C14_2859),
            (vec![region(BAT, 2, false), region(METADATA, 3, false)], 0x2C6F_CE83),
        ] {
            let bytes = RegionTable::new(table.clone()).encode();
            assert_eq!(wire::u32(&bytes, 4), crc);
            let selected = select([&bytes, &bytes], 4 * MIB).unwrap();
            assert_eq!(selected.table.regions, table);
            assert!(selected.copies_agree);
        }
    }

    #[test]
    fn one_good_copy_is_enough() {
        let good = RegionTable::new(vec![region(BAT, 3, true), region(METADATA, 2, true)]).encode();
        let mut bad = good.clone();
        bad[20] ^= 1;
        assert!(!select([&bad, &good], 4 * MIB).unwrap().copies_agree);
        assert!(!select([&good, &bad], 4 * MIB).unwrap().copies_agree);
        assert_eq!(select([&bad, &bad], 4 * MIB).unwrap_err().rule, Rule::NoRegionTable);
    }

    #[test]
    fn every_rule_is_enforced() {
        let (bat, metadata) = (region(BAT, 3, true), region(METADATA, 2, true));
        let unknown = Guid::from_u128(1);
        assert_eq!(rule(vec![bat]), Rule::MissingRegion);
        assert_eq!(rule(vec![bat, metadata, bat]), Rule::RegionDuplicate);
        assert_eq!(rule(vec![bat, metadata, region(unknown, 4, true)]), Rule::UnknownRegion);
        assert_eq!(rule(vec![bat, metadata, region(unknown, 3, false)]), Rule::Overlap);
        for bad in [
            Region { offset: 0, ..bat },
            Region {
                offset: MIB + 512,
                ..bat
            },
            Region { length: 0, ..bat },
            Region { length: 4096, ..bat },
            Region { offset: 8 * MIB, ..bat },
            Region {
                offset: u64::MAX << 20,
                ..bat
            },
            Region {
                length: 514 << 20,
                ..bat
            },
        ] {
            assert_eq!(rule(vec![bad, metadata]), Rule::RegionRange, "{bad}");
        }
        let mut bytes = RegionTable::new(vec![bat, metadata]).encode();
        bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        let crc = crc::crc32c_with_zeroed_checksum(&bytes);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(select([&bytes, &bytes], 8 * MIB).unwrap_err().rule, Rule::RegionCount);
        let table = RegionTable::new(vec![bat, metadata]);
        assert!(table.check_log(MIB, 1 << 20).is_ok());
        assert_eq!(table.check_log(2 * MIB, 1 << 20).unwrap_err().rule, Rule::Overlap);
    }
}
