//! Template images, made by the library in memory; their fields; their checksums.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::format::crc::crc32c_with_zeroed_checksum;
use avhdx::format::header::{self, Header};
use avhdx::format::log::{encode_entry, EntryHeader};
use avhdx::format::metadata::{self, MetadataTable};
use avhdx::format::region;
use avhdx::ops;
use avhdx::options::{CreateOptions, DiskType, OpenOptions, ZeroFlags};
use avhdx::storage::{Access, FileSystem, MemoryFileSystem, Storage};
use avhdx::{Chain, Guid};

use super::input::Layout;

pub const MIB: u64 = 1 << 20;
pub const LOG_GUID: Guid = Guid::from_u128(0x0123_4567_89AB_CDEF_0123_4567_89AB_CDEF);

pub fn path(name: &str) -> PathBuf {
    Path::new("/vm").join(name)
}

pub fn options(fs: &MemoryFileSystem) -> OpenOptions {
    let mut options = OpenOptions::new().on(Arc::new(fs.clone()));
    options.lock = false;
    options
}

pub fn read_only(fs: &MemoryFileSystem) -> OpenOptions {
    let mut options = options(fs);
    options.read_only = true;
    options
}

/// A chain of files, leaf last, and what in them can be patched.
pub struct Template {
    pub fs: MemoryFileSystem,
    pub files: Vec<(PathBuf, Layout)>,
}

impl Template {
    pub fn leaf(&self) -> &Path {
        &self.files[self.files.len() - 1].0
    }
}

pub fn open_file(fs: &MemoryFileSystem, path: &Path) -> Arc<dyn Storage> {
    fs.open(path, Access::Write).unwrap()
}

pub fn read(storage: &dyn Storage, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    storage.read_at(&mut bytes, at).unwrap();
    bytes
}

struct Shape {
    kind: DiskType,
    size: u64,
    sector: u32,
    /// Virtual sizes of the children.
    children: &'static [u64],
}

fn build(shape: &Shape) -> MemoryFileSystem {
    let fs = MemoryFileSystem::new();
    let names = ["base.vhdx", "a.avhdx", "b.avhdx"];
    let sector = u64::from(shape.sector);
    for layer in 0..=shape.children.len() {
        let mut create = CreateOptions::default();
        create.open = options(&fs);
        create.block_size = MIB as u32;
        create.size = shape.size;
        create.disk_type = shape.kind;
        create.logical_sector_size = shape.sector;
        if layer > 0 {
            create.disk_type = DiskType::Differencing;
            create.parent = Some(path(names[layer - 1]));
            create.size = shape.children[layer - 1];
        }
        ops::create(&path(names[layer]), &create).unwrap();
        let chain = Chain::open(&path(names[layer]), &options(&fs)).unwrap();
        let fill = [layer as u8 + 1; 8192];
        // A block with some of its sectors, the last sector, a zeroed and a trimmed block.
        for at in [0, MIB + layer as u64 * 4096, chain.size() - sector] {
            let len = fill.len().min((chain.size() - at) as usize);
            chain.write(&fill[..len], at, false).unwrap();
        }
        if layer > 0 {
            chain.zero(2 * MIB, 2 * sector, ZeroFlags::default()).unwrap();
            chain.discard(0, MIB, false).unwrap();
            chain.write(&fill[..4096], 8192, false).unwrap();
        } else if shape.kind == DiskType::Dynamic {
            chain.write(&fill, 2 * MIB, false).unwrap();
        }
        chain.close().unwrap();
    }
    fs
}

/// Leaves updates in the log: one BAT page, and a zero range in the free part of the metadata region.
fn dirty(fs: &MemoryFileSystem, name: &str) {
    let file = open_file(fs, &path(name));
    let place = Place::of(&*file);
    let page: [u8; 4096] = read(&*file, place.bat, 4096).try_into().unwrap();
    let len = file.len().unwrap();
    for (sequence, sector) in [(7, 0), (8, 2)] {
        let entry = EntryHeader {
            checksum: 0,
            entry_length: 0,
            tail: 0,
            sequence_number: sequence,
            descriptor_count: 0,
            log_guid: LOG_GUID,
            flushed_file_offset: len,
            last_file_offset: len,
        };
        let bytes = encode_entry(
            &entry,
            &[(place.metadata + MIB - 4096, 4096)][..usize::from(sequence == 8)],
            &[(place.bat, &page)],
        );
        file.write_at(&bytes, place.log + sector * 4096).unwrap();
    }
    put_log_guid(&*file, LOG_GUID);
}

