//! A good chain, and what an attacker does to its bytes; checksums are repaired.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::error::Rule;
use avhdx::format::crc::crc32c_with_zeroed_checksum;
use avhdx::format::header::{self, Header};
use avhdx::format::locator::Locator;
use avhdx::format::log::{encode_entry, EntryHeader};
use avhdx::format::metadata::{self, MetadataTable};
use avhdx::format::region;
use avhdx::ops;
use avhdx::options::{CheckpointOptions, CreateOptions, OpenOptions};
use avhdx::storage::MemoryFileSystem;
use avhdx::{Chain, Error, Guid};

pub const MIB: u64 = 1 << 20;
pub const METADATA: usize = 2 << 20;
pub const BAT: usize = 3 << 20;

pub fn path(name: &str) -> PathBuf {
    Path::new("/vm").join(name)
}

pub fn options(fs: &MemoryFileSystem) -> OpenOptions {
    OpenOptions::new().on(Arc::new(fs.clone()))
}

/// base.vhdx <- a.avhdx, 8 MiB, blocks of 1 MiB, both with content.
pub fn chain() -> MemoryFileSystem {
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

pub type Image = Vec<u8>;

pub fn headers(image: &mut Image, change: impl Fn(&mut Header)) {
    for at in header::OFFSETS {
        let at = at as usize;
        let mut header = Header::parse(&image[at..at + header::SIZE]).unwrap();
        change(&mut header);
        image[at..at + header::SIZE].copy_from_slice(&header.encode());
    }
}

/// Changes both region tables and repairs their checksums.
pub fn regions(image: &mut Image, change: impl Fn(&mut [u8])) {
    for at in region::OFFSETS {
        let table = &mut image[at as usize..at as usize + region::SIZE];
        change(table);
        let crc = crc32c_with_zeroed_checksum(table);
        table[4..8].copy_from_slice(&crc.to_le_bytes());
    }
}

pub fn bat(image: &mut Image, index: usize, value: u64) {
    image[BAT + index * 8..BAT + index * 8 + 8].copy_from_slice(&value.to_le_bytes());
}

pub fn item(image: &Image, id: Guid) -> usize {
    let table = MetadataTable::parse(&image[METADATA..METADATA + metadata::TABLE_SIZE], 0, 1 << 20).unwrap();
    METADATA + table.find(id).unwrap().offset as usize
}

pub fn put_item(image: &mut Image, id: Guid, bytes: &[u8]) {
    let at = item(image, id);
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

pub const LOG_GUID: Guid = Guid::from_u128(77);

/// A dirty log of one entry with these zero ranges.
pub fn dirty_log(image: &mut Image, zero: &[(u64, u64)], last_file_offset: u64, flushed: u64) {
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

/// Rewrites the locator of a.avhdx.
pub fn locator(fs: &MemoryFileSystem, change: impl FnOnce(&mut Locator)) {
    let mut image = fs.contents(path("a.avhdx")).unwrap();
    locator_in(&mut image, change);
    fs.insert(path("a.avhdx"), &image);
}

pub fn locator_in(image: &mut Image, change: impl FnOnce(&mut Locator)) {
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
}

/// Reads all and writes everywhere.
pub fn use_all(path: &Path, options: &OpenOptions) -> Result<(), Error> {
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

pub fn rule_of(error: &Error) -> Option<Rule> {
    error.defect().map(|d| d.rule)
}
