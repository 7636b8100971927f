//! Diff, compare and digest against bytes in memory, over random chains of layers of different block and disk sizes.

#[path = "common/random.rs"]
mod random;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::ops::{self, CompareOptions, DigestAlgorithm, DigestOptions};
use avhdx::options::{CreateOptions, DiskType, OpenOptions, ZeroFlags};
use avhdx::storage::MemoryFileSystem;
use avhdx::{Chain, ErrorKind, Extent, ExtentState};
use random::Random;
use sha2::{Digest, Sha256, Sha512};

const MIB: u64 = 1 << 20;

/// A chain, and what each layer reads as, leaf first.
struct World {
    fs: Arc<MemoryFileSystem>,
    leaf: PathBuf,
    layers: Vec<Vec<u8>>,
    chain: Chain,
}

fn open(fs: &Arc<MemoryFileSystem>, path: &Path) -> Chain {
    Chain::open(path, &OpenOptions::new().on(fs.clone())).unwrap()
}

fn create(fs: &Arc<MemoryFileSystem>, path: &Path, size: u64, block: u64, sector: u32, parent: Option<&Path>) {
    let mut create = CreateOptions::default();
    create.disk_type = match parent {
        Some(_) => DiskType::Differencing,
        None => DiskType::Dynamic,
    };
    create.parent = parent.map(Path::to_path_buf);
    create.size = size;
    create.block_size = block as u32;
    create.logical_sector_size = sector;
    create.open = OpenOptions::new().on(fs.clone());
    ops::create(path, &create).unwrap();
}

/// Random writes, zeros and discards; some write what is there already.
fn scribble(random: &mut Random, chain: &Chain, content: &mut [u8]) {
    for _ in 0..random.below(7) {
        let size = content.len() as u64;
        let at = match random.below(3) {
            0 => random.below(size),
            _ => random.below(size / 4096 + 1) * 4096 % size,
        };
        let most = if random.chance(3) { 3 * MIB } else { 40_000 };
        let len = (1 + random.below(most)).min(size - at);
        let range = at as usize..(at + len) as usize;
        match random.below(6) {
            0 => {
                let flags = ZeroFlags {
                    may_unmap: random.chance(2),
                    ..ZeroFlags::default()
                };
                chain.zero(at, len, flags).unwrap();
                content[range].fill(0);
            }
            1 => {
                chain.discard(at, len, false).unwrap();
                chain.read(&mut content[range], at).unwrap();
            }
            2 => chain.write(&content[range], at, false).unwrap(),
            3 => {
                chain.write(&vec![0; len as usize], at, false).unwrap();
                content[range].fill(0);
            }
            _ => {
                let seed = random.next() as u8;
                let data: Vec<u8> = (0..len).map(|i| seed.wrapping_add((i / 300) as u8)).collect();
                chain.write(&data, at, false).unwrap();
                content[range].copy_from_slice(&data);
            }
        }
    }
}

fn world(random: &mut Random) -> World {
    let fs = Arc::new(MemoryFileSystem::new());
    let sector = if random.chance(4) { 4096 } else { 512 };
    let size = |random: &mut Random| (1 + random.below(5 * MIB / u64::from(sector))) * u64::from(sector);
    let mut leaf = PathBuf::from("/vm/0.vhdx");
    let base = size(random);
    create(&fs, &leaf, base, MIB << random.below(3), sector, None);
    let mut layers = vec![vec![0; base as usize]];
    let mut chain = open(&fs, &leaf);
    scribble(random, &chain, &mut layers[0]);
    for i in 1..=random.below(4) {
        let child = PathBuf::from(format!("/vm/{i}.avhdx"));
        let larger = if random.chance(3) {
            size(random)
        } else {
            layers[0].len() as u64
        };
        chain.close().unwrap();
        create(&fs, &child, larger, MIB << random.below(3), 0, Some(&leaf));
        leaf = child;
        let mut content = layers[0].clone();
        content.resize(larger as usize, 0);
        layers.insert(0, content);
        chain = open(&fs, &leaf);
        scribble(random, &chain, &mut layers[0]);
    }
    World {
        fs,
        leaf,
        layers,
        chain,
    }
}

fn all(chain: &Chain, newer: usize, older: usize, range: (u64, u64), exact: bool, max: usize) -> Vec<Extent> {
    let (mut at, end) = (range.0, range.0 + range.1);
    let mut found: Vec<Extent> = Vec::new();
    while at < end {
        let mut some = Vec::new();
        let done = ops::diff(chain, newer, older, (at, end - at), exact, max, &mut some).unwrap();
        assert!(done > 0 || some.is_empty(), "no progress at {at}");
        assert!(some.len() <= max);
        at += done;
        for extent in some {
            match found.last_mut() {
                // A range cut where there was no more room goes on.
                Some(last) if last.offset + last.length == extent.offset && last.state == extent.state => {
                    last.length += extent.length;
                }
                _ => found.push(extent),
            }
        }
    }
    found
}

