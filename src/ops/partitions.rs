//! Where the partitions of a disk end: MBR with logical partitions, and GPT.
//!
//! The tables are the guest's, so they are read with bounded work and memory whatever they say. (The crates that read
//! such tables allocate by the counts in them and follow chains of logical partitions without end.) A table that
//! cannot be understood is an error, never "no table": somebody's partitions are there.

use crate::error::{Error, ErrorKind, Result};

/// Largest GPT entry array read, in bytes. It is 16 KiB in practice.
const MAX_GPT_ARRAY: u64 = 4 << 20;
/// Most links of logical partitions followed.
const MAX_LOGICAL: usize = 256;

/// What a partition table says about the disk's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Partitions {
    /// End of the last partition, in bytes.
    pub(super) end: u64,
    /// Bytes behind it that the table's copy takes at the end of the disk.
    pub(super) backup: u64,
}

fn unknown(what: String) -> Error {
    Error::new(
        ErrorKind::ShrinkUnsafe,
        format!("the partition table cannot be understood: {what}"),
    )
    .with_hint("repair it inside the guest; unsafe=on resizes without looking at it")
}

fn u32_at(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..at + 4).unwrap_or_default();
    field.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u32_at(bytes, at) | u32_at(bytes, at + 4) << 32
}

/// An entry of an MBR or of a link of logical partitions. In sectors.
#[derive(Debug, Clone, Copy)]
struct Entry {
    kind: u8,
    start: u64,
    count: u64,
}

impl Entry {
    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0F | 0x85)
    }
}

/// The four entries; `None` when the sector holds something else.
fn entries(sector: &[u8]) -> Option<Vec<Entry>> {
    let table = sector.get(446..510)?;
    if sector.get(510..512)? != [0x55, 0xAA] || table.chunks_exact(16).any(|e| e[0] & 0x7F != 0) {
        return None;
    }
    let entry = |e: &[u8]| Entry {
        kind: e.get(4).copied().unwrap_or(0),
        start: u32_at(e, 8),
        count: u32_at(e, 12),
    };
    let found = table.chunks_exact(16).map(entry);
    Some(found.filter(|e| e.kind != 0 && e.count != 0).collect())
}

/// Reads the partition table of a disk of `size` bytes; `None` when it has none, or one without partitions.
/// `read(buf, offset)` reads the disk.
pub(super) fn find(
    size: u64,
    sector_size: u64,
    read: &mut dyn FnMut(&mut [u8], u64) -> Result<()>,
) -> Result<Option<Partitions>> {
    let mut sector = vec![0; sector_size as usize];
    read(&mut sector, 0)?;
    let gpt = match size >= 2 * sector_size {
        true => {
            let mut header = vec![0; sector_size as usize];
            read(&mut header, sector_size)?;
            header.starts_with(b"EFI PART").then_some(header)
        }
        false => None,
    };
    let Some(entries) = entries(&sector) else {
        return match gpt {
            Some(_) => Err(unknown("a GPT without its protective MBR".into())),
            None => Ok(None),
        };
    };
    let protective = entries.iter().any(|e| e.kind == 0xEE);
    let mut found = Partitions { end: 0, backup: 0 };
    if protective {
        let header = gpt.ok_or_else(|| unknown("a protective MBR without a GPT".into()))?;
        found = read_gpt(&header, size, sector_size, read)?;
    }
    for entry in entries.iter().filter(|e| e.kind != 0xEE) {
        // Windows keeps the database of its dynamic disks in the last MiB, outside of any partition.
        let sectors = match entry.kind {
            0x42 => size / sector_size,
            _ => entry.start + entry.count,
        };
        found.end = found.end.max(sectors.saturating_mul(sector_size));
        if entry.is_extended() {
            found.end = found.end.max(logical_end(entry, size, sector_size, read)?);
        }
    }
    Ok((found.end > 0 || protective).then_some(found))
}

/// End of the last logical partition, in bytes.
fn logical_end(
    extended: &Entry,
    size: u64,
    sector_size: u64,
    read: &mut dyn FnMut(&mut [u8], u64) -> Result<()>,
) -> Result<u64> {
    let mut sector = vec![0; sector_size as usize];
    let (mut at, mut end) = (extended.start, 0u64);
    for _ in 0..MAX_LOGICAL {
        let offset = at.saturating_mul(sector_size);
        if offset > size - sector_size {
            return Err(unknown(format!(
                "logical partitions begin at {offset}, behind the disk"
            )));
        }
        read(&mut sector, offset)?;
        let Some(entries) = entries(&sector) else {
            return Err(unknown(format!("no logical partition at {offset}")));
        };
        for entry in entries.iter().filter(|e| !e.is_extended()) {
            end = end.max((at + entry.start + entry.count).saturating_mul(sector_size));
        }
        match entries.iter().find(|e| e.is_extended()) {
            Some(next) => at = extended.start + next.start,
            None => return Ok(end),
        }
    }
    Err(unknown(format!("more than {MAX_LOGICAL} logical partitions")))
}

fn read_gpt(
    header: &[u8],
    size: u64,
    sector_size: u64,
    read: &mut dyn FnMut(&mut [u8], u64) -> Result<()>,
) -> Result<Partitions> {
    let length = u32_at(header, 12) as usize;
    if !(92..=header.len()).contains(&length) {
        return Err(unknown(format!("a GPT header of {length} bytes")));
    }
    let mut summed = header[..length].to_vec();
    summed[16..20].fill(0);
    if u64::from(crc32fast::hash(&summed)) != u32_at(header, 16) {
        return Err(unknown("the checksum of the GPT header is wrong".into()));
    }
    let (first, count, entry_size) = (u64_at(header, 72), u32_at(header, 80), u32_at(header, 84));
    let array = count.saturating_mul(entry_size);
    let offset = first.saturating_mul(sector_size);
    if entry_size < 128 || array > MAX_GPT_ARRAY || offset.saturating_add(array) > size {
        return Err(unknown(format!("a GPT of {count} entries of {entry_size} bytes")));
    }
    let mut bytes = vec![0; array as usize];
    read(&mut bytes, offset)?;
    if u64::from(crc32fast::hash(&bytes)) != u32_at(header, 88) {
        return Err(unknown("the checksum of the GPT entries is wrong".into()));
    }
    let last = bytes
        .chunks_exact(entry_size as usize)
        .filter(|entry| entry[..16] != [0; 16])
        .map(|entry| u64_at(entry, 40).saturating_add(1))
        .max();
    // With no partition the table itself remains.
    let table_end = first.saturating_add(array.div_ceil(sector_size));
    Ok(Partitions {
        end: last.unwrap_or(0).max(table_end).saturating_mul(sector_size),
        backup: (array.div_ceil(sector_size) + 1) * sector_size,
    })
}
