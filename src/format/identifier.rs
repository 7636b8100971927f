//! File identifier (MS-VHDX 2.2.1).

use super::wire;
use crate::error::{Defect, Rule};

const SIGNATURE: &[u8; 8] = b"vhdxfile";
/// UTF-16 code units of the creator.
const CREATOR_UNITS: usize = 256;
/// Bytes on disk, mostly reserved.
const SIZE: usize = 64 << 10;

/// The first structure of the file: that it is a VHDX, and who made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identifier {
    /// For people only; must never influence behaviour.
    pub creator: String,
}

impl Identifier {
    /// Parses the first 520 bytes of a file.
    pub fn parse(bytes: &[u8]) -> Result<Self, Defect> {
        let found = bytes.get(..8).unwrap_or_default();
        if found != SIGNATURE {
            return Err(Defect::new(
                Rule::Signature,
                "file identifier",
                0,
                format!("{:?}", String::from_utf8_lossy(found)),
                "\"vhdxfile\"",
            ));
        }
        let units = bytes
            .get(8..520)
            .unwrap_or_default()
            .chunks_exact(2)
            .map(|unit| wire::u16(unit, 0))
            .take_while(|&unit| unit != 0);
        Ok(Identifier {
            creator: char::decode_utf16(units)
                .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
                .collect(),
        })
    }

    /// The 64 KiB at the start of a new file.
    pub fn encode(creator: &str) -> Vec<u8> {
        let mut bytes = vec![0; SIZE];
        wire::put(&mut bytes, 0, SIGNATURE);
        for (place, unit) in bytes
            .chunks_exact_mut(2)
            .skip(4)
            .zip(creator.encode_utf16().take(CREATOR_UNITS))
        {
            place.copy_from_slice(&unit.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn creator_round_trips_and_is_bounded() {
        let parsed = Identifier::parse(&Identifier::encode("libavhdx ü")).unwrap();
        assert_eq!(parsed.creator, "libavhdx ü");
        let long = "x".repeat(1000);
        assert_eq!(
            Identifier::parse(&Identifier::encode(&long)).unwrap().creator.len(),
            256
        );
        assert_eq!(Identifier::parse(b"conectix").unwrap_err().rule, Rule::Signature);
        assert_eq!(Identifier::parse(b"").unwrap_err().rule, Rule::Signature);
    }
}
