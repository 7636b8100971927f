//! What stands around every exported body: panics become errors, failures reach the thread's last error, and raw
//! arguments are checked before anything looks behind them.

use std::cell::{Cell, RefCell};
use std::ffi::{c_char, c_int, CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::Once;

use super::error::set_last;
use crate::error::{Error, ErrorKind, Result};

/// What a function returns when it fails.
pub(super) trait Failure {
    /// The value that stands for `errno`, a positive number.
    fn failed(errno: c_int) -> Self;
}

impl Failure for c_int {
    fn failed(errno: c_int) -> Self {
        -errno
    }
}

impl Failure for i64 {
    fn failed(errno: c_int) -> Self {
        -i64::from(errno)
    }
}

impl Failure for () {
    fn failed(_: c_int) -> Self {}
}

impl<T> Failure for *mut T {
    fn failed(_: c_int) -> Self {
        std::ptr::null_mut()
    }
}

impl<T> Failure for *const T {
    fn failed(_: c_int) -> Self {
        std::ptr::null()
    }
}

/// Runs the body of an exported function. A failure becomes the thread's last error and the function's failure value;
/// nothing unwinds past here.
#[inline]
pub(super) fn guard<T: Failure>(body: impl FnOnce() -> Result<T>) -> T {
    let error = match catch(body) {
        Ok(Ok(value)) => return value,
        Ok(Err(error)) => error,
        Err(bug) => bug,
    };
    // Storing the error formats foreign causes, which could panic in turn.
    match catch(|| set_last(&error)) {
        Ok(errno) => T::failed(errno),
        Err(_) => T::failed(ErrorKind::Bug.errno()),
    }
}

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs `body`; the outer error is a panic, as `Bug`.
#[inline]
pub(super) fn catch<T>(body: impl FnOnce() -> T) -> Result<T> {
    install_hook();
    let result = DEPTH.with(|depth| {
        depth.set(depth.get() + 1);
        let result = catch_unwind(AssertUnwindSafe(body));
        depth.set(depth.get() - 1);
        result
    });
    result.map_err(|payload| {
        // Dropping what was thrown may throw again; it is a message and small.
        std::mem::forget(payload);
        let said = PANIC.try_with(|said| said.borrow_mut().take()).ok().flatten();
        let said = said.unwrap_or_else(|| "no message".to_string());
        Error::new(ErrorKind::Bug, format!("a defect of this library: {said}"))
            .with_hint("please report it with this message; the files are as after a power cut, so reopen the disk")
    })
}

/// The default hook prints; a library does not. Panics outside guarded calls go to whoever was there before.
fn install_hook() {
    static HOOK: Once = Once::new();
    if HOOK.is_completed() || std::thread::panicking() {
        return;
    }
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if DEPTH.try_with(Cell::get).unwrap_or(0) == 0 {
                return before(info);
            }
            let payload = info.payload();
            let text = payload
                .downcast_ref::<&str>()
                .map(|text| (*text).to_string())
                .or_else(|| payload.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "no message".to_string());
            let place = info.location().map(|at| format!(" at {}:{}", at.file(), at.line()));
            let said = format!("{text}{}", place.unwrap_or_default());
            let _ = PANIC.try_with(|slot| slot.replace(Some(said)));
        }));
    });
}

/// The error for a pointer that must not be NULL.
pub(super) fn null(name: &str) -> Error {
    Error::new(ErrorKind::Argument, format!("the parameter '{name}' is NULL"))
}

/// The error for an argument that cannot be used.
pub(super) fn argument(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Argument, message.into())
}

/// Refuses flag bits that are not in `known`, naming them.
pub(super) fn check_flags(flags: u32, known: u32) -> Result<()> {
    match flags & !known {
        0 => Ok(()),
        unknown => Err(
            argument(format!("unknown flag bits {unknown:#x}")).with_hint(match known {
                0 => "this function takes no flags".to_string(),
                known => format!("this function takes {known:#x}"),
            }),
        ),
    }
}

