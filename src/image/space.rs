//! Who owns which MiB of the file (invariants I4, I5 of docs/durability.md).
//!
//! Two bits per MiB: owned, and known to read as zeros. A 64 TiB file takes 16 MiB of them. Nothing here does I/O.

use crate::error::{Defect, Error, ErrorKind, Result, Rule};
use crate::limits;
use crate::units::MIB;

/// Least growth of a file, in MiB: growing is a journal transaction of the file system underneath.
const GROW_STEP: u64 = 32;

#[derive(Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn get(&self, unit: u64) -> bool {
        self.0
            .get((unit / 64) as usize)
            .is_some_and(|word| word & (1 << (unit % 64)) != 0)
    }

    fn set(&mut self, start: u64, count: u64, value: bool) {
        let words = (start + count).div_ceil(64) as usize;
        if self.0.len() < words {
            self.0.resize(words, 0);
        }
        for unit in start..start + count {
            let mask = 1u64 << (unit % 64);
            let word = &mut self.0[(unit / 64) as usize];
            *word = if value { *word | mask } else { *word & !mask };
        }
    }

    fn any(&self, start: u64, count: u64) -> Option<u64> {
        (start..start + count).find(|&unit| self.get(unit))
    }
}

/// A place in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allocation {
    pub(crate) file_offset: u64,
    pub(crate) len: u64,
    /// Reads as zeros now. If not, it may have had another owner, whose readers may still be reading.
    pub(crate) zeroed: bool,
}

/// The units of one file. Offsets and lengths are multiples of 1 MiB unless said otherwise.
#[derive(Debug)]
pub(crate) struct Space {
    owned: Bits,
    zero: Bits,
    /// Units inside the file.
    units: u64,
    free: u64,
    /// Where the next search starts.
    next: u64,
    /// No free run of this many units exists (`u64::MAX`: not known).
    hopeless: u64,
}

impl Space {
    /// Everything of a file of `file_len` bytes is free, except the header area.
    pub(crate) fn new(file_len: u64) -> Self {
        let mut space = Space {
            owned: Bits::default(),
            zero: Bits::default(),
            units: file_len.div_ceil(MIB),
            free: file_len.div_ceil(MIB),
            next: 0,
            hopeless: u64::MAX,
        };
        space.own(0, 1);
        space
    }

    fn own(&mut self, start: u64, count: u64) {
        let end = start + count;
        if end > self.units {
            self.free += end - self.units;
            self.units = end;
        }
        self.owned.set(start, count, true);
        self.free -= count;
    }

    /// Records an owner found in the file; an overlap is a defect of `structure`. `len` is rounded up to 1 MiB. The
    /// place was checked to be inside the file, except for the end of a last block that is cut at the disk's end.
    pub(crate) fn claim(
        &mut self,
        structure: impl FnOnce() -> String,
        file_offset: u64,
        len: u64,
    ) -> Result<(), Defect> {
        if file_offset
            .checked_add(len)
            .is_none_or(|end| end > limits::MAX_FILE_LEN)
        {
            return Err(Defect::new(
                Rule::BatOffset,
                structure(),
                file_offset,
                format!("{len} bytes there"),
                "a place below 256 TiB",
            ));
        }
        let (start, count) = (file_offset / MIB, len.div_ceil(MIB));
        if let Some(unit) = self.owned.any(start, count) {
            return Err(Defect::new(
                Rule::Overlap,
                structure(),
                file_offset,
                format!("the MiB at {:#x} already in use", unit * MIB),
                "space no other structure uses",
            ));
        }
        self.own(start, count);
        Ok(())
    }

    /// The last MiB of a file of `file_len` bytes, if it is partial and nobody claimed it, is not handed out: other
    /// programs put things there.
    pub(crate) fn keep_partial_tail(&mut self, file_len: u64) {
        let tail = file_len / MIB;
        if file_len % MIB != 0 && !self.owned.get(tail) {
            self.own(tail, 1);
        }
    }

    /// Takes `len` bytes from inside the file: the first hole that is large enough, from where the last search ended.
    pub(crate) fn take(&mut self, len: u64) -> Option<Allocation> {
        let count = len.div_ceil(MIB);
        if self.free < count || count >= self.hopeless {
            return None;
        }
        let Some(start) = self.find(count) else {
            self.hopeless = count;
            return None;
        };
        let zeroed = (start..start + count).all(|unit| self.zero.get(unit));
        self.own(start, count);
        self.zero.set(start, count, false);
        self.next = start + count;
        Some(Allocation {
            file_offset: start * MIB,
            len: count * MIB,
            zeroed,
        })
    }

    /// Takes `len` bytes from the lowest hole that is large enough, begins at or after `from` and ends at or before
    /// `limit`.
    pub(crate) fn take_below(&mut self, len: u64, from: u64, limit: u64) -> Option<Allocation> {
        let count = len.div_ceil(MIB);
        let start = self.find_in(from / MIB, (limit / MIB).min(self.units), count)?;
        let zeroed = (start..start + count).all(|unit| self.zero.get(unit));
        self.own(start, count);
        self.zero.set(start, count, false);
        Some(Allocation {
            file_offset: start * MIB,
            len: count * MIB,
            zeroed,
        })
    }

