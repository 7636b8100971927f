//! A merge that fails at any call is finished by `resume`, with the locks of a disk in use; and what others note about a
//! disk is not believed.

use std::sync::Arc;

#[path = "common/shape.rs"]
mod shape;

use avhdx::format::locator::{self, Locator};
use avhdx::format::metadata;
use avhdx::ops;
use avhdx::options::{CheckpointOptions, DiskType, MergeOptions};
use avhdx::storage::fault::{FaultFileSystem, FaultMode};
use avhdx::storage::MemoryFileSystem;
use avhdx::{Chain, ErrorKind, Guid};
use shape::{create, options, path, MIB};

/// base <- a <- b, and what b reads as.
fn prepared() -> (MemoryFileSystem, Vec<u8>) {
    let fs = MemoryFileSystem::new();
    let open = options(&fs);
    create(&open, "base.vhdx", DiskType::Dynamic, 4 * MIB, 1, None);
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
    for mode in [FaultMode::FromHere, FaultMode::FlushLoses] {
        for n in 1.. {
            let memory = initial.snapshot();
            let faulty = FaultFileSystem::new(Arc::new(memory.clone()));
            let open = options(&faulty);
            let chain = Chain::open(&path("b.avhdx"), &open).unwrap();
            faulty.fail_in(n, libc::EIO, mode);
            let result = ops::merge(&chain, 1, 2, &MergeOptions::default(), &mut |_| true);
            if !faulty.disarm() {
                result.unwrap();
                break;
            }
            drop(chain);
            let open = options(&memory);
            let resumed = ops::resume(&path("b.avhdx"), &open, &MergeOptions::default(), &mut |_| true)
                .unwrap_or_else(|e| panic!("call {n} {mode:?}: {}", e.chain_text()));
            assert!(
                ops::pending(&path("b.avhdx"), &open).unwrap().is_none(),
                "call {n} {mode:?}"
            );
            if resumed.is_some() {
                finished += 1;
                assert!(!memory.paths().contains(&path("a.avhdx")), "call {n} {mode:?}");
            }
            let mut found = vec![0xEE; content.len()];
            let chain = Chain::open(&path("b.avhdx"), &open).unwrap();
            chain.read(&mut found, 0).unwrap();
            assert!(found == content, "call {n} {mode:?}");
        }
    }
    assert!(finished > 5, "{finished} merges were finished");
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
    let open = options(fs);
    let info = Chain::open(&path(name), &open).unwrap().info().unwrap();
    assert!(info.pending_merge, "the note is there");
}

/// Notes of merges that never were, in a file that somebody put beside the disks of others: none of those is merged,
/// removed or made unusable by them.
#[test]
fn a_note_about_another_file_is_not_believed() {
    for (layers, abandoned) in [(0, 0), (1, 0), (1, 5), (usize::MAX, usize::MAX)] {
        for stage in ["copying", "copied", "child", "retired"] {
            let (fs, content) = prepared();
            let open = options(&fs);
            create(&open, "evil.avhdx", DiskType::Differencing, 0, 1, Some("a.avhdx"));
            let victim = Chain::probe(&path("b.avhdx"), &open).unwrap().data_write_guid;
            let evil = Chain::probe(&path("evil.avhdx"), &open).unwrap().data_write_guid;
            for (top, leaf) in [(victim, "layer"), (evil, "leaf")] {
                let fs = fs.snapshot();
                let open = options(&fs);
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
                assert!(fs.paths().contains(&path("b.avhdx")), "{note}");
                reads("b.avhdx");
                // Merging it does not take the other's word for being done.
                let merged = ops::merge_path(&path("b.avhdx"), None, &open, &MergeOptions::default(), &mut |_| true);
                match merged {
                    Ok(_) => reads("a.avhdx"),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::HasChildren, "{note}"),
                }
            }
        }
    }
}
