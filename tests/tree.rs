//! Trees of files: every edge is found wherever the files lie, what is wrong is said, and nothing that lies in a directory
//! can stop the scan. Making edges permanent survives power cuts and failures.

mod common;
#[path = "common/moved.rs"]
mod moved;
#[path = "common/random.rs"]
mod random;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use avhdx::format::header;
use avhdx::ops::tree::{self, ProblemKind, Role, Tree, TreeOptions};
use avhdx::ops::{self, CheckOptions};
use avhdx::options::{MergeMode, MergeOptions, OpenOptions};
use avhdx::storage::fault::{FaultFileSystem, FaultMode};
use avhdx::{Chain, Guid};
use common::{sha256_of_disk, MIB};
use moved::{create, family, moved, scan_memory, verify, write};
use random::Random;

fn scan(dir: &Path) -> Tree {
    Tree::scan(&[dir.to_path_buf()], &OpenOptions::read_only(), &TreeOptions::default()).unwrap()
}

fn node<'a>(tree: &'a Tree, name: &str) -> &'a tree::TreeNode {
    let found = tree.nodes.iter().find(|node| node.filename.ends_with(name));
    found.unwrap_or_else(|| panic!("{name} is not there"))
}

fn parent<'a>(tree: &'a Tree, name: &str) -> Option<&'a Path> {
    node(tree, name).parent.map(|i| tree.nodes[i].filename.as_path())
}

fn identity(path: &Path) -> Guid {
    Chain::probe(path, &OpenOptions::read_only()).unwrap().data_write_guid
}

#[test]
fn a_shuffled_tree_is_found_and_made_permanent() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let mut random = Random(7);
    // 50 files, each the child of one before it, some of none.
    let mut files: Vec<(PathBuf, Option<usize>)> = Vec::new();
    for i in 0..50usize {
        let parent = (i > 0 && !random.chance(8)).then(|| random.below(i as u64) as usize);
        let path = root.join(format!("{i}.avhdx"));
        create(&path, parent.map(|p| files[p].0.as_path()), &OpenOptions::new());
        files.push((path, parent));
    }
    for i in 0..50usize {
        // Only leaves may be written to.
        if files.iter().all(|(_, parent)| *parent != Some(i)) {
            write(&files[i].0, i as u64 * 4096, i as u8 + 1, &OpenOptions::new());
        }
    }
    let read = |path: &Path, search: &[PathBuf]| {
        let mut open = OpenOptions::read_only();
        open.search = search.to_vec();
        sha256_of_disk(&Chain::open(path, &open).unwrap_or_else(|e| panic!("{}", e.chain_text())))
    };
    let contents: Vec<String> = files.iter().map(|(path, _)| read(path, &[])).collect();
    let identities: Vec<Guid> = files.iter().map(|(path, _)| identity(path)).collect();
    let edges = |tree: &Tree, files: &[(PathBuf, Option<usize>)]| {
        assert_eq!(tree.nodes.len(), 50);
        for (path, wanted) in files {
            let wanted = wanted.map(|p| files[p].0.as_path());
            assert_eq!(parent(tree, path.to_str().unwrap()), wanted, "{path:?}");
        }
    };
    let tree = scan(&root);
    edges(&tree, &files);
    assert_eq!(tree.count(ProblemKind::StalePath), 0);
    // Every file gets another name in another directory.
    let mut dirs = Vec::new();
    for (i, (path, _)) in files.iter_mut().enumerate() {
        let dir = root
            .join(format!("d{}", random.below(4)))
            .join(format!("e{}", random.below(3)));
        fs::create_dir_all(&dir).unwrap();
        let to = dir.join(format!("{:016x}-{i}.bin", random.next()));
        fs::rename(&*path, &to).unwrap();
        *path = to;
        if !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    let tree = scan(&root);
    edges(&tree, &files);
    let children = files.iter().filter(|(_, parent)| parent.is_some()).count();
    assert_eq!(tree.count(ProblemKind::StalePath), children);
    for (i, (path, _)) in files.iter().enumerate() {
        assert_eq!(read(path, &dirs), contents[i]);
    }
    // Permanent: opened without a search, nothing else changed.
    let done = tree::relink(&tree, &OpenOptions::new());
    assert_eq!(done.len(), children);
    for one in done {
        one.result.unwrap();
    }
    let tree = scan(&root);
    edges(&tree, &files);
    assert!(tree
        .nodes
        .iter()
        .all(|node| node.problems.is_empty() && !node.dirty_flag));
    for (i, (path, _)) in files.iter().enumerate() {
        assert_eq!(read(path, &[]), contents[i]);
        assert_eq!(identity(path), identities[i]);
        let report = ops::check(path, &OpenOptions::new(), &CheckOptions::default(), &mut |_| {}).unwrap();
        assert_eq!(report.errors, 0);
    }
    assert!(tree::relink(&tree, &OpenOptions::new()).is_empty());
}

