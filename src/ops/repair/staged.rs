//! A file as it will be: changes are kept in memory, in order, until [`Staged::apply`] makes them.
//!
//! A repair runs on this with the code that changes files anyway, barriers and all. What it did is then known before
//! the first byte of the file changes: the result can be checked, and what it overwrites saved.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::storage::{Barrier, FileId, LockMode, Storage};

const PAGE: u64 = 4096;

#[derive(Debug, Clone)]
enum Change {
    Write { at: u64, bytes: Arc<[u8]> },
    Zero { at: u64, len: u64 },
    SetLen(u64),
    Flush(Barrier),
}

#[derive(Debug, Default)]
struct State {
    len: u64,
    /// Bytes of the file below that still show; it was cut to this, and grown again with zeros.
    base_len: u64,
    /// Pages written, by offset; they hide the zeros.
    pages: BTreeMap<u64, Box<[u8; PAGE as usize]>>,
    zeros: Vec<Range<u64>>,
    changes: Vec<Change>,
}

/// A file and the changes it is to get.
#[derive(Debug)]
pub(super) struct Staged {
    base: Arc<dyn Storage>,
    original_len: u64,
    state: Mutex<State>,
}

impl Staged {
    pub(super) fn new(base: Arc<dyn Storage>) -> io::Result<Self> {
        let len = base.len()?;
        Ok(Staged {
            base,
            original_len: len,
            state: Mutex::new(State {
                len,
                base_len: len,
                ..State::default()
            }),
        })
    }

    pub(super) fn original_len(&self) -> u64 {
        self.original_len
    }

    /// Forgets every change.
    pub(super) fn discard(&self) {
        *self.state.lock() = State {
            len: self.original_len,
            base_len: self.original_len,
            ..State::default()
        };
    }

    /// Whether the file would change.
    pub(super) fn is_changed(&self) -> bool {
        let state = self.state.lock();
        state.changes.iter().any(|change| !matches!(change, Change::Flush(_)))
    }

    /// The contents of every write to one of the ranges at `offsets`, which are `len` bytes long.
    pub(super) fn writes_to(&self, offsets: &[u64], len: usize) -> Vec<Arc<[u8]>> {
        let state = self.state.lock();
        let wanted = state.changes.iter().filter_map(|change| match change {
            Change::Write { at, bytes } if offsets.contains(at) && bytes.len() == len => Some(bytes.clone()),
            _ => None,
        });
        wanted.collect()
    }

    /// The ranges of the file as it is that the changes overwrite or cut: disjoint, ascending.
    pub(super) fn overwritten(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for change in &self.state.lock().changes {
            let range = match change {
                Change::Write { at, bytes } => *at..at.saturating_add(bytes.len() as u64),
                Change::Zero { at, len } => *at..at.saturating_add(*len),
                Change::SetLen(len) => *len..self.original_len,
                Change::Flush(_) => continue,
            };
            let range = range.start..range.end.min(self.original_len);
            if range.start < range.end {
                ranges.push(range);
            }
        }
        ranges.sort_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        merged
    }

    /// Makes every change, and flushes where the code that asked for them did.
    pub(super) fn apply(&self) -> io::Result<()> {
        for change in &self.state.lock().changes {
            match change {
                Change::Write { at, bytes } => self.base.write_at(bytes, *at)?,
                Change::Zero { at, len } => self.base.zero_range(*at, *len)?,
                Change::SetLen(len) => self.base.set_len(*len)?,
                Change::Flush(barrier) => self.base.flush(*barrier)?,
            }
        }
        Ok(())
    }

    /// A page as it is now.
    fn page(&self, state: &State, at: u64) -> io::Result<Box<[u8; PAGE as usize]>> {
        if let Some(page) = state.pages.get(&at) {
            return Ok(page.clone());
        }
        let mut page = Box::new([0; PAGE as usize]);
        self.read_below(state, &mut page[..], at)?;
        Ok(page)
    }

    /// The bytes without the pages written.
    fn read_below(&self, state: &State, buf: &mut [u8], at: u64) -> io::Result<()> {
        let present = state.base_len.saturating_sub(at).min(buf.len() as u64) as usize;
        let (file, beyond) = buf.split_at_mut(present);
        beyond.fill(0);
        if !file.is_empty() {
            self.base.read_at(file, at)?;
        }
        let end = at + buf.len() as u64;
        for zeros in &state.zeros {
            let (from, to) = (zeros.start.max(at), zeros.end.min(end));
            if from < to {
                buf[(from - at) as usize..(to - at) as usize].fill(0);
            }
        }
        Ok(())
    }

