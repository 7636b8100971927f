//! Errors
//!
//! Every function that can fail returns a negative errno (or NULL). Detail about a thread's latest failure is in an
//! error object; successful calls leave it alone.

use std::borrow::Cow;
use std::cell::RefCell;
use std::error::Error as _;
use std::ffi::{c_char, c_int, CStr, CString};
use std::os::unix::ffi::OsStrExt;

use super::guard::{borrow, guard};
use crate::error::{Error, ErrorKind};

/// The file does not begin with the VHDX signature.
pub const AVHDX_ERR_NOT_VHDX: i32 = 1;
/// A version, required region, required item or locator type this library does not know.
pub const AVHDX_ERR_UNSUPPORTED: i32 = 2;
/// A rule of the format is broken; the cause names structure, rule, file offset, found and wanted.
pub const AVHDX_ERR_CORRUPT: i32 = 3;
/// A checksum does not match.
pub const AVHDX_ERR_CHECKSUM: i32 = 4;
/// The file ends before a structure it must hold.
pub const AVHDX_ERR_TRUNCATED: i32 = 5;
/// The log must be replayed and the options or the file forbid it.
pub const AVHDX_ERR_LOG_REPLAY_REQUIRED: i32 = 6;
/// No candidate for the parent exists; the message lists what was tried.
pub const AVHDX_ERR_PARENT_NOT_FOUND: i32 = 7;
/// A file was found where the parent should be, and is another disk or was modified.
pub const AVHDX_ERR_PARENT_ID_MISMATCH: i32 = 8;
/// The parent exists and policy or permission forbids opening it.
pub const AVHDX_ERR_PARENT_ACCESS: i32 = 9;
/// The parent has another logical sector size.
pub const AVHDX_ERR_PARENT_MISMATCH: i32 = 10;
/// The chain returns to itself or is deeper than allowed.
pub const AVHDX_ERR_CHAIN_LOOP: i32 = 11;
/// The operation would make other files unusable; the message lists them.
pub const AVHDX_ERR_HAS_CHILDREN: i32 = 12;
/// Another program uses the file.
pub const AVHDX_ERR_LOCKED: i32 = 13;
/// A write to something opened, or only available, for reading.
pub const AVHDX_ERR_READ_ONLY: i32 = 14;
/// There is not enough space.
pub const AVHDX_ERR_NO_SPACE: i32 = 15;
/// A range that is not inside the virtual disk.
pub const AVHDX_ERR_RANGE: i32 = 16;
/// An argument or option that cannot be used.
pub const AVHDX_ERR_ARGUMENT: i32 = 17;
/// Shrinking would cut data.
pub const AVHDX_ERR_SHRINK_UNSAFE: i32 = 18;
/// An interrupted operation must be finished first.
pub const AVHDX_ERR_PENDING_OPERATION: i32 = 19;
/// The caller asked to stop; what was done so far is consistent and can be continued.
pub const AVHDX_ERR_CANCELLED: i32 = 20;
/// The operation cannot be done by changing metadata alone (AVHDX_FAST).
pub const AVHDX_ERR_NOT_FAST: i32 = 21;
/// An earlier metadata write failed, so no more are made; the cause is the first failure.
pub const AVHDX_ERR_POISONED: i32 = 22;
/// The operating system or the I/O callbacks reported a failure; errno is theirs.
pub const AVHDX_ERR_IO: i32 = 23;
/// A defect of this library. Only avhdx_close and avhdx_abort work on the handle from here on.
pub const AVHDX_ERR_BUG: i32 = 24;

/// One failure: code, errno, HRESULT, message, hint, path, layer, offset, cause.
#[derive(Debug, Clone)]
pub struct avhdx_error {
    code: i32,
    errno: i32,
    hresult: u32,
    layer: i32,
    offset: i64,
    message: Cow<'static, CStr>,
    hint: Cow<'static, CStr>,
    path: Cow<'static, CStr>,
    cause: Cow<'static, CStr>,
}

