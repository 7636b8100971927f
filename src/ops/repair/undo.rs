//! The undo file: what a repair overwrites, written and durable before it begins.
//!
//! ```text
//!   header   4 KiB   0 "avhdxund"   8 CRC-32C   12 version 1   16 length of the image   24 length of this file
//!                    32 records     40 identities (1 to 64)    44 zero  48 FileWriteGuids, 16 bytes each
//!   record   32 B    0 CRC-32C of the record, itself as zero   4 kind   8 file offset   16 length   24 zero
//!            data    kind 1: the old bytes, at most 1 MiB      kind 2: nothing, the old bytes are zeros
//! ```
//!
//! Integers are little-endian; records ascend and do not overlap. The identities are the FileWriteGuid of the image
//! before the repair and every one that it writes: an image that has another was changed since, and is left alone.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::staged::Staged;
use crate::chain::locate::directory;
use crate::chain::open;
use crate::error::{Error, ErrorKind, IoContext, PathContext, Result};
use crate::format::header::{self, Header};
use crate::guid::Guid;
use crate::image::headers;
use crate::options::OpenOptions;
use crate::storage::{Access, Barrier, LockMode, Order, Storage};
use crate::units::MIB;

const SIGNATURE: &[u8; 8] = b"avhdxund";
const HEADER: usize = 4096;
const RECORD: usize = 32;
const BYTES: u32 = 1;
const ZEROS: u32 = 2;
const MAX_IDENTITIES: usize = 64;

/// Where the undo file of a repair goes when nobody says otherwise.
pub(super) fn default_path(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_os_string();
    name.push(".undo");
    PathBuf::from(name)
}

/// The error of a name that is taken.
pub(super) fn exists(undo: &Path) -> Error {
    Error::new(
        ErrorKind::Argument,
        "the undo file exists already, and is never replaced",
    )
    .with_path(undo)
    .with_hint(
        "an earlier repair wrote it: take that back with avhdx undo, or give this repair another name with undo=FILE",
    )
}

/// Saves what `staged` is about to overwrite. Durable, under its name, on return.
pub(super) fn save(undo: &Path, staged: &Staged, storage: &dyn Storage, open: &OpenOptions) -> Result<()> {
    let fs = &*open.file_system;
    let mut temporary = undo.as_os_str().to_os_string();
    temporary.push(format!(".{}.tmp", Guid::random()));
    let temporary = PathBuf::from(temporary);
    let file = fs
        .create_new(&temporary)
        .context(|| "create the undo file".into())
        .map_err(|e| {
            e.with_path(undo)
                .with_hint("nothing was changed; name a place for it with undo=FILE")
        })?;
    let written = write(&*file, staged, storage).and_then(|()| {
        // ORDER: whole and durable, then its name, then the directory, and only then the first byte of the image.
        file.flush(Barrier::NewFile)
            .context(|| "make the undo file durable".into())?;
        fs.rename_new(&temporary, undo)
            .map_err(|cause| match cause.raw_os_error() {
                Some(libc::EEXIST) => exists(undo),
                _ => Error::io("give the undo file its name", cause),
            })
    });
    if let Err(error) = written {
        let _ = fs.remove(&temporary);
        return Err(error.with_path(undo).with_hint("nothing was changed"));
    }
    if Order::UndoNamedFirst.is_forgotten() {
        return Ok(());
    }
    fs.sync_dir(&directory(undo))
        .context(|| "make the name of the undo file durable".into())
        .at(undo)
}

