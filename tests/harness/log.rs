//! A log of entries made from the input, on an image: found, shown in memory, replayed.
//!
//! For any input: no panic, no hang, no write by whoever only reads. What the log shows in memory and what replaying it
//! leaves in the file are the same: both open or neither does, with the same error, and they read the same. Replaying
//! again, as after a power cut before the header says that it is done, changes nothing. Nothing is written to the log,
//! the identifier, or behind the file's end except where an entry says so.

use std::path::Path;
use std::sync::OnceLock;

use avhdx::format::header;
use avhdx::format::log::{encode_entry, EntryHeader};
use avhdx::ops::{self, CheckOptions};
use avhdx::options::LogPolicy;
use avhdx::storage::{MemoryFileSystem, Storage};
use avhdx::{Chain, Error};

use super::images::{
    open_file, options, path, put_log_guid, read, read_only, repair_log, same, templates, untouched, windows, Place,
    Template, LOG_GUID, MIB,
};
use super::input::{patch, Input, Layout};

/// Templates whose first file gets the log.
fn bases() -> &'static [Template] {
    static BASES: OnceLock<Vec<Template>> = OnceLock::new();
    BASES.get_or_init(|| {
        let fine = |template: &Template| Place::of(&*open_file(&template.fs, &path("base.vhdx"))).log_len == 1 << 20;
        let all = templates().into_iter().filter(|template| fine(template));
        // Those with a log in use already are for the target `chain`.
        let clean = |template: &Template| {
            Chain::probe(&path("base.vhdx"), &read_only(&template.fs)).is_ok_and(|probe| !probe.dirty_flag)
        };
        all.filter(clean).take(4).collect()
    })
}

/// A target of an update: mostly where structures are.
fn target(input: &mut Input<'_>, place: &Place, len: u64) -> u64 {
    match input.byte() % 8 {
        0 => place.bat + 4096 * u64::from(input.byte() % 16),
        1 => place.metadata + 4096 * u64::from(input.byte() % 32),
        2 => 192 * 1024 + 4096 * u64::from(input.byte() % 32),
        3 => place.bat + MIB + 4096 * u64::from(input.u16()),
        4 => len + 4096 * u64::from(input.byte()),
        5 => place.log + 4096 * u64::from(input.byte()),
        6 => input.u64() & !0xFFF,
        _ => u64::from(input.u16()) << 12,
    }
}

fn put(file: &dyn Storage, place: &Place, mut at: u64, bytes: &[u8]) {
    let len = u64::from(place.log_len);
    for sector in bytes.chunks(4096) {
        file.write_at(sector, place.log + at % len).unwrap();
        at += 4096;
    }
}

/// Writes entries and makes the header name them.
fn make_log(input: &mut Input<'_>, file: &dyn Storage, place: &Place) {
    let log_len = u64::from(place.log_len);
    let len = file.len().unwrap();
    let mut at = u64::from(input.byte()) * 4096 % log_len;
    let first = at;
    let mut sequence = match input.chance(8) {
        true => input.u64(),
        false => 5,
    };
    let mut starts = Vec::new();
    for _ in 0..1 + input.below(5) {
        let mut zero = Vec::new();
        let mut data = Vec::new();
        let mut pages = Vec::new();
        for _ in 0..input.below(4) {
            if input.chance(2) {
                let length = match input.chance(8) {
                    true => input.u64() & !0xFFF,
                    false => 4096 * u64::from(input.byte() % 8),
                };
                zero.push((target(input, place, len), length));
            } else {
                let at = target(input, place, len);
                // What is there, with some of it changed.
                let mut page = vec![0; 4096];
                if at % 4096 == 0 && at.checked_add(4096).is_some_and(|end| end <= len) {
                    page = read(file, at, 4096);
                }
                for _ in 0..input.below(3) {
                    let place = input.below(512) * 8;
                    let value = input.pick(&super::input::values());
                    page[place..place + 8].copy_from_slice(&value.to_le_bytes());
                }
                pages.push((at, <Box<[u8; 4096]>>::try_from(page.into_boxed_slice()).unwrap()));
            }
        }
        for (at, page) in &pages {
            data.push((*at, &**page));
        }
        let growth = match input.byte() {
            0 => input.u64(),
            1..=3 => len + MIB,
            _ => len,
        };
        let entry = EntryHeader {
            checksum: 0,
            entry_length: 0,
            tail: match input.chance(8) {
                true => at as u32,
                false => first as u32,
            },
            sequence_number: sequence,
            descriptor_count: 0,
            log_guid: LOG_GUID,
            flushed_file_offset: match input.chance(16) {
                true => input.u64(),
                false => len,
            },
            last_file_offset: growth,
        };
        let bytes = encode_entry(&entry, &zero, &data);
        put(file, place, at, &bytes);
        starts.push(at);
        at = (at + bytes.len() as u64) % log_len;
        sequence = sequence.wrapping_add(1 + u64::from(input.chance(16)));
    }
    // Changes of single fields.
    for _ in 0..input.below(4) {
        let mut layout = Layout::default();
        let entry = place.log + starts[input.below(starts.len())];
        let fields = [(8, 4), (12, 4), (16, 8), (24, 4), (32, 8), (48, 8), (56, 8)];
        layout.add(entry, 0, &fields);
        for descriptor in 0..3 {
            layout.add(
                entry + 64 + 32 * descriptor,
                0,
                &[(0, 4), (4, 4), (8, 8), (16, 8), (24, 8)],
            );
        }
        layout.areas.push(entry..entry + 256);
        patch(input, &mut Handle(file), &layout);
    }
    if !input.chance(16) {
        repair_log(file, place);
    }
    put_log_guid(file, LOG_GUID);
}

