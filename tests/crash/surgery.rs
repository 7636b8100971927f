//! Surgery on chains: revert, delete, re-parent, rebase, detach. In every state a cut may leave, each disk that
//! is there opens, passes `check` and reads as it must; the operation run again finishes; life goes on.

use std::path::{Path, PathBuf};

use avhdx::ops;
use avhdx::options::{
    CreateOptions, DeleteInto, DeleteOptions, DiskType, OpenOptions, RebaseOptions, ReparentOptions, RevertOptions,
};
use avhdx::storage::crash::CrashFileSystem;
use avhdx::storage::{Barrier, FileSystem, MemoryFileSystem};
use avhdx::{Chain, Error, ErrorKind};

use crate::harness::{
    self, check, fail as text, is_needed, is_whole, options, path, pattern, survives, usual, Forget, Story, MIB, SECTOR,
};

const SIZE: u64 = 4 * MIB + 512;

/// Mark: everything the job wrote is promised.
const PROMISED: u64 = 1;

/// A disk and what it reads as before and after the job.
struct Disk {
    name: &'static str,
    before: Vec<u8>,
    after: Vec<u8>,
    /// Its files, unless it is written.
    files: Option<Vec<PathBuf>>,
}

type Job = fn(&OpenOptions, &mut dyn FnMut()) -> Result<(), Error>;

struct Scenario {
    name: &'static str,
    /// How many times the usual number of subsets to try.
    thoroughly: usize,
    prepared: fn(&MemoryFileSystem),
    /// The operation and writes around it; calls back when all is promised.
    job: Job,
    /// After a cut: finishes.
    again: Job,
    /// One of these is the disk in use.
    leaves: &'static [&'static str],
    /// What the leaf is written during the job: where, and the seed.
    writes: &'static [(u64, u8)],
    /// Files that are never missing.
    kept: &'static [&'static str],
    /// Files gone when the operation was finished.
    gone: &'static [&'static str],
}

const WRITE_LEN: usize = 4096;
/// What is read of each block: everything that differs between disks begins in it.
const WINDOW: u64 = 128 << 10;

fn create(fs: &MemoryFileSystem, name: &str, parent: Option<&str>) -> Chain {
    let mut create = CreateOptions::default();
    create.disk_type = parent.map_or(DiskType::Dynamic, |_| DiskType::Differencing);
    create.parent = parent.map(path);
    (create.size, create.block_size) = (SIZE, MIB as u32);
    create.open = options(fs);
    ops::create(&path(name), &create).unwrap();
    Chain::open(&path(name), &options(fs)).unwrap()
}

fn put(chain: &Chain, at: u64, seed: u8, len: usize) {
    chain.write(&pattern(seed, len), at, false).unwrap();
}

/// base <- a <- b, and base <- d, a <- c; y on b.
fn tree(fs: &MemoryFileSystem) {
    let base = create(fs, "base.vhdx", None);
    put(&base, 0, 0x10, 2 * MIB as usize);
    put(&base, 3 * MIB, 0x20, 8192);
    base.close().unwrap();
    let a = create(fs, "a.avhdx", Some("base.vhdx"));
    put(&a, 4096, 0x30, 8192);
    put(&a, MIB + 65536, 0x31, 4096);
    put(&a, 2 * MIB, 0x32, MIB as usize);
    a.discard(3 * MIB, MIB, false).unwrap();
    a.close().unwrap();
    for (name, parent, seed) in [
        ("b.avhdx", "a.avhdx", 0x40),
        ("c.avhdx", "a.avhdx", 0x50),
        ("d.avhdx", "base.vhdx", 0x60),
    ] {
        let chain = create(fs, name, Some(parent));
        put(&chain, 8192, seed, 4096);
        put(&chain, 2 * MIB + 4096, seed + 1, 4096);
        chain.close().unwrap();
    }
}

fn without_siblings(fs: &MemoryFileSystem) {
    tree(fs);
    fs.remove(&path("d.avhdx")).unwrap();
}

/// b has a child, and there is a disk like a that is no relative of it.
fn with_child(fs: &MemoryFileSystem) {
    tree(fs);
    let y = create(fs, "y.avhdx", Some("b.avhdx"));
    put(&y, 0, 0x70, 4096);
    y.close().unwrap();
    let other = create(fs, "other.vhdx", None);
    put(&other, 0, 0x10, MIB as usize);
    put(&other, 3 * MIB, 0x33, 65536);
    other.close().unwrap();
}