fn write(file: &dyn Storage, staged: &Staged, storage: &dyn Storage) -> Result<()> {
    let mut identities = Vec::new();
    let mut know = |guid: Guid| {
        if !identities.contains(&guid) {
            identities.push(guid);
        }
    };
    know(headers::read(storage, staged.original_len())?.header.file_write_guid);
    for bytes in staged.writes_to(&header::OFFSETS, header::SIZE) {
        if let Some(header) = Header::parse(&bytes) {
            know(header.file_write_guid);
        }
    }
    let mut at = HEADER as u64;
    let mut records = 0u64;
    let mut buf = vec![0; MIB as usize];
    for range in staged.overwritten() {
        for piece in pieces(&range) {
            let bytes = &mut buf[..(piece.end - piece.start) as usize];
            storage
                .read_at(bytes, piece.start)
                .context(|| format!("read at file offset {:#x}", piece.start))?;
            let data: &[u8] = if bytes.iter().all(|&b| b == 0) { &[] } else { bytes };
            let kind = if data.is_empty() { ZEROS } else { BYTES };
            let mut record = vec![0; RECORD];
            record[4..8].copy_from_slice(&kind.to_le_bytes());
            record[8..16].copy_from_slice(&piece.start.to_le_bytes());
            record[16..24].copy_from_slice(&(piece.end - piece.start).to_le_bytes());
            let crc = crc32c::crc32c_append(crc32c::crc32c(&record), data);
            record[..4].copy_from_slice(&crc.to_le_bytes());
            record.extend_from_slice(data);
            file.write_at(&record, at).context(|| "write the undo file".into())?;
            at += record.len() as u64;
            records += 1;
        }
    }
    if identities.len() > MAX_IDENTITIES {
        return Err(Error::new(ErrorKind::Bug, "a repair updated the headers too often"));
    }
    let mut head = vec![0; HEADER];
    head[..8].copy_from_slice(SIGNATURE);
    head[12..16].copy_from_slice(&1u32.to_le_bytes());
    head[16..24].copy_from_slice(&staged.original_len().to_le_bytes());
    head[24..32].copy_from_slice(&at.to_le_bytes());
    head[32..40].copy_from_slice(&records.to_le_bytes());
    head[40..44].copy_from_slice(&(identities.len() as u32).to_le_bytes());
    for (place, guid) in head[48..].chunks_exact_mut(16).zip(&identities) {
        place.copy_from_slice(&guid.to_stored());
    }
    let crc = crc32c::crc32c(&head);
    head[8..12].copy_from_slice(&crc.to_le_bytes());
    file.write_at(&head, 0).context(|| "write the undo file".into())
}

/// The range in pieces of at most 1 MiB, aligned.
fn pieces(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    std::iter::successors(Some(range.start), move |&at| Some((at / MIB + 1) * MIB))
        .take_while(move |&at| at < end)
        .map(move |at| at..((at / MIB + 1) * MIB).min(end))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let four = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    four.map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let eight = bytes.get(at..at + 8).and_then(|b| b.try_into().ok());
    eight.map_or(0, u64::from_le_bytes)
}

fn broken(what: &'static str) -> Error {
    Error::new(ErrorKind::Checksum, format!("the undo file is damaged: {what}")).with_hint("nothing was changed")
}

struct Undo {
    storage: Arc<dyn Storage>,
    image_len: u64,
    records: u64,
    identities: Vec<Guid>,
}

impl Undo {
    fn open(path: &Path, options: &OpenOptions) -> Result<Undo> {
        let storage = open::storage(path, Access::Read, options)?;
        let len = storage.len().context(|| "get the file length".into())?;
        let mut head = vec![0; HEADER];
        if len < HEADER as u64 {
            return Err(broken("it is too short"));
        }
        storage.read_at(&mut head, 0).context(|| "read the undo file".into())?;
        if !head.starts_with(SIGNATURE) {
            return Err(Error::new(ErrorKind::Argument, "not an undo file of avhdx repair")
                .with_hint("it is the file that repair named, by default IMAGE.undo"));
        }
        let crc = u32_at(&head, 8);
        head[8..12].fill(0);
        if crc32c::crc32c(&head) != crc {
            return Err(broken("its header has another checksum"));
        }
        if u32_at(&head, 12) != 1 {
            return Err(Error::new(ErrorKind::Unsupported, "an undo file of a later version"));
        }
        if u64_at(&head, 24) != len {
            return Err(broken("it has another length than it says"));
        }
        let count = (u32_at(&head, 40) as usize).min(MAX_IDENTITIES);
        let identities = head[48..].chunks_exact(16).take(count);
        Ok(Undo {
            storage,
            image_len: u64_at(&head, 16),
            records: u64_at(&head, 32),
            identities: identities
                .map(|stored| {
                    let mut bytes = [0; 16];
                    bytes.copy_from_slice(stored);
                    Guid::from_stored(bytes)
                })
                .collect(),
        })
    }

