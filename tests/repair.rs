//! Repair: what it mends, what it leaves alone, and that undo gives back every bit. Power cuts are in `crash`.

#[path = "common/damaged.rs"]
mod damaged;

use std::path::Path;
use std::sync::Arc;

use avhdx::ops::{self, CheckOptions, Finding, RepairOptions, RepairReport};
use avhdx::options::OpenOptions;
use avhdx::storage::fault::{FaultFileSystem, FaultMode};
use avhdx::storage::{Access, FileSystem, MemoryFileSystem};
use avhdx::{Chain, ErrorKind};
use damaged::{bytes, content, judge, on, patch, path, prepared, BAT, DAMAGES, MIB};

fn repair(fs: &MemoryFileSystem, name: &str, options: &RepairOptions) -> (RepairReport, Vec<Finding>) {
    let mut findings = Vec::new();
    let report = ops::repair(&path(name), &on(fs), options, &mut |f| findings.push(f.clone()))
        .unwrap_or_else(|e| panic!("{}", e.chain_text()));
    (report, findings)
}

fn findings(fs: &MemoryFileSystem, name: &str) -> Vec<String> {
    let mut all = Vec::new();
    ops::check(&path(name), &on(fs), &CheckOptions::default(), &mut |f| {
        all.push(f.defect.to_string())
    })
    .unwrap();
    all
}

#[test]
fn what_can_be_mended_is_and_undo_gives_back_every_bit() {
    for (name, dirty, damage) in DAMAGES {
        let fs = prepared(*dirty);
        damage(&fs);
        let before = bytes(&fs, "a.avhdx");
        let read = content(&on(&fs), "a.avhdx");
        let mut dry = RepairOptions::default();
        dry.dry_run = true;
        let (promised, _) = repair(&fs, "a.avhdx", &dry);
        assert_eq!(bytes(&fs, "a.avhdx"), before, "{name}: a dry run changes nothing");
        assert!(!fs.paths().contains(&path("a.avhdx.undo")), "{name}");
        let (report, found) = repair(&fs, "a.avhdx", &RepairOptions::default());
        assert!(report.check.repaired > 0, "{name}: {found:?}");
        assert_eq!(promised.check, report.check, "{name}");
        assert_eq!(
            (report.check.errors, report.check.warnings),
            (0, 0),
            "{name}: {found:?}"
        );
        assert_eq!(report.undo, Some(path("a.avhdx.undo")), "{name}");
        assert_eq!(findings(&fs, "a.avhdx"), Vec::<String>::new(), "{name}");
        assert!(content(&on(&fs), "a.avhdx") == read, "{name}: reads differently");
        ops::undo(&path("a.avhdx"), None, &on(&fs)).unwrap();
        assert!(bytes(&fs, "a.avhdx") == before, "{name}: undo");
    }
}

#[test]
fn a_good_file_is_not_touched() {
    let fs = prepared(false);
    let before = bytes(&fs, "a.avhdx");
    let (report, found) = repair(&fs, "a.avhdx", &RepairOptions::default());
    assert_eq!((report.check.repaired, report.undo, found.len()), (0, None, 0));
    assert!(bytes(&fs, "a.avhdx") == before);
    assert!(!fs.paths().contains(&path("a.avhdx.undo")));
}

#[test]
fn what_would_be_a_guess_stays_a_finding() {
    let fs = prepared(false);
    // Two blocks with one place: whose it is nobody can tell.
    let present = bytes(&fs, "a.avhdx")[BAT as usize + 3 * 8..][..8].to_vec();
    patch(&fs, "a.avhdx", BAT + 4 * 8, &present);
    let before = bytes(&fs, "a.avhdx");
    let (report, found) = repair(&fs, "a.avhdx", &RepairOptions::default());
    assert_eq!((report.check.errors, report.check.repaired), (1, 0), "{found:?}");
    assert!(bytes(&fs, "a.avhdx") == before);
    // Nor is what nobody owns cut away then.
    let storage = fs.open(&path("a.avhdx"), Access::Write).unwrap();
    storage.write_at(&[9; 4096], storage.len().unwrap() + MIB).unwrap();
    let len = storage.len().unwrap();
    let mut cut = RepairOptions::default();
    cut.cut_tail = true;
    repair(&fs, "a.avhdx", &cut);
    assert_eq!(storage.len().unwrap(), len);
    // A parent that is nowhere is not looked for elsewhere.
    let alone = MemoryFileSystem::new();
    let file = alone.create_new(&path("a.avhdx")).unwrap();
    file.write_at(&bytes(&prepared(false), "a.avhdx"), 0).unwrap();
    let (report, found) = repair(&alone, "a.avhdx", &RepairOptions::default());
    assert_eq!((report.check.warnings, report.check.repaired), (1, 0), "{found:?}");
}

#[test]
fn the_tail_is_cut_when_asked_for_and_comes_back() {
    let fs = prepared(false);
    let storage = fs.open(&path("a.avhdx"), Access::Write).unwrap();
    let len = storage.len().unwrap();
    storage.write_at(&[9; 5000], len + 3 * MIB - 5000).unwrap();
    let before = bytes(&fs, "a.avhdx");
    let mut cut = RepairOptions::default();
    cut.cut_tail = true;
    let (report, _) = repair(&fs, "a.avhdx", &cut);
    assert_eq!((report.check.repaired, storage.len().unwrap()), (1, len));
    ops::undo(&path("a.avhdx"), None, &on(&fs)).unwrap();
    assert!(bytes(&fs, "a.avhdx") == before);
}

