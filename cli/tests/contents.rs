//! diff, compare, digest and tree, as people and scripts use them.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

struct Place(tempfile::TempDir);

impl Place {
    /// base <- a <- b.
    fn chain() -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        for line in [
            "create base.vhdx --size 16M --block-size 1M",
            "write base.vhdx --length 2M --pattern 1",
            "checkpoint base.vhdx a.avhdx",
            "write a.avhdx --offset 1M --length 64K --pattern 2",
            "checkpoint a.avhdx b.avhdx",
            "write b.avhdx --offset 0 --length 8K --pattern 1",
        ] {
            place.ok(line);
        }
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

    fn ok(&self, line: &str) -> String {
        self.status(line, 0)
    }

    /// Standard output of a command that ends with this status; with a failure, standard error.
    fn status(&self, line: &str, status: i32) -> String {
        let output = self.run(line);
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{line}: {err}");
        assert!(!err.contains("panicked"), "{err}");
        match err.is_empty() {
            true => String::from_utf8_lossy(&output.stdout).into_owned(),
            false => err,
        }
    }
}

#[test]
fn diff_takes_layers_by_number_and_path() {
    let place = Place::chain();
    assert!(place
        .ok("diff b.avhdx")
        .contains("0x0               0x2000            data"));
    let exact = place.ok("diff b.avhdx --exact");
    assert!(exact.contains("0 bytes of data"), "{exact}");
    let list: serde_json::Value = serde_json::from_str(&place.ok("diff b.avhdx --from base.vhdx --json")).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 2);
    assert_eq!(list[1]["start"], 1 << 20);
    assert_eq!(list[1]["state"], "data");
    let same = place.ok("diff b.avhdx --from 2 --to 1 --json");
    assert_eq!(same, place.ok("diff b.avhdx --from ./base.vhdx --to a.avhdx --json"));
    assert!(place.status("diff base.vhdx", 1).contains("no older layer"));
    assert!(place.status("diff b.avhdx --from x.vhdx", 1).contains("1 \""));
    assert!(place.status("diff b.avhdx --from 0 --to 1", 1).contains("hint"));
    place.status("diff nowhere.avhdx", 1);
}

#[test]
fn compare_has_its_own_statuses() {
    let place = Place::chain();
    assert!(place.ok("compare b.avhdx a.avhdx").contains("equal"));
    assert!(place.status("compare a.avhdx base.vhdx", 1).contains("offset 1048576"));
    place.ok("create larger.avhdx --parent b.avhdx --size 20M");
    place.ok("compare larger.avhdx b.avhdx");
    assert!(place
        .status("compare --strict larger.avhdx b.avhdx", 1)
        .contains("size"));
    assert!(place.status("compare a.avhdx nowhere", 2).contains("hint"));
}

#[test]
fn digest_is_that_of_a_raw_copy() {
    let place = Place::chain();
    place.ok("convert a.avhdx a.raw");
    let sum = Command::new("sha256sum")
        .arg("a.raw")
        .current_dir(place.0.path())
        .output()
        .unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap().replace("a.raw", "a.avhdx");
    assert_eq!(place.ok("digest a.avhdx"), sum);
    assert_eq!(place.ok("digest b.avhdx --layer 1"), sum.replace("a.avhdx", "b.avhdx"));
    assert_eq!(
        place
            .ok("digest --algorithm sha512 a.avhdx")
            .split(' ')
            .next()
            .unwrap()
            .len(),
        128
    );
    place.status("digest --algorithm md5 a.avhdx", 2);
}

#[test]
fn tree_shows_and_fixes() {
    let place = Place::chain();
    let text = place.ok("tree");
    assert!(text.contains("base.vhdx  [base, dynamic, 16 MiB"), "{text}");
    assert!(text.contains("\n└── a.avhdx  [checkpoint"), "{text}");
    assert!(text.contains("\n    └── b.avhdx  [leaf"), "{text}");
    fs::create_dir(place.path("moved")).unwrap();
    fs::rename(place.path("a.avhdx"), place.path("moved/x.avhdx")).unwrap();
    let text = place.ok("tree");
    assert!(
        text.contains("! the paths recorded do not lead to its parent"),
        "{text}"
    );
    assert!(place.status("info --chain b.avhdx", 1).contains("hint"));
    let text = place.ok("tree --fix");
    assert!(text.contains("1 path recorded anew"), "{text}");
    place.ok("info --chain b.avhdx");
    let json: serde_json::Value = serde_json::from_str(&place.ok("tree --json")).unwrap();
    assert_eq!(json["nodes"].as_array().unwrap().len(), 3);
    assert_eq!(json["roots"].as_array().unwrap().len(), 1);
    assert!(place.ok("tree --flat").contains("elsewhere"));
    assert!(place.status("tree nowhere", 1).contains("check the path"));
}
