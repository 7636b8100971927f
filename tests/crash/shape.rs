//! Compact, resize and changes of metadata items. A state has a size and items that were the disk's own at some moment
//! since the last promise, and holds in each sector what was there at such a moment.

use std::cell::RefCell;
use std::path::PathBuf;

use avhdx::ops;
use avhdx::options::{CheckpointOptions, CompactMode, CompactOptions, DiskType, OpenOptions, ResizeOptions};
use avhdx::storage::crash::CrashFileSystem;
use avhdx::storage::{Barrier, MemoryFileSystem};
use avhdx::{Chain, Error, Guid};

use crate::disks::create;
use crate::harness::{
    self, check, fail, is_needed, last_mark, options, path, survives, usual, Forget, Story, MIB, SECTOR,
};

const STARTED: u64 = 1 << 32;
const DURABLE: u64 = 2 << 32;

/// What a disk is at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Stage {
    size: u64,
    /// Of the windows, one after the other; what is behind the disk as zeros.
    content: Vec<u8>,
    /// Users' items by id, physical sector size, disk identity.
    items: (Vec<(String, Vec<u8>)>, u32, Guid),
}

struct History {
    fs: CrashFileSystem,
    leaf: PathBuf,
    windows: Vec<(u64, u64)>,
    stages: Vec<Stage>,
    chain: Option<Chain>,
    /// Room for what a state has: thousands of them have megabytes.
    found: RefCell<Stage>,
}

fn look(chain: &Chain, windows: &[(u64, u64)]) -> Result<Stage, Error> {
    let mut stage = Stage::default();
    look_again(chain, windows, &mut stage)?;
    Ok(stage)
}

/// The same into a stage that has room for it: thousands of states have megabytes of content.
fn look_again(chain: &Chain, windows: &[(u64, u64)], stage: &mut Stage) -> Result<(), Error> {
    let size = chain.size();
    let total: u64 = windows.iter().map(|(_, len)| len).sum();
    stage.content.resize(total as usize, 0);
    let mut rest = &mut stage.content[..];
    for &(at, len) in windows {
        let (window, later) = rest.split_at_mut(len as usize);
        let (inside, behind) = window.split_at_mut(size.saturating_sub(at).min(len) as usize);
        chain.read(inside, at.min(size))?;
        behind.fill(0);
        rest = later;
    }
    let mut items = Vec::new();
    for item in ops::meta_list(chain)? {
        items.push((item.id.to_string(), ops::meta_get(chain, item.id)?));
    }
    items.sort();
    let info = chain.layer_info(0)?;
    stage.size = size;
    stage.items = (items, info.physical_sector_size, info.virtual_disk_id);
    Ok(())
}

impl History {
    fn new(initial: &MemoryFileSystem, leaf: &str, windows: &[(u64, u64)]) -> Self {
        let fs = CrashFileSystem::new(initial);
        let chain = Chain::open(&path(leaf), &options(&fs)).unwrap();
        History {
            stages: vec![look(&chain, windows).unwrap()],
            fs,
            leaf: path(leaf),
            windows: windows.to_vec(),
            chain: Some(chain),
            found: RefCell::default(),
        }
    }

    /// One change; all of it is promised when it returns.
    fn step(&mut self, change: impl FnOnce(&Chain)) {
        self.fs.mark(STARTED | self.stages.len() as u64);
        let chain = self.chain.as_ref().unwrap();
        change(chain);
        self.fs.mark(DURABLE | self.stages.len() as u64);
        self.stages.push(look(chain, &self.windows).unwrap());
    }

    fn write(&mut self, at: u64, seed: u8, len: u64) {
        self.step(|chain| chain.write(&pattern(seed, len), at, true).unwrap());
    }

    fn resize(&mut self, size: u64) {
        let mut resize = ResizeOptions::default();
        resize.allow_loss = true;
        self.step(|chain| ops::resize(chain, size, &resize).unwrap());
    }

    fn compact(&mut self, mode: CompactMode) -> ops::CompactReport {
        let mut compact = CompactOptions::default();
        compact.mode = mode;
        let mut report = None;
        self.step(|chain| report = Some(ops::compact(chain, &compact, &mut |_| true).unwrap()));
        report.unwrap()
    }

