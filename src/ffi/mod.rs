//! The C ABI: a thin skin over the Rust API. Argument checks, panic guard, conversion, thread-local error; nothing here
//! decides anything about disks.
//!
//! The doc comments below are written for C readers: cbindgen makes `include/avhdx.h` of them.

#![allow(unsafe_code)]
#![allow(non_camel_case_types)] // these are C's names
#![allow(clippy::missing_safety_doc)] // the header says what callers owe, once for all functions

mod args;
mod callbacks;
mod data;
mod disk;
mod error;
mod io;
mod jobs;
mod opts;

use std::panic::{catch_unwind, AssertUnwindSafe};

use crate::error::{Error, ErrorKind, Result};

/// Runs the body of an exported function. Failures and panics become the thread's last error; the value is `>= 0` or a
/// negative errno.
fn guard(body: impl FnOnce() -> Result<i64>) -> i64 {
    let outcome = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(bug(&*panic)));
    outcome.unwrap_or_else(|error| {
        let errno = i64::from(error.errno());
        error::set_last(error);
        -errno
    })
}

/// The error of a caught panic.
fn bug(panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| text.to_string())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".into());
    Error::new(ErrorKind::Bug, format!("a defect of libavhdx: {text}"))
        .with_hint("please report it; close the disk and open it again, everything flushed is there")
}

/// As [`guard`], for functions that return `int`.
fn status(body: impl FnOnce() -> Result<()>) -> libc::c_int {
    guard(|| body().map(|()| 0)) as libc::c_int
}
