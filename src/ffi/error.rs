//! Errors.

use std::cell::RefCell;
use std::ffi::{c_char, c_int, CStr, CString};

use super::args::{c_path, c_string};
use crate::error::{Error, ErrorKind};

/// Details of a failure. From avhdx_last_error() or avhdx_error_dup().
pub struct avhdx_error {
    code: c_int,
    errno: c_int,
    hresult: u32,
    message: CString,
    hint: Option<CString>,
    path: Option<CString>,
    layer: i64,
    offset: i64,
    cause: Option<CString>,
}

impl avhdx_error {
    fn none() -> Self {
        avhdx_error {
            code: 0,
            errno: 0,
            hresult: 0,
            message: c_string("no error"),
            hint: None,
            path: None,
            layer: -1,
            offset: -1,
            cause: None,
        }
    }

    fn new(error: &Error) -> Self {
        use std::error::Error as _;
        let mut causes = Vec::new();
        let mut cause = error.source();
        while let Some(c) = cause {
            causes.push(c.to_string());
            cause = c.source();
        }
        avhdx_error {
            code: error.kind() as c_int,
            errno: error.errno(),
            hresult: error.hresult(),
            message: c_string(&error.to_string()),
            hint: error.hint().map(c_string),
            path: error.path().map(c_path),
            layer: error.layer().map_or(-1, i64::from),
            offset: error.offset().and_then(|o| i64::try_from(o).ok()).unwrap_or(-1),
            cause: (!causes.is_empty()).then(|| c_string(&causes.join(": "))),
        }
    }

    fn copy(&self) -> Self {
        avhdx_error {
            message: self.message.clone(),
            hint: self.hint.clone(),
            path: self.path.clone(),
            cause: self.cause.clone(),
            ..*self
        }
    }
}

thread_local! {
    static LAST: RefCell<Box<avhdx_error>> = RefCell::new(Box::new(avhdx_error::none()));
}

/// Remembers a failure for this thread.
pub(super) fn set_last(error: Error) {
    let fresh = Box::new(avhdx_error::new(&error));
    // A thread that is going away has nobody left to ask.
    let _ = LAST.try_with(|last| *last.borrow_mut() = fresh);
}

fn get<T>(e: *const avhdx_error, none: T, read: impl FnOnce(&avhdx_error) -> T) -> T {
    // SAFETY: the header asks for an error of this library, or NULL.
    match unsafe { e.as_ref() } {
        Some(error) => read(error),
        None => none,
    }
}

fn pointer(text: &Option<CString>) -> *const c_char {
    text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr())
}

/// The last failure of a libavhdx function on this thread; code 0 if there was none. Never NULL. Valid until the next
/// failure on this thread: avhdx_error_dup() keeps it.
#[no_mangle]
pub extern "C" fn avhdx_last_error() -> *const avhdx_error {
    LAST.try_with(|last| &raw const **last.borrow())
        .unwrap_or(std::ptr::null())
}

/// What happened: one of AVHDX_ERR_*, 0 for no error.
#[no_mangle]
pub unsafe extern "C" fn avhdx_error_code(e: *const avhdx_error) -> c_int {
    get(e, 0, |e| e.code)
}

/// The errno, positive: the operating system's own where it gave one.
#[no_mangle]
pub unsafe extern "C" fn avhdx_error_errno(e: *const avhdx_error) -> c_int {
    get(e, 0, |e| e.errno)
}

/// The HRESULT Windows uses for this, 0 where it has none.
#[no_mangle]
pub unsafe extern "C" fn avhdx_error_hresult(e: *const avhdx_error) -> u32 {
    get(e, 0, |e| e.hresult)
}

/// One line for people. Never NULL for an error that is not NULL.
#[no_mangle]
pub unsafe extern "C" fn avhdx_error_message(e: *const avhdx_error) -> *const c_char {
    get(e, std::ptr::null(), |e| e.message.as_ptr())
}

/// What fixes it: a command or an option. NULL if nothing is known to.
#[no_mangle]
pub unsafe extern "C" fn avhdx_error_hint(e: *const avhdx_error) -> *const c_char {
    get(e, std::ptr::null(), |e| pointer(&e.hint))
}

/// The file concerned, NULL if none is.
#[no_mangle]
pub unsafe extern "C" fn avhdx_error_path(e: *const avhdx_error) -> *const c_char {
    get(e, std::ptr::null(), |e| pointer(&e.path))
}

/// The layer concerned, 0 = leaf; -1 if none is.
#[no_mangle]
pub unsafe extern "C" fn avhdx_error_layer(e: *const avhdx_error) -> i64 {
    get(e, -1, |e| e.layer)
}

/// The offset concerned, in bytes: of the disk for requests, of the file for structures; -1 if none is.
#[no_mangle]
pub unsafe extern "C" fn avhdx_error_offset(e: *const avhdx_error) -> i64 {
    get(e, -1, |e| e.offset)
}

/// The causes, joined by ": "; NULL if there are none.
#[no_mangle]
pub unsafe extern "C" fn avhdx_error_cause(e: *const avhdx_error) -> *const c_char {
    get(e, std::ptr::null(), |e| pointer(&e.cause))
}

/// A copy that stays valid until avhdx_error_free().
#[no_mangle]
pub unsafe extern "C" fn avhdx_error_dup(e: *const avhdx_error) -> *mut avhdx_error {
    get(e, std::ptr::null_mut(), |e| Box::into_raw(Box::new(e.copy())))
}

/// Frees a copy. NULL is allowed.
#[no_mangle]
pub unsafe extern "C" fn avhdx_error_free(e: *mut avhdx_error) {
    if !e.is_null() {
        // SAFETY: not NULL; the header asks for a pointer from avhdx_error_dup, freed once.
        drop(unsafe { Box::from_raw(e) });
    }
}

/// The name of a code, as in AVHDX_ERR_<name>: "CORRUPT", "LOCKED" ... NULL for a number that is no code.
#[no_mangle]
pub extern "C" fn avhdx_code_name(code: c_int) -> *const c_char {
    macro_rules! names {
        ($($kind:ident $name:literal),* $(,)?) => {
            match ErrorKind::ALL.iter().find(|kind| **kind as c_int == code) {
                None => None,
                $(Some(ErrorKind::$kind) => Some($name),)*
            }
        };
    }
    let name: Option<&CStr> = names! {
        NotVhdx c"NOT_VHDX", Unsupported c"UNSUPPORTED", Corrupt c"CORRUPT", Checksum c"CHECKSUM",
        Truncated c"TRUNCATED", LogReplayRequired c"LOG_REPLAY_REQUIRED", ParentNotFound c"PARENT_NOT_FOUND",
        ParentIdMismatch c"PARENT_ID_MISMATCH", ParentAccess c"PARENT_ACCESS", ParentMismatch c"PARENT_MISMATCH",
        ChainLoop c"CHAIN_LOOP", HasChildren c"HAS_CHILDREN", Locked c"LOCKED", ReadOnly c"READ_ONLY",
        NoSpace c"NO_SPACE", Range c"RANGE", Argument c"ARGUMENT", ShrinkUnsafe c"SHRINK_UNSAFE",
        PendingOperation c"PENDING_OPERATION", Cancelled c"CANCELLED", NotFast c"NOT_FAST", Poisoned c"POISONED",
        Io c"IO", Bug c"BUG",
    };
    match (code, name) {
        (0, _) => c"OK".as_ptr(),
        (_, Some(name)) => name.as_ptr(),
        _ => std::ptr::null(),
    }
}
