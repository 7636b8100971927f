//! Every storage call fails once: the error is reported, the chain opens again, what was flushed is there.

#[path = "common/shape.rs"]
mod shape;

use std::sync::Arc;

use avhdx::ops::{self, CheckOptions, Severity};
use avhdx::options::{CheckpointOptions, CreateOptions, MergeMode, MergeOptions, OpenOptions, ZeroFlags};
use avhdx::storage::fault::{FaultFileSystem, FaultMode};
use avhdx::storage::MemoryFileSystem;
use avhdx::{Chain, Error, ErrorKind};
use shape::{is_told, path, MIB};

fn prepared() -> (MemoryFileSystem, Vec<u8>) {
    let fs = MemoryFileSystem::new();
    let open = OpenOptions::new().on(Arc::new(fs.clone()));
    let mut create = CreateOptions::default();
    create.size = 4 * MIB;
    create.block_size = MIB as u32;
    create.open = open.clone();
    ops::create(&path("base.vhdx"), &create).unwrap();
    let chain = Chain::open(&path("base.vhdx"), &open).unwrap();
    chain.write(&[1; 2 * MIB as usize], 0, false).unwrap();
    let mut checkpoint = CheckpointOptions::default();
    checkpoint.block_size = MIB as u32;
    ops::checkpoint(&chain, &path("a.avhdx"), &checkpoint).unwrap();
    chain.write(&[2; 65536], MIB - 4096, false).unwrap();
    ops::checkpoint(&chain, &path("b.avhdx"), &checkpoint).unwrap();
    chain.write(&[3; MIB as usize], 3 * MIB, false).unwrap();
    chain.flush().unwrap();
    let mut content = vec![0; 4 * MIB as usize];
    chain.read(&mut content, 0).unwrap();
    // Dropped, not closed: opening replays the log.
    drop(chain);
    (fs, content)
}

/// What the job did as far as it got: bytes promised, and where something may have changed.
struct Progress {
    content: Vec<u8>,
    touched: Vec<std::ops::Range<usize>>,
}

type Job = fn(&OpenOptions, &mut Progress) -> Result<(), Error>;

fn write_job(open: &OpenOptions, progress: &mut Progress) -> Result<(), Error> {
    let chain = Chain::open(&path("b.avhdx"), open)?;
    for (at, len, byte) in [
        (0, 4096, 9),
        (2 * MIB + 512, 2048, 8),
        (3 * MIB, 4096, 7),
        (MIB, 100, 6),
    ] {
        let range = at as usize..at as usize + len;
        progress
            .touched
            .push(range.start / 512 * 512..range.end.next_multiple_of(512));
        chain.write(&vec![byte; len], at, false)?;
        chain.flush()?;
        progress.touched.pop();
        progress.content[range].fill(byte);
    }
    progress.touched.push(2 * MIB as usize..4 * MIB as usize);
    chain.zero(
        2 * MIB,
        2 * MIB,
        ZeroFlags {
            may_unmap: true,
            ..ZeroFlags::default()
        },
    )?;
    chain.flush()?;
    progress.touched.pop();
    progress.content[2 * MIB as usize..].fill(0);
    progress.touched.push(2 * MIB as usize..3 * MIB as usize);
    chain.write(&[5; MIB as usize], 2 * MIB, true)?;
    progress.touched.pop();
    progress.content[2 * MIB as usize..3 * MIB as usize].fill(5);
    chain.close()
}

fn checkpoint_job(open: &OpenOptions, progress: &mut Progress) -> Result<(), Error> {
    let chain = Chain::open(&path("b.avhdx"), open)?;
    let mut options = CheckpointOptions::default();
    options.block_size = MIB as u32;
    let taken = ops::checkpoint(&chain, &path("c.avhdx"), &options);
    // After a failed checkpoint the disk goes on, or says why not.
    progress.touched.push(0..4096);
    let written = chain.write(&[0xC; 4096], 0, true);
    if written.is_ok() {
        progress.touched.pop();
        progress.content[..4096].fill(0xC);
    }
    taken?;
    written?;
    chain.close()
}

fn merge_job(mode: MergeMode, base: usize, threads: usize, open: &OpenOptions) -> Result<(), Error> {
    let chain = Chain::open(&path("b.avhdx"), open)?;
    let mut options = MergeOptions::default();
    options.mode = mode;
    options.threads = threads;
    ops::merge(&chain, 0, base, &options, &mut |_| true)?;
    chain.close()
}

fn check_all(fs: &MemoryFileSystem, what: &str) {
    let open = OpenOptions::new().on(Arc::new(fs.clone()));
    for file in fs.paths().iter().filter(|p| !p.to_string_lossy().ends_with(".tmp")) {
        ops::check(file, &open, &CheckOptions::default(), &mut |finding| {
            assert_ne!(
                finding.severity,
                Severity::Error,
                "{what}: {file:?}: {}",
                finding.defect
            );
        })
        .unwrap_or_else(|e| panic!("{what}: check {file:?}: {}", e.chain_text()));
    }
}

