//! Merges where there is nearly no room: consume mode releases in time what it copied, or refuses at once.

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use avhdx::ops::{self, CheckOptions, Severity};
use avhdx::options::{CreateOptions, DiskType, MergeMode, MergeOptions, OpenOptions};
use avhdx::storage::{FileSystem, MemoryFileSystem};
use avhdx::{Chain, ErrorKind};
use common::MIB;

/// What is at `at`, which is a multiple of 1 MiB: differs from MiB to MiB, from 64 KiB to 64 KiB, and with `seed`.
fn pattern(seed: u64, at: u64) -> Vec<u8> {
    let mut bytes = vec![0; MIB as usize];
    for (i, part) in bytes.chunks_mut(65536).enumerate() {
        let word = (seed << 56 | (at + i as u64 * 65536)) | 1;
        for piece in part.chunks_mut(8) {
            piece.copy_from_slice(&word.to_le_bytes());
        }
    }
    bytes
}

struct Case {
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
    size: u64,
    base_full: bool,
    /// Of the child.
    block: u32,
}

impl Case {
    fn open(&self) -> OpenOptions {
        OpenOptions::new().on(self.fs.clone())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A child all of whose blocks hold data, on a base that has none or all.
    fn prepare(&self) {
        for (name, parent, written, block) in [
            ("base.vhdx", None, self.base_full, 0),
            ("child.avhdx", Some(self.path("base.vhdx")), true, self.block),
        ] {
            let mut create = CreateOptions::default();
            create.disk_type = parent.as_ref().map_or(DiskType::Dynamic, |_| DiskType::Differencing);
            (create.parent, create.size, create.block_size) = (parent, self.size, block);
            create.open = self.open();
            ops::create(&self.path(name), &create).unwrap();
            let chain = Chain::open(&self.path(name), &self.open()).unwrap();
            for at in (0..self.size).step_by(MIB as usize).filter(|_| written) {
                let seed = if name == "base.vhdx" { 1 } else { 2 };
                chain.write(&pattern(seed, at), at, false).unwrap();
            }
            chain.close().unwrap();
        }
    }

    fn merge(&self, mode: MergeMode) -> Result<(), avhdx::Error> {
        let mut options = MergeOptions::default();
        options.mode = mode;
        ops::merge_path(&self.path("child.avhdx"), None, &self.open(), &options, &mut |_| true).map(drop)
    }

    fn verify(&self, name: &str) {
        let path = self.path(name);
        ops::check(&path, &self.open(), &CheckOptions::default(), &mut |finding| {
            assert_ne!(finding.severity, Severity::Error, "{}", finding.defect);
        })
        .unwrap();
        let mut open = self.open();
        open.read_only = true;
        let chain = Chain::open(&path, &open).unwrap();
        let mut found = vec![0; MIB as usize];
        for at in (0..self.size).step_by(MIB as usize) {
            chain.read(&mut found, at).unwrap();
            assert!(found == pattern(2, at), "{name} differs in the MiB at {at:#x}");
        }
    }
}

/// A prepared case in memory, with this much free.
fn in_memory(size: u64, base_full: bool, block: u32, free: u64, holes: bool) -> Case {
    let case = |fs: MemoryFileSystem| Case {
        fs: Arc::new(fs),
        dir: "/vm".into(),
        size,
        base_full,
        block,
    };
    let roomy = case(MemoryFileSystem::with_capacity(8 * size));
    roomy.prepare();
    let used = 8 * size - free_of(&roomy);
    let fs = match holes {
        true => MemoryFileSystem::with_capacity(used + free),
        false => MemoryFileSystem::without_holes(used + free),
    };
    drop(roomy);
    let tight = case(fs);
    tight.prepare();
    assert_eq!(free_of(&tight), free);
    tight
}

fn free_of(case: &Case) -> u64 {
    let file = case
        .fs
        .open(&case.path("base.vhdx"), avhdx::storage::Access::Read)
        .unwrap();
    file.available_space().unwrap().unwrap()
}

#[test]
fn a_gigabyte_merges_into_an_empty_base_with_64_mib_free() {
    for mode in [MergeMode::Consume, MergeMode::Auto] {
        let case = in_memory(1 << 30, false, 0, 64 * MIB, true);
        case.merge(mode).unwrap();
        case.verify("base.vhdx");
    }
}

#[test]
fn a_gigabyte_merges_into_a_full_base_with_64_mib_free() {
    for mode in [MergeMode::Consume, MergeMode::Auto] {
        let case = in_memory(1 << 30, true, 0, 64 * MIB, true);
        case.merge(mode).unwrap();
        case.verify("base.vhdx");
    }
}

#[test]
fn as_much_as_a_block_and_a_little_is_enough() {
    for (block, base_full) in [(1, false), (2, false), (2, true), (32, false)] {
        let block = block * MIB;
        // As docs/durability.md has it.
        let needed = if base_full { 0 } else { block } + 2 * MIB;
        let case = in_memory(128 * MIB, base_full, block as u32, needed, true);
        case.merge(MergeMode::Consume).unwrap();
        case.verify("base.vhdx");
        let case = in_memory(128 * MIB, base_full, block as u32, needed - 4096, true);
        refused(&case, MergeMode::Consume);
    }
}

/// Nothing was changed: not even a file's header.
fn refused(case: &Case, mode: MergeMode) {
    let before = free_of(case);
    let error = case.merge(mode).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{}", error.chain_text());
    assert_eq!(free_of(case), before);
    case.verify("child.avhdx");
}

#[test]
fn consuming_is_refused_where_it_frees_nothing() {
    for mode in [MergeMode::Consume, MergeMode::Auto] {
        let case = in_memory(64 * MIB, false, 0, 32 * MIB, false);
        refused(&case, mode);
        assert!(case.merge(mode).unwrap_err().to_string().contains("cannot release"));
    }
    let case = in_memory(64 * MIB, false, 0, 72 * MIB, false);
    case.merge(MergeMode::Consume).unwrap();
    case.verify("base.vhdx");
}

#[test]
fn a_copy_that_runs_out_of_space_goes_on_by_consuming() {
    for threads in [0, 3] {
        let case = in_memory(64 * MIB, false, 0, 72 * MIB, true);
        let others = case.fs.create_new(&case.path("others")).unwrap();
        let mut options = MergeOptions::default();
        options.threads = threads;
        let mut calls = 0;
        let report = ops::merge_path(&case.path("child.avhdx"), None, &case.open(), &options, &mut |_| {
            calls += 1;
            if calls == 5 {
                let mut at = 0;
                while others.available_space().unwrap().unwrap() > 4 * MIB {
                    // Threads may take it in between.
                    if others.write_at(&pattern(3, at), at).is_err() {
                        break;
                    }
                    at += MIB;
                }
                assert!(at > 0);
            }
            true
        });
        report.unwrap();
        case.verify("base.vhdx");
    }
}