/// The base has moved, and there is a copy of it.
fn moved(fs: &MemoryFileSystem) {
    tree(fs);
    let copy = create(fs, "copy.vhdx", None);
    put(&copy, 0, 0x10, 2 * MIB as usize);
    put(&copy, 3 * MIB, 0x20, 8192);
    copy.close().unwrap();
    fs.rename_new(&path("base.vhdx"), &path("moved.vhdx")).unwrap();
}

fn leaf(open: &OpenOptions, name: &str, seed: u8) -> Result<Chain, Error> {
    let chain = Chain::open(&path(name), open)?;
    chain.write(&pattern(seed, WRITE_LEN), 3 * MIB, false)?;
    // The log has begun: what follows relies on the barriers of later commits.
    chain.flush()?;
    Ok(chain)
}

fn finish(chain: Chain, seed: u8, promised: &mut dyn FnMut()) -> Result<(), Error> {
    chain.write(&pattern(seed, WRITE_LEN), 3 * MIB + 65536, false)?;
    chain.flush()?;
    promised();
    chain.close()
}

fn delete(chain: &Chain, into: DeleteInto) -> Result<(), Error> {
    let mut options = DeleteOptions::default();
    options.into = into;
    ops::delete_layer(chain, 1, &options, &mut |_| true).map(drop)
}

fn delete_again(open: &OpenOptions, into: DeleteInto) -> Result<(), Error> {
    let chain = Chain::open(&path("b.avhdx"), open)?;
    if chain.layer_path(1)?.ends_with("a.avhdx") {
        delete(&chain, into)?;
    }
    chain.close()
}

fn rebase(open: &OpenOptions) -> Result<(), Error> {
    let chain = Chain::open(&path("b.avhdx"), open)?;
    ops::rebase(&chain, &path("other.vhdx"), &RebaseOptions::default(), &mut |_| true)?;
    chain.close()
}

fn detach(open: &OpenOptions) -> Result<(), Error> {
    let chain = Chain::open(&path("b.avhdx"), open)?;
    match ops::detach(&chain, &RebaseOptions::default(), &mut |_| true) {
        Err(e) if e.kind() == ErrorKind::Argument && chain.layer_count() == 1 => {}
        done => {
            done?;
        }
    }
    chain.close()
}

fn reparent(open: &OpenOptions, to: &str) -> Result<(), Error> {
    let mut options = ReparentOptions::default();
    options.ignore_id_mismatch = true;
    ops::reparent(&path("a.avhdx"), &path(to), open, &options).map(drop)
}