#[test]
fn a_log_without_entries_is_emptied_only_on_request() {
    let fs = prepared(false);
    let clean = content(&on(&fs), "a.avhdx");
    {
        let chain = Chain::open(&path("a.avhdx"), &on(&fs)).unwrap();
        chain.write(&[4; 4096], 5 * MIB, true).unwrap();
    }
    patch(&fs, "a.avhdx", MIB, &[0xFF; MIB as usize]);
    let before = bytes(&fs, "a.avhdx");
    let (report, found) = repair(&fs, "a.avhdx", &RepairOptions::default());
    assert_eq!((report.check.errors, report.check.repaired), (1, 0), "{found:?}");
    let mut clear = RepairOptions::default();
    clear.clear_log = true;
    let (report, found) = repair(&fs, "a.avhdx", &clear);
    assert_eq!((report.check.errors, report.check.repaired), (0, 1), "{found:?}");
    assert!(content(&on(&fs), "a.avhdx") == clean);
    ops::undo(&path("a.avhdx"), None, &on(&fs)).unwrap();
    assert!(bytes(&fs, "a.avhdx") == before);
    // Not when another rule is broken as well.
    let present = bytes(&fs, "a.avhdx")[BAT as usize + 3 * 8..][..8].to_vec();
    patch(&fs, "a.avhdx", BAT + 4 * 8, &present);
    clear.undo = Some(path("second.undo"));
    let (report, _) = repair(&fs, "a.avhdx", &clear);
    assert_eq!((report.check.errors, report.check.repaired), (1, 0));
}

#[test]
fn paths_to_a_parent_that_moved_are_written_anew() {
    let fs = prepared(false);
    let read = content(&on(&fs), "a.avhdx");
    fs.rename_new(&path("base.vhdx"), Path::new("/store/renamed.vhdx"))
        .unwrap();
    let mut open = on(&fs);
    open.search = vec!["/store".into()];
    let mut mended = 0;
    ops::repair(&path("a.avhdx"), &open, &RepairOptions::default(), &mut |f| {
        mended += u32::from(f.repaired)
    })
    .unwrap();
    assert_eq!(mended, 1);
    assert!(content(&on(&fs), "a.avhdx") == read, "found without a search now");
}

#[test]
fn undo_is_refused_where_it_would_do_harm() {
    let fs = prepared(true);
    repair(&fs, "a.avhdx", &RepairOptions::default());
    let again = ops::repair(&path("a.avhdx"), &on(&fs), &RepairOptions::default(), &mut |_| ()).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Argument, "the undo file is not replaced");
    let good = bytes(&fs, "a.avhdx.undo");
    for at in (0..good.len() as u64).step_by(good.len() / 37) {
        let byte = good[at as usize] ^ 0x10;
        patch(&fs, "a.avhdx.undo", at, &[byte]);
        let refused = ops::undo(&path("a.avhdx"), None, &on(&fs));
        assert!(refused.is_err(), "a change at {at:#x} is noticed");
        patch(&fs, "a.avhdx.undo", at, &good[at as usize..=at as usize]);
    }
    let chain = Chain::open(&path("a.avhdx"), &on(&fs)).unwrap();
    chain.write(&[7; 512], 0, true).unwrap();
    chain.close().unwrap();
    let before = bytes(&fs, "a.avhdx");
    let refused = ops::undo(&path("a.avhdx"), None, &on(&fs)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Argument);
    assert!(bytes(&fs, "a.avhdx") == before);
}

#[test]
fn every_call_that_fails_is_told_and_does_no_harm() {
    for (name, dirty, damage) in DAMAGES {
        let initial = prepared(*dirty);
        damage(&initial);
        let before = bytes(&initial, "a.avhdx");
        let read = content(&on(&initial), "a.avhdx");
        for (errno, mode) in [
            (libc::EIO, FaultMode::Once),
            (libc::EIO, FaultMode::FromHere),
            (libc::ENOSPC, FaultMode::Short),
            (libc::EIO, FaultMode::FlushLoses),
        ] {
            for n in 1.. {
                let fs = initial.snapshot();
                let faulty = FaultFileSystem::new(Arc::new(fs.clone()));
                let open = OpenOptions::new().on(Arc::new(faulty.clone()));
                faulty.fail_in(n, errno, mode);
                let result = ops::repair(&path("a.avhdx"), &open, &RepairOptions::default(), &mut |_| ());
                if !faulty.disarm() {
                    result.unwrap_or_else(|e| panic!("{name}: without a fault: {}", e.chain_text()));
                    let few = if mode == FaultMode::FlushLoses { 2 } else { 20 };
                    assert!(n > few, "{name} makes {n} calls only");
                    break;
                }
                let fs = fs.snapshot();
                let what = format!("{name}, call {n} {mode:?}");
                judge(&fs, &before, &read, true).unwrap_or_else(|why| panic!("{what}: {why}"));
                assert!(findings(&fs, "base.vhdx").is_empty(), "{what}");
            }
        }
    }
}
