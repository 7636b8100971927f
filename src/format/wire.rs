//! Little-endian fields at fixed places. Reading behind the end gives zeros: callers check lengths first, and a field
//! that is not there is never one that passes its rule.

use crate::guid::Guid;

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut value = [0; N];
    if let Some(field) = at.checked_add(N).and_then(|end| bytes.get(at..end)) {
        value.copy_from_slice(field);
    }
    value
}

pub(super) fn u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

pub(super) fn u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub(super) fn u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

pub(super) fn guid(bytes: &[u8], at: usize) -> Guid {
    Guid::from_stored(array(bytes, at))
}

/// Puts `field` at `at`. A place outside is a defect of the caller and changes nothing.
pub(super) fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    if let Some(place) = at.checked_add(field.len()).and_then(|end| bytes.get_mut(at..end)) {
        place.copy_from_slice(field);
    } else {
        debug_assert!(false, "a field outside its structure");
    }
}

/// Whether two ranges share a byte. Saturating: a range that overflows reaches to the end.
pub(super) fn overlap(a: u64, a_len: u64, b: u64, b_len: u64) -> bool {
    a < b.saturating_add(b_len) && b < a.saturating_add(a_len)
}