fn all() -> Vec<Scenario> {
    let usual = |name, job, again| Scenario {
        name,
        thoroughly: 1,
        prepared: tree,
        job,
        again,
        leaves: &["b.avhdx"],
        writes: &[],
        kept: &["base.vhdx", "b.avhdx", "c.avhdx", "d.avhdx"],
        gone: &[],
    };
    let live: &[(u64, u8)] = &[(3 * MIB, 0xA1), (3 * MIB + 65536, 0xA2)];
    vec![
        Scenario {
            prepared: without_siblings,
            writes: live,
            kept: &["base.vhdx", "b.avhdx", "c.avhdx"],
            gone: &["a.avhdx"],
            ..usual(
                "delete into parent",
                |open, promised| {
                    let chain = leaf(open, "b.avhdx", 0xA1)?;
                    delete(&chain, DeleteInto::Parent)?;
                    finish(chain, 0xA2, promised)
                },
                |open, _| delete_again(open, DeleteInto::Parent),
            )
        },
        Scenario {
            writes: live,
            gone: &["a.avhdx"],
            ..usual(
                "delete into children",
                |open, promised| {
                    let chain = leaf(open, "b.avhdx", 0xA1)?;
                    delete(&chain, DeleteInto::Auto)?;
                    finish(chain, 0xA2, promised)
                },
                |open, _| delete_again(open, DeleteInto::Auto),
            )
        },
        Scenario {
            thoroughly: 3,
            prepared: |fs| {
                tree(fs);
                let y = create(fs, "y.avhdx", Some("b.avhdx"));
                put(&y, 0, 0x70, 4096);
                y.close().unwrap();
            },
            leaves: &["y.avhdx"],
            gone: &["a.avhdx"],
            ..usual(
                "delete into an inner child",
                |open, promised| {
                    let chain = Chain::open(&path("y.avhdx"), open)?;
                    let mut options = DeleteOptions::default();
                    options.into = DeleteInto::Children;
                    ops::delete_layer(&chain, 2, &options, &mut |_| true)?;
                    promised();
                    chain.close()
                },
                |open, _| {
                    let chain = Chain::open(&path("y.avhdx"), open)?;
                    if chain.layer_path(2)?.ends_with("a.avhdx") {
                        let mut options = DeleteOptions::default();
                        options.into = DeleteInto::Children;
                        ops::delete_layer(&chain, 2, &options, &mut |_| true)?;
                    }
                    chain.close()
                },
            )
        },
        Scenario {
            thoroughly: 14,
            prepared: |fs| {
                tree(fs);
                fs.remove(&path("c.avhdx")).unwrap();
            },
            leaves: &["new.avhdx", "b.avhdx"],
            writes: live,
            kept: &["base.vhdx", "d.avhdx"],
            gone: &[],
            ..usual(
                "revert and unlink",
                |open, promised| {
                    let chain = Chain::open(&path("b.avhdx"), open)?;
                    let mut options = RevertOptions::default();
                    (options.unlink, options.block_size) = (true, MIB as u32);
                    ops::revert(&chain, 2, &path("new.avhdx"), &options)?;
                    chain.write(&pattern(0xA1, WRITE_LEN), 3 * MIB, false)?;
                    finish(chain, 0xA2, promised)
                },
                |open, _| {
                    // On to the new leaf where there is one.
                    let there = |name: &&str| open.file_system.kind(&path(name)).is_ok();
                    let name = ["new.avhdx", "b.avhdx"].into_iter().find(there).unwrap();
                    Chain::open(&path(name), open)?.close()
                },
            )
        },
        Scenario {
            thoroughly: 5,
            prepared: with_child,
            leaves: &["y.avhdx"],
            kept: &["base.vhdx", "a.avhdx", "b.avhdx", "c.avhdx", "d.avhdx", "other.vhdx"],
            ..usual(
                "rebase under a child",
                |open, promised| {
                    rebase(open)?;
                    promised();
                    Ok(())
                },
                |open, _| rebase(open),
            )
        },
        Scenario {
            thoroughly: 5,
            prepared: with_child,
            writes: live,
            kept: &["base.vhdx", "a.avhdx", "b.avhdx", "c.avhdx", "d.avhdx", "other.vhdx"],
            ..usual(
                "rebase, live",
                |open, promised| {
                    let chain = leaf(open, "b.avhdx", 0xA1)?;
                    ops::rebase(&chain, &path("other.vhdx"), &RebaseOptions::default(), &mut |_| true)?;
                    finish(chain, 0xA2, promised)
                },
                |open, _| rebase(open),
            )
        },
        Scenario {
            thoroughly: 5,
            prepared: with_child,
            leaves: &["y.avhdx"],
            kept: &["base.vhdx", "a.avhdx", "b.avhdx", "c.avhdx", "d.avhdx", "other.vhdx"],
            ..usual(
                "detach under a child",
                |open, promised| {
                    detach(open)?;
                    promised();
                    Ok(())
                },
                |open, _| detach(open),
            )
        },
        Scenario {
            thoroughly: 5,
            writes: live,
            kept: &["base.vhdx", "a.avhdx", "b.avhdx", "c.avhdx", "d.avhdx"],
            ..usual(
                "detach, live",
                |open, promised| {
                    let chain = leaf(open, "b.avhdx", 0xA1)?;
                    ops::detach(&chain, &RebaseOptions::default(), &mut |_| true)?;
                    finish(chain, 0xA2, promised)
                },
                |open, _| detach(open),
            )
        },
        Scenario {
            thoroughly: 3,
            prepared: moved,
            kept: &["moved.vhdx", "copy.vhdx", "a.avhdx", "b.avhdx", "c.avhdx", "d.avhdx"],
            ..usual(
                "re-parent there and back",
                |open, promised| {
                    for to in [
                        "moved.vhdx",
                        "copy.vhdx",
                        "moved.vhdx",
                        "copy.vhdx",
                        "moved.vhdx",
                        "copy.vhdx",
                    ] {
                        reparent(open, to)?;
                    }
                    promised();
                    Ok(())
                },
                |open, _| reparent(open, "moved.vhdx"),
            )
        },
    ]
}