/// Borrows what a pointer leads to.
///
/// # Safety
/// `pointer` is NULL or leads to a `T` that lives, unchanged but by shared mutability, for `'a`.
pub(super) unsafe fn borrow<'a, T>(pointer: *const T, name: &str) -> Result<&'a T> {
    // SAFETY: not NULL here means a live T, by this function's contract.
    unsafe { pointer.as_ref() }.ok_or_else(|| null(name))
}

/// Borrows what a pointer leads to, exclusively.
///
/// # Safety
/// `pointer` is NULL or leads to a `T` that lives for `'a` and that nobody else touches meanwhile.
pub(super) unsafe fn borrow_mut<'a, T>(pointer: *mut T, name: &str) -> Result<&'a mut T> {
    // SAFETY: not NULL here means a live T used by nobody else, by this function's contract.
    unsafe { pointer.as_mut() }.ok_or_else(|| null(name))
}

/// Sets an output handle to NULL and returns the place for it.
///
/// # Safety
/// `out` is NULL or leads to a writable pointer, which need not be initialised.
pub(super) unsafe fn out_handle<'a, T>(out: *mut *mut T, name: &str) -> Result<&'a mut *mut T> {
    if out.is_null() {
        return Err(null(name));
    }
    // SAFETY: not NULL, and writable by this function's contract; writing does not look at the old value.
    unsafe { out.write(std::ptr::null_mut()) };
    // SAFETY: it was just initialised.
    Ok(unsafe { &mut *out })
}

/// A path of the host from a C string; empty is refused.
///
/// # Safety
/// `text` is NULL or a string that ends in a NUL byte.
pub(super) unsafe fn path(text: *const c_char, name: &str) -> Result<PathBuf> {
    // SAFETY: this function's contract is that of `bytes`.
    let bytes = unsafe { bytes(text, name) }?;
    match bytes.is_empty() {
        true => Err(argument(format!("the parameter '{name}' is an empty path"))),
        false => Ok(PathBuf::from(OsStr::from_bytes(bytes))),
    }
}

/// [`path`], where NULL is none.
///
/// # Safety
/// As for [`path`].
pub(super) unsafe fn optional_path(text: *const c_char, name: &str) -> Result<Option<PathBuf>> {
    match text.is_null() {
        true => Ok(None),
        // SAFETY: this function's contract is that of `path`.
        false => unsafe { path(text, name) }.map(Some),
    }
}

