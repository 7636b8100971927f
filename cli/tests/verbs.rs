//! Every verb, end to end, with the messages and statuses that people and scripts get.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs the command line, split at spaces, in this place.
    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_avhdx"));
        command.args(line.split(' ')).current_dir(self.0.path());
        command
    }

    fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {}", err(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn fails(&self, line: &str, status: i32, wanted: &[&str]) {
        let output = self.run(line);
        assert_eq!(output.status.code(), Some(status), "{line}: {}", err(&output));
        for part in wanted {
            assert!(
                err(&output).contains(part),
                "{line}: {part:?} is missing in: {}",
                err(&output)
            );
        }
        assert!(!err(&output).contains("panicked"), "{}", err(&output));
    }

    fn write(&self, line: &str, bytes: &[u8]) -> Output {
        let mut child = self
            .command(line)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Refused input is not an error of the test.
        let _ = child.stdin.take().unwrap().write_all(bytes);
        child.wait_with_output().unwrap()
    }
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// base <- a <- b, with a byte of its own in each.
fn chain() -> Place {
    let place = Place::new();
    place.ok("create base.vhdx --size 16M --block-size 1M");
    place.ok("write base.vhdx --offset 0 --length 2M --pattern 1");
    place.ok("checkpoint base.vhdx a.avhdx");
    place.ok("write a.avhdx --offset 1M --length 64K --pattern 0x02");
    place.ok("checkpoint a.avhdx b.avhdx --block-size 1M");
    place.ok("write b.avhdx --offset 1028K --length 4K --pattern 3");
    place
}

#[test]
fn a_life_cycle() {
    let place = chain();
    let read = |line: &str| place.run(line).stdout;
    assert_eq!(read("read b.avhdx --offset 1M --length 4K"), [2; 4096]);
    assert_eq!(read("read b.avhdx --offset 1028K --length 4K"), [3; 4096]);
    assert_eq!(read("read b.avhdx --offset 1048575 --length 2"), [1, 2]);
    assert!(place.write("write b.avhdx --offset 10M", &[9; 5000]).status.success());
    assert_eq!(read("read b.avhdx --offset 10M --length 5001")[4999..], [9, 0]);
    place.ok("zero b.avhdx --offset 0 --length 4K");
    assert_eq!(read("read b.avhdx --length 4097")[4095..], [0, 1]);
    place.ok("discard b.avhdx --offset 10M --length 1M");
    assert_eq!(read("read b.avhdx --offset 10M --length 3"), [0; 3]);

    let info = place.ok("info --chain b.avhdx");
    for part in [
        "a.avhdx",
        "base.vhdx",
        "16 MiB (16777216 bytes)",
        "layer:                0 of 3",
        "relative_path",
    ] {
        assert!(info.contains(part), "{part}: {info}");
    }
    let json: serde_json::Value = serde_json::from_str(&place.ok("info --chain --json b.avhdx")).unwrap();
    assert_eq!(json["layers"].as_array().unwrap().len(), 3);
    assert_eq!(
        json["layers"][0]["parent-linkage"],
        json["layers"][1]["data-write-guid"]
    );
    let json: serde_json::Value = serde_json::from_str(&place.ok("info --json b.avhdx")).unwrap();
    assert_eq!(json["virtual-size"], 16 << 20);
    let map: serde_json::Value = serde_json::from_str(&place.ok("map --json b.avhdx")).unwrap();
    let total: u64 = map
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["length"].as_u64().unwrap())
        .sum();
    assert_eq!(total, 16 << 20);
    assert!(place.ok("map b.avhdx").lines().count() > 4);

    place.ok("convert b.avhdx before.raw");
    assert_eq!(fs::metadata(place.path("before.raw")).unwrap().len(), 16 << 20);
    let merged = place.ok("merge b.avhdx");
    assert!(
        merged.contains("removed b.avhdx") && !place.path("b.avhdx").exists(),
        "{merged}"
    );
    place.ok("merge a.avhdx --mode consume");
    place.ok("check base.vhdx");
    place.ok("convert base.vhdx after.raw");
    let same = fs::read(place.path("before.raw")).unwrap() == fs::read(place.path("after.raw")).unwrap();
    assert!(same);
}