fn content(open: &OpenOptions, file: &Path) -> Vec<u8> {
    let mut bytes = vec![0xEE; SIZE as usize];
    Chain::open(file, open).unwrap().read(&mut bytes, 0).unwrap();
    bytes
}

struct Run {
    scenario: Scenario,
    initial: MemoryFileSystem,
    fs: CrashFileSystem,
    disks: Vec<Disk>,
}

impl Run {
    fn new(scenario: Scenario) -> Run {
        let memory = MemoryFileSystem::new();
        (scenario.prepared)(&memory);
        let fs = CrashFileSystem::new(&memory);
        let mut disks = Vec::new();
        for file in memory.paths() {
            let before = content(&options(&memory), &file);
            let name: &'static str = file.file_name().unwrap().to_str().unwrap().to_string().leak();
            let after = before.clone();
            let chain = Chain::open(&file, &options(&memory)).unwrap();
            let files = (0..chain.layer_count()).map(|i| chain.layer_path(i).unwrap());
            let files = Some(files.collect());
            disks.push(Disk {
                name,
                before,
                after,
                files,
            });
        }
        if scenario.leaves.len() > 1 {
            // A revert: the new leaf begins as what the layer reads as.
            let base = disks.iter().find(|d| d.name == "base.vhdx").unwrap().before.clone();
            let (before, after) = (base.clone(), base);
            disks.push(Disk {
                name: scenario.leaves[0],
                before,
                after,
                files: None,
            });
        }
        let written = disks.iter_mut().find(|d| d.name == scenario.leaves[0]).unwrap();
        for &(at, seed) in scenario.writes {
            written.files = None;
            written.after[at as usize..at as usize + WRITE_LEN].copy_from_slice(&pattern(seed, WRITE_LEN));
        }
        let live = options(&fs);
        let marker = fs.clone();
        (scenario.job)(&live, &mut || marker.mark(PROMISED)).unwrap();
        let paths = memory.paths();
        assert!(!paths.is_empty());
        Run {
            scenario,
            initial: memory,
            fs,
            disks,
        }
    }

    /// Whether every byte that the disk is made of is what it was at the start, where all was well.
    fn is_untouched(&self, state: &MemoryFileSystem, disk: &Disk) -> bool {
        let files = disk.files.as_ref();
        files.is_some_and(|files| files.iter().all(|file| state.shares(&self.initial, file)))
    }

    fn check_all(&self, state: &MemoryFileSystem, open: &OpenOptions) -> Result<(), String> {
        let known = |file: &Path| self.disks.iter().find(|disk| path(disk.name) == file);
        let untouched = |file: &Path| known(file).is_some_and(|disk| self.is_untouched(state, disk));
        let mut paths = state.paths();
        paths.retain(|file| is_whole(file) && !untouched(file));
        paths.iter().try_for_each(|file| check(file, open))
    }

    fn read(&self, state: &MemoryFileSystem, open: &OpenOptions, promised: bool) -> Result<(), String> {
        let merged_into_parent = self.scenario.name == "delete into parent";
        let paths = state.paths();
        for disk in self.disks.iter().filter(|d| paths.contains(&path(d.name))) {
            if self.is_untouched(state, disk) {
                continue;
            }
            // The parent's own state is what such a deletion is for; and the deleted file is nobody's.
            if merged_into_parent && matches!(disk.name, "base.vhdx" | "a.avhdx") {
                continue;
            }
            // Written meanwhile: its child, if it had one, is orphaned.
            if !self.scenario.writes.is_empty() && disk.name == "y.avhdx" {
                continue;
            }
            let chain = Chain::open(&path(disk.name), open).map_err(|e| text(disk.name, e))?;
            for window in (0..SIZE).step_by(MIB as usize) {
                let mut found = vec![0xEE; WINDOW.min(SIZE - window) as usize];
                chain.read(&mut found, window).map_err(|e| text(disk.name, e))?;
                let start = window as usize;
                let range = start..start + found.len();
                if found == disk.after[range.clone()] || !promised && found == disk.before[range] {
                    continue;
                }
                for (i, sector) in found.chunks(SECTOR).enumerate() {
                    let at = start + i * SECTOR;
                    let (old, new) = (&disk.before[at..at + SECTOR], &disk.after[at..at + SECTOR]);
                    if sector != new && (promised || sector != old) {
                        let name = disk.name;
                        return Err(format!("{name}: sector at {at:#x} reads as {:#x}..", sector[0]));
                    }
                }
            }
        }
        Ok(())
    }
}

