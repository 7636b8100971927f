//! Disks in use: threads write, zero, discard, flush and read through the handle on which the disk is merged, deleted
//! from, compacted, rebased and detached. Each thread has pages and a block of its own and knows what is in them.

#[path = "common/random.rs"]
mod random;
#[path = "common/shape.rs"]
mod shape;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use avhdx::ops;
use avhdx::options::{
    CheckpointOptions, CompactMode, CompactOptions, DeleteInto, DeleteOptions, DiskType, MergeMode, MergeOptions,
    RebaseOptions, ZeroFlags,
};
use avhdx::storage::MemoryFileSystem;
use avhdx::Chain;
use random::Random;
use shape::{check, options, path, MIB};

const THREADS: u64 = 4;
const PAGE: u64 = 4096;
/// MiB whose pages the threads own in turn; behind them each has one to itself.
const SHARED: u64 = 8;
const SIZE: u64 = (SHARED + THREADS) * MIB;
const ROUNDS: u64 = 24;
const LIMIT: Duration = Duration::from_secs(20);

/// What one thread knows of the disk: the number in each page, 0 for zeros.
struct Worker {
    id: u64,
    random: Random,
    pages: Vec<u64>,
}

fn filled(page: u64, number: u64) -> Vec<u8> {
    let word = match number {
        0 => 0,
        number => page << 40 | number,
    };
    word.to_le_bytes().repeat((PAGE / 8) as usize)
}

impl Worker {
    fn new(id: u64, seed: u64) -> Worker {
        Worker {
            id,
            random: Random(seed * THREADS + id),
            pages: vec![0; (SIZE / PAGE) as usize],
        }
    }

    /// A page of this thread.
    fn pick(&mut self) -> u64 {
        let per_mib = MIB / PAGE;
        match self.random.chance(3) {
            true => (SHARED + self.id) * per_mib + self.random.below(per_mib),
            // Few of them, so that what an operation moved is soon read and written again.
            false => self.random.below(SHARED * per_mib / THREADS) / 8 * 8 * THREADS + self.id,
        }
    }

    fn step(&mut self, chain: &Chain, number: u64) {
        let page = self.pick();
        match self.random.below(20) {
            0..7 => {
                let fua = self.random.chance(40);
                chain.write(&filled(page, number), page * PAGE, fua).unwrap();
                self.pages[page as usize] = number;
            }
            7 => {
                let flags = ZeroFlags {
                    may_unmap: self.random.chance(2),
                    ..ZeroFlags::default()
                };
                chain.zero(page * PAGE, PAGE, flags).unwrap();
                self.pages[page as usize] = 0;
            }
            8 if self.random.chance(8) => chain.flush().unwrap(),
            9 if self.random.chance(20) => {
                // All of the block.
                let at = (SHARED + self.id) * MIB;
                let flags = ZeroFlags {
                    may_unmap: true,
                    ..ZeroFlags::default()
                };
                let zero = self.random.chance(2);
                match zero {
                    true => chain.zero(at, MIB, flags).unwrap(),
                    false => chain.discard(at, MIB, false).unwrap(),
                }
                let mut now = vec![0xEE; MIB as usize];
                chain.read(&mut now, at).unwrap();
                for (page, now) in (at / PAGE..).zip(now.chunks(PAGE as usize)) {
                    let number = &mut self.pages[page as usize];
                    // A discard leaves larger blocks alone.
                    if now.iter().all(|&byte| byte == 0) {
                        *number = 0;
                    }
                    assert!(!zero || *number == 0);
                    assert!(now == filled(page, *number), "thread {}, page {page:#x}", self.id);
                }
            }
            _ => self.verify(chain, page),
        }
    }

    fn verify(&self, chain: &Chain, page: u64) {
        let mut found = vec![0xEE; PAGE as usize];
        chain.read(&mut found, page * PAGE).unwrap();
        let number = self.pages[page as usize];
        assert!(
            found == filled(page, number),
            "thread {}, page {page:#x}: {:02x?}, wanted number {number}",
            self.id,
            &found[..8]
        );
    }

    fn verify_all(&self, chain: &Chain) {
        let per_mib = MIB / PAGE;
        for page in 0..SHARED * per_mib {
            if page % THREADS == self.id {
                self.verify(chain, page);
            }
        }
        for page in (SHARED + self.id) * per_mib..(SHARED + self.id + 1) * per_mib {
            self.verify(chain, page);
        }
    }
}

/// A disk in use and what is done to it.
struct Live {
    fs: MemoryFileSystem,
    chain: Arc<Chain>,
    next: u64,
    steps: Arc<AtomicU64>,
}

impl Live {
    fn checkpoint(&mut self, block_mib: u64) {
        let mut options = CheckpointOptions::default();
        options.block_size = (block_mib * MIB) as u32;
        self.next += 1;
        ops::checkpoint(&self.chain, &path(&format!("{}.avhdx", self.next)), &options).unwrap();
        self.wait();
    }

    /// Until something was done to the disk.
    fn wait(&self) {
        let until = self.steps.load(Ordering::Relaxed) + 300;
        let started = Instant::now();
        while self.steps.load(Ordering::Relaxed) < until && started.elapsed() < LIMIT {
            std::thread::yield_now();
        }
    }
}

