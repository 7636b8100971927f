//! Converting and migrating, cut by power failures and failing calls: sources stay as they are, and what has its name
//! is whole.

use std::sync::Arc;

use avhdx::ops;
use avhdx::options::{
    CheckpointOptions, ConvertOptions, CopyMode, CreateOptions, DiskType, ImageFormat, MigrateOptions, OpenOptions,
};
use avhdx::storage::crash::CrashFileSystem;
use avhdx::storage::fault::{FaultFileSystem, FaultMode};
use avhdx::storage::{Barrier, FileSystem, MemoryFileSystem};
use avhdx::vhd::VhdChain;
use avhdx::{Chain, Result};

use crate::disks::is_told;
use crate::harness::{self, check, is_needed, path, survives, usual, Forget, Story, MIB};
use crate::vhd::{Vhd, SECTOR};

const DONE: u64 = 1;

fn on(fs: Arc<dyn FileSystem>) -> OpenOptions {
    let mut open = OpenOptions::read_only().on(fs);
    open.lock = false;
    open
}

/// A VHDX chain and a VHD chain, and what both read as.
fn sources() -> (MemoryFileSystem, Vec<u8>) {
    let fs = MemoryFileSystem::new();
    let mut base = Vhd::new(1, 3 << 20, 1 << 20);
    let mut leaf = Vhd::new(2, 3 << 20, 1 << 20).on(&base, "old-base.vhd");
    for (i, sector) in base.sectors.iter_mut().enumerate().filter(|(i, _)| i % 1000 < 300) {
        *sector = Some([i as u8 | 1; SECTOR]);
    }
    for (i, sector) in leaf
        .sectors
        .iter_mut()
        .enumerate()
        .filter(|(i, _)| (2048..4096).contains(i) || i % 999 == 7)
    {
        *sector = Some([i as u8 | 2; SECTOR]);
    }
    fs.insert(path("old-base.vhd"), &base.encode());
    fs.insert(path("old.avhd"), &leaf.encode());
    let content = leaf.over(&base.own());

    let mut open = on(Arc::new(fs.clone()));
    open.read_only = false;
    let mut create = CreateOptions::default();
    create.size = content.len() as u64;
    create.block_size = MIB as u32;
    create.open = open.clone();
    ops::create(&path("base.vhdx"), &create).unwrap();
    let chain = Chain::open(&path("base.vhdx"), &open).unwrap();
    chain.write(&content[..2 * MIB as usize], 0, false).unwrap();
    let mut checkpoint = CheckpointOptions::default();
    checkpoint.block_size = MIB as u32;
    ops::checkpoint(&chain, &path("a.avhdx"), &checkpoint).unwrap();
    chain.write(&content[2 * MIB as usize..], 2 * MIB, false).unwrap();
    chain.close().unwrap();
    (fs, content)
}

/// What a job makes: the last file, and the number of files.
struct Job {
    name: &'static str,
    new: &'static str,
    run: fn(&OpenOptions) -> Result<()>,
}

fn convert(
    open: &OpenOptions,
    new: &str,
    format: ImageFormat,
    disk_type: DiskType,
    parent: Option<&str>,
) -> Result<()> {
    let chain = Chain::open(&path("a.avhdx"), open)?;
    let mut options = ConvertOptions::default();
    options.to = Some(format);
    options.disk_type = disk_type;
    options.parent = parent.map(path);
    // Fixed disks are copied, with threads that read ahead; others share what they can.
    if disk_type == DiskType::Fixed {
        (options.mode, options.threads) = (CopyMode::Copy, 2);
    }
    if format == ImageFormat::Vhdx {
        options.block_size = MIB as u32;
    }
    ops::convert(&chain, &path(new), &options, &mut |_| true).map(drop)
}

fn migrate(open: &OpenOptions, new: &str, chain: bool) -> Result<()> {
    let mut options = MigrateOptions::default();
    options.chain = chain;
    options.convert.block_size = MIB as u32;
    ops::migrate(&path("old.avhd"), &path(new), &options, open, &mut |_| true).map(drop)
}

const JOBS: &[Job] = &[
    Job {
        name: "to raw",
        new: "new.raw",
        run: |open| convert(open, "new.raw", ImageFormat::Raw, DiskType::Dynamic, None),
    },
    Job {
        name: "to dynamic VHDX",
        new: "new.vhdx",
        run: |open| convert(open, "new.vhdx", ImageFormat::Vhdx, DiskType::Dynamic, None),
    },
    Job {
        name: "to fixed VHDX",
        new: "new.vhdx",
        run: |open| convert(open, "new.vhdx", ImageFormat::Vhdx, DiskType::Fixed, None),
    },
    Job {
        name: "to a child",
        new: "new.vhdx",
        run: |open| {
            convert(
                open,
                "new.vhdx",
                ImageFormat::Vhdx,
                DiskType::Dynamic,
                Some("base.vhdx"),
            )
        },
    },
    Job {
        name: "to dynamic VHD",
        new: "new.vhd",
        run: |open| convert(open, "new.vhd", ImageFormat::Vhd, DiskType::Dynamic, None),
    },
    Job {
        name: "to fixed VHD",
        new: "new.vhd",
        run: |open| convert(open, "new.vhd", ImageFormat::Vhd, DiskType::Fixed, None),
    },
    Job {
        name: "migrate",
        new: "new.vhdx",
        run: |open| migrate(open, "new.vhdx", false),
    },
    Job {
        name: "migrate the chain",
        new: "new.vhdx",
        run: |open| migrate(open, "new.vhdx", true),
    },
];

