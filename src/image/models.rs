//! The protocols between threads, each in all its interleavings: `scripts/models`.
//!
//! The code under test is that of `claims`, `turns`, `reuse` and `pool`; what they protect is replaced by words. Where loom would
//! not notice a missing order because it hands out the newest value, the word is `Relaxed`.

use loom::sync::atomic::{AtomicU64, Ordering::*};
use loom::sync::Arc;
use loom::thread;

use super::claims::Claims;
use super::pool::Slot;
use super::reuse::Reuse;
use super::turns::Turns;
use crate::sync::{fence, Mutex, RwLock};
use crate::units::BlockIndex;

fn model(threads: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    // More switches than that between threads that can go on find nothing new here, and take hours.
    builder.preemption_bound = Some(3);
    builder.check(threads);
}

// ---- claims ----

/// A block that two threads find absent gets one place, and both writes land there.
#[test]
fn a_block_is_allocated_once() {
    model(|| {
        let claims = Arc::new(Claims::new());
        let (place, taken) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (claims, place, taken) = (claims.clone(), place.clone(), taken.clone());
                thread::spawn(move || {
                    {
                        let _claim = claims.shared(BlockIndex(7));
                        if place.load(Relaxed) != 0 {
                            return;
                        }
                    }
                    let _claim = claims.exclusive(BlockIndex(7));
                    if place.load(Relaxed) == 0 {
                        place.store(taken.fetch_add(1, Relaxed) + 1, Relaxed);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!((place.load(Relaxed), taken.load(Relaxed)), (1, 1));
    });
}

/// A write in place does not go to a place that a discard gave up: it holds the block, shared, from the lookup on.
#[test]
fn a_write_in_place_never_meets_a_discard() {
    model(|| {
        let claims = Arc::new(Claims::new());
        let (place, content) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicU64::new(10)));
        let writer = {
            let (claims, place, content) = (claims.clone(), place.clone(), content.clone());
            thread::spawn(move || {
                let _claim = claims.shared(BlockIndex(3));
                if place.load(Relaxed) == 1 {
                    content.store(11, Relaxed);
                }
            })
        };
        {
            let _claim = claims.exclusive(BlockIndex(3));
            place.store(0, Relaxed);
            // The place is somebody else's.
            content.store(99, Relaxed);
        }
        writer.join().unwrap();
        assert_eq!(content.load(Relaxed), 99);
    });
}

// ---- turns ----

/// The metadata of an image, and its file.
#[derive(Default)]
struct File {
    /// Changes in memory: who made them.
    dirty: Vec<usize>,
}

/// Whoever commits finds its change durable, whether it led or followed; nothing is logged twice.
#[test]
fn a_commit_covers_what_was_completed_before_it() {
    model(|| {
        let turns = Arc::new(Turns::new(()));
        let meta = Arc::new(Mutex::new(File::default()));
        let durable: Arc<[AtomicU64; 3]> = Arc::new([AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)]);
        let change = |id: usize, turns: Arc<Turns<()>>, meta: Arc<Mutex<File>>, durable: Arc<[AtomicU64; 3]>| {
            meta.lock().dirty.push(id);
            turns.complete();
            turns
                .commit(|_| {
                    let snapshot = std::mem::take(&mut meta.lock().dirty);
                    for change in snapshot {
                        durable[change].fetch_add(1, Relaxed);
                    }
                    Ok::<_, ()>(())
                })
                .unwrap();
            assert_eq!(durable[id].load(Relaxed), 1, "change {id} is not durable");
        };
        let threads: Vec<_> = (0..2)
            .map(|id| {
                let (turns, meta, durable) = (turns.clone(), meta.clone(), durable.clone());
                thread::spawn(move || change(id, turns, meta, durable))
            })
            .collect();
        change(2, turns, meta, durable);
        threads.into_iter().for_each(|t| t.join().unwrap());
    });
}

/// A failed leader does not make others believe that their change is durable.
#[test]
fn a_failed_leader_covers_nothing() {
    model(|| {
        let turns = Arc::new(Turns::new(0));
        let log = Arc::new(AtomicU64::new(0));
        let change = |turns: Arc<Turns<i32>>, log: Arc<AtomicU64>| {
            turns.complete();
            let result = turns.commit(|calls| {
                *calls += 1;
                match *calls {
                    1 => Err(()),
                    _ => {
                        log.store(1, Relaxed);
                        Ok(())
                    }
                }
            });
            assert!(result.is_err() || log.load(Relaxed) == 1);
        };
        let other = {
            let (turns, log) = (turns.clone(), log.clone());
            thread::spawn(move || change(turns, log))
        };
        change(turns, log);
        other.join().unwrap();
    });
}

// ---- reuse ----

