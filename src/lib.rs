//! Reads, writes, checkpoints and merges Hyper-V VHDX/AVHDX differencing chains.

pub mod error;
pub mod format;
pub mod guid;
pub mod limits;
pub mod storage;
pub mod units;
