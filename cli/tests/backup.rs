//! The commands of docs/backup.md do what the page says.

use std::fs;
use std::path::Path;
use std::process::Command;

fn sections() -> Vec<(String, String)> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .join("docs/backup.md");
    let page = fs::read_to_string(page).unwrap();
    let mut sections = Vec::new();
    for part in page.split("<!-- tested: ").skip(1) {
        let (name, rest) = part.split_once(" -->\n```sh\n").unwrap();
        sections.push((name.to_string(), rest.split("\n```").next().unwrap().to_string()));
    }
    sections
}

#[test]
fn the_recipe_backs_up_and_restores() {
    let dir = tempfile::tempdir().unwrap();
    let bin = Path::new(env!("CARGO_BIN_EXE_avhdx")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let run = |name: &str, script: &str| {
        let output = Command::new("bash")
            .args(["-e", "-c", script])
            .env("PATH", &path)
            .current_dir(dir.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{name}: {text}");
    };
    run(
        "prepare",
        "avhdx create base.vhdx --size 16M --block-size 1M
         avhdx write base.vhdx --length 3M --pattern 1
         avhdx checkpoint base.vhdx mon.avhdx
         avhdx write mon.avhdx --offset 1M --length 100K --pattern 2",
    );
    let sections = sections();
    let names: Vec<&str> = sections.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["full", "incremental", "restore"]);
    run("full", &sections[0].1);
    run(
        "a day's work",
        "avhdx write tue.avhdx --offset 5000 --length 70000 --pattern 3
         avhdx zero tue.avhdx --offset 2M --length 2M
         avhdx write tue.avhdx --offset 15M --length 1M --pattern 4
         avhdx write tue.avhdx --offset 1M --length 4K --pattern 2",
    );
    run("incremental", &sections[1].1);
    run(
        "the next day's work",
        "avhdx write wed.avhdx --offset 0 --length 8M --pattern 9",
    );
    run("restore", &sections[2].1);
    // What was written and not changed is not in the increment.
    let data = fs::metadata(dir.path().join("tue.data")).unwrap().len();
    assert!(data < (1 << 20) + 72_000, "{data} bytes");
    // And the proof does prove something.
    run(
        "spoil",
        "printf x | dd of=restored.raw bs=1 seek=5000000 conv=notrunc status=none
         [ \"$(sha256sum < restored.raw | cut -d ' ' -f 1)\" != \"$(cut -d ' ' -f 1 tue.sha256)\" ]",
    );
}
