//! The two headers (MS-VHDX 2.2.2).

use super::{crc, wire};
use crate::error::{Defect, Rule};
use crate::guid::Guid;
use crate::limits;
use crate::units::{KIB, MIB};

/// Where the copies are, in bytes.
pub const OFFSETS: [u64; 2] = [64 * KIB, 128 * KIB];
/// Bytes of a copy.
pub const SIZE: usize = 4096;

const SIGNATURE: &[u8; 4] = b"head";
const NAMES: [&str; 2] = ["header 1", "header 2"];

/// One copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The valid copy with the larger number is current.
    pub sequence_number: u64,
    /// Changes before the first modification of any kind in each writable open.
    pub file_write_guid: Guid,
    /// Identity of what the disk reads as; children record it.
    pub data_write_guid: Guid,
    /// Zero: the log must not be replayed. Otherwise: the log entries that count carry this.
    pub log_guid: Guid,
    /// 0.
    pub log_version: u16,
    /// 1.
    pub version: u16,
    /// Bytes, a multiple of 1 MiB.
    pub log_length: u32,
    /// Bytes, a multiple of 1 MiB.
    pub log_offset: u64,
}

/// The header to go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Current {
    /// Its content.
    pub header: Header,
    /// Which copy it is: 0 or 1.
    pub slot: usize,
    /// Both copies are valid.
    pub copies_agree: bool,
}

impl Header {
    /// The copy, if signature and checksum are right.
    pub fn parse(bytes: &[u8]) -> Option<Header> {
        let bytes = bytes.get(..SIZE)?;
        let valid = bytes.starts_with(SIGNATURE) && wire::u32(bytes, 4) == crc::crc32c_with_zeroed_checksum(bytes);
        valid.then(|| Header {
            sequence_number: wire::u64(bytes, 8),
            file_write_guid: wire::guid(bytes, 16),
            data_write_guid: wire::guid(bytes, 32),
            log_guid: wire::guid(bytes, 48),
            log_version: wire::u16(bytes, 64),
            version: wire::u16(bytes, 66),
            log_length: wire::u32(bytes, 68),
            log_offset: wire::u64(bytes, 72),
        })
    }

    /// The 4 KiB to write, checksum included.
    pub fn encode(&self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        wire::put(&mut bytes, 0, SIGNATURE);
        wire::put(&mut bytes, 8, &self.sequence_number.to_le_bytes());
        wire::put(&mut bytes, 16, &self.file_write_guid.to_stored());
        wire::put(&mut bytes, 32, &self.data_write_guid.to_stored());
        wire::put(&mut bytes, 48, &self.log_guid.to_stored());
        wire::put(&mut bytes, 64, &self.log_version.to_le_bytes());
        wire::put(&mut bytes, 66, &self.version.to_le_bytes());
        wire::put(&mut bytes, 68, &self.log_length.to_le_bytes());
        wire::put(&mut bytes, 72, &self.log_offset.to_le_bytes());
        let checksum = crc::crc32c_with_zeroed_checksum(&bytes);
        wire::put(&mut bytes, 4, &checksum.to_le_bytes());
        bytes
    }

    /// The rules a current header must follow before anything it says is used.
    fn check(&self, slot: usize, file_len: u64) -> Result<(), Defect> {
        let [first, second] = OFFSETS;
        let offset = if slot == 0 { first } else { second };
        let [first, second] = NAMES;
        let name = if slot == 0 { first } else { second };
        let defect = |rule, found: String, wanted| Err(Defect::new(rule, name, offset, found, wanted));
        if self.version != 1 {
            return defect(Rule::Version, format!("version {}", self.version), "version 1");
        }
        if !self.log_guid.is_zero() && self.log_version != 0 {
            return defect(
                Rule::LogVersion,
                format!("log version {}", self.log_version),
                "log version 0",
            );
        }
        let geometry = |found, wanted| defect(Rule::LogGeometry, found, wanted);
        if u64::from(self.log_length) % MIB != 0 || self.log_length > limits::MAX_LOG_LEN {
            return geometry(
                format!("log length {:#x}", self.log_length),
                "a multiple of 1 MiB, at most 1 GiB",
            );
        }
        if self.log_length == 0 {
            if !self.log_guid.is_zero() {
                return geometry("a log in use with length 0".into(), "a log of at least 1 MiB");
            }
            return Ok(());
        }
        if self.log_offset % MIB != 0 || self.log_offset < MIB {
            return geometry(
                format!("log offset {:#x}", self.log_offset),
                "a multiple of 1 MiB, at least 1 MiB",
            );
        }
        let end = self.log_offset.checked_add(u64::from(self.log_length));
        if end.is_none_or(|end| end > file_len) {
            return geometry(
                format!("a log of {:#x} bytes at {:#x}", self.log_length, self.log_offset),
                "a log inside the file",
            );
        }
        Ok(())
    }
}

