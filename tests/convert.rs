//! Converting between formats, and migrating from VHD.

mod common;
#[path = "common/vhd.rs"]
mod vhd;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use avhdx::ops::{self, CheckOptions};
use avhdx::options::{
    CheckpointOptions, ConvertOptions, CopyMode, CreateOptions, DiskType, ImageFormat, MigrateOptions, OpenOptions,
};
use avhdx::storage::{Access, FileSystem, MemoryFileSystem, OsFileSystem, Storage};
use avhdx::vhd::VhdChain;
use avhdx::{Chain, ErrorKind, ExtentState, Guid, Scope};
use common::{have, image, sha256_of_disk, sha256_of_file, MIB};
use proptest::prelude::*;
use vhd::{Vhd, SECTOR};

fn path(name: &str) -> PathBuf {
    Path::new("/vm").join(name)
}

fn on(fs: &MemoryFileSystem) -> OpenOptions {
    OpenOptions::read_only().on(Arc::new(fs.clone()))
}

fn content(chain: &Chain, layer: usize) -> Vec<u8> {
    let size = chain.layer_info(layer).unwrap().virtual_size;
    let mut bytes = vec![0; size as usize];
    chain.read_layer(layer, &mut bytes, 0).unwrap();
    bytes
}

/// What a new disk holds.
fn read_back(fs: &MemoryFileSystem, new: &Path, format: ImageFormat, len: usize) -> Vec<u8> {
    let mut found = vec![0; len];
    match format {
        ImageFormat::Raw => found = fs.contents(new).unwrap(),
        ImageFormat::Vhd => VhdChain::open(new, &on(fs)).unwrap().read(&mut found, 0).unwrap(),
        _ => Chain::open(new, &on(fs)).unwrap().read(&mut found, 0).unwrap(),
    }
    found
}

fn check(path: &Path, open: &OpenOptions) {
    let report = ops::check(path, open, &CheckOptions::default(), &mut |finding| {
        assert_ne!(finding.severity, ops::Severity::Error, "{finding:?}");
    });
    assert_eq!(report.unwrap().errors, 0);
}

fn to(format: ImageFormat) -> ConvertOptions {
    let mut options = ConvertOptions::default();
    options.to = Some(format);
    options
}

fn migrate(from: &Path, to: &Path, open: &OpenOptions) -> avhdx::Result<Vec<PathBuf>> {
    ops::migrate(from, to, &MigrateOptions::default(), open, &mut |_| true)
}

fn keeping_chain() -> MigrateOptions {
    let mut options = MigrateOptions::default();
    options.chain = true;
    options
}

#[test]
fn real_vhds_become_vhdx_with_the_same_content() {
    let dir = tempfile::tempdir().unwrap();
    for (name, file, content, size, id, allocated) in [
        (
            "dynamic.vhd",
            "c480b888eb23659772bc4b669a79f1850430e74b4ae5011a68195446a49a67e1",
            Some("ecff2ef6615a3cddc6a6885f1c6d9cf13a232697e1dc6575f2c2f01f57247784"),
            10_485_760,
            "4b6a0d04f946d74e836fd3dc87e1816b",
            3,
        ),
        (
            "hyperv2012r2-dynamic.vhd",
            "1340b8a51517ba5f0112c47694f3c8a4a2bb4f9933336a18cf0392f3490c6674",
            None,
            136_365_211_648,
            "6d2d5fc8eebade4c8ceede3a12db7c98",
            0,
        ),
    ] {
        let Some(old) = image(dir.path(), name) else { continue };
        assert_eq!(sha256_of_file(&old), file);
        let open = OpenOptions::new();
        let info = &VhdChain::open(&old, &open).unwrap().info().unwrap()[0];
        assert_eq!((info.virtual_size, info.disk_type), (size, DiskType::Dynamic));
        assert_eq!((info.block_size, info.allocated_blocks), (Some(2 << 20), allocated));
        assert_eq!(common::hex(&info.unique_id.to_stored()), id);
        for options in [MigrateOptions::default(), keeping_chain()] {
            let new = dir.path().join(format!("{name}-{}.vhdx", options.chain));
            ops::migrate(&old, &new, &options, &open, &mut |_| true).unwrap();
            let chain = Chain::open(&new, &OpenOptions::read_only()).unwrap();
            let layer = chain.layer_info(0).unwrap();
            assert_eq!(layer.virtual_disk_id, info.unique_id);
            assert_eq!((layer.virtual_size, layer.disk_type), (size, DiskType::Dynamic));
            assert!(!layer.dirty_flag);
            match content {
                Some(wanted) => assert_eq!(sha256_of_disk(&chain), wanted),
                None => {
                    let mut extents = Vec::new();
                    chain.block_status(0, size, Scope::Chain, 10, &mut extents).unwrap();
                    assert!(extents.iter().all(|e| e.state == ExtentState::Hole), "{extents:?}");
                }
            }
            drop(chain);
            check(&new, &open);
        }
        assert_eq!(sha256_of_file(&old), file, "reading changed the file");
    }
}

