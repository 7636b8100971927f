//! The bodies of the fuzz targets; `tests/regressions.rs` runs the same ones without a fuzzer.

#[path = "../../tests/harness/mod.rs"]
pub mod harness;
#[path = "../../tests/common/vhd.rs"]
pub mod writer;