pub fn put_log_guid(file: &dyn Storage, guid: Guid) {
    for at in header::OFFSETS {
        let mut header = Header::parse(&read(file, at, header::SIZE)).unwrap();
        header.log_guid = guid;
        file.write_at(&header.encode(), at).unwrap();
    }
}

/// Where the structures of an unharmed file are.
pub struct Place {
    pub log: u64,
    pub log_len: u32,
    pub bat: u64,
    pub metadata: u64,
}

impl Place {
    pub fn of(file: &dyn Storage) -> Place {
        let len = file.len().unwrap();
        let copies = header::OFFSETS.map(|at| read(file, at, header::SIZE));
        let header = header::select([&copies[0], &copies[1]], len).unwrap().header;
        let copies = region::OFFSETS.map(|at| read(file, at, region::SIZE));
        let table = region::select([&copies[0], &copies[1]], len).unwrap().table;
        Place {
            log: header.log_offset,
            log_len: header.log_length,
            bat: table.bat().offset,
            metadata: table.metadata().offset,
        }
    }
}

const ENTRY_HEADER: &[(u64, u8)] = &[(8, 4), (12, 4), (16, 8), (24, 4), (32, 8), (40, 8), (48, 8), (56, 8)];

pub fn layout(file: &dyn Storage) -> Layout {
    let place = Place::of(file);
    let mut layout = Layout::default();
    let header = [
        (8, 8),
        (16, 8),
        (24, 8),
        (32, 8),
        (40, 8),
        (48, 8),
        (56, 8),
        (64, 2),
        (66, 2),
        (68, 4),
        (72, 8),
    ];
    layout.add(header::OFFSETS[0], header::OFFSETS[1] - header::OFFSETS[0], &header);
    let regions = region::OFFSETS[1] - region::OFFSETS[0];
    layout.add(region::OFFSETS[0], regions, &[(8, 4)]);
    for entry in 0..3 {
        let fields = [(0, 8), (8, 8), (16, 8), (24, 4), (28, 4)];
        layout.add(region::OFFSETS[0] + 16 + 32 * entry, regions, &fields);
    }
    layout.add(place.metadata, 0, &[(0, 8), (10, 2)]);
    let table = MetadataTable::parse(&read(file, place.metadata, metadata::TABLE_SIZE), 0, MIB as u32).unwrap();
    for (entry, item) in (0..).zip(&table.items) {
        let fields = [(0, 8), (8, 8), (16, 4), (20, 4), (24, 4)];
        layout.add(place.metadata + 32 + 32 * entry, 0, &fields);
        let at = place.metadata + u64::from(item.offset);
        layout.add(at, 0, &[(0, 8), (0, 4), (4, 4)]);
        if item.id == metadata::PARENT_LOCATOR {
            layout.add(at, 0, &[(0, 8), (8, 8), (18, 2)]);
            for entry in 0..6 {
                layout.add(at + 20 + 12 * entry, 0, &[(0, 4), (4, 4), (8, 2), (10, 2)]);
            }
            layout.areas.push(at..at + u64::from(item.length));
        }
    }
    for entry in 0..8 {
        layout.add(place.bat + 8 * entry, 0, &[(0, 8)]);
    }
    for ratio in [4096, 32_768] {
        layout.add(place.bat + 8 * ratio, 0, &[(0, 8)]);
        let entry = u64::from_le_bytes(read(file, place.bat + 8 * ratio, 8).try_into().unwrap());
        if entry & 7 == 6 {
            // Bitmaps of the first three blocks.
            for word in [0, 1, MIB / 512 / 64, 2 * MIB / 512 / 64] {
                layout.add((entry >> 20 << 20) + 8 * word, 0, &[(0, 8)]);
            }
        }
    }
    for sector in [0, 2] {
        let entry = place.log + sector * 4096;
        layout.add(entry, 0, ENTRY_HEADER);
        for descriptor in 0..2 {
            let fields = [(0, 4), (4, 4), (8, 8), (16, 8), (24, 8)];
            layout.add(entry + 64 + 32 * descriptor, 0, &fields);
        }
    }
    for at in header::OFFSETS {
        layout.areas.push(at..at + 80);
    }
    for at in region::OFFSETS {
        layout.areas.push(at..at + 112);
    }
    layout.areas.push(0..600);
    layout.areas.push(place.metadata..place.metadata + 320);
    layout.areas.push(place.bat..place.bat + 64);
    layout.areas.push(place.log..place.log + 16_384);
    layout
}