static NO_ERROR: avhdx_error = avhdx_error {
    code: 0,
    errno: 0,
    hresult: 0,
    layer: -1,
    offset: -1,
    message: Cow::Borrowed(c"no error"),
    hint: Cow::Borrowed(c""),
    path: Cow::Borrowed(c""),
    cause: Cow::Borrowed(c""),
};

thread_local! {
    // Boxed, so that the object does not move while a caller holds its address.
    static LAST: RefCell<Option<Box<avhdx_error>>> = const { RefCell::new(None) };
}

/// A C string of text that might hold NUL bytes.
pub(super) fn c_string(text: impl Into<Vec<u8>>) -> CString {
    let mut bytes = text.into();
    bytes.retain(|&byte| byte != 0);
    CString::new(bytes).unwrap_or_default()
}

impl avhdx_error {
    fn new(error: &Error) -> avhdx_error {
        let mut cause = String::new();
        let mut source = error.source();
        while let Some(inner) = source {
            if !cause.is_empty() {
                cause.push_str(": ");
            }
            cause.push_str(&inner.to_string());
            source = inner.source();
        }
        let errno = match error.errno() {
            errno if errno > 0 => errno,
            _ => libc::EIO,
        };
        avhdx_error {
            code: error.kind() as i32,
            errno,
            hresult: error.hresult(),
            layer: error.layer().and_then(|layer| i32::try_from(layer).ok()).unwrap_or(-1),
            offset: error
                .offset()
                .and_then(|offset| i64::try_from(offset).ok())
                .unwrap_or(-1),
            message: Cow::Owned(c_string(error.to_string())),
            hint: Cow::Owned(c_string(error.hint().unwrap_or_default())),
            path: Cow::Owned(c_string(
                error.path().map(|p| p.as_os_str().as_bytes()).unwrap_or_default(),
            )),
            cause: Cow::Owned(c_string(cause)),
        }
    }
}

/// Makes `error` the thread's last one and returns its errno.
pub(super) fn set_last(error: &Error) -> c_int {
    let error = avhdx_error::new(error);
    let errno = error.errno;
    // A thread that is ending may have lost its slot; the status still tells.
    let _ = LAST.try_with(|last| last.replace(Some(Box::new(error))));
    errno
}

fn last() -> *const avhdx_error {
    let last = LAST.try_with(|last| last.borrow().as_deref().map(std::ptr::from_ref));
    last.ok().flatten().unwrap_or(&raw const NO_ERROR)
}

/// # Safety
/// `error` is NULL or from this library and still valid.
unsafe fn pick<'a>(error: *const avhdx_error) -> &'a avhdx_error {
    let error = if error.is_null() { last() } else { error };
    // SAFETY: not NULL; the caller's object is valid by this function's contract, and the thread's own lives until its
    // next failing call, which is not this one.
    unsafe { &*error }
}

/// The latest failure on this thread. Never NULL: before the first failure it is an object with code 0. Valid until
/// the next call on this thread that fails; avhdx_error_dup keeps it. Do not free it. Any thread. Since 1.0.
#[no_mangle]
pub extern "C" fn avhdx_last_error() -> *const avhdx_error {
    last()
}

/// The code, AVHDX_ERR_...; 0 for no error. error: NULL means avhdx_last_error(). Since 1.0.
///
/// # Safety
/// `error` is NULL or from this library and still valid.
#[no_mangle]
pub unsafe extern "C" fn avhdx_error_code(error: *const avhdx_error) -> c_int {
    // SAFETY: the caller's promise is that of `pick`.
    unsafe { pick(error) }.code
}

/// The errno, positive: the operating system's own where it gave one. 0 for no error.
/// error: NULL means avhdx_last_error(). Since 1.0.
///
/// # Safety
/// `error` is NULL or from this library and still valid.
#[no_mangle]
pub unsafe extern "C" fn avhdx_error_errno(error: *const avhdx_error) -> c_int {
    // SAFETY: the caller's promise is that of `pick`.
    unsafe { pick(error) }.errno
}

