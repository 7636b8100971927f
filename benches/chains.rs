//! What depth and size cost: `cargo bench`. Ratios within one run; the machine decides the rest.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use avhdx::ops;
use avhdx::options::{CheckpointOptions, CreateOptions, OpenOptions};
use avhdx::Chain;

const SIZE: u64 = 256 << 20;
const READS: u64 = 40_000;
const ROUNDS: usize = 9;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Pseudo-random 4 KiB offsets, the same for every chain.
fn offsets(limit: u64) -> impl Iterator<Item = u64> {
    let mut state = 1u64;
    (0..READS).map(move |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) % (limit / 4096) * 4096
    })
}

fn time_reads(chain: &Chain) -> Duration {
    let mut buf = [0; 4096];
    let start = Instant::now();
    for at in offsets(SIZE) {
        chain.read(&mut buf, at).unwrap();
    }
    start.elapsed()
}

/// A disk written in 64 KiB pieces: first all of it, then every 32nd piece, 31 times. With `depth` layers, the later
/// rounds are spread evenly over them; the writes, and what a read of the disk finds, are the same at every depth.
fn chain(dir: &std::path::Path, depth: u64) -> Chain {
    const PIECE: usize = 65536;
    const ROUNDS_OF_WRITES: u64 = 32;
    let base = dir.join(format!("{depth}.vhdx"));
    let mut create = CreateOptions::default();
    create.size = SIZE;
    create.block_size = 2 << 20;
    ops::create(&base, &create).unwrap();
    let chain = Chain::open(&base, &OpenOptions::new()).unwrap();
    let data = vec![7; PIECE];
    for at in (0..SIZE).step_by(PIECE) {
        chain.write(&data, at, false).unwrap();
    }
    let mut leaf = base;
    for round in 1..ROUNDS_OF_WRITES {
        let layer = round * depth / ROUNDS_OF_WRITES;
        if layer > (round - 1) * depth / ROUNDS_OF_WRITES {
            leaf = dir.join(format!("{depth}-{layer}.avhdx"));
            ops::checkpoint(&chain, &leaf, &CheckpointOptions::default()).unwrap();
        }
        for at in (round * PIECE as u64..SIZE).step_by(ROUNDS_OF_WRITES as usize * PIECE) {
            chain.write(&data, at, false).unwrap();
        }
    }
    assert_eq!(chain.layer_count() as u64, depth);
    chain.close().unwrap();
    Chain::open(&leaf, &OpenOptions::read_only()).unwrap()
}

/// Peak resident memory of this process, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap_or("");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn open_64_tib(dir: &std::path::Path) {
    let mut create = CreateOptions::default();
    create.size = 64 << 40;
    create.block_size = 1 << 20;
    let path: PathBuf = dir.join("huge.vhdx");
    ops::create(&path, &create).unwrap();
    let before = peak();
    let times = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            let chain = Chain::open(&path, &OpenOptions::new()).unwrap();
            chain.read(&mut [0; 4096], 63 << 40).unwrap();
            let time = start.elapsed();
            chain.close().unwrap();
            time
        })
        .collect();
    println!(
        "open 64 TiB, 1 MiB blocks, and read: {:?}, {} KiB more memory",
        median(times),
        peak() - before
    );
    let chain = Chain::open(&path, &OpenOptions::new()).unwrap();
    let start = Instant::now();
    chain.write(&[1; 4096], 40 << 40, true).unwrap();
    println!(
        "first allocating write there, durable: {:?}, {} KiB in all",
        start.elapsed(),
        peak()
    );
    chain.close().unwrap();
}

fn main() {
    let dir = tempfile::tempdir().unwrap();
    open_64_tib(dir.path());
    let chains: Vec<(u64, Chain)> = [1, 2, 8, 32].map(|depth| (depth, chain(dir.path(), depth))).into();
    let mut times: Vec<Vec<Duration>> = chains.iter().map(|(_, chain)| vec![time_reads(chain)]).collect();
    for _ in 0..ROUNDS {
        for ((_, chain), times) in chains.iter().zip(&mut times) {
            times.push(time_reads(chain));
        }
    }
    let medians: Vec<Duration> = times.into_iter().map(|mut t| median(t.split_off(1))).collect();
    for ((depth, _), time) in chains.iter().zip(&medians) {
        let ratio = time.as_secs_f64() / medians[0].as_secs_f64();
        let each = time.as_nanos() / u128::from(READS);
        println!("4 KiB random reads, {depth:2} layers: {each} ns each, {ratio:.2} times one layer");
    }
}
