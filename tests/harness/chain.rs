//! A chain of one to three files with patched structures, checksums right: checked, read, written, merged.
//!
//! For any input: no panic, no hang, memory not by numbers of the file. Reading and checking write nothing. A read gives the
//! same in one piece and in many, and agrees with what block status says: ranges without gaps, zeros where it says so,
//! the bytes of the file where it names a place. A file that check calls clean opens, and every byte can be read; after it
//! was written to and closed it is clean still, and what was not written reads as before. A chain of clean files is merged
//! without a change of what it reads as.

use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use avhdx::ops::{self, CheckOptions, Severity};
use avhdx::options::{MergeOptions, OpenOptions, ZeroFlags};
use avhdx::storage::{Access, FileSystem, MemoryFileSystem};
use avhdx::{Chain, Error, ExtentState, Scope};

use super::images::{open_file, options, read_only, repair, templates, untouched, windows, Place, Template, MIB};
use super::input::{patches, Input};

fn all() -> &'static [Template] {
    static ALL: OnceLock<Vec<Template>> = OnceLock::new();
    ALL.get_or_init(templates)
}

/// The number of broken rules and the first of them; `None` where there is no answer.
fn errors(file: &Path, open: &OpenOptions) -> Option<(u64, String)> {
    let mut first = String::new();
    let report = ops::check(file, open, &CheckOptions::default(), &mut |finding| {
        if finding.severity == Severity::Error && first.is_empty() {
            first = finding.defect.to_string();
        }
    });
    report.ok().map(|report| (report.errors, first))
}

/// A place of a disk and its bytes.
type Window = (Range<u64>, Vec<u8>);

/// What a disk reads as.
fn content(chain: &Chain) -> Result<Vec<Window>, Error> {
    let read = |range: Range<u64>| {
        let mut bytes = vec![0xEE; (range.end - range.start) as usize];
        chain.read(&mut bytes, range.start)?;
        Ok((range, bytes))
    };
    windows(chain.size()).into_iter().map(read).collect()
}

/// Compares reads and block status with each other.
fn agree(chain: &Chain, fs: &MemoryFileSystem, (range, whole): &Window) {
    let mut piece = vec![0; 10_001];
    let zeros = vec![0; whole.len()];
    for at in range.clone().step_by(piece.len()) {
        let len = piece.len().min((range.end - at) as usize);
        chain.read(&mut piece[..len], at).unwrap();
        let from = (at - range.start) as usize;
        assert!(piece[..len] == whole[from..from + len], "pieces differ from the whole");
    }
    let mut extents = Vec::new();
    let mut at = range.start;
    while at < range.end {
        extents.clear();
        let done = chain.block_status(at, range.end - at, Scope::Chain, 64, &mut extents);
        let done = done.unwrap_or_else(|e| panic!("what reads has no block status: {}", e.chain_text()));
        assert!(done > 0 && !extents.is_empty());
        let start = at;
        for extent in &extents {
            assert!(extent.offset == at && extent.length > 0 && at + extent.length <= range.end);
            let from = (at - range.start) as usize;
            let bytes = &whole[from..from + extent.length as usize];
            if extent.state == ExtentState::Data {
                // What is in the log yet is not in its place.
                let layer = chain.layer_info(extent.layer as usize).unwrap();
                if let Some(place) = extent.file_offset.filter(|_| !layer.dirty_flag) {
                    let file = fs.open(&layer.filename, Access::Read).unwrap();
                    let mut found = vec![0; bytes.len()];
                    file.read_at(&mut found, place).unwrap();
                    assert!(found == bytes, "block status names another place");
                }
            } else {
                // Not byte by byte, of which a fuzzer would be told each.
                let zero = bytes == &zeros[..bytes.len()];
                assert!(zero, "{:?} does not read as zeros", extent.state);
            }
            at += extent.length;
        }
        assert_eq!(at - start, done);
    }
}

