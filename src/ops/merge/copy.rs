//! The copying half of a merge: everything the merged layers hold goes to the target, each sector once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use super::crew;
use crate::chain::snapshot::{walk, Walk};
use crate::chain::{Chain, Watch};
use crate::error::{Error, ErrorKind, Result};
use crate::image::lookup::Source;
use crate::image::payload::Payload;
use crate::image::Image;
use crate::ops::pace::Pace;
use crate::options::{MergeMode, MergeOptions, ProgressFn};
use crate::storage::{CopyMethod, Order, Storage};
use crate::units::{align_down, BlockIndex, MIB};

/// Most bytes copied at once.
pub(super) const STEP: u64 = 4 * MIB;
/// Most bytes copied before the merged layers' blocks are released, in consume mode.
const BATCH: u64 = 64 * MIB;
/// Free space that consume mode leaves to logs, BATs, sector bitmaps and the file system's own structures.
const RESERVE: u64 = 2 * MIB;

/// From where to where, and how. Pieces may be copied by several threads at once.
pub(super) struct Route {
    /// The merged layers, as the chain has them now, top first.
    pub(super) merged: Vec<Arc<Image>>,
    pub(super) target: Arc<Image>,
    pub(super) mode: MergeMode,
    pub(super) reflinked: AtomicU64,
}

impl Route {
    /// Gives the target what was `found` at `at`. Returns the bytes copied.
    pub(super) fn copy(&self, at: u64, found: &Walk) -> Result<u64> {
        let Source::Data { file_offset } = found.source else {
            if matches!(found.source, Source::Zero(_)) {
                self.target.zero(at, found.len, true)?;
            }
            return Ok(0);
        };
        let from = &self.merged[found.layer];
        let raw: Option<&dyn Storage> = if from.is_dirty() { None } else { Some(&**from.storage()) };
        let methods: &[CopyMethod] = match self.mode {
            MergeMode::Copy => &[],
            MergeMode::Reflink => &[CopyMethod::Reflink],
            MergeMode::Auto | MergeMode::Consume => &[CopyMethod::Reflink, CopyMethod::Offload],
        };
        let payload = Payload::Copy {
            source: from.view(),
            raw,
            file_offset,
            len: found.len,
            methods,
            reflinked: &self.reflinked,
        };
        self.target.write(at, payload)?;
        Ok(found.len)
    }
}

/// One merge's copying.
pub(super) struct Copier<'a> {
    pub(super) chain: &'a Chain,
    pub(super) top: usize,
    pub(super) base: usize,
    pub(super) route: Route,
    threads: usize,
    pub(super) watch: Option<Arc<Watch>>,
    pub(super) copied: u64,
    /// Consume mode: what is copied of the blocks below here was released.
    released: u64,
    /// Consume mode: `copied` at that time.
    copied_then: u64,
    /// Most bytes copied before the next release.
    batch: u64,
    /// The most bytes of one unit for which the target has no place yet.
    most: u64,
    pace: Pace<'a>,
}

impl<'a> Copier<'a> {
    pub(super) fn new(
        chain: &'a Chain,
        top: usize,
        base: usize,
        options: &MergeOptions,
        progress: ProgressFn<'a>,
    ) -> Result<Self> {
        let hint = "the chain reads as before; run the merge again to finish it";
        let layers = &chain.current().layers;
        let mut copier = Copier {
            chain,
            top,
            base,
            route: Route {
                merged: layers[top..base].to_vec(),
                target: layers[base].clone(),
                mode: options.mode,
                reflinked: AtomicU64::new(0),
            },
            threads: options.threads,
            watch: None,
            copied: 0,
            released: 0,
            copied_then: 0,
            batch: BATCH,
            most: 0,
            pace: Pace::new("the merge", hint, options.rate, progress).of(layers[base].name()),
        };
        let (held, most) = copier.held()?;
        copier.pace.expect(held);
        copier.most = most;
        Ok(copier)
    }

    fn size(&self) -> u64 {
        self.route.merged[0].virtual_size()
    }

    /// What is released at a time: blocks of all merged layers, whole.
    fn unit(&self) -> u64 {
        let blocks = self.route.merged.iter().map(|layer| layer.geometry().block_size());
        blocks.fold(MIB, u64::max)
    }

    /// Bytes the merged layers hold as data, each sector counted once; and the most of them in one unit for which the
    /// target has no place yet.
    fn held(&mut self) -> Result<(u64, u64)> {
        let unit = self.unit();
        let target = *self.route.target.geometry();
        let (mut at, mut bytes) = (0, 0);
        let (mut most, mut new, mut new_in) = (0, 0, 0);
        while at < self.size() {
            let found = walk(&self.route.merged, 0, at, self.size() - at)?;
            let end = at + found.len;
            if matches!(found.source, Source::Data { .. }) {
                bytes += found.len;
                while at < end {
                    let block = target.block_of(at);
                    let inside = at < target.virtual_size();
                    let stop = match inside {
                        true => target.block_start(block) + target.block_len(block),
                        false => end,
                    };
                    let stop = stop.min(end).min(align_down(at, unit) + unit);
                    if !inside || !self.route.target.payload(block)?.has_space() {
                        if at / unit != new_in {
                            (new_in, new) = (at / unit, 0);
                        }
                        new += stop - at;
                        most = most.max(new);
                    }
                    at = stop;
                }
            }
            self.pace.pass(found.len)?;
            at = end;
        }
        Ok((bytes, most))
    }

