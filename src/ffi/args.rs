//! From C's arguments to Rust's.

use std::ffi::{c_char, CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// A parameter that must not be NULL.
pub(super) fn null(name: &str) -> Error {
    Error::new(ErrorKind::Argument, format!("{name} must not be NULL"))
}

/// Reads through a pointer the caller must not leave NULL.
pub(super) fn required<'a, T>(pointer: *const T, name: &str) -> Result<&'a T> {
    // SAFETY: the header asks for a valid pointer or NULL, which as_ref tells apart.
    unsafe { pointer.as_ref() }.ok_or_else(|| null(name))
}

/// Writes through a pointer the caller must not leave NULL.
pub(super) fn required_mut<'a, T>(pointer: *mut T, name: &str) -> Result<&'a mut T> {
    // SAFETY: the header asks for a valid pointer that nobody else uses meanwhile, or NULL.
    unsafe { pointer.as_mut() }.ok_or_else(|| null(name))
}

/// A path: bytes.
pub(super) fn path(text: *const c_char, name: &str) -> Result<PathBuf> {
    if text.is_null() {
        return Err(null(name));
    }
    // SAFETY: not NULL; the header asks for a NUL-terminated string.
    let bytes = unsafe { CStr::from_ptr(text) }.to_bytes();
    if bytes.is_empty() {
        return Err(Error::new(ErrorKind::Argument, format!("{name} is empty")));
    }
    Ok(PathBuf::from(OsStr::from_bytes(bytes)))
}

/// Text: UTF-8.
pub(super) fn text<'a>(text: *const c_char, name: &str) -> Result<&'a str> {
    if text.is_null() {
        return Err(null(name));
    }
    // SAFETY: not NULL; the header asks for a NUL-terminated string.
    unsafe { CStr::from_ptr(text) }
        .to_str()
        .map_err(|_| Error::new(ErrorKind::Argument, format!("{name} is not UTF-8")))
}

/// Bytes to read from. A length of 0 may come with NULL.
pub(super) fn bytes<'a>(buf: *const u8, count: usize, name: &str) -> Result<&'a [u8]> {
    check_span(buf, count, name)?;
    if count == 0 {
        return Ok(&[]);
    }
    // SAFETY: not NULL, at most isize::MAX; the header asks for `count` readable bytes.
    Ok(unsafe { std::slice::from_raw_parts(buf, count) })
}

/// Bytes to write to.
pub(super) fn bytes_mut<'a>(buf: *mut u8, count: usize, name: &str) -> Result<&'a mut [u8]> {
    check_span(buf, count, name)?;
    if count == 0 {
        return Ok(&mut []);
    }
    // SAFETY: not NULL, at most isize::MAX; the header asks for `count` writable bytes nobody else uses meanwhile.
    Ok(unsafe { std::slice::from_raw_parts_mut(buf, count) })
}

fn check_span(buf: *const u8, count: usize, name: &str) -> Result<()> {
    if count > isize::MAX as usize {
        return Err(Error::new(
            ErrorKind::Argument,
            format!("{name}: {count} bytes are too many"),
        ));
    }
    match buf.is_null() && count > 0 {
        true => Err(null(name)),
        false => Ok(()),
    }
}

/// Refuses bits that mean nothing, by name.
pub(super) fn flags(value: u32, known: u32) -> Result<()> {
    match value & !known {
        0 => Ok(()),
        unknown => Err(Error::new(
            ErrorKind::Argument,
            format!("unknown flag bits {unknown:#x}"),
        )),
    }
}

/// A copy for C; embedded NULs, which only a hostile image can bring in, become spaces.
pub(super) fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}

/// The same for a path.
pub(super) fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}

/// Copies `value` to a struct whose first member is the size the caller knows. What the caller has beyond ours is
/// zeroed.
pub(super) fn put_struct<T: Copy>(out: *mut T, value: T, name: &str) -> Result<()> {
    let first = out.cast::<u32>();
    // SAFETY: the header asks for a struct that begins with its size, or NULL.
    let size = unsafe { first.as_ref() }.copied().ok_or_else(|| null(name))? as usize;
    if !(8..=1 << 16).contains(&size) {
        return Err(Error::new(
            ErrorKind::Argument,
            format!("{name}->struct_size is {size}; set it with the AVHDX_..._INIT macro"),
        ));
    }
    let known = size.min(size_of::<T>());
    // SAFETY: the caller vouches for `size` bytes at `out`; at most that many are written, and T is plain data. The
    // size member, the first four bytes, keeps the caller's value.
    unsafe {
        let target = out.cast::<u8>();
        std::ptr::write_bytes(target.add(4), 0, size - 4);
        std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>().add(4), target.add(4), known - 4);
    }
    Ok(())
}

/// Hands a new object to the caller.
pub(super) fn give<T>(out: *mut *mut T, value: T) {
    if !out.is_null() {
        // SAFETY: not NULL; the header asks for a place for one pointer.
        unsafe { *out = Box::into_raw(Box::new(value)) };
    }
}

/// Sets an output handle to NULL, so that a failure leaves nothing to be freed.
pub(super) fn clear<T>(out: *mut *mut T, name: &str) -> Result<()> {
    *required_mut(out, name)? = std::ptr::null_mut();
    Ok(())
}
