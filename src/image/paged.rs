//! A sparse table of 64-bit words backed by 4 KiB pages of a file: the BAT, the sector bitmaps, the composite map.
//!
//! A lookup of a resident word takes no lock and does no I/O. Pages come in on first touch and, when clean, go out again
//! under memory pressure, so that the memory a disk takes follows what is touched and not its size.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

/// Words in a page.
pub(crate) const PAGE_WORDS: u64 = 512;
/// Bytes in a page.
pub(crate) const PAGE_BYTES: usize = 4096;
/// Pages under one second-level table.
const FANOUT: u64 = 512;
/// Pages a table keeps whatever the budget says, so that one operation's working set always fits.
const FLOOR: usize = 64;
/// Locks that keep two threads from loading the same page.
const LOAD_STRIPES: usize = 16;

/// 512 words, as they are on disk but in the host's byte order.
#[derive(Debug)]
pub(crate) struct Page {
    words: [AtomicU64; PAGE_WORDS as usize],
    /// Used since the last eviction sweep.
    touched: AtomicBool,
}

impl Page {
    pub(crate) fn zeroed() -> Self {
        Page {
            words: [const { AtomicU64::new(0) }; PAGE_WORDS as usize],
            touched: AtomicBool::new(true),
        }
    }

    pub(crate) fn from_bytes(bytes: &[u8; PAGE_BYTES]) -> Self {
        let page = Page::zeroed();
        for (word, raw) in page.words.iter().zip(bytes.chunks_exact(8)) {
            let mut le = [0; 8];
            le.copy_from_slice(raw);
            word.store(u64::from_le_bytes(le), Ordering::Relaxed);
        }
        page
    }

    pub(crate) fn to_bytes(&self) -> [u8; PAGE_BYTES] {
        let mut bytes = [0; PAGE_BYTES];
        for (word, raw) in self.words.iter().zip(bytes.chunks_exact_mut(8)) {
            raw.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        bytes
    }

    /// The word at `index` modulo the page size.
    pub(crate) fn word(&self, index: u64) -> &AtomicU64 {
        &self.words[(index % PAGE_WORDS) as usize]
    }
}

/// Memory shared by the tables of one chain.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u64,
    used: AtomicU64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Budget {
            limit,
            used: AtomicU64::new(0),
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
}

const SLOT_BYTES: u64 = size_of::<ArcSwapOption<Page>>() as u64;
type Middle = Box<[ArcSwapOption<Page>]>;

/// The table. Page numbers are below the count given to [`PagedTable::new`].
#[derive(Debug)]
pub(crate) struct PagedTable {
    top: Box<[OnceLock<Middle>]>,
    pages: u64,
    loading: [Mutex<()>; LOAD_STRIPES],
    /// Numbers of the resident pages, in the order the next sweep visits them.
    resident: Mutex<std::collections::VecDeque<u64>>,
    budget: Arc<Budget>,
}

impl PagedTable {
    pub(crate) fn new(pages: u64, budget: Arc<Budget>) -> Self {
        PagedTable {
            top: (0..pages.div_ceil(FANOUT)).map(|_| OnceLock::new()).collect(),
            pages,
            loading: std::array::from_fn(|_| Mutex::new(())),
            resident: Mutex::new(std::collections::VecDeque::new()),
            budget,
        }
    }

    fn slot(&self, page: u64) -> &ArcSwapOption<Page> {
        debug_assert!(page < self.pages);
        let middle = self.top[(page / FANOUT) as usize].get_or_init(|| {
            // Small disks are opened often, and an empty slot is not free of cost when it goes.
            let slots = FANOUT.min(self.pages - page / FANOUT * FANOUT);
            self.budget.add(slots * SLOT_BYTES);
            (0..slots).map(|_| ArcSwapOption::empty()).collect()
        });
        &middle[(page % FANOUT) as usize]
    }

    /// The word at `index` if its page is resident.
    pub(crate) fn peek(&self, index: u64) -> Option<u64> {
        let middle = self.top.get((index / PAGE_WORDS / FANOUT) as usize)?.get()?;
        let page = middle.get((index / PAGE_WORDS % FANOUT) as usize)?.load();
        let page = page.as_ref()?;
        if !page.touched.load(Ordering::Relaxed) {
            page.touched.store(true, Ordering::Relaxed);
        }
        Some(page.word(index).load(Ordering::Acquire))
    }