    fn close(mut self) -> Self {
        self.chain.take().unwrap().close().unwrap();
        self
    }

    fn judge(&self, found: &Stage, allowed: &[Stage]) -> Result<(), String> {
        if !allowed.iter().any(|stage| stage.size == found.size) {
            return Err(format!("the disk has {} bytes", found.size));
        }
        if !allowed.iter().any(|stage| stage.items == found.items) {
            return Err("the items were never so".into());
        }
        let known = |at: usize, len: usize| {
            let range = at..(at + len).min(found.content.len());
            let found = &found.content[range.clone()];
            allowed.iter().rev().any(|stage| stage.content[range.clone()] == *found)
        };
        const MANY: usize = 128 * SECTOR;
        let sectors = |at: usize| (at..(at + MANY).min(found.content.len())).step_by(SECTOR);
        for many in (0..found.content.len()).step_by(MANY).filter(|&at| !known(at, MANY)) {
            if let Some(at) = sectors(many).find(|&at| !known(at, SECTOR)) {
                return Err(format!("sector at {at:#x} of the windows: {:#x}..", found.content[at]));
            }
        }
        Ok(())
    }
}

impl Story for History {
    fn fs(&self) -> &CrashFileSystem {
        &self.fs
    }

    fn recover(&self, on: &OpenOptions, _: &[u64]) -> Result<(), String> {
        let chain = Chain::open(&self.leaf, on).map_err(|e| fail("open", e))?;
        chain.close().map_err(|e| fail("close", e))
    }

    fn verify(&self, state: &MemoryFileSystem, marks: &[u64], thorough: bool) -> Result<(), String> {
        let allowed = &self.stages[last_mark(marks, DURABLE)..=last_mark(marks, STARTED)];
        let found = &mut *self.found.borrow_mut();
        let mut open: OpenOptions = options(state);
        open.lock = false;
        for file in state.paths() {
            check(&file, &open)?;
        }
        let chain = Chain::open(&self.leaf, &open).map_err(|e| fail("open", e))?;
        look_again(&chain, &self.windows, found).map_err(|e| fail("look", e))?;
        self.judge(found, allowed)?;
        if !thorough {
            return Ok(());
        }
        // Life goes on, and what was cut can be done again.
        let mut resize = ResizeOptions::default();
        resize.allow_loss = true;
        chain
            .write(&pattern(0x40, 4096), 0, true)
            .map_err(|e| fail("write", e))?;
        let fixed = chain.layer_info(0).unwrap().disk_type == DiskType::Fixed;
        if !fixed {
            ops::compact(&chain, &CompactOptions::default(), &mut |_| true).map_err(|e| fail("compact", e))?;
        }
        ops::resize(&chain, found.size + MIB, &resize).map_err(|e| fail("grow", e))?;
        let mut now = look(&chain, &self.windows).map_err(|e| fail("look again", e))?;
        now.size = found.size;
        let skip = 4096;
        if now.content[skip..] != found.content[skip..] || now.items != found.items {
            return Err("compacting and growing changed it".into());
        }
        let mut gained = vec![1; MIB as usize];
        chain.read(&mut gained, found.size).map_err(|e| fail("read", e))?;
        if gained.iter().any(|&byte| byte != 0) {
            return Err("growing showed something".into());
        }
        chain.close().map_err(|e| fail("close", e))?;
        for file in state.paths() {
            check(&file, &open)?;
        }
        Ok(())
    }
}

fn pattern(seed: u8, len: u64) -> Vec<u8> {
    harness::pattern(seed, len as usize)
}

