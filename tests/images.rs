//! Files that Windows and QEMU wrote (facts: MS-VHDX readers that agree on them).

mod common;

use std::fs;
use std::path::Path;

use avhdx::format::header::{self, Header};
use avhdx::ops::{self, CheckOptions};
use avhdx::options::{CheckpointOptions, CreateOptions, DiskType, MergeOptions, OpenOptions};
use avhdx::{Chain, ErrorKind, ExtentState, Guid, Scope};
use common::{image, sha256_of_disk, sha256_of_file, MIB};

struct Fact {
    name: &'static str,
    file: &'static str,
    content: &'static str,
    creator: &'static str,
    size: u64,
    block: u64,
    sectors: (u32, u32),
    data_write: &'static str,
    disk_id: &'static str,
    allocated: u64,
    dirty: bool,
}

const FACTS: &[Fact] = &[
    Fact {
        name: "dynamic.vhdx",
        file: "72e9aa1af9cc53c84585a8017246f14f7c9f2dd54bb3f52e3b70919b2af600b9",
        content: "8e2b5e9265d694b42b81819e3bff29770eff4ed0f4f9f311693ff3dbdc93efac",
        creator: "Microsoft Windows 10.0.18363.0",
        size: 10_485_760,
        block: 32,
        sectors: (512, 4096),
        data_write: "28e09ae1-ab94-4815-a155-f143e2d00a3f",
        disk_id: "788015f0-5e93-4bd2-a5de-b0cd8459db11",
        allocated: 1,
        dirty: false,
    },
    Fact {
        name: "iotest-dynamic-1G.vhdx",
        file: "a4fb24fa51fb4852d5a6bdc2b390a91b0a4e19b47696edc5a00c816067257402",
        content: "d3d112d8dab7fd360609f7d5a7b769904b7a2a7d7b6b8c535f65a23293c05478",
        creator: "Microsoft Windows 6.2.9200.16384",
        size: 1 << 30,
        block: 32,
        sectors: (512, 4096),
        data_write: "d247cbb2-15b6-404b-9133-790733d694c0",
        disk_id: "fc7209f1-f6eb-4616-9b77-e994e3017ddd",
        allocated: 3,
        dirty: false,
    },
    Fact {
        name: "iotest-dirtylog-10G-4M.vhdx",
        file: "511daba998dba208ffc57a7814194d5dd3afb7c314731b904ff1682e3fb4951a",
        content: "179cefe8b0587f123393eedf2aa7aa8d25798591178e6bc3950a09762f38f96f",
        creator: "QEMU v1.6.50",
        size: 10 << 30,
        block: 1,
        sectors: (512, 512),
        data_write: "5ab1b2ee-2f64-2e40-8a9b-0f0bcfdcd544",
        disk_id: "9cba4bd2-31ac-6745-a10e-380e9086de9d",
        allocated: 18,
        dirty: true,
    },
];

#[test]
fn standalone_disks_read_as_they_should_and_stay_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    for fact in FACTS {
        let Some(path) = image(dir.path(), fact.name) else {
            continue;
        };
        assert_eq!(sha256_of_file(&path), fact.file);
        let chain = Chain::open(&path, &OpenOptions::read_only()).unwrap();
        assert_eq!(sha256_of_disk(&chain), fact.content, "{}", fact.name);
        let info = chain.layer_info(0).unwrap();
        assert_eq!(info.creator, fact.creator);
        assert_eq!(
            (info.virtual_size, u64::from(info.block_size)),
            (fact.size, fact.block * MIB)
        );
        assert_eq!((info.logical_sector_size, info.physical_sector_size), fact.sectors);
        assert_eq!(info.data_write_guid, Guid::parse(fact.data_write).unwrap());
        assert_eq!(info.virtual_disk_id, Guid::parse(fact.disk_id).unwrap());
        assert_eq!((info.dirty_flag, info.disk_type), (fact.dirty, DiskType::Dynamic));
        chain.close().unwrap();
        let report = ops::check(&path, &OpenOptions::new(), &CheckOptions::default(), &mut |_| {}).unwrap();
        assert_eq!((report.errors, report.allocated_blocks), (0, fact.allocated));
        assert_eq!(sha256_of_file(&path), fact.file, "reading changed the file");
    }
}

#[test]
fn a_writable_open_replays_the_log_of_qemu() {
    let dir = tempfile::tempdir().unwrap();
    let Some(path) = image(dir.path(), "iotest-dirtylog-10G-4M.vhdx") else {
        return;
    };
    let mut refuse = OpenOptions::read_only();
    refuse.log = avhdx::options::LogPolicy::Refuse;
    assert_eq!(
        Chain::open(&path, &refuse).unwrap_err().kind(),
        ErrorKind::LogReplayRequired
    );
    let chain = Chain::open(&path, &OpenOptions::new()).unwrap();
    let info = chain.layer_info(0).unwrap();
    assert!(!info.dirty_flag);
    assert_eq!(
        info.data_write_guid,
        Guid::parse(FACTS[2].data_write).unwrap(),
        "replay is not a change of content"
    );
    assert_ne!(
        info.file_write_guid,
        Guid::parse("213b1a04-4193-f445-8f75-f2c95cb0ef69").unwrap()
    );
    assert_eq!(sha256_of_disk(&chain), FACTS[2].content);
    chain.close().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 31_457_280);
}