    /// The page if it is resident.
    pub(crate) fn resident(&self, page: u64) -> Option<Arc<Page>> {
        self.slot(page).load_full()
    }

    /// The page, brought in with `load` on first touch. Not to be called with a lock held that eviction takes.
    pub(crate) fn page<E>(&self, page: u64, load: impl FnOnce() -> Result<Page, E>) -> Result<Arc<Page>, E> {
        if let Some(found) = self.resident(page) {
            return Ok(found);
        }
        // Held while reading: a page loaded by somebody else, changed, written and evicted in the meantime would
        // otherwise be replaced by what this thread read before.
        let _loading = self.loading[(page % LOAD_STRIPES as u64) as usize].lock();
        if let Some(found) = self.resident(page) {
            return Ok(found);
        }
        let fresh = Arc::new(load()?);
        self.insert(page, fresh.clone());
        Ok(fresh)
    }

    fn insert(&self, page: u64, content: Arc<Page>) {
        self.slot(page).store(Some(content));
        self.resident.lock().push_back(page);
        self.budget.add(PAGE_BYTES as u64);
    }

    /// Whether it is time to call [`PagedTable::evict`].
    pub(crate) fn wants_eviction(&self) -> bool {
        self.budget.exceeded() && self.resident.lock().len() > FLOOR
    }

    /// Drops pages not used since the last sweep until the budget holds or a full round is done. The caller holds the
    /// lock under which pages are changed; `pinned` says which must stay. A page that somebody holds stays too, or a
    /// change could never gather all of its pages.
    pub(crate) fn evict(&self, pinned: impl Fn(u64) -> bool) {
        let mut resident = self.resident.lock();
        for _ in 0..2 * resident.len() {
            if !self.budget.exceeded() || resident.len() <= FLOOR {
                return;
            }
            let Some(page) = resident.pop_front() else { return };
            let slot = self.slot(page);
            let in_use = slot
                .load_full()
                .is_some_and(|p| p.touched.swap(false, Ordering::Relaxed) || Arc::strong_count(&p) > 2);
            if in_use || pinned(page) {
                resident.push_back(page);
            } else {
                slot.store(None);
                self.budget.sub(PAGE_BYTES as u64);
            }
        }
    }
}

impl Drop for PagedTable {
    fn drop(&mut self) {
        let slots: usize = self.top.iter().filter_map(|m| m.get()).map(|m| m.len()).sum();
        let bytes = slots as u64 * SLOT_BYTES;
        self.budget
            .sub(bytes + self.resident.get_mut().len() as u64 * PAGE_BYTES as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_load_once_and_go_under_pressure() {
        let budget = Budget::new(100 * PAGE_BYTES as u64);
        let table = PagedTable::new(1000, budget.clone());
        let load = |n: u64| {
            move || {
                let page = Page::zeroed();
                page.word(3).store(n, Ordering::Relaxed);
                Ok::<_, ()>(page)
            }
        };
        assert_eq!(table.peek(3), None);
        for n in 0..300 {
            table.page(n, load(n)).unwrap();
        }
        assert!(table.wants_eviction());
        table.evict(|page| page == 5);
        assert!(!budget.exceeded() || table.resident.lock().len() <= FLOOR);
        assert_eq!(table.peek(5 * PAGE_WORDS + 3), Some(5), "a pinned page stays");
        let held = table.page(700, load(700)).unwrap();
        for n in 300..700 {
            table.page(n, load(n)).unwrap();
        }
        table.evict(|_| false);
        assert!(table.resident(700).is_some(), "a page in use stays");
        drop(held);
        let gone = (0..300).find(|&n| table.resident(n).is_none()).expect("some page went");
        table.page(gone, load(gone + 1000)).unwrap();
        assert_eq!(table.peek(gone * PAGE_WORDS + 3), Some(gone + 1000));
        drop(table);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn bytes_round_trip() {
        let mut bytes = [0; PAGE_BYTES];
        for (i, b) in bytes.iter_mut().enumerate() {
            *b = i as u8;
        }
        let page = Page::from_bytes(&bytes);
        assert_eq!(page.word(512).load(Ordering::Relaxed), 0x0706_0504_0302_0100);
        assert_eq!(page.to_bytes(), bytes);
    }
}
