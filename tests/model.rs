//! Random operations on random chains against an in-memory model: all bytes compared and `check` run after each step.

use std::io::IoSliceMut;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::ops::{self, CheckOptions, Severity};
use avhdx::options::{
    CacheMode, CheckpointOptions, CreateOptions, DiskType, MergeMode, MergeOptions, OpenOptions, ZeroFlags,
};
use avhdx::storage::MemoryFileSystem;
use avhdx::{Chain, ErrorKind};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

#[derive(Debug, Clone)]
enum Op {
    Write {
        at: u64,
        len: u64,
        byte: u8,
        fua: bool,
    },
    Zero {
        at: u64,
        len: u64,
        unmap: bool,
    },
    Discard {
        at: u64,
        len: u64,
    },
    Flush,
    Reopen,
    Abort,
    Checkpoint {
        block_mib: u32,
    },
    /// A child made by hand, larger or smaller than its parent.
    Child {
        size: u64,
        block_mib: u32,
    },
    Merge {
        top: usize,
        span: usize,
        mode: MergeMode,
        threads: usize,
    },
    CompareLayer {
        layer: usize,
    },
}

#[derive(Debug, Clone)]
struct Setup {
    kind: DiskType,
    size: u64,
    block_mib: u32,
    sector: u32,
}

fn setup() -> impl Strategy<Value = Setup> {
    (
        prop_oneof![Just(DiskType::Dynamic), Just(DiskType::Fixed)],
        1u64..24_000,
        0u32..3,
        prop_oneof![Just(512u32), Just(4096)],
    )
        .prop_map(|(kind, sectors, shift, sector)| Setup {
            kind,
            size: sectors * 512 / u64::from(sector) * u64::from(sector) + u64::from(sector),
            block_mib: 1 << shift,
            sector,
        })
}

/// Mostly aligned places, sometimes any byte.
fn range() -> impl Strategy<Value = (u64, u64)> {
    let at = prop_oneof![
        4 => (0u64..3000).prop_map(|n| n * 4096),
        2 => (0u64..12).prop_map(|n| n * MIB),
        1 => 0u64..12 * MIB,
    ];
    let len = prop_oneof![
        4 => (1u64..40).prop_map(|n| n * 4096),
        2 => (1u64..4).prop_map(|n| n * MIB),
        2 => 1u64..9000,
        1 => (1u64..9000).prop_map(|n| n * 512),
    ];
    (at, len)
}

fn op() -> impl Strategy<Value = Op> {
    let mode = prop_oneof![
        Just(MergeMode::Auto),
        Just(MergeMode::Copy),
        Just(MergeMode::Reflink),
        Just(MergeMode::Consume)
    ];
    prop_oneof![
        8 => (range(), 1u8.., any::<bool>()).prop_map(|((at, len), byte, fua)| Op::Write { at, len, byte, fua: fua && len % 4 == 0 }),
        3 => (range(), any::<bool>()).prop_map(|((at, len), unmap)| Op::Zero { at, len, unmap }),
        3 => range().prop_map(|(at, len)| Op::Discard { at, len: len * 2 }),
        1 => Just(Op::Flush),
        2 => Just(Op::Reopen),
        1 => Just(Op::Abort),
        3 => (0u32..3).prop_map(|shift| Op::Checkpoint { block_mib: 1 << shift }),
        1 => (1u64..24_000, 0u32..3).prop_map(|(size, shift)| Op::Child { size, block_mib: 1 << shift }),
        3 => (0usize..4, 1usize..4, mode, 0usize..4).prop_map(|(top, span, mode, threads)| Op::Merge { top, span, mode, threads }),
        1 => (0usize..5).prop_map(|layer| Op::CompareLayer { layer }),
    ]
}

struct World {
    open: OpenOptions,
    dir: PathBuf,
    chain: Option<Chain>,
    /// What each layer reads as, leaf first. `None`: unspecified since a discard.
    layers: Vec<Vec<u8>>,
    leaf: PathBuf,
    next: u32,
}

