//! Power cuts. Each scenario runs on storage that records; every state a cut may leave is then opened and must pass
//! `check`, hold all that was flushed, and show every other sector wholly old or wholly new. The last test takes each
//! barrier of docs/durability.md away in turn and wants the others to notice.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::format::locator::{self, Locator};
use avhdx::format::metadata;
use avhdx::ops::{self, CheckOptions, Severity};
use avhdx::options::{CheckpointOptions, CreateOptions, DiskType, MergeMode, MergeOptions, OpenOptions, ZeroFlags};
use avhdx::storage::crash::{CrashFileSystem, CrashOptions};
use avhdx::storage::{Barrier, MemoryFileSystem};
use avhdx::{Chain, Guid};

const MIB: u64 = 1 << 20;
const SECTOR: usize = 512;

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

fn options(fs: Arc<dyn avhdx::storage::FileSystem>) -> OpenOptions {
    OpenOptions::new().on(fs)
}

fn path(name: &str) -> PathBuf {
    Path::new("/vm").join(name)
}

fn create(fs: &MemoryFileSystem, name: &str, kind: DiskType, size: u64) {
    let mut create = CreateOptions::default();
    create.disk_type = kind;
    create.size = size;
    create.block_size = MIB as u32;
    create.open = options(Arc::new(fs.clone()));
    ops::create(&path(name), &create).unwrap();
}

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| seed.wrapping_add((i / SECTOR) as u8) | 1).collect()
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
        Chain::open(&path(name), &options(Arc::new(self.fs.clone()))).unwrap()
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
        let fail = |what: &str, e: avhdx::Error| format!("{what}: {}", e.chain_text());
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
        left.retain(|path| !path.to_string_lossy().ends_with(".tmp"));
        if resumed.is_some() && left.len() != self.files_left {
            return Err(format!("resumed in part: {left:?}"));
        }
        match left.into_iter().find(|path| !used.contains(path)) {
            Some(path) => Err(format!("{path:?} is left behind")),
            None => Ok(leaf.clone()),
        }
    }

    fn verify(&self, state: MemoryFileSystem, marks: &[u64], thorough: bool) -> Result<(), String> {
        let last = |kind: u64| {
            let of_kind = marks.iter().rev().find(|m| *m & !0xFFFF_FFFF == kind);
            of_kind.map_or(0, |m| (m & 0xFFFF_FFFF) as usize)
        };
        let (durable, started) = (last(DURABLE), last(STARTED));
        let fs = Arc::new(state);
        let mut open = options(fs.clone());
        open.lock = false;
        let paths = fs.paths();
        let leaf = self
            .leaves
            .iter()
            .find(|l| paths.contains(l))
            .ok_or("no leaf is left")?;
        for file in paths.iter().filter(|p| !p.to_string_lossy().ends_with(".tmp")) {
            check(file, &open)?;
        }
        let fail = |what: &str, e: avhdx::Error| format!("{what}: {}", e.chain_text());
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
        for file in paths.iter().filter(|p| !p.to_string_lossy().ends_with(".tmp")) {
            check(file, &open)?;
        }
        let mut leaf = leaf.clone();
        if let Some((top, into, mode)) = &self.resume {
            if paths.contains(top) && into.as_ref().is_none_or(|into| paths.contains(into)) {
                let again = fs.snapshot();
                let mut on = crate::options(Arc::new(again.clone()));
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
        for file in fs.paths().iter().filter(|p| !p.to_string_lossy().ends_with(".tmp")) {
            check(file, &open)?;
        }
        Ok(())
    }

    /// Enumerates; the number of states, or the first that is wrong.
    fn run(&self, crash: &CrashOptions) -> Result<u64, String> {
        let mut wrong = None;
        let mut count = 0u64;
        let stats = self.fs.enumerate(crash, &mut |state, point| {
            count += 1;
            match self.verify(state, &point.marks, count % 5 == 0) {
                Ok(()) => ControlFlow::Continue(()),
                Err(why) => {
                    wrong = Some(format!("{why}\n  {} (seed {})", point.description, crash.seed));
                    ControlFlow::Break(())
                }
            }
        });
        wrong.map_or(Ok(stats.states), Err)
    }
}

fn check(file: &Path, options: &OpenOptions) -> Result<(), String> {
    let mut first = None;
    let result = ops::check(file, options, &CheckOptions::default(), &mut |finding| {
        if finding.severity == Severity::Error && first.is_none() {
            first = Some(finding.defect.to_string());
        }
    });
    match (result, first) {
        (Err(e), _) => Err(format!("check {file:?}: {}", e.chain_text())),
        (Ok(_), Some(defect)) => Err(format!("check {file:?}: {defect}")),
        _ => Ok(()),
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
    let chain = Chain::open(&path("base.vhdx"), &options(Arc::new(fs.clone()))).unwrap();
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
    let mut history = History::new(&fs, content, &[leaf]);
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
        let chain = Chain::open(&path("a.avhdx"), &options(Arc::new(fs.clone()))).unwrap();
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
    let mut open = options(Arc::new(history.fs.clone()));
    open.lock = true;
    let chain = Chain::open(&path(newest), &open).unwrap();
    if top == 0 {
        history.write(&chain, 3 * MIB, pattern(0xB0, 4096));
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
    let open = options(Arc::new(fs.clone()));
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
    let open = options(Arc::new(fs.clone()));
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

/// Puts a note and a second linkage into the locator of a file, which is the last item of its region.
fn note_merge(fs: &MemoryFileSystem, name: &str, linkage2: Guid, note: &str) {
    let mut bytes = fs.contents(path(name)).unwrap();
    let find = |bytes: &[u8], guid: Guid| bytes.windows(16).position(|w| w == guid.to_stored()).unwrap();
    let entry = find(&bytes, metadata::PARENT_LOCATOR);
    let at = find(&bytes, locator::VHDX_LOCATOR);
    let length = u32::from_le_bytes(bytes[entry + 20..entry + 24].try_into().unwrap());
    let mut changed = Locator::parse(&bytes[at..at + length as usize], 0).unwrap();
    changed.set_linkage(changed.linkage().unwrap(), Some(linkage2));
    changed.set(locator::MERGE, note);
    let item = changed.encode();
    bytes[at..at + item.len()].copy_from_slice(&item);
    bytes[entry + 20..entry + 24].copy_from_slice(&(item.len() as u32).to_le_bytes());
    fs.insert(path(name), &bytes);
    let open = options(Arc::new(fs.clone()));
    let info = Chain::open(&path(name), &open).unwrap().info().unwrap();
    assert!(info.pending_merge, "the note is there");
}

/// Notes of merges that never were, in a file that somebody put beside the disks of others: none of those is merged,
/// removed or made unusable by them.
#[test]
fn a_note_about_another_file_is_not_believed() {
    for (layers, abandoned) in [(0, 0), (1, 0), (1, 5), (usize::MAX, usize::MAX)] {
        for stage in ["copying", "copied", "child", "retired"] {
            let fs = MemoryFileSystem::new();
            let open = options(Arc::new(fs.clone()));
            let content = chain_of(&fs, 4 * MIB, &["victim.avhdx"]);
            let mut create = CreateOptions::default();
            create.disk_type = DiskType::Differencing;
            create.parent = Some(path("base.vhdx"));
            create.open = open.clone();
            ops::create(&path("evil.avhdx"), &create).unwrap();
            let victim = Chain::probe(&path("victim.avhdx"), &open).unwrap().data_write_guid;
            let evil = Chain::probe(&path("evil.avhdx"), &open).unwrap().data_write_guid;
            for (top, leaf) in [(victim, "layer"), (evil, "leaf")] {
                let fs = fs.snapshot();
                let open = options(Arc::new(fs.clone()));
                let note = format!("{stage} {layers} {} {leaf} unlink {abandoned}", top.braced());
                note_merge(&fs, "evil.avhdx", victim, &note);
                let _ = ops::pending(&path("evil.avhdx"), &open);
                let _ = ops::resume(&path("evil.avhdx"), &open, &MergeOptions::default(), &mut |_| true);
                let reads = |leaf: &str| {
                    let chain =
                        Chain::open(&path(leaf), &open).unwrap_or_else(|e| panic!("{note}: {}", e.chain_text()));
                    let mut found = vec![0; content.len()];
                    chain.read(&mut found, 0).unwrap();
                    assert!(found == content, "{note}");
                };
                assert!(fs.paths().contains(&path("victim.avhdx")), "{note}");
                reads("victim.avhdx");
                // Merging it does not take the other's word for being done.
                let merged = ops::merge_path(
                    &path("victim.avhdx"),
                    None,
                    &open,
                    &MergeOptions::default(),
                    &mut |_| true,
                );
                match merged {
                    Ok(_) => reads("base.vhdx"),
                    Err(error) => assert_eq!(error.kind(), avhdx::ErrorKind::HasChildren, "{note}"),
                }
            }
        }
    }
}

type Scenario = (&'static str, fn() -> History);

const SCENARIOS: &[Scenario] = &[
    ("allocating writes, dynamic", || allocating(DiskType::Dynamic, false)),
    ("allocating writes, fixed", || allocating(DiskType::Fixed, false)),
    ("allocating writes, differencing", || {
        allocating(DiskType::Dynamic, true)
    }),
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

fn subsets() -> usize {
    std::env::var("AVHDX_CRASH_SUBSETS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(24)
}

#[test]
fn every_power_cut_leaves_a_good_disk() {
    let mut total = 0;
    let only = std::env::var("AVHDX_CRASH_ONLY").ok();
    for (name, scenario) in SCENARIOS
        .iter()
        .filter(|(name, _)| only.as_ref().is_none_or(|o| name.contains(o)))
    {
        let options = CrashOptions {
            subsets_per_point: subsets(),
            garble_below: 192 << 10,
            ..CrashOptions::default()
        };
        match scenario().run(&options) {
            Ok(states) => {
                println!("{states:6} states: {name}");
                total += states;
            }
            Err(why) => panic!("{name}: {why}"),
        }
    }
    println!("{total:6} states in all");
    if only.is_none() {
        assert!(total >= 20_000, "only {total} states");
    }
}

#[test]
fn without_any_one_barrier_a_power_cut_does_harm() {
    for &barrier in Barrier::ALL {
        let options = CrashOptions {
            ignore: Some(barrier),
            subsets_per_point: subsets(),
            garble_below: 192 << 10,
            ..CrashOptions::default()
        };
        let caught = SCENARIOS
            .iter()
            .find_map(|(name, scenario)| scenario().run(&options).err().map(|why| (name, why)));
        match caught {
            Some((name, why)) => println!(
                "{barrier:?} is needed, says {name}: {}",
                why.lines().next().unwrap_or("")
            ),
            None => panic!("{barrier:?} can be left out and no test notices"),
        }
    }
}
