//! The verb that shows who is whose parent.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use avhdx::ops::tree::{self, ProblemKind, Role, Tree, TreeNode, TreeOptions};
use clap::Args;
use serde_json::json;

use crate::args::Open;
use crate::report::{human, safe};
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct TreeArgs {
    /// Directories (or files); the current one if none is given
    #[arg(default_value = ".")]
    dirs: Vec<PathBuf>,
    /// Do not look into their subdirectories
    #[arg(long)]
    flat: bool,
    /// Record where the parents are now in children whose recorded paths no longer lead to them
    #[arg(long)]
    fix: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    open: Open,
}

pub(crate) fn tree(args: &TreeArgs) -> Outcome {
    let mut options = TreeOptions::default();
    options.recurse = !args.flat;
    let mut tree = Tree::scan(&args.dirs, &args.open.reading(), &options)?;
    let mut failed = Vec::new();
    let mut fixed = 0;
    if args.fix {
        for done in tree::relink(&tree, &args.open.writing()) {
            match done.result {
                Ok(()) => fixed += 1,
                Err(error) => failed.push(error),
            }
        }
        tree = Tree::scan(&args.dirs, &args.open.reading(), &options)?;
    }
    let mut out = io::BufWriter::new(io::stdout().lock());
    if args.json {
        let roots: Vec<usize> = tree.roots().collect();
        let mut value = serde_json::to_value(&tree).unwrap_or_default();
        value["roots"] = json!(roots);
        writeln!(out, "{}", serde_json::to_string_pretty(&value).unwrap_or_default())?;
    } else {
        write!(out, "{}", text(&tree))?;
        if args.fix {
            writeln!(out, "{fixed} {} recorded anew", plural(fixed, "path", "paths"))?;
        }
    }
    out.flush()?;
    if let Some(first) = failed.first() {
        for error in &failed {
            eprintln!("avhdx: {}", error.chain_text());
        }
        let hint = first.hint().unwrap_or_default().to_string();
        let count = failed.len();
        return Err(Failure::Other(
            format!("{count} {} could not be changed", plural(count, "file", "files")),
            hint,
        ));
    }
    Ok(0)
}

fn plural<'a>(count: usize, one: &'a str, many: &'a str) -> &'a str {
    match count {
        1 => one,
        _ => many,
    }
}

/// The tree as lines, children below their parent.
pub(crate) fn text(tree: &Tree) -> String {
    let mut text = String::new();
    for root in tree.roots() {
        // Depth first, without recursion: chains may be deep. Node, prefix, whether it is the last child.
        let mut pending: Vec<(usize, String, bool)> = vec![(root, String::new(), true)];
        while let Some((i, prefix, last)) = pending.pop() {
            let node = &tree.nodes[i];
            let (branch, below) = match (node.parent.is_some(), last) {
                (false, _) => ("", String::new()),
                (true, true) => ("└── ", format!("{prefix}    ")),
                (true, false) => ("├── ", format!("{prefix}│   ")),
            };
            let _ = writeln!(text, "{prefix}{branch}{}  {}", name(tree, node), facts(node));
            for problem in &node.problems {
                let bar = if node.children.is_empty() { "  " } else { "│ " };
                let _ = writeln!(text, "{below}{bar}! {}", safe(&problem.text));
            }
            for (n, &child) in node.children.iter().rev().enumerate() {
                pending.push((child, below.clone(), n == 0));
            }
        }
    }
    for unreadable in &tree.unreadable {
        let _ = writeln!(
            text,
            "! {}: {}",
            safe(&unreadable.filename.to_string_lossy()),
            safe(&unreadable.why)
        );
    }
    if tree.truncated {
        text.push_str("! there are more files or deeper directories than are looked at\n");
    }
    let _ = writeln!(text, "{}", summary(tree));
    text
}

/// The path; beside its parent the name is enough.
fn name(tree: &Tree, node: &TreeNode) -> String {
    let beside = node
        .parent
        .is_some_and(|parent| tree.nodes[parent].filename.parent() == node.filename.parent());
    let shown = match (beside, node.filename.file_name()) {
        (true, Some(name)) => Path::new(name),
        _ => node.filename.strip_prefix(".").unwrap_or(&node.filename),
    };
    safe(&shown.to_string_lossy())
}

fn facts(node: &TreeNode) -> String {
    let mut facts = vec![format!("{:?}", node.role).to_lowercase()];
    if node.role == Role::Set {
        facts = vec!["VHD Set".into()];
    }
    if let Some(kind) = node.disk_type.filter(|_| node.parent_linkage.is_none()) {
        facts.push(format!("{kind:?}").to_lowercase());
        facts.push(brief(node.virtual_size));
    }
    facts.push(format!("{} on disk", brief(node.actual_size.unwrap_or(node.file_size))));
    if node.dirty_flag {
        facts.push("log in use".into());
    }
    if node.outside {
        facts.push("elsewhere".into());
    }
    format!("[{}]", facts.join(", "))
}

/// A size without its exact bytes.
fn brief(bytes: u64) -> String {
    let text = human(bytes);
    text.split(" (").next().unwrap_or(&text).to_string()
}

fn summary(tree: &Tree) -> String {
    let files = tree.nodes.len();
    let mut parts = vec![format!("{files} {}", plural(files, "file", "files"))];
    for (kind, one, many) in [
        (ProblemKind::MissingParent, "missing parent", "missing parents"),
        (ProblemKind::ParentModified, "modified parent", "modified parents"),
        (ProblemKind::InterruptedMerge, "interrupted merge", "interrupted merges"),
        (ProblemKind::StalePath, "stale path (--fix)", "stale paths (--fix)"),
        (ProblemKind::Duplicate, "duplicate", "duplicates"),
        (ProblemKind::Broken, "broken", "broken"),
        (ProblemKind::Loop, "loop", "loops"),
    ] {
        let count = tree.count(kind);
        if count > 0 {
            parts.push(format!("{count} {}", plural(count, one, many)));
        }
    }
    parts.join(", ")
}