/// A disk, or a child of one, with data at its beginning and end, a hole and a block of zeros.
fn prepared(kind: DiskType, child: bool, size: u64) -> (MemoryFileSystem, &'static str) {
    let fs = MemoryFileSystem::new();
    let open = options(&fs);
    create(&open, "base.vhdx", kind, size, 1, None);
    let chain = Chain::open(&path("base.vhdx"), &open).unwrap();
    let last = size - 4096;
    chain.write(&pattern(0x10, 2 * MIB), 0, true).unwrap();
    if child {
        let mut checkpoint = CheckpointOptions::default();
        checkpoint.block_size = MIB as u32;
        ops::checkpoint(&chain, &path("a.avhdx"), &checkpoint).unwrap();
    }
    chain.write(&vec![0; MIB as usize], MIB, true).unwrap();
    chain.write(&pattern(0x30, MIB), 2 * MIB, true).unwrap();
    chain.write(&pattern(0x35, 4096), 8192, true).unwrap();
    chain.write(&pattern(0x50, 4096), last, true).unwrap();
    chain.write(&pattern(0x70, 8192), 3 * MIB, true).unwrap();
    chain.discard(2 * MIB, MIB, true).unwrap();
    chain.close().unwrap();
    (fs, if child { "a.avhdx" } else { "base.vhdx" })
}

fn compact(child: bool, mode: CompactMode) -> History {
    let size = 5 * MIB + 512;
    let (fs, leaf) = prepared(DiskType::Dynamic, child, size);
    let mut history = History::new(&fs, leaf, &[(0, size)]);
    let report = history.compact(mode);
    match mode {
        CompactMode::Full => assert!(report.moved_blocks > 0 && report.zero_blocks > 0, "{report:?}"),
        _ => assert!(report.size_after <= report.size_before),
    }
    // Takes the places given up.
    history.write(MIB + 4096, 0x90, 8192);
    history.write(2 * MIB, 0xA0, MIB);
    history.step(|chain| chain.discard(0, MIB, true).unwrap());
    history.compact(mode);
    history.write(0, 0xB0, MIB);
    history.close()
}

/// The bitmap lies behind a block that goes, and follows; in the end nobody needs it.
fn compact_bitmaps() -> History {
    let fs = MemoryFileSystem::new();
    let open = options(&fs);
    create(&open, "base.vhdx", DiskType::Dynamic, 4 * MIB, 1, None);
    create(&open, "a.avhdx", DiskType::Differencing, 4 * MIB, 1, Some("base.vhdx"));
    let chain = Chain::open(&path("a.avhdx"), &open).unwrap();
    chain.write(&pattern(0x10, MIB), 0, true).unwrap();
    chain.write(&pattern(0x20, MIB), MIB, true).unwrap();
    chain.write(&pattern(0x30, 4096), 2 * MIB, true).unwrap();
    chain.discard(0, 2 * MIB, true).unwrap();
    chain.close().unwrap();
    let mut history = History::new(&fs, "a.avhdx", &[(0, 4 * MIB)]);
    assert!(history.compact(CompactMode::Quick).moved_blocks > 0);
    history.write(2 * MIB + 65536, 0x31, 4096);
    history.write(0, 0x32, 4096);
    history.write(2 * MIB, 0x33, MIB);
    history.write(0, 0x34, MIB);
    assert_eq!(history.compact(CompactMode::Full).released_bitmaps, 1);
    history.write(3 * MIB, 0x36, 4096);
    history.close()
}

fn resize(kind: DiskType, child: bool, sizes: &[u64]) -> History {
    let size = 5 * MIB + 512;
    let (fs, leaf) = prepared(kind, child, size);
    let mut history = History::new(&fs, leaf, &[(0, 9 * MIB)]);
    for (i, &size) in sizes.iter().enumerate() {
        history.resize(size);
        history.write(size - 4096, 0xA0 + i as u8 * 16, 4096);
        history.write(MIB / 2, 0xA8 + i as u8 * 16, 4096);
    }
    history.close()
}

/// The BAT needs a larger region.
fn resize_that_moves_the_bat() -> History {
    let (small, large) = ((100 << 30) + 512 * 9, 129 << 30);
    let (fs, leaf) = prepared(DiskType::Dynamic, true, small);
    let mut history = History::new(&fs, leaf, &[(0, 4 * MIB), (small - 4096, 65536), (large - MIB, MIB)]);
    history.resize(large);
    history.write(large - 65536, 0xA0, 4096);
    history.write(MIB, 0xB0, MIB);
    history.resize(small);
    history.write(4096, 0xC0, 4096);
    history.close()
}

