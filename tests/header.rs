//! `include/avhdx.h` is what cbindgen makes of `src/ffi`; `scripts/update-header` writes it.

use std::path::Path;

#[test]
fn the_committed_header_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    // In reading order.
    for file in ["error", "callbacks", "io", "opts", "disk", "data", "jobs"] {
        builder = builder.with_src(root.join(format!("src/ffi/{file}.rs")));
    }
    let mut fresh = Vec::new();
    builder.generate().unwrap().write(&mut fresh);
    let path = root.join("include/avhdx.h");
    if std::env::var_os("AVHDX_UPDATE_HEADER").is_some() {
        std::fs::create_dir_all(root.join("include")).unwrap();
        std::fs::write(&path, &fresh).unwrap();
        return;
    }
    let committed = std::fs::read(&path).unwrap();
    assert!(
        committed == fresh,
        "include/avhdx.h is not current: run scripts/update-header"
    );
}

#[test]
fn every_error_code_is_in_the_header() {
    let header = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/include/avhdx.h")).unwrap();
    for kind in avhdx::ErrorKind::ALL {
        let wanted = format!("#define AVHDX_ERR_{} {} ", kind.name(), *kind as i32);
        assert!(header.contains(&wanted), "{wanted}");
    }
}
