//! Creating, writing, discarding, flushing, replaying, checkpoints and merges: all that was flushed is there, every other
//! sector is wholly old or wholly new, and a merge can be resumed or made again.

use std::path::{Path, PathBuf};

use avhdx::format::header::{self, Header};
use avhdx::ops;
use avhdx::options::{CheckpointOptions, CreateOptions, DiskType, MergeMode, MergeOptions, OpenOptions, ZeroFlags};
use avhdx::storage::crash::CrashFileSystem;
use avhdx::storage::{Access, Barrier, FileSystem, MemoryFileSystem};
use avhdx::Chain;

use crate::harness::{
    self, check, fail, is_needed, is_whole, last_mark, options, path, pattern, survives, usual, Forget, Story, MIB,
    SECTOR,
};

/// What a change may make of a sector.
enum Change {
    Data {
        at: usize,
        bytes: Vec<u8>,
    },
    /// Zero, or as before.
    Discard {
        at: usize,
        len: usize,
    },
}

/// What the disk may read as after a cut.
struct History {
    fs: CrashFileSystem,
    initial: Vec<u8>,
    changes: Vec<Change>,
    /// Paths of which the first that exists is the disk.
    leaves: Vec<PathBuf>,
    /// The parts of the disk that are looked at, by virtual offset; `initial` is their content, one after the other.
    windows: Vec<(u64, usize)>,
    /// Other disks that share files with this one, and what they read as.
    others: Vec<(PathBuf, Vec<u8>)>,
    /// Run again after a cut, to finish what was cut.
    resume: Option<(PathBuf, Option<PathBuf>, MergeMode)>,
    /// How many files there are when that is done.
    files_left: usize,
}

const STARTED: u64 = 1 << 32;
const DURABLE: u64 = 2 << 32;

fn create(fs: &MemoryFileSystem, name: &str, kind: DiskType, size: u64) {
    let mut create = CreateOptions::default();
    create.disk_type = kind;
    create.size = size;
    create.block_size = MIB as u32;
    create.open = options(fs);
    ops::create(&path(name), &create).unwrap();
}

impl History {
    fn new(initial: &MemoryFileSystem, content: Vec<u8>, leaves: &[&str]) -> Self {
        History {
            fs: CrashFileSystem::new(initial),
            windows: vec![(0, content.len())],
            initial: content,
            changes: Vec::new(),
            others: Vec::new(),
            leaves: leaves.iter().map(|l| path(l)).collect(),
            resume: None,
            files_left: 0,
        }
    }

    fn open(&self, name: &str) -> Chain {
        Chain::open(&path(name), &options(&self.fs)).unwrap()
    }

    /// Where a virtual offset is in the windows.
    fn place(&self, at: u64) -> usize {
        let mut before = 0;
        for &(start, len) in &self.windows {
            if at >= start && at < start + len as u64 {
                return before + (at - start) as usize;
            }
            before += len;
        }
        panic!("{at:#x} is in no window");
    }

    fn start(&mut self, change: Change) {
        self.changes.push(change);
        self.fs.mark(STARTED | self.changes.len() as u64);
    }

    fn write(&mut self, chain: &Chain, at: u64, bytes: Vec<u8>) {
        self.start(Change::Data {
            at: self.place(at),
            bytes: bytes.clone(),
        });
        chain.write(&bytes, at, false).unwrap();
    }

    fn zero(&mut self, chain: &Chain, at: u64, len: u64) {
        self.start(Change::Data {
            at: self.place(at),
            bytes: vec![0; len as usize],
        });
        let flags = ZeroFlags {
            may_unmap: true,
            ..ZeroFlags::default()
        };
        chain.zero(at, len, flags).unwrap();
    }

    fn discard(&mut self, chain: &Chain, at: u64, len: u64) {
        self.start(Change::Discard {
            at: self.place(at),
            len: len as usize,
        });
        chain.discard(at, len, false).unwrap();
    }

    /// Everything so far is promised.
    fn promise(&self) {
        self.fs.mark(DURABLE | self.changes.len() as u64);
    }

    fn flush(&self, chain: &Chain) {
        chain.flush().unwrap();
        self.promise();
    }

    fn close(&self, chain: Chain) {
        chain.close().unwrap();
        self.promise();
    }