#[test]
fn roles_and_problems_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    family(dir.path(), &OpenOptions::new());
    create(&path("alone.vhdx"), None, &OpenOptions::new());
    fs::write(path("shared.VHDS"), b"set").unwrap();
    fs::write(path("broken.avhdx"), b"vhdxfile and not more").unwrap();
    fs::write(path("notes.txt"), b"not a disk").unwrap();
    let tree = scan(dir.path());
    let role = |name: &str| node(&tree, name).role;
    assert_eq!(role("base.vhdx"), Role::Base);
    assert_eq!(role("a.avhdx"), Role::Checkpoint);
    assert_eq!((role("b.avhdx"), role("c.avhdx")), (Role::Leaf, Role::Leaf));
    assert_eq!(role("alone.vhdx"), Role::Disk);
    assert_eq!(role("shared.VHDS"), Role::Set);
    assert_eq!(role("broken.avhdx"), Role::Broken);
    assert_eq!(tree.other_files, 1);
    let b = tree.find(&path("b.avhdx"), &OpenOptions::new()).unwrap();
    assert_eq!(tree.depth(b), 3);
    assert_eq!(tree.find(&path("notes.txt"), &OpenOptions::new()), None);

    // A copy.
    fs::copy(path("a.avhdx"), path("a-copy.avhdx")).unwrap();
    let tree = scan(dir.path());
    assert!(node(&tree, "a-copy.avhdx").has(ProblemKind::Duplicate));
    assert_eq!(
        parent(&tree, "b.avhdx"),
        Some(&*path("a.avhdx")),
        "the recorded path decides between copies"
    );
    fs::remove_file(path("a-copy.avhdx")).unwrap();

    // A hard link is not a copy.
    fs::hard_link(path("a.avhdx"), path("a-link.avhdx")).unwrap();
    assert_eq!(scan(dir.path()).count(ProblemKind::Duplicate), 0);
    fs::remove_file(path("a-link.avhdx")).unwrap();

    // The parent was written to.
    let chain = Chain::open(&path("base.vhdx"), &OpenOptions::new()).unwrap();
    let before = identity(&path("base.vhdx"));
    chain.write(&[9; 512], 0, true).unwrap();
    chain.close().unwrap();
    assert_ne!(identity(&path("base.vhdx")), before);
    let tree = scan(dir.path());
    assert_eq!(node(&tree, "a.avhdx").role, Role::Orphan);
    assert!(node(&tree, "a.avhdx").has(ProblemKind::ParentModified));
    assert_eq!(node(&tree, "b.avhdx").role, Role::Leaf);

    // The parent is gone.
    fs::remove_file(path("a.avhdx")).unwrap();
    let tree = scan(dir.path());
    assert!(node(&tree, "b.avhdx").has(ProblemKind::MissingParent));
    let text = &node(&tree, "b.avhdx").problems[0].text;
    assert!(text.contains("a.avhdx"), "{text}");
}

