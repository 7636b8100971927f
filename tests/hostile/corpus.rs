//! At least one image for each way known to us to attack a reader or writer of VHDX. The ways are numbered; comments name
//! them. Each is opened for reading and read, opened for writing and written, checked, and merged into
//! its parent, in a process of its own that has 20 seconds of processor for the four and 256 MiB of address space, program
//! included.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use avhdx::error::Rule::{self, *};
use avhdx::format::header::Header;
use avhdx::format::locator::Locator;
use avhdx::format::log::{encode_entry, EntryHeader};
use avhdx::format::{metadata, region};
use avhdx::ops::{self, CheckOptions, Severity};
use avhdx::options::{CreateOptions, DiskType, MergeOptions, OpenOptions};
use avhdx::storage::{Access, FileSystem, MemoryFileSystem, OsFileSystem};
use avhdx::{Chain, Error, ErrorKind, Guid};

use crate::images::*;

/// What an attempt must end in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Fine,
    /// The rule that the error names; for `check`: that a finding names.
    Broken(Rule),
    Failed(ErrorKind),
}
use End::{Broken, Failed, Fine};

/// Where an image lies.
struct Place {
    fs: Arc<dyn FileSystem>,
    open: OpenOptions,
    /// Opened, written, merged.
    leaf: std::path::PathBuf,
    /// Checked.
    attacked: std::path::PathBuf,
    /// In memory: to see what changed.
    memory: Option<MemoryFileSystem>,
    _dir: Option<tempfile::TempDir>,
}

enum Attack {
    /// On a.avhdx, a child of the good base.vhdx.
    Child(fn(&mut Image)),
    /// On base.vhdx, the parent of the good a.avhdx.
    Parent(fn(&mut Image)),
    /// On the locator of a.avhdx.
    Named(fn(&mut Locator)),
    /// On the bytes of that locator.
    Locator(fn(&mut Vec<u8>)),
    /// On the files.
    Files(fn(&MemoryFileSystem)),
    /// On the files and how they are opened.
    Options(fn(&MemoryFileSystem, &mut OpenOptions)),
    /// On a host's directory.
    Host(fn(&Path)),
}
use Attack::{Child, Files, Host, Named, Options, Parent};

struct Case {
    row: u8,
    name: &'static str,
    attack: Attack,
    /// Read, written, checked, merged.
    ends: [End; 4],
}

/// The same error whatever is tried.
const fn all(rule: Rule) -> [End; 4] {
    [Broken(rule); 4]
}

/// The chain cannot be opened; the file alone is well-formed.
const fn chain_fails(kind: ErrorKind) -> [End; 4] {
    [Failed(kind), Failed(kind), Fine, Failed(kind)]
}

/// The file is no disk: nothing that is one is where the parent should be.
const fn bad_parent(rule: Rule) -> [End; 4] {
    let none = Failed(ErrorKind::ParentNotFound);
    [none, none, Broken(rule), none]
}

const FINE: [End; 4] = [Fine; 4];

const fn case(row: u8, name: &'static str, attack: Attack, ends: [End; 4]) -> Case {
    Case {
        row,
        name,
        attack,
        ends,
    }
}

fn word(image: &Image, index: usize) -> u64 {
    u64::from_le_bytes(image[BAT + index * 8..][..8].try_into().unwrap())
}

/// The entry of the sector bitmap: behind those of a chunk of 4096 blocks.
const BITMAP: usize = 4096;

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// A field of the i-th entry of the metadata table.
fn entry(image: &mut Image, i: usize, field: usize, value: &[u8]) {
    put(image, METADATA + 32 + i * 32 + field, value);
}

/// Adds an entry to the metadata table; the items of a child are 6.
fn add_item(image: &mut Image, id: Guid, offset: u32, length: u32, flags: u32) {
    let count = u16::from_le_bytes(image[METADATA + 10..METADATA + 12].try_into().unwrap());
    let i = usize::from(count);
    put(image, METADATA + 10, &(count + 1).to_le_bytes());
    entry(image, i, 0, &id.to_stored());
    entry(image, i, 16, &offset.to_le_bytes());
    entry(image, i, 20, &length.to_le_bytes());
    entry(image, i, 24, &flags.to_le_bytes());
    entry(image, i, 28, &[0; 4]);
}

fn add_region(image: &mut Image, guid: Guid, offset: u64, length: u32, required: u32) {
    regions(image, |t| {
        let count = u32::from_le_bytes(t[8..12].try_into().unwrap());
        put(t, 8, &(count + 1).to_le_bytes());
        let at = 16 + count as usize * 32;
        put(t, at, &guid.to_stored());
        put(t, at + 16, &offset.to_le_bytes());
        put(t, at + 24, &length.to_le_bytes());
        put(t, at + 28, &required.to_le_bytes());
    });
}

const STRANGE: Guid = Guid::from_u128(0xBAD);

fn log_entry(image: &Image, sequence: u64, tail: u32) -> EntryHeader {
    EntryHeader {
        checksum: 0,
        entry_length: 0,
        tail,
        sequence_number: sequence,
        descriptor_count: 0,
        log_guid: LOG_GUID,
        flushed_file_offset: 0,
        last_file_offset: image.len() as u64,
    }
}

/// A log of these entries, one behind the other.
fn log_of(image: &mut Image, entries: &[Vec<u8>]) {
    let mut at = MIB as usize;
    for entry in entries {
        put(image, at, entry);
        at += entry.len();
    }
    headers(image, |h| h.log_guid = LOG_GUID);
}

fn fix(entry: &mut [u8]) {
    let crc = avhdx::format::crc::crc32c_with_zeroed_checksum(entry);
    put(entry, 4, &crc.to_le_bytes());
}

/// A log of one entry that writes one page, changed, its checksum repaired.
fn bad_entry(image: &mut Image, change: impl Fn(&mut Vec<u8>)) {
    let mut bytes = encode_entry(
        &log_entry(image, 5, 0),
        &[],
        &[(METADATA as u64 + 65536 * 2, &[7; 4096])],
    );
    change(&mut bytes);
    fix(&mut bytes);
    log_of(image, &[bytes]);
}

/// A dirty log whose one entry writes a page.
fn logged_page(image: &mut Image, at: u64, page: &[u8; 4096]) {
    let bytes = encode_entry(&log_entry(image, 5, 0), &[], &[(at, page)]);
    log_of(image, &[bytes]);
}

fn page_of(image: &Image, at: usize) -> [u8; 4096] {
    image[at..at + 4096].try_into().unwrap()
}

fn patch_locator(fs: &MemoryFileSystem, change: fn(&mut Vec<u8>)) {
    let mut image = fs.contents(path("a.avhdx")).unwrap();
    let at = item(&image, metadata::PARENT_LOCATOR);
    let length = u32::from_le_bytes(image[METADATA + 32 + 5 * 32 + 20..][..4].try_into().unwrap());
    let mut bytes = image[at..at + length as usize].to_vec();
    change(&mut bytes);
    put(&mut image, at, &bytes);
    entry(&mut image, 5, 20, &(bytes.len() as u32).to_le_bytes());
    fs.insert(path("a.avhdx"), &image);
}

fn rewrite(fs: &MemoryFileSystem, name: &str, change: impl Fn(&mut Image)) {
    let mut image = fs.contents(path(name)).unwrap();
    change(&mut image);
    fs.insert(path(name), &image);
}

