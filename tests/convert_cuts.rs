//! Converting and migrating, cut by power failures and failing calls: sources stay as they are, and what has its name
//! is whole.

#[path = "common/vhd.rs"]
mod vhd;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::ops::{self, CheckOptions, Severity};
use avhdx::options::{
    CheckpointOptions, ConvertOptions, CreateOptions, DiskType, ImageFormat, MigrateOptions, OpenOptions,
};
use avhdx::storage::crash::{CrashFileSystem, CrashOptions};
use avhdx::storage::fault::{FaultFileSystem, FaultMode};
use avhdx::storage::{Barrier, FileSystem, MemoryFileSystem};
use avhdx::vhd::VhdChain;
use avhdx::{Chain, ErrorKind, Result};
use vhd::{Vhd, SECTOR};

const MIB: u64 = 1 << 20;
const DONE: u64 = 1;

fn path(name: &str) -> PathBuf {
    Path::new("/vm").join(name)
}

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
            let mut broken = None;
            ops::check(&file, &open, &CheckOptions::default(), &mut |finding| {
                if finding.severity == Severity::Error {
                    broken = Some(finding.defect.to_string());
                }
            })
            .map_err(|e| format!("{file:?}: {}", e.chain_text()))?;
            if let Some(broken) = broken {
                return Err(format!("{file:?}: {broken}"));
            }
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

fn cut(job: &Job, ignore: Option<Barrier>) -> Result<u64, String> {
    let (initial, content) = sources();
    let fs = CrashFileSystem::new(&initial);
    (job.run)(&on(Arc::new(fs.clone()))).map_err(|e| e.chain_text())?;
    fs.mark(DONE);
    let crash = CrashOptions {
        ignore,
        subsets_per_point: 80,
        garble_below: 192 << 10,
        ..CrashOptions::default()
    };
    let (mut wrong, mut count) = (None, 0);
    let stats = fs.enumerate(&crash, &mut |state, point| {
        count += 1;
        let there = verify(job, &state, &initial, &content, count % 16 == 0);
        let why = match there {
            Ok(false) if point.marks.contains(&DONE) => "done, but not there".to_string(),
            Ok(_) => return ControlFlow::Continue(()),
            Err(why) => why,
        };
        wrong = Some(format!("{why}\n  {} (seed {})", point.description, crash.seed));
        ControlFlow::Break(())
    });
    wrong.map_or(Ok(stats.states), Err)
}

#[test]
fn every_power_cut_leaves_the_whole_or_nothing() {
    let (mut converting, mut migrating) = (0, 0);
    for job in JOBS {
        let states = cut(job, None).unwrap_or_else(|why| panic!("{}: {why}", job.name));
        println!("{states:6} states: {}", job.name);
        match job.name.starts_with("migrate") {
            true => migrating += states,
            false => converting += states,
        }
    }
    assert!(
        converting >= 2000 && migrating >= 2000,
        "{converting} and {migrating} states"
    );
}

#[test]
fn without_the_barrier_a_power_cut_does_harm() {
    // A VHDX is closed before, which flushes it too: there is no one barrier that it needs.
    for job in JOBS.iter().filter(|job| job.new != "new.vhdx") {
        let why = cut(job, Some(Barrier::NewFile)).expect_err(job.name);
        println!("{}: {}", job.name, why.lines().next().unwrap_or(""));
    }
}

#[test]
fn every_failing_call_is_told_and_leaves_nothing() {
    let (initial, content) = sources();
    for job in JOBS {
        let mut failures = 0;
        for (mode, errno) in [(FaultMode::Once, libc::EIO), (FaultMode::Short, libc::ENOSPC)] {
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
                        let told = [
                            ErrorKind::Io,
                            ErrorKind::NoSpace,
                            ErrorKind::Poisoned,
                            ErrorKind::ParentNotFound,
                        ];
                        assert!(told.contains(&error.kind()), "{what}: {}", error.chain_text());
                        assert!(error.path().is_some(), "{what}: {}", error.chain_text());
                        assert!(!there, "{what}");
                        // Unless removing it is what failed, nothing is left.
                        let left = memory.paths().len() - initial.paths().len();
                        assert_eq!(left, 0, "{what}: {:?}", memory.paths());
                        failures += 1;
                    }
                }
                if !hit {
                    assert!(n > 20, "{what}");
                    break;
                }
            }
        }
        println!("{failures:5} failures: {}", job.name);
    }
}
