//! An input as a source of choices, and structured changes made with it.

use std::ops::Range;
use std::sync::Arc;

use arbitrary::Unstructured;
use avhdx::storage::Storage;

/// Choices; zeros where the input is used up.
pub struct Input<'a>(Unstructured<'a>);

impl<'a> Input<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Input(Unstructured::new(data))
    }

    /// Whether anything is left.
    pub fn more(&self) -> bool {
        !self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        self.0.arbitrary().unwrap_or(0)
    }

    pub fn u16(&mut self) -> u16 {
        self.0.arbitrary().unwrap_or(0)
    }

    pub fn u64(&mut self) -> u64 {
        self.0.arbitrary().unwrap_or(0)
    }

    /// Below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        match end {
            0..=256 => usize::from(self.byte()) % end,
            _ => usize::from(self.u16()) % end,
        }
    }

    pub fn chance(&mut self, one_in: u8) -> bool {
        self.byte() % one_in == one_in - 1
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.byte()).collect()
    }
}

/// What patches are applied to.
pub trait Bytes {
    fn get(&self, at: u64, buf: &mut [u8]);
    fn put(&mut self, at: u64, bytes: &[u8]);
}

impl Bytes for Vec<u8> {
    fn get(&self, at: u64, buf: &mut [u8]) {
        for (i, byte) in buf.iter_mut().enumerate() {
            *byte = self.as_slice().get(at as usize + i).copied().unwrap_or(0);
        }
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            if let Some(place) = self.as_mut_slice().get_mut(at as usize + i) {
                *place = *byte;
            }
        }
    }
}

impl Bytes for Arc<dyn Storage> {
    fn get(&self, at: u64, buf: &mut [u8]) {
        let len = self.len().unwrap();
        let there = len.saturating_sub(at).min(buf.len() as u64) as usize;
        buf.fill(0);
        self.read_at(&mut buf[..there], at).unwrap();
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        if at + bytes.len() as u64 <= self.len().unwrap() {
            self.write_at(bytes, at).unwrap();
        }
    }
}

/// A field of a structure.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    pub at: u64,
    /// Bytes, at most 8.
    pub width: u8,
    /// Where its copy is; `at` if it has none.
    pub twin: u64,
    pub big_endian: bool,
}

impl Field {
    pub fn read(&self, bytes: &dyn Bytes) -> u64 {
        let mut raw = [0; 8];
        let width = usize::from(self.width);
        if self.big_endian {
            bytes.get(self.at, &mut raw[8 - width..]);
            return u64::from_be_bytes(raw);
        }
        bytes.get(self.at, &mut raw[..width]);
        u64::from_le_bytes(raw)
    }

    pub fn write(&self, bytes: &mut dyn Bytes, value: u64, both: bool) {
        let width = usize::from(self.width);
        let raw = match self.big_endian {
            true => value.to_be_bytes()[8 - width..].to_vec(),
            false => value.to_le_bytes()[..width].to_vec(),
        };
        bytes.put(self.at, &raw);
        if both {
            bytes.put(self.twin, &raw);
        }
    }
}

/// What can be patched.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    pub fields: Vec<Field>,
    /// For patches of any bytes.
    pub areas: Vec<Range<u64>>,
}

impl Layout {
    /// Adds the fields of a structure at `base`, given as pairs of offset and width, whose copy is `twin` further on.
    pub fn add(&mut self, base: u64, twin: u64, fields: &[(u64, u8)]) {
        for &(offset, width) in fields {
            let at = base + offset;
            self.fields.push(Field {
                at,
                width,
                twin: at + twin,
                big_endian: false,
            });
        }
    }
}

/// Values at which rules change: BAT entries, sizes, limits.
pub fn values() -> Vec<u64> {
    let mut values = vec![0, 1, 2, 3, u64::MAX, 1 << 63, u64::MAX >> 1, 512, 513, 4096, 65_536];
    for mib in 0..12 {
        values.extend([0, 1, 2, 3, 6, 7].map(|state| mib << 20 | state));
    }
    for shift in [8, 16, 24, 30, 31, 32, 40, 44, 46, 48, 60] {
        values.extend([(1 << shift) - 1, 1 << shift, (1 << shift) + 1]);
    }
    values.extend([u64::from(u32::MAX) - 4095, !0 << 20, !0 << 20 | 6, !0 << 12, !0 << 9]);
    values
}

/// One change of a field (to a value at which a rule changes, to any, by some units, to that of another field), or of a
/// few bytes anywhere in the structures.
pub fn patch(input: &mut Input<'_>, bytes: &mut dyn Bytes, layout: &Layout) {
    let kind = input.byte();
    if kind % 8 == 7 {
        let area = &layout.areas[input.below(layout.areas.len())];
        let at = area.start + u64::from(input.u16()) % (area.end - area.start);
        let len = 1 + input.below(8);
        let new = input.bytes(len);
        return bytes.put(at, &new);
    }
    let field = layout.fields[usize::from(input.u16()) % layout.fields.len()];
    let old = field.read(bytes);
    let mut units = |shift: u32| old.wrapping_add((i64::from(input.byte() as i8) << shift) as u64);
    let new = match kind % 8 {
        0 | 1 => input.pick(&values()),
        2 => input.u64(),
        3 => units(0),
        4 => units(12),
        5 => units(20),
        _ => layout.fields[usize::from(input.u16()) % layout.fields.len()].read(bytes),
    };
    field.write(bytes, new, kind < 0x80);
}

/// Up to `most` patches.
pub fn patches(input: &mut Input<'_>, bytes: &mut dyn Bytes, layout: &Layout, most: usize) {
    for _ in 0..most {
        if input.more() {
            patch(input, bytes, layout);
        }
    }
}