#[test]
fn an_interrupted_merge_is_told_and_keeps_its_linkage() {
    let dir = tempfile::tempdir().unwrap();
    family(dir.path(), &OpenOptions::new());
    let (a, b) = (dir.path().join("a.avhdx"), dir.path().join("b.avhdx"));
    let mut options = MergeOptions::default();
    options.mode = MergeMode::Copy;
    ops::merge_path(&b, None, &OpenOptions::new(), &options, &mut |_| false).unwrap_err();
    let tree = scan(dir.path());
    assert!(node(&tree, "b.avhdx").has(ProblemKind::InterruptedMerge));
    assert_eq!(parent(&tree, "b.avhdx"), Some(&*a));
    fs::create_dir(dir.path().join("x")).unwrap();
    let moved = dir.path().join("x/moved.avhdx");
    fs::rename(&a, &moved).unwrap();
    let before = node(&tree, "b.avhdx").clone();
    for done in tree::relink(&scan(dir.path()), &OpenOptions::new()) {
        done.result.unwrap();
    }
    let tree = scan(dir.path());
    let after = node(&tree, "b.avhdx");
    assert!(after.has(ProblemKind::InterruptedMerge) && !after.has(ProblemKind::StalePath));
    assert_eq!(
        (after.parent_linkage, after.parent_linkage2, after.data_write_guid),
        (before.parent_linkage, before.parent_linkage2, before.data_write_guid)
    );
    ops::merge_path(&b, None, &OpenOptions::new(), &options, &mut |_| true).unwrap();
}

#[test]
fn files_in_use_are_read_and_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    family(dir.path(), &OpenOptions::new());
    let b = dir.path().join("b.avhdx");
    let chain = Chain::open(&b, &OpenOptions::new()).unwrap();
    chain.write(&[5; 4096], 3 * MIB, true).unwrap();
    let tree = scan(dir.path());
    assert!(node(&tree, "b.avhdx").dirty_flag);
    assert_eq!(node(&tree, "b.avhdx").role, Role::Leaf);
    // Its parent moves under it: the path cannot be recorded now, and that is said.
    fs::rename(dir.path().join("a.avhdx"), dir.path().join("z.avhdx")).unwrap();
    let tree = scan(dir.path());
    let done = tree::relink(&tree, &OpenOptions::new());
    // a, now z, still leads to base; b is in use.
    assert_eq!(done.len(), 1);
    assert_eq!(done[0].result.as_ref().unwrap_err().kind(), avhdx::ErrorKind::Locked);
    chain.close().unwrap();
    for done in tree::relink(&scan(dir.path()), &OpenOptions::new()) {
        done.result.unwrap();
    }
    assert_eq!(scan(dir.path()).count(ProblemKind::StalePath), 0);
}

