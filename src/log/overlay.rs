//! A file with its log applied in memory: what a reader that must not write sees.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::scan::{Reader, Sequence};
use crate::error::Result;
use crate::format::header::Header;
use crate::format::log::{Update, SECTOR};
use crate::storage::{Barrier, CopyMethod, FileId, LockMode, Storage};

/// What a range of the file is covered with.
#[derive(Debug, Clone)]
enum Cover {
    Zero,
    Page(Arc<[u8]>),
}

/// The file `base` as it will be once its log is replayed. For reading: every write fails with `EROFS`.
#[derive(Debug)]
pub(crate) struct Overlay {
    base: Arc<dyn Storage>,
    base_len: u64,
    len: u64,
    /// Disjoint ranges by start: end and content.
    covers: BTreeMap<u64, (u64, Cover)>,
}

impl Overlay {
    /// Builds the overlay of a checked sequence. Memory is bounded by the length of the log.
    pub(crate) fn new(base: Arc<dyn Storage>, base_len: u64, header: &Header, sequence: &Sequence) -> Result<Self> {
        let mut overlay = Overlay {
            base_len,
            len: base_len.max(sequence.file_len),
            covers: BTreeMap::new(),
            base: base.clone(),
        };
        let reader = Reader::new(&*base, header);
        for located in &sequence.entries {
            for update in reader.entry(located)?.updates {
                match update {
                    Update::Data { file_offset, page } => {
                        overlay.put(file_offset, SECTOR, Cover::Page(Arc::from(&page[..])))
                    }
                    Update::Zero { file_offset, length } => overlay.put(file_offset, length, Cover::Zero),
                }
            }
        }
        Ok(overlay)
    }

    /// Later updates hide earlier ones. Pages are replaced whole or cut at 4 KiB multiples, so never split.
    fn put(&mut self, file_offset: u64, length: u64, cover: Cover) {
        let range = file_offset..file_offset.saturating_add(length); // checked: the target ends inside the file to be
        self.len = self.len.max(range.end);
        let overlapping: Vec<u64> = self
            .covers
            .range(..range.end)
            .rev()
            .take_while(|(_, (end, _))| *end > range.start)
            .map(|(&start, _)| start)
            .collect();
        for start in overlapping {
            if let Some((end, old)) = self.covers.remove(&start) {
                if start < range.start {
                    self.covers.insert(start, (range.start, old.clone()));
                }
                if end > range.end {
                    self.covers.insert(range.end, (end, old));
                }
            }
        }
        if !range.is_empty() {
            self.covers.insert(range.start, (range.end, cover));
        }
    }

    /// The piece of cover at `at`, or how far there is none.
    fn cover_at(&self, at: u64) -> (u64, Option<(u64, &Cover)>) {
        if let Some((&start, (end, cover))) = self.covers.range(..=at).next_back() {
            if *end > at {
                return (*end, Some((start, cover)));
            }
        }
        (
            self.covers.range(at..).next().map_or(u64::MAX, |(&start, _)| start),
            None,
        )
    }

    fn read_base(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let present = self.base_len.saturating_sub(at).min(buf.len() as u64) as usize;
        let (file, beyond) = buf.split_at_mut(present);
        beyond.fill(0);
        if file.is_empty() {
            return Ok(());
        }
        self.base.read_at(file, at)
    }
}

fn read_only() -> io::Error {
    io::Error::from_raw_os_error(libc::EROFS)
}

impl Storage for Overlay {
    fn read_at(&self, mut buf: &mut [u8], file_offset: u64) -> io::Result<()> {
        let mut at = file_offset;
        if at.checked_add(buf.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while !buf.is_empty() {
            let (end, cover) = self.cover_at(at);
            let len = end.saturating_sub(at).min(buf.len() as u64) as usize;
            let (part, rest) = buf.split_at_mut(len);
            match cover {
                None => self.read_base(part, at)?,
                Some((_, Cover::Zero)) => part.fill(0),
                Some((start, Cover::Page(page))) => {
                    let from = at.saturating_sub(start) as usize;
                    let bytes = page.get(from..).and_then(|rest| rest.get(..len));
                    part.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
                }
            }
            buf = rest;
            at = at.saturating_add(len as u64);
        }
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn flush(&self, barrier: Barrier) -> io::Result<()> {
        self.base.flush(barrier)
    }

    fn zero_range(&self, _: u64, _: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn release_range(&self, _: u64, _: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn copy_range_from(&self, _: &dyn Storage, _: u64, _: u64, _: u64, _: CopyMethod) -> io::Result<()> {
        Err(read_only())
    }

    fn lock(&self, mode: LockMode) -> io::Result<()> {
        self.base.lock(mode)
    }

    fn id(&self) -> Option<FileId> {
        self.base.id()
    }

    fn as_raw_fd(&self) -> Option<i32> {
        // The descriptor alone would show the file without its log.
        None
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
