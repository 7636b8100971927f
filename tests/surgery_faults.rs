//! Every storage call fails once during surgery: the error is told, every disk reads as it did, `check` finds nothing,
//! and the operation run again finishes. tests/repair.rs and tests/tree.rs have this for their operations, and
//! tests/faults.rs for reading, writing, checkpoints and merges.

#[path = "common/shape.rs"]
mod shape;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::ops;
use avhdx::options::{
    CompactMode, CompactOptions, DeleteInto, DeleteOptions, DiskType, OpenOptions, RebaseOptions, ReparentOptions,
    ResizeOptions, RevertOptions, ZeroFlags,
};
use avhdx::storage::fault::{FaultFileSystem, FaultMode};
use avhdx::storage::{FileSystem, MemoryFileSystem};
use avhdx::{Chain, Error, ErrorKind, Guid};
use shape::{check, is_told, options, path, MIB};

const SIZE: u64 = 4 * MIB + 512;
/// What is read of each MiB: everything that differs begins in it.
const WINDOW: u64 = 64 << 10;

fn pattern(seed: u8, len: u64) -> Vec<u8> {
    (0..len).map(|i| seed.wrapping_add((i / 512) as u8) | 1).collect()
}

fn create(fs: &MemoryFileSystem, name: &str, parent: Option<&str>) -> Chain {
    let kind = parent.map_or(DiskType::Dynamic, |_| DiskType::Differencing);
    shape::create(&options(fs), name, kind, SIZE, 1, parent);
    Chain::open(&path(name), &options(fs)).unwrap()
}

fn put(chain: &Chain, at: u64, seed: u8, len: u64) {
    chain.write(&pattern(seed, len), at, false).unwrap();
}

/// base <- a <- b, base <- d, a <- c, and a disk that is no relative.
fn family() -> MemoryFileSystem {
    let fs = MemoryFileSystem::new();
    let base = create(&fs, "base.vhdx", None);
    put(&base, 0, 0x10, MIB + 8192);
    put(&base, 3 * MIB, 0x20, 8192);
    base.close().unwrap();
    let a = create(&fs, "a.avhdx", Some("base.vhdx"));
    put(&a, 4096, 0x30, 8192);
    put(&a, 2 * MIB, 0x32, MIB);
    a.close().unwrap();
    for (name, parent, seed) in [
        ("b.avhdx", "a.avhdx", 0x40),
        ("c.avhdx", "a.avhdx", 0x50),
        ("d.avhdx", "base.vhdx", 0x60),
    ] {
        let chain = create(&fs, name, Some(parent));
        put(&chain, 8192, seed, 4096);
        put(&chain, 2 * MIB + 4096, seed + 1, 4096);
        chain.close().unwrap();
    }
    let other = create(&fs, "other.vhdx", None);
    put(&other, 0, 0x10, MIB);
    put(&other, 3 * MIB, 0x33, 32768);
    other.close().unwrap();
    fs
}

fn without(names: &[&str]) -> MemoryFileSystem {
    let fs = family();
    for name in names {
        fs.remove(&path(name)).unwrap();
    }
    fs
}

/// The size and the windows of the first 8 MiB.
fn windows(chain: &Chain) -> Result<Vec<u8>, Error> {
    let mut all = chain.size().to_le_bytes().to_vec();
    for at in (0..chain.size().min(8 * MIB)).step_by(MIB as usize) {
        let mut window = vec![0xEE; WINDOW.min(chain.size() - at) as usize];
        chain.read(&mut window, at)?;
        all.extend(window);
    }
    Ok(all)
}

fn content(open: &OpenOptions, file: &Path) -> Result<Vec<u8>, Error> {
    let mut open = open.clone();
    open.read_only = true;
    windows(&Chain::open(file, &open)?)
}

/// One run, in which call `n` of the operation fails.
struct Run<'a> {
    what: String,
    fs: FaultFileSystem,
    open: OpenOptions,
    fault: Option<(u64, i32, FaultMode)>,
    reached: Cell<bool>,
    /// What the leaf may read as.
    leaf: &'a [Vec<u8>],
}

