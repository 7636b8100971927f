//! Imports point down only.

use std::path::{Path, PathBuf};

const BASE: &[&str] = &["error", "guid", "json", "limits", "sync", "units"];

/// What each part may use besides the base and itself.
const MAY_USE: &[(&str, &[&str])] = &[
    ("format", &[]),
    ("storage", &[]),
    ("log", &["format", "storage"]),
    ("options", &["storage"]),
    ("trace", &[]),
    ("image", &["format", "storage", "log", "options", "trace"]),
    ("chain", &["format", "storage", "image", "options", "trace"]),
    ("vhd", &["storage", "chain", "options", "trace"]),
    (
        "ops",
        &["format", "storage", "log", "image", "chain", "vhd", "options", "trace"],
    ),
    ("schema", &["options", "ops"]),
    ("ffi", &["storage", "chain", "ops", "options", "schema", "trace"]),
];

fn sources(path: &Path, out: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            sources(&entry.unwrap().path(), out);
        }
    } else if path.extension().is_some_and(|e| e == "rs") {
        out.push(path.to_path_buf());
    }
}

#[test]
fn no_module_uses_one_above_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut seen = 0;
    for file in files {
        let relative = file.strip_prefix(&root).unwrap();
        let part = relative
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap()
            .trim_end_matches(".rs");
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == part) else {
            continue;
        };
        let text = std::fs::read_to_string(&file).unwrap();
        // Tests may build what they need.
        let code = text.split("#[cfg(test)]").next().unwrap();
        for line in code.lines().filter(|l| !l.trim_start().starts_with("//")) {
            for used in line.split("crate::").skip(1) {
                let name: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if name.is_empty() || name.chars().next().is_some_and(char::is_uppercase) {
                    continue;
                }
                seen += 1;
                let fine = name == part || BASE.contains(&name.as_str()) || allowed.contains(&name.as_str());
                assert!(fine, "{} uses {name}: {line}", relative.display());
            }
        }
    }
    assert!(seen > 100, "the imports were not found");
}
