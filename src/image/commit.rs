//! Making changes durable (docs/durability.md "Commit", "Close").
//!
//! Any number of threads may call [`Image::commit`]: one leads, and its flush covers everything completed before it
//! began; the others find that done. Cost: one flush when no metadata changed, two when some did, none when nothing did.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::allocate::surveyed;
use super::change::DirtyPage;
use super::write::Writer;
use super::{headers, Image, WriteMode};
use crate::error::{IoContext, PathContext, Result};
use crate::format::header::Header;
use crate::format::region;
use crate::guid::Guid;
use crate::log::ring::{PageBytes, Ring};
use crate::options::CacheMode;
use crate::storage::{Barrier, Order};
use crate::units::{align_down, align_up, LOG_SECTOR, MIB};

/// What only the leader of a commit touches.
#[derive(Debug)]
pub(crate) struct CommitState {
    /// The log, once this open has begun to write it.
    ring: Option<Ring>,
    /// A file length known durable.
    durable_len: u64,
}

impl CommitState {
    pub(crate) fn new(file_len: u64) -> Self {
        CommitState {
            ring: None,
            durable_len: file_len,
        }
    }
}

type Snapshot = BTreeMap<u64, Arc<PageBytes>>;

impl Image {
    /// Everything completed before the call is durable on return.
    pub(crate) fn commit(&self) -> Result<()> {
        let Some(writer) = &self.writer else { return Ok(()) };
        if self.shared.cache == CacheMode::Unsafe && self.has_log_room(writer) {
            return writer.check_poison();
        }
        let mut led = false;
        writer.commit.commit(|state| {
            led = true;
            writer.check_poison()?;
            self.lead(writer, state)
                .at(self.name())
                .map_err(|error| writer.poison(error))
        })?;
        match led {
            true => Ok(()),
            false => writer.check_poison(),
        }
    }

    /// Without durability, a commit is still needed when the next log entry is full.
    fn has_log_room(&self, writer: &Writer) -> bool {
        let meta = writer.meta.lock();
        meta.dirty.len() < self.log_pages() / 2
    }

    fn log_pages(&self) -> usize {
        let (_, length) = self.log_place();
        Ring::max_pages(length.max(MIB as u32))
    }

    fn lead(&self, writer: &Writer, state: &mut CommitState) -> Result<()> {
        let (snapshot, freed) = self.take_snapshot(writer);
        if snapshot.is_empty() {
            self.flush(Barrier::Payload, state)?;
        } else if Order::FreedWhenDurable.is_forgotten() {
            self.release(writer, freed)?;
            self.log(writer, state, snapshot)?;
        } else {
            self.log(writer, state, snapshot)?;
            self.release(writer, freed)?;
        }
        Ok(())
    }

    /// The dirty pages as they are now, consistent with one another.
    fn take_snapshot(&self, writer: &Writer) -> (Snapshot, Vec<(u64, u64)>) {
        let mut meta = writer.meta.lock();
        let snapshot: Snapshot = std::mem::take(&mut meta.dirty)
            .into_iter()
            .map(|(at, page)| match page {
                DirtyPage::Table(page) => (at, Arc::new(page.to_bytes())),
                DirtyPage::Raw(bytes) => (at, bytes),
            })
            .collect();
        meta.in_flight = snapshot.clone();
        (snapshot, std::mem::take(&mut meta.freed))
    }

