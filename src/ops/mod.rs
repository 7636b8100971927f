//! What is done to chains as a whole. Each operation can be cut at any write and leaves a chain that reads the same
//! (docs/durability.md); those that take long report progress and can be cancelled.

mod check;
mod checkpoint;
mod compact;
mod convert;
mod create;
mod items;
mod merge;
mod partitions;
mod resize;

pub use check::{check, CheckOptions, CheckReport, Finding, Severity};
pub use checkpoint::checkpoint;
pub use compact::{compact, CompactReport, Obstacle};
pub use convert::convert_raw;
pub use create::create;
pub use items::{meta_delete, meta_get, meta_list, meta_set, reset_disk_id, set_physical_sector_size, UserItem};
pub use merge::{merge, merge_path, MergeReport};
pub use resize::{min_size, resize};
