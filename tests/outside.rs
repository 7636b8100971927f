//! What others do to the files of an open chain, in real files: they go, are cut, are replaced, or may no longer be
//! opened. The disk goes on as far as what it has open allows, says what it cannot do, and loses nothing.

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use avhdx::ops::{self, CheckOptions};
use avhdx::options::{
    CheckpointOptions, CreateOptions, DeleteInto, DeleteOptions, MergeOptions, OpenOptions, RevertOptions,
};
use avhdx::{Chain, Error, ErrorKind};
use common::MIB;

const SIZE: u64 = 4 * MIB;

/// base <- a <- b in `dir`, and the content of b.
fn family(dir: &Path) -> Vec<u8> {
    let mut create = CreateOptions::default();
    (create.size, create.block_size) = (SIZE, MIB as u32);
    ops::create(&dir.join("base.vhdx"), &create).unwrap();
    let chain = open(dir, "base.vhdx");
    chain.write(&[1; 2 * MIB as usize], 0, false).unwrap();
    checkpoint(&chain, dir, "a.avhdx").unwrap();
    chain.write(&[2; 65536], MIB, false).unwrap();
    checkpoint(&chain, dir, "b.avhdx").unwrap();
    chain.write(&[3; 4096], 3 * MIB, false).unwrap();
    chain.close().unwrap();
    content(&open(dir, "b.avhdx")).unwrap()
}

fn open(dir: &Path, name: &str) -> Chain {
    Chain::open(&dir.join(name), &OpenOptions::new()).unwrap()
}

fn checkpoint(chain: &Chain, dir: &Path, name: &str) -> Result<(), Error> {
    let mut options = CheckpointOptions::default();
    options.block_size = MIB as u32;
    ops::checkpoint(chain, &dir.join(name), &options)
}

fn merge(chain: &Chain, top: usize, base: usize) -> Result<(), Error> {
    ops::merge(chain, top, base, &MergeOptions::default(), &mut |_| true).map(drop)
}

fn content(chain: &Chain) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0xEE; SIZE as usize];
    chain.read(&mut bytes, 0).map(|()| bytes)
}

#[track_caller]
fn refused(done: Result<(), Error>, file: &Path) -> Error {
    let error = done.unwrap_err();
    let told = [ErrorKind::Io, ErrorKind::Truncated];
    assert!(told.contains(&error.kind()), "{}", error.chain_text());
    assert_eq!(error.path(), Some(file), "{}", error.chain_text());
    error
}

/// A directory in which no parent is looked for.
fn away(dir: &Path) -> PathBuf {
    fs::create_dir_all(dir.join("away")).unwrap();
    dir.join("away/file")
}

/// Every layer of the leaf is clean, and it reads as `wanted`.
fn is_whole(dir: &Path, leaf: &str, wanted: &[u8]) {
    let chain = open(dir, leaf);
    assert!(content(&chain).unwrap() == wanted, "{leaf} reads differently");
    let files: Vec<PathBuf> = (0..chain.layer_count()).map(|i| chain.layer_path(i).unwrap()).collect();
    chain.close().unwrap();
    for file in files {
        let report = ops::check(&file, &OpenOptions::new(), &CheckOptions::default(), &mut |_| {}).unwrap();
        assert_eq!(report.errors, 0, "{file:?}");
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_parent_that_vanishes_is_read_on_and_nothing_goes_into_it() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, mut wanted) = (dir.path(), family(dir.path()));
    let chain = open(dir, "b.avhdx");
    let base = dir.join("base.vhdx");
    fs::rename(&base, away(dir)).unwrap();
    assert!(content(&chain).unwrap() == wanted);
    chain.write(&[4; 512], 512, true).unwrap();
    wanted[512..1024].fill(4);
    refused(merge(&chain, 0, 2), &base);
    refused(merge(&chain, 1, 2), &base);
    let mut revert = RevertOptions::default();
    revert.block_size = MIB as u32;
    let reverted = ops::revert(&chain, 2, &dir.join("new.avhdx"), &revert);
    refused(reverted.map(drop), &base);
    // What does not concern it works.
    merge(&chain, 0, 1).unwrap();
    checkpoint(&chain, dir, "c.avhdx").unwrap();
    assert!(content(&chain).unwrap() == wanted);
    chain.close().unwrap();
    assert_eq!(names(dir), ["a.avhdx", "away", "c.avhdx"]);
    let error = Chain::open(&dir.join("c.avhdx"), &OpenOptions::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentNotFound, "{}", error.chain_text());
    fs::rename(away(dir), &base).unwrap();
    is_whole(dir, "c.avhdx", &wanted);
}

