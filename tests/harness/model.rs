//! Operations from the input on a chain in memory and on arrays of bytes.
//!
//! For any input: every operation that is possible succeeds; after each the disk reads as the model, and so does each
//! layer at the end; check finds nothing in any file. What was flushed survives abandoning the disk without closing it. A
//! discarded byte reads as before or as zero.

use std::cell::RefCell;
use std::path::PathBuf;

use avhdx::ops::{self, CheckOptions, Severity};
use avhdx::options::{
    CheckpointOptions, CompactMode, CompactOptions, CreateOptions, DiskType, MergeMode, MergeOptions, OpenOptions,
    RebaseOptions, ResizeOptions, ZeroFlags,
};
use avhdx::storage::MemoryFileSystem;
use avhdx::{Chain, ErrorKind};

use super::images::{options, path, MIB};
use super::input::Input;

struct World {
    fs: MemoryFileSystem,
    chain: Option<Chain>,
    /// What each layer reads as, leaf first.
    layers: Vec<Vec<u8>>,
    fixed: bool,
    leaf: PathBuf,
    next: u32,
    /// Kept, because getting megabytes anew for each comparison takes most of the time.
    buffer: RefCell<Vec<u8>>,
}

fn room(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    buffer[..len].fill(0xEE);
    &mut buffer[..len]
}

const MOST_LAYERS: usize = 5;

impl World {
    fn options(&self) -> OpenOptions {
        options(&self.fs)
    }

    fn chain(&self) -> &Chain {
        self.chain.as_ref().unwrap()
    }

    fn open(&mut self) {
        self.chain = Some(Chain::open(&self.leaf, &self.options()).unwrap());
    }

    fn new_path(&mut self) -> PathBuf {
        self.next += 1;
        path(&format!("{}.avhdx", self.next))
    }

    fn range(&self, input: &mut Input<'_>) -> (usize, usize) {
        let size = self.layers[0].len();
        let at = match input.byte() % 4 {
            0 | 1 => usize::from(input.u16()) * 4096,
            2 => usize::from(input.byte()) << 20,
            _ => input.u64() as usize,
        } % size;
        let len = match input.byte() % 4 {
            0 | 1 => (1 + usize::from(input.byte() % 40)) * 4096,
            2 => (1 + usize::from(input.byte() % 3)) << 20,
            _ => usize::from(input.u16()),
        };
        (at, len.min(size - at))
    }

    fn apply(&mut self, input: &mut Input<'_>) {
        match input.byte() % 32 {
            0..=8 => {
                let (at, len) = self.range(input);
                let (byte, fua) = (input.byte(), input.chance(8));
                let mut data = vec![0; len];
                for (i, sector) in data.chunks_mut(512).enumerate() {
                    sector.fill(byte ^ i as u8 | 1);
                }
                self.chain().write(&data, at as u64, fua).unwrap();
                self.layers[0][at..at + len].copy_from_slice(&data);
            }
            9..=11 => {
                let (at, len) = self.range(input);
                let flags = ZeroFlags {
                    may_unmap: input.chance(2),
                    fua: input.chance(8),
                    fast: input.chance(8),
                };
                match self.chain().zero(at as u64, len as u64, flags) {
                    Ok(()) => self.layers[0][at..at + len].fill(0),
                    Err(error) => assert!(flags.fast && error.kind() == ErrorKind::NotFast),
                }
            }
            12..=14 => {
                let (at, len) = self.range(input);
                self.chain().discard(at as u64, len as u64, input.chance(8)).unwrap();
                let mut now = vec![0; len];
                self.chain().read(&mut now, at as u64).unwrap();
                for (old, new) in self.layers[0][at..at + len].chunks_mut(64).zip(now.chunks(64)) {
                    if old != new {
                        let fine = |(old, new): (&u8, &u8)| new == old || *new == 0;
                        assert!(old.iter().zip(new).all(fine), "a discard exposed something else");
                        old.copy_from_slice(new);
                    }
                }
            }
            15 => self.chain().flush().unwrap(),
            16 => {
                self.chain.take().unwrap().close().unwrap();
                self.open();
            }
            17 => {
                self.chain().flush().unwrap();
                drop(self.chain.take());
                self.open();
            }
            18..=20 => {
                if self.layers.len() < MOST_LAYERS {
                    let path = self.new_path();
                    let mut options = CheckpointOptions::default();
                    options.block_size = 1 << (20 + input.byte() % 2);
                    ops::checkpoint(self.chain(), &path, &options).unwrap();
                    self.leaf = path;
                    self.layers.insert(0, self.layers[0].clone());
                }
            }
            21 => {
                if self.layers.len() < MOST_LAYERS {
                    let sector = self.chain().limits().logical_sector_size as usize;
                    let size = (1 + usize::from(input.u16()) % 8000) * 512 / sector * sector + sector;
                    self.chain.take().unwrap().close().unwrap();
                    let path = self.new_path();
                    let mut create = CreateOptions::default();
                    create.disk_type = DiskType::Differencing;
                    create.parent = Some(self.leaf.clone());
                    create.size = size as u64;
                    create.block_size = 1 << (20 + input.byte() % 2);
                    create.open = self.options();
                    ops::create(&path, &create).unwrap();
                    self.leaf = path;
                    let mut content = self.layers[0].clone();
                    content.resize(size, 0);
                    self.layers.insert(0, content);
                    self.open();
                }
            }
            22..=25 => {
                let count = self.layers.len();
                if count > 1 {
                    let top = input.below(count - 1);
                    let base = (top + 1 + input.below(3)).min(count - 1);
                    let mut options = MergeOptions::default();
                    options.mode =
                        input.pick(&[MergeMode::Auto, MergeMode::Copy, MergeMode::Reflink, MergeMode::Consume]);
                    options.verify = options.mode != MergeMode::Consume;
                    // Sometimes stopped on the way, and run again.
                    let mut left = input.byte();
                    let stop = input.chance(4);
                    let result = ops::merge(self.chain(), top, base, &options, &mut |_| {
                        left = left.saturating_sub(1);
                        !stop || left > 0
                    });
                    match result {
                        Err(error) if stop && error.kind() == ErrorKind::Cancelled => {
                            self.compare();
                            if input.chance(2) {
                                drop(self.chain.take());
                                self.open();
                                self.compare();
                            }
                            ops::merge(self.chain(), top, base, &options, &mut |_| true).unwrap();
                        }
                        result => drop(result.unwrap()),
                    }
                    self.layers.drain(top + 1..=base);
                    if top == 0 {
                        self.leaf = self.chain().layer_path(0).unwrap();
                    }
                    self.check();
                }
            }
            26 => {
                let mut options = CompactOptions::default();
                options.mode = input.pick(&[CompactMode::Full, CompactMode::Quick, CompactMode::Prezeroed]);
                let result = ops::compact(self.chain(), &options, &mut |_| true);
                if let Err(error) = result {
                    let fixed = self.fixed && self.layers.len() == 1;
                    assert!(
                        fixed && error.kind() == ErrorKind::Unsupported,
                        "{}",
                        error.chain_text()
                    );
                }
                self.check();
            }
            27 => {
                let sector = self.chain().limits().logical_sector_size as usize;
                let size = (1 + usize::from(input.u16()) % 8000) * 512 / sector * sector + sector;
                let mut options = ResizeOptions::default();
                options.allow_loss = input.chance(2);
                match ops::resize(self.chain(), size as u64, &options) {
                    Ok(()) => {
                        let old = self.layers[0].len();
                        if !options.allow_loss && size < old {
                            assert!(
                                self.layers[0][size..].iter().all(|&byte| byte == 0),
                                "shrinking cut data unasked"
                            );
                        }
                        self.layers[0].resize(size, 0);
                    }
                    Err(error) => assert!(
                        matches!(error.kind(), ErrorKind::ShrinkUnsafe | ErrorKind::Unsupported),
                        "{}",
                        error.chain_text()
                    ),
                }
                self.check();
            }
            28 => {
                if self.layers.len() > 1 {
                    ops::detach(self.chain(), &RebaseOptions::default(), &mut |_| true).unwrap();
                    self.layers.truncate(1);
                    self.fixed = false;
                    self.check();
                }
            }
            29 => {
                let layer = input.below(self.layers.len());
                self.compare_layer(layer);
            }
            30 => self.check(),
            _ => {
                let least = ops::min_size(self.chain()).unwrap();
                let size = self.layers[0].len() as u64;
                assert!(least <= size.max(least));
            }
        }
        self.compare();
    }

