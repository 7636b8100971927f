//! Compact, resize and metadata items on random disks against a model: all bytes and items compared, the file checked
//! and reopened, after each step.

#[path = "common/shape.rs"]
mod shape;

use std::collections::BTreeMap;

use avhdx::ops;
use avhdx::options::{
    CheckpointOptions, CompactMode, CompactOptions, DiskType, MergeOptions, ResizeOptions, ZeroFlags,
};
use avhdx::storage::MemoryFileSystem;
use avhdx::{Chain, ErrorKind, Guid};
use proptest::prelude::*;
use shape::{check, create, options, path, MIB};

#[derive(Debug, Clone)]
enum Op {
    Write { at: u64, len: u64, byte: u8 },
    Zero { at: u64, len: u64, unmap: bool },
    Discard { at: u64, len: u64 },
    Compact { mode: CompactMode },
    Resize { sectors: u64 },
    Set { id: u128, len: usize, of_disk: bool },
    Delete { id: u128 },
    SectorSize { large: bool },
    NewId,
    Checkpoint,
    Merge,
    Reopen,
    Abort,
}

fn op() -> impl Strategy<Value = Op> {
    let at = prop_oneof![3 => (0u64..3000).prop_map(|n| n * 4096), 2 => (0u64..12).prop_map(|n| n * MIB)];
    let len =
        prop_oneof![2 => (1u64..40).prop_map(|n| n * 4096), 2 => (1u64..4).prop_map(|n| n * MIB), 1 => 1u64..9000];
    let range = (at, len);
    let size = prop_oneof![4 => 1u64..24_000, 1 => (1u64..12).prop_map(|n| n * 2048)];
    let mode =
        prop_oneof![3 => Just(CompactMode::Full), 1 => Just(CompactMode::Quick), 1 => Just(CompactMode::Prezeroed)];
    let length = prop_oneof![3 => 0usize..9000, 1 => 300_000usize..1_048_577];
    prop_oneof![
        8 => (range.clone(), 1u8..).prop_map(|((at, len), byte)| Op::Write { at, len, byte }),
        3 => (range.clone(), any::<bool>()).prop_map(|((at, len), unmap)| Op::Zero { at, len, unmap }),
        3 => range.prop_map(|(at, len)| Op::Discard { at, len: len * 2 }),
        5 => mode.prop_map(|mode| Op::Compact { mode }),
        4 => size.prop_map(|sectors| Op::Resize { sectors }),
        3 => (1u128..5, length, any::<bool>()).prop_map(|(id, len, of_disk)| Op::Set { id, len, of_disk }),
        1 => (1u128..5).prop_map(|id| Op::Delete { id }),
        1 => any::<bool>().prop_map(|large| Op::SectorSize { large }),
        1 => Just(Op::NewId),
        2 => Just(Op::Checkpoint),
        1 => Just(Op::Merge),
        2 => Just(Op::Reopen),
        1 => Just(Op::Abort),
    ]
}

struct World {
    fs: MemoryFileSystem,
    chain: Option<Chain>,
    content: Vec<u8>,
    /// Of the leaf: content and whether it is the disk's.
    items: BTreeMap<u128, (Vec<u8>, bool)>,
    leaves: Vec<String>,
    sector: u64,
    physical: u32,
    id: Guid,
}

impl World {
    fn chain(&self) -> &Chain {
        self.chain.as_ref().unwrap()
    }

    fn open(&mut self) {
        let leaf = path(self.leaves.last().unwrap());
        self.chain = Some(Chain::open(&leaf, &options(&self.fs)).unwrap());
    }

    fn clip(&self, at: u64, len: u64) -> Option<std::ops::Range<usize>> {
        let size = self.content.len() as u64;
        (at < size).then(|| at as usize..(at + len).min(size) as usize)
    }