/// Writes everywhere; errors are fine.
fn disturb(chain: &Chain) -> Result<(), Error> {
    let size = chain.size();
    let middle = &[9; 5000][..5000.min((size - size / 2) as usize)];
    let mut first = chain.write(middle, size / 2, false);
    first = first.and(chain.write(&[9; 512], size - 512, false));
    first = first.and(chain.zero(size / 3, (size / 3).min(MIB), ZeroFlags::default()));
    first = first.and(chain.discard(0, size.min(4 * MIB), false));
    first = first.and(chain.write(&[9; 512], 0, true));
    first.and(chain.flush())
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let template = &all()[input.below(all().len())];
    let flags = input.byte();
    let fs = template.fs.snapshot();
    let patched = input.below(template.files.len());
    for (i, (path, layout)) in template.files.iter().enumerate() {
        // All of it to one file, or some to each.
        if i == patched || flags & 1 != 0 {
            let mut file = open_file(&fs, path);
            let place = Place::of(&*file);
            patches(&mut input, &mut file, layout, if flags & 1 != 0 { 3 } else { 12 });
            if flags & 0x1E != 0 {
                repair(&*file, &place);
            }
        }
    }
    let before = fs.snapshot();
    let open = read_only(&fs);
    let mut alone = open.clone();
    alone.parents = false;

    let mut clean = true;
    for (path, _) in &template.files {
        let found = errors(path, &open);
        let opened = Chain::open(path, &alone);
        if found.as_ref().is_some_and(|(errors, _)| *errors == 0) {
            let chain = opened.unwrap_or_else(|e| panic!("{path:?} is clean and does not open: {}", e.chain_text()));
            if let Err(error) = content(&chain) {
                panic!("{path:?} is clean and cannot be read: {}", error.chain_text());
            }
        } else {
            clean = false;
        }
    }
    let mut was = None;
    let mut identified = false;
    if let Ok(chain) = Chain::open(template.leaf(), &open) {
        identified = chain.layer_count() == template.files.len();
        let _ = chain.info().map(|info| info.layers.len());
        for layer in 0..chain.layer_count() {
            chain.layer_info(layer).unwrap();
            let mut buf = vec![0; 70_000];
            let _ = chain.read_layer(layer, &mut buf[..70_000.min(chain.size() as usize)], 0);
        }
        match content(&chain) {
            Ok(whole) => {
                whole.iter().for_each(|window| agree(&chain, &fs, window));
                was = Some(whole);
            }
            Err(error) => assert!(!clean, "clean files, and {}", error.chain_text()),
        }
        assert_eq!(
            chain.write(&[1; 512], 0, false).unwrap_err().kind(),
            avhdx::ErrorKind::ReadOnly
        );
    }
    assert!(untouched(&before, &fs), "reading wrote");

    // Writable.
    let parents: Vec<_> = template.files[..template.files.len() - 1]
        .iter()
        .map(|(path, _)| path)
        .collect();
    if let Ok(chain) = Chain::open(template.leaf(), &options(&fs)) {
        let done = disturb(&chain);
        if clean && was.is_some() {
            if let Err(error) = &done {
                panic!("clean files, and {}", error.chain_text());
            }
        }
        let size = chain.size();
        let now = content(&chain);
        let closed = chain.close();
        if clean && identified {
            closed.unwrap();
            for (path, _) in &template.files {
                let (count, first) = errors(path, &read_only(&fs)).unwrap();
                assert_eq!(count, 0, "{path:?} was clean and is not after a write: {first}");
            }
            let again = Chain::open(template.leaf(), &read_only(&fs)).unwrap();
            assert!(content(&again).unwrap() == now.unwrap(), "closing changed the disk");
            // What `disturb` leaves alone.
            let third = size / 3..size / 3 + (size / 3).min(MIB);
            let touched = [0..size.min(4 * MIB), size / 2..size / 2 + 5000, third, size - 512..size];
            for (old, new) in was.iter().flatten().zip(content(&again).unwrap()) {
                let apart = |range: &Range<u64>| old.0.end <= range.start || range.end <= old.0.start;
                assert!(!touched.iter().all(apart) || *old == new, "a write changed other bytes");
            }
        }
    }
    for path in parents {
        assert!(before.shares(&fs, path), "writing to the leaf changed {path:?}");
    }

    // Merged, from the state before the writes.
    let fs = before.snapshot();
    let merged = ops::merge_path(
        template.leaf(),
        None,
        &options(&fs),
        &MergeOptions::default(),
        &mut |_| true,
    );
    if clean && identified && template.files.len() > 1 {
        if let Err(error) = merged {
            panic!("clean files are not merged: {}", error.chain_text());
        }
        let into = &template.files[template.files.len() - 2].0;
        let chain = Chain::open(into, &read_only(&fs)).unwrap();
        assert!(
            Ok(content(&chain).unwrap()) == was.ok_or(()),
            "merging changed the disk"
        );
        let (count, first) = errors(into, &read_only(&fs)).unwrap();
        assert_eq!(count, 0, "{into:?} was clean and is not after merging: {first}");
    }
}
