//! Disks to repair, and what must hold after a repair that went wrong.
#![allow(dead_code)] // each file uses some of it

use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::ops::{self, RepairOptions};
use avhdx::options::{CheckpointOptions, CreateOptions, OpenOptions};
use avhdx::storage::{Access, FileSystem, MemoryFileSystem};
use avhdx::Chain;

pub const MIB: u64 = 1 << 20;
/// Where a small new file has its BAT.
pub const BAT: u64 = 3 * MIB;

pub fn path(name: &str) -> PathBuf {
    Path::new("/vm").join(name)
}

pub fn on(fs: &MemoryFileSystem) -> OpenOptions {
    OpenOptions::new().on(Arc::new(fs.clone()))
}

pub fn bytes(fs: &MemoryFileSystem, name: &str) -> Vec<u8> {
    let storage = fs.open(&path(name), Access::Read).unwrap();
    let mut all = vec![0; storage.len().unwrap() as usize];
    storage.read_at(&mut all, 0).unwrap();
    all
}

/// Whether the file is these bytes.
pub fn is(fs: &MemoryFileSystem, name: &str, wanted: &[u8]) -> bool {
    let storage = fs.open(&path(name), Access::Read).unwrap();
    let read = |buf: &mut [u8], at| storage.read_at(buf, at).unwrap();
    storage.len().unwrap() == wanted.len() as u64 && equal(wanted, read)
}

/// Compares in pieces: a new buffer of megabytes for each of thousands of states costs more than all the rest.
pub fn equal(wanted: &[u8], mut read: impl FnMut(&mut [u8], u64)) -> bool {
    let mut buf = [0; 32 << 10];
    wanted.chunks(buf.len()).enumerate().all(|(i, wanted)| {
        let found = &mut buf[..wanted.len()];
        read(found, i as u64 * (32 << 10));
        found == wanted
    })
}

/// Whether the disk reads so.
pub fn reads_as(options: &OpenOptions, name: &str, wanted: &[u8]) -> bool {
    let mut options = options.clone();
    options.read_only = true;
    let chain = Chain::open(&path(name), &options).unwrap_or_else(|e| panic!("{}", e.chain_text()));
    chain.size() == wanted.len() as u64 && equal(wanted, |buf, at| chain.read(buf, at).unwrap())
}

pub fn patch(fs: &MemoryFileSystem, name: &str, at: u64, bytes: &[u8]) {
    fs.open(&path(name), Access::Write)
        .unwrap()
        .write_at(bytes, at)
        .unwrap();
}

pub fn content(options: &OpenOptions, name: &str) -> Vec<u8> {
    let mut options = options.clone();
    options.read_only = true;
    let chain = Chain::open(&path(name), &options).unwrap_or_else(|e| panic!("{}", e.chain_text()));
    let mut all = vec![0; chain.size() as usize];
    chain.read(&mut all, 0).unwrap();
    all
}

/// A base and a child, both with something in them; the child's log is dirty where `dirty`.
pub fn prepared(dirty: bool) -> MemoryFileSystem {
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

pub type Damage = fn(&MemoryFileSystem);

pub fn bad_header_of(fs: &MemoryFileSystem, newest: bool) {
    let all = bytes(fs, "a.avhdx");
    let number = |at: usize| u64::from_le_bytes(all[at + 8..at + 16].try_into().unwrap());
    let at = match (number(0x10000) > number(0x20000)) == newest {
        true => 0x10000,
        false => 0x20000,
    };
    patch(fs, "a.avhdx", at + 100, b"x");
}

/// Names, whether the log is dirty, the damage, and how many findings a repair mends.
pub const DAMAGES: &[(&str, bool, Damage)] = &[
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

pub fn judge(state: &MemoryFileSystem, before: &[u8], read: &[u8], repairing: bool) -> Result<(), String> {
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
