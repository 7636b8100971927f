//! Sixteen threads on one disk in real files, in a plain program, so that a sanitizer sees nothing but the library.
//! AVHDX_STRESS_SECONDS: how long, 2 without it.

#[path = "common/random.rs"]
mod random;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use avhdx::options::{
    CheckpointOptions, CompactMode, CompactOptions, CreateOptions, MergeMode, MergeOptions, OpenOptions, ZeroFlags,
};
use avhdx::{ops, Chain, Scope};
use random::Random;

/// Threads that write; the other four flush, ask, change layers and compact.
const WRITERS: u64 = 12;
const PAGE: u64 = 4096;
const SIZE: u64 = 24 << 20;
const PAGES: u64 = SIZE / PAGE;

fn filled(page: u64, number: u64) -> Vec<u8> {
    let word = if number == 0 { 0 } else { page << 40 | number };
    word.to_le_bytes().repeat((PAGE / 8) as usize)
}

fn verify(chain: &Chain, page: u64, number: u64) {
    let mut found = vec![0xEE; PAGE as usize];
    chain.read(&mut found, page * PAGE).unwrap();
    assert!(found == filled(page, number), "page {page} is not number {number}");
}

/// Writes and reads every twelfth page.
fn write(chain: &Chain, id: u64, stop: &AtomicBool, steps: &AtomicU64) {
    let mut random = Random(id);
    let mut pages = vec![0; PAGES as usize];
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let page = random.below(PAGES / WRITERS) * WRITERS + id;
        number += 1;
        match random.below(8) {
            0..3 => {
                let fua = random.chance(64);
                chain.write(&filled(page, number), page * PAGE, fua).unwrap();
                pages[page as usize] = number;
            }
            3 => {
                let flags = ZeroFlags {
                    may_unmap: random.chance(2),
                    ..ZeroFlags::default()
                };
                chain.zero(page * PAGE, PAGE, flags).unwrap();
                pages[page as usize] = 0;
            }
            _ => verify(chain, page, pages[page as usize]),
        }
        steps.fetch_add(1, Ordering::Relaxed);
    }
    for page in (id..PAGES).step_by(WRITERS as usize) {
        verify(chain, page, pages[page as usize]);
    }
}

fn change_layers(chain: &Chain, dir: &Path, stop: &AtomicBool) -> u64 {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let mut options = CheckpointOptions::default();
        options.block_size = (1 + number as u32 % 2) << 20;
        ops::checkpoint(chain, &dir.join(format!("{number}.avhdx")), &options).unwrap();
        if chain.layer_count() > 3 {
            let mut options = MergeOptions::default();
            options.mode = [MergeMode::Copy, MergeMode::Consume][number as usize % 2];
            options.threads = number as usize / 2 % 3;
            let top = number as usize % 2;
            ops::merge(chain, top, chain.layer_count() - 1, &options, &mut |_| true).unwrap();
        }
    }
    number
}

fn main() {
    let seconds = std::env::var("AVHDX_STRESS_SECONDS").map_or(2, |text| text.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.vhdx");
    let mut create = CreateOptions::default();
    create.size = SIZE;
    create.block_size = 1 << 20;
    ops::create(&base, &create).unwrap();
    let chain = Chain::open(&base, &OpenOptions::new()).unwrap();
    let (stop, steps, changes) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let (chain, stop, steps, changes) = (&chain, &stop, &steps, &changes);
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for id in 0..WRITERS {
            threads.push(scope.spawn(move || write(chain, id, stop, steps)));
        }
        threads.push(scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                chain.flush().unwrap();
            }
        }));
        threads.push(scope.spawn(move || {
            let mut extents = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                extents.clear();
                chain.block_status(0, SIZE, Scope::Chain, 100, &mut extents).unwrap();
                chain.info().unwrap();
            }
        }));
        let layers = dir.path();
        threads.push(scope.spawn(move || changes.store(change_layers(chain, layers, stop), Ordering::Relaxed)));
        threads.push(scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let mut options = CompactOptions::default();
                options.mode = CompactMode::Full;
                ops::compact(chain, &options, &mut |_| true).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
        }));
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(seconds) {
            std::thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
        // The end of the scope waits too, but in a way that a sanitizer does not see.
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    println!(
        "stress: {} steps, {} checkpoints",
        steps.load(Ordering::Relaxed),
        changes.load(Ordering::Relaxed)
    );
}