fn identity(fs: &MemoryFileSystem, name: &str) -> Guid {
    Chain::probe(&path(name), &options(fs)).unwrap().data_write_guid
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// a.avhdx on another parent, which is made smaller or larger.
fn on_parent_of(fs: &MemoryFileSystem, size: u64) {
    let mut create = CreateOptions::default();
    (create.size, create.block_size, create.open) = (size, MIB as u32, options(fs));
    fs.remove(&path("base.vhdx")).unwrap();
    ops::create(&path("base.vhdx"), &create).unwrap();
    let parent = identity(fs, "base.vhdx");
    locator(fs, |l| l.set_linkage(parent, None));
}

/// A name that leads nowhere, in a locator whose parent cannot be found by searching either.
fn astray(l: &mut Locator, key: &str, to: &str) {
    for key in ["relative_path", "absolute_win32_path", "volume_path"] {
        l.remove(key);
    }
    l.set(key, to);
    l.set_linkage(Guid::from_u128(99), None);
}

const DENIED: [End; 4] = chain_fails(ErrorKind::ParentNotFound);

#[rustfmt::skip] // a table
const CASES: &[Case] = &[
    // 1: shorter than a structure.
    case(1, "empty", Child(|i| i.clear()), all(Truncated)),
    case(1, "shorter than a signature", Child(|i| i.truncate(4)), all(Truncated)),
    case(1, "shorter than the headers", Child(|i| i.truncate(100_000)), all(Truncated)),
    case(1, "one byte short of 1 MiB", Child(|i| i.truncate((1 << 20) - 1)), all(Truncated)),
    case(1, "ends in the log", Child(|i| i.truncate((1 << 20) + 4096)), all(LogGeometry)),
    case(1, "ends in the metadata", Child(|i| i.truncate((2 << 20) + 512)), all(RegionRange)),
    case(1, "ends in the BAT", Child(|i| i.truncate((3 << 20) + 4096)), all(RegionRange)),
    case(1, "another signature", Child(|i| i[0] = b'x'), all(Signature)),
    // 2: no regular file.
    case(2, "a directory", Host(|d| std::fs::create_dir(d.join("a.avhdx")).unwrap()), [Failed(ErrorKind::Argument); 4]),
    case(2, "a FIFO", Host(|d| assert!(Command::new("mkfifo").arg(d.join("a.avhdx")).status().unwrap().success())), [Failed(ErrorKind::Argument); 4]),
    case(2, "a device", Host(|d| std::os::unix::fs::symlink("/dev/zero", d.join("a.avhdx")).unwrap()), [Failed(ErrorKind::Argument); 4]),
    // 3: headers.
    case(3, "both headers damaged", Child(|i| { i[65_540] ^= 1; i[131_076] ^= 1 }), all(NoHeader)),
    case(3, "equal numbers, different content", Child(|i| {
        headers(i, |h| h.sequence_number = 7);
        let mut other = Header::parse(&i[65_536..69_632]).unwrap();
        other.data_write_guid = STRANGE;
        put(i, 65_536, &other.encode());
    }), all(NoHeader)),
    case(3, "the largest sequence number", Child(|i| {
        let mut number = u64::MAX;
        for at in [65_536, 131_072] {
            let mut header = Header::parse(&i[at..at + 4096]).unwrap();
            header.sequence_number = number;
            number -= 1;
            put(i, at, &header.encode());
        }
    }), [Fine, Broken(HeaderSequence), Broken(HeaderSequence), Broken(HeaderSequence)]),
    case(3, "another version", Child(|i| headers(i, |h| h.version = 2)), all(Version)),
    case(3, "another log version", Child(|i| headers(i, |h| (h.log_version, h.log_guid) = (1, LOG_GUID))), all(LogVersion)),
    // 4: the log's place.
    case(4, "log at 0", Child(|i| headers(i, |h| h.log_offset = 0)), all(LogGeometry)),
    case(4, "log unaligned", Child(|i| headers(i, |h| h.log_offset = (1 << 20) + 4096)), all(LogGeometry)),
    case(4, "log length unaligned", Child(|i| headers(i, |h| h.log_length = 4096)), all(LogGeometry)),
    case(4, "log of 4 GiB", Child(|i| headers(i, |h| h.log_length = 0xFFF0_0000)), all(LogGeometry)),
    case(4, "log beyond the end", Child(|i| headers(i, |h| h.log_offset = 1 << 40)), all(LogGeometry)),
    case(4, "log offset overflows", Child(|i| headers(i, |h| h.log_offset = !0 << 20)), all(LogGeometry)),
    case(4, "log in use of length 0", Child(|i| headers(i, |h| (h.log_length, h.log_guid) = (0, LOG_GUID))), all(LogGeometry)),
    // 5: the log over something.
    case(5, "log over the metadata", Child(|i| headers(i, |h| h.log_offset = 2 << 20)), all(Overlap)),
    case(5, "log over the BAT", Child(|i| headers(i, |h| h.log_offset = 3 << 20)), all(Overlap)),
    case(5, "log over a block", Child(|i| {
        let block = word(i, 4) & !0xF_FFFF;
        headers(i, |h| h.log_offset = block)
    }), [Broken(Overlap), Broken(Overlap), Broken(Overlap), Broken(Overlap)]),
    // 6: entries that are none; the log then has none.
    case(6, "log in use without entry", Child(|i| headers(i, |h| h.log_guid = LOG_GUID)), all(LogEmpty)),
    case(6, "entry of length 0", Child(|i| bad_entry(i, |e| put(e, 8, &[0; 4]))), all(LogEmpty)),
    case(6, "entry longer than the log", Child(|i| bad_entry(i, |e| put(e, 8, &(2u32 << 20).to_le_bytes()))), all(LogEmpty)),
    case(6, "entry of 4 GiB", Child(|i| bad_entry(i, |e| put(e, 8, &[0, 0xF0, 0xFF, 0xFF]))), all(LogEmpty)),
    case(6, "entry length unaligned", Child(|i| bad_entry(i, |e| put(e, 8, &8191u32.to_le_bytes()))), all(LogEmpty)),
    case(6, "descriptor count overflows", Child(|i| bad_entry(i, |e| put(e, 24, &0x0800_0001u32.to_le_bytes()))), all(LogEmpty)),
    case(6, "descriptors longer than the entry", Child(|i| bad_entry(i, |e| put(e, 24, &1000u32.to_le_bytes()))), all(LogEmpty)),
    // 7: what belongs to an entry does not.
    case(7, "fewer data sectors than descriptors", Child(|i| bad_entry(i, |e| put(e, 24, &2u32.to_le_bytes()))), all(LogEmpty)),
    case(7, "descriptor of another sequence", Child(|i| bad_entry(i, |e| e[64 + 24] ^= 1)), all(LogEmpty)),
    case(7, "data sector of another sequence", Child(|i| bad_entry(i, |e| e[4096 + 4] ^= 1)), all(LogEmpty)),
    case(7, "torn data sector", Child(|i| bad_entry(i, |e| e[8191] ^= 1)), all(LogEmpty)),
    case(7, "unknown descriptor", Child(|i| bad_entry(i, |e| put(e, 64, b"evil"))), all(LogEmpty)),
    case(7, "another log's entry", Child(|i| bad_entry(i, |e| e[32] ^= 1)), all(LogEmpty)),
    case(7, "wrong checksum", Child(|i| { bad_entry(i, |_| ()); i[MIB as usize + 40] ^= 1 }), all(LogEmpty)),
    case(7, "good entry, then a bad one", Child(|i| {
        let first = encode_entry(&log_entry(i, 5, 0), &[], &[]);
        let mut second = encode_entry(&log_entry(i, 6, 0), &[(0, 4096)], &[]);
        second[4] ^= 1;
        log_of(i, &[first, second]);
    }), FINE),
    // 8: where updates go.
    case(8, "log aimed at the identifier", Child(|i| dirty_log(i, &[(0, 4096)], 8 << 20, 0)), all(LogTarget)),
    case(8, "log aimed at a header", Child(|i| dirty_log(i, &[(65_536, 4096)], 8 << 20, 0)), all(LogTarget)),
    case(8, "log aimed at itself", Child(|i| dirty_log(i, &[(1 << 20, 4096)], 8 << 20, 0)), all(LogTarget)),
    case(8, "log aimed around itself", Child(|i| dirty_log(i, &[(192 << 10, 4 << 20)], 8 << 20, 0)), all(LogTarget)),
    case(8, "target unaligned", Child(|i| dirty_log(i, &[((2 << 20) + 512, 4096)], 8 << 20, 0)), all(LogTarget)),
    case(8, "length unaligned", Child(|i| dirty_log(i, &[(2 << 20, 512)], 8 << 20, 0)), all(LogTarget)),
    case(8, "target past the end", Child(|i| dirty_log(i, &[(1 << 40, 4096)], 8 << 20, 0)), all(LogTarget)),
    case(8, "page past the end", Child(|i| logged_page(i, 1 << 40, &[1; 4096])), all(LogTarget)),
    case(8, "page over a header", Child(|i| logged_page(i, 128 << 10, &[1; 4096])), all(LogTarget)),
    case(8, "range overflows", Child(|i| dirty_log(i, &[(!0 << 12, 8192)], 8 << 20, 0)), all(LogTarget)),
    case(8, "good update before a bad one", Child(|i| dirty_log(i, &[((2 << 20) + (128 << 10), 4096), (0, 4096)], 8 << 20, 0)), all(LogTarget)),
    // 9: huge zeros.
    case(9, "exabytes of zeros", Child(|i| dirty_log(i, &[(4 << 20, 1 << 60)], 8 << 20, 0)), all(LogTarget)),
    case(9, "zeros to the end of numbers", Child(|i| dirty_log(i, &[(4 << 20, !0 << 12)], 8 << 20, 0)), all(LogTarget)),
    // 10: growth.
    case(10, "log grows the file without end", Child(|i| dirty_log(i, &[], 1 << 60, 0)), all(LogTarget)),
    case(10, "log grows the file past all numbers", Child(|i| dirty_log(i, &[], !0, 0)), all(LogTarget)),
    case(10, "log grows the file to 256 TiB, sparsely", Child(|i| dirty_log(i, &[], 256 << 40, 0)), FINE),
    case(10, "file shorter than the log says", Child(|i| dirty_log(i, &[], 8 << 20, 1 << 40)), all(FileTruncated)),
    // 11: the ring.
    case(11, "tail at no entry", Child(|i| {
        let e = encode_entry(&log_entry(i, 5, 8192), &[], &[]);
        log_of(i, &[e]);
    }), all(LogEmpty)),
    case(11, "tail past the log", Child(|i| {
        let e = encode_entry(&log_entry(i, 5, 8 << 20), &[], &[]);
        log_of(i, &[e]);
    }), all(LogEmpty)),
    case(11, "tail unaligned", Child(|i| {
        let e = encode_entry(&log_entry(i, 5, 17), &[], &[]);
        log_of(i, &[e]);
    }), all(LogEmpty)),
    case(11, "the whole ring is one run", Child(|i| {
        let entries: Vec<_> = (0..256).map(|n| encode_entry(&log_entry(i, n + 1, 0), &[], &[])).collect();
        log_of(i, &entries);
    }), FINE),
    case(11, "a run that bites its tail", Child(|i| {
        let entries: Vec<_> = (0..256).map(|n| encode_entry(&log_entry(i, n + 1, 255 * 4096), &[], &[])).collect();
        log_of(i, &entries);
    }), FINE),
    // 12: work.
    case(12, "a log of nothing but broken long entries", Child(|i| {
        let mut one = encode_entry(&log_entry(i, 5, 0), &[], &[]);
        put(&mut one, 8, &(1u32 << 20).to_le_bytes());
        fix(&mut one);
        log_of(i, &vec![one; 256]);
    }), all(LogEmpty)),
    case(12, "4096 entries whose order is not theirs", Files(|fs| {
        let len = fs.open(&path("a.avhdx"), Access::Read).unwrap().len().unwrap().next_multiple_of(1 << 20);
        rewrite(fs, "a.avhdx", |i| headers(i, |h| (h.log_guid, h.log_offset, h.log_length) = (LOG_GUID, len, 16 << 20)));
        let file = fs.open(&path("a.avhdx"), Access::Write).unwrap();
        file.set_len(len + (16 << 20)).unwrap();
        for n in 0..4096u64 {
            let mut header = log_entry(&Vec::new(), n * 7 % 4096 + 1, 17 << 12);
            header.last_file_offset = len;
            // The one at the tail is no entry.
            let bytes = encode_entry(&header, &[], &[]);
            file.write_at(if n == 17 { &[1; 4096] } else { &bytes }, len + n * 4096).unwrap();
        }
    }), all(LogEmpty)),
    // 13: replay makes it so.
    case(13, "replay breaks the metadata table", Child(|i| logged_page(i, METADATA as u64, &[0; 4096])), all(MetadataSignature)),
    case(13, "replay makes the block size 0", Child(|i| {
        let mut page = page_of(i, METADATA + 65_536);
        page[..4].fill(0);
        logged_page(i, METADATA as u64 + 65_536, &page)
    }), all(FileParameters)),
    case(13, "replay breaks both region tables", Child(|i| dirty_log(i, &[(192 << 10, 128 << 10)], 8 << 20, 0)), all(NoRegionTable)),
    case(13, "replay puts a block on the BAT", Child(|i| {
        let mut page = page_of(i, BAT);
        put(&mut page, 32, &(3u64 << 20 | 6).to_le_bytes());
        logged_page(i, BAT as u64, &page)
    }), all(Overlap)),
    // 14: regions.
    case(14, "four billion regions", Child(|i| regions(i, |t| t[8..12].fill(0xFF))), all(RegionCount)),
    case(14, "2048 regions", Child(|i| regions(i, |t| put(t, 8, &2048u32.to_le_bytes()))), all(RegionCount)),
    case(14, "no regions", Child(|i| regions(i, |t| put(t, 8, &0u32.to_le_bytes()))), all(MissingRegion)),
    case(14, "both region tables damaged", Child(|i| { i[196_612] ^= 1; i[262_148] ^= 1 }), all(NoRegionTable)),
    case(14, "two BAT regions", Child(|i| add_region(i, region::BAT, 4 << 20, 1 << 20, 1)), all(RegionDuplicate)),
    case(14, "empty region", Child(|i| regions(i, |t| t[40..44].fill(0))), all(RegionRange)),
    case(14, "region at 0", Child(|i| regions(i, |t| t[32..40].fill(0))), all(RegionRange)),
    case(14, "region unaligned", Child(|i| regions(i, |t| put(t, 32, &((3u64 << 20) + 512).to_le_bytes()))), all(RegionRange)),
    case(14, "region length unaligned", Child(|i| regions(i, |t| put(t, 40, &4096u32.to_le_bytes()))), all(RegionRange)),
    case(14, "region past the end", Child(|i| regions(i, |t| t[16 + 20] = 1)), all(RegionRange)),
    case(14, "region end overflows", Child(|i| regions(i, |t| put(t, 32, &(!0u64 << 20).to_le_bytes()))), all(RegionRange)),
    case(14, "regions over each other", Child(|i| regions(i, |t| put(t, 32, &(2u64 << 20).to_le_bytes()))), all(Overlap)),
    case(14, "an optional region over the metadata", Child(|i| add_region(i, STRANGE, 2 << 20, 1 << 20, 0)), all(Overlap)),
    case(14, "an optional region past the largest file", Child(|i| add_region(i, STRANGE, 1 << 60, 1 << 20, 0)), all(RegionRange)),
    // 15: unknown and required.
    case(15, "unknown required region", Child(|i| add_region(i, STRANGE, 64 << 20, 1 << 20, 1)), all(UnknownRegion)),
    case(15, "unknown required item", Child(|i| add_item(i, STRANGE, 0, 0, 4)), all(UnknownItem)),
    case(15, "unknown required disk item", Child(|i| add_item(i, STRANGE, 0, 0, 6)), all(UnknownItem)),
    // 16: the metadata table.
    case(16, "metadata signature", Child(|i| i[METADATA] = 0), all(MetadataSignature)),
    case(16, "65535 items", Child(|i| put(i, METADATA + 10, &[0xFF; 2])), all(MetadataCount)),
    case(16, "2048 items", Child(|i| put(i, METADATA + 10, &2048u16.to_le_bytes())), all(MetadataCount)),
    case(16, "an item twice", Child(|i| add_item(i, metadata::VIRTUAL_DISK_SIZE, 0x20000, 8, 6)), all(MetadataDuplicate)),
    case(16, "an item without identity", Child(|i| add_item(i, Guid::ZERO, 0x20000, 8, 0)), all(MetadataDuplicate)),
    case(16, "item offset overflows", Child(|i| entry(i, 0, 16, &[0xFF; 4])), all(MetadataRange)),
    case(16, "item past the region", Child(|i| entry(i, 0, 16, &((1u32 << 20) - 4).to_le_bytes())), all(MetadataRange)),
    case(16, "item in the table", Child(|i| entry(i, 0, 16, &64u32.to_le_bytes())), all(MetadataRange)),
    case(16, "items over each other", Child(|i| entry(i, 1, 16, &0x10000u32.to_le_bytes())), all(MetadataRange)),
    case(16, "item of more than 1 MiB", Child(|i| entry(i, 5, 20, &(2u32 << 20).to_le_bytes())), all(MetadataRange)),
    case(16, "empty item with a place", Child(|i| add_item(i, STRANGE, 0x20000, 0, 0)), all(MetadataRange)),
    case(16, "item flags", Child(|i| entry(i, 0, 24, &0xFFu32.to_le_bytes())), all(MetadataFlags)),
    case(16, "a user item that is required", Child(|i| add_item(i, STRANGE, 0x20000, 8, 5)), all(MetadataFlags)),
    // 17: amounts.
    case(17, "metadata region of 129 MiB", Files(|fs| {
        rewrite(fs, "a.avhdx", |i| regions(i, |t| { put(t, 64, &(16u64 << 20).to_le_bytes()); put(t, 72, &(129u32 << 20).to_le_bytes()) }));
        fs.open(&path("a.avhdx"), Access::Write).unwrap().set_len(200 << 20).unwrap();
    }), all(RegionRange)),
    case(17, "1025 user items", Child(|i| (0..1025).for_each(|n| add_item(i, Guid::from_u128(n + 1), 0, 0, 1))), all(MetadataCount)),
    case(17, "41 MiB of user items", Child(|i| {
        let at = i.len().next_multiple_of(1 << 20);
        i.resize(at + (48 << 20), 0);
        let old = i[METADATA..METADATA + (1 << 20)].to_vec();
        put(i, at, &old);
        regions(i, |t| { put(t, 64, &(at as u64).to_le_bytes()); put(t, 72, &(48u32 << 20).to_le_bytes()) });
        // The helper writes at the old place, which is then copied.
        (0..41).for_each(|n| add_item(i, Guid::from_u128(n + 1), (n as u32 + 1) << 20, 1 << 20, 1));
        let table = i[METADATA..METADATA + 65_536].to_vec();
        put(i, at, &table);
    }), all(MetadataCount)),
    // 18: lengths and kinds of items.
    case(18, "file parameters of 4 bytes", Child(|i| entry(i, 0, 20, &4u32.to_le_bytes())), all(FileParameters)),
    case(18, "size of 4 bytes", Child(|i| entry(i, 1, 20, &4u32.to_le_bytes())), all(DiskSize)),
    case(18, "sector size of 2 bytes", Child(|i| entry(i, 2, 20, &2u32.to_le_bytes())), all(SectorSize)),
    case(18, "identity of 8 bytes", Child(|i| entry(i, 4, 20, &8u32.to_le_bytes())), all(DiskId)),
    case(18, "parameters of the disk", Child(|i| entry(i, 0, 24, &6u32.to_le_bytes())), all(FileParameters)),
    case(18, "size of the file", Child(|i| entry(i, 1, 24, &4u32.to_le_bytes())), all(DiskSize)),
    case(18, "no size", Child(|i| entry(i, 1, 0, &STRANGE.to_stored())), all(UnknownItem)),
    case(18, "no size, and nothing in its place", Child(|i| { entry(i, 1, 0, &STRANGE.to_stored()); entry(i, 1, 24, &2u32.to_le_bytes()) }), all(MissingItem)),
    case(18, "a file that was not finished", Child(|i| add_item(i, metadata::INCOMPLETE, 0, 0, 4)), all(Incomplete)),
    // 19: block size.
    case(19, "block size 0", Child(|i| put_item(i, metadata::FILE_PARAMETERS, &[0; 4])), all(FileParameters)),
    case(19, "block size 1", Child(|i| put_item(i, metadata::FILE_PARAMETERS, &1u32.to_le_bytes())), all(FileParameters)),
    case(19, "block size 3 MiB", Child(|i| put_item(i, metadata::FILE_PARAMETERS, &(3u32 << 20).to_le_bytes())), all(FileParameters)),
    case(19, "block size 512 KiB", Child(|i| put_item(i, metadata::FILE_PARAMETERS, &(1u32 << 19).to_le_bytes())), all(FileParameters)),
    case(19, "block size 512 MiB", Child(|i| put_item(i, metadata::FILE_PARAMETERS, &(1u32 << 29).to_le_bytes())), all(FileParameters)),
    case(19, "block size 2 GiB", Child(|i| put_item(i, metadata::FILE_PARAMETERS, &(1u32 << 31).to_le_bytes())), all(FileParameters)),
    case(19, "parameter flags", Child(|i| { let at = item(i, metadata::FILE_PARAMETERS); i[at + 4] = 0xFE }), all(FileParameters)),
    // 20: sizes.
    case(20, "size 0", Child(|i| put_item(i, metadata::VIRTUAL_DISK_SIZE, &[0; 8])), all(DiskSize)),
    case(20, "size of no whole sectors", Child(|i| put_item(i, metadata::VIRTUAL_DISK_SIZE, &513u64.to_le_bytes())), all(DiskSize)),
    case(20, "more than 64 TiB", Child(|i| put_item(i, metadata::VIRTUAL_DISK_SIZE, &((64u64 << 40) + 512).to_le_bytes())), all(DiskSize)),
    case(20, "16 EiB", Child(|i| put_item(i, metadata::VIRTUAL_DISK_SIZE, &(!511u64).to_le_bytes())), all(DiskSize)),
    case(20, "logical sectors of 0", Child(|i| put_item(i, metadata::LOGICAL_SECTOR_SIZE, &[0; 4])), all(SectorSize)),
    case(20, "physical sectors of 1024", Child(|i| put_item(i, metadata::PHYSICAL_SECTOR_SIZE, &1024u32.to_le_bytes())), all(SectorSize)),
    // 21, 22: the BAT.
    case(21, "more blocks than the BAT has", Child(|i| put_item(i, metadata::VIRTUAL_DISK_SIZE, &(1u64 << 40).to_le_bytes())), all(BatTooSmall)),
    case(21, "one block more than the BAT has", Child(|i| put_item(i, metadata::VIRTUAL_DISK_SIZE, &(131_041u64 << 20).to_le_bytes())), all(BatTooSmall)),
    case(22, "a BAT of 512 MiB that is not there", Child(|i| {
        put_item(i, metadata::VIRTUAL_DISK_SIZE, &(64u64 << 40).to_le_bytes());
        regions(i, |t| put(t, 40, &(513u32 << 20).to_le_bytes()))
    }), all(RegionRange)),
    case(22, "a BAT of 1 GiB", Files(|fs| {
        rewrite(fs, "a.avhdx", |i| regions(i, |t| put(t, 40, &(1u32 << 30).to_le_bytes())));
        fs.open(&path("a.avhdx"), Access::Write).unwrap().set_len(4 << 30).unwrap();
    }), all(RegionRange)),
    case(22, "a sparse BAT of 513 MiB", Files(|fs| {
        rewrite(fs, "a.avhdx", |i| {
            put_item(i, metadata::VIRTUAL_DISK_SIZE, &(64u64 << 40).to_le_bytes());
            regions(i, |t| { put(t, 32, &(1u64 << 30).to_le_bytes()); put(t, 40, &(513u32 << 20).to_le_bytes()) })
        });
        fs.open(&path("a.avhdx"), Access::Write).unwrap().set_len(4 << 30).unwrap();
    }), FINE),
    // 23: states.
    case(23, "state 4", Child(|i| bat(i, 4, 4 << 20 | 4)), all(BatState)),
    case(23, "state 5", Child(|i| bat(i, 4, 4 << 20 | 5)), all(BatState)),
    case(23, "reserved bits", Child(|i| { let e = word(i, 4); bat(i, 4, e | 0x100) }), all(BatReserved)),
    case(23, "bitmap in state 3", Child(|i| bat(i, BITMAP, 3)), all(SbState)),
    case(23, "bitmap in state 7", Child(|i| { let e = word(i, BITMAP); bat(i, BITMAP, e | 7) }), all(SbState)),
    case(23, "bitmap with reserved bits", Child(|i| { let e = word(i, BITMAP); bat(i, BITMAP, e | 0x8_0000) }), all(BatReserved)),
    case(23, "partly present without parent", Parent(|i| { let e = word(i, 0); bat(i, 0, e | 7) }), all(BatState)),
    // 24: offsets.
    case(24, "block at 0", Child(|i| bat(i, 4, 6)), all(BatOffset)),
    case(24, "block of 2^64", Child(|i| bat(i, 4, !0 << 20 | 6)), all(BatOffset)),
    case(24, "block beyond 256 TiB", Child(|i| bat(i, 4, 257 << 40 | 6)), all(BatOffset)),
    case(24, "block past the end", Child(|i| bat(i, 4, 1 << 30 | 6)), all(BeyondEof)),
    case(24, "block half past the end", Child(|i| { let end = (i.len() as u64) >> 20 << 20; bat(i, 4, end | 6) }), all(BeyondEof)),
    case(24, "bitmap at 0", Child(|i| bat(i, BITMAP, 6)), all(BatOffset)),
    case(24, "bitmap past the end", Child(|i| bat(i, BITMAP, 1 << 40 | 6)), all(BeyondEof)),
    // 25: overlaps.
    case(25, "block on the log", Child(|i| bat(i, 4, 1 << 20 | 6)), all(Overlap)),
    case(25, "block on the metadata", Child(|i| bat(i, 4, 2 << 20 | 6)), all(Overlap)),
    case(25, "block on the BAT", Child(|i| bat(i, 4, 3 << 20 | 6)), all(Overlap)),
    case(25, "block on an unknown region", Child(|i| { let at = word(i, 4) >> 20 << 20; add_region(i, STRANGE, at, 1 << 20, 0) }), all(Overlap)),
    case(25, "bitmap on the metadata", Child(|i| bat(i, BITMAP, 2 << 20 | 6)), all(Overlap)),
    case(25, "two blocks in one place", Child(|i| { let e = word(i, 4); bat(i, 5, e) }), [Fine, Broken(Overlap), Broken(Overlap), Fine]),
    case(25, "a block on the bitmap", Child(|i| { let e = word(i, BITMAP); bat(i, 5, e) }), [Fine, Broken(Overlap), Broken(Overlap), Fine]),
    case(25, "an anchor on a block", Child(|i| { let e = word(i, 4); bat(i, 5, e & !7 | 3) }), [Fine, Broken(Overlap), Broken(Overlap), Fine]),
    case(25, "two blocks in one place of the parent", Parent(|i| { let e = word(i, 0); bat(i, 1, e) }), [Fine, Fine, Broken(Overlap), Broken(Overlap)]),
    // 26: no bitmap.
    case(26, "partly present without bitmap", Child(|i| bat(i, BITMAP, 0)), all(MissingSb)),
    case(26, "another block partly present without bitmap", Child(|i| { let e = word(i, 4); bat(i, 4, e | 7); bat(i, BITMAP, 0) }), all(MissingSb)),
    // 27: bitmaps.
    case(27, "bits of everything", Child(|i| { let at = (word(i, BITMAP) >> 20 << 20) as usize; i[at..at + (1 << 20)].fill(0xFF) }), FINE),
    case(27, "bits behind the end of the disk", Child(|i| {
        let at = (word(i, BITMAP) >> 20 << 20) as usize;
        i[at..at + (1 << 20)].fill(0xAA);
        put_item(i, metadata::VIRTUAL_DISK_SIZE, &((8u64 << 20) - 512).to_le_bytes());
        let block = word(i, 4);
        bat(i, 4, 0);
        bat(i, 7, block | 7)
    }), FINE),
    // 28: locators.
    case(28, "no entries", Attack::Locator(|l| put(l, 18, &[0; 2])), all(Rule::Locator)),
    case(28, "257 entries", Attack::Locator(|l| put(l, 18, &257u16.to_le_bytes())), all(Rule::Locator)),
    case(28, "65535 entries", Attack::Locator(|l| put(l, 18, &[0xFF; 2])), all(Rule::Locator)),
    case(28, "table past the end", Attack::Locator(|l| put(l, 18, &200u16.to_le_bytes())), all(Rule::Locator)),
    case(28, "key in the table", Attack::Locator(|l| put(l, 20, &4u32.to_le_bytes())), all(Rule::Locator)),
    case(28, "value past the end", Attack::Locator(|l| put(l, 24, &0xFFFF_FFF0u32.to_le_bytes())), all(Rule::Locator)),
    case(28, "key of odd length", Attack::Locator(|l| l[28] |= 1), all(Rule::Locator)),
    case(28, "value of length 0", Attack::Locator(|l| put(l, 30, &[0; 2])), all(Rule::Locator)),
    case(28, "NUL in a value", Attack::Locator(|l| { let at = u32::from_le_bytes(l[24..28].try_into().unwrap()) as usize; put(l, at, &[0; 2]) }), all(Rule::Locator)),
    case(28, "a key twice", Attack::Locator(|l| { let first = l[20..24].to_vec(); let len = l[28..30].to_vec(); put(l, 32, &first); put(l, 40, &len) }), all(Rule::Locator)),
    case(28, "linkage is no GUID", Named(|l| l.set("parent_linkage", "{not-a-guid}")), all(Rule::Locator)),
    case(28, "linkage of ten thousand characters", Named(|l| l.set("parent_linkage", &"x".repeat(10_000))), all(Rule::Locator)),
    case(28, "19 bytes", Attack::Locator(|l| l.truncate(19)), all(Rule::Locator)),
    case(28, "another type", Attack::Locator(|l| l[0] ^= 1), all(LocatorType)),
    case(28, "an empty locator", Child(|i| { entry(i, 5, 16, &[0; 4]); entry(i, 5, 20, &[0; 4]) }), all(Rule::Locator)),
    case(28, "no locator", Child(|i| { entry(i, 5, 0, &STRANGE.to_stored()); entry(i, 5, 24, &[0; 4]) }), all(MissingLocator)),
    // 29 to 31: linkage.
    case(29, "no path", Named(|l| ["relative_path", "absolute_win32_path", "volume_path"].iter().for_each(|k| l.remove(k))), all(Rule::Locator)),
    case(29, "no linkage", Named(|l| l.remove("parent_linkage")), all(Rule::Locator)),
    case(30, "a zero second linkage and a parent of zero", Files(|fs| {
        rewrite(fs, "base.vhdx", |i| headers(i, |h| h.data_write_guid = Guid::ZERO));
        locator(fs, |l| l.set_linkage(STRANGE, None));
    }), chain_fails(ErrorKind::ParentIdMismatch)),
    case(31, "zero linkage", Named(|l| l.set("parent_linkage", &Guid::ZERO.braced())), all(Rule::Locator)),
    // 32, 33: chains.
    case(32, "its own parent", Files(|fs| {
        let own = identity(fs, "a.avhdx");
        locator(fs, |l| { l.set("relative_path", ".\\a.avhdx"); l.set_linkage(own, None) });
    }), chain_fails(ErrorKind::ChainLoop)),
    case(32, "its own parent by another path", Files(|fs| {
        let own = identity(fs, "a.avhdx");
        locator(fs, |l| { l.set("relative_path", "..\\vm\\x\\..\\a.avhdx"); l.set_linkage(own, None) });
    }), chain_fails(ErrorKind::ChainLoop)),
    case(32, "two that are each other's parents", Files(|fs| {
        let image = fs.contents(path("a.avhdx")).unwrap();
        fs.insert(path("b.avhdx"), &image);
        rewrite(fs, "b.avhdx", |i| headers(i, |h| h.data_write_guid = STRANGE));
        let first = identity(fs, "a.avhdx");
        locator(fs, |l| { l.set("relative_path", ".\\b.avhdx"); l.set_linkage(STRANGE, None) });
        let a = fs.contents(path("a.avhdx")).unwrap();
        // The other way round, by the same helper.
        fs.insert(path("a.avhdx"), &fs.contents(path("b.avhdx")).unwrap());
        locator(fs, |l| { l.set("relative_path", ".\\a.avhdx"); l.set_linkage(first, None) });
        let b = fs.contents(path("a.avhdx")).unwrap();
        fs.insert(path("b.avhdx"), &b);
        fs.insert(path("a.avhdx"), &a);
    }), chain_fails(ErrorKind::ChainLoop)),
    case(33, "deeper than allowed", Options(|_, open| open.max_depth = 1), chain_fails(ErrorKind::ChainLoop)),
    case(33, "300 layers", Files(|fs| {
        // Layers without blocks, so that they are small.
        let mut image = fs.contents(path("a.avhdx")).unwrap();
        image.truncate(4 << 20);
        image[BAT..].fill(0);
        let mut parent = identity(fs, "base.vhdx");
        for n in 1..=300u128 {
            headers(&mut image, |h| h.data_write_guid = Guid::from_u128(1000 + n));
            let below = if n == 1 { ".\\base.vhdx".into() } else { format!(".\\l{}.avhdx", n - 1) };
            locator_in(&mut image, |l| { l.set("relative_path", &below); l.set_linkage(parent, None) });
            parent = Guid::from_u128(1000 + n);
            let name = if n == 300 { "a.avhdx".into() } else { format!("l{n}.avhdx") };
            fs.insert(path(&name), &image);
        }
    }), chain_fails(ErrorKind::ChainLoop)),
    // 34, 35: parents.
    case(34, "another identity", Named(|l| l.set_linkage(STRANGE, None)), chain_fails(ErrorKind::ParentIdMismatch)),
    case(34, "no parent at all", Files(|fs| fs.remove(&path("base.vhdx")).unwrap()), chain_fails(ErrorKind::ParentNotFound)),
    case(34, "a parent with other sectors", Files(|fs| rewrite(fs, "base.vhdx", |i| put_item(i, metadata::LOGICAL_SECTOR_SIZE, &4096u32.to_le_bytes()))), chain_fails(ErrorKind::ParentMismatch)),
    case(34, "a parent that is no VHDX", Files(|fs| rewrite(fs, "base.vhdx", |i| i[0] = b'x')), chain_fails(ErrorKind::ParentNotFound)),
    case(34, "a corrupt parent", Parent(|i| { i[196_612] ^= 1; i[262_148] ^= 1 }), bad_parent(NoRegionTable)),
    case(34, "an unfinished parent", Parent(|i| add_item(i, metadata::INCOMPLETE, 0, 0, 4)), bad_parent(Incomplete)),
    case(34, "a parent whose log lies", Parent(|i| dirty_log(i, &[(0, 4096)], 8 << 20, 0)), bad_parent(LogTarget)),
    case(34, "a broken block of the parent", Parent(|i| bat(i, 0, 1 << 40 | 6)), all(BeyondEof)),
    case(35, "a smaller parent", Files(|fs| on_parent_of(fs, MIB)), FINE),
    case(35, "a larger parent", Files(|fs| on_parent_of(fs, 64 * MIB)), FINE),
    // 36 to 39: where the parent is said to be.
    case(36, "out of the allowed directory", Options(|fs, open| {
        fs.rename_new(&path("base.vhdx"), Path::new("/elsewhere/base.vhdx")).unwrap();
        locator(fs, |l| l.set("relative_path", "..\\elsewhere\\base.vhdx"));
        open.parent_root = Some("/vm".into());
    }), chain_fails(ErrorKind::ParentAccess)),
    case(36, "a password file", Named(|l| astray(l, "relative_path", "..\\..\\..\\..\\etc\\passwd")), DENIED),
    case(36, "an absolute relative path", Named(|l| astray(l, "relative_path", "\\vm\\base.vhdx")), chain_fails(ErrorKind::ParentIdMismatch)),
    case(36, "relative to a drive", Named(|l| astray(l, "relative_path", "C:base.vhdx")), DENIED),
    case(37, "a share", Named(|l| astray(l, "absolute_win32_path", "\\\\evil\\share\\x.vhdx")), DENIED),
    case(37, "a share, in full", Named(|l| astray(l, "absolute_win32_path", "\\\\?\\UNC\\evil\\share\\x.vhdx")), DENIED),
    case(38, "a physical drive", Named(|l| astray(l, "absolute_win32_path", "\\\\.\\PhysicalDrive0")), DENIED),
    case(38, "the object namespace", Named(|l| astray(l, "absolute_win32_path", "\\\\?\\GLOBALROOT\\Device\\Harddisk0")), DENIED),
    case(38, "a reserved name", Named(|l| astray(l, "relative_path", ".\\CON")), DENIED),
    case(38, "an alternate stream", Named(|l| astray(l, "relative_path", ".\\base.vhdx:stream")), DENIED),
    case(38, "trailing dots", Named(|l| astray(l, "relative_path", ".\\x.vhdx...")), DENIED),
    case(39, "a link out of the allowed directory", Host(|d| {
        host_chain(d);
        std::fs::create_dir(d.join("out")).unwrap();
        std::fs::rename(d.join("base.vhdx"), d.join("out/base.vhdx")).unwrap();
        std::fs::create_dir(d.join("in")).unwrap();
        std::fs::rename(d.join("a.avhdx"), d.join("in/a.avhdx")).unwrap();
        std::os::unix::fs::symlink("../out/base.vhdx", d.join("in/base.vhdx")).unwrap();
    }), chain_fails(ErrorKind::ParentAccess)),
    case(39, "a parent that is a FIFO", Host(|d| {
        host_chain(d);
        std::fs::remove_file(d.join("base.vhdx")).unwrap();
        assert!(Command::new("mkfifo").arg(d.join("base.vhdx")).status().unwrap().success());
    }), chain_fails(ErrorKind::ParentNotFound)),
    // 40: text.
    case(40, "control characters and lone surrogates", Attack::Locator(|l| {
        let at = u32::from_le_bytes(l[24..28].try_into().unwrap()) as usize;
        let broken: Vec<u8> = [0xD800u16, 0x1B, 0x5B].iter().flat_map(|u| u.to_le_bytes()).collect();
        put(l, at, &broken)
    }), all(Rule::Locator)),
    case(40, "a path of escapes", Named(|l| astray(l, "relative_path", ".\\\u{1b}[2J$(rm -rf)\n;x")), DENIED),
    case(40, "a path of 32767 characters", Named(|l| astray(l, "relative_path", &format!(".\\{}", "x".repeat(32_765)))), DENIED),
    // 41, 42: files that are not to be written.
    case(41, "a dirty parent", Files(|fs| rewrite(fs, "base.vhdx", |i| {
        let (at, len) = (word(i, 1) >> 20 << 20, i.len() as u64);
        dirty_log(i, &[(at, MIB / 2)], len, 0)
    })), FINE),
    case(42, "the leaf as the target of its merge", Files(|fs| {
        let own = identity(fs, "a.avhdx");
        locator(fs, |l| { l.set("relative_path", ".\\base.vhdx"); l.set_linkage(own, None) });
        fs.remove(&path("base.vhdx")).unwrap();
    }), chain_fails(ErrorKind::ChainLoop)),
    case(42, "one file under two names", Host(|d| {
        host_chain(d);
        std::fs::remove_file(d.join("base.vhdx")).unwrap();
        std::fs::hard_link(d.join("a.avhdx"), d.join("base.vhdx")).unwrap();
        let open = OpenOptions::new();
        let own = Chain::probe(&d.join("a.avhdx"), &open).unwrap().data_write_guid;
        let memory = MemoryFileSystem::new();
        memory.insert(path("a.avhdx"), &std::fs::read(d.join("a.avhdx")).unwrap());
        locator(&memory, |l| l.set_linkage(own, None));
        std::fs::write(d.join("a.avhdx"), memory.contents(path("a.avhdx")).unwrap()).unwrap();
    }), chain_fails(ErrorKind::ChainLoop)),
    // 44, 45: what only looks harmless.
    case(44, "64 TiB in 4 MiB", Files(|fs| {
        let mut create = CreateOptions::default();
        (create.size, create.block_size, create.open) = (64 << 40, 256 << 20, options(fs));
        create.disk_type = DiskType::Differencing;
        create.parent = Some(path("base.vhdx"));
        fs.remove(&path("a.avhdx")).unwrap();
        ops::create(&path("a.avhdx"), &create).unwrap();
    }), FINE),
    case(45, "a creator of lone surrogates without end", Child(|i| (8..520).step_by(2).for_each(|at| put(i, at, &0xD800u16.to_le_bytes()))), FINE),
    case(45, "a creator of control characters", Child(|i| put(i, 8, &utf16("\u{1b}[2J\u{7}"))), FINE),
    // 47: what lay there before.
    case(47, "garbage where nobody owns the file", Files(|fs| rewrite(fs, "base.vhdx", |i| { let len = i.len().next_multiple_of(1 << 20); i.resize(len, 0xAA); i.resize(len + (8 << 20), 0xAA) })), FINE),
];

/// Rows that are no property of an image: what an open file meets. Each has a test here or elsewhere.
const NOT_OF_IMAGES: &[(u8, &str)] = &[
    (43, "a_file_replaced_or_cut_while_open_is_told"),
    (46, "readers_survive_relocation"),
    (48, "requests_outside_the_disk_are_refused_whole"),
];

fn host_chain(dir: &Path) {
    let mut create = CreateOptions::default();
    (create.size, create.block_size) = (8 * MIB, MIB as u32);
    ops::create(&dir.join("base.vhdx"), &create).unwrap();
    let chain = Chain::open(&dir.join("base.vhdx"), &OpenOptions::new()).unwrap();
    ops::checkpoint(&chain, &dir.join("a.avhdx"), &Default::default()).unwrap();
    chain.close().unwrap();
}

fn place(case: &Case) -> Place {
    if let Host(attack) = &case.attack {
        let dir = tempfile::tempdir().unwrap();
        attack(dir.path());
        let inside = dir.path().join("in");
        let root = if inside.exists() {
            inside
        } else {
            dir.path().to_path_buf()
        };
        let leaf = root.join("a.avhdx");
        let fs = Arc::new(OsFileSystem);
        let mut open = OpenOptions::new().on(fs.clone());
        open.parent_root = Some(root);
        return Place {
            fs,
            open,
            attacked: leaf.clone(),
            leaf,
            memory: None,
            _dir: Some(dir),
        };
    }
    let fs = chain();
    let mut open = options(&fs);
    open.lock = false;
    let mut attacked = "a.avhdx";
    match &case.attack {
        Child(change) => rewrite(&fs, "a.avhdx", change),
        Parent(change) => {
            attacked = "base.vhdx";
            rewrite(&fs, "base.vhdx", change)
        }
        Named(change) => locator(&fs, change),
        Attack::Locator(change) => patch_locator(&fs, *change),
        Files(change) => change(&fs),
        Options(change) => change(&fs, &mut open),
        Host(_) => unreachable!(),
    }
    Place {
        fs: Arc::new(fs.clone()),
        open,
        leaf: path("a.avhdx"),
        attacked: path(attacked),
        memory: Some(fs),
        _dir: None,
    }
}

fn end_of(result: Result<(), Error>) -> End {
    match result {
        Ok(()) => Fine,
        Err(e) => {
            assert!(e.hint().is_some(), "no hint: {}", e.chain_text());
            match rule_of(&e) {
                Some(rule) => Broken(rule),
                None => Failed(e.kind()),
            }
        }
    }
}

fn read_all(place: &Place) -> Result<(), Error> {
    let mut open = place.open.clone();
    open.read_only = true;
    let chain = Chain::open(&place.leaf, &open)?;
    let mut buf = vec![0; 64 << 10];
    for at in (0..chain.size().min(64 * MIB)).step_by(buf.len()) {
        let len = buf.len().min((chain.size() - at) as usize);
        chain.read(&mut buf[..len], at)?;
    }
    chain.info().map(drop)
}

fn files(place: &Place) -> Vec<(std::path::PathBuf, u64)> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let Some(fs) = &place.memory else { return Vec::new() };
    let hash = |path: std::path::PathBuf| {
        let storage = fs.open(&path, Access::Read).unwrap();
        let (len, mut at, mut hasher) = (storage.len().unwrap(), 0, DefaultHasher::new());
        len.hash(&mut hasher);
        let mut buf = vec![0; 64 << 10];
        while let Some(data) = storage.next_data(at, len).unwrap() {
            let end = data.end.min(data.start + buf.len() as u64);
            let piece = &mut buf[..(end - data.start) as usize];
            storage.read_at(piece, data.start).unwrap();
            (data.start, &piece).hash(&mut hasher);
            at = end;
        }
        (path, hasher.finish())
    };
    fs.paths().into_iter().map(hash).collect()
}