#[test]
fn a_differencing_vhd_of_windows_names_its_missing_parent_and_reads_over_it() {
    let dir = tempfile::tempdir().unwrap();
    let Some(child) = image(dir.path(), "fat-differential.vhd") else {
        return;
    };
    let new = dir.path().join("new.vhdx");
    let error = migrate(&child, &new, &OpenOptions::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentNotFound);
    let text = error.to_string();
    for part in [
        r#"W2ru ".\\fat-parent.vhd""#,
        r#"W2ku "C:\\Projects\\dfvfs\\test_data\\fat-parent.vhd""#,
        r#"ParentUnicodeName "C:\\Projects\\dfvfs\\test_data\\fat-parent.vhd""#,
        "551aa25f-94f3-4daa-9958-1951a67d5540",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(error.hint().unwrap().contains("search="));
    assert!(!new.exists());

    let mut parent = Vhd::new(0, 4 << 20, 2 << 20);
    let id = Guid::parse("551aa25f-94f3-4daa-9958-1951a67d5540").unwrap();
    parent.id = id.to_stored();
    parent.sectors.fill(Some([0x77; SECTOR]));
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("Fat-Parent.VHD"), parent.fixed()).unwrap();
    let mut open = OpenOptions::new();
    open.search = vec![elsewhere.path().to_path_buf()];
    migrate(&child, &new, &open).unwrap();
    let chain = Chain::open(&new, &OpenOptions::read_only()).unwrap();
    let bytes = content(&chain, 0);
    let own: Vec<usize> = (0..8192)
        .filter(|i| bytes[i * SECTOR..][..SECTOR] != [0x77; SECTOR])
        .collect();
    assert_eq!(own.len(), 18, "as many as the bitmap has bits");
    drop(chain);

    // The same as a chain: the child's block is partly present, the parent's are whole.
    let leaf = dir.path().join("leaf.avhdx");
    let files = ops::migrate(&child, &leaf, &keeping_chain(), &open, &mut |_| true).unwrap();
    assert_eq!(files, [dir.path().join("Fat-Parent.vhdx"), leaf.clone()]);
    let chain = Chain::open(&leaf, &OpenOptions::read_only()).unwrap();
    assert_eq!(chain.layer_count(), 2);
    assert_eq!(content(&chain, 0), bytes);
    assert_eq!(chain.layer_info(1).unwrap().disk_type, DiskType::Fixed);
    assert_eq!(chain.layer_info(0).unwrap().virtual_disk_id, id);
    assert_eq!(
        chain.layer_info(0).unwrap().parent_linkage,
        Some(chain.layer_info(1).unwrap().data_write_guid)
    );

    let again = ops::migrate(
        &child,
        &dir.path().join("other.avhdx"),
        &keeping_chain(),
        &open,
        &mut |_| true,
    );
    assert_eq!(
        again.unwrap_err().errno(),
        libc::EEXIST,
        "the parent's new name is taken"
    );
    assert!(!dir.path().join("other.avhdx").exists());
}

#[test]
fn a_parent_outside_parent_root_is_refused() {
    let fs = MemoryFileSystem::new();
    let base = Vhd::new(1, 1 << 20, 1 << 19);
    fs.insert(path("base.vhd"), &base.encode());
    fs.insert(
        path("in/leaf.avhd"),
        &Vhd::new(2, 1 << 20, 1 << 19).on(&base, "..\\base.vhd").encode(),
    );
    assert_eq!(
        VhdChain::open(&path("in/leaf.avhd"), &on(&fs)).unwrap().layer_count(),
        2
    );
    let mut open = on(&fs);
    open.parent_root = Some(path("in"));
    let error = VhdChain::open(&path("in/leaf.avhd"), &open).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentAccess, "{error}");
}

#[test]
fn a_parent_of_another_identity_and_a_cycle_are_refused() {
    let fs = MemoryFileSystem::new();
    let base = Vhd::new(1, 1 << 20, 1 << 19);
    fs.insert(path("base.vhd"), &Vhd::new(9, 1 << 20, 1 << 19).encode());
    fs.insert(
        path("leaf.avhd"),
        &Vhd::new(2, 1 << 20, 1 << 19).on(&base, "base.vhd").encode(),
    );
    let error = VhdChain::open(&path("leaf.avhd"), &on(&fs)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentIdMismatch, "{error}");
    let own = Vhd::new(3, 1 << 20, 1 << 19);
    fs.insert(path("self.avhd"), &own.clone().on(&own, "self.avhd").encode());
    let error = VhdChain::open(&path("self.avhd"), &on(&fs)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ChainLoop, "{error}");
}

