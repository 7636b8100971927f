//! What is written to a block, and how it gets there.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{IoContext, Result};
use crate::storage::{self, CopyMethod, Storage};
use crate::units::{align_down, align_up, LOG_SECTOR, MIB};

/// What to write.
#[derive(Clone, Copy)]
pub(crate) enum Payload<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// These bytes of many that fill a file: the device begins with them at once, so that the flush has less to wait for.
    Bulk(&'a [u8]),
    /// Zeros, this many.
    Zeros(u64),
    /// Bytes of another file.
    Copy {
        /// The file.
        source: &'a dyn Storage,
        /// The same file for kernel copies, when what it reads as is what is in it.
        raw: Option<&'a dyn Storage>,
        /// Where in it.
        file_offset: u64,
        /// How many bytes.
        len: u64,
        /// Ways to try, in order, before reading and writing.
        methods: &'a [CopyMethod],
        /// Counts the bytes shared by reflink.
        reflinked: &'a AtomicU64,
    },
}

impl<'a> Payload<'a> {
    pub(super) fn len(&self) -> u64 {
        match self {
            Payload::Bytes(bytes) | Payload::Bulk(bytes) => bytes.len() as u64,
            Payload::Zeros(len) | Payload::Copy { len, .. } => *len,
        }
    }

    /// The first `at` bytes and the rest.
    pub(super) fn split(self, at: u64) -> (Payload<'a>, Payload<'a>) {
        match self {
            Payload::Bytes(bytes) => {
                let (a, b) = bytes.split_at(at as usize);
                (Payload::Bytes(a), Payload::Bytes(b))
            }
            Payload::Bulk(bytes) => {
                let (a, b) = bytes.split_at(at as usize);
                (Payload::Bulk(a), Payload::Bulk(b))
            }
            Payload::Zeros(len) => (Payload::Zeros(at), Payload::Zeros(len - at)),
            Payload::Copy {
                source,
                raw,
                file_offset,
                len,
                methods,
                reflinked,
            } => {
                let part = |from: u64, len: u64| Payload::Copy {
                    source,
                    raw,
                    file_offset: file_offset + from,
                    len,
                    methods,
                    reflinked,
                };
                (part(0, at), part(at, len - at))
            }
        }
    }

    /// Puts the bytes into `target`.
    pub(crate) fn put(&self, target: &dyn Storage, file_offset: u64) -> Result<()> {
        let writing = |at: u64| move || format!("write at file offset {at:#x}");
        match *self {
            Payload::Bytes(bytes) => target
                .write_payload_at(bytes, file_offset)
                .context(writing(file_offset)),
            Payload::Bulk(bytes) => {
                Payload::Bytes(bytes).put(target, file_offset)?;
                target.write_behind(file_offset, bytes.len() as u64);
                Ok(())
            }
            Payload::Zeros(len) => target.zero_range(file_offset, len).context(writing(file_offset)),
            Payload::Copy {
                source,
                raw,
                file_offset: from,
                len,
                methods,
                reflinked,
            } => {
                let copied = match raw {
                    Some(raw) => kernel_copy(target, raw, from, file_offset, len, methods, reflinked)?,
                    None => false,
                };
                if !copied {
                    plain_copy(target, source, from, file_offset, len)?;
                }
                // The device works while the next bytes are read.
                target.write_behind(file_offset, len);
                Ok(())
            }
        }
    }
}

/// Tries the ways of copying that the kernel offers; false when none works. Extents are shared in 4 KiB units: what
/// sticks out at the ends is left to the other ways.
fn kernel_copy(
    target: &dyn Storage,
    raw: &dyn Storage,
    from: u64,
    to: u64,
    len: u64,
    methods: &[CopyMethod],
    reflinked: &AtomicU64,
) -> Result<bool> {
    for &method in methods {
        if method != CopyMethod::Reflink {
            if target.copy_range_from(raw, from, to, len, method).is_ok() {
                return Ok(true);
            }
            continue;
        }
        let head = (align_up(to, LOG_SECTOR).unwrap_or(to) - to).min(len);
        let middle = align_down(len - head, LOG_SECTOR);
        let shareable = from % LOG_SECTOR == to % LOG_SECTOR && middle > 0;
        if shareable {
            match storage::share(target, to + head, raw, from + head, middle) {
                Ok(()) => {
                    reflinked.fetch_add(middle, Ordering::Relaxed);
                    for (skip, part) in [(0, head), (head + middle, len - head - middle)] {
                        plain_copy(target, raw, from + skip, to + skip, part)?;
                    }
                    return Ok(true);
                }
                Err(_) if methods.len() > 1 => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(false)
}

/// Reads and writes.
fn plain_copy(target: &dyn Storage, source: &dyn Storage, from: u64, to: u64, len: u64) -> Result<()> {
    let mut buf = vec![0; len.min(MIB) as usize];
    let mut done = 0;
    while done < len {
        let piece = &mut buf[..(len - done).min(MIB) as usize];
        let at = from + done;
        source
            .read_at(piece, at)
            .context(|| format!("read at file offset {at:#x}"))?;
        let at = to + done;
        target
            .write_payload_at(piece, at)
            .context(|| format!("write at file offset {at:#x}"))?;
        done += piece.len() as u64;
    }
    Ok(())
}