#[test]
fn opening_for_writing_without_writing_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Some(path) = image(dir.path(), "dynamic.vhdx") else {
        return;
    };
    let chain = Chain::open(&path, &OpenOptions::new()).unwrap();
    chain.flush().unwrap();
    chain.close().unwrap();
    assert_eq!(sha256_of_file(&path), FACTS[0].file);
}

const CHILD_CONTENT: &str = "fc5c91bfd8f7ee388cf482dc7eb6cef64b39a7e1bd043516ee95887b839f2b78";
const PARENT: &str = "Generation 1_49C4BAF3-4B25-4406-8C4B-D39E65C32385.avhdx";

#[test]
fn a_checkpoint_of_hyper_v_without_its_parent() {
    let dir = tempfile::tempdir().unwrap();
    let Some(path) = image(dir.path(), "differencing.avhdx") else {
        return;
    };
    let before = sha256_of_file(&path);
    let error = Chain::open(&path, &OpenOptions::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentNotFound);
    let text = error.to_string();
    for part in [
        "relative_path",
        "volume_path",
        "absolute_win32_path",
        PARENT,
        "Volume{0eba351e",
        "C:",
        "by identity",
    ] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
    assert!(error.hint().unwrap().contains("search"));
    let mut alone = OpenOptions::read_only();
    alone.parents = false;
    let chain = Chain::open(&path, &alone).unwrap();
    assert_eq!(sha256_of_disk(&chain), CHILD_CONTENT);
    let mut extents = Vec::new();
    chain
        .block_status(0, chain.size(), Scope::Layer(0), 10_000, &mut extents)
        .unwrap();
    let data: Vec<_> = extents.iter().filter(|e| e.state == ExtentState::Data).collect();
    assert_eq!(data.iter().map(|e| e.length).sum::<u64>(), 3_174_400);
    assert_eq!((data[0].offset, data[0].length), (2048 * 512, 8 * 512));
    assert_eq!(chain.layer_info(0).unwrap().parent_paths.len(), 3);
    drop(chain);
    let mut windows = CheckOptions::default();
    windows.windows = true;
    let report = ops::check(&path, &OpenOptions::new(), &windows, &mut |_| {}).unwrap();
    assert_eq!((report.errors, report.warnings, report.notes), (0, 0, 0));
    assert_eq!((report.allocated_blocks, report.total_blocks), (32, 4096));
    assert_eq!(sha256_of_file(&path), before);
}

/// Gives a disk of ours the identity that a child asks for.
fn set_identity(path: &Path, identity: Guid) {
    let mut bytes = fs::read(path).unwrap();
    for at in header::OFFSETS {
        let at = at as usize;
        let mut header = Header::parse(&bytes[at..at + header::SIZE]).unwrap();
        header.data_write_guid = identity;
        bytes[at..at + header::SIZE].copy_from_slice(&header.encode());
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_checkpoint_of_hyper_v_opens_checkpoints_and_merges_over_a_parent_with_the_right_identity() {
    let dir = tempfile::tempdir().unwrap();
    let Some(path) = image(dir.path(), "differencing.avhdx") else {
        return;
    };
    let parent = dir.path().join(PARENT);
    let mut create = CreateOptions::default();
    create.size = 8 << 30;
    ops::create(&parent, &create).unwrap();
    let chain = Chain::open(&parent, &OpenOptions::new()).unwrap();
    // Where the child has nothing, and where it hides it.
    chain.write(&[7; 8192], 0, false).unwrap();
    chain.write(&[8; 4096], 2048 * 512, false).unwrap();
    chain.close().unwrap();
    assert_eq!(
        Chain::open(&path, &OpenOptions::new()).unwrap_err().kind(),
        ErrorKind::ParentIdMismatch
    );
    set_identity(&parent, Guid::parse("ff34003b-11ed-4cf8-a166-b2be05e20b80").unwrap());
    let chain = Chain::open(&path, &OpenOptions::new()).unwrap();
    assert_eq!(chain.layer_count(), 2);
    let mut sector = [0; 512];
    chain.read(&mut sector, 4096).unwrap();
    assert_eq!(sector, [7; 512]);
    chain.read(&mut sector, 2048 * 512).unwrap();
    assert_ne!(sector, [8; 512]);
    let whole = sha256_of_disk(&chain);
    let new = dir.path().join("new.avhdx");
    ops::checkpoint(&chain, &new, &CheckpointOptions::default()).unwrap();
    assert_eq!(sha256_of_disk(&chain), whole);
    let report = ops::merge(&chain, 0, 2, &MergeOptions::default(), &mut |_| true).unwrap();
    assert_eq!(report.bytes, 3_174_400);
    assert_eq!(sha256_of_disk(&chain), whole);
    chain.close().unwrap();
    assert!(!path.exists() && !new.exists());
    let chain = Chain::open(&parent, &OpenOptions::read_only()).unwrap();
    assert_eq!(sha256_of_disk(&chain), whole);
    let info = chain.layer_info(0).unwrap();
    assert_eq!(
        info.virtual_disk_id,
        Guid::parse("89ca62b5-b00d-4b8e-b79a-87e20cad5a40").unwrap()
    );
}
