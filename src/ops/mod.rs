//! What is done to chains as a whole. Each operation can be cut at any write and leaves a chain that reads the same
//! (docs/durability.md); those that take long report progress and can be cancelled.

mod check;
mod checkpoint;
mod convert;
mod create;
mod merge;
mod migrate;
mod new_file;

pub use check::{check, CheckOptions, CheckReport, Finding, Severity};
pub use checkpoint::checkpoint;
pub use convert::{convert, convert_to_stream, ConvertReport};
pub use create::create;
pub use merge::{merge, merge_path, MergeReport};
pub use migrate::migrate;
