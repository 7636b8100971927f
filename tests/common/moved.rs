//! A family of disks whose base moves away, for the tests of trees.
#![allow(dead_code)] // each file uses some of it

use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::ops::tree::{Tree, TreeOptions};
use avhdx::ops::{self, CheckOptions, Severity};
use avhdx::options::{CreateOptions, DiskType, OpenOptions};
use avhdx::storage::{FileSystem, MemoryFileSystem};
use avhdx::{Chain, Guid};

const MIB: u64 = 1 << 20;

pub fn create(path: &Path, parent: Option<&Path>, open: &OpenOptions) {
    let mut create = CreateOptions::default();
    create.size = if parent.is_none() { 4 * MIB } else { 0 };
    create.block_size = MIB as u32;
    create.parent = parent.map(Path::to_path_buf);
    if parent.is_some() {
        create.disk_type = DiskType::Differencing;
    }
    create.open = open.clone();
    ops::create(path, &create).unwrap();
}

pub fn write(path: &Path, at: u64, byte: u8, open: &OpenOptions) {
    let chain = Chain::open(path, open).unwrap();
    chain.write(&[byte; 5000], at, false).unwrap();
    chain.close().unwrap();
}

/// base <- a <- b, and base <- c.
pub fn family(dir: &Path, open: &OpenOptions) {
    let path = |name: &str| dir.join(name);
    create(&path("base.vhdx"), None, open);
    write(&path("base.vhdx"), 0, 1, open);
    create(&path("a.avhdx"), Some(&path("base.vhdx")), open);
    write(&path("a.avhdx"), MIB, 2, open);
    create(&path("b.avhdx"), Some(&path("a.avhdx")), open);
    write(&path("b.avhdx"), 2 * MIB, 3, open);
    create(&path("c.avhdx"), Some(&path("base.vhdx")), open);
}

/// What the disk holds where something was written.
pub fn sample(chain: &Chain) -> Vec<u8> {
    let mut bytes = vec![0xEE; 4 * 8192];
    for (i, part) in bytes.chunks_mut(8192).enumerate() {
        chain.read(part, i as u64 * MIB).unwrap();
    }
    bytes
}

/// The family with its base moved away: a and c have stale paths. `dirty` leaves their logs in use.
pub fn moved(dirty: bool) -> (MemoryFileSystem, Vec<(PathBuf, Vec<u8>, Guid)>) {
    let fs = MemoryFileSystem::new();
    let open = OpenOptions::new().on(Arc::new(fs.clone()));
    family(Path::new("/vm"), &open);
    if dirty {
        let chain = Chain::open(Path::new("/vm/c.avhdx"), &open).unwrap();
        for i in 0..3 {
            chain.write(&[6 + i as u8; 4096], i * MIB, true).unwrap();
        }
        drop(chain);
    }
    fs.rename_new(
        Path::new("/vm/base.vhdx"),
        Path::new("/elsewhere/with a longer name/base.vhdx"),
    )
    .unwrap();
    let mut search = open.clone();
    search.read_only = true;
    search.search = vec!["/elsewhere/with a longer name".into()];
    let disks = ["/vm/a.avhdx", "/vm/b.avhdx", "/vm/c.avhdx"].map(|name| {
        let chain = Chain::open(Path::new(name), &search).unwrap();
        let guid = chain.layer_info(0).unwrap().data_write_guid;
        (PathBuf::from(name), sample(&chain), guid)
    });
    (fs, disks.to_vec())
}

pub fn scan_memory(fs: Arc<dyn FileSystem>) -> Tree {
    let paths = ["/vm".into(), "/elsewhere".into()];
    Tree::scan(&paths, &OpenOptions::read_only().on(fs), &TreeOptions::default()).unwrap()
}

/// The disks read as before, with the help of a search or, once `permanent`, without.
pub fn verify(fs: &MemoryFileSystem, disks: &[(PathBuf, Vec<u8>, Guid)], permanent: bool) -> Result<(), String> {
    for path in fs.paths() {
        let mut open = OpenOptions::new().on(Arc::new(fs.clone()));
        open.lock = false;
        let mut first = None;
        let report = ops::check(&path, &open, &CheckOptions::default(), &mut |finding| {
            if finding.severity == Severity::Error {
                first.get_or_insert(finding.defect.to_string());
            }
        });
        if let Some(defect) = report.map_err(|e| e.chain_text()).map(|_| first)? {
            return Err(format!("{path:?}: {defect}"));
        }
    }
    for writable in [false, true] {
        for (path, content, guid) in disks {
            let mut open = OpenOptions::new().on(Arc::new(fs.clone()));
            open.lock = false;
            open.read_only = !writable;
            if !permanent {
                open.search = vec!["/elsewhere/with a longer name".into()];
            }
            let chain = Chain::open(path, &open).map_err(|e| e.chain_text())?;
            if sample(&chain) != *content {
                return Err(format!("{path:?} reads differently"));
            }
            let found = chain.layer_info(0).map_err(|e| e.chain_text())?.data_write_guid;
            if found != *guid {
                return Err(format!("{path:?} has another identity"));
            }
        }
    }
    Ok(())
}
