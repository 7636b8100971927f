//! The caller's functions.

use std::ffi::{c_char, c_int, c_void};

/// Called now and then by long operations with bytes done and in all; a value other than 0 cancels.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct avhdx_progress_cb {
    /// The function.
    pub r#fn: Option<unsafe extern "C" fn(user: *mut c_void, done: u64, total: u64) -> c_int>,
    /// Passed to it.
    pub user: *mut c_void,
    /// Called once with user when the callback is no longer needed, also after a failure. May be NULL.
    pub free: Option<unsafe extern "C" fn(user: *mut c_void)>,
}

/// Asked where a parent is before the library looks for it. child is the path of the file whose parent is wanted,
/// linkage the data write GUID the parent must have, as text, entries_json the child's locator as a JSON object.
/// Writes a path with its NUL to path, which has room for size bytes, and returns 1; or returns 0.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct avhdx_resolve_cb {
    /// The function.
    pub r#fn: Option<
        unsafe extern "C" fn(
            user: *mut c_void,
            child: *const c_char,
            linkage: *const c_char,
            entries_json: *const c_char,
            path: *mut c_char,
            size: usize,
        ) -> c_int,
    >,
    /// Passed to it.
    pub user: *mut c_void,
    /// Called once with user when the callback is no longer needed. May be NULL.
    pub free: Option<unsafe extern "C" fn(user: *mut c_void)>,
}

/// Told what the library does that may be of interest. level is one of AVHDX_LOG_*; message is one line.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct avhdx_log_cb {
    /// The function.
    pub r#fn: Option<unsafe extern "C" fn(user: *mut c_void, level: u32, message: *const c_char)>,
    /// Passed to it.
    pub user: *mut c_void,
    /// Called once with user when the callback is no longer needed. May be NULL.
    pub free: Option<unsafe extern "C" fn(user: *mut c_void)>,
}

/// Something that avhdx_check() found. The strings live during the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct avhdx_issue {
    /// Bytes of this struct.
    pub struct_size: u32,
    /// One of AVHDX_SEVERITY_*.
    pub severity: u32,
    /// Where in the file, in bytes.
    pub offset: u64,
    /// Name of the rule.
    pub rule: *const c_char,
    /// The structure, for example "BAT entry 17".
    pub structure: *const c_char,
    /// What the file holds.
    pub found: *const c_char,
    /// What the rule wants.
    pub wanted: *const c_char,
}

/// Told of each thing that avhdx_check() finds.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct avhdx_issue_cb {
    /// The function.
    pub r#fn: Option<unsafe extern "C" fn(user: *mut c_void, issue: *const avhdx_issue)>,
    /// Passed to it.
    pub user: *mut c_void,
    /// Called once with user when the callback is no longer needed. May be NULL.
    pub free: Option<unsafe extern "C" fn(user: *mut c_void)>,
}

/// The caller's pointer, given back once.
#[derive(Debug)]
pub(super) struct User {
    pub(super) pointer: *mut c_void,
    free: Option<unsafe extern "C" fn(*mut c_void)>,
}

// SAFETY: the header says that callbacks are called on whichever thread calls the library, and that the caller's
// pointer must stand that.
unsafe impl Send for User {}
// SAFETY: as above; the pointer itself is never followed here.
unsafe impl Sync for User {}

impl User {
    pub(super) fn new(pointer: *mut c_void, free: Option<unsafe extern "C" fn(*mut c_void)>) -> Self {
        User { pointer, free }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if let Some(free) = self.free {
            // SAFETY: the caller's function with the caller's pointer, once: this owns it.
            unsafe { free(self.pointer) };
        }
    }
}