    /// Calls `visit` with place and old bytes of every record.
    fn for_each(&self, mut visit: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let mut at = HEADER as u64;
        let mut last_end = 0;
        for _ in 0..self.records {
            let mut record = [0; RECORD];
            let context = || "read the undo file".to_string();
            self.storage.read_at(&mut record, at).context(context)?;
            at += RECORD as u64;
            let crc = u32_at(&record, 0);
            record[..4].fill(0);
            let (kind, offset, length) = (u32_at(&record, 4), u64_at(&record, 8), u64_at(&record, 16));
            let end = offset.checked_add(length).filter(|&end| end <= self.image_len);
            let Some(end) = end.filter(|_| length <= MIB && offset >= last_end) else {
                return Err(broken("a record is out of place"));
            };
            last_end = end;
            let mut data = vec![0; length as usize];
            let stored: &[u8] = match kind {
                BYTES => {
                    self.storage.read_at(&mut data, at).context(context)?;
                    at += length;
                    &data
                }
                ZEROS => &[],
                _ => return Err(broken("a record of an unknown kind")),
            };
            if crc32c::crc32c_append(crc32c::crc32c(&record), stored) != crc {
                return Err(broken("a record has another checksum"));
            }
            visit(offset, &data)?;
        }
        Ok(())
    }
}

/// Takes a repair of the file at `path` back: afterwards it is what it was before, bit for bit. `undo` is the file
/// that the repair wrote, by default the one next to it; it is kept. Refuses a file that was changed since the repair.
/// A cut or failed run is simply repeated. Durable on return.
pub fn undo(path: &Path, undo: Option<&Path>, open: &OpenOptions) -> Result<()> {
    let undo = undo.map_or_else(|| default_path(path), Path::to_path_buf);
    let saved = Undo::open(&undo, open).at(&undo)?;
    // Everything is verified before the first byte.
    saved.for_each(|_, _| Ok(())).at(&undo)?;
    let storage = open::storage(path, Access::Write, open)?;
    open::lock(&*storage, LockMode::Write, open).at(path)?;
    restore(&*storage, &saved, &undo).at(path)
}

fn restore(storage: &dyn Storage, saved: &Undo, undo: &Path) -> Result<()> {
    let len = storage.len().context(|| "get the file length".into())?;
    let identity = headers::read(storage, len)?.header.file_write_guid;
    if !saved.identities.contains(&identity) {
        return Err(Error::new(
            ErrorKind::Argument,
            format!("the file was changed since the repair that {undo:?} is of, or is another file"),
        )
        .with_hint("writing the old bytes back now would damage it; nothing was changed"));
    }
    if len != saved.image_len {
        storage
            .set_len(saved.image_len)
            .context(|| format!("set the length to {} bytes", saved.image_len))?;
    }
    let mut heads: [Option<Vec<u8>>; 2] = [None, None];
    saved.for_each(|at, bytes| {
        if let Some(slot) = header::OFFSETS.iter().position(|&offset| offset == at) {
            if bytes.len() == header::SIZE {
                heads[slot] = Some(bytes.to_vec());
                return Ok(());
            }
        }
        storage
            .write_at(bytes, at)
            .context(|| format!("write at file offset {at:#x}"))
    })?;
    // ORDER: the headers last, with everything else durable: they say which undo file fits, so a run that was cut can
    // be repeated.
    storage
        .flush(Barrier::Replayed)
        .context(|| "make the file durable".into())?;
    let [Some(first), Some(second)] = heads else {
        return Ok(());
    };
    let current = headers::read(storage, saved.image_len)?.slot;
    let old = [first, second];
    let good = match Header::parse(&old[1 - current]) {
        Some(_) => 1 - current,
        None => current,
    };
    // ORDER: the copy that is not current, with a good header; then the current one, which need not have been; then
    // the first again. One of them is valid at any moment.
    let mut writes = vec![(1 - current, good), (current, current)];
    if good == current {
        writes.push((1 - current, 1 - current));
    }
    for (i, (slot, content)) in writes.into_iter().enumerate() {
        let at = header::OFFSETS[slot];
        storage
            .write_at(&old[content], at)
            .context(|| format!("write the header at file offset {at:#x}"))?;
        let barrier = if i == 0 {
            Barrier::HeaderFirst
        } else {
            Barrier::HeaderSecond
        };
        storage.flush(barrier).context(|| "make a header durable".into())?;
    }
    Ok(())
}
