//! A sparse table of 64-bit words backed by 4 KiB pages of a file: the BAT, the sector bitmaps, the composite map.
//!
//! A lookup of a resident word takes no lock, changes nothing and does no I/O. Pages come in on first touch and, when
//! clean, go out again under memory pressure, so that the memory a disk takes follows what is touched and not its size.

use std::sync::atomic::{fence, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::pool::Slot;
pub(crate) use super::pool::{Page, Pool, PAGE_BYTES, PAGE_WORDS};

/// Pages under one second-level table.
const FANOUT: u64 = 512;
/// Pages a table keeps whatever the limit says, so that one operation's working set always fits.
const FLOOR: usize = 64;
/// Locks that keep two threads from loading the same page.
const LOAD_STRIPES: usize = 16;

const SLOT_BYTES: u64 = size_of::<Slot>() as u64;
type Middle = Box<[Slot]>;

/// The table. Page numbers are below the count given to [`PagedTable::new`].
#[derive(Debug)]
pub(crate) struct PagedTable {
    top: Box<[OnceLock<Middle>]>,
    pages: u64,
    loading: [Mutex<()>; LOAD_STRIPES],
    /// Numbers of the resident pages, in the order the next sweep visits them. Slots change under it.
    resident: Mutex<std::collections::VecDeque<u64>>,
    pool: Arc<Pool>,
}

impl PagedTable {
    pub(crate) fn new(pages: u64, pool: Arc<Pool>) -> Self {
        PagedTable {
            top: (0..pages.div_ceil(FANOUT)).map(|_| OnceLock::new()).collect(),
            pages,
            loading: std::array::from_fn(|_| Mutex::new(())),
            resident: Mutex::new(std::collections::VecDeque::new()),
            pool,
        }
    }

    fn slot(&self, page: u64) -> &Slot {
        debug_assert!(page < self.pages);
        let middle = self.top[(page / FANOUT) as usize].get_or_init(|| {
            let slots = FANOUT.min(self.pages - page / FANOUT * FANOUT);
            self.pool.add(slots * SLOT_BYTES);
            (0..slots).map(|_| Slot::empty()).collect()
        });
        &middle[(page % FANOUT) as usize]
    }

    /// What `read` finds in the page of `index`, if that is resident.
    #[inline]
    fn with<T>(&self, index: u64, read: impl FnOnce(&Page) -> T) -> Option<T> {
        let page = index / PAGE_WORDS;
        let slot = self
            .top
            .get((page / FANOUT) as usize)?
            .get()?
            .get((page % FANOUT) as usize)?;
        slot.read(|frame| {
            let page = self.pool.page(frame)?;
            page.touch();
            Some(read(page))
        })?
    }

    /// The word at `index` if its page is resident.
    #[inline]
    pub(crate) fn peek(&self, index: u64) -> Option<u64> {
        self.with(index, |page| page.word(index).load(Ordering::Acquire))
    }

    /// The word and whether [`PagedTable::set_checked`] was called for it.
    #[inline]
    pub(crate) fn peek_checked(&self, index: u64) -> Option<(u64, bool)> {
        self.with(index, |page| {
            // The word is not older than the one that was found valid.
            let checked = page.is_checked(index);
            (page.word(index).load(Ordering::Acquire), checked)
        })
    }

    /// Remembers, for as long as the page is resident, that `word` was found valid; and so is what is stored over it.
    pub(crate) fn set_checked(&self, index: u64, word: u64) {
        // Held, so that it is not another's page by now. It may have come in anew, from a file that somebody changed.
        if let Some(page) = self.resident(index / PAGE_WORDS) {
            if page.word(index).load(Ordering::Acquire) == word {
                page.set_checked(index);
            }
        }
    }

    /// The page if it is resident. It is not evicted while it is held.
    pub(crate) fn resident(&self, page: u64) -> Option<Arc<Page>> {
        let slot = self.slot(page);
        loop {
            slot.frame()?;
            let held = slot.read(|frame| {
                let held = self.pool.page(frame).cloned();
                // ORDER: held before the slot is looked at again; see Slot::clear_unless.
                fence(Ordering::SeqCst);
                held
            });
            if let Some(held) = held {
                return held;
            }
        }
    }

    /// The first page at or after `page` and before `end` that is resident; `end` if there is none.
    pub(crate) fn next_resident(&self, mut page: u64, end: u64) -> u64 {
        while page < end {
            let Some(middle) = self.top.get((page / FANOUT) as usize).and_then(|middle| middle.get()) else {
                page = (page / FANOUT + 1) * FANOUT;
                continue;
            };
            let rest = middle.iter().skip((page % FANOUT) as usize);
            match rest.take((end - page) as usize).position(|slot| slot.frame().is_some()) {
                Some(skipped) => return page + skipped as u64,
                None => page = (page / FANOUT + 1) * FANOUT,
            }
        }
        end
    }

    /// The page, brought in with `load` on first touch, which fills zeros. Not to be called with a lock held that
    /// eviction takes.
    pub(crate) fn page<E>(&self, page: u64, load: impl FnOnce(&Page) -> Result<(), E>) -> Result<Arc<Page>, E> {
        if let Some(found) = self.resident(page) {
            return Ok(found);
        }
        // Held while reading: a page loaded by somebody else, changed, written and evicted in the meantime would
        // otherwise be replaced by what this thread read before.
        let _loading = self.loading[(page % LOAD_STRIPES as u64) as usize].lock();
        if let Some(found) = self.resident(page) {
            return Ok(found);
        }
        let (frame, fresh, stamp) = self.pool.take();
        if let Err(error) = load(fresh) {
            self.pool.give_back(frame);
            return Err(error);
        }
        let held = fresh.clone();
        let mut resident = self.resident.lock();
        self.slot(page).set(frame, stamp);
        resident.push_back(page);
        self.pool.add(PAGE_BYTES as u64);
        Ok(held)
    }

    /// Whether it is time to call [`PagedTable::evict`].
    pub(crate) fn wants_eviction(&self) -> bool {
        self.pool.exceeded() && self.resident.lock().len() > FLOOR
    }

    /// Drops pages not used since the last sweep until the limit holds or a full round is done. The caller holds the
    /// lock under which pages are changed; `pinned` says which must stay. A page that somebody holds stays too, or a
    /// change could never gather all of its pages.
    pub(crate) fn evict(&self, pinned: impl Fn(u64) -> bool) {
        let mut resident = self.resident.lock();
        for _ in 0..2 * resident.len() {
            if !self.pool.exceeded() || resident.len() <= FLOOR {
                return;
            }
            let Some(page) = resident.pop_front() else { return };
            let slot = self.slot(page);
            let frame = slot.frame();
            let content = frame.and_then(|frame| self.pool.page(frame));
            let in_use = || content.is_some_and(|page| Arc::strong_count(page) > 1);
            let stays = content.is_some_and(|page| page.take_touched()) || in_use() || pinned(page);
            if !stays && slot.clear_unless(in_use) {
                self.pool.sub(PAGE_BYTES as u64);
                frame.into_iter().for_each(|frame| self.pool.give_back(frame));
            } else {
                resident.push_back(page);
            }
        }
    }
}

impl Drop for PagedTable {
    fn drop(&mut self) {
        let slots: usize = self.top.iter().filter_map(|m| m.get()).map(|m| m.len()).sum();
        let resident = std::mem::take(self.resident.get_mut());
        let bytes = slots as u64 * SLOT_BYTES + resident.len() as u64 * PAGE_BYTES as u64;
        for page in resident {
            self.slot(page)
                .frame()
                .into_iter()
                .for_each(|frame| self.pool.give_back(frame));
        }
        self.pool.sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_load_once_and_go_under_pressure() {
        let pool = Pool::new(100 * PAGE_BYTES as u64);
        let table = PagedTable::new(1000, pool.clone());
        let load = |n: u64| {
            move |page: &Page| {
                page.word(3).store(n, Ordering::Relaxed);
                Ok::<_, ()>(())
            }
        };
        assert_eq!(table.peek(3), None);
        for n in 0..300 {
            table.page(n, load(n)).unwrap();
        }
        assert!(table.wants_eviction());
        table.evict(|page| page == 5);
        assert_eq!(table.next_resident(5, 1000), 5);
        let first = (6..1000).find(|&page| table.resident(page).is_some()).unwrap();
        assert_eq!(table.next_resident(6, 1000), first);
        assert_eq!(table.next_resident(301, 1000), 1000);
        assert!(!pool.exceeded() || table.resident.lock().len() <= FLOOR);
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
        assert_eq!(pool.used(), 0);
    }

    #[test]
    fn bytes_round_trip() {
        let mut bytes = [0; PAGE_BYTES];
        for (i, b) in bytes.iter_mut().enumerate() {
            *b = i as u8;
        }
        let pool = Pool::new(0);
        let (_, page, _) = pool.take();
        page.fill(&bytes);
        assert_eq!(page.word(512).load(Ordering::Relaxed), 0x0706_0504_0302_0100);
        assert_eq!(page.to_bytes(), bytes);
    }
}
