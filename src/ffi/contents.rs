//! Differences and checksums
//!
//! What changed between two points of a chain, for incremental backup; whether two disks read the same; the checksum of
//! what a disk reads as. They read only. They wait for operations that change the layers of the disk; reading and writing
//! go on meanwhile, so what they say of a leaf that is written is about the moments at which they looked.

use std::ffi::{c_char, c_int};

use super::callback::{avhdx_progress_cb, take_progress};
use super::data::avhdx_extent;
use super::disk::{avhdx_disk, on_disk_alone};
use super::guard::{argument, borrow_mut, check_flags, guard, null, text};
use super::opts::{avhdx_opts, choose};
use crate::error::{Error, ErrorKind};
use crate::ops::{self, CompareOptions, DigestAlgorithm};
use crate::schema::Kind;

/// avhdx_diff: read both points and tell only sectors whose bytes differ.
pub const AVHDX_EXACT: u32 = 0x10;
/// avhdx_compare: disks of different sizes differ, even if what the larger one has more is zeros.
pub const AVHDX_STRICT: u32 = 0x20;

/// Most ranges answered at once.
const MAX_RANGES: usize = 1 << 16;

/// Tells what differs in [offset, offset + len) between the disk as of layer newer and as of layer older (newer <
/// older; 0 is the leaf): up to *n ranges, ascending, not overlapping, with gaps where both read the same. On success
/// *n is their number and *processed the bytes dealt with, less than len when there are more: go on at offset +
/// *processed.
///
/// state is AVHDX_STATE_DATA, to be read with avhdx_layer_pread from newer, or AVHDX_STATE_ZERO: reads as zeros there.
/// layer is newer and file_offset AVHDX_NO_OFFSET. The range asked for must lie in the disk as of newer; where the disk
/// as of older is shorter it counts as zeros. The ranges are those that layers newer to older - 1 hold, found from
/// metadata alone, so one may hold what it held before. flags: AVHDX_EXACT reads and compares, and tells sectors.
///
/// Errors: RANGE, ARGUMENT, CORRUPT, IO. disk, extents, n, processed: not NULL; *n: at least 1.
/// Waits for other operations on the disk. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `extents` has room for `*n`; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_diff(
    disk: *mut avhdx_disk,
    newer: u32,
    older: u32,
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
        check_flags(flags, AVHDX_EXACT)?;
        let max = match *n {
            0 => return Err(argument("*n is 0").with_hint("make room for at least one extent")),
            room => room.min(MAX_RANGES),
        };
        let exact = flags & AVHDX_EXACT != 0;
        let mut found = Vec::new();
        let diff = |disk: &avhdx_disk| {
            let (newer, older) = (newer as usize, older as usize);
            ops::diff(&disk.chain, newer, older, (offset, len), exact, max, &mut found)
        };
        // SAFETY: the caller's promise is that of `on_disk_alone`.
        let covered = unsafe { on_disk_alone(disk, diff) }?;
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

/// Compares what two disks read as. 0: equal; 1: different, and *first_difference is the offset of the first byte that
/// differs. Of different sizes, the part that only the larger disk has must read as zeros; with AVHDX_STRICT the sizes
/// must be equal too, and the first difference is where the smaller disk ends if there is none before. What both have
/// in the same place of the same file, and what is zero in both, is not read. a and b may be the same disk.
///
/// Keys: those of "compare". Errors: ARGUMENT, CANCELLED, CORRUPT, IO. flags: AVHDX_STRICT.
/// a, b: not NULL; first_difference, opts, progress: may be NULL. Waits for other operations on both disks. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; neither disk is closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_compare(
    a: *mut avhdx_disk,
    b: *mut avhdx_disk,
    flags: u32,
    first_difference: *mut u64,
    opts: *const avhdx_opts,
    progress: *const avhdx_progress_cb,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `take_progress`.
        let mut report = unsafe { take_progress(progress) }?;
        if a.is_null() || b.is_null() {
            return Err(null(if a.is_null() { "a" } else { "b" }));
        }
        check_flags(flags, AVHDX_STRICT)?;
        // SAFETY: the caller's promise is that of `choose`.
        let chosen = unsafe { choose(opts, &[Kind::Compare]) }?;
        let options = CompareOptions {
            strict: flags & AVHDX_STRICT != 0,
            ..chosen.settings.compare
        };
        let mut compare = |a: &avhdx_disk, b: &avhdx_disk| ops::compare(&a.chain, &b.chain, &options, &mut report);
        let difference: Option<u64> = match std::ptr::eq(a, b) {
            // SAFETY: the caller's promise is that of `on_disk_alone`.
            true => unsafe { on_disk_alone(a, |a| compare(a, a)) },
            // SAFETY: as above, for each of the two.
            false => unsafe { on_disk_alone(a, |a| on_disk_alone(b, |b| compare(a, b))) },
        }?;
        let Some(at) = difference else { return Ok(0) };
        // SAFETY: NULL or a place for a number, by the caller's promise.
        if let Some(place) = unsafe { first_difference.as_mut() } {
            *place = at;
        }
        Ok(1)
    })
}

/// Computes the checksum of what the disk reads as, as of a layer (0 is the disk itself): that of a raw copy of it.
/// algo is "sha256" (32 bytes) or "sha512" (64). On entry *len is the room at out, which must be enough; on success it is
/// the length of the checksum. What reads as zeros is not read, but takes part: a disk of many TiB takes its time.
///
/// Keys: those of "digest". Errors: ARGUMENT, CANCELLED, CORRUPT, IO. disk, algo, out, len: not NULL; opts, progress: may be NULL.
/// Waits for other operations on the disk. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described; `out` has room for `*len` bytes; `disk` is not closed before the call ends.
#[no_mangle]
pub unsafe extern "C" fn avhdx_digest(
    disk: *mut avhdx_disk,
    layer: u32,
    algo: *const c_char,
    out: *mut u8,
    len: *mut usize,
    opts: *const avhdx_opts,
    progress: *const avhdx_progress_cb,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `take_progress`.
        let mut report = unsafe { take_progress(progress) }?;
        // SAFETY: the caller's promise is that of `text`.
        let algorithm = DigestAlgorithm::from_name(unsafe { text(algo, "algo") }?)?;
        if out.is_null() {
            return Err(null("out"));
        }
        // SAFETY: the caller's promise is that of `borrow_mut`.
        let room = unsafe { borrow_mut(len, "len") }?;
        if *room < algorithm.len() {
            let name = algorithm.name();
            return Err(argument(format!("*len is {room}")).with_hint(format!("{name} needs {}", algorithm.len())));
        }
        // SAFETY: the caller's promise is that of `choose`.
        let chosen = unsafe { choose(opts, &[Kind::Digest]) }?;
        let options = &chosen.settings.digest;
        let digest = |disk: &avhdx_disk| ops::digest(&disk.chain, layer as usize, algorithm, options, &mut report);
        // SAFETY: the caller's promise is that of `on_disk_alone`.
        let bytes: Vec<u8> = unsafe { on_disk_alone(disk, digest) }?;
        if bytes.len() > *room {
            return Err(Error::new(ErrorKind::Bug, "a longer digest than expected"));
        }
        // SAFETY: `out` has room for `*len` bytes by the caller's promise, and `bytes` is not longer; it is our own memory.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), out, bytes.len()) };
        *room = bytes.len();
        Ok(0)
    })
}
