//! What is done to chains as a whole. Each operation can be cut at any write and leaves a chain that reads the same
//! (docs/durability.md); those that take long report progress and can be cancelled.

mod check;
mod checkpoint;
mod compare;
mod convert;
mod create;
mod diff;
mod digest;
mod merge;
pub mod tree;

pub use check::{check, CheckOptions, CheckReport, Finding, Severity};
pub use checkpoint::checkpoint;
pub use compare::{compare, CompareOptions};
pub use convert::convert_raw;
pub use create::create;
pub use diff::diff;
pub use digest::{digest, DigestAlgorithm};
pub use merge::{merge, merge_path, MergeReport};
