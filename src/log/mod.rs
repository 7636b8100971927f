//! The metadata log (MS-VHDX 2.3): finding the active sequence, replaying it into the file or as an overlay, writing.
//!
//! * [`scan`] finds the entries that must be replayed and nothing else.
//! * [`replay`] writes them to the file.
//! * [`overlay`] shows the file as if they had been written, without writing.
//! * [`ring`] appends entries and knows when old ones may be overwritten.
//!
//! This module knows storage and the codec, not images: it moves 4 KiB sectors it does not interpret.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

pub(crate) mod overlay;
pub(crate) mod replay;
pub(crate) mod ring;
pub(crate) mod scan;
