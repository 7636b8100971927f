//! Hostile images: a typed error before anything is written, or an answer; never a panic, a hang, or memory by a number
//! from the file. The table follows the checks of docs/format-notes.md and MS-VHDX; what a single structure must obey is
//! tested with its codec in `src/format`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::error::Rule;
use avhdx::format::crc::crc32c_with_zeroed_checksum;
use avhdx::format::header::{self, Header};
use avhdx::format::locator::Locator;
use avhdx::format::log::{encode_entry, EntryHeader};
use avhdx::format::metadata::{self, MetadataTable};
use avhdx::format::region;
use avhdx::ops::{self, CheckOptions};
use avhdx::options::{CheckpointOptions, CreateOptions, LogPolicy, MergeOptions, OpenOptions, ZeroFlags};
use avhdx::storage::{FileSystem, MemoryFileSystem};
use avhdx::{Chain, Error, ErrorKind, Guid};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
const METADATA: usize = 2 << 20;
const BAT: usize = 3 << 20;

fn path(name: &str) -> PathBuf {
    Path::new("/vm").join(name)
}

fn options(fs: &MemoryFileSystem) -> OpenOptions {
    OpenOptions::new().on(Arc::new(fs.clone()))
}

/// base.vhdx <- a.avhdx, 8 MiB, blocks of 1 MiB, both with content.
fn chain() -> MemoryFileSystem {
    let fs = MemoryFileSystem::new();
    let mut create = CreateOptions::default();
    create.size = 8 * MIB;
    create.block_size = MIB as u32;
    create.open = options(&fs);
    ops::create(&path("base.vhdx"), &create).unwrap();
    let chain = Chain::open(&path("base.vhdx"), &options(&fs)).unwrap();
    chain.write(&[1; 2 * MIB as usize], 0, false).unwrap();
    let mut checkpoint = CheckpointOptions::default();
    checkpoint.block_size = MIB as u32;
    ops::checkpoint(&chain, &path("a.avhdx"), &checkpoint).unwrap();
    chain.write(&[2; 8192], 4096, false).unwrap();
    chain.write(&[3; MIB as usize], 4 * MIB, false).unwrap();
    chain.close().unwrap();
    fs
}

type Image = Vec<u8>;

fn headers(image: &mut Image, change: impl Fn(&mut Header)) {
    for at in header::OFFSETS {
        let at = at as usize;
        let mut header = Header::parse(&image[at..at + header::SIZE]).unwrap();
        change(&mut header);
        image[at..at + header::SIZE].copy_from_slice(&header.encode());
    }
}

/// Changes both region tables and repairs their checksums.
fn regions(image: &mut Image, change: impl Fn(&mut [u8])) {
    for at in region::OFFSETS {
        let table = &mut image[at as usize..at as usize + region::SIZE];
        change(table);
        let crc = crc32c_with_zeroed_checksum(table);
        table[4..8].copy_from_slice(&crc.to_le_bytes());
    }
}

fn bat(image: &mut Image, index: usize, value: u64) {
    image[BAT + index * 8..BAT + index * 8 + 8].copy_from_slice(&value.to_le_bytes());
}

fn item(image: &Image, id: Guid) -> usize {
    let table = MetadataTable::parse(&image[METADATA..METADATA + metadata::TABLE_SIZE], 0, 1 << 20).unwrap();
    METADATA + table.find(id).unwrap().offset as usize
}

