//! The library

use std::ffi::{c_char, c_int, c_void, CStr};

use super::callback::{avhdx_log_cb, take_log};
use super::guard::{argument, guard, text};
use crate::schema::{self, Kind};
use crate::trace::{self, Level};

/// Something failed that no return value reports.
pub const AVHDX_LOG_ERROR: u32 = 1;
/// Something is odd and was worked around.
pub const AVHDX_LOG_WARN: u32 = 2;
/// What was decided: a parent found, a log replayed.
pub const AVHDX_LOG_INFO: u32 = 3;
/// Steps, for a bug report.
pub const AVHDX_LOG_DEBUG: u32 = 4;

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => c"",
};

/// What [`avhdx_has`] says yes to.
const FEATURES: &[&str] = &[
    "check",
    "checkpoint",
    "compact",
    "compare",
    "convert",
    "create",
    "create.differencing",
    "create.dynamic",
    "create.fixed",
    "delete",
    "detach",
    "diff",
    "digest",
    "io-ops",
    "job",
    "merge",
    "merge.consume",
    "merge.copy",
    "merge.reflink",
    "metadata",
    "migrate",
    "open-fd",
    "rebase",
    "reflink",
    "repair",
    "reparent",
    "resize",
    "resolver",
    "revert",
    "tree",
    "vhd",
];

/// The version of the library in use, "1.0.0". Never NULL; lives as long as the library. Any thread. Since 1.0.
#[no_mangle]
pub extern "C" fn avhdx_version() -> *const c_char {
    VERSION.as_ptr()
}

/// 1 if the library in use has a feature, 0 if not: "create", "checkpoint", "merge", "merge.copy", "merge.reflink",
/// "merge.consume", "reflink", "revert", "delete", "reparent", "rebase", "detach", "compact", "resize", "metadata",
/// "convert", "migrate", "vhd" (VHD is read by avhdx_migrate and written by avhdx_convert), "diff", "compare",
/// "digest", "tree", "check", "repair", "job", "io-ops", "open-fd", "resolver". A name nobody knows is 0.
/// feature: not NULL. Any thread. Since 1.0.
///
/// # Safety
/// `feature` is NULL or a string that ends in a NUL byte.
#[no_mangle]
pub unsafe extern "C" fn avhdx_has(feature: *const c_char) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `text`.
        let feature = unsafe { text(feature, "feature") }?;
        Ok(c_int::from(FEATURES.contains(&feature)))
    })
}

/// The options of "open", "create", "checkpoint", "merge", "revert", "delete", "reparent", "rebase", "detach",
/// "compact", "resize", "convert", "migrate", "compare", "digest", "tree", "check",
/// "repair" or "job" as a JSON array of
/// {"name", "type", "default", "meaning", "since"} and, for type "choice", "choices". Free it with avhdx_free.
/// NULL for another kind. kind: not NULL. Any thread. Since 1.0.
///
/// # Safety
/// `kind` is NULL or a string that ends in a NUL byte.
#[no_mangle]
pub unsafe extern "C" fn avhdx_schema_json(kind: *const c_char) -> *mut c_char {
    guard(|| {
        // SAFETY: the caller's promise is that of `text`.
        let name = unsafe { text(kind, "kind") }?;
        let kind = Kind::from_name(name).ok_or_else(|| {
            let names: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
            argument(format!("there are no options for {name:?}")).with_hint(format!("one of {}", names.join(", ")))
        })?;
        super::owned_string(&schema::schema_json(kind))
    })
}

/// Frees a string that the library returned as "free it with avhdx_free". pointer: may be NULL. Any thread. Since 1.0.
///
/// # Safety
/// `pointer` is NULL or such a string, not yet freed.
#[no_mangle]
pub unsafe extern "C" fn avhdx_free(pointer: *mut c_void) {
    // SAFETY: `owned_string` takes its memory from malloc; the caller frees it once.
    unsafe { libc::free(pointer) };
}

/// Sets where the messages of the library go, for the whole process; replaces and frees what was set before. level is
/// the least important kind wanted, AVHDX_LOG_ERROR to AVHDX_LOG_DEBUG. Nothing is said by default.
/// callback: NULL silences (level must then be 0). Any thread; the callback may be called on any thread that calls the
/// library, and may still be running on one when this returns. Since 1.0.
///
/// # Safety
/// `callback` is NULL or as described at `avhdx_log_cb`.
#[no_mangle]
pub unsafe extern "C" fn avhdx_set_log(callback: *const avhdx_log_cb, level: u32) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `take_log`.
        let taken = unsafe { take_log(callback) }?;
        let level = match (level, &taken) {
            (0, None) => None,
            (AVHDX_LOG_ERROR, Some(_)) => Some(Level::Error),
            (AVHDX_LOG_WARN, Some(_)) => Some(Level::Warn),
            (AVHDX_LOG_INFO, Some(_)) => Some(Level::Info),
            (AVHDX_LOG_DEBUG, Some(_)) => Some(Level::Debug),
            _ => return Err(argument(format!("the log level {level}")).with_hint("1 to 4, or 0 without a callback")),
        };
        trace::set_sink(taken.zip(level).map(|(taken, level)| (taken.into_sink(), level)));
        Ok(0)
    })
}