impl Run<'_> {
    fn arm(&self) {
        if let Some((n, errno, mode)) = self.fault {
            self.fs.fail_in(n, errno, mode);
        }
    }

    fn disarm(&self) {
        self.reached.set(self.reached.get() | self.fs.disarm());
    }

    /// The operation on an open disk, which goes on after a failure.
    fn on(&self, leaf: &str, operation: impl FnOnce(&Chain) -> Result<(), Error>) -> Result<(), Error> {
        let chain = Chain::open(&path(leaf), &self.open)?;
        self.arm();
        let done = operation(&chain).and_then(|()| chain.flush());
        if done.is_ok() {
            let closed = chain.close();
            self.disarm();
            return closed;
        }
        self.disarm();
        if matches!(self.fault, Some((.., FaultMode::FlushLoses))) {
            // What the handle has in memory may be about bytes that are lost: only what is opened anew is sure.
            return done;
        }
        let found = windows(&chain).unwrap_or_else(|e| panic!("{}: still open: {}", self.what, e.chain_text()));
        // What a shrink cuts off may be gone already.
        let good = |leaf: &Vec<u8>| *leaf == found || found[8..].starts_with(&leaf[8..]);
        assert!(
            self.leaf.iter().any(good),
            "{}: still open, it reads differently",
            self.what
        );
        // Written as it is: works, or says why not.
        if let Err(e) = chain.write(&found[8..][..4096], 0, true) {
            assert_eq!(e.kind(), ErrorKind::Poisoned, "{}: {}", self.what, e.chain_text());
        }
        done
    }

    /// An operation on files.
    fn alone(&self, operation: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        self.arm();
        let done = operation();
        self.disarm();
        done
    }
}

/// What each disk reads as, and its files.
type Before = BTreeMap<PathBuf, (Vec<u8>, Vec<PathBuf>)>;
type After = fn(Vec<u8>, &MemoryFileSystem) -> Vec<u8>;

struct Case {
    name: &'static str,
    prepared: fn() -> MemoryFileSystem,
    /// From the state before, and from any that a failure leaves.
    job: fn(&Run) -> Result<(), Error>,
    /// Files that are there whatever happens.
    kept: &'static [&'static str],
    /// Files whose content may change, and which nobody reads any more.
    spent: &'static [&'static str],
    /// Files that are gone at the end.
    gone: &'static [&'static str],
    /// The leaf of the job, and what else it may read as.
    leaf: &'static str,
    after: Option<After>,
}

const ALL: &[&str] = &["base.vhdx", "a.avhdx", "b.avhdx", "c.avhdx", "d.avhdx", "other.vhdx"];

const USUAL: Case = Case {
    name: "",
    prepared: family,
    job: |_| Ok(()),
    kept: ALL,
    spent: &[],
    gone: &[],
    leaf: "b.avhdx",
    after: None,
};

impl Case {
    fn every_call(self) {
        let initial = (self.prepared)();
        let before: Before = initial
            .paths()
            .into_iter()
            .map(|file| {
                let mut open = options(&initial);
                open.read_only = true;
                let chain = Chain::open(&file, &open).unwrap();
                let layers = (0..chain.layer_count()).map(|i| chain.layer_path(i).unwrap());
                (file, (windows(&chain).unwrap(), layers.collect()))
            })
            .collect();
        let mut leaf = vec![before[&path(self.leaf)].0.clone()];
        leaf.extend(self.after.map(|after| after(leaf[0].clone(), &initial)));
        let mut failures = 0;
        for (mode, errno) in [
            (FaultMode::Once, libc::EIO),
            (FaultMode::FromHere, libc::EIO),
            (FaultMode::Short, libc::ENOSPC),
            (FaultMode::FlushLoses, libc::EIO),
        ] {
            for n in 1.. {
                let what = format!("{}, call {n} {mode:?}", self.name);
                let memory = initial.snapshot();
                let run = |fs: &MemoryFileSystem, fault| {
                    let fs = FaultFileSystem::new(Arc::new(fs.clone()));
                    Run {
                        what: what.clone(),
                        open: OpenOptions::new().on(Arc::new(fs.clone())),
                        fs,
                        fault,
                        reached: Cell::new(false),
                        leaf: &leaf,
                    }
                };
                let first = run(&memory, Some((n, errno, mode)));
                let result = (self.job)(&first);
                if !first.reached.get() {
                    result.unwrap_or_else(|e| panic!("{}: without a fault: {}", self.name, e.chain_text()));
                    let few = if mode == FaultMode::FlushLoses { 0 } else { 10 };
                    assert!(n > few, "{} makes {n} calls only", self.name);
                    break;
                }
                failures += 1;
                if let Err(error) = &result {
                    is_told(error, &what);
                }
                // Nobody has anything open any more.
                let memory = memory.snapshot();
                self.verify(&memory, &initial, &before, &leaf, &what);
                (self.job)(&run(&memory, None)).unwrap_or_else(|e| panic!("{what}: again: {}", e.chain_text()));
                self.verify(&memory, &initial, &before, &leaf, &format!("{what}, again"));
                for name in self.gone.iter().filter(|name| memory.paths().contains(&path(name))) {
                    // Everybody had left it when its removal failed, which was said.
                    assert!(result.is_err(), "{what}: {name} is left");
                    let depends = memory.paths().into_iter().filter(|f| !f.ends_with(name)).any(|file| {
                        let chain = Chain::open(&file, &OpenOptions::read_only().on(Arc::new(memory.clone())));
                        chain.is_ok_and(|c| (0..c.layer_count()).any(|i| c.layer_path(i).unwrap().ends_with(name)))
                    });
                    assert!(!depends, "{what}: something depends on {name}");
                }
            }
        }
        println!("{failures:5} failures: {}", self.name);
    }

