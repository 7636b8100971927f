//! The data plane.

use std::ffi::{c_int, c_void};

use super::args::{bytes, bytes_mut, flags, null, required_mut};
use super::disk::{avhdx_disk, with_disk};
use crate::chain::{Extent, ExtentState, Scope};
use crate::error::{Error, ErrorKind, Result};
use crate::options::ZeroFlags;

/// A range of the disk with one state.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct avhdx_extent {
    /// First byte, on the disk.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Where it begins in the layer's file, or UINT64_MAX.
    pub file_offset: u64,
    /// One of AVHDX_EXTENT_*.
    pub state: u32,
    /// The layer that decides it, 0 = leaf.
    pub layer: u32,
}

/// Durable when the call returns.
const FUA: u32 = 1;
/// Space may be given back.
const MAY_UNMAP: u32 = 2;
/// Fail with NOT_FAST unless changing metadata is enough.
const FAST: u32 = 4;
/// One extent.
const ONE: u32 = 1;
/// The answer is for one file, whose number is in the upper bits.
const THIS_LAYER: u32 = 2;

/// Reads count bytes at offset: all of them or none. Any alignment.
/// Errors: RANGE beyond the end (buf is untouched), CORRUPT and its kin where metadata is first used, IO. Concurrent.
#[no_mangle]
pub unsafe extern "C" fn avhdx_pread(d: *mut avhdx_disk, buf: *mut c_void, count: usize, offset: u64) -> c_int {
    with_disk(d, |chain| {
        chain.read(bytes_mut(buf.cast(), count, "buf")?, offset).map(|()| 0)
    }) as c_int
}

/// Writes count bytes at offset to the leaf. Any alignment; whole sectors are fastest. Flags: AVHDX_FUA.
/// Durable after avhdx_flush(), or on return with AVHDX_FUA. After a failure any sector of the range may be old or new.
/// Errors: RANGE, READ_ONLY, NO_SPACE, POISONED, IO. Concurrent; of writes that overlap each sector is one or the other.
#[no_mangle]
pub unsafe extern "C" fn avhdx_pwrite(
    d: *mut avhdx_disk,
    buf: *const c_void,
    count: usize,
    offset: u64,
    flags_: u32,
) -> c_int {
    with_disk(d, |chain| {
        flags(flags_, FUA)?;
        chain
            .write(bytes(buf.cast(), count, "buf")?, offset, flags_ & FUA != 0)
            .map(|()| 0)
    }) as c_int
}

fn vector<'a>(iov: *const libc::iovec, n: c_int) -> Result<(&'a [libc::iovec], u64)> {
    let count = usize::try_from(n)
        .ok()
        .filter(|&n| n <= 1024)
        .ok_or_else(|| Error::new(ErrorKind::Argument, format!("iovcnt is {n}; 0 to 1024")))?;
    if count == 0 {
        return Ok((&[], 0));
    }
    if iov.is_null() {
        return Err(null("iov"));
    }
    // SAFETY: not NULL, a bounded count; the header asks for n iovecs.
    let iov = unsafe { std::slice::from_raw_parts(iov, count) };
    let total = iov
        .iter()
        .try_fold(0u64, |sum, v| sum.checked_add(v.iov_len as u64))
        .filter(|&total| total <= isize::MAX as u64)
        .ok_or_else(|| Error::new(ErrorKind::Argument, "the vector is too long"))?;
    Ok((iov, total))
}

/// That the whole vector lies on the disk, before its first part moves.
fn check_range(chain: &crate::Chain, offset: u64, len: u64) -> Result<()> {
    chain
        .block_status(offset, len, Scope::Chain, 0, &mut Vec::new())
        .map(drop)
}

/// As avhdx_pread(), into iovcnt (at most 1024) buffers one after the other.
#[no_mangle]
pub unsafe extern "C" fn avhdx_preadv(
    d: *mut avhdx_disk,
    iov: *const libc::iovec,
    iovcnt: c_int,
    offset: u64,
) -> c_int {
    with_disk(d, |chain| {
        let (iov, total) = vector(iov, iovcnt)?;
        check_range(chain, offset, total)?;
        let mut at = offset;
        for part in iov {
            chain.read(bytes_mut(part.iov_base.cast(), part.iov_len, "iov_base")?, at)?;
            at += part.iov_len as u64;
        }
        Ok(0)
    }) as c_int
}

