//! See `tests/harness/chain.rs` for what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| avhdx_fuzz::harness::chain::run(data));
