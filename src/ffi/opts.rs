//! Options
//!
//! Everything a caller can choose has a string key; avhdx_schema_json lists them. One object can serve several calls;
//! a call takes what it needs from it and keeps nothing that belongs to the caller. An unknown key, a value that
//! cannot be used, and a key that is not for the call it is given to are -EINVAL, code ARGUMENT, and the message
//! names them. An options object is used by one thread at a time.

use std::ffi::{c_char, c_int, c_void, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::callback::{avhdx_resolve_cb, take_resolver};
use super::guard::{borrow_mut, bytes, guard, text};
use super::io::{avhdx_io_ops, check_io, take_io, IoFileSystem, Need};
use crate::error::Result;
use crate::options::Resolver;
use crate::schema::{self, Kind, Settings};

/// Options by name. Made by avhdx_opts_new, freed by avhdx_opts_free.
#[derive(Clone, Default)]
pub struct avhdx_opts {
    entries: Vec<(String, OsString)>,
    resolver: Option<Resolver>,
    io: Option<Arc<IoFileSystem>>,
}

impl avhdx_opts {
    fn set(&mut self, name: &str, value: &OsStr) -> Result<()> {
        schema::check(name, value)?;
        self.entries.retain(|(known, _)| known != name);
        self.entries.push((name.to_string(), value.to_os_string()));
        Ok(())
    }
}

/// What a call takes from its options.
pub(super) struct Chosen {
    pub(super) settings: Settings,
    pub(super) io: Option<Arc<IoFileSystem>>,
}

impl Chosen {
    /// Refuses an operation that the I/O callbacks, if there are any, cannot do.
    pub(super) fn check_io(&self, operation: &str, needs: &[Need]) -> Result<()> {
        check_io(self.io.as_deref(), operation, needs)
    }
}

/// The typed options of a call that has keys of these kinds.
///
/// # Safety
/// `opts` is NULL or from `avhdx_opts_new`, not freed, and not being changed.
pub(super) unsafe fn choose(opts: *const avhdx_opts, kinds: &[Kind]) -> Result<Chosen> {
    // SAFETY: NULL or live and unchanging, by this function's contract.
    let Some(opts) = (unsafe { opts.as_ref() }) else {
        return Ok(Chosen {
            settings: Settings::default(),
            io: None,
        });
    };
    let entries = opts
        .entries
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_os_str()));
    let mut settings = Settings::from_entries(kinds, entries)?;
    settings.open.resolver = opts.resolver.clone();
    if let Some(io) = &opts.io {
        settings.open.file_system = io.clone();
    }
    settings.create.open = settings.open.clone();
    Ok(Chosen {
        settings,
        io: opts.io.clone(),
    })
}

/// Makes options that are all default. Never NULL. Free them with avhdx_opts_free. Any thread. Since 1.0.
#[no_mangle]
pub extern "C" fn avhdx_opts_new() -> *mut avhdx_opts {
    guard(|| Ok(Box::into_raw(Box::default())))
}

/// Sets an option from text: a size such as "64k", "2M", "1G"; a bool such as "on"; a word; a path (bytes). A second
/// value for the same key replaces the first. opts, key, value: not NULL. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described.
#[no_mangle]
pub unsafe extern "C" fn avhdx_opts_set_str(opts: *mut avhdx_opts, key: *const c_char, value: *const c_char) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `borrow_mut`: one thread uses opts.
        let opts = unsafe { borrow_mut(opts, "opts") }?;
        // SAFETY: the caller's promise is that of `text`.
        let key = unsafe { text(key, "key") }?;
        // SAFETY: the caller's promise is that of `bytes`.
        let value = unsafe { bytes(value, "value") }?;
        opts.set(key, OsStr::from_bytes(value))?;
        Ok(0)
    })
}