    /// Whether `found` is possible when the first `durable` changes were promised and `started` were begun.
    fn judge(&self, found: &[u8], durable: usize, started: usize) -> Result<(), String> {
        if found.len() != self.initial.len() {
            return Err(format!("the disk has {} bytes", found.len()));
        }
        for at in (0..found.len()).step_by(SECTOR) {
            let end = at + SECTOR;
            let sector = &found[at..end];
            // Walk the changes: which contents are possible after each?
            let mut possible: Vec<&[u8]> = vec![&self.initial[at..end]];
            const ZERO: [u8; SECTOR] = [0; SECTOR];
            for (i, change) in self.changes[..started].iter().enumerate() {
                match change {
                    Change::Data { at: start, bytes } if at >= *start && end <= start + bytes.len() => {
                        if i < durable {
                            possible.clear();
                        }
                        possible.push(&bytes[at - start..end - start]);
                    }
                    Change::Discard { at: start, len } if at >= *start && end <= start + len => possible.push(&ZERO),
                    _ => {}
                }
            }
            if !possible.contains(&sector) {
                let was: Vec<u8> = possible.iter().map(|p| p[0]).collect();
                return Err(format!(
                    "sector at {at:#x} reads as {:#x}.., possible {was:x?} ({durable} durable, {started} started)",
                    sector[0]
                ));
            }
        }
        Ok(())
    }

    /// Finishes what was cut, as the file at `leaf` tells it: all of it, or nothing of it, is then done, and no file is
    /// left that no disk needs.
    fn resume(
        &self,
        leaf: &Path,
        fs: &MemoryFileSystem,
        open: &OpenOptions,
        mode: MergeMode,
    ) -> Result<PathBuf, String> {
        let mut options = MergeOptions::default();
        options.mode = mode;
        let pending = ops::pending(leaf, open).map_err(|e| fail("pending", e))?;
        let resumed = ops::resume(leaf, open, &options, &mut |_| true).map_err(|e| fail("resume", e))?;
        if pending.is_some() != resumed.is_some() {
            return Err(format!("pending {pending:?}, resumed {resumed:?}"));
        }
        let leaf = self
            .leaves
            .iter()
            .find(|l| fs.paths().contains(l))
            .ok_or("no leaf after resuming")?;
        if let Some(pending) = ops::pending(leaf, open).map_err(|e| fail("pending", e))? {
            return Err(format!("still pending: {pending:?}"));
        }
        let mut used = Vec::new();
        let mut read_only = open.clone();
        read_only.read_only = true;
        for leaf in self.others.iter().map(|(path, _)| path).chain([leaf]) {
            let chain = Chain::open(leaf, &read_only).map_err(|e| fail("open", e))?;
            used.extend((0..chain.layer_count()).map(|layer| chain.layer_path(layer).unwrap()));
        }
        let mut left = fs.paths();
        left.retain(|path| is_whole(path));
        if resumed.is_some() && left.len() != self.files_left {
            return Err(format!("resumed in part: {left:?}"));
        }
        match left.into_iter().find(|path| !used.contains(path)) {
            Some(path) => Err(format!("{path:?} is left behind")),
            None => Ok(leaf.clone()),
        }
    }

    fn leaf(&self, paths: &[PathBuf]) -> Result<&PathBuf, String> {
        let found = self.leaves.iter().find(|l| paths.contains(l));
        found.ok_or_else(|| "no leaf is left".into())
    }

