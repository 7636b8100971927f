//! Random surgery on random trees of checkpoints against an in-memory model: after each step every file of the tree is
//! opened and compared, and `check` run on it. Then the refusals, and surgery on a disk in use.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::ops::{self, CheckOptions, Severity};
use avhdx::options::{
    CheckpointOptions, CreateOptions, DeleteInto, DeleteOptions, DiskType, OpenOptions, RebaseOptions, ReparentOptions,
    RevertOptions, ZeroFlags,
};
use avhdx::storage::{FileSystem, MemoryFileSystem};
use avhdx::{Chain, ErrorKind};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

#[derive(Debug, Clone)]
enum Op {
    Write { at: u64, len: u64, byte: u8 },
    Zero { at: u64, len: u64 },
    Discard { at: u64, len: u64 },
    Reopen,
    Checkpoint { block_mib: u32 },
    Child { size: u64, block_mib: u32 },
    Revert { layer: usize, unlink: bool, block_mib: u32 },
    Switch { leaf: usize },
    Delete { layer: usize, into: DeleteInto },
    DeleteBranch { file: usize },
    Rebase { file: usize },
    Detach,
    Move { file: usize },
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    let at = prop_oneof![
        (0u64..1500).prop_map(|n| n * 4096),
        (0u64..6).prop_map(|n| n * MIB),
        0u64..6 * MIB
    ];
    let len = prop_oneof![
        3 => (1u64..40).prop_map(|n| n * 4096),
        2 => (1u64..3).prop_map(|n| n * MIB),
        1 => 1u64..9000,
    ];
    (at, len)
}

fn op() -> impl Strategy<Value = Op> {
    let into = prop_oneof![
        2 => Just(DeleteInto::Auto),
        1 => Just(DeleteInto::Parent),
        2 => Just(DeleteInto::Children)
    ];
    prop_oneof![
        8 => (range(), 1u8..).prop_map(|((at, len), byte)| Op::Write { at, len, byte }),
        2 => range().prop_map(|(at, len)| Op::Zero { at, len }),
        2 => range().prop_map(|(at, len)| Op::Discard { at, len: len * 2 }),
        1 => Just(Op::Reopen),
        5 => (0u32..3).prop_map(|shift| Op::Checkpoint { block_mib: 1 << shift }),
        2 => (1u64..12_000, 0u32..3).prop_map(|(size, shift)| Op::Child { size, block_mib: 1 << shift }),
        4 => (1usize..4, any::<bool>(), 0u32..3)
            .prop_map(|(layer, unlink, shift)| Op::Revert { layer, unlink, block_mib: 1 << shift }),
        2 => (0usize..8).prop_map(|leaf| Op::Switch { leaf }),
        4 => (1usize..4, into).prop_map(|(layer, into)| Op::Delete { layer, into }),
        1 => (0usize..8).prop_map(|file| Op::DeleteBranch { file }),
        2 => (0usize..8).prop_map(|file| Op::Rebase { file }),
        1 => Just(Op::Detach),
        1 => (0usize..8).prop_map(|file| Op::Move { file }),
    ]
}

#[derive(Debug, Clone)]
struct Node {
    parent: Option<PathBuf>,
    content: Vec<u8>,
}

struct World {
    fs: Arc<MemoryFileSystem>,
    chain: Option<Chain>,
    tree: BTreeMap<PathBuf, Node>,
    leaf: PathBuf,
    next: u32,
    sector: u64,
}

fn go_on() -> impl FnMut(avhdx::options::Progress) -> bool {
    |p| {
        assert!(p.done <= p.total);
        true
    }
}

impl World {
    fn new(kind: DiskType, size: u64, block_mib: u32, sector: u32) -> World {
        let fs = Arc::new(MemoryFileSystem::new());
        let leaf = PathBuf::from("/vm/base.vhdx");
        let mut create = CreateOptions::default();
        (create.disk_type, create.size) = (kind, size);
        create.block_size = block_mib << 20;
        create.logical_sector_size = sector;
        create.open = OpenOptions::new().on(fs.clone());
        ops::create(&leaf, &create).unwrap();
        let node = Node {
            parent: None,
            content: vec![0; size as usize],
        };
        let mut world = World {
            fs,
            chain: None,
            tree: BTreeMap::from([(leaf.clone(), node)]),
            leaf,
            next: 0,
            sector: u64::from(sector),
        };
        world.open();
        world
    }

    fn options(&self) -> OpenOptions {
        OpenOptions::new().on(self.fs.clone())
    }

    fn chain(&self) -> &Chain {
        self.chain.as_ref().unwrap()
    }

    fn open(&mut self) {
        self.chain = Some(Chain::open(&self.leaf, &self.options()).unwrap());
    }

    fn close(&mut self) {
        self.chain.take().unwrap().close().unwrap();
    }

    fn name(&mut self) -> PathBuf {
        self.next += 1;
        PathBuf::from(format!("/vm/{:03}.avhdx", self.next))
    }

    fn children(&self, of: &Path) -> Vec<PathBuf> {
        let children = self.tree.iter().filter(|(_, node)| node.parent.as_deref() == Some(of));
        children.map(|(path, _)| path.clone()).collect()
    }