fn metadata(child: bool) -> History {
    let size = 4 * MIB;
    let (fs, leaf) = prepared(DiskType::Dynamic, child, size);
    let mut history = History::new(&fs, leaf, &[(0, size)]);
    let (one, two) = (Guid::from_u128(1), Guid::from_u128(2));
    history.step(|chain| ops::meta_set(chain, one, &pattern(1, 9000), false).unwrap());
    history.step(|chain| ops::meta_set(chain, two, &pattern(2, 100), true).unwrap());
    history.step(|chain| ops::meta_set(chain, one, &pattern(3, 5000), false).unwrap());
    history.step(|chain| ops::set_physical_sector_size(chain, 512).unwrap());
    // More than a log entry and the region have room for, with the log in use already.
    history.write(3 * MIB + 65536, 0x93, 4096);
    history.write(2 * MIB, 0x94, MIB);
    history.step(|chain| ops::meta_set(chain, two, &pattern(4, MIB), true).unwrap());
    history.write(MIB, 0x91, MIB);
    history.step(|chain| {
        ops::reset_disk_id(chain, None).unwrap();
    });
    history.step(|chain| ops::meta_delete(chain, one).unwrap());
    history.step(|chain| chain.discard(MIB, MIB, true).unwrap());
    history.step(|chain| ops::meta_set(chain, one, &pattern(5, 700_000), false).unwrap());
    history.step(|chain| ops::meta_delete(chain, two).unwrap());
    history.write(3 * MIB, 0x92, 4096);
    history.close()
}

type Run = fn() -> History;

const RUNS: &[(&str, &str, Run)] = &[
    ("compact", "dynamic, full", || compact(false, CompactMode::Full)),
    ("compact", "dynamic, quick", || compact(false, CompactMode::Quick)),
    ("compact", "differencing, full", || compact(true, CompactMode::Full)),
    ("compact", "differencing, prezeroed", || {
        compact(true, CompactMode::Prezeroed)
    }),
    ("compact", "bitmaps", compact_bitmaps),
    ("resize", "dynamic", || {
        resize(
            DiskType::Dynamic,
            false,
            &[8 * MIB, 2 * MIB + 4096, 7 * MIB, MIB, 9 * MIB],
        )
    }),
    ("resize", "differencing", || {
        resize(
            DiskType::Dynamic,
            true,
            &[2 * MIB + 4096, 8 * MIB, MIB, 9 * MIB, 3 * MIB + 8192],
        )
    }),
    ("resize", "fixed", || {
        resize(DiskType::Fixed, false, &[7 * MIB, 2 * MIB + 4096, 8 * MIB])
    }),
    ("resize", "BAT", resize_that_moves_the_bat),
    ("metadata", "dynamic", || metadata(false)),
    ("metadata", "differencing", || metadata(true)),
];

pub fn scenarios() -> Vec<harness::Scenario> {
    let scenario = |&(operation, name, run): &(&'static str, &'static str, Run)| harness::Scenario {
        operation,
        name: name.into(),
        run: Box::new(move || Box::new(run())),
        times: 1,
        thorough: 7,
    };
    RUNS.iter().map(scenario).collect()
}

/// Half of the usual: these disks are larger.
fn enumerate(operation: &str) {
    let mut strength = usual();
    strength.subsets /= 2;
    survives(&scenarios(), operation, strength, 2000);
}

#[test]
fn every_power_cut_in_compact_leaves_a_good_disk() {
    enumerate("compact");
}

#[test]
fn every_power_cut_in_resize_leaves_the_old_or_the_new_size() {
    enumerate("resize");
}

#[test]
fn every_power_cut_in_a_change_of_items_leaves_the_old_or_the_new_ones() {
    enumerate("metadata");
}

#[test]
fn without_a_barrier_a_power_cut_does_harm() {
    for operation in ["compact", "resize", "metadata"] {
        for barrier in [Barrier::BeforeLogEntry, Barrier::LogEntry, Barrier::BeforeLogClear] {
            is_needed(&scenarios(), operation, Forget::Barrier(barrier));
        }
    }
}
