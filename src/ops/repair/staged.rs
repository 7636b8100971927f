//! A file as it will be: changes are kept in memory, in order, until [`Staged::apply`] makes them.
//!
//! A repair runs on this with the code that changes files anyway, barriers and all. What it did is then known before
//! the first byte of the file changes: the result can be checked, and what it overwrites saved.

use std::any::Any;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::storage::draft::Draft;
use crate::storage::{Barrier, FileId, LockMode, Storage};

#[derive(Debug, Clone)]
enum Change {
    Write { at: u64, bytes: Arc<[u8]> },
    Zero { at: u64, len: u64 },
    SetLen(u64),
    Flush(Barrier),
}

#[derive(Debug)]
struct State {
    draft: Draft,
    changes: Vec<Change>,
}

impl State {
    fn new(base: &Arc<dyn Storage>) -> io::Result<State> {
        Ok(State {
            draft: Draft::new(Some(base.clone()))?,
            changes: Vec::new(),
        })
    }
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
        let state = State::new(&base)?;
        Ok(Staged {
            base,
            original_len: state.draft.len(),
            state: Mutex::new(state),
        })
    }

    pub(super) fn original_len(&self) -> u64 {
        self.original_len
    }

    /// Forgets every change.
    pub(super) fn discard(&self) -> io::Result<()> {
        *self.state.lock() = State::new(&self.base)?;
        Ok(())
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
}

impl Storage for Staged {
    fn read_at(&self, buf: &mut [u8], file_offset: u64) -> io::Result<()> {
        self.state.lock().draft.read(buf, file_offset)
    }

    fn write_at(&self, buf: &[u8], file_offset: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        state.draft.write(buf, file_offset)?;
        state.changes.push(Change::Write {
            at: file_offset,
            bytes: buf.into(),
        });
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().draft.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        state.draft.set_len(len);
        state.changes.push(Change::SetLen(len));
        Ok(())
    }

    fn flush(&self, barrier: Barrier) -> io::Result<()> {
        self.state.lock().changes.push(Change::Flush(barrier));
        Ok(())
    }

    fn zero_range(&self, file_offset: u64, len: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        state.draft.zero(file_offset, len)?;
        state.changes.push(Change::Zero { at: file_offset, len });
        Ok(())
    }

    fn release_range(&self, _: u64, _: u64) -> io::Result<()> {
        // A repair gives back nothing but the tail.
        Ok(())
    }

    fn next_data(&self, file_offset: u64, end: u64) -> io::Result<Option<Range<u64>>> {
        self.state.lock().draft.next_data(file_offset, end)
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