#[test]
fn what_qemu_writes_is_read_and_the_reverse() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let run = |args: &[&str]| {
        let done = Command::new("qemu-img")
            .args(args)
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    };
    // A size that the geometry of a VHD cannot tell.
    let mut raw = vec![0u8; (7 * MIB + 512) as usize];
    for (i, at) in [0, 4096, 3 * MIB as usize - 100, 7 * MIB as usize]
        .into_iter()
        .enumerate()
    {
        raw[at..at + 512].fill(i as u8 + 1);
    }
    fs::write(file("raw"), &raw).unwrap();
    for (kind, disk_type) in [("dynamic", DiskType::Dynamic), ("fixed", DiskType::Fixed)] {
        let format = format!("subformat={kind},force_size=on");
        run(&[
            "convert",
            "-f",
            "raw",
            "-O",
            "vpc",
            "-o",
            &format,
            "raw",
            &format!("{kind}-q.vhd"),
        ]);
        let vhdx = file(&format!("{kind}.vhdx"));
        migrate(&file(&format!("{kind}-q.vhd")), &vhdx, &OpenOptions::new()).unwrap();
        let chain = Chain::open(&vhdx, &OpenOptions::read_only()).unwrap();
        assert_eq!(content(&chain, 0), raw, "{kind}");
        let mut options = to(ImageFormat::Vhd);
        options.disk_type = disk_type;
        ops::convert(&chain, &file(&format!("{kind}-a.vhd")), &options, &mut |_| true).unwrap();
        run(&["compare", "-f", "vpc", "-F", "raw", &format!("{kind}-a.vhd"), "raw"]);
        run(&[
            "convert",
            "-f",
            "vpc",
            "-O",
            "raw",
            &format!("{kind}-a.vhd"),
            &format!("{kind}-a.raw"),
        ]);
        assert_eq!(fs::read(file(&format!("{kind}-a.raw"))).unwrap(), raw, "{kind}");
    }
}

/// A chain of VHDX with something of everything in it.
fn prepared(fs: &MemoryFileSystem, sector: u32) -> Vec<u8> {
    let open = OpenOptions::new().on(Arc::new(fs.clone()));
    let mut create = CreateOptions::default();
    create.size = 9 * MIB;
    create.block_size = MIB as u32;
    create.logical_sector_size = sector;
    create.open = open.clone();
    ops::create(&path("base.vhdx"), &create).unwrap();
    let chain = Chain::open(&path("base.vhdx"), &open).unwrap();
    chain.write(&[1; 3 * MIB as usize], 0, false).unwrap();
    let mut checkpoint = CheckpointOptions::default();
    checkpoint.block_size = MIB as u32;
    ops::checkpoint(&chain, &path("a.avhdx"), &checkpoint).unwrap();
    chain.write(&[2; 8192], MIB - 4096, false).unwrap();
    chain.write(&[0; 2 * MIB as usize], 5 * MIB, false).unwrap();
    chain.write(&[0; MIB as usize], 2 * MIB, false).unwrap();
    chain.write(&[3; 4096], 9 * MIB - 4096, false).unwrap();
    let mut bytes = vec![0; 9 * MIB as usize];
    chain.read(&mut bytes, 0).unwrap();
    chain.close().unwrap();
    bytes
}