/// Gives a file another DataWriteGuid.
fn set_identity(path: &Path, guid: Guid) {
    let mut bytes = fs::read(path).unwrap();
    for at in header::OFFSETS {
        let at = at as usize;
        let mut parsed = header::Header::parse(&bytes[at..at + header::SIZE]).unwrap();
        parsed.data_write_guid = guid;
        let encoded = parsed.encode();
        bytes[at..at + encoded.len()].copy_from_slice(&encoded);
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn nothing_in_a_directory_stops_the_scan() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    family(dir.path(), &OpenOptions::new());
    let made = std::process::Command::new("mkfifo")
        .arg(path("pipe.vhdx"))
        .status()
        .unwrap();
    assert!(made.success());
    std::os::unix::fs::symlink(".", path("loop")).unwrap();
    std::os::unix::fs::symlink("/", path("everything")).unwrap();
    std::os::unix::fs::symlink(path("b.avhdx"), path("link.avhdx")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(path("socket.avhdx")).unwrap();
    // Deeper than is looked at.
    let mut deep = path("deep");
    for _ in 0..80 {
        deep.push("d");
    }
    fs::create_dir_all(&deep).unwrap();
    // A sparse file of many TiB, an empty one, one of zeros.
    fs::File::create(path("huge.vhdx")).unwrap().set_len(8 << 40).unwrap();
    fs::write(path("empty.vhdx"), b"").unwrap();
    // Parents that lead in a circle, and a file that is its own.
    let (a, b) = (identity(&path("a.avhdx")), identity(&path("base.vhdx")));
    create(&path("x.avhdx"), Some(&path("a.avhdx")), &OpenOptions::new());
    fs::copy(path("a.avhdx"), path("y.avhdx")).unwrap();
    fs::remove_file(path("a.avhdx")).unwrap();
    fs::remove_file(path("base.vhdx")).unwrap();
    // x wants a's identity, which y has; y wants base's, which x gets.
    set_identity(&path("x.avhdx"), b);
    assert_eq!(identity(&path("y.avhdx")), a);
    fs::copy(path("y.avhdx"), path("self.avhdx")).unwrap();
    let own = node(&scan(dir.path()), "self.avhdx").parent_linkage.unwrap();
    assert_eq!(own, b);
    // A log in use that claims to be large.
    let mut bytes = fs::read(path("c.avhdx")).unwrap();
    for at in header::OFFSETS {
        let at = at as usize;
        let mut parsed = header::Header::parse(&bytes[at..at + header::SIZE]).unwrap();
        parsed.log_guid = Guid::random();
        parsed.log_offset = 64 << 20;
        parsed.log_length = 1 << 30;
        let encoded = parsed.encode();
        bytes[at..at + encoded.len()].copy_from_slice(&encoded);
    }
    for i in 0..20 {
        let file = path(&format!("log{i}.avhdx"));
        fs::write(&file, &bytes).unwrap();
        fs::File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_len(2 << 30)
            .unwrap();
    }
    for i in 0..3000 {
        fs::write(path(&format!("junk{i}")), b"junk").unwrap();
    }
    let start = Instant::now();
    let tree = scan(dir.path());
    let took = start.elapsed();
    assert!(took.as_secs() < 5, "{took:?}");
    assert!(tree.truncated, "the deep directory");
    for name in ["pipe.vhdx", "link.avhdx", "socket.avhdx"] {
        assert!(!tree.nodes.iter().any(|node| node.filename.ends_with(name)), "{name}");
    }
    for name in ["huge.vhdx", "empty.vhdx", "log0.avhdx", "log19.avhdx"] {
        assert!(node(&tree, name).has(ProblemKind::Broken), "{name}");
    }
    assert_eq!(tree.count(ProblemKind::Loop), 1);
    assert!(tree.other_files >= 3000);
    assert!(serde_json::to_string(&tree).unwrap().contains("\"loop\""));
    // Every chain of parents ends.
    for i in 0..tree.nodes.len() {
        assert!(tree.depth(i) <= tree.nodes.len());
    }
    let missing = Tree::scan(&[path("nowhere")], &OpenOptions::read_only(), &TreeOptions::default());
    assert_eq!(missing.unwrap_err().errno(), libc_enoent());
}

fn libc_enoent() -> i32 {
    fs::metadata("/nowhere/at/all").unwrap_err().raw_os_error().unwrap()
}

#[test]
fn a_thousand_files_take_no_time() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.vhdx");
    create(&base, None, &OpenOptions::new());
    let child = dir.path().join("child.avhdx");
    create(&child, Some(&base), &OpenOptions::new());
    let template = fs::read(&child).unwrap();
    for i in 0..1000 {
        let sub = dir.path().join(format!("{}", i % 10));
        fs::create_dir_all(&sub).unwrap();
        // Sparse, as they are.
        let file = fs::File::create(sub.join(format!("{i}.avhdx"))).unwrap();
        use std::os::unix::fs::FileExt;
        for (n, piece) in template.chunks(4096).enumerate() {
            if piece.iter().any(|&b| b != 0) {
                file.write_all_at(piece, n as u64 * 4096).unwrap();
            }
        }
        file.set_len(template.len() as u64).unwrap();
    }
    scan(dir.path());
    let start = Instant::now();
    let tree = scan(dir.path());
    let took = start.elapsed();
    println!("{} files in {took:?}", tree.nodes.len());
    assert_eq!(tree.nodes.len(), 1002);
    assert!(took.as_millis() < 2000, "{took:?}");
}

// ---- making edges permanent ----

#[test]
fn every_failing_call_leaves_the_disks_as_they_were() {
    let (initial, disks) = moved(true);
    let mut failures = 0;
    for mode in [FaultMode::Once, FaultMode::FromHere, FaultMode::FlushLoses] {
        for n in 1.. {
            let memory = initial.snapshot();
            let faulty = FaultFileSystem::new(Arc::new(memory.clone()));
            let tree = scan_memory(Arc::new(faulty.clone()));
            faulty.fail_in(n, 5, mode);
            let done = tree::relink(&tree, &OpenOptions::new().on(Arc::new(faulty.clone())));
            if !faulty.disarm() {
                assert!(done.iter().all(|done| done.result.is_ok()));
                break;
            }
            failures += 1;
            verify(&memory.snapshot(), &disks, false).unwrap_or_else(|e| panic!("call {n} {mode:?}: {e}"));
        }
    }
    println!("{failures} failures");
    assert!(failures > 40);
}
