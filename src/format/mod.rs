//! The codec: bytes to checked values and back. No I/O, no state; every input is hostile.
//!
//! | Module | Structure | MS-VHDX |
//! |---|---|---|
//! | [`identifier`] | file identifier | 2.2.1 |
//! | [`header`] | the two headers | 2.2.2 |
//! | [`region`] | region tables | 2.2.3 |
//! | [`log`] | log entries | 2.3 |
//! | [`bat`], [`bitmap`] | BAT entries, sector bitmaps | 2.5 |
//! | [`metadata`], [`locator`] | metadata table and items, parent locator | 2.6 |
//! | [`crc`] | CRC-32C | |

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::cast_possible_truncation
    )
)]

pub mod bat;
pub mod bitmap;
pub mod crc;
pub mod header;
pub mod identifier;
pub mod locator;
pub mod log;
pub mod metadata;
pub mod region;
mod wire;
