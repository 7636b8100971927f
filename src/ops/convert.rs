//! Flattening.

use std::path::Path;

use crate::chain::{Chain, ExtentState, Scope};
use crate::error::{Error, ErrorKind, IoContext, PathContext, Result};
use crate::options::{Progress, ProgressFn};
use crate::storage::Barrier;
use crate::units::MIB;

/// Bytes read at once, aligned for the page cache.
const PIECE: u64 = 4 * MIB;
/// Extents asked for at once.
const EXTENTS: usize = 1024;

/// Writes what the disk reads as to a raw file at `out`, which must not exist. Ranges that read as zeros without being
/// stored are left as holes, and so are stored zeros in whole 64 KiB pieces. Returns the length. On failure or
/// cancellation the file is removed. Durable on return.
pub fn convert_raw(chain: &Chain, out: &Path, progress: ProgressFn<'_>) -> Result<u64> {
    let fs = chain.options().file_system.clone();
    let target = fs.create_new(out).map_err(|cause| {
        let exists = cause.raw_os_error() == Some(libc::EEXIST);
        let error = Error::io("create the file", cause).with_path(out);
        match exists {
            true => error.with_hint("choose another name: existing files are never replaced"),
            false => error,
        }
    })?;
    let written = (|| {
        target
            .set_len(chain.size())
            .context(|| format!("extend the file to {} bytes", chain.size()))
            .at(out)?;
        copy(chain, &*target, progress).at(out)?;
        target
            .flush(Barrier::NewFile)
            .context(|| "make the file durable".into())
            .at(out)?;
        Ok(chain.size())
    })();
    if written.is_err() {
        let _ = fs.remove(out);
    }
    written
}

fn copy(chain: &Chain, target: &dyn crate::storage::Storage, progress: ProgressFn<'_>) -> Result<()> {
    let size = chain.size();
    let mut buf = vec![0; PIECE as usize];
    let mut extents = Vec::new();
    let mut at = 0;
    while at < size {
        extents.clear();
        let covered = chain.block_status(at, size - at, Scope::Chain, EXTENTS, &mut extents)?;
        for extent in extents.iter().filter(|e| e.state == ExtentState::Data) {
            let mut from = extent.offset;
            let end = extent.offset + extent.length;
            while from < end {
                let len = (end - from).min(PIECE);
                let piece = &mut buf[..len as usize];
                chain.read(piece, from)?;
                write_sparse(target, piece, from)?;
                from += len;
                report(progress, from, size)?;
            }
        }
        at += covered;
        report(progress, at, size)?;
    }
    Ok(())
}

fn write_sparse(target: &dyn crate::storage::Storage, piece: &[u8], at: u64) -> Result<()> {
    const GRAIN: usize = 64 << 10;
    let mut start = 0;
    while start < piece.len() {
        let is_zero = |from: usize| piece[from..piece.len().min(from + GRAIN)].iter().all(|&b| b == 0);
        let zero = is_zero(start);
        let mut end = start;
        while end < piece.len() && is_zero(end) == zero {
            end = piece.len().min(end + GRAIN);
        }
        if !zero {
            let to = at + start as u64;
            target
                .write_at(&piece[start..end], to)
                .context(|| format!("write at file offset {to:#x}"))?;
        }
        start = end;
    }
    Ok(())
}

fn report(progress: &mut dyn FnMut(Progress) -> bool, done: u64, total: u64) -> Result<()> {
    match progress(Progress { done, total }) {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Cancelled, "the conversion was cancelled")),
    }
}
