//! The bodies of the fuzz targets without a fuzzer: on every input that ever failed (`tests/regressions/TARGET/`), and on
//! random ones that are the same on every run. `AVHDX_FUZZ_INPUTS=N`: so many random inputs for each target; without it,
//! what fits in two seconds each. `AVHDX_FUZZ_CORPUS=DIR`: also the corpus that `scripts/fuzz` left in fuzz/corpus, which
//! tells what it covers. `scripts/fuzz` runs the same code under libFuzzer.

mod harness;
#[path = "common/vhd.rs"]
mod writer;

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;
use std::time::{Duration, Instant};

const INPUTS: u64 = 3000;
const TIME: Duration = Duration::from_secs(2);

fn run(target: &str, name: &str, harness: harness::Harness, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| harness(input))).is_err() {
        let bytes: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        panic!("{target}: {name} failed; to keep it: echo {bytes} | xxd -r -p >tests/regressions/{target}/NAME");
    }
}

/// Runs every file of a directory, if there is one.
fn files(name: &str, harness: harness::Harness, dir: &Path) {
    let mut files: Vec<_> = std::fs::read_dir(dir).map_or(Vec::new(), |dir| dir.map(|f| f.unwrap().path()).collect());
    files.sort();
    for file in files {
        let input = std::fs::read(&file).unwrap();
        run(name, &file.display().to_string(), harness, &input);
    }
}

fn target(name: &str) {
    let (_, harness) = harness::ALL.iter().find(|(known, _)| *known == name).unwrap();
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/regressions");
    files(name, *harness, &kept.join(name));
    if let Some(corpus) = std::env::var_os("AVHDX_FUZZ_CORPUS") {
        files(name, *harness, &Path::new(&corpus).join(name));
    }
    let asked = std::env::var("AVHDX_FUZZ_INPUTS")
        .ok()
        .and_then(|text| text.parse().ok());
    let begin = Instant::now();
    for number in 0..asked.unwrap_or(INPUTS) {
        if asked.is_none() && begin.elapsed() > TIME {
            println!("{name}: {number} random inputs");
            return;
        }
        run(
            name,
            &format!("random input {number}"),
            *harness,
            &harness::random_input(number),
        );
    }
}

#[test]
fn parse() {
    target("parse");
}

#[test]
fn log() {
    target("log");
}

#[test]
fn chain() {
    target("chain");
}

#[test]
fn model() {
    target("model");
}

#[test]
fn capi() {
    target("capi");
}

#[test]
fn vhd() {
    target("vhd");
}

/// Seeds that `scripts/fuzz` starts from, and its dictionary; an ordinary run has nothing to write.
#[test]
fn seeds() {
    let Some(dir) = std::env::var_os("AVHDX_FUZZ_SEEDS").map(std::path::PathBuf::from) else {
        return;
    };
    for (target, _) in harness::ALL {
        let corpus = dir.join("corpus").join(target);
        std::fs::create_dir_all(&corpus).unwrap();
        for number in 0..400 {
            std::fs::write(corpus.join(format!("seed-{number}")), harness::random_input(number)).unwrap();
        }
        let kept = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/regressions")
            .join(target);
        for file in std::fs::read_dir(kept).into_iter().flatten() {
            let file = file.unwrap();
            std::fs::copy(file.path(), corpus.join(file.file_name())).unwrap();
        }
    }
    let values = harness::input::values()
        .into_iter()
        .map(|value| value.to_le_bytes().to_vec());
    let kinds = (0..=255u8).map(|kind| vec![kind]);
    let word = |bytes: Vec<u8>| {
        let bytes: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
        format!("\"{bytes}\"\n")
    };
    let words: String = values.chain(kinds).map(word).collect();
    std::fs::write(dir.join("dictionary"), words).unwrap();
}