/// The bytes of a C string, without its NUL.
///
/// # Safety
/// `text` is NULL or a string that ends in a NUL byte and lives for `'a`.
pub(super) unsafe fn bytes<'a>(text: *const c_char, name: &str) -> Result<&'a [u8]> {
    if text.is_null() {
        return Err(null(name));
    }
    // SAFETY: not NULL, so it ends in a NUL byte by this function's contract.
    Ok(unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// A UTF-8 string from a C string.
///
/// # Safety
/// As for [`bytes`].
pub(super) unsafe fn text<'a>(text: *const c_char, name: &str) -> Result<&'a str> {
    // SAFETY: this function's contract is that of `bytes`.
    let bytes = unsafe { bytes(text, name) }?;
    std::str::from_utf8(bytes).map_err(|_| argument(format!("the parameter '{name}' is not UTF-8")))
}

/// A structure the library fills: `repr(C)`, all-bits-valid integers, beginning with a `u32` struct_size.
///
/// # Safety
/// The type begins with a `u32` at offset 0 and is valid for any bytes.
pub(super) unsafe trait Output: Copy {}

/// Larger values of struct_size are memory that nobody initialised.
const MAX_STRUCT: u32 = 64 << 10;

/// A place for an output structure, checked before the work begins and written only after it succeeded.
#[derive(Debug)]
pub(super) struct Out<T: Output> {
    place: *mut T,
    size: u32,
}

impl<T: Output> Out<T> {
    /// Checks pointer and struct_size.
    ///
    /// # Safety
    /// `place` is NULL or leads to as many writable bytes as its first four, a `u32`, say.
    pub(super) unsafe fn new(place: *mut T, name: &str) -> Result<Out<T>> {
        if place.is_null() {
            return Err(null(name));
        }
        // SAFETY: not NULL, so its first four bytes can be read, by this function's contract.
        let size = unsafe { place.cast::<u32>().read() };
        if !(4..=MAX_STRUCT).contains(&size) {
            let error = argument(format!("{name}->struct_size is {size}"));
            return Err(error.with_hint("initialise the structure with its AVHDX_..._INIT macro"));
        }
        Ok(Out { place, size })
    }

    /// Writes as much of `value` as the caller knows, and zeros where the caller knows more. struct_size stays.
    pub(super) fn set(self, value: T) {
        let size = self.size as usize;
        let known = size.min(size_of::<T>());
        let to = self.place.cast::<u8>();
        // SAFETY: `place` leads to `size` writable bytes (contract of `new`); `value` has at least `known`; a local
        // cannot overlap the caller's memory.
        unsafe { std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), to, known) };
        // SAFETY: `known..size` lies inside the same `size` bytes.
        unsafe { to.add(known).write_bytes(0, size - known) };
        // SAFETY: the first four bytes are struct_size (contract of `Output`) and `size` is at least 4.
        unsafe { self.place.cast::<u32>().write(self.size) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::error::*;
    use super::*;

    #[repr(C)]
    #[derive(Debug, Clone, Copy)]
    struct Sample {
        struct_size: u32,
        a: u32,
        b: u64,
    }
    // SAFETY: begins with a u32 and holds integers only.
    unsafe impl Output for Sample {}

    const SAMPLE: Sample = Sample {
        struct_size: 0,
        a: 7,
        b: u64::MAX,
    };

    #[test]
    fn panic_becomes_bug_with_message_and_place() {
        let status: c_int = guard(|| -> Result<c_int> { panic!("on purpose") });
        assert_eq!(status, -libc::ENOTRECOVERABLE);
        // SAFETY: the pointer is that of this thread's last error.
        let message = unsafe { CStr::from_ptr(avhdx_error_message(avhdx_last_error())) };
        let message = message.to_str().unwrap();
        assert!(
            message.contains("on purpose") && message.contains("guard.rs"),
            "{message}"
        );
    }

    #[test]
    fn shorter_structures_get_their_part_and_longer_ones_zeros() {
        let mut short = [8u32, 1, 2, 3];
        // SAFETY: struct_size says 8 and there are 16 bytes.
        unsafe { Out::new(short.as_mut_ptr().cast::<Sample>(), "s") }
            .unwrap()
            .set(SAMPLE);
        assert_eq!(short, [8, 7, 2, 3]);
        let mut long = [24u32, 1, 2, 3, 4, 5];
        // SAFETY: struct_size says 24 and there are 24 bytes.
        unsafe { Out::new(long.as_mut_ptr().cast::<Sample>(), "s") }
            .unwrap()
            .set(SAMPLE);
        assert_eq!(long, [24, 7, u32::MAX, u32::MAX, 0, 0]);
    }

    #[test]
    fn uninitialised_struct_size_is_refused() {
        for size in [0, 3, MAX_STRUCT + 1, u32::MAX] {
            let mut sample = Sample {
                struct_size: size,
                ..SAMPLE
            };
            // SAFETY: the first four bytes can be read; nothing is written, as the size is refused.
            let refused = unsafe { Out::new(&raw mut sample, "sample") }.unwrap_err();
            assert!(refused.to_string().contains("sample->struct_size"), "{refused}");
        }
    }

    #[test]
    fn unknown_flag_bits_are_named() {
        assert!(check_flags(3, 3).is_ok());
        assert_eq!(check_flags(0x11, 1).unwrap_err().to_string(), "unknown flag bits 0x10");
    }
}