    fn step(&mut self, op: &Op, index: usize) {
        match *op {
            Op::Write { at, len, byte } => {
                if let Some(range) = self.clip(at, len) {
                    self.chain().write(&vec![byte; range.len()], at, false).unwrap();
                    self.content[range].fill(byte);
                }
            }
            Op::Zero { at, len, unmap } => {
                if let Some(range) = self.clip(at, len) {
                    let flags = ZeroFlags {
                        may_unmap: unmap,
                        ..ZeroFlags::default()
                    };
                    self.chain().zero(at, range.len() as u64, flags).unwrap();
                    self.content[range].fill(0);
                }
            }
            Op::Discard { at, len } => {
                if let Some(range) = self.clip(at, len) {
                    self.chain().discard(at, range.len() as u64, false).unwrap();
                    let mut now = vec![0; range.len()];
                    self.chain().read(&mut now, at).unwrap();
                    for (was, now) in self.content[range].iter_mut().zip(now) {
                        assert!(now == *was || now == 0);
                        *was = now;
                    }
                }
            }
            Op::Compact { mode } => self.compact(mode),
            Op::Resize { sectors } => {
                let size = (sectors * 512).next_multiple_of(self.sector);
                let mut resize = ResizeOptions::default();
                resize.allow_loss = true;
                ops::resize(self.chain(), size, &resize).unwrap();
                self.content.resize(size as usize, 0);
            }
            Op::Set { id, len, of_disk } => {
                let bytes = vec![id as u8 + index as u8; len];
                ops::meta_set(self.chain(), Guid::from_u128(id), &bytes, of_disk).unwrap();
                self.items.insert(id, (bytes, of_disk));
            }
            Op::Delete { id } => {
                let result = ops::meta_delete(self.chain(), Guid::from_u128(id));
                assert_eq!(result.is_ok(), self.items.remove(&id).is_some());
            }
            Op::SectorSize { large } => {
                self.physical = if large { 4096 } else { 512 };
                ops::set_physical_sector_size(self.chain(), self.physical).unwrap();
            }
            Op::NewId => self.id = ops::reset_disk_id(self.chain(), None).unwrap(),
            Op::Checkpoint if self.leaves.len() < 4 => {
                let name = format!("{index}.avhdx");
                let mut checkpoint = CheckpointOptions::default();
                checkpoint.block_size = MIB as u32;
                ops::checkpoint(self.chain(), &path(&name), &checkpoint).unwrap();
                self.leaves.push(name);
                self.items.retain(|_, (_, of_disk)| *of_disk);
            }
            Op::Merge if self.leaves.len() > 1 => {
                // Items of the file below are not looked at: they are that file's.
                ops::merge(self.chain(), 0, 1, &MergeOptions::default(), &mut |_| true).unwrap();
                self.leaves.pop();
                let kept: Vec<_> = ops::meta_list(self.chain()).unwrap();
                self.items.retain(|_, (_, of_disk)| *of_disk);
                for item in kept.iter().filter(|item| !item.of_disk) {
                    let bytes = ops::meta_get(self.chain(), item.id).unwrap();
                    let id = (1..5).find(|&id| Guid::from_u128(id) == item.id).unwrap();
                    self.items.insert(id, (bytes, false));
                }
            }
            Op::Checkpoint | Op::Merge => {}
            Op::Reopen => {
                self.chain.take().unwrap().close().unwrap();
                self.open();
            }
            Op::Abort => {
                self.chain().flush().unwrap();
                self.chain = None;
                self.open();
            }
        }
        self.compare();
    }

    fn compact(&mut self, mode: CompactMode) {
        let identity = |chain: &Chain| chain.layer_info(0).unwrap().data_write_guid;
        let before = identity(self.chain());
        let mut compact = CompactOptions::default();
        compact.mode = mode;
        match ops::compact(self.chain(), &compact, &mut |_| true) {
            Ok(report) => {
                assert!(report.size_after <= report.size_before, "{report:?}");
                assert_eq!(report.free_bytes == 0, report.obstacle.is_none());
                if mode == CompactMode::Full && self.chain().limits().block_size == MIB as u32 {
                    let regions_only = report.obstacle == Some(ops::Obstacle::Metadata);
                    assert!(report.free_bytes == 0 || regions_only, "{report:?}");
                }
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
                let info = self.chain().layer_info(0).unwrap();
                assert_eq!(info.disk_type, DiskType::Fixed);
            }
        }
        assert_eq!(identity(self.chain()), before, "children stay valid");
    }

    fn compare(&self) {
        let chain = self.chain();
        assert_eq!(chain.size(), self.content.len() as u64);
        let mut found = vec![0xEE; self.content.len()];
        chain.read(&mut found, 0).unwrap();
        if let Some(at) = found.iter().zip(&self.content).position(|(a, b)| a != b) {
            panic!("at {at:#x}: {:#x}, wanted {:#x}", found[at], self.content[at]);
        }
        let mut items: Vec<_> = ops::meta_list(chain).unwrap();
        assert_eq!(items.len(), self.items.len());
        items.sort_by_key(|item| item.id.to_string());
        for (item, (&id, (bytes, of_disk))) in items.iter().zip(&self.items) {
            assert_eq!((item.id, item.of_disk), (Guid::from_u128(id), *of_disk));
            assert_eq!(ops::meta_get(chain, item.id).unwrap(), *bytes);
        }
        let info = chain.layer_info(0).unwrap();
        assert_eq!(
            (info.physical_sector_size, info.virtual_disk_id),
            (self.physical, self.id)
        );
        chain.flush().unwrap();
        for name in &self.leaves {
            check(&path(name), &options(&self.fs)).unwrap();
        }
        let mut again = options(&self.fs);
        (again.read_only, again.lock) = (true, false);
        let chain = Chain::open(&path(self.leaves.last().unwrap()), &again).unwrap();
        let mut found = vec![0xEE; self.content.len()];
        chain.read(&mut found, 0).unwrap();
        assert!(found == self.content, "what was flushed is in the files");
    }
}

