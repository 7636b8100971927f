//! Parent locator (MS-VHDX 2.6.2.6).

use super::wire;
use crate::error::{Defect, Rule};
use crate::guid::Guid;
use crate::limits;

/// The one locator type there is.
pub const VHDX_LOCATOR: Guid = Guid::from_u128(0xB04AEFB7_D19E_4A81_B789_25B8E9445913);
/// DataWriteGuid of the parent.
pub const PARENT_LINKAGE: &str = "parent_linkage";
/// The other DataWriteGuid the parent may have, during a merge.
pub const PARENT_LINKAGE2: &str = "parent_linkage2";
/// Path relative to the child's directory.
pub const RELATIVE_PATH: &str = "relative_path";
/// Absolute path with a drive or a share.
pub const ABSOLUTE_WIN32_PATH: &str = "absolute_win32_path";
/// Absolute path with a volume GUID.
pub const VOLUME_PATH: &str = "volume_path";
/// Ours, in no finished file: how far a merge got. Others pass over keys that they do not know.
pub const MERGE: &str = "libavhdx_merge";

const HEADER: usize = 20;
const ENTRY: usize = 12;

/// Who the parent is and where it may be. Entries keep the exact UTF-16 they were stored as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locator {
    entries: Vec<(Vec<u16>, Vec<u16>)>,
}

fn units(text: &str) -> Vec<u16> {
    text.encode_utf16().collect()
}

fn bytes_of(units: &[u16]) -> impl Iterator<Item = u8> + '_ {
    units.iter().flat_map(|unit| unit.to_le_bytes())
}

impl Locator {
    /// A locator with the entries Windows writes, in its order: linkage, absolute, relative, volume path, linkage2 zero.
    pub fn new(linkage: Guid, absolute: Option<&str>, relative: Option<&str>, volume: Option<&str>) -> Self {
        let linkage = linkage.braced();
        let none = Guid::ZERO.braced();
        let entries = [
            (PARENT_LINKAGE, Some(linkage.as_str())),
            (ABSOLUTE_WIN32_PATH, absolute),
            (RELATIVE_PATH, relative),
            (VOLUME_PATH, volume),
            (PARENT_LINKAGE2, Some(none.as_str())),
        ];
        Locator {
            entries: entries
                .into_iter()
                .filter_map(|(key, value)| Some((units(key), units(value?))))
                .collect(),
        }
    }

