//! prune: by number, by age, dry, refused.

use std::path::Path;
use std::process::Command;

fn says(dir: &Path, line: &str, status: i32) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_avhdx"));
    let output = command.args(line.split(' ')).current_dir(dir).output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{line}: {err}");
    String::from_utf8_lossy(&output.stdout).into_owned() + &err
}

/// base <- 1 <- 2 <- 3 <- 4, each with a MiB of its own.
fn chain() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    says(dir.path(), "create base.vhdx --size 16M --block-size 1M", 0);
    let mut leaf = "base.vhdx".to_string();
    for i in 1..=4 {
        let child = format!("{i}.avhdx");
        says(dir.path(), &format!("checkpoint {leaf} {child}"), 0);
        says(
            dir.path(),
            &format!("write {child} --offset {i}M --length 1M --pattern {i}"),
            0,
        );
        leaf = child;
    }
    dir
}

fn depth(dir: &Path) -> usize {
    let text = says(dir, "info --chain --json 4.avhdx", 0);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["layers"].as_array().unwrap().len()
}

#[test]
fn the_oldest_go_and_the_disk_reads_the_same() {
    let dir = chain();
    let d = dir.path();
    let before = says(d, "digest 4.avhdx", 0);
    let plan = says(d, "prune 4.avhdx --keep 3 --dry-run", 0);
    assert!(plan.contains("would merge 2 MiB"), "{plan}");
    assert!(
        plan.contains("1.avhdx") && plan.contains("2.avhdx") && !plan.contains("3.avhdx"),
        "{plan}"
    );
    assert_eq!(depth(d), 5);
    says(d, "prune 4.avhdx --keep 3", 0);
    assert_eq!(depth(d), 3);
    assert!(d.join("3.avhdx").exists() && !d.join("2.avhdx").exists() && !d.join("1.avhdx").exists());
    assert_eq!(says(d, "digest 4.avhdx", 0), before);
    assert!(says(d, "prune 4.avhdx --keep 3", 0).contains("nothing to prune: 3 files"));
    says(d, "prune 4.avhdx --keep 2", 0);
    assert_eq!((depth(d), says(d, "digest 4.avhdx", 0)), (2, before));
    assert!(says(d, "prune base.vhdx --keep 2", 0).contains("nothing to prune"));
}

#[test]
fn age_counts_from_when_the_parent_was_last_written() {
    let dir = chain();
    let d = dir.path();
    assert!(says(d, "prune 4.avhdx --max-age 7d", 0).contains("nothing to prune"));
    for old in ["base.vhdx", "1.avhdx"] {
        let touched = Command::new("touch")
            .args(["-d", "9 days ago"])
            .arg(d.join(old))
            .status()
            .unwrap();
        assert!(touched.success());
    }
    let plan = says(d, "prune 4.avhdx --max-age 7d --dry-run", 0);
    assert!(plan.contains("2.avhdx") && !plan.contains("3.avhdx"), "{plan}");
    says(d, "prune 4.avhdx --max-age 7d", 0);
    assert_eq!(depth(d), 3);
}

#[test]
fn what_others_depend_on_is_not_pruned() {
    let dir = chain();
    let d = dir.path();
    says(d, "create other.avhdx --parent base.vhdx", 0);
    assert!(says(d, "prune 4.avhdx --keep 2", 1).contains("other.avhdx"));
    assert_eq!(depth(d), 5);
    for line in ["prune 4.avhdx", "prune 4.avhdx --keep 1", "prune 4.avhdx --keep x"] {
        says(d, line, 2);
    }
    says(d, "prune nowhere --keep 2", 1);
}
