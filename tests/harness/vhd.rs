//! VHD chains with patched footers, headers, tables and bitmaps, checksums right: opened, read, migrated.
//!
//! For any input: no panic, no hang, memory not by numbers of the file; no VHD is ever written. A read gives the same in one
//! piece and in many. What can be read as a whole can be migrated; the VHDX is clean and reads the same.

use std::path::PathBuf;
use std::sync::OnceLock;

use avhdx::ops::{self, CheckOptions};
use avhdx::options::MigrateOptions;
use avhdx::storage::MemoryFileSystem;
use avhdx::vhd::{self, VhdChain};
use avhdx::Chain;

use super::images::{open_file, options, path, read, read_only, MIB};
use super::input::{patches, Bytes, Field, Input, Layout};
use crate::writer::Vhd;

struct Template {
    fs: MemoryFileSystem,
    files: Vec<(PathBuf, Layout)>,
}

/// Offsets of the footers, and of the dynamic header if there is one.
fn checksummed(len: u64, dynamic: bool) -> Vec<(u64, usize, usize)> {
    let mut all = vec![(len - 512, 512, 64)];
    if dynamic {
        all.extend([(0, 512, 64), (512, 1024, 36)]);
    }
    all
}

fn layout(len: u64, dynamic: bool) -> Layout {
    let mut layout = Layout::default();
    let mut add = |base: u64, twin: u64, fields: &[(u64, u8)]| {
        for &(offset, width) in fields {
            let at = base + offset;
            let twin = twin + offset;
            layout.fields.push(Field {
                at,
                width,
                twin,
                big_endian: true,
            });
        }
    };
    let footer = [
        (0, 8),
        (8, 4),
        (12, 4),
        (16, 8),
        (24, 4),
        (28, 4),
        (40, 8),
        (48, 8),
        (56, 4),
        (60, 4),
        (68, 8),
        (84, 1),
    ];
    add(len - 512, if dynamic { 0 } else { len - 512 }, &footer);
    layout.areas.push(len - 512..len - 512 + 100);
    if dynamic {
        let header = [(0, 8), (8, 8), (16, 8), (24, 4), (28, 4), (32, 4), (40, 8), (64, 8)];
        add(512, 512, &header);
        for entry in 0..8 {
            let base = 512 + 576 + 24 * entry;
            add(base, base, &[(0, 4), (4, 4), (8, 4), (16, 8)]);
        }
        for entry in 0..6 {
            let base = 0x2000 + 4 * entry;
            add(base, base, &[(0, 4)]);
        }
        layout.areas.push(0..100);
        layout.areas.push(512..512 + 768);
        layout.areas.push(0x800..0x900);
        layout.areas.push(0x2000..0x2020);
        let first = 0x2200;
        if first + 64 < len {
            layout.areas.push(first..first + 64);
        }
    }
    layout
}

fn all() -> &'static [Template] {
    static ALL: OnceLock<Vec<Template>> = OnceLock::new();
    ALL.get_or_init(|| {
        let block = 64 << 10;
        let disk = |id, size: usize, every: usize| {
            let mut disk = Vhd::new(id, size, block);
            for i in (0..disk.sectors.len()).step_by(every) {
                disk.sectors[i] = Some([id ^ i as u8; 512]);
            }
            disk
        };
        let base = disk(1, 300 << 10, 5);
        let a = disk(2, 300 << 10, 7).on(&base, "base.vhd");
        let b = disk(3, 300 << 10, 90).on(&a, "a.avhd");
        let sets: Vec<Vec<(&str, Vec<u8>, bool)>> = vec![
            vec![("base.vhd", disk(4, 100 << 10, 3).fixed(), false)],
            vec![("base.vhd", base.encode(), true)],
            vec![("base.vhd", base.encode(), true), ("a.avhd", a.encode(), true)],
            vec![
                ("base.vhd", base.encode(), true),
                ("a.avhd", a.encode(), true),
                ("b.avhd", b.encode(), true),
            ],
        ];
        let template = |set: Vec<(&str, Vec<u8>, bool)>| {
            let fs = MemoryFileSystem::new();
            let mut files = Vec::new();
            for (name, bytes, dynamic) in set {
                fs.insert(path(name), &bytes);
                files.push((path(name), layout(bytes.len() as u64, dynamic)));
            }
            Template { fs, files }
        };
        sets.into_iter().map(template).collect()
    })
}

/// The ones' complement of the sum of all bytes but its own.
fn checksum(bytes: &[u8], place: usize) -> u32 {
    let inside = |i: usize| (place..place + 4).contains(&i);
    let bytes = bytes.iter().enumerate().filter(|(i, _)| !inside(*i));
    !bytes.fold(0u32, |sum, (_, &byte)| sum.wrapping_add(byte.into()))
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let template = &all()[input.below(all().len())];
    let fs = template.fs.snapshot();
    let flags = input.byte();
    let patched = input.below(template.files.len());
    for (i, (path, layout)) in template.files.iter().enumerate() {
        if i == patched || flags & 1 != 0 {
            let mut file = open_file(&fs, path);
            patches(&mut input, &mut file, layout, if flags & 1 != 0 { 3 } else { 12 });
            for (at, len, place) in checksummed(file.len().unwrap(), layout.areas.len() > 1) {
                if flags & 0x1E != 0 {
                    let sum = checksum(&read(&*file, at, len), place);
                    file.put(at + place as u64, &sum.to_be_bytes());
                }
            }
        }
    }
    let before = fs.snapshot();
    let open = read_only(&fs);
    let leaf = &template.files[template.files.len() - 1].0;
    let kept = || template.files.iter().all(|(path, _)| before.shares(&fs, path));
    let _ = vhd::is_vhd(leaf, &open);
    let Ok(chain) = VhdChain::open(leaf, &open) else {
        assert!(kept(), "opening wrote");
        return;
    };
    let _ = chain.info();
    let size = chain.size();
    let some = size.min(4 * MIB) as usize;
    let mut whole = vec![0xEE; some];
    let readable = chain.read(&mut whole, 0).is_ok();
    if readable {
        let mut piece = vec![0; 10_000];
        for at in (0..some).step_by(piece.len()) {
            let len = piece.len().min(some - at);
            chain.read(&mut piece[..len], at as u64).unwrap();
            assert!(piece[..len] == whole[at..at + len], "pieces differ from the whole");
        }
    }
    for layer in 0..chain.layer_count() {
        let _ = chain.read_layer(layer, &mut [0; 5000][..some.min(5000)], 0);
    }
    let mut last = [0; 512];
    let _ = chain.read(&mut last[..some.min(512)], size - some.min(512) as u64);
    drop(chain);
    if size <= 8 * MIB {
        let mut migrate = MigrateOptions::default();
        migrate.chain = flags & 0x20 != 0;
        migrate.convert.block_size = MIB as u32;
        let new = path("new.vhdx");
        match ops::migrate(leaf, &new, &migrate, &options(&fs), &mut |_| true) {
            Ok(files) => {
                let found = Chain::open(&new, &read_only(&fs)).unwrap();
                assert_eq!(found.size(), size);
                if readable {
                    let mut copy = vec![0; some];
                    found.read(&mut copy, 0).unwrap();
                    assert!(copy == whole, "migrating changed the disk");
                }
                for file in files {
                    let check = ops::check(&file, &read_only(&fs), &CheckOptions::default(), &mut |_| {});
                    assert_eq!(check.unwrap().errors, 0, "{file:?}");
                }
            }
            Err(_) => assert_eq!(fs.paths(), before.paths(), "a migration that failed left files"),
        }
    }
    assert!(kept(), "a VHD was written");
}
