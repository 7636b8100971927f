//! Moving the content. What nobody stores is never read; of what is copied, zeros are never written.
//!
//! The caller's thread looks up what there is, shares and writes; reading, and looking for zeros or differences, is work
//! for several ([`crate::ops::pipeline`]).

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use parking_lot::Mutex;

use super::source::{Content, Place, Run};
use super::target::{Target, Vhdx};
use crate::error::{Error, ErrorKind, PathContext, Result};
use crate::image::compact::is_zero;
use crate::image::payload::Payload;
use crate::ops::pace::Pace;
use crate::ops::pipeline::{self, Ends};
use crate::options::{ConvertOptions, CopyMode};
use crate::storage::{FileId, Storage};
use crate::units::{align_down, align_up, LOG_SECTOR, MIB};

/// Bytes read at once, aligned for the page cache.
const PIECE: u64 = 4 * MIB;
/// Zeros are left out in pieces of this size, aligned. Less than this is not worth sharing.
const GRAIN: u64 = 64 << 10;

/// Why a run cannot be shared, and what to do about it.
const NOT_AT_PAGES: (&str, &str) = ("the data of a file does not lie at whole pages", "use mode=auto");
const NOT_BETWEEN: (&str, &str) = (
    "the file system does not do that between the two files",
    "use mode=auto or mode=copy",
);

/// Buffers of [`PIECE`] bytes that nobody uses.
#[derive(Default)]
struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    fn take(&self) -> Vec<u8> {
        let spare = self.0.lock().pop();
        spare.unwrap_or_else(|| vec![0; PIECE as usize])
    }

    fn give(&self, buf: Vec<u8>) {
        self.0.lock().push(buf);
    }
}

/// What was read at an offset, and the parts of it to write.
struct Found {
    buf: Vec<u8>,
    offset: u64,
    parts: Vec<Range<usize>>,
    /// Bytes dealt with, and of these moved.
    done: u64,
    moved: u64,
}

/// A range to read, which deals with `done` bytes.
struct Piece {
    range: Range<u64>,
    done: u64,
}

/// Copies all that is not zero, or shares it. Returns the bytes shared.
pub(crate) fn flat(
    source: &dyn Content,
    target: &mut dyn Target,
    options: &ConvertOptions,
    pace: &mut Pace<'_>,
) -> Result<u64> {
    let buffers = Buffers::default();
    let mut flat = Flat {
        source,
        target,
        pace,
        buffers: &buffers,
        mode: options.mode,
        known: HashMap::new(),
        reflinked: 0,
        size: source.size()?,
        at: 0,
        ready: VecDeque::new(),
    };
    pipeline::run(options.threads, &mut flat, |piece: Piece| {
        let mut buf = buffers.take();
        let (offset, len) = (piece.range.start, piece.range.end - piece.range.start);
        let bytes = &mut buf[..len as usize];
        source.read(bytes, offset)?;
        let parts = stored(bytes, offset);
        Ok(Found {
            buf,
            offset,
            parts,
            done: piece.done,
            moved: len,
        })
    })?;
    Ok(flat.reflinked)
}

struct Flat<'a, 'p> {
    source: &'a dyn Content,
    target: &'a mut dyn Target,
    pace: &'a mut Pace<'p>,
    buffers: &'a Buffers,
    mode: CopyMode,
    /// Which files the target can have extents of.
    known: HashMap<Option<FileId>, bool>,
    reflinked: u64,
    size: u64,
    /// What is before was looked up.
    at: u64,
    /// What was looked up and is to be read.
    ready: VecDeque<Piece>,
}

impl Ends<Piece, Found> for Flat<'_, '_> {
    fn next(&mut self) -> Result<Option<Piece>> {
        while self.ready.is_empty() && self.at < self.size {
            self.look_up()?;
        }
        Ok(self.ready.pop_front())
    }

    fn take(&mut self, found: Found) -> Result<()> {
        for part in &found.parts {
            self.target
                .put(&found.buf[part.clone()], found.offset + part.start as u64)?;
        }
        self.buffers.give(found.buf);
        self.pace.advance(found.done, found.moved)
    }
}

impl Flat<'_, '_> {
    /// One aligned window: shares what it can, and leaves the rest to be read, from the first byte stored to the last.
    fn look_up(&mut self) -> Result<()> {
        let end = (align_down(self.at, PIECE) + PIECE).min(self.size);
        let before = self.reflinked;
        let mut unread: Option<Range<u64>> = None;
        let mut next = self.at;
        while next < end {
            let Run { mut len, place } = self.source.run(next, self.size - next)?;
            if let Some(place) = place {
                len = len.min(end - next);
                let shared = self.share(next, len, &place)?;
                extend(&mut unread, next..shared.start);
                if !shared.is_empty() {
                    self.leave(unread.take());
                }
                extend(&mut unread, shared.end..next + len);
            }
            next += len;
        }
        self.leave(unread);
        // A hole may reach far behind the window.
        let done = next - self.at;
        self.at = next;
        match self.ready.back_mut() {
            Some(last) => last.done = done,
            None => self.pace.advance(done, 0)?,
        }
        // Sharing moves nothing, but may take its time.
        match self.reflinked > before {
            true => self.pace.ask(),
            false => Ok(()),
        }
    }