    /// Paths of the chain, leaf first, as the model has them.
    fn path_down(&self, from: &Path) -> Vec<PathBuf> {
        let mut path = vec![from.to_path_buf()];
        while let Some(parent) = &self.tree[&path[path.len() - 1]].parent {
            path.push(parent.clone());
        }
        path
    }

    fn content(&mut self) -> &mut Vec<u8> {
        &mut self.tree.get_mut(&self.leaf).unwrap().content
    }

    fn clip(&self, at: u64, len: u64) -> (usize, usize) {
        let size = self.tree[&self.leaf].content.len() as u64;
        let at = at % size;
        (at as usize, len.min(size - at) as usize)
    }

    fn grow_tree(&mut self, path: PathBuf, parent: PathBuf, content: Vec<u8>) {
        let parent = Some(parent);
        self.tree.insert(path.clone(), Node { parent, content });
        self.leaf = path;
    }

    fn pick(&self, n: usize, wanted: impl Fn(&PathBuf) -> bool) -> Option<PathBuf> {
        let all: Vec<_> = self.tree.keys().filter(|p| wanted(p)).cloned().collect();
        (!all.is_empty()).then(|| all[n % all.len()].clone())
    }

    fn apply(&mut self, op: &Op) {
        let depth = self.path_down(&self.leaf).len();
        match *op {
            Op::Write { at, len, byte } => {
                let (at, len) = self.clip(at, len);
                let data: Vec<u8> = (0..len).map(|i| byte ^ (i / 512) as u8 | 1).collect();
                self.chain().write(&data, at as u64, false).unwrap();
                self.content()[at..at + len].copy_from_slice(&data);
            }
            Op::Zero { at, len } => {
                let (at, len) = self.clip(at, len);
                let flags = ZeroFlags {
                    may_unmap: true,
                    ..ZeroFlags::default()
                };
                self.chain().zero(at as u64, len as u64, flags).unwrap();
                self.content()[at..at + len].fill(0);
            }
            Op::Discard { at, len } => {
                let (at, len) = self.clip(at, len);
                self.chain().discard(at as u64, len as u64, false).unwrap();
                let mut now = vec![0; len];
                self.chain().read(&mut now, at as u64).unwrap();
                self.content()[at..at + len].copy_from_slice(&now);
            }
            Op::Reopen => {
                self.close();
                self.open();
            }
            Op::Checkpoint { block_mib } if depth < 6 => {
                let path = self.name();
                let mut options = CheckpointOptions::default();
                options.block_size = block_mib << 20;
                ops::checkpoint(self.chain(), &path, &options).unwrap();
                let (parent, content) = (self.leaf.clone(), self.content().clone());
                self.grow_tree(path, parent, content);
            }
            Op::Child { size, block_mib } if depth < 6 => {
                let size = (size * 512 / self.sector + 1) * self.sector;
                self.close();
                let path = self.name();
                let mut create = CreateOptions::default();
                create.disk_type = DiskType::Differencing;
                create.parent = Some(self.leaf.clone());
                (create.size, create.block_size) = (size, block_mib << 20);
                create.open = self.options();
                ops::create(&path, &create).unwrap();
                let (parent, mut content) = (self.leaf.clone(), self.content().clone());
                content.resize(size as usize, 0);
                self.grow_tree(path, parent, content);
                self.open();
            }
            Op::Revert {
                layer,
                unlink,
                block_mib,
            } if depth > 1 => {
                let layer = (layer - 1) % (depth - 1) + 1;
                let down = self.path_down(&self.leaf);
                let path = self.name();
                let mut options = RevertOptions::default();
                (options.unlink, options.block_size) = (unlink, block_mib << 20);
                let report = ops::revert(self.chain(), layer, &path, &options).unwrap();
                let mut gone = Vec::new();
                for file in down[..layer].iter().filter(|_| unlink) {
                    if !self.children(file).is_empty() {
                        break;
                    }
                    self.tree.remove(file);
                    gone.push(file.clone());
                }
                assert_eq!(report.removed, gone);
                assert_eq!(report.kept, down[gone.len()..layer]);
                let (parent, content) = (down[layer].clone(), self.tree[&down[layer]].content.clone());
                self.grow_tree(path, parent, content);
            }
            Op::Switch { leaf } => {
                let childless = |path: &PathBuf| self.children(path).is_empty();
                self.leaf = self.pick(leaf, childless).unwrap();
                self.close();
                self.open();
            }
            Op::Delete { layer, into } if depth > 2 => {
                let layer = (layer - 1) % (depth - 2) + 1;
                let down = self.path_down(&self.leaf);
                let (file, parent) = (down[layer].clone(), down[layer + 1].clone());
                let branches = self.children(&parent).len();
                let mut options = DeleteOptions::default();
                options.into = into;
                let done = ops::delete_layer(self.chain(), layer, &options, &mut go_on());
                if into == DeleteInto::Parent && branches > 1 {
                    assert_eq!(done.unwrap_err().kind(), ErrorKind::HasChildren);
                    return;
                }
                let report = done.unwrap();
                assert_eq!(report.into_children, into == DeleteInto::Children || branches > 1);
                assert_eq!(report.removed, std::slice::from_ref(&file));
                assert_eq!(report.relinked.len(), self.children(&file).len());
                let node = self.tree.remove(&file).unwrap();
                for child in self.tree.values_mut().filter(|n| n.parent.as_ref() == Some(&file)) {
                    child.parent = Some(parent.clone());
                }
                if !report.into_children {
                    self.tree.get_mut(&parent).unwrap().content = node.content;
                }
            }
            Op::DeleteBranch { file } => {
                let down = self.path_down(&self.leaf);
                let Some(root) = self.pick(file, |path| self.tree[path].parent.is_some()) else {
                    return;
                };
                let done = ops::delete_branch(self.chain(), &root);
                if down.contains(&root) {
                    let kind = done.unwrap_err().kind();
                    assert!(matches!(kind, ErrorKind::HasChildren | ErrorKind::Locked), "{kind}");
                    return;
                }
                let gone: Vec<_> = self
                    .tree
                    .keys()
                    .filter(|p| self.path_down(p).contains(&root))
                    .cloned()
                    .collect();
                let mut removed = done.unwrap().removed;
                removed.sort();
                assert_eq!(removed, gone);
                self.tree.retain(|path, _| !gone.contains(path));
            }
            Op::Rebase { file } if depth > 1 => {
                let Some(onto) = self.pick(file, |path| !self.path_down(path).contains(&self.leaf)) else {
                    return;
                };
                ops::rebase(self.chain(), &onto, &RebaseOptions::default(), &mut go_on()).unwrap();
                self.tree.get_mut(&self.leaf.clone()).unwrap().parent = Some(onto);
            }
            Op::Detach if depth > 1 => {
                ops::detach(self.chain(), &RebaseOptions::default(), &mut go_on()).unwrap();
                self.tree.get_mut(&self.leaf.clone()).unwrap().parent = None;
            }
            Op::Move { file } => {
                self.close();
                let from = self.pick(file, |_| true).unwrap();
                let to = self.name();
                self.fs.rename_new(&from, &to).unwrap();
                let node = self.tree.remove(&from).unwrap();
                self.tree.insert(to.clone(), node);
                if self.leaf == from {
                    self.leaf = to.clone();
                }
                for child in self.children(&from) {
                    let report = ops::reparent(&child, &to, &self.options(), &ReparentOptions::default()).unwrap();
                    assert!(report.matched && report.warnings.is_empty());
                    self.tree.get_mut(&child).unwrap().parent = Some(to.clone());
                }
                self.open();
            }
            _ => {}
        }
    }

