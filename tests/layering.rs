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

fn collect(path: &Path, out: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            collect(&entry.unwrap().path(), out);
        }
    } else if path.extension().is_some_and(|e| e == "rs") {
        out.push(path.to_path_buf());
    }
}

/// Every source of the library, by its place in src, with its text.
fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    let read = |file: PathBuf| {
        let text = std::fs::read_to_string(&file).unwrap();
        (file.strip_prefix(&root).unwrap().to_path_buf(), text)
    };
    files.into_iter().map(read).collect()
}

#[test]
fn no_module_uses_one_above_it() {
    let mut seen = 0;
    for (relative, text) in sources() {
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

/// The compiler denies `unsafe` where it is not expected; this says where that may be, and wants the proof.
#[test]
fn unsafe_code_is_at_the_two_boundaries_and_explained() {
    let mut seen = 0;
    for (relative, text) in sources() {
        let boundary = relative.starts_with("ffi") || relative == Path::new("storage/sys.rs");
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap();
            let block = ["unsafe {", "unsafe impl"].iter().any(|what| code.contains(what));
            assert!(
                boundary || !(block || code.contains("unsafe_code")),
                "{}:{}",
                relative.display(),
                i + 1
            );
            if block {
                seen += 1;
                let proof = lines[i.saturating_sub(8)..=i]
                    .iter()
                    .any(|line| line.contains("SAFETY:"));
                assert!(proof, "{}:{}: no proof: {line}", relative.display(), i + 1);
            }
        }
    }
    assert!(seen > 50, "{seen} unsafe blocks were found");
}
