//! See `tests/harness/parse.rs` for what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| avhdx_fuzz::harness::parse::run(data));