    fn compare(&self) {
        let mut buffer = self.buffer.borrow_mut();
        let found = room(&mut buffer, self.layers[0].len());
        assert_eq!(self.chain().size(), found.len() as u64);
        self.chain().read(found, 0).unwrap();
        if found != self.layers[0] {
            let at = (0..found.len()).find(|&i| found[i] != self.layers[0][i]).unwrap();
            panic!("byte {at:#x} is {:#x}, wanted {:#x}", found[at], self.layers[0][at]);
        }
        assert_eq!(self.chain().layer_count(), self.layers.len());
    }

    fn compare_layer(&self, layer: usize) {
        let mut buffer = self.buffer.borrow_mut();
        let found = room(&mut buffer, self.layers[layer].len());
        self.chain().read_layer(layer, found, 0).unwrap();
        assert!(found == self.layers[layer], "layer {layer} differs");
    }

    fn check(&self) {
        for path in self.fs.paths() {
            let mut first = None;
            let report = ops::check(&path, &self.options(), &CheckOptions::default(), &mut |finding| {
                if finding.severity == Severity::Error && first.is_none() {
                    first = Some(finding.defect.to_string());
                }
            });
            assert_eq!(report.unwrap().errors, 0, "{path:?}: {first:?}");
        }
    }
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let fs = MemoryFileSystem::new();
    let mut create = CreateOptions::default();
    let fixed = input.chance(4);
    create.disk_type = if fixed { DiskType::Fixed } else { DiskType::Dynamic };
    create.logical_sector_size = input.pick(&[512, 512, 4096]);
    let sector = u64::from(create.logical_sector_size);
    create.size = (1 + u64::from(input.u16()) % 6000) * 512 / sector * sector + sector;
    create.block_size = MIB as u32 * input.pick(&[1, 1, 2]);
    create.open = options(&fs);
    let leaf = path("base.vhdx");
    ops::create(&leaf, &create).unwrap();
    let mut world = World {
        fs,
        chain: None,
        layers: vec![vec![0; create.size as usize]],
        fixed,
        leaf,
        next: 0,
        buffer: RefCell::default(),
    };
    world.open();
    for _ in 0..24 {
        if input.more() {
            world.apply(&mut input);
        }
    }
    world.check();
    world.chain.take().unwrap().close().unwrap();
    world.open();
    world.compare();
    for layer in 0..world.layers.len() {
        world.compare_layer(layer);
    }
    world.check();
}