#[test]
fn every_format_and_type_holds_the_same_and_comes_back() {
    let fs = MemoryFileSystem::new();
    let wanted = prepared(&fs, 512);
    let chain = Chain::open(&path("a.avhdx"), &on(&fs)).unwrap();
    for disk_type in [DiskType::Dynamic, DiskType::Fixed] {
        let mut options = to(ImageFormat::Vhd);
        options.disk_type = disk_type;
        let old = path(&format!("{disk_type:?}.vhd"));
        ops::convert(&chain, &old, &options, &mut |_| true).unwrap();
        for block_size in [0, 4 << 20] {
            let back = path(&format!("{disk_type:?}-{block_size}.vhdx"));
            let mut migrate = MigrateOptions::default();
            migrate.convert.disk_type = disk_type;
            migrate.convert.block_size = block_size;
            ops::migrate(&old, &back, &migrate, &on(&fs), &mut |_| true).unwrap();
            let back = Chain::open(&back, &on(&fs)).unwrap();
            assert_eq!(content(&back, 0), wanted);
            let info = back.layer_info(0).unwrap();
            assert_eq!(info.disk_type, disk_type);
            assert_eq!(info.virtual_disk_id, chain.layer_info(0).unwrap().virtual_disk_id);
            check(&info.filename, &on(&fs));
        }
    }
    let report = ops::convert(&chain, &path("out.raw"), &ConvertOptions::default(), &mut |_| true).unwrap();
    assert_eq!((report.format, report.file_size), (ImageFormat::Raw, 9 * MIB));
    assert_eq!(fs.contents(path("out.raw")).unwrap(), wanted);
    // All that is stored, zeros too, but pieces of a page.
    assert_eq!(report.reflinked, 5 * MIB - 8192);
    let mut streamed = Vec::new();
    ops::convert_to_stream(&chain, &mut streamed, &ConvertOptions::default(), &mut |_| true).unwrap();
    assert_eq!(streamed, wanted);
    // The view of the parent.
    let mut options = ConvertOptions::default();
    options.layer = 1;
    ops::convert(&chain, &path("base.img"), &options, &mut |_| true).unwrap();
    assert_eq!(fs.contents(path("base.img")).unwrap(), content(&chain, 1));
    // Zeros that are stored, and whole blocks of them, take no space where they are copied.
    let mut options = to(ImageFormat::Vhdx);
    options.block_size = MIB as u32;
    for (mode, threads, blocks, reflinked) in [
        (CopyMode::Copy, 0, 3, 0),
        (CopyMode::Copy, 3, 3, 0),
        (CopyMode::Auto, 0, 6, 5 * MIB - 8192),
        (CopyMode::Reflink, 1, 6, 5 * MIB - 8192),
    ] {
        (options.mode, options.threads) = (mode, threads);
        let flat = path(&format!("flat-{mode:?}-{threads}"));
        let report = ops::convert(&chain, &flat, &options, &mut |_| true).unwrap();
        assert_eq!(report.reflinked, reflinked);
        let seen = ops::check(&flat, &on(&fs), &CheckOptions::default(), &mut |_| {}).unwrap();
        assert_eq!(seen.allocated_blocks, blocks);
        assert_eq!(content(&Chain::open(&flat, &on(&fs)).unwrap(), 0), wanted);
    }
    assert!(fs.paths().iter().all(|p| !p.to_string_lossy().contains(".tmp")));
}

/// What is shared and what is copied, from and to every format, with threads and without.
#[test]
fn extents_are_shared_where_that_is_wanted() {
    let fs = MemoryFileSystem::new();
    let wanted = prepared(&fs, 512);
    let mut number = 0;
    let mut convert = |from: &str, open: &OpenOptions, format, fixed, mode, threads| {
        number += 1;
        let new = path(&format!("{number}.{format:?}").to_lowercase());
        let mut options = to(format);
        options.disk_type = if fixed { DiskType::Fixed } else { DiskType::Dynamic };
        (options.mode, options.threads) = (mode, threads);
        let chain = Chain::open(&path(from), open).unwrap();
        let report = ops::convert(&chain, &new, &options, &mut |_| true).unwrap();
        chain.close().unwrap();
        assert!(read_back(&fs, &new, format, wanted.len()) == wanted, "{new:?}");
        (new, report.reflinked)
    };
    let writable = OpenOptions::new().on(Arc::new(fs.clone()));
    for format in [ImageFormat::Raw, ImageFormat::Vhdx, ImageFormat::Vhd] {
        for fixed in [false, true] {
            for threads in [0, 2] {
                let mut shared = |open: &OpenOptions, mode| convert("a.avhdx", open, format, fixed, mode, threads).1;
                assert_eq!(shared(&on(&fs), CopyMode::Auto), 5 * MIB - 8192);
                assert_eq!(shared(&on(&fs), CopyMode::Copy), 0);
                assert_eq!(shared(&on(&fs), CopyMode::Reflink), 5 * MIB - 8192);
                // Of an open disk what the parent has.
                assert_eq!(shared(&writable, CopyMode::Auto), 2 * MIB - 8192);
            }
        }
    }
    let chain = Chain::open(&path("a.avhdx"), &writable).unwrap();
    let mut reflink = to(ImageFormat::Raw);
    reflink.mode = CopyMode::Reflink;
    let error = ops::convert(&chain, &path("no"), &reflink, &mut |_| true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("open for writing"), "{error}");
    assert!(error.layer() == Some(0) && error.offset().is_some(), "{error:?}");
    assert!(error.hint().is_some_and(|hint| hint.contains("checkpoint")));
    // What is below it stays as it is.
    reflink.layer = 1;
    let report = ops::convert(&chain, &path("below"), &reflink, &mut |_| true).unwrap();
    assert_eq!(report.reflinked, 3 * MIB);
    chain.close().unwrap();
    // A fixed disk is full of zeros.
    let (fixed, _) = convert("a.avhdx", &on(&fs), ImageFormat::Vhdx, true, CopyMode::Copy, 0);
    let name = fixed.file_name().unwrap().to_str().unwrap();
    assert_eq!(
        convert(name, &on(&fs), ImageFormat::Vhdx, false, CopyMode::Auto, 0).1,
        0
    );
    assert_eq!(
        convert(name, &on(&fs), ImageFormat::Raw, false, CopyMode::Reflink, 0).1,
        9 * MIB
    );
}

