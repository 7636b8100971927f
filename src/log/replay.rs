//! Replay into the file (MS-VHDX 2.3.3).

use super::scan::{Reader, Sequence};
use crate::error::{IoContext, Result};
use crate::format::header::Header;
use crate::format::log::{Update, SECTOR};
use crate::storage::{Barrier, Storage};

/// Writes every update of `sequence` to its place and makes all of it durable. Idempotent: a crash at any point leaves
/// a file on which the same replay gives the same result, because the header still names the log.
pub(crate) fn replay(storage: &dyn Storage, header: &Header, sequence: &Sequence) -> Result<()> {
    let reader = Reader::new(storage, header);
    let mut len = storage.len().context(|| "get the file length".into())?;
    if len < sequence.file_len {
        storage
            .set_len(sequence.file_len)
            .context(|| format!("extend the file to {} bytes", sequence.file_len))?;
        len = sequence.file_len;
    }
    for located in &sequence.entries {
        for update in reader.entry(located)?.updates {
            match update {
                Update::Data { file_offset, page } => {
                    storage
                        .write_at(&page[..], file_offset)
                        .context(|| format!("replay the log to file offset {file_offset:#x}"))?;
                    // It may have grown the file, which a later range of zeros must not shrink again.
                    len = len.max(file_offset.saturating_add(SECTOR)); // checked: the target ends inside the file to be
                }
                Update::Zero { file_offset, length } => {
                    let end = file_offset.saturating_add(length); // checked: the target ends inside the file to be
                    if end > len {
                        storage
                            .set_len(end)
                            .context(|| format!("extend the file to {end} bytes"))?;
                        len = end;
                    }
                    storage
                        .zero_range(file_offset, length)
                        .context(|| format!("replay zeros to file offset {file_offset:#x}"))?;
                }
            }
        }
    }
    // ORDER: everything at its place before the header may deny the log.
    storage
        .flush(Barrier::Replayed)
        .context(|| "make the replayed log durable".into())
}
