//! What lies below the leaf, resolved once: the composite map.
//!
//! The layers under the leaf do not change while they are in a snapshot, so the answer to "who holds this range" is
//! looked up by walking down once and remembered: one word per granule, the smallest block size below the leaf. A
//! granule is zero, or in one layer in sequence, or mixed: then the word refers to a list of runs or
//! of pieces.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::snapshot::{walk, Walk};
use crate::error::Result;
use crate::image::lookup::Source;
use crate::image::paged::{PagedTable, Pool, PAGE_WORDS};
use crate::image::Image;
use crate::units::MIB;

const ZERO: u64 = 1;
const DATA: u64 = 2;
const MIXED: u64 = 3;

/// Runs begin at multiples of this, in the disk and in the file.
const SECTOR: u64 = 512;

/// Lists per chunk of the arena, and chunks.
const LISTS: usize = 1024;
const CHUNKS: usize = 1024;

/// Where bytes below the leaf come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Below {
    /// Nobody holds them, or somebody holds them as zeros.
    Zero,
    /// In the file of a layer.
    Data { layer: usize, file_offset: u64 },
}

impl Below {
    /// The same, `len` bytes further.
    pub(crate) fn skip(self, len: u64) -> Below {
        match self {
            Below::Zero => Below::Zero,
            Below::Data { layer, file_offset } => Below::Data {
                layer,
                file_offset: file_offset + len,
            },
        }
    }
}

/// A part of the arena of lists.
type Chunk = Box<[OnceLock<List>]>;

/// Where the parts of a mixed granule come from.
#[derive(Debug)]
enum List {
    /// Runs: where each begins, ascending from 0.
    Runs { starts: Box<[u32]>, places: Box<[Place]> },
    /// Pieces of `1 << shift` bytes each, for granules that are all in pieces: found at once, in less memory.
    Pieces { shift: u32, places: Box<[Place]> },
}

/// [`Below`] in one word: the layer, and which sector of its file; 0 for zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place(u64);

impl Place {
    fn new(below: Below) -> Self {
        match below {
            Below::Zero => Place(0),
            Below::Data { layer, file_offset } => Place((file_offset / SECTOR) << 16 | layer as u64),
        }
    }

    /// What is `skip` bytes behind the start.
    fn below(self, skip: u64) -> Below {
        match self.0 {
            0 => Below::Zero,
            place => Below::Data {
                layer: (place & 0xFFFF) as usize,
                file_offset: (place >> 16) * SECTOR + skip,
            },
        }
    }

    /// Whether `next`, `len` bytes further on, is what follows.
    fn continues_with(self, len: u64, next: Place) -> bool {
        match self.0 {
            0 => next.0 == 0,
            place => next.0 == place + ((len / SECTOR) << 16),
        }
    }
}

/// The map of one snapshot.
#[derive(Debug)]
pub(crate) struct CompositeMap {
    /// Bytes of a granule are `1 << shift`.
    shift: u32,
    table: PagedTable,
    lists: Box<[OnceLock<Chunk>]>,
    next_list: AtomicUsize,
    list_bytes: AtomicU64,
    pool: Arc<Pool>,
}

impl CompositeMap {
    /// An empty map for a disk of `virtual_size` bytes above `below`, the layers under the leaf.
    pub(crate) fn new(virtual_size: u64, below: &[Arc<Image>], pool: Arc<Pool>) -> Self {
        let sizes = below.iter().map(|image| image.geometry().block_size());
        let granule = sizes.min().unwrap_or(256 * MIB);
        let words = match below.is_empty() {
            true => 0,
            false => virtual_size.div_ceil(granule),
        };
        CompositeMap {
            shift: granule.ilog2(),
            table: PagedTable::new(words.div_ceil(PAGE_WORDS), pool.clone()),
            lists: (0..CHUNKS).map(|_| OnceLock::new()).collect(),
            next_list: AtomicUsize::new(0),
            list_bytes: AtomicU64::new(0),
            pool,
        }
    }

    /// Where `len` bytes at `offset` of `layers[1..]` come from; the answer is for the first bytes that share it.
    pub(crate) fn lookup(&self, layers: &[Arc<Image>], offset: u64, len: u64) -> Result<(u64, Below)> {
        let index = offset >> self.shift;
        let within = offset - (index << self.shift);
        let len = len.min((1 << self.shift) - within);
        let word = match self.table.peek(index) {
            Some(word) if word != 0 => word,
            _ => self.resolve(layers, index)?,
        };
        match word & 3 {
            ZERO => Ok((len, Below::Zero)),
            DATA => Ok((
                len,
                Below::Data {
                    layer: (word >> 2 & 0xFFFF) as usize,
                    file_offset: (word >> 20 << 20) + within,
                },
            )),
            _ => match self.list((word >> 2) as usize) {
                Some(list) => Ok(list.at(within as u32, len)),
                // The arena is full: walk, as if there were no map.
                None => {
                    let found = walk(layers, 1, offset, len)?;
                    Ok((found.len, below(&found)))
                }
            },
        }
    }

    fn list(&self, index: usize) -> Option<&List> {
        self.lists.get(index / LISTS)?.get()?[index % LISTS].get()
    }

    /// Whether it is worth asking if it is full. Every read asks this, after which most are done.
    #[inline]
    pub(crate) fn is_large(&self) -> bool {
        self.list_bytes.load(Ordering::Relaxed) > MIB
    }

    /// Whether so many lists were made that it is time for a fresh map. As many as there can be make it large, too.
    pub(crate) fn is_full(&self) -> bool {
        self.is_large() && (self.pool.exceeded() || self.next_list.load(Ordering::Relaxed) >= LISTS * CHUNKS)
    }