fn cases() -> u32 {
    std::env::var("AVHDX_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 300, ..ProptestConfig::default() })]
    #[test]
    fn disks_of_changing_shape_read_as_the_model(
        kind in prop_oneof![1 => Just(DiskType::Fixed), 4 => Just(DiskType::Dynamic)],
        sectors in 1u64..24_000,
        shift in 0u32..2,
        child in any::<bool>(),
        operations in proptest::collection::vec(op(), 1..25),
    ) {
        let fs = MemoryFileSystem::new();
        let open = options(&fs);
        let size = sectors * 512;
        create(&open, "base.vhdx", kind, size, 1 << shift, None);
        let mut world = World {
            chain: None,
            content: vec![0; size as usize],
            items: BTreeMap::new(),
            leaves: vec!["base.vhdx".into()],
            sector: 512,
            physical: 4096,
            id: Guid::ZERO,
            fs,
        };
        world.open();
        world.id = world.chain().layer_info(0).unwrap().virtual_disk_id;
        if child {
            world.step(&Op::Write { at: MIB, len: 3 * MIB, byte: 0xBB }, 1000);
            world.step(&Op::Checkpoint, 1001);
        }
        for (index, op) in operations.iter().enumerate() {
            world.step(op, index);
        }
    }
}

// ---- in use, failing, and as others see it ----

fn filled(open: &avhdx::options::OpenOptions, child: bool) -> (String, Vec<u8>) {
    create(open, "base.vhdx", DiskType::Dynamic, 24 * MIB, 1, None);
    let chain = Chain::open(&path("base.vhdx"), open).unwrap();
    let mut content: Vec<u8> = (0..24 * MIB).map(|i| (i / 512 % 251) as u8 + 1).collect();
    chain.write(&content, 0, false).unwrap();
    let mut leaf = "base.vhdx".to_string();
    if child {
        let mut checkpoint = CheckpointOptions::default();
        checkpoint.block_size = MIB as u32;
        ops::checkpoint(&chain, &path("a.avhdx"), &checkpoint).unwrap();
        for block in 0..24u64 {
            let at = block * MIB;
            let len = if block % 3 == 0 { 8192 } else { MIB };
            content[at as usize..(at + len) as usize].fill(block as u8 + 100);
            chain.write(&vec![block as u8 + 100; len as usize], at, false).unwrap();
        }
        leaf = "a.avhdx".into();
    }
    for block in (0..24u64).filter(|b| b % 2 == 0 && *b < 16) {
        let range = (block * MIB) as usize..((block + 1) * MIB) as usize;
        content[range].fill(0);
        match block % 4 {
            0 => chain.write(&vec![0; MIB as usize], block * MIB, false).unwrap(),
            _ => chain.discard(block * MIB, MIB, false).unwrap(),
        }
    }
    chain.read(&mut content, 0).unwrap();
    chain.close().unwrap();
    (leaf, content)
}

/// Readers see, in each sector, something that was there; writers lose nothing; and the blocks do move meanwhile.
#[test]
fn compacting_goes_on_among_readers_and_writers() {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
    for child in [false, true] {
        let fs = MemoryFileSystem::new();
        let open = options(&fs);
        let (leaf, content) = filled(&open, child);
        let chain = Chain::open(&path(&leaf), &open).unwrap();
        let done = AtomicBool::new(false);
        let reads = AtomicU64::new(0);
        // Two writers with a half of the disk each, and sectors that carry the number of their write.
        let results: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..2u64)
                .map(|half| {
                    let (chain, done, content) = (&chain, &done, &content);
                    scope.spawn(move || {
                        let start = half * 12 * MIB;
                        let mut model = content[start as usize..(start + 12 * MIB) as usize].to_vec();
                        let mut state = 88172645463325252 + half;
                        let mut random = |n: u64| {
                            state ^= state << 13;
                            state ^= state >> 7;
                            state ^= state << 17;
                            state % n
                        };
                        while !done.load(Relaxed) {
                            let at = random(12 * MIB / 512) * 512;
                            let len = (512 * (1 + random(64))).min(12 * MIB - at) as usize;
                            let range = at as usize..at as usize + len;
                            let byte = random(256) as u8;
                            match random(8) {
                                0 => {
                                    let block = at / MIB * MIB;
                                    let range = block as usize..(block + MIB) as usize;
                                    model[range].fill(0);
                                    let flags = ZeroFlags {
                                        may_unmap: true,
                                        ..ZeroFlags::default()
                                    };
                                    chain.zero(start + block, MIB, flags).unwrap();
                                }
                                1 => chain.flush().unwrap(),
                                _ => {
                                    model[range].fill(byte);
                                    chain.write(&vec![byte; len], start + at, false).unwrap();
                                }
                            }
                            let mut found = vec![0; 512];
                            let at = random(12 * MIB / 512) * 512;
                            chain.read(&mut found, start + at).unwrap();
                            assert!(
                                found == model[at as usize..at as usize + 512],
                                "at {at:#x} of half {half}"
                            );
                        }
                        model
                    })
                })
                .collect();
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut buf = vec![0; 128 << 10];
                    let mut at = 0;
                    while !done.load(Relaxed) {
                        chain.read(&mut buf, at).unwrap();
                        at = (at + (384 << 10)) % (24 * MIB - (128 << 10));
                        reads.fetch_add(1, Relaxed);
                    }
                });
            }
            let mut moved = 0;
            for round in 0..12 {
                let mut compact = CompactOptions::default();
                if round % 3 == 1 {
                    compact.mode = CompactMode::Quick;
                }
                moved += ops::compact(&chain, &compact, &mut |_| true).unwrap().moved_blocks;
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            assert!(moved > 0);
            done.store(true, Relaxed);
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        assert!(reads.load(Relaxed) > 0);
        let mut found = vec![0; 24 * MIB as usize];
        chain.read(&mut found, 0).unwrap();
        assert!(found == results.concat());
        chain.close().unwrap();
        check(&path(&leaf), &open).unwrap();
        let chain = Chain::open(&path(&leaf), &open).unwrap();
        chain.read(&mut found, 0).unwrap();
        assert!(found == results.concat());
    }
}

