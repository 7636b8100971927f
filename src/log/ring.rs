//! Appending to the log (MS-VHDX 2.3; docs/durability.md "Commit").
//!
//! The sequence that the newest durable entry names occupies at most half of the ring, and so does any new entry; a new
//! entry therefore never touches it, whatever the crash, and no entry has to be written only to make room.

use crate::error::{Defect, Error, ErrorKind, IoContext, Result, Rule};
use crate::format::log::{self, EntryHeader};
use crate::guid::Guid;
use crate::storage::{Barrier, Storage};
use crate::units::LOG_SECTOR;

/// A 4 KiB metadata sector as it was when its entry was composed.
pub(crate) type PageBytes = [u8; LOG_SECTOR as usize];

/// The log being written. All offsets are in bytes from the start of the log.
#[derive(Debug)]
pub(crate) struct Ring {
    guid: Guid,
    file_offset: u64,
    length: u32,
    next_sequence: u64,
    head: u32,
    tail: u32,
    /// Bytes from tail to head.
    used: u32,
}

impl Ring {
    /// A ring for a log nobody refers to: its header's LogGuid is zero.
    pub(crate) fn new(file_offset: u64, length: u32) -> Self {
        Ring {
            guid: Guid::random(),
            file_offset,
            length,
            next_sequence: random_start(),
            head: 0,
            tail: 0,
            used: 0,
        }
    }

    /// The LogGuid of the entries written here.
    pub(crate) fn guid(&self) -> Guid {
        self.guid
    }

    /// Most pages one entry may carry, so that it takes at most half of a log of `length` bytes.
    pub(crate) fn max_pages(length: u32) -> usize {
        let half = (u64::from(length) / 2).saturating_sub(LOG_SECTOR << 1);
        let mut pages = (half / LOG_SECTOR) as usize;
        while pages > 0 && log::entry_len(0, pages) > half {
            pages = pages.saturating_sub(1);
        }
        pages
    }

    /// Whether an entry of `pages` fits without retiring older ones first.
    pub(crate) fn has_room(&self, pages: usize) -> bool {
        u64::from(self.used).saturating_add(log::entry_len(0, pages)) <= u64::from(self.length) / 2
    }

    /// Every update logged so far is at its final place and durable: the next entry starts a new sequence.
    pub(crate) fn retire(&mut self) {
        self.tail = self.head;
        self.used = 0;
    }

    /// Appends one entry and makes it durable with `barrier`. `flushed_len` is a file length known durable, `last_len`
    /// one that contains everything the entry refers to.
    pub(crate) fn append(
        &mut self,
        storage: &dyn Storage,
        pages: &[(u64, &PageBytes)],
        flushed_len: u64,
        last_len: u64,
        barrier: Barrier,
    ) -> Result<()> {
        let sequence_number = self.next_sequence;
        let next_sequence = sequence_number.checked_add(1).ok_or_else(|| {
            Error::from(Defect::new(
                Rule::HeaderSequence,
                "log",
                self.file_offset,
                "an exhausted sequence number",
                "fewer than 2^64 entries",
            ))
        })?;
        let header = EntryHeader {
            checksum: 0,
            entry_length: 0,
            tail: self.tail,
            sequence_number,
            descriptor_count: 0,
            log_guid: self.guid,
            flushed_file_offset: flushed_len,
            last_file_offset: last_len,
        };
        let bytes = log::encode_entry(&header, &[], pages);
        let len = bytes.len() as u64;
        let used = u64::from(self.used).saturating_add(len);
        if used > u64::from(self.length).saturating_sub(LOG_SECTOR) {
            return Err(Error::new(
                ErrorKind::Bug,
                "a log entry would overwrite the active sequence",
            ));
        }
        let before_end = u64::from(self.length.saturating_sub(self.head));
        let (first, second) = bytes.split_at(before_end.min(len) as usize);
        for (part, at) in [(first, self.head), (second, 0)] {
            if !part.is_empty() {
                let at = self.file_offset.saturating_add(u64::from(at));
                storage
                    .write_at(part, at)
                    .context(|| format!("write the log at file offset {at:#x}"))?;
            }
        }
        storage.flush(barrier).context(|| "make a log entry durable".into())?;
        self.next_sequence = next_sequence;
        self.head = match len.checked_sub(before_end) {
            Some(past) => past as u32,
            None => self.head.saturating_add(len as u32),
        };
        self.used = used as u32;
        Ok(())
    }
}

/// A first sequence number: random, as Windows does, so that stale entries are unlikely to continue a new sequence.
fn random_start() -> u64 {
    let [a, b, c, d, ..] = Guid::random().to_stored();
    u64::from(u32::from_le_bytes([a, b, c, d])).saturating_add(1)
}
