//! Repair and undo from the command line.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn avhdx(dir: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_avhdx"))
        .args(line.split(' '))
        .current_dir(dir)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A disk with data in it and a broken second header.
fn damaged(dir: &Path) -> Vec<u8> {
    for line in [
        "create d.vhdx --size 8M --block-size 1M",
        "write d.vhdx --offset 1M --length 2M --pattern 7",
    ] {
        let output = avhdx(dir, line);
        assert!(output.status.success(), "{}", said(&output));
    }
    let mut bytes = fs::read(dir.join("d.vhdx")).unwrap();
    bytes[0x20000 + 100] ^= 1;
    fs::write(dir.join("d.vhdx"), &bytes).unwrap();
    bytes
}

#[test]
fn a_repair_mends_and_undo_takes_it_back() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let before = damaged(dir);

    let output = avhdx(dir, "repair --dry-run d.vhdx");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("can be repaired"), "{}", said(&output));
    assert_eq!(
        fs::read(dir.join("d.vhdx")).unwrap(),
        before,
        "a dry run writes nothing"
    );
    assert!(!dir.join("d.vhdx.undo").exists());

    let output = avhdx(dir, "repair d.vhdx");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("1 repaired, 0 left"), "{}", said(&output));
    let output = avhdx(dir, "check d.vhdx");
    assert!(said(&output).contains("0 errors, 0 warnings"), "{}", said(&output));
    let output = avhdx(dir, "read d.vhdx --offset 1M --length 2M");
    assert!(output.stdout.iter().all(|&b| b == 7) && output.stdout.len() == 2 << 20);

    let output = avhdx(dir, "undo d.vhdx");
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(fs::read(dir.join("d.vhdx")).unwrap(), before);
}

#[test]
fn refusals_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    damaged(dir);
    fs::write(dir.join("d.vhdx.undo"), "mine").unwrap();
    let output = avhdx(dir, "repair d.vhdx");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("d.vhdx.undo"), "{}", said(&output));
    assert_eq!(fs::read(dir.join("d.vhdx.undo")).unwrap(), b"mine");
    for line in ["undo d.vhdx", "repair none.vhdx", "undo d.vhdx none.undo"] {
        let output = avhdx(dir, line);
        assert_eq!(output.status.code(), Some(1), "{line}: {}", said(&output));
        assert!(said(&output).contains("hint: "), "{line}: {}", said(&output));
    }
}