/// Every storage call fails once: the error is reported, the disk opens again with its old or new shape, and doing it
/// again succeeds.
#[test]
fn any_failing_call_leaves_a_good_disk() {
    use avhdx::storage::fault::{FaultFileSystem, FaultMode};
    use std::sync::Arc;
    type Job = fn(&Chain) -> avhdx::Result<()>;
    let jobs: [(&str, Job); 5] = [
        ("compact", |chain| {
            ops::compact(chain, &CompactOptions::default(), &mut |_| true).map(drop)
        }),
        ("grow", |chain| ops::resize(chain, 27 * MIB, &ResizeOptions::default())),
        ("shrink", |chain| {
            let mut resize = ResizeOptions::default();
            resize.allow_loss = true;
            ops::resize(chain, 20 * MIB + 4096, &resize)
        }),
        ("small item", |chain| {
            ops::meta_set(chain, Guid::from_u128(1), &[7; 5000], true)
        }),
        ("large item", |chain| {
            ops::meta_set(chain, Guid::from_u128(1), &vec![7; MIB as usize], true)
        }),
    ];
    let mut total = 0;
    let modes = [FaultMode::Once, FaultMode::FlushLoses];
    for (child, mode) in [false, true]
        .into_iter()
        .flat_map(|child| modes.map(|mode| (child, mode)))
    {
        let prepared = MemoryFileSystem::new();
        let (leaf, content) = filled(&options(&prepared), child);
        for (name, job) in jobs {
            let mut n = 1;
            loop {
                let fs = prepared.snapshot();
                let faulty = FaultFileSystem::new(Arc::new(fs.clone()));
                let mut open = options(&fs);
                open.file_system = Arc::new(faulty.clone());
                let chain = Chain::open(&path(&leaf), &open).unwrap();
                let errno = if n % 2 == 0 { libc::EIO } else { libc::ENOSPC };
                faulty.fail_in(n, errno, mode);
                let what = format!("{name}, call {n} {mode:?}, child {child}");
                let result = job(&chain);
                let written = chain.write(&[1; 512], 0, true);
                let closed = chain.close();
                let fired = faulty.disarm();
                let plain = options(&fs);
                check(&path(&leaf), &plain).unwrap_or_else(|e| panic!("{what}: {e}"));
                let chain = Chain::open(&path(&leaf), &plain).unwrap_or_else(|e| panic!("{what}: {e:?}"));
                let mut wanted = content.clone();
                wanted.resize(chain.size() as usize, 0);
                let mut found = vec![0; wanted.len()];
                chain.read(&mut found, 0).unwrap();
                assert!(found[512..] == wanted[512..], "{what}");
                if written.is_ok() {
                    assert!(found[..512] == [1; 512], "{what}");
                }
                job(&chain).unwrap_or_else(|e| panic!("{what}: again: {e:?}"));
                chain.close().unwrap();
                check(&path(&leaf), &plain).unwrap();
                total += 1;
                if !fired {
                    assert!(result.is_ok() && closed.is_ok(), "{name}");
                    break;
                }
                n += 1 + n / 30;
            }
        }
    }
    println!("{total} cases");
    assert!(total > 200);
}