/// All four on one image; what they ended in.
fn attempt(case: &Case) -> [End; 4] {
    let first = place(case);
    let before = files(&first);
    let read = end_of(read_all(&first));
    assert!(files(&first) == before, "{}: reading wrote", case.name);
    let mut found = None;
    let report = ops::check(&first.attacked, &first.open, &CheckOptions::default(), &mut |f| {
        if f.severity == Severity::Error {
            let wanted = case.ends[2] == Broken(f.defect.rule);
            found = found.filter(|_| !wanted).or(Some(f.defect.rule));
        }
    });
    let checked = match (report, found) {
        (Err(e), _) => end_of(Err(e)),
        (Ok(report), Some(rule)) => {
            assert!(report.errors > 0);
            Broken(rule)
        }
        (Ok(_), None) => Fine,
    };
    assert!(files(&first) == before, "{}: check wrote", case.name);
    let opens = Chain::open(&first.leaf, &{
        let mut o = first.open.clone();
        o.read_only = true;
        o
    })
    .is_ok();
    let written = end_of(use_all(&first.leaf, &first.open));
    if !opens {
        assert!(
            files(&first) == before,
            "{}: a file that cannot be opened was changed",
            case.name
        );
    }
    drop(first);
    let second = place(case);
    let before = files(&second);
    let merged = ops::merge_path(&second.leaf, None, &second.open, &MergeOptions::default(), &mut |_| {
        true
    });
    let merged = end_of(merged.map(drop));
    if !opens {
        assert!(
            files(&second) == before,
            "{}: merging changed what cannot be opened",
            case.name
        );
    }
    let _ = &second.fs;
    [read, written, checked, merged]
}

