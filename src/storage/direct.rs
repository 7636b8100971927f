//! Reading and writing around the page cache, with O_DIRECT.
//!
//! Such requests have their memory, offset and length at multiples of what the file system says. What has not goes through
//! memory of its own; a write that covers units in part reads those first, while no other write goes on.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use parking_lot::{RwLock, RwLockReadGuard};

/// Most bytes that go through memory of its own at a time.
const PIECE: u64 = 1 << 20;

/// What the file system wants of a request, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alignment {
    pub(super) memory: u32,
    pub(super) offset: u32,
}

impl Alignment {
    /// Enough for every device with sectors of at most 4 KiB.
    pub(super) const USUAL: Alignment = Alignment {
        memory: 4096,
        offset: 4096,
    };

    pub(super) fn is_usable(self) -> bool {
        let good = |n: u32| n.is_power_of_two() && u64::from(n) <= PIECE;
        good(self.memory) && good(self.offset)
    }
}

/// How one file is read and written.
#[derive(Debug)]
pub(super) struct Direct {
    memory: usize,
    unit: u64,
    /// Exclusive: a write of parts of units. Shared: any other change.
    changing: RwLock<()>,
}

/// Memory at an address that is a multiple of `align`.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new(len: u64, align: usize) -> Aligned {
        let bytes = vec![0; len as usize + align];
        let start = bytes.as_ptr().align_offset(align);
        Aligned { bytes, start }
    }

    fn get(&mut self, len: u64) -> &mut [u8] {
        &mut self.bytes[self.start..][..len as usize]
    }
}

/// Reads until `buf` is full or the file ends; returns the bytes read.
fn read_full(file: &File, buf: &mut [u8], at: u64, unit: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], at + done as u64) {
            Ok(0) => break,
            Ok(len) => {
                done += len;
                // The end of the file: asking on from there is no request that may be made.
                if done as u64 % unit != 0 {
                    break;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

impl Direct {
    pub(super) fn new(alignment: Alignment) -> Direct {
        Direct {
            memory: alignment.memory as usize,
            unit: u64::from(alignment.offset),
            changing: RwLock::new(()),
        }
    }

    fn down(&self, at: u64) -> u64 {
        at & !(self.unit - 1)
    }

    fn up(&self, at: u64) -> u64 {
        at.next_multiple_of(self.unit)
    }

    /// Whether whole units are meant.
    fn is_whole(&self, len: usize, at: u64) -> bool {
        (at | len as u64) % self.unit == 0
    }

    fn is_aligned(&self, buf: &[u8]) -> bool {
        buf.as_ptr().addr() % self.memory == 0
    }

    /// The range in pieces, at multiples of [`PIECE`].
    fn pieces(at: u64, len: usize) -> impl Iterator<Item = std::ops::Range<u64>> {
        let end = at + len as u64;
        let mut from = at;
        std::iter::from_fn(move || {
            let start = from;
            from = end.min((start / PIECE + 1) * PIECE);
            (start < end).then_some(start..from)
        })
    }

    fn memory_for(&self, len: usize) -> Aligned {
        Aligned::new((len as u64 + 2 * self.unit).min(PIECE), self.memory)
    }

    pub(super) fn read(&self, file: &File, buf: &mut [u8], at: u64) -> io::Result<()> {
        if self.is_whole(buf.len(), at) && self.is_aligned(buf) {
            return match read_full(file, buf, at, self.unit)? {
                len if len == buf.len() => Ok(()),
                _ => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
        let mut memory = self.memory_for(buf.len());
        for piece in Self::pieces(at, buf.len()) {
            let start = self.down(piece.start);
            let found = memory.get(self.up(piece.end) - start);
            let len = read_full(file, found, start, self.unit)? as u64;
            if len < piece.end - start {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            buf[(piece.start - at) as usize..(piece.end - at) as usize]
                .copy_from_slice(&found[(piece.start - start) as usize..(piece.end - start) as usize]);
        }
        Ok(())
    }

    pub(super) fn write(&self, file: &File, buf: &[u8], at: u64) -> io::Result<()> {
        if self.is_whole(buf.len(), at) {
            let _others = self.changing.read();
            if self.is_aligned(buf) {
                return file.write_all_at(buf, at);
            }
            return self.write_pieces(file, buf, at);
        }
        if buf.is_empty() {
            return Ok(());
        }
        let _alone = self.changing.write();
        let (before, end) = (file.metadata()?, at + buf.len() as u64);
        self.write_pieces(file, buf, at)?;
        // ORDER: the last unit may reach behind the end; a cut here leaves zeros there, which nothing refers to. A device has
        // no end of its own.
        let wanted = before.len().max(end);
        if before.is_file() && wanted < self.up(end) {
            file.set_len(wanted)?;
        }
        Ok(())
    }

    fn write_pieces(&self, file: &File, buf: &[u8], at: u64) -> io::Result<()> {
        let mut memory = self.memory_for(buf.len());
        for piece in Self::pieces(at, buf.len()) {
            let (start, end) = (self.down(piece.start), self.up(piece.end));
            let bytes = memory.get(end - start);
            let last = end - self.unit;
            let (begins, ends) = (start < piece.start, piece.end < end);
            for (unit, partial) in [(start, begins), (last, ends && !(begins && last == start))] {
                if partial {
                    let there = &mut bytes[(unit - start) as usize..][..self.unit as usize];
                    there.fill(0);
                    read_full(file, there, unit, self.unit)?;
                }
            }
            bytes[(piece.start - start) as usize..(piece.end - start) as usize]
                .copy_from_slice(&buf[(piece.start - at) as usize..(piece.end - at) as usize]);
            file.write_all_at(bytes, start)?;
        }
        Ok(())
    }

    /// For changes other than writes: held meanwhile, none of them meets the write of a part of a unit.
    pub(super) fn changing(&self) -> RwLockReadGuard<'_, ()> {
        self.changing.read()
    }
}