/// The HRESULT Windows uses for the same condition; 0 where it has none.
/// error: NULL means avhdx_last_error(). Since 1.0.
///
/// # Safety
/// `error` is NULL or from this library and still valid.
#[no_mangle]
pub unsafe extern "C" fn avhdx_error_hresult(error: *const avhdx_error) -> u32 {
    // SAFETY: the caller's promise is that of `pick`.
    unsafe { pick(error) }.hresult
}

/// What happened, in one line of UTF-8 that begins with the file, if one is concerned. Never NULL; lives with the
/// error. error: NULL means avhdx_last_error(). Since 1.0.
///
/// # Safety
/// `error` is NULL or from this library and still valid.
#[no_mangle]
pub unsafe extern "C" fn avhdx_error_message(error: *const avhdx_error) -> *const c_char {
    // SAFETY: the caller's promise is that of `pick`.
    unsafe { pick(error) }.message.as_ptr()
}

/// What to do about it: a command, an option, a next step. "" where nothing helps. Never NULL; lives with the error.
/// error: NULL means avhdx_last_error(). Since 1.0.
///
/// # Safety
/// `error` is NULL or from this library and still valid.
#[no_mangle]
pub unsafe extern "C" fn avhdx_error_hint(error: *const avhdx_error) -> *const c_char {
    // SAFETY: the caller's promise is that of `pick`.
    unsafe { pick(error) }.hint.as_ptr()
}

/// The file concerned, as bytes; "" if none. Never NULL; lives with the error.
/// error: NULL means avhdx_last_error(). Since 1.0.
///
/// # Safety
/// `error` is NULL or from this library and still valid.
#[no_mangle]
pub unsafe extern "C" fn avhdx_error_path(error: *const avhdx_error) -> *const c_char {
    // SAFETY: the caller's promise is that of `pick`.
    unsafe { pick(error) }.path.as_ptr()
}

/// The layer concerned, 0 = leaf; -1 if none. error: NULL means avhdx_last_error(). Since 1.0.
///
/// # Safety
/// `error` is NULL or from this library and still valid.
#[no_mangle]
pub unsafe extern "C" fn avhdx_error_layer(error: *const avhdx_error) -> i32 {
    // SAFETY: the caller's promise is that of `pick`.
    unsafe { pick(error) }.layer
}

/// The offset concerned, in bytes: of the virtual disk for a request, of the file for a structure; -1 if none.
/// error: NULL means avhdx_last_error(). Since 1.0.
///
/// # Safety
/// `error` is NULL or from this library and still valid.
#[no_mangle]
pub unsafe extern "C" fn avhdx_error_offset(error: *const avhdx_error) -> i64 {
    // SAFETY: the caller's promise is that of `pick`.
    unsafe { pick(error) }.offset
}

/// What lies beneath: the broken rule with its place, found and wanted values, or the operating system's words; causes
/// joined by ": ", "" if none. Never NULL; lives with the error. error: NULL means avhdx_last_error(). Since 1.0.
///
/// # Safety
/// `error` is NULL or from this library and still valid.
#[no_mangle]
pub unsafe extern "C" fn avhdx_error_cause(error: *const avhdx_error) -> *const c_char {
    // SAFETY: the caller's promise is that of `pick`.
    unsafe { pick(error) }.cause.as_ptr()
}

/// Copies an error, to keep it or to give it to another thread. Free the copy with avhdx_error_free.
/// error: not NULL (returns NULL). Since 1.0.
///
/// # Safety
/// `error` is NULL or from this library and still valid.
#[no_mangle]
pub unsafe extern "C" fn avhdx_error_dup(error: *const avhdx_error) -> *mut avhdx_error {
    guard(|| {
        // SAFETY: the caller's promise is that of `borrow`.
        let error = unsafe { borrow(error, "error") }?;
        Ok(Box::into_raw(Box::new(error.clone())))
    })
}