    #[cold]
    fn resolve(&self, layers: &[Arc<Image>], index: u64) -> Result<u64> {
        let start = index << self.shift;
        let end = (start + (1 << self.shift)).min(layers.first().map_or(0, |leaf| leaf.virtual_size()));
        let (mut starts, mut places) = (Vec::new(), Vec::<Place>::new());
        let mut last = start;
        let mut at = start;
        while at < end {
            let found = walk(layers, 1, at, end - at)?;
            let next = Place::new(below(&found));
            if !places.last().is_some_and(|place| place.continues_with(at - last, next)) {
                starts.push((at - start) as u32);
                places.push(next);
                last = at;
            }
            at += found.len;
        }
        let whole = match places.as_slice() {
            [] => Some(Below::Zero),
            [one] => Some(one.below(0)),
            _ => None,
        };
        let word = match whole {
            Some(Below::Zero) => ZERO,
            Some(Below::Data { layer, file_offset }) if file_offset % MIB == 0 => {
                file_offset | (layer as u64) << 2 | DATA
            }
            _ => self.add_list(List::new(starts, places, (end - start) as u32)) << 2 | MIXED,
        };
        let page = self
            .table
            .page(index / PAGE_WORDS, |_| Ok::<_, crate::error::Error>(()))?;
        // Two threads that resolve the same granule find the same; a store to a page just evicted is merely forgotten.
        page.word(index).store(word, Ordering::Release);
        if self.table.wants_eviction() {
            self.table.evict(|_| false);
        }
        Ok(word)
    }

    fn add_list(&self, list: List) -> u64 {
        let index = self.next_list.fetch_add(1, Ordering::Relaxed);
        if let Some(chunk) = self.lists.get(index / LISTS) {
            let chunk = chunk.get_or_init(|| (0..LISTS).map(|_| OnceLock::new()).collect());
            let bytes = list.bytes();
            self.list_bytes.fetch_add(bytes, Ordering::Relaxed);
            self.pool.add(bytes);
            let _ = chunk[index % LISTS].set(list);
        }
        index as u64
    }
}

impl Drop for CompositeMap {
    fn drop(&mut self) {
        self.pool.sub(*self.list_bytes.get_mut());
    }
}

impl List {
    /// From the runs of a granule of `len` bytes.
    fn new(starts: Vec<u32>, places: Vec<Place>, len: u32) -> Self {
        let shift = starts.iter().fold(len, |all, start| all | start).trailing_zeros();
        let pieces = len >> shift;
        if pieces as usize * size_of::<Place>() > places.len() * (size_of::<u32>() + size_of::<Place>()) {
            return List::Runs {
                starts: starts.into_boxed_slice(),
                places: places.into_boxed_slice(),
            };
        }
        let mut run = 0;
        let place = |piece: u32| {
            let start = piece << shift;
            while starts.get(run + 1).is_some_and(|&next| next <= start) {
                run += 1;
            }
            Place::new(places[run].below(u64::from(start - starts[run])))
        };
        List::Pieces {
            shift,
            places: (0..pieces).map(place).collect(),
        }
    }

    fn bytes(&self) -> u64 {
        let bytes = match self {
            List::Runs { starts, places } => size_of_val(&**starts) + size_of_val(&**places),
            List::Pieces { places, .. } => size_of_val(&**places),
        };
        bytes as u64
    }

    /// Where `len` bytes from `within` on come from; the answer is for the first bytes that share it, or fewer.
    fn at(&self, within: u32, len: u64) -> (u64, Below) {
        match self {
            List::Runs { starts, places } => {
                let i = starts.partition_point(|&start| start <= within) - 1;
                let len = match starts.get(i + 1) {
                    Some(next) => len.min(u64::from(next - within)),
                    None => len,
                };
                (len, places[i].below(u64::from(within - starts[i])))
            }
            List::Pieces { shift, places } => {
                let skip = within & ((1 << shift) - 1);
                let len = len.min((1 << shift) - u64::from(skip));
                (len, places[(within >> shift) as usize].below(u64::from(skip)))
            }
        }
    }
}

fn below(found: &Walk) -> Below {
    match found.source {
        Source::Data { file_offset } => Below::Data {
            layer: found.layer,
            file_offset,
        },
        _ => Below::Zero,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_and_runs_say_the_same() {
        let data = |n: u64| {
            Place::new(Below::Data {
                layer: n as usize % 3,
                file_offset: MIB + n * 8192,
            })
        };
        let mut in_pieces = 0;
        for step in [512u32, 4096, 65536] {
            // From few long runs to all in pieces; the last is cut.
            for every in [1u32, 2, 3, 50] {
                let len = 100 * step - if every == 3 { 512 } else { 0 };
                let starts: Vec<u32> = (0..100).step_by(every as usize).map(|n| n * step).collect();
                let places: Vec<Place> = (0..starts.len() as u64)
                    .map(|n| if n % 4 == 3 { Place(0) } else { data(n) })
                    .collect();
                let runs = List::Runs {
                    starts: starts.clone().into(),
                    places: places.clone().into(),
                };
                let best = List::new(starts.clone(), places, len);
                in_pieces += usize::from(matches!(best, List::Pieces { .. }));
                assert!(best.bytes() <= runs.bytes());
                for within in (0..len).step_by(512) {
                    let ((most, a), (some, b)) = (runs.at(within, 1 << 20), best.at(within, 1 << 20));
                    assert_eq!(a, b, "at {within}");
                    assert!(0 < some && some <= most);
                }
            }
        }
        assert!((1..12).contains(&in_pieces), "{in_pieces} of 12 in pieces");
    }
}