#[test]
fn merging_several_and_keeping() {
    let place = chain();
    place.ok("convert b.avhdx before.raw");
    place.ok("merge b.avhdx --into base.vhdx --keep --verify --mode copy");
    assert!(place.path("a.avhdx").exists() && place.path("b.avhdx").exists());
    place.ok("convert base.vhdx after.raw");
    place.ok("convert b.avhdx child.raw");
    let read = |name: &str| fs::read(place.path(name)).unwrap();
    assert!(read("before.raw") == read("after.raw") && read("before.raw") == read("child.raw"));
    // Above what the base now is, the middle one would show what it never held.
    place.fails("info --chain a.avhdx", 1, &["was modified or is another disk", "hint:"]);
}

#[test]
fn what_ctrl_c_interrupts_is_resumed_as_it_was_asked_for() {
    let place = chain();
    place.ok("write b.avhdx --offset 0 --length 12M --pattern 5");
    place.ok("checkpoint b.avhdx c.avhdx");
    place.ok("convert c.avhdx before.raw");
    assert_eq!(place.ok("pending c.avhdx"), "nothing is pending\n");
    assert_eq!(place.ok("resume c.avhdx"), "nothing is pending\n");
    let child = place
        .command("delete c.avhdx b.avhdx --into parent --rate 4M")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It is on its way when the child of the target says so.
    let begun = |output: Output| String::from_utf8_lossy(&output.stdout).contains("interrupted");
    while !begun(place.run("pending c.avhdx --no-lock")) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("cancelled"), "{}", err(&output));
    assert!(place.ok("pending c.avhdx").contains("a merge of layer 1 into"));
    assert!(place.ok("pending c.avhdx --json").contains("\"top\": 1"));
    assert!(place.ok("tree .").contains("resume"));
    place.ok("resume c.avhdx");
    assert_eq!(place.ok("pending c.avhdx"), "nothing is pending\n");
    assert!(!place.path("b.avhdx").exists());
    place.ok("convert c.avhdx after.raw");
    let read = |name: &str| fs::read(place.path(name)).unwrap();
    assert!(read("before.raw") == read("after.raw"));
}

#[test]
fn a_kept_file_is_no_interrupted_merge() {
    let place = chain();
    place.ok("merge b.avhdx --keep");
    assert_eq!(place.ok("pending b.avhdx"), "nothing is pending\n");
    assert!(!place.ok("info --chain b.avhdx").contains("interrupted"));
}

#[test]
fn failures_say_what_and_what_to_do() {
    let place = chain();
    place.fails(
        "info nothing.vhdx",
        1,
        &["nothing.vhdx", "No such file", "hint: check the path"],
    );
    place.fails("info .", 1, &["hint: a disk image is a regular file"]);
    fs::write(place.path("text"), "hello, this is no disk").unwrap();
    place.fails("info text", 1, &["not a VHDX file", "hint:"]);
    place.fails("check text", 1, &["not a VHDX file"]);
    place.fails(
        "create base.vhdx --size 1M",
        1,
        &["File exists", "hint: choose another name"],
    );
    place.fails(
        "create no/such/dir.vhdx --size 1M",
        1,
        &["hint: create the directory first"],
    );
    place.fails("create new.vhdx --size 1000", 1, &["virtual disk size", "hint:"]);
    place.fails("create new.vhdx --size 1M --block-size 3M", 1, &["block size"]);
    place.fails("convert b.avhdx text", 1, &["File exists"]);
    place.fails(
        "read base.vhdx --offset 16M --length 1",
        1,
        &["not all inside the disk"],
    );
    place.fails(
        "write b.avhdx --offset 16M --length 1 --pattern 1",
        1,
        &["not all inside the disk"],
    );
    place.fails("merge base.vhdx", 1, &["no parent"]);
    place.fails("merge b.avhdx --into text", 1, &["not an ancestor", "base.vhdx"]);
    assert!(!place.path("new.vhdx").exists());
    let leftovers = fs::read_dir(place.0.path())
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().ends_with(".tmp"));
    assert_eq!(leftovers.count(), 0);

    place.ok("create other.avhdx --parent a.avhdx");
    place.fails("merge b.avhdx", 1, &["other.avhdx", "hint:"]);
    fs::remove_file(place.path("other.avhdx")).unwrap();

    fs::rename(place.path("base.vhdx"), place.path("renamed.vhdx")).unwrap();
    place.ok("info --chain b.avhdx");
    fs::create_dir(place.path("away")).unwrap();
    fs::rename(place.path("renamed.vhdx"), place.path("away/renamed.vhdx")).unwrap();
    place.fails("info --chain b.avhdx", 1, &["was not found", "relative_path", "hint:"]);
    place.ok("info --chain --search away b.avhdx");
    place.ok("info --chain --no-parents b.avhdx");
}