/// Frees what avhdx_error_dup returned; nothing else. error: may be NULL. Since 1.0.
///
/// # Safety
/// `error` is NULL or from `avhdx_error_dup` and not yet freed.
#[no_mangle]
pub unsafe extern "C" fn avhdx_error_free(error: *mut avhdx_error) {
    guard(|| {
        if !error.is_null() {
            // SAFETY: made by Box::into_raw in avhdx_error_dup, and freed once, by the caller's promise.
            drop(unsafe { Box::from_raw(error) });
        }
        Ok(())
    });
}

/// The name of a code without AVHDX_ERR_: "PARENT_NOT_FOUND". "OK" for 0, "UNKNOWN" for what this version does not
/// know. Never NULL; lives as long as the library. Any thread. Since 1.0.
#[no_mangle]
pub extern "C" fn avhdx_code_name(code: c_int) -> *const c_char {
    name(code).as_ptr()
}

fn name(code: c_int) -> &'static CStr {
    match code {
        0 => c"OK",
        AVHDX_ERR_NOT_VHDX => c"NOT_VHDX",
        AVHDX_ERR_UNSUPPORTED => c"UNSUPPORTED",
        AVHDX_ERR_CORRUPT => c"CORRUPT",
        AVHDX_ERR_CHECKSUM => c"CHECKSUM",
        AVHDX_ERR_TRUNCATED => c"TRUNCATED",
        AVHDX_ERR_LOG_REPLAY_REQUIRED => c"LOG_REPLAY_REQUIRED",
        AVHDX_ERR_PARENT_NOT_FOUND => c"PARENT_NOT_FOUND",
        AVHDX_ERR_PARENT_ID_MISMATCH => c"PARENT_ID_MISMATCH",
        AVHDX_ERR_PARENT_ACCESS => c"PARENT_ACCESS",
        AVHDX_ERR_PARENT_MISMATCH => c"PARENT_MISMATCH",
        AVHDX_ERR_CHAIN_LOOP => c"CHAIN_LOOP",
        AVHDX_ERR_HAS_CHILDREN => c"HAS_CHILDREN",
        AVHDX_ERR_LOCKED => c"LOCKED",
        AVHDX_ERR_READ_ONLY => c"READ_ONLY",
        AVHDX_ERR_NO_SPACE => c"NO_SPACE",
        AVHDX_ERR_RANGE => c"RANGE",
        AVHDX_ERR_ARGUMENT => c"ARGUMENT",
        AVHDX_ERR_SHRINK_UNSAFE => c"SHRINK_UNSAFE",
        AVHDX_ERR_PENDING_OPERATION => c"PENDING_OPERATION",
        AVHDX_ERR_CANCELLED => c"CANCELLED",
        AVHDX_ERR_NOT_FAST => c"NOT_FAST",
        AVHDX_ERR_POISONED => c"POISONED",
        AVHDX_ERR_IO => c"IO",
        AVHDX_ERR_BUG => c"BUG",
        _ => c"UNKNOWN",
    }
}

/// The kind a code stands for is the kind with that number; the names agree.
const _: () = assert!(ErrorKind::ALL.len() == AVHDX_ERR_BUG as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_numbers_of_the_kinds() {
        for kind in ErrorKind::ALL {
            assert_eq!(name(*kind as i32).to_str().unwrap(), kind.name());
        }
        assert_eq!(name(ErrorKind::ALL.len() as i32 + 1), c"UNKNOWN");
        assert_eq!(name(-1), c"UNKNOWN");
    }

    #[test]
    fn nul_bytes_are_left_out_of_messages() {
        assert_eq!(c_string("a\0b").as_bytes(), b"ab");
    }

    #[test]
    fn errno_is_positive_whatever_the_cause_says() {
        let error = Error::io("read", std::io::Error::from_raw_os_error(0));
        assert_eq!(avhdx_error::new(&error).errno, libc::EIO);
    }
}
