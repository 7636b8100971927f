//! Who else depends on the files of a merge: found by looking into the directories involved.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::record::{Record, Stage};
use crate::chain::locate::directory;
use crate::chain::Chain;
use crate::error::{Error, ErrorKind, IoContext, PathContext, Result};
use crate::guid::Guid;
use crate::image::front::Front;
use crate::image::Image;
use crate::limits;
use crate::options::LogPolicy;
use crate::storage::{Access, FileId};

/// `None` for what is not there, not ours to look at, or no file.
fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    const NONE: [i32; 9] = [
        libc::ENOENT,
        libc::ENOTDIR,
        libc::ELOOP,
        libc::EACCES,
        libc::EPERM,
        libc::EINVAL,
        libc::ESTALE,
        libc::ENOSYS,
        libc::EOPNOTSUPP,
    ];
    match result {
        Err(e) if e.raw_os_error().is_some_and(|errno| NONE.contains(&errno)) => Ok(None),
        done => done.map(Some),
    }
}

/// Whether reading failed, rather than that what was read is no disk or ends too soon.
fn is_failure(error: &Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    matches!(error.kind(), ErrorKind::Io | ErrorKind::NoSpace)
        && cause.is_none_or(|cause| cause.kind() != io::ErrorKind::UnexpectedEof)
}

/// A differencing disk outside the chain.
#[derive(Debug, Clone)]
pub(in crate::ops) struct Relative {
    pub(in crate::ops) path: PathBuf,
    linkage: Guid,
    linkage2: Option<Guid>,
    identity: Guid,
    id: Option<FileId>,
    record: Option<Record>,
}

/// The differencing disks near the files of the merge that are not in the chain.
#[derive(Debug, Default)]
pub(in crate::ops) struct Family {
    relatives: Vec<Relative>,
}

impl Family {
    /// Looks into the directories of `layers` and those the caller searches. A file that is there and cannot be read is
    /// an error: it may be a disk that depends on one of them.
    pub(in crate::ops) fn find(chain: &Chain, layers: &[Arc<Image>]) -> Result<Family> {
        Family::find_in(chain, layers.iter().map(|image| directory(image.name())))
    }

    /// Looks into these directories and those the caller searches.
    pub(in crate::ops) fn find_in(chain: &Chain, named: impl Iterator<Item = PathBuf>) -> Result<Family> {
        let fs = &*chain.options().file_system;
        let mut directories: Vec<PathBuf> = Vec::new();
        for dir in named.chain(chain.options().search.iter().cloned()) {
            let dir = fs.absolute(&dir).unwrap_or(dir);
            if !directories.contains(&dir) {
                directories.push(dir);
            }
        }
        let in_chain: Vec<_> = chain.current().layers.iter().filter_map(|l| l.storage().id()).collect();
        let mut seen = Vec::new();
        let mut family = Family::default();
        for dir in directories {
            let listed = fs.list(&dir, limits::MAX_SCANNED_ENTRIES);
            let listed = there(listed).context(|| "list the directory".into()).at(&dir)?;
            for path in listed.unwrap_or_default() {
                let opened = there(fs.open(&path, Access::Read));
                let Some(storage) = opened.context(|| "open the file".into()).at(&path)? else {
                    continue;
                };
                let id = storage.id();
                if id.is_some_and(|id| in_chain.contains(&id) || seen.contains(&id)) {
                    continue;
                }
                let front = match Front::read(storage, LogPolicy::Memory, false) {
                    Ok(front) => front,
                    Err(error) if is_failure(&error) => return Err(error.with_path(&path)),
                    Err(_) => continue,
                };
                seen.extend(id);
                if let Some((linkage, linkage2)) = front.linkage() {
                    family.relatives.push(Relative {
                        path,
                        linkage,
                        linkage2,
                        identity: front.current.header.data_write_guid,
                        id,
                        record: front.items.locator.as_ref().and_then(Record::in_locator),
                    });
                }
            }
        }
        Ok(family)
    }

    /// Children of the disk with this identity.
    pub(in crate::ops) fn children_of(&self, parent: Guid) -> impl Iterator<Item = &Relative> {
        self.relatives.iter().filter(move |r| r.linkage == parent)
    }

    /// Whoever may need the disk with this identity: its children, and what an interrupted merge may attach to it.
    /// Those that have `instead` as their parent do not.
    pub(in crate::ops) fn dependents_of(&self, parent: Guid, instead: Option<Guid>) -> impl Iterator<Item = &Relative> {
        self.relatives
            .iter()
            .filter(move |r| r.linkage == parent || (r.linkage2 == Some(parent) && Some(r.linkage) != instead))
    }

