//! convert, migrate, and info of a VHD, end to end.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

struct Place(tempfile::TempDir);

impl Place {
    /// A chain: `base.vhdx`, and `leaf.avhdx` on it.
    fn new() -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        place.ok("create base.vhdx --size 8M --block-size 1M");
        place.ok("write base.vhdx --length 3M --pattern 1");
        place.ok("checkpoint base.vhdx leaf.avhdx");
        place.ok("write leaf.avhdx --offset 2M --length 5000 --pattern 2");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, line: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_avhdx"));
        command
            .args(line.split(' '))
            .current_dir(self.0.path())
            .output()
            .unwrap()
    }

    fn ok(&self, line: &str) -> Vec<u8> {
        let output = self.run(line);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{line}: {text}");
        output.stdout
    }

    fn fails(&self, line: &str, status: i32, wanted: &[&str]) {
        let output = self.run(line);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{line}: {text}");
        for part in wanted {
            assert!(text.contains(part), "{line}: {part:?} is missing in: {text}");
        }
    }

    fn content() -> Vec<u8> {
        let mut bytes = vec![0; 8 << 20];
        bytes[..3 << 20].fill(1);
        bytes[2 << 20..(2 << 20) + 5000].fill(2);
        bytes
    }
}

#[test]
fn disks_go_round_through_every_format() {
    let place = Place::new();
    let wanted = Place::content();
    assert_eq!(place.ok("convert leaf.avhdx -"), wanted);
    place.ok("convert leaf.avhdx out.raw");
    assert_eq!(fs::read(place.path("out.raw")).unwrap(), wanted);
    let json: serde_json::Value =
        serde_json::from_slice(&place.ok("convert leaf.avhdx flat.vhdx --type fixed --json")).unwrap();
    assert_eq!(
        (&json["format"], &json["virtual-size"]),
        (&"vhdx".into(), &(8u64 << 20).into())
    );
    assert_eq!(place.ok("read flat.vhdx"), wanted);
    place.ok("convert leaf.avhdx old.vhd --block-size 512k");
    let text = String::from_utf8(place.ok("info old.vhd")).unwrap();
    for part in ["VHD", "dynamic", "8 MiB", "512 KiB", "avhdx migrate"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let json: serde_json::Value = serde_json::from_slice(&place.ok("info old.vhd --json")).unwrap();
    assert_eq!(json["format"], "vhd");
    assert_eq!(place.ok("migrate old.vhd new.vhdx"), b"made new.vhdx\n");
    assert_eq!(place.ok("read new.vhdx"), wanted);
    let json: serde_json::Value =
        serde_json::from_slice(&place.ok("migrate old.vhd kept.vhdx --chain --json")).unwrap();
    assert_eq!(json["files"], serde_json::json!(["kept.vhdx"]));
    place.ok("convert leaf.avhdx child.avhdx --parent flat.vhdx");
    assert_eq!(place.ok("read child.avhdx"), wanted);
    place.ok("convert leaf.avhdx before.raw --layer 1 --rate 1G");
    assert!(fs::read(place.path("before.raw")).unwrap()[..3 << 20]
        .iter()
        .all(|&b| b == 1));
}

#[test]
fn what_cannot_be_says_why() {
    let place = Place::new();
    place.ok("convert leaf.avhdx old.vhd");
    place.fails("convert leaf.avhdx old.vhd", 1, &["File exists", "never replaced"]);
    place.fails("convert old.vhd x.vhdx", 1, &["a VHD", "avhdx migrate"]);
    place.fails("convert gone.vhdx x.vhdx", 1, &["No such file", "check the path"]);
    place.fails(
        "convert leaf.avhdx x.raw --block-size 1M",
        1,
        &["a raw file has no blocks"],
    );
    place.fails("convert leaf.avhdx - --to vhdx", 1, &["only raw"]);
    place.fails("convert leaf.avhdx x.vhdx --layer 2", 1, &["there is no layer 2"]);
    place.fails("convert leaf.avhdx x.vhdx --type differencing", 2, &["differencing"]);
    place.fails("migrate base.vhdx x.vhdx", 1, &["not a VHD file"]);
    fs::write(place.path("cut.vhd"), &fs::read(place.path("old.vhd")).unwrap()[2000..]).unwrap();
    place.fails("migrate cut.vhd x.vhdx", 1, &["hint:"]);
    for left in fs::read_dir(place.0.path()).unwrap() {
        let name = left.unwrap().file_name().into_string().unwrap();
        assert!(!name.starts_with('x') && !name.contains(".tmp"), "{name}");
    }
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    let place = Place::new();
    for new in ["x.raw", "x.vhd", "x.vhdx"] {
        // The file size limit of the shell, in KiB: the system refuses what is written behind it.
        let line = format!("ulimit -f 1024; trap '' XFSZ; exec \"$0\" convert leaf.avhdx {new} --type fixed");
        let line = line.replace(" --type fixed", if new == "x.raw" { "" } else { " --type fixed" });
        let output = Command::new("bash")
            .args(["-c", &line, env!("CARGO_BIN_EXE_avhdx")])
            .current_dir(place.0.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("File too large"), "{text}");
        let names: Vec<_> = fs::read_dir(place.0.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }
}
