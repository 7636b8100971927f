//! What is done to chains as a whole. Each operation can be cut at any write and leaves a chain that reads the same
//! (docs/durability.md); those that take long report progress and can be cancelled.

mod check;
mod checkpoint;
mod convert;
mod create;
mod delete;
mod layers;
mod merge;
mod rebase;
mod reparent;
mod revert;

pub use check::{check, CheckOptions, CheckReport, Finding, Severity};
pub use checkpoint::checkpoint;
pub use convert::convert_raw;
pub use create::create;
pub use delete::{delete_branch, delete_layer, DeleteReport};
pub use merge::{merge, merge_path, MergeReport};
pub use rebase::{detach, rebase, RebaseReport};
pub use reparent::{reparent, ReparentReport};
pub use revert::{revert, RevertReport};
