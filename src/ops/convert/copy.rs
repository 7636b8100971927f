//! Moving the content. Holes are never read; zeros are never written.

use std::ops::Range;

use super::source::{Content, Run};
use super::target::{Target, Vhdx};
use crate::error::{PathContext, Result};
use crate::image::payload::Payload;
use crate::ops::pace::Pace;
use crate::units::{align_down, align_up, MIB};

/// Bytes read at once, aligned for the page cache.
const PIECE: u64 = 4 * MIB;
/// Zeros are left out in pieces of this size, aligned.
const GRAIN: u64 = 64 << 10;
/// Ranges read are multiples of this, the larger of the two sector sizes.
const ALIGNMENT: u64 = 4096;

/// Copies all that is not zero.
pub(crate) fn flat(source: &dyn Content, target: &mut dyn Target, pace: &mut Pace<'_>) -> Result<()> {
    let size = source.size()?;
    let mut buf = vec![0; PIECE as usize];
    let mut at = 0;
    while at < size {
        // One aligned window at a time, and of it what lies between the first and the last byte stored.
        let end = (align_down(at, PIECE) + PIECE).min(size);
        let mut stored: Option<Range<u64>> = None;
        let mut next = at;
        while next < end {
            let Run { len, place } = source.run(next, size - next)?;
            if place.is_some() {
                let first = stored.as_ref().map_or(next, |range| range.start);
                stored = Some(first..(next + len).min(end));
            }
            next += len;
            if place.is_some() {
                next = next.min(end);
            }
        }
        let mut copied = 0;
        if let Some(range) = stored {
            let from = align_down(range.start, ALIGNMENT);
            let to = align_up(range.end, ALIGNMENT).unwrap_or(size).min(size);
            copied = to - from;
            let piece = &mut buf[..copied as usize];
            source.read(piece, from)?;
            put_sparse(piece, from, &mut |bytes, at| target.put(bytes, at))?;
        }
        // A hole may reach far behind the window.
        pace.advance(next - at, copied)?;
        at = next;
    }
    Ok(())
}

/// Passes on the grains that hold something.
fn put_sparse(piece: &[u8], offset: u64, put: &mut dyn FnMut(&[u8], u64) -> Result<()>) -> Result<()> {
    let grain_end = |at: u64| (align_down(at, GRAIN) + GRAIN).min(offset + piece.len() as u64);
    let part = |from: u64, to: u64| &piece[(from - offset) as usize..(to - offset) as usize];
    let end = offset + piece.len() as u64;
    let mut at = offset;
    let mut start = offset;
    while at < end {
        let next = grain_end(at);
        if is_zero(part(at, next)) {
            if start < at {
                put(part(start, at), start)?;
            }
            start = next;
        }
        at = next;
    }
    match start < end {
        true => put(part(start, end), start),
        false => Ok(()),
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // In chunks, which the compiler turns into wide instructions.
    bytes
        .chunks(64)
        .all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Copies what differs from `parent`, in sectors, to its child `target`.
pub(crate) fn difference(
    source: &dyn Content,
    parent: &dyn Content,
    target: &mut Vhdx,
    pace: &mut Pace<'_>,
) -> Result<()> {
    let geometry = *target.image.geometry();
    let (sector, block) = (geometry.sector_size(), geometry.block_size());
    let size = source.size()?;
    let parent_size = parent.size()?;
    let parent_run = |at: u64, max: u64| match parent_size.checked_sub(at).filter(|&rest| rest > 0) {
        Some(rest) => parent.run(at, max.min(rest)),
        None => Ok(Run { len: max, place: None }),
    };
    let (mut new, mut old) = (vec![0; PIECE as usize], vec![0; PIECE as usize]);
    let mut at = 0;
    while at < size {
        let here = source.run(at, size - at)?;
        let there = parent_run(at, size - at)?;
        let len = here.len.min(there.len);
        let same = match (here.place, there.place) {
            (None, None) => true,
            (Some((Some(a), from)), Some((Some(b), offset))) => a == b && from == offset,
            _ => false,
        };
        if same {
            at += len;
            pace.advance(len, 0)?;
            continue;
        }
        let block_len = geometry.block_len(geometry.block_of(at));
        if here.place.is_none() && at % block == 0 && here.len >= block_len {
            // Zeros over something: the whole block, without storing one.
            if !reads_zero(parent, at, block_len.min(parent_size - at), &mut old)? {
                target.image.zero(at, block_len, true).at(target.image.name())?;
            }
            at += block_len;
            pace.advance(block_len, block_len)?;
            continue;
        }
        // Whole sectors of the disks, which may be larger than what a file knows as one.
        let from = align_down(at, sector);
        let len = align_up(at + len, sector).unwrap_or(size).min(size).min(from + PIECE) - from;
        let (new, old) = (&mut new[..len as usize], &mut old[..len as usize]);
        source.read(new, from)?;
        let known = parent_size.saturating_sub(from).min(len);
        parent.read(&mut old[..known as usize], from)?;
        old[known as usize..].fill(0);
        put_different(new, old, sector as usize, &mut |bytes, start| {
            target.image.write(from + start, Payload::Bytes(bytes))
        })?;
        let done = from + len - at;
        at += done;
        pace.advance(done, len)?;
    }
    Ok(())
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

fn put_different(new: &[u8], old: &[u8], sector: usize, put: &mut dyn FnMut(&[u8], u64) -> Result<()>) -> Result<()> {
    let mut start: Option<usize> = None;
    let count = new.len().div_ceil(sector);
    for index in 0..=count {
        let at = (index * sector).min(new.len());
        let end = (at + sector).min(new.len());
        let differs = index < count && new[at..end] != old[at..end];
        match (start, differs) {
            (None, true) => start = Some(at),
            (Some(from), false) => {
                put(&new[from..at], from as u64)?;
                start = None;
            }
            _ => {}
        }
    }
    Ok(())
}
