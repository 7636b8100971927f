//! Repair: what it mends, what it leaves alone, that undo gives back every bit, and that it can be cut anywhere.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::ops::{self, CheckOptions, Finding, RepairOptions, RepairReport};
use avhdx::options::{CheckpointOptions, CreateOptions, OpenOptions};
use avhdx::storage::crash::{CrashFileSystem, CrashOptions};
use avhdx::storage::fault::{FaultFileSystem, FaultMode};
use avhdx::storage::{Access, Barrier, FileSystem, MemoryFileSystem};
use avhdx::{Chain, ErrorKind};

const MIB: u64 = 1 << 20;
/// Where a small new file has its BAT.
const BAT: u64 = 3 * MIB;

fn path(name: &str) -> PathBuf {
    Path::new("/vm").join(name)
}

fn on(fs: &MemoryFileSystem) -> OpenOptions {
    OpenOptions::new().on(Arc::new(fs.clone()))
}

fn bytes(fs: &MemoryFileSystem, name: &str) -> Vec<u8> {
    let storage = fs.open(&path(name), Access::Read).unwrap();
    let mut all = vec![0; storage.len().unwrap() as usize];
    storage.read_at(&mut all, 0).unwrap();
    all
}

/// Whether the file is these bytes.
fn is(fs: &MemoryFileSystem, name: &str, wanted: &[u8]) -> bool {
    let storage = fs.open(&path(name), Access::Read).unwrap();
    let read = |buf: &mut [u8], at| storage.read_at(buf, at).unwrap();
    storage.len().unwrap() == wanted.len() as u64 && equal(wanted, read)
}

/// Compares in pieces: a new buffer of megabytes for each of thousands of states costs more than all the rest.
fn equal(wanted: &[u8], mut read: impl FnMut(&mut [u8], u64)) -> bool {
    let mut buf = [0; 32 << 10];
    wanted.chunks(buf.len()).enumerate().all(|(i, wanted)| {
        let found = &mut buf[..wanted.len()];
        read(found, i as u64 * (32 << 10));
        found == wanted
    })
}

/// Whether the disk reads so.
fn reads_as(options: &OpenOptions, name: &str, wanted: &[u8]) -> bool {
    let mut options = options.clone();
    options.read_only = true;
    let chain = Chain::open(&path(name), &options).unwrap_or_else(|e| panic!("{}", e.chain_text()));
    chain.size() == wanted.len() as u64 && equal(wanted, |buf, at| chain.read(buf, at).unwrap())
}

fn patch(fs: &MemoryFileSystem, name: &str, at: u64, bytes: &[u8]) {
    fs.open(&path(name), Access::Write)
        .unwrap()
        .write_at(bytes, at)
        .unwrap();
}

fn content(options: &OpenOptions, name: &str) -> Vec<u8> {
    let mut options = options.clone();
    options.read_only = true;
    let chain = Chain::open(&path(name), &options).unwrap_or_else(|e| panic!("{}", e.chain_text()));
    let mut all = vec![0; chain.size() as usize];
    chain.read(&mut all, 0).unwrap();
    all
}

/// A base and a child, both with something in them; the child's log is dirty where `dirty`.
fn prepared(dirty: bool) -> MemoryFileSystem {
    let fs = MemoryFileSystem::new();
    let mut create = CreateOptions::default();
    create.size = 6 * MIB;
    create.block_size = MIB as u32;
    create.open = on(&fs);
    ops::create(&path("base.vhdx"), &create).unwrap();
    let chain = Chain::open(&path("base.vhdx"), &on(&fs)).unwrap();
    chain.write(&[1; 2 * MIB as usize], 0, false).unwrap();
    let mut checkpoint = CheckpointOptions::default();
    checkpoint.block_size = MIB as u32;
    ops::checkpoint(&chain, &path("a.avhdx"), &checkpoint).unwrap();
    chain.write(&[2; 65536], MIB - 4096, true).unwrap();
    chain.write(&[3; MIB as usize], 3 * MIB, true).unwrap();
    if !dirty {
        chain.close().unwrap();
    }
    fs
}

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

type Damage = fn(&MemoryFileSystem);

fn bad_header_of(fs: &MemoryFileSystem, newest: bool) {
    let all = bytes(fs, "a.avhdx");
    let number = |at: usize| u64::from_le_bytes(all[at + 8..at + 16].try_into().unwrap());
    let at = match (number(0x10000) > number(0x20000)) == newest {
        true => 0x10000,
        false => 0x20000,
    };
    patch(fs, "a.avhdx", at + 100, b"x");
}

