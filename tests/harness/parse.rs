//! The codec on structures whose bytes were patched and whose checksums are right.
//!
//! For any input: no panic and no unbounded work; the same bytes give the same answer; what was accepted obeys the rules
//! that later code relies on (ranges inside their region and file, counts within the limits); and a value that was
//! accepted, encoded and parsed again is the same value.

use std::sync::OnceLock;

use avhdx::format::bat::{BitmapEntry, PayloadEntry};
use avhdx::format::crc::crc32c_with_zeroed_checksum;
use avhdx::format::header::{self, Header};
use avhdx::format::identifier::Identifier;
use avhdx::format::locator::Locator;
use avhdx::format::log::{check_target, encode_entry, Entry, EntryHeader, Update};
use avhdx::format::metadata::{self, MetadataTable};
use avhdx::format::region;
use avhdx::limits;
use avhdx::Guid;

use super::images::{layout, open_file, read, templates, Place, LOG_GUID, MIB};
use super::input::{patches, Bytes, Input, Layout};

/// The first bytes of a file and its metadata region, log and BAT, with the places of fields in them.
struct Front {
    bytes: Vec<u8>,
    place: Place,
    layout: Layout,
}

fn fronts() -> &'static [Front] {
    static FRONTS: OnceLock<Vec<Front>> = OnceLock::new();
    FRONTS.get_or_init(|| {
        let mut fronts = Vec::new();
        for template in templates() {
            for (path, _) in &template.files {
                let file = open_file(&template.fs, path);
                let place = Place::of(&*file);
                fronts.push(Front {
                    bytes: read(&*file, 0, 3 << 20),
                    layout: layout(&*file),
                    place,
                });
            }
        }
        fronts
    })
}

/// The structure at `at` with the patches that fall on it.
fn part(front: &Front, at: u64, len: usize) -> Vec<u8> {
    front.bytes[at as usize..at as usize + len].to_vec()
}

fn patched(input: &mut Input<'_>, front: &Front, at: u64, len: usize) -> Vec<u8> {
    let inside = |field: u64| field >= at && field < at + len as u64;
    let mut own = Layout::default();
    for field in front.layout.fields.iter().filter(|field| inside(field.at)) {
        let mut field = *field;
        field.at -= at;
        field.twin = field.at;
        own.fields.push(field);
    }
    if own.fields.is_empty() {
        own.add(0, 0, &[(0, 8)]);
    }
    own.areas.push(0..(len as u64).min(512));
    let mut bytes = part(front, at, len);
    patches(input, &mut bytes, &own, 12);
    bytes
}

fn repair(bytes: &mut Vec<u8>) {
    let crc = crc32c_with_zeroed_checksum(bytes);
    bytes.put(4, &crc.to_le_bytes());
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let what = input.byte();
    let front = &fronts()[input.below(fronts().len())];
    match what % 7 {
        0 => identifier(&patched(&mut input, front, 0, 600)),
        1 => headers(&mut input, front),
        2 => regions(&mut input, front),
        3 => metadata(&mut input, front),
        4 => locator(&mut input, front),
        5 => log_entry(&mut input, front),
        _ => entries(&mut input),
    }
}

fn identifier(bytes: &[u8]) {
    if let Ok(found) = Identifier::parse(bytes) {
        let again = Identifier::parse(&Identifier::encode(&found.creator)).unwrap();
        assert!(found.creator.chars().count() <= 256);
        // What is no text was replaced, once.
        assert_eq!(
            Identifier::parse(&Identifier::encode(&again.creator)).unwrap().creator,
            again.creator
        );
    }
}

