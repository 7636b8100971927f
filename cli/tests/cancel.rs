//! Ctrl-C in every verb that takes long: it ends at once however low the rate, says what to do, and that works.

#![cfg(target_os = "linux")] // /proc tells when a program is ready for the signal

use std::fs;
use std::process::{Child, Command, Output, Stdio};

const RUN: &[(&str, &str)] = &[
    ("merge b.avhdx", "the merge was cancelled"),
    ("merge b.avhdx --into base.vhdx", "the merge was cancelled"),
    ("prune b.avhdx --keep 2", "the merge was cancelled"),
    ("delete b.avhdx 1 --into parent", "the merge was cancelled"),
    ("delete b.avhdx 1 --into children", "the deletion was cancelled"),
    ("rebase b.avhdx base.vhdx", "the rebase was cancelled"),
    ("detach b.avhdx", "the detach was cancelled"),
    ("compact b.avhdx", "compacting was cancelled"),
    ("convert b.avhdx new.raw", "the conversion was cancelled"),
    ("convert b.avhdx -", "the conversion was cancelled"),
    ("migrate old.vhd new.vhdx", "the conversion was cancelled"),
    ("digest base.vhdx b.avhdx", "the digest was cancelled"),
    ("compare b.avhdx twin.vhdx", "the comparison was cancelled"),
];

fn start(dir: &tempfile::TempDir, line: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_avhdx"))
        .args(line.split(' '))
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn ok(dir: &tempfile::TempDir, line: &str) {
    let output = start(dir, line).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {text}");
}

/// Sends SIGINT once the program has a handler for it.
fn interrupt(child: Child) -> Output {
    let status = format!("/proc/{}/status", child.id());
    let handles = || {
        let status = fs::read_to_string(&status).unwrap();
        let caught = status
            .lines()
            .find_map(|line| line.strip_prefix("SigCgt:"))
            .unwrap_or("0");
        u64::from_str_radix(caught.trim(), 16).unwrap() & 2 != 0
    };
    while !handles() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(kill.success());
    child.wait_with_output().unwrap()
}

#[test]
fn ctrl_c_ends_every_long_verb_and_running_it_again_works() {
    for (line, message) in RUN {
        let dir = tempfile::tempdir().unwrap();
        ok(&dir, "create base.vhdx --size 8M --block-size 1M");
        ok(&dir, "write base.vhdx --length 3M --pattern 1");
        ok(&dir, "checkpoint base.vhdx a.avhdx --block-size 1M");
        ok(&dir, "write a.avhdx --offset 2M --length 2M --pattern 2");
        ok(&dir, "checkpoint a.avhdx b.avhdx --block-size 1M");
        ok(&dir, "write b.avhdx --offset 5M --length 2M --pattern 3");
        ok(&dir, "convert b.avhdx old.vhd");
        ok(&dir, "convert b.avhdx twin.vhdx");

        let output = interrupt(start(&dir, &format!("{line} --rate 1")));
        let text = String::from_utf8_lossy(&output.stderr);
        let status = if line.starts_with("compare") { 2 } else { 1 };
        assert_eq!(output.status.code(), Some(status), "{line}: {text}");
        assert!(text.contains(message), "{line}: {text}");
        assert!(text.contains("hint: ") && text.contains("run"), "{line}: {text}");

        ok(&dir, line);
        let there = |name: &&&str| fs::exists(dir.path().join(name)).unwrap();
        let disk = ["b.avhdx", "a.avhdx", "base.vhdx"].iter().find(there).unwrap();
        ok(&dir, &format!("compare {disk} twin.vhdx"));
    }
}