    /// Bytes free for the target to grow into, if known.
    fn room(&self) -> Option<u64> {
        let storage = self.route.target.storage();
        // A device has its length; what is free inside it is not asked here.
        let grows = storage.grows_with_zeros();
        grows.then(|| storage.available_space().unwrap_or(None)).flatten()
    }

    /// Why releasing the merged layers' blocks makes no room for the target, if so.
    fn useless_to_consume(&self) -> Option<&'static str> {
        let volume = |image: &Image| image.storage().id().map(|id| id.0);
        let elsewhere =
            |image: &Arc<Image>| volume(image).is_some_and(|v| volume(&self.route.target).is_some_and(|t| t != v));
        match () {
            _ if self.route.merged.iter().all(elsewhere) => Some("the merged layers are on another file system"),
            _ if !self.route.merged.iter().any(|layer| layer.storage().can_release()) => {
                Some("the file system cannot release parts of a file")
            }
            _ => None,
        }
    }

    /// Chooses the mode and refuses before the first byte when there is no room.
    pub(super) fn settle_mode(&mut self) -> Result<()> {
        let available = self.room();
        let too_little = |needed: u64| available.is_some_and(|available| available < needed);
        let all = self.pace.now().total;
        let needed = match self.route.mode {
            MergeMode::Reflink => return Ok(()),
            MergeMode::Auto | MergeMode::Copy if !too_little(all) => return Ok(()),
            MergeMode::Copy => all,
            MergeMode::Auto | MergeMode::Consume => match self.useless_to_consume() {
                Some(_) => all,
                None => self.most + RESERVE,
            },
        };
        if !too_little(needed) {
            self.route.mode = MergeMode::Consume;
            return Ok(());
        }
        let why = match self.route.mode {
            MergeMode::Copy => None,
            _ => self.useless_to_consume(),
        };
        let available = available.unwrap_or(0);
        let message = match why {
            Some(why) => {
                format!("the merge may need {needed} bytes and {available} are free; consuming frees none: {why}")
            }
            None => format!("the merge may need {needed} bytes and {available} are free"),
        };
        let error = Error::new(ErrorKind::NoSpace, message).with_path(self.route.target.name());
        Err(match self.route.mode {
            MergeMode::Copy => error.with_hint("use mode=consume, which needs next to no free space"),
            _ => error.with_hint("make room on the file system of this file"),
        })
    }

    /// Copies everything, and again what a live leaf was written meanwhile until little of it is left.
    pub(super) fn run(&mut self) -> Result<()> {
        let mut at = match self.route.mode {
            // Takes turns with releasing.
            MergeMode::Consume => 0,
            _ if self.threads == 0 => 0,
            _ => crew::copy(&self.route, self.size(), self.threads, &mut self.pace, &mut self.copied)?,
        };
        while at < self.size() {
            match self.copy_step(at, self.size()) {
                Ok(len) => at += len,
                Err(error) if error.kind() == ErrorKind::NoSpace => {
                    at = self.make_room(at, error)?;
                    continue;
                }
                Err(error) => return Err(error),
            }
            if self.route.mode == MergeMode::Consume && self.is_time_to_release(at) {
                self.release_to(at)?;
            }
        }
        // Each pass takes what was written during the one before; a last one is made with writers standing still.
        for _ in 0..4 {
            self.copy_written()?;
        }
        Ok(())
    }

    /// The last pass, with writers standing still.
    pub(super) fn finish(&mut self) -> Result<()> {
        // The caller is not asked with writers waiting: it may be one.
        self.pace.hurry();
        self.copy_written()
    }

    /// Whether the next unit might not fit before a release.
    fn is_time_to_release(&self, at: u64) -> bool {
        let (unit, pending) = (self.unit(), self.copied - self.copied_then);
        let tight = || self.room().is_some_and(|room| room < unit + RESERVE);
        at == self.size() || (at % unit == 0 && pending > 0 && (pending + unit > self.batch || tight()))
    }

    /// The storage is full: releases what is copied; batches are smaller from here on. Returns where to go on.
    ///
    /// # Errors
    /// `error`, when nothing can be released.
    fn make_room(&mut self, at: u64, error: Error) -> Result<u64> {
        let unit = self.unit();
        let copied = align_down(at, unit) - self.released;
        let may =
            matches!(self.route.mode, MergeMode::Auto | MergeMode::Consume) && self.useless_to_consume().is_none();
        if !may || copied == 0 {
            return Err(error);
        }
        self.route.mode = MergeMode::Consume;
        self.batch = (self.copied - self.copied_then) / 2;
        // The last unit is copied again: logging the release of the others takes space, too.
        let keep = self.released + if copied > unit { copied - unit } else { copied };
        let mut from = keep;
        let end = (at + STEP).min(self.size());
        while from < end {
            let found = walk(&self.route.merged, 0, from, end - from)?;
            // ORDER: only what merged layers hide, and keep, is given up.
            if matches!(found.source, Source::Data { .. }) {
                self.route.target.hollow(from, found.len)?;
            }
            from += found.len;
        }
        self.release_to(keep)?;
        Ok(keep)
    }

    /// Releases the blocks whose content was copied since the last release. One that reaches behind `at` comes later.
    fn release_to(&mut self, at: u64) -> Result<()> {
        self.release(self.released, at)?;
        self.released = align_down(at, self.unit());
        self.copied_then = self.copied;
        Ok(())
    }

    /// Copies the blocks of the live leaf written since they were copied.
    fn copy_written(&mut self) -> Result<()> {
        let Some(watch) = self.watch.clone() else { return Ok(()) };
        let mut block = 0;
        while let Some(marked) = watch.next(block) {
            // Forgotten before it is read: a write during the copy marks it again.
            watch.take(marked);
            let geometry = *self.route.merged[0].geometry();
            let start = geometry.block_start(BlockIndex(marked));
            let end = start + geometry.block_len(BlockIndex(marked));
            let mut at = start;
            while at < end {
                at += self.copy_step(at, end)?;
            }
            block = marked + 1;
        }
        Ok(())
    }

    /// Copies the first run of `[at, end)`; returns its length.
    fn copy_step(&mut self, at: u64, end: u64) -> Result<u64> {
        let mut found = walk(&self.route.merged, 0, at, end - at)?;
        if matches!(found.source, Source::Data { .. }) {
            found.len = found.len.min(STEP);
            if self.route.mode == MergeMode::Consume {
                // Not across the end of a unit: there the others are released.
                found.len = found.len.min(self.unit() - at % self.unit());
            }
        }
        match self.route.copy(at, &found)? {
            0 => self.pace.pass(found.len)?,
            copied => {
                self.copied += copied;
                self.pace.advance(copied, copied)?;
            }
        }
        Ok(found.len)
    }

    /// Releases the merged layers' blocks wholly inside the range, whose content the target now holds.
    fn release(&self, from: u64, to: u64) -> Result<()> {
        // ORDER: the target's copies are durable before anything is taken from the merged layers.
        if !Order::CopiedBeforeReleased.is_forgotten() {
            self.route.target.commit()?;
        }
        // ORDER: lowest layer first, each durable before the next: a block must not become transparent while a lower
        // one still holds older data.
        let mut lowest_first: Vec<_> = self.route.merged.iter().enumerate().rev().collect();
        if Order::LowestReleasedFirst.is_forgotten() {
            lowest_first.reverse();
        }
        for (i, image) in lowest_first {
            let geometry = *image.geometry();
            let first = from.div_ceil(geometry.block_size());
            let last = match to >= geometry.virtual_size() {
                true => geometry.block_count(),
                false => to / geometry.block_size(),
            };
            // What readers remember of lower layers is from before they were written or released.
            self.chain.refresh();
            for block in first..last {
                let live = if i == 0 { self.watch.as_ref() } else { None };
                let unchanged = || live.is_none_or(|watch| !watch.is_marked(block));
                image.make_transparent(BlockIndex(block), unchanged)?;
            }
            self.chain.refresh();
            image.commit()?;
        }
        Ok(())
    }

    /// Reads both and compares. Nobody writes meanwhile.
    pub(super) fn verify(&self) -> Result<()> {
        let layers = &self.chain.current().layers;
        let whole = &layers[self.top..];
        let target_only = &layers[self.base..];
        let mut a = vec![0; MIB as usize];
        let mut b = vec![0; MIB as usize];
        let mut at = 0;
        while at < self.size() {
            let (x, y) = (
                walk(whole, 0, at, MIB.min(self.size() - at))?,
                walk(target_only, 0, at, MIB)?,
            );
            let len = x.len.min(y.len).min(self.size() - at);
            fill(whole, &x, &mut a[..len as usize])?;
            fill(target_only, &y, &mut b[..len as usize])?;
            if a[..len as usize] != b[..len as usize] {
                return Err(Error::new(
                    ErrorKind::Io,
                    format!("the target differs from the merged layers in the {len} bytes at {at}"),
                )
                .with_path(self.route.target.name())
                .with_offset(at)
                .with_hint("nothing was removed; check the storage, then run the merge again"));
            }
            at += len;
        }
        Ok(())
    }

    pub(super) fn reflinked(&self) -> u64 {
        self.route.reflinked.load(Ordering::Relaxed)
    }
}

fn fill(layers: &[Arc<Image>], found: &Walk, buf: &mut [u8]) -> Result<()> {
    use crate::error::IoContext;
    match found.source {
        Source::Data { file_offset } => layers[found.layer]
            .view()
            .read_at(buf, file_offset)
            .context(|| format!("read at file offset {file_offset:#x}")),
        _ => {
            buf.fill(0);
            Ok(())
        }
    }
}
