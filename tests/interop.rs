//! Other programs read what we write: QEMU, libvhdi, dissect.hypervisor, 7-Zip; and locks exclude QEMU.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use avhdx::ops;
use avhdx::options::{CheckpointOptions, ConvertOptions, CreateOptions, DiskType, OpenOptions, ZeroFlags};
use avhdx::{Chain, ErrorKind};
use common::{have, reader_python, MIB};

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().expect(program)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn create(path: &Path, kind: DiskType, size: u64, block_mib: u32) {
    let mut options = CreateOptions::default();
    options.disk_type = kind;
    options.size = size;
    options.block_size = block_mib << 20;
    ops::create(path, &options).unwrap();
}

/// Some data, some zeros, some discarded, in places that meet every state.
fn scribble(chain: &Chain, seed: u8) {
    let fill = |at: u64, len: u64, byte: u8| chain.write(&vec![byte; len as usize], at, false).unwrap();
    fill(u64::from(seed) * 4096, 65536, seed);
    fill(3 * MIB - 4096, 8192, seed + 1);
    fill(6 * MIB, MIB, seed + 2);
    fill(chain.size() - 4096, 4096, seed + 3);
}

fn raw_copy(chain: &Chain, path: &Path) {
    ops::convert(chain, path, &ConvertOptions::default(), &mut |_| true).unwrap();
}

#[test]
fn qemu_agrees_on_standalone_disks() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (kind, block) in [(DiskType::Dynamic, 1), (DiskType::Dynamic, 32), (DiskType::Fixed, 2)] {
        let (disk, raw) = (dir.path().join("disk.vhdx"), dir.path().join("disk.raw"));
        create(&disk, kind, 40 * MIB + 4096, block);
        let chain = Chain::open(&disk, &OpenOptions::new()).unwrap();
        scribble(&chain, 1);
        chain
            .zero(
                6 * MIB,
                2 * MIB,
                ZeroFlags {
                    may_unmap: true,
                    ..Default::default()
                },
            )
            .unwrap();
        chain.flush().unwrap();
        chain.discard(0, 4 * MIB, false).unwrap();
        scribble(&chain, 9);
        raw_copy(&chain, &raw);
        chain.close().unwrap();
        let check = run("qemu-img", &["check", "-f", "vhdx", text(&disk)]);
        assert!(check.status.success(), "{kind:?}: {check:?}");
        let compare = run(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "vhdx", text(&raw), text(&disk)],
        );
        assert!(compare.status.success(), "{kind:?}: {compare:?}");
        // And QEMU's changes are ours.
        let write = run("qemu-io", &["-f", "vhdx", "-c", "write -P 0x5a 10M 1M", text(&disk)]);
        assert!(write.status.success(), "{write:?}");
        let chain = Chain::open(&disk, &OpenOptions::read_only()).unwrap();
        let mut found = vec![0; MIB as usize];
        chain.read(&mut found, 10 * MIB).unwrap();
        assert!(found.iter().all(|&b| b == 0x5a));
        drop(chain);
        std::fs::remove_file(&disk).unwrap();
        std::fs::remove_file(&raw).unwrap();
    }
}

/// A chain of three, each block size another, closed; its raw content.
fn chain(dir: &Path) -> (Vec<PathBuf>, PathBuf) {
    let paths: Vec<PathBuf> = ["base.vhdx", "a.avhdx", "b.avhdx"]
        .iter()
        .map(|n| dir.join(n))
        .collect();
    create(&paths[0], DiskType::Dynamic, 64 * MIB, 2);
    let chain = Chain::open(&paths[0], &OpenOptions::new()).unwrap();
    scribble(&chain, 1);
    chain.write(&vec![0x11; 20 * MIB as usize], 20 * MIB, false).unwrap();
    for (path, block) in paths[1..].iter().zip([2u32, 4]) {
        let mut options = CheckpointOptions::default();
        options.block_size = block << 20;
        ops::checkpoint(&chain, path, &options).unwrap();
        scribble(&chain, 16 * block as u8);
        chain
            .write(
                &vec![block as u8; 3 * MIB as usize],
                (20 + u64::from(block)) * MIB,
                false,
            )
            .unwrap();
    }
    let raw = dir.join("disk.raw");
    raw_copy(&chain, &raw);
    chain.close().unwrap();
    (paths, raw)
}