    /// Logs the snapshot. On return it is durable, though not at its place.
    fn log(&self, writer: &Writer, state: &mut CommitState, mut snapshot: Snapshot) -> Result<()> {
        if state.ring.is_none() {
            self.start_log(writer, state)?;
        }
        if !writer.region_copies_agree.swap(true, Ordering::AcqRel) {
            // The first metadata change repairs a bad copy: both are written, in one entry.
            snapshot.extend(self.region_table_pages());
        }
        let (_, log_length) = self.log_place();
        let room = state.ring.as_ref().is_some_and(|ring| ring.has_room(snapshot.len()));
        if !room && !Order::AppliedBeforeRetired.is_forgotten() {
            self.apply(writer)?;
        }
        // ORDER: payload, and metadata just applied, are durable before the entry that relies on them (I3, I6).
        self.flush(Barrier::BeforeLogEntry, state)?;
        let file_len = self.file_len();
        let pages: Vec<(u64, &PageBytes)> = snapshot.iter().map(|(&at, bytes)| (at, &**bytes)).collect();
        debug_assert!(pages.len() <= Ring::max_pages(log_length) + 32);
        let flushed_len = align_down(state.durable_len, MIB);
        let last_len = align_up(file_len, MIB).unwrap_or(file_len);
        if let Some(ring) = &mut state.ring {
            if !room {
                ring.retire();
            }
            // ORDER: this flush is the commit point.
            ring.append(&*self.storage, &pages, flushed_len, last_len, Barrier::LogEntry)?;
        }
        let mut meta = writer.meta.lock();
        if !room {
            meta.unapplied.clear();
        }
        meta.in_flight.clear();
        meta.unapplied.extend(snapshot);
        Ok(())
    }

    /// Writes every logged page to its place (I2: its entry is durable). Not flushed.
    fn apply(&self, writer: &Writer) -> Result<()> {
        let pages: Vec<(u64, Arc<PageBytes>)> = {
            let meta = writer.meta.lock();
            meta.unapplied.iter().map(|(&at, bytes)| (at, bytes.clone())).collect()
        };
        for (at, bytes) in pages {
            self.storage
                .write_at(&bytes[..], at)
                .context(|| format!("write metadata at file offset {at:#x}"))?;
        }
        Ok(())
    }

    fn flush(&self, barrier: Barrier, state: &mut CommitState) -> Result<()> {
        let len = self.file_len();
        if self.shared.cache != CacheMode::Unsafe {
            self.storage.flush(barrier).context(|| "make the file durable".into())?;
        }
        state.durable_len = len;
        Ok(())
    }

    /// Space whose former owner is durably without it becomes free, and is given back to the file system.
    fn release(&self, writer: &Writer, freed: Vec<(u64, u64)>) -> Result<()> {
        if freed.is_empty() {
            return Ok(());
        }
        // ORDER: counted before the content goes, so that a reader of the old owner notices.
        self.shared.reuse.announce();
        for &(offset, len) in &freed {
            // Best effort: space that stays is reused like any other.
            let _ = self.storage.release_range(offset, len);
        }
        let mut guard = writer.space.lock();
        let space = surveyed(&mut guard)?;
        for (offset, len) in freed {
            space.release(offset, len);
        }
        Ok(())
    }

    /// Begins a log sequence: an entry that changes nothing, then the header that names it.
    fn start_log(&self, writer: &Writer, state: &mut CommitState) -> Result<()> {
        let (mut offset, mut length) = self.log_place();
        if length == 0 {
            self.ensure_space(writer)?;
            let place = self.take_space(writer, MIB)?;
            (offset, length) = (place.file_offset, MIB as u32);
        }
        let mut ring = Ring::new(offset, length);
        let file_len = self.file_len();
        // ORDER: the header still denies the log, so this cannot be replayed; and once the header names it, it is
        // there (I1 for the log itself).
        ring.append(
            &*self.storage,
            &[],
            align_down(state.durable_len.min(file_len), MIB),
            align_up(file_len, MIB).unwrap_or(file_len),
            Barrier::LogStart,
        )?;
        state.durable_len = file_len;
        let guid = ring.guid();
        self.update_header(WriteMode::File, |header| {
            header.log_guid = guid;
            header.log_offset = offset;
            header.log_length = length;
        })?;
        self.log_place.0.store(offset, Ordering::Relaxed);
        self.log_place.1.store(u64::from(length), Ordering::Relaxed);
        state.ring = Some(ring);
        Ok(())
    }

    /// Both copies of the region table, cut into pages.
    fn region_table_pages(&self) -> Snapshot {
        let bytes = self.regions.encode();
        region::OFFSETS
            .into_iter()
            .flat_map(|at| pages_of(at, &bytes))
            .map(|(at, page)| (at, Arc::new(page)))
            .collect()
    }

    // ---- headers ----

    /// Announces in the headers what is about to change, once per open.
    pub(crate) fn ensure_mode(&self, mode: WriteMode) -> Result<()> {
        match self.mode() >= mode {
            true => Ok(()),
            false => self.update_header(mode, |_| ()),
        }
    }