    /// The lengths to give the file so that `len` bytes can be taken at its end: a generous one and the least.
    pub(crate) fn growth_for(&self, len: u64) -> Result<(u64, u64)> {
        let free_tail = (0..self.units).rev().take_while(|&unit| !self.owned.get(unit)).count() as u64;
        let least = self.units - free_tail + len.div_ceil(MIB);
        let most = limits::MAX_FILE_LEN / MIB;
        if least > most {
            return Err(Error::new(ErrorKind::NoSpace, "the file cannot grow beyond 256 TiB"));
        }
        Ok(((least + GROW_STEP).min(most) * MIB, least * MIB))
    }

    /// The file now has `file_len` bytes; `zeros` says whether what it gained reads as zeros.
    pub(crate) fn grown(&mut self, file_len: u64, zeros: bool) {
        let units = file_len / MIB;
        if units > self.units {
            let added = units - self.units;
            self.zero.set(self.units, added, zeros);
            self.free += added;
            self.units = units;
            self.hopeless = u64::MAX;
        }
    }

    /// The first run of `count` free units from where the last search ended, then from the start.
    fn find(&self, count: u64) -> Option<u64> {
        let next = self.next.min(self.units);
        self.find_in(next, self.units, count)
            .or_else(|| self.find_in(0, (next + count).min(self.units), count))
    }

    fn find_in(&self, mut unit: u64, end: u64, count: u64) -> Option<u64> {
        let mut run = 0;
        while unit < end {
            if unit % 64 == 0 && self.owned.0.get((unit / 64) as usize) == Some(&u64::MAX) {
                run = 0;
                unit += 64;
                continue;
            }
            run = if self.owned.get(unit) { 0 } else { run + 1 };
            unit += 1;
            if run == count {
                return Some(unit - count);
            }
        }
        None
    }

    /// Gives space back. Only when the log entry that took it from its owner is durable (I4), or when it was never
    /// published; never for space that held logged metadata (I5: that waits for the next open).
    pub(crate) fn release(&mut self, file_offset: u64, len: u64) {
        let (start, count) = (file_offset / MIB, len.div_ceil(MIB));
        self.owned.set(start, count, false);
        self.free += count;
        self.hopeless = u64::MAX;
    }

    /// End of the last owned unit, in bytes.
    pub(crate) fn used_end(&self) -> u64 {
        (0..self.units)
            .rev()
            .find(|&unit| self.owned.get(unit))
            .map_or(0, |unit| unit + 1)
            * MIB
    }

    /// Bytes that some structure owns.
    pub(crate) fn used_bytes(&self) -> u64 {
        (self.units - self.free) * MIB
    }

    /// Bytes inside the file that nobody owns.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.free * MIB
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grow_and_take(space: &mut Space, len: u64) -> Allocation {
        let (generous, least) = space.growth_for(len).unwrap();
        assert!(generous > least);
        space.grown(generous, true);
        space.take(len).unwrap()
    }

    #[test]
    fn holes_are_used_before_the_file_grows() {
        let mut space = Space::new(8 * MIB);
        space.claim(|| "a".into(), MIB, 3 * MIB).unwrap();
        space.claim(|| "b".into(), 6 * MIB, 2 * MIB).unwrap();
        let a = space.take(2 * MIB).unwrap();
        assert_eq!((a.file_offset, a.zeroed), (4 * MIB, false));
        assert_eq!(space.take(2 * MIB), None);
        let b = grow_and_take(&mut space, 2 * MIB);
        assert_eq!((b.file_offset, b.zeroed), (8 * MIB, true));
        let c = space.take(MIB).unwrap();
        assert_eq!((c.file_offset, c.zeroed), (10 * MIB, true));
        space.release(8 * MIB, 2 * MIB);
        assert_eq!(space.used_end(), 11 * MIB);
        let d = space.take(40 * MIB);
        assert_eq!(d, None);
        space.next = 0;
        let e = space.take(2 * MIB).unwrap();
        assert_eq!(
            (e.file_offset, e.zeroed),
            (8 * MIB, false),
            "released space is not zero"
        );
    }

    #[test]
    fn the_partial_tail_stays_with_whoever_wrote_it() {
        let mut space = Space::new(4 * MIB + 512);
        space.claim(|| "a".into(), MIB, 3 * MIB).unwrap();
        space.keep_partial_tail(4 * MIB + 512);
        assert_eq!(space.take(MIB), None);
        assert_eq!(grow_and_take(&mut space, MIB).file_offset, 5 * MIB);
    }

    #[test]
    fn overlaps_are_defects() {
        let mut space = Space::new(8 * MIB);
        assert_eq!(space.claim(|| "x".into(), 0, MIB).unwrap_err().rule, Rule::Overlap);
        space.claim(|| "a".into(), 2 * MIB, 2 * MIB).unwrap();
        assert_eq!(
            space.claim(|| "b".into(), 3 * MIB, MIB).unwrap_err().rule,
            Rule::Overlap
        );
        assert_eq!(
            space.claim(|| "c".into(), !(MIB - 1), MIB).unwrap_err().rule,
            Rule::BatOffset
        );
    }

    #[test]
    fn growth_joins_the_free_tail() {
        let mut space = Space::new(4 * MIB);
        space.claim(|| "a".into(), MIB, 2 * MIB).unwrap();
        assert_eq!(space.growth_for(4 * MIB).unwrap().1, 7 * MIB);
        let a = grow_and_take(&mut space, 4 * MIB);
        assert_eq!((a.file_offset, a.zeroed), (3 * MIB, false));
    }
}
