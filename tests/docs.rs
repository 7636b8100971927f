//! Documents that tests keep true.

fn read(path: &str) -> String {
    std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
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
