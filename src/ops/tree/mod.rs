//! Who is whose parent in whole directories, told from the fronts of the files alone.
//!
//! ```text
//!   scan    directories -> files: names, kinds, fronts; no locks, no BAT, nothing written
//!   graph   files -> edges, by identity, and what is wrong with them
//!   relink  children whose recorded paths no longer lead to their parent get paths that do
//! ```
//!
//! Identity decides: a file is the parent of another when its DataWriteGuid is the one recorded there, wherever it lies.
//! Links are not followed inside the directories given. A parent outside them is found when a recorded path leads to it.

mod graph;
mod relink;
mod scan;

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

use crate::error::{Error, ErrorKind, PathContext, Result};
use crate::guid::Guid;
use crate::options::{DiskType, OpenOptions};
use crate::storage::FileId;

pub use relink::{relink, relink_node, Relinked};

/// How to scan.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TreeOptions {
    /// Look into the directories of the directories too.
    pub recurse: bool,
    /// Follow recorded paths to parents outside the directories.
    pub outside: bool,
}

impl Default for TreeOptions {
    fn default() -> Self {
        TreeOptions {
            recurse: true,
            outside: true,
        }
    }
}

/// The part a file plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Neither parent nor children.
    Disk,
    /// No parent, but children.
    Base,
    /// A parent and children.
    Checkpoint,
    /// A parent and no children.
    Leaf,
    /// A differencing disk whose parent is missing.
    Orphan,
    /// A VHD Set (.vhds): names the disk that others share; told by its name, not looked into.
    Set,
    /// Cannot be read as what it says it is.
    Broken,
}

/// What is wrong, or about to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ProblemKind {
    /// No file has the identity the child recorded of its parent.
    MissingParent,
    /// There is a file where the parent should be, and it is another disk or was modified.
    ParentModified,
    /// The parent is accepted by the second linkage only: a merge was cut short. Merging again finishes it.
    InterruptedMerge,
    /// The parent was found by identity; the paths recorded do not lead to it.
    StalePath,
    /// Another file has the same identity: a copy. Writing to one makes the other useless to its children.
    Duplicate,
    /// The file cannot be read as a VHDX.
    Broken,
    /// The parents of the file lead back to it.
    Loop,
}

/// A problem, for programs and for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Which.
    pub kind: ProblemKind,
    /// In words, one line.
    pub text: String,
}

/// A file.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct TreeNode {
    /// Its path, beginning with the directory that was scanned. In JSON, bytes that are not UTF-8 are replaced.
    #[serde(serialize_with = "crate::json::path")]
    pub filename: PathBuf,
    /// The part it plays.
    pub role: Role,
    /// Found outside the directories, by the path that a child recorded.
    pub outside: bool,
    /// Type; `None` where it could not be read.
    pub disk_type: Option<DiskType>,
    /// Virtual bytes.
    pub virtual_size: u64,
    /// Length of the file.
    pub file_size: u64,
    /// Bytes it takes on its file system, where known.
    pub actual_size: Option<u64>,
    /// When it was last written, where known.
    #[serde(serialize_with = "seconds")]
    pub modified: Option<SystemTime>,
    /// SCSI page 83 identity.
    pub virtual_disk_id: Guid,
    /// Identity of the content; zero where it could not be read.
    pub data_write_guid: Guid,
    /// The DataWriteGuid its parent must have.
    pub parent_linkage: Option<Guid>,
    /// The other one accepted, during a merge.
    pub parent_linkage2: Option<Guid>,
    /// Paths recorded of the parent, as stored.
    pub parent_paths: Vec<(String, String)>,
    /// The log holds updates that are not in place: in use, or not closed.
    pub dirty_flag: bool,
    /// Its parent, by index.
    pub parent: Option<usize>,
    /// Its children, by index.
    pub children: Vec<usize>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
    /// The path with links resolved.
    #[serde(skip)]
    absolute: PathBuf,
    #[serde(skip)]
    id: Option<FileId>,
    /// A merge noted that it is not finished.
    #[serde(skip)]
    merging: bool,
}

impl TreeNode {
    /// Whether it has a problem of this kind.
    pub fn has(&self, kind: ProblemKind) -> bool {
        self.problems.iter().any(|problem| problem.kind == kind)
    }

    fn note(&mut self, kind: ProblemKind, text: impl Into<String>) {
        self.problems.push(Problem {
            kind,
            text: text.into(),
        });
    }
}

/// A directory or file that could not be looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Unreadable {
    /// Its path.
    #[serde(serialize_with = "crate::json::path")]
    pub filename: PathBuf,
    /// Why.
    pub why: String,
}

/// The files found, and how they hang together.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Tree {
    /// Files, in the order of their paths; those outside the directories come last.
    pub nodes: Vec<TreeNode>,
    /// What could not be looked at.
    pub unreadable: Vec<Unreadable>,
    /// Files that are no VHDX.
    pub other_files: u64,
    /// There was more than is looked at: the picture is not whole.
    pub truncated: bool,
}

impl Tree {
    /// Scans directories, or single files. Reads the front of each file (and its log, if that is in use); takes no lock,
    /// so files in use are fine; writes nothing. A file that cannot be read is in the result, not an error; an error is
    /// a directory of `paths` itself that cannot be read.
    pub fn scan(paths: &[PathBuf], open: &OpenOptions, options: &TreeOptions) -> Result<Tree> {
        if paths.is_empty() {
            return Err(Error::new(ErrorKind::Argument, "there is no directory to scan"));
        }
        let mut scan = scan::Scan::new(open, options);
        for path in paths {
            scan.root(path).at(path)?;
        }
        let mut tree = scan.finish();
        graph::connect(&mut tree, open, options);
        Ok(tree)
    }

    /// Nodes that hang on no other.
    pub fn roots(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|&i| self.nodes[i].parent.is_none())
    }

    /// The node of a file, by any path that leads to it.
    pub fn find(&self, path: &Path, open: &OpenOptions) -> Option<usize> {
        let absolute = open.file_system.absolute(path).ok();
        self.nodes
            .iter()
            .position(|node| node.filename == path || Some(&node.absolute) == absolute.as_ref())
    }

    /// Number of files above which a node is, itself included: 1 for one without parent.
    pub fn depth(&self, node: usize) -> usize {
        let mut depth = 1;
        let mut at = node;
        // Edges form no loops; the bound costs nothing.
        while let Some(parent) = self.nodes.get(at).and_then(|node| node.parent) {
            if depth > self.nodes.len() {
                break;
            }
            (at, depth) = (parent, depth + 1);
        }
        depth
    }

    /// Nodes with a problem of this kind.
    pub fn count(&self, kind: ProblemKind) -> usize {
        self.nodes.iter().filter(|node| node.has(kind)).count()
    }
}

fn seconds<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    match time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()) {
        Some(since) => serializer.serialize_u64(since.as_secs()),
        None => serializer.serialize_none(),
    }
}