    fn put(&self, state: &mut State, buf: &[u8], file_offset: u64) -> io::Result<()> {
        let (mut at, mut rest) = (file_offset, buf);
        while !rest.is_empty() {
            let start = at / PAGE * PAGE;
            let within = (at - start) as usize;
            let (part, later) = rest.split_at(rest.len().min(PAGE as usize - within));
            let mut page = self.page(state, start)?;
            page[within..within + part.len()].copy_from_slice(part);
            state.pages.insert(start, page);
            (at, rest) = (at + part.len() as u64, later);
        }
        state.len = state.len.max(file_offset + buf.len() as u64);
        Ok(())
    }
}

impl Storage for Staged {
    fn read_at(&self, buf: &mut [u8], file_offset: u64) -> io::Result<()> {
        let state = self.state.lock();
        let end = file_offset.checked_add(buf.len() as u64);
        let Some(end) = end.filter(|&end| end <= state.len) else {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        };
        self.read_below(&state, buf, file_offset)?;
        for (&at, page) in state.pages.range(file_offset / PAGE * PAGE..end) {
            let (from, to) = (at.max(file_offset), (at + PAGE).min(end));
            buf[(from - file_offset) as usize..(to - file_offset) as usize]
                .copy_from_slice(&page[(from - at) as usize..(to - at) as usize]);
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], file_offset: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        self.put(&mut state, buf, file_offset)?;
        state.changes.push(Change::Write {
            at: file_offset,
            bytes: buf.into(),
        });
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        if len < state.len {
            state.base_len = state.base_len.min(len);
            let kept = len / PAGE * PAGE;
            if let Some(page) = state.pages.get_mut(&kept) {
                page[(len - kept) as usize..].fill(0);
            }
            state.pages.split_off(&len.next_multiple_of(PAGE));
        }
        state.len = len;
        state.changes.push(Change::SetLen(len));
        Ok(())
    }

    fn flush(&self, barrier: Barrier) -> io::Result<()> {
        self.state.lock().changes.push(Change::Flush(barrier));
        Ok(())
    }

    fn zero_range(&self, file_offset: u64, len: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        let end = file_offset + len;
        // Pages in part inside are written; what lies whole inside is noted, however long it is.
        let (first, last) = (file_offset.next_multiple_of(PAGE), end / PAGE * PAGE);
        if first >= last {
            self.put(&mut state, &vec![0; len as usize], file_offset)?;
        } else {
            self.put(&mut state, &vec![0; (first - file_offset) as usize], file_offset)?;
            self.put(&mut state, &vec![0; (end - last) as usize], last)?;
            let inside: Vec<u64> = state.pages.range(first..last).map(|(&at, _)| at).collect();
            for at in inside {
                state.pages.remove(&at);
            }
            state.zeros.push(first..last);
        }
        state.changes.push(Change::Zero { at: file_offset, len });
        Ok(())
    }

    fn release_range(&self, _: u64, _: u64) -> io::Result<()> {
        // A repair gives back nothing but the tail.
        Ok(())
    }

    fn next_data(&self, file_offset: u64, end: u64) -> io::Result<Option<Range<u64>>> {
        let state = self.state.lock();
        let below = match file_offset < end.min(state.base_len) {
            true => self.base.next_data(file_offset, end.min(state.base_len))?,
            false => None,
        };
        let page = state.pages.range(file_offset / PAGE * PAGE..end).next();
        let page = page.map(|(&at, _)| at.max(file_offset)..(at + PAGE).min(end));
        Ok(match (below, page) {
            (Some(below), Some(page)) if page.start < below.start => Some(page),
            (None, page) => page,
            (below, _) => below,
        })
    }

    fn grows_with_zeros(&self) -> bool {
        self.base.grows_with_zeros()
    }

    fn lock(&self, mode: LockMode) -> io::Result<()> {
        self.base.lock(mode)
    }

    fn id(&self) -> Option<FileId> {
        self.base.id()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
