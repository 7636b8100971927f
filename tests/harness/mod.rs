//! The bodies of the fuzz targets: `fuzz/` runs them under libFuzzer, `tests/regressions.rs` on recorded and on random
//! inputs. Each module says what must hold for any input; a broken promise is a panic.

pub mod capi;
pub mod chain;
pub mod images;
pub mod input;
pub mod log;
pub mod model;
pub mod parse;
pub mod vhd;

/// Runs one input.
pub type Harness = fn(&[u8]);

pub const ALL: &[(&str, Harness)] = &[
    ("parse", parse::run),
    ("log", log::run),
    ("chain", chain::run),
    ("model", model::run),
    ("capi", capi::run),
    ("vhd", vhd::run),
];

/// Inputs that are the same on every run: SplitMix64, 1 to 256 bytes, short ones more often.
pub fn random_input(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0xD134_2543_DE82_EF95);
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let len = 1 + next() % (1 << (1 + next() % 8));
    (0..len).map(|_| (next() >> 32) as u8).collect()
}