struct Handle<'a>(&'a dyn Storage);

impl super::input::Bytes for Handle<'_> {
    fn get(&self, at: u64, buf: &mut [u8]) {
        self.0.read_at(buf, at).unwrap();
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.0.write_at(bytes, at).unwrap();
    }
}

/// What a disk reads as, or why it does not.
fn view(chain: &Chain) -> Vec<Result<Vec<u8>, String>> {
    let read = |range: std::ops::Range<u64>| {
        let mut buf = vec![0; (range.end - range.start) as usize];
        let result = chain.read(&mut buf, range.start);
        result.map(|()| buf).map_err(|error| reason(&error))
    };
    windows(chain.size()).into_iter().map(read).collect()
}

fn reason(error: &Error) -> String {
    format!("{:?} {:?}", error.kind(), error.defect().map(|defect| defect.rule))
}

fn replay(fs: &MemoryFileSystem, path: &Path) -> Result<Chain, Error> {
    let mut open = options(fs);
    open.log = LogPolicy::Replay;
    open.read_only = true;
    open.parents = false;
    Chain::open(path, &open)
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let template = &bases()[input.below(bases().len())];
    let fs = template.fs.snapshot();
    let base = path("base.vhdx");
    let file = open_file(&fs, &base);
    let place = Place::of(&*file);
    make_log(&mut input, &*file, &place);
    let before = fs.snapshot();

    // In memory.
    let mut memory = read_only(&fs);
    memory.parents = false;
    let shown = Chain::open(&base, &memory);
    let shown = shown.map(|chain| (chain.size(), view(&chain)));
    let probed = Chain::probe(&base, &memory);
    assert_eq!(probed.is_ok(), shown.is_ok());
    let mut log_bad = false;
    let check = ops::check(&base, &memory, &CheckOptions::default(), &mut |_| log_bad = true);
    assert!(untouched(&before, &fs), "reading wrote");

    // Replayed.
    let replayed = replay(&fs, &base).map(|chain| (chain.size(), view(&chain)));
    match (&shown, &replayed) {
        (Ok(a), Ok(b)) => assert!(a == b, "the log in memory and the log replayed differ"),
        (Err(a), Err(b)) => assert_eq!(reason(a), reason(b)),
        (Ok(_), Err(b)) => panic!("opens with its log in memory, replayed it does not: {}", b.chain_text()),
        (Err(a), Ok(_)) => panic!("opens replayed, with its log in memory it does not: {}", a.chain_text()),
    }
    let after = open_file(&fs, &base);
    let original = open_file(&before, &base);
    let log_end = place.log + u64::from(place.log_len);
    assert!(
        same(&*after, &*original, place.log, log_end),
        "replaying wrote to the log"
    );
    assert!(
        same(&*after, &*original, 0, 65_536),
        "replaying wrote to the identifier"
    );

    // Replayed again: cut before the header said that it was done.
    if replayed.is_ok() {
        let cut = fs.snapshot();
        let again = open_file(&cut, &base);
        for at in header::OFFSETS {
            again.write_at(&read(&*original, at, header::SIZE), at).unwrap();
        }
        let twice = replay(&cut, &base).map(|chain| (chain.size(), view(&chain)));
        assert!(
            twice.is_ok_and(|twice| Ok(twice) == replayed.map_err(drop)),
            "replaying is not idempotent"
        );
        let len = after.len().unwrap();
        assert!(
            again.len().unwrap() == len && same(&*again, &*after, 192 << 10, len),
            "replaying again changed the file"
        );
        // A file that was fine with its log in memory is fine now.
        if check.is_ok_and(|report| report.errors == 0) {
            let now = ops::check(&base, &options(&fs), &CheckOptions::default(), &mut |_| {});
            assert_eq!(now.unwrap().errors, 0, "replaying broke a file that check calls clean");
        }
    }
}
