//! Options, library information, the log sink.

use std::ffi::{c_char, c_int, c_void, CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::args::{c_path, c_string, required, required_mut, text};
use super::callbacks::{avhdx_log_cb, avhdx_resolve_cb, User};
use super::io::{avhdx_io_ops, CallbackFileSystem};
use super::{guard, status};
use crate::options::ParentQuery;
use crate::schema::Settings;
use crate::trace;

/// Room for a path given back by a resolver.
const RESOLVED_LEN: usize = 4096;

/// Options: string keys with values. One thread at a time. NULL stands for defaults wherever options are taken.
#[derive(Default)]
pub struct avhdx_opts {
    pub(super) settings: Settings,
}

/// The settings of options that may be NULL.
pub(super) fn settings(o: *const avhdx_opts) -> Settings {
    // SAFETY: the header asks for options of this library, or NULL.
    unsafe { o.as_ref() }.map(|o| o.settings.clone()).unwrap_or_default()
}

/// The version of the library: "1.0.0".
#[no_mangle]
pub extern "C" fn avhdx_version() -> *const c_char {
    const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => c"",
    };
    VERSION.as_ptr()
}

/// Whether the library has a feature: 1 or 0. Features: "merge", "merge.consume", "reflink", "check", "io".
#[no_mangle]
pub unsafe extern "C" fn avhdx_has(feature: *const c_char) -> c_int {
    guard(|| {
        let features = ["merge", "merge.consume", "reflink", "check", "io"];
        Ok(i64::from(features.contains(&text(feature, "feature")?)))
    }) as c_int
}

/// The options of "open", "create", "checkpoint", "merge" or "check" as a JSON array of objects with name, type,
/// default, meaning and since. NULL for another kind. Free with avhdx_free().
#[no_mangle]
pub unsafe extern "C" fn avhdx_schema_json(kind: *const c_char) -> *mut c_char {
    let mut json = std::ptr::null_mut();
    guard(|| {
        if let Some(schema) = crate::schema::schema_json(text(kind, "kind")?) {
            json = allocate(&c_string(&schema));
        }
        Ok(0)
    });
    json
}

/// A copy in memory of malloc(), so that avhdx_free() needs no length.
pub(super) fn allocate(text: &CStr) -> *mut c_char {
    // SAFETY: a valid string; strdup copies it.
    unsafe { libc::strdup(text.as_ptr()) }
}

/// Frees what the library returned and said to free so. NULL is allowed.
#[no_mangle]
pub unsafe extern "C" fn avhdx_free(p: *mut c_void) {
    // SAFETY: the header asks for a pointer from strdup() in this library, or NULL.
    unsafe { libc::free(p) };
}