fn check_diff(random: &mut Random, world: &World, newer: usize, older: usize) {
    let new = &world.layers[newer];
    let mut old = world.layers[older].clone();
    old.resize(new.len(), 0);
    let size = new.len() as u64;
    let whole = all(&world.chain, newer, older, (0, size), false, usize::MAX);
    let exact = all(&world.chain, newer, older, (0, size), true, usize::MAX);
    for (list, what) in [(&whole, "metadata"), (&exact, "exact")] {
        // Applied to the old disk it gives the new one.
        let mut restored = old.clone();
        let mut end = 0;
        for extent in list {
            assert!(extent.offset >= end && extent.length > 0, "{what}: {list:?}");
            assert_eq!((extent.layer, extent.file_offset), (newer as u32, None));
            end = extent.offset + extent.length;
            let range = extent.offset as usize..end as usize;
            if extent.state == ExtentState::Zero {
                assert!(
                    new[range.clone()].iter().all(|&b| b == 0),
                    "{what}: {extent:?} is not zero"
                );
            }
            restored[range.clone()].copy_from_slice(&new[range]);
        }
        assert!(end <= size);
        assert!(restored == *new, "{what}: {newer} over {older} misses a change");
        for pair in list.windows(2) {
            let joined = pair[0].offset + pair[0].length == pair[1].offset && pair[0].state == pair[1].state;
            assert!(!joined, "{what}: not joined: {pair:?}");
        }
    }
    let sector = world.chain.limits().logical_sector_size as usize;
    for extent in &exact {
        let range = extent.offset as usize..(extent.offset + extent.length) as usize;
        for at in range.step_by(sector) {
            assert!(
                new[at..at + sector] != old[at..at + sector],
                "sector {at:#x} is the same"
            );
        }
    }
    // In small answers, and for a part.
    let max = 1 + random.below(3) as usize;
    assert_eq!(all(&world.chain, newer, older, (0, size), false, max), whole);
    assert_eq!(all(&world.chain, newer, older, (0, size), true, max), exact);
    let at = random.below(size);
    let len = 1 + random.below(size - at);
    for (is_exact, list) in [(false, &whole), (true, &exact)] {
        let part = all(&world.chain, newer, older, (at, len), is_exact, max);
        let cut: u64 = list
            .iter()
            .map(|e| (e.offset + e.length).min(at + len).saturating_sub(e.offset.max(at)))
            .sum();
        let found: u64 = part.iter().map(|e| e.length).sum();
        // A sector of which a part was asked for may be the same in that part.
        let slack = if is_exact { 2 * sector as u64 } else { 0 };
        assert!(
            found <= cut && found + slack >= cut,
            "{part:?} of {list:?} in {at}+{len}"
        );
    }
}

fn check_digest(world: &World) {
    for (layer, content) in world.layers.iter().enumerate() {
        let found = ops::digest(
            &world.chain,
            layer,
            DigestAlgorithm::Sha256,
            &DigestOptions::default(),
            &mut |_| true,
        )
        .unwrap();
        assert_eq!(found, Sha256::digest(content).to_vec(), "layer {layer}");
    }
    let found = ops::digest(
        &world.chain,
        0,
        DigestAlgorithm::Sha512,
        &DigestOptions::default(),
        &mut |_| true,
    )
    .unwrap();
    assert_eq!(found, Sha512::digest(&world.layers[0]).to_vec());
}

/// What compare must say.
fn first_difference(a: &[u8], b: &[u8], strict: bool) -> Option<u64> {
    let common = a.len().min(b.len());
    let at = a.iter().zip(b).position(|(x, y)| x != y);
    let tail = if a.len() > b.len() { a } else { b };
    let more = match strict {
        true => (a.len() != b.len()).then_some(common),
        false => tail[common..].iter().position(|&x| x != 0).map(|at| common + at),
    };
    at.or(more).map(|at| at as u64)
}

fn compare(a: &Chain, b: &Chain, strict: bool) -> Option<u64> {
    let mut options = CompareOptions::default();
    options.strict = strict;
    let there = ops::compare(a, b, &options, &mut |p| {
        assert!(p.done <= p.total);
        true
    });
    let back = ops::compare(b, a, &options, &mut |_| true).unwrap();
    assert_eq!(there.as_ref().unwrap(), &back);
    back
}