/// Sets an option from a number; sizes are in bytes. opts, key: not NULL. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described.
#[no_mangle]
pub unsafe extern "C" fn avhdx_opts_set_u64(opts: *mut avhdx_opts, key: *const c_char, value: u64) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `borrow_mut`: one thread uses opts.
        let opts = unsafe { borrow_mut(opts, "opts") }?;
        // SAFETY: the caller's promise is that of `text`.
        let key = unsafe { text(key, "key") }?;
        opts.set(key, OsStr::new(&value.to_string()))?;
        Ok(0)
    })
}

/// Sets an option to on (value is not 0) or off. opts, key: not NULL. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described.
#[no_mangle]
pub unsafe extern "C" fn avhdx_opts_set_bool(opts: *mut avhdx_opts, key: *const c_char, value: c_int) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `borrow_mut`: one thread uses opts.
        let opts = unsafe { borrow_mut(opts, "opts") }?;
        // SAFETY: the caller's promise is that of `text`.
        let key = unsafe { text(key, "key") }?;
        opts.set(key, OsStr::new(if value == 0 { "off" } else { "on" }))?;
        Ok(0)
    })
}

/// Sets options from one line: "key=value,key=value". A comma in a value is written twice; a key alone means "on".
/// Either all of the line is taken or, on failure, nothing. opts, line: not NULL. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described.
#[no_mangle]
pub unsafe extern "C" fn avhdx_opts_parse(opts: *mut avhdx_opts, line: *const c_char) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `borrow_mut`: one thread uses opts.
        let opts = unsafe { borrow_mut(opts, "opts") }?;
        // SAFETY: the caller's promise is that of `bytes`.
        let line = unsafe { bytes(line, "line") }?;
        let mut changed = opts.clone();
        for (name, value) in schema::parse_line(OsStr::from_bytes(line))? {
            changed.set(&name, &value)?;
        }
        *opts = changed;
        Ok(0)
    })
}

/// Sets who is asked first where parents are. Its free runs when neither opts nor a disk opened with it needs it.
/// opts: not NULL; callback: NULL removes it. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described.
#[no_mangle]
pub unsafe extern "C" fn avhdx_opts_set_resolver(opts: *mut avhdx_opts, callback: *const avhdx_resolve_cb) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `take_resolver`.
        let taken = unsafe { take_resolver(callback) }?;
        // SAFETY: the caller's promise is that of `borrow_mut`: one thread uses opts.
        let opts = unsafe { borrow_mut(opts, "opts") }?;
        opts.resolver = taken.map(|taken| taken.into_resolver());
        Ok(0)
    })
}

/// Puts all files of a disk on the caller's functions (see "Custom I/O"). The structure is copied. Its free runs when
/// neither opts nor a disk opened with it needs ctx, and at once if this call fails.
/// opts: not NULL; ops: NULL returns to the host's files; ctx: anything. Since 1.0.
///
/// # Safety
/// Each pointer is NULL or as described.
#[no_mangle]
pub unsafe extern "C" fn avhdx_opts_set_io(opts: *mut avhdx_opts, ops: *const avhdx_io_ops, ctx: *mut c_void) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise is that of `take_io`.
        let io = unsafe { take_io(ops, ctx) }?;
        // SAFETY: the caller's promise is that of `borrow_mut`: one thread uses opts.
        let opts = unsafe { borrow_mut(opts, "opts") }?;
        opts.io = io;
        Ok(0)
    })
}

/// Frees options; disks opened with them do not need them. opts: may be NULL. Since 1.0.
///
/// # Safety
/// `opts` is NULL or from `avhdx_opts_new` and not yet freed.
#[no_mangle]
pub unsafe extern "C" fn avhdx_opts_free(opts: *mut avhdx_opts) {
    guard(|| {
        if !opts.is_null() {
            // SAFETY: made by Box::into_raw in avhdx_opts_new, and freed once, by the caller's promise.
            drop(unsafe { Box::from_raw(opts) });
        }
        Ok(())
    });
}
