//! Repair and undo: the file is as it was, or can be repaired again, or the undo file gives back every bit.

use avhdx::ops::{self, RepairOptions};
use avhdx::options::OpenOptions;
use avhdx::storage::crash::CrashFileSystem;
use avhdx::storage::{Barrier, MemoryFileSystem};

use crate::damaged::{bytes, content, judge, on, prepared, DAMAGES};
use crate::harness::{self, fail, is_needed, options, path, survives, usual, Forget, Story};

struct Repaired {
    fs: CrashFileSystem,
    before: Vec<u8>,
    read: Vec<u8>,
}

impl Repaired {
    fn new(damage: usize) -> Repaired {
        let (_, dirty, damage) = DAMAGES[damage];
        let initial = prepared(dirty);
        damage(&initial);
        let before = bytes(&initial, "a.avhdx");
        let read = content(&on(&initial), "a.avhdx");
        let fs = CrashFileSystem::new(&initial);
        let open = options(&fs);
        ops::repair(&path("a.avhdx"), &open, &RepairOptions::default(), &mut |_| ()).unwrap();
        fs.mark(1);
        ops::undo(&path("a.avhdx"), None, &open).unwrap();
        fs.mark(2);
        Repaired { fs, before, read }
    }
}

impl Story for Repaired {
    fn fs(&self) -> &CrashFileSystem {
        &self.fs
    }

    fn verify(&self, state: &MemoryFileSystem, marks: &[u64], _: bool) -> Result<(), String> {
        judge(state, &self.before, &self.read, marks.is_empty())
    }

    /// Undone, once there is something to undo.
    fn recover(&self, on: &OpenOptions, _: &[u64]) -> Result<(), String> {
        match on.file_system.kind(&path("a.avhdx.undo")) {
            Ok(_) => ops::undo(&path("a.avhdx"), None, on).map_err(|e| fail("undo", e)),
            Err(_) => Ok(()),
        }
    }

    /// A file whose undoing was cut is for undoing only.
    fn marks_of_recovery(&self, _: &[u64]) -> Vec<u64> {
        vec![1]
    }
}

pub fn scenarios() -> Vec<harness::Scenario> {
    let scenario = |i: usize| harness::Scenario {
        operation: "repair",
        name: DAMAGES[i].0.into(),
        run: Box::new(move || Box::new(Repaired::new(i))),
        times: 3,
        thorough: 1,
    };
    (0..DAMAGES.len()).map(scenario).collect()
}

#[test]
fn every_power_cut_leaves_what_can_be_repaired_or_undone() {
    survives(&scenarios(), "repair", usual(), 2000);
}

#[test]
fn without_its_barriers_a_power_cut_does_harm() {
    for barrier in [Barrier::NewFile, Barrier::HeaderFirst] {
        is_needed(&scenarios(), "repair", Forget::Barrier(barrier));
    }
}
