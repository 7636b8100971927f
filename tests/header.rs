//! include/avhdx.h is what src/ffi says. `AVHDX_UPDATE_HEADER=1 cargo test --test header` (or scripts/update-header)
//! writes it anew; without that a difference is a failure.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The sections of the header, in the order in which a reader wants them.
const SECTIONS: &[&str] = &[
    "library", "error", "opts", "callback", "io", "disk", "info", "data", "ops", "surgery", "shape", "convert",
    "contents", "tree", "job", "pending", "plan", "repair",
];

/// Types that callers name without `struct`.
const NAMED: &[&str] = &[
    "avhdx_disk",
    "avhdx_opts",
    "avhdx_error",
    "avhdx_progress_cb",
    "avhdx_log_cb",
    "avhdx_resolve_cb",
    "avhdx_issue_cb",
    "avhdx_job",
    "avhdx_tree",
];

/// Lines C needs that Rust cannot say, by the section whose constants they join.
const MACROS: &[(&str, &str)] = &[
    (
        "info",
        "/* An offset or size that there is none of. */\n#define AVHDX_NO_OFFSET UINT64_MAX\n",
    ),
    (
        "data",
        "/* avhdx_block_status: ask about layer i alone, 0 to 65535. */\n\
         #define AVHDX_THIS_LAYER(i) (UINT32_C(0x100) | ((uint32_t)(i) << 16))\n",
    ),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The `//!` lines of a module, without code fences.
fn intro(source: &str) -> Vec<&str> {
    source
        .lines()
        .take_while(|line| line.starts_with("//!"))
        .map(|line| line.trim_start_matches("//!").strip_prefix(' ').unwrap_or_default())
        .filter(|line| !line.starts_with("```"))
        .collect()
}

fn comment(lines: &[&str]) -> String {
    let mut text = String::from("/*\n");
    for line in lines {
        writeln!(text, "{}", format!(" * {line}").trim_end()).unwrap();
    }
    text + " */\n"
}

/// What is for Rust readers is left out, comments get shorter.
fn tidy(generated: &str) -> String {
    let mut text = String::new();
    let mut skipping = false;
    for line in generated.lines() {
        let trimmed = line.trim_start();
        if trimmed == "* # Safety" {
            skipping = true;
            // And the empty line before it.
            if text.ends_with(" *\n") {
                text.truncate(text.len() - " *\n".len());
            }
        }
        if trimmed == "*/" {
            skipping = false;
        }
        if !skipping {
            text.push_str(line);
            text.push('\n');
        }
    }
    for name in NAMED {
        text = text.replace(&format!("struct {name} *"), &format!("{name} *"));
    }
    // Structures that are used outside their section.
    if !text.contains("struct avhdx_extent") {
        text = text.replace("avhdx_extent *", "struct avhdx_extent *");
    }
    text.replace("const avhdx_io_ops *", "const struct avhdx_io_ops *")
        .replace("/**\n", "/*\n")
}

/// Declarations that fit on a line go there, and constants that belong together stand together.
fn compact(text: &str) -> String {
    let mut out: Vec<String> = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let mut joined = line.to_string();
        if line.ends_with(',') && line.contains("avhdx_") && !line.trim_start().starts_with('*') {
            let mut parts = vec![line];
            while parts.last().is_some_and(|last| last.ends_with(',')) {
                parts.extend(lines.next());
            }
            let flat = parts
                .iter()
                .enumerate()
                .map(|(i, part)| if i == 0 { part.trim_end() } else { part.trim() });
            let flat = flat.collect::<Vec<_>>().join(" ");
            joined = if flat.len() <= 118 { flat } else { parts.join("\n") };
        }
        let one_line_comment = line.starts_with("/* ") && line.ends_with("*/");
        let constant_before =
            out.len() >= 2 && out[out.len() - 1].is_empty() && out[out.len() - 2].starts_with("#define");
        if one_line_comment && constant_before && lines.peek().is_some_and(|next| next.starts_with("#define")) {
            out.pop();
        }
        out.push(joined);
    }
    out.join("\n") + "\n"
}