fn headers(input: &mut Input<'_>, front: &Front) {
    let file_len = input.pick(&[front.bytes.len() as u64, MIB, 0, u64::MAX, 1 << 40]);
    let copies = header::OFFSETS.map(|at| {
        let mut bytes = patched(input, front, at, header::SIZE);
        if !input.chance(16) {
            repair(&mut bytes);
        }
        bytes
    });
    for copy in &copies {
        if let Some(found) = Header::parse(copy) {
            assert_eq!(Header::parse(&found.encode()).as_ref(), Some(&found));
        }
    }
    if let Ok(current) = header::select([&copies[0], &copies[1]], file_len) {
        let found = &current.header;
        assert_eq!(Header::parse(&copies[current.slot]).as_ref(), Some(found));
        if let Some(other) = Header::parse(&copies[1 - current.slot]) {
            assert!(other.sequence_number <= found.sequence_number);
        }
        assert!(found.log_length <= limits::MAX_LOG_LEN && found.log_length % MIB as u32 == 0);
        if found.log_length > 0 {
            assert!(found.log_offset >= MIB && found.log_offset % MIB == 0);
            assert!(found.log_offset.checked_add(found.log_length.into()).unwrap() <= file_len);
        }
    }
}

fn regions(input: &mut Input<'_>, front: &Front) {
    let file_len = input.pick(&[16 * MIB, MIB, 0, u64::MAX, 1 << 40]);
    let copies = region::OFFSETS.map(|at| {
        let mut bytes = patched(input, front, at, region::SIZE);
        if !input.chance(16) {
            repair(&mut bytes);
        }
        bytes
    });
    if let Ok(selected) = region::select([&copies[0], &copies[1]], file_len) {
        let table = &selected.table;
        assert!(table.regions.len() <= 2047);
        let mut ranges = Vec::new();
        for region in &table.regions {
            let end = region.offset.checked_add(region.length.into()).unwrap();
            assert!(region.offset >= MIB && region.length > 0 && end <= file_len);
            ranges.push(region.offset..end);
        }
        ranges.sort_by_key(|range| range.start);
        assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
        assert_eq!(
            (table.bat().guid, table.metadata().guid),
            (region::BAT, region::METADATA)
        );
        let again = table.encode();
        let again = region::select([&again, &again], file_len).unwrap().table;
        assert_eq!(&again.regions, &table.regions);
        let _ = table.check_log(input.u64(), input.u64() as u32);
    }
}

fn metadata(input: &mut Input<'_>, front: &Front) {
    // Table and items in one: the items follow the table.
    let bytes = patched(input, front, front.place.metadata, metadata::TABLE_SIZE + 8192);
    let region_len = input.pick(&[MIB as u32, MIB as u32, 128 << 10, u32::MAX]);
    let Ok(table) = MetadataTable::parse(&bytes[..metadata::TABLE_SIZE], front.place.metadata, region_len) else {
        return;
    };
    for item in &table.items {
        let end = item.offset.checked_add(item.length).unwrap();
        assert!(end <= region_len && item.length <= 1 << 20);
        assert!(item.length == 0 || item.offset >= metadata::TABLE_SIZE as u32);
    }
    let mut read = 0u64;
    let known = metadata::parse_known(&table, front.place.metadata, &mut |offset, len| {
        read += u64::from(len);
        let mut item = vec![0; len as usize];
        bytes.get(offset.into(), &mut item);
        Ok(item)
    });
    assert!(read <= limits::MAX_METADATA_CATEGORY_LEN);
    if let Ok(items) = known {
        assert!(items.parameters.block_size.is_power_of_two());
        assert!((MIB as u32..=256 << 20).contains(&items.parameters.block_size));
        assert!(items.virtual_size > 0 && items.virtual_size <= 64 << 40);
        assert!([512, 4096].contains(&items.logical_sector_size));
        assert_eq!(items.virtual_size % u64::from(items.logical_sector_size), 0);
    }
    let again = MetadataTable::parse(&table.encode(), front.place.metadata, region_len).unwrap();
    assert_eq!(again.items, table.items);
    if let Some(at) = table.free_range(4096, region_len) {
        assert!(u64::from(at) + 4096 <= u64::from(region_len));
        assert!(table
            .items
            .iter()
            .all(|i| i.length == 0 || at >= i.offset + i.length || at + 4096 <= i.offset));
    }
}

