//! libavhdx: Hyper-V VHDX/AVHDX differencing chains on Linux
//!
//! A checkpoint of a Hyper-V virtual machine leaves a chain of files, base.vhdx <- a.avhdx <- b.avhdx. Each holds what
//! changed since its parent; writes go to the last, the leaf. This library opens a chain as one disk, reads and writes
//! it, takes checkpoints, merges layers, and loses nothing that was flushed, whenever the power fails.
//!
//! Example: what a disk holds in its first sector.
//!
//! ```c
//! #include <avhdx.h>
//! #include <stdio.h>
//!
//! int main(int argc, char **argv)
//! {
//!     avhdx_disk *disk;
//!     avhdx_opts *opts = avhdx_opts_new();
//!     unsigned char sector[512];
//!     int r = argc == 2 ? avhdx_opts_parse(opts, "read-only=on,search=/srv/parents") : -1;
//!
//!     if (r == 0)
//!         r = avhdx_open(&disk, argv[1], opts);
//!     avhdx_opts_free(opts);
//!     if (r == 0) {
//!         r = avhdx_pread(disk, sector, sizeof sector, 0);
//!         if (r == 0)
//!             printf("%d layers, boot signature %02x%02x\n", avhdx_layer_count(disk), sector[510], sector[511]);
//!         avhdx_close(disk);
//!     }
//!     if (r < 0) {
//!         fprintf(stderr, "%s\n%s\n", avhdx_error_message(NULL), avhdx_error_hint(NULL));
//!         return 1;
//!     }
//!     return 0;
//! }
//! ```
//!
//! Build with: cc example.c $(pkg-config --cflags --libs avhdx)
//!
//! Results. A function that can fail returns int or int64_t: 0 or more for success, a negative errno for failure. One
//! that returns a pointer returns NULL for failure. avhdx_last_error() then has the details.
//!
//! Ownership. Handles come from _open, _new and _dup functions and go back through _close, _abort or _free. Those
//! accept NULL. Strings that callers own are freed with avhdx_free; all others say how long they live. The library
//! copies what it is given: paths, options and structures need not outlive the call.
//!
//! NULL. Each function says which pointers may be NULL; any other NULL is -EINVAL and the message names the parameter.
//! Output handles are set to NULL on failure; other outputs are written on success only.
//!
//! Threads. A disk may be used by any number of threads at once; avhdx_close and avhdx_abort come last, when no other
//! call on the disk runs. Options objects are used by one thread at a time. A disk does not survive fork: open it in
//! the process that uses it. The library starts no threads but that of a job and those asked for with the key threads,
//! all of which end with their call; it prints nothing, reads no environment, handles no signals.
//!
//! Text. Paths are bytes, as the system takes them; all other strings are UTF-8.
//!
//! Compatibility. What a program compiled with this header uses keeps its meaning in every libavhdx.so.1. Structures
//! grow only at the end and carry their size; unknown flag bits and option keys are refused, never ignored.
#![expect(unsafe_code, reason = "the C boundary: every block has its proof beside it")]
#![allow(non_camel_case_types, reason = "types have their C names")]
#![deny(unsafe_op_in_unsafe_fn)]
#![warn(clippy::undocumented_unsafe_blocks)]

mod callback;
mod contents;
mod convert;
mod data;
mod disk;
mod error;
mod guard;
mod info;
mod io;
mod job;
mod library;
mod operation;
mod ops;
mod opts;
mod pending;
mod plan;
mod repair;
mod shape;
mod surgery;
mod tree;

#[cfg(test)]
mod layout;

pub use callback::{avhdx_log_cb, avhdx_parent_query, avhdx_progress_cb, avhdx_resolve_cb};
pub use contents::*;
pub use convert::*;
pub use data::*;
pub use disk::{avhdx_abort, avhdx_close, avhdx_disk, avhdx_flush, avhdx_open, avhdx_open_chain, avhdx_open_fd};
pub use error::*;
pub use info::*;
pub use io::*;
pub use job::*;
pub use library::*;
pub use ops::*;
pub use opts::*;
pub use pending::*;
pub use plan::*;
pub use repair::*;
pub use shape::*;
pub use surgery::*;
pub use tree::*;

use std::ffi::c_char;

use crate::error::{Error, ErrorKind, Result};

/// A string in memory that `avhdx_free` takes back.
fn owned_string(text: &str) -> Result<*mut c_char> {
    let text = error::c_string(text);
    // SAFETY: `text` ends in a NUL byte and lives until after the call.
    let copy = unsafe { libc::strdup(text.as_ptr()) };
    match copy.is_null() {
        true => Err(Error::new(ErrorKind::NoSpace, "out of memory")),
        false => Ok(copy),
    }
}
