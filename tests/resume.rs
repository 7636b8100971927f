//! A merge that fails at any call is finished by `resume`, with the locks of a disk in use.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::ops;
use avhdx::options::{CheckpointOptions, CreateOptions, MergeOptions, OpenOptions};
use avhdx::storage::fault::{FaultFileSystem, FaultMode};
use avhdx::storage::MemoryFileSystem;
use avhdx::Chain;

const MIB: u64 = 1 << 20;

fn path(name: &str) -> PathBuf {
    Path::new("/vm").join(name)
}

/// base <- a <- b, and what b reads as.
fn prepared() -> (MemoryFileSystem, Vec<u8>) {
    let fs = MemoryFileSystem::new();
    let open = OpenOptions::new().on(Arc::new(fs.clone()));
    let mut create = CreateOptions::default();
    create.size = 4 * MIB;
    create.block_size = 1 << 20;
    create.open = open.clone();
    ops::create(&path("base.vhdx"), &create).unwrap();
    let chain = Chain::open(&path("base.vhdx"), &open).unwrap();
    for (n, name) in ["a.avhdx", "b.avhdx"].into_iter().enumerate() {
        chain.write(&[1 + n as u8; 70_000], n as u64 * MIB, false).unwrap();
        ops::checkpoint(&chain, &path(name), &CheckpointOptions::default()).unwrap();
    }
    chain.write(&[9; 5000], 2 * MIB, false).unwrap();
    let mut content = vec![0; 4 * MIB as usize];
    chain.read(&mut content, 0).unwrap();
    chain.close().unwrap();
    (fs, content)
}

/// Cut between the moment when the leaf has the target as its parent and the removal of the merged file, the leaf is what
/// was asked for and a file is left: finishing that opens the leaf once more, as a child of the file.
#[test]
fn a_merge_below_the_leaf_is_finished_wherever_it_stopped() {
    let (initial, content) = prepared();
    let mut finished = 0;
    for n in 1.. {
        let memory = initial.snapshot();
        let faulty = FaultFileSystem::new(Arc::new(memory.clone()));
        let open = OpenOptions::new().on(Arc::new(faulty.clone()));
        let chain = Chain::open(&path("b.avhdx"), &open).unwrap();
        faulty.fail_in(n, libc::EIO, FaultMode::FromHere);
        let result = ops::merge(&chain, 1, 2, &MergeOptions::default(), &mut |_| true);
        if !faulty.disarm() {
            result.unwrap();
            break;
        }
        drop(chain);
        let open = OpenOptions::new().on(Arc::new(memory.clone()));
        let resumed = ops::resume(&path("b.avhdx"), &open, &MergeOptions::default(), &mut |_| true)
            .unwrap_or_else(|e| panic!("call {n}: {}", e.chain_text()));
        assert!(ops::pending(&path("b.avhdx"), &open).unwrap().is_none(), "call {n}");
        if resumed.is_some() {
            finished += 1;
            assert!(!memory.paths().contains(&path("a.avhdx")), "call {n}");
        }
        let mut found = vec![0xEE; content.len()];
        let chain = Chain::open(&path("b.avhdx"), &open).unwrap();
        chain.read(&mut found, 0).unwrap();
        assert!(found == content, "call {n}");
    }
    assert!(finished > 5, "{finished} merges were finished");
}