fn check_compare(random: &mut Random, world: &World) {
    // With each of its own checkpoints, opened on its own.
    let mut options = OpenOptions::read_only().on(world.fs.clone());
    options.lock = false;
    for layer in 1..world.layers.len() {
        let other = Chain::open(&world.chain.layer_path(layer).unwrap(), &options).unwrap();
        for strict in [false, true] {
            let wanted = first_difference(&world.layers[0], &world.layers[layer], strict);
            assert_eq!(compare(&world.chain, &other, strict), wanted, "layer {layer}");
        }
    }
    assert_eq!(compare(&world.chain, &world.chain, true), None);
    // With a copy that has none of its files, and one byte of it changed.
    let copy = Arc::new(MemoryFileSystem::new());
    let size = world.layers[0].len() as u64;
    let larger = size + random.below(3) * 4096;
    let path = Path::new("/copy.vhdx");
    create(&copy, path, larger, MIB, world.chain.limits().logical_sector_size, None);
    let chain = open(&copy, path);
    chain.write(&world.layers[0], 0, false).unwrap();
    let mut content = world.layers[0].clone();
    content.resize(larger as usize, 0);
    assert_eq!(compare(&world.chain, &chain, false), None);
    let at = random.below(larger);
    content[at as usize] ^= 0x80;
    chain.write(&content[at as usize..at as usize + 1], at, false).unwrap();
    for strict in [false, true] {
        let wanted = first_difference(&world.layers[0], &content, strict);
        assert_eq!(compare(&world.chain, &chain, strict), wanted);
    }
}

#[test]
fn all_agree_with_bytes_in_memory() {
    let cases = std::env::var("AVHDX_MODEL_CASES")
        .ok()
        .and_then(|text| text.parse().ok());
    let (mut pairs, mut sizes) = (0, 0);
    for seed in 0..cases.unwrap_or(150) {
        let mut random = Random(seed);
        let world = world(&mut random);
        for older in 1..world.layers.len() {
            for newer in 0..older {
                check_diff(&mut random, &world, newer, older);
                pairs += 1;
                sizes += u32::from(world.layers[newer].len() != world.layers[older].len());
            }
        }
        check_digest(&world);
        check_compare(&mut random, &world);
        assert!(world.fs.paths().contains(&world.leaf));
    }
    println!("{pairs} pairs of layers, {sizes} of different sizes");
}

fn small() -> World {
    let mut random = Random(1);
    let fs = Arc::new(MemoryFileSystem::new());
    let leaf = PathBuf::from("/a.avhdx");
    create(&fs, Path::new("/base.vhdx"), 4 * MIB, MIB, 512, None);
    create(&fs, &leaf, 0, MIB, 0, Some(Path::new("/base.vhdx")));
    let chain = open(&fs, &leaf);
    chain.write(&[random.next() as u8 | 1; 4096], MIB, false).unwrap();
    let layers = vec![vec![0; 4 << 20]; 2];
    World {
        fs,
        leaf,
        layers,
        chain,
    }
}

#[test]
fn what_cannot_be_asked_is_refused() {
    let world = small();
    let chain = &world.chain;
    for (newer, older) in [(0, 0), (1, 0), (1, 1), (0, 2), (usize::MAX, usize::MAX)] {
        let error = ops::diff(chain, newer, older, (0, 512), false, 1, &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Argument);
        assert!(error.hint().unwrap().contains("0 is the leaf"));
    }
    for range in [(0, 4 * MIB + 1), (4 * MIB, 1), (u64::MAX, 2)] {
        let error = ops::diff(chain, 0, 1, range, true, 1, &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Range);
    }
    let mut none = Vec::new();
    assert_eq!(ops::diff(chain, 0, 1, (4 * MIB, 0), true, 1, &mut none).unwrap(), 0);
    assert_eq!(ops::diff(chain, 0, 1, (0, 4 * MIB), false, 0, &mut none).unwrap(), MIB);
    assert!(none.is_empty());
    assert_eq!(
        ops::digest(
            chain,
            2,
            DigestAlgorithm::Sha256,
            &DigestOptions::default(),
            &mut |_| true
        )
        .unwrap_err()
        .kind(),
        ErrorKind::Argument
    );
    let error = DigestAlgorithm::from_name("md5").unwrap_err();
    assert!(error.hint().unwrap().contains("sha256"), "{error:?}");
}

#[test]
fn compare_and_digest_can_be_cancelled() {
    let world = small();
    let cancelled = ops::digest(
        &world.chain,
        0,
        DigestAlgorithm::Sha256,
        &DigestOptions::default(),
        &mut |_| false,
    );
    assert_eq!(cancelled.unwrap_err().kind(), ErrorKind::Cancelled);
    let cancelled = ops::compare(&world.chain, &world.chain, &CompareOptions::default(), &mut |_| false);
    assert_eq!(cancelled.unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn the_size_of_an_empty_disk_costs_little() {
    let fs = Arc::new(MemoryFileSystem::new());
    let base = Path::new("/base.vhdx");
    create(&fs, base, 1 << 40, 32 * MIB, 512, None);
    create(&fs, Path::new("/a.avhdx"), 0, 2 * MIB, 0, Some(base));
    let chain = open(&fs, Path::new("/a.avhdx"));
    chain.write(&[7; 512], 1 << 39, false).unwrap();
    let start = std::time::Instant::now();
    let found = all(&chain, 0, 1, (0, 1 << 40), true, 100);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].offset, found[0].length), (1 << 39, 512));
    let mut options = OpenOptions::read_only().on(fs.clone());
    options.lock = false;
    let other = Chain::open(base, &options).unwrap();
    assert_eq!(compare(&chain, &other, true), Some(1 << 39));
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}