/// Sets where messages of the process go: those of AVHDX_LOG_* up to level. NULL: nowhere, as at the start.
#[no_mangle]
pub unsafe extern "C" fn avhdx_set_log(cb: *const avhdx_log_cb, level: u32) -> c_int {
    status(|| {
        // SAFETY: the header asks for a callback, or NULL.
        let Some(cb) = (unsafe { cb.as_ref() }) else {
            trace::set(None, 0);
            return Ok(());
        };
        let user = User::new(cb.user, cb.free);
        let function = *required(cb.r#fn.as_ref().map_or(std::ptr::null(), |f| f), "cb->fn")?;
        let sink = move |level: u32, message: &str| {
            // Captured whole, so that it lives as long as the function.
            let user = &user;
            let message = c_string(message);
            // SAFETY: the caller's function with the caller's pointer, as the header describes.
            unsafe { function(user.pointer, level, message.as_ptr()) };
        };
        trace::set(Some(Box::new(sink)), level);
        Ok(())
    })
}

/// New options, all at their defaults. Free with avhdx_opts_free().
#[no_mangle]
pub extern "C" fn avhdx_opts_new() -> *mut avhdx_opts {
    Box::into_raw(Box::default())
}

/// Sets a key from text; sizes may end in k, M, G or T.
/// Errors: ARGUMENT for an unknown key (the hint names the nearest) or a value that does not fit.
#[no_mangle]
pub unsafe extern "C" fn avhdx_opts_set_str(o: *mut avhdx_opts, key: *const c_char, value: *const c_char) -> c_int {
    status(|| {
        let o = required_mut(o, "o")?;
        o.settings.set(text(key, "key")?, text(value, "value")?)
    })
}

/// Sets a key to a number.
#[no_mangle]
pub unsafe extern "C" fn avhdx_opts_set_u64(o: *mut avhdx_opts, key: *const c_char, value: u64) -> c_int {
    status(|| {
        let o = required_mut(o, "o")?;
        o.settings.set(text(key, "key")?, &value.to_string())
    })
}

/// Sets a key on (not 0) or off (0).
#[no_mangle]
pub unsafe extern "C" fn avhdx_opts_set_bool(o: *mut avhdx_opts, key: *const c_char, value: c_int) -> c_int {
    status(|| {
        let o = required_mut(o, "o")?;
        o.settings.set(text(key, "key")?, if value != 0 { "on" } else { "off" })
    })
}

/// Sets keys from one line: "key=value,key=value". A key alone switches it on; a comma in a value is doubled.
#[no_mangle]
pub unsafe extern "C" fn avhdx_opts_parse(o: *mut avhdx_opts, line: *const c_char) -> c_int {
    status(|| required_mut(o, "o")?.settings.parse(text(line, "line")?))
}

/// Sets the function that is asked first where a parent is. NULL: none. The struct is copied.
#[no_mangle]
pub unsafe extern "C" fn avhdx_opts_set_resolver(o: *mut avhdx_opts, cb: *const avhdx_resolve_cb) -> c_int {
    status(|| {
        // SAFETY: the header asks for a callback, or NULL.
        let cb = unsafe { cb.as_ref() };
        let user = cb.map(|cb| User::new(cb.user, cb.free));
        let o = required_mut(o, "o")?;
        let (Some(cb), Some(user)) = (cb, user) else {
            o.settings.open.resolver = None;
            return Ok(());
        };
        let function = *required(cb.r#fn.as_ref().map_or(std::ptr::null(), |f| f), "cb->fn")?;
        o.settings.open.resolver = Some(Arc::new(move |query: &ParentQuery| {
            let user = &user;
            let entries: serde_json::Map<String, serde_json::Value> = query
                .entries
                .iter()
                .map(|(k, v)| (k.clone(), v.clone().into()))
                .collect();
            let (child, linkage) = (c_path(&query.child), c_string(&query.linkage.to_string()));
            let entries = c_string(&serde_json::Value::Object(entries).to_string());
            let mut path = vec![0u8; RESOLVED_LEN];
            // SAFETY: the caller's function; the strings and the buffer live through the call.
            let found = unsafe {
                function(
                    user.pointer,
                    child.as_ptr(),
                    linkage.as_ptr(),
                    entries.as_ptr(),
                    path.as_mut_ptr().cast(),
                    RESOLVED_LEN,
                )
            };
            let path = CStr::from_bytes_until_nul(&path).ok().filter(|_| found > 0)?;
            (!path.is_empty()).then(|| OsStr::from_bytes(path.to_bytes()).into())
        }));
        Ok(())
    })
}

/// Sets the functions through which every file is opened, read and written. NULL: the host's files. The struct is
/// copied; ctx is passed to every function and must outlive every disk opened with these options.
#[no_mangle]
pub unsafe extern "C" fn avhdx_opts_set_io(o: *mut avhdx_opts, io: *const avhdx_io_ops, ctx: *mut c_void) -> c_int {
    status(|| {
        let o = required_mut(o, "o")?;
        o.settings.open.file_system = match io.is_null() {
            true => Arc::new(crate::storage::OsFileSystem),
            false => Arc::new(CallbackFileSystem::new(io, ctx)?),
        };
        Ok(())
    })
}

/// Frees options. NULL is allowed. Disks opened with them go on.
#[no_mangle]
pub unsafe extern "C" fn avhdx_opts_free(o: *mut avhdx_opts) {
    if !o.is_null() {
        // SAFETY: not NULL; the header asks for a pointer from avhdx_opts_new, freed once.
        drop(unsafe { Box::from_raw(o) });
    }
}