/// A comment of one line on one line.
fn shorten(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut out = String::new();
    let mut i = 0;
    while i < lines.len() {
        let indent = &lines[i][..lines[i].len() - lines[i].trim_start().len()];
        let is_short = lines[i].trim() == "/*" && lines.get(i + 2).is_some_and(|end| end.trim() == "*/");
        if is_short {
            writeln!(
                out,
                "{indent}/* {} */",
                lines[i + 1].trim().trim_start_matches('*').trim()
            )
            .unwrap();
            i += 3;
        } else {
            writeln!(out, "{}", lines[i]).unwrap();
            i += 1;
        }
    }
    out
}

/// An initialiser after each structure that begins with struct_size: every member named, so that no compiler warns.
fn initialisers(text: &str) -> String {
    let mut out = String::new();
    let mut members: Option<(String, Vec<&str>)> = None;
    let mut in_comment = false;
    // Members over several lines count once, at their end.
    let mut statement = String::new();
    for line in text.lines() {
        writeln!(out, "{line}").unwrap();
        let trimmed = line.trim();
        in_comment |= trimmed.starts_with("/*");
        let was_comment = in_comment;
        in_comment &= !trimmed.ends_with("*/");
        if was_comment {
            continue;
        }
        if let Some(name) = trimmed
            .strip_prefix("struct ")
            .filter(|rest| !rest.contains([';', '(', '*', ' ']))
        {
            members = Some((name.to_string(), Vec::new()));
        } else if trimmed == "};" {
            if let Some((name, members)) = members.take() {
                if members.first() == Some(&"size") && !["avhdx_parent_query", "avhdx_issue"].contains(&name.as_str()) {
                    let values = members[1..].join(", ");
                    let macro_name = name.to_uppercase();
                    writeln!(out, "#define {macro_name}_INIT {{ sizeof(struct {name}), {values} }}").unwrap();
                }
            }
        } else if let Some((_, members)) = &mut members {
            statement.push_str(trimmed);
            if trimmed.ends_with(';') {
                members.push(match () {
                    _ if statement.contains("struct_size") => "size",
                    _ if statement.ends_with("];") => "{ 0 }",
                    _ if statement.contains('*') => "NULL",
                    _ => "0",
                });
                statement.clear();
            }
        }
    }
    out
}

fn section(module: &str, config: &cbindgen::Config) -> String {
    let path = root().join(format!("src/ffi/{module}.rs"));
    let source = read(&path);
    let mut generated = Vec::new();
    cbindgen::Builder::new()
        .with_config(config.clone())
        .with_src(&path)
        .generate()
        .unwrap_or_else(|e| panic!("{module}: {e}"))
        .write(&mut generated);
    let generated = String::from_utf8(generated).unwrap();
    let lines = intro(&source);
    let (title, rest) = lines.split_first().expect("a section begins with its title");
    let mut text = format!("/* ---- {title} ---- */\n\n");
    let rest: Vec<&str> = rest.iter().copied().skip_while(|line| line.is_empty()).collect();
    if !rest.is_empty() {
        text.push_str(&comment(&rest));
        text.push('\n');
    }
    for (_, lines) in MACROS.iter().filter(|(of, _)| *of == module) {
        text.push_str(lines);
        text.push('\n');
    }
    let body = compact(&initialisers(&shorten(&tidy(&generated))));
    let body: Vec<&str> = body
        .lines()
        // Forward declarations: all of them are at the top.
        .filter(|line| !(line.starts_with("typedef struct") && line.ends_with(';')))
        .collect();
    text + body.join("\n").trim() + "\n"
}