impl World {
    fn chain(&self) -> &Chain {
        self.chain.as_ref().unwrap()
    }

    fn open(&mut self) {
        self.chain = Some(Chain::open(&self.leaf, &self.open).unwrap());
    }

    /// The part of a range that lies on the disk.
    fn clip(&self, at: u64, len: u64) -> (usize, usize) {
        let size = self.layers[0].len() as u64;
        let at = at % size;
        (at as usize, len.min(size - at) as usize)
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Write { at, len, byte, fua } => {
                let (at, len) = self.clip(at, len);
                let data: Vec<u8> = (0..len).map(|i| byte ^ (i / 512) as u8 | 1).collect();
                self.chain().write(&data, at as u64, fua).unwrap();
                self.layers[0][at..at + len].copy_from_slice(&data);
            }
            Op::Zero { at, len, unmap } => {
                let (at, len) = self.clip(at, len);
                let flags = ZeroFlags {
                    may_unmap: unmap,
                    ..ZeroFlags::default()
                };
                self.chain().zero(at as u64, len as u64, flags).unwrap();
                self.layers[0][at..at + len].fill(0);
            }
            Op::Discard { at, len } => {
                let (at, len) = self.clip(at, len);
                self.chain().discard(at as u64, len as u64, false).unwrap();
                // Advisory: each byte is zero or as before; from now on it is what it is.
                let mut now = vec![0; len];
                self.chain().read(&mut now, at as u64).unwrap();
                for (old, new) in self.layers[0][at..at + len].iter_mut().zip(now) {
                    assert!(new == *old || new == 0, "a discard exposed something else");
                    *old = new;
                }
            }
            Op::Flush => self.chain().flush().unwrap(),
            Op::Reopen => {
                self.chain.take().unwrap().close().unwrap();
                self.open();
            }
            Op::Abort => {
                self.chain().flush().unwrap();
                drop(self.chain.take());
                self.open();
            }
            Op::Checkpoint { block_mib } => {
                if self.layers.len() < 6 {
                    self.next += 1;
                    let path = self.dir.join(format!("{}.avhdx", self.next));
                    let mut options = CheckpointOptions::default();
                    options.block_size = block_mib << 20;
                    ops::checkpoint(self.chain(), &path, &options).unwrap();
                    self.leaf = path;
                    self.layers.insert(0, self.layers[0].clone());
                }
            }
            Op::Child { size, block_mib } => {
                if self.layers.len() < 6 {
                    let sector = u64::from(self.chain().limits().logical_sector_size);
                    let size = size * 512 / sector * sector + sector;
                    self.chain.take().unwrap().close().unwrap();
                    self.next += 1;
                    let path = self.dir.join(format!("{}.avhdx", self.next));
                    let mut create = CreateOptions::default();
                    create.disk_type = DiskType::Differencing;
                    create.parent = Some(self.leaf.clone());
                    create.size = size;
                    create.block_size = block_mib << 20;
                    create.open = self.open.clone();
                    ops::create(&path, &create).unwrap();
                    self.leaf = path;
                    let mut content = self.layers[0].clone();
                    content.resize(size as usize, 0);
                    self.layers.insert(0, content);
                    self.open();
                }
            }
            Op::Merge {
                top,
                span,
                mode,
                threads,
            } => {
                let count = self.layers.len();
                if count > 1 {
                    let top = top % (count - 1);
                    let base = (top + span).min(count - 1);
                    let mut options = MergeOptions::default();
                    options.mode = mode;
                    options.threads = threads;
                    options.verify = mode != MergeMode::Consume;
                    let mut result = ops::merge(self.chain(), top, base, &options, &mut |_| true);
                    if mode == MergeMode::Reflink && matches!(&result, Err(e) if e.kind() == ErrorKind::Unsupported) {
                        options.mode = MergeMode::Auto;
                        result = ops::merge(self.chain(), top, base, &options, &mut |_| true);
                    }
                    result.unwrap();
                    self.layers.drain(top + 1..=base);
                    if top == 0 {
                        self.leaf = self.chain().layer_path(0).unwrap();
                    }
                }
            }
            Op::CompareLayer { layer } => {
                let layer = layer % self.layers.len();
                let mut found = vec![0xEE; self.layers[layer].len()];
                self.chain().read_layer(layer, &mut found, 0).unwrap();
                assert!(found == self.layers[layer], "layer {layer} differs");
            }
        }
    }

    fn compare(&self) {
        let mut found = vec![0xEE; self.layers[0].len()];
        assert_eq!(self.chain().size(), found.len() as u64);
        self.chain().read(&mut found, 0).unwrap();
        if let Some(at) = (0..found.len()).find(|&i| found[i] != self.layers[0][i]) {
            panic!("byte {at:#x} is {:#x}, wanted {:#x}", found[at], self.layers[0][at]);
        }
        assert_eq!(self.chain().layer_count(), self.layers.len());

        // Into buffers of many sizes, none among them.
        let mut again = vec![0xEE; found.len()];
        let mut sizes = [1, 511, 4096, 0, 512, 70_000, 1 << 20].into_iter().cycle();
        let mut bufs = Vec::new();
        let mut rest = &mut again[..];
        while !rest.is_empty() {
            let (buf, later) = rest.split_at_mut(sizes.next().unwrap().min(rest.len()));
            bufs.push(IoSliceMut::new(buf));
            rest = later;
        }
        self.chain().read_vectored(&mut bufs, 0).unwrap();
        assert!(again == found, "read into many buffers it differs");
    }

    fn check_files(&self) {
        let mut options = self.open.clone();
        options.lock = false;
        for path in options.file_system.list(&self.dir, 1000).unwrap() {
            check(&path, &options);
        }
    }
}

