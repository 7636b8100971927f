//! Disks in memory whose shape changes.
#![allow(dead_code)] // each file uses some of it

use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::ops::{self, CheckOptions, Severity};
use avhdx::options::{CreateOptions, DiskType, OpenOptions};
use avhdx::storage::FileSystem;
use avhdx::{Error, ErrorKind};

pub const MIB: u64 = 1 << 20;

pub fn path(name: &str) -> PathBuf {
    Path::new("/vm").join(name)
}

pub fn options(fs: &(impl FileSystem + Clone + 'static)) -> OpenOptions {
    OpenOptions::new().on(Arc::new(fs.clone()))
}

/// A disk without parent, or a child of `parent`.
pub fn create(open: &OpenOptions, name: &str, kind: DiskType, size: u64, block_mib: u32, parent: Option<&str>) {
    let mut create = CreateOptions::default();
    create.disk_type = kind;
    create.size = size;
    create.block_size = block_mib << 20;
    create.parent = parent.map(path);
    create.open = open.clone();
    ops::create(&path(name), &create).unwrap();
}

/// The first broken rule of a file.
pub fn check(file: &Path, open: &OpenOptions) -> Result<(), String> {
    let mut open = open.clone();
    open.lock = false;
    let mut first = None;
    let result = ops::check(file, &open, &CheckOptions::default(), &mut |finding| {
        if finding.severity == Severity::Error && first.is_none() {
            first = Some(finding.defect.to_string());
        }
    });
    match (result, first) {
        (Err(e), _) => Err(format!("check {file:?}: {}", e.chain_text())),
        (Ok(_), Some(defect)) => Err(format!("check {file:?}: {defect}")),
        _ => Ok(()),
    }
}

/// That an error is one that a failing storage may be told as.
pub fn is_told(error: &Error, what: &str) {
    let told = [
        ErrorKind::Io,
        ErrorKind::NoSpace,
        ErrorKind::Poisoned,
        ErrorKind::ParentNotFound,
    ];
    assert!(told.contains(&error.kind()), "{what}: {}", error.chain_text());
}