fn put_item(image: &mut Image, id: Guid, bytes: &[u8]) {
    let at = item(image, id);
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

const LOG_GUID: Guid = Guid::from_u128(77);

/// A dirty log of one entry with these zero ranges.
fn dirty_log(image: &mut Image, zero: &[(u64, u64)], last_file_offset: u64, flushed: u64) {
    let entry = EntryHeader {
        checksum: 0,
        entry_length: 0,
        tail: 0,
        sequence_number: 5,
        descriptor_count: 0,
        log_guid: LOG_GUID,
        flushed_file_offset: flushed,
        last_file_offset,
    };
    let bytes = encode_entry(&entry, zero, &[]);
    image[MIB as usize..MIB as usize + bytes.len()].copy_from_slice(&bytes);
    headers(image, |h| h.log_guid = LOG_GUID);
}

/// What an attacker does to base.vhdx, and the rule that catches it when the disk is opened, or when all of it is read
/// and written.
type Attack = (&'static str, fn(&mut Image), Rule);

const ON_OPEN: &[Attack] = &[
    ("shorter than the headers", |i| i.truncate(100_000), Rule::Truncated),
    ("not even a signature", |i| i.truncate(4), Rule::Truncated),
    ("another signature", |i| i[0] = b'x', Rule::Signature),
    (
        "both headers bad",
        |i| {
            i[65_540] ^= 1;
            i[131_076] ^= 1
        },
        Rule::NoHeader,
    ),
    ("another version", |i| headers(i, |h| h.version = 2), Rule::Version),
    (
        "log beyond the end",
        |i| headers(i, |h| h.log_offset = 1 << 40),
        Rule::LogGeometry,
    ),
    (
        "log offset overflows",
        |i| headers(i, |h| h.log_offset = !0 << 20),
        Rule::LogGeometry,
    ),
    (
        "log over the metadata",
        |i| headers(i, |h| h.log_offset = 2 << 20),
        Rule::Overlap,
    ),
    (
        "log in use without entry",
        |i| headers(i, |h| h.log_guid = LOG_GUID),
        Rule::LogEmpty,
    ),
    (
        "log aimed at the identifier",
        |i| dirty_log(i, &[(0, 4096)], 8 << 20, 0),
        Rule::LogTarget,
    ),
    (
        "log aimed at a header",
        |i| dirty_log(i, &[(65_536, 4096)], 8 << 20, 0),
        Rule::LogTarget,
    ),
    (
        "log aimed at itself",
        |i| dirty_log(i, &[(1 << 20, 4096)], 8 << 20, 0),
        Rule::LogTarget,
    ),
    (
        "log range overflows",
        |i| dirty_log(i, &[(!0 << 12, 8192)], 8 << 20, 0),
        Rule::LogTarget,
    ),
    (
        "log zeroes exabytes",
        |i| dirty_log(i, &[(4 << 20, 1 << 60)], 8 << 20, 0),
        Rule::LogTarget,
    ),
    (
        "log grows the file without end",
        |i| dirty_log(i, &[], 1 << 60, 0),
        Rule::LogTarget,
    ),
    (
        "file shorter than the log says",
        |i| dirty_log(i, &[], 8 << 20, 1 << 40),
        Rule::FileTruncated,
    ),
    (
        "both region tables bad",
        |i| {
            i[196_612] ^= 1;
            i[262_148] ^= 1
        },
        Rule::NoRegionTable,
    ),
    (
        "four billion regions",
        |i| regions(i, |t| t[8..12].fill(0xFF)),
        Rule::RegionCount,
    ),
    (
        "BAT region beyond the end",
        |i| regions(i, |t| t[16 + 20] = 1),
        Rule::RegionRange,
    ),
    (
        "BAT region empty",
        |i| regions(i, |t| t[40..44].fill(0)),
        Rule::RegionRange,
    ),
    (
        "regions over each other",
        |i| regions(i, |t| t[32..40].copy_from_slice(&(2u64 << 20).to_le_bytes())),
        Rule::Overlap,
    ),
    (
        "unknown required region",
        |i| regions(i, |t| t[16] ^= 1),
        Rule::UnknownRegion,
    ),
    ("metadata signature", |i| i[METADATA] = 0, Rule::MetadataSignature),
    (
        "65535 items",
        |i| i[METADATA + 10..METADATA + 12].fill(0xFF),
        Rule::MetadataCount,
    ),
    (
        "item far away",
        |i| i[METADATA + 32 + 16..METADATA + 32 + 20].fill(0xFF),
        Rule::MetadataRange,
    ),
    ("item flags", |i| i[METADATA + 32 + 24] = 0xFF, Rule::MetadataFlags),
    (
        "block size 0",
        |i| put_item(i, metadata::FILE_PARAMETERS, &[0; 4]),
        Rule::FileParameters,
    ),
    (
        "block size 3 MiB",
        |i| put_item(i, metadata::FILE_PARAMETERS, &(3u32 << 20).to_le_bytes()),
        Rule::FileParameters,
    ),
    (
        "size 0",
        |i| put_item(i, metadata::VIRTUAL_DISK_SIZE, &[0; 8]),
        Rule::DiskSize,
    ),
    (
        "size 16 EiB",
        |i| put_item(i, metadata::VIRTUAL_DISK_SIZE, &(!511u64).to_le_bytes()),
        Rule::DiskSize,
    ),
    (
        "sector size 0",
        |i| put_item(i, metadata::LOGICAL_SECTOR_SIZE, &[0; 4]),
        Rule::SectorSize,
    ),
    (
        "more blocks than the BAT has",
        |i| put_item(i, metadata::VIRTUAL_DISK_SIZE, &(1u64 << 40).to_le_bytes()),
        Rule::BatTooSmall,
    ),
    (
        "a parent without locator",
        |i| {
            let at = item(i, metadata::FILE_PARAMETERS);
            i[at + 4] = 2
        },
        Rule::MissingLocator,
    ),
];

const ON_USE: &[Attack] = &[
    ("state 5", |i| bat(i, 0, 4 << 20 | 5), Rule::BatState),
    (
        "partly present without parent",
        |i| bat(i, 0, 4 << 20 | 7),
        Rule::BatState,
    ),
    ("reserved bits", |i| bat(i, 0, 4 << 20 | 0x100 | 6), Rule::BatReserved),
    ("block at 0", |i| bat(i, 0, 6), Rule::BatOffset),
    ("offset of 2^64", |i| bat(i, 0, !0 << 20 | 6), Rule::BatOffset),
    ("block beyond the end", |i| bat(i, 0, 1 << 30 | 6), Rule::BeyondEof),
    ("block on the log", |i| bat(i, 0, 1 << 20 | 6), Rule::Overlap),
    ("block on the metadata", |i| bat(i, 0, 2 << 20 | 6), Rule::Overlap),
    ("block on the BAT", |i| bat(i, 0, 3 << 20 | 6), Rule::Overlap),
    (
        "two blocks in one place",
        |i| {
            let e: [u8; 8] = i[BAT..BAT + 8].try_into().unwrap();
            bat(i, 1, u64::from_le_bytes(e))
        },
        Rule::Overlap,
    ),
    (
        "an anchor on a block",
        |i| {
            let e: [u8; 8] = i[BAT..BAT + 8].try_into().unwrap();
            bat(i, 5, u64::from_le_bytes(e) & !7 | 3)
        },
        Rule::Overlap,
    ),
];

/// Reads all and writes everywhere.
fn use_all(path: &Path, options: &OpenOptions) -> Result<(), Error> {
    let chain = Chain::open(path, options)?;
    let mut buf = vec![0; 64 << 10];
    let mut first = Ok(());
    for at in (0..chain.size().min(64 * MIB)).step_by(buf.len()) {
        let len = buf.len().min((chain.size() - at) as usize);
        first = first.and(chain.read(&mut buf[..len], at));
    }
    first = first.and(chain.write(&[9; 512], chain.size() - 512, false));
    first = first.and(chain.write(&[9; 512], chain.size() / 2, false));
    first = first.and(chain.discard(0, chain.size().min(64 * MIB), false));
    let closed = chain.close();
    first.and(closed)
}

fn rule_of(error: &Error) -> Option<Rule> {
    error.defect().map(|d| d.rule)
}

#[test]
fn what_is_wrong_with_a_file_is_said_before_it_is_touched() {
    let good = chain();
    for (name, attack, rule) in ON_OPEN {
        let mut image = good.contents(path("base.vhdx")).unwrap();
        attack(&mut image);
        let fs = MemoryFileSystem::new();
        fs.insert(path("base.vhdx"), &image);
        for read_only in [true, false] {
            let mut open = options(&fs);
            open.read_only = read_only;
            let error = Chain::open(&path("base.vhdx"), &open)
                .err()
                .unwrap_or_else(|| panic!("{name}: opened"));
            assert_eq!(rule_of(&error), Some(*rule), "{name}: {}", error.chain_text());
            assert!(error.hint().is_some() && error.offset().is_some(), "{name}");
        }
        match ops::check(&path("base.vhdx"), &options(&fs), &CheckOptions::default(), &mut |_| {}) {
            Ok(report) => assert!(report.errors > 0, "{name}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotVhdx, "{name}"),
        }
        assert!(
            fs.contents(path("base.vhdx")).unwrap() == image,
            "{name}: the file was changed"
        );
    }
}

#[test]
fn a_broken_block_is_an_error_of_its_use() {
    let good = chain();
    for (name, attack, rule) in ON_USE {
        let mut image = good.contents(path("base.vhdx")).unwrap();
        attack(&mut image);
        let fs = MemoryFileSystem::new();
        fs.insert(path("base.vhdx"), &image);
        let error = use_all(&path("base.vhdx"), &options(&fs)).expect_err(name);
        assert_eq!(rule_of(&error), Some(*rule), "{name}: {}", error.chain_text());
        let mut rules = Vec::new();
        let image_before = fs.contents(path("base.vhdx")).unwrap();
        let check = ops::check(&path("base.vhdx"), &options(&fs), &CheckOptions::default(), &mut |f| {
            rules.push(f.defect.rule)
        });
        assert!(check.unwrap().errors > 0 && rules.contains(rule), "{name}: {rules:?}");
        assert!(
            fs.contents(path("base.vhdx")).unwrap() == image_before,
            "{name}: check wrote"
        );
    }
}

#[test]
fn a_partly_present_block_needs_its_bitmap() {
    let fs = chain();
    let mut image = fs.contents(path("a.avhdx")).unwrap();
    let bitmap = BAT + 8192 * 8 / 2;
    assert_ne!(image[bitmap..bitmap + 8], [0; 8], "the bitmap's entry is here");
    image[bitmap..bitmap + 8].fill(0);
    fs.insert(path("a.avhdx"), &image);
    let error = use_all(&path("a.avhdx"), &options(&fs)).unwrap_err();
    assert_eq!(rule_of(&error), Some(Rule::MissingSb), "{}", error.chain_text());
    image[bitmap] = 3;
    fs.insert(path("a.avhdx"), &image);
    assert_eq!(
        rule_of(&use_all(&path("a.avhdx"), &options(&fs)).unwrap_err()),
        Some(Rule::SbState)
    );
}

/// Rewrites the locator of a.avhdx.
fn locator(fs: &MemoryFileSystem, change: impl FnOnce(&mut Locator)) {
    let mut image = fs.contents(path("a.avhdx")).unwrap();
    let table = MetadataTable::parse(&image[METADATA..METADATA + metadata::TABLE_SIZE], 0, 1 << 20).unwrap();
    let place = table.find(metadata::PARENT_LOCATOR).unwrap();
    let at = METADATA + place.offset as usize;
    let mut locator = Locator::parse(&image[at..at + place.length as usize], 0).unwrap();
    change(&mut locator);
    let bytes = locator.encode();
    image[at..at + bytes.len()].copy_from_slice(&bytes);
    // Its entry is the last.
    let entry = METADATA + 32 + 5 * 32;
    image[entry + 20..entry + 24].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
    fs.insert(path("a.avhdx"), &image);
}

fn opens(fs: &MemoryFileSystem) -> Result<usize, Error> {
    Chain::open(&path("a.avhdx"), &options(fs)).map(|chain| chain.layer_count())
}

fn base_guid(fs: &MemoryFileSystem) -> Guid {
    Chain::probe(&path("base.vhdx"), &options(fs)).unwrap().data_write_guid
}

#[test]
fn parents_are_found_by_identity_and_nothing_else() {
    let fs = chain();
    assert_eq!(opens(&fs).unwrap(), 2);
    // A path that leads nowhere: found by identity.
    locator(&fs, |l| {
        l.set("relative_path", "..\\..\\..\\etc\\passwd");
        l.set("absolute_win32_path", "\\\\evil\\share\\x.vhdx");
    });
    assert_eq!(opens(&fs).unwrap(), 2);
    // Another identity: not the parent, though the path says so.
    locator(&fs, |l| {
        l.set("relative_path", ".\\base.vhdx");
        l.set_linkage(Guid::from_u128(1), None);
    });
    let error = opens(&fs).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentIdMismatch);
    assert!(error.to_string().contains("base.vhdx"));
    // The second identity counts, except when it is zero.
    let base = base_guid(&fs);
    locator(&fs, |l| l.set_linkage(Guid::from_u128(1), Some(base)));
    let chain = Chain::open(&path("a.avhdx"), &options(&fs)).unwrap();
    assert!(chain.info().unwrap().pending_merge);
    drop(chain);
    let mut image = fs.contents(path("base.vhdx")).unwrap();
    headers(&mut image, |h| h.data_write_guid = Guid::ZERO);
    fs.insert(path("base.vhdx"), &image);
    locator(&fs, |l| l.set_linkage(Guid::from_u128(1), None));
    assert_eq!(opens(&fs).unwrap_err().kind(), ErrorKind::ParentIdMismatch);
}

#[test]
fn a_chain_that_returns_to_itself_ends() {
    let fs = chain();
    let own = Chain::probe(&path("a.avhdx"), &options(&fs)).unwrap().data_write_guid;
    locator(&fs, |l| {
        l.set("relative_path", ".\\a.avhdx");
        l.set_linkage(own, None);
    });
    let mut open = options(&fs);
    open.lock = false;
    assert_eq!(
        Chain::open(&path("a.avhdx"), &open).unwrap_err().kind(),
        ErrorKind::ChainLoop
    );
    let mut open = options(&chain());
    open.max_depth = 1;
    assert_eq!(
        Chain::open(&path("a.avhdx"), &open).unwrap_err().kind(),
        ErrorKind::ChainLoop
    );
}

#[test]
fn a_parent_with_another_sector_size_is_refused() {
    let fs = chain();
    let mut image = fs.contents(path("base.vhdx")).unwrap();
    put_item(&mut image, metadata::LOGICAL_SECTOR_SIZE, &4096u32.to_le_bytes());
    fs.insert(path("base.vhdx"), &image);
    assert_eq!(opens(&fs).unwrap_err().kind(), ErrorKind::ParentMismatch);
}

#[test]
fn parent_root_confines() {
    let fs = chain();
    fs.rename_new(&path("base.vhdx"), Path::new("/elsewhere/base.vhdx"))
        .unwrap();
    locator(&fs, |l| l.set("relative_path", "..\\elsewhere\\base.vhdx"));
    assert_eq!(opens(&fs).unwrap(), 2);
    let mut open = options(&fs);
    open.parent_root = Some("/vm".into());
    assert_eq!(
        Chain::open(&path("a.avhdx"), &open).unwrap_err().kind(),
        ErrorKind::ParentAccess
    );
}

#[test]
fn a_dirty_parent_is_not_written() {
    let fs = chain();
    let mut image = fs.contents(path("base.vhdx")).unwrap();
    // Its log zeroes the second half of block 1.
    let entry: [u8; 8] = image[BAT + 8..BAT + 16].try_into().unwrap();
    let block = u64::from_le_bytes(entry) & !7;
    let len = image.len() as u64;
    dirty_log(&mut image, &[(block + MIB / 2, MIB / 2)], len, 0);
    fs.insert(path("base.vhdx"), &image);
    let chain = Chain::open(&path("a.avhdx"), &options(&fs)).unwrap();
    let mut found = [7; 2];
    chain.read(&mut found, MIB + MIB / 2 - 1).unwrap();
    assert_eq!(found, [1, 0]);
    assert!(chain.layer_info(1).unwrap().dirty_flag);
    chain.write(&[5; 512], 0, true).unwrap();
    chain.close().unwrap();
    assert!(fs.contents(path("base.vhdx")).unwrap() == image);
    let mut open = options(&fs);
    open.log = LogPolicy::Refuse;
    assert_eq!(
        Chain::open(&path("a.avhdx"), &open).unwrap_err().kind(),
        ErrorKind::LogReplayRequired
    );
    // Merging into it replays it first.
    ops::merge_path(
        &path("a.avhdx"),
        None,
        &options(&fs),
        &MergeOptions::default(),
        &mut |_| true,
    )
    .unwrap();
    let chain = Chain::open(&path("base.vhdx"), &options(&fs)).unwrap();
    chain.read(&mut found, MIB + MIB / 2 - 1).unwrap();
    assert_eq!(found, [1, 0]);
}

#[test]
fn the_header_of_a_huge_disk_costs_nothing() {
    let fs = MemoryFileSystem::new();
    let mut create = CreateOptions::default();
    create.size = 64 << 40;
    create.block_size = MIB as u32;
    create.open = options(&fs);
    ops::create(&path("huge.vhdx"), &create).unwrap();
    let chain = Chain::open(&path("huge.vhdx"), &options(&fs)).unwrap();
    for at in [0, 20 << 40, (64u64 << 40) - 4096] {
        chain.write(&[4; 4096], at, false).unwrap();
        let mut found = [0; 4096];
        chain.read(&mut found, at).unwrap();
        assert_eq!(found, [4; 4096]);
    }
    chain.close().unwrap();
    let report = ops::check(&path("huge.vhdx"), &options(&fs), &CheckOptions::default(), &mut |_| {}).unwrap();
    assert_eq!((report.errors, report.allocated_blocks, report.leaked_bytes), (0, 3, 0));
}

#[test]
fn requests_outside_the_disk_are_refused_whole() {
    let fs = chain();
    let chain = Chain::open(&path("a.avhdx"), &options(&fs)).unwrap();
    let mut buf = [7; 512];
    for at in [8 * MIB - 511, 8 * MIB, u64::MAX, u64::MAX - 511] {
        assert_eq!(chain.read(&mut buf, at).unwrap_err().kind(), ErrorKind::Range);
        assert_eq!(chain.write(&buf, at, false).unwrap_err().kind(), ErrorKind::Range);
        assert_eq!(
            chain.zero(at, 512, ZeroFlags::default()).unwrap_err().kind(),
            ErrorKind::Range
        );
        assert_eq!(chain.discard(at, 512, false).unwrap_err().kind(), ErrorKind::Range);
    }
    assert_eq!(buf, [7; 512]);
    assert_eq!(chain.discard(0, u64::MAX, false).unwrap_err().kind(), ErrorKind::Range);
}

/// Found by the fuzz target `chain`.
#[test]
fn a_header_whose_number_cannot_grow_is_a_finding() {
    let fs = chain();
    let mut image = fs.contents(path("base.vhdx")).unwrap();
    headers(&mut image, |h| h.sequence_number = u64::MAX);
    fs.insert(path("base.vhdx"), &image);
    let mut rules = Vec::new();
    let report = ops::check(&path("base.vhdx"), &options(&fs), &CheckOptions::default(), &mut |f| {
        rules.push(f.defect.rule)
    });
    assert_eq!((report.unwrap().errors, rules), (1, vec![Rule::HeaderSequence]));
    let error = use_all(&path("base.vhdx"), &options(&fs)).unwrap_err();
    assert_eq!(rule_of(&error), Some(Rule::HeaderSequence));
    assert!(fs.contents(path("base.vhdx")).unwrap() == image);
}

/// Found by the fuzz target `log`.
#[test]
fn zeros_replayed_do_not_cut_off_a_page_that_grew_the_file() {
    let fs = chain();
    let mut image = fs.contents(path("base.vhdx")).unwrap();
    let len = image.len() as u64;
    let entry = |sequence_number, last_file_offset| EntryHeader {
        checksum: 0,
        entry_length: 0,
        tail: 0,
        sequence_number,
        descriptor_count: 0,
        log_guid: LOG_GUID,
        flushed_file_offset: len,
        last_file_offset,
    };
    let page = [7; 4096];
    let mut log = encode_entry(&entry(5, len + 2 * MIB), &[], &[(len + MIB, &page)]);
    log.extend(encode_entry(&entry(6, len), &[(len, 4096)], &[]));
    image[MIB as usize..MIB as usize + log.len()].copy_from_slice(&log);
    headers(&mut image, |h| h.log_guid = LOG_GUID);
    fs.insert(path("base.vhdx"), &image);
    let mut open = options(&fs);
    open.read_only = true;
    open.log = LogPolicy::Replay;
    drop(Chain::open(&path("base.vhdx"), &open).unwrap());
    let replayed = fs.contents(path("base.vhdx")).unwrap();
    assert_eq!(replayed.len() as u64, len + MIB + 4096);
    assert!(replayed[(len + MIB) as usize..] == page);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    /// Any change to the structures of a chain, checksums repaired so that it gets past them: no panic, and whoever
    /// still opens it reads without touching it.
    #[test]
    fn any_damage_is_survived(
        patches in proptest::collection::vec((prop_oneof![
            Just(65_536usize), Just(131_072), Just(196_608), Just(262_144), Just(1 << 20), Just(METADATA),
            Just(METADATA + 65_536), Just(BAT), Just(BAT + 4096 * 8)
        ], 0usize..256, prop_oneof![any::<u8>(), Just(0), Just(0xFF)]), 1..6),
        in_base in any::<bool>(),
        dirty in any::<bool>(),
    ) {
        let fs = chain();
        let name = if in_base { "base.vhdx" } else { "a.avhdx" };
        let mut image = fs.contents(path(name)).unwrap();
        if dirty {
            let len = image.len() as u64;
            dirty_log(&mut image, &[(METADATA as u64 + 65_536, 4096)], len, 0);
        }
        for &(base, at, value) in &patches {
            if base + at < image.len() {
                image[base + at] = value;
            }
        }
        for at in header::OFFSETS {
            let bytes = &mut image[at as usize..at as usize + header::SIZE];
            let crc = crc32c_with_zeroed_checksum(bytes);
            bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        }
        regions(&mut image, |_| ());
        let entry = &mut image[MIB as usize..MIB as usize + 4096];
        let crc = crc32c_with_zeroed_checksum(entry);
        entry[4..8].copy_from_slice(&crc.to_le_bytes());
        fs.insert(path(name), &image);
        let mut open = options(&fs);
        open.lock = false;
        open.read_only = true;
        if let Ok(chain) = Chain::open(&path("a.avhdx"), &open) {
            let mut buf = vec![0; 256 << 10];
            for at in (0..chain.size().min(16 * MIB)).step_by(buf.len()) {
                let len = buf.len().min((chain.size() - at) as usize);
                let _ = chain.read(&mut buf[..len], at);
            }
            let _ = chain.info();
        }
        let _ = ops::check(&path(name), &open, &CheckOptions::default(), &mut |_| {});
        prop_assert!(fs.contents(path(name)).unwrap() == image, "reading wrote");
        open.read_only = false;
        let _ = use_all(&path("a.avhdx"), &open);
        let _ = ops::merge_path(&path("a.avhdx"), None, &open, &MergeOptions::default(), &mut |_| true);
    }
}