const LIBVHDI: &str = r#"
import sys, pyvhdi
paths, raw = sys.argv[1:-1], sys.argv[-1]
files = []
for path in paths:  # leaf first
    f = pyvhdi.file(); f.open(path); files.append(f)
for child, parent in zip(files, files[1:]):
    child.set_parent(parent)
leaf, want = files[0], open(raw, 'rb')
at, size = 0, leaf.get_media_size()
while at < size:
    n = min(1 << 20, size - at)
    leaf.seek(at)
    got = b''
    while len(got) < n:
        piece = leaf.read(n - len(got))
        assert piece, 'short read'
        got += piece
    assert got == want.read(n), 'differs in the MiB at %d' % at
    at += n
assert want.read(1) == b''
print('identical', size)
"#;

const DISSECT: &str = r#"
import sys
from pathlib import Path
from dissect.hypervisor.disk.vhdx import VHDX
leaf, raw = VHDX(Path(sys.argv[1])), open(sys.argv[2], 'rb')
at, size = 0, leaf.size
while at < size:
    n = min(1 << 20, size - at)
    leaf.seek(at)
    assert leaf.read(n) == raw.read(n), 'differs in the MiB at %d' % at
    at += n
print('identical', size)
"#;

#[test]
fn libvhdi_reads_our_chains() {
    let Some(python) = reader_python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (paths, raw) = chain(dir.path());
    let mut args = vec!["-c", LIBVHDI];
    args.extend(paths.iter().rev().map(|p| text(p)));
    args.push(text(&raw));
    let result = run(&python, &args);
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
}

#[test]
fn dissect_reads_our_chains() {
    let Some(python) = reader_python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (paths, raw) = chain(dir.path());
    let result = run(&python, &["-c", DISSECT, text(&paths[2]), text(&raw)]);
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
}

#[test]
fn seven_zip_reads_our_chains() {
    if !have("7zz") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (paths, raw) = chain(dir.path());
    let out = dir.path().join("out");
    let result = run(
        "7zz",
        &["x", "-tVHDX", "-y", &format!("-o{}", text(&out)), text(&paths[2])],
    );
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stdout));
    let unpacked = std::fs::read_dir(&out).unwrap().next().unwrap().unwrap().path();
    assert_eq!(common::sha256_of_file(&unpacked), common::sha256_of_file(&raw));
}

#[test]
fn locks_keep_qemu_out_and_qemus_keep_us_out() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk.vhdx");
    create(&disk, DiskType::Dynamic, 4 * MIB, 1);
    let writer = Chain::open(&disk, &OpenOptions::new()).unwrap();
    assert!(
        !run("qemu-img", &["info", text(&disk)]).status.success(),
        "a writer excludes readers"
    );
    assert!(run("qemu-img", &["info", "-U", text(&disk)]).status.success());
    writer.close().unwrap();
    let reader = Chain::open(&disk, &OpenOptions::read_only()).unwrap();
    let another = Chain::open(&disk, &OpenOptions::read_only()).unwrap();
    assert!(
        run("qemu-img", &["info", text(&disk)]).status.success(),
        "readers are welcome"
    );
    let write = run("qemu-io", &["-f", "vhdx", "-c", "write 0 512", text(&disk)]);
    assert!(!write.status.success(), "a reader excludes writers");
    drop((reader, another));
    // QEMU holds the disk as long as its input is open.
    let mut qemu = Command::new("qemu-io")
        .args(["-f", "vhdx", text(&disk)])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut seen = None;
    for _ in 0..200 {
        match Chain::open(&disk, &OpenOptions::new()) {
            Err(error) => {
                seen = Some(error);
                break;
            }
            Ok(chain) => drop(chain),
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(seen.expect("QEMU has it open").kind(), ErrorKind::Locked);
    assert_eq!(
        Chain::open(&disk, &OpenOptions::read_only()).unwrap_err().kind(),
        ErrorKind::Locked
    );
    drop(qemu.stdin.take());
    assert!(qemu.wait().unwrap().success());
    Chain::open(&disk, &OpenOptions::new()).unwrap().close().unwrap();
}