fn locator(input: &mut Input<'_>, front: &Front) {
    let table = part(front, front.place.metadata, metadata::TABLE_SIZE);
    let table = MetadataTable::parse(&table, 0, MIB as u32).unwrap();
    let bytes = match table.find(metadata::PARENT_LOCATOR) {
        Some(item) => patched(
            input,
            front,
            front.place.metadata + u64::from(item.offset),
            item.length as usize,
        ),
        None => {
            let len = input.below(128);
            let mut bytes = avhdx::format::locator::VHDX_LOCATOR.to_stored().to_vec();
            bytes.extend(input.bytes(len));
            bytes
        }
    };
    if let Ok(found) = Locator::parse(&bytes, 0) {
        let again = Locator::parse(&found.encode(), 0).unwrap();
        assert_eq!(again, found);
        assert!(found.entries().len() <= usize::from(limits::MAX_LOCATOR_ENTRIES));
        let _ = (found.paths(), found.linkage2());
        assert!(found.linkage().is_some(), "a locator without linkage was accepted");
    }
}

fn log_entry(input: &mut Input<'_>, front: &Front) {
    let sectors = 1 + input.below(4);
    let mut bytes = match input.below(3) {
        0 => patched(input, front, front.place.log, sectors * 4096),
        1 => patched(input, front, front.place.log + 8192, sectors * 4096),
        _ => {
            let page = [input.byte(); 4096];
            let header = EntryHeader {
                checksum: 0,
                entry_length: 0,
                tail: 0,
                sequence_number: input.u64(),
                descriptor_count: 0,
                log_guid: LOG_GUID,
                flushed_file_offset: input.u64(),
                last_file_offset: input.u64(),
            };
            let zero = [(input.u64(), input.u64())];
            encode_entry(
                &header,
                &zero[..input.below(2)],
                &vec![(input.u64(), &page); input.below(3)],
            )
        }
    };
    repair(&mut bytes);
    for guid in [LOG_GUID, Guid::ZERO] {
        let log_len = front.place.log_len;
        if let Ok(entry) = Entry::parse(&bytes, guid, log_len) {
            assert!(!guid.is_zero());
            let header = &entry.header;
            assert_eq!(header.entry_length as usize, bytes.len());
            assert!(header.tail < log_len && header.sequence_number != 0);
            assert_eq!(entry.updates.len(), header.descriptor_count as usize);
            let (mut zero, mut data) = (Vec::new(), Vec::new());
            for update in &entry.updates {
                let max = input.pick(&[0, 8 * MIB, limits::MAX_FILE_LEN]);
                let fine = check_target(update, MIB, log_len, max).is_ok();
                let (at, len) = match update {
                    Update::Zero { file_offset, length } => {
                        zero.push((*file_offset, *length));
                        (*file_offset, *length)
                    }
                    Update::Data { file_offset, page } => {
                        data.push((*file_offset, &**page));
                        (*file_offset, 4096)
                    }
                };
                if fine {
                    let end = at.checked_add(len).unwrap();
                    assert!(at >= 192 << 10 && end <= max && (at % 4096, len % 4096) == (0, 0));
                    assert!(len == 0 || end <= MIB || at >= MIB + u64::from(log_len));
                }
            }
            let again = Entry::parse(&encode_entry(header, &zero, &data), guid, log_len).unwrap();
            assert_eq!(again.updates.len(), entry.updates.len());
            assert_eq!(again.header.sequence_number, header.sequence_number);
        }
    }
}

fn entries(input: &mut Input<'_>) {
    for _ in 0..16 {
        let raw = match input.chance(2) {
            true => input.u64(),
            false => input.pick(&super::input::values()),
        };
        for differencing in [false, true] {
            if let Ok(found) = PayloadEntry::decode(raw, differencing) {
                assert_eq!(PayloadEntry::decode(found.encode(), differencing).unwrap(), found);
                if found.has_space() {
                    assert!(found.file_offset >= MIB && found.file_offset % MIB == 0);
                    assert!(found.file_offset <= limits::MAX_FILE_LEN);
                }
            }
        }
        if let Ok(found) = BitmapEntry::decode(raw) {
            assert_eq!(BitmapEntry::decode(found.encode()).unwrap(), found);
        }
    }
}