/// One block whose place, once it is without it, is another's. Content and place are read without any claim.
#[test]
fn a_reader_never_sees_the_next_owner() {
    const OLD: u64 = 1;
    const OTHER: u64 = 2;
    model(|| {
        let reuse = Arc::new(Reuse::new());
        // Not 0: the block has the place.
        let entry = Arc::new(AtomicU64::new(1));
        let content = Arc::new(AtomicU64::new(OLD));
        let writer = {
            let (reuse, entry, content) = (reuse.clone(), entry.clone(), content.clone());
            thread::spawn(move || {
                entry.store(0, Release);
                reuse.announce();
                content.store(OTHER, Relaxed);
            })
        };
        let read = || match entry.load(Acquire) {
            0 => 0,
            _ => content.load(Relaxed),
        };
        for _ in 0..2 {
            if let Some(found) = reuse.unchanged(read) {
                assert_ne!(found, OTHER, "read what belongs to another block");
            }
        }
        writer.join().unwrap();
        assert_eq!(reuse.unchanged(read), Some(0));
    });
}

/// A block that moves is copied before its entry changes, and its old place is announced before it is used again.
#[test]
fn a_moved_block_reads_the_same() {
    model(|| {
        let reuse = Arc::new(Reuse::new());
        let entry = Arc::new(AtomicU64::new(0));
        let places = Arc::new([AtomicU64::new(5), AtomicU64::new(0)]);
        let mover = {
            let (reuse, entry, places) = (reuse.clone(), entry.clone(), places.clone());
            thread::spawn(move || {
                reuse.announce();
                places[1].store(5, Relaxed);
                entry.store(1, Release);
                reuse.announce();
                places[0].store(7, Relaxed);
            })
        };
        let read = || places[entry.load(Acquire) as usize].load(Relaxed);
        if let Some(found) = reuse.unchanged(read) {
            assert_eq!(found, 5);
        }
        mover.join().unwrap();
    });
}

// ---- frames ----

/// A word of a page, looked at without holding the frame, is that page's, though the frame goes to another page.
#[test]
fn a_word_is_that_of_its_page() {
    model(|| {
        let (slot, word) = (Arc::new(Slot::empty()), Arc::new(AtomicU64::new(7)));
        slot.set(0, 1);
        let other = {
            let (slot, word) = (slot.clone(), word.clone());
            thread::spawn(move || {
                assert!(slot.clear_unless(|| false));
                // As Page::clear does.
                fence(Release);
                word.store(8, Relaxed);
                // And back, in the same frame.
                fence(Release);
                word.store(7, Relaxed);
                slot.set(0, 2);
            })
        };
        for _ in 0..2 {
            if let Some(found) = slot.read(|_| word.load(Relaxed)) {
                assert_eq!(found, 7, "the word of another page");
            }
        }
        other.join().unwrap();
        assert_eq!(slot.read(|_| word.load(Relaxed)), Some(7));
    });
}

/// A frame that somebody holds does not go to another page.
#[test]
fn a_held_frame_stays() {
    model(|| {
        let (slot, holders) = (Arc::new(Slot::empty()), Arc::new(AtomicU64::new(0)));
        let word = Arc::new(AtomicU64::new(7));
        slot.set(0, 1);
        let other = {
            let (slot, holders, word) = (slot.clone(), holders.clone(), word.clone());
            thread::spawn(move || {
                if slot.clear_unless(|| holders.load(Relaxed) > 0) {
                    word.store(8, Relaxed);
                }
            })
        };
        let held = slot.read(|_| {
            holders.fetch_add(1, Relaxed);
            fence(SeqCst);
        });
        if held.is_some() {
            assert_eq!(word.load(Relaxed), 7, "the frame went while it was held");
        }
        other.join().unwrap();
        if held.is_some() {
            assert_eq!(
                (slot.frame(), word.load(Relaxed)),
                (Some(0), 7),
                "the frame went while it was held"
            );
        }
    });
}

// ---- the switch to other layers ----

/// What `Chain` does with its gate and its snapshot, with a lock for the atomic pointer: a write goes to the leaf of the
/// moment and no layer changes once it has a child; a reader sees every write completed before it began.
#[test]
fn a_checkpoint_loses_no_write() {
    struct Layer {
        sealed: AtomicU64,
        content: AtomicU64,
        parent: Option<Arc<Layer>>,
    }
    let layer = |parent| {
        Arc::new(Layer {
            sealed: AtomicU64::new(0),
            content: AtomicU64::new(0),
            parent,
        })
    };
    model(move || {
        let gate = Arc::new(RwLock::new(()));
        let leaf = Arc::new(Mutex::new(layer(None)));
        let writer = {
            let (gate, leaf) = (gate.clone(), leaf.clone());
            thread::spawn(move || {
                for number in 1..3 {
                    {
                        let _writing = gate.read();
                        let leaf = leaf.lock().clone();
                        assert_eq!(leaf.sealed.load(Relaxed), 0, "a write to a parent");
                        leaf.content.store(number, Release);
                    }
                    let top = leaf.lock().clone();
                    let found = match top.content.load(Acquire) {
                        0 => top.parent.as_ref().map_or(0, |parent| parent.content.load(Acquire)),
                        found => found,
                    };
                    assert_eq!(found, number);
                }
            })
        };
        {
            let _nobody_writes = gate.write();
            let old = leaf.lock().clone();
            old.sealed.store(1, Relaxed);
            *leaf.lock() = layer(Some(old));
        }
        writer.join().unwrap();
    });
}
