//! Large and sparse: pages of metadata come and go under many threads, and what is read stays right.

use std::path::Path;
use std::sync::Arc;

use avhdx::ops::{self, CheckOptions};
use avhdx::options::{CheckpointOptions, CreateOptions, MergeMode, MergeOptions, OpenOptions, ZeroFlags};
use avhdx::storage::MemoryFileSystem;
use avhdx::Chain;

const THREADS: u64 = 4;
/// Places on the disk, each with BAT and bitmap pages of its own.
const PLACES: u64 = 600;
const SIZE: u64 = 64 << 40;

fn place(i: u64) -> u64 {
    i * (SIZE / PLACES) / 4096 * 4096
}

fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    *state >> 33
}

#[test]
fn pages_that_come_and_go_lose_nothing() {
    let fs = Arc::new(MemoryFileSystem::new());
    let mut open = OpenOptions::new().on(fs.clone());
    // Everything that may go, goes.
    open.meta_cache_size = 0;
    let mut create = CreateOptions::default();
    create.size = SIZE;
    create.block_size = 1 << 20;
    create.open = open.clone();
    ops::create(Path::new("/base.vhdx"), &create).unwrap();
    let chain = Chain::open(Path::new("/base.vhdx"), &open).unwrap();
    for i in (0..PLACES).step_by(3) {
        chain.write(&[0xB; 4096], place(i), false).unwrap();
    }
    let mut checkpoint = CheckpointOptions::default();
    checkpoint.block_size = 1 << 20;
    ops::checkpoint(&chain, Path::new("/a.avhdx"), &checkpoint).unwrap();
    let model: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|t| {
                let chain = &chain;
                scope.spawn(move || {
                    let mut state = t + 1;
                    let mine: Vec<u64> = (0..PLACES).filter(|i| i % THREADS == t).collect();
                    let mut model: Vec<u8> = mine.iter().map(|i| if i % 3 == 0 { 0xB } else { 0 }).collect();
                    for _ in 0..3000 {
                        let n = random(&mut state) as usize % mine.len();
                        let mut found = [0xEE; 4096];
                        chain.read(&mut found, place(mine[n])).unwrap();
                        assert!(found.iter().all(|&b| b == model[n]), "place {}", mine[n]);
                        match random(&mut state) % 8 {
                            0..4 => {
                                model[n] = random(&mut state) as u8;
                                chain.write(&[model[n]; 4096], place(mine[n]), false).unwrap();
                            }
                            4 => {
                                model[n] = 0;
                                let block = place(mine[n]) >> 20 << 20;
                                let flags = ZeroFlags {
                                    may_unmap: true,
                                    ..ZeroFlags::default()
                                };
                                chain.zero(block, 1 << 20, flags).unwrap();
                            }
                            5 if random(&mut state) % 16 == 0 => chain.flush().unwrap(),
                            _ => {}
                        }
                    }
                    model
                })
            })
            .collect();
        workers.into_iter().map(|w| w.join().unwrap()).collect()
    });
    let verify = |chain: &Chain| {
        for i in 0..PLACES {
            let mut found = [0xEE; 4096];
            chain.read(&mut found, place(i)).unwrap();
            let wanted = model[(i % THREADS) as usize][(i / THREADS) as usize];
            assert!(found.iter().all(|&b| b == wanted), "place {i}");
        }
    };
    verify(&chain);
    chain.close().unwrap();
    for file in ["/base.vhdx", "/a.avhdx"] {
        let report = ops::check(Path::new(file), &open, &CheckOptions::default(), &mut |f| {
            panic!("{}", f.defect)
        });
        assert_eq!(report.unwrap().errors, 0);
    }
    let chain = Chain::open(Path::new("/a.avhdx"), &open).unwrap();
    verify(&chain);
    let mut merge = MergeOptions::default();
    merge.mode = MergeMode::Consume;
    ops::merge(&chain, 0, 1, &merge, &mut |_| true).unwrap();
    verify(&chain);
    chain.close().unwrap();
}
