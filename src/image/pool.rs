//! The memory in which pages of metadata are held: frames of 4 KiB that all tables of a chain share.
//!
//! A frame is never given back before the chain goes, only to another page, so that a reader may look at one without
//! holding it: what it read counts if the table still says afterwards that the frame is that of the page ([`Slot`]).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::sync::{fence, AtomicU64};

/// Words in a page.
pub(crate) const PAGE_WORDS: u64 = 512;
/// Bytes in a page.
pub(crate) const PAGE_BYTES: usize = 4096;

/// 512 words, as they are on disk but in the host's byte order.
#[derive(Debug)]
pub(crate) struct Page {
    words: [std::sync::atomic::AtomicU64; PAGE_WORDS as usize],
    /// One bit for each word that was found valid.
    checked: [std::sync::atomic::AtomicU64; PAGE_WORDS as usize / 64],
    /// Used since the last eviction sweep.
    touched: AtomicBool,
}

impl Page {
    fn new() -> Self {
        Page {
            words: [const { std::sync::atomic::AtomicU64::new(0) }; PAGE_WORDS as usize],
            checked: [const { std::sync::atomic::AtomicU64::new(0) }; PAGE_WORDS as usize / 64],
            touched: AtomicBool::new(true),
        }
    }

    /// Forgets what another page was.
    fn clear(&self) {
        // ORDER: whoever sees a word of the next page sees that the table took the frame from the one before.
        fence(Ordering::Release);
        self.words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        self.checked.iter().for_each(|bits| bits.store(0, Ordering::Relaxed));
        self.touched.store(true, Ordering::Relaxed);
    }

    /// Fills a page that no table has yet.
    pub(crate) fn fill(&self, bytes: &[u8; PAGE_BYTES]) {
        for (word, raw) in self.words.iter().zip(bytes.chunks_exact(8)) {
            let mut le = [0; 8];
            le.copy_from_slice(raw);
            word.store(u64::from_le_bytes(le), Ordering::Relaxed);
        }
    }

