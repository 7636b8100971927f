//! Every command in docs/hyperv.md does what it stands there for.

use std::fs;
use std::path::Path;
use std::process::Command;

fn run(dir: &Path, line: &str) {
    let mut words = line.split(' ');
    assert_eq!(words.next(), Some("avhdx"));
    let output = Command::new(env!("CARGO_BIN_EXE_avhdx"))
        .args(words)
        .current_dir(dir)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{line}: {text}");
}

#[test]
fn the_commands_of_the_tables_work() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = fs::read_to_string(root.join("docs/hyperv.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with('|'));
    let commands: Vec<&str> = rows
        .flat_map(|row| row.split('`').skip(1).step_by(2))
        .filter(|code| code.starts_with("avhdx ") && code.split(' ').count() > 2)
        .collect();
    assert!(commands.len() > 35, "{commands:?}");
    for line in commands {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path();
        for line in [
            "avhdx create base.vhdx --size 64M --block-size 1M",
            "avhdx write base.vhdx --offset 2M --length 8M --pattern 1",
            "avhdx checkpoint base.vhdx monday.avhdx",
            "avhdx write monday.avhdx --offset 1M --length 3M --pattern 2",
        ] {
            run(dir, line);
        }
        fs::copy(dir.join("monday.avhdx"), dir.join("copy.vhdx")).unwrap();
        if line.contains("copy.vhdx") {
            run(dir, "avhdx write copy.vhdx --offset 1M --length 3M --pattern 2");
        } else {
            fs::remove_file(dir.join("copy.vhdx")).unwrap();
        }
        run(dir, "avhdx checkpoint monday.avhdx vm.avhdx");
        run(dir, "avhdx write vm.avhdx --offset 3M --length 1M --pattern 3");
        if line.contains("branch.avhdx") {
            run(dir, "avhdx create branch.avhdx --parent base.vhdx");
        }
        if line.contains("old.vhd") {
            run(dir, "avhdx convert vm.avhdx old.vhd");
        }
        if line.starts_with("avhdx compare") {
            run(dir, "avhdx convert vm.avhdx new.vhdx");
        }
        run(dir, line);
        println!("{line}");
    }
}