    /// Shares the whole pages of a run, if that is wanted, worth it and possible. What it shared: nothing is an empty range
    /// at the end of the run.
    fn share(&mut self, at: u64, len: u64, place: &Place) -> Result<Range<u64>> {
        let nothing = at + len..at + len;
        let part = align_up(at, LOG_SECTOR).unwrap_or(at)..align_down(at + len, LOG_SECTOR);
        let wanted = match self.mode {
            CopyMode::Copy => false,
            CopyMode::Auto => !place.is_fixed,
            CopyMode::Reflink => true,
        };
        if !wanted || part.start + GRAIN > part.end {
            return Ok(nothing);
        }
        let obstacle = match place.obstacle {
            Some(obstacle) => Some(obstacle),
            None if place.file_offset % LOG_SECTOR != at % LOG_SECTOR => Some(NOT_AT_PAGES),
            None if !self.may_share(&*place.file) => Some(NOT_BETWEEN),
            None => None,
        };
        let from = place.file_offset + (part.start - at);
        let shared = match obstacle {
            Some((why, hint)) => {
                let message = format!("extents cannot be shared: {why}");
                Err(Error::new(ErrorKind::Unsupported, message).with_hint(hint))
            }
            None => self.target.share(&*place.file, from, part.end - part.start, part.start),
        };
        match (shared, self.mode) {
            (Ok(()), _) => {
                self.reflinked += part.end - part.start;
                Ok(part)
            }
            (Err(error), CopyMode::Reflink) => Err(error.with_layer(place.layer).with_offset(at)),
            (Err(error), _) => {
                if error.kind() == ErrorKind::Unsupported {
                    self.known.insert(place.file.id(), false);
                }
                Ok(nothing)
            }
        }
    }

    /// Whether it can have extents of a file, asked once.
    fn may_share(&mut self, file: &dyn Storage) -> bool {
        let target = &self.target;
        *self.known.entry(file.id()).or_insert_with(|| target.can_share(file))
    }

    fn leave(&mut self, unread: Option<Range<u64>>) {
        if let Some(range) = unread {
            let end = align_up(range.end, LOG_SECTOR).unwrap_or(self.size).min(self.size);
            let range = align_down(range.start, LOG_SECTOR)..end;
            self.ready.push_back(Piece { range, done: 0 });
        }
    }
}

/// Adds a part behind what there is, with what is between them.
fn extend(range: &mut Option<Range<u64>>, part: Range<u64>) {
    if !part.is_empty() {
        *range = Some(range.as_ref().map_or(part.start, |range| range.start)..part.end);
    }
}

/// The parts whose grains hold something.
fn stored(bytes: &[u8], offset: u64) -> Vec<Range<usize>> {
    let mut parts: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let here = offset + at as u64;
        let end = (at + (align_down(here, GRAIN) + GRAIN - here) as usize).min(bytes.len());
        if !is_zero(&bytes[at..end]) {
            add(&mut parts, at..end);
        }
        at = end;
    }
    parts
}

/// Adds a range behind the others, of which the last may end where it begins.
fn add(parts: &mut Vec<Range<usize>>, range: Range<usize>) {
    match parts.last_mut().filter(|last| last.end == range.start) {
        Some(last) => last.end = range.end,
        None => parts.push(range),
    }
}

/// Copies what differs from `parent`, in sectors, to its child `target`.
pub(crate) fn difference(
    source: &dyn Content,
    parent: &dyn Content,
    target: &mut Vhdx,
    options: &ConvertOptions,
    pace: &mut Pace<'_>,
) -> Result<()> {
    let buffers = Buffers::default();
    let sector = target.image.geometry().sector_size() as usize;
    let mut difference = Difference {
        source,
        parent,
        target,
        pace,
        buffers: &buffers,
        size: source.size()?,
        parent_size: parent.size()?,
        at: 0,
    };
    pipeline::run(options.threads, &mut difference, |pair: Pair| {
        let mut old = buffers.take();
        let result = match pair {
            Pair::Zeros { block, known } => Compared::Zeros {
                differ: !reads_zero(parent, block.start, known, &mut old)?,
                block,
            },
            Pair::Bytes { range, known, done } => {
                let mut buf = buffers.take();
                let len = (range.end - range.start) as usize;
                let (new, old) = (&mut buf[..len], &mut old[..len]);
                source.read(new, range.start)?;
                parent.read(&mut old[..known as usize], range.start)?;
                old[known as usize..].fill(0);
                let parts = different(new, old, sector);
                Compared::Bytes(Found {
                    buf,
                    offset: range.start,
                    parts,
                    done,
                    moved: len as u64,
                })
            }
        };
        buffers.give(old);
        Ok(result)
    })
}