fn every_call(name: &str, job: Job, leaves: &[&str], resume: Option<MergeMode>) {
    let (initial, content) = prepared();
    let mut failures = 0;
    for (mode, errno) in [
        (FaultMode::Once, libc::EIO),
        (FaultMode::FromHere, libc::EIO),
        (FaultMode::Short, libc::ENOSPC),
        (FaultMode::FlushLoses, libc::EIO),
    ] {
        for n in 1.. {
            let memory = initial.snapshot();
            let faulty = FaultFileSystem::new(Arc::new(memory.clone()));
            let open = OpenOptions::new().on(Arc::new(faulty.clone()));
            let mut progress = Progress {
                content: content.clone(),
                touched: Vec::new(),
            };
            faulty.fail_in(n, errno, mode);
            let result = job(&open, &mut progress);
            if !faulty.disarm() {
                result.unwrap_or_else(|e| panic!("{name}: without a fault: {}", e.chain_text()));
                let few = if mode == FaultMode::FlushLoses { 4 } else { 20 };
                assert!(n > few, "{name} makes {n} calls only");
                break;
            }
            let what = format!("{name}, call {n} {mode:?}");
            failures += 1;
            if let Err(error) = &result {
                is_told(error, &what);
            }
            let memory = memory.snapshot();
            check_all(&memory, &what);
            let open = OpenOptions::new().on(Arc::new(memory.clone()));
            let verify = |when: &str| {
                let leaf = leaves
                    .iter()
                    .map(|l| path(l))
                    .find(|l| memory.paths().contains(l))
                    .expect("a leaf");
                let chain = Chain::open(&leaf, &open).unwrap_or_else(|e| panic!("{what}: {when}: {}", e.chain_text()));
                let mut found = vec![0xEE; content.len()];
                chain.read(&mut found, 0).unwrap();
                let pieces = found.chunks(4096).zip(progress.content.chunks(4096));
                let different = pieces.enumerate().filter(|(_, (found, wanted))| found != wanted);
                let bytes = different.flat_map(|(n, (found, wanted))| (n * 4096..).zip(found.iter().zip(wanted)));
                for (at, (f, wanted)) in bytes {
                    let open_question = progress.touched.iter().any(|range| range.contains(&at));
                    assert!(
                        open_question || f == wanted,
                        "{what}: {when}: byte {at:#x} is {f:#x}, wanted {wanted:#x}"
                    );
                }
                chain.close().unwrap();
            };
            verify("opened again");
            if let Some(mode) = resume.filter(|_| memory.paths().contains(&path("b.avhdx"))) {
                let into = if memory.paths().contains(&path("a.avhdx")) {
                    Some(path("base.vhdx"))
                } else {
                    None
                };
                let mut options = MergeOptions::default();
                options.mode = mode;
                ops::merge_path(&path("b.avhdx"), into.as_deref(), &open, &options, &mut |_| true)
                    .unwrap_or_else(|e| panic!("{what}: merge again: {}", e.chain_text()));
                assert!(!memory.paths().contains(&path("b.avhdx")), "{what}");
                // A file that could not be removed must at least not pass for a disk.
                let left = Chain::open(&path("a.avhdx"), &open).expect_err(&what).kind();
                assert!(
                    matches!(left, ErrorKind::Io | ErrorKind::ParentIdMismatch),
                    "{what}: {left}"
                );
                verify("merged again");
            }
            check_all(&memory, &what);
        }
    }
    println!("{failures:5} failures: {name}");
}

#[test]
fn writes() {
    every_call("write", write_job, &["b.avhdx"], None);
}

#[test]
fn checkpoints() {
    every_call("checkpoint", checkpoint_job, &["c.avhdx", "b.avhdx"], None);
}

fn merges(name: &str, job: Job, mode: MergeMode) {
    every_call(name, job, &["b.avhdx", "base.vhdx"], Some(mode));
}

#[test]
fn merges_copying() {
    let job: Job = |open, _| merge_job(MergeMode::Copy, 2, 0, open);
    merges("merge, copy", job, MergeMode::Copy);
}

#[test]
fn merges_copying_with_threads() {
    let job: Job = |open, _| merge_job(MergeMode::Copy, 2, 3, open);
    merges("merge, copy, threads", job, MergeMode::Copy);
}

#[test]
fn merges_consuming() {
    let job: Job = |open, _| merge_job(MergeMode::Consume, 2, 0, open);
    merges("merge, consume", job, MergeMode::Consume);
}

#[test]
fn a_lying_success_is_never_reported() {
    // A failed flush is reported by that flush, and every later write says that it was.
    let (initial, _) = prepared();
    let faulty = FaultFileSystem::new(Arc::new(initial));
    let chain = Chain::open(&path("b.avhdx"), &OpenOptions::new().on(Arc::new(faulty.clone()))).unwrap();
    chain.write(&[1; 512], 0, true).unwrap();
    chain.write(&[2; 512], 0, false).unwrap();
    faulty.fail_in(1, libc::EIO, FaultMode::Once);
    assert_eq!(chain.flush().unwrap_err().kind(), ErrorKind::Io);
    assert!(faulty.disarm());
    assert_eq!(
        chain.write(&[3; 512], 0, false).unwrap_err().kind(),
        ErrorKind::Poisoned
    );
    assert_eq!(chain.flush().unwrap_err().kind(), ErrorKind::Poisoned);
    chain.read(&mut [0; 512], 0).unwrap();
    assert_eq!(chain.close().unwrap_err().kind(), ErrorKind::Poisoned);
}