/// As avhdx_pwrite(), from iovcnt (at most 1024) buffers one after the other.
#[no_mangle]
pub unsafe extern "C" fn avhdx_pwritev(
    d: *mut avhdx_disk,
    iov: *const libc::iovec,
    iovcnt: c_int,
    offset: u64,
    flags_: u32,
) -> c_int {
    with_disk(d, |chain| {
        flags(flags_, FUA)?;
        let (iov, total) = vector(iov, iovcnt)?;
        check_range(chain, offset, total)?;
        let mut at = offset;
        for part in iov {
            chain.write(bytes(part.iov_base.cast(), part.iov_len, "iov_base")?, at, false)?;
            at += part.iov_len as u64;
        }
        match flags_ & FUA != 0 && total > 0 {
            true => chain.flush().map(|()| 0),
            false => Ok(0),
        }
    }) as c_int
}

/// Reads the disk as of a layer: what it was when that layer's child was made. Otherwise as avhdx_pread().
#[no_mangle]
pub unsafe extern "C" fn avhdx_layer_pread(
    d: *mut avhdx_disk,
    layer: u32,
    buf: *mut c_void,
    count: usize,
    offset: u64,
) -> c_int {
    with_disk(d, |chain| {
        let buf = bytes_mut(buf.cast(), count, "buf")?;
        chain.read_layer(layer as usize, buf, offset).map(|()| 0)
    }) as c_int
}

/// Makes len bytes at offset read as zeros, whatever parents hold there. Flags: AVHDX_FUA; AVHDX_MAY_UNMAP: whole blocks
/// give their space back; AVHDX_FAST: NOT_FAST, and nothing done, unless changing metadata is enough. Otherwise as
/// avhdx_pwrite().
#[no_mangle]
pub unsafe extern "C" fn avhdx_zero(d: *mut avhdx_disk, offset: u64, len: u64, flags_: u32) -> c_int {
    with_disk(d, |chain| {
        flags(flags_, FUA | MAY_UNMAP | FAST)?;
        let zero = ZeroFlags {
            may_unmap: flags_ & MAY_UNMAP != 0,
            fua: flags_ & FUA != 0,
            fast: flags_ & FAST != 0,
        };
        chain.zero(offset, len, zero).map(|()| 0)
    }) as c_int
}

/// Gives the space of the whole blocks in the range back; they then read as zeros, never as a parent's older data. The
/// rest is left alone. Flags: AVHDX_FUA. Otherwise as avhdx_pwrite().
#[no_mangle]
pub unsafe extern "C" fn avhdx_discard(d: *mut avhdx_disk, offset: u64, len: u64, flags_: u32) -> c_int {
    with_disk(d, |chain| {
        flags(flags_, FUA)?;
        chain.discard(offset, len, flags_ & FUA != 0).map(|()| 0)
    }) as c_int
}

/// Tells what is where: up to *n extents from offset on; sets *n to their number and *processed to the bytes they
/// cover. Flags: AVHDX_STATUS_ONE: one extent; AVHDX_STATUS_THIS_LAYER(i): the answer for one file, where what it does
/// not hold is a HOLE. Other threads may write meanwhile. Concurrent.
#[no_mangle]
pub unsafe extern "C" fn avhdx_block_status(
    d: *mut avhdx_disk,
    offset: u64,
    len: u64,
    flags_: u32,
    extents: *mut avhdx_extent,
    n: *mut usize,
    processed: *mut u64,
) -> c_int {
    with_disk(d, |chain| {
        flags(flags_, ONE | THIS_LAYER | 0xFFFF << 16)?;
        let n = required_mut(n, "n")?;
        let processed = required_mut(processed, "processed")?;
        let room = if flags_ & ONE != 0 { (*n).min(1) } else { *n };
        if extents.is_null() && room > 0 {
            return Err(null("extents"));
        }
        let scope = match flags_ & THIS_LAYER {
            0 => Scope::Chain,
            _ => Scope::Layer((flags_ >> 16) as usize),
        };
        let mut found: Vec<Extent> = Vec::new();
        let covered = chain.block_status(offset, len, scope, room, &mut found)?;
        for (i, extent) in found.iter().enumerate() {
            let value = avhdx_extent {
                offset: extent.offset,
                length: extent.length,
                file_offset: extent.file_offset.unwrap_or(u64::MAX),
                state: match extent.state {
                    ExtentState::Data => 1,
                    ExtentState::Zero => 2,
                    ExtentState::Hole => 3,
                    ExtentState::Unmapped => 4,
                    ExtentState::Undefined => 5,
                },
                layer: extent.layer,
            };
            // SAFETY: not NULL; the header asks for *n extents, and at most that many were found.
            unsafe { extents.add(i).write(value) };
        }
        *n = found.len();
        *processed = covered;
        Ok(0)
    }) as c_int
}