fn template(fs: MemoryFileSystem) -> Template {
    let mut files = Vec::new();
    for name in ["base.vhdx", "a.avhdx", "b.avhdx"] {
        if fs.paths().contains(&path(name)) {
            let layout = layout(&*open_file(&fs, &path(name)));
            files.push((path(name), layout));
        }
    }
    Template { fs, files }
}

/// The chains that patches are applied to.
pub fn templates() -> Vec<Template> {
    let dynamic = |sector, children| {
        build(&Shape {
            kind: DiskType::Dynamic,
            size: 4 * MIB + 4096,
            sector,
            children,
        })
    };
    let two = dynamic(512, &[4 * MIB + 4096]);
    let three = dynamic(512, &[4 * MIB + 4096, 5 * MIB]);
    let dirty_leaf = two.snapshot();
    dirty(&dirty_leaf, "a.avhdx");
    let dirty_parent = three.snapshot();
    dirty(&dirty_parent, "base.vhdx");
    let fixed = build(&Shape {
        kind: DiskType::Fixed,
        size: 3 * MIB + 512,
        sector: 512,
        children: &[],
    });
    let all = [
        dynamic(512, &[]),
        fixed,
        two,
        three,
        dynamic(4096, &[4 * MIB]),
        dirty_leaf,
        dirty_parent,
        dynamic(512, &[7 * MIB + 512]),
    ];
    all.into_iter().map(template).collect()
}

fn repair_at(file: &dyn Storage, at: u64, len: usize) {
    if at + len as u64 <= file.len().unwrap() {
        let crc = crc32c_with_zeroed_checksum(&read(file, at, len));
        file.write_at(&crc.to_le_bytes(), at + 4).unwrap();
    }
}

/// Makes the checksums right: of the headers, the region tables, and whatever looks like a log entry.
pub fn repair(file: &dyn Storage, place: &Place) {
    for at in header::OFFSETS {
        repair_at(file, at, header::SIZE);
    }
    for at in region::OFFSETS {
        repair_at(file, at, region::SIZE);
    }
    repair_log(file, place);
}

/// Makes the checksum of whatever looks like a log entry right, also of one that wraps.
pub fn repair_log(file: &dyn Storage, place: &Place) {
    let end = place.log + u64::from(place.log_len);
    let mut at = place.log;
    while let Some(data) = file.next_data(at, end).unwrap() {
        at = data.start / 4096 * 4096;
        let start = read(file, at, 64);
        let len = u32::from_le_bytes(start[8..12].try_into().unwrap());
        if start.starts_with(b"loge") && len % 4096 == 0 && (4096..=place.log_len).contains(&len) {
            let first = u64::from(len).min(end - at) as usize;
            let mut entry = read(file, at, first);
            entry.extend(read(file, place.log, len as usize - first));
            let crc = crc32c_with_zeroed_checksum(&entry);
            file.write_at(&crc.to_le_bytes(), at + 4).unwrap();
        }
        at += 4096;
    }
}

/// Whether two files hold the same in `[from, to)`, of which both have all.
pub fn same(a: &dyn Storage, b: &dyn Storage, from: u64, to: u64) -> bool {
    for (one, other) in [(a, b), (b, a)] {
        let mut at = from;
        while let Some(data) = one.next_data(at, to).unwrap() {
            let mut place = data.start;
            while place < data.end {
                let n = (data.end - place).min(1 << 16) as usize;
                if read(one, place, n) != read(other, place, n) {
                    return false;
                }
                place += n as u64;
            }
            at = data.end;
        }
    }
    true
}

/// The places of a disk that are read: around the beginning of each of the first eight MiB, and its end. Templates have
/// blocks of 1 MiB with what they hold at either end.
pub fn windows(size: u64) -> Vec<Range<u64>> {
    let around = |at: u64| at.saturating_sub(8192)..(at + 57_344).min(size);
    let mut all: Vec<_> = (0..8)
        .map(|mib| around(mib * MIB))
        .filter(|w| w.start < w.end)
        .collect();
    all.push(size.saturating_sub(16_384)..size);
    all
}

/// Whether every file of `before` is there in `after` as it was.
pub fn untouched(before: &MemoryFileSystem, after: &MemoryFileSystem) -> bool {
    before.paths() == after.paths() && before.paths().iter().all(|path| before.shares(after, path))
}
