//! Plans come true: every file an operation makes, changes or removes is as its plan said, to the byte, and planning
//! changes nothing.

#[path = "common/random.rs"]
mod random;
#[path = "common/shape.rs"]
mod shape;

use std::collections::BTreeMap;
use std::path::PathBuf;

use avhdx::ops;
use avhdx::options::{
    CompactOptions, ConvertOptions, CopyMode, DeleteInto, DeleteOptions, DiskType, ImageFormat, MergeMode,
    MergeOptions, Progress, RebaseOptions, ResizeOptions, RevertOptions, ZeroFlags,
};
use avhdx::storage::MemoryFileSystem;
use avhdx::{Chain, ErrorKind, Result};
use random::Random;
use shape::{create, options, path, MIB};

const SIZE: u64 = 24 * MIB;

fn go(_: Progress) -> bool {
    true
}

fn lengths(fs: &MemoryFileSystem) -> BTreeMap<PathBuf, u64> {
    let paths = fs.paths().into_iter();
    paths
        .map(|path| {
            let len = fs.contents(&path).map_or(0, |bytes| bytes.len() as u64);
            (path, len)
        })
        .collect()
}

/// base <- a <- b <- c, written here and there, zeroed, discarded; c is left dirty.
fn tree(seed: u64) -> MemoryFileSystem {
    let fs = MemoryFileSystem::new();
    let open = options(&fs);
    let mut random = Random(seed);
    let blocks: Vec<u32> = (0..4).map(|_| 1 << random.below(3)).collect();
    create(&open, "base.vhdx", DiskType::Dynamic, SIZE, blocks[0], None);
    for (i, (name, parent)) in [("base", ""), ("a", "base"), ("b", "a"), ("c", "b")].iter().enumerate() {
        let file = if i == 0 {
            "base.vhdx".into()
        } else {
            format!("{name}.vhdx")
        };
        if i > 0 {
            create(
                &open,
                &file,
                DiskType::Differencing,
                0,
                blocks[i],
                Some(&format!("{parent}.vhdx")),
            );
        }
        let chain = Chain::open(&path(&file), &open).unwrap();
        for _ in 0..12 {
            let at = random.below(SIZE / 512) * 512;
            let len = (1 + random.below(3 * MIB / 512)) * 512;
            let len = len.min(SIZE - at);
            match random.below(6) {
                0 => chain.discard(at, len, false).unwrap(),
                1 => {
                    let flags = ZeroFlags {
                        may_unmap: random.chance(2),
                        ..ZeroFlags::default()
                    };
                    chain.zero(at, len, flags).unwrap();
                }
                2 => chain.write(&vec![0; len as usize], at, false).unwrap(),
                _ => chain
                    .write(&vec![random.next() as u8 | 1; len as usize], at, false)
                    .unwrap(),
            }
        }
        match i {
            3 => chain.flush().unwrap(),
            _ => chain.close().unwrap(),
        }
    }
    fs
}

