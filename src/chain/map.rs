//! What lies below the leaf, resolved once: the composite map.
//!
//! The layers under the leaf do not change while they are in a snapshot, so the answer to "who holds this range" is
//! looked up by walking down once and remembered: one word per granule, the smallest block size below the leaf. A
//! granule is zero, or in one layer in sequence, or mixed: then the word refers to a list of runs.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::snapshot::{walk, Walk};
use crate::error::Result;
use crate::image::lookup::Source;
use crate::image::paged::{Budget, Page, PagedTable, PAGE_WORDS};
use crate::image::Image;
use crate::units::MIB;

const ZERO: u64 = 1;
const DATA: u64 = 2;
const MIXED: u64 = 3;

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

/// A part of a mixed granule, from its start to the next one's.
#[derive(Debug, Clone, Copy)]
struct Run {
    start: u32,
    below: Below,
}

/// A part of the arena of lists.
type Chunk = Box<[OnceLock<List>]>;

#[derive(Debug)]
struct List(Box<[Run]>);

/// The map of one snapshot.
#[derive(Debug)]
pub(crate) struct CompositeMap {
    granule: u64,
    table: PagedTable,
    lists: Box<[OnceLock<Chunk>]>,
    next_list: AtomicUsize,
    list_bytes: AtomicU64,
    budget: Arc<Budget>,
}

impl CompositeMap {
    /// An empty map for a disk of `virtual_size` bytes above `below`, the layers under the leaf.
    pub(crate) fn new(virtual_size: u64, below: &[Arc<Image>], budget: Arc<Budget>) -> Self {
        let granule = below
            .iter()
            .map(|image| image.geometry().block_size())
            .min()
            .unwrap_or(256 * MIB);
        let words = if below.is_empty() {
            0
        } else {
            virtual_size.div_ceil(granule)
        };
        CompositeMap {
            granule,
            table: PagedTable::new(words.div_ceil(PAGE_WORDS), budget.clone()),
            lists: (0..CHUNKS).map(|_| OnceLock::new()).collect(),
            next_list: AtomicUsize::new(0),
            list_bytes: AtomicU64::new(0),
            budget,
        }
    }

    /// Where `len` bytes at `offset` of `layers[1..]` come from; the answer is for the first bytes that share it.
    pub(crate) fn lookup(&self, layers: &[Arc<Image>], offset: u64, len: u64) -> Result<(u64, Below)> {
        let index = offset / self.granule;
        let within = offset % self.granule;
        let len = len.min(self.granule - within);
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

    /// Whether so many lists were made that it is time for a fresh map.
    pub(crate) fn is_full(&self) -> bool {
        self.next_list.load(Ordering::Relaxed) >= LISTS * CHUNKS
            || (self.budget.exceeded() && self.list_bytes.load(Ordering::Relaxed) > MIB)
    }

    fn resolve(&self, layers: &[Arc<Image>], index: u64) -> Result<u64> {
        let start = index * self.granule;
        let end = (start + self.granule).min(layers.first().map_or(0, |leaf| leaf.virtual_size()));
        let mut runs: Vec<Run> = Vec::new();
        let mut at = start;
        while at < end {
            let found = walk(layers, 1, at, end - at)?;
            let next = below(&found);
            let offset = (at - start) as u32;
            if !runs.last().is_some_and(|last| last.continues_with(offset, next)) {
                runs.push(Run {
                    start: offset,
                    below: next,
                });
            }
            at += found.len;
        }
        let word = match runs.as_slice() {
            [] => ZERO,
            [Run { below: Below::Zero, .. }] => ZERO,
            [Run {
                below: Below::Data { layer, file_offset },
                ..
            }] if file_offset % MIB == 0 => file_offset | (*layer as u64) << 2 | DATA,
            _ => self.add_list(runs) << 2 | MIXED,
        };
        let page = self
            .table
            .page(index / PAGE_WORDS, || Ok::<_, crate::error::Error>(Page::zeroed()))?;
        // Two threads that resolve the same granule find the same; a store to a page just evicted is merely forgotten.
        page.word(index).store(word, Ordering::Release);
        if self.table.wants_eviction() {
            self.table.evict(|_| false);
        }
        Ok(word)
    }

    fn add_list(&self, runs: Vec<Run>) -> u64 {
        let index = self.next_list.fetch_add(1, Ordering::Relaxed);
        if let Some(chunk) = self.lists.get(index / LISTS) {
            let chunk = chunk.get_or_init(|| (0..LISTS).map(|_| OnceLock::new()).collect());
            let bytes = (runs.len() * size_of::<Run>()) as u64;
            self.list_bytes.fetch_add(bytes, Ordering::Relaxed);
            self.budget.add(bytes);
            let _ = chunk[index % LISTS].set(List(runs.into_boxed_slice()));
        }
        index as u64
    }
}

impl Drop for CompositeMap {
    fn drop(&mut self) {
        self.budget.sub(*self.list_bytes.get_mut());
    }
}

impl Run {
    fn continues_with(&self, offset: u32, next: Below) -> bool {
        match (self.below, next) {
            (Below::Zero, Below::Zero) => true,
            (
                Below::Data { layer, file_offset },
                Below::Data {
                    layer: next_layer,
                    file_offset: next_offset,
                },
            ) => layer == next_layer && file_offset + u64::from(offset - self.start) == next_offset,
            _ => false,
        }
    }
}

impl List {
    fn at(&self, within: u32, len: u64) -> (u64, Below) {
        let i = self.0.partition_point(|run| run.start <= within).saturating_sub(1);
        let run = self.0[i];
        let len = match self.0.get(i + 1) {
            Some(next) => len.min(u64::from(next.start - within)),
            None => len,
        };
        let below = match run.below {
            Below::Zero => Below::Zero,
            Below::Data { layer, file_offset } => Below::Data {
                layer,
                file_offset: file_offset + u64::from(within - run.start),
            },
        };
        (len, below)
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
