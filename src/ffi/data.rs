//! Reading and writing
//!
//! Offsets and lengths are bytes of the virtual disk, of any alignment; multiples of the logical sector size are
//! cheaper. Every request is done whole or fails. A range that leaves the disk is -EINVAL, code RANGE, and nothing is
//! touched. All of these may be called by any number of threads at once on one disk, also while it is checkpointed or
//! merged. Of two writes to the same sector at the same time, one wins whole. A write is seen by every read that
//! begins after it returned; it survives power loss after avhdx_flush, or with AVHDX_FUA when it returns.

use std::ffi::{c_int, c_void};
use std::io::IoSliceMut;

use libc::iovec;

use super::disk::{avhdx_disk, on_disk};
use super::guard::{argument, borrow_mut, check_flags, guard, null};
use crate::chain::{Extent, ExtentState, Scope};
use crate::error::{Error, ErrorKind, Result};
use crate::options::ZeroFlags;

/// The call's own effect survives power loss when it returns.
pub const AVHDX_FUA: u32 = 0x1;
/// avhdx_zero: space may be given back.
pub const AVHDX_MAY_UNMAP: u32 = 0x2;
/// avhdx_zero: fail with NOT_FAST, having done nothing, unless changing metadata is enough.
pub const AVHDX_FAST: u32 = 0x4;
/// avhdx_block_status: one extent is enough.
pub const AVHDX_ONE: u32 = 0x8;

/// The bit by which AVHDX_THIS_LAYER says that a layer number follows in bits 16 to 31.
const THIS_LAYER: u32 = 0x100;

/// State of an extent: bytes in a file.
pub const AVHDX_STATE_DATA: u32 = 1;
/// State of an extent: explicitly zero.
pub const AVHDX_STATE_ZERO: u32 = 2;
/// State of an extent: no layer provides it; reads as zeros. With AVHDX_THIS_LAYER: as whatever is below.
pub const AVHDX_STATE_HOLE: u32 = 3;
/// State of an extent: trimmed; reads as zeros.
pub const AVHDX_STATE_UNMAPPED: u32 = 4;
/// State of an extent: left undefined by whoever wrote it; reads as zeros.
pub const AVHDX_STATE_UNDEFINED: u32 = 5;

/// A range of the virtual disk with one state. This structure never grows. Since 1.0.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct avhdx_extent {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
    /// AVHDX_STATE_...
    pub state: u32,
    /// The layer that decides it.
    pub layer: u32,
    /// Where its bytes are in that layer's file; AVHDX_NO_OFFSET when there are none.
    pub file_offset: u64,
}

/// Most bytes gathered from small pieces before they are written.
const GATHER: usize = 1 << 20;

/// Parts of so many bytes are not gathered where they need not be.
const LARGE: usize = 64 << 10;

/// Buffers read into at once.
const VECTOR: usize = 64;

/// Boundaries at multiples of this are sector boundaries of every disk.
const SECTOR: u64 = 4096;

/// Most extents answered at once.
const MAX_EXTENTS: usize = 1 << 16;

fn too_long(count: usize, offset: u64) -> Error {
    Error::new(ErrorKind::Range, format!("{count} bytes are more than any disk has")).with_offset(offset)
}

/// The caller's buffer for reading into.
///
/// # Safety
/// `buf` is NULL or has `count` bytes that nobody else uses for `'a`.
unsafe fn buffer_mut<'a>(buf: *mut c_void, count: usize, name: &str, offset: u64) -> Result<&'a mut [u8]> {
    match (buf.is_null(), isize::try_from(count)) {
        (_, Ok(0)) => Ok(&mut []),
        (_, Err(_)) => Err(too_long(count, offset)),
        (true, _) => Err(null(name)),
        // SAFETY: not NULL, at most isize::MAX, and the caller's for the call by this function's contract.
        (false, _) => Ok(unsafe { std::slice::from_raw_parts_mut(buf.cast::<u8>(), count) }),
    }
}

/// The caller's buffer for writing from.
///
/// # Safety
/// `buf` is NULL or has `count` bytes that nobody changes for `'a`.
unsafe fn buffer<'a>(buf: *const c_void, count: usize, name: &str, offset: u64) -> Result<&'a [u8]> {
    match (buf.is_null(), isize::try_from(count)) {
        (_, Ok(0)) => Ok(&[]),
        (_, Err(_)) => Err(too_long(count, offset)),
        (true, _) => Err(null(name)),
        // SAFETY: not NULL, at most isize::MAX, and unchanged during the call by this function's contract.
        (false, _) => Ok(unsafe { std::slice::from_raw_parts(buf.cast::<u8>(), count) }),
    }
}

