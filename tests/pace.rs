//! Every operation that moves data tells how far it is before it sleeps for its rate, asks on while it sleeps, and can
//! be cancelled there, and on its way through a large empty disk; run again, it is done. No test waits for a rate.

use std::path::Path;
use std::sync::Arc;

use avhdx::ops::{self, CompareOptions, DigestAlgorithm, DigestOptions};
use avhdx::options::{
    CheckpointOptions, CompactOptions, ConvertOptions, CreateOptions, DeleteInto, DeleteOptions, MergeMode,
    MergeOptions, OpenOptions, ProgressFn, RebaseOptions,
};
use avhdx::storage::MemoryFileSystem;
use avhdx::{Chain, ErrorKind, Result};

const MIB: u64 = 1 << 20;

/// base <- a <- b, and a disk that reads as b does.
struct World {
    chain: Chain,
    twin: Chain,
}

fn world(size: u64, data: bool) -> World {
    let mut open = OpenOptions::new().on(Arc::new(MemoryFileSystem::new()));
    open.meta_cache_size = 4 * MIB;
    let create = |name: &str| {
        let mut options = CreateOptions::default();
        options.size = size;
        options.open = open.clone();
        ops::create(Path::new(name), &options).unwrap();
        Chain::open(Path::new(name), &open).unwrap()
    };
    let (twin, chain) = (create("/twin.vhdx"), create("/base.vhdx"));
    for (layer, name) in [(1u8, "/a.avhdx"), (2, "/b.avhdx")] {
        ops::checkpoint(&chain, Path::new(name), &CheckpointOptions::default()).unwrap();
        if data {
            let bytes = vec![layer; 6 * MIB as usize];
            chain.write(&bytes, u64::from(layer) * 4 * MIB, false).unwrap();
            twin.write(&bytes, u64::from(layer) * 4 * MIB, false).unwrap();
        }
    }
    World { chain, twin }
}

type Run = fn(&World, u64, ProgressFn<'_>) -> Result<()>;

fn merge(world: &World, top: usize, rate: u64, progress: ProgressFn<'_>) -> Result<()> {
    let mut options = MergeOptions::default();
    options.mode = MergeMode::Copy;
    options.rate = rate;
    ops::merge(&world.chain, top, top + 1, &options, progress).map(drop)
}

fn delete(world: &World, into: DeleteInto, rate: u64, progress: ProgressFn<'_>) -> Result<()> {
    let mut options = DeleteOptions::default();
    options.into = into;
    options.mode = MergeMode::Copy;
    options.rate = rate;
    ops::delete_layer(&world.chain, 1, &options, progress).map(drop)
}

fn rebasing(rate: u64) -> RebaseOptions {
    let mut options = RebaseOptions::default();
    options.rate = rate;
    options
}

fn convert(world: &World, to: &str, parent: Option<&str>, rate: u64, progress: ProgressFn<'_>) -> Result<()> {
    let mut options = ConvertOptions::default();
    options.parent = parent.map(Into::into);
    options.rate = rate;
    // Each way of reading has its turn: the caller's thread, and others.
    options.threads = parent.map_or(0, |_| 2);
    ops::convert(&world.chain, Path::new(to), &options, progress).map(drop)
}

/// The name of the operation in the message, the file it names, and the operation.
const OPERATIONS: &[(&str, &str, Run)] = &[
    ("the merge", "/a.avhdx", |w, rate, p| merge(w, 0, rate, p)),
    ("the merge", "/base.vhdx", |w, rate, p| merge(w, 1, rate, p)),
    ("the merge", "/base.vhdx", |w, rate, p| {
        delete(w, DeleteInto::Parent, rate, p)
    }),
    ("the deletion", "/b.avhdx", |w, rate, p| {
        delete(w, DeleteInto::Children, rate, p)
    }),
    ("the rebase", "/b.avhdx", |w, rate, p| {
        ops::rebase(&w.chain, Path::new("/base.vhdx"), &rebasing(rate), p).map(drop)
    }),
    ("the detach", "/b.avhdx", |w, rate, p| {
        ops::detach(&w.chain, &rebasing(rate), p).map(drop)
    }),
    ("compacting", "/b.avhdx", |w, rate, p| {
        let mut options = CompactOptions::default();
        options.rate = rate;
        ops::compact(&w.chain, &options, p).map(drop)
    }),
    ("the conversion", "/new.raw", |w, rate, p| {
        convert(w, "/new.raw", None, rate, p)
    }),
    ("the conversion", "/new.avhdx", |w, rate, p| {
        convert(w, "/new.avhdx", Some("/a.avhdx"), rate, p)
    }),
    ("the digest", "/b.avhdx", |w, rate, p| {
        let mut options = DigestOptions::default();
        options.rate = rate;
        ops::digest(&w.chain, 0, DigestAlgorithm::Sha256, &options, p).map(drop)
    }),
    ("the comparison", "/b.avhdx", |w, rate, p| {
        let mut options = CompareOptions::default();
        options.rate = rate;
        ops::compare(&w.chain, &w.twin, &options, p).map(|difference| assert_eq!(difference, None))
    }),
];

fn same(world: &World) {
    let options = CompareOptions::default();
    assert_eq!(
        ops::compare(&world.chain, &world.twin, &options, &mut |_| true).unwrap(),
        None
    );
}

fn is_cancelled(result: Result<()>, what: &str, file: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{what}: {error:?}");
    assert_eq!(error.to_string(), format!("{file:?}: {what} was cancelled"));
    assert!(error.hint().is_some_and(|hint| hint.contains("run")), "{error:?}");
}

#[test]
fn asked_again_while_it_sleeps_and_cancelled_there() {
    for (what, file, run) in OPERATIONS {
        let world = world(64 * MIB, true);
        let (mut asked, mut last) = (0, None);
        // A byte per second: the sleep for the first bytes outlasts any test.
        let result = run(&world, 1, &mut |now| {
            assert!(now.done <= now.total, "{what}: {now:?}");
            let again = last == Some(now) && now.done > 0;
            last = Some(now);
            asked += 1;
            !again
        });
        is_cancelled(result, what, file);
        assert!(asked >= 2, "{what}");
        same(&world);
        run(&world, 0, &mut |_| true).unwrap_or_else(|e| panic!("{what}: {e:?}"));
        same(&world);
    }
}

#[test]
fn an_empty_disk_of_64_tib_is_not_crossed_before_the_first_question() {
    let world = world(64 << 40, false);
    // Compacting only looks at blocks that the table of blocks says something of.
    for (what, file, run) in OPERATIONS.iter().filter(|(what, ..)| *what != "compacting") {
        is_cancelled(run(&world, 0, &mut |_| false), what, file);
    }
}
