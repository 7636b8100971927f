//! Hostile images: a typed error before anything is written, or an answer; never a panic, a hang, or memory by a number
//! from the file. `corpus` has an image for each way known to us; here is what holds for any of them. What a single
//! structure must obey is tested with its codec in `src/format`.

mod corpus;
mod images;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use avhdx::error::Rule;
use avhdx::format::crc::crc32c_with_zeroed_checksum;
use avhdx::format::header;
use avhdx::format::log::{encode_entry, EntryHeader};
use avhdx::format::metadata;
use avhdx::ops::{self, CheckOptions};
use avhdx::options::{CheckpointOptions, CompactOptions, CreateOptions, LogPolicy, MergeOptions, ZeroFlags};
use avhdx::storage::{Access, FileSystem, MemoryFileSystem};
use avhdx::{Chain, Error, ErrorKind, Guid};
use images::*;
use proptest::prelude::*;

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
fn a_file_replaced_or_cut_while_open_is_told() {
    let fs = chain();
    let open = options(&fs);
    let chain = Chain::open(&path("a.avhdx"), &open).unwrap();
    ops::checkpoint(&chain, &path("b.avhdx"), &CheckpointOptions::default()).unwrap();
    // Another file takes the name of the layer that is to be merged and removed.
    let image = vec![1; 4096];
    fs.remove(&path("a.avhdx")).unwrap();
    fs.insert(path("a.avhdx"), &image);
    let error = ops::merge(&chain, 1, 2, &MergeOptions::default(), &mut |_| true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{}", error.chain_text());
    assert!(fs.contents(path("a.avhdx")).unwrap() == image);
    // A parent is cut under the chain that reads it.
    let parent = fs.open(&path("base.vhdx"), Access::Write).unwrap();
    parent.set_len(4 * MIB + 4096).unwrap();
    let mut buf = [0; 4096];
    let error = chain.read(&mut buf, MIB + 65536).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{}", error.chain_text());
    assert_eq!(error.path(), Some(&*path("base.vhdx")));
}

#[test]
fn readers_survive_relocation() {
    let fs = chain();
    let chain = Chain::open(&path("a.avhdx"), &options(&fs)).unwrap();
    let wanted = |at: u64| match at {
        4096..12288 => 2,
        _ if (4 * MIB..5 * MIB).contains(&at) => 3,
        _ if at < 2 * MIB => 1,
        _ => 0,
    };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let (mut buf, mut rounds) = ([0; 4096], 0);
                    while !done.load(Ordering::Relaxed) || rounds < 50 {
                        for at in [0, 4096, MIB, 4 * MIB + 8192, 6 * MIB] {
                            chain.read(&mut buf, at).unwrap();
                            assert_eq!(buf, [wanted(at); 4096], "{at:#x}");
                        }
                        rounds += 1;
                    }
                })
            })
            .collect();
        // Blocks and the bitmap move down into the place of others that go, and their old places get other owners.
        for round in 0..20u8 {
            chain.write(&vec![round | 1; MIB as usize], 7 * MIB, false).unwrap();
            chain.write(&vec![round | 1; MIB as usize], 5 * MIB, true).unwrap();
            chain.discard(7 * MIB, MIB, true).unwrap();
            ops::compact(&chain, &CompactOptions::default(), &mut |_| true).unwrap();
            chain.discard(5 * MIB, MIB, true).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
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
