//! Callbacks
//!
//! A callback is { fn, user, free }: fn is called on the thread that makes the call, with user as its first argument;
//! free (may be NULL) is called with user exactly once when the library has no more use for it, also when the call
//! that took the callback fails. The structure itself is copied; it need not outlive the call. Callbacks must not
//! unwind.

use std::ffi::{c_char, c_int, c_void, CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::error::c_string;
use super::guard::null;
use super::ops::{avhdx_issue, avhdx_issue_cb};
use crate::error::Result;
use crate::options::{ParentQuery, Progress, Resolver};
use crate::trace;

/// Told now and then how far a long operation is: done of total bytes, total never shrinking below done. A result
/// other than 0 cancels: the operation ends with -ECANCELED and can be run again to continue.
/// It may call functions that read or describe the same disk, and anything on other disks. Since 1.0.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct avhdx_progress_cb {
    /// Not NULL.
    pub r#fn: Option<unsafe extern "C" fn(user: *mut c_void, done: u64, total: u64) -> c_int>,
    /// Passed to fn.
    pub user: *mut c_void,
    /// Called once with user; may be NULL.
    pub free: Option<unsafe extern "C" fn(user: *mut c_void)>,
}

/// Receives a line of UTF-8, without a final newline, that lives for the call. May be called by several threads at
/// once. Since 1.0.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct avhdx_log_cb {
    /// Not NULL. level is AVHDX_LOG_...
    pub r#fn: Option<unsafe extern "C" fn(user: *mut c_void, level: u32, message: *const c_char)>,
    /// Passed to fn.
    pub user: *mut c_void,
    /// Called once with user; may be NULL.
    pub free: Option<unsafe extern "C" fn(user: *mut c_void)>,
}

/// The question put to a resolver: where is the parent of this file? All strings live for the call. Since 1.0.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct avhdx_parent_query {
    /// Bytes of this structure that the library filled.
    pub struct_size: u32,
    /// Length of keys and values.
    pub entry_count: u32,
    /// The path of the file whose parent is wanted.
    pub child: *const c_char,
    /// The data write GUID the parent must have, as stored.
    pub linkage: [u8; 16],
    /// Names of the parent locator's entries, UTF-8: "relative_path", "absolute_win32_path", ...
    pub keys: *const *const c_char,
    /// Their values, UTF-8.
    pub values: *const *const c_char,
}

/// Answers where a parent is, before the library looks for it. fn writes a path that ends in a NUL byte to path, which
/// has room for size bytes, and returns 1; or returns 0 to leave the search to the library. The file named must still
/// have the right identity. Since 1.0.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct avhdx_resolve_cb {
    /// Not NULL.
    pub r#fn: Option<
        unsafe extern "C" fn(
            user: *mut c_void,
            query: *const avhdx_parent_query,
            path: *mut c_char,
            size: usize,
        ) -> c_int,
    >,
    /// Passed to fn.
    pub user: *mut c_void,
    /// Called once with user; may be NULL.
    pub free: Option<unsafe extern "C" fn(user: *mut c_void)>,
}

/// Room for the answer of a resolver: more than any path the system takes.
const PATH_ROOM: usize = 32 << 10;

/// The caller's pointer, with the duty to free it.
#[derive(Debug)]
pub(super) struct User {
    pub(super) pointer: *mut c_void,
    pub(super) free: Option<unsafe extern "C" fn(*mut c_void)>,
}

// SAFETY: the pointer is only ever handed back to the caller's functions, which the header says are called on whatever
// thread makes the call.
unsafe impl Send for User {}
// SAFETY: as for Send; the header says which callbacks may be called by several threads at once.
unsafe impl Sync for User {}

impl Drop for User {
    fn drop(&mut self) {
        if let Some(free) = self.free {
            // SAFETY: the caller gave `free` for this pointer, and a User is dropped once.
            unsafe { free(self.pointer) };
        }
    }
}

/// A callback taken from the caller: its function and its pointer.
#[derive(Debug)]
pub(super) struct Taken<F> {
    pub(super) call: F,
    pub(super) user: User,
}

