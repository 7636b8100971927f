//! BAT entries (MS-VHDX 2.5.1).

use crate::error::{Defect, Rule};
use crate::limits;
use crate::units::{BatIndex, MIB};

/// What a payload block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadState {
    /// Nothing here: the parent's, or zeros.
    NotPresent,
    /// Content the writer left undefined; reads as zeros, never as the parent.
    Undefined,
    /// Zeros.
    Zero,
    /// Trimmed; reads as zeros, never as the parent.
    Unmapped,
    /// All of it is in the file.
    FullyPresent,
    /// The sectors whose bits are set are in the file, the others are the parent's.
    PartiallyPresent,
}

impl PayloadState {
    /// Whether the block has content in the file.
    pub fn is_present(self) -> bool {
        matches!(self, PayloadState::FullyPresent | PayloadState::PartiallyPresent)
    }

    fn code(self) -> u64 {
        match self {
            PayloadState::NotPresent => 0,
            PayloadState::Undefined => 1,
            PayloadState::Zero => 2,
            PayloadState::Unmapped => 3,
            PayloadState::FullyPresent => 6,
            PayloadState::PartiallyPresent => 7,
        }
    }
}

/// Entry of a payload block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PayloadEntry {
    /// What the block is.
    pub state: PayloadState,
    /// Where it is, in bytes. 0 for states without a place; a trimmed block may keep one (an anchor).
    pub file_offset: u64,
}

/// Entry of a sector bitmap block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitmapEntry {
    /// Whether there is one.
    pub present: bool,
    /// Where, in bytes; 0 if there is none.
    pub file_offset: u64,
}

type Broken = (Rule, &'static str);

/// State code and file offset, with what holds for every kind of entry checked.
fn split(raw: u64) -> Result<(u64, u64), Broken> {
    if raw & 0xF_FFF8 != 0 {
        return Err((Rule::BatReserved, "bits 3 to 19 zero"));
    }
    Ok((raw & 7, raw & !(MIB.wrapping_sub(1))))
}

fn place(file_offset: u64) -> Result<u64, Broken> {
    match file_offset {
        MIB..=limits::MAX_FILE_LEN => Ok(file_offset),
        _ => Err((Rule::BatOffset, "an offset from 1 MiB to 256 TiB")),
    }
}

impl PayloadEntry {
    /// Decodes a word of the BAT. On failure: the rule and what it wants.
    pub fn decode(raw: u64, differencing: bool) -> Result<Self, Broken> {
        let (code, offset) = split(raw)?;
        let anchor = |state| {
            let file_offset = if offset == 0 { 0 } else { place(offset)? };
            Ok(PayloadEntry { state, file_offset })
        };
        let without = |state| Ok(PayloadEntry { state, file_offset: 0 });
        let with = |state| {
            let file_offset = place(offset)?;
            Ok(PayloadEntry { state, file_offset })
        };
        match code {
            0 => without(PayloadState::NotPresent),
            1 => anchor(PayloadState::Undefined),
            2 => without(PayloadState::Zero),
            3 => anchor(PayloadState::Unmapped),
            6 => with(PayloadState::FullyPresent),
            7 if differencing => with(PayloadState::PartiallyPresent),
            7 => Err((Rule::BatState, "a state other than 7 in a disk without parent")),
            _ => Err((Rule::BatState, "state 0, 1, 2, 3, 6 or 7")),
        }
    }

    /// Decodes a word that [`PayloadEntry::decode`] accepts; another one as a block that is not present.
    #[inline]
    pub fn decode_valid(raw: u64) -> Self {
        let offset = raw & !(MIB.wrapping_sub(1));
        let (state, file_offset) = match raw & 7 {
            1 => (PayloadState::Undefined, offset),
            2 => (PayloadState::Zero, 0),
            3 => (PayloadState::Unmapped, offset),
            6 => (PayloadState::FullyPresent, offset),
            7 => (PayloadState::PartiallyPresent, offset),
            _ => (PayloadState::NotPresent, 0),
        };
        PayloadEntry { state, file_offset }
    }

    /// The word of the BAT.
    pub fn encode(&self) -> u64 {
        self.state.code() | self.file_offset
    }

    /// Whether file space belongs to the block.
    pub fn has_space(&self) -> bool {
        self.file_offset != 0
    }
}

impl BitmapEntry {
    /// Decodes a word of the BAT.
    pub fn decode(raw: u64) -> Result<Self, Broken> {
        match split(raw)? {
            (0, _) => Ok(BitmapEntry {
                present: false,
                file_offset: 0,
            }),
            (6, offset) => Ok(BitmapEntry {
                present: true,
                file_offset: place(offset)?,
            }),
            _ => Err((Rule::SbState, "state 0 or 6")),
        }
    }

    /// The word of the BAT.
    pub fn encode(&self) -> u64 {
        match self.present {
            true => 6 | self.file_offset,
            false => 0,
        }
    }
}

/// A broken entry, for the report.
pub fn defect(rule: Rule, wanted: &'static str, index: BatIndex, bat_offset: u64, raw: u64) -> Defect {
    Defect::new(
        rule,
        format!("BAT entry {}", index.0),
        bat_offset.saturating_add(index.0.saturating_mul(8)),
        format!("state {} at {:#x} ({raw:#018x})", raw & 7, raw & !(MIB.wrapping_sub(1))),
        wanted,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_a_real_file() {
        let block0 = PayloadEntry::decode(u64::from_le_bytes([7, 0, 0xA0, 1, 0, 0, 0, 0]), true).unwrap();
        assert_eq!(block0.state, PayloadState::PartiallyPresent);
        assert_eq!(block0.file_offset, 26 * MIB);
        assert_eq!(block0.encode(), 0x01A0_0007);
        let sb0 = BitmapEntry::decode(u64::from_le_bytes([6, 0, 0x70, 0, 0, 0, 0, 0])).unwrap();
        assert_eq!((sb0.present, sb0.file_offset, sb0.encode()), (true, 7 * MIB, 0x70_0006));
    }

    #[test]
    fn states_without_a_place_ignore_the_offset_and_anchors_keep_it() {
        for (code, kept) in [(0, 0), (1, MIB), (2, 0), (3, MIB)] {
            assert_eq!(PayloadEntry::decode(MIB | code, false).unwrap().file_offset, kept);
        }
    }

    #[test]
    fn valid_words_are_decoded_the_same_without_looking_for_defects() {
        for raw in (0..8).flat_map(|code| [code, (3 * MIB) | code, limits::MAX_FILE_LEN | code]) {
            if let Ok(entry) = PayloadEntry::decode(raw, true) {
                assert_eq!(PayloadEntry::decode_valid(raw), entry, "{raw:#x}");
            }
        }
    }

    #[test]
    fn broken_entries_are_refused() {
        let rule = |raw, differencing| PayloadEntry::decode(raw, differencing).unwrap_err().0;
        assert_eq!(rule(MIB | 4, true), Rule::BatState);
        assert_eq!(rule(MIB | 5, true), Rule::BatState);
        assert_eq!(rule(MIB | 7, false), Rule::BatState);
        assert_eq!(rule(MIB | 8 | 6, true), Rule::BatReserved);
        assert_eq!(rule(6, true), Rule::BatOffset);
        assert_eq!(rule(!0xF_FFFF | 6, true), Rule::BatOffset);
        assert_eq!(BitmapEntry::decode(MIB | 7).unwrap_err().0, Rule::SbState);
        assert_eq!(BitmapEntry::decode(6).unwrap_err().0, Rule::BatOffset);
    }
}