/// A layer is what it was, whatever happens to the layers while it is converted: a checkpoint waits.
#[test]
fn a_checkpoint_waits_for_a_conversion() {
    for mode in [CopyMode::Copy, CopyMode::Auto] {
        let fs = MemoryFileSystem::new();
        let mut create = CreateOptions::default();
        create.size = 12 * MIB;
        create.open = OpenOptions::new().on(Arc::new(fs.clone()));
        ops::create(&path("base.vhdx"), &create).unwrap();
        let chain = Chain::open(&path("base.vhdx"), &create.open).unwrap();
        let wanted = vec![1; 12 * MIB as usize];
        chain.write(&wanted, 0, false).unwrap();
        ops::checkpoint(&chain, &path("a.avhdx"), &CheckpointOptions::default()).unwrap();
        chain.write(&[2; 12 * MIB as usize], 0, false).unwrap();
        let (begin, begun) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let chain = &chain;
            scope.spawn(move || {
                begun.recv().unwrap();
                ops::checkpoint(chain, &path("b.avhdx"), &CheckpointOptions::default()).unwrap();
            });
            let mut options = to(ImageFormat::Raw);
            (options.layer, options.mode) = (1, mode);
            let mut asked = 0;
            ops::convert(chain, &path("below.raw"), &options, &mut |_| {
                asked += 1;
                if asked == 1 {
                    begin.send(()).unwrap();
                    // Long enough for a checkpoint that does not wait.
                    std::thread::sleep(std::time::Duration::from_millis(200));
                }
                true
            })
            .unwrap();
            assert!(asked > 1);
        });
        assert_eq!(chain.layer_count(), 3);
        assert!(fs.contents(path("below.raw")).unwrap() == wanted, "{mode:?}");
    }
}

