//! Finding the active sequence (MS-VHDX 2.3.4).
//!
//! Entries cannot overlap: an entry's later sectors begin with `desc`, `zero` or `data`, never with `loge`. A scan that
//! stops at the first wrong signature therefore touches each log sector a bounded number of times, and a start inside a
//! run that was examined is a suffix of it: no hostile log makes the scan quadratic.

use crate::error::{Defect, Error, ErrorKind, IoContext, Result, Rule};
use crate::format::header::Header;
use crate::format::log::{self, Entry, EntryHeader};
use crate::limits;
use crate::storage::Storage;
use crate::units::{align_up, MIB};

/// Bytes of log read at once.
const WINDOW: usize = 256 << 10;

/// Where a valid entry is, and what decides which entries count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Located {
    /// Offset in the log.
    pub(crate) offset: u32,
    /// The entry's header.
    pub(crate) header: EntryHeader,
}

/// The entries to replay, oldest first; never empty.
#[derive(Debug, Clone)]
pub(crate) struct Sequence {
    pub(crate) entries: Vec<Located>,
    /// Length the file has after replay, at least: a multiple of 1 MiB.
    pub(crate) file_len: u64,
}

/// Reads the log ring.
pub(crate) struct Reader<'a> {
    storage: &'a dyn Storage,
    header: Header,
    window: Vec<u8>,
    window_start: u64,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(storage: &'a dyn Storage, header: &Header) -> Self {
        Reader {
            storage,
            header: *header,
            window: Vec::new(),
            window_start: 0,
        }
    }

    /// The 4 KiB sector at `offset` in the log.
    fn sector(&mut self, offset: u64) -> Result<&[u8]> {
        let end = offset.saturating_add(log::SECTOR);
        let window_end = self.window_start.saturating_add(self.window.len() as u64);
        if offset < self.window_start || end > window_end {
            let len = u64::from(self.header.log_length)
                .saturating_sub(offset)
                .min(WINDOW as u64) as usize;
            self.window.resize(len, 0);
            let at = self.file_offset(offset);
            self.storage
                .read_at(&mut self.window, at)
                .context(|| format!("read the log at file offset {at:#x}"))?;
            self.window_start = offset;
        }
        let from = offset.saturating_sub(self.window_start) as usize;
        let sector = self
            .window
            .get(from..)
            .and_then(|rest| rest.get(..log::SECTOR as usize));
        sector.ok_or_else(|| Error::new(ErrorKind::Bug, format!("log offset {offset:#x} is outside the log")))
    }

    /// The place in the file of an offset in the log. The header's rules keep the log inside any file there is.
    fn file_offset(&self, offset: u64) -> u64 {
        self.header.log_offset.saturating_add(offset)
    }

    /// The bytes of an entry, in ring order.
    fn bytes(&self, offset: u32, len: u32) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        let first = self.header.log_length.saturating_sub(offset).min(len) as usize;
        let (head, tail) = bytes.split_at_mut(first);
        for (part, at) in [(head, offset), (tail, 0)] {
            let at = self.file_offset(u64::from(at));
            if !part.is_empty() {
                self.storage
                    .read_at(part, at)
                    .context(|| format!("read the log at file offset {at:#x}"))?;
            }
        }
        Ok(bytes)
    }

    /// Reads and validates the entry at `offset`.
    pub(crate) fn entry(&self, located: &Located) -> Result<Entry> {
        let bytes = self.bytes(located.offset, located.header.entry_length)?;
        Entry::parse(&bytes, self.header.log_guid, self.header.log_length).map_err(|why| {
            Defect::new(
                Rule::LogEmpty,
                "log entry",
                self.file_offset(u64::from(located.offset)),
                why,
                "the entry that was valid a moment ago",
            )
            .into()
        })
    }

    /// Whether a valid entry starts at `offset`.
    fn locate(&mut self, offset: u32) -> Result<Option<Located>> {
        let (guid, log_length) = (self.header.log_guid, self.header.log_length);
        let Some(header) = EntryHeader::parse(self.sector(u64::from(offset))?, guid, log_length) else {
            return Ok(None);
        };
        let first = u64::from(offset);
        let sectors = (first..first.saturating_add(u64::from(header.entry_length))).step_by(log::SECTOR as usize);
        for at in sectors.skip(1) {
            let at = wrap(at, log_length);
            if !matches!(self.sector(at)?.get(..4), Some(b"desc" | b"zero" | b"data")) {
                return Ok(None);
            }
        }
        let bytes = self.bytes(offset, header.entry_length)?;
        let valid = Entry::parse(&bytes, guid, log_length).is_ok();
        Ok(valid.then_some(Located { offset, header }))
    }
}

