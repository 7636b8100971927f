//! Large and sparse: pages of metadata come and go under many threads, and what is read stays right.

use std::path::Path;
use std::sync::Arc;

use avhdx::ops::{self, CheckOptions};
use avhdx::options::{CheckpointOptions, CreateOptions, MergeMode, MergeOptions, OpenOptions, ZeroFlags};
use avhdx::storage::MemoryFileSystem;
use avhdx::{Chain, ExtentState, Scope};

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

/// What nobody holds is found in one piece, and what somebody holds is found: pages of the BAT in memory and in the file,
/// newer in memory, all zero, holes; layers of different block sizes; at any boundary.
#[test]
fn holes_of_a_chain_are_whole() {
    const MIB: u64 = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let memory = OpenOptions::new().on(Arc::new(MemoryFileSystem::new()));
    for (open, dir) in [(memory, Path::new("/")), (OpenOptions::new(), dir.path())] {
        for seed in 1..6 {
            let mut state = seed;
            let mut open = open.clone();
            open.meta_cache_size = [0, 32 * MIB][seed as usize % 2];
            let path = |name: &str| dir.join(format!("{seed}-{name}"));
            let mut create = CreateOptions::default();
            // Not a whole number of blocks, or of pages of the BAT.
            create.size = [3 << 40, (5 << 30) + 512, 64 << 40][seed as usize % 3];
            create.block_size = [1 << 20, 2 << 20][seed as usize % 2];
            create.open = open.clone();
            ops::create(&path("base.vhdx"), &create).unwrap();
            let chain = Chain::open(&path("base.vhdx"), &open).unwrap();
            let mut written = std::collections::BTreeSet::new();
            for layer in 0..3 {
                for n in 0..12 {
                    let limit = create.size / MIB;
                    let mib = match n % 3 {
                        // Some in a row, some at ends of pages, some anywhere.
                        0 => (random(&mut state) % 3 * 511 + n) % limit,
                        1 => random(&mut state) % (limit / 512) * 512,
                        _ => random(&mut state) % limit,
                    };
                    chain.write(&[1; 512], mib * MIB, false).unwrap();
                    written.insert(mib * MIB);
                }
                if layer == 1 {
                    // From here on pages come from the file, and later changes are in memory alone.
                    chain.flush().unwrap();
                }
                if layer < 2 {
                    let mut checkpoint = CheckpointOptions::default();
                    checkpoint.block_size = [4 << 20, 1 << 20][layer];
                    ops::checkpoint(&chain, &path(&format!("{layer}.avhdx")), &checkpoint).unwrap();
                }
            }
            let mut extents = Vec::new();
            let covered = chain
                .block_status(0, create.size, Scope::Chain, usize::MAX, &mut extents)
                .unwrap();
            assert_eq!(covered, create.size);
            let holds = |at: u64| {
                let i = extents.partition_point(|extent| extent.offset <= at) - 1;
                extents[i].state == ExtentState::Data
            };
            for &at in &written {
                assert!(holds(at), "{at:#x} was written");
            }
            // The base has whole blocks, the children have sectors.
            let data: u64 = extents
                .iter()
                .filter(|e| e.state == ExtentState::Data)
                .map(|e| e.length)
                .sum();
            assert!(
                data <= 12 * u64::from(create.block_size) + 24 * 512,
                "{data} bytes of data"
            );
            assert!(extents.len() <= 4 * written.len() + 1, "{} extents", extents.len());
            chain.close().unwrap();
        }
    }
}