    /// What the headers announce.
    #[inline]
    pub(crate) fn mode(&self) -> WriteMode {
        match self.mode.load(Ordering::Acquire) {
            0 => WriteMode::None,
            1 => WriteMode::File,
            _ => WriteMode::Data,
        }
    }

    /// Says what the headers announce. Nobody writes meanwhile.
    pub(super) fn set_mode(&self, mode: WriteMode) {
        let _headers = self.header.lock();
        self.mode.store(mode as u8, Ordering::Release);
    }

    /// Updates both headers; an announcement that `mode` asks for and that was not made in this open is made along.
    pub(crate) fn update_header(&self, mode: WriteMode, change: impl FnOnce(&mut Header)) -> Result<()> {
        let writer = self.writer()?;
        let mut current = self.header.lock();
        let before = self.mode();
        // ORDER: durable before the first write it announces (I1).
        let updated = headers::update(&*self.storage, &mut current, |header| {
            if before < WriteMode::File && mode >= WriteMode::File {
                header.file_write_guid = Guid::random();
            }
            if before < WriteMode::Data && mode >= WriteMode::Data {
                header.data_write_guid = Guid::random();
            }
            change(header);
        });
        updated.map_err(|error| writer.poison(error))?;
        self.mode.store(before.max(mode) as u8, Ordering::Release);
        Ok(())
    }

    // ---- closing ----

    /// Commits, brings every logged page to its place, empties the log and cuts the file behind its last structure.
    /// Afterwards nothing distinguishes the file from one that was never open. Further writes begin anew, with new
    /// GUIDs.
    pub(crate) fn clean(&self) -> Result<()> {
        let Some(writer) = &self.writer else { return Ok(()) };
        self.commit()?;
        let mut state = writer.commit.hold();
        writer.check_poison()?;
        self.clean_log(writer, &mut state)
            .at(self.name())
            .map_err(|error| writer.poison(error))
    }

    fn clean_log(&self, writer: &Writer, state: &mut CommitState) -> Result<()> {
        if self.shared.cache == CacheMode::Unsafe {
            writer.commit.lead(state, |state| self.lead(writer, state))?;
        }
        if state.ring.is_some() {
            if Order::AppliedBeforeDenied.is_forgotten() {
                self.update_header(WriteMode::File, |header| header.log_guid = Guid::ZERO)?;
            }
            self.apply(writer)?;
            // ORDER: everything at its place before the header denies the log (I8).
            self.storage
                .flush(Barrier::BeforeLogClear)
                .context(|| "make the file durable".into())?;
            writer.meta.lock().unapplied.clear();
            self.update_header(WriteMode::File, |header| header.log_guid = Guid::ZERO)?;
            state.ring = None;
        }
        self.set_mode(WriteMode::None);
        self.truncate(writer)
    }

    /// Cuts what growing ahead left behind the last structure. The log is empty, so no entry claims that length.
    fn truncate(&self, writer: &Writer) -> Result<()> {
        let mut space = writer.space.lock();
        let Some(used_end) = space.as_ref().map(|s| s.used_end()) else {
            return Ok(());
        };
        if self.is_fixed() || used_end >= self.file_len() {
            return Ok(());
        }
        self.storage
            .set_len(used_end)
            .context(|| format!("cut the file to {used_end} bytes"))?;
        self.file_len.store(used_end, Ordering::Release);
        // What is free now may not be known to be zero when the file grows again; survey it anew if it is needed.
        *space = None;
        Ok(())
    }
}

/// `bytes`, which lie at `file_offset`, as the 4 KiB pages of a log entry. Both are multiples of 4 KiB.
pub(crate) fn pages_of(file_offset: u64, bytes: &[u8]) -> Vec<(u64, PageBytes)> {
    bytes
        .chunks_exact(LOG_SECTOR as usize)
        .zip((file_offset..).step_by(LOG_SECTOR as usize))
        .map(|(chunk, at)| {
            let mut page = [0; LOG_SECTOR as usize];
            page.copy_from_slice(chunk);
            (at, page)
        })
        .collect()
}