/// The caller's vector.
///
/// # Safety
/// `iov` is NULL or has `count` members that nobody changes for `'a`.
unsafe fn vector<'a>(iov: *const iovec, count: c_int) -> Result<&'a [iovec]> {
    match (usize::try_from(count), iov.is_null()) {
        (Err(_), _) => Err(argument(format!("iovcnt is {count}"))),
        (Ok(0), _) => Ok(&[]),
        (Ok(_), true) => Err(null("iov")),
        // SAFETY: not NULL, and `count` members by this function's contract.
        (Ok(count), false) => Ok(unsafe { std::slice::from_raw_parts(iov, count) }),
    }
}

/// Checks a vectored range as a whole, so that nothing is touched if a part of it is outside. Returns its length.
fn check_vector(disk: &avhdx_disk, iov: &[iovec], offset: u64) -> Result<u64> {
    let size = disk.chain.size();
    let len = iov
        .iter()
        .try_fold(0u64, |sum, part| sum.checked_add(part.iov_len as u64));
    let inside = |len: &u64| offset.checked_add(*len).is_some_and(|end| end <= size);
    let len = len.filter(inside).ok_or_else(|| {
        Error::new(
            ErrorKind::Range,
            format!("the vector at offset {offset} is not all inside the disk of {size} bytes"),
        )
        .with_offset(offset)
    })?;
    match iov.iter().position(|part| part.iov_base.is_null() && part.iov_len > 0) {
        Some(i) => Err(null(&format!("iov[{i}].iov_base"))),
        None => Ok(len),
    }
}

/// Reads the range [offset, offset + count) into buf. On failure other than RANGE parts of buf may have been written.
/// Errors: RANGE, CORRUPT, IO, ... disk: not NULL; buf: not NULL unless count is 0. Concurrent on one disk. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `buf` has `count` bytes; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_pread(disk: *mut avhdx_disk, buf: *mut c_void, count: usize, offset: u64) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `buffer_mut`.
        let buf = unsafe { buffer_mut(buf, count, "buf", offset) }?;
        // SAFETY: the caller's promise is that of `on_disk`.
        unsafe { on_disk(disk, |disk| disk.chain.read(buf, offset)) }?;
        Ok(0)
    })
}

/// Writes buf to the range [offset, offset + count), into the leaf. flags: AVHDX_FUA.
/// Errors: RANGE, READ_ONLY, NO_SPACE, POISONED, IO, ... disk: not NULL; buf: not NULL unless count is 0.
/// Concurrent on one disk. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `buf` has `count` bytes; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_pwrite(
    disk: *mut avhdx_disk,
    buf: *const c_void,
    count: usize,
    offset: u64,
    flags: u32,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `buffer`.
        let buf = unsafe { buffer(buf, count, "buf", offset) }?;
        check_flags(flags, AVHDX_FUA)?;
        // SAFETY: the caller's promise is that of `on_disk`.
        unsafe { on_disk(disk, |disk| disk.chain.write(buf, offset, flags & AVHDX_FUA != 0)) }?;
        Ok(0)
    })
}

/// As avhdx_pread, into iovcnt buffers one after another, which do not overlap. disk: not NULL; iov: not NULL unless
/// iovcnt is 0. Concurrent on one disk. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; the buffers do not overlap; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_preadv(disk: *mut avhdx_disk, iov: *const iovec, iovcnt: c_int, offset: u64) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `vector`.
        let iov = unsafe { vector(iov, iovcnt) }?;
        let read = |disk: &avhdx_disk| {
            check_vector(disk, iov, offset)?;
            let mut at = offset;
            for some in iov.chunks(VECTOR) {
                let mut bufs = std::array::from_fn::<_, VECTOR, _>(|_| IoSliceMut::new(&mut []));
                let mut len = 0;
                for (buf, part) in bufs.iter_mut().zip(some) {
                    // SAFETY: the caller's promise for each member is that of `buffer_mut`, and that no two overlap.
                    let bytes = unsafe { buffer_mut(part.iov_base, part.iov_len, "iov_base", at) }?;
                    *buf = IoSliceMut::new(bytes);
                    len += part.iov_len as u64;
                }
                disk.chain.read_vectored(&mut bufs[..some.len()], at)?;
                at += len;
            }
            Ok(())
        };
        // SAFETY: the caller's promise is that of `on_disk`.
        unsafe { on_disk(disk, read) }?;
        Ok(0)
    })
}

