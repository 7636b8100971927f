//! Documents that tests keep true.

use avhdx::ErrorKind;

fn read(path: &str) -> String {
    std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[test]
fn the_table_of_errors_is_complete_and_right() {
    let table = read("docs/errors.md");
    for kind in ErrorKind::ALL {
        let line = table
            .lines()
            .find(|line| line.starts_with(&format!("| {kind:?} | {} | {} |", kind.name(), *kind as i32)))
            .unwrap_or_else(|| panic!("{kind:?} has no row"));
        let hresult = match kind.hresult() {
            0 => "0".to_string(),
            value => format!("{value:08X}"),
        };
        assert!(line.contains(&format!("| {hresult} |")), "{line}");
    }
    assert_eq!(
        table.lines().filter(|l| l.starts_with("| ")).count(),
        ErrorKind::ALL.len() + 1
    );
}

#[test]
fn every_barrier_is_explained() {
    let text = read("docs/durability.md");
    for barrier in avhdx::storage::Barrier::ALL {
        assert!(text.contains(&format!("**{barrier:?}**")), "{barrier:?}");
    }
}

#[test]
fn versions_agree() {
    let version = env!("CARGO_PKG_VERSION");
    for (path, text) in [
        ("meson.build", format!("version: '{version}'")),
        ("cli/Cargo.toml", format!("version = \"{version}\"")),
        ("CHANGELOG.md", format!("## {version}")),
    ] {
        assert!(read(path).contains(&text), "{path} does not say {text}");
    }
}
