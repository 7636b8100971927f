//! compact, resize, min-size, meta, set-physical-sector-size, reset-disk-id: end to end, on files, with the programs
//! that read the result.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

const MIB: u64 = 1 << 20;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn len(&self, name: &str) -> u64 {
        fs::metadata(self.path(name)).unwrap().len()
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_avhdx"));
        command.args(line.split(' ')).current_dir(self.0.path());
        command
    }

    fn ok(&self, line: &str) -> String {
        let output = self.command(line).output().unwrap();
        assert!(output.status.success(), "{line}: {}", err(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn fails(&self, line: &str, status: i32, wanted: &[&str]) {
        let output = self.command(line).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{line}: {}", err(&output));
        for part in wanted {
            assert!(
                err(&output).contains(part),
                "{line}: {part:?} is missing in: {}",
                err(&output)
            );
        }
    }

    fn write(&self, line: &str, bytes: &[u8]) {
        let mut child = self.command(line).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        assert!(child.wait().unwrap().success(), "{line}");
    }

    /// Another program; `None`, said visibly, where it is not installed.
    fn other(&self, program: &str, line: &str, input: &str) -> Option<Output> {
        let mut command = Command::new(program);
        command.args(line.split(' ')).current_dir(self.0.path());
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            assert!(std::env::var_os("CI").is_none(), "must run here: no {program}");
            println!("SKIPPED: no {program}");
            return None;
        };
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{program} {line}: {}", err(&output));
        Some(output)
    }
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn compacting_gives_space_back_and_others_read_the_same() {
    let place = Place::new();
    place.ok("create d.vhdx --size 64M --block-size 1M");
    place.ok("write d.vhdx --length 20M --pattern 7");
    place.ok("write d.vhdx --length 9M --pattern 0");
    place.ok("discard d.vhdx --offset 12M --length 3M");
    place.ok("convert d.vhdx before.raw");
    let before = place.len("d.vhdx");
    let said = place.ok("compact d.vhdx");
    assert!(said.contains("9 blocks of zeros gave up their space"), "{said}");
    assert!(said.contains("blocks moved"), "{said}");
    assert_eq!(place.len("d.vhdx"), 12 * MIB);
    assert!(before > 20 * MIB);
    place.ok("check d.vhdx");
    place.other("qemu-img", "check d.vhdx", "");
    place.other("qemu-img", "compare -f vhdx -F raw d.vhdx before.raw", "");
    let json: serde_json::Value = serde_json::from_str(&place.ok("compact d.vhdx --mode quick --json")).unwrap();
    assert_eq!(json["size-before"], json["size-after"]);
    assert_eq!(json["moved-blocks"], 0);
    place.fails("compact none.vhdx", 1, &["hint: check the path"]);
    place.ok("create f.vhdx --size 4M --type fixed");
    place.fails("compact f.vhdx", 1, &["fixed disk", "convert it"]);
}

#[test]
fn compacting_nothing_changes_nothing() {
    let place = Place::new();
    place.ok("create d.vhdx --size 64M");
    place.ok("write d.vhdx --length 1M --pattern 7");
    let before = fs::read(place.path("d.vhdx")).unwrap();
    place.ok("compact d.vhdx");
    assert!(fs::read(place.path("d.vhdx")).unwrap() == before);
}

#[test]
fn resizing_stops_at_the_last_partition() {
    for (label, wanted) in [("dos", 30 * MIB), ("gpt", 30 * MIB + 33 * 512)] {
        let place = Place::new();
        let table = format!("label: {label}\nstart=2048, size=20480\nstart=24576, size=36864\n");
        fs::File::create(place.path("t.raw"))
            .unwrap()
            .set_len(64 * MIB)
            .unwrap();
        if place.other("sfdisk", "-q t.raw", &table).is_none() {
            return;
        }
        place.ok("create d.vhdx --size 64M --block-size 1M");
        place.write("write d.vhdx", &fs::read(place.path("t.raw")).unwrap());
        assert_eq!(place.ok("min-size d.vhdx"), format!("{wanted}\n"));
        place.fails("resize d.vhdx 29M", 1, &["would cut the last partition", "unsafe"]);
        place.ok(&format!("resize d.vhdx {wanted}"));
        place.ok("resize d.vhdx 200M");
        place.ok("check d.vhdx");
        place.other("qemu-img", "check d.vhdx", "");
        let raw = "convert -f vhdx -O raw d.vhdx after.raw";
        if place.other("qemu-img", raw, "").is_some() {
            let after = fs::read(place.path("after.raw")).unwrap();
            let mut before = fs::read(place.path("t.raw")).unwrap();
            before.truncate(wanted as usize);
            before.resize(200 * MIB as usize, 0);
            assert!(after == before, "{label}");
        }
        // GPT is damaged: nobody knows where its partitions end.
        if label == "gpt" {
            place.ok("write d.vhdx --offset 1072 --length 4 --pattern 9");
            place.fails("resize d.vhdx 100M", 1, &["cannot be understood", "checksum"]);
            place.fails("min-size d.vhdx", 1, &["cannot be understood"]);
            place.ok("resize d.vhdx 2M --unsafe");
        }
    }
}

#[test]
fn logical_partitions_count() {
    let place = Place::new();
    fs::File::create(place.path("t.raw"))
        .unwrap()
        .set_len(64 * MIB)
        .unwrap();
    let table = "label: dos\nstart=2048, size=2048, type=83\nstart=8192, size=40960, type=5\n\
                 start=10240, size=4096, type=83\nstart=20480, size=8192, type=83\n";
    if place.other("sfdisk", "-q t.raw", table).is_none() {
        return;
    }
    place.ok("create d.vhdx --size 64M --block-size 1M");
    place.write("write d.vhdx", &fs::read(place.path("t.raw")).unwrap());
    assert_eq!(place.ok("min-size d.vhdx"), format!("{}\n", (8192 + 40960) * 512));
}

#[test]
fn a_disk_with_children_is_not_resized() {
    let place = Place::new();
    place.ok("create base.vhdx --size 16M --block-size 1M");
    place.ok("checkpoint base.vhdx leaf.avhdx");
    place.fails("resize base.vhdx 32M", 1, &["leaf.avhdx", "last file of the chain"]);
    place.ok("resize leaf.avhdx 32M");
    place.fails("resize leaf.avhdx 1000", 1, &["multiple of the logical sector size"]);
    place.ok("check leaf.avhdx");
    place.ok("merge leaf.avhdx");
    let json: serde_json::Value = serde_json::from_str(&place.ok("min-size base.vhdx --json")).unwrap();
    assert_eq!(json["virtual-size"], 32 * MIB);
}

#[test]
fn items_identity_and_sector_size() {
    let place = Place::new();
    let id = "11111111-2222-3333-4444-555555555555";
    place.ok("create d.vhdx --size 16M");
    place.write(&format!("meta set d.vhdx {id}"), b"from the pipe");
    assert_eq!(place.ok(&format!("meta get d.vhdx {id}")), "from the pipe");
    place.ok(&format!("meta set d.vhdx {id} --value word --of-disk"));
    place.ok("checkpoint d.vhdx leaf.avhdx");
    assert_eq!(place.ok(&format!("meta get leaf.avhdx {id}")), "word");
    let listed: serde_json::Value = serde_json::from_str(&place.ok("meta list leaf.avhdx --json")).unwrap();
    assert_eq!(listed[0]["of-disk"], true);
    assert!(place.ok("meta list leaf.avhdx").contains("disk  4 bytes"));
    place.fails(&format!("meta delete d.vhdx {id}"), 1, &["leaf.avhdx"]);
    place.ok(&format!("meta delete leaf.avhdx {id}"));
    place.fails(&format!("meta get leaf.avhdx {id}"), 1, &["no user metadata item"]);
    place.fails("meta get leaf.avhdx nonsense", 2, &["not a GUID"]);
    assert_eq!(place.ok(&format!("reset-disk-id leaf.avhdx --id {id}")).trim(), id);
    place.ok("set-physical-sector-size leaf.avhdx 512");
    place.fails("set-physical-sector-size leaf.avhdx 1K", 1, &["512 or 4096"]);
    let info: serde_json::Value = serde_json::from_str(&place.ok("info leaf.avhdx --json")).unwrap();
    assert!(info.to_string().contains(id), "{info}");
    place.ok("check leaf.avhdx");
}