#[test]
fn a_leaf_that_vanishes_gets_no_children() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, mut wanted) = (dir.path(), family(dir.path()));
    let chain = open(dir, "b.avhdx");
    let leaf = dir.join("b.avhdx");
    fs::rename(&leaf, away(dir)).unwrap();
    chain.write(&[4; 512], 512, true).unwrap();
    wanted[512..1024].fill(4);
    // A child would name a file that is not there; a merge would remove it.
    refused(checkpoint(&chain, dir, "c.avhdx"), &leaf);
    refused(merge(&chain, 0, 1), &leaf);
    fs::write(&leaf, "another file").unwrap();
    refused(checkpoint(&chain, dir, "c.avhdx"), &leaf);
    refused(merge(&chain, 0, 1), &leaf);
    chain.write(&[5; 512], 1024, true).unwrap();
    wanted[1024..1536].fill(5);
    assert!(content(&chain).unwrap() == wanted);
    chain.close().unwrap();
    assert_eq!(fs::read(&leaf).unwrap(), b"another file");
    assert_eq!(names(dir), ["a.avhdx", "away", "b.avhdx", "base.vhdx"]);
    fs::rename(away(dir), &leaf).unwrap();
    is_whole(dir, "b.avhdx", &wanted);
}

#[test]
fn a_copy_in_the_place_of_a_parent_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, wanted) = (dir.path(), family(dir.path()));
    let chain = open(dir, "b.avhdx");
    for name in ["base.vhdx", "a.avhdx"] {
        // Identity and all: but what is open is the other one.
        fs::copy(dir.join(name), dir.join("copy")).unwrap();
        fs::rename(dir.join("copy"), dir.join(name)).unwrap();
    }
    let before = [
        fs::read(dir.join("base.vhdx")).unwrap(),
        fs::read(dir.join("a.avhdx")).unwrap(),
    ];
    for (top, base) in [(0, 2), (1, 2), (0, 1)] {
        // The copy of a depends on what it may be merged into.
        let error = merge(&chain, top, base).unwrap_err();
        let told = [ErrorKind::Io, ErrorKind::HasChildren];
        assert!(told.contains(&error.kind()), "{}", error.chain_text());
    }
    let mut delete = DeleteOptions::default();
    delete.into = DeleteInto::Children;
    ops::delete_layer(&chain, 1, &delete, &mut |_| true).unwrap_err();
    assert!(content(&chain).unwrap() == wanted);
    chain.close().unwrap();
    assert!(
        before
            == [
                fs::read(dir.join("base.vhdx")).unwrap(),
                fs::read(dir.join("a.avhdx")).unwrap()
            ]
    );
    is_whole(dir, "b.avhdx", &wanted);
}