fn check(path: &Path, options: &OpenOptions) {
    let mut errors = Vec::new();
    let report = ops::check(path, options, &CheckOptions::default(), &mut |finding| {
        if finding.severity == Severity::Error {
            errors.push(finding.defect.to_string());
        }
    })
    .unwrap();
    assert_eq!(report.errors, 0, "{path:?}: {errors:?}");
}

fn run(setup: &Setup, ops: &[Op], dir: &Path, open: &OpenOptions) {
    let mut create = CreateOptions::default();
    create.disk_type = setup.kind;
    create.size = setup.size;
    create.block_size = setup.block_mib << 20;
    create.logical_sector_size = setup.sector;
    create.open = open.clone();
    let base = dir.join("base.vhdx");
    ops::create(&base, &create).unwrap();
    let mut world = World {
        open: open.clone(),
        dir: dir.to_path_buf(),
        chain: None,
        layers: vec![vec![0; setup.size as usize]],
        leaf: base,
        next: 0,
    };
    world.open();
    for op in ops {
        world.apply(op);
        world.compare();
        world.check_files();
    }
    world.chain.take().unwrap().close().unwrap();
    world.open();
    world.compare();
    for layer in 0..world.layers.len() {
        world.apply(&Op::CompareLayer { layer });
    }
}

fn cases() -> u32 {
    std::env::var("AVHDX_MODEL_CASES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn chains_behave_like_the_model(setup in setup(), ops in proptest::collection::vec(op(), 1..24)) {
        let memory = OpenOptions::new().on(Arc::new(MemoryFileSystem::new()));
        run(&setup, &ops, Path::new("/vm"), &memory);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases().div_ceil(20), ..ProptestConfig::default() })]

    #[test]
    fn files_around_the_page_cache_do_so_too(setup in setup(), ops in proptest::collection::vec(op(), 1..24)) {
        let dir = tempfile::tempdir().unwrap();
        let mut open = OpenOptions::new();
        open.cache = CacheMode::None;
        run(&setup, &ops, dir.path(), &open);
    }
}
