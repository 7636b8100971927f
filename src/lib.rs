//! Reads, writes, checkpoints and merges Hyper-V VHDX/AVHDX differencing chains.
//!
//! A checkpoint of a Hyper-V virtual machine leaves a chain of files, `base.vhdx <- a.avhdx <- b.avhdx`: each holds only
//! the sectors changed since its parent, and writes go to the last. [`Chain`] opens such a chain as one disk; [`ops`]
//! creates, checkpoints, merges, converts and checks.
//!
//! Everything flushed survives a power cut at any moment, and any operation can be cut at any write: the chain still
//! opens and reads the same. Images are hostile input: they cannot make this crate panic, hang, take memory by a number
//! they contain, or write anywhere but where their own rules allow. A parent is found by identity, never trusted because
//! a path exists.
//!
//! Layers, each importing only those below: `ffi` (the C ABI), [`ops`], [`chain`], `image`, `log`, then [`format`]
//! (bytes to checked values) and [`storage`] (files), which do not know each other.

pub mod chain;
pub mod error;
pub mod ffi;
#[doc(hidden)]
pub mod format;
pub mod guid;
mod image;
mod json;
pub mod limits;
mod log;
pub mod ops;
pub mod options;
pub mod schema;
pub mod storage;
mod sync;
pub mod trace;
pub mod units;
pub mod vhd;

pub use chain::{Chain, ChainInfo, Extent, ExtentState, LayerInfo, Limits, Probe, Scope};
pub use error::{Error, ErrorKind, Result};
pub use guid::Guid;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