/// Names, whether the log is dirty, the damage, and how many findings a repair mends.
const DAMAGES: &[(&str, bool, Damage)] = &[
    ("a dirty log", true, |_| ()),
    ("a bad older header", false, |fs| bad_header_of(fs, false)),
    ("a bad older header and a dirty log", true, |fs| {
        bad_header_of(fs, false)
    }),
    ("a bad first region table", false, |fs| {
        patch(fs, "a.avhdx", 0x30010, b"x")
    }),
    ("a bad second region table", false, |fs| {
        patch(fs, "a.avhdx", 0x40010, b"x")
    }),
    ("an offset in an absent entry", false, |fs| {
        patch(fs, "a.avhdx", BAT + 2 * 8, &(7 * MIB).to_le_bytes())
    }),
    ("a trimmed block on another's place", false, |fs| {
        let present = bytes(fs, "a.avhdx")[BAT as usize + 3 * 8..][..8].to_vec();
        let raw = u64::from_le_bytes(present.try_into().unwrap());
        patch(fs, "a.avhdx", BAT + 5 * 8, &(raw & !7 | 3).to_le_bytes());
    }),
    ("several at once", true, |fs| {
        patch(fs, "a.avhdx", 0x40010, b"x");
        bad_header_of(fs, false);
    }),
];

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

/// Cuts a repair, and an undo of it, everywhere; the number of states, or the first that is wrong.
fn cut(ignore: Option<Barrier>) -> Result<u64, String> {
    let mut states = 0;
    for (name, dirty, damage) in DAMAGES {
        let initial = prepared(*dirty);
        damage(&initial);
        let before = bytes(&initial, "a.avhdx");
        let read = content(&on(&initial), "a.avhdx");
        let crash = CrashFileSystem::new(&initial);
        let open = OpenOptions::new().on(Arc::new(crash.clone()));
        ops::repair(&path("a.avhdx"), &open, &RepairOptions::default(), &mut |_| ()).unwrap();
        crash.mark(1);
        ops::undo(&path("a.avhdx"), None, &open).unwrap();
        let options = CrashOptions {
            subsets_per_point: 24,
            garble_below: 192 << 10,
            ignore,
            ..CrashOptions::default()
        };
        let mut wrong = None;
        let stats = crash.enumerate(&options, &mut |state, point| {
            let verdict = judge(&state, &before, &read, point.marks.is_empty());
            match verdict {
                Ok(()) => ControlFlow::Continue(()),
                Err(why) => {
                    wrong = Some(format!("{name}: {why}\n  {}", point.description));
                    ControlFlow::Break(())
                }
            }
        });
        if let Some(why) = wrong {
            return Err(why);
        }
        states += stats.states;
    }
    Ok(states)
}

fn judge(state: &MemoryFileSystem, before: &[u8], read: &[u8], repairing: bool) -> Result<(), String> {
    let tell = |what: &str, e: avhdx::Error| format!("{what}: {}", e.chain_text());
    let undo = state.paths().contains(&path("a.avhdx.undo"));
    if !undo && !is(state, "a.avhdx", before) {
        return Err("changed without an undo file".into());
    }
    if repairing {
        // The repair can be made again.
        let again = state.snapshot();
        let mut options = RepairOptions::default();
        options.undo = Some(path("again.undo"));
        let report = ops::repair(&path("a.avhdx"), &on(&again), &options, &mut |_| ()).map_err(|e| tell("again", e))?;
        if report.check.errors + report.check.warnings > 0 {
            return Err(format!("repaired again: {:?}", report.check));
        }
        if !reads_as(&on(&again), "a.avhdx", read) {
            return Err("reads differently after another repair".into());
        }
    }
    if undo {
        ops::undo(&path("a.avhdx"), None, &on(state)).map_err(|e| tell("undo", e))?;
        if !is(state, "a.avhdx", before) {
            return Err("undo does not give back every bit".into());
        }
    }
    Ok(())
}

#[test]
fn every_power_cut_leaves_what_can_be_repaired_or_undone() {
    let states = cut(None).unwrap_or_else(|why| panic!("{why}"));
    println!("{states} states");
    assert!(states >= 2000, "only {states} states");
}

#[test]
fn without_its_barriers_a_power_cut_does_harm() {
    for barrier in [Barrier::NewFile, Barrier::HeaderFirst] {
        assert!(
            cut(Some(barrier)).is_err(),
            "{barrier:?} can be left out and nobody notices"
        );
    }
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
        ] {
            for n in 1.. {
                let fs = initial.snapshot();
                let faulty = FaultFileSystem::new(Arc::new(fs.clone()));
                let open = OpenOptions::new().on(Arc::new(faulty.clone()));
                faulty.fail_in(n, errno, mode);
                let result = ops::repair(&path("a.avhdx"), &open, &RepairOptions::default(), &mut |_| ());
                if !faulty.disarm() {
                    result.unwrap_or_else(|e| panic!("{name}: without a fault: {}", e.chain_text()));
                    assert!(n > 20, "{name} makes {n} calls only");
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
