//! What is done to chains as a whole. Each operation can be cut at any write and leaves a chain that reads the same
//! (docs/durability.md); those that take long report progress and can be cancelled.

mod check;
mod checkpoint;
mod compact;
mod compare;
mod convert;
mod create;
mod delete;
mod diff;
mod digest;
mod items;
mod job;
mod layers;
mod merge;
mod migrate;
mod new_file;
mod pace;
mod partitions;
mod pipeline;
mod plan;
mod rebase;
mod repair;
mod reparent;
mod resize;
mod revert;
pub mod tree;

pub use check::{check, CheckOptions, CheckReport, Finding, Severity};
pub use checkpoint::checkpoint;
pub use compact::{compact, CompactReport, Obstacle};
pub use compare::{compare, CompareOptions};
pub use convert::{convert, convert_to_stream, ConvertReport};
pub use create::create;
pub use delete::{delete_branch, delete_layer, DeleteReport};
pub use diff::diff;
pub use digest::{digest, DigestAlgorithm, DigestOptions};
pub use items::{meta_delete, meta_get, meta_list, meta_set, reset_disk_id, set_physical_sector_size, UserItem};
pub use job::{Job, JobControl};
pub use merge::{merge, merge_path, pending, resume, MergeReport, Pending, PendingStage};
pub use migrate::migrate;
pub use plan::{plan, FileChange, Plan};
pub use rebase::{detach, rebase, RebaseReport};
pub use repair::{repair, undo, RepairOptions, RepairReport};
pub use reparent::{reparent, ReparentReport};
pub use resize::{min_size, resize};
pub use revert::{revert, RevertReport};