    pub(crate) fn to_bytes(&self) -> [u8; PAGE_BYTES] {
        let mut bytes = [0; PAGE_BYTES];
        for (word, raw) in self.words.iter().zip(bytes.chunks_exact_mut(8)) {
            raw.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        bytes
    }

    /// The word at `index` modulo the page size.
    #[inline]
    pub(crate) fn word(&self, index: u64) -> &std::sync::atomic::AtomicU64 {
        &self.words[(index % PAGE_WORDS) as usize]
    }

    /// Whether the word was found valid. What is stored over a valid one is valid.
    #[inline]
    pub(super) fn is_checked(&self, index: u64) -> bool {
        let bit = index % PAGE_WORDS;
        self.checked[(bit / 64) as usize].load(Ordering::Acquire) >> (bit % 64) & 1 != 0
    }

    pub(super) fn set_checked(&self, index: u64) {
        let bit = index % PAGE_WORDS;
        self.checked[(bit / 64) as usize].fetch_or(1 << (bit % 64), Ordering::Release);
    }

    #[inline]
    pub(super) fn touch(&self) {
        // A store to what many threads read is not for free.
        if !self.touched.load(Ordering::Relaxed) {
            self.touched.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn take_touched(&self) -> bool {
        self.touched.swap(false, Ordering::Relaxed)
    }
}

/// Bits of a slot that say which frame; those above tell its owners apart.
const FRAME_BITS: u32 = 30;

/// A table's word for a page: which frame it is in, if any.
#[derive(Debug)]
pub(crate) struct Slot(AtomicU64);

impl Slot {
    pub(crate) fn empty() -> Self {
        Slot(AtomicU64::new(0))
    }

    /// The frame, if there is one.
    pub(crate) fn frame(&self) -> Option<u32> {
        Slot::of(self.0.load(Ordering::Acquire))
    }

    #[inline]
    fn of(word: u64) -> Option<u32> {
        // No stamp is 0.
        (word != 0).then_some((word & ((1 << FRAME_BITS) - 1)) as u32)
    }

    /// What `read` finds in the frame; `None` when there is no frame, or it went to another page meanwhile.
    #[inline]
    pub(crate) fn read<T>(&self, read: impl FnOnce(u32) -> T) -> Option<T> {
        let before = self.0.load(Ordering::Acquire);
        let found = read(Slot::of(before)?);
        // ORDER: what was read is not newer than the slot that is looked at next.
        fence(Ordering::Acquire);
        (self.0.load(Ordering::Relaxed) == before).then_some(found)
    }

    /// The page is in this frame from now on. `stamp` differs from that of every other owner of the frame.
    pub(crate) fn set(&self, frame: u32, stamp: u64) {
        let word = stamp << FRAME_BITS | u64::from(frame);
        self.0.store(word, Ordering::Release);
    }

    /// The page is in no frame; `still_wanted` is asked afterwards and may bring it back. Whether it is gone.
    pub(crate) fn clear_unless(&self, still_wanted: impl FnOnce() -> bool) -> bool {
        let word = self.0.load(Ordering::Relaxed);
        self.0.store(0, Ordering::Release);
        // ORDER: whoever takes hold of the frame looks at the slot afterwards, and here it is the other way round: one of
        // the two notices.
        fence(Ordering::SeqCst);
        let wanted = still_wanted();
        if wanted {
            self.0.store(word, Ordering::Release);
        }
        !wanted
    }
}

/// Bits of a frame's number that say where in its part of the pool it is; those above say which part.
const PLACE_BITS: u32 = 25;
/// Frames of the first part; each part has twice those of the one before.
const FIRST_PART: u32 = 64;
const PARTS: usize = (PLACE_BITS - FIRST_PART.ilog2() + 1) as usize;

type Part = Box<[OnceLock<Arc<Page>>]>;

/// The frames, and how much memory the tables of one chain may take.
#[derive(Debug)]
pub(crate) struct Pool {
    limit: u64,
    used: std::sync::atomic::AtomicU64,
    parts: [OnceLock<Part>; PARTS],
    free: Mutex<Free>,
}

#[derive(Debug, Default)]
struct Free {
    frames: Vec<u32>,
    /// So many were ever used.
    next: u32,
    /// Counts the owners of frames.
    stamp: u64,
}

impl Pool {
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Pool {
            limit,
            used: std::sync::atomic::AtomicU64::new(0),
            parts: std::array::from_fn(|_| OnceLock::new()),
            free: Mutex::default(),
        })
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn sub(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn exceeded(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.limit
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// What is in a frame that was taken at some time.
    #[inline]
    pub(super) fn page(&self, frame: u32) -> Option<&Arc<Page>> {
        let part = self.parts.get((frame >> PLACE_BITS) as usize)?.get()?;
        part.get((frame & ((1 << PLACE_BITS) - 1)) as usize)?.get()
    }

    /// A frame of zeros that nobody holds, and a stamp for its owner.
    pub(super) fn take(&self) -> (u32, &Arc<Page>, u64) {
        let mut free = self.free.lock();
        free.stamp += 1;
        let stamp = free.stamp;
        // A change may outlive the table it was made for: what it holds stays as it is.
        let found = (0..free.frames.len()).rev().find_map(|i| {
            let page = self.page(free.frames[i])?;
            (Arc::strong_count(page) == 1).then_some((i, page))
        });
        if let Some((i, page)) = found {
            let frame = free.frames.swap_remove(i);
            drop(free);
            page.clear();
            return (frame, page, stamp);
        }
        let number = free.next + FIRST_PART;
        free.next += 1;
        drop(free);
        let part = number.ilog2() - FIRST_PART.ilog2();
        let (size, place) = (FIRST_PART << part, number - (FIRST_PART << part));
        let pages = self.parts[part as usize].get_or_init(|| (0..size).map(|_| OnceLock::new()).collect());
        let page = pages[place as usize].get_or_init(|| Arc::new(Page::new()));
        (part << PLACE_BITS | place, page, stamp)
    }

    /// A frame that no slot names any more.
    pub(super) fn give_back(&self, frame: u32) {
        self.free.lock().frames.push(frame);
    }
}