/// One image, in a process that has little.
#[test]
#[ignore = "run by every_image_ends_as_it_should for each image"]
fn one_image() {
    let Some(i) = std::env::var("AVHDX_HOSTILE")
        .ok()
        .and_then(|i| i.parse::<usize>().ok())
    else {
        return;
    };
    let case = &CASES[i];
    let ends = attempt(case);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmPeak:")).unwrap().trim();
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let ticks = stat.rsplit(')').next().unwrap().split(' ').skip(12).take(2);
    let ticks: u64 = ticks.map(|n| n.parse::<u64>().unwrap()).sum();
    println!("PEAK {} {ticks}", peak.trim_end_matches(" kB"));
    assert_eq!(
        ends, case.ends,
        "row {}: {}: read, written, checked, merged",
        case.row, case.name
    );
}

#[test]
fn every_image_ends_as_it_should() {
    let names: BTreeSet<_> = CASES.iter().map(|case| (case.row, case.name)).collect();
    assert_eq!(names.len(), CASES.len(), "a name twice");
    let mut rows: BTreeSet<u8> = CASES.iter().map(|case| case.row).collect();
    rows.extend(NOT_OF_IMAGES.iter().map(|(row, _)| *row));
    assert_eq!(rows, (1..=48).collect(), "every row has an image");
    assert!(CASES.len() >= 120, "only {} images", CASES.len());
    let program = std::env::current_exe().unwrap();
    // Ten seconds for each of the four uses would be forty.
    let limited =
        "ulimit -v 262144; ulimit -t 20; exec timeout 120 \"$0\" --exact corpus::one_image --ignored --nocapture";
    let (mut wrong, mut longest, mut largest) = (Vec::new(), (0, ""), (0, ""));
    for (i, case) in CASES.iter().enumerate() {
        let run = Command::new("sh")
            .args(["-c", limited])
            .arg(&program)
            .env("AVHDX_HOSTILE", i.to_string())
            // Otherwise each thread reserves 64 MiB that it does not use.
            .env("MALLOC_ARENA_MAX", "1")
            .output()
            .unwrap();
        let out = String::from_utf8_lossy(&run.stdout);
        let used = out.lines().find_map(|l| l.strip_prefix("PEAK ")?.split_once(' '));
        let used = used.map(|(kib, ticks)| [kib, ticks].map(|n| n.parse::<u64>().unwrap()));
        if let Some([kib, ticks]) = used {
            (longest, largest) = (longest.max((ticks, case.name)), largest.max((kib, case.name)));
        }
        if !run.status.success() || used.is_none() {
            let err = String::from_utf8_lossy(&run.stderr);
            wrong.push(format!("{} {}: {}\n{out}{err}", case.row, case.name, run.status));
        }
    }
    println!(
        "{} images; the longest took {} ms of processor ({}), the largest {} MiB of addresses ({})",
        CASES.len(),
        longest.0 * 10,
        longest.1,
        largest.0 >> 10,
        largest.1
    );
    assert!(
        wrong.is_empty(),
        "{} of {} wrong:\n{}",
        wrong.len(),
        CASES.len(),
        wrong.join("\n")
    );
}