#[test]
fn a_parent_that_is_cut_is_told_where_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, mut wanted) = (dir.path(), family(dir.path()));
    let base = dir.join("base.vhdx");
    let whole = fs::read(&base).unwrap();
    let chain = open(dir, "b.avhdx");
    let file = fs::File::options().write(true).open(&base).unwrap();
    // Into the second block of data.
    let data = whole.windows(4096).rposition(|piece| piece == [1; 4096]).unwrap() as u64;
    file.set_len(data - MIB / 2).unwrap();
    let mut buf = [0; 4096];
    refused(chain.read(&mut buf, 2 * MIB - 4096), &base);
    for at in [0, MIB, 3 * MIB] {
        chain.read(&mut buf, at).unwrap();
        assert!(buf[..] == wanted[at as usize..at as usize + 4096]);
    }
    chain.write(&[4; 512], 2 * MIB - 512, true).unwrap();
    wanted[2 * MIB as usize - 512..2 * MIB as usize].fill(4);
    // Its data is not there to be copied, and its BAT points behind its end.
    let mut delete = DeleteOptions::default();
    delete.into = DeleteInto::Parent;
    ops::delete_layer(&chain, 1, &delete, &mut |_| true).unwrap_err();
    ops::detach(&chain, &Default::default(), &mut |_| true).unwrap_err();
    // To nothing: also what was not read yet.
    file.set_len(0).unwrap();
    refused(content(&chain).map(drop), &base);
    chain.write(&[5; 512], 2 * MIB - 1024, true).unwrap();
    wanted[2 * MIB as usize - 1024..2 * MIB as usize - 512].fill(5);
    let mut report = Vec::new();
    let checked = ops::check(&base, &OpenOptions::new(), &CheckOptions::default(), &mut |f| {
        report.push(f.severity)
    });
    assert!(checked.is_err() || !report.is_empty());
    chain.close().unwrap();
    fs::write(&base, &whole).unwrap();
    is_whole(dir, "b.avhdx", &wanted);
}

// ---- permission ----

/// Permissions do not bind root: runs the test that calls it again, as nobody.
fn as_nobody(test: &str) {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    let program = dir.path().join("test");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let done = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(&program)
        .args(["--exact", test, "--nocapture"])
        .env("TMPDIR", dir.path())
        .output();
    match done {
        Ok(done) => {
            let text = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
            assert!(done.status.success() && text.contains("1 passed"), "{text}");
        }
        Err(e) => common::skip(&format!("no setpriv: {e}")),
    }
}

fn is_root() -> bool {
    // /proc/self belongs to who runs.
    std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").unwrap()) == 0
}

fn allow(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn permission_that_is_lost_stops_only_what_needs_it() {
    if is_root() {
        return as_nobody("permission_that_is_lost_stops_only_what_needs_it");
    }
    let dir = tempfile::tempdir().unwrap();
    let (dir, mut wanted) = (dir.path(), family(dir.path()));
    let (base, leaf) = (dir.join("base.vhdx"), dir.join("b.avhdx"));
    let chain = open(dir, "b.avhdx");
    let before = fs::read(&base).unwrap();
    for mode in [0o444, 0] {
        allow(&base, mode);
        allow(&leaf, mode);
        for top in [0, 1] {
            assert_eq!(refused(merge(&chain, top, 2), &base).errno(), libc::EACCES);
        }
        assert!(content(&chain).unwrap() == wanted);
        chain.write(&[mode as u8; 512], 512, true).unwrap();
        wanted[512..1024].fill(mode as u8);
    }
    // Nor may a new directory entry be made.
    allow(dir, 0o555);
    assert_eq!(checkpoint(&chain, dir, "c.avhdx").unwrap_err().errno(), libc::EACCES);
    chain.write(&[7; 512], 2 * MIB, true).unwrap();
    wanted[2 * MIB as usize..2 * MIB as usize + 512].fill(7);
    chain.close().unwrap();
    let error = Chain::open(&leaf, &OpenOptions::new()).unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::Io, libc::EACCES));
    allow(&leaf, 0o644);
    let error = Chain::open(&leaf, &OpenOptions::new()).unwrap_err();
    assert!(error.chain_text().contains("base.vhdx"), "{}", error.chain_text());
    assert!(
        error.chain_text().contains("ermission denied"),
        "{}",
        error.chain_text()
    );
    allow(&base, 0o644);
    assert!(fs::read(&base).unwrap() == before);
    is_whole(dir, "b.avhdx", &wanted);
    // What was merged but may not be removed is told, and no disk.
    let chain = open(dir, "b.avhdx");
    assert_eq!(refused(merge(&chain, 0, 1), &leaf).errno(), libc::EACCES);
    chain.close().unwrap();
    allow(dir, 0o755);
    is_whole(dir, "a.avhdx", &wanted);
}
