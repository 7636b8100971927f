//! The two headers: reading them, and the two-round update (MS-VHDX 2.2.2; docs/durability.md "Header update").

use crate::error::{Defect, IoContext, Result, Rule};
use crate::format::header::{self, Current, Header};
use crate::storage::{Barrier, Storage};

/// Reads both copies and chooses the current one.
pub(crate) fn read(storage: &dyn Storage, file_len: u64) -> Result<Current> {
    let mut copies = [vec![0; header::SIZE], vec![0; header::SIZE]];
    for (copy, at) in copies.iter_mut().zip(header::OFFSETS) {
        storage
            .read_at(copy, at)
            .context(|| format!("read the header at file offset {at:#x}"))?;
    }
    Ok(header::select([&copies[0], &copies[1]], file_len)?)
}

/// Changes the header durably: both copies hold the change on return. A crash in between leaves one valid copy that is
/// either the old or the new one.
pub(crate) fn update(storage: &dyn Storage, current: &mut Current, change: impl FnOnce(&mut Header)) -> Result<()> {
    let mut next = current.header;
    change(&mut next);
    next.log_version = 0;
    next.version = 1;
    for barrier in [Barrier::HeaderFirst, Barrier::HeaderSecond] {
        let slot = 1 - current.slot;
        next.sequence_number = current.header.sequence_number.checked_add(1).ok_or_else(|| {
            Defect::new(
                Rule::HeaderSequence,
                format!("header {}", current.slot + 1),
                header::OFFSETS[current.slot],
                "the largest sequence number there is",
                "one that can be incremented",
            )
        })?;
        // ORDER: one copy is durable before the other is touched, so that one is valid at any moment.
        storage
            .write_at(&next.encode(), header::OFFSETS[slot])
            .context(|| format!("write the header at file offset {:#x}", header::OFFSETS[slot]))?;
        storage.flush(barrier).context(|| "make a header durable".into())?;
        *current = Current {
            header: next,
            slot,
            copies_agree: true,
        };
    }
    Ok(())
}