/// As avhdx_pwrite, from iovcnt buffers one after another. flags: AVHDX_FUA.
/// disk: not NULL; iov: not NULL unless iovcnt is 0. Concurrent on one disk. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_pwritev(
    disk: *mut avhdx_disk,
    iov: *const iovec,
    iovcnt: c_int,
    offset: u64,
    flags: u32,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `vector`.
        let iov = unsafe { vector(iov, iovcnt) }?;
        check_flags(flags, AVHDX_FUA)?;
        let write = |disk: &avhdx_disk| {
            let len = check_vector(disk, iov, offset)?;
            let parts: Vec<&[u8]> = iov
                .iter()
                // SAFETY: the caller's promise for each member is that of `buffer`.
                .map(|part| unsafe { buffer(part.iov_base, part.iov_len, "iov_base", offset) })
                .collect::<Result<_>>()?;
            write_parts(disk, &parts, offset, len, flags & AVHDX_FUA != 0)
        };
        // SAFETY: the caller's promise is that of `on_disk`.
        unsafe { on_disk(disk, write) }?;
        Ok(0)
    })
}

/// Writes parts one after another, so that no sector is ever half written, and small ones not one by one: what is small or
/// ends within a sector is gathered.
fn write_parts(disk: &avhdx_disk, parts: &[&[u8]], offset: u64, len: u64, fua: bool) -> Result<()> {
    let end = offset + len;
    let write = |bytes: &[u8], at: u64| disk.chain.write(bytes, at, fua && at + bytes.len() as u64 == end);
    if len == 0 {
        return disk.chain.write(&[], offset, fua);
    }
    let mut gathered: Vec<u8> = Vec::new();
    let mut at = offset;
    for part in parts {
        let mut part = *part;
        while !part.is_empty() {
            let reached = at + gathered.len() as u64;
            let part_end = reached + part.len() as u64;
            let alone = gathered.is_empty() && part_end == end;
            if alone || part.len() >= LARGE && (gathered.is_empty() || reached % SECTOR == 0) {
                if !gathered.is_empty() {
                    write(&gathered, at)?;
                    gathered.clear();
                }
                let rest = if part_end == end { 0 } else { part_end % SECTOR };
                let (now, later) = part.split_at(part.len() - rest as usize);
                write(now, reached)?;
                (at, part) = (part_end - rest, later);
                continue;
            }
            // Up to a sector boundary that leaves the buffer a reasonable size, or all there is.
            let limit = end.min((at + GATHER as u64) / SECTOR * SECTOR);
            let room = (limit - reached) as usize;
            if gathered.is_empty() {
                gathered.reserve(room);
            }
            let (now, later) = part.split_at(part.len().min(room));
            gathered.extend_from_slice(now);
            part = later;
            if now.len() == room {
                write(&gathered, at)?;
                at = limit;
                gathered.clear();
            }
        }
    }
    Ok(())
}

/// Reads the disk as of a layer: as it was when the layer's child was made. The range must lie inside that layer's
/// virtual size. Layer 0 is the disk itself. Errors: ARGUMENT when there is no such layer; as avhdx_pread.
/// disk: not NULL; buf: not NULL unless count is 0. Concurrent on one disk. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `buf` has `count` bytes; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_layer_pread(
    disk: *mut avhdx_disk,
    layer: u32,
    buf: *mut c_void,
    count: usize,
    offset: u64,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `buffer_mut`.
        let buf = unsafe { buffer_mut(buf, count, "buf", offset) }?;
        // SAFETY: the caller's promise is that of `on_disk`.
        unsafe { on_disk(disk, |disk| disk.chain.read_layer(layer as usize, buf, offset)) }?;
        Ok(0)
    })
}

/// Makes the range [offset, offset + len) read as zeros, whatever parents hold there. flags: AVHDX_FUA,
/// AVHDX_MAY_UNMAP, AVHDX_FAST. Errors: NOT_FAST (-ENOTSUP), RANGE, READ_ONLY, NO_SPACE, POISONED, IO. disk: not
/// NULL. Concurrent on one disk. Since 1.0.
///
/// # Safety
/// `disk` is NULL or open, and not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_zero(disk: *mut avhdx_disk, offset: u64, len: u64, flags: u32) -> c_int {
    guard(|| {
        check_flags(flags, AVHDX_FUA | AVHDX_MAY_UNMAP | AVHDX_FAST)?;
        let flags = ZeroFlags {
            may_unmap: flags & AVHDX_MAY_UNMAP != 0,
            fua: flags & AVHDX_FUA != 0,
            fast: flags & AVHDX_FAST != 0,
        };
        // SAFETY: the caller's promise is that of `on_disk`.
        unsafe { on_disk(disk, |disk| disk.chain.zero(offset, len, flags)) }?;
        Ok(0)
    })
}