    fn judge_state(&self, fs: &MemoryFileSystem, marks: &[u64], thorough: bool) -> Result<(), String> {
        let (durable, started) = (last_mark(marks, DURABLE), last_mark(marks, STARTED));
        let mut open = options(fs);
        open.lock = false;
        let paths = fs.paths();
        let leaf = self.leaf(&paths)?;
        for file in paths.iter().filter(|p| is_whole(p)) {
            check(file, &open)?;
        }
        let read = |options: &OpenOptions, leaf: &Path| -> Result<(), String> {
            let chain = Chain::open(leaf, options).map_err(|e| fail("open", e))?;
            let mut found = vec![0xEE; self.initial.len()];
            let mut rest = &mut found[..];
            for &(at, len) in &self.windows {
                let (window, later) = rest.split_at_mut(len);
                chain.read(window, at).map_err(|e| fail("read", e))?;
                rest = later;
            }
            self.judge(&found, durable, started)?;
            drop(chain);
            Ok(())
        };
        let mut read_only = open.clone();
        read_only.read_only = true;
        if thorough {
            read(&read_only, leaf)?;
        }
        // Replays.
        read(&open, leaf)?;
        for (other, content) in &self.others {
            let chain = Chain::open(other, &read_only).map_err(|e| fail("open another", e))?;
            let mut found = vec![0xEE; content.len()];
            chain.read(&mut found, 0).map_err(|e| fail("read another", e))?;
            if found != *content {
                return Err(format!("{other:?} reads differently"));
            }
        }
        if !thorough {
            return Ok(());
        }
        for file in paths.iter().filter(|p| is_whole(p)) {
            check(file, &open)?;
        }
        let mut leaf = leaf.clone();
        if let Some((top, ..)) = self.resume.as_ref().filter(|(top, ..)| !paths.contains(top)) {
            // It was the way to the others.
            let left = paths.iter().filter(|p| is_whole(p)).count();
            if left != self.files_left {
                return Err(format!("{top:?} is gone and others are left behind: {paths:?}"));
            }
        }
        if let Some((top, into, mode)) = &self.resume {
            if paths.contains(top) && into.as_ref().is_none_or(|into| paths.contains(into)) {
                let again = fs.snapshot();
                let mut on = harness::options(&again);
                on.lock = false;
                let resumed = self.resume(&leaf, &again, &on, *mode)?;
                read(&on, &resumed)?;
                let mut options = MergeOptions::default();
                options.mode = *mode;
                match ops::merge_path(top, into.as_deref(), &open, &options, &mut |_| true) {
                    Ok(_) => {}
                    Err(e) => return Err(fail("merge again", e)),
                }
                leaf = self
                    .leaves
                    .iter()
                    .find(|l| fs.paths().contains(l))
                    .ok_or("no leaf after merging again")?
                    .clone();
                read(&open, &leaf)?;
            }
        }
        // Life goes on.
        let chain = Chain::open(&leaf, &open).map_err(|e| fail("open again", e))?;
        let bytes = pattern(0x40, 3 * SECTOR);
        for at in [0, MIB + 512, chain.size() - 3 * SECTOR as u64] {
            chain.write(&bytes, at, true).map_err(|e| fail("write", e))?;
        }
        chain.close().map_err(|e| fail("close", e))?;
        for file in fs.paths().iter().filter(|p| is_whole(p)) {
            check(file, &open)?;
        }
        Ok(())
    }
}

impl Story for History {
    fn fs(&self) -> &CrashFileSystem {
        &self.fs
    }

    fn verify(&self, state: &MemoryFileSystem, marks: &[u64], thorough: bool) -> Result<(), String> {
        self.judge_state(state, marks, thorough)
    }

    fn recover(&self, on: &OpenOptions, _: &[u64]) -> Result<(), String> {
        let there: Vec<PathBuf> = self
            .leaves
            .iter()
            .filter(|leaf| on.file_system.kind(leaf).is_ok())
            .cloned()
            .collect();
        let leaf = self.leaf(&there)?;
        if let Some((_, _, mode)) = &self.resume {
            let mut options = MergeOptions::default();
            options.mode = *mode;
            ops::resume(leaf, on, &options, &mut |_| true).map_err(|e| fail("resume", e))?;
        }
        let left = self.leaves.iter().find(|leaf| on.file_system.kind(leaf).is_ok());
        let chain = Chain::open(left.ok_or("no leaf after resuming")?, on).map_err(|e| fail("open", e))?;
        chain.close().map_err(|e| fail("close", e))
    }
}

