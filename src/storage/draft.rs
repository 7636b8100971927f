//! The content of a file with changes that are in memory only.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::Storage;

const PAGE: u64 = 4096;

/// Changes to the content of a file, or of none.
#[derive(Debug)]
pub(crate) struct Draft {
    base: Option<Arc<dyn Storage>>,
    len: u64,
    /// Bytes of the file below that still show; it was cut to this, and grown again with zeros.
    base_len: u64,
    /// Pages written, by offset; they hide the zeros.
    pages: BTreeMap<u64, Box<[u8; PAGE as usize]>>,
    zeros: Vec<Range<u64>>,
}

impl Draft {
    /// The file as it is; an empty one where there is none.
    pub(crate) fn new(base: Option<Arc<dyn Storage>>) -> io::Result<Draft> {
        let len = base.as_ref().map_or(Ok(0), |base| base.len())?;
        Ok(Draft {
            base,
            len,
            base_len: len,
            pages: BTreeMap::new(),
            zeros: Vec::new(),
        })
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn read(&self, buf: &mut [u8], file_offset: u64) -> io::Result<()> {
        let end = file_offset.checked_add(buf.len() as u64);
        let Some(end) = end.filter(|&end| end <= self.len) else {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        };
        self.read_below(buf, file_offset)?;
        for (&at, page) in self.pages.range(file_offset / PAGE * PAGE..end) {
            let (from, to) = (at.max(file_offset), (at + PAGE).min(end));
            buf[(from - file_offset) as usize..(to - file_offset) as usize]
                .copy_from_slice(&page[(from - at) as usize..(to - at) as usize]);
        }
        Ok(())
    }

    pub(crate) fn write(&mut self, buf: &[u8], file_offset: u64) -> io::Result<()> {
        let (mut at, mut rest) = (file_offset, buf);
        while !rest.is_empty() {
            let start = at / PAGE * PAGE;
            let within = (at - start) as usize;
            let (part, later) = rest.split_at(rest.len().min(PAGE as usize - within));
            let mut page = self.page(start)?;
            page[within..within + part.len()].copy_from_slice(part);
            self.pages.insert(start, page);
            (at, rest) = (at + part.len() as u64, later);
        }
        self.grow(file_offset + buf.len() as u64);
        Ok(())
    }

    /// The file is at least so long.
    pub(crate) fn grow(&mut self, len: u64) {
        self.len = self.len.max(len);
    }

    pub(crate) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.base_len = self.base_len.min(len);
            let kept = len / PAGE * PAGE;
            if let Some(page) = self.pages.get_mut(&kept) {
                page[(len - kept) as usize..].fill(0);
            }
            self.pages.split_off(&len.next_multiple_of(PAGE));
        }
        self.len = len;
    }

    pub(crate) fn zero(&mut self, file_offset: u64, len: u64) -> io::Result<()> {
        let end = file_offset + len;
        // Pages in part inside are written; what lies whole inside is noted, however long it is.
        let (first, last) = (file_offset.next_multiple_of(PAGE), end / PAGE * PAGE);
        if first >= last {
            return self.write(&vec![0; len as usize], file_offset);
        }
        self.write(&vec![0; (first - file_offset) as usize], file_offset)?;
        self.write(&vec![0; (end - last) as usize], last)?;
        let inside: Vec<u64> = self.pages.range(first..last).map(|(&at, _)| at).collect();
        for at in inside {
            self.pages.remove(&at);
        }
        match self.zeros.last_mut().filter(|zeros| zeros.end == first) {
            Some(zeros) => zeros.end = last,
            None => self.zeros.push(first..last),
        }
        Ok(())
    }

    pub(crate) fn next_data(&self, file_offset: u64, end: u64) -> io::Result<Option<Range<u64>>> {
        let below = match &self.base {
            Some(base) if file_offset < end.min(self.base_len) => {
                base.next_data(file_offset, end.min(self.base_len))?
            }
            _ => None,
        };
        let page = self.pages.range(file_offset / PAGE * PAGE..end).next();
        let page = page.map(|(&at, _)| at.max(file_offset)..(at + PAGE).min(end));
        Ok(match (below, page) {
            (Some(below), Some(page)) if page.start < below.start => Some(page),
            (None, page) => page,
            (below, _) => below,
        })
    }

    /// A page as it is now.
    fn page(&self, at: u64) -> io::Result<Box<[u8; PAGE as usize]>> {
        if let Some(page) = self.pages.get(&at) {
            return Ok(page.clone());
        }
        let mut page = Box::new([0; PAGE as usize]);
        self.read_below(&mut page[..], at)?;
        Ok(page)
    }

    /// The bytes without the pages written.
    fn read_below(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let present = self.base_len.saturating_sub(at).min(buf.len() as u64) as usize;
        let (file, beyond) = buf.split_at_mut(present);
        beyond.fill(0);
        if let Some(base) = self.base.as_ref().filter(|_| !file.is_empty()) {
            base.read_at(file, at)?;
        }
        let end = at + buf.len() as u64;
        for zeros in &self.zeros {
            let (from, to) = (zeros.start.max(at), zeros.end.min(end));
            if from < to {
                buf[(from - at) as usize..(to - at) as usize].fill(0);
            }
        }
        Ok(())
    }
}