type Operation = (&'static str, Box<dyn Fn(&Chain) -> Result<()>>);

fn operations() -> Vec<Operation> {
    let mut all: Vec<Operation> = Vec::new();
    for (name, top, base) in [("merge c", 0, 1), ("merge b into base", 1, 3), ("merge all", 0, 3)] {
        for mode in [MergeMode::Auto, MergeMode::Copy, MergeMode::Consume] {
            all.push((
                name,
                Box::new(move |chain| {
                    let mut options = MergeOptions::default();
                    options.mode = mode;
                    ops::merge(chain, top, base, &options, &mut go).map(drop)
                }),
            ));
        }
    }
    for into in [DeleteInto::Auto, DeleteInto::Children] {
        all.push((
            "delete",
            Box::new(move |chain| {
                let mut options = DeleteOptions::default();
                options.into = into;
                ops::delete_layer(chain, 2, &options, &mut go).map(drop)
            }),
        ));
    }
    all.push((
        "compact",
        Box::new(|chain| ops::compact(chain, &CompactOptions::default(), &mut go).map(drop)),
    ));
    let formats = [
        ("x.raw", None, None),
        ("x.vhd", None, None),
        ("x.vhdx", None, None),
        ("y.vhdx", Some(ImageFormat::Vhdx), Some("base.vhdx")),
    ];
    for (out, to, parent) in formats {
        for kind in [DiskType::Dynamic, DiskType::Fixed] {
            if kind == DiskType::Fixed && parent.is_some() {
                continue;
            }
            all.push((
                out,
                Box::new(move |chain| {
                    let mut options = ConvertOptions::default();
                    options.to = to;
                    options.disk_type = kind;
                    options.parent = parent.map(path);
                    // Sharing cannot be rehearsed.
                    options.mode = CopyMode::Copy;
                    ops::convert(chain, &path(out), &options, &mut go).map(drop)
                }),
            ));
        }
    }
    all.push((
        "rebase",
        Box::new(|chain| ops::rebase(chain, &path("base.vhdx"), &RebaseOptions::default(), &mut go).map(drop)),
    ));
    all.push((
        "detach",
        Box::new(|chain| ops::detach(chain, &RebaseOptions::default(), &mut go).map(drop)),
    ));
    all.push((
        "grow",
        Box::new(|chain| ops::resize(chain, 300 << 30, &ResizeOptions::default()).map(drop)),
    ));
    all.push((
        "revert",
        Box::new(|chain| {
            let mut options = RevertOptions::default();
            options.unlink = true;
            ops::revert(chain, 2, &path("new.avhdx"), &options).map(drop)
        }),
    ));
    all
}

#[test]
fn every_file_is_as_it_was_planned() {
    for seed in 0..3 {
        for (name, operation) in operations() {
            let fs = tree(seed);
            let open = options(&fs);
            let chain = Chain::open(&path("c.vhdx"), &open).unwrap();
            // Not in the file yet.
            chain.write(&[7; 4096], 5 * MIB, false).unwrap();
            chain.flush().unwrap();
            let contents = || {
                fs.paths()
                    .iter()
                    .map(|p| (p.clone(), fs.contents(p)))
                    .collect::<Vec<_>>()
            };
            let plan = ops::plan(&chain, &operation).unwrap_or_else(|e| panic!("{name}: {}", e.chain_text()));
            let before = contents();
            assert_eq!(ops::plan(&chain, &operation).unwrap(), plan);
            assert!(before == contents(), "{name}: planning changed something");
            let mut wanted = lengths(&fs);
            for change in &plan.files {
                assert_eq!(
                    wanted.get(&change.filename).copied(),
                    change.before,
                    "{name} {:?}",
                    change.filename
                );
                match change.after {
                    Some(after) => wanted.insert(change.filename.clone(), after),
                    None => wanted.remove(&change.filename),
                };
            }
            operation(&chain).unwrap_or_else(|e| panic!("{name}: {}", e.chain_text()));
            chain.close().unwrap();
            assert_eq!(lengths(&fs), wanted, "{name}, seed {seed}");
        }
    }
}

#[test]
fn what_fails_fails_in_the_plan_too() {
    let fs = tree(1);
    let open = options(&fs);
    let mut read_only = open.clone();
    read_only.read_only = true;
    let chain = Chain::open(&path("c.vhdx"), &read_only).unwrap();
    let merge =
        |top, base| move |chain: &Chain| ops::merge(chain, top, base, &MergeOptions::default(), &mut go).map(drop);
    let error = ops::plan(&chain, merge(2, 1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Argument);
    // Nothing is written, so reading is enough.
    let plan = ops::plan(&chain, merge(0, 1)).unwrap();
    assert!(plan.bytes > 0 && plan.fits(), "{plan:?}");
    create(&open, "other.vhdx", DiskType::Differencing, 0, 1, Some("b.vhdx"));
    let error = ops::plan(&chain, merge(0, 1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HasChildren);
}