/// A base with something in it and, above it, `names`, each with something of its own. The content of the whole.
fn chain_of(fs: &MemoryFileSystem, size: u64, names: &[&str]) -> Vec<u8> {
    create(fs, "base.vhdx", DiskType::Dynamic, size);
    let mut content = vec![0; size as usize];
    let mut put = |chain: &Chain, at: u64, bytes: &[u8]| {
        chain.write(bytes, at, false).unwrap();
        content[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    };
    let chain = Chain::open(&path("base.vhdx"), &options(fs)).unwrap();
    put(&chain, 0, &pattern(0x10, 2 * MIB as usize));
    put(&chain, 3 * MIB, &pattern(0x20, 8192));
    for (i, name) in names.iter().enumerate() {
        let mut checkpoint = CheckpointOptions::default();
        checkpoint.block_size = MIB as u32;
        ops::checkpoint(&chain, &path(name), &checkpoint).unwrap();
        let seed = 0x30 + 0x10 * i as u8;
        put(&chain, i as u64 * 4096, &pattern(seed, 4096));
        put(&chain, MIB + i as u64 * 8192, &pattern(seed + 1, 4096));
        if i % 2 == 0 {
            put(&chain, 2 * MIB, &pattern(seed + 2, MIB as usize));
        }
    }
    chain.close().unwrap();
    content
}

fn allocating(kind: DiskType, differencing: bool) -> History {
    let fs = MemoryFileSystem::new();
    let size = 5 * MIB + 512;
    let (content, leaf) = match differencing {
        true => (chain_of(&fs, size, &["a.avhdx"]), "a.avhdx"),
        false => {
            create(&fs, "base.vhdx", kind, size);
            (vec![0; size as usize], "base.vhdx")
        }
    };
    allocate(&fs, content, leaf)
}

/// A file whose header has no log, as others may leave it: its first commit makes one.
fn without_log() -> History {
    let fs = MemoryFileSystem::new();
    create(&fs, "base.vhdx", DiskType::Dynamic, 5 * MIB + 512);
    let file = fs.open(&path("base.vhdx"), Access::Write).unwrap();
    for at in header::OFFSETS {
        let mut copy = vec![0; header::SIZE];
        file.read_at(&mut copy, at).unwrap();
        let mut found = Header::parse(&copy).unwrap();
        (found.log_offset, found.log_length) = (0, 0);
        file.write_at(&found.encode(), at).unwrap();
    }
    allocate(&fs, vec![0; 5 * MIB as usize + 512], "base.vhdx")
}

fn allocate(fs: &MemoryFileSystem, content: Vec<u8>, leaf: &str) -> History {
    let mut history = History::new(fs, content, &[leaf]);
    let chain = history.open(leaf);
    history.write(&chain, 4096, pattern(1, 8192));
    history.write(&chain, 3 * MIB - 4096, pattern(2, 8192));
    history.flush(&chain);
    // In place, then more of a block that is there in part.
    history.write(&chain, 4096, pattern(3, 4096));
    history.write(&chain, 3 * MIB + 65536, pattern(4, 4096));
    history.flush(&chain);
    history.write(&chain, 6144, pattern(5, 512));
    history.flush(&chain);
    history.write(&chain, 4 * MIB, pattern(6, MIB as usize));
    history.write(&chain, 5 * MIB, pattern(7, 512));
    history.close(chain);
    // Another session, whose headers follow directly on the last ones.
    let chain = history.open(leaf);
    history.write(&chain, 2 * MIB, pattern(8, 4096));
    history.flush(&chain);
    history.close(chain);
    history
}

fn discard_and_reuse(differencing: bool) -> History {
    let fs = MemoryFileSystem::new();
    let size = 4 * MIB;
    let (content, leaf) = match differencing {
        true => (chain_of(&fs, size, &["a.avhdx"]), "a.avhdx"),
        false => (chain_of(&fs, size, &[]), "base.vhdx"),
    };
    let mut history = History::new(&fs, content, &[leaf]);
    let chain = history.open(leaf);
    for round in 0..3u8 {
        history.write(&chain, 0, pattern(0x50 + round, MIB as usize));
        history.flush(&chain);
        history.discard(&chain, 0, MIB);
        history.flush(&chain);
        // Takes the space just given up.
        history.write(&chain, 3 * MIB + 4096, pattern(0x60 + round, 8192));
        history.zero(&chain, 2 * MIB, MIB);
        history.flush(&chain);
        history.write(&chain, 2 * MIB + 512, pattern(0x70 + round, 1024));
        history.zero(&chain, 3 * MIB, MIB);
        history.flush(&chain);
    }
    history.close(chain);
    history
}

/// Enough commits that the ring wraps and old entries are retired.
fn log_wrap() -> History {
    let fs = MemoryFileSystem::new();
    let content = chain_of(&fs, 4 * MIB, &["a.avhdx"]);
    let mut history = History::new(&fs, content, &["a.avhdx"]);
    let chain = history.open("a.avhdx");
    for round in 0..150u64 {
        history.write(&chain, 3 * MIB + round * 1024, pattern(round as u8, 512));
        history.flush(&chain);
    }
    history.close(chain);
    history
}

/// Recovery is itself cut.
fn replay() -> History {
    let fs = MemoryFileSystem::new();
    let mut content = chain_of(&fs, 4 * MIB, &["a.avhdx"]);
    {
        let chain = Chain::open(&path("a.avhdx"), &options(&fs)).unwrap();
        for i in 0..4 {
            let at = 3 * MIB + i * 8192;
            let bytes = pattern(0x90 + i as u8, 4096);
            chain.write(&bytes, at, true).unwrap();
            content[at as usize..at as usize + 4096].copy_from_slice(&bytes);
        }
        // Dropped: the log stays dirty.
    }
    let mut history = History::new(&fs, content, &["a.avhdx"]);
    let chain = history.open("a.avhdx");
    history.write(&chain, 0, pattern(0xA0, 4096));
    history.flush(&chain);
    history.close(chain);
    history
}

fn checkpoint() -> History {
    let fs = MemoryFileSystem::new();
    let content = chain_of(&fs, 4 * MIB, &["a.avhdx"]);
    let mut history = History::new(&fs, content, &["b.avhdx", "a.avhdx"]);
    let chain = history.open("a.avhdx");
    history.write(&chain, 3 * MIB, pattern(1, 8192));
    let mut options = CheckpointOptions::default();
    options.block_size = 2 * MIB as u32;
    ops::checkpoint(&chain, &path("b.avhdx"), &options).unwrap();
    history.promise();
    history.write(&chain, 3 * MIB + 4096, pattern(2, 8192));
    history.write(&chain, 512, pattern(3, 512));
    history.flush(&chain);
    history.close(chain);
    history
}

fn merge(layers: &[&str], top: usize, base: usize, mode: MergeMode) -> History {
    let fs = MemoryFileSystem::new();
    let content = chain_of(&fs, 4 * MIB, layers);
    let newest = layers[layers.len() - 1];
    let mut names: Vec<&str> = layers.iter().rev().copied().collect();
    names.push("base.vhdx");
    let mut history = History::new(&fs, content, &[newest, names[base]]);
    history.resume = Some((path(names[top]), Some(path(names[base])), mode));
    history.files_left = names.len() - (base - top);
    if top > 0 {
        history.leaves.truncate(1);
    }
    let mut open = options(&history.fs);
    open.lock = true;
    let chain = Chain::open(&path(newest), &open).unwrap();
    if top == 0 {
        history.write(&chain, 3 * MIB, pattern(0xB0, 4096));
        // Hides what the lowest child holds.
        history.write(&chain, 2 * MIB, pattern(0xB1, 8192));
        history.flush(&chain);
    }
    let mut merge = MergeOptions::default();
    merge.mode = mode;
    ops::merge(&chain, top, base, &merge, &mut |_| true).unwrap();
    history.promise();
    history.write(&chain, 3 * MIB + 8192, pattern(0xC0, 4096));
    history.flush(&chain);
    history.close(chain);
    history
}

/// The child is so much larger than its parent that the merge moves the BAT.
fn merge_that_grows(parent: u64, child: u64) -> History {
    let fs = MemoryFileSystem::new();
    create(&fs, "base.vhdx", DiskType::Dynamic, parent);
    let open = options(&fs);
    let chain = Chain::open(&path("base.vhdx"), &open).unwrap();
    chain.write(&pattern(0x10, 2 * MIB as usize), 0, true).unwrap();
    chain.write(&pattern(0x20, 4096), parent - 4096, true).unwrap();
    chain.close().unwrap();
    let mut create = CreateOptions::default();
    create.disk_type = DiskType::Differencing;
    create.parent = Some(path("base.vhdx"));
    create.size = child;
    create.block_size = MIB as u32;
    create.open = open.clone();
    ops::create(&path("a.avhdx"), &create).unwrap();
    let mut content = pattern(0x10, 2 * MIB as usize);
    content.extend(pattern(0x20, 4096));
    content.resize(content.len() + 65536 + MIB as usize, 0);
    let mut history = History::new(&fs, content, &["a.avhdx", "base.vhdx"]);
    history.windows = vec![
        (0, 2 * MIB as usize),
        (parent - 4096, 4096 + 65536),
        (child - MIB, MIB as usize),
    ];
    history.resume = Some((path("a.avhdx"), None, MergeMode::Copy));
    history.files_left = 1;
    let chain = history.open("a.avhdx");
    history.write(&chain, child - 65536, pattern(0x33, 4096));
    history.write(&chain, MIB, pattern(0x34, 4096));
    let mut merge = MergeOptions::default();
    merge.mode = MergeMode::Copy;
    ops::merge(&chain, 0, 1, &merge, &mut |_| true).unwrap();
    history.promise();
    history.close(chain);
    history
}

/// The merged layer has a child besides the one in the chain.
fn merge_with_two_children() -> History {
    let fs = MemoryFileSystem::new();
    let content = chain_of(&fs, 4 * MIB, &["a.avhdx", "b.avhdx"]);
    let open = options(&fs);
    let mut create = CreateOptions::default();
    create.disk_type = DiskType::Differencing;
    create.parent = Some(path("a.avhdx"));
    create.open = open.clone();
    ops::create(&path("other.avhdx"), &create).unwrap();
    let chain = Chain::open(&path("other.avhdx"), &open).unwrap();
    chain.write(&pattern(0x77, 4096), 3 * MIB + 65536, true).unwrap();
    let mut other = vec![0; 4 * MIB as usize];
    chain.read(&mut other, 0).unwrap();
    chain.close().unwrap();
    let mut history = History::new(&fs, content, &["b.avhdx"]);
    history.others = vec![(path("other.avhdx"), other)];
    history.resume = Some((path("a.avhdx"), None, MergeMode::Copy));
    history.files_left = 3;
    let chain = history.open("b.avhdx");
    let mut merge = MergeOptions::default();
    merge.mode = MergeMode::Copy;
    ops::merge(&chain, 1, 2, &merge, &mut |_| true).unwrap();
    history.promise();
    history.write(&chain, 0, pattern(0x78, 4096));
    history.flush(&chain);
    history.close(chain);
    history
}

type Run = fn() -> History;

const RUNS: &[(&str, Run)] = &[
    ("allocating writes, dynamic", || allocating(DiskType::Dynamic, false)),
    ("allocating writes, fixed", || allocating(DiskType::Fixed, false)),
    ("allocating writes, differencing", || {
        allocating(DiskType::Dynamic, true)
    }),
    ("allocating writes, no log", without_log),
    ("discard and reuse, dynamic", || discard_and_reuse(false)),
    ("discard and reuse, differencing", || discard_and_reuse(true)),
    ("log wrap", log_wrap),
    ("replay", replay),
    ("checkpoint", checkpoint),
    ("merge leaf, copy", || {
        merge(&["a.avhdx", "b.avhdx"], 0, 1, MergeMode::Copy)
    }),
    ("merge leaf into base, copy", || {
        merge(&["a.avhdx", "b.avhdx"], 0, 2, MergeMode::Copy)
    }),
    ("merge middle, copy", || {
        merge(&["a.avhdx", "b.avhdx", "c.avhdx"], 1, 2, MergeMode::Copy)
    }),
    ("merge middle two, copy", || {
        merge(&["a.avhdx", "b.avhdx", "c.avhdx"], 1, 3, MergeMode::Copy)
    }),
    ("merge leaf, consume", || {
        merge(&["a.avhdx", "b.avhdx"], 0, 1, MergeMode::Consume)
    }),
    ("merge leaf into base, consume", || {
        merge(&["a.avhdx", "b.avhdx"], 0, 2, MergeMode::Consume)
    }),
    ("merge middle two, consume", || {
        merge(&["a.avhdx", "b.avhdx", "c.avhdx"], 1, 3, MergeMode::Consume)
    }),
    ("merge that grows", || merge_that_grows(3 * MIB + 4096, 5 * MIB)),
    ("merge that moves the BAT", || {
        merge_that_grows((100 << 30) + 512 * 9, 129 << 30)
    }),
    ("merge with two children", merge_with_two_children),
];

pub fn scenarios() -> Vec<harness::Scenario> {
    let scenario = |&(name, run): &(&'static str, Run)| harness::Scenario {
        operation: "core",
        name: name.into(),
        run: Box::new(move || Box::new(run())),
        times: 1,
        thorough: 5,
    };
    RUNS.iter().map(scenario).collect()
}

#[test]
fn every_power_cut_leaves_a_good_disk() {
    survives(&scenarios(), "core", usual(), 20_000);
}

#[test]
fn without_any_one_barrier_a_power_cut_does_harm() {
    for &barrier in Barrier::ALL {
        is_needed(&scenarios(), "core", Forget::Barrier(barrier));
    }
}
