//! What a file says about itself before any block is looked at: identifier, current header, log, regions, metadata.

use std::sync::Arc;

use super::headers;
use crate::error::{Defect, Error, ErrorKind, IoContext, Result, Rule};
use crate::format::header::Current;
use crate::format::identifier::Identifier;
use crate::format::metadata::{self, DiskItems, MetadataTable};
use crate::format::region::{self, RegionTable};
use crate::guid::Guid;
use crate::log::overlay::Overlay;
use crate::log::{replay, scan};
use crate::options::LogPolicy;
use crate::storage::Storage;
use crate::trace;
use crate::units::{Geometry, MIB};

/// The parsed front of a file, every rule about it checked.
#[derive(Debug)]
pub(crate) struct Front {
    /// The file.
    pub(crate) storage: Arc<dyn Storage>,
    /// The file as it reads: the same, or with its log applied in memory.
    pub(crate) view: Arc<dyn Storage>,
    /// Bytes of `view`.
    pub(crate) file_len: u64,
    pub(crate) creator: String,
    pub(crate) current: Current,
    /// The log holds updates that are not in the file.
    pub(crate) dirty: bool,
    pub(crate) regions: RegionTable,
    pub(crate) region_copies_agree: bool,
    pub(crate) table: MetadataTable,
    pub(crate) items: DiskItems,
    pub(crate) geometry: Geometry,
}

impl Front {
    /// Reads the front of `storage`. With `replay` a dirty log is written into the file, which then must be writable;
    /// otherwise it is applied in memory or refused, as `policy` says.
    pub(crate) fn read(storage: Arc<dyn Storage>, policy: LogPolicy, replay_into_file: bool) -> Result<Front> {
        let mut file_len = storage.len().context(|| "get the file length".into())?;
        let creator = identify(&*storage, file_len)?;
        let mut current = headers::read(&*storage, file_len)?;
        let mut view = storage.clone();
        let mut dirty = false;
        if !current.header.log_guid.is_zero() {
            if policy == LogPolicy::Refuse {
                return Err(Error::new(
                    ErrorKind::LogReplayRequired,
                    "the log holds updates that are not in place, and the options forbid to replay it",
                )
                .with_hint("open it with log=auto"));
            }
            let sequence = scan::active_sequence(&*storage, &current.header, file_len)?;
            if replay_into_file {
                // What the file will be is checked before the first byte is written.
                Front::read(storage.clone(), LogPolicy::Memory, false)?;
                // ORDER: the new FileWriteGuid is durable before the first replayed byte (I1); LogGuid stays until all
                // of it is in place (I8).
                headers::update(&*storage, &mut current, |h| h.file_write_guid = Guid::random())?;
                replay::replay(&*storage, &current.header, &sequence)?;
                headers::update(&*storage, &mut current, |h| h.log_guid = Guid::ZERO)?;
                trace::info(|| format!("replayed {} log entries", sequence.entries.len()));
                file_len = storage.len().context(|| "get the file length".into())?;
            } else {
                let overlay = Overlay::new(storage.clone(), file_len, &current.header, &sequence)?;
                file_len = overlay.len().context(|| "get the file length".into())?;
                view = Arc::new(overlay);
                dirty = true;
            }
        }
        let (regions, region_copies_agree) = read_regions(&*view, &current, file_len)?;
        let (table, items) = read_metadata(&*view, &regions)?;
        let at = regions.metadata().offset;
        let geometry = Geometry::new(
            items.virtual_size,
            items.parameters.block_size,
            items.logical_sector_size,
            items.parameters.has_parent,
            at,
        )?;
        if geometry.bat_entries() * 8 > u64::from(regions.bat().length) {
            return Err(Defect::new(
                Rule::BatTooSmall,
                "BAT region",
                regions.bat().offset,
                format!("{} bytes", regions.bat().length),
                format!("{} entries of 8 bytes", geometry.bat_entries()),
            )
            .into());
        }
        if items.parameters.has_parent && items.locator.is_none() {
            return Err(Defect::new(
                Rule::MissingLocator,
                "metadata table",
                at,
                "no parent locator",
                "one, because the disk has a parent",
            )
            .into());
        }
        Ok(Front {
            storage,
            view,
            file_len,
            creator,
            current,
            dirty,
            regions,
            region_copies_agree,
            table,
            items,
            geometry,
        })
    }

    /// The DataWriteGuid that must be in a parent for it to be this file's parent: linkage and, if any, linkage2.
    pub(crate) fn linkage(&self) -> Option<(Guid, Option<Guid>)> {
        let locator = self
            .items
            .locator
            .as_ref()
            .filter(|_| self.items.parameters.has_parent)?;
        Some((locator.linkage()?, locator.linkage2()))
    }
}

/// Checks the signature; returns the creator.
fn identify(storage: &dyn Storage, file_len: u64) -> Result<String> {
    let mut bytes = vec![0; 520.min(file_len) as usize];
    storage
        .read_at(&mut bytes, 0)
        .context(|| "read the file identifier".into())?;
    if bytes.len() >= 8 {
        // A file that is something else is told so before it is told that it is short.
        bytes.resize(520, 0);
        let identifier = Identifier::parse(&bytes)?;
        if file_len >= MIB {
            return Ok(identifier.creator);
        }
    }
    Err(Defect::new(
        Rule::Truncated,
        "file",
        0,
        format!("{file_len} bytes"),
        "at least 1 MiB of headers",
    )
    .into())
}

fn read_regions(view: &dyn Storage, current: &Current, file_len: u64) -> Result<(RegionTable, bool)> {
    let mut copies = [vec![0; region::SIZE], vec![0; region::SIZE]];
    for (copy, at) in copies.iter_mut().zip(region::OFFSETS) {
        view.read_at(copy, at)
            .context(|| format!("read the region table at file offset {at:#x}"))?;
    }
    let selected = region::select([&copies[0], &copies[1]], file_len)?;
    let header = &current.header;
    selected.table.check_log(header.log_offset, header.log_length)?;
    Ok((selected.table, selected.copies_agree))
}

fn read_metadata(view: &dyn Storage, regions: &RegionTable) -> Result<(MetadataTable, DiskItems)> {
    let region = regions.metadata();
    let mut bytes = vec![0; metadata::TABLE_SIZE];
    view.read_at(&mut bytes, region.offset)
        .context(|| format!("read the metadata table at file offset {:#x}", region.offset))?;
    let table = MetadataTable::parse(&bytes, region.offset, region.length)?;
    let items = metadata::parse_known(&table, region.offset, &mut |offset, len| {
        let mut item = vec![0; len as usize];
        let at = region.offset + u64::from(offset);
        view.read_at(&mut item, at)
            .context(|| format!("read the metadata item at file offset {at:#x}"))?;
        Ok(item)
    })?;
    Ok((table, items))
}