    fn verify(&self, fs: &MemoryFileSystem, initial: &MemoryFileSystem, before: &Before, leaf: &[Vec<u8>], what: &str) {
        let (open, paths) = (options(fs), fs.paths());
        for name in self.kept {
            assert!(paths.contains(&path(name)), "{what}: {name} is missing");
        }
        // Not one byte of its files was written: all is as it was.
        let untouched = |file: &PathBuf| {
            let known = before.get(file);
            known.is_some_and(|(_, files)| files.iter().all(|file| fs.shares(initial, file)))
        };
        for file in paths.iter().filter(|f| !f.to_string_lossy().ends_with(".tmp")) {
            if untouched(file) {
                continue;
            }
            check(file, &open).unwrap_or_else(|why| panic!("{what}: {why}"));
            if self.spent.iter().any(|name| file.ends_with(name)) {
                continue;
            }
            let found = content(&open, file).unwrap_or_else(|e| panic!("{what}: {file:?}: {}", e.chain_text()));
            let good = match before.get(file) {
                Some((before, _)) if !file.ends_with(self.leaf) => *before == found,
                _ => leaf.contains(&found),
            };
            assert!(good, "{what}: {file:?} reads differently");
        }
    }
}

fn delete(run: &Run, into: DeleteInto) -> Result<(), Error> {
    run.on("b.avhdx", |chain| {
        let mut options = DeleteOptions::default();
        options.into = into;
        match chain.layer_path(1)?.ends_with("a.avhdx") {
            true => ops::delete_layer(chain, 1, &options, &mut |_| true).map(drop),
            false => Ok(()),
        }
    })
}

#[test]
fn deletes_into_the_parent() {
    Case {
        name: "delete into parent",
        prepared: || without(&["d.avhdx"]),
        job: |run| delete(run, DeleteInto::Parent),
        kept: &["base.vhdx", "b.avhdx", "c.avhdx", "other.vhdx"],
        spent: &["base.vhdx", "a.avhdx"],
        gone: &["a.avhdx"],
        ..USUAL
    }
    .every_call();
}

#[test]
fn deletes_into_the_children() {
    Case {
        name: "delete into children",
        job: |run| delete(run, DeleteInto::Auto),
        kept: &["base.vhdx", "b.avhdx", "c.avhdx", "d.avhdx", "other.vhdx"],
        gone: &["a.avhdx"],
        ..USUAL
    }
    .every_call();
}

#[test]
fn deletes_branches() {
    Case {
        name: "delete branch",
        job: |run| {
            run.on("d.avhdx", |chain| {
                let there = run.open.file_system.kind(&path("a.avhdx")).is_ok();
                match there {
                    true => ops::delete_branch(chain, &path("a.avhdx")).map(drop),
                    false => Ok(()),
                }
            })
        },
        kept: &["base.vhdx", "d.avhdx", "other.vhdx"],
        gone: &["a.avhdx", "b.avhdx", "c.avhdx"],
        leaf: "d.avhdx",
        ..USUAL
    }
    .every_call();
}

