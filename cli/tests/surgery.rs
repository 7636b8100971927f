//! Revert, delete, reparent, rebase and detach from the command line.

use std::path::Path;
use std::process::{Command, Output};

fn run(dir: &Path, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_avhdx"));
    command.args(line.split(' ')).current_dir(dir).output().unwrap()
}

fn ok(dir: &Path, line: &str) -> String {
    let output = run(dir, line);
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn fails(dir: &Path, line: &str, wanted: &str) {
    let output = run(dir, line);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{line}: {error}");
    assert!(error.contains(wanted) && error.contains("hint: "), "{line}: {error}");
}

fn first_byte(dir: &Path, disk: &str) -> u8 {
    run(dir, &format!("read {disk} --length 1")).stdout[0]
}

/// base <- a <- b, each with its number at 0.
fn chain(dir: &Path) {
    for line in [
        "create base.vhdx --size 16M",
        "write base.vhdx --length 1M --pattern 1",
        "checkpoint base.vhdx a.avhdx",
        "write a.avhdx --length 64k --pattern 2",
        "checkpoint a.avhdx b.avhdx",
        "write b.avhdx --length 4k --pattern 3",
    ] {
        ok(dir, line);
    }
}

#[test]
fn back_to_a_checkpoint_and_the_checkpoint_away() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    chain(dir);
    let said = ok(dir, "revert b.avhdx a.avhdx c.avhdx");
    assert!(said.contains("kept"), "{said}");
    assert_eq!((first_byte(dir, "c.avhdx"), first_byte(dir, "b.avhdx")), (2, 3));
    fails(dir, "delete c.avhdx 0", "the leaf");
    fails(dir, "delete c.avhdx b.avhdx", "is not in the chain");
    let said = ok(dir, "delete c.avhdx a.avhdx --into children --json");
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["into"], "children");
    assert_eq!(said["relinked"].as_array().unwrap().len(), 2);
    assert!(!dir.join("a.avhdx").exists());
    assert_eq!((first_byte(dir, "c.avhdx"), first_byte(dir, "b.avhdx")), (2, 3));
    ok(dir, "delete c.avhdx --subtree b.avhdx");
    assert!(!dir.join("b.avhdx").exists());
}

#[test]
fn another_parent_or_none() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    chain(dir);
    std::fs::rename(dir.join("a.avhdx"), dir.join("moved.avhdx")).unwrap();
    ok(dir, "reparent b.avhdx moved.avhdx");
    fails(dir, "reparent b.avhdx nowhere.vhdx", "No such file");
    fails(dir, "reparent b.avhdx base.vhdx", "DataWriteGuid");
    ok(dir, "create other.vhdx --size 16M");
    ok(dir, "rebase b.avhdx other.vhdx");
    assert_eq!(first_byte(dir, "b.avhdx"), 3);
    let said = ok(dir, "detach b.avhdx --json");
    assert!(said.contains("\"bytes\""), "{said}");
    std::fs::remove_file(dir.join("other.vhdx")).unwrap();
    assert_eq!(first_byte(dir, "b.avhdx"), 3);
    ok(dir, "check b.avhdx");
}