#[test]
fn usage_is_status_2() {
    let place = Place::new();
    for line in [
        "",
        "frobnicate",
        "create x.vhdx",
        "create x.vhdx --size 12q",
        "write x --pattern 1",
        "read x --offset z",
    ] {
        assert_eq!(place.run(line).status.code(), Some(2), "{line}");
    }
    assert_eq!(place.run("--version").status.code(), Some(0));
}

#[test]
fn corruption_is_status_3() {
    let place = chain();
    let path = place.path("base.vhdx");
    let mut bytes = fs::read(&path).unwrap();
    // Two blocks in one place: BAT entry 1 := entry 0.
    let bat = 3 << 20;
    let entry: [u8; 8] = bytes[bat..bat + 8].try_into().unwrap();
    bytes[bat + 8..bat + 16].copy_from_slice(&entry);
    fs::write(&path, bytes).unwrap();
    let output = place.run("check base.vhdx");
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stdout).contains("Overlap"));
    let json: serde_json::Value = serde_json::from_slice(&place.run("check --json base.vhdx").stdout).unwrap();
    assert_eq!(json["report"]["errors"], 1);
    assert_eq!(json["findings"][0]["rule"], "Overlap");
}

#[test]
fn a_disk_in_use_is_locked() {
    let place = chain();
    let mut holder = place
        .command("write b.avhdx --offset 0")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = holder.stdin.take().unwrap();
    input.write_all(&[1; 2 << 20]).unwrap();
    let mut locked = false;
    for _ in 0..100 {
        let output = place.run("zero b.avhdx --length 512");
        if output.status.code() == Some(1) {
            assert!(
                err(&output).contains("another program uses the file"),
                "{}",
                err(&output)
            );
            assert!(err(&output).contains("hint:"));
            locked = true;
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(locked);
    place.fails("zero base.vhdx --length 512", 1, &["another program uses the file"]);
    drop(input);
    assert!(holder.wait().unwrap().success());
    place.ok("zero b.avhdx --length 512");
}

#[test]
fn a_full_disk_is_told_and_nothing_is_lost() {
    let place = chain();
    // No file may grow beyond this: as a full disk, for whoever extends one.
    let blocks = fs::metadata(place.path("b.avhdx")).unwrap().len() / 512 + 16;
    let line =
        format!("ulimit -f {blocks}; trap '' XFSZ; exec \"$0\" write b.avhdx --offset 8M --length 8M --pattern 7");
    let output = Command::new("bash")
        .args(["-c", &line, env!("CARGO_BIN_EXE_avhdx")])
        .current_dir(place.0.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    assert!(err(&output).contains("b.avhdx"), "{}", err(&output));
    place.ok("check b.avhdx");
    assert_eq!(place.run("read b.avhdx --offset 1028K --length 4K").stdout, [3; 4096]);
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let place = chain();
    let line = "\"$0\" read b.avhdx | head -c 10; exit ${PIPESTATUS[0]}";
    let output = Command::new("bash")
        .args(["-c", line, env!("CARGO_BIN_EXE_avhdx")])
        .current_dir(place.0.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", err(&output));
    assert_eq!(err(&output), "");
}

#[test]
fn input_that_ends_early_is_told() {
    let place = chain();
    let output = place.write("write b.avhdx --length 1M", &[5; 1000]);
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("ended 1047576 bytes early"), "{}", err(&output));
}

#[test]
fn the_manual_has_every_verb_and_option() {
    let place = Place::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let manual = fs::read_to_string(root.join("docs/man/avhdx.1"))
        .unwrap()
        .replace("\\-", "-");
    let help = place.ok("--help");
    let verbs: Vec<&str> = help
        .lines()
        .skip_while(|l| !l.starts_with("Commands:"))
        .skip(1)
        .take_while(|l| l.starts_with("  "))
        .filter_map(|l| l.split_whitespace().next())
        .filter(|v| *v != "help")
        .collect();
    // The list was found, first and last.
    assert!(verbs.contains(&"info") && verbs.contains(&"check"), "{verbs:?}");
    for verb in verbs {
        assert!(manual.contains(verb), "{verb}");
        let help = place.ok(&format!("{verb} --help"));
        for option in help.split_whitespace().filter(|w| w.starts_with("--")) {
            let option = option.trim_end_matches(|c: char| !c.is_alphanumeric());
            assert!(manual.contains(option), "{verb} {option}");
        }
    }
}
