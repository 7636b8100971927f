//! Recording paths anew: the disks are what they were, with the old paths or the new ones.

use std::path::PathBuf;
use std::sync::Arc;

use avhdx::ops::tree::{self, ProblemKind};
use avhdx::options::OpenOptions;
use avhdx::storage::crash::CrashFileSystem;
use avhdx::storage::{Barrier, MemoryFileSystem};
use avhdx::Guid;

use crate::harness::{self, fail, is_needed, options, survives, usual, Forget, Story};
use crate::moved::{moved, scan_memory, verify};

struct Relinked {
    fs: CrashFileSystem,
    disks: Vec<(PathBuf, Vec<u8>, Guid)>,
}

impl Relinked {
    fn new(dirty: bool) -> Relinked {
        let (initial, disks) = moved(dirty);
        let fs = CrashFileSystem::new(&initial);
        let tree = scan_memory(Arc::new(fs.clone()));
        assert_eq!(tree.count(ProblemKind::StalePath), 2);
        for done in tree::relink(&tree, &options(&fs)) {
            done.result.unwrap();
            fs.mark(done.node as u64);
        }
        Relinked { fs, disks }
    }
}

impl Story for Relinked {
    fn fs(&self) -> &CrashFileSystem {
        &self.fs
    }

    fn verify(&self, state: &MemoryFileSystem, marks: &[u64], _: bool) -> Result<(), String> {
        verify(state, &self.disks, marks.len() == 2)
    }

    fn recover(&self, on: &OpenOptions, _: &[u64]) -> Result<(), String> {
        let tree = scan_memory(on.file_system.clone());
        let mut done = tree::relink(&tree, on).into_iter();
        done.try_for_each(|one| one.result).map_err(|e| fail("again", e))
    }
}

pub fn scenarios() -> Vec<harness::Scenario> {
    let scenario = |dirty| harness::Scenario {
        operation: "relink",
        name: if dirty { "dirty" } else { "clean" }.into(),
        run: Box::new(move || Box::new(Relinked::new(dirty))),
        times: 4,
        thorough: 1,
    };
    [false, true].map(scenario).into()
}

#[test]
fn power_cuts_leave_old_or_new_paths() {
    survives(&scenarios(), "relink", usual(), 2000);
}

#[test]
fn without_a_barrier_a_power_cut_does_harm() {
    for barrier in [
        Barrier::HeaderFirst,
        Barrier::LogStart,
        Barrier::LogEntry,
        Barrier::BeforeLogClear,
    ] {
        is_needed(&scenarios(), "relink", Forget::Barrier(barrier));
    }
}