#[test]
fn reverts() {
    Case {
        name: "revert and unlink",
        prepared: || without(&["c.avhdx"]),
        job: |run| {
            let leaf = ["new.avhdx", "b.avhdx"];
            let leaf = leaf.into_iter().find(|l| run.open.file_system.kind(&path(l)).is_ok());
            run.on(leaf.unwrap(), |chain| {
                let mut options = RevertOptions::default();
                (options.unlink, options.block_size) = (true, MIB as u32);
                match leaf {
                    Some("b.avhdx") => ops::revert(chain, 2, &path("new.avhdx"), &options).map(drop),
                    _ => Ok(()),
                }
            })
        },
        kept: &["base.vhdx", "d.avhdx", "other.vhdx"],
        gone: &[],
        after: Some(|_, fs| content(&options(fs), &path("base.vhdx")).unwrap()),
        ..USUAL
    }
    .every_call();
}

#[test]
fn reparents() {
    Case {
        name: "re-parent",
        prepared: || {
            let fs = family();
            fs.insert(path("copy.vhdx"), &fs.contents(path("base.vhdx")).unwrap());
            fs
        },
        job: |run| {
            run.alone(|| {
                let options = ReparentOptions::default();
                ops::reparent(&path("a.avhdx"), &path("copy.vhdx"), &run.open, &options).map(drop)
            })
        },
        ..USUAL
    }
    .every_call();
}

#[test]
fn rebases() {
    Case {
        name: "rebase",
        job: |run| {
            run.on("b.avhdx", |chain| {
                ops::rebase(chain, &path("other.vhdx"), &RebaseOptions::default(), &mut |_| true).map(drop)
            })
        },
        ..USUAL
    }
    .every_call();
}

#[test]
fn detaches() {
    Case {
        name: "detach",
        job: |run| {
            run.on("b.avhdx", |chain| match chain.layer_count() {
                1 => Ok(()),
                _ => ops::detach(chain, &RebaseOptions::default(), &mut |_| true).map(drop),
            })
        },
        ..USUAL
    }
    .every_call();
}

#[test]
fn compacts() {
    Case {
        name: "compact",
        prepared: || {
            let fs = family();
            let chain = Chain::open(&path("b.avhdx"), &options(&fs)).unwrap();
            put(&chain, MIB, 0x70, MIB);
            put(&chain, 3 * MIB, 0x71, MIB);
            let unmap = ZeroFlags {
                may_unmap: true,
                ..ZeroFlags::default()
            };
            chain.zero(MIB, MIB, unmap).unwrap();
            chain.write(&vec![0; WINDOW as usize], 0, false).unwrap();
            chain.close().unwrap();
            fs
        },
        job: |run| {
            run.on("b.avhdx", |chain| {
                let mut options = CompactOptions::default();
                options.mode = CompactMode::Full;
                ops::compact(chain, &options, &mut |_| true).map(drop)
            })
        },
        ..USUAL
    }
    .every_call();
}

fn resize(run: &Run, size: u64) -> Result<(), Error> {
    run.on("b.avhdx", |chain| {
        let mut options = ResizeOptions::default();
        options.allow_loss = true;
        ops::resize(chain, size, &options)
    })
}

#[test]
fn grows() {
    Case {
        name: "grow",
        // The BAT does not fit in its place then.
        job: |run| resize(run, 200 << 30),
        after: Some(|mut before, _| {
            before.resize(8 + 8 * WINDOW as usize, 0);
            before[..8].copy_from_slice(&(200u64 << 30).to_le_bytes());
            before
        }),
        ..USUAL
    }
    .every_call();
}

#[test]
fn shrinks() {
    Case {
        name: "shrink",
        job: |run| resize(run, 2 * MIB),
        after: Some(|mut before, _| {
            before.truncate(8 + 2 * WINDOW as usize);
            before[..8].copy_from_slice(&(2 * MIB).to_le_bytes());
            before
        }),
        ..USUAL
    }
    .every_call();
}

#[test]
fn metadata_items_change() {
    Case {
        name: "metadata items",
        job: |run| {
            run.on("b.avhdx", |chain| {
                ops::meta_set(chain, Guid::from_u128(1), &[7; 5000], false)?;
                ops::meta_set(chain, Guid::from_u128(2), &[8; 100], true)?;
                ops::meta_set(chain, Guid::from_u128(1), &[9; 60_000], false)?;
                ops::meta_delete(chain, Guid::from_u128(2))?;
                ops::set_physical_sector_size(chain, 512)?;
                ops::reset_disk_id(chain, None)?;
                assert_eq!(ops::meta_get(chain, Guid::from_u128(1))?, [9; 60_000]);
                Ok(())
            })
        },
        ..USUAL
    }
    .every_call();
}