    fn verify(&self) {
        let mut options = self.options();
        (options.lock, options.read_only) = (false, true);
        let paths = self.fs.paths();
        assert_eq!(paths.len(), self.tree.len(), "{paths:?}");
        for (path, node) in &self.tree {
            check(path, &options);
            let opened;
            let chain = match *path == self.leaf {
                true => self.chain(),
                false => {
                    opened = Chain::open(path, &options).unwrap_or_else(|e| panic!("{path:?}: {}", e.chain_text()));
                    &opened
                }
            };
            compare(chain, &node.content, path);
            let down = self.path_down(path);
            let found: Vec<_> = (0..chain.layer_count()).map(|i| chain.layer_path(i).unwrap()).collect();
            assert!(
                found
                    .iter()
                    .map(|p| p.file_name())
                    .eq(down.iter().map(|p| p.file_name())),
                "{found:?} {down:?}"
            );
        }
    }
}

fn compare(chain: &Chain, wanted: &[u8], path: &Path) {
    let mut found = vec![0xEE; wanted.len()];
    assert_eq!(chain.size(), found.len() as u64, "{path:?}");
    chain.read(&mut found, 0).unwrap();
    if found != wanted {
        let at = (0..found.len()).find(|&i| found[i] != wanted[i]).unwrap();
        panic!("{path:?}: byte {at:#x} is {:#x}, wanted {:#x}", found[at], wanted[at]);
    }
}

fn check(path: &Path, options: &OpenOptions) {
    let mut errors = Vec::new();
    ops::check(path, options, &CheckOptions::default(), &mut |finding| {
        if finding.severity == Severity::Error {
            errors.push(finding.defect.to_string());
        }
    })
    .unwrap();
    assert!(errors.is_empty(), "{path:?}: {errors:?}");
}

fn cases() -> u32 {
    std::env::var("AVHDX_MODEL_CASES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(300)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn trees_behave_like_the_model(
        fixed in any::<bool>(),
        sectors in 1u64..12_000,
        shift in 0u32..3,
        sector in prop_oneof![Just(512u32), Just(4096)],
        ops in proptest::collection::vec(op(), 4..28),
    ) {
        let size = (sectors * 512 / u64::from(sector) + 1) * u64::from(sector);
        let kind = if fixed { DiskType::Fixed } else { DiskType::Dynamic };
        let mut world = World::new(kind, size, 1 << shift, sector);
        for op in &ops {
            world.apply(op);
            world.verify();
        }
        world.close();
        world.open();
        world.verify();
    }
}