fn header() -> String {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).expect("cbindgen.toml");
    let mut text = comment(&intro(&read("src/ffi/mod.rs")));
    text.push_str("\n#ifndef AVHDX_H\n#define AVHDX_H\n\n/* Generated from src/ffi by scripts/update-header. */\n\n");
    text.push_str("#include <stddef.h>\n#include <stdint.h>\n#include <sys/uio.h>\n\n");
    text.push_str("#ifdef __cplusplus\nextern \"C\" {\n#endif\n\n");
    let version: Vec<&str> = env!("CARGO_PKG_VERSION").split('.').collect();
    text.push_str("/* The version of this header; avhdx_version() tells that of the library in use. */\n");
    for (name, number) in ["MAJOR", "MINOR", "MICRO"].iter().zip(version) {
        writeln!(text, "#define AVHDX_VERSION_{name} {number}").unwrap();
    }
    text.push_str("\n/* Handles and callbacks; each is described in its section. */\n");
    for name in NAMED {
        writeln!(text, "typedef struct {name} {name};").unwrap();
    }
    text.push_str("struct avhdx_io_ops;\n");
    for name in SECTIONS {
        text.push('\n');
        text.push_str(&section(name, &config));
    }
    text.push_str("\n#ifdef __cplusplus\n}\n#endif\n\n#endif /* AVHDX_H */\n");
    while text.contains("\n\n\n") {
        text = text.replace("\n\n\n", "\n\n");
    }
    text
}

#[test]
fn header_is_up_to_date() {
    let wanted = header();
    let path = root().join("include/avhdx.h");
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    if std::env::var_os("AVHDX_UPDATE_HEADER").is_some() {
        if found != wanted {
            std::fs::write(&path, &wanted).unwrap();
        }
        return;
    }
    let line = wanted.lines().zip(found.lines()).position(|(a, b)| a != b);
    assert!(
        wanted == found,
        "include/avhdx.h differs from src/ffi (line {}); run scripts/update-header",
        line.map_or(0, |line| line + 1)
    );
}

/// Names of functions as sources declare them.
fn exported() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for module in SECTIONS {
        let source = read(format!("src/ffi/{module}.rs"));
        let mut lines = source.lines();
        while let Some(line) = lines.next() {
            if line == "#[no_mangle]" {
                let declaration = lines.next().unwrap();
                let name = declaration.split("fn ").nth(1).unwrap();
                names.insert(name.split('(').next().unwrap().to_string());
            }
        }
    }
    names
}

#[test]
fn every_exported_function_is_in_header_and_version_map() {
    let map = read("libavhdx.map");
    let in_map: BTreeSet<String> = map
        .lines()
        .map(|line| line.trim().trim_end_matches(';'))
        .filter(|line| line.starts_with("avhdx_"))
        .map(String::from)
        .collect();
    assert_eq!(exported(), in_map);
    let header = read("include/avhdx.h");
    for name in exported() {
        assert!(header.contains(&format!("{name}(")), "{name} is missing in the header");
    }
}

#[test]
fn every_function_documents_null_and_since() {
    let header = read("include/avhdx.h");
    let mut last = String::new();
    let mut in_comment = false;
    for line in header.lines() {
        if line.starts_with("/*") {
            last.clear();
            in_comment = true;
        }
        if in_comment {
            last.push_str(line.trim_start_matches([' ', '*']));
            last.push(' ');
            in_comment = !line.ends_with("*/");
            continue;
        }
        if let Some(name) = exported().iter().find(|name| line.contains(&format!("{name}("))) {
            assert!(last.contains("Since 1."), "{name}: since when?");
            if line.contains('*') && !line.contains("(void)") {
                assert!(last.contains("NULL"), "{name}: what does NULL mean?");
            }
        }
    }
}

#[test]
fn example_of_the_header_is_the_one_that_is_compiled() {
    let module = read("src/ffi/mod.rs");
    let example: String = module
        .lines()
        .skip_while(|line| *line != "//! ```c")
        .skip(1)
        .take_while(|line| *line != "//! ```")
        .map(|line| {
            line.trim_start_matches("//!")
                .strip_prefix(' ')
                .unwrap_or_default()
                .to_string()
                + "\n"
        })
        .collect();
    assert_eq!(example, read("c-tests/example.c"));
}
