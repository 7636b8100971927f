//! GUIDs in the mixed-endian layout Microsoft stores them in (first three groups little-endian, §1.2 of the format notes).

use std::fmt;

/// A 16-byte GUID, kept in its stored form.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Guid([u8; 16]);

impl Guid {
    /// The all-zero GUID: "none" wherever the format allows it.
    pub const ZERO: Guid = Guid([0; 16]);

    /// From the bytes as stored in a file.
    pub const fn from_stored(bytes: [u8; 16]) -> Self {
        Guid(bytes)
    }

    /// The bytes as stored in a file.
    pub const fn to_stored(self) -> [u8; 16] {
        self.0
    }

    /// From the text form read as a big-endian number: `0x2DC27766_F623_4200_9D64_115E9BFD4A08`.
    pub const fn from_u128(text: u128) -> Self {
        let b = text.to_be_bytes();
        Guid([
            b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15],
        ])
    }

    /// A fresh random GUID (RFC 4122 version 4, never zero).
    pub fn random() -> Self {
        Guid(uuid::Uuid::new_v4().to_bytes_le())
    }

    /// True for the all-zero GUID.
    pub fn is_zero(self) -> bool {
        self == Guid::ZERO
    }

    /// Parses the text form, in any case, with or without braces.
    pub fn parse(text: &str) -> Option<Self> {
        let inner = match (text.strip_prefix('{'), text.ends_with('}')) {
            (Some(rest), true) => &rest[..rest.len() - 1],
            (None, false) => text,
            _ => return None,
        };
        if inner.len() != 36 {
            return None;
        }
        uuid::Uuid::try_parse(inner).ok().map(|u| Guid(u.to_bytes_le()))
    }

    /// The text form in braces, as the parent locator stores it.
    pub fn braced(self) -> String {
        format!("{{{self}}}")
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_bytes_le(self.0).hyphenated().fmt(f)
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Guid {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAT: Guid = Guid::from_u128(0x2DC27766_F623_4200_9D64_115E9BFD4A08);

    #[test]
    fn first_three_groups_are_stored_little_endian() {
        let stored = [
            0x66, 0x77, 0xC2, 0x2D, 0x23, 0xF6, 0x00, 0x42, 0x9D, 0x64, 0x11, 0x5E, 0x9B, 0xFD, 0x4A, 0x08,
        ];
        assert_eq!(BAT.to_stored(), stored);
        assert_eq!(Guid::from_stored(stored), BAT);
    }

    #[test]
    fn text_is_read_in_any_case_with_or_without_braces() {
        for text in [
            "2DC27766-F623-4200-9D64-115E9BFD4A08",
            "2dc27766-f623-4200-9d64-115e9bfd4a08",
            "{2dc27766-f623-4200-9d64-115e9bfd4a08}",
        ] {
            assert_eq!(Guid::parse(text), Some(BAT), "{text}");
        }
        assert_eq!(BAT.to_string(), "2dc27766-f623-4200-9d64-115e9bfd4a08");
        assert_eq!(Guid::parse(&BAT.braced()), Some(BAT));
    }

    #[test]
    fn malformed_text_is_refused() {
        for text in [
            "",
            "{",
            "{}",
            "}",
            "2dc27766f62342009d64115e9bfd4a08",
            "{2dc27766-f623-4200-9d64-115e9bfd4a08",
        ] {
            assert_eq!(Guid::parse(text), None, "{text:?}");
        }
    }
}