    /// Parses the item's bytes, which are at `file_offset`.
    pub fn parse(bytes: &[u8], file_offset: u64) -> Result<Self, Defect> {
        let defect =
            |rule, found: String, wanted: &'static str| Defect::new(rule, "parent locator", file_offset, found, wanted);
        let broken = |found: String, wanted| Err(defect(Rule::Locator, found, wanted));
        if bytes.len() < HEADER {
            return broken(format!("{} bytes", bytes.len()), "at least 20");
        }
        let kind = wire::guid(bytes, 0);
        if kind != VHDX_LOCATOR {
            return Err(defect(Rule::LocatorType, kind.to_string(), "the VHDX locator type"));
        }
        let count = wire::u16(bytes, 18);
        if count == 0 || count > limits::MAX_LOCATOR_ENTRIES {
            return broken(format!("{count} entries"), "1 to 256");
        }
        let table_end = HEADER.saturating_add(usize::from(count).saturating_mul(ENTRY));
        let table = bytes.get(HEADER..table_end);
        let Some(table) = table else {
            return broken(
                format!("{count} entries in {} bytes", bytes.len()),
                "a table inside the item",
            );
        };
        let string = |offset: u32, length: u16, what: &'static str| {
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let field = start
                .checked_add(usize::from(length))
                .and_then(|end| bytes.get(start..end));
            match field {
                Some(field) if start >= table_end && length > 0 && length % 2 == 0 => {
                    let units: Vec<u16> = field.chunks_exact(2).map(|unit| wire::u16(unit, 0)).collect();
                    if units.contains(&0) {
                        return Err(defect(Rule::Locator, format!("a NUL in a {what}"), "text"));
                    }
                    if units.len() > limits::MAX_PATH_UNITS {
                        let found = format!("a {what} of {} characters", units.len());
                        return Err(defect(Rule::Locator, found, "at most 32767"));
                    }
                    Ok(units)
                }
                _ => Err(defect(
                    Rule::Locator,
                    format!("a {what} of {length} bytes at {offset}"),
                    "an even, nonzero length, behind the table and inside the item",
                )),
            }
        };
        let mut entries: Vec<(Vec<u16>, Vec<u16>)> = Vec::with_capacity(usize::from(count));
        for entry in table.chunks_exact(ENTRY) {
            let key = string(wire::u32(entry, 0), wire::u16(entry, 8), "key")?;
            let value = string(wire::u32(entry, 4), wire::u16(entry, 10), "value")?;
            if entries.iter().any(|(k, _)| *k == key) {
                return broken(format!("{:?} twice", String::from_utf16_lossy(&key)), "each key once");
            }
            entries.push((key, value));
        }
        let locator = Locator { entries };
        match locator.get(PARENT_LINKAGE).map(|text| Guid::parse(&text)) {
            None => return broken("no parent_linkage".into(), "one"),
            Some(None) => return broken("a parent_linkage that is not a GUID".into(), "a GUID"),
            Some(Some(guid)) if guid.is_zero() => return broken("a parent_linkage of zero".into(), "a GUID"),
            Some(Some(_)) => {}
        }
        let has_path = [RELATIVE_PATH, ABSOLUTE_WIN32_PATH, VOLUME_PATH]
            .iter()
            .any(|key| locator.find(key).is_some());
        if !has_path {
            return broken("no path".into(), "a relative, absolute or volume path");
        }
        Ok(locator)
    }

    /// The item's bytes: keys and values packed behind the table, in order.
    pub fn encode(&self) -> Vec<u8> {
        let count = u16::try_from(self.entries.len()).unwrap_or(u16::MAX);
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&VHDX_LOCATOR.to_stored());
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&count.to_le_bytes());
        let mut at = HEADER.saturating_add(self.entries.len().saturating_mul(ENTRY));
        let mut place = |units: &[u16]| {
            let start = u32::try_from(at).unwrap_or(u32::MAX);
            let length = units.len().saturating_mul(2);
            at = at.saturating_add(length);
            (start, u16::try_from(length).unwrap_or(u16::MAX))
        };
        for (key, value) in &self.entries {
            let (key_at, key_len) = place(key);
            let (value_at, value_len) = place(value);
            bytes.extend_from_slice(&key_at.to_le_bytes());
            bytes.extend_from_slice(&value_at.to_le_bytes());
            bytes.extend_from_slice(&key_len.to_le_bytes());
            bytes.extend_from_slice(&value_len.to_le_bytes());
        }
        for (key, value) in &self.entries {
            bytes.extend(bytes_of(key));
            bytes.extend(bytes_of(value));
        }
        bytes
    }

    fn find(&self, key: &str) -> Option<&Vec<u16>> {
        let key = units(key);
        self.entries.iter().find(|(k, _)| *k == key).map(|(_, value)| value)
    }

    /// The value of a key, ill-formed UTF-16 replaced.
    pub fn get(&self, key: &str) -> Option<String> {
        self.find(key).map(|value| String::from_utf16_lossy(value))
    }

    /// Sets or adds a key.
    pub fn set(&mut self, key: &str, value: &str) {
        let key = units(key);
        match self.entries.iter_mut().find(|(k, _)| *k == key) {
            Some((_, old)) => *old = units(value),
            None => self.entries.push((key, units(value))),
        }
    }

    /// Removes a key.
    pub fn remove(&mut self, key: &str) {
        let key = units(key);
        self.entries.retain(|(k, _)| *k != key);
    }

    /// The DataWriteGuid the parent must have.
    pub fn linkage(&self) -> Option<Guid> {
        Guid::parse(&self.get(PARENT_LINKAGE)?).filter(|guid| !guid.is_zero())
    }

    /// The other one it may have. Zero, which Windows writes, means none and never matches.
    pub fn linkage2(&self) -> Option<Guid> {
        Guid::parse(&self.get(PARENT_LINKAGE2)?).filter(|guid| !guid.is_zero())
    }

    /// Sets both; `None` is written as zero, so that the item keeps its size.
    pub fn set_linkage(&mut self, linkage: Guid, linkage2: Option<Guid>) {
        self.set(PARENT_LINKAGE, &linkage.braced());
        self.set(PARENT_LINKAGE2, &linkage2.unwrap_or(Guid::ZERO).braced());
    }

    /// The entries that are paths, or that this library does not know.
    pub fn paths(&self) -> Vec<(String, String)> {
        let others = [PARENT_LINKAGE, PARENT_LINKAGE2, MERGE];
        let mut entries = self.entries();
        entries.retain(|(key, _)| !others.contains(&key.as_str()));
        entries
    }

    /// All entries as text, in stored order.
    pub fn entries(&self) -> Vec<(String, String)> {
        self.entries
            .iter()
            .map(|(key, value)| (String::from_utf16_lossy(key), String::from_utf16_lossy(value)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn guid() -> Guid {
        Guid::parse("{ff34003b-11ed-4cf8-a166-b2be05e20b80}").unwrap()
    }

    #[test]
    fn laid_out_as_windows_does() {
        let name = "Generation 1_49C4BAF3-4B25-4406-8C4B-D39E65C32385.avhdx";
        let path = "Users\\Public\\Documents\\Hyper-V\\Virtual hard disks";
        let locator = Locator::new(
            guid(),
            Some(&format!("C:\\{path}\\{name}")),
            Some(&format!(".\\{name}")),
            Some(&format!(
                "\\\\?\\Volume{{0eba351e-5634-46d6-a8cf-4ddc2d6ac0b9}}\\{path}\\{name}"
            )),
        );
        let bytes = locator.encode();
        assert_eq!(bytes.len(), 1014);
        let table: Vec<_> = bytes[20..80]
            .chunks(12)
            .map(|e| (wire::u32(e, 0), wire::u16(e, 8), wire::u32(e, 4), wire::u16(e, 10)))
            .collect();
        assert_eq!(
            table,
            [
                (80, 28, 108, 76),
                (184, 38, 222, 216),
                (438, 26, 464, 114),
                (578, 22, 600, 308),
                (908, 30, 938, 76)
            ]
        );
        let parsed = Locator::parse(&bytes, 0).unwrap();
        assert_eq!(parsed, locator);
        assert_eq!((parsed.linkage(), parsed.linkage2()), (Some(guid()), None));
    }

    #[test]
    fn linkage_changes_keep_the_size_and_the_rest() {
        let mut locator = Locator::new(guid(), None, Some(".\\ü\u{1F600}.vhdx"), None);
        locator.set("somebody's key", "value");
        let before = locator.encode().len();
        locator.set_linkage(Guid::from_u128(5), Some(Guid::from_u128(6)));
        assert_eq!(locator.encode().len(), before);
        let parsed = Locator::parse(&locator.encode(), 0).unwrap();
        assert_eq!(parsed.linkage2(), Some(Guid::from_u128(6)));
        assert_eq!(parsed.get("somebody's key").as_deref(), Some("value"));
    }

    #[test]
    fn broken_locators_are_refused() {
        let good = Locator::new(guid(), None, Some(".\\a"), None).encode();
        let change = |at: usize, new: &[u8]| {
            let mut bytes = good.clone();
            bytes[at..at + new.len()].copy_from_slice(new);
            Locator::parse(&bytes, 0).unwrap_err().rule
        };
        assert_eq!(change(0, &[1]), Rule::LocatorType);
        assert_eq!(change(18, &[0, 0]), Rule::Locator);
        assert_eq!(change(18, &[255, 255]), Rule::Locator);
        assert_eq!(change(20, &[0, 0]), Rule::Locator);
        assert_eq!(change(20, &[255, 255, 255, 255]), Rule::Locator);
        assert_eq!(change(28, &[3, 0]), Rule::Locator);
        assert_eq!(change(28, &[0, 0]), Rule::Locator);
        let linkage_value = wire::u32(&good, 24) as usize;
        assert_eq!(change(linkage_value, b"x"), Rule::Locator);
        assert_eq!(change(linkage_value, &[0, 0]), Rule::Locator);
        assert_eq!(Locator::parse(&good[..19], 0).unwrap_err().rule, Rule::Locator);
        let zero = Locator::new(Guid::ZERO, None, Some(".\\a"), None);
        assert_eq!(Locator::parse(&zero.encode(), 0).unwrap_err().rule, Rule::Locator);
        let no_path = Locator::new(guid(), None, None, None);
        assert_eq!(Locator::parse(&no_path.encode(), 0).unwrap_err().rule, Rule::Locator);
    }

    proptest! {
        #[test]
        fn nothing_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), count in 0u16..5) {
            if bytes.len() >= 20 {
                bytes[..16].copy_from_slice(&VHDX_LOCATOR.to_stored());
                bytes[18..20].copy_from_slice(&count.to_le_bytes());
            }
            let _ = Locator::parse(&bytes, 0);
        }
    }
}