/// Says that the content of the range is not needed. Whole blocks in it give their space back and read as zeros, never
/// as a parent's older data; the rest stays as it is. flags: AVHDX_FUA. Errors: RANGE, READ_ONLY, POISONED, IO.
/// disk: not NULL. Concurrent on one disk. Since 1.0.
///
/// # Safety
/// `disk` is NULL or open, and not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_discard(disk: *mut avhdx_disk, offset: u64, len: u64, flags: u32) -> c_int {
    guard(|| {
        check_flags(flags, AVHDX_FUA)?;
        // SAFETY: the caller's promise is that of `on_disk`.
        unsafe { on_disk(disk, |disk| disk.chain.discard(offset, len, flags & AVHDX_FUA != 0)) }?;
        Ok(0)
    })
}

fn scope(flags: u32) -> Result<Scope> {
    match flags & THIS_LAYER {
        0 => check_flags(flags, AVHDX_ONE | THIS_LAYER).map(|()| Scope::Chain),
        _ => check_flags(flags & 0xffff, AVHDX_ONE | THIS_LAYER).map(|()| Scope::Layer((flags >> 16) as usize)),
    }
}

fn number(state: ExtentState) -> u32 {
    match state {
        ExtentState::Data => AVHDX_STATE_DATA,
        ExtentState::Zero => AVHDX_STATE_ZERO,
        ExtentState::Hole => AVHDX_STATE_HOLE,
        ExtentState::Unmapped => AVHDX_STATE_UNMAPPED,
        ExtentState::Undefined => AVHDX_STATE_UNDEFINED,
    }
}

impl From<&Extent> for avhdx_extent {
    fn from(extent: &Extent) -> Self {
        avhdx_extent {
            offset: extent.offset,
            length: extent.length,
            state: number(extent.state),
            layer: extent.layer,
            file_offset: extent.file_offset.unwrap_or(u64::MAX),
        }
    }
}

/// Tells what is where in [offset, offset + len): up to *n extents, in order, without gaps, the first at offset.
/// On success *n is their number and *processed the bytes they cover, less than len when there are more: go on at
/// offset + *processed. The answer is about this moment; other threads may write meanwhile.
///
/// flags: AVHDX_ONE; AVHDX_THIS_LAYER(i) asks about one file instead of the disk, where a range it does not hold is
/// AVHDX_STATE_HOLE. layer and file_offset let a caller do the I/O itself (avhdx_layer_fd).
/// Errors: RANGE, ARGUMENT, CORRUPT, IO. disk, extents, n, processed: not NULL; *n: at least 1.
/// Concurrent on one disk. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `extents` has room for `*n`; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_block_status(
    disk: *mut avhdx_disk,
    offset: u64,
    len: u64,
    flags: u32,
    extents: *mut avhdx_extent,
    n: *mut usize,
    processed: *mut u64,
) -> c_int {
    guard(|| {
        if extents.is_null() {
            return Err(null("extents"));
        }
        // SAFETY: the caller's promise is that of `borrow_mut`.
        let n = unsafe { borrow_mut(n, "n") }?;
        // SAFETY: the caller's promise is that of `borrow_mut`.
        let processed = unsafe { borrow_mut(processed, "processed") }?;
        let scope = scope(flags)?;
        let max = match (*n, flags & AVHDX_ONE) {
            (0, _) => return Err(argument("*n is 0").with_hint("make room for at least one extent")),
            (room, 0) => room.min(MAX_EXTENTS),
            _ => 1,
        };
        let mut found = Vec::new();
        let status = |disk: &avhdx_disk| disk.chain.block_status(offset, len, scope, max, &mut found);
        // SAFETY: the caller's promise is that of `on_disk`.
        let covered = unsafe { on_disk(disk, status) }?;
        if found.len() > max {
            return Err(Error::new(ErrorKind::Bug, "more extents than asked for"));
        }
        for (i, extent) in found.iter().enumerate() {
            // SAFETY: not NULL, and room for `*n` by the caller's promise; i < max <= *n. Writing does not look at what
            // was there.
            unsafe { extents.add(i).write(extent.into()) };
        }
        *n = found.len();
        *processed = covered;
        Ok(0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_flag_carries_its_number_and_no_other_bits() {
        assert_eq!(scope(0).unwrap(), Scope::Chain);
        assert_eq!(scope(THIS_LAYER | 7 << 16 | AVHDX_ONE).unwrap(), Scope::Layer(7));
        assert_eq!(scope(7 << 16).unwrap_err().to_string(), "unknown flag bits 0x70000");
        assert_eq!(
            scope(THIS_LAYER | 0x20).unwrap_err().to_string(),
            "unknown flag bits 0x20"
        );
    }
}