/// Chooses the current header and checks it. A current header that cannot be used is an error: the older copy may
/// describe a file that no longer exists.
pub fn select(copies: [&[u8]; 2], file_len: u64) -> Result<Current, Defect> {
    let none = |found| {
        Err(Defect::new(
            Rule::NoHeader,
            "headers",
            OFFSETS.into_iter().next().unwrap_or_default(),
            found,
            "one copy with the right signature and checksum that is newer than the other",
        ))
    };
    let [first, second] = copies;
    let (header, slot, copies_agree) = match (Header::parse(first), Header::parse(second)) {
        (Some(a), Some(b)) if a.sequence_number > b.sequence_number => (a, 0, true),
        (Some(a), Some(b)) if a.sequence_number < b.sequence_number => (b, 1, true),
        (Some(a), Some(_)) if first.get(..SIZE) == second.get(..SIZE) => (a, 0, true),
        (Some(a), Some(_)) => return none(format!("two different headers numbered {}", a.sequence_number)),
        (Some(a), None) => (a, 0, false),
        (None, Some(b)) => (b, 1, false),
        (None, None) => return none("no valid copy".to_string()),
    };
    header.check(slot, file_len)?;
    Ok(Current {
        header,
        slot,
        copies_agree,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            sequence_number: 7,
            file_write_guid: Guid::parse("ccbd40d9-cf89-45da-8e46-a805ce97e20d").unwrap(),
            data_write_guid: Guid::parse("b298d413-f67e-412a-9a72-c7c7fc9b6cb5").unwrap(),
            log_guid: Guid::ZERO,
            log_version: 0,
            version: 1,
            log_length: 1 << 20,
            log_offset: 1 << 20,
        }
    }

    fn select_len(a: &Header, b: &Header, len: u64) -> Result<Current, Defect> {
        select([&a.encode(), &b.encode()], len)
    }

    #[test]
    fn encodes_a_header_that_windows_wrote() {
        let bytes = header().encode();
        assert_eq!(wire::u32(&bytes, 4), 0x937B_8E74);
        assert_eq!(&bytes[..16], b"\x68\x65\x61\x64\x74\x8e\x7b\x93\x07\0\0\0\0\0\0\0");
        assert_eq!(&bytes[64..80], b"\0\0\x01\0\0\0\x10\0\0\0\x10\0\0\0\0\0");
        assert_eq!(Header::parse(&bytes), Some(header()));
    }

    #[test]
    fn the_larger_valid_number_wins() {
        let newer = Header {
            sequence_number: 8,
            ..header()
        };
        assert_eq!(select_len(&header(), &newer, 4 << 20).unwrap().slot, 1);
        assert_eq!(select_len(&newer, &header(), 4 << 20).unwrap().slot, 0);
        let mut torn = newer.encode();
        torn[100] ^= 1;
        let current = select([&header().encode(), &torn], 4 << 20).unwrap();
        assert_eq!((current.slot, current.copies_agree), (0, false));
        assert_eq!(select([&torn, &torn], 4 << 20).unwrap_err().rule, Rule::NoHeader);
        assert_eq!(select([&[], &[]], 4 << 20).unwrap_err().rule, Rule::NoHeader);
    }

    #[test]
    fn equal_numbers_need_equal_content() {
        assert_eq!(select_len(&header(), &header(), 4 << 20).unwrap().slot, 0);
        let other = Header {
            data_write_guid: Guid::ZERO,
            ..header()
        };
        assert_eq!(select_len(&header(), &other, 4 << 20).unwrap_err().rule, Rule::NoHeader);
    }

    #[test]
    fn a_current_header_that_breaks_a_rule_is_an_error_whatever_the_other_says() {
        let guid = Guid::random();
        let broken = [
            (Rule::Version, Header { version: 2, ..header() }),
            (
                Rule::LogVersion,
                Header {
                    log_version: 1,
                    log_guid: guid,
                    ..header()
                },
            ),
            (
                Rule::LogGeometry,
                Header {
                    log_length: 4096,
                    ..header()
                },
            ),
            (
                Rule::LogGeometry,
                Header {
                    log_length: 0xFFF0_0000,
                    ..header()
                },
            ),
            (
                Rule::LogGeometry,
                Header {
                    log_offset: 0,
                    ..header()
                },
            ),
            (
                Rule::LogGeometry,
                Header {
                    log_offset: (1 << 20) + 512,
                    ..header()
                },
            ),
            (
                Rule::LogGeometry,
                Header {
                    log_offset: u64::MAX << 20,
                    ..header()
                },
            ),
            (
                Rule::LogGeometry,
                Header {
                    log_offset: 4 << 20,
                    ..header()
                },
            ),
            (
                Rule::LogGeometry,
                Header {
                    log_length: 0,
                    log_guid: guid,
                    ..header()
                },
            ),
        ];
        for (rule, newest) in broken {
            let newest = Header {
                sequence_number: 9,
                ..newest
            };
            assert_eq!(
                select_len(&newest, &header(), 4 << 20).unwrap_err().rule,
                rule,
                "{newest:?}"
            );
        }
    }
}
