//! The copying half of a merge: everything the merged layers hold goes to the target, each sector once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use crate::chain::snapshot::walk;
use crate::chain::{Chain, Watch};
use crate::error::{Error, ErrorKind, Result};
use crate::image::lookup::Source;
use crate::image::payload::Payload;
use crate::image::Image;
use crate::ops::pace::Pace;
use crate::options::{MergeMode, MergeOptions, ProgressFn};
use crate::storage::{CopyMethod, Storage};
use crate::units::{align_down, BlockIndex, MIB};

/// Most bytes copied at once.
const STEP: u64 = 4 * MIB;
/// Bytes copied before the merged layers' blocks are released, in consume mode.
const BATCH: u64 = 64 * MIB;

/// What is copied where, and how.
pub(super) struct Copier<'a> {
    pub(super) chain: &'a Chain,
    pub(super) top: usize,
    pub(super) base: usize,
    /// The merged layers, as the chain has them now, top first.
    pub(super) merged: Vec<Arc<Image>>,
    pub(super) target: Arc<Image>,
    pub(super) mode: MergeMode,
    pub(super) watch: Option<Arc<Watch>>,
    pub(super) reflinked: AtomicU64,
    pub(super) copied: u64,
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
            merged: layers[top..base].to_vec(),
            target: layers[base].clone(),
            mode: options.mode,
            watch: None,
            reflinked: AtomicU64::new(0),
            copied: 0,
            pace: Pace::new("the merge", hint, options.rate, progress).of(layers[base].name()),
        };
        let held = copier.bytes_held()?;
        copier.pace.expect(held);
        Ok(copier)
    }

    fn size(&self) -> u64 {
        self.merged[0].virtual_size()
    }

    /// Bytes the merged layers hold as data, each sector counted once.
    fn bytes_held(&mut self) -> Result<u64> {
        let (mut at, mut bytes) = (0, 0);
        while at < self.size() {
            let found = walk(&self.merged, 0, at, self.size() - at)?;
            if matches!(found.source, Source::Data { .. }) {
                bytes += found.len;
            }
            at += found.len;
            self.pace.pass(found.len)?;
        }
        Ok(bytes)
    }

    /// Chooses the mode and refuses before the first byte when there is no room.
    pub(super) fn settle_mode(&mut self) -> Result<()> {
        let needed = self.pace.now().total;
        let available = self.target.storage().available_space().unwrap_or(None);
        let too_little = available.is_some_and(|available| available < needed);
        match self.mode {
            MergeMode::Auto if too_little => self.mode = MergeMode::Consume,
            MergeMode::Copy if too_little => {
                return Err(Error::new(
                    ErrorKind::NoSpace,
                    format!(
                        "the merge may need {needed} bytes and {} are free",
                        available.unwrap_or(0)
                    ),
                )
                .with_path(self.target.name())
                .with_hint("use mode=consume, which needs next to no free space"))
            }
            _ => {}
        }
        Ok(())
    }

    /// Copies everything, and again what a live leaf was written meanwhile until little of it is left.
    pub(super) fn run(&mut self) -> Result<()> {
        let mut at = 0;
        let mut batch_start = 0;
        let mut batch_bytes = self.copied;
        while at < self.size() {
            at += self.copy_step(at, self.size())?;
            if self.mode == MergeMode::Consume && (self.copied - batch_bytes >= BATCH || at == self.size()) {
                self.release(batch_start, at)?;
                // A block cut by the end of the batch is released with the next one.
                let largest = self
                    .merged
                    .iter()
                    .map(|l| l.geometry().block_size())
                    .fold(MIB, u64::max);
                batch_start = align_down(at, largest);
                batch_bytes = self.copied;
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

    /// Copies the blocks of the live leaf written since they were copied.
    fn copy_written(&mut self) -> Result<()> {
        let Some(watch) = self.watch.clone() else { return Ok(()) };
        let mut block = 0;
        while let Some(marked) = watch.next(block) {
            // Forgotten before it is read: a write during the copy marks it again.
            watch.take(marked);
            let geometry = *self.merged[0].geometry();
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
        let found = walk(&self.merged, 0, at, end - at)?;
        let Source::Data { file_offset } = found.source else {
            if matches!(found.source, Source::Zero(_)) {
                self.target.zero(at, found.len, true)?;
            }
            self.pace.pass(found.len)?;
            return Ok(found.len);
        };
        let len = found.len.min(STEP);
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
            len,
            methods,
            reflinked: &self.reflinked,
        };
        self.target.write(at, payload)?;
        self.copied += len;
        self.pace.advance(len, len)?;
        Ok(len)
    }

    /// Releases the merged layers' blocks wholly inside the range, whose content the target now holds.
    fn release(&self, from: u64, to: u64) -> Result<()> {
        // ORDER: the target's copies are durable before anything is taken from the merged layers.
        self.target.commit()?;
        // ORDER: lowest layer first, each durable before the next: a block must not become transparent while a lower
        // one still holds older data.
        for (i, image) in self.merged.iter().enumerate().rev() {
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
                .with_path(self.target.name())
                .with_offset(at)
                .with_hint("nothing was removed; check the storage, then run the merge again"));
            }
            at += len;
        }
        Ok(())
    }

    pub(super) fn reflinked(&self) -> u64 {
        self.reflinked.load(Ordering::Relaxed)
    }
}

fn fill(layers: &[Arc<Image>], found: &crate::chain::snapshot::Walk, buf: &mut [u8]) -> Result<()> {
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