    pub(in crate::ops) fn relatives(&self) -> &[Relative] {
        &self.relatives
    }

    /// Refuses an operation that gives the disk another identity while others depend on it.
    pub(in crate::ops) fn refuse_children_of(&self, image: &Image, operation: &str) -> Result<()> {
        let identity = image.data_write_guid();
        let children: Vec<String> = self
            .relatives
            .iter()
            .filter(|r| r.linkage == identity || r.linkage2 == Some(identity))
            .map(|r| format!("{:?}", r.path))
            .collect();
        if children.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::HasChildren,
            format!("other disks depend on the one to {operation}: {}", children.join(", ")),
        )
        .with_path(image.name())
        .with_hint("open the last file of the chain instead; or merge or delete those first"))
    }

    /// The file with this identity. With several, which of them is meant is not known.
    pub(super) fn only(&self, identity: Guid) -> Result<Option<&Relative>> {
        let mut found = self.relatives.iter().filter(|relative| relative.identity == identity);
        match (found.next(), found.next()) {
            (Some(first), Some(second)) => {
                let message = format!(
                    "{:?} is a copy of it: which one a merge left behind is not known",
                    second.path
                );
                Err(Error::new(ErrorKind::HasChildren, message)
                    .with_path(&first.path)
                    .with_hint("move the copy to another directory"))
            }
            (first, _) => Ok(first),
        }
    }

    /// The file with this identity, its parent, the parent's, at most so many: what a merge left behind. Lowest first.
    /// Each must say itself that it was merged with `top`.
    pub(super) fn abandoned(&self, mut identity: Guid, count: usize, top: Guid) -> Result<Vec<&Relative>> {
        let mut files: Vec<&Relative> = Vec::new();
        let merged = [Stage::Copied, Stage::Retired];
        let retired = |file: &&Relative| file.record.is_some_and(|r| merged.contains(&r.stage) && r.top == top);
        while let Some(file) = self.only(identity)?.filter(retired) {
            if files.len() == count || files.iter().any(|known| known.path == file.path) {
                break;
            }
            files.insert(0, file);
            identity = file.linkage;
        }
        let needed = files.iter().find_map(|file| {
            let mut others = self.dependents_of(file.identity, None);
            others.find(|other| files.iter().all(|file| file.path != other.path))
        });
        match needed {
            None => Ok(files),
            Some(other) => {
                let message = format!("{:?} depends on a file that a merge left behind", other.path);
                Err(Error::new(ErrorKind::HasChildren, message)
                    .with_path(&other.path)
                    .with_hint("merge or delete it first, then resume"))
            }
        }
    }

    /// Children of `target` that an earlier run of this merge took over from `merged`: they say so in linkage2.
    pub(in crate::ops) fn taken_over(&self, target: Guid, merged: Guid) -> impl Iterator<Item = &Relative> {
        self.children_of(target).filter(move |r| r.linkage2 == Some(merged))
    }

    /// Refuses when the merge would make files outside the chain unusable: other children of the target, and of the
    /// layers between it and the top. Where all is `copied`, those that came from the top are no others.
    pub(in crate::ops) fn check(&self, target: &Image, inner: &[Arc<Image>], merged: Guid, copied: bool) -> Result<()> {
        let of_target = self
            .children_of(target.data_write_guid())
            .filter(|r| !(copied && r.linkage2 == Some(merged)));
        let of_inner = inner.iter().flat_map(|image| self.children_of(image.data_write_guid()));
        let orphans: Vec<String> = of_target.chain(of_inner).map(|r| format!("{:?}", r.path)).collect();
        if orphans.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::HasChildren,
            format!("other disks depend on the files to be merged: {}", orphans.join(", ")),
        )
        .with_path(target.name())
        .with_hint("delete or merge those first; siblings=orphan goes on and makes them unusable"))
    }
}

impl Relative {
    pub(in crate::ops) fn path(&self) -> &Path {
        &self.path
    }

    /// DataWriteGuid of the file itself.
    pub(in crate::ops) fn identity(&self) -> Guid {
        self.identity
    }

    /// Which file it is, where that is known.
    pub(in crate::ops) fn id(&self) -> Option<FileId> {
        self.id
    }

    /// Whether a disk with this identity may be its parent.
    pub(in crate::ops) fn accepts(&self, parent: Guid) -> bool {
        self.linkage == parent || self.linkage2 == Some(parent)
    }
}