/// An offset that ran past the end of the log, once at most.
fn wrap(offset: u64, log_length: u32) -> u64 {
    match offset.checked_sub(u64::from(log_length)) {
        Some(past) => past,
        None => offset,
    }
}

/// Finds the sequence that a header with a nonzero LogGuid refers to, checks every target, and returns it.
pub(crate) fn active_sequence(storage: &dyn Storage, header: &Header, file_len: u64) -> Result<Sequence> {
    let mut reader = Reader::new(storage, header);
    let log_length = header.log_length;
    let mut candidate: Option<Vec<Located>> = None;
    let mut start = 0u32;
    while start < log_length {
        let mut run: Vec<Located> = Vec::new();
        let mut total = 0u64;
        let mut at = start;
        let mut end = u64::from(start);
        while let Some(entry) = reader.locate(at)? {
            let follows = run
                .last()
                .is_none_or(|last| last.header.sequence_number.checked_add(1) == Some(entry.header.sequence_number));
            total = total.saturating_add(u64::from(entry.header.entry_length));
            if !follows || total > u64::from(log_length) {
                break;
            }
            end = end.saturating_add(u64::from(entry.header.entry_length));
            at = wrap(end, log_length) as u32;
            run.push(entry);
        }
        if let Some(head) = run.last() {
            let newer = candidate
                .as_ref()
                .and_then(|c| c.last())
                .is_none_or(|best| head.header.sequence_number > best.header.sequence_number);
            if let (true, Some(first)) = (newer, run.iter().position(|e| e.offset == head.header.tail)) {
                candidate = Some(run.split_off(first));
            }
        }
        // Later starts inside this run are suffixes of it and end in the same head.
        start = u32::try_from(end.max(u64::from(start).saturating_add(log::SECTOR))).unwrap_or(log_length);
    }
    let Some(entries) = candidate else {
        return Err(Error::from(Defect::new(
            Rule::LogEmpty,
            "log",
            header.log_offset,
            format!("no valid entry for LogGuid {}", header.log_guid),
            "at least one entry, because the header says the log is in use",
        )));
    };
    check_sequence(&reader, header, entries, file_len)
}

/// The checks of MS-VHDX 2.3.4 on the chosen sequence, and the targets of every update: before anything is written.
fn check_sequence(reader: &Reader<'_>, header: &Header, entries: Vec<Located>, file_len: u64) -> Result<Sequence> {
    let offset_of = |e: &Located| reader.file_offset(u64::from(e.offset));
    if let Some(head) = entries.last() {
        if file_len < head.header.flushed_file_offset {
            return Err(Error::from(Defect::new(
                Rule::FileTruncated,
                "log entry",
                offset_of(head),
                format!("a file of {file_len} bytes"),
                format!(
                    "at least the {} bytes that were durable",
                    head.header.flushed_file_offset
                ),
            )));
        }
    }
    let mut max_end = file_len;
    for entry in &entries {
        let last = entry.header.last_file_offset;
        let rounded = align_up(last, MIB).filter(|&end| end <= limits::MAX_FILE_LEN);
        let Some(rounded) = rounded else {
            return Err(Error::from(Defect::new(
                Rule::LogTarget,
                "log entry",
                offset_of(entry),
                format!("LastFileOffset {last:#x}"),
                "at most 256 TiB",
            )));
        };
        max_end = max_end.max(rounded);
    }
    for entry in &entries {
        for update in &reader.entry(entry)?.updates {
            log::check_target(update, header.log_offset, header.log_length, max_end)?;
        }
    }
    let last = entries.last().map_or(0, |head| head.header.last_file_offset);
    Ok(Sequence {
        entries,
        file_len: align_up(last, MIB).unwrap_or(last),
    })
}