/// Runs `operation` so many times while the disk is in use.
fn live(seed: u64, mut operation: impl FnMut(&mut Live, u64)) {
    let started = Instant::now();
    let fs = MemoryFileSystem::new();
    let open = options(&fs);
    shape::create(&open, "base.vhdx", DiskType::Dynamic, SIZE, 1, None);
    let mut live = Live {
        chain: Arc::new(Chain::open(&path("base.vhdx"), &open).unwrap()),
        fs,
        next: 0,
        steps: Arc::default(),
    };
    let stop = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..THREADS)
        .map(|id| {
            let (chain, stop, steps) = (live.chain.clone(), stop.clone(), live.steps.clone());
            std::thread::spawn(move || {
                let mut worker = Worker::new(id, seed);
                while !stop.load(Ordering::Relaxed) {
                    let number = steps.fetch_add(1, Ordering::Relaxed) + 1;
                    worker.step(&chain, number);
                }
                worker
            })
        })
        .collect();
    let mut rounds = 0;
    while rounds < ROUNDS && started.elapsed() < LIMIT && workers.iter().all(|w| !w.is_finished()) {
        live.wait();
        operation(&mut live, rounds);
        rounds += 1;
    }
    live.wait();
    stop.store(true, Ordering::Relaxed);
    let workers: Vec<Worker> = workers.into_iter().map(|w| w.join().unwrap()).collect();
    let leaf = live.chain.layer_path(0).unwrap();
    workers.iter().for_each(|w| w.verify_all(&live.chain));
    Arc::try_unwrap(live.chain).unwrap().close().unwrap();
    for file in live.fs.paths() {
        check(&file, &open).unwrap();
    }
    let chain = Chain::open(&leaf, &open).unwrap();
    workers.iter().for_each(|w| w.verify_all(&chain));
    println!(
        "{rounds} rounds, {} steps, {:.1} s",
        live.steps.load(Ordering::Relaxed),
        started.elapsed().as_secs_f64()
    );
    assert!(rounds >= 3, "only {rounds} rounds");
}

const MODES: [MergeMode; 3] = [MergeMode::Copy, MergeMode::Consume, MergeMode::Auto];

#[test]
fn merges() {
    live(1, |live, round| {
        live.checkpoint(1);
        live.checkpoint(1 + round % 2);
        live.checkpoint(2);
        let mut options = MergeOptions::default();
        options.mode = MODES[(round % 3) as usize];
        options.threads = (round / 2 % 3) as usize;
        let middle = round % 2 == 0;
        // Below the leaf, then with it; in one pass or two.
        if middle {
            ops::merge(&live.chain, 1, 2, &options, &mut |_| true).unwrap();
            live.wait();
        }
        let base = live.chain.layer_count() - 1;
        ops::merge(&live.chain, 0, base, &options, &mut |_| true).unwrap();
        assert_eq!(live.chain.layer_count(), 1);
    });
}

#[test]
fn deletes_into_the_parent() {
    live(2, |live, round| {
        live.checkpoint(1);
        live.checkpoint(2);
        let mut options = DeleteOptions::default();
        (options.into, options.mode) = (DeleteInto::Parent, MODES[(round % 3) as usize]);
        ops::delete_layer(&live.chain, 1, &options, &mut |_| true).unwrap();
        assert_eq!(live.chain.layer_count(), 2 + round as usize);
    });
}

#[test]
fn deletes_into_the_children() {
    live(3, |live, round| {
        live.checkpoint(1);
        live.checkpoint(1 + round % 2);
        // Another child of what is deleted.
        let open = options(&live.fs);
        let parent = format!("{}.avhdx", live.next - 1);
        let other = format!("other-{round}.avhdx");
        shape::create(&open, &other, DiskType::Differencing, 0, 1, Some(&parent));
        let read = || {
            let mut open = options(&live.fs);
            open.read_only = true;
            let mut all = vec![0; SIZE as usize];
            Chain::open(&path(&other), &open).unwrap().read(&mut all, 0).unwrap();
            all
        };
        let before = read();
        let mut options = DeleteOptions::default();
        options.into = DeleteInto::Children;
        ops::delete_layer(&live.chain, 1, &options, &mut |_| true).unwrap();
        assert!(read() == before, "the other child reads differently");
    });
}

#[test]
fn compacts() {
    live(4, |live, round| {
        if round % 4 == 0 {
            live.checkpoint(1);
        }
        let mut options = CompactOptions::default();
        options.mode = [CompactMode::Full, CompactMode::Prezeroed, CompactMode::Quick][(round % 3) as usize];
        ops::compact(&live.chain, &options, &mut |_| true).unwrap();
    });
}

#[test]
fn rebases() {
    let other = |live: &Live, name: &str, seed: u8| {
        let open = options(&live.fs);
        shape::create(&open, name, DiskType::Dynamic, SIZE, 1, None);
        let chain = Chain::open(&path(name), &open).unwrap();
        chain.write(&[seed; 3 * MIB as usize / 2], MIB, false).unwrap();
        chain.close().unwrap();
    };
    live(5, |live, round| {
        live.checkpoint(1 + round % 2);
        let to = format!("other-{round}.vhdx");
        other(live, &to, round as u8 + 1);
        ops::rebase(&live.chain, &path(&to), &RebaseOptions::default(), &mut |_| true).unwrap();
        assert!(live.chain.layer_path(1).unwrap().ends_with(to));
    });
}

#[test]
fn detaches() {
    live(6, |live, round| {
        live.checkpoint(1 + round % 2);
        ops::detach(&live.chain, &RebaseOptions::default(), &mut |_| true).unwrap();
        assert_eq!(live.chain.layer_count(), 1);
    });
}