impl Story for Run {
    fn fs(&self) -> &CrashFileSystem {
        &self.fs
    }

    fn recover(&self, on: &OpenOptions, _: &[u64]) -> Result<(), String> {
        (self.scenario.again)(on, &mut || ()).map_err(|e| text("again", e))
    }

    fn verify(&self, state: &MemoryFileSystem, marks: &[u64], thorough: bool) -> Result<(), String> {
        let promised = marks.contains(&PROMISED);
        let mut open = options(state);
        open.lock = false;
        let paths = state.paths();
        for name in self.scenario.kept {
            if !paths.contains(&path(name)) {
                return Err(format!("{name} is missing"));
            }
        }
        let leaf = self.scenario.leaves.iter().find(|l| paths.contains(&path(l)));
        let leaf = path(leaf.ok_or("no leaf is left")?);
        self.check_all(state, &open)?;
        let mut read_only = open.clone();
        read_only.read_only = true;
        self.read(state, &read_only, promised)?;
        if !thorough {
            return Ok(());
        }
        (self.scenario.again)(&open, &mut || ()).map_err(|e| text("again", e))?;
        let paths = state.paths();
        if self.scenario.writes.is_empty() || promised {
            for name in self.scenario.gone.iter().filter(|name| paths.contains(&path(name))) {
                // Every child had left it when power failed: nothing refers to it.
                let depends = paths.iter().filter(|f| is_whole(f) && !f.ends_with(name)).any(|file| {
                    let chain = Chain::open(file, &read_only);
                    chain.is_ok_and(|c| (0..c.layer_count()).any(|i| c.layer_path(i).unwrap().ends_with(name)))
                });
                if depends {
                    return Err(format!("something still depends on {name}"));
                }
            }
        }
        self.read(state, &read_only, promised)?;
        let chain = Chain::open(&leaf, &open).map_err(|e| text("open again", e))?;
        for at in [0, MIB + 512, SIZE - 1536] {
            chain
                .write(&pattern(0xF0, 1536), at, true)
                .map_err(|e| text("write", e))?;
        }
        chain.close().map_err(|e| text("close", e))?;
        self.check_all(state, &open)
    }
}

pub fn scenarios() -> Vec<harness::Scenario> {
    let scenario = |(i, scenario): (usize, Scenario)| harness::Scenario {
        operation: scenario.name,
        name: "surgery".into(),
        run: Box::new(move || Box::new(Run::new(all().swap_remove(i)))),
        times: scenario.thoroughly,
        thorough: 5,
    };
    all().into_iter().enumerate().map(scenario).collect()
}

#[test]
fn delete_survives_power_cuts() {
    survives(&scenarios(), "delete", usual(), 2000);
}

#[test]
fn revert_survives_power_cuts() {
    survives(&scenarios(), "revert", usual(), 2000);
}

#[test]
fn rebase_survives_power_cuts() {
    survives(&scenarios(), "rebase", usual(), 2000);
}

#[test]
fn detach_survives_power_cuts() {
    survives(&scenarios(), "detach", usual(), 2000);
}

#[test]
fn reparent_survives_power_cuts() {
    survives(&scenarios(), "re-parent", usual(), 2000);
}

#[test]
fn without_any_one_barrier_a_power_cut_does_harm() {
    // Replay and plain payload are not part of these operations: core has them.
    let needed = Barrier::ALL
        .iter()
        .filter(|b| !matches!(b, Barrier::Replayed | Barrier::Payload));
    for &barrier in needed {
        is_needed(&scenarios(), "", Forget::Barrier(barrier));
    }
}