/// What is to be compared; of the parent the first `known` bytes, behind which it ends.
enum Pair {
    /// The disk has zeros in a whole block, and no place for them.
    Zeros { block: Range<u64>, known: u64 },
    /// Some bytes, which deal with `done`.
    Bytes { range: Range<u64>, known: u64, done: u64 },
}

enum Compared {
    Zeros { block: Range<u64>, differ: bool },
    Bytes(Found),
}

struct Difference<'a, 'p> {
    source: &'a dyn Content,
    parent: &'a dyn Content,
    target: &'a mut Vhdx,
    pace: &'a mut Pace<'p>,
    buffers: &'a Buffers,
    size: u64,
    parent_size: u64,
    at: u64,
}

impl Ends<Pair, Compared> for Difference<'_, '_> {
    fn next(&mut self) -> Result<Option<Pair>> {
        while self.at < self.size {
            let (at, size) = (self.at, self.size);
            let here = self.source.run(at, size - at)?;
            let there = match self.parent_size.checked_sub(at).filter(|&rest| rest > 0) {
                Some(rest) => self.parent.run(at, rest.min(size - at))?,
                None => Run {
                    len: size - at,
                    place: None,
                },
            };
            let len = here.len.min(there.len);
            let same = match (&here.place, &there.place) {
                (None, None) => true,
                (Some(here), Some(there)) => here.is_same_as(there),
                _ => false,
            };
            if same {
                self.at += len;
                self.pace.advance(len, 0)?;
                continue;
            }
            let geometry = self.target.image.geometry();
            let (sector, block_len) = (geometry.sector_size(), geometry.block_len(geometry.block_of(at)));
            if here.place.is_none() && at % geometry.block_size() == 0 && here.len >= block_len {
                // Zeros over something: the whole block, without storing one.
                self.at += block_len;
                let known = block_len.min(self.parent_size - at);
                return Ok(Some(Pair::Zeros {
                    block: at..self.at,
                    known,
                }));
            }
            // Whole sectors of the disks, which may be larger than what a file knows as one.
            let from = align_down(at, sector);
            let end = align_up(at + len, sector).unwrap_or(size).min(size).min(from + PIECE);
            self.at = end;
            return Ok(Some(Pair::Bytes {
                range: from..end,
                known: self.parent_size.saturating_sub(from).min(end - from),
                done: end - at,
            }));
        }
        Ok(None)
    }

    fn take(&mut self, result: Compared) -> Result<()> {
        let image = &self.target.image;
        match result {
            Compared::Zeros { block, differ } => {
                let len = block.end - block.start;
                if differ {
                    image.zero(block.start, len, true).at(image.name())?;
                }
                self.pace.advance(len, len)
            }
            Compared::Bytes(found) => {
                for part in &found.parts {
                    let at = found.offset + part.start as u64;
                    image.write(at, Payload::Bulk(&found.buf[part.clone()]))?;
                }
                self.buffers.give(found.buf);
                self.pace.advance(found.done, found.moved)
            }
        }
    }
}

/// Whether a range of a disk holds zeros only, stored or not.
fn reads_zero(disk: &dyn Content, offset: u64, len: u64, buf: &mut [u8]) -> Result<bool> {
    let mut at = offset;
    while at < offset + len {
        let piece = (offset + len - at).min(buf.len() as u64);
        let part = &mut buf[..piece as usize];
        disk.read(part, at)?;
        if !is_zero(part) {
            return Ok(false);
        }
        at += piece;
    }
    Ok(true)
}

/// The parts whose sectors differ.
fn different(new: &[u8], old: &[u8], sector: usize) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    for (index, (a, b)) in new.chunks(sector).zip(old.chunks(sector)).enumerate() {
        if a != b {
            add(&mut parts, index * sector..index * sector + a.len());
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use std::iter::once;

    use super::*;

    #[test]
    fn grains_of_zeros_are_left_out() {
        let grain = GRAIN as usize;
        let mut bytes = vec![0; 3 * grain];
        assert_eq!(stored(&bytes, 512), []);
        // In the grain that begins before the buffer, and at the end.
        bytes[grain - 513] = 1;
        assert!(stored(&bytes, 512).into_iter().eq(once(0..grain - 512)));
        bytes[grain - 512] = 1;
        bytes[3 * grain - 1] = 1;
        assert_eq!(stored(&bytes, 512), [0..2 * grain - 512, 3 * grain - 512..3 * grain]);
    }
}