/// Files that cannot share: copied, or refused.
#[test]
fn extents_that_cannot_be_shared_are_copied() {
    let dir = tempfile::tempdir().unwrap();
    let fs = MemoryFileSystem::new();
    let wanted = prepared(&fs, 512);
    let from = |name: &str| dir.path().join(name);
    for name in ["base.vhdx", "a.avhdx"] {
        fs::write(from(name), fs.contents(path(name)).unwrap()).unwrap();
    }
    // The parent is found by its name beside the child. No file system shares with one in memory.
    let mixed: Arc<dyn FileSystem> = Arc::new(Mixed(fs.clone()));
    let chain = Chain::open(&from("a.avhdx"), &OpenOptions::read_only().on(mixed)).unwrap();
    for format in [ImageFormat::Raw, ImageFormat::Vhdx, ImageFormat::Vhd] {
        let mut options = to(format);
        let new = path(&format!("copied.{format:?}").to_lowercase());
        let report = ops::convert(&chain, &new, &options, &mut |_| true).unwrap();
        assert_eq!(report.reflinked, 0);
        // As if nobody had tried.
        options.mode = CopyMode::Copy;
        ops::convert(&chain, &path("plain"), &options, &mut |_| true).unwrap();
        assert!(format == ImageFormat::Vhdx || fs.contents(&new) == fs.contents(path("plain")));
        let size = |name: &Path| {
            let file = fs.open(name, Access::Read).unwrap();
            (file.len().unwrap(), file.allocated())
        };
        assert_eq!(size(&new), size(&path("plain")), "{format:?}");
        fs.remove(&path("plain")).unwrap();
        assert!(read_back(&fs, &new, format, wanted.len()) == wanted, "{new:?}");
        options.mode = CopyMode::Reflink;
        let error = ops::convert(&chain, &path("no"), &options, &mut |_| true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
        assert_eq!(error.hint(), Some("use mode=auto or mode=copy"));
        assert!(error.to_string().contains("between the two files"), "{error}");
        assert!(!fs.paths().contains(&path("no")));
    }
    let mut reflink = ConvertOptions::default();
    reflink.mode = CopyMode::Reflink;
    let error = ops::convert_to_stream(&chain, &mut Vec::new(), &reflink, &mut |_| true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Argument);
}

/// Names beneath "/vm" are in memory, others are the host's.
#[derive(Debug)]
struct Mixed(MemoryFileSystem);

impl Mixed {
    fn of(&self, path: &Path) -> &dyn FileSystem {
        match path.starts_with("/vm") {
            true => &self.0,
            false => &OsFileSystem,
        }
    }
}

impl FileSystem for Mixed {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        self.of(path).open(path, access)
    }

    fn open_beneath(&self, root: &Path, path: &Path) -> io::Result<Arc<dyn Storage>> {
        self.of(path).open_beneath(root, path)
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        self.of(path).create_new(path)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.of(from).rename_new(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.of(path).remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.of(dir).sync_dir(dir)
    }

    fn list(&self, dir: &Path, limit: usize) -> io::Result<Vec<PathBuf>> {
        self.of(dir).list(dir, limit)
    }

    fn absolute(&self, path: &Path) -> io::Result<PathBuf> {
        self.of(path).absolute(path)
    }
}

#[test]
fn sector_sizes_change_only_where_that_is_legal() {
    let fs = MemoryFileSystem::new();
    let wanted = prepared(&fs, 4096);
    let chain = Chain::open(&path("a.avhdx"), &on(&fs)).unwrap();
    let convert = |name: &str, options: &ConvertOptions| ops::convert(&chain, &path(name), options, &mut |_| true);
    assert_eq!(
        convert("x.vhd", &ConvertOptions::default()).unwrap_err().kind(),
        ErrorKind::Argument
    );
    for (name, sector) in [
        ("s512.vhdx", 512),
        ("s4096.vhdx", 4096),
        ("kept.vhdx", 0),
        ("s512.vhd", 512),
    ] {
        let mut options = ConvertOptions::default();
        options.logical_sector_size = sector;
        convert(name, &options).unwrap();
        if name.ends_with("vhdx") {
            let back = Chain::open(&path(name), &on(&fs)).unwrap();
            assert_eq!(content(&back, 0), wanted);
            let found = back.layer_info(0).unwrap().logical_sector_size;
            assert_eq!(found, if sector == 0 { 4096 } else { sector });
        }
    }
    // An odd number of small sectors does not make large ones.
    let mut odd = Vhd::new(1, (1 << 20) + 512, 1 << 19);
    odd.sectors[2048] = Some([5; SECTOR]);
    fs.insert(path("odd.vhd"), &odd.encode());
    let mut options = MigrateOptions::default();
    options.convert.logical_sector_size = 4096;
    let error = ops::migrate(&path("odd.vhd"), &path("odd.vhdx"), &options, &on(&fs), &mut |_| true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Argument, "{error}");
    migrate(&path("odd.vhd"), &path("odd.vhdx"), &on(&fs)).unwrap();
    assert_eq!(
        content(&Chain::open(&path("odd.vhdx"), &on(&fs)).unwrap(), 0),
        odd.own()
    );
}

#[test]
fn with_a_parent_only_what_differs_is_written() {
    let fs = MemoryFileSystem::new();
    let wanted = prepared(&fs, 512);
    let chain = Chain::open(&path("a.avhdx"), &on(&fs)).unwrap();
    // A flat copy of the base is another file with the same content.
    let mut options = to(ImageFormat::Vhdx);
    options.layer = 1;
    ops::convert(&chain, &path("copy.vhdx"), &options, &mut |_| true).unwrap();
    for (parent, name) in [("base.vhdx", "on-base.avhdx"), ("copy.vhdx", "on-copy.avhdx")] {
        let mut options = ConvertOptions::default();
        options.parent = Some(path(parent));
        options.block_size = MIB as u32;
        ops::convert(&chain, &path(name), &options, &mut |_| true).unwrap();
        let child = Chain::open(&path(name), &on(&fs)).unwrap();
        assert_eq!(child.layer_path(1).unwrap(), path(parent));
        assert_eq!(content(&child, 0), wanted);
        let mut extents = Vec::new();
        child
            .block_status(0, 9 * MIB, Scope::Layer(0), 100, &mut extents)
            .unwrap();
        let held: Vec<_> = extents
            .iter()
            .filter(|e| e.state != ExtentState::Hole)
            .map(|e| (e.offset, e.length))
            .collect();
        // The two pieces, the end of the disk, and the zeroed block; nothing for zeros over nothing.
        let data: u64 = held.iter().map(|(_, len)| len).sum();
        assert_eq!(data, 8192 + 4096 + MIB, "{held:?}");
        check(&path(name), &on(&fs));
    }
    for (set, why) in [
        (
            Box::new(|o: &mut ConvertOptions| o.to = Some(ImageFormat::Raw)) as Box<dyn Fn(&mut _)>,
            "raw",
        ),
        (
            Box::new(|o: &mut ConvertOptions| o.mode = CopyMode::Reflink),
            "it is compared, and copied",
        ),
        (
            Box::new(|o: &mut ConvertOptions| o.disk_type = DiskType::Fixed),
            "fixed",
        ),
    ] {
        let mut options = ConvertOptions::default();
        options.parent = Some(path("base.vhdx"));
        set(&mut options);
        let error = ops::convert(&chain, &path("no"), &options, &mut |_| true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Argument, "{why}");
    }
}

#[test]
fn existing_files_stay_and_cancelled_ones_go() {
    let fs = MemoryFileSystem::new();
    prepared(&fs, 512);
    fs.insert(path("there"), b"mine");
    let chain = Chain::open(&path("a.avhdx"), &on(&fs)).unwrap();
    let before = fs.paths();
    for format in [ImageFormat::Raw, ImageFormat::Vhdx, ImageFormat::Vhd] {
        let error = ops::convert(&chain, &path("there"), &to(format), &mut |_| true).unwrap_err();
        assert_eq!(error.errno(), libc::EEXIST);
        assert!(error.hint().is_some());
        let error = ops::convert(&chain, &path("new"), &to(format), &mut |_| false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        let error = ops::convert(&chain, &path("a.avhdx"), &to(format), &mut |_| true).unwrap_err();
        assert_eq!(error.errno(), libc::EEXIST);
    }
    assert_eq!(fs.contents(path("there")).unwrap(), b"mine");
    assert_eq!(fs.paths(), before);
}

#[test]
fn progress_reaches_its_total() {
    let fs = MemoryFileSystem::new();
    prepared(&fs, 512);
    let chain = Chain::open(&path("a.avhdx"), &on(&fs)).unwrap();
    let mut seen = Vec::new();
    ops::convert(&chain, &path("slow"), &ConvertOptions::default(), &mut |p| {
        seen.push((p.done, p.total));
        true
    })
    .unwrap();
    assert!(seen.windows(2).all(|pair| pair[0].0 <= pair[1].0));
    assert_eq!(seen.last(), Some(&(9 * MIB, 9 * MIB)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Chains of VHDs of any block sizes and sizes read as they should, flat and layer by layer.
    #[test]
    fn vhd_chains_migrate_to_what_they_read_as(
        layers in prop::collection::vec(
            (
                0usize..4,
                1usize..4000,
                prop::collection::vec((0usize..4000, 1usize..1200, 0u8..4), 0..6),
            ),
            1..5,
        ),
        fixed_base: bool,
        block_size in prop::sample::select(vec![0u32, 1 << 20, 2 << 20]),
    ) {
        let fs = MemoryFileSystem::new();
        let mut model: Vec<u8> = Vec::new();
        let mut views = Vec::new();
        let mut below: Option<Vhd> = None;
        for (i, (shift, sectors, runs)) in layers.iter().enumerate() {
            let mut vhd = Vhd::new(i as u8 + 1, sectors * SECTOR, 65536 << (shift * 2));
            for &(at, len, byte) in runs {
                for sector in vhd.sectors.iter_mut().skip(at).take(len) {
                    *sector = Some([byte; SECTOR]);
                }
            }
            if let Some(parent) = &below {
                vhd = vhd.on(parent, &format!("l{}.vhd", i - 1));
            }
            let bytes = if i == 0 && fixed_base { vhd.fixed() } else { vhd.encode() };
            fs.insert(path(&format!("l{i}.vhd")), &bytes);
            model = vhd.over(&model);
            views.push(model.clone());
            below = Some(vhd);
        }
        let leaf = path(&format!("l{}.vhd", layers.len() - 1));
        let old = VhdChain::open(&leaf, &on(&fs)).unwrap();
        let mut bytes = vec![0; model.len()];
        old.read(&mut bytes, 0).unwrap();
        prop_assert!(bytes == model);
        let (from, to) = (model.len() / 3, model.len() - model.len() / 5);
        old.read(&mut bytes[from..to], from as u64).unwrap();
        prop_assert!(bytes == model);

        migrate(&leaf, &path("flat.vhdx"), &on(&fs)).unwrap();
        let flat = Chain::open(&path("flat.vhdx"), &on(&fs)).unwrap();
        prop_assert!(content(&flat, 0) == model);

        let mut options = keeping_chain();
        options.convert.block_size = block_size;
        let files = ops::migrate(&leaf, &path("kept.avhdx"), &options, &on(&fs), &mut |_| true).unwrap();
        prop_assert_eq!(files.len(), layers.len());
        let kept = Chain::open(&path("kept.avhdx"), &on(&fs)).unwrap();
        prop_assert_eq!(kept.layer_count(), layers.len());
        for (i, view) in views.iter().rev().enumerate() {
            prop_assert!(&content(&kept, i) == view, "layer {i}");
            check(&kept.layer_path(i).unwrap(), &on(&fs));
        }
    }

    /// Whatever is done to a VHD, it is read or refused: no panic, no hang.
    #[test]
    fn hostile_vhds_are_read_or_refused(
        patches in prop::collection::vec((0usize..0x2400, any::<u8>()), 0..6),
        cut in prop::option::of(0usize..0x30000),
        fix_sums: bool,
    ) {
        let base = Vhd::new(1, 300 * SECTOR, 65536);
        let mut vhd = Vhd::new(2, 300 * SECTOR, 65536).on(&base, "base.vhd");
        vhd.sectors[3] = Some([4; SECTOR]);
        vhd.sectors[200] = Some([4; SECTOR]);
        let mut bytes = vhd.encode();
        for (at, byte) in patches {
            bytes[at] = byte;
        }
        if fix_sums {
            for (start, len, field) in [(0, 512, 64), (512, 1024, 36)] {
                bytes[start + field..][..4].fill(0);
                let sum = !bytes[start..start + len].iter().fold(0u32, |sum, &b| sum.wrapping_add(b.into()));
                bytes[start + field..][..4].copy_from_slice(&sum.to_be_bytes());
            }
            let footer = bytes[..512].to_vec();
            let at = bytes.len() - 512;
            bytes[at..].copy_from_slice(&footer);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut);
        }
        let fs = MemoryFileSystem::new();
        fs.insert(path("base.vhd"), &base.encode());
        fs.insert(path("leaf.vhd"), &bytes);
        if let Ok(chain) = VhdChain::open(&path("leaf.vhd"), &on(&fs)) {
            let mut buf = vec![0; chain.size().min(1 << 20) as usize];
            let _ = chain.read(&mut buf, 0);
        }
    }
}

#[test]
fn damaged_footers_and_places_are_told_apart() {
    let fs = MemoryFileSystem::new();
    let mut vhd = Vhd::new(1, 400 * SECTOR, 65536);
    for i in [0, 130, 260, 390] {
        vhd.sectors[i] = Some([i as u8 | 1; SECTOR]);
    }
    let good = vhd.encode();
    let open = |bytes: &[u8]| {
        fs.insert(path("x.vhd"), bytes);
        VhdChain::open(&path("x.vhd"), &on(&fs))
    };
    let reads = |bytes: &[u8]| {
        let mut content = vec![0; vhd.size];
        open(bytes).unwrap().read(&mut content, 0).unwrap();
        assert_eq!(content, vhd.own());
    };
    reads(&good);
    // The end is gone, or holds something else: the copy stands in.
    reads(&good[..good.len() - 512]);
    let mut torn = good.clone();
    let end = torn.len();
    torn[end - 300..].fill(0xAA);
    reads(&torn);
    // A footer of 511 bytes.
    reads(&good[..good.len() - 1]);
    let fixed = vhd.fixed();
    reads(&fixed);
    reads(&fixed[..fixed.len() - 1]);
    // A fixed disk has no copy.
    let kind = |bytes: &[u8]| open(bytes).unwrap_err().kind();
    assert_eq!(kind(&fixed[..fixed.len() - 512]), ErrorKind::NotVhdx);
    let mut broken = fixed.clone();
    broken[fixed.len() - 100] ^= 1;
    assert_eq!(kind(&broken), ErrorKind::Checksum);
    assert_eq!(kind(b"short"), ErrorKind::NotVhdx);
    assert_eq!(kind(&[0; 4096]), ErrorKind::NotVhdx);
    // Data shorter than the disk.
    assert_eq!(kind(&fixed[1024..]), ErrorKind::Truncated);
    // A guest that writes a footer of its own where the real one was lost.
    let mut fake = good[..good.len() - 512].to_vec();
    fake.extend(
        Vhd::new(7, 300 * SECTOR, 65536)
            .on(&vhd, "secret.vhd")
            .footer(DiskType::Differencing)
            .encode(),
    );
    assert_eq!(kind(&fake), ErrorKind::Corrupt);
    // Two blocks in one place, or nearly; one over the BAT, one over the start, one behind the end.
    let last = u32::from_be_bytes(good[0x200C..0x2010].try_into().unwrap());
    for (entry, wanted) in [
        (last, ErrorKind::Corrupt),
        (last + 1, ErrorKind::Corrupt),
        (16, ErrorKind::Corrupt),
        (0, ErrorKind::Corrupt),
        (0x00FF_FFFF, ErrorKind::Truncated),
        (0xFFFF_FFFE, ErrorKind::Truncated),
    ] {
        let mut bad = good.clone();
        bad[0x2004..0x2008].copy_from_slice(&entry.to_be_bytes());
        assert_eq!(kind(&bad), wanted, "{entry:#x}");
    }
}