/// The sources are what they were; what has a name is whole. Whether the new disk is there.
fn verify(
    job: &Job,
    state: &MemoryFileSystem,
    initial: &MemoryFileSystem,
    content: &[u8],
    with_sources: bool,
) -> Result<bool, String> {
    for source in initial.paths().into_iter().filter(|_| with_sources) {
        if state.contents(&source) != initial.contents(&source) {
            return Err(format!("{source:?} changed"));
        }
    }
    let open = on(Arc::new(state.clone()));
    for file in state.paths() {
        let name = file.to_string_lossy();
        if name.ends_with("vhdx") {
            check(&file, &open)?;
        }
    }
    let new = path(job.new);
    if !state.paths().contains(&new) {
        return Ok(false);
    }
    let mut found = vec![0xEE; content.len()];
    let read = match job.new {
        "new.raw" => {
            found = state.contents(&new).unwrap_or_default();
            Ok(())
        }
        "new.vhd" => VhdChain::open(&new, &open).and_then(|disk| disk.read(&mut found, 0)),
        _ => Chain::open(&new, &open).and_then(|disk| disk.read(&mut found, 0)),
    };
    read.map_err(|e| e.chain_text())?;
    match found == content {
        true => Ok(true),
        false => Err("the new disk reads differently".into()),
    }
}

struct Converted {
    job: &'static Job,
    initial: MemoryFileSystem,
    content: Vec<u8>,
    fs: CrashFileSystem,
}

impl Converted {
    fn new(job: &'static Job) -> Converted {
        let (initial, content) = sources();
        let fs = CrashFileSystem::new(&initial);
        (job.run)(&on(Arc::new(fs.clone()))).unwrap();
        fs.mark(DONE);
        Converted {
            job,
            initial,
            content,
            fs,
        }
    }
}

impl Story for Converted {
    fn fs(&self) -> &CrashFileSystem {
        &self.fs
    }

    fn verify(&self, state: &MemoryFileSystem, marks: &[u64], thorough: bool) -> std::result::Result<(), String> {
        match verify(self.job, state, &self.initial, &self.content, thorough)? {
            false if marks.contains(&DONE) => Err("done, but not there".into()),
            _ => Ok(()),
        }
    }

    /// Made again under another name, unless it is there.
    fn recover(&self, open: &OpenOptions, _: &[u64]) -> std::result::Result<(), String> {
        let fs = &open.file_system;
        if fs.kind(&path(self.job.new)).is_ok() {
            return Ok(());
        }
        // Parents of a migrated chain whose child did not come.
        for left in fs.list(&path(""), 100).map_err(|e| e.to_string())? {
            if !self.initial.paths().contains(&left) {
                fs.remove(&left).map_err(|e| e.to_string())?;
            }
        }
        fs.sync_dir(&path("")).map_err(|e| e.to_string())?;
        (self.job.run)(&on(fs.clone())).map_err(|e| harness::fail("made again", e))
    }
}

pub fn scenarios() -> Vec<harness::Scenario> {
    let scenario = |job: &'static Job| harness::Scenario {
        operation: if job.name.starts_with("migrate") {
            "migrate"
        } else {
            "convert"
        },
        name: job.name.into(),
        run: Box::new(move || Box::new(Converted::new(job))),
        times: 3,
        thorough: 16,
    };
    JOBS.iter().map(scenario).collect()
}

#[test]
fn every_power_cut_leaves_the_whole_or_nothing() {
    survives(&scenarios(), "convert", usual(), 2000);
    survives(&scenarios(), "migrate", usual(), 2000);
}

#[test]
fn without_the_barrier_a_power_cut_does_harm() {
    // A VHDX is closed before, which flushes it too: there is no one barrier that it needs.
    for (job, scenario) in JOBS.iter().zip(scenarios()).filter(|(job, _)| job.new != "new.vhdx") {
        println!("{}", job.name);
        is_needed(&[scenario], "", Forget::Barrier(Barrier::NewFile));
    }
}

#[test]
fn every_failing_call_is_told_and_leaves_nothing() {
    let (initial, content) = sources();
    for job in JOBS {
        let mut failures = 0;
        for (mode, errno) in [
            (FaultMode::Once, libc::EIO),
            (FaultMode::Short, libc::ENOSPC),
            (FaultMode::FlushLoses, libc::EIO),
        ] {
            for n in 1.. {
                let memory = initial.snapshot();
                let faulty = FaultFileSystem::new(Arc::new(memory.clone()));
                faulty.fail_in(n, errno, mode);
                let result = (job.run)(&on(Arc::new(faulty.clone())));
                let what = format!("{}, call {n} {mode:?}", job.name);
                let hit = faulty.disarm();
                let there =
                    verify(job, &memory, &initial, &content, true).unwrap_or_else(|why| panic!("{what}: {why}"));
                match result {
                    Ok(()) => assert!(there, "{what}"),
                    Err(error) => {
                        is_told(&error, &what);
                        assert!(error.path().is_some(), "{what}: {}", error.chain_text());
                        assert!(!there, "{what}");
                        // Unless removing it is what failed, nothing is left.
                        let left = memory.paths().len() - initial.paths().len();
                        assert_eq!(left, 0, "{what}: {:?}", memory.paths());
                        failures += 1;
                    }
                }
                if !hit {
                    assert!(n > if mode == FaultMode::FlushLoses { 1 } else { 20 }, "{what}");
                    break;
                }
            }
        }
        println!("{failures:5} failures: {}", job.name);
    }
}
