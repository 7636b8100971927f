//! What operations cost in calls of the storage, counted: a read is one, whatever the depth; a flush is one barrier, or
//! two when metadata changed, however much did.

#[path = "common/shape.rs"]
mod shape;

use std::io::IoSliceMut;
use std::sync::Arc;

use avhdx::ops;
use avhdx::options::{CheckpointOptions, DiskType, OpenOptions};
use avhdx::storage::fault::FaultFileSystem;
use avhdx::storage::MemoryFileSystem;
use avhdx::Chain;
use shape::{create, options, path, MIB};

struct Counted {
    fs: FaultFileSystem,
    chain: Chain,
}

/// Calls, and those of them that are flushes.
#[derive(Debug, PartialEq, Eq)]
struct Cost {
    calls: u64,
    flushes: u64,
}

const ONE_CALL: Cost = Cost { calls: 1, flushes: 0 };

impl Counted {
    /// A full base, and `depth - 1` children without data.
    fn new(depth: usize) -> Counted {
        let fs = FaultFileSystem::new(Arc::new(MemoryFileSystem::new()));
        let open = options(&fs);
        create(&open, "0.vhdx", DiskType::Dynamic, 64 * MIB, 1, None);
        let chain = Chain::open(&path("0.vhdx"), &open).unwrap();
        for at in 0..64 {
            chain.write(&vec![7; MIB as usize], at * MIB, false).unwrap();
        }
        for layer in 1..depth {
            ops::checkpoint(&chain, &path(&format!("{layer}.avhdx")), &CheckpointOptions::default()).unwrap();
        }
        chain.flush().unwrap();
        Counted { fs, chain }
    }

    fn cost(&self, operation: impl FnOnce(&Chain)) -> Cost {
        let (calls, flushes) = (self.fs.calls(), self.fs.flushes());
        operation(&self.chain);
        Cost {
            calls: self.fs.calls() - calls,
            flushes: self.fs.flushes() - flushes,
        }
    }

    fn read(&self, at: u64) -> Cost {
        self.cost(|chain| chain.read(&mut [0; 4096], at).unwrap())
    }

    fn write(&self, at: u64) -> Cost {
        self.cost(|chain| chain.write(&[9; 4096], at, false).unwrap())
    }

    fn flush(&self) -> Cost {
        self.cost(|chain| chain.flush().unwrap())
    }
}

#[test]
fn a_read_is_one_call_at_any_depth() {
    for depth in [1, 8, 64] {
        let disk = Counted::new(depth);
        disk.read(0);
        for at in [4096, MIB, 63 * MIB] {
            assert_eq!(disk.read(at), ONE_CALL, "depth {depth}, {at:#x}");
        }
        // What is contiguous in the file is one as well.
        let cost = disk.cost(|chain| chain.read(&mut vec![0; MIB as usize], 5 * MIB).unwrap());
        assert_eq!(cost, ONE_CALL, "depth {depth}, a block");
        let mut pages = vec![[0; 4096]; 64];
        let mut bufs: Vec<_> = pages.iter_mut().map(|page| IoSliceMut::new(page)).collect();
        let cost = disk.cost(|chain| chain.read_vectored(&mut bufs, 7 * MIB + 512).unwrap());
        assert_eq!(cost, ONE_CALL, "depth {depth}, a vector");
        assert!(pages.iter().all(|page| *page == [7; 4096]));
    }
}

#[test]
fn a_write_in_place_is_one_call_and_its_flush_one_barrier() {
    let disk = Counted::new(1);
    // The first says in the headers that the file is in use.
    disk.write(0);
    disk.flush();
    for at in [0, 4096, 40 * MIB] {
        assert_eq!(disk.write(at), ONE_CALL);
    }
    assert_eq!(disk.flush(), Cost { calls: 1, flushes: 1 });
    assert_eq!(disk.flush(), Cost { calls: 0, flushes: 0 }, "nothing to make durable");
}

#[test]
fn allocating_writes_grow_the_file_seldom_and_their_flush_is_two_barriers() {
    let disk = Counted::new(2);
    disk.write(0);
    disk.flush();
    let mut calls = 0;
    for block in 1..32 {
        let cost = disk.write(2 * block * MIB);
        assert_eq!(cost.flushes, 0);
        calls += cost.calls;
    }
    // 31 blocks of 2 MiB: one write each, and the file grows by more than one at a time.
    assert!(calls < 31 + 8, "{calls} calls");
    // Payload, one entry of the log, and the barriers before and after it.
    assert_eq!(disk.flush(), Cost { calls: 3, flushes: 2 });
    assert_eq!(disk.flush(), Cost { calls: 0, flushes: 0 }, "nothing to make durable");
    // Bits alone change in a block that has space.
    assert_eq!(disk.write(2 * MIB + 8192), ONE_CALL);
    assert_eq!(disk.flush(), Cost { calls: 3, flushes: 2 });
}

#[test]
fn opening_reads_little_of_each_file() {
    let open = |depth: usize| {
        let disk = Counted::new(depth);
        disk.chain.close().unwrap();
        let before = disk.fs.calls();
        let leaf = match depth {
            1 => path("0.vhdx"),
            _ => path(&format!("{}.avhdx", depth - 1)),
        };
        let open = OpenOptions::read_only().on(Arc::new(disk.fs.clone()));
        let chain = Chain::open(&leaf, &open).unwrap();
        chain.read(&mut [0; 4096], 0).unwrap();
        disk.fs.calls() - before
    };
    let (one, few, many) = (open(1), open(8), open(64));
    println!("calls to open and read: {one}, {few}, {many} at depth 1, 8, 64");
    assert!(many < 64 * 32, "{many} calls");
    assert!(
        many - few <= (few - one) * 8 + 8,
        "the cost of a layer grows with the depth"
    );
}