macro_rules! take {
    ($(#[$doc:meta])* $name:ident, $structure:ty, $function:ty) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// `callback` is NULL or leads to a callback structure whose functions may be called with its pointer.
        pub(super) unsafe fn $name(callback: *const $structure) -> Result<Option<Taken<$function>>> {
            // SAFETY: NULL or a live structure, by this function's contract.
            let Some(callback) = (unsafe { callback.as_ref() }) else {
                return Ok(None);
            };
            // Before anything can fail, so that free runs then too.
            let user = User { pointer: callback.user, free: callback.free };
            let call = callback.r#fn.ok_or_else(|| null(concat!(stringify!($structure), "::fn")))?;
            Ok(Some(Taken { call, user }))
        }
    };
}

type ProgressFn = unsafe extern "C" fn(*mut c_void, u64, u64) -> c_int;
pub(super) type IssueFn = unsafe extern "C" fn(*mut c_void, *const avhdx_issue);
type LogFn = unsafe extern "C" fn(*mut c_void, u32, *const c_char);
type ResolveFn = unsafe extern "C" fn(*mut c_void, *const avhdx_parent_query, *mut c_char, usize) -> c_int;

take!(
    /// Takes over a progress callback as it is.
    take_reporter, avhdx_progress_cb, ProgressFn
);
take!(
    /// Takes over a callback for findings.
    take_issues, avhdx_issue_cb, IssueFn
);
take!(
    /// Takes over a log callback.
    take_log, avhdx_log_cb, LogFn
);
take!(
    /// Takes over a resolver.
    take_resolver, avhdx_resolve_cb, ResolveFn
);

/// Takes over a progress callback, as operations call it: false cancels. NULL goes on.
///
/// # Safety
/// `callback` is NULL or leads to a callback structure whose functions may be called with its pointer.
pub(super) unsafe fn take_progress(callback: *const avhdx_progress_cb) -> Result<impl FnMut(Progress) -> bool> {
    // SAFETY: this function's contract is that of `take_reporter`.
    let taken = unsafe { take_reporter(callback) }?;
    Ok(move |now| taken.as_ref().is_none_or(|taken| taken.report(now)))
}

impl Taken<ProgressFn> {
    /// Reports; false cancels.
    fn report(&self, progress: Progress) -> bool {
        // SAFETY: the caller promised that fn may be called with user until free.
        unsafe { (self.call)(self.user.pointer, progress.done, progress.total) == 0 }
    }
}

impl Taken<LogFn> {
    /// As a sink of the library.
    pub(super) fn into_sink(self) -> trace::Sink {
        Arc::new(move |level, message: &str| {
            let taken = &self;
            let message = c_string(message);
            // SAFETY: the caller promised that fn may be called with user until free; the string lives for the call.
            unsafe { (taken.call)(taken.user.pointer, level as u32, message.as_ptr()) };
        })
    }
}

impl Taken<ResolveFn> {
    /// As a resolver of the library.
    pub(super) fn into_resolver(self) -> Resolver {
        Arc::new(move |query: &ParentQuery| self.ask(query))
    }

    fn ask(&self, query: &ParentQuery) -> Option<PathBuf> {
        let child = c_string(query.child.as_os_str().as_bytes());
        let keys: Vec<_> = query.entries.iter().map(|(key, _)| c_string(key.as_str())).collect();
        let values: Vec<_> = query
            .entries
            .iter()
            .map(|(_, value)| c_string(value.as_str()))
            .collect();
        let key_pointers: Vec<_> = keys.iter().map(|key| key.as_ptr()).collect();
        let value_pointers: Vec<_> = values.iter().map(|value| value.as_ptr()).collect();
        let question = avhdx_parent_query {
            struct_size: size_of::<avhdx_parent_query>() as u32,
            entry_count: keys.len() as u32,
            child: child.as_ptr(),
            linkage: query.linkage.to_stored(),
            keys: key_pointers.as_ptr(),
            values: value_pointers.as_ptr(),
        };
        let mut answer = vec![0u8; PATH_ROOM];
        let room = answer.as_mut_ptr().cast::<c_char>();
        // SAFETY: the caller promised that fn may be called with user until free; everything `question` leads to lives
        // until after the call; `room` has the bytes it is said to have.
        let answered = unsafe { (self.call)(self.user.pointer, &raw const question, room, PATH_ROOM) };
        if answered != 1 {
            return None;
        }
        match CStr::from_bytes_until_nul(&answer) {
            Ok(path) if !path.is_empty() => Some(PathBuf::from(OsStr::from_bytes(path.to_bytes()))),
            _ => {
                trace::warn(|| format!("the resolver gave no path for the parent of {:?}", query.child));
                None
            }
        }
    }
}
